use std::time::Duration;

use fieldpost_mixnet::htx::{Action, Closed, Event, LinkError, Settings};

use crate::pair::{Pair, quiet};

#[test]
fn pings_are_never_periodic_and_measure_the_round_trip() {
    let mut pair = Pair::up(1, &quiet());
    let mut last = pair.client.now;
    let mut gaps = Vec::new();
    while gaps.len() < 50 {
        pair.run(Duration::from_millis(100));
        let answered = pair.client.news();
        if let [Action::RoundTrip(time)] = answered[..] {
            assert_eq!(time, Duration::ZERO);
            gaps.push((pair.client.now - last).as_millis());
            last = pair.client.now;
        }
        pair.server.news();
    }
    assert!(gaps.iter().all(|gap| (8_900..=66_100).contains(gap)), "{gaps:?}");
    let distinct: std::collections::BTreeSet<_> = gaps.iter().collect();
    assert!(distinct.len() > 40, "{gaps:?}");
}

#[test]
fn silence_after_a_ping_ends_the_link() {
    let mut pair = Pair::up(1, &quiet());
    let asked = pair.client.link.next_deadline().unwrap();
    pair.client.now = asked;
    pair.client.handle(Event::Wake);
    pair.carry(true);
    pair.server.wire.clear();
    pair.client.now = asked + Duration::from_millis(19_999);
    pair.client.handle(Event::Wake);
    assert!(pair.client.seen.is_empty());
    pair.client.now = asked + Duration::from_secs(20);
    pair.client.handle(Event::Wake);
    assert_eq!(pair.client.news(), [Action::Closed(Closed::Failed(LinkError::Silence))]);
    pair.settle();
    assert!(pair.server.news().contains(&Action::Closed(Closed::ByPeer(2))));
}

#[test]
fn a_link_that_says_something_else_is_not_silent() {
    let mut pair = Pair::up(1, &quiet());
    let stream = pair.server.link.open().unwrap();
    pair.client.now = pair.client.link.next_deadline().unwrap();
    pair.client.handle(Event::Wake);
    pair.client.wire.clear();
    for _ in 0..10 {
        pair.client.now += Duration::from_secs(15);
        pair.server.send(stream, b"busy");
        pair.carry(false);
        pair.client.handle(Event::Wake);
    }
    assert!(pair.client.is_up());
}

#[test]
fn cover_is_sent_after_a_moment_without_data() {
    let mut pair = Pair::up(1, &Settings::default());
    let (mut gaps, mut lengths) = (Vec::new(), Vec::new());
    let mut last = pair.client.now;
    while gaps.len() < 300 {
        pair.client.now = pair.client.link.next_deadline().unwrap();
        pair.client.handle(Event::Wake);
        while let Some(frame) = pair.client.wire.pop_front() {
            // Questions for a sign of life are shorter than all but the shortest cover.
            if frame.len() != 4 + 9 + 16 {
                gaps.push((pair.client.now - last).as_millis());
                lengths.push(frame.len() - 4 - 1 - 16);
                last = pair.client.now;
            }
            pair.server.handle(Event::Receive(&frame));
            pair.client.handle(Event::Transmitted(frame.len()));
        }
        pair.carry(false);
    }
    assert!(gaps.iter().all(|gap| (200..=1_200).contains(gap)), "{gaps:?}");
    assert!(lengths.iter().all(|length| *length <= 3 << 10), "{lengths:?}");
    let mean = |numbers: Vec<u128>| numbers.iter().sum::<u128>() / numbers.len() as u128;
    assert!((620..780).contains(&mean(gaps)));
    assert!((1_350..1_720).contains(&mean(lengths.iter().map(|n| *n as u128).collect())));
    assert!(pair.server.news().is_empty(), "cover means nothing");
}

#[test]
fn data_puts_cover_off() {
    let mut pair = Pair::up(1, &Settings::default());
    let stream = pair.client.link.open().unwrap();
    for _ in 0..100 {
        pair.client.now += Duration::from_millis(150);
        pair.client.handle(Event::Wake);
        pair.client.send(stream, b"data");
        assert!(pair.client.wire.iter().all(|frame| frame.len() == 5 + 4 + 16));
        pair.carry(true);
    }
}

#[test]
fn a_key_is_not_used_for_longer_than_an_hour() {
    let mut pair = Pair::up(1, &quiet());
    pair.run(Duration::from_secs(3_599));
    assert_eq!(pair.client.link.key_generations(), Some((0, 0)));
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.client.link.key_generations(), Some((1, 1)));
    pair.run(Duration::from_secs(3_600 * 3));
    assert_eq!(pair.server.link.key_generations(), Some((4, 4)));
}
