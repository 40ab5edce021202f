//! The `mesh` transport: direct links between gateways, over QUIC.
//!
//! The core is [`fieldpost_peering`], the links are iroh's, the clock is tokio's. Each replica is an
//! endpoint with a node key of its own. It finds others on the local network by mDNS and elsewhere by
//! the addresses it is given; relays are used only if they are named, and nothing is looked up at
//! third parties (design, sections 4 and 7).

mod addresses;
mod discovery;
mod drive;
mod files;
mod link;
mod notices;
mod probe;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use fieldpost_envelope::{
    GatewayId, SignedCertificate, SignedEnvelope, SignedRoster, Timestamp, limits,
};
pub use fieldpost_peering::{Counters as MeshCounters, Refusal as MeshRefusal};
use fieldpost_peering::{Identity, NodeId, Peering, Target};
use iroh::{
    Endpoint, RelayMode, RelayUrl, SecretKey,
    endpoint::{
        IdleTimeout, NetReportConfig, PortmapperConfig, QuicTransportConfig, VarInt, presets,
    },
};
use rand::{SeedableRng, rngs::StdRng};
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use self::{
    addresses::{Bootstrap, own_addresses},
    discovery::Discovery,
    drive::{Driver, Input},
};
use crate::{
    Capabilities, FileError, FileFetch, FileSource, HeardRoster, SendError, Status, Transport,
};

/// How an endpoint is set up.
#[derive(Clone, Debug, Default)]
pub struct MeshOptions {
    /// Where it listens; any port of any interface if not said.
    pub listen: Option<SocketAddr>,
    /// Others that are dialled and kept: `NODE@HOST:PORT`, `NODE@https://RELAY`, or `NODE` alone,
    /// which is then looked for at the own relays. `NODE` is the node key as
    /// [`MeshTransport::own_addresses`] of the other prints it. An address without a node key is no
    /// use: the key is what a link proves.
    pub bootstrap: Vec<String>,
    /// Relay servers, as URLs, for those who cannot reach each other directly. None are used unless
    /// they are named here.
    pub relays: Vec<String>,
    /// Whether it makes itself known on the local network and looks for others there.
    pub discovers: bool,
}

impl MeshOptions {
    /// Whether an endpoint can start with them, as far as the words alone say.
    ///
    /// # Errors
    ///
    /// Names the entry that is not understood, and says what was expected.
    pub fn check(&self) -> Result<(), MeshError> {
        self.parse().map(drop)
    }

    fn parse(&self) -> Result<(Vec<RelayUrl>, Vec<Bootstrap>), MeshError> {
        let relays = self.relays.iter().map(|relay| parse_relay(relay));
        let relays = relays.collect::<Result<Vec<_>, _>>()?;
        let bootstrap = self.bootstrap.iter().map(|entry| Bootstrap::parse(entry, &relays));
        let bootstrap = bootstrap.collect::<Result<Vec<_>, _>>()?;
        Ok((relays, bootstrap))
    }
}

/// Why an endpoint does not start.
#[derive(Debug, Error)]
pub enum MeshError {
    /// The certificate is not for this node key, or does not hold now.
    #[error("the certificate is of no use: {0}")]
    Certificate(String),
    /// An entry of `--bootstrap` is not understood.
    #[error(
        "the bootstrap entry {entry:?} is not understood: expected NODE@HOST:PORT, \
         NODE@https://RELAY or, where relays are named, NODE alone; NODE is 64 hexadecimal digits \
         that the other gateway prints at its start"
    )]
    Bootstrap {
        /// The entry.
        entry: String,
    },
    /// A relay is not a URL.
    #[error("the relay {relay:?} is not understood: expected a URL such as https://relay.example")]
    Relay {
        /// What was given.
        relay: String,
    },
    /// The socket could not be bound.
    #[error("cannot listen on {listen}: {reason}; choose another address or end who uses it")]
    Listen {
        /// Where.
        listen: String,
        /// Why not.
        reason: String,
    },
    /// mDNS could not be started.
    #[error("cannot look for gateways on the local network: {0}; turn discovery off to do without")]
    Discovery(String),
}

