//! Receipts that leave at once, without a look into the store.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::TimeDelta;
use fieldpost_delivery::{ReceiptOut, Time};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::outbox::{MAX_RECEIPTS, Outbox, STOP_GRACE, receipts};

/// How many may wait; beyond, they are kept in the store until a look finds them.
const WAITING: usize = 1024;

/// A receipt that is to leave at once.
#[derive(Debug)]
pub struct Errand {
    /// What it says, and to whom.
    pub receipt: ReceiptOut,
    /// Whether the store has it, claimed for [`Errands::CLAIM`].
    pub is_kept: bool,
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
                Some(room) => drop(room.send(Errand { receipt, is_kept: true })),
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
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => {}
            Some(errand) = waiting.recv(), if tasks.len() < MAX_RECEIPTS => {
                let outbox = outbox.clone();
                tasks.spawn(async move { receipts::send(&outbox, errand).await });
            }
        }
    }
    let _ = timeout(STOP_GRACE, async { while tasks.join_next().await.is_some() {} }).await;
}
