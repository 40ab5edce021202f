//! A small network: nodes, links with delay, loss and a largest frame, and stations that put
//! whatever they like on the air.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use fieldpost_bitchat::{
    Action, Command, Event, Identity, Limits, LinkId, MeshId, Node, Now, Report, Role,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Where virtual time begins, in milliseconds since 1970.
pub(crate) const EPOCH_MS: u64 = 1_790_000_000_000;

pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) nodes: Vec<Node<StdRng>>,
    pub(crate) reports: Vec<(Duration, usize, Report)>,
    wires: BTreeMap<LinkId, Wire>,
    air: BTreeMap<(Duration, u64), (LinkId, usize, Vec<u8>)>,
    /// A link of which all frames are kept, and those frames.
    pub(crate) watched: Option<LinkId>,
    pub(crate) watched_frames: Vec<Vec<u8>>,
    /// What the stations heard.
    pub(crate) heard: Vec<(LinkId, Vec<u8>)>,
    /// Private messages whose arrival was confirmed.
    pub(crate) acknowledged: BTreeSet<(usize, String)>,
    rng: StdRng,
    count: u64,
    seed: u64,
}

/// An end of a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    Node(usize),
    /// Nobody's code: the test speaks for it.
    Station,
}

#[derive(Clone)]
pub(crate) struct Wire {
    ends: [End; 2],
    max_frame: usize,
    pub(crate) delay_ms: RangeInclusive<u64>,
    pub(crate) loss: f64,
    arrived: [Duration; 2],
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Duration::from_secs(1000),
            nodes: Vec::new(),
            reports: Vec::new(),
            wires: BTreeMap::new(),
            air: BTreeMap::new(),
            watched: None,
            watched_frames: Vec::new(),
            heard: Vec::new(),
            acknowledged: BTreeSet::new(),
            rng: StdRng::seed_from_u64(seed),
            count: 0,
            seed,
        }
    }

    pub(crate) fn add(&mut self, nickname: &str) -> usize {
        self.add_with(nickname, Limits::default())
    }

    pub(crate) fn add_with(&mut self, nickname: &str, limits: Limits) -> usize {
        let index = self.nodes.len();
        let mut rng = StdRng::seed_from_u64(self.seed ^ (index as u64 + 1) << 20);
        let identity = Identity::generate(&mut rng);
        self.nodes.push(Node::new(rng, limits, identity, nickname.to_owned()));
        index
    }

    pub(crate) fn line(&mut self, count: usize) {
        (0..count).for_each(|i| {
            self.add(&format!("node {i}"));
        });
        (1..count).for_each(|i| {
            self.link(i - 1, i);
        });
    }

    pub(crate) fn link(&mut self, a: usize, b: usize) -> LinkId {
        self.wire(End::Node(a), End::Node(b), 512)
    }

    pub(crate) fn station(&mut self, node: usize) -> LinkId {
        self.wire(End::Station, End::Node(node), 512)
    }

    pub(crate) fn wire(&mut self, a: End, b: End, max_frame: usize) -> LinkId {
        self.count += 1;
        let link = LinkId(self.count);
        let arrived = [self.now; 2];
        self.wires
            .insert(link, Wire { ends: [a, b], max_frame, delay_ms: 5..=15, loss: 0.0, arrived });
        for (end, role) in [(a, Role::Central), (b, Role::Peripheral)] {
            if let End::Node(node) = end {
                self.give(node, Event::LinkUp { link, role, max_frame, phone: true });
            }
        }
        link
    }

    pub(crate) fn set_loss(&mut self, loss: f64) {
        self.wires.values_mut().for_each(|wire| wire.loss = loss);
    }

    pub(crate) fn wire_mut(&mut self, link: LinkId) -> &mut Wire {
        self.wires.get_mut(&link).unwrap()
    }

    /// Takes a node off the air.
    pub(crate) fn kill(&mut self, node: usize) {
        let dead: Vec<_> = self
            .wires
            .iter()
            .filter(|(_, wire)| wire.ends.contains(&End::Node(node)))
            .map(|(link, wire)| (*link, wire.ends))
            .collect();
        for (link, ends) in dead {
            self.wires.remove(&link);
            for end in ends {
                if let End::Node(node) = end {
                    self.give(node, Event::LinkDown { link });
                }
            }
        }
    }

    /// Takes a node off the air and puts one with the same keys in its place, which knows nothing.
    pub(crate) fn restart(&mut self, node: usize) {
        self.kill(node);
        let mut rng = StdRng::seed_from_u64(self.seed ^ (node as u64 + 1) << 20);
        let identity = Identity::generate(&mut rng);
        // Else it would say what it said before.
        let rng = StdRng::seed_from_u64(self.rng.random());
        self.nodes[node] = Node::new(rng, Limits::default(), identity, "again".to_owned());
    }

    pub(crate) fn id(&self, node: usize) -> MeshId {
        self.nodes[node].id()
    }

    pub(crate) fn host(&mut self, node: usize, nickname: &str) -> MeshId {
        let identity = Box::new(Identity::generate(&mut self.rng));
        let id = identity.id();
        self.command(node, Command::Host { identity, nickname: nickname.to_owned() });
        id
    }

    pub(crate) fn command(&mut self, node: usize, command: Command) {
        self.give(node, Event::Command(command));
    }

    /// A station puts a frame on its link.
    pub(crate) fn inject(&mut self, link: LinkId, frame: Vec<u8>) {
        self.transmit(link, End::Station, frame);
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let frame = self.air.first_key_value().map(|((at, _), _)| *at);
            let wakes = self.nodes.iter().enumerate();
            let wake = wakes.filter_map(|(i, node)| Some((node.next_deadline()?, i))).min();
            let at = frame.into_iter().chain(wake.map(|(at, _)| at)).min();
            let Some(at) = at.filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            if frame == Some(at) {
                let Some((_, (link, to, bytes))) = self.air.pop_first() else { continue };
                match self.wires.get(&link).map(|wire| wire.ends[to]) {
                    Some(End::Node(node)) => self.give(node, Event::Frame { link, bytes }),
                    Some(End::Station) => self.heard.push((link, bytes)),
                    None => {}
                }
            } else if let Some((_, node)) = wake {
                self.give(node, Event::Wake);
            }
        }
        self.now = end;
    }

    pub(crate) fn give(&mut self, node: usize, event: Event) {
        let now = self.time();
        let actions: Vec<_> = self.nodes[node].handle(now, event).collect();
        for action in actions {
            match action {
                Action::Transmit { link, frame } => self.transmit(link, End::Node(node), frame),
                Action::Disconnect { link } => {
                    self.wires.remove(&link);
                }
                Action::Report(report) => self.reports.push((self.now, node, report)),
            }
        }
    }

    pub(crate) fn time(&self) -> Now {
        Now { at: self.now, unix_ms: EPOCH_MS + self.now.as_millis() as u64 }
    }

    /// What one node has reported.
    pub(crate) fn reports_of(&self, node: usize) -> impl Iterator<Item = &Report> {
        self.reports.iter().filter(move |(_, other, _)| *other == node).map(|(.., report)| report)
    }

    pub(crate) fn public_texts(&self, node: usize) -> Vec<String> {
        self.reports_of(node)
            .filter_map(|report| match report {
                Report::Public { text, .. } => Some(text.clone()),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn private_texts(&self, node: usize) -> Vec<String> {
        self.reports_of(node)
            .filter_map(|report| match report {
                Report::Private { text, .. } => Some(text.clone()),
                _ => None,
            })
            .collect()
    }

    fn transmit(&mut self, link: LinkId, from: End, frame: Vec<u8>) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let most = wire.max_frame;
        assert!(from == End::Station || frame.len() <= most, "{} bytes of {most}", frame.len());
        if self.watched == Some(link) {
            self.watched_frames.push(frame.clone());
        }
        let to = usize::from(wire.ends[0] == from);
        if self.rng.random_bool(wire.loss) {
            return;
        }
        let delay = Duration::from_millis(self.rng.random_range(wire.delay_ms.clone()));
        // A link keeps its order.
        let at = (self.now + delay).max(wire.arrived[to]);
        wire.arrived[to] = at;
        self.count += 1;
        self.air.insert((at, self.count), (link, to, frame));
    }
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
