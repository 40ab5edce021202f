//! Single-use reply blocks: a header that somebody else may send a reply with, without learning
//! where it goes.

use std::fmt;

use rand::CryptoRng;
use thiserror::Error;
use zeroize::Zeroize;

use super::{
    build::{BuildError, build_header},
    geometry::{HEADER_LEN, PAYLOAD_TAG},
    packet::{Class, Packet, RelayId, Route},
    production::{Command, Production},
    suite::{PAYLOAD_KEY_MAX, PayloadKey, Role, Suite},
};

/// Bytes of a SURB: first hop, header, key of the reply.
pub const SURB_LEN: usize = 32 + HEADER_LEN + 32;

/// The most bytes of a reply. Replies travel in small packets, whatever they answer.
pub const REPLY_LEN: usize = Class::Small.body_len();

/// What the maker of a SURB knows it by.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SurbId(pub [u8; 16]);

/// A single-use reply block. Using it twice is a replay, which relays drop.
#[derive(Clone, Eq, PartialEq)]
pub struct Surb([u8; SURB_LEN]);

impl Surb {
    /// Makes a SURB whose reply comes back over `route`, which ends at its maker.
    ///
    /// # Errors
    ///
    /// A key of the route is of small order.
    pub fn build(
        rng: &mut impl CryptoRng,
        route: &Route,
        id: SurbId,
    ) -> Result<(Self, SurbKeys), BuildError> {
        let stops = route.commands(Command::Reply { surb: id });
        let prefix = Production::prefix(route.epoch(), Class::Small);
        let mut bytes = [0; SURB_LEN];
        bytes[..32].copy_from_slice(&route.first().0);
        let header = &mut bytes[32..32 + HEADER_LEN];
        let built = build_header::<Production>(rng, &prefix, &route.epoch(), &stops, header)?;
        let mut answer = PayloadKey([0; PAYLOAD_KEY_MAX]);
        rng.fill_bytes(&mut answer.0[..Production::PAYLOAD_KEY]);
        bytes[32 + HEADER_LEN..].copy_from_slice(&answer.0[..Production::PAYLOAD_KEY]);
        let keys = SurbKeys { hops: built.payload_keys().into(), answer };
        Ok((Self(bytes), keys))
    }

    /// The SURB with these bytes. Only a relay can tell whether it is good.
    pub fn from_bytes(bytes: [u8; SURB_LEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; SURB_LEN] {
        &self.0
    }

    /// Uses the SURB up: the packet that carries `reply`, and who gets it first.
    ///
    /// # Errors
    ///
    /// `reply` is longer than [`REPLY_LEN`].
    pub fn reply(
        self,
        rng: &mut impl CryptoRng,
        reply: &[u8],
    ) -> Result<(RelayId, Packet), BuildError> {
        if reply.len() > REPLY_LEN {
            return Err(BuildError::Oversize { length: reply.len(), most: REPLY_LEN });
        }
        let mut bytes = vec![0; Class::Small.packet_len()];
        let (header, payload) = bytes.split_at_mut(HEADER_LEN);
        header.copy_from_slice(&self.0[32..32 + HEADER_LEN]);
        let (filled, free) = payload[PAYLOAD_TAG..].split_at_mut(reply.len());
        filled.copy_from_slice(reply);
        rng.fill_bytes(free);
        let mut key = PayloadKey([0; PAYLOAD_KEY_MAX]);
        key.0[..Production::PAYLOAD_KEY].copy_from_slice(&self.0[32 + HEADER_LEN..]);
        Production::encrypt_payload(&key, Role::Answer, payload);
        let first = RelayId(std::array::from_fn(|at| self.0[at]));
        let packet = Packet::from_bytes(bytes).expect("a small packet has its length");
        Ok((first, packet))
    }
}

impl Drop for Surb {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Surb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Surb(..)")
    }
}

/// What the maker of a SURB keeps to read the reply.
#[derive(Clone)]
pub struct SurbKeys {
    hops: Vec<PayloadKey>,
    answer: PayloadKey,
}

impl SurbKeys {
    /// Opens the payload of a reply in place; what follows the tag is the reply and random bytes.
    ///
    /// # Errors
    ///
    /// The payload was altered on the way or answers another SURB.
    pub fn open<'p>(&self, payload: &'p mut [u8]) -> Result<&'p [u8], ReplyError> {
        if payload.len() != Class::Small.payload_len() {
            return Err(ReplyError);
        }
        // Each hop took off a layer that was never there; we put them on again.
        let (last, relays) = self.hops.split_last().ok_or(ReplyError)?;
        Production::encrypt_payload(last, Role::Reply, payload);
        for key in relays.iter().rev() {
            Production::encrypt_payload(key, Role::Pass, payload);
        }
        Production::decrypt_payload(&self.answer, Role::Answer, payload);
        let (tag, reply) = payload.split_at(PAYLOAD_TAG);
        if tag.iter().fold(0, |all, byte| all | byte) == 0 { Ok(reply) } else { Err(ReplyError) }
    }
}

impl fmt::Debug for SurbKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SurbKeys(..)")
    }
}

/// A reply was altered on the way, or answers another SURB.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("the reply does not open with the keys of its block")]
pub struct ReplyError;
