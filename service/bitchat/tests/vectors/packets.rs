//! Packets and what is done to their bytes.

use std::time::Duration;

use fieldpost_bitchat::{
    Header, LinkId, MeshId, Packet, PacketType, Version,
    fragment::{Reassembly, repaired},
    packet::{pad, unpad},
    payload::{
        announce::{Announce, Order},
        file::File,
        fragment::Fragment,
        noise::PrivateMessage,
        nostr,
        peer_state::PeerState,
        sync::RequestSync,
        voice::Voice,
    },
};
use serde_json::Value;

use crate::file::{Vector, array, bytes, key, mesh_id, signing};

pub(crate) fn packet(vector: &Vector) {
    let inputs = &vector.inputs;
    let version = if vector.number("version") == 1 { Version::V1 } else { Version::V2 };
    let header = Header {
        kind: PacketType(vector.number("type") as u8),
        hops_left: vector.number("ttl") as u8,
        timestamp_ms: vector.number("ts"),
        sender: mesh_id(&inputs["sender"]),
        recipient: inputs.get("recipient").map(mesh_id),
    };
    let mut packet = Packet::with_version(version, header, vector.input("payload"));
    packet.solicited = inputs.get("rsr").is_some();
    if let Some(route) = inputs.get("route") {
        packet.route = route.as_array().unwrap().iter().map(mesh_id).collect();
    }
    if let Some(preimage) = vector.expected.get("signing_preimage") {
        assert_eq!(packet.signing_preimage(), bytes(preimage), "{}", vector.id);
    }
    if let Some(signature) = inputs.get("signature") {
        packet.signature = Some(array(signature));
    }
    if let Some(signature) = vector.expected.get("signature") {
        let is_alice = mesh_id(&inputs["sender"]).to_hex() == "aaa8fff703b50b22";
        let name = if is_alice { "alice" } else { "bob" };
        packet.sign(&signing(&format!("{name}_signing_seed")));
        assert_eq!(packet.signature, Some(array(signature)), "{}", vector.id);
        assert!(packet.is_signed_by(&key(&format!("{name}_signing_public"))));
        assert!(!packet.is_signed_by(&key("carol_noise_public")));
    }
    assert_eq!(packet.encode(), vector.expected("wire_unpadded"), "{}", vector.id);
    assert_eq!(Packet::decode(&packet.encode()).as_ref(), Ok(&packet), "{}", vector.id);
    if let Some(padded) = vector.expected.get("wire_padded") {
        let mut wire = packet.encode();
        pad(&mut wire);
        assert_eq!(wire, bytes(padded), "{}", vector.id);
        assert_eq!(Packet::decode(&wire).as_ref(), Ok(&packet), "{}", vector.id);
        let is_noise = matches!(packet.kind.0, 0x10 | 0x11);
        let on_wire = if is_noise { wire } else { packet.encode() };
        assert_eq!(packet.encode_for_wire(), on_wire, "{}", vector.id);
    }
    if inputs.get("nickname").is_some() {
        announce(vector, &packet);
    }
}

fn announce(vector: &Vector, packet: &Packet) {
    let announce = Announce::decode(packet.payload()).unwrap();
    assert_eq!(announce.nickname, vector.text("nickname"));
    assert_eq!(MeshId::of_noise_key(&announce.noise_key), packet.sender);
    assert!(packet.is_signed_by(&announce.signing_key));
    let capabilities = announce.capabilities.map(|capabilities| capabilities.0);
    assert_eq!(capabilities, vector.inputs.get("capabilities").and_then(Value::as_u64));
    let neighbours = vector.inputs.get("neighbors").and_then(Value::as_array);
    assert_eq!(announce.neighbours.len(), neighbours.map_or(0, Vec::len));
    let order = if vector.id.contains("android") { Order::Android } else { Order::Apple };
    assert_eq!(announce.encode(order).unwrap(), packet.payload(), "{}", vector.id);
}

pub(crate) fn refused(vector: &Vector) {
    let cases = vector.expected["cases"].as_array().unwrap();
    assert!(cases.len() >= 6);
    for case in cases {
        let hex = bytes(case.get("hex").unwrap_or(case));
        let refused = match (vector.id.as_str(), case.get("kind").and_then(Value::as_str)) {
            ("up_tlv_rejections", Some("private_message")) => PrivateMessage::decode(&hex).is_err(),
            ("up_tlv_rejections", Some("request_sync")) => RequestSync::decode(&hex).is_err(),
            ("up_tlv_rejections", Some("announce_payload")) => Announce::decode(&hex).is_err(),
            ("up_tlv_rejections", Some("file_packet")) => File::decode(&hex).is_err(),
            ("up_tlv_rejections", Some("fragment_payload")) => Fragment::decode(&hex).is_err(),
            ("up_peer_state_rejections", _) => PeerState::decode(&hex).is_err(),
            ("up_voice_rejections", _) => Voice::decode(&hex).is_err(),
            ("decode_rejections", _) => Packet::decode(&hex).is_err(),
            other => panic!("nobody checks {other:?}"),
        };
        assert!(refused, "{}: {case} is taken", vector.id);
    }
}

