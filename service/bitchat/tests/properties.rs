//! What holds for all packets and payloads, not only for those that somebody thought of.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use fieldpost_bitchat::{
    DecodeError, Header, Identity, MeshId, Packet, PacketType, Version, fragment,
    packet::{MAX_PAYLOAD, pad, unpad},
    payload::{
        announce::{Announce, Capabilities, Order},
        file::File,
        gateway::{self, Record},
        noise::PrivateMessage,
        sync::Filter,
        voice::{Body, Voice},
    },
};
use proptest::{collection::vec, option, prelude::*};
use rand::{RngExt, SeedableRng, rngs::StdRng};

proptest! {
    #[test]
    fn a_packet_reads_back_as_it_was_written_padded_or_not(packet in packets()) {
        let bytes = packet.encode();
        prop_assert_eq!(Packet::decode(&bytes), Ok(packet.clone()));
        prop_assert_eq!(Packet::decode(&packet.encode_for_wire()), Ok(packet.clone()));
        let mut padded = bytes.clone();
        pad(&mut padded);
        prop_assert_eq!(Packet::decode(&padded), Ok(packet));
        prop_assert!(padded == bytes || unpad(&padded) == Some(&bytes[..]));
    }

    #[test]
    fn a_signature_covers_all_but_hops_and_the_solicited_mark(
        packet in packets(), hops in any::<u8>(), solicited in any::<bool>(), at in any::<u64>(),
    ) {
        let identity = Identity::from_keys(&[1; 32], &[2; 32]);
        let mut packet = packet;
        packet.sign(&ed25519_dalek::SigningKey::from_bytes(&[2; 32]));
        let mut relayed = Packet::decode(&packet.encode()).unwrap();
        relayed.hops_left = hops;
        relayed.solicited = solicited;
        prop_assert!(relayed.is_signed_by(&identity.signing_public()));
        let mut altered = relayed.clone();
        altered.timestamp_ms = at;
        prop_assert_eq!(altered.is_signed_by(&identity.signing_public()), altered == relayed);
        let mut altered = relayed.clone();
        altered.recipient = match altered.recipient {
            None => Some(MeshId::BROADCAST),
            Some(_) => None,
        };
        prop_assert!(!altered.is_signed_by(&identity.signing_public()));
    }

    #[test]
    fn a_packet_cut_short_says_how_much_is_missing(packet in packets(), cut in 1..400_usize) {
        let bytes = packet.encode();
        let kept = bytes.len().saturating_sub(cut);
        match Packet::decode(&bytes[..kept]) {
            Err(DecodeError::Truncated { missing }) => prop_assert!(missing <= bytes.len()),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn whatever_comes_is_read_or_refused_and_reads_the_same_again(bytes in vec(any::<u8>(), 0..600)) {
        if let Ok(packet) = Packet::decode(&bytes) {
            prop_assert!(packet.payload().len() <= MAX_PAYLOAD);
            prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
        }
    }

    #[test]
    fn parts_of_a_packet_join_to_it_and_fit_their_link(
        packet in packets(), most in 64..512_usize, id in any::<[u8; 8]>(),
    ) {
        prop_assume!(packet.kind != PacketType::FRAGMENT);
        prop_assume!(packet.route.is_empty() || most > 128);
        let chunk = fragment::chunk(&packet, most);
        let parts = fragment::split(&packet, id, chunk, u16::MAX).unwrap();
        prop_assert!(parts.iter().all(|part| part.encode().len() <= most));
        let mut sets = fragment::Reassembly::new(&fieldpost_bitchat::Limits::default());
        let mut whole = None;
        for part in parts.iter().rev() {
            prop_assert_eq!(whole.as_ref(), None);
            let fragment = fieldpost_bitchat::payload::fragment::Fragment::decode(part.payload());
            let via = fieldpost_bitchat::LinkId(1);
            let now = std::time::Duration::ZERO;
            whole = sets.insert(now, via, part.sender, fragment.unwrap()).unwrap();
        }
        prop_assert_eq!(Packet::decode(&whole.unwrap()), Ok(packet));
        prop_assert!(sets.is_empty() && sets.bytes() == 0);
    }

    #[test]
    fn announces_read_back(
        nickname in "\\PC{0,60}", keys in any::<([u8; 32], [u8; 32])>(),
        neighbours in vec(any::<[u8; 8]>(), 0..=10), capabilities in option::of(any::<u64>()),
        geohash in option::of("[0-9a-z]{1,12}"), is_gateway in any::<bool>(), apple in any::<bool>(),
    ) {
        let announce = Announce {
            nickname,
            noise_key: keys.0,
            signing_key: keys.1,
            neighbours: neighbours.into_iter().map(MeshId).collect(),
            capabilities: capabilities.map(Capabilities),
            geohash,
            is_gateway,
            is_hosted: !is_gateway && apple,
        };
        let order = if apple { Order::Apple } else { Order::Android };
        prop_assert_eq!(Announce::decode(&announce.encode(order).unwrap()), Ok(announce));
    }

    #[test]
    fn private_messages_read_back_and_over_255_bytes_are_refused(
        id in "\\PC{0,60}", text in "\\PC{0,200}",
    ) {
        let message = PrivateMessage { message_id: id, text };
        match message.encode() {
            Ok(body) => prop_assert_eq!(PrivateMessage::decode(&body), Ok(message)),
            Err(_) => prop_assert!(message.message_id.len().max(message.text.len()) > 255),
        }
    }

    #[test]
    fn files_and_voice_read_back(
        name in option::of("\\PC{0,40}"), mime_type in option::of("[a-z/]{1,20}"),
        content in vec(any::<u8>(), 0..2000), burst_id in any::<[u8; 8]>(), sequence in any::<u16>(),
        frames in vec(vec(any::<u8>(), 1..100), 1..=8),
    ) {
        let stated_size = Some(content.len() as u64);
        let file = File { name, stated_size, mime_type, content };
        prop_assert_eq!(File::decode(&file.encode().unwrap()), Ok(file));
        let voice = Voice { burst_id, sequence, body: Body::Data(frames) };
        prop_assert_eq!(Voice::decode(&voice.encode()), Ok(voice));
    }

    #[test]
    fn a_filter_has_all_that_it_was_made_of(ids in vec(any::<[u8; 16]>(), 0..400)) {
        let filter = Filter::of(&ids, 400);
        prop_assert!(filter.data.len() <= 400);
        let values = filter.values();
        let kept = ids.len().min(filter.m as usize >> 7);
        prop_assert!(ids[..kept].iter().all(|id| values.contains(&filter.value(id))));
        prop_assert!(kept >= ids.len().min(300));
    }

    #[test]
    fn records_between_gateways_read_back(
        length in 0..gateway::MAX_CONTENT, transfer in any::<u32>(), has in vec(any::<bool>(), 0..=31),
        at in any::<prop::sample::Index>(),
    ) {
        let count = gateway::segments(length);
        let index = at.index(count);
        let size = gateway::SEGMENT.min(length - index * gateway::SEGMENT);
        for record in [
            Record::Segment {
                transfer,
                index: index as u16,
                count: count as u16,
                length: length as u32,
                bytes: vec![7; size],
            },
            Record::Receipt { transfer, has },
            Record::Refusal { transfer },
        ] {
            prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
    }
}

#[test]
fn a_part_that_compression_makes_longer_on_the_wire_still_fits_its_link() {
    let mut rng = StdRng::seed_from_u64(4);
    let (mut longer, mut tried) = (0, 0);
    for most in (150..=512).step_by(20) {
        for repeated in 2..14 {
            // All bytes there are, so that no encoder tries the whole; then parts with one short
            // repetition each, which saves next to nothing.
            let mut payload: Vec<u8> = (0..=255).collect();
            while payload.len() < 2000 {
                payload.extend((0..130).map(|_| rng.random_range(0..140_u8)));
                payload.extend_from_within(payload.len() - repeated..);
            }
            let header = Header {
                kind: PacketType(0x7F),
                hops_left: 7,
                timestamp_ms: rng.random(),
                sender: MeshId(rng.random()),
                recipient: (repeated % 2 == 0).then(|| MeshId(rng.random())),
            };
            for version in [Version::V1, Version::V2] {
                let mut packet = Packet::with_version(version, header, payload.clone());
                if version == Version::V2 {
                    packet.route = vec![MeshId(rng.random())];
                }
                let chunk = fragment::chunk(&packet, most);
                for part in fragment::split(&packet, rng.random(), chunk, u16::MAX).unwrap() {
                    let length = part.encode().len();
                    assert!(length <= most, "{length} bytes on a link that takes {most}");
                    let bare = match version {
                        Version::V1 => 14 + 8,
                        Version::V2 => 16 + 8 + 1 + 8,
                    };
                    let recipient = if part.recipient.is_some() { 8 } else { 0 };
                    longer += usize::from(length > bare + recipient + part.payload().len());
                    tried += 1;
                }
            }
        }
    }
    assert!(longer > 0, "none of {tried} parts became longer: the test tests nothing");
}

fn packets() -> impl Strategy<Value = Packet> {
    let header = (any::<u8>(), any::<u8>(), any::<u64>(), any::<[u8; 8]>());
    let recipient = option::of(any::<[u8; 8]>());
    let payload = prop_oneof![
        vec(any::<u8>(), 0..700),
        (any::<u8>(), 0..3000_usize).prop_map(|(byte, length)| vec![byte; length]),
        "[a-e ]{0,900}".prop_map(String::into_bytes),
    ];
    let route = vec(any::<[u8; 8]>(), 0..4);
    let rest = (any::<bool>(), any::<bool>(), option::of(any::<[u8; 32]>()));
    (header, recipient, payload, route, rest).prop_map(
        |((kind, hops_left, timestamp_ms, sender), recipient, payload, route, rest)| {
            let (is_v1, solicited, signature) = rest;
            let version = if is_v1 { Version::V1 } else { Version::V2 };
            let header = Header {
                kind: PacketType(kind),
                hops_left,
                timestamp_ms,
                sender: MeshId(sender),
                recipient: recipient.map(MeshId),
            };
            let mut packet = Packet::with_version(version, header, payload);
            if !is_v1 {
                packet.route = route.into_iter().map(MeshId).collect();
            }
            packet.solicited = solicited;
            packet.signature = signature.map(|half| [half, half].concat().try_into().unwrap());
            packet
        },
    )
}
