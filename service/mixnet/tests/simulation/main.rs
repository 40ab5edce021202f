//! A whole mixnet in virtual time: gateways send over relays that lose, reorder, repeat and die.
//!
//! `FIELDPOST_PROVE_SEED` chooses other seeds; a failure prints the seed that it happened with.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod network;
mod stories;
