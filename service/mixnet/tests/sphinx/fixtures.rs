//! Relays with fixed keys, routes over them, and randomness that a file can name.

use std::time::Duration;

use fieldpost_mixnet::sphinx::{
    Command, Group, HopError, Packet, Processed, Production, RelayId, Route, RouteStop, X25519,
    open,
};
use rand::{TryCryptoRng, TryRng};

pub(crate) const EPOCH: u64 = 500_000;

/// Randomness that can be written down: the key stream of BLAKE3's key derivation.
pub(crate) struct Tape(blake3::OutputReader);

impl Tape {
    pub(crate) fn new(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("fieldpost test vectors randomness");
        hasher.update(&seed.to_be_bytes());
        Self(hasher.finalize_xof())
    }
}

impl TryRng for Tape {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(bytes);
        Ok(())
    }
}

impl TryCryptoRng for Tape {}

pub(crate) fn secret_bytes(relay: u8) -> [u8; 32] {
    std::array::from_fn(|at| relay.wrapping_mul(31).wrapping_add(at as u8))
}

pub(crate) fn secret(relay: u8) -> <X25519 as Group>::Secret {
    X25519::secret(&secret_bytes(relay)).unwrap()
}

pub(crate) fn public(relay: u8) -> [u8; 32] {
    X25519::public(&secret(relay)).unwrap()
}

pub(crate) fn relay_id(relay: u8) -> RelayId {
    RelayId([relay; 32])
}

/// A route over relays 1 to `hops`.
pub(crate) fn route(hops: u8) -> Route {
    let stops = (1..=hops)
        .map(|relay| RouteStop {
            id: relay_id(relay),
            key: public(relay),
            delay: Duration::from_millis(u64::from(relay) * 10),
        })
        .collect();
    Route::new(EPOCH, stops).unwrap()
}

pub(crate) fn hop(relay: u8, packet: &mut Packet) -> Result<Processed<Command>, HopError> {
    open::<Production>(&secret(relay), &EPOCH, packet.as_bytes_mut())?.process()
}
