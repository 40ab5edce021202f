//! Fieldpost's shared words and their bytes: addresses, messages, envelopes, receipts.
//!
//! Every other crate speaks in these types, and two gateways understand each other through the
//! codec that is built from them (design, section 7). Nothing here performs I/O, reads a clock or
//! makes its own randomness.

mod address;
mod certificate;
mod codec;
mod envelope;
mod message;
mod roster;
mod seal;
mod text;

pub use address::{AddressError, AddressPart, GatewayId, GroupId, PeerAddress, PeerId, Recipient};
pub use certificate::{Certificate, CertificateError, NodePurpose, SignedCertificate};
pub use codec::{DecodeError, Forward, Said, SignError, SignedEnvelope, Verified, VerifyError};
pub use envelope::{Content, Envelope, FieldName, Receipt, ReceiptError, Violation, limits};
pub use message::{
    AnonymityLevel, Lane, LaneSeq, MessageId, MessageStatus, Priority, RangeError, ReceiptKind,
    Timestamp, WordError,
};
pub use roster::{Listing, Roster, SignedRoster};
pub use seal::{MAX_SEALED_LEN, OpenError, OpeningKey, SealError, SealingKey};
