//! Peers and their access on `/v1`: registration, settings, renewal, tickets, invites (design,
//! sections 4 and 6).

mod invites;
mod renewal;
mod shapes;
mod tickets;

use axum::{extract::State, http::HeaderMap, http::StatusCode};
use fieldpost_envelope::{PeerAddress, PeerId};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::shapes::{PeerFilter, PeerInfo, PeerList, RegisterPeer, RegisteredPeer, UpdatePeer};
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
    store::{Admission, NewPeer, Peer, Registered, ShownTo, TokenHolder},
};

/// The routes of `/v1/peers`, `/v1/ws-ticket` and `/v1/invites`.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(register, list))
        .routes(routes!(show, update))
        .merge(renewal::routes())
        .merge(tickets::routes())
        .merge(invites::routes())
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
    let viewer = caller.viewer()?;
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
    let viewer = caller.viewer()?;
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
/// Characters of a display name.
pub const MAX_DISPLAY_NAME: usize = 100;

fn no_such_peer(peer: &PeerId) -> ApiError {
    ApiError::not_found(format!("no peer {peer} is registered here"))
}

fn peer_in_path(text: &str) -> Result<PeerId, ApiError> {
    text.parse().map_err(|error| {
        ApiError::invalid("path.peer_id", fields::own_peer("peer_id", text, &error))
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
