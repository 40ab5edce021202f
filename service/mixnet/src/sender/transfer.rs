//! One message on its way: what has to be sent in this round, and what is known to have come.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    fragment::{Layout, Shards, UNREPAIRED_SHARDS},
    sphinx::{RelayId, SurbId},
};

use super::{SendId, timing::NetworkTime};

pub(super) struct Transfer {
    pub(super) send: SendId,
    pub(super) gateway: RelayId,
    pub(super) until: Instant,
    pub(super) layout: Layout,
    pub(super) shards: Shards,
    pub(super) surbs: Vec<SurbId>,
    /// From 1.
    pub(super) round: u32,
    waiting: VecDeque<Waiting>,
    come: Vec<bool>,
    /// When the last fragment of this round has left all relays' hands.
    arrives_by: Option<Instant>,
    /// The longest delay on the way back.
    answer_delay: Duration,
    /// When the answer is overdue; `None` while fragments wait for their slots.
    overdue_at: Option<Instant>,
}

/// A fragment that waits for its slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Waiting {
    pub(super) index: usize,
    pub(super) with_surb: bool,
    pub(super) again: bool,
    pub(super) asks: bool,
}

impl Transfer {
    pub(super) fn new(
        send: SendId,
        gateway: RelayId,
        until: Instant,
        layout: Layout,
        shards: Shards,
    ) -> Self {
        let mut transfer = Self {
            send,
            gateway,
            until,
            layout,
            shards,
            surbs: Vec::new(),
            round: 1,
            waiting: VecDeque::new(),
            come: vec![false; layout.count()],
            arrives_by: None,
            answer_delay: Duration::ZERO,
            overdue_at: None,
        };
        transfer.wait_for(0..layout.count(), false, false);
        transfer
    }

    pub(super) fn bytes(&self) -> usize {
        self.layout.count() * self.layout.shard_len()
    }

    pub(super) fn deadline(&self) -> Instant {
        self.overdue_at.map_or(self.until, |overdue_at| overdue_at.min(self.until))
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn next_waiting(&self) -> Option<Waiting> {
        self.waiting.front().copied()
    }

    pub(super) fn arrives_by(&self) -> Option<Instant> {
        self.arrives_by
    }

    /// The first that waits has been sent.
    pub(super) fn sent(&mut self, arrives_at: Instant, answer_delay: Duration) {
        self.waiting.pop_front();
        self.arrives_by = self.arrives_by.max(Some(arrives_at));
        self.answer_delay = self.answer_delay.max(answer_delay);
    }

    /// All of the round are sent; from now on the answer may be overdue.
    pub(super) fn await_answer(&mut self, network: &NetworkTime) {
        self.overdue_at = self
            .arrives_by
            .map(|arrives_by| arrives_by + self.answer_delay + network.patience(self.round));
    }

    /// The answer is overdue. Where many fragments were sent, a few ask first which of them came.
    pub(super) fn next_round(&mut self) {
        let ask_first = self.round == 1 && self.layout.count() > UNREPAIRED_SHARDS;
        self.begin_round();
        let missing = self.missing();
        let count = if ask_first { ASKING } else { missing.len() };
        self.wait_for(missing.into_iter().take(count), true, ask_first);
    }

    /// The receiver says what has come. Returns whether something has to be sent now that did not
    /// have to before.
    pub(super) fn learn(&mut self, come: &[bool]) -> bool {
        if come.len() != self.come.len() {
            return false;
        }
        for (known, come) in self.come.iter_mut().zip(come) {
            *known |= come;
        }
        // What still waits in this round is about to be sent anyway.
        if self.has_waiting() {
            return false;
        }
        let have = self.come.iter().filter(|come| **come).count();
        let needed = self.layout.data.saturating_sub(have);
        if needed == 0 {
            return false;
        }
        self.begin_round();
        let missing = self.missing().into_iter().take(needed + needed.div_ceil(8));
        self.wait_for(missing, true, false);
        true
    }

    fn begin_round(&mut self) {
        self.round += 1;
        self.waiting.clear();
        self.arrives_by = None;
        self.answer_delay = Duration::ZERO;
        self.overdue_at = None;
    }

    /// What is not known to have come; all of it, should everything have.
    fn missing(&self) -> Vec<usize> {
        let missing: Vec<usize> = (0..self.come.len()).filter(|index| !self.come[*index]).collect();
        if missing.is_empty() { (0..self.come.len()).collect() } else { missing }
    }

    fn wait_for(&mut self, indexes: impl IntoIterator<Item = usize>, again: bool, asks: bool) {
        let waiting = indexes.into_iter().enumerate().map(|(place, index)| Waiting {
            index,
            with_surb: asks || place % (if again { SURB_EVERY_AGAIN } else { SURB_EVERY }) == 0,
            again,
            asks,
        });
        self.waiting.extend(waiting);
    }
}

/// Of so many fragments one carries a SURB, the first among them (HTX reference, section 6).
const SURB_EVERY: usize = 16;
/// The same where an answer, or a fragment, is known to have been lost.
const SURB_EVERY_AGAIN: usize = 2;
/// So many fragments ask what has come.
const ASKING: usize = 2;
