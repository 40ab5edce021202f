use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::htx::{
    Admission, CarrierPolicy, EXPORTER_LABEL, Gate, Identity, Link, Presented, SecretKey, Settings,
};
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HeaderMap},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rand::SeedableRng;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    ForgetfulRng, body::Outgoing, decoy::Decoy, drive, drive::LinkEnd, gathered::Gathered,
};

/// Tells the time that tickets and their replay are judged by.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What a front needs.
pub struct FrontOptions {
    /// TLS, from [`server_tls`](super::server_tls).
    pub tls: Arc<ServerConfig>,
    /// What strangers see.
    pub decoy: Decoy,
    /// Who is let in.
    pub gate: Gate,
    /// Where tickets stand.
    pub carriers: CarrierPolicy,
    /// Our Noise key.
    pub key: SecretKey,
    /// What we bring to each link.
    pub settings: Settings,
    /// Tells the hour of tickets.
    pub clock: Clock,
    /// Seeds the links.
    pub rng: ForgetfulRng,
    /// The most connections at once; further ones wait to be accepted.
    pub connections: usize,
}

/// A front: a web site to everybody, an end of covert links to those with a ticket.
pub struct Front {
    tls: TlsAcceptor,
    decoy: Decoy,
    gate: Mutex<Gate>,
    carriers: CarrierPolicy,
    key: SecretKey,
    settings: Settings,
    clock: Clock,
    rng: Mutex<ForgetfulRng>,
    connections: Arc<Semaphore>,
    links: mpsc::Sender<LinkEnd>,
}

impl Front {
    /// A front that hands its links to the receiver; at most 64 wait there, further ones are closed.
    pub fn new(options: FrontOptions) -> (Arc<Self>, mpsc::Receiver<LinkEnd>) {
        let FrontOptions { tls, decoy, gate, carriers, key, settings, clock, rng, connections } =
            options;
        let (links, receiver) = mpsc::channel(WAITING_LINKS);
        let front = Self {
            tls: tls.into(),
            decoy,
            gate: Mutex::new(gate),
            carriers,
            key,
            settings,
            clock,
            rng: Mutex::new(rng),
            connections: Arc::new(Semaphore::new(connections)),
            links,
        };
        (Arc::new(front), receiver)
    }

    /// Changes the keys that tickets are taken for.
    pub fn with_gate(&self, change: impl FnOnce(&mut Gate)) {
        change(&mut self.gate.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Serves until `stop` holds true, then ends all connections.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        loop {
            let permit = tokio::select! {
                permit = Arc::clone(&self.connections).acquire_owned() => permit,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let Ok(permit) = permit else { break };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            while connections.try_join_next().is_some() {}
            let Ok((stream, address)) = accepted else {
                // Such as no file descriptor being left.
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let front = Arc::clone(&self);
            connections.spawn(async move {
                front.serve_one(stream, address).await;
                drop(permit);
            });
        }
        connections.shutdown().await;
    }

    async fn serve_one(self: Arc<Self>, stream: TcpStream, address: SocketAddr) {
        stream.set_nodelay(true).unwrap_or_default();
        let accepting = self.tls.accept(Gathered::new(stream));
        let Ok(Ok(mut stream)) = timeout(HANDSHAKE, accepting).await else { return };
        stream.get_mut().0.shaken();
        let Some(visit) = Visit::new(&stream, address.ip()) else { return };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let visit = Arc::new(visit);
        let service = {
            let visit = Arc::clone(&visit);
            service_fn(move |request| {
                let (front, visit) = (Arc::clone(&self), Arc::clone(&visit));
                async move { Ok::<_, std::convert::Infallible>(front.answer(&visit, request).await) }
            })
        };
        let stream = TokioIo::new(stream);
        // How a stranger's connection ends is no news to us.
        if is_http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).max_concurrent_streams(STREAMS);
            builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
            let connection = builder.serve_connection(stream, service);
            tokio::select! {
                ended = connection => drop(ended),
                () = visit.has_lasted() => {}
            }
        } else {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES);
            let connection = builder.serve_connection(stream, service);
            tokio::select! {
                ended = connection => drop(ended),
                () = visit.has_lasted() => {}
            }
        }
    }

