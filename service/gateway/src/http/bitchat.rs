//! `/api/bitchat`: peers, messages and statistics with the paths, fields and codes of the original
//! system. Groups and files are beside theirs on `/v1`.
//!
//! Repaired (design, section 6): a message has exactly one target, unknown peers are 404, others'
//! groups 403, `ttl`, `limit` and `offset` have bounds, and nobody speaks for another.

mod delivered;
mod peers;
mod send;
mod stats;
mod talks;

use chrono::{DateTime, Utc};
use fieldpost_delivery::{Content, Message};
use fieldpost_envelope::{GroupId, MessageStatus, PeerId, Recipient};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::{
    Gateway,
    http::{error::ApiError, fields::mirrored_time},
};

/// The routes of `/api/bitchat` but those of groups, files and sockets.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .merge(peers::routes())
        .merge(send::routes())
        .merge(talks::routes())
        .merge(delivered::routes())
        .merge(stats::routes())
}

/// The most content of one message on this surface, in bytes of UTF-8: 2 MiB.
pub(super) const MAX_CONTENT: usize = 2 << 20;

/// The labels that this surface keeps beside the content and gives back.
pub(super) mod label {
    /// What the client says the content is encrypted with; a claim.
    pub(crate) const ALGORITHM: &str = "encryption_algorithm";
    /// What the client says of its nonce.
    pub(crate) const NONCE: &str = "nonce";
    /// The time to live in seconds, as it was given.
    pub(crate) const TTL: &str = "ttl";
}

/// A name that no peer can have names no peer.
fn known_peer(text: &str) -> Result<PeerId, ApiError> {
    text.parse().map_err(|_| no_such_peer(text))
}

fn no_such_peer(text: &str) -> ApiError {
    ApiError::not_found(format!("no peer {text:?} is registered here"))
}

/// A name that no group can have names no group.
fn known_group(text: &str) -> Result<GroupId, ApiError> {
    text.parse().map_err(|_| ApiError::not_found(format!("there is no group {text:?}")))
}

/// A message as this surface shows it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "59c2f6b5-2d5c-5b7e-9d36-0a4f8f0e6a11",
    "message_id": "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12", "from_peer_id": "alice",
    "to_peer_id": "bob", "group_id": null, "content": "The bridge is open.",
    "encryption_algorithm": "AES-256-GCM", "nonce": null, "status": "delivered",
    "sent_at": "2026-11-23T09:00:00.000000+00:00",
    "delivered_at": "2026-11-23T09:00:01.000000+00:00", "ttl": 3600, "hop_count": 0
}))]
pub(super) struct BitchatMessage {
    /// Its row: the same for everybody who sees the message.
    id: Uuid,
    /// Its public id.
    message_id: Uuid,
    /// The sender; `peer@gateway` when it came from elsewhere.
    from_peer_id: String,
    /// The recipient, or `broadcast`; null for a message to a group.
    #[schema(required)]
    to_peer_id: Option<String>,
    /// The group; null for a message to a peer.
    #[schema(required)]
    group_id: Option<String>,
    /// The text as it was sent; content that was sent as bytes is in lower-case hex.
    content: String,
    /// What the sender says the content is encrypted with; nothing here depends on it.
    encryption_algorithm: String,
    /// What the sender says of its nonce.
    #[schema(required)]
    nonce: Option<String>,
    /// `sent`, `delivered`, `read` or `failed`.
    #[schema(pattern = "^(?:sent|delivered|read|failed)$")]
    status: &'static str,
    /// When it was accepted.
    #[schema(format = DateTime)]
    sent_at: String,
    /// When the recipient's client confirmed it, or the last of a group's did.
    #[schema(required, format = DateTime)]
    delivered_at: Option<String>,
    /// How many seconds it is worth delivering.
    #[schema(minimum = 1, maximum = 2_592_000)]
    ttl: i64,
    /// Links crossed, as far as is known: 0 within this gateway, 1 from another.
    #[schema(minimum = 0)]
    hop_count: u8,
}

