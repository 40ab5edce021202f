//! Words of one peer for another (BitChat protocol reference, section 3.4); iOS only.

use ed25519_dalek::{Signer, SigningKey};

use super::{PayloadError, Result, array, verifies};
use crate::read::{Reader, put_tlv8};

const CONTEXT: &[u8] = b"bitchat-vouch-v1";
/// How many come in one plaintext.
pub const MAX_VOUCHES: usize = 16;

/// The sender of the session vouches that a key belongs to a fingerprint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Vouch {
    /// Of the peer that is vouched for.
    pub fingerprint: [u8; 32],
    /// Its Ed25519 key.
    pub signing_key: [u8; 32],
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// By the one who vouches.
    pub signature: [u8; 64],
}

impl Vouch {
    /// Signs a word for another peer.
    pub fn sign(fingerprint: [u8; 32], signing_key: [u8; 32], at_ms: u64, by: &SigningKey) -> Self {
        let mut vouch = Self { fingerprint, signing_key, at_ms, signature: [0; 64] };
        vouch.signature = by.sign(&vouch.signed()).to_bytes();
        vouch
    }

    /// Whether the holder of `key` gave it.
    pub fn is_by(&self, key: &[u8; 32]) -> bool {
        verifies(key, &self.signed(), &self.signature)
    }

    /// The bytes that are signed.
    pub fn signed(&self) -> Vec<u8> {
        let at = self.at_ms.to_be_bytes();
        [CONTEXT, &self.fingerprint[..], &self.signing_key[..], &at[..]].concat()
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let (mut fingerprint, mut key, mut at_ms, mut signature) = (None, None, None, None);
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.tlv8()? {
                (0x01, value) => fingerprint = Some(array("fingerprint", value)?),
                (0x02, value) => key = Some(array("signing key", value)?),
                (0x03, value) => at_ms = Some(u64::from_be_bytes(array("time", value)?)),
                (0x04, value) => signature = Some(array("signature", value)?),
                _ => {}
            }
        }
        Ok(Self {
            fingerprint: fingerprint.ok_or(PayloadError::Missing("fingerprint"))?,
            signing_key: key.ok_or(PayloadError::Missing("signing key"))?,
            at_ms: at_ms.ok_or(PayloadError::Missing("time"))?,
            signature: signature.ok_or(PayloadError::Missing("signature"))?,
        })
    }
}

/// Reads the body of plaintext type `0x12`.
///
/// # Errors
///
/// More than 16, or one that is malformed.
pub fn decode(body: &[u8]) -> Result<Vec<Vouch>> {
    let mut reader = Reader::new(body);
    let count = usize::from(reader.u8()?);
    if count > MAX_VOUCHES {
        return Err(PayloadError::Invalid { field: "count of vouches", length: count });
    }
    (0..count)
        .map(|_| {
            let length = reader.u16()?;
            Vouch::decode(reader.take(length.into())?)
        })
        .collect()
}

/// Writes the body; at most 16 are written.
pub fn encode(vouches: &[Vouch]) -> Vec<u8> {
    let vouches = &vouches[..vouches.len().min(MAX_VOUCHES)];
    let mut out = vec![vouches.len() as u8];
    for vouch in vouches {
        let mut entry = Vec::with_capacity(144);
        put_tlv8(&mut entry, 0x01, &vouch.fingerprint);
        put_tlv8(&mut entry, 0x02, &vouch.signing_key);
        put_tlv8(&mut entry, 0x03, &vouch.at_ms.to_be_bytes());
        put_tlv8(&mut entry, 0x04, &vouch.signature);
        out.extend_from_slice(&(entry.len() as u16).to_be_bytes());
        out.extend_from_slice(&entry);
    }
    out
}
