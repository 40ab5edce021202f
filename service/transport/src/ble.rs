//! The `ble` transport: a BitChat node, whose neighbours are phones and other gateways.
//!
//! The core is [`fieldpost_bitchat`], the links are those of any number of radios at once, the clock
//! is tokio's. Envelopes for gateways travel inside Noise sessions between nodes, once a node has
//! shown by a certificate whose it is. For phones an envelope becomes what they understand, in the
//! name of a hosted peer, and what they say comes out as [`FromPhone`] (design, sections 4, 5 and 7).

mod drive;
mod gateways;
mod phones;
mod port;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
pub use fieldpost_bitchat::{Counters as BleCounters, Identity as BleIdentity};
use fieldpost_bitchat::{Identity, MeshId, Node};
use fieldpost_envelope::{
    GatewayId, PeerId, ReceiptKind, Said, SignedCertificate, SignedEnvelope, SignedRoster,
    Timestamp, limits,
};
use rand::{SeedableRng, rngs::StdRng, rngs::SysRng};
use thiserror::Error;
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use self::drive::{Driver, Outlets, Request};
pub use self::{
    phones::{FromPhone, HostedPeer, Phone, PhoneFile},
    port::{OpenAir, OpenRadio, OpenStreams},
};
use crate::{Capabilities, HeardRoster, SendError, Status, Transport};

/// What the transport has been held against, and what was not tried.
pub const BLE_EVIDENCE: &str = "proved by the published vectors of the BitChat apps and on BlueZ with virtual \
     controllers; range, real adapters and real handsets were not tried";

/// How a node is set up.
pub struct BleOptions {
    /// The node's own keys; `certificate` names the Noise key.
    pub identity: Identity,
    /// What phones show for the gateway itself.
    pub nickname: String,
    /// The gateway's word for the node (purpose [`BitChat`](fieldpost_envelope::NodePurpose)).
    pub certificate: SignedCertificate,
    /// How many links a message of ours may cross, 1 to 7 (`--hop-limit`).
    pub hop_limit: u8,
    /// How many peers speak through it at most (`--max-peers`).
    pub max_peers: usize,
    /// Keys of phones known from earlier runs.
    pub pins: Vec<PhonePin>,
}

/// Keys that are pinned to a phone's name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PhonePin {
    /// X25519.
    pub noise_key: [u8; 32],
    /// Ed25519.
    pub signing_key: [u8; 32],
    /// Whether the phone, or a person, has proven them.
    pub is_verified: bool,
}

/// Why a node does not start.
#[derive(Debug, Error)]
pub enum BleError {
    /// The certificate is not for this node, or does not hold now.
    #[error("the certificate is of no use: {0}")]
    Certificate(String),
}

/// A node of the BitChat mesh.
pub struct BleTransport {
    noise_key: [u8; 32],
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    reachable: watch::Receiver<Arc<BTreeSet<String>>>,
    phones: watch::Receiver<Arc<BTreeMap<PeerId, Phone>>>,
    arrived: tokio::sync::Mutex<mpsc::Receiver<Vec<u8>>>,
    heard: tokio::sync::Mutex<mpsc::Receiver<HeardRoster>>,
    from_phones: tokio::sync::Mutex<mpsc::Receiver<FromPhone>>,
    room: Arc<Semaphore>,
    drive: Mutex<Option<JoinHandle<()>>>,
}

/// What the transport and its driver both hold.
#[derive(Default)]
struct Shared {
    /// What was asked for without waiting.
    posted: Mutex<Posted>,
    is_posted: Notify,
    counters: Mutex<BleCounters>,
    /// Over how many links gateways and phones are.
    hops: Mutex<BTreeMap<String, u8>>,
    /// Gateways that started anew although they had not gone: at most as many as are there.
    returned: Mutex<BTreeSet<String>>,
    /// Why a radio is not open, if one is not.
    trouble: Mutex<Option<String>>,
    links: AtomicUsize,
    is_available: AtomicBool,
    is_stopping: AtomicBool,
    envelopes_sent: AtomicU64,
    envelopes_received: AtomicU64,
}

#[derive(Default)]
struct Posted {
    rosters: VecDeque<(SignedRoster, Option<SignedRoster>)>,
    missed: BTreeSet<GatewayId>,
    certificate: Option<SignedCertificate>,
    hosted: Option<Vec<HostedPeer>>,
}

