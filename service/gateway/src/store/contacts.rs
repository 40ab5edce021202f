//! Which pairs are known to have met, so that accepting need not ask the database each time.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    sync::Mutex,
};

/// How many pairs are remembered; at the limit all are forgotten and learnt again.
const CAPACITY: usize = 1 << 20;

/// A memory of pairs that stand in `contact`. Forgetting costs a query, never a contact.
#[derive(Default)]
pub(super) struct Contacts {
    hasher: RandomState,
    known: Mutex<HashSet<u64>>,
}

impl Contacts {
    /// The places at which `senders` and `recipients` are peers not known to have met, once each.
    pub(super) fn unknown(&self, senders: &[String], recipients: &[String]) -> Vec<usize> {
        let known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut met = HashSet::new();
        senders
            .iter()
            .zip(recipients)
            .enumerate()
            .filter(|(_, (_, other))| *other != "broadcast" && !other.starts_with("group:"))
            .filter(|(_, pair)| {
                let pair = self.hasher.hash_one(pair);
                !known.contains(&pair) && met.insert(pair)
            })
            .map(|(number, _)| number)
            .collect()
    }

    /// Remembers pairs that were stored.
    pub(super) fn remember(&self, senders: &[String], recipients: &[String]) {
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for pair in senders.iter().zip(recipients) {
            if known.len() >= CAPACITY {
                known.clear();
            }
            known.insert(self.hasher.hash_one(pair));
        }
    }
}
