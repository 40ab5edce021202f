//! Which nodes of the mesh are whose: hellos, certificates, and rosters both ways.
//!
//! A node that announces itself as one of Fieldpost is sent a hello with our certificate, and sends
//! its own. What it then sends is counted to its gateway. Nothing here performs I/O; whoever drives
//! it tells the time and sends what it gives out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fieldpost_bitchat::{
    MeshId,
    payload::{
        exchange::{Exchange, Hello, OVERHEAD},
        gateway::MAX_CONTENT,
    },
};
use fieldpost_envelope::{
    Certificate, GatewayId, NodePurpose, SignedCertificate, SignedRoster, Timestamp,
};

/// The nodes of other gateways, and what they have been told.
pub(super) struct Gateways {
    own: GatewayId,
    certificate: SignedCertificate,
    nodes: BTreeMap<MeshId, Node>,
    /// The newest of our rosters, whole, and the step that led to it.
    roster: Option<(u64, Vec<u8>)>,
    delta: Option<(u64, Vec<u8>)>,
    /// The newest roster of each gateway that was passed up.
    heard: BTreeMap<GatewayId, u64>,
    /// Gateways of which a node started anew although it had not gone.
    returned: BTreeSet<GatewayId>,
}

struct Node {
    proven: Option<Proven>,
    is_present: bool,
    /// When it is told hello next, unless it has heard it.
    hello_at: Option<Duration>,
    pause: Duration,
    /// The last hello that it was answered with.
    answered_at: Option<Duration>,
    /// The newest of our rosters that it has, once it has said so.
    has: Option<u64>,
    /// The one that is on its way there.
    telling: Option<u64>,
}

#[derive(Clone, Copy)]
struct Proven {
    gateway: GatewayId,
    not_after: Timestamp,
}

/// Something for a node.
pub(super) type Outgoing = (MeshId, Content);

/// What is sent to a node on our own account.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Content {
    Hello(Vec<u8>),
    Roster(u64, Vec<u8>),
    Wanted(Vec<u8>),
}

/// Why a hello was not believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// The certificate is no certificate, or not signed by whom it names.
    Forged,
    /// It does not hold now.
    Expired,
    /// It is for another key or purpose.
    OfAnother,
    /// It is our own gateway: another replica.
    Ours,
    /// As many nodes are known as may be, or as many of that gateway.
    Full,
}

impl Gateways {
    pub(super) fn new(own: GatewayId, certificate: SignedCertificate) -> Self {
        Self {
            own,
            certificate,
            nodes: BTreeMap::new(),
            roster: None,
            delta: None,
            heard: BTreeMap::new(),
            returned: BTreeSet::new(),
        }
    }

    /// A node of Fieldpost is there. A stranger makes no room for itself.
    pub(super) fn appeared(&mut self, now: Duration, id: MeshId) {
        if self.nodes.len() >= NODES && !self.nodes.contains_key(&id) {
            self.nodes.retain(|_, node| node.is_present);
            if self.nodes.len() >= NODES {
                return;
            }
        }
        let node = self.nodes.entry(id).or_insert(Node {
            proven: None,
            is_present: false,
            hello_at: None,
            pause: FIRST_PAUSE,
            answered_at: None,
            has: None,
            telling: None,
        });
        if !std::mem::replace(&mut node.is_present, true) {
            // It may have restarted while it was away, and know nothing of us.
            node.hello_at = Some(now);
            node.pause = FIRST_PAUSE;
            (node.has, node.telling) = (None, None);
        }
    }

