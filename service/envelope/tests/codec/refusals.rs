//! One well-signed payload for each thing a peer can get wrong; the vectors publish them all.

use fieldpost_envelope::{
    AnonymityLevel, Content, DecodeError, Envelope, Priority, ReceiptKind, Recipient, SignError,
    SignedEnvelope, VerifyError, Violation, limits,
};

use crate::{
    fixtures::{ALPHA, BRAVO, CHARLIE, everything, forward, greeting, receipt, signed, time},
    raw::{Payload, bytes, cbor, payload_of, sign_bytes, text, uint},
};

/// What is refused: what is wrong with it, the bytes, the name of the error.
pub(crate) type Refusal = (&'static str, Vec<u8>, &'static str);

/// Bytes that do not decode although their signature is right.
pub(crate) fn undecodable() -> Vec<Refusal> {
    [broken_cbor(), broken_keys(), broken_fields(), broken_rules(), broken_forwards()].concat()
}

fn broken_cbor() -> Vec<Refusal> {
    let good = Payload::of(&signed(&greeting()));
    let payload = good.bytes();
    let long_version = [&payload[..2], &[0x18, 0x01], &payload[3..]].concat();
    let indefinite_map = [&[0xbf], &payload[1..], &[0xff]].concat();
    let long_map = [&[0xb8, payload[0] & 0x1f], &payload[1..]].concat();
    let signed = |payload| sign_bytes(payload, ALPHA);
    vec![
        ("no bytes", vec![], "Truncated"),
        ("a signature alone", signed(vec![]), "Truncated"),
        ("the payload cut short", signed(payload[..payload.len() - 1].to_vec()), "Truncated"),
        ("a byte after the payload", signed([&payload[..], &[0]].concat()), "Trailing"),
        ("an array for a payload", signed(vec![0x80]), "NotAMap"),
        ("a reserved head", signed(vec![0xbc]), "Malformed"),
        ("a break for a value", good.clone().with(9, vec![0xff]).signed_by(ALPHA), "Malformed"),
        ("an indefinite map", signed(indefinite_map), "Indefinite"),
        (
            "indefinite text",
            good.clone().with(13, vec![0x7f, 0x61, b'a', 0xff]).signed_by(ALPHA),
            "Indefinite",
        ),
        ("a number in two bytes where one does", signed(long_version), "NotShortest"),
        ("the length of the map in two bytes", signed(long_map), "NotShortest"),
        (
            "a length in two bytes where one does",
            good.clone().with(13, vec![0x78, 0x01, b'a']).signed_by(ALPHA),
            "NotShortest",
        ),
        (
            "text longer than the bytes that are left",
            good.clone().with(13, vec![0x7a, 0x00, 0x10, 0x00, 0x00]).signed_by(ALPHA),
            "Truncated",
        ),
    ]
}

fn broken_keys() -> Vec<Refusal> {
    let good = Payload::of(&signed(&greeting()));
    let mut swapped = good.clone();
    let last = swapped.entries.len() - 1;
    swapped.entries.swap(last - 1, last);
    let mut twice = good.clone();
    twice.entries.insert(4, twice.entries[3].clone());
    let text_key = cbor(|encoder| {
        encoder.map(1).unwrap().str("version").unwrap().u8(1).unwrap();
    });
    vec![
        ("keys out of order", swapped.signed_by(ALPHA), "KeyOrder"),
        ("a key twice", twice.signed_by(ALPHA), "DuplicateKey"),
        ("a key of text", sign_bytes(text_key, ALPHA), "KeyType"),
        (
            "an unknown key at the end",
            good.clone().with(19, uint(0)).signed_by(ALPHA),
            "UnknownKey",
        ),
        (
            "a key of another kind",
            Payload::of(&receipt(ReceiptKind::Stored, None).sign(&BRAVO.key()).unwrap())
                .with(7, uint(0))
                .signed_by(BRAVO),
            "UnknownKey",
        ),
        ("no version", good.clone().without(0).signed_by(ALPHA), "Missing"),
        ("no content", good.clone().without(13).signed_by(ALPHA), "Missing"),
        ("version 2", good.clone().with(0, uint(2)).signed_by(ALPHA), "UnsupportedVersion"),
        ("kind 3", good.clone().with(1, uint(3)).signed_by(ALPHA), "UnknownKind"),
    ]
}

