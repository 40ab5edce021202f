//! The core of an endpoint.

mod hello;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fieldpost_envelope::{GatewayId, SignedCertificate, SignedRoster, Timestamp};
use rand::{Rng, RngExt};

use crate::{
    counters::{Counters, Refusal},
    flow::{Item, SendFailure},
    link::{Link, LinkId},
    rosters::{Others, Own},
    table::{FAULT, NodeId, Source, Table},
    wire::{Frame, Hello, VERSION},
};

/// What the core allows itself and others.
pub mod limits {
    /// Links that have said hello.
    pub const LINKS: usize = 256;
    /// Links to nodes of one gateway.
    pub const LINKS_OF_GATEWAY: usize = 8;
    /// Links that others opened and that have not said hello; one more, and the oldest ends.
    pub const HALF_OPEN: usize = 64;
    /// Envelopes that wait for one link or are under way on it.
    pub const LINK_ENVELOPES: usize = 2048;
    /// The same in bytes.
    pub const LINK_BYTES: usize = 32 * 1024 * 1024;
    /// Bytes of envelopes that one neighbour may have under way to this side.
    pub const NEIGHBOUR_BYTES: usize = 8 * 1024 * 1024;
    /// Envelopes that wait to be taken up by the gateway; more are put off.
    pub const INBOX_ENVELOPES: usize = 4096;
    /// The same in bytes.
    pub const INBOX_BYTES: usize = 64 * 1024 * 1024;
    /// The share of the inbox that one gateway may fill: one part in so many.
    pub const INBOX_SHARE: usize = 4;
}

/// A time as the core needs it: one that never goes back, and one that certificates speak of.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For waiting.
    pub at: Instant,
    /// For certificates.
    pub wall: Timestamp,
}

/// Who this side is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its node key, by which links know it.
    pub node: NodeId,
    /// Its gateway.
    pub gateway: GatewayId,
    /// The gateway's word that the node is one of its own.
    pub certificate: SignedCertificate,
}

/// What one wish to send is called until it is settled.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Token(pub u64);

/// Whom an envelope is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// One gateway.
    Gateway(GatewayId),
    /// One link of each gateway in reach.
    Everybody,
}

/// An envelope to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// By which [`Action::Settle`] names it.
    pub token: Token,
    /// Whom it is for.
    pub target: Target,
    /// Its bytes.
    pub envelope: Bytes,
}

/// What the core is told.
#[derive(Debug)]
pub enum Event {
    /// A connection has been made, and its other end has proved that it holds the node key.
    Connected {
        /// A new name for it.
        link: LinkId,
        /// Whose key it is.
        node: NodeId,
        /// Whether this side dialled.
        is_dialled: bool,
    },
    /// No connection came of [`Action::Dial`].
    DialFailed {
        /// Who was dialled.
        node: NodeId,
    },
    /// A link has ended, by the other side or by itself.
    Closed {
        /// Which.
        link: LinkId,
        /// What the other side said about it, if it was the other side.
        reason: Option<Refusal>,
    },
    /// A frame came on the control stream, without its length.
    Frame {
        /// On which link.
        link: LinkId,
        /// The frame.
        bytes: Bytes,
    },
    /// The body of a batch came.
    Batch {
        /// On which link.
        link: LinkId,
        /// The body.
        body: Bytes,
    },
    /// The body of a stream of rosters came.
    Rosters {
        /// On which link.
        link: LinkId,
        /// The body.
        body: Bytes,
    },
    /// A part of something came.
    Heard {
        /// On which link.
        link: LinkId,
    },
    /// The other side broke a rule that the driver keeps, such as a length.
    Misbehaved {
        /// On which link.
        link: LinkId,
        /// Which rule.
        refusal: Refusal,
    },
    /// Envelopes are to be sent; those that are given together may travel together.
    Send(Vec<Outgoing>),
    /// The gateway has taken up delivered envelopes.
    Drained {
        /// Of which neighbour's gateway.
        gateway: GatewayId,
        /// How many.
        envelopes: usize,
        /// How long they were together.
        bytes: usize,
    },
    /// This gateway has a new roster.
    Publish {
        /// The whole.
        roster: SignedRoster,
        /// What leads to it from the one before.
        delta: Option<SignedRoster>,
    },
    /// A roster that was passed up found no room; it will be asked for again.
    RosterLost {
        /// Whose it was.
        gateway: GatewayId,
    },
    /// A node can be dialled.
    Found {
        /// Who.
        node: NodeId,
        /// How it came to be known.
        source: Source,
    },
    /// These gateways and no others are to be kept warm.
    KeepWarm(BTreeSet<GatewayId>),
    /// This side has a new certificate.
    Renew(SignedCertificate),
    /// Interfaces, addresses or routes have changed.
    NetworkChanged,
    /// No more is to be sent or taken.
    Shutdown,
    /// [`Peering::next_deadline`] has come.
    Wake,
}

