//! One gateway: what the drivers of the outbox and the inbox do around the decisions.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use chrono::TimeDelta;
use fieldpost_envelope::{AnonymityLevel, GatewayId, PeerId, Priority, ReceiptKind};
use rand::{RngExt, rngs::StdRng};

use super::{Fault, Happening, Parcel, World, network::TRANSPORTS};
use crate::{
    Action, AttemptResult, Backoff, Candidate, Claim, Correspondent, Dispatch, Event, Inbound,
    Learned, MemoryStore, Next, Plan, Question, Reach, ReceiptIn, ReceiptOut, Received,
    RecipientKind, Rules, Store, Target, Time, later, plan, suite::ready,
};

/// A gateway: what lasts, and what a crash takes away.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: GatewayId,
    pub(super) name: String,
    pub(super) store: MemoryStore,
    /// By how much its clock is ahead.
    skew: TimeDelta,
    pub(super) is_up: bool,
    /// Which run of its process this is.
    run: u32,
    /// After so many steps it crashes.
    pub(super) is_doomed_in: Option<u32>,
    live: BTreeMap<u64, Live>,
    learned: Learned,
    /// By transport, who is in reach as far as the store was told.
    told: [BTreeSet<usize>; TRANSPORTS.len()],
    pub(super) reachable: Vec<String>,
    next_look: Option<Time>,
    reconsider_at: Time,
    /// Whose clients are about to look.
    pub(super) reads_soon: BTreeSet<PeerId>,
}

/// A delivery under way.
#[derive(Debug)]
struct Live {
    dispatch: Dispatch,
    claim: Claim,
    to: usize,
    envelope: [u8; 32],
    /// Sends that have not been answered.
    unanswered: u32,
    /// The store knows that it has left.
    has_left: bool,
    /// Receipts that came before that.
    early: Vec<(ReceiptIn, [u8; 32])>,
    /// For when a wake-up is on its way.
    wakes_at: Option<Time>,
}

impl Node {
    pub(super) fn new(number: usize, rng: &mut StdRng) -> Self {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        let id = GatewayId::from_bytes(bytes);
        Self {
            id,
            name: id.to_string(),
            store: MemoryStore::new(),
            skew: TimeDelta::milliseconds(rng.random_range(-60_000..60_000)),
            is_up: true,
            run: 0,
            is_doomed_in: None,
            live: BTreeMap::new(),
            learned: Learned::default(),
            told: Default::default(),
            reachable: Vec::new(),
            next_look: None,
            reconsider_at: Time::UNIX_EPOCH,
            reads_soon: BTreeSet::new(),
        }
    }

    /// The time on its own clock.
    pub(super) fn local(&self, now: Time) -> Time {
        now + self.skew
    }
}

impl World {
    /// Which gateway of this world that is.
    pub(super) fn node_of(&self, id: GatewayId) -> Option<usize> {
        let bytes: [u8; 8] = id.as_bytes().first_chunk().copied()?;
        let number = usize::from_be_bytes(bytes);
        self.nodes.get(number).filter(|node| node.id == id).map(|_| number)
    }

    /// The gateway will crash within a few steps, or soon if it has nothing to do.
    pub(super) fn doom(&mut self, node: usize) {
        if self.network.is_calm() || !self.nodes[node].is_up {
            return;
        }
        self.nodes[node].is_doomed_in = Some(self.rng.random_range(0..8));
        self.look_soon(node);
    }

    /// One step of a gateway's process is done; false if it crashed there.
    pub(super) fn step(&mut self, node: usize) -> bool {
        match &mut self.nodes[node].is_doomed_in {
            None => return self.nodes[node].is_up,
            Some(0) => self.crash(node),
            Some(left) => *left -= 1,
        }
        self.nodes[node].is_up
    }

    fn crash(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        node.is_up = false;
        node.run += 1;
        node.is_doomed_in = None;
        node.live.clear();
        node.learned = Learned::default();
        node.told = Default::default();
        node.reachable.clear();
        node.next_look = None;
        node.reads_soon.clear();
        self.tally.crashes += 1;
        let away = self.rng.random_range(100..90_000);
        self.after(away, Happening::Restart(number));
        self.network_has_changed();
    }

