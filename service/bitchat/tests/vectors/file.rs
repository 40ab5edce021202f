//! Reading the file.

use std::{fs, path::Path};

use data_encoding::HEXLOWER;
use ed25519_dalek::SigningKey;
use fieldpost_bitchat::MeshId;
use serde_json::Value;

pub(crate) struct Vector {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) inputs: Value,
    pub(crate) expected: Value,
}

pub(crate) fn vectors() -> Vec<Vector> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    document()["vectors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vector| Vector {
            id: text(&vector["id"]),
            kind: text(&vector["kind"]),
            inputs: vector["inputs"].clone(),
            expected: vector["expected"].clone(),
        })
        .collect()
}

impl Vector {
    pub(crate) fn input(&self, name: &str) -> Vec<u8> {
        bytes(&self.inputs[name])
    }

    pub(crate) fn expected(&self, name: &str) -> Vec<u8> {
        bytes(&self.expected[name])
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.inputs[name].as_u64().unwrap_or_else(|| panic!("{}: {name}", self.id))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.inputs[name].as_str().unwrap_or_else(|| panic!("{}: {name}", self.id)).to_owned()
    }
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().expect("hex").as_bytes()).expect("hex")
}

pub(crate) fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().expect("the right length")
}

pub(crate) fn mesh_id(value: &Value) -> MeshId {
    MeshId(array(value))
}

pub(crate) fn key(name: &str) -> [u8; 32] {
    array(&document()["keys"][name])
}

pub(crate) fn signing(name: &str) -> SigningKey {
    SigningKey::from_bytes(&key(name))
}

fn document() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/bitchat.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}
