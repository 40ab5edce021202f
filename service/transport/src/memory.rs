//! The `memory` transport: joins gateways inside one process, with faults on demand.
//!
//! A [`MemoryNetwork`] is a medium that gateways join. Whoever has joined reaches everybody else
//! in one hop, unless the two were cut apart. Each direction between two gateways can lose, delay
//! and duplicate what crosses it, and faults can be changed while envelopes are under way. All
//! chances are drawn from one seeded generator, and all waiting is tokio's, so paused time works.
//!
//! It exists for tests and the demo and is never among `--transports`. What it does not do: relay
//! over a third gateway, or remember anything across processes.

mod files;
mod rosters;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use fieldpost_envelope::{GatewayId, SignedEnvelope, SignedRoster, limits};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use self::rosters::{Rosters, Told};
use crate::{
    Capabilities, FileError, FileFetch, FileSource, HeardRoster, SendError, Status, Transport,
};

/// How long [`MemoryTransport::shutdown`](Transport::shutdown) waits for what is under way.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// What a signed envelope may hold beside its content.
const HEADROOM: usize = limits::SIGNED - limits::CONTENT;

/// A medium that gateways join; cheap to clone.
#[derive(Clone, Debug)]
pub struct MemoryNetwork(Arc<Mutex<Medium>>);

#[derive(Debug)]
struct Medium {
    rng: StdRng,
    ends: BTreeMap<GatewayId, End>,
    /// By sender and receiver; what is not listed has none.
    faults: BTreeMap<(GatewayId, GatewayId), Faults>,
    /// Envelopes that a transport took charge of, by sender and receiver.
    carried: BTreeMap<(GatewayId, GatewayId), u64>,
    joined: u64,
    lost: u64,
}

struct End {
    /// Tells one joining of a gateway from the next.
    number: u64,
    is_up: bool,
    hears_broadcasts: bool,
    name: &'static str,
    inbox: mpsc::Sender<Vec<u8>>,
    files: Option<Arc<dyn FileSource>>,
    reachable: watch::Sender<Arc<BTreeSet<String>>>,
    rosters: Rosters,
}

/// What goes wrong on the way from one gateway to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// Nothing leads there, and the sender knows.
    pub cut: bool,
    /// The share of envelopes that the transport refuses although it knows a way, from 0 to 1.
    pub refusal: f64,
    /// The share of envelopes that vanish after the transport took charge, from 0 to 1.
    pub loss: f64,
    /// The share of envelopes that arrive twice, from 0 to 1.
    pub duplication: f64,
    /// How long an envelope takes: evenly spread between the two.
    pub delay: (Duration, Duration),
    /// After how many bytes the transfer of a file breaks off, each time anew.
    pub files_break_after: Option<u64>,
}

impl Faults {
    /// Everything arrives, once and at once.
    pub const NONE: Self = Self {
        cut: false,
        refusal: 0.0,
        loss: 0.0,
        duplication: 0.0,
        delay: (Duration::ZERO, Duration::ZERO),
        files_break_after: None,
    };
    /// A partition that both sides notice.
    pub const CUT: Self = Self { cut: true, ..Self::NONE };
    /// A partition that nobody notices: everything vanishes.
    pub const SILENCE: Self = Self { loss: 1.0, ..Self::NONE };
    /// A transport that knows the way and fails at every attempt.
    pub const BROKEN: Self = Self { refusal: 1.0, ..Self::NONE };
}

impl Default for Faults {
    fn default() -> Self {
        Self::NONE
    }
}

/// How a gateway joins.
#[derive(Clone, Debug)]
pub struct MemoryOptions {
    /// The name by which the gateway knows this transport. Two networks under two names stand in
    /// for two transports.
    pub name: &'static str,
    /// What it declares.
    pub capabilities: Capabilities,
    /// How many envelopes may be under way from this gateway, and how many may wait for it to take
    /// them; one more to send is refused as [`SendError::Busy`], one more to take is lost.
    pub queue: usize,
    /// Whether others hear this gateway's rosters as those of one found on the local network.
    pub is_nearby: bool,
}

impl Default for MemoryOptions {
    /// Under the name `memory`: level 0, 1 MiB, no broadcasts, no internet needed, 1024 under way.
    fn default() -> Self {
        Self {
            name: "memory",
            capabilities: Capabilities {
                supports_unicast: true,
                supports_broadcast: false,
                supports_multicast: false,
                max_message_size: 1024 * 1024,
                typical_latency_ms: 1,
                bandwidth_mbps: 1000.0,
                is_offline_capable: true,
                requires_internet: false,
                provides_encryption: false,
                supports_forward_secrecy: false,
                anonymity_level: 0,
                best_anonymity_level: 0,
                reaches_phones: false,
                battery_impact: "low",
                data_cost_impact: "low",
                supports_store_and_forward: false,
                supports_multi_hop: false,
                max_hops: 1,
            },
            queue: 1024,
            is_nearby: false,
        }
    }
}