impl BleTransport {
    /// Starts a node on some radios, and begins to open them. `clock` tells the time that packets and
    /// certificates speak of.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the options.
    pub fn start(
        options: BleOptions,
        radios: Vec<Arc<dyn OpenRadio>>,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Result<Arc<Self>, BleError> {
        let noise_key = *options.identity.noise_public();
        let unusable = |reason: String| BleError::Certificate(reason);
        let verified =
            options.certificate.verify(clock()).map_err(|error| unusable(error.to_string()))?;
        if verified.node != noise_key {
            return Err(unusable("it names another node key".into()));
        }
        let rng = StdRng::try_from_rng(&mut SysRng).expect("the system gives randomness");
        let limits = fieldpost_bitchat::Limits {
            hosted: options.max_peers + 1,
            hops: options.hop_limit,
            ..fieldpost_bitchat::Limits::default()
        };
        let node = Node::new(rng, limits, options.identity, options.nickname);
        let (requests, asked) = mpsc::channel(REQUESTS);
        let (inbox, arrived) = mpsc::channel(INBOX);
        let (rosters, heard) = mpsc::channel(ROSTERS);
        let (spoken, from_phones) = mpsc::channel(FROM_PHONES);
        let (reach, reachable) = watch::channel(Arc::default());
        let (present, phones) = watch::channel(Arc::default());
        let shared = Arc::new(Shared::default());
        let gateways = gateways::Gateways::new(verified.gateway, options.certificate);
        let outlets = Outlets { inbox, rosters, spoken, reach, present };
        let mut driver = Driver::new(node, gateways, shared.clone(), outlets, clock);
        driver.pin(&options.pins);
        let drive = tokio::spawn(driver.run(radios, asked));
        Ok(Arc::new(Self {
            noise_key,
            requests,
            shared,
            reachable,
            phones,
            arrived: arrived.into(),
            heard: heard.into(),
            from_phones: from_phones.into(),
            room: Arc::new(Semaphore::new(WAITING)),
            drive: Mutex::new(Some(drive)),
        }))
    }

    /// What every node can do (design, section 7).
    pub fn declared() -> Capabilities {
        Capabilities {
            supports_unicast: true,
            supports_broadcast: true,
            supports_multicast: true,
            max_message_size: MAX_CONTENT,
            typical_latency_ms: 2000,
            bandwidth_mbps: 0.1,
            is_offline_capable: true,
            requires_internet: false,
            provides_encryption: true,
            supports_forward_secrecy: true,
            anonymity_level: 1,
            best_anonymity_level: 1,
            reaches_phones: true,
            battery_impact: "medium",
            data_cost_impact: "low",
            supports_store_and_forward: true,
            supports_multi_hop: true,
            max_hops: 7,
        }
    }

    /// The public half of its Noise key, which certificates name.
    pub fn noise_key(&self) -> [u8; 32] {
        self.noise_key
    }

    /// Shows another certificate for the same node from now on.
    pub fn renew(&self, certificate: SignedCertificate) {
        self.post(|posted| posted.certificate = Some(certificate));
    }

    /// Speaks for these peers from now on, and for no others.
    pub fn host(&self, peers: Vec<HostedPeer>) {
        self.post(|posted| posted.hosted = Some(peers));
    }

    /// The phones that are there, and a way to wait for changes.
    pub fn phones(&self) -> watch::Receiver<Arc<BTreeMap<PeerId, Phone>>> {
        self.phones.clone()
    }

    /// Waits for what a phone says next; `None` once the transport has shut.
    pub async fn receive_from_phone(&self) -> Option<FromPhone> {
        self.from_phones.lock().await.recv().await
    }

    /// A private message of `phone` to a hosted peer could not be kept: it is to be taken for new
    /// when it comes again.
    pub async fn forget(&self, phone: &PeerId, peer: &PeerId, message_id: &str) {
        let Some(phone) = MeshId::parse(phone.as_str()) else { return };
        let (peer, message_id) = (peer.clone(), message_id.to_owned());
        // If it has shut, it forgets everything.
        let _ = self.requests.send(Request::Forget { phone, peer, message_id }).await;
    }

    /// What the core has counted.
    pub fn counters(&self) -> BleCounters {
        *lock(&self.shared.counters)
    }

    /// How many links are up.
    pub fn links(&self) -> usize {
        self.shared.links.load(Ordering::Relaxed)
    }

    fn post(&self, change: impl FnOnce(&mut Posted)) {
        change(&mut lock(&self.shared.posted));
        self.shared.is_posted.notify_one();
    }

    /// Hands a request over and waits for what comes of it, but no longer than it takes to know that
    /// it has been taken charge of.
    async fn ask(
        &self,
        request: impl FnOnce(drive::Answer) -> Request,
        patience: Duration,
    ) -> Result<(), SendError> {
        if self.shared.is_stopping.load(Ordering::Relaxed) {
            return Err(SendError::Shut);
        }
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| SendError::Shut)?;
        match timeout(patience, answered).await {
            Ok(answer) => answer.map_err(|_| SendError::Shut)?,
            Err(_) => Ok(()),
        }
    }
}

