//! Federations of gateways on memory stores in virtual time: router, dispatcher, lanes, receipts
//! and what is learnt of transports, together, on links that fail, hang, lose, double, delay and
//! part, between gateways whose clocks differ and that crash between any two steps.
//!
//! Everything decided here is decided by the parts that the gateway uses; what the gateway's drivers
//! do around them is done in `gateway`, step for step. A run is made by its seed alone. It ends in
//! good weather, and [`World::judge`] then says what went against promises 1, 2, 3 and 5 (design,
//! section 1).
//!
//! | Module | Is |
//! |---|---|
//! | `gateway` | one gateway: claims, sends, receives, crashes |
//! | `network` | who reaches whom over what, and what goes wrong there |
//! | `clients` | who writes, reads, confirms and withdraws |
//! | `judge` | what was promised, against what was seen |

mod clients;
mod gateway;
mod judge;
mod network;

use std::{collections::BTreeMap, time::Duration};

use chrono::TimeDelta;
use fieldpost_envelope::PeerId;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use self::{clients::Talk, gateway::Node, judge::Log, network::Network};
use crate::{Event, Inbound, ReceiptIn, Time, later};

/// How large a federation is and what it goes through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    /// Gateways, at least two.
    pub gateways: usize,
    /// Pairs of peers that write to each other, in one direction.
    pub talks: usize,
    /// Messages written, about.
    pub messages: usize,
    /// How often a link, a part of the network or somebody's internet fails or comes back.
    pub changes: usize,
    /// How often a gateway crashes.
    pub crashes: usize,
    /// How long the bad weather lasts.
    pub storm: Duration,
}

impl Shape {
    /// Three gateways and a quarter of an hour.
    pub const SMALL: Self = Self {
        gateways: 3,
        talks: 10,
        messages: 120,
        changes: 60,
        crashes: 8,
        storm: Duration::from_secs(900),
    };

    /// Fifty gateways and a quarter of an hour.
    pub const FIFTY: Self = Self {
        gateways: 50,
        talks: 70,
        messages: 350,
        changes: 120,
        crashes: 60,
        storm: Duration::from_secs(900),
    };
}

/// What is done wrong on purpose, to see that it is seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Promise 3: messages are planned without their level.
    IgnoresLevels,
    /// Promise 3: receipts are planned without their level.
    IgnoresLevelsOfReceipts,
    /// Promise 2: a second copy is taken for another message.
    ForgetsWhatItHas,
    /// Promise 2: what a client confirms is not kept.
    ForgetsConfirmations,
    /// Promise 5: no envelope names its predecessor.
    NamesNoPredecessor,
    /// Promise 1: what was met with silence is not tried again.
    GivesUpAfterSilence,
    /// Promise 1: some of what was accepted is not kept.
    ForgetsWhatItAccepted,
    /// Promise 1: what is stored is told to be delivered.
    ClaimsDelivery,
}

impl Fault {
    /// All that is wrong, each with the word by which the judge names it.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::IgnoresLevels, "downgraded"),
        (Self::IgnoresLevelsOfReceipts, "downgraded"),
        (Self::ForgetsWhatItHas, "doubled"),
        (Self::ForgetsConfirmations, "doubled"),
        (Self::NamesNoPredecessor, "reordered"),
        (Self::GivesUpAfterSilence, "lost"),
        (Self::ForgetsWhatItAccepted, "lost"),
        (Self::ClaimsDelivery, "misreported"),
    ];
}

/// What happened in a run, in figures.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Messages accepted.
    pub accepted: usize,
    /// Deliveries shown to a recipient for the first time.
    pub shown: usize,
    /// Of these, those that carried a mark for a gap or for being late.
    pub marked: usize,
    /// Deliveries that expired or were withdrawn.
    pub ended_otherwise: usize,
    /// Attempts over a further transport after one failed or was silent.
    pub failovers: usize,
    /// Trials of a transport that came from a rest.
    pub trials: usize,
    /// Envelopes that vanished.
    pub lost: usize,
    /// Copies that the network made.
    pub doubled: usize,
    /// Gateways that crashed.
    pub crashes: usize,
    /// Things that happened.
    pub steps: usize,
}

impl std::ops::Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            accepted: self.accepted + other.accepted,
            shown: self.shown + other.shown,
            marked: self.marked + other.marked,
            ended_otherwise: self.ended_otherwise + other.ended_otherwise,
            failovers: self.failovers + other.failovers,
            trials: self.trials + other.trials,
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            crashes: self.crashes + other.crashes,
            steps: self.steps + other.steps,
        }
    }
}

