//! What the black-box tests share: the gateway as a process on a real Postgres, clients for people
//! and sockets, load, and the history checker that judges the promises (design, section 1).
//!
//! Nothing here looks inside the gateway: it is started as its users start it, spoken to over HTTP
//! and sockets, and killed by signal. Only [`federation`] and [`failover`] start gateways inside this
//! process, because the `memory` transport that joins them does not leave it.

pub mod client;
pub mod failover;
pub mod federation;
pub mod history;
pub mod lab;
pub mod load;
pub mod namespace;
pub mod phone;
pub mod postgres;
pub mod process;
mod spawn;
pub mod waiting;

pub use self::{
    client::{Client, Failure, Frame, Inbox, Socket},
    history::{History, Recorder, Violation, check},
    postgres::Postgres,
    process::{Gateway, Options},
    spawn::TemporaryFolder,
};

use std::env;

/// The seed of a random test: `FIELDPOST_PROVE_SEED` if it is set, else a fresh one. Print it.
pub fn seed() -> u64 {
    let given = env::var("FIELDPOST_PROVE_SEED").ok();
    given.map_or_else(
        || uuid::Uuid::new_v4().as_u64_pair().0,
        |text| text.parse().expect("FIELDPOST_PROVE_SEED is a whole number"),
    )
}

/// A number from `FIELDPOST_PROVE_<name>`, or `default`.
pub fn setting(name: &str, default: u64) -> u64 {
    let name = format!("FIELDPOST_PROVE_{name}");
    let given = env::var(&name).ok();
    given.map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is not a whole number: {text}"))
    })
}
