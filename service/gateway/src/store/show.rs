//! Showing a recipient what waits for it.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::TimeDelta;
use fieldpost_delivery::{InboxEntry, Seq, Time};
use fieldpost_envelope::PeerId;

use crate::store::{
    Store,
    batches::{MOST_QUESTIONS, Question},
    messages::Sealed,
    warm::WarmConnections,
    words,
};

/// Showing is tried again when another replica was faster; more often than this it cannot lose
/// without somebody else having made progress each time.
const SHOW_ATTEMPTS: usize = 8;

/// A page ends with the message that takes it over so many bytes of content.
const PAGE_BYTES: i64 = 4 << 20;
/// With fewer bytes of content, a page that is not full is the last one.
pub const SMALL_PAGE_BYTES: usize = PAGE_BYTES as usize / MOST_QUESTIONS;
/// The most messages of a page; looks that share a statement share them as well.
pub const LARGE_PAGE: usize = 4096;
/// With fewer messages, a page that is not full is the last one.
pub const SMALL_PAGE: usize = 1000;

/// More than a look can wait for a connection, its turn and its statement.
const LONGEST_WAIT: TimeDelta = TimeDelta::minutes(2);

/// An inbox row with its message.
pub(super) struct Shown {
    seq: Seq,
    gap: bool,
    late: bool,
    row: Sealed,
}

/// What a look comes to.
#[derive(Default)]
pub(super) struct Seen {
    /// The last position that had been given, if any had.
    last_seq: Option<Seq>,
    /// What was given now.
    fresh: Vec<Shown>,
    /// Nothing could be: a message that was to say that something is missing was over by then, and
    /// the next one has to say so first.
    stuck_at: Option<Time>,
}

/// One look of one peer's client.
#[derive(Clone)]
pub(super) struct Look {
    now: Time,
    peer: PeerId,
    after: Seq,
    limit: i64,
}

impl Question for Look {
    type Key = PeerId;

    fn key(&self) -> PeerId {
        self.peer.clone()
    }
}

