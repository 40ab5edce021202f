//! Members leave or are removed; a group with none of this gateway is closed.

use chrono::{DateTime, Utc};
use fieldpost_envelope::PeerAddress;
use sqlx::{PgConnection, PgExecutor};

use super::{
    GroupRefusal, Outcome, find_group, lock_group,
    members::{Actor, Role, actor_role, find_row, is_last_admin},
};
use crate::store::{Store, words::parse};

/// Who has to be told of a removal.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Removal {
    /// What the group is called.
    pub group_name: String,
    /// The removed member belonged to the group, and was not only asked to.
    pub was_member: bool,
    /// The group was closed with it, and these had belonged to it from elsewhere.
    pub closed_for: Option<Vec<PeerAddress>>,
}

/// What happens to a group whose last admin goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Succession {
    /// The admin has to appoint another first.
    Appointed,
    /// The longest-standing moderator follows, else the longest-standing member: the mirrored
    /// surface has no way to appoint one.
    Automatic,
}

impl Store {
    /// Takes `peer` out of the group, or its invitation back; a member that removes itself leaves.
    /// The group is closed when nobody of this gateway is left.
    pub async fn remove_member(
        &self,
        id: &str,
        actor: Actor<'_>,
        peer: &PeerAddress,
        succession: Succession,
    ) -> Outcome<Removal> {
        let name = peer.to_string();
        let mut transaction = self.pool.begin().await?;
        if !lock_group(&mut transaction, id).await? {
            return Ok(Err(GroupRefusal::UnknownGroup));
        }
        let asker = match actor_role(&mut transaction, id, actor).await? {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(role) => role,
        };
        let Some(group) = find_group(&mut *transaction, id).await? else {
            return Ok(Err(GroupRefusal::UnknownGroup));
        };
        let now = self.clock.now();
        let Some(member) = find_row(&mut *transaction, id, &name).await? else {
            return Ok(Err(GroupRefusal::UnknownMember(name)));
        };
        let role = member.role()?;
        let leaves =
            matches!(actor, Actor::Peer(actor) if peer.gateway.is_none() && *actor == peer.peer);
        if !leaves && asker != Role::Admin && (asker, role) != (Role::Moderator, Role::Member) {
            let what = if asker == Role::Member {
                "remove others"
            } else {
                "remove an admin or moderator"
            };
            return Ok(Err(GroupRefusal::NotAllowed { role: asker, what }));
        }
        if role == Role::Admin
            && succession == Succession::Appointed
            && is_last_admin(&mut transaction, id, &name).await?
            && count_own_members(&mut *transaction, id).await? > 1
        {
            return Ok(Err(GroupRefusal::LastAdmin));
        }
        sqlx::query!(
            r#"
            update group_member
            set left_at = $3, invited_at = null, invited_by = null, invitation = null
            where group_id = $1 and peer = $2
            "#,
            id,
            name,
            now,
        )
        .execute(&mut *transaction)
        .await?;
        let closed_for = settle_group(&mut transaction, id, now).await?;
        transaction.commit().await?;
        let was_member = !member.is_invited;
        Ok(Ok(Removal { group_name: group.name, was_member, closed_for }))
    }
}

/// How many peers of this gateway belong to the group.
async fn count_own_members(executor: impl PgExecutor<'_>, id: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"
        select count(*) as "count!" from group_member
        where group_id = $1 and left_at is null and position('@' in peer) = 0
        "#,
        id,
    )
    .fetch_one(executor)
    .await
}

/// Sees to it that a group without an admin gets one, and that one without members of this gateway
/// is closed; returns who belonged to a closed one from elsewhere.
async fn settle_group(
    connection: &mut PgConnection,
    id: &str,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<Vec<PeerAddress>>> {
    sqlx::query!(
        r#"
        update group_member
        set role = 'admin'
        where group_id = $1
          and not exists (
              select from group_member
              where group_id = $1 and left_at is null and role = 'admin'
          )
          and peer = (
              select peer from group_member
              where group_id = $1 and left_at is null and position('@' in peer) = 0
              order by role = 'moderator' desc, joined_at, peer
              limit 1
          )
        "#,
        id,
    )
    .execute(&mut *connection)
    .await?;
    let closed = sqlx::query!(
        r#"
        update peer_group
        set is_active = false
        where id = $1 and not exists (
            select from group_member
            where group_id = $1 and left_at is null and position('@' in peer) = 0
        )
        "#,
        id,
    )
    .execute(&mut *connection)
    .await?;
    if closed.rows_affected() == 0 {
        return Ok(None);
    }
    sqlx::query_scalar!(
        r#"
        with before as (
            select peer from group_member where group_id = $1 and left_at is null
        ), gone as (
            update group_member
            set left_at = $2, invited_at = null, invited_by = null, invitation = null
            where group_id = $1 and (left_at is null or invited_at is not null)
        )
        select peer from before order by peer
        "#,
        id,
        now,
    )
    .fetch_all(connection)
    .await?
    .iter()
    .map(|peer| parse(peer))
    .collect::<sqlx::Result<_>>()
    .map(Some)
}
