//! The store as the core sees it.

use std::{sync::Arc, time::Duration};

use fieldpost_delivery::{
    AcceptedBatch, AtOnce, Attempt, Cancelled, Claim, Confirm, Inbound, InboxEntry, Next,
    ReceiptIn, ReceiptOut, Received, Record, Seq, Settled, Submission, Time,
};
use fieldpost_envelope::{MessageId, PeerId};

use crate::store::Store;

impl fieldpost_delivery::Store for Store {
    type Error = sqlx::Error;

    async fn accept_and_begin(
        &self,
        now: Time,
        batch: &[Submission],
        at_once: AtOnce<'_>,
    ) -> sqlx::Result<AcceptedBatch> {
        self.accept_batch(now, batch, at_once).await
    }

    async fn show(
        &self,
        now: Time,
        peer: &PeerId,
        after: Seq,
        limit: usize,
    ) -> sqlx::Result<Vec<InboxEntry>> {
        self.show_inbox(now, peer, after, limit).await
    }

    async fn confirm(
        &self,
        now: Time,
        peer: &PeerId,
        what: &Confirm,
        read: bool,
    ) -> sqlx::Result<Vec<Settled>> {
        Ok(self.take_confirmation(now, peer, what, read, None).await?.0)
    }

    async fn cancel(&self, now: Time, sender: &PeerId, id: MessageId) -> sqlx::Result<Cancelled> {
        self.cancel_message(now, sender, id).await
    }

    async fn expire_due(&self, now: Time, limit: usize) -> sqlx::Result<Vec<Settled>> {
        self.expire_deliveries(now, limit).await
    }

    async fn claim_due(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> sqlx::Result<Vec<Claim>> {
        self.claim_deliveries(now, lease, reachable, limit).await
    }

    async fn record(
        &self,
        now: Time,
        claim: &Claim,
        attempts: &[Attempt],
        next: &Next,
    ) -> sqlx::Result<Option<Settled>> {
        self.record_attempts(now, claim, attempts, next).await
    }

    async fn reached(&self, now: Time, targets: &[String]) -> sqlx::Result<u64> {
        self.wake_targets(now, targets).await
    }

    async fn receive(
        &self,
        now: Time,
        inbound: &Inbound,
        order_wait: Duration,
    ) -> sqlx::Result<Received> {
        self.take_in(now, Arc::new(inbound.clone()), order_wait, true).await
    }

    async fn release_held(&self, now: Time, limit: usize) -> sqlx::Result<Vec<PeerId>> {
        self.release_overdue(now, limit).await
    }

    async fn settle(&self, now: Time, receipt: &ReceiptIn) -> sqlx::Result<Option<Settled>> {
        Ok(self.take_receipt(now, receipt).await?.settled)
    }

    async fn claim_receipts(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> sqlx::Result<Vec<ReceiptOut>> {
        self.claim_due_receipts(now, lease, reachable, limit).await
    }

    async fn receipt_done(&self, receipt: &ReceiptOut, retry_at: Option<Time>) -> sqlx::Result<()> {
        self.finish_receipt(receipt, retry_at).await
    }

    async fn records(
        &self,
        now: Time,
        caller: &PeerId,
        id: MessageId,
    ) -> sqlx::Result<Vec<Record>> {
        self.records_for(now, caller, id).await
    }

    async fn next_due(&self) -> sqlx::Result<Option<Time>> {
        self.next_due_time().await
    }
}
