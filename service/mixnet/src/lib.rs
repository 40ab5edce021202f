//! The HTX mixnet without I/O: Sphinx packets, covert links and the relay directory.
//!
//! A message is sealed to the receiving gateway, cut into fragments, and each fragment travels in a
//! packet of its own over a route of its own (HTX reference, sections 2, 4.1, 5 and 6); [`htx`] has the
//! links that packets cross, [`directory`] what is known of relays. Nothing here performs I/O, reads a
//! clock or makes its own randomness: the same seed and the same events give the same actions.

pub mod acknowledge;
pub mod client;
pub mod delay;
pub mod directory;
pub mod fragment;
pub mod htx;
pub mod receiver;
pub mod relay;
pub mod replay;
pub mod seal;
pub mod sender;
pub mod sphinx;
pub mod wire;
