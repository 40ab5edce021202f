//! A message and its deliveries as its sender or a recipient sees them.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, Utc};
use fieldpost_delivery::{Attempt, AttemptResult, Content, Message, Record};
use fieldpost_envelope::{MessageStatus, PeerId};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{is_sender, wanted::Urgency};
use crate::store::status_of;

/// A message as its sender or a recipient sees it.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "message_id": "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12", "from": "alice", "to": "bob",
    "sent_at": "2026-11-23T09:00:00Z", "expires_at": "2026-11-30T09:00:00Z",
    "content": "The bridge is open.", "priority": "normal", "min_anonymity": 0,
    "status": "delivered", "counts": {"delivered": 1},
    "recipients": [{
        "recipient": "bob", "status": "delivered", "at": "2026-11-23T09:00:01Z",
        "attempts": [{"transport": "local", "started_at": "2026-11-23T09:00:00Z", "result": "stored"}]
    }]
}))]
pub(in crate::http) struct MessageInfo {
    #[serde(flatten)]
    body: MessageBody,
    /// Where it stands; for a recipient, its own delivery.
    status: DeliveryState,
    /// How many deliveries stand where.
    counts: BTreeMap<DeliveryState, u32>,
    /// For the sender all deliveries, for a recipient its own.
    recipients: Vec<DeliveryInfo>,
}

/// What a message is, apart from where it stands.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct MessageBody {
    message_id: Uuid,
    /// The sender; `peer@gateway` when it came from elsewhere.
    from: String,
    /// The recipient as it was written.
    to: String,
    /// When the sender's gateway accepted it. From another gateway it is that one's word, but never
    /// later than its arrival.
    sent_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    /// The content, if it was sent as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    /// The content, if it was sent as bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<serde_json::value::RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    file_ids: Vec<String>,
    priority: Urgency,
    #[schema(minimum = 0, maximum = 3)]
    min_anonymity: u8,
}

/// The state of one delivery.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct DeliveryInfo {
    /// Whom it goes to, or `transport:<name>` for a broadcast over one.
    recipient: String,
    status: DeliveryState,
    /// Since when, once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<DateTime<Utc>>,
    /// What it waits for, or why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What was tried, oldest first; for the sender alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<AttemptInfo>,
}

/// One attempt to deliver.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct AttemptInfo {
    /// The transport's name; `local` when no link was used.
    transport: String,
    started_at: DateTime<Utc>,
    /// `sent`, `failed`, `silent`, `stored` or `refused`.
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Over how many links the recipient was, or its gateway, where the transport knew.
    #[serde(skip_serializing_if = "Option::is_none")]
    hops: Option<u8>,
}

/// Where a message or a delivery stands; of a message, the least advanced of its deliveries.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(example = "delivered")]
pub(in crate::http) enum DeliveryState {
    /// Accepted, and waiting: nothing has left, or what left was not answered and is tried again.
    Pending,
    /// A transport, or the recipient's client, has been given it.
    Sent,
    /// The recipient's client confirmed it.
    Delivered,
    /// The recipient has read it.
    Read,
    /// Its time was over.
    Expired,
    /// Nothing can carry it, the recipient's gateway refused it, or the recipient's storage was
    /// full; `reason` says which.
    Failed,
    /// Its sender took it back.
    Cancelled,
}

impl MessageInfo {
    pub(super) fn seen_by(peer: &PeerId, mut record: Record) -> Self {
        let sender = is_sender(peer, &record);
        if !sender {
            record.deliveries.retain(|delivery| delivery.recipient == peer.as_str());
            record.deliveries.iter_mut().for_each(|delivery| delivery.attempts.clear());
        }
        let status = status_of(&record).into();
        let mut counts = BTreeMap::new();
        for delivery in &record.deliveries {
            *counts.entry(DeliveryState::from(delivery.status)).or_default() += 1;
        }
        let recipients = record
            .deliveries
            .into_iter()
            .map(|delivery| DeliveryInfo {
                recipient: delivery.recipient,
                status: delivery.status.into(),
                at: delivery.at,
                reason: delivery.reason,
                attempts: delivery.attempts.into_iter().map(Into::into).collect(),
            })
            .collect();
        let body = MessageBody::new(record.message, record.sent_at);
        Self { body, status, counts, recipients }
    }
}

impl MessageBody {
    /// The message as clients see it.
    pub(in crate::http) fn new(message: Message, sent_at: DateTime<Utc>) -> Self {
        let Content { bytes, is_text, content_type, message_type, metadata, file_ids, .. } =
            message.content;
        let (content, content_base64) = match String::from_utf8(bytes) {
            Ok(text) if is_text => (Some(text), None),
            Ok(text) => (None, Some(STANDARD.encode(text))),
            Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
        };
        Self {
            message_id: message.id.0,
            from: message.sender.to_string(),
            to: message.to.to_string(),
            sent_at,
            expires_at: message.expires_at,
            content,
            content_base64,
            content_type,
            message_type,
            metadata: metadata.and_then(|text| serde_json::value::RawValue::from_string(text).ok()),
            file_ids,
            priority: message.priority.into(),
            min_anonymity: message.min_anonymity.get(),
        }
    }
}

impl From<Attempt> for AttemptInfo {
    fn from(attempt: Attempt) -> Self {
        Self {
            transport: attempt.transport,
            started_at: attempt.started_at,
            result: match attempt.result {
                AttemptResult::Sent => "sent",
                AttemptResult::Failed => "failed",
                AttemptResult::Silent => "silent",
                AttemptResult::Stored => "stored",
                AttemptResult::Refused => "refused",
            },
            reason: attempt.reason,
            hops: attempt.hops,
        }
    }
}

impl From<MessageStatus> for DeliveryState {
    fn from(status: MessageStatus) -> Self {
        match status {
            MessageStatus::Pending => Self::Pending,
            MessageStatus::Sent => Self::Sent,
            MessageStatus::Delivered => Self::Delivered,
            MessageStatus::Read => Self::Read,
            MessageStatus::Expired => Self::Expired,
            MessageStatus::Failed => Self::Failed,
            MessageStatus::Cancelled => Self::Cancelled,
        }
    }
}
