//! A token that was lost or stolen is renewed by the key that its peer registered.

use axum::extract::State;
use chrono::{DateTime, Utc};
use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use ed25519_dalek::{Signature, VerifyingKey};
use fieldpost_envelope::{GatewayId, PeerId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::peer_in_path;
use crate::{
    Gateway,
    http::{
        error::{ApiError, Problem},
        extract::{Json, Path},
    },
    store::Renewed,
};

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(renewal_nonce)).routes(routes!(renew))
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

/// What a peer signs to renew its token (design, section 4).
fn renewal_text(gateway: &GatewayId, peer: &PeerId, nonce: &str) -> String {
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

/// What is to be signed for a renewal.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RenewalNonce {
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
pub(super) struct RenewToken {
    /// From `renew-nonce`.
    #[schema(max_length = 200)]
    nonce: String,
    /// The Ed25519 signature, 64 bytes in hex or base64.
    #[schema(max_length = 128)]
    signature: String,
}

/// A token that has taken the place of another.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RenewedToken {
    /// Whose it is.
    peer_id: String,
    /// Proves to be this peer; shown this once.
    token: String,
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
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
