//! Recording how deliveries elsewhere fare: many at a time, as they come in crowds.

use std::time::Duration;

use fieldpost_delivery::{Attempt, Claim, Next, Settled, Time};
use fieldpost_envelope::MessageStatus;
use uuid::Uuid;

use crate::store::{
    Store,
    batches::{Question, SLOW},
    inbox::settled,
    outbox::DeliveryName,
    warm::WarmConnections,
    words,
};

/// That an envelope of a claimed delivery is about to leave.
#[derive(Clone)]
pub(super) struct Leaving {
    delivery: DeliveryName,
    digest: [u8; 32],
    transport: String,
    level: i16,
}

impl Question for Leaving {
    type Key = [u8; 32];
    const TOGETHER: usize = 512;
    const SECOND_AFTER: Duration = SLOW;

    fn key(&self) -> [u8; 32] {
        self.digest
    }
}

/// What an attempt came to, and what follows.
#[derive(Clone)]
pub(super) struct Step {
    now: Time,
    delivery: DeliveryName,
    level: i16,
    /// Which claim it was made under.
    attempt: i32,
    attempts: Vec<Attempt>,
    next: Next,
}

impl Question for Step {
    type Key = (Uuid, String, String);
    const TOGETHER: usize = 512;
    const SECOND_AFTER: Duration = SLOW;

    fn key(&self) -> Self::Key {
        let DeliveryName { message_id, sender, recipient, .. } = &self.delivery;
        (*message_id, sender.clone(), recipient.clone())
    }
}

/// That an envelope left, and that the recipient's gateway has it.
#[derive(Clone)]
pub(super) struct Arrived {
    now: Time,
    delivery: DeliveryName,
    attempts: Vec<Attempt>,
}

impl Question for Arrived {
    type Key = (Uuid, String, String);
    const TOGETHER: usize = 512;
    const SECOND_AFTER: Duration = SLOW;

    fn key(&self) -> Self::Key {
        self.delivery.key()
    }
}

/// That an envelope left, and that the recipient has the message.
#[derive(Clone)]
pub(super) struct Delivered {
    now: Time,
    delivery: DeliveryName,
    attempts: Vec<Attempt>,
    status: MessageStatus,
    at: Time,
}

impl Question for Delivered {
    type Key = (Uuid, String, String);
    const TOGETHER: usize = 512;
    const SECOND_AFTER: Duration = SLOW;

    fn key(&self) -> Self::Key {
        self.delivery.key()
    }
}

impl Store {
    /// An envelope of a claimed delivery is about to leave, over `transport` first. From then on
    /// receipts for it are understood, even if this process never records that it left.
    pub async fn envelope_leaves(
        &self,
        claim: &Claim,
        digest: &[u8; 32],
        transport: &str,
    ) -> sqlx::Result<()> {
        let leaving = Leaving {
            delivery: DeliveryName::of(claim),
            digest: *digest,
            transport: transport.to_owned(),
            level: words::level_number(claim.message.min_anonymity),
        };
        let warm = self.warm.clone();
        self.leaving.ask(leaving, move |leaving| note_envelopes(warm.clone(), leaving)).await
    }

    /// Records in one that a claimed delivery has left, by the last of `attempts`, and that the
    /// recipient's gateway has it: as [`fieldpost_delivery::Store::record`] and
    /// [`fieldpost_delivery::Store::settle`] do one after the other. Its envelope has been noted when
    /// it left, and the receipt was signed by that gateway.
    pub async fn record_arrival(
        &self,
        now: Time,
        claim: &Claim,
        attempts: &[Attempt],
    ) -> sqlx::Result<()> {
        let delivery = DeliveryName::of(claim);
        let arrived = Arrived { now, delivery, attempts: attempts.to_vec() };
        let warm = self.warm.clone();
        self.arrived.ask(arrived, move |arrived| record_arrivals(warm.clone(), arrived)).await
    }

