//! Who belongs to a group, and what each member may do.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use fieldpost_envelope::{PeerAddress, PeerId};
use sqlx::{PgConnection, PgExecutor};
use thiserror::Error;
use uuid::Uuid;

use super::{
    GroupRefusal, MEMBERS_PER_GROUP, Outcome, first_unknown, invitations::INVITATION_LIFETIME,
    lock_group,
};
use crate::store::{Store, words::parse};

/// What a member may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Everything.
    Admin,
    /// Adds and removes members, besides what a member may.
    Moderator,
    /// Posts and leaves.
    Member,
}

impl Role {
    /// The role as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Moderator => "moderator",
            Self::Member => "member",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A role that there is not.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("the role must be admin, moderator or member")]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "admin" => Ok(Self::Admin),
            "moderator" => Ok(Self::Moderator),
            "member" => Ok(Self::Member),
            _ => Err(UnknownRole),
        }
    }
}

/// One who belongs to a group, or has been asked to.
#[derive(Clone, Debug)]
pub struct MemberRecord {
    /// The membership's row, for the mirrored surface.
    pub row_id: Uuid,
    /// Who; `peer@gateway` for a peer of another gateway.
    pub peer: String,
    /// One of the words of [`Role`].
    pub role: String,
    /// Since when, counted from the last time it joined or was asked.
    pub joined_at: DateTime<Utc>,
    /// How many messages it has sent to the group.
    pub messages_sent: i64,
    /// Whether it has been asked and not yet answered.
    pub is_invited: bool,
}

impl MemberRecord {
    /// What the member may do.
    ///
    /// # Errors
    ///
    /// If the row does not hold a role, which its check forbids.
    pub fn role(&self) -> sqlx::Result<Role> {
        parse(&self.role)
    }
}

/// On whose behalf a group is changed.
#[derive(Clone, Copy, Debug)]
pub enum Actor<'a> {
    /// This peer, with the rights of its role.
    Peer(&'a PeerId),
    /// One who may: open mode, where the request names nobody (design, section 6).
    WhoeverMay,
}

