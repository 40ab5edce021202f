use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider,
        ring::{cipher_suite as suite, default_provider, kx_group},
        verify_tls13_signature,
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    version::TLS13,
};

use super::exchange::X25519;

/// What a client looks like on the wire, beyond what rustls decides (HTX reference, section 1.4).
///
/// The default follows a current Chromium in its HTTP/2 settings and headers. The ClientHello is
/// rustls' own: it can be told from a browser's by who compares more than versions and ALPN.
#[derive(Clone, Debug)]
pub struct Template {
    /// The HTTP/2 window of a stream, in bytes.
    pub stream_window: u32,
    /// The HTTP/2 window of a connection, in bytes.
    pub connection_window: u32,
    /// The size of the table of known headers, in bytes.
    pub header_table: u32,
    /// The longest list of headers that is taken, in bytes.
    pub header_list: u32,
    /// Headers of each request, in order.
    pub headers: Vec<(&'static str, &'static str)>,
}

impl Default for Template {
    fn default() -> Self {
        Self {
            stream_window: 6_291_456,
            connection_window: 15_728_640,
            header_table: 65_536,
            header_list: 262_144,
            headers: vec![
                (
                    "user-agent",
                    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
                     Chrome/149.0.0.0 Safari/537.36",
                ),
                ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
                ("accept-language", "en-US,en;q=0.9"),
            ],
        }
    }
}

/// TLS of a client: version 1.3 alone, no resumption, no early data, ALPN like a browser's.
///
/// # Errors
///
/// rustls refuses the provider, which is a fault of the build.
pub fn client_tls(roots: RootCertStore) -> Result<Arc<ClientConfig>, rustls::Error> {
    let builder =
        ClientConfig::builder_with_provider(provider().into()).with_protocol_versions(&[&TLS13])?;
    Ok(finished(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// The same towards relays, whose certificates nobody need vouch for.
///
/// Who is at the other end, the inner handshake shows: the relay has to hold the Noise key of its
/// signed descriptor, on this very TLS connection (HTX reference, section 1.3). Somebody between
/// learns that there is a link, and nothing that is on it.
///
/// # Errors
///
/// As [`client_tls`].
pub fn client_tls_of_relays() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?;
    let any = Arc::new(AnyCertificate(provider));
    Ok(finished(builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()))
}

fn finished(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = alpn();
    // Each connection has fresh randomness; a resumed one could be tied to an earlier one.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Takes any certificate whose key signed the handshake.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS of a front: version 1.3 alone, no tickets for resumption, no early data.
///
/// # Errors
///
/// The certificate and the key do not belong together.
pub fn server_tls(
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider().into())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = alpn();
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Suites are offered, and chosen, in the order of Chromium; those of TLS 1.2 are only for show.
fn provider() -> CryptoProvider {
    let cipher_suites = vec![
        suite::TLS13_AES_128_GCM_SHA256,
        suite::TLS13_AES_256_GCM_SHA384,
        suite::TLS13_CHACHA20_POLY1305_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    let kx_groups = vec![X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    CryptoProvider { cipher_suites, kx_groups, ..default_provider() }
}

fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}
