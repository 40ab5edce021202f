//! What gateways tell each other about documents.
//!
//! ```text
//! head     = [0, number, digest]    the newest document that the sender has
//! request  = [1, number]            the receiver is to send this one
//! document = [2, signed document]
//! ```
//!
//! In the deterministic CBOR of documents themselves.

use super::{
    cbor::{DecodeError, Reader, Writer},
    descriptor::MAX_EPOCH,
    document::limits,
};

/// One message about documents.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum GossipMessage {
    /// The newest document that the sender has.
    Head {
        /// Its number.
        number: u64,
        /// Its digest.
        digest: [u8; 32],
    },
    /// The receiver is to send a document.
    Request {
        /// Its number.
        number: u64,
    },
    /// A signed document.
    Document(Vec<u8>),
}

impl GossipMessage {
    /// The longest message, in bytes.
    pub const MAX_LEN: usize = limits::SIGNED + 16;

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > Self::MAX_LEN {
            return Err(DecodeError::Oversize { length: bytes.len(), most: Self::MAX_LEN });
        }
        let mut reader = Reader::new(bytes);
        let length = reader.list("message", 3)?;
        let kind = reader.uint("kind", 2)?;
        let message = match (kind, length) {
            (0, 3) => Self::Head {
                number: reader.uint("number", MAX_EPOCH)?,
                digest: reader.array("digest")?,
            },
            (1, 2) => Self::Request { number: reader.uint("number", MAX_EPOCH)? },
            (2, 2) => Self::Document(reader.bytes("document", limits::SIGNED)?.to_vec()),
            _ => return Err(DecodeError::Invalid { field: "message" }),
        };
        reader.finish()?;
        Ok(message)
    }

    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        match self {
            Self::Head { number, digest } => {
                writer.list(3);
                writer.uint(0);
                writer.uint(*number);
                writer.bytes(digest);
            }
            Self::Request { number } => {
                writer.list(2);
                writer.uint(1);
                writer.uint(*number);
            }
            Self::Document(document) => {
                writer.list(2);
                writer.uint(2);
                writer.bytes(document);
            }
        }
        writer.finish()
    }
}
