//! Which transports are asked to carry a delivery, in which order, and why (design, section 8).
//!
//! [`plan`] is a pure function: the same question about the same transports has the same answer,
//! whatever the order in which they are named. Every transport ends up either in the plan, with the
//! reason for its place, or among those ruled out, with the reason for that; both are shown to the
//! sender.

mod breaker;
mod learned;
mod measured;

use std::{cmp::Ordering, fmt};

use fieldpost_envelope::AnonymityLevel;
use serde::Serialize;

pub use self::{
    breaker::{Breaker, BreakerState},
    learned::Learned,
    measured::{Measured, Outcome},
};
use crate::Time;

/// The name of the way to recipients of this gateway: no link is used, so no level applies.
pub const LOCAL: &str = "local";

/// What a transport can do, as `GET /v1/transports` declares it (design, section 7).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capabilities {
    /// Can carry a message to one peer.
    pub supports_unicast: bool,
    /// Can carry a message to everybody in reach.
    pub supports_broadcast: bool,
    /// Can carry one message to several peers.
    pub supports_multicast: bool,
    /// The largest content, in bytes.
    pub max_message_size: usize,
    /// How long a message usually takes, in milliseconds.
    pub typical_latency_ms: u32,
    /// How much it usually carries, in megabits a second.
    pub bandwidth_mbps: f64,
    /// Works without internet.
    pub is_offline_capable: bool,
    /// Never works without internet.
    pub requires_internet: bool,
    /// Works over a cellular network.
    pub works_on_cellular: bool,
    /// Works over a local network.
    pub works_on_wifi: bool,
    /// Encrypts what it carries, beyond the envelope's own seal.
    pub provides_encryption: bool,
    /// A key that leaks later opens nothing that was carried before.
    pub supports_forward_secrecy: bool,
    /// How well it hides who writes to whom as it stands now.
    pub anonymity_level: AnonymityLevel,
    /// The best level that it can ever declare, so that a message may wait for it.
    pub best_anonymity_level: AnonymityLevel,
    /// Reaches BitChat phones that are no gateways.
    pub reaches_phones: bool,
    /// What it costs the battery.
    pub battery_impact: Impact,
    /// What it costs in data.
    pub data_cost_impact: Impact,
    /// Others keep a message for a recipient who is away.
    pub supports_store_and_forward: bool,
    /// Reaches peers that are no neighbours.
    pub supports_multi_hop: bool,
    /// The most links that a message crosses.
    pub max_hops: u8,
}

/// How much of something scarce a transport uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Impact {
    /// Little.
    Low,
    /// Some.
    Medium,
    /// Much.
    High,
}

/// What has to travel, and what the world looks like.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Now.
    pub now: Time,
    /// Who the recipient is.
    pub recipient: RecipientKind,
    /// Decoded content, in bytes.
    pub size_bytes: usize,
    /// The lowest level that may carry it.
    pub min_anonymity: AnonymityLevel,
    /// The transport to try first.
    pub preference: Option<&'a str>,
    /// The only transport allowed.
    pub required: Option<&'a str>,
    /// All suitable transports at once, because the sender asked for it.
    pub parallel: bool,
    /// All suitable transports at once, because it is urgent.
    pub critical: bool,
    /// Whether there is internet.
    pub internet: bool,
}

/// Who a recipient is, as far as routing goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RecipientKind {
    /// A peer of this gateway.
    Local,
    /// A peer of another gateway.
    Peer,
    /// A BitChat phone.
    Phone,
    /// A group at home on another gateway, which fans out: the way there is a way to one gateway.
    Group,
    /// Everybody in reach of a transport.
    Broadcast,
}

/// One transport as it stands.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it is among `--transports`.
    pub enabled: bool,
    /// What it can do.
    pub capabilities: &'a Capabilities,
    /// Whether the recipient can be reached over it now.
    pub reach: Reach,
    /// What it did for this recipient before, or for anybody where nothing is known of this one.
    pub measured: Measured,
    /// Whether it is being rested.
    pub breaker: BreakerState,
    /// Its place in `--transport-priority`, from 0; `None` comes after all that have one.
    pub priority: Option<usize>,
}

/// Whether a recipient, or anybody for a broadcast, can be reached over a transport now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reach {
    /// Not as far as is known.
    No,
    /// Yes.
    Yes {
        /// Only while there is internet, whatever the transport could do without.
        over_internet: bool,
    },
}

