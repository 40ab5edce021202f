//! What dealing with other gateways needs beyond the core's store: what nobody reaches, and
//! receipts that are repeated until the other side has them.
//!
//! `stored` needs no answer: whoever misses it sends the message again. `delivered`, `read` and
//! `refused` are said when nobody asks any more, so they are answered: with a receipt `stored` that
//! names the receipt's own digest. Answers are not answered.

use chrono::TimeDelta;
use fieldpost_delivery::{ReceiptIn, ReceiptOut, Time};
use fieldpost_envelope::{AnonymityLevel, GatewayId, ReceiptKind};

use crate::store::{Store, words};

/// How many rows wait in the queues, each counted up to [`QueueDepths::MOST`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct QueueDepths {
    /// Deliveries to peers of this gateway.
    pub inbox: i64,
    /// Deliveries elsewhere.
    pub outbox: i64,
    /// Of these, those that nobody can act on now.
    pub outbox_waiting: i64,
    /// Receipts owed to other gateways.
    pub receipts: i64,
    /// Messages from elsewhere that wait for a predecessor.
    pub held: i64,
}

impl QueueDepths {
    /// Beyond this nobody counts on.
    pub const MOST: i64 = 100_000;
}

/// A receipt that we are to send.
pub struct OwedReceipt<'a> {
    /// The digest of what it answers.
    pub answers: [u8; 32],
    /// What it says.
    pub kind: ReceiptKind,
    /// Where it goes.
    pub gateway: GatewayId,
    /// Why, for `refused`.
    pub reason: Option<&'a str>,
    /// The level that it must not go below.
    pub level: AnonymityLevel,
    /// When nobody wants it any more.
    pub expires_at: Time,
}

impl Store {
    /// When a delivery or a receipt to one of `reachable` is due next.
    pub async fn next_due_elsewhere(&self, reachable: &[String]) -> sqlx::Result<Option<Time>> {
        sqlx::query_scalar!(
            r#"
            select min(at) from unnest($1::text[]) as target
            cross join lateral (
                (select next_attempt_at as at from outbox
                 where outbox.target = target.target and next_attempt_at is not null
                 order by next_attempt_at limit 1)
                union all
                (select next_attempt_at from receipt
                 where receipt.gateway = target.target
                 order by next_attempt_at limit 1)
            ) as due
            "#,
            reachable,
        )
        .fetch_one(&self.pool)
        .await
    }

    /// Lays aside what is due while no replica reaches its target, with the reason for the sender,
    /// until it is reached. Returns how much.
    pub async fn strand(&self, now: Time) -> sqlx::Result<u64> {
        sqlx::query!(
            r#"
            update outbox
            set next_attempt_at = null, waits_for = 'out of reach: no transport leads there now'
            where next_attempt_at <= $1 and stage < 2
              and target not in (select target from reach where expires_at > $1)
            "#,
            now,
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
    }

    /// Makes due again what was laid aside although `targets` are in reach: what it waits for, such
    /// as a level, may be there now. Returns how much.
    pub async fn reconsider(&self, now: Time, targets: &[String], limit: i64) -> sqlx::Result<u64> {
        sqlx::query!(
            r#"
            update outbox set next_attempt_at = $1
            where ctid = any(array(
                select ctid from outbox
                where target = any($2) and stage < 2 and not claimed and next_attempt_at is null
                order by accepted_at
                limit $3
                for update skip locked
            ))
            "#,
            now,
            targets,
            limit,
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
    }

    /// Makes due what had left for `targets` without an answer, and the receipts owed to them: they
    /// have just come into reach.
    pub async fn hasten(&self, now: Time, targets: &[String]) -> sqlx::Result<u64> {
        sqlx::query!(
            r#"
            with hastened as (
                update receipt set next_attempt_at = $1
                where gateway = any($2) and next_attempt_at > $1
            )
            update outbox set next_attempt_at = $1
            where target = any($2) and stage = 1 and not claimed and next_attempt_at > $1
            "#,
            now,
            targets,
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
    }

    /// Owes a receipt, unless the same is owed already; that one is then due again.
    pub async fn owe_receipt(&self, now: Time, owed: &OwedReceipt<'_>) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            insert into receipt
                (digest, kind, gateway, at, reason, level, next_attempt_at, expires_at)
            values ($1, $2, $3, $4, $5, $6, $4, $7)
            on conflict (digest, kind) do update set next_attempt_at = excluded.next_attempt_at
            "#,
            owed.answers.as_slice(),
            owed.kind.as_str(),
            owed.gateway.to_string(),
            now,
            owed.reason,
            words::level_number(owed.level),
            owed.expires_at,
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// A receipt has left under this digest; it is sent again at `retry_at` unless it is answered.
    pub async fn receipt_left(
        &self,
        receipt: &ReceiptOut,
        own_digest: &[u8; 32],
        retry_at: Time,
    ) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            update receipt set own_digest = $3, next_attempt_at = $4
            where digest = $1 and kind = $2
            "#,
            receipt.envelope.as_slice(),
            receipt.kind.as_str(),
            own_digest.as_slice(),
            retry_at,
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// `gateway` has the receipt with this digest: it need not be sent again.
    pub async fn receipt_answered(
        &self,
        own_digest: &[u8; 32],
        gateway: GatewayId,
    ) -> sqlx::Result<bool> {
        sqlx::query!(
            "delete from receipt where own_digest = $1 and gateway = $2",
            own_digest.as_slice(),
            gateway.to_string(),
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected() > 0)
    }

    /// Owes the answer to a receipt that came for an envelope of ours; a receipt for anything else
    /// gets none. `digest` is the receipt's own.
    pub async fn answer_receipt(
        &self,
        now: Time,
        receipt: &ReceiptIn,
        digest: &[u8; 32],
    ) -> sqlx::Result<bool> {
        sqlx::query!(
            r#"
            insert into receipt (digest, kind, gateway, at, level, next_attempt_at, expires_at)
            select $1, 'stored', $2, $3::timestamptz, level, $3, $4
            from envelope where digest = $5 and position($2 in recipient) > 0
            on conflict (digest, kind) do update set next_attempt_at = excluded.next_attempt_at
            "#,
            digest.as_slice(),
            receipt.signer.to_string(),
            now,
            now + TimeDelta::days(1),
            receipt.envelope.as_slice(),
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected() > 0)
    }

    /// Removes leases on reach that have run out.
    pub async fn sweep_reach(&self, now: Time) -> sqlx::Result<u64> {
        sqlx::query!("delete from reach where expires_at <= $1", now)
            .execute(&self.pool)
            .await
            .map(|done| done.rows_affected())
    }

    /// How much waits in the queues.
    pub async fn queue_depths(&self) -> sqlx::Result<QueueDepths> {
        sqlx::query_as!(
            QueueDepths,
            r#"
            select
                (select count(*) from (select from inbox limit $1) as counted) as "inbox!",
                (select count(*) from (select from outbox limit $1) as counted) as "outbox!",
                (select count(*) from (
                    select from outbox where next_attempt_at is null and stage < 2 limit $1
                ) as counted) as "outbox_waiting!",
                (select count(*) from (select from receipt limit $1) as counted) as "receipts!",
                (select count(*) from (
                    select from inbound where release_at is not null limit $1
                ) as counted) as "held!"
            "#,
            QueueDepths::MOST,
        )
        .fetch_one(&self.pool)
        .await
    }
}
