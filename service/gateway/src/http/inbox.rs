//! `/v1/inbox`: taking what waits, by poll, long poll or server-sent events, and confirming it.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use fieldpost_delivery::{Confirm, InboxEntry, Seq, Settled, Store as _};
use fieldpost_envelope::{MessageId, PeerId};
use futures_util::{Stream, StreamExt, future::try_join_all, stream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Problem},
        extract::{Json, Query},
        fields,
        given::Given,
        messages::MessageBody,
    },
    subscribers::{self, Subscription},
};

/// The longest that a poll waits, in seconds.
const LONGEST_WAIT: i64 = 60;
/// How many messages an event stream reads at a time.
const STREAM_PAGE: usize = 100;
/// As many digits as a position can have.
const MOST_DIGITS: usize = 18;
/// The most messages that one confirmation names.
const MAX_CONFIRMED: usize = 1000;

/// The routes of this resource.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(take)).routes(routes!(confirm))
}

/// Take messages that wait.
///
/// Unconfirmed messages after a position, in order. With `wait`, an empty inbox is answered when
/// something arrives or the time is over. With `Accept: text/event-stream` the answer is a stream
/// of `message` events that goes on until the client leaves; the id of each is the position to
/// resume from.
#[utoipa::path(
    get,
    path = "/v1/inbox",
    operation_id = "getInbox",
    tag = "inbox",
    params(InboxQuery),
    responses(
        (status = 200, description = "What waits", content(
            (InboxPage = "application/json"),
            (String = "text/event-stream"),
        )),
        (status = "4XX", description = "The inbox cannot be shown", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn take(
    State(gateway): State<Gateway>,
    caller: Caller,
    headers: HeaderMap,
    Query(query): Query<InboxQuery>,
) -> Result<Response, ApiError> {
    let peer = caller.require()?;
    let wait = query.wait()?;
    let limit = usize::try_from(fields::limit(query.limit.unwrap_or(100))?).unwrap_or(1);
    let streams = accepts_events(&headers);
    let last_event = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let after = match query.after.as_deref().or(last_event.filter(|_| streams)) {
        Some(cursor) => Cursor::parse(&gateway, cursor)?,
        None => 0,
    };
    if streams {
        let events = events(gateway, peer, after);
        return Ok(Sse::new(events)
            .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
            .into_response());
    }
    let entries = wait_for_entries(&gateway, &peer, after, limit, wait).await?;
    gateway.pages.add(&peer, after, entries.iter().map(|entry| entry.seq));
    let last = entries.last().map_or(after, |entry| entry.seq);
    let next = Cursor::text(&gateway, last)?;
    let messages = entries.into_iter().map(InboxMessage::from).collect();
    Ok(axum::Json(InboxPage { messages, next }).into_response())
}

/// Comments that keep proxies from taking a quiet stream for a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Confirm messages.
///
/// Confirmed messages are delivered and never shown again. Confirming twice is harmless; `read`
/// can come later for what was confirmed before.
#[utoipa::path(
    post,
    path = "/v1/inbox/ack",
    operation_id = "confirmMessages",
    tag = "inbox",
    request_body = Confirmation,
    responses(
        (status = 204, description = "Confirmed, durably"),
        (status = "4XX", description = "The confirmation cannot be taken", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn confirm(
    State(gateway): State<Gateway>,
    caller: Caller,
    Json(request): Json<Confirmation>,
) -> Result<StatusCode, ApiError> {
    let peer = caller.require()?;
    let (what, read) = request.parse(gateway.pages.of(&peer))?;
    take_confirmation(&gateway, &peer, &what, read).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Confirms for a peer, and tells the senders that are connected.
pub(super) async fn take_confirmation(
    gateway: &Gateway,
    peer: &PeerId,
    what: &Confirm,
    read: bool,
) -> sqlx::Result<Vec<Settled>> {
    if matches!(what, Confirm::Messages(messages) if messages.is_empty()) {
        return Ok(Vec::new());
    }
    let now = gateway.clock.now();
    let claimed_until = gateway.errands.claim(now);
    let (settled, receipts) =
        gateway.store.take_confirmation(now, peer, what, read, claimed_until).await?;
    let are_owed = settled.iter().any(|settled| settled.sender.gateway.is_some());
    if are_owed && receipts.is_empty() {
        gateway.wake_outbox.notify_one();
    }
    let left = gateway.errands.run(receipts);
    if !left.is_empty() {
        let put_off = left.iter().map(|receipt| gateway.store.receipt_done(receipt, Some(now)));
        // Without this they are due when their claims end.
        let _ = try_join_all(put_off).await;
        gateway.wake_outbox.notify_one();
    }
    subscribers::tell_senders(gateway, &settled);
    Ok(settled)
}

async fn wait_for_entries(
    gateway: &Gateway,
    peer: &PeerId,
    after: Seq,
    limit: usize,
    wait: Duration,
) -> Result<Vec<InboxEntry>, ApiError> {
    let deadline = Instant::now() + wait;
    // Subscribed before the first look, so that nothing can arrive unnoticed in between.
    let subscription = gateway.subscribers.poll(peer.clone());
    loop {
        let entries = gateway.store.show(gateway.clock.now(), peer, after, limit).await?;
        if !entries.is_empty() || wait.is_zero() {
            return Ok(entries);
        }
        tokio::select! {
            waited = timeout_at(deadline, subscription.inbox_grew()) => {
                if waited.is_err() {
                    return Ok(entries);
                }
            }
            () = gateway.draining.cancelled() => return Ok(entries),
        }
        if subscription.is_revoked() {
            return Err(ApiError::unauthorized("the token was renewed"));
        }
    }
}

/// Messages as server-sent events, page by page as the client takes them, until the gateway drains.
fn events(
    gateway: Gateway,
    peer: PeerId,
    after: Seq,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let subscription = gateway.subscribers.poll(peer.clone());
    let state = (gateway, peer, after, subscription);
    stream::unfold(state, |(gateway, peer, after, subscription)| async move {
        let entries = next_page(&gateway, &peer, after, &subscription).await?;
        gateway.pages.add(&peer, after, entries.iter().map(|entry| entry.seq));
        let last = entries.last().map_or(after, |entry| entry.seq);
        let page: Vec<_> = entries
            .into_iter()
            .filter_map(|entry| {
                let id = Cursor::text(&gateway, entry.seq).ok()?;
                let data = serde_json::to_string(&InboxMessage::from(entry)).ok()?;
                Some(Ok(Event::default().event("message").id(id).data(data)))
            })
            .collect();
        Some((stream::iter(page), (gateway, peer, last, subscription)))
    })
    .flatten()
}

/// Waits for the next messages; `None` when the stream is to end.
async fn next_page(
    gateway: &Gateway,
    peer: &PeerId,
    after: Seq,
    subscription: &Subscription,
) -> Option<Vec<InboxEntry>> {
    loop {
        if subscription.is_revoked() {
            return None;
        }
        match gateway.store.show(gateway.clock.now(), peer, after, STREAM_PAGE).await {
            Ok(entries) if !entries.is_empty() => return Some(entries),
            Ok(_) => {}
            // The client comes back with the last position it saw.
            Err(error) => {
                tracing::warn!(%error, "event stream ended");
                return None;
            }
        }
        tokio::select! {
            () = subscription.inbox_grew() => {}
            () = gateway.draining.cancelled() => return None,
        }
    }
}

fn accepts_events(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"))
}

/// Positions as clients keep them: they carry the epoch, which a restored database renews.
pub(super) struct Cursor;

impl Cursor {
    /// The `next` after `seq`.
    pub(super) fn text(gateway: &Gateway, seq: Seq) -> Result<String, ApiError> {
        Ok(format!("{}.{seq}", gateway.store.identity()?.epoch.simple()))
    }

    /// Reads a bare position, or an earlier `next`; one of another epoch starts again.
    pub(super) fn parse(gateway: &Gateway, text: &str) -> Result<Seq, ApiError> {
        let wrong = || {
            ApiError::invalid(
                "query.after",
                "after: expected a seq or the `next` of an earlier page",
            )
        };
        let (epoch, seq) = match text.split_once('.') {
            Some((epoch, seq)) => (Some(Uuid::try_parse(epoch).map_err(|_| wrong())?), seq),
            None => (None, text),
        };
        let is_number = (1..=MOST_DIGITS).contains(&seq.len())
            && seq.bytes().all(|digit| digit.is_ascii_digit());
        let seq: Seq = seq.parse().ok().filter(|_| is_number).ok_or_else(wrong)?;
        let current = gateway.store.identity()?.epoch;
        Ok(if epoch.is_none_or(|epoch| epoch == current) { seq } else { 0 })
    }
}

/// What is wanted of an inbox.
#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct InboxQuery {
    /// A `seq`, or the last `next`; from the start without.
    #[param(max_length = 64, pattern = r"^([0-9a-f]{32}\.)?[0-9]{1,18}$")]
    after: Option<String>,
    /// How many at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<i64>,
    /// How many seconds to wait for something to arrive.
    #[param(minimum = 0, maximum = 60, default = 0)]
    wait: Option<i64>,
}

impl InboxQuery {
    fn wait(&self) -> Result<Duration, ApiError> {
        let seconds = self.wait.unwrap_or(0);
        if (0..=LONGEST_WAIT).contains(&seconds) {
            Ok(Duration::from_secs(seconds.unsigned_abs()))
        } else {
            Err(ApiError::invalid(
                "query.wait",
                format!("wait: {seconds} is not in 0 to {LONGEST_WAIT} seconds"),
            ))
        }
    }
}

/// Messages that wait.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "messages": [{
        "seq": 1, "message_id": "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12", "from": "alice",
        "to": "bob", "sent_at": "2026-11-23T09:00:00Z", "expires_at": "2026-11-30T09:00:00Z",
        "content": "The bridge is open.", "priority": "normal", "min_anonymity": 0
    }],
    "next": "6f1d2c3b4a5968778695a4b3c2d1e0ff.1"
}))]
pub struct InboxPage {
    messages: Vec<InboxMessage>,
    /// Where to go on.
    next: String,
}

