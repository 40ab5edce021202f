//! Groups, who belongs to them and what each member may do (design, sections 4 and 6).
//!
//! Every change of a group's members holds the group's row, so limits and "who is the last admin"
//! are judged on what is there. A member who leaves keeps its row, with `left_at` set.
//!
//! A peer of another gateway is asked first: until it accepts, its row has `left_at` and
//! `invited_at`. It can only be a plain member, as nobody here could act for it; so a group whose
//! last member at this gateway leaves is closed and from then on unknown.

use std::{fmt, str::FromStr};

use chrono::{DateTime, TimeDelta, Utc};
use fieldpost_envelope::{GroupId, MessageId, PeerAddress, PeerId};
use rand::{TryRng, rngs::SysRng};
use sqlx::{PgConnection, PgExecutor};
use thiserror::Error;
use uuid::Uuid;

use crate::store::{Store, words::parse};

/// Members that a group may have at a time.
pub const MEMBERS_PER_GROUP: i64 = 1000;
/// How long an invitation can be accepted: as long as the message that carries it may live.
pub const INVITATION_LIFETIME: TimeDelta = TimeDelta::days(30);
/// Open groups that one peer may have created.
pub const GROUPS_PER_CREATOR: i64 = 1000;

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

/// On whose behalf a group is changed.
#[derive(Clone, Copy, Debug)]
pub enum Actor<'a> {
    /// This peer, with the rights of its role.
    Peer(&'a PeerId),
    /// One who may: open mode, where the request names nobody (design, section 6).
    WhoeverMay,
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

/// Who gets what is sent to a group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FanOut {
    /// There is no such group.
    Unknown,
    /// The sender does not belong to it.
    NotMember,
    /// All members but the sender.
    Members(Vec<PeerAddress>),
}

/// How many messages of one sender a group has accepted, for [`Store::record_group_messages`].
#[derive(Clone, Debug)]
pub struct GroupTraffic {
    /// The group.
    pub group: GroupId,
    /// Who sent.
    pub sender: PeerAddress,
    /// How many.
    pub messages: i64,
    /// When the last was accepted.
    pub last_at: DateTime<Utc>,
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

    /// Who gets what `sender` sends to the group.
    pub async fn group_fan_out(&self, id: &GroupId, sender: &PeerAddress) -> sqlx::Result<FanOut> {
        let sender = sender.to_string();
        let members = sqlx::query_scalar!(
            r#"
            select peer from group_member
            join peer_group on peer_group.id = group_id
            where group_id = $1 and left_at is null and is_active
            order by peer
            "#,
            id.as_str(),
        )
        .fetch_all(&self.pool)
        .await?;
        // An open group is never without members.
        if members.is_empty() {
            return Ok(FanOut::Unknown);
        }
        if !members.contains(&sender) {
            return Ok(FanOut::NotMember);
        }
        members
            .iter()
            .filter(|member| **member != sender)
            .map(|member| parse(member))
            .collect::<sqlx::Result<_>>()
            .map(FanOut::Members)
    }

    /// Adds to the counters of groups and members what was accepted since the last call, in one
    /// statement for any number of messages.
    pub async fn record_group_messages(&self, traffic: &[GroupTraffic]) -> sqlx::Result<()> {
        // Rows are locked in one order, so that replicas that write at the same moment cannot
        // wait for each other.
        let mut traffic: Vec<_> = traffic.iter().collect();
        traffic.sort_unstable_by(|a, b| (&a.group, &a.sender).cmp(&(&b.group, &b.sender)));
        let groups: Vec<_> = traffic.iter().map(|entry| entry.group.to_string()).collect();
        let senders: Vec<_> = traffic.iter().map(|entry| entry.sender.to_string()).collect();
        let messages: Vec<_> = traffic.iter().map(|entry| entry.messages).collect();
        let last: Vec<_> = traffic.iter().map(|entry| entry.last_at).collect();
        let mut transaction = self.pool.begin().await?;
        sqlx::query!(
            r#"
            with locked as (
                select id from peer_group where id = any($1) order by id for no key update
            ), news as (
                select id, sum(messages)::bigint as messages, max(last_at) as last_at
                from unnest($1::text[], $2::bigint[], $3::timestamptz[])
                    as given (id, messages, last_at)
                group by id
            )
            update peer_group
            set message_count = message_count + news.messages,
                last_message_at = greatest(last_message_at, news.last_at)
            from locked join news using (id)
            where peer_group.id = locked.id
            "#,
            &groups,
            &messages,
            &last,
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            r#"
            with news as (
                select group_id, peer, sum(messages)::bigint as messages
                from unnest($1::text[], $2::text[], $3::bigint[])
                    as given (group_id, peer, messages)
                group by group_id, peer
            )
            update group_member
            set messages_sent = messages_sent + news.messages
            from news
            where (group_member.group_id, group_member.peer) = (news.group_id, news.peer)
            "#,
            &groups,
            &senders,
            &messages,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }

    /// How many belong to the group or have been asked to.
    async fn count_places(&self, connection: &mut PgConnection, id: &str) -> sqlx::Result<i64> {
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

async fn find_member(
    executor: impl PgExecutor<'_>,
    id: &str,
    peer: &str,
) -> sqlx::Result<Option<MemberRecord>> {
    Ok(find_row(executor, id, peer).await?.filter(|row| !row.is_invited))
}

/// One who belongs to the group or has been asked to.
async fn find_row(
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

async fn actor_role(connection: &mut PgConnection, id: &str, actor: Actor<'_>) -> Outcome<Role> {
    let Actor::Peer(peer) = actor else {
        return Ok(Ok(Role::Admin));
    };
    match find_member(connection, id, peer.as_str()).await? {
        Some(member) => Ok(Ok(member.role()?)),
        None => Ok(Err(GroupRefusal::NotAMember(peer.clone()))),
    }
}

async fn join(
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

async fn is_last_admin(connection: &mut PgConnection, id: &str, peer: &str) -> sqlx::Result<bool> {
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
    fn roles_read_back_as_they_are_written_and_nothing_else_is_one() {
        for role in [Role::Admin, Role::Moderator, Role::Member] {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        for other in ["", "Admin", "owner", "member "] {
            assert_eq!(other.parse::<Role>(), Err(UnknownRole), "{other:?}");
        }
    }

    #[test]
    fn new_groups_get_ids_of_32_hexadecimal_digits() {
        let id = new_group_id().unwrap();
        assert_eq!(id.as_str().len(), 32);
        assert!(id.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(id, new_group_id().unwrap());
    }
}
