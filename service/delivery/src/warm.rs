//! To which gateways links are kept warm: those written to most of late, level by level.
//!
//! A link that is warm tells whoever watches it that something may be written there. So a message
//! counts only for transports that could have carried it: a gateway that was never written to at a
//! level that a transport offers is not named to it (design, section 8).

use std::collections::{BTreeSet, HashMap};

use fieldpost_envelope::{AnonymityLevel, GatewayId};

use crate::Time;

/// How much was written to each gateway lately. A message counts half as much after 20 minutes, and
/// one alone is forgotten after an hour.
#[derive(Debug, Default)]
pub struct Warm {
    gateways: HashMap<GatewayId, Written>,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    /// For each level that was asked for, from 0, what its messages weigh at `at`.
    weights: [f64; LEVELS],
    at: Time,
}

impl Warm {
    /// Gateways that are remembered; beyond, the half that was written to least is forgotten.
    pub const REMEMBERED: usize = 1024;
    /// The most links that are kept warm over one transport.
    pub const MOST: usize = 32;

    /// A message for `gateway` set out that needs `level`.
    pub fn wrote(&mut self, now: Time, gateway: GatewayId, level: AnonymityLevel) {
        if self.gateways.len() >= Self::REMEMBERED && !self.gateways.contains_key(&gateway) {
            self.make_room(now);
        }
        let fresh = Written { weights: [0.0; LEVELS], at: now };
        let written = self.gateways.entry(gateway).or_insert(fresh);
        *written = written.faded(now);
        if let Some(weight) = written.weights.get_mut(index(level)) {
            *weight += 1.0;
        }
    }

    /// The gateways to which a transport that offers `level` should keep its links warm: at most
    /// [`MOST`](Self::MOST), none of which was written to only at higher levels.
    pub fn gateways(&self, now: Time, level: AnonymityLevel) -> BTreeSet<GatewayId> {
        let mut wanted: Vec<(f64, GatewayId)> = self
            .gateways
            .iter()
            .map(|(gateway, written)| (written.weight_up_to(now, level), *gateway))
            .filter(|(weight, _)| *weight >= FORGOTTEN)
            .collect();
        wanted.sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| x.cmp(y)));
        wanted.into_iter().take(Self::MOST).map(|(_, gateway)| gateway).collect()
    }

    fn make_room(&mut self, now: Time) {
        let mut known: Vec<(f64, GatewayId)> = self
            .gateways
            .iter()
            .map(|(gateway, written)| {
                (written.weight_up_to(now, AnonymityLevel::HIGHEST), *gateway)
            })
            .collect();
        known.sort_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| x.cmp(y)));
        for (_, gateway) in known.iter().take(Self::REMEMBERED / 2) {
            self.gateways.remove(gateway);
        }
    }
}

impl Written {
    fn weight_up_to(&self, now: Time, level: AnonymityLevel) -> f64 {
        self.faded(now).weights.iter().take(index(level) + 1).sum()
    }

    fn faded(&self, now: Time) -> Self {
        let Ok(age) = (now - self.at).to_std() else { return *self };
        let factor = 0.5_f64.powf(age.as_secs_f64() / HALF_LIFE_S);
        Self { weights: self.weights.map(|weight| weight * factor), at: now }
    }
}

fn index(level: AnonymityLevel) -> usize {
    usize::from(u8::from(level))
}

const LEVELS: usize = 4;
const HALF_LIFE_S: f64 = 1200.0;
/// What one message weighs after an hour.
const FORGOTTEN: f64 = 0.125;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gateway_written_to_in_private_alone_is_named_to_no_transport_below() {
        let mut warm = Warm::default();
        for _ in 0..100 {
            warm.wrote(at(0), gateway(1), AnonymityLevel::HIGHEST);
        }
        warm.wrote(at(0), gateway(2), AnonymityLevel::NONE);
        assert_eq!(warm.gateways(at(1), AnonymityLevel::NONE), BTreeSet::from([gateway(2)]));
        assert_eq!(warm.gateways(at(1), AnonymityLevel::MEDIUM), BTreeSet::from([gateway(2)]));
        let both = BTreeSet::from([gateway(1), gateway(2)]);
        assert_eq!(warm.gateways(at(1), AnonymityLevel::HIGHEST), both);
    }

    #[test]
    fn an_hour_of_silence_is_forgotten_and_frequent_writing_lasts_longer() {
        let mut warm = Warm::default();
        warm.wrote(at(0), gateway(1), AnonymityLevel::NONE);
        for _ in 0..8 {
            warm.wrote(at(0), gateway(2), AnonymityLevel::NONE);
        }
        let known = |seconds| warm.gateways(at(seconds), AnonymityLevel::NONE);
        assert_eq!(known(3599), BTreeSet::from([gateway(1), gateway(2)]));
        assert_eq!(known(3601), BTreeSet::from([gateway(2)]));
        assert_eq!(known(3 * 3600), BTreeSet::new());
    }

    #[test]
    fn those_written_to_most_are_kept_and_memory_is_bounded() {
        let mut warm = Warm::default();
        for number in 0..3 * Warm::REMEMBERED {
            warm.wrote(at(0), gateway(number), AnonymityLevel::NONE);
            warm.wrote(at(0), gateway(0), AnonymityLevel::NONE);
        }
        assert!(warm.gateways.len() <= Warm::REMEMBERED);
        let kept = warm.gateways(at(0), AnonymityLevel::NONE);
        assert_eq!(kept.len(), Warm::MOST);
        assert!(kept.contains(&gateway(0)));
    }

    proptest! {
        #[test]
        fn no_transport_is_named_a_gateway_that_was_written_to_only_above_its_level(
            written in prop::collection::vec((0usize..6, 0u8..4, 0i64..10_000), 0..60),
            offered in 0u8..4,
        ) {
            let level = |number: u8| AnonymityLevel::try_from(number).unwrap();
            let mut warm = Warm::default();
            for (number, needed, second) in &written {
                warm.wrote(at(*second), gateway(*number), level(*needed));
            }
            for kept in warm.gateways(at(10_000), level(offered)) {
                let is_open = written
                    .iter()
                    .any(|(number, needed, _)| gateway(*number) == kept && *needed <= offered);
                prop_assert!(is_open);
            }
        }
    }

    fn gateway(number: usize) -> GatewayId {
        let mut bytes = [1; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        GatewayId::from_bytes(bytes)
    }

    fn at(seconds: i64) -> Time {
        Time::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds)
    }
}
