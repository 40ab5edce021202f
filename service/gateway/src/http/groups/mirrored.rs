//! Groups on `/api/bitchat`: paths, fields and codes of the original system.
//!
//! Its routes name no caller. In open mode they act for one who may; with tokens the caller's role
//! decides. Repaired: unknown peers and groups are 404, roles are checked, nobody is counted twice
//! and non-members see nothing. The last admin's removal passes the role on by itself, because
//! this surface has no way to appoint another.

use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{elsewhere, known_group, known_member, new_group, reader};
use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Detail},
        extract::{LenientJson, Path, Query},
        fields::{self, mirrored_time},
    },
    store::groups::{
        GroupRecord, GroupRefusal, MEMBERS_PER_GROUP,
        members::{Actor, MemberRecord, Role},
        removal::Succession,
    },
};

/// The routes of `/api/bitchat/groups` but those of messages.
pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(show))
        .routes(routes!(members, add_member))
        .routes(routes!(remove_member))
}

/// Make a group.
#[utoipa::path(
    post,
    path = "/api/bitchat/groups",
    operation_id = "bitchatCreateGroup",
    tag = "bitchat",
    request_body = BitchatCreateGroup,
    responses(
        (status = 201, description = "The group; its creator is admin, the others are members", body = BitchatGroup, example = json!({
            "id": "6f1c1a52-55a4-4e1a-9f0e-2c5d7b8a9e10", "group_id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "name": "Hikers", "description": null, "created_by": "alice",
            "created_at": "2026-11-23T09:00:00.000000+00:00", "is_active": true, "member_count": 2,
            "message_count": 0, "last_sync": "2026-11-23T09:00:00.000000+00:00"
        })),
        (status = "4XX", description = "The group cannot be made", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn create(
    State(gateway): State<Gateway>,
    caller: Caller,
    LenientJson(request): LenientJson<BitchatCreateGroup>,
) -> Result<(StatusCode, axum::Json<BitchatGroup>), ApiError> {
    let creator = caller.acting_as(&fields::peer("created_by", &request.created_by)?)?;
    let members = request.initial_members.iter().map(String::as_str);
    let group = new_group(creator, request.name, request.description, members)?;
    let group = gateway.store.create_group(&group).await??;
    Ok((StatusCode::CREATED, axum::Json(group.into())))
}

/// List groups: those of `peer_id`, else the caller's, else (in open mode) all.
#[utoipa::path(
    get,
    path = "/api/bitchat/groups",
    operation_id = "bitchatListGroups",
    tag = "bitchat",
    params(BitchatGroupsQuery),
    responses(
        (status = 200, description = "The groups, in the order of their ids", body = [BitchatGroup], example = json!([{
            "id": "6f1c1a52-55a4-4e1a-9f0e-2c5d7b8a9e10", "group_id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "name": "Hikers", "description": null, "created_by": "alice",
            "created_at": "2026-11-23T09:00:00.000000+00:00", "is_active": true, "member_count": 2,
            "message_count": 0, "last_sync": "2026-11-23T09:00:00.000000+00:00"
        }])),
        (status = "4XX", description = "The list cannot be given", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: Caller,
    Query(query): Query<BitchatGroupsQuery>,
) -> Result<axum::Json<Vec<BitchatGroup>>, ApiError> {
    let (limit, offset) = (fields::limit(query.limit)?, fields::offset(query.offset)?);
    let named = query.peer_id.map(|peer| query_peer(&peer)).transpose()?;
    let member = match &named {
        Some(peer) => Some(caller.acting_as(peer)?),
        None => reader(&caller)?.cloned(),
    };
    let groups = gateway.store.groups_page(member.as_ref(), "", limit, offset).await?;
    Ok(axum::Json(groups.into_iter().map(BitchatGroup::from).collect()))
}

/// Show a group.
#[utoipa::path(
    get,
    path = "/api/bitchat/groups/{group_id}",
    operation_id = "bitchatGetGroup",
    tag = "bitchat",
    params(("group_id" = String, Path, description = "The group", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54")),
    responses(
        (status = 200, description = "The group", body = BitchatGroup, example = json!({
            "id": "6f1c1a52-55a4-4e1a-9f0e-2c5d7b8a9e10", "group_id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "name": "Hikers", "description": null, "created_by": "alice",
            "created_at": "2026-11-23T09:00:00.000000+00:00", "is_active": true, "member_count": 2,
            "message_count": 0, "last_sync": "2026-11-23T09:00:00.000000+00:00"
        })),
        (status = "4XX", description = "There is no such group, or it is not the caller's", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn show(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
) -> Result<axum::Json<BitchatGroup>, ApiError> {
    let reader = reader(&caller)?;
    let group = gateway.store.group(&known_group(&group_id)?, reader).await??;
    Ok(axum::Json(group.into()))
}

/// List who belongs to a group; nobody belongs to an unknown one.
#[utoipa::path(
    get,
    path = "/api/bitchat/groups/{group_id}/members",
    operation_id = "bitchatListGroupMembers",
    tag = "bitchat",
    params(("group_id" = String, Path, description = "The group", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54")),
    responses(
        (status = 200, description = "All members, in the order of their names", body = [BitchatMembership], example = json!([{
            "id": "b3c0a9f4-8f3f-4c7b-8d6e-0b7a4f1d2c3e", "group_id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "peer_id": "alice", "role": "admin", "joined_at": "2026-11-23T09:00:00.000000+00:00",
            "is_active": true, "messages_sent": 3
        }])),
        (status = "4XX", description = "The group is not the caller's", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn members(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
) -> Result<axum::Json<Vec<BitchatMembership>>, ApiError> {
    let reader = reader(&caller)?;
    let Ok(group_id) = known_group(&group_id) else {
        return Ok(axum::Json(Vec::new()));
    };
    let group = match gateway.store.group(&group_id, reader).await? {
        Err(GroupRefusal::UnknownGroup) => return Ok(axum::Json(Vec::new())),
        group => group?,
    };
    let members = gateway.store.group_members_page(&group.id, "", MEMBERS_PER_GROUP, false).await?;
    let members = members.into_iter().map(|member| BitchatMembership::of(&group.id, member));
    Ok(axum::Json(members.collect()))
}

/// Add a member. One that is there already stays as it is.
#[utoipa::path(
    post,
    path = "/api/bitchat/groups/{group_id}/members",
    operation_id = "bitchatAddGroupMember",
    tag = "bitchat",
    params(("group_id" = String, Path, description = "The group", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54")),
    request_body = BitchatAddMember,
    responses(
        (status = 201, description = "The membership", body = BitchatMembership, example = json!({
            "id": "b3c0a9f4-8f3f-4c7b-8d6e-0b7a4f1d2c3e", "group_id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "peer_id": "bob", "role": "member", "joined_at": "2026-11-23T09:00:00.000000+00:00",
            "is_active": true, "messages_sent": 0
        })),
        (status = "4XX", description = "The peer cannot be added", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn add_member(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
    LenientJson(request): LenientJson<BitchatAddMember>,
) -> Result<(StatusCode, axum::Json<BitchatMembership>), ApiError> {
    let actor = actor(&caller)?;
    let peer = fields::peer("peer_id", &request.peer_id)?;
    let role: Role = request.role.parse()?;
    let group_id = known_group(&group_id)?;
    let (member, _) = gateway.store.add_member(&group_id, actor, &peer, role).await??;
    Ok((StatusCode::CREATED, axum::Json(BitchatMembership::of(&group_id, member))))
}

/// Remove a member. If it was the last admin, the longest-standing moderator, else member, follows.
#[utoipa::path(
    delete,
    path = "/api/bitchat/groups/{group_id}/members/{peer_id}",
    operation_id = "bitchatRemoveGroupMember",
    tag = "bitchat",
    params(
        ("group_id" = String, Path, description = "The group", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
        ("peer_id" = String, Path, description = "The member", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(?:@[a-z2-7]{51}[aq])?$", example = "bob"),
    ),
    responses(
        (status = 200, description = "No longer a member", body = BitchatMemberRemoved, example = json!({
            "message": "bob is no longer a member of the group"
        })),
        (status = "4XX", description = "The member cannot be removed", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn remove_member(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path((group_id, peer)): Path<(String, String)>,
) -> Result<axum::Json<BitchatMemberRemoved>, ApiError> {
    let actor = actor(&caller)?;
    let (group_id, peer) = (known_group(&group_id)?, known_member(&gateway, &peer)?);
    let removal =
        gateway.store.remove_member(&group_id, actor, &peer, Succession::Automatic).await??;
    let teller = match (caller.peer(), group_id.parse()) {
        (Some(peer), _) => Some(peer.clone()),
        (None, Ok(id)) => gateway.store.first_of_group(&id).await?,
        (None, Err(_)) => None,
    };
    elsewhere::tell_of_removal(&gateway, teller, &group_id, &peer, removal).await;
    let message = format!("{peer} is no longer a member of the group");
    Ok(axum::Json(BitchatMemberRemoved { message }))
}

/// What a new group starts with.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct BitchatCreateGroup {
    /// What people call it.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$", example = "Hikers")]
    name: String,
    /// Who makes it and becomes its admin.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
        example = "alice"
    )]
    created_by: String,
    /// What it is for.
    #[schema(max_length = 2000, pattern = r"^[^\u0000]*$")]
    description: Option<String>,
    /// Who belongs to it besides.
    #[serde(default)]
    #[schema(max_items = 999, example = json!(["bob"]))]
    initial_members: Vec<String>,
}

/// Whose groups are wanted, and which part of the list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BitchatGroupsQuery {
    /// The groups of this peer.
    #[param(
        min_length = 1,
        max_length = 128,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
        example = "alice"
    )]
    peer_id: Option<String>,
    /// How many at most.
    #[serde(default = "all_groups")]
    #[param(minimum = 1, maximum = 1000, default = 1000)]
    limit: i64,
    /// How many to leave out.
    #[serde(default)]
    #[param(minimum = 0, maximum = 1_000_000, default = 0)]
    offset: i64,
}

fn all_groups() -> i64 {
    1000
}

/// Who is to belong to a group.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct BitchatAddMember {
    /// A peer of this gateway.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
        example = "bob"
    )]
    peer_id: String,
    /// What it may do: `admin`, `moderator` or `member`.
    #[serde(default = "member")]
    #[schema(pattern = "^(?:admin|moderator|member)$", default = "member", example = "member")]
    role: String,
}

fn member() -> String {
    Role::Member.to_string()
}

/// A group.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatGroup {
    /// Its row.
    id: Uuid,
    /// Its public id.
    group_id: String,
    /// What people call it.
    name: String,
    /// What it is for.
    #[schema(required)]
    description: Option<String>,
    /// Who made it.
    created_by: String,
    /// When it was made.
    #[schema(format = DateTime)]
    created_at: String,
    /// Whether it is open; closed groups are not shown.
    is_active: bool,
    /// How many belong to it.
    member_count: i64,
    /// How many messages were accepted for it; counted within seconds.
    message_count: i64,
    /// When the last of them was accepted, or the group was made.
    #[schema(format = DateTime)]
    last_sync: String,
}

impl From<GroupRecord> for BitchatGroup {
    fn from(group: GroupRecord) -> Self {
        Self {
            id: group.row_id,
            group_id: group.id,
            name: group.name,
            description: group.description,
            created_by: group.created_by,
            created_at: mirrored_time(group.created_at),
            is_active: true,
            member_count: group.member_count,
            message_count: group.message_count,
            last_sync: mirrored_time(group.last_message_at),
        }
    }
}

/// One who belongs to a group.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatMembership {
    /// Its row.
    id: Uuid,
    /// The group.
    group_id: String,
    /// Who.
    peer_id: String,
    /// What it may do.
    role: String,
    /// Since when.
    #[schema(format = DateTime)]
    joined_at: String,
    /// Whether it still belongs; former members are not shown.
    is_active: bool,
    /// How many messages it has sent to the group; counted within seconds.
    messages_sent: i64,
}

impl BitchatMembership {
    fn of(group_id: &str, member: MemberRecord) -> Self {
        Self {
            id: member.row_id,
            group_id: group_id.to_owned(),
            peer_id: member.peer,
            role: member.role,
            joined_at: mirrored_time(member.joined_at),
            is_active: true,
            messages_sent: member.messages_sent,
        }
    }
}

/// That a member was removed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatMemberRemoved {
    /// In words.
    message: String,
}

/// On whose behalf the group is changed: the caller's, or in open mode, when the request names
/// nobody, on behalf of one who may (design, section 6).
fn actor(caller: &Caller) -> Result<Actor<'_>, ApiError> {
    Ok(match reader(caller)? {
        Some(peer) => Actor::Peer(peer),
        None => Actor::WhoeverMay,
    })
}

fn query_peer(text: &str) -> Result<fieldpost_envelope::PeerId, ApiError> {
    text.parse().map_err(|error| ApiError::invalid("query.peer_id", format!("peer_id: {error}")))
}
