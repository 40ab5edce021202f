//! The codec from outside: published vectors, properties, hostile bytes, sealing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod fixtures;
mod forward;
mod properties;
mod raw;
mod refusals;
mod sealing;
mod vectors;
