//! `POST /api/betanet/send`: a message for a peer, or a finished packet.

use std::collections::BTreeMap;

use axum::{extract::State, http::StatusCode};
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use fieldpost_delivery::{Content, Wishes};
use fieldpost_envelope::{AnonymityLevel, PeerAddress, Priority, Recipient};
use fieldpost_transport::htx::{ForwardError, directory::RelayId};
use serde::{Deserialize, Serialize};
use utoipa::{
    ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::clients::PRIORITY_LABEL;
use crate::{
    Gateway,
    directory::relay_id,
    http::{
        caller::Caller,
        error::{ApiError, Detail},
        extract::LenientJson,
        fields,
        messages::MAX_CONTENT,
        submit::{Draft, submit},
        wording,
    },
};

/// What a message lives, in seconds: 7 days. Its sender has no say.
const TTL: i64 = 7 * 86_400;
/// The most entries of a route.
const MAX_ROUTE: usize = 6;
/// What a finished packet weighs.
const PACKET_SIZES: [usize; 2] = [2_400, 33_120];
/// What carries messages to peers elsewhere, and how anonymous it has to be.
const HTX: &str = "htx";
const LEVEL: AnonymityLevel = AnonymityLevel::HIGHEST;

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(send))
}

/// Send a packet.
///
/// `sphinx_packet` is the clients' JSON object, or a finished packet.
///
/// The object's destination gets the payload. A peer of this gateway gets it as `local`: over no link,
/// without relays and without anonymity, and the message's record says so. A peer elsewhere
/// (`peer@gateway`, or a name that leads there) gets it over the mixnet alone, at level 3: the gateway
/// builds the packets and draws their routes anew; `route` is a hint.
///
/// A finished packet is base64 of one of the two sizes, 2400 or 33120 bytes, built from the relay
/// directory's document. It goes to the relay `route[0]` at once and is not stored: whether it arrives,
/// only its maker can know.
#[utoipa::path(
    post,
    path = "/api/betanet/send",
    operation_id = "betanetSend",
    tag = "betanet",
    request_body = BetanetSend,
    responses(
        (status = 200, description = "Stored, and delivery has begun; or forwarded", body = BetanetAccepted, example = json!({
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
    priority(request.priority)?;
    check_route(&request.route)?;
    if let serde_json::Value::String(finished) = &request.sphinx_packet {
        let packet = finished_packet(finished)?;
        if !gateway.store.peer_exists(&sender).await? {
            return Err(ApiError::not_found(format!("{sender} is not a peer of this gateway")));
        }
        return forward(&gateway, &request.route[0], packet).await.map(axum::Json);
    }
    let (destination, draft) = request.into_draft(&gateway).await?;
    let (transport, level) = match draft.wishes.required.as_deref() {
        Some(HTX) => (HTX, 3),
        _ => ("local", 0),
    };
    let submitted = submit(&gateway, &sender, draft).await?;
    Ok(axum::Json(BetanetAccepted {
        status: "accepted",
        message_id: Some(submitted.id.0),
        destination: destination.to_string(),
        transport,
        anonymity_level: Some(level),
    }))
}

/// Hands a finished packet to the first relay of its route.
async fn forward(
    gateway: &Gateway,
    first: &str,
    packet: Vec<u8>,
) -> Result<BetanetAccepted, ApiError> {
    let at = "body.route";
    let relay: RelayId =
        relay_id(first).map_err(|error| ApiError::invalid(at, format!("route: {error}")))?;
    let not_now = |detail: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, detail);
    if !gateway.mixnet.is_on() {
        let reason = gateway.mixnet.reason().unwrap_or_default();
        return Err(ApiError::invalid("body.sphinx_packet", format!("sphinx_packet: {reason}")));
    }
    match gateway.mixnet.forward(relay, packet).await.map_err(not_now)? {
        Ok(()) => Ok(BetanetAccepted {
            status: "forwarded",
            message_id: None,
            destination: relay.to_string(),
            transport: HTX,
            anonymity_level: None,
        }),
        Err(error @ ForwardError::UnknownRelay(_)) => Err(ApiError::invalid(
            at,
            format!("route: {error}: GET /api/betanet/relays lists them"),
        )),
        Err(error @ ForwardError::Length { .. }) => Err(ApiError::invalid(
            "body.sphinx_packet",
            format!("sphinx_packet: {}", wording::json(&error.to_string())),
        )),
        Err(error @ (ForwardError::Busy(_) | ForwardError::Shut)) => {
            Err(not_now(error.to_string()))
        }
    }
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
    /// The clients' JSON object, or a finished packet in base64.
    #[schema(value_type = BetanetAnyPacket)]
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
    #[schema(
        min_length = 1,
        max_length = 181,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(?:@[a-z2-7]{51}[aq])?$"
    )]
    destination: Option<String>,
    /// Bytes in hex; what is not hex is taken as text. 1 MiB at most.
    #[schema(max_length = 2_097_152)]
    payload: String,
}

