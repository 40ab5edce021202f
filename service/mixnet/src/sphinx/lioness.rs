//! LIONESS: a wide block from a stream cipher and a keyed hash (Anderson and Biham, 1996).
//!
//! Whoever changes one bit of a block gets noise in all of it, which is what defeats tagging
//! (HTX reference, section 2.3). Four rounds, with AES-256-CTR as the stream and keyed BLAKE3 as
//! the hash:
//!
//! ```text
//! right ^= stream(hash(k1, left));  left ^= hash(k2, right);
//! right ^= stream(hash(k3, left));  left ^= hash(k4, right)
//! ```
//!
//! The stream's key is a hash of key and left half, where the paper adds the two: AES-256 is weak
//! under related keys.

use aes::Aes256;
use ctr::{
    Ctr128BE,
    cipher::{KeyIvInit, StreamCipher},
};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Keys of the four rounds.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Lioness {
    rounds: [[u8; 32]; 4],
}

impl Lioness {
    /// The cipher with keys derived from what `hasher` has taken in.
    pub(super) fn new(hasher: &blake3::Hasher) -> Self {
        let mut rounds = [[0; 32]; 4];
        hasher.finalize_xof().fill(rounds.as_flattened_mut());
        Self { rounds }
    }

    /// Encrypts a block of more than 32 bytes in place.
    pub(super) fn encrypt(&self, block: &mut [u8]) {
        let (left, right) = halves(block);
        stream(&self.rounds[0], left, right);
        hash(&self.rounds[1], left, right);
        stream(&self.rounds[2], left, right);
        hash(&self.rounds[3], left, right);
    }

    /// Undoes [`encrypt`](Self::encrypt).
    pub(super) fn decrypt(&self, block: &mut [u8]) {
        let (left, right) = halves(block);
        hash(&self.rounds[3], left, right);
        stream(&self.rounds[2], left, right);
        hash(&self.rounds[1], left, right);
        stream(&self.rounds[0], left, right);
    }
}

fn halves(block: &mut [u8]) -> (&mut [u8; LEFT], &mut [u8]) {
    block.split_first_chunk_mut().expect("a payload is longer than its tag")
}

fn stream(key: &[u8; 32], left: &[u8; LEFT], right: &mut [u8]) {
    let key = Zeroizing::new(*blake3::keyed_hash(key, left).as_bytes());
    Ctr128BE::<Aes256>::new(&(*key).into(), &[0; 16].into()).apply_keystream(right);
}

fn hash(key: &[u8; 32], left: &mut [u8; LEFT], right: &[u8]) {
    for (byte, mask) in left.iter_mut().zip(blake3::keyed_hash(key, right).as_bytes()) {
        *byte ^= mask;
    }
}

const LEFT: usize = 32;
