//! The bytes between gateways: deterministic CBOR and an Ed25519 signature (design, section 7).
//!
//! ```text
//! signed envelope = payload || signature (64 bytes)
//! signature       = Ed25519(signer's key, "fieldpost-envelope-v1" || payload)
//! digest          = SHA-256(payload)
//! payload         = { 0: 1, 1: kind, 2: signer (32 bytes), … }
//! ```
//!
//! The payload is a CBOR map in the deterministic encoding of RFC 8949, section 4.2.1. Its keys are
//! integers; the tables below say which there are.
//!
//! | Key | Kind 0, message | Kind 1, receipt | Kind 2, forward |
//! |---|---|---|---|
//! | 3 | sender's peer id, text | digest of what it answers, 32 bytes | recipient |
//! | 4 | recipient | receipt kind, 0 to 3 | lane_seq, if any |
//! | 5 | group id, text, if the sender wrote to a group of the signer | time | after, if any |
//! | 6 | message id, 16 bytes | reason, text, if any | the signed message, bytes |
//! | 7, 8 | sent_at, expires_at | | |
//! | 9, 10 | priority, 0 to 3, low first; level, 0 to 3 | | |
//! | 11, 12 | lane_seq, after, if any | | |
//! | 13 | content, text or bytes as it was sent | | |
//! | 14, 15, 16 | content type, message type, metadata, if any: text | | |
//! | 17 | file ids, array of text, unless empty | | |
//! | 18 | labels, map of text to text, unless empty | | |
//!
//! A recipient is `[0, gateway, peer id]`, `[1, home, group id]` or `[2]` for a broadcast. Times are
//! milliseconds since 1970. Receipt kinds count in the order of [`ReceiptKind`].
//!
//! Because the signer stands in the sender's place, no envelope can claim a sender of another
//! gateway. A **forward** carries a message to a group on to a member: the group's home signs the
//! forward, the sender's gateway signed the message inside, and both are verified.
//!
//! Version 1 has no other keys, and an unknown one is refused: what a gateway does not understand,
//! it cannot vouch for with a receipt. A new field is a new version.

pub(crate) mod decode;
mod encode;
pub(crate) mod reader;
pub(crate) mod signature;
pub(crate) mod writer;

use std::{fmt, sync::Arc};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sha2::{Digest, Sha256};
use thiserror::Error;

use self::{decode::decode_signed, signature::SIGNATURE_LENGTH};
use crate::{
    address::{AddressError, GatewayId, PeerAddress, Recipient},
    envelope::{Envelope, FieldName, Receipt, Violation, limits},
    message::LaneSeq,
};

impl Envelope {
    /// Encodes and signs the envelope as the sender's gateway.
    ///
    /// The same envelope and key always give the same bytes.
    ///
    /// # Errors
    ///
    /// The envelope breaks a rule, or the sender is not of this gateway.
    pub fn sign(&self, key: &SigningKey) -> Result<SignedEnvelope, SignError> {
        self.clone().into_signed(key)
    }

    /// As [`sign`](Self::sign), without a copy of the content.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn into_signed(self, key: &SigningKey) -> Result<SignedEnvelope, SignError> {
        let signer = GatewayId::from(key.verifying_key());
        if self.sender.gateway != Some(signer) {
            return Err(SignError::SenderOfAnother { signer });
        }
        self.check_to(signer)?;
        self.check()?;
        Ok(SignedEnvelope::new(Body::Message(self), key))
    }
}

impl Receipt {
    /// Encodes and signs the receipt as the recipient's gateway.
    ///
    /// # Errors
    ///
    /// The receipt breaks a rule, or names another signer.
    pub fn sign(&self, key: &SigningKey) -> Result<SignedEnvelope, SignError> {
        let signer = GatewayId::from(key.verifying_key());
        if self.signer != signer {
            return Err(SignError::SignerOfAnother { signer });
        }
        self.check()?;
        Ok(SignedEnvelope::new(Body::Receipt(self.clone()), key))
    }
}

