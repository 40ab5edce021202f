//! What is sent to `/v1/groups` and what comes back.

use chrono::{DateTime, Utc};
use fieldpost_envelope::PeerId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::new_group;
use crate::{
    http::error::ApiError,
    store::groups::{
        GroupRecord, NewGroup,
        members::{MemberRecord, Role},
    },
};

/// What a new group starts with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct CreateGroup {
    /// What people call it.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$", example = "Hikers")]
    name: String,
    /// What it is for.
    #[schema(max_length = 2000, pattern = r"^[^\u0000]*$", example = "Sunday walks")]
    description: Option<String>,
    /// Who belongs to it besides the caller; all have to be peers of this gateway.
    #[serde(default)]
    #[schema(max_items = 999, example = json!(["bob"]))]
    members: Vec<PeerName>,
}

impl CreateGroup {
    pub(super) fn into_group(self, creator: PeerId) -> Result<NewGroup, ApiError> {
        new_group(creator, self.name, self.description, self.members.iter().map(|peer| &*peer.0))
    }
}

/// A peer of this gateway.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(
    as = GroupMemberName,
    min_length = 1,
    max_length = 128,
    pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
    example = "bob"
)]
pub(in crate::http) struct PeerName(String);

/// Who is to belong to a group.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct AddGroupMember {
    /// A peer of this gateway, or `peer@gateway`.
    #[schema(
        min_length = 1,
        max_length = 181,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(?:@[a-z2-7]{51}[aq])?$",
        example = "bob"
    )]
    pub(super) peer: String,
    /// What the member may do.
    #[serde(default)]
    pub(super) role: GroupRole,
}

/// What a member may do from now on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct ChangeGroupRole {
    /// The new role.
    #[schema(example = "moderator")]
    pub(super) role: GroupRole,
}

/// What a member may do: `admin` everything; `moderator` adds and removes members; `member` posts
/// and leaves.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum GroupRole {
    /// Everything.
    Admin,
    /// Adds and removes members.
    Moderator,
    /// Posts and leaves.
    #[default]
    Member,
}

/// A group, as its members see it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Group {
    /// Its id at this gateway; `<id>@<home>` for one of another gateway.
    #[schema(
        min_length = 1,
        max_length = 181,
        pattern = "^[A-Za-z0-9._:-]{1,128}(?:@[a-z2-7]{51}[aq])?$"
    )]
    pub(super) id: String,
    /// What to send to.
    #[schema(pattern = "^group:[A-Za-z0-9._:-]{1,128}(?:@[a-z2-7]{51}[aq])?$")]
    pub(super) address: String,
    /// What people call it.
    #[schema(min_length = 1, max_length = 255)]
    pub(super) name: String,
    /// What it is for.
    #[schema(required, max_length = 2000)]
    pub(super) description: Option<String>,
    /// Who made it; perhaps no longer a member. Null, like all that follows, where only the group's
    /// home knows it.
    #[schema(required, max_length = 128)]
    pub(super) created_by: Option<String>,
    /// When it was made.
    #[schema(required)]
    pub(super) created_at: Option<DateTime<Utc>>,
    /// How many belong to it.
    #[schema(required, minimum = 1, maximum = 1000)]
    pub(super) member_count: Option<i64>,
    /// How many messages were accepted for it; counted within seconds.
    #[schema(required, minimum = 0)]
    pub(super) message_count: Option<i64>,
    /// When the last of them was accepted, or the group was made.
    #[schema(required)]
    pub(super) last_message_at: Option<DateTime<Utc>>,
    /// How the caller stands to it.
    pub(super) membership: GroupMembership,
    /// Who asked the caller into a group of another gateway.
    #[schema(required, max_length = 181)]
    pub(super) invited_by: Option<String>,
}

/// How a peer stands to a group. `invited`: it was asked; `joining`: it has accepted, and the group's
/// home has not answered yet; `refused`: the home did not take it.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum GroupMembership {
    /// It was asked.
    Invited,
    /// It has accepted.
    Joining,
    /// It belongs to the group.
    Member,
    /// It was not taken.
    Refused,
}

/// One page of groups.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct GroupList {
    /// The groups, in the order of their ids, those of other gateways last.
    #[schema(max_items = 1000)]
    pub(super) groups: Vec<Group>,
    /// The `cursor` of the next page; null at the end.
    #[schema(required)]
    pub(super) next: Option<String>,
}

/// One who belongs to a group, or was asked to.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct GroupMember {
    /// Who; `peer@gateway` for a peer of another gateway.
    #[schema(max_length = 181)]
    peer: String,
    /// What it may do.
    role: GroupRole,
    /// Since when it belongs to the group, or is asked.
    joined_at: DateTime<Utc>,
    /// How many messages it has sent to the group; counted within seconds.
    #[schema(minimum = 0)]
    messages_sent: i64,
    /// Whether it belongs to the group.
    status: GroupMemberStatus,
}

/// Whether somebody belongs to a group, or was asked and has not answered yet.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum GroupMemberStatus {
    /// It belongs to the group.
    Member,
    /// It was asked.
    Invited,
}

/// One page of members.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct GroupMemberList {
    /// The members, in the order of their names.
    #[schema(max_items = 1000)]
    pub(super) members: Vec<GroupMember>,
    /// The `cursor` of the next page; null at the end.
    #[schema(required)]
    pub(super) next: Option<String>,
}

impl From<GroupRecord> for Group {
    fn from(group: GroupRecord) -> Self {
        Self {
            address: format!("group:{}", group.id),
            id: group.id,
            name: group.name,
            description: group.description,
            created_by: Some(group.created_by),
            created_at: Some(group.created_at),
            member_count: Some(group.member_count),
            message_count: Some(group.message_count),
            last_message_at: Some(group.last_message_at),
            membership: GroupMembership::Member,
            invited_by: None,
        }
    }
}

impl TryFrom<&MemberRecord> for GroupMember {
    type Error = sqlx::Error;

    fn try_from(member: &MemberRecord) -> sqlx::Result<Self> {
        Ok(Self {
            peer: member.peer.clone(),
            role: member.role()?.into(),
            joined_at: member.joined_at,
            messages_sent: member.messages_sent,
            status: match member.is_invited {
                true => GroupMemberStatus::Invited,
                false => GroupMemberStatus::Member,
            },
        })
    }
}

impl From<Role> for GroupRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Admin => Self::Admin,
            Role::Moderator => Self::Moderator,
            Role::Member => Self::Member,
        }
    }
}

impl From<GroupRole> for Role {
    fn from(role: GroupRole) -> Self {
        match role {
            GroupRole::Admin => Self::Admin,
            GroupRole::Moderator => Self::Moderator,
            GroupRole::Member => Self::Member,
        }
    }
}
