//! Frames of an established session (BitChat protocol reference, section 5.3).

use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce, aead::Aead};

use super::{NoiseError, Window};

/// The last number that a frame may carry.
const LAST: u32 = u32::MAX - 1;

/// Keys and numbers of one session. The keys are wiped when it is dropped.
pub struct Session {
    send: ChaCha20Poly1305,
    receive: ChaCha20Poly1305,
    next: u32,
    window: Window,
    remote: [u8; 32],
}

impl Session {
    pub(super) fn new(send: &[u8; 32], receive: &[u8; 32], remote: [u8; 32]) -> Self {
        Self {
            send: ChaCha20Poly1305::new(send.into()),
            receive: ChaCha20Poly1305::new(receive.into()),
            next: 0,
            window: Window::default(),
            remote,
        }
    }

    /// The static key that the peer has proven to hold.
    pub fn remote(&self) -> &[u8; 32] {
        &self.remote
    }

    /// How many frames it has sealed.
    pub fn sealed(&self) -> u32 {
        self.next
    }

    /// Seals a plaintext: its number, ciphertext, tag.
    ///
    /// # Errors
    ///
    /// All numbers are used up.
    pub fn seal(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, NoiseError> {
        let number = self.next;
        if number > LAST {
            return Err(NoiseError::Exhausted);
        }
        let sealed =
            self.send.encrypt(&nonce(number), plaintext).map_err(|_| NoiseError::Exhausted)?;
        self.next += 1;
        let mut frame = Vec::with_capacity(4 + sealed.len());
        frame.extend_from_slice(&number.to_be_bytes());
        frame.extend_from_slice(&sealed);
        Ok(frame)
    }

    /// Opens a frame, in whatever order they come, each once.
    ///
    /// # Errors
    ///
    /// It has come before, or was not sealed by the peer.
    pub fn open(&mut self, frame: &[u8]) -> Result<Vec<u8>, NoiseError> {
        let unauthentic = NoiseError::Unauthentic { length: frame.len() };
        let (number, sealed) = frame.split_first_chunk().ok_or(unauthentic)?;
        let number = u32::from_be_bytes(*number);
        if number > LAST {
            return Err(unauthentic);
        }
        if !self.window.allows(number) {
            return Err(NoiseError::Replayed { counter: number });
        }
        let plaintext = self.receive.decrypt(&nonce(number), sealed).map_err(|_| unauthentic)?;
        self.window.insert(number);
        Ok(plaintext)
    }
}

fn nonce(number: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&u64::from(number).to_le_bytes());
    nonce.into()
}