/// A message to a group, on its way from the group's home to a member elsewhere.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The member.
    pub recipient: PeerAddress,
    /// The place among what the home forwards of this sender and group to the member.
    pub lane_seq: Option<LaneSeq>,
    /// The last predecessor in that lane that has not ended.
    pub after: Option<LaneSeq>,
    /// The message as the sender's gateway signed it.
    pub original: SignedEnvelope,
}

impl Forward {
    /// Encodes and signs the forward as the home of the group.
    ///
    /// # Errors
    ///
    /// The original is not a message to a group of this gateway, or a rule is broken.
    pub fn sign(&self, key: &SigningKey) -> Result<SignedEnvelope, SignError> {
        let signer = GatewayId::from(key.verifying_key());
        let message = self.forwarded(signer)?;
        let original = Box::new(self.original.clone());
        Ok(SignedEnvelope::new(Body::Forward { message, original }, key))
    }

    /// The message as the member gets it.
    fn forwarded(&self, home: GatewayId) -> Result<Envelope, Violation> {
        let Body::Message(original) = &*self.original.body else {
            return Err(Violation::ForwardOfAnother);
        };
        let to_group_here = matches!(original.recipient, Recipient::Group { .. })
            && original.recipient.gateway() == Some(home);
        if !to_group_here || self.original.signer() == home {
            return Err(Violation::ForwardOfAnother);
        }
        let message = Envelope {
            recipient: self.recipient.clone().into(),
            lane_seq: self.lane_seq,
            after: self.after,
            ..original.clone()
        };
        message.check_to(home)?;
        message.check()?;
        Ok(message)
    }
}

/// An envelope, a forward or a receipt with its signature, ready to travel or just arrived.
///
/// What it says comes out of [`verify`](Self::verify) alone. `Debug` shows neither content nor
/// names. Cheap to clone.
#[derive(Clone)]
pub struct SignedEnvelope {
    bytes: Bytes,
    body: Arc<Body>,
}

#[derive(Clone)]
enum Body {
    Message(Envelope),
    Receipt(Receipt),
    /// The message as the member gets it, and as it was signed.
    Forward {
        message: Envelope,
        original: Box<SignedEnvelope>,
    },
}

impl Body {
    fn signer(&self) -> GatewayId {
        match self {
            Self::Message(message) => message.sender.gateway,
            Self::Receipt(receipt) => Some(receipt.signer),
            Self::Forward { message, .. } => message.to.gateway(),
        }
        .expect("decoding and signing put the signer there")
    }
}