    /// Records in one that a claimed delivery has left, by the last of `attempts`, that the recipient's
    /// gateway has it, and that it ended at `at` as `delivered` or `read`: as
    /// [`record_arrival`](Self::record_arrival) and [`take_receipt`](Self::take_receipt) do one after
    /// the other. `None`, and nothing is recorded, if it is owed no more or had arrived before.
    pub async fn record_delivered(
        &self,
        now: Time,
        claim: &Claim,
        attempts: &[Attempt],
        status: MessageStatus,
        at: Time,
    ) -> sqlx::Result<Option<Settled>> {
        let delivery = DeliveryName::of(claim);
        let delivered = Delivered { now, delivery, attempts: attempts.to_vec(), status, at };
        let warm = self.warm.clone();
        self.delivered.ask(delivered, move |all| record_delivered(warm.clone(), all)).await
    }

    /// Records an attempt and what follows; see [`fieldpost_delivery::Store::record`].
    pub(super) async fn record_attempts(
        &self,
        now: Time,
        claim: &Claim,
        attempts: &[Attempt],
        next: &Next,
    ) -> sqlx::Result<Option<Settled>> {
        let step = Step {
            now,
            delivery: DeliveryName::of(claim),
            level: words::level_number(claim.message.min_anonymity),
            attempt: i32::try_from(claim.attempt).unwrap_or(i32::MAX),
            attempts: attempts.to_vec(),
            next: next.clone(),
        };
        let warm = self.warm.clone();
        self.steps.ask(step, move |steps| record_each(warm.clone(), steps)).await
    }
}

