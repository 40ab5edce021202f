//! Storing what comes from elsewhere, and ending what is over.

use std::time::Duration;

use fieldpost_delivery::{Held, Inbound, Received, Settled, Time, known_after, pass_over, release};
use fieldpost_envelope::{GatewayId, LaneSeq, MessageId, MessageStatus, PeerId, Recipient};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::store::{
    Store, content,
    messages::{associated_data, conversation},
    words,
};

impl Store {
    /// Ends deliveries whose time is over; see [`fieldpost_delivery::Store::expire_due`].
    pub(super) async fn expire_deliveries(
        &self,
        now: Time,
        limit: usize,
    ) -> sqlx::Result<Vec<Settled>> {
        let rows = sqlx::query!(
            r#"
            with unshown as (
                delete from inbox where ctid = any(array(
                    select ctid from inbox where expires_at <= $1
                    order by expires_at limit $2 for update skip locked
                ))
                returning accepted_at, message_id, sender, recipient, seq
            ), unsent as (
                delete from outbox where ctid = any(array(
                    select ctid from outbox where expires_at <= $1
                    order by expires_at limit $2 for update skip locked
                ))
                returning accepted_at, message_id, sender, recipient, null::bigint as seq
            ), over as (
                select * from unshown union all select * from unsent
            )
            insert into delivery (accepted_at, message_id, sender, recipient, status, at, seq)
            select accepted_at, message_id, sender, recipient, 'expired', $1, seq from over
            returning message_id, sender, recipient
            "#,
            now,
            i64::try_from(limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                settled(row.message_id, &row.sender, row.recipient, MessageStatus::Expired, now)
            })
            .collect()
    }

    /// Stores a message from elsewhere; see [`fieldpost_delivery::Store::receive`].
    pub(super) async fn receive_inbound(
        &self,
        now: Time,
        inbound: &Inbound,
        order_wait: Duration,
    ) -> sqlx::Result<Received> {
        let message = &inbound.message;
        let Some(gateway) = inbound.signer() else {
            return Ok(Received::Refused("the sender names no gateway".to_owned()));
        };
        let mut transaction = self.pool.begin().await?;
        let known_peer = sqlx::query_scalar!(
            r#"select exists(select from peer where id = $1) as "exists!""#,
            inbound.recipient.as_str()
        )
        .fetch_one(&mut *transaction)
        .await?;
        if !known_peer {
            return Ok(Received::Refused("no such peer at this gateway".to_owned()));
        }
        let mut lane = match inbound.lane_seq {
            Some(seq) => {
                let mut lane = Lane::lock(&mut transaction, inbound).await?;
                pass_over(&mut lane.held, seq, inbound.after);
                Some((seq, lane))
            }
            None => None,
        };
        let at = self.acceptance_time(now);
        let fresh = insert_inbound(
            &mut transaction,
            inbound,
            at,
            lane.is_some().then(|| (now + order_wait).min(message.expires_at)),
        )
        .await?;
        // Nobody retries a broadcast, so nobody has to be told of it.
        if message.to != Recipient::Broadcast {
            owe_stored(&mut transaction, now, inbound, &gateway).await?;
        }
        if fresh {
            self.insert_inbound_message(&mut transaction, inbound, at).await?;
        } else {
            renew_receipts(&mut transaction, now, inbound).await?;
        }
        let visible = match &mut lane {
            None => {
                if fresh {
                    insert_visible(&mut transaction, inbound, at).await?;
                }
                true
            }
            Some((seq, lane)) => {
                if fresh {
                    let after = known_after(&lane.held, *seq, inbound.after);
                    lane.held.push(Held { lane_seq: *seq, id: message.id, after });
                }
                let released =
                    lane.release(&mut transaction, None, || self.acceptance_time(now)).await?;
                released.contains(&message.id)
            }
        };
        // Even a copy can tell of a predecessor that has ended, and so bring others out.
        if self.announces {
            self.announce(&mut transaction, &[inbound.recipient.to_string()]).await?;
        }
        transaction.commit().await?;
        Ok(if fresh { Received::Stored { visible } } else { Received::Duplicate })
    }

