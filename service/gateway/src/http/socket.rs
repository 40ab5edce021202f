//! WebSockets: `/v1/ws` and `/api/bitchat/ws/{peer_id}` (design, section 6; `openapi/sockets.yaml`).
//!
//! A socket first gets all that is unconfirmed, in order, then what arrives. Messages are read from
//! the store page by page as the client takes them, so a slow reader costs one page of memory and
//! holds nobody up; after a while it is closed and may resume.

use std::{collections::HashSet, sync::Arc, task::Poll, time::Duration};

use axum::{
    extract::{
        FromRequestParts, State,
        ws::{
            CloseFrame, Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection,
        },
    },
    http::{StatusCode, request::Parts},
    response::Response,
    routing::get,
};
use fieldpost_delivery::{Confirm, InboxEntry, Seq, Settled, Store as _};
use fieldpost_envelope::{MessageId, PeerId};
use futures_util::{FutureExt, SinkExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use rand::{
    RngExt, SeedableRng,
    rngs::{StdRng, SysRng},
};
use serde::Deserialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout, timeout_at};
use tracing::{Instrument as _, info_span};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    Gateway,
    http::{
        MAX_BODY_BYTES,
        caller::Caller,
        error::ApiError,
        extract::{Path, Query},
        fields,
        given::Given,
        inbox,
        submit::{Draft, Submitted, submit},
    },
    presence,
    store::{LARGE_PAGE, SMALL_PAGE, SMALL_PAGE_BYTES},
    subscribers::{News, Subscription},
};

mod bitchat;
mod v1;

/// How many messages are read from the store at first; twice as many after each full page, as far
/// as pages go, because a statement costs more than a row.
const FIRST_PAGE: usize = 512;
/// How many sends of one socket are under way at once; more wait unread.
const SENDS_UNDER_WAY: usize = 64;
/// How many confirmations wait for the database; more wait unread.
const CONFIRMATIONS_WAITING: usize = 10_000;
/// How long a write may take before the client counts as a slow reader.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a socket that ends may take to confirm what its client confirmed.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(5);
/// How long a new socket waits for what its client has confirmed over others.
const OTHERS_CONFIRM: Duration = Duration::from_secs(1);
/// For how long confirmations are read after the close frame was sent.
const LAST_CONFIRMATIONS: Duration = Duration::from_millis(1500);
/// How long a close frame is tried to be written to a client that does not read.
const CLOSE_DEADLINE: Duration = Duration::from_secs(30);
/// Between pings.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Without a sign of life for so long, the client is gone: two pings missed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Until the store is asked again after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Malformed frames after which a client is not taken for one.
const MALFORMED_LIMIT: u32 = 100;
/// Small, for thousands of sockets that are idle: a large frame takes more reads, and has room made
/// for it. Frames to write are gathered.
const READ_BUFFER_BYTES: usize = 1024;
const WRITE_BUFFER_BYTES: usize = 16 * 1024;
/// Room for the largest message with all of its characters escaped.
const MAX_WRITE_BUFFER_BYTES: usize = 16 * 1024 * 1024;

/// The routes of both sockets; they are described in the AsyncAPI document.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .route("/v1/ws", get(open_v1))
        .route("/api/bitchat/ws/{peer_id}", get(open_bitchat))
}

