//! Sphinx from outside: published vectors, our own, properties, and the weaknesses of HTX
//! reference, section 2.3.

mod fixtures;
mod katzenpost;
mod mutations;
mod properties;
mod vectors;
mod weaknesses;
