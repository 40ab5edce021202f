//! Calls of BetaNet's clients: register, unregister and receive; `relays` and `send` are beside.
//!
//! `receive` hands out one message at a time. The client's next call confirms it. Where none comes
//! within [`OFFER_AGAIN`], the answer may have been lost, and the next `receive` offers it again
//! under the same id; after [`MAX_OFFERS`] a client that comes so seldom is believed to have it.

use axum::{extract::State, http::StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use data_encoding::{BASE64, HEXLOWER};
use fieldpost_delivery::{Confirm, InboxEntry, Store as _};
use fieldpost_envelope::{PeerId, Priority};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Detail},
        extract::{LenientJson, Path},
        fields,
        inbox::take_confirmation,
        limits::ClientAddress,
        peers::{MAX_DISPLAY_NAME, MAX_ON_AIR, default_audience, register_peer},
    },
    store::{NewPeer, PeerDefaults, PeerSettings, betanet::Handout},
};

/// After so long without another call, a message is offered again.
const OFFER_AGAIN: TimeDelta = TimeDelta::seconds(60);
/// How often one message is offered.
const MAX_OFFERS: i32 = 3;
/// Keeps the number by which a client said how urgent a message is.
pub(super) const PRIORITY_LABEL: &str = "betanet_priority";

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(unregister))
        .routes(routes!(receive))
}

