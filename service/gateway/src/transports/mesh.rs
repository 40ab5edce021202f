//! The `mesh` transport of a replica: its node key under a lease, its certificate, its options.

use std::{
    collections::BTreeSet,
    fmt::Display,
    future::{pending, ready},
    sync::Arc,
    time::Duration,
};

use fieldpost_envelope::NodePurpose;
use fieldpost_transport::{MeshRefusal, MeshTransport};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    CERTIFICATE_LIFETIME, LONGEST_PAUSE, LateTransport, MESH, certify, hold_key, let_go, renew,
    until_started,
};
use crate::{Gateway, telemetry::metrics as names};

/// Until a node is looked up again, after the database failed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Until it is said that no relay answers.
const RELAY_PATIENCE: Duration = Duration::from_secs(15);
/// Between two looks at what the transport has counted.
const COUNTED_EVERY: Duration = Duration::from_secs(2);

/// Starts it as soon as that can be done, and keeps its key and certificate, until `stop`.
///
/// `alone` says that no other replica can run on the database.
pub(super) async fn keep(
    gateway: Gateway,
    late: Arc<LateTransport>,
    alone: bool,
    stop: CancellationToken,
) {
    let start = until_started(&gateway, MESH, LONGEST_PAUSE, || start(&gateway, alone));
    let mesh = stop.run_until_cancelled(start).await;
    if let Some(mesh) = mesh {
        tokio::select! {
            () = stop.cancelled() => {}
            () = late.run(mesh.clone()) => {}
            () = renew(&gateway, MESH, CERTIFICATE_LIFETIME, |now| {
                let certified = certify(&gateway, NodePurpose::Mesh, mesh.node(), now);
                ready(certified.map(|certificate| mesh.renew(certificate)))
            }) => {}
            () = look_for_copies(&gateway, &mesh) => {}
            () = count(&mesh) => {}
            () = say_relay(&gateway, &mesh) => {}
        }
        stop.cancelled().await;
        let_go(&gateway, MESH).await;
    }
}

async fn start(gateway: &Gateway, alone: bool) -> Result<Arc<MeshTransport>, String> {
    let says = |error: &dyn Display| format!("the transport mesh does not start: {error}");
    let key = hold_key(gateway, MESH, alone).await.map_err(|error| says(&error))?;
    let now = gateway.clock.now();
    let certificate = certify(gateway, NodePurpose::Mesh, key.verifying_key().to_bytes(), now)
        .map_err(|error| says(&error))?;
    let options = gateway.config.mesh();
    let clock = gateway.clock.clone();
    let now = Arc::new(move || clock.now().into());
    let mesh = MeshTransport::start(options, key.to_bytes(), certificate, now)
        .await
        .map_err(|error| says(&error))?;
    say_addresses(&mesh, &BTreeSet::new());
    Ok(mesh)
}

/// Says those of its addresses that are new since `said`.
fn say_addresses(mesh: &MeshTransport, said: &BTreeSet<String>) {
    for address in mesh.own_addresses().into_iter().filter(|address| !said.contains(address)) {
        tracing::info!(mesh.address = %address, "other gateways reach this one by --bootstrap");
    }
}

/// Says at which relay this gateway can be found, or that none takes it in.
async fn say_relay(gateway: &Gateway, mesh: &MeshTransport) {
    let relays = &gateway.config.mesh_relay;
    if !relays.is_empty() {
        let said = mesh.own_addresses().into_iter().collect();
        if timeout(RELAY_PATIENCE, mesh.at_relay()).await.is_err() {
            tracing::warn!(
                mesh.relays = relays.join(", "),
                "no relay answers; they are tried on and on. See that the URL of --mesh-relay is \
                 right and that its port is open from here"
            );
            mesh.at_relay().await;
        }
        say_addresses(mesh, &said);
    }
    pending::<()>().await;
}

/// Says so, once for each, when nodes show certificates of this gateway that are none of its replicas:
/// two live copies of a gateway take each other's messages.
async fn look_for_copies(gateway: &Gateway, mesh: &MeshTransport) {
    let mut kin = mesh.kin();
    let mut judged = BTreeSet::new();
    loop {
        let nodes: Vec<[u8; 32]> = kin.borrow_and_update().difference(&judged).copied().collect();
        for node in nodes {
            gateway.readiness.until_ready().await;
            // Its own key in another's hands is a copy of the whole database.
            let is_replica = match node == mesh.node() {
                true => Ok(false),
                false => gateway.store.is_own_node(MESH, node).await,
            };
            match is_replica {
                Ok(is_replica) => {
                    judged.insert(node);
                    if !is_replica {
                        tell_of_copy(node);
                    }
                }
                Err(error) => tracing::debug!(%error, "a node of ours could not be looked up"),
            }
        }
        let is_settled = kin.borrow().is_subset(&judged);
        if is_settled {
            if kin.changed().await.is_err() {
                return std::future::pending().await;
            }
        } else {
            sleep(LOOK_AGAIN).await;
        }
    }
}

fn tell_of_copy(node: [u8; 32]) {
    tracing::warn!(
        node.id = %data_encoding::HEXLOWER.encode(&node),
        "a second copy of this gateway runs: a node with its identity, but none of the replicas on this \
         database. Messages to this gateway may end at either. End one of the two; if both are to \
         run, let them use one database, or give one an identity of its own by a new database. A \
         replica that has not been restarted since `keys rotate` looks the same: restart it"
    );
}

/// Shows what the transport has counted among the metrics.
async fn count(mesh: &MeshTransport) {
    loop {
        let counters = mesh.counters();
        for refusal in MeshRefusal::ALL {
            metrics::counter!(names::MESH_LINKS_REFUSED_TOTAL, "reason" => refusal.word())
                .absolute(counters.refused(refusal));
        }
        metrics::counter!(names::MESH_LINKS_OPENED_TOTAL).absolute(counters.links_opened);
        metrics::counter!(names::MESH_DIALS_TOTAL).absolute(counters.dials);
        metrics::counter!(names::MESH_ENVELOPES_PUT_OFF_TOTAL).absolute(counters.envelopes_put_off);
        sleep(COUNTED_EVERY).await;
    }
}