    async fn insert_inbound_message(
        &self,
        connection: &mut PgConnection,
        inbound: &Inbound,
        at: Time,
    ) -> sqlx::Result<()> {
        let message = &inbound.message;
        let sender = message.sender.to_string();
        let recipient = inbound.recipient.as_str();
        let filed = inbound_conversation(inbound);
        let key = self.data_key(at.date_naive()).await?;
        let sealed = content::encode(message)
            .and_then(|plain| {
                key.seal(&associated_data(message.id.0, &sender), &plain).map_err(Into::into)
            })
            .map_err(sqlx::Error::Encode)?;
        sqlx::query!(
            r#"
            with met as (
                insert into contact (peer, other, conversation) values ($4, $6, $2)
                on conflict do nothing
            )
            insert into message (
                accepted_at, conversation, message_id, sender, addressed_to, recipients,
                expires_at, priority, min_anonymity, is_text, size_bytes, sealed
            ) values ($1, $2, $3, $4, $5, array[$6], $7, $8, $9, $10, $11, $12)
            "#,
            at,
            filed,
            message.id.0,
            sender,
            message.to.to_string(),
            recipient,
            message.expires_at,
            words::priority_number(message.priority),
            words::level_number(message.min_anonymity),
            message.content.is_text,
            size(inbound),
            sealed,
        )
        .execute(connection)
        .await
        .map(drop)
    }

    /// Shows what has waited long enough; see [`fieldpost_delivery::Store::release_held`].
    pub(super) async fn release_overdue(
        &self,
        now: Time,
        limit: usize,
    ) -> sqlx::Result<Vec<PeerId>> {
        let mut transaction = self.pool.begin().await?;
        let overdue = sqlx::query!(
            r#"
            select sender, gateway, recipient, level, max(lane_seq) as "furthest!"
            from (
                select sender, gateway, recipient, level, lane_seq from inbound
                where release_at <= $1 order by release_at limit $2
            ) as waiting
            group by sender, gateway, recipient, level
            order by sender, gateway, recipient, level
            "#,
            now,
            i64::try_from(limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&mut *transaction)
        .await?;
        let mut grown = Vec::new();
        for row in overdue {
            let recipient: PeerId = words::parse(&row.recipient)?;
            let mut lane =
                Lane::named(&mut transaction, row.sender, row.gateway, row.recipient, row.level)
                    .await?;
            let due = Some(LaneSeq(row.furthest.unsigned_abs()));
            lane.release(&mut transaction, due, || self.acceptance_time(now)).await?;
            grown.push(recipient);
        }
        if self.announces && !grown.is_empty() {
            let names: Vec<String> = grown.iter().map(ToString::to_string).collect();
            self.announce(&mut transaction, &names).await?;
        }
        transaction.commit().await?;
        grown.sort();
        grown.dedup();
        Ok(grown)
    }
}

/// One incoming lane, locked until the transaction ends.
struct Lane {
    sender: String,
    /// Whoever counts the lane and gets the receipts: the sender's gateway, or a group's home.
    gateway: String,
    recipient: String,
    level: i16,
    last_shown: Option<LaneSeq>,
    held: Vec<Held>,
    /// The `held` of the database.
    stored: Vec<Held>,
}

impl Lane {
    async fn lock(connection: &mut PgConnection, inbound: &Inbound) -> sqlx::Result<Self> {
        let message = &inbound.message;
        let level = words::level_number(message.min_anonymity);
        let gateway = inbound.signer().map(|gateway| gateway.to_string()).unwrap_or_default();
        let (sender, recipient) = (message.sender.to_string(), inbound.recipient.to_string());
        Self::named(connection, sender, gateway, recipient, level).await
    }

