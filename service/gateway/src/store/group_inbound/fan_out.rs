//! A message that takes effect: to the members here, and owed to those elsewhere.

use fieldpost_delivery::Time;
use fieldpost_envelope::{PeerAddress, Priority};
use sqlx::PgConnection;

use super::{Effect, kept::Kept, lane::Turn};
use crate::store::{Store, words};

impl Store {
    /// Gives a message to the members here, and owes it to those elsewhere.
    pub(super) async fn fan_out(
        &self,
        connection: &mut PgConnection,
        now: Time,
        group: &str,
        sender: &str,
        kept: &Kept,
        turn: Turn,
    ) -> sqlx::Result<Effect> {
        let members = sqlx::query_scalar!(
            r#"
            select peer from group_member
            where group_id = $1 and left_at is null and peer <> $2
            order by peer
            "#,
            group,
            sender,
        )
        .fetch_all(&mut *connection)
        .await?;
        let (mut here, mut elsewhere, mut gateways) = (Vec::new(), Vec::new(), Vec::new());
        let missing = |member: &String| kept.full_for.contains(member);
        for member in members.iter().filter(|member| !missing(member)) {
            let address: PeerAddress = words::parse(member)?;
            match address.gateway {
                None => here.push(member.clone()),
                Some(gateway) => {
                    elsewhere.push(member.clone());
                    gateways.push(gateway.to_string());
                }
            }
        }
        sqlx::query!(
            r#"
            update message set recipients = $5
            where conversation = $1 and accepted_at = $2 and message_id = $3 and sender = $4
            "#,
            kept.conversation,
            kept.accepted_at,
            kept.message_id,
            sender,
            &members,
        )
        .execute(&mut *connection)
        .await?;
        let full: Vec<String> = members.iter().filter(|member| missing(member)).cloned().collect();
        if !full.is_empty() {
            miss(connection, sender, kept, &full).await?;
        }
        // A row of `inbound` for each, as for any message from elsewhere, but nobody wants receipts.
        sqlx::query!(
            r#"
            with came as (
                insert into inbound (
                    message_id, sender, recipient, accepted_at, conversation, position, digest,
                    gateway, transport, level, expires_at, size_bytes
                )
                select $1, $2, recipient, $3, $4, $5, $6, '', $7, $8, $9, $10
                from unnest($11::text[]) as member (recipient)
            )
            insert into inbox (
                recipient, position, message_id, sender, accepted_at, conversation, expires_at,
                size_bytes, gap, late
            )
            select recipient, $5, $1, $2, $3, $4, $9, $10, $12, $13
            from unnest($11::text[]) as member (recipient)
            "#,
            kept.message_id,
            sender,
            kept.accepted_at,
            kept.conversation,
            self.acceptance_time(now),
            kept.digest,
            kept.transport,
            kept.level,
            kept.expires_at,
            kept.size_bytes,
            &here,
            turn.gap,
            turn.late,
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query!(
            r#"
            with place as (
                insert into lane_out (sender, recipient, level, last_seq)
                select $2, recipient, $6, 1 from unnest($10::text[]) as member (recipient)
                where $12
                order by recipient
                on conflict (sender, recipient, level)
                    do update set last_seq = lane_out.last_seq + 1
                returning recipient, last_seq
            )
            insert into outbox (
                message_id, sender, recipient, accepted_at, conversation, target, level, lane_seq,
                priority, size_bytes, next_attempt_at, expires_at
            )
            select $1, $2, recipient, $3, $4, target, $6, last_seq, $7, $8, $5, $9
            from unnest($10::text[], $11::text[]) as member (recipient, target)
            left join place using (recipient)
            "#,
            kept.message_id,
            sender,
            kept.accepted_at,
            kept.conversation,
            now,
            kept.level,
            kept.priority,
            kept.size_bytes,
            kept.expires_at,
            &elsewhere,
            &gateways,
            kept.priority != words::priority_number(Priority::Critical),
        )
        .execute(&mut *connection)
        .await?;
        Self::hand_on_files(connection, now, &kept.file_ids, kept.level, &here, &gateways).await?;
        count(connection, group, sender, now).await?;
        Ok(Effect {
            grown: here.iter().map(|peer| words::parse(peer)).collect::<sqlx::Result<_>>()?,
            owes_elsewhere: !elsewhere.is_empty(),
        })
    }
}

/// Records who misses a message for want of room.
async fn miss(
    connection: &mut PgConnection,
    sender: &str,
    kept: &Kept,
    full: &[String],
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into delivery (accepted_at, message_id, sender, recipient, status, at, reason)
        select $1, $2, $3, recipient, 'failed', $1, 'the recipient''s storage is full'
        from unnest($4::text[]) as member (recipient)
        "#,
        kept.accepted_at,
        kept.message_id,
        sender,
        full,
    )
    .execute(connection)
    .await
    .map(drop)
}

async fn count(
    connection: &mut PgConnection,
    group: &str,
    sender: &str,
    now: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        with counted as (
            update group_member set messages_sent = messages_sent + 1
            where group_id = $1 and peer = $2
        )
        update peer_group
        set message_count = message_count + 1, last_message_at = greatest(last_message_at, $3)
        where id = $1
        "#,
        group,
        sender,
        now,
    )
    .execute(connection)
    .await
    .map(drop)
}
