//! The transports of `--transports`: there from the start, running once the database has told who
//! the gateway is.
//!
//! Each replica holds node keys of its own. The gateway's key vouches for them by certificates of a
//! day, renewed at half that time (design, section 4).

mod ble;
mod late;
mod mesh;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use fieldpost_envelope::{Certificate, NodePurpose, SignedCertificate};
use fieldpost_transport::{BleTransport, MeshTransport, Transport};
use tokio_util::sync::CancellationToken;

pub use self::late::LateTransport;
use crate::{Gateway, config::Config};

/// The transports that this build has, in the order of their default.
pub const BUILT: [&str; 2] = [BLE, MESH];

const BLE: &str = "ble";
const MESH: &str = "mesh";
/// How long a certificate holds.
const CERTIFICATE_LIFETIME: TimeDelta = TimeDelta::hours(24);
/// Other gateways' clocks may be behind ours.
const CERTIFICATE_MARGIN: TimeDelta = TimeDelta::minutes(30);

/// The transports that the operator asked for.
pub fn chosen(config: &Config) -> Vec<Arc<LateTransport>> {
    config
        .transports()
        .map(|name| match name {
            BLE => LateTransport::new(BLE, BleTransport::declared()),
            MESH => LateTransport::new(MESH, MeshTransport::declared()),
            other => unreachable!("the options were validated: {other}"),
        })
        .collect()
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
        BLE => ble::keep(gateway, late, alone, stop).await,
        MESH => mesh::keep(gateway, late, alone, stop).await,
        other => unreachable!("the options were validated: {other}"),
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
