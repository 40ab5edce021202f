//! What is accepted for a target in reach need not be looked for: the transaction that accepts it claims
//! it as well, and hands it to the outbox. That saves a claim and opening the message again.
//!
//! So it is while a target is open: when the outbox last looked nothing else was due for it, and there is
//! room for more. What is handed over counts as under way before it is claimed, and only what fits is, so
//! the bounds hold.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fieldpost_delivery::{Claim, Submission, Time};
use tokio::sync::Notify;

use super::{MAX_BYTES_FOR_TARGET, MAX_BYTES_UNDER_WAY, MAX_FOR_TARGET, MAX_UNDER_WAY};
use crate::store::{CLAIM_BYTES, Doubted};

/// The most messages of which it is not known whether they were claimed; what else there is waits for
/// its claim's end.
const MAX_DOUBTED: usize = 8192;

/// What is under way to each target, and which of them are open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Openings {
    shared: Arc<Shared>,
    /// How long what is accepted is claimed.
    lease: Duration,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    handed: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: HashSet<String>,
    /// For which something was left out since the outbox began to look.
    left_out: HashSet<String>,
    by_target: HashMap<String, Burden>,
    all: Burden,
    handed: Vec<Claim>,
    doubted: Vec<Doubted>,
}

/// How much is under way.
#[derive(Clone, Copy, Debug, Default)]
struct Burden {
    deliveries: usize,
    bytes: usize,
}

impl Burden {
    fn is_full(self) -> bool {
        self.deliveries >= MAX_FOR_TARGET || self.bytes >= MAX_BYTES_FOR_TARGET
    }

    fn is_halved(self) -> bool {
        self.deliveries <= MAX_FOR_TARGET / 2 && self.bytes <= MAX_BYTES_FOR_TARGET / 2
    }

    fn fits(self, other: Self, deliveries: usize, bytes: usize) -> bool {
        self.deliveries + other.deliveries <= deliveries && self.bytes + other.bytes <= bytes
    }

    fn add(&mut self, other: Self) {
        self.deliveries += other.deliveries;
        self.bytes += other.bytes;
    }

