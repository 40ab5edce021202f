//! The BitChat mesh, without I/O: a node that the shipping iOS and Android apps take for one of
//! theirs.

mod counters;
mod dedup;
mod event;
pub mod fragment;
mod id;
mod identity;
mod limits;
mod link;
pub mod message;
mod node;
pub mod noise;
pub mod packet;
pub mod payload;
mod peers;
mod read;
mod relay;

pub use counters::Counters;
pub use event::{Action, Command, Event, FailReason, Now, Peer, ReceiptKind, Report};
pub use id::{MeshId, fingerprint};
pub use identity::Identity;
pub use limits::Limits;
pub use link::{LinkId, MAX_FRAME, MIN_FRAME, Role};
pub use node::{Load, Node};
pub use packet::{DecodeError, Header, Packet, PacketType, Version};
pub use read::Short;
