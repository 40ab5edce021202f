//! Peers of other gateways are asked before they belong to a group.

use chrono::{DateTime, TimeDelta, Utc};
use fieldpost_envelope::{MessageId, PeerAddress, PeerId};
use sqlx::PgExecutor;
use uuid::Uuid;

use super::{
    GroupRefusal, MEMBERS_PER_GROUP, Outcome, find_group, lock_group,
    members::{Actor, MemberRecord, Role, actor_role, find_member, find_row},
};
use crate::store::{Store, words::parse};

/// How long an invitation can be accepted: as long as the message that carries it may live.
pub const INVITATION_LIFETIME: TimeDelta = TimeDelta::days(30);

/// An invitation that stands; the message that carries it can be made from this again and again.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// The id of that message.
    pub message: MessageId,
    /// Who asks.
    pub inviter: PeerId,
    /// What the group is called.
    pub group_name: String,
    /// Whether it was not there before.
    pub is_new: bool,
}

impl Store {
    /// Asks `peer` of another gateway to join; returns its row, and the invitation unless it is a
    /// member already. Asking again changes nothing while the invitation stands.
    pub async fn invite_member(
        &self,
        id: &str,
        inviter: &PeerId,
        peer: &PeerAddress,
        role: Role,
    ) -> Outcome<(MemberRecord, Option<Invitation>)> {
        if role != Role::Member {
            return Ok(Err(GroupRefusal::OnlyMember(peer.clone())));
        }
        let name = peer.to_string();
        let mut transaction = self.pool.begin().await?;
        if !lock_group(&mut transaction, id).await? {
            return Ok(Err(GroupRefusal::UnknownGroup));
        }
        match actor_role(&mut transaction, id, Actor::Peer(inviter)).await? {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(Role::Admin | Role::Moderator) => {}
            Ok(asker) => {
                return Ok(Err(GroupRefusal::NotAllowed { role: asker, what: "add members" }));
            }
        }
        if let Some(member) = find_member(&mut *transaction, id, &name).await? {
            return Ok(Ok((member, None)));
        }
        let Some(group) = find_group(&mut *transaction, id).await? else {
            return Ok(Err(GroupRefusal::UnknownGroup));
        };
        let now = self.clock.now();
        let standing = find_invitation(&mut *transaction, id, &name, now).await?;
        let is_new = standing.is_none();
        let (message, inviter) = match standing {
            Some(standing) => standing,
            None if self.count_places(&mut transaction, id).await? >= MEMBERS_PER_GROUP => {
                return Ok(Err(GroupRefusal::Full));
            }
            None => {
                let message = Uuid::now_v7();
                invite(&mut *transaction, id, &name, inviter, message, now).await?;
                (message, inviter.clone())
            }
        };
        let member = find_row(&mut *transaction, id, &name).await?;
        transaction.commit().await?;
        let invitation =
            Invitation { message: MessageId(message), inviter, group_name: group.name, is_new };
        Ok(member.map(|member| (member, Some(invitation))).ok_or(GroupRefusal::UnknownGroup))
    }

    /// Takes an invitation back that could not be sent.
    pub async fn withdraw_invitation(&self, id: &str, message: MessageId) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            update group_member set invited_at = null, invited_by = null, invitation = null
            where group_id = $1 and invitation = $2 and left_at is not null
            "#,
            id,
            message.0,
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }
}

/// The message and the inviter of an invitation that stands.
async fn find_invitation(
    executor: impl PgExecutor<'_>,
    id: &str,
    peer: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<(Uuid, PeerId)>> {
    let row = sqlx::query!(
        r#"
        select invitation as "invitation!", invited_by as "invited_by!" from group_member
        where group_id = $1 and peer = $2 and left_at is not null and invited_at > $3
        "#,
        id,
        peer,
        now - INVITATION_LIFETIME,
    )
    .fetch_optional(executor)
    .await?;
    row.map(|row| Ok((row.invitation, parse(&row.invited_by)?))).transpose()
}

async fn invite(
    executor: impl PgExecutor<'_>,
    id: &str,
    peer: &str,
    inviter: &PeerId,
    message: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        insert into group_member (
            group_id, peer, role, joined_at, left_at, invited_at, invited_by, invitation
        ) values ($1, $2, 'member', $3, $3, $3, $4, $5)
        on conflict (group_id, peer) do update
        set role = 'member', joined_at = $3, left_at = $3, invited_at = $3, invited_by = $4,
            invitation = $5
        "#,
        id,
        peer,
        now,
        inviter.as_str(),
        message,
    )
    .execute(executor)
    .await
    .map(drop)
}