async fn open_v1(
    State(gateway): State<Gateway>,
    caller: Caller,
    Query(query): Query<SocketQuery>,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, ApiError> {
    let peer = query.caller(&gateway, &caller).await?.require()?;
    open(gateway, upgrade, peer, Dialect::V1, query.after.as_deref()).await
}

async fn open_bitchat(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(peer): Path<String>,
    Query(query): Query<SocketQuery>,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, ApiError> {
    let named = fields::peer("path.peer_id", &peer)?;
    let peer = query.caller(&gateway, &caller).await?.acting_as(&named)?;
    open(gateway, upgrade, peer, Dialect::Bitchat, None).await
}

async fn open(
    gateway: Gateway,
    upgrade: WebSocketUpgrade,
    peer: PeerId,
    dialect: Dialect,
    after: Option<&str>,
) -> Result<Response, ApiError> {
    if gateway.draining.is_cancelled() {
        return Err(ApiError::unavailable("the gateway is stopping: reconnect in a moment"));
    }
    if !gateway.store.peer_exists(&peer).await? {
        return Err(ApiError::not_found(format!("{peer} is not a peer of this gateway")));
    }
    let after = match after {
        Some(after) => inbox::Cursor::parse(&gateway, after)?,
        None => 0,
    };
    let upgrade = upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(MAX_WRITE_BUFFER_BYTES)
        .max_message_size(MAX_BODY_BYTES)
        .max_frame_size(MAX_BODY_BYTES);
    Ok(upgrade.on_upgrade(move |socket| serve(gateway, Box::new(socket), peer, dialect, after)))
}

/// How a socket may be opened where a browser cannot set headers.
#[derive(Deserialize)]
struct SocketQuery {
    /// From `POST /v1/ws-ticket`.
    ticket: Option<String>,
    /// Where to resume, on `/v1/ws`.
    after: Option<String>,
}

impl SocketQuery {
    async fn caller(&self, gateway: &Gateway, caller: &Caller) -> Result<Caller, ApiError> {
        let Some(ticket) = &self.ticket else { return Ok(caller.clone()) };
        match gateway.store.redeem_ticket(ticket).await? {
            Some(peer) => Ok(Caller::known(peer)),
            None => Err(ApiError::unauthorized(
                "the ticket is unknown, used or older than 30 s: ask for a new one",
            )),
        }
    }
}

/// An upgrade whose refusal says what would be right.
struct Upgrade(WebSocketUpgrade);

impl FromRequestParts<Gateway> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, ApiError> {
        match WebSocketUpgrade::from_request_parts(parts, gateway).await {
            Ok(upgrade) => Ok(Self(upgrade)),
            Err(WebSocketUpgradeRejection::MethodNotGet(error)) => {
                Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, error.body_text()))
            }
            Err(error) => Err(ApiError::new(
                StatusCode::UPGRADE_REQUIRED,
                format!("open this address as a WebSocket: {}", error.body_text()),
            )),
        }
    }
}

/// Which frames a socket speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Dialect {
    V1,
    Bitchat,
}

/// What a client's frame asks for.
enum Asked {
    Send { reference: Option<serde_json::Value>, draft: Result<Box<Draft>, ApiError> },
    Confirm { what: Confirm, read: bool },
    Ping { reference: Option<serde_json::Value> },
    Nothing,
}

/// A frame that cannot be read; `reference` is the client's, if as much could be read.
struct Malformed {
    reference: Option<serde_json::Value>,
    error: Box<ApiError>,
}

/// Why a socket ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// The client closed it, or the connection broke.
    Gone,
    /// No sign of life.
    Idle,
    /// The client does not take what it is sent.
    SlowReader,
    /// The token was renewed.
    Revoked,
    /// The frames are not those of a client.
    NotAClient,
    /// A frame was larger than any may be.
    TooLarge,
    /// The gateway is stopping.
    Draining,
}

impl End {
    fn close(self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            Self::Gone => return None,
            Self::Idle => (1001, "no answer to two pings"),
            Self::SlowReader => (1013, "frames were not read in time; reconnect to resume"),
            Self::Revoked => (1008, "the token was renewed"),
            Self::NotAClient => (1008, "too many malformed frames"),
            Self::TooLarge => (1009, "a frame has at most 2621440 bytes"),
            Self::Draining => (1012, "the gateway restarts; reconnect after a random moment"),
        };
        Some(CloseFrame { code, reason: reason.into() })
    }

    fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Idle => "idle",
            Self::SlowReader => "slow_reader",
            Self::Revoked => "revoked",
            Self::NotAClient => "malformed",
            Self::TooLarge => "too_large",
            Self::Draining => "draining",
        }
    }
}

