//! What to do next with one claimed delivery (design, section 8).
//!
//! The outbox claims a delivery, asks the router for a plan and makes a [`Dispatch`] of both. It
//! feeds that with what happens, does what it says, and calls it again at its next deadline:
//!
//! ```text
//! claim, plan ─► Dispatch ─► Send ─► transport ─► TookCharge or HardFailure ─┐
//!                   ▲        Record ─► store                                 │
//!                   └──────── Receipt, Wake ◄────────────────────────────────┘
//! ```
//!
//! * A hard failure moves on to the next place at once, silence after the failover time-out. With
//!   [`Rules::failover`] off only the first place is tried.
//! * A plan to be carried out at once uses all its places at the start.
//! * A transport that comes from a rest is tried out beside the first of the others.
//! * When the target comes into reach anew, what is under way over the lost link is planned again.
//! * When nothing is left the delivery is tried again after a back-off, or waits for reach.
//! * A broadcast over a transport ends as `sent` as soon as it may have left. It is never repeated;
//!   only a hard failure, after which nothing has left, is followed by another attempt.
//! * Nothing is begun that could not end before the claim does, or after the message has expired.
//!
//! What an attempt came to is recorded as soon as something follows from it. A crash in between
//! costs a repetition, which recipients recognise, never a message.

use std::{mem, time::Duration};

use fieldpost_envelope::{MessageStatus, ReceiptKind};
use rand::Rng;

use crate::{
    Attempt, AttemptResult, Backoff, Claim, Next, Outcome, Place, Plan, Target, Time, Verdict,
    retry::later,
};

/// How the dispatcher behaves, from the configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Whether another transport is tried when one fails (`--failover`).
    pub failover: bool,
    /// After how long silence counts as failure (`--failover-timeout`).
    pub failover_timeout: Duration,
    /// How long to wait when every place has failed.
    pub backoff: Backoff,
}

impl Rules {
    /// How long a delivery should be claimed: long enough for [`PLACES`](Self::PLACES) silent
    /// transports one after the other.
    pub fn lease(&self) -> Duration {
        self.failover_timeout.saturating_mul(Self::PLACES) + Self::MARGIN
    }

    /// How many places one claim lasts for; the rest of a longer plan is left to the next claim.
    pub const PLACES: u32 = 4;

    /// By how much a claim outlasts the last deadline under it, so that a dispatcher that is a
    /// little late is not overtaken by another.
    pub const MARGIN: Duration = Duration::from_secs(5);
}

impl Default for Rules {
    /// The defaults of design section 3.
    fn default() -> Self {
        Self {
            failover: true,
            failover_timeout: Duration::from_secs(10),
            backoff: Backoff::DELIVERY,
        }
    }
}

/// What happens to a dispatch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// The first event, once.
    Begin,
    /// A transport took charge of the envelope.
    TookCharge {
        /// Which transport.
        transport: String,
        /// SHA-256 of the envelope, by which a receipt names it.
        envelope: [u8; 32],
    },
    /// A transport did not take charge of it; nothing has left.
    HardFailure {
        /// Which transport.
        transport: String,
        /// What it said.
        reason: String,
    },
    /// A receipt for this delivery was settled in the store.
    Receipt(ReceiptKind),
    /// The target has come into reach over a transport, where it was not before.
    Returned {
        /// Which transport.
        transport: String,
    },
    /// A deadline may be over.
    Wake,
}

/// What to do about it, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send it over this transport, and report [`Event::TookCharge`] or [`Event::HardFailure`].
    Send(Place),
    /// Call [`Store::record`](crate::Store::record) with these.
    Record {
        /// What was tried since the last record.
        attempts: Vec<Attempt>,
        /// What follows.
        next: Next,
    },
    /// Remember how a transport did: in its [`Measured`](crate::Measured) and, where it failed or
    /// arrived, in its [`Breaker`](crate::Breaker).
    Learn {
        /// Which transport.
        transport: String,
        /// How it did.
        outcome: Outcome,
    },
}

