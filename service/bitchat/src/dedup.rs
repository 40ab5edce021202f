//! What has been seen (BitChat protocol reference, section 7.3).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::packet::Packet;

/// How long a packet is remembered.
const LIFE: Duration = Duration::from_secs(300);

/// A packet among those seen: sender, time, type, payload and signature.
///
/// The signature belongs to it so that a forged copy that comes first does not stand for the
/// packet; whose signature can be checked is only taken in once it was.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key([u8; 16]);

impl Key {
    pub(crate) fn of(packet: &Packet) -> Self {
        let digest = Sha256::new()
            .chain_update(packet.sender.0)
            .chain_update(packet.timestamp_ms.to_be_bytes())
            .chain_update([packet.kind.0, u8::from(packet.signature.is_some())])
            .chain_update(packet.signature.as_ref().map_or(&[][..], |signature| &signature[..]))
            .chain_update(packet.payload())
            .finalize();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Self(key)
    }
}

/// The packets seen in the last five minutes, or the latest of them.
pub(crate) struct Seen<K = Key> {
    keys: BTreeMap<K, u64>,
    order: VecDeque<(u64, K, Duration)>,
    next: u64,
    capacity: usize,
    life: Duration,
}

impl Seen {
    pub(crate) fn new(capacity: usize) -> Self {
        Self::with_life(capacity, LIFE)
    }
}

impl<K: Clone + Ord> Seen<K> {
    pub(crate) fn with_life(capacity: usize, life: Duration) -> Self {
        Self { keys: BTreeMap::new(), order: VecDeque::new(), next: 0, capacity, life }
    }

    /// Takes a key in; false if it is in already.
    pub(crate) fn insert(&mut self, now: Duration, key: K) -> bool {
        self.expire(now);
        if self.keys.contains_key(&key) {
            return false;
        }
        while self.keys.len() >= self.capacity {
            self.forget_oldest();
        }
        self.order.push_back((self.next, key.clone(), now));
        self.keys.insert(key, self.next);
        self.next += 1;
        true
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.keys.remove(key);
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.keys.contains_key(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    fn expire(&mut self, now: Duration) {
        while self.order.front().is_some_and(|(.., at)| now.saturating_sub(*at) >= self.life) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((number, key, _)) = self.order.pop_front()
            && self.keys.get(&key) == Some(&number)
        {
            self.keys.remove(&key);
        }
    }
}