/// Parts that are over soon, or come late, are boxed: the rest is what an idle socket holds.
#[tracing::instrument(level = "debug", name = "socket", skip_all, fields(peer.id = %peer, socket.dialect = ?dialect))]
async fn serve(
    gateway: Gateway,
    mut socket: Box<WebSocket>,
    peer: PeerId,
    dialect: Dialect,
    after: Seq,
) {
    // Subscribed before anything is read, so that nothing can arrive unnoticed.
    let subscription = gateway.subscribers.socket(peer.clone());
    if let Err(error) = presence::opened(&gateway, &peer).boxed().await {
        tracing::warn!(%error, peer.id = %peer, "presence not noted");
    }
    // The client may have left another socket a moment ago, without waiting for its end.
    let _ = timeout(OTHERS_CONFIRM, gateway.subscribers.have_confirmed(&peer)).boxed().await;
    let mut session = Session::new(&gateway, &peer, dialect, after, subscription);
    let running = session.run(&mut socket).boxed();
    let Some(end) = gateway.cut_off.run_until_cancelled(running).await else {
        return;
    };
    session.close(&mut socket, end).boxed().await;
    drop(session);
    metrics::counter!("fieldpost_sockets_closed_total", "reason" => end.label()).increment(1);
    tracing::debug!(socket.end = end.label(), "socket ends");
    if let Err(error) = presence::closed(&gateway, &peer).boxed().await {
        tracing::warn!(%error, peer.id = %peer, "presence not noted");
    }
    // Nothing is held for the client by now; a close frame that waits for it costs a file handle.
    drop(gateway);
    let _ = timeout(CLOSE_DEADLINE, async {
        match end {
            // The answer to the client's own close frame, if it sent one.
            End::Gone => SinkExt::close(&mut socket).await,
            _ => {
                while let Some(Ok(_)) = socket.recv().await {}
                Ok(())
            }
        }
    })
    .boxed()
    .await;
}

/// One socket from its opening to its end: reads frames, shows messages, confirms and sends, each
/// without waiting for the others.
struct Session<'a> {
    gateway: &'a Gateway,
    peer: &'a PeerId,
    dialect: Dialect,
    /// The last position that was written.
    cursor: Seq,
    given: Given,
    subscription: Subscription,
    /// Whether the inbox may hold more.
    hungry: bool,
    /// How many messages are read next.
    page: usize,
    showing: Option<BoxFuture<'a, sqlx::Result<Vec<InboxEntry>>>>,
    confirming: Option<BoxFuture<'a, (Confirmations, sqlx::Result<Vec<Settled>>)>>,
    waiting: Confirmations,
    sends: FuturesUnordered<BoxFuture<'a, Sent>>,
    paused_until: Option<Instant>,
    last_heard: Instant,
    malformed: u32,
}

impl<'a> Session<'a> {
    fn new(
        gateway: &'a Gateway,
        peer: &'a PeerId,
        dialect: Dialect,
        after: Seq,
        subscription: Subscription,
    ) -> Self {
        Self {
            gateway,
            peer,
            dialect,
            cursor: after,
            given: Given::default(),
            subscription,
            hungry: true,
            page: FIRST_PAGE,
            showing: None,
            confirming: None,
            waiting: Confirmations::default(),
            sends: FuturesUnordered::new(),
            paused_until: None,
            last_heard: Instant::now(),
            malformed: 0,
        }
    }

    async fn run(&mut self, socket: &mut WebSocket) -> End {
        let mut pings = pings();
        let draining = drain_moment(self.gateway);
        tokio::pin!(draining);
        loop {
            self.begin();
            let reads =
                self.sends.len() < SENDS_UNDER_WAY && self.waiting.len() < CONFIRMATIONS_WAITING;
            if !reads {
                // Who is not listened to cannot be heard.
                self.last_heard = Instant::now();
            }
            let outcome = tokio::select! {
                frame = socket.recv(), if reads => self.read(socket, frame).boxed().await,
                shown = wait_for(&mut self.showing) => {
                    self.showing = None;
                    self.write_page(socket, shown).boxed().await
                }
                (taken, settled) = wait_for(&mut self.confirming) => {
                    self.confirming = None;
                    self.confirmed(taken, settled)
                }
                Some((reference, outcome)) = self.sends.next() => {
                    self.answer_send(socket, reference, outcome).boxed().await
                }
                news = self.subscription.next() => self.hear(socket, news).boxed().await,
                () = pause(self.paused_until) => {
                    self.paused_until = None;
                    Ok(())
                }
                _ = pings.tick() => self.ping(socket).boxed().await,
                () = &mut draining => Err(End::Draining),
            };
            if let Err(end) = outcome {
                return end;
            }
        }
    }

