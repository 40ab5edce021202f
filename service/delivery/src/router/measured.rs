//! What a transport did before, the recent more than the old.

use std::time::Duration;

use crate::Time;

/// How often a transport succeeded lately, and how fast.
///
/// Every outcome counts half as much after each [`HALF_LIFE`](Self::HALF_LIFE), so what is old
/// fades until the record says as little as an empty one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// What the successes weigh at `at`.
    successes: f64,
    /// What all outcomes weigh at `at`.
    outcomes: f64,
    /// Sum of the latencies in milliseconds, each with its outcome's weight.
    latency_ms: f64,
    /// What the outcomes with a latency weigh.
    latencies: f64,
    at: Option<Time>,
}

/// What came of one attempt over a transport.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The recipient's gateway has it, this long after the attempt began.
    Arrived(Duration),
    /// The transport took charge; more is to be heard.
    TookCharge,
    /// The transport refused or broke.
    Failed,
    /// No receipt had come this long after the attempt began.
    Silent(Duration),
}

impl Measured {
    /// After how long an outcome counts half.
    pub const HALF_LIFE: Duration = Duration::from_secs(600);

    /// Adds one outcome; taking charge is none yet. `now` may lag behind earlier calls; it then
    /// counts as of the latest.
    pub fn add(&mut self, now: Time, outcome: Outcome) {
        if outcome == Outcome::TookCharge {
            return;
        }
        *self = self.faded(now);
        self.outcomes += 1.0;
        if let Outcome::Arrived(latency) = outcome {
            self.successes += 1.0;
            self.latencies += 1.0;
            self.latency_ms += latency.as_secs_f64() * 1000.0;
        }
    }

    /// The share of attempts that succeeded, from 0 to 1; `None` when nothing is known any more.
    pub fn success(&self, now: Time) -> Option<f64> {
        let faded = self.faded(now);
        (faded.outcomes >= FORGOTTEN).then(|| faded.successes / faded.outcomes)
    }

    /// The mean latency; `None` when nothing is known any more.
    pub fn latency(&self, now: Time) -> Option<Duration> {
        let faded = self.faded(now);
        (faded.latencies >= FORGOTTEN)
            .then(|| Duration::from_secs_f64(faded.latency_ms / faded.latencies / 1000.0))
    }

    /// How long ago the last outcome was; `None` when there was none.
    pub fn age(&self, now: Time) -> Option<Duration> {
        self.at.map(|at| (now - at).to_std().unwrap_or_default())
    }

    /// By how much the record makes a transport better or worse than its place: 1 when nothing is
    /// known, near 0 when everything failed, up to [`BEST_SPEED`] when it is faster than typical.
    pub(crate) fn weight(&self, now: Time, typical_latency_ms: f64) -> f64 {
        let faded = self.faded(now);
        // One outcome alone must not turn everything over, so an even record is mixed in.
        let success = (faded.successes + PRIOR) / (faded.outcomes + PRIOR);
        let mean = (faded.latency_ms + PRIOR * typical_latency_ms) / (faded.latencies + PRIOR);
        let speed = (typical_latency_ms + SLOWNESS_MS) / (mean + SLOWNESS_MS);
        success * speed.clamp(WORST_SPEED, BEST_SPEED)
    }

    /// ", 97 % of attempts arrived lately, after 120 ms"; empty when nothing is known.
    pub(crate) fn describe(&self, now: Time) -> String {
        let Some(success) = self.success(now) else { return String::new() };
        let percent = (success * 100.0).round();
        match self.latency(now) {
            Some(latency) => format!(
                ", {percent} % of attempts arrived lately, after {} ms",
                latency.as_millis()
            ),
            None => format!(", {percent} % of attempts arrived lately"),
        }
    }

