//! One-time keys for sealed mail (BitChat protocol reference, section 9.4); iOS only.

use ed25519_dalek::{Signer, SigningKey};

use super::{PayloadError, Result, array, invalid, verifies};
use crate::read::{Reader, put_tlv16};

const CONTEXT: &[u8] = b"bitchat-prekey-bundle-v1";
const ENTRY_LEN: usize = 36;
const MAX_PREKEYS: usize = 8;

/// A peer's batch of one-time keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prekeys {
    /// The owner's X25519 key.
    pub noise_key: [u8; 32],
    /// 1 to 8 of them, each with its own id.
    pub keys: Vec<(u32, [u8; 32])>,
    /// Milliseconds since 1970; a later batch replaces an earlier one.
    pub generated_ms: u64,
    /// By the owner.
    pub signature: [u8; 64],
}

impl Prekeys {
    /// Signs a batch.
    pub fn sign(
        noise_key: [u8; 32],
        keys: Vec<(u32, [u8; 32])>,
        generated_ms: u64,
        key: &SigningKey,
    ) -> Self {
        let mut prekeys = Self { noise_key, keys, generated_ms, signature: [0; 64] };
        prekeys.signature = key.sign(&prekeys.signed()).to_bytes();
        prekeys
    }

    /// Whether the holder of `key` signed it.
    pub fn is_by(&self, key: &[u8; 32]) -> bool {
        verifies(key, &self.signed(), &self.signature)
    }

    /// The bytes that are signed.
    pub fn signed(&self) -> Vec<u8> {
        let mut out = vec![CONTEXT.len() as u8];
        out.extend_from_slice(CONTEXT);
        out.extend_from_slice(&self.noise_key);
        out.push(self.keys.len() as u8);
        out.extend_from_slice(&self.entries());
        out.extend_from_slice(&self.generated_ms.to_be_bytes());
        out
    }

    /// Reads one; its signature is not looked at.
    ///
    /// # Errors
    ///
    /// A field missing or malformed, no keys, too many, or one id twice.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (mut noise_key, mut keys, mut at, mut signature) = (None, None, None, None);
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.tlv16()? {
                (0x01, value) => noise_key = Some(array("Noise key", value)?),
                (0x02, value) => keys = Some(entries(value)?),
                (0x03, value) => at = Some(u64::from_be_bytes(array("time", value)?)),
                (0x04, value) => signature = Some(array("signature", value)?),
                _ => {}
            }
        }
        Ok(Self {
            noise_key: noise_key.ok_or(PayloadError::Missing("Noise key"))?,
            keys: keys.ok_or(PayloadError::Missing("prekeys"))?,
            generated_ms: at.ok_or(PayloadError::Missing("time"))?,
            signature: signature.ok_or(PayloadError::Missing("signature"))?,
        })
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + self.keys.len() * ENTRY_LEN);
        put_tlv16(&mut out, 0x01, &self.noise_key);
        put_tlv16(&mut out, 0x02, &self.entries());
        put_tlv16(&mut out, 0x03, &self.generated_ms.to_be_bytes());
        put_tlv16(&mut out, 0x04, &self.signature);
        out
    }

    fn entries(&self) -> Vec<u8> {
        self.keys.iter().flat_map(|(id, key)| [&id.to_be_bytes()[..], key].concat()).collect()
    }
}

fn entries(value: &[u8]) -> Result<Vec<(u32, [u8; 32])>> {
    let count = value.len() / ENTRY_LEN;
    if !value.len().is_multiple_of(ENTRY_LEN) || !(1..=MAX_PREKEYS).contains(&count) {
        return Err(invalid("prekeys", value));
    }
    let mut reader = Reader::new(value);
    let mut keys: Vec<(u32, [u8; 32])> = Vec::with_capacity(count);
    while !reader.is_empty() {
        let id = reader.u32()?;
        if keys.iter().any(|(other, _)| *other == id) {
            return Err(invalid("prekeys", value));
        }
        keys.push((id, reader.array()?));
    }
    Ok(keys)
}