    /// Starts what can be started.
    fn begin(&mut self) {
        if self.paused_until.is_some() {
            return;
        }
        let (gateway, peer) = (self.gateway, self.peer);
        if !self.hungry && self.showing.is_none() {
            self.subscription.has_all_up_to(self.cursor);
        }
        if self.hungry && self.showing.is_none() {
            self.hungry = false;
            let (cursor, page) = (self.cursor, self.page);
            self.showing = Some(
                async move { gateway.store.show(gateway.clock.now(), peer, cursor, page).await }
                    .boxed(),
            );
        }
        self.begin_to_confirm();
    }

    fn begin_to_confirm(&mut self) {
        if self.confirming.is_none() && self.waiting.len() > 0 {
            let (gateway, peer) = (self.gateway, self.peer);
            let taken = std::mem::take(&mut self.waiting);
            self.confirming = Some(
                async move {
                    let settled = taken.confirm(gateway, peer).await;
                    (taken, settled)
                }
                .boxed(),
            );
        }
    }

    /// Takes what was confirmed and tells the client why its socket ends.
    async fn close(&mut self, socket: &mut WebSocket, end: End) {
        self.finish().await;
        let Some(close) = end.close() else { return };
        let sent = timeout(CLOSE_DEADLINE, socket.send(Message::Close(Some(close))));
        let is_sent = self.gateway.cut_off.run_until_cancelled(sent).await;
        if end != End::Revoked && matches!(is_sent, Some(Ok(Ok(())))) {
            self.take_last_confirmations(socket).await;
        }
    }

    /// Takes what the client confirmed before it left, before it is told that the socket is closed:
    /// it will not confirm that again, and must not be shown it again.
    async fn finish(&mut self) {
        let confirmed = timeout(CONFIRM_DEADLINE, async {
            self.begin_to_confirm();
            while self.confirming.is_some() {
                let (_, settled) = wait_for(&mut self.confirming).await;
                self.confirming = None;
                settled?;
                self.begin_to_confirm();
            }
            Ok::<_, sqlx::Error>(())
        });
        if let Ok(Err(error)) = confirmed.await {
            tracing::debug!(%error, "the last confirmations were not taken");
        }
    }

    /// What a client that is told to go has confirmed, but had not been read; it goes on reading and
    /// confirming until it comes to the close frame.
    async fn take_last_confirmations(&mut self, socket: &mut WebSocket) {
        let end = Instant::now() + LAST_CONFIRMATIONS;
        while let Ok(Some(Ok(frame))) = timeout_at(end, socket.recv()).await {
            let Message::Text(text) = frame else { continue };
            let asked = match self.dialect {
                Dialect::V1 => v1::parse(&text, self.peer, self.given),
                Dialect::Bitchat => bitchat::parse(&text),
            };
            if let Ok(Asked::Confirm { what, read }) = asked {
                self.waiting.add(what, read);
            }
            if self.waiting.len() >= CONFIRMATIONS_WAITING {
                break;
            }
        }
        self.finish().await;
    }

    async fn write_page(
        &mut self,
        socket: &mut WebSocket,
        shown: sqlx::Result<Vec<InboxEntry>>,
    ) -> Result<(), End> {
        let entries = match shown {
            Ok(entries) => entries,
            Err(error) => {
                self.hungry = true;
                self.pause(&error);
                return Ok(());
            }
        };
        let bytes: usize = entries.iter().map(|entry| entry.message.content.bytes.len()).sum();
        let is_full = entries.len() >= self.page.min(SMALL_PAGE) || bytes >= SMALL_PAGE_BYTES;
        self.page = if is_full { (2 * self.page).min(LARGE_PAGE) } else { FIRST_PAGE };
        self.hungry |= is_full;
        self.cursor = entries.last().map_or(self.cursor, |last| last.seq);
        self.look_ahead().await;
        self.write(socket, entries).await
    }

    async fn write(&mut self, socket: &mut WebSocket, entries: Vec<InboxEntry>) -> Result<(), End> {
        for entry in entries {
            self.given.add(entry.seq);
            let (sender, id) = (&entry.message.sender.peer, entry.message.id);
            let span = self.gateway.traces.part(
                sender,
                id,
                || info_span!("socket.show", message.id = %id, inbox.seq = entry.seq),
            );
            let frame = match self.dialect {
                Dialect::V1 => v1::message(entry),
                Dialect::Bitchat => bitchat::message(entry),
            };
            let fed = timeout(WRITE_DEADLINE, socket.feed(Message::text(frame))).instrument(span);
            written(fed.await)?;
        }
        written(timeout(WRITE_DEADLINE, socket.flush()).await)
    }

