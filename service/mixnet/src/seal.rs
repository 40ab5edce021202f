//! Sealing a message to the receiving gateway, before it is cut (HTX reference, section 2.5).
//!
//! HPKE (RFC 9180) in base mode with X25519, HKDF-SHA256 and ChaCha20-Poly1305, to the gateway's
//! key of one epoch, so that nobody opens it once that key is erased:
//!
//! ```text
//! sealed = version (1) || epoch, u64 || encapsulated key (32) || ciphertext and tag (16)
//! info   = "fieldpost-mixnet-seal-v1" || gateway (32)
//! aad    = version || epoch || transfer (16)
//! ```

use fieldpost_envelope::{OpeningKey, SealingKey};
use hpke::{
    Deserializable, Kem, OpModeR, OpModeS, Serializable, aead::ChaCha20Poly1305, kdf::HkdfSha256,
    kem::X25519HkdfSha256, single_shot_open, single_shot_seal_with_rng,
};
use rand::CryptoRng;
use thiserror::Error;

use crate::{fragment::TransferId, sphinx::RelayId};

/// How many bytes longer a sealed message is.
pub const SEAL_OVERHEAD: usize = 1 + 8 + 32 + 16;

/// Seals `message` to the key that `gateway` has in `epoch`.
///
/// # Errors
///
/// The key is one that no secret belongs to.
pub fn seal(
    rng: &mut impl CryptoRng,
    gateway: RelayId,
    epoch: u64,
    key: &SealingKey,
    transfer: TransferId,
    message: &[u8],
) -> Result<Vec<u8>, SealError> {
    let key = Deserializable::from_bytes(key.as_bytes()).map_err(|_| SealError)?;
    let (encapsulated, ciphertext) =
        single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &key,
            &info(gateway),
            message,
            &associated_data(epoch, transfer),
            rng,
        )
        .map_err(|_| SealError)?;
    Ok([&[VERSION], &epoch.to_be_bytes()[..], &encapsulated.to_bytes(), &ciphertext].concat())
}

/// The epoch whose key opens `sealed`.
///
/// # Errors
///
/// The bytes are too short or of another version.
pub fn epoch_of(sealed: &[u8]) -> Result<u64, OpenError> {
    if sealed.len() < SEAL_OVERHEAD {
        return Err(OpenError::Truncated { length: sealed.len() });
    }
    if sealed[0] != VERSION {
        return Err(OpenError::UnsupportedVersion(sealed[0]));
    }
    Ok(u64::from_be_bytes(std::array::from_fn(|at| sealed[1 + at])))
}

/// Opens what was sealed to `us` with the key of [`epoch_of`] it.
///
/// # Errors
///
/// Says what is wrong with the bytes; none of the errors is a bug on our side.
pub fn open(
    us: RelayId,
    key: &OpeningKey,
    transfer: TransferId,
    sealed: &[u8],
) -> Result<Vec<u8>, OpenError> {
    let epoch = epoch_of(sealed)?;
    let (encapsulated, ciphertext) = sealed[9..].split_at(32);
    let secret: <X25519HkdfSha256 as Kem>::PrivateKey =
        Deserializable::from_bytes(key.as_bytes()).map_err(|_| OpenError::NotForUs)?;
    let encapsulated = Deserializable::from_bytes(encapsulated).map_err(|_| OpenError::NotForUs)?;
    single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &secret,
        &encapsulated,
        &info(us),
        ciphertext,
        &associated_data(epoch, transfer),
    )
    .map_err(|_| OpenError::NotForUs)
}

/// The key to seal to is not one that anybody can open with.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("the gateway's sealing key is not a valid X25519 key")]
pub struct SealError;

/// Why sealed bytes are not opened.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum OpenError {
    /// Fewer bytes than any sealed message has.
    #[error("{length} bytes are too few for a sealed message: expected at least {SEAL_OVERHEAD}")]
    Truncated {
        /// How many there are.
        length: usize,
    },
    /// We speak version 1.
    #[error("unsupported version {0} of a sealed message: expected 1")]
    UnsupportedVersion(u8),
    /// Sealed to another key, gateway or transfer, or altered; nobody can tell which.
    #[error("the message was not sealed to this gateway, or was altered on the way")]
    NotForUs,
}

fn info(gateway: RelayId) -> Vec<u8> {
    [&b"fieldpost-mixnet-seal-v1"[..], &gateway.0].concat()
}

fn associated_data(epoch: u64, transfer: TransferId) -> Vec<u8> {
    [&[VERSION], &epoch.to_be_bytes()[..], &transfer.0].concat()
}

const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn only_the_gateway_of_the_epoch_opens_and_only_for_the_same_transfer() {
        let mut rng = StdRng::seed_from_u64(1);
        let (key, other) = (OpeningKey::generate(&mut rng), OpeningKey::generate(&mut rng));
        let sealed =
            seal(&mut rng, US, 7, &key.sealing_key(), TransferId([1; 16]), b"hello").unwrap();
        assert_eq!(sealed.len(), 5 + SEAL_OVERHEAD);
        assert_eq!(epoch_of(&sealed), Ok(7));
        assert_eq!(open(US, &key, TransferId([1; 16]), &sealed).unwrap(), b"hello");
        let refused = Err(OpenError::NotForUs);
        assert_eq!(open(US, &other, TransferId([1; 16]), &sealed), refused);
        assert_eq!(open(US, &key, TransferId([2; 16]), &sealed), refused);
        assert_eq!(open(RelayId([9; 32]), &key, TransferId([1; 16]), &sealed), refused);
        for at in 1..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(open(US, &key, TransferId([1; 16]), &altered), refused, "byte {at}");
        }
    }

    const US: RelayId = RelayId([8; 32]);
}
