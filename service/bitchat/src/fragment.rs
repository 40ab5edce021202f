//! Packets too large for one frame (BitChat protocol reference, section 6).

use std::{collections::BTreeMap, time::Duration};

use thiserror::Error;

use crate::{
    id::MeshId,
    limits::Limits,
    link::LinkId,
    packet::{DecodeError, Header, MAX_PAYLOAD, Packet, PacketType, Version},
    payload::fragment::{Fragment, HEADER_LEN},
};

/// The largest part that the apps send.
const MAX_CHUNK: usize = 469;
/// What a whole packet may take: the largest payload, with a full route and a signature.
const MAX_WHOLE: usize = MAX_PAYLOAD + 4096;
/// What a held part costs besides its bytes.
const OVERHEAD: usize = 64;

/// A packet makes more parts than its receivers take.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{count} fragments are too many: at most {limit}")]
pub struct TooManyFragments {
    /// How many it would make.
    pub count: usize,
    /// How many there may be.
    pub limit: u16,
}

/// How many bytes of a packet fit one fragment on a link that takes frames of `max_frame`.
pub fn chunk(packet: &Packet, max_frame: usize) -> usize {
    // A compressed form that saves one byte costs a field for the size: two bytes, or four.
    let header = if packet.route.is_empty() { 14 + 1 } else { 17 + 3 + packet.route.len() * 8 };
    let recipient = if packet.recipient.is_some() { 8 } else { 0 };
    MAX_CHUNK.min(max_frame.saturating_sub(header + 8 + recipient + HEADER_LEN)).max(1)
}

/// Splits a packet into packets of `chunk` bytes of it each.
///
/// # Errors
///
/// There would be more than `limit`.
pub fn split(
    packet: &Packet,
    id: [u8; 8],
    chunk: usize,
    limit: u16,
) -> Result<Vec<Packet>, TooManyFragments> {
    let whole = packet.encode_for_wire();
    let count = whole.len().div_ceil(chunk);
    let total = u16::try_from(count).ok().filter(|total| *total <= limit);
    let total = total.ok_or(TooManyFragments { count, limit })?;
    let header = Header {
        kind: PacketType::FRAGMENT,
        hops_left: packet.hops_left,
        timestamp_ms: packet.timestamp_ms,
        sender: packet.sender,
        recipient: packet.recipient,
    };
    let version = if packet.route.is_empty() { Version::V1 } else { Version::V2 };
    let parts = (0..total).zip(whole.chunks(chunk)).map(|(index, data)| {
        let original = packet.kind;
        let fragment = Fragment { id, index, total, original, data: data.to_vec() };
        let mut part = if packet.kind == PacketType::NOISE_ENCRYPTED {
            Packet::uncompressed(version, header, fragment.encode())
        } else {
            Packet::with_version(version, header, fragment.encode())
        };
        part.route = packet.route.clone();
        part
    });
    Ok(parts.collect())
}

/// The packet whose last bytes Android took for padding before it split it: they are put back if
/// they can be (section 6.2). Only a valid signature tells that they were the right ones.
pub fn repaired(whole: &[u8]) -> Option<Packet> {
    let Err(DecodeError::Truncated { missing }) = Packet::decode(whole) else { return None };
    let lost = u8::try_from(missing).ok().filter(|lost| (1..=64).contains(lost))?;
    let mut whole = whole.to_vec();
    whole.resize(whole.len() + missing, lost);
    Packet::decode(&whole).ok().filter(|packet| packet.signature.is_some())
}

/// Why a fragment is not taken.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SetError {
    /// The set has too many parts or bytes, or holds a fragment itself.
    #[error("a set of {total} fragments is too large or is none")]
    Unacceptable {
        /// How many parts it says to have.
        total: u16,
    },
    /// It does not agree with the first of its set.
    #[error("fragment {index} does not belong to its set")]
    Inconsistent {
        /// Its place.
        index: u16,
    },
}

/// Puts packets together. What does not come together in time, or does not fit, is given up.
#[derive(Debug)]
pub struct Reassembly {
    sets: BTreeMap<SetKey, Set>,
    bytes: usize,
    given_up: u64,
    max_sets: usize,
    max_per_sender: usize,
    max_bytes: usize,
    max_fragments: u16,
    life: Duration,
}

