//! What is sent to `POST /v1/messages`, checked field by field, and what is answered.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use fieldpost_delivery::{Content, Wishes};
use fieldpost_envelope::{AnonymityLevel, MessageId, PeerId, Priority, Recipient};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{DeliveryState, MAX_CONTENT};
use crate::{
    http::{
        error::ApiError,
        fields,
        submit::{Draft, LONGEST_BROADCAST_TTL, MAX_FILES, Submitted, check_ttl},
    },
    inbox::groups::RESERVED,
};

/// What a message lives when its sender does not say: 7 days.
const DEFAULT_TTL: i64 = 7 * 86_400;
/// The most metadata of one message, in bytes of JSON.
const MAX_METADATA: usize = 16 << 10;

/// A message to be sent. Other fields are refused: a misspelt `min_anonymity` must not send it openly.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"to": "bob", "content": "The bridge is open.", "ttl": 3600}))]
pub(in crate::http) struct SendMessage {
    /// A peer, `peer@gateway`, `group:<id>`, `group:<id>@<gateway>` or `broadcast`.
    #[schema(max_length = 240)]
    to: String,
    /// The content as text. Either this or `content_base64`.
    #[serde(default)]
    #[schema(max_length = 1_048_576)]
    content: Option<String>,
    /// The content as bytes, in base64 with padding: 1 MiB decoded at most.
    #[serde(default)]
    #[schema(max_length = 1_398_104, content_encoding = "base64")]
    content_base64: Option<String>,
    /// The client's name for the message: the same again is harmless.
    #[serde(default)]
    message_id: Option<Uuid>,
    /// The sender; must be the caller.
    #[serde(default)]
    #[schema(max_length = 128)]
    from: Option<String>,
    /// The content's media type.
    #[serde(default)]
    #[schema(max_length = 255, example = "text/plain")]
    content_type: Option<String>,
    /// What the application calls this kind of message. `group_invite`, `group_removed`,
    /// `group_closed`, `group_accept`, `group_decline` and `group_leave` are for gateways alone.
    #[serde(default)]
    #[schema(max_length = 64)]
    message_type: Option<String>,
    /// Anything the application wants to add: 16 KiB of JSON at most.
    #[serde(default)]
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// Finished files that go with it.
    #[serde(default)]
    #[schema(max_items = 16)]
    file_ids: Vec<String>,
    /// Seconds until it is no longer worth delivering: 1 to 2592000, by default 604800; for a
    /// broadcast 3600 at most and by default.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 2_592_000)]
    ttl: Option<i64>,
    /// How urgent it is. `critical` goes over all suitable transports at once and has no order.
    #[serde(default)]
    priority: Option<Urgency>,
    /// The same as `min_anonymity` 3.
    #[serde(default)]
    requires_privacy: bool,
    /// The lowest anonymity level of a transport that may carry it.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 3)]
    min_anonymity: Option<i64>,
    /// The transport to try first.
    #[serde(default)]
    #[schema(max_length = 32)]
    transport_preference: Option<String>,
    /// The only transport allowed; `local` for a peer of this gateway.
    #[serde(default)]
    #[schema(max_length = 32)]
    transport_required: Option<String>,
    /// All suitable transports at once.
    #[serde(default)]
    parallel: bool,
    /// Accept it for a recipient that nobody knows yet.
    #[serde(default)]
    allow_unknown: bool,
}

/// How urgent a message is.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(example = "normal")]
pub(in crate::http) enum Urgency {
    /// When nothing else waits.
    Low,
    /// The default.
    Normal,
    /// Before others.
    High,
    /// At once, over everything, out of order.
    Critical,
}

/// A message that was accepted.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "message_id": "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12", "status": "pending",
    "expires_at": "2026-11-30T09:00:00Z"
}))]
pub(in crate::http) struct MessageAccepted {
    message_id: Uuid,
    status: DeliveryState,
    expires_at: DateTime<Utc>,
}

impl SendMessage {
    /// Whom the body names as sender.
    pub(in crate::http) fn sender(&self) -> Result<Option<PeerId>, ApiError> {
        self.from.as_deref().map(|from| fields::peer("from", from)).transpose()
    }

