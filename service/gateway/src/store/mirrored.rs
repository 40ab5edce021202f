//! What only the mirrored surfaces ask: they know no positions, name no callers, and count all.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use fieldpost_delivery::{Record, Time};
use fieldpost_envelope::{GroupId, MessageId, MessageStatus, PeerId};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::store::{Store, show::is_division_by_zero, words};

/// How many messages are given positions at a time.
const SHOW_BATCH: i64 = 1000;
/// A recipient's storage holds no more batches; collisions with other replicas count, too.
const SHOW_ATTEMPTS: usize = 128;

/// Messages accepted over all peers, and what waits now.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic {
    /// Messages accepted from peers of this gateway.
    pub sent: i64,
    /// Deliveries accepted for peers of this gateway.
    pub received: i64,
    /// Deliveries that wait for a client of this gateway.
    pub waiting_here: i64,
    /// Deliveries that wait for a transport, or for a receipt.
    pub waiting_elsewhere: i64,
}

impl Store {
    /// Gives positions to all that waits in `peer`'s inbox: its client is shown it some other way.
    pub async fn show_all(&self, now: Time, peer: &PeerId) -> sqlx::Result<()> {
        self.create_head(peer).await?;
        for _ in 0..SHOW_ATTEMPTS {
            let given = sqlx::query_scalar!(
                r#"
                with head as materialized (
                    select last_seq from inbox_head where peer = $1 for update
                ), fresh as materialized (
                    select position, message_id, sender,
                           row_number() over (order by position, message_id, sender) as number
                    from inbox
                    where recipient = $1 and seq is null and expires_at > $2
                      and exists (select from head)
                    order by position, message_id, sender
                    limit $3
                ), given as (
                    update inbox i
                    set seq = (select last_seq from head) + fresh.number
                    from fresh
                    where i.recipient = $1 and i.position = fresh.position
                      and i.message_id = fresh.message_id and i.sender = fresh.sender
                      and i.seq is null
                    returning i.position
                ), moved as (
                    -- Rows that somebody else was faster with would leave a hole; the division
                    -- undoes the statement then.
                    update inbox_head
                    set last_seq = last_seq + (select count(*) from given)
                            / (((select count(*) from given) = (select count(*) from fresh))::integer),
                        last_position = greatest(last_position, (select max(position) from given))
                    where peer = $1 and exists (select from fresh)
                )
                select count(*) as "given!" from given
                "#,
                peer.as_str(),
                now,
                SHOW_BATCH,
            )
            .fetch_one(&self.pool)
            .await;
            match given {
                Ok(given) if given < SHOW_BATCH => return Ok(()),
                Ok(_) => {}
                Err(error) if is_division_by_zero(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// When the messages were confirmed: for their sender by the last recipient, for a recipient
    /// by itself. In the order of `records`.
    pub async fn confirmed_at(
        &self,
        records: &[Record],
        viewer: &PeerId,
    ) -> sqlx::Result<Vec<Option<Time>>> {
        let ids: Vec<Uuid> = records.iter().map(|record| record.message.id.0).collect();
        let senders: Vec<String> =
            records.iter().map(|record| record.message.sender.to_string()).collect();
        let accepted: Vec<Time> = records.iter().map(|record| record.accepted_at).collect();
        let rows = sqlx::query!(
            r#"
            select d.message_id, d.sender, max(coalesce(d.delivered_at, d.at)) as "at!"
            from unnest($1::uuid[], $2::text[], $3::timestamptz[])
                as asked (message_id, sender, accepted_at)
            join delivery d using (message_id, sender, accepted_at)
            where d.status in ('delivered', 'read') and (d.sender = $4 or d.recipient = $4)
            group by d.message_id, d.sender
            "#,
            &ids,
            &senders,
            &accepted,
            viewer.as_str(),
        )
        .fetch_all(&self.pool)
        .await?;
        let mut times: HashMap<(Uuid, String), Time> =
            rows.into_iter().map(|row| ((row.message_id, row.sender), row.at)).collect();
        Ok(ids.into_iter().zip(senders).map(|key| times.remove(&key)).collect())
    }

    /// The peers of this gateway that a message of this id is for, whoever sent it.
    pub async fn local_recipients(&self, id: MessageId) -> sqlx::Result<Vec<PeerId>> {
        sqlx::query_scalar!(
            r#"
            select peer.id
            from (
                select unnest(m.recipients) as recipient
                from message_key k
                join message m
                    on (m.conversation, m.accepted_at, m.message_id, m.sender)
                     = (k.conversation, k.accepted_at, k.message_id, k.sender)
                where k.message_id = $1
                union
                select recipient from inbound where message_id = $1
            ) as meant
            join peer on peer.id = meant.recipient
            order by peer.id
            "#,
            id.0,
        )
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(|peer| words::parse(peer))
        .collect()
    }

    /// Whether anybody here sent a message of this id.
    pub async fn message_exists(&self, id: MessageId) -> sqlx::Result<bool> {
        sqlx::query_scalar!(
            r#"select exists (select from message_key where message_id = $1) as "exists!""#,
            id.0,
        )
        .fetch_one(&self.pool)
        .await
    }

    /// How a delivery to `peer` ended; of several under one id, the one that went best.
    pub async fn ended_as(
        &self,
        id: MessageId,
        peer: &PeerId,
    ) -> sqlx::Result<Option<MessageStatus>> {
        let ended = sqlx::query_scalar!(
            r#"
            select status from delivery where message_id = $1 and recipient = $2
            order by status in ('delivered', 'read') desc
            limit 1
            "#,
            id.0,
            peer.as_str(),
        )
        .fetch_optional(&self.pool)
        .await?;
        ended.map(|status| words::status(&status)).transpose()
    }

    /// The member of a group on whose behalf a request that names nobody reads it: its creator, else
    /// whoever belongs to it longest; `None` if there is no such group.
    pub async fn first_of_group(&self, id: &GroupId) -> sqlx::Result<Option<PeerId>> {
        let first = sqlx::query_scalar!(
            r#"
            select peer from group_member
            join peer_group on peer_group.id = group_id
            where group_id = $1 and is_active and left_at is null and position('@' in peer) = 0
            order by peer = created_by desc, joined_at, peer
            limit 1
            "#,
            id.as_str(),
        )
        .fetch_optional(&self.pool)
        .await?;
        first.map(|peer| words::parse(&peer)).transpose()
    }

    /// What all peers of this gateway have sent and been sent, and what waits. Where counting takes
    /// long, it may be a count of some time ago.
    pub async fn traffic(&self) -> sqlx::Result<Traffic> {
        let (_steady, sent, received) = self.counters.steady_total().await;
        let written = self.counted.traffic.get(|| self.clock.instant(), self.written_traffic());
        let written = written.await?;
        Ok(Traffic { sent: written.sent + sent, received: written.received + received, ..written })
    }

    async fn written_traffic(&self) -> sqlx::Result<Traffic> {
        sqlx::query_as!(
            Traffic,
            r#"
            select
                coalesce(sum(messages_sent), 0)::bigint as "sent!",
                coalesce(sum(messages_received), 0)::bigint as "received!",
                (select count(*) from inbox) as "waiting_here!",
                (select count(*) from outbox) as "waiting_elsewhere!"
            from peer
            "#,
        )
        .fetch_one(&self.pool)
        .await
    }

    /// How many messages are kept, and how many of them came in the last 24 h. Where counting takes
    /// long, it may be a count of some time ago.
    pub async fn messages_kept(&self, now: Time) -> sqlx::Result<(i64, i64)> {
        self.counted.messages.get(|| self.clock.instant(), self.message_counts(now)).await
    }
}

/// What was counted lately.
#[derive(Debug, Default)]
pub(super) struct Counted {
    traffic: Costly<Traffic>,
    messages: Costly<(i64, i64)>,
}

/// What this takes to count costs nobody much.
const CHEAP: Duration = Duration::from_millis(50);
/// What takes longer is counted for so small a part of the time, whoever asks how often.
const PART: u32 = 20;

/// A count whose cost grows with the tables; one at a time, and not all the time.
#[derive(Debug)]
struct Costly<T>(Mutex<Option<(T, Instant)>>);

impl<T> Default for Costly<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Copy> Costly<T> {
    async fn get(
        &self,
        now: impl Fn() -> Instant,
        count: impl Future<Output = sqlx::Result<T>>,
    ) -> sqlx::Result<T> {
        let mut last = self.0.lock().await;
        let began = now();
        if let Some((counted, good_until)) = *last
            && began < good_until
        {
            return Ok(counted);
        }
        let counted = count.await?;
        let took = now().saturating_duration_since(began);
        *last = (took > CHEAP).then(|| (counted, began + took * PART));
        Ok(counted)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn what_is_cheap_is_counted_each_time_and_what_is_not_rests() {
        let clock = Cell::new(Instant::from(tokio::time::Instant::now()));
        let costs = Cell::new(CHEAP);
        let costly = Costly::default();
        let ask = async |answer: i64| {
            let count = async {
                clock.set(clock.get() + costs.get());
                Ok(answer)
            };
            costly.get(|| clock.get(), count).await.unwrap()
        };
        assert_eq!((ask(1).await, ask(2).await), (1, 2));
        costs.set(CHEAP * 2);
        assert_eq!((ask(3).await, ask(4).await), (3, 3));
        clock.set(clock.get() + CHEAP * 2 * PART);
        assert_eq!(ask(5).await, 5);
    }
}