fn broken_fields() -> Vec<Refusal> {
    let good = Payload::of(&signed(&greeting()));
    let with = |key, value| good.clone().with(key, value).signed_by(ALPHA);
    let array = |items: &[Vec<u8>]| {
        let head = cbor(|encoder| {
            encoder.array(items.len() as u64).unwrap();
        });
        [&[head], items].concat().concat()
    };
    let labels = |names: &[&str]| {
        cbor(|encoder| {
            encoder.map(names.len() as u64).unwrap();
            for name in names {
                encoder.str(name).unwrap().str("").unwrap();
            }
        })
    };
    let bravo = bytes(BRAVO.id().as_bytes());
    vec![
        ("a signer of 31 bytes", with(2, bytes(&[1; 31])), "Length"),
        ("a sender of bytes", with(3, bytes(b"alice")), "WrongType"),
        ("a sender that may not be", with(3, text("broadcast")), "Address"),
        ("a sender with a gateway", with(3, text(&ALPHA.peer("alice").to_string())), "Address"),
        ("a sender of 129 bytes", with(3, text(&"a".repeat(129))), "TooLong"),
        ("a phone in upper case", with(3, text("00112233AABBCCDD")), "NotCanonicalName"),
        ("a recipient of text", with(4, text("bob")), "WrongType"),
        ("a recipient of an unknown kind", with(4, array(&[uint(3)])), "OutOfRange"),
        ("a recipient without a gateway", with(4, array(&[uint(0), text("bob")])), "Length"),
        (
            "a broadcast with a name",
            with(4, array(&[uint(2), bravo.clone(), text("bob")])),
            "Length",
        ),
        ("a group with a space", with(4, array(&[uint(1), bravo, text("a b")])), "Address"),
        ("a message id of 15 bytes", with(6, bytes(&[1; 15])), "Length"),
        ("a time after the year 9999", with(8, uint(253_402_300_800_000)), "OutOfRange"),
        ("a negative time", with(7, vec![0x20]), "WrongType"),
        ("a time in floating point", with(7, vec![0xf9, 0, 0]), "WrongType"),
        ("priority 4", with(9, uint(4)), "OutOfRange"),
        ("level 4", with(10, uint(4)), "OutOfRange"),
        ("level 256", with(10, uint(256)), "OutOfRange"),
        ("content of a number", with(13, uint(1)), "WrongType"),
        ("text content that is not UTF-8", with(13, vec![0x61, 0xff]), "NotUtf8"),
        ("no file ids in a list", with(17, array(&[])), "Empty"),
        ("257 file ids", with(17, array(&vec![text("f"); 257])), "TooLong"),
        ("no labels in a map", with(18, labels(&[])), "Empty"),
        ("labels out of order", with(18, labels(&["b", "a"])), "LabelOrder"),
        ("labels in the order of a dictionary", with(18, labels(&["aa", "b"])), "LabelOrder"),
        ("a label twice", with(18, labels(&["a", "a"])), "LabelOrder"),
        (
            "receipt kind 4",
            Payload::of(&receipt(ReceiptKind::Read, None).sign(&BRAVO.key()).unwrap())
                .with(4, uint(4))
                .signed_by(BRAVO),
            "OutOfRange",
        ),
    ]
}

fn broken_rules() -> Vec<Refusal> {
    let good = Payload::of(&signed(&greeting()));
    let with = |key, value| good.clone().with(key, value).signed_by(ALPHA);
    let sent_at = greeting().sent_at.as_millis();
    let broadcast = Envelope {
        recipient: Recipient::Broadcast,
        to: Recipient::Broadcast,
        expires_at: time(sent_at + 3_600_000),
        lane_seq: None,
        ..greeting()
    };
    let broadcast = Payload::of(&signed(&broadcast));
    vec![
        (
            "a message that expires before it is sent",
            with(8, uint(sent_at - 1)),
            "ExpiresBeforeSent",
        ),
        (
            "a message that lives too long",
            with(8, uint(sent_at + limits::LIFETIME_MS + 1)),
            "Lifetime",
        ),
        (
            "a broadcast that lives too long",
            broadcast
                .clone()
                .with(8, uint(sent_at + limits::BROADCAST_LIFETIME_MS + 1))
                .signed_by(ALPHA),
            "Lifetime",
        ),
        (
            "a broadcast in a lane",
            broadcast.clone().with(11, uint(1)).signed_by(ALPHA),
            "LaneOfUnordered",
        ),
        (
            "a broadcast to a group",
            broadcast.with(5, text("hikers")).signed_by(ALPHA),
            "ToOfAnother",
        ),
        ("a critical message in a lane", with(9, uint(3)), "LaneOfUnordered"),
        ("a place in a lane past 63 bits", with(11, uint(1 << 63)), "LaneSeq"),
        (
            "a predecessor without a lane",
            good.clone().without(11).with(12, uint(0)).signed_by(ALPHA),
            "AfterWithoutLane",
        ),
        ("a predecessor that is no earlier", with(12, uint(1)), "AfterNotEarlier"),
        ("a content type too long", with(14, text(&"t".repeat(257))), "TooLong"),
        ("a message type with NUL", with(15, text("a\0b")), "Nul"),
        ("metadata that is not JSON", with(16, text("{'a': 1}")), "MetadataNotJson"),
        ("metadata nested too deep", with(16, text(&"[".repeat(200))), "MetadataNotJson"),
        (
            "a reason too long",
            Payload::of(&receipt(ReceiptKind::Refused, None).sign(&BRAVO.key()).unwrap())
                .with(6, text(&"r".repeat(257)))
                .signed_by(BRAVO),
            "TooLong",
        ),
    ]
}

