use fieldpost_mixnet::htx::{
    Action, Closed, Event, FrameHeader, FrameKind, OpeningHalf, SealingHalf, SessionKeys, StreamId,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::pair::{Pair, quiet};

#[test]
fn ten_thousand_altered_frames_are_all_refused() {
    let mut rng = StdRng::seed_from_u64(10_000);
    let keys = || SessionKeys::derive(&[1; 32], (&[2; 32], &[3; 32]), &[4; 32]);
    let kinds = [
        (FrameKind::Stream, StreamId::new(3), 40),
        (FrameKind::Ping, None, 9),
        (FrameKind::Close, None, 2),
        (FrameKind::KeyUpdate, None, 0),
        (FrameKind::WindowUpdate, StreamId::new(70), 4),
    ];
    for case in 0..10_000 {
        let (kind, stream, length) = kinds[case % kinds.len()];
        let mut frame = Vec::new();
        SealingHalf::new(keys().client).seal(kind, stream, &vec![7; length], &mut frame);
        alter(&mut rng, &mut frame);
        let Ok(Some((header, header_len))) = FrameHeader::decode(&frame) else { continue };
        let Some(whole) = frame.get_mut(..header_len + header.rest()) else { continue };
        let opened = OpeningHalf::new(keys().client).open(header.kind, whole, header_len);
        assert!(opened.is_err(), "case {case}: {header:?}");
    }
}

#[test]
fn an_altered_frame_ends_the_link_and_nothing_of_it_is_delivered() {
    let mut rng = StdRng::seed_from_u64(77);
    for case in 0..300 {
        let mut pair = Pair::up(case, &quiet());
        let stream = pair.client.link.open().unwrap();
        pair.client.send(stream, b"a frame to be altered");
        let mut frame = pair.client.wire.pop_front().unwrap();
        alter(&mut rng, &mut frame);
        pair.server.handle(Event::Receive(&frame));
        // What was made longer or shorter may wait for more; it never opens.
        pair.server.handle(Event::Receive(&vec![0; 70_000]));
        let news = pair.server.news();
        assert!(matches!(news[..], [Action::Closed(Closed::Failed(_))]), "{case}: {news:?}");
        pair.settle();
        assert_eq!(pair.client.news(), [Action::Closed(Closed::ByPeer(1))]);
    }
}

#[test]
fn an_altered_handshake_never_comes_up() {
    let mut rng = StdRng::seed_from_u64(78);
    for case in 0..600 {
        let mut pair = Pair::new(case, &quiet());
        let altered = case % 3;
        for turn in 0..3 {
            let from_client = turn % 2 == 0;
            let end = if from_client { &mut pair.client } else { &mut pair.server };
            if turn == altered {
                alter(&mut rng, &mut end.wire[0]);
            }
            pair.carry(from_client);
            if turn == altered {
                break;
            }
        }
        let victim = if altered == 1 { &pair.client } else { &pair.server };
        assert!(!victim.is_up(), "case {case}");
    }
}

#[test]
fn frames_in_another_order_or_twice_are_refused() {
    for order in [[1, 0], [0, 0]] {
        let mut pair = Pair::up(1, &quiet());
        let stream = pair.client.link.open().unwrap();
        pair.client.send(stream, b"one");
        pair.client.send(stream, b"two");
        for index in order {
            let frame = pair.client.wire[index].clone();
            pair.server.handle(Event::Receive(&frame));
        }
        assert!(!pair.server.is_up());
    }
}

#[test]
fn a_frame_of_the_other_direction_is_refused() {
    let mut pair = Pair::up(1, &quiet());
    let stream = pair.client.link.open().unwrap();
    pair.client.send(stream, b"mirror");
    let frame = pair.client.wire.pop_front().unwrap();
    pair.client.handle(Event::Receive(&frame));
    assert!(!pair.client.is_up());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_taken_without_a_panic(bytes: Vec<u8>, up: bool) {
        let mut pair = if up { Pair::up(1, &quiet()) } else { Pair::new(1, &quiet()) };
        for end in [&mut pair.client, &mut pair.server] {
            end.handle(Event::Receive(&bytes));
            end.handle(Event::Receive(&[0xff; 100]));
            prop_assert!(!end.is_up());
        }
    }

    #[test]
    fn what_is_sent_arrives_whatever_the_pieces(
        pieces in prop::collection::vec((any::<bool>(), 1..40_000_usize), 1..8),
        seed in 0..1_000_u64,
    ) {
        let mut pair = Pair::up(seed, &quiet());
        let streams = [pair.client.link.open().unwrap(), pair.server.link.open().unwrap()];
        let mut sent = [Vec::new(), Vec::new()];
        for (fill, (from_client, length)) in (1..).zip(pieces) {
            let data = vec![fill; length];
            let (end, index) =
                if from_client { (&mut pair.client, 0) } else { (&mut pair.server, 1) };
            end.send(streams[index], &data);
            sent[index].extend(data);
            pair.settle();
        }
        prop_assert!(pair.server.data() == sent[0]);
        prop_assert!(pair.client.data() == sent[1]);
    }
}

/// Flips, drops, doubles or inserts a byte.
fn alter(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    let before = bytes.clone();
    while *bytes == before {
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..8) {
            0 => drop(bytes.remove(at)),
            1 => bytes.insert(at, rng.random()),
            2 => bytes.truncate(at),
            _ => bytes[at] ^= 1 << rng.random_range(0..8),
        }
    }
}
