//! The vectors that other implementations can check themselves against: `tests/vectors/htx.json`.
//!
//! The test reads the file and holds the crate to it; it also fails when the file is not what the
//! cases below give. After a change that is meant, write it anew:
//!
//! ```sh
//! FIELDPOST_WRITE_VECTORS=1 cargo test -p fieldpost-mixnet --test htx the_file_is_what
//! ```

use std::{env, fs, path::PathBuf};

use data_encoding::HEXLOWER;
use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::htx::{
    BucketLimits, Dial, Event, FrameError, FrameHeader, FrameKind, Gate, OpeningHalf, SealingHalf,
    SecretKey, SessionKeys, Settings, StreamId, TicketKey, TicketParts,
};
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::pair::{EXPORTER, Pair, TICKET_KEY, capabilities, dial, identity, quiet, server_key};

#[test]
fn the_file_is_what_the_cases_give() {
    let vectors = vectors();
    if env::var_os("FIELDPOST_WRITE_VECTORS").is_some() {
        fs::write(path(), serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
        write_seeds(&vectors);
    }
    let published = published();
    for part in ["tickets", "keys", "handshake", "bad_frames"] {
        assert!(published[part] == vectors[part], "{part} of htx.json is stale");
    }
}

#[test]
fn published_tickets_are_let_in_in_their_hour() {
    for case in published()["tickets"].as_array().unwrap() {
        let mut gate = Gate::new(&mut StdRng::seed_from_u64(1), BucketLimits::default());
        let secret = SecretKey::from_bytes(&fixed(&case["front_secret"]));
        let id = fixed(&case["key_id"]);
        gate.add_key(id, secret);
        let text = case["ticket"].as_str().unwrap();
        let parts = TicketParts::decode(text).unwrap();
        assert_eq!(parts.nonce, fixed(&case["nonce"]));
        assert_eq!(parts.proof, fixed(&case["proof"]));
        let now = Timestamp::try_from(case["unix_seconds"].as_u64().unwrap() * 1_000).unwrap();
        let admission = gate.check(now, [192, 0, 2, 1].into(), Some(text)).unwrap();
        assert_eq!(admission.key_id, id);
    }
}

#[test]
fn published_frames_open_under_the_published_secrets() {
    let keys = &published()["keys"];
    let session = SessionKeys::derive(
        &fixed(&keys["transcript"]),
        (&fixed(&keys["noise_client"]), &fixed(&keys["noise_server"])),
        &fixed(&keys["kem_secret"]),
    );
    for (half, side) in [(session.client, "client_frames"), (session.server, "server_frames")] {
        let mut opening = OpeningHalf::new(half);
        for case in keys[side].as_array().unwrap() {
            let mut bytes = hex(&case["frame"]);
            let (header, header_len) = FrameHeader::decode(&bytes).unwrap().unwrap();
            assert_eq!(u64::from(u8::from(header.kind)), case["kind"].as_u64().unwrap());
            let payload = opening.open(header.kind, &mut bytes, header_len).unwrap();
            assert_eq!(payload, hex(&case["payload"]));
        }
    }
}

fn vectors() -> Value {
    json!({
        "tickets": tickets(),
        "keys": keys(),
        "handshake": handshake(),
        "bad_frames": bad_frames(),
    })
}

fn tickets() -> Value {
    let cases =
        [(7_u8, 1_800_000_000_u64, (24, 64)), (8, 1_799_999_999, (24, 24)), (9, 0, (64, 64))];
    let case = |(seed, unix_seconds, padding): (u8, u64, (u8, u8))| {
        let secret = SecretKey::from_bytes(&[seed; 32]);
        let key = TicketKey { id: [seed; 8], public: *secret.public() };
        let mut rng = StdRng::seed_from_u64(seed.into());
        let ticket = key.make_ticket(&mut rng, padding, unix_seconds).unwrap();
        let parts = TicketParts::decode(&ticket).unwrap();
        json!({
            "front_secret": HEXLOWER.encode(secret.as_bytes()),
            "front_public": HEXLOWER.encode(secret.public()),
            "key_id": HEXLOWER.encode(&key.id),
            "unix_seconds": unix_seconds,
            "client_public": HEXLOWER.encode(&parts.client),
            "nonce": HEXLOWER.encode(&parts.nonce),
            "proof": HEXLOWER.encode(&parts.proof),
            "ticket": ticket,
        })
    };
    cases.map(case).into_iter().collect()
}

fn keys() -> Value {
    let session = SessionKeys::derive(&[1; 32], (&[2; 32], &[3; 32]), &[4; 32]);
    let frames = |half, first: u64| {
        let mut sealing = SealingHalf::new(half);
        let stream = StreamId::new(first);
        let far = StreamId::new(first + 20_000);
        let cases: [(FrameKind, Option<StreamId>, &[u8]); 8] = [
            (FrameKind::Stream, stream, b"hello"),
            (FrameKind::Stream, far, b"far away"),
            (FrameKind::Stream, stream, b""),
            (FrameKind::Ping, None, b"\x00question"),
            (FrameKind::WindowUpdate, stream, &[0, 0, 0x80, 0]),
            (FrameKind::KeyUpdate, None, b""),
            (FrameKind::Stream, stream, b"under the next key"),
            (FrameKind::Close, None, &[0, 0]),
        ];
        let sealed = cases.map(|(kind, stream, payload)| {
            let mut frame = Vec::new();
            sealing.seal(kind, stream, payload, &mut frame);
            json!({
                "kind": u8::from(kind),
                "stream": stream.map(StreamId::get),
                "payload": HEXLOWER.encode(payload),
                "frame": HEXLOWER.encode(&frame),
            })
        });
        Value::from_iter(sealed)
    };
    json!({
        "transcript": HEXLOWER.encode(&[1; 32]),
        "noise_client": HEXLOWER.encode(&[2; 32]),
        "noise_server": HEXLOWER.encode(&[3; 32]),
        "kem_secret": HEXLOWER.encode(&[4; 32]),
        "client_frames": frames(session.client, 1),
        "server_frames": frames(session.server, 2),
    })
}

fn handshake() -> Value {
    let client = Settings { capabilities: capabilities(&[1, 300]), ..quiet() };
    let server = Settings { capabilities: capabilities(&[300]), ..quiet() };
    let relay = SecretKey::from_bytes(&[7; 32]);
    let dial = Dial { identity: Some(relay.clone()), ..dial(&server) };
    let mut pair = Pair::between(2_026, client, server, dial, identity());
    let mut messages = Vec::new();
    for turn in 0..3 {
        let from_client = turn % 2 == 0;
        let end = if from_client { &pair.client } else { &pair.server };
        messages.push(HEXLOWER.encode(&end.wire[0]));
        pair.carry(from_client);
    }
    let stream = pair.client.link.open().unwrap();
    pair.client.send(stream, b"first");
    let stream = pair.server.link.open().unwrap();
    pair.server.send(stream, b"second");
    pair.server.handle(Event::Close);
    let frames = |wire: &std::collections::VecDeque<Vec<u8>>| -> Value {
        wire.iter().map(|frame| HEXLOWER.encode(frame)).collect()
    };
    json!({
        "exporter": HEXLOWER.encode(&EXPORTER),
        "ticket_key_id": HEXLOWER.encode(&TICKET_KEY),
        "server_secret": HEXLOWER.encode(server_key().as_bytes()),
        "client_secret": HEXLOWER.encode(relay.as_bytes()),
        "client_capabilities": [1, 300],
        "server_capabilities": [300],
        "messages": messages,
        "client_frames": frames(&pair.client.wire),
        "server_frames": frames(&pair.server.wire),
    })
}

fn bad_frames() -> Value {
    let cases: [&[u8]; 8] = [
        &[0, 0, 0, 5],
        &[1, 0, 1, 0, 1],
        &[0, 0, 0, 1],
        &[0, 0x0c, 2, 1],
        &[0, 0, 3, 2],
        &[0, 0, 1, 3],
        &[0, 0, 5, 4, 1],
        &[0, 0, 0, 0, 0x40, 1],
    ];
    let case = |header: &[u8]| {
        let error: FrameError = FrameHeader::decode(header).unwrap_err();
        let name = format!("{error:?}");
        let name = name.split([' ', '(']).next().unwrap();
        json!({ "header": HEXLOWER.encode(header), "error": name })
    };
    cases.map(case).into_iter().collect()
}

/// What the fuzz targets begin with.
fn write_seeds(vectors: &Value) {
    let write = |target: &str, name: String, bytes: &[u8]| {
        let folder = path().with_file_name("../fuzz/seeds").join(target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    };
    for (index, case) in vectors["tickets"].as_array().unwrap().iter().enumerate() {
        let text = case["ticket"].as_str().unwrap();
        write("htx_ticket", format!("ticket-{index}"), text.as_bytes());
    }
    for side in ["client_frames", "server_frames"] {
        let frames = vectors["keys"][side].as_array().unwrap();
        let all: Vec<u8> = frames.iter().flat_map(|case| hex(&case["frame"])).collect();
        write("htx_frame", side.into(), &all);
        for (index, case) in frames.iter().enumerate() {
            write("htx_frame", format!("{side}-{index}"), &hex(&case["frame"]));
        }
    }
    for (index, message) in vectors["handshake"]["messages"].as_array().unwrap().iter().enumerate()
    {
        // The first byte tells the target whom to give the rest to.
        let bytes = [&[index as u8], &hex(message)[..]].concat();
        write("htx_handshake", format!("message-{index}"), &bytes);
    }
}

fn published() -> Value {
    serde_json::from_slice(&fs::read(path()).unwrap()).unwrap()
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/htx.json")
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn fixed<const N: usize>(value: &Value) -> [u8; N] {
    hex(value).try_into().unwrap()
}
