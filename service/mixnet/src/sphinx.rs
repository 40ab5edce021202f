//! Sphinx packets: what each relay of a route unwraps, and what it cannot see.
//!
//! A packet is a header and a payload (HTX reference, sections 2.1 and 2.2):
//!
//! ```text
//! packet  = prefix || group element (32) || routing (5 blocks) || MAC || payload
//! block   = command of one hop, with the MAC of the next header
//! ```
//!
//! The format is generic over a [`Suite`]; [`Production`] is the one on the wire. A hop works in
//! place. It costs two multiplications by scalars, and a sender pays one of a point for each hop
//! beside the import of each scalar, which makes the group element that the MAC covers.

mod build;
mod geometry;
mod hop;
mod lioness;
mod packet;
mod production;
mod suite;
mod surb;
mod x25519;

pub use build::{BuildError, Built, Stop, build_header, wrap_payload};
pub use geometry::{
    HEADER_LEN, HeaderLayout, MAX_BLOCK, MAX_HEADER, MAX_HOPS, PAYLOAD_TAG, payload_len,
};
pub use hop::{HopError, Opened, Processed, open};
pub use packet::{Class, Packet, RelayId, Route, RouteError, RouteStop};
pub use production::{Command, Production};
pub use suite::{Group, HopKeys, PAYLOAD_KEY_MAX, PayloadKey, ReplayTag, Role, Step, Suite};
pub use surb::{REPLY_LEN, ReplyError, SURB_LEN, Surb, SurbId, SurbKeys};
pub use x25519::X25519;
