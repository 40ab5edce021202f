//! Groups, who belongs to them and what each member may do (design, sections 4 and 6).
//!
//! Every change of a group's members holds the group's row, so limits and "who is the last admin"
//! are judged on what is there. A member who leaves keeps its row, with `left_at` set.
//!
//! A peer of another gateway is asked first: until it accepts, its row has `left_at` and
//! `invited_at`. It can only be a plain member, as nobody here could act for it; so a group whose
//! last member at this gateway leaves is closed and from then on unknown.

pub mod invitations;
pub mod members;
pub mod removal;
pub mod traffic;

use chrono::{DateTime, Utc};
use fieldpost_envelope::{GroupId, PeerAddress, PeerId};
use rand::{TryRng, rngs::SysRng};
use sqlx::{PgConnection, PgExecutor};
use thiserror::Error;
use uuid::Uuid;

use self::members::{Role, find_member, join};
use crate::store::{Store, words::parse};

/// Members that a group may have at a time.
pub const MEMBERS_PER_GROUP: i64 = 1000;
/// Open groups that one peer may have created.
pub const GROUPS_PER_CREATOR: i64 = 1000;

/// A group as it is stored, with its size.
#[derive(Clone, Debug)]
pub struct GroupRecord {
    /// Its public name.
    pub id: String,
    /// Its row, for the mirrored surface.
    pub row_id: Uuid,
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Who made it; perhaps no longer a member.
    pub created_by: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// How many belong to it.
    pub member_count: i64,
    /// How many messages were accepted for it.
    pub message_count: i64,
    /// When the last of them was accepted, or the group was made.
    pub last_message_at: DateTime<Utc>,
}

/// What a new group starts with.
#[derive(Clone, Debug)]
pub struct NewGroup {
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Who becomes its admin.
    pub creator: PeerId,
    /// Who belongs to it besides; repeats and the creator count once.
    pub members: Vec<PeerId>,
}

/// Why a group was not shown or changed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum GroupRefusal {
    /// Never made, or closed.
    #[error("there is no such group")]
    UnknownGroup,
    /// Nobody of that name is registered.
    #[error("there is no peer {0} at this gateway")]
    UnknownPeer(String),
    /// The one to be removed or changed does not belong to the group.
    #[error("{0} is not a member of the group")]
    UnknownMember(String),
    /// The one who asks does not belong to the group.
    #[error("{0} is not a member of the group")]
    NotAMember(PeerId),
    /// The role of the one who asks does not allow it.
    #[error("a {role} may not {what}")]
    NotAllowed {
        /// The role of the one who asked.
        role: Role,
        /// What it may not.
        what: &'static str,
    },
    /// The group has all the members it may have.
    #[error("the group has {MEMBERS_PER_GROUP} members, the most there may be: remove one first")]
    Full,
    /// More members than a group may have were asked for at once.
    #[error("a group may have at most {MEMBERS_PER_GROUP} members, its creator included")]
    TooManyMembers,
    /// The creator has all the groups it may have.
    #[error("{0} has created {GROUPS_PER_CREATOR} groups, the most there may be: close one first")]
    TooManyGroups(PeerId),
    /// Members elsewhere have no rights here.
    #[error("{0} is a peer of another gateway and can only be a plain member")]
    OnlyMember(PeerAddress),
    /// Nobody would be left to govern the group.
    #[error("the last admin has to make another member an admin first")]
    LastAdmin,
}

/// What a store function did, or why it did nothing.
type Outcome<T> = sqlx::Result<Result<T, GroupRefusal>>;

impl Store {
    /// Makes a group under a new random id.
    pub async fn create_group(&self, group: &NewGroup) -> Outcome<GroupRecord> {
        let mut members: Vec<String> = group
            .members
            .iter()
            .filter(|peer| **peer != group.creator)
            .map(PeerId::to_string)
            .collect();
        members.sort_unstable();
        members.dedup();
        if members.len() as i64 >= MEMBERS_PER_GROUP {
            return Ok(Err(GroupRefusal::TooManyMembers));
        }
        let id = new_group_id()?;
        let mut transaction = self.pool.begin().await?;
        if let Err(refusal) = claim_creator(&mut transaction, &group.creator).await? {
            return Ok(Err(refusal));
        }
        if let Some(unknown) = first_unknown(&mut *transaction, &members).await? {
            return Ok(Err(GroupRefusal::UnknownPeer(unknown)));
        }
        let now = self.clock.now();
        sqlx::query!(
            r#"
            insert into peer_group (id, name, description, created_by, created_at, last_message_at)
            values ($1, $2, $3, $4, $5, $5)
            "#,
            id.as_str(),
            group.name,
            group.description,
            group.creator.as_str(),
            now,
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            r#"
            insert into group_member (group_id, peer, role, joined_at)
            select $1, $2, 'admin', $4::timestamptz
            union all
            select $1, peer, 'member', $4 from unnest($3::text[]) as members (peer)
            "#,
            id.as_str(),
            group.creator.as_str(),
            &members,
            now,
        )
        .execute(&mut *transaction)
        .await?;
        let record = find_group(&mut *transaction, id.as_str()).await?;
        transaction.commit().await?;
        Ok(record.ok_or(GroupRefusal::UnknownGroup))
    }