/// Sender and fragment id.
type SetKey = (MeshId, [u8; 8]);

#[derive(Debug)]
struct Set {
    via: LinkId,
    since: Duration,
    total: u16,
    original: PacketType,
    parts: BTreeMap<u16, Vec<u8>>,
    bytes: usize,
    cost: usize,
}

impl Reassembly {
    /// With nothing in it.
    pub fn new(limits: &Limits) -> Self {
        Self {
            sets: BTreeMap::new(),
            bytes: 0,
            given_up: 0,
            max_sets: limits.sets,
            max_per_sender: limits.sets_per_sender,
            max_bytes: limits.set_bytes,
            max_fragments: limits.fragments_received,
            life: limits.set_life,
        }
    }

    /// Takes a fragment that came over `via`; gives the bytes of the packet that it completes.
    ///
    /// # Errors
    ///
    /// It is beyond the limits, or contradicts the first of its set; the set stays.
    pub fn insert(
        &mut self,
        now: Duration,
        via: LinkId,
        sender: MeshId,
        fragment: Fragment,
    ) -> Result<Option<Vec<u8>>, SetError> {
        let Fragment { id, index, total, original, data } = fragment;
        if total > self.max_fragments || original == PacketType::FRAGMENT {
            return Err(SetError::Unacceptable { total });
        }
        self.expire(now);
        let key = (sender, id);
        if !self.sets.contains_key(&key) {
            self.make_room(sender);
        }
        let set = self.sets.entry(key).or_insert_with(|| Set {
            via,
            since: now,
            total,
            original,
            parts: BTreeMap::new(),
            bytes: 0,
            cost: 0,
        });
        if (set.total, set.original) != (total, original) {
            return Err(SetError::Inconsistent { index });
        }
        if set.parts.contains_key(&index) {
            return Ok(None);
        }
        let cost = data.len() + OVERHEAD;
        if set.bytes + data.len() > MAX_WHOLE {
            self.remove(key);
            self.given_up += 1;
            return Err(SetError::Unacceptable { total });
        }
        set.bytes += data.len();
        set.cost += cost;
        self.bytes += cost;
        set.parts.insert(index, data);
        if set.parts.len() == usize::from(total) {
            let whole = set.parts.values().flatten().copied().collect();
            self.remove(key);
            return Ok(Some(whole));
        }
        while self.bytes > self.max_bytes && self.give_up_of_busiest() {}
        Ok(None)
    }

    /// Gives up what is too old.
    pub fn expire(&mut self, now: Duration) {
        let life = self.life;
        let late = |set: &Set| now.saturating_sub(set.since) >= life;
        let late: Vec<_> =
            self.sets.iter().filter(|(_, set)| late(set)).map(|(key, _)| *key).collect();
        self.given_up += late.len() as u64;
        late.into_iter().for_each(|key| self.remove(key));
    }

    /// How many sets are under way.
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// What the sets under way cost, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many sets were given up.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    fn make_room(&mut self, sender: MeshId) {
        let of_sender = self.sets.iter().filter(|((other, _), _)| *other == sender);
        let keys: Vec<_> = of_sender.map(|(key, set)| (set.since, *key)).collect();
        if keys.len() >= self.max_per_sender
            && let Some((_, oldest)) = keys.into_iter().min()
        {
            self.remove(oldest);
            self.given_up += 1;
        }
        while self.sets.len() >= self.max_sets && self.give_up_of_busiest() {}
    }

    /// The oldest set of the link that has most under way: whoever floods pays for it.
    fn give_up_of_busiest(&mut self) -> bool {
        let mut per_link: BTreeMap<LinkId, (usize, Duration, SetKey)> = BTreeMap::new();
        for (key, set) in &self.sets {
            let entry = per_link.entry(set.via).or_insert((0, set.since, *key));
            entry.0 += set.cost + OVERHEAD * 16;
            if set.since < entry.1 {
                (entry.1, entry.2) = (set.since, *key);
            }
        }
        let busiest = per_link.values().max_by_key(|(cost, ..)| *cost).map(|(.., key)| *key);
        if let Some(key) = busiest {
            self.remove(key);
            self.given_up += 1;
        }
        busiest.is_some()
    }

    fn remove(&mut self, key: SetKey) {
        if let Some(set) = self.sets.remove(&key) {
            self.bytes -= set.cost;
        }
    }
}