impl SignedEnvelope {
    /// Reads bytes that came from somebody. The signature is not looked at yet.
    ///
    /// What decodes encodes to the same bytes again.
    ///
    /// # Errors
    ///
    /// Says what is wrong with them; none of the errors is a bug on our side.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode_shared(Bytes::copy_from_slice(bytes))
    }

    /// As [`decode`](Self::decode), without a copy of the bytes.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn decode_shared(bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.len() > limits::SIGNED {
            return Err(DecodeError::Oversize { length: bytes.len(), most: limits::SIGNED });
        }
        decode_signed(bytes, false)
    }

    /// The bytes to send, at most [`limits::SIGNED`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes to send.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into()
    }

    /// The bytes to send, shared with the clones of this.
    pub fn into_shared(self) -> Bytes {
        self.bytes
    }

    /// What a receipt calls this envelope by: SHA-256 of the payload.
    ///
    /// The signature is left out, because a signer can make many for one payload.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.parts().0).into()
    }

    /// Who claims to have signed this; true once [`verify`](Self::verify) succeeded.
    pub fn signer(&self) -> GatewayId {
        self.body.signer()
    }

    /// Verifies the signature, for a forward both, and gives out what was said.
    ///
    /// # Errors
    ///
    /// The signer, or the one of the forwarded message, did not sign this.
    pub fn verify(self) -> Result<Verified, VerifyError> {
        self.signatures()
            .try_for_each(|(bytes, signer)| signature::verify(SIGNATURE_CONTEXT, bytes, signer))?;
        Ok(self.give_out())
    }

    /// Verifies several, as [`verify`](Self::verify) does each; many together take half the time.
    pub fn verify_each(all: Vec<Self>) -> Vec<Result<Verified, VerifyError>> {
        let signatures: Vec<_> = all.iter().flat_map(Self::signatures).collect();
        let mut verified = signature::verify_each(SIGNATURE_CONTEXT, &signatures).into_iter();
        let counts: Vec<_> = all.iter().map(|one| one.signatures().count()).collect();
        let outcomes = counts.into_iter().map(|count| {
            // All of its own are taken, also behind one that is wrong.
            let own: Vec<_> = verified.by_ref().take(count).collect();
            own.into_iter().collect::<Result<(), _>>()
        });
        all.into_iter()
            .zip(outcomes)
            .map(|(one, outcome)| outcome.map(|()| one.give_out()))
            .collect()
    }

    /// What was said, once its signatures are known to be good.
    fn give_out(self) -> Verified {
        let (signer, digest) = (self.signer(), self.digest());
        let said = match Arc::unwrap_or_clone(self.body) {
            Body::Receipt(receipt) => Said::Receipt(receipt),
            Body::Message(message) | Body::Forward { message, .. } => Said::Message(message.into()),
        };
        Verified { signer, digest, said }
    }

    fn new(body: Body, key: &SigningKey) -> Self {
        let bytes = signature::sign(SIGNATURE_CONTEXT, body.encode(), key).into();
        Self { bytes, body: body.into() }
    }

    /// The signed bytes in it, each with who claims to have signed them.
    fn signatures(&self) -> impl Iterator<Item = (&[u8], GatewayId)> {
        let inner = match &*self.body {
            Body::Forward { original, .. } => Some((&original.bytes[..], original.signer())),
            Body::Message(_) | Body::Receipt(_) => None,
        };
        [(&self.bytes[..], self.signer())].into_iter().chain(inner)
    }

    fn parts(&self) -> (&[u8], &[u8; SIGNATURE_LENGTH]) {
        self.bytes.split_last_chunk().expect("decoding and signing leave room for a signature")
    }
}

impl Eq for SignedEnvelope {}

impl PartialEq for SignedEnvelope {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl fmt::Debug for SignedEnvelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedEnvelope")
            .field("signer", &self.signer())
            .field("size_bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// What a gateway said, with proof that it did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verified {
    /// Who signed, and where receipts go. For a forward this is the group's home, not the sender's
    /// gateway.
    pub signer: GatewayId,
    /// What a receipt calls this by.
    pub digest: [u8; 32],
    /// What was said.
    pub said: Said,
}

/// The two things that gateways say to each other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Said {
    /// A message; a forwarded one looks like any other from a group.
    Message(Box<Envelope>),
    /// A receipt.
    Receipt(Receipt),
}

/// Why an envelope or a receipt of ours is not signed.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SignError {
    /// A gateway signs for its own peers alone.
    #[error("the sender is not a peer of {signer}, the gateway that signs")]
    SenderOfAnother {
        /// The gateway whose key it is.
        signer: GatewayId,
    },
    /// A receipt, a certificate or a roster names the gateway that signs it.
    #[error("what is to be signed names another gateway than {signer}, whose key it is")]
    SignerOfAnother {
        /// The gateway whose key it is.
        signer: GatewayId,
    },
    /// It breaks a rule, and others would refuse it.
    #[error(transparent)]
    Violation(#[from] Violation),
}

/// Why a decoded envelope is not believed.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum VerifyError {
    /// The signer is not an Ed25519 key.
    #[error("{signer} is not a valid Ed25519 key")]
    Key {
        /// Who claims to have signed.
        signer: GatewayId,
    },
    /// The signature does not belong to this payload and signer.
    #[error("the signature is not one of {signer} for these bytes")]
    Signature {
        /// Who claims to have signed.
        signer: GatewayId,
    },
}

