//! A store in memory: what the gateway keeps in Postgres, for simulations and tests.
//!
//! It keeps the whole contract of [`Store`] but one word of it: nothing survives the process. One
//! lock guards everything, is never held across an await, and every future is ready at once. What
//! it holds grows with the messages of the last 31 days and with the number of lanes.

mod book;

use std::{
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fieldpost_envelope::{MessageId, PeerId};

use self::book::Book;
use crate::{
    Accepted, AcceptedBatch, AtOnce, Attempt, Cancelled, Claim, Confirm, Correspondent, Inbound,
    InboxEntry, Next, ReceiptIn, ReceiptOut, Received, Record, Seq, Settled, Store, Submission,
    Time,
};

/// How long the identity of a message is remembered: the longest time to live and a day (design,
/// promise 2).
pub const REMEMBERED: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// The most messages from other gateways that wait for one recipient; more are refused.
pub const INBOX_LIMIT: usize = 100_000;

/// A [`Store`] in memory.
#[derive(Debug)]
pub struct MemoryStore {
    book: Mutex<Book>,
    inbox_limit: usize,
}

impl MemoryStore {
    /// An empty store that refuses messages from other gateways for a recipient with
    /// [`INBOX_LIMIT`] unconfirmed ones.
    pub fn new() -> Self {
        Self::with_inbox_limit(INBOX_LIMIT)
    }

    /// An empty store with another limit.
    pub fn with_inbox_limit(inbox_limit: usize) -> Self {
        Self { book: Mutex::default(), inbox_limit }
    }

    /// An envelope of a claimed delivery is about to leave: from now on receipts for it are
    /// understood, even if nobody ever records that it left.
    pub fn envelope_leaves(&self, claim: &Claim, envelope: &[u8; 32]) {
        self.book().envelope_leaves(claim, envelope);
    }

    /// Makes due what had left for `targets` without an answer, and the receipts owed to them: they
    /// have just come into reach.
    pub fn hasten(&self, now: Time, targets: &[String]) {
        self.book().hasten(now, targets);
    }

    /// A receipt has left under this digest; it is sent again at `retry_at` unless it is answered.
    pub fn receipt_left(&self, receipt: &ReceiptOut, own_digest: &[u8; 32], retry_at: Time) {
        self.book().receipt_left(receipt, own_digest, retry_at);
    }

    /// `signer` has the receipt with this digest: it need not be sent again.
    pub fn receipt_answered(&self, own_digest: &[u8; 32], signer: Correspondent) {
        self.book().receipt_answered(own_digest, signer);
    }

    /// Owes the answer to a receipt that came for an envelope of ours, and says whether; a receipt
    /// for anything else gets none. `digest` is the receipt's own.
    pub fn answer_receipt(&self, now: Time, receipt: &ReceiptIn, digest: &[u8; 32]) -> bool {
        self.book().answer_receipt(now, receipt, digest)
    }

    /// When the next receipt is due.
    pub fn next_receipt(&self) -> Option<Time> {
        self.book().next_receipt()
    }

    /// Whether anything is owed to anybody elsewhere.
    pub fn owes_anything(&self) -> bool {
        self.book().owes_anything()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic in a test must not turn every later call into another one.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    type Error = Infallible;

    async fn accept_and_begin(
        &self,
        now: Time,
        batch: &[Submission],
        at_once: AtOnce<'_>,
    ) -> Result<AcceptedBatch, Infallible> {
        let (mut book, mut accepted) = (self.book(), AcceptedBatch::default());
        for submission in batch {
            let answer = book.accept(now, submission);
            if matches!(answer, Accepted::New { .. }) {
                accepted.shown.extend(book.show_at_once(now, submission, at_once.present));
                accepted.claimed.extend(book.claim_at_once(now, submission, at_once));
            }
            accepted.answers.push(answer);
        }
        Ok(accepted)
    }

    async fn show(
        &self,
        now: Time,
        peer: &PeerId,
        after: Seq,
        limit: usize,
    ) -> Result<Vec<InboxEntry>, Infallible> {
        Ok(self.book().show(now, peer, after, limit))
    }

    async fn confirm(
        &self,
        now: Time,
        peer: &PeerId,
        what: &Confirm,
        read: bool,
    ) -> Result<Vec<Settled>, Infallible> {
        Ok(self.book().confirm(now, peer, what, read))
    }

    async fn cancel(
        &self,
        now: Time,
        sender: &PeerId,
        id: MessageId,
    ) -> Result<Cancelled, Infallible> {
        Ok(self.book().cancel(now, sender, id))
    }

    async fn expire_due(&self, now: Time, limit: usize) -> Result<Vec<Settled>, Infallible> {
        let mut book = self.book();
        book.forget_old(now, limit);
        Ok(book.expire_due(now, limit))
    }

    async fn claim_due(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> Result<Vec<Claim>, Infallible> {
        Ok(self.book().claim_due(now, lease, reachable, limit))
    }

    async fn record(
        &self,
        now: Time,
        claim: &Claim,
        attempts: &[Attempt],
        next: &Next,
    ) -> Result<Option<Settled>, Infallible> {
        Ok(self.book().record(now, claim, attempts, next))
    }

    async fn reached(&self, now: Time, targets: &[String]) -> Result<u64, Infallible> {
        Ok(self.book().reached(now, targets))
    }

    async fn receive(
        &self,
        now: Time,
        inbound: &Inbound,
        order_wait: Duration,
    ) -> Result<Received, Infallible> {
        Ok(self.book().receive(now, inbound, order_wait, self.inbox_limit))
    }

    async fn release_held(&self, now: Time, limit: usize) -> Result<Vec<PeerId>, Infallible> {
        Ok(self.book().release_held(now, limit))
    }

    async fn settle(&self, now: Time, receipt: &ReceiptIn) -> Result<Option<Settled>, Infallible> {
        Ok(self.book().settle(now, receipt))
    }

    async fn claim_receipts(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> Result<Vec<ReceiptOut>, Infallible> {
        Ok(self.book().claim_receipts(now, lease, reachable, limit))
    }

    async fn receipt_done(
        &self,
        receipt: &ReceiptOut,
        retry_at: Option<Time>,
    ) -> Result<(), Infallible> {
        self.book().receipt_done(receipt, retry_at);
        Ok(())
    }

    async fn records(
        &self,
        _now: Time,
        caller: &PeerId,
        id: MessageId,
    ) -> Result<Vec<Record>, Infallible> {
        Ok(self.book().records(caller, id))
    }

    async fn next_due(&self) -> Result<Option<Time>, Infallible> {
        Ok(self.book().next_due())
    }
}
