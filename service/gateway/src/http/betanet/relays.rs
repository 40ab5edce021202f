//! The relays of the active document: for clients that build packets, and for people who look.

use axum::extract::State;
use data_encoding::{BASE64, HEXLOWER};
use fieldpost_transport::htx::directory::{Descriptor, RelayId};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Detail},
    },
};

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(relays)).routes(routes!(document))
}

/// List relays: those of the relay directory's active document, without this gateway's own.
#[utoipa::path(
    get,
    path = "/api/betanet/relays",
    operation_id = "betanetListRelays",
    tag = "betanet",
    responses(
        (status = 200, description = "The relays with keys for this epoch", body = [BetanetRelay], example = json!([{
            "node_id": "6f1c0a52c1a54ae9bd0d9f8c1f7a0a6e6f1c0a52c1a54ae9bd0d9f8c1f7a0a6e",
            "operator": "attic", "addresses": ["127.0.0.1:8443"], "country": null, "capacity": 8000,
            "epoch": 495372, "sphinx_key": "0f5c9b1f6c0e4d5d8f1b8b1c9f1d5f7a0f5c9b1f6c0e4d5d8f1b8b1c9f1d5f7a",
            "descriptor": "sgABWCA="
        }])),
        (status = "4XX", description = "The list cannot be given", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn relays(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<Vec<BetanetRelay>>, ApiError> {
    caller.viewer()?;
    let (Some(active), Some(figures)) = (gateway.mixnet.active(), gateway.mixnet.figures()) else {
        return Ok(axum::Json(Vec::new()));
    };
    let own = gateway.mixnet.id();
    let relays = active.document().relays().iter().filter_map(|relay| {
        let descriptor = relay.descriptor();
        let keys = descriptor.keys_of(figures.epoch)?;
        let id = descriptor.id();
        (descriptor.relays && Some(id) != own).then(|| BetanetRelay {
            node_id: id.to_string(),
            operator: descriptor.operator.clone(),
            addresses: descriptor.addresses.iter().map(ToString::to_string).collect(),
            country: country(descriptor),
            capacity: descriptor.capacity,
            epoch: keys.epoch,
            sphinx_key: HEXLOWER.encode(&keys.sphinx),
            descriptor: BASE64.encode(relay.signed().as_bytes()),
        })
    });
    Ok(axum::Json(relays.collect()))
}

/// Show the relay directory's active document.
///
/// All that is needed to build packets, signed by the directory: whoever wants to believe it verifies it
/// by the network's `authority.json`, which no gateway is asked for.
#[utoipa::path(
    get,
    path = "/api/betanet/directory",
    operation_id = "betanetGetDirectory",
    tag = "betanet",
    responses(
        (status = 200, description = "The document", body = BetanetDirectory, example = json!({
            "network": "6f1c0a52c1a54ae9bd0d9f8c1f7a0a6e6f1c0a52c1a54ae9bd0d9f8c1f7a0a6e",
            "number": 4, "epoch": 495372, "epoch_seconds": 3600, "current_epoch": 495372,
            "document": "glgqqQBYIA=="
        })),
        (status = "4XX", description = "There is none", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn document(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<BetanetDirectory>, ApiError> {
    caller.viewer()?;
    let none = || {
        let reason = gateway.mixnet.reason();
        ApiError::not_found(reason.unwrap_or_else(|| {
            "no document of the relay directory has come yet: see that a signer runs".to_owned()
        }))
    };
    let active = gateway.mixnet.active().ok_or_else(none)?;
    let epochs = gateway.mixnet.epochs().ok_or_else(none)?;
    let document = active.document();
    Ok(axum::Json(BetanetDirectory {
        network: HEXLOWER.encode(&document.network),
        number: document.number,
        epoch: document.epoch,
        epoch_seconds: epochs.length().as_secs(),
        current_epoch: epochs.epoch_at(gateway.clock.now().into()),
        document: BASE64.encode(&active.to_bytes()),
    }))
}

/// The relays of the active document, as status and inventory show them.
pub(super) fn mixnodes(gateway: &Gateway) -> Vec<BetanetMixnode> {
    let (Some(active), Some(figures)) = (gateway.mixnet.active(), gateway.mixnet.figures()) else {
        return Vec::new();
    };
    let own = gateway.mixnet.id();
    let uptime = gateway.clock.instant().saturating_duration_since(gateway.started_at);
    let relaying = active.document().relays().iter().map(|relay| relay.descriptor());
    relaying
        .filter(|descriptor| descriptor.relays)
        .map(|descriptor| {
            let id: RelayId = descriptor.id();
            let is_own = Some(id) == own;
            let has_keys = descriptor.keys_of(figures.epoch).is_some();
            BetanetMixnode {
                id: id.to_string(),
                status: if has_keys { "active" } else { "inactive" },
                address: descriptor.addresses.first().map(ToString::to_string),
                operator: descriptor.operator.clone(),
                packets_processed: is_own
                    .then_some(figures.packets_forwarded + figures.packets_delivered),
                uptime: is_own.then_some(uptime.as_secs_f64()),
            }
        })
        .collect()
}

pub(super) fn country(descriptor: &Descriptor) -> Option<String> {
    descriptor.country.map(|letters| String::from_utf8_lossy(&letters).into_owned())
}

/// A relay that runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetRelay {
    /// Its id, by which routes name it.
    node_id: String,
    /// Whose it is.
    operator: String,
    /// Where it listens.
    addresses: Vec<String>,
    /// Where it stands, two letters, as its operator says.
    #[schema(required)]
    country: Option<String>,
    /// How many packets a second it wants to relay.
    capacity: u32,
    /// The epoch of the key.
    #[schema(minimum = 0)]
    epoch: u64,
    /// What packets are made for in this epoch, in hex.
    sphinx_key: String,
    /// All that it says of itself, signed, in base64.
    descriptor: String,
}

/// The relay directory's active document.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetDirectory {
    /// The id of the directory's authority.
    network: String,
    /// The document's place in the chain.
    #[schema(minimum = 0)]
    number: u64,
    /// The epoch that it is for.
    #[schema(minimum = 0)]
    epoch: u64,
    /// How long an epoch is.
    #[schema(minimum = 1, maximum = 3600)]
    epoch_seconds: u64,
    /// The epoch that it is now; a document goes on being used while no newer one comes.
    #[schema(minimum = 0)]
    current_epoch: u64,
    /// The signed document in base64.
    document: String,
}

/// A relay of the active document.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetMixnode {
    /// Its id.
    id: String,
    /// `active` with keys for this epoch, else `inactive`.
    #[schema(pattern = "^(?:active|inactive)$")]
    status: &'static str,
    /// Where it listens.
    #[schema(required)]
    address: Option<String>,
    /// Whose it is.
    operator: String,
    /// Packets that it took since it started; null but for this gateway's own.
    #[serde(rename = "packetsProcessed")]
    #[schema(required, minimum = 0)]
    packets_processed: Option<u64>,
    /// Seconds since it started; null but for this gateway's own.
    #[schema(required, minimum = 0)]
    uptime: Option<f64>,
}

impl BetanetMixnode {
    pub(super) fn is_active(&self) -> bool {
        self.status == "active"
    }
}
