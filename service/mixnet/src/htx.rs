//! HTX, the covert link: what happens inside the TLS connection that looks like any other.
//!
//! ```text
//! TLS 1.3, HTTP/2, decoy site       the driver's; this core takes the TLS exporter as an argument
//! access ticket                     `Gate` tells a client of ours from everybody else
//! Noise XK and ML-KEM-768           `handshake`, three messages on one HTTP/2 stream
//! frames, streams, rekeying         `Link`
//! ```
//!
//! Nothing here performs I/O, reads a clock or makes its own randomness. The rules are those of the
//! HTX reference, sections 1.1 to 1.3; where it says "adapt", the module that does so says how.

mod buckets;
mod carrier;
mod curve;
mod frame;
mod gate;
mod handshake;
mod kem;
mod keys;
mod link;
mod noise;
mod redial;
mod schedule;
mod stream;
mod ticket;
mod varint;

pub use self::{
    buckets::BucketLimits,
    carrier::{Carrier, CarrierPolicy, Found, PolicyError, Presented},
    curve::{PublicKey, SecretKey},
    frame::{FrameError, FrameHeader, FrameKind, MAX_FRAME_PAYLOAD, Ping, StreamId},
    gate::{Admission, Gate, Refusal},
    handshake::{
        Capabilities, Capability, ClientOffer, HandshakeError, Hello, Parameters, ServerOffer,
    },
    keys::{FRAMES_PER_KEY, KEY_LIFETIME, OpenError, OpeningHalf, SealingHalf, SessionKeys},
    link::{Action, Closed, Dial, Event, Identity, Link, LinkError, OpenStreamError, Settings},
    redial::{Redial, RedialEvent},
    stream::{SendError, StreamError},
    ticket::{TicketError, TicketId, TicketKey, TicketParts},
    varint::VarintError,
};

/// What the TLS exporter is asked for: this label, no context, 32 bytes.
///
/// The answer goes into the Noise prologue, so that whoever terminates TLS elsewhere cannot join
/// the two halves (HTX reference, section 1.3).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-fieldpost-htx-v1";
