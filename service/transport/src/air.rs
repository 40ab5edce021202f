//! A simulated medium: radios of several processes on this machine, as if they were in a field.
//!
//! An [`AirServer`] holds the field. A scenario says where each radio is and how it moves, how far
//! it reaches, how many links it keeps, what frames it takes; and what the air loses and delays.
//! An [`AirRadio`] joins under its name and sees links come and go. It is chosen by name alone
//! (`--ble-radio air:ADDRESS`) and says nothing about real radio waves: no interference, no
//! scanning time, one link to a pair.

mod medium;
mod protocol;
mod radio;
mod scenario;
mod server;

pub use radio::{AirRadio, JoinError};
pub use scenario::{Position, Scenario, ScenarioError, Station};
pub use server::{AirCounters, AirServer};

#[cfg(test)]
mod tests;
