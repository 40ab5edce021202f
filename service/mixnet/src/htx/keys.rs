//! The keys of a link and how they follow each other (HTX reference, section 1.2).
//!
//! ```text
//! root    = HKDF-Extract(transcript hash, both halves of the Noise split || ML-KEM secret)
//! secret  = HKDF-Expand(root, "fieldpost htx v1 " || "client" or "server", 32)
//! key     = HKDF-Expand(secret, "key", 32)          nonce salt = HKDF-Expand(secret, "ns", 12)
//! secret' = HKDF-Expand(secret, "next" || transcript hash, 32)
//! ```
//!
//! Betanet 1.1 derives them from the TLS exporter, so that whoever terminates TLS reads all; here
//! the exporter is bound into the transcript and the keys come from Noise and ML-KEM. Each
//! direction has a secret of its own and changes it without asking the other: the receiver learns
//! of it from a `KEY_UPDATE` frame, whose order on one stream is fixed. The old secret is erased.

use std::{fmt, time::Duration};

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    frame::{FrameHeader, FrameKind, MAX_FRAME_PAYLOAD, StreamId},
    noise::chacha,
};

/// A key seals this many frames, the `KEY_UPDATE` that ends it among them.
pub const FRAMES_PER_KEY: u64 = 1 << 16;

/// A key is used for at most this long after its first use.
pub const KEY_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// The authentication tag at the end of each frame.
pub(super) const TAG_LEN: usize = 16;

// The reference's third limit, 8 GiB under one key, can never be reached before the first.
const _: () = assert!(FRAMES_PER_KEY * MAX_FRAME_PAYLOAD as u64 <= 8 << 30);

/// Both directions' first keys.
pub struct SessionKeys {
    /// What the client sends.
    pub client: Secret,
    /// What the server sends.
    pub server: Secret,
}

impl SessionKeys {
    /// Derives the keys from what the handshake left.
    pub fn derive(
        transcript: &[u8; 32],
        noise_split: (&[u8; 32], &[u8; 32]),
        kem_secret: &[u8; 32],
    ) -> Self {
        let mut material = Zeroizing::new([0; 96]);
        material[..32].copy_from_slice(noise_split.0);
        material[32..64].copy_from_slice(noise_split.1);
        material[64..].copy_from_slice(kem_secret);
        let root = Hkdf::<Sha256>::new(Some(transcript), material.as_ref());
        let secret = |side: &[u8]| Secret {
            secret: expand(&root, &[b"fieldpost htx v1 ", side]),
            transcript: *transcript,
        };
        Self { client: secret(b"client"), server: secret(b"server") }
    }
}

/// What one direction's keys of one generation come from.
pub struct Secret {
    secret: Zeroizing<[u8; 32]>,
    transcript: [u8; 32],
}

impl Secret {
    fn hkdf(&self) -> Hkdf<Sha256> {
        Hkdf::from_prk(self.secret.as_ref()).expect("a secret is as long as a hash")
    }

    fn key(&self) -> LessSafeKey {
        chacha(&expand(&self.hkdf(), &[b"key"]))
    }

    fn nonce_salt(&self) -> [u8; 12] {
        *expand(&self.hkdf(), &[b"ns"])
    }

    /// Replaces the secret by its successor, from which it cannot be found again.
    fn advance(&mut self) {
        self.secret = expand(&self.hkdf(), &[b"next", &self.transcript]);
    }
}

/// The sending half: seals frames.
pub struct SealingHalf {
    state: HalfState,
}

impl SealingHalf {
    /// Begins with the first secret of a direction.
    pub fn new(secret: Secret) -> Self {
        Self { state: HalfState::new(secret) }
    }

    /// How many frames the key may still seal.
    pub fn frames_left(&self) -> u64 {
        FRAMES_PER_KEY - self.state.counter
    }

    /// Which key this is, counted from 0.
    pub fn generation(&self) -> u64 {
        self.state.generation
    }

