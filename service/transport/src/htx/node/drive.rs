//! The task of a node: feeds its cores what comes and does what they say.

mod packets;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use fieldpost_mixnet::{
    delay::Pace,
    directory::{
        Authority, Certificate, Chain, ChainAction, ChainEvent, Descriptor, Epoch, EpochClock,
        KeyRing, Neighbour, NodeKeys, Pool, RelayId, RoutePolicy, SignedDescriptor, SignedDocument,
    },
    fragment::TransferId,
    htx::PublicKey,
    receiver::{self, Receiver},
    relay::{self, Relay},
    replay::{RECORD_LEN, ReplayCache},
    sender::{self, SendId, Sender},
    sphinx::Packet,
    wire::Message,
};
use rand::{SeedableRng, seq::IndexedRandom};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::sleep_until,
};

use super::{
    Command, ForwardError, HtxError, HtxFigures,
    link::{LinkEvent, LinkNumber},
    links::Links,
    lock,
    routes::RouteBook,
    secrets::Secrets,
};
use crate::htx::{Clock, Dialer, ForgetfulRng, LinkEnd, Target};

/// What the node says of itself, beside its keys.
pub(super) struct Description {
    pub(super) operator: String,
    pub(super) autonomous_system: Option<u32>,
    pub(super) country: Option<[u8; 2]>,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) server_name: String,
    pub(super) through: Vec<RelayId>,
    pub(super) capacity: u32,
    pub(super) relays: bool,
}

/// Where the node's task puts what others wait for.
pub(super) struct Outlets {
    pub(super) reachable: watch::Sender<Arc<BTreeSet<String>>>,
    pub(super) descriptors: watch::Sender<Arc<Vec<SignedDescriptor>>>,
    pub(super) documents: watch::Sender<Arc<Vec<SignedDocument>>>,
    pub(super) figures: watch::Sender<HtxFigures>,
    pub(super) arrived: mpsc::Sender<Vec<u8>>,
}

/// What came and is not dealt with: told by [`Transport::taken`](crate::Transport::taken).
#[derive(Default)]
pub(super) struct Handed {
    hasher: RandomState,
    state: Mutex<HandedState>,
    changed: Notify,
}

#[derive(Default)]
struct HandedState {
    /// Each with a keyed hash of its bytes, the oldest first.
    waiting: VecDeque<(u64, TransferId)>,
    taken: Vec<TransferId>,
}

impl Handed {
    /// Whoever was given these bytes has dealt with them.
    pub(super) fn taken(&self, message: &[u8]) {
        let hash = self.hasher.hash_one(message);
        let mut state = lock(&self.state);
        let HandedState { waiting, taken } = &mut *state;
        // Several, where the same bytes came in several transfers.
        waiting.retain(|(other, transfer)| {
            let is_it = *other == hash;
            if is_it {
                taken.push(*transfer);
            }
            !is_it
        });
        if !taken.is_empty() {
            self.changed.notify_one();
        }
    }

    fn hand(&self, transfer: TransferId, message: &[u8]) {
        let hash = self.hasher.hash_one(message);
        let mut state = lock(&self.state);
        if state.waiting.len() >= MOST_HANDED {
            // It was never settled; its sender sends it again.
            state.waiting.pop_front();
        }
        state.waiting.push_back((hash, transfer));
    }

    fn take(&self) -> Vec<TransferId> {
        std::mem::take(&mut lock(&self.state).taken)
    }
}

/// What a node is made of.
pub(super) struct Parts {
    pub(super) keys: NodeKeys,
    pub(super) description: Description,
    pub(super) certificate: Option<Certificate>,
    pub(super) authority: Authority,
    pub(super) documents: Vec<Vec<u8>>,
    pub(super) policy: RoutePolicy,
    pub(super) pace: Pace,
    pub(super) secrets: Secrets,
    pub(super) dialer: Dialer,
    pub(super) clock: Clock,
    pub(super) handed: Arc<Handed>,
    pub(super) rng: ForgetfulRng,
}

