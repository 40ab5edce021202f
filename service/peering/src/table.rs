//! Which nodes are known, and when each is dialled next.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use fieldpost_envelope::GatewayId;
use rand::{Rng, RngExt};

/// A replica of a gateway, by its node key: what the link has proved that the other side holds.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub [u8; 32]);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeId(")?;
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}

/// How a node came to be known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// It made itself known on the local network.
    Nearby,
    /// Its address was configured.
    Bootstrap,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    nodes: BTreeMap<NodeId, Known>,
    warm: BTreeSet<GatewayId>,
}

#[derive(Debug)]
struct Known {
    /// When it last made itself known on the local network.
    nearby: Option<Instant>,
    is_bootstrap: bool,
    /// Whom it was of when it last said hello.
    gateway: Option<GatewayId>,
    failures: u32,
    dialling: Option<Instant>,
    /// None while it is linked.
    next_dial: Option<Instant>,
    /// When it was last linked or made itself known.
    met: Instant,
}

impl Known {
    /// How long an attempt may take.
    ///
    /// One on the local network is short, since one that began while the cable was out, or before the
    /// other's hardware address was found, takes the wait for the way and is slow ever after. Now and
    /// then one is long, for a neighbour that is busy.
    fn patience(&self) -> Duration {
        match self.nearby {
            Some(_) if self.failures % 4 < 3 => SHORT_PATIENCE,
            Some(_) => LONG_PATIENCE,
            None => FAR_PATIENCE,
        }
    }
}

impl Table {
    /// Takes in that a node can be dialled. Gives back who had to be forgotten for it; itself if
    /// there is no room.
    pub(crate) fn find(
        &mut self,
        now: Instant,
        node: NodeId,
        source: Source,
        head_start: Duration,
    ) -> Option<NodeId> {
        let is_new = !self.nodes.contains_key(&node);
        let mut forgotten = None;
        if is_new && self.nodes.len() >= KNOWN {
            let oldest = self
                .nodes
                .iter()
                .filter(|(_, known)| !known.is_bootstrap && known.next_dial.is_some())
                .min_by_key(|(_, known)| known.met)
                .map(|(node, _)| *node);
            let Some(oldest) = oldest else { return Some(node) };
            self.nodes.remove(&oldest);
            forgotten = Some(oldest);
        }
        let known = self.nodes.entry(node).or_insert(Known {
            nearby: None,
            is_bootstrap: false,
            gateway: None,
            failures: 0,
            dialling: None,
            next_dial: Some(now + head_start),
            met: now,
        });
        match source {
            Source::Nearby => {
                known.nearby = Some(now);
                if known.failures < FAULT {
                    known.next_dial = known.next_dial.map(|at| at.min(now + head_start));
                }
            }
            Source::Bootstrap => known.is_bootstrap = true,
        }
        known.met = now;
        forgotten
    }

