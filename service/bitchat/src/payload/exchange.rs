//! What Fieldpost nodes send each other as whole contents, in the segments of [`gateway`](super::gateway).
//!
//! ```text
//! hello      01  u8 version  u8 flags  u64 number  u16 length  certificate  (more in later versions)
//! roster     02  signed roster
//! envelope   03  signed envelope
//! wanted     04  u64 number
//! ```
//!
//! In a hello, flag 1 says that the sender knows the other already, so that it need not be told
//! again; the number is that of the newest roster which it has of the other gateway, as in `wanted`.
//! Certificates, rosters and envelopes are signed; whoever decodes this has believed nothing yet.

use super::{PayloadError, Result, bounded, invalid};
use crate::read::Reader;

/// The version that this crate speaks.
pub const VERSION: u8 = 1;
/// The longest certificate.
pub const MAX_CERTIFICATE: usize = 256;
/// What is in front of a roster or an envelope.
pub const OVERHEAD: usize = 1;

/// One content between gateways.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Exchange {
    /// Whose node this is.
    Hello(Hello),
    /// A signed roster, whole or a delta.
    Roster(Vec<u8>),
    /// A signed envelope.
    Envelope(Vec<u8>),
    /// The number of the newest roster that the sender has of the other; 0 for none.
    Wanted(u64),
}

/// What a node says first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// The gateway's word that the node's Noise key is one of its own.
    pub certificate: Vec<u8>,
    /// Whether the sender has the other's certificate.
    pub knows_you: bool,
    /// The newest roster that it has of the other; 0 for none.
    pub roster: u64,
}

impl Exchange {
    /// Reads a content that came whole.
    ///
    /// # Errors
    ///
    /// It is of another version or kind, ends too early, or carries nothing.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        match reader.u8()? {
            0x01 => {
                let version = reader.u8()?;
                if version == 0 {
                    return Err(PayloadError::Invalid { field: "version", length: 1 });
                }
                let flags = reader.u8()?;
                let roster = reader.u64()?;
                let length = usize::from(reader.u16()?);
                let certificate = reader.take(length)?;
                bounded("certificate", certificate, 1..=MAX_CERTIFICATE)?;
                let knows_you = flags & 1 != 0;
                Ok(Self::Hello(Hello { certificate: certificate.to_vec(), knows_you, roster }))
            }
            kind @ (0x02 | 0x03) => {
                let body = reader.rest();
                match (kind, body) {
                    (_, []) => Err(PayloadError::Missing("content")),
                    (0x02, body) => Ok(Self::Roster(body.to_vec())),
                    (_, body) => Ok(Self::Envelope(body.to_vec())),
                }
            }
            0x04 => {
                let number = reader.u64()?;
                if !reader.is_empty() {
                    return Err(invalid("roster number", reader.rest()));
                }
                Ok(Self::Wanted(number))
            }
            other => Err(PayloadError::Unknown(other)),
        }
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => {
                let mut out = vec![0x01, VERSION, u8::from(hello.knows_you)];
                out.extend_from_slice(&hello.roster.to_be_bytes());
                out.extend_from_slice(&(hello.certificate.len() as u16).to_be_bytes());
                out.extend_from_slice(&hello.certificate);
                out
            }
            Self::Roster(bytes) => [&[0x02], bytes.as_slice()].concat(),
            Self::Envelope(bytes) => [&[0x03], bytes.as_slice()].concat(),
            Self::Wanted(number) => [&[0x04][..], &number.to_be_bytes()].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_later_version_may_say_more_in_its_hello() {
        let hello = Hello { certificate: vec![7; 200], knows_you: true, roster: 9 };
        let mut bytes = Exchange::Hello(hello.clone()).encode();
        bytes[1] = VERSION + 1;
        bytes.extend_from_slice(b"more");
        assert_eq!(Exchange::decode(&bytes), Ok(Exchange::Hello(hello)));
    }

    #[test]
    fn what_is_cut_short_or_empty_is_refused() {
        let hello = Hello { certificate: vec![7; 200], knows_you: false, roster: 0 };
        let whole = Exchange::Hello(hello).encode();
        for end in 0..whole.len() {
            assert!(Exchange::decode(&whole[..end]).is_err(), "{end} bytes");
        }
        for bytes in [&[0x02][..], &[0x03], &[0x04, 1], &[0x04, 0, 0, 0, 0, 0, 0, 0, 1, 1], &[0x05]]
        {
            assert!(Exchange::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn contents_survive_the_way(
            certificate in prop::collection::vec(any::<u8>(), 1..=MAX_CERTIFICATE),
            body in prop::collection::vec(any::<u8>(), 1..500),
            knows_you in any::<bool>(), roster in any::<u64>(),
        ) {
            let all = [
                Exchange::Hello(Hello { certificate, knows_you, roster }),
                Exchange::Roster(body.clone()),
                Exchange::Envelope(body),
                Exchange::Wanted(roster),
            ];
            for one in all {
                prop_assert_eq!(Exchange::decode(&one.encode()), Ok(one));
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Exchange::decode(&bytes);
        }
    }
}
