//! Handshakes and links: never a panic, and no link comes up from made-up bytes.
//!
//! The first byte says who gets the rest: a server, a client, or one of the payload decoders, which
//! hostile bytes reach behind a valid Noise message only.
#![no_main]

use std::{sync::OnceLock, time::Instant};

use fieldpost_mixnet::htx::{
    Action, ClientOffer, Dial, Event, Hello, Identity, Link, SecretKey, ServerOffer, Settings,
};
use libfuzzer_sys::fuzz_target;
use rand::{SeedableRng, rngs::StdRng};

fuzz_target!(|bytes: &[u8]| {
    let Some((target, bytes)) = bytes.split_first() else { return };
    match target % 5 {
        0 | 2 => feed(server(), bytes),
        1 => feed(client(), bytes),
        3 => {
            let client = ClientOffer::decode(bytes).map(|offer| offer.parameters);
            let server = ServerOffer::decode(bytes).map(|offer| offer.parameters);
            for parameters in [client, server].into_iter().flatten() {
                assert!(parameters.check().is_ok());
            }
        }
        _ => {
            if let Ok((hello, rest)) = Hello::decode(bytes) {
                let mut written = Vec::new();
                hello.encode(&mut written);
                assert_eq!([&written, rest].concat(), bytes);
            }
        }
    }
});

fn feed(mut link: Link<StdRng>, bytes: &[u8]) {
    let middle = bytes.len() / 2;
    for part in [&bytes[..middle], &bytes[middle..]] {
        for action in link.handle(now(), Event::Receive(part)) {
            assert!(!matches!(action, Action::Established { .. } | Action::Data { .. }));
        }
    }
}

fn server() -> Link<StdRng> {
    let key = SecretKey::from_bytes(&[0x51; 32]);
    let identity = Identity { exporter: [0xe1; 32], ticket_key_id: *b"ticketid", key };
    Link::accept(now(), StdRng::seed_from_u64(2), Settings::default(), identity).expect("a link")
}

fn client() -> Link<StdRng> {
    let dial = Dial {
        exporter: [0xe1; 32],
        ticket_key_id: *b"ticketid",
        server: *SecretKey::from_bytes(&[0x51; 32]).public(),
        server_capabilities: Default::default(),
        identity: None,
    };
    Link::dial(now(), StdRng::seed_from_u64(1), Settings::default(), dial).expect("a link")
}

fn now() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}