    fn faded(&self, now: Time) -> Self {
        let Some(at) = self.at else { return Self { at: Some(now), ..*self } };
        let Ok(age) = (now - at).to_std() else { return *self };
        let factor = 0.5_f64.powf(age.as_secs_f64() / Self::HALF_LIFE.as_secs_f64());
        Self {
            successes: self.successes * factor,
            outcomes: self.outcomes * factor,
            latency_ms: self.latency_ms * factor,
            latencies: self.latencies * factor,
            at: Some(now),
        }
    }
}

/// Below this weight a record is as good as none.
const FORGOTTEN: f64 = 0.1;
/// How many successes at typical speed every record starts with.
const PRIOR: f64 = 1.0;
/// Latencies well below this are all the same to a sender.
const SLOWNESS_MS: f64 = 1000.0;
const WORST_SPEED: f64 = 0.25;
/// The most that speed alone is worth.
pub(crate) const BEST_SPEED: f64 = 1.5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_known_weighs_nothing() {
        assert_eq!(Measured::default().weight(at(0), 500.0), 1.0);
        assert_eq!(Measured::default().success(at(0)), None);
        assert_eq!(Measured::default().describe(at(0)), "");
    }

    #[test]
    fn failures_make_it_worse_and_time_forgives_them() {
        let mut measured = Measured::default();
        for second in 0..5 {
            measured.add(at(second), Outcome::Failed);
        }
        let fresh = measured.weight(at(5), 500.0);
        assert!(fresh < 0.2, "{fresh}");
        let later = measured.weight(at(6000), 500.0);
        assert!(later > 0.98, "{later}");
        assert_eq!(measured.success(at(6000)), None);
    }

    #[test]
    fn the_recent_counts_more_than_the_old() {
        let mut recovered = Measured::default();
        let mut broken = Measured::default();
        for second in 0..10 {
            recovered.add(at(second), Outcome::Failed);
            broken.add(at(second), Outcome::Arrived(Duration::from_millis(100)));
        }
        for second in 1200..1210 {
            recovered.add(at(second), Outcome::Arrived(Duration::from_millis(100)));
            broken.add(at(second), Outcome::Silent(WAITED));
        }
        let (recovered, broken) = (recovered.success(at(1210)), broken.success(at(1210)));
        assert!(recovered > Some(0.75) && broken < Some(0.25), "{recovered:?} {broken:?}");
    }

    #[test]
    fn slow_weighs_less_than_fast() {
        let with = |millis| {
            let mut measured = Measured::default();
            measured.add(at(0), Outcome::Arrived(Duration::from_millis(millis)));
            measured.weight(at(0), 500.0)
        };
        assert!(with(100) > with(500) && with(500) > with(5000));
    }

    #[test]
    fn the_sender_reads_it_in_words() {
        let mut measured = Measured::default();
        measured.add(at(0), Outcome::Arrived(Duration::from_millis(120)));
        measured.add(at(0), Outcome::Silent(WAITED));
        assert_eq!(measured.describe(at(0)), ", 50 % of attempts arrived lately, after 120 ms");
    }

    proptest! {
        #[test]
        fn every_record_weighs_between_its_bounds(
            outcomes in prop::collection::vec((0i64..100_000, 0u64..10_000_000, 0u8..3), 0..50),
            now in 0i64..200_000, typical in 0u32..10_000,
        ) {
            let mut measured = Measured::default();
            for (second, millis, kind) in outcomes {
                measured.add(at(second), match kind {
                    0 => Outcome::Arrived(Duration::from_millis(millis)),
                    1 => Outcome::Failed,
                    _ => Outcome::Silent(WAITED),
                });
            }
            let weight = measured.weight(at(now), typical.into());
            prop_assert!(weight > 0.0 && weight <= BEST_SPEED, "{}", weight);
            let success = measured.success(at(now)).unwrap_or(0.0);
            prop_assert!((0.0..=1.0).contains(&success));
        }
    }

    const WAITED: Duration = Duration::from_secs(10);

    fn at(seconds: i64) -> Time {
        Time::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds)
    }
}
