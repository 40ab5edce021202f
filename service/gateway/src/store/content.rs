//! How a message's content lies in its sealed column: a JSON header, then the bytes as they are.

use std::collections::BTreeMap;

use fieldpost_delivery::{Content, Message, Time, Wishes};
use serde::{Deserialize, Serialize};
use sqlx::error::BoxDynError;

/// What belongs to the content but is not it. Empty fields are left out, so that most messages
/// have a header of two bytes.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Header {
    #[serde(rename = "c", skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(rename = "t", skip_serializing_if = "Option::is_none")]
    message_type: Option<String>,
    #[serde(rename = "m", skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
    #[serde(rename = "f", skip_serializing_if = "Vec::is_empty")]
    file_ids: Vec<String>,
    #[serde(rename = "l", skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(rename = "p", skip_serializing_if = "Option::is_none")]
    preference: Option<String>,
    #[serde(rename = "r", skip_serializing_if = "Option::is_none")]
    required: Option<String>,
    #[serde(rename = "a", skip_serializing_if = "std::ops::Not::not")]
    parallel: bool,
    /// In microseconds.
    #[serde(rename = "s", skip_serializing_if = "Option::is_none")]
    sent_at: Option<i64>,
}

/// The plaintext of the sealed column. `sent_at` is when it was sent, for what came from elsewhere.
pub(super) fn encode(message: &Message, sent_at: Option<Time>) -> Result<Vec<u8>, BoxDynError> {
    let Message { content, wishes, .. } = message;
    let header = serde_json::to_vec(&Header {
        content_type: content.content_type.clone(),
        message_type: content.message_type.clone(),
        metadata: content.metadata.clone(),
        file_ids: content.file_ids.clone(),
        labels: content.labels.clone(),
        preference: wishes.preference.clone(),
        required: wishes.required.clone(),
        parallel: wishes.parallel,
        sent_at: sent_at.map(|sent_at| sent_at.timestamp_micros()),
    })?;
    let mut bytes = Vec::with_capacity(4 + header.len() + content.bytes.len());
    bytes.extend_from_slice(&u32::try_from(header.len())?.to_be_bytes());
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(&content.bytes);
    Ok(bytes)
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(
    mut bytes: Vec<u8>,
    is_text: bool,
) -> Result<(Content, Wishes, Option<Time>), BoxDynError> {
    let (length, rest) = bytes.split_first_chunk().ok_or("content has no header")?;
    let length = usize::try_from(u32::from_be_bytes(*length))?;
    let header: Header =
        serde_json::from_slice(rest.get(..length).ok_or("content's header is cut off")?)?;
    bytes.drain(..4 + length);
    let content = Content {
        bytes,
        is_text,
        content_type: header.content_type,
        message_type: header.message_type,
        metadata: header.metadata,
        file_ids: header.file_ids,
        labels: header.labels,
    };
    let wishes = Wishes {
        preference: header.preference,
        required: header.required,
        parallel: header.parallel,
    };
    Ok((content, wishes, header.sent_at.and_then(Time::from_timestamp_micros)))
}
