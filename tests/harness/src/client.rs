//! A peer's client over HTTP and sockets, for both ways of telling callers apart.

use std::{fmt, time::Duration};

use fieldpost_delivery::Time;
use futures_util::{SinkExt, StreamExt};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        self, Message,
        client::IntoClientRequest,
        http::{HeaderMap, HeaderName, HeaderValue},
    },
};
use uuid::Uuid;

use crate::process::reqwest_client;

/// How long a call may take; longer than any deadline of the gateway's own but a long poll's.
pub const CALL_DEADLINE: Duration = Duration::from_secs(20);
/// How long a test waits for what is sure to come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Calls a gateway, as a peer or as nobody; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    /// Whether callers are believed.
    open: bool,
    peer: String,
    token: Option<String>,
}

/// Why a call has no good answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The gateway answered otherwise.
    Refused {
        /// The status.
        status: u16,
        /// Its word.
        detail: String,
        /// When to try again, in seconds.
        retry_after: Option<u64>,
    },
    /// The connection could not be made: nothing was asked.
    Unreachable(String),
    /// There was no answer: it may have been done.
    Unanswered(String),
    /// The socket ended before the answer, with this close code: it may have been done.
    Closed(Option<u16>),
}

impl Failure {
    /// The status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether it is certain that nothing was done: the gateway found fault with the request, or
    /// never had it. A server's error leaves it open.
    pub fn is_certain(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status < 500,
            Self::Unreachable(_) => true,
            Self::Unanswered(_) | Self::Closed(_) => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { status, detail, .. } => write!(f, "{status}: {detail}"),
            Self::Unreachable(cause) => write!(f, "unreachable: {cause}"),
            Self::Unanswered(cause) => write!(f, "no answer: {cause}"),
            Self::Closed(code) => write!(f, "closed: {code:?}"),
        }
    }
}

/// The body of a send; everything but `to` and `content` may be left out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Draft {
    /// For whom.
    pub to: String,
    /// What.
    pub content: String,
    /// Under which id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<Uuid>,
    /// How urgent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<String>,
    /// The least level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_anonymity: Option<u8>,
    /// Level 3, in another word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requires_privacy: Option<bool>,
    /// The time to live, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// Over what first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport_preference: Option<String>,
    /// Whether it waits for a name that nobody has.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_unknown: bool,
}

impl Draft {
    /// A text to somebody, under a fresh id.
    pub fn text(to: &str, content: impl Into<String>) -> Self {
        let message_id = Some(Uuid::new_v4());
        Self { to: to.to_owned(), content: content.into(), message_id, ..Self::default() }
    }
}

/// The answer to a send.
#[derive(Clone, Debug, Deserialize)]
pub struct Accepted {
    /// The message.
    pub message_id: Uuid,
    /// Where it stands.
    pub status: String,
}

/// A page of an inbox.
#[derive(Clone, Debug, Deserialize)]
pub struct Inbox {
    /// What waits.
    pub messages: Vec<InboxMessage>,
    /// Where to go on.
    pub next: String,
}

/// A message in an inbox.
#[derive(Clone, Debug, Deserialize)]
pub struct InboxMessage {
    /// Its place.
    pub seq: u64,
    /// Its id.
    pub message_id: Uuid,
    /// From whom.
    pub from: String,
    /// To whom, as the sender wrote it.
    pub to: String,
    /// When its gateway accepted it.
    pub sent_at: Time,
    /// What, if it is text.
    pub content: Option<String>,
    /// What, if it is not.
    pub content_base64: Option<String>,
    /// Whether something before it is missing.
    #[serde(default)]
    pub gap: bool,
    /// Whether it comes after what should follow it.
    #[serde(default)]
    pub late: bool,
}

/// A message as its sender sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    /// Where it stands.
    pub status: String,
    /// Where each delivery stands.
    pub recipients: Vec<DeliveryRecord>,
}

/// A delivery as the sender sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct DeliveryRecord {
    /// To whom.
    pub recipient: String,
    /// Where it stands.
    pub status: String,
    /// Why, if it ended badly.
    pub reason: Option<String>,
    /// What was tried.
    #[serde(default)]
    pub attempts: Vec<AttemptRecord>,
}

/// One attempt.
#[derive(Clone, Debug, Deserialize)]
pub struct AttemptRecord {
    /// Over what.
    pub transport: String,
    /// When it began.
    pub started_at: Time,
    /// With what result.
    pub result: String,
    /// Why it was chosen, or why it failed.
    #[serde(default)]
    pub reason: Option<String>,
    /// Over how many links the recipient was, where the transport knew.
    #[serde(default)]
    pub hops: Option<u8>,
}

impl Client {
    /// A client without a name.
    pub fn new(base: &str, open: bool) -> Self {
        let http = reqwest_client(CALL_DEADLINE);
        Self { http, base: base.to_owned(), open, peer: String::new(), token: None }
    }

