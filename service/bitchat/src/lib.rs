//! The BitChat mesh, without I/O: a node that the shipping iOS and Android apps take for one of
//! theirs.

mod counters;
mod dedup;
pub mod fragment;
mod id;
mod identity;
mod limits;
mod link;
pub mod message;
pub mod noise;
pub mod packet;
pub mod payload;
mod read;

pub use counters::Counters;
pub use id::{MeshId, fingerprint};
pub use identity::Identity;
pub use limits::Limits;
pub use link::{LinkId, MAX_FRAME, MIN_FRAME, Role};
pub use packet::{DecodeError, Header, Packet, PacketType, Version};
pub use read::Short;
