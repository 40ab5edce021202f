//! Networks of cores in virtual time: seeded, so that what fails once fails again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![expect(clippy::print_stdout, reason = "a figure to read with --nocapture")]

mod chain;
mod conversation;
mod hostile;
mod world;
