//! The known weaknesses of Sphinx (HTX reference, section 2.3), each held against our packets.

use curve25519_dalek::{constants::EIGHT_TORSION, montgomery::MontgomeryPoint};
use fieldpost_mixnet::sphinx::{
    Class, Command, Group, HEADER_LEN, HeaderLayout, HopError, HopKeys, PAYLOAD_TAG, Packet,
    PayloadKey, Processed, Production, Role, Step, Stop, Suite, Surb, SurbId, X25519, build_header,
    open,
};
use rand::{SeedableRng, rngs::StdRng};

use crate::fixtures::{EPOCH, Tape, hop, public, relay_id, route, secret};

#[test]
fn the_last_hop_cannot_tell_how_long_the_route_was() {
    // What a last hop decrypts after its own command is random for every length: each byte is zero
    // as often as any other value, where zero padding would make up to 240 of them zero.
    let mut rng = StdRng::seed_from_u64(1);
    for hops in 1..=5 {
        let (mut zeros, mut ones, packets) = (0_u32, 0_u32, 200_u32);
        for _ in 0..packets {
            let mut packet = build(&mut rng, hops, b"hello");
            for relay in 1..hops {
                hop(relay, &mut packet).unwrap();
            }
            let routing = decrypted_routing(hops, &packet);
            // Of its own block, the last hop knows flags and id field; the rest is random too.
            for byte in &routing[Production::BLOCK - Production::MAC..] {
                zeros += u32::from(*byte == 0);
                ones += byte.count_ones();
            }
        }
        let bytes = packets * (Production::ROUTING - Production::BLOCK + Production::MAC) as u32;
        let share = f64::from(zeros) / f64::from(bytes);
        assert!((share * 256.0 - 1.0).abs() < 0.25, "{hops} hops: {share}");
        let share = f64::from(ones) / f64::from(bytes * 8);
        assert!((share - 0.5).abs() < 0.01, "{hops} hops: {share}");
    }
}

#[test]
fn a_packet_looks_the_same_at_every_hop() {
    let mut rng = StdRng::seed_from_u64(2);
    for hops in 2..=5 {
        let mut packet = build(&mut rng, hops, b"hello");
        let (prefix, length) = (packet.as_bytes()[..4].to_vec(), packet.as_bytes().len());
        for relay in 1..hops {
            let before = packet.as_bytes().to_vec();
            hop(relay, &mut packet).unwrap();
            assert_eq!((&packet.as_bytes()[..4], packet.as_bytes().len()), (&prefix[..], length));
            let same = before.iter().zip(packet.as_bytes()).skip(4).filter(|(a, b)| a == b);
            assert!(same.count() < length / 64, "nothing of the packet is carried over");
        }
    }
}

#[test]
fn a_payload_that_was_tagged_is_noise_for_the_last_hop() {
    let mut rng = StdRng::seed_from_u64(3);
    for class in Class::ALL {
        let body = vec![0x55; class.body_len()];
        for at in [0, 1, 31, 32, 33, 1000, class.payload_len() - 1] {
            let mut packet = Packet::build(&mut rng, &route(3), class, &body).unwrap();
            hop(1, &mut packet).unwrap();
            packet.as_bytes_mut()[HEADER_LEN + at] ^= 0x10;
            assert!(hop(2, &mut packet).is_ok(), "a relay sees nothing of it");
            assert_eq!(hop(3, &mut packet), Err(HopError::Payload));
            let right = packet.body().iter().filter(|byte| **byte == 0x55).count();
            assert!(right < class.body_len() / 64, "{right} bytes survived a flip at {at}");
        }
    }
}

