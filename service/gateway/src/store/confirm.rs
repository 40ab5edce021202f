//! Taking clients' confirmations.

use fieldpost_delivery::{Confirm, ReceiptOut, Seq, Settled, Time};
use fieldpost_envelope::{MessageStatus, PeerId, ReceiptKind};
use uuid::Uuid;

use crate::store::{Store, batches::Question, inbox::settled, warm::WarmConnections, words};

/// The most messages that one statement marks as read after they were confirmed.
const READ_AT_ONCE: i64 = 4096;

/// That one peer's client has all up to a position.
#[derive(Clone)]
pub(super) struct UpTo {
    now: Time,
    peer: PeerId,
    seq: Seq,
    seen_from: Seq,
    status: MessageStatus,
    /// Until when the receipts that become owed are left to the asker.
    receipts_claimed_until: Option<Time>,
}

/// What a confirmation changed, and the receipts that the asker is to send.
pub(super) type Taken = (Vec<Settled>, Vec<ReceiptOut>);

impl Question for UpTo {
    type Key = PeerId;

    fn key(&self) -> PeerId {
        self.peer.clone()
    }
}

impl Store {
    /// Takes a client's confirmation, as [`fieldpost_delivery::Store::confirm`] does. With
    /// `receipts_claimed_until`, the caller sends the receipts that are returned; should it fail to,
    /// they are due at that time.
    pub async fn take_confirmation(
        &self,
        now: Time,
        peer: &PeerId,
        what: &Confirm,
        read: bool,
        receipts_claimed_until: Option<Time>,
    ) -> sqlx::Result<(Vec<Settled>, Vec<ReceiptOut>)> {
        let status = if read { MessageStatus::Read } else { MessageStatus::Delivered };
        match what {
            Confirm::UpTo { seq, seen_from } => {
                let (peer, seq, seen_from) = (peer.clone(), *seq, *seen_from);
                let asked = UpTo { now, peer, seq, seen_from, status, receipts_claimed_until };
                self.confirm_up_to(asked).await
            }
            Confirm::Messages(messages) => {
                let ids: Vec<Uuid> = messages.iter().map(|(id, _)| id.0).collect();
                let senders: Vec<Option<String>> = messages
                    .iter()
                    .map(|(_, sender)| sender.as_ref().map(ToString::to_string))
                    .collect();
                let settled = self.confirm_messages(now, peer, &ids, &senders, status).await?;
                Ok((settled, Vec::new()))
            }
        }
    }

    async fn confirm_up_to(&self, asked: UpTo) -> sqlx::Result<Taken> {
        let (mut settled, mut receipts) = Taken::default();
        loop {
            let (more, owed) = self.ask_to_confirm(asked.clone()).await?;
            let is_all = asked.status != MessageStatus::Read || more.is_empty();
            settled.extend(more);
            receipts.extend(owed);
            if is_all {
                return Ok((settled, receipts));
            }
        }
    }

    async fn ask_to_confirm(&self, asked: UpTo) -> sqlx::Result<Taken> {
        let warm = self.warm.clone();
        self.confirmations.ask(asked, move |asked| confirm_each(warm.clone(), asked)).await
    }

    async fn confirm_messages(
        &self,
        now: Time,
        peer: &PeerId,
        ids: &[Uuid],
        senders: &[Option<String>],
        status: MessageStatus,
    ) -> sqlx::Result<Vec<Settled>> {
        let rows = sqlx::query!(
            r#"
            with asked as (
                select distinct * from unnest($2::uuid[], $3::text[]) as asked (message_id, sender)
            ), located as (
                select k.message_id, k.sender, k.accepted_at, k.accepted_at as position
                from asked a join message_key k
                    on k.message_id = a.message_id and k.sender = coalesce(a.sender, k.sender)
                union
                select b.message_id, b.sender, b.accepted_at, b.position
                from asked a join inbound b
                    on b.message_id = a.message_id and b.sender = coalesce(a.sender, b.sender)
                where b.recipient = $1
            ), gone as (
                delete from inbox i using located l
                where i.recipient = $1 and i.position = l.position
                  and i.message_id = l.message_id and i.sender = l.sender and i.seq is not null
                returning i.message_id, i.sender, i.accepted_at, i.seq
            ), ended as (
                insert into delivery (
                    accepted_at, message_id, sender, recipient, status, at, delivered_at, seq
                )
                select accepted_at, message_id, sender, $1, $4, $5, $5, seq from gone
            ), reread as (
                update delivery d
                set status = $4, at = $5, delivered_at = coalesce(d.delivered_at, $5)
                from located l
                where ((d.status = 'delivered' and $4 = 'read')
                       or (d.status = 'expired' and d.seq is not null))
                  and d.recipient = $1
                  and d.message_id = l.message_id and d.sender = l.sender
                  and d.accepted_at = l.accepted_at
                returning d.message_id, d.sender
            ), settled as (
                select message_id, sender from gone union all select message_id, sender from reread
            ), owed as (
                insert into receipt (digest, kind, gateway, at, level, next_attempt_at, expires_at)
                select b.digest, $4, b.gateway, $5, b.level, $5, $5 + interval '30 days'
                from settled s join inbound b using (message_id, sender)
                where b.recipient = $1 and b.gateway <> ''
                  and (position('@' in s.sender) > 0 or s.sender ~ '^[0-9a-f]{16}$')
                on conflict do nothing
            )
            select message_id as "message_id!", sender as "sender!" from settled
            "#,
            peer.as_str(),
            ids,
            senders as &[Option<String>],
            status.as_str(),
            now,
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| settled(row.message_id, &row.sender, peer.to_string(), status, now))
            .collect()
    }
}

