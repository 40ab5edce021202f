//! What came of a claim is recorded, in time, late or twice; recipients come into reach.

use chrono::TimeDelta;
use fieldpost_envelope::MessageStatus;
use rand::RngExt;

use super::{Owed, is_claim_of, reachable_names};
use crate::{
    Attempt, AttemptResult, Claim, Next, Store, Target, Time,
    suite::{CONTRACT, LOST, Run, Violation, ensure},
};

impl<S: Store> Run<'_, S> {
    pub(in crate::suite) async fn record(&mut self) -> Result<(), Violation> {
        if self.claims.is_empty() {
            return Ok(());
        }
        let oldest = self.claims.len().saturating_sub(12);
        let claim = self.claims[self.rng.random_range(oldest..self.claims.len())].clone();
        let is_broadcast = matches!(claim.target, Target::Broadcast(_));
        let next = match self.rng.random_range(0..100) {
            0..55 if is_broadcast => Next::End { status: MessageStatus::Sent, reason: None },
            0..55 => Next::Sent { envelope: self.rng.random(), retry_at: self.soon() },
            55..75 => Next::Retry { at: self.soon() },
            75..85 => Next::Wait { reason: "not in reach".into(), until: None },
            85..95 => Next::Wait { reason: "it rests".into(), until: Some(self.soon()) },
            _ => {
                let reason = Some("nothing can ever carry it".into());
                Next::End { status: MessageStatus::Failed, reason }
            }
        };
        let attempts = match &next {
            Next::Sent { .. } => vec![self.an_attempt(AttemptResult::Sent)],
            Next::Wait { .. } => Vec::new(),
            _ => (0..self.rng.random_range(0..3))
                .map(|_| self.an_attempt(AttemptResult::Failed))
                .collect(),
        };
        self.record_this(&claim, &attempts, &next).await
    }

    fn soon(&mut self) -> Time {
        self.now + TimeDelta::milliseconds(self.rng.random_range(100..20_000))
    }

    fn an_attempt(&mut self, result: AttemptResult) -> Attempt {
        let transport = ["htx", "ble", "mesh"][self.rng.random_range(0..3)].into();
        let earlier = self.rng.random_range(0..1_000_000);
        let started_at = self.now - TimeDelta::microseconds(earlier);
        let reason = (result == AttemptResult::Failed).then(|| "link lost".into());
        Attempt { transport, started_at, result, reason, hops: self.chance(20).then_some(3) }
    }

    pub(in crate::suite) async fn record_this(
        &mut self,
        claim: &Claim,
        attempts: &[Attempt],
        next: &Next,
    ) -> Result<(), Violation> {
        self.note("record", || format!("{} {:?} {next:?}", claim.message.id, claim.target));
        let settled =
            self.store.record(self.now, claim, attempts, next).await.map_err(self.broken())?;
        let Some(index) = self.owed.iter().position(|owed| is_claim_of(claim, owed)) else {
            return Err(self.violation(CONTRACT, "a claim of the suite's own is unknown".into()));
        };
        let (now, id) = (self.now, claim.message.id);
        let owed = &mut self.owed[index];
        for attempt in attempts {
            let name = (attempt.started_at, attempt.transport.clone());
            owed.attempts.insert(name, attempt.clone());
        }
        match next {
            Next::Sent { envelope, .. } => owed.envelopes.push(*envelope),
            Next::Retry { .. } | Next::Wait { .. } => {
                owed.open_claims.remove(&claim.attempt);
            }
            Next::End { .. } => {}
        }
        let mut ends = None;
        if !owed.ended && !owed.stored {
            let is_newest = claim.attempt == owed.claims;
            match next {
                Next::Sent { retry_at, .. } => {
                    owed.or_status = None;
                    owed.status = MessageStatus::Sent;
                    owed.reschedule(is_newest, *retry_at);
                }
                Next::Retry { at } | Next::Wait { until: Some(at), .. } => {
                    owed.is_pending_again(is_newest);
                    owed.reschedule(is_newest, *at);
                }
                Next::Wait { until: None, .. } => {
                    owed.is_pending_again(is_newest);
                    owed.due = None;
                    if is_newest {
                        owed.may_be_due = None;
                    }
                }
                Next::End { status, .. } => {
                    ends = Some(*status);
                    owed.end(*status);
                }
            }
        }
        let status = owed.status;
        let fits = match (&settled, ends) {
            (Some(one), Some(ends)) => one.status == ends && one.id == id,
            (None, Some(_)) => false,
            (Some(one), None) => one.id == id && self.owed[index].may_say(one.status, now),
            (None, None) => true,
        };
        ensure!(self, fits, CONTRACT, "recorded for {id} ({status}): {settled:?}");
        if self.chance(10) {
            let again =
                self.store.record(self.now, claim, attempts, next).await.map_err(self.broken())?;
            let is_quiet = again.is_none_or(|one| self.owed[index].may_say(one.status, now));
            ensure!(self, is_quiet, CONTRACT, "recording again changed {id}");
        }
        Ok(())
    }

    pub(in crate::suite) async fn reached(&mut self) -> Result<(), Violation> {
        let names: Vec<_> = reachable_names().into_iter().filter(|_| self.chance(40)).collect();
        self.reached_now(&names).await
    }

    pub(in crate::suite) async fn reached_now(
        &mut self,
        names: &[String],
    ) -> Result<(), Violation> {
        self.note("reached", || format!("{} names", names.len()));
        let woken = self.store.reached(self.now, names).await.map_err(self.broken())?;
        let (mut least, mut most) = (0, 0);
        for owed in self.owed.iter_mut().filter(|owed| !owed.ended && !owed.stored) {
            let in_reach = owed.target.reached_through().is_some_and(|name| names.contains(&name));
            if !in_reach {
                continue;
            }
            most += 1;
            // What an overtaken claim gave up may be waiting, or due when the newer claim ends.
            if owed.due.is_none() && owed.may_be_due.is_none() {
                least += 1;
                owed.due = Some(self.now);
            }
            // Those that back off may be tried sooner.
            if !owed.open_claims.contains(&owed.claims)
                || owed.due.is_none_or(|due| due <= self.now)
            {
                owed.may_be_due = Some(owed.may_be_due.map_or(self.now, |due| due.min(self.now)));
            }
        }
        let fits = (least..=most).contains(&woken);
        ensure!(self, fits, LOST, "{woken} became due, at least {least} were waiting");
        Ok(())
    }
}

impl Owed {
    fn is_pending_again(&mut self, is_newest: bool) {
        if is_newest {
            (self.status, self.or_status) = (MessageStatus::Pending, None);
        } else if self.status == MessageStatus::Sent {
            self.or_status = Some(MessageStatus::Pending);
        }
    }

    /// Of an overtaken claim the store may take the time or not, as long as it is tried.
    fn reschedule(&mut self, is_newest: bool, at: Time) {
        if is_newest {
            (self.due, self.may_be_due) = (Some(at), Some(at));
        } else {
            self.due = self.due.map(|due| due.max(at));
            self.may_be_due = Some(self.may_be_due.map_or(at, |due| due.min(at)));
        }
    }
}
