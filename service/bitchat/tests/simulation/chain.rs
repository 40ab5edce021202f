//! Eight nodes in line, and what happens when one dies.

use std::time::Duration;

use fieldpost_bitchat::{Command, FailReason, Packet, PacketType, ReceiptKind, Report};
use uuid::Uuid;

use crate::world::{World, seconds};

#[test]
fn a_nodes_own_message_goes_seven_hops_and_not_eight() {
    let mut world = World::new(1);
    world.line(9);
    world.run(seconds(40));
    let from = world.id(0);
    let text = "from A to H".to_owned();
    world.command(0, Command::SendPublic { from, message_id: Uuid::from_u128(1), text });
    world.run(seconds(20));
    for node in 1..=7 {
        assert_eq!(world.public_texts(node), ["from A to H"], "after {node} hops");
    }
    assert!(world.public_texts(8).is_empty());
    assert!(world.nodes[7].peers().any(|peer| peer.id == from && peer.hops == 7));
    assert!(!world.nodes[8].peers().any(|peer| peer.id == from));
}

#[test]
fn a_hosted_peers_message_goes_six_hops_and_not_seven() {
    let mut world = World::new(2);
    world.line(8);
    let from = world.host(0, "hosted");
    world.run(seconds(40));
    let text = "from a guest".to_owned();
    world.command(0, Command::SendPublic { from, message_id: Uuid::from_u128(1), text });
    world.run(seconds(20));
    for node in 1..=6 {
        assert_eq!(world.public_texts(node), ["from a guest"], "after {node} hops");
    }
    assert!(world.public_texts(7).is_empty());
    assert!(!world.nodes[7].peers().any(|peer| peer.id == from));
    let (a, guest) = (world.id(0), from);
    let bound: Vec<_> =
        (1..=9).filter_map(|n| world.nodes[1].bound(fieldpost_bitchat::LinkId(n))).collect();
    assert!(
        bound.contains(&a) && !bound.contains(&guest),
        "the link is the node's, not the guest's"
    );
}

#[test]
fn private_messages_cross_six_lossy_hops_both_ways_once_each() {
    for seed in 0..5 {
        let mut world = World::new(100 + seed);
        world.line(7);
        let (from, to) = (world.host(0, "ann"), world.id(6));
        world.run(seconds(40));
        world.set_loss(0.02);
        for n in 0..10 {
            let (message_id, text) = (Uuid::from_u128(n), format!("message {n}"));
            world.command(0, Command::SendPrivate { from, to, message_id, text });
            world.run(seconds(2));
            acknowledge(&mut world, 6);
        }
        for _ in 0..40 {
            world.run(seconds(2));
            acknowledge(&mut world, 6);
        }
        let mut texts = world.private_texts(6);
        texts.sort();
        let expected: Vec<_> = (0..10).map(|n| format!("message {n}")).collect();
        assert_eq!(texts, expected, "seed {seed}");
        let delivered = world
            .reports_of(0)
            .filter(|r| matches!(r, Report::Receipt { kind: ReceiptKind::Delivered, .. }));
        assert_eq!(delivered.count(), 10, "seed {seed}");
    }
}

#[test]
fn when_the_node_in_the_middle_dies_another_takes_over() {
    let mut world = World::new(3);
    let [a, b, c, other] = ["a", "b", "c", "other"].map(|name| world.add(name));
    world.link(a, b);
    world.link(b, c);
    world.run(seconds(30));
    let (from, to) = (world.id(a), world.id(c));
    let send = |world: &mut World, n: u128| {
        let (message_id, text) = (Uuid::from_u128(n), format!("message {n}"));
        world.command(a, Command::SendPrivate { from, to, message_id, text });
    };
    send(&mut world, 1);
    world.run(seconds(5));
    acknowledge(&mut world, c);
    world.run(seconds(2));
    assert_eq!(world.private_texts(c), ["message 1"]);
    world.kill(b);
    send(&mut world, 2);
    let no_link =
        Report::Failed { id: Uuid::from_u128(2), to: Some(to), reason: FailReason::NoLink };
    assert!(world.reports_of(a).any(|report| *report == no_link));
    world.link(a, other);
    world.link(other, c);
    send(&mut world, 3);
    world.run(seconds(20));
    assert_eq!(world.private_texts(c), ["message 1", "message 3"], "over the same session");
    assert_eq!(world.nodes[a].counters().sessions, 1);
}

#[test]
fn frames_that_took_two_paths_reach_the_phone_in_the_order_of_their_session() {
    for seed in 0..5 {
        let mut world = World::new(400 + seed);
        let [a, quick, slow, last, phone] =
            ["a", "quick", "slow", "last", "phone"].map(|name| world.add(name));
        let lossy = world.link(a, quick);
        world.link(quick, last);
        let long = world.link(a, slow);
        world.link(slow, last);
        let watched = world.link(last, phone);
        world.run(seconds(40));
        let (from, to) = (world.id(a), world.id(phone));
        let send = |world: &mut World, n: u128| {
            let (message_id, text) = (Uuid::from_u128(n), format!("message {n}"));
            world.command(a, Command::SendPrivate { from, to, message_id, text });
        };
        send(&mut world, 1000);
        world.run(seconds(5));
        world.wire_mut(lossy).loss = 0.3;
        world.wire_mut(long).delay_ms = 100..=180;
        world.watched = Some(watched);
        for n in 0..60 {
            send(&mut world, n);
            world.run(Duration::from_millis(15));
        }
        world.run(seconds(2));
        let frames = world.watched_frames.iter().filter_map(|frame| Packet::decode(frame).ok());
        let numbers: Vec<u32> = frames
            .filter(|packet| packet.kind == PacketType::NOISE_ENCRYPTED && packet.sender == from)
            .map(|packet| u32::from_be_bytes(*packet.payload().first_chunk().unwrap()))
            .collect();
        assert!(numbers.len() >= 60, "seed {seed}: {} arrived", numbers.len());
        assert!(numbers.is_sorted(), "seed {seed}: {numbers:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = World::new(seed);
        world.line(4);
        world.set_loss(0.1);
        let from = world.host(0, "guest");
        world.run(seconds(20));
        let to = world.id(3);
        let (message_id, text) = (Uuid::from_u128(9), "again".to_owned());
        world.command(0, Command::SendPrivate { from, to, message_id, text });
        world.run(seconds(60));
        let counters: Vec<_> = world.nodes.iter().map(|node| node.counters()).collect();
        (world.reports, counters)
    };
    assert!(run(7) == run(7));
    assert!(run(7) != run(8));
}

/// Says that everything private that came is there, as a gateway does once it has stored it.
pub(crate) fn acknowledge(world: &mut World, node: usize) {
    let came: Vec<_> = world
        .reports_of(node)
        .filter_map(|report| match report {
            Report::Private { to, from, message_id, .. } => Some((*to, *from, message_id.clone())),
            _ => None,
        })
        .collect();
    for (from, to, message_id) in came {
        let kind = ReceiptKind::Delivered;
        let once = world.acknowledged.insert((node, message_id.clone()));
        if once {
            world.command(node, Command::SendReceipt { from, to, message_id, kind });
        }
    }
}