/// One claimed delivery on its way.
#[derive(Debug)]
pub struct Dispatch {
    failover: bool,
    failover_timeout: Duration,
    retry_wait: Duration,
    expires_at: Time,
    /// Until when nobody else is offered the delivery, as the store knows it.
    ours_until: Time,
    is_broadcast: bool,
    verdict: Verdict,
    /// Use all places at the start.
    at_once: bool,
    /// What has not been tried, best first.
    places: std::vec::IntoIter<Place>,
    /// What is tried out beside the first of them.
    trials: Vec<Place>,
    under_way: Vec<UnderWay>,
    /// The envelope that a transport took charge of last.
    envelope: Option<[u8; 32]>,
    unrecorded: Vec<Attempt>,
    actions: Vec<Action>,
    has_ended: bool,
    /// It ended by a receipt.
    is_settled: bool,
}

/// An attempt of which more may be heard.
#[derive(Clone, Debug)]
struct UnderWay {
    attempt: Attempt,
    took_charge: bool,
    is_beside: bool,
    /// When silence counts as failure; `None` once it has.
    deadline: Option<Time>,
}

impl Dispatch {
    /// Sets out with a claim and the plan for it. `rng` gives the back-off its jitter.
    pub fn new(claim: &Claim, plan: Plan, rules: &Rules, rng: &mut impl Rng) -> Self {
        let is_broadcast = matches!(claim.target, Target::Broadcast(_));
        // Without failover one way alone is used, and a broadcast is heard over each only once.
        let has_trials = rules.failover && !plan.at_once && !is_broadcast;
        let has_others = plan.places.iter().any(|place| !place.is_trial);
        let (trials, places): (Vec<_>, Vec<_>) =
            plan.places.into_iter().partition(|place| has_trials && has_others && place.is_trial);
        Self {
            failover: rules.failover,
            failover_timeout: rules.failover_timeout,
            retry_wait: rules.backoff.wait(claim.attempt, rng),
            expires_at: claim.message.expires_at,
            ours_until: claim.claimed_until,
            is_broadcast,
            verdict: plan.verdict,
            at_once: plan.at_once,
            places: places.into_iter(),
            trials,
            under_way: Vec::new(),
            envelope: None,
            unrecorded: Vec::new(),
            actions: Vec::new(),
            has_ended: false,
            is_settled: false,
        }
    }

    /// Takes in one event and returns what to do about it.
    ///
    /// `now` must not go backwards from one call to the next. What is heard after the end is noted
    /// where it matters and changes nothing else.
    pub fn handle(&mut self, now: Time, event: Event) -> impl Iterator<Item = Action> {
        match event {
            Event::Begin => self.begin(now),
            Event::TookCharge { transport, envelope } => {
                self.took_charge(now, &transport, envelope);
            }
            Event::HardFailure { transport, reason } => self.failed(now, &transport, reason),
            Event::Receipt(kind) => self.receipt(now, kind),
            Event::Returned { transport } => self.returned(now, &transport),
            Event::Wake => {}
        }
        self.look_at_the_time(now);
        mem::take(&mut self.actions).into_iter()
    }

