//! Deliveries owed elsewhere: claims, attempts, receipts in and out, and what can be reached.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use fieldpost_delivery::{Claim, ReceiptOut, Time};
use fieldpost_envelope::{LaneSeq, MessageId, PeerAddress};
use uuid::Uuid;

use crate::store::{
    Store,
    messages::{Sealed, target},
    words,
};

/// Deliveries are claimed up to the one that takes their content together over so many bytes.
pub const CLAIM_BYTES: usize = 8 << 20;

/// As much is made due first when its recipient comes into reach, and twice as much each further time,
/// until one takes all: nothing can leave before, and each time all that is left is put in order. What is
/// put off meanwhile is among it again, so it is the growth that ends it.
const WOKEN_FIRST: i64 = 2048;

/// What is being made due, turn by turn. Turns are moments of the second that has just passed, one
/// microsecond apart, so that all is due and yet in order.
#[derive(Debug, Default)]
pub struct Waking {
    /// For whom it waits; nobody once all is due.
    targets: BTreeSet<String>,
    /// The last turn that was given.
    after: Time,
    /// What was accepted later is due by itself, unless it was laid aside.
    until: Time,
    /// How much is made due next.
    slice: i64,
}

impl Waking {
    /// Nothing is due yet of what waits for `targets`.
    pub fn new(now: Time, targets: impl IntoIterator<Item = String>) -> Self {
        let targets = targets.into_iter().collect();
        let after = now - TimeDelta::seconds(1);
        Self { targets, after, until: now, slice: WOKEN_FIRST }
    }

    /// As well as what is left, what waits for `targets`; of what was made due some is again, which
    /// changes nothing.
    pub fn add(&mut self, now: Time, targets: &[String]) {
        let left = std::mem::take(&mut self.targets).into_iter();
        *self = Self::new(now, left.chain(targets.iter().cloned()));
    }

    /// What went out of reach waits for its return.
    pub fn retain(&mut self, reachable: &[String]) {
        self.targets.retain(|target| reachable.contains(target));
    }

    /// Whether nothing is left.
    pub fn is_over(&self) -> bool {
        self.targets.is_empty()
    }

    /// Whether some of what waits for `target` may be left.
    pub fn has(&self, target: &str) -> bool {
        self.targets.contains(target)
    }
}

/// A message that was perhaps claimed as it was accepted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Doubted {
    /// Whose it is.
    pub sender: PeerAddress,
    /// Its id.
    pub id: MessageId,
    /// When the claim would end: no other claim of it ends then.
    pub claimed_until: Time,
    /// Until when its commit may still come.
    pub until: Instant,
}