/// What the node's task listens to.
pub(super) struct Inlets {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) accepted: Option<mpsc::Receiver<LinkEnd>>,
    pub(super) events: mpsc::Receiver<LinkEvent>,
    pub(super) packets: mpsc::Receiver<Packet>,
}

/// A node, between two events.
pub(super) struct Node {
    keys: NodeKeys,
    description: Description,
    certificate: Option<Certificate>,
    clock: Clock,
    epochs: EpochClock,
    pace: Pace,
    rng: ForgetfulRng,
    relay: Relay,
    receiver: Receiver<ForgetfulRng>,
    sender: Sender<ForgetfulRng>,
    ring: KeyRing<ForgetfulRng>,
    secrets: Secrets,
    /// Caches from before the restart, until their epoch is opened.
    restored: BTreeMap<Epoch, ReplayCache>,
    /// Epochs that the relay has opened: none is opened twice, as its cache would be empty.
    opened: BTreeSet<Epoch>,
    /// Epochs that the receiver has opened.
    sealing: BTreeSet<Epoch>,
    chain: Chain<ForgetfulRng>,
    pool: Pool,
    routes: RouteBook,
    links: Links,
    /// The Noise key at the other end of links that have not said yet who they are.
    unnamed: BTreeMap<LinkNumber, PublicKey>,
    /// Packets that we send to ourselves: the relay of an answer's route may be its receiver.
    own_packets: VecDeque<Packet>,
    records: BTreeMap<Epoch, Vec<[u8; RECORD_LEN]>>,
    outlets: Outlets,
    /// The own newest descriptor; there from the start.
    descriptor: Option<watch::Sender<SignedDescriptor>>,
    handed: Arc<Handed>,
    next_send: u64,
    hasher: RandomState,
    /// A keyed hash of each message that the sender has, so that none is sent twice at a time.
    under_way: BTreeMap<SendId, u64>,
    slot_at: Instant,
    tick_at: Instant,
    described_epoch: Option<Epoch>,
    figures: HtxFigures,
}

impl Node {
    /// A node that has its keys and knows what it knew. Also its first descriptor.
    pub(super) fn new(
        parts: Parts,
        events: mpsc::Sender<LinkEvent>,
        packets: mpsc::Sender<Packet>,
        outlets: Outlets,
    ) -> Result<Self, HtxError> {
        let Parts { keys, description, certificate, authority, documents, policy, .. } = parts;
        let Parts { pace, mut secrets, dialer, clock, handed, mut rng, .. } = parts;
        let mut split = || ForgetfulRng::from_rng(&mut rng);
        let now = tokio::time::Instant::now().into_std();
        let (time, epochs, own) = (clock(), authority.clock(), keys.id());
        let most_tags = upkeep::most_tags(description.capacity, epochs);
        let mut ring = KeyRing::new(split(), epochs);
        let mut restored = BTreeMap::new();
        for (epoch, secret, cache) in secrets.restore(most_tags) {
            if ring.restore(time, epoch, secret) {
                restored.insert(epoch, cache);
            } else {
                secrets.erase(epoch);
            }
        }
        let mut chain = Chain::new(split(), authority);
        for document in &documents {
            for action in chain.handle(time, ChainEvent::Offered(document)) {
                if let ChainAction::Refused { error, .. } = action {
                    tracing::warn!(%error, "a document that was kept is of no use any more");
                }
            }
        }
        // Delays fit into the grace of an epoch, whatever its length.
        let hops = policy.relays + 1;
        let sender = sender::Config {
            delay: pace.delay,
            longest_delay: epochs.longest_delay(hops),
            ..sender::Config::default()
        };
        let relay = relay::Config { forwards: description.relays, ..relay::Config::default() };
        let mut node = Self {
            relay: Relay::new(relay, now),
            receiver: Receiver::new(own, receiver::Config::default(), split()),
            sender: Sender::new(sender, split()),
            routes: RouteBook::new(own, epochs, policy, split(), time),
            links: Links::new(dialer, split(), events, packets),
            pool: Pool::new(epochs),
            outlets,
            descriptor: None,
            keys,
            description,
            certificate,
            clock,
            epochs,
            pace,
            ring,
            secrets,
            restored,
            opened: BTreeSet::new(),
            sealing: BTreeSet::new(),
            chain,
            unnamed: BTreeMap::new(),
            own_packets: VecDeque::new(),
            records: BTreeMap::new(),
            handed,
            next_send: 0,
            hasher: RandomState::new(),
            under_way: BTreeMap::new(),
            slot_at: now,
            tick_at: now,
            described_epoch: None,
            figures: HtxFigures::default(),
            rng,
        };
        node.advance(now, time)?;
        node.publish_documents();
        node.refresh(now, time);
        Ok(node)
    }