    /// The same client as another peer, known by `token` or, in open mode, by its name alone.
    pub fn calling_as(&self, peer: &str, token: Option<String>) -> Self {
        Self { peer: peer.to_owned(), token, ..self.clone() }
    }

    /// Registers a peer on `/v1` and returns its client.
    ///
    /// # Errors
    ///
    /// As the gateway answers.
    pub async fn register(&self, peer: &str) -> Result<Self, Failure> {
        let body = json!({ "peer_id": peer, "public_key": format!("key of {peer}") });
        let answer: Value = self.call(self.request(Method::POST, "/v1/peers").json(&body)).await?;
        let token = answer["token"].as_str().map(str::to_owned);
        Ok(self.calling_as(peer, token))
    }

    /// The address of its gateway.
    pub fn home(&self) -> &str {
        &self.base
    }

    /// Whose client this is.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The peer's token, if the gateway gave one.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A request with the peer's credentials; `path` may have a query.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if self.open && !self.peer.is_empty() {
            request = request.header(PEER_HEADER, &self.peer);
        }
        request
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    ///
    /// As [`Failure`] tells them apart.
    pub async fn call<T: for<'a> Deserialize<'a>>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, Failure> {
        let response = request.send().await.map_err(|error| failure(&error))?;
        let status = response.status();
        let headers = response.headers().clone();
        let body = response.bytes().await.map_err(|error| failure(&error))?;
        if !status.is_success() {
            return Err(refusal(status.as_u16(), &headers, &body));
        }
        let body = if status == StatusCode::NO_CONTENT { b"null".as_slice() } else { &body };
        serde_json::from_slice(body).map_err(|error| {
            let text = String::from_utf8_lossy(body);
            panic!("the answer is not what the contract says ({error}): {text}")
        })
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// As [`Failure`] tells them apart.
    pub async fn send(&self, draft: &Draft) -> Result<Accepted, Failure> {
        self.call(self.request(Method::POST, "/v1/messages").json(draft)).await
    }

    /// Takes a page of the inbox, waiting up to `wait` seconds if it is empty.
    ///
    /// # Errors
    ///
    /// As [`Failure`] tells them apart.
    pub async fn poll(&self, after: Option<&str>, wait: u64) -> Result<Inbox, Failure> {
        let mut request = self.request(Method::GET, "/v1/inbox").query(&[("wait", wait)]);
        if let Some(after) = after {
            request = request.query(&[("after", after)]);
        }
        let limit = CALL_DEADLINE + Duration::from_secs(wait);
        self.call(request.timeout(limit)).await
    }

    /// Confirms all up to a place.
    ///
    /// # Errors
    ///
    /// As [`Failure`] tells them apart.
    pub async fn confirm_up_to(&self, seq: u64) -> Result<(), Failure> {
        self.confirm(&json!({ "up_to": seq })).await
    }

    /// Confirms single messages.
    ///
    /// # Errors
    ///
    /// As [`Failure`] tells them apart.
    pub async fn confirm_messages(&self, ids: &[Uuid]) -> Result<(), Failure> {
        self.confirm(&json!({ "message_ids": ids })).await
    }

    async fn confirm(&self, what: &Value) -> Result<(), Failure> {
        self.call(self.request(Method::POST, "/v1/inbox/ack").json(what)).await
    }

    /// Asks how a message of this peer's fares.
    ///
    /// # Errors
    ///
    /// As [`Failure`] tells them apart.
    pub async fn record(&self, message: Uuid) -> Result<Record, Failure> {
        self.call(self.request(Method::GET, &format!("/v1/messages/{message}"))).await
    }

    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// As [`Failure`] tells them apart.
    pub async fn socket(&self) -> Result<Socket, Failure> {
        self.socket_at("/v1/ws").await
    }

    /// Opens a socket on another path, such as one with a ticket.
    ///
    /// # Errors
    ///
    /// As [`Failure`] tells them apart.
    pub async fn socket_at(&self, path: &str) -> Result<Socket, Failure> {
        let url = format!("{}{path}", self.base.replacen("http", "ws", 1));
        let mut request = url.into_client_request().expect("the address is well formed");
        let mut header = |name: &'static str, value: &str| {
            let value = HeaderValue::from_str(value).expect("tokens and names are plain");
            request.headers_mut().insert(HeaderName::from_static(name), value);
        };
        if let Some(token) = &self.token {
            header("authorization", &format!("Bearer {token}"));
        }
        if self.open && !self.peer.is_empty() {
            header(PEER_HEADER, &self.peer);
        }
        match timeout(CALL_DEADLINE, connect_async(request)).await {
            Ok(Ok((stream, _))) => Ok(Socket { stream, refs: 0 }),
            Ok(Err(tungstenite::Error::Http(answer))) => {
                let body = answer.body().as_deref().unwrap_or_default();
                Err(refusal(answer.status().as_u16(), answer.headers(), body))
            }
            Ok(Err(error)) => Err(Failure::Unreachable(error.to_string())),
            Err(_) => Err(Failure::Unanswered("no answer to the upgrade".to_owned())),
        }
    }
}

