//! Other gateways on `/v1`: those in reach, and those that have told who is there.

use std::collections::BTreeMap;

use axum::extract::State;
use chrono::{DateTime, Utc};
use fieldpost_envelope::GatewayId;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Problem},
        extract::Query,
        fields::{self, PageQuery},
    },
    store::rosters::RemoteGateway,
};

/// The route of `/v1/gateways`.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Another gateway.
#[derive(Debug, Serialize, ToSchema)]
pub struct GatewayInfo {
    /// Its id.
    #[schema(min_length = 52, max_length = 52)]
    gateway_id: String,
    /// Whether a name without a gateway may lead there: it is in `--trust`, or nearby and `lan` is.
    trusted: bool,
    /// Whether it is in reach now and was found on the local network.
    nearby: bool,
    /// The transports that reach it now.
    transports: Vec<String>,
    /// How many peers it lists.
    #[schema(minimum = 0, maximum = 10000)]
    peers: usize,
    /// When it last told who is there, or was in reach since; null if it has told nothing.
    #[schema(required)]
    heard_at: Option<DateTime<Utc>>,
}

/// One page of gateways.
#[derive(Debug, Serialize, ToSchema)]
pub struct GatewayList {
    /// In the order of their ids.
    #[schema(max_items = 1000)]
    gateways: Vec<GatewayInfo>,
    /// `cursor` of the next page; null at the end.
    #[schema(required)]
    next: Option<String>,
}

/// List other gateways: those in reach, and those that have told who is there.
#[utoipa::path(
    get,
    path = "/v1/gateways",
    operation_id = "listGateways",
    tag = "gateway",
    params(PageQuery),
    responses(
        (status = 200, description = "One page, in the order of the ids", body = GatewayList, example = json!({
            "gateways": [{
                "gateway_id": "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa",
                "trusted": true, "nearby": true, "transports": ["mesh"], "peers": 12,
                "heard_at": "2026-11-23T09:00:00Z"
            }],
            "next": null
        })),
        (status = "4XX", description = "The list cannot be given", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<axum::Json<GatewayList>, ApiError> {
    caller.viewer()?;
    let (after, limit) = (page.after()?, page.limit()?);
    let mut gateways: Vec<GatewayInfo> = known(&gateway)
        .await?
        .into_iter()
        .skip_while(|(id, _)| *id <= after)
        .map(|(_, one)| one)
        .collect();
    gateways.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let next = fields::next_cursor(&gateways, limit, |one| &one.gateway_id);
    Ok(axum::Json(GatewayList { gateways, next }))
}

/// All of them by id; bounded by what is kept and by what transports reach.
async fn known(gateway: &Gateway) -> Result<BTreeMap<String, GatewayInfo>, ApiError> {
    let mut reached = gateway.store.transports_to(None).await?;
    let mut known: BTreeMap<String, GatewayInfo> = gateway
        .store
        .remote_gateways()
        .await?
        .into_iter()
        .map(|one| {
            let id = one.gateway.to_string();
            let transports = reached.remove(&id).unwrap_or_default();
            let info = GatewayInfo::of(gateway, &one, transports);
            (id, info)
        })
        .collect();
    for (target, transports) in reached {
        // Phones and broadcasts are reached, too.
        let Ok(id) = target.parse::<GatewayId>() else { continue };
        let info = GatewayInfo {
            gateway_id: target.clone(),
            trusted: gateway.rosters.trust().gateways.contains(&id),
            nearby: false,
            transports,
            peers: 0,
            heard_at: None,
        };
        known.insert(target, info);
    }
    Ok(known)
}

impl GatewayInfo {
    fn of(gateway: &Gateway, one: &RemoteGateway, transports: Vec<String>) -> Self {
        Self {
            gateway_id: one.gateway.to_string(),
            trusted: one.is_trusted(gateway.rosters.trust()),
            nearby: one.is_nearby && !transports.is_empty(),
            transports,
            peers: one.peers,
            heard_at: Some(one.heard_at),
        }
    }
}
