use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer},
    version::TLS13,
};

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
    let mut config = ClientConfig::builder_with_provider(default_provider().into())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn();
    // Each connection has fresh randomness; a resumed one could be tied to an earlier one.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
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
    let mut config = ServerConfig::builder_with_provider(default_provider().into())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = alpn();
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn alpn() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}
