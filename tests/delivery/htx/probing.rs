//! Strangers at a relay's listener: what they say never changes what they see.

use std::{
    cell::Cell,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use fieldpost_transport::htx::directory::Descriptor;
use rand::{SeedableRng, rngs::StdRng};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::now;

/// A relay's front, and what its descriptor says of it to everybody.
pub(crate) struct Front<'d> {
    port: u16,
    descriptor: &'d Descriptor,
    /// How many were made.
    tickets: Cell<u64>,
}

/// What a client was answered: status, headers and body, byte for byte.
type Answer = String;

impl<'d> Front<'d> {
    pub(crate) fn new(port: u16, descriptor: &'d Descriptor) -> Self {
        Self { port, descriptor, tickets: Cell::new(0) }
    }

    /// Tries all of it.
    pub(crate) fn probe(&self) {
        self.plain_visits();
        self.tickets();
        self.openssl();
        self.cut_handshakes();
        self.garbage_instead_of_noise();
        // All of it left the relay as it was.
        self.plain_visits();
    }

    fn plain_visits(&self) {
        let home = self.curl(&["--http2"], "/");
        assert!(home.contains("<html") && home.starts_with("HTTP/2 200"), "{home}");
        for pretence in [["-H", "Cookie: a=b; c=d"], ["-A", "probe"], ["-H", "Accept: x/y"]] {
            let pretends = || self.curl(&[&["--http2"][..], &pretence].concat(), "/");
            self.same(&format!("{pretence:?}"), pretends, || self.curl(&["--http2"], "/"));
        }
        let old = self.curl(&["--http1.1"], "/");
        assert!(old.contains("<html") && old.starts_with("HTTP/1.1 200"), "{old}");
        let missing = self.curl(&["--http2"], "/nothing-here");
        assert!(missing.starts_with("HTTP/2 404"), "{missing}");
    }

    /// Tickets of every sort, wherever the front takes them.
    fn tickets(&self) {
        let hour = 3_600;
        let seconds = now().as_millis() / 1_000;
        let used = self.ticket(seconds);
        self.curl(&["--http2", "-H", &self.cookie(&used)], "/");
        let whole = self.ticket(seconds);
        let altered = {
            let mut text = whole.clone().into_bytes();
            text[120] = if text[120] == b'A' { b'B' } else { b'A' };
            String::from_utf8(text).expect("it is text")
        };
        self.same_everywhere("--http2", "good", || self.ticket(seconds));
        for (what, ticket) in [
            ("used before", used.clone()),
            ("of the hour before last", self.ticket(seconds - 2 * hour)),
            ("of the hour after next", self.ticket(seconds + 2 * hour)),
            ("of yesterday", self.ticket(seconds - 24 * hour)),
            ("altered", altered),
            ("cut short", whole[..whole.len() / 2].to_owned()),
            ("too long", format!("{whole}{whole}")),
            ("nonsense", "A".repeat(200)),
            ("empty", String::new()),
        ] {
            self.same_everywhere("--http2", what, || ticket.clone());
            self.begins_no_link("--http2", what, &ticket);
        }
        self.same_everywhere("--http1.1", "used before", || used.clone());
        self.begins_no_link("--http1.1", "good, without HTTP/2", &self.ticket(seconds));
    }

    /// The answers to a ticket in a cookie, a query and a form are those to what carries none.
    fn same_everywhere(&self, http: &str, what: &str, ticket: impl Fn() -> String) {
        let [_, query, field] = self.descriptor.carriers.names();
        let none = || self.curl(&[http], "/");
        self.same(what, || self.curl(&[http, "-H", &self.cookie(&ticket())], "/"), none);
        self.same(what, || self.curl(&[http], &format!("/?{query}={}", ticket())), none);
        self.same(
            what,
            || self.curl(&[http, "-d", &format!("{field}={}", ticket())], "/"),
            || self.curl(&[http, "-d", "x=y"], "/"),
        );
    }

    /// Whoever goes on as our clients do, on one connection, sees the site, too.
    fn begins_no_link(&self, http: &str, what: &str, ticket: &str) {
        let with_cookie = ["-H", &self.cookie(ticket)];
        self.same(
            what,
            || self.page_then_link(http, &with_cookie, "x"),
            || self.page_then_link(http, &[], "x"),
        );
    }

