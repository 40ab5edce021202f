//! What was said to groups, kept until it takes effect and as long as copies may come.

use fieldpost_delivery::{Held, Message, Time, shown_sent_at};
use fieldpost_envelope::{Recipient, SignedEnvelope};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{GroupInbound, GroupWord};
use crate::store::{
    Store, content,
    inbox::lane_number,
    messages::{associated_data, conversation},
    words,
};

impl Store {
    /// A message of another gateway's peer to a group of this one, as its gateway signed it.
    pub async fn group_original(&self, message: &Message) -> sqlx::Result<SignedEnvelope> {
        let Recipient::Group { id, .. } = &message.to else {
            return Err(sqlx::Error::RowNotFound);
        };
        let sender = message.sender.to_string();
        let row = sqlx::query!(
            r#"
            select accepted_at, sealed as "sealed!" from group_inbound
            where message_id = $1 and sender = $2 and group_id = $3 and sealed is not null
            "#,
            message.id.0,
            sender,
            id.as_str(),
        )
        .fetch_one(&self.pool)
        .await?;
        let key = self.data_key(row.accepted_at.date_naive()).await?;
        let bytes = key
            .open(&original_label(message.id.0, &sender), &row.sealed)
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        SignedEnvelope::decode(&bytes).map_err(|error| sqlx::Error::Decode(Box::new(error)))
    }

    /// Forgets what was said to groups before `before`, and the originals that are owed to nobody
    /// any more; returns how much.
    pub async fn forget_group_words(
        &self,
        now: Time,
        before: Time,
        limit: i64,
    ) -> sqlx::Result<u64> {
        let forgotten = sqlx::query!(
            r#"
            delete from group_inbound where ctid = any(array(
                select ctid from group_inbound where accepted_at < $1 limit $2
            ))
            "#,
            before,
            limit,
        )
        .execute(&self.pool)
        .await?
        .rows_affected();
        sqlx::query!(
            r#"
            update group_inbound g set sealed = null
            where ctid = any(array(
                select ctid from group_inbound
                where sealed is not null and release_at is null and (
                    expires_at <= $1 or not exists (
                        select from outbox o
                        where o.message_id = group_inbound.message_id
                          and o.sender = group_inbound.sender and o.stage < 2
                    )
                )
                limit $2
            ))
            "#,
            now,
            limit,
        )
        .execute(&self.pool)
        .await?;
        Ok(forgotten)
    }

    /// Keeps what came, until it takes effect.
    pub(super) async fn keep(
        &self,
        connection: &mut PgConnection,
        inbound: &GroupInbound<'_>,
        at: Time,
        release_at: Option<Time>,
        was_member: bool,
    ) -> sqlx::Result<()> {
        let message = inbound.message;
        let sender = message.sender.to_string();
        let filed = conversation(&message.sender, &message.to);
        let size = i32::try_from(message.content.bytes.len()).unwrap_or(i32::MAX);
        let is_message = inbound.kind == GroupWord::Message;
        let key = self.data_key(at.date_naive()).await?;
        let sealed = match is_message {
            true => Some(
                key.seal(&original_label(message.id.0, &sender), inbound.original)
                    .map_err(|error| sqlx::Error::Encode(Box::new(error)))?,
            ),
            false => None,
        };
        sqlx::query!(
            r#"
            insert into group_inbound (
                message_id, sender, group_id, kind, accepted_at, conversation, digest, gateway,
                transport, level, lane_seq, after_seq, release_at, was_member, priority,
                expires_at, size_bytes, file_ids, sealed, full_for
            ) values (
                $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
                $20
            )
            "#,
            message.id.0,
            sender,
            inbound.group.as_str(),
            inbound.kind.as_str(),
            at,
            filed,
            inbound.digest.as_slice(),
            inbound.gateway.to_string(),
            inbound.transport,
            words::level_number(message.min_anonymity),
            inbound.lane_seq.map(lane_number),
            inbound.after.map(lane_number),
            release_at,
            was_member,
            words::priority_number(message.priority),
            message.expires_at,
            size,
            &message.content.file_ids,
            sealed,
            inbound.full_for,
        )
        .execute(&mut *connection)
        .await?;
        if !is_message {
            return Ok(());
        }
        let sent_at = shown_sent_at(inbound.sent_at, message.expires_at, at);
        let sealed = content::encode(message, Some(sent_at))
            .and_then(|plain| {
                key.seal(&associated_data(message.id.0, &sender), &plain).map_err(Into::into)
            })
            .map_err(sqlx::Error::Encode)?;
        sqlx::query!(
            r#"
            insert into message (
                accepted_at, conversation, message_id, sender, addressed_to, recipients,
                expires_at, priority, min_anonymity, is_text, size_bytes, sealed
            ) values ($1, $2, $3, $4, $5, '{}', $6, $7, $8, $9, $10, $11)
            "#,
            at,
            filed,
            message.id.0,
            sender,
            message.to.to_string(),
            message.expires_at,
            words::priority_number(message.priority),
            words::level_number(message.min_anonymity),
            message.content.is_text,
            size,
            sealed,
        )
        .execute(&mut *connection)
        .await?;
        for file in inbound.files {
            Self::await_file(connection, file, &[], at).await?;
        }
        Ok(())
    }
}