/// What to do with a delivery.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The transports to ask, best first; empty unless the verdict is [`Verdict::Go`].
    pub places: Vec<Place>,
    /// All others.
    pub ruled_out: Vec<RuledOut>,
    /// Ask all of them at once rather than one after the other.
    pub at_once: bool,
    /// Whether to go, wait or give up.
    pub verdict: Verdict,
}

/// One transport of a plan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Its name.
    pub transport: String,
    /// Why it stands here.
    pub reason: String,
    /// It comes from a rest. It is asked beside the best of the others rather than in its turn, so
    /// that no message waits to find out that it is still broken.
    pub is_trial: bool,
}

/// A transport that is not asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RuledOut {
    /// Its name.
    pub transport: String,
    /// Why not.
    pub why: Why,
}

/// Whether a delivery can set out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// There is a way.
    Go,
    /// There may be one later.
    Waits {
        /// What it waits for, in words for the sender.
        reason: String,
        /// When a rested transport may be tried again, if that is all that is missing.
        until: Option<Time>,
    },
    /// No transport of this gateway can ever carry it.
    Never {
        /// Why, in words for the sender.
        reason: String,
    },
}

/// Why a transport does not carry a message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Why {
    /// It is not among `--transports`.
    Disabled,
    /// It cannot carry this kind of message at all.
    Kind {
        /// What it cannot do, such as `broadcasts`.
        cannot: &'static str,
    },
    /// The content is larger than it carries.
    Size {
        /// The content's size in bytes.
        size_bytes: usize,
        /// The largest that it carries.
        max_bytes: usize,
    },
    /// It can never hide well enough.
    Level {
        /// The best it can do.
        best: AnonymityLevel,
        /// What the message needs.
        needed: AnonymityLevel,
    },
    /// The message is for one other transport alone.
    NotRequired {
        /// Which one.
        required: String,
    },
    /// The recipient is on this gateway, so no link is needed.
    RecipientIsLocal,
    /// The recipient is not on this gateway.
    RecipientIsElsewhere,
    /// The gateway has no such transport.
    Unknown,
    /// It does not hide well enough as it stands.
    LevelNow {
        /// What it declares now.
        level: AnonymityLevel,
        /// What the message needs.
        needed: AnonymityLevel,
    },
    /// It needs internet and there is none.
    NoInternet,
    /// The recipient is out of its reach.
    OutOfReach,
    /// It failed too often and is rested.
    Rested {
        /// Until when.
        until: Time,
    },
    /// It was rested, and another message is trying it out.
    OnTrial {
        /// Until when at the latest.
        until: Time,
    },
}

impl Why {
    /// Whether this holds whatever happens, as the gateway is configured.
    pub fn is_for_good(&self) -> bool {
        match self {
            Self::Disabled
            | Self::Kind { .. }
            | Self::Size { .. }
            | Self::Level { .. }
            | Self::NotRequired { .. }
            | Self::RecipientIsLocal
            | Self::RecipientIsElsewhere
            | Self::Unknown => true,
            Self::LevelNow { .. }
            | Self::NoInternet
            | Self::OutOfReach
            | Self::Rested { .. }
            | Self::OnTrial { .. } => false,
        }
    }

    fn rested_until(&self) -> Option<Time> {
        match self {
            Self::Rested { until } | Self::OnTrial { until } => Some(*until),
            _ => None,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disabled => f.write_str("is switched off"),
            Self::Kind { cannot } => write!(f, "cannot carry {cannot}"),
            Self::Size { size_bytes, max_bytes } => {
                write!(f, "carries at most {max_bytes} bytes, the content has {size_bytes}")
            }
            Self::Level { best, needed } => {
                write!(f, "offers anonymity level {best} at best, the message needs {needed}")
            }
            Self::NotRequired { required } => write!(f, "the message is for {required} alone"),
            Self::RecipientIsLocal => f.write_str("the recipient is on this gateway"),
            Self::RecipientIsElsewhere => f.write_str("the recipient is not on this gateway"),
            Self::Unknown => f.write_str("this gateway has no such transport"),
            Self::LevelNow { level, needed } => {
                write!(f, "offers anonymity level {level} now, the message needs {needed}")
            }
            Self::NoInternet => f.write_str("needs internet, and there is none"),
            Self::OutOfReach => f.write_str("does not reach the recipient now"),
            Self::Rested { until } => {
                write!(f, "failed repeatedly and rests until {}", until.format("%H:%M:%S UTC"))
            }
            Self::OnTrial { .. } => f.write_str("failed repeatedly and is being tried out"),
        }
    }
}

