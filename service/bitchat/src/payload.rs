//! What packets and Noise plaintexts say (BitChat protocol reference, section 3).
//!
//! Each decoder takes bytes that anybody may have sent: it rejects what the apps reject, and holds
//! no more than it was given.

pub mod announce;
pub mod board;
pub mod carrier;
pub mod courier;
pub mod exchange;
pub mod file;
pub mod fragment;
pub mod gateway;
pub mod group;
pub mod legacy;
pub mod noise;
pub mod nostr;
pub mod peer_state;
pub mod ping;
pub mod prekeys;
pub mod rotation;
pub mod sync;
pub mod verify;
pub mod voice;
pub mod vouch;

use thiserror::Error;

use crate::read::Short;

/// Why a payload is not what its type says.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum PayloadError {
    /// A field runs past the end.
    #[error("payload is {missing} bytes short")]
    Truncated {
        /// How many bytes are not there.
        missing: usize,
    },
    /// A required field is not there.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// A field breaks its rule.
    #[error("the {field} is not valid: {length} bytes")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// How long it is.
        length: usize,
    },
    /// A field of a strict format that nobody knows.
    #[error("unknown field {0:#04x}")]
    Unknown(u8),
}

impl From<Short> for PayloadError {
    fn from(short: Short) -> Self {
        Self::Truncated { missing: short.missing }
    }
}

type Result<T> = std::result::Result<T, PayloadError>;

fn invalid(field: &'static str, value: &[u8]) -> PayloadError {
    PayloadError::Invalid { field, length: value.len() }
}

fn text(field: &'static str, value: &[u8]) -> Result<String> {
    match str::from_utf8(value) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(invalid(field, value)),
    }
}

fn array<const N: usize>(field: &'static str, value: &[u8]) -> Result<[u8; N]> {
    value.try_into().map_err(|_| invalid(field, value))
}

fn bounded(
    field: &'static str,
    value: &[u8],
    range: std::ops::RangeInclusive<usize>,
) -> Result<()> {
    if range.contains(&value.len()) { Ok(()) } else { Err(invalid(field, value)) }
}

fn verifies(key: &[u8; 32], signed: &[u8], signature: &[u8; 64]) -> bool {
    ed25519_dalek::VerifyingKey::from_bytes(key).is_ok_and(|key| {
        key.verify_strict(signed, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    })
}