/// Why received bytes are not an envelope.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum DecodeError {
    /// More bytes than any envelope has.
    #[error("{length} bytes are too many: expected at most {most}")]
    Oversize {
        /// How many there are.
        length: usize,
        /// How many there may be.
        most: usize,
    },
    /// The bytes end before the envelope does.
    #[error("the bytes end before the envelope does")]
    Truncated,
    /// Something follows the payload.
    #[error("{extra} bytes follow the payload")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// Not CBOR at all.
    #[error("byte {at} begins no CBOR item")]
    Malformed {
        /// Where, counted from the start.
        at: usize,
    },
    /// Deterministic CBOR has no indefinite lengths.
    #[error("the item at byte {at} has an indefinite length")]
    Indefinite {
        /// Where, counted from the start.
        at: usize,
    },
    /// Deterministic CBOR writes numbers and lengths as short as can be.
    #[error("the number at byte {at} is not written in its shortest form")]
    NotShortest {
        /// Where, counted from the start.
        at: usize,
    },
    /// The payload is something else than a map.
    #[error("the payload is not a map")]
    NotAMap,
    /// A map key of the payload that is no number.
    #[error("the map key at byte {at} is not an unsigned integer")]
    KeyType {
        /// Where, counted from the start.
        at: usize,
    },
    /// Deterministic CBOR sorts map keys.
    #[error("key {key} comes after a greater one")]
    KeyOrder {
        /// The key out of order.
        key: u64,
    },
    /// A map key that was there before.
    #[error("key {key} comes twice")]
    DuplicateKey {
        /// The key.
        key: u64,
    },
    /// Version 1 knows no such key in this kind.
    #[error("key {key} is unknown in this kind")]
    UnknownKey {
        /// The key.
        key: u64,
    },
    /// A field that every envelope of the kind has.
    #[error("{field} is missing")]
    Missing {
        /// The field.
        field: FieldName,
    },
    /// A field of the wrong CBOR type.
    #[error("{field} has the wrong type")]
    WrongType {
        /// The field.
        field: FieldName,
    },
    /// Keys, digests and message ids have fixed lengths.
    #[error("{field} has {length}: expected {expected}")]
    Length {
        /// The field.
        field: FieldName,
        /// How many bytes or entries it has.
        length: usize,
        /// How many it should have.
        expected: usize,
    },
    /// A list or map that is empty should be absent.
    #[error("{field} is empty: expected it to be absent")]
    Empty {
        /// The field.
        field: FieldName,
    },
    /// Deterministic CBOR sorts labels: shorter names first, then by bytes, and none twice.
    #[error("labels are not in ascending order")]
    LabelOrder,
    /// We speak version 1.
    #[error("unsupported version {0}: expected 1")]
    UnsupportedVersion(u64),
    /// Deterministic lists of names are sorted, and none comes twice.
    #[error("{field} is not in ascending order")]
    NameOrder {
        /// The field.
        field: FieldName,
    },
    /// There are messages, receipts and forwards.
    #[error("unknown envelope kind {0}: expected 0 to 2")]
    UnknownKind(u64),
    /// A number that is none of the field's.
    #[error("{field} {value} is out of range")]
    OutOfRange {
        /// The field.
        field: FieldName,
        /// What it holds.
        value: u64,
    },
    /// A name that is none.
    #[error("{field} is not a name")]
    Address {
        /// The field.
        field: FieldName,
        /// What is wrong with it.
        source: AddressError,
    },
    /// A phone's name has its digits in lower case.
    #[error("{field} is not in its canonical form: expected lower case")]
    NotCanonicalName {
        /// The field.
        field: FieldName,
    },
    /// A forward carries a message, not another forward or a receipt.
    #[error("a forward holds something else than a message")]
    ForwardOfNoMessage,
    /// It is well formed but breaks a rule.
    #[error(transparent)]
    Violation(#[from] Violation),
}

const SIGNATURE_CONTEXT: &[u8] = b"fieldpost-envelope-v1";
const VERSION: u64 = 1;
const MESSAGE: u64 = 0;
const RECEIPT: u64 = 1;
const FORWARD: u64 = 2;

/// The order of RFC 8949, section 4.2.1: the length is part of the encoded key and comes first.
fn label_rank(name: &str) -> (usize, &str) {
    (name.len(), name)
}
