use std::net::SocketAddr;

use ed25519_dalek::Signer;
use fieldpost_envelope::{GatewayId, Timestamp};
use fieldpost_mixnet::{
    directory::{
        Certificate, DecodeError, Descriptor, DescriptorError, SignedDescriptor, descriptor_limits,
    },
    htx::{Capabilities, Capability},
};
use proptest::{collection, option, prelude::*};

use crate::fixtures::{EPOCH, descriptor, everything, hidden, id, key, signed, time};

#[test]
fn a_descriptor_with_every_field_arrives_as_it_was_signed() {
    for descriptor in [everything(), descriptor(1, EPOCH), hidden(2, &[3])] {
        let bytes = signed(&descriptor);
        let decoded = SignedDescriptor::decode(bytes.as_bytes()).unwrap();
        assert_eq!(decoded, bytes);
        assert_eq!(decoded.verify(), Ok(&descriptor));
        assert_eq!(decoded.id(), descriptor.id());
    }
}

#[test]
fn a_gateways_word_is_good_for_its_own_node_and_for_a_day() {
    let everything = everything();
    let gateway = GatewayId::from(key(0xaa).verifying_key());
    assert_eq!(everything.gateway(time(0)), Some(gateway));
    assert_eq!(everything.gateway(time(86_000)), Some(gateway));
    assert_eq!(everything.gateway(time(86_001)), None);
    let day = descriptor_limits::CERTIFICATE_MS;
    let too_long = Timestamp::try_from(time(0).as_millis() + day + 1).unwrap();
    let node = everything.identity;
    let certificate = Some(Certificate::issue(&key(0xaa), &node, too_long));
    assert_eq!(Descriptor { certificate, ..everything.clone() }.gateway(time(0)), None);

    let of_another = Certificate::issue(&key(0xaa), &key(1).verifying_key(), time(100));
    let stolen = Descriptor { certificate: Some(of_another), ..everything };
    assert_eq!(signed(&stolen).verify(), Err(DescriptorError::Certificate));
}

#[test]
fn a_relay_signs_for_itself_alone() {
    let descriptor = descriptor(1, EPOCH);
    assert_eq!(descriptor.sign(&key(2)), Err(DescriptorError::KeyOfAnother));
    let mut bytes = signed(&descriptor).as_bytes().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let forged = SignedDescriptor::decode(&bytes).unwrap();
    assert_eq!(forged.verify(), Err(DescriptorError::Signature));
}

#[test]
fn a_descriptor_that_breaks_a_rule_says_which() {
    let good = || descriptor(1, EPOCH);
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let mapped = address("[::ffff:10.0.0.1]:443");
    let gap = {
        let mut keys = good().keys;
        keys.remove(1);
        keys
    };
    for (broken, error) in [
        (Descriptor { operator: String::new(), ..good() }, DescriptorError::Operator { length: 0 }),
        (Descriptor { operator: "a\nb".into(), ..good() }, DescriptorError::Operator { length: 3 }),
        (Descriptor { country: Some(*b"de"), ..good() }, DescriptorError::Country),
        (Descriptor { addresses: vec![mapped], ..good() }, DescriptorError::Address(mapped)),
        (
            Descriptor { addresses: vec![address("0.0.0.0:443")], ..good() },
            DescriptorError::Address(address("0.0.0.0:443")),
        ),
        (
            Descriptor { addresses: vec![address("10.0.0.1:1"); 2], ..good() },
            DescriptorError::Address(address("10.0.0.1:1")),
        ),
        (
            Descriptor { server_name: "Relay.example".into(), ..good() },
            DescriptorError::ServerName { length: 13 },
        ),
        (
            Descriptor { addresses: Vec::new(), ..good() },
            DescriptorError::ServerName { length: 14 },
        ),
        (
            Descriptor { addresses: Vec::new(), server_name: String::new(), ..good() },
            DescriptorError::Unreachable,
        ),
        (hidden(2, &[]), DescriptorError::Unreachable),
        (Descriptor { through: vec![id(3); 2], ..good() }, DescriptorError::Through { count: 2 }),
        (Descriptor { keys: gap, ..good() }, DescriptorError::Epochs { count: 2 }),
        (Descriptor { keys: Vec::new(), ..good() }, DescriptorError::Epochs { count: 0 }),
        (Descriptor { epoch: EPOCH + 1, ..good() }, DescriptorError::Epochs { count: 3 }),
        (Descriptor { capacity: 0, ..good() }, DescriptorError::Capacity),
    ] {
        let number = if broken.relays { 1 } else { 2 };
        assert_eq!(broken.sign(&key(number)), Err(error));
    }
}