/// Plans one delivery.
pub fn plan(question: &Question<'_>, candidates: &[Candidate<'_>]) -> Plan {
    if goes_local(question) {
        return local_plan(candidates);
    }
    let mut suitable = Vec::new();
    let mut ruled_out = Vec::new();
    for candidate in candidates {
        match rule_out(question, candidate) {
            Some(why) => ruled_out.push(RuledOut { transport: candidate.name.into(), why }),
            None => suitable.push(candidate),
        }
    }
    if let Some(missing) = missing_required(question, candidates) {
        ruled_out.push(missing);
    }
    suitable.sort_by(|a, b| compare(question, a, b));
    ruled_out.sort_by(|a, b| a.transport.cmp(&b.transport));
    let at_once = question.parallel || question.critical;
    let places: Vec<_> = suitable
        .into_iter()
        .map(|candidate| Place {
            transport: candidate.name.into(),
            reason: reason(question, candidate, at_once),
            is_trial: candidate.breaker == BreakerState::OnProbation,
        })
        .collect();
    let verdict = match places.is_empty() {
        true => verdict(&ruled_out),
        false => Verdict::Go,
    };
    Plan { places, ruled_out, at_once, verdict }
}

/// A link that the sender requires is used even when the recipient is on this gateway.
fn goes_local(question: &Question<'_>) -> bool {
    question.recipient == RecipientKind::Local && question.required.is_none_or(|name| name == LOCAL)
}

fn local_plan(candidates: &[Candidate<'_>]) -> Plan {
    let mut ruled_out: Vec<_> = candidates
        .iter()
        .map(|candidate| RuledOut { transport: candidate.name.into(), why: Why::RecipientIsLocal })
        .collect();
    ruled_out.sort_by(|a, b| a.transport.cmp(&b.transport));
    let reason = "the recipient is on this gateway".into();
    Plan {
        places: vec![Place { transport: LOCAL.into(), reason, is_trial: false }],
        ruled_out,
        at_once: false,
        verdict: Verdict::Go,
    }
}

/// Why this transport does not come into question; what holds for good is looked at first.
fn rule_out(question: &Question<'_>, candidate: &Candidate<'_>) -> Option<Why> {
    for_good(question, candidate).or_else(|| for_now(question, candidate))
}

fn for_good(question: &Question<'_>, candidate: &Candidate<'_>) -> Option<Why> {
    let can = candidate.capabilities;
    let cannot = match question.recipient {
        RecipientKind::Broadcast if !can.supports_broadcast => Some("broadcasts"),
        RecipientKind::Phone if !can.reaches_phones => Some("messages to phones"),
        RecipientKind::Broadcast => None,
        _ if !can.supports_unicast => Some("messages to one peer"),
        _ => None,
    };
    if let Some(required) = question.required.filter(|name| *name != candidate.name) {
        Some(Why::NotRequired { required: required.into() })
    } else if !candidate.enabled {
        Some(Why::Disabled)
    } else if let Some(cannot) = cannot {
        Some(Why::Kind { cannot })
    } else if question.size_bytes > can.max_message_size {
        let (size_bytes, max_bytes) = (question.size_bytes, can.max_message_size);
        Some(Why::Size { size_bytes, max_bytes })
    } else if can.best_anonymity_level.max(can.anonymity_level) < question.min_anonymity {
        Some(Why::Level { best: can.best_anonymity_level, needed: question.min_anonymity })
    } else {
        None
    }
}

fn for_now(question: &Question<'_>, candidate: &Candidate<'_>) -> Option<Why> {
    let can = candidate.capabilities;
    let needs_internet = can.requires_internet
        || !can.is_offline_capable
        || matches!(candidate.reach, Reach::Yes { over_internet: true });
    if can.anonymity_level < question.min_anonymity {
        Some(Why::LevelNow { level: can.anonymity_level, needed: question.min_anonymity })
    } else if needs_internet && !question.internet {
        Some(Why::NoInternet)
    } else if candidate.reach == Reach::No {
        Some(Why::OutOfReach)
    } else {
        match candidate.breaker {
            BreakerState::Closed | BreakerState::OnProbation => None,
            BreakerState::Rested { until } => Some(Why::Rested { until }),
            BreakerState::OnTrial { until } => Some(Why::OnTrial { until }),
        }
    }
}

fn missing_required(question: &Question<'_>, candidates: &[Candidate<'_>]) -> Option<RuledOut> {
    let required = question.required?;
    let is_known = candidates.iter().any(|candidate| candidate.name == required);
    let why = if required == LOCAL { Why::RecipientIsElsewhere } else { Why::Unknown };
    (!is_known).then(|| RuledOut { transport: required.into(), why })
}

