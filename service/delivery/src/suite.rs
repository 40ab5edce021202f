//! Whether a [`Store`] keeps its word: a seeded suite for every implementation.
//!
//! This is test support; the gateway never calls it. [`run`] does random things to a fresh store, in
//! virtual time: it accepts, repeats and contradicts messages, shows and confirms inboxes, claims,
//! sends, loses and records attempts, lets receipts come late, twice, forged and out of order, lets
//! messages of other gateways come in any order, cancels, and lets things expire. Beside it a small
//! model says what promises 1, 2, 3 and 5 of the design and the documentation of [`Store`] allow.
//! Where they leave a choice, the model takes the store's answer and holds it to that.
//!
//! At the end everything is delivered or runs out, and the suite looks whether each delivery has
//! been accounted for. The same seed does the same things; a [`Violation`] names it and lists the
//! last steps.
//!
//! The clock moves less than [`SPAN`] from `start`, but for the last look, so that a store that keeps
//! its history by the day needs the days of `start` and of the next.

mod finale;
mod gaps;
mod inbound;
mod outgoing;
mod turns;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use chrono::TimeDelta;
use fieldpost_envelope::{GatewayId, MessageStatus, PeerAddress, PeerId};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use thiserror::Error;

pub use self::{gaps::tells_gaps_nobody_saw, turns::leaves_in_turns};
use self::{
    inbound::{Came, RemoteLane},
    outgoing::{Owed, Sent},
};
use crate::{Claim, Confirm, InboxEntry, Seq, Store, Time};

/// How far the clock moves while messages are accepted.
pub const SPAN: Duration = Duration::from_secs(20 * 60 * 60);

/// The peers of the store's own gateway; they must exist before the suite runs.
pub fn peers() -> Vec<PeerId> {
    ["alice", "bob", "carol", "dave"].into_iter().map(peer).collect()
}

/// Puts a fresh store through `steps` random steps in virtual time from `start`.
///
/// # Errors
///
/// Says which rule the store broke, with the seed and the steps that led there.
pub async fn run<S: Store>(
    store: &S,
    seed: u64,
    steps: usize,
    start: Time,
) -> Result<Summary, Violation> {
    let mut run = Run {
        store,
        seed,
        rng: StdRng::seed_from_u64(seed),
        start,
        now: start,
        step: 0,
        log: VecDeque::new(),
        summary: Summary::default(),
        sent: Vec::new(),
        owed: Vec::new(),
        claims: Vec::new(),
        lanes: Vec::new(),
        came: Vec::new(),
        last_release: start,
        receipts_claimed: BTreeMap::new(),
        inboxes: peers().into_iter().map(|peer| (peer, Vec::new())).collect(),
    };
    for step in 0..steps {
        run.step = step;
        run.tick();
        run.random_step().await?;
    }
    run.finale().await?;
    Ok(run.summary)
}

/// What a run did, so that a test can see that it did enough.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// How often each thing was done or seen.
    pub counts: BTreeMap<&'static str, usize>,
}

impl Summary {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

/// A rule that a store broke.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub struct Violation {
    /// The seed that shows it.
    pub seed: u64,
    /// The step in which it showed.
    pub step: usize,
    /// The rule.
    pub rule: &'static str,
    /// What was seen.
    pub detail: String,
    /// The last steps, oldest first.
    pub log: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, step, rule, detail, log } = self;
        write!(f, "seed {seed}, step {step}: {rule}: {detail}")?;
        for line in log {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

/// Runs a future that is never pending, such as any on a [`MemoryStore`](crate::MemoryStore).
///
/// # Panics
///
/// Panics when the future has to wait for something, as there is nothing here to wake it.
pub fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future has to wait, and nothing here could wake it"),
    }
}

