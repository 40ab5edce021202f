//! An Ed25519 signature behind the payload, over a context and the payload.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey, verify_batch};

use super::VerifyError;
use crate::address::GatewayId;

/// The payload with its signature.
pub(crate) fn sign(context: &[u8], mut payload: Vec<u8>, key: &SigningKey) -> Vec<u8> {
    let signature = key.sign(&[context, &payload].concat());
    payload.extend_from_slice(&signature.to_bytes());
    payload
}

/// Verifies bytes that end in a signature of `signer`.
pub(crate) fn verify(context: &[u8], bytes: &[u8], signer: GatewayId) -> Result<(), VerifyError> {
    let (payload, signature) = bytes
        .split_last_chunk::<SIGNATURE_LENGTH>()
        .expect("decoding and signing leave room for a signature");
    let key = signer.verifying_key().map_err(|_| VerifyError::Key { signer })?;
    key.verify_strict(&[context, payload].concat(), &Signature::from_bytes(signature))
        .map_err(|_| VerifyError::Signature { signer })
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
