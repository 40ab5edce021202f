//! Notices that stay (BitChat protocol reference, section 3.8); iOS only.

use ed25519_dalek::{Signer, SigningKey};

use super::{PayloadError, Result, array, bounded, invalid, text, verifies};
use crate::read::{Reader, put_tlv16};

const POST_CONTEXT: &[u8] = b"bitchat-board-v1";
const TOMBSTONE_CONTEXT: &[u8] = b"bitchat-board-del-v1";
const WEEK_MS: u64 = 7 * 24 * 3600 * 1000;

/// A notice or its removal, signed by its author.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Board {
    /// Random.
    pub post_id: [u8; 16],
    /// Ed25519 key of the author.
    pub author: [u8; 32],
    /// By the author.
    pub signature: [u8; 64],
    /// Which of the two it is.
    pub entry: Entry,
}

/// What is put on the board.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Entry {
    /// A notice.
    Post {
        /// Where it is shown; empty for the mesh.
        geohash: String,
        /// 1 to 512 bytes.
        content: String,
        /// At most 64 bytes.
        nickname: String,
        /// Milliseconds since 1970.
        created_ms: u64,
        /// At most a week later.
        expires_ms: u64,
        /// Bit 0: urgent.
        flags: u8,
    },
    /// Its removal.
    Tombstone {
        /// Milliseconds since 1970.
        deleted_ms: u64,
    },
}

impl Board {
    /// Signs an entry.
    pub fn sign(post_id: [u8; 16], entry: Entry, key: &SigningKey) -> Self {
        let author = key.verifying_key().to_bytes();
        let mut board = Self { post_id, author, signature: [0; 64], entry };
        board.signature = key.sign(&board.signed()).to_bytes();
        board
    }

    /// Whether its author signed it.
    pub fn is_signed(&self) -> bool {
        verifies(&self.author, &self.signed(), &self.signature)
    }

    /// Whether it asks to be passed on at once.
    pub fn is_urgent(&self) -> bool {
        matches!(self.entry, Entry::Post { flags, .. } if flags & 1 != 0)
    }

    /// The bytes that are signed.
    pub fn signed(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        match &self.entry {
            Entry::Post { geohash, content, nickname, created_ms, expires_ms, flags } => {
                out.push(POST_CONTEXT.len() as u8);
                out.extend_from_slice(POST_CONTEXT);
                out.extend_from_slice(&self.post_id);
                put_text(&mut out, geohash);
                put_text(&mut out, content);
                out.extend_from_slice(&self.author);
                put_text(&mut out, nickname);
                out.extend_from_slice(&created_ms.to_be_bytes());
                out.extend_from_slice(&expires_ms.to_be_bytes());
                out.push(*flags);
            }
            Entry::Tombstone { deleted_ms } => {
                out.push(TOMBSTONE_CONTEXT.len() as u8);
                out.extend_from_slice(TOMBSTONE_CONTEXT);
                out.extend_from_slice(&self.post_id);
                out.extend_from_slice(&deleted_ms.to_be_bytes());
            }
        }
        out
    }

    /// Reads one; its signature is not looked at.
    ///
    /// # Errors
    ///
    /// A field missing, malformed or out of its limits.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::default();
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let (kind, value) = reader.tlv16()?;
            fields.read(kind, value)?;
        }
        let entry = match fields.kind {
            Some(1) => fields.post()?,
            Some(2) => Entry::Tombstone {
                deleted_ms: fields.deleted_ms.ok_or(PayloadError::Missing("time of removal"))?,
            },
            Some(other) => return Err(PayloadError::Unknown(other)),
            None => return Err(PayloadError::Missing("kind")),
        };
        Ok(Self {
            post_id: fields.post_id.ok_or(PayloadError::Missing("post id"))?,
            author: fields.author.ok_or(PayloadError::Missing("author"))?,
            signature: fields.signature.ok_or(PayloadError::Missing("signature"))?,
            entry,
        })
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let is_post = matches!(self.entry, Entry::Post { .. });
        put_tlv16(&mut out, 0x01, &[if is_post { 1 } else { 2 }]);
        put_tlv16(&mut out, 0x02, &self.post_id);
        match &self.entry {
            Entry::Post { geohash, content, nickname, created_ms, expires_ms, flags } => {
                put_tlv16(&mut out, 0x03, geohash.as_bytes());
                put_tlv16(&mut out, 0x04, content.as_bytes());
                put_tlv16(&mut out, 0x05, &self.author);
                put_tlv16(&mut out, 0x06, nickname.as_bytes());
                put_tlv16(&mut out, 0x07, &created_ms.to_be_bytes());
                put_tlv16(&mut out, 0x08, &expires_ms.to_be_bytes());
                put_tlv16(&mut out, 0x09, &[*flags]);
            }
            Entry::Tombstone { deleted_ms } => {
                put_tlv16(&mut out, 0x05, &self.author);
                put_tlv16(&mut out, 0x0b, &deleted_ms.to_be_bytes());
            }
        }
        put_tlv16(&mut out, 0x0a, &self.signature);
        out
    }
}

#[derive(Default)]
struct Fields {
    kind: Option<u8>,
    post_id: Option<[u8; 16]>,
    geohash: Option<String>,
    content: Option<String>,
    author: Option<[u8; 32]>,
    nickname: Option<String>,
    created_ms: Option<u64>,
    expires_ms: Option<u64>,
    flags: Option<u8>,
    signature: Option<[u8; 64]>,
    deleted_ms: Option<u64>,
}

impl Fields {
    fn read(&mut self, kind: u8, value: &[u8]) -> Result<()> {
        match kind {
            0x01 => self.kind = Some(u8::from_be_bytes(array("kind", value)?)),
            0x02 => self.post_id = Some(array("post id", value)?),
            0x03 => {
                bounded("geohash", value, 0..=12)?;
                self.geohash = Some(text("geohash", value)?);
            }
            0x04 => {
                bounded("content", value, 1..=512)?;
                self.content = Some(text("content", value)?);
            }
            0x05 => self.author = Some(array("author", value)?),
            0x06 => {
                bounded("nickname", value, 0..=64)?;
                self.nickname = Some(text("nickname", value)?);
            }
            0x07 => self.created_ms = Some(u64::from_be_bytes(array("time of posting", value)?)),
            0x08 => self.expires_ms = Some(u64::from_be_bytes(array("expiry", value)?)),
            0x09 => self.flags = Some(u8::from_be_bytes(array("flags", value)?)),
            0x0a => self.signature = Some(array("signature", value)?),
            0x0b => self.deleted_ms = Some(u64::from_be_bytes(array("time of removal", value)?)),
            _ => {}
        }
        Ok(())
    }

    fn post(&mut self) -> Result<Entry> {
        let created_ms = self.created_ms.ok_or(PayloadError::Missing("time of posting"))?;
        let expires_ms = self.expires_ms.ok_or(PayloadError::Missing("expiry"))?;
        if expires_ms.checked_sub(created_ms).is_none_or(|life| life > WEEK_MS) {
            return Err(invalid("expiry", &expires_ms.to_be_bytes()));
        }
        Ok(Entry::Post {
            geohash: self.geohash.take().ok_or(PayloadError::Missing("geohash"))?,
            content: self.content.take().ok_or(PayloadError::Missing("content"))?,
            nickname: self.nickname.take().ok_or(PayloadError::Missing("nickname"))?,
            created_ms,
            expires_ms,
            flags: self.flags.unwrap_or(0),
        })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}
