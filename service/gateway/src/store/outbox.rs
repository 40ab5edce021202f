//! Deliveries owed elsewhere: claims, attempts, receipts in and out, and what can be reached.

use std::time::Duration;

use chrono::TimeDelta;
use fieldpost_delivery::{
    Attempt, AttemptResult, Claim, Effect, Next, ReceiptIn, ReceiptOut, Settled, Standing, Time,
    effect, signer_of,
};
use fieldpost_envelope::{LaneSeq, MessageId, MessageStatus};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::store::{
    Store,
    messages::{Sealed, target},
    words,
};

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
            with due as (
                select message_id, sender, recipient
                from outbox o
                where target = any($3) and next_attempt_at <= $1 and expires_at > $1
                  -- A phone is its own target. It cannot put messages in order, so it gets the next
                  -- one of a lane when the last has ended.
                  and (target <> recipient or lane_seq is null or not exists (
                      select from outbox p
                      where p.sender = o.sender and p.recipient = o.recipient
                        and p.level = o.level and p.lane_seq < o.lane_seq and p.expires_at > $1
                  ))
                order by priority desc, next_attempt_at
                limit $4
                for update skip locked
            ), claimed as (
                update outbox o
                set next_attempt_at = $2, attempts = o.attempts + 1, claimed = true
                from due
                where (o.message_id, o.sender, o.recipient)
                    = (due.message_id, due.sender, due.recipient)
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
            i64::try_from(limit).unwrap_or(i64::MAX),
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
                message: self.unseal(sealed).await?,
                target: target(&row.recipient)?,
                attempt: row.attempts.unsigned_abs(),
                lane_seq: row.lane_seq.map(lane),
                after: row.after_seq.map(lane),
                claimed_until,
            });
        }
        Ok(claims)
    }

    /// An envelope of a claimed delivery is about to leave, over `transport` first. From then on
    /// receipts for it are understood, even if this process never records that it left.
    pub async fn envelope_leaves(
        &self,
        claim: &Claim,
        digest: &[u8; 32],
        transport: &str,
    ) -> sqlx::Result<()> {
        let level = words::level_number(claim.message.min_anonymity);
        let mut connection = self.pool.acquire().await?;
        Delivery::of(claim).insert_envelope(&mut connection, digest, transport, level).await
    }

    /// Records an attempt and what follows; see [`fieldpost_delivery::Store::record`].
    pub(super) async fn record_attempts(
        &self,
        now: Time,
        claim: &Claim,
        attempts: &[Attempt],
        next: &Next,
    ) -> sqlx::Result<Option<Settled>> {
        let delivery = Delivery::of(claim);
        let mut transaction = self.pool.begin().await?;
        for attempt in attempts {
            delivery.insert_attempt(&mut transaction, attempt).await?;
        }
        if let Next::Sent { envelope, .. } = next {
            let transport = attempts.last().map_or("", |attempt| attempt.transport.as_str());
            let level = words::level_number(claim.message.min_anonymity);
            delivery.insert_envelope(&mut transaction, envelope, transport, level).await?;
        }
        // Whoever has claimed it since says when it is due again.
        let newest = i32::try_from(claim.attempt).unwrap_or(i32::MAX);
        let settled = match (delivery.owed(&mut transaction).await?, next) {
            // It has ended, or its recipient's gateway has it: nothing follows.
            (None | Some(Owed { stage: 2, .. }), _) => None,
            (Some(owed), Next::Sent { retry_at, .. }) => {
                let due = (owed.attempts == newest).then_some(*retry_at).or(owed.next_attempt_at);
                delivery.schedule(&mut transaction, claim.attempt, 1, due, None).await?;
                None
            }
            (Some(owed), Next::Retry { .. } | Next::Wait { .. }) if owed.attempts != newest => None,
            (Some(_), Next::Retry { at }) => {
                delivery.schedule(&mut transaction, claim.attempt, 0, Some(*at), None).await?;
                None
            }
            (Some(_), Next::Wait { reason }) => {
                delivery.schedule(&mut transaction, claim.attempt, 0, None, Some(reason)).await?;
                None
            }
            (Some(_), Next::End { status, reason }) => {
                delivery.end(&mut transaction, now, *status, reason.as_deref()).await?
            }
        };
        transaction.commit().await?;
        Ok(settled)
    }

    /// Makes due what waits for `targets`; see [`fieldpost_delivery::Store::reached`].
    pub(super) async fn wake_targets(&self, now: Time, targets: &[String]) -> sqlx::Result<u64> {
        sqlx::query!(
            r#"
            update outbox set next_attempt_at = $1, waits_for = null
            where target = any($2) and stage < 2 and not claimed
              and (next_attempt_at is null or stage = 0 and next_attempt_at > $1)
            "#,
            now,
            targets,
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
    }

    /// Applies a receipt; see [`fieldpost_delivery::Store::settle`].
    pub(super) async fn settle_receipt(
        &self,
        now: Time,
        receipt: &ReceiptIn,
    ) -> sqlx::Result<Option<Settled>> {
        let mut transaction = self.pool.begin().await?;
        let Some(delivery) = sqlx::query_as!(
            Delivery,
            r#"
            select message_id, sender, recipient, accepted_at from envelope where digest = $1
            "#,
            receipt.envelope.as_slice(),
        )
        .fetch_optional(&mut *transaction)
        .await?
        else {
            return Ok(None);
        };
        let to = target(&delivery.recipient)?;
        if signer_of(&to) != Some(receipt.signer) {
            tracing::warn!(gateway.id = %receipt.signer, "receipt for somebody else's envelope");
            return Ok(None);
        }
        let Some(standing) = delivery.standing(&mut transaction).await? else {
            return Ok(None);
        };
        let at = receipt.at.min(now);
        let settled = match effect(standing, &to, receipt) {
            None => None,
            Some(Effect::Stored) => {
                delivery.stored(&mut transaction, now, receipt.envelope.as_slice()).await?;
                None
            }
            Some(Effect::Ends { status, reason }) => {
                delivery.end(&mut transaction, at, status, reason.as_deref()).await?
            }
        };
        transaction.commit().await?;
        Ok(settled)
    }

    /// Claims receipts that are due; see [`fieldpost_delivery::Store::claim_receipts`].
    pub(super) async fn claim_due_receipts(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> sqlx::Result<Vec<ReceiptOut>> {
        sqlx::query!("delete from receipt where expires_at <= $1", now).execute(&self.pool).await?;
        let rows = sqlx::query!(
            r#"
            update receipt r
            set next_attempt_at = $2, attempts = r.attempts + 1
            from (
                select digest, kind from receipt
                where gateway = any($3) and next_attempt_at <= $1
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

    /// Ends or puts off a receipt; see [`fieldpost_delivery::Store::receipt_done`].
    pub(super) async fn finish_receipt(
        &self,
        receipt: &ReceiptOut,
        retry_at: Option<Time>,
    ) -> sqlx::Result<()> {
        match retry_at {
            Some(at) => sqlx::query!(
                "update receipt set next_attempt_at = $3 where digest = $1 and kind = $2",
                receipt.envelope.as_slice(),
                receipt.kind.as_str(),
                at,
            ),
            None => sqlx::query!(
                "delete from receipt where digest = $1 and kind = $2",
                receipt.envelope.as_slice(),
                receipt.kind.as_str(),
            ),
        }
        .execute(&self.pool)
        .await
        .map(drop)
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
struct Delivery {
    message_id: Uuid,
    sender: String,
    recipient: String,
    accepted_at: Time,
}

/// A delivery in the queue.
struct Owed {
    stage: i16,
    attempts: i32,
    next_attempt_at: Option<Time>,
}

impl Delivery {
    fn of(claim: &Claim) -> Self {
        Self {
            message_id: claim.message.id.0,
            sender: claim.message.sender.to_string(),
            recipient: claim.target.recipient(),
            accepted_at: claim.accepted_at,
        }
    }

    /// Where it stands, locked if it is still owed.
    async fn standing(&self, connection: &mut PgConnection) -> sqlx::Result<Option<Standing>> {
        let stage = sqlx::query_scalar!(
            r#"
            select stage from outbox
            where message_id = $1 and sender = $2 and recipient = $3 for update
            "#,
            self.message_id,
            self.sender,
            self.recipient,
        )
        .fetch_optional(&mut *connection)
        .await?;
        let status = match stage {
            Some(0) => MessageStatus::Pending,
            Some(_) => MessageStatus::Sent,
            None => {
                let ended = sqlx::query_scalar!(
                    r#"
                    select status from delivery
                    where message_id = $1 and sender = $2 and recipient = $3 and accepted_at = $4
                    for update
                    "#,
                    self.message_id,
                    self.sender,
                    self.recipient,
                    self.accepted_at,
                )
                .fetch_optional(connection)
                .await?;
                match ended {
                    Some(status) => words::status(&status)?,
                    None => return Ok(None),
                }
            }
        };
        Ok(Some(Standing { status, stored: stage == Some(2) }))
    }

    /// What the queue says of it, locked; `None` when it has ended.
    async fn owed(&self, connection: &mut PgConnection) -> sqlx::Result<Option<Owed>> {
        sqlx::query_as!(
            Owed,
            r#"
            select stage, attempts, next_attempt_at from outbox
            where message_id = $1 and sender = $2 and recipient = $3 for update
            "#,
            self.message_id,
            self.sender,
            self.recipient,
        )
        .fetch_optional(connection)
        .await
    }

    async fn schedule(
        &self,
        connection: &mut PgConnection,
        attempt: u32,
        stage: i16,
        at: Option<Time>,
        waits_for: Option<&str>,
    ) -> sqlx::Result<()> {
        // `stored` may have come while the attempt was under way; it stays. So does a newer claim,
        // whose holder may be sending at this moment.
        sqlx::query!(
            r#"
            update outbox
            set waits_for = $6, has_left = has_left or $4::smallint > 0,
                claimed = claimed and attempts <> $7,
                stage = case when stage = 2 then 2 when attempts = $7 then $4::smallint
                             else greatest(stage, $4::smallint) end,
                next_attempt_at = case when stage = 2 then null when attempts = $7
                                       then $5::timestamptz else next_attempt_at end
            where message_id = $1 and sender = $2 and recipient = $3
            "#,
            self.message_id,
            self.sender,
            self.recipient,
            stage,
            at,
            waits_for,
            i32::try_from(attempt).unwrap_or(i32::MAX),
        )
        .execute(connection)
        .await
        .map(drop)
    }

    /// The recipient's gateway has it: retries end, the wait for `delivered` goes on.
    async fn stored(
        &self,
        connection: &mut PgConnection,
        at: Time,
        digest: &[u8],
    ) -> sqlx::Result<()> {
        let changed = sqlx::query!(
            r#"
            update outbox
            set stage = 2, next_attempt_at = null, waits_for = null, claimed = false
            where message_id = $1 and sender = $2 and recipient = $3 and stage < 2
            "#,
            self.message_id,
            self.sender,
            self.recipient,
        )
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if changed == 0 {
            return Ok(());
        }
        // A process that died may have sent it without recording the attempt.
        let transport = sqlx::query_scalar!(
            r#"
            select transport as "transport!" from (
                (select transport, started_at from attempt
                 where accepted_at = $4 and message_id = $1 and sender = $2 and recipient = $3
                   and result = 'sent'
                 order by started_at desc limit 1)
                union all
                select transport, '-infinity' from envelope where digest = $5
            ) as known
            order by started_at desc limit 1
            "#,
            self.message_id,
            self.sender,
            self.recipient,
            self.accepted_at,
            digest,
        )
        .fetch_optional(&mut *connection)
        .await?;
        let attempt = Attempt {
            transport: transport.unwrap_or_default(),
            started_at: at,
            result: AttemptResult::Stored,
            reason: None,
        };
        self.insert_attempt(connection, &attempt).await
    }

    /// Moves it to history, or corrects how it ended there.
    async fn end(
        &self,
        connection: &mut PgConnection,
        at: Time,
        status: MessageStatus,
        reason: Option<&str>,
    ) -> sqlx::Result<Option<Settled>> {
        sqlx::query!(
            "delete from outbox where message_id = $1 and sender = $2 and recipient = $3",
            self.message_id,
            self.sender,
            self.recipient,
        )
        .execute(&mut *connection)
        .await?;
        let delivered = matches!(status, MessageStatus::Delivered | MessageStatus::Read);
        sqlx::query!(
            r#"
            insert into delivery (
                accepted_at, message_id, sender, recipient, status, at, delivered_at, reason
            ) values ($1, $2, $3, $4, $5, $6::timestamptz, case when $7::boolean then $6::timestamptz end, $8)
            on conflict (message_id, sender, recipient, accepted_at) do update
            set status = excluded.status, at = excluded.at, reason = excluded.reason,
                delivered_at = coalesce(delivery.delivered_at, excluded.delivered_at)
            "#,
            self.accepted_at,
            self.message_id,
            self.sender,
            self.recipient,
            status.as_str(),
            at,
            delivered,
            reason,
        )
        .execute(connection)
        .await?;
        Ok(Some(Settled {
            id: MessageId(self.message_id),
            sender: words::parse(&self.sender)?,
            recipient: self.recipient.clone(),
            status,
            at,
            reason: reason.map(ToOwned::to_owned),
        }))
    }

    async fn insert_attempt(
        &self,
        connection: &mut PgConnection,
        attempt: &Attempt,
    ) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            insert into attempt (
                accepted_at, message_id, sender, recipient, transport, started_at, result, reason
            ) values ($1, $2, $3, $4, $5, $6, $7, $8)
            "#,
            self.accepted_at,
            self.message_id,
            self.sender,
            self.recipient,
            attempt.transport,
            attempt.started_at,
            words::attempt_word(attempt.result),
            attempt.reason,
        )
        .execute(connection)
        .await
        .map(drop)
    }

    async fn insert_envelope(
        &self,
        connection: &mut PgConnection,
        digest: &[u8; 32],
        transport: &str,
        level: i16,
    ) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            insert into envelope (
                digest, message_id, sender, recipient, accepted_at, transport, level
            ) values ($1, $2, $3, $4, $5, $6, $7)
            on conflict do nothing
            "#,
            digest.as_slice(),
            self.message_id,
            self.sender,
            self.recipient,
            self.accepted_at,
            transport,
            level,
        )
        .execute(connection)
        .await
        .map(drop)
    }
}

fn lane(number: i64) -> LaneSeq {
    LaneSeq(number.unsigned_abs())
}