    /// Asks for the next page, if there is one, so that the store finds it while this one is written.
    async fn look_ahead(&mut self) {
        self.begin();
        if let Some(showing) = &mut self.showing
            && let Poll::Ready(shown) = futures_util::poll!(showing.as_mut())
        {
            self.showing = Some(std::future::ready(shown).boxed());
        }
    }

    async fn read(
        &mut self,
        socket: &mut WebSocket,
        frame: Option<Result<Message, axum::Error>>,
    ) -> Result<(), End> {
        self.last_heard = Instant::now();
        let text = match frame {
            None => return Err(End::Gone),
            Some(Err(error)) => return Err(why_broken(error)),
            Some(Ok(Message::Close(_))) => return Err(End::Gone),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => return Ok(()),
            Some(Ok(Message::Binary(_))) => {
                let error = Box::new(ApiError::bad_request("frames are JSON text, not binary"));
                return self.complain(socket, Malformed { reference: None, error }).await;
            }
            Some(Ok(Message::Text(text))) => text,
        };
        let asked = match self.dialect {
            Dialect::V1 => v1::parse(&text, self.peer, self.given),
            Dialect::Bitchat => bitchat::parse(&text),
        };
        match asked {
            Ok(Asked::Send { reference, draft }) => {
                self.begin_send(reference, draft);
                Ok(())
            }
            Ok(Asked::Confirm { what, read }) => {
                self.waiting.add(what, read);
                self.subscription.confirms(true);
                Ok(())
            }
            Ok(Asked::Ping { reference }) => {
                let frame = match self.dialect {
                    Dialect::V1 => v1::pong(reference.as_ref()),
                    Dialect::Bitchat => bitchat::pong(),
                };
                send_text(socket, frame).await
            }
            Ok(Asked::Nothing) => Ok(()),
            Err(malformed) => self.complain(socket, malformed).await,
        }
    }

    fn begin_send(
        &mut self,
        reference: Option<serde_json::Value>,
        draft: Result<Box<Draft>, ApiError>,
    ) {
        let (gateway, peer) = (self.gateway, self.peer);
        let sending = async move {
            gateway.limits.check_peer(peer)?;
            submit(gateway, peer, *draft?).await
        };
        self.sends.push(async move { (reference, sending.await) }.boxed());
    }

    async fn answer_send(
        &mut self,
        socket: &mut WebSocket,
        reference: Option<serde_json::Value>,
        outcome: Result<Submitted, ApiError>,
    ) -> Result<(), End> {
        let frame = match outcome {
            Ok(submitted) => v1::accepted(reference.as_ref(), submitted),
            Err(error) => v1::error(reference.as_ref(), &error),
        };
        send_text(socket, frame).await
    }

    async fn complain(&mut self, socket: &mut WebSocket, malformed: Malformed) -> Result<(), End> {
        self.malformed += 1;
        if self.malformed > MALFORMED_LIMIT {
            return Err(End::NotAClient);
        }
        send_text(socket, v1::error(malformed.reference.as_ref(), &malformed.error)).await
    }

    fn confirmed(
        &mut self,
        taken: Confirmations,
        settled: sqlx::Result<Vec<Settled>>,
    ) -> Result<(), End> {
        if let Err(error) = settled {
            // Confirming twice is harmless, so what is not known to have been taken is taken again.
            self.waiting.merge(taken);
            self.pause(&error);
        } else if self.waiting.len() == 0 {
            self.subscription.confirms(false);
        }
        Ok(())
    }

    async fn hear(&mut self, socket: &mut WebSocket, news: News) -> Result<(), End> {
        if self.subscription.is_revoked() {
            return Err(End::Revoked);
        }
        match news {
            News::Grown => {
                self.hungry = true;
                Ok(())
            }
            News::Messages(entries) => {
                self.cursor = entries.last().map_or(self.cursor, |last| last.seq);
                self.write(socket, entries.into_iter().map(Arc::unwrap_or_clone).collect()).await
            }
            News::Event(event) if self.dialect == Dialect::V1 => {
                send_text(socket, v1::event(&event)).await
            }
            News::Event(_) => Ok(()),
        }
    }

