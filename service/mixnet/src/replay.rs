//! Which packets of an epoch were seen before (HTX reference, section 5, "replay cache").
//!
//! For each tag the cache keeps 8 bytes of a keyed hash, in shards that grow one at a time. Between
//! 8.4 and 16.9 bytes are in use for each tag. A relay that knows no key of ours cannot choose tags
//! that collide, and two tags are taken for one with a probability of about 10⁻¹⁶ at a million.
//!
//! **After `kill -9`.** The cache offers a log: the bytes that [`record`] gives for a tag have to
//! be appended before the packet is released. [`ReplayCache::recover`] rebuilds the cache from
//! them. A last record that was cut short is of a packet that was never released, and is dropped;
//! anything else that is wrong is an error, and the relay then has to withdraw the key of the epoch.
//! Whoever also wants to survive a power cut flushes the log before releasing.

use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::sphinx::ReplayTag;

/// The tags of one epoch; wiped from memory when dropped.
pub struct ReplayCache {
    epoch: u64,
    key: Zeroizing<[u8; 32]>,
    shards: Vec<Shard>,
    tags: usize,
    most: usize,
}

impl ReplayCache {
    /// An empty cache for `epoch`, with a random `key` that no one else knows, for at most `most`
    /// tags.
    pub fn new(epoch: u64, key: [u8; 32], most: usize) -> Self {
        Self {
            epoch,
            key: Zeroizing::new(key),
            shards: vec![Shard::default(); SHARDS],
            tags: 0,
            most,
        }
    }

    /// Rebuilds the cache from the bytes of a log that [`log_start`] began.
    ///
    /// # Errors
    ///
    /// The log is not of this epoch, damaged, or holds more than `most` tags. The relay cannot know
    /// what it has seen, and must not use the epoch's key again.
    pub fn recover(
        epoch: u64,
        key: [u8; 32],
        most: usize,
        log: &[u8],
    ) -> Result<Recovered, RecoverError> {
        let start = log_start(epoch);
        let records = log.strip_prefix(&start).ok_or(RecoverError::Start { epoch })?;
        let mut cache = Self::new(epoch, key, most);
        let (records, cut) = records.as_chunks::<RECORD_LEN>();
        for (number, record) in records.iter().enumerate() {
            let tag = ReplayTag(std::array::from_fn(|at| record[at]));
            if *record != self::record(epoch, tag) {
                return Err(RecoverError::Record { number });
            }
            match cache.insert(tag) {
                // A packet that was refused has no record, but the same tag twice is harmless.
                Ok(()) | Err(InsertError::Replay) => {}
                Err(InsertError::Full { most }) => return Err(RecoverError::Full { most }),
            }
        }
        Ok(Recovered { cache, log_len: log.len() - cut.len() })
    }

    /// Remembers a tag.
    ///
    /// # Errors
    ///
    /// It is known, or there is no room. In both cases the packet must be dropped.
    pub fn insert(&mut self, tag: ReplayTag) -> Result<(), InsertError> {
        let hash = blake3::keyed_hash(&self.key, &tag.0);
        let (shard, fingerprint) = split(hash.as_bytes());
        let shard = &mut self.shards[shard];
        if shard.contains(fingerprint) {
            return Err(InsertError::Replay);
        }
        if self.tags >= self.most {
            return Err(InsertError::Full { most: self.most });
        }
        shard.insert(fingerprint);
        self.tags += 1;
        Ok(())
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many tags it holds.
    pub fn len(&self) -> usize {
        self.tags
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.tags == 0
    }

    /// Bytes of memory in use for tags.
    pub fn memory_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.slots.len() * 8).sum()
    }
}

/// A cache from a log.
pub struct Recovered {
    /// The cache.
    pub cache: ReplayCache,
    /// How many bytes of the log are whole. It has to be cut to that length before it is appended
    /// to.
    pub log_len: usize,
}

/// The first bytes of the log of an epoch.
pub fn log_start(epoch: u64) -> [u8; LOG_START_LEN] {
    let mut start = *b"fieldpost-replay-1\0\0\0\0\0\0\0\0";
    start[LOG_START_LEN - 8..].copy_from_slice(&epoch.to_be_bytes());
    start
}

/// The bytes to append to the log for a tag, before its packet is released.
pub fn record(epoch: u64, tag: ReplayTag) -> [u8; RECORD_LEN] {
    let mut hasher = blake3::Hasher::new_derive_key("fieldpost replay log v1");
    hasher.update(&epoch.to_be_bytes()).update(&tag.0);
    let check = hasher.finalize();
    std::array::from_fn(|at| if at < 16 { tag.0[at] } else { check.as_bytes()[at - 16] })
}

/// Bytes at the start of a log.
pub const LOG_START_LEN: usize = 26;

/// Bytes of a record: a tag and 4 bytes that show that it is whole.
pub const RECORD_LEN: usize = 20;

/// Why a packet is dropped after its MAC was found good.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum InsertError {
    /// The packet was here before.
    #[error("packet was seen before")]
    Replay,
    /// Forgetting a tag would let its packet through again, so new packets are dropped instead.
    #[error("replay cache is full with {most} tags")]
    Full {
        /// How many tags there may be.
        most: usize,
    },
}

