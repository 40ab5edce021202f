//! The gateway under measurement: the real program, with its own embedded database.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use harness::{Client, Gateway, Options};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{ClientRequestBuilder, Message, Utf8Bytes, protocol::WebSocketConfig},
};

/// A running gateway.
pub(crate) struct Server {
    gateway: Gateway,
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
}

impl Server {
    /// Starts one with `arguments` of `fieldpost serve` beside the usual ones.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        // So fast that the limits that protect a gateway from one caller would be measured.
        let options = ["--rate-limit=1000000", "--registration-rate-limit=1000000"]
            .iter()
            .chain(arguments)
            .fold(Options::embedded(), |options, argument| options.argument(*argument));
        let gateway = options.start().await;
        let address = gateway.url().trim_start_matches("http://").parse().expect("an address");
        let pid = gateway.pid();
        Self { gateway, address, pid }
    }

    /// Registers a peer and returns its token.
    pub(crate) async fn register(&self, peer: &str) -> String {
        let client: Client = self.gateway.register(peer).await;
        client.token().expect("registration gives a token").to_owned()
    }

    /// Opens a socket.
    pub(crate) async fn socket(&self, token: &str) -> Socket {
        Socket::open(self.address, token).await
    }

    /// Its embedded database, for a look at the queue tables.
    pub(crate) fn database_url(&self) -> String {
        let folder = self.gateway.folder().join("data/database");
        format!("postgres:///postgres?host={}&user=gateway", folder.display())
    }
}

/// One subscriber.
pub(crate) struct Socket {
    stream: WebSocketStream<TcpStream>,
}

/// What a benchmark looks at in a message.
#[derive(Deserialize)]
pub(crate) struct Received {
    pub(crate) seq: i64,
    pub(crate) content: String,
}

impl Socket {
    /// Opens one with small buffers, so that thousands cost the load generator little.
    pub(crate) async fn open(address: SocketAddr, token: &str) -> Self {
        let uri = format!("ws://{address}/v1/ws").parse().expect("an address");
        let request =
            ClientRequestBuilder::new(uri).with_header("Authorization", format!("Bearer {token}"));
        let stream = TcpStream::connect(address).await.expect("the gateway listens");
        stream.set_nodelay(true).expect("a socket option");
        let config = WebSocketConfig::default().read_buffer_size(16 * 1024);
        let (stream, _) = client_async_with_config(request, stream, Some(config))
            .await
            .expect("the socket opens");
        Self { stream }
    }

    /// The next message; `None` when the socket has closed.
    pub(crate) async fn next_message(&mut self) -> Option<Received> {
        loop {
            let text = self.next_text().await?;
            if text.contains("\"type\":\"message\"") {
                return Some(serde_json::from_str(&text).expect("a message frame"));
            }
        }
    }

    /// The next frame of text; `None` when the socket has closed.
    pub(crate) async fn next_text(&mut self) -> Option<Utf8Bytes> {
        loop {
            match self.stream.next().await?.ok()? {
                Message::Text(text) => return Some(text),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    /// Confirms all up to `seq`.
    pub(crate) async fn confirm(&mut self, seq: i64) {
        let frame = format!("{{\"type\":\"ack\",\"up_to\":{seq}}}");
        self.stream.send(Message::text(frame)).await.expect("the socket takes frames");
    }
}
