//! What a receiver answers through a SURB (HTX reference, section 6).
//!
//! ```text
//! answer = version (1) || state (1) || transfer (16) || count, u16 || bitmap of the shards
//! ```

use thiserror::Error;

use crate::fragment::TransferId;

/// What has become of a transfer at its receiver.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Acknowledgement {
    /// Which transfer.
    pub transfer: TransferId,
    /// How far it is.
    pub state: State,
    /// Which shards have come, in order; all of them once the message is whole.
    pub shards: Vec<bool>,
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Shards are missing.
    Partial = 0,
    /// The receiver's store has committed the message.
    Committed = 1,
    /// The receiver does not want the message.
    Refused = 2,
}

impl Acknowledgement {
    /// The bytes of the answer; at most 148, so that they fit a small packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.state as u8];
        bytes.extend(self.transfer.0);
        bytes.extend((self.shards.len() as u16).to_be_bytes());
        bytes.extend(self.shards.chunks(8).map(|shards| {
            shards.iter().enumerate().fold(0, |byte, (at, come)| byte | (u8::from(*come) << at))
        }));
        bytes
    }

    /// Reads an answer; what follows it is random.
    ///
    /// # Errors
    ///
    /// The receiver wrote something else.
    pub fn decode(reply: &[u8]) -> Result<Self, AnswerError> {
        let (header, rest) = reply.split_first_chunk::<20>().ok_or(AnswerError::Truncated)?;
        if header[0] != VERSION {
            return Err(AnswerError::UnsupportedVersion(header[0]));
        }
        let state = match header[1] {
            0 => State::Partial,
            1 => State::Committed,
            2 => State::Refused,
            unknown => return Err(AnswerError::State(unknown)),
        };
        let count = usize::from(u16::from_be_bytes([header[18], header[19]]));
        if count > MAX_SHARDS {
            return Err(AnswerError::Shards { count });
        }
        let bitmap = rest.get(..count.div_ceil(8)).ok_or(AnswerError::Truncated)?;
        let shards = (0..count).map(|at| (bitmap[at / 8] >> (at % 8)) & 1 == 1).collect();
        let transfer = TransferId(std::array::from_fn(|at| header[2 + at]));
        Ok(Self { transfer, state, shards })
    }
}

/// Why a reply is not an answer. Its sender is at fault.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum AnswerError {
    /// It ends before its header says it should.
    #[error("the answer is cut short")]
    Truncated,
    /// We speak version 1.
    #[error("unsupported version {0} of an answer: expected 1")]
    UnsupportedVersion(u8),
    /// A state that we do not know.
    #[error("unknown state {0} of a transfer")]
    State(u8),
    /// No transfer has so many shards.
    #[error("{count} shards: expected at most {MAX_SHARDS}")]
    Shards {
        /// How many there are said to be.
        count: usize,
    },
}

const VERSION: u8 = 1;
/// More than any layout has.
const MAX_SHARDS: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_decodes_whatever_follows_it(
            transfer: [u8; 16], state in 0..3_u8,
            shards in prop::collection::vec(any::<bool>(), 0..MAX_SHARDS),
            rest in prop::collection::vec(any::<u8>(), 0..50)
        ) {
            let state = [State::Partial, State::Committed, State::Refused][usize::from(state)];
            let answer = Acknowledgement { transfer: TransferId(transfer), state, shards };
            let mut bytes = answer.encode();
            prop_assert!(bytes.len() <= 148);
            bytes.extend(rest);
            prop_assert_eq!(Acknowledgement::decode(&bytes), Ok(answer));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Acknowledgement::decode(&bytes);
        }
    }
}
