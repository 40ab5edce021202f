//! Nostr events over the mesh (BitChat protocol reference, section 3.9); iOS only.

use super::{PayloadError, Result, array, bounded, text};
use crate::read::{Reader, put_tlv16};

/// The largest event, in bytes.
pub const MAX_EVENT: usize = 16_384;

/// A signed Nostr event and where it goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Carrier {
    /// 1 to a gateway, 2 from one, 3 to a bridge, 4 from one.
    pub direction: u8,
    /// 1 to 12 characters.
    pub geohash: String,
    /// JSON, at most [`MAX_EVENT`]; nobody has verified it.
    pub event: String,
}

impl Carrier {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// A field missing, malformed or out of its limits.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (mut direction, mut geohash, mut event) = (None, None, None);
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.tlv16()? {
                (0x01, value) => direction = Some(u8::from_be_bytes(array("direction", value)?)),
                (0x02, value) => {
                    bounded("geohash", value, 1..=12)?;
                    geohash = Some(text("geohash", value)?);
                }
                (0x03, value) => {
                    bounded("event", value, 1..=MAX_EVENT)?;
                    event = Some(text("event", value)?);
                }
                _ => {}
            }
        }
        let direction = direction.ok_or(PayloadError::Missing("direction"))?;
        if !(1..=4).contains(&direction) {
            return Err(PayloadError::Unknown(direction));
        }
        Ok(Self {
            direction,
            geohash: geohash.ok_or(PayloadError::Missing("geohash"))?,
            event: event.ok_or(PayloadError::Missing("event"))?,
        })
    }

    /// Writes one.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.event.len());
        put_tlv16(&mut out, 0x01, &[self.direction]);
        put_tlv16(&mut out, 0x02, self.geohash.as_bytes());
        put_tlv16(&mut out, 0x03, self.event.as_bytes());
        out
    }
}