/// A replica's endpoint of the direct mesh.
pub struct MeshTransport {
    endpoint: Endpoint,
    inputs: mpsc::Sender<Input>,
    shared: Arc<Shared>,
    reachable: watch::Receiver<Arc<BTreeSet<String>>>,
    arrived: tokio::sync::Mutex<mpsc::Receiver<(GatewayId, Bytes)>>,
    heard: tokio::sync::Mutex<mpsc::Receiver<HeardRoster>>,
    drive: Mutex<Option<JoinHandle<()>>>,
}

/// What the transport and its driver both hold.
#[derive(Default)]
struct Shared {
    /// What was asked for without waiting.
    posted: Mutex<Posted>,
    is_posted: Notify,
    /// What [`Transport::receive`] has given out since the driver last looked.
    drained: Mutex<BTreeMap<GatewayId, (usize, usize)>>,
    files: RwLock<Option<Arc<dyn FileSource>>>,
    counters: Mutex<MeshCounters>,
    kin: watch::Sender<Arc<BTreeSet<[u8; 32]>>>,
    is_stopping: AtomicBool,
}

impl Shared {
    /// A node has proved that it is of this gateway.
    fn note_kin(&self, node: NodeId) {
        self.kin.send_if_modified(|kin| {
            kin.len() < KIN && !kin.contains(&node.0) && Arc::make_mut(kin).insert(node.0)
        });
    }
}

#[derive(Default)]
struct Posted {
    rosters: VecDeque<(SignedRoster, Option<SignedRoster>)>,
    warm: Option<BTreeSet<GatewayId>>,
    missed: BTreeSet<GatewayId>,
    certificate: Option<SignedCertificate>,
}

impl MeshTransport {
    /// Starts an endpoint that holds `node_key` and shows `certificate`, and begins to look for
    /// others. `clock` tells the time that certificates speak of.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the options, and what to do about it.
    pub async fn start(
        options: MeshOptions,
        node_key: [u8; 32],
        certificate: SignedCertificate,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Result<Arc<Self>, MeshError> {
        let secret = SecretKey::from_bytes(&node_key);
        let node = NodeId(*secret.public().as_bytes());
        let unusable = |reason: String| MeshError::Certificate(reason);
        let verified = certificate.verify(clock()).map_err(|error| unusable(error.to_string()))?;
        if verified.node != node.0 {
            return Err(unusable("it names another node key".into()));
        }
        let (relays, bootstrap) = options.parse()?;
        let endpoint = bind(options.listen, secret, relays).await?;
        let discovery = match options.discovers {
            true => Some(Discovery::start(&endpoint).map_err(MeshError::Discovery)?),
            false => None,
        };
        let identity = Identity { node, gateway: verified.gateway, certificate };
        let peering = Peering::new(
            identity,
            StdRng::try_from_rng(&mut rand::rngs::SysRng).expect("the system gives randomness"),
        );
        let (inputs, taken) = mpsc::channel(INPUTS);
        let (inbox, arrived) = mpsc::channel(fieldpost_peering::limits::INBOX_ENVELOPES);
        let (rosters, heard) = mpsc::channel(ROSTERS);
        let (reach, reachable) = watch::channel(Arc::default());
        let shared = Arc::new(Shared::default());
        let driver = Driver::new(
            peering,
            endpoint.clone(),
            inputs.clone(),
            shared.clone(),
            drive::Outlets { inbox, rosters, reach },
            clock,
        );
        let drive = tokio::spawn(driver.run(taken, bootstrap, discovery));
        Ok(Arc::new(Self {
            endpoint,
            inputs,
            shared,
            reachable,
            arrived: arrived.into(),
            heard: heard.into(),
            drive: Mutex::new(Some(drive)),
        }))
    }

    /// What every endpoint can do (design, section 7).
    pub fn declared() -> Capabilities {
        Capabilities {
            supports_unicast: true,
            supports_broadcast: true,
            supports_multicast: true,
            max_message_size: MAX_CONTENT,
            typical_latency_ms: 100,
            bandwidth_mbps: 100.0,
            is_offline_capable: true,
            requires_internet: false,
            provides_encryption: true,
            supports_forward_secrecy: true,
            anonymity_level: 0,
            best_anonymity_level: 0,
            reaches_phones: false,
            battery_impact: "low",
            data_cost_impact: "medium",
            supports_store_and_forward: true,
            supports_multi_hop: false,
            max_hops: 1,
        }
    }

    /// Its node key's public half, which certificates name.
    pub fn node(&self) -> [u8; 32] {
        *self.endpoint.id().as_bytes()
    }

    /// Shows another certificate for the same node key from now on, on the links there are too.
    pub fn renew(&self, certificate: SignedCertificate) {
        self.post(|posted| posted.certificate = Some(certificate));
    }

    /// Nodes that have shown a certificate of this very gateway: its replicas, and those of a copy of
    /// it. At most 64 are remembered.
    pub fn kin(&self) -> watch::Receiver<Arc<BTreeSet<[u8; 32]>>> {
        self.shared.kin.subscribe()
    }

    /// What another gateway gives to `--bootstrap` to find this one, an entry for each address.
    pub fn own_addresses(&self) -> Vec<String> {
        own_addresses(&self.endpoint)
    }

    /// Waits until one of its relays has taken it in, from when on others find it there; for good if
    /// it has none.
    pub async fn at_relay(&self) {
        self.endpoint.online().await;
    }

    /// What has been counted: links and envelopes, and whatever was refused, by reason.
    pub fn counters(&self) -> MeshCounters {
        lock(&self.shared.counters).clone()
    }

    fn post(&self, change: impl FnOnce(&mut Posted)) {
        change(&mut lock(&self.shared.posted));
        self.shared.is_posted.notify_one();
    }
}

#[async_trait]
impl Transport for MeshTransport {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Self::declared()
    }