    pub(super) fn restart(&mut self, number: usize) {
        if self.nodes[number].is_up {
            return;
        }
        self.nodes[number].is_up = true;
        self.network_has_changed();
        for peer in ["alice", "bob"] {
            self.read_soon(number, peer.parse().expect("a peer id"));
        }
        self.look_soon(number);
    }

    /// Tells the store and what is under way who has come into reach and who has gone.
    pub(super) fn follow_reach(&mut self, number: usize) {
        if !self.nodes[number].is_up {
            return;
        }
        let now = self.nodes[number].local(self.now);
        let mut has_changed = false;
        for (transport, name) in TRANSPORTS.into_iter().enumerate() {
            let current: BTreeSet<usize> = (0..self.nodes.len())
                .filter(|&to| to != number && self.reaches(transport, number, to))
                .collect();
            if current == self.nodes[number].told[transport] {
                continue;
            }
            has_changed = true;
            let fresh: Vec<usize> =
                current.difference(&self.nodes[number].told[transport]).copied().collect();
            self.nodes[number].told[transport] = current;
            if fresh.is_empty() {
                continue;
            }
            let names: Vec<String> =
                fresh.iter().map(|&other| self.nodes[other].name.clone()).collect();
            let node = &mut self.nodes[number];
            for target in &names {
                node.learned.reached(now, name, target);
            }
            let Ok(_) = ready(node.store.reached(now, &names));
            node.store.hasten(now, &names);
            let run = node.run;
            let live = node.live.iter().filter(|(_, live)| fresh.contains(&live.to));
            let live: Vec<u64> = live.map(|(dispatch, _)| *dispatch).collect();
            for dispatch in live {
                let transport = name.to_owned();
                self.hand_in(number, run, dispatch, Event::Returned { transport });
            }
            if self.nodes[number].run != run {
                // It crashed over it.
                return;
            }
        }
        if !has_changed {
            return;
        }
        let all: BTreeSet<usize> = self.nodes[number].told.iter().flatten().copied().collect();
        let names = all.into_iter().map(|other| self.nodes[other].name.clone()).collect();
        self.nodes[number].reachable = names;
        self.look_soon(number);
    }

    fn reaches(&self, transport: usize, a: usize, b: usize) -> bool {
        self.nodes[a].is_up && self.nodes[b].is_up && self.network.is_known(transport, a, b)
    }

    pub(super) fn look_soon(&mut self, node: usize) {
        let millis = self.rng.random_range(1..50);
        self.look_at(node, self.now + TimeDelta::milliseconds(millis));
    }

    fn look_at(&mut self, node: usize, at: Time) {
        let at = at.max(self.now);
        let next = &mut self.nodes[node].next_look;
        if next.is_none_or(|next| at < next) {
            *next = Some(at);
            self.at(at, Happening::Look(node));
        }
    }

    /// Everything that is due.
    pub(super) fn look(&mut self, number: usize) {
        // A look that was brought forward has been done.
        if self.nodes[number].next_look != Some(self.now) {
            return;
        }
        self.nodes[number].next_look = None;
        if !self.step(number) {
            return;
        }
        let node = &mut self.nodes[number];
        let now = node.local(self.now);
        let returned: Vec<String> = node.learned.take_returned().into_iter().collect();
        if !returned.is_empty() {
            let Ok(_) = ready(node.store.reached(now, &returned));
        }
        if node.reconsider_at <= now {
            node.reconsider_at = later(now, RECONSIDER);
            let Ok(_) = ready(node.store.reached(now, &node.reachable));
        }
        let Ok(expired) = ready(node.store.expire_due(now, 1000));
        let Ok(grown) = ready(node.store.release_held(now, 1000));
        let reachable = std::mem::take(&mut node.reachable);
        let Ok(claims) = ready(node.store.claim_due(now, rules().lease(), &reachable, 50));
        let lease = 2 * rules().lease();
        let Ok(receipts) = ready(node.store.claim_receipts(now, lease, &reachable, 50));
        node.reachable = reachable;
        self.note_settled(number, &expired);
        for peer in grown {
            self.read_soon(number, peer);
        }
        for claim in claims {
            if !self.step(number) {
                return;
            }
            self.set_out(number, claim);
        }
        for receipt in receipts {
            if !self.step(number) {
                return;
            }
            self.send_receipt(number, &receipt);
        }
        self.plan_next_look(number);
    }

