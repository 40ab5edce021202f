//! The three messages of Noise XX: empty prologue, empty payloads, 32, 96 and 64 bytes (BitChat
//! protocol reference, section 5.1).

use std::sync::Mutex;

use snow::{
    Builder, HandshakeState,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, DefaultResolver},
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::{Zeroize, Zeroizing};

use super::{NoiseError, Session, build, builder, refuse_low_order};

pub(super) const ONE_WAY: &str = "Noise_X_25519_ChaChaPoly_SHA256";
const MUTUAL: &str = "Noise_XX_25519_ChaChaPoly_SHA256";
/// The length of the first message, by which a receiver knows it.
pub(super) const FIRST: usize = 32;
/// The length of the second.
pub(super) const SECOND: usize = 96;
/// The length of the third.
pub(super) const THIRD: usize = 64;

/// A handshake under way.
pub struct Handshake {
    state: Box<HandshakeState>,
}

impl Handshake {
    /// Begins one; `ephemeral` must be random. The first message comes back with it.
    ///
    /// # Errors
    ///
    /// None that a random key can cause.
    pub fn initiate(
        private: &[u8; 32],
        ephemeral: [u8; 32],
    ) -> Result<(Self, Vec<u8>), NoiseError> {
        let state = builder(MUTUAL, ephemeral)
            .local_private_key(private)
            .and_then(Builder::build_initiator);
        let mut handshake = Self { state: Box::new(build(state, 0)?) };
        let first = handshake.write()?;
        Ok((handshake, first))
    }

    /// Answers a first message with the second; `ephemeral` must be random.
    ///
    /// # Errors
    ///
    /// It is not a first message, or its key is of low order.
    pub fn respond(
        private: &[u8; 32],
        ephemeral: [u8; 32],
        first: &[u8],
    ) -> Result<(Self, Vec<u8>), NoiseError> {
        let key = first.try_into().map_err(|_| NoiseError::OutOfTurn { length: first.len() })?;
        refuse_low_order(key)?;
        let state = builder(MUTUAL, ephemeral)
            .local_private_key(private)
            .and_then(Builder::build_responder);
        let mut handshake = Self { state: Box::new(build(state, first.len())?) };
        handshake.read(first)?;
        let second = handshake.write()?;
        Ok((handshake, second))
    }

    /// As the initiator: takes the second message and gives the third.
    ///
    /// # Errors
    ///
    /// It does not belong to this handshake.
    pub fn complete(mut self, second: &[u8]) -> Result<(Session, Vec<u8>), NoiseError> {
        if second.len() != SECOND || !self.state.is_initiator() {
            return Err(NoiseError::OutOfTurn { length: second.len() });
        }
        let (ephemeral, _) = second.as_chunks().0.split_first().expect("96 bytes hold a key");
        refuse_low_order(ephemeral)?;
        self.read(second)?;
        let third = self.write()?;
        Ok((self.finish()?, third))
    }

    /// As the responder: takes the third message.
    ///
    /// # Errors
    ///
    /// It does not belong to this handshake.
    pub fn accept(mut self, third: &[u8]) -> Result<Session, NoiseError> {
        if third.len() != THIRD || self.state.is_initiator() {
            return Err(NoiseError::OutOfTurn { length: third.len() });
        }
        self.read(third)?;
        self.finish()
    }

    fn write(&mut self) -> Result<Vec<u8>, NoiseError> {
        let mut out = vec![0; SECOND];
        let length = self
            .state
            .write_message(&[], &mut out)
            .map_err(|_| NoiseError::OutOfTurn { length: 0 })?;
        out.truncate(length);
        Ok(out)
    }

    fn read(&mut self, message: &[u8]) -> Result<(), NoiseError> {
        let mut payload = [0; SECOND];
        match self.state.read_message(message, &mut payload) {
            Ok(_) => Ok(()),
            Err(_) => Err(NoiseError::Unauthentic { length: message.len() }),
        }
    }

    fn finish(mut self) -> Result<Session, NoiseError> {
        let remote = self.state.get_remote_static().and_then(|key| key.try_into().ok());
        let remote: [u8; 32] = remote.ok_or(NoiseError::WrongPeer)?;
        refuse_low_order(&remote)?;
        // The apps put no limit of 64 KiB on a frame, so snow's own transport will not do.
        let (first, second) = self.state.dangerously_get_raw_split();
        let (first, second) = (Zeroizing::new(first), Zeroizing::new(second));
        let (send, receive) =
            if self.state.is_initiator() { (&first, &second) } else { (&second, &first) };
        Ok(Session::new(send, receive, remote))
    }
}

/// snow's own primitives, with the ephemeral key given: cores make no randomness of their own.
pub(super) struct Resolver {
    ephemeral: Zeroizing<[u8; 32]>,
}

impl Resolver {
    pub(super) fn new(ephemeral: [u8; 32]) -> Self {
        Self { ephemeral: Zeroizing::new(ephemeral) }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Mutex::new(Some(*self.ephemeral)))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// Gives its key once, so that no two handshakes can share one.
struct Once(Mutex<Option<[u8; 32]>>);

impl Random for Once {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), snow::Error> {
        let key = self.0.get_mut().ok().and_then(Option::take);
        let mut key = key.filter(|key| key.len() == out.len()).ok_or(snow::Error::Rng)?;
        out.copy_from_slice(&key);
        key.zeroize();
        Ok(())
    }
}
