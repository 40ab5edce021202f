//! What is known of messages: to their senders and recipients, and of their talks.

use std::collections::HashMap;

use chrono::TimeDelta;
use fieldpost_delivery::{Attempt, AttemptResult, DeliveryRecord, Record, Time, message_status};
use fieldpost_envelope::{MessageId, MessageStatus, PeerId};
use uuid::Uuid;

use super::{Filed, Sealed, absence::Absence, locate};
use crate::store::{Store, words};

/// A page of a talk, newest first, and where the next one begins.
pub struct Page {
    /// The messages.
    pub records: Vec<Record>,
    /// Where to go on; `None` at the end.
    pub next: Option<(Time, MessageId)>,
}

/// A page ends with the message that takes it over so many bytes of content.
const PAGE_BYTES: i64 = 32 << 20;

impl Store {
    /// What a caller may know of an id; see [`fieldpost_delivery::Store::records`].
    pub(in crate::store) async fn records_for(
        &self,
        now: Time,
        caller: &PeerId,
        id: MessageId,
    ) -> sqlx::Result<Vec<Record>> {
        let mut connection = self.pool.acquire().await?;
        if let Some(filed) = locate(&mut connection, id, caller.as_str()).await? {
            drop(connection);
            let record = self.record_of(now, id, caller.as_str(), filed).await?;
            return Ok(record.into_iter().collect());
        }
        let candidates = sqlx::query!(
            r#"
            select sender as "sender!", accepted_at as "accepted_at!",
                   conversation as "conversation!"
            from message_key where message_id = $1
            union all
            select sender, accepted_at, conversation
            from inbound where message_id = $1 and recipient = $2
            "#,
            id.0,
            caller.as_str(),
        )
        .fetch_all(&mut *connection)
        .await?;
        drop(connection);
        let mut records = Vec::new();
        for row in candidates {
            let filed = Filed { accepted_at: row.accepted_at, conversation: row.conversation };
            if let Some(mut record) = self.record_of(now, id, &row.sender, filed).await? {
                record.deliveries.retain(|delivery| delivery.recipient == caller.as_str());
                // Somebody else's message, a delivery withdrawn before it was shown, or one that
                // has ended before it was: not this caller's to know.
                if record.deliveries.iter().any(|delivery| may_be_known(delivery.status)) {
                    record.deliveries.iter_mut().for_each(|delivery| delivery.attempts.clear());
                    records.push(record);
                }
            }
        }
        Ok(records)
    }

