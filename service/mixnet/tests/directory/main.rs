//! The relay directory from outside: descriptors, documents, gossip, routes, vectors.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod clients;
mod descriptors;
mod documents;
mod drafts;
mod fixtures;
mod gossip;
mod pool;
mod routes;
mod vectors;
