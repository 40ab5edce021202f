//! What a program without a gateway of its own needs: a message in, finished packets out.
//!
//! All it takes is a document of the relay directory, which the caller has verified. The packets carry
//! no SURB, so nothing comes back: whoever wants receipts sends through a gateway.

use std::time::Duration;

use fieldpost_envelope::{GatewayId, SealingKey, Timestamp};
use rand::{CryptoRng, SeedableRng, rngs::StdRng};
use thiserror::Error;

use crate::{
    directory::{
        Descriptor, Document, Epoch, EpochClock, RelayId, RouteChooser, RouteError, RoutePolicy,
    },
    fragment::{self, Fragment, Layout, MAX_MESSAGE_LEN, TransferId},
    seal::{self, SEAL_OVERHEAD},
    sphinx::{BuildError, Packet, Route, RouteStop},
};

/// How packets are to travel.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// How many relays come before the receiving gateway: 1 to 4.
    pub relays: usize,
    /// The mean delay at each relay.
    pub delay: Duration,
}

impl Default for Way {
    fn default() -> Self {
        Self { relays: 3, delay: crate::delay::Pace::INTERACTIVE.delay }
    }
}

/// A packet, and the relay that it goes to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finished {
    /// The first relay of its route.
    pub first: RelayId,
    /// The packet.
    pub packet: Packet,
}

/// Seals `message` to a gateway, cuts it, and builds a packet for each part over a route of its own.
///
/// The packets are good for the epoch of `now`. A message that is to be taken is an envelope, signed by
/// the key that its sender goes by (`fieldpost_envelope`).
///
/// # Errors
///
/// The gateway is not in the document, the relays are too few, or the message is too long.
pub fn build_packets(
    rng: &mut impl CryptoRng,
    now: Timestamp,
    (document, clock): (&Document, EpochClock),
    gateway: GatewayId,
    message: &[u8],
    way: Way,
) -> Result<Vec<Finished>, ClientError> {
    let epoch = clock.epoch_at(now);
    let length = message.len();
    let too_long = ClientError::Oversize { length };
    if length > MAX_MESSAGE_LEN {
        return Err(too_long);
    }
    let receiver = receiver(document, now, epoch, gateway)?;
    let (receiver_id, keys) = (receiver.id(), key_of(receiver, epoch)?);
    let transfer = TransferId::generate(rng);
    let sealing = SealingKey::from_bytes(keys.1);
    let sealed = seal::seal(rng, receiver_id, epoch, &sealing, transfer, message)
        .map_err(|_| ClientError::Key(receiver_id))?;
    let class = Layout::class_for(length + SEAL_OVERHEAD);
    let (layout, shards) = fragment::split(class, &sealed).map_err(|_| too_long)?;

    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    let mut chooser = RouteChooser::new(StdRng::from_seed(seed), clock, None);
    let policy =
        RoutePolicy { relays: way.relays, least_relays: way.relays, ..RoutePolicy::default() };
    // Longer delays would outlast the grace of the keys.
    let longest = clock.longest_delay(way.relays);
    let mut finished = Vec::with_capacity(shards.len());
    for (index, shard) in shards.iter().enumerate() {
        let drawn = chooser.choose(now, document, &receiver_id, policy)?;
        let hops = drawn.relays.iter().copied().chain([drawn.receiver]);
        let stops = hops
            .map(|id| {
                let hop = document.relay(&id).ok_or(RouteError::UnknownReceiver(id))?;
                let key = key_of(hop, epoch)?.0;
                let delay = crate::delay::sample(rng, way.delay).min(longest);
                Ok(RouteStop { id, key, delay })
            })
            .collect::<Result<Vec<_>, ClientError>>()?;
        let route =
            Route::new(epoch, stops).map_err(|error| BuildError::Hops { hops: error.hops })?;
        let (again, asks, surb) = (false, false, None);
        let part = Fragment { transfer, index, layout, again, asks, surb, shard };
        let packet = Packet::build(rng, &route, class, &part.encode())?;
        finished.push(Finished { first: route.first(), packet });
    }
    Ok(finished)
}

/// A node of the gateway with keys for the epoch.
fn receiver(
    document: &Document,
    now: Timestamp,
    epoch: Epoch,
    gateway: GatewayId,
) -> Result<&Descriptor, ClientError> {
    let all = document.relays().iter().map(|relay| relay.descriptor());
    all.filter(|descriptor| descriptor.gateway(now) == Some(gateway))
        .find(|descriptor| descriptor.keys_of(epoch).is_some())
        .ok_or(ClientError::UnknownGateway { gateway, epoch })
}

fn key_of(descriptor: &Descriptor, epoch: Epoch) -> Result<([u8; 32], [u8; 32]), ClientError> {
    let keys = descriptor.keys_of(epoch);
    let keys = keys.ok_or(RouteError::NoKeys { relay: descriptor.id(), epoch })?;
    Ok((keys.sphinx, keys.sealing))
}

/// Why no packets are built.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ClientError {
    /// Longer than any message may be.
    #[error("{length} bytes are too many for a message: expected at most {MAX_MESSAGE_LEN}")]
    Oversize {
        /// How many bytes it has.
        length: usize,
    },
    /// The document has no node of the gateway.
    #[error(
        "no node of gateway {gateway} has keys for epoch {epoch} in the document: take a newer one"
    )]
    UnknownGateway {
        /// The gateway.
        gateway: GatewayId,
        /// The epoch.
        epoch: Epoch,
    },
    /// Nobody can open what is sealed to the gateway's key.
    #[error("the key of {0} is not valid")]
    Key(RelayId),
    /// There is no route.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A packet cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
}