#[test]
fn another_way_to_write_the_same_is_refused() {
    let bytes = signed(&descriptor(1, EPOCH)).as_bytes().to_vec();
    let payload = &bytes[..bytes.len() - 64];
    let resigned = |payload: Vec<u8>| {
        let text = [b"fieldpost-htx-descriptor-v1", &payload[..]].concat();
        let signature = key(1).sign(&text).to_bytes();
        SignedDescriptor::decode(&[&payload[..], &signature].concat())
    };
    assert!(resigned(payload.to_vec()).is_ok());
    let edit = |at: usize, byte: u8| {
        let mut payload = payload.to_vec();
        payload[at] = byte;
        resigned(payload).unwrap_err()
    };
    assert_eq!(edit(2, 2), DecodeError::Version(2).into());
    assert_eq!(edit(1, 1), DecodeError::Missing { field: "version" }.into());
    assert_eq!(edit(0, 0xbf), DecodeError::Indefinite { at: 0 }.into());
    assert_eq!(edit(0, 0x8f), DecodeError::WrongType { field: "descriptor" }.into());
    let mut long = payload.to_vec();
    long.splice(2..3, [0x18, 1]);
    assert_eq!(resigned(long), Err(DecodeError::NotShortest { at: 2 }.into()));
    let trailing = [payload, &[0]].concat();
    assert_eq!(resigned(trailing), Err(DecodeError::Trailing { extra: 1 }.into()));
    let oversize = vec![0; descriptor_limits::SIGNED + 1];
    let error = DecodeError::Oversize { length: 4_097, most: 4_096 };
    assert_eq!(SignedDescriptor::decode(&oversize), Err(error.into()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_descriptor_arrives_as_it_was_signed(descriptor in any_descriptor()) {
        let bytes = signed(&descriptor);
        let decoded = SignedDescriptor::decode(bytes.as_bytes()).unwrap();
        prop_assert_eq!(decoded.verify(), Ok(&descriptor));
        prop_assert_eq!(signed(decoded.verify().unwrap()), bytes);
    }

    #[test]
    fn an_altered_descriptor_is_never_believed(at: prop::sample::Index, flip in 1..=255_u8) {
        let mut bytes = signed(&everything()).as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let believed = SignedDescriptor::decode(&bytes).is_ok_and(|it| it.verify().is_ok());
        prop_assert!(!believed);
    }

    #[test]
    fn a_piece_of_a_descriptor_is_none(end: prop::sample::Index) {
        let bytes = signed(&everything()).as_bytes().to_vec();
        prop_assert!(SignedDescriptor::decode(&bytes[..end.index(bytes.len())]).is_err());
    }
}

fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = (any::<[u8; 4]>(), any::<[u8; 16]>(), any::<bool>(), 1..=u16::MAX);
    let addresses = collection::vec(address, 1..=8);
    (
        (1..=200_u8, 0..1_u64 << 40, "[a-zA-Z äöü.]{1,20}", option::of(any::<u32>())),
        (option::of(any::<[bool; 2]>()), addresses, "[a-z0-9.-]{1,253}", any::<bool>()),
        (collection::btree_set(any::<u16>(), 0..32), any::<[u8; 32]>(), 1..=u32::MAX, 1..=3_usize),
    )
        .prop_filter_map("addresses that can be connected to", |(one, two, three)| {
            let (number, epoch, operator, autonomous_system) = one;
            let (country, addresses, server_name, is_relay) = two;
            let (capabilities, vrf, capacity, epochs) = three;
            let mut descriptor = Descriptor {
                operator,
                autonomous_system,
                country: country.map(|pair| pair.map(|bit| if bit { b'Z' } else { b'A' })),
                addresses: addresses
                    .into_iter()
                    .map(
                        |(v4, v6, is_v4, port)| {
                            if is_v4 { (v4, port).into() } else { (v6, port).into() }
                        },
                    )
                    .collect(),
                server_name,
                relays: is_relay,
                capabilities: Capabilities::new(capabilities.into_iter().map(Capability)).unwrap(),
                vrf,
                capacity,
                ..descriptor(number, epoch)
            };
            descriptor.keys.truncate(epochs);
            descriptor.sign(&key(number)).is_ok().then_some(descriptor)
        })
}
