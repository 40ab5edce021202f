//! When a link speaks although nobody asked it to (HTX reference, section 1.2, "H2 emulation").

use std::time::Duration;

use rand::{CryptoRng, RngExt};

use super::frame::MAX_COVER;

/// Until the next question for a sign of life: 10 to 60 s, give or take a tenth.
pub(super) fn until_ping(rng: &mut impl CryptoRng) -> Duration {
    let base = rng.random_range(10_000..=60_000_u64);
    Duration::from_millis(base * rng.random_range(900..=1_100) / 1_000)
}

/// How long a link is without data before it sends cover: 200 to 1200 ms.
pub(super) fn until_cover(rng: &mut impl CryptoRng) -> Duration {
    Duration::from_micros(rng.random_range(200_000..=1_200_000))
}

/// How much cover: 0 to 3 KiB.
pub(super) fn cover_length(rng: &mut impl CryptoRng) -> usize {
    rng.random_range(0..=MAX_COVER)
}

/// A link on which nothing was heard for so long after a question is dead.
pub(super) const SILENCE: Duration = Duration::from_secs(20);

/// A handshake takes three messages; one that takes longer than this is not meant seriously.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);
