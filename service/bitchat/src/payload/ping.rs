//! Is a peer there, and how far (BitChat protocol reference, section 3.1); iOS only.

use super::Result;
use crate::read::Reader;

/// A ping, and a pong with the same nonce.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ping {
    /// Random; the pong repeats it.
    pub nonce: [u8; 8],
    /// The hops that this packet started with.
    pub origin_hops: u8,
}

impl Ping {
    /// Reads one; trailing bytes are allowed.
    ///
    /// # Errors
    ///
    /// It is too short.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        Ok(Self { nonce: reader.array()?, origin_hops: reader.u8()? })
    }

    /// Writes one.
    pub fn encode(self) -> Vec<u8> {
        let mut out = self.nonce.to_vec();
        out.push(self.origin_hops);
        out
    }

    /// How many links it crossed, from what was left on arrival.
    pub fn hops(self, left: u8) -> u8 {
        self.origin_hops.saturating_sub(left).saturating_add(1)
    }
}
