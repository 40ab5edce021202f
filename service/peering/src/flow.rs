//! What waits for one link and what is under way on it.
//!
//! Small envelopes that wait at the same time travel together: at most a few batches of them are
//! under way, and whatever comes meanwhile makes up the next one. Large envelopes go alone, in
//! batches counted by themselves, so neither holds up the other.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use thiserror::Error;

use crate::{
    peering::{Token, limits},
    wire::MAX_BATCH_COUNT,
};

/// Why an envelope was not taken by a neighbour.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SendFailure {
    /// No link leads to the gateway.
    #[error("no link leads there")]
    Unreachable,
    /// As much waits on the link as may, or the neighbour's inbox is full.
    #[error("{} envelopes or {} bytes wait already", limits::LINK_ENVELOPES, limits::LINK_BYTES)]
    Busy,
    /// The link ended before the neighbour had answered. It may have the envelope.
    #[error("the link ended before an answer came")]
    LinkLost,
    /// This side has shut down.
    #[error("the endpoint has shut down")]
    Shut,
}

#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) token: Token,
    pub(crate) envelope: Bytes,
}

/// A batch to be put on a stream.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) number: u64,
    pub(crate) envelopes: Vec<Bytes>,
    pub(crate) is_large: bool,
}

/// The neighbour's word on a batch.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) taken: Vec<Item>,
    pub(crate) put_off: Vec<Item>,
}

#[derive(Debug, Default)]
pub(crate) struct Flow {
    small: VecDeque<Item>,
    large: VecDeque<Item>,
    under_way: BTreeMap<u64, UnderWay>,
    last_number: u64,
    envelopes: usize,
    bytes: usize,
    bytes_under_way: usize,
    /// How many bytes the neighbour lets be under way.
    most_under_way: usize,
}

#[derive(Debug)]
struct UnderWay {
    items: Vec<Item>,
    is_large: bool,
    since: Instant,
}

impl Flow {
    pub(crate) fn new(most_under_way: u64) -> Self {
        let most = usize::try_from(most_under_way).unwrap_or(usize::MAX);
        Self { most_under_way: most.min(limits::LINK_BYTES), ..Self::default() }
    }

    /// What waits and is under way, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.envelopes == 0
    }

    /// Lets an envelope wait, or gives it back where no more may.
    pub(crate) fn push(&mut self, item: Item) -> Result<(), Item> {
        let length = item.envelope.len();
        let is_full = self.envelopes >= limits::LINK_ENVELOPES
            || (self.envelopes > 0 && self.bytes + length > limits::LINK_BYTES);
        if is_full {
            return Err(item);
        }
        self.envelopes += 1;
        self.bytes += length;
        if is_large(length) {
            self.large.push_back(item);
        } else {
            self.small.push_back(item);
        }
        Ok(())
    }

    /// The next batch that may go now, if any.
    pub(crate) fn next_batch(&mut self, now: Instant) -> Option<Batch> {
        self.next_of(false, now).or_else(|| self.next_of(true, now))
    }

    /// When the oldest batch under way should have been answered.
    pub(crate) fn stalls_at(&self) -> Option<Instant> {
        self.under_way.values().map(|batch| batch.since + ANSWER_TIMEOUT).min()
    }

    /// Takes in what the neighbour says of a batch; `None` if there is no such batch or it claims
    /// to have taken more than there was.
    pub(crate) fn answer(&mut self, number: u64, taken: u64) -> Option<Answered> {
        let taken = usize::try_from(taken).ok()?;
        if self.under_way.get(&number)?.items.len() < taken {
            return None;
        }
        let mut batch = self.under_way.remove(&number)?;
        for item in &batch.items {
            self.envelopes -= 1;
            self.bytes -= item.envelope.len();
            self.bytes_under_way -= item.envelope.len();
        }
        let put_off = batch.items.split_off(taken);
        Some(Answered { taken: batch.items, put_off })
    }

    /// Everything that has not been answered, what was under way first.
    pub(crate) fn into_items(self) -> impl Iterator<Item = Item> {
        let under_way = self.under_way.into_values().flat_map(|batch| batch.items);
        under_way.chain(self.small).chain(self.large)
    }

    fn next_of(&mut self, is_large: bool, now: Instant) -> Option<Batch> {
        let batches = self.under_way.values().filter(|batch| batch.is_large == is_large).count();
        if batches >= if is_large { LARGE_BATCHES } else { SMALL_BATCHES } {
            return None;
        }
        let waiting = if is_large { &mut self.large } else { &mut self.small };
        let (most_count, most_bytes) =
            if is_large { (1, usize::MAX) } else { (MAX_BATCH_COUNT, SMALL_BATCH_BYTES) };
        let (mut items, mut bytes) = (Vec::new(), 0);
        while let Some(item) = waiting.front()
            && items.len() < most_count
        {
            let length = item.envelope.len();
            let fits_batch = items.is_empty() || bytes + length <= most_bytes;
            // One may always go, however little the neighbour allows.
            let fits_window = self.bytes_under_way + bytes + length <= self.most_under_way
                || (self.under_way.is_empty() && items.is_empty());
            if !fits_batch || !fits_window {
                break;
            }
            bytes += length;
            items.extend(waiting.pop_front());
        }
        if items.is_empty() {
            return None;
        }
        self.last_number += 1;
        self.bytes_under_way += bytes;
        let number = self.last_number;
        let envelopes = items.iter().map(|item| item.envelope.clone()).collect();
        self.under_way.insert(number, UnderWay { items, is_large, since: now });
        Some(Batch { number, envelopes, is_large })
    }
}

