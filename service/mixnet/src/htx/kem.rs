//! ML-KEM-768 (FIPS 203), whose randomness is the caller's.
//!
//! libcrux's implementation is the verified one, in vector instructions where the processor has
//! them. It erases nothing, so what is secret is wrapped here.

use std::fmt;

use libcrux_ml_kem::mlkem768;
use zeroize::{Zeroize, Zeroizing};

/// An encapsulation key that was found well-formed.
#[derive(Clone)]
pub(super) struct EncapsulationKey(mlkem768::MlKem768PublicKey);

impl EncapsulationKey {
    /// The length of its bytes.
    pub(super) const LEN: usize = 1184;

    /// The key with these bytes; `None` if it is none (FIPS 203, section 7.2).
    pub(super) fn from_bytes(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let key = bytes.into();
        mlkem768::validate_public_key(&key).then_some(Self(key))
    }

    /// A ciphertext for the holder of the key, and the secret in it.
    pub(super) fn encapsulate(
        &self,
        entropy: &Zeroizing<[u8; 32]>,
    ) -> ([u8; CIPHERTEXT_LEN], Zeroizing<[u8; 32]>) {
        let (ciphertext, secret) = mlkem768::encapsulate(&self.0, **entropy);
        (ciphertext.into(), Zeroizing::new(secret))
    }
}

impl fmt::Debug for EncapsulationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EncapsulationKey").finish_non_exhaustive()
    }
}

/// Both halves of a key. The secret one is erased when it is dropped.
pub(super) struct DecapsulationKey {
    secret: Box<mlkem768::MlKem768PrivateKey>,
    public: mlkem768::MlKem768PublicKey,
}

impl DecapsulationKey {
    /// The key of a seed.
    pub(super) fn from_seed(seed: &Zeroizing<[u8; 64]>) -> Self {
        let (secret, public) = mlkem768::generate_key_pair(**seed).into_parts();
        Self { secret: Box::new(secret), public }
    }

    /// The half to give away.
    pub(super) fn encapsulation_key(&self) -> &[u8; EncapsulationKey::LEN] {
        self.public.as_slice()
    }

    /// The secret in a ciphertext. One that was not made for this key gives another secret.
    pub(super) fn decapsulate(&self, ciphertext: &[u8; CIPHERTEXT_LEN]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(mlkem768::decapsulate(&self.secret, &ciphertext.into()))
    }
}

impl Drop for DecapsulationKey {
    fn drop(&mut self) {
        self.secret[0..mlkem768::MlKem768PrivateKey::len()].zeroize();
    }
}

/// The length of a ciphertext.
pub(super) const CIPHERTEXT_LEN: usize = 1088;
