//! Groups of other gateways, seen from a member's; and telling members elsewhere what concerns them.

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode};
use fieldpost_delivery::{Content, Target, Wishes};
use fieldpost_envelope::{
    AnonymityLevel, GroupId, MessageId, PeerAddress, PeerId, Priority, Recipient,
};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{Group, GroupMembership, known_group};
use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Problem},
        extract::Path,
        submit::{Draft, LONGEST_TTL, submit, submit_to},
    },
    inbox::groups::{GROUP_CLOSED, GROUP_INVITE, GROUP_REMOVED},
    store::{
        group_inbound::GroupWord,
        groups::{invitations::Invitation, removal::Removal},
        remote_groups::{Membership, RemoteGroup, RemoteGroupRecord},
    },
};

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(accept)).routes(routes!(decline))
}

/// Accept an invitation to a group of another gateway.
///
/// The caller consents to what is sent to the group, and its gateway tells the group's home. Until
/// the home has answered, `membership` is `joining`; without an invitation it becomes `refused`.
/// Accepting again is harmless.
#[utoipa::path(
    post,
    path = "/v1/groups/{group_id}/accept",
    operation_id = "acceptGroupInvitation",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group: `<id>@<home>`", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9._:-]{1,128}(?:@[a-z2-7]{51}[aq])?$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54@aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa"),
    ),
    responses(
        (status = 202, description = "The home is told", body = Group, example = json!({
            "id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54@aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa",
            "address": "group:0f5b41d9a6c84b0e9d2f7c3a1e6b8d54@aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa",
            "name": "Hikers", "description": null, "created_by": null, "created_at": null,
            "member_count": null, "message_count": null, "last_message_at": null,
            "membership": "joining",
            "invited_by": "alice@aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa"
        })),
        (status = "4XX", description = "There is nothing to accept", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn accept(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
) -> Result<(StatusCode, axum::Json<Group>), ApiError> {
    let peer = caller.require()?;
    let group = elsewhere(&gateway, &peer, &group_id).await?;
    let id = MessageId(Uuid::now_v7());
    let level = gateway.store.invitation_level(&peer, &group).await?.unwrap_or_default();
    if !gateway.store.keep_consent(&peer, &group, id, level).await? {
        return Err(ApiError::conflict(
            "you have to do with too many groups of other gateways: leave some first",
        ));
    }
    if let Err(error) = answer(&gateway, &peer, &group, GroupWord::Accept, id, level).await {
        gateway.store.end_consent(&peer, &group, None).await?;
        return Err(error);
    }
    gateway.store.settle_consent(&peer, &group, id, true).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(remote_group(&gateway, &peer, &group).await?)))
}

