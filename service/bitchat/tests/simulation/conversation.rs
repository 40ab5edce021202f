//! What two neighbours say to each other.

use std::time::Duration;

use fieldpost_bitchat::{
    Command, FailReason, Header, Identity, LinkId, Packet, PacketType, ReceiptKind, Report,
    payload::{
        announce::{Announce, Order},
        file::File,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use crate::{
    chain::acknowledge,
    world::{End, World, seconds},
};

#[test]
fn long_private_text_arrives_in_parts_and_is_delivered_and_read_as_one() {
    let (mut world, a, b) = neighbours(1);
    let (from, to) = (world.id(a), world.id(b));
    let text = "a long story, told at length; ".repeat(30);
    let id = Uuid::from_u128(5);
    world.command(a, Command::SendPrivate { from, to, message_id: id, text: text.clone() });
    world.run(seconds(5));
    assert_eq!(world.private_texts(b).concat(), text);
    let ids: Vec<_> = world
        .reports_of(b)
        .filter_map(|r| match r {
            Report::Private { message_id, .. } => Some(message_id.clone()),
            _ => None,
        })
        .collect();
    let part = |n| fieldpost_bitchat::message::part_id(id, n).to_string().to_uppercase();
    assert_eq!(ids, (0..ids.len() as u32).map(part).collect::<Vec<_>>());
    for kind in [ReceiptKind::Delivered, ReceiptKind::Read] {
        for (n, message_id) in ids.iter().enumerate() {
            let said = Report::Receipt { from, to, message_id: id, kind };
            assert!(!world.reports_of(a).any(|r| *r == said), "{n} of {} parts", ids.len());
            let message_id = message_id.clone();
            world.command(b, Command::SendReceipt { from: to, to: from, message_id, kind });
            world.run(seconds(1));
        }
        let said = Report::Receipt { from, to, message_id: id, kind };
        assert_eq!(world.reports_of(a).filter(|r| **r == said).count(), 1);
    }
}

#[test]
fn crossed_handshakes_end_in_one_session_that_carries_both_ways() {
    for seed in 0..8 {
        let (mut world, a, b) = neighbours(20 + seed);
        let (x, y) = (world.id(a), world.id(b));
        for (node, from, to) in [(a, x, y), (b, y, x)] {
            let (message_id, text) = (Uuid::from_u128(1), format!("from {node}"));
            world.command(node, Command::SendPrivate { from, to, message_id, text });
        }
        world.run(seconds(8));
        assert_eq!(world.private_texts(a), ["from 1"], "seed {seed}");
        assert_eq!(world.private_texts(b), ["from 0"], "seed {seed}");
        assert_eq!(world.nodes[a].counters().sessions, 1, "seed {seed}");
        assert_eq!(world.nodes[b].counters().sessions, 1, "seed {seed}");
    }
}

#[test]
fn two_links_between_a_pair_carry_one_copy() {
    let (mut world, a, b) = neighbours(15);
    let second = world.wire(End::Node(b), End::Node(a), 512);
    world.run(seconds(30));
    for (node, other) in [(a, b), (b, a)] {
        for link in [LinkId(1), second] {
            assert_eq!(world.nodes[node].bound(link), Some(world.id(other)));
        }
    }
    let before = world.nodes[a].counters().frames_sent;
    let from = world.id(a);
    for n in 0..5 {
        let (message_id, text) = (Uuid::from_u128(n), format!("public {n}"));
        world.command(a, Command::SendPublic { from, message_id, text });
    }
    world.run(Duration::from_millis(200));
    assert_eq!(world.public_texts(b).len(), 5);
    assert_eq!(world.nodes[a].counters().frames_sent - before, 5);
}

#[test]
fn of_two_links_between_a_pair_the_one_that_went_dead_is_left() {
    let (mut world, a, b) = neighbours(16);
    world.wire(End::Node(b), End::Node(a), 512);
    world.run(seconds(30));
    // The one that a prefers, being central there.
    world.wire_mut(LinkId(1)).loss = 1.0;
    world.run(seconds(60));
    let (from, to) = (world.id(a), world.id(b));
    let (message_id, text) = (Uuid::from_u128(1), "still here".to_owned());
    world.command(a, Command::SendPrivate { from, to, message_id, text });
    world.run(seconds(3));
    assert_eq!(world.private_texts(b), ["still here"]);
}

#[test]
fn a_repeated_message_is_shown_once_and_acknowledged_again() {
    let (mut world, a, b) = neighbours(3);
    let (from, to) = (world.id(a), world.id(b));
    let link = world.link(a, b);
    world.wire_mut(link).loss = 0.0;
    let id = Uuid::from_u128(7);
    let send = |world: &mut World| {
        let text = "once".to_owned();
        world.command(a, Command::SendPrivate { from, to, message_id: id, text });
        world.run(seconds(3));
    };
    send(&mut world);
    acknowledge(&mut world, b);
    world.run(seconds(1));
    send(&mut world);
    assert_eq!(world.private_texts(b), ["once"]);
    let said = Report::Receipt { from, to, message_id: id, kind: ReceiptKind::Delivered };
    assert_eq!(world.reports_of(a).filter(|r| **r == said).count(), 2);
    assert_eq!(world.nodes[b].counters().messages_repeated, 1);
}

#[test]
fn what_nobody_confirms_is_reported_as_failed_and_a_late_receipt_corrects_it() {
    let (mut world, a, b) = neighbours(4);
    let (from, to) = (world.id(a), world.id(b));
    let (message_id, text) = (Uuid::from_u128(8), "hello?".to_owned());
    world.command(a, Command::SendPrivate { from, to, message_id, text });
    world.run(seconds(70));
    let failed = Report::Failed { id: message_id, to: Some(to), reason: FailReason::Unconfirmed };
    assert!(world.reports_of(a).any(|r| *r == failed));
    assert_eq!(world.private_texts(b), ["hello?"], "it was there all along");
    acknowledge(&mut world, b);
    world.run(seconds(2));
    let kind = ReceiptKind::Delivered;
    assert!(world.reports_of(a).any(|r| *r == Report::Receipt { from, to, message_id, kind }));
}

#[test]
fn public_text_stays_where_no_encoder_is_asked_or_says_that_it_does_not() {
    let (mut world, a, b) = neighbours(5);
    let link = world.station(a);
    world.run(seconds(2));
    world.heard.clear();
    let from = world.id(a);
    let (short, long) = ("word ".repeat(60), "word ".repeat(400));
    for (n, text) in [(1, &short), (2, &long)] {
        let (message_id, text) = (Uuid::from_u128(n), text.clone());
        world.command(a, Command::SendPublic { from, message_id, text });
        world.run(seconds(3));
    }
    let sent = |n, may_fail_on_apple| Report::Sent { id: Uuid::from_u128(n), may_fail_on_apple };
    assert!(world.reports_of(a).any(|r| *r == sent(1, false)));
    assert!(world.reports_of(a).any(|r| *r == sent(2, true)));
    assert_eq!(world.public_texts(b).concat(), format!("{short}{long}"));
    let packets = world.heard.iter().filter(|(other, _)| *other == link);
    let packets = packets.map(|(_, frame)| Packet::decode(frame).unwrap());
    let texts: Vec<_> = packets.filter(|p| p.kind == PacketType::MESSAGE).collect();
    let (compressed, plain): (Vec<_>, Vec<_>) = texts.into_iter().partition(Packet::is_compressed);
    assert_eq!((compressed.len(), plain.len()), (1, 4));
    assert!(plain.iter().all(|packet| packet.payload().len() < 100));
}

#[test]
fn the_same_public_message_has_one_id_at_all_who_hear_it() {
    let mut world = World::new(6);
    world.line(4);
    world.run(seconds(20));
    let from = world.id(0);
    let (message_id, text) = (Uuid::from_u128(1), "all of you".to_owned());
    world.command(0, Command::SendPublic { from, message_id, text });
    world.run(seconds(5));
    let ids: Vec<_> = (1..4)
        .flat_map(|node| world.reports_of(node))
        .filter_map(|r| match r {
            Report::Public { message_id, .. } => Some(*message_id),
            _ => None,
        })
        .collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[test]
fn bytes_between_gateways_arrive_whole_over_narrow_lossy_links() {
    // The last of them has a narrow link in the middle, of which the sender cannot know.
    for (seed, max_frame, loss) in
        [(1, 512, 0.0), (2, 182, 0.0), (3, 512, 0.02), (4, 244, 0.01), (5, 512, 0.0)]
    {
        let mut world = World::new(40 + seed);
        let nodes: Vec<_> = (0..4).map(|n| world.add(&format!("node {n}"))).collect();
        for pair in nodes.windows(2) {
            let is_narrow = seed == 5 && pair[0] == 1;
            let max_frame = if is_narrow { 182 } else { max_frame };
            world.wire(End::Node(pair[0]), End::Node(pair[1]), max_frame);
        }
        world.run(seconds(20));
        world.set_loss(loss);
        let mut rng = StdRng::seed_from_u64(seed);
        let bytes: Vec<u8> = (0..64 * 1024).map(|_| rng.random()).collect();
        let to = world.id(3);
        let transfer_id = Uuid::from_u128(seed.into());
        world.command(0, Command::SendGateway { to, transfer_id, bytes: bytes.clone() });
        world.run(seconds(300));
        let from = world.id(0);
        let came = Report::Gateway { from, bytes };
        assert_eq!(world.reports_of(3).filter(|r| **r == came).count(), 1, "seed {seed}");
        let sent = Report::Sent { id: transfer_id, may_fail_on_apple: false };
        assert_eq!(world.reports_of(0).filter(|r| **r == sent).count(), 1, "seed {seed}");
        assert_eq!(world.nodes[3].load().transfers, 0);
        let took = world.reports.iter().find(|(.., r)| *r == came).unwrap().0 - seconds(1020);
        println!("64 KiB, 3 hops, {max_frame} bytes a frame, {loss} lost: {took:?}");
    }
}

#[test]
fn a_node_that_started_anew_hears_of_others_and_gets_what_is_under_way_within_seconds() {
    for seed in 0..20 {
        let mut world = World::new(600 + seed);
        world.line(3);
        world.run(seconds(20));
        let to = world.id(2);
        let send = |n: u128| Command::SendGateway {
            to,
            transfer_id: Uuid::from_u128(n),
            bytes: vec![n as u8; 3000],
        };
        world.command(0, send(1));
        world.run(seconds(5));
        world.restart(2);
        world.command(0, send(2));
        // It is said again after 6 s and then after 12 s.
        world.run(seconds(7 + seed % 5));
        let came = Report::Gateway { from: world.id(0), bytes: vec![2; 3000] };
        assert_eq!(world.reports_of(2).filter(|report| **report == came).count(), 0);
        world.link(1, 2);
        world.run(seconds(5));
        assert_eq!(world.reports_of(2).filter(|report| **report == came).count(), 1, "{seed}");
        let knows = world.nodes[2].peers().any(|peer| peer.id == world.id(0));
        assert!(knows, "seed {seed}: it has heard who that is");
    }
}

#[test]
fn files_go_in_a_session_to_those_who_take_them_and_in_clear_to_all() {
    let (mut world, a, b) = neighbours(7);
    let (from, to) = (world.id(a), world.id(b));
    let mut rng = StdRng::seed_from_u64(9);
    let content: Vec<u8> = (0..60_000).map(|_| rng.random()).collect();
    let file = File {
        name: Some("img_1.jpg".to_owned()),
        stated_size: Some(60_000),
        mime_type: Some("image/jpeg".to_owned()),
        content,
    };
    for (n, to) in [(1, Some(to)), (2, None)] {
        let (file_id, file) = (Uuid::from_u128(n), file.clone());
        world.command(a, Command::SendFile { from, to, file_id, file });
        world.run(seconds(20));
    }
    for to in [Some(to), None] {
        let came = Report::File { to, from, file: file.clone() };
        assert_eq!(world.reports_of(b).filter(|r| **r == came).count(), 1, "{to:?}");
    }
    let large = File { content: vec![0; 200_000], ..file };
    let file_id = Uuid::from_u128(3);
    world.command(a, Command::SendFile { from, to: Some(to), file_id, file: large });
    let refused = |r: &Report| {
        let too_large = |reason: &FailReason| matches!(reason, FailReason::TooLarge { .. });
        matches!(r, Report::Failed { id, reason, .. } if *id == file_id && too_large(reason))
    };
    assert!(world.reports_of(a).any(refused), "Android takes no more than 256 fragments");
}

#[test]
fn a_challenge_is_answered_and_verifies_the_peer() {
    let (mut world, a, b) = neighbours(8);
    let (from, to) = (world.id(a), world.id(b));
    world.command(a, Command::Verify { from, to });
    world.run(seconds(3));
    assert!(world.reports_of(a).any(|r| *r == Report::Verified { id: to }));
}

#[test]
fn a_ping_says_how_far_a_peer_is() {
    let mut world = World::new(9);
    world.line(4);
    world.run(seconds(20));
    let (from, to) = (world.id(0), world.id(3));
    world.command(0, Command::Ping { from, to });
    world.run(seconds(3));
    let pong = |r: &&Report| matches!(r, Report::Pong { from, hops: 3, .. } if *from == to);
    assert_eq!(world.reports_of(0).filter(pong).count(), 1);
}

#[test]
fn whoever_leaves_or_falls_silent_is_reported_and_a_guest_leaves_with_a_word() {
    let (mut world, a, b) = neighbours(10);
    let guest = world.host(a, "guest");
    world.run(seconds(3));
    assert!(world.nodes[b].peers().any(|peer| peer.id == guest && peer.nickname == "guest"));
    world.command(a, Command::Rename { peer: guest, nickname: "visitor".to_owned() });
    world.run(seconds(2));
    assert!(world.nodes[b].peers().any(|peer| peer.id == guest && peer.nickname == "visitor"));
    world.command(a, Command::Unhost { peer: guest });
    world.run(seconds(2));
    assert!(world.reports_of(b).any(|r| *r == Report::PeerGone { id: guest, left: true }));
    let node = world.id(a);
    world.kill(a);
    world.run(seconds(200));
    assert!(world.reports_of(b).any(|r| *r == Report::PeerGone { id: node, left: false }));
}

#[test]
fn a_long_nickname_is_cut_so_that_no_encoder_touches_the_announce() {
    let (mut world, a, b) = neighbours(11);
    let link = world.station(a);
    let guest = world.host(a, &"é".repeat(100));
    world.run(seconds(3));
    let seen = world.nodes[b].peers().find(|peer| peer.id == guest).unwrap();
    assert!(!seen.nickname.is_empty() && seen.nickname.chars().all(|c| c == 'é'));
    for (_, frame) in world.heard.iter().filter(|(other, _)| *other == link) {
        let packet = Packet::decode(frame).unwrap();
        assert!(packet.kind != PacketType::ANNOUNCE || packet.payload().len() < 100);
    }
}

#[test]
fn a_packet_that_lost_its_last_byte_in_androids_fragmenter_is_taken() {
    let (mut world, a, _) = neighbours(12);
    let link = world.station(a);
    let phone = Identity::from_keys(&[3; 32], &[4; 32]);
    world.inject(link, announce(&world, &phone).encode());
    world.run(seconds(1));
    let signing = ed25519_dalek::SigningKey::from_bytes(&[4; 32]);
    let mut rng = StdRng::seed_from_u64(1);
    let (text, packet) = loop {
        let text: String = (0..600).map(|_| char::from(rng.random_range(0..127_u8))).collect();
        let header = header(&world, PacketType::MESSAGE, &phone);
        let mut packet = Packet::new(header, text.clone().into_bytes());
        packet.sign(&signing);
        let whole = packet.encode();
        if whole.last() == Some(&1) && whole[whole.len() - 2] != 1 {
            break (text, packet);
        }
    };
    // The parts of a shorter packet: what Android's fragmenter makes of it.
    let whole = packet.encode();
    let cut = &whole[..whole.len() - 1];
    for (index, data) in cut.chunks(300).enumerate() {
        let total = cut.len().div_ceil(300) as u16;
        let fragment = fieldpost_bitchat::payload::fragment::Fragment {
            id: [7; 8],
            index: index as u16,
            total,
            original: PacketType::MESSAGE,
            data: data.to_vec(),
        };
        let header = header(&world, PacketType::FRAGMENT, &phone);
        world.inject(link, Packet::new(header, fragment.encode()).encode());
    }
    world.run(seconds(1));
    assert_eq!(world.public_texts(a), [text]);
    assert_eq!(world.nodes[a].counters().sets_repaired, 1);
}

#[test]
fn sessions_are_renewed_before_the_phones_refuse_them() {
    let (mut world, a, b) = neighbours(13);
    let (from, to) = (world.id(a), world.id(b));
    let mut n = 0;
    for _ in 0..26 {
        n += 1;
        let (message_id, text) = (Uuid::from_u128(n), format!("hour {n}"));
        world.command(a, Command::SendPrivate { from, to, message_id, text });
        world.run(seconds(5));
        acknowledge(&mut world, b);
        world.run(seconds(3595));
    }
    assert_eq!(world.private_texts(b).len(), 26);
    assert_eq!(world.nodes[a].counters().sessions, 2);
    assert_eq!(world.nodes[b].counters().noise_refused, 0);
}

#[test]
fn a_link_too_narrow_for_a_fragment_is_closed() {
    let mut world = World::new(14);
    let a = world.add("a");
    let link = world.wire(End::Station, End::Node(a), 20);
    assert_eq!(world.nodes[a].load().links, 0);
    assert_eq!(world.nodes[a].counters().links_refused, 1);
    assert_eq!(world.nodes[a].bound(link), None);
}

fn neighbours(seed: u64) -> (World, usize, usize) {
    let mut world = World::new(seed);
    world.line(2);
    world.run(seconds(3));
    assert_eq!(world.nodes[0].bound(LinkId(1)), Some(world.id(1)));
    (world, 0, 1)
}

pub(crate) fn header(world: &World, kind: PacketType, sender: &Identity) -> Header {
    let timestamp_ms = world.time().unix_ms;
    Header { kind, hops_left: 7, timestamp_ms, sender: sender.id(), recipient: None }
}

/// An announce of the identity whose signing seed is 32 times 4.
pub(crate) fn announce(world: &World, identity: &Identity) -> Packet {
    let announce = Announce {
        nickname: "phone".to_owned(),
        noise_key: *identity.noise_public(),
        signing_key: identity.signing_public(),
        ..Announce::default()
    };
    let payload = announce.encode(Order::Apple).unwrap();
    let mut packet = Packet::new(header(world, PacketType::ANNOUNCE, identity), payload);
    packet.sign(&ed25519_dalek::SigningKey::from_bytes(&[4; 32]));
    packet
}
