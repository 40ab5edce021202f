//! What holds in every world, whatever is cut and when.

use std::time::Duration;

use fieldpost_envelope::{Listing, Roster, SignedRoster};
use fieldpost_peering::{Event, LinkId, SendFailure, Target, Token, limits};
use rand::RngExt;

use crate::world::{World, gateway_key};

#[test]
fn every_wish_is_settled_once_and_what_was_taken_is_there() {
    for seed in seeds(40) {
        let mut world = World::new(seed, 4);
        world.introduce();
        let mut wishes: Vec<(usize, usize, Token, Vec<u8>)> = vec![];
        for step in 0_u32..60 {
            let from = world.rng.random_range(0..4);
            let to = (from + world.rng.random_range(1..4)) % 4;
            match world.rng.random_range(0..10) {
                0 => world.cut(from, to),
                1 => world.heal(),
                2 => world.feed(from, Event::NetworkChanged),
                _ => {
                    let mut envelope = step.to_be_bytes().to_vec();
                    envelope.resize(world.rng.random_range(4..100_000), 7);
                    let target = Target::Gateway(world.nodes[to].gateway);
                    let token = world.send(from, target, envelope.clone());
                    wishes.push((from, to, token, envelope));
                }
            }
            let pause = world.rng.random_range(0..1500);
            world.run(Duration::from_millis(pause));
        }
        world.heal();
        world.run(Duration::from_secs(90));
        for (from, to, token, envelope) in wishes {
            let result = world.nodes[from].settled.get(&token);
            let result = result.unwrap_or_else(|| panic!("seed {seed}: {token:?} was not settled"));
            let is_there = world.nodes[to].inbox.contains(&envelope.into());
            assert!(is_there || result.is_err(), "seed {seed}: {token:?} was taken and is gone");
        }
        one_link_for_each_two(&mut world, seed);
    }
}

#[test]
fn two_that_dial_each_other_at_once_keep_one_link() {
    for seed in seeds(200) {
        let mut world = World::new(seed, 2);
        world.introduce();
        // Whatever head start one had is lost.
        world.feed(0, Event::NetworkChanged);
        world.feed(1, Event::NetworkChanged);
        world.run(Duration::from_secs(2));
        one_link_for_each_two(&mut world, seed);
    }
}

#[test]
fn a_silent_link_is_noticed_within_three_seconds_and_replaced_within_two() {
    for seed in seeds(100) {
        let mut world = World::new(seed, 2);
        world.introduce();
        world.run(Duration::from_secs(3));
        assert_eq!(world.nodes[0].core.gateways().count(), 1);
        world.cut(0, 1);
        world.run(Duration::from_secs(3));
        for node in &world.nodes {
            assert_eq!(node.core.gateways().count(), 0, "seed {seed}");
        }
        let away = world.rng.random_range(0..60_000);
        world.run(Duration::from_millis(away));
        world.heal();
        world.run(Duration::from_secs(2));
        let tokens = [(0, 1), (1, 0)].map(|(from, to)| {
            let target = Target::Gateway(world.nodes[to].gateway);
            (from, world.send(from, target, vec![1; 10]))
        });
        world.run(Duration::from_secs(3));
        for (from, token) in tokens {
            assert_eq!(world.nodes[from].settled[&token], Ok(()), "seed {seed}");
        }
        one_link_for_each_two(&mut world, seed);
    }
}

#[test]
fn nothing_is_lost_while_one_of_two_links_is_given_up() {
    for seed in seeds(200) {
        let mut world = World::new(seed, 2);
        world.introduce();
        world.feed(0, Event::NetworkChanged);
        world.feed(1, Event::NetworkChanged);
        let mut tokens = vec![];
        for _ in 0..600 {
            world.run(Duration::from_millis(3));
            for (from, to) in [(0, 1), (1, 0)] {
                let gateway = world.nodes[to].gateway;
                if world.nodes[from].core.link_to(gateway).is_some() {
                    tokens.push((from, world.send(from, Target::Gateway(gateway), vec![1; 10])));
                }
            }
        }
        world.run(Duration::from_secs(3));
        for (from, token) in tokens {
            assert_eq!(world.nodes[from].settled[&token], Ok(()), "seed {seed}");
        }
        one_link_for_each_two(&mut world, seed);
    }
}

#[test]
fn who_never_answers_is_dialled_ever_more_seldom() {
    let mut world = World::new(1, 2);
    world.cut(0, 1);
    let node = world.nodes[1].id;
    world.feed(0, Event::Found { node, source: fieldpost_peering::Source::Bootstrap });
    world.run(Duration::from_secs(600));
    let dials = &world.nodes[0].dials;
    let last: Vec<_> = dials.windows(2).rev().take(5).map(|two| two[1] - two[0]).collect();
    assert!((20..60).contains(&dials.len()), "{} dials in ten minutes", dials.len());
    assert!(last.iter().all(|gap| *gap > Duration::from_secs(20)), "{last:?}");
    world.heal();
    world.run(Duration::from_secs(32));
    assert_eq!(world.nodes[0].core.gateways().count(), 1);
}

