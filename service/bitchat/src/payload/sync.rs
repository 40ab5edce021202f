//! What a neighbour already has (BitChat protocol reference, sections 8.1 and 8.2).

mod filter;

use super::{PayloadError, Result, array, bounded};
use crate::{
    packet::PacketType,
    read::{Reader, put_tlv16},
};

pub use filter::Filter;

/// The largest filter, in bytes.
pub const MAX_FILTER: usize = 1024;
const MAX_FRAGMENT_IDS: usize = 60;

/// Asks a neighbour for the packets that a filter does not hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestSync {
    /// What the asker has.
    pub filter: Filter,
    /// Which types; absent means announces and public messages.
    pub types: Option<SyncTypes>,
    /// The filter covers packets from this time on, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Broadcast sets of which parts are missing.
    pub fragment_ids: Vec<[u8; 8]>,
}

impl RequestSync {
    /// Reads one; unknown fields are skipped.
    ///
    /// # Errors
    ///
    /// A field missing, malformed or out of its limits.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (mut p, mut m, mut data) = (None, None, None);
        let (mut types, mut since_ms, mut fragment_ids) = (None, None, Vec::new());
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.tlv16()? {
                (0x01, value) => p = Some(u8::from_be_bytes(array("P", value)?)),
                (0x02, value) => m = Some(u32::from_be_bytes(array("M", value)?)),
                (0x03, value) => {
                    bounded("filter", value, 0..=MAX_FILTER)?;
                    data = Some(value.to_vec());
                }
                (0x04, value) => types = Some(SyncTypes::decode(value)?),
                (0x05, value) => since_ms = Some(u64::from_be_bytes(array("since", value)?)),
                (0x06, value) => fragment_ids = ids(value)?,
                _ => {}
            }
        }
        let p = p.ok_or(PayloadError::Missing("P"))?;
        let m = m.ok_or(PayloadError::Missing("M"))?;
        if !(1..=32).contains(&p) || m == 0 {
            return Err(PayloadError::Invalid { field: "P or M", length: p.into() });
        }
        let data = data.ok_or(PayloadError::Missing("filter"))?;
        Ok(Self { filter: Filter { p, m, data }, types, since_ms, fragment_ids })
    }

    /// Writes it; a filter over [`MAX_FILTER`] is cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.filter.data.len());
        put_tlv16(&mut out, 0x01, &[self.filter.p]);
        put_tlv16(&mut out, 0x02, &self.filter.m.to_be_bytes());
        put_tlv16(&mut out, 0x03, &self.filter.data[..self.filter.data.len().min(MAX_FILTER)]);
        if let Some(types) = self.types {
            put_tlv16(&mut out, 0x04, &types.encode());
        }
        if let Some(since) = self.since_ms {
            put_tlv16(&mut out, 0x05, &since.to_be_bytes());
        }
        if !self.fragment_ids.is_empty() {
            let ids: Vec<String> = self
                .fragment_ids
                .iter()
                .take(MAX_FRAGMENT_IDS)
                .map(|id| data_encoding::HEXLOWER.encode(id))
                .collect();
            put_tlv16(&mut out, 0x06, ids.join(",").as_bytes());
        }
        out
    }
}

/// Types of packet, as bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SyncTypes(u16);

impl SyncTypes {
    const ORDER: [PacketType; 11] = [
        PacketType::ANNOUNCE,
        PacketType::MESSAGE,
        PacketType::LEAVE,
        PacketType::NOISE_HANDSHAKE,
        PacketType::NOISE_ENCRYPTED,
        PacketType::FRAGMENT,
        PacketType::REQUEST_SYNC,
        PacketType::FILE,
        PacketType::BOARD,
        PacketType::PREKEYS,
        PacketType::GROUP,
    ];

    /// The set of these types; those that have no bit are left out.
    pub fn of(types: &[PacketType]) -> Self {
        let bit = |kind: &PacketType| Self::ORDER.iter().position(|other| other == kind);
        Self(types.iter().filter_map(bit).fold(0, |bits, bit| bits | 1 << bit))
    }

    /// The types in the set.
    pub fn iter(self) -> impl Iterator<Item = PacketType> {
        let has = move |bit: &usize| self.0 & (1 << bit) != 0;
        (0..Self::ORDER.len()).filter(has).map(|bit| Self::ORDER[bit])
    }

    /// Reads 1 to 8 bytes; unknown bits are dropped.
    ///
    /// # Errors
    ///
    /// Any other length.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        bounded("types", bytes, 1..=8)?;
        let low = bytes[0];
        let high = bytes.get(1).copied().unwrap_or(0);
        Ok(Self(u16::from_le_bytes([low, high]) & 0x07ff))
    }

    /// The shortest form, at least one byte.
    pub fn encode(self) -> Vec<u8> {
        let [low, high] = self.0.to_le_bytes();
        if high == 0 { vec![low] } else { vec![low, high] }
    }
}

fn ids(value: &[u8]) -> Result<Vec<[u8; 8]>> {
    bounded("fragment ids", value, 0..=MAX_FRAGMENT_IDS * 17)?;
    value
        .split(|byte| *byte == b',')
        .filter(|id| !id.is_empty())
        .map(|id| {
            let bytes = data_encoding::HEXLOWER.decode(id).ok();
            let id = bytes.and_then(|bytes| bytes.try_into().ok());
            id.ok_or(super::invalid("fragment ids", value))
        })
        .collect()
}
