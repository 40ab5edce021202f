//! Groups of other gateways: who of this one was asked, who has consented (design, section 4).
//!
//! Only a group's home knows its members. What is kept here is each peer's own consent: without it
//! nothing is taken in the name of a group, whoever sends it.

use chrono::{DateTime, TimeDelta, Utc};
use fieldpost_envelope::{AnonymityLevel, GatewayId, GroupId, MessageId, PeerId};

use crate::store::{Store, words};

/// Groups of other gateways that one peer may be in, and as many invitations may be open; beyond,
/// invitations are messages like any other and are not listed. With what a peer has left, four times
/// as many are remembered.
pub const REMOTE_GROUPS_PER_PEER: i64 = 1000;
/// Open invitations of one gateway to one peer, so that nobody takes the others' room.
const INVITATIONS_OF_HOME: i64 = 100;
/// How long what a peer has left is remembered.
pub const LEFT_REMEMBERED: TimeDelta = TimeDelta::days(31);

/// A group of another gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteGroup {
    /// Its name at its home.
    pub id: GroupId,
    /// The gateway that knows its members.
    pub home: GatewayId,
}

impl RemoteGroup {
    /// As it is written, without `group:`.
    pub fn key(&self) -> String {
        format!("{}@{}", self.id, self.home)
    }
}

/// How a peer stands to a group of another gateway, as far as is known here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Membership {
    /// It has been asked.
    Invited,
    /// It has consented; the home has not said yet that it is a member.
    Joining,
    /// It is a member.
    Member,
    /// It had consented, and the home did not take it, or did not answer in time.
    Refused,
}

/// One group of another gateway that a peer has to do with.
#[derive(Clone, Debug)]
pub struct RemoteGroupRecord {
    /// `<id>@<home>`.
    pub id: String,
    /// What people call it, in the words of whoever asked.
    pub name: String,
    /// Who asked.
    pub invited_by: Option<String>,
    /// How the peer stands to it.
    pub membership: Membership,
    /// Why the home did not take it, in the home's words.
    pub refusal: Option<String>,
    /// Since when.
    pub changed_at: DateTime<Utc>,
}

/// An invitation that came.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// Who is asked.
    pub peer: &'a PeerId,
    /// Into which group.
    pub group: &'a RemoteGroup,
    /// What it is called there.
    pub name: &'a str,
    /// Who asks, `peer@gateway`.
    pub by: &'a str,
    /// At which level the invitation came.
    pub level: AnonymityLevel,
}

