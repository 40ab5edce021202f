//! Reading on `/api/bitchat` what two peers, or a group, wrote to each other.
//!
//! A page is the newest `limit` messages after the newest `offset`, the oldest of them first.

use axum::extract::State;
use fieldpost_delivery::Record;
use fieldpost_envelope::{GroupId, MessageStatus, PeerAddress, PeerId, Recipient};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::BitchatMessage;
use crate::{
    Gateway,
    http::{
        addressing,
        caller::Caller,
        error::{ApiError, Detail},
        extract::{LenientJson, Path, Query},
        fields,
        messages::{is_sender, is_shown, own_delivery},
    },
    store::{conversation, groups::GroupRefusal, status_of},
};

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(conversation_by_body))
        .routes(routes!(conversation_by_path))
        .routes(routes!(group_by_body))
        .routes(routes!(group_by_path))
}

/// Read a conversation of two peers, named in the body.
///
/// Messages in both directions, oldest first. Only the two may read it; what is shown to a
/// recipient here counts as sent to it.
#[utoipa::path(
    post,
    path = "/api/bitchat/messages/conversation",
    operation_id = "bitchatPostConversation",
    tag = "bitchat",
    request_body = BitchatConversation,
    responses(
        (status = 200, description = "One page", body = [BitchatMessage]),
        (status = "4XX", description = "The conversation cannot be shown", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn conversation_by_body(
    State(gateway): State<Gateway>,
    caller: Caller,
    LenientJson(request): LenientJson<BitchatConversation>,
) -> Result<axum::Json<Vec<BitchatMessage>>, ApiError> {
    let page = TalkPage::checked("body", request.limit, request.offset)?;
    let ends = (
        address("body.peer_id", &request.peer_id)?,
        address("body.other_peer_id", &request.other_peer_id)?,
    );
    read_conversation(&gateway, &caller, ends, page).await
}

/// Read a conversation of two peers.
///
/// Messages in both directions, oldest first. Only the two may read it; what is shown to a
/// recipient here counts as sent to it.
#[utoipa::path(
    get,
    path = "/api/bitchat/messages/conversation/{peer_id}/{other_peer_id}",
    operation_id = "bitchatGetConversation",
    tag = "bitchat",
    params(
        ("peer_id" = String, Path, description = "One of them", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(?:@[a-z2-7]{51}[aq])?$", example = "alice"),
        ("other_peer_id" = String, Path, description = "The other", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(?:@[a-z2-7]{51}[aq])?$", example = "bob"),
        BitchatPage,
    ),
    responses(
        (status = 200, description = "One page", body = [BitchatMessage]),
        (status = "4XX", description = "The conversation cannot be shown", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn conversation_by_path(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path((peer, other)): Path<(String, String)>,
    Query(page): Query<BitchatPage>,
) -> Result<axum::Json<Vec<BitchatMessage>>, ApiError> {
    let page = TalkPage::checked("query", page.limit, page.offset)?;
    let known = |text: &str| text.parse().map_err(|_| super::no_such_peer(text));
    let ends: (PeerAddress, PeerAddress) = (known(&peer)?, known(&other)?);
    read_conversation(&gateway, &caller, ends, page).await
}

/// Read what was written to a group, named in the body.
///
/// Only members may; each sees what was sent while it was one.
#[utoipa::path(
    post,
    path = "/api/bitchat/messages/group",
    operation_id = "bitchatPostGroupMessages",
    tag = "bitchat",
    request_body = BitchatGroupMessages,
    responses(
        (status = 200, description = "One page, oldest first; empty for a group that does not exist", body = [BitchatMessage]),
        (status = "4XX", description = "The group's messages cannot be shown", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn group_by_body(
    State(gateway): State<Gateway>,
    caller: Caller,
    LenientJson(request): LenientJson<BitchatGroupMessages>,
) -> Result<axum::Json<Vec<BitchatMessage>>, ApiError> {
    let page = TalkPage::checked("body", request.limit, request.offset)?;
    let group = request
        .group_id
        .parse::<GroupId>()
        .map_err(|error| ApiError::invalid("body.group_id", format!("group_id: {error}")))?;
    read_group(&gateway, &caller, &group, page).await
}

/// Read what was written to a group.
///
/// Only members may; each sees what was sent while it was one.
#[utoipa::path(
    get,
    path = "/api/bitchat/groups/{group_id}/messages",
    operation_id = "bitchatGetGroupMessages",
    tag = "bitchat",
    params(
        ("group_id" = String, Path, description = "The group", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54"),
        BitchatPage,
    ),
    responses(
        (status = 200, description = "One page, oldest first; empty for a group that does not exist", body = [BitchatMessage]),
        (status = "4XX", description = "The group's messages cannot be shown", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn group_by_path(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
    Query(page): Query<BitchatPage>,
) -> Result<axum::Json<Vec<BitchatMessage>>, ApiError> {
    let page = TalkPage::checked("query", page.limit, page.offset)?;
    read_group(&gateway, &caller, &super::known_group(&group_id)?, page).await
}

async fn read_conversation(
    gateway: &Gateway,
    caller: &Caller,
    (one, other): (PeerAddress, PeerAddress),
    page: TalkPage,
) -> Result<axum::Json<Vec<BitchatMessage>>, ApiError> {
    let here = gateway.store.identity()?.gateway_id;
    let ends = [one.seen_from(here), other.seen_from(here)];
    let mut local = ends.iter().filter(|end| end.gateway.is_none()).map(|end| &end.peer);
    let viewer = match (caller.peer(), local.clone().next()) {
        (Some(peer), _) if local.any(|end| end == peer) => peer.clone(),
        (_, Some(first)) => caller.acting_as(first)?,
        // Two peers of other gateways: nobody here takes part.
        (_, None) => {
            caller.viewer()?;
            return Ok(axum::Json(Vec::new()));
        }
    };
    let [one, other] = ends;
    let is_viewer = |end: &PeerAddress| end.gateway.is_none() && end.peer == viewer;
    let (one, other) = if is_viewer(&one) { (one, other) } else { (other, one) };
    // What a name led to is filed under where it was found.
    let other = addressing::pinned(gateway, &viewer, &other).await?.unwrap_or(other);
    read(gateway, &viewer, conversation(&one, &Recipient::Peer(other)), page).await
}

async fn read_group(
    gateway: &Gateway,
    caller: &Caller,
    group: &GroupId,
    page: TalkPage,
) -> Result<axum::Json<Vec<BitchatMessage>>, ApiError> {
    let viewer = match caller.peer() {
        Some(peer) => match gateway.store.group(group.as_str(), Some(peer)).await? {
            Err(GroupRefusal::UnknownGroup) => None,
            found => found.map(|_| Some(peer.clone()))?,
        },
        None if caller.is_open() => gateway.store.first_of_group(group).await?,
        None => Some(caller.require()?),
    };
    let Some(viewer) = viewer else {
        return Ok(axum::Json(Vec::new()));
    };
    let to = Recipient::Group { id: group.clone(), home: None };
    let talk = conversation(&PeerAddress::local(viewer.clone()), &to);
    read(gateway, &viewer, talk, page).await
}

/// One page of a talk as `viewer` may see it.
async fn read(
    gateway: &Gateway,
    viewer: &PeerId,
    talk: i64,
    TalkPage { limit, offset }: TalkPage,
) -> Result<axum::Json<Vec<BitchatMessage>>, ApiError> {
    let now = gateway.clock.now();
    let talk = [talk];
    let look = || gateway.store.talks(now, viewer, &talk, None, offset, limit);
    let mut records = look().await?.records;
    // What this viewer is about to read can no longer be withdrawn.
    if records.iter().any(|record| waits_for(viewer, record)) {
        gateway.store.show_all(now, viewer).await?;
        records = look().await?.records;
    }
    records.retain(|record| is_shown(viewer, record));
    let confirmed = gateway.store.confirmed_at(&records, viewer).await?;
    let messages = records
        .into_iter()
        .zip(confirmed)
        .rev()
        .map(|(record, confirmed)| {
            let status = status_for(viewer, &record);
            let delivered_at = confirmed
                .filter(|_| matches!(status, MessageStatus::Delivered | MessageStatus::Read));
            BitchatMessage::new(record.message, record.sent_at, status, delivered_at)
        })
        .collect();
    Ok(axum::Json(messages))
}

fn waits_for(viewer: &PeerId, record: &Record) -> bool {
    !is_sender(viewer, record)
        && own_delivery(viewer, record)
            .is_some_and(|delivery| delivery.status == MessageStatus::Pending)
}

/// Where the message stands: for its sender with all, for a recipient with itself.
fn status_for(viewer: &PeerId, record: &Record) -> MessageStatus {
    match own_delivery(viewer, record) {
        Some(own) if !is_sender(viewer, record) => own.status,
        _ => status_of(record),
    }
}

fn address(location: &str, text: &str) -> Result<PeerAddress, ApiError> {
    text.parse().map_err(|error| ApiError::invalid(location, error_at(location, &error)))
}

fn error_at(location: &str, error: &impl std::fmt::Display) -> String {
    format!("{}: {error}", location.trim_start_matches("body."))
}

/// Which part of a talk is wanted; within bounds.
#[derive(Clone, Copy)]
struct TalkPage {
    limit: i64,
    offset: i64,
}

impl TalkPage {
    fn checked(place: &str, limit: i64, offset: i64) -> Result<Self, ApiError> {
        let at = |error: ApiError, field: &str| {
            ApiError::invalid(&format!("{place}.{field}"), error.detail())
        };
        Ok(Self {
            limit: fields::limit(limit).map_err(|error| at(error, "limit"))?,
            offset: fields::offset(offset).map_err(|error| at(error, "offset"))?,
        })
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BitchatPage {
    /// How many at most.
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 1000, default = 50)]
    limit: i64,
    /// How many of the newest to leave out.
    #[serde(default)]
    #[param(minimum = 0, maximum = 1_000_000, default = 0)]
    offset: i64,
}

/// Whose conversation is wanted, and which part.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"peer_id": "alice", "other_peer_id": "bob", "limit": 50, "offset": 0}))]
pub(super) struct BitchatConversation {
    /// One of the two.
    #[schema(
        min_length = 1,
        max_length = 181,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(?:@[a-z2-7]{51}[aq])?$"
    )]
    peer_id: String,
    /// The other.
    #[schema(
        min_length = 1,
        max_length = 181,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(?:@[a-z2-7]{51}[aq])?$"
    )]
    other_peer_id: String,
    /// How many at most.
    #[serde(default = "default_limit")]
    #[schema(minimum = 1, maximum = 1000, default = 50)]
    limit: i64,
    /// How many of the newest to leave out.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_000_000, default = 0)]
    offset: i64,
}

/// Which group's messages are wanted, and which part.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"group_id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54", "limit": 50, "offset": 0}))]
pub(super) struct BitchatGroupMessages {
    /// The group.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$")]
    group_id: String,
    /// How many at most.
    #[serde(default = "default_limit")]
    #[schema(minimum = 1, maximum = 1000, default = 50)]
    limit: i64,
    /// How many of the newest to leave out.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_000_000, default = 0)]
    offset: i64,
}

fn default_limit() -> i64 {
    50
}
