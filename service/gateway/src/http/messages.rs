//! `/v1/messages`: sending, looking after what was sent, and reading a talk again.

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chrono::{DateTime, Utc};
use fieldpost_delivery::{
    Attempt, AttemptResult, Cancelled, Content, DeliveryRecord, Message, Record, Store as _, Wishes,
};
use fieldpost_envelope::{
    AnonymityLevel, MessageId, MessageStatus, PeerAddress, PeerId, Priority, Recipient,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    Gateway,
    http::{
        addressing,
        caller::Caller,
        error::{ApiError, Problem},
        extract::{Json, Path, Query},
        fields,
        submit::{Draft, LONGEST_BROADCAST_TTL, MAX_FILES, Submitted, check_ttl, submit},
    },
    inbox::groups::RESERVED,
    store::{conversation, group_inbound::GroupWord, may_be_known, status_of},
};

/// The most content of one message, in bytes.
pub const MAX_CONTENT: usize = 1 << 20;
/// What a message lives when its sender does not say: 7 days.
const DEFAULT_TTL: i64 = 7 * 86_400;
/// The most metadata of one message, in bytes of JSON.
const MAX_METADATA: usize = 16 << 10;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(send, list)).routes(routes!(show, cancel))
}

/// Send a message.
///
/// Once this returns, the message survives a crash and is retried until it is delivered or its
/// time is over. Repeating the request under the same `message_id` is harmless. Of several
/// recipients those whose storage is full miss the message: their delivery is `failed`, with the
/// reason. Where all are full, it is refused (507).
#[utoipa::path(
    post,
    path = "/v1/messages",
    operation_id = "sendMessage",
    tag = "messages",
    request_body = SendMessage,
    responses(
        (status = 202, description = "Stored; delivery has begun", body = MessageAccepted),
        (status = 200, description = "The same had been accepted before", body = MessageAccepted),
        (status = "4XX", description = "The message cannot be accepted", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway cannot take it now", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn send(
    State(gateway): State<Gateway>,
    caller: Caller,
    Json(request): Json<SendMessage>,
) -> Result<(StatusCode, axum::Json<MessageAccepted>), ApiError> {
    let sender = caller.acting(request.sender()?.as_ref())?;
    let submitted = submit(&gateway, &sender, request.into_draft()?).await?;
    let status = if submitted.repeated { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, axum::Json(submitted.into())))
}

