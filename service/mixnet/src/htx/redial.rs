//! When a lost link is dialled again (HTX reference, section 1.2, "Anti-correlation fallback").

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use rand::{CryptoRng, RngExt};

/// Decides when to dial one neighbour.
///
/// An attempt begins 100 to 700 ms after it was asked for, so that the end of one connection and
/// the start of the next are not tied together. After a failure it waits from 1 to 60 s, doubling,
/// give or take a quarter, and never retries more than twice within a minute. A link that held for
/// a minute makes good for earlier failures.
#[derive(Debug)]
pub struct Redial<R> {
    rng: R,
    failures: u32,
    dial_at: Option<Instant>,
    retries: VecDeque<Instant>,
    up_since: Option<Instant>,
}

/// What happened to the link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RedialEvent {
    /// A link is wanted.
    Wanted,
    /// It is up.
    Established,
    /// It could not be made, or it is lost.
    Lost,
    /// It is not wanted any more.
    Unwanted,
    /// [`Redial::next_deadline`] has passed.
    Wake,
}

impl<R: CryptoRng> Redial<R> {
    /// Waits until a link is wanted.
    pub fn new(rng: R) -> Self {
        Self { rng, failures: 0, dial_at: None, retries: VecDeque::new(), up_since: None }
    }

    /// Takes in one event and says whether to dial now, with fresh randomness and no resumption.
    pub fn handle(&mut self, now: Instant, event: RedialEvent) -> bool {
        match event {
            RedialEvent::Wanted if self.up_since.is_none() && self.dial_at.is_none() => {
                self.dial_at = Some(now + self.start_delay());
            }
            RedialEvent::Established => {
                (self.up_since, self.dial_at) = (Some(now), None);
            }
            RedialEvent::Lost => {
                let held = self.up_since.take().is_some_and(|since| now - since >= HELD);
                self.failures = if held { 1 } else { self.failures.saturating_add(1) };
                self.dial_at = Some(self.retry_at(now));
            }
            RedialEvent::Unwanted => (self.up_since, self.dial_at) = (None, None),
            RedialEvent::Wanted | RedialEvent::Wake => {}
        }
        self.dial_at.take_if(|dial_at| *dial_at <= now).is_some()
    }

    /// When the next [`RedialEvent::Wake`] is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.dial_at
    }

    fn retry_at(&mut self, now: Instant) -> Instant {
        let doubled = LEAST_WAIT * 2_u32.saturating_pow((self.failures - 1).min(6));
        let wait = doubled.min(MOST_WAIT) * self.rng.random_range(75..=125) / 100;
        let mut at = now + wait + self.start_delay();
        if self.retries.len() == RETRIES_A_MINUTE
            && let Some(earliest) = self.retries.pop_front()
        {
            at = at.max(earliest + MINUTE);
        }
        self.retries.push_back(at);
        at
    }

    fn start_delay(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(100..=700))
    }
}

const LEAST_WAIT: Duration = Duration::from_secs(1);
const MOST_WAIT: Duration = Duration::from_secs(60);
const HELD: Duration = Duration::from_secs(60);
const MINUTE: Duration = Duration::from_secs(60);
const RETRIES_A_MINUTE: usize = 2;

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn retries_at_most_twice_within_any_minute_and_ever_more_slowly() {
        for seed in 0..50 {
            let mut redial = Redial::new(StdRng::seed_from_u64(seed));
            let start = start();
            assert!(!redial.handle(start, RedialEvent::Wanted));
            let mut dialled = Vec::new();
            while dialled.len() < 12 {
                let now = redial.next_deadline().unwrap();
                assert!(redial.handle(now, RedialEvent::Wake));
                dialled.push(now);
                redial.handle(now, RedialEvent::Lost);
            }
            assert!(dialled[0] - start <= Duration::from_millis(700));
            let retries = &dialled[1..];
            assert!(retries.windows(3).all(|three| three[2] - three[0] >= MINUTE));
            let last = dialled[11] - dialled[10];
            assert!(last >= Duration::from_secs(45) && last <= Duration::from_secs(76), "{last:?}");
        }
    }

    #[test]
    fn a_link_that_held_is_dialled_again_soon() {
        let mut redial = Redial::new(StdRng::seed_from_u64(3));
        let mut now = start();
        for _ in 0..6 {
            redial.handle(now, RedialEvent::Lost);
            now = redial.next_deadline().unwrap();
            assert!(redial.handle(now, RedialEvent::Wake));
        }
        redial.handle(now, RedialEvent::Established);
        assert_eq!(redial.next_deadline(), None);
        assert!(!redial.handle(now, RedialEvent::Wanted), "it is up");
        now += Duration::from_secs(3_600);
        redial.handle(now, RedialEvent::Lost);
        assert!(redial.next_deadline().unwrap() - now <= Duration::from_secs(2));
    }

    #[test]
    fn an_unwanted_link_is_left_alone() {
        let mut redial = Redial::new(StdRng::seed_from_u64(3));
        redial.handle(start(), RedialEvent::Lost);
        redial.handle(start(), RedialEvent::Unwanted);
        assert_eq!(redial.next_deadline(), None);
    }

    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    fn start() -> Instant {
        Instant::now()
    }
}
