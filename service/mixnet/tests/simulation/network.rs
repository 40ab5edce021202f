//! Nodes, links and one clock that jumps.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::{Duration, Instant},
};

use fieldpost_envelope::OpeningKey;
use fieldpost_mixnet::{
    fragment::TransferId,
    receiver::{self, Receiver},
    relay::{self, Relay},
    replay::ReplayCache,
    sender::{self, Failure, Outgoing, Routes, SendId, Sender},
    sphinx::{Group, Packet, RelayId, Route, RouteStop, X25519},
};
use rand::{CryptoRng, Rng, RngExt, SeedableRng, rngs::StdRng};

pub(crate) const EPOCH: u64 = 500_000;

/// What the links do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions {
    /// Of a thousand packets on a link, how many are lost.
    pub(crate) lost: u32,
    /// Of a thousand, how many come twice.
    pub(crate) doubled: u32,
    /// The shortest and the longest time on a link; packets overtake each other.
    pub(crate) latency: (Duration, Duration),
}

impl Conditions {
    pub(crate) const QUIET: Self = Self {
        lost: 0,
        doubled: 0,
        latency: (Duration::from_millis(1), Duration::from_millis(10)),
    };
    pub(crate) const ROUGH: Self = Self {
        lost: 30,
        doubled: 50,
        latency: (Duration::from_millis(1), Duration::from_millis(400)),
    };
}

/// How a message ended for its sender.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    Committed,
    Failed(Failure),
}

pub(crate) struct Network {
    pub(crate) conditions: Conditions,
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    rng: StdRng,
    nodes: Vec<Node>,
    directory: Directory,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    count: u64,
    /// Whether gateways' stores commit, and how fast.
    pub(crate) commits: Option<Duration>,
    /// Whether stores refuse instead.
    pub(crate) refuses: bool,
    /// Messages that were stored, by transfer.
    pub(crate) stored: Vec<(TransferId, Vec<u8>)>,
    pub(crate) ends: BTreeMap<SendId, (Instant, End)>,
    /// How many packets left a node, and what each was for.
    pub(crate) transmitted: u64,
}

struct Node {
    relay: Relay,
    sender: Sender<StdRng>,
    receiver: Receiver<StdRng>,
    alive: bool,
    seen: BTreeSet<Vec<u8>>,
}

enum Happening {
    Arrives { node: usize, packet: Packet },
    Slot { node: usize },
    Wake { node: usize },
    Commit { node: usize, transfer: TransferId },
    Dies { node: usize },
}