    fn take_off(&mut self, other: Self) {
        self.deliveries = self.deliveries.saturating_sub(other.deliveries);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

/// Room that was taken up for what is being accepted.
#[derive(Debug, Default)]
pub struct Reserved(BTreeMap<String, Burden>);

impl Reserved {
    /// The targets for which deliveries may be claimed.
    pub fn targets(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

impl Openings {
    /// Nothing is open.
    pub fn new(lease: Duration) -> Self {
        Self { shared: Arc::default(), lease }
    }

    /// How long what is accepted is to be claimed.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// Takes up room for what of these may leave at once.
    pub fn reserve(&self, submissions: &[Submission]) -> Reserved {
        let mut state = self.state();
        if state.open.is_empty() {
            return Reserved::default();
        }
        let mut wanted: BTreeMap<String, Burden> = BTreeMap::new();
        for submission in submissions {
            let bytes = submission.message.content.bytes.len();
            for target in submission.deliveries.iter().filter_map(|one| one.reached_through()) {
                if state.open.contains(&target) {
                    wanted.entry(target).or_default().add(Burden { deliveries: 1, bytes });
                }
            }
        }
        let mut all = Burden::default();
        wanted.retain(|target, burden| {
            let known = state.by_target.get(target).copied().unwrap_or_default();
            let fits = known.fits(*burden, MAX_FOR_TARGET, MAX_BYTES_FOR_TARGET)
                && state.all.fits(*burden, MAX_UNDER_WAY, MAX_BYTES_UNDER_WAY)
                && all.fits(*burden, MAX_UNDER_WAY, CLAIM_BYTES);
            if fits {
                all.add(*burden);
                state.add(target, *burden);
            } else {
                // It is due from now on, and later ones shall not overtake it.
                state.open.remove(target);
                state.left_out.insert(target.clone());
            }
            fits
        });
        Reserved(wanted)
    }

    /// Hands over what was claimed; what else was reserved is free again.
    pub fn hand(&self, reserved: Reserved, claims: Vec<Claim>) {
        if reserved.0.is_empty() {
            return;
        }
        let mut left = reserved.0;
        for claim in &claims {
            let burden = left.entry(claim.target.reached_through().unwrap_or_default());
            burden.or_default().take_off(Burden { deliveries: 1, bytes: bytes(claim) });
        }
        let mut state = self.state();
        for (target, burden) in left {
            state.take_off(&target, burden);
        }
        if !claims.is_empty() {
            state.handed.extend(claims);
            self.shared.handed.notify_one();
        }
    }

    /// Frees what was reserved: nothing was accepted.
    pub fn free(&self, reserved: Reserved) {
        let mut state = self.state();
        for (target, burden) in reserved.0 {
            state.take_off(&target, burden);
        }
    }

    /// As [`free`](Self::free), where it is not known until `until` whether these were accepted, with
    /// claims that end at `claimed_until`.
    pub fn doubt(
        &self,
        reserved: Reserved,
        submissions: &[Submission],
        claimed_until: Time,
        until: Instant,
    ) {
        if reserved.0.is_empty() {
            return;
        }
        self.free(reserved);
        let mut state = self.state();
        let room = MAX_DOUBTED.saturating_sub(state.doubted.len());
        let doubted = submissions.iter().map(|one| Doubted {
            sender: one.message.sender.clone(),
            id: one.message.id,
            claimed_until,
            until,
        });
        state.doubted.extend(doubted.take(room));
    }

    /// The outbox begins to look for what is due.
    pub(super) fn look(&self) {
        self.state().left_out.clear();
    }

    /// For these targets nothing more was due when the outbox looked.
    pub(super) fn open(&self, targets: impl IntoIterator<Item = String>) {
        let mut state = self.state();
        let is_open = |target: &String| !state.left_out.contains(target);
        state.open = targets.into_iter().filter(is_open).collect();
    }

    /// What is accepted waits for the next look.
    pub(super) fn close(&self) {
        self.state().open.clear();
    }

    /// Waits until something was handed over.
    pub(super) async fn handed(&self) {
        self.shared.handed.notified().await;
    }

    /// What was handed over since the last call; it is counted already.
    pub(super) fn take_handed(&self) -> Vec<Claim> {
        mem::take(&mut self.state().handed)
    }

    /// What is doubted.
    pub(super) fn doubted(&self) -> Vec<Doubted> {
        self.state().doubted.clone()
    }

    /// The store was asked `since` of what is doubted: those whose commit could not come any more are
    /// settled.
    pub(super) fn settle(&self, since: Instant) {
        self.state().doubted.retain(|one| one.until > since);
    }

    /// Whether anything is.
    pub(super) fn has_doubts(&self) -> bool {
        !self.state().doubted.is_empty()
    }

    /// How many deliveries are under way.
    pub(super) fn under_way(&self) -> usize {
        self.state().all.deliveries
    }

    /// Whether there is room for anything at all.
    pub(super) fn has_room(&self) -> bool {
        self.state().has_room()
    }

    /// Whether as much is under way to a target as may be.
    pub(super) fn is_full(&self, target: &str) -> bool {
        self.state().by_target.get(target).is_some_and(|burden| burden.is_full())
    }

    /// One more is under way.
    pub(super) fn begin(&self, target: &str, bytes: usize) {
        self.state().add(target, Burden { deliveries: 1, bytes });
    }

    /// One is no more; returns whether its target has room for many again.
    pub(super) fn end(&self, target: &str, bytes: usize) -> bool {
        self.state().take_off(target, Burden { deliveries: 1, bytes })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.all.deliveries < MAX_UNDER_WAY && self.all.bytes < MAX_BYTES_UNDER_WAY
    }

    fn add(&mut self, target: &str, burden: Burden) {
        self.all.add(burden);
        match self.by_target.get_mut(target) {
            Some(known) => known.add(burden),
            None => drop(self.by_target.insert(target.to_owned(), burden)),
        }
    }

    fn take_off(&mut self, target: &str, burden: Burden) -> bool {
        self.all.take_off(burden);
        let Some(known) = self.by_target.get_mut(target) else { return false };
        known.take_off(burden);
        let is_halved = known.is_halved();
        if known.deliveries == 0 {
            self.by_target.remove(target);
        }
        is_halved
    }
}

fn bytes(claim: &Claim) -> usize {
    claim.message.content.bytes.len()
}

#[cfg(test)]
mod tests {
    use fieldpost_delivery::{Content, Message, Target, Time, Wishes};
    use fieldpost_envelope::{AnonymityLevel, GatewayId, MessageId, PeerAddress, Priority};
    use uuid::Uuid;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn what_is_accepted_for_an_open_target_is_handed_over() {
        let openings = Openings::new(Duration::from_secs(30));
        assert!(openings.reserve(&[to(1)]).targets().is_empty(), "nothing is open at first");
        openings.open([name(1)]);
        let reserved = openings.reserve(&[to(1), to(1), to(2)]);
        assert_eq!(reserved.targets(), [name(1)]);
        assert_eq!(openings.under_way(), 2);
        // One of them had been accepted before.
        openings.hand(reserved, vec![claim(&to(1))]);
        assert_eq!((openings.take_handed().len(), openings.under_way()), (1, 1));
        openings.end(&name(1), 1);
        assert_eq!(openings.under_way(), 0);
    }

    #[test]
    fn nothing_overtakes_what_found_no_room() {
        let openings = Openings::new(Duration::from_secs(30));
        openings.open([name(1), name(2)]);
        for _ in 0..MAX_FOR_TARGET {
            openings.begin(&name(1), 1);
        }
        assert_eq!(openings.reserve(&[to(1), to(2)]).targets(), [name(2)]);
        openings.end(&name(1), 1);
        assert!(openings.reserve(&[to(1)]).targets().is_empty(), "until the outbox has looked");
        openings.look();
        openings.open([name(1)]);
        assert_eq!(openings.reserve(&[to(1)]).targets(), [name(1)]);
    }

    #[test]
    fn what_was_left_out_during_a_look_is_not_overtaken() {
        let openings = Openings::new(Duration::from_secs(30));
        openings.open([name(1)]);
        openings.look();
        for _ in 0..MAX_FOR_TARGET {
            openings.begin(&name(1), 1);
        }
        openings.reserve(&[to(1)]);
        openings.open([name(1)]);
        openings.end(&name(1), 1);
        assert!(openings.reserve(&[to(1)]).targets().is_empty());
    }

    #[test]
    fn one_message_to_many_is_claimed_as_far_as_it_fits() {
        let openings = Openings::new(Duration::from_secs(30));
        openings.open([name(1), name(2)]);
        let mut submission = to(1);
        submission.deliveries = vec![submission.deliveries[0].clone(); MAX_FOR_TARGET + 1];
        assert_eq!(openings.reserve(&[submission, to(2)]).targets(), [name(2)]);
        let mut submission = to(1);
        submission.deliveries = vec![submission.deliveries[0].clone(); 3];
        submission.message.content.bytes = vec![0; CLAIM_BYTES / 2];
        openings.open([name(1), name(2)]);
        assert!(openings.reserve(&[submission]).targets().is_empty());
    }

    #[test]
    fn what_may_have_been_accepted_is_asked_for_until_its_commit_cannot_come() {
        let openings = Openings::new(Duration::from_secs(30));
        openings.open([name(1)]);
        let submission = to(1);
        let reserved = openings.reserve(std::slice::from_ref(&submission));
        let now = Clock::default().instant();
        let until = now + Duration::from_secs(1);
        openings.doubt(reserved, std::slice::from_ref(&submission), Time::UNIX_EPOCH, until);
        assert_eq!(openings.under_way(), 0, "it holds no room");
        openings.settle(now);
        assert_eq!(openings.doubted().len(), 1);
        openings.settle(until);
        assert!(!openings.has_doubts());
    }

    fn gateway(number: u8) -> GatewayId {
        GatewayId::from_bytes([number; 32])
    }

    fn name(number: u8) -> String {
        gateway(number).to_string()
    }

    fn to(number: u8) -> Submission {
        let recipient = PeerAddress::remote("bob".parse().unwrap(), gateway(number));
        let message = Message {
            id: MessageId(Uuid::from_u128(number.into())),
            sender: PeerAddress::local("alice".parse().unwrap()),
            to: recipient.clone().into(),
            content: Content { bytes: vec![1], ..Content::default() },
            expires_at: Time::UNIX_EPOCH,
            priority: Priority::Normal,
            min_anonymity: AnonymityLevel::NONE,
            wishes: Wishes::default(),
        };
        Submission {
            message,
            fingerprint: [number; 32],
            deliveries: vec![Target::Remote(recipient)],
            failures: Vec::new(),
        }
    }

    fn claim(submission: &Submission) -> Claim {
        Claim {
            message: submission.message.clone(),
            accepted_at: Time::UNIX_EPOCH,
            target: submission.deliveries[0].clone(),
            attempt: 1,
            lane_seq: None,
            after: None,
            claimed_until: Time::UNIX_EPOCH,
        }
    }
}