fn broken_forwards() -> Vec<Refusal> {
    let good = Payload::of(&forward().sign(&BRAVO.key()).unwrap());
    let with = |key, value| good.clone().with(key, value).signed_by(BRAVO);
    let nested = forward().sign(&BRAVO.key()).unwrap();
    let receipt = receipt(ReceiptKind::Stored, None).sign(&BRAVO.key()).unwrap();
    let direct = signed(&greeting());
    vec![
        ("a forward of a forward", with(6, bytes(nested.as_bytes())), "ForwardOfNoMessage"),
        ("a forward of a receipt", with(6, bytes(receipt.as_bytes())), "ForwardOfNoMessage"),
        ("a forward of a message to a peer", with(6, bytes(direct.as_bytes())), "ForwardOfAnother"),
        (
            "a forward by another than the home",
            good.clone().with(2, bytes(CHARLIE.id().as_bytes())).signed_by(CHARLIE),
            "ForwardOfAnother",
        ),
        ("a forward to everybody", with(3, vec![0x81, 0x02]), "WrongType"),
        ("a forward of nothing", with(6, bytes(b"")), "Truncated"),
    ]
}

/// Bytes that decode but are not what their signer signed.
pub(crate) fn unverifiable() -> Vec<Refusal> {
    let good = signed(&greeting());
    let payload = Payload::of(&good);
    let mut bent = good.as_bytes().to_vec();
    *bent.last_mut().unwrap() ^= 1;
    let mut altered = good.as_bytes().to_vec();
    let at = altered.windows(3).position(|window| window == b"Bob").unwrap();
    altered[at] = b'R';
    let without_context = {
        use ed25519_dalek::Signer;
        let payload = payload.bytes();
        let signature = ALPHA.key().sign(&payload);
        [&payload[..], &signature.to_bytes()].concat()
    };
    // The identity is a point of small order: with a lax check, a signature of zeros fits any text.
    let mut identity = [0; 32];
    identity[0] = 1;
    let weak = payload.clone().with(2, bytes(&identity)).bytes();
    let weak = [&weak[..], &identity, &[0; 32]].concat();
    let no_point = payload.clone().with(2, bytes(&[2; 32])).signed_by(ALPHA);
    let mut inner = forward().original.into_bytes();
    *inner.last_mut().unwrap() ^= 1;
    let bent_inside =
        Payload::of(&forward().sign(&BRAVO.key()).unwrap()).with(6, bytes(&inner)).signed_by(BRAVO);
    vec![
        ("a bent signature", bent, "Signature"),
        ("a bent payload", altered, "Signature"),
        ("signed by another gateway", payload.signed_by(BRAVO), "Signature"),
        ("signed without the context", without_context, "Signature"),
        ("a signer of small order", weak, "Signature"),
        ("a signer that is no point", no_point, "Key"),
        ("a bent signature inside a forward", bent_inside, "Signature"),
    ]
}

#[test]
fn each_mistake_of_a_peer_has_its_error() {
    for (name, bytes, expected) in undecodable() {
        let error = SignedEnvelope::decode(&bytes).expect_err(name);
        assert_eq!(decode_error_name(&error), expected, "{name}: {error}");
    }
}

#[test]
fn what_the_signer_did_not_sign_is_not_believed() {
    for (name, bytes, expected) in unverifiable() {
        let error = SignedEnvelope::decode(&bytes).expect(name).verify().expect_err(name);
        assert_eq!(verify_error_name(&error), expected, "{name}: {error}");
    }
}

