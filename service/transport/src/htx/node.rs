//! The `htx` transport: a node of the mixnet, be it gateway, relay or both.
//!
//! ```text
//! links (Front, Dialer) ──► packets ──► relay core ──► Forward ──► links
//!                                          │ Deliver ──► receiver core ──► Transport::receive
//!                                          │ Reply   ──► sender core
//! Transport::send ──► sender core ──► a packet in each slot ──► links
//! links ──► gossip: documents, descriptors ──► chain, pool
//! ```
//!
//! One task drives all cores of a node; each link has a task of its own. Every queue between them
//! has a bound, at which the newest is dropped and counted: whoever sent it notices that no answer
//! comes, and sends it again by another route (HTX reference, sections 5 and 6; design, section 7).

mod drive;
mod link;
mod links;
mod options;
mod routes;
mod secrets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use ed25519_dalek::SigningKey;
use fieldpost_envelope::{SignedEnvelope, limits};
use fieldpost_mixnet::{
    directory::{
        Certificate, DescriptorError, Epoch, NodeKeys, RelayId, RoutePolicy, SignedDescriptor,
        SignedDocument,
    },
    htx::{BucketLimits, Gate, Parameters, Settings},
    receiver,
    sphinx::{MAX_HOPS, Packet},
};
use rand::{SeedableRng, rngs::SysRng};
use rustls::pki_types::PrivateKeyDer;
use serde::Serialize;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

pub use self::options::{HtxError, HtxOptions, HtxTls};
use self::{
    drive::{Description, Handed, Inlets, Node, Outlets, Parts},
    secrets::Secrets,
};
use super::{
    Clock, Dialer, ForgetfulRng, Front, FrontOptions, Template, server_tls,
    template::client_tls_of_relays,
};
use crate::{Capabilities, SendError, Status, Transport};

/// A node of the mixnet, as a transport.
pub struct HtxTransport {
    id: RelayId,
    is_lab: bool,
    commands: mpsc::Sender<Command>,
    reachable: watch::Receiver<Arc<BTreeSet<String>>>,
    descriptor: watch::Receiver<SignedDescriptor>,
    descriptors: watch::Receiver<Arc<Vec<SignedDescriptor>>>,
    documents: watch::Receiver<Arc<Vec<SignedDocument>>>,
    figures: watch::Receiver<HtxFigures>,
    handed: Arc<Handed>,
    arrived: tokio::sync::Mutex<mpsc::Receiver<Vec<u8>>>,
    tasks: Mutex<Option<JoinHandle<()>>>,
}

