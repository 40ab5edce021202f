//! What a Noise frame says once it is open (BitChat protocol reference, section 3.3).

use super::{PayloadError, Result, bounded, text};
use crate::read::{Reader, put_tlv8};

/// The largest private text, in bytes: its length is one byte.
pub const MAX_TEXT: usize = 255;

/// The first byte of a plaintext.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PlaintextType(pub u8);

impl PlaintextType {
    /// A private message.
    pub const MESSAGE: Self = Self(0x01);
    /// The recipient has read a message.
    pub const READ: Self = Self(0x02);
    /// The recipient has a message.
    pub const DELIVERED: Self = Self(0x03);
    /// An invitation to a group; iOS only.
    pub const GROUP_INVITE: Self = Self(0x06);
    /// A group's new key; iOS only.
    pub const GROUP_KEY: Self = Self(0x07);
    /// Live voice.
    pub const VOICE: Self = Self(0x08);
    /// Asks for proof of the signing key.
    pub const VERIFY_CHALLENGE: Self = Self(0x10);
    /// The proof.
    pub const VERIFY_RESPONSE: Self = Self(0x11);
    /// Words for other peers; iOS only.
    pub const VOUCH: Self = Self(0x12);
    /// A file.
    pub const FILE: Self = Self(0x20);
    /// What the peer can do and how it signs, proven by the session.
    pub const PEER_STATE: Self = Self(0x21);
    /// Between Fieldpost gateways; the apps ignore it.
    pub const GATEWAY: Self = Self(0x7e);
    /// What [`FILE`](Self::FILE) was before it was released.
    const OLD_FILE: Self = Self(0x09);
}

/// Splits a plaintext into its type and its body.
///
/// # Errors
///
/// It is empty.
pub fn split(plaintext: &[u8]) -> Result<(PlaintextType, &[u8])> {
    let (kind, body) = plaintext.split_first().ok_or(PayloadError::Missing("plaintext type"))?;
    let kind = PlaintextType(*kind);
    Ok((if kind == PlaintextType::OLD_FILE { PlaintextType::FILE } else { kind }, body))
}

/// Joins a type and a body.
pub fn join(kind: PlaintextType, body: &[u8]) -> Vec<u8> {
    let mut plaintext = Vec::with_capacity(1 + body.len());
    plaintext.push(kind.0);
    plaintext.extend_from_slice(body);
    plaintext
}

/// Text for one peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PrivateMessage {
    /// Opaque; receipts repeat it exactly.
    pub message_id: String,
    /// At most [`MAX_TEXT`] bytes.
    pub text: String,
}

impl PrivateMessage {
    /// Reads the body of a plaintext.
    ///
    /// # Errors
    ///
    /// A missing or unknown field, a length past the end, or text that is not UTF-8.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let (mut message_id, mut content) = (None, None);
        let mut reader = Reader::new(body);
        while !reader.is_empty() {
            match reader.tlv8()? {
                (0x00, value) => message_id = Some(text("message id", value)?),
                (0x01, value) => content = Some(text("text", value)?),
                (other, _) => return Err(PayloadError::Unknown(other)),
            }
        }
        Ok(Self {
            message_id: message_id.ok_or(PayloadError::Missing("message id"))?,
            text: content.ok_or(PayloadError::Missing("text"))?,
        })
    }

    /// Writes the body of a plaintext.
    ///
    /// # Errors
    ///
    /// An id or text over 255 bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        bounded("message id", self.message_id.as_bytes(), 0..=255)?;
        bounded("text", self.text.as_bytes(), 0..=MAX_TEXT)?;
        let mut out = Vec::with_capacity(4 + self.message_id.len() + self.text.len());
        put_tlv8(&mut out, 0x00, self.message_id.as_bytes());
        put_tlv8(&mut out, 0x01, self.text.as_bytes());
        Ok(out)
    }

    /// Whether it says that the sender has marked us as a favourite, or no longer does.
    pub fn favourite_notice(&self) -> Option<bool> {
        let marked = |mark: &str| {
            let rest = self.text.strip_prefix(mark)?;
            (rest.is_empty() || rest.starts_with(":npub1")).then_some(())
        };
        match (marked("[FAVORITED]"), marked("[UNFAVORITED]")) {
            (Some(()), _) => Some(true),
            (_, Some(())) => Some(false),
            _ => None,
        }
    }
}

/// Reads the body of a receipt: the id of the message, to the end.
///
/// # Errors
///
/// It is empty, over 255 bytes, or not UTF-8.
pub fn receipt_id(body: &[u8]) -> Result<String> {
    bounded("message id", body, 1..=255)?;
    text("message id", body)
}
