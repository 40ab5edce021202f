//! `/api/betanet`: the original's documented routes, and the five that its clients call.
//!
//! The HTX transport is not part of this version, and nothing here pretends that it is: no relay
//! runs, health says `unavailable`, and what clients send reaches peers of this gateway alone, as
//! `local`, with no anonymity.

mod clients;
mod nodes;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway,
    http::{
        bitchat,
        caller::Caller,
        error::{ApiError, Detail},
        extract::LenientJson,
        fields::{self, mirrored_time},
    },
};

/// The routes of `/api/betanet`.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(health))
        .routes(routes!(status))
        .routes(routes!(deploy))
        .merge(nodes::routes())
        .merge(clients::routes())
}

const NOT_BUILT: &str = "this version has no HTX transport: messages reach peers of this gateway \
    only, and no relay can run";

/// Whether the mixnet can be used.
#[utoipa::path(
    get,
    path = "/api/betanet/health",
    operation_id = "betanetGetHealth",
    tag = "betanet",
    responses(
        (status = 200, description = "Whether it can", body = BetanetHealth, example = json!({
            "status": "unavailable",
            "message": "this version has no HTX transport: messages reach peers of this gateway only, and no relay can run",
            "server_url": null, "server_reachable": false
        })),
        (status = "4XX", description = "It cannot be told", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn health(caller: Caller) -> Result<axum::Json<BetanetHealth>, ApiError> {
    bitchat::viewer(&caller)?;
    Ok(axum::Json(BetanetHealth {
        status: "unavailable",
        message: NOT_BUILT,
        server_url: None,
        server_reachable: false,
    }))
}

/// The mixnet in figures.
#[utoipa::path(
    get,
    path = "/api/betanet/status",
    operation_id = "betanetGetStatus",
    tag = "betanet",
    responses(
        (status = 200, description = "The figures", body = BetanetStatus, example = json!({
            "status": "unavailable", "health": "unavailable",
            "nodes": {"total": 2, "active": 0, "inactive": 2},
            "network": {"latency": 0.0, "bandwidth": 0.0, "throughput": 0.0, "packetsProcessed": 0},
            "mixnodes": [], "lastUpdated": "2026-11-23T09:00:00.000000+00:00"
        })),
        (status = "4XX", description = "The figures cannot be shown", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn status(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<BetanetStatus>, ApiError> {
    bitchat::viewer(&caller)?;
    let total = gateway.store.node_count().await?;
    Ok(axum::Json(BetanetStatus {
        status: "unavailable",
        health: "unavailable",
        nodes: BetanetNodeCounts { total, active: 0, inactive: total },
        network: BetanetNetwork::default(),
        mixnodes: Vec::new(),
        last_updated: mirrored_time(gateway.clock.now()),
    }))
}

/// Start a relay: not possible in this version.
#[utoipa::path(
    post,
    path = "/api/betanet/deploy",
    operation_id = "betanetDeployNode",
    tag = "betanet",
    request_body = BetanetDeploy,
    responses(
        (status = "4XX", description = "No relay was started", body = Detail, example = json!({
            "detail": "this version has no HTX transport: messages reach peers of this gateway only, and no relay can run"
        })),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn deploy(
    caller: Caller,
    LenientJson(request): LenientJson<BetanetDeploy>,
) -> Result<(), ApiError> {
    bitchat::viewer(&caller)?;
    fields::text("node_type", request.node_type, 1, 50)?;
    fields::text("region", request.region, 0, 50)?;
    Err(ApiError::conflict(NOT_BUILT))
}

/// Whether the mixnet can be used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetHealth {
    /// `unavailable` while this gateway has no HTX transport.
    #[schema(pattern = "^(?:healthy|degraded|unavailable)$")]
    status: &'static str,
    /// In words.
    message: &'static str,
    /// A server beside the gateway; there is none.
    #[schema(required)]
    server_url: Option<String>,
    /// Whether that can be reached.
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
    /// The relays that run.
    mixnodes: Vec<BetanetMixnode>,
    /// When this was measured.
    #[serde(rename = "lastUpdated")]
    #[schema(format = DateTime)]
    last_updated: String,
}

/// Relays of the inventory.
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
    /// Of one packet on average, in milliseconds; 0 while there was none.
    latency: f64,
    /// In Mbit/s.
    bandwidth: f64,
    /// In packets a second.
    throughput: f64,
    /// Since the gateway started.
    #[serde(rename = "packetsProcessed")]
    #[schema(minimum = 0)]
    packets_processed: u64,
}

/// A relay that runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetMixnode {
    /// Its id.
    id: String,
    /// `active`, `inactive` or `degraded`.
    status: String,
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
