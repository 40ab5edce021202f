//! The mixnet without I/O: Sphinx packets, relays, fragments and acknowledgements.
//!
//! A message is sealed to the receiving gateway, cut into fragments, and each fragment travels in a
//! packet of its own over a route of its own (HTX reference, sections 2, 4.1, 5 and 6). Nothing
//! here performs I/O, reads a clock or makes its own randomness: the same seed and the same events
//! give the same actions.

pub mod acknowledge;
pub mod delay;
pub mod fragment;
pub mod receiver;
pub mod relay;
pub mod replay;
pub mod seal;
pub mod sender;
pub mod sphinx;
