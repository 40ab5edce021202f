//! The circuit breaker: a transport that keeps failing is rested and then tried out.

use std::time::Duration;

use crate::{Time, retry::later};

/// Counts the failures in a row of one transport and says when it is to be left alone.
///
/// After [`FAILURES`](Self::FAILURES) in a row it rests for 5 s; when one trial after that fails it
/// rests twice as long, up to 5 minutes. One success makes it whole.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Breaker {
    failures: u32,
    /// How often in a row it was rested.
    rests: u32,
    state: State,
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
    /// The longest rest.
    pub const LONGEST_REST: Duration = Duration::from_secs(300);
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

    /// The transport did what it was asked.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// The transport failed.
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
                breaker.succeeded();
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
        breaker.succeeded();
        assert_eq!(breaker.state(at(7)), BreakerState::Closed);
    }

    #[test]
    fn a_failed_trial_doubles_the_rest_up_to_its_bound() {
        let mut breaker = rested();
        let mut now = 5;
        for rest in [10, 20, 40, 80, 160, 300, 300] {
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

    fn rested() -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..Breaker::FAILURES {
            breaker.failed(at(0));
        }
        breaker
    }

    fn at(seconds: i64) -> Time {
        Time::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds)
    }
}