#[test]
fn elements_of_small_order_are_refused() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut elements: Vec<[u8; 32]> =
        EIGHT_TORSION.iter().map(|point| point.to_montgomery().to_bytes()).collect();
    // p, p + 1, and the same values with the bit that X25519 ignores.
    let mut p = [0xff; 32];
    (p[0], p[31]) = (0xed, 0x7f);
    let mut p_and_one = p;
    p_and_one[0] = 0xee;
    elements.extend([p, p_and_one]);
    for mut element in elements.clone() {
        element[31] |= 0x80;
        elements.push(element);
    }
    assert!(elements.len() >= 20);
    for element in elements {
        let mut packet = build(&mut rng, 2, b"hello");
        packet.as_bytes_mut()[4..36].copy_from_slice(&element);
        assert_eq!(hop(1, &mut packet), Err(HopError::SmallOrder), "{element:02x?}");
        let stops = [Stop::<Production> { key: element, command: Command::Deliver }];
        let mut header = [0; HEADER_LEN];
        let prefix = Production::prefix(EPOCH, Class::Small);
        assert!(build_header(&mut rng, &prefix, &EPOCH, &stops, &mut header).is_err());
    }
}

#[test]
fn an_element_with_a_part_of_small_order_added_is_refused_and_has_the_same_tag() {
    let mut rng = StdRng::seed_from_u64(5);
    let packet = build(&mut rng, 2, b"hello");
    let element: [u8; 32] = packet.as_bytes()[4..36].try_into().unwrap();
    let tag = open::<Production>(&secret(1), &EPOCH, packet.clone().as_bytes_mut()).unwrap().tag();
    let point = MontgomeryPoint(element).to_edwards(0).unwrap();
    let mut others: Vec<[u8; 32]> = EIGHT_TORSION[1..]
        .iter()
        .map(|torsion| (point + torsion).to_montgomery().to_bytes())
        .collect();
    let mut high_bit = element;
    high_bit[31] |= 0x80;
    others.push(high_bit);
    for other in others {
        assert_ne!(other, element);
        let mut copy = packet.clone();
        copy.as_bytes_mut()[4..36].copy_from_slice(&other);
        assert_eq!(hop(1, &mut copy), Err(HopError::Mac), "the element stands under the MAC");
        // Were it not under the MAC, the tag would still give the copy away.
        let shared = X25519::multiply(&secret(1), &other).unwrap();
        let prefix = Production::prefix(EPOCH, Class::Small);
        assert_eq!(Production::derive(&shared, &prefix, &other, &EPOCH).tag, tag);
    }
}

#[test]
fn version_epoch_and_class_are_bound_into_the_keys() {
    let mut rng = StdRng::seed_from_u64(6);
    let packet = build(&mut rng, 2, b"hello");
    let open_in = |epoch: u64, change: &dyn Fn(&mut [u8])| {
        let mut copy = packet.clone();
        change(copy.as_bytes_mut());
        open::<Production>(&secret(1), &epoch, copy.as_bytes_mut()).map(|_| ()).unwrap_err()
    };
    assert_eq!(open_in(EPOCH + 2, &|_| {}), HopError::Mac);
    assert!(matches!(open_in(EPOCH + 1, &|_| {}), HopError::Prefix(_)));
    assert_eq!(open_in(EPOCH + 1, &|bytes| bytes[1] ^= 1), HopError::Mac);
    assert_eq!(open_in(EPOCH, &|bytes| bytes[0] = 2), HopError::UnsupportedVersion(2));
    assert!(matches!(open_in(EPOCH, &|bytes| bytes[3] = 1), HopError::Prefix(_)));

    // The header of a small packet in front of a large payload.
    let mut large = packet.as_bytes()[..HEADER_LEN].to_vec();
    large.resize(Class::Large.packet_len(), 0);
    let refused = |bytes: &mut [u8]| open::<Production>(&secret(1), &EPOCH, bytes).err();
    assert!(matches!(refused(&mut large), Some(HopError::Prefix(_))));
    large[2] = Class::Large as u8;
    assert_eq!(refused(&mut large), Some(HopError::Mac));
}

