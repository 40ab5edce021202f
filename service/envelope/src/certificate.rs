//! Node keys that a gateway vouches for (design, section 4).
//!
//! The gateway key only certifies. Each replica has a key of its own for each protocol, and shows a
//! certificate with it that names the gateway and holds for a day.
//!
//! ```text
//! signed certificate = payload || signature (64 bytes)
//! signature          = Ed25519(gateway's key, "fieldpost-certificate-v1" || payload)
//! payload            = { 0: 1, 1: purpose, 2: gateway (32 bytes), 3: node key (32 bytes),
//!                        4: not_before, 5: not_after }
//! ```
//!
//! The payload is deterministic CBOR like an envelope's. Purposes count in the order of
//! [`NodePurpose`]; times are milliseconds since 1970.

use ed25519_dalek::SigningKey;
use thiserror::Error;

use crate::{
    address::GatewayId,
    codec::{
        DecodeError, SignError, VerifyError,
        decode::{read_gateway, read_time},
        reader::Map,
        signature::{self, SIGNATURE_LENGTH},
        writer::MapWriter,
    },
    envelope::{FieldName, Violation, limits},
    message::Timestamp,
};

/// What a node key is for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum NodePurpose {
    /// The endpoint of the `mesh` transport: an Ed25519 key.
    Mesh,
    /// The Noise key of HTX links: X25519.
    Noise,
    /// The Sphinx key of a relay or a receiving gateway: X25519.
    Sphinx,
    /// The Noise key of a node on the BitChat mesh: X25519.
    BitChat,
}

impl NodePurpose {
    /// All there are, in the order of their numbers.
    pub const ALL: &[Self] = &[Self::Mesh, Self::Noise, Self::Sphinx, Self::BitChat];
}

/// A gateway's word that a node key is one of its replicas', for a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// The gateway that vouches.
    pub gateway: GatewayId,
    /// What the key is for.
    pub purpose: NodePurpose,
    /// The public key.
    pub node: [u8; 32],
    /// The first moment at which it holds.
    pub not_before: Timestamp,
    /// The last moment at which it holds.
    pub not_after: Timestamp,
}

impl Certificate {
    /// How far clocks of two gateways may differ, in milliseconds.
    pub const CLOCK_SKEW_MS: u64 = 5 * 60 * 1000;

    /// Encodes and signs the certificate as the gateway that it names.
    ///
    /// # Errors
    ///
    /// It names another gateway, or holds for more than [`limits::CERTIFICATE_MS`].
    pub fn sign(&self, key: &SigningKey) -> Result<SignedCertificate, SignError> {
        let signer = GatewayId::from(key.verifying_key());
        if self.gateway != signer {
            return Err(SignError::SignerOfAnother { signer });
        }
        self.check()?;
        let bytes = signature::sign(SIGNATURE_CONTEXT, self.encode(), key);
        Ok(SignedCertificate { bytes, certificate: *self })
    }

    fn check(&self) -> Result<(), Violation> {
        let span_ms = self
            .not_after
            .as_millis()
            .checked_sub(self.not_before.as_millis())
            .ok_or(Violation::CertificateEndsBeforeItBegins)?;
        let most_ms = limits::CERTIFICATE_MS;
        if span_ms > most_ms {
            return Err(Violation::CertificateSpan { span_ms, most_ms });
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::with_capacity(limits::CERTIFICATE);
        map.key(0).uint(VERSION);
        map.key(1).uint(self.purpose as u64);
        map.key(2).bytes(self.gateway.as_bytes());
        map.key(3).bytes(&self.node);
        map.key(4).uint(self.not_before.as_millis());
        map.key(5).uint(self.not_after.as_millis());
        map.finish()
    }
}

/// A certificate with its signature, ready to be shown or just seen.
///
/// What it says comes out of [`verify`](Self::verify) alone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignedCertificate {
    bytes: Vec<u8>,
    certificate: Certificate,
}

impl SignedCertificate {
    /// Reads bytes that came from somebody. The signature is not looked at yet.
    ///
    /// What decodes encodes to the same bytes again.
    ///
    /// # Errors
    ///
    /// Says what is wrong with them; none of the errors is a bug on our side.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (length, most) = (bytes.len(), limits::CERTIFICATE);
        if length > most {
            return Err(DecodeError::Oversize { length, most });
        }
        let (payload, _) =
            bytes.split_last_chunk::<SIGNATURE_LENGTH>().ok_or(DecodeError::Truncated)?;
        let mut map = Map::begin(payload)?;
        let version = map.required(0, FieldName::Version)?.uint()?;
        if version != VERSION {
            return Err(DecodeError::UnsupportedVersion(version));
        }
        let purpose = map.required(1, FieldName::NodePurpose)?.uint()?;
        let certificate = Certificate {
            purpose: usize::try_from(purpose)
                .ok()
                .and_then(|index| NodePurpose::ALL.get(index).copied())
                .ok_or(DecodeError::OutOfRange { field: FieldName::NodePurpose, value: purpose })?,
            gateway: read_gateway(map.required(2, FieldName::Gateway)?)?,
            node: map.required(3, FieldName::NodeKey)?.array()?,
            not_before: read_time(map.required(4, FieldName::NotBefore)?)?,
            not_after: read_time(map.required(5, FieldName::NotAfter)?)?,
        };
        map.finish()?;
        certificate.check()?;
        debug_assert!(certificate.encode() == payload, "one certificate has one encoding");
        Ok(Self { bytes: bytes.to_vec(), certificate })
    }

    /// The bytes to show, at most [`limits::CERTIFICATE`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Verifies the signature and that the certificate holds at `now`, give or take
    /// [`Certificate::CLOCK_SKEW_MS`].
    ///
    /// # Errors
    ///
    /// The gateway that it names did not sign it, or it does not hold now.
    pub fn verify(&self, now: Timestamp) -> Result<Certificate, CertificateError> {
        let certificate = self.certificate;
        signature::verify(SIGNATURE_CONTEXT, &self.bytes, certificate.gateway)?;
        let (now, skew) = (now.as_millis(), Certificate::CLOCK_SKEW_MS);
        let (first, last) = (certificate.not_before.as_millis(), certificate.not_after.as_millis());
        if now.saturating_add(skew) < first {
            return Err(CertificateError::NotYet { in_ms: first - now });
        }
        if now > last.saturating_add(skew) {
            return Err(CertificateError::Expired { since_ms: now - last });
        }
        Ok(certificate)
    }
}

/// Why a certificate is not believed.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum CertificateError {
    /// The gateway that it names did not sign it.
    #[error(transparent)]
    Signature(#[from] VerifyError),
    /// It begins later than clocks may differ.
    #[error("the certificate begins to hold in {in_ms} ms")]
    NotYet {
        /// How far ahead its first moment lies.
        in_ms: u64,
    },
    /// It ended longer ago than clocks may differ.
    #[error("the certificate expired {since_ms} ms ago")]
    Expired {
        /// How long ago its last moment was.
        since_ms: u64,
    },
}

const SIGNATURE_CONTEXT: &[u8] = b"fieldpost-certificate-v1";
const VERSION: u64 = 1;
