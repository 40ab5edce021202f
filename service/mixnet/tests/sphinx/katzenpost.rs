//! The ten vectors of Katzenpost, through a suite that exists in tests alone.

use std::fs;

use chacha20::{
    ChaCha20,
    cipher::{KeyIvInit, StreamCipher},
};
use ctr::Ctr128BE;
use data_encoding::HEXLOWER;
use fieldpost_mixnet::sphinx::{
    Built, Group, HeaderLayout, HopError, HopKeys, PAYLOAD_KEY_MAX, PAYLOAD_TAG, PayloadKey,
    ReplayTag, Role, Step, Stop, Suite, X25519, build_header, open, wrap_payload,
};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use serde_json::Value;
use sha2::{Digest, Sha256, Sha512_256};
use zears::Aez;

use crate::fixtures::Tape;

#[test]
fn the_lengths_are_those_of_the_file() {
    let layout = &file()["parameters"]["layout"];
    assert_eq!(layout["routing_info"], Katzenpost::ROUTING);
    assert_eq!(layout["per_hop"], Katzenpost::BLOCK);
    assert_eq!(layout["header"], Katzenpost::HEADER);
}

#[test]
fn every_hop_of_the_published_packets_gives_the_published_commands_and_the_next_packet() {
    let file = file();
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 10);
    for (number, vector) in vectors.iter().enumerate() {
        let packets = vector["Packets"].as_array().unwrap();
        let nodes = vector["Nodes"].as_array().unwrap();
        let mut packet = hex(&packets[0]);
        for (hop, node) in nodes.iter().enumerate() {
            assert_eq!(packet, hex(&packets[hop]), "vector {number}, packet {hop}");
            let secret = X25519::secret(&hex(&node["PrivateKey"]).try_into().unwrap()).unwrap();
            let opened = open::<Katzenpost>(&secret, &(), &mut packet).unwrap();
            let done = opened.process().unwrap();
            let expected: Vec<u8> =
                vector["Path"][hop]["Commands"].as_array().unwrap().iter().flat_map(hex).collect();
            assert_eq!(done.command.own(), expected, "vector {number}, commands {hop}");
            assert_eq!(done.last, hop + 1 == nodes.len());
            if !done.last {
                assert_eq!(done.command.next(), hex(&nodes[hop + 1]["ID"]));
            }
        }
        let payload = &mut packet[Katzenpost::HEADER..];
        let keys = hex(&vector["SurbKeys"]);
        if !keys.is_empty() {
            open_reply(&keys, payload);
        }
        let (tag, text) = payload.split_at(PAYLOAD_TAG);
        assert_eq!(tag, [0; PAYLOAD_TAG], "vector {number}");
        let expected = hex(&vector["Payload"]);
        assert_eq!(text[..expected.len()], expected, "vector {number}, payload");
    }
}

#[test]
fn a_published_surb_is_the_header_of_its_packet() {
    for vector in &file()["vectors"].as_array().unwrap()[5..] {
        let surb = hex(&vector["Surb"]);
        assert_eq!(surb.len(), Katzenpost::HEADER + 32 + Katzenpost::PAYLOAD_KEY);
        assert_eq!(surb[..Katzenpost::HEADER], hex(&vector["Packets"][0])[..Katzenpost::HEADER]);
    }
}

#[test]
fn a_packet_that_we_build_for_the_published_relays_arrives() {
    let file = file();
    for vector in &file["vectors"].as_array().unwrap()[..5] {
        let nodes = vector["Nodes"].as_array().unwrap();
        let stops: Vec<Stop<Katzenpost>> = vector["Path"]
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
            .map(|(hop, stop)| Stop {
                key: hex(&stop["PublicKey"]).try_into().unwrap(),
                command: Commands::new(
                    &stop["Commands"].as_array().unwrap().iter().flat_map(hex).collect::<Vec<_>>(),
                    nodes.get(hop + 1).map(|next| hex(&next["ID"]).try_into().unwrap()),
                ),
            })
            .collect();
        let mut packet = vec![0; 611];
        Tape::new(1).fill_bytes(&mut packet[Katzenpost::HEADER + PAYLOAD_TAG..]);
        let text = packet[Katzenpost::HEADER + PAYLOAD_TAG..].to_vec();
        let (header, payload) = packet.split_at_mut(Katzenpost::HEADER);
        let built: Built = build_header(&mut Tape::new(2), &[0; 2], &(), &stops, header).unwrap();
        wrap_payload(&built, &stops, payload);
        for (node, stop) in nodes.iter().zip(&stops) {
            let secret = X25519::secret(&hex(&node["PrivateKey"]).try_into().unwrap()).unwrap();
            let done = open::<Katzenpost>(&secret, &(), &mut packet).unwrap().process().unwrap();
            assert_eq!(done.command.own(), stop.command.own());
        }
        assert_eq!(packet[Katzenpost::HEADER + PAYLOAD_TAG..], text);
    }
}

/// Keys stand from the last hop to the first, and the key of the SURB's user is the last.
fn open_reply(keys: &[u8], payload: &mut [u8]) {
    let keys: Vec<&[u8]> = keys.chunks(Katzenpost::PAYLOAD_KEY).collect();
    let (answer, hops) = keys.split_last().unwrap();
    for key in hops {
        Katzenpost::encrypt_payload(&payload_key(key), Role::Reply, payload);
    }
    Katzenpost::decrypt_payload(&payload_key(answer), Role::Answer, payload);
}

