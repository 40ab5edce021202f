//! From outbox to inbox: gateways in one process, each on a real Postgres of its own, joined by
//! `memory` networks that lose, delay, double and part; and what is said of `mesh`, by gateways in
//! processes of their own. Nothing here waits for a fixed time.

mod failover;
mod faults;
mod federation;
mod full_inbox;
mod hostile;
mod mesh;
mod pages;
mod privacy;
mod remote_files;
mod remote_groups;
mod remote_groups_again;
mod trust;