    async fn ping(&mut self, socket: &mut WebSocket) -> Result<(), End> {
        if self.last_heard.elapsed() > IDLE_TIMEOUT {
            return Err(End::Idle);
        }
        let ping = Message::Ping(axum::body::Bytes::new());
        written(timeout(WRITE_DEADLINE, socket.send(ping)).await)
    }

    fn pause(&mut self, error: &sqlx::Error) {
        tracing::debug!(%error, "the store is away; the socket waits");
        self.paused_until = Some(Instant::now() + RETRY_PAUSE);
    }
}

/// The client's `ref` of a send, and what came of it.
type Sent = (Option<serde_json::Value>, Result<Submitted, ApiError>);

/// Confirmations that came while others were being taken.
#[derive(Default)]
struct Confirmations {
    delivered: Gathered,
    read: Gathered,
}

#[derive(Default)]
struct Gathered {
    /// The last position, and what is confirmed by it.
    up_to: Option<(Seq, Confirm)>,
    messages: HashSet<MessageId>,
}

impl Gathered {
    fn go_to(&mut self, seq: Seq, what: Confirm) {
        if self.up_to.as_ref().is_none_or(|(before, _)| *before <= seq) {
            self.up_to = Some((seq, what));
        }
    }
}

impl Confirmations {
    fn len(&self) -> usize {
        [&self.delivered, &self.read]
            .map(|gathered| gathered.messages.len() + usize::from(gathered.up_to.is_some()))
            .iter()
            .sum()
    }

    fn add(&mut self, what: Confirm, read: bool) {
        let gathered = if read { &mut self.read } else { &mut self.delivered };
        match what {
            Confirm::UpTo { seq, .. } => gathered.go_to(seq, what),
            Confirm::Messages(messages) => {
                gathered.messages.extend(messages.into_iter().map(|(id, _)| id));
            }
        }
    }

    fn merge(&mut self, other: Self) {
        for (into, from) in [(&mut self.delivered, other.delivered), (&mut self.read, other.read)] {
            if let Some((seq, what)) = from.up_to {
                into.go_to(seq, what);
            }
            into.messages.extend(from.messages);
        }
    }

    async fn confirm(&self, gateway: &Gateway, peer: &PeerId) -> sqlx::Result<Vec<Settled>> {
        let mut settled = Vec::new();
        for (gathered, read) in [(&self.delivered, false), (&self.read, true)] {
            if let Some((_, what)) = &gathered.up_to {
                settled.extend(inbox::take_confirmation(gateway, peer, what, read).await?);
            }
            if !gathered.messages.is_empty() {
                let messages = gathered.messages.iter().map(|id| (*id, None)).collect();
                let what = Confirm::Messages(messages);
                settled.extend(inbox::take_confirmation(gateway, peer, &what, read).await?);
            }
        }
        Ok(settled)
    }
}

async fn send_text(socket: &mut WebSocket, frame: String) -> Result<(), End> {
    written(timeout(WRITE_DEADLINE, socket.send(Message::text(frame))).await)
}

fn written(
    outcome: Result<Result<(), axum::Error>, tokio::time::error::Elapsed>,
) -> Result<(), End> {
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(why_broken(error)),
        Err(_) => Err(End::SlowReader),
    }
}

fn why_broken(error: axum::Error) -> End {
    let text = error.to_string();
    // The library's error is behind a box; only these two words of it matter.
    if text.contains("too long") || text.contains("too big") { End::TooLarge } else { End::Gone }
}

/// The outcome of what is under way; never, if nothing is.
async fn wait_for<T>(under_way: &mut Option<BoxFuture<'_, T>>) -> T {
    match under_way {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn pause(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

fn pings() -> Interval {
    let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings
}

/// When this socket is to go once the gateway drains: spread, so that clients do not all come back
/// at once.
async fn drain_moment(gateway: &Gateway) {
    gateway.draining.cancelled().await;
    // Any spread will do; without randomness all sockets go at once.
    let share = StdRng::try_from_rng(&mut SysRng).map_or(0.0, |mut rng| rng.random_range(0.0..0.8));
    sleep(gateway.config.drain.mul_f64(share)).await;
}
