use std::{net::SocketAddr, path::PathBuf};

use fieldpost_mixnet::{
    delay::Pace,
    directory::{Authority, DescriptorError, RelayId},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use crate::htx::Decoy;

/// How a node is set up.
pub struct HtxOptions {
    /// Where it listens. A gateway behind NAT listens nowhere; a relay must.
    pub listen: Option<SocketAddr>,
    /// Where others reach it, at most eight. Empty: where it listens, if that is one address.
    pub advertise: Vec<SocketAddr>,
    /// The name that its TLS certificate is for, in lower case.
    pub server_name: String,
    /// Its TLS certificate. Without one, it makes one for [`server_name`](Self::server_name) and
    /// signs it itself: links are as safe, but strangers see a site whose certificate nobody
    /// vouches for.
    pub tls: Option<HtxTls>,
    /// What strangers see.
    pub decoy: Decoy,
    /// Whether it relays for others.
    pub relays: bool,
    /// Whose it is: relays with one label are one operator's. 1 to 64 bytes.
    pub operator: String,
    /// The autonomous system that it is in, if known.
    pub autonomous_system: Option<u32>,
    /// The country that it is in, two capital letters, if known.
    pub country: Option<[u8; 2]>,
    /// How many packets a second it wants to relay.
    pub capacity: u32,
    /// Relays that it keeps links to, at most four, if it has no address. Empty: it takes the first
    /// of the active document in an order of its own.
    pub through: Vec<RelayId>,
    /// The longest route, the receiving gateway counted in: 2 to 5. Routes have three relays if the
    /// document has as many and this allows it, else as many as there are.
    pub max_hops: usize,
    /// Delays at relays, and the mean time between two packets of the node's own messages. Zero is
    /// no delay, and no pacing.
    pub pace: Pace,
    /// Whether this is a test: level 3 is declared whatever the document.
    pub lab: bool,
    /// Where epoch secrets and replay logs are kept over a restart, best a tmpfs. It is made if it
    /// is not there, without access for others. Without it, a restart begins with new keys, and
    /// nothing finds the node before a document has them.
    pub secrets_dir: Option<PathBuf>,
    /// Whose documents it believes.
    pub authority: Authority,
    /// Signed documents that it had before, oldest first, such as the genesis document. Those that
    /// are not good any more are left out.
    pub documents: Vec<Vec<u8>>,
}

/// A TLS certificate with its key.
#[derive(Debug)]
pub struct HtxTls {
    /// The certificate and those that it rests on.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// Why a node does not start.
#[derive(Debug, Error)]
pub enum HtxError {
    /// The socket could not be bound.
    #[error("cannot listen on {listen}: {source}; choose another address or end who uses it")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The secrets folder.
    #[error("cannot keep epoch secrets in the secrets folder: {0}")]
    Secrets(#[from] std::io::Error),
    /// The TLS certificate.
    #[error("the TLS certificate for {name} is of no use: {reason}")]
    Tls {
        /// Whose.
        name: String,
        /// Why.
        reason: String,
    },
    /// Nobody would believe its descriptor.
    #[error("the node cannot describe itself: {0}")]
    Descriptor(#[from] DescriptorError),
    /// A route of that length.
    #[error("a longest route of {max_hops} hops: expected 2 to 5")]
    Hops {
        /// How many were asked for.
        max_hops: usize,
    },
}