fn is_large(length: usize) -> bool {
    length > LARGE
}

/// What is longer travels alone.
const LARGE: usize = 64 * 1024;
const SMALL_BATCHES: usize = 4;
const SMALL_BATCH_BYTES: usize = 256 * 1024;
const LARGE_BATCHES: usize = 4;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any instant will do to begin with")]
    fn now() -> Instant {
        Instant::now()
    }

    fn item(token: u64, length: usize) -> Item {
        Item { token: Token(token), envelope: vec![0; length].into() }
    }

    #[test]
    fn what_waits_at_once_travels_together() {
        let (mut flow, now) = (Flow::new(u64::MAX), now());
        for token in 0..1000 {
            flow.push(item(token, 256)).unwrap();
        }
        let batches: Vec<_> = std::iter::from_fn(|| flow.next_batch(now)).collect();
        let sizes: Vec<_> = batches.iter().map(|batch| batch.envelopes.len()).collect();
        assert_eq!(sizes, [256, 256, 256, 232]);
    }

    #[test]
    fn small_envelopes_pass_large_ones_that_wait() {
        let (mut flow, now) = (Flow::new(u64::MAX), now());
        for token in 0..8 {
            flow.push(item(token, 1024 * 1024)).unwrap();
        }
        let large = std::iter::from_fn(|| flow.next_batch(now)).count();
        assert_eq!(large, LARGE_BATCHES);
        flow.push(item(99, 256)).unwrap();
        let batch = flow.next_batch(now).unwrap();
        assert!(!batch.is_large);
        assert_eq!(flow.answer(batch.number, 1).unwrap().taken[0].token, Token(99));
    }

    #[test]
    fn no_more_waits_than_may() {
        let mut flow = Flow::new(u64::MAX);
        let taken = (0..10_000).filter(|token| flow.push(item(*token, 16)).is_ok()).count();
        assert_eq!(taken, limits::LINK_ENVELOPES);
        let mut flow = Flow::new(u64::MAX);
        let taken = (0..100).filter(|token| flow.push(item(*token, 1 << 20)).is_ok()).count();
        assert_eq!(taken, limits::LINK_BYTES >> 20);
    }

    #[test]
    fn the_neighbours_window_is_kept_but_never_shuts_out_a_single_envelope() {
        let (mut flow, now) = (Flow::new(100), now());
        for token in 0..3 {
            flow.push(item(token, 200)).unwrap();
        }
        let batch = flow.next_batch(now).unwrap();
        assert_eq!(batch.envelopes.len(), 1);
        assert!(flow.next_batch(now).is_none());
        flow.answer(batch.number, 1).unwrap();
        assert_eq!(flow.next_batch(now).unwrap().envelopes.len(), 1);
    }

    #[test]
    fn an_answer_to_no_batch_or_of_too_many_is_none() {
        let (mut flow, now) = (Flow::new(u64::MAX), now());
        flow.push(item(1, 10)).unwrap();
        let batch = flow.next_batch(now).unwrap();
        assert!(flow.answer(batch.number + 1, 1).is_none());
        assert!(flow.answer(batch.number, 2).is_none());
        assert_eq!(flow.answer(batch.number, 0).unwrap().put_off.len(), 1);
        assert!(flow.answer(batch.number, 0).is_none());
    }
}