/// The store under test and what the model knows of it.
struct Run<'a, S> {
    store: &'a S,
    seed: u64,
    rng: StdRng,
    start: Time,
    now: Time,
    step: usize,
    log: VecDeque<String>,
    summary: Summary,
    sent: Vec<Sent>,
    owed: Vec<Owed>,
    claims: Vec<Claim>,
    lanes: Vec<RemoteLane>,
    came: Vec<Came>,
    /// When what was held back was last released.
    last_release: Time,
    /// Until when each receipt is claimed.
    receipts_claimed: BTreeMap<([u8; 32], &'static str), Time>,
    /// What each peer was shown: `seq` is the place in the list, from 1.
    inboxes: BTreeMap<PeerId, Vec<Item>>,
}

/// What stands at one position of an inbox.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Item {
    /// An index into `owed`.
    Owed(usize),
    /// An index into `came`.
    Came(usize),
}

macro_rules! ensure {
    ($run:expr, $holds:expr, $rule:expr, $($detail:tt)+) => {
        if !$holds {
            return Err($run.violation($rule, format!($($detail)+)));
        }
    };
}
use ensure;

/// Promise 1.
const LOST: &str = "accepted means delivered or reported";
/// Promise 2.
const ONCE: &str = "shown once";
/// Promise 5.
const ORDER: &str = "a lane keeps its order";
const CONTRACT: &str = "the store's contract";