/// Show a message and how it travelled.
///
/// The sender sees each recipient's state and every attempt; a recipient sees its own state.
/// Everybody else is told that there is no such message.
#[utoipa::path(
    get,
    path = "/v1/messages/{message_id}",
    operation_id = "getMessage",
    tag = "messages",
    params(("message_id" = Uuid, Path, description = "The message"), MessageFrom),
    responses(
        (status = 200, description = "The message", body = MessageInfo),
        (status = "4XX", description = "The message cannot be shown", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(id): Path<Uuid>,
    Query(from): Query<MessageFrom>,
) -> Result<axum::Json<MessageInfo>, ApiError> {
    let peer = caller.require()?;
    let from = from.sender()?;
    let records = gateway.store.records(gateway.clock.now(), &peer, MessageId(id)).await?;
    records
        .into_iter()
        .find(|record| from.as_ref().is_none_or(|from| record.message.sender == *from))
        .map(|record| axum::Json(MessageInfo::seen_by(&peer, record)))
        .ok_or_else(|| ApiError::not_found(format!("{peer} has no message {id}")))
}

/// List messages sent and received, newest first.
///
/// With `with`, those exchanged with one peer or in one group. What has not yet been shown to the
/// caller's own client is left out: it may still be withdrawn.
#[utoipa::path(
    get,
    path = "/v1/messages",
    operation_id = "listMessages",
    tag = "messages",
    params(TalkFilter),
    responses(
        (status = 200, description = "One page", body = MessageList),
        (status = "4XX", description = "The list cannot be given", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: Caller,
    Query(filter): Query<TalkFilter>,
) -> Result<axum::Json<MessageList>, ApiError> {
    let peer = caller.require()?;
    let limit = fields::limit(filter.limit.unwrap_or(100))?;
    let before = filter.before()?;
    let talks = talks(&gateway, &peer, filter.with.as_deref()).await?;
    let now = gateway.clock.now();
    let page = gateway.store.talks(now, &peer, &talks, before, 0, limit).await?;
    let next = page.next.map(|(at, id)| {
        let [micros, id] = [at.timestamp_micros().to_be_bytes().to_vec(), id.0.as_bytes().to_vec()];
        URL_SAFE_NO_PAD.encode([micros, id].concat())
    });
    let messages = page
        .records
        .into_iter()
        .filter(|record| is_shown(&peer, record))
        .map(|record| MessageInfo::seen_by(&peer, record))
        .collect();
    Ok(axum::Json(MessageList { messages, next }))
}

/// Cancel a message.
///
/// Possible while nothing of it has left: no recipient's client was shown it and no transport was
/// given it.
#[utoipa::path(
    delete,
    path = "/v1/messages/{message_id}",
    operation_id = "cancelMessage",
    tag = "messages",
    params(("message_id" = Uuid, Path, description = "The message")),
    responses(
        (status = 204, description = "Cancelled; nobody will see it"),
        (status = "4XX", description = "Too late, or not the caller's", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn cancel(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, ApiError> {
    let peer = caller.require()?;
    match gateway.store.cancel(gateway.clock.now(), &peer, MessageId(id)).await? {
        Cancelled::Done => Ok(StatusCode::NO_CONTENT),
        Cancelled::TooLate => {
            Err(ApiError::conflict("too late to cancel: the message has left or ended"))
        }
        Cancelled::Unknown => Err(ApiError::not_found(format!("{peer} sent no message {id}"))),
    }
}

/// The talks to list: one, or all that the caller takes part in.
async fn talks(gateway: &Gateway, peer: &PeerId, with: Option<&str>) -> Result<Vec<i64>, ApiError> {
    let own = PeerAddress::local(peer.clone());
    if let Some(with) = with {
        let with: Recipient = with
            .parse()
            .map_err(|error| ApiError::invalid("query.with", format!("with: {error}")))?;
        let mut talks = vec![conversation(&own, &with)];
        // What a name led to is filed under where it was found.
        if let Recipient::Peer(other) = &with
            && let Some(pinned) = addressing::pinned(gateway, peer, other).await?
        {
            talks.push(conversation(&own, &Recipient::Peer(pinned)));
        }
        return Ok(talks);
    }
    let mut talks = gateway.store.conversations(peer, MAX_TALKS).await?;
    for id in gateway.store.groups_of(peer).await? {
        talks.push(conversation(&own, &Recipient::Group { id, home: None }));
    }
    talks.push(conversation(&own, &Recipient::Broadcast));
    Ok(talks)
}

/// How many talks a list without `with` looks through.
const MAX_TALKS: i64 = 10_000;

/// A recipient is not shown in a list what it might never be shown in its inbox.
///
/// What a peer has its gateway say to the home of a group is no message to anybody.
pub(super) fn is_shown(peer: &PeerId, record: &Record) -> bool {
    let message_type = record.message.content.message_type.as_deref();
    if GroupWord::of_type(message_type) != GroupWord::Message {
        return false;
    }
    is_sender(peer, record)
        || own_delivery(peer, record).is_some_and(|delivery| may_be_known(delivery.status))
}

pub(super) fn is_sender(peer: &PeerId, record: &Record) -> bool {
    let sender = &record.message.sender;
    sender.gateway.is_none() && sender.peer == *peer
}

pub(super) fn own_delivery<'a>(peer: &PeerId, record: &'a Record) -> Option<&'a DeliveryRecord> {
    record.deliveries.iter().find(|delivery| delivery.recipient == peer.as_str())
}

/// A message to be sent. Other fields are refused: a misspelt `min_anonymity` must not send it openly.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"to": "bob", "content": "The bridge is open.", "ttl": 3600}))]
pub struct SendMessage {
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
pub enum Urgency {
    /// When nothing else waits.
    Low,
    /// The default.
    Normal,
    /// Before others.
    High,
    /// At once, over everything, out of order.
    Critical,
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

impl SendMessage {
    /// Whom the body names as sender.
    pub(super) fn sender(&self) -> Result<Option<PeerId>, ApiError> {
        self.from.as_deref().map(|from| fields::peer("from", from)).transpose()
    }

    /// Checks every field.
    pub(super) fn into_draft(self) -> Result<Draft, ApiError> {
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

/// A message that was accepted.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "message_id": "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12", "status": "pending",
    "expires_at": "2026-11-30T09:00:00Z"
}))]
pub struct MessageAccepted {
    message_id: Uuid,
    status: DeliveryState,
    expires_at: DateTime<Utc>,
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

/// Where a message or a delivery stands; of a message, the least advanced of its deliveries.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(example = "delivered")]
pub enum DeliveryState {
    /// Accepted; nothing has left.
    Pending,
    /// A transport, or the recipient's client, has been given it.
    Sent,
    /// The recipient's client confirmed it.
    Delivered,
    /// The recipient has read it.
    Read,
    /// Its time was over.
    Expired,
    /// Nothing could carry it.
    Failed,
    /// Its sender took it back.
    Cancelled,
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
pub struct MessageInfo {
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
pub struct MessageBody {
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

impl MessageBody {
    /// The message as clients see it.
    pub(super) fn new(message: Message, sent_at: DateTime<Utc>) -> Self {
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

/// The state of one delivery.
#[derive(Serialize, ToSchema)]
pub struct DeliveryInfo {
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
pub struct AttemptInfo {
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

impl MessageInfo {
    fn seen_by(peer: &PeerId, mut record: Record) -> Self {
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

/// One page of messages.
#[derive(Serialize, ToSchema)]
pub struct MessageList {
    messages: Vec<MessageInfo>,
    /// The cursor of the next page; null at the end.
    next: Option<String>,
}

/// Whose message is meant where two senders gave the same id.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MessageFrom {
    /// The sender, where it is not the caller itself.
    #[param(max_length = 181)]
    from: Option<String>,
}

impl MessageFrom {
    fn sender(&self) -> Result<Option<PeerAddress>, ApiError> {
        self.from
            .as_deref()
            .map(|from| {
                from.parse()
                    .map_err(|error| ApiError::invalid("query.from", format!("from: {error}")))
            })
            .transpose()
    }
}

/// Which messages are wanted.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TalkFilter {
    /// A peer, `peer@gateway`, `group:<id>`, `group:<id>@<gateway>` or `broadcast`.
    #[param(max_length = 240)]
    with: Option<String>,
    /// `next` of the page before.
    #[param(min_length = 32, max_length = 32)]
    cursor: Option<String>,
    /// How many at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<i64>,
}

/// The end of the year 9999.
const LAST_MICROS: i64 = 253_402_300_799_999_999;

impl TalkFilter {
    fn before(&self) -> Result<Option<(DateTime<Utc>, MessageId)>, ApiError> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|bytes| {
                let (micros, id) = bytes.split_first_chunk::<8>()?;
                // Anybody can make up a cursor, and Postgres knows fewer years than we do.
                let micros = Some(i64::from_be_bytes(*micros))
                    .filter(|micros| (0..=LAST_MICROS).contains(micros))?;
                let at = DateTime::from_timestamp_micros(micros)?;
                Some((at, MessageId(Uuid::from_slice(id).ok()?)))
            })
            .map(Some)
            .ok_or_else(|| {
                ApiError::invalid("query.cursor", "cursor: expected the `next` of an earlier page")
            })
    }
}
