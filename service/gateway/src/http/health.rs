//! How the gateway is, for people and for probes.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Gateway, readiness::State as Readiness, telemetry::metrics as names};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the main listener answers without a database.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(welcome)).routes(routes!(health))
}

/// What this is and where to read on.
#[derive(Debug, Serialize, ToSchema)]
pub struct Welcome {
    /// Always `fieldpost`.
    #[schema(example = "fieldpost")]
    name: &'static str,
    /// The version of the gateway.
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// The documentation of this API.
    #[schema(example = "/docs")]
    docs: &'static str,
    /// The same for programs, OpenAPI 3.1.
    #[schema(example = "/openapi.json")]
    openapi: &'static str,
    /// Whether the gateway is well.
    #[schema(example = "/health")]
    health: &'static str,
}

/// Name, version and links.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "getWelcome",
    tag = "gateway",
    security(()),
    responses((status = 200, description = "What this is and where to read on", body = Welcome)),
)]
pub(super) async fn welcome() -> Json<Welcome> {
    Json(Welcome {
        name: "fieldpost",
        version: VERSION,
        docs: "/docs",
        openapi: "/openapi.json",
        health: "/health",
    })
}

/// How the gateway is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `healthy`, or `degraded` while it waits for its database or is about to stop.
    #[schema(example = "healthy", pattern = "^(healthy|degraded)$")]
    status: &'static str,
    /// The version of the gateway.
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// Whether the database can be used: `ready` or `away`.
    #[schema(example = "ready", pattern = "^(ready|away)$")]
    database: &'static str,
    /// Whether the gateway is about to stop and lets its sockets go.
    #[schema(example = false)]
    draining: bool,
}

/// Whether the gateway is well.
///
/// Answers 200 as long as the process does, even while its database is away: it recovers by
/// itself. Why it is degraded is told on the admin listener, at `/readyz`.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "getHealth",
    tag = "gateway",
    security(()),
    responses((status = 200, description = "The process works", body = Health)),
)]
pub(super) async fn health(State(gateway): State<Gateway>) -> Json<Health> {
    let ready = gateway.readiness.is_ready();
    let draining = gateway.draining.is_cancelled();
    Json(Health {
        status: if ready && !draining { "healthy" } else { "degraded" },
        version: VERSION,
        database: if ready { "ready" } else { "away" },
        draining,
    })
}

/// Liveness: the process answers. It must not depend on the database, or an outage of that
/// would restart every replica.
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// Whether this replica should get requests, and if not, why.
#[derive(Debug, Serialize)]
struct Verdict {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Readiness: 200, or 503 with the reason.
pub(super) async fn ready(State(gateway): State<Gateway>) -> Response {
    let (code, status, reason) = match gateway.readiness.state() {
        _ if gateway.draining.is_cancelled() => (
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            Some("the gateway is stopping".to_owned()),
        ),
        Readiness::Ready => (StatusCode::OK, "ready", None),
        Readiness::Waiting { reason } => (StatusCode::SERVICE_UNAVAILABLE, "waiting", Some(reason)),
    };
    (code, Json(Verdict { status, reason })).into_response()
}

/// The metrics as Prometheus reads them; what is not counted as it happens is measured now.
pub(super) fn metrics(gateway: &Gateway, handle: &PrometheusHandle) -> Response {
    let ready = gateway.readiness.is_ready() && !gateway.draining.is_cancelled();
    metrics::gauge!(names::READY).set(if ready { 1.0 } else { 0.0 });
    metrics::gauge!(names::BUILD_INFO, "version" => VERSION).set(1.0);
    metrics::gauge!(names::SOCKETS).set(gateway.subscribers.sockets() as f64);
    metrics::gauge!(names::CONNECTED_PEERS).set(gateway.subscribers.connected_peers() as f64);
    metrics::gauge!(names::SENDS_WAITING).set(gateway.acceptor.waiting() as f64);
    let (open, idle) = gateway.store.connections();
    metrics::gauge!(names::DATABASE_CONNECTIONS, "state" => "idle").set(f64::from(idle));
    metrics::gauge!(names::DATABASE_CONNECTIONS, "state" => "busy").set(f64::from(open - idle));
    if let Some(bytes) = names::resident_memory_bytes() {
        metrics::gauge!(names::RESIDENT_MEMORY_BYTES).set(bytes as f64);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], handle.render())
        .into_response()
}