impl Store {
    /// Shows the next messages; see [`fieldpost_delivery::Store::show`].
    pub(super) async fn show_inbox(
        &self,
        now: Time,
        peer: &PeerId,
        after: Seq,
        limit: usize,
    ) -> sqlx::Result<Vec<InboxEntry>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut shown = Vec::new();
        let mut cursor = after;
        for _ in 0..SHOW_ATTEMPTS {
            let room = limit - shown.len() as i64;
            if room <= 0 {
                break;
            }
            let look = Look { now, peer: peer.clone(), after: cursor, limit: room };
            let Seen { last_seq, fresh, stuck_at } = self.give_positions(look).await?;
            if let Some(at) = stuck_at {
                self.hand_gaps_on(at, Some(peer)).await?;
                continue;
            }
            if !fresh.is_empty() {
                shown.extend(fresh);
                break;
            }
            let Some(last_seq) = last_seq else {
                self.create_head(peer).await?;
                continue;
            };
            if last_seq <= cursor {
                break;
            }
            // Positions above the cursor were given before: by an earlier look, or elsewhere.
            let again = self.shown_before(now, peer, cursor, room).await?;
            let bytes: usize = again.iter().map(|shown| shown.row.sealed.len()).sum();
            let is_full = again.len() as i64 == room || bytes as i64 >= PAGE_BYTES;
            shown.extend(again);
            if is_full {
                break;
            }
            // Others may have given positions between the two looks, which the page then holds.
            cursor = shown.last().map_or(last_seq, |shown| shown.seq.max(last_seq));
        }
        let mut entries = Vec::with_capacity(shown.len());
        for Shown { seq, gap, late, row } in shown {
            let accepted_at = row.accepted_at;
            let (message, sent_at) = self.unseal(row).await?;
            entries.push(InboxEntry { seq, accepted_at, sent_at, message, gap, late });
        }
        Ok(entries)
    }

    /// Gives positions to what has none, if `after` is the last given one; returns that one, and
    /// what was shown for the first time.
    async fn give_positions(&self, look: Look) -> sqlx::Result<Seen> {
        let (warm, latest) = (self.warm.clone(), self.latest_look.clone());
        let statement = move |looks| give_to_each(warm.clone(), latest.clone(), looks);
        match self.looks.ask(look.clone(), statement).await {
            Err(error) if is_division_by_zero(&error) => {
                Ok(Seen { last_seq: Some(look.after), ..Seen::default() })
            }
            outcome => outcome,
        }
    }

    /// Those of `peers` for whom something waits that they were never shown.
    pub async fn unshown_among(&self, now: Time, peers: &[PeerId]) -> sqlx::Result<Vec<PeerId>> {
        let names: Vec<String> = peers.iter().map(ToString::to_string).collect();
        let owed = sqlx::query_scalar!(
            r#"
            select peer as "peer!" from unnest($1::text[]) as peer
            where exists (
                select from inbox
                where recipient = peer and seq is null and (expires_at > $2) is true
            )
            "#,
            &names,
            now,
        )
        .fetch_all(&self.pool)
        .await?;
        owed.iter().map(|peer| words::parse(peer)).collect()
    }

    pub(super) async fn create_head(&self, peer: &PeerId) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            insert into inbox_head (peer, last_seq, last_position)
            values ($1, 0, '-infinity')
            on conflict do nothing
            "#,
            peer.as_str(),
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    async fn shown_before(
        &self,
        now: Time,
        peer: &PeerId,
        after: Seq,
        limit: i64,
    ) -> sqlx::Result<Vec<Shown>> {
        let rows = sqlx::query!(
            r#"
            select i.seq as "seq!", i.gap, i.late, m.accepted_at, m.message_id, m.sender,
                   m.addressed_to, m.expires_at, m.priority, m.min_anonymity, m.is_text, m.sealed
            from (
                select *, sum(size_bytes) over (order by seq) - size_bytes as bytes_before
                from inbox
                where recipient = $1 and seq > $2 and expires_at > $3
                  and position <= (select last_position from inbox_head where peer = $1)
                order by seq
                limit $4
            ) i
            join message m
                on (m.conversation, m.accepted_at, m.message_id, m.sender)
                 = (i.conversation, i.accepted_at, i.message_id, i.sender)
            where i.bytes_before < $5
            order by i.seq
            "#,
            peer.as_str(),
            after,
            now,
            limit,
            PAGE_BYTES,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| Shown {
                seq: row.seq,
                gap: row.gap,
                late: row.late,
                row: Sealed {
                    accepted_at: row.accepted_at,
                    message_id: row.message_id,
                    sender: row.sender,
                    addressed_to: row.addressed_to,
                    expires_at: row.expires_at,
                    priority: row.priority,
                    min_anonymity: row.min_anonymity,
                    is_text: row.is_text,
                    sealed: row.sealed,
                },
            })
            .collect())
    }
}