    fn reachable(&self) -> watch::Receiver<Arc<BTreeSet<String>>> {
        self.reachable.clone()
    }

    async fn send(&self, target: &str, envelope: SignedEnvelope) -> Result<(), SendError> {
        let size = envelope.as_bytes().len();
        if size > MAX_ENVELOPE {
            return Err(SendError::TooLarge { size, limit: MAX_ENVELOPE });
        }
        if self.shared.is_stopping.load(Ordering::Relaxed) {
            return Err(SendError::Shut);
        }
        let whom = match target.parse() {
            Ok(gateway) => Target::Gateway(gateway),
            Err(_) if target == BROADCAST => Target::Everybody,
            Err(_) => return Err(SendError::Unreachable { target: target.to_owned() }),
        };
        let (answer, answered) = oneshot::channel();
        let input = Input::Send { target: whom, envelope: envelope.into_shared(), answer };
        self.inputs.send(input).await.map_err(|_| SendError::Shut)?;
        let result = answered.await.map_err(|_| SendError::Shut)?;
        result.map_err(|failure| drive::send_error(target, failure))
    }

    fn hops(&self, target: &str) -> Option<u8> {
        self.reachable.borrow().contains(target).then_some(1)
    }

    async fn receive(&self) -> Option<Vec<u8>> {
        let (gateway, envelope) = self.arrived.lock().await.recv().await?;
        let mut drained = lock(&self.shared.drained);
        let (envelopes, bytes) = drained.entry(gateway).or_default();
        *envelopes += 1;
        *bytes += envelope.len();
        Some(envelope.into())
    }

    fn publish(&self, roster: &SignedRoster, delta: Option<&SignedRoster>) {
        self.post(|posted| {
            if posted.rosters.len() >= POSTED_ROSTERS {
                // The next one does not follow the last that was told, so it is told whole.
                posted.rosters.pop_front();
            }
            posted.rosters.push_back((roster.clone(), delta.cloned()));
        });
    }

    async fn receive_roster(&self) -> Option<HeardRoster> {
        self.heard.lock().await.recv().await
    }

    fn roster_missed(&self, gateway: GatewayId) {
        // Whoever is not linked tells its roster anew with the next link.
        if self.reachable.borrow().contains(&gateway.to_string()) {
            self.post(|posted| {
                posted.missed.insert(gateway);
            });
        }
    }

    fn serve_files(&self, source: Arc<dyn FileSource>) {
        *self.shared.files.write().unwrap_or_else(PoisonError::into_inner) = Some(source);
    }

