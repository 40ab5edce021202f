//! The HTTP server: accepts connections, with TLS or without, and lets go of them in good order.
//!
//! Every wait has a deadline: the TLS handshake 10 s, the head of a request and the idle time
//! between two 30 s, a write that the client does not take 60 s. There are at most
//! [`Server::connections`] connections at once, sockets included; one more gets a bare 503 and is
//! closed.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use futures_util::FutureExt;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::{config::Config, telemetry::metrics as names, tls_files::TlsFiles};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Also how long a kept-alive connection may idle: hyper has one timer for both.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// The head of a request and one read of its body.
const MAX_BUFFER_BYTES: usize = 64 * 1024;
/// The pause after a failure to accept, such as no file descriptor being left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n\
    Content-Length: 0\r\nConnection: close\r\n\r\n";

/// One listener and what is served on it.
pub struct Server {
    /// Accepts the connections.
    pub listener: TcpListener,
    /// Answers the requests.
    pub app: Router,
    /// Terminates TLS, if the listener speaks it.
    pub tls: Option<TlsAcceptor>,
    /// How many connections there may be at once.
    pub connections: usize,
    /// Ends connections, whatever they do.
    pub cut_off: CancellationToken,
}

impl Server {
    /// Serves until `stop`, then refuses new connections, lets requests finish, and returns when
    /// the last connection has ended or `grace` is over. Sockets have to end by themselves: who
    /// upgraded a connection owns it.
    pub async fn run(self, stop: CancellationToken, grace: Duration) {
        let permits = Arc::new(Semaphore::new(self.connections));
        let all = u32::try_from(self.connections).unwrap_or(u32::MAX);
        while let Some(accepted) = stop.run_until_cancelled(self.listener.accept()).await {
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                metrics::counter!(names::HTTP_CONNECTIONS_REFUSED_TOTAL).increment(1);
                // In plain text; behind TLS the closed connection has to speak for itself.
                if self.tls.is_none() {
                    let _ = stream.try_write(REFUSAL);
                }
                continue;
            };
            let _ = stream.set_nodelay(true);
            let stream = Connection::new(stream, permit);
            let (app, tls, stop) = (self.app.clone(), self.tls.clone(), stop.clone());
            let work = async move {
                match tls {
                    None => serve(stream, peer, app, stop).await,
                    Some(tls) => match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
                        Ok(Ok(stream)) => serve(stream, peer, app, stop).await,
                        Ok(Err(_)) | Err(_) => {
                            metrics::counter!(names::TLS_HANDSHAKES_FAILED_TOTAL).increment(1);
                        }
                    },
                }
            };
            let cut_off = self.cut_off.clone();
            tokio::spawn(async move { cut_off.run_until_cancelled(work).await });
        }
        drop(self.listener);
        // Each connection, upgraded or not, holds a permit until it is closed.
        if timeout(grace, permits.acquire_many(all)).await.is_err() {
            let open = self.connections - permits.available_permits();
            tracing::warn!(connections.open = open, "connections were cut off");
        }
    }
}

/// Answers the requests of one connection; after `stop`, only the one that has begun.
async fn serve<S>(stream: S, peer: SocketAddr, app: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        app.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // Broken connections are the client's affair.
    if let Err(error) = outcome {
        tracing::debug!(%error, client.address = %peer, "a connection ended early");
    }
}

/// Reads certificate and key for TLS, if the operator gave any.
///
/// # Errors
///
/// Says which file cannot be used and why.
pub fn tls(config: &Config) -> anyhow::Result<Option<TlsAcceptor>> {
    let files = TlsFiles::given("--tls", config.tls_cert.as_deref(), config.tls_key.as_deref());
    let Some(files) = files else { return Ok(None) };
    let mut settings = files.settings()?;
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(settings))))
}

/// A client's connection: counted while it lives, upgraded or not, and cut when the client takes
/// nothing of what we write.
struct Connection {
    stream: TcpStream,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TcpStream, permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!(names::HTTP_CONNECTIONS).increment(1);
        Self { stream, stalled: None, _permit: permit }
    }

    fn watch_write<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let stalled = self.stalled.get_or_insert_with(|| {
            Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_TIMEOUT))
        });
        ready!(stalled.poll_unpin(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        metrics::gauge!(names::HTTP_CONNECTIONS).decrement(1);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch_write(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch_write(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{PrivateKeyDer, ServerName, pem::PemObject},
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Notify,
        task::JoinHandle,
    };

    use super::*;

    #[tokio::test]
    async fn one_connection_too_many_gets_503_and_a_closed_one_makes_room() {
        let (address, stop, server) = start(1, None, greeting()).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        assert!(ask(&mut first).await.starts_with("HTTP/1.1 200"));
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut refusal = String::new();
        second.read_to_string(&mut refusal).await.unwrap();
        assert!(refusal.starts_with("HTTP/1.1 503"), "{refusal}");
        assert!(refusal.contains("Retry-After"), "{refusal}");
        drop(first);
        // The server notices the close in its own time, so ask until it has.
        loop {
            let mut third = TcpStream::connect(address).await.unwrap();
            if ask(&mut third).await.starts_with("HTTP/1.1 200") {
                break;
            }
        }
        stop.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_request_that_has_begun_is_answered_after_stop() {
        let (began, may_end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let app = Router::new().route("/", {
            let (began, may_end) = (began.clone(), may_end.clone());
            get(async move || {
                began.notify_one();
                may_end.notified().await;
                "done"
            })
        });
        let (address, stop, server) = start(8, None, app).await;
        let asking = tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            ask(&mut stream).await
        });
        began.notified().await;
        stop.cancel();
        may_end.notify_one();
        assert!(asking.await.unwrap().ends_with("done"));
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn speaks_tls_with_the_operators_certificate() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key =
            PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
        let settings = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let tls = TlsAcceptor::from(Arc::new(settings));
        let (address, stop, server) = start(8, Some(tls), greeting()).await;

        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        assert!(ask(&mut stream).await.ends_with("hello"));
        drop(stream);
        stop.cancel();
        server.await.unwrap();
    }

    fn greeting() -> Router {
        Router::new().route("/", get(async || "hello"))
    }

    async fn start(
        connections: usize,
        tls: Option<TlsAcceptor>,
        app: Router,
    ) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = Server { listener, app, tls, connections, cut_off: CancellationToken::new() };
        (address, stop.clone(), tokio::spawn(server.run(stop, Duration::from_secs(60))))
    }

    async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
        // A refused connection may be closed before the request is written.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer).await.unwrap_or(0);
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }
}
