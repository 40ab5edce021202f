//! What the log is told of links and bootstraps: what has changed, once, and never as often as
//! strangers please.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use fieldpost_envelope::GatewayId;
use fieldpost_peering::NodeId;
use tokio::time::Instant;
use tracing::{info, warn};

/// Something to tell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Notice {
    /// A bootstrap leads nowhere.
    Silent {
        /// As it was given.
        address: String,
        /// What came of the last attempt.
        reason: String,
    },
    /// One that led nowhere leads somewhere.
    Answers { address: String },
    /// The first link to a gateway.
    Linked(GatewayId),
    /// The last link to it has ended.
    Lost(GatewayId),
    /// So many of the last two kinds were not told.
    Untold(u32),
}

impl Notice {
    pub(super) fn tell(&self) {
        match self {
            Self::Silent { address, reason } => warn!(
                mesh.address = %address,
                mesh.reason = %reason,
                "a bootstrap leads nowhere; it is tried on and on. See that the gateway there runs, \
                 that its UDP port is open from here, and that the address is the one it prints as \
                 mesh.address at its start. Its node key is another after `keys rotate`, and it may be \
                 when it began anew: on another database, machine or --listen"
            ),
            Self::Answers { address } => {
                info!(mesh.address = %address, "a bootstrap that led nowhere answers");
            }
            Self::Linked(gateway) => info!(gateway.id = %gateway, "a gateway is linked"),
            Self::Lost(gateway) => {
                info!(gateway.id = %gateway, "the last link to a gateway has ended");
            }
            Self::Untold(count) => {
                info!(
                    mesh.changes = count,
                    "more links came and went than are told of in a minute"
                );
            }
        }
    }
}

/// What was told before.
#[derive(Debug, Default)]
pub(super) struct Notices {
    bootstraps: HashMap<NodeId, Bootstrapping>,
    linked: BTreeSet<GatewayId>,
    since: Option<Instant>,
    told: u32,
    untold: u32,
}

/// How a node that is kept by its address stands.
#[derive(Debug, Default)]
struct Bootstrapping {
    places: Vec<String>,
    failures: u32,
}

impl Notices {
    pub(super) fn watch(&mut self, node: NodeId, address: String) {
        self.bootstraps.entry(node).or_default().places.push(address);
    }

    /// An attempt to dial a node, or the link that came of it, has failed.
    pub(super) fn fail(&mut self, node: NodeId, reason: &str) -> Option<Notice> {
        let bootstrap = self.bootstraps.get_mut(&node)?;
        bootstrap.failures = bootstrap.failures.saturating_add(1);
        (bootstrap.failures == FAILURES).then(|| Notice::Silent {
            address: bootstrap.places.join(", "),
            reason: reason.to_owned(),
        })
    }

    /// A node has answered, be it that it is a replica of this gateway.
    pub(super) fn answer(&mut self, node: NodeId) -> Option<Notice> {
        let bootstrap = self.bootstraps.get_mut(&node)?;
        let was_silent = std::mem::take(&mut bootstrap.failures) >= FAILURES;
        was_silent.then(|| Notice::Answers { address: bootstrap.places.join(", ") })
    }

    /// These gateways are linked now.
    pub(super) fn reach(&mut self, now: Instant, linked: BTreeSet<GatewayId>) -> Vec<Notice> {
        let mut notices = Vec::new();
        if self.since.is_none_or(|since| now >= since + WINDOW) {
            self.since = Some(now);
            self.told = 0;
            let untold = std::mem::take(&mut self.untold);
            notices.extend((untold > 0).then_some(Notice::Untold(untold)));
        }
        let lost = self.linked.difference(&linked).copied().map(Notice::Lost);
        let new = linked.difference(&self.linked).copied().map(Notice::Linked);
        for notice in lost.chain(new) {
            if self.told < IN_A_WINDOW {
                self.told += 1;
                notices.push(notice);
            } else {
                self.untold += 1;
            }
        }
        self.linked = linked;
        notices
    }
}

/// So many failures in a row are no accident: two gateways that are started together miss each other
/// once.
const FAILURES: u32 = 2;
const WINDOW: Duration = Duration::from_secs(60);
const IN_A_WINDOW: u32 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bootstrap_is_told_of_once_each_time_it_ceases_or_begins_to_answer() {
        let (node, stranger) = (NodeId([1; 32]), NodeId([2; 32]));
        let mut notices = Notices::default();
        notices.watch(node, "post.example:4000".into());
        assert_eq!(notices.answer(node), None);
        for _ in 0..2 {
            assert_eq!(notices.fail(node, "no answer"), None);
            let (address, reason) = ("post.example:4000".into(), "no answer".into());
            assert_eq!(notices.fail(node, "no answer"), Some(Notice::Silent { address, reason }));
            for _ in 0..10 {
                assert_eq!(notices.fail(node, "no answer"), None);
                assert_eq!(notices.fail(stranger, "no answer"), None);
            }
            let address = "post.example:4000".into();
            assert_eq!(notices.answer(node), Some(Notice::Answers { address }));
            assert_eq!(notices.answer(node), None);
        }
    }

    #[test]
    fn links_that_come_and_go_all_the_time_are_counted_rather_than_told() {
        let gateway = GatewayId::from_bytes([1; 32]);
        let start = Instant::now();
        let mut notices = Notices::default();
        let mut told = Vec::new();
        for round in 0..100 {
            let linked = if round % 2 == 0 { [gateway].into() } else { BTreeSet::new() };
            told.extend(notices.reach(start, linked));
        }
        assert_eq!(told.len(), 30);
        assert_eq!(told[..2], [Notice::Linked(gateway), Notice::Lost(gateway)]);
        let later = notices.reach(start + Duration::from_secs(60), [gateway].into());
        assert_eq!(later, [Notice::Untold(70), Notice::Linked(gateway)]);
        assert_eq!(notices.reach(start + Duration::from_secs(60), [gateway].into()), []);
    }
}
