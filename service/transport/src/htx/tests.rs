use std::{net::SocketAddr, sync::Arc, time::Duration};

use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::htx::{
    Action, BucketLimits, Capabilities, CarrierPolicy, Closed, Gate, SecretKey, Settings, StreamId,
    TicketKey,
};
use rand::{SeedableRng, rngs::StdRng};
use rustls::{RootCertStore, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Clock, Decoy, DialError, Dialer, Front, FrontOptions, LinkEnd, Target, Template, client_tls,
    server_tls,
};

#[tokio::test]
async fn a_link_carries_a_mebibyte_each_way_whatever_carries_the_ticket() {
    for (seed, weights) in [(1, [1, 0, 0]), (2, [0, 1, 0]), (3, [0, 0, 1])] {
        let mut site = Site::open(weights).await;
        let (mut client, mut server) = site.link(seed).await;
        let (up, down) = (client.open().await.unwrap(), server.open().await.unwrap());
        let data: Vec<u8> = (0..1_u32 << 20).map(|number| (number % 251) as u8).collect();
        let (came, answered) = tokio::join!(
            exchange(&mut server, down, &data[..], up),
            exchange(&mut client, up, &data[..], down),
        );
        assert!(came == data && answered == data, "{weights:?}");
        client.close().await;
        assert_eq!(until_closed(&mut server).await, Closed::ByPeer(0));
        site.close().await;
    }
}

#[tokio::test]
async fn a_relay_is_known_by_its_key_and_a_stranger_is_not() {
    let mut site = Site::open([1, 1, 1]).await;
    let relay = SecretKey::from_bytes(&[9; 32]);
    site.dialer.identity = Some(relay.clone());
    let mut client = site.dialer.dial(&site.target, StdRng::seed_from_u64(1)).await.unwrap();
    let mut server = site.links.recv().await.unwrap();
    let up = |peer: &SecretKey| Action::Established {
        peer: *peer.public(),
        capabilities: Capabilities::default(),
    };
    assert_eq!(client.next().await, Some(up(&SecretKey::from_bytes(&[3; 32]))));
    assert_eq!(server.next().await, Some(up(&relay)));
    site.close().await;
}

#[tokio::test]
async fn a_bad_ticket_is_answered_like_none_byte_for_byte() {
    let site = Site::open([1, 1, 1]).await;
    let good = site.ticket(1);
    let used = site.ticket(2);
    assert_eq!(site.probe_http1(&cookie(&used)).await, site.probe_http1("").await);
    let other_key = TicketKey { public: *SecretKey::from_bytes(&[8; 32]).public(), ..ticket_key() };
    let forged = other_key.make_ticket(&mut StdRng::seed_from_u64(3), (24, 64), NOON).unwrap();
    let old = ticket_key()
        .make_ticket(&mut StdRng::seed_from_u64(4), (24, 64), NOON - 3 * 3_600)
        .unwrap();
    let unknown = TicketKey { id: [0; 8], ..ticket_key() };
    let unknown = unknown.make_ticket(&mut StdRng::seed_from_u64(5), (24, 64), NOON).unwrap();
    for (what, ticket) in [
        ("good", good.as_str()),
        ("used", &used),
        ("forged", &forged),
        ("old", &old),
        ("for another key", &unknown),
        ("nonsense", "AAAA"),
        ("empty", ""),
    ] {
        site.same_http1(what, &cookie(ticket)).await;
        site.same_http2(what, Some(ticket)).await;
    }
    site.close().await;
}

#[tokio::test]
async fn who_was_not_admitted_cannot_begin_a_link() {
    let mut site = Site::open([1, 0, 0]).await;
    let stranger = TicketKey { id: [0; 8], ..ticket_key() };
    let target = Target { ticket: stranger, ..site.target.clone() };
    let refused = site.dialer.dial(&target, StdRng::seed_from_u64(1)).await;
    assert!(matches!(refused, Err(DialError::Refused(status)) if status == 405));
    // One seed makes one ticket: the second use of it is a replay.
    let first = site.dialer.dial(&site.target, StdRng::seed_from_u64(2)).await;
    let again = site.dialer.dial(&site.target, StdRng::seed_from_u64(2)).await;
    assert!(first.is_ok() && matches!(again, Err(DialError::Refused(status)) if status == 405));
    assert!(site.links.recv().await.is_some());
    assert!(site.links.try_recv().is_err());
    site.close().await;
}

