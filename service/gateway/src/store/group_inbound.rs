//! What peers of other gateways say to groups of this one: checked, put in order, fanned out
//! (design, sections 4 and 5).
//!
//! All of it happens under the group's row, so membership is what it is when a message takes effect.
//! A sender's words to a group form a lane. What comes out of turn is held back, and takes effect,
//! or is refused, when its predecessor has; so somebody may accept an invitation and write at once.
//!
//! A message is `stored` when it waits, and `delivered` when it has been fanned out. What an invited peer
//! sent out of turn waits for its consent, as long as it lives and the invitation stands; without one it is
//! refused although it was stored.
//!
//! Of what is dismissed nothing is kept but, where its sender once belonged here, its place in the lane: what
//! they say after they have come back may name it as a predecessor.

mod answers;
mod fan_out;
mod kept;
mod lane;
mod standing;

use std::time::Duration;

use fieldpost_delivery::{Held, Message, Time, known_after, pass_over};
use fieldpost_envelope::{GatewayId, GroupId, LaneSeq, PeerId};
use sqlx::PgConnection;

use self::{
    answers::{Receipts, owe},
    kept::{Kept, keep_place, renew},
    lane::{Lane, Turn},
    standing::{Standing, accept, dismissal, no_invitation, not_a_member, part, standing},
};
use crate::store::{
    Store,
    groups::{invitations::INVITATION_LIFETIME, lock_group},
    remote_files::RemoteFile,
    words,
};

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
    /// The members whose storage is full: they miss it.
    pub full_for: &'a [String],
    /// False when that is all of them.
    pub has_room: bool,
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
        let dismissal = known.is_none().then(|| dismissal(now, inbound, standing)).flatten();
        if let Some((word, reason)) = &dismissal {
            outcome.taken = if reason.is_some() { GroupTaken::Refused } else { GroupTaken::Done };
            owe(&mut transaction, now, &inbound.receipts(), word, reason.as_deref()).await?;
            // Nothing is kept of strangers, not even their lanes.
            if standing == Standing::Stranger {
                transaction.commit().await?;
                return Ok(outcome);
            }
        }
        let is_new = known.is_none() && dismissal.is_none();
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
                let word = if known.waits { "stored" } else { "delivered" };
                owe(&mut transaction, now, &inbound.receipts(), word, None).await?;
            }
            None => {
                if is_new {
                    let at = self.acceptance_time(now);
                    let waits = lane.is_some();
                    let until = waits.then(|| (now + order_wait).min(inbound.message.expires_at));
                    let is_member = standing == Standing::Member;
                    self.keep(&mut transaction, inbound, at, until, is_member).await?;
                }
                if let (Some(lane), Some(seq)) = (&mut lane, inbound.lane_seq) {
                    let after = known_after(&lane.held, seq, inbound.after);
                    lane.held.push(Held { lane_seq: seq, id: inbound.message.id, after });
                }
            }
        }
        let turns = match &mut lane {
            Some(lane) => lane.release(&mut transaction, None).await?,
            None if is_new => vec![Turn::unordered(inbound.message.id)],
            None => Vec::new(),
        };
        if dismissal.is_some()
            && let Some(place) = lane.as_ref().and_then(|lane| lane.place_of(inbound.message.id))
        {
            keep_place(&mut transaction, now, inbound, place, now + order_wait).await?;
        }
        let mut had_its_turn = false;
        for turn in turns {
            let is_this = turn.id == inbound.message.id;
            if is_this && dismissal.is_some() {
                continue;
            }
            let done = self.take_effect(&mut transaction, now, group, &sender, turn).await?;
            if is_this && is_new {
                had_its_turn = true;
                outcome.taken = if done.is_some() { GroupTaken::Done } else { GroupTaken::Refused };
            }
            outcome.add(done.unwrap_or_default());
        }
        if is_new && !had_its_turn {
            outcome.taken = GroupTaken::Held;
            owe(&mut transaction, now, &inbound.receipts(), "stored", None).await?;
        }
        self.announce_grown(&mut transaction, &outcome).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    /// Lets take effect what has waited long enough for its predecessor; an invited peer's messages wait on.
    pub async fn release_for_groups(
        &self,
        now: Time,
        limit: i64,
    ) -> sqlx::Result<Option<GroupReceived>> {
        let overdue = sqlx::query!(
            r#"
            select group_id, sender, level, max(lane_seq) as "furthest!"
            from (
                select group_id, sender, level, lane_seq from group_inbound g
                where release_at <= $1 and (
                    was_member or kind <> 'message' or expires_at <= $1 or not exists (
                        select from group_member m
                        where m.group_id = g.group_id and m.peer = g.sender
                          and m.left_at is not null and m.invited_at > $3
                    )
                )
                order by release_at limit $2
            ) as waiting
            group by group_id, sender, level
            order by group_id, sender, level
            "#,
            now,
            limit,
            now - INVITATION_LIFETIME,
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
                      level, was_member, priority, expires_at, size_bytes, file_ids, full_for
            "#,
            turn.id.0,
            sender,
            group,
        )
        .fetch_one(&mut *connection)
        .await?;
        if kept.is_place() {
            kept.forget(connection, group, sender).await?;
            return Ok(Some(Effect::default()));
        }
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
                part(connection, group, sender, now).await?;
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