    /// The own newest descriptor, and those to come.
    pub(super) fn descriptor(&self) -> Option<watch::Receiver<SignedDescriptor>> {
        self.descriptor.as_ref().map(watch::Sender::subscribe)
    }

    /// Runs until it is told to stop.
    pub(super) async fn run(mut self, inlets: Inlets) {
        let Inlets { mut commands, mut accepted, mut events, mut packets } = inlets;
        let handed = Arc::clone(&self.handed);
        let (mut batch, mut orders) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                count = commands.recv_many(&mut orders, BATCH) => {
                    let stops = orders.iter().any(|order| matches!(order, Command::Stop));
                    if count == 0 || stops {
                        break;
                    }
                    orders.drain(..).for_each(|order| self.obey(order));
                }
                Some(event) = events.recv() => self.hear(event),
                count = packets.recv_many(&mut batch, BATCH), if !packets.is_closed() || !packets.is_empty() => {
                    if count > 0 {
                        self.take_in(batch.drain(..));
                    }
                }
                Some(end) = accept(&mut accepted) => self.links.accept(now(), end),
                () = handed.changed.notified() => {}
                () = sleep_until(deadline.into()) => {}
            }
            self.settle();
            self.wake();
            // Crypto of a batch takes milliseconds: others have their turn.
            tokio::task::yield_now().await;
        }
        self.outlets.reachable.send_replace(Arc::default());
        self.links.close().await;
    }

    fn next_deadline(&self) -> Instant {
        let own = if self.sender.has_waiting() { Some(self.slot_at) } else { None };
        let cores = [
            self.relay.next_deadline(),
            self.receiver.next_deadline(),
            self.sender.next_deadline(),
            self.links.next_deadline(),
            own,
        ];
        cores.into_iter().flatten().min().map_or(self.tick_at, |due| due.min(self.tick_at))
    }

    fn obey(&mut self, command: Command) {
        let (now, time) = (now(), (self.clock)());
        match command {
            // Who does not wait any more asks again: to send it now would be to send it twice.
            Command::Send { answer, .. } if answer.is_closed() => {}
            Command::Send { target, message, answer } => {
                // Whoever asked may have gone.
                answer.send(self.send(&target, message)).unwrap_or_default();
            }
            Command::Forward { first, packet, answer } => {
                let is_known =
                    self.routes.active().is_some_and(|active| active.relay(&first).is_some());
                let result = if first != self.keys.id() && !is_known {
                    Err(ForwardError::UnknownRelay(first))
                } else if self.pass(now, first, packet) {
                    Ok(())
                } else {
                    Err(ForwardError::Busy(first))
                };
                answer.send(result).unwrap_or_default();
            }
            Command::Learn(document) => self.learn(time, ChainEvent::Offered(&document)),
            Command::Introduce(descriptor) => self.meet(time, None, &descriptor),
            Command::Certify(certificate) => {
                self.certificate = Some(certificate);
                self.describe_anew(time);
            }
            Command::Stop => {}
        }
    }

    fn hear(&mut self, event: LinkEvent) {
        let (now, time) = (now(), (self.clock)());
        match event {
            LinkEvent::Up { link, peer } => {
                self.links.up(now, link, None);
                if self.links.peer(link).is_none() {
                    self.unnamed.insert(link, peer);
                }
                self.greet(link);
                self.learn(time, ChainEvent::Joined(Neighbour(link)));
                self.refresh(now, time);
            }
            LinkEvent::Message { link, message: Message::Gossip(bytes) } => {
                self.learn(time, ChainEvent::Received { from: Neighbour(link), bytes: &bytes });
            }
            LinkEvent::Message { link, message: Message::Descriptor(bytes) } => {
                self.meet(time, Some(link), &bytes);
                // The first descriptor on a link is its sender's own. It has shown that it holds the
                // Noise key; nobody else's descriptor, signed by somebody else, gets it another name.
                if let Some(noise) = self.unnamed.remove(&link)
                    && let Some(id) = self.named(&bytes, &noise)
                {
                    self.links.identify(now, link, id);
                    self.refresh(now, time);
                }
            }
            LinkEvent::Down { link, is_lost, at } => {
                self.unnamed.remove(&link);
                self.learn(time, ChainEvent::Left(Neighbour(link)));
                let active = self.routes.active().cloned();
                let is_relay = |relay: &RelayId| {
                    let listed = active.as_ref().and_then(|active| active.relay(relay));
                    listed.is_some_and(|listed| listed.relays && !listed.addresses.is_empty())
                };
                if let Some(lost) = self.links.down(now, link, is_lost, is_relay) {
                    self.refresh(now, time);
                    // From here on, no packet of ours is built for a route through it.
                    tracing::info!(
                        relay.id = %lost,
                        switch.duration_us = self::now().duration_since(at).as_micros() as u64,
                        "out of reach: routes lead around it"
                    );
                }
            }
            LinkEvent::RoundTrip { link, round_trip } => self.links.measured(link, round_trip),
        }
    }

    /// Does what is due.
    fn wake(&mut self) {
        let (now, time) = (now(), (self.clock)());
        self.routes.now = time;
        if self.tick_at <= now {
            if let Err(error) = self.advance(now, time) {
                tracing::error!(%error, "the keys of an epoch are not there");
            }
            self.learn(time, ChainEvent::Wake);
            self.refresh(now, time);
            self.show(time);
            let to_epoch =
                self.ring.next_deadline(time).as_millis().saturating_sub(time.as_millis());
            let to_epoch = Duration::from_millis(to_epoch).max(LEAST_TICK);
            self.tick_at = now + TICK.min(to_epoch);
        }
        let own: Vec<_> = self.own_packets.drain(..).collect();
        self.take_in(own.into_iter());
        self.relay_wakes(now);
        self.receive_actions(now, receiver::Event::Wake);
        self.send_actions(now, sender::Event::Wake);
        self.use_slots(now);
        let (routes, pool) = (&self.routes, &self.pool);
        self.links.wake(now, |relay, rng| {
            let active = routes.active().and_then(|active| active.relay(relay));
            let met = || pool.descriptor(relay).and_then(|signed| signed.verify().ok());
            target(active.or_else(met)?, rng)
        });
    }
}

