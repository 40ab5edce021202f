use std::{env, time::Duration};

use fieldpost_mixnet::{
    fragment::MAX_MESSAGE_LEN,
    sender::{Failure, SendId},
};

use crate::network::{Conditions, End, Network, message};

const SIZES: [usize; 10] = [1, 20, 1517, 1518, 5000, 12_535, 12_536, 100_000, 400_000, 1024 * 1024];
const LONG: Duration = Duration::from_secs(600);

#[test]
fn on_a_quiet_network_everything_arrives_once_and_nothing_is_repeated() {
    for seed in seeds() {
        for hops in 1..=5 {
            let mut network = Network::new(seed, 8, Conditions::QUIET);
            network.set_hops(hops);
            send_all(&mut network, seed, &SIZES);
            network.run(LONG);
            expect_all(&network, seed, &SIZES);
            assert_eq!(network.sender(0).counts().repeated, 0, "seed {seed}");
            assert_eq!(network.replayed(), 0, "seed {seed}");
        }
    }
}

#[test]
fn empty_and_longest_messages_arrive_and_longer_ones_are_refused_at_once() {
    let mut network = Network::new(1, 4, Conditions::QUIET);
    network.send(0, Vec::new(), LONG);
    network.send(1, message(1, MAX_MESSAGE_LEN), LONG);
    network.send(2, message(2, MAX_MESSAGE_LEN + 1), LONG);
    network.run(LONG);
    assert_eq!(network.ends[&SendId(0)].1, End::Committed);
    assert_eq!(network.ends[&SendId(1)].1, End::Committed);
    let length = MAX_MESSAGE_LEN + 1;
    assert_eq!(network.ends[&SendId(2)].1, End::Failed(Failure::Oversize { length }));
}

#[test]
fn loss_repetition_and_reordering_cost_time_but_no_message_and_show_none_twice() {
    for seed in seeds() {
        let mut network = Network::new(seed, 10, Conditions::ROUGH);
        send_all(&mut network, seed, &SIZES);
        network.run(LONG);
        expect_all(&network, seed, &SIZES);
        assert!(network.sender(0).counts().repeated > 0, "seed {seed}: the loss was felt");
        assert!(network.replayed() > 0, "seed {seed}: the copies were noticed");
    }
}

#[test]
fn a_relay_that_dies_is_routed_around() {
    for seed in seeds() {
        let mut network = Network::new(seed, 10, Conditions::QUIET);
        network.kill(2, Duration::from_millis(30));
        send_all(&mut network, seed, &SIZES);
        network.run(LONG);
        expect_all(&network, seed, &SIZES);
        assert!(network.sender(0).counts().repeated > 0, "seed {seed}: the death was felt");
    }
}

#[test]
fn a_few_lost_fragments_of_a_large_message_are_repaired_without_a_reaction() {
    let mut repaired = 0;
    for seed in 0..12 {
        // About one packet of 38 is lost on its four links.
        let conditions = Conditions { lost: 8, ..Conditions::QUIET };
        let mut network = Network::new(seed, 8, conditions);
        network.send(0, message(seed, 1024 * 1024), LONG);
        network.run(LONG);
        assert_eq!(network.ends[&SendId(0)].1, End::Committed, "seed {seed}");
        let sent = network.sender(0).counts();
        repaired += u32::from(sent.repeated == 0 && sent.sent == 38);
    }
    assert!(repaired >= 8, "{repaired} of 12 without a reaction");
}

#[test]
fn nothing_is_reported_committed_that_the_store_has_not_committed() {
    let mut network = Network::new(3, 8, Conditions::QUIET);
    network.commits = None;
    network.send(0, message(3, 5000), LONG);
    network.run(LONG);
    // The receiver asks its store again when that has not answered for a minute.
    assert!(network.stored.iter().all(|stored| *stored == network.stored[0]));
    let end = network.ends[&SendId(0)].1;
    assert!(matches!(end, End::Failed(Failure::Unanswered { .. })), "{end:?}");
    assert_eq!(network.receiver(1).counts().answers, 0);
}

#[test]
fn what_the_receiver_refuses_is_reported_and_not_tried_again() {
    let mut network = Network::new(8, 8, Conditions::QUIET);
    network.refuses = true;
    network.send(0, message(8, 5000), LONG);
    network.run(LONG);
    assert_eq!(network.ends[&SendId(0)].1, End::Failed(Failure::Refused));
    assert_eq!(network.sender(0).counts().repeated, 0);
}

#[test]
fn a_cut_network_ends_in_a_report() {
    let mut network = Network::new(4, 8, Conditions { lost: 1000, ..Conditions::QUIET });
    network.send(0, message(4, 100_000), LONG);
    network.send(1, message(5, 10), Duration::from_secs(3));
    network.run(LONG);
    assert_eq!(network.ends[&SendId(0)].1, End::Failed(Failure::Unanswered { rounds: 8 }));
    let (at, end) = network.ends[&SendId(1)];
    assert_eq!(end, End::Failed(Failure::EpochOver));
    assert_eq!(at.duration_since(network.start), Duration::from_secs(3));
    assert_eq!((network.sender(0).in_flight(), network.stored.len()), (0, 0));
}

#[test]
fn too_much_at_once_is_refused_at_once() {
    let mut network = Network::new(5, 8, Conditions::QUIET);
    for send in 0..300 {
        network.send(send, message(send, 10), LONG);
    }
    network.run(LONG);
    let busy = |end: &End| *end == End::Failed(Failure::Busy);
    assert_eq!(network.ends.values().filter(|(_, end)| busy(end)).count(), 300 - 256);
    assert_eq!(network.ends.values().filter(|(_, end)| *end == End::Committed).count(), 256);
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let history = |seed| {
        let mut network = Network::new(seed, 8, Conditions::ROUGH);
        send_all(&mut network, 1, &SIZES[..8]);
        network.run(LONG);
        let ends: Vec<_> = network
            .ends
            .iter()
            .map(|(send, (at, end))| (*send, at.duration_since(network.start), *end))
            .collect();
        (network.transmitted, network.sender(0).counts(), network.receiver(1).counts(), ends)
    };
    assert_eq!(history(6), history(6));
    assert_ne!(history(6), history(7));
}

fn send_all(network: &mut Network, seed: u64, sizes: &[usize]) {
    for (send, length) in (0..).zip(sizes) {
        network.send(send, message(seed ^ send, *length), LONG);
    }
}

/// Every message was committed, and stored once with the bytes that were sent.
fn expect_all(network: &Network, seed: u64, sizes: &[usize]) {
    for (send, length) in (0..).zip(sizes) {
        let end = network.ends.get(&SendId(send)).map(|(_, end)| *end);
        assert_eq!(end, Some(End::Committed), "seed {seed}, {length} bytes");
        let sent = message(seed ^ send, *length);
        let stored = network.stored.iter().filter(|(_, message)| *message == sent).count();
        assert_eq!(stored, 1, "seed {seed}, {length} bytes");
    }
    assert_eq!(network.stored.len(), sizes.len(), "seed {seed}");
    assert!(network.receiver(1).gathering().is_empty(), "seed {seed}");
}

fn seeds() -> Vec<u64> {
    match env::var("FIELDPOST_PROVE_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => vec![1, 2, 3],
    }
}
