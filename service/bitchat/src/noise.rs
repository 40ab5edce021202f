//! Noise XX between two peers, whatever the number of hops (BitChat protocol reference, section 5).

mod handshake;
mod session;
mod sessions;
mod window;

use snow::{Builder, HandshakeState, params::NoiseParams};
use thiserror::Error;
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};

pub use handshake::Handshake;
pub use session::Session;
pub(crate) use sessions::{Outcome, Pair, Sessions};
pub use window::Window;

/// What a Noise message adds to its plaintext in a transport frame: counter and tag.
pub const FRAME_OVERHEAD: usize = 20;

/// Why a Noise message is refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum NoiseError {
    /// It was not made with these keys, or has been changed.
    #[error("message of {length} bytes does not open")]
    Unauthentic {
        /// Its length.
        length: usize,
    },
    /// It has come before, or is too old to tell.
    #[error("frame {counter} has come before or is too old")]
    Replayed {
        /// The number that it carries.
        counter: u32,
    },
    /// A public key that gives everybody the same secret.
    #[error("public key of low order")]
    LowOrderKey,
    /// The key at the other end is not that of the peer it claims to be.
    #[error("the key belongs to another peer")]
    WrongPeer,
    /// It does not fit where the handshake stands.
    #[error("message of {length} bytes out of turn")]
    OutOfTurn {
        /// Its length.
        length: usize,
    },
    /// All numbers of this session are used up.
    #[error("the session has no numbers left")]
    Exhausted,
}

/// The X25519 public key of a private one.
pub(crate) fn public_key(private: &[u8; 32]) -> [u8; 32] {
    x25519(*private, X25519_BASEPOINT_BYTES)
}

/// Seals one message to a key without an answer: Noise X, as couriers carry it (section 9.3).
pub(crate) fn seal_one_way(
    private: &[u8; 32],
    recipient: &[u8; 32],
    prologue: &[u8],
    ephemeral: [u8; 32],
    plaintext: &[u8],
) -> Result<Vec<u8>, NoiseError> {
    refuse_low_order(recipient)?;
    let builder = builder(handshake::ONE_WAY, ephemeral);
    let mut state = build(
        builder
            .local_private_key(private)
            .and_then(|builder| builder.remote_public_key(recipient))
            .and_then(|builder| builder.prologue(prologue))
            .and_then(Builder::build_initiator),
        plaintext.len(),
    )?;
    let mut out = vec![0; plaintext.len() + 96];
    let length = state
        .write_message(plaintext, &mut out)
        .map_err(|_| NoiseError::OutOfTurn { length: plaintext.len() })?;
    out.truncate(length);
    Ok(out)
}

/// Opens what [`seal_one_way`] sealed: the plaintext and the sender's static key.
pub(crate) fn open_one_way(
    private: &[u8; 32],
    prologue: &[u8],
    message: &[u8],
) -> Result<(Vec<u8>, [u8; 32]), NoiseError> {
    let unauthentic = NoiseError::Unauthentic { length: message.len() };
    let mut state = build(
        builder(handshake::ONE_WAY, [0; 32])
            .local_private_key(private)
            .and_then(|builder| builder.prologue(prologue))
            .and_then(Builder::build_responder),
        message.len(),
    )?;
    let mut out = vec![0; message.len()];
    let length = state.read_message(message, &mut out).map_err(|_| unauthentic)?;
    out.truncate(length);
    let sender =
        state.get_remote_static().and_then(|key| key.try_into().ok()).ok_or(unauthentic)?;
    refuse_low_order(&sender)?;
    Ok((out, sender))
}

fn builder(pattern: &str, ephemeral: [u8; 32]) -> Builder<'static> {
    let params: NoiseParams = pattern.parse().expect("a pattern that snow knows");
    Builder::with_resolver(params, Box::new(handshake::Resolver::new(ephemeral)))
}

fn build(
    state: Result<HandshakeState, snow::Error>,
    length: usize,
) -> Result<HandshakeState, NoiseError> {
    state.map_err(|_| NoiseError::OutOfTurn { length })
}

/// iOS refuses such keys; with them, anybody would know the secret.
fn refuse_low_order(public: &[u8; 32]) -> Result<(), NoiseError> {
    let mut scalar = [0; 32];
    scalar[0] = 8;
    if x25519(scalar, *public) == [0; 32] { Err(NoiseError::LowOrderKey) } else { Ok(()) }
}
