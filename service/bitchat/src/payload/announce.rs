//! Who is there (BitChat protocol reference, sections 3.2 and 4.4).

use super::{PayloadError, Result, array, invalid, text};
use crate::{
    id::MeshId,
    read::{Reader, put_tlv8},
};

/// How many neighbours the apps list at most.
pub const MAX_NEIGHBOURS: usize = 10;
/// Marks what Fieldpost announces; the apps skip fields that they do not know.
const FIELDPOST: u8 = 0x7e;
const GATEWAY: u8 = 1;
const HOSTED: u8 = 2;

/// Keys, a nickname, and what the peer can do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Announce {
    /// At most 255 bytes.
    pub nickname: String,
    /// X25519.
    pub noise_key: [u8; 32],
    /// Ed25519.
    pub signing_key: [u8; 32],
    /// Its direct neighbours, where it lists them.
    pub neighbours: Vec<MeshId>,
    /// What it can do, where it says so.
    pub capabilities: Option<Capabilities>,
    /// Where its bridge is, 1 to 12 characters.
    pub geohash: Option<String>,
    /// Whether it is a Fieldpost gateway, which understands Noise plaintext type `0x7E`.
    pub is_gateway: bool,
    /// Whether it speaks through a Fieldpost gateway; other gateways know it by another name.
    pub is_hosted: bool,
}

/// In which order the optional fields are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    /// Neighbours, then capabilities.
    Apple,
    /// Capabilities, then neighbours.
    Android,
}

impl Announce {
    /// Reads an announce; fields may come in any order, unknown ones are skipped.
    ///
    /// # Errors
    ///
    /// A length past the end, or keys or nickname missing or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (mut nickname, mut noise_key, mut signing_key) = (None, None, None);
        let mut announce = Self::default();
        let mut reader = Reader::new(bytes);
        while reader.left() >= 2 {
            let (kind, value) = reader.tlv8()?;
            match kind {
                0x01 => nickname = Some(text("nickname", value)?),
                0x02 => noise_key = Some(array("Noise key", value)?),
                0x03 => signing_key = Some(array("signing key", value)?),
                0x04 if value.len().is_multiple_of(8) => {
                    let neighbours = value.as_chunks().0.iter().take(MAX_NEIGHBOURS);
                    announce.neighbours = neighbours.map(|id| MeshId(*id)).collect();
                }
                0x05 => announce.capabilities = Some(Capabilities::decode(value)),
                0x06 if (1..=12).contains(&value.len()) => {
                    announce.geohash = str::from_utf8(value).ok().map(str::to_owned);
                }
                FIELDPOST => match value {
                    // It cannot be both; the last word counts.
                    [GATEWAY] | [HOSTED] => {
                        announce.is_gateway = value == [GATEWAY];
                        announce.is_hosted = value == [HOSTED];
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        announce.nickname = nickname.ok_or(PayloadError::Missing("nickname"))?;
        announce.noise_key = noise_key.ok_or(PayloadError::Missing("Noise key"))?;
        announce.signing_key = signing_key.ok_or(PayloadError::Missing("signing key"))?;
        Ok(announce)
    }

    /// Writes it in the given order of fields.
    ///
    /// # Errors
    ///
    /// A nickname over 255 bytes, a geohash over 12, more than 10 neighbours.
    pub fn encode(&self, order: Order) -> Result<Vec<u8>> {
        let geohash = self.geohash.as_deref().unwrap_or_default().as_bytes();
        super::bounded("nickname", self.nickname.as_bytes(), 0..=255)?;
        super::bounded("geohash", geohash, 0..=12)?;
        if self.neighbours.len() > MAX_NEIGHBOURS {
            return Err(PayloadError::Invalid {
                field: "neighbours",
                length: self.neighbours.len() * 8,
            });
        }
        let mut out = Vec::with_capacity(100);
        put_tlv8(&mut out, 0x01, self.nickname.as_bytes());
        put_tlv8(&mut out, 0x02, &self.noise_key);
        put_tlv8(&mut out, 0x03, &self.signing_key);
        let neighbours: Vec<u8> = self.neighbours.iter().flat_map(|id| id.0).collect();
        let capabilities = self.capabilities.map(Capabilities::encode);
        let put_neighbours = |out: &mut Vec<u8>| {
            if !neighbours.is_empty() {
                put_tlv8(out, 0x04, &neighbours);
            }
        };
        if order == Order::Apple {
            put_neighbours(&mut out);
        }
        if let Some(capabilities) = capabilities {
            put_tlv8(&mut out, 0x05, &capabilities);
        }
        if order == Order::Android {
            put_neighbours(&mut out);
        }
        if !geohash.is_empty() {
            put_tlv8(&mut out, 0x06, geohash);
        }
        if self.is_gateway {
            put_tlv8(&mut out, FIELDPOST, &[GATEWAY]);
        } else if self.is_hosted {
            put_tlv8(&mut out, FIELDPOST, &[HOSTED]);
        }
        Ok(out)
    }
}

/// What a peer can do: a minimal little-endian bit field (section 4.4).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// It takes files inside a Noise session, once it has proven so there.
    pub const PRIVATE_MEDIA: Self = Self(1 << 8);

    /// Whether all bits of `other` are set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Reads any length; bytes beyond the eighth are ignored.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut value = [0; 8];
        let length = bytes.len().min(8);
        value[..length].copy_from_slice(&bytes[..length]);
        Self(u64::from_le_bytes(value))
    }

    /// Reads 1 to 8 bytes that say no more than they need to.
    ///
    /// # Errors
    ///
    /// Any other length, or a last byte of zero after the first.
    pub fn decode_minimal(bytes: &[u8]) -> Result<Self> {
        match bytes {
            [] | [_, _, _, _, _, _, _, _, _, ..] | [_, .., 0] => {
                Err(invalid("capability field", bytes))
            }
            _ => Ok(Self::decode(bytes)),
        }
    }

    /// The shortest form, at least one byte.
    pub fn encode(self) -> Vec<u8> {
        let bytes = self.0.to_le_bytes();
        let length = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
        bytes[..length].to_vec()
    }
}
