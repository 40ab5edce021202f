//! What peers of other gateways say to groups of this one: checked, put in order, fanned out
//! (design, sections 4 and 5).
//!
//! All of it happens under the group's row, so membership is what it is when a message takes effect.
//! A sender's words to a group form a lane. What comes out of turn is held back, and takes effect,
//! or is refused, when its predecessor has; so somebody may accept an invitation and write at once.
//!
//! A member's message is `stored` when it waits, and `delivered` when it has been fanned out. Nothing
//! is said of what an invited peer sent out of turn: until it is known whether it may, its gateway
//! goes on sending it.

use std::time::Duration;

use chrono::TimeDelta;
use fieldpost_delivery::{Held, Message, Time, known_after, pass_over, release, shown_sent_at};
use fieldpost_envelope::{
    GatewayId, GroupId, LaneSeq, MessageId, PeerAddress, PeerId, Priority, Recipient,
    SignedEnvelope,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::store::{
    Store, content,
    groups::{INVITATION_LIFETIME, lock_group},
    messages::{associated_data, conversation},
    remote_files::RemoteFile,
    words,
};

/// How long `delivered` and `refused` are repeated.
const RECEIPT_LIFETIME: TimeDelta = TimeDelta::days(30);

/// What a peer of another gateway says to a group of this one.
#[derive(Clone, Debug)]
pub struct GroupInbound<'a> {
    /// The message as it is kept here.
    pub message: &'a Message,
    /// The group that it is for.
    pub group: &'a GroupId,
    /// What it asks.
    pub kind: GroupWord,
    /// Its place in its lane, if it has one.
    pub lane_seq: Option<LaneSeq>,
    /// The last predecessor that had not ended when it left.
    pub after: Option<LaneSeq>,
    /// When the sender's gateway accepted it, by its own clock.
    pub sent_at: Time,
    /// The sender's gateway, which signed it.
    pub gateway: GatewayId,
    /// By which receipts name it.
    pub digest: [u8; 32],
    /// What carried it.
    pub transport: &'a str,
    /// As it was signed.
    pub original: &'a [u8],
    /// The files that come with it, as the members here will see them.
    pub files: &'a [RemoteFile],
}

/// What is said to a group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GroupWord {
    /// A message for its members.
    Message,
    /// The sender consents to being a member.
    Accept,
    /// The sender does not want to be one.
    Decline,
    /// The sender is one no longer.
    Leave,
}

impl GroupWord {
    /// The message type of an answer to a group.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Accept => "group_accept",
            Self::Decline => "group_decline",
            Self::Leave => "group_leave",
        }
    }

    /// What a message of this type says.
    pub fn of_type(message_type: Option<&str>) -> Self {
        match message_type {
            Some("group_accept") => Self::Accept,
            Some("group_decline") => Self::Decline,
            Some("group_leave") => Self::Leave,
            _ => Self::Message,
        }
    }
}

/// How something said to a group was taken.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GroupReceived {
    /// What became of it itself.
    pub taken: GroupTaken,
    /// Whose inboxes grew, by it or by what waited for it.
    pub grown: Vec<PeerId>,
    /// Whether something is owed elsewhere now.
    pub owes_elsewhere: bool,
}

/// What became of something said to a group.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum GroupTaken {
    /// It took effect: the members here have it, and those elsewhere are owed it.
    #[default]
    Done,
    /// It waits for a predecessor.
    Held,
    /// It is here, or was.
    Duplicate,
    /// It is not taken; its sender's gateway is owed the reason.
    Refused,
}