fn target(descriptor: &Descriptor, rng: &mut ForgetfulRng) -> Option<Target> {
    Some(Target {
        address: *descriptor.addresses.choose(rng)?,
        server_name: descriptor.server_name.clone(),
        noise: descriptor.noise,
        ticket: descriptor.ticket,
        carriers: descriptor.carriers.clone(),
        capabilities: descriptor.capabilities.clone(),
    })
}

async fn accept(accepted: &mut Option<mpsc::Receiver<LinkEnd>>) -> Option<LinkEnd> {
    match accepted {
        Some(accepted) => accepted.recv().await,
        None => std::future::pending().await,
    }
}

pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Packets that are worked on before others have their turn.
const BATCH: usize = 32;
/// Twice what the receiver has unsettled at most.
const MOST_HANDED: usize = 512;
const TICK: Duration = Duration::from_millis(500);
const LEAST_TICK: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_come_again_and_again_and_are_not_taken_are_held_within_bounds() {
        let handed = Handed::default();
        for number in 0..10_000_u32 {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            handed.hand(TransferId(id), b"the same");
        }
        assert_eq!(lock(&handed.state).waiting.len(), MOST_HANDED);
        handed.taken(b"another");
        assert!(handed.take().is_empty());
        handed.taken(b"the same");
        assert_eq!(handed.take().len(), MOST_HANDED, "all its transfers are answered");
        assert!(lock(&handed.state).waiting.is_empty());
    }
}
