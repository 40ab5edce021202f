use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use fieldpost_mixnet::htx::{
    Capabilities, Carrier, CarrierPolicy, Dial, EXPORTER_LABEL, HandshakeError, Link, PublicKey,
    SecretKey, Settings, TicketError, TicketKey,
};
use http_body_util::BodyExt;
use hyper::{
    Request, StatusCode,
    client::conn::http2,
    header::{CONTENT_TYPE, COOKIE},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::{CryptoRng, SeedableRng};
use rustls::{ClientConfig, pki_types::ServerName};
use thiserror::Error;
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    ForgetfulRng,
    body::Outgoing,
    drive::{self, LinkEnd},
    front::Clock,
    gathered::Gathered,
    template::Template,
};

/// A front to be dialled, from its descriptor.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// The name that its certificate is for.
    pub server_name: String,
    /// Its Noise key.
    pub noise: PublicKey,
    /// What tickets for it are made for.
    pub ticket: TicketKey,
    /// How it wants to be shown tickets.
    pub carriers: CarrierPolicy,
    /// What it can do on links.
    pub capabilities: Capabilities,
}

/// Makes links to fronts.
#[derive(Clone)]
pub struct Dialer {
    /// TLS, from [`client_tls`](super::client_tls).
    pub tls: Arc<ClientConfig>,
    /// What we look like.
    pub template: Template,
    /// What we bring to each link.
    pub settings: Settings,
    /// The Noise key of a relay that says who it is.
    pub identity: Option<SecretKey>,
    /// Tells the hour of tickets.
    pub clock: Clock,
}

impl Dialer {
    /// Dials a front. The link is up when it says [`Action::Established`].
    ///
    /// Takes at most 10 s for each of its steps. If the future is dropped, the connection ends.
    ///
    /// # Errors
    ///
    /// Says which step failed.
    ///
    /// [`Action::Established`]: fieldpost_mixnet::htx::Action::Established
    pub async fn dial(
        &self,
        target: &Target,
        mut rng: impl CryptoRng,
    ) -> Result<LinkEnd, DialError> {
        let connection = within(self.connect(target)).await?;
        let mut exporter = [0; 32];
        let (_, tls) = connection.get_ref();
        tls.export_keying_material(&mut exporter, EXPORTER_LABEL, None)?;
        if tls.alpn_protocol() != Some(b"h2") {
            return Err(DialError::NoHttp2);
        }
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(self.template.stream_window)
            .initial_connection_window_size(self.template.connection_window)
            .header_table_size(self.template.header_table)
            .max_header_list_size(self.template.header_list)
            .handshake(TokioIo::new(connection))
            .await?;
        // Ends when the link's request has ended and `sender` is dropped.
        tokio::spawn(connection);

        let now = (self.clock)().as_millis() / 1_000;
        let ticket = target.ticket.make_ticket(&mut rng, target.carriers.padding(), now)?;
        let request = self.ticket_request(target, target.carriers.place(&mut rng, ticket));
        let visit = async {
            let mut page = sender.send_request(request).await?.into_body();
            let mut left = LONGEST_PAGE;
            while let Some(frame) = page.frame().await {
                let length = frame?.data_ref().map_or(0, Bytes::len);
                left = left.checked_sub(length).ok_or(DialError::LongPage)?;
            }
            Ok(())
        };
        within(visit).await?;

        let dial = Dial {
            exporter,
            ticket_key_id: target.ticket.id,
            server: target.noise,
            server_capabilities: target.capabilities.clone(),
            identity: self.identity.clone(),
        };
        let now = Instant::now().into_std();
        let rng = ForgetfulRng::from_rng(&mut rng);
        let mut link = Link::dial(now, rng, self.settings.clone(), dial)?;
        let (outgoing, body) = mpsc::channel(1);
        // The first message goes with the request. Whoever ends TLS could have had it anyway, by
        // answering 200.
        drive::begin(&mut link, &outgoing);
        let request = self
            .request(target, "/")
            .method("POST")
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Outgoing::Link(body))?;
        let response = within(async { Ok(sender.send_request(request).await?) }).await?;
        if response.status() != StatusCode::OK {
            return Err(DialError::Refused(response.status()));
        }
        Ok(drive::start(link, response.into_body(), outgoing))
    }

    async fn connect(&self, target: &Target) -> Result<TlsStream<Gathered>, DialError> {
        let name = ServerName::try_from(target.server_name.clone())
            .map_err(|_| DialError::ServerName(target.server_name.clone()))?;
        let stream = TcpStream::connect(target.address).await?;
        stream.set_nodelay(true)?;
        let stream = Gathered::new(stream);
        let mut stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await?;
        stream.get_mut().0.shaken();
        Ok(stream)
    }

    fn ticket_request(&self, target: &Target, carrier: Carrier) -> Request<Outgoing> {
        let empty = || Outgoing::page("");
        let request = match carrier {
            Carrier::Cookie { name, value } => {
                self.request(target, "/").header(COOKIE, format!("{name}={value}")).body(empty())
            }
            Carrier::Query { name, value } => {
                self.request(target, &format!("/?{name}={value}")).body(empty())
            }
            Carrier::Field { name, value } => self
                .request(target, "/")
                .method("POST")
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Outgoing::page(format!("{name}={value}"))),
        };
        request.expect("names and tickets are plain text")
    }

    fn request(&self, target: &Target, path: &str) -> hyper::http::request::Builder {
        let uri = format!("https://{}{path}", target.server_name);
        let begin = Request::builder().uri(uri);
        let headers = self.template.headers.iter();
        headers.fold(begin, |request, (name, value)| request.header(*name, *value))
    }
}

/// Why there is no link.
#[derive(Debug, Error)]
pub enum DialError {
    /// A step took too long.
    #[error("no answer within {} s", STEP.as_secs())]
    TimedOut,
    /// No connection, or no TLS on it.
    #[error("no connection")]
    Connect(#[from] std::io::Error),
    /// The name is none.
    #[error("{0} is not a name that a certificate can be for")]
    ServerName(String),
    /// TLS gave no key material.
    #[error("TLS failed")]
    Tls(#[from] rustls::Error),
    /// The front does not speak HTTP/2.
    #[error("the front speaks no HTTP/2")]
    NoHttp2,
    /// HTTP/2 failed.
    #[error("HTTP/2 failed")]
    Http(#[from] hyper::Error),
    /// The descriptor's names make no request.
    #[error("the request cannot be written")]
    Request(#[from] hyper::http::Error),
    /// The page that answers a ticket is endless.
    #[error("the page is longer than {LONGEST_PAGE} bytes")]
    LongPage,
    /// The front did not let us in.
    #[error("the front answered {0}: it did not take the ticket")]
    Refused(StatusCode),
    /// No ticket can be made.
    #[error("no ticket can be made")]
    Ticket(#[from] TicketError),
    /// The inner handshake cannot begin.
    #[error("the inner handshake cannot begin")]
    Handshake(#[from] HandshakeError),
}

async fn within<T>(step: impl Future<Output = Result<T, DialError>>) -> Result<T, DialError> {
    timeout(STEP, step).await.map_err(|_| DialError::TimedOut)?
}

const STEP: Duration = Duration::from_secs(10);
const LONGEST_PAGE: usize = 4 << 20;
