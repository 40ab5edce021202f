use std::{collections::BTreeSet, time::Duration};

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    replay::log_start,
    sphinx::{Class, Route, RouteStop, Surb},
};

#[test]
fn a_packet_is_logged_held_for_its_delay_and_passed_on() {
    let (mut relay, start) = relay(Config::default());
    let actions = feed(&mut relay, start, packet(1, 30));
    assert!(matches!(actions[..], [Action::Log { epoch: EPOCH, .. }]), "{actions:?}");
    assert_eq!(relay.next_deadline(), Some(start + ms(30)));
    assert!(wake(&mut relay, start + ms(29)).is_empty());
    let actions = wake(&mut relay, start + ms(30));
    let [Action::Forward { to, packet }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(*to, RelayId([2; 32]));
    assert_eq!(packet.class(), Class::Small);
}

#[test]
fn without_a_delay_a_packet_leaves_at_once_and_the_log_still_comes_first() {
    let (mut relay, start) = relay(Config::default());
    // Not even until the wheel's millisecond is full.
    let actions = feed(&mut relay, start + Duration::from_micros(300), packet(1, 0));
    assert!(matches!(actions[..], [Action::Log { .. }, Action::Forward { .. }]), "{actions:?}");
}

#[test]
fn a_delay_after_a_long_idle_time_is_kept() {
    let (mut relay, start) = relay(Config::default());
    let late = start + Duration::from_secs(120);
    feed(&mut relay, late, packet(1, 30));
    assert!(wake(&mut relay, late + ms(29)).is_empty());
    assert_eq!(wake(&mut relay, late + ms(31)).len(), 1);
}

#[test]
fn the_same_packet_again_is_dropped() {
    let (mut relay, start) = relay(Config::default());
    feed(&mut relay, start, packet(1, 30));
    assert!(feed(&mut relay, start, packet(1, 30)).is_empty());
    assert_eq!(relay.counts().replayed, 1);
}

#[test]
fn forged_packets_leave_no_tag_behind() {
    let (mut relay, start) = relay(Config::default());
    for at in 36..352 {
        let mut forged = packet(1, 30).into_bytes();
        forged[at] ^= 1;
        assert!(feed(&mut relay, start, Packet::from_bytes(forged).unwrap()).is_empty());
    }
    assert_eq!(relay.counts().refused, 316);
    assert_eq!(feed(&mut relay, start, packet(1, 30)).len(), 1, "the genuine one still passes");
}

#[test]
fn packets_of_an_epoch_without_a_key_are_dropped_and_so_are_all_once_it_is_closed() {
    let (mut relay, start) = relay(Config::default());
    let mut other = packet(1, 30).into_bytes();
    other[1] ^= 1;
    assert!(feed(&mut relay, start, Packet::from_bytes(other).unwrap()).is_empty());
    assert_eq!(relay.counts().no_epoch, 1);
    let closed = start + CLOSES_AFTER;
    assert!(feed(&mut relay, closed, packet(1, 30)).is_empty());
    assert_eq!(relay.counts().no_epoch, 2);
}

#[test]
fn the_next_epoch_opens_beside_this_one_but_not_the_one_after_it() {
    let (mut relay, start) = relay(Config::default());
    let cache = |epoch| ReplayCache::new(epoch, [1; 32], 100);
    let until = start + CLOSES_AFTER * 2;
    assert_eq!(relay.open_epoch(&[9; 32], cache(EPOCH + 1), until), Ok(()));
    let refused = relay.open_epoch(&[9; 32], cache(EPOCH + 2), until);
    assert_eq!(refused, Err(EpochError::Parity { epoch: EPOCH + 2, open: EPOCH }));
    wake(&mut relay, start + CLOSES_AFTER);
    assert_eq!(relay.open_epoch(&[9; 32], cache(EPOCH + 2), until), Ok(()));
}

#[test]
fn the_newest_is_dropped_when_too_much_is_held() {
    for config in [
        Config { held_packets: 3, ..Config::default() },
        Config { held_bytes: 3 * Class::Small.packet_len(), ..Config::default() },
    ] {
        let (mut relay, start) = relay(config);
        for seed in 0..5 {
            feed(&mut relay, start, packet(seed, 50));
        }
        assert_eq!((relay.held(), relay.counts().overflowed), (3, 2));
        assert_eq!(wake(&mut relay, start + ms(50)).len(), 3);
        assert_eq!(relay.held(), 0);
    }
}

#[test]
fn a_full_replay_cache_lets_nothing_new_pass() {
    let (mut relay, start) = relay_with(Config::default(), ReplayCache::new(EPOCH, [1; 32], 2));
    for seed in 0..4 {
        feed(&mut relay, start, packet(seed, 10));
    }
    assert_eq!((relay.held(), relay.counts().cache_full), (2, 2));
}

#[test]
fn what_ends_here_is_handed_over_at_once_and_others_packets_only_where_one_relays() {
    let (mut relay, start) = relay(Config { forwards: false, ..Config::default() });
    let mut rng = StdRng::seed_from_u64(5);
    let last = Packet::build(&mut rng, &route(1, 0), Class::Large, b"hello").unwrap();
    let actions = feed(&mut relay, start, last);
    let [Action::Log { .. }, Action::Deliver(packet)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(&packet.body()[..5], b"hello");

    let (surb, keys) = Surb::build(&mut rng, &route(1, 0), SurbId([6; 16])).unwrap();
    let (first, reply) = surb.reply(&mut rng, b"thanks").unwrap();
    assert_eq!(first, RelayId([1; 32]));
    let mut actions = feed(&mut relay, start, reply);
    let Some(Action::Reply { surb, packet }) = &mut actions.get_mut(1) else {
        panic!("{actions:?}")
    };
    assert_eq!(*surb, SurbId([6; 16]));
    assert_eq!(&keys.open(packet.payload_mut()).unwrap()[..6], b"thanks");

    assert_eq!(feed(&mut relay, start, super::tests::packet(7, 10)).len(), 1);
    assert_eq!((relay.held(), relay.counts().unserved), (0, 1));
}

#[test]
fn after_a_kill_at_any_point_no_packet_is_passed_on_twice() {
    let packets: Vec<Packet> = (0..12).map(|seed| packet(seed, 40)).collect();
    for killed_after in 0..packets.len() {
        for lost_bytes in [0, 1, 7, RECORD_LEN - 1] {
            let mut passed = BTreeSet::new();
            let mut log = log_start(EPOCH).to_vec();
            let (mut relay, start) = relay(Config::default());
            for (number, packet) in packets.iter().take(killed_after + 1).enumerate() {
                let now = start + ms(10 * number as u64);
                let actions = feed(&mut relay, now, packet.clone());
                obey(actions, &mut log, &mut passed);
            }
            // The process was killed within the last append: whatever came later never happened.
            log.truncate((log.len() - lost_bytes).max(log_start(EPOCH).len()));

            let recovered = ReplayCache::recover(EPOCH, [2; 32], 1000, &log).unwrap();
            log.truncate(recovered.log_len);
            let (mut relay, start) = relay_with(Config::default(), recovered.cache);
            for packet in packets.iter().chain(&packets) {
                let actions = feed(&mut relay, start, packet.clone());
                obey(actions, &mut log, &mut passed);
            }
            let actions = wake(&mut relay, start + ms(100));
            obey(actions, &mut log, &mut passed);
        }
    }
}

/// Carries actions out like a driver, and fails when a packet leaves a second time.
fn obey(actions: Vec<Action>, log: &mut Vec<u8>, passed: &mut BTreeSet<Vec<u8>>) {
    for action in actions {
        match action {
            Action::Log { record, .. } => log.extend(record),
            Action::Forward { packet, .. } => {
                assert!(passed.insert(packet.into_bytes().into_vec()), "a replay was passed on");
            }
            other => panic!("{other:?}"),
        }
    }
}

fn feed(relay: &mut Relay, now: Instant, packet: Packet) -> Vec<Action> {
    relay.handle(now, Event::Packet(packet)).collect()
}

fn wake(relay: &mut Relay, now: Instant) -> Vec<Action> {
    relay.handle(now, Event::Wake).collect()
}

fn relay(config: Config) -> (Relay, Instant) {
    relay_with(config, ReplayCache::new(EPOCH, [1; 32], 1000))
}

#[expect(clippy::disallowed_methods, reason = "virtual time needs a start")]
fn relay_with(config: Config, cache: ReplayCache) -> (Relay, Instant) {
    let start = Instant::now();
    let mut relay = Relay::new(config, start);
    relay.open_epoch(&[1; 32], cache, start + CLOSES_AFTER).unwrap();
    (relay, start)
}

/// A packet over relays 1 and 2; the same seed gives the same packet.
fn packet(seed: u64, delay: u64) -> Packet {
    let mut rng = StdRng::seed_from_u64(seed);
    Packet::build(&mut rng, &route(2, delay), Class::Small, b"hello").unwrap()
}

fn route(hops: u8, delay: u64) -> Route {
    let stops = (1..=hops)
        .map(|relay| RouteStop {
            id: RelayId([relay; 32]),
            key: X25519::public(&X25519::secret(&[relay; 32]).unwrap()).unwrap(),
            delay: ms(delay),
        })
        .collect();
    Route::new(EPOCH, stops).unwrap()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

const EPOCH: u64 = 500_000;
const CLOSES_AFTER: Duration = Duration::from_secs(3660);