const PEER_HEADER: &str = "fieldpost-peer";

fn failure(error: &reqwest::Error) -> Failure {
    if error.is_connect() {
        return Failure::Unreachable(error.to_string());
    }
    Failure::Unanswered(format!("{error:?}"))
}

fn refusal(status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
    let detail = match serde_json::from_slice::<Value>(body) {
        Ok(problem) => match &problem["detail"] {
            Value::String(detail) => detail.clone(),
            other => other.to_string(),
        },
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let retry_after = headers.get("retry-after");
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    Failure::Refused { status, detail, retry_after }
}

/// A socket of `/v1/ws`.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    refs: u64,
}

/// What the gateway writes on a socket.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Frame {
    /// A message.
    Message(InboxMessage),
    /// A message of ours was stored.
    Accepted {
        /// Our mark.
        r#ref: Option<Value>,
        /// Its id.
        message_id: Uuid,
        /// Where it stands.
        status: String,
    },
    /// A message of ours has moved on.
    Receipt {
        /// Its id.
        message_id: Uuid,
        /// For whom.
        recipient: String,
        /// Where it stands.
        status: String,
        /// Why, if it ended badly.
        reason: Option<String>,
    },
    /// Another peer came or went.
    Presence {
        /// Which.
        peer: String,
        /// Whether it is there.
        online: bool,
    },
    /// So many events were left out.
    Missed {
        /// Receipts.
        receipts: u64,
        /// Changes of presence.
        presence: u64,
    },
    /// The answer to a ping.
    Pong {
        /// Our mark.
        r#ref: Option<Value>,
    },
    /// A frame of ours was refused.
    Error {
        /// Our mark.
        r#ref: Option<Value>,
        /// The status over HTTP.
        status: u16,
        /// Why.
        detail: String,
        /// When to try again, in seconds.
        retry_after: Option<u64>,
    },
    /// The socket has ended, with its close code if there was one.
    #[serde(skip)]
    Closed(Option<u16>),
}

impl Socket {
    /// The next frame; protocol pings are answered on the way. After [`Frame::Closed`] there is
    /// none.
    ///
    /// Waits without limit; nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Frame {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(text.as_str()).unwrap_or_else(|error| {
                        panic!("a frame is not what the contract says ({error}): {text}")
                    });
                }
                Some(Ok(Message::Close(frame))) => {
                    return Frame::Closed(frame.map(|frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Frame::Closed(None),
            }
        }
    }

    /// The next frame that is there in time.
    ///
    /// # Panics
    ///
    /// If none is.
    pub async fn expect(&mut self) -> Frame {
        timeout(PATIENCE, self.next()).await.expect("a frame comes in time")
    }

    /// The next message, whatever comes before it.
    ///
    /// # Panics
    ///
    /// If none comes in time, or the socket ends.
    pub async fn expect_message(&mut self) -> InboxMessage {
        loop {
            match self.expect().await {
                Frame::Message(message) => return message,
                Frame::Closed(code) => panic!("the socket was closed ({code:?})"),
                _ => {}
            }
        }
    }

    /// Writes any frame; an error means that the socket has ended.
    ///
    /// # Errors
    ///
    /// The socket has ended or takes nothing in.
    pub async fn write(&mut self, frame: &Value) -> Result<(), Failure> {
        let writing = self.stream.send(Message::text(frame.to_string()));
        match timeout(CALL_DEADLINE, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::Closed(None)),
            Err(_) => Err(Failure::Unanswered("the socket takes nothing in".to_owned())),
        }
    }

    /// Sends a message and returns the mark by which its answer is known.
    ///
    /// # Errors
    ///
    /// The socket has ended; the message may have been taken.
    pub async fn send(&mut self, draft: &Draft) -> Result<u64, Failure> {
        self.refs += 1;
        let mut frame = serde_json::to_value(draft).expect("a draft is plain data");
        frame["type"] = json!("send");
        frame["ref"] = json!(self.refs);
        self.write(&frame).await?;
        Ok(self.refs)
    }

    /// Confirms all up to a place.
    ///
    /// # Errors
    ///
    /// The socket has ended; the confirmation may have been taken.
    pub async fn confirm_up_to(&mut self, seq: u64) -> Result<(), Failure> {
        self.write(&json!({ "type": "ack", "up_to": seq })).await
    }

    /// Confirms single messages.
    ///
    /// # Errors
    ///
    /// The socket has ended; the confirmation may have been taken.
    pub async fn confirm_messages(&mut self, ids: &[Uuid]) -> Result<(), Failure> {
        self.write(&json!({ "type": "ack", "message_ids": ids })).await
    }

    /// Closes the socket properly and returns the gateway's close code.
    pub async fn close(mut self) -> Option<u16> {
        // It may be closed already.
        let _ = self.stream.close(None).await;
        loop {
            match timeout(PATIENCE, self.next()).await {
                Ok(Frame::Closed(code)) => return code,
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}
