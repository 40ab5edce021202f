//! An Ed25519 signature behind the payload, over a context and the payload.

use curve25519_dalek::edwards::CompressedEdwardsY;
use ed25519_dalek::{
    Signature, SigningKey, VerifyingKey,
    ed25519::signature::{MultipartSigner, MultipartVerifier},
    verify_batch,
};

use super::VerifyError;
use crate::address::GatewayId;

/// The payload with its signature.
pub(crate) fn sign(context: &[u8], mut payload: Vec<u8>, key: &SigningKey) -> Vec<u8> {
    let signature = key.multipart_sign(&[context, &payload]);
    payload.extend_from_slice(&signature.to_bytes());
    payload
}

/// Verifies bytes that end in a signature of `signer`.
pub(crate) fn verify(context: &[u8], bytes: &[u8], signer: GatewayId) -> Result<(), VerifyError> {
    let (payload, signature) = bytes
        .split_last_chunk::<SIGNATURE_LENGTH>()
        .expect("decoding and signing leave room for a signature");
    let key = signer.verifying_key().map_err(|_| VerifyError::Key { signer })?;
    let signature = Signature::from_bytes(signature);
    if key.is_weak() || is_of_small_order(signature.r_bytes()) {
        return Err(VerifyError::Signature { signer });
    }
    key.multipart_verify(&[context, payload], &signature)
        .map_err(|_| VerifyError::Signature { signer })
}

/// What `VerifyingKey::verify_strict` refuses beside weak keys; that takes messages in one piece alone,
/// and content is not copied for it.
fn is_of_small_order(point: &[u8; 32]) -> bool {
    CompressedEdwardsY(*point).decompress().is_none_or(|point| point.is_small_order())
}

/// Verifies bytes that each end in a signature of the gateway beside them; together that takes half
/// the time.
///
/// Where they do not hold together, each is verified by itself. A signature whose maker worked a point
/// of small order into it may pass among others though it would not alone: whoever can do that holds
/// the key, and could as well have signed properly.
pub(crate) fn verify_each(
    context: &[u8],
    all: &[(&[u8], GatewayId)],
) -> Vec<Result<(), VerifyError>> {
    if all.len() >= WORTH_A_BATCH && verify_together(context, all).is_some() {
        return vec![Ok(()); all.len()];
    }
    all.iter().map(|(bytes, signer)| verify(context, bytes, *signer)).collect()
}

fn verify_together(context: &[u8], all: &[(&[u8], GatewayId)]) -> Option<()> {
    let mut known: Vec<(GatewayId, VerifyingKey)> = Vec::new();
    let (mut keys, mut signatures) = (Vec::new(), Vec::new());
    let mut messages = Vec::with_capacity(all.len());
    for (bytes, signer) in all {
        let (payload, signature) = bytes.split_last_chunk::<SIGNATURE_LENGTH>()?;
        let key = match known.iter().find(|(gateway, _)| gateway == signer) {
            Some((_, key)) => *key,
            None => {
                let key = signer.verifying_key().ok().filter(|key| !key.is_weak())?;
                known.push((*signer, key));
                key
            }
        };
        keys.push(key);
        signatures.push(Signature::from_bytes(signature));
        messages.push([context, payload].concat());
    }
    let messages: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    verify_batch(&messages, &signatures, &keys).ok()
}

pub(crate) const SIGNATURE_LENGTH: usize = 64;
/// From so many on a batch is faster than one by one.
const WORTH_A_BATCH: usize = 3;

#[cfg(test)]
mod tests {
    use curve25519_dalek::Scalar;
    use ed25519_dalek::Verifier;
    use sha2::{Digest, Sha512};

    use super::*;

    #[test]
    fn a_point_of_small_order_is_refused_although_the_equation_holds() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let point = {
            let mut identity = [0; 32];
            identity[0] = 1;
            identity
        };
        let message = [&b"context"[..], b"payload"].concat();
        let hash = Sha512::new()
            .chain_update(point)
            .chain_update(key.verifying_key().as_bytes())
            .chain_update(&message);
        let scalar = Scalar::from_bytes_mod_order_wide(&hash.finalize().into()) * key.to_scalar();
        let signature = Signature::from_components(point, scalar.to_bytes());
        key.verifying_key().verify(&message, &signature).expect("the equation holds");

        let signer = GatewayId::from(key.verifying_key());
        let bytes = [&b"payload"[..], &signature.to_bytes()].concat();
        let refused = Err(VerifyError::Signature { signer });
        assert_eq!(verify(b"context", &bytes, signer), refused);
        verify(b"context", &sign(b"context", b"payload".to_vec(), &key), signer)
            .expect("a good one");
    }
}
