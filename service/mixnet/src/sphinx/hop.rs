//! What a relay does with a packet, in place (HTX reference, section 2.2).

use std::marker::PhantomData;

use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    geometry::{HeaderLayout, MAX_BLOCK, MAX_HOPS, PAYLOAD_TAG, payload_len},
    suite::{Group, HopKeys, ReplayTag, Role, Suite},
};

/// Opens a packet as far as its MAC. Nothing of it has been changed yet.
///
/// The caller tests [`Opened::tag`] for a replay, and then processes.
///
/// # Errors
///
/// The packet is malformed, altered or not for this key and context. It came off a wire: count and
/// drop it.
pub fn open<'p, S: Suite>(
    secret: &<S::Group as Group>::Secret,
    context: &S::Context,
    packet: &'p mut [u8],
) -> Result<Opened<'p, S>, HopError> {
    let length = packet.len();
    payload_len::<S>(length).ok_or(HopError::Length { length })?;
    let (prefix, rest) = packet.split_at(S::PREFIX);
    S::check_prefix(prefix, length, context)?;
    let (element, rest) = rest.split_first_chunk::<32>().ok_or(HopError::Length { length })?;
    let (routing, rest) = rest.split_at(S::ROUTING);
    let shared = Zeroizing::new(S::Group::multiply(secret, element).ok_or(HopError::SmallOrder)?);
    let keys = S::derive(&shared, prefix, element, context);
    let expected = S::authenticate(&keys, prefix, element, routing);
    if !bool::from(expected[..S::MAC].ct_eq(&rest[..S::MAC])) {
        return Err(HopError::Mac);
    }
    Ok(Opened { packet, keys, suite: PhantomData })
}

/// A packet whose header is genuine.
pub struct Opened<'p, S> {
    packet: &'p mut [u8],
    keys: HopKeys,
    suite: PhantomData<S>,
}

impl<S: Suite> Opened<'_, S> {
    /// What makes a second copy recognisable.
    pub fn tag(&self) -> ReplayTag {
        self.keys.tag
    }

    /// Unwraps one layer. Afterwards the bytes are the packet for the next hop, or, at the last
    /// one, end with the payload.
    ///
    /// # Errors
    ///
    /// The command is unknown or the payload was altered on the way. The bytes are then useless.
    pub fn process(self) -> Result<Processed<S::Command>, HopError> {
        let mut space = [0; (MAX_HOPS + 1) * MAX_BLOCK];
        let routing = &mut space[..S::ROUTING + S::BLOCK];
        routing[..S::ROUTING].copy_from_slice(&self.packet[S::ROUTING_AT..S::MAC_AT]);
        S::apply_header_stream(&self.keys, routing);
        let (block, next_routing) = routing.split_at(S::BLOCK);
        let step = S::read(block)?;

        let (header, payload) = self.packet.split_at_mut(S::HEADER);
        let role = S::role(&step.command);
        S::decrypt_payload(&self.keys.payload, role, payload);
        let Some(next_mac) = step.next_mac else {
            if role == Role::Deliver && !bool::from(payload[..PAYLOAD_TAG].ct_eq(&[0; PAYLOAD_TAG]))
            {
                return Err(HopError::Payload);
            }
            return Ok(Processed { command: step.command, last: true });
        };

        let element = header[S::PREFIX..].first_chunk_mut::<32>().ok_or(HopError::SmallOrder)?;
        *element = S::Group::secret(&self.keys.blinding)
            .and_then(|blinding| S::Group::multiply(&blinding, element))
            .ok_or(HopError::SmallOrder)?;
        header[S::ROUTING_AT..S::MAC_AT].copy_from_slice(next_routing);
        header[S::MAC_AT..].copy_from_slice(&next_mac[..S::MAC]);
        Ok(Processed { command: step.command, last: false })
    }
}

/// What a hop was told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Processed<C> {
    /// The command.
    pub command: C,
    /// Whether the route ends here.
    pub last: bool,
}

/// Why a packet is dropped.
///
/// It came off a wire, so none of these is a bug on our side. Nobody is told which it was.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum HopError {
    /// Not the length of any packet.
    #[error("{length} bytes are not the length of a packet")]
    Length {
        /// How many bytes there are.
        length: usize,
    },
    /// We speak version 1.
    #[error("unsupported packet version {0}: expected 1")]
    UnsupportedVersion(u8),
    /// The rest of the prefix is not what a packet of this length and epoch has.
    #[error("prefix {0:02x?} does not belong to this length and epoch")]
    Prefix([u8; 4]),
    /// A group element whose product with any scalar would be known to all.
    #[error("group element of small order")]
    SmallOrder,
    /// The header was altered, or is for another key, epoch or relay.
    #[error("header does not authenticate")]
    Mac,
    /// The sender wrote a command that we do not know.
    #[error("unknown command {0:#04x}")]
    Command(u8),
    /// The payload was altered by a relay before us.
    #[error("payload is not whole")]
    Payload,
}
