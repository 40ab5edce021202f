//! Packets as they travel, and routes as their senders see them.

use std::{fmt, time::Duration};

use ed25519_dalek::VerifyingKey;
use rand::{CryptoRng, Rng};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::delay;

use super::{
    build::{BuildError, Stop, build_header, wrap_payload},
    geometry::{HEADER_LEN, MAX_HOPS, PAYLOAD_TAG},
    production::{Command, Production},
};

/// A relay or gateway of the mixnet: SHA-256 of its Ed25519 key (HTX reference, section 5).
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RelayId(pub [u8; 32]);

impl RelayId {
    /// The relay with this key.
    pub fn of(identity: &VerifyingKey) -> Self {
        Self(Sha256::digest(identity.as_bytes()).into())
    }

    /// The relay with this id.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The id.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for RelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for RelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelayId({})", data_encoding::HEXLOWER.encode(&self.0[..8]))
    }
}

/// The two sizes of packets (HTX reference, section 2.1).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Class {
    /// 2 KiB of payload.
    Small = 0,
    /// 32 KiB of payload.
    Large = 1,
}

impl Class {
    /// Both, the smaller one first.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// Bytes of the payload, its tag among them.
    pub const fn payload_len(self) -> usize {
        match self {
            Self::Small => 2 * 1024,
            Self::Large => 32 * 1024,
        }
    }

    /// Bytes of the payload that a sender can fill.
    pub const fn body_len(self) -> usize {
        self.payload_len() - PAYLOAD_TAG
    }

    /// Bytes of a whole packet.
    pub const fn packet_len(self) -> usize {
        HEADER_LEN + self.payload_len()
    }

    /// The class whose packets have this length.
    pub fn of_packet_len(length: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.packet_len() == length)
    }
}

/// One hop of a route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RouteStop {
    /// Who.
    pub id: RelayId,
    /// Its Sphinx key of the epoch.
    pub key: [u8; 32],
    /// How long it is to hold the packet; ignored at the last hop, which holds nothing.
    pub delay: Duration,
}

/// The hops that a packet passes, in order; the last is the receiving gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// The epoch that the keys belong to.
    epoch: u64,
    stops: Vec<RouteStop>,
}

impl Route {
    /// A route over `stops`, with keys of `epoch`.
    ///
    /// # Errors
    ///
    /// There are none or more than five.
    pub fn new(epoch: u64, stops: Vec<RouteStop>) -> Result<Self, RouteError> {
        if stops.is_empty() || stops.len() > MAX_HOPS {
            return Err(RouteError { hops: stops.len() });
        }
        Ok(Self { epoch, stops })
    }

    /// The epoch that the keys belong to.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The hops, in order.
    pub fn stops(&self) -> &[RouteStop] {
        &self.stops
    }

    /// Who gets the packet first.
    pub fn first(&self) -> RelayId {
        self.stops[0].id
    }

    /// Who gets it last.
    pub fn last(&self) -> RelayId {
        self.stops[self.stops.len() - 1].id
    }

    /// How long relays will hold the packet, all together.
    pub fn delay(&self) -> Duration {
        self.stops[..self.stops.len() - 1].iter().map(|stop| stop.delay).sum()
    }

    /// The same route with an exponential delay of this mean at each relay, none longer than
    /// `longest`.
    pub fn with_delays(mut self, rng: &mut impl Rng, mean: Duration, longest: Duration) -> Self {
        for stop in &mut self.stops {
            stop.delay = delay::sample(rng, mean).min(longest);
        }
        self
    }

    /// What each hop is told, with `last` for the last one.
    pub(super) fn commands(&self, last: Command) -> Vec<Stop<Production>> {
        let next = self.stops.iter().skip(1).map(|stop| Some(stop.id)).chain([None]);
        self.stops
            .iter()
            .zip(next)
            .map(|(stop, next)| Stop {
                key: stop.key,
                command: next.map_or(last, |next| Command::Forward { next, delay: stop.delay }),
            })
            .collect()
    }
}

/// A route has 1 to 5 hops.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("a route of {hops} hops: expected 1 to {MAX_HOPS}")]
pub struct RouteError {
    /// How many there are.
    pub hops: usize,
}

/// A packet of one of the two lengths. Whether it is genuine, only a hop can tell.
#[derive(Clone, Eq, PartialEq)]
pub struct Packet {
    class: Class,
    bytes: Box<[u8]>,
}

impl Packet {
    /// The packet with these bytes; `None` if the length is not that of a packet.
    pub fn from_bytes(bytes: impl Into<Box<[u8]>>) -> Option<Self> {
        let bytes = bytes.into();
        Some(Self { class: Class::of_packet_len(bytes.len())?, bytes })
    }

    /// Builds a packet that carries `body` to the end of `route`. What `body` leaves free is filled
    /// with random bytes.
    ///
    /// # Errors
    ///
    /// `body` is longer than [`Class::body_len`], or a key of the route is of small order.
    pub fn build(
        rng: &mut impl CryptoRng,
        route: &Route,
        class: Class,
        body: &[u8],
    ) -> Result<Self, BuildError> {
        if body.len() > class.body_len() {
            return Err(BuildError::Oversize { length: body.len(), most: class.body_len() });
        }
        let stops = route.commands(Command::Deliver);
        let mut bytes = vec![0; class.packet_len()].into_boxed_slice();
        let (header, payload) = bytes.split_at_mut(HEADER_LEN);
        let prefix = Production::prefix(route.epoch, class);
        let built = build_header::<Production>(rng, &prefix, &route.epoch, &stops, header)?;
        let (filled, free) = payload[PAYLOAD_TAG..].split_at_mut(body.len());
        filled.copy_from_slice(body);
        rng.fill_bytes(free);
        wrap_payload(&built, &stops, payload);
        Ok(Self { class, bytes })
    }

    /// Its class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its bytes, for a hop to work on.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Its bytes.
    pub fn into_bytes(self) -> Box<[u8]> {
        self.bytes
    }

    /// The parity of the epoch that the packet claims to be for.
    pub fn parity(&self) -> u8 {
        self.bytes[1] & 1
    }

    /// What its sender filled, once the last hop has unwrapped it.
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER_LEN + PAYLOAD_TAG..]
    }

    /// The payload, its tag among it, for the maker of a SURB to work on.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER_LEN..]
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packet({:?})", self.class)
    }
}