#[test]
fn what_is_made_for_one_direction_is_noise_in_the_other() {
    let key = PayloadKey([7; 64]);
    let roles = [Role::Pass, Role::Deliver, Role::Reply, Role::Answer];
    for made in roles {
        for used in roles {
            let mut payload = vec![0; Class::Small.payload_len()];
            Production::encrypt_payload(&key, made, &mut payload);
            Production::decrypt_payload(&key, used, &mut payload);
            assert_eq!(payload.iter().all(|byte| *byte == 0), made == used, "{made:?}, {used:?}");
        }
    }
    // A SURB's header in front of a payload that was wrapped like a message's.
    let mut rng = StdRng::seed_from_u64(7);
    let (surb, keys) = Surb::build(&mut rng, &route(1), SurbId([1; 16])).unwrap();
    let message = build(&mut rng, 1, b"hello");
    let header = &surb.as_bytes()[32..32 + HEADER_LEN];
    let mixed = [header, &message.as_bytes()[HEADER_LEN..]].concat();
    let mut packet = Packet::from_bytes(mixed).unwrap();
    assert_eq!(
        hop(1, &mut packet),
        Ok(Processed { command: Command::Reply { surb: SurbId([1; 16]) }, last: true })
    );
    assert!(keys.open(packet.payload_mut()).is_err());
}

#[test]
fn a_relay_between_the_ends_cannot_tell_a_reply_from_a_message() {
    let mut rng = StdRng::seed_from_u64(8);
    let (surb, _) = Surb::build(&mut rng, &route(3), SurbId([1; 16])).unwrap();
    let (first, mut reply) = surb.reply(&mut rng, b"thanks").unwrap();
    assert_eq!(first, relay_id(1));
    let mut message = build(&mut rng, 3, b"hello");
    assert_eq!(reply.as_bytes()[..4], message.as_bytes()[..4]);
    for relay in 1..3 {
        assert_eq!(hop(relay, &mut reply).unwrap(), hop(relay, &mut message).unwrap());
    }
}

#[test]
fn a_surb_that_is_used_twice_is_a_replay() {
    let mut rng = StdRng::seed_from_u64(9);
    let (surb, _) = Surb::build(&mut rng, &route(3), SurbId([1; 16])).unwrap();
    let (_, mut one) = surb.clone().reply(&mut rng, b"one").unwrap();
    let (_, mut two) = surb.reply(&mut rng, b"two").unwrap();
    for relay in 1..=3 {
        let tag = |packet: &mut Packet| {
            let opened = open::<Production>(&secret(relay), &EPOCH, packet.as_bytes_mut()).unwrap();
            let tag = opened.tag();
            opened.process().unwrap();
            tag
        };
        assert_eq!(tag(&mut one), tag(&mut two));
    }
}

#[test]
fn the_same_seed_gives_the_same_packet_and_another_seed_shares_no_byte_with_it() {
    let build = |seed| build(&mut StdRng::seed_from_u64(seed), 4, b"hello");
    assert_eq!(build(10), build(10));
    let (one, two) = (build(10), build(11));
    let same = one.as_bytes().iter().zip(two.as_bytes()).skip(4).filter(|(a, b)| a == b).count();
    assert!(same < 30, "{same} of 2396 bytes are alike");
}

#[test]
fn a_hop_multiplies_twice_and_a_sender_once_for_each_hop() {
    for hops in 1..=5_u8 {
        let stops: Vec<Stop<Counted>> = (1..=hops)
            .map(|relay| Stop {
                key: public(relay),
                command: if relay == hops {
                    Command::Deliver
                } else {
                    Command::Forward { next: relay_id(relay + 1), delay: std::time::Duration::ZERO }
                },
            })
            .collect();
        let mut packet = vec![0; Class::Small.packet_len()];
        let prefix = Production::prefix(EPOCH, Class::Small);
        take_count();
        let (header, _) = packet.split_at_mut(HEADER_LEN);
        build_header(&mut Tape::new(1), &prefix, &EPOCH, &stops, header).unwrap();
        assert_eq!(take_count(), Count { points: u32::from(hops), imports: u32::from(hops) });
        let secret = secret(1);
        open::<Counted>(&secret, &EPOCH, &mut packet).unwrap().process().ok();
        let blinding = u32::from(hops > 1);
        assert_eq!(take_count(), Count { points: 1 + blinding, imports: blinding });
    }
}

