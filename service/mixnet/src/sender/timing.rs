//! How long the network takes, beside the delays that were chosen.

use std::time::Duration;

/// Smoothed time both ways and its mean deviation, as TCP keeps them (RFC 6298).
pub(super) struct NetworkTime {
    smoothed: Duration,
    deviation: Duration,
    measured: bool,
}

impl Default for NetworkTime {
    fn default() -> Self {
        Self {
            smoothed: Duration::from_secs(1),
            deviation: Duration::from_millis(250),
            measured: false,
        }
    }
}

impl NetworkTime {
    /// Takes in how long an answer took both ways, chosen delays taken off.
    pub(super) fn measure(&mut self, took: Duration) {
        if self.measured {
            let off = took.abs_diff(self.smoothed);
            self.deviation = self.deviation * 3 / 4 + off / 4;
            self.smoothed = self.smoothed * 7 / 8 + took / 8;
        } else {
            (self.smoothed, self.deviation, self.measured) = (took, took / 2, true);
        }
    }

    /// How long to wait for an answer in `round`, from 1, beside chosen delays. The time is
    /// measured both ways, so it counts once; later rounds wait longer.
    pub(super) fn patience(&self, round: u32) -> Duration {
        let patience = (self.smoothed + self.deviation.max(LEAST) * 4).max(LEAST * 4);
        (patience * 2_u32.pow(round.saturating_sub(1).min(6))).min(MOST)
    }
}

const LEAST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_what_was_measured() {
        let mut network = NetworkTime::default();
        assert_eq!(network.patience(1), Duration::from_secs(2));
        for _ in 0..50 {
            network.measure(Duration::from_millis(80));
        }
        let patience = network.patience(1);
        assert!((275..=285).contains(&patience.as_millis()), "{patience:?}");
        assert_eq!(network.patience(3), patience * 4);
        network.measure(Duration::from_secs(2));
        assert!(network.patience(1) > patience * 4);
        assert_eq!(network.patience(60), MOST);
    }
}
