use std::{collections::BTreeMap, fmt};

use fieldpost_envelope::{OpeningKey, Timestamp};
use rand::CryptoRng;

use super::{
    descriptor::EpochKeys,
    epoch::{Epoch, EpochClock},
};
use crate::htx::SecretKey;

/// The secrets of a relay, one set for each epoch (HTX reference, section 5).
///
/// It holds the current epoch, the two that follow and, within its grace, the one before: at most
/// four. What is erased is zeroized in memory and never made again, wherever the clock is set.
pub struct KeyRing<R> {
    rng: R,
    clock: EpochClock,
    secrets: BTreeMap<Epoch, EpochSecret>,
    /// No keys are made for earlier epochs.
    none_before: Epoch,
}

/// The secrets of one epoch; zeroized when dropped.
pub struct EpochSecret {
    /// What Sphinx packets are opened with.
    pub sphinx: SecretKey,
    /// What content that is sealed to this gateway is opened with.
    pub sealing: OpeningKey,
}

/// What has changed in a ring.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyChange {
    /// There are keys for this epoch: a new descriptor is to be published.
    Made(Epoch),
    /// The keys of this epoch are gone; its replay cache is to go, too.
    Erased(Epoch),
}

impl<R: CryptoRng> KeyRing<R> {
    /// How many epochs a descriptor has keys for: the current one and the two that follow.
    pub const EPOCHS: u64 = 3;

    /// A ring without keys; the first [`advance`](Self::advance) makes them.
    pub fn new(rng: R, clock: EpochClock) -> Self {
        Self { rng, clock, secrets: BTreeMap::new(), none_before: 0 }
    }

    /// Takes up a secret that was kept elsewhere over a restart, before the first
    /// [`advance`](Self::advance).
    ///
    /// One that is over, or of an epoch that has secrets already, is dropped. Whoever restores a
    /// secret must restore its replay cache, too: else packets could be replayed.
    pub fn restore(&mut self, now: Timestamp, epoch: Epoch, secret: EpochSecret) -> bool {
        let current = self.clock.epoch_at(now);
        let lives = epoch >= self.none_before
            && epoch < current + Self::EPOCHS
            && now < self.clock.erased_at(epoch);
        if lives && !self.secrets.contains_key(&epoch) {
            self.secrets.insert(epoch, secret);
        }
        lives
    }

    /// Erases what is over and makes what is missing.
    pub fn advance(&mut self, now: Timestamp) -> Vec<KeyChange> {
        let current = self.clock.epoch_at(now);
        let clock = self.clock;
        let over: Vec<_> =
            self.secrets.keys().copied().filter(|epoch| clock.erased_at(*epoch) <= now).collect();
        let mut changes = Vec::new();
        for epoch in over {
            self.secrets.remove(&epoch);
            changes.push(KeyChange::Erased(epoch));
        }
        self.none_before = self.none_before.max(current);
        for epoch in current.max(self.none_before)..current + Self::EPOCHS {
            if !self.secrets.contains_key(&epoch) {
                self.secrets.insert(epoch, EpochSecret::generate(&mut self.rng));
                changes.push(KeyChange::Made(epoch));
            }
        }
        changes
    }

    /// When the next [`advance`](Self::advance) changes something.
    pub fn next_deadline(&self, now: Timestamp) -> Timestamp {
        let next_epoch = self.clock.start(self.clock.epoch_at(now) + 1);
        let erased = self.secrets.keys().map(|epoch| self.clock.erased_at(*epoch)).min();
        erased.map_or(now, |erased| erased.min(next_epoch).max(now))
    }

    /// The secrets of an epoch, if packets under them are taken at this time.
    pub fn secret(&self, now: Timestamp, epoch: Epoch) -> Option<&EpochSecret> {
        self.secrets.get(&epoch).filter(|_| self.clock.takes(epoch, now))
    }

    /// The public halves that a descriptor of this time holds: current, next and next but one.
    pub fn published(&self, now: Timestamp) -> Vec<EpochKeys> {
        let current = self.clock.epoch_at(now);
        self.secrets
            .range(current..current + Self::EPOCHS)
            .map(|(epoch, secret)| secret.public(*epoch))
            .collect()
    }