    pub(crate) fn is_nearby(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|known| known.nearby.is_some())
    }

    pub(crate) fn keep_warm(&mut self, gateways: BTreeSet<GatewayId>) {
        self.warm = gateways;
    }

    /// Whether a link to it is kept even when nothing crosses it.
    pub(crate) fn is_kept(&self, node: NodeId, gateway: GatewayId) -> bool {
        self.warm.contains(&gateway)
            || self.nodes.get(&node).is_some_and(|known| known.is_bootstrap)
    }

    /// A link to it has opened.
    pub(crate) fn link(&mut self, now: Instant, node: NodeId, gateway: GatewayId) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.gateway = Some(gateway);
            known.failures = 0;
            known.dialling = None;
            known.next_dial = None;
            known.met = now;
        }
    }

    /// The last link to it has ended, and it may be dialled again after a moment.
    pub(crate) fn unlink(&mut self, now: Instant, node: NodeId, moment: Duration) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.next_dial = Some(now + moment);
            known.met = now;
        }
    }

    /// An attempt to dial it, or the link that came of it, has failed.
    pub(crate) fn fail(&mut self, now: Instant, node: NodeId, weight: u32, rng: &mut impl Rng) {
        let Self { nodes, warm } = self;
        if let Some(known) = nodes.get_mut(&node) {
            known.dialling = None;
            known.failures = known.failures.saturating_add(weight);
            let is_wanted = known.gateway.is_some_and(|gateway| warm.contains(&gateway));
            // Who was here a moment ago is soon back: a cable, a restart.
            let is_recent = (known.nearby.is_some() || is_wanted) && now < known.met + RECENT;
            let longest = if is_recent && weight < FAULT { SHORT_BACK_OFF } else { LONG_BACK_OFF };
            let back_off = FIRST_BACK_OFF.saturating_mul(1 << known.failures.min(10)).min(longest);
            known.next_dial = Some(now + back_off.mul_f64(rng.random_range(0.75..=1.0)));
        }
    }

    /// Lets nobody wait: what leads to them may have changed.
    pub(crate) fn hurry(&mut self, now: Instant) {
        for known in self.nodes.values_mut().filter(|known| known.next_dial.is_some()) {
            known.dialling = None;
            known.failures = 0;
            known.next_dial = Some(now);
        }
    }

    /// Those to be dialled now and for how long; whoever has been given up is in the second list.
    pub(crate) fn due(
        &mut self,
        now: Instant,
        room: usize,
    ) -> (Vec<(NodeId, Duration)>, Vec<NodeId>) {
        let mut forgotten = Vec::new();
        self.nodes.retain(|node, known| {
            let is_gone = !known.is_bootstrap
                && known.next_dial.is_some()
                && now >= known.met + FORGOTTEN_AFTER;
            if is_gone {
                forgotten.push(*node);
            }
            !is_gone
        });
        let mut under_way = 0;
        for known in self.nodes.values_mut() {
            if known.dialling.is_some_and(|since| now >= since + DIAL_TIMEOUT) {
                known.dialling = None;
            }
            under_way += usize::from(known.dialling.is_some());
        }
        let most = room.min(DIALS.saturating_sub(under_way));
        let is_warm =
            |known: &Known| known.gateway.is_some_and(|gateway| self.warm.contains(&gateway));
        let mut due: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, known)| known.dialling.is_none())
            .filter_map(|(node, known)| {
                let at = known.next_dial.filter(|at| *at <= now)?;
                Some((!is_warm(known), at, *node))
            })
            .collect();
        due.sort_unstable();
        let mut dials = Vec::new();
        for (_, _, node) in due.into_iter().take(most) {
            if let Some(known) = self.nodes.get_mut(&node) {
                known.dialling = Some(now);
                dials.push((node, known.patience()));
            }
        }
        (dials, forgotten)
    }

    pub(crate) fn next_deadline(&self, room: usize) -> Option<Instant> {
        let under_way = self.nodes.values().filter(|known| known.dialling.is_some()).count();
        let is_full = room == 0 || under_way >= DIALS;
        self.nodes
            .values()
            .filter_map(|known| match known.dialling {
                Some(since) => Some(since + DIAL_TIMEOUT),
                None if is_full => None,
                None => known.next_dial,
            })
            .min()
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }
}

/// How much an attempt counts that ended in a refusal for a fault.
pub(crate) const FAULT: u32 = 8;
/// The most nodes that are remembered.
pub(crate) const KNOWN: usize = 1024;
const SHORT_PATIENCE: Duration = Duration::from_millis(600);
const LONG_PATIENCE: Duration = Duration::from_millis(1200);
const FAR_PATIENCE: Duration = Duration::from_secs(5);
const DIALS: usize = 16;
/// The driver gives up earlier; this is for one that forgets to say so.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
const SHORT_BACK_OFF: Duration = Duration::from_millis(400);
const LONG_BACK_OFF: Duration = Duration::from_secs(30);
const RECENT: Duration = Duration::from_secs(10 * 60);
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60 * 60);