async fn note_envelopes(warm: WarmConnections, leaving: Vec<Leaving>) -> sqlx::Result<Vec<()>> {
    let count = leaving.len();
    let mut envelopes = Envelopes::default();
    for Leaving { delivery, digest, transport, level } in leaving {
        envelopes.push(&delivery, &digest, transport, level);
    }
    let mut connection = warm.take().await?;
    sqlx::query!(
        r#"
        insert into envelope (
            digest, message_id, sender, recipient, accepted_at, transport, level
        )
        select * from unnest(
            $1::bytea[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[], $6::text[],
            $7::smallint[]
        )
        on conflict do nothing
        "#,
        &envelopes.digest,
        &envelopes.message_id,
        &envelopes.sender,
        &envelopes.recipient,
        &envelopes.accepted_at,
        &envelopes.transport,
        &envelopes.level,
    )
    .execute(&mut *connection)
    .await?;
    connection.keep();
    Ok(vec![(); count])
}

async fn record_arrivals(warm: WarmConnections, arrived: Vec<Arrived>) -> sqlx::Result<Vec<()>> {
    let mut tried = Tried::default();
    for Arrived { delivery, attempts, .. } in &arrived {
        attempts.iter().for_each(|attempt| tried.push(delivery, attempt));
    }
    let last = |arrived: &Arrived| arrived.attempts.last().map(|last| last.transport.clone());
    let names = arrived.iter().map(|arrived| &arrived.delivery);
    let mut connection = warm.take().await?;
    sqlx::query!(
        r#"
        with arrived as (
            select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
                as arrived (message_id, sender, recipient, transport, at)
        ), held as (
            update outbox o
            set stage = 2, next_attempt_at = null, waits_for = null, claimed = false,
                has_left = true
            from arrived a
            where (o.message_id, o.sender, o.recipient) = (a.message_id, a.sender, a.recipient)
              and o.stage < 2
            returning o.accepted_at, o.message_id, o.sender, o.recipient, a.transport, a.at
        )
        insert into attempt (
            accepted_at, message_id, sender, recipient, transport, started_at, result, reason, hops
        )
        select * from unnest(
            $6::timestamptz[], $7::uuid[], $8::text[], $9::text[], $10::text[], $11::timestamptz[],
            $12::text[], $13::text[], $14::smallint[]
        )
        union all
        select accepted_at, message_id, sender, recipient, transport, at, 'stored', null, null
        from held
        "#,
        &names.clone().map(|name| name.message_id).collect::<Vec<_>>(),
        &names.clone().map(|name| name.sender.clone()).collect::<Vec<_>>(),
        &names.map(|name| name.recipient.clone()).collect::<Vec<_>>(),
        &arrived.iter().map(|one| last(one).unwrap_or_default()).collect::<Vec<_>>(),
        &arrived.iter().map(|arrived| arrived.now).collect::<Vec<_>>(),
        &tried.accepted_at,
        &tried.message_id,
        &tried.sender,
        &tried.recipient,
        &tried.transport,
        &tried.started_at,
        &tried.result,
        &tried.reason as &[Option<String>],
        &tried.hops as &[Option<i16>],
    )
    .execute(&mut *connection)
    .await?;
    connection.keep();
    Ok(vec![(); arrived.len()])
}

async fn record_delivered(
    warm: WarmConnections,
    delivered: Vec<Delivered>,
) -> sqlx::Result<Vec<Option<Settled>>> {
    let (mut tried, mut tried_for) = (Tried::default(), Vec::new());
    for (number, Delivered { delivery, attempts, .. }) in (1_i64..).zip(&delivered) {
        for attempt in attempts {
            tried.push(delivery, attempt);
            tried_for.push(number);
        }
    }
    let last = |one: &Delivered| one.attempts.last().map(|last| last.transport.clone());
    let names = delivered.iter().map(|one| &one.delivery);
    let mut connection = warm.take().await?;
    let ended = sqlx::query_scalar!(
        r#"
        with delivered as (
            select * from unnest(
                $1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[],
                $7::timestamptz[]
            ) with ordinality as delivered (
                message_id, sender, recipient, status, at, transport, heard_at, number
            )
        ), gone as (
            delete from outbox o
            using delivered d
            where (o.message_id, o.sender, o.recipient) = (d.message_id, d.sender, d.recipient)
              and o.stage < 2
            returning d.number, o.accepted_at, o.message_id, o.sender, o.recipient, d.status, d.at,
                      d.transport, d.heard_at
        ), tried as (
            insert into attempt (
                accepted_at, message_id, sender, recipient, transport, started_at, result, reason,
                hops
            )
            select g.accepted_at, g.message_id, g.sender, g.recipient, t.transport, t.started_at,
                   t.result, t.reason, t.hops
            from unnest(
                $8::bigint[], $9::text[], $10::timestamptz[], $11::text[], $12::text[],
                $13::smallint[]
            ) as t (number, transport, started_at, result, reason, hops)
            join gone g using (number)
            union all
            select accepted_at, message_id, sender, recipient, transport, heard_at, 'stored', null,
                   null
            from gone
        ), ended as (
            insert into delivery (
                accepted_at, message_id, sender, recipient, status, at, delivered_at
            )
            select accepted_at, message_id, sender, recipient, status, at, at from gone
            on conflict (message_id, sender, recipient, accepted_at) do update
            set status = excluded.status, at = excluded.at, reason = excluded.reason,
                delivered_at = coalesce(delivery.delivered_at, excluded.delivered_at)
        )
        select number as "number!" from gone
        "#,
        &names.clone().map(|name| name.message_id).collect::<Vec<_>>(),
        &names.clone().map(|name| name.sender.clone()).collect::<Vec<_>>(),
        &names.map(|name| name.recipient.clone()).collect::<Vec<_>>(),
        &delivered.iter().map(|one| one.status.as_str().to_owned()).collect::<Vec<_>>(),
        &delivered.iter().map(|one| one.at).collect::<Vec<_>>(),
        &delivered.iter().map(|one| last(one).unwrap_or_default()).collect::<Vec<_>>(),
        &delivered.iter().map(|one| one.now).collect::<Vec<_>>(),
        &tried_for,
        &tried.transport,
        &tried.started_at,
        &tried.result,
        &tried.reason as &[Option<String>],
        &tried.hops as &[Option<i16>],
    )
    .fetch_all(&mut *connection)
    .await?;
    connection.keep();
    let mut answers: Vec<Option<Settled>> = delivered.iter().map(|_| None).collect();
    for number in ended {
        let number = number as usize - 1;
        let Delivered { delivery, status, at, .. } = &delivered[number];
        let DeliveryName { message_id, sender, recipient, .. } = delivery;
        answers[number] = Some(settled(*message_id, sender, recipient.clone(), *status, *at)?);
    }
    Ok(answers)
}

/// Records many steps of as many deliveries.
///
/// A delivery that has ended, or that its recipient's gateway has, takes none. Whoever has claimed
/// one since says when it is due again.
async fn record_each(
    warm: WarmConnections,
    steps: Vec<Step>,
) -> sqlx::Result<Vec<Option<Settled>>> {
    let now = steps.iter().map(|step| step.now).max().unwrap_or_default();
    let (mut rows, mut tried, mut left) = (Rows::default(), Tried::default(), Envelopes::default());
    for step in &steps {
        rows.push(step);
        step.attempts.iter().for_each(|attempt| tried.push(&step.delivery, attempt));
        if let Next::Sent { envelope, .. } = &step.next {
            let transport = step.attempts.last().map(|attempt| attempt.transport.clone());
            left.push(&step.delivery, envelope, transport.unwrap_or_default(), step.level);
        }
    }
    let mut connection = warm.take().await?;
    let ended = sqlx::query!(
        r#"
        with step as (
            select * from unnest(
                $1::uuid[], $2::text[], $3::text[], $4::integer[], $5::smallint[],
                $6::timestamptz[], $7::text[], $8::text[]
            ) with ordinality as step (
                message_id, sender, recipient, attempt, stage, at, reason, status, number
            )
        ), tried as (
            insert into attempt (
                accepted_at, message_id, sender, recipient, transport, started_at, result, reason,
                hops
            )
            select * from unnest(
                $9::timestamptz[], $10::uuid[], $11::text[], $12::text[], $13::text[],
                $14::timestamptz[], $15::text[], $16::text[], $25::smallint[]
            )
        ), noted as (
            insert into envelope (
                digest, message_id, sender, recipient, accepted_at, transport, level
            )
            select * from unnest(
                $17::bytea[], $18::uuid[], $19::text[], $20::text[], $21::timestamptz[],
                $22::text[], $23::smallint[]
            )
            on conflict do nothing
        ), scheduled as (
            update outbox o
            set waits_for = s.reason, has_left = o.has_left or s.stage > 0,
                claimed = o.claimed and o.attempts <> s.attempt,
                stage = case when o.attempts = s.attempt then s.stage
                             else greatest(o.stage, s.stage) end,
                next_attempt_at = case when o.attempts = s.attempt then s.at
                                       else o.next_attempt_at end
            from step s
            where (o.message_id, o.sender, o.recipient) = (s.message_id, s.sender, s.recipient)
              and o.stage < 2 and s.status is null and (s.stage > 0 or o.attempts = s.attempt)
        ), over as (
            delete from outbox o using step s
            where (o.message_id, o.sender, o.recipient) = (s.message_id, s.sender, s.recipient)
              and o.stage < 2 and s.status is not null
            returning s.number, o.accepted_at, o.message_id, o.sender, o.recipient, s.status,
                      s.reason
        ), ended as (
            insert into delivery (
                accepted_at, message_id, sender, recipient, status, at, delivered_at, reason
            )
            select accepted_at, message_id, sender, recipient, status, $24::timestamptz,
                   case when status in ('delivered', 'read') then $24::timestamptz end, reason
            from over
            on conflict (message_id, sender, recipient, accepted_at) do update
            set status = excluded.status, at = excluded.at, reason = excluded.reason,
                delivered_at = coalesce(delivery.delivered_at, excluded.delivered_at)
        )
        select number as "number!" from over
        "#,
        &rows.message_id,
        &rows.sender,
        &rows.recipient,
        &rows.attempt,
        &rows.stage,
        &rows.at as &[Option<Time>],
        &rows.reason as &[Option<String>],
        &rows.status as &[Option<String>],
        &tried.accepted_at,
        &tried.message_id,
        &tried.sender,
        &tried.recipient,
        &tried.transport,
        &tried.started_at,
        &tried.result,
        &tried.reason as &[Option<String>],
        &left.digest,
        &left.message_id,
        &left.sender,
        &left.recipient,
        &left.accepted_at,
        &left.transport,
        &left.level,
        now,
        &tried.hops as &[Option<i16>],
    )
    .fetch_all(&mut *connection)
    .await?;
    connection.keep();
    let mut answers: Vec<Option<Settled>> = steps.iter().map(|_| None).collect();
    for row in ended {
        let number = row.number as usize - 1;
        let Step { delivery, next, .. } = &steps[number];
        if let Next::End { status, reason } = next {
            let DeliveryName { message_id, sender, recipient, .. } = delivery;
            let ended = settled(*message_id, sender, recipient.clone(), *status, now)?;
            answers[number] = Some(Settled { reason: reason.clone(), ..ended });
        }
    }
    Ok(answers)
}

/// Steps as columns, for `unnest`.
#[derive(Default)]
struct Rows {
    message_id: Vec<Uuid>,
    sender: Vec<String>,
    recipient: Vec<String>,
    attempt: Vec<i32>,
    stage: Vec<i16>,
    at: Vec<Option<Time>>,
    reason: Vec<Option<String>>,
    /// How it ended, if it has.
    status: Vec<Option<String>>,
}

impl Rows {
    fn push(&mut self, step: &Step) {
        let (stage, at, reason, status): (_, _, _, Option<MessageStatus>) = match &step.next {
            Next::Sent { retry_at, .. } => (1, Some(*retry_at), None, None),
            Next::Retry { at } => {
                let last = step.attempts.last();
                (0, Some(*at), last.and_then(|attempt| attempt.reason.clone()), None)
            }
            Next::Wait { reason, until } => (0, *until, Some(reason.clone()), None),
            Next::End { status, reason } => (0, None, reason.clone(), Some(*status)),
        };
        self.message_id.push(step.delivery.message_id);
        self.sender.push(step.delivery.sender.clone());
        self.recipient.push(step.delivery.recipient.clone());
        self.attempt.push(step.attempt);
        self.stage.push(stage);
        self.at.push(at);
        self.reason.push(reason);
        self.status.push(status.map(|status| status.as_str().to_owned()));
    }
}

/// Attempts as columns.
#[derive(Default)]
struct Tried {
    accepted_at: Vec<Time>,
    message_id: Vec<Uuid>,
    sender: Vec<String>,
    recipient: Vec<String>,
    transport: Vec<String>,
    started_at: Vec<Time>,
    result: Vec<String>,
    reason: Vec<Option<String>>,
    hops: Vec<Option<i16>>,
}

impl Tried {
    fn push(&mut self, delivery: &DeliveryName, attempt: &Attempt) {
        self.accepted_at.push(delivery.accepted_at);
        self.message_id.push(delivery.message_id);
        self.sender.push(delivery.sender.clone());
        self.recipient.push(delivery.recipient.clone());
        self.transport.push(attempt.transport.clone());
        self.started_at.push(attempt.started_at);
        self.result.push(words::attempt_word(attempt.result).to_owned());
        self.reason.push(attempt.reason.clone());
        self.hops.push(attempt.hops.map(i16::from));
    }
}

/// Envelopes as columns.
#[derive(Default)]
struct Envelopes {
    digest: Vec<Vec<u8>>,
    message_id: Vec<Uuid>,
    sender: Vec<String>,
    recipient: Vec<String>,
    accepted_at: Vec<Time>,
    transport: Vec<String>,
    level: Vec<i16>,
}

impl Envelopes {
    fn push(&mut self, delivery: &DeliveryName, digest: &[u8; 32], transport: String, level: i16) {
        self.digest.push(digest.to_vec());
        self.message_id.push(delivery.message_id);
        self.sender.push(delivery.sender.clone());
        self.recipient.push(delivery.recipient.clone());
        self.accepted_at.push(delivery.accepted_at);
        self.transport.push(transport);
        self.level.push(level);
    }
}