    /// Makes the group `id` with `creator` as its admin, or opens it again if it was closed: how
    /// open mode answers a send to a group that nobody has made. A group that is there stays as
    /// it is.
    pub async fn create_group_for(&self, id: &GroupId, creator: &PeerId) -> Outcome<()> {
        let mut transaction = self.pool.begin().await?;
        if let Err(refusal) = claim_creator(&mut transaction, creator).await? {
            return Ok(Err(refusal));
        }
        let now = self.clock.now();
        let made = sqlx::query!(
            r#"
            insert into peer_group (id, name, created_by, created_at, last_message_at)
            values ($1, $1, $2, $3, $3)
            on conflict (id) do update
            set is_active = true, name = $1, description = null, created_by = $2, created_at = $3
            where not peer_group.is_active
            "#,
            id.as_str(),
            creator.as_str(),
            now,
        )
        .execute(&mut *transaction)
        .await?;
        if made.rows_affected() == 1 {
            join(&mut *transaction, id.as_str(), creator, Role::Admin, now).await?;
        }
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// A group; `reader` has to belong to it, if one is given.
    pub async fn group(&self, id: &str, reader: Option<&PeerId>) -> Outcome<GroupRecord> {
        let Some(group) = find_group(&self.pool, id).await? else {
            return Ok(Err(GroupRefusal::UnknownGroup));
        };
        if let Some(reader) = reader
            && find_member(&self.pool, id, reader.as_str()).await?.is_none()
        {
            return Ok(Err(GroupRefusal::NotAMember(reader.clone())));
        }
        Ok(Ok(group))
    }

    /// Up to `limit` groups in the order of their ids, from the first after `after`, leaving out
    /// `offset`: those of `member`, or all.
    pub async fn groups_page(
        &self,
        member: Option<&PeerId>,
        after: &str,
        limit: i64,
        offset: i64,
    ) -> sqlx::Result<Vec<GroupRecord>> {
        sqlx::query_as!(
            GroupRecord,
            r#"
            select
                id, row_id, name, description, created_by, created_at, message_count,
                last_message_at,
                (
                    select count(*) from group_member
                    where group_id = peer_group.id and left_at is null
                ) as "member_count!"
            from peer_group
            where is_active and id > $2 and (
                $1::text is null or exists (
                    select from group_member
                    where group_id = peer_group.id and peer = $1 and left_at is null
                )
            )
            order by id
            limit $3 offset $4
            "#,
            member.map(PeerId::as_str),
            after,
            limit,
            offset,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// The ids of the open groups that `peer` belongs to.
    pub async fn groups_of(&self, peer: &PeerId) -> sqlx::Result<Vec<GroupId>> {
        let ids = sqlx::query_scalar!(
            r#"
            select group_id from group_member
            join peer_group on peer_group.id = group_id
            where peer = $1 and left_at is null and is_active
            order by group_id
            "#,
            peer.as_str(),
        )
        .fetch_all(&self.pool)
        .await?;
        ids.iter().map(|id| parse(id)).collect()
    }
}

/// Holds `creator`'s row, so that its groups are counted by one at a time.
async fn claim_creator(connection: &mut PgConnection, creator: &PeerId) -> Outcome<()> {
    let found = sqlx::query_scalar!(
        r#"select id from peer where id = $1 for no key update"#,
        creator.as_str(),
    )
    .fetch_optional(&mut *connection)
    .await?;
    if found.is_none() {
        return Ok(Err(GroupRefusal::UnknownPeer(creator.to_string())));
    }
    let groups = sqlx::query_scalar!(
        r#"select count(*) as "count!" from peer_group where created_by = $1 and is_active"#,
        creator.as_str(),
    )
    .fetch_one(&mut *connection)
    .await?;
    Ok(if groups < GROUPS_PER_CREATOR {
        Ok(())
    } else {
        Err(GroupRefusal::TooManyGroups(creator.clone()))
    })
}

/// Takes the group's row until the transaction ends; `false` if there is no such group.
pub(super) async fn lock_group(connection: &mut PgConnection, id: &str) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar!(
        "select id from peer_group where id = $1 and is_active for no key update",
        id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.is_some())
}

async fn find_group(executor: impl PgExecutor<'_>, id: &str) -> sqlx::Result<Option<GroupRecord>> {
    sqlx::query_as!(
        GroupRecord,
        r#"
        select
            id, row_id, name, description, created_by, created_at, message_count, last_message_at,
            (
                select count(*) from group_member
                where group_id = peer_group.id and left_at is null
            ) as "member_count!"
        from peer_group
        where id = $1 and is_active
        "#,
        id,
    )
    .fetch_optional(executor)
    .await
}

/// The first of `peers` that is not registered.
async fn first_unknown(
    executor: impl PgExecutor<'_>,
    peers: &[String],
) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        r#"
        select given.id as "id!" from unnest($1::text[]) as given (id)
        where not exists (select from peer where peer.id = given.id)
        order by given.id
        limit 1
        "#,
        peers,
    )
    .fetch_optional(executor)
    .await
}

fn new_group_id() -> sqlx::Result<GroupId> {
    let mut random = [0; 16];
    SysRng.try_fill_bytes(&mut random).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    Ok(GroupId::generated(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_groups_get_ids_of_32_hexadecimal_digits() {
        let id = new_group_id().unwrap();
        assert_eq!(id.as_str().len(), 32);
        assert!(id.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(id, new_group_id().unwrap());
    }
}