    /// Every secret that is held, for keeping them over a restart.
    pub fn secrets(&self) -> impl Iterator<Item = (Epoch, &EpochSecret)> {
        self.secrets.iter().map(|(epoch, secret)| (*epoch, secret))
    }

    /// Gives up the secrets of an epoch before their time, after an unclean stop that lost its
    /// replay cache. They are not made again.
    pub fn withdraw(&mut self, epoch: Epoch) -> Option<KeyChange> {
        self.none_before = self.none_before.max(epoch + 1);
        self.secrets.remove(&epoch).map(|_| KeyChange::Erased(epoch))
    }
}

impl EpochSecret {
    /// Makes the secrets of an epoch.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self { sphinx: SecretKey::generate(rng), sealing: OpeningKey::generate(rng) }
    }

    /// The public halves.
    pub fn public(&self, epoch: Epoch) -> EpochKeys {
        let sealing = *self.sealing.sealing_key().as_bytes();
        EpochKeys { epoch, sphinx: *self.sphinx.public(), sealing }
    }
}

impl<R> fmt::Debug for KeyRing<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("epochs", &self.secrets.keys()).finish_non_exhaustive()
    }
}

impl fmt::Debug for EpochSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochSecret").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn keys_are_made_two_epochs_ahead_and_erased_after_the_grace() {
        let mut ring = ring();
        let made = |epochs: [u64; 3]| epochs.map(KeyChange::Made).to_vec();
        assert_eq!(ring.advance(time(100_000)), made([10, 11, 12]));
        assert_eq!(ring.next_deadline(time(100_000)), time(110_000));
        assert_eq!(ring.advance(time(110_000)), [KeyChange::Made(13)]);
        assert!(ring.secret(time(112_499), 10).is_some(), "within its grace");
        assert_eq!(ring.next_deadline(time(110_000)), time(112_500));
        assert!(ring.secret(time(112_500), 10).is_none(), "even before it is erased");
        assert_eq!(ring.advance(time(112_500)), [KeyChange::Erased(10)]);
        assert!(ring.secret(time(112_500), 12).is_none(), "its epoch has not begun");
        let epochs: Vec<_> = ring.published(time(112_500)).iter().map(|key| key.epoch).collect();
        assert_eq!(epochs, [11, 12, 13]);
    }

    #[test]
    fn what_was_erased_is_not_made_again_when_the_clock_is_set_back() {
        let mut ring = ring();
        ring.advance(time(200_000));
        assert_eq!(ring.advance(time(100_000)), []);
        assert!(ring.published(time(100_000)).is_empty());
        let secret = EpochSecret::generate(&mut StdRng::seed_from_u64(9));
        assert!(!ring.restore(time(100_000), 10, secret));
        assert_eq!(ring.advance(time(180_000)), []);
        assert_eq!(ring.published(time(190_000)).len(), 2);
    }

    #[test]
    fn a_restored_secret_stays_and_a_stale_one_is_dropped() {
        let mut ring = ring();
        let secret = || EpochSecret::generate(&mut StdRng::seed_from_u64(9));
        assert!(ring.restore(time(100_000), 10, secret()));
        assert!(!ring.restore(time(100_000), 8, secret()));
        assert!(!ring.restore(time(100_000), 13, secret()));
        assert_eq!(ring.advance(time(100_000)), [KeyChange::Made(11), KeyChange::Made(12)]);
        let kept = ring.secret(time(100_000), 10).unwrap();
        assert_eq!(kept.public(10), secret().public(10));
    }

    #[test]
    fn a_withdrawn_epoch_stays_without_keys() {
        let mut ring = ring();
        ring.advance(time(100_000));
        assert_eq!(ring.withdraw(10), Some(KeyChange::Erased(10)));
        assert_eq!(ring.advance(time(101_000)), []);
        assert!(ring.secret(time(101_000), 10).is_none());
        assert!(ring.secret(time(110_000), 11).is_some());
    }

    fn ring() -> KeyRing<StdRng> {
        let clock = EpochClock::new(Duration::from_secs(10)).unwrap();
        KeyRing::new(StdRng::seed_from_u64(1), clock)
    }

    fn time(millis: u64) -> Timestamp {
        Timestamp::try_from(millis).unwrap()
    }
}
