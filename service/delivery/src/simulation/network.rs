//! Who reaches whom over what, and what goes wrong there.

use std::collections::BTreeMap;

use fieldpost_envelope::AnonymityLevel;
use rand::RngExt;

use super::World;
use crate::{Capabilities, Impact};

/// The transports of the design: the mixnet, the phones' mesh and the direct one.
pub(super) const TRANSPORTS: [&str; 3] = ["htx", "ble", "mesh"];

/// What is broken where.
#[derive(Debug)]
pub(super) struct Network {
    /// By transport and the two ends, the lesser first.
    links: BTreeMap<(usize, usize, usize), Trouble>,
    /// Who has internet.
    internet: Vec<bool>,
    partition: Option<Partition>,
    is_calm: bool,
    capabilities: [Capabilities; TRANSPORTS.len()],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trouble {
    /// Both ends know that nothing leads there.
    Cut,
    /// Everything vanishes and nobody knows.
    Silent,
}

/// Part of the gateways is cut off from the rest.
#[derive(Debug)]
struct Partition {
    is_inside: Vec<bool>,
    trouble: Trouble,
    /// Over this transport alone, or over all.
    transport: Option<usize>,
}

impl Network {
    pub(super) fn new(gateways: usize) -> Self {
        Self {
            links: BTreeMap::new(),
            internet: vec![true; gateways],
            partition: None,
            is_calm: false,
            capabilities: TRANSPORTS.map(capabilities),
        }
    }

    pub(super) fn is_calm(&self) -> bool {
        self.is_calm
    }

    pub(super) fn heal(&mut self) {
        self.links.clear();
        self.internet.fill(true);
        self.partition = None;
        self.is_calm = true;
    }

    pub(super) fn capabilities(&self, transport: usize) -> &Capabilities {
        &self.capabilities[transport]
    }

    pub(super) fn has_internet(&self, node: usize) -> bool {
        self.internet[node]
    }

    /// Whether the two know a way to each other.
    pub(super) fn is_known(&self, transport: usize, a: usize, b: usize) -> bool {
        let needs_internet = self.capabilities[transport].requires_internet;
        (!needs_internet || (self.internet[a] && self.internet[b]))
            && self.trouble(transport, a, b) != Some(Trouble::Cut)
    }

    /// Whether what is sent has a chance to arrive.
    pub(super) fn leads_there(&self, transport: usize, a: usize, b: usize) -> bool {
        self.is_known(transport, a, b) && self.trouble(transport, a, b).is_none()
    }

    fn trouble(&self, transport: usize, a: usize, b: usize) -> Option<Trouble> {
        let parted = self.partition.as_ref().filter(|partition| {
            partition.is_inside[a] != partition.is_inside[b]
                && partition.transport.is_none_or(|only| only == transport)
        });
        let link = self.links.get(&(transport, a.min(b), a.max(b))).copied();
        match parted {
            Some(Partition { trouble: Trouble::Cut, .. }) => Some(Trouble::Cut),
            Some(Partition { trouble: Trouble::Silent, .. }) => link.or(Some(Trouble::Silent)),
            None => link,
        }
    }
}

impl World {
    /// Something fails or comes back.
    pub(super) fn change_network(&mut self) {
        if self.network.is_calm() {
            return;
        }
        match self.rng.random_range(0..10) {
            0 => {
                let node = self.any_node();
                self.network.internet[node] = !self.network.internet[node];
                self.look_soon(node);
            }
            1 => self.part_or_join(),
            _ => {
                // Mostly where somebody notices.
                let talk = &self.talks[self.rng.random_range(0..self.talks.len())];
                let (a, b) = (talk.from.0, talk.to.0);
                let key = (self.rng.random_range(0..TRANSPORTS.len()), a.min(b), a.max(b));
                if a != b && self.network.links.remove(&key).is_none() {
                    let trouble = self.any_trouble();
                    self.network.links.insert(key, trouble);
                }
            }
        }
        self.network_has_changed();
    }

    pub(super) fn network_has_changed(&mut self) {
        for node in 0..self.nodes.len() {
            self.follow_reach(node);
        }
    }

    fn part_or_join(&mut self) {
        if self.network.partition.take().is_some() {
            return;
        }
        let share = self.rng.random_range(0.05..0.5);
        let trouble = self.any_trouble();
        let transport =
            self.rng.random_bool(0.5).then(|| self.rng.random_range(0..TRANSPORTS.len()));
        let is_inside =
            (0..self.shape.gateways).map(|_| self.rng.random_bool(share)).collect::<Vec<_>>();
        self.network.partition = Some(Partition { is_inside, trouble, transport });
    }

    fn any_trouble(&mut self) -> Trouble {
        if self.rng.random_bool(0.6) { Trouble::Cut } else { Trouble::Silent }
    }
}

fn capabilities(name: &str) -> Capabilities {
    let (level, requires_internet, typical_latency_ms) = match name {
        "htx" => (AnonymityLevel::HIGHEST, true, 500),
        "ble" => (AnonymityLevel::LOW, false, 2000),
        _ => (AnonymityLevel::NONE, false, 100),
    };
    Capabilities {
        supports_unicast: true,
        supports_broadcast: false,
        supports_multicast: false,
        max_message_size: 65_536,
        typical_latency_ms,
        bandwidth_mbps: 1.0,
        is_offline_capable: !requires_internet,
        requires_internet,
        works_on_cellular: true,
        works_on_wifi: true,
        provides_encryption: true,
        supports_forward_secrecy: true,
        anonymity_level: level,
        best_anonymity_level: level,
        reaches_phones: false,
        battery_impact: Impact::Low,
        data_cost_impact: Impact::Low,
        supports_store_and_forward: false,
        supports_multi_hop: false,
        max_hops: 1,
    }
}