    /// When to call [`handle`](Self::handle) with [`Event::Wake`], unless something happens first.
    ///
    /// Never past the message's end of life; `None` once the dispatch has ended.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.has_ended {
            return None;
        }
        let silence = self.under_way.iter().filter_map(|attempt| attempt.deadline).min();
        Some(silence.map_or(self.expires_at, |silence| silence.min(self.expires_at)))
    }

    /// Whether nothing more will come of it and it can be dropped.
    ///
    /// A transport that has been asked may still answer; [`Event::TookCharge`] should be handed in
    /// even then, because a receipt may name that envelope.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn begin(&mut self, now: Time) {
        match mem::replace(&mut self.verdict, Verdict::Go) {
            Verdict::Go => {
                // The first place needs no room in the claim, or a short one would never set out.
                self.ours_until = self.ours_until.max(later(now, self.failover_timeout));
                while self.at_once && self.send_next(now) {}
                self.go_on(now);
                for place in mem::take(&mut self.trials) {
                    if !self.has_ended {
                        self.send(now, place, true);
                    }
                }
            }
            Verdict::Waits { reason, until } => {
                let until = until.map(|until| until.max(now).min(self.expires_at));
                self.end(Next::Wait { reason, until });
            }
            Verdict::Never { reason } => {
                self.end(Next::End { status: MessageStatus::Failed, reason: Some(reason) });
            }
        }
    }

    fn took_charge(&mut self, now: Time, transport: &str, envelope: [u8; 32]) {
        self.envelope = Some(envelope);
        let deadline = later(now, self.failover_timeout).min(self.expires_at);
        let Some(found) = self.find(transport) else { return };
        found.took_charge = true;
        found.attempt.result = AttemptResult::Sent;
        if found.deadline.is_some() {
            found.deadline = Some(deadline);
        }
        let attempt = found.attempt.clone();
        self.learn(transport, Outcome::TookCharge);
        self.unrecorded.push(attempt);
        if self.is_broadcast && !self.has_ended {
            self.end(Next::End { status: MessageStatus::Sent, reason: None });
            return;
        }
        // Others are kept away until we have had the time to look elsewhere ourselves.
        let retry_at = later(deadline, Rules::MARGIN).min(self.expires_at).max(self.ours_until);
        if !self.has_ended {
            self.ours_until = retry_at;
        }
        self.record(Next::Sent { envelope, retry_at });
    }

    fn failed(&mut self, now: Time, transport: &str, reason: String) {
        let Some(index) = self.under_way.iter().position(|one| one.attempt.transport == transport)
        else {
            return;
        };
        let mut attempt = self.under_way.swap_remove(index).attempt;
        attempt.result = AttemptResult::Failed;
        attempt.reason = Some(reason);
        self.learn(transport, Outcome::Failed);
        self.unrecorded.push(attempt);
        match self.envelope {
            _ if !self.has_ended => self.go_on(now),
            Some(envelope) if self.is_settled => self.record_beside(now, envelope),
            _ => {}
        }
    }

    fn receipt(&mut self, now: Time, kind: ReceiptKind) {
        if self.has_ended {
            return;
        }
        let mut open =
            self.under_way.iter().filter(|one| one.took_charge && one.deadline.is_some());
        // With several copies under way nobody can say which of them arrived.
        if let (Some(only), None) = (open.next(), open.next())
            && kind != ReceiptKind::Refused
        {
            let latency = (now - only.attempt.started_at).to_std().unwrap_or_default();
            let transport = only.attempt.transport.clone();
            self.learn(&transport, Outcome::Arrived(latency));
        }
        (self.has_ended, self.is_settled) = (true, true);
        if let Some(envelope) = self.envelope.filter(|_| !self.unrecorded.is_empty()) {
            self.record_beside(now, envelope);
        }
    }

    /// What left over a link that was lost since has to leave again, and what is unanswered may have a
    /// better way now.
    fn returned(&mut self, now: Time, transport: &str) {
        let open = || self.under_way.iter().filter(|one| one.deadline.is_some());
        let concerns_us =
            open().any(|one| one.attempt.transport == transport) || !self.is_planned(transport);
        // A transport that is at it this moment knows the new link.
        let is_unanswered = open().count() > 0 && open().all(|one| one.took_charge);
        if self.has_ended || self.is_broadcast || !concerns_us || !is_unanswered {
            return;
        }
        for one in &mut self.under_way {
            if one.deadline.take().is_some() && one.attempt.transport == transport {
                one.attempt.result = AttemptResult::Silent;
                one.attempt.reason = Some("the link was lost before a receipt came".into());
                self.unrecorded.push(one.attempt.clone());
            }
        }
        self.end(Next::Retry { at: now.min(self.expires_at) });
    }

    fn is_planned(&self, transport: &str) -> bool {
        let mut tried = self.under_way.iter().map(|one| one.attempt.transport.as_str());
        let mut planned = self.places.as_slice().iter().map(|place| place.transport.as_str());
        tried.any(|name| name == transport) || planned.any(|name| name == transport)
    }

    /// Records attempts of a delivery that a receipt has settled: the store keeps them and ignores
    /// what should follow.
    fn record_beside(&mut self, now: Time, envelope: [u8; 32]) {
        let retry_at = later(now, self.failover_timeout).min(self.expires_at).max(self.ours_until);
        self.record(Next::Sent { envelope, retry_at });
    }

    fn look_at_the_time(&mut self, now: Time) {
        if self.has_ended {
            return;
        }
        if now >= self.expires_at {
            // Whatever is under way may still arrive; a late receipt corrects the record.
            self.end(Next::Retry { at: self.expires_at });
            return;
        }
        let mut silent = Vec::new();
        for one in &mut self.under_way {
            if one.deadline.is_some_and(|deadline| deadline <= now) {
                one.deadline = None;
                one.attempt.result = AttemptResult::Silent;
                one.attempt.reason = Some(silence(one.took_charge, self.failover_timeout));
                silent.push(one.attempt.clone());
            }
        }
        if silent.is_empty() {
            return;
        }
        for attempt in silent {
            let waited = (now - attempt.started_at).to_std().unwrap_or_default();
            self.learn(&attempt.transport.clone(), Outcome::Silent(waited));
            self.unrecorded.push(attempt);
        }
        if self.is_broadcast {
            // It may have left, so it must not be repeated.
            let reason = Some("the transport did not say whether it has left".into());
            self.end(Next::End { status: MessageStatus::Sent, reason });
        } else {
            self.go_on(now);
        }
    }

    /// Tries the next place, or ends when nothing is left to try or to hear from.
    fn go_on(&mut self, now: Time) {
        let is_first = self.under_way.is_empty() && self.unrecorded.is_empty();
        let open = || self.under_way.iter().filter(|one| one.deadline.is_some());
        // What is tried out holds up nothing.
        let has_time = open().any(|one| !one.is_beside);
        if !has_time && (is_first || self.failover) && self.send_next(now) {
            return;
        }
        if self.under_way.iter().any(|one| one.deadline.is_some()) {
            return;
        }
        self.end(Next::Retry { at: later(now, self.retry_wait).min(self.expires_at) });
    }

    fn send_next(&mut self, now: Time) -> bool {
        if now >= self.expires_at || later(now, self.failover_timeout) > self.ours_until {
            return false;
        }
        let Some(place) = self.places.next() else { return false };
        self.send(now, place, false);
        true
    }

    fn send(&mut self, now: Time, place: Place, is_beside: bool) {
        let deadline = later(now, self.failover_timeout).min(self.expires_at);
        let attempt = Attempt {
            transport: place.transport.clone(),
            started_at: now,
            result: AttemptResult::Sent,
            reason: Some(place.reason.clone()),
            hops: None,
        };
        let deadline = Some(deadline);
        self.under_way.push(UnderWay { attempt, took_charge: false, is_beside, deadline });
        self.actions.push(Action::Send(place));
    }

    fn find(&mut self, transport: &str) -> Option<&mut UnderWay> {
        self.under_way.iter_mut().find(|one| one.attempt.transport == transport)
    }

    fn learn(&mut self, transport: &str, outcome: Outcome) {
        self.actions.push(Action::Learn { transport: transport.into(), outcome });
    }

    fn end(&mut self, next: Next) {
        self.has_ended = true;
        self.record(next);
    }

    fn record(&mut self, next: Next) {
        let attempts = mem::take(&mut self.unrecorded);
        self.actions.push(Action::Record { attempts, next });
    }
}

fn silence(took_charge: bool, timeout: Duration) -> String {
    let seconds = timeout.as_secs_f64();
    match took_charge {
        true => format!("no receipt within {seconds} s"),
        false => format!("the transport gave no answer within {seconds} s"),
    }
}

#[cfg(test)]
mod tests;
