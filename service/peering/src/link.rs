use std::time::{Duration, Instant};

use fieldpost_envelope::{GatewayId, Timestamp};

use crate::{flow::Flow, table::NodeId};

/// One live connection to one neighbour, named by whoever drives the core.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LinkId(pub u64);

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) node: NodeId,
    /// Whether this side dialled.
    pub(crate) is_dialled: bool,
    pub(crate) since: Instant,
    /// When anything was last heard from the other side.
    heard: Instant,
    pinged: Option<Instant>,
    /// Pings sent since anything was heard.
    unanswered: u32,
    /// Who is there, once the hello was believed.
    pub(crate) open: Option<Open>,
}

/// What a link is once its hello was believed.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) gateway: GatewayId,
    /// Since when another link to the node is used instead, if so.
    pub(crate) retired: Option<Instant>,
    /// Until when the neighbour's certificate holds.
    pub(crate) not_after: Timestamp,
    pub(crate) flow: Flow,
    /// When an envelope last crossed.
    pub(crate) used: Instant,
    /// The newest of our rosters that the neighbour has or was sent; none until it asked.
    pub(crate) told: Option<u64>,
    /// When it was last sent rosters because it asked.
    pub(crate) told_at: Option<Instant>,
    /// What it asked for too soon after the last time.
    pub(crate) asks: Option<u64>,
    /// When it was last asked for rosters.
    pub(crate) asked_at: Instant,
    /// Whether it is to be asked again, since one was missed.
    pub(crate) misses: bool,
}

impl Open {
    /// When a link that is not used any more ends: soon once all on it was answered, and not before
    /// the other side has surely opened the one that is used instead.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        let grace = if self.flow.is_empty() { RETIREMENT } else { LONGEST_RETIREMENT };
        self.retired.map(|since| since + grace)
    }
}

impl Link {
    pub(crate) fn new(node: NodeId, is_dialled: bool, now: Instant) -> Self {
        Self { node, is_dialled, since: now, heard: now, pinged: None, unanswered: 0, open: None }
    }

    pub(crate) fn hear(&mut self, now: Instant) {
        self.heard = now;
        self.unanswered = 0;
    }

    pub(crate) fn ping(&mut self, now: Instant) {
        self.pinged = Some(now);
        self.unanswered += 1;
    }

    /// When the next ping is due, if nothing is heard.
    pub(crate) fn ping_at(&self) -> Instant {
        self.pinged.map_or(self.heard, |pinged| pinged.max(self.heard)) + PING_INTERVAL
    }

    /// Whether nothing was heard for so long that the link must be taken for dead.
    ///
    /// A process that was itself asleep has not asked yet, so silence counts only after pings.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        self.unanswered >= 2 && now >= self.heard + SILENCE
    }

    /// Whether a ping has not been answered in the time that a living neighbour needs.
    pub(crate) fn is_doubtful(&self, now: Instant) -> bool {
        self.unanswered >= 1 && now >= self.heard + PING_INTERVAL + PING_INTERVAL / 4
    }
}

const RETIREMENT: Duration = Duration::from_millis(700);
const LONGEST_RETIREMENT: Duration = Duration::from_secs(30);
const PING_INTERVAL: Duration = Duration::from_millis(800);
const SILENCE: Duration = Duration::from_millis(2400);
