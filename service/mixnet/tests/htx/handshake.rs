use std::time::Duration;

use fieldpost_mixnet::htx::{
    Action, Closed, Dial, Event, HandshakeError, Identity, LinkError, Parameters, SecretKey,
    Settings,
};

use crate::pair::{Pair, capabilities, dial, identity, quiet, server_key};

#[test]
fn both_sides_come_up_and_know_each_other() {
    let client = Settings { capabilities: capabilities(&[1, 3, 9]), ..quiet() };
    let server = Settings { capabilities: capabilities(&[3, 4, 9]), ..quiet() };
    let relay = SecretKey::from_bytes(&[7; 32]);
    let dial = Dial { identity: Some(relay.clone()), ..dial(&server) };
    let mut pair = Pair::between(1, client, server, dial, identity());
    pair.settle();
    let common = capabilities(&[3, 9]);
    let up = |peer: &SecretKey| Action::Established {
        peer: *peer.public(),
        capabilities: common.clone(),
    };
    assert_eq!(pair.client.news(), [up(&server_key())]);
    assert_eq!(pair.server.news(), [up(&relay)]);
}

#[test]
fn a_client_without_identity_is_a_stranger_each_time() {
    let peers: Vec<_> = (0..2)
        .map(|seed| {
            let mut pair = Pair::new(seed * 10, &quiet());
            pair.settle();
            let Some(Action::Established { peer, .. }) = pair.server.news().pop() else { panic!() };
            peer
        })
        .collect();
    assert_ne!(peers[0], peers[1]);
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let said = |seed| {
        let mut pair = Pair::new(seed, &quiet());
        let mut said = Vec::new();
        for turn in 0..3 {
            let from_client = turn % 2 == 0;
            let end = if from_client { &pair.client } else { &pair.server };
            said.push(end.wire[0].clone());
            pair.carry(from_client);
        }
        said
    };
    let (first, other) = (said(5), said(6));
    assert_eq!(first, said(5));
    for (one, another) in first.iter().zip(&other) {
        assert_ne!(one, another);
    }
}

#[test]
fn messages_of_many_handshakes_have_many_lengths() {
    let lengths: std::collections::BTreeSet<_> =
        (0..40).map(|seed| Pair::new(seed, &quiet()).client.wire[0].len()).collect();
    assert!(lengths.len() > 25, "{}", lengths.len());
}

#[test]
fn bytes_may_be_cut_anywhere() {
    let whole = |pair: &mut Pair, cut: usize| {
        // Everything that the client ever sends, one cut at this place; the server answers whole.
        let mut at = 0;
        for _ in 0..8 {
            while let Some(bytes) = pair.client.wire.pop_front() {
                let middle = cut.saturating_sub(at).min(bytes.len());
                pair.server.handle(Event::Receive(&bytes[..middle]));
                pair.server.handle(Event::Receive(&bytes[middle..]));
                at += bytes.len();
            }
            pair.carry(false);
            if pair.client.is_up() && at < 4_000 {
                let stream = pair.client.link.open().unwrap();
                pair.client.send(stream, b"cut me");
                pair.client.handle(Event::Finish(stream));
            }
        }
        at
    };
    let all = whole(&mut Pair::new(3, &quiet()), 0);
    assert!(all > 1_400, "{all}");
    for cut in 0..all {
        let mut pair = Pair::new(3, &quiet());
        whole(&mut pair, cut);
        assert!(pair.server.is_up(), "cut at {cut}");
        assert!(pair.server.data().starts_with(b"cut me"), "cut at {cut}");
    }
}

#[test]
fn bytes_may_come_one_by_one() {
    let mut pair = Pair::new(3, &quiet());
    for turn in 0..3 {
        let (from, to) = if turn % 2 == 0 {
            (&mut pair.client, &mut pair.server)
        } else {
            (&mut pair.server, &mut pair.client)
        };
        for byte in from.wire.drain(..).flatten() {
            to.handle(Event::Receive(&[byte]));
        }
    }
    let stream = pair.server.link.open().unwrap();
    pair.server.send(stream, &[5; 40_000]);
    for byte in pair.server.wire.drain(..).flatten() {
        pair.client.handle(Event::Receive(&[byte]));
    }
    assert_eq!(pair.client.data(), [5; 40_000]);
}

