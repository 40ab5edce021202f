//! Sphinx from outside: published vectors, our own, properties, and the weaknesses of HTX
//! reference, section 2.3.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod fixtures;
mod katzenpost;
mod mutations;
mod properties;
mod vectors;
mod weaknesses;
