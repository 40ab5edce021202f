//! Neighbours that break the rules: refused for the reason, counted, others unaffected.

use std::time::Duration;

use bytes::Bytes;
use fieldpost_envelope::{Certificate, NodePurpose, Roster, Timestamp};
use fieldpost_peering::{
    Event, LinkId, NodeId, Refusal, Target, limits,
    wire::{Frame, Hello, VERSION, encode_batch, encode_rosters},
};

use crate::world::{HOUR, NOW, World, certificate, gateway_key, node_id};

#[test]
fn ten_thousand_half_open_hellos_leave_room_for_others() {
    let mut world = World::new(1, 2);
    for number in 0..10_000 {
        let node = NodeId([number as u8; 32]);
        let link = LinkId(1_000_000 + number);
        world.feed(0, Event::Connected { link, node, is_dialled: false });
        assert!(world.nodes[0].core.links() <= limits::HALF_OPEN);
        world.run(Duration::from_micros(200));
    }
    assert_eq!(world.nodes[0].core.known(), 0);
    let refused = world.nodes[0].core.counters().refused(Refusal::HalfOpen);
    assert_eq!(refused, 10_000 - limits::HALF_OPEN as u64);
    world.introduce();
    world.run(Duration::from_secs(6));
    assert_eq!(world.nodes[0].core.gateways().count(), 1);
    assert_eq!(world.nodes[0].core.links(), 1, "what never said hello is gone");
    let late = world.nodes[0].core.counters().refused(Refusal::HelloTooLate);
    assert!(late >= 1);
}

#[test]
fn every_bad_hello_is_refused_for_its_reason() {
    let node = node_id(9);
    let good = certificate(9, node, NOW);
    let forged = {
        // One gateway's certificate under another's name: the last bytes are the signature.
        let mut bytes = good.as_bytes().to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes
    };
    let noise = Certificate {
        gateway: gateway_key(9).verifying_key().into(),
        purpose: NodePurpose::Noise,
        node: node.0,
        not_before: Timestamp::try_from(NOW).unwrap(),
        not_after: Timestamp::try_from(NOW + HOUR).unwrap(),
    };
    let noise = noise.sign(&gateway_key(9)).unwrap();
    let at = |begins| certificate(9, node, begins).as_bytes().to_vec();
    let hello = |least, greatest, certificate: Vec<u8>| {
        Frame::Hello(Hello { least, greatest, certificate, in_flight: 1 << 20 }).encode()
    };
    for (refusal, frame) in [
        (Refusal::Version, hello(99, 99, at(NOW))),
        (Refusal::Version, hello(0, 0, at(NOW))),
        (Refusal::Nonsense, hello(1, 1, vec![1, 2, 3])),
        (Refusal::CertificateForged, hello(1, 1, forged)),
        (Refusal::CertificateExpired, hello(1, 1, at(NOW - 25 * HOUR))),
        (Refusal::CertificateExpired, hello(1, 1, at(NOW + HOUR))),
        (
            Refusal::CertificateOfAnother,
            hello(1, 1, certificate(9, node_id(8), NOW).as_bytes().into()),
        ),
        (Refusal::CertificateOfAnother, hello(1, 1, noise.as_bytes().into())),
        (Refusal::Ours, hello(1, 1, certificate(1, node, NOW).as_bytes().into())),
        (Refusal::Nonsense, Frame::Ping(1).encode()),
        (Refusal::Nonsense, Bytes::from_static(b"\0\0\0\0GET / HTTP/1.1")),
    ] {
        let mut world = World::new(1, 1);
        let link = LinkId(77);
        world.feed(0, Event::Connected { link, node, is_dialled: false });
        world.feed(0, Event::Frame { link, bytes: frame.slice(4..) });
        assert_eq!(world.nodes[0].closed, [refusal]);
        assert_eq!(world.nodes[0].core.counters().refused(refusal), 1);
        assert_eq!(world.nodes[0].core.links(), 0);
        assert_eq!(world.nodes[0].core.gateways().count(), 0);
    }
}

#[test]
fn clocks_may_differ_by_five_minutes_and_later_versions_speak_ours_too() {
    for begins in [NOW - 24 * HOUR - 299_000, NOW + 299_000] {
        let mut world = World::new(1, 1);
        join(&mut world, 9, LinkId(5), begins, 7);
        assert_eq!(world.nodes[0].core.gateways().count(), 1);
    }
}