/// Why a log cannot be trusted.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RecoverError {
    /// It does not begin like the log of this epoch.
    #[error("not a replay log of epoch {epoch}")]
    Start {
        /// The epoch that was asked for.
        epoch: u64,
    },
    /// A record is damaged.
    #[error("record {number} of the replay log is damaged")]
    Record {
        /// Which, from 0.
        number: usize,
    },
    /// It holds more tags than the cache may.
    #[error("replay log holds more than {most} tags")]
    Full {
        /// How many tags there may be.
        most: usize,
    },
}

/// Open addressing with linear probing; 0 marks a free slot.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
struct Shard {
    slots: Box<[u64]>,
    used: usize,
}

impl Shard {
    fn contains(&self, fingerprint: u64) -> bool {
        !self.slots.is_empty() && self.slots[self.find(fingerprint)] == fingerprint
    }

    fn insert(&mut self, fingerprint: u64) {
        if (self.used + 1) * 20 > self.slots.len() * 19 {
            self.grow();
        }
        let slot = self.find(fingerprint);
        self.slots[slot] = fingerprint;
        self.used += 1;
    }

    /// The slot that holds `fingerprint`, or the free one where it belongs. At least one is free.
    fn find(&self, fingerprint: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = fingerprint as usize & mask;
        while self.slots[slot] != fingerprint && self.slots[slot] != 0 {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let length = (self.slots.len() * 2).max(FIRST_SLOTS);
        let old = std::mem::replace(&mut self.slots, vec![0; length].into_boxed_slice());
        let old = Zeroizing::new(old);
        for fingerprint in old.iter().filter(|fingerprint| **fingerprint != 0) {
            let slot = self.find(*fingerprint);
            self.slots[slot] = *fingerprint;
        }
    }
}

/// The shard comes from other bits than the fingerprint, which so tells tags apart by 72 bits.
fn split(hash: &[u8; 32]) -> (usize, u64) {
    let fingerprint = u64::from_le_bytes(std::array::from_fn(|at| hash[at + 1]));
    (usize::from(hash[0]), fingerprint.max(1))
}

const SHARDS: usize = 256;
const FIRST_SLOTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_taken_once() {
        let mut cache = ReplayCache::new(EPOCH, KEY, 1000);
        for number in 0..500 {
            assert_eq!(cache.insert(tag(number)), Ok(()));
        }
        for number in 0..500 {
            assert_eq!(cache.insert(tag(number)), Err(InsertError::Replay));
        }
        assert_eq!(cache.len(), 500);
    }

    #[test]
    fn a_full_cache_refuses_new_tags_and_still_knows_the_old_ones() {
        let mut cache = ReplayCache::new(EPOCH, KEY, 100);
        for number in 0..100 {
            assert_eq!(cache.insert(tag(number)), Ok(()));
        }
        assert_eq!(cache.insert(tag(100)), Err(InsertError::Full { most: 100 }));
        assert_eq!(cache.insert(tag(99)), Err(InsertError::Replay));
    }

    #[test]
    fn a_million_tags_take_at_most_17_megabytes_at_every_size() {
        let mut cache = ReplayCache::new(EPOCH, KEY, 1_000_000);
        let mut worst: f64 = 0.0;
        for number in 0..1_000_000 {
            assert_eq!(cache.insert(tag(number)), Ok(()));
            if cache.len() >= 100_000 && number % 1000 == 0 {
                worst = worst.max(cache.memory_bytes() as f64 / cache.len() as f64);
            }
        }
        assert!(worst <= 17.0, "{worst} bytes a tag");
        assert!(cache.memory_bytes() <= 17_000_000, "{} bytes", cache.memory_bytes());
        assert_eq!(cache.insert(tag(123_456)), Err(InsertError::Replay));
    }

    #[test]
    fn what_was_logged_before_a_kill_is_refused_after_it_wherever_the_log_was_cut() {
        let mut log = log_start(EPOCH).to_vec();
        for number in 0..20 {
            log.extend(record(EPOCH, tag(number)));
        }
        for length in LOG_START_LEN..=log.len() {
            let recovered = ReplayCache::recover(EPOCH, KEY, 1000, &log[..length]).unwrap();
            let whole = (length - LOG_START_LEN) / RECORD_LEN;
            assert_eq!(recovered.log_len, LOG_START_LEN + whole * RECORD_LEN);
            let mut cache = recovered.cache;
            for number in 0..20 {
                let expected = if number < whole { Err(InsertError::Replay) } else { Ok(()) };
                assert_eq!(cache.insert(tag(number)), expected);
            }
        }
    }

    #[test]
    fn a_damaged_log_is_not_trusted() {
        let mut log = log_start(EPOCH).to_vec();
        for number in 0..20 {
            log.extend(record(EPOCH, tag(number)));
        }
        for at in 0..log.len() {
            let mut damaged = log.clone();
            damaged[at] ^= 1;
            assert!(ReplayCache::recover(EPOCH, KEY, 1000, &damaged).is_err(), "byte {at}");
        }
        // A page that never reached the disk reads as zeros.
        log[100..140].fill(0);
        assert!(ReplayCache::recover(EPOCH, KEY, 1000, &log).is_err());
        assert!(ReplayCache::recover(EPOCH + 1, KEY, 1000, &log_start(EPOCH)).is_err());
        assert!(ReplayCache::recover(EPOCH, KEY, 1000, &[]).is_err());
    }

    fn tag(number: usize) -> ReplayTag {
        let hash = blake3::hash(&number.to_be_bytes());
        ReplayTag(std::array::from_fn(|at| hash.as_bytes()[at]))
    }

    const EPOCH: u64 = 7;
    const KEY: [u8; 32] = [3; 32];
}