/// What the driver is to do.
#[derive(Debug)]
pub enum Action {
    /// Dial a node; answered by [`Event::Connected`] or [`Event::DialFailed`]. If it is being dialled
    /// already, that attempt is given up.
    Dial {
        /// Whom.
        node: NodeId,
        /// For how long, at most.
        patience: Duration,
    },
    /// Forget where a node is.
    Forget {
        /// Which.
        node: NodeId,
    },
    /// Read the link's streams from now on; only its control stream has been read so far.
    Open {
        /// Which.
        link: LinkId,
        /// The gateway at its other end.
        gateway: GatewayId,
    },
    /// Write on the control stream.
    Write {
        /// Of which link.
        link: LinkId,
        /// The frame with its length.
        frame: Bytes,
    },
    /// Put a batch on a stream of its own.
    Batch {
        /// On which link.
        link: LinkId,
        /// Its number.
        number: u64,
        /// Its envelopes.
        envelopes: Vec<Bytes>,
        /// Whether it may wait behind others.
        is_large: bool,
    },
    /// Put rosters on a stream of their own.
    Rosters {
        /// On which link.
        link: LinkId,
        /// The rosters.
        rosters: Vec<Bytes>,
    },
    /// End a link and tell the other side why.
    Close {
        /// Which.
        link: LinkId,
        /// Why.
        refusal: Refusal,
    },
    /// Hand an envelope to the gateway. There is always room for as many as have not been drained.
    Deliver {
        /// The gateway at the other end of the link.
        gateway: GatewayId,
        /// The envelope, not verified.
        envelope: Bytes,
    },
    /// Hand a roster to the gateway.
    Hear {
        /// Whose it is.
        gateway: GatewayId,
        /// The roster.
        roster: Bytes,
        /// Whether the node was found on the local network.
        is_nearby: bool,
    },
    /// Say what became of an envelope.
    Settle {
        /// Which.
        token: Token,
        /// `Ok` once a neighbour has taken it.
        result: Result<(), SendFailure>,
    },
    /// [`Peering::gateways`] has changed.
    ReachChanged,
}

/// The core of an endpoint.
#[derive(Debug)]
pub struct Peering<R> {
    identity: Identity,
    rng: R,
    links: BTreeMap<LinkId, Link>,
    /// Links that have said hello, by gateway.
    open: BTreeMap<GatewayId, Vec<LinkId>>,
    table: Table,
    pending: HashMap<Token, Pending>,
    inbox: BTreeMap<GatewayId, Waiting>,
    own: Own,
    others: Others,
    counters: Counters,
    pings: u64,
    is_shut: bool,
    actions: Vec<Action>,
}

/// One wish to send, until all its copies are answered.
#[derive(Debug)]
struct Pending {
    left: usize,
    is_taken: bool,
    failure: Option<SendFailure>,
}

/// What waits in the inbox.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    envelopes: usize,
    bytes: usize,
}

impl<R: Rng> Peering<R> {
    /// An endpoint without links.
    pub fn new(identity: Identity, rng: R) -> Self {
        Self {
            identity,
            rng,
            links: BTreeMap::new(),
            open: BTreeMap::new(),
            table: Table::default(),
            pending: HashMap::new(),
            inbox: BTreeMap::new(),
            own: Own::default(),
            others: Others::default(),
            counters: Counters::default(),
            pings: 0,
            is_shut: false,
            actions: Vec::new(),
        }
    }

