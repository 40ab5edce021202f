//! Several cores in virtual time, and neighbours that mean ill.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod hostile;
mod simulation;
mod wire;
mod world;
