use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::IpAddr,
};

use fieldpost_envelope::Timestamp;
use rand::{CryptoRng, RngExt};
use thiserror::Error;

use super::{
    descriptor::{Descriptor, RelayId},
    document::Document,
    epoch::{Epoch, EpochClock},
};

/// What a route must look like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RoutePolicy {
    /// How many relays come before the receiving gateway: 1 to 4.
    pub relays: usize,
    /// How many will do where so few are at hand.
    pub least_relays: usize,
    /// How many of a route, the receiving gateway among them, may be in one country.
    pub in_one_country: usize,
    /// The autonomous system that we are in, if known.
    pub own_autonomous_system: Option<u32>,
}

impl RoutePolicy {
    /// The most relays: with the receiving gateway that makes five hops.
    pub const MOST_RELAYS: usize = 4;
}

impl Default for RoutePolicy {
    fn default() -> Self {
        Self { relays: 3, least_relays: 3, in_one_country: 2, own_autonomous_system: None }
    }
}

/// A rule of diversity, the strictest first (HTX reference, sections 1.5 and 3.3).
///
/// Where relays are few, the last rule is relaxed first, and the route says so. That no relay comes
/// twice is never relaxed.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Rule {
    /// No two of one operator.
    Operator,
    /// No two in one /16 (IPv4) or one /32 (IPv6).
    Network,
    /// No two in one autonomous system.
    AutonomousSystem,
    /// At least one relay outside the autonomous systems of both ends.
    Outside,
    /// No more in one country than the policy allows.
    Country,
    /// No set of relays that one of the last seven routes to this gateway in this epoch used.
    Set,
}

impl Rule {
    /// All of them, the strictest first.
    pub const ALL: [Self; 6] = [
        Self::Operator,
        Self::Network,
        Self::AutonomousSystem,
        Self::Outside,
        Self::Country,
        Self::Set,
    ];
}

/// The relays that a packet is to pass, in order, and the gateway that receives it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// The relays.
    pub relays: Vec<RelayId>,
    /// The last hop.
    pub receiver: RelayId,
    /// The epoch whose keys it is for.
    pub epoch: Epoch,
    /// The rules that it does not keep, the last relaxed first. A route with any is not counted as
    /// one that hides the sender.
    pub relaxed: Vec<Rule>,
}

/// Draws routes, each relay with the same probability.
///
/// It remembers the last sets for at most 1024 gateways; further ones are not remembered, so that
/// their routes may repeat a set.
pub struct RouteChooser<R> {
    rng: R,
    clock: EpochClock,
    own: Option<RelayId>,
    avoided: BTreeSet<RelayId>,
    epoch: Epoch,
    used: BTreeMap<RelayId, VecDeque<BTreeSet<RelayId>>>,
    /// Rules that could not be kept for a receiver, and for how many draws that is taken for granted:
    /// to find out anew costs hundreds of rejections.
    hopeless: BTreeMap<RelayId, Hopeless>,
}

#[derive(Clone, Copy)]
struct Hopeless {
    rules: usize,
    draws: u32,
}

impl<R: CryptoRng> RouteChooser<R> {
    /// A chooser; `own` is this node's own id, which is on none of its routes.
    pub fn new(rng: R, clock: EpochClock, own: Option<RelayId>) -> Self {
        let avoided = BTreeSet::new();
        let (used, hopeless) = (BTreeMap::new(), BTreeMap::new());
        Self { rng, clock, own, avoided, epoch: 0, used, hopeless }
    }

    /// Leaves these relays out of routes from now on, and those named before no longer: such as were
    /// just found out of reach.
    pub fn avoid(&mut self, relays: BTreeSet<RelayId>) {
        if self.avoided != relays {
            self.avoided = relays;
            self.hopeless.clear();
        }
    }

    /// Whether there is a route to a gateway now; none is drawn.
    ///
    /// # Errors
    ///
    /// As [`choose`](Self::choose) would say.
    pub fn check(
        &self,
        now: Timestamp,
        document: &Document,
        receiver: &RelayId,
        policy: RoutePolicy,
    ) -> Result<(), RouteError> {
        self.survey(self.clock.epoch_at(now), document, receiver, policy).map(drop)
    }

