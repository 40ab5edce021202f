//! The direct mesh between gateways, without I/O: who is linked to whom, and what crosses a link.
//!
//! [`Peering`] is the core of a whole endpoint. It decides whom to dial and when to try again, says
//! hello on each new link and checks the certificate of whoever answers, keeps one link for each
//! neighbour, puts envelopes on streams and waits until the neighbour has taken them, tells and hears
//! rosters, and notices when a link has gone silent. [`wire`] holds the bytes.
//!
//! Nothing here performs I/O, reads a clock or makes its own randomness: the same seed and the same
//! events give the same actions. `transport::mesh` drives it over QUIC. A link is a connection whose
//! other end has proved that it holds a node key; it carries one control stream, and streams of
//! batches, rosters and files beside it (design, sections 4 and 7).

mod counters;
mod flow;
mod link;
mod peering;
mod rosters;
mod table;
pub mod wire;

pub use counters::{Counters, Refusal};
pub use flow::SendFailure;
pub use link::LinkId;
pub use peering::{Action, Event, Identity, Moment, Outgoing, Peering, Target, Token, limits};
pub use table::{NodeId, Source};