    pub(super) async fn record_of(
        &self,
        now: Time,
        id: MessageId,
        sender: &str,
        filed: Filed,
    ) -> sqlx::Result<Option<Record>> {
        let row = sqlx::query_as!(
            Sealed,
            r#"
            select accepted_at, message_id, sender, addressed_to, expires_at, priority,
                   min_anonymity, is_text, sealed
            from message
            where conversation = $1 and accepted_at = $2 and message_id = $3 and sender = $4
            "#,
            filed.conversation,
            filed.accepted_at,
            id.0,
            sender,
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let records = self.complete(now, vec![(row, filed.conversation)], true).await?;
        Ok(records.into_iter().next())
    }

    /// Adds the states of the deliveries, and the attempts on demand, to rows of `message`.
    async fn complete(
        &self,
        now: Time,
        rows: Vec<(Sealed, i64)>,
        with_attempts: bool,
    ) -> sqlx::Result<Vec<Record>> {
        let conversations: Vec<i64> = rows.iter().map(|(_, conversation)| *conversation).collect();
        let accepted: Vec<Time> = rows.iter().map(|(row, _)| row.accepted_at).collect();
        let ids: Vec<Uuid> = rows.iter().map(|(row, _)| row.message_id).collect();
        let senders: Vec<String> = rows.iter().map(|(row, _)| row.sender.clone()).collect();
        let states = sqlx::query!(
            r#"
            with asked as (
                select m.message_id, m.sender, m.accepted_at, unnest(m.recipients) as recipient
                from unnest($1::bigint[], $2::timestamptz[], $3::uuid[], $4::text[])
                    as k (conversation, accepted_at, message_id, sender)
                join message m using (conversation, accepted_at, message_id, sender)
            )
            select a.message_id as "message_id!", a.sender as "sender!", a.recipient as "recipient!",
                   i.seq, (i.recipient is not null) as "in_inbox!", i.expires_at as "inbox_expiry?",
                   o.stage as "stage?", o.waits_for, o.expires_at as "outbox_expiry?",
                   d.status as "status?", d.at as "at?", d.reason,
                   b.release_at as "held_until?", g.heard_at as "heard_at?",
                   p.gateway is not null as "is_pinned!",
                   exists (
                       select from awaited w
                       where (w.message_id, w.sender, w.peer)
                           = (a.message_id, a.sender, a.recipient)
                   ) as "is_awaited!"
            from asked a
            left join inbound b
                on (b.message_id, b.sender, b.recipient) = (a.message_id, a.sender, a.recipient)
            left join inbox i
                on (i.recipient, i.position, i.message_id, i.sender)
                 = (a.recipient, coalesce(b.position, a.accepted_at), a.message_id, a.sender)
            left join outbox o
                on (o.message_id, o.sender, o.recipient) = (a.message_id, a.sender, a.recipient)
            left join remote_gateway g on g.gateway = o.target
            left join pin p
                on (p.sender, p.peer, p.gateway)
                 = (a.sender, split_part(a.recipient, '@', 1), o.target)
            left join delivery d
                on (d.message_id, d.sender, d.recipient, d.accepted_at)
                 = (a.message_id, a.sender, a.recipient, a.accepted_at)
            "#,
            &conversations,
            &accepted,
            &ids,
            &senders,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut attempts = match with_attempts {
            true => self.attempts(&accepted, &ids, &senders).await?,
            false => HashMap::new(),
        };
        let mut deliveries: HashMap<(Uuid, String), Vec<DeliveryRecord>> = HashMap::new();
        for state in states {
            let expired = |at: Option<Time>| at.is_some_and(|at| at <= now);
            let (status, reason) = match &state.status {
                Some(status) => (words::status(status)?, state.reason),
                None if expired(state.inbox_expiry.or(state.outbox_expiry)) => {
                    (MessageStatus::Expired, None)
                }
                None if state.in_inbox && state.seq.is_some() => (MessageStatus::Sent, None),
                None if state.in_inbox && state.is_awaited => {
                    let reason = "waits for a peer of that name, here or at a trusted gateway";
                    (MessageStatus::Pending, Some(reason.to_owned()))
                }
                None if state.in_inbox => {
                    (MessageStatus::Pending, Some("waits for the recipient's client".to_owned()))
                }
                None if state.stage.is_some_and(|stage| stage > 0) => (MessageStatus::Sent, None),
                None if state.stage.is_some() => {
                    let absence = Absence {
                        heard_at: state.heard_at,
                        pinned: state.is_pinned.then_some(state.recipient.as_str()),
                    };
                    (MessageStatus::Pending, state.waits_for.map(|reason| absence.add(reason, now)))
                }
                None if state.held_until.is_some() => {
                    (MessageStatus::Pending, Some("waits for its predecessor".to_owned()))
                }
                // Confirmed between two looks of this statement cannot be; an ended one whose
                // history was dropped can.
                None => {
                    (MessageStatus::Expired, Some("its history has passed retention".to_owned()))
                }
            };
            let key = (state.message_id, state.sender.clone(), state.recipient.clone());
            let attempts = attempts.remove(&key).unwrap_or_default();
            deliveries.entry((state.message_id, state.sender)).or_default().push(DeliveryRecord {
                recipient: state.recipient,
                status,
                at: state.at,
                reason,
                attempts,
            });
        }
        let mut records = Vec::with_capacity(rows.len());
        for (row, _) in rows {
            let accepted_at = row.accepted_at;
            let mut own =
                deliveries.remove(&(row.message_id, row.sender.clone())).unwrap_or_default();
            own.sort_by(|a, b| a.recipient.cmp(&b.recipient));
            if with_attempts && !row.sender.contains('@') {
                for delivery in own.iter_mut().filter(|delivery| is_local(&delivery.recipient)) {
                    let has_begun = delivery.status != MessageStatus::Failed;
                    if delivery.attempts.is_empty() && has_begun {
                        delivery.attempts.push(Attempt::local(accepted_at));
                    }
                }
            }
            let (message, sent_at) = self.unseal(row).await?;
            records.push(Record { message, accepted_at, sent_at, deliveries: own });
        }
        Ok(records)
    }

    async fn attempts(
        &self,
        accepted: &[Time],
        ids: &[Uuid],
        senders: &[String],
    ) -> sqlx::Result<HashMap<(Uuid, String, String), Vec<Attempt>>> {
        let rows = sqlx::query!(
            r#"
            select t.message_id, t.sender, t.recipient, t.transport, t.started_at, t.result, t.reason,
                   t.hops
            from unnest($1::timestamptz[], $2::uuid[], $3::text[])
                as k (accepted_at, message_id, sender)
            join attempt t using (accepted_at, message_id, sender)
            order by t.started_at
            "#,
            accepted,
            ids,
            senders,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut attempts: HashMap<_, Vec<Attempt>> = HashMap::new();
        for row in rows {
            attempts.entry((row.message_id, row.sender, row.recipient)).or_default().push(
                Attempt {
                    transport: row.transport,
                    started_at: row.started_at,
                    result: words::attempt_result(&row.result)?,
                    reason: row.reason,
                    hops: row.hops.and_then(|hops| u8::try_from(hops).ok()),
                },
            );
        }
        for tried in attempts.values_mut() {
            // A transport takes charge before anything else is heard of it.
            tried.sort_by_key(|one| (one.started_at, one.result != AttemptResult::Sent));
        }
        Ok(attempts)
    }

    /// One page of what `peer` sent or was sent in `talks`, newest first, older than `before`.
    pub async fn talks(
        &self,
        now: Time,
        peer: &PeerId,
        talks: &[i64],
        before: Option<(Time, MessageId)>,
        skip: i64,
        limit: i64,
    ) -> sqlx::Result<Page> {
        let (at, id) = match before {
            Some((at, id)) => (at, id.0),
            None => (now + TimeDelta::days(1), Uuid::max()),
        };
        let rows = sqlx::query!(
            r#"
            select * from (
            select page.*, sum(page.size_bytes)
                       over (order by page.accepted_at desc, page.message_id desc)
                       - page.size_bytes as bytes_before
            from unnest($1::bigint[]) as talk
            cross join lateral (
                select accepted_at, conversation, message_id, sender, addressed_to, expires_at,
                       priority, min_anonymity, is_text, sealed, size_bytes
                from message
                where conversation = talk and (accepted_at, message_id) < ($2, $3)
                  and (sender = $4 or $4 = any(recipients))
                order by accepted_at desc, message_id desc
                limit $5::bigint + $6::bigint
            ) as page
            order by accepted_at desc, message_id desc
            offset $5 limit $6
            ) as pages
            where bytes_before < $7
            order by accepted_at desc, message_id desc
            "#,
            talks,
            at,
            id,
            peer.as_str(),
            skip,
            limit,
            PAGE_BYTES,
        )
        .fetch_all(&self.pool)
        .await?;
        let bytes: i64 = rows.iter().map(|row| i64::from(row.size_bytes)).sum();
        let is_full = rows.len() as i64 == limit || bytes >= PAGE_BYTES;
        let rows: Vec<_> = rows
            .into_iter()
            .map(|row| {
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
                (sealed, row.conversation)
            })
            .collect();
        let next = rows
            .last()
            .filter(|_| is_full)
            .map(|(row, _)| (row.accepted_at, MessageId(row.message_id)));
        Ok(Page { records: self.complete(now, rows, false).await?, next })
    }

    /// Who hears broadcasts here, but for `sender`; at most `limit`.
    pub async fn broadcast_listeners(
        &self,
        sender: &PeerId,
        limit: usize,
    ) -> sqlx::Result<Vec<PeerId>> {
        sqlx::query_scalar!(
            "select id from peer where subscribe_broadcast and id <> $1 order by id limit $2",
            sender.as_str(),
            i64::try_from(limit).unwrap_or(i64::MAX),
        )
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|peer| words::parse(peer))
        .collect()
    }

    /// The conversations of `peer`: with the number each is filed under.
    pub async fn conversations(&self, peer: &PeerId, limit: i64) -> sqlx::Result<Vec<i64>> {
        sqlx::query_scalar!(
            r#"
            select distinct conversation as "conversation!" from (
                select conversation from contact where peer = $1 or other = $1
                limit $2
            ) as talks
            "#,
            peer.as_str(),
            limit,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// How many messages are kept, and how many of them came in the last 24 h.
    pub async fn message_counts(&self, now: Time) -> sqlx::Result<(i64, i64)> {
        let counts = sqlx::query!(
            r#"
            select count(*) as "total!", count(*) filter (where accepted_at > $1) as "recent!"
            from message
            "#,
            now - TimeDelta::hours(24),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((counts.total, counts.recent))
    }
}

/// The least advanced state of a record's deliveries (design, section 5).
pub fn status_of(record: &Record) -> MessageStatus {
    message_status(record.deliveries.iter().map(|delivery| delivery.status))
}

/// Whether a recipient on this gateway may know of a message that stands so for it: what it has not
/// been shown may still be withdrawn, and what failed here never came to it.
pub fn may_be_known(status: MessageStatus) -> bool {
    !matches!(status, MessageStatus::Pending | MessageStatus::Cancelled | MessageStatus::Failed)
}

fn is_local(recipient: &str) -> bool {
    !recipient.starts_with("transport:")
        && recipient.parse::<PeerId>().is_ok_and(|peer| !peer.is_phone())
}
