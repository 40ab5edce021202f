//! What the router is asked: the transports as they stand, and what they did before.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fieldpost_delivery::{
    Breaker, BreakerState, Candidate, Capabilities, Claim, Impact, Measured, Outcome, Plan,
    Question, Reach, RecipientKind, Target, Time, plan,
};
use fieldpost_envelope::{AnonymityLevel, GatewayId, Priority};
use fieldpost_transport::Transport;

use crate::{Gateway, outbox::Outbox};

/// Targets whose record is kept; beyond, the half that was used longest ago is forgotten.
const MAX_RECORDS: usize = 8192;
/// What stands for all targets of a transport.
const ANYBODY: &str = "";
/// A receipt is smaller than any limit of a transport.
const RECEIPT_BYTES: usize = 0;

impl Outbox {
    /// Which transports are asked to carry a claimed delivery.
    pub(super) fn plan_delivery(&self, claim: &Claim) -> Plan {
        let message = &claim.message;
        let (recipient, required) = match &claim.target {
            Target::Local(_) => (RecipientKind::Local, message.wishes.required.as_deref()),
            Target::Remote(address) if address.gateway.is_some() => {
                (RecipientKind::Peer, message.wishes.required.as_deref())
            }
            Target::Remote(_) => (RecipientKind::Phone, message.wishes.required.as_deref()),
            Target::Broadcast(transport) => (RecipientKind::Broadcast, Some(transport.as_str())),
        };
        let question = Question {
            now: self.gateway.clock.now(),
            recipient,
            size_bytes: message.content.bytes.len(),
            min_anonymity: message.min_anonymity,
            preference: message.wishes.preference.as_deref(),
            required,
            parallel: message.wishes.parallel,
            critical: message.priority == Priority::Critical,
            internet: has_internet(&self.gateway),
        };
        ask(&self.gateway, &question, &claim.target.reached_through().unwrap_or_default())
    }

    /// Which transports are asked to carry a receipt.
    ///
    /// The way that the other gateway was last heard by is the first: it may be the only one that
    /// is not silently broken.
    pub(super) fn plan_receipt(&self, gateway: GatewayId, level: AnonymityLevel) -> Plan {
        let heard_by = self.gateway.learned.heard_by(gateway);
        let question = Question {
            now: self.gateway.clock.now(),
            recipient: RecipientKind::Peer,
            size_bytes: RECEIPT_BYTES,
            min_anonymity: level,
            preference: heard_by,
            required: None,
            parallel: false,
            critical: false,
            internet: has_internet(&self.gateway),
        };
        ask(&self.gateway, &question, &gateway.to_string())
    }
}

/// How a message would travel to `recipient` now, if it were sent.
pub fn preview(
    gateway: &Gateway,
    recipient: &Target,
    size_bytes: usize,
    min_anonymity: AnonymityLevel,
) -> Plan {
    let kind = match recipient {
        Target::Local(_) => RecipientKind::Local,
        Target::Remote(address) if address.gateway.is_some() => RecipientKind::Peer,
        Target::Remote(_) => RecipientKind::Phone,
        Target::Broadcast(_) => RecipientKind::Broadcast,
    };
    let question = Question {
        now: gateway.clock.now(),
        recipient: kind,
        size_bytes,
        min_anonymity,
        preference: None,
        required: None,
        parallel: false,
        critical: false,
        internet: has_internet(gateway),
    };
    ask(gateway, &question, &recipient.reached_through().unwrap_or_default())
}

fn ask(gateway: &Gateway, question: &Question<'_>, target: &str) -> Plan {
    let can: Vec<Capabilities> =
        gateway.transports.iter().map(|transport| capabilities(transport.as_ref())).collect();
    let candidates: Vec<Candidate<'_>> = gateway
        .transports
        .iter()
        .zip(&can)
        .map(|(transport, capabilities)| Candidate {
            name: transport.name(),
            enabled: true,
            capabilities,
            reach: match reaches(transport.as_ref(), question.recipient, target) {
                true => Reach::Yes { over_internet: false },
                false => Reach::No,
            },
            measured: gateway.learned.measured(question.now, transport.name(), target),
            breaker: gateway.learned.breaker(question.now, transport.name(), target),
            priority: gateway
                .config
                .transport_priority
                .iter()
                .position(|name| name == transport.name()),
        })
        .collect();
    plan(question, &candidates)
}

