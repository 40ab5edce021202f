//! Payloads as lists of raw map entries, to write what the encoder would not.

use ed25519_dalek::Signer;
use fieldpost_envelope::SignedEnvelope;
use minicbor::{Decoder, Encoder};

use crate::fixtures::Gateway;

/// The entries of a payload: key and encoded value, in any order, any number of times.
#[derive(Clone)]
pub(crate) struct Payload {
    pub(crate) entries: Vec<(u64, Vec<u8>)>,
}

impl Payload {
    /// Takes a well-formed payload apart.
    pub(crate) fn of(envelope: &SignedEnvelope) -> Self {
        let bytes = payload_of(envelope.as_bytes());
        let mut decoder = Decoder::new(bytes);
        let count = decoder.map().unwrap().unwrap();
        let mut entry = || {
            let key = decoder.u64().unwrap();
            let start = decoder.position();
            decoder.skip().unwrap();
            (key, bytes[start..decoder.position()].to_vec())
        };
        Self { entries: (0..count).map(|_| entry()).collect() }
    }

    /// Puts a value at a key, in place or where it belongs.
    pub(crate) fn with(mut self, key: u64, value: Vec<u8>) -> Self {
        match self.entries.iter_mut().find(|entry| entry.0 == key) {
            Some(entry) => entry.1 = value,
            None => {
                let at = self.entries.partition_point(|entry| entry.0 < key);
                self.entries.insert(at, (key, value));
            }
        }
        self
    }

    pub(crate) fn without(mut self, key: u64) -> Self {
        self.entries.retain(|entry| entry.0 != key);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        encoder.map(self.entries.len() as u64).unwrap();
        let mut bytes = encoder.into_writer();
        for (key, value) in &self.entries {
            bytes.extend(cbor(|encoder| {
                encoder.u64(*key).unwrap();
            }));
            bytes.extend(value);
        }
        bytes
    }

    /// The payload with a valid signature of `gateway`.
    pub(crate) fn signed_by(&self, gateway: Gateway) -> Vec<u8> {
        sign_bytes(self.bytes(), gateway)
    }
}

/// Adds a valid signature to whatever bytes.
pub(crate) fn sign_bytes(mut payload: Vec<u8>, gateway: Gateway) -> Vec<u8> {
    let text = [b"fieldpost-envelope-v1", &payload[..]].concat();
    let signature = gateway.key().sign(&text);
    payload.extend(signature.to_bytes());
    payload
}

pub(crate) fn payload_of(signed: &[u8]) -> &[u8] {
    signed.split_last_chunk::<64>().unwrap().0
}

pub(crate) fn cbor(write: impl FnOnce(&mut Encoder<Vec<u8>>)) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    write(&mut encoder);
    encoder.into_writer()
}

pub(crate) fn uint(value: u64) -> Vec<u8> {
    cbor(|encoder| {
        encoder.u64(value).unwrap();
    })
}

pub(crate) fn text(value: &str) -> Vec<u8> {
    cbor(|encoder| {
        encoder.str(value).unwrap();
    })
}

pub(crate) fn bytes(value: &[u8]) -> Vec<u8> {
    cbor(|encoder| {
        encoder.bytes(value).unwrap();
    })
}