impl HtxTransport {
    /// Starts a node that holds `node_key`, and begins to make links. `certificate` is the word of
    /// the gateway that the node is a replica of; without it, the node relays but receives nothing.
    /// `clock` tells the time that epochs, tickets and certificates speak of.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the options, and what to do about it.
    pub async fn start(
        options: HtxOptions,
        node_key: SigningKey,
        certificate: Option<Certificate>,
        clock: Clock,
    ) -> Result<Arc<Self>, HtxError> {
        if !(2..=MAX_HOPS).contains(&options.max_hops) {
            return Err(HtxError::Hops { max_hops: options.max_hops });
        }
        let mut rng = ForgetfulRng::try_from_rng(&mut SysRng).expect("the system gives randomness");
        let keys = NodeKeys::derive(node_key);
        let id = keys.id();
        let listener = match options.listen {
            Some(listen) => Some(bind(listen).await?),
            None => None,
        };
        let mut addresses = options.advertise;
        if let (true, Some((_, address))) = (addresses.is_empty(), &listener) {
            addresses.push(*address);
        }
        let settings = Settings {
            parameters: Parameters { window: WINDOW, streams: STREAMS },
            // Without pacing, this is a test or a measurement.
            cover: !options.pace.payload.is_zero(),
            ..Settings::default()
        };
        let (stop, stopped) = watch::channel(false);
        let (mut front, mut accepted) = (None, None);
        if let Some((listener, _)) = listener {
            let tls = certify_tls(&options.server_name, options.tls)?;
            let limits = match options.lab {
                true => BucketLimits { burst: 10_000, ..BucketLimits::default() },
                false => BucketLimits::default(),
            };
            let mut gate = Gate::new(&mut rng, limits);
            gate.add_key(keys.ticket_key().id, keys.ticket().clone());
            let (served, links) = Front::new(FrontOptions {
                tls,
                decoy: options.decoy,
                gate,
                carriers: keys.carriers().clone(),
                key: keys.noise().clone(),
                settings: settings.clone(),
                clock: clock.clone(),
                rng: ForgetfulRng::from_rng(&mut rng),
                connections: CONNECTIONS,
            });
            accepted = Some(links);
            front = Some(tokio::spawn(served.serve(listener, stopped)));
        }
        let dialer = Dialer {
            tls: client_tls_of_relays().map_err(|error| HtxError::Tls {
                name: "relays".into(),
                reason: error.to_string(),
            })?,
            template: Template::default(),
            settings,
            identity: Some(keys.noise().clone()),
            clock: clock.clone(),
        };
        let (commands, commanded) = mpsc::channel(COMMANDS);
        let (events, happened) = mpsc::channel(EVENTS);
        let (packets, came) = mpsc::channel(PACKETS);
        let (arrived, arrivals) = mpsc::channel(receiver::Config::default().unsettled);
        let (reach, reachable) = watch::channel(Arc::default());
        let (told, descriptors) = watch::channel(Arc::default());
        let (kept, documents) = watch::channel(Arc::default());
        let (shown, figures) = watch::channel(HtxFigures::default());
        let handed = Arc::new(Handed::default());
        let parts = Parts {
            secrets: Secrets::open(options.secrets_dir.as_deref(), id)?,
            keys,
            description: Description {
                operator: options.operator,
                autonomous_system: options.autonomous_system,
                country: options.country,
                addresses,
                server_name: options.server_name,
                through: options.through,
                capacity: options.capacity,
                relays: options.relays,
            },
            certificate,
            authority: options.authority,
            documents: options.documents,
            policy: RoutePolicy {
                relays: RoutePolicy::default().relays.min(options.max_hops - 1),
                least_relays: 1,
                own_autonomous_system: options.autonomous_system,
                ..RoutePolicy::default()
            },
            pace: options.pace,
            dialer,
            clock,
            handed: Arc::clone(&handed),
            rng,
        };
        let outlets = Outlets {
            reachable: reach,
            descriptors: told,
            documents: kept,
            figures: shown,
            arrived,
        };
        let node = Node::new(parts, events, packets, outlets)?;
        let descriptor = node.descriptor().ok_or(DescriptorError::Epochs { count: 0 })?;
        let inlets = Inlets { commands: commanded, accepted, events: happened, packets: came };
        let tasks = tokio::spawn(async move {
            node.run(inlets).await;
            stop.send_replace(true);
            if let Some(front) = front {
                front.await.unwrap_or_default();
            }
        });
        Ok(Arc::new(Self {
            id,
            is_lab: options.lab,
            commands,
            reachable,
            descriptor,
            descriptors,
            documents,
            figures,
            handed,
            arrived: arrivals.into(),
            tasks: Mutex::new(Some(tasks)),
        }))
    }

    /// What every node can do (design, section 7). Level 3 needs cover traffic, which there is not
    /// yet: it is declared with `--lab` alone, which lifts the rule for tests.
    pub fn declared(lab: bool) -> Capabilities {
        let level = if lab { 3 } else { 1 };
        Capabilities {
            supports_unicast: true,
            supports_broadcast: false,
            supports_multicast: false,
            max_message_size: MAX_CONTENT,
            typical_latency_ms: 500,
            bandwidth_mbps: 5.0,
            // A lab is on one machine, which need not lead anywhere.
            is_offline_capable: lab,
            requires_internet: !lab,
            provides_encryption: true,
            supports_forward_secrecy: true,
            anonymity_level: level,
            best_anonymity_level: level,
            reaches_phones: false,
            battery_impact: "low",
            data_cost_impact: "medium",
            supports_store_and_forward: true,
            supports_multi_hop: true,
            max_hops: 5,
        }
    }

    /// The node's id: SHA-256 of its key.
    pub fn id(&self) -> RelayId {
        self.id
    }

    /// The node's own newest descriptor, and a way to wait for the next: there is one with each
    /// epoch and each certificate. It has to come to the directory's signers; linked nodes are told
    /// it, and tell it on.
    pub fn descriptor(&self) -> watch::Receiver<SignedDescriptor> {
        self.descriptor.clone()
    }

