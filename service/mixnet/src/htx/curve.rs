use std::{fmt, sync::Arc};

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use rand::CryptoRng;
use zeroize::Zeroizing;

/// The public half of an X25519 key.
pub type PublicKey = [u8; 32];

/// An X25519 key. `Debug` shows the public half alone.
///
/// A clone is the same key in the same place: to make another from the bytes would cost a scalar
/// multiplication, and leave the secret in memory twice. The last one erases it.
#[derive(Clone)]
pub struct SecretKey(Arc<KeyPair>);

struct KeyPair {
    bytes: Zeroizing<[u8; 32]>,
    key: PrivateKey,
    public: PublicKey,
}

impl SecretKey {
    /// Makes a key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut());
        Self::from_bytes(&bytes)
    }

    /// The key with these bytes.
    ///
    /// # Panics
    ///
    /// When there is no memory left for a key.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let key = PrivateKey::from_private_key(&X25519, bytes)
            .expect("any 32 bytes are an X25519 private key");
        let public = key.compute_public_key().expect("an X25519 key has a public half");
        let public = public.as_ref().try_into().expect("it is 32 bytes long");
        Self(Arc::new(KeyPair { bytes: Zeroizing::new(*bytes), key, public }))
    }

    /// The bytes of the key, for keeping it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0.bytes
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.0.public
    }

    /// What this key and the other's share; `None` if the other's is of small order.
    pub fn agree(&self, other: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        agree(&self.0.key, UnparsedPublicKey::new(&X25519, other), (), |shared| {
            Ok(Zeroizing::new(shared.try_into().map_err(|_| ())?))
        })
        .ok()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("public", &self.0.public).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    #[test]
    fn agrees_as_rfc_7748_section_6_1_says() {
        let bytes = |hex: &str| HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap();
        let alice = SecretKey::from_bytes(&bytes(
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
        ));
        let bob = SecretKey::from_bytes(&bytes(
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        ));
        assert_eq!(
            *bob.public(),
            bytes("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
        );
        let shared: [u8; 32] =
            bytes("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!(alice.agree(bob.public()).as_deref(), Some(&shared));
        assert_eq!(bob.agree(alice.public()).as_deref(), Some(&shared));
    }

    #[test]
    fn refuses_a_public_key_of_small_order() {
        let key = SecretKey::from_bytes(&[7; 32]);
        assert_eq!(key.agree(&[0; 32]), None);
        let mut one = [0; 32];
        one[0] = 1;
        assert_eq!(key.agree(&one), None);
    }
}
