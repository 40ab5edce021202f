//! The frames of `/api/bitchat/ws/{peer_id}`, as the original system's clients speak them.

use fieldpost_delivery::{Confirm, InboxEntry};
use fieldpost_envelope::{MessageId, MessageStatus, Recipient};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Asked, Malformed};
use crate::http::{bitchat::BitchatMessage, error::ApiError};

/// Reads a client's frame; types that nobody knows are ignored, as the original did.
pub(super) fn parse(text: &str) -> Result<Asked, Malformed> {
    let malformed = |detail: String| Malformed {
        reference: None,
        error: Box::new(ApiError::bad_request(detail)),
    };
    let frame: Value = serde_json::from_str(text)
        .map_err(|error| malformed(format!("the frame is no JSON: {error}")))?;
    let Value::Object(frame) = frame else {
        return Err(malformed("the frame is no JSON object".to_owned()));
    };
    match frame.get("type").and_then(Value::as_str) {
        Some("ping") => Ok(Asked::Ping { reference: None }),
        Some("ack") => {
            let id = frame.get("message_id").and_then(Value::as_str);
            let id = id.and_then(|id| Uuid::try_parse(id).ok()).ok_or_else(|| {
                malformed("ack needs message_id, the UUID of the message".to_owned())
            })?;
            let what = Confirm::Messages(vec![(MessageId(id), None)]);
            Ok(Asked::Confirm { what, read: false })
        }
        Some(_) => Ok(Asked::Nothing),
        None => Err(malformed("the frame has no type: expected ping or ack".to_owned())),
    }
}

pub(super) fn message(entry: InboxEntry) -> String {
    let group = match &entry.message.to {
        Recipient::Group { id, .. } => Some(id.clone()),
        Recipient::Peer(_) | Recipient::Broadcast => None,
    };
    let data = BitchatMessage::new(entry.message, entry.sent_at, MessageStatus::Sent, None);
    match group {
        Some(group) => {
            json!({"type": "group_message", "group_id": group.as_str(), "data": data}).to_string()
        }
        None => json!({"type": "message", "data": data}).to_string(),
    }
}

pub(super) fn pong() -> String {
    json!({"type": "pong"}).to_string()
}
