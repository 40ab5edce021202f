//! The circuit breaker: a transport that keeps failing is rested and then tried out.

use std::time::Duration;

use crate::{Time, retry::later};

/// Counts the failures in a row of one transport towards one target and says when it is to be left
/// alone.
///
/// After [`FAILURES`](Self::FAILURES) in a row, hard ones or silences, it rests for 5 s; when a
/// trial after that fails it rests twice as long, up to a minute. A success makes it whole, and so
/// does the target's coming back into reach; whatever is heard over it ends its rest. A silence in which
/// something else arrived is none: of many under way at once, some get lost.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Breaker {
    failures: u32,
    /// One of them was a silence, so that taking charge again proves nothing.
    has_silence: bool,
    /// How often in a row it was rested.
    rests: u32,
    state: State,
    /// When something was last known to have arrived.
    arrived_at: Option<Time>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Time,
    },
    Trial {
        until: Time,
    },
}

/// What a [`Breaker`] says of its transport.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BreakerState {
    /// Use it.
    Closed,
    /// Leave it alone until then.
    Rested {
        /// When it may be tried out.
        until: Time,
    },
    /// Its rest is over: one message may try it out.
    OnProbation,
    /// One message is trying it out.
    OnTrial {
        /// When the trial counts as failed.
        until: Time,
    },
}

impl Breaker {
    /// How many failures in a row open it.
    pub const FAILURES: u32 = 5;
    /// The first rest.
    pub const FIRST_REST: Duration = Duration::from_secs(5);
    /// The longest rest, and so the longest that a message waits for its only way to be tried again.
    pub const LONGEST_REST: Duration = Duration::from_secs(60);
    /// How long a trial may take before it counts as failed and the next may begin.
    pub const TRIAL: Duration = Duration::from_secs(30);