/// Whether `target` is in reach; a broadcast has another target over each transport.
fn reaches(transport: &dyn Transport, recipient: RecipientKind, target: &str) -> bool {
    let reachable = transport.reachable();
    let reachable = reachable.borrow();
    match recipient {
        RecipientKind::Broadcast => {
            let heard = Target::Broadcast(transport.name().to_owned()).reached_through();
            heard.is_some_and(|heard| reachable.contains(&heard))
        }
        _ => reachable.contains(target),
    }
}

/// What a transport declares, in the router's words.
fn capabilities(transport: &dyn Transport) -> Capabilities {
    let can = transport.capabilities();
    let level = |level: u8| AnonymityLevel::try_from(level).unwrap_or(AnonymityLevel::NONE);
    Capabilities {
        supports_unicast: can.supports_unicast,
        supports_broadcast: can.supports_broadcast,
        supports_multicast: can.supports_multicast,
        max_message_size: can.max_message_size,
        typical_latency_ms: can.typical_latency_ms,
        bandwidth_mbps: can.bandwidth_mbps,
        is_offline_capable: can.is_offline_capable,
        requires_internet: can.requires_internet,
        works_on_cellular: !can.is_offline_capable,
        works_on_wifi: true,
        provides_encryption: can.provides_encryption,
        supports_forward_secrecy: can.supports_forward_secrecy,
        anonymity_level: level(can.anonymity_level),
        best_anonymity_level: level(can.best_anonymity_level),
        reaches_phones: can.reaches_phones,
        battery_impact: impact(can.battery_impact),
        data_cost_impact: impact(can.data_cost_impact),
        supports_store_and_forward: can.supports_store_and_forward,
        supports_multi_hop: can.supports_multi_hop,
        max_hops: can.max_hops,
    }
}

fn impact(word: &str) -> Impact {
    match word {
        "low" => Impact::Low,
        "medium" => Impact::Medium,
        _ => Impact::High,
    }
}

/// Whether there is internet, from what is known here alone (design, section 8): a transport that
/// needs it has somebody in reach, or there is a default route. Nobody is pinged.
fn has_internet(gateway: &Gateway) -> bool {
    let by_link = gateway.transports.iter().any(|transport| {
        transport.capabilities().requires_internet && !transport.reachable().borrow().is_empty()
    });
    by_link || has_default_route()
}

fn has_default_route() -> bool {
    // Where the system does not tell, transports find out for themselves.
    let Ok(routes) = std::fs::read_to_string("/proc/net/route") else { return true };
    let leads_anywhere =
        |line: &str| line.split_whitespace().nth(1).is_some_and(|to| to == "00000000");
    routes.lines().skip(1).any(leads_anywhere) || has_default_route_6()
}

fn has_default_route_6() -> bool {
    let routes = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    routes.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let destination = (fields.next(), fields.next());
        let interface = line.split_whitespace().last();
        destination.0.is_some_and(|to| to.bytes().all(|digit| digit == b'0'))
            && destination.1 == Some("00")
            && interface != Some("lo")
    })
}

/// What the transports did before, in memory: for each target and for anybody; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Learned(Arc<Mutex<Records>>);

#[derive(Debug, Default)]
struct Records {
    by_target: HashMap<(String, String), Record>,
    /// By which transport each gateway was heard last, and at which use.
    heard_by: HashMap<GatewayId, (&'static str, u64)>,
    uses: u64,
}

#[derive(Clone, Debug, Default)]
struct Record {
    measured: Measured,
    breaker: Breaker,
    last_use: u64,
}

impl Learned {
    /// How a transport did lately, for anybody; for those who watch.
    pub fn overall(&self, now: Time, transport: &str) -> Measured {
        self.measured(now, transport, ANYBODY)
    }

