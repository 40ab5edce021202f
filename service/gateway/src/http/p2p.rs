//! `/api/p2p`: the gateway in figures, under the names of the original's P2P layer.

use std::{collections::BTreeMap, sync::Arc};

use axum::extract::State;
use fieldpost_transport::Transport;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway,
    http::{
        betanet,
        caller::Caller,
        error::{ApiError, Detail},
        fields::mirrored_time,
        status::reached as reached_by,
    },
};

/// The routes of `/api/p2p`.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(stats)).routes(routes!(status))
}

/// Peers, messages and transports in figures.
#[utoipa::path(
    get,
    path = "/api/p2p/stats",
    operation_id = "p2pGetStats",
    tag = "p2p",
    responses(
        (status = 200, description = "The figures", body = P2pStats, example = json!({
            "connectedPeers": 3, "messagesSent": 40, "messagesReceived": 42,
            "protocols": {"ble": 0, "htx": 0, "mesh": 0}, "networkHealth": 1.0,
            "bitchat": {"bleConnections": 0, "offlinePeers": 9, "meshTopology": null},
            "betanet": {"htxCircuits": 0, "onlineNodes": 0, "throughput": 0.0},
            "unified": {
                "totalPeers": 12, "protocolDistribution": {"ble": 0, "htx": 0, "mesh": 0},
                "messageQueue": 5, "activeRoutes": 0
            }
        })),
        (status = "4XX", description = "The figures cannot be shown", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn stats(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<P2pStats>, ApiError> {
    caller.viewer()?;
    let peers = gateway.store.peer_stats().await?;
    let traffic = gateway.store.traffic().await?;
    let protocols = P2pProtocols::of(&gateway);
    Ok(axum::Json(P2pStats {
        connected_peers: gateway.subscribers.connected_peers(),
        messages_sent: traffic.sent,
        messages_received: traffic.received,
        protocols,
        network_health: network_health(&gateway),
        bitchat: P2pBitchat {
            ble_connections: protocols.ble,
            offline_peers: peers.total - peers.online,
            mesh_topology: (protocols.ble > 0).then_some("mesh"),
        },
        betanet: P2pBetanet {
            htx_circuits: protocols.htx,
            online_nodes: gateway.mixnet.figures().map_or(0, |figures| figures.relays),
            throughput: betanet::throughput(&gateway),
        },
        unified: P2pUnified {
            total_peers: peers.total,
            protocol_distribution: protocols,
            message_queue: traffic.waiting_here + traffic.waiting_elsewhere,
            active_routes: reached(&gateway, |_| true),
        },
    }))
}

/// The state of the gateway as a P2P node.
#[utoipa::path(
    get,
    path = "/api/p2p/status",
    operation_id = "p2pGetStatus",
    tag = "p2p",
    responses(
        (status = 200, description = "The state", body = P2pStatus, example = json!({
            "node_id": "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa",
            "device_name": "fieldpost 0.1.0", "running": true, "uptime_seconds": 86400.5,
            "active_transports": ["mesh"], "peer_count": 12, "online_peer_count": 3,
            "device_capabilities": {"mesh": ["unicast", "broadcast"]},
            "mobile_context": {
                "platform": "linux", "battery_level": null, "is_charging": null,
                "network_type": null, "is_foreground": null, "thermal_state": null
            },
            "metrics": {
                "messages_sent": 40, "messages_received": 42,
                "transport_messages": {"mesh": {"sent": 4, "received": 6}},
                "system_start_time": "2026-11-22T09:00:00.000000+00:00"
            },
            "pending_acks": 2, "message_cache_size": 0, "offline_store_size": 3
        })),
        (status = "4XX", description = "The state cannot be shown", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn status(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<P2pStatus>, ApiError> {
    caller.viewer()?;
    let peers = gateway.store.peer_stats().await?;
    let traffic = gateway.store.traffic().await?;
    let uptime = gateway.clock.instant().saturating_duration_since(gateway.started_at);
    Ok(axum::Json(P2pStatus {
        node_id: gateway.store.identity()?.gateway_id.to_string(),
        device_name: concat!("fieldpost ", env!("CARGO_PKG_VERSION")),
        running: !gateway.draining.is_cancelled(),
        uptime_seconds: uptime.as_secs_f64(),
        active_transports: gateway.transports.iter().map(|one| one.name()).collect(),
        peer_count: peers.total,
        online_peer_count: peers.online,
        device_capabilities: capabilities(&gateway),
        mobile_context: P2pMobileContext::of_a_server(),
        metrics: P2pMetrics {
            messages_sent: traffic.sent,
            messages_received: traffic.received,
            transport_messages: transport_messages(&gateway),
            system_start_time: mirrored_time(
                gateway.clock.now() - chrono::TimeDelta::from_std(uptime).unwrap_or_default(),
            ),
        },
        pending_acks: traffic.waiting_elsewhere,
        message_cache_size: gateway.acceptor.waiting(),
        offline_store_size: traffic.waiting_here,
    }))
}

/// How many gateways and phones the transports that are `wanted` reach.
fn reached(gateway: &Gateway, wanted: impl Fn(&str) -> bool) -> usize {
    gateway
        .transports
        .iter()
        .filter(|transport| wanted(transport.name()))
        .map(|transport| reached_by(transport.as_ref()))
        .sum()
}

/// The mean quality of the transports that run; 1 where none does, for local delivery needs none.
fn network_health(gateway: &Gateway) -> f64 {
    let qualities: Vec<f64> =
        gateway.transports.iter().map(|one| one.status().connection_quality).collect();
    match qualities.len() {
        0 => 1.0,
        count => qualities.iter().sum::<f64>() / count as f64,
    }
}

fn capabilities(gateway: &Gateway) -> BTreeMap<&'static str, Vec<&'static str>> {
    let words = |transport: &Arc<dyn Transport>| {
        let can = transport.capabilities();
        [
            (can.supports_unicast, "unicast"),
            (can.supports_broadcast, "broadcast"),
            (can.supports_multicast, "multicast"),
        ]
        .into_iter()
        .filter_map(|(can, word)| can.then_some(word))
        .collect()
    };
    gateway.transports.iter().map(|transport| (transport.name(), words(transport))).collect()
}

fn transport_messages(gateway: &Gateway) -> BTreeMap<&'static str, P2pTransportMessages> {
    let count = |transport: &Arc<dyn Transport>| {
        let status = transport.status();
        P2pTransportMessages { sent: status.envelopes_sent, received: status.envelopes_received }
    };
    gateway.transports.iter().map(|transport| (transport.name(), count(transport))).collect()
}

/// Peers, messages and transports in figures: first as the original's route, then as its page.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct P2pStats {
    /// Peers with an open socket on this replica.
    #[serde(rename = "connectedPeers")]
    #[schema(minimum = 0)]
    connected_peers: usize,
    /// Messages accepted from peers of this gateway.
    #[serde(rename = "messagesSent")]
    #[schema(minimum = 0)]
    messages_sent: i64,
    /// Deliveries accepted for peers of this gateway.
    #[serde(rename = "messagesReceived")]
    #[schema(minimum = 0)]
    messages_received: i64,
    protocols: P2pProtocols,
    /// From 0 to 1: the mean quality of the transports that run; 1 where none does.
    #[serde(rename = "networkHealth")]
    #[schema(minimum = 0, maximum = 1)]
    network_health: f64,
    bitchat: P2pBitchat,
    betanet: P2pBetanet,
    unified: P2pUnified,
}

/// Gateways and phones that each transport reaches now; 0 for one that does not run.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(super) struct P2pProtocols {
    #[schema(minimum = 0)]
    ble: usize,
    #[schema(minimum = 0)]
    htx: usize,
    #[schema(minimum = 0)]
    mesh: usize,
}

impl P2pProtocols {
    fn of(gateway: &Gateway) -> Self {
        let by = |name: &'static str| reached(gateway, |other| other == name);
        Self { ble: by("ble"), htx: by("htx"), mesh: by("mesh") }
    }
}

/// The Bluetooth mesh.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct P2pBitchat {
    /// Gateways and phones in reach.
    #[serde(rename = "bleConnections")]
    #[schema(minimum = 0)]
    ble_connections: usize,
    /// Peers of this gateway that are offline.
    #[serde(rename = "offlinePeers")]
    #[schema(minimum = 0)]
    offline_peers: i64,
    /// `mesh`; null while nobody is in reach.
    #[serde(rename = "meshTopology")]
    #[schema(required, pattern = "^mesh$")]
    mesh_topology: Option<&'static str>,
}

/// The mixnet.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct P2pBetanet {
    /// Gateways in reach.
    #[serde(rename = "htxCircuits")]
    #[schema(minimum = 0)]
    htx_circuits: usize,
    /// Relays that run.
    #[serde(rename = "onlineNodes")]
    #[schema(minimum = 0)]
    online_nodes: usize,
    /// In MB/s.
    #[schema(minimum = 0)]
    throughput: f64,
}

/// All of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct P2pUnified {
    /// Registered peers.
    #[serde(rename = "totalPeers")]
    #[schema(minimum = 0)]
    total_peers: i64,
    #[serde(rename = "protocolDistribution")]
    protocol_distribution: P2pProtocols,
    /// Deliveries that wait, here and for elsewhere.
    #[serde(rename = "messageQueue")]
    #[schema(minimum = 0)]
    message_queue: i64,
    /// Gateways and phones that any transport reaches.
    #[serde(rename = "activeRoutes")]
    #[schema(minimum = 0)]
    active_routes: usize,
}