impl MemoryOptions {
    /// The default under another name.
    pub fn named(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// With this anonymity level, now and at best.
    #[must_use]
    pub fn with_level(mut self, level: u8) -> Self {
        self.capabilities.anonymity_level = level;
        self.capabilities.best_anonymity_level = level;
        self
    }

    /// Carrying content up to this many bytes.
    #[must_use]
    pub fn with_size(mut self, bytes: usize) -> Self {
        self.capabilities.max_message_size = bytes;
        self
    }

    /// Found on the local network, as others hear it.
    #[must_use]
    pub fn nearby(self) -> Self {
        Self { is_nearby: true, ..self }
    }

    /// Carrying and hearing broadcasts.
    #[must_use]
    pub fn with_broadcasts(mut self) -> Self {
        self.capabilities.supports_broadcast = true;
        self
    }
}

impl MemoryNetwork {
    /// A medium without gateways or faults, whose chances follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Medium {
            rng: StdRng::seed_from_u64(seed),
            ends: BTreeMap::new(),
            faults: BTreeMap::new(),
            carried: BTreeMap::new(),
            joined: 0,
            lost: 0,
        })))
    }

    /// Lets a gateway join. One that has joined before is replaced: its process was restarted.
    pub fn join(&self, gateway: GatewayId, options: MemoryOptions) -> Arc<MemoryTransport> {
        let (inbox, arrived) = mpsc::channel(options.queue);
        let (reachable, reachable_now) = watch::channel(Arc::default());
        let mut medium = self.lock();
        medium.joined += 1;
        let number = medium.joined;
        let end = End {
            number,
            is_up: true,
            hears_broadcasts: options.capabilities.supports_broadcast,
            name: options.name,
            inbox,
            files: None,
            reachable,
            rosters: Rosters::new(options.is_nearby),
        };
        if let Some(replaced) = medium.ends.insert(gateway, end) {
            replaced.rosters.changed.notify_one();
        }
        medium.tell_all();
        drop(medium);
        Arc::new(MemoryTransport {
            network: self.clone(),
            gateway,
            number,
            name: options.name,
            queue: options.queue,
            capabilities: Mutex::new(options.capabilities),
            reachable: reachable_now,
            arrived: tokio::sync::Mutex::new(arrived),
            told: Mutex::default(),
            room: Arc::new(Semaphore::new(options.queue)),
            under_way: Mutex::default(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            warm: Mutex::default(),
        })
    }

    /// Sets what goes wrong between two gateways, in both directions.
    pub fn set_faults(&self, one: GatewayId, other: GatewayId, faults: Faults) {
        let mut medium = self.lock();
        medium.faults.insert((one, other), faults.clone());
        medium.faults.insert((other, one), faults);
        medium.tell_all();
    }

    /// Sets what goes wrong in one direction.
    pub fn set_faults_towards(&self, from: GatewayId, to: GatewayId, faults: Faults) {
        let mut medium = self.lock();
        medium.faults.insert((from, to), faults);
        medium.tell_all();
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        let mut medium = self.lock();
        medium.faults.clear();
        medium.tell_all();
    }

    /// How many envelopes, or copies of one, have vanished: by chance, by a cut while they were
    /// under way, or because the receiver's queue was full.
    pub fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// How many envelopes a transport took charge of, from one gateway to another.
    pub fn carried(&self, from: GatewayId, to: GatewayId) -> u64 {
        self.lock().carried.get(&(from, to)).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Medium {
    fn faults(&self, from: GatewayId, to: GatewayId) -> Faults {
        self.faults.get(&(from, to)).cloned().unwrap_or_default()
    }

    fn reaches(&self, from: GatewayId, to: GatewayId) -> bool {
        let is_up = |gateway| self.ends.get(&gateway).is_some_and(|end| end.is_up);
        from != to && is_up(from) && is_up(to) && !self.faults(from, to).cut
    }

    fn reached_from(&self, from: GatewayId) -> impl Iterator<Item = (&GatewayId, &End)> {
        self.ends.iter().filter(move |(to, _)| self.reaches(from, **to))
    }

    /// Who would hear a broadcast.
    fn audience(&self, from: GatewayId) -> Vec<GatewayId> {
        self.reached_from(from)
            .filter(|(_, end)| end.hears_broadcasts)
            .map(|(gateway, _)| *gateway)
            .collect()
    }

    fn tell_all(&self) {
        for (gateway, end) in &self.ends {
            let mut names: BTreeSet<String> =
                self.reached_from(*gateway).map(|(other, _)| other.to_string()).collect();
            if end.hears_broadcasts && !self.audience(*gateway).is_empty() {
                names.insert(broadcast_target(end.name));
            }
            end.reachable.send_if_modified(|known| {
                let is_news = **known != names;
                if is_news {
                    *known = Arc::new(names);
                }
                is_news
            });
        }
        self.wake_for_rosters();
    }

    /// Whether the transport refuses the next envelope.
    fn refuses(&mut self, from: GatewayId, to: GatewayId) -> bool {
        let share = self.faults(from, to).refusal;
        share > 0.0 && self.rng.random::<f64>() < share
    }

    /// Draws what becomes of one envelope: how long each copy takes; none if it is lost.
    fn draw(&mut self, from: GatewayId, to: GatewayId) -> Vec<Duration> {
        let faults = self.faults(from, to);
        // The draws are always the same number, so that one fault does not shift the others.
        let is_lost = self.rng.random::<f64>() < faults.loss;
        let is_doubled = self.rng.random::<f64>() < faults.duplication;
        let delays =
            [draw_delay(&mut self.rng, faults.delay), draw_delay(&mut self.rng, faults.delay)];
        if is_lost {
            self.lost += 1;
            return Vec::new();
        }
        delays.into_iter().take(1 + usize::from(is_doubled)).collect()
    }

    /// Hands over what has crossed, unless the way was cut meanwhile.
    fn arrive(&mut self, from: GatewayId, to: GatewayId, bytes: Vec<u8>) {
        let inbox = self.ends.get(&to).map(|end| end.inbox.clone());
        let arrived =
            self.reaches(from, to) && inbox.is_some_and(|inbox| inbox.try_send(bytes).is_ok());
        self.lost += u64::from(!arrived);
    }
}

fn draw_delay(rng: &mut impl Rng, (shortest, longest): (Duration, Duration)) -> Duration {
    let micros = |delay: Duration| u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
    let shortest = micros(shortest);
    Duration::from_micros(rng.random_range(shortest..=micros(longest).max(shortest)))
}

fn broadcast_target(name: &str) -> String {
    format!("transport:{name}")
}

/// One gateway's end of a [`MemoryNetwork`].
#[derive(Debug)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    gateway: GatewayId,
    number: u64,
    name: &'static str,
    queue: usize,
    capabilities: Mutex<Capabilities>,
    reachable: watch::Receiver<Arc<BTreeSet<String>>>,
    arrived: tokio::sync::Mutex<mpsc::Receiver<Vec<u8>>>,
    told: Mutex<Told>,
    /// One permit for each envelope that may be under way.
    room: Arc<Semaphore>,
    under_way: Mutex<JoinSet<()>>,
    sent: AtomicU64,
    received: AtomicU64,
    warm: Mutex<BTreeSet<GatewayId>>,
}

impl MemoryTransport {
    /// To whom it was last told to keep its links warm.
    pub fn kept_warm(&self) -> BTreeSet<GatewayId> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes this end off the medium, or puts it back, as when a radio is switched.
    pub fn set_up(&self, is_up: bool) {
        let mut medium = self.network.lock();
        if let Some(end) = medium.ends.get_mut(&self.gateway)
            && end.number == self.number
        {
            end.is_up = is_up;
        }
        medium.tell_all();
    }

    /// Declares another anonymity level from now on; the best it can reach rises with it.
    pub fn set_level(&self, level: u8) {
        let mut can = self.lock_capabilities();
        can.anonymity_level = level;
        can.best_anonymity_level = can.best_anonymity_level.max(level);
    }

    /// Puts bytes on the way to `target` that need not be an envelope, as a neighbour might that
    /// means ill. Faults apply; delays do not.
    ///
    /// # Errors
    ///
    /// As for an envelope.
    pub fn inject(&self, target: &str, bytes: Vec<u8>) -> Result<(), SendError> {
        let mut medium = self.network.lock();
        for to in self.recipients(&medium, target)? {
            if !medium.draw(self.gateway, to).is_empty() {
                medium.arrive(self.gateway, to, bytes.clone());
            }
        }
        Ok(())
    }

    fn lock_capabilities(&self) -> MutexGuard<'_, Capabilities> {
        self.capabilities.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recipients(&self, medium: &Medium, target: &str) -> Result<Vec<GatewayId>, SendError> {
        let unreachable = || SendError::Unreachable { target: target.to_owned() };
        if medium.ends.get(&self.gateway).is_none_or(|end| end.number != self.number) {
            return Err(SendError::Shut);
        }
        let recipients = if target == broadcast_target(self.name) {
            medium.audience(self.gateway)
        } else {
            let to = target.parse().map_err(|_| unreachable())?;
            medium.reaches(self.gateway, to).then_some(to).into_iter().collect()
        };
        if recipients.is_empty() { Err(unreachable()) } else { Ok(recipients) }
    }

    fn carry(&self, to: GatewayId, delay: Duration, bytes: Vec<u8>, room: OwnedSemaphorePermit) {
        let (network, from) = (self.network.clone(), self.gateway);
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        while under_way.try_join_next().is_some() {}
        under_way.spawn(async move {
            sleep(delay).await;
            network.lock().arrive(from, to, bytes);
            drop(room);
        });
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End")
            .field("number", &self.number)
            .field("is_up", &self.is_up)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        self.lock_capabilities().clone()
    }

    fn reachable(&self) -> watch::Receiver<Arc<BTreeSet<String>>> {
        self.reachable.clone()
    }

    async fn send(&self, target: &str, envelope: SignedEnvelope) -> Result<(), SendError> {
        let size = envelope.as_bytes().len();
        let limit = self.lock_capabilities().max_message_size.saturating_add(HEADROOM);
        if size > limit {
            return Err(SendError::TooLarge { size, limit });
        }
        let bytes = envelope.into_bytes();
        let mut medium = self.network.lock();
        let recipients = self.recipients(&medium, target)?;
        if recipients.iter().any(|to| medium.refuses(self.gateway, *to)) {
            return Err(SendError::Failed("it refuses, as it was told to".into()));
        }
        let busy = |_| SendError::Busy { limit: self.queue };
        let room = self.room.clone().try_acquire_owned().map_err(busy)?;
        let mut copies = Vec::new();
        for to in recipients {
            *medium.carried.entry((self.gateway, to)).or_default() += 1;
            copies.extend(medium.draw(self.gateway, to).into_iter().map(|delay| (to, delay)));
        }
        let mut room = Some(room);
        for (to, delay) in copies {
            if delay.is_zero() {
                medium.arrive(self.gateway, to, bytes.clone());
            } else if let Some(room) =
                room.take().or_else(|| self.room.clone().try_acquire_owned().ok())
            {
                self.carry(to, delay, bytes.clone(), room);
            } else {
                medium.lost += 1;
            }
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn receive(&self) -> Option<Vec<u8>> {
        let bytes = self.arrived.lock().await.recv().await?;
        self.received.fetch_add(1, Ordering::Relaxed);
        Some(bytes)
    }

    fn keep_warm(&self, gateways: &BTreeSet<GatewayId>) {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner).clone_from(gateways);
    }

    fn publish(&self, roster: &SignedRoster, delta: Option<&SignedRoster>) {
        self.publish_roster(roster, delta);
    }

    async fn receive_roster(&self) -> Option<HeardRoster> {
        self.next_roster().await
    }

    fn roster_missed(&self, gateway: GatewayId) {
        self.tell_again(gateway);
    }

    fn serve_files(&self, source: Arc<dyn FileSource>) {
        self.serve(source);
    }

    async fn fetch_file(
        &self,
        gateway: GatewayId,
        file: &str,
        from: u64,
    ) -> Result<FileFetch, FileError> {
        self.fetch(gateway, file, from).await
    }

    fn status(&self) -> Status {
        let medium = self.network.lock();
        let is_up = medium
            .ends
            .get(&self.gateway)
            .is_some_and(|end| end.number == self.number && end.is_up);
        let is_connected = is_up && medium.reached_from(self.gateway).next().is_some();
        Status {
            is_available: is_up,
            is_connected,
            connection_quality: if is_connected { 1.0 } else { 0.0 },
            envelopes_sent: self.sent.load(Ordering::Relaxed),
            envelopes_received: self.received.load(Ordering::Relaxed),
        }
    }

    async fn shutdown(&self) {
        let mut under_way =
            std::mem::take(&mut *self.under_way.lock().unwrap_or_else(PoisonError::into_inner));
        // Whatever takes longer is cut off with the set.
        let _ =
            timeout(SHUTDOWN_GRACE, async { while under_way.join_next().await.is_some() {} }).await;
        self.network.leave(self.gateway, self.number);
    }
}

impl MemoryNetwork {
    fn leave(&self, gateway: GatewayId, number: u64) {
        let mut medium = self.lock();
        if medium.ends.get(&gateway).is_some_and(|end| end.number == number) {
            if let Some(left) = medium.ends.remove(&gateway) {
                left.rosters.changed.notify_one();
            }
            medium.tell_all();
        }
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.network.leave(self.gateway, self.number);
    }
}

#[cfg(test)]
mod tests;
