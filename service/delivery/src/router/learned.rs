//! What the transports did before: for each target and for anybody.

use std::collections::{BTreeSet, HashMap};

use fieldpost_envelope::GatewayId;

use crate::{Breaker, BreakerState, Measured, Outcome, Time};

/// What is remembered of the transports, in memory alone: after a restart everything is tried anew.
///
/// It holds at most [`MOST`](Self::MOST) records and as many names of gateways heard; beyond, the
/// half that was used longest ago is forgotten.
#[derive(Debug, Default)]
pub struct Learned {
    /// By transport and target.
    records: HashMap<String, HashMap<String, Record>>,
    count: usize,
    /// By which transport each gateway was heard last, and at which use.
    heard_by: HashMap<GatewayId, (String, u64)>,
    uses: u64,
    returned: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
struct Record {
    measured: Measured,
    breaker: Breaker,
    last_use: u64,
}

impl Learned {
    /// The most records, and the most gateways heard.
    pub const MOST: usize = 8192;

    /// What a transport did for `target`, or for anybody where nothing is known of this one.
    pub fn measured(&self, now: Time, transport: &str, target: &str) -> Measured {
        let found = |target: &str| {
            let record = self.records.get(transport)?.get(target)?;
            record.measured.success(now).map(|_| record.measured)
        };
        found(target).or_else(|| found(ANYBODY)).unwrap_or_default()
    }

    /// What a transport did lately, for anybody.
    pub fn overall(&self, now: Time, transport: &str) -> Measured {
        self.measured(now, transport, ANYBODY)
    }

    /// Whether a transport is rested, towards `target`.
    pub fn breaker(&self, now: Time, transport: &str, target: &str) -> BreakerState {
        let record = self.records.get(transport).and_then(|targets| targets.get(target));
        record.map_or(BreakerState::Closed, |record| record.breaker.state(now))
    }

    /// By which transport `gateway` was heard last.
    pub fn heard_by(&self, gateway: GatewayId) -> Option<&str> {
        self.heard_by.get(&gateway).map(|(transport, _)| transport.as_str())
    }

    /// A transport is about to be used; on probation this is the trial.
    pub fn using(&mut self, now: Time, transport: &str, target: &str) {
        self.record(transport, target).breaker.try_use(now);
    }

    /// Remembers how a transport did.
    pub fn learn(&mut self, now: Time, transport: &str, target: &str, outcome: Outcome) {
        self.record(transport, ANYBODY).measured.add(now, outcome);
        let record = self.record(transport, target);
        record.measured.add(now, outcome);
        self.watch(now, transport, target, |breaker| match outcome {
            Outcome::Arrived(_) => breaker.succeeded(now),
            Outcome::TookCharge => breaker.took_charge(),
            Outcome::Failed => breaker.failed(now),
            Outcome::Silent(waited) => breaker.silent(now, waited),
        });
    }

    /// Something that `gateway` had signed came over `transport`.
    pub fn heard(&mut self, now: Time, transport: &str, gateway: GatewayId) {
        self.uses += 1;
        if self.heard_by.len() >= Self::MOST && !self.heard_by.contains_key(&gateway) {
            let middle = middle(self.heard_by.values().map(|(_, last_use)| *last_use));
            self.heard_by.retain(|_, (_, last_use)| *last_use > middle);
        }
        let last_use = self.uses;
        match self.heard_by.get_mut(&gateway) {
            Some((known, used)) if known == transport => *used = last_use,
            _ => drop(self.heard_by.insert(gateway, (transport.to_owned(), last_use))),
        }
        self.watch(now, transport, &gateway.to_string(), |breaker| breaker.heard(now));
    }

    /// `target` has come into reach over `transport`: what failed before was on another link.
    pub fn reached(&mut self, now: Time, transport: &str, target: &str) {
        self.watch(now, transport, target, Breaker::returned);
    }

    /// Whether [`take_returned`](Self::take_returned) has any.
    pub fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// The targets to which a rested transport may be used again since the last call; what waits
    /// for them need not wait any longer.
    pub fn take_returned(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.returned)
    }

    /// Changes a breaker, and notes the target if that brings its transport back.
    fn watch(
        &mut self,
        now: Time,
        transport: &str,
        target: &str,
        change: impl FnOnce(&mut Breaker),
    ) {
        let targets = self.records.get_mut(transport);
        let Some(record) = targets.and_then(|targets| targets.get_mut(target)) else { return };
        let is_held_up = |breaker: &Breaker| {
            matches!(breaker.state(now), BreakerState::Rested { .. } | BreakerState::OnTrial { .. })
        };
        let was_held_up = is_held_up(&record.breaker);
        change(&mut record.breaker);
        if was_held_up && !is_held_up(&record.breaker) {
            self.returned.insert(target.to_owned());
        }
    }

