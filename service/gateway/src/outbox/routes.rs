//! What the router is asked: the transports as they stand, and what they did before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fieldpost_delivery::{
    self as delivery, BreakerState, Candidate, Capabilities, Claim, Impact, Measured, Outcome,
    Plan, Question, Reach, RecipientKind, Target, Time, plan,
};
use fieldpost_envelope::{AnonymityLevel, GatewayId, Priority};
use fieldpost_transport::Transport;

use crate::{Gateway, outbox::Outbox};

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
            Target::Group { .. } => (RecipientKind::Group, message.wishes.required.as_deref()),
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
            preference: heard_by.as_deref(),
            required: None,
            parallel: false,
            critical: false,
            internet: has_internet(&self.gateway),
        };
        ask(&self.gateway, &question, &gateway.to_string())
    }
}

/// How a message would travel, and what that is judged by.
#[derive(Debug)]
pub struct Preview {
    /// The plan.
    pub plan: Plan,
    /// For each transport, what it did for this recipient, or for anybody.
    pub measured: BTreeMap<&'static str, Measured>,
}

/// How a message would travel to `recipient` now, if it were sent.
pub fn preview(
    gateway: &Gateway,
    recipient: &Target,
    size_bytes: usize,
    min_anonymity: AnonymityLevel,
) -> Preview {
    let kind = match recipient {
        Target::Local(_) => RecipientKind::Local,
        Target::Remote(address) if address.gateway.is_some() => RecipientKind::Peer,
        Target::Remote(_) => RecipientKind::Phone,
        Target::Group { .. } => RecipientKind::Group,
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
    let target = recipient.reached_through().unwrap_or_default();
    let plan = ask(gateway, &question, &target);
    let measured = gateway.transports.iter().map(|transport| {
        (transport.name(), gateway.learned.measured(question.now, transport.name(), &target))
    });
    Preview { plan, measured: measured.collect() }
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
            enabled: gateway.mixnet.allows(transport.name()),
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
    by_link || gateway.connectivity.borrow().has_default_route
}

/// What the transports did before, shared by all who ask or tell; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Learned(Arc<Mutex<delivery::Learned>>);

impl Learned {
    /// How a transport did lately, for anybody; for those who watch.
    pub fn overall(&self, now: Time, transport: &str) -> Measured {
        self.lock().overall(now, transport)
    }

    /// Something that `gateway` had signed came over `transport`. True when that brings a rested
    /// transport back.
    pub fn heard(&self, now: Time, transport: &'static str, gateway: GatewayId) -> bool {
        let mut learned = self.lock();
        learned.heard(now, transport, gateway);
        learned.has_returned()
    }

    fn heard_by(&self, gateway: GatewayId) -> Option<String> {
        self.lock().heard_by(gateway).map(str::to_owned)
    }

    fn measured(&self, now: Time, transport: &str, target: &str) -> Measured {
        self.lock().measured(now, transport, target)
    }

    fn breaker(&self, now: Time, transport: &str, target: &str) -> BreakerState {
        self.lock().breaker(now, transport, target)
    }

    /// A transport is about to be used; on probation this is the trial.
    pub(super) fn using(&self, now: Time, transport: &str, target: &str) {
        self.lock().using(now, transport, target);
    }

    /// Remembers how a transport did. True when that brings a rested one back.
    pub(super) fn learn(&self, now: Time, transport: &str, target: &str, outcome: Outcome) -> bool {
        let mut learned = self.lock();
        learned.learn(now, transport, target, outcome);
        learned.has_returned()
    }

    /// These have come into reach over `transport`.
    pub(super) fn reached<'a>(
        &self,
        now: Time,
        transport: &str,
        targets: impl IntoIterator<Item = &'a String>,
    ) {
        let mut learned = self.lock();
        for target in targets {
            learned.reached(now, transport, target);
        }
    }

    /// The targets to which a rested transport may be used again since the last call.
    pub(super) fn take_returned(&self) -> BTreeSet<String> {
        self.lock().take_returned()
    }

    fn lock(&self) -> MutexGuard<'_, delivery::Learned> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
