//! Peers and their access on `/v1`: registration, settings, renewal, tickets, invites (design,
//! sections 4 and 6).

use axum::{extract::State, http::HeaderMap, http::StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use data_encoding::{
    BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE,
};
use ed25519_dalek::{Signature, VerifyingKey};
use fieldpost_envelope::{GatewayId, PeerAddress, PeerId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway,
    config::{Auth, Registration},
    http::{
        caller::Caller,
        error::{ApiError, Problem},
        extract::{Json, Path, Query},
        fields::{self, PageQuery},
        limits::{self, ClientAddress},
    },
    store::{
        Admission, MAX_INVITES, MAX_TICKETS, NewPeer, Peer, PeerDefaults, PeerSettings, Registered,
        RemotePeer, Renewed, ShownTo, TokenHolder, phones::ListedPhone,
    },
};

/// The routes of `/v1/peers`, `/v1/ws-ticket` and `/v1/invites`.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(register, list))
        .routes(routes!(show, update))
        .routes(routes!(renewal_nonce))
        .routes(routes!(renew))
        .routes(routes!(create_ticket))
        .routes(routes!(create_invite))
}

/// Register a peer, or replace its public key.
///
/// A new peer gets a token, shown this once: whoever sends it as `Authorization: Bearer <token>`
/// is the peer. Registering a name again takes the token of that name; it replaces the public key
/// and the settings that are given, keeps the token, and gives back the one it was sent. With
/// `--auth open` no token is needed, and where none was sent none is given back.
#[utoipa::path(
    post,
    path = "/v1/peers",
    operation_id = "registerPeer",
    tag = "peers",
    request_body = RegisterPeer,
    responses(
        (status = 201, description = "The peer is registered", body = RegisteredPeer, example = json!({
            "peer_id": "alice",
            "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "display_name": "Alice", "online": false,
            "last_seen": "2026-11-23T09:00:00Z", "created_at": "2026-11-23T09:00:00Z",
            "on_air": false,
            "settings": { "subscribe_broadcast": true, "presence": "contacts", "listed": true },
            "token": "fp_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA"
        })),
        (status = "4XX", description = "The peer cannot be registered", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn register(
    State(gateway): State<Gateway>,
    caller: Caller,
    address: ClientAddress,
    headers: HeaderMap,
    Json(request): Json<RegisterPeer>,
) -> Result<(StatusCode, axum::Json<RegisteredPeer>), ApiError> {
    let (mut newcomer, invite) = request.checked(gateway.config.auth)?;
    newcomer.defaults.max_on_air = i64::from(gateway.config.max_peers);
    let (peer, token) =
        register_peer(&gateway, &caller, address, &newcomer, invite.as_deref()).await?;
    let token = match token {
        Some(token) => Some(token),
        None => own_token(&gateway, &headers, &peer.id).await?,
    };
    Ok((StatusCode::CREATED, axum::Json(RegisteredPeer { peer: PeerInfo::own(peer), token })))
}

/// List peers: first those of this gateway by name, then phones heard in the last day, then those of
/// other gateways by name and gateway.
///
/// Shown are those who are listed, and those who have written to the caller or share a group with
/// it. `online` and `last_seen` are null where the peer does not show them to the caller, and of a
/// peer of another gateway always; such a peer has `gateway`, the `transports` that reach it now,
/// when that gateway was last heard or in reach, and whether it is trusted, so that the bare name may
/// lead there. A phone is online while it is in reach, and has `hops` and `verified`; its name for
/// people is what it calls itself.
#[utoipa::path(
    get,
    path = "/v1/peers",
    operation_id = "listPeers",
    tag = "peers",
    params(PageQuery, PeerFilter),
    responses(
        (status = 200, description = "One page", body = PeerList, example = json!({
            "peers": [{
                "peer_id": "alice",
                "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "display_name": "Alice", "online": true,
                "last_seen": "2026-11-23T09:00:00Z", "created_at": "2026-11-23T09:00:00Z",
                "on_air": false
            }, {
                "peer_id": "bob@aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa",
                "public_key": null, "display_name": null, "online": null, "last_seen": null,
                "created_at": "2026-11-23T09:00:00Z", "on_air": false,
                "gateway": "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa",
                "transports": ["mesh"], "heard_at": "2026-11-23T09:00:00Z", "trusted": true
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
    Query(filter): Query<PeerFilter>,
) -> Result<axum::Json<PeerList>, ApiError> {
    let viewer = viewer(&caller)?;
    let (limit, after) = (page.limit()?, page.after()?);
    let online_only = filter.online.unwrap_or(false);
    let store = &gateway.store;
    // No name of ours has an `@`, so a place with one is among the others.
    let after_remote = after.split_once('@');
    let after_phone = PeerId::parse_phone(&after).is_ok();
    let mut peers: Vec<PeerInfo> = match after_remote {
        Some(_) => Vec::new(),
        None if after_phone => Vec::new(),
        None => store
            .list_peers(viewer.as_ref(), online_only, &after, limit)
            .await?
            .into_iter()
            .map(|peer| PeerInfo::seen_by(viewer.as_ref(), peer))
            .collect(),
    };
    let room = limit - peers.len() as i64;
    if room > 0 && after_remote.is_none() {
        let first = if after_phone { after.as_str() } else { "" };
        let phones = store.list_phones(gateway.clock.now(), first, room).await?;
        let phones = phones.into_iter().filter(|phone| !online_only || phone.is_in_reach());
        peers.extend(phones.map(PeerInfo::phone));
    }
    let room = limit - peers.len() as i64;
    // Nobody tells us who is online elsewhere.
    if room > 0 && !online_only {
        let others = store.list_remote_peers(after_remote.unwrap_or(("", "")), room).await?;
        peers.extend(others.into_iter().map(|peer| PeerInfo::elsewhere(&gateway, peer)));
    }
    let next = fields::next_cursor(&peers, limit, |peer| &peer.peer_id);
    Ok(axum::Json(PeerList { peers, next }))
}

/// Show a peer.
///
/// A peer that is not listed is shown to whoever knows its name, and one of another gateway,
/// `peer@gateway`, if that lists it. Settings are shown to the peer alone.
#[utoipa::path(
    get,
    path = "/v1/peers/{peer_id}",
    operation_id = "getPeer",
    tag = "peers",
    params(("peer_id" = String, Path, description = "The name, or `peer@gateway`", min_length = 1, max_length = 181, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}(@[a-z2-7]{51}[aq])?$", example = "alice")),
    responses(
        (status = 200, description = "The peer", body = PeerInfo, example = json!({
            "peer_id": "alice",
            "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "display_name": "Alice", "online": null, "last_seen": null,
            "created_at": "2026-11-23T09:00:00Z", "on_air": false
        })),
        (status = "4XX", description = "There is no such peer", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(peer_id): Path<String>,
) -> Result<axum::Json<PeerInfo>, ApiError> {
    let viewer = viewer(&caller)?;
    let address: PeerAddress = peer_id
        .parse()
        .map_err(|error| ApiError::invalid("path.peer_id", format!("peer_id: {error}")))?;
    let PeerAddress { peer, gateway: home } =
        address.seen_from(gateway.store.identity()?.gateway_id);
    if let Some(home) = home {
        let found = gateway.store.remote_peer(&peer, home).await?;
        let found = found.ok_or_else(|| {
            ApiError::not_found(format!("{home} lists no peer {peer}, as far as is known here"))
        })?;
        return Ok(axum::Json(PeerInfo::elsewhere(&gateway, found)));
    }
    if peer.is_phone() {
        let phone = gateway.store.phone(&peer).await?.ok_or_else(|| no_such_peer(&peer))?;
        return Ok(axum::Json(PeerInfo::phone(phone)));
    }
    let peer =
        gateway.store.peer(&peer, viewer.as_ref()).await?.ok_or_else(|| no_such_peer(&peer))?;
    Ok(axum::Json(PeerInfo::seen_by(viewer.as_ref(), peer)))
}

/// Change one's own settings.
///
/// What is not given stays.
#[utoipa::path(
    patch,
    path = "/v1/peers/{peer_id}",
    operation_id = "updatePeer",
    tag = "peers",
    params(("peer_id" = String, Path, description = "The name", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "alice")),
    request_body = UpdatePeer,
    responses(
        (status = 200, description = "The peer as it is now", body = PeerInfo, example = json!({
            "peer_id": "alice",
            "public_key": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "display_name": "Alice", "online": true,
            "last_seen": "2026-11-23T09:00:00Z", "created_at": "2026-11-23T09:00:00Z",
            "on_air": false,
            "settings": { "subscribe_broadcast": false, "presence": "nobody", "listed": false }
        })),
        (status = "4XX", description = "The peer cannot be changed", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn update(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(peer_id): Path<String>,
    Json(request): Json<UpdatePeer>,
) -> Result<axum::Json<PeerInfo>, ApiError> {
    let peer = caller.acting_as(&peer_in_path(&peer_id)?)?;
    let settings = request.into_settings()?;
    let updated =
        gateway.store.update_peer(&peer, &settings, i64::from(gateway.config.max_peers)).await?;
    gateway.wake_air.notify_one();
    let updated = updated.ok_or_else(|| no_such_peer(&peer))?;
    gateway.rosters.list_changed();
    Ok(axum::Json(PeerInfo::own(updated)))
}

/// Get a nonce to renew a token with.
///
/// For a peer whose token was lost or stolen: sign `text` with the Ed25519 key whose public half
/// the peer registered (32 bytes in hex or base64), and send nonce and signature to
/// `/v1/peers/{peer_id}/renew` within a minute. A nonce works once.
#[utoipa::path(
    post,
    path = "/v1/peers/{peer_id}/renew-nonce",
    operation_id = "createRenewalNonce",
    tag = "peers",
    security(()),
    params(("peer_id" = String, Path, description = "The name", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "alice")),
    responses(
        (status = 200, description = "What is to be signed", body = RenewalNonce, example = json!({
            "nonce": "AQ5m0RZc1YB5yWc2eQm4yXb8oD0M7t1m9zvJ8H3sN2kL4pQ6rT8vX0zB2dF4hJ6kM8",
            "gateway_id": "5q5ke5zqzyqw3wm4vxgrvwkqcpi3y5mjhhgmrcnrdi7m3ysx6b2a",
            "text": "fieldpost-renew-v1\n5q5ke5zqzyqw3wm4vxgrvwkqcpi3y5mjhhgmrcnrdi7m3ysx6b2a\nalice\nAQ5m0RZc1YB5yWc2eQm4yXb8oD0M7t1m9zvJ8H3sN2kL4pQ6rT8vX0zB2dF4hJ6kM8",
            "expires_at": "2026-11-23T09:01:00Z"
        })),
        (status = "4XX", description = "The name is no peer's", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn renewal_nonce(
    State(gateway): State<Gateway>,
    Path(peer_id): Path<String>,
) -> Result<axum::Json<RenewalNonce>, ApiError> {
    let peer = peer_in_path(&peer_id)?;
    let gateway_id = gateway.store.identity()?.gateway_id;
    let (nonce, expires_at) = gateway.store.renewal_nonce(&peer)?;
    let text = renewal_text(&gateway_id, &peer, &nonce);
    let gateway_id = gateway_id.to_string();
    Ok(axum::Json(RenewalNonce { nonce, gateway_id, text, expires_at }))
}

/// Renew a token by the peer's key.
///
/// The old token, the sockets that it opened and its tickets end at once; the new token is shown
/// this once. What is signed are the bytes of `fieldpost-renew-v1`, the gateway id, the peer id and
/// the nonce, with a line feed (0x0A) between each two and none at the end.
#[utoipa::path(
    post,
    path = "/v1/peers/{peer_id}/renew",
    operation_id = "renewToken",
    tag = "peers",
    security(()),
    params(("peer_id" = String, Path, description = "The name", min_length = 1, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "alice")),
    request_body = RenewToken,
    responses(
        (status = 200, description = "The new token", body = RenewedToken, example = json!({
            "peer_id": "alice",
            "token": "fp_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA"
        })),
        (status = "4XX", description = "The token cannot be renewed", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn renew(
    State(gateway): State<Gateway>,
    Path(peer_id): Path<String>,
    Json(request): Json<RenewToken>,
) -> Result<axum::Json<RenewedToken>, ApiError> {
    let peer = peer_in_path(&peer_id)?;
    let nonce_ends =
        gateway.store.check_renewal_nonce(&peer, &request.nonce).ok_or_else(nonce_is_over)?;
    let key = gateway.store.public_key(&peer).await?.unwrap_or_default();
    let text = renewal_text(&gateway.store.identity()?.gateway_id, &peer, &request.nonce);
    check_signature(&key, &text, &request.signature)?;
    match gateway.store.renew_token(&peer, &key, &request.nonce, nonce_ends).await? {
        Renewed::NonceUsed => Err(nonce_is_over()),
        Renewed::KeyChanged => Err(signature_does_not_fit()),
        Renewed::Token(token) => {
            gateway.subscribers.revoke(&peer);
            Ok(axum::Json(RenewedToken { peer_id: peer.to_string(), token }))
        }
    }
}

/// Get a ticket to open a socket with.
///
/// For browsers, which cannot send `Authorization` with a WebSocket: open `/v1/ws?ticket=<ticket>`
/// within 30 s. A ticket opens one socket.
#[utoipa::path(
    post,
    path = "/v1/ws-ticket",
    operation_id = "createSocketTicket",
    tag = "peers",
    responses(
        (status = 201, description = "The ticket", body = SocketTicket, example = json!({
            "ticket": "fpt_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA",
            "expires_at": "2026-11-23T09:00:30Z"
        })),
        (status = "4XX", description = "The caller gets no ticket", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_ticket(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<(StatusCode, axum::Json<SocketTicket>), ApiError> {
    let peer = caller.require()?;
    if !gateway.store.peer_exists(&peer).await? {
        return Err(no_such_peer(&peer));
    }
    let created = gateway.store.create_ticket(&peer).await?;
    let (ticket, expires_at) = created.ok_or_else(|| {
        ApiError::too_fast(format!("{MAX_TICKETS} tickets are open: use one, or wait 30 s"), 30)
    })?;
    Ok((StatusCode::CREATED, axum::Json(SocketTicket { ticket, expires_at })))
}

/// Make an invite.
///
/// Needs an operator's token (`fieldpost operator token`). Where the gateway admits newcomers by
/// invite, a registration with `invite` uses it up once.
#[utoipa::path(
    post,
    path = "/v1/invites",
    operation_id = "createInvite",
    tag = "peers",
    security(("bearer" = [])),
    request_body = CreateInvite,
    responses(
        (status = 201, description = "The invite, shown this once", body = Invite, example = json!({
            "invite": "fpi_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA",
            "uses": 1, "expires_at": "2026-11-30T09:00:00Z"
        })),
        (status = "4XX", description = "The invite cannot be made", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_invite(
    State(gateway): State<Gateway>,
    caller: Caller,
    Json(request): Json<CreateInvite>,
) -> Result<(StatusCode, axum::Json<Invite>), ApiError> {
    require_operator(&caller)?;
    let (note, uses, lifetime) = request.checked()?;
    let expires_at = gateway.clock.now() + lifetime;
    let created = gateway.store.create_invite(note.as_deref(), uses, expires_at).await?;
    let invite = created.ok_or_else(|| {
        ApiError::conflict(format!("{MAX_INVITES} invites are open: let some be used or expire"))
    })?;
    Ok((StatusCode::CREATED, axum::Json(Invite { invite, uses, expires_at })))
}

/// Registers a peer for whichever surface: a newcomer with its new token, or one that may act as
/// this peer, whose token stays.
///
/// # Errors
///
/// 429 when too many come from `address`; 403 where newcomers need an invite or are not admitted;
/// 401 or 403 when the name is taken and the caller is not its peer.
pub async fn register_peer(
    gateway: &Gateway,
    caller: &Caller,
    ClientAddress(address): ClientAddress,
    newcomer: &NewPeer,
    invite: Option<&str>,
) -> Result<(Peer, Option<String>), ApiError> {
    gateway.limits.check_registration(address)?;
    let rule = gateway.config.registration();
    let admission = match (rule, invite) {
        (Registration::Open, _) => Admission::Granted,
        _ if caller.is_operator() => Admission::Granted,
        (Registration::Invite, Some(invite)) => Admission::Invite(invite),
        (Registration::Invite, None) | (Registration::Closed, _) => Admission::Refused,
    };
    let proven = caller.acting_as(&newcomer.id).is_ok();
    match gateway.store.register_peer(newcomer, proven, admission).await? {
        Registered::New(peer, token) => {
            gateway.rosters.list_changed();
            gateway.wake_air.notify_one();
            Ok((*peer, Some(token)))
        }
        Registered::Again(peer) => {
            gateway.rosters.list_changed();
            Ok((*peer, None))
        }
        Registered::InviteInvalid => Err(ApiError::forbidden(
            "the invite is unknown, used up or too old: ask the operator for another",
        )),
        Registered::Refused if rule == Registration::Closed => {
            Err(ApiError::forbidden("registration is closed: ask the operator to register you"))
        }
        Registered::Refused => Err(ApiError::forbidden(
            "registration needs an invite: ask the operator for one and send it as invite",
        )),
        Registered::Taken => Err(name_is_taken(caller, &newcomer.id)),
    }
}

fn name_is_taken(caller: &Caller, peer: &PeerId) -> ApiError {
    let detail = format!("{peer} is registered: send its token to register it again");
    match caller.acting_as(peer) {
        // It was registered by somebody else between two of our queries.
        Ok(_) => ApiError::conflict(format!("{peer} was registered just now: try again")),
        Err(error) if caller.is_open() => error,
        Err(error) => ApiError::new(error.status(), detail),
    }
}

/// Who sees a new peer's presence unless it says otherwise.
pub fn default_audience(auth: Auth) -> ShownTo {
    match auth {
        Auth::Token => ShownTo::Contacts,
        Auth::Open => ShownTo::Everyone,
    }
}

/// How many peers can be on the air (design, section 4).
pub const MAX_ON_AIR: i64 = 50;
/// Characters of a public key, which may be of any kind.
pub const MAX_PUBLIC_KEY: usize = 4096;
/// Characters of an invite; more than any has.
const MAX_INVITE: usize = 200;
/// Characters of a display name.
pub const MAX_DISPLAY_NAME: usize = 100;

/// What a peer signs to renew its token (design, section 4).
pub fn renewal_text(gateway: &GatewayId, peer: &PeerId, nonce: &str) -> String {
    format!("fieldpost-renew-v1\n{gateway}\n{peer}\n{nonce}")
}

fn check_signature(public_key: &str, text: &str, signature: &str) -> Result<(), ApiError> {
    let signature: [u8; 64] = decode_exactly(signature).ok_or_else(|| {
        ApiError::invalid("body.signature", "signature: expected 64 bytes in hex or base64")
    })?;
    // Whether the peer is unknown, has another kind of key, or has not signed: a stranger learns
    // the same of each.
    let key: [u8; 32] = decode_exactly(public_key).ok_or_else(signature_does_not_fit)?;
    VerifyingKey::from_bytes(&key)
        .and_then(|key| key.verify_strict(text.as_bytes(), &Signature::from_bytes(&signature)))
        .map_err(|_| signature_does_not_fit())
}

/// Reads `N` bytes from hex or any usual base64.
fn decode_exactly<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Longer than any of the forms, whatever it is.
    if text.len() > 2 * N {
        return None;
    }
    [HEXLOWER_PERMISSIVE, BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD]
        .iter()
        .find_map(|form| form.decode(text.as_bytes()).ok()?.try_into().ok())
}

fn signature_does_not_fit() -> ApiError {
    ApiError::forbidden(
        "the signature does not fit: sign the text that renew-nonce gave, with the Ed25519 key whose \
         public half (32 bytes in hex or base64) the peer registered",
    )
}

fn nonce_is_over() -> ApiError {
    ApiError::forbidden("the nonce is unknown, used or too old: get another from renew-nonce")
}

fn no_such_peer(peer: &PeerId) -> ApiError {
    ApiError::not_found(format!("no peer {peer} is registered here"))
}

fn peer_in_path(text: &str) -> Result<PeerId, ApiError> {
    text.parse().map_err(|error| {
        ApiError::invalid("path.peer_id", fields::own_peer("peer_id", text, &error))
    })
}

/// Who looks: a peer; nobody in particular for operators and, with `--auth open`, for those who do
/// not say.
fn viewer(caller: &Caller) -> Result<Option<PeerId>, ApiError> {
    if caller.is_open() || caller.is_operator() {
        return Ok(caller.peer().cloned());
    }
    caller.require().map(Some)
}

fn require_operator(caller: &Caller) -> Result<(), ApiError> {
    if caller.is_operator() {
        return Ok(());
    }
    let needed = "an operator's token is needed: make one with fieldpost operator token";
    Err(match caller.peer() {
        Some(_) => ApiError::forbidden(needed),
        None => ApiError::unauthorized(needed),
    })
}

/// The token that the request was sent with, if it is `peer`'s.
async fn own_token(
    gateway: &Gateway,
    headers: &HeaderMap,
    peer: &PeerId,
) -> Result<Option<String>, ApiError> {
    let Some(token) = limits::token(headers) else {
        return Ok(None);
    };
    let holder = gateway.store.token_holder(token).await?;
    Ok((holder == Some(TokenHolder::Peer(peer.clone()))).then(|| token.to_owned()))
}

/// A peer that wants to register.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterPeer {
    /// The name. Reserved are `broadcast`, 16 or 32 hex digits, and what begins with `group:`.
    #[schema(max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "alice")]
    peer_id: String,
    /// A key of any kind, for others to see. Where it is an Ed25519 key, 32 bytes in hex or
    /// base64, it can renew a lost token.
    #[schema(
        max_length = 4096,
        pattern = r"^[^\u0000]*$",
        example = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )]
    public_key: String,
    /// A name for people.
    #[schema(max_length = 100, pattern = r"^[^\u0000]*$", example = "Alice")]
    display_name: Option<String>,
    /// Whether to get broadcasts; true unless given.
    subscribe_broadcast: Option<bool>,
    /// Whether to be a BitChat peer for phones in range; false unless given. At most 50 peers
    /// are; further ones register off the air.
    on_air: Option<bool>,
    /// Who sees whether the peer is online and when it was last seen. Contacts are those it has
    /// written to and the members of its groups. `contacts` unless given, with `--auth open`
    /// `everyone`.
    presence: Option<Audience>,
    /// Whether strangers find it in the list of peers; true unless given.
    listed: Option<bool>,
    /// Where the gateway admits newcomers by invite: the invite.
    #[schema(
        max_length = 200,
        pattern = r"^[^\u0000]*$",
        example = "fpi_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA"
    )]
    invite: Option<String>,
}

impl RegisterPeer {
    fn checked(self, auth: Auth) -> Result<(NewPeer, Option<String>), ApiError> {
        let id = PeerId::parse(&self.peer_id)
            .map_err(|error| ApiError::invalid("body.peer_id", format!("peer_id: {error}")))?;
        let settings = UpdatePeer {
            display_name: self.display_name,
            subscribe_broadcast: self.subscribe_broadcast,
            on_air: self.on_air,
            presence: self.presence,
            listed: self.listed,
        };
        let invite =
            self.invite.map(|invite| fields::text("invite", invite, 0, MAX_INVITE)).transpose()?;
        let newcomer = NewPeer {
            id,
            public_key: fields::text("public_key", self.public_key, 0, MAX_PUBLIC_KEY)?,
            settings: settings.into_settings()?,
            defaults: PeerDefaults {
                on_air: false,
                shown_to: default_audience(auth),
                max_on_air: MAX_ON_AIR,
            },
            online_until: None,
        };
        Ok((newcomer, invite))
    }
}

/// Settings to change; what is not given stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdatePeer {
    /// A name for people; the empty text takes it away.
    #[schema(max_length = 100, pattern = r"^[^\u0000]*$", example = "Alice")]
    display_name: Option<String>,
    /// Whether to get broadcasts.
    subscribe_broadcast: Option<bool>,
    /// Whether to be a BitChat peer for phones in range; at most 50 peers are, and one more stays
    /// off the air.
    on_air: Option<bool>,
    /// Who sees whether the peer is online and when it was last seen.
    presence: Option<Audience>,
    /// Whether strangers find it in the list of peers.
    listed: Option<bool>,
}

impl UpdatePeer {
    fn into_settings(self) -> Result<PeerSettings, ApiError> {
        let display_name = self
            .display_name
            .map(|name| fields::text("display_name", name, 0, MAX_DISPLAY_NAME))
            .transpose()?;
        Ok(PeerSettings {
            display_name,
            subscribe_broadcast: self.subscribe_broadcast,
            on_air: self.on_air,
            shown_to: self.presence.map(ShownTo::from),
            listed: self.listed,
        })
    }
}

/// Who sees a peer's presence.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    /// Whoever may ask.
    Everyone,
    /// Those the peer has written to, and the members of its groups.
    Contacts,
    /// Nobody.
    Nobody,
}

impl From<Audience> for ShownTo {
    fn from(audience: Audience) -> Self {
        match audience {
            Audience::Everyone => Self::Everyone,
            Audience::Contacts => Self::Contacts,
            Audience::Nobody => Self::Nobody,
        }
    }
}

impl From<ShownTo> for Audience {
    fn from(shown_to: ShownTo) -> Self {
        match shown_to {
            ShownTo::Everyone => Self::Everyone,
            ShownTo::Contacts => Self::Contacts,
            ShownTo::Nobody => Self::Nobody,
        }
    }
}

/// A peer as the caller may see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct PeerInfo {
    /// The name; `peer@gateway` for a peer of another gateway.
    #[schema(max_length = 181, example = "alice")]
    peer_id: String,
    /// The key that the peer registered, or a phone's Noise key in hex; null for a peer of another
    /// gateway.
    #[schema(max_length = 4096, required)]
    public_key: Option<String>,
    /// A name for people.
    #[schema(max_length = 400, required)]
    display_name: Option<String>,
    /// Whether it is online; null where that is not shown to the caller.
    #[schema(required)]
    online: Option<bool>,
    /// When it last registered, sent or was connected; null where that is not shown to the caller.
    #[schema(required)]
    last_seen: Option<DateTime<Utc>>,
    /// When it first registered; for a peer of another gateway, when that first listed it.
    created_at: DateTime<Utc>,
    /// Whether it is a BitChat peer for phones in range of this gateway.
    on_air: bool,
    /// Its gateway, if that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 52, max_length = 52)]
    gateway: Option<String>,
    /// The transports that reach that gateway now; of another gateway's peer alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    transports: Option<Vec<String>>,
    /// When that gateway was last heard or in reach; of another gateway's peer alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    heard_at: Option<DateTime<Utc>>,
    /// Whether that gateway is trusted, so that the bare name may lead there; of another gateway's
    /// peer alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted: Option<bool>,
    /// How many links a phone's announces cross; of a phone alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    hops: Option<u8>,
    /// Whether a phone has proven its keys in a session; of a phone alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
    /// What the peer decided about itself; shown to itself alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<PeerChoices>,
}

impl PeerInfo {
    fn own(peer: Peer) -> Self {
        let settings = PeerChoices {
            subscribe_broadcast: peer.subscribe_broadcast,
            presence: peer.shown_to.into(),
            listed: peer.listed,
        };
        Self { settings: Some(settings), ..Self::of(peer) }
    }

    fn seen_by(viewer: Option<&PeerId>, peer: Peer) -> Self {
        if viewer == Some(&peer.id) { Self::own(peer) } else { Self::of(peer) }
    }

    fn of(peer: Peer) -> Self {
        Self {
            peer_id: peer.id.to_string(),
            public_key: Some(peer.public_key),
            display_name: peer.display_name,
            online: peer.online,
            last_seen: peer.last_seen_at,
            created_at: peer.created_at,
            on_air: peer.on_air,
            gateway: None,
            transports: None,
            heard_at: None,
            trusted: None,
            hops: None,
            verified: None,
            settings: None,
        }
    }

    fn phone(listed: ListedPhone) -> Self {
        let online = listed.is_in_reach();
        let phone = listed.phone;
        Self {
            peer_id: phone.id.to_string(),
            public_key: Some(HEXLOWER.encode(&phone.noise_key)),
            display_name: Some(phone.nickname),
            online: Some(online),
            last_seen: Some(phone.heard_at),
            created_at: listed.first_heard_at,
            on_air: true,
            gateway: None,
            transports: Some(listed.transports),
            heard_at: Some(phone.heard_at),
            trusted: None,
            hops: Some(phone.hops),
            verified: Some(phone.verified),
            settings: None,
        }
    }

    fn elsewhere(gateway: &Gateway, peer: RemotePeer) -> Self {
        Self {
            peer_id: peer.address().to_string(),
            public_key: None,
            display_name: peer.display_name,
            online: None,
            last_seen: None,
            created_at: peer.listed_at,
            on_air: false,
            gateway: Some(peer.home.gateway.to_string()),
            transports: Some(peer.transports),
            heard_at: Some(peer.home.heard_at),
            trusted: Some(peer.home.is_trusted(gateway.rosters.trust())),
            hops: None,
            verified: None,
            settings: None,
        }
    }
}

/// What a peer decided about itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct PeerChoices {
    /// Whether it gets broadcasts.
    subscribe_broadcast: bool,
    /// Who sees its presence.
    presence: Audience,
    /// Whether strangers find it in the list of peers.
    listed: bool,
}

/// A peer that was just registered.
#[derive(Debug, Serialize, ToSchema)]
pub struct RegisteredPeer {
    #[serde(flatten)]
    peer: PeerInfo,
    /// Proves to be this peer; shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "fp_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA")]
    token: Option<String>,
}

/// One page of peers.
#[derive(Debug, Serialize, ToSchema)]
pub struct PeerList {
    /// Those of this gateway by name, then those of others by name and gateway.
    #[schema(max_items = 1000)]
    peers: Vec<PeerInfo>,
    /// `cursor` of the next page; null at the end.
    #[schema(required)]
    next: Option<String>,
}

/// Which peers are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PeerFilter {
    /// Only those of whom the caller may see that they are online.
    #[param(default = false)]
    online: Option<bool>,
}

/// What is to be signed for a renewal.
#[derive(Debug, Serialize, ToSchema)]
pub struct RenewalNonce {
    /// Works once, and for a minute.
    nonce: String,
    /// This gateway.
    #[schema(min_length = 52, max_length = 52)]
    gateway_id: String,
    /// The text to sign, in UTF-8: `fieldpost-renew-v1`, the gateway id, the peer id and the nonce,
    /// with a line feed between each two.
    text: String,
    /// When the nonce ends.
    expires_at: DateTime<Utc>,
}

/// The proof that a peer's key is at hand.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewToken {
    /// From `renew-nonce`.
    #[schema(max_length = 200)]
    nonce: String,
    /// The Ed25519 signature, 64 bytes in hex or base64.
    #[schema(max_length = 128)]
    signature: String,
}

/// A token that has taken the place of another.
#[derive(Debug, Serialize, ToSchema)]
pub struct RenewedToken {
    /// Whose it is.
    peer_id: String,
    /// Proves to be this peer; shown this once.
    token: String,
}

/// What opens one socket.
#[derive(Debug, Serialize, ToSchema)]
pub struct SocketTicket {
    /// For `/v1/ws?ticket=`.
    ticket: String,
    /// When it ends.
    expires_at: DateTime<Utc>,
}

/// An invite to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInvite {
    /// What it is for; shown to nobody.
    #[schema(max_length = 200, pattern = r"^[^\u0000]*$", example = "the Sunday hikers")]
    note: Option<String>,
    /// How many peers may register with it.
    #[schema(minimum = 1, maximum = 10000, default = 1)]
    uses: Option<i32>,
    /// How long it holds, in seconds: a minute to a year; a week unless given.
    #[schema(minimum = 60, maximum = 31536000, default = 604800)]
    ttl: Option<i64>,
}

impl CreateInvite {
    fn checked(self) -> Result<(Option<String>, i32, TimeDelta), ApiError> {
        let note = self.note.map(|note| fields::text("note", note, 0, 200)).transpose()?;
        let uses = self.uses.unwrap_or(1);
        if !(1..=10_000).contains(&uses) {
            return Err(ApiError::invalid(
                "body.uses",
                format!("uses: {uses} is not in 1 to 10000"),
            ));
        }
        let ttl = self.ttl.unwrap_or(604_800);
        if !(60..=31_536_000).contains(&ttl) {
            let detail = format!("ttl: {ttl} is not in 60 to 31536000 seconds");
            return Err(ApiError::invalid("body.ttl", detail));
        }
        Ok((note, uses, TimeDelta::seconds(ttl)))
    }
}

/// An invite to register.
#[derive(Debug, Serialize, ToSchema)]
pub struct Invite {
    /// What newcomers send.
    invite: String,
    /// How many peers may register with it.
    #[schema(minimum = 1, maximum = 10000)]
    uses: i32,
    /// When it ends.
    expires_at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};

    use super::*;

    #[test]
    fn a_signature_renews_in_whatever_form_key_and_signature_are_written() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let text = text_of("alice");
        let public = key.verifying_key().to_bytes();
        let signature = key.sign(text.as_bytes()).to_bytes();
        for form in [HEXLOWER_PERMISSIVE, BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD] {
            check_signature(&form.encode(&public), &text, &form.encode(&signature)).unwrap();
        }
    }

    #[test]
    fn a_signature_for_another_peer_or_by_another_key_is_refused() {
        let (key, other) = (SigningKey::from_bytes(&[7; 32]), SigningKey::from_bytes(&[8; 32]));
        let public = BASE64.encode(key.verifying_key().as_bytes());
        let sign =
            |key: &SigningKey, text: &str| BASE64.encode(&key.sign(text.as_bytes()).to_bytes());
        for signature in [sign(&key, &text_of("bob")), sign(&other, &text_of("alice"))] {
            let refused = check_signature(&public, &text_of("alice"), &signature).unwrap_err();
            assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        }
        let malformed = check_signature(&public, &text_of("alice"), "zz").unwrap_err();
        assert_eq!(malformed.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let no_key = check_signature("none", &text_of("alice"), &sign(&key, &text_of("alice")));
        assert_eq!(no_key.unwrap_err().status(), StatusCode::FORBIDDEN);
    }

    #[test]
    fn the_signed_text_is_as_documented() {
        let lines = text_of("alice");
        let lines: Vec<&str> = lines.split('\n').collect();
        assert_eq!(lines[0], "fieldpost-renew-v1");
        assert_eq!(lines[1].len(), 52);
        assert_eq!(lines[2..], ["alice", "nonce"]);
    }

    fn text_of(peer: &str) -> String {
        renewal_text(&GatewayId::from_bytes([1; 32]), &peer.parse().unwrap(), "nonce")
    }
}
