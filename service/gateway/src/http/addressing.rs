//! Where a name without a gateway leads: to a peer of this gateway, then by the sender's pins, then by
//! the rosters of trusted gateways (design, section 4).

use axum::{extract::State, http::StatusCode};
use chrono::{DateTime, Utc};
use fieldpost_envelope::{GatewayId, PeerAddress, PeerId};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Problem},
        extract::{Path, Query},
        fields::{self, PageQuery},
    },
    rosters,
    store::names::{Appeared, MAX_PINS, Named},
};

/// The routes of `/v1/pins`.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(list_pins)).routes(routes!(remove_pin))
}

/// Where a bare name leads.
#[derive(Debug, Serialize, ToSchema)]
pub struct PinInfo {
    /// The name without a gateway.
    #[schema(max_length = 128, example = "bob")]
    name: String,
    /// Where messages to it go.
    #[schema(
        max_length = 181,
        example = "bob@aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa"
    )]
    peer_id: String,
    /// Since when.
    pinned_at: DateTime<Utc>,
}

/// One page of pins.
#[derive(Debug, Serialize, ToSchema)]
pub struct PinList {
    /// In the order of the names.
    #[schema(max_items = 1000)]
    pins: Vec<PinInfo>,
    /// `cursor` of the next page; null at the end.
    #[schema(required)]
    next: Option<String>,
}

/// List the caller's pins.
///
/// The first message to a name without a gateway pins the name to the gateway where it was found. It
/// stays there, whoever else claims the name, until a peer of this gateway takes the name or the pin is
/// removed.
#[utoipa::path(
    get,
    path = "/v1/pins",
    operation_id = "listPins",
    tag = "peers",
    params(PageQuery),
    responses(
        (status = 200, description = "One page, in the order of the names", body = PinList, example = json!({
            "pins": [{
                "name": "bob",
                "peer_id": "bob@aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa",
                "pinned_at": "2026-11-23T09:00:00Z"
            }],
            "next": null
        })),
        (status = "4XX", description = "The list cannot be given", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_pins(
    State(gateway): State<Gateway>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<axum::Json<PinList>, ApiError> {
    let peer = caller.require()?;
    let limit = page.limit()?;
    let pins = gateway.store.pins(&peer, &page.after()?, limit).await?;
    let next = fields::next_cursor(&pins, limit, |pin| pin.name.as_str());
    let pins = pins
        .into_iter()
        .map(|pin| PinInfo {
            name: pin.name.to_string(),
            peer_id: PeerAddress::remote(pin.name, pin.gateway).to_string(),
            pinned_at: pin.pinned_at,
        })
        .collect();
    Ok(axum::Json(PinList { pins, next }))
}

/// Remove a pin.
///
/// The next message to the name looks for it anew. What was sent keeps its recipient.
#[utoipa::path(
    delete,
    path = "/v1/pins/{name}",
    operation_id = "removePin",
    tag = "peers",
    params(("name" = String, Path, description = "The name", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "bob")),
    responses(
        (status = 204, description = "The name is not pinned any more"),
        (status = "4XX", description = "The name is not pinned", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn remove_pin(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let peer = caller.require()?;
    let name: PeerId =
        name.parse().map_err(|error| ApiError::invalid("path.name", format!("name: {error}")))?;
    match gateway.store.unpin_name(&peer, &name).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::not_found(format!("you have not pinned {name}"))),
    }
}

/// Where a name leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// To a peer of this gateway.
    Here,
    /// To a peer of that one.
    At(GatewayId),
    /// Nobody who is trusted has it.
    Nowhere {
        /// Whether a gateway that is not trusted has.
        is_claimed: bool,
    },
}

/// Finds the peer that `sender` means by `name`, and pins it if it is elsewhere.
///
/// What waited for the name before goes first.
///
/// # Errors
///
/// 409 with the candidates where several trusted gateways have the name, 507 when the sender has as
/// many pins as it may.
pub async fn resolve(gateway: &Gateway, sender: &PeerId, name: &PeerId) -> Result<Found, ApiError> {
    let Lookup { found, is_pinned, is_awaited } = look_up(gateway, Some(sender), name).await?;
    let Found::At(mut home) = found else { return Ok(found) };
    if !is_pinned {
        home = gateway.store.pin_name(sender, name, home).await?.ok_or_else(|| {
            ApiError::storage_full(format!(
                "you have {MAX_PINS} names of other gateways pinned: write {name}@{home}"
            ))
        })?;
    }
    if is_awaited {
        let address = PeerAddress::remote(name.clone(), home);
        rosters::lead(gateway, &Appeared { sender: sender.clone(), address }).await?;
    }
    Ok(Found::At(home))
}

/// Finds whom `viewer` would mean by `name`, and changes nothing.
///
/// # Errors
///
/// 409 with the candidates where several trusted gateways have the name.
pub async fn find(
    gateway: &Gateway,
    viewer: Option<&PeerId>,
    name: &PeerId,
) -> Result<Found, ApiError> {
    Ok(look_up(gateway, viewer, name).await?.found)
}

/// Where `viewer` has pinned the name of `other`, if that is a name alone that nobody here has.
pub async fn pinned(
    gateway: &Gateway,
    viewer: &PeerId,
    other: &PeerAddress,
) -> Result<Option<PeerAddress>, ApiError> {
    if other.gateway.is_some() || gateway.store.peer_exists(&other.peer).await? {
        return Ok(None);
    }
    let home = gateway.store.pinned_to(viewer, &other.peer).await?;
    Ok(home.map(|home| PeerAddress::remote(other.peer.clone(), home)))
}

/// That a name leads nowhere, in words.
pub fn unknown(name: &PeerId, is_claimed: bool) -> ApiError {
    let hint = match is_claimed {
        true => {
            "a gateway that is not trusted has one: name it as peer@gateway, GET /v1/peers shows it"
        }
        false => "to wait for it, send with allow_unknown",
    };
    ApiError::not_found(format!("no peer {name} is known; {hint}"))
}

struct Lookup {
    found: Found,
    is_pinned: bool,
    is_awaited: bool,
}

async fn look_up(
    gateway: &Gateway,
    viewer: Option<&PeerId>,
    name: &PeerId,
) -> Result<Lookup, ApiError> {
    let known = gateway.store.find_name(viewer, name, gateway.rosters.trust()).await?;
    let (found, is_pinned) = match known.leads {
        Named::Here => (Found::Here, false),
        Named::Pinned(home) => (Found::At(home), true),
        Named::Listed(home) => (Found::At(home), false),
        Named::Nowhere { is_claimed } => (Found::Nowhere { is_claimed }, false),
        Named::Ambiguous(gateways) => return Err(ambiguous(name, &gateways)),
    };
    Ok(Lookup { found, is_pinned, is_awaited: known.is_awaited })
}

fn ambiguous(name: &PeerId, gateways: &[GatewayId]) -> ApiError {
    let candidates: Vec<String> =
        gateways.iter().map(|gateway| format!("{name}@{gateway}")).collect();
    ApiError::conflict(format!(
        "{name} is a peer of several gateways: name one of {}",
        candidates.join(", ")
    ))
    .with("candidates", json!(candidates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ambiguous_name_is_told_with_its_candidates() {
        let gateways = [1, 2].map(|id| GatewayId::from_bytes([id; 32]));
        let error = ambiguous(&"bob".parse().unwrap(), &gateways);
        assert_eq!(error.status(), 409);
        for gateway in gateways {
            assert!(error.detail().contains(&format!("bob@{gateway}")), "{}", error.detail());
        }
    }
}