    fn plan_next_look(&mut self, number: usize) {
        let node = &self.nodes[number];
        if !node.is_up {
            return;
        }
        let now = node.local(self.now);
        let Ok(due) = ready(node.store.next_due());
        let receipts = node.store.next_receipt();
        let later_on = |at: &Time| *at > now;
        let due = [due, receipts].into_iter().flatten().filter(later_on).min();
        let has_anything = due.is_some() || node.store.owes_anything();
        let sweep = has_anything.then(|| later(now, RECONSIDER));
        if let Some(at) = [due, sweep].into_iter().flatten().min() {
            self.look_at(number, at - self.nodes[number].skew);
        }
    }

    pub(super) fn set_out(&mut self, number: usize, claim: Claim) {
        let Target::Remote(address) = &claim.target else { panic!("others need no claim") };
        let to = address.gateway.and_then(|home| self.node_of(home)).expect("one of this world");
        let message = (number, &claim.message.sender, claim.message.id.0);
        let envelope = digest(&(message, claim.lane_seq, claim.after, &claim.target));
        self.nodes[number].store.envelope_leaves(&claim, &envelope);
        if !self.step(number) {
            return;
        }
        let plan = self.plan_delivery(number, to, &claim);
        self.tally.trials += plan.places.iter().filter(|place| place.is_trial).count();
        let dispatch = Dispatch::new(&claim, plan, &rules(), &mut self.rng);
        self.count += 1;
        let key = self.count;
        let live = Live {
            dispatch,
            claim,
            to,
            envelope,
            unanswered: 0,
            has_left: false,
            early: Vec::new(),
            wakes_at: None,
        };
        let run = self.nodes[number].run;
        self.nodes[number].live.insert(key, live);
        self.hand_in(number, run, key, Event::Begin);
    }

    fn plan_delivery(&self, number: usize, to: usize, claim: &Claim) -> Plan {
        let message = &claim.message;
        let question = Question {
            now: self.nodes[number].local(self.now),
            recipient: RecipientKind::Peer,
            size_bytes: message.content.bytes.len(),
            min_anonymity: match self.fault {
                Fault::IgnoresLevels => AnonymityLevel::NONE,
                _ => message.min_anonymity,
            },
            preference: message.wishes.preference.as_deref(),
            required: message.wishes.required.as_deref(),
            parallel: message.wishes.parallel,
            critical: message.priority == Priority::Critical,
            internet: self.network.has_internet(number),
        };
        self.ask(number, to, &question)
    }

    fn plan_receipt(&self, number: usize, to: usize, level: AnonymityLevel) -> Plan {
        let question = Question {
            now: self.nodes[number].local(self.now),
            recipient: RecipientKind::Peer,
            size_bytes: 0,
            min_anonymity: match self.fault {
                Fault::IgnoresLevelsOfReceipts => AnonymityLevel::NONE,
                _ => level,
            },
            preference: self.nodes[number].learned.heard_by(self.nodes[to].id),
            required: None,
            parallel: false,
            critical: false,
            internet: self.network.has_internet(number),
        };
        self.ask(number, to, &question)
    }

    fn ask(&self, number: usize, to: usize, question: &Question<'_>) -> Plan {
        let node = &self.nodes[number];
        let target = &self.nodes[to].name;
        let candidate = |(index, name): (usize, &&'static str)| {
            let capabilities = self.network.capabilities(index);
            Candidate {
                name,
                enabled: true,
                capabilities,
                reach: match node.told[index].contains(&to) {
                    true => Reach::Yes { over_internet: capabilities.requires_internet },
                    false => Reach::No,
                },
                measured: node.learned.measured(question.now, name, target),
                breaker: node.learned.breaker(question.now, name, target),
                priority: Some(index),
            }
        };
        let candidates: Vec<_> = TRANSPORTS.iter().enumerate().map(candidate).collect();
        plan(question, &candidates)
    }

