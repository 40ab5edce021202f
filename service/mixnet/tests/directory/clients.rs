//! Packets of clients, built from a document alone, pass real relays and are opened at the end.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fieldpost_envelope::GatewayId;
use fieldpost_mixnet::{
    client::{ClientError, Way, build_packets},
    directory::{
        Certificate, Descriptor, Document, EpochSecret, RelayId, RouteError, SignedDocument,
    },
    receiver::{self, Receiver},
    relay::{self, Relay},
    replay::ReplayCache,
    sphinx::Packet,
};
use rand::{SeedableRng, rngs::StdRng};

use crate::fixtures::{
    EPOCH, authority, clock, descriptor, id, key, signed_document, time, weighted,
};

const GATEWAY: u8 = 9;

#[test]
fn messages_of_every_size_pass_three_relays_and_are_opened() {
    let mut network = Network::new();
    for length in [1, 4 * 1024, 64 * 1024, 1024 * 1024] {
        let message: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let rng = &mut StdRng::seed_from_u64(length as u64);
        let packets = build_packets(
            rng,
            time(1),
            (network.document.document(), clock()),
            gateway(),
            &message,
            Way { delay: Duration::ZERO, ..Way::default() },
        )
        .unwrap();
        let mut arrived = Vec::new();
        for finished in packets {
            arrived.extend(network.carry(finished.first, finished.packet));
        }
        assert!(arrived == [message], "{length} bytes arrive whole and once");
    }
    assert!(network.hops.values().all(|hops| *hops == 3), "each packet passed three relays");
}

#[test]
fn a_client_is_told_what_the_document_lacks() {
    let network = Network::new();
    let document = network.document.document();
    let rng = &mut StdRng::seed_from_u64(1);
    let mut build = |now, gateway, relays, length| {
        let way = Way { relays, ..Way::default() };
        build_packets(rng, now, (document, clock()), gateway, &vec![0; length], way).map(|_| ())
    };
    let stranger = GatewayId::from(key(0x55).verifying_key());
    let unknown = ClientError::UnknownGateway { gateway: stranger, epoch: EPOCH };
    assert_eq!(build(time(1), stranger, 3, 1), Err(unknown));
    let late = build(time(10_000), gateway(), 3, 1);
    assert!(matches!(late, Err(ClientError::UnknownGateway { .. })), "{late:?}");
    let few = RouteError::TooFewRelays { count: 3, needed: 4 };
    assert_eq!(build(time(1), gateway(), 4, 1), Err(few.into()));
    let long = build(time(1), gateway(), 3, 2 << 20);
    assert_eq!(long, Err(ClientError::Oversize { length: 2 << 20 }));
}

fn gateway() -> GatewayId {
    GatewayId::from(key(0xaa).verifying_key())
}

/// Three relays and a gateway with real keys, and no links: what one passes on, the next is given.
struct Network {
    document: SignedDocument,
    relays: BTreeMap<RelayId, Relay>,
    receiver: Receiver<StdRng>,
    now: Instant,
    hops: BTreeMap<usize, usize>,
}

impl Network {
    #[expect(clippy::disallowed_methods, reason = "a start that nothing depends on")]
    fn new() -> Self {
        let now = Instant::now();
        let rng = &mut StdRng::seed_from_u64(7);
        let mut receiver =
            Receiver::new(id(GATEWAY), receiver::Config::default(), StdRng::seed_from_u64(8));
        let mut relays = BTreeMap::new();
        let mut descriptors = Vec::new();
        for number in [1, 2, 3, GATEWAY] {
            let secret = EpochSecret::generate(rng);
            let mut said =
                Descriptor { keys: vec![secret.public(EPOCH)], ..descriptor(number, EPOCH) };
            if number == GATEWAY {
                let node = key(GATEWAY).verifying_key();
                said.relays = false;
                said.certificate = Some(Certificate::issue(&key(0xaa), &node, time(80_000)));
                receiver.open_epoch(EPOCH, secret.sealing.clone());
            }
            let mut relay = Relay::new(relay::Config::default(), now);
            let cache = ReplayCache::new(EPOCH, [7; 32], 1 << 16);
            let closes_at = now + Duration::from_secs(3_600);
            relay.open_epoch(secret.sphinx.as_bytes(), cache, closes_at).unwrap();
            relays.insert(id(number), relay);
            descriptors.push(said);
        }
        let document = Document::genesis(&authority(), time(0), weighted(&descriptors)).unwrap();
        let document = signed_document(document);
        document.verify(&authority()).unwrap();
        Self { document, relays, receiver, now, hops: BTreeMap::new() }
    }

    /// Carries a packet to its end and returns the messages that become whole by it.
    fn carry(&mut self, first: RelayId, packet: Packet) -> Vec<Vec<u8>> {
        let number = self.hops.len();
        let mut next = Some((first, packet));
        while let Some((at, packet)) = next.take() {
            let relay = self.relays.get_mut(&at).unwrap();
            let mut actions: Vec<_> =
                relay.handle(self.now, relay::Event::Packet(packet)).collect();
            self.now += Duration::from_millis(1);
            actions.extend(relay.handle(self.now, relay::Event::Wake));
            for action in actions {
                match action {
                    relay::Action::Log { .. } => {}
                    relay::Action::Forward { to, packet } => {
                        *self.hops.entry(number).or_default() += 1;
                        next = Some((to, packet));
                    }
                    relay::Action::Deliver(packet) => {
                        let event = receiver::Event::Packet(packet);
                        let stored =
                            self.receiver.handle(self.now, event).filter_map(|it| match it {
                                receiver::Action::Store { message, .. } => Some(message),
                                receiver::Action::Transmit { .. } => None,
                            });
                        return stored.collect();
                    }
                    relay::Action::Reply { .. } => panic!("no SURB was given away"),
                }
            }
        }
        panic!("a packet was lost")
    }
}
