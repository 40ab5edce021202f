//! Accepting messages, cancelling them, and opening them again.

mod absence;
mod batch;
mod records;

use std::collections::{HashMap, HashSet};

use chrono::TimeDelta;
use fieldpost_delivery::{
    Accepted, AcceptedBatch, AtOnce, Cancelled, Correspondent, InboxEntry, Message, Seq,
    Submission, Target, Time,
};
use fieldpost_envelope::{MessageId, MessageStatus, PeerAddress, PeerId, Recipient};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use self::batch::Rows;
pub use self::records::{Page, may_be_known, status_of};
use crate::store::{Store, content, words};

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

impl Store {
    /// Accepts a batch; see [`fieldpost_delivery::Store::accept_and_begin`]. Of a batch in which one
    /// was known before nothing is shown.
    pub(super) async fn accept_batch(
        &self,
        now: Time,
        batch: &[Submission],
        at_once: AtOnce<'_>,
    ) -> sqlx::Result<AcceptedBatch> {
        let times = self.acceptance_times(now, batch.len());
        let mut day = times.start.date_naive();
        let mut key = self.data_key(day).await?;
        let mut rows = Rows::default();
        let mut names = HashSet::with_capacity(batch.len());
        let mut taken = Vec::with_capacity(batch.len());
        for (index, submission) in batch.iter().enumerate() {
            let message = &submission.message;
            if names.insert((message.id, &message.sender)) {
                taken.push(submission);
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
        let present: Vec<String> = at_once.present.iter().map(ToString::to_string).collect();
        let (fresh, shown, claimed) = if rows.is_plain() && !self.announces {
            let mut connection = self.warm.take().await?;
            let (fresh, shown) = match rows.insert_fresh(&mut connection, &present).await? {
                Some(shown) if taken.len() == batch.len() => (None, shown),
                Some(shown) => (Some(rows.all()), shown),
                None => (Some(rows.insert(&mut connection).await?), Vec::new()),
            };
            connection.keep();
            let Some(fresh) = fresh else {
                let new = |index| Accepted::New { accepted_at: times.at(index) };
                let answers = (0..batch.len()).map(new).collect();
                let shown = entries(&rows, &taken, shown)?;
                return Ok(AcceptedBatch { answers, shown, claimed: Vec::new() });
            };
            (fresh, shown, Vec::new())
        } else {
            let mut connection = self.warm.take().await?;
            let mut transaction = sqlx::Connection::begin(&mut *connection).await?;
            let (fresh, shown) = match rows.insert_fresh(&mut transaction, &present).await? {
                Some(shown) => (rows.all(), shown),
                None => {
                    transaction.rollback().await?;
                    transaction = sqlx::Connection::begin(&mut *connection).await?;
                    (rows.insert(&mut transaction).await?, Vec::new())
                }
            };
            let claimed =
                rows.insert_outbox(&mut transaction, now, &taken, &fresh, at_once).await?;
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
            (fresh, shown, claimed)
        };
        // What is fresh is committed: a failure from here on must not read as if it were not.
        let answers = self
            .answer(now, batch, &fresh)
            .await
            .map_err(|error| sqlx::Error::Protocol(format!("after the commit: {error}")))?;
        Ok(AcceptedBatch { answers, shown: entries(&rows, &taken, shown)?, claimed })
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

/// What was shown at once, as it would be read from the inbox. `taken` are the submissions of `rows`.
fn entries(
    rows: &Rows,
    taken: &[&Submission],
    shown: Vec<(usize, Seq)>,
) -> sqlx::Result<Vec<(PeerId, InboxEntry)>> {
    let entry = |(number, seq)| {
        let (recipient, message) = rows.inbox_row(number);
        let accepted_at = rows.accepted_at[message];
        let message = taken[message].message.clone();
        let entry =
            InboxEntry { seq, accepted_at, sent_at: accepted_at, message, gap: false, late: false };
        Ok((words::parse(recipient)?, entry))
    };
    shown.into_iter().map(entry).collect()
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
