//! What a receiving gateway does with fragments: gather, open, hand over, answer once committed.
//!
//! An answer leaves only when the driver has said that the store has the message (HTX reference,
//! section 6). A transfer that was answered is remembered, so that its late or repeated fragments
//! neither show the message again nor go unanswered; the store has to know messages by their own
//! id in any case, since this memory is bounded and ends with the process.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use fieldpost_envelope::OpeningKey;
use rand::CryptoRng;

use crate::{
    acknowledge::{Acknowledgement, State},
    fragment::{Fragment, Gathered, Layout, Limits, Reassembly, TransferId},
    seal,
    sphinx::{Packet, RelayId, Surb},
};

/// Bounds and patience of a receiver.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bounds of what is unfinished.
    pub gathering: Limits,
    /// How long a transfer stands still before its sender is told what has come.
    pub stall: Duration,
    /// The most messages handed over and not yet settled; beyond, a message that becomes whole is
    /// dropped, and its sender will send it again.
    pub unsettled: usize,
    /// The most bytes of such messages.
    pub unsettled_bytes: usize,
    /// How long the driver may take to settle a message.
    pub settle_within: Duration,
    /// The most settled transfers remembered; the oldest is forgotten first.
    pub remembered: usize,
    /// How long they are remembered.
    pub remember: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            gathering: Limits::default(),
            stall: Duration::from_secs(2),
            unsettled: 256,
            unsettled_bytes: 32 * 1024 * 1024,
            settle_within: Duration::from_secs(60),
            remembered: 16_384,
            remember: Duration::from_secs(3600),
        }
    }
}

/// The receiving end of a gateway.
pub struct Receiver<R> {
    us: RelayId,
    config: Config,
    rng: R,
    /// At most [`OPEN_EPOCHS`]; the newest last.
    epochs: VecDeque<(u64, OpeningKey)>,
    gathering: Reassembly,
    /// SURBs of what is gathered, and when its sender is to be told of a stall.
    answers: BTreeMap<TransferId, Answers>,
    unsettled: BTreeMap<TransferId, Unsettled>,
    settled: BTreeMap<TransferId, Settled>,
    settled_order: VecDeque<(Instant, TransferId)>,
    counts: Counts,
    actions: Vec<Action>,
}

/// What a receiver is told.
#[derive(Debug)]
pub enum Event {
    /// A packet ended here, as [`relay::Action::Deliver`](crate::relay::Action::Deliver) says.
    Packet(Packet),
    /// The store has the message of this transfer.
    Committed(TransferId),
    /// The message is not wanted, now or later.
    Refused(TransferId),
    /// [`Receiver::next_deadline`] has come.
    Wake,
}

/// What a receiver wants done.
#[derive(Debug)]
pub enum Action {
    /// Store the message, then say [`Event::Committed`].
    Store {
        /// To say it of.
        transfer: TransferId,
        /// The bytes that were sent.
        message: Vec<u8>,
    },
    /// Send the packet, which carries an answer.
    Transmit {
        /// To whom.
        to: RelayId,
        /// The packet.
        packet: Packet,
    },
}

/// How many fragments met which fate.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Messages that became whole and opened.
    pub messages: u64,
    /// Answers sent.
    pub answers: u64,
    /// Fragments that had come before, or of transfers that are settled.
    pub duplicates: u64,
    /// Malformed or contradicting fragments.
    pub malformed: u64,
    /// Whole transfers that nobody can open: no key for their epoch, or altered.
    pub unopened: u64,
    /// Whole messages dropped as too many were unsettled.
    pub overflowed: u64,
}

impl<R: CryptoRng> Receiver<R> {
    /// A receiver for the gateway `us`, without a key.
    pub fn new(us: RelayId, config: Config, rng: R) -> Self {
        Self {
            us,
            config,
            rng,
            epochs: VecDeque::new(),
            gathering: Reassembly::new(config.gathering),
            answers: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            settled: BTreeMap::new(),
            settled_order: VecDeque::new(),
            counts: Counts::default(),
            actions: Vec::new(),
        }
    }

