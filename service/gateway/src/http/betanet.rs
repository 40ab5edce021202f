//! `/api/betanet`: the original's documented routes, and the five that its clients call.
//!
//! All figures are counted by this gateway's own node of the mixnet, or stand in the relay directory's
//! active document. Where no node runs, health says `unavailable` and why, and what clients send reaches
//! peers of this gateway alone, as `local`.

mod clients;
mod nodes;
mod relays;
mod send;

use axum::extract::State;
use fieldpost_transport::HtxFigures;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Detail},
        extract::LenientJson,
        fields::{self, mirrored_time},
    },
};

/// What one small packet is, in Mbit.
const SMALL_PACKET_MBIT: f64 = 2_400.0 * 8.0 / 1e6;

/// The routes of `/api/betanet`.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(status))
        .routes(routes!(deploy))
        .merge(nodes::routes())
        .merge(relays::routes())
        .merge(clients::routes())
        .merge(send::routes())
}

/// Whether the mixnet can be used.
#[utoipa::path(
    get,
    path = "/api/betanet/health",
    operation_id = "betanetGetHealth",
    tag = "betanet",
    responses(
        (status = 200, description = "Whether it can", body = BetanetHealth, example = json!({
            "status": "healthy", "message": "3 relays, 2 links, document 4",
            "server_url": "https://127.0.0.1:8443", "server_reachable": true
        })),
        (status = "4XX", description = "It cannot be told", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn health(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<BetanetHealth>, ApiError> {
    caller.viewer()?;
    let (status, message) = judge(&gateway);
    let own = gateway.mixnet.descriptor();
    let own = own.as_ref().and_then(|descriptor| descriptor.verify().ok());
    let address = own.and_then(|descriptor| descriptor.addresses.first().copied());
    Ok(axum::Json(BetanetHealth {
        status,
        message,
        server_url: address.map(|address| format!("https://{address}")),
        server_reachable: address.is_some(),
    }))
}

/// How the mixnet is, in one word and in some.
fn judge(gateway: &Gateway) -> (&'static str, String) {
    let Some(figures) = gateway.mixnet.figures() else {
        return ("unavailable", gateway.mixnet.reason().unwrap_or_default());
    };
    let Some(document) = figures.document else {
        let message = "the node runs, and no document of the relay directory has come yet";
        return ("degraded", message.to_owned());
    };
    let HtxFigures { relays, links, is_listed, .. } = figures;
    let shown = format!("{relays} relays, {links} links, document {document}");
    match (is_listed, links > 0) {
        (true, true) => ("healthy", shown),
        (false, _) => (
            "degraded",
            format!("{shown}; this node is not in the active document, so nothing finds it yet"),
        ),
        (true, false) => ("degraded", format!("{shown}; no other node is in reach")),
    }
}

/// The mixnet in figures.
#[utoipa::path(
    get,
    path = "/api/betanet/status",
    operation_id = "betanetGetStatus",
    tag = "betanet",
    responses(
        (status = 200, description = "The figures", body = BetanetStatus, example = json!({
            "status": "healthy", "health": "healthy",
            "nodes": {"total": 4, "active": 3, "inactive": 1},
            "network": {"latency": 120.5, "bandwidth": 0.2, "throughput": 9.5, "packetsProcessed": 4200},
            "mixnodes": [{
                "id": "6f1c0a52c1a54ae9bd0d9f8c1f7a0a6e6f1c0a52c1a54ae9bd0d9f8c1f7a0a6e",
                "status": "active", "address": "127.0.0.1:8443", "operator": "attic",
                "packetsProcessed": 4200, "uptime": 86400.5
            }], "lastUpdated": "2026-11-23T09:00:00.000000+00:00"
        })),
        (status = "4XX", description = "The figures cannot be shown", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn status(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<BetanetStatus>, ApiError> {
    caller.viewer()?;
    let planned = gateway.store.node_count().await?;
    let now = gateway.clock.now();
    let (status, _) = judge(&gateway);
    let mixnodes = relays::mixnodes(&gateway);
    let running = mixnodes.iter().filter(|node| node.is_active()).count() as i64;
    let total = planned + mixnodes.len() as i64;
    let figures = gateway.mixnet.figures().unwrap_or_default();
    let processed = figures.packets_forwarded + figures.packets_delivered;
    let throughput = throughput(&gateway);
    let latency = gateway.learned.overall(now, "htx").latency(now);
    Ok(axum::Json(BetanetStatus {
        status,
        health: status,
        nodes: BetanetNodeCounts { total, active: running, inactive: total - running },
        network: BetanetNetwork {
            latency: latency.map_or(0.0, |time| time.as_secs_f64() * 1_000.0),
            bandwidth: throughput * SMALL_PACKET_MBIT,
            throughput,
            packets_processed: processed,
        },
        mixnodes,
        last_updated: mirrored_time(now),
    }))
}

/// Packets a second at this gateway's node, since it started.
pub(super) fn throughput(gateway: &Gateway) -> f64 {
    let figures = gateway.mixnet.figures().unwrap_or_default();
    let processed = figures.packets_forwarded + figures.packets_delivered;
    let uptime = gateway.clock.instant().saturating_duration_since(gateway.started_at);
    processed as f64 / uptime.as_secs_f64().max(1.0)
}

/// Deploy this gateway's own relay.
///
/// A gateway that runs with `--relay` has it already, and its id is the answer. Whether one relays is
/// the operator's word at start, not a caller's.
#[utoipa::path(
    post,
    path = "/api/betanet/deploy",
    operation_id = "betanetDeployNode",
    tag = "betanet",
    request_body = BetanetDeploy,
    responses(
        (status = 200, description = "It runs", body = BetanetDeployed, example = json!({
            "success": true, "status": "active",
            "nodeId": "6f1c0a52c1a54ae9bd0d9f8c1f7a0a6e6f1c0a52c1a54ae9bd0d9f8c1f7a0a6e"
        })),
        (status = "4XX", description = "No relay runs here", body = Detail, example = json!({
            "detail": "this gateway does not relay: its operator starts it with --relay"
        })),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn deploy(
    State(gateway): State<Gateway>,
    caller: Caller,
    LenientJson(request): LenientJson<BetanetDeploy>,
) -> Result<axum::Json<BetanetDeployed>, ApiError> {
    caller.viewer()?;
    fields::text("node_type", request.node_type, 1, 50)?;
    fields::text("region", request.region, 0, 50)?;
    let Some(id) = gateway.mixnet.id() else {
        return Err(ApiError::conflict(gateway.mixnet.reason().unwrap_or_default()));
    };
    if !gateway.config.htx.relay {
        return Err(ApiError::conflict(
            "this gateway does not relay: its operator starts it with --relay",
        ));
    }
    let is_listed = gateway.mixnet.figures().is_some_and(|figures| figures.is_listed);
    let status = if is_listed { "active" } else { "deploying" };
    Ok(axum::Json(BetanetDeployed { success: true, node_id: id.to_string(), status }))
}

/// Whether the mixnet can be used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetHealth {
    /// `unavailable` while no node of the mixnet runs here, `degraded` while it is of no use yet.
    #[schema(pattern = "^(?:healthy|degraded|unavailable)$")]
    status: &'static str,
    /// In words.
    message: String,
    /// Where links to this gateway's node come in, if it listens.
    #[schema(required)]
    server_url: Option<String>,
    /// Whether it listens.
    server_reachable: bool,
}

/// The mixnet in figures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetStatus {
    /// As in the health.
    #[schema(pattern = "^(?:healthy|degraded|unavailable)$")]
    status: &'static str,
    /// The same, where the original's page looks for it.
    #[schema(pattern = "^(?:healthy|degraded|unavailable)$")]
    health: &'static str,
    nodes: BetanetNodeCounts,
    network: BetanetNetwork,
    /// The relays of the active document.
    mixnodes: Vec<relays::BetanetMixnode>,
    /// When this was measured.
    #[serde(rename = "lastUpdated")]
    #[schema(format = DateTime)]
    last_updated: String,
}

/// Relays of the active document, and those of the inventory.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetNodeCounts {
    /// All of them.
    #[schema(minimum = 0)]
    total: i64,
    /// Those that run.
    #[schema(minimum = 0)]
    active: i64,
    /// Those that do not.
    #[schema(minimum = 0)]
    inactive: i64,
}

/// What passed through the mixnet.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct BetanetNetwork {
    /// How long messages took lately until the recipient's gateway had them, in milliseconds; 0 while
    /// nothing is known.
    latency: f64,
    /// In Mbit/s at this node since it started, as if all packets were small ones.
    bandwidth: f64,
    /// In packets a second at this node, since it started.
    throughput: f64,
    /// At this node, since the gateway started.
    #[serde(rename = "packetsProcessed")]
    #[schema(minimum = 0)]
    packets_processed: u64,
}

/// A relay that runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetDeployed {
    /// Always true.
    success: bool,
    /// Its id.
    #[serde(rename = "nodeId")]
    node_id: String,
    /// `active` when it is in the active document, else `deploying`.
    #[schema(pattern = "^(?:active|deploying)$")]
    status: &'static str,
}

/// What is to be started.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"node_type": "mixnode", "region": "us-east"}))]
pub(super) struct BetanetDeploy {
    /// What kind of node.
    #[serde(default = "mixnode")]
    #[schema(min_length = 1, max_length = 50, pattern = r"^[^\u0000]+$", default = "mixnode")]
    node_type: String,
    /// Where.
    #[serde(default = "us_east")]
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$", default = "us-east")]
    region: String,
}

fn mixnode() -> String {
    "mixnode".to_owned()
}

fn us_east() -> String {
    "us-east".to_owned()
}
