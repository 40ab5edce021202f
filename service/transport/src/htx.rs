//! Covert links over TLS 1.3 and HTTP/2: the driver of [`fieldpost_mixnet::htx`].
//!
//! ```text
//! client                                   front
//! TLS 1.3, ALPN h2           ──────────►   TLS 1.3, h2 or HTTP/1.1
//! a request with the ticket  ──────────►   the gate judges; the answer is the decoy's, always
//! POST, never ending         ──────────►   admitted connection: 200, never ending
//!                                          any other: the decoy's answer to a POST
//! DATA frames                ◄─────────►   DATA frames, the bytes of the link
//! ```
//!
//! The ticket admits its connection (HTX reference, section 1.2). As the request that carries it is
//! answered by the decoy whatever the gate says, neither a good nor a bad nor a used ticket shows in
//! any byte of that answer; only who holds the connection can go on.
//!
//! All decisions about links are made in the core. What is here moves bytes.

mod body;
mod decoy;
mod dial;
mod drive;
mod exchange;
mod forgetful;
mod front;
mod gathered;
mod node;
mod template;
#[cfg(test)]
mod tests;

pub use fieldpost_mixnet::{client, delay::Pace, directory, htx as core};

pub use self::{
    decoy::{Decoy, DecoyError},
    dial::{DialError, Dialer, Target},
    drive::{LinkEnd, LinkGone},
    forgetful::ForgetfulRng,
    front::{Clock, Front, FrontOptions},
    node::{ForwardError, HtxError, HtxFigures, HtxOptions, HtxTls, HtxTransport},
    template::{Template, client_tls, client_tls_of_relays, server_tls},
};
