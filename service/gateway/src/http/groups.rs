//! Groups on `/v1`: who belongs, with which role (design, sections 4 and 6).

mod mirrored;

use axum::{extract::State, http::StatusCode};
use chrono::{DateTime, Utc};
use fieldpost_envelope::{GroupId, PeerId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Problem},
        extract::{Json, Path, Query},
        fields::{self, PageQuery},
    },
    store::groups::{
        Actor, GroupRecord, GroupRefusal, MemberRecord, NewGroup, Role, Succession, UnknownRole,
    },
};

/// The routes of `/v1/groups` and `/api/bitchat/groups`, but those of messages.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(show))
        .routes(routes!(leave))
        .routes(routes!(members, add_member))
        .routes(routes!(change_role, remove_member))
        .merge(mirrored::routes())
}

/// Make a group.
///
/// The caller becomes its admin. Send to it as `group:<id>`. A peer may have created 1000 open
/// groups, and a group may have 1000 members.
#[utoipa::path(
    post,
    path = "/v1/groups",
    operation_id = "createGroup",
    tag = "groups",
    request_body = CreateGroup,
    responses(
        (status = 201, description = "The group is open", body = Group, example = json!({
            "id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "address": "group:0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "name": "Hikers", "description": "Sunday walks", "created_by": "alice",
            "created_at": "2026-11-23T09:00:00.000000Z", "member_count": 2, "message_count": 0,
            "last_message_at": "2026-11-23T09:00:00.000000Z"
        })),
        (status = "4XX", description = "The group cannot be made", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create(
    State(gateway): State<Gateway>,
    caller: Caller,
    Json(request): Json<CreateGroup>,
) -> Result<(StatusCode, axum::Json<Group>), ApiError> {
    let group = request.into_group(caller.require()?)?;
    let group = gateway.store.create_group(&group).await??;
    Ok((StatusCode::CREATED, axum::Json(group.into())))
}

/// List the caller's groups.
///
/// In open mode, a request that names no caller gets all groups.
#[utoipa::path(
    get,
    path = "/v1/groups",
    operation_id = "listGroups",
    tag = "groups",
    params(PageQuery),
    responses(
        (status = 200, description = "One page, in the order of the ids", body = GroupList, example = json!({
            "groups": [{
                "id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
                "address": "group:0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
                "name": "Hikers", "description": "Sunday walks", "created_by": "alice",
                "created_at": "2026-11-23T09:00:00.000000Z", "member_count": 2, "message_count": 0,
                "last_message_at": "2026-11-23T09:00:00.000000Z"
            }],
            "next": null
        })),
        (status = "4XX", description = "The list cannot be given", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<axum::Json<GroupList>, ApiError> {
    let limit = page.limit()?;
    let groups = gateway.store.groups_page(reader(&caller)?, &page.after()?, limit, 0).await?;
    let next = fields::next_cursor(&groups, limit, |group| &group.id);
    Ok(axum::Json(GroupList { groups: groups.into_iter().map(Group::from).collect(), next }))
}

/// Show a group to one of its members.
#[utoipa::path(
    get,
    path = "/v1/groups/{group_id}",
    operation_id = "getGroup",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group, without `group:`", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
    ),
    responses(
        (status = 200, description = "The group", body = Group, example = json!({
            "id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "address": "group:0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "name": "Hikers", "description": "Sunday walks", "created_by": "alice",
            "created_at": "2026-11-23T09:00:00.000000Z", "member_count": 2, "message_count": 0,
            "last_message_at": "2026-11-23T09:00:00.000000Z"
        })),
        (status = "4XX", description = "There is no such group, or it is not the caller's", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
) -> Result<axum::Json<Group>, ApiError> {
    let reader = caller.require()?;
    let group = gateway.store.group(&known_group(&group_id)?, Some(&reader)).await??;
    Ok(axum::Json(group.into()))
}

/// Leave a group.
///
/// The last admin has to make another member an admin first. When nobody is left, the group is
/// closed.
#[utoipa::path(
    post,
    path = "/v1/groups/{group_id}/leave",
    operation_id = "leaveGroup",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group, without `group:`", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
    ),
    responses(
        (status = 204, description = "The caller no longer belongs to the group"),
        (status = "4XX", description = "The caller cannot leave", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn leave(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let peer = caller.require()?;
    let (group_id, actor) = (known_group(&group_id)?, Actor::Peer(&peer));
    gateway.store.remove_member(&group_id, actor, &peer, Succession::Appointed).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// List who belongs to a group.
#[utoipa::path(
    get,
    path = "/v1/groups/{group_id}/members",
    operation_id = "listGroupMembers",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group, without `group:`", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
        PageQuery,
    ),
    responses(
        (status = 200, description = "One page, in the order of the names", body = GroupMemberList, example = json!({
            "members": [
                { "peer": "alice", "role": "admin", "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 3 },
                { "peer": "bob", "role": "member", "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 0 }
            ],
            "next": null
        })),
        (status = "4XX", description = "There is no such group, or it is not the caller's", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn members(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<axum::Json<GroupMemberList>, ApiError> {
    let (reader, limit) = (caller.require()?, page.limit()?);
    let group = gateway.store.group(&known_group(&group_id)?, Some(&reader)).await??;
    let members = gateway.store.group_members_page(&group.id, &page.after()?, limit).await?;
    let next = fields::next_cursor(&members, limit, |member| &member.peer);
    let members = members.iter().map(GroupMember::try_from).collect::<Result<_, _>>()?;
    Ok(axum::Json(GroupMemberList { members, next }))
}

/// Add a member.
///
/// Admins and moderators may; only admins add others as admin or moderator. Somebody who is there
/// already stays as it is, whatever role is given.
#[utoipa::path(
    post,
    path = "/v1/groups/{group_id}/members",
    operation_id = "addGroupMember",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group, without `group:`", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
    ),
    request_body = AddGroupMember,
    responses(
        (status = 200, description = "A member already, unchanged", body = GroupMember, example = json!({
            "peer": "bob", "role": "moderator", "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 12
        })),
        (status = 201, description = "A member from now on", body = GroupMember, example = json!({
            "peer": "bob", "role": "member", "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 0
        })),
        (status = "4XX", description = "The peer cannot be added", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn add_member(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
    Json(request): Json<AddGroupMember>,
) -> Result<(StatusCode, axum::Json<GroupMember>), ApiError> {
    let (caller, group_id) = (caller.require()?, known_group(&group_id)?);
    let peer = fields::peer("peer", &request.peer)?;
    let (member, is_new) = gateway
        .store
        .add_member(&group_id, Actor::Peer(&caller), &peer, request.role.into())
        .await??;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, axum::Json(GroupMember::try_from(&member)?)))
}

/// Give a member another role.
///
/// Only admins may. The last admin cannot give up the role before another has it.
#[utoipa::path(
    put,
    path = "/v1/groups/{group_id}/members/{peer}",
    operation_id = "changeGroupRole",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group, without `group:`", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
        ("peer" = String, Path, description = "The member", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "bob"),
    ),
    request_body = ChangeGroupRole,
    responses(
        (status = 200, description = "The role is changed", body = GroupMember, example = json!({
            "peer": "bob", "role": "moderator", "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 12
        })),
        (status = "4XX", description = "The role cannot be changed", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn change_role(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path((group_id, peer)): Path<(String, String)>,
    Json(request): Json<ChangeGroupRole>,
) -> Result<axum::Json<GroupMember>, ApiError> {
    let (caller, group_id) = (caller.require()?, known_group(&group_id)?);
    let actor = Actor::Peer(&caller);
    let peer = known_peer(&peer)?;
    let member = gateway.store.change_role(&group_id, actor, &peer, request.role.into()).await??;
    Ok(axum::Json(GroupMember::try_from(&member)?))
}

/// Remove a member.
///
/// Admins remove anybody, moderators remove members, everybody may remove itself.
#[utoipa::path(
    delete,
    path = "/v1/groups/{group_id}/members/{peer}",
    operation_id = "removeGroupMember",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group, without `group:`", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
        ("peer" = String, Path, description = "The member", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "bob"),
    ),
    responses(
        (status = 204, description = "The peer no longer belongs to the group"),
        (status = "4XX", description = "The member cannot be removed", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn remove_member(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path((group_id, peer)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (caller, group_id) = (caller.require()?, known_group(&group_id)?);
    let (actor, peer) = (Actor::Peer(&caller), known_peer(&peer)?);
    gateway.store.remove_member(&group_id, actor, &peer, Succession::Appointed).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// What a new group starts with.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct CreateGroup {
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
    fn into_group(self, creator: PeerId) -> Result<NewGroup, ApiError> {
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
pub(super) struct PeerName(String);

/// Who is to belong to a group.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct AddGroupMember {
    /// A peer of this gateway.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
        example = "bob"
    )]
    peer: String,
    /// What the member may do.
    #[serde(default)]
    role: GroupRole,
}

/// What a member may do from now on.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ChangeGroupRole {
    /// The new role.
    #[schema(example = "moderator")]
    role: GroupRole,
}

/// What a member may do: `admin` everything; `moderator` adds and removes members; `member` posts
/// and leaves.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum GroupRole {
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
pub(super) struct Group {
    /// Its id at this gateway.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$")]
    id: String,
    /// What to send to.
    #[schema(pattern = "^group:[A-Za-z0-9._:-]{1,128}$")]
    address: String,
    /// What people call it.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// What it is for.
    #[schema(required, max_length = 2000)]
    description: Option<String>,
    /// Who made it; perhaps no longer a member.
    #[schema(max_length = 128)]
    created_by: String,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// How many belong to it.
    #[schema(minimum = 1, maximum = 1000)]
    member_count: i64,
    /// How many messages were accepted for it; counted within seconds.
    #[schema(minimum = 0)]
    message_count: i64,
    /// When the last of them was accepted, or the group was made.
    last_message_at: DateTime<Utc>,
}

/// One page of groups.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GroupList {
    /// The groups, in the order of their ids.
    #[schema(max_items = 1000)]
    groups: Vec<Group>,
    /// The `cursor` of the next page; null at the end.
    #[schema(required)]
    next: Option<String>,
}

/// One who belongs to a group.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GroupMember {
    /// Who.
    #[schema(max_length = 128)]
    peer: String,
    /// What it may do.
    role: GroupRole,
    /// Since when.
    joined_at: DateTime<Utc>,
    /// How many messages it has sent to the group; counted within seconds.
    #[schema(minimum = 0)]
    messages_sent: i64,
}

/// One page of members.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GroupMemberList {
    /// The members, in the order of their names.
    #[schema(max_items = 1000)]
    members: Vec<GroupMember>,
    /// The `cursor` of the next page; null at the end.
    #[schema(required)]
    next: Option<String>,
}

impl From<GroupRecord> for Group {
    fn from(group: GroupRecord) -> Self {
        Self {
            address: format!("group:{}", group.id),
            id: group.id,
            name: group.name,
            description: group.description,
            created_by: group.created_by,
            created_at: group.created_at,
            member_count: group.member_count,
            message_count: group.message_count,
            last_message_at: group.last_message_at,
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

impl From<GroupRefusal> for ApiError {
    fn from(refusal: GroupRefusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            GroupRefusal::UnknownGroup
            | GroupRefusal::UnknownPeer(_)
            | GroupRefusal::UnknownMember(_) => Self::not_found(detail),
            GroupRefusal::NotAMember(_) | GroupRefusal::NotAllowed { .. } => {
                Self::forbidden(detail)
            }
            GroupRefusal::TooManyMembers => Self::invalid("body.members", detail),
            GroupRefusal::Full | GroupRefusal::TooManyGroups(_) | GroupRefusal::LastAdmin => {
                Self::conflict(detail)
            }
        }
    }
}

impl From<UnknownRole> for ApiError {
    fn from(error: UnknownRole) -> Self {
        Self::invalid("body.role", format!("role: {error}"))
    }
}

/// Whose groups a caller may see: its own, and in open mode those of all if it names nobody.
fn reader(caller: &Caller) -> Result<Option<&PeerId>, ApiError> {
    if caller.peer().is_none() && !caller.is_open() {
        caller.require()?;
    }
    Ok(caller.peer())
}

fn new_group<'a>(
    creator: PeerId,
    name: String,
    description: Option<String>,
    members: impl Iterator<Item = &'a str>,
) -> Result<NewGroup, ApiError> {
    let name = fields::text("name", name, 1, 255)?;
    let description =
        description.map(|text| fields::text("description", text, 0, 2000)).transpose()?;
    let members = members.map(|peer| fields::peer("members", peer)).collect::<Result<_, _>>()?;
    Ok(NewGroup { name, description, creator, members })
}

/// A name that no group can have names no group.
fn known_group(text: &str) -> Result<String, ApiError> {
    text.parse::<GroupId>().map(|id| id.to_string()).map_err(|_| GroupRefusal::UnknownGroup.into())
}

/// A name that no peer can have names no member.
fn known_peer(text: &str) -> Result<PeerId, ApiError> {
    text.parse().map_err(|_| ApiError::not_found("there is no such member"))
}
