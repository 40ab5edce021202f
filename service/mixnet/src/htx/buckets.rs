//! How many tickets may be shown from one corner of the network (HTX reference, section 1.2).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

/// How many tickets a /24 (IPv4) or a /56 (IPv6) may show.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BucketLimits {
    /// At once, after a rest.
    pub burst: u32,
    /// Time until one more is allowed, in milliseconds.
    pub refill_ms: u64,
    /// How many corners are remembered. Further ones share one bucket.
    pub corners: usize,
}

impl Default for BucketLimits {
    /// 30 at once, then one every 2 s; 16 384 corners.
    fn default() -> Self {
        Self { burst: 30, refill_ms: 2_000, corners: 1 << 14 }
    }
}

/// Token buckets, one for each corner.
///
/// At [`BucketLimits::corners`] those that are full again are forgotten, which changes nothing for
/// them. While none is, strangers share one bucket: a flood from everywhere costs newcomers their
/// way in, not us our memory.
pub(super) struct Buckets {
    limits: BucketLimits,
    corners: BTreeMap<Corner, Bucket>,
    shared: Option<Bucket>,
    swept_ms: u64,
}

#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Corner {
    V4([u8; 3]),
    V6([u8; 7]),
}

/// Kept as the time at which it is full again.
#[derive(Clone, Copy)]
struct Bucket {
    full_at_ms: u64,
}

impl Buckets {
    pub(super) fn new(limits: BucketLimits) -> Self {
        Self { limits, corners: BTreeMap::new(), shared: None, swept_ms: 0 }
    }

    /// Takes one token for this address, if there is one.
    pub(super) fn take(&mut self, now_ms: u64, address: IpAddr) -> bool {
        let corner = Corner::of(address);
        if !self.corners.contains_key(&corner) {
            self.make_room(now_ms);
        }
        let known = self.corners.contains_key(&corner) || self.corners.len() < self.limits.corners;
        let bucket = if known {
            self.corners.entry(corner).or_insert(Bucket { full_at_ms: now_ms })
        } else {
            self.shared.get_or_insert(Bucket { full_at_ms: now_ms })
        };
        bucket.take(now_ms, self.limits)
    }

    fn make_room(&mut self, now_ms: u64) {
        // Sweeping a full table costs much, so it is not done for each stranger of a flood.
        let rested = now_ms.abs_diff(self.swept_ms) >= SWEEP_EVERY_MS;
        if self.corners.len() >= self.limits.corners && rested {
            self.swept_ms = now_ms;
            self.corners.retain(|_, bucket| bucket.full_at_ms > now_ms);
        }
    }
}

impl Bucket {
    fn take(&mut self, now_ms: u64, limits: BucketLimits) -> bool {
        let burst_ms = limits.refill_ms * u64::from(limits.burst);
        // A clock that was set back must not lock anybody out for longer than a burst.
        let full_at = self.full_at_ms.clamp(now_ms, now_ms + burst_ms);
        let taken = full_at + limits.refill_ms;
        let has_token = taken <= now_ms + burst_ms;
        self.full_at_ms = if has_token { taken } else { full_at };
        has_token
    }
}

impl Corner {
    fn of(address: IpAddr) -> Self {
        let v6 = |address: Ipv6Addr| {
            let [a, b, c, d, e, f, g, ..] = address.octets();
            Self::V6([a, b, c, d, e, f, g])
        };
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(address) => v6(address),
        }
    }
}

const SWEEP_EVERY_MS: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BucketLimits = BucketLimits { burst: 3, refill_ms: 1_000, corners: 2 };

    #[test]
    fn a_corner_has_a_burst_and_then_a_rate() {
        let mut buckets = Buckets::new(LIMITS);
        let taken = |buckets: &mut Buckets, now| {
            (0..10).filter(|_| buckets.take(now, address("192.0.2.1"))).count()
        };
        assert_eq!(taken(&mut buckets, 5_000), 3);
        assert_eq!(taken(&mut buckets, 5_999), 0);
        assert_eq!(taken(&mut buckets, 7_000), 2);
        assert_eq!(taken(&mut buckets, 1_000_000), 3);
        assert_eq!(taken(&mut buckets, 500), 0, "the clock was set back");
        assert_eq!(taken(&mut buckets, 1_500), 1, "but not for long");
    }

    #[test]
    fn neighbours_share_a_bucket_and_others_do_not() {
        for (one, neighbour, other) in [
            ("192.0.2.1", "192.0.2.255", "192.0.3.1"),
            ("192.0.2.1", "::ffff:192.0.2.9", "::ffff:192.0.3.1"),
            ("2001:db8:0:aa00::1", "2001:db8:0:aaff::1", "2001:db8:0:ab00::1"),
        ] {
            let mut buckets = Buckets::new(BucketLimits { burst: 1, ..LIMITS });
            assert!(buckets.take(0, address(one)));
            assert!(!buckets.take(0, address(neighbour)));
            assert!(buckets.take(0, address(other)));
        }
    }

    #[test]
    fn strangers_share_a_bucket_while_the_table_is_full() {
        let mut buckets = Buckets::new(LIMITS);
        assert!(buckets.take(0, address("10.0.0.1")));
        assert!(buckets.take(0, address("10.0.1.1")));
        let strangers = (2..20_u8).map(|corner| IpAddr::from([10, 0, corner, 1]));
        assert_eq!(strangers.filter(|address| buckets.take(0, *address)).count(), 3);
        assert!(buckets.take(0, address("10.0.0.1")), "the known keep their own");
        assert_eq!(buckets.corners.len(), 2);
        assert!(buckets.take(60_000, address("10.9.9.9")));
        assert_eq!(buckets.corners.len(), 1, "the rested were forgotten");
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}