    /// A visit with these headers, then, on the same connection, what begins a link.
    fn page_then_link(&self, http: &str, headers: &[&str], body: &str) -> Answer {
        let begins = ["-H", "Content-Type: application/octet-stream", "--data-binary", body];
        let next = ["--next", "-sik", "--max-time", "20", http];
        let url = self.url("/");
        let output = self.run_curl(&[&[http][..], headers, &[&url], &next, &begins].concat(), "/");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The header `Date` has the second of the answer, so two may differ by it.
    fn same(&self, what: &str, with: impl Fn() -> Answer, without: impl Fn() -> Answer) {
        for _ in 0..20 {
            if with() == without() {
                return;
            }
        }
        panic!("who shows {what} gets another answer:\n{}\n{}", with(), without());
    }

    fn openssl(&self) {
        let s_client = |more: &[&str]| -> Output {
            let at = format!("127.0.0.1:{}", self.port);
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &at]).args(more).stdin(Stdio::null());
            command.output().expect("openssl runs")
        };
        let said = s_client(&["-alpn", "h2,http/1.1"]);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains("TLSv1.3") && said.contains("ALPN protocol: h2"), "{said}");
        let old = s_client(&["-tls1_2"]);
        assert!(!old.status.success(), "TLS 1.2 is no language of the front: {old:?}");
    }

    /// Handshakes of TLS that end in the middle, and bytes that are none.
    fn cut_handshakes(&self) {
        let (hello, _) = self.client_hello();
        for length in [1, 4, 5, 6, 60, hello.len() / 2, hello.len() - 1] {
            let answer = self.say(&hello[..length]);
            assert!(answer.len() <= ALERT, "after {length} bytes of a hello: {answer:?}");
        }
        let mut altered = hello.clone();
        altered[5] = 0x77;
        for bytes in [&[0x55; 512][..], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", &altered] {
            let answer = self.say(bytes);
            assert!(answer.len() <= ALERT, "an alert at most: {answer:?}");
        }
        // The front has said its part, and the client goes away or says nonsense.
        for finish in [&[][..], &[0x17, 3, 3, 0, 64], &[0x55; 64]] {
            let (hello, mut tls) = self.client_hello();
            let mut stream = self.connect();
            stream.write_all(&hello).expect("it takes bytes");
            while tls.is_handshaking() && !tls.wants_write() {
                if tls.read_tls(&mut stream).expect("the front answers") == 0 {
                    break;
                }
                tls.process_new_packets().expect("a good answer");
            }
            // A part of the client's last message, then something else.
            let mut last = Vec::new();
            tls.write_tls(&mut last).expect("memory takes it");
            stream.write_all(&last[..last.len() / 2]).expect("it takes bytes");
            stream.write_all(finish).expect("it takes bytes");
            let said = end_of(stream);
            assert!(!contains(&said, b"HTTP"), "nothing is served: {said:?}");
        }
    }

    /// Whoever holds a good ticket gets as far as the inner handshake, and no further without the
    /// relay's key: cut or nonsense, it ends without a word.
    fn garbage_instead_of_noise(&self) {
        let seconds = now().as_millis() / 1_000;
        for length in [0, 7, 40, 1_250, 60_000] {
            let with_cookie = ["-H", &self.cookie(&self.ticket(seconds))];
            // How the stream ends is no matter; nothing comes before its end.
            let said = self.page_then_link("--http2", &with_cookie, &"\u{7f}".repeat(length));
            assert_eq!(said.matches("HTTP/2 200").count(), 2, "the ticket is good: {said}");
            let (_, link) = said.rsplit_once("\r\n\r\n").expect("heads end");
            assert!(link.is_empty(), "not a byte is answered: {link:?}");
        }
    }

    /// A new ticket of this time.
    fn ticket(&self, seconds: u64) -> String {
        self.tickets.set(self.tickets.get() + 1);
        let mut rng = StdRng::seed_from_u64(self.tickets.get() << 16 | u64::from(self.port));
        let padding = self.descriptor.carriers.padding();
        self.descriptor.ticket.make_ticket(&mut rng, padding, seconds).expect("a front's key")
    }

    fn cookie(&self, ticket: &str) -> String {
        let [cookie, ..] = self.descriptor.carriers.names();
        format!("Cookie: {cookie}={ticket}")
    }

    fn curl(&self, more: &[&str], path: &str) -> Answer {
        let output = self.run_curl(more, path);
        assert!(output.status.success(), "{more:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn run_curl(&self, more: &[&str], path: &str) -> Output {
        let mut command = Command::new("curl");
        command.args(["-sik", "--max-time", "20"]).args(more).arg(self.url(path));
        command.output().expect("curl runs")
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        stream
    }

    /// What comes back after these bytes and an end.
    fn say(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect();
        stream.write_all(bytes).expect("it takes bytes");
        end_of(stream)
    }

    fn client_hello(&self) -> (Vec<u8>, ClientConnection) {
        let provider = rustls::crypto::ring::default_provider();
        let mut config = ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.dangerous().set_certificate_verifier(Arc::new(Trusting));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = "localhost".try_into().expect("a name");
        let mut tls = ClientConnection::new(config.into(), name).expect("a client");
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).expect("memory takes it");
        (hello, tls)
    }
}

fn end_of(mut stream: TcpStream) -> Vec<u8> {
    stream.shutdown(Shutdown::Write).unwrap_or_default();
    let mut answer = Vec::new();
    // A reset is an end, too.
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("the front holds on to what has ended")
        }
        _ => answer,
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Believes every certificate: relays sign their own.
#[derive(Debug)]
struct Trusting;

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A record with an alert.
const ALERT: usize = 7;
const PATIENCE: Duration = Duration::from_secs(30);
