//! Settling receipts that came: many at a time, as they come in crowds.

use std::{collections::HashMap, time::Duration};

use fieldpost_delivery::{Effect, ReceiptIn, Settled, Standing, Time, effect, signer_of};
use fieldpost_envelope::{AnonymityLevel, MessageStatus, ReceiptKind};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::store::{
    Store,
    batches::{Question, SLOW},
    inbox::settled,
    messages::target,
    outbox::DeliveryName,
    warm::WarmConnections,
    words,
};

/// What became of a receipt that came.
#[derive(Debug)]
pub struct Settlement {
    /// The level of the envelope that it answers; `None` when it answers none of ours.
    pub level: Option<AnonymityLevel>,
    /// What it changed.
    pub settled: Option<Settled>,
}

/// A receipt to be applied.
#[derive(Clone)]
pub(super) struct Came {
    now: Time,
    receipt: ReceiptIn,
}

impl Question for Came {
    type Key = [u8; 32];
    const TOGETHER: usize = 512;
    const SHARES_KEYS: bool = true;
    const SECOND_AFTER: Duration = SLOW;

    fn key(&self) -> [u8; 32] {
        self.receipt.envelope
    }
}

impl Store {
    /// Applies a receipt, as [`fieldpost_delivery::Store::settle`] does. Where it is the answer to a
    /// receipt of ours, that one need not be sent again.
    pub async fn take_receipt(&self, now: Time, receipt: &ReceiptIn) -> sqlx::Result<Settlement> {
        let came = Came { now, receipt: receipt.clone() };
        let warm = self.warm.clone();
        self.receipts.ask(came, move |came| settle_each(warm.clone(), came)).await
    }
}

async fn settle_each(warm: WarmConnections, came: Vec<Came>) -> sqlx::Result<Vec<Settlement>> {
    let now = came.iter().map(|came| came.now).max().unwrap_or_default();
    let mut connection = warm.take().await?;
    let mut transaction = sqlx::Connection::begin(&mut *connection).await?;
    let located = locate(&mut transaction, &came).await?;
    let mut changes = Changes::default();
    let mut settlements = Vec::with_capacity(came.len());
    let mut standings = HashMap::new();
    for (number, Came { receipt, .. }) in came.iter().enumerate() {
        let mut settlement = Settlement { level: None, settled: None };
        match located.get(&number) {
            None if receipt.kind == ReceiptKind::Stored => changes.answered(receipt),
            None => {}
            Some(Located { delivery, transport, level, standing }) => {
                let to = target(&delivery.recipient)?;
                if signer_of(&to) == Some(receipt.signer) {
                    settlement.level = Some(*level);
                    let standing = standings.entry(delivery.key()).or_insert(*standing);
                    if let Some(standing) = standing
                        && let Some(effect) = effect(*standing, &to, receipt)
                    {
                        let at = receipt.at.min(now);
                        settlement.settled =
                            changes.apply(delivery, transport, standing, effect, at)?;
                    }
                } else {
                    tracing::warn!(
                        gateway.id = %receipt.signer, "receipt for somebody else's envelope"
                    );
                }
            }
        }
        settlements.push(settlement);
    }
    changes.write(&mut transaction, now).await?;
    transaction.commit().await?;
    connection.keep();
    Ok(settlements)
}

/// A delivery that an envelope is of.
struct Located {
    delivery: DeliveryName,
    /// What the envelope was first meant for.
    transport: String,
    level: AnonymityLevel,
    /// Where the delivery stands; `None` past retention.
    standing: Option<Standing>,
}