    /// The newest descriptors of all nodes that this one has heard of, its own among them, ascending
    /// by id: what signers choose from. At most 1024.
    pub fn descriptors(&self) -> watch::Receiver<Arc<Vec<SignedDescriptor>>> {
        self.descriptors.clone()
    }

    /// The documents that the node believes, oldest first, at most eight, and a way to wait for
    /// changes: what is to be cached on disk and in the database.
    pub fn documents(&self) -> watch::Receiver<Arc<Vec<SignedDocument>>> {
        self.documents.clone()
    }

    /// The node's figures, at most half a second old.
    pub fn figures(&self) -> HtxFigures {
        self.figures.borrow().clone()
    }

    /// Offers a signed document that came from elsewhere: the database, or a signer. It is verified
    /// like any other; [`documents`](Self::documents) tells whether it was taken up.
    ///
    /// # Errors
    ///
    /// The node has been shut down.
    pub async fn learn(&self, document: Vec<u8>) -> Result<(), SendError> {
        self.command(Command::Learn(document)).await
    }

    /// Offers the signed descriptor of some node, to be told on like those that come over links.
    ///
    /// # Errors
    ///
    /// The node has been shut down.
    pub async fn introduce(&self, descriptor: Vec<u8>) -> Result<(), SendError> {
        self.command(Command::Introduce(descriptor)).await
    }

    /// Shows another certificate in descriptors from now on.
    ///
    /// # Errors
    ///
    /// The node has been shut down.
    pub async fn certify(&self, certificate: Certificate) -> Result<(), SendError> {
        self.command(Command::Certify(certificate)).await
    }

    /// Passes a finished packet of a client on to the first relay of its route.
    ///
    /// # Errors
    ///
    /// The bytes have not the length of a packet, the active document does not know the relay, or
    /// what waits for the link to it is too much already.
    pub async fn forward(&self, first: RelayId, packet: Vec<u8>) -> Result<(), ForwardError> {
        let length = packet.len();
        let packet = Packet::from_bytes(packet).ok_or(ForwardError::Length { length })?;
        let (answer, answered) = oneshot::channel();
        self.command(Command::Forward { first, packet, answer })
            .await
            .map_err(|_| ForwardError::Shut)?;
        answered.await.map_err(|_| ForwardError::Shut)?
    }

    async fn command(&self, command: Command) -> Result<(), SendError> {
        self.commands.send(command).await.map_err(|_| SendError::Shut)
    }
}

#[async_trait]
impl Transport for HtxTransport {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Self::declared(self.is_lab)
    }

    fn reachable(&self) -> watch::Receiver<Arc<BTreeSet<String>>> {
        self.reachable.clone()
    }

    async fn send(&self, target: &str, envelope: SignedEnvelope) -> Result<(), SendError> {
        let size = envelope.as_bytes().len();
        if size > MAX_ENVELOPE {
            return Err(SendError::TooLarge { size, limit: MAX_ENVELOPE });
        }
        let (answer, answered) = oneshot::channel();
        let target = target.to_owned();
        self.command(Command::Send { target, message: envelope.into_bytes(), answer }).await?;
        answered.await.map_err(|_| SendError::Shut)?
    }

    async fn receive(&self) -> Option<Vec<u8>> {
        self.arrived.lock().await.recv().await
    }

    fn taken(&self, envelope: &[u8]) {
        self.handed.taken(envelope);
    }

    fn status(&self) -> Status {
        let figures = self.figures.borrow();
        let is_connected = !self.reachable.borrow().is_empty();
        Status {
            is_available: !self.commands.is_closed(),
            is_connected,
            connection_quality: if is_connected { 1.0 } else { 0.0 },
            envelopes_sent: figures.messages_sent,
            envelopes_received: figures.messages_received,
        }
    }

    async fn shutdown(&self) {
        drop(self.command(Command::Stop).await);
        let tasks = lock(&self.tasks).take();
        if let Some(mut tasks) = tasks
            && timeout(SHUTDOWN_GRACE, &mut tasks).await.is_err()
        {
            tasks.abort();
        }
    }
}

