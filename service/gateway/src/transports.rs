//! The transports of `--transports`: there from the start, running once the database has told who
//! the gateway is.
//!
//! Each replica holds node keys of its own. The gateway's key vouches for them by certificates of a
//! day, renewed at half that time (design, section 4).

mod ble;
mod htx;
mod late;
mod mesh;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use ed25519_dalek::SigningKey;
use fieldpost_envelope::{Certificate, NodePurpose, SignedCertificate};
use fieldpost_transport::{BleTransport, HtxTransport, MeshTransport, Transport};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub(crate) use self::htx::Site;
pub use self::late::LateTransport;
use crate::{
    Gateway, Shared,
    config::Config,
    store::{NODE_KEY_LEASE, identity::IdentityError},
};

/// The transports that this build has, in the order of their default.
pub const BUILT: [&str; 3] = [BLE, HTX, MESH];

const BLE: &str = "ble";
const HTX: &str = "htx";
const MESH: &str = "mesh";
/// Between two attempts to start, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the database may take to end the session of a process that was killed.
const SESSION_ENDS_WITHIN: Duration = Duration::from_secs(5);
const SESSION_PAUSE: Duration = Duration::from_millis(100);
/// How long a certificate holds.
const CERTIFICATE_LIFETIME: TimeDelta = TimeDelta::hours(24);
/// Other gateways' clocks may be behind ours.
const CERTIFICATE_MARGIN: TimeDelta = TimeDelta::minutes(30);

/// The transports that the operator asked for.
pub fn chosen(config: &Config) -> Vec<Arc<LateTransport>> {
    config
        .transports()
        .map(|name| match name {
            HTX => LateTransport::new(HTX, HtxTransport::declared(config.htx.lab)),
            BLE => LateTransport::new(BLE, BleTransport::declared()),
            MESH => LateTransport::new(MESH, MeshTransport::declared()),
            other => unreachable!("the options were validated: {other}"),
        })
        .collect()
}

/// Sees whether the files that options of transports name can be used.
///
/// # Errors
///
/// Says which cannot, and why.
pub fn check_files(config: &Config) -> anyhow::Result<()> {
    let is_mixnet_used = config.transports().any(|name| name == HTX);
    if is_mixnet_used && config.htx.directory.is_some() && config.htx.listen().is_some() {
        Site::read(&config.htx)?;
    }
    Ok(())
}

/// Starts a transport as soon as that can be done, and keeps its keys and certificates, until
/// `stop`.
///
/// `alone` says that no other replica can run on the database.
pub async fn keep(
    gateway: Gateway,
    late: Arc<LateTransport>,
    alone: bool,
    stop: CancellationToken,
) {
    match late.name() {
        HTX => htx::keep(gateway, late, alone, stop).await,
        BLE => ble::keep(gateway, late, alone, stop).await,
        MESH => mesh::keep(gateway, late, alone, stop).await,
        other => unreachable!("the options were validated: {other}"),
    }
}

/// Tries to start a transport until it starts, at last every `longest`. Each reason why it does not is
/// told once.
async fn until_started<T, F: Future<Output = Result<T, String>>>(
    gateway: &Gateway,
    name: &'static str,
    longest: Duration,
    attempt: impl Fn() -> F,
) -> T {
    let mut pause = FIRST_PAUSE;
    let mut said = String::new();
    loop {
        gateway.readiness.until_ready().await;
        match attempt().await {
            Ok(started) => return started,
            Err(error) if error == said => tracing::debug!(transport.name = name, "{error}"),
            Err(error) => {
                tracing::warn!(transport.name = name, "{error}; trying again");
                said = error;
            }
        }
        sleep(pause).await;
        pause = (2 * pause).min(longest);
    }
}

/// The node key for `name`, under a lease of this replica.
async fn hold_key(gateway: &Gateway, name: &str, alone: bool) -> Result<SigningKey, IdentityError> {
    let Shared { store, clock, replica, place, .. } = &**gateway;
    let given_up_at = Instant::now() + SESSION_ENDS_WITHIN;
    while !alone
        && Instant::now() < given_up_at
        && store.is_place_taken(clock.now(), name, *replica, place).await?
    {
        sleep(SESSION_PAUSE).await;
    }
    store.hold_node_key(clock.now(), name, *replica, place, alone).await
}

/// Renews the lease on the node key for `name`, and at half the `lifetime` of a certificate what
/// `certify` shows, for ever.
async fn renew<F: Future<Output = Result<(), String>>>(
    gateway: &Gateway,
    name: &'static str,
    lifetime: TimeDelta,
    certify: impl Fn(DateTime<Utc>) -> F,
) {
    let mut certified_at = gateway.clock.now();
    loop {
        sleep(NODE_KEY_LEASE / 3).await;
        let now = gateway.clock.now();
        match gateway.store.renew_node_key(now, name, gateway.replica).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                transport.name = name,
                "this replica's node key is no longer its own: another took it over while the \
                 database was away, or `keys rotate` has forgotten it; restart this replica"
            ),
            Err(error) => tracing::debug!(%error, "the lease on the node key was not renewed"),
        }
        if now - certified_at < lifetime / 2 {
            continue;
        }
        match certify(now).await {
            Ok(()) => certified_at = now,
            Err(error) => tracing::warn!(
                transport.name = name,
                error,
                "the node's certificate was not renewed"
            ),
        }
    }
}

/// Gives up the node key for `name`, so that the next process has it at once.
async fn let_go(gateway: &Gateway, name: &str) {
    let now = gateway.clock.now();
    if let Err(error) = gateway.store.release_node_key(now, name, gateway.replica).await {
        tracing::debug!(%error, "the node key is held until its lease ends");
    }
}

/// The gateway's word that `node` is one of its nodes.
fn certify(
    gateway: &Gateway,
    purpose: NodePurpose,
    node: [u8; 32],
    now: DateTime<Utc>,
) -> Result<SignedCertificate, String> {
    let identity = gateway.store.identity().map_err(|error| error.to_string())?;
    let certificate = Certificate {
        gateway: identity.gateway_id,
        purpose,
        node,
        not_before: (now - CERTIFICATE_MARGIN).into(),
        not_after: (now + CERTIFICATE_LIFETIME).into(),
    };
    certificate.sign(&identity.signing_key).map_err(|error| error.to_string())
}