fn compare(question: &Question<'_>, a: &Candidate<'_>, b: &Candidate<'_>) -> Ordering {
    let preferred = |candidate: &Candidate<'_>| question.preference == Some(candidate.name);
    let by_rule = match question.recipient {
        RecipientKind::Broadcast => broadcast_rank(a.name).cmp(&broadcast_rank(b.name)),
        _ => Ordering::Equal,
    };
    preferred(b)
        .cmp(&preferred(a))
        .then(by_rule)
        .then_with(|| score(question.now, b).total_cmp(&score(question.now, a)))
        .then_with(|| a.name.cmp(b.name))
}

fn broadcast_rank(name: &str) -> usize {
    BROADCAST_ORDER.iter().position(|known| *known == name).unwrap_or(BROADCAST_ORDER.len())
}

/// The configured priority, weighted by what was measured; higher is better.
///
/// Where nothing was measured the weight is 1, so the configured order holds. A transport loses its
/// place to the next when it succeeds half as often.
fn score(now: Time, candidate: &Candidate<'_>) -> f64 {
    let rank = candidate.priority.unwrap_or(UNRANKED).min(UNRANKED);
    let typical = f64::from(candidate.capabilities.typical_latency_ms);
    candidate.measured.weight(now, typical) / (rank as f64 + 1.0)
}

fn reason(question: &Question<'_>, candidate: &Candidate<'_>, at_once: bool) -> String {
    let measured = candidate.measured.describe(question.now);
    // A broadcast is owed to each transport by itself, whatever the sender wishes.
    let why = if question.recipient == RecipientKind::Broadcast {
        "carries broadcasts".into()
    } else if question.required.is_some() {
        "required by the sender".into()
    } else if question.preference == Some(candidate.name) {
        "preferred by the sender".into()
    } else {
        match candidate.priority {
            Some(rank) => format!("priority {}", rank + 1),
            None => "no configured priority".into(),
        }
    };
    let trial = if candidate.breaker == BreakerState::OnProbation {
        ", tried out after a rest"
    } else {
        ""
    };
    let together = match (at_once, question.critical) {
        (true, true) => ", all at once because critical",
        (true, false) => ", all at once as asked",
        (false, _) => "",
    };
    format!("{why}{measured}{trial}{together}")
}

fn verdict(ruled_out: &[RuledOut]) -> Verdict {
    let for_now: Vec<_> = ruled_out.iter().filter(|out| !out.why.is_for_good()).collect();
    if for_now.is_empty() {
        // The required transport's own reason says it all; the others are merely not that one.
        let telling = ruled_out.iter().filter(|out| !matches!(out.why, Why::NotRequired { .. }));
        let reason = match ruled_out.is_empty() {
            true => "this gateway has no transport".into(),
            false => sentence(telling),
        };
        return Verdict::Never { reason };
    }
    let until = for_now.iter().filter_map(|out| out.why.rested_until()).min();
    let is_out_of_reach = for_now.iter().all(|out| out.why == Why::OutOfReach);
    let reason = match (is_out_of_reach, sentence(for_now)) {
        (true, reason) => format!("{OUT_OF_REACH}: {reason}"),
        (false, reason) => reason,
    };
    Verdict::Waits { reason, until }
}

fn sentence<'a>(ruled_out: impl IntoIterator<Item = &'a RuledOut>) -> String {
    let parts: Vec<_> =
        ruled_out.into_iter().map(|out| format!("{}: {}", out.transport, out.why)).collect();
    parts.join("; ")
}

/// How the reason begins where nothing but reach is missing.
pub const OUT_OF_REACH: &str = "out of reach";

/// Broadcasts are for those nearby, so the order is fixed (design, section 8, rule 4).
const BROADCAST_ORDER: [&str; 2] = ["ble", "mesh"];

/// The rank of a transport without a configured priority.
const UNRANKED: usize = 1000;

#[cfg(test)]
mod tests;