pub(crate) fn tolerated(vector: &Vector) {
    for case in vector.expected["cases"].as_array().unwrap() {
        let packet = Packet::decode(&bytes(&case["hex"])).unwrap();
        assert_eq!(packet.payload(), bytes(&case["payload"]), "{}", case["name"]);
        assert!(packet.route.is_empty());
    }
}

pub(crate) fn compression(vector: &Vector) {
    let data = vector.input("compressed");
    let size = vector.number("original_size") as u16;
    let mut wire = vec![1, 2, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0x04];
    wire.extend_from_slice(&(data.len() as u16 + 2).to_be_bytes());
    wire.extend_from_slice(&[9; 8]);
    wire.extend_from_slice(&size.to_be_bytes());
    wire.extend_from_slice(&data);
    let packet = Packet::decode(&wire).unwrap();
    assert_eq!(packet.payload(), vector.expected("payload"));
    assert_eq!(packet.encode(), wire, "the compressed form is kept");
}

pub(crate) fn padding(vector: &Vector) {
    for row in vector.expected["rows"].as_array().unwrap() {
        let length = row["len"].as_u64().unwrap() as usize;
        let mut padded = vec![0xee; length];
        pad(&mut padded);
        assert_eq!(padded.len() as u64, row["padded_len"].as_u64().unwrap());
        match row["pad_byte"].as_u64() {
            Some(byte) => {
                assert_eq!(u64::from(*padded.last().unwrap()), byte);
                assert_eq!(unpad(&padded), Some(&vec![0xee; length][..]));
            }
            None => assert_eq!(padded, vec![0xee; length]),
        }
    }
}

pub(crate) fn packet_id(vector: &Vector) {
    for (i, id) in vector.expected["ids"].as_array().unwrap().iter().enumerate() {
        let header = Header {
            kind: PacketType(vector.number("type") as u8),
            hops_left: 7,
            timestamp_ms: vector.number("base_timestamp") + i as u64,
            sender: mesh_id(&vector.inputs["sender"]),
            recipient: None,
        };
        let packet = Packet::new(header, format!("msg {i}").into_bytes());
        assert_eq!(packet.id(), array(id));
    }
}

pub(crate) fn dedup_key(vector: &Vector) {
    let header = Header {
        kind: PacketType(vector.number("type") as u8),
        hops_left: 7,
        timestamp_ms: vector.number("timestamp"),
        sender: mesh_id(&vector.inputs["sender"]),
        recipient: None,
    };
    let packet = Packet::new(header, vector.input("payload"));
    assert_eq!(packet.apple_key(), vector.expected["key"].as_str().unwrap());
}

pub(crate) fn fragment_set(vector: &Vector) {
    let original = Packet::decode(&vector.input("original_packet")).unwrap();
    let id = array(&vector.inputs["fragment_id"]);
    let chunk = vector.number("chunk") as usize;
    let fragments = fieldpost_bitchat::fragment::split(&original, id, chunk, 256).unwrap();
    let expected = vector.expected["fragments"].as_array().unwrap();
    let ours: Vec<_> = fragments.iter().map(Packet::encode).collect();
    assert_eq!(ours, expected.iter().map(bytes).collect::<Vec<_>>());
    assert_eq!(ours.len() as u64, vector.expected["total"].as_u64().unwrap());
    let mut sets = Reassembly::new(&fieldpost_bitchat::Limits::default());
    let mut whole = None;
    // Out of order, with one of them twice.
    for fragment in fragments.iter().rev().chain(&fragments) {
        let payload = Fragment::decode(fragment.payload()).unwrap();
        whole = whole.or(sets.insert(Duration::ZERO, LinkId(1), fragment.sender, payload).unwrap());
    }
    let whole = whole.unwrap();
    assert_eq!(whole, vector.expected("reassembled"));
    let packet = Packet::decode(&whole).unwrap();
    assert_eq!(packet.payload(), vector.expected("file_payload"));
    assert_eq!(File::decode(packet.payload()).unwrap().content, vector.input("file_content"));
}

pub(crate) fn fragment_hazard(vector: &Vector) {
    let packet = vector.input("packet");
    let length = vector.expected["len_after_android_unpad"].as_u64().unwrap() as usize;
    let cut = &packet[..length];
    assert_eq!(unpad(&packet), Some(cut), "this is what Android does");
    assert!(Packet::decode(cut).is_err());
    let recovered = repaired(cut).unwrap();
    assert_eq!(recovered.encode(), vector.expected("recovered"));
    assert!(recovered.is_signed_by(&key("alice_signing_public")));
    let wrong = repaired(&packet[..length - 1]).unwrap();
    assert!(!wrong.is_signed_by(&key("alice_signing_public")), "only the signature can tell");
}

pub(crate) fn nostr_embed(vector: &Vector) {
    let header = Header {
        kind: PacketType::NOISE_ENCRYPTED,
        hops_left: 7,
        timestamp_ms: vector.number("timestamp"),
        sender: mesh_id(&vector.inputs["sender"]),
        recipient: Some(mesh_id(&vector.inputs["recipient"])),
    };
    let packet = Packet::new(header, vector.input("plaintext"));
    let text = vector.expected["text"].as_str().unwrap();
    assert_eq!(nostr::embed(&packet), text);
    assert_eq!(nostr::extract(text), Some(packet));
}
