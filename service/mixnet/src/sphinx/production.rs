//! The suite on the wire: X25519, BLAKE3, ChaCha20, LIONESS (HTX reference, section 2.1,
//! "proposed").
//!
//! ```text
//! prefix  = version (1) || epoch's parity (1) || class (1) || 0
//! block   = id (32) || delay in ms, u32 || flags (1) || random (7) || MAC of the next header (16)
//! keys    = BLAKE3 key derivation of version || class || epoch, u64 || shared secret
//! MAC     = keyed BLAKE3 over prefix || element || routing, cut to 16
//! ```

use std::{sync::LazyLock, time::Duration};

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use chacha20::{
    ChaCha20,
    cipher::{KeyIvInit, StreamCipher},
};
use zeroize::Zeroizing;

use super::{
    hop::HopError,
    lioness::Lioness,
    packet::{Class, RelayId},
    suite::{HopKeys, PAYLOAD_KEY_MAX, PayloadKey, ReplayTag, Role, Step, Suite},
    surb::SurbId,
    x25519::X25519,
};

/// The suite on the wire. Its context is the number of the epoch.
#[derive(Debug)]
pub struct Production;

/// What a hop is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// Hold the packet for `delay`, then pass it on.
    Forward {
        /// To whom.
        next: RelayId,
        /// How long to hold it; whole milliseconds.
        delay: Duration,
    },
    /// The payload is a fragment for this gateway.
    Deliver,
    /// The payload answers a SURB that this gateway made.
    Reply {
        /// Which.
        surb: SurbId,
    },
}

impl Suite for Production {
    type Group = X25519;
    type Command = Command;
    type Context = u64;

    const PREFIX: usize = 4;
    const BLOCK: usize = 60;
    const MAC: usize = 16;
    const PAYLOAD_KEY: usize = 32;

    fn check_prefix(prefix: &[u8], packet_len: usize, epoch: &u64) -> Result<(), HopError> {
        let prefix: [u8; 4] =
            prefix.try_into().map_err(|_| HopError::Length { length: packet_len })?;
        if prefix[0] != VERSION {
            return Err(HopError::UnsupportedVersion(prefix[0]));
        }
        let class =
            Class::of_packet_len(packet_len).ok_or(HopError::Length { length: packet_len })?;
        if prefix == Self::prefix(*epoch, class) { Ok(()) } else { Err(HopError::Prefix(prefix)) }
    }

    fn derive(shared: &[u8; 32], prefix: &[u8], _: &[u8; 32], epoch: &u64) -> HopKeys {
        // Not a whole hasher: a part of it is never written, so a static one would keep for ever what
        // the stack held when the first packet came, such as its shared secret.
        static CONTEXT: LazyLock<ContextKey> =
            LazyLock::new(|| hash_derive_key_context("fieldpost sphinx hop v1"));
        let mut hasher = blake3::Hasher::new_from_context_key(&CONTEXT);
        hasher.update(&[prefix[0], prefix[2]]).update(&epoch.to_be_bytes()).update(shared);
        let mut bytes = Zeroizing::new([0; 32 * 4 + 16]);
        hasher.finalize_xof().fill(&mut *bytes);
        let part = |at: usize| std::array::from_fn(|byte| bytes[at * 32 + byte]);
        let mut payload = [0; PAYLOAD_KEY_MAX];
        payload[..32].copy_from_slice(&bytes[64..96]);
        HopKeys {
            mac: part(0),
            header: part(1),
            header_nonce: [0; 16],
            payload: PayloadKey(payload),
            blinding: part(3),
            tag: ReplayTag(std::array::from_fn(|byte| bytes[128 + byte])),
        }
    }

    fn authenticate(keys: &HopKeys, prefix: &[u8], element: &[u8; 32], routing: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&keys.mac);
        hasher.update(prefix).update(element).update(routing);
        *hasher.finalize().as_bytes()
    }

    fn apply_header_stream(keys: &HopKeys, routing: &mut [u8]) {
        ChaCha20::new(&keys.header.into(), &[0; 12].into()).apply_keystream(routing);
    }

    fn encrypt_payload(key: &PayloadKey, role: Role, payload: &mut [u8]) {
        wide_block(key, role).encrypt(payload);
    }

    fn decrypt_payload(key: &PayloadKey, role: Role, payload: &mut [u8]) {
        wide_block(key, role).decrypt(payload);
    }

    fn read(block: &[u8]) -> Result<Step<Command>, HopError> {
        let id: [u8; 32] = std::array::from_fn(|at| block[at]);
        let milliseconds = u32::from_be_bytes(std::array::from_fn(|at| block[32 + at]));
        let mut next_mac = [0; 32];
        next_mac[..Self::MAC].copy_from_slice(&block[MAC_AT..MAC_AT + Self::MAC]);
        match block[FLAGS_AT] {
            FORWARD => Ok(Step {
                command: Command::Forward {
                    next: RelayId(id),
                    delay: Duration::from_millis(u64::from(milliseconds)),
                },
                next_mac: Some(next_mac),
            }),
            DELIVER => Ok(Step { command: Command::Deliver, next_mac: None }),
            REPLY => {
                let surb = SurbId(std::array::from_fn(|at| id[at]));
                Ok(Step { command: Command::Reply { surb }, next_mac: None })
            }
            unknown => Err(HopError::Command(unknown)),
        }
    }

    fn write(command: &Command, next_mac: Option<&[u8]>, block: &mut [u8]) {
        let flags = match command {
            Command::Forward { next, delay } => {
                let milliseconds = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
                block[..32].copy_from_slice(&next.0);
                block[32..FLAGS_AT].copy_from_slice(&milliseconds.to_be_bytes());
                FORWARD
            }
            Command::Deliver => DELIVER,
            Command::Reply { surb } => {
                block[..16].copy_from_slice(&surb.0);
                REPLY
            }
        };
        block[FLAGS_AT] = flags;
        if let Some(next_mac) = next_mac {
            block[MAC_AT..MAC_AT + Self::MAC].copy_from_slice(next_mac);
        }
    }

    fn role(command: &Command) -> Role {
        match command {
            Command::Forward { .. } => Role::Pass,
            Command::Deliver => Role::Deliver,
            Command::Reply { .. } => Role::Reply,
        }
    }
}

impl Production {
    /// The first bytes of every packet of this epoch and class.
    pub fn prefix(epoch: u64, class: Class) -> [u8; 4] {
        [VERSION, (epoch & 1) as u8, class as u8, 0]
    }
}

fn wide_block(key: &PayloadKey, role: Role) -> Lioness {
    static CONTEXT: LazyLock<ContextKey> =
        LazyLock::new(|| hash_derive_key_context("fieldpost sphinx payload v1"));
    let mut hasher = blake3::Hasher::new_from_context_key(&CONTEXT);
    hasher.update(&[role as u8]).update(&key.0[..Production::PAYLOAD_KEY]);
    Lioness::new(&hasher)
}

const VERSION: u8 = 1;
const FORWARD: u8 = 0;
const DELIVER: u8 = 1;
const REPLY: u8 = 2;
const FLAGS_AT: usize = 36;
const MAC_AT: usize = 44;
