//! A whole node, fed with frames over two links: tables, frames and airtime stay within their
//! limits, and a phone on the third link is still heard.
//!
//! Input: records of one byte (bit 0 the link, the others how long to wait), u16 length, frame.
#![no_main]

use std::time::Duration;

use ed25519_dalek::SigningKey;
use fieldpost_bitchat::{
    Action, Event, Header, Identity, Limits, LinkId, Node, Now, Packet, PacketType, Report, Role,
    payload::announce::{Announce, Order},
};
use libfuzzer_sys::fuzz_target;
use rand::{SeedableRng, rngs::StdRng};

/// The time of the vectors, so that their packets are fresh.
const EPOCH_MS: u64 = 1_700_000_000_000;
const HONEST: LinkId = LinkId(9);

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        peers: 8,
        seen: 64,
        sets: 4,
        set_bytes: 8192,
        sessions: 4,
        held: 16,
        frames_per_link: 64,
        ..Limits::default()
    };
    // One of the vectors' peers, so that their handshakes and frames are for somebody.
    let bob: [u8; 32] = std::array::from_fn(|i| 0x21 + i as u8);
    let identity = Identity::from_keys(&bob, &[0x61; 32]);
    let rng = StdRng::seed_from_u64(1);
    let mut scene = Scene {
        node: Node::new(rng, limits.clone(), identity, "fuzz".to_owned()),
        at: Duration::from_secs(1),
        limits,
        heard: 0,
    };
    for link in [LinkId(0), LinkId(1), HONEST] {
        let (role, max_frame, phone) = (Role::Peripheral, 512, true);
        scene.give(Event::LinkUp { link, role, max_frame, phone });
    }
    let mut rest = bytes;
    while let [head, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
        let link = LinkId(u64::from(head & 1));
        scene.give(Event::Frame { link, bytes: frame.to_vec() });
        scene.wait(Duration::from_millis(u64::from(head >> 1) * 5));
    }
    scene.phone_is_heard();
});

struct Scene {
    node: Node<StdRng>,
    at: Duration,
    limits: Limits,
    heard: usize,
}

impl Scene {
    fn give(&mut self, event: Event) {
        let unix_ms = EPOCH_MS + self.at.as_millis() as u64;
        let actions: Vec<_> = self.node.handle(Now { at: self.at, unix_ms }, event).collect();
        for action in actions {
            match action {
                Action::Transmit { frame, .. } => {
                    assert!(frame.len() <= 512 && Packet::decode(&frame).is_ok());
                }
                Action::Report(Report::Public { text, .. }) if text == "still here" => {
                    self.heard += 1;
                }
                _ => {}
            }
        }
        let (load, limits) = (self.node.load(), &self.limits);
        assert!(load.peers <= limits.peers && load.seen <= limits.seen, "{load:?}");
        assert!(load.sets <= limits.sets && load.set_bytes <= limits.set_bytes, "{load:?}");
        assert!(load.sessions <= limits.sessions && load.held <= limits.held, "{load:?}");
        assert!(load.waiting_frames <= 3 * limits.frames_per_link, "{load:?}");
    }

    fn wait(&mut self, time: Duration) {
        let end = self.at + time;
        for _ in 0..10_000 {
            let Some(at) = self.node.next_deadline().filter(|at| *at <= end) else {
                self.at = end;
                return;
            };
            self.at = self.at.max(at);
            self.give(Event::Wake);
        }
        panic!("the node wakes forever");
    }

    fn phone_is_heard(&mut self) {
        let identity = Identity::from_keys(&[3; 32], &[4; 32]);
        let signing = SigningKey::from_bytes(&[4; 32]);
        let announce = Announce {
            nickname: "phone".to_owned(),
            noise_key: *identity.noise_public(),
            signing_key: identity.signing_public(),
            ..Announce::default()
        };
        let payloads = [
            (PacketType::ANNOUNCE, announce.encode(Order::Apple).unwrap()),
            (PacketType::MESSAGE, b"still here".to_vec()),
        ];
        for (kind, payload) in payloads {
            let timestamp_ms = EPOCH_MS + self.at.as_millis() as u64;
            let sender = identity.id();
            let header = Header { kind, hops_left: 7, timestamp_ms, sender, recipient: None };
            let mut packet = Packet::new(header, payload);
            packet.sign(&signing);
            self.give(Event::Frame { link: HONEST, bytes: packet.encode() });
        }
        assert_eq!(self.heard, 1);
    }
}
