//! `fieldpost listen`: a socket that comes back, and a confirmation for each message printed.

use std::{
    collections::{HashSet, VecDeque},
    ops::ControlFlow,
};

use clap::Args;
use fieldpost_envelope::PeerId;
use futures_util::{SinkExt, StreamExt};
use reqwest::{StatusCode, header::AUTHORIZATION};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{Duration, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        Error as SocketError, Message,
        client::IntoClientRequest,
        handshake::client::Request,
        http::HeaderValue,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    ClientError, Connection,
    api::{Api, Backoff},
    output::{Output, printable},
};
use crate::http::caller::PEER_HEADER;

/// Options of `fieldpost listen`.
#[derive(Args, Clone, Debug)]
pub struct ListenArgs {
    /// The peer that listens. Default: whom the token names, or the only peer whose token is kept.
    #[arg(long = "as", visible_alias = "from", value_name = "PEER")]
    caller: Option<PeerId>,

    /// End after so many messages.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Tell the senders that the messages were read, not only that they arrived.
    #[arg(long, conflicts_with = "peek")]
    read: bool,

    /// Confirm nothing: the messages stay in the inbox and come again.
    #[arg(long)]
    peek: bool,

    /// Give up when the gateway cannot be reached at the start, instead of trying on.
    #[arg(long)]
    no_retry: bool,

    #[command(flatten)]
    connection: Connection,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After so much silence we ask whether the gateway is still there.
const QUIET: Duration = Duration::from_secs(30);
/// And after so much more without an answer, it is not.
const PATIENCE: Duration = Duration::from_secs(30);
/// Above the largest frame of a gateway (design, section 6).
const FRAME_LIMIT: usize = 4 << 20;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

pub(super) async fn run(args: ListenArgs) -> Result<(), ClientError> {
    let api = args.connection.known_caller(args.caller.as_ref())?;
    let mut listener = Listener {
        output: args.connection.output(),
        printed: Recent::default(),
        confirm: match (args.peek, args.read) {
            (true, _) => None,
            (false, true) => Some("read"),
            (false, false) => Some("ack"),
        },
        left: args.count,
    };
    tokio::select! {
        done = listener.run(&api, args.no_retry) => done,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(ClientError::Output),
    }
}

struct Listener {
    output: Output,
    printed: Recent,
    /// The frame that confirms a message.
    confirm: Option<&'static str>,
    /// How many messages are still wanted.
    left: Option<u64>,
}

/// Why a connection ended that is worth another one.
struct Interruption {
    why: String,
    retry_after: Option<Duration>,
}

impl Listener {
    /// Listens over as many connections as it takes.
    async fn run(&mut self, api: &Api, no_retry: bool) -> Result<(), ClientError> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut was_connected = false;
        loop {
            let interruption = match connect(api).await {
                Ok(mut socket) => {
                    was_connected = true;
                    backoff.reset();
                    self.output.note(&format!("listening at {}", api.base()));
                    match self.serve(api, &mut socket).await? {
                        ControlFlow::Break(()) => {
                            close(socket).await;
                            return Ok(());
                        }
                        ControlFlow::Continue(interruption) => interruption,
                    }
                }
                Err(error) if error.is_passing() && (was_connected || !no_retry) => {
                    Interruption { retry_after: error.retry_after(), why: error.to_string() }
                }
                Err(error) => return Err(error),
            };
            let pause = interruption.retry_after.unwrap_or_default() + backoff.next();
            self.output.note(&format!(
                "{}; connecting again in {:.1} s",
                interruption.why,
                pause.as_secs_f64()
            ));
            tokio::time::sleep(pause).await;
        }
    }