impl Network {
    /// Two gateways, nodes 0 and 1, and `relays` relays.
    pub(crate) fn new(seed: u64, relays: usize, conditions: Conditions) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let start = start();
        let mut directory = Directory { stops: Vec::new(), us: 0, rng: split(&mut rng), hops: 4 };
        let nodes = (0..relays + 2)
            .map(|number| {
                let mut secret = [0; 32];
                rng.fill_bytes(&mut secret);
                let id = id(number);
                let key = X25519::public(&X25519::secret(&secret).unwrap()).unwrap();
                directory.stops.push(RouteStop { id, key, delay: Duration::ZERO });
                let mut relay = Relay::new(relay::Config::default(), start);
                let cache = ReplayCache::new(EPOCH, [7; 32], 100_000);
                relay.open_epoch(&secret, cache, start + Duration::from_secs(86_400)).unwrap();
                let mut receiver = Receiver::new(id, receiver::Config::default(), split(&mut rng));
                receiver.open_epoch(EPOCH, opening_key(number));
                Node {
                    relay,
                    sender: Sender::new(sender::Config::default(), split(&mut rng)),
                    receiver,
                    alive: true,
                    seen: BTreeSet::new(),
                }
            })
            .collect();
        Self {
            conditions,
            start,
            now: start,
            rng,
            nodes,
            directory,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            count: 0,
            commits: Some(Duration::from_millis(5)),
            refuses: false,
            stored: Vec::new(),
            ends: BTreeMap::new(),
            transmitted: 0,
        }
    }

    pub(crate) fn set_hops(&mut self, hops: usize) {
        self.directory.hops = hops;
    }

    /// Gateway 0 sends to gateway 1.
    pub(crate) fn send(&mut self, send: u64, message: Vec<u8>, within: Duration) {
        let outgoing = Outgoing {
            send: SendId(send),
            gateway: id(1),
            epoch: EPOCH,
            key: opening_key(1).sealing_key(),
            until: self.now + within,
            message,
        };
        self.tell_sender(0, sender::Event::Send(outgoing));
        self.at(self.now, Happening::Slot { node: 0 });
    }

    pub(crate) fn kill(&mut self, node: usize, after: Duration) {
        self.at(self.now + after, Happening::Dies { node });
    }

    /// Runs until nothing happens any more, or for `limit`.
    pub(crate) fn run(&mut self, limit: Duration) {
        let end = self.now + limit;
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > end {
                self.queue.push(Reverse((at, number)));
                break;
            }
            assert!(at >= self.now, "time goes backwards");
            self.now = at;
            let happening = self.happenings.remove(&number).unwrap();
            self.happen(happening);
        }
    }

    pub(crate) fn sender(&self, node: usize) -> &Sender<StdRng> {
        &self.nodes[node].sender
    }

    pub(crate) fn receiver(&self, node: usize) -> &Receiver<StdRng> {
        &self.nodes[node].receiver
    }

    pub(crate) fn replayed(&self) -> u64 {
        self.nodes.iter().map(|node| node.relay.counts().replayed).sum()
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrives { node, packet } => {
                if self.nodes[node].alive {
                    self.tell_relay(node, relay::Event::Packet(packet));
                }
            }
            Happening::Slot { node } => {
                if self.nodes[node].sender.has_waiting() {
                    self.tell_sender(node, sender::Event::Slot);
                    // Paced, as a driver would.
                    self.at(self.now + Duration::from_millis(2), Happening::Slot { node });
                }
            }
            Happening::Wake { node } => {
                if self.nodes[node].alive {
                    self.tell_relay(node, relay::Event::Wake);
                    self.tell_sender(node, sender::Event::Wake);
                    self.tell_receiver(node, receiver::Event::Wake);
                }
            }
            Happening::Commit { node, transfer } => {
                let settled = if self.refuses {
                    receiver::Event::Refused(transfer)
                } else {
                    receiver::Event::Committed(transfer)
                };
                self.tell_receiver(node, settled);
            }
            Happening::Dies { node } => self.nodes[node].alive = false,
        }
    }

    fn tell_relay(&mut self, node: usize, event: relay::Event) {
        let actions: Vec<_> = self.nodes[node].relay.handle(self.now, event).collect();
        for action in actions {
            match action {
                relay::Action::Log { record, .. } => {
                    let new = self.nodes[node].seen.insert(record.to_vec());
                    assert!(new, "a packet was taken twice");
                }
                relay::Action::Forward { to, packet } => self.transmit(to, packet),
                relay::Action::Deliver(packet) => {
                    self.tell_receiver(node, receiver::Event::Packet(packet));
                }
                relay::Action::Reply { surb, packet } => {
                    self.tell_sender(node, sender::Event::Reply { surb, packet });
                }
            }
        }
        self.wake(node, self.nodes[node].relay.next_deadline());
    }

    fn tell_sender(&mut self, node: usize, event: sender::Event) {
        self.directory.us = node;
        let sender = &mut self.nodes[node].sender;
        let actions: Vec<_> = sender.handle(self.now, event, &mut self.directory).collect();
        let (deadline, waiting) = (sender.next_deadline(), sender.has_waiting());
        for action in actions {
            match action {
                sender::Action::Transmit { to, packet } => self.transmit(to, packet),
                sender::Action::NoRoute(_) => {}
                sender::Action::Committed(send) => self.end(send, End::Committed),
                sender::Action::Failed { send, reason } => self.end(send, End::Failed(reason)),
            }
        }
        self.wake(node, deadline);
        if waiting {
            self.at(self.now + Duration::from_millis(2), Happening::Slot { node });
        }
    }

    fn tell_receiver(&mut self, node: usize, event: receiver::Event) {
        let receiver = &mut self.nodes[node].receiver;
        let actions: Vec<_> = receiver.handle(self.now, event).collect();
        let deadline = receiver.next_deadline();
        for action in actions {
            match action {
                receiver::Action::Transmit { to, packet } => self.transmit(to, packet),
                receiver::Action::Store { transfer, message } => {
                    self.stored.push((transfer, message));
                    if let Some(takes) = self.commits {
                        self.at(self.now + takes, Happening::Commit { node, transfer });
                    }
                }
            }
        }
        self.wake(node, deadline);
    }

    fn end(&mut self, send: SendId, end: End) {
        let before = self.ends.insert(send, (self.now, end));
        assert_eq!(before, None, "{send:?} ended twice");
    }

    fn transmit(&mut self, to: RelayId, packet: Packet) {
        self.transmitted += 1;
        let Conditions { lost, doubled, latency } = self.conditions;
        let node = usize::from(to.0[0]);
        let copies = 1 + u32::from(self.rng.random_range(0..1000) < doubled);
        for _ in 0..copies {
            if self.rng.random_range(0..1000) < lost {
                continue;
            }
            let took = self.rng.random_range(latency.0..=latency.1);
            self.at(self.now + took, Happening::Arrives { node, packet: packet.clone() });
        }
    }

    fn wake(&mut self, node: usize, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            self.at(deadline.max(self.now), Happening::Wake { node });
        }
    }

    fn at(&mut self, at: Instant, happening: Happening) {
        // Wakes are many and alike.
        if let Happening::Wake { node } = happening {
            let number = (1 << 40) | (node as u64) << 50;
            let number = number + at.duration_since(self.start).as_micros() as u64;
            if self.happenings.insert(number, Happening::Wake { node }).is_none() {
                self.queue.push(Reverse((at, number)));
            }
            return;
        }
        self.count += 1;
        self.happenings.insert(self.count, happening);
        self.queue.push(Reverse((at, self.count)));
    }
}

