//! The five calls of BetaNet's clients: register, unregister, relays, send and receive.
//!
//! `receive` hands out one message at a time. The client's next call confirms it. Where none comes
//! within [`OFFER_AGAIN`], the answer may have been lost, and the next `receive` offers it again
//! under the same id; after [`MAX_OFFERS`] a client that comes so seldom is believed to have it.

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use fieldpost_delivery::{Confirm, Content, InboxEntry, Store as _, Wishes};
use fieldpost_envelope::{AnonymityLevel, PeerAddress, PeerId, Priority, Recipient};
use serde::{Deserialize, Serialize};
use utoipa::{
    ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::NOT_BUILT;
use crate::{
    Gateway,
    http::{
        bitchat,
        caller::Caller,
        error::{ApiError, Detail},
        extract::{LenientJson, Path},
        fields,
        inbox::take_confirmation,
        limits::ClientAddress,
        messages::MAX_CONTENT,
        peers::{MAX_DISPLAY_NAME, MAX_ON_AIR, default_audience, register_peer},
        submit::{Draft, submit},
    },
    store::{NewPeer, PeerDefaults, PeerSettings, betanet::Handout},
};

/// After so long without another call, a message is offered again.
const OFFER_AGAIN: TimeDelta = TimeDelta::seconds(60);
/// How often one message is offered.
const MAX_OFFERS: i32 = 3;
/// What a message lives, in seconds: 7 days. Its sender has no say.
const TTL: i64 = 7 * 86_400;
/// The most entries of a route.
const MAX_ROUTE: usize = 6;
/// Keeps the number by which a client said how urgent a message is.
const PRIORITY_LABEL: &str = "betanet_priority";

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(unregister))
        .routes(routes!(relays))
        .routes(routes!(send))
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
    Ok((status, axum::Json(BetanetRegistered { status: "registered", mixnode_id, node_id, token })))
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

/// List relays: none runs in this version, so routes name the receiver alone.
#[utoipa::path(
    get,
    path = "/api/betanet/relays",
    operation_id = "betanetListRelays",
    tag = "betanet",
    responses(
        (status = 200, description = "The relays that run", body = [BetanetRelay], example = json!([])),
        (status = "4XX", description = "The list cannot be given", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn relays(caller: Caller) -> Result<axum::Json<Vec<BetanetRelay>>, ApiError> {
    bitchat::viewer(&caller)?;
    Ok(axum::Json(Vec::new()))
}

/// Send a packet to a peer of this gateway.
///
/// `sphinx_packet` is the clients' JSON object; its destination gets the payload. It travels as
/// `local`: over no link, without relays and without anonymity, and the message's record says so.
/// Finished packets and destinations elsewhere need the HTX transport, which this version has not.
#[utoipa::path(
    post,
    path = "/api/betanet/send",
    operation_id = "betanetSend",
    tag = "betanet",
    request_body = BetanetSend,
    responses(
        (status = 200, description = "Stored; delivery has begun", body = BetanetAccepted, example = json!({
            "status": "accepted", "message_id": "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12",
            "destination": "bob", "transport": "local", "anonymity_level": 0
        })),
        (status = "4XX", description = "The packet cannot be accepted", body = Detail),
        (status = "5XX", description = "The gateway cannot take it now", body = Detail),
    ),
)]
pub(super) async fn send(
    State(gateway): State<Gateway>,
    caller: Caller,
    LenientJson(request): LenientJson<BetanetSend>,
) -> Result<axum::Json<BetanetAccepted>, ApiError> {
    let sender = caller.acting_as(&fields::peer("from_node", &request.from_node)?)?;
    let (destination, draft) = request.into_draft(&gateway)?;
    let submitted = submit(&gateway, &sender, draft).await?;
    Ok(axum::Json(BetanetAccepted {
        status: "accepted",
        message_id: submitted.id.0,
        destination: destination.to_string(),
        transport: "local",
        anonymity_level: 0,
    }))
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
}

/// A client that is no longer registered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetUnregistered {
    /// Always `unregistered`.
    status: &'static str,
    /// The client.
    mixnode_id: String,
}

/// A relay that runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetRelay {
    /// Its name in a route.
    node_id: String,
}