#[async_trait]
impl Transport for BleTransport {
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
        let unreachable = || SendError::Unreachable { target: target.to_owned() };
        let size = envelope.as_bytes().len();
        if size > MAX_ENVELOPE {
            return Err(SendError::TooLarge { size, limit: MAX_ENVELOPE });
        }
        let sent = if let Ok(gateway) = target.parse::<GatewayId>() {
            // Whoever gives up waiting here gives up its place.
            let room = self.room.clone().acquire_owned().await.map_err(|_| SendError::Shut)?;
            let digest = envelope.digest();
            let envelope = envelope.into_bytes();
            let request = |answer| Request::ToGateway { gateway, envelope, digest, answer, room };
            self.ask(request, CHARGE).await
        } else if let Some(phone) = MeshId::parse(target) {
            let (digest, said) = opened(envelope)?;
            let request = |answer| Request::ToPhone { phone, envelope: said, digest, answer };
            self.ask(request, ANSWER).await
        } else if target == BROADCAST {
            let bytes = envelope.as_bytes().to_vec();
            let (digest, said) = opened(envelope)?;
            let request = |answer| Request::Broadcast { envelope: said, bytes, digest, answer };
            self.ask(request, ANSWER).await
        } else {
            Err(unreachable())
        };
        if sent.is_ok() {
            self.shared.envelopes_sent.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    async fn receive(&self) -> Option<Vec<u8>> {
        let envelope = self.arrived.lock().await.recv().await?;
        self.shared.envelopes_received.fetch_add(1, Ordering::Relaxed);
        Some(envelope)
    }

    async fn acknowledge(
        &self,
        phone: &str,
        peer: &PeerId,
        message_id: &str,
        kind: ReceiptKind,
    ) -> Result<(), SendError> {
        let unreachable = || SendError::Unreachable { target: phone.to_owned() };
        let kind = match kind {
            ReceiptKind::Delivered => fieldpost_bitchat::ReceiptKind::Delivered,
            ReceiptKind::Read => fieldpost_bitchat::ReceiptKind::Read,
            // Phones have no words for the others.
            ReceiptKind::Stored | ReceiptKind::Refused => return Ok(()),
        };
        let phone = MeshId::parse(phone).ok_or_else(unreachable)?;
        let (peer, message_id) = (peer.clone(), message_id.to_owned());
        let request = |answer| Request::Acknowledge { phone, peer, message_id, kind, answer };
        self.ask(request, ANSWER).await
    }

    fn hops(&self, target: &str) -> Option<u8> {
        lock(&self.shared.hops).get(target).copied()
    }

    fn take_returned(&self) -> BTreeSet<String> {
        std::mem::take(&mut lock(&self.shared.returned))
    }

    fn evidence(&self) -> Option<&'static str> {
        Some(BLE_EVIDENCE)
    }

    fn trouble(&self) -> Option<String> {
        lock(&self.shared.trouble).clone()
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
        self.post(|posted| {
            posted.missed.insert(gateway);
        });
    }

    fn status(&self) -> Status {
        let is_connected = !self.reachable.borrow().is_empty();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            is_available: self.shared.is_available.load(Ordering::Relaxed)
                && !self.shared.is_stopping.load(Ordering::Relaxed),
            is_connected,
            connection_quality: if is_connected { 1.0 } else { 0.0 },
            envelopes_sent: read(&self.shared.envelopes_sent),
            envelopes_received: read(&self.shared.envelopes_received),
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

impl Drop for BleTransport {
    fn drop(&mut self) {
        if let Some(drive) = lock(&self.drive).take() {
            drive.abort();
        }
    }
}

/// What an envelope of our own says, for those who cannot read envelopes.
fn opened(
    envelope: SignedEnvelope,
) -> Result<([u8; 32], Box<fieldpost_envelope::Envelope>), SendError> {
    let failed = |reason: String| SendError::Failed(reason);
    let verified = envelope.verify().map_err(|error| failed(error.to_string()))?;
    match verified.said {
        Said::Message(said) => Ok((verified.digest, said)),
        Said::Receipt(_) => Err(failed("a phone takes no receipts of gateways".to_owned())),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const NAME: &str = "ble";
/// What broadcasts are addressed to.
const BROADCAST: &str = "transport:ble";
const MAX_CONTENT: usize = 64 * 1024;
/// A signed envelope with the largest content and little else; what the core carries.
const MAX_ENVELOPE: usize = fieldpost_bitchat::payload::gateway::MAX_CONTENT
    - fieldpost_bitchat::payload::exchange::OVERHEAD;
const _: () = assert!(MAX_ENVELOPE >= MAX_CONTENT + 3 * 1024 && MAX_ENVELOPE < limits::SIGNED);
const REQUESTS: usize = 256;
/// Envelopes for gateways that are under way or wait; who has more waits in `send`.
const WAITING: usize = 256;
/// Envelopes that wait to be received; further ones are dropped, and come again.
const INBOX: usize = 256;
const ROSTERS: usize = 16;
const POSTED_ROSTERS: usize = 32;
/// What phones have said that waits to be received.
const FROM_PHONES: usize = 256;
/// How long it may take to learn that something cannot leave.
const CHARGE: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(10);
const SHUTDOWN_GRACE: Duration = Duration::from_millis(1900);

#[cfg(test)]
mod tests;
