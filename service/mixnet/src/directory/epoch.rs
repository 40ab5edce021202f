use std::time::Duration;

use fieldpost_envelope::Timestamp;
use thiserror::Error;

/// The number of an epoch: full epochs since 1970.
pub type Epoch = u64;

/// Cuts time into epochs (HTX reference, section 5).
///
/// An epoch lasts one hour, or less; a few seconds in tests. All of a network use the same length.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EpochClock {
    length_ms: u64,
}

impl EpochClock {
    /// One hour.
    pub const HOUR: Self = Self { length_ms: 3_600_000 };

    /// Epochs of this length.
    ///
    /// # Errors
    ///
    /// The length is not 1 s to 1 h, or not a whole number of seconds.
    pub fn new(length: Duration) -> Result<Self, EpochError> {
        let seconds = length.as_secs();
        if !(1..=3_600).contains(&seconds) || length.subsec_nanos() > 0 {
            return Err(EpochError { length });
        }
        Ok(Self { length_ms: seconds * 1_000 })
    }

    /// How long an epoch is.
    pub fn length(&self) -> Duration {
        Duration::from_millis(self.length_ms)
    }

    /// The epoch of a time.
    pub fn epoch_at(&self, time: Timestamp) -> Epoch {
        time.as_millis() / self.length_ms
    }

    /// When an epoch begins.
    pub fn start(&self, epoch: Epoch) -> Timestamp {
        let millis = epoch.saturating_mul(self.length_ms);
        Timestamp::try_from(millis).unwrap_or(Timestamp::MAX)
    }

    /// How long packets of an epoch are still taken after its end: a quarter of it, at most 60 s.
    pub fn grace(&self) -> Duration {
        Duration::from_millis((self.length_ms / 4).min(60_000))
    }

    /// When the secrets of an epoch are erased: its end and the grace.
    pub fn erased_at(&self, epoch: Epoch) -> Timestamp {
        let end = self.start(epoch.saturating_add(1)).as_millis();
        let grace = self.grace().as_millis() as u64;
        Timestamp::try_from(end.saturating_add(grace)).unwrap_or(Timestamp::MAX)
    }

    /// The longest delay that a hop may be asked for, so that all of a route fit into the grace: at
    /// most 10 s (HTX reference, section 4.1).
    pub fn longest_delay(&self, hops: usize) -> Duration {
        let share = self.grace() / u32::try_from(hops.max(1)).unwrap_or(u32::MAX);
        share.min(Duration::from_secs(10))
    }

    /// Whether packets under the keys of `epoch` are taken at this time.
    pub fn takes(&self, epoch: Epoch, now: Timestamp) -> bool {
        self.start(epoch) <= now && now < self.erased_at(epoch)
    }
}

/// A length that no epoch has.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("an epoch of {length:?}: expected whole seconds, 1 s to 1 h")]
pub struct EpochError {
    /// The length.
    pub length: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_has_a_minute_of_grace_and_ten_seconds_of_delay() {
        let clock = EpochClock::HOUR;
        assert_eq!(clock.epoch_at(time(3_599_999)), 0);
        assert_eq!(clock.epoch_at(time(3_600_000)), 1);
        assert_eq!(clock.start(1), time(3_600_000));
        assert_eq!(clock.erased_at(0), time(3_660_000));
        assert_eq!(clock.longest_delay(5), Duration::from_secs(10));
    }

    #[test]
    fn short_epochs_have_short_graces_and_delays() {
        let clock = EpochClock::new(Duration::from_secs(4)).unwrap();
        assert_eq!(clock.grace(), Duration::from_secs(1));
        assert_eq!(clock.longest_delay(4), Duration::from_millis(250));
        assert!(clock.takes(2, time(8_000)) && clock.takes(2, time(12_999)));
        assert!(!clock.takes(2, time(7_999)) && !clock.takes(2, time(13_000)));
    }

    #[test]
    fn an_epoch_is_a_second_to_an_hour() {
        for millis in [0, 999, 1_500, 3_601_000] {
            assert!(EpochClock::new(Duration::from_millis(millis)).is_err(), "{millis}");
        }
        assert_eq!(EpochClock::new(Duration::from_secs(3_600)), Ok(EpochClock::HOUR));
    }

    #[test]
    fn the_end_of_time_is_no_panic() {
        let clock = EpochClock::HOUR;
        assert_eq!(clock.start(u64::MAX), Timestamp::MAX);
        assert_eq!(clock.erased_at(u64::MAX), Timestamp::MAX);
    }

    fn time(millis: u64) -> Timestamp {
        Timestamp::try_from(millis).unwrap()
    }
}
