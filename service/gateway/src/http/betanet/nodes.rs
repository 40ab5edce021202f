//! `/api/betanet/nodes`: what operators say of relays to come, and the nodes of the active document.
//!
//! A node of the document is named by the first 16 bytes of its id, as a UUID. It is in the directory and
//! not in the inventory, so it is neither changed nor deleted here.

use axum::{extract::State, http::StatusCode};
use fieldpost_envelope::Timestamp;
use fieldpost_transport::htx::directory::{Descriptor, EpochClock, RelayId};
use serde::{Deserialize, Serialize};
use utoipa::{
    ToSchema,
    openapi::{Ref, RefOr, Schema, schema::AnyOfBuilder},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::{Builder, Uuid};

use super::relays;
use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Detail},
        extract::{LenientJson, Path},
        fields::{self, mirrored_time},
    },
    store::betanet::{MAX_NODES, NewNode, NodeChange, NodeRecord},
};

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, update, delete))
}

/// List the nodes of the active document, then the inventory of relays to come.
#[utoipa::path(
    get,
    path = "/api/betanet/nodes",
    operation_id = "betanetListNodes",
    tag = "betanet",
    responses(
        (status = 200, description = "The document's nodes, at most 1024, and at most 1000 of the inventory, the oldest first", body = [BetanetNode]),
        (status = "4XX", description = "The list cannot be given", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<Vec<BetanetNode>>, ApiError> {
    caller.viewer()?;
    let planned = gateway.store.nodes().await?;
    let all = running(&gateway).into_iter().chain(planned.into_iter().map(BetanetNode::from));
    Ok(axum::Json(all.collect()))
}

/// Enter a relay in the inventory.
///
/// It starts nothing: a relay is started by its operator, with `--relay`.
#[utoipa::path(
    post,
    path = "/api/betanet/nodes",
    operation_id = "betanetCreateNode",
    tag = "betanet",
    request_body = BetanetCreateNode,
    responses(
        (status = 201, description = "Entered", body = BetanetNode),
        (status = "4XX", description = "The relay cannot be entered", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn create(
    State(gateway): State<Gateway>,
    caller: Caller,
    LenientJson(request): LenientJson<BetanetCreateNode>,
) -> Result<(StatusCode, axum::Json<BetanetNode>), ApiError> {
    caller.viewer()?;
    let node = gateway.store.create_node(&request.into_node()?).await?.ok_or_else(|| {
        ApiError::conflict(format!("the inventory has {MAX_NODES} nodes: delete some"))
    })?;
    Ok((StatusCode::CREATED, axum::Json(node.into())))
}

/// Show a relay of the inventory.
#[utoipa::path(
    get,
    path = "/api/betanet/nodes/{node_id}",
    operation_id = "betanetGetNode",
    tag = "betanet",
    params(("node_id" = Uuid, Path, description = "The node", example = "7c9e6679-7425-40de-944b-e07fc1f90ae7")),
    responses(
        (status = 200, description = "The node", body = BetanetNode),
        (status = "4XX", description = "There is no such node", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn show(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(node_id): Path<String>,
) -> Result<axum::Json<BetanetNode>, ApiError> {
    caller.viewer()?;
    let id = known_node(&node_id)?;
    if let Some(node) = running(&gateway).into_iter().find(|node| node.id == id) {
        return Ok(axum::Json(node));
    }
    let node = gateway.store.node(id).await?;
    node.map(|node| axum::Json(node.into())).ok_or_else(|| no_such_node(&node_id))
}

/// Change what is said of a relay.
///
/// What is not given stays.
#[utoipa::path(
    put,
    path = "/api/betanet/nodes/{node_id}",
    operation_id = "betanetUpdateNode",
    tag = "betanet",
    params(("node_id" = Uuid, Path, description = "The node", example = "7c9e6679-7425-40de-944b-e07fc1f90ae7")),
    request_body = BetanetUpdateNode,
    responses(
        (status = 200, description = "The node as it is now", body = BetanetNode),
        (status = "4XX", description = "The node cannot be changed", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn update(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(node_id): Path<String>,
    LenientJson(request): LenientJson<BetanetUpdateNode>,
) -> Result<axum::Json<BetanetNode>, ApiError> {
    caller.viewer()?;
    let (id, change) = (known_node(&node_id)?, request.into_change()?);
    refuse_running(&gateway, id)?;
    let node = gateway.store.update_node(id, &change).await?;
    node.map(|node| axum::Json(node.into())).ok_or_else(|| no_such_node(&node_id))
}

/// Take a relay out of the inventory.
#[utoipa::path(
    delete,
    path = "/api/betanet/nodes/{node_id}",
    operation_id = "betanetDeleteNode",
    tag = "betanet",
    params(("node_id" = Uuid, Path, description = "The node", example = "7c9e6679-7425-40de-944b-e07fc1f90ae7")),
    responses(
        (status = 204, description = "It is gone"),
        (status = "4XX", description = "There is no such node", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn delete(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(node_id): Path<String>,
) -> Result<StatusCode, ApiError> {
    caller.viewer()?;
    let id = known_node(&node_id)?;
    refuse_running(&gateway, id)?;
    match gateway.store.delete_node(id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(no_such_node(&node_id)),
    }
}

/// The nodes of the active document.
fn running(gateway: &Gateway) -> Vec<BetanetNode> {
    let (Some(active), Some(figures)) = (gateway.mixnet.active(), gateway.mixnet.figures()) else {
        return Vec::new();
    };
    let epochs = gateway.mixnet.epochs().unwrap_or(EpochClock::HOUR);
    let own = gateway.mixnet.id();
    let time = |time: Timestamp| mirrored_time(time.into());
    let document = active.document();
    let node = |descriptor: &Descriptor| {
        let id = descriptor.id();
        let is_own = Some(id) == own;
        let own = |figure: u64| if is_own { figure } else { 0 };
        let round_trip = figures.round_trips.get(&id);
        let has_keys = descriptor.keys_of(figures.epoch).is_some();
        BetanetNode {
            id: uuid_of(&id),
            node_type: if descriptor.relays { "mixnode" } else { "gateway" }.to_owned(),
            region: relays::country(descriptor),
            name: Some(descriptor.operator.clone()),
            status: if has_keys { "active" } else { "inactive" }.to_owned(),
            packets_processed: own(figures.packets_forwarded + figures.packets_delivered),
            packets_forwarded: own(figures.packets_forwarded),
            packets_dropped: own(figures.packets_dropped + figures.packets_refused),
            avg_latency_ms: round_trip.map_or(0.0, |trip| trip.as_secs_f64() * 1e3),
            created_at: time(document.frozen_at),
            last_heartbeat: Some(time(epochs.start(descriptor.epoch))),
        }
    };
    document.relays().iter().map(|relay| node(relay.descriptor())).collect()
}

fn uuid_of(relay: &RelayId) -> Uuid {
    let (first, _) = relay.as_bytes().split_first_chunk().unwrap_or((&[0; 16], &[]));
    Builder::from_custom_bytes(*first).into_uuid()
}

fn refuse_running(gateway: &Gateway, id: Uuid) -> Result<(), ApiError> {
    match running(gateway).iter().any(|node| node.id == id) {
        true => Err(ApiError::conflict(
            "the node is in the relay directory, not in the inventory: its operator stops it",
        )),
        false => Ok(()),
    }
}

fn known_node(text: &str) -> Result<Uuid, ApiError> {
    text.parse().map_err(|_| no_such_node(text))
}

fn no_such_node(text: &str) -> ApiError {
    ApiError::not_found(format!("there is no node {text:?}"))
}

/// A relay to be entered.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"node_type": "mixnode", "region": "us-east", "name": "Attic"}))]
pub(super) struct BetanetCreateNode {
    /// `mixnode`, `gateway` or `client`.
    #[schema(pattern = "^(?:mixnode|gateway|client)$")]
    node_type: String,
    /// Where it is to stand.
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$")]
    region: Option<String>,
    /// What people call it.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    name: Option<String>,
}

impl BetanetCreateNode {
    fn into_node(self) -> Result<NewNode, ApiError> {
        if !matches!(self.node_type.as_str(), "mixnode" | "gateway" | "client") {
            return Err(ApiError::bad_request("node_type: expected mixnode, gateway or client"));
        }
        Ok(NewNode {
            node_type: self.node_type,
            region: region(self.region)?,
            name: name(self.name)?,
        })
    }
}

/// What is to change about a relay; at least one of the three.
#[derive(Debug, Deserialize)]
pub(super) struct BetanetUpdateNode {
    name: Option<String>,
    region: Option<String>,
    status: Option<String>,
}

impl utoipa::PartialSchema for BetanetUpdateNode {
    fn schema() -> RefOr<Schema> {
        AnyOfBuilder::new()
            .item(Ref::from_schema_name(BetanetRename::name()))
            .item(Ref::from_schema_name(BetanetMove::name()))
            .item(Ref::from_schema_name(BetanetMark::name()))
            .description(Some("What is to change about a relay; at least one of the three"))
            .into()
    }
}

impl ToSchema for BetanetUpdateNode {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push(named::<BetanetRename>());
        schemas.push(named::<BetanetMove>());
        schemas.push(named::<BetanetMark>());
    }
}

fn named<T: ToSchema>() -> (String, RefOr<Schema>) {
    (T::name().into_owned(), T::schema())
}

/// Another name, and whatever else.
#[derive(ToSchema)]
#[schema(example = json!({"name": "Attic"}))]
#[expect(dead_code, reason = "documents one way to fill BetanetUpdateNode")]
struct BetanetRename {
    /// What people call it.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    name: String,
    /// Where it is to stand.
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$")]
    region: Option<String>,
    /// `active`, `inactive` or `maintenance`, for people to read.
    #[schema(pattern = "^(?:active|inactive|maintenance)$")]
    status: Option<String>,
}

/// Another region, and whatever else.
#[derive(ToSchema)]
#[schema(example = json!({"region": "us-east"}))]
#[expect(dead_code, reason = "documents one way to fill BetanetUpdateNode")]
struct BetanetMove {
    /// What people call it.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    name: Option<String>,
    /// Where it is to stand.
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$")]
    region: String,
    /// `active`, `inactive` or `maintenance`, for people to read.
    #[schema(pattern = "^(?:active|inactive|maintenance)$")]
    status: Option<String>,
}

/// Another status, and whatever else.
#[derive(ToSchema)]
#[schema(example = json!({"status": "maintenance"}))]
#[expect(dead_code, reason = "documents one way to fill BetanetUpdateNode")]
struct BetanetMark {
    /// What people call it.
    #[schema(max_length = 255, pattern = r"^[^\u0000]*$")]
    name: Option<String>,
    /// Where it is to stand.
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$")]
    region: Option<String>,
    /// `active`, `inactive` or `maintenance`, for people to read.
    #[schema(pattern = "^(?:active|inactive|maintenance)$")]
    status: String,
}

impl BetanetUpdateNode {
    fn into_change(self) -> Result<NodeChange, ApiError> {
        if self.name.is_none() && self.region.is_none() && self.status.is_none() {
            return Err(ApiError::bad_request("nothing to change: give name, region or status"));
        }
        if let Some(status) = &self.status
            && !matches!(status.as_str(), "active" | "inactive" | "maintenance")
        {
            return Err(ApiError::invalid(
                "body.status",
                "status: expected active, inactive or maintenance",
            ));
        }
        Ok(NodeChange { region: region(self.region)?, name: name(self.name)?, status: self.status })
    }
}

fn region(text: Option<String>) -> Result<Option<String>, ApiError> {
    text.map(|text| fields::text("region", text, 0, 50)).transpose()
}

fn name(text: Option<String>) -> Result<Option<String>, ApiError> {
    text.map(|text| fields::text("name", text, 0, 255)).transpose()
}

/// A relay of the inventory, or a node of the active document. Packets are those that this gateway
/// counted, so they are 0 but for its own node.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "7c9e6679-7425-40de-944b-e07fc1f90ae7", "node_type": "mixnode", "region": "us-east",
    "name": "Attic", "status": "inactive", "packets_processed": 0, "packets_forwarded": 0,
    "packets_dropped": 0, "avg_latency_ms": 0.0,
    "created_at": "2026-11-23T09:00:00.000000+00:00", "last_heartbeat": null
}))]
pub(super) struct BetanetNode {
    /// Its id.
    id: Uuid,
    /// `mixnode`, `gateway` or `client`.
    node_type: String,
    /// Where it is to stand.
    #[schema(required)]
    region: Option<String>,
    /// What people call it.
    #[schema(required)]
    name: Option<String>,
    /// In the inventory, as the operator set it; of the document, `active` with keys for this epoch.
    status: String,
    /// Packets it took.
    #[schema(minimum = 0)]
    packets_processed: u64,
    /// Packets it passed on.
    #[schema(minimum = 0)]
    packets_forwarded: u64,
    /// Packets it dropped.
    #[schema(minimum = 0)]
    packets_dropped: u64,
    /// How long a ping to it and back took last, in milliseconds; 0 where this gateway has no link to
    /// it, or has not pinged it yet.
    #[schema(minimum = 0)]
    avg_latency_ms: f64,
    /// When it was entered, or its document was made.
    #[schema(format = DateTime)]
    created_at: String,
    /// Since when its newest keys in the document are good; null for the inventory.
    #[schema(required, format = DateTime)]
    last_heartbeat: Option<String>,
}

impl From<NodeRecord> for BetanetNode {
    fn from(node: NodeRecord) -> Self {
        Self {
            id: node.id,
            node_type: node.node_type,
            region: node.region,
            name: node.name,
            status: node.status,
            packets_processed: 0,
            packets_forwarded: 0,
            packets_dropped: 0,
            avg_latency_ms: 0.0,
            created_at: mirrored_time(node.created_at),
            last_heartbeat: None,
        }
    }
}
