//! What dealing with other gateways needs beyond the core's store: what nobody reaches, and
//! receipts that are repeated until the other side has them.
//!
//! `stored` needs no answer: whoever misses it sends the message again. `delivered`, `read` and
//! `refused` are said when nobody asks any more, so they are answered: with a receipt `stored` that
//! names the receipt's own digest. Answers are not answered.

use std::time::Duration;

use fieldpost_delivery::{ReceiptOut, Time};
use fieldpost_envelope::{AnonymityLevel, GatewayId, ReceiptKind};

use crate::store::{
    Store,
    batches::{Question, SLOW},
    warm::WarmConnections,
    words,
};

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
                select min(o.at) as at
                from unnest(array[0, 1, 2, 3]::smallint[]) as urgency (priority)
                cross join lateral (
                    select next_attempt_at as at from outbox
                    where outbox.target = target.target and outbox.priority = urgency.priority
                      and next_attempt_at is not null
                    order by next_attempt_at limit 1
                ) as o
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

    /// Lays aside what is due while no replica reaches its target, until it is reached, with a reason
    /// for the sender that begins with [`OUT_OF_REACH`](fieldpost_delivery::OUT_OF_REACH). A claim
    /// that has run out ends with that; what it may have sent counts as having left. Returns how much.
    pub async fn strand(&self, now: Time) -> sqlx::Result<u64> {
        sqlx::query!(
            r#"
            -- A step for each target, however much is owed to it.
            with recursive owed as (
                (select target from outbox order by target limit 1)
                union all
                select (
                    select o.target from outbox o
                    where o.target > owed.target order by o.target limit 1
                )
                from owed where owed.target is not null
            )
            update outbox
            set next_attempt_at = null, claimed = false, has_left = has_left or claimed,
                waits_for = case
                    when target ~ '^[0-9a-f]{16}$'
                         and not exists (select from phone where phone.id = outbox.target)
                    then 'out of reach: no phone of that name was ever heard'
                    else 'out of reach: no transport leads there now'
                end
            where target = any(array(
                      select target from owed
                      where target is not null and not exists (
                          select from reach where reach.target = owed.target and expires_at > $1
                      )
                  ))
              and priority = any(array[0, 1, 2, 3]::smallint[])
              and next_attempt_at <= $1 and stage < 2
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

    /// A receipt was sent, or could not be; see [`Sent`].
    async fn note_receipt(
        &self,
        receipt: &ReceiptOut,
        own_digest: Option<[u8; 32]>,
        due_at: Option<Time>,
    ) -> sqlx::Result<()> {
        let sent = Sent { envelope: receipt.envelope, kind: receipt.kind, own_digest, due_at };
        let warm = self.warm.clone();
        self.receipts_sent.ask(sent, move |sent| note_receipts(warm.clone(), sent)).await
    }

    /// A receipt has left under this digest; it is sent again at `retry_at` unless it is answered.
    pub async fn receipt_left(
        &self,
        receipt: &ReceiptOut,
        own_digest: &[u8; 32],
        retry_at: Time,
    ) -> sqlx::Result<()> {
        self.note_receipt(receipt, Some(*own_digest), Some(retry_at)).await
    }

    /// Ends or puts off a receipt; see [`fieldpost_delivery::Store::receipt_done`].
    pub(super) async fn finish_receipt(
        &self,
        receipt: &ReceiptOut,
        retry_at: Option<Time>,
    ) -> sqlx::Result<()> {
        self.note_receipt(receipt, None, retry_at).await
    }

    /// Removes receipts that nobody wants any more.
    pub async fn expire_receipts(&self, now: Time) -> sqlx::Result<u64> {
        sqlx::query!("delete from receipt where expires_at <= $1", now)
            .execute(&self.pool)
            .await
            .map(|done| done.rows_affected())
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

/// What became of a receipt that we owe.
#[derive(Clone)]
pub(super) struct Sent {
    envelope: [u8; 32],
    kind: ReceiptKind,
    /// Its own digest, if it has left and is to be answered.
    own_digest: Option<[u8; 32]>,
    /// When it is sent next; `None` if it is done with.
    due_at: Option<Time>,
}

impl Question for Sent {
    type Key = ([u8; 32], ReceiptKind);
    const TOGETHER: usize = 512;
    const SECOND_AFTER: Duration = SLOW.saturating_add(Self::COLLECTED_FOR);
    /// The claims of receipts last for much longer.
    const COLLECTED_FOR: Duration = Duration::from_millis(20);

    fn key(&self) -> Self::Key {
        (self.envelope, self.kind)
    }
}

async fn note_receipts(warm: WarmConnections, mut sent: Vec<Sent>) -> sqlx::Result<Vec<()>> {
    let count = sent.len();
    sent.sort_by_key(|sent| (sent.envelope, sent.kind.as_str()));
    let (done, put_off): (Vec<Sent>, Vec<Sent>) =
        sent.into_iter().partition(|sent| sent.due_at.is_none());
    let digests =
        |sent: &[Sent]| sent.iter().map(|sent| sent.envelope.to_vec()).collect::<Vec<_>>();
    let kinds = |sent: &[Sent]| {
        sent.iter().map(|sent| sent.kind.as_str().to_owned()).collect::<Vec<String>>()
    };
    let own = put_off.iter().map(|sent| sent.own_digest.map(|digest| digest.to_vec()));
    let mut connection = warm.take().await?;
    sqlx::query!(
        r#"
        with put_off as (
            update receipt r
            set own_digest = coalesce(p.own_digest, r.own_digest), next_attempt_at = p.due_at
            from unnest($3::bytea[], $4::text[], $5::bytea[], $6::timestamptz[])
                as p (digest, kind, own_digest, due_at)
            where (r.digest, r.kind) = (p.digest, p.kind)
        )
        delete from receipt r
        using unnest($1::bytea[], $2::text[]) as done (digest, kind)
        where (r.digest, r.kind) = (done.digest, done.kind)
        "#,
        &digests(&done),
        &kinds(&done),
        &digests(&put_off),
        &kinds(&put_off),
        &own.collect::<Vec<_>>() as &[Option<Vec<u8>>],
        &put_off.iter().filter_map(|sent| sent.due_at).collect::<Vec<_>>(),
    )
    .execute(&mut *connection)
    .await?;
    connection.keep();
    Ok(vec![(); count])
}