/// Finds the deliveries that receipts are for, by the number of the receipt. Those that have not
/// ended are locked.
async fn locate(
    connection: &mut PgConnection,
    came: &[Came],
) -> sqlx::Result<HashMap<usize, Located>> {
    let digests: Vec<Vec<u8>> = came.iter().map(|came| came.receipt.envelope.to_vec()).collect();
    let rows = sqlx::query!(
        r#"
        with located as materialized (
            select asked.number, e.message_id, e.sender, e.recipient, e.accepted_at, e.transport,
                   e.level
            from unnest($1::bytea[]) with ordinality as asked (digest, number)
            join envelope e on e.digest = asked.digest
        ), owed as materialized (
            select o.message_id, o.sender, o.recipient, o.stage
            from (select distinct message_id, sender, recipient from located order by 1, 2, 3) l
            join outbox o
                on (o.message_id, o.sender, o.recipient) = (l.message_id, l.sender, l.recipient)
            for update of o
        )
        select l.number as "number!", l.message_id as "message_id!", l.sender as "sender!",
               l.recipient as "recipient!", l.accepted_at as "accepted_at!",
               l.transport as "transport!", l.level as "level!", o.stage as "stage?"
        from located l left join owed o using (message_id, sender, recipient)
        "#,
        &digests,
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut located = HashMap::with_capacity(rows.len());
    for row in rows {
        let standing = row.stage.map(|stage| Standing {
            status: if stage == 0 { MessageStatus::Pending } else { MessageStatus::Sent },
            stored: stage == 2,
        });
        let (message_id, accepted_at) = (row.message_id, row.accepted_at);
        let (sender, recipient) = (row.sender, row.recipient);
        let delivery = DeliveryName { message_id, sender, recipient, accepted_at };
        let level = words::level(row.level)?;
        let found = Located { delivery, transport: row.transport, level, standing };
        located.insert(row.number as usize - 1, found);
    }
    find_ended(connection, &mut located).await?;
    Ok(located)
}

/// Looks up in history where those stand that are not owed. Only after a look into the queue, as
/// they may move from there to here in between.
async fn find_ended(
    connection: &mut PgConnection,
    located: &mut HashMap<usize, Located>,
) -> sqlx::Result<()> {
    let mut ended: Vec<(&usize, &Located)> =
        located.iter().filter(|(_, located)| located.standing.is_none()).collect();
    if ended.is_empty() {
        return Ok(());
    }
    ended.sort_by_key(|(_, located)| located.delivery.key());
    let names = ended.iter().map(|(_, located)| &located.delivery);
    let rows = sqlx::query!(
        r#"
        select l.number as "number!", d.status
        from unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[])
            as l (number, message_id, sender, recipient, accepted_at)
        join delivery d
            on (d.message_id, d.sender, d.recipient, d.accepted_at)
             = (l.message_id, l.sender, l.recipient, l.accepted_at)
        for update of d
        "#,
        &ended.iter().map(|(number, _)| **number as i64).collect::<Vec<_>>(),
        &names.clone().map(|name| name.message_id).collect::<Vec<_>>(),
        &names.clone().map(|name| name.sender.clone()).collect::<Vec<_>>(),
        &names.clone().map(|name| name.recipient.clone()).collect::<Vec<_>>(),
        &names.map(|name| name.accepted_at).collect::<Vec<_>>(),
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let status = words::status(&row.status)?;
        if let Some(located) = located.get_mut(&(row.number as usize)) {
            located.standing = Some(Standing { status, stored: false });
        }
    }
    Ok(())
}

/// What receipts change, as columns.
#[derive(Default)]
struct Changes {
    stored: Vec<(DeliveryName, String)>,
    /// The last end of each delivery, and when it was delivered.
    ended: HashMap<(Uuid, String, String), Ended>,
    answered_digest: Vec<Vec<u8>>,
    answered_by: Vec<String>,
}

struct Ended {
    accepted_at: Time,
    status: MessageStatus,
    at: Time,
    delivered_at: Option<Time>,
    reason: Option<String>,
}

impl Changes {
    fn answered(&mut self, receipt: &ReceiptIn) {
        self.answered_digest.push(receipt.envelope.to_vec());
        self.answered_by.push(receipt.signer.to_string());
    }

    fn apply(
        &mut self,
        delivery: &DeliveryName,
        transport: &str,
        standing: &mut Standing,
        effect: Effect,
        at: Time,
    ) -> sqlx::Result<Option<Settled>> {
        match effect {
            Effect::Stored => {
                *standing = Standing { status: MessageStatus::Sent, stored: true };
                self.stored.push((delivery.clone(), transport.to_owned()));
                Ok(None)
            }
            Effect::Ends { status, reason } => {
                *standing = Standing { status, ..*standing };
                let DeliveryName { message_id, sender, recipient, accepted_at } = delivery;
                let before = self.ended.get(&delivery.key()).and_then(|ended| ended.delivered_at);
                let is_there = matches!(status, MessageStatus::Delivered | MessageStatus::Read);
                let ended = Ended {
                    accepted_at: *accepted_at,
                    status,
                    at,
                    delivered_at: before.or(is_there.then_some(at)),
                    reason: reason.clone(),
                };
                self.ended.insert(delivery.key(), ended);
                let settled = settled(*message_id, sender, recipient.clone(), status, at)?;
                Ok(Some(Settled { reason, ..settled }))
            }
        }
    }