/// The clients' JSON object, or a finished packet.
#[derive(ToSchema)]
#[schema(example = json!({"version": 1, "destination": "bob", "payload": "68656c6c6f"}))]
#[expect(dead_code, reason = "documents the two forms of a packet")]
#[serde(untagged)]
enum BetanetAnyPacket {
    /// The clients' JSON object.
    Object(BetanetPacket),
    /// Base64 with padding of 2400 or 33120 bytes.
    Finished(String),
}

fn first_version() -> i64 {
    1
}

impl BetanetSend {
    async fn into_draft(self, gateway: &Gateway) -> Result<(PeerAddress, Draft), ApiError> {
        let priority = priority(self.priority)?;
        let packet = packet(self.sphinx_packet)?;
        if packet.version != 1 {
            return Err(ApiError::invalid(
                "body.sphinx_packet.version",
                format!("version: {} is not known: expected 1", packet.version),
            ));
        }
        let end = || self.route.last();
        let destination = packet
            .destination
            .as_ref()
            .or_else(end)
            .ok_or_else(|| ApiError::invalid("body.route", "route: needed"))?;
        let (destination, is_elsewhere) = destination_of(gateway, destination).await?;
        let (bytes, is_text) = payload(packet.payload)?;
        let labels = BTreeMap::from([(PRIORITY_LABEL.to_owned(), self.priority.to_string())]);
        let required = if is_elsewhere { HTX } else { "local" };
        let draft = Draft {
            id: None,
            to: Recipient::Peer(destination.clone()),
            content: Content { bytes, is_text, labels, ..Content::default() },
            ttl: TTL,
            priority,
            min_anonymity: if is_elsewhere { LEVEL } else { AnonymityLevel::NONE },
            wishes: Wishes { required: Some(required.to_owned()), ..Wishes::default() },
            allow_unknown: false,
            make_group: false,
        };
        Ok((destination, draft))
    }
}

fn packet(value: serde_json::Value) -> Result<BetanetPacket, ApiError> {
    let at = "body.sphinx_packet";
    match value {
        object @ serde_json::Value::Object(_) => serde_json::from_value(object).map_err(|error| {
            ApiError::invalid(at, format!("sphinx_packet: {}", wording::json(&error.to_string())))
        }),
        _ => Err(ApiError::invalid(at, "sphinx_packet: expected an object or base64 text")),
    }
}

fn finished_packet(text: &str) -> Result<Vec<u8>, ApiError> {
    let invalid = |detail| ApiError::invalid("body.sphinx_packet", detail);
    let bytes = BASE64
        .decode(text.as_bytes())
        .map_err(|error| invalid(format!("sphinx_packet: no base64 with padding: {error}")))?;
    match PACKET_SIZES.contains(&bytes.len()) {
        true => Ok(bytes),
        false => {
            let [small, large] = PACKET_SIZES;
            let length = bytes.len();
            Err(invalid(format!("sphinx_packet: {length} bytes: expected {small} or {large}")))
        }
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

/// The receiver, and whether it is a peer of another gateway.
async fn destination_of(gateway: &Gateway, text: &str) -> Result<(PeerAddress, bool), ApiError> {
    let at = "body.sphinx_packet.destination";
    let invalid = |detail: String| ApiError::invalid(at, format!("destination: {detail}"));
    let address: PeerAddress =
        text.parse().map_err(|error| ApiError::invalid(at, format!("destination: {error}")))?;
    let address = address.seen_from(gateway.store.identity()?.gateway_id);
    if address.peer.is_phone() && address.gateway.is_none() {
        return Err(invalid("the mixnet does not lead to phones".to_owned()));
    }
    let is_on = gateway.mixnet.is_on();
    if address.gateway.is_some() && !is_on {
        return Err(invalid(gateway.mixnet.reason().unwrap_or_default()));
    }
    let is_here = address.gateway.is_none() && gateway.store.peer_exists(&address.peer).await?;
    Ok((address, is_on && !is_here))
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

/// A packet that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BetanetAccepted {
    /// `accepted` when it is stored, `forwarded` when it was finished and is gone.
    #[schema(pattern = "^(?:accepted|forwarded)$")]
    status: &'static str,
    /// The message that it became; not for a finished packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<Uuid>,
    /// The peer that gets it; of a finished packet, the relay.
    destination: String,
    /// What carries it: `htx`, or `local`, no link at all.
    transport: &'static str,
    /// How anonymous that is at least; not for a finished packet, whose route only its maker knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 3)]
    anonymity_level: Option<u8>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::betanet::clients::priority_number;

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
    fn a_packet_is_an_object_or_base64_of_the_exact_size() {
        assert!(packet(json!({"payload": "00", "encrypted": true, "extra": [1]})).is_ok());
        for other in [json!(7), json!(null), json!({})] {
            assert!(packet(other).is_err());
        }
        for size in PACKET_SIZES {
            assert_eq!(finished_packet(&BASE64.encode(&vec![7; size])).unwrap().len(), size);
            assert!(finished_packet(&BASE64.encode(&vec![7; size + 1])).is_err());
        }
        for other in ["AAAA", "not base64", ""] {
            assert!(finished_packet(other).is_err());
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
