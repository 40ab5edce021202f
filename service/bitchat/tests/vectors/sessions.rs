//! Noise.

use fieldpost_bitchat::{
    MeshId,
    noise::{Handshake, Window},
    payload::courier::{self, Courier},
};
use serde_json::Value;
use snow::{
    Builder,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, DefaultResolver},
    types::{Cipher, Dh, Hash, Random},
};

use crate::file::{Vector, array, bytes};

pub(crate) fn courier(vector: &Vector) {
    let inputs = &vector.inputs;
    let prekey_id = inputs["prekey_id"].as_u64().map(|id| id as u32);
    let plaintext = vector.input("plaintext");
    let sender_private = array(&inputs["sender_static_private"]);
    let recipient_private = array(&inputs["recipient_static_private"]);
    let recipient = x25519_dalek::x25519(recipient_private, x25519_dalek::X25519_BASEPOINT_BYTES);
    let ephemeral = array(&inputs["ephemeral_private"]);
    let sealed =
        courier::seal(&sender_private, &recipient, prekey_id, ephemeral, &plaintext).unwrap();
    assert_eq!(sealed, vector.expected("noise_x_message"));
    let day = vector.number("epoch_day") as u32;
    let tag = courier::recipient_tag(&array(&inputs["tag_key_noise_public"]), day);
    assert_eq!(tag.to_vec(), vector.expected("recipient_tag"));
    let envelope = Courier {
        tag,
        expires_ms: vector.number("expiry_ms"),
        ciphertext: sealed,
        copies: vector.number("copies") as u8,
        prekey_id,
    };
    assert_eq!(envelope.encode(), vector.expected("envelope"));
    let read = Courier::decode(&envelope.encode()).unwrap();
    assert_eq!(read, envelope);
    let (opened, sender) = read.open(&recipient_private).unwrap();
    assert_eq!(opened, plaintext);
    let id = MeshId::of_noise_key(&sender);
    assert_eq!(id.to_hex(), "aaa8fff703b50b22");
    assert!(read.open(&sender_private).is_err());
}

/// Upstream's own vectors have a prologue and payloads, which BitChat does not use; they hold the
/// library to the same Noise.
pub(crate) fn noise_vector(vector: &Vector) {
    let party = |role: &str| {
        let field = |name: &str| vector.input(&format!("{role}_{name}"));
        (field("static"), field("ephemeral"), field("prologue"))
    };
    let (init, resp) = (party("init"), party("resp"));
    let build = |party: &(Vec<u8>, Vec<u8>, Vec<u8>), initiator: bool| {
        let params = vector.text("protocol_name").parse().unwrap();
        let builder = Builder::with_resolver(params, Box::new(NoRandomness))
            .local_private_key(&party.0)
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(&party.1)
            .prologue(&party.2)
            .unwrap();
        if initiator { builder.build_initiator() } else { builder.build_responder() }.unwrap()
    };
    let (mut ours, mut theirs) = (build(&init, true), build(&resp, false));
    let messages = vector.expected["messages"].as_array().unwrap();
    let exchange = |message: &Value| (bytes(&message["payload"]), bytes(&message["ciphertext"]));
    let (mut out, mut back) = (vec![0; 1024], vec![0; 1024]);
    for (i, message) in messages[..3].iter().enumerate() {
        let (from, to) =
            if i % 2 == 0 { (&mut ours, &mut theirs) } else { (&mut theirs, &mut ours) };
        let (payload, ciphertext) = exchange(message);
        let length = from.write_message(&payload, &mut out).unwrap();
        assert_eq!(out[..length], ciphertext);
        let length = to.read_message(&ciphertext, &mut back).unwrap();
        assert_eq!(back[..length], payload);
    }
    if !vector.expected["handshake_hash"].is_null() {
        assert_eq!(ours.get_handshake_hash(), vector.expected("handshake_hash"));
    }
    let mut ours = ours.into_transport_mode().unwrap();
    let mut theirs = theirs.into_transport_mode().unwrap();
    for (i, message) in messages[3..].iter().enumerate() {
        let (from, to) =
            if i % 2 == 0 { (&mut theirs, &mut ours) } else { (&mut ours, &mut theirs) };
        let (payload, ciphertext) = exchange(message);
        let length = from.write_message(&payload, &mut out).unwrap();
        assert_eq!(out[..length], ciphertext);
        let length = to.read_message(&ciphertext, &mut back).unwrap();
        assert_eq!(back[..length], payload);
    }
}

/// The ephemeral keys are given, so nothing is drawn.
struct NoRandomness;

impl CryptoResolver for NoRandomness {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Self))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

impl Random for NoRandomness {
    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), snow::Error> {
        Err(snow::Error::Rng)
    }
}

pub(crate) fn noise_xx(vector: &Vector) {
    let inputs = &vector.inputs;
    let (initiator, first) = Handshake::initiate(
        &array(&inputs["initiator_static_private"]),
        array(&inputs["initiator_ephemeral_private"]),
    )
    .unwrap();
    assert_eq!(first, vector.expected("message1"));
    let (responder, second) = Handshake::respond(
        &array(&inputs["responder_static_private"]),
        array(&inputs["responder_ephemeral_private"]),
        &first,
    )
    .unwrap();
    assert_eq!(second, vector.expected("message2"));
    let (mut ours, third) = initiator.complete(&second).unwrap();
    assert_eq!(third, vector.expected("message3"));
    let mut theirs = responder.accept(&third).unwrap();
    let transport = vector.expected["transport"].as_array().unwrap();
    assert!(transport.len() >= 4);
    for frame in transport {
        let (plaintext, sealed) = (bytes(&frame["plaintext"]), bytes(&frame["frame"]));
        let (from, to) = match frame["dir"].as_str().unwrap() {
            "i2r" => (&mut ours, &mut theirs),
            _ => (&mut theirs, &mut ours),
        };
        assert_eq!(u64::from(from.sealed()), frame["nonce"].as_u64().unwrap());
        assert_eq!(from.seal(&plaintext).unwrap(), sealed);
        assert_eq!(to.open(&sealed).unwrap(), plaintext);
        assert!(to.open(&sealed).is_err(), "a replay");
    }
}

pub(crate) fn replay_window(vector: &Vector) {
    let mut window = Window::default();
    let sequence = vector.inputs["sequence"].as_array().unwrap();
    let accept = vector.expected["accept"].as_array().unwrap();
    for (number, accepted) in sequence.iter().zip(accept) {
        let number = number.as_u64().unwrap() as u32;
        assert_eq!(window.insert(number), accepted.as_bool().unwrap(), "{number}");
    }
}