/// A packet to be sent.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({
    "from_node": "alice", "route": ["bob"], "priority": 3,
    "sphinx_packet": {
        "version": 1, "route": ["bob"], "destination": "bob", "payload": "68656c6c6f",
        "encrypted": true, "num_hops": 1
    }
}))]
pub(super) struct BetanetSend {
    /// The sender; must be the caller.
    #[schema(min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
    from_node: String,
    /// The clients' JSON object. A finished packet (base64 text) needs the HTX transport.
    #[schema(value_type = BetanetPacket)]
    sphinx_packet: serde_json::Value,
    /// The relays that the client would choose, and the receiver; a hint.
    #[schema(min_items = 1, max_items = 6, value_type = Vec<BetanetHop>)]
    route: Vec<String>,
    /// 0 critical, 1 high, 3 normal, 4 low, 5 bulk.
    #[serde(default = "normal")]
    #[schema(value_type = BetanetPriority, required = false)]
    priority: i64,
}

/// A relay or the receiver.
#[derive(ToSchema)]
#[schema(
    min_length = 1,
    max_length = 181,
    pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
    example = "bob"
)]
#[expect(dead_code, reason = "documents the entries of a route")]
pub(super) struct BetanetHop(String);

/// The original's numbers, which leave out 2.
pub(super) struct BetanetPriority;

impl utoipa::PartialSchema for BetanetPriority {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .description(Some("0 critical, 1 high, 3 normal, 4 low, 5 bulk"))
            .enum_values(Some([0, 1, 3, 4, 5]))
            .default(Some(3.into()))
            .into()
    }
}

impl ToSchema for BetanetPriority {}

fn normal() -> i64 {
    3
}

/// What the clients call a Sphinx packet; nothing in it is encrypted.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct BetanetPacket {
    /// Always 1.
    #[serde(default = "first_version")]
    #[schema(minimum = 1, maximum = 1, default = 1)]
    version: i64,
    /// The receiver; the end of the route, where this is not given.
    #[schema(min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
    destination: Option<String>,
    /// Bytes in hex; what is not hex is taken as text. 1 MiB at most.
    #[schema(max_length = 2_097_152)]
    payload: String,
}

fn first_version() -> i64 {
    1
}

impl BetanetSend {
    fn into_draft(self, gateway: &Gateway) -> Result<(PeerAddress, Draft), ApiError> {
        let priority = priority(self.priority)?;
        let packet = packet(self.sphinx_packet)?;
        if packet.version != 1 {
            return Err(ApiError::invalid(
                "body.sphinx_packet.version",
                format!("version: {} is not known: expected 1", packet.version),
            ));
        }
        check_route(&self.route)?;
        let end = || self.route.last();
        let destination = packet
            .destination
            .as_ref()
            .or_else(end)
            .ok_or_else(|| ApiError::invalid("body.route", "route: needed"))?;
        let destination = local_peer(gateway, destination)?;
        let (bytes, is_text) = payload(packet.payload)?;
        let labels = BTreeMap::from([(PRIORITY_LABEL.to_owned(), self.priority.to_string())]);
        let draft = Draft {
            id: None,
            to: Recipient::Peer(destination.clone()),
            content: Content { bytes, is_text, labels, ..Content::default() },
            ttl: TTL,
            priority,
            min_anonymity: AnonymityLevel::NONE,
            wishes: Wishes { required: Some("local".to_owned()), ..Wishes::default() },
            allow_unknown: false,
            make_group: false,
        };
        Ok((destination, draft))
    }
}

fn packet(value: serde_json::Value) -> Result<BetanetPacket, ApiError> {
    let at = "body.sphinx_packet";
    match value {
        serde_json::Value::String(finished) => {
            BASE64.decode(finished.as_bytes()).map_err(|error| {
                ApiError::invalid(at, format!("sphinx_packet: no base64 with padding: {error}"))
            })?;
            Err(ApiError::invalid(at, format!("sphinx_packet: {NOT_BUILT}")))
        }
        object @ serde_json::Value::Object(_) => serde_json::from_value(object)
            .map_err(|error| ApiError::invalid(at, format!("sphinx_packet: {error}"))),
        _ => Err(ApiError::invalid(at, "sphinx_packet: expected an object or base64 text")),
    }
}

