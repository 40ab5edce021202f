//! Receipts that leave at once, without a look into the store.
//!
//! That a message was stored may wait a moment where its recipient listens: once they have confirmed,
//! `delivered` says so, too, and the other is never made. What asks for a level waits for nothing, so
//! that its ways show nothing of whether anybody listens.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::TimeDelta;
use fieldpost_delivery::{ReceiptOut, Time};
use fieldpost_envelope::{AnonymityLevel, ReceiptKind};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::outbox::{MAX_RECEIPTS, Outbox, STOP_GRACE, receipts};

/// How many may wait; beyond, they are kept in the store until a look finds them.
const WAITING: usize = 1024;
/// How many that say `stored` may be held back; beyond, they leave at once.
const HELD: usize = 4096;
/// For how long.
const HOLD: Duration = Duration::from_millis(100);

/// A receipt that is to leave at once.
#[derive(Debug)]
pub struct Errand {
    /// What it says, and to whom.
    pub receipt: ReceiptOut,
    /// Whether the store has it, claimed for [`Errands::CLAIM`].
    pub is_kept: bool,
    /// Whether it may wait for a word that says more.
    pub may_wait: bool,
}

/// Takes errands; cheap to clone.
#[derive(Clone, Debug)]
pub struct Errands {
    sender: mpsc::Sender<Errand>,
    receiver: Arc<Mutex<Option<mpsc::Receiver<Errand>>>>,
}

impl Errands {
    /// For how long a receipt in the store is left to its errand.
    pub const CLAIM: TimeDelta = TimeDelta::seconds(30);

    /// Until when receipts that become owed now are to be claimed, if there is room to send many of
    /// them at once.
    pub fn claim(&self, now: Time) -> Option<Time> {
        (self.sender.capacity() >= WAITING / 2).then(|| now + Self::CLAIM)
    }

    /// Takes receipts that the store has and claimed; returns those for which there is no room.
    pub fn run(&self, receipts: Vec<ReceiptOut>) -> Vec<ReceiptOut> {
        let mut left = Vec::new();
        for receipt in receipts {
            match self.room() {
                Some(room) => drop(room.send(Errand { receipt, is_kept: true, may_wait: false })),
                None => left.push(receipt),
            }
        }
        left
    }

    /// Room for one errand, if there is any.
    pub fn room(&self) -> Option<mpsc::OwnedPermit<Errand>> {
        self.sender.clone().try_reserve_owned().ok()
    }

    /// What waits, for the one who runs the errands.
    pub(super) fn waiting(&self) -> Option<mpsc::Receiver<Errand>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Default for Errands {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self { sender, receiver: Arc::new(Mutex::new(Some(receiver))) }
    }
}

/// Runs errands until `stop`; then gives those that are under way a moment.
pub(super) async fn run(outbox: Arc<Outbox>, stop: CancellationToken) {
    let Some(mut waiting) = outbox.gateway.errands.waiting() else { return };
    let mut tasks = JoinSet::new();
    let mut held = Held::new(HOLD.min(outbox.rules.failover_timeout / 4));
    let begin = |tasks: &mut JoinSet<()>, errand| {
        let outbox = outbox.clone();
        tasks.spawn(async move { receipts::send(&outbox, errand).await });
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => {}
            () = sleep_until(held.until()), if tasks.len() < MAX_RECEIPTS => {
                for errand in held.take_due(Instant::now(), MAX_RECEIPTS - tasks.len()) {
                    begin(&mut tasks, errand);
                }
            }
            Some(errand) = waiting.recv(), if tasks.len() < MAX_RECEIPTS => {
                if let Some(errand) = held.pass(Instant::now(), errand) {
                    begin(&mut tasks, errand);
                }
            }
        }
    }
    // Whoever misses one of the rest sends the message again.
    let room = MAX_RECEIPTS - tasks.len();
    held.take_all().take(room).for_each(|errand| begin(&mut tasks, errand));
    let _ = timeout(STOP_GRACE, async { while tasks.join_next().await.is_some() {} }).await;
}

/// Errands that are held back.
struct Held {
    hold: Duration,
    /// By what they answer.
    errands: HashMap<[u8; 32], Errand>,
    /// In the order of their times; some have gone since.
    due: VecDeque<(Instant, [u8; 32])>,
}

impl Held {
    fn new(hold: Duration) -> Self {
        Self { hold, errands: HashMap::new(), due: VecDeque::new() }
    }

    /// When the first of them is due.
    fn until(&self) -> Instant {
        let first = self.due.front().map(|(at, _)| *at);
        first.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    /// Holds an errand back, or gives out what is to leave now. One that says more ends another.
    fn pass(&mut self, now: Instant, errand: Errand) -> Option<Errand> {
        let answers = errand.receipt.envelope;
        if matches!(errand.receipt.kind, ReceiptKind::Delivered | ReceiptKind::Read) {
            self.errands.remove(&answers);
        }
        let may_wait = errand.may_wait
            && errand.receipt.kind == ReceiptKind::Stored
            && errand.receipt.level == AnonymityLevel::NONE
            && self.due.len() < HELD;
        if !may_wait {
            return Some(errand);
        }
        self.due.push_back((now + self.hold, answers));
        self.errands.insert(answers, errand);
        None
    }

    /// Gives out at most so many of those that have waited long enough.
    fn take_due(&mut self, now: Instant, most: usize) -> Vec<Errand> {
        let mut due = Vec::new();
        while due.len() < most
            && let Some((_, answers)) = self.due.pop_front_if(|(at, _)| *at <= now)
        {
            due.extend(self.errands.remove(&answers));
        }
        due
    }

    fn take_all(&mut self) -> impl Iterator<Item = Errand> {
        self.errands.drain().map(|(_, errand)| errand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_says_more_ends_the_errand_that_was_held_back() {
        let (mut held, now) = (Held::new(HOLD), Instant::now());
        assert!(held.pass(now, errand(1, ReceiptKind::Stored, AnonymityLevel::NONE)).is_none());
        assert!(held.pass(now, errand(2, ReceiptKind::Stored, AnonymityLevel::NONE)).is_none());
        assert!(held.pass(now, errand(1, ReceiptKind::Delivered, AnonymityLevel::NONE)).is_some());
        assert_eq!(held.take_due(now, 9).len(), 0);
        let due = held.take_due(held.until(), 9);
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].receipt.envelope, [2; 32]);
        assert_eq!(held.take_all().count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_that_are_due_no_more_leave_than_there_is_room_for() {
        let (mut held, now) = (Held::new(HOLD), Instant::now());
        for number in 0..5 {
            held.pass(now, errand(number, ReceiptKind::Stored, AnonymityLevel::NONE));
        }
        let left = |errands: Vec<Errand>| errands.len();
        assert_eq!([3, 0, 3].map(|most| left(held.take_due(now + HOLD, most))), [3, 0, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_that_asks_for_a_level_is_held_back() {
        let mut held = Held::new(HOLD);
        for level in [AnonymityLevel::LOW, AnonymityLevel::MEDIUM, AnonymityLevel::HIGHEST] {
            let errand = errand(1, ReceiptKind::Stored, level);
            assert!(held.pass(Instant::now(), errand).is_some());
        }
    }

    fn errand(number: u8, kind: ReceiptKind, level: AnonymityLevel) -> Errand {
        let receipt = ReceiptOut {
            envelope: [number; 32],
            gateway: fieldpost_envelope::GatewayId::from_bytes([7; 32]).into(),
            kind,
            at: Time::UNIX_EPOCH,
            reason: None,
            level,
            attempt: 1,
        };
        Errand { receipt, is_kept: false, may_wait: true }
    }
}
