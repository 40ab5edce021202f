//! Who is calling, and for whom a request may speak (design, sections 4 and 6).

use axum::{
    extract::{FromRequestParts, Query},
    http::{HeaderMap, Uri, header, request::Parts},
};
use fieldpost_envelope::PeerId;

use crate::{
    Gateway,
    config::Auth,
    http::{error::ApiError, limits::Found},
    store::TokenHolder,
};

/// Who makes a request, as far as the request's head tells.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whom the token names or, with `--auth open`, the query or the header.
    peer: Option<PeerId>,
    /// Whether the token is an operator's.
    operator: bool,
    /// Whether a caller is believed.
    open: bool,
}

impl Caller {
    /// A caller known by other means, such as a socket's ticket.
    pub fn known(peer: PeerId) -> Self {
        Self { peer: Some(peer), operator: false, open: false }
    }

    /// Whether `--auth open` is on.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether an operator calls.
    pub fn is_operator(&self) -> bool {
        self.operator
    }

    /// The peer that calls, if the request's head names one.
    pub fn peer(&self) -> Option<&PeerId> {
        self.peer.as_ref()
    }

    /// The peer that calls.
    ///
    /// # Errors
    ///
    /// 401 without a token; with `--auth open` 400 when the request names nobody.
    pub fn require(&self) -> Result<PeerId, ApiError> {
        self.peer.clone().ok_or_else(|| {
            if self.open {
                ApiError::bad_request(
                    "the request names no caller: give the query parameter peer or the header \
                     Fieldpost-Peer",
                )
            } else {
                ApiError::unauthorized(
                    "a peer's token is needed: send Authorization: Bearer <token from registration>",
                )
            }
        })
    }

    /// Who looks: a peer; nobody in particular for operators and, with `--auth open`, for those who do
    /// not say.
    ///
    /// # Errors
    ///
    /// 401 without a token where one is needed.
    pub fn viewer(&self) -> Result<Option<PeerId>, ApiError> {
        if self.open || self.operator {
            return Ok(self.peer.clone());
        }
        self.require().map(Some)
    }

    /// The peer that acts when the request itself names `claimed` in its path or body.
    ///
    /// # Errors
    ///
    /// 401 without a token, 403 when the token names another peer; with `--auth open` 400 when the
    /// head of the request names another.
    pub fn acting_as(&self, claimed: &PeerId) -> Result<PeerId, ApiError> {
        match &self.peer {
            Some(peer) if peer == claimed => Ok(peer.clone()),
            Some(peer) if self.open => Err(ApiError::bad_request(format!(
                "the request names two callers: {peer} in its head and {claimed}"
            ))),
            Some(_) => Err(ApiError::forbidden(format!("the token is not {claimed}'s"))),
            None if self.open => Ok(claimed.clone()),
            None => self.require(),
        }
    }

    /// The peer that acts: `claimed` if the request names one, else the caller.
    ///
    /// # Errors
    ///
    /// As [`require`](Self::require) and [`acting_as`](Self::acting_as).
    pub fn acting(&self, claimed: Option<&PeerId>) -> Result<PeerId, ApiError> {
        match claimed {
            Some(claimed) => self.acting_as(claimed),
            None => self.require(),
        }
    }
}

/// The header by which a request names its caller with `--auth open`.
pub const PEER_HEADER: &str = "fieldpost-peer";

impl FromRequestParts<Gateway> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, ApiError> {
        match parts.extensions.get() {
            Some(Found(found)) => found.clone(),
            None => Self::find(gateway, &parts.uri, &parts.headers).await,
        }
    }
}

impl Caller {
    /// Who makes the request with this head.
    ///
    /// # Errors
    ///
    /// 401 for a token that is nobody's, 400 when the head names two callers.
    pub(super) async fn find(
        gateway: &Gateway,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        let open = gateway.config.auth == Auth::Open;
        let mut caller = Self { peer: None, operator: false, open };
        if let Some(token) = bearer_token(headers)? {
            match gateway.store.token_holder(token).await? {
                Some(TokenHolder::Peer(peer)) => caller.peer = Some(peer),
                Some(TokenHolder::Operator) => caller.operator = true,
                // Clients of the original send whatever they have.
                None if open => {}
                None => {
                    return Err(ApiError::unauthorized(
                        "the token is unknown or was renewed; a peer with a key gets a new one by \
                         POST /v1/peers/{peer_id}/renew",
                    ));
                }
            }
        }
        if open {
            for name in named_in_head(uri, headers)? {
                if caller.peer.as_ref().is_some_and(|peer| *peer != name) {
                    return Err(ApiError::bad_request("the request names two different callers"));
                }
                caller.peer = Some(name);
            }
        } else if let Some(peer) = &caller.peer {
            // What the token says stands; a request that says otherwise is not what its sender thinks.
            if let Some(other) = named_in_head(uri, headers)?.iter().find(|name| *name != peer) {
                return Err(ApiError::forbidden(format!(
                    "the request names {other}, but the token is not {other}'s"
                )));
            }
        }
        Ok(caller)
    }
}

fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| Some(token.trim()))
        .ok_or_else(|| ApiError::unauthorized("Authorization must read: Bearer <token>"))
}

fn named_in_head(uri: &Uri, headers: &HeaderMap) -> Result<Vec<PeerId>, ApiError> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| ApiError::invalid("query", error.body_text()))?;
    let mut names = Vec::new();
    for (_, value) in pairs.iter().filter(|(name, _)| name == "peer") {
        names.push(parse_name("peer", value)?);
    }
    if let Some(value) = headers.get(PEER_HEADER) {
        names.push(parse_name("Fieldpost-Peer", &String::from_utf8_lossy(value.as_bytes()))?);
    }
    Ok(names)
}

fn parse_name(field: &str, text: &str) -> Result<PeerId, ApiError> {
    text.parse().map_err(|error| ApiError::invalid(field, format!("{field}: {error}")))
}
