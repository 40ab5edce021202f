//! Statistics on `/api/bitchat`.

use axum::extract::State;
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
    OpenApiRouter::new().routes(routes!(stats))
}

/// Count peers, sockets and messages.
#[utoipa::path(
    get,
    path = "/api/bitchat/stats",
    operation_id = "bitchatGetStats",
    tag = "bitchat",
    responses(
        (status = 200, description = "The numbers", body = BitchatStats, example = json!({
            "total_peers": 12, "online_peers": 3, "active_connections": 4,
            "total_messages": 250, "messages_24h": 40, "status": "operational"
        })),
        (status = "4XX", description = "The numbers cannot be shown", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn stats(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<BitchatStats>, ApiError> {
    caller.viewer()?;
    let peers = gateway.store.peer_stats().await?;
    let (total_messages, messages_24h) = gateway.store.messages_kept(gateway.clock.now()).await?;
    Ok(axum::Json(BitchatStats {
        total_peers: peers.total,
        online_peers: peers.online,
        active_connections: gateway.subscribers.sockets(),
        total_messages,
        messages_24h,
        status: "operational",
    }))
}

/// The gateway's numbers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatStats {
    /// Registered peers.
    #[schema(minimum = 0)]
    total_peers: i64,
    /// Those of them that are online.
    #[schema(minimum = 0)]
    online_peers: i64,
    /// Open sockets on this replica.
    #[schema(minimum = 0)]
    active_connections: usize,
    /// Messages that are kept.
    #[schema(minimum = 0)]
    total_messages: i64,
    /// Those of them that came in the last 24 hours.
    #[schema(minimum = 0)]
    messages_24h: i64,
    /// `operational`; a gateway that cannot count answers 503.
    #[schema(pattern = "^operational$")]
    status: &'static str,
}