fn build(rng: &mut StdRng, hops: u8, body: &[u8]) -> Packet {
    let packet = Packet::build(rng, &route(hops), Class::Small, body).unwrap();
    assert!(packet.as_bytes().len() == HEADER_LEN + PAYLOAD_TAG + Class::Small.body_len());
    packet
}

fn decrypted_routing(relay: u8, packet: &Packet) -> Vec<u8> {
    let bytes = packet.as_bytes();
    let element: [u8; 32] = bytes[4..36].try_into().unwrap();
    let shared = X25519::multiply(&secret(relay), &element).unwrap();
    let keys = Production::derive(&shared, &bytes[..4], &element, &EPOCH);
    let mut routing = bytes[Production::ROUTING_AT..Production::MAC_AT].to_vec();
    Production::apply_header_stream(&keys, &mut routing);
    routing
}

/// The suite on the wire, over a group that counts.
struct Counted;

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Count {
    /// Multiplications of a point that is not the base point.
    points: u32,
    /// Scalars made ready, with which the library computes their public key.
    imports: u32,
}

thread_local! {
    static COUNT: std::cell::Cell<Count> = const { std::cell::Cell::new(Count { points: 0, imports: 0 }) };
}

fn take_count() -> Count {
    COUNT.take()
}

impl Group for Counted {
    type Secret = <X25519 as Group>::Secret;

    fn secret(bytes: &[u8; 32]) -> Option<Self::Secret> {
        COUNT.set(Count { imports: COUNT.get().imports + 1, ..COUNT.get() });
        X25519::secret(bytes)
    }

    fn public(secret: &Self::Secret) -> Option<[u8; 32]> {
        X25519::public(secret)
    }

    fn multiply(secret: &Self::Secret, element: &[u8; 32]) -> Option<[u8; 32]> {
        COUNT.set(Count { points: COUNT.get().points + 1, ..COUNT.get() });
        X25519::multiply(secret, element)
    }

    fn product(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
        X25519::product(left, right)
    }
}

impl Suite for Counted {
    type Group = Self;
    type Command = Command;
    type Context = u64;

    const PREFIX: usize = Production::PREFIX;
    const BLOCK: usize = Production::BLOCK;
    const MAC: usize = Production::MAC;
    const PAYLOAD_KEY: usize = Production::PAYLOAD_KEY;

    fn check_prefix(prefix: &[u8], packet_len: usize, epoch: &u64) -> Result<(), HopError> {
        Production::check_prefix(prefix, packet_len, epoch)
    }

    fn derive(shared: &[u8; 32], prefix: &[u8], element: &[u8; 32], epoch: &u64) -> HopKeys {
        Production::derive(shared, prefix, element, epoch)
    }

    fn authenticate(keys: &HopKeys, prefix: &[u8], element: &[u8; 32], routing: &[u8]) -> [u8; 32] {
        Production::authenticate(keys, prefix, element, routing)
    }

    fn apply_header_stream(keys: &HopKeys, routing: &mut [u8]) {
        Production::apply_header_stream(keys, routing);
    }

    fn encrypt_payload(key: &PayloadKey, role: Role, payload: &mut [u8]) {
        Production::encrypt_payload(key, role, payload);
    }

    fn decrypt_payload(key: &PayloadKey, role: Role, payload: &mut [u8]) {
        Production::decrypt_payload(key, role, payload);
    }

    fn read(block: &[u8]) -> Result<Step<Command>, HopError> {
        Production::read(block)
    }

    fn write(command: &Command, next_mac: Option<&[u8]>, block: &mut [u8]) {
        Production::write(command, next_mac, block);
    }

    fn role(command: &Command) -> Role {
        Production::role(command)
    }
}