/// Register a client.
///
/// Its `node_id` is a peer of this gateway, registered by this if it is not yet; a new peer gets a
/// token, shown this once.
#[utoipa::path(
    post,
    path = "/api/betanet/register",
    operation_id = "betanetRegister",
    tag = "betanet",
    request_body = BetanetRegister,
    responses(
        (status = 201, description = "Registered", body = BetanetRegistered, example = json!({
            "status": "registered", "mixnode_id": "alice", "node_id": "alice",
            "token": "fp_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA"
        })),
        (status = 200, description = "Was registered before", body = BetanetRegistered, example = json!({
            "status": "registered", "mixnode_id": "alice", "node_id": "alice"
        })),
        (status = "4XX", description = "The client cannot be registered", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn register(
    State(gateway): State<Gateway>,
    caller: Caller,
    address: ClientAddress,
    LenientJson(request): LenientJson<BetanetRegister>,
) -> Result<(StatusCode, axum::Json<BetanetRegistered>), ApiError> {
    let (newcomer, can_relay, invite) = request.into_new_peer(&gateway)?;
    let (peer, token) = if gateway.store.peer_exists(&newcomer.id).await? {
        (caller.acting_as(&newcomer.id)?, None)
    } else {
        let (peer, token) =
            register_peer(&gateway, &caller, address, &newcomer, invite.as_deref()).await?;
        (peer.id, token)
    };
    let device_name = newcomer.settings.display_name.as_deref();
    let is_new = gateway.store.enter_betanet_client(&peer, device_name, can_relay).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let (mixnode_id, node_id) = (peer.to_string(), peer.to_string());
    let descriptor = gateway.mixnet.descriptor().map(|it| BASE64.encode(it.as_bytes()));
    Ok((
        status,
        axum::Json(BetanetRegistered {
            status: "registered",
            mixnode_id,
            node_id,
            token,
            descriptor,
        }),
    ))
}

/// Unregister a client.
///
/// What it was handed out last is confirmed. The peer stays, and what waits for it.
#[utoipa::path(
    delete,
    path = "/api/betanet/unregister/{mixnode_id}",
    operation_id = "betanetUnregister",
    tag = "betanet",
    params(("mixnode_id" = String, Path, description = "The client, as its registration named it", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "alice")),
    responses(
        (status = 200, description = "No longer registered", body = BetanetUnregistered, example = json!({
            "status": "unregistered", "mixnode_id": "alice"
        })),
        (status = "4XX", description = "There is no such client", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn unregister(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(mixnode_id): Path<String>,
) -> Result<axum::Json<BetanetUnregistered>, ApiError> {
    let peer = caller.acting_as(&known_client(&mixnode_id)?)?;
    if let Some(held) = gateway.store.handout(&peer).await? {
        confirm(&gateway, &peer, &held).await?;
        gateway.store.replace_handout(&peer, Some(&held), None).await?;
    }
    match gateway.store.remove_betanet_client(&peer).await? {
        true => Ok(axum::Json(BetanetUnregistered { status: "unregistered", mixnode_id })),
        false => Err(no_such_client(&mixnode_id)),
    }
}

/// Take the next message.
///
/// All that waits for the peer is handed out, one message a call, oldest first; a call confirms
/// what the one before handed out. Without another call within a minute, the message is offered
/// again under the same id.
#[utoipa::path(
    get,
    path = "/api/betanet/receive/{node_id}",
    operation_id = "betanetReceive",
    tag = "betanet",
    params(("node_id" = String, Path, description = "The client", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "bob")),
    responses(
        (status = 200, description = "The message, or null", body = BetanetReceived, example = json!({
            "message": {
                "message_id": "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12", "from_node": "alice",
                "priority": 3,
                "sphinx_packet": {
                    "version": 1, "destination": "bob", "payload": "68656c6c6f", "encrypted": false
                }
            }
        })),
        (status = "4XX", description = "The messages cannot be handed out", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn receive(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(node_id): Path<String>,
) -> Result<axum::Json<BetanetReceived>, ApiError> {
    let peer = caller.acting_as(&known_client(&node_id)?)?;
    if !gateway.store.peer_exists(&peer).await? {
        return Err(no_such_client(&node_id));
    }
    let entry = hand_out(&gateway, &peer).await?;
    Ok(axum::Json(BetanetReceived {
        message: entry.map(|entry| BetanetMessage::new(&peer, entry)),
    }))
}

/// The next message for `peer`; `None` if there is none, or if another call is just given it.
async fn hand_out(gateway: &Gateway, peer: &PeerId) -> Result<Option<InboxEntry>, ApiError> {
    let now = gateway.clock.now();
    let held = gateway.store.handout(peer).await?;
    let mut offers = 1;
    let mut entry = None;
    match &held {
        Some(held) if is_offered_again(held, now) => {
            offers = held.offers + 1;
            entry = offered_before(gateway, peer, held, now).await?;
        }
        Some(held) => confirm(gateway, peer, held).await?,
        None => {}
    }
    if entry.is_none() {
        offers = 1;
        entry = gateway.store.show(now, peer, 0, 1).await?.pop();
    }
    let next = entry.as_ref().map(|entry| Handout {
        message_id: entry.message.id,
        sender: entry.message.sender.clone(),
        seq: entry.seq,
        offers,
        offered_at: now,
    });
    let is_ours = gateway.store.replace_handout(peer, held.as_ref(), next.as_ref()).await?;
    Ok(entry.filter(|_| is_ours))
}

fn is_offered_again(held: &Handout, now: DateTime<Utc>) -> bool {
    now - held.offered_at >= OFFER_AGAIN && held.offers < MAX_OFFERS
}

/// The message of an earlier answer, unless it was confirmed some other way or its time is over.
async fn offered_before(
    gateway: &Gateway,
    peer: &PeerId,
    held: &Handout,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<InboxEntry>> {
    let entry = gateway.store.show(now, peer, held.seq - 1, 1).await?.pop();
    Ok(entry
        .filter(|entry| entry.message.id == held.message_id && entry.message.sender == held.sender))
}

async fn confirm(gateway: &Gateway, peer: &PeerId, held: &Handout) -> Result<(), ApiError> {
    let what = Confirm::Messages(vec![(held.message_id, Some(held.sender.clone()))]);
    take_confirmation(gateway, peer, &what, false).await?;
    Ok(())
}

fn known_client(text: &str) -> Result<PeerId, ApiError> {
    text.parse().map_err(|_| no_such_client(text))
}

fn no_such_client(text: &str) -> ApiError {
    ApiError::not_found(format!("no client {text:?} is registered here"))
}

/// A client that wants to register.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({
    "node_id": "alice", "device_name": "Alice's laptop",
    "capabilities": {"can_relay": true, "privacy_mode": true}
}))]
pub(super) struct BetanetRegister {
    /// The name of a peer. Reserved are `broadcast`, 16 or 32 hex digits, and what begins with
    /// `group:`.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
    node_id: String,
    /// A name for people.
    #[schema(max_length = 100, pattern = r"^[^\u0000]*$")]
    device_name: Option<String>,
    /// What the client can do.
    #[serde(default)]
    capabilities: BetanetCapabilities,
    /// Where the gateway admits newcomers by invite: the invite.
    #[schema(max_length = 200, pattern = r"^[^\u0000]*$")]
    invite: Option<String>,
}

/// What a client can do.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct BetanetCapabilities {
    /// Whether it would pass packets on.
    #[serde(default)]
    can_relay: bool,
}

impl BetanetRegister {
    fn into_new_peer(self, gateway: &Gateway) -> Result<(NewPeer, bool, Option<String>), ApiError> {
        let id = PeerId::parse(&self.node_id)
            .map_err(|error| ApiError::invalid("body.node_id", format!("node_id: {error}")))?;
        let display_name = self
            .device_name
            .map(|name| fields::text("device_name", name, 0, MAX_DISPLAY_NAME))
            .transpose()?;
        let newcomer = NewPeer {
            id,
            public_key: String::new(),
            settings: PeerSettings { display_name, ..PeerSettings::default() },
            defaults: PeerDefaults {
                on_air: false,
                shown_to: default_audience(gateway.config.auth),
                max_on_air: MAX_ON_AIR,
            },
            online_until: None,
        };
        let invite = self.invite.map(|text| fields::text("invite", text, 0, 200)).transpose()?;
        Ok((newcomer, self.capabilities.can_relay, invite))
    }
}

/// A client that is registered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetRegistered {
    /// Always `registered`.
    status: &'static str,
    /// What to unregister; the same as `node_id`.
    mixnode_id: String,
    /// The peer.
    node_id: String,
    /// Proves to be this peer; only for a new one, shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// What this gateway's node of the mixnet says of itself, signed, in base64; where one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    descriptor: Option<String>,
}

/// A client that is no longer registered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetUnregistered {
    /// Always `unregistered`.
    status: &'static str,
    /// The client.
    mixnode_id: String,
}

