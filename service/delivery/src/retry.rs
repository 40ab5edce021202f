//! When to try again.
//!
//! The wait doubles from one attempt to the next up to a bound, and a random part of it is left
//! out, so that what failed together does not come back together.

use std::time::Duration;

use rand::{Rng, RngExt};

use crate::Time;

/// How long to wait between attempts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Backoff {
    /// The longest wait after the first attempt.
    pub first: Duration,
    /// The longest wait after any attempt.
    pub most: Duration,
}

impl Backoff {
    /// For deliveries: up to 1 s after the first attempt, up to 5 minutes after the ninth and later.
    pub const DELIVERY: Self =
        Self { first: Duration::from_secs(1), most: Duration::from_secs(300) };

    /// For receipts: up to 1 s after the first attempt, up to 1 minute after the sixth and later.
    ///
    /// They are small, and the other side keeps sending until the first of them arrives.
    pub const RECEIPT: Self = Self { first: Duration::from_secs(1), most: Duration::from_secs(60) };

    /// The wait after attempt number `attempt`, counted from 1: between half of its longest and its
    /// longest.
    pub fn wait(&self, attempt: u32, rng: &mut impl Rng) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let longest = self.first.saturating_mul(1 << doublings).min(self.most);
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(rng.random_range(micros / 2..=micros))
    }

    /// When to try again after attempt number `attempt`, never later than `expires_at`: then the
    /// delivery is due to end, which is work too.
    pub fn retry_at(&self, now: Time, attempt: u32, expires_at: Time, rng: &mut impl Rng) -> Time {
        later(now, self.wait(attempt, rng)).min(expires_at)
    }
}

/// `wait` after `now`, or the end of time.
pub(crate) fn later(now: Time, wait: Duration) -> Time {
    chrono::TimeDelta::from_std(wait)
        .ok()
        .and_then(|wait| now.checked_add_signed(wait))
        .unwrap_or(Time::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn waits_double_up_to_the_bound() {
        let mut rng = StdRng::seed_from_u64(1);
        let longest = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300];
        for (attempt, longest) in (1..).zip(longest) {
            for _ in 0..100 {
                let wait = Backoff::DELIVERY.wait(attempt, &mut rng);
                assert!(wait <= Duration::from_secs(longest), "attempt {attempt}: {wait:?}");
                assert!(wait >= Duration::from_secs(longest) / 2, "attempt {attempt}: {wait:?}");
            }
        }
    }

    #[test]
    fn the_same_seed_waits_the_same_and_another_seed_does_not() {
        let wait = |seed| Backoff::RECEIPT.wait(6, &mut StdRng::seed_from_u64(seed));
        assert_eq!(wait(7), wait(7));
        assert_ne!(wait(7), wait(8));
    }

    proptest! {
        #[test]
        fn no_retry_is_planned_past_the_end_of_life(
            attempt in any::<u32>(), left_ms in -1000i64..1_000_000, seed in any::<u64>(),
        ) {
            let now = Time::UNIX_EPOCH;
            let expires_at = now + chrono::TimeDelta::milliseconds(left_ms);
            let mut rng = StdRng::seed_from_u64(seed);
            let at = Backoff::DELIVERY.retry_at(now, attempt, expires_at, &mut rng);
            prop_assert!(at <= expires_at);
            prop_assert!(at >= now.min(expires_at));
        }
    }
}
