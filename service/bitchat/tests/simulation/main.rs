//! Networks of cores in virtual time: seeded, so that what fails once fails again.

mod chain;
mod conversation;
mod hostile;
mod world;
