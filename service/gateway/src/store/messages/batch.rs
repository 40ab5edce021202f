//! A batch of messages as columns, and the statements that insert it.

use std::collections::HashMap;

use fieldpost_delivery::{AtOnce, Claim, Seq, Submission, Target, Time};
use fieldpost_envelope::{AnonymityLevel, Priority};
use sqlx::PgConnection;
use uuid::Uuid;

use super::conversation;
use crate::store::{outbox::lane, words};

/// What a delivery outside this gateway needs besides its message.
struct Owed {
    /// Of which message, and to which of its recipients, from 0.
    message: usize,
    delivery: usize,
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

impl Owed {
    fn lane(&self) -> (&str, &str, AnonymityLevel) {
        (&self.sender, &self.recipient, self.level)
    }
}

/// Deliveries that cannot begin, as columns.
#[derive(Default)]
pub(super) struct Failed {
    /// Which message, from 0.
    message: Vec<usize>,
    pub(super) recipient: Vec<String>,
    reason: Vec<String>,
}

/// A batch as columns, for `unnest`.
#[derive(Default)]
pub(super) struct Rows {
    message_id: Vec<Uuid>,
    pub(super) sender: Vec<String>,
    pub(super) accepted_at: Vec<Time>,
    conversation: Vec<i64>,
    fingerprint: Vec<Vec<u8>>,
    expires_at: Vec<Time>,
    pub(super) addressed_to: Vec<String>,
    /// Joined by spaces, which no name holds: arrays of arrays would have to be rectangular.
    recipients: Vec<String>,
    priority: Vec<i16>,
    min_anonymity: Vec<i16>,
    is_text: Vec<bool>,
    size_bytes: Vec<i32>,
    sealed: Vec<Vec<u8>>,
    pub(super) inbox_recipient: Vec<String>,
    /// Which message, from 1.
    inbox_message: Vec<i32>,
    outbox: Vec<Owed>,
    pub(super) failed: Failed,
    pub(super) contact_peer: Vec<String>,
    pub(super) contact_other: Vec<String>,
    contact_conversation: Vec<i64>,
    carries_files: bool,
}

/// The statement that inserts names and messages of a batch, and then does what `$rest` says.
macro_rules! insert_messages {
    ($rows:ident, $rest:literal $(, $more:expr)?) => {
        sqlx::query!(
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
            "# + $rest,
            &$rows.message_id,
            &$rows.sender,
            &$rows.accepted_at,
            &$rows.conversation,
            &$rows.fingerprint,
            &$rows.expires_at,
            &$rows.addressed_to,
            &$rows.recipients,
            &$rows.priority,
            &$rows.min_anonymity,
            &$rows.is_text,
            &$rows.size_bytes,
            &$rows.sealed,
            &$rows.inbox_recipient,
            &$rows.of_inbox(&$rows.accepted_at),
            &$rows.of_inbox(&$rows.message_id),
            &$rows.of_inbox(&$rows.sender),
            &$rows.of_inbox(&$rows.conversation),
            &$rows.of_inbox(&$rows.expires_at),
            &$rows.of_inbox(&$rows.size_bytes)
            $(, $more)?
        )
    };
}

impl Rows {
    pub(super) fn push(&mut self, submission: &Submission, at: Time, sealed: Vec<u8>) {
        let message = &submission.message;
        let sender = message.sender.to_string();
        let filed = conversation(&message.sender, &message.to);
        let size = i32::try_from(message.content.bytes.len()).unwrap_or(i32::MAX);
        let mut recipients = String::new();
        for (delivery, target) in submission.deliveries.iter().enumerate() {
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
                        message: self.message_id.len(),
                        delivery,
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

    pub(super) fn all(&self) -> HashMap<(Uuid, String), Time> {
        let keys = self.message_id.iter().copied().zip(self.sender.iter().cloned());
        keys.zip(self.accepted_at.iter().copied()).collect()
    }

    /// Whether one statement does it all.
    pub(super) fn is_plain(&self) -> bool {
        self.outbox.is_empty()
            && self.failed.recipient.is_empty()
            && self.contact_peer.is_empty()
            && !self.carries_files
    }

    /// Takes up the messages, by number, whose sender and recipient had not met before.
    pub(super) fn meet(&mut self, met: &[usize]) {
        for &number in met {
            self.contact_peer.push(self.sender[number].clone());
            self.contact_other.push(self.addressed_to[number].clone());
            self.contact_conversation.push(self.conversation[number]);
        }
    }

    /// Inserts messages and inbox rows when none of them was known before, else nothing and `None`.
    /// Returned is which rows of the inbox, from 0, were shown at once to peers who are `present`, and
    /// their positions there.
    ///
    /// Half the work of [`insert`](Self::insert), which has to ask first; looking for who can be
    /// shown something would be a fifth more.
    pub(super) async fn insert_fresh(
        &self,
        connection: &mut PgConnection,
        present: &[String],
    ) -> sqlx::Result<Option<Vec<(usize, Seq)>>> {
        let inserted = match present {
            [] => self.insert_unshown(connection).await.map(|()| Vec::new()),
            _ => self.insert_shown(connection, present).await,
        };
        match inserted {
            Ok(shown) => Ok(Some(shown)),
            Err(sqlx::Error::Database(error)) if error.constraint() == Some("message_key_pkey") => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn insert_unshown(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        insert_messages!(
            self,
            r#"
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
            "#
        )
        .execute(connection)
        .await
        .map(drop)
    }

    async fn insert_shown(
        &self,
        connection: &mut PgConnection,
        present: &[String],
    ) -> sqlx::Result<Vec<(usize, Seq)>> {
        let shown = insert_messages!(
            self,
            r#"
            ), head as materialized (
                select peer, last_seq from inbox_head where peer = any($21) order by peer for update
            ), shown as materialized (
                select number, h.peer, o.accepted_at,
                       h.last_seq + row_number() over (partition by h.peer order by number) as seq
                from head h
                join unnest($14::text[], $15::timestamptz[], $19::timestamptz[]) with ordinality
                    as o (recipient, accepted_at, expires_at, number)
                    -- It may have run out while it waited for this commit.
                    on o.recipient = h.peer and o.expires_at > o.accepted_at
                -- What waits unshown comes first. Committed earlier, it is seen here; what others
                -- commit now is in no order with this.
                where not exists (select from inbox where recipient = h.peer and seq is null)
            ), moved as (
                update inbox_head h
                set last_seq = s.seq, last_position = greatest(h.last_position, s.position)
                from (
                    select peer, max(seq) as seq, max(accepted_at) as position from shown group by peer
                ) s
                where h.peer = s.peer
            ), owed as (
                insert into inbox (
                    recipient, position, message_id, sender, accepted_at, conversation, expires_at,
                    size_bytes, seq
                )
                select o.recipient, o.accepted_at, message_id, sender, o.accepted_at, conversation,
                       expires_at, size_bytes, s.seq
                from unnest(
                    $14::text[], $15::timestamptz[], $16::uuid[], $17::text[], $18::bigint[],
                    $19::timestamptz[], $20::integer[]
                ) with ordinality as o (
                    recipient, accepted_at, message_id, sender, conversation, expires_at, size_bytes,
                    number
                )
                left join shown s using (number)
            )
            select number as "number!", seq as "seq!" from shown order by number
            "#,
            present
        )
        .fetch_all(connection)
        .await?;
        Ok(shown.into_iter().map(|row| (row.number as usize - 1, row.seq)).collect())
    }

    /// The recipient of a row of the inbox, from 0, and the number of its message.
    pub(super) fn inbox_row(&self, number: usize) -> (&str, usize) {
        (&self.inbox_recipient[number], self.inbox_message[number] as usize - 1)
    }

    /// Inserts messages and inbox rows of those not known before; returns these.
    pub(super) async fn insert(
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

    /// Owes what leaves this gateway. What can begin `at_once` is claimed, and returned.
    pub(super) async fn insert_outbox(
        &self,
        connection: &mut PgConnection,
        now: Time,
        taken: &[&Submission],
        fresh: &HashMap<(Uuid, String), Time>,
        at_once: AtOnce<'_>,
    ) -> sqlx::Result<Vec<Claim>> {
        let outbox: Vec<&Owed> = self
            .outbox
            .iter()
            .filter(|owed| fresh.contains_key(&(owed.message_id, owed.sender.clone())))
            .collect();
        if outbox.is_empty() {
            return Ok(Vec::new());
        }
        let claimed_until = at_once.claimed_until(now);
        let begun = sqlx::query!(
            r#"
            with owed as (
                -- A phone, which is its own target, gets one of a lane at a time. A transport is the
                -- target of a broadcast, which is rare enough to be looked for. What ran out while it
                -- waited for this commit must not become another's predecessor.
                select *, target = any($12::text[]) and target <> recipient
                          and expires_at > $14::timestamptz as begins
                from unnest(
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
            ), placed as materialized (
                select o.*, case when o.has_lane then l.last_seq + 1 - row_number() over (
                           partition by o.sender, o.recipient, o.level, o.has_lane
                           order by o.number desc
                       ) end as lane_seq
                from owed o left join lane l using (sender, recipient, level)
            ), kept as (
                insert into outbox (
                    message_id, sender, recipient, accepted_at, conversation, target, level,
                    lane_seq, priority, size_bytes, next_attempt_at, expires_at, attempts, claimed
                )
                select message_id, sender, recipient, accepted_at, conversation, target, level,
                       lane_seq, priority, size_bytes,
                       case when begins then $13::timestamptz else accepted_at end, expires_at,
                       begins::integer, begins
                from placed
            )
            select number as "number!", lane_seq from placed where begins order by number
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
            at_once.reachable,
            claimed_until,
            now,
        )
        .fetch_all(&mut *connection)
        .await?;
        let begun =
            begun.iter().map(|row| (outbox[row.number as usize - 1], row.lane_seq)).collect();
        let claims = follow(connection, now, begun).await?;
        let claim = |(owed, lane_seq, after): (&Owed, Option<i64>, Option<i64>)| {
            let submission = taken[owed.message];
            Claim {
                message: submission.message.clone(),
                accepted_at: owed.accepted_at,
                target: submission.deliveries[owed.delivery].clone(),
                attempt: 1,
                lane_seq: lane_seq.map(lane),
                after: after.map(lane),
                claimed_until,
            }
        };
        Ok(claims.into_iter().map(claim).collect())
    }

    /// Records what could not begin; `at` is when it was accepted.
    pub(super) async fn insert_failures(
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

    pub(super) async fn insert_contacts(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
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

/// Finds the last predecessor that has not ended for each of these, which were inserted in order. Their
/// lanes are locked, so whatever came before in one is committed, and seen by a statement that begins now.
async fn follow<'a>(
    connection: &mut PgConnection,
    now: Time,
    begun: Vec<(&'a Owed, Option<i64>)>,
) -> sqlx::Result<Vec<(&'a Owed, Option<i64>, Option<i64>)>> {
    let mut last: HashMap<(&str, &str, AnonymityLevel), Option<i64>> = HashMap::new();
    let mut firsts: Vec<(&Owed, i64)> = Vec::new();
    for (owed, lane_seq) in &begun {
        if let Some(seq) = lane_seq
            && last.insert(owed.lane(), None).is_none()
        {
            firsts.push((owed, *seq));
        }
    }
    if !firsts.is_empty() {
        let before = sqlx::query_scalar!(
            r#"
            select (
                select max(o.lane_seq) from outbox o
                where o.sender = first.sender and o.recipient = first.recipient
                  and o.level = first.level and o.lane_seq < first.lane_seq and o.expires_at > $5
            )
            from unnest($1::text[], $2::text[], $3::smallint[], $4::bigint[])
                with ordinality as first (sender, recipient, level, lane_seq, number)
            order by number
            "#,
            &firsts.iter().map(|(owed, _)| owed.sender.clone()).collect::<Vec<_>>(),
            &firsts.iter().map(|(owed, _)| owed.recipient.clone()).collect::<Vec<_>>(),
            &firsts.iter().map(|(owed, _)| words::level_number(owed.level)).collect::<Vec<_>>(),
            &firsts.iter().map(|(_, seq)| *seq).collect::<Vec<_>>(),
            now,
        )
        .fetch_all(connection)
        .await?;
        last.extend(firsts.iter().map(|(owed, _)| owed.lane()).zip(before));
    }
    let follows = |(owed, lane_seq): (&'a Owed, Option<i64>)| {
        let after = lane_seq.and_then(|seq| last.insert(owed.lane(), Some(seq)).flatten());
        (owed, lane_seq, after)
    };
    Ok(begun.into_iter().map(follows).collect())
}