    pub(super) fn vanished(&mut self, id: MeshId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.is_present = false;
            node.hello_at = None;
        }
    }

    /// Shows another certificate from now on.
    pub(super) fn renew(&mut self, now: Duration, certificate: SignedCertificate) {
        self.certificate = certificate;
        for node in self.nodes.values_mut().filter(|node| node.is_present) {
            node.hello_at = Some(now);
        }
    }

    /// Takes a hello from a node whose session proves `noise_key`. An answer may be due at once.
    pub(super) fn hello(
        &mut self,
        now: Duration,
        wall: Timestamp,
        from: (MeshId, [u8; 32]),
        hello: &Hello,
    ) -> Result<Option<Outgoing>, Refusal> {
        let (id, noise_key) = from;
        let signed = SignedCertificate::decode(&hello.certificate).map_err(|_| Refusal::Forged)?;
        let certificate = signed.verify(wall).map_err(|error| match error {
            fieldpost_envelope::CertificateError::Signature(_) => Refusal::Forged,
            _ => Refusal::Expired,
        })?;
        let gateway = certificate.gateway;
        if certificate.purpose != NodePurpose::BitChat || certificate.node != noise_key {
            return Err(Refusal::OfAnother);
        }
        if gateway == self.own {
            return Err(Refusal::Ours);
        }
        let of_gateway = |node: &Node| node.proven.is_some_and(|proven| proven.gateway == gateway);
        let others = self.nodes.iter().filter(|(other, node)| **other != id && of_gateway(node));
        if others.count() >= NODES_OF_GATEWAY {
            return Err(Refusal::Full);
        }
        let was_there = self.nodes_of(wall, gateway).next().is_some();
        self.appeared(now, id);
        let knows = self.heard.get(&gateway).copied().unwrap_or(0);
        let Some(node) = self.nodes.get_mut(&id) else { return Err(Refusal::Full) };
        node.proven = Some(Proven { gateway, not_after: certificate.not_after });
        node.has = Some(hello.roster);
        let is_rested = node.answered_at.is_none_or(|at| now.saturating_sub(at) >= ANSWER_PAUSE);
        if hello.knows_you {
            node.hello_at = None;
            return Ok(None);
        }
        if !is_rested {
            return Ok(None);
        }
        node.answered_at = Some(now);
        node.hello_at = None;
        if was_there {
            self.returned.insert(gateway);
        }
        Ok(Some((id, self.say_hello(true, knows))))
    }

    /// The gateways since the last call of which a node knows us no more, or is there in place of
    /// another, although nobody had missed them: what was under way to them may be lost.
    pub(super) fn take_returned(&mut self) -> BTreeSet<GatewayId> {
        std::mem::take(&mut self.returned)
    }

    /// Who is to be told hello now, and what else is due.
    pub(super) fn due(&mut self, now: Duration) -> Vec<Outgoing> {
        let mut out = Vec::new();
        let ids: Vec<MeshId> = self.nodes.keys().copied().collect();
        for id in ids {
            let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_present) else {
                continue;
            };
            if node.hello_at.is_some_and(|at| at <= now) {
                // Until it says that it knows us, or the hello has arrived.
                node.hello_at = Some(now + node.pause);
                node.pause = (2 * node.pause).min(LAST_PAUSE);
                let gateway = node.proven.map(|proven| proven.gateway);
                let knows = gateway.and_then(|gateway| self.heard.get(&gateway)).copied();
                out.push((id, self.say_hello(gateway.is_some(), knows.unwrap_or(0))));
            }
        }
        out.extend(self.rosters_due());
        out
    }

    /// When [`due`](Self::due) has something.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let present = self.nodes.values().filter(|node| node.is_present);
        present.filter_map(|node| node.hello_at).min()
    }

    /// A content of ours has arrived whole, or has not.
    pub(super) fn settled(&mut self, id: MeshId, content: &Content, has_arrived: bool) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        match content {
            Content::Hello(_) if has_arrived && node.proven.is_some() => node.hello_at = None,
            Content::Hello(_) | Content::Wanted(_) => {}
            Content::Roster(number, _) => {
                if node.telling == Some(*number) {
                    node.telling = None;
                }
                if has_arrived {
                    node.has = node.has.max(Some(*number));
                }
            }
        }
    }

    /// Takes our newest roster; an older one than that which is there is ignored.
    pub(super) fn publish(&mut self, whole: &SignedRoster, delta: Option<&SignedRoster>) {
        let before = self.roster.as_ref().map_or(0, |(number, _)| *number);
        if whole.number() <= before || whole.base().is_some() {
            return;
        }
        let follows = |delta: &&SignedRoster| {
            delta.number() == whole.number() && delta.base() == Some(before) && before > 0
        };
        self.delta = delta.filter(follows).map(|delta| (before, delta.as_bytes().to_vec()));
        self.roster = Some((whole.number(), whole.as_bytes().to_vec()));
    }

    /// Rosters for those who have an older one. One that is too long for the mesh is not told over it.
    fn rosters_due(&mut self) -> Vec<Outgoing> {
        let Some((number, whole)) = &self.roster else { return Vec::new() };
        let mut out = Vec::new();
        for (id, node) in &mut self.nodes {
            let has = node.has.filter(|_| node.is_present && node.proven.is_some());
            if has.is_none_or(|has| has >= *number) || node.telling.is_some() {
                continue;
            }
            let step = self.delta.as_ref().filter(|(base, _)| Some(*base) == has);
            let bytes = step.map_or(whole, |(_, delta)| delta);
            if bytes.len() + OVERHEAD > MAX_CONTENT {
                continue;
            }
            node.telling = Some(*number);
            let roster = Exchange::Roster(bytes.clone()).encode();
            out.push((*id, Content::Roster(*number, roster)));
        }
        out
    }

    /// A node says which of our rosters it has.
    pub(super) fn wanted(&mut self, id: MeshId, number: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            (node.has, node.telling) = (Some(number), None);
        }
    }

    /// A roster that came is passed up.
    pub(super) fn passed_up(&mut self, gateway: GatewayId, number: u64) {
        if self.heard.len() >= REMEMBERED {
            // One that comes back is told the whole again.
            self.heard.clear();
        }
        self.heard.insert(gateway, number);
    }

    /// A gateway's roster could not be taken: it is asked to tell it whole.
    pub(super) fn missed(&mut self, wall: Timestamp, gateway: GatewayId) -> Option<Outgoing> {
        self.heard.remove(&gateway);
        let id = self.nodes_of(wall, gateway).next()?;
        Some((id, Content::Wanted(Exchange::Wanted(0).encode())))
    }

    /// The gateway that a node has shown to be of.
    pub(super) fn gateway_of(&self, wall: Timestamp, id: MeshId) -> Option<GatewayId> {
        let proven = self.nodes.get(&id)?.proven?;
        holds(wall, proven).then_some(proven.gateway)
    }

    /// The nodes of a gateway that are there.
    pub(super) fn nodes_of(
        &self,
        wall: Timestamp,
        gateway: GatewayId,
    ) -> impl Iterator<Item = MeshId> {
        self.present(wall).filter(move |(_, of)| *of == gateway).map(|(id, _)| id)
    }

    /// All nodes that are there, with their gateways.
    pub(super) fn present(&self, wall: Timestamp) -> impl Iterator<Item = (MeshId, GatewayId)> {
        self.nodes.iter().filter(|(_, node)| node.is_present).filter_map(move |(id, node)| {
            let proven = node.proven.filter(|proven| holds(wall, *proven))?;
            Some((*id, proven.gateway))
        })
    }

    fn say_hello(&self, knows_you: bool, roster: u64) -> Content {
        let certificate = self.certificate.as_bytes().to_vec();
        Content::Hello(Exchange::Hello(Hello { certificate, knows_you, roster }).encode())
    }
}

impl Content {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Hello(bytes) | Self::Roster(_, bytes) | Self::Wanted(bytes) => bytes,
        }
    }
}

fn holds(wall: Timestamp, proven: Proven) -> bool {
    let last = proven.not_after.as_millis() + Certificate::CLOCK_SKEW_MS;
    wall.as_millis() <= last
}

/// Nodes remembered; those that are gone make room, a further one is not told hello.
const NODES: usize = 256;
/// Nodes of one gateway; further ones are not believed.
const NODES_OF_GATEWAY: usize = 16;
/// Gateways whose roster's number is remembered.
const REMEMBERED: usize = 1024;
/// Before a hello that nobody answered is said again; each further time twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// Between two answers to one node's hellos.
const ANSWER_PAUSE: Duration = Duration::from_secs(2);
