//! The vectors that other implementations can check themselves against: `tests/vectors/envelope.json`.
//!
//! The test reads the file and holds the codec to it; it also fails when the file is not what the
//! cases below give. After a change that is meant, write it anew:
//!
//! ```sh
//! FIELDPOST_WRITE_VECTORS=1 cargo test -p fieldpost-envelope --test codec the_file_is_what
//! ```

use std::{env, fs, path::PathBuf};

use data_encoding::HEXLOWER;
use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, GatewayId, OpeningKey, Priority, Receipt, ReceiptKind,
    Recipient, Said, SignedEnvelope, Verified,
};
use serde_json::{Value, json};

use crate::{
    fixtures::{
        ALPHA, BRAVO, CHARLIE, Constant, everything, forward, greeting, receipt, signed, time,
        to_group_elsewhere,
    },
    refusals::{undecodable, unverifiable},
};

#[test]
fn the_file_is_what_the_cases_give() {
    let vectors = vectors();
    if env::var_os("FIELDPOST_WRITE_VECTORS").is_some() {
        let text = serde_json::to_string_pretty(&vectors).unwrap();
        fs::write(path(), text + "\n").unwrap();
        seeds("envelope_decode", vectors["accepted"].as_array().unwrap());
    }
    for part in ["gateways", "accepted", "sealed", "undecodable", "unverifiable"] {
        let published = &published()[part];
        assert!(*published == vectors[part], "{part} of envelope.json is stale");
    }
}

#[test]
fn accepted_bytes_say_what_the_file_says() {
    let published = published();
    let cases = published["accepted"].as_array().unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let envelope = SignedEnvelope::decode(&hex(&case["signed"])).unwrap();
        let verified = envelope.verify().unwrap();
        assert_eq!(describe(&verified), case["says"], "{}", case["name"]);
    }
}

#[test]
fn refused_bytes_are_refused_for_the_reason_in_the_file() {
    let published = published();
    let (undecodable, unverifiable) = (&published["undecodable"], &published["unverifiable"]);
    for case in undecodable.as_array().unwrap() {
        let error = SignedEnvelope::decode(&hex(&case["signed"])).unwrap_err();
        assert!(shown(&error).contains(case["error"].as_str().unwrap()), "{}", case["name"]);
    }
    for case in unverifiable.as_array().unwrap() {
        let error = SignedEnvelope::decode(&hex(&case["signed"])).unwrap().verify().unwrap_err();
        assert!(shown(&error).contains(case["error"].as_str().unwrap()), "{}", case["name"]);
    }
}

#[test]
fn many_are_verified_together_as_each_is_alone() {
    let published = published();
    let cases = |part: &str| published[part].as_array().unwrap().clone();
    let decode = |case: &Value| SignedEnvelope::decode(&hex(&case["signed"])).unwrap();
    let good: Vec<_> = cases("accepted").iter().map(decode).collect();
    assert!(SignedEnvelope::verify_each(good.clone()).iter().all(Result::is_ok));
    // Each bad one alone among the good ones, and all of them at once.
    let bad: Vec<_> = cases("unverifiable").iter().map(decode).collect();
    assert!(bad.len() >= 3);
    let one_each = bad.iter().map(|one| vec![one.clone()]).chain([bad.clone()]);
    for (number, strangers) in one_each.enumerate() {
        let mut all = good.clone();
        strangers.into_iter().for_each(|stranger| all.insert(number % good.len(), stranger));
        let alone: Vec<_> = all.iter().map(|one| one.clone().verify()).collect();
        assert_eq!(SignedEnvelope::verify_each(all), alone);
    }
}

#[test]
fn sealed_bytes_open_to_the_envelope_in_the_file() {
    let published = published();
    let case = &published["sealed"];
    let recipient: GatewayId = case["recipient"].as_str().unwrap().parse().unwrap();
    let key = OpeningKey::from_bytes(hex(&case["opening_key"]).try_into().unwrap());
    assert_eq!(HEXLOWER.encode(key.sealing_key().as_bytes()), case["sealing_key"]);
    let opened = SignedEnvelope::open(&hex(&case["sealed"]), recipient, &key).unwrap();
    assert_eq!(opened.as_bytes(), hex(&case["signed"]));
}

fn vectors() -> Value {
    json!({
        "about": "Fieldpost's envelopes, version 1: the bytes between gateways. Binary is in hex. \
                  tests/vectors/README.md explains the fields.",
        "gateways": gateways(),
        "accepted": accepted(),
        "sealed": sealed(),
        "undecodable": undecodable().into_iter().map(refusal).collect::<Vec<_>>(),
        "unverifiable": unverifiable().into_iter().map(refusal).collect::<Vec<_>>(),
    })
}

fn gateways() -> Vec<Value> {
    [("alpha", ALPHA), ("bravo", BRAVO), ("charlie", CHARLIE)]
        .map(|(name, gateway)| {
            json!({
                "name": name,
                "secret_key": HEXLOWER.encode(&gateway.secret()),
                "public_key": HEXLOWER.encode(gateway.id().as_bytes()),
                "id": gateway.id(),
            })
        })
        .into()
}