/// The state of the gateway as a P2P node.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct P2pStatus {
    /// The gateway's id.
    #[schema(min_length = 52, max_length = 52)]
    node_id: String,
    /// Name and version of the program.
    device_name: &'static str,
    /// False once it is about to stop.
    running: bool,
    /// Since this replica started.
    #[schema(minimum = 0)]
    uptime_seconds: f64,
    /// The transports that run.
    active_transports: Vec<&'static str>,
    /// Registered peers.
    #[schema(minimum = 0)]
    peer_count: i64,
    /// Those of them that are online.
    #[schema(minimum = 0)]
    online_peer_count: i64,
    /// What each transport can do.
    device_capabilities: BTreeMap<&'static str, Vec<&'static str>>,
    mobile_context: P2pMobileContext,
    metrics: P2pMetrics,
    /// Deliveries to elsewhere without the recipient's receipt.
    #[schema(minimum = 0)]
    pending_acks: i64,
    /// Messages in memory that wait for their commit.
    #[schema(minimum = 0)]
    message_cache_size: usize,
    /// Deliveries that wait for a client of this gateway.
    #[schema(minimum = 0)]
    offline_store_size: i64,
}

/// What the original tells of a phone; a gateway is none, and says null.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct P2pMobileContext {
    /// The operating system.
    platform: &'static str,
    #[schema(required)]
    battery_level: Option<f64>,
    #[schema(required)]
    is_charging: Option<bool>,
    #[schema(required)]
    network_type: Option<String>,
    #[schema(required)]
    is_foreground: Option<bool>,
    #[schema(required)]
    thermal_state: Option<String>,
}

impl P2pMobileContext {
    fn of_a_server() -> Self {
        Self {
            platform: std::env::consts::OS,
            battery_level: None,
            is_charging: None,
            network_type: None,
            is_foreground: None,
            thermal_state: None,
        }
    }
}

/// What is counted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct P2pMetrics {
    /// Messages accepted from peers of this gateway.
    #[schema(minimum = 0)]
    messages_sent: i64,
    /// Deliveries accepted for peers of this gateway.
    #[schema(minimum = 0)]
    messages_received: i64,
    /// By transport, since this replica started.
    transport_messages: BTreeMap<&'static str, P2pTransportMessages>,
    /// When this replica started.
    #[schema(format = DateTime)]
    system_start_time: String,
}

/// What one transport carried.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct P2pTransportMessages {
    /// Envelopes that it took charge of.
    #[schema(minimum = 0)]
    sent: u64,
    /// Envelopes that came over it.
    #[schema(minimum = 0)]
    received: u64,
}