    async fn fetch_file(
        &self,
        gateway: GatewayId,
        file: &str,
        from: u64,
    ) -> Result<FileFetch, FileError> {
        let unreachable = FileError::Unreachable { gateway };
        let (answer, answered) = oneshot::channel();
        let asked = self.inputs.send(Input::LinkTo { gateway, answer }).await;
        asked.map_err(|_| unreachable.clone())?;
        let connection = answered.await.ok().flatten().ok_or(unreachable)?;
        files::fetch(&connection, file, from).await
    }

    fn keep_warm(&self, gateways: &BTreeSet<GatewayId>) {
        self.post(|posted| posted.warm = Some(gateways.clone()));
    }

    fn status(&self) -> Status {
        let counters = self.counters();
        let is_connected = !self.reachable.borrow().is_empty();
        Status {
            is_available: !self.shared.is_stopping.load(Ordering::Relaxed),
            is_connected,
            connection_quality: if is_connected { 1.0 } else { 0.0 },
            envelopes_sent: counters.envelopes_sent,
            envelopes_received: counters.envelopes_received,
        }
    }

    async fn shutdown(&self) {
        self.shared.is_stopping.store(true, Ordering::Relaxed);
        self.shared.is_posted.notify_one();
        let drive = lock(&self.drive).take();
        if let Some(mut drive) = drive
            && timeout(SHUTDOWN_GRACE, &mut drive).await.is_err()
        {
            drive.abort();
        }
    }
}

impl Drop for MeshTransport {
    fn drop(&mut self) {
        if let Some(drive) = lock(&self.drive).take() {
            drive.abort();
        }
    }
}

async fn bind(
    listen: Option<SocketAddr>,
    secret: SecretKey,
    relays: Vec<RelayUrl>,
) -> Result<Endpoint, MeshError> {
    let refused = |reason: String| MeshError::Listen {
        listen: listen.map_or_else(|| "any port".into(), |listen| listen.to_string()),
        reason,
    };
    let mut net_report = NetReportConfig::minimal();
    // Where UDP does not pass, nothing else finds the relay at which we are to be found.
    net_report.https_probes = !relays.is_empty();
    let relay_mode = match relays.is_empty() {
        true => RelayMode::Disabled,
        false => RelayMode::custom(relays),
    };
    let mut builder = Endpoint::builder(presets::Minimal)
        .secret_key(secret)
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(relay_mode)
        .clear_address_lookup()
        .portmapper_config(PortmapperConfig::Disabled)
        .net_report_config(net_report)
        .transport_config(transport_config());
    if let Some(listen) = listen {
        builder = builder
            .clear_ip_transports()
            .bind_addr(listen)
            .map_err(|error| refused(error.to_string()))?;
    }
    builder.bind().await.map_err(|error| refused(error.to_string()))
}

fn transport_config() -> QuicTransportConfig {
    QuicTransportConfig::builder()
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_bidi_streams(VarInt::from_u32(1 + files::SERVED_AT_ONCE))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(LINK_WINDOW))
        .send_window(u64::from(LINK_WINDOW))
        .initial_rtt(INITIAL_RTT)
        // The core notices earlier; this is for a connection that never became a link.
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .build()
}

fn parse_relay(relay: &str) -> Result<RelayUrl, MeshError> {
    let url: Option<RelayUrl> = relay.parse().ok();
    url.filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host())
        .ok_or_else(|| MeshError::Relay { relay: relay.to_owned() })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const NAME: &str = "mesh";
/// The target of a broadcast.
const BROADCAST: &str = "transport:mesh";
const ALPN: &[u8] = b"fieldpost/mesh/1";
const MAX_CONTENT: usize = 1024 * 1024;
/// The largest content, and what a signed envelope may hold beside it.
const MAX_ENVELOPE: usize = MAX_CONTENT + (limits::SIGNED - limits::CONTENT);
const INPUTS: usize = 1024;
const ROSTERS: usize = 16;
const POSTED_ROSTERS: usize = 32;
const KIN: usize = 64;
const STREAMS: u32 = 64;
const STREAM_WINDOW: u32 = 1024 * 1024;
const LINK_WINDOW: u32 = 8 * 1024 * 1024;
const IDLE_MS: u32 = 10_000;
/// What a packet that is lost before any came back is repeated by; most links are short.
const INITIAL_RTT: Duration = Duration::from_millis(100);
const SHUTDOWN_GRACE: Duration = Duration::from_millis(1900);

#[cfg(test)]
mod tests;