impl Store {
    /// Claims due deliveries; see [`fieldpost_delivery::Store::claim_due`].
    pub(super) async fn claim_deliveries(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> sqlx::Result<Vec<Claim>> {
        let claimed_until = now + TimeDelta::from_std(lease).unwrap_or(TimeDelta::hours(1));
        let rows = sqlx::query!(
            r#"
            with candidate as materialized (
                -- Twice as many as are wanted: others may be claiming the first of them this moment.
                select o.message_id, o.sender, o.recipient
                from unnest($3::text[]) as reachable (target)
                cross join unnest(array[0, 1, 2, 3]::smallint[]) as urgency (priority)
                cross join lateral (
                    select message_id, sender, recipient, priority, next_attempt_at
                    from outbox o
                    where o.target = reachable.target and o.priority = urgency.priority
                      and next_attempt_at <= $1 and expires_at > $1
                      -- A phone is its own target. It cannot put messages in order, so it gets the
                      -- next one of a lane when the last has ended, or is a file, which no phone
                      -- confirms.
                      and (target <> recipient or lane_seq is null or not exists (
                          select from outbox p
                          where p.sender = o.sender and p.recipient = o.recipient
                            and p.level = o.level and p.lane_seq < o.lane_seq
                            and p.expires_at > $1 and p.stage < 2
                      ))
                    order by next_attempt_at
                    limit 2 * $4::bigint
                ) as o
                order by o.priority desc, o.next_attempt_at
                limit 2 * $4::bigint
            ), due as materialized (
                select o.message_id, o.sender, o.recipient, o.size_bytes, o.priority,
                       o.next_attempt_at
                from candidate c
                join outbox o
                    on (o.message_id, o.sender, o.recipient) = (c.message_id, c.sender, c.recipient)
                where o.next_attempt_at <= $1
                order by o.priority desc, o.next_attempt_at
                limit $4
                for update of o skip locked
            ), fitting as (
                select message_id, sender, recipient,
                       sum(size_bytes) over (
                           order by priority desc, next_attempt_at, message_id, sender, recipient
                       ) - size_bytes as bytes_before
                from due
            ), claimed as (
                update outbox o
                set next_attempt_at = $2, attempts = o.attempts + 1, claimed = true,
                    -- A claim of which nothing was recorded may have sent it.
                    has_left = o.has_left or o.claimed
                from fitting f
                where (o.message_id, o.sender, o.recipient) = (f.message_id, f.sender, f.recipient)
                  and f.bytes_before < $5
                returning o.*
            )
            select c.recipient, c.attempts, c.lane_seq, (
                       select max(p.lane_seq) from outbox p
                       where p.sender = c.sender and p.recipient = c.recipient
                         and p.level = c.level and p.lane_seq < c.lane_seq and p.expires_at > $1
                   ) as after_seq,
                   m.accepted_at, m.message_id, m.sender, m.addressed_to, m.expires_at, m.priority,
                   m.min_anonymity, m.is_text, m.sealed
            from claimed c
            join message m
                on (m.conversation, m.accepted_at, m.message_id, m.sender)
                 = (c.conversation, c.accepted_at, c.message_id, c.sender)
            order by c.priority desc, c.accepted_at
            "#,
            now,
            claimed_until,
            reachable,
            i64::try_from(limit).unwrap_or(i64::MAX).min(i64::MAX / 2),
            CLAIM_BYTES as i64,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut claims = Vec::with_capacity(rows.len());
        for row in rows {
            let sealed = Sealed {
                accepted_at: row.accepted_at,
                message_id: row.message_id,
                sender: row.sender,
                addressed_to: row.addressed_to,
                expires_at: row.expires_at,
                priority: row.priority,
                min_anonymity: row.min_anonymity,
                is_text: row.is_text,
                sealed: row.sealed,
            };
            claims.push(Claim {
                accepted_at: row.accepted_at,
                message: self.unseal(sealed).await?.0,
                target: target(&row.recipient)?,
                attempt: row.attempts.unsigned_abs(),
                lane_seq: row.lane_seq.map(lane),
                after: row.after_seq.map(lane),
                claimed_until,
            });
        }
        Ok(claims)
    }

    /// Makes due what a process that has ended had claimed, which no other can have: its claims end
    /// with it. What it may have sent counts as having left all the same. Returns how much.
    pub async fn release_claims(&self, now: Time) -> sqlx::Result<u64> {
        sqlx::query!(
            r#"
            update outbox set next_attempt_at = $1
            where claimed and stage < 2 and next_attempt_at > $1
            "#,
            now,
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
    }

    /// Gives up what was claimed as it was accepted, though nobody heard of it: it comes due.
    pub async fn give_up_doubted(&self, now: Time, doubted: &[Doubted]) -> sqlx::Result<u64> {
        sqlx::query!(
            r#"
            update outbox o set next_attempt_at = $1, claimed = false
            from unnest($2::uuid[], $3::text[], $4::timestamptz[])
                as doubted (message_id, sender, claimed_until)
            where (o.message_id, o.sender) = (doubted.message_id, doubted.sender)
              and o.claimed and o.attempts = 1 and o.stage = 0
              and o.next_attempt_at = doubted.claimed_until
            "#,
            now,
            &doubted.iter().map(|one| one.id.0).collect::<Vec<_>>(),
            &doubted.iter().map(|one| one.sender.to_string()).collect::<Vec<_>>(),
            &doubted.iter().map(|one| one.claimed_until).collect::<Vec<_>>(),
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
    }

    /// Makes due what waits for `targets`; see [`fieldpost_delivery::Store::reached`].
    pub(super) async fn wake_targets(&self, now: Time, targets: &[String]) -> sqlx::Result<u64> {
        let (mut waking, mut woken) = (Waking::new(now, targets.iter().cloned()), 0);
        while !waking.is_over() {
            woken += self.wake_some(&mut waking).await?;
        }
        Ok(woken)
    }

    /// Makes some of it due: the next in turn, so that those can leave while the others still wait.
    /// Returns how many.
    pub async fn wake_some(&self, waking: &mut Waking) -> sqlx::Result<u64> {
        let targets: Vec<String> = waking.targets.iter().cloned().collect();
        let woken = sqlx::query!(
            r#"
            with next as (
                select message_id, sender, recipient, row_number() over (
                    partition by sender, recipient, level order by accepted_at
                ) as place
                from outbox
                where target = any($3) and not claimed
                  and (stage in (0, 1) and next_attempt_at is null
                       or stage = 0 and next_attempt_at > $1 and accepted_at <= $2)
                order by place, message_id
                limit $4
            ), woken as (
                -- What has been due for longer stays ahead.
                update outbox o
                set waits_for = null, next_attempt_at = least(
                    o.next_attempt_at, $2, $1::timestamptz + interval '1 microsecond' * n.place
                )
                from next n
                where (o.message_id, o.sender, o.recipient) = (n.message_id, n.sender, n.recipient)
                  and o.stage < 2 and not o.claimed
                returning 1
            )
            select count(*) as "found!", max(place) as last, (select count(*) from woken) as "woken!"
            from next
            "#,
            waking.after,
            waking.until,
            &targets,
            waking.slice,
        )
        .fetch_one(&self.pool)
        .await?;
        if woken.found < waking.slice {
            waking.targets.clear();
        }
        waking.slice = waking.slice.saturating_mul(2);
        let places = TimeDelta::microseconds(woken.last.unwrap_or(0));
        waking.after = (waking.after + places).min(waking.until);
        Ok(woken.woken.unsigned_abs())
    }

    /// Claims receipts that are due; see [`fieldpost_delivery::Store::claim_receipts`].
    pub(super) async fn claim_due_receipts(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> sqlx::Result<Vec<ReceiptOut>> {
        let rows = sqlx::query!(
            r#"
            update receipt r
            set next_attempt_at = $2, attempts = r.attempts + 1
            from (
                select digest, kind from receipt
                where gateway = any($3) and next_attempt_at <= $1 and expires_at > $1
                order by next_attempt_at
                limit $4
                for update skip locked
            ) due
            where (r.digest, r.kind) = (due.digest, due.kind)
            returning r.digest, r.kind, r.gateway, r.at, r.reason, r.level, r.attempts
            "#,
            now,
            now + TimeDelta::from_std(lease).unwrap_or(TimeDelta::hours(1)),
            reachable,
            i64::try_from(limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(ReceiptOut {
                    envelope: row
                        .digest
                        .try_into()
                        .map_err(|_| sqlx::Error::Decode("a digest has 32 bytes".into()))?,
                    gateway: words::parse(&row.gateway)?,
                    kind: words::receipt_kind(&row.kind)?,
                    at: row.at,
                    reason: row.reason,
                    level: words::level(row.level)?,
                    attempt: row.attempts.unsigned_abs(),
                })
            })
            .collect()
    }

    /// When there is work again; see [`fieldpost_delivery::Store::next_due`].
    pub(super) async fn next_due_time(&self) -> sqlx::Result<Option<Time>> {
        sqlx::query_scalar!(
            r#"
            select least(
                (select min(expires_at) from inbox), (select min(expires_at) from outbox),
                (select min(next_attempt_at) from outbox),
                (select min(release_at) from inbound where release_at is not null)
            )
            "#
        )
        .fetch_one(&self.pool)
        .await
    }

    /// Takes or renews leases on what this replica reaches over `transport`.
    pub async fn hold_reach(
        &self,
        replica: Uuid,
        transport: &str,
        targets: &[String],
        until: Time,
    ) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            insert into reach (replica, transport, target, kind, quality, expires_at)
            select $1, $2, target, 'link', 1.0, $4 from unnest($3::text[]) as target
            on conflict (replica, transport, target) do update set expires_at = excluded.expires_at
            "#,
            replica,
            transport,
            targets,
            until,
        )
        .execute(&self.pool)
        .await?;
        sqlx::query!(
            r#"
            delete from reach
            where replica = $1 and transport = $2 and not target = any($3)
            "#,
            replica,
            transport,
            targets,
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }
}

/// Names one delivery in every table.
#[derive(Clone)]
pub(super) struct DeliveryName {
    pub(super) message_id: Uuid,
    pub(super) sender: String,
    pub(super) recipient: String,
    pub(super) accepted_at: Time,
}

impl DeliveryName {
    pub(super) fn of(claim: &Claim) -> Self {
        Self {
            message_id: claim.message.id.0,
            sender: claim.message.sender.to_string(),
            recipient: claim.target.recipient(),
            accepted_at: claim.accepted_at,
        }
    }

    pub(super) fn key(&self) -> (Uuid, String, String) {
        (self.message_id, self.sender.clone(), self.recipient.clone())
    }
}

/// A place in a lane, as the database has it.
pub(super) fn lane(number: i64) -> LaneSeq {
    LaneSeq(number.unsigned_abs())
}
