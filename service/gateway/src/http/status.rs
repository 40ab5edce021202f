//! The gateway about itself on `/v1`: its state and its transports.

use std::sync::Arc;

use axum::extract::State;
use fieldpost_delivery::{Place, RuledOut, Target, Time, Verdict};
use fieldpost_envelope::{AnonymityLevel, PeerAddress, PeerId, Recipient};
use fieldpost_transport::Transport;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    Gateway,
    http::{
        addressing::{self, Found},
        caller::Caller,
        error::{ApiError, Problem},
        extract::Query,
    },
    outbox::{self, Preview},
};

/// The largest content on `/v1`.
const MAX_CONTENT_BYTES: usize = 1 << 20;
/// A broadcast is planned for all transports at once; this is none of their names.
const ANY_TRANSPORT: &str = "";

/// The routes of `/v1/status`, `/v1/transports` and `/v1/routes`.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(transports))
        .routes(routes!(routes_to))
}

/// The gateway's state.
#[derive(Debug, Serialize, ToSchema)]
pub struct GatewayStatus {
    /// The gateway's version.
    #[schema(example = "0.1.0")]
    version: &'static str,
    /// The key by which other gateways know this one: 52 characters of base32.
    #[schema(example = "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa")]
    gateway_id: String,
    /// This process among the replicas of the deployment.
    replica: Uuid,
    /// Whether it is about to stop.
    #[schema(example = false)]
    draining: bool,
    /// Peers with an open socket on this replica.
    #[schema(example = 12, minimum = 0)]
    connected_peers: usize,
    /// Open sockets on this replica.
    #[schema(example = 14, minimum = 0)]
    sockets: usize,
    /// Sends on this replica that wait for their commit.
    #[schema(example = 0, minimum = 0)]
    sends_waiting: usize,
    /// The transports that run; `GET /v1/transports` tells more.
    transports: Vec<String>,
}