fn check_route(route: &[String]) -> Result<(), ApiError> {
    let at = "body.route";
    if route.is_empty() || route.len() > MAX_ROUTE {
        let detail = format!("route: {} entries: expected 1 to {MAX_ROUTE}", route.len());
        return Err(ApiError::invalid(at, detail));
    }
    match route.iter().find_map(|entry| entry.parse::<PeerAddress>().err()) {
        Some(error) => Err(ApiError::invalid(at, format!("route: {error}"))),
        None => Ok(()),
    }
}

/// The receiver, if it is a peer of this gateway.
fn local_peer(gateway: &Gateway, text: &str) -> Result<PeerAddress, ApiError> {
    let at = "body.sphinx_packet.destination";
    let address: PeerAddress =
        text.parse().map_err(|error| ApiError::invalid(at, format!("destination: {error}")))?;
    let address = address.seen_from(gateway.store.identity()?.gateway_id);
    if address.gateway.is_some() || address.peer.is_phone() {
        return Err(ApiError::invalid(at, format!("destination: {NOT_BUILT}")));
    }
    Ok(address)
}

fn payload(text: String) -> Result<(Vec<u8>, bool), ApiError> {
    let (bytes, is_text) = match HEXLOWER_PERMISSIVE.decode(text.as_bytes()) {
        Ok(bytes) => (bytes, false),
        Err(_) => (text.into_bytes(), true),
    };
    if bytes.len() > MAX_CONTENT {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("payload has {} bytes: at most {MAX_CONTENT}", bytes.len()),
        ));
    }
    Ok((bytes, is_text))
}

fn priority(number: i64) -> Result<Priority, ApiError> {
    match number {
        0 => Ok(Priority::Critical),
        1 => Ok(Priority::High),
        3 => Ok(Priority::Normal),
        4 | 5 => Ok(Priority::Low),
        _ => Err(ApiError::invalid(
            "body.priority",
            format!("priority: {number} is none of 0, 1, 3, 4 and 5"),
        )),
    }
}

fn priority_number(priority: Priority) -> u8 {
    match priority {
        Priority::Critical => 0,
        Priority::High => 1,
        Priority::Normal => 3,
        Priority::Low => 4,
    }
}

/// A packet that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetAccepted {
    /// Always `accepted`.
    status: &'static str,
    /// The message that it became.
    message_id: Uuid,
    /// The peer that gets it.
    destination: String,
    /// What carries it: `local`, no link at all.
    transport: &'static str,
    /// How anonymous that is.
    #[schema(minimum = 0, maximum = 3)]
    anonymity_level: u8,
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

#[cfg(test)]
mod tests {
    use fieldpost_envelope::MessageId;
    use serde_json::json;

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

    #[test]
    fn payloads_are_hex_or_else_text() {
        assert_eq!(payload("00aBff".to_owned()).unwrap(), (vec![0x00, 0xAB, 0xFF], false));
        assert_eq!(payload(String::new()).unwrap(), (Vec::new(), false));
        for text in ["hello", "abc", "0x00", "Grüße"] {
            assert_eq!(payload(text.to_owned()).unwrap(), (text.as_bytes().to_vec(), true));
        }
        assert!(payload("00".repeat(MAX_CONTENT)).is_ok());
        let refused = payload("00".repeat(MAX_CONTENT + 1)).unwrap_err();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[test]
    fn priorities_are_those_of_the_original_without_the_invalid_two() {
        for number in [0, 1, 3, 4] {
            assert_eq!(i64::from(priority_number(priority(number).unwrap())), number);
        }
        assert_eq!(priority(5).unwrap(), Priority::Low);
        for number in [-1, 2, 6, i64::MAX] {
            assert!(priority(number).is_err(), "{number}");
        }
    }

    #[test]
    fn only_the_object_form_of_a_packet_can_be_carried() {
        assert!(packet(json!({"payload": "00", "encrypted": true, "extra": [1]})).is_ok());
        for other in [json!("AAAA"), json!("not base64"), json!(7), json!(null), json!({})] {
            assert!(packet(other).is_err());
        }
    }

    #[test]
    fn routes_have_one_to_six_entries() {
        let route = |length: usize| vec!["relay".to_owned(); length];
        assert!(check_route(&route(1)).is_ok() && check_route(&route(6)).is_ok());
        assert!(check_route(&route(0)).is_err() && check_route(&route(7)).is_err());
        assert!(check_route(&["a b".to_owned()]).is_err());
    }
}