    async fn named(
        connection: &mut PgConnection,
        sender: String,
        gateway: String,
        recipient: String,
        level: i16,
    ) -> sqlx::Result<Self> {
        let last = sqlx::query_scalar!(
            r#"
            insert into lane_in (sender, recipient, level, last_shown) values ($1, $2, $3, 0)
            on conflict (sender, recipient, level) do update set last_shown = lane_in.last_shown
            returning last_shown
            "#,
            lane_name(&sender, &gateway),
            recipient,
            level,
        )
        .fetch_one(&mut *connection)
        .await?;
        let held: Vec<Held> = sqlx::query!(
            r#"
            select message_id, lane_seq as "lane_seq!", after_seq from inbound
            where sender = $1 and recipient = $2 and level = $3 and gateway = $4
              and release_at is not null
            "#,
            sender,
            recipient,
            level,
            gateway,
        )
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| Held {
            lane_seq: LaneSeq(row.lane_seq.unsigned_abs()),
            id: MessageId(row.message_id),
            after: row.after_seq.map(|after| LaneSeq(after.unsigned_abs())),
        })
        .collect();
        let last_shown = (last > 0).then(|| LaneSeq(last.unsigned_abs()));
        Ok(Self { sender, gateway, recipient, level, last_shown, stored: held.clone(), held })
    }

    /// Shows what may be shown, and keeps what was learnt of the rest.
    async fn release(
        &mut self,
        connection: &mut PgConnection,
        due: Option<LaneSeq>,
        mut position: impl FnMut() -> Time,
    ) -> sqlx::Result<Vec<MessageId>> {
        let released = release(&mut self.last_shown, &mut self.held, due);
        for message in &released {
            sqlx::query!(
                r#"
                with released as (
                    update inbound set position = $4, release_at = null
                    where message_id = $1 and sender = $2 and recipient = $3
                    returning accepted_at, conversation, expires_at, size_bytes
                )
                insert into inbox (
                    recipient, position, message_id, sender, accepted_at, conversation, expires_at,
                    size_bytes, gap, late
                )
                select $3, $4, $1, $2, accepted_at, conversation, expires_at, size_bytes, $5, $6
                from released
                "#,
                message.id.0,
                self.sender,
                self.recipient,
                position(),
                message.gap,
                message.late,
            )
            .execute(&mut *connection)
            .await?;
        }
        for held in self.held.iter().filter(|held| !self.stored.contains(held)) {
            sqlx::query!(
                r#"
                update inbound set after_seq = $4
                where message_id = $1 and sender = $2 and recipient = $3
                "#,
                held.id.0,
                self.sender,
                self.recipient,
                held.after.map(lane_number),
            )
            .execute(&mut *connection)
            .await?;
        }
        sqlx::query!(
            r#"
            update lane_in set last_shown = $4
            where sender = $1 and recipient = $2 and level = $3 and last_shown < $4
            "#,
            lane_name(&self.sender, &self.gateway),
            self.recipient,
            self.level,
            self.last_shown.map_or(0, lane_number),
        )
        .execute(connection)
        .await?;
        Ok(released.into_iter().map(|message| message.id).collect())
    }
}

