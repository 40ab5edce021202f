//! Covert links from outside: two cores in memory, tickets at a gate, hostile bytes, vectors.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod flow;
mod handshake;
mod hostile;
mod pair;
mod tickets;
mod timing;
mod vectors;
