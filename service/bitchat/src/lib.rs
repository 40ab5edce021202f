//! The BitChat mesh, without I/O: a node that the shipping iOS and Android apps take for one of
//! theirs.
//!
//! A [`Node`] takes [`Event`]s (links, frames, commands, time) and gives [`Action`]s (frames with
//! their pacing done, reports). It speaks for itself and for the peers that it hosts, each with
//! keys and announces of its own; it relays what others say; it carries bytes between gateways
//! inside Noise sessions. The same seed and the same events give the same actions.
//!
//! ```text
//! frame ─► rate ─► decode ─► freshness ─► seen? ─► signature ─► what it says ─► report
//!                                                     └─► relay: delay ─► links but its own
//! command ─► session ─► packet ─► fragments ─► queue of a link ─► pace ─► frame
//! ```
//!
//! The rules are those of the BitChat protocol reference, whose sections the items cite. Where the
//! apps differ from what they mean, the node does what they mean and sends nothing that trips them:
//! its relay keeps a session's frames in order on their last hop, because their replay
//! windows drop what comes more than eight places late; public text stays under 100 bytes a packet,
//! because iOS verifies longer text with its own encoder's bytes.

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