/// A federation and all that happens in it.
#[derive(Debug)]
pub struct World {
    shape: Shape,
    fault: Fault,
    rng: StdRng,
    now: Time,
    queue: BTreeMap<(Time, u64), Happening>,
    count: u64,
    nodes: Vec<Node>,
    network: Network,
    talks: Vec<Talk>,
    log: Log,
    tally: Tally,
}

/// What is to happen. What belongs to one run of a gateway's process names that.
#[derive(Debug)]
enum Happening {
    Write,
    Read(usize, PeerId),
    Change,
    Doom(usize),
    Restart(usize),
    Look(usize),
    Deadline { node: usize, run: u32, dispatch: u64 },
    Answer { node: usize, run: u32, dispatch: u64, event: Event },
    Arrive { from: usize, to: usize, transport: usize, parcel: Parcel },
}

/// What a transport carries.
#[derive(Clone, Debug)]
enum Parcel {
    Message(Box<Inbound>),
    Receipt { receipt: ReceiptIn, digest: [u8; 32] },
}

impl World {
    /// A federation that is about to begin.
    pub fn new(seed: u64, shape: Shape, fault: Fault) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes: Vec<Node> =
            (0..shape.gateways).map(|number| Node::new(number, &mut rng)).collect();
        let talks = clients::talks(shape, &mut rng);
        Self {
            shape,
            fault,
            now: Time::UNIX_EPOCH + TimeDelta::days(20_000),
            queue: BTreeMap::new(),
            count: 0,
            network: Network::new(shape.gateways),
            nodes,
            talks,
            log: Log::default(),
            tally: Tally::default(),
            rng,
        }
    }

    /// Lets it happen: bad weather, then good weather until nothing is owed any more, for twelve
    /// hours at most.
    pub fn run(&mut self) {
        for node in 0..self.nodes.len() {
            self.follow_reach(node);
        }
        self.scatter(self.shape.messages, |_| Happening::Write);
        self.scatter(self.shape.changes, |_| Happening::Change);
        self.scatter(self.shape.crashes, |world| Happening::Doom(world.any_node()));
        let calm_at = later(self.now, self.shape.storm);
        self.run_until(calm_at);
        self.calm_down();
        for _ in 0..12 * 60 {
            if self.owes_nothing() {
                return;
            }
            self.run_until(later(self.now, Duration::from_secs(60)));
        }
    }

    /// What was seen, in figures.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    fn scatter(&mut self, count: usize, happening: impl Fn(&mut Self) -> Happening) {
        let storm = i64::try_from(self.shape.storm.as_millis()).unwrap_or(i64::MAX);
        for _ in 0..count {
            let at = self.rng.random_range(0..storm);
            let happening = happening(self);
            self.after(at, happening);
        }
    }

    fn run_until(&mut self, end: Time) {
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), happening) = entry.remove_entry();
            self.now = at;
            self.tally.steps += 1;
            self.happens(happening);
        }
        self.now = end;
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Write => self.write(),
            Happening::Read(node, peer) => self.read(node, peer),
            Happening::Change => self.change_network(),
            Happening::Doom(node) => self.doom(node),
            Happening::Restart(node) => self.restart(node),
            Happening::Look(node) => self.look(node),
            Happening::Deadline { node, run, dispatch } => {
                self.hand_in(node, run, dispatch, Event::Wake);
            }
            Happening::Answer { node, run, dispatch, event } => {
                self.hand_in(node, run, dispatch, event);
            }
            Happening::Arrive { from, to, transport, parcel } => {
                self.arrive(from, to, transport, parcel);
            }
        }
    }

    /// The last of the bad weather: everything works, and whoever is down comes up.
    fn calm_down(&mut self) {
        self.network.heal();
        for node in 0..self.nodes.len() {
            self.nodes[node].is_doomed_in = None;
            if !self.nodes[node].is_up {
                self.restart(node);
            }
        }
        self.network_has_changed();
    }

    fn after(&mut self, millis: i64, happening: Happening) {
        self.at(self.now + TimeDelta::milliseconds(millis), happening);
    }

    fn at(&mut self, at: Time, happening: Happening) {
        self.count += 1;
        self.queue.insert((at.max(self.now), self.count), happening);
    }

    fn any_node(&mut self) -> usize {
        self.rng.random_range(0..self.nodes.len())
    }

    /// True in so many of a hundred cases, but never in good weather.
    fn is_unlucky(&mut self, percent: u32) -> bool {
        !self.network.is_calm() && self.rng.random_range(0..100) < percent
    }
}
