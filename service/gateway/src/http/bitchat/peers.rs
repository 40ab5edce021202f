//! Peers on `/api/bitchat`: registration, lists, presence.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, State},
    http::StatusCode,
};
use chrono::TimeDelta;
use data_encoding::HEXLOWER;
use fieldpost_envelope::{GatewayId, PeerAddress, PeerId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Detail},
        extract::{LenientJson, Path, Query, body_error},
        fields::{self, mirrored_time},
        limits::ClientAddress,
        peers::{MAX_DISPLAY_NAME, MAX_PUBLIC_KEY, default_audience, register_peer},
    },
    presence,
    store::{
        MAX_LISTED, NewPeer, Peer, PeerDefaults, PeerSettings, RemotePeer, phones::ListedPhone,
    },
};

/// Registering counts as being online for so long, as in the original's P2P layer.
const ONLINE_BY_REGISTRATION: TimeDelta = TimeDelta::minutes(5);
/// What the original gave every peer; nothing here computes trust.
const TRUST_SCORE: f64 = 0.5;

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(state_presence))
}

/// Register a peer, or replace its key and name.
///
/// A new peer gets a token, shown this once; send it as `Authorization: Bearer <token>`.
/// Registering a name again takes its token, and with `--auth open` nothing. The peer counts as
/// online for five minutes, or until a socket or a request says otherwise.
#[utoipa::path(
    post,
    path = "/api/bitchat/peers/register",
    operation_id = "bitchatRegisterPeer",
    tag = "bitchat",
    request_body = BitchatRegisterPeer,
    responses(
        (status = 201, description = "The peer is registered", body = BitchatRegisteredPeer, example = json!({
            "id": "2f0c7d1e-9a52-4b5c-8f61-3d7e0a9b4c21", "peer_id": "alice",
            "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "display_name": "Alice", "last_seen": "2026-11-23T09:00:00.000000+00:00",
            "is_online": true, "trust_score": 0.5, "messages_sent": 0, "messages_received": 0,
            "created_at": "2026-11-23T09:00:00.000000+00:00",
            "token": "fp_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA"
        })),
        (status = "4XX", description = "The peer cannot be registered", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn register(
    State(gateway): State<Gateway>,
    caller: Caller,
    address: ClientAddress,
    LenientJson(request): LenientJson<BitchatRegisterPeer>,
) -> Result<(StatusCode, axum::Json<BitchatRegisteredPeer>), ApiError> {
    let invite =
        request.invite.clone().map(|text| fields::text("invite", text, 0, 200)).transpose()?;
    let newcomer = request.into_new_peer(&gateway)?;
    let (peer, token) =
        register_peer(&gateway, &caller, address, &newcomer, invite.as_deref()).await?;
    let peer = BitchatPeer::from(peer);
    Ok((StatusCode::CREATED, axum::Json(BitchatRegisteredPeer { peer, token })))
}

/// List peers, the last seen first.
///
/// A peer of another gateway is written `peer@gateway` and has `gateway`, the `transports` that reach
/// it now, `heard_at`, when its gateway was last heard or in reach, and `trusted`. It counts as last
/// seen then, and is never online, as nobody says so. A phone heard in the last day is written as its
/// 16 hex digits and has `hops`, how many links its announces cross, and `verified`, whether it has
/// proven its keys; it is online while it is in reach.
#[utoipa::path(
    get,
    path = "/api/bitchat/peers",
    operation_id = "bitchatListPeers",
    tag = "bitchat",
    params(BitchatPeerFilter),
    responses(
        (status = 200, description = "At most 10000 peers", body = [BitchatPeer], example = json!([{
            "id": "2f0c7d1e-9a52-4b5c-8f61-3d7e0a9b4c21", "peer_id": "alice",
            "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "display_name": "Alice", "last_seen": "2026-11-23T09:00:00.000000+00:00",
            "is_online": true, "trust_score": 0.5, "messages_sent": 0, "messages_received": 0,
            "created_at": "2026-11-23T09:00:00.000000+00:00"
        }, {
            "id": "5f2b8f0a-6a43-5a43-9f0b-7a5b1f1f5a10",
            "peer_id": "bob@aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa",
            "public_key": "", "display_name": null,
            "last_seen": "2026-11-23T08:59:00.000000+00:00",
            "is_online": false, "trust_score": 0.5, "messages_sent": 0, "messages_received": 0,
            "created_at": "2026-11-23T08:00:00.000000+00:00",
            "gateway": "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa",
            "transports": ["mesh"], "heard_at": "2026-11-23T08:59:00.000000+00:00", "trusted": true
        }])),
        (status = "4XX", description = "The list cannot be given", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: Caller,
    Query(filter): Query<BitchatPeerFilter>,
) -> Result<axum::Json<Vec<BitchatPeer>>, ApiError> {
    let viewer = caller.viewer()?;
    let online_only = match &filter.online_only {
        Some(word) => flag("query.online_only", word)?,
        None => false,
    };
    let peers = gateway.store.list_peers_last_seen_first(viewer.as_ref(), online_only).await?;
    let mut peers: Vec<BitchatPeer> = peers.into_iter().map(BitchatPeer::from).collect();
    let room = MAX_LISTED - peers.len() as i64;
    if room > 0 {
        let phones = gateway.store.list_phones(gateway.clock.now(), "", room).await?;
        let phones = phones.into_iter().filter(|phone| !online_only || phone.is_in_reach());
        peers.extend(phones.map(BitchatPeer::phone));
    }
    let room = MAX_LISTED - peers.len() as i64;
    if room > 0 && !online_only {
        let others = gateway.store.list_remote_peers_last_heard_first(room).await?;
        peers.extend(others.into_iter().map(|peer| BitchatPeer::elsewhere(&gateway, peer)));
    }
    // Times of one form are in the order of their text.
    peers.sort_by(|a, b| b.last_seen.cmp(&a.last_seen));
    Ok(axum::Json(peers))
}

/// Show a peer, or `peer@gateway` if that gateway lists it.
#[utoipa::path(
    get,
    path = "/api/bitchat/peers/{peer_id}",
    operation_id = "bitchatGetPeer",
    tag = "bitchat",
    params(("peer_id" = String, Path, description = "The peer", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(@[a-z2-7]{51}[aq])?$", example = "alice")),
    responses(
        (status = 200, description = "The peer", body = BitchatPeer, example = json!({
            "id": "2f0c7d1e-9a52-4b5c-8f61-3d7e0a9b4c21", "peer_id": "alice",
            "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "display_name": "Alice", "last_seen": "2026-11-23T09:00:00.000000+00:00",
            "is_online": true, "trust_score": 0.5, "messages_sent": 3, "messages_received": 1,
            "created_at": "2026-11-23T09:00:00.000000+00:00"
        })),
        (status = "4XX", description = "There is no such peer", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn show(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(peer_id): Path<String>,
) -> Result<axum::Json<BitchatPeer>, ApiError> {
    let viewer = caller.viewer()?;
    // A name that no peer can have names no peer.
    let address = peer_id.parse::<PeerAddress>().map_err(|_| super::no_such_peer(&peer_id))?;
    let PeerAddress { peer, gateway: home } =
        address.seen_from(gateway.store.identity()?.gateway_id);
    let peer = match home {
        Some(home) => elsewhere(&gateway, &peer, home).await?,
        None if peer.is_phone() => gateway.store.phone(&peer).await?.map(BitchatPeer::phone),
        None => gateway.store.peer(&peer, viewer.as_ref()).await?.map(BitchatPeer::from),
    };
    peer.map(axum::Json).ok_or_else(|| super::no_such_peer(&peer_id))
}

async fn elsewhere(
    gateway: &Gateway,
    peer: &PeerId,
    home: GatewayId,
) -> Result<Option<BitchatPeer>, ApiError> {
    let peer = gateway.store.remote_peer(peer, home).await?;
    Ok(peer.map(|peer| BitchatPeer::elsewhere(gateway, peer)))
}

/// State whether a peer is online.
///
/// It holds, open socket or not, until the next socket, registration or statement. For clients
/// that send it so, `is_online` is also taken from a JSON body.
#[utoipa::path(
    put,
    path = "/api/bitchat/peers/{peer_id}/status",
    operation_id = "bitchatSetPeerStatus",
    tag = "bitchat",
    params(
        ("peer_id" = String, Path, description = "The peer", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "alice"),
        BitchatStatusQuery,
    ),
    responses(
        (status = 200, description = "It is so", body = BitchatStatusSet, example = json!({
            "message": "alice is online", "is_online": true
        })),
        (status = "4XX", description = "The peer's presence cannot be stated", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn state_presence(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(peer_id): Path<String>,
    Query(query): Query<BitchatStatusQuery>,
    BodyOfStatus(body): BodyOfStatus,
) -> Result<axum::Json<BitchatStatusSet>, ApiError> {
    let peer = caller.acting_as(&super::known_peer(&peer_id)?)?;
    let is_online = query.or(&body)?;
    presence::stated(&gateway, &peer, is_online)
        .await?
        .ok_or_else(|| super::no_such_peer(&peer_id))?;
    let message = format!("{peer} is {}", if is_online { "online" } else { "offline" });
    Ok(axum::Json(BitchatStatusSet { message, is_online }))
}

/// Reads a boolean as the original's query did: in any of its spellings, in any case.
fn flag(location: &str, word: &str) -> Result<bool, ApiError> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Ok(true),
        "false" | "0" | "no" | "off" | "f" | "n" => Ok(false),
        _ => Err(ApiError::invalid(location, "expected true or false")),
    }
}

/// A peer that wants to register.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct BitchatRegisterPeer {
    /// The name. Reserved are `broadcast`, 16 or 32 hex digits, and what begins with `group:`.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
        example = "alice"
    )]
    peer_id: String,
    /// A key of any kind, for others to see. Where it is an Ed25519 key, 32 bytes in hex or
    /// base64, it can renew a lost token.
    #[schema(
        max_length = 4096,
        pattern = r"^[^\u0000]*$",
        example = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )]
    public_key: String,
    /// A name for people; the empty text leaves the one before.
    #[schema(max_length = 100, pattern = r"^[^\u0000]*$", example = "Alice")]
    display_name: Option<String>,
    /// Where the gateway admits newcomers by invite: the invite.
    #[schema(max_length = 200, pattern = r"^[^\u0000]*$")]
    invite: Option<String>,
}

impl BitchatRegisterPeer {
    fn into_new_peer(self, gateway: &Gateway) -> Result<NewPeer, ApiError> {
        let id = PeerId::parse(&self.peer_id)
            .map_err(|error| ApiError::invalid("body.peer_id", format!("peer_id: {error}")))?;
        let display_name = self
            .display_name
            .map(|name| fields::text("display_name", name, 0, MAX_DISPLAY_NAME))
            .transpose()?;
        Ok(NewPeer {
            id,
            public_key: fields::text("public_key", self.public_key, 0, MAX_PUBLIC_KEY)?,
            settings: PeerSettings { display_name, ..PeerSettings::default() },
            defaults: PeerDefaults {
                on_air: true,
                shown_to: default_audience(gateway.config.auth),
                max_on_air: i64::from(gateway.config.max_peers),
            },
            online_until: Some(gateway.clock.now() + ONLINE_BY_REGISTRATION),
        })
    }
}

/// Which peers are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BitchatPeerFilter {
    /// Only those of whom the caller may see that they are online: `true`, `false`, or any of the
    /// other usual spellings.
    #[param(
        pattern = "^(?:[Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy][Ee][Ss]|[Nn][Oo]|[Oo][Nn]|[Oo][Ff][Ff]|[TtFfYyNn01])$",
        example = "true"
    )]
    online_only: Option<String>,
}