fn accepted() -> Vec<Value> {
    let broadcast = Envelope {
        recipient: Recipient::Broadcast,
        to: Recipient::Broadcast,
        expires_at: time(greeting().sent_at.as_millis() + 3_600_000),
        lane_seq: None,
        ..greeting()
    };
    let critical = Envelope {
        priority: Priority::Critical,
        level: AnonymityLevel::MEDIUM,
        lane_seq: None,
        ..greeting()
    };
    let phone = Envelope {
        recipient: BRAVO.peer("00112233aabbccdd").into(),
        to: BRAVO.peer("00112233aabbccdd").into(),
        ..greeting()
    };
    let empty = Envelope { content: Content::text(""), ..greeting() };
    let receipt = |kind, reason| {
        let receipt: Receipt = receipt(kind, reason);
        receipt.sign(&BRAVO.key()).unwrap()
    };
    [
        ("text to a peer", signed(&greeting())),
        ("empty text", signed(&empty)),
        ("every field, to a member of a group of the sender's gateway", signed(&everything())),
        ("a critical message has no lane", signed(&critical)),
        ("to a phone", signed(&phone)),
        ("a broadcast", signed(&broadcast)),
        ("to a group elsewhere", signed(&to_group_elsewhere())),
        ("the same, forwarded to a member", forward().sign(&BRAVO.key()).unwrap()),
        ("stored", receipt(ReceiptKind::Stored, None)),
        ("delivered", receipt(ReceiptKind::Delivered, None)),
        ("read", receipt(ReceiptKind::Read, None)),
        ("refused", receipt(ReceiptKind::Refused, Some("bob's storage is full"))),
    ]
    .map(|(name, envelope)| {
        let bytes = envelope.as_bytes();
        let (payload, signature) = bytes.split_at(bytes.len() - 64);
        json!({
            "name": name,
            "signed": HEXLOWER.encode(bytes),
            "payload_len": payload.len(),
            "signature": HEXLOWER.encode(signature),
            "digest": HEXLOWER.encode(&envelope.digest()),
            "says": describe(&envelope.verify().unwrap()),
        })
    })
    .into()
}

fn sealed() -> Value {
    let (opening_key, ephemeral) = (OpeningKey::from_bytes([0x42; 32]), 0x24);
    let envelope = signed(&greeting());
    let sealed =
        envelope.seal_to(BRAVO.id(), &opening_key.sealing_key(), &mut Constant(ephemeral)).unwrap();
    json!({
        "recipient": BRAVO.id(),
        "opening_key": HEXLOWER.encode(opening_key.as_bytes()),
        "sealing_key": HEXLOWER.encode(opening_key.sealing_key().as_bytes()),
        "ephemeral_key_material": HEXLOWER.encode(&[ephemeral; 32]),
        "signed": HEXLOWER.encode(envelope.as_bytes()),
        "sealed": HEXLOWER.encode(&sealed),
    })
}

fn refusal((name, bytes, error): (&str, Vec<u8>, &str)) -> Value {
    json!({ "name": name, "signed": HEXLOWER.encode(&bytes), "error": error })
}

fn describe(verified: &Verified) -> Value {
    match &verified.said {
        Said::Message(message) => json!({
            "signer": verified.signer,
            "kind": "message",
            "sender": message.sender,
            "recipient": message.recipient,
            "to": message.to,
            "message_id": message.message_id,
            "sent_at": message.sent_at,
            "expires_at": message.expires_at,
            "priority": message.priority,
            "level": message.level,
            "lane_seq": message.lane_seq,
            "after": message.after,
            "content": HEXLOWER.encode(&message.content.bytes),
            "is_text": message.content.is_text,
            "content_type": message.content.content_type,
            "message_type": message.content.message_type,
            "metadata": message.content.metadata,
            "file_ids": message.content.file_ids,
            "labels": message.content.labels,
        }),
        Said::Receipt(receipt) => json!({
            "signer": verified.signer,
            "kind": "receipt",
            "answers": HEXLOWER.encode(&receipt.answers),
            "receipt": receipt.kind,
            "at": receipt.at,
            "reason": receipt.reason,
        }),
    }
}

fn published() -> Value {
    let text = fs::read_to_string(path()).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub(crate) fn read_vectors(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(vectors_path(name)).unwrap()).unwrap()
}

pub(crate) fn vectors_path(name: &str) -> PathBuf {
    tests().join("vectors").join(name)
}

/// The fuzzer starts from what is well formed.
pub(crate) fn seeds(target: &str, accepted: &[Value]) {
    let folder = tests().join("fuzz/seeds").join(target);
    fs::create_dir_all(&folder).unwrap();
    for (number, case) in accepted.iter().enumerate() {
        fs::write(folder.join(format!("accepted-{number:02}")), hex(&case["signed"])).unwrap();
    }
}

fn path() -> PathBuf {
    vectors_path("envelope.json")
}

fn tests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests")
}

pub(crate) fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn shown(error: &impl std::fmt::Debug) -> String {
    format!("{error:?}")
}