impl BitchatMessage {
    /// The message as clients of this surface know it.
    pub(super) fn new(
        message: Message,
        accepted_at: DateTime<Utc>,
        status: MessageStatus,
        delivered_at: Option<DateTime<Utc>>,
    ) -> Self {
        let Message { id, sender, to, content, expires_at, .. } = message;
        let from_peer_id = sender.to_string();
        let (to_peer_id, group_id) = match to {
            Recipient::Group { id, home: None } => (None, Some(id.to_string())),
            Recipient::Group { id, home: Some(home) } => (None, Some(format!("{id}@{home}"))),
            peer @ (Recipient::Peer(_) | Recipient::Broadcast) => (Some(peer.to_string()), None),
        };
        let Content { bytes, is_text, mut labels, .. } = content;
        let ttl = labels.get(label::TTL).and_then(|ttl| ttl.parse().ok());
        let lifetime = || ((expires_at - accepted_at).num_milliseconds() + 500) / 1000;
        Self {
            id: row_id(id.0, &from_peer_id),
            message_id: id.0,
            from_peer_id,
            to_peer_id,
            group_id,
            content: text(bytes, is_text),
            encryption_algorithm: labels
                .remove(label::ALGORITHM)
                .unwrap_or_else(|| "none".to_owned()),
            nonce: labels.remove(label::NONCE),
            status: status_word(status),
            sent_at: mirrored_time(accepted_at),
            delivered_at: delivered_at.map(mirrored_time),
            ttl: ttl.unwrap_or_else(lifetime).clamp(1, 2_592_000),
            hop_count: u8::from(sender.gateway.is_some()),
        }
    }
}

/// The same id for a message wherever it is shown; no row of ours has one.
fn row_id(message_id: Uuid, sender: &str) -> Uuid {
    Uuid::new_v5(&message_id, sender.as_bytes())
}

fn text(bytes: Vec<u8>, is_text: bool) -> String {
    if !is_text {
        return data_encoding::HEXLOWER.encode(&bytes);
    }
    String::from_utf8(bytes)
        .unwrap_or_else(|error| data_encoding::HEXLOWER.encode(error.as_bytes()))
}

/// The word of this surface for a state (design, section 5).
fn status_word(status: MessageStatus) -> &'static str {
    match status {
        MessageStatus::Pending | MessageStatus::Sent => "sent",
        MessageStatus::Delivered => "delivered",
        MessageStatus::Read => "read",
        MessageStatus::Expired | MessageStatus::Failed | MessageStatus::Cancelled => "failed",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::TimeDelta;
    use fieldpost_delivery::Wishes;
    use fieldpost_envelope::{AnonymityLevel, MessageId, PeerAddress, Priority};

    use super::*;

    #[test]
    fn text_is_verbatim_and_bytes_are_lower_case_hex() {
        let shown = |bytes: &[u8], is_text| {
            let content = Content { bytes: bytes.to_vec(), is_text, ..Content::default() };
            show(message("bob", content)).content
        };
        assert_eq!(shown("Grüße\0".as_bytes(), true), "Grüße\0");
        assert_eq!(shown(b"", true), "");
        assert_eq!(shown(&[0x00, 0xAB, 0xFF], false), "00abff");
        assert_eq!(shown(b"", false), "");
    }

    #[test]
    fn what_the_client_said_comes_back_and_what_it_did_not_say_is_not_invented() {
        let labels = [(label::ALGORITHM, "rot13"), (label::NONCE, "n1"), (label::TTL, "77")];
        let labels: BTreeMap<_, _> =
            labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let told = show(message("bob", Content { labels, ..Content::default() }));
        assert_eq!(
            (told.encryption_algorithm.as_str(), told.nonce.as_deref()),
            ("rot13", Some("n1"))
        );
        assert_eq!(told.ttl, 77);
        let untold = show(message("bob", Content::default()));
        assert_eq!((untold.encryption_algorithm.as_str(), untold.nonce), ("none", None));
        assert_eq!(untold.ttl, 3600);
    }

    #[test]
    fn a_message_has_a_peer_or_a_group_as_its_target() {
        let target = |to| {
            let shown = show(message(to, Content::default()));
            (shown.to_peer_id, shown.group_id)
        };
        assert_eq!(target("bob"), (Some("bob".to_owned()), None));
        assert_eq!(target("broadcast"), (Some("broadcast".to_owned()), None));
        assert_eq!(target("group:hikers"), (None, Some("hikers".to_owned())));
    }

    #[test]
    fn the_row_is_the_same_each_time_and_another_for_another_sender() {
        let id = Uuid::from_u128(7);
        assert_eq!(row_id(id, "alice"), row_id(id, "alice"));
        assert_ne!(row_id(id, "alice"), row_id(id, "bob"));
        assert_ne!(row_id(id, "alice"), row_id(Uuid::from_u128(8), "alice"));
    }

    fn show(message: Message) -> BitchatMessage {
        let accepted_at = message.expires_at - TimeDelta::seconds(3600);
        BitchatMessage::new(message, accepted_at, MessageStatus::Pending, None)
    }

    fn message(to: &str, content: Content) -> Message {
        Message {
            id: MessageId(Uuid::from_u128(7)),
            sender: PeerAddress::local("alice".parse().unwrap()),
            to: to.parse().unwrap(),
            content,
            expires_at: DateTime::UNIX_EPOCH + TimeDelta::days(1),
            priority: Priority::Normal,
            min_anonymity: AnonymityLevel::NONE,
            wishes: Wishes::default(),
        }
    }
}
