//! Sealing to a gateway, for when a third party carries an envelope (design, section 7).
//!
//! HPKE (RFC 9180) in base mode with X25519, HKDF-SHA256 and ChaCha20-Poly1305:
//!
//! ```text
//! sealed = version (1 byte, 1) || encapsulated key (32) || ciphertext and tag (16)
//! info   = "fieldpost-envelope-seal-v1" || recipient gateway (32)
//! aad    = version || recipient gateway
//! ```
//!
//! Who sent it stands inside, signed. Sealing hides the length of an envelope from nobody.

use std::fmt;

use hpke::{
    Deserializable, Kem, OpModeR, OpModeS, Serializable, aead::ChaCha20Poly1305, kdf::HkdfSha256,
    kem::X25519HkdfSha256, single_shot_open, single_shot_seal_with_rng,
};
use rand::CryptoRng;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    address::GatewayId,
    codec::{DecodeError, SignedEnvelope},
    envelope::limits,
};

/// The public half of a gateway's key for sealed envelopes: X25519.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SealingKey([u8; 32]);

impl SealingKey {
    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The secret half of a gateway's key for sealed envelopes; wiped from memory when dropped.
#[derive(Clone)]
pub struct OpeningKey(Zeroizing<[u8; 32]>);

impl OpeningKey {
    /// Makes a key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let (secret, _) = X25519HkdfSha256::gen_keypair_with_rng(rng);
        Self::from_bytes(secret.to_bytes().into())
    }

    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes of the key, for sealing them at rest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that others seal to.
    pub fn sealing_key(&self) -> SealingKey {
        SealingKey(X25519HkdfSha256::sk_to_pk(&self.secret()).to_bytes().into())
    }

    fn secret(&self) -> <X25519HkdfSha256 as Kem>::PrivateKey {
        Deserializable::from_bytes(&*self.0).expect("an X25519 key is any 32 bytes")
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpeningKey(..)")
    }
}

impl SignedEnvelope {
    /// Seals the envelope so that only `recipient`, whose key this is, can read it.
    ///
    /// # Errors
    ///
    /// The key is one that no secret belongs to.
    pub fn seal_to(
        &self,
        recipient: GatewayId,
        key: &SealingKey,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, SealError> {
        let key = Deserializable::from_bytes(&key.0).map_err(|_| SealError)?;
        let (encapsulated, ciphertext) =
            single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
                &OpModeS::Base,
                &key,
                &info(recipient),
                self.as_bytes(),
                &associated_data(recipient),
                rng,
            )
            .map_err(|_| SealError)?;
        Ok([&[VERSION], &*encapsulated.to_bytes(), &ciphertext].concat())
    }

    /// Opens what was sealed to us and decodes it. The signature is not looked at yet.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the bytes; none of the errors is a bug on our side.
    pub fn open(sealed: &[u8], us: GatewayId, key: &OpeningKey) -> Result<Self, OpenError> {
        if sealed.len() > MAX_SEALED_LEN {
            return Err(OpenError::Oversize { length: sealed.len(), most: MAX_SEALED_LEN });
        }
        let (version, rest) = sealed.split_first().ok_or(OpenError::Truncated)?;
        if *version != VERSION {
            return Err(OpenError::UnsupportedVersion(*version));
        }
        let (encapsulated, ciphertext) =
            rest.split_first_chunk::<KEY_LENGTH>().ok_or(OpenError::Truncated)?;
        if ciphertext.len() < TAG_LENGTH {
            return Err(OpenError::Truncated);
        }
        let encapsulated =
            Deserializable::from_bytes(encapsulated).map_err(|_| OpenError::NotForUs)?;
        let bytes = single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &key.secret(),
            &encapsulated,
            &info(us),
            ciphertext,
            &associated_data(us),
        )
        .map_err(|_| OpenError::NotForUs)?;
        Ok(Self::decode(&bytes)?)
    }
}

/// The longest sealed envelope, in bytes.
pub const MAX_SEALED_LEN: usize = 1 + KEY_LENGTH + limits::SIGNED + TAG_LENGTH;

/// The key to seal to is not one that anybody can open with.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("the recipient's sealing key is not a valid X25519 key")]
pub struct SealError;

/// Why sealed bytes are not opened.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum OpenError {
    /// More bytes than any sealed envelope has.
    #[error("{length} bytes are too many: expected at most {most}")]
    Oversize {
        /// How many there are.
        length: usize,
        /// How many there may be.
        most: usize,
    },
    /// Fewer bytes than any sealed envelope has.
    #[error("the sealed envelope is cut short")]
    Truncated,
    /// We speak version 1.
    #[error("unsupported version {0} of a sealed envelope: expected 1")]
    UnsupportedVersion(u8),
    /// Sealed to another key or gateway, or altered on the way; nobody can tell which.
    #[error("the envelope was not sealed to this gateway, or was altered on the way")]
    NotForUs,
    /// It opened, but holds no envelope.
    #[error("the sealed bytes are not an envelope")]
    Decode(#[from] DecodeError),
}

fn info(recipient: GatewayId) -> Vec<u8> {
    [INFO, recipient.as_bytes()].concat()
}

fn associated_data(recipient: GatewayId) -> Vec<u8> {
    [&[VERSION], &recipient.as_bytes()[..]].concat()
}

const INFO: &[u8] = b"fieldpost-envelope-seal-v1";
const VERSION: u8 = 1;
const KEY_LENGTH: usize = 32;
const TAG_LENGTH: usize = 16;
