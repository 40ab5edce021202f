//! Keys of those who speak through this node (BitChat protocol reference, section 4.1).

use ed25519_dalek::SigningKey;
use rand::Rng;
use zeroize::Zeroizing;

use crate::{id::MeshId, noise};

/// The keys of one peer on the mesh: of the node itself, or of a peer that it hosts.
///
/// They are wiped when dropped.
#[derive(Clone)]
pub struct Identity {
    noise: Zeroizing<[u8; 32]>,
    noise_public: [u8; 32],
    signing: SigningKey,
}

impl Identity {
    /// From an X25519 private key and an Ed25519 seed, which must be independent.
    pub fn from_keys(noise_private: &[u8; 32], signing_seed: &[u8; 32]) -> Self {
        Self {
            noise: Zeroizing::new(*noise_private),
            noise_public: noise::public_key(noise_private),
            signing: SigningKey::from_bytes(signing_seed),
        }
    }

    /// New keys.
    pub fn generate(rng: &mut impl Rng) -> Self {
        let (mut noise, mut signing) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        rng.fill_bytes(&mut *noise);
        rng.fill_bytes(&mut *signing);
        Self::from_keys(&noise, &signing)
    }

    /// Its name on the mesh.
    pub fn id(&self) -> MeshId {
        MeshId::of_noise_key(&self.noise_public)
    }

    /// X25519.
    pub fn noise_public(&self) -> &[u8; 32] {
        &self.noise_public
    }

    /// Ed25519.
    pub fn signing_public(&self) -> [u8; 32] {
        self.signing.verifying_key().to_bytes()
    }

    pub(crate) fn noise_private(&self) -> &[u8; 32] {
        &self.noise
    }

    pub(crate) fn signing_key(&self) -> &SigningKey {
        &self.signing
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.id()).finish()
    }
}