/// A message in its recipient's inbox.
#[derive(Serialize, ToSchema)]
pub struct InboxMessage {
    /// Its position: counted from 1, without gaps.
    #[schema(minimum = 1)]
    seq: Seq,
    #[serde(flatten)]
    body: MessageBody,
    /// Something that should come before it has not come in time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    gap: bool,
    /// It comes after something that should have followed it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    late: bool,
}

impl From<InboxEntry> for InboxMessage {
    fn from(entry: InboxEntry) -> Self {
        Self {
            seq: entry.seq,
            body: MessageBody::new(entry.message, entry.sent_at),
            gap: entry.gap,
            late: entry.late,
        }
    }
}

/// What is confirmed: either all up to a position, or single messages.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"up_to": 12}))]
pub struct Confirmation {
    /// Everything shown up to this position.
    #[serde(default)]
    #[schema(minimum = 0)]
    up_to: Option<i64>,
    /// These messages; 1000 at most.
    #[serde(default)]
    #[schema(max_items = 1000)]
    message_ids: Option<Vec<Uuid>>,
    /// Whether they were read, not only received.
    #[serde(default)]
    read: bool,
}

impl Confirmation {
    /// What it names, and whether it was read.
    ///
    /// `given` is what its client was given.
    pub(super) fn parse(self, given: Given) -> Result<(Confirm, bool), ApiError> {
        let what = match (self.up_to, self.message_ids) {
            (Some(seq), None) if seq >= 0 => given.up_to(seq),
            (Some(seq), None) => {
                return Err(ApiError::invalid("body.up_to", format!("up_to: {seq} is negative")));
            }
            (None, Some(ids)) if ids.len() > MAX_CONFIRMED => {
                return Err(ApiError::invalid(
                    "body.message_ids",
                    format!("message_ids: {} ids: at most {MAX_CONFIRMED}", ids.len()),
                ));
            }
            (None, Some(ids)) => {
                Confirm::Messages(ids.into_iter().map(|id| (MessageId(id), None)).collect())
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(ApiError::invalid("body", "give either up_to or message_ids"));
            }
        };
        Ok((what, self.read))
    }
}
