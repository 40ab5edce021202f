//! Accepting messages, cancelling them, and what is known of them.

use std::collections::{HashMap, HashSet};

use chrono::TimeDelta;
use fieldpost_delivery::{
    Accepted, Attempt, AttemptResult, Cancelled, Correspondent, DeliveryRecord, Message, Record,
    Submission, Target, Time, message_status,
};
use fieldpost_envelope::{
    AnonymityLevel, MessageId, MessageStatus, PeerAddress, PeerId, Priority, Recipient,
};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::store::{Store, content, federation::OUT_OF_REACH, words};

/// A page ends with the message that takes it over so many bytes of content.
const PAGE_BYTES: i64 = 32 << 20;

/// Where a message is filed: enough to find its row in one partition.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Filed {
    pub(super) accepted_at: Time,
    pub(super) conversation: i64,
}

/// A row of `message`, still sealed.
pub(super) struct Sealed {
    pub(super) accepted_at: Time,
    pub(super) message_id: Uuid,
    pub(super) sender: String,
    pub(super) addressed_to: String,
    pub(super) expires_at: Time,
    pub(super) priority: i16,
    pub(super) min_anonymity: i16,
    pub(super) is_text: bool,
    pub(super) sealed: Vec<u8>,
}

/// A page of a talk, newest first, and where the next one begins.
pub struct Page {
    /// The messages.
    pub records: Vec<Record>,
    /// Where to go on; `None` at the end.
    pub next: Option<(Time, MessageId)>,
}

impl Store {
    /// Accepts a batch; see [`fieldpost_delivery::Store::accept`].
    pub(super) async fn accept_batch(
        &self,
        now: Time,
        batch: &[Submission],
    ) -> sqlx::Result<Vec<Accepted>> {
        let times = self.acceptance_times(now, batch.len());
        let mut day = times.start.date_naive();
        let mut key = self.data_key(day).await?;
        let mut rows = Rows::default();
        let mut taken = HashSet::with_capacity(batch.len());
        for (index, submission) in batch.iter().enumerate() {
            let message = &submission.message;
            if taken.insert((message.id, &message.sender)) {
                let at = times.at(index);
                if at.date_naive() != day {
                    day = at.date_naive();
                    key = self.data_key(day).await?;
                }
                let aad = associated_data(message.id.0, &message.sender.to_string());
                let sealed = content::encode(message, None)
                    .and_then(|plain| key.seal(&aad, &plain).map_err(Into::into))
                    .map_err(sqlx::Error::Encode)?;
                rows.push(submission, at, sealed);
            }
        }
        let met = self.contacts.unknown(&rows.sender, &rows.addressed_to);
        rows.meet(&met);
        let fresh = if rows.is_plain() && !self.announces {
            let mut connection = self.warm.take().await?;
            let fresh = match rows.insert_fresh(&mut connection).await? {
                true if taken.len() == batch.len() => None,
                true => Some(rows.all()),
                false => Some(rows.insert(&mut connection).await?),
            };
            connection.keep();
            let Some(fresh) = fresh else {
                let new = |index| Accepted::New { accepted_at: times.at(index) };
                return Ok((0..batch.len()).map(new).collect());
            };
            fresh
        } else {
            let mut connection = self.warm.take().await?;
            let mut transaction = sqlx::Connection::begin(&mut *connection).await?;
            let fresh = match rows.insert_fresh(&mut transaction).await? {
                true => rows.all(),
                false => {
                    transaction.rollback().await?;
                    transaction = sqlx::Connection::begin(&mut *connection).await?;
                    rows.insert(&mut transaction).await?
                }
            };
            rows.insert_outbox(&mut transaction, &fresh).await?;
            if !rows.failed.recipient.is_empty() {
                rows.insert_failures(&mut transaction, &fresh).await?;
            }
            if !rows.contact_peer.is_empty() {
                rows.insert_contacts(&mut transaction).await?;
            }
            grant_files(&mut transaction, now, batch, &fresh).await?;
            if self.announces && !rows.inbox_recipient.is_empty() {
                self.announce(&mut transaction, &rows.inbox_recipient).await?;
            }
            transaction.commit().await?;
            connection.keep();
            self.contacts.remember(&rows.contact_peer, &rows.contact_other);
            fresh
        };
        // What is fresh is committed: a failure from here on must not read as if it were not.
        self.answer(now, batch, &fresh)
            .await
            .map_err(|error| sqlx::Error::Protocol(format!("after the commit: {error}")))
    }

