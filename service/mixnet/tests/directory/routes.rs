use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use fieldpost_mixnet::directory::{
    Descriptor, Document, Route, RouteChooser, RouteError, RoutePolicy, Rule,
};
use rand::{SeedableRng, rngs::StdRng};

use crate::fixtures::{EPOCH, clock, descriptor, genesis, hidden, id, time, weighted};

#[test]
fn a_route_is_three_different_relays_and_the_receiver() {
    let document = document(&diverse(1..=20));
    let mut chooser = chooser(1);
    for _ in 0..200 {
        let route = choose(&mut chooser, &document, 1, 3).unwrap();
        let distinct: BTreeSet<_> = route.relays.iter().chain([&route.receiver]).collect();
        assert_eq!((distinct.len(), route.receiver), (4, id(1)));
        assert_eq!((route.relaxed, route.epoch), (vec![], EPOCH));
    }
    for relays in 1..=4 {
        let route = choose(&mut chooser, &document, 1, relays).unwrap();
        assert_eq!(route.relays.len(), relays);
    }
    for relays in [0, 5] {
        let error = RouteError::Length { relays };
        assert_eq!(choose(&mut chooser, &document, 1, relays), Err(error));
    }
}

#[test]
fn every_relay_comes_equally_often_in_every_place() {
    let document = document(&diverse(1..=13));
    let mut chooser = chooser(2);
    let mut counts = BTreeMap::new();
    for _ in 0..6_000 {
        for (place, relay) in
            choose(&mut chooser, &document, 1, 3).unwrap().relays.iter().enumerate()
        {
            *counts.entry((place, *relay)).or_insert(0_u32) += 1;
        }
    }
    assert_eq!(counts.len(), 3 * 12);
    // 500 are expected; the standard deviation is 21.
    assert!(counts.values().all(|count| (400..600).contains(count)), "{counts:?}");
}

#[test]
fn a_relay_that_is_avoided_is_on_no_route_until_it_is_not() {
    let document = document(&diverse(1..=5));
    let mut chooser = chooser(11);
    let policy = RoutePolicy { least_relays: 1, ..RoutePolicy::default() };
    chooser.avoid([id(2), id(3)].into());
    for _ in 0..100 {
        let route = chooser.choose(time(0), &document, &id(1), policy).unwrap();
        // Four relays beside the receiver, two of them avoided: a shorter route.
        assert_eq!(route.relays.iter().collect::<BTreeSet<_>>(), [&id(4), &id(5)].into());
    }
    let strict = chooser.choose(time(0), &document, &id(1), RoutePolicy::default());
    assert_eq!(strict, Err(RouteError::TooFewRelays { count: 2, needed: 3 }));
    chooser.avoid(BTreeSet::new());
    assert_eq!(chooser.check(time(0), &document, &id(1), RoutePolicy::default()), Ok(()));
    let routes = (0..100).map(|_| chooser.choose(time(0), &document, &id(1), policy).unwrap());
    let seen: BTreeSet<_> = routes.flat_map(|route| route.relays).collect();
    assert_eq!(seen.len(), 4);
}