    /// Checks every field.
    pub(in crate::http) fn into_draft(self) -> Result<Draft, ApiError> {
        let to: Recipient = self
            .to
            .parse()
            .map_err(|error| ApiError::invalid("body.to", format!("to: {error}")))?;
        let default_ttl = match to {
            Recipient::Broadcast => LONGEST_BROADCAST_TTL,
            Recipient::Peer(_) | Recipient::Group { .. } => DEFAULT_TTL,
        };
        let ttl = check_ttl(self.ttl.unwrap_or(default_ttl), &to)?;
        let (bytes, is_text) = content(self.content, self.content_base64)?;
        if self.file_ids.len() > MAX_FILES {
            return Err(ApiError::invalid(
                "body.file_ids",
                format!("file_ids: {} files: at most {MAX_FILES}", self.file_ids.len()),
            ));
        }
        let file_ids = self
            .file_ids
            .into_iter()
            .map(|id| fields::text("file_ids", id, 1, 64))
            .collect::<Result<_, _>>()?;
        if self.message_type.as_deref().is_some_and(|name| RESERVED.contains(&name)) {
            return Err(ApiError::invalid(
                "body.message_type",
                format!("message_type: gateways alone use {}", RESERVED.join(", ")),
            ));
        }
        Ok(Draft {
            id: self.message_id.map(MessageId),
            ttl,
            content: Content {
                bytes,
                is_text,
                content_type: short("content_type", self.content_type, 255)?,
                message_type: short("message_type", self.message_type, 64)?,
                metadata: metadata(self.metadata)?,
                file_ids,
                labels: BTreeMap::new(),
            },
            to,
            priority: self.priority.unwrap_or(Urgency::Normal).into(),
            min_anonymity: level(self.min_anonymity, self.requires_privacy)?,
            wishes: Wishes {
                preference: transport("transport_preference", self.transport_preference)?,
                required: transport("transport_required", self.transport_required)?,
                parallel: self.parallel,
            },
            allow_unknown: self.allow_unknown,
            make_group: false,
        })
    }
}

fn content(text: Option<String>, base64: Option<String>) -> Result<(Vec<u8>, bool), ApiError> {
    let (bytes, is_text) = match (text, base64) {
        (Some(text), None) => (text.into_bytes(), true),
        (None, Some(base64)) => {
            let bytes = STANDARD.decode(&base64).map_err(|error| {
                ApiError::invalid(
                    "body.content_base64",
                    format!("content_base64: no base64 with padding: {error}"),
                )
            })?;
            (bytes, false)
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                "body.content",
                "content and content_base64 are both given: give one",
            ));
        }
        (None, None) => {
            return Err(ApiError::invalid("body.content", "content or content_base64 is needed"));
        }
    };
    if bytes.len() > MAX_CONTENT {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "content has {} bytes: at most {MAX_CONTENT}; send more as a file",
                bytes.len()
            ),
        ));
    }
    Ok((bytes, is_text))
}

fn short(field: &str, text: Option<String>, most: usize) -> Result<Option<String>, ApiError> {
    text.map(|text| fields::text(field, text, 1, most)).transpose()
}

fn metadata(
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
) -> Result<Option<String>, ApiError> {
    let Some(metadata) = metadata else { return Ok(None) };
    let text = serde_json::Value::Object(metadata).to_string();
    if text.len() > MAX_METADATA {
        return Err(ApiError::invalid(
            "body.metadata",
            format!("metadata: {} bytes of JSON: at most {MAX_METADATA}", text.len()),
        ));
    }
    Ok(Some(text))
}

fn level(given: Option<i64>, requires_privacy: bool) -> Result<AnonymityLevel, ApiError> {
    let level = match given {
        None => AnonymityLevel::NONE,
        Some(level) => u8::try_from(level)
            .ok()
            .and_then(|level| AnonymityLevel::try_from(level).ok())
            .ok_or_else(|| {
                ApiError::invalid(
                    "body.min_anonymity",
                    format!("min_anonymity: {level} is not in 0 to 3"),
                )
            })?,
    };
    Ok(if requires_privacy { AnonymityLevel::HIGHEST } else { level })
}

fn transport(field: &str, name: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(name) = name else { return Ok(None) };
    match name.as_str() {
        "local" | "ble" | "htx" | "mesh" | "memory" => Ok(Some(name)),
        _ => Err(ApiError::invalid(
            &format!("body.{field}"),
            format!("{field}: the transports are local, ble, htx and mesh"),
        )),
    }
}

impl From<Urgency> for Priority {
    fn from(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Low => Self::Low,
            Urgency::Normal => Self::Normal,
            Urgency::High => Self::High,
            Urgency::Critical => Self::Critical,
        }
    }
}

impl From<Priority> for Urgency {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Low => Self::Low,
            Priority::Normal => Self::Normal,
            Priority::High => Self::High,
            Priority::Critical => Self::Critical,
        }
    }
}

impl From<Submitted> for MessageAccepted {
    fn from(submitted: Submitted) -> Self {
        Self {
            message_id: submitted.id.0,
            status: submitted.status.into(),
            expires_at: submitted.expires_at,
        }
    }
}
