//! Our own vectors: `tests/vectors/sphinx.json`.
//!
//! The test builds the file's packets from its randomness and takes them along their routes. After
//! a change of format that is meant, write the file anew:
//!
//! ```sh
//! FIELDPOST_WRITE_VECTORS=1 cargo test -p fieldpost-mixnet --test sphinx the_file_is_what
//! ```

use std::{env, fs, path::PathBuf};

use data_encoding::HEXLOWER;
use fieldpost_mixnet::{
    acknowledge::{Acknowledgement, State},
    fragment::{Fragment, TransferId, split},
    seal::SEAL_OVERHEAD,
    sphinx::{Class, HEADER_LEN, Packet, Production, Surb, SurbId, open},
    wire::{Sort, append_packet},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fixtures::{EPOCH, Tape, hop, public, relay_id, route, secret, secret_bytes};

#[test]
fn the_file_is_what_the_cases_give() {
    let vectors = vectors();
    if env::var_os("FIELDPOST_WRITE_VECTORS").is_some() {
        fs::write(path(), serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
        write_seeds();
    }
    let published: Value = serde_json::from_slice(&fs::read(path()).unwrap()).unwrap();
    for part in ["relays", "packets", "replies", "fragments", "answers"] {
        assert!(published[part].is_array(), "{part}");
        assert!(published[part] == vectors[part], "{part} of sphinx.json is stale");
    }
}

fn vectors() -> Value {
    json!({
        "epoch": EPOCH,
        "relays": (1..=5).map(|relay| json!({
            "id": HEXLOWER.encode(&relay_id(relay).0),
            "secret_key": HEXLOWER.encode(&secret_bytes(relay)),
            "public_key": HEXLOWER.encode(&public(relay)),
        })).collect::<Vec<_>>(),
        "packets": (1..=5)
            .map(|hops| (hops, Class::Small))
            .chain([(3, Class::Large)])
            .map(|(hops, class)| packet(hops, class))
            .collect::<Vec<_>>(),
        "replies": (1..=5).map(reply).collect::<Vec<_>>(),
        "fragments": FRAGMENTS.iter().map(|case| fragment(*case)).collect::<Vec<_>>(),
        "answers": STATES.iter().map(|state| answer(*state)).collect::<Vec<_>>(),
    })
}

fn packet(hops: u8, class: Class) -> Value {
    let seed = u64::from(hops) + 100 * class as u64;
    let body = b"Nothing great was ever achieved without enthusiasm.";
    let mut packet = Packet::build(&mut Tape::new(seed), &route(hops), class, body).unwrap();
    let seen = along(hops, &mut packet);
    assert_eq!(&packet.body()[..body.len()], body);
    json!({ "seed": seed, "hops": hops, "class": class as u8, "body": HEXLOWER.encode(body), "at_hop": seen })
}

fn reply(hops: u8) -> Value {
    let seed = u64::from(hops) + 1000;
    let mut tape = Tape::new(seed);
    let id = SurbId([hops; 16]);
    let (surb, keys) = Surb::build(&mut tape, &route(hops), id).unwrap();
    let bytes = HEXLOWER.encode(surb.as_bytes());
    let reply = b"In spite of everything";
    let (_, mut packet) = surb.reply(&mut tape, reply).unwrap();
    let seen = along(hops, &mut packet);
    assert_eq!(&keys.open(packet.payload_mut()).unwrap()[..reply.len()], reply);
    json!({
        "seed": seed, "hops": hops, "surb_id": HEXLOWER.encode(&id.0), "surb": bytes,
        "reply": HEXLOWER.encode(reply), "at_hop": seen,
    })
}

/// What each hop gets: the header, a digest of the whole packet, and the replay tag.
fn along(hops: u8, packet: &mut Packet) -> Vec<Value> {
    (1..=hops)
        .map(|relay| {
            let bytes = packet.as_bytes();
            let (header, digest) = (HEXLOWER.encode(&bytes[..HEADER_LEN]), Sha256::digest(bytes));
            let tag =
                open::<Production>(&secret(relay), &EPOCH, packet.as_bytes_mut()).unwrap().tag();
            hop(relay, packet).unwrap();
            json!({
                "header": header,
                "sha256": HEXLOWER.encode(&digest),
                "replay_tag": HEXLOWER.encode(&tag.0),
            })
        })
        .collect()
}

fn fragment((sealed_len, index): (usize, usize)) -> Value {
    let sealed: Vec<u8> = (0..sealed_len).map(|at| (at % 251) as u8).collect();
    let (layout, shards) = split(Class::Small, &sealed).unwrap();
    let surb = [0xab; 416];
    let fragment = Fragment {
        transfer: TransferId([9; 16]),
        index,
        layout,
        again: index == 2,
        asks: index == 14,
        surb: (index == 0).then_some(&surb),
        shard: &shards[index],
    };
    json!({
        "sealed_length": sealed_len, "index": index, "data": layout.data, "repair": layout.repair,
        "bytes": HEXLOWER.encode(&fragment.encode()),
    })
}

fn answer(state: State) -> Value {
    let shards = (0..15).map(|at| state != State::Partial || at % 3 != 1).collect();
    let answer = Acknowledgement { transfer: TransferId([9; 16]), state, shards };
    json!({ "state": state as u8, "bytes": HEXLOWER.encode(&answer.encode()) })
}

/// Genuine bytes for the fuzzer to start from.
fn write_seeds() {
    let seeds = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fuzz/seeds"));
    let write = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(seeds.join(target)).unwrap();
        fs::write(seeds.join(target).join(name), bytes).unwrap();
    };
    for hops in [1, 3, 5] {
        let packet =
            Packet::build(&mut Tape::new(7), &route(hops), Class::Small, b"hello").unwrap();
        write("sphinx_hop", &format!("packet-{hops}"), packet.as_bytes());
        let (surb, _) = Surb::build(&mut Tape::new(8), &route(hops), SurbId([1; 16])).unwrap();
        let (_, reply) = surb.reply(&mut Tape::new(9), b"thanks").unwrap();
        write("sphinx_hop", &format!("reply-{hops}"), reply.as_bytes());
    }
    let mut stream = vec![Sort::Packets as u8];
    for class in Class::ALL {
        let packet = Packet::build(&mut Tape::new(10), &route(3), class, b"hello").unwrap();
        append_packet(&packet, &mut stream);
    }
    // After the length that the target cuts it into.
    for cut in [100_u16, 2_401] {
        let seed = [&cut.to_le_bytes()[..], &stream].concat();
        write("mixnet_stream", &format!("packets-{cut}"), &seed);
    }
    for (name, case) in ["one", "again", "repair"].into_iter().zip(FRAGMENTS) {
        let mut bytes =
            HEXLOWER.decode(fragment(case)["bytes"].as_str().unwrap().as_bytes()).unwrap();
        bytes.resize(Class::Small.body_len(), 0);
        write("mixnet_fragment", name, &bytes);
    }
    for state in STATES {
        let bytes = HEXLOWER.decode(answer(state)["bytes"].as_str().unwrap().as_bytes()).unwrap();
        write("mixnet_answer", &format!("{state:?}").to_lowercase(), &bytes);
    }
}

fn path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/sphinx.json"))
}

/// Lengths of sealed messages, and which of their shards.
const FRAGMENTS: [(usize, usize); 3] = [(SEAL_OVERHEAD, 0), (5000, 2), (20_000, 14)];
const STATES: [State; 3] = [State::Partial, State::Committed, State::Refused];