#[test]
fn too_many_bytes_are_refused_unread() {
    let bytes = vec![0; limits::SIGNED + 1];
    let error = SignedEnvelope::decode(&bytes).unwrap_err();
    assert_eq!(error, DecodeError::Oversize { length: bytes.len(), most: limits::SIGNED });
}

#[test]
fn the_largest_message_fits_even_inside_a_forward() {
    let longest_name = "n".repeat(128);
    let text = |length: usize| "t".repeat(length);
    let largest = Envelope {
        sender: ALPHA.peer(&longest_name),
        recipient: BRAVO.group(&longest_name),
        to: BRAVO.group(&longest_name),
        content: Content {
            content_type: Some(text(limits::CONTENT_TYPE)),
            message_type: Some(text(limits::MESSAGE_TYPE)),
            metadata: Some(format!("\"{}\"", text(limits::METADATA - 2))),
            file_ids: vec![text(limits::FILE_ID); limits::FILE_IDS],
            labels: (0..limits::LABELS)
                .map(|n| (format!("{n:064}"), text(limits::LABEL_VALUE)))
                .collect(),
            ..Content::binary(vec![0xff; limits::CONTENT])
        },
        ..everything()
    };
    let original = signed(&largest);
    assert!(original.as_bytes().len() <= limits::SIGNED_MESSAGE);
    SignedEnvelope::decode(original.as_bytes()).unwrap();

    let forward = fieldpost_envelope::Forward {
        recipient: CHARLIE.peer(&longest_name),
        original,
        ..forward()
    };
    let forwarded = forward.sign(&BRAVO.key()).unwrap();
    assert!(forwarded.as_bytes().len() <= limits::SIGNED);
    SignedEnvelope::decode(forwarded.as_bytes()).unwrap().verify().unwrap();
}

#[test]
fn a_gateway_signs_for_nobody_elses_peers() {
    let refused = greeting().sign(&BRAVO.key()).unwrap_err();
    assert_eq!(refused, SignError::SenderOfAnother { signer: BRAVO.id() });

    let refused = receipt(ReceiptKind::Read, None).sign(&ALPHA.key()).unwrap_err();
    assert_eq!(refused, SignError::SignerOfAnother { signer: ALPHA.id() });

    let in_anothers_group = Envelope { to: CHARLIE.group("hikers"), ..greeting() };
    let refused = in_anothers_group.sign(&ALPHA.key()).unwrap_err();
    assert_eq!(refused, SignError::Violation(Violation::ToOfAnother));
}

#[test]
fn what_others_would_refuse_is_not_signed() {
    let bob = "bob".parse().map(fieldpost_envelope::PeerAddress::local).unwrap();
    for (envelope, violation) in [
        (
            Envelope { recipient: bob.clone().into(), to: bob.into(), ..greeting() },
            Violation::BareRecipient,
        ),
        (Envelope { priority: Priority::Critical, ..greeting() }, Violation::LaneOfUnordered),
        (Envelope { expires_at: time(0), ..greeting() }, Violation::ExpiresBeforeSent),
    ] {
        assert_eq!(envelope.sign(&ALPHA.key()), Err(SignError::Violation(violation)));
    }
}

#[test]
fn debug_output_shows_neither_content_nor_names() {
    let envelope = Envelope { level: AnonymityLevel::HIGHEST, ..greeting() };
    let shown = format!("{:?}", signed(&envelope));
    assert!(shown.contains("size_bytes") && !shown.contains("alice"), "{shown}");
    let decoded = SignedEnvelope::decode(signed(&envelope).as_bytes()).unwrap();
    let shown = format!("{:?}", decoded.verify().unwrap());
    assert!(!shown.contains("morning"), "{shown}");
}

#[test]
fn the_digest_leaves_the_signature_out() {
    use sha2::Digest;

    let envelope = signed(&greeting());
    let payload = payload_of(envelope.as_bytes());
    assert_eq!(envelope.digest(), *sha2::Sha256::digest(payload));
}

/// The name of the variant, of the rule where one is broken.
fn decode_error_name(error: &DecodeError) -> String {
    match error {
        DecodeError::Violation(violation) => variant(violation),
        other => variant(other),
    }
}

fn verify_error_name(error: &VerifyError) -> String {
    variant(error)
}

fn variant(error: &impl std::fmt::Debug) -> String {
    format!("{error:?}").chars().take_while(char::is_ascii_alphanumeric).collect()
}