    /// Strictly increasing times for a batch, never before those of an earlier one.
    pub(super) fn acceptance_times(&self, now: Time, count: usize) -> Times {
        let mut last = self.last_accepted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let start = now.max(*last + TimeDelta::microseconds(1));
        let times = Times { start };
        *last = times.at(count.max(1) - 1);
        times
    }

    /// The same for a single message.
    pub(super) fn acceptance_time(&self, now: Time) -> Time {
        self.acceptance_times(now, 1).start
    }

    async fn answer(
        &self,
        now: Time,
        batch: &[Submission],
        fresh: &HashMap<(Uuid, String), Time>,
    ) -> sqlx::Result<Vec<Accepted>> {
        let mut first = HashMap::with_capacity(batch.len());
        let mut answers = Vec::with_capacity(batch.len());
        for submission in batch {
            let message = &submission.message;
            let key = (message.id.0, message.sender.to_string());
            answers.push(match fresh.get(&key) {
                Some(accepted_at) => match first.entry(key) {
                    std::collections::hash_map::Entry::Vacant(entry) => {
                        entry.insert(submission);
                        Accepted::New { accepted_at: *accepted_at }
                    }
                    std::collections::hash_map::Entry::Occupied(entry)
                        if entry.get().fingerprint == submission.fingerprint =>
                    {
                        Accepted::Same {
                            accepted_at: *accepted_at,
                            expires_at: entry.get().message.expires_at,
                            status: MessageStatus::Pending,
                        }
                    }
                    std::collections::hash_map::Entry::Occupied(_) => Accepted::Conflict,
                },
                None => self.accepted_before(now, submission).await?,
            });
        }
        Ok(answers)
    }

    async fn accepted_before(&self, now: Time, submission: &Submission) -> sqlx::Result<Accepted> {
        let Message { id, sender, .. } = &submission.message;
        self.accepted_as(now, *id, &sender.peer, &submission.fingerprint)
            .await?
            // Forgotten between two looks: after the longest time to live and a day.
            .ok_or(sqlx::Error::RowNotFound)
    }