/// The kind of a row of `group_inbound` that holds nothing but a place in a lane.
const DISMISSED: &str = "dismissed";

/// A row of `group_inbound` that takes effect.
pub(super) struct Kept {
    pub(super) message_id: Uuid,
    pub(super) kind: String,
    pub(super) accepted_at: Time,
    pub(super) conversation: i64,
    pub(super) digest: Vec<u8>,
    pub(super) gateway: String,
    pub(super) transport: String,
    pub(super) level: i16,
    pub(super) was_member: bool,
    pub(super) priority: i16,
    pub(super) expires_at: Time,
    pub(super) size_bytes: i32,
    pub(super) file_ids: Vec<String>,
    pub(super) full_for: Vec<String>,
}

impl Kept {
    /// Whether it is only the place of something that was dismissed.
    pub(super) fn is_place(&self) -> bool {
        self.kind == DISMISSED
    }

    /// What was refused may come again, and is judged anew then.
    pub(super) async fn forget(
        &self,
        connection: &mut PgConnection,
        group: &str,
        sender: &str,
    ) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            with forgotten as (
                delete from group_inbound where message_id = $1 and sender = $2 and group_id = $3
            )
            delete from message
            where conversation = $4 and accepted_at = $5 and message_id = $1 and sender = $2
            "#,
            self.message_id,
            sender,
            group,
            self.conversation,
            self.accepted_at,
        )
        .execute(connection)
        .await
        .map(drop)
    }
}

/// Keeps the place of something that was dismissed out of turn, until its predecessor has come: what
/// follows it in the lane may name it and nothing else.
pub(super) async fn keep_place(
    connection: &mut PgConnection,
    now: Time,
    inbound: &GroupInbound<'_>,
    place: Held,
    release_at: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into group_inbound (
            message_id, sender, group_id, kind, accepted_at, conversation, digest, gateway,
            transport, level, lane_seq, after_seq, release_at, was_member, priority, expires_at,
            size_bytes, file_ids
        ) values ($1, $2, $3, $4, $5, 0, $6, $7, $8, $9, $10, $11, $12, false, $13, $14, 0, '{}')
        "#,
        inbound.message.id.0,
        inbound.message.sender.to_string(),
        inbound.group.as_str(),
        DISMISSED,
        now,
        inbound.digest.as_slice(),
        inbound.gateway.to_string(),
        inbound.transport,
        words::level_number(inbound.message.min_anonymity),
        lane_number(place.lane_seq),
        place.after.map(lane_number),
        release_at,
        words::priority_number(inbound.message.priority),
        inbound.message.expires_at,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Something that came before.
pub(super) struct Known {
    pub(super) waits: bool,
}

/// A copy's envelope is the one that receipts name from now on. What was dismissed is judged anew.
pub(super) async fn renew(
    connection: &mut PgConnection,
    inbound: &GroupInbound<'_>,
    group: &str,
    sender: &str,
) -> sqlx::Result<Option<Known>> {
    sqlx::query_as!(
        Known,
        r#"
        with place as (
            delete from group_inbound
            where message_id = $1 and sender = $2 and group_id = $3 and kind = $5
        )
        update group_inbound set digest = $4
        where message_id = $1 and sender = $2 and group_id = $3 and kind <> $5
        returning release_at is not null as "waits!"
        "#,
        inbound.message.id.0,
        sender,
        group,
        inbound.digest.as_slice(),
        DISMISSED,
    )
    .fetch_optional(connection)
    .await
}

/// What an original is sealed to.
pub(super) fn original_label(id: Uuid, sender: &str) -> Vec<u8> {
    [b"original ".as_slice(), id.as_bytes(), sender.as_bytes()].concat()
}