    /// Lets something happen to a delivery under way, and does what follows.
    pub(super) fn hand_in(&mut self, number: usize, run: u32, key: u64, event: Event) {
        let node = &mut self.nodes[number];
        let now = node.local(self.now);
        if node.run != run || !node.is_up {
            return;
        }
        let Some(live) = node.live.get_mut(&key) else { return };
        if matches!(event, Event::TookCharge { .. } | Event::HardFailure { .. }) {
            live.unanswered -= 1;
        }
        let actions: Vec<_> = live.dispatch.handle(now, event).collect();
        for action in actions {
            if !self.step(number) {
                return;
            }
            self.act(number, key, now, action);
        }
        self.after_actions(number, key);
    }

    fn act(&mut self, number: usize, key: u64, now: Time, action: Action) {
        match action {
            Action::Send(place) => self.send(number, key, &place.transport),
            Action::Record { attempts, next } => {
                let is_silent = |one: &crate::Attempt| one.result == AttemptResult::Silent;
                self.tally.failovers += usize::from(attempts.len() > 1);
                let next = match (self.fault, attempts.iter().any(is_silent)) {
                    (Fault::GivesUpAfterSilence, true) => {
                        Next::Sent { envelope: [0; 32], retry_at: now + TimeDelta::days(1) }
                    }
                    _ => next,
                };
                let node = &mut self.nodes[number];
                let Some(live) = node.live.get_mut(&key) else { return };
                let Ok(settled) = ready(node.store.record(now, &live.claim, &attempts, &next));
                live.has_left |= matches!(next, Next::Sent { .. });
                if let Next::Retry { at } | Next::Wait { until: Some(at), .. } = next {
                    let at = at - node.skew;
                    self.look_at(number, at.max(self.now + TimeDelta::milliseconds(20)));
                }
                self.note_settled(number, settled.as_slice());
            }
            Action::Learn { transport, outcome } => {
                let node = &mut self.nodes[number];
                let Some(to) = node.live.get(&key).map(|live| live.to) else { return };
                let target = self.nodes[to].name.clone();
                let learned = &mut self.nodes[number].learned;
                learned.learn(now, &transport, &target, outcome);
                if learned.has_returned() {
                    self.look_soon(number);
                }
            }
        }
    }

    /// Takes the receipts that waited for the record, and sees to the next deadline.
    fn after_actions(&mut self, number: usize, key: u64) {
        let skew = self.nodes[number].skew;
        let run = self.nodes[number].run;
        let Some(live) = self.nodes[number].live.get_mut(&key) else { return };
        let has_ended = live.dispatch.has_ended() && live.unanswered == 0;
        let early = match live.has_left || has_ended {
            true => std::mem::take(&mut live.early),
            false => Vec::new(),
        };
        if let Some(deadline) = live.dispatch.next_deadline()
            && live.wakes_at != Some(deadline)
        {
            live.wakes_at = Some(deadline);
            let deadline = Happening::Deadline { node: number, run, dispatch: key };
            let at = self.nodes[number].live[&key].wakes_at.expect("it was set") - skew;
            self.at(at, deadline);
        }
        if has_ended {
            self.nodes[number].live.remove(&key);
        }
        for (receipt, digest) in early {
            self.settle(number, Some(key), &receipt, digest);
        }
    }