    /// Appends one sealed frame to `out`. Sealing a `KEY_UPDATE` changes the key.
    ///
    /// # Panics
    ///
    /// The payload is longer than [`MAX_FRAME_PAYLOAD`], or the key is used up: the last frame under
    /// a key must be a `KEY_UPDATE`.
    pub fn seal(
        &mut self,
        kind: FrameKind,
        stream: Option<StreamId>,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) {
        assert!(self.frames_left() > 0, "a key seals no more than its frames");
        let header = FrameHeader { kind, stream, length: payload.len() };
        let begin = out.len();
        out.reserve(FrameHeader::MAX_LEN + payload.len() + TAG_LEN);
        header.encode(out);
        let body = out.len();
        out.extend_from_slice(payload);
        let nonce = self.state.next_nonce();
        let (head, text) = out[begin..].split_at_mut(body - begin);
        let tag = self
            .state
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(&*head), text)
            .expect("a frame is far shorter than the cipher's limit");
        out.extend_from_slice(tag.as_ref());
        if kind == FrameKind::KeyUpdate {
            self.state.advance();
        }
    }
}

/// The receiving half: opens frames.
pub struct OpeningHalf {
    state: HalfState,
}

impl OpeningHalf {
    /// Begins with the first secret of a direction.
    pub fn new(secret: Secret) -> Self {
        Self { state: HalfState::new(secret) }
    }

    /// Which key this is, counted from 0.
    pub fn generation(&self) -> u64 {
        self.state.generation
    }

    /// Opens a frame in place. `frame` is the header as it came, `header_len` bytes of it, the
    /// ciphertext and the tag. Opening a `KEY_UPDATE` changes the key.
    ///
    /// # Errors
    ///
    /// The frame is not the next one of this sender, or it comes after the last of its key.
    pub fn open<'a>(
        &mut self,
        kind: FrameKind,
        frame: &'a mut [u8],
        header_len: usize,
    ) -> Result<&'a mut [u8], OpenError> {
        let last = self.state.counter + 1 == FRAMES_PER_KEY;
        if last && !matches!(kind, FrameKind::KeyUpdate | FrameKind::Close) {
            return Err(OpenError::KeyUsedUp);
        }
        let generation = self.state.generation;
        let frame_number = self.state.counter;
        let nonce = self.state.next_nonce();
        let (head, text) = frame.split_at_mut(header_len);
        let plain = self
            .state
            .key
            .open_in_place(nonce, Aad::from(&*head), text)
            .map_err(|_| OpenError::Forged { generation, frame_number })?;
        if kind == FrameKind::KeyUpdate {
            self.state.advance();
        }
        Ok(plain)
    }
}

struct HalfState {
    secret: Secret,
    key: LessSafeKey,
    nonce_salt: [u8; 12],
    counter: u64,
    generation: u64,
}

impl HalfState {
    fn new(secret: Secret) -> Self {
        let (key, nonce_salt) = (secret.key(), secret.nonce_salt());
        Self { secret, key, nonce_salt, counter: 0, generation: 0 }
    }

    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = self.nonce_salt;
        for (byte, counter) in nonce.iter_mut().zip(self.counter.to_le_bytes()) {
            *byte ^= counter;
        }
        self.counter += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn advance(&mut self) {
        self.secret.advance();
        self.key = self.secret.key();
        self.nonce_salt = self.secret.nonce_salt();
        self.counter = 0;
        self.generation += 1;
    }
}

impl fmt::Debug for SealingHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.describe(f, "SealingHalf")
    }
}

impl fmt::Debug for OpeningHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.describe(f, "OpeningHalf")
    }
}