/// Decline an invitation to a group of another gateway.
///
/// The group's home is told, and the invitation is listed no longer. Whoever has accepted before
/// leaves.
#[utoipa::path(
    post,
    path = "/v1/groups/{group_id}/decline",
    operation_id = "declineGroupInvitation",
    tag = "groups",
    params(
        ("group_id" = String, Path, description = "The group: `<id>@<home>`", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9._:-]{1,128}(?:@[a-z2-7]{51}[aq])?$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54@aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa"),
    ),
    responses(
        (status = 204, description = "Declined"),
        (status = "4XX", description = "There is nothing to decline", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn decline(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let peer = caller.require()?;
    let group = elsewhere(&gateway, &peer, &group_id).await?;
    let standing = gateway.store.remote_groups_page(&peer, "", 1, Some(&group)).await?;
    let word = match standing.first().map(|standing| standing.membership) {
        Some(Membership::Joining | Membership::Member) => GroupWord::Leave,
        _ => GroupWord::Decline,
    };
    part_from(&gateway, &peer, &group, word).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends a peer's consent at once, and tells the home.
pub(super) async fn part_from(
    gateway: &Gateway,
    peer: &PeerId,
    group: &RemoteGroup,
    word: GroupWord,
) -> Result<(), ApiError> {
    let Some(level) = gateway.store.invitation_level(peer, group).await? else {
        let key = group.key();
        return Err(ApiError::not_found(format!("{peer} has nothing to do with group:{key}")));
    };
    let id = MessageId(Uuid::now_v7());
    gateway.store.end_consent(peer, group, Some(id)).await?;
    answer(gateway, peer, group, word, id, level).await?;
    gateway.store.settle_consent(peer, group, id, false).await?;
    Ok(())
}

/// The group as one of its peers here sees it.
pub(super) async fn remote_group(
    gateway: &Gateway,
    peer: &PeerId,
    group: &RemoteGroup,
) -> Result<Group, ApiError> {
    let found = gateway.store.remote_groups_page(peer, "", 1, Some(group)).await?;
    found.into_iter().next().map(Group::from).ok_or_else(|| {
        let key = group.key();
        ApiError::forbidden(format!("{peer} has not joined group:{key}"))
    })
}

/// The name of a group: of this gateway, or of another.
pub(super) fn named(
    gateway: &Gateway,
    text: &str,
) -> Result<Result<String, RemoteGroup>, ApiError> {
    let own = gateway.store.identity()?.gateway_id;
    match format!("group:{text}").parse() {
        Ok(Recipient::Group { id, home: Some(home) }) if home != own => {
            Ok(Err(RemoteGroup { id, home }))
        }
        Ok(Recipient::Group { id, .. }) => Ok(Ok(id.to_string())),
        _ => known_group(text).map(Ok),
    }
}

/// The group of another gateway that a peer answers to.
async fn elsewhere(gateway: &Gateway, peer: &PeerId, text: &str) -> Result<RemoteGroup, ApiError> {
    let id = match named(gateway, text)? {
        Err(group) => return Ok(group),
        Ok(id) => id,
    };
    let prefix = format!("{id}@");
    let known = gateway.store.remote_groups_page(peer, &prefix, 16, None).await?;
    let meant: Vec<String> =
        known.into_iter().map(|one| one.id).take_while(|key| key.starts_with(&prefix)).collect();
    Err(match meant.is_empty() {
        true => ApiError::conflict(
            "groups of this gateway add its peers without asking: there is nothing to answer; one of \
             another gateway is named <id>@<home>",
        ),
        false => ApiError::not_found(format!(
            "no group {id} of this gateway asks for an answer; with its home it is named {}",
            meant.join(" or ")
        )),
    })
}

/// The group of this gateway that a path names.
///
/// # Errors
///
/// 404 for one that cannot be, and for those of other gateways, whose members only their homes know.
pub(super) fn own_group(gateway: &Gateway, text: &str) -> Result<String, ApiError> {
    named(gateway, text)?.map_err(|group| {
        let key = group.key();
        ApiError::not_found(format!(
            "only its home, gateway {}, knows and changes the members of group:{key}; GET \
             /v1/groups/{key} tells how you stand to it",
            group.home
        ))
    })
}

/// Says something to the home of a group that is no message for its members.
async fn answer(
    gateway: &Gateway,
    peer: &PeerId,
    group: &RemoteGroup,
    word: GroupWord,
    id: MessageId,
    level: AnonymityLevel,
) -> Result<(), ApiError> {
    let (name, home) = (group.id.clone(), group.home);
    let to = Recipient::Group { id: name.clone(), home: Some(home) };
    let draft = Draft { id: Some(id), ..draft(to, word.as_str(), String::new(), None, level) };
    let target = Target::Group { id: name, home };
    submit_to(gateway, peer, draft, vec![target]).await.map(drop)
}

/// Sends the message that carries an invitation. Sending it again is harmless.
pub(super) async fn send_invitation(
    gateway: &Gateway,
    group: &str,
    peer: &PeerAddress,
    invitation: Invitation,
) -> Result<(), ApiError> {
    let Invitation { message, inviter, group_name, is_new } = invitation;
    let home = gateway.store.identity()?.gateway_id;
    let text = format!(
        "{inviter} invites you to the group {group_name}. \
         POST /v1/groups/{group}@{home}/accept takes you in, the same with /decline says no."
    );
    let about = about(gateway, group, &group_name, true)?;
    let to = Recipient::Peer(peer.clone());
    let level = AnonymityLevel::NONE;
    let draft = Draft { id: Some(message), ..draft(to, GROUP_INVITE, text, Some(about), level) };
    let sent = submit(gateway, &inviter, draft).await;
    if sent.is_err() && is_new {
        gateway.store.withdraw_invitation(group, message).await?;
    }
    sent.map(drop)
}

/// Tells members elsewhere that they belong to a group no longer. It is done, so a failure to tell
/// is only logged: they find out when they next write to the group.
pub(super) async fn tell_of_removal(
    gateway: &Gateway,
    actor: Option<PeerId>,
    group: &str,
    peer: &PeerAddress,
    removal: Removal,
) {
    let leaver = Some(peer).filter(|peer| peer.gateway.is_none()).map(|peer| peer.peer.clone());
    let Some(actor) = actor.or(leaver) else { return };
    let told = match removal.closed_for {
        Some(members) if !members.is_empty() => {
            let text = format!("The group {} is closed.", removal.group_name);
            tell(gateway, &actor, group, &removal.group_name, GROUP_CLOSED, text, members).await
        }
        None if removal.was_member && peer.gateway.is_some() => {
            let text = format!("You were removed from the group {}.", removal.group_name);
            let members = vec![peer.clone()];
            tell(gateway, &actor, group, &removal.group_name, GROUP_REMOVED, text, members).await
        }
        _ => Ok(()),
    };
    if let Err(error) = told {
        tracing::warn!(detail = error.detail(), "a member elsewhere was not told of its removal");
    }
}

async fn tell(
    gateway: &Gateway,
    actor: &PeerId,
    group: &str,
    name: &str,
    what: &str,
    text: String,
    members: Vec<PeerAddress>,
) -> Result<(), ApiError> {
    let about = about(gateway, group, name, false)?;
    let id: GroupId = group.parse().map_err(|_| ApiError::not_found("there is no such group"))?;
    let to = Recipient::Group { id, home: None };
    let draft = draft(to, what, text, Some(about), AnonymityLevel::NONE);
    let deliveries = members.into_iter().map(Target::Remote).collect();
    submit_to(gateway, actor, draft, deliveries).await.map(drop)
}

/// The metadata of what is said of a group.
fn about(gateway: &Gateway, group: &str, name: &str, asks: bool) -> Result<String, ApiError> {
    let own = gateway.store.identity()?.gateway_id;
    let address = format!("group:{group}@{own}");
    let mut about = serde_json::json!({ "group": address, "name": name });
    if asks {
        about["role"] = "member".into();
    }
    Ok(about.to_string())
}

fn draft(
    to: Recipient,
    message_type: &str,
    text: String,
    metadata: Option<String>,
    min_anonymity: AnonymityLevel,
) -> Draft {
    Draft {
        id: None,
        to,
        content: Content {
            bytes: text.into_bytes(),
            is_text: true,
            content_type: None,
            message_type: Some(message_type.to_owned()),
            metadata,
            file_ids: Vec::new(),
            labels: BTreeMap::new(),
        },
        ttl: LONGEST_TTL,
        // What the peer writes to the group waits there for this: so this goes first.
        priority: Priority::High,
        min_anonymity,
        wishes: Wishes::default(),
        allow_unknown: false,
        make_group: false,
    }
}

impl From<RemoteGroupRecord> for Group {
    fn from(group: RemoteGroupRecord) -> Self {
        Self {
            address: format!("group:{}", group.id),
            id: group.id,
            name: group.name,
            description: None,
            created_by: None,
            created_at: None,
            member_count: None,
            message_count: None,
            last_message_at: None,
            membership: match group.membership {
                Membership::Invited => GroupMembership::Invited,
                Membership::Joining => GroupMembership::Joining,
                Membership::Member => GroupMembership::Member,
                Membership::Refused => GroupMembership::Refused,
            },
            invited_by: group.invited_by,
        }
    }
}
