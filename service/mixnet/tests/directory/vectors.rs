//! The vectors that other implementations can check themselves against:
//! `tests/vectors/directory.json`.
//!
//! The test reads the file and holds the crate to it; it also fails when the file is not what the
//! cases below give. After a change that is meant, write it anew:
//!
//! ```sh
//! FIELDPOST_WRITE_VECTORS=1 cargo test -p fieldpost-mixnet --test directory the_file_is_what
//! ```

use std::{env, fs, path::PathBuf};

use data_encoding::HEXLOWER;
use ed25519_dalek::Signer;
use fieldpost_mixnet::{
    directory::{BeaconSource, Document, GossipMessage, SignedDescriptor, SignedDocument},
    wire::{Message, Sort},
};
use serde_json::{Value, json};

use crate::fixtures::{
    EPOCH, authority, descriptor, everything, genesis, hidden, key, next, relays, signed,
    signed_document, signers, time,
};

#[test]
fn the_file_is_what_the_cases_give() {
    let vectors = vectors();
    if env::var_os("FIELDPOST_WRITE_VECTORS").is_some() {
        fs::write(path(), serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
        write_seeds(&vectors);
    }
    let published = published();
    for part in ["descriptors", "bad_descriptors", "authority", "documents", "gossip"] {
        assert!(published[part] == vectors[part], "{part} of directory.json is stale");
    }
}

#[test]
fn published_descriptors_are_believed_and_bad_ones_are_refused_for_the_reason() {
    let published = published();
    for case in published["descriptors"].as_array().unwrap() {
        let decoded = SignedDescriptor::decode(&hex(&case["signed"])).unwrap();
        assert_eq!(decoded.id().to_string(), case["id"].as_str().unwrap());
        assert_eq!(decoded.verify().unwrap().operator, case["operator"].as_str().unwrap());
    }
    for case in published["bad_descriptors"].as_array().unwrap() {
        let decoded = SignedDescriptor::decode(&hex(&case["signed"]));
        let error = decoded.and_then(|it| it.verify().map(drop)).unwrap_err();
        assert_eq!(json!(format!("{error:?}")), case["error"]);
    }
}

#[test]
fn published_documents_form_a_chain() {
    let published = published();
    assert_eq!(json!(HEXLOWER.encode(&authority().id())), published["authority"]["id"]);
    let mut last: Option<SignedDocument> = None;
    for case in published["documents"].as_array().unwrap() {
        let document = SignedDocument::decode(&hex(&case["signed"])).unwrap();
        match &last {
            Some(last) => document.verify_after(last, &authority()).unwrap(),
            None => document.verify(&authority()).unwrap(),
        };
        assert_eq!(json!(HEXLOWER.encode(&document.digest())), case["digest"]);
        last = Some(document);
    }
}

fn vectors() -> Value {
    let chain = chain();
    let head = &chain[3];
    let (number, digest) = (head.document().number, head.digest());
    let messages = [
        GossipMessage::Head { number, digest },
        GossipMessage::Request { number },
        GossipMessage::Document(chain[0].to_bytes()),
    ];
    let documents: Vec<_> = chain
        .iter()
        .map(|document| {
            json!({
                "number": document.document().number,
                "epoch": document.document().epoch,
                "beacon": HEXLOWER.encode(&document.document().beacon),
                "digest": HEXLOWER.encode(&document.digest()),
                "signed": HEXLOWER.encode(&document.to_bytes()),
            })
        })
        .collect();
    let descriptors = [everything(), descriptor(1, EPOCH), hidden(2, &[1, 3])].map(|it| {
        json!({
            "secret_key": HEXLOWER.encode(&[it.noise[0]; 32]),
            "id": it.id().to_string(),
            "operator": it.operator,
            "epoch": it.epoch,
            "signed": HEXLOWER.encode(signed(&it).as_bytes()),
        })
    });
    json!({
        "descriptors": descriptors,
        "bad_descriptors": bad_descriptors(),
        "authority": {
            "id": HEXLOWER.encode(&authority().id()),
            "threshold": authority().threshold(),
            "epoch_seconds": authority().clock().length().as_secs(),
            "signer_secrets": signers().map(|signer| HEXLOWER.encode(signer.as_bytes())),
        },
        "documents": documents,
        "gossip": messages.map(|message| HEXLOWER.encode(&message.encode())),
    })
}

/// Genesis, two successors without sources, and one with.
fn chain() -> Vec<SignedDocument> {
    let first = genesis(relays(1..=3, EPOCH));
    let second = next(&first);
    let third = next(&second);
    let sources = vec![
        BeaconSource { name: "drand quicknet 1234".into(), value: vec![0xd4; 48] },
        BeaconSource { name: "operators' dice".into(), value: b"3 1 4 1 5".to_vec() },
    ];
    let fourth = Document::successor(
        &authority(),
        &third,
        EPOCH + 3,
        time(20),
        sources,
        relays(1..=3, EPOCH + 1),
    );
    vec![first, second, third, signed_document(fourth.unwrap())]
}

fn bad_descriptors() -> Value {
    let good = signed(&descriptor(1, EPOCH)).as_bytes().to_vec();
    let payload = &good[..good.len() - 64];
    let resigned = |payload: &[u8]| {
        let text = [b"fieldpost-htx-descriptor-v1", payload].concat();
        [payload, &key(1).sign(&text).to_bytes()].concat()
    };
    let edited = |at: usize, byte: u8| {
        let mut payload = payload.to_vec();
        payload[at] = byte;
        resigned(&payload)
    };
    let mut forged = good.clone();
    forged[100] ^= 1;
    let mut long = payload.to_vec();
    long.splice(2..3, [0x18, 1]);
    let cases = [
        ("altered after signing", forged),
        ("cut short", good[..good.len() - 1].to_vec()),
        ("version 2", edited(2, 2)),
        ("indefinite length", edited(0, 0xbf)),
        ("a number not in its shortest form", resigned(&long)),
        ("something behind the payload", resigned(&[payload, &[0]].concat())),
    ];
    let case = |(name, bytes): (&str, Vec<u8>)| {
        let decoded = SignedDescriptor::decode(&bytes);
        let error = decoded.and_then(|it| it.verify().map(drop)).unwrap_err();
        json!({
            "name": name,
            "signed": HEXLOWER.encode(&bytes),
            "error": format!("{error:?}"),
        })
    };
    cases.map(case).into_iter().collect()
}

/// What the fuzz targets begin with.
fn write_seeds(vectors: &Value) {
    for (target, part) in [
        ("directory_descriptor", "descriptors"),
        ("directory_descriptor", "bad_descriptors"),
        ("directory_document", "documents"),
    ] {
        for (index, case) in vectors[part].as_array().unwrap().iter().enumerate() {
            write_seed(target, &format!("{part}-{index}"), &hex(&case["signed"]));
        }
    }
    for (index, message) in vectors["gossip"].as_array().unwrap().iter().enumerate() {
        write_seed("directory_gossip", &format!("message-{index}"), &hex(message));
    }
    // A stream of all of them, after the length that the target cuts it into.
    let gossip = vectors["gossip"].as_array().unwrap().iter().map(hex).map(Message::Gossip);
    let descriptors = vectors["descriptors"].as_array().unwrap().iter();
    let descriptors = descriptors.map(|case| Message::Descriptor(hex(&case["signed"])));
    let messages = gossip.chain(descriptors).flat_map(|message| message.encode());
    let stream: Vec<u8> = [Sort::Messages as u8].into_iter().chain(messages).collect();
    for cut in [1_u16, 5, 1_000] {
        let seed = [&cut.to_le_bytes()[..], &stream].concat();
        write_seed("mixnet_stream", &format!("messages-{cut}"), &seed);
    }
}

fn write_seed(target: &str, name: &str, bytes: &[u8]) {
    let folder = path().with_file_name("../fuzz/seeds").join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
}

fn published() -> Value {
    serde_json::from_slice(&fs::read(path()).unwrap()).unwrap()
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/directory.json")
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}