/// Takes many confirmations at once, so that they share a statement, a commit and a flush.
async fn confirm_each(warm: WarmConnections, asked: Vec<UpTo>) -> sqlx::Result<Vec<Taken>> {
    let now = asked.iter().map(|asked| asked.now).max().unwrap_or_default();
    let peers: Vec<String> = asked.iter().map(|asked| asked.peer.to_string()).collect();
    let seqs: Vec<Seq> = asked.iter().map(|asked| asked.seq).collect();
    let statuses: Vec<String> =
        asked.iter().map(|asked| asked.status.as_str().to_owned()).collect();
    let mut connection = warm.take().await?;
    let rows = sqlx::query!(
        r#"
        with asked as (
            select * from unnest(
                $1::text[], $2::bigint[], $3::text[], $6::timestamptz[], $7::bigint[]
            ) with ordinality as asked (peer, up_to, status, claimed_until, seen_from, number)
        ), gone as (
            delete from inbox i
            using asked a
            where i.recipient = a.peer and i.seq <= a.up_to
              and (i.seq >= a.seen_from or i.expires_at > $4)
              -- As a value, a condition for the index: joined, all that waits would be looked at.
              and i.position <= (select last_position from inbox_head where peer = a.peer)
            returning a.number, a.status, i.message_id, i.sender, i.recipient, i.accepted_at, i.seq
        ), ended as (
            insert into delivery (
                accepted_at, message_id, sender, recipient, status, at, delivered_at, seq
            )
            select accepted_at, message_id, sender, recipient, status, $4, $4, seq from gone
        ), unread as (
            select a.number, a.status, d.accepted_at, d.message_id, d.sender, d.recipient
            from asked a
            cross join lateral (
                select accepted_at, message_id, sender, recipient from delivery
                where recipient = a.peer and seq <= a.up_to and status = 'delivered'
                limit $5
            ) d
            where a.status = 'read'
        ), reread as (
            update delivery d
            set status = 'read', at = $4
            from unread u
            where (d.message_id, d.sender, d.recipient, d.accepted_at)
                = (u.message_id, u.sender, u.recipient, u.accepted_at)
              and d.status = 'delivered'
            returning u.number, u.status, d.message_id, d.sender, d.recipient
        ), corrected as (
            update delivery d
            set status = a.status, at = $4, delivered_at = $4
            from asked a
            where d.recipient = a.peer and d.seq between a.seen_from and a.up_to
              and d.status = 'expired'
            returning a.number, a.status, d.message_id, d.sender, d.recipient
        ), settled as (
            select number, status, message_id, sender, recipient from gone
            union all select * from reread
            union all select * from corrected
        ), remote as materialized (
            select message_id, sender, recipient, s.number, s.status, b.digest, b.gateway, b.level
            from settled s join inbound b using (message_id, sender, recipient)
            where (position('@' in sender) > 0 or sender ~ '^[0-9a-f]{16}$') and b.gateway <> ''
        ), owed as (
            insert into receipt (
                digest, kind, gateway, at, level, attempts, next_attempt_at, expires_at
            )
            select r.digest, r.status, r.gateway, $4, r.level,
                   (a.claimed_until is not null)::integer, coalesce(a.claimed_until, $4),
                   $4 + interval '30 days'
            from remote r join asked a using (number)
            on conflict do nothing
            returning digest, gateway, level
        )
        select s.number as "number!", s.message_id as "message_id!", s.sender as "sender!",
               o.digest as "digest?", o.gateway as "gateway?", o.level as "level?"
        from settled s
        left join remote r using (message_id, sender, recipient)
        left join owed o on o.digest = r.digest
        "#,
        &peers,
        &seqs,
        &statuses,
        now,
        READ_AT_ONCE / i64::try_from(asked.len()).unwrap_or(i64::MAX),
        &asked.iter().map(|asked| asked.receipts_claimed_until).collect::<Vec<_>>()
            as &[Option<Time>],
        &asked.iter().map(|asked| asked.seen_from.min(asked.seq)).collect::<Vec<_>>(),
    )
    .fetch_all(&mut *connection)
    .await?;
    connection.keep();
    let mut answers: Vec<Taken> = asked.iter().map(|_| Taken::default()).collect();
    for row in rows {
        let number = row.number as usize - 1;
        let UpTo { peer, status, receipts_claimed_until, .. } = &asked[number];
        let settled = settled(row.message_id, &row.sender, peer.to_string(), *status, now)?;
        answers[number].0.push(settled);
        if let (Some(_), Some(digest), Some(gateway), Some(level)) =
            (receipts_claimed_until, row.digest, row.gateway, row.level)
        {
            answers[number].1.push(ReceiptOut {
                envelope: digest
                    .try_into()
                    .map_err(|_| sqlx::Error::Decode("a digest has 32 bytes".into()))?,
                gateway: words::parse(&gateway)?,
                kind: match status {
                    MessageStatus::Read => ReceiptKind::Read,
                    _ => ReceiptKind::Delivered,
                },
                at: now,
                reason: None,
                level: words::level(level)?,
                attempt: 1,
            });
        }
    }
    Ok(answers)
}