/// Whether a peer is online, in the query.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BitchatStatusQuery {
    /// `true`, `false`, or any of the other usual spellings.
    #[param(
        value_type = String,
        required = true,
        pattern = "^(?:[Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]|[Yy][Ee][Ss]|[Nn][Oo]|[Oo][Nn]|[Oo][Ff][Ff]|[TtFfYyNn01])$",
        example = "true"
    )]
    is_online: Option<String>,
}

impl BitchatStatusQuery {
    /// What the query says, else what the body says.
    fn or(&self, body: &[u8]) -> Result<bool, ApiError> {
        if let Some(word) = &self.is_online {
            return flag("query.is_online", word);
        }
        if body.is_empty() {
            return Err(ApiError::invalid("query.is_online", "is_online: give true or false"));
        }
        serde_json::from_slice::<BitchatStatusBody>(body).map(|body| body.is_online).map_err(|_| {
            ApiError::invalid("body.is_online", "expected {\"is_online\": true} or false")
        })
    }
}

/// Whether a peer is online, in the body.
#[derive(Debug, Deserialize)]
struct BitchatStatusBody {
    /// Whether it is online.
    is_online: bool,
}

/// The bytes of a body that need not be there.
pub(super) struct BodyOfStatus(Bytes);

impl<S: Send + Sync> FromRequest<S> for BodyOfStatus {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Bytes::from_request(request, state)
            .await
            .map(Self)
            .map_err(|rejection| body_error(rejection.status(), &rejection.body_text()))
    }
}

