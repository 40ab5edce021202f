//! An Ed25519 signature behind the payload, over a context and the payload.

use ed25519_dalek::{Signature, Signer, SigningKey};

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

pub(crate) const SIGNATURE_LENGTH: usize = 64;
