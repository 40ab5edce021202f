//! Sending on `/api/bitchat`: to a peer, to everybody, to a group.

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode};
use fieldpost_delivery::{Content, Message, Wishes};
use fieldpost_envelope::{
    AnonymityLevel, GroupId, MessageStatus, PeerAddress, PeerId, Priority, Recipient,
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{BitchatMessage, MAX_CONTENT, label};
use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Detail},
        extract::{LenientJson, Path},
        fields,
        submit::{Draft, check_ttl, submit},
    },
};

/// What a message lives when its sender does not say, in seconds.
const DEFAULT_TTL: i64 = 3600;
/// Characters of an algorithm's label, as in the original's table.
const MAX_ALGORITHM: usize = 50;
/// Characters of a nonce, as in the original's table.
const MAX_NONCE: usize = 255;

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(send)).routes(routes!(send_to_group))
}

/// Send a message to a peer, to everybody, or to a group.
///
/// Give either `to_peer_id` (a peer, `peer@gateway` or `broadcast`) or `group_id`. Once this
/// returns, the message survives a crash and is delivered when the recipient's client comes. With
/// `--auth open`, a group that does not exist is made.
#[utoipa::path(
    post,
    path = "/api/bitchat/messages/send",
    operation_id = "bitchatSendMessage",
    tag = "bitchat",
    request_body = BitchatSendMessage,
    responses(
        (status = 201, description = "Stored; delivery has begun", body = BitchatMessage, example = json!({
            "id": "59c2f6b5-2d5c-5b7e-9d36-0a4f8f0e6a11",
            "message_id": "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12", "from_peer_id": "alice",
            "to_peer_id": "bob", "group_id": null, "content": "The bridge is open.",
            "encryption_algorithm": "AES-256-GCM", "nonce": null, "status": "sent",
            "sent_at": "2026-11-23T09:00:00.000000+00:00", "delivered_at": null, "ttl": 3600,
            "hop_count": 0
        })),
        (status = "4XX", description = "The message cannot be accepted", body = Detail),
        (status = "5XX", description = "The gateway cannot take it now", body = Detail),
    ),
)]
pub(super) async fn send(
    State(gateway): State<Gateway>,
    caller: Caller,
    LenientJson(request): LenientJson<AnySend>,
) -> Result<(StatusCode, axum::Json<BitchatMessage>), ApiError> {
    let sender = caller.acting_as(&fields::peer("from_peer_id", &request.from_peer_id)?)?;
    let to = target(request.to_peer_id.as_deref(), request.group_id.as_deref())?;
    let ttl = check_ttl(request.ttl, &to)?;
    let body = Body::checked(request.content, request.encryption_algorithm, request.nonce)?;
    accept(&gateway, &caller, &sender, to, ttl, body).await
}

/// Send a message to a group.
///
/// It lives an hour. With `--auth open`, a group that does not exist is made.
#[utoipa::path(
    post,
    path = "/api/bitchat/groups/{group_id}/messages",
    operation_id = "bitchatSendGroupMessage",
    tag = "bitchat",
    params(("group_id" = String, Path, description = "The group", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$", example = "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54")),
    request_body = BitchatSendGroupMessage,
    responses(
        (status = 201, description = "Stored; delivery to every other member has begun", body = BitchatMessage, example = json!({
            "id": "59c2f6b5-2d5c-5b7e-9d36-0a4f8f0e6a11",
            "message_id": "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12", "from_peer_id": "alice",
            "to_peer_id": null, "group_id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54",
            "content": "The bridge is open.", "encryption_algorithm": "AES-256-GCM",
            "nonce": null, "status": "sent", "sent_at": "2026-11-23T09:00:00.000000+00:00",
            "delivered_at": null, "ttl": 3600, "hop_count": 0
        })),
        (status = "4XX", description = "The message cannot be accepted", body = Detail),
        (status = "5XX", description = "The gateway cannot take it now", body = Detail),
    ),
)]
pub(super) async fn send_to_group(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(group_id): Path<String>,
    LenientJson(request): LenientJson<BitchatSendGroupMessage>,
) -> Result<(StatusCode, axum::Json<BitchatMessage>), ApiError> {
    let sender = caller.acting_as(&fields::peer("from_peer_id", &request.from_peer_id)?)?;
    let to = Recipient::Group { id: super::known_group(&group_id)?, home: None };
    let body = Body::checked(request.content, request.encryption_algorithm, request.nonce)?;
    accept(&gateway, &caller, &sender, to, DEFAULT_TTL, body).await
}