    fn send(&mut self, from: usize, key: u64, name: &str) {
        let transport = index_of(name);
        let Some(live) = self.nodes[from].live.get_mut(&key) else { return };
        live.unanswered += 1;
        let (to, envelope, claim) = (live.to, live.envelope, live.claim.clone());
        let target = self.nodes[to].name.clone();
        let now = self.nodes[from].local(self.now);
        self.nodes[from].learned.using(now, name, &target);
        let offered = self.network.capabilities(transport).anonymity_level;
        self.log.carried(offered, claim.message.min_anonymity, "a message");
        // One that hangs is let go after twice the time-out.
        let hangs = self.is_unlucky(2);
        let answer_after = match hangs {
            true => 20_000,
            false => self.rng.random_range(1..400),
        };
        let run = self.nodes[from].run;
        let transport_name = name.to_owned();
        let answer = |event| Happening::Answer { node: from, run, dispatch: key, event };
        if hangs || !self.reaches(transport, from, to) || self.is_unlucky(8) {
            let reason = "link lost".to_owned();
            let event = Event::HardFailure { transport: transport_name, reason };
            return self.after(answer_after, answer(event));
        }
        let event = Event::TookCharge { transport: transport_name, envelope };
        self.after(answer_after, answer(event));
        let parcel = Parcel::Message(Box::new(self.inbound(from, &claim, envelope, name)));
        self.carry(from, to, transport, &parcel);
    }

    fn inbound(&self, from: usize, claim: &Claim, envelope: [u8; 32], name: &str) -> Inbound {
        let Target::Remote(address) = &claim.target else { panic!("others need no claim") };
        let mut message = claim.message.clone();
        message.sender = message.sender.qualified(self.nodes[from].id);
        message.to = address.peer.clone().into();
        Inbound {
            via: None,
            recipient: address.peer.clone(),
            sent_at: claim.accepted_at,
            lane_seq: claim.lane_seq,
            after: claim.after.filter(|_| self.fault != Fault::NamesNoPredecessor),
            envelope,
            transport: name.to_owned(),
            message,
        }
    }

    /// What the network makes of a parcel that a transport took charge of.
    fn carry(&mut self, from: usize, to: usize, transport: usize, parcel: &Parcel) {
        if !self.network.leads_there(transport, from, to) || self.is_unlucky(15) {
            self.tally.lost += 1;
            return;
        }
        let copies = 1 + usize::from(self.is_unlucky(10));
        self.tally.doubled += copies - 1;
        for _ in 0..copies {
            // Some take longer than the sender waits.
            let millis = match self.rng.random_range(0..20) {
                0 if !self.network.is_calm() => self.rng.random_range(5_000..40_000),
                _ => self.rng.random_range(20..2_000),
            };
            let parcel = parcel.clone();
            self.after(millis, Happening::Arrive { from, to, transport, parcel });
        }
    }

    pub(super) fn arrive(&mut self, from: usize, to: usize, transport: usize, parcel: Parcel) {
        if !self.nodes[to].is_up || !self.network.leads_there(transport, from, to) {
            self.tally.lost += 1;
            return;
        }
        let now = self.nodes[to].local(self.now);
        let signer = self.nodes[from].id;
        let learned = &mut self.nodes[to].learned;
        learned.heard(now, TRANSPORTS[transport], signer);
        if learned.has_returned() {
            self.look_soon(to);
        }
        match parcel {
            Parcel::Message(inbound) => self.take_message(to, *inbound),
            Parcel::Receipt { receipt, digest } => self.take_receipt(to, receipt, digest),
        }
    }

    fn take_message(&mut self, number: usize, mut inbound: Inbound) {
        let node = &self.nodes[number];
        let now = node.local(self.now);
        if inbound.message.expires_at <= now || !self.step(number) {
            return;
        }
        if self.fault == Fault::ForgetsWhatItHas {
            // Another name makes another identity of it.
            self.count += 1;
            inbound.lane_seq = None;
            let copy = u128::from(self.count) << 64;
            inbound.message.id.0 = uuid::Uuid::from_u128(inbound.message.id.0.as_u128() | copy);
        }
        let Ok(received) = ready(self.nodes[number].store.receive(now, &inbound, ORDER_WAIT));
        assert!(!matches!(received, Received::Refused(_)), "{received:?}");
        self.look_soon(number);
        self.read_soon(number, inbound.recipient);
    }

