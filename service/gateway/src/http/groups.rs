//! Groups on `/v1`: who belongs, with which role (design, sections 4 and 6).

mod elsewhere;
mod mirrored;
mod shapes;

use axum::{extract::State, http::StatusCode};
use fieldpost_envelope::{GroupId, PeerAddress, PeerId};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::shapes::{
    AddGroupMember, ChangeGroupRole, CreateGroup, Group, GroupList, GroupMember, GroupMemberList,
    GroupMembership,
};
use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Problem},
        extract::{Json, Path, Query},
        fields::{self, PageQuery},
    },
    store::{
        group_inbound::GroupWord,
        groups::{
            GroupRefusal, NewGroup,
            members::{Actor, UnknownRole},
            removal::Succession,
        },
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
        .merge(elsewhere::routes())
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
            "last_message_at": "2026-11-23T09:00:00.000000Z",
            "membership": "member", "invited_by": null
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
/// Those of this gateway come first, then those of others that the caller has joined or was asked
/// into; of these only their homes know more than the name.
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
                "last_message_at": "2026-11-23T09:00:00.000000Z",
                "membership": "member", "invited_by": null
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
    let (limit, after) = (page.limit()?, page.after()?);
    let reader = reader(&caller)?;
    let mut groups: Vec<Group> = Vec::new();
    // Only the names of groups elsewhere hold an @, and they come last.
    let is_elsewhere = after.contains('@');
    if !is_elsewhere {
        let here = gateway.store.groups_page(reader, &after, limit, 0).await?;
        groups.extend(here.into_iter().map(Group::from));
    }
    let room = limit - i64::try_from(groups.len()).unwrap_or(limit);
    if let Some(peer) = reader.filter(|_| room > 0) {
        let after = if is_elsewhere { after.as_str() } else { "" };
        let others = gateway.store.remote_groups_page(peer, after, room, None).await?;
        groups.extend(others.into_iter().map(Group::from));
    }
    let next = fields::next_cursor(&groups, limit, |group| &group.id);
    Ok(axum::Json(GroupList { groups, next }))
}