/// That a peer's presence was stated.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatStatusSet {
    /// In words.
    message: String,
    /// What was stated.
    is_online: bool,
}

/// A peer as the caller may see it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatPeer {
    /// Its row.
    id: Uuid,
    /// Its name; `peer@gateway` for a peer of another gateway.
    peer_id: String,
    /// The key that it registered; empty for a peer of another gateway.
    public_key: String,
    /// A name for people.
    #[schema(required)]
    display_name: Option<String>,
    /// When it was last seen; where that is not shown to the caller, when it registered.
    #[schema(format = DateTime)]
    last_seen: String,
    /// Whether it is online; false where that is not shown to the caller.
    is_online: bool,
    /// Always 0.5, as in the original: nothing computes trust.
    trust_score: f64,
    /// Messages accepted from it.
    #[schema(minimum = 0)]
    messages_sent: i64,
    /// Messages accepted for it.
    #[schema(minimum = 0)]
    messages_received: i64,
    /// When it first registered, or was first listed by its gateway.
    #[schema(format = DateTime)]
    created_at: String,
    /// Its gateway, if that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
    /// The transports that reach that gateway, or the phone, now; of no peer of this gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    transports: Option<Vec<String>>,
    /// When that gateway was last heard or in reach, or the phone last heard; of no peer of this
    /// gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    heard_at: Option<String>,
    /// Whether the bare name may lead there; of another gateway's peer alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted: Option<bool>,
    /// How many links its announces cross; of a phone alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    hops: Option<u8>,
    /// Whether it has proven its keys in a session; of a phone alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
}