    /// Opens messages of `epoch` with `key` from now on. The oldest of more than four keys is
    /// erased.
    pub fn open_epoch(&mut self, epoch: u64, key: OpeningKey) {
        self.close_epoch(epoch);
        self.epochs.push_back((epoch, key));
        if self.epochs.len() > OPEN_EPOCHS {
            self.epochs.pop_front();
        }
    }

    /// Erases the key of `epoch`.
    pub fn close_epoch(&mut self, epoch: u64) {
        self.epochs.retain(|(number, _)| *number != epoch);
    }

    /// Takes in one event and returns what to do about it.
    ///
    /// `now` must not go backwards from one call to the next.
    pub fn handle(&mut self, now: Instant, event: Event) -> impl Iterator<Item = Action> {
        match event {
            Event::Packet(packet) => self.receive(now, &packet),
            Event::Committed(transfer) => self.settle(now, transfer, State::Committed),
            Event::Refused(transfer) => self.settle(now, transfer, State::Refused),
            Event::Wake => {}
        }
        self.expire(now);
        self.actions.drain(..)
    }

    /// When the next [`Event::Wake`] is due, if anything is waiting for one.
    pub fn next_deadline(&self) -> Option<Instant> {
        let stalls = self.answers.values().filter_map(|answers| answers.stalls_at);
        let settling = self.unsettled.values().map(|unsettled| unsettled.until);
        let remembered = self.settled_order.front().map(|(until, _)| *until);
        stalls.chain(settling).chain(remembered).chain(self.gathering.next_deadline()).min()
    }

    /// How many fragments met which fate so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What is being gathered.
    pub fn gathering(&self) -> &Reassembly {
        &self.gathering
    }

    fn receive(&mut self, now: Instant, packet: &Packet) {
        let Ok(fragment) = Fragment::decode(packet.class(), packet.body()) else {
            self.counts.malformed += 1;
            return;
        };
        let transfer = fragment.transfer;
        if let Some(settled) = self.settled.get_mut(&transfer) {
            self.counts.duplicates += 1;
            // Late shards of the first round need no second answer; a repeated one means that the
            // first answer was lost. Where repair was faster than the SURB, there was none yet.
            let wanted = fragment.again || !settled.answered;
            if let Some(surb) = fragment.to_surb().filter(|_| wanted) {
                settled.answered = true;
                let (state, count) = (settled.state, settled.layout.count());
                self.answer(surb, transfer, state, vec![true; count]);
            }
            return;
        }
        if let Some(unsettled) = self.unsettled.get_mut(&transfer) {
            self.counts.duplicates += 1;
            if unsettled.surbs.len() < SURBS {
                unsettled.surbs.extend(fragment.to_surb());
            }
            return;
        }
        match self.gathering.insert(now, &fragment) {
            Ok(Gathered::Stored) => self.stored(now, &fragment),
            Ok(Gathered::Duplicate) => {
                self.counts.duplicates += 1;
                self.stored(now, &fragment);
            }
            Ok(Gathered::Whole(sealed)) => self.whole(now, &fragment, &sealed),
            Err(_) => self.counts.malformed += 1,
        }
    }

    fn stored(&mut self, now: Instant, fragment: &Fragment<'_>) {
        let answers = self.answers.entry(fragment.transfer).or_default();
        if answers.surbs.len() < SURBS {
            answers.surbs.extend(fragment.to_surb());
        }
        answers.stalls_at = (!answers.surbs.is_empty()).then_some(now + self.config.stall);
        if fragment.asks {
            self.tell(fragment.transfer);
        }
        // What had to give way needs no answer.
        if self.answers.len() > self.gathering.len() {
            let gathering = &self.gathering;
            self.answers.retain(|transfer, _| gathering.contains(*transfer));
        }
    }

