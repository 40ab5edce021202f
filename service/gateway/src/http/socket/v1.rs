//! The frames of `/v1/ws`.

use fieldpost_delivery::{InboxEntry, Settled};
use fieldpost_envelope::PeerId;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{Asked, Malformed};
use crate::{
    http::{
        error::ApiError,
        extract,
        given::Given,
        inbox::{Confirmation, InboxMessage},
        messages::{DeliveryState, MessageAccepted, SendMessage},
        submit::Submitted,
    },
    subscribers::Event,
};

/// Reads a client's frame.
pub(super) fn parse(text: &str, peer: &PeerId, given: Given) -> Result<Asked, Malformed> {
    let mut frame: Value = serde_json::from_str(text).map_err(|error| Malformed {
        reference: None,
        error: Box::new(ApiError::bad_request(format!("the frame is no JSON: {error}"))),
    })?;
    let reference =
        frame.get("ref").cloned().filter(|reference| reference.to_string().len() <= 256);
    let malformed = |error| Malformed { reference: reference.clone(), error: Box::new(error) };
    let kind = frame.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    // The rest is as in a request.
    if let Some(fields) = frame.as_object_mut() {
        fields.retain(|name, _| !matches!(name.as_str(), "type" | "ref"));
    }
    match kind.as_str() {
        "send" => {
            let request: SendMessage = read(frame).map_err(malformed)?;
            let draft = request.sender().and_then(|sender| match sender {
                Some(sender) if sender != *peer => Err(ApiError::forbidden(format!(
                    "from: this socket is {peer}'s, not {sender}'s"
                ))),
                _ => request.into_draft().map(Box::new),
            });
            Ok(Asked::Send { reference, draft })
        }
        "ack" | "read" => {
            let request: Confirmation = read(frame).map_err(malformed)?;
            let (what, read) = request.parse(given).map_err(malformed)?;
            Ok(Asked::Confirm { what, read: read || kind == "read" })
        }
        "ping" => Ok(Asked::Ping { reference }),
        _ => Err(malformed(ApiError::invalid("type", "type: expected send, ack, read or ping"))),
    }
}

fn read<T: DeserializeOwned>(frame: Value) -> Result<T, ApiError> {
    extract::typed(frame).map_err(|text| ApiError::invalid("frame", text))
}

#[derive(Serialize)]
struct Tagged<T> {
    r#type: &'static str,
    #[serde(flatten)]
    body: T,
}

pub(super) fn message(entry: InboxEntry) -> String {
    text(&Tagged { r#type: "message", body: InboxMessage::from(entry) })
}

pub(super) fn accepted(reference: Option<&Value>, submitted: Submitted) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        r#ref: Option<&'a Value>,
        #[serde(flatten)]
        accepted: MessageAccepted,
    }
    let body = Answer { r#ref: reference, accepted: submitted.into() };
    text(&Tagged { r#type: "accepted", body })
}

pub(super) fn error(reference: Option<&Value>, error: &ApiError) -> String {
    let mut frame = json!({
        "type": "error", "status": error.status().as_u16(), "detail": error.detail(),
    });
    if let Some(reference) = reference {
        frame["ref"] = reference.clone();
    }
    if let Some(seconds) = error.retry_after_seconds() {
        frame["retry_after"] = seconds.into();
    }
    frame.to_string()
}

pub(super) fn pong(reference: Option<&Value>) -> String {
    match reference {
        Some(reference) => json!({"type": "pong", "ref": reference}).to_string(),
        None => json!({"type": "pong"}).to_string(),
    }
}

/// The frame for an event.
pub(super) fn event(event: &Event) -> String {
    match event {
        Event::Receipt(Settled { id, recipient, status, at, reason, .. }) => {
            let mut frame = json!({
                "type": "receipt", "message_id": id.0, "recipient": recipient,
                "status": DeliveryState::from(*status), "at": at,
            });
            if let Some(reason) = reason {
                frame["reason"] = reason.as_str().into();
            }
            frame.to_string()
        }
        Event::Presence { peer, online } => {
            json!({"type": "presence", "peer": peer.as_str(), "online": online}).to_string()
        }
        Event::Missed { receipts, presence } => {
            json!({"type": "missed", "receipts": receipts, "presence": presence}).to_string()
        }
    }
}

fn text(frame: &impl Serialize) -> String {
    serde_json::to_string(frame).unwrap_or_else(|error| {
        // Frames are made of strings, numbers and times, which all have a form in JSON.
        tracing::error!(%error, "a frame has no JSON form");
        json!({"type": "error", "status": 500, "detail": "the gateway failed"}).to_string()
    })
}
