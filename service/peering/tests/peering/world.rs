//! Endpoints joined by links that take time, lose everything when they are cut, and never lie.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use fieldpost_envelope::{Certificate, GatewayId, NodePurpose, SignedCertificate, Timestamp};
use fieldpost_peering::{
    Action, Event, Identity, LinkId, Moment, NodeId, Outgoing, Peering, Refusal, SendFailure,
    Source, Target, Token, wire,
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

pub(crate) const NOW: u64 = 1_790_000_000_000;
pub(crate) const HOUR: u64 = 3_600_000;

pub(crate) struct World {
    pub(crate) now: Instant,
    began: Instant,
    pub(crate) rng: StdRng,
    pub(crate) nodes: Vec<Node>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    waiting: HashMap<u64, (usize, Event)>,
    /// Both ends of each link, by their places.
    ends: BTreeMap<LinkId, [usize; 2]>,
    cuts: BTreeSet<[usize; 2]>,
    /// When the last frame that is under way on a link in one direction arrives.
    arrives: HashMap<(LinkId, usize), Instant>,
    /// Links that an end reads, and what came on others before they were.
    opened: BTreeSet<(usize, LinkId)>,
    early: Vec<(usize, LinkId, Event)>,
    steps: u64,
    last_link: u64,
    last_token: u64,
    pub(crate) latency: Duration,
}

pub(crate) struct Node {
    pub(crate) core: Peering<StdRng>,
    pub(crate) gateway: GatewayId,
    pub(crate) id: NodeId,
    pub(crate) settled: BTreeMap<Token, Result<(), SendFailure>>,
    pub(crate) inbox: Vec<Bytes>,
    pub(crate) rosters: Vec<(Bytes, bool)>,
    pub(crate) closed: Vec<Refusal>,
    pub(crate) dials: Vec<Instant>,
    /// Whether the gateway takes up what is delivered.
    pub(crate) drains: bool,
}

impl World {
    pub(crate) fn new(seed: u64, count: u8) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let latency = Duration::from_micros(rng.random_range(100..40_000));
        let now = any_instant();
        let nodes = (0..count).map(|place| node(place, &mut rng)).collect();
        Self {
            now,
            began: now,
            rng,
            nodes,
            due: BinaryHeap::new(),
            waiting: HashMap::new(),
            ends: BTreeMap::new(),
            cuts: BTreeSet::new(),
            arrives: HashMap::new(),
            opened: BTreeSet::new(),
            early: vec![],
            steps: 0,
            last_link: 0,
            last_token: 0,
            latency,
        }
    }

    /// All find all others on the local network.
    pub(crate) fn introduce(&mut self) {
        let ids: Vec<_> = self.nodes.iter().map(|node| node.id).collect();
        for place in 0..ids.len() {
            for node in &ids {
                self.feed(place, Event::Found { node: *node, source: Source::Nearby });
            }
        }
    }

    pub(crate) fn send(&mut self, from: usize, target: Target, envelope: Vec<u8>) -> Token {
        self.last_token += 1;
        let token = Token(self.last_token);
        let outgoing = Outgoing { token, target, envelope: envelope.into() };
        self.feed(from, Event::Send(vec![outgoing]));
        token
    }

    pub(crate) fn cut(&mut self, one: usize, other: usize) {
        self.cuts.insert(pair(one, other));
    }

    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Lets time pass, and everything happen that is due.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let wake = (0..self.nodes.len())
                .filter_map(|place| Some((self.nodes[place].core.next_deadline()?, place)))
                .min();
            let arrival = self.due.peek().map(|Reverse((at, _))| *at);
            match (wake, arrival) {
                (wake, Some(at)) if at <= end && wake.is_none_or(|(wake, _)| at <= wake) => {
                    self.now = self.now.max(at);
                    let Reverse((_, step)) = self.due.pop().unwrap();
                    let (place, event) = self.waiting.remove(&step).unwrap();
                    match event {
                        Event::Batch { link, .. } | Event::Rosters { link, .. }
                            if !self.opened.contains(&(place, link)) =>
                        {
                            self.early.push((place, link, event));
                        }
                        event => self.feed(place, event),
                    }
                }
                (Some((at, place)), _) if at <= end => {
                    self.now = self.now.max(at);
                    self.feed(place, Event::Wake);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    pub(crate) fn feed(&mut self, place: usize, event: Event) {
        let elapsed = self.now.duration_since(self.began).as_millis() as u64;
        let wall = Timestamp::try_from(NOW + elapsed).unwrap();
        let now = Moment { at: self.now, wall };
        let actions: Vec<_> = self.nodes[place].core.handle(now, event).collect();
        actions.into_iter().for_each(|action| self.act(place, action));
    }

    fn act(&mut self, place: usize, action: Action) {
        match action {
            Action::Dial { node, patience } => self.dial(place, node, patience),
            Action::Write { link, frame } => {
                let bytes = frame.slice(4..);
                self.carry(place, link, true, |link| Event::Frame { link, bytes });
            }
            Action::Batch { link, number, envelopes, .. } => {
                let body = wire::encode_batch(number, &envelopes).concat().into();
                self.carry(place, link, false, |link| Event::Batch { link, body });
            }
            Action::Rosters { link, rosters } => {
                let body = wire::encode_rosters(&rosters).concat().into();
                self.carry(place, link, false, |link| Event::Rosters { link, body });
            }
            Action::Close { link, refusal } => {
                self.nodes[place].closed.push(refusal);
                let reason = Some(refusal);
                self.carry(place, link, true, |link| Event::Closed { link, reason });
                self.ends.remove(&link);
            }
            Action::Deliver { gateway, envelope } => {
                let (envelopes, bytes) = (1, envelope.len());
                self.nodes[place].inbox.push(envelope);
                if self.nodes[place].drains {
                    self.feed(place, Event::Drained { gateway, envelopes, bytes });
                }
            }
            Action::Hear { roster, is_nearby, .. } => {
                self.nodes[place].rosters.push((roster, is_nearby));
            }
            Action::Settle { token, result } => {
                let before = self.nodes[place].settled.insert(token, result);
                assert!(before.is_none(), "{token:?} was settled twice");
            }
            Action::Open { link, .. } => {
                self.opened.insert((place, link));
                let is_due =
                    |early: &mut (usize, LinkId, Event)| (early.0, early.1) == (place, link);
                let due: Vec<_> = self.early.extract_if(.., is_due).collect();
                due.into_iter().for_each(|(_, _, event)| self.later(Duration::ZERO, place, event));
            }
            Action::Forget { .. } | Action::ReachChanged => {}
        }
    }

    fn dial(&mut self, place: usize, node: NodeId, patience: Duration) {
        self.nodes[place].dials.push(self.now);
        let other = self.nodes.iter().position(|other| other.id == node);
        match other.filter(|other| !self.cuts.contains(&pair(place, *other))) {
            None => self.later(patience, place, Event::DialFailed { node }),
            Some(other) => {
                self.last_link += 1;
                let link = LinkId(self.last_link);
                self.ends.insert(link, [place, other]);
                let dialler = self.nodes[place].id;
                let event = Event::Connected { link, node: dialler, is_dialled: false };
                self.later(self.latency, other, event);
                let event = Event::Connected { link, node, is_dialled: true };
                self.later(self.latency, place, event);
                for end in [place, other] {
                    self.arrives.insert((link, end), self.now + self.latency);
                }
            }
        }
    }

    /// Control streams keep their order; other streams overtake each other.
    fn carry(
        &mut self,
        from: usize,
        link: LinkId,
        is_ordered: bool,
        event: impl FnOnce(LinkId) -> Event,
    ) {
        let Some(ends) = self.ends.get(&link) else { return };
        let to = if ends[0] == from { ends[1] } else { ends[0] };
        if self.cuts.contains(&pair(from, to)) {
            // Streams lose nothing while a link lives, so one that lost something is dead, whether its
            // ends know it or not.
            self.ends.remove(&link);
            return;
        }
        let latency = self.latency.mul_f64(self.rng.random_range(1.0..2.0));
        let mut at = self.now + latency;
        if is_ordered {
            let last = self.arrives.entry((link, to)).or_insert(at);
            at = at.max(*last);
            *last = at;
        }
        self.later(at - self.now, to, event(link));
    }

    fn later(&mut self, after: Duration, place: usize, event: Event) {
        self.steps += 1;
        self.due.push(Reverse((self.now + after, self.steps)));
        self.waiting.insert(self.steps, (place, event));
    }
}

/// A node that is not in a world of cores: a stranger with a key.
pub(crate) fn gateway_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(crate) fn node_id(seed: u8) -> NodeId {
    NodeId(SigningKey::from_bytes(&[seed ^ 0x80; 32]).verifying_key().to_bytes())
}

pub(crate) fn certificate(seed: u8, node: NodeId, begins: u64) -> SignedCertificate {
    let key = gateway_key(seed);
    let certificate = Certificate {
        gateway: key.verifying_key().into(),
        purpose: NodePurpose::Mesh,
        node: node.0,
        not_before: Timestamp::try_from(begins).unwrap(),
        not_after: Timestamp::try_from(begins + 24 * HOUR).unwrap(),
    };
    certificate.sign(&key).unwrap()
}

fn node(place: u8, rng: &mut impl Rng) -> Node {
    let (id, gateway) = (node_id(place + 1), gateway_key(place + 1).verifying_key().into());
    let identity = Identity { node: id, gateway, certificate: certificate(place + 1, id, NOW) };
    Node {
        core: Peering::new(identity, StdRng::seed_from_u64(rng.random())),
        gateway,
        id,
        settled: BTreeMap::new(),
        inbox: vec![],
        rosters: vec![],
        closed: vec![],
        dials: vec![],
        drains: true,
    }
}

fn pair(one: usize, other: usize) -> [usize; 2] {
    [one.min(other), one.max(other)]
}

#[expect(clippy::disallowed_methods, reason = "any instant will do to begin with")]
fn any_instant() -> Instant {
    Instant::now()
}