impl<S: Store> Run<'_, S> {
    fn tick(&mut self) {
        let millis = match self.rng.random_range(0..100) {
            _ if self.now - self.start > TimeDelta::from_std(SPAN).unwrap_or_default() => 0,
            0..50 => self.rng.random_range(0..50),
            50..90 => self.rng.random_range(50..3_000),
            90..99 => self.rng.random_range(3_000..70_000),
            _ => self.rng.random_range(70_000..1_500_000),
        };
        self.now += TimeDelta::milliseconds(millis);
    }

    async fn random_step(&mut self) -> Result<(), Violation> {
        match self.rng.random_range(0..100) {
            0..18 => self.accept().await,
            18..32 => self.show().await,
            32..42 => self.confirm().await,
            42..46 => self.cancel().await,
            46..50 => self.expire().await,
            50..60 => self.claim().await,
            60..70 => self.record().await,
            70..76 => self.settle().await,
            76..78 => self.reached().await,
            78..88 => self.receive().await,
            88..91 => self.release().await,
            91..94 => self.receipts().await,
            94..98 => self.look_at_one().await,
            _ => self.next_due().await,
        }
    }

    fn note(&mut self, what: &'static str, line: impl FnOnce() -> String) {
        self.summary.count(what);
        if self.log.len() == LOG_LINES {
            self.log.pop_front();
        }
        let seconds = (self.now - self.start).as_seconds_f64();
        self.log.push_back(format!("{:>5} {seconds:>10.3} s  {what}: {}", self.step, line()));
    }

    fn violation(&self, rule: &'static str, detail: String) -> Violation {
        let log = self.log.iter().cloned().collect();
        Violation { seed: self.seed, step: self.step, rule, detail, log }
    }

    fn broken<E: std::error::Error>(&self) -> impl Fn(E) -> Violation {
        let violation = self.violation("the store works", String::new());
        move |error| Violation { detail: error.to_string(), ..violation.clone() }
    }

    fn any_peer(&mut self) -> PeerId {
        let peers = peers();
        peers[self.rng.random_range(0..peers.len())].clone()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn any_limit(&mut self) -> usize {
        if self.chance(30) { self.rng.random_range(1..4) } else { NO_LIMIT }
    }

    async fn show(&mut self) -> Result<(), Violation> {
        let peer = self.any_peer();
        let given = self.inboxes[&peer].len() as Seq;
        let after = if self.chance(60) { 0 } else { self.rng.random_range(0..=given) };
        let limit = self.any_limit();
        self.show_to(&peer, after, limit).await
    }

    async fn show_to(&mut self, peer: &PeerId, after: Seq, limit: usize) -> Result<(), Violation> {
        self.note("show", || format!("{peer} after {after}, at most {limit}"));
        let shown = self.store.show(self.now, peer, after, limit).await.map_err(self.broken())?;
        ensure!(self, shown.len() <= limit, CONTRACT, "{} entries, asked for {limit}", shown.len());
        let mut last = after;
        for entry in &shown {
            ensure!(self, entry.seq > last, CONTRACT, "seq {} after {last}", entry.seq);
            self.look_at_entry(peer, entry)?;
            last = entry.seq;
        }
        let is_full = shown.len() == limit;
        for (seq, item) in (1..).zip(&self.inboxes[peer]) {
            let is_due = seq > after && (!is_full || seq < last) && self.is_unconfirmed(*item);
            let is_there = shown.iter().any(|entry| entry.seq == seq);
            ensure!(self, !is_due || is_there, LOST, "{peer} was not shown seq {seq} again");
        }
        if !is_full {
            self.look_for_unshown(peer)?;
        }
        Ok(())
    }

    fn look_at_entry(&mut self, peer: &PeerId, entry: &InboxEntry) -> Result<(), Violation> {
        let name = format!("{peer} was shown {} from {}", entry.message.id, entry.message.sender);
        ensure!(
            self,
            entry.message.expires_at > self.now,
            CONTRACT,
            "{name} after its end of life"
        );
        let given = self.inboxes[peer].len() as Seq;
        let place = usize::try_from(entry.seq - 1).unwrap_or(usize::MAX);
        if let Some(&item) = self.inboxes[peer].get(place) {
            ensure!(
                self,
                self.is_item(item, entry),
                ONCE,
                "{name} at seq {} of another",
                entry.seq
            );
            ensure!(self, self.is_unconfirmed(item), ONCE, "{name} after its end");
            return Ok(());
        }
        ensure!(self, entry.seq == given + 1, CONTRACT, "{name} at seq {} of {given}", entry.seq);
        let item = self.first_shown(peer, entry, &name)?;
        self.inboxes.entry(peer.clone()).or_default().push(item);
        self.summary.count("shown");
        Ok(())
    }

    fn first_shown(
        &mut self,
        peer: &PeerId,
        entry: &InboxEntry,
        name: &str,
    ) -> Result<Item, Violation> {
        if entry.message.sender.gateway.is_some() {
            self.came_is_shown(peer, entry, name).map(Item::Came)
        } else {
            self.owed_is_shown(peer, entry, name).map(Item::Owed)
        }
    }

    fn is_item(&self, item: Item, entry: &InboxEntry) -> bool {
        match item {
            Item::Owed(index) => {
                let owed = &self.owed[index];
                self.sent[owed.message].submission.message == entry.message
            }
            Item::Came(index) => self.came[index].message == entry.message,
        }
    }

    /// Shown and still owed to the recipient's client.
    fn is_unconfirmed(&self, item: Item) -> bool {
        match item {
            Item::Owed(index) => {
                let owed = &self.owed[index];
                !owed.ended && owed.expires_at > self.now
            }
            Item::Came(index) => {
                let came = &self.came[index];
                !came.is_confirmed() && came.message.expires_at > self.now
            }
        }
    }

    async fn confirm(&mut self) -> Result<(), Violation> {
        let peer = self.any_peer();
        let given = self.inboxes[&peer].clone();
        let read = self.chance(30);
        if given.is_empty() || self.chance(50) {
            let seq = self.rng.random_range(0..=given.len()) as Seq;
            let seen_from = seq / 2;
            return self.confirm_these(&peer, Confirm::UpTo { seq, seen_from }, read).await;
        }
        let mut names = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            let (id, sender) = match given[self.rng.random_range(0..given.len())] {
                Item::Owed(index) => (self.owed[index].id, self.owed[index].sender.clone().into()),
                Item::Came(index) => {
                    (self.came[index].message.id, self.came[index].message.sender.clone())
                }
            };
            names.push((id, self.chance(70).then_some(sender)));
        }
        if !self.owed.is_empty() && self.chance(20) {
            // One that was perhaps never shown, or is for somebody else.
            let owed = &self.owed[self.rng.random_range(0..self.owed.len())];
            names.push((owed.id, None));
        }
        self.confirm_these(&peer, Confirm::Messages(names), read).await
    }

    async fn confirm_these(
        &mut self,
        peer: &PeerId,
        what: Confirm,
        read: bool,
    ) -> Result<(), Violation> {
        self.note("confirm", || format!("{peer} {what:?}, read: {read}"));
        let settled =
            self.store.confirm(self.now, peer, &what, read).await.map_err(self.broken())?;
        let named = |seq: Seq, is_over: bool, id, sender: &PeerAddress| match &what {
            Confirm::UpTo { seq: last, seen_from } => {
                seq <= *last && (!is_over || seq >= *seen_from)
            }
            Confirm::Messages(names) => names
                .iter()
                .any(|(name, from)| *name == id && from.as_ref().is_none_or(|from| from == sender)),
        };
        let mut told = 0;
        for (seq, item) in (1..).zip(self.inboxes[peer].clone()) {
            let (id, sender) = self.name_of(item);
            let is_told = settled.iter().any(|one| one.id == id && one.sender == sender);
            told += usize::from(is_told);
            // What was delivered before may still be read.
            let is_over = match item {
                Item::Owed(index) => {
                    let owed = &self.owed[index];
                    owed.is_over(self.now) && owed.status != MessageStatus::Delivered
                }
                Item::Came(index) => {
                    self.came[index].is_over(self.now) && !self.came[index].is_confirmed()
                }
            };
            if named(seq, is_over, id, &sender) {
                self.confirm_item(peer, item, read, is_told)?;
            } else {
                ensure!(self, !is_told, CONTRACT, "{id} from {sender} was confirmed unasked");
            }
        }
        ensure!(self, told == settled.len(), CONTRACT, "confirmed what was not shown: {settled:?}");
        let again = self.store.confirm(self.now, peer, &what, read).await.map_err(self.broken())?;
        ensure!(self, again.is_empty(), CONTRACT, "confirming again changed {again:?}");
        Ok(())
    }

    fn name_of(&self, item: Item) -> (fieldpost_envelope::MessageId, PeerAddress) {
        match item {
            Item::Owed(index) => (self.owed[index].id, self.owed[index].sender.clone().into()),
            Item::Came(index) => {
                (self.came[index].message.id, self.came[index].message.sender.clone())
            }
        }
    }

    fn confirm_item(
        &mut self,
        peer: &PeerId,
        item: Item,
        read: bool,
        is_told: bool,
    ) -> Result<(), Violation> {
        match item {
            Item::Owed(index) => self.owed_is_confirmed(peer, index, read, is_told),
            Item::Came(index) => {
                self.came_is_confirmed(index, read, is_told);
                Ok(())
            }
        }
    }

    async fn next_due(&mut self) -> Result<(), Violation> {
        self.note("next due", String::new);
        let due = self.store.next_due().await.map_err(self.broken())?;
        let expected = self.owed_due().into_iter().chain(self.came_due()).min();
        let in_time = match (due, expected) {
            (_, None) => true,
            (Some(due), Some(expected)) => due <= expected,
            (None, Some(_)) => false,
        };
        ensure!(self, in_time, CONTRACT, "next due is {due:?}, there is work at {expected:?}");
        Ok(())
    }
}

fn peer(name: &str) -> PeerId {
    PeerId::parse(name).expect("the suite's own names are peer ids")
}

/// The other gateways of the suite's world.
fn gateways() -> [GatewayId; 2] {
    [GatewayId::from_bytes([1; 32]), GatewayId::from_bytes([2; 32])]
}

const LOG_LINES: usize = 60;
const NO_LIMIT: usize = 100_000;

#[cfg(test)]
mod tests;