#[test]
fn a_neighbour_that_takes_nothing_up_is_told_to_come_later() {
    let mut world = World::new(2, 3);
    world.introduce();
    world.run(Duration::from_secs(3));
    world.nodes[1].drains = false;
    let target = Target::Gateway(world.nodes[1].gateway);
    let mut tokens = vec![];
    for _ in 0..4 {
        tokens.extend((0..500).map(|_| world.send(0, target, vec![0; 200])));
        world.run(Duration::from_secs(1));
    }
    let taken = tokens.iter().filter(|token| world.nodes[0].settled[token].is_ok()).count();
    assert_eq!(taken, limits::INBOX_ENVELOPES / limits::INBOX_SHARE);
    assert_eq!(world.nodes[0].settled[tokens.last().unwrap()], Err(SendFailure::Busy));
    // Another gateway still finds room.
    let token = world.send(2, target, vec![0; 200]);
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[2].settled[&token], Ok(()));
    let (gateway, bytes) = (world.nodes[0].gateway, 200 * 1024);
    world.feed(1, Event::Drained { gateway, envelopes: 1024, bytes });
    let token = world.send(0, target, vec![0; 200]);
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[0].settled[&token], Ok(()));
}

#[test]
fn a_broadcast_reaches_every_gateway() {
    let mut world = World::new(3, 5);
    world.introduce();
    world.run(Duration::from_secs(3));
    let token = world.send(0, Target::Everybody, b"hello".to_vec());
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[0].settled[&token], Ok(()));
    for node in &world.nodes[1..] {
        assert_eq!(node.inbox.len(), 1);
    }
}

#[test]
fn everybody_ends_with_the_newest_roster_whatever_was_cut() {
    for seed in seeds(30) {
        let mut world = World::new(seed, 3);
        world.introduce();
        let mut last: Option<Roster> = None;
        for number in 1..=20 {
            let whole = roster(number);
            let delta =
                last.as_ref().map(|last| whole.delta_from(last).sign(&gateway_key(1)).unwrap());
            let event = Event::Publish { roster: whole.sign(&gateway_key(1)).unwrap(), delta };
            world.feed(0, event);
            last = Some(whole);
            match world.rng.random_range(0..6) {
                0 => world.cut(0, 1),
                1 => world.heal(),
                _ => {}
            }
            let pause = world.rng.random_range(0..3000);
            world.run(Duration::from_millis(pause));
        }
        world.heal();
        world.run(Duration::from_secs(40));
        for node in &world.nodes[1..] {
            let (mut known, mut peers) = (0, std::collections::BTreeSet::new());
            for (bytes, is_nearby) in &node.rosters {
                assert!(*is_nearby);
                let heard = SignedRoster::decode(bytes).unwrap().verify().unwrap();
                match heard.base {
                    None => peers.clear(),
                    Some(base) => {
                        assert_eq!(base, known, "seed {seed}: a delta that does not follow");
                    }
                }
                assert!(heard.number > known, "seed {seed}: an old roster was passed up");
                known = heard.number;
                peers.extend(heard.peers.into_iter().map(|listing| listing.peer));
                heard.removed.iter().for_each(|peer| assert!(peers.remove(peer)));
            }
            assert_eq!((known, peers.len()), (20, roster(20).peers.len()), "seed {seed}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let history = |seed| {
        let mut world = World::new(seed, 3);
        world.introduce();
        world.run(Duration::from_secs(5));
        world.cut(0, 2);
        world.run(Duration::from_secs(20));
        let counters = world.nodes.iter().map(|node| format!("{:?}", node.core.counters()));
        counters.collect::<Vec<_>>()
    };
    assert_eq!(history(9), history(9));
}

/// `FIELDPOST_SEEDS=FROM-TO` tries others than these.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("FIELDPOST_SEEDS").ok();
    let asked = asked.as_deref().and_then(|text| text.split_once('-'));
    match asked.and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?))) {
        Some((from, to)) => from..to,
        None => 0..count,
    }
}

fn one_link_for_each_two(world: &mut World, seed: u64) {
    let count = world.nodes.len();
    let links = |world: &World, from: usize, to: usize| -> Option<LinkId> {
        world.nodes[from].core.link_to(world.nodes[to].gateway)
    };
    for one in 0..count {
        assert_eq!(world.nodes[one].core.links(), count - 1, "seed {seed}: links of {one}");
        for other in 0..one {
            let (there, back) = (links(world, one, other), links(world, other, one));
            assert!(there.is_some() && there == back, "seed {seed}: {there:?} and {back:?}");
        }
    }
}

fn roster(number: u64) -> Roster {
    let listing = |index: u64| Listing {
        peer: format!("peer-{index:03}").parse().unwrap(),
        display_name: Some("somebody with a rather long name".into()),
    };
    Roster {
        gateway: gateway_key(1).verifying_key().into(),
        number,
        base: None,
        // Some come and some go with each number.
        peers: (number * 2..number * 3 + 40).map(listing).collect(),
        removed: vec![],
    }
}
