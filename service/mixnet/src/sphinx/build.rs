//! What a sender does: keys for each hop, filler, headers from the last to the first, payload.

use rand::CryptoRng;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    geometry::{HeaderLayout, MAX_BLOCK, MAX_HOPS},
    suite::{Group, HopKeys, PayloadKey, Suite},
};

/// One hop of a route, as its sender sees it.
pub struct Stop<S: Suite> {
    /// The hop's public key.
    pub key: [u8; 32],
    /// What the hop is to do. It decides whether the route ends here.
    pub command: S::Command,
}

/// Writes the header of a packet over `stops` into `header`, which has the suite's length.
///
/// The space of hops that are not used is filled with random bytes: zeros there would tell the
/// last hop how long the route is (HTX reference, section 2.3).
///
/// # Errors
///
/// The route is empty, too long, or holds a key that nobody can have.
pub fn build_header<S: Suite>(
    rng: &mut impl CryptoRng,
    prefix: &[u8],
    context: &S::Context,
    stops: &[Stop<S>],
    header: &mut [u8],
) -> Result<Built, BuildError> {
    let hops = stops.len();
    if hops == 0 || hops > MAX_HOPS {
        return Err(BuildError::Hops { hops });
    }
    assert_eq!(header.len(), S::HEADER, "the header has the length of its suite");
    let mut elements = [[0; 32]; MAX_HOPS];
    let mut keys: [Option<HopKeys>; MAX_HOPS] = [const { None }; MAX_HOPS];
    let mut scalar = Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut *scalar);
    for (hop, stop) in stops.iter().enumerate() {
        let secret = S::Group::secret(&scalar).ok_or(BuildError::Key { hop })?;
        elements[hop] = S::Group::public(&secret).ok_or(BuildError::Key { hop })?;
        let shared =
            Zeroizing::new(S::Group::multiply(&secret, &stop.key).ok_or(BuildError::Key { hop })?);
        let derived = S::derive(&shared, prefix, &elements[hop], context);
        *scalar = S::Group::product(&scalar, &derived.blinding);
        keys[hop] = Some(derived);
    }
    let keys = keys.map(|keys| keys.unwrap_or_else(unused));

    header[..S::PREFIX].copy_from_slice(prefix);
    header[S::PREFIX..S::ROUTING_AT].copy_from_slice(&elements[0]);
    let mut filler = [0; MAX_HOPS * MAX_BLOCK];
    fill::<S>(&keys[..hops - 1], &mut filler);

    // From the last hop to the first: what a hop sees is its block and what the next hop sees.
    let mut routing_space = [0; MAX_HOPS * MAX_BLOCK];
    let routing = &mut routing_space[..S::ROUTING];
    let mut next_mac = None;
    for hop in (0..hops).rev() {
        routing.copy_within(..S::ROUTING - S::BLOCK, S::BLOCK);
        let random = if hop == hops - 1 { S::ROUTING } else { S::BLOCK };
        rng.fill_bytes(&mut routing[..random]);
        let mac = next_mac.as_ref().map(|mac: &[u8; 32]| &mac[..S::MAC]);
        S::write(&stops[hop].command, mac, &mut routing[..S::BLOCK]);
        S::apply_header_stream(&keys[hop], routing);
        if hop == hops - 1 {
            let length = hop * S::BLOCK;
            routing[S::ROUTING - length..].copy_from_slice(&filler[..length]);
        }
        next_mac = Some(S::authenticate(&keys[hop], prefix, &elements[hop], routing));
    }
    header[S::ROUTING_AT..S::MAC_AT].copy_from_slice(routing);
    header[S::MAC_AT..].copy_from_slice(&next_mac.unwrap_or_default()[..S::MAC]);
    Ok(Built { payload_keys: keys.map(|keys| keys.payload.clone()), hops })
}

/// Wraps a payload, whose first bytes are the zeros that the last hop looks for, for all hops.
pub fn wrap_payload<S: Suite>(built: &Built, stops: &[Stop<S>], payload: &mut [u8]) {
    for (key, stop) in built.payload_keys().iter().zip(stops).rev() {
        S::encrypt_payload(key, S::role(&stop.command), payload);
    }
}

/// What a sender keeps of a header: the keys of the payload at each hop.
pub struct Built {
    payload_keys: [PayloadKey; MAX_HOPS],
    hops: usize,
}

impl Built {
    /// The keys, from the first hop to the last.
    pub fn payload_keys(&self) -> &[PayloadKey] {
        &self.payload_keys[..self.hops]
    }
}

/// Why no packet can be built over a route.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BuildError {
    /// A route has 1 to 5 hops.
    #[error("a route of {hops} hops: expected 1 to {MAX_HOPS}")]
    Hops {
        /// How many there are.
        hops: usize,
    },
    /// A hop has a key of small order.
    #[error("the key of hop {hop} is of small order")]
    Key {
        /// Which, from 0.
        hop: usize,
    },
    /// The payload has room for fewer bytes.
    #[error("{length} bytes are too many for a payload: expected at most {most}")]
    Oversize {
        /// How many there are.
        length: usize,
        /// How many there may be.
        most: usize,
    },
}

/// What the zeros that each hop appends have become when the last hop sees them.
fn fill<S: Suite>(keys: &[HopKeys], filler: &mut [u8]) {
    for (hop, keys) in keys.iter().enumerate() {
        let mut stream_space = [0; (MAX_HOPS + 1) * MAX_BLOCK];
        let stream = &mut stream_space[..S::ROUTING + S::BLOCK];
        S::apply_header_stream(keys, stream);
        let length = (hop + 1) * S::BLOCK;
        let tail = &stream[S::ROUTING + S::BLOCK - length..];
        for (byte, key) in filler[..length].iter_mut().zip(tail) {
            *byte ^= key;
        }
    }
}

fn unused() -> HopKeys {
    HopKeys {
        mac: [0; 32],
        header: [0; 32],
        header_nonce: [0; 16],
        payload: PayloadKey([0; super::PAYLOAD_KEY_MAX]),
        blinding: [0; 32],
        tag: super::ReplayTag([0; 16]),
    }
}
