//! What packets and plaintexts say.

use fieldpost_bitchat::{
    MeshId, PacketType, message,
    payload::{
        announce::{Announce, Capabilities, Order},
        board::{Board, Entry},
        carrier::Carrier,
        file::{self, File},
        fragment::Fragment,
        group::{Member, Message, Sealed, State},
        legacy::Legacy,
        noise::{self, PlaintextType, PrivateMessage},
        peer_state::PeerState,
        prekeys::Prekeys,
        rotation,
        sync::{Filter, RequestSync, SyncTypes},
        verify::{Challenge, Link, Response},
        voice::{Body, Voice},
        vouch::{self, Vouch},
    },
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::file::{Vector, array, bytes, key, mesh_id, signing};

pub(crate) fn announce(vector: &Vector) {
    let payload = vector.expected("payload");
    let announce = Announce::decode(&payload).unwrap();
    assert_eq!(announce.nickname, vector.text("nickname"));
    assert_eq!(announce.noise_key, array(&vector.inputs["noise_public"]));
    assert_eq!(announce.signing_key, array(&vector.inputs["signing_public"]));
    assert_eq!(announce.capabilities, Some(Capabilities(vector.number("capabilities"))));
    let ours = announce.encode(Order::Android).unwrap();
    let unknown = &payload[ours.len()..];
    assert_eq!(ours, payload[..ours.len()]);
    assert_eq!(unknown, [0x7f, 2, 0xca, 0xfe], "only the unknown field is not written again");
}

pub(crate) fn board(vector: &Vector) {
    let post_id = array(&vector.inputs["post_id"]);
    let entry = match vector.inputs.get("deleted_at") {
        Some(at) => Entry::Tombstone { deleted_ms: at.as_u64().unwrap() },
        None => Entry::Post {
            geohash: vector.text("geohash"),
            content: vector.text("content"),
            nickname: vector.text("nickname"),
            created_ms: vector.number("created_at"),
            expires_ms: vector.number("expires_at"),
            flags: vector.number("flags") as u8,
        },
    };
    let board = Board::sign(post_id, entry, &signing("alice_signing_seed"));
    assert_eq!(board.signed(), vector.expected("signable"));
    assert_eq!(board.signature.to_vec(), vector.expected("signature"));
    assert_eq!(board.encode(), vector.expected("payload"));
    assert_eq!(Board::decode(&board.encode()).as_ref(), Ok(&board));
    assert!(board.is_signed());
    assert!(!Board { post_id: [1; 16], ..board }.is_signed());
}

pub(crate) fn capabilities(vector: &Vector) {
    for case in vector.expected["cases"].as_array().unwrap() {
        let capabilities = Capabilities(case["value"].as_u64().unwrap());
        let encoded = bytes(&case["encoded"]);
        assert_eq!(capabilities.encode(), encoded);
        assert_eq!(Capabilities::decode(&encoded), capabilities);
        assert_eq!(Capabilities::decode_minimal(&encoded), Ok(capabilities));
    }
    let oversized = bytes(&vector.expected["oversized"]["encoded"]);
    assert_eq!(Capabilities::decode(&oversized).0, vector.expected["oversized"]["value"]);
}

pub(crate) fn file(vector: &Vector) {
    let payload = vector.expected("payload");
    let file = File::decode(&payload).unwrap();
    assert_eq!(file.name, Some(vector.text("file_name")));
    assert_eq!(file.mime_type, Some(vector.text("mime")));
    assert_eq!(file.content, vector.input("content"));
    assert_eq!(file.encode().unwrap(), payload);
}

pub(crate) fn fragment(vector: &Vector) {
    let fragment = Fragment {
        id: array(&vector.inputs["fragment_id"]),
        index: vector.number("index") as u16,
        total: vector.number("total") as u16,
        original: PacketType(vector.number("original_type") as u8),
        data: vector.input("data"),
    };
    assert_eq!(fragment.encode(), vector.expected("payload"));
    assert_eq!(Fragment::decode(&fragment.encode()), Ok(fragment));
}

pub(crate) fn filter(vector: &Vector) {
    let ids: Vec<[u8; 16]> = match vector.inputs["ids"].as_array() {
        Some(ids) => ids.iter().map(array).collect(),
        None => (0..355_u32)
            .map(|i| Sha256::digest(i.to_be_bytes())[..16].try_into().unwrap())
            .collect(),
    };
    let filter = Filter::of(&ids, 400);
    assert_eq!(u64::from(filter.p), vector.expected["p"].as_u64().unwrap());
    assert_eq!(u64::from(filter.m), vector.expected["m"].as_u64().unwrap());
    assert_eq!(filter.data, vector.expected("data"));
    let values = filter.values();
    assert!(ids.iter().all(|id| values.contains(&filter.value(id))));
    if let Some(mapped) = vector.expected["mapped_sorted"].as_array() {
        assert!(values.iter().eq(
            mapped.iter().map(|value| value.as_u64().unwrap() as u32).collect::<Vec<_>>().iter()
        ));
    }
    if let Some(distinct) = vector.expected["distinct_values"].as_u64() {
        assert_eq!(values.len() as u64, distinct);
    }
    for (name, types) in [
        ("request_sync_android", None),
        ("request_sync_ios", Some(SyncTypes::of(&[PacketType::ANNOUNCE, PacketType::MESSAGE]))),
    ] {
        let Some(expected) = vector.expected.get(name) else { continue };
        let request =
            RequestSync { filter: filter.clone(), types, since_ms: None, fragment_ids: vec![] };
        assert_eq!(request.encode(), bytes(expected));
        assert_eq!(RequestSync::decode(&request.encode()), Ok(request));
    }
}

pub(crate) fn group(vector: &Vector) {
    if vector.id == "group_message" { group_message(vector) } else { group_state(vector) }
}

fn group_message(vector: &Vector) {
    let group_id = array(&vector.inputs["group_id"]);
    let epoch = vector.number("epoch") as u32;
    let group_key = array(&vector.inputs["group_key"]);
    let message = Message {
        message_id: vector.text("message_id"),
        sender: key("alice_signing_public"),
        nickname: vector.text("nickname"),
        timestamp_ms: vector.number("timestamp"),
        text: vector.text("content"),
        signature: array(&vector.expected["signature"]),
    };
    assert_eq!(message.signed(&group_id, epoch), vector.expected("signable"));
    assert_eq!(message.encode(), vector.expected("inner"));
    let nonce = array(&vector.inputs["nonce"]);
    let by = signing("alice_signing_seed");
    let sealed = message.clone().seal(group_id, epoch, &group_key, nonce, &by).unwrap();
    assert_eq!(sealed.encode(), vector.expected("payload"));
    let opened = Sealed::decode(&sealed.encode()).unwrap().open(&group_key).unwrap();
    assert_eq!(opened, message);
    assert!(opened.is_signed(&group_id, epoch));
    assert!(!opened.is_signed(&group_id, epoch + 1));
    assert_eq!(Sealed { epoch: epoch + 1, ..sealed }.open(&group_key), None);
}

fn group_state(vector: &Vector) {
    let member = |name: &str| Member {
        fingerprint: key(&format!("{name}_fingerprint")),
        signing_key: key(&format!("{name}_signing_public")),
        nickname: name.to_owned(),
    };
    let state = State {
        group_id: array(&vector.inputs["group_id"]),
        name: vector.text("name"),
        key: array(&vector.inputs["key"]),
        epoch: vector.number("epoch") as u32,
        members: vec![member("alice"), member("bob")],
        creator: array(&vector.inputs["creator"]),
        signature: [0; 64],
    };
    let state = state.signed_by(&signing("alice_signing_seed"));
    assert_eq!(state.roster(), vector.expected("roster"));
    assert_eq!(state.signed(), vector.expected("signable"));
    assert_eq!(state.signature.to_vec(), vector.expected("signature"));
    let plaintext = noise::join(PlaintextType::GROUP_INVITE, &state.encode());
    assert_eq!(plaintext, vector.expected("noise_plaintext"));
    let (kind, body) = noise::split(&plaintext).unwrap();
    assert_eq!(kind, PlaintextType::GROUP_INVITE);
    let read = State::decode(body).unwrap();
    assert!(read == state && read.is_by(&key("alice_signing_public")));
}

pub(crate) fn legacy(vector: &Vector) {
    let optional = |name: &str| vector.inputs.get(name).map(|v| v.as_str().unwrap().to_owned());
    let is = |name: &str| vector.inputs.get(name).is_some_and(|v| v.as_bool().unwrap());
    let mentions = vector.inputs.get("mentions").and_then(Value::as_array);
    let legacy = Legacy {
        id: vector.text("id"),
        sender: vector.text("sender"),
        content: vector.text("content"),
        timestamp_ms: vector.number("timestamp_ms"),
        is_relay: is("is_relay"),
        is_private: is("is_private"),
        original_sender: optional("original_sender"),
        recipient_nickname: optional("recipient_nickname"),
        sender_peer_id: optional("sender_peer_id"),
        mentions: mentions
            .into_iter()
            .flatten()
            .map(|mention| mention.as_str().unwrap().to_owned())
            .collect(),
        channel: optional("channel"),
    };
    assert_eq!(legacy.encode().unwrap(), vector.expected("payload"));
    assert_eq!(Legacy::decode(&vector.expected("payload")), Ok(legacy));
}

pub(crate) fn plaintext(vector: &Vector) {
    if let Some(expected) = vector.expected.get("decodes_as_type") {
        let typed = vector.input("typed");
        let (kind, body) = noise::split(&typed).unwrap();
        assert_eq!(u64::from(kind.0), expected.as_u64().unwrap());
        assert_eq!(noise::join(kind, body), vector.expected("reencodes_to"));
        return;
    }
    if vector.inputs.get("mime").is_some() {
        let file = File {
            name: Some(vector.text("file_name")),
            mime_type: Some(vector.text("mime")),
            content: vector.input("content"),
            stated_size: Some(3),
        };
        let typed = noise::join(PlaintextType::FILE, &file.encode().unwrap());
        assert_eq!(typed, vector.expected("typed"));
        assert_eq!(File::decode(noise::split(&typed).unwrap().1), Ok(file));
        return;
    }
    let text = vector.inputs.get("content").or(vector.inputs.get("text")).unwrap();
    let message = PrivateMessage {
        message_id: vector.text("message_id"),
        text: text.as_str().unwrap().to_owned(),
    };
    let body = message.encode().unwrap();
    assert_eq!(PrivateMessage::decode(&body).as_ref(), Ok(&message));
    if let Some(tlv) = vector.expected.get("tlv") {
        assert_eq!(body, bytes(tlv));
    }
    let typed = noise::join(PlaintextType::MESSAGE, &body);
    let expected = vector.expected.get("typed").or(vector.expected.get("private_message"));
    assert_eq!(typed, bytes(expected.unwrap()));
    for (name, kind) in
        [("read_receipt", PlaintextType::READ), ("delivered", PlaintextType::DELIVERED)]
    {
        let Some(expected) = vector.expected.get(name) else { continue };
        let receipt = noise::join(kind, message.message_id.as_bytes());
        assert_eq!(receipt, bytes(expected));
        assert_eq!(
            noise::receipt_id(noise::split(&receipt).unwrap().1).unwrap(),
            message.message_id
        );
    }
    if let Some(expected) = vector.expected.get("authenticated_peer_state") {
        let state = PeerState {
            capabilities: Capabilities(0x0329),
            signing_key: key("alice_signing_public"),
        };
        assert_eq!(noise::join(PlaintextType::PEER_STATE, &state.encode()), bytes(expected));
    }
}

pub(crate) fn carrier(vector: &Vector) {
    let carrier = Carrier {
        direction: vector.number("direction") as u8,
        geohash: vector.text("geohash"),
        event: vector.text("event_json"),
    };
    assert_eq!(carrier.encode(), vector.expected("payload"));
    assert_eq!(Carrier::decode(&carrier.encode()), Ok(carrier));
}

pub(crate) fn peer_id(vector: &Vector) {
    let noise_key = array(&vector.inputs["noise_static_public"]);
    assert_eq!(MeshId::of_noise_key(&noise_key), mesh_id(&vector.expected["peer_id"]));
}

pub(crate) fn peer_state(vector: &Vector) {
    let state = PeerState {
        capabilities: Capabilities(vector.number("capabilities")),
        signing_key: array(&vector.inputs["signing_public"]),
    };
    assert_eq!(state.encode(), vector.expected("payload"));
    assert_eq!(PeerState::decode(&state.encode()), Ok(state));
    if let Some(prefix) = vector.expected.get("asserted_prefix") {
        assert!(state.encode().starts_with(&bytes(prefix)));
    }
}

pub(crate) fn prekeys(vector: &Vector) {
    let keys = vector.inputs["prekeys"].as_array().unwrap().iter();
    let keys = keys.map(|key| (key["id"].as_u64().unwrap() as u32, array(&key["public"])));
    let noise_key = array(&vector.inputs["noise_public"]);
    let at = vector.number("generated_at");
    let prekeys = Prekeys::sign(noise_key, keys.collect(), at, &signing("alice_signing_seed"));
    assert_eq!(prekeys.signed(), vector.expected("signable"));
    assert_eq!(prekeys.signature.to_vec(), vector.expected("signature"));
    assert_eq!(prekeys.encode(), vector.expected("payload"));
    assert_eq!(Prekeys::decode(&prekeys.encode()).as_ref(), Ok(&prekeys));
    assert!(prekeys.is_by(&key("alice_signing_public")));
}

pub(crate) fn request_sync(vector: &Vector) {
    let filter = Filter {
        p: vector.number("p") as u8,
        m: vector.number("m") as u32,
        data: vector.input("data"),
    };
    let request = RequestSync { filter, types: None, since_ms: None, fragment_ids: vec![] };
    assert_eq!(request.encode(), vector.expected("payload"));
    for name in ["payload", "payload_with_unknown_tlv"] {
        assert_eq!(RequestSync::decode(&vector.expected(name)).as_ref(), Ok(&request));
    }
}

pub(crate) fn rotation(vector: &Vector) {
    let inputs = &vector.inputs;
    if let Some(private) = inputs.get("noise_static_private") {
        let secret = rotation::secret(&array(private));
        assert_eq!(secret.to_vec(), vector.expected("rotation_secret"));
        assert_eq!(rotation::id(&secret, 100), mesh_id(&vector.expected["peer_id_epoch_100"]));
        assert_eq!(
            u64::from(rotation::epoch(1_784_000_000)),
            vector.expected["epoch_at_1784000000"]
        );
        return;
    }
    let tag = rotation::recognition_tag(
        &array(&inputs["shared_secret"]),
        vector.number("epoch") as u32,
        &array(&inputs["sender_static_public"]),
        &array(&inputs["recipient_static_public"]),
        mesh_id(&inputs["peer_id"]),
    );
    assert_eq!(tag.to_vec(), vector.expected("tag"));
}

pub(crate) fn stable_id(vector: &Vector) {
    let expected = vector.expected["id"].as_str().unwrap();
    if let Some(sender) = vector.inputs.get("sender_hex") {
        let at = vector.number("timestamp_ms");
        assert_eq!(message::apple_id(mesh_id(sender), at, &vector.text("content")), expected);
        return;
    }
    let (sender, recipient) =
        (mesh_id(&vector.inputs["sender"]), mesh_id(&vector.inputs["recipient"]));
    let id = file::media_id(sender, recipient, &vector.text("file_name"));
    assert_eq!(id.as_deref(), Some(expected));
    assert_eq!(file::media_id(sender, recipient, "holiday.jpg"), None);
}

pub(crate) fn sync_types(vector: &Vector) {
    let types = |case: &Value| {
        let names = case["types"].as_array().unwrap().iter();
        let types: Vec<_> = names
            .map(|name| match name.as_str().unwrap() {
                "announce" => PacketType::ANNOUNCE,
                "message" => PacketType::MESSAGE,
                "groupMessage" => PacketType::GROUP,
                "boardPost" => PacketType::BOARD,
                other => panic!("{other}"),
            })
            .collect();
        types
    };
    for case in vector.expected["cases"].as_array().unwrap() {
        assert_eq!(SyncTypes::of(&types(case)).encode(), bytes(&case["encoded"]));
    }
    for case in vector.expected["decode"].as_array().unwrap() {
        let decoded = SyncTypes::decode(&bytes(&case["encoded"])).unwrap();
        assert_eq!(decoded.iter().collect::<Vec<_>>(), types(case));
    }
}

pub(crate) fn verify(vector: &Vector) {
    let noise_key = array(&bytes_of(&vector.text("noise_key_hex")));
    let challenge = Challenge::new(&noise_key, array(&vector.inputs["nonce"]));
    let typed = noise::join(PlaintextType::VERIFY_CHALLENGE, &challenge.encode());
    assert_eq!(typed, vector.expected("challenge"));
    assert_eq!(Challenge::decode(&challenge.encode()).as_ref(), Ok(&challenge));
    let response = challenge.answer(&signing("bob_signing_seed"));
    assert_eq!(response.signature.to_vec(), vector.expected("signature"));
    let typed = noise::join(PlaintextType::VERIFY_RESPONSE, &response.encode());
    assert_eq!(typed, vector.expected("response"));
    let read = Response::decode(&response.encode()).unwrap();
    assert!(read.is_by(&key("bob_signing_public")) && !read.is_by(&key("alice_signing_public")));
    let signed = vector.expected("response_signed_bytes");
    let key = ed25519_dalek::VerifyingKey::from_bytes(&key("bob_signing_public")).unwrap();
    let signature = ed25519_dalek::Signature::from_bytes(&read.signature);
    assert!(key.verify_strict(&signed, &signature).is_ok());
}

fn bytes_of(hex: &str) -> Value {
    Value::String(hex.to_owned())
}

pub(crate) fn verify_link(vector: &Vector) {
    let link = Link {
        noise_key: key("alice_noise_public"),
        signing_key: key("alice_signing_public"),
        npub: String::new(),
        nickname: "alice".to_owned(),
        made_at: 1_700_000_000,
        nonce: (0..16).collect(),
    };
    assert_eq!(link.signed(), vector.expected("canonical"));
    assert!(link.is_signed(&array(&vector.expected["signature"])));
}

pub(crate) fn voice(vector: &Vector) {
    let part = |body| Voice {
        burst_id: array(&vector.inputs["burst_id"]),
        sequence: vector.number("seq") as u16,
        body,
    };
    let inputs = &vector.inputs;
    let body = if let Some(frames) = inputs.get("frames") {
        Body::Data(frames.as_array().unwrap().iter().map(bytes).collect())
    } else if inputs.get("total").is_some() {
        let duration_ms = vector.number("duration_ms") as u32;
        Body::End { parts: vector.number("total") as u16, duration_ms }
    } else {
        Body::Start
    };
    let voice = part(body);
    assert_eq!(voice.encode(), vector.expected("payload"));
    assert_eq!(Voice::decode(&voice.encode()), Ok(voice));
    if let Some(cancel) = vector.expected.get("cancel") {
        let read = Voice::decode(&bytes(cancel)).unwrap();
        assert_eq!(read.body, Body::Cancel);
        assert_eq!(read.encode(), bytes(cancel));
    }
}

pub(crate) fn vouch(vector: &Vector) {
    let by = signing("alice_signing_seed");
    let at = vector.number("timestamp");
    let vouch = Vouch::sign(key("bob_fingerprint"), key("bob_signing_public"), at, &by);
    assert_eq!(vouch.signed(), vector.expected("signable"));
    assert_eq!(vouch.signature.to_vec(), vector.expected("signature"));
    let body = vouch::encode(std::slice::from_ref(&vouch));
    assert_eq!(noise::join(PlaintextType::VOUCH, &body), vector.expected("noise_plaintext"));
    let read = vouch::decode(&body).unwrap();
    assert!(read[0].is_by(&key("alice_signing_public")));
    assert_eq!(read, [vouch]);
}