#[tokio::test]
async fn whoever_stands_between_with_another_tls_gets_no_link() {
    // The middle has a certificate that the client believes, and passes the plain bytes on.
    let site = Site::open([1, 0, 0]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let middle = listener.local_addr().unwrap();
    let (certificates, key) = site.certificate();
    let acceptor = tokio_rustls::TlsAcceptor::from(server_tls(certificates, key).unwrap());
    let (connector, front) =
        (TlsConnector::from(Arc::clone(&site.dialer.tls)), site.target.address);
    let relayed = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut client = acceptor.accept(stream).await.unwrap();
        let stream = TcpStream::connect(front).await.unwrap();
        let name = NAME.try_into().unwrap();
        let mut front = connector.connect(name, stream).await.unwrap();
        // Ends with the connections.
        drop(tokio::io::copy_bidirectional(&mut client, &mut front).await);
    });
    let target = Target { address: middle, ..site.target.clone() };
    let mut client = site.dialer.dial(&target, StdRng::seed_from_u64(1)).await.unwrap();
    let closed = timeout(Duration::from_secs(20), client.next()).await.unwrap();
    assert!(matches!(closed, Some(Action::Closed(_))), "{closed:?}");
    relayed.abort();
    site.close().await;
}

#[tokio::test]
async fn what_is_not_tls_1_3_gets_nowhere() {
    let site = Site::open([1, 0, 0]).await;
    let mut stream = TcpStream::connect(site.target.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: front.example\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    // A TLS alert and no word of HTTP.
    assert!(answer.len() < 16 && answer.first() == Some(&0x15), "{answer:?}");

    let provider = rustls::crypto::ring::default_provider();
    let old = rustls::ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(site.roots())
        .with_no_client_auth();
    let stream = TcpStream::connect(site.target.address).await.unwrap();
    let connected =
        TlsConnector::from(Arc::new(old)).connect(NAME.try_into().unwrap(), stream).await;
    assert!(connected.is_err());
    site.close().await;
}

#[tokio::test]
async fn the_client_hello_is_the_recorded_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = tokio::spawn(async move {
        let tls = client_tls(RootCertStore::empty()).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        // The other side only listens.
        drop(TlsConnector::from(tls).connect(NAME.try_into().unwrap(), stream).await);
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = [0; 5];
    stream.read_exact(&mut head).await.unwrap();
    let mut record = vec![0; u16::from_be_bytes([head[3], head[4]]).into()];
    stream.read_exact(&mut record).await.unwrap();
    drop(stream);
    client.await.unwrap();
    let described = describe_client_hello(&record);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/htx/client-hello.txt");
    if std::env::var_os("FIELDPOST_WRITE_VECTORS").is_some() {
        std::fs::write(path, &described).unwrap();
    }
    assert_eq!(described, std::fs::read_to_string(path).unwrap());
}

#[test]
fn a_decoy_is_a_folder_without_what_is_hidden() {
    let root = std::env::temp_dir().join(format!("fieldpost-decoy-{}", std::process::id()));
    std::fs::create_dir_all(root.join("about/.git")).unwrap();
    assert!(matches!(Decoy::folder(&root), Err(super::DecoyError::NoIndex { .. })));
    for (name, text) in [
        ("index.html", "home"),
        ("about/index.html", "about"),
        ("about/me.css", "css"),
        (".secret", "no"),
        ("about/.git/config", "no"),
    ] {
        std::fs::write(root.join(name), text).unwrap();
    }
    let decoy = Decoy::folder(&root).unwrap();
    let status = |path| decoy.answer(&hyper::Method::GET, path).status().as_u16();
    for (path, expected) in [
        ("/", 200),
        ("/index.html", 200),
        ("/about/", 200),
        ("/about/me.css", 200),
        ("/.secret", 404),
        ("/about/.git/config", 404),
        ("/../etc/passwd", 404),
        ("/about", 404),
    ] {
        assert_eq!(status(path), expected, "{path}");
    }
    assert_eq!(decoy.answer(&hyper::Method::PUT, "/").status(), 405);
    std::fs::write(root.join("large.bin"), vec![0; (1 << 20) + 1]).unwrap();
    assert!(matches!(Decoy::folder(&root), Err(super::DecoyError::TooLarge { .. })));
    std::fs::remove_dir_all(root).unwrap();
}

/// A front on this machine, and all that is needed to dial it.
struct Site {
    target: Target,
    dialer: Dialer,
    links: mpsc::Receiver<LinkEnd>,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
    certificate: rcgen::CertifiedKey<rcgen::KeyPair>,
}

impl Site {
    async fn open(weights: [u8; 3]) -> Self {
        let certificate = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let carriers = CarrierPolicy::new(["__Host-sid", "v", "token"], weights, (24, 64)).unwrap();
        let limits = BucketLimits { burst: 1_000, ..BucketLimits::default() };
        let mut gate = Gate::new(&mut StdRng::seed_from_u64(1), limits);
        gate.add_key(ticket_key().id, SecretKey::from_bytes(&[7; 32]));
        let clock: Clock = Arc::new(|| Timestamp::try_from(NOON * 1_000).unwrap());
        let key = SecretKey::from_bytes(&[3; 32]);
        let noise = *key.public();
        let der = (vec![certificate.cert.der().clone()], private_key(&certificate));
        let (front, links) = Front::new(FrontOptions {
            tls: server_tls(der.0, der.1).unwrap(),
            decoy: Decoy::built_in("Front"),
            gate,
            carriers: carriers.clone(),
            key,
            settings: Settings::default(),
            clock: Arc::clone(&clock),
            rng: super::ForgetfulRng::seed_from_u64(2),
            connections: 16,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = watch::Sender::new(false);
        let served = tokio::spawn(front.serve(listener, stop.subscribe()));
        let mut roots = RootCertStore::empty();
        roots.add(certificate.cert.der().clone()).unwrap();
        let dialer = Dialer {
            tls: client_tls(roots).unwrap(),
            template: Template::default(),
            settings: Settings::default(),
            identity: None,
            clock,
        };
        let target = Target {
            address,
            server_name: NAME.into(),
            noise,
            ticket: ticket_key(),
            carriers,
            capabilities: Capabilities::default(),
        };
        Self { target, dialer, links, stop, served, certificate }
    }

    async fn link(&mut self, seed: u64) -> (LinkEnd, LinkEnd) {
        let dialled = self.dialer.dial(&self.target, StdRng::seed_from_u64(seed)).await;
        let (mut client, mut server) = (dialled.unwrap(), self.links.recv().await.unwrap());
        for end in [&mut client, &mut server] {
            assert!(matches!(end.next().await, Some(Action::Established { .. })));
        }
        (client, server)
    }

    async fn close(self) {
        self.stop.send_replace(true);
        self.served.await.unwrap();
    }

    fn ticket(&self, seed: u64) -> String {
        let mut rng = StdRng::seed_from_u64(seed);
        ticket_key().make_ticket(&mut rng, (24, 64), NOON).unwrap()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.cert.der().clone()).unwrap();
        roots
    }

    fn certificate(
        &self,
    ) -> (Vec<rustls::pki_types::CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.cert.der().clone()], private_key(&self.certificate))
    }

    /// All bytes that come back over HTTP/1.1 for requests with these additional headers.
    async fn probe_http1(&self, headers: &str) -> Vec<u8> {
        let mut stream = self.connect("http/1.1").await;
        let mut answers = Vec::new();
        for (line, close) in [
            ("GET / HTTP/1.1", ""),
            ("GET /missing?v=1 HTTP/1.1", ""),
            ("HEAD / HTTP/1.1", ""),
            ("POST / HTTP/1.1\r\nContent-Length: 0", "Connection: close\r\n"),
        ] {
            let request = format!("{line}\r\nHost: {NAME}\r\n{headers}{close}\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
        }
        // An end without TLS' goodbye is an end, too.
        drop(stream.read_to_end(&mut answers).await);
        assert_eq!(answers.windows(9).filter(|part| part == b"HTTP/1.1 ").count(), 4);
        answers
    }

    /// What comes back on a stream of HTTP/2: the payloads of its frames, as they are.
    async fn probe_http2(&self, ticket: Option<&str>) -> Vec<(u8, u8, Vec<u8>)> {
        let mut stream = self.connect("h2").await;
        let mut block = vec![0x82, 0x87, 0x84];
        literal(&mut block, 1, NAME);
        if let Some(ticket) = ticket {
            literal(&mut block, 32, &format!("__Host-sid={ticket}"));
        }
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        bytes.extend(&(block.len() as u32).to_be_bytes()[1..]);
        bytes.extend([1, 5, 0, 0, 0, 1]);
        bytes.extend(block);
        stream.write_all(&bytes).await.unwrap();
        let mut frames = Vec::new();
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await.unwrap();
            if head[5..] == [0, 0, 0, 1] {
                frames.push((head[3], head[4], payload));
                if head[4] & 1 == 1 {
                    return frames;
                }
            }
        }
    }

    async fn same_http1(&self, what: &str, headers: &str) {
        // The header `Date` has the second of the answer.
        for _ in 0..20 {
            let (with, without) = (self.probe_http1(headers).await, self.probe_http1("").await);
            if with == without {
                return;
            }
        }
        panic!("{what}: another answer over HTTP/1.1");
    }

    async fn same_http2(&self, what: &str, ticket: Option<&str>) {
        for _ in 0..20 {
            let (with, without) = (self.probe_http2(ticket).await, self.probe_http2(None).await);
            if with == without {
                return;
            }
        }
        panic!("{what}: another answer over HTTP/2");
    }

    async fn connect(&self, alpn: &str) -> TlsStream<TcpStream> {
        let mut tls = (*self.dialer.tls).clone();
        tls.alpn_protocols = vec![alpn.into()];
        let stream = TcpStream::connect::<SocketAddr>(self.target.address).await.unwrap();
        TlsConnector::from(Arc::new(tls)).connect(NAME.try_into().unwrap(), stream).await.unwrap()
    }
}

/// Sends `data` on one stream and reads another until it ends.
async fn exchange(end: &mut LinkEnd, out: StreamId, data: &[u8], inward: StreamId) -> Vec<u8> {
    let (mut left, mut came, mut has_ended, mut has_finished) = (data, Vec::new(), false, false);
    while !(has_ended && has_finished) {
        let room = end.room(out).await.unwrap();
        let (piece, rest) = left.split_at(left.len().min(room));
        if !piece.is_empty() {
            end.send(out, piece.to_vec()).await.unwrap();
            left = rest;
        }
        if left.is_empty() && !has_finished {
            end.finish(out).await.unwrap();
            has_finished = true;
            continue;
        }
        match timeout(Duration::from_secs(10), end.next()).await.unwrap() {
            Some(Action::Data { stream, data }) => {
                assert_eq!(stream, inward);
                end.consumed(stream, data.len()).await.unwrap();
                came.extend(data);
            }
            Some(Action::Ended(stream)) => {
                assert_eq!(stream, inward);
                has_ended = true;
            }
            Some(Action::Writable(_) | Action::RoundTrip(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    came
}

async fn until_closed(end: &mut LinkEnd) -> Closed {
    loop {
        match timeout(Duration::from_secs(10), end.next()).await.unwrap() {
            Some(Action::Closed(closed)) => return closed,
            Some(_) => {}
            None => panic!("it ended without a reason"),
        }
    }
}

/// A header that is written out (RFC 7541, section 6.2.2), under a name of the static table.
fn literal(block: &mut Vec<u8>, name: u8, value: &str) {
    match name {
        0..15 => block.push(name),
        _ => block.extend([0x0f, name - 15]),
    }
    match value.len() {
        length @ 0..127 => block.push(length as u8),
        length => {
            let rest = length - 127;
            block.push(127);
            if rest >= 128 {
                block.extend([(rest % 128) as u8 | 0x80, (rest / 128) as u8]);
            } else {
                block.push(rest as u8);
            }
        }
    }
    block.extend(value.as_bytes());
}

/// A ClientHello without what is random or shuffled, as lines of text.
fn describe_client_hello(record: &[u8]) -> String {
    let mut rest = &record[4..];
    let mut take = |length: usize| {
        let (front, back) = rest.split_at(length);
        rest = back;
        front
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let mut lines = vec![format!("version {}", hex(take(2)))];
    take(32);
    let session = number(take(1));
    take(session);
    lines.push(format!("session id of {session} bytes"));
    let length = number(take(2));
    lines.push(format!("ciphers {}", hex(take(length))));
    let length = number(take(1));
    lines.push(format!("compression {}", hex(take(length))));
    let mut left = number(take(2));
    let mut extensions = Vec::new();
    while left > 0 {
        let (kind, length) = (number(take(2)), number(take(2)));
        let mut content = take(length).to_vec();
        if kind == 0x33 {
            // Key shares: a list of group, length, and a key that is random.
            let mut at = 2;
            while at < content.len() {
                let length = number(&content[at + 2..at + 4]);
                content[at + 4..at + 4 + length].fill(0);
                at += 4 + length;
            }
        }
        extensions.push(format!("extension {kind:04x} {}", hex(&content)));
        left -= 4 + length;
    }
    extensions.sort();
    lines.extend(extensions);
    lines.join("\n") + "\n"
}

fn cookie(ticket: &str) -> String {
    format!("Cookie: __Host-sid={ticket}\r\n")
}

fn private_key(certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) -> PrivateKeyDer<'static> {
    PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap()
}

fn ticket_key() -> TicketKey {
    TicketKey { id: *b"frontkey", public: *SecretKey::from_bytes(&[7; 32]).public() }
}

const NAME: &str = "front.example";
const NOON: u64 = 1_800_000_000;