#[test]
fn the_same_seed_draws_the_same_routes() {
    let document = document(&diverse(1..=20));
    let drawn = |seed| {
        let mut chooser = chooser(seed);
        (0..5).map(|_| choose(&mut chooser, &document, 1, 3).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(drawn(5), drawn(5));
    assert_ne!(drawn(5), drawn(6));
}

#[test]
fn rules_of_diversity_are_kept_while_they_can_be() {
    // Twenty relays: pairs of one operator, one network, one system; four countries.
    let mut relays = diverse(1..=20);
    for (index, relay) in relays.iter_mut().enumerate() {
        let pair = index / 2;
        match index % 3 {
            0 => relay.operator = format!("operator of pair {pair}"),
            1 => {
                relay.addresses = vec![SocketAddr::from(([10, 200 + (pair % 5) as u8, 0, 1], 443))];
            }
            _ => relay.autonomous_system = Some(pair as u32 % 4),
        }
        relay.country = Some([b'A', b'A' + (index % 4) as u8]);
    }
    let document = document(&relays);
    let mut chooser = chooser(3);
    let by_id: BTreeMap<_, _> = relays.iter().map(|relay| (relay.id(), relay)).collect();
    for _ in 0..300 {
        let route = choose(&mut chooser, &document, 1, 4).unwrap();
        if !route.relaxed.is_empty() {
            continue;
        }
        let hops: Vec<_> =
            route.relays.iter().chain([&route.receiver]).map(|id| by_id[id]).collect();
        let distinct = |of: &dyn Fn(&Descriptor) -> String| {
            hops.iter().map(|hop| of(hop)).collect::<BTreeSet<_>>().len()
        };
        assert_eq!(distinct(&|hop| hop.operator.clone()), 5);
        assert_eq!(distinct(&|hop| format!("{:?}", hop.autonomous_system)), 5);
        assert!(distinct(&|hop| format!("{:?}", hop.country)) >= 3);
    }
    let relaxed = (0..300)
        .filter(|_| !choose(&mut chooser, &document, 1, 3).unwrap().relaxed.is_empty())
        .count();
    assert!(relaxed < 15, "{relaxed} of 300");
}

#[test]
fn three_relays_on_one_machine_make_a_route_that_says_what_it_lacks() {
    let mut relays = diverse(1..=4);
    for relay in &mut relays {
        relay.operator = "me".into();
        relay.addresses = vec![SocketAddr::from(([127, 0, 0, 1], 4_000 + relay.noise[0] as u16))];
        (relay.autonomous_system, relay.country) = (None, None);
    }
    let document = document(&relays);
    let mut chooser = chooser(4);
    let route = choose(&mut chooser, &document, 1, 3).unwrap();
    assert_eq!(route.relaxed, [Rule::Network, Rule::Operator]);
    let again = choose(&mut chooser, &document, 1, 3).unwrap();
    assert_eq!(again.relaxed, [Rule::Set, Rule::Network, Rule::Operator]);
}

#[test]
fn no_set_comes_again_within_eight() {
    let document = document(&diverse(1..=6));
    let mut chooser = chooser(5);
    let sets: Vec<BTreeSet<_>> = (0..60)
        .map(|_| choose(&mut chooser, &document, 1, 3).unwrap().relays.into_iter().collect())
        .collect();
    // Five relays make ten sets of three.
    assert!(sets.windows(8).all(|window| window.iter().collect::<BTreeSet<_>>().len() == 8));
}

#[test]
fn one_relay_is_outside_the_systems_of_both_ends() {
    let mut relays = diverse(1..=12);
    relays.iter_mut().skip(1).take(10).for_each(|relay| relay.autonomous_system = Some(77));
    let document = document(&relays);
    let policy =
        RoutePolicy { relays: 1, own_autonomous_system: Some(77), ..RoutePolicy::default() };
    let mut chooser = chooser(6);
    let route = chooser.choose(time(0), &document, &id(1), policy).unwrap();
    assert_eq!((route.relays, route.relaxed), (vec![id(12)], vec![]));
}

#[test]
fn a_gateway_behind_nat_is_reached_through_the_relays_that_it_names() {
    let mut relays = diverse(1..=12);
    relays.push(hidden(50, &[3, 7, 60]));
    let mut chooser = chooser(7);
    let mut last = BTreeSet::new();
    for _ in 0..100 {
        let route = choose(&mut chooser, &document(&relays), 50, 3).unwrap();
        last.insert(route.relays[2]);
        assert!(route.relaxed.is_empty());
    }
    assert_eq!(last, BTreeSet::from([id(3), id(7)]));
    let alone = document(&[hidden(50, &[3]), descriptor(1, EPOCH)]);
    assert_eq!(choose(&mut chooser, &alone, 50, 1), Err(RouteError::NotLinked(id(50))));
}

#[test]
fn only_relays_with_keys_that_are_not_ourselves_are_drawn() {
    let mut relays = diverse(1..=4);
    relays[3].keys.truncate(1);
    let document = document(&relays);
    let mut chooser = RouteChooser::new(StdRng::seed_from_u64(8), clock(), Some(id(2)));
    let few = RouteError::TooFewRelays { count: 2, needed: 3 };
    assert_eq!(choose(&mut chooser, &document, 1, 3), Err(few));
    assert!(choose(&mut chooser, &document, 1, 2).is_ok());
    let policy = RoutePolicy { relays: 2, ..RoutePolicy::default() };
    let few = RouteError::TooFewRelays { count: 1, needed: 2 };
    assert_eq!(chooser.choose(time(10), &document, &id(1), policy), Err(few));
    let no_keys = RouteError::NoKeys { relay: id(1), epoch: EPOCH + 3 };
    assert_eq!(chooser.choose(time(30), &document, &id(1), policy), Err(no_keys));
    let unknown = RouteError::UnknownReceiver(id(9));
    assert_eq!(choose(&mut chooser, &document, 9, 2), Err(unknown));
}

fn choose(
    chooser: &mut RouteChooser<StdRng>,
    document: &Document,
    receiver: u8,
    relays: usize,
) -> Result<Route, RouteError> {
    let policy = RoutePolicy { relays, ..RoutePolicy::default() };
    chooser.choose(time(0), document, &id(receiver), policy)
}

fn chooser(seed: u64) -> RouteChooser<StdRng> {
    RouteChooser::new(StdRng::seed_from_u64(seed), clock(), None)
}

fn diverse(numbers: std::ops::RangeInclusive<u8>) -> Vec<Descriptor> {
    numbers.map(|number| descriptor(number, EPOCH)).collect()
}

fn document(relays: &[Descriptor]) -> Document {
    genesis(weighted(relays)).document().clone()
}
