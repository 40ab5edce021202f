//! Fieldpost's shared words and their bytes: addresses, messages, envelopes, receipts.
//!
//! Every other crate speaks in these types, and two gateways understand each other through the
//! codec that is built from them (design, section 7). Nothing here performs I/O, reads a clock or
//! makes its own randomness.

mod address;
mod message;
mod text;

pub use address::{AddressError, AddressPart, GatewayId, GroupId, PeerAddress, PeerId, Recipient};
pub use message::{
    AnonymityLevel, Lane, LaneSeq, MessageId, MessageStatus, Priority, RangeError, ReceiptKind,
    Timestamp, WordError,
};
