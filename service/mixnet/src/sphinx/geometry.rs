//! Where the parts of a packet stand.

use super::{Production, Suite};

/// The longest route: four relays and the receiving gateway (design, section 7).
pub const MAX_HOPS: usize = 5;

/// Zero bytes at the start of a payload that prove it whole to the last hop (HTX reference,
/// section 2.2, step 9).
pub const PAYLOAD_TAG: usize = 32;

/// The longest block of any suite, in bytes.
pub const MAX_BLOCK: usize = 96;

/// The longest header of any suite, in bytes.
pub const MAX_HEADER: usize = 16 + 32 + MAX_HOPS * MAX_BLOCK + 32;

/// Bytes of a header on the wire (HTX reference, section 2.1).
pub const HEADER_LEN: usize = Production::HEADER;

/// Derived lengths of a suite's header.
pub trait HeaderLayout {
    /// Bytes of all routing blocks.
    const ROUTING: usize;
    /// Bytes of the header.
    const HEADER: usize;
    /// Where the routing starts.
    const ROUTING_AT: usize;
    /// Where the MAC starts.
    const MAC_AT: usize;
}

impl<S: Suite> HeaderLayout for S {
    const ROUTING: usize = MAX_HOPS * S::BLOCK;
    const ROUTING_AT: usize = S::PREFIX + 32;
    const MAC_AT: usize = S::ROUTING_AT + S::ROUTING;
    const HEADER: usize = {
        assert!(S::BLOCK <= MAX_BLOCK && S::MAC <= 32 && S::PREFIX <= 16);
        S::MAC_AT + S::MAC
    };
}

/// How many bytes of a packet of `packet_len` bytes are payload.
pub fn payload_len<S: Suite>(packet_len: usize) -> Option<usize> {
    packet_len.checked_sub(S::HEADER).filter(|payload| *payload >= PAYLOAD_TAG)
}