impl HalfState {
    fn describe(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        f.debug_struct(name)
            .field("generation", &self.generation)
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

/// Why a frame does not open.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum OpenError {
    /// Its header or its content is not what was sealed, or another frame was expected.
    #[error("frame {frame_number} under key {generation} is not what was sealed")]
    Forged {
        /// The key, counted from 0.
        generation: u64,
        /// The place among the frames under that key.
        frame_number: u64,
    },
    /// The last frame under a key is a `KEY_UPDATE` or a `CLOSE`.
    #[error("no key update came within {FRAMES_PER_KEY} frames")]
    KeyUsedUp,
}

fn expand<const N: usize>(hkdf: &Hkdf<Sha256>, info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    let mut bytes = Zeroizing::new([0; N]);
    hkdf.expand_multi_info(info, bytes.as_mut()).expect("a few bytes are not too many");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_opens_once_in_its_place_with_its_header() {
        let (mut sealing, mut opening) = halves();
        let stream = StreamId::new(7);
        let frames: Vec<_> = (0..3).map(|_| sealed(&mut sealing, stream)).collect();
        let mut altered = frames[0].clone();
        altered[4] ^= 2;
        for mut wrong in [frames[1].clone(), altered] {
            let (_, mut fresh) = halves();
            let error = OpenError::Forged { generation: 0, frame_number: 0 };
            assert_eq!(fresh.open(FrameKind::Stream, &mut wrong, 5), Err(error));
        }
        for mut frame in frames {
            let text = opening.open(FrameKind::Stream, &mut frame, 5).unwrap();
            assert_eq!(text, b"hello");
        }
    }

    #[test]
    fn the_same_text_is_never_sealed_the_same_way() {
        let (mut sealing, _) = halves();
        let first = sealed(&mut sealing, StreamId::new(1));
        let second = sealed(&mut sealing, StreamId::new(1));
        sealing.seal(FrameKind::KeyUpdate, None, &[], &mut Vec::new());
        assert_eq!(sealing.generation(), 1);
        let third = sealed(&mut sealing, StreamId::new(1));
        assert!(first != second && first != third && second != third);
    }

    #[test]
    fn the_last_frame_under_a_key_must_change_it() {
        let (mut sealing, mut opening) = halves();
        while sealing.frames_left() > 1 {
            let mut frame = sealed(&mut sealing, StreamId::new(1));
            opening.open(FrameKind::Stream, &mut frame, 5).unwrap();
        }
        let mut frame = sealed(&mut sealing, StreamId::new(1));
        assert_eq!(opening.open(FrameKind::Stream, &mut frame, 5), Err(OpenError::KeyUsedUp));
    }

    #[test]
    fn a_direction_goes_on_under_the_next_key() {
        let (mut sealing, mut opening) = halves();
        for generation in 0..5 {
            assert_eq!(opening.generation(), generation);
            let mut frame = sealed(&mut sealing, StreamId::new(1));
            assert_eq!(opening.open(FrameKind::Stream, &mut frame, 5).unwrap(), b"hello");
            let mut update = Vec::new();
            sealing.seal(FrameKind::KeyUpdate, None, &[], &mut update);
            assert_eq!(opening.open(FrameKind::KeyUpdate, &mut update, 4).unwrap(), b"");
        }
    }

    #[test]
    fn the_secret_of_ml_kem_and_both_halves_of_noise_matter() {
        let first = |kem, split: (u8, u8)| {
            let split = (&[split.0; 32], &[split.1; 32]);
            let keys = SessionKeys::derive(&[1; 32], split, &[kem; 32]);
            (*keys.client.secret, *keys.server.secret)
        };
        let base = first(9, (2, 3));
        assert_ne!(base.0, base.1);
        for other in [first(8, (2, 3)), first(9, (1, 3)), first(9, (2, 4))] {
            assert!(base.0 != other.0 && base.1 != other.1);
        }
    }

    fn sealed(sealing: &mut SealingHalf, stream: Option<StreamId>) -> Vec<u8> {
        let mut frame = Vec::new();
        sealing.seal(FrameKind::Stream, stream, b"hello", &mut frame);
        frame
    }

    fn halves() -> (SealingHalf, OpeningHalf) {
        let keys = || SessionKeys::derive(&[1; 32], (&[2; 32], &[3; 32]), &[4; 32]);
        (SealingHalf::new(keys().client), OpeningHalf::new(keys().client))
    }
}