    /// Draws a route to a gateway, from the document that is active.
    ///
    /// # Errors
    ///
    /// There are too few relays with keys for this epoch, or none is linked to the gateway.
    pub fn choose(
        &mut self,
        now: Timestamp,
        document: &Document,
        receiver: &RelayId,
        policy: RoutePolicy,
    ) -> Result<Route, RouteError> {
        let epoch = self.clock.epoch_at(now);
        if self.epoch != epoch {
            (self.epoch, self.used) = (epoch, BTreeMap::new());
            self.hopeless.clear();
        }
        let Survey { last, candidates, entries, relays } =
            self.survey(epoch, document, receiver, policy)?;
        let policy = RoutePolicy { relays, ..policy };
        let (relays, relaxed) = self.draw(&candidates, &entries, (receiver, last), policy);
        self.remember(*receiver, relays.iter().copied().collect());
        Ok(Route { relays, receiver: *receiver, epoch, relaxed })
    }

    /// What a route could be made of.
    fn survey<'d>(
        &self,
        epoch: Epoch,
        document: &'d Document,
        receiver: &RelayId,
        policy: RoutePolicy,
    ) -> Result<Survey<'d>, RouteError> {
        let (relays, needed) = (policy.relays, policy.least_relays.min(policy.relays).max(1));
        if !(1..=RoutePolicy::MOST_RELAYS).contains(&relays) {
            return Err(RouteError::Length { relays });
        }
        let last = document.relay(receiver).ok_or(RouteError::UnknownReceiver(*receiver))?;
        if last.keys_of(epoch).is_none() {
            return Err(RouteError::NoKeys { relay: *receiver, epoch });
        }
        let candidates = self.candidates(document, receiver, epoch);
        let entries = entries(last, &candidates);
        if entries.is_empty() {
            return Err(RouteError::NotLinked(*receiver));
        }
        if candidates.len() < needed {
            return Err(RouteError::TooFewRelays { count: candidates.len(), needed });
        }
        let relays = relays.min(candidates.len());
        Ok(Survey { last, candidates, entries, relays })
    }

    fn candidates<'d>(
        &self,
        document: &'d Document,
        receiver: &RelayId,
        epoch: Epoch,
    ) -> Vec<Candidate<'d>> {
        let all = document.relays().iter();
        all.map(|relay| Candidate { id: relay.signed().id(), descriptor: relay.descriptor() })
            .filter(|candidate| {
                candidate.descriptor.relays && candidate.descriptor.keys_of(epoch).is_some()
            })
            .filter(|candidate| candidate.id != *receiver && Some(candidate.id) != self.own)
            .filter(|candidate| !self.avoided.contains(&candidate.id))
            .collect()
    }

    /// Draws relays one by one and rejects those that break a rule; 64 rejections relax the last.
    fn draw(
        &mut self,
        candidates: &[Candidate<'_>],
        entries: &[Candidate<'_>],
        (receiver, last): (&RelayId, &Descriptor),
        policy: RoutePolicy,
    ) -> (Vec<RelayId>, Vec<Rule>) {
        let used = self.used.get(receiver);
        let is_broken = |rule: Rule, relays: &[Candidate<'_>]| {
            let is_whole = relays.len() == policy.relays;
            (is_whole || !rule.is_of_all()) && !rule.is_kept(relays, last, policy, used)
        };
        let mut rules = Rule::ALL.to_vec();
        let hopeless = self.hopeless.get(receiver).map_or(0, |hopeless| hopeless.rules);
        let mut relaxed: Vec<Rule> = rules.split_off(rules.len() - hopeless);
        relaxed.reverse();
        // The first drawn is the last relay of the route: it must be linked to the receiver.
        let mut relays: Vec<Candidate<'_>> = Vec::new();
        let mut rejections = 0;
        while relays.len() < policy.relays {
            let from = if relays.is_empty() { entries } else { candidates };
            let next = from[self.rng.random_range(0..from.len())];
            if relays.iter().any(|relay| relay.id == next.id) {
                continue;
            }
            relays.push(next);
            if let Some(broken) = rules.iter().find(|rule| is_broken(**rule, &relays)) {
                rejections += 1;
                // What was drawn so far may fit nothing else.
                if broken.is_of_all() || rejections % REJECTIONS_BEFORE_RESTART == 0 {
                    relays.clear();
                }
                relays.pop();
                if rejections == REJECTIONS {
                    relaxed.extend(rules.pop());
                    rejections = 0;
                }
            }
        }
        let hopeless = relaxed.len();
        // What was relaxed in vain is not held against the route.
        relaxed.retain(|rule| is_broken(*rule, &relays));
        let relays = relays.iter().rev().map(|relay| relay.id).collect();
        self.despair(*receiver, hopeless);
        (relays, relaxed)
    }

    fn despair(&mut self, receiver: RelayId, rules: usize) {
        let has_room = self.hopeless.len() < RECEIVERS;
        match self.hopeless.get_mut(&receiver) {
            Some(hopeless) if hopeless.rules == rules && hopeless.draws > 1 => hopeless.draws -= 1,
            Some(_) => drop(self.hopeless.remove(&receiver)),
            None if rules > 0 && has_room => {
                self.hopeless.insert(receiver, Hopeless { rules, draws: HOPELESS_DRAWS });
            }
            None => {}
        }
    }

    fn remember(&mut self, receiver: RelayId, set: BTreeSet<RelayId>) {
        if self.used.len() >= RECEIVERS && !self.used.contains_key(&receiver) {
            return;
        }
        let used = self.used.entry(receiver).or_default();
        used.retain(|other| *other != set);
        if used.len() == REMEMBERED_SETS {
            used.pop_front();
        }
        used.push_back(set);
    }
}

impl<R> fmt::Debug for RouteChooser<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteChooser").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

struct Survey<'d> {
    last: &'d Descriptor,
    candidates: Vec<Candidate<'d>>,
    entries: Vec<Candidate<'d>>,
    relays: usize,
}