/// Knows all nodes, but not which of them are dead.
struct Directory {
    stops: Vec<RouteStop>,
    us: usize,
    rng: StdRng,
    hops: usize,
}

impl Directory {
    fn route(&mut self, last: usize) -> Option<Route> {
        let mut relays: Vec<usize> = (2..self.stops.len()).collect();
        let mut stops = Vec::new();
        while stops.len() + 1 < self.hops && !relays.is_empty() {
            let chosen = self.rng.random_range(0..relays.len());
            stops.push(self.stops[relays.swap_remove(chosen)]);
        }
        stops.push(self.stops[last]);
        Route::new(EPOCH, stops).ok()
    }
}

impl Routes for Directory {
    fn to(&mut self, gateway: RelayId) -> Option<Route> {
        self.route(usize::from(gateway.0[0]))
    }

    fn back(&mut self) -> Option<Route> {
        self.route(self.us)
    }
}

pub(crate) fn message(seed: u64, length: usize) -> Vec<u8> {
    let mut message = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut message);
    message
}

fn id(node: usize) -> RelayId {
    RelayId([node as u8; 32])
}

fn opening_key(node: usize) -> OpeningKey {
    OpeningKey::from_bytes([node as u8 + 100; 32])
}

fn split(rng: &mut impl CryptoRng) -> StdRng {
    StdRng::from_rng(rng)
}

#[expect(clippy::disallowed_methods, reason = "virtual time needs a start; it is never read again")]
fn start() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}
