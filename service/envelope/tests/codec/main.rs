//! The codec from outside: published vectors, properties, hostile bytes, sealing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod certificates;
mod fixtures;
mod forward;
mod properties;
mod raw;
mod refusals;
mod rosters;
mod sealing;
mod vectors;