fn payload_key(bytes: &[u8]) -> PayloadKey {
    let mut key = PayloadKey([0; PAYLOAD_KEY_MAX]);
    key.0[..bytes.len()].copy_from_slice(bytes);
    key
}

#[derive(Debug)]
struct Katzenpost;

/// The commands of a block as they stand in it, the next hop's taken out.
#[derive(Clone, Copy, Debug)]
struct Commands {
    bytes: [u8; 82],
    length: usize,
    next: Option<[u8; 32]>,
}

impl Commands {
    fn new(own: &[u8], next: Option<[u8; 32]>) -> Self {
        let mut bytes = [0; 82];
        bytes[..own.len()].copy_from_slice(own);
        Self { bytes, length: own.len(), next }
    }

    fn own(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn next(&self) -> Vec<u8> {
        self.next.unwrap_or_default().to_vec()
    }
}

const NEXT_HOP: u8 = 0x01;
const RECIPIENT: u8 = 0x02;
const SURB_REPLY: u8 = 0x03;
const DELAY: u8 = 0x80;

impl Suite for Katzenpost {
    type Group = X25519;
    type Command = Commands;
    type Context = ();

    const PREFIX: usize = 2;
    const BLOCK: usize = 82;
    const MAC: usize = 32;
    const PAYLOAD_KEY: usize = 64;

    fn check_prefix(prefix: &[u8], _: usize, (): &()) -> Result<(), HopError> {
        if prefix == [0; 2] { Ok(()) } else { Err(HopError::UnsupportedVersion(prefix[0])) }
    }

    fn derive(shared: &[u8; 32], _: &[u8], element: &[u8; 32], (): &()) -> HopKeys {
        let mut bytes = [0; 160];
        Hkdf::<Sha256>::from_prk(shared)
            .unwrap()
            .expand(b"katzenpost-kdf-v0-hkdf-sha256", &mut bytes)
            .unwrap();
        let mut payload = [0; PAYLOAD_KEY_MAX];
        payload[..48].copy_from_slice(&bytes[80..128]);
        payload[48..].copy_from_slice(&bytes[64..80]);
        let mut blinding = [0; 32];
        let seed: [u8; 32] = bytes[128..].try_into().unwrap();
        ChaCha20::new(&seed.into(), &[0; 12].into()).apply_keystream(&mut blinding);
        HopKeys {
            mac: bytes[..32].try_into().unwrap(),
            header: bytes[32..64].try_into().unwrap(),
            header_nonce: bytes[64..80].try_into().unwrap(),
            payload: PayloadKey(payload),
            blinding,
            tag: ReplayTag(Sha512_256::digest(element)[..16].try_into().unwrap()),
        }
    }

    fn authenticate(keys: &HopKeys, prefix: &[u8], element: &[u8; 32], routing: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&keys.mac).unwrap();
        for part in [prefix, element, routing] {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    fn apply_header_stream(keys: &HopKeys, routing: &mut [u8]) {
        Ctr128BE::<aes::Aes256>::new(&keys.header.into(), &keys.header_nonce.into())
            .apply_keystream(routing);
    }

    fn encrypt_payload(key: &PayloadKey, _: Role, payload: &mut [u8]) {
        Aez::new(&key.0[..48]).encrypt_inplace(&key.0[48..], &[], 0, payload);
    }

    fn decrypt_payload(key: &PayloadKey, _: Role, payload: &mut [u8]) {
        Aez::new(&key.0[..48]).decrypt_inplace(&key.0[48..], &[], 0, payload).unwrap();
    }

    fn read(block: &[u8]) -> Result<Step<Commands>, HopError> {
        let (mut rest, mut own, mut next, mut next_mac) = (block, Vec::new(), None, None);
        while let [kind, after @ ..] = rest {
            let length = match *kind {
                0 => break,
                NEXT_HOP => 64,
                RECIPIENT => 32,
                SURB_REPLY => 16,
                DELAY => 4,
                unknown => return Err(HopError::Command(unknown)),
            };
            let (body, after) = after.split_at_checked(length).ok_or(HopError::Command(*kind))?;
            if *kind == NEXT_HOP {
                next = Some(body[..32].try_into().unwrap());
                next_mac = Some(body[32..].try_into().unwrap());
            } else {
                own.push(*kind);
                own.extend(body);
            }
            rest = after;
        }
        Ok(Step { command: Commands::new(&own, next), next_mac })
    }

    fn write(command: &Commands, next_mac: Option<&[u8]>, block: &mut [u8]) {
        let mut bytes = command.own().to_vec();
        if let (Some(next), Some(mac)) = (command.next, next_mac) {
            bytes.push(NEXT_HOP);
            bytes.extend(next);
            bytes.extend(mac);
        }
        bytes.resize(block.len(), 0);
        block.copy_from_slice(&bytes);
    }

    fn role(command: &Commands) -> Role {
        let replies = command.own().windows(17).any(|bytes| bytes[0] == SURB_REPLY)
            && command.length == 33 + 17;
        match (command.next, replies) {
            (Some(_), _) => Role::Pass,
            (None, false) => Role::Deliver,
            (None, true) => Role::Reply,
        }
    }
}

fn file() -> Value {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/sphinx-katzenpost-x25519.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}