impl Store {
    /// Remembers that a peer was asked into a group. One that has joined stays joined, unless the home
    /// did not take it.
    pub async fn remember_invitation(&self, asked: &Asked<'_>) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            insert into remote_group (peer, group_id, name, invited_by, level, state, changed_at)
            select $1, $2, $3, $4, $5, 'invited', $6
            where (
                select count(*) < $7 and count(*) filter (where group_id like $8) < $9
                from remote_group where peer = $1 and state = 'invited'
            )
            on conflict (peer, group_id) do update
            set name = excluded.name, invited_by = excluded.invited_by, level = excluded.level,
                state = 'invited', told_by = null, changed_at = excluded.changed_at
            where remote_group.state <> 'joined' or exists (
                select from delivery d
                where d.message_id = remote_group.told_by and d.sender = remote_group.peer
                  and d.recipient = 'group:' || remote_group.group_id
                  and d.status in ('failed', 'expired', 'cancelled')
            )
            "#,
            asked.peer.as_str(),
            asked.group.key(),
            asked.name,
            asked.by,
            words::level_number(asked.level),
            self.clock.now(),
            REMOTE_GROUPS_PER_PEER,
            format!("%@{}", asked.group.home),
            INVITATIONS_OF_HOME,
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// Whether `peer` consents to get what is sent to a group.
    pub async fn has_joined(&self, peer: &PeerId, group: &RemoteGroup) -> sqlx::Result<bool> {
        sqlx::query_scalar!(
            r#"
            select exists (
                select from remote_group where peer = $1 and group_id = $2 and state = 'joined'
            ) as "joined!"
            "#,
            peer.as_str(),
            group.key(),
        )
        .fetch_one(&self.pool)
        .await
    }

    /// The level at which `peer` was asked into a group; `None` if it was not.
    pub async fn invitation_level(
        &self,
        peer: &PeerId,
        group: &RemoteGroup,
    ) -> sqlx::Result<Option<AnonymityLevel>> {
        let level = sqlx::query_scalar!(
            "select level from remote_group where peer = $1 and group_id = $2",
            peer.as_str(),
            group.key(),
        )
        .fetch_optional(&self.pool)
        .await?;
        level.map(words::level).transpose()
    }

    /// Keeps a peer's consent; `told_by` is the message that tells the home. False if the peer has to
    /// do with too many groups.
    pub async fn keep_consent(
        &self,
        peer: &PeerId,
        group: &RemoteGroup,
        told_by: MessageId,
        level: AnonymityLevel,
    ) -> sqlx::Result<bool> {
        sqlx::query!(
            r#"
            insert into remote_group (peer, group_id, name, level, state, told_by, changed_at)
            select $1, $2, $3, $4, 'joined', $5, $6
            where exists (select from remote_group where peer = $1 and group_id = $2)
               or (
                   select count(*) filter (where state = 'joined') < $7 and count(*) < 4 * $7
                   from remote_group where peer = $1
               )
            on conflict (peer, group_id) do update
            set state = 'joined', told_by = $5, changed_at = excluded.changed_at
            "#,
            peer.as_str(),
            group.key(),
            group.id.as_str(),
            words::level_number(level),
            told_by.0,
            self.clock.now(),
            REMOTE_GROUPS_PER_PEER,
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected() == 1)
    }

    /// Ends a peer's consent, by its own word or by the home's; false if there was none, nor an
    /// invitation.
    pub async fn end_consent(
        &self,
        peer: &PeerId,
        group: &RemoteGroup,
        told_by: Option<MessageId>,
    ) -> sqlx::Result<bool> {
        sqlx::query!(
            r#"
            update remote_group set state = 'left', told_by = $3, changed_at = $4
            where peer = $1 and group_id = $2 and state <> 'left'
            "#,
            peer.as_str(),
            group.key(),
            told_by.map(|id| id.0),
            self.clock.now(),
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected() == 1)
    }

    /// Lets a word that has just been accepted count, if another was kept here after it and accepted
    /// before it: the home hears them in the order in which they were accepted.
    pub async fn settle_consent(
        &self,
        peer: &PeerId,
        group: &RemoteGroup,
        told_by: MessageId,
        consents: bool,
    ) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            update remote_group g set state = $4, told_by = $3, changed_at = $5
            from message_key own, message_key kept
            where g.peer = $1 and g.group_id = $2
              and own.message_id = $3 and own.sender = $1
              and kept.message_id = g.told_by and kept.sender = $1
              and kept.accepted_at < own.accepted_at
            "#,
            peer.as_str(),
            group.key(),
            told_by.0,
            if consents { "joined" } else { "left" },
            self.clock.now(),
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// Whether `peer` ever had to do with a group, as far as is remembered.
    pub async fn knows_group(&self, peer: &PeerId, group: &RemoteGroup) -> sqlx::Result<bool> {
        sqlx::query_scalar!(
            r#"
            select exists (
                select from remote_group where peer = $1 and group_id = $2
            ) as "knows!"
            "#,
            peer.as_str(),
            group.key(),
        )
        .fetch_one(&self.pool)
        .await
    }

    /// The groups of other gateways that `peer` was asked into or has joined, in the order of their
    /// ids: up to `limit` after `after`, or `only` one.
    pub async fn remote_groups_page(
        &self,
        peer: &PeerId,
        after: &str,
        limit: i64,
        only: Option<&RemoteGroup>,
    ) -> sqlx::Result<Vec<RemoteGroupRecord>> {
        let rows = sqlx::query!(
            r#"
            select g.group_id, g.name, g.invited_by, g.state, g.changed_at, o.stage as "stage?",
                   d.status as "status?", d.reason as "reason?"
            from remote_group g
            left join outbox o
                on (o.message_id, o.sender, o.recipient) = (g.told_by, g.peer, 'group:' || g.group_id)
            left join delivery d
                on (d.message_id, d.sender, d.recipient) = (g.told_by, g.peer, 'group:' || g.group_id)
            where g.peer = $1 and g.group_id > $2 and g.state <> 'left'
              and ($4::text is null or g.group_id = $4)
            order by g.group_id
            limit $3
            "#,
            peer.as_str(),
            after,
            limit,
            only.map(RemoteGroup::key),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| RemoteGroupRecord {
                membership: match (row.state.as_str(), row.stage, row.status.as_deref()) {
                    ("invited", _, _) => Membership::Invited,
                    (_, Some(_), _) => Membership::Joining,
                    (_, None, Some("failed" | "expired" | "cancelled")) => Membership::Refused,
                    (_, None, _) => Membership::Member,
                },
                id: row.group_id,
                refusal: row.reason.filter(|_| row.state != "invited"),
                name: row.name,
                invited_by: row.invited_by,
                changed_at: row.changed_at,
            })
            .collect())
    }

    /// Ends the consent to groups whose homes did not take it, and forgets what was left long ago;
    /// returns how many.
    pub async fn settle_remote_groups(&self, now: DateTime<Utc>) -> sqlx::Result<u64> {
        let refused = sqlx::query!(
            r#"
            update remote_group g set state = 'left', changed_at = $1
            from delivery d
            where (d.message_id, d.sender, d.recipient) = (g.told_by, g.peer, 'group:' || g.group_id)
              and d.status in ('failed', 'expired', 'cancelled') and g.state = 'joined'
              and d.at < $2
            "#,
            now,
            now - TimeDelta::days(1),
        )
        .execute(&self.pool)
        .await?;
        let left = sqlx::query!(
            "delete from remote_group where state = 'left' and changed_at < $1",
            now - LEFT_REMEMBERED,
        )
        .execute(&self.pool)
        .await?;
        Ok(refused.rows_affected() + left.rows_affected())
    }
}