    fn whole(&mut self, now: Instant, fragment: &Fragment<'_>, sealed: &[u8]) {
        let transfer = fragment.transfer;
        let mut surbs = self.answers.remove(&transfer).unwrap_or_default().surbs;
        surbs.extend(fragment.to_surb());
        let bytes: usize = self.unsettled.values().map(|other| other.layout.sealed_len).sum();
        if self.unsettled.len() >= self.config.unsettled
            || bytes + sealed.len() > self.config.unsettled_bytes
        {
            self.counts.overflowed += 1;
            return;
        }
        let opened = seal::epoch_of(sealed).ok().and_then(|epoch| {
            let (_, key) = self.epochs.iter().find(|(number, _)| *number == epoch)?;
            seal::open(self.us, key, transfer, sealed).ok()
        });
        let Some(message) = opened else {
            self.counts.unopened += 1;
            return;
        };
        self.counts.messages += 1;
        let until = now + self.config.settle_within;
        self.unsettled.insert(transfer, Unsettled { surbs, layout: fragment.layout, until });
        self.actions.push(Action::Store { transfer, message });
    }

    fn settle(&mut self, now: Instant, transfer: TransferId, state: State) {
        let Some(mut unsettled) = self.unsettled.remove(&transfer) else { return };
        let layout = unsettled.layout;
        if self.settled.len() >= self.config.remembered
            && let Some((_, oldest)) = self.settled_order.pop_front()
        {
            self.settled.remove(&oldest);
        }
        let answered = !unsettled.surbs.is_empty();
        self.settled.insert(transfer, Settled { state, layout, answered });
        self.settled_order.push_back((now + self.config.remember, transfer));
        // The newest comes back the fastest: its relays have been seen alive last.
        if let Some(surb) = unsettled.surbs.pop() {
            self.answer(surb, transfer, state, vec![true; layout.count()]);
        }
    }

    fn expire(&mut self, now: Instant) {
        for transfer in self.gathering.expire(now) {
            self.answers.remove(&transfer);
        }
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        while let Some(transfer) = self
            .answers
            .iter()
            .find(|(_, answers)| due(answers.stalls_at))
            .map(|(transfer, _)| *transfer)
        {
            self.tell(transfer);
        }
        self.unsettled.retain(|_, unsettled| unsettled.until > now);
        while self.settled_order.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, transfer)) = self.settled_order.pop_front() {
                self.settled.remove(&transfer);
            }
        }
    }

    /// Tells the sender which shards have come, if it left a SURB to do so.
    fn tell(&mut self, transfer: TransferId) {
        let Some(answers) = self.answers.get_mut(&transfer) else { return };
        answers.stalls_at = None;
        let Some(surb) = answers.surbs.pop() else { return };
        let Some((layout, come)) = self.gathering.gathered(transfer) else { return };
        let mut shards = vec![false; layout.count()];
        come.for_each(|index| shards[index] = true);
        self.answer(surb, transfer, State::Partial, shards);
    }

    fn answer(&mut self, surb: Surb, transfer: TransferId, state: State, shards: Vec<bool>) {
        let answer = Acknowledgement { transfer, state, shards };
        if let Ok((to, packet)) = surb.reply(&mut self.rng, &answer.encode()) {
            self.counts.answers += 1;
            self.actions.push(Action::Transmit { to, packet });
        }
    }
}

#[derive(Default)]
struct Answers {
    surbs: Vec<Surb>,
    stalls_at: Option<Instant>,
}

struct Unsettled {
    surbs: Vec<Surb>,
    layout: Layout,
    until: Instant,
}

struct Settled {
    state: State,
    layout: Layout,
    answered: bool,
}

/// Kept of each transfer; an honest sender's first round brings no more than 53.
const SURBS: usize = 8;
/// Two would do; clocks differ, and keys are published ahead.
const OPEN_EPOCHS: usize = 4;

#[cfg(test)]
mod tests;