    /// Answers one request. All but the one that begins a link are answered by the decoy.
    async fn answer(&self, visit: &Visit, request: Request<Incoming>) -> Response<Outgoing> {
        let (head, body) = request.into_parts();
        let (method, path) = (&head.method, head.uri.path());
        let decoy = self.decoy.answer(method, path);
        // Several `Cookie` headers are one, as HTTP/2 cuts them (RFC 9113, section 8.2.3).
        let cookies: Vec<_> =
            head.headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).collect();
        let cookie = cookies.join("; ");
        let begins_link = head.version == Version::HTTP_2
            && method == Method::POST
            && is(&head.headers, "application/octet-stream");
        let form = read_form(method, &head.headers, body).await;
        let (form, body) = match form {
            Form::Text(text) => (Some(text), None),
            Form::None(body) => (None, Some(body)),
        };
        let presented =
            Presented { cookie: Some(&cookie), query: head.uri.query(), form: form.as_deref() };
        let found = self.carriers.find(presented);
        let admitted = || visit.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        // Who has shown a ticket knows what we are: nothing shows in how long the answer takes.
        if begins_link
            && found.ticket().is_none()
            && let Some(body) = body
            && let Some(admission) = admitted().take()
        {
            return self.begin_link(visit, admission, body).unwrap_or(decoy);
        }
        let now = (self.clock)();
        let admission = {
            let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            gate.check(now, visit.address, found.ticket())
        };
        if let Ok(admission) = admission {
            *admitted() = Some(admission);
        }
        decoy
    }

    fn begin_link(
        &self,
        visit: &Visit,
        admission: Admission,
        body: Incoming,
    ) -> Option<Response<Outgoing>> {
        let place = self.links.try_reserve().ok()?;
        let identity = Identity {
            exporter: visit.exporter,
            ticket_key_id: admission.key_id,
            key: self.key.clone(),
        };
        let rng = {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            ForgetfulRng::from_rng(&mut *rng)
        };
        let now = Instant::now().into_std();
        let link = Link::accept(now, rng, self.settings.clone(), identity).ok()?;
        let (outgoing, receiver) = mpsc::channel::<Bytes>(1);
        place.send(drive::start(link, body, outgoing));
        visit.is_link.send_replace(true);
        Response::builder()
            .status(StatusCode::OK)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Outgoing::Link(receiver))
            .ok()
    }
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front").field("decoy", &self.decoy).finish_non_exhaustive()
    }
}

/// One connection.
struct Visit {
    address: IpAddr,
    exporter: [u8; 32],
    admitted: Mutex<Option<Admission>>,
    is_link: watch::Sender<bool>,
}

impl Visit {
    fn new(stream: &TlsStream<Gathered>, address: IpAddr) -> Option<Self> {
        let mut exporter = [0; 32];
        let (_, tls) = stream.get_ref();
        tls.export_keying_material(&mut exporter, EXPORTER_LABEL, None).ok()?;
        let is_link = watch::Sender::new(false);
        Some(Self { address, exporter, admitted: Mutex::new(None), is_link })
    }

    /// Waits until a visit has been long enough; never ends for a link.
    async fn has_lasted(&self) {
        let mut is_link = self.is_link.subscribe();
        let becomes_link = is_link.wait_for(|is_link| *is_link);
        if timeout(LONGEST_VISIT, becomes_link).await.is_ok() {
            std::future::pending::<()>().await;
        }
    }
}

enum Form {
    Text(String),
    None(Incoming),
}

/// Reads the body of a form, if it is short enough to be one with a ticket.
async fn read_form(method: &Method, headers: &HeaderMap, body: Incoming) -> Form {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let fits = length.is_none_or(|length: usize| length <= LONGEST_FORM);
    if method != Method::POST || !is(headers, "application/x-www-form-urlencoded") || !fits {
        return Form::None(body);
    }
    let read = timeout(HEAD, Limited::new(body, LONGEST_FORM).collect()).await;
    let bytes = read.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    Form::Text(String::from_utf8_lossy(&bytes).into_owned())
}

fn is(headers: &HeaderMap, media_type: &str) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value == media_type)
}

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(30);
const HEAD_BYTES: usize = 64 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A browser asks again when it needs more.
const LONGEST_VISIT: Duration = Duration::from_secs(300);
const LONGEST_FORM: usize = 4 << 10;
const WAITING_LINKS: usize = 64;
const STREAMS: u32 = 100;
const WINDOW: u32 = 1 << 20;
