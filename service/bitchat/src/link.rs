//! Connections to neighbours.

/// One live connection to one neighbour, as the driver names it. Never used again for another.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LinkId(pub u64);

/// Which side of a link this node is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// It connected; the neighbour advertised.
    Central,
    /// It advertised; the neighbour connected.
    Peripheral,
}

/// The frames that the apps exchange at most (BitChat protocol reference, section 1.5).
pub const MAX_FRAME: usize = 512;
/// A link that takes less cannot carry a fragment worth its header.
pub const MIN_FRAME: usize = 64;
