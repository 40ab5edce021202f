//! A part of a packet (BitChat protocol reference, section 6.1).

use super::{PayloadError, Result};
use crate::{packet::PacketType, read::Reader};

/// What comes before the data.
pub const HEADER_LEN: usize = 13;

/// One part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fragment {
    /// Random; the same for all parts of a packet.
    pub id: [u8; 8],
    /// From 0.
    pub index: u16,
    /// How many there are.
    pub total: u16,
    /// The type of the packet that they make.
    pub original: PacketType,
    /// This part of its bytes.
    pub data: Vec<u8>,
}

impl Fragment {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// It is too short, empty, or not among its total.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let fragment = Self {
            id: reader.array()?,
            index: reader.u16()?,
            total: reader.u16()?,
            original: PacketType(reader.u8()?),
            data: reader.rest().to_vec(),
        };
        if fragment.data.is_empty() {
            return Err(PayloadError::Missing("data"));
        }
        if fragment.index >= fragment.total {
            let length = fragment.index.into();
            return Err(PayloadError::Invalid { field: "fragment index", length });
        }
        Ok(fragment)
    }

    /// Writes one.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + self.data.len());
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.index.to_be_bytes());
        out.extend_from_slice(&self.total.to_be_bytes());
        out.push(self.original.0);
        out.extend_from_slice(&self.data);
        out
    }
}
