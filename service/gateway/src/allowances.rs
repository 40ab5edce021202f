//! How much one gateway may send us a second.
//!
//! What is over it is dropped without an answer: whoever sent it sends it again, later each time. Ids of
//! gateways cost nothing to make, so all that are not trusted share an allowance besides their own.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use fieldpost_envelope::GatewayId;

/// Gateways that are remembered; beyond, the half heard longest ago is forgotten, and begins anew.
const MAX_GATEWAYS: usize = 8192;
/// How many times the allowance of one gateway all strangers have together.
const STRANGERS: f64 = 2.0;
/// How many seconds' worth may come at once.
const BURST_SECONDS: f64 = 2.0;

/// What each gateway has left.
#[derive(Debug)]
pub struct Allowances {
    /// What one gets a second.
    rate: f64,
    left: Mutex<Left>,
}

#[derive(Debug)]
struct Left {
    gateways: HashMap<GatewayId, Bucket>,
    strangers: Option<Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Allowances {
    /// So many a second for each gateway.
    pub fn new(a_second: u32) -> Self {
        let left = Left { gateways: HashMap::new(), strangers: None };
        Self { rate: f64::from(a_second), left: Mutex::new(left) }
    }

    /// Whether one more thing of `gateway` may be taken now.
    pub fn admit(&self, now: Instant, gateway: GatewayId, is_trusted: bool) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if left.gateways.len() >= MAX_GATEWAYS && !left.gateways.contains_key(&gateway) {
            left.forget_old();
        }
        let rate = self.rate;
        let own = left.gateways.entry(gateway).or_insert_with(|| Bucket::full(now, rate));
        own.fill(now, rate);
        let own_has = own.tokens >= 1.0;
        let others_have = is_trusted || {
            let rate = STRANGERS * rate;
            let strangers = left.strangers.get_or_insert_with(|| Bucket::full(now, rate));
            strangers.fill(now, rate);
            strangers.tokens >= 1.0
        };
        if !(own_has && others_have) {
            return false;
        }
        if let Some(own) = left.gateways.get_mut(&gateway) {
            own.tokens -= 1.0;
        }
        if !is_trusted && let Some(strangers) = &mut left.strangers {
            strangers.tokens -= 1.0;
        }
        true
    }
}

impl Left {
    fn forget_old(&mut self) {
        let mut times: Vec<Instant> = self.gateways.values().map(|bucket| bucket.at).collect();
        let half = times.len() / 2;
        let middle = *times.select_nth_unstable(half).1;
        self.gateways.retain(|_, bucket| bucket.at > middle);
    }
}

impl Bucket {
    fn full(now: Instant, rate: f64) -> Self {
        Self { tokens: BURST_SECONDS * rate, at: now }
    }

    fn fill(&mut self, now: Instant, rate: f64) {
        let passed: Duration = now.saturating_duration_since(self.at);
        self.tokens = (self.tokens + passed.as_secs_f64() * rate).min(BURST_SECONDS * rate);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_gateway_that_is_too_fast_waits_and_others_do_not() {
        let (allowances, now) = (Allowances::new(10), Clock::default().instant());
        let admitted = |now, id, trusted| {
            (0..100).filter(|_| allowances.admit(now, gateway(id), trusted)).count()
        };
        assert_eq!(admitted(now, 1, true), 20);
        assert_eq!(admitted(now, 2, true), 20);
        assert_eq!(admitted(now + Duration::from_secs(1), 1, true), 10);
    }

    #[test]
    fn strangers_share_and_leave_the_trusted_theirs() {
        let (allowances, now) = (Allowances::new(10), Clock::default().instant());
        let admitted = (0..1000).filter(|id| allowances.admit(now, gateway(*id), false)).count();
        assert_eq!(admitted, 40);
        assert!(allowances.admit(now, gateway(5000), true));
    }

    #[test]
    fn memory_is_bounded() {
        let allowances = Allowances::new(1_000_000);
        let start = Clock::default().instant();
        for id in 0..3 * MAX_GATEWAYS as u32 {
            allowances.admit(start + Duration::from_micros(u64::from(id)), gateway(id), false);
        }
        let left = allowances.left.lock().unwrap();
        assert!(left.gateways.len() <= MAX_GATEWAYS);
        assert!(left.gateways.contains_key(&gateway(3 * MAX_GATEWAYS as u32 - 1)));
    }

    fn gateway(id: u32) -> GatewayId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&id.to_be_bytes());
        GatewayId::from_bytes(bytes)
    }
}