    /// Something that `gateway` had signed came over `transport`.
    pub fn heard(&self, transport: &'static str, gateway: GatewayId) {
        let mut records = self.lock();
        records.uses += 1;
        if records.heard_by.len() >= MAX_RECORDS {
            let middle = middle(records.heard_by.values().map(|(_, last_use)| *last_use));
            records.heard_by.retain(|_, (_, last_use)| *last_use > middle);
        }
        let last_use = records.uses;
        records.heard_by.insert(gateway, (transport, last_use));
    }

    fn heard_by(&self, gateway: GatewayId) -> Option<&'static str> {
        self.lock().heard_by.get(&gateway).map(|(transport, _)| *transport)
    }

    fn measured(&self, now: Time, transport: &str, target: &str) -> Measured {
        let records = self.lock();
        let found = |target: &str| {
            let record = records.by_target.get(&(transport.to_owned(), target.to_owned()))?;
            record.measured.success(now).map(|_| record.measured)
        };
        found(target).or_else(|| found(ANYBODY)).unwrap_or_default()
    }

    fn breaker(&self, now: Time, transport: &str, target: &str) -> BreakerState {
        let records = self.lock();
        let record = records.by_target.get(&(transport.to_owned(), target.to_owned()));
        record.map_or(BreakerState::Closed, |record| record.breaker.state(now))
    }

    /// A transport is about to be used; on probation this is the trial.
    pub(super) fn using(&self, now: Time, transport: &str, target: &str) {
        self.lock().record(transport, target).breaker.try_use(now);
    }

    /// Remembers how a transport did.
    pub(super) fn learn(&self, now: Time, transport: &str, target: &str, outcome: Outcome) {
        let mut records = self.lock();
        records.record(transport, ANYBODY).measured.add(now, outcome);
        let record = records.record(transport, target);
        record.measured.add(now, outcome);
        match outcome {
            Outcome::Arrived(_) => record.breaker.succeeded(),
            Outcome::Failed => record.breaker.failed(now),
            Outcome::Silent => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    fn record(&mut self, transport: &str, target: &str) -> &mut Record {
        if self.by_target.len() >= MAX_RECORDS {
            let middle = middle(self.by_target.values().map(|record| record.last_use));
            self.by_target.retain(|_, record| record.last_use > middle);
        }
        self.uses += 1;
        let record = self.by_target.entry((transport.to_owned(), target.to_owned())).or_default();
        record.last_use = self.uses;
        record
    }
}

/// As many are above it as below, give or take one. There must be some.
fn middle(uses: impl Iterator<Item = u64>) -> u64 {
    let mut uses: Vec<u64> = uses.collect();
    let half = uses.len() / 2;
    *uses.select_nth_unstable(half).1
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_not_known_of_one_target_is_taken_from_all() {
        let learned = Learned::default();
        learned.learn(at(0), "mesh", "there", Outcome::Failed);
        assert_eq!(learned.measured(at(1), "mesh", "elsewhere").success(at(1)), Some(0.0));
        learned.learn(at(1), "mesh", "elsewhere", Outcome::Arrived(Duration::from_millis(5)));
        assert_eq!(learned.measured(at(1), "mesh", "elsewhere").success(at(1)), Some(1.0));
        assert_eq!(learned.measured(at(1), "ble", "there").success(at(1)), None);
    }

    #[test]
    fn a_target_that_fails_is_rested_and_others_are_not() {
        let learned = Learned::default();
        for _ in 0..Breaker::FAILURES {
            learned.learn(at(0), "mesh", "there", Outcome::Failed);
        }
        assert!(matches!(learned.breaker(at(1), "mesh", "there"), BreakerState::Rested { .. }));
        assert_eq!(learned.breaker(at(1), "mesh", "elsewhere"), BreakerState::Closed);
    }

    #[test]
    fn memory_is_bounded_and_the_recent_stays() {
        let learned = Learned::default();
        for number in 0..2 * MAX_RECORDS {
            learned.using(at(0), "mesh", &number.to_string());
        }
        learned.learn(at(0), "mesh", "last", Outcome::Failed);
        assert!(learned.lock().by_target.len() <= MAX_RECORDS);
        assert!(learned.measured(at(0), "mesh", "last").success(at(0)).is_some());
    }

    fn at(seconds: i64) -> Time {
        Time::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds)
    }
}