    /// How `sender`'s message `id` was answered when it was accepted; `None` if it was not, and
    /// a conflict if it had another fingerprint.
    pub async fn accepted_as(
        &self,
        now: Time,
        id: MessageId,
        sender: &PeerId,
        fingerprint: &[u8; 32],
    ) -> sqlx::Result<Option<Accepted>> {
        let known = sqlx::query!(
            r#"
            select accepted_at, conversation, fingerprint, expires_at
            from message_key where message_id = $1 and sender = $2
            "#,
            id.0,
            sender.as_str(),
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(known) = known else { return Ok(None) };
        if known.fingerprint != fingerprint {
            return Ok(Some(Accepted::Conflict));
        }
        let filed = Filed { accepted_at: known.accepted_at, conversation: known.conversation };
        let record = self.record_of(now, id, sender.as_str(), filed).await?;
        Ok(Some(Accepted::Same {
            accepted_at: known.accepted_at,
            expires_at: known.expires_at,
            // Past retention only the name is left; by then it had ended.
            status: record.map_or(MessageStatus::Expired, |record| status_of(&record)),
        }))
    }

    /// Cancels what has not left; see [`fieldpost_delivery::Store::cancel`].
    pub(super) async fn cancel_message(
        &self,
        now: Time,
        sender: &PeerId,
        id: MessageId,
    ) -> sqlx::Result<Cancelled> {
        let mut transaction = self.pool.begin().await?;
        let Some(filed) = locate(&mut transaction, id, sender.as_str()).await? else {
            return Ok(Cancelled::Unknown);
        };
        let recipients = sqlx::query_scalar!(
            r#"
            select recipients from message
            where conversation = $1 and accepted_at = $2 and message_id = $3 and sender = $4
            "#,
            filed.conversation,
            filed.accepted_at,
            id.0,
            sender.as_str(),
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(recipients) = recipients else {
            return Ok(Cancelled::TooLate);
        };
        // What could not begin when it was accepted has not left either.
        let failed_at_once = sqlx::query_scalar!(
            r#"
            select count(*) as "count!" from delivery
            where accepted_at = $1 and message_id = $2 and sender = $3
              and status = 'failed' and at = accepted_at
            "#,
            filed.accepted_at,
            id.0,
            sender.as_str(),
        )
        .fetch_one(&mut *transaction)
        .await?;
        let waiting = sqlx::query_scalar!(
            r#"
            with shown as (
                delete from inbox
                where recipient = any($1) and position = $2 and message_id = $3 and sender = $4
                  and seq is null and expires_at > $5
                returning recipient
            ), unsent as (
                delete from outbox
                where message_id = $3 and sender = $4 and stage = 0 and not has_left and not claimed
                  and expires_at > $5
                returning recipient
            ), gone as (
                select recipient from shown union all select recipient from unsent
            )
            insert into delivery (accepted_at, message_id, sender, recipient, status, at)
            select $2, $3, $4, recipient, 'cancelled', $5 from gone
            returning recipient
            "#,
            &recipients,
            filed.accepted_at,
            id.0,
            sender.as_str(),
            now,
        )
        .fetch_all(&mut *transaction)
        .await?;
        let unaccounted = recipients.len() - waiting.len().min(recipients.len());
        if waiting.is_empty() || unaccounted as i64 > failed_at_once {
            transaction.rollback().await?;
            return Ok(Cancelled::TooLate);
        }
        transaction.commit().await?;
        Ok(Cancelled::Done)
    }

    /// What a caller may know of an id; see [`fieldpost_delivery::Store::records`].
    pub(super) async fn records_for(
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

    async fn record_of(
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

    /// Opens a row of `message`.
    pub(super) async fn unseal(&self, row: Sealed) -> sqlx::Result<(Message, Time)> {
        let key = self.data_key(row.accepted_at.date_naive()).await?;
        let aad = associated_data(row.message_id, &row.sender);
        let plain =
            key.open(&aad, &row.sealed).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let (content, wishes, sent_at) =
            content::decode(plain, row.is_text).map_err(sqlx::Error::Decode)?;
        let message = Message {
            id: MessageId(row.message_id),
            sender: self.as_written_here(words::parse(&row.sender)?)?,
            to: words::parse(&row.addressed_to)?,
            content,
            expires_at: row.expires_at,
            priority: words::priority(row.priority)?,
            min_anonymity: words::level(row.min_anonymity)?,
            wishes,
        };
        Ok((message, sent_at.unwrap_or(row.accepted_at)))
    }

    /// A peer of this gateway whose message came back from a group elsewhere loses its `@gateway`.
    fn as_written_here(&self, sender: PeerAddress) -> sqlx::Result<PeerAddress> {
        Ok(match sender.gateway {
            None => sender,
            Some(_) => sender.seen_from(self.identity()?.gateway_id),
        })
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

/// What is known of the gateway that a delivery waits for.
struct Absence<'a> {
    heard_at: Option<Time>,
    /// The recipient, if its bare name was pinned to that gateway.
    pinned: Option<&'a str>,
}

/// A gateway that is out of reach and has been silent for so long is likely to be away for good.
const LONG_SILENCE: TimeDelta = TimeDelta::minutes(10);

impl Absence<'_> {
    /// Adds to the reason why a delivery waits for how long its gateway has been silent, and what its
    /// sender can do if the name lives elsewhere by now.
    fn add(&self, reason: String, now: Time) -> String {
        if !reason.starts_with(OUT_OF_REACH) {
            return reason;
        }
        let silence = match self.heard_at {
            Some(heard_at) if now - heard_at < LONG_SILENCE => return reason,
            Some(heard_at) => {
                format!("its gateway was last heard at {}", heard_at.format("%Y-%m-%d %H:%M UTC"))
            }
            None if self.pinned.is_none() => return reason,
            None => "its gateway is not remembered any more".to_owned(),
        };
        let pin = match self.pinned {
            Some(recipient) => {
                let name = recipient.split('@').next().unwrap_or(recipient);
                format!(
                    "; the name {name} has led there since you first used it: if it lives elsewhere \
                     now, DELETE /v1/pins/{name}, and write again"
                )
            }
            None => String::new(),
        };
        format!("{reason}; {silence}{pin}")
    }
}

/// Whether a recipient on this gateway may know of a message that stands so for it: what it has not
/// been shown may still be withdrawn, and what failed here never came to it.
pub fn may_be_known(status: MessageStatus) -> bool {
    !matches!(status, MessageStatus::Pending | MessageStatus::Cancelled | MessageStatus::Failed)
}

/// The number under which a talk is filed: of two peers, of a group, or of all broadcasts.
pub fn conversation(sender: &PeerAddress, to: &Recipient) -> i64 {
    let ends = match to {
        Recipient::Peer(other) => {
            let mut ends = [sender.to_string(), other.to_string()];
            ends.sort();
            ends.join("\0")
        }
        Recipient::Group { .. } | Recipient::Broadcast => to.to_string(),
    };
    let digest = Sha256::digest(ends.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}

/// Binds sealed content to its row.
pub(super) fn associated_data(id: Uuid, sender: &str) -> Vec<u8> {
    [id.as_bytes().as_slice(), sender.as_bytes()].concat()
}

fn is_local(recipient: &str) -> bool {
    !recipient.starts_with("transport:")
        && recipient.parse::<PeerId>().is_ok_and(|peer| !peer.is_phone())
}

async fn locate(
    connection: &mut PgConnection,
    id: MessageId,
    sender: &str,
) -> sqlx::Result<Option<Filed>> {
    sqlx::query_as!(
        Filed,
        "select accepted_at, conversation from message_key where message_id = $1 and sender = $2",
        id.0,
        sender,
    )
    .fetch_optional(connection)
    .await
}

/// Lets recipients read the files that came with what is fresh, and their gateways fetch them.
async fn grant_files(
    connection: &mut PgConnection,
    now: Time,
    batch: &[Submission],
    fresh: &HashMap<(Uuid, String), Time>,
) -> sqlx::Result<()> {
    for Submission { message, deliveries, .. } in batch {
        let key = (message.id.0, message.sender.to_string());
        if message.content.file_ids.is_empty() || !fresh.contains_key(&key) {
            continue;
        }
        let readers: Vec<PeerId> = deliveries
            .iter()
            .filter_map(|target| match target {
                Target::Local(peer) => Some(peer.clone()),
                Target::Remote(_) | Target::Group { .. } | Target::Broadcast(_) => None,
            })
            .collect();
        Store::grant_files(
            &mut *connection,
            &message.content.file_ids,
            &message.sender.peer,
            &readers,
        )
        .await?;
        let mut gateways: Vec<String> = deliveries
            .iter()
            .filter_map(fieldpost_delivery::signer_of)
            .filter(|signer| matches!(signer, Correspondent::Gateway(_)))
            .map(|gateway| gateway.to_string())
            .collect();
        gateways.sort_unstable();
        gateways.dedup();
        if !gateways.is_empty() {
            let level = words::level_number(message.min_anonymity);
            let files = &message.content.file_ids;
            Store::hand_on_files(&mut *connection, now, files, level, &[], &gateways).await?;
        }
    }
    Ok(())
}

/// Times for a batch, one microsecond apart.
#[derive(Clone, Copy)]
pub(super) struct Times {
    start: Time,
}

impl Times {
    pub(super) fn at(self, index: usize) -> Time {
        self.start + TimeDelta::microseconds(i64::try_from(index).unwrap_or(i64::MAX))
    }
}

/// What a delivery outside this gateway needs besides its message.
struct Owed {
    message_id: Uuid,
    sender: String,
    recipient: String,
    target: String,
    accepted_at: Time,
    conversation: i64,
    level: AnonymityLevel,
    has_lane: bool,
    priority: Priority,
    size_bytes: i32,
    expires_at: Time,
}

/// Deliveries that cannot begin, as columns.
#[derive(Default)]
struct Failed {
    /// Which message, from 0.
    message: Vec<usize>,
    recipient: Vec<String>,
    reason: Vec<String>,
}

/// A batch as columns, for `unnest`.
#[derive(Default)]
struct Rows {
    message_id: Vec<Uuid>,
    sender: Vec<String>,
    accepted_at: Vec<Time>,
    conversation: Vec<i64>,
    fingerprint: Vec<Vec<u8>>,
    expires_at: Vec<Time>,
    addressed_to: Vec<String>,
    /// Joined by spaces, which no name holds: arrays of arrays would have to be rectangular.
    recipients: Vec<String>,
    priority: Vec<i16>,
    min_anonymity: Vec<i16>,
    is_text: Vec<bool>,
    size_bytes: Vec<i32>,
    sealed: Vec<Vec<u8>>,
    inbox_recipient: Vec<String>,
    /// Which message, from 1.
    inbox_message: Vec<i32>,
    outbox: Vec<Owed>,
    failed: Failed,
    contact_peer: Vec<String>,
    contact_other: Vec<String>,
    contact_conversation: Vec<i64>,
    carries_files: bool,
}

impl Rows {
    fn push(&mut self, submission: &Submission, at: Time, sealed: Vec<u8>) {
        let message = &submission.message;
        let sender = message.sender.to_string();
        let filed = conversation(&message.sender, &message.to);
        let size = i32::try_from(message.content.bytes.len()).unwrap_or(i32::MAX);
        let mut recipients = String::new();
        for target in &submission.deliveries {
            let recipient = target.recipient();
            if !recipients.is_empty() {
                recipients.push(' ');
            }
            recipients.push_str(&recipient);
            match target {
                Target::Local(_) => {
                    self.inbox_recipient.push(recipient);
                    self.inbox_message.push(self.message_id.len() as i32 + 1);
                }
                Target::Remote(_) | Target::Group { .. } | Target::Broadcast(_) => {
                    self.outbox.push(Owed {
                        message_id: message.id.0,
                        sender: sender.clone(),
                        recipient,
                        target: target.reached_through().unwrap_or_default(),
                        accepted_at: at,
                        conversation: filed,
                        level: message.min_anonymity,
                        has_lane: message.priority != Priority::Critical
                            && target.lane_end().is_some(),
                        priority: message.priority,
                        size_bytes: size,
                        expires_at: message.expires_at,
                    });
                }
            }
        }
        for failure in &submission.failures {
            let recipient = failure.target.recipient();
            if !recipients.is_empty() {
                recipients.push(' ');
            }
            recipients.push_str(&recipient);
            self.failed.message.push(self.message_id.len());
            self.failed.recipient.push(recipient);
            self.failed.reason.push(failure.reason.clone());
        }
        self.carries_files |= !message.content.file_ids.is_empty();
        self.message_id.push(message.id.0);
        self.sender.push(sender);
        self.accepted_at.push(at);
        self.conversation.push(filed);
        self.fingerprint.push(submission.fingerprint.to_vec());
        self.expires_at.push(message.expires_at);
        self.addressed_to.push(message.to.to_string());
        self.recipients.push(recipients);
        self.priority.push(words::priority_number(message.priority));
        self.min_anonymity.push(words::level_number(message.min_anonymity));
        self.is_text.push(message.content.is_text);
        self.size_bytes.push(size);
        self.sealed.push(sealed);
    }

    /// A column of the messages, for each row of `inbox`.
    fn of_inbox<T: Clone>(&self, column: &[T]) -> Vec<T> {
        self.inbox_message.iter().map(|number| column[*number as usize - 1].clone()).collect()
    }

    fn all(&self) -> HashMap<(Uuid, String), Time> {
        let keys = self.message_id.iter().copied().zip(self.sender.iter().cloned());
        keys.zip(self.accepted_at.iter().copied()).collect()
    }

    /// Whether one statement does it all.
    fn is_plain(&self) -> bool {
        self.outbox.is_empty()
            && self.failed.recipient.is_empty()
            && self.contact_peer.is_empty()
            && !self.carries_files
    }

    /// Takes up the messages, by number, whose sender and recipient had not met before.
    fn meet(&mut self, met: &[usize]) {
        for &number in met {
            self.contact_peer.push(self.sender[number].clone());
            self.contact_other.push(self.addressed_to[number].clone());
            self.contact_conversation.push(self.conversation[number]);
        }
    }

    /// Inserts messages and inbox rows when none of them was known before, else nothing; returns
    /// whether it did.
    ///
    /// Half the work of [`insert`](Self::insert), which has to ask first.
    async fn insert_fresh(&self, connection: &mut PgConnection) -> sqlx::Result<bool> {
        let inserted = sqlx::query!(
            r#"
            with key as (
                insert into message_key
                    (message_id, sender, accepted_at, conversation, fingerprint, expires_at)
                select * from unnest(
                    $1::uuid[], $2::text[], $3::timestamptz[], $4::bigint[], $5::bytea[],
                    $6::timestamptz[]
                )
            ), kept as (
                insert into message (
                    message_id, sender, accepted_at, conversation, expires_at, addressed_to,
                    recipients, priority, min_anonymity, is_text, size_bytes, sealed
                )
                select message_id, sender, accepted_at, conversation, expires_at, addressed_to,
                       string_to_array(recipients, ' '), priority, min_anonymity, is_text,
                       size_bytes, sealed
                from unnest(
                    $1::uuid[], $2::text[], $3::timestamptz[], $4::bigint[], $6::timestamptz[],
                    $7::text[], $8::text[], $9::smallint[], $10::smallint[], $11::boolean[],
                    $12::integer[], $13::bytea[]
                ) as batch (
                    message_id, sender, accepted_at, conversation, expires_at, addressed_to,
                    recipients, priority, min_anonymity, is_text, size_bytes, sealed
                )
            )
            insert into inbox (
                recipient, position, message_id, sender, accepted_at, conversation, expires_at,
                size_bytes
            )
            select recipient, accepted_at, message_id, sender, accepted_at, conversation, expires_at,
                   size_bytes
            from unnest(
                $14::text[], $15::timestamptz[], $16::uuid[], $17::text[], $18::bigint[],
                $19::timestamptz[], $20::integer[]
            ) as owed (
                recipient, accepted_at, message_id, sender, conversation, expires_at, size_bytes
            )
            "#,
            &self.message_id,
            &self.sender,
            &self.accepted_at,
            &self.conversation,
            &self.fingerprint,
            &self.expires_at,
            &self.addressed_to,
            &self.recipients,
            &self.priority,
            &self.min_anonymity,
            &self.is_text,
            &self.size_bytes,
            &self.sealed,
            &self.inbox_recipient,
            &self.of_inbox(&self.accepted_at),
            &self.of_inbox(&self.message_id),
            &self.of_inbox(&self.sender),
            &self.of_inbox(&self.conversation),
            &self.of_inbox(&self.expires_at),
            &self.of_inbox(&self.size_bytes),
        )
        .execute(connection)
        .await;
        match inserted {
            Ok(_) => Ok(true),
            Err(sqlx::Error::Database(error)) if error.constraint() == Some("message_key_pkey") => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Inserts messages and inbox rows of those not known before; returns these.
    async fn insert(
        &self,
        connection: &mut PgConnection,
    ) -> sqlx::Result<HashMap<(Uuid, String), Time>> {
        let rows = sqlx::query!(
            r#"
            with batch as (
                select * from unnest(
                    $1::uuid[], $2::text[], $3::timestamptz[], $4::bigint[], $5::bytea[],
                    $6::timestamptz[], $7::text[], $8::text[], $9::smallint[], $10::smallint[],
                    $11::boolean[], $12::integer[], $13::bytea[]
                ) with ordinality as batch (
                    message_id, sender, accepted_at, conversation, fingerprint, expires_at,
                    addressed_to, recipients, priority, min_anonymity, is_text, size_bytes, sealed,
                    number
                )
            ), fresh as (
                insert into message_key
                    (message_id, sender, accepted_at, conversation, fingerprint, expires_at)
                select message_id, sender, accepted_at, conversation, fingerprint, expires_at
                from batch
                on conflict do nothing
                returning message_id, sender, accepted_at
            ), kept as (
                insert into message (
                    accepted_at, conversation, message_id, sender, addressed_to, recipients,
                    expires_at, priority, min_anonymity, is_text, size_bytes, sealed
                )
                select accepted_at, conversation, message_id, sender, addressed_to,
                       string_to_array(recipients, ' '), expires_at, priority, min_anonymity,
                       is_text, size_bytes, sealed
                from batch join fresh using (message_id, sender, accepted_at)
            ), owed as (
                insert into inbox (
                    recipient, position, message_id, sender, accepted_at, conversation, expires_at,
                    size_bytes
                )
                select d.recipient, b.accepted_at, b.message_id, b.sender, b.accepted_at,
                       b.conversation, b.expires_at, b.size_bytes
                from unnest($14::text[], $15::integer[]) as d (recipient, number)
                join batch b on b.number = d.number
                join fresh using (message_id, sender, accepted_at)
            )
            select message_id, sender, accepted_at from fresh
            "#,
            &self.message_id,
            &self.sender,
            &self.accepted_at,
            &self.conversation,
            &self.fingerprint,
            &self.expires_at,
            &self.addressed_to,
            &self.recipients,
            &self.priority,
            &self.min_anonymity,
            &self.is_text,
            &self.size_bytes,
            &self.sealed,
            &self.inbox_recipient,
            &self.inbox_message,
        )
        .fetch_all(connection)
        .await?;
        Ok(rows.into_iter().map(|row| ((row.message_id, row.sender), row.accepted_at)).collect())
    }

    /// Inserts what goes elsewhere, each with the next number of its lane.
    async fn insert_outbox(
        &self,
        connection: &mut PgConnection,
        fresh: &HashMap<(Uuid, String), Time>,
    ) -> sqlx::Result<()> {
        let outbox: Vec<&Owed> = self
            .outbox
            .iter()
            .filter(|owed| fresh.contains_key(&(owed.message_id, owed.sender.clone())))
            .collect();
        if outbox.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            r#"
            with owed as (
                select * from unnest(
                    $1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::bigint[],
                    $6::text[], $7::smallint[], $8::boolean[], $9::smallint[], $10::integer[],
                    $11::timestamptz[]
                ) with ordinality as owed (
                    message_id, sender, recipient, accepted_at, conversation, target, level,
                    has_lane, priority, size_bytes, expires_at, number
                )
            ), lane as (
                insert into lane_out (sender, recipient, level, last_seq)
                select sender, recipient, level, count(*) from owed where has_lane
                group by sender, recipient, level order by sender, recipient, level
                on conflict (sender, recipient, level)
                    do update set last_seq = lane_out.last_seq + excluded.last_seq
                returning sender, recipient, level, last_seq
            )
            insert into outbox (
                message_id, sender, recipient, accepted_at, conversation, target, level,
                lane_seq, priority, size_bytes, next_attempt_at, expires_at
            )
            select o.message_id, o.sender, o.recipient, o.accepted_at, o.conversation, o.target,
                   o.level,
                   case when o.has_lane then l.last_seq + 1 - row_number() over (
                       partition by o.sender, o.recipient, o.level, o.has_lane
                       order by o.number desc
                   ) end,
                   o.priority, o.size_bytes, o.accepted_at, o.expires_at
            from owed o left join lane l using (sender, recipient, level)
            "#,
            &outbox.iter().map(|owed| owed.message_id).collect::<Vec<_>>(),
            &outbox.iter().map(|owed| owed.sender.clone()).collect::<Vec<_>>(),
            &outbox.iter().map(|owed| owed.recipient.clone()).collect::<Vec<_>>(),
            &outbox.iter().map(|owed| owed.accepted_at).collect::<Vec<_>>(),
            &outbox.iter().map(|owed| owed.conversation).collect::<Vec<_>>(),
            &outbox.iter().map(|owed| owed.target.clone()).collect::<Vec<_>>(),
            &outbox.iter().map(|owed| words::level_number(owed.level)).collect::<Vec<_>>(),
            &outbox.iter().map(|owed| owed.has_lane).collect::<Vec<_>>(),
            &outbox.iter().map(|owed| words::priority_number(owed.priority)).collect::<Vec<_>>(),
            &outbox.iter().map(|owed| owed.size_bytes).collect::<Vec<_>>(),
            &outbox.iter().map(|owed| owed.expires_at).collect::<Vec<_>>(),
        )
        .execute(connection)
        .await
        .map(drop)
    }

    /// Records what could not begin; `at` is when it was accepted.
    async fn insert_failures(
        &self,
        connection: &mut PgConnection,
        fresh: &HashMap<(Uuid, String), Time>,
    ) -> sqlx::Result<()> {
        let failed: Vec<usize> = (0..self.failed.message.len())
            .filter(|index| {
                let message = self.failed.message[*index];
                fresh.contains_key(&(self.message_id[message], self.sender[message].clone()))
            })
            .collect();
        let message = |index: &usize| self.failed.message[*index];
        sqlx::query!(
            r#"
            insert into delivery (accepted_at, message_id, sender, recipient, status, at, reason)
            select accepted_at, message_id, sender, recipient, 'failed', accepted_at, reason
            from unnest($1::timestamptz[], $2::uuid[], $3::text[], $4::text[], $5::text[])
                as failed (accepted_at, message_id, sender, recipient, reason)
            "#,
            &failed.iter().map(|at| self.accepted_at[message(at)]).collect::<Vec<_>>(),
            &failed.iter().map(|at| self.message_id[message(at)]).collect::<Vec<_>>(),
            &failed.iter().map(|at| self.sender[message(at)].clone()).collect::<Vec<_>>(),
            &failed.iter().map(|at| self.failed.recipient[*at].clone()).collect::<Vec<_>>(),
            &failed.iter().map(|at| self.failed.reason[*at].clone()).collect::<Vec<_>>(),
        )
        .execute(connection)
        .await
        .map(drop)
    }

    async fn insert_contacts(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            insert into contact (peer, other, conversation)
            select distinct * from unnest($1::text[], $2::text[], $3::bigint[])
            order by 1, 2
            on conflict do nothing
            "#,
            &self.contact_peer,
            &self.contact_other,
            &self.contact_conversation,
        )
        .execute(connection)
        .await
        .map(drop)
    }
}

/// The target of a stored row, back from its names.
pub(super) fn target(recipient: &str) -> sqlx::Result<Target> {
    match recipient.strip_prefix("transport:") {
        Some(transport) => Ok(Target::Broadcast(transport.to_owned())),
        None => match words::parse(recipient)? {
            Recipient::Peer(address) => Ok(Target::Remote(address)),
            Recipient::Group { id, home: Some(home) } => Ok(Target::Group { id, home }),
            Recipient::Group { home: None, .. } | Recipient::Broadcast => {
                Err(sqlx::Error::Decode(format!("{recipient} is not elsewhere").into()))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_a_gateway_that_is_long_silent_is_told_since_when_and_of_the_pin() {
        let now = Time::UNIX_EPOCH + TimeDelta::days(20_000);
        let say = |heard_at, pinned, reason: &str| {
            Absence { heard_at, pinned }.add(format!("{reason}: no way"), now)
        };
        let long_ago = Some(now - TimeDelta::days(3));
        let told = say(long_ago, Some("bob@gw"), OUT_OF_REACH);
        assert!(told.starts_with("out of reach: no way; its gateway was last heard at 2024-10-01"));
        assert!(told.contains("DELETE /v1/pins/bob, and write again"), "{told}");
        assert!(!say(long_ago, None, OUT_OF_REACH).contains("pins"));
        assert!(say(None, Some("bob@gw"), OUT_OF_REACH).contains("not remembered any more"));
        // What was heard just now, and what waits for something else, is told as it is.
        let just_now = Some(now - TimeDelta::seconds(5));
        assert_eq!(say(just_now, Some("bob@gw"), OUT_OF_REACH), "out of reach: no way");
        assert_eq!(say(long_ago, Some("bob@gw"), "level"), "level: no way");
    }
}