    fn send_receipt(&mut self, from: usize, owed: &ReceiptOut) {
        let Correspondent::Gateway(gateway) = owed.gateway else { panic!("no phones here") };
        let to = self.node_of(gateway).expect("one of this world");
        let now = self.nodes[from].local(self.now);
        let mut places = self.plan_receipt(from, to, owed.level).places;
        if !places.is_empty() {
            let first = owed.attempt.saturating_sub(1) as usize % places.len();
            places.rotate_left(first);
        }
        let receipt = ReceiptIn {
            envelope: owed.envelope,
            signer: self.nodes[from].id.into(),
            kind: owed.kind,
            at: owed.at,
            reason: owed.reason.clone(),
        };
        let own_digest = digest(&(owed.envelope, owed.kind.as_str(), owed.at, from));
        for place in places {
            let transport = index_of(&place.transport);
            let offered = self.network.capabilities(transport).anonymity_level;
            self.log.carried(offered, owed.level, "a receipt");
            if !self.reaches(transport, from, to) || self.is_unlucky(8) {
                continue;
            }
            let parcel = Parcel::Receipt { receipt, digest: own_digest };
            self.carry(from, to, transport, &parcel);
            if !self.step(from) {
                return;
            }
            let store = &self.nodes[from].store;
            if owed.kind == ReceiptKind::Stored {
                let Ok(()) = ready(store.receipt_done(owed, None));
            } else {
                let first = rules().failover_timeout;
                let backoff = Backoff { first, most: LONGEST_SILENCE };
                let retry_at = later(now, backoff.wait(owed.attempt, &mut self.rng));
                store.receipt_left(owed, &own_digest, retry_at);
            }
            return;
        }
        let retry_at = later(now, Backoff::RECEIPT.wait(owed.attempt, &mut self.rng));
        let Ok(()) = ready(self.nodes[from].store.receipt_done(owed, Some(retry_at)));
    }

    fn take_receipt(&mut self, number: usize, receipt: ReceiptIn, digest: [u8; 32]) {
        let node = &mut self.nodes[number];
        let under_way = node.live.iter_mut().find(|(_, live)| live.envelope == receipt.envelope);
        match under_way {
            Some((_, live)) if !live.has_left => live.early.push((receipt, digest)),
            Some((key, _)) => {
                let key = *key;
                self.settle(number, Some(key), &receipt, digest);
            }
            None => self.settle(number, None, &receipt, digest),
        }
    }

    fn settle(&mut self, number: usize, key: Option<u64>, said: &ReceiptIn, own: [u8; 32]) {
        if !self.step(number) {
            return;
        }
        let mut receipt = said.clone();
        if self.fault == Fault::ClaimsDelivery && receipt.kind == ReceiptKind::Stored {
            receipt.kind = ReceiptKind::Delivered;
        }
        let node = &self.nodes[number];
        let now = node.local(self.now);
        let forged =
            ReceiptIn { signer: GatewayId::from_bytes([99; 32]).into(), ..receipt.clone() };
        let Ok(believed) = ready(node.store.settle(now, &forged));
        assert_eq!(believed, None, "a forged receipt was believed");
        let Ok(settled) = ready(node.store.settle(now, &receipt));
        self.note_settled(number, settled.as_slice());
        if !self.step(number) {
            return;
        }
        let store = &self.nodes[number].store;
        if said.kind == ReceiptKind::Stored {
            store.receipt_answered(&said.envelope, said.signer);
        } else if store.answer_receipt(now, said, &own) {
            self.look_soon(number);
        }
        if let Some(key) = key {
            let run = self.nodes[number].run;
            self.hand_in(number, run, key, Event::Receipt(said.kind));
        }
    }
}

pub(super) fn rules() -> Rules {
    Rules::default()
}

fn index_of(name: &str) -> usize {
    TRANSPORTS.iter().position(|known| *known == name).expect("a transport of this world")
}

fn digest(of: &impl Hash) -> [u8; 32] {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    let mut digest = [7; 32];
    digest[..8].copy_from_slice(&hasher.finish().to_be_bytes());
    digest
}

const ORDER_WAIT: Duration = Duration::from_secs(120);
/// How often what waits for more than reach is looked at again.
const RECONSIDER: Duration = Duration::from_secs(60);
/// The longest wait before a receipt without an answer is sent again.
const LONGEST_SILENCE: Duration = Duration::from_secs(3600);