    async fn write(self, connection: &mut PgConnection, now: Time) -> sqlx::Result<()> {
        if !self.stored.is_empty() {
            self.write_stored(connection, now).await?;
        }
        if !self.ended.is_empty() {
            self.write_ended(connection).await?;
        }
        if self.answered_digest.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            r#"
            delete from receipt r
            using unnest($1::bytea[], $2::text[]) as answered (digest, gateway)
            where r.own_digest = answered.digest and r.gateway = answered.gateway
            "#,
            &self.answered_digest,
            &self.answered_by,
        )
        .execute(connection)
        .await
        .map(drop)
    }

    /// Their recipients' gateways have them: retries end, the wait for `delivered` goes on.
    async fn write_stored(&self, connection: &mut PgConnection, now: Time) -> sqlx::Result<()> {
        let names = self.stored.iter().map(|(name, _)| name);
        sqlx::query!(
            r#"
            with stored as (
                select * from unnest(
                    $1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[]
                ) as stored (message_id, sender, recipient, accepted_at, transport)
            ), held as (
                update outbox o
                set stage = 2, next_attempt_at = null, waits_for = null, claimed = false
                from stored s
                where (o.message_id, o.sender, o.recipient) = (s.message_id, s.sender, s.recipient)
            )
            insert into attempt (
                accepted_at, message_id, sender, recipient, transport, started_at, result
            )
            select s.accepted_at, s.message_id, s.sender, s.recipient, coalesce(
                       (select transport from attempt a
                        where a.accepted_at = s.accepted_at and a.message_id = s.message_id
                          and a.sender = s.sender and a.recipient = s.recipient
                          and a.result = 'sent'
                        order by a.started_at desc limit 1),
                       -- A process that died may have sent it without recording the attempt.
                       s.transport
                   ), $6, 'stored'
            from stored s
            "#,
            &names.clone().map(|name| name.message_id).collect::<Vec<_>>(),
            &names.clone().map(|name| name.sender.clone()).collect::<Vec<_>>(),
            &names.clone().map(|name| name.recipient.clone()).collect::<Vec<_>>(),
            &names.map(|name| name.accepted_at).collect::<Vec<_>>(),
            &self.stored.iter().map(|(_, transport)| transport.clone()).collect::<Vec<_>>(),
            now,
        )
        .execute(connection)
        .await
        .map(drop)
    }

    /// Moves them to history, or corrects how they ended there.
    async fn write_ended(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let mut ended: Vec<_> = self.ended.iter().collect();
        ended.sort_by_key(|(key, _)| *key);
        let ends = ended.iter().map(|(_, end)| *end);
        sqlx::query!(
            r#"
            with ended as (
                select * from unnest(
                    $1::timestamptz[], $2::uuid[], $3::text[], $4::text[], $5::text[],
                    $6::timestamptz[], $7::timestamptz[], $8::text[]
                ) as ended (
                    accepted_at, message_id, sender, recipient, status, at, delivered_at, reason
                )
            ), gone as (
                delete from outbox o using ended e
                where (o.message_id, o.sender, o.recipient) = (e.message_id, e.sender, e.recipient)
            )
            insert into delivery (
                accepted_at, message_id, sender, recipient, status, at, delivered_at, reason
            )
            select * from ended
            on conflict (message_id, sender, recipient, accepted_at) do update
            set status = excluded.status, at = excluded.at, reason = excluded.reason,
                delivered_at = coalesce(delivery.delivered_at, excluded.delivered_at)
            "#,
            &ends.clone().map(|end| end.accepted_at).collect::<Vec<_>>(),
            &ended.iter().map(|(key, _)| key.0).collect::<Vec<_>>(),
            &ended.iter().map(|(key, _)| key.1.clone()).collect::<Vec<_>>(),
            &ended.iter().map(|(key, _)| key.2.clone()).collect::<Vec<_>>(),
            &ends.clone().map(|end| end.status.as_str().to_owned()).collect::<Vec<_>>(),
            &ends.clone().map(|end| end.at).collect::<Vec<_>>(),
            &ends.clone().map(|end| end.delivered_at).collect::<Vec<_>>() as &[Option<Time>],
            &ends.map(|end| end.reason.clone()).collect::<Vec<_>>() as &[Option<String>],
        )
        .execute(connection)
        .await
        .map(drop)
    }
}