    /// Handles one connection until it ends or nothing more is wanted.
    async fn serve(
        &mut self,
        api: &Api,
        socket: &mut Socket,
    ) -> Result<ControlFlow<(), Interruption>, ClientError> {
        let mut asked = false;
        loop {
            let wait = if asked { PATIENCE } else { QUIET };
            let frame = match timeout(wait, socket.next()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return Ok(interrupted(format!("connection lost: {error}")));
                }
                Ok(None) => return Ok(interrupted("connection lost".to_owned())),
                Err(_) if asked => return Ok(interrupted("the gateway is silent".to_owned())),
                Err(_) => {
                    asked = true;
                    if let Err(error) = send(socket, Message::Ping(Default::default())).await {
                        return Ok(interrupted(error));
                    }
                    continue;
                }
            };
            asked = false;
            match frame {
                Message::Text(text) => {
                    let confirmation = self.handle(api, text.as_str())?;
                    if let Some(confirmation) = confirmation
                        && let Err(error) = send(socket, Message::text(confirmation)).await
                    {
                        return Ok(interrupted(error));
                    }
                    if self.left == Some(0) {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Message::Close(frame) => return after_close(frame),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Prints a message and returns the frame that confirms it.
    fn handle(&mut self, api: &Api, text: &str) -> Result<Option<String>, ClientError> {
        let frame: Value = serde_json::from_str(text).map_err(|error| ClientError::Unexpected {
            url: api.base().to_owned(),
            cause: format!("a frame that is not JSON: {error}"),
        })?;
        match frame["type"].as_str() {
            Some("message") => {
                // A confirmation may be lost with its connection; then the message comes again.
                if self.printed.insert(&frame) {
                    self.output.write(&frame, || line(&frame))?;
                    self.left = self.left.map(|left| left - 1);
                }
                Ok(self.confirm.zip(frame["seq"].as_u64()).map(|(confirm, seq)| {
                    // Whatever waits below it came first on this socket, and is printed.
                    json!({ "type": confirm, "up_to": seq }).to_string()
                }))
            }
            Some("error") => {
                self.output.note(&format!("the gateway complains: {}", printable(text)));
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

/// The messages printed last, by what identifies them: sender and id.
#[derive(Default)]
struct Recent {
    known: HashSet<(String, String)>,
    order: VecDeque<(String, String)>,
}

/// More than a gateway shows before it waits for a confirmation.
const REMEMBERED: usize = 10_000;

impl Recent {
    /// Whether the message is not among them; it is from then on.
    fn insert(&mut self, message: &Value) -> bool {
        let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
        let key = (text("from"), text("message_id"));
        if !self.known.insert(key.clone()) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

async fn connect(api: &Api) -> Result<Socket, ClientError> {
    let request = request(api)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .max_message_size(Some(FRAME_LIMIT))
        .max_frame_size(Some(FRAME_LIMIT));
    let connecting = connect_async_with_config(request, Some(config), true);
    match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(SocketError::Http(response))) => {
            let status = StatusCode::from_u16(response.status().as_u16());
            let body = response.body().as_deref().unwrap_or_default();
            let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Err(api.refused(status, response.headers(), body))
        }
        Ok(Err(error)) => Err(unreachable(api, error.to_string())),
        Err(_) => Err(unreachable(api, "no answer in time".to_owned())),
    }
}

fn request(api: &Api) -> Result<Request, ClientError> {
    let mut url = api.url(&["v1", "ws"]);
    let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
    // The base has one of two schemes, both of which may change into these.
    url.set_scheme(scheme).expect("http becomes ws");
    let mut request =
        url.as_str().into_client_request().map_err(|error| unreachable(api, error.to_string()))?;
    if let Some(token) = api.token() {
        let bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()));
        let mut bearer = bearer.map_err(|_| {
            ClientError::Usage("the token has characters that no token has".to_owned())
        })?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
    }
    if let Some(peer) = api.peer() {
        let name = HeaderValue::from_str(peer.as_str()).expect("a peer id is plain ASCII");
        request.headers_mut().insert(PEER_HEADER, name);
    }
    Ok(request)
}

async fn send(socket: &mut Socket, message: Message) -> Result<(), String> {
    match timeout(PATIENCE, socket.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("connection lost: {error}")),
        Err(_) => Err("the gateway takes nothing in".to_owned()),
    }
}

/// A draining or overtaxed gateway wants us back; one that refuses us does not.
fn after_close(frame: Option<CloseFrame>) -> Result<ControlFlow<(), Interruption>, ClientError> {
    let Some(frame) = frame else {
        return Ok(interrupted("the gateway closed the connection".to_owned()));
    };
    let reason = printable(&frame.reason);
    match frame.code {
        CloseCode::Policy => Err(ClientError::Refused {
            status: StatusCode::FORBIDDEN,
            detail: format!("the gateway ended the session: {reason}"),
            retry_after: None,
        }),
        code => Ok(interrupted(format!(
            "the gateway closed the connection ({}): {reason}",
            u16::from(code)
        ))),
    }
}

/// Says goodbye, so that the gateway has our last confirmation before we are gone.
async fn close(mut socket: Socket) {
    let goodbye = async {
        socket.close(None).await?;
        while let Some(Ok(_)) = socket.next().await {}
        Ok::<_, SocketError>(())
    };
    drop(timeout(CLOSE_TIMEOUT, goodbye).await);
}

fn interrupted(why: String) -> ControlFlow<(), Interruption> {
    ControlFlow::Continue(Interruption { why, retry_after: None })
}

fn unreachable(api: &Api, cause: String) -> ClientError {
    ClientError::Unreachable { url: api.base().to_owned(), cause }
}

/// A message for people: when, from whom, to whom if not to us alone, and what.
fn line(message: &Value) -> String {
    let text = |name: &str| message[name].as_str().map(printable).unwrap_or_default();
    let to = Some(text("to")).filter(|to| to == "broadcast" || to.starts_with("group:"));
    let to = to.map(|to| format!(" → {to}")).unwrap_or_default();
    let mut flags = String::new();
    for flag in ["gap", "late"] {
        if message[flag] == true {
            flags.push_str(&format!(" [{flag}]"));
        }
    }
    let content = match (message["content"].as_str(), message["content_base64"].as_str()) {
        (Some(content), _) => printable(content),
        (None, Some(base64)) => format!("(binary) {base64}"),
        (None, None) => String::new(),
    };
    let files = match message["file_ids"].as_array() {
        Some(ids) if !ids.is_empty() => {
            let ids: Vec<String> = ids.iter().filter_map(Value::as_str).map(printable).collect();
            format!("  (files: {})", ids.join(", "))
        }
        _ => String::new(),
    };
    format!("{}  {}{to}{flags}: {content}{files}", text("sent_at"), text("from"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_a_person_wants_to_know_and_nothing_that_steers_the_terminal() {
        let message = json!({
            "sent_at": "t", "from": "alice", "to": "group:hikers", "content": "hi\u{1b}[2J",
            "late": true, "file_ids": ["f1", "f2"],
        });
        assert_eq!(line(&message), "t  alice → group:hikers [late]: hi\\u{1b}[2J  (files: f1, f2)");
        let message =
            json!({ "sent_at": "t", "from": "alice", "to": "bob", "content_base64": "AA==" });
        assert_eq!(line(&message), "t  alice: (binary) AA==");
    }

    #[test]
    fn a_message_counts_as_printed_by_sender_and_id_until_many_others_were() {
        let message = |from: &str, id: usize| json!({ "from": from, "message_id": id.to_string() });
        let mut recent = Recent::default();
        assert!(recent.insert(&message("alice", 0)));
        assert!(!recent.insert(&message("alice", 0)));
        assert!(recent.insert(&message("bob", 0)));
        for id in 1..=REMEMBERED {
            assert!(recent.insert(&message("alice", id)));
        }
        assert!(recent.insert(&message("alice", 0)));
        assert_eq!((recent.known.len(), recent.order.len()), (REMEMBERED, REMEMBERED));
    }
}