impl Store {
    /// Up to `limit` members in the order of their names, from the first after `after`, with or
    /// without those who have been asked.
    pub async fn group_members_page(
        &self,
        id: &str,
        after: &str,
        limit: i64,
        with_invited: bool,
    ) -> sqlx::Result<Vec<MemberRecord>> {
        sqlx::query_as!(
            MemberRecord,
            r#"
            select row_id, peer, role, joined_at, messages_sent, left_at is not null as "is_invited!"
            from group_member
            where group_id = $1 and (left_at is null or $4 and invited_at > $5) and peer > $2
            order by peer
            limit $3
            "#,
            id,
            after,
            limit,
            with_invited,
            self.clock.now() - INVITATION_LIFETIME,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Adds `peer` and returns its membership, with `true` if it is new. One that is there stays
    /// as it is; a former member comes back under the same row with the role that is given now.
    pub async fn add_member(
        &self,
        id: &str,
        actor: Actor<'_>,
        peer: &PeerId,
        role: Role,
    ) -> Outcome<(MemberRecord, bool)> {
        let mut transaction = self.pool.begin().await?;
        if !lock_group(&mut transaction, id).await? {
            return Ok(Err(GroupRefusal::UnknownGroup));
        }
        match actor_role(&mut transaction, id, actor).await? {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(Role::Admin) => {}
            Ok(Role::Moderator) if role == Role::Member => {}
            Ok(asker) => {
                let what =
                    if asker == Role::Member { "add members" } else { "add an admin or moderator" };
                return Ok(Err(GroupRefusal::NotAllowed { role: asker, what }));
            }
        }
        if let Some(member) = find_member(&mut *transaction, id, peer.as_str()).await? {
            return Ok(Ok((member, false)));
        }
        if first_unknown(&mut *transaction, &[peer.to_string()]).await?.is_some() {
            return Ok(Err(GroupRefusal::UnknownPeer(peer.to_string())));
        }
        if self.count_places(&mut transaction, id).await? >= MEMBERS_PER_GROUP {
            return Ok(Err(GroupRefusal::Full));
        }
        let member = join(&mut *transaction, id, peer, role, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(Ok((member, true)))
    }

    /// Gives a member another role.
    pub async fn change_role(
        &self,
        id: &str,
        actor: Actor<'_>,
        peer: &PeerAddress,
        role: Role,
    ) -> Outcome<MemberRecord> {
        let name = peer.to_string();
        let mut transaction = self.pool.begin().await?;
        if !lock_group(&mut transaction, id).await? {
            return Ok(Err(GroupRefusal::UnknownGroup));
        }
        match actor_role(&mut transaction, id, actor).await? {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(Role::Admin) => {}
            Ok(asker) => {
                return Ok(Err(GroupRefusal::NotAllowed { role: asker, what: "change roles" }));
            }
        }
        let Some(member) = find_member(&mut *transaction, id, &name).await? else {
            return Ok(Err(GroupRefusal::UnknownMember(name)));
        };
        if peer.gateway.is_some() && role != Role::Member {
            return Ok(Err(GroupRefusal::OnlyMember(peer.clone())));
        }
        if member.role()? == Role::Admin
            && role != Role::Admin
            && is_last_admin(&mut transaction, id, &name).await?
        {
            return Ok(Err(GroupRefusal::LastAdmin));
        }
        sqlx::query!(
            "update group_member set role = $3 where group_id = $1 and peer = $2",
            id,
            name,
            role.as_str(),
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Ok(MemberRecord { role: role.to_string(), ..member }))
    }

    /// How many belong to the group or have been asked to.
    pub(super) async fn count_places(
        &self,
        connection: &mut PgConnection,
        id: &str,
    ) -> sqlx::Result<i64> {
        sqlx::query_scalar!(
            r#"
            select count(*) as "count!" from group_member
            where group_id = $1 and (left_at is null or invited_at > $2)
            "#,
            id,
            self.clock.now() - INVITATION_LIFETIME,
        )
        .fetch_one(connection)
        .await
    }
}

pub(super) async fn find_member(
    executor: impl PgExecutor<'_>,
    id: &str,
    peer: &str,
) -> sqlx::Result<Option<MemberRecord>> {
    Ok(find_row(executor, id, peer).await?.filter(|row| !row.is_invited))
}

/// One who belongs to the group or has been asked to.
pub(super) async fn find_row(
    executor: impl PgExecutor<'_>,
    id: &str,
    peer: &str,
) -> sqlx::Result<Option<MemberRecord>> {
    sqlx::query_as!(
        MemberRecord,
        r#"
        select row_id, peer, role, joined_at, messages_sent, left_at is not null as "is_invited!"
        from group_member
        where group_id = $1 and peer = $2 and (left_at is null or invited_at is not null)
        "#,
        id,
        peer,
    )
    .fetch_optional(executor)
    .await
}

pub(super) async fn actor_role(
    connection: &mut PgConnection,
    id: &str,
    actor: Actor<'_>,
) -> Outcome<Role> {
    let Actor::Peer(peer) = actor else {
        return Ok(Ok(Role::Admin));
    };
    match find_member(connection, id, peer.as_str()).await? {
        Some(member) => Ok(Ok(member.role()?)),
        None => Ok(Err(GroupRefusal::NotAMember(peer.clone()))),
    }
}

pub(super) async fn join(
    executor: impl PgExecutor<'_>,
    id: &str,
    peer: &PeerId,
    role: Role,
    now: DateTime<Utc>,
) -> sqlx::Result<MemberRecord> {
    sqlx::query_as!(
        MemberRecord,
        r#"
        insert into group_member (group_id, peer, role, joined_at) values ($1, $2, $3, $4)
        on conflict (group_id, peer) do update
        set role = excluded.role, joined_at = excluded.joined_at, left_at = null
        returning row_id, peer, role, joined_at, messages_sent, false as "is_invited!"
        "#,
        id,
        peer.as_str(),
        role.as_str(),
        now,
    )
    .fetch_one(executor)
    .await
}

pub(super) async fn is_last_admin(
    connection: &mut PgConnection,
    id: &str,
    peer: &str,
) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"
        select not exists (
            select from group_member
            where group_id = $1 and left_at is null and role = 'admin' and peer <> $2
        ) as "last!"
        "#,
        id,
        peer,
    )
    .fetch_one(connection)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_read_back_as_they_are_written_and_nothing_else_is_one() {
        for role in [Role::Admin, Role::Moderator, Role::Member] {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        for other in ["", "Admin", "owner", "member "] {
            assert_eq!(other.parse::<Role>(), Err(UnknownRole), "{other:?}");
        }
    }
}