#[derive(Clone, Copy)]
struct Candidate<'d> {
    id: RelayId,
    descriptor: &'d Descriptor,
}

impl Rule {
    /// Whether only a whole route can break it.
    fn is_of_all(self) -> bool {
        matches!(self, Self::Outside | Self::Set)
    }

    fn is_kept(
        self,
        relays: &[Candidate<'_>],
        receiver: &Descriptor,
        policy: RoutePolicy,
        used: Option<&VecDeque<BTreeSet<RelayId>>>,
    ) -> bool {
        let hops = || relays.iter().map(|relay| relay.descriptor).chain([receiver]);
        match self {
            Self::Operator => distinct(hops().map(|hop| &hop.operator)),
            // A node in two networks of its own does not clash with itself.
            Self::Network => distinct(hops().flat_map(|hop| {
                hop.addresses.iter().map(|address| network(address.ip())).collect::<BTreeSet<_>>()
            })),
            Self::AutonomousSystem => distinct(hops().filter_map(|hop| hop.autonomous_system)),
            Self::Outside => relays.iter().any(|relay| {
                let number = relay.descriptor.autonomous_system;
                number.is_none()
                    || number != receiver.autonomous_system
                        && number != policy.own_autonomous_system
            }),
            Self::Country => {
                let mut counts = BTreeMap::new();
                for country in hops().filter_map(|hop| hop.country) {
                    *counts.entry(country).or_insert(0) += 1;
                }
                counts.into_values().all(|count| count <= policy.in_one_country)
            }
            Self::Set => {
                let set: BTreeSet<_> = relays.iter().map(|relay| relay.id).collect();
                used.is_none_or(|used| !used.contains(&set))
            }
        }
    }
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RouteError {
    /// A route of that many relays.
    #[error("a route of {relays} relays: expected 1 to {most}", most = RoutePolicy::MOST_RELAYS)]
    Length {
        /// How many were asked for.
        relays: usize,
    },
    /// The document does not know the receiving gateway.
    #[error("{0} is not in the document")]
    UnknownReceiver(RelayId),
    /// The document is too old, or the gateway has left.
    #[error("{relay} has no keys for epoch {epoch}")]
    NoKeys {
        /// The gateway.
        relay: RelayId,
        /// The epoch.
        epoch: Epoch,
    },
    /// The receiving gateway has no address, and none of the relays that it names is at hand.
    #[error("no relay that {0} keeps a link to is at hand")]
    NotLinked(RelayId),
    /// There are too few relays.
    #[error("{count} relays at hand: expected at least {needed}")]
    TooFewRelays {
        /// How many there are.
        count: usize,
        /// How many there must be.
        needed: usize,
    },
}

/// Who can be the last relay before the receiver.
fn entries<'d>(receiver: &Descriptor, candidates: &[Candidate<'d>]) -> Vec<Candidate<'d>> {
    let direct = !receiver.addresses.is_empty();
    let linked = |candidate: &&Candidate<'_>| direct || receiver.through.contains(&candidate.id);
    candidates.iter().filter(linked).copied().collect()
}

fn distinct<T: Ord>(items: impl Iterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    items.into_iter().all(|item| seen.insert(item))
}

/// The /16 or the /32 that an address is in.
fn network(address: IpAddr) -> (bool, [u8; 4]) {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            (false, [a, b, 0, 0])
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.octets();
            (true, [a, b, c, d])
        }
    }
}

/// Rejections until a rule is relaxed (HTX reference, section 3.3).
const REJECTIONS: usize = 64;
const REJECTIONS_BEFORE_RESTART: usize = 16;
/// A set comes again when eight others, this one among them, have been used.
const REMEMBERED_SETS: usize = 7;
const RECEIVERS: usize = 1_024;
const HOPELESS_DRAWS: u32 = 64;