/// Answers many looks at once, so that they share a statement, a commit and a flush.
///
/// Their time never goes back, although they may have waited: what was passed over as expired stays
/// passed over, and nothing comes after what it came before.
async fn give_to_each(
    warm: WarmConnections,
    latest: Arc<Mutex<Time>>,
    looks: Vec<Look>,
) -> sqlx::Result<Vec<Seen>> {
    let peers: Vec<String> = looks.iter().map(|look| look.peer.to_string()).collect();
    let afters: Vec<Seq> = looks.iter().map(|look| look.after).collect();
    let most = (LARGE_PAGE / looks.len().max(1)).max(SMALL_PAGE) as i64;
    let limits: Vec<i64> = looks.iter().map(|look| look.limit.min(most)).collect();
    let mut connection = warm.take().await?;
    let now = {
        let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = looks.iter().map(|look| look.now).max().unwrap_or_default();
        // No look waits for so long; the clock was set back.
        let was_set_back = *latest - asked > LONGEST_WAIT;
        *latest = if was_set_back { asked } else { asked.max(*latest) };
        *latest
    };
    let rows = sqlx::query!(
        r#"
        with asked as (
            select * from unnest($1::text[], $2::bigint[], $3::bigint[])
                with ordinality as asked (peer, after, most, number)
        ), head as materialized (
            select peer, last_seq from inbox_head where peer = any($1) order by peer for update
        ), stuck as (
            select distinct recipient as peer from inbox
            where recipient = any($1) and gap and not late and seq is null and expires_at <= $4
        ), fresh as materialized (
            select a.peer, w.position, w.message_id, w.sender, h.last_seq + w.number as seq
            from asked a
            join head h on h.peer = a.peer and h.last_seq = a.after
            cross join lateral (
                select position, message_id, sender,
                       row_number() over (order by position, message_id, sender) as number,
                       sum(size_bytes) over (order by position, message_id, sender)
                           - size_bytes as bytes_before
                from inbox
                -- Not a condition for an index: the one that gives the order is to be used.
                where recipient = a.peer and seq is null and (expires_at > $4) is true
                order by position, message_id, sender
                limit a.most
            ) w
            where w.bytes_before < $5 and not exists (select from stuck where peer = a.peer)
        ), given as (
            update inbox i
            set seq = fresh.seq
            from fresh
            where i.recipient = fresh.peer and i.position = fresh.position
              and i.message_id = fresh.message_id and i.sender = fresh.sender
              and i.seq is null
            returning i.recipient, i.seq, i.position, i.message_id, i.sender, i.accepted_at,
                      i.conversation, i.gap, i.late
        ), moved as (
            -- Another replica may have given a position to a row while we waited for the head;
            -- then the numbers have a hole, and the division undoes the statement.
            update inbox_head h
            set last_seq = h.last_seq + f.count / ((coalesce(g.count, 0) = f.count)::integer),
                last_position = greatest(h.last_position, g.last)
            from (select peer, count(*) from fresh group by peer) f
            left join (
                select recipient, count(*), max(position) as last from given group by recipient
            ) g on g.recipient = f.peer
            where h.peer = f.peer
        )
        select a.number as "number!", h.last_seq as "last_seq?",
               a.peer in (select peer from stuck) as "is_stuck!", g.seq as "seq?", g.gap as "gap?",
               g.late as "late?", m.accepted_at as "accepted_at?", m.message_id as "message_id?",
               m.sender as "sender?", m.addressed_to as "addressed_to?",
               m.expires_at as "expires_at?", m.priority as "priority?",
               m.min_anonymity as "min_anonymity?", m.is_text as "is_text?",
               m.sealed as "sealed?"
        from asked a
        left join head h on h.peer = a.peer
        left join (
            given g join message m
                on (m.conversation, m.accepted_at, m.message_id, m.sender)
                 = (g.conversation, g.accepted_at, g.message_id, g.sender)
        ) on g.recipient = a.peer
        order by a.number, g.seq
        "#,
        &peers,
        &afters,
        &limits,
        now,
        PAGE_BYTES / i64::try_from(looks.len()).unwrap_or(i64::MAX),
    )
    .fetch_all(&mut *connection)
    .await?;
    connection.keep();
    let mut answers: Vec<Seen> = Vec::with_capacity(looks.len());
    for row in rows {
        // Each look has at least one row, and they come in its order.
        if answers.len() < row.number as usize {
            let stuck_at = row.is_stuck.then_some(now);
            answers.push(Seen { last_seq: row.last_seq, stuck_at, fresh: Vec::new() });
        }
        let shown = (|| {
            Some(Shown {
                seq: row.seq?,
                gap: row.gap?,
                late: row.late?,
                row: Sealed {
                    accepted_at: row.accepted_at?,
                    message_id: row.message_id?,
                    sender: row.sender?,
                    addressed_to: row.addressed_to?,
                    expires_at: row.expires_at?,
                    priority: row.priority?,
                    min_anonymity: row.min_anonymity?,
                    is_text: row.is_text?,
                    sealed: row.sealed?,
                },
            })
        })();
        if let Some(seen) = answers.last_mut() {
            seen.fresh.extend(shown);
        }
    }
    Ok(answers)
}

pub(super) fn is_division_by_zero(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("22012")
}
