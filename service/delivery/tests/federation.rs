//! Three gateways on memory stores in virtual time: router, dispatcher, lanes and receipts
//! together, on links that fail, lose, double and delay, between gateways that crash.
//!
//! Every run is made by its seed, which a failing test prints.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use chrono::TimeDelta;
use fieldpost_delivery::{
    Action, Backoff, Breaker, Candidate, Capabilities, Claim, Confirm, Content, Dispatch, Event,
    Impact, Inbound, Measured, MemoryStore, Message, Outcome, Question, Reach, ReceiptIn,
    ReceiptOut, Received, RecipientKind, Rules, Store, Submission, Target, Time, Wishes, plan,
    suite::ready,
};
use fieldpost_envelope::{
    AnonymityLevel, GatewayId, MessageId, MessageStatus, PeerAddress, PeerId, Priority,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

#[test]
fn everything_arrives_once_in_order_and_over_nothing_less_than_it_asked_for() {
    for seed in 0..12 {
        let mut world = World::new(seed, Fault::None);
        world.run();
        let violations = world.judge();
        assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
        let flagged = world.shown.iter().filter(|shown| shown.gap || shown.late).count();
        let failovers = world.failovers;
        assert!(world.sent.len() > 60 && failovers > 5, "seed {seed}: {failovers}, {flagged}");
    }
}

#[test]
fn a_run_is_made_by_its_seed() {
    let shown = |seed| {
        let mut world = World::new(seed, Fault::None);
        world.run();
        world.shown
    };
    assert_eq!(shown(5), shown(5));
    assert_ne!(shown(5), shown(6));
}

#[test]
fn planted_faults_are_seen() {
    for (fault, word) in [
        (Fault::IgnoresLevels, "level"),
        (Fault::ForgetsWhatItHas, "twice"),
        (Fault::NamesNoPredecessor, "order"),
        (Fault::GivesUpAfterSilence, "lost"),
    ] {
        let seen = (0..20).any(|seed| {
            let mut world = World::new(seed, fault);
            world.run();
            world.judge().iter().any(|violation| violation.starts_with(word))
        });
        assert!(seen, "{fault:?} was not seen");
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    None,
    IgnoresLevels,
    ForgetsWhatItHas,
    NamesNoPredecessor,
    GivesUpAfterSilence,
}

struct World {
    fault: Fault,
    rng: StdRng,
    now: Time,
    queue: BTreeMap<(Time, u64), Happening>,
    count: u64,
    gateways: Vec<Gateway>,
    /// Which transport is down between which two gateways, the lesser first.
    down: BTreeSet<(&'static str, usize, usize)>,
    internet: bool,
    is_calm: bool,
    sent: Vec<Sent>,
    shown: Vec<Shown>,
    carried: Vec<(AnonymityLevel, AnonymityLevel)>,
    failovers: usize,
}

struct Gateway {
    id: GatewayId,
    store: MemoryStore,
    live: BTreeMap<u64, Live>,
    records: HashMap<(usize, &'static str), (Measured, Breaker)>,
}

struct Live {
    dispatch: Dispatch,
    claim: Claim,
    to: usize,
    heard_at: Time,
}

struct Sent {
    from: (usize, PeerId),
    to: (usize, PeerId),
    id: MessageId,
    level: AnonymityLevel,
    is_critical: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Shown {
    to: (usize, PeerId),
    id: MessageId,
    gap: bool,
    late: bool,
}

enum Happening {
    Work(usize),
    Write,
    Read(usize, PeerId),
    Weather,
    Crash(usize),
    Answer(usize, u64, Event),
    Arrive(usize, Box<Inbound>),
    Receipt(usize, ReceiptIn),
}

impl World {
    fn new(seed: u64, fault: Fault) -> Self {
        let gateways = (0..GATEWAYS).map(|number| Gateway {
            id: GatewayId::from_bytes([number as u8 + 1; 32]),
            store: MemoryStore::new(),
            live: BTreeMap::new(),
            records: HashMap::new(),
        });
        Self {
            fault,
            rng: StdRng::seed_from_u64(seed),
            now: Time::UNIX_EPOCH + TimeDelta::days(20_000),
            queue: BTreeMap::new(),
            count: 0,
            gateways: gateways.collect(),
            down: BTreeSet::new(),
            internet: true,
            is_calm: false,
            sent: Vec::new(),
            shown: Vec::new(),
            carried: Vec::new(),
            failovers: 0,
        }
    }

    /// A quarter of an hour of bad weather, and a good one.
    fn run(&mut self) {
        for gateway in 0..GATEWAYS {
            self.after(0, Happening::Work(gateway));
            for peer in peers() {
                self.after(1_000, Happening::Read(gateway, peer));
            }
        }
        for _ in 0..120 {
            let at = self.rng.random_range(0..STORM_MS);
            self.after(at, Happening::Write);
        }
        for _ in 0..60 {
            let at = self.rng.random_range(0..STORM_MS);
            self.after(at, Happening::Weather);
        }
        for _ in 0..8 {
            let (at, gateway) = (self.rng.random_range(0..STORM_MS), self.any_gateway());
            self.after(at, Happening::Crash(gateway));
        }
        let calm_at = self.now + TimeDelta::milliseconds(STORM_MS);
        let end = calm_at + TimeDelta::minutes(15);
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            if at > end {
                break;
            }
            self.now = at;
            if at >= calm_at && !self.is_calm {
                self.is_calm = true;
                self.internet = true;
                self.down.clear();
            }
            self.happens(happening);
        }
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Work(gateway) => self.work(gateway),
            Happening::Write => self.write(),
            Happening::Read(gateway, peer) => self.read(gateway, peer),
            Happening::Weather => self.change_weather(),
            Happening::Crash(gateway) => self.gateways[gateway].live.clear(),
            Happening::Answer(gateway, number, event) => self.hand_in(gateway, number, event),
            Happening::Arrive(gateway, inbound) => self.arrive(gateway, &inbound),
            Happening::Receipt(gateway, receipt) => self.receipt(gateway, &receipt),
        }
    }

    fn write(&mut self) {
        let (from, to) = (self.any_gateway(), self.any_gateway());
        if from == to {
            return;
        }
        let (sender, recipient) = (self.any_peer(), self.any_peer());
        let address = PeerAddress::remote(recipient.clone(), self.gateways[to].id);
        let level = match self.rng.random_range(0..10) {
            0..2 => AnonymityLevel::HIGHEST,
            2..4 => AnonymityLevel::LOW,
            _ => AnonymityLevel::NONE,
        };
        let is_critical = self.rng.random_range(0..10) == 0;
        let id = MessageId(Uuid::from_u128(self.sent.len() as u128 + 1));
        let message = Message {
            id,
            sender: sender.clone().into(),
            to: address.clone().into(),
            content: Content::default(),
            expires_at: self.now + TimeDelta::hours(6),
            priority: if is_critical { Priority::Critical } else { Priority::Normal },
            min_anonymity: level,
            wishes: Wishes::default(),
        };
        let deliveries = vec![Target::Remote(address)];
        let submission = Submission { message, fingerprint: [0; 32], deliveries };
        ready(self.gateways[from].store.accept(self.now, &[submission])).unwrap();
        self.sent.push(Sent { from: (from, sender), to: (to, recipient), id, level, is_critical });
    }

    fn read(&mut self, gateway: usize, peer: PeerId) {
        let entries = ready(self.gateways[gateway].store.show(self.now, &peer, 0, 1000)).unwrap();
        let confirms = self.rng.random_range(0..10) < 8;
        // A client that does not confirm is shown the same again, and knows it by its seq.
        let Some(last) = entries.last().filter(|_| confirms) else {
            return self.after(3_000, Happening::Read(gateway, peer));
        };
        let (seq, to) = (last.seq, (gateway, peer.clone()));
        let shown = entries.iter().map(|entry| Shown {
            to: to.clone(),
            id: entry.message.id,
            gap: entry.gap,
            late: entry.late,
        });
        self.shown.extend(shown);
        let store = &self.gateways[gateway].store;
        ready(store.confirm(self.now, &peer, &Confirm::UpTo(seq), false)).unwrap();
        self.after(3_000, Happening::Read(gateway, peer));
    }

    fn change_weather(&mut self) {
        if self.is_calm {
            return;
        }
        if self.rng.random_range(0..6) == 0 {
            self.internet = !self.internet;
        }
        let (name, a, b) =
            (TRANSPORTS[self.rng.random_range(0..3)], self.any_gateway(), self.any_gateway());
        let link = (name, a.min(b), a.max(b));
        if !self.down.remove(&link) {
            self.down.insert(link);
        }
    }

    fn work(&mut self, gateway: usize) {
        let now = self.now;
        let reachable: Vec<_> = (0..GATEWAYS)
            .filter(|&to| {
                to != gateway && TRANSPORTS.iter().any(|name| self.is_up(name, gateway, to))
            })
            .map(|to| self.gateways[to].id.to_string())
            .collect();
        let store = &self.gateways[gateway].store;
        ready(store.expire_due(now, 1000)).unwrap();
        ready(store.release_held(now, 1000)).unwrap();
        ready(store.reached(now, &reachable)).unwrap();
        let claims = ready(store.claim_due(now, rules().lease(), &reachable, 50)).unwrap();
        let receipts = ready(store.claim_receipts(now, Duration::from_secs(10), &reachable, 50));
        for claim in claims {
            self.set_out(gateway, claim);
        }
        for receipt in receipts.unwrap() {
            self.send_receipt(gateway, &receipt);
        }
        let live = &mut self.gateways[gateway].live;
        // A transport that was asked answers within a second, and is still listened to.
        live.retain(|_, live| {
            !live.dispatch.has_ended() || live.heard_at + TimeDelta::seconds(1) > now
        });
        let is_due = |live: &Live| live.dispatch.next_deadline().is_some_and(|at| at <= now);
        let due: Vec<_> =
            live.iter().filter(|(_, live)| is_due(live)).map(|(number, _)| *number).collect();
        for number in due {
            self.hand_in(gateway, number, Event::Wake);
        }
        let pause = if self.is_calm { 1000 } else { 300 };
        self.after(pause, Happening::Work(gateway));
    }

    fn set_out(&mut self, gateway: usize, claim: Claim) {
        let Target::Remote(address) = &claim.target else { panic!("only peers elsewhere") };
        let to = self
            .gateways
            .iter()
            .position(|other| Some(other.id) == address.gateway)
            .expect("a gateway of this world");
        let question = Question {
            now: self.now,
            recipient: RecipientKind::Peer,
            size_bytes: claim.message.content.bytes.len(),
            min_anonymity: match self.fault {
                Fault::IgnoresLevels => AnonymityLevel::NONE,
                _ => claim.message.min_anonymity,
            },
            preference: None,
            required: None,
            parallel: false,
            critical: claim.message.priority == Priority::Critical,
            internet: self.internet,
        };
        let capabilities = TRANSPORTS.map(capabilities);
        let candidates: Vec<_> = TRANSPORTS
            .iter()
            .zip(&capabilities)
            .enumerate()
            .map(|(rank, (name, capabilities))| {
                let known = self.gateways[gateway].records.get(&(to, *name));
                let (measured, breaker) = known.cloned().unwrap_or_default();
                Candidate {
                    name,
                    enabled: true,
                    capabilities,
                    reach: match self.is_up(name, gateway, to) {
                        true => Reach::Yes { over_internet: capabilities.requires_internet },
                        false => Reach::No,
                    },
                    measured,
                    breaker: breaker.state(self.now),
                    priority: Some(rank),
                }
            })
            .collect();
        let plan = plan(&question, &candidates);
        let dispatch = Dispatch::new(&claim, plan, &rules(), &mut self.rng);
        self.count += 1;
        let number = self.count;
        self.gateways[gateway]
            .live
            .insert(number, Live { dispatch, claim, to, heard_at: self.now });
        self.hand_in(gateway, number, Event::Begin);
    }

    fn hand_in(&mut self, gateway: usize, number: u64, event: Event) {
        let now = self.now;
        let Some(live) = self.gateways[gateway].live.get_mut(&number) else { return };
        live.heard_at = now;
        let (claim, to) = (live.claim.clone(), live.to);
        let actions: Vec<_> = live.dispatch.handle(now, event).collect();
        for action in actions {
            match action {
                Action::Send(place) => self.send(gateway, number, to, &claim, &place.transport),
                Action::Record { attempts, next } => {
                    let silent = attempts
                        .iter()
                        .any(|attempt| attempt.result == fieldpost_delivery::AttemptResult::Silent);
                    self.failovers += usize::from(attempts.len() > 1);
                    let next = match (self.fault, silent) {
                        (Fault::GivesUpAfterSilence, true) => fieldpost_delivery::Next::Sent {
                            envelope: [0; 32],
                            retry_at: now + TimeDelta::days(1),
                        },
                        _ => next,
                    };
                    let store = &self.gateways[gateway].store;
                    ready(store.record(now, &claim, &attempts, &next)).unwrap();
                }
                Action::Learn { transport, outcome } => {
                    let name = TRANSPORTS
                        .into_iter()
                        .find(|name| *name == transport)
                        .expect("a transport of this world");
                    let known = self.gateways[gateway].records.entry((to, name)).or_default();
                    known.0.add(now, outcome);
                    match outcome {
                        Outcome::Arrived(_) => known.1.succeeded(),
                        Outcome::Failed => known.1.failed(now),
                        Outcome::Silent => {}
                    }
                }
            }
        }
    }

    fn send(&mut self, from: usize, number: u64, to: usize, claim: &Claim, transport: &str) {
        let name = TRANSPORTS
            .into_iter()
            .find(|name| *name == transport)
            .expect("a transport of this world");
        self.carried.push((capabilities(name).anonymity_level, claim.message.min_anonymity));
        let answer_after = self.rng.random_range(1..400);
        if !self.is_up(name, from, to) || self.is_unlucky(10) {
            let reason = "link lost".into();
            let event = Event::HardFailure { transport: transport.into(), reason };
            return self.after(answer_after, Happening::Answer(from, number, event));
        }
        let home = self.gateways[from].id;
        let mut message = claim.message.clone();
        message.sender = message.sender.qualified(home);
        let Target::Remote(address) = &claim.target else { panic!("only peers elsewhere") };
        message.to = address.peer.clone().into();
        let inbound = Inbound {
            recipient: address.peer.clone(),
            sent_at: claim.accepted_at,
            lane_seq: claim.lane_seq,
            after: claim.after.filter(|_| self.fault != Fault::NamesNoPredecessor),
            envelope: digest(&(message.id.0, claim.lane_seq, claim.after, &address.peer)),
            transport: transport.into(),
            message,
        };
        let event = Event::TookCharge { transport: transport.into(), envelope: inbound.envelope };
        self.after(answer_after, Happening::Answer(from, number, event));
        let copies = if self.is_unlucky(20) { 0 } else { 1 + usize::from(self.is_unlucky(10)) };
        for _ in 0..copies {
            let after = self.rng.random_range(50..8_000);
            self.after(after, Happening::Arrive(to, Box::new(inbound.clone())));
        }
    }

    fn arrive(&mut self, gateway: usize, inbound: &Inbound) {
        let mut inbound = inbound.clone();
        if self.fault == Fault::ForgetsWhatItHas {
            // Another gateway's name makes another identity of it.
            self.count += 1;
            inbound.lane_seq = None;
            inbound.message.sender.peer = format!("copy{}", self.count).parse().expect("a peer id");
        }
        let store = &self.gateways[gateway].store;
        let received = ready(store.receive(self.now, &inbound, ORDER_WAIT)).unwrap();
        assert!(!matches!(received, Received::Refused(_)));
    }

    fn send_receipt(&mut self, from: usize, receipt: &ReceiptOut) {
        let to = self
            .gateways
            .iter()
            .position(|other| other.id == receipt.gateway)
            .expect("a gateway of this world");
        let way = TRANSPORTS.into_iter().find(|name| {
            self.is_up(name, from, to) && capabilities(name).anonymity_level >= receipt.level
        });
        let store = &self.gateways[from].store;
        let Some(name) = way else {
            let at = Backoff::RECEIPT.wait(receipt.attempt, &mut self.rng);
            let retry_at = self.now + TimeDelta::from_std(at).expect("a short wait");
            ready(store.receipt_done(receipt, Some(retry_at))).unwrap();
            return;
        };
        self.carried.push((capabilities(name).anonymity_level, receipt.level));
        ready(store.receipt_done(receipt, None)).unwrap();
        let arrived = ReceiptIn {
            envelope: receipt.envelope,
            signer: self.gateways[from].id,
            kind: receipt.kind,
            at: receipt.at,
            reason: receipt.reason.clone(),
        };
        for _ in 0..1 + usize::from(self.is_unlucky(10)) {
            let after = self.rng.random_range(50..8_000);
            self.after(after, Happening::Receipt(to, arrived.clone()));
        }
    }

    fn receipt(&mut self, gateway: usize, receipt: &ReceiptIn) {
        let forged = ReceiptIn { signer: GatewayId::from_bytes([99; 32]), ..receipt.clone() };
        let store = &self.gateways[gateway].store;
        assert_eq!(ready(store.settle(self.now, &forged)).unwrap(), None);
        let Some(settled) = ready(store.settle(self.now, receipt)).unwrap() else { return };
        let live: Vec<_> = self.gateways[gateway]
            .live
            .iter()
            .filter(|(_, live)| live.claim.message.id == settled.id)
            .map(|(number, _)| *number)
            .collect();
        for number in live {
            self.hand_in(gateway, number, Event::Receipt(receipt.kind));
        }
    }

    /// What went against the promises.
    fn judge(&self) -> Vec<String> {
        let mut violations = Vec::new();
        for (level, needed) in &self.carried {
            if level < needed {
                violations.push(format!("level {level} carried what needs {needed}"));
            }
        }
        for sent in &self.sent {
            let id = sent.id.0.as_u128();
            let times = self.shown.iter().filter(|shown| shown.id == sent.id).count();
            if times > 1 {
                violations.push(format!("twice or more, {times} times, came {id}"));
            }
            let (from, sender) = &sent.from;
            let store = &self.gateways[*from].store;
            let records = ready(store.records(self.now, sender, sent.id)).unwrap();
            let status = records[0].deliveries[0].status;
            if times == 0 || status != MessageStatus::Delivered {
                violations.push(format!("lost: {id} is {status} and was shown {times} times"));
            }
        }
        self.judge_order(&mut violations);
        violations
    }

    fn judge_order(&self, violations: &mut Vec<String>) {
        let mut lanes: HashMap<_, Vec<MessageId>> = HashMap::new();
        for sent in self.sent.iter().filter(|sent| !sent.is_critical) {
            lanes.entry((&sent.from, &sent.to, sent.level)).or_default().push(sent.id);
        }
        for ((_, to, _), written) in lanes {
            let mut furthest = 0;
            for shown in self.shown.iter().filter(|shown| shown.to == *to) {
                let Some(place) = written.iter().position(|id| *id == shown.id) else { continue };
                if place < furthest && !shown.late {
                    violations.push(format!("order: {} came late and does not say so", shown.id));
                }
                if place > furthest && !shown.gap {
                    violations.push(format!("order: {} skipped one in silence", shown.id));
                }
                furthest = furthest.max(place + 1);
            }
        }
    }

    fn is_up(&self, name: &'static str, a: usize, b: usize) -> bool {
        let needs_internet = capabilities(name).requires_internet;
        !self.down.contains(&(name, a.min(b), a.max(b))) && (self.internet || !needs_internet)
    }

    fn is_unlucky(&mut self, percent: u32) -> bool {
        !self.is_calm && self.rng.random_range(0..100) < percent
    }

    fn after(&mut self, millis: i64, happening: Happening) {
        self.count += 1;
        let at = self.now + TimeDelta::milliseconds(millis);
        self.queue.insert((at, self.count), happening);
    }

    fn any_gateway(&mut self) -> usize {
        self.rng.random_range(0..GATEWAYS)
    }

    fn any_peer(&mut self) -> PeerId {
        peers()[self.rng.random_range(0..2)].clone()
    }
}

fn rules() -> Rules {
    Rules::default()
}

fn peers() -> [PeerId; 2] {
    ["alice", "bob"].map(|name| name.parse().expect("a peer id"))
}

fn digest(of: &impl Hash) -> [u8; 32] {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    let mut digest = [7; 32];
    digest[..8].copy_from_slice(&hasher.finish().to_be_bytes());
    digest
}

fn capabilities(name: &'static str) -> Capabilities {
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

const GATEWAYS: usize = 3;
const TRANSPORTS: [&str; 3] = ["htx", "ble", "mesh"];
const STORM_MS: i64 = 15 * 60_000;
const ORDER_WAIT: Duration = Duration::from_secs(120);