/// Show a group to one of its members.
#[utoipa::path(
    get,
    path = "/v1/groups/{group_id}",
    operation_id = "getGroup",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group, without `group:`; `<id>@<home>` for one of another gateway", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9._:-]{1,128}(?:@[a-z2-7]{51}[aq])?$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
    ),
    responses(
        (status = 200, description = "The group", body = Group, example = json!({
            "id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "address": "group:0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "name": "Hikers", "description": "Sunday walks", "created_by": "alice",
            "created_at": "2026-11-23T09:00:00.000000Z", "member_count": 2, "message_count": 0,
            "last_message_at": "2026-11-23T09:00:00.000000Z",
            "membership": "member", "invited_by": null
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
    match elsewhere::named(&gateway, &group_id)? {
        Ok(id) => Ok(axum::Json(gateway.store.group(&id, Some(&reader)).await??.into())),
        Err(group) => Ok(axum::Json(elsewhere::remote_group(&gateway, &reader, &group).await?)),
    }
}

/// Leave a group.
///
/// The last admin has to make another member an admin first. When nobody of this gateway is left,
/// the group is closed. A group of another gateway is left at once, and its home told.
#[utoipa::path(
    post,
    path = "/v1/groups/{group_id}/leave",
    operation_id = "leaveGroup",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group, without `group:`; `<id>@<home>` for one of another gateway", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9._:-]{1,128}(?:@[a-z2-7]{51}[aq])?$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
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
    let id = match elsewhere::named(&gateway, &group_id)? {
        Ok(id) => id,
        Err(group) => {
            elsewhere::part_from(&gateway, &peer, &group, GroupWord::Leave).await?;
            return Ok(StatusCode::NO_CONTENT);
        }
    };
    let (actor, address) = (Actor::Peer(&peer), PeerAddress::local(peer.clone()));
    let removal =
        gateway.store.remove_member(&id, actor, &address, Succession::Appointed).await??;
    elsewhere::tell_of_removal(&gateway, Some(peer), &id, &address, removal).await;
    Ok(StatusCode::NO_CONTENT)
}

/// List who belongs to a group, or was asked to and has not answered yet.
///
/// Only a group's own gateway knows this.
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
                { "peer": "alice", "role": "admin", "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 3, "status": "member" },
                { "peer": "bob", "role": "member", "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 0, "status": "member" }
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
    let group =
        gateway.store.group(&elsewhere::own_group(&gateway, &group_id)?, Some(&reader)).await??;
    let members = gateway.store.group_members_page(&group.id, &page.after()?, limit, true).await?;
    let next = fields::next_cursor(&members, limit, |member| &member.peer);
    let members = members.iter().map(GroupMember::try_from).collect::<Result<_, _>>()?;
    Ok(axum::Json(GroupMemberList { members, next }))
}

/// Add a member.
///
/// Admins and moderators may; only admins add others as admin or moderator. Somebody who is there
/// already stays as it is, whatever role is given.
///
/// A peer of another gateway is asked: it gets a message of type `group_invite`, and is a member once
/// it accepts, which it can for 30 days. It is always a plain member.
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
        (status = 200, description = "A member already, or asked before; unchanged", body = GroupMember, example = json!({
            "peer": "bob", "role": "moderator", "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 12, "status": "member"
        })),
        (status = 202, description = "A peer of another gateway, asked", body = GroupMember, example = json!({
            "peer": "carol@aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa", "role": "member",
            "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 0, "status": "invited"
        })),
        (status = 201, description = "A member from now on", body = GroupMember, example = json!({
            "peer": "bob", "role": "member", "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 0, "status": "member"
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
    let (caller, group_id) = (caller.require()?, elsewhere::own_group(&gateway, &group_id)?);
    let peer =
        fields::address("peer", &request.peer)?.seen_from(gateway.store.identity()?.gateway_id);
    let role = request.role.into();
    if peer.gateway.is_some() {
        let (member, invitation) =
            gateway.store.invite_member(&group_id, &caller, &peer, role).await??;
        let is_new = invitation.as_ref().is_some_and(|invitation| invitation.is_new);
        if let Some(invitation) = invitation {
            elsewhere::send_invitation(&gateway, &group_id, &peer, invitation).await?;
        }
        let status = if is_new { StatusCode::ACCEPTED } else { StatusCode::OK };
        return Ok((status, axum::Json(GroupMember::try_from(&member)?)));
    }
    let actor = Actor::Peer(&caller);
    let (member, is_new) = gateway.store.add_member(&group_id, actor, &peer.peer, role).await??;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, axum::Json(GroupMember::try_from(&member)?)))
}

/// Give a member another role.
///
/// Only admins may. The last admin cannot give up the role before another has it. A peer of another
/// gateway can only be a plain member.
#[utoipa::path(
    put,
    path = "/v1/groups/{group_id}/members/{peer}",
    operation_id = "changeGroupRole",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group, without `group:`", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
        ("peer" = String, Path, description = "The member; `peer@gateway` for one of another gateway", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(?:@[a-z2-7]{51}[aq])?$", example = "bob"),
    ),
    request_body = ChangeGroupRole,
    responses(
        (status = 200, description = "The role is changed", body = GroupMember, example = json!({
            "peer": "bob", "role": "moderator", "joined_at": "2026-11-23T09:00:00.000000Z", "messages_sent": 12, "status": "member"
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
    let (caller, group_id) = (caller.require()?, elsewhere::own_group(&gateway, &group_id)?);
    let actor = Actor::Peer(&caller);
    let peer = known_member(&gateway, &peer)?;
    let member = gateway.store.change_role(&group_id, actor, &peer, request.role.into()).await??;
    Ok(axum::Json(GroupMember::try_from(&member)?))
}

/// Remove a member.
///
/// Admins remove anybody, moderators remove members, everybody may remove itself. A peer of another
/// gateway is told; one that was only asked can accept no longer.
#[utoipa::path(
    delete,
    path = "/v1/groups/{group_id}/members/{peer}",
    operation_id = "removeGroupMember",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group, without `group:`", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
        ("peer" = String, Path, description = "The member; `peer@gateway` for one of another gateway", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(?:@[a-z2-7]{51}[aq])?$", example = "bob"),
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
    let (caller, group_id) = (caller.require()?, elsewhere::own_group(&gateway, &group_id)?);
    let (actor, peer) = (Actor::Peer(&caller), known_member(&gateway, &peer)?);
    let removal =
        gateway.store.remove_member(&group_id, actor, &peer, Succession::Appointed).await??;
    elsewhere::tell_of_removal(&gateway, Some(caller), &group_id, &peer, removal).await;
    Ok(StatusCode::NO_CONTENT)
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
            GroupRefusal::OnlyMember(_) => Self::invalid("body.role", detail),
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
fn known_member(gateway: &Gateway, text: &str) -> Result<PeerAddress, ApiError> {
    let address: PeerAddress =
        text.parse().map_err(|_| ApiError::not_found("there is no such member"))?;
    Ok(address.seen_from(gateway.store.identity()?.gateway_id))
}