    /// How the transport stands.
    pub fn state(&self, now: Time) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until } if now < until => BreakerState::Rested { until },
            State::Trial { until } if now < until => BreakerState::OnTrial { until },
            State::Open { .. } | State::Trial { .. } => BreakerState::OnProbation,
        }
    }

    /// Asks to use the transport now; false while it is rested or tried out by another message.
    ///
    /// On probation the first to ask gets the trial.
    pub fn try_use(&mut self, now: Time) -> bool {
        match self.state(now) {
            BreakerState::Closed => true,
            BreakerState::OnProbation => {
                self.state = State::Trial { until: later(now, Self::TRIAL) };
                true
            }
            BreakerState::Rested { .. } | BreakerState::OnTrial { .. } => false,
        }
    }

    /// The recipient's gateway has what was sent over it.
    pub fn succeeded(&mut self, now: Time) {
        *self = Self { arrived_at: Some(now), ..Self::default() };
    }

    /// The target has come into reach over it anew: what failed was on another link.
    pub fn returned(&mut self) {
        *self = Self { arrived_at: self.arrived_at, ..Self::default() };
    }

    /// It took charge of an envelope, which is a success where it had only refused before.
    pub fn took_charge(&mut self) {
        if !self.has_silence {
            self.returned();
        }
    }

    /// Something that the target had signed came over it.
    pub fn heard(&mut self, now: Time) {
        match self.state {
            State::Closed => {}
            State::Open { until } => self.state = State::Open { until: until.min(now) },
            State::Trial { .. } => self.returned(),
        }
    }

    /// It refused, or broke.
    pub fn failed(&mut self, now: Time) {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.state {
            State::Closed => self.failures >= Self::FAILURES,
            // What was under way when it was rested tells nothing new.
            State::Open { until } => now >= until,
            State::Trial { .. } => true,
        };
        if opens {
            let rest = Self::FIRST_REST.saturating_mul(1 << self.rests.min(16));
            self.state = State::Open { until: later(now, rest.min(Self::LONGEST_REST)) };
            self.rests = self.rests.saturating_add(1);
        }
    }

    /// It took charge, and no receipt came in the time that was `waited`.
    pub fn silent(&mut self, now: Time, waited: Duration) {
        if self.arrived_at.is_some_and(|at| later(at, waited) >= now) {
            return;
        }
        self.has_silence = true;
        self.failed(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_that_keeps_failing_is_rested() {
        let mut breaker = Breaker::default();
        for _ in 1..Breaker::FAILURES {
            breaker.failed(at(0));
            assert!(breaker.try_use(at(0)));
        }
        breaker.failed(at(0));
        assert_eq!(breaker.state(at(4)), BreakerState::Rested { until: at(5) });
        assert!(!breaker.try_use(at(4)));
    }

    #[test]
    fn a_success_in_between_starts_the_count_again() {
        let mut breaker = Breaker::default();
        for round in 0..20 {
            breaker.failed(at(round));
            if round % 4 == 3 {
                breaker.succeeded(at(round));
            }
            assert_eq!(breaker.state(at(round)), BreakerState::Closed);
        }
    }

    #[test]
    fn after_the_rest_one_message_at_a_time_tries_it_out() {
        let mut breaker = rested();
        assert_eq!(breaker.state(at(5)), BreakerState::OnProbation);
        assert!(breaker.try_use(at(5)));
        assert!(!breaker.try_use(at(6)));
        assert_eq!(breaker.state(at(6)), BreakerState::OnTrial { until: at(35) });
        breaker.succeeded(at(7));
        assert_eq!(breaker.state(at(7)), BreakerState::Closed);
    }

    #[test]
    fn a_failed_trial_doubles_the_rest_up_to_its_bound() {
        let mut breaker = rested();
        let mut now = 5;
        for rest in [10, 20, 40, 60, 60] {
            assert!(breaker.try_use(at(now)));
            breaker.failed(at(now));
            assert_eq!(breaker.state(at(now)), BreakerState::Rested { until: at(now + rest) });
            now += rest;
        }
    }

    #[test]
    fn a_trial_that_nobody_reports_on_frees_its_place() {
        let mut breaker = rested();
        assert!(breaker.try_use(at(5)));
        assert_eq!(breaker.state(at(35)), BreakerState::OnProbation);
        assert!(breaker.try_use(at(35)));
    }

    #[test]
    fn stragglers_do_not_prolong_the_rest() {
        let mut breaker = rested();
        breaker.failed(at(4));
        assert_eq!(breaker.state(at(4)), BreakerState::Rested { until: at(5) });
    }

    #[test]
    fn taking_charge_ends_a_run_of_refusals_but_no_run_of_silences() {
        let mut refused = rested();
        assert!(refused.try_use(at(5)));
        refused.took_charge();
        assert_eq!(refused.state(at(5)), BreakerState::Closed);
        let mut silent = Breaker::default();
        for _ in 0..Breaker::FAILURES {
            silent.took_charge();
            silent.silent(at(0), WAITED);
        }
        assert!(silent.try_use(at(5)));
        silent.took_charge();
        assert!(matches!(silent.state(at(5)), BreakerState::OnTrial { .. }));
        silent.succeeded(at(0));
        assert_eq!(silent.state(at(5)), BreakerState::Closed);
    }

    #[test]
    fn what_is_heard_over_it_ends_its_rest_and_proves_a_trial() {
        let mut breaker = rested();
        breaker.heard(at(1));
        assert_eq!(breaker.state(at(1)), BreakerState::OnProbation);
        assert!(breaker.try_use(at(1)));
        breaker.heard(at(2));
        assert_eq!(breaker.state(at(2)), BreakerState::Closed);
    }

    #[test]
    fn of_many_under_way_at_once_those_that_get_lost_rest_nothing() {
        let mut breaker = Breaker::default();
        breaker.succeeded(at(1));
        for _ in 0..100 {
            // Begun before something else arrived.
            breaker.silent(at(10), WAITED);
        }
        assert_eq!(breaker.state(at(10)), BreakerState::Closed);
        for _ in 0..Breaker::FAILURES {
            breaker.silent(at(12), WAITED);
        }
        assert!(matches!(breaker.state(at(12)), BreakerState::Rested { .. }));
    }

    fn rested() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..Breaker::FAILURES {
            breaker.failed(at(0));
        }
        breaker
    }

    const WAITED: Duration = Duration::from_secs(10);

    fn at(seconds: i64) -> Time {
        Time::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds)
    }
}
