//! LIONESS: a wide block from a stream cipher and a keyed hash (Anderson and Biham, 1996).
//!
//! Whoever changes one bit of a block gets noise in all of it, which is what defeats tagging
//! (HTX reference, section 2.3). Four rounds, with AES-256-CTR as the stream and keyed BLAKE3 as
//! the hash:
//!
//! ```text
//! right ^= stream(hash(k1, left));  left ^= hash(k2, zeros (32) || right);
//! right ^= stream(hash(k3, left));  left ^= hash(k4, zeros (32) || right)
//! ```
//!
//! The stream's key is a hash of key and left half, where the paper adds the two: AES-256 is weak
//! under related keys.

use aes::Aes256;
use ctr::{
    Ctr32BE,
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
        stream(&self.rounds[0], block);
        hash(&self.rounds[1], block);
        stream(&self.rounds[2], block);
        hash(&self.rounds[3], block);
    }

    /// Undoes [`encrypt`](Self::encrypt).
    pub(super) fn decrypt(&self, block: &mut [u8]) {
        hash(&self.rounds[3], block);
        stream(&self.rounds[2], block);
        hash(&self.rounds[1], block);
        stream(&self.rounds[0], block);
    }
}

fn stream(key: &[u8; 32], block: &mut [u8]) {
    let (left, right) = block.split_at_mut(LEFT);
    let key = Zeroizing::new(*blake3::keyed_hash(key, left).as_bytes());
    Ctr32BE::<Aes256>::new(&(*key).into(), &[0; 16].into()).apply_keystream(right);
}

/// While the right half is hashed, the left one stands as zeros before it: whole chunks of a power
/// of two in number are what the hash is fastest at.
fn hash(key: &[u8; 32], block: &mut [u8]) {
    let mut left = [0; LEFT];
    left.swap_with_slice(&mut block[..LEFT]);
    let mask = blake3::keyed_hash(key, block);
    for ((byte, left), mask) in block.iter_mut().zip(left).zip(mask.as_bytes()) {
        *byte = left ^ mask;
    }
}

const LEFT: usize = 32;
