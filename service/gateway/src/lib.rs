//! The Fieldpost gateway process: REST and WebSocket in front, Postgres behind, transports beside.
//!
//! `http` never calls a transport and a transport never reaches the store: they meet in
//! [`outbox`] and [`inbox`]. Only `http` knows axum, only `store` knows SQL.

pub mod accept;
pub mod admin;
pub mod air;
pub mod allowances;
pub mod bus;
pub mod client;
pub mod clock;
pub mod config;
pub mod connectivity;
pub mod database;
pub mod directory;
pub mod doctor;
pub mod embedded;
pub mod fetch;
pub mod gateway;
pub mod http;
pub mod inbox;
pub mod mixnet;
pub mod outbox;
pub mod phones;
pub mod presence;
pub mod readiness;
pub mod rosters;
pub mod run;
pub mod secrets;
pub mod serve;
pub mod store;
pub mod subscribers;
pub mod sweep;
pub mod telemetry;
mod tls_files;
pub mod transports;

pub use gateway::{Gateway, Identity, Shared};
