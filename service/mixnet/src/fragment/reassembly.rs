//! Putting messages together again, within bounds of bytes, count and time.
//!
//! Memory is taken for what has come, never for what a fragment promises. At a bound the transfer
//! that has waited longest for its next fragment gives way to the new one; its sender will send
//! again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{Fragment, Layout, TransferId};

/// Bounds of a [`Reassembly`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of memory for all unfinished transfers, bookkeeping counted in. Putting one message
    /// together takes up to four times its length beside that, for a moment, and the tables of the
    /// code take 8 MiB, once for the process.
    pub bytes: usize,
    /// Unfinished transfers.
    pub transfers: usize,
    /// How long a transfer may wait for its next fragment.
    pub idle: Duration,
    /// How long a transfer may take in all.
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 32 * 1024 * 1024,
            transfers: 256,
            idle: Duration::from_secs(60),
            lifetime: Duration::from_secs(600),
        }
    }
}

/// Unfinished transfers.
pub struct Reassembly {
    limits: Limits,
    partial: BTreeMap<TransferId, Partial>,
    bytes: usize,
    evicted: u64,
}

impl Reassembly {
    /// An empty one.
    pub fn new(limits: Limits) -> Self {
        Self { limits, partial: BTreeMap::new(), bytes: 0, evicted: 0 }
    }

    /// Takes in a fragment.
    ///
    /// # Errors
    ///
    /// It contradicts an earlier fragment of its transfer, could not be put together, or has no
    /// room even when it is alone.
    pub fn insert(
        &mut self,
        now: Instant,
        fragment: &Fragment<'_>,
    ) -> Result<Gathered, RefuseError> {
        let partial = self.partial.get(&fragment.transfer);
        if partial.is_some_and(|partial| partial.layout != fragment.layout) {
            return Err(RefuseError::Contradiction);
        }
        if partial.is_some_and(|partial| partial.shards.contains_key(&(fragment.index as u16))) {
            return Ok(Gathered::Duplicate);
        }
        let cost = SHARD_OVERHEAD
            + fragment.shard.len()
            + if partial.is_none() { TRANSFER_OVERHEAD } else { 0 };
        if !self.make_room(fragment.transfer, partial.is_none(), cost) {
            self.remove(fragment.transfer);
            return Err(RefuseError::Full { most: self.limits.bytes });
        }
        let partial = self.partial.entry(fragment.transfer).or_insert_with(|| Partial {
            layout: fragment.layout,
            shards: BTreeMap::new(),
            began: now,
            grown: now,
            bytes: 0,
        });
        partial.shards.insert(fragment.index as u16, fragment.shard.into());
        partial.grown = now;
        partial.bytes += cost;
        self.bytes += cost;
        if partial.shards.len() < partial.layout.data {
            return Ok(Gathered::Stored);
        }
        let partial = self.remove(fragment.transfer).ok_or(RefuseError::Repair)?;
        partial.join().map(Gathered::Whole)
    }

    /// Which shards of a transfer have come; `None` if none has, or if it is finished.
    pub fn gathered(&self, transfer: TransferId) -> Option<(Layout, impl Iterator<Item = usize>)> {
        let partial = self.partial.get(&transfer)?;
        Some((partial.layout, partial.shards.keys().map(|index| usize::from(*index))))
    }

    /// When the transfer last grew.
    pub fn grown(&self, transfer: TransferId) -> Option<Instant> {
        self.partial.get(&transfer).map(|partial| partial.grown)
    }

    /// Forgets a transfer.
    pub fn forget(&mut self, transfer: TransferId) {
        self.remove(transfer);
    }

    /// Forgets what has waited too long, and says which.
    pub fn expire(&mut self, now: Instant) -> Vec<TransferId> {
        let limits = self.limits;
        let over: Vec<TransferId> = self
            .partial
            .iter()
            .filter(|(_, partial)| partial.ends_at(&limits) <= now)
            .map(|(transfer, _)| *transfer)
            .collect();
        for transfer in &over {
            self.remove(*transfer);
        }
        over
    }

    /// When the next transfer will have waited too long.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.partial.values().map(|partial| partial.ends_at(&self.limits)).min()
    }

    /// Whether a transfer is being gathered.
    pub fn contains(&self, transfer: TransferId) -> bool {
        self.partial.contains_key(&transfer)
    }

    /// Unfinished transfers.
    pub fn len(&self) -> usize {
        self.partial.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    /// Bytes that count against the bound.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many transfers had to give way.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Whether there is room now, for which others may have had to give way.
    fn make_room(&mut self, transfer: TransferId, is_new: bool, cost: usize) -> bool {
        while self.bytes + cost > self.limits.bytes
            || (is_new && self.partial.len() >= self.limits.transfers)
        {
            let idlest = self
                .partial
                .iter()
                .filter(|(other, _)| **other != transfer)
                .min_by_key(|(_, partial)| partial.grown)
                .map(|(other, _)| *other);
            let Some(idlest) = idlest else { return false };
            self.remove(idlest);
            self.evicted += 1;
        }
        true
    }

    fn remove(&mut self, transfer: TransferId) -> Option<Partial> {
        let partial = self.partial.remove(&transfer)?;
        self.bytes -= partial.bytes;
        Some(partial)
    }
}

/// What became of a fragment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Gathered {
    /// More are needed.
    Stored,
    /// It had come before.
    Duplicate,
    /// The last one that was needed: the sealed message.
    Whole(Vec<u8>),
}

/// Why a fragment is not taken in.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RefuseError {
    /// An earlier fragment of the transfer spoke of another length.
    #[error("the fragment contradicts an earlier one of its transfer")]
    Contradiction,
    /// The transfer alone is more than the bound; it should be at least 2 MiB.
    #[error("the transfer alone takes more than {most} bytes")]
    Full {
        /// How many it may take.
        most: usize,
    },
    /// The code could not restore what is missing.
    #[error("the transfer could not be repaired")]
    Repair,
}

struct Partial {
    layout: Layout,
    shards: BTreeMap<u16, Box<[u8]>>,
    began: Instant,
    grown: Instant,
    bytes: usize,
}

impl Partial {
    fn ends_at(&self, limits: &Limits) -> Instant {
        (self.grown + limits.idle).min(self.began + limits.lifetime)
    }

    fn join(self) -> Result<Vec<u8>, RefuseError> {
        let Layout { data, repair, sealed_len, .. } = self.layout;
        let originals = || {
            let shards = self.shards.iter().take_while(|(index, _)| usize::from(**index) < data);
            shards.map(|(index, shard)| (usize::from(*index), shard))
        };
        let repairs = self
            .shards
            .iter()
            .skip_while(|(index, _)| usize::from(**index) < data)
            .map(|(index, shard)| (usize::from(*index) - data, shard));
        let restored = if repair == 0 {
            BTreeMap::new()
        } else {
            reed_solomon_simd::decode(data, repair, originals(), repairs)
                .map_err(|_| RefuseError::Repair)?
        };
        let mut sealed = Vec::with_capacity(data * self.layout.shard_len());
        let mut originals = originals().peekable();
        for index in 0..data {
            match originals.next_if(|(next, _)| *next == index) {
                Some((_, shard)) => sealed.extend(shard),
                None => sealed.extend(restored.get(&index).ok_or(RefuseError::Repair)?),
            }
        }
        sealed.truncate(sealed_len);
        Ok(sealed)
    }
}

/// What a shard costs beside its bytes: its place in the tree, its allocation.
const SHARD_OVERHEAD: usize = 128;
/// What a transfer costs beside its shards.
const TRANSFER_OVERHEAD: usize = 512;

#[cfg(test)]
mod tests;
