//! What a peer proves inside a session (BitChat protocol reference, section 4.4).

use super::{PayloadError, Result, announce::Capabilities, array, invalid};
use crate::read::{Reader, put_tlv8};

/// What the peer can do and the key it signs with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerState {
    /// What it can do.
    pub capabilities: Capabilities,
    /// Ed25519.
    pub signing_key: [u8; 32],
}

impl PeerState {
    /// Reads the body of plaintext type `0x21`.
    ///
    /// # Errors
    ///
    /// A version other than 1, a missing or doubled field, a capability field with idle bytes.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(body);
        let version = reader.u8()?;
        if version != 1 {
            return Err(PayloadError::Unknown(version));
        }
        let (mut capabilities, mut signing_key) = (None, None);
        while !reader.is_empty() {
            match reader.tlv8()? {
                (0x01, value) if capabilities.is_none() => {
                    capabilities = Some(Capabilities::decode_minimal(value)?);
                }
                (0x02, value) if signing_key.is_none() => {
                    signing_key = Some(array("signing key", value)?);
                }
                (0x01 | 0x02, value) => return Err(invalid("second field of its kind", value)),
                _ => {}
            }
        }
        Ok(Self {
            capabilities: capabilities.ok_or(PayloadError::Missing("capability field"))?,
            signing_key: signing_key.ok_or(PayloadError::Missing("signing key"))?,
        })
    }

    /// Writes the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![1];
        put_tlv8(&mut out, 0x01, &self.capabilities.encode());
        put_tlv8(&mut out, 0x02, &self.signing_key);
        out
    }
}
