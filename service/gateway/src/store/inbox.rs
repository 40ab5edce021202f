//! Storing what comes from elsewhere, and ending what is over.

use fieldpost_delivery::{
    Correspondent, Held, Inbound, Progress, Settled, Time, known_after, pass_over, pass_over_ended,
    release,
};
use fieldpost_envelope::{LaneSeq, MessageId, MessageStatus, PeerId, Recipient};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::store::{Origin, Store, messages::conversation, words};

/// Gaps of messages that were never shown that one look hands on.
const GAPS_AT_ONCE: i64 = 1000;

impl Store {
    /// Ends deliveries whose time is over; see [`fieldpost_delivery::Store::expire_due`].
    pub(super) async fn expire_deliveries(
        &self,
        now: Time,
        limit: usize,
    ) -> sqlx::Result<Vec<Settled>> {
        self.hand_gaps_on(now, None).await?;
        let rows = sqlx::query!(
            r#"
            with unshown as (
                delete from inbox where ctid = any(array(
                    -- A gap that nobody has seen is handed on first.
                    select ctid from inbox
                    where expires_at <= $1 and not (gap and not late and seq is null)
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

    /// Lets the next message of a lane say that something is missing, where the one that was to say so
    /// is over and was never shown; of one peer or all.
    pub(super) async fn hand_gaps_on(&self, now: Time, peer: Option<&PeerId>) -> sqlx::Result<()> {
        let unseen = sqlx::query!(
            r#"
            select i.recipient, i.position, i.message_id, i.sender,
                   b.gateway as "gateway?", b.level as "level?"
            from inbox i
            left join inbound b using (message_id, sender, recipient)
            where i.gap and not i.late and i.seq is null and i.expires_at <= $1
              and ($2::text is null or i.recipient = $2)
            order by i.sender, i.recipient, i.position
            limit $3
            "#,
            now,
            peer.map(PeerId::as_str),
            GAPS_AT_ONCE,
        )
        .fetch_all(&self.pool)
        .await?;
        for row in unseen {
            let mut transaction = self.pool.begin().await?;
            let lane = match (row.gateway, row.level) {
                (Some(gateway), Some(level)) => {
                    let name = lane_name(&row.sender, &gateway);
                    let progress =
                        lock_lane(&mut transaction, &name, &row.recipient, level).await?;
                    Some((name, gateway, level, progress))
                }
                // What a group of this gateway passed on has no lane of its own.
                _ => None,
            };
            let taken = sqlx::query!(
                r#"
                update inbox set gap = false
                where recipient = $1 and position = $2 and message_id = $3 and sender = $4
                  and gap and not late and seq is null
                "#,
                row.recipient,
                row.position,
                row.message_id,
                row.sender,
            )
            .execute(&mut *transaction)
            .await?;
            if taken.rows_affected() > 0
                && let Some((name, gateway, level, progress)) = lane
            {
                let handed = sqlx::query_scalar!(
                    r#"
                    with behind as (
                        select i.ctid, i.late,
                               -- What is late says so too, up to the first that is not.
                               count(*) filter (where not i.late) over (
                                   order by i.position
                                   rows between unbounded preceding and 1 preceding
                               ) as told
                        from inbox i
                        join inbound b using (message_id, sender, recipient)
                        where i.recipient = $1 and i.position > $2 and i.sender = $3
                          and b.gateway = $4 and b.level = $5
                          and i.seq is null and i.expires_at > $6
                    )
                    update inbox i set gap = true
                    from behind
                    where i.ctid = behind.ctid and behind.told = 0
                      and i.recipient = $1 and i.seq is null
                    returning i.late
                    "#,
                    row.recipient,
                    row.position,
                    row.sender,
                    gateway,
                    level,
                    now,
                )
                .fetch_all(&mut *transaction)
                .await?;
                let owes_gap = handed.into_iter().all(|is_late| is_late);
                let progress = Progress { owes_gap: owes_gap || progress.owes_gap, ..progress };
                move_lane(&mut transaction, &name, &row.recipient, level, progress).await?;
            }
            transaction.commit().await?;
        }
        Ok(())
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
            -- One whose time is over takes nothing along: what it waited for may still come in time.
            select sender, gateway, recipient, level,
                   max(lane_seq) filter (where expires_at > $1) as furthest
            from (
                select sender, gateway, recipient, level, lane_seq, expires_at from inbound
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
            let due = row.furthest.map(|furthest| LaneSeq(furthest.unsigned_abs()));
            lane.end_expired(&mut transaction, now, || self.acceptance_time(now)).await?;
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

impl Store {
    /// Moves the lane of a message on that found no room or ran out on its way, so that what follows
    /// does not wait for it; nothing else is kept of it, and for strangers no lane is begun. False for a
    /// copy of what was stored.
    pub async fn pass_over_inbound(
        &self,
        now: Time,
        inbound: &Inbound,
        origin: Origin,
    ) -> sqlx::Result<bool> {
        let Some(gateway) = inbound.signer() else { return Ok(true) };
        let message = &inbound.message;
        let (sender, recipient) = (message.sender.to_string(), inbound.recipient.to_string());
        let (gateway, level) = (gateway.to_string(), words::level_number(message.min_anonymity));
        let mut transaction = self.pool.begin().await?;
        let asked = sqlx::query!(
            r#"
            select exists (
                       select from lane_in where sender = $1 and recipient = $2 and level = $3
                   ) as "has_begun!",
                   exists (
                       select from inbound
                       where message_id = $4 and sender = $5 and recipient = $2
                   ) as "is_known!"
            "#,
            lane_name(&sender, &gateway),
            recipient,
            level,
            message.id.0,
            sender,
        )
        .fetch_one(&mut *transaction)
        .await?;
        // A copy has its place already.
        if asked.is_known {
            return Ok(false);
        }
        let Some(seq) = inbound.lane_seq else { return Ok(true) };
        if !asked.has_begun && origin == Origin::Stranger {
            return Ok(true);
        }
        let mut lane = Lane::named(&mut transaction, sender, gateway, recipient, level).await?;
        pass_over(&mut lane.held, seq, inbound.after);
        let after = known_after(&lane.held, seq, inbound.after);
        pass_over_ended(&mut lane.held, seq, after);
        lane.held.push(Held { lane_seq: seq, id: message.id, after });
        lane.release(&mut transaction, None, || self.acceptance_time(now)).await?;
        if self.announces {
            self.announce(&mut transaction, &[lane.recipient]).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }
}

/// One incoming lane, locked until the transaction ends.
struct Lane {
    sender: String,
    /// Whoever counts the lane and gets the receipts: the sender's gateway, or a group's home.
    gateway: String,
    recipient: String,
    level: i16,
    progress: Progress,
    held: Vec<Held>,
    /// The `held` of the database.
    stored: Vec<Held>,
}

impl Lane {
    async fn named(
        connection: &mut PgConnection,
        sender: String,
        gateway: String,
        recipient: String,
        level: i16,
    ) -> sqlx::Result<Self> {
        let name = lane_name(&sender, &gateway);
        let progress = lock_lane(connection, &name, &recipient, level).await?;
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
        .map(|row| held(row.message_id, row.lane_seq, row.after_seq))
        .collect();
        Ok(Self { sender, gateway, recipient, level, progress, stored: held.clone(), held })
    }

    /// Lets go of what is held back and over: the sweep finds it in the inbox, where nobody is shown it.
    async fn end_expired(
        &mut self,
        connection: &mut PgConnection,
        now: Time,
        mut position: impl FnMut() -> Time,
    ) -> sqlx::Result<()> {
        let over = sqlx::query_scalar!(
            r#"
            select message_id from inbound
            where sender = $1 and recipient = $2 and level = $3 and gateway = $4
              and release_at is not null and expires_at <= $5
            "#,
            self.sender,
            self.recipient,
            self.level,
            self.gateway,
            now,
        )
        .fetch_all(&mut *connection)
        .await?;
        for id in over {
            if let Some(index) = self.held.iter().position(|held| held.id.0 == id) {
                let ended = self.held.swap_remove(index);
                pass_over_ended(&mut self.held, ended.lane_seq, ended.after);
                self.enter(&mut *connection, ended.id, position(), false, false).await?;
            }
        }
        Ok(())
    }

    /// Shows what may be shown, and keeps what was learnt of the rest.
    async fn release(
        &mut self,
        connection: &mut PgConnection,
        due: Option<LaneSeq>,
        mut position: impl FnMut() -> Time,
    ) -> sqlx::Result<Vec<MessageId>> {
        let released = release(&mut self.progress, &mut self.held, due);
        // Of what found no room there is only a place: a gap before it is told by the next.
        let mut untold = false;
        for message in &released {
            let gap = message.gap || untold;
            let shown =
                self.enter(&mut *connection, message.id, position(), gap, message.late).await?;
            untold = match shown {
                0 => untold || gap && !message.late,
                _ => untold && message.late,
            };
        }
        self.progress.owes_gap |= untold;
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
        let name = lane_name(&self.sender, &self.gateway);
        move_lane(connection, &name, &self.recipient, self.level, self.progress).await?;
        Ok(released.into_iter().map(|message| message.id).collect())
    }

    /// Puts what was held back into the inbox; how many there were.
    async fn enter(
        &self,
        connection: &mut PgConnection,
        id: MessageId,
        position: Time,
        gap: bool,
        late: bool,
    ) -> sqlx::Result<u64> {
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
            id.0,
            self.sender,
            self.recipient,
            position,
            gap,
            late,
        )
        .execute(connection)
        .await
        .map(|entered| entered.rows_affected())
    }
}

/// Locks a lane that ends here until the transaction does; how far it has come.
pub(super) async fn lock_lane(
    connection: &mut PgConnection,
    sender: &str,
    end: &str,
    level: i16,
) -> sqlx::Result<Progress> {
    let row = sqlx::query!(
        r#"
        insert into lane_in (sender, recipient, level, last_shown) values ($1, $2, $3, 0)
        on conflict (sender, recipient, level) do update set last_shown = lane_in.last_shown
        returning last_shown, owes_gap
        "#,
        sender,
        end,
        level,
    )
    .fetch_one(connection)
    .await?;
    Ok(progress(row.last_shown, row.owes_gap))
}

/// Notes how far a lane that ends here has come.
pub(super) async fn move_lane(
    connection: &mut PgConnection,
    sender: &str,
    end: &str,
    level: i16,
    progress: Progress,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update lane_in set last_shown = greatest(last_shown, $4), owes_gap = $5
        where sender = $1 and recipient = $2 and level = $3
          and (last_shown < $4 or owes_gap <> $5)
        "#,
        sender,
        end,
        level,
        progress.last_shown.map_or(0, lane_number),
        progress.owes_gap,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// How far a lane has come, of its columns.
pub(super) fn progress(last_shown: i64, owes_gap: bool) -> Progress {
    let last_shown = (last_shown > 0).then(|| LaneSeq(last_shown.unsigned_abs()));
    Progress { last_shown, owes_gap }
}

/// What waits for its turn, of its columns.
pub(super) fn held(id: Uuid, lane_seq: i64, after: Option<i64>) -> Held {
    let seq = |number: i64| LaneSeq(number.unsigned_abs());
    Held { lane_seq: seq(lane_seq), id: MessageId(id), after: after.map(seq) }
}

/// Who wants receipts of a message, if anybody does.
pub(super) fn receipts_to(inbound: &Inbound) -> Option<Correspondent> {
    inbound.signer().filter(|_| inbound.message.to != Recipient::Broadcast)
}

/// What a lane is called: a group's home counts what it passes on apart from what its senders send
/// themselves. No address holds a space.
pub(super) fn lane_name(sender: &str, gateway: &str) -> String {
    match sender.rsplit_once('@') {
        Some((_, home)) if home != gateway => format!("{sender} via {gateway}"),
        _ => sender.to_owned(),
    }
}

pub(super) fn inbound_conversation(inbound: &Inbound) -> i64 {
    match &inbound.message.to {
        group @ Recipient::Group { .. } => conversation(&inbound.message.sender, group),
        Recipient::Peer(_) | Recipient::Broadcast => {
            conversation(&inbound.message.sender, &inbound.recipient.clone().into())
        }
    }
}

pub(super) fn size(inbound: &Inbound) -> i32 {
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

pub(super) fn lane_number(seq: LaneSeq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}