/// Remembers that the message came; false if it had come before. `release_at` is set for a message
/// that has to find its place in a lane first.
async fn insert_inbound(
    connection: &mut PgConnection,
    inbound: &Inbound,
    at: Time,
    release_at: Option<Time>,
) -> sqlx::Result<bool> {
    let message = &inbound.message;
    let inserted = sqlx::query!(
        r#"
        insert into inbound (
            message_id, sender, recipient, accepted_at, conversation, position, digest,
            gateway, transport, level, lane_seq, after_seq, release_at, expires_at, size_bytes
        ) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
        on conflict do nothing
        "#,
        message.id.0,
        message.sender.to_string(),
        inbound.recipient.as_str(),
        at,
        inbound_conversation(inbound),
        release_at.is_none().then_some(at),
        inbound.envelope.as_slice(),
        receipts_to(inbound).map(|gateway| gateway.to_string()).unwrap_or_default(),
        inbound.transport,
        words::level_number(message.min_anonymity),
        inbound.lane_seq.map(lane_number),
        inbound.after.map(lane_number),
        release_at,
        message.expires_at,
        size(inbound),
    )
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Another copy has come: the sender may never have recorded the envelope of the one before, and it
/// has not heard how the message fared.
async fn renew_receipts(
    connection: &mut PgConnection,
    now: Time,
    inbound: &Inbound,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        with renewed as (
            update inbound set digest = $4
            where message_id = $1 and sender = $2 and recipient = $3
            returning accepted_at, gateway, level
        )
        insert into receipt (digest, kind, gateway, at, level, next_attempt_at, expires_at)
        select $4, d.status, r.gateway, d.at, r.level, $5::timestamptz, $5 + interval '30 days'
        from renewed r join delivery d on d.accepted_at = r.accepted_at
        where d.message_id = $1 and d.sender = $2 and d.recipient = $3
          and d.status in ('delivered', 'read') and r.gateway <> ''
        on conflict (digest, kind) do update set next_attempt_at = excluded.next_attempt_at
        "#,
        inbound.message.id.0,
        inbound.message.sender.to_string(),
        inbound.recipient.as_str(),
        inbound.envelope.as_slice(),
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}

async fn insert_visible(
    connection: &mut PgConnection,
    inbound: &Inbound,
    at: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into inbox (
            recipient, position, message_id, sender, accepted_at, conversation, expires_at,
            size_bytes
        ) values ($1, $2, $3, $4, $2, $5, $6, $7)
        "#,
        inbound.recipient.as_str(),
        at,
        inbound.message.id.0,
        inbound.message.sender.to_string(),
        inbound_conversation(inbound),
        inbound.message.expires_at,
        size(inbound),
    )
    .execute(connection)
    .await
    .map(drop)
}

/// `stored` is owed for each copy that comes: the one before may have been lost.
async fn owe_stored(
    connection: &mut PgConnection,
    now: Time,
    inbound: &Inbound,
    gateway: &GatewayId,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into receipt (digest, kind, gateway, at, level, next_attempt_at, expires_at)
        values ($1, 'stored', $2, $3, $4, $3, $5)
        on conflict (digest, kind) do update set next_attempt_at = excluded.next_attempt_at
        "#,
        inbound.envelope.as_slice(),
        gateway.to_string(),
        now,
        words::level_number(inbound.message.min_anonymity),
        inbound.message.expires_at,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// The gateway that wants receipts of a message, if one does.
fn receipts_to(inbound: &Inbound) -> Option<GatewayId> {
    inbound.signer().filter(|_| inbound.message.to != Recipient::Broadcast)
}

/// What a lane is called: a group's home counts what it passes on apart from what its senders send
/// themselves. No address holds a space.
fn lane_name(sender: &str, gateway: &str) -> String {
    match sender.rsplit_once('@') {
        Some((_, home)) if home != gateway => format!("{sender} via {gateway}"),
        _ => sender.to_owned(),
    }
}

fn inbound_conversation(inbound: &Inbound) -> i64 {
    match &inbound.message.to {
        group @ Recipient::Group { .. } => conversation(&inbound.message.sender, group),
        Recipient::Peer(_) | Recipient::Broadcast => {
            conversation(&inbound.message.sender, &inbound.recipient.clone().into())
        }
    }
}

fn size(inbound: &Inbound) -> i32 {
    i32::try_from(inbound.message.content.bytes.len()).unwrap_or(i32::MAX)
}

pub(super) fn settled(
    message_id: Uuid,
    sender: &str,
    recipient: String,
    status: MessageStatus,
    at: Time,
) -> sqlx::Result<Settled> {
    Ok(Settled {
        id: MessageId(message_id),
        sender: words::parse(sender)?,
        recipient,
        status,
        at,
        reason: None,
    })
}

fn lane_number(seq: LaneSeq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}
