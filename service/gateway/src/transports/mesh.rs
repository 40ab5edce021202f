//! The `mesh` transport of a replica: its node key under a lease, its certificate, its options.

use std::{fmt::Display, sync::Arc, time::Duration};

use fieldpost_envelope::NodePurpose;
use fieldpost_transport::{MeshOptions, MeshTransport};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{CERTIFICATE_LIFETIME, LateTransport, MESH, certify};
use crate::{Gateway, config::Switch, store::NODE_KEY_LEASE};

/// Between two attempts to start, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Starts it as soon as that can be done, and keeps its key and certificate, until `stop`.
///
/// `alone` says that no other replica can run on the database.
pub(super) async fn keep(
    gateway: Gateway,
    late: Arc<LateTransport>,
    alone: bool,
    stop: CancellationToken,
) {
    let mesh = stop.run_until_cancelled(start(&gateway, alone)).await;
    if let Some(mesh) = mesh {
        tokio::select! {
            () = stop.cancelled() => {}
            () = late.run(mesh.clone()) => {}
            () = renew(&gateway, &mesh) => {}
        }
        stop.cancelled().await;
        let now = gateway.clock.now();
        if let Err(error) = gateway.store.release_node_key(now, MESH, gateway.replica).await {
            tracing::debug!(%error, "the node key is held until its lease ends");
        }
    }
}

async fn start(gateway: &Gateway, alone: bool) -> Arc<MeshTransport> {
    let mut pause = FIRST_PAUSE;
    loop {
        gateway.readiness.until_ready().await;
        match try_start(gateway, alone).await {
            Ok(mesh) => return mesh,
            Err(error) => {
                tracing::warn!(transport.name = MESH, "{error}; trying again");
            }
        }
        sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

async fn try_start(gateway: &Gateway, alone: bool) -> Result<Arc<MeshTransport>, String> {
    let says = |error: &dyn Display| format!("the transport mesh does not start: {error}");
    let now = gateway.clock.now();
    let key = gateway
        .store
        .hold_node_key(now, MESH, gateway.replica, alone)
        .await
        .map_err(|error| says(&error))?;
    let certificate = certify(gateway, NodePurpose::Mesh, key.verifying_key().to_bytes(), now)
        .map_err(|error| says(&error))?;
    let config = &gateway.config;
    let options = MeshOptions {
        listen: config.mesh_listen,
        bootstrap: config.bootstrap.clone(),
        relays: config.mesh_relay.clone(),
        discovers: config.mesh_discovery == Switch::On,
    };
    let clock = gateway.clock.clone();
    let now = Arc::new(move || clock.now().into());
    let mesh = MeshTransport::start(options, key.to_bytes(), certificate, now)
        .await
        .map_err(|error| says(&error))?;
    for address in mesh.own_addresses() {
        tracing::info!(mesh.address = %address, "other gateways reach this one by --bootstrap");
    }
    Ok(mesh)
}

/// Renews the lease on the node key, and now and then the certificate, for ever.
async fn renew(gateway: &Gateway, mesh: &MeshTransport) {
    let mut certified_at = gateway.clock.now();
    loop {
        sleep(NODE_KEY_LEASE / 3).await;
        let now = gateway.clock.now();
        match gateway.store.renew_node_key(now, MESH, gateway.replica).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                "another replica took over this one's node key while the database was away; \
                 restart this one"
            ),
            Err(error) => tracing::debug!(%error, "the lease on the node key was not renewed"),
        }
        if now - certified_at < CERTIFICATE_LIFETIME / 2 {
            continue;
        }
        match certify(gateway, NodePurpose::Mesh, mesh.node(), now) {
            Ok(certificate) => {
                mesh.renew(certificate);
                certified_at = now;
            }
            Err(error) => tracing::warn!(%error, "the node's certificate was not renewed"),
        }
    }
}
