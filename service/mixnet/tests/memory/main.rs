//! What the cores take from the allocator, measured.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::time::{Duration, Instant};

use allocation_counter::measure;
use fieldpost_mixnet::{
    fragment::{Fragment, Layout, Limits, Reassembly, TransferId, split},
    relay::{self, Relay},
    replay::ReplayCache,
    sphinx::{
        Class, Group, Packet, Production, RelayId, ReplayTag, Route, RouteStop, X25519, open,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const EPOCH: u64 = 500_000;

#[test]
fn a_hop_allocates_only_what_the_library_needs_for_two_products() {
    let secret = X25519::secret(&[1; 32]).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    for class in Class::ALL {
        let mut packets: Vec<Packet> =
            (0..2).map(|_| Packet::build(&mut rng, &route(3), class, b"hello").unwrap()).collect();
        // The first one fills what is made once for the process.
        let hop = |packet: &mut Packet| {
            open::<Production>(&secret, &EPOCH, packet.as_bytes_mut()).unwrap().process().unwrap()
        };
        hop(&mut packets[0]);
        let taken = measure(|| {
            hop(&mut packets[1]);
        });
        // aws-lc-rs copies each element and each product into 32 bytes of its own. Its C library
        // takes memory for keys too, which is not seen here.
        assert_eq!((taken.count_total, taken.bytes_total), (4, 128), "{class:?}");
        assert_eq!(taken.count_current, 0);
    }
}

#[test]
fn a_relay_in_its_stride_allocates_no_more_than_its_hops() {
    let start = start();
    let mut relay = Relay::new(relay::Config::default(), start);
    let cache = ReplayCache::new(EPOCH, [1; 32], 100_000);
    relay.open_epoch(&[1; 32], cache, start + Duration::from_secs(3600)).unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    let mut feed = |relay: &mut Relay, count: u64| {
        let packets: Vec<Packet> = (0..count)
            .map(|_| Packet::build(&mut rng, &route(3), Class::Small, b"hello").unwrap())
            .collect();
        measure(|| {
            for packet in packets {
                relay.handle(start, relay::Event::Packet(packet)).for_each(drop);
            }
        })
    };
    feed(&mut relay, 5000);
    let taken = feed(&mut relay, 200);
    // Two products each, and now and then a shard of the replay cache that grows.
    assert!(taken.count_total <= 4 * 200 + 20, "{taken:?}");
}

#[test]
fn a_million_replay_tags_take_at_most_17_megabytes() {
    let mut cache = None;
    let taken = measure(|| {
        let mut filled = ReplayCache::new(EPOCH, [1; 32], 1_000_000);
        let mut rng = StdRng::seed_from_u64(3);
        for _ in 0..1_000_000 {
            filled.insert(ReplayTag(rng.random())).unwrap();
        }
        cache = Some(filled);
    });
    assert!(taken.bytes_current <= 17_000_000, "{} bytes", taken.bytes_current);
    // Shards grow one at a time, so that growing does not double the memory either.
    assert!(taken.bytes_max <= 17_200_000, "{} bytes", taken.bytes_max);
    drop(cache);
}

#[test]
fn reassembly_under_attack_stays_within_its_bound() {
    let limits = Limits { bytes: 4 * 1024 * 1024, ..Limits::default() };
    let mut rng = StdRng::seed_from_u64(4);
    let start = start();
    let mut reassembly = Reassembly::new(limits);
    let mut most = 0;
    // The code makes its tables once for the process, 8 MiB of them.
    let (_, shards) = split(Class::Small, &vec![0; 20_000]).unwrap();
    let missing_one = shards.iter().enumerate().skip(1).take(12);
    reed_solomon_simd::decode(13, 2, missing_one, [(0, &shards[13])]).unwrap();
    let taken = measure(|| {
        let shard = vec![7; Class::Large.body_len()];
        for number in 0..60_000_u64 {
            // Lengths from one fragment to the longest, few transfers and many, gaps and repeats.
            let class = Class::ALL[usize::from(rng.random_range(0..4) == 0)];
            let crowd: u64 = if number % 2 == 0 { 40 } else { 1_000_000 };
            let sender = rng.random_range(0..crowd);
            let sealed_len = 2000 + (sender as usize * 7919) % 1_100_000;
            let layout = Layout::new(class, sealed_len).unwrap();
            let mut transfer = TransferId([class as u8; 16]);
            transfer.0[..8].copy_from_slice(&sender.to_be_bytes());
            let index = rng.random_range(0..layout.count());
            let shard = &shard[..layout.shard_len()];
            let fragment =
                Fragment { transfer, index, layout, again: false, asks: false, surb: None, shard };
            let now = start + Duration::from_millis(number);
            let _ = reassembly.insert(now, &fragment);
            reassembly.expire(now);
            most = most.max(reassembly.bytes());
        }
    });
    assert!(most <= limits.bytes && most > limits.bytes / 2, "{most} bytes counted");
    assert!(reassembly.evicted() > 1000);
    // The bound, and for a moment three times the longest message, to put it together.
    let bound = limits.bytes as u64 + 4 * 1_180_000;
    assert!(taken.bytes_max <= bound, "{} bytes taken, {bound} allowed", taken.bytes_max);
    assert!(taken.bytes_current <= limits.bytes as i64, "{} bytes kept", taken.bytes_current);
}

fn route(hops: u8) -> Route {
    let stops = (1..=hops)
        .map(|relay| RouteStop {
            id: RelayId([relay; 32]),
            key: X25519::public(&X25519::secret(&[relay; 32]).unwrap()).unwrap(),
            delay: Duration::ZERO,
        })
        .collect();
    Route::new(EPOCH, stops).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "virtual time needs a start")]
fn start() -> Instant {
    Instant::now()
}