async fn accept(
    gateway: &Gateway,
    caller: &Caller,
    sender: &PeerId,
    to: Recipient,
    ttl: i64,
    body: Body,
) -> Result<(StatusCode, axum::Json<BitchatMessage>), ApiError> {
    let content = body.into_content(ttl);
    let draft = Draft {
        id: None,
        to,
        content: content.clone(),
        ttl,
        priority: Priority::Normal,
        min_anonymity: AnonymityLevel::NONE,
        wishes: Wishes::default(),
        allow_unknown: false,
        make_group: caller.is_open(),
    };
    let submitted = submit(gateway, sender, draft).await?;
    let message = Message {
        id: submitted.id,
        sender: PeerAddress::local(sender.clone()),
        to: submitted.to,
        content,
        expires_at: submitted.expires_at,
        priority: Priority::Normal,
        min_anonymity: AnonymityLevel::NONE,
        wishes: Wishes::default(),
    };
    let message = BitchatMessage::new(message, submitted.accepted_at, MessageStatus::Pending, None);
    Ok((StatusCode::CREATED, axum::Json(message)))
}

/// The one target that a message has.
fn target(to_peer_id: Option<&str>, group_id: Option<&str>) -> Result<Recipient, ApiError> {
    match (to_peer_id, group_id) {
        (Some(peer), None) => match peer.parse() {
            Ok(Recipient::Group { .. }) => Err(ApiError::invalid(
                "body.to_peer_id",
                "to_peer_id: name a group by its id as group_id",
            )),
            Ok(to) => Ok(to),
            Err(error) => Err(ApiError::invalid("body.to_peer_id", format!("to_peer_id: {error}"))),
        },
        (None, Some(group)) => group
            .parse::<GroupId>()
            .map(|id| Recipient::Group { id, home: None })
            .map_err(|error| ApiError::invalid("body.group_id", format!("group_id: {error}"))),
        (Some(_), Some(_)) => Err(ApiError::invalid(
            "body.group_id",
            "to_peer_id and group_id are both given: give one",
        )),
        (None, None) => {
            Err(ApiError::invalid("body.to_peer_id", "to_peer_id or group_id is needed"))
        }
    }
}

/// The content and what its sender says about it.
struct Body {
    content: String,
    algorithm: String,
    nonce: Option<String>,
}

impl Body {
    fn checked(
        content: String,
        algorithm: String,
        nonce: Option<String>,
    ) -> Result<Self, ApiError> {
        if content.len() > MAX_CONTENT {
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "content has {} bytes of UTF-8: at most {MAX_CONTENT}; send more as a file",
                    content.len()
                ),
            ));
        }
        let algorithm = fields::text("encryption_algorithm", algorithm, 0, MAX_ALGORITHM)?;
        let nonce = nonce.map(|nonce| fields::text("nonce", nonce, 0, MAX_NONCE)).transpose()?;
        Ok(Self { content, algorithm, nonce })
    }

    fn into_content(self, ttl: i64) -> Content {
        let mut labels = BTreeMap::from([
            (label::ALGORITHM.to_owned(), self.algorithm),
            (label::TTL.to_owned(), ttl.to_string()),
        ]);
        if let Some(nonce) = self.nonce {
            labels.insert(label::NONCE.to_owned(), nonce);
        }
        Content { bytes: self.content.into_bytes(), is_text: true, labels, ..Content::default() }
    }
}

/// A message to be sent, as it is read; [`BitchatSendMessage`] is how it is documented.
#[derive(Debug, Deserialize)]
pub(super) struct AnySend {
    from_peer_id: String,
    to_peer_id: Option<String>,
    group_id: Option<String>,
    content: String,
    #[serde(default = "default_algorithm")]
    encryption_algorithm: String,
    nonce: Option<String>,
    #[serde(default = "default_ttl")]
    ttl: i64,
}

/// A message to be sent, to exactly one target.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "documents what AnySend reads and the handler checks")]
pub(super) enum BitchatSendMessage {
    /// To a peer, or to everybody.
    ToPeer(BitchatSendToPeer),
    /// To a group.
    ToGroup(BitchatSendToGroup),
}