#[test]
fn what_may_not_come_on_an_open_link_ends_it() {
    let forged = {
        let roster = Roster {
            gateway: gateway_key(9).verifying_key().into(),
            number: 5,
            base: None,
            peers: vec![],
            removed: vec![],
        };
        let mut bytes = roster.sign(&gateway_key(9)).unwrap().into_bytes();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes
    };
    let foreign = Roster {
        gateway: gateway_key(8).verifying_key().into(),
        number: 5,
        base: None,
        peers: vec![],
        removed: vec![],
    };
    let foreign = foreign.sign(&gateway_key(8)).unwrap().into_bytes();
    let link = LinkId(5);
    let rosters = |bytes: Vec<u8>| encode_rosters(&[bytes.into()]).concat().into();
    let frame = |frame: Frame| frame.encode().slice(4..);
    let hello = Hello { least: 1, greatest: 1, certificate: vec![], in_flight: 0 };
    let expired = certificate(9, node_id(9), NOW - 26 * HOUR).as_bytes().to_vec();
    let others = certificate(8, node_id(9), NOW).as_bytes().to_vec();
    for (refusal, event) in [
        (Refusal::ForeignRoster, Event::Rosters { link, body: rosters(foreign) }),
        (Refusal::ForeignRoster, Event::Rosters { link, body: rosters(forged) }),
        (Refusal::Nonsense, Event::Rosters { link, body: rosters(vec![0; 100]) }),
        (Refusal::Nonsense, Event::Batch { link, body: Bytes::from_static(&[0; 7]) }),
        (Refusal::Nonsense, Event::Frame { link, bytes: frame(Frame::Hello(hello)) }),
        (
            Refusal::Nonsense,
            Event::Frame { link, bytes: frame(Frame::Answer { batch: 1, taken: 1 }) },
        ),
        (Refusal::CertificateExpired, Event::Frame { link, bytes: frame(Frame::Renewed(expired)) }),
        (
            Refusal::CertificateOfAnother,
            Event::Frame { link, bytes: frame(Frame::Renewed(others)) },
        ),
        (Refusal::Oversized, Event::Misbehaved { link, refusal: Refusal::Oversized }),
    ] {
        let mut world = World::new(1, 2);
        world.introduce();
        world.run(Duration::from_secs(2));
        join(&mut world, 9, link, NOW, VERSION);
        assert_eq!(world.nodes[0].core.gateways().count(), 2);
        world.feed(0, event);
        assert_eq!(world.nodes[0].core.counters().refused(refusal), 1, "{refusal:?}");
        assert!(world.nodes[0].rosters.is_empty());
        // The honest neighbour notices nothing.
        let token = world.send(0, Target::Gateway(world.nodes[1].gateway), vec![1; 10]);
        world.run(Duration::from_secs(1));
        assert_eq!(world.nodes[0].settled[&token], Ok(()));
    }
}

#[test]
fn one_gateway_has_no_more_links_than_it_may() {
    let mut world = World::new(1, 1);
    for number in 0..20 {
        let (link, node) = (LinkId(number), NodeId([number as u8; 32]));
        world.feed(0, Event::Connected { link, node, is_dialled: false });
        let hello = Hello {
            least: 1,
            greatest: 1,
            certificate: certificate(9, node, NOW).as_bytes().to_vec(),
            in_flight: 0,
        };
        let bytes = Frame::Hello(hello).encode().slice(4..);
        world.feed(0, Event::Frame { link, bytes });
    }
    assert_eq!(world.nodes[0].core.links(), limits::LINKS_OF_GATEWAY);
    assert_eq!(world.nodes[0].core.counters().refused(Refusal::TooManyLinksOfGateway), 12);
}

#[test]
fn a_flood_of_envelopes_fills_its_share_and_no_more() {
    let mut world = World::new(1, 1);
    world.nodes[0].drains = false;
    join(&mut world, 9, LinkId(5), NOW, VERSION);
    let body: Bytes = encode_batch(1, &vec![vec![0; 64 * 1024].into(); 32]).concat().into();
    for _ in 0..100 {
        world.feed(0, Event::Batch { link: LinkId(5), body: body.clone() });
    }
    let bytes: usize = world.nodes[0].inbox.iter().map(Bytes::len).sum();
    assert!(bytes <= limits::INBOX_BYTES / limits::INBOX_SHARE);
    assert!(world.nodes[0].core.counters().envelopes_put_off > 2000);
}

#[test]
fn who_does_not_answer_a_batch_loses_the_link() {
    let mut world = World::new(1, 1);
    join(&mut world, 9, LinkId(5), NOW, VERSION);
    let token = world.send(0, Target::Gateway(gateway_key(9).verifying_key().into()), vec![1; 10]);
    for _ in 0..130 {
        world.feed(0, Event::Heard { link: LinkId(5) });
        world.run(Duration::from_millis(500));
    }
    assert_eq!(world.nodes[0].closed, [Refusal::Stalled]);
    assert!(world.nodes[0].settled[&token].is_err());
}

#[test]
fn a_certificate_that_is_not_renewed_ends_the_link() {
    let mut world = World::new(1, 1);
    join(&mut world, 9, LinkId(5), NOW - 23 * HOUR, VERSION);
    let pings = |world: &mut World, minutes: u64| {
        for _ in 0..minutes * 60 {
            world.feed(
                0,
                Event::Frame { link: LinkId(5), bytes: Frame::Pong(0).encode().slice(4..) },
            );
            world.run(Duration::from_secs(1));
        }
    };
    pings(&mut world, 64);
    assert_eq!(world.nodes[0].closed, []);
    pings(&mut world, 2);
    assert_eq!(world.nodes[0].closed, [Refusal::CertificateExpired]);
}

/// A neighbour played by hand: it connects and says a good hello.
fn join(world: &mut World, seed: u8, link: LinkId, begins: u64, greatest: u64) {
    let node = node_id(seed);
    world.feed(0, Event::Connected { link, node, is_dialled: false });
    let certificate = certificate(seed, node, begins).as_bytes().to_vec();
    let hello = Hello { least: 1, greatest, certificate, in_flight: 1 << 20 };
    world.feed(0, Event::Frame { link, bytes: Frame::Hello(hello).encode().slice(4..) });
}