/// Show the gateway's state.
#[utoipa::path(
    get,
    path = "/v1/status",
    operation_id = "getStatus",
    tag = "gateway",
    responses(
        (status = 200, description = "How the gateway is", body = GatewayStatus, example = json!({
            "version": "0.1.0",
            "gateway_id": "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa",
            "replica": "0b2f6a54-5f0b-4c53-9c7a-4f6b8a1f7d10", "draining": false,
            "connected_peers": 12, "sockets": 14, "sends_waiting": 0, "transports": ["memory"]
        })),
        (status = "4XX", description = "The state cannot be shown", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn status(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<GatewayStatus>, ApiError> {
    caller.viewer()?;
    Ok(axum::Json(GatewayStatus {
        version: env!("CARGO_PKG_VERSION"),
        gateway_id: gateway.store.identity()?.gateway_id.to_string(),
        replica: gateway.replica,
        draining: gateway.draining.is_cancelled(),
        connected_peers: gateway.subscribers.connected_peers(),
        sockets: gateway.subscribers.sockets(),
        sends_waiting: gateway.acceptor.waiting(),
        transports: gateway.transports.iter().map(|one| one.name().to_owned()).collect(),
    }))
}

/// The transports of this gateway.
#[derive(Debug, Serialize, ToSchema)]
pub struct TransportList {
    /// Those that run, by name.
    transports: Vec<TransportInfo>,
}

/// One transport: what it can do, and how it does.
#[derive(Debug, Serialize, ToSchema)]
pub struct TransportInfo {
    /// Its name, as in `transport_preference`.
    #[schema(example = "mesh")]
    name: &'static str,
    /// Carries a message to one recipient.
    supports_unicast: bool,
    /// Carries a message to everybody in reach.
    supports_broadcast: bool,
    /// Carries a message to a group.
    supports_multicast: bool,
    /// The largest content, in bytes.
    #[schema(example = 1_048_576)]
    max_message_size: usize,
    /// How long a message usually takes, in milliseconds.
    #[schema(example = 100)]
    typical_latency_ms: u32,
    /// How much it usually carries, in Mbit/s.
    #[schema(example = 100.0)]
    bandwidth_mbps: f64,
    /// Works without any network.
    is_offline_capable: bool,
    /// Never works without the internet.
    requires_internet: bool,
    /// Third parties cannot read what it carries.
    provides_encryption: bool,
    /// A key stolen later opens nothing sent before.
    supports_forward_secrecy: bool,
    /// The anonymity level that it declares now.
    #[schema(minimum = 0, maximum = 3)]
    anonymity_level: u8,
    /// What it costs the battery: `low`, `medium` or `high`.
    #[schema(example = "low")]
    battery_impact: &'static str,
    /// What it costs in data: `low`, `medium` or `high`.
    #[schema(example = "medium")]
    data_cost_impact: &'static str,
    /// It runs.
    is_available: bool,
    /// What is in the way of it, or of a part of it, in words; null when nothing is.
    #[schema(required)]
    trouble: Option<String>,
    /// What its claims have been held against, and what was not tried; null where its maker's own tests
    /// run all of it.
    #[schema(required)]
    evidence: Option<&'static str>,
    /// It reaches somebody.
    is_connected: bool,
    /// How well it does, from 0 to 1.
    #[schema(minimum = 0, maximum = 1)]
    connection_quality: f64,
    /// Keeps messages for recipients that are away.
    supports_store_and_forward: bool,
    /// Others pass messages on.
    supports_multi_hop: bool,
    /// Over how many links at most.
    #[schema(example = 1)]
    max_hops: u8,
    /// Gateways and phones that it reaches now.
    #[schema(minimum = 0)]
    reaches: usize,
    /// How long messages took lately until the recipient's gateway had them, in milliseconds; null
    /// when nothing is known.
    #[schema(minimum = 0)]
    measured_latency_ms: Option<f64>,
    /// The share of attempts that did not arrive lately, from 0 to 1; null when nothing is known.
    #[schema(minimum = 0, maximum = 1)]
    measured_loss: Option<f64>,
    /// Envelopes that it took charge of since it started.
    #[schema(minimum = 0)]
    envelopes_sent: u64,
    /// Envelopes that came over it since it started.
    #[schema(minimum = 0)]
    envelopes_received: u64,
}

impl TransportInfo {
    fn of(gateway: &Gateway, transport: &Arc<dyn Transport>) -> Self {
        let can = transport.capabilities();
        let now = gateway.clock.now();
        let measured = gateway.learned.overall(now, transport.name());
        let does = transport.status();
        let unavailable = (!does.is_available).then(|| {
            let is_htx = transport.name() == "htx";
            let said = if is_htx { gateway.mixnet.reason() } else { None };
            said.unwrap_or_else(|| "it has not started yet, or has ended".to_owned())
        });
        Self {
            name: transport.name(),
            supports_unicast: can.supports_unicast,
            supports_broadcast: can.supports_broadcast,
            supports_multicast: can.supports_multicast,
            max_message_size: can.max_message_size,
            typical_latency_ms: can.typical_latency_ms,
            bandwidth_mbps: can.bandwidth_mbps,
            is_offline_capable: can.is_offline_capable,
            requires_internet: can.requires_internet,
            provides_encryption: can.provides_encryption,
            supports_forward_secrecy: can.supports_forward_secrecy,
            anonymity_level: can.anonymity_level,
            battery_impact: can.battery_impact,
            data_cost_impact: can.data_cost_impact,
            is_available: does.is_available,
            trouble: transport.trouble().or(unavailable),
            evidence: transport.evidence(),
            is_connected: does.is_connected,
            connection_quality: does.connection_quality,
            supports_store_and_forward: can.supports_store_and_forward,
            supports_multi_hop: can.supports_multi_hop,
            max_hops: can.max_hops,
            reaches: reached(transport.as_ref()),
            measured_latency_ms: measured.latency(now).map(|time| time.as_secs_f64() * 1000.0),
            measured_loss: measured.success(now).map(|success| (1.0 - success).clamp(0.0, 1.0)),
            envelopes_sent: does.envelopes_sent,
            envelopes_received: does.envelopes_received,
        }
    }
}

/// The gateways and phones that a transport reaches; everybody who hears a broadcast is none of them.
pub(super) fn reached(transport: &dyn Transport) -> usize {
    let reachable = transport.reachable();
    let reachable = reachable.borrow();
    reachable.iter().filter(|target| !target.starts_with("transport:")).count()
}

/// List the transports that run: what each can do, and how it does now.
#[utoipa::path(
    get,
    path = "/v1/transports",
    operation_id = "listTransports",
    tag = "gateway",
    responses(
        (status = 200, description = "The transports; recipients of this gateway need none", body = TransportList),
        (status = "4XX", description = "The transports cannot be shown", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn transports(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<axum::Json<TransportList>, ApiError> {
    caller.viewer()?;
    let transports =
        gateway.transports.iter().map(|one| TransportInfo::of(&gateway, one)).collect();
    Ok(axum::Json(TransportList { transports }))
}

/// Of which message the way is asked.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RouteQuery {
    /// A peer, `peer@gateway`, a phone's 16 hex digits, `group:<id>@<gateway>` of another gateway, or
    /// `broadcast`.
    #[param(
        min_length = 1,
        max_length = 181,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(@[a-z2-7]{51}[aq])?$",
        example = "bob"
    )]
    to: String,
    /// The content's size in bytes.
    #[param(minimum = 0, maximum = 1_048_576, example = 256)]
    size: Option<u64>,
    /// The lowest anonymity level that may carry it.
    #[param(minimum = 0, maximum = 3, example = 0)]
    min_anonymity: Option<u8>,
}

/// How a message would travel.
#[derive(Debug, Serialize, ToSchema)]
pub struct RoutePlan {
    /// `go`, `waits`, or `never`.
    #[schema(pattern = "^(go|waits|never)$")]
    verdict: &'static str,
    /// What it waits for, or why it can never travel.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Whether all of them are asked at once rather than one after the other.
    at_once: bool,
    /// The transports to be asked, best first; `local` is no transport but this gateway.
    places: Vec<RoutePlace>,
    /// All others.
    ruled_out: Vec<RoutePlace>,
}

/// A transport and the reason for its place.
#[derive(Debug, Serialize, ToSchema)]
pub struct RoutePlace {
    /// Its name.
    #[schema(example = "local")]
    transport: String,
    /// Why it stands here.
    reason: String,
    /// It comes from a rest and would be tried out beside the first of the others.
    is_trial: bool,
    /// The share of attempts for this recipient that arrived lately, or for anybody where none is
    /// known; from 0 to 1. Every attempt counts half as much after ten minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 1, example = 0.98)]
    measured_success: Option<f64>,
    /// The mean time to the recipient's gateway and back, in milliseconds, of the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, example = 42.0)]
    measured_latency_ms: Option<f64>,
    /// How long ago the last of them was, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, example = 3.5)]
    measured_age_s: Option<f64>,
}

impl RoutePlan {
    fn of(Preview { plan, measured }: Preview, now: Time) -> Self {
        let place = |transport: String, reason: String, is_trial: bool| {
            let known = measured.get(transport.as_str()).filter(|one| one.success(now).is_some());
            RoutePlace {
                measured_success: known.and_then(|one| one.success(now)),
                measured_latency_ms: known
                    .and_then(|one| one.latency(now))
                    .map(|time| time.as_secs_f64() * 1000.0),
                measured_age_s: known.and_then(|one| one.age(now)).map(|age| age.as_secs_f64()),
                transport,
                reason,
                is_trial,
            }
        };
        let (verdict, reason) = match plan.verdict {
            Verdict::Go => ("go", None),
            Verdict::Waits { reason, .. } => ("waits", Some(reason)),
            Verdict::Never { reason } => ("never", Some(reason)),
        };
        Self {
            verdict,
            reason,
            at_once: plan.at_once,
            places: plan
                .places
                .into_iter()
                .map(|Place { transport, reason, is_trial }| place(transport, reason, is_trial))
                .collect(),
            ruled_out: plan
                .ruled_out
                .into_iter()
                .map(|RuledOut { transport, why }| place(transport, why.to_string(), false))
                .collect(),
        }
    }
}

/// Show how a message would travel now, and why.
///
/// Nothing is sent. A broadcast also goes to the peers of this gateway, which needs no transport.
#[utoipa::path(
    get,
    path = "/v1/routes",
    operation_id = "planRoute",
    tag = "gateway",
    params(RouteQuery),
    responses(
        (status = 200, description = "The plan", body = RoutePlan, example = json!({
            "verdict": "go", "at_once": false,
            "places": [{
                "transport": "local", "reason": "the recipient is on this gateway", "is_trial": false
            }],
            "ruled_out": []
        })),
        (status = "4XX", description = "There is no such recipient", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn routes_to(
    State(gateway): State<Gateway>,
    caller: Caller,
    Query(query): Query<RouteQuery>,
) -> Result<axum::Json<RoutePlan>, ApiError> {
    caller.viewer()?;
    let (size, level) = query.bounds()?;
    let target = query.target(&gateway, caller.peer()).await?;
    let preview = outbox::preview(&gateway, &target, size, level);
    Ok(axum::Json(RoutePlan::of(preview, gateway.clock.now())))
}

impl RouteQuery {
    fn bounds(&self) -> Result<(usize, AnonymityLevel), ApiError> {
        let size = self.size.unwrap_or(0);
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_CONTENT_BYTES);
        let size = size.ok_or_else(|| {
            ApiError::invalid("query.size", "size: a message has at most 1048576 bytes")
        })?;
        let level = AnonymityLevel::try_from(self.min_anonymity.unwrap_or(0)).map_err(|error| {
            ApiError::invalid("query.min_anonymity", format!("min_anonymity: {error}"))
        })?;
        Ok((size, level))
    }

    async fn target(&self, gateway: &Gateway, viewer: Option<&PeerId>) -> Result<Target, ApiError> {
        let to: Recipient = self
            .to
            .parse()
            .map_err(|error| ApiError::invalid("query.to", format!("to: {error}")))?;
        let own = gateway.store.identity()?.gateway_id;
        match to {
            Recipient::Broadcast => Ok(Target::Broadcast(ANY_TRANSPORT.to_owned())),
            Recipient::Group { id, home: Some(home) } if home != own => {
                Ok(Target::Group { id, home })
            }
            Recipient::Group { .. } => Err(ApiError::invalid(
                "query.to",
                "to: a group of this gateway has a way to each of its members; ask for one of them",
            )),
            Recipient::Peer(address)
                if address.gateway.is_some_and(|home| home != own) || address.peer.is_phone() =>
            {
                Ok(Target::Remote(address))
            }
            Recipient::Peer(PeerAddress { peer, .. }) => {
                match addressing::find(gateway, viewer, &peer).await? {
                    Found::Here => Ok(Target::Local(peer)),
                    Found::At(home) => Ok(Target::Remote(PeerAddress::remote(peer, home))),
                    Found::Nowhere { is_claimed } => Err(addressing::unknown(&peer, is_claimed)),
                }
            }
        }
    }
}
