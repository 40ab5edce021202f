//! What snow needs for `Noise_XK_25519_ChaChaPoly_SHA256`: curve and cipher from aws-lc.
//!
//! snow's own curve takes twice as long (HTX reference, section 7), and its generator would be the
//! operating system's. The hash is not aws-lc's, which allocates for each of the short ones.

use std::cell::Cell;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sha2::Digest;
use snow::{
    Error,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use subtle::ConstantTimeEq;

use super::curve::SecretKey;

/// Gives snow its primitives, and one generator made from a seed.
pub(super) struct Resolver {
    // Taken once: two generators with one seed would give the same keys.
    seed: Cell<Option<[u8; 32]>>,
    /// Our static key, whose public half need not be computed again for each handshake.
    own: SecretKey,
}

impl Resolver {
    pub(super) fn new(seed: [u8; 32], own: SecretKey) -> Self {
        Self { seed: Cell::new(Some(seed)), own }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        let seed = self.seed.take()?;
        Some(Box::new(Seeded(StdRng::from_seed(seed))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(Curve { key: None, own: self.own.clone() })),
            DHChoice::Curve448 => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        match choice {
            HashChoice::SHA256 => Some(Box::new(Sha256(sha2::Sha256::new()))),
            _ => None,
        }
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::ChaChaPoly => Some(Box::new(ChaChaPoly(chacha(&[0; 32])))),
            _ => None,
        }
    }
}

struct Seeded(StdRng);

impl Random for Seeded {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}

struct Curve {
    key: Option<SecretKey>,
    own: SecretKey,
}

impl Dh for Curve {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        let is_own = privkey.ct_eq(self.own.as_bytes());
        self.key = Some(if is_own.into() {
            self.own.clone()
        } else {
            let bytes = privkey.try_into().expect("snow's keys are as long as we say");
            SecretKey::from_bytes(bytes)
        });
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut bytes = zeroize::Zeroizing::new([0; 32]);
        rng.try_fill_bytes(bytes.as_mut())?;
        self.key = Some(SecretKey::from_bytes(&bytes));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.key.as_ref().map_or(&[0; 32][..], |key| key.public())
    }

    fn privkey(&self) -> &[u8] {
        self.key.as_ref().map_or(&[0; 32][..], |key| key.as_bytes())
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let key = self.key.as_ref().ok_or(Error::Dh)?;
        let public = pubkey.get(..32).and_then(|bytes| bytes.try_into().ok()).ok_or(Error::Dh)?;
        let shared = key.agree(public).ok_or(Error::Dh)?;
        out[..32].copy_from_slice(shared.as_ref());
        Ok(())
    }
}

struct Sha256(sha2::Sha256);

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        Digest::reset(&mut self.0);
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&self.0.finalize_reset());
    }
}

struct ChaChaPoly(LessSafeKey);

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = chacha(key);
    }

    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (text, rest) = out.split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        let tag = self
            .0
            .seal_in_place_separate_tag(noise_nonce(nonce), Aad::from(authtext), text)
            .expect("a Noise message is far shorter than the cipher's limit");
        rest[..TAG_LEN].copy_from_slice(tag.as_ref());
        plaintext.len() + TAG_LEN
    }

    fn decrypt(
        &self,
        nonce: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let mut text = ciphertext.to_vec();
        let plain = self
            .0
            .open_in_place(noise_nonce(nonce), Aad::from(authtext), &mut text)
            .map_err(|_| Error::Decrypt)?;
        out.get_mut(..plain.len()).ok_or(Error::Input)?.copy_from_slice(plain);
        Ok(plain.len())
    }
}

pub(super) fn chacha(key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key is 32 bytes long");
    LessSafeKey::new(key)
}

/// Noise specification, section 12.3: 32 zero bits, then the counter, little-endian.
fn noise_nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

const TAG_LEN: usize = 16;
