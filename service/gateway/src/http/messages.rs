//! `/v1/messages`: sending, looking after what was sent, and reading a talk again.

mod shown;
mod wanted;

use axum::{extract::State, http::StatusCode};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use fieldpost_delivery::{Cancelled, DeliveryRecord, Record, Store as _};
use fieldpost_envelope::{MessageId, PeerAddress, PeerId, Recipient};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use self::shown::MessageInfo;
pub(super) use self::{
    shown::{DeliveryState, MessageBody},
    wanted::{MessageAccepted, SendMessage},
};
use crate::{
    Gateway,
    http::{
        addressing,
        caller::Caller,
        error::{ApiError, Problem},
        extract::{Json, Path, Query},
        fields,
        submit::submit,
    },
    store::{conversation, group_inbound::GroupWord, may_be_known},
};

/// The most content of one message, in bytes.
pub const MAX_CONTENT: usize = 1 << 20;

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
/// Possible while nothing of it has left or may be leaving: no recipient's client was shown it, and
/// no transport is being or was given it, but for attempts known to have failed. To a recipient who
/// listens, or at a gateway in reach, the first attempt mostly begins as the message is accepted; it
/// is too late then, although `status` still says `pending`.
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
        Cancelled::TooLate => Err(ApiError::conflict(
            "too late to cancel: the message has left, is leaving or has ended",
        )),
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