    /// Takes in one event and returns what to do about it, in this order.
    ///
    /// `now` must not go backwards from one call to the next.
    pub fn handle(
        &mut self,
        now: Moment,
        event: Event,
    ) -> impl Iterator<Item = Action> + use<'_, R> {
        if !self.is_shut {
            self.take_in(now, event);
        } else if let Event::Send(all) = event {
            for outgoing in all {
                let result = Err(SendFailure::Shut);
                self.actions.push(Action::Settle { token: outgoing.token, result });
            }
        }
        self.actions.drain(..)
    }

    /// When the next [`Event::Wake`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.is_shut {
            return None;
        }
        let links = self.links.values().flat_map(|link| match &link.open {
            None => [Some(link.since + HELLO_TIMEOUT), None, None, None, None],
            Some(open) => [
                Some(link.ping_at()),
                open.flow.stalls_at(),
                open.ends_at(),
                open.asks.and(open.told_at).map(|at| at + TELL_INTERVAL),
                open.misses.then_some(open.asked_at + ASK_INTERVAL),
            ],
        });
        links.flatten().chain(self.table.next_deadline(self.room_for_dials())).min()
    }

    /// The gateways that a link leads to.
    pub fn gateways(&self) -> impl Iterator<Item = GatewayId> {
        self.open.keys().copied()
    }

    /// The least busy link to a gateway.
    pub fn link_to(&self, gateway: GatewayId) -> Option<LinkId> {
        let rank = |link: &LinkId| {
            let open = self.links.get(link).and_then(|link| link.open.as_ref());
            open.map(|open| (open.retired.is_some(), open.flow.bytes()))
        };
        self.open.get(&gateway)?.iter().copied().min_by_key(rank)
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many links there are, those that have not said hello included.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// How many envelopes have not been settled.
    pub fn unsettled(&self) -> usize {
        self.pending.len()
    }

    /// How many nodes are known to be dialled.
    pub fn known(&self) -> usize {
        self.table.len()
    }

    fn take_in(&mut self, now: Moment, event: Event) {
        match event {
            Event::Connected { link, node, is_dialled } => {
                self.connect(now, link, node, is_dialled);
            }
            Event::DialFailed { node } => {
                // It may have dialled us meanwhile.
                if !self.is_linked(node) {
                    self.table.fail(now.at, node, 1, &mut self.rng);
                }
            }
            Event::Closed { link, reason } => self.lose(now, link, weight(reason)),
            Event::Frame { link, bytes } => self.hear_frame(now, link, &bytes),
            Event::Batch { link, body } => self.receive_batch(now, link, body),
            Event::Rosters { link, body } => self.receive_rosters(now, link, body),
            Event::Heard { link } => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.hear(now.at);
                }
            }
            Event::Misbehaved { link, refusal } => self.close(now, link, refusal),
            Event::Send(all) => self.send(now, all),
            Event::Drained { gateway, envelopes, bytes } => {
                self.drain_inbox(gateway, envelopes, bytes);
            }
            Event::Publish { roster, delta } => self.publish(&roster, delta.as_ref()),
            Event::RosterLost { gateway } => self.miss_roster(gateway),
            Event::Found { node, source } => self.find(now, node, source),
            Event::KeepWarm(gateways) => self.table.keep_warm(gateways),
            Event::Renew(certificate) => self.renew(certificate),
            Event::NetworkChanged => {
                self.table.hurry(now.at);
                self.ping_all(now);
                self.dial_due(now);
            }
            Event::Shutdown => self.shut(),
            Event::Wake => self.wake(now),
        }
    }

    fn connect(&mut self, now: Moment, link: LinkId, node: NodeId, is_dialled: bool) {
        if node == self.identity.node {
            return self.refuse(link, Refusal::Ours);
        }
        if !is_dialled {
            let half_open =
                self.links.iter().filter(|(_, link)| link.open.is_none() && !link.is_dialled);
            let (count, oldest) = half_open.fold((0, None), |(count, oldest), (id, link)| {
                let oldest = oldest.filter(|(since, _)| *since <= link.since);
                (count + 1, oldest.or(Some((link.since, *id))))
            });
            if let Some((_, oldest)) = oldest.filter(|_| count >= limits::HALF_OPEN) {
                self.close(now, oldest, Refusal::HalfOpen);
            }
        }
        self.links.insert(link, Link::new(node, is_dialled, now.at));
        let hello = Frame::Hello(Hello {
            least: VERSION,
            greatest: VERSION,
            certificate: self.identity.certificate.as_bytes().to_vec(),
            in_flight: limits::NEIGHBOUR_BYTES as u64,
        });
        self.write(link, &hello);
    }

    fn find(&mut self, now: Moment, node: NodeId, source: Source) {
        if node == self.identity.node {
            return;
        }
        let was_nearby = self.table.is_nearby(node);
        let links = self.links.values().filter(|link| link.node == node);
        let gateway = links.filter_map(|link| link.open.as_ref().map(|open| open.gateway)).next();
        // Both find each other at the same moment; one of them dials first.
        let head_start =
            if self.identity.node < node { Duration::ZERO } else { SECOND_DIALLER_WAITS };
        if let Some(node) = self.table.find(now.at, node, source, head_start) {
            self.actions.push(Action::Forget { node });
        }
        if let Some(gateway) = gateway {
            self.table.link(now.at, node, gateway);
            if !was_nearby && source == Source::Nearby {
                // What it told before it was known to be near is told again.
                self.others.forget(gateway);
                self.ask_rosters(now, gateway);
            }
        }
        self.dial_due(now);
    }

    fn renew(&mut self, certificate: SignedCertificate) {
        let frame = Frame::Renewed(certificate.as_bytes().to_vec());
        self.identity.certificate = certificate;
        let open: Vec<_> = self.open.values().flatten().copied().collect();
        open.into_iter().for_each(|link| self.write(link, &frame));
    }

    fn wake(&mut self, now: Moment) {
        let mut ends = Vec::new();
        let mut pings = Vec::new();
        for (id, link) in &mut self.links {
            let Some(open) = &link.open else {
                if now.at >= link.since + HELLO_TIMEOUT {
                    ends.push((*id, Refusal::HelloTooLate));
                }
                continue;
            };
            if link.is_silent(now.at) {
                ends.push((*id, Refusal::Silent));
            } else if open.flow.stalls_at().is_some_and(|at| now.at >= at) {
                ends.push((*id, Refusal::Stalled));
            } else if open.ends_at().is_some_and(|at| now.at >= at) {
                ends.push((*id, Refusal::Duplicate));
            } else if now.at >= link.ping_at() {
                link.ping(now.at);
                pings.push(*id);
            }
        }
        pings.into_iter().for_each(|link| self.ping(link));
        ends.into_iter().for_each(|(link, refusal)| self.close(now, link, refusal));
        self.catch_up_rosters(now);
        self.dial_due(now);
    }

    fn ping_all(&mut self, now: Moment) {
        let mut pings = Vec::new();
        for (id, link) in self.links.iter_mut().filter(|(_, link)| link.open.is_some()) {
            link.ping(now.at);
            pings.push(*id);
        }
        pings.into_iter().for_each(|link| self.ping(link));
    }

    fn ping(&mut self, link: LinkId) {
        self.pings += 1;
        self.write(link, &Frame::Ping(self.pings));
    }

    fn dial_due(&mut self, now: Moment) {
        let room = self.room_for_dials();
        let (due, forgotten) = self.table.due(now.at, room);
        self.counters.dials += due.len() as u64;
        self.actions.extend(forgotten.into_iter().map(|node| Action::Forget { node }));
        let dial = |(node, patience)| Action::Dial { node, patience };
        self.actions.extend(due.into_iter().map(dial));
    }

    fn room_for_dials(&self) -> usize {
        limits::LINKS.saturating_sub(self.open.values().map(Vec::len).sum())
    }

    fn shut(&mut self) {
        self.is_shut = true;
        for link in self.links.keys() {
            self.actions.push(Action::Close { link: *link, refusal: Refusal::Shutdown });
        }
        for token in self.pending.keys() {
            let result = Err(SendFailure::Shut);
            self.actions.push(Action::Settle { token: *token, result });
        }
        self.links.clear();
        self.pending.clear();
        if !self.open.is_empty() {
            self.open.clear();
            self.actions.push(Action::ReachChanged);
        }
    }

    fn close(&mut self, now: Moment, link: LinkId, refusal: Refusal) {
        if self.links.contains_key(&link) {
            self.refuse(link, refusal);
            self.lose(now, link, weight(Some(refusal)));
        }
    }

    fn refuse(&mut self, link: LinkId, refusal: Refusal) {
        self.counters.count(refusal);
        self.actions.push(Action::Close { link, refusal });
    }

    /// Forgets a link; what was on it goes over another, if there is one.
    fn lose(&mut self, now: Moment, id: LinkId, weight: u32) {
        let Some(link) = self.links.remove(&id) else { return };
        let is_linked = self.is_linked(link.node);
        let Some(open) = link.open else {
            if !is_linked {
                self.table.fail(now.at, link.node, weight, &mut self.rng);
            }
            return;
        };
        if weight > 1 && !is_linked {
            self.table.unlink(now.at, link.node, Duration::ZERO);
            self.table.fail(now.at, link.node, weight, &mut self.rng);
        } else if !is_linked {
            let most = if link.is_dialled { SOON } else { SECOND_DIALLER_WAITS };
            let moment = most.mul_f64(self.rng.random_range(0.5..=1.0));
            self.table.unlink(now.at, link.node, moment);
        }
        let gateway = open.gateway;
        if open.retired.is_none() {
            self.reinstate(link.node);
        }
        let of_gateway = self.open.get_mut(&gateway).map(|links| {
            links.retain(|other| *other != id);
            links.is_empty()
        });
        if of_gateway == Some(true) {
            self.open.remove(&gateway);
            self.actions.push(Action::ReachChanged);
        }
        for item in open.flow.into_items() {
            match self.link_to(gateway) {
                Some(other) => self.queue(other, item),
                None => self.settle_one(item.token, Err(SendFailure::LinkLost)),
            }
        }
        if let Some(other) = self.link_to(gateway) {
            self.flush(now, other);
        }
    }

    /// Uses a link again that was given up for one that has ended.
    fn reinstate(&mut self, node: NodeId) {
        let links = self.links.values_mut().filter(|link| link.node == node);
        if let Some(open) = links.filter_map(|link| link.open.as_mut()).next_back() {
            open.retired = None;
        }
    }

    fn is_linked(&self, node: NodeId) -> bool {
        self.links.values().any(|link| link.node == node && link.open.is_some())
    }

    fn queue(&mut self, link: LinkId, item: Item) {
        let token = item.token;
        let open = self.links.get_mut(&link).and_then(|link| link.open.as_mut());
        let result = match open {
            Some(open) => open.flow.push(item).map_err(|_| SendFailure::Busy),
            None => Err(SendFailure::Unreachable),
        };
        if let Err(failure) = result {
            self.settle_one(token, Err(failure));
        }
    }

    /// One copy of an envelope is answered or given up.
    fn settle_one(&mut self, token: Token, result: Result<(), SendFailure>) {
        let Some(pending) = self.pending.get_mut(&token) else { return };
        pending.left -= 1;
        match result {
            Ok(()) => pending.is_taken = true,
            Err(failure) => pending.failure = Some(failure),
        }
        if pending.left == 0 {
            let result = match pending.failure {
                Some(failure) if !pending.is_taken => Err(failure),
                _ => Ok(()),
            };
            self.pending.remove(&token);
            self.actions.push(Action::Settle { token, result });
        }
    }

    fn write(&mut self, link: LinkId, frame: &Frame) {
        self.actions.push(Action::Write { link, frame: frame.encode() });
    }
}

/// How much a link counts that ended so, when it is to be dialled again.
fn weight(reason: Option<Refusal>) -> u32 {
    match reason {
        Some(Refusal::Ours) => FAULT,
        Some(reason) if reason.is_fault() => FAULT,
        _ => 1,
    }
}

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two answers to one who asks for rosters.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Between two questions for rosters.
const ASK_INTERVAL: Duration = Duration::from_secs(3);
/// What the node with the greater key waits before it dials one that dials it too.
const SECOND_DIALLER_WAITS: Duration = Duration::from_millis(400);
const SOON: Duration = Duration::from_millis(50);