/// What waits.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetReceived {
    /// The next message; null if none waits.
    #[schema(required)]
    message: Option<BetanetMessage>,
}

/// A message as the clients of this surface know it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetMessage {
    /// Its id; the same when it is offered again.
    message_id: Uuid,
    /// Its sender.
    from_node: String,
    /// As it was sent: 0 critical, 1 high, 3 normal, 4 low, 5 bulk.
    #[schema(minimum = 0, maximum = 5)]
    priority: u8,
    sphinx_packet: BetanetDelivered,
}

/// The packet that a message came in, as far as it is one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetDelivered {
    /// Always 1.
    version: u8,
    /// The receiver.
    destination: String,
    /// The content in lower-case hex; of text, its UTF-8.
    #[schema(pattern = "^(?:[0-9a-f]{2})*$")]
    payload: String,
    /// False: the receiver's gateway has opened it.
    encrypted: bool,
}

impl BetanetMessage {
    fn new(peer: &PeerId, entry: InboxEntry) -> Self {
        let message = entry.message;
        let said =
            message.content.labels.get(PRIORITY_LABEL).and_then(|number| number.parse().ok());
        Self {
            message_id: message.id.0,
            from_node: message.sender.to_string(),
            priority: said
                .filter(|number| *number <= 5)
                .unwrap_or_else(|| priority_number(message.priority)),
            sphinx_packet: BetanetDelivered {
                version: 1,
                destination: peer.to_string(),
                payload: HEXLOWER.encode(&message.content.bytes),
                encrypted: false,
            },
        }
    }
}

pub(super) fn priority_number(priority: Priority) -> u8 {
    match priority {
        Priority::Critical => 0,
        Priority::High => 1,
        Priority::Normal => 3,
        Priority::Low => 4,
    }
}

#[cfg(test)]
mod tests {
    use fieldpost_envelope::{MessageId, PeerAddress};

    use super::*;

    #[test]
    fn a_message_is_offered_again_after_a_minute_and_not_for_ever() {
        let start = DateTime::UNIX_EPOCH;
        let held = |offers| Handout {
            message_id: MessageId(Uuid::nil()),
            sender: PeerAddress::local("alice".parse().unwrap()),
            seq: 1,
            offers,
            offered_at: start,
        };
        let later = start + OFFER_AGAIN;
        assert!(!is_offered_again(&held(1), later - TimeDelta::microseconds(1)));
        assert!(is_offered_again(&held(1), later));
        assert!(is_offered_again(&held(MAX_OFFERS - 1), later));
        assert!(!is_offered_again(&held(MAX_OFFERS), later));
    }
}