/// A message to be sent to a peer, or to everybody.
#[derive(ToSchema)]
#[schema(example = json!({"from_peer_id": "alice", "to_peer_id": "bob", "content": "The bridge is open."}))]
#[expect(dead_code, reason = "documents what AnySend reads and the handler checks")]
pub(super) struct BitchatSendToPeer {
    /// The sender; must be the caller.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
    from_peer_id: String,
    /// A peer or `broadcast`; `peer@gateway` for one elsewhere, where a transport can carry it.
    #[schema(
        min_length = 1,
        max_length = 181,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(?:@[a-z2-7]{51}[aq])?$"
    )]
    to_peer_id: String,
    /// The text; at most 2 MiB of UTF-8.
    #[schema(max_length = 2_097_152)]
    content: String,
    /// What the client says the content is encrypted with; kept and given back.
    #[schema(
        required = false,
        max_length = 50,
        pattern = r"^[^\u0000]*$",
        default = "AES-256-GCM"
    )]
    encryption_algorithm: String,
    /// The client's nonce; kept and given back.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    nonce: Option<String>,
    /// Seconds until it is no longer worth delivering; 3600 at most for a broadcast.
    #[schema(required = false, minimum = 1, maximum = 2_592_000, default = 3600)]
    ttl: i64,
}

/// A message to be sent to a group.
#[derive(ToSchema)]
#[schema(example = json!({"from_peer_id": "alice", "group_id": "0f5b41d9a6c84b0e9d2f7c3a1e6b8d54", "content": "The bridge is open."}))]
#[expect(dead_code, reason = "documents what AnySend reads and the handler checks")]
pub(super) struct BitchatSendToGroup {
    /// The sender; must be the caller.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
    from_peer_id: String,
    /// A group that the sender belongs to.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9._:-]{1,128}$")]
    group_id: String,
    /// The text; at most 2 MiB of UTF-8.
    #[schema(max_length = 2_097_152)]
    content: String,
    /// What the client says the content is encrypted with; kept and given back.
    #[schema(
        required = false,
        max_length = 50,
        pattern = r"^[^\u0000]*$",
        default = "AES-256-GCM"
    )]
    encryption_algorithm: String,
    /// The client's nonce; kept and given back.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    nonce: Option<String>,
    /// Seconds until it is no longer worth delivering.
    #[schema(required = false, minimum = 1, maximum = 2_592_000, default = 3600)]
    ttl: i64,
}

/// A message to be sent to the group in the path.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"from_peer_id": "alice", "content": "The bridge is open."}))]
pub(super) struct BitchatSendGroupMessage {
    /// The sender; must be the caller.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
    from_peer_id: String,
    /// The text; at most 2 MiB of UTF-8.
    #[schema(max_length = 2_097_152)]
    content: String,
    /// What the client says the content is encrypted with; kept and given back.
    #[serde(default = "default_algorithm")]
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$", default = "AES-256-GCM")]
    encryption_algorithm: String,
    /// The client's nonce; kept and given back.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    nonce: Option<String>,
}

fn default_algorithm() -> String {
    "AES-256-GCM".to_owned()
}

fn default_ttl() -> i64 {
    DEFAULT_TTL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_exactly_one_target() {
        assert!(matches!(target(Some("bob"), None), Ok(Recipient::Peer(_))));
        assert!(matches!(target(Some("broadcast"), None), Ok(Recipient::Broadcast)));
        assert!(matches!(target(None, Some("hikers")), Ok(Recipient::Group { .. })));
        for (peer, group) in [
            (None, None),
            (Some("bob"), Some("hikers")),
            (Some(""), None),
            (None, Some("")),
            (Some("group:hikers"), None),
            (Some("a b"), None),
            (None, Some("a\0b")),
        ] {
            let refused = target(peer, group).unwrap_err();
            assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
        }
    }

    #[test]
    fn content_may_be_empty_and_has_an_end() {
        let body = |content: String| Body::checked(content, default_algorithm(), None);
        assert!(body(String::new()).is_ok());
        assert!(body("x".repeat(MAX_CONTENT)).is_ok());
        let refused = body("x".repeat(MAX_CONTENT + 1)).err().unwrap();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
