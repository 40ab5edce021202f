//! How long packets are held, and how often they are sent (HTX reference, section 4.1).
//!
//! Delays are exponential, hence memoryless: whoever watches a relay learns nothing from how long a
//! packet has been inside.

use std::time::Duration;

use rand::{Rng, RngExt};

/// The longest delay that a sender asks for and that a relay grants.
pub const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// Means of the exponential waiting times of one mode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pace {
    /// At each relay.
    pub delay: Duration,
    /// Between two packets of a sender, real ones or, when there is none, drops.
    pub payload: Duration,
    /// Between two loops of a sender to itself.
    pub sender_loop: Duration,
    /// Between two loops of a relay to itself.
    pub relay_loop: Duration,
}

impl Pace {
    /// For people who wait for an answer.
    pub const INTERACTIVE: Self = Self {
        delay: Duration::from_millis(20),
        payload: Duration::from_millis(50),
        sender_loop: Duration::from_millis(500),
        relay_loop: Duration::from_secs(1),
    };

    /// For people who would rather not be found.
    pub const STRONG: Self = Self {
        delay: Duration::from_millis(200),
        payload: Duration::from_millis(200),
        sender_loop: Duration::from_secs(1),
        relay_loop: Duration::from_secs(1),
    };
}

/// An exponential waiting time with this mean, in whole milliseconds, at most [`LONGEST_DELAY`].
pub fn sample(rng: &mut (impl Rng + ?Sized), mean: Duration) -> Duration {
    // In (0, 1], so that the logarithm is finite.
    let uniform = 1.0 - rng.random::<f64>();
    let milliseconds = (-uniform.ln() * mean.as_secs_f64() * 1000.0).round();
    Duration::from_millis(milliseconds as u64).min(LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn delays_have_the_mean_and_the_tail_of_an_exponential() {
        for pace in [Pace::INTERACTIVE, Pace::STRONG] {
            let mut rng = StdRng::seed_from_u64(1);
            let count = 100_000;
            let mut delays: Vec<_> = (0..count).map(|_| sample(&mut rng, pace.delay)).collect();
            let sum: Duration = delays.iter().sum();
            let mean = sum.as_secs_f64() / f64::from(count);
            assert!((mean / pace.delay.as_secs_f64() - 1.0).abs() < 0.02, "mean {mean}");
            delays.sort();
            for share in [0.5_f64, 0.9, 0.999] {
                let quantile = delays[(f64::from(count) * share) as usize].as_secs_f64();
                let expected = pace.delay.as_secs_f64() * -(1.0 - share).ln();
                assert!((quantile / expected - 1.0).abs() < 0.08, "{share}: {quantile}");
            }
        }
    }

    #[test]
    fn no_delay_is_longer_than_the_longest() {
        let mut rng = StdRng::seed_from_u64(2);
        let most = (0..1000).map(|_| sample(&mut rng, Duration::from_secs(60))).max();
        assert_eq!(most, Some(LONGEST_DELAY));
    }

    #[test]
    fn the_same_seed_gives_the_same_delays() {
        let delays = |seed| -> Vec<Duration> {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..10).map(|_| sample(&mut rng, Pace::STRONG.delay)).collect()
        };
        assert_eq!(delays(3), delays(3));
        assert_ne!(delays(3), delays(4));
    }
}
