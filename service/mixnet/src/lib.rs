//! The HTX mixnet without I/O: covert links and the relay directory.
//!
//! Nothing here performs I/O, reads a clock or makes its own randomness: the same seed and the same
//! events give the same actions. The rules are those of the HTX reference.

pub mod directory;
pub mod htx;