impl Store {
    /// Takes in what was said to a group, with all that follows from it, in one transaction.
    pub async fn receive_for_group(
        &self,
        now: Time,
        inbound: &GroupInbound<'_>,
        order_wait: Duration,
    ) -> sqlx::Result<GroupReceived> {
        let mut outcome = GroupReceived::default();
        let mut transaction = self.pool.begin().await?;
        let (group, sender) = (inbound.group.as_str(), inbound.message.sender.to_string());
        if !lock_group(&mut transaction, group).await? {
            let reason = format!("there is no group {group} at this gateway");
            owe(&mut transaction, now, &inbound.receipts(), "refused", Some(&reason)).await?;
            transaction.commit().await?;
            return Ok(GroupReceived { taken: GroupTaken::Refused, ..outcome });
        }
        let known = renew(&mut transaction, inbound, group, &sender).await?;
        let standing = standing(&mut transaction, group, &sender, now).await?;
        // Nothing is kept of strangers, not even their lanes.
        if known.is_none()
            && let Some((word, reason)) = dismissal(inbound, standing)
        {
            let taken = if reason.is_some() { GroupTaken::Refused } else { GroupTaken::Done };
            owe(&mut transaction, now, &inbound.receipts(), word, reason.as_deref()).await?;
            transaction.commit().await?;
            return Ok(GroupReceived { taken, ..outcome });
        }
        let level = words::level_number(inbound.message.min_anonymity);
        let mut lane = match inbound.lane_seq {
            Some(_) => Some(Lane::lock(&mut transaction, group, &sender, level).await?),
            None => None,
        };
        if let (Some(lane), Some(seq)) = (&mut lane, inbound.lane_seq) {
            pass_over(&mut lane.held, seq, inbound.after);
        }
        match &known {
            Some(known) => {
                outcome.taken = GroupTaken::Duplicate;
                // What waits and may yet be refused is not spoken of.
                let word = match known {
                    Known { waits: false, .. } => Some("delivered"),
                    Known { was_member: true, .. } => Some("stored"),
                    Known { .. } => None,
                };
                if let Some(word) = word {
                    owe(&mut transaction, now, &inbound.receipts(), word, None).await?;
                }
            }
            None => {
                let at = self.acceptance_time(now);
                let waits = lane.is_some();
                let until = waits.then(|| (now + order_wait).min(inbound.message.expires_at));
                let is_member = standing == Standing::Member;
                self.keep(&mut transaction, inbound, at, until, is_member).await?;
                if let (Some(lane), Some(seq)) = (&mut lane, inbound.lane_seq) {
                    let after = known_after(&lane.held, seq, inbound.after);
                    lane.held.push(Held { lane_seq: seq, id: inbound.message.id, after });
                }
            }
        }
        let turns = match &mut lane {
            Some(lane) => lane.release(&mut transaction, None).await?,
            None if known.is_none() => vec![Turn::unordered(inbound.message.id)],
            None => Vec::new(),
        };
        let mut had_its_turn = false;
        for turn in turns {
            let is_this = turn.id == inbound.message.id;
            let done = self.take_effect(&mut transaction, now, group, &sender, turn).await?;
            if is_this && known.is_none() {
                had_its_turn = true;
                outcome.taken = if done.is_some() { GroupTaken::Done } else { GroupTaken::Refused };
            }
            outcome.add(done.unwrap_or_default());
        }
        if known.is_none() && !had_its_turn {
            outcome.taken = GroupTaken::Held;
            if standing == Standing::Member {
                owe(&mut transaction, now, &inbound.receipts(), "stored", None).await?;
            }
        }
        self.announce_grown(&mut transaction, &outcome).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    /// Lets take effect what has waited long enough for its predecessor.
    pub async fn release_for_groups(
        &self,
        now: Time,
        limit: i64,
    ) -> sqlx::Result<Option<GroupReceived>> {
        let overdue = sqlx::query!(
            r#"
            select group_id, sender, level, max(lane_seq) as "furthest!"
            from (
                select group_id, sender, level, lane_seq from group_inbound
                where release_at <= $1 order by release_at limit $2
            ) as waiting
            group by group_id, sender, level
            order by group_id, sender, level
            "#,
            now,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        if overdue.is_empty() {
            return Ok(None);
        }
        let mut outcome = GroupReceived::default();
        for row in overdue {
            let mut transaction = self.pool.begin().await?;
            // A group that was closed meanwhile has no members, so everything is refused.
            lock_group(&mut transaction, &row.group_id).await?;
            let mut lane =
                Lane::lock(&mut transaction, &row.group_id, &row.sender, row.level).await?;
            let due = Some(LaneSeq(row.furthest.unsigned_abs()));
            for turn in lane.release(&mut transaction, due).await? {
                let done = self
                    .take_effect(&mut transaction, now, &row.group_id, &row.sender, turn)
                    .await?;
                outcome.add(done.unwrap_or_default());
            }
            self.announce_grown(&mut transaction, &outcome).await?;
            transaction.commit().await?;
        }
        Ok(Some(outcome))
    }

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
    async fn keep(
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
                expires_at, size_bytes, file_ids, sealed
            ) values (
                $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19
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

    /// Does what is asked, and says so to the sender's gateway. `None` if it was refused.
    async fn take_effect(
        &self,
        connection: &mut PgConnection,
        now: Time,
        group: &str,
        sender: &str,
        turn: Turn,
    ) -> sqlx::Result<Option<Effect>> {
        let kept = sqlx::query_as!(
            Kept,
            r#"
            update group_inbound set release_at = null
            where message_id = $1 and sender = $2 and group_id = $3
            returning message_id, kind, accepted_at, conversation, digest, gateway, transport,
                      level, was_member, priority, expires_at, size_bytes, file_ids
            "#,
            turn.id.0,
            sender,
            group,
        )
        .fetch_one(&mut *connection)
        .await?;
        let receipts = Receipts {
            digest: kept.digest.clone(),
            gateway: kept.gateway.clone(),
            level: kept.level,
        };
        let word = GroupWord::of_type(Some(&kept.kind));
        let reason = match word {
            GroupWord::Message => {
                let may = kept.was_member
                    || standing(connection, group, sender, now).await? == Standing::Member;
                (!may).then(|| not_a_member(sender, group))
            }
            GroupWord::Accept => (!accept(connection, group, sender, now).await?)
                .then(|| no_invitation(sender, group)),
            GroupWord::Decline | GroupWord::Leave => {
                part(connection, group, sender, word, now).await?;
                None
            }
        };
        if let Some(reason) = reason {
            kept.forget(connection, group, sender).await?;
            owe(connection, now, &receipts, "refused", Some(&reason)).await?;
            return Ok(None);
        }
        let effect = match word {
            // Nobody is shown what has run out while it waited; its sender finds that out itself.
            GroupWord::Message if kept.expires_at <= now => return Ok(Some(Effect::default())),
            GroupWord::Message => self.fan_out(connection, now, group, sender, &kept, turn).await?,
            GroupWord::Accept | GroupWord::Decline | GroupWord::Leave => Effect::default(),
        };
        owe(connection, now, &receipts, "delivered", None).await?;
        Ok(Some(effect))
    }

    /// Gives a message to the members here, and owes it to those elsewhere.
    async fn fan_out(
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
        for member in &members {
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

    async fn announce_grown(
        &self,
        connection: &mut PgConnection,
        outcome: &GroupReceived,
    ) -> sqlx::Result<()> {
        if self.announces && !outcome.grown.is_empty() {
            let names: Vec<String> = outcome.grown.iter().map(ToString::to_string).collect();
            self.announce(connection, &names).await?;
        }
        Ok(())
    }
}

/// What followed from one thing said.
#[derive(Debug, Default)]
struct Effect {
    grown: Vec<PeerId>,
    owes_elsewhere: bool,
}

impl GroupReceived {
    fn add(&mut self, effect: Effect) {
        self.grown.extend(effect.grown);
        self.owes_elsewhere |= effect.owes_elsewhere;
    }
}

/// A row of `group_inbound` that takes effect.
struct Kept {
    message_id: Uuid,
    kind: String,
    accepted_at: Time,
    conversation: i64,
    digest: Vec<u8>,
    gateway: String,
    transport: String,
    level: i16,
    was_member: bool,
    priority: i16,
    expires_at: Time,
    size_bytes: i32,
    file_ids: Vec<String>,
}

impl Kept {
    /// What was refused may come again, and is judged anew then.
    async fn forget(
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

/// Something said to a group whose turn has come.
#[derive(Clone, Copy)]
struct Turn {
    id: MessageId,
    gap: bool,
    late: bool,
}

impl Turn {
    fn unordered(id: MessageId) -> Self {
        Self { id, gap: false, late: false }
    }
}

/// What one sender says to one group at one level, in order; locked until the transaction ends.
struct Lane {
    group: String,
    sender: String,
    level: i16,
    last_taken: Option<LaneSeq>,
    held: Vec<Held>,
    /// The `held` of the database.
    stored: Vec<Held>,
}

impl Lane {
    async fn lock(
        connection: &mut PgConnection,
        group: &str,
        sender: &str,
        level: i16,
    ) -> sqlx::Result<Self> {
        let last = sqlx::query_scalar!(
            r#"
            insert into lane_in (sender, recipient, level, last_shown) values ($1, $2, $3, 0)
            on conflict (sender, recipient, level) do update set last_shown = lane_in.last_shown
            returning last_shown
            "#,
            sender,
            lane_end(group),
            level,
        )
        .fetch_one(&mut *connection)
        .await?;
        let held: Vec<Held> = sqlx::query!(
            r#"
            select message_id, lane_seq as "lane_seq!", after_seq from group_inbound
            where group_id = $1 and sender = $2 and level = $3 and release_at is not null
            "#,
            group,
            sender,
            level,
        )
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| Held {
            lane_seq: LaneSeq(row.lane_seq.unsigned_abs()),
            id: MessageId(row.message_id),
            after: row.after_seq.map(|after| LaneSeq(after.unsigned_abs())),
        })
        .collect();
        Ok(Self {
            group: group.to_owned(),
            sender: sender.to_owned(),
            level,
            last_taken: (last > 0).then(|| LaneSeq(last.unsigned_abs())),
            stored: held.clone(),
            held,
        })
    }

    /// Takes out what has its turn, and keeps what was learnt of the rest.
    async fn release(
        &mut self,
        connection: &mut PgConnection,
        due: Option<LaneSeq>,
    ) -> sqlx::Result<Vec<Turn>> {
        let released = release(&mut self.last_taken, &mut self.held, due);
        for held in self.held.iter().filter(|held| !self.stored.contains(held)) {
            sqlx::query!(
                r#"
                update group_inbound set after_seq = $4
                where message_id = $1 and sender = $2 and group_id = $3
                "#,
                held.id.0,
                self.sender,
                self.group,
                held.after.map(lane_number),
            )
            .execute(&mut *connection)
            .await?;
        }
        sqlx::query!(
            r#"
            update lane_in set last_shown = $4
            where sender = $1 and recipient = $2 and level = $3 and last_shown < $4
            "#,
            self.sender,
            lane_end(&self.group),
            self.level,
            self.last_taken.map_or(0, lane_number),
        )
        .execute(connection)
        .await?;
        let turn =
            |out: &fieldpost_delivery::Released| Turn { id: out.id, gap: out.gap, late: out.late };
        Ok(released.iter().map(turn).collect())
    }
}

/// How the sender of something stands to the group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    Member,
    Invited,
    Stranger,
}

async fn standing(
    connection: &mut PgConnection,
    group: &str,
    sender: &str,
    now: Time,
) -> sqlx::Result<Standing> {
    let is_member = sqlx::query_scalar!(
        r#"
        select left_at is null as "is_member!" from group_member
        join peer_group on peer_group.id = group_id
        where group_id = $1 and peer = $2 and is_active and (left_at is null or invited_at > $3)
        "#,
        group,
        sender,
        now - INVITATION_LIFETIME,
    )
    .fetch_optional(connection)
    .await?;
    Ok(match is_member {
        Some(true) => Standing::Member,
        Some(false) => Standing::Invited,
        None => Standing::Stranger,
    })
}

/// The receipt, and its reason, of what is answered before anything of it is kept.
fn dismissal(
    inbound: &GroupInbound<'_>,
    standing: Standing,
) -> Option<(&'static str, Option<String>)> {
    let (sender, group) = (inbound.message.sender.to_string(), inbound.group.as_str());
    match (inbound.kind, standing) {
        (GroupWord::Message, Standing::Stranger) => {
            Some(("refused", Some(not_a_member(&sender, group))))
        }
        // It may come before the word that makes its sender a member, if that comes before it.
        (GroupWord::Message, Standing::Invited) if inbound.after.is_none() => {
            Some(("refused", Some(not_a_member(&sender, group))))
        }
        (GroupWord::Accept, Standing::Stranger) => {
            Some(("refused", Some(no_invitation(&sender, group))))
        }
        (GroupWord::Decline | GroupWord::Leave, Standing::Stranger) => Some(("delivered", None)),
        _ => None,
    }
}

fn not_a_member(sender: &str, group: &str) -> String {
    format!("{} is not a member of group {group}", bare(sender))
}

fn no_invitation(sender: &str, group: &str) -> String {
    format!("there is no invitation of {} to group {group}", bare(sender))
}

/// The sender's gateway knows which peers are its own, and reasons are short.
fn bare(sender: &str) -> &str {
    sender.split('@').next().unwrap_or(sender)
}

/// Makes an invited peer a member; false if it is not invited. A member stays one.
async fn accept(
    connection: &mut PgConnection,
    group: &str,
    sender: &str,
    now: Time,
) -> sqlx::Result<bool> {
    sqlx::query!(
        r#"
        update group_member
        set joined_at = case when left_at is null then joined_at else $3 end,
            left_at = null, invited_at = null, invited_by = null, invitation = null
        from peer_group
        where group_id = $1 and peer = $2 and peer_group.id = group_id and is_active
          and (left_at is null or invited_at > $4)
        "#,
        group,
        sender,
        now,
        now - INVITATION_LIFETIME,
    )
    .execute(connection)
    .await
    .map(|done| done.rows_affected() == 1)
}

/// Ends a membership, or an invitation alone.
async fn part(
    connection: &mut PgConnection,
    group: &str,
    sender: &str,
    word: GroupWord,
    now: Time,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update group_member
        set left_at = coalesce(left_at, $3), invited_at = null, invited_by = null,
            invitation = null
        where group_id = $1 and peer = $2 and (left_at is not null or $4)
        "#,
        group,
        sender,
        now,
        word == GroupWord::Leave,
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

/// Whether something came before, and how it stands.
struct Known {
    waits: bool,
    was_member: bool,
}

/// A copy's envelope is the one that receipts name from now on.
async fn renew(
    connection: &mut PgConnection,
    inbound: &GroupInbound<'_>,
    group: &str,
    sender: &str,
) -> sqlx::Result<Option<Known>> {
    sqlx::query_as!(
        Known,
        r#"
        update group_inbound set digest = $4
        where message_id = $1 and sender = $2 and group_id = $3
        returning release_at is not null as "waits!", was_member
        "#,
        inbound.message.id.0,
        sender,
        group,
        inbound.digest.as_slice(),
    )
    .fetch_optional(connection)
    .await
}

/// Where the receipts of something said to a group go.
struct Receipts {
    digest: Vec<u8>,
    gateway: String,
    level: i16,
}

impl GroupInbound<'_> {
    fn receipts(&self) -> Receipts {
        Receipts {
            digest: self.digest.to_vec(),
            gateway: self.gateway.to_string(),
            level: words::level_number(self.message.min_anonymity),
        }
    }
}

async fn owe(
    connection: &mut PgConnection,
    now: Time,
    to: &Receipts,
    kind: &str,
    reason: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into receipt (digest, kind, gateway, at, reason, level, next_attempt_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $4, $7)
        on conflict (digest, kind) do update set next_attempt_at = excluded.next_attempt_at
        "#,
        to.digest,
        kind,
        to.gateway,
        now,
        reason,
        to.level,
        now + RECEIPT_LIFETIME,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// How a group is named at the end of a lane; no peer can have that name.
fn lane_end(group: &str) -> String {
    format!("group:{group}")
}

/// What an original is sealed to.
fn original_label(id: Uuid, sender: &str) -> Vec<u8> {
    [b"original ".as_slice(), id.as_bytes(), sender.as_bytes()].concat()
}

fn lane_number(seq: LaneSeq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answers_to_an_invitation_are_no_messages() {
        for word in [GroupWord::Accept, GroupWord::Decline, GroupWord::Leave] {
            assert_eq!(GroupWord::of_type(Some(word.as_str())), word);
        }
        for other in [None, Some("message"), Some("group_invite"), Some("")] {
            assert_eq!(GroupWord::of_type(other), GroupWord::Message, "{other:?}");
        }
    }
}