impl BitchatPeer {
    fn phone(listed: ListedPhone) -> Self {
        let is_online = listed.is_in_reach();
        let phone = listed.phone;
        let peer_id = phone.id.to_string();
        let heard_at = mirrored_time(phone.heard_at);
        Self {
            id: Uuid::new_v5(&Uuid::NAMESPACE_OID, peer_id.as_bytes()),
            peer_id,
            public_key: HEXLOWER.encode(&phone.noise_key),
            display_name: Some(phone.nickname),
            last_seen: heard_at.clone(),
            is_online,
            trust_score: TRUST_SCORE,
            messages_sent: 0,
            messages_received: 0,
            created_at: mirrored_time(listed.first_heard_at),
            gateway: None,
            transports: Some(listed.transports),
            heard_at: Some(heard_at),
            trusted: None,
            hops: Some(phone.hops),
            verified: Some(phone.verified),
        }
    }

    fn elsewhere(gateway: &Gateway, peer: RemotePeer) -> Self {
        let peer_id = peer.address().to_string();
        let heard_at = mirrored_time(peer.home.heard_at);
        Self {
            id: Uuid::new_v5(&Uuid::NAMESPACE_OID, peer_id.as_bytes()),
            peer_id,
            public_key: String::new(),
            display_name: peer.display_name,
            last_seen: heard_at.clone(),
            is_online: false,
            trust_score: TRUST_SCORE,
            messages_sent: 0,
            messages_received: 0,
            created_at: mirrored_time(peer.listed_at),
            gateway: Some(peer.home.gateway.to_string()),
            transports: Some(peer.transports),
            heard_at: Some(heard_at),
            trusted: Some(peer.home.is_trusted(gateway.rosters.trust())),
            hops: None,
            verified: None,
        }
    }
}

impl From<Peer> for BitchatPeer {
    fn from(peer: Peer) -> Self {
        Self {
            id: peer.row_id,
            peer_id: peer.id.to_string(),
            public_key: peer.public_key,
            display_name: peer.display_name,
            last_seen: mirrored_time(peer.last_seen_at.unwrap_or(peer.created_at)),
            is_online: peer.online.unwrap_or(false),
            trust_score: TRUST_SCORE,
            messages_sent: peer.messages_sent,
            messages_received: peer.messages_received,
            created_at: mirrored_time(peer.created_at),
            gateway: None,
            transports: None,
            heard_at: None,
            trusted: None,
            hops: None,
            verified: None,
        }
    }
}

/// A peer that was just registered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatRegisteredPeer {
    #[serde(flatten)]
    peer: BitchatPeer,
    /// Proves to be this peer; only for a new peer, shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_read_in_every_spelling_of_the_original() {
        for word in ["true", "True", "TRUE", "1", "yes", "on", "t", "Y"] {
            assert!(flag("query.is_online", word).unwrap(), "{word}");
        }
        for word in ["false", "False", "0", "no", "off", "f", "N"] {
            assert!(!flag("query.is_online", word).unwrap(), "{word}");
        }
        for word in ["", "2", "maybe", "tru", "true "] {
            assert!(flag("query.is_online", word).is_err(), "{word}");
        }
    }

    #[test]
    fn the_query_stands_above_the_body() {
        let query = |word: Option<&str>| BitchatStatusQuery { is_online: word.map(str::to_owned) };
        assert!(query(Some("yes")).or(br#"{"is_online": false}"#).unwrap());
        assert!(query(None).or(br#"{"is_online": true}"#).unwrap());
        for body in [b"".as_slice(), b"{}", b"true", b"{\"is_online\": \"yes\"}", b"\xff"] {
            assert!(query(None).or(body).is_err());
        }
    }
}