impl Drop for HtxTransport {
    fn drop(&mut self) {
        if let Some(tasks) = lock(&self.tasks).take() {
            tasks.abort();
        }
    }
}

/// A node in figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HtxFigures {
    /// The epoch of the node's clock.
    pub epoch: Epoch,
    /// The number of the newest document, if there is any.
    pub document: Option<u64>,
    /// Relays in the active document.
    pub relays: usize,
    /// Gateways in the active document, each with at least one node.
    pub gateways: usize,
    /// Whether the active document has the node's own keys of this epoch, so that answers find back.
    pub is_listed: bool,
    /// Whether routes can be drawn without relaxing a rule, through three relays of two operators.
    pub hides_senders: bool,
    /// Links that are up.
    pub links: usize,
    /// Messages that the sender took charge of.
    pub messages_sent: u64,
    /// Of these, such as the receiving gateway has committed.
    pub messages_committed: u64,
    /// Of these, such as were given up: the outbox tries them again.
    pub messages_failed: u64,
    /// Messages that became whole and were handed to the gateway.
    pub messages_received: u64,
    /// Packets passed on for others.
    pub packets_forwarded: u64,
    /// Packets that ended here.
    pub packets_delivered: u64,
    /// Packets of own messages, repeated ones among them.
    pub packets_sent: u64,
    /// Packets refused: malformed, altered, for another key, replayed, or with no key.
    pub packets_refused: u64,
    /// Of these, such as were here before.
    pub packets_replayed: u64,
    /// Packets dropped as a queue or the replay cache was full, or as there was no link.
    pub packets_dropped: u64,
    /// Packets that are held for their delay.
    pub packets_held: usize,
    /// How long a ping to each neighbour and back took, where one was answered.
    #[serde(skip)]
    pub round_trips: Arc<BTreeMap<RelayId, Duration>>,
}

/// Why a client's packet was not passed on.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ForwardError {
    /// Not the length of a packet.
    #[error("{length} bytes are not the length of a packet: expected 2400 or 33120")]
    Length {
        /// How many there are.
        length: usize,
    },
    /// Not a relay of ours.
    #[error("{0} is not in the active document")]
    UnknownRelay(RelayId),
    /// Too much waits already.
    #[error("{0} is out of reach or does not keep up")]
    Busy(RelayId),
    /// It has been shut down.
    #[error("the transport is shut")]
    Shut,
}

/// What the node's task is told.
enum Command {
    Send { target: String, message: Vec<u8>, answer: oneshot::Sender<Result<(), SendError>> },
    Forward { first: RelayId, packet: Packet, answer: oneshot::Sender<Result<(), ForwardError>> },
    Learn(Vec<u8>),
    Introduce(Vec<u8>),
    Certify(Certificate),
    Stop,
}

async fn bind(listen: SocketAddr) -> Result<(TcpListener, SocketAddr), HtxError> {
    let failed = |source| HtxError::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// The TLS of the front, under the operator's certificate or one of its own.
fn certify_tls(name: &str, tls: Option<HtxTls>) -> Result<Arc<rustls::ServerConfig>, HtxError> {
    let failed = |reason: String| HtxError::Tls { name: name.to_owned(), reason };
    let HtxTls { certificates, key } = match tls {
        Some(tls) => tls,
        None => {
            let made = rcgen::generate_simple_self_signed([name.to_owned()])
                .map_err(|error| failed(error.to_string()))?;
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
                .map_err(|error| failed(error.to_owned()))?;
            HtxTls { certificates: vec![made.cert.der().clone()], key }
        }
    };
    server_tls(certificates, key).map_err(|error| failed(error.to_string()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const NAME: &str = "htx";
const MAX_CONTENT: usize = 1024 * 1024;
/// The largest content, and what a signed envelope may hold beside it.
const MAX_ENVELOPE: usize = MAX_CONTENT + (limits::SIGNED - limits::CONTENT);
/// Of a stream of a link, in bytes.
const WINDOW: u32 = 2 << 20;
const STREAMS: u16 = 4;
const CONNECTIONS: usize = 1_024;
const COMMANDS: usize = 256;
const EVENTS: usize = 1_024;
/// That came over links and wait for the node.
const PACKETS: usize = 1_024;
const SHUTDOWN_GRACE: Duration = Duration::from_millis(1900);