    fn record(&mut self, transport: &str, target: &str) -> &mut Record {
        self.uses += 1;
        let is_known =
            self.records.get(transport).is_some_and(|targets| targets.contains_key(target));
        if !is_known {
            self.make_room();
            self.count += 1;
        }
        if !self.records.contains_key(transport) {
            self.records.insert(transport.to_owned(), HashMap::new());
        }
        let targets = self.records.entry(transport.to_owned()).or_default();
        let record = targets.entry(target.to_owned()).or_default();
        record.last_use = self.uses;
        record
    }

    fn make_room(&mut self) {
        if self.count < Self::MOST {
            return;
        }
        let middle =
            middle(self.records.values().flat_map(HashMap::values).map(|record| record.last_use));
        for targets in self.records.values_mut() {
            targets.retain(|_, record| record.last_use > middle);
        }
        self.count = self.records.values().map(HashMap::len).sum();
    }
}

/// What stands for all targets of a transport.
const ANYBODY: &str = "";

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
        let mut learned = Learned::default();
        learned.learn(at(0), "mesh", "there", Outcome::Failed);
        assert_eq!(learned.measured(at(1), "mesh", "elsewhere").success(at(1)), Some(0.0));
        learned.learn(at(1), "mesh", "elsewhere", Outcome::Arrived(Duration::from_millis(5)));
        assert_eq!(learned.measured(at(1), "mesh", "elsewhere").success(at(1)), Some(1.0));
        assert_eq!(learned.measured(at(1), "ble", "there").success(at(1)), None);
    }

    #[test]
    fn a_target_that_fails_is_rested_and_others_are_not() {
        let learned = rested();
        assert!(matches!(learned.breaker(at(1), "mesh", &there()), BreakerState::Rested { .. }));
        assert_eq!(learned.breaker(at(1), "mesh", "elsewhere"), BreakerState::Closed);
        assert_eq!(learned.breaker(at(1), "ble", &there()), BreakerState::Closed);
    }

    #[test]
    fn whoever_comes_back_into_reach_is_rested_no_longer() {
        let mut learned = rested();
        learned.reached(at(1), "mesh", &there());
        assert_eq!(learned.breaker(at(1), "mesh", &there()), BreakerState::Closed);
        assert_eq!(learned.take_returned(), BTreeSet::from([there()]));
        assert_eq!(learned.take_returned(), BTreeSet::new());
    }

    #[test]
    fn whoever_is_heard_over_a_rested_transport_may_be_tried_over_it() {
        let mut learned = rested();
        learned.heard(at(1), "ble", gateway());
        assert_eq!(learned.take_returned(), BTreeSet::new());
        learned.heard(at(1), "mesh", gateway());
        assert_eq!(learned.breaker(at(1), "mesh", &there()), BreakerState::OnProbation);
        assert_eq!(learned.take_returned(), BTreeSet::from([there()]));
        assert_eq!(learned.heard_by(gateway()), Some("mesh"));
    }

    #[test]
    fn a_trial_that_succeeds_frees_those_that_wait_for_it() {
        let mut learned = rested();
        learned.using(at(5), "mesh", &there());
        learned.learn(at(5), "mesh", &there(), Outcome::TookCharge);
        assert_eq!(learned.breaker(at(5), "mesh", &there()), BreakerState::Closed);
        assert_eq!(learned.take_returned(), BTreeSet::from([there()]));
    }

    #[test]
    fn memory_is_bounded_and_the_recent_stays() {
        let mut learned = Learned::default();
        for number in 0..2 * Learned::MOST {
            learned.using(at(0), ["mesh", "ble"][number % 2], &number.to_string());
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            learned.heard(at(0), "mesh", GatewayId::from_bytes(bytes));
        }
        learned.learn(at(0), "mesh", "last", Outcome::Failed);
        let held: usize = learned.records.values().map(HashMap::len).sum();
        assert!(held <= Learned::MOST && held == learned.count, "{held}, {}", learned.count);
        assert!(learned.heard_by.len() <= Learned::MOST);
        assert!(learned.measured(at(0), "mesh", "last").success(at(0)).is_some());
    }

    /// It has failed towards `there`, and no further.
    fn rested() -> Learned {
        let mut learned = Learned::default();
        for _ in 0..Breaker::FAILURES {
            learned.learn(at(0), "mesh", &there(), Outcome::Failed);
        }
        learned
    }

    fn gateway() -> GatewayId {
        GatewayId::from_bytes([7; 32])
    }

    fn there() -> String {
        gateway().to_string()
    }

    fn at(seconds: i64) -> Time {
        Time::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds)
    }
}