#[test]
fn a_channel_that_is_not_the_same_on_both_sides_does_not_open() {
    let server = Settings { capabilities: capabilities(&[3, 4]), ..quiet() };
    let wrong_client = [
        ("another TLS channel", Dial { exporter: [0; 32], ..dial(&server) }),
        ("another ticket key", Dial { ticket_key_id: *b"anotherk", ..dial(&server) }),
        ("another server", Dial { server: [9; 32], ..dial(&server) }),
        ("fewer capabilities", Dial { server_capabilities: capabilities(&[3]), ..dial(&server) }),
    ];
    for (what, dial) in wrong_client {
        let mut pair = Pair::between(1, quiet(), server.clone(), dial, identity());
        pair.settle();
        let failed = LinkError::Handshake(HandshakeError::Noise);
        assert_eq!(pair.server.news(), [Action::Closed(Closed::Failed(failed))], "{what}");
        assert!(!pair.client.is_up(), "{what}");
        assert_eq!(pair.server.link.next_deadline(), None);
    }
}

#[test]
fn a_list_that_is_shortened_on_the_way_is_noticed() {
    let client = Settings { capabilities: capabilities(&[3, 4]), ..quiet() };
    let mut pair = Pair::between(1, client, quiet(), dial(&quiet()), identity());
    let message = &mut pair.client.wire[0];
    assert_eq!(message[2..9], [1, 1, 2, 0, 3, 0, 4]);
    message[4] = 1;
    message.drain(7..9);
    let length = u16::try_from(message.len() - 2).unwrap();
    message[..2].copy_from_slice(&length.to_be_bytes());
    pair.settle();
    let failed = LinkError::Handshake(HandshakeError::Noise);
    assert_eq!(pair.server.news(), [Action::Closed(Closed::Failed(failed))]);
}

#[test]
fn another_version_or_suite_is_refused_by_name() {
    for (at, error) in [(2, HandshakeError::Version(2)), (3, HandshakeError::Suite(2))] {
        let mut pair = Pair::new(1, &quiet());
        pair.client.wire[0][at] = 2;
        pair.settle();
        let failed = LinkError::Handshake(error);
        assert_eq!(pair.server.news(), [Action::Closed(Closed::Failed(failed))]);
    }
}

#[test]
fn parameters_out_of_range_are_refused_at_home() {
    for parameters in [
        Parameters { window: 65_534, streams: 1 },
        Parameters { window: (16 << 20) + 1, streams: 1 },
        Parameters { window: 65_535, streams: 0 },
        Parameters { window: 65_535, streams: 1025 },
    ] {
        assert!(parameters.check().is_err(), "{parameters:?}");
    }
}

#[test]
fn a_handshake_that_stalls_is_given_up_after_ten_seconds() {
    let mut pair = Pair::new(1, &quiet());
    pair.client.wire.clear();
    pair.run(Duration::from_millis(9_999));
    assert!(pair.client.seen.is_empty() && pair.server.seen.is_empty());
    pair.run(Duration::from_millis(1));
    let timed_out = Action::Closed(Closed::Failed(LinkError::HandshakeTimeout));
    for end in [&mut pair.client, &mut pair.server] {
        assert_eq!(end.news(), std::slice::from_ref(&timed_out));
    }
}

#[test]
fn debug_shows_no_keys() {
    let key = SecretKey::from_bytes(&[0xab; 32]);
    let identity = Identity { exporter: [1; 32], ticket_key_id: [2; 8], key };
    assert!(!format!("{identity:?}").contains("171, 171, 171"));
    let pair = Pair::up(1, &quiet());
    assert_eq!(
        format!("{:?}", pair.client.link),
        "Link { state: \"up\", untransmitted_bytes: 0, .. }"
    );
}
