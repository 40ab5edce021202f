//! Gateways with fixed keys and the things that they say to each other.

use std::convert::Infallible;

use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, Forward, GatewayId, LaneSeq, MessageId, PeerAddress,
    Priority, Receipt, ReceiptKind, Recipient, SignedEnvelope, Timestamp,
};
use rand::{TryCryptoRng, TryRng};
use uuid::Uuid;

/// A gateway whose secret key is this byte, 32 times.
#[derive(Clone, Copy)]
pub(crate) struct Gateway(pub(crate) u8);

pub(crate) const ALPHA: Gateway = Gateway(1);
pub(crate) const BRAVO: Gateway = Gateway(2);
pub(crate) const CHARLIE: Gateway = Gateway(3);

impl Gateway {
    pub(crate) fn secret(self) -> [u8; 32] {
        [self.0; 32]
    }

    pub(crate) fn key(self) -> SigningKey {
        SigningKey::from_bytes(&self.secret())
    }

    pub(crate) fn id(self) -> GatewayId {
        self.key().verifying_key().into()
    }

    pub(crate) fn peer(self, name: &str) -> PeerAddress {
        PeerAddress::remote(name.parse().unwrap(), self.id())
    }

    pub(crate) fn group(self, name: &str) -> Recipient {
        Recipient::Group { id: name.parse().unwrap(), home: Some(self.id()) }
    }
}

/// Alice of alpha writes to Bob of bravo.
pub(crate) fn greeting() -> Envelope {
    Envelope {
        sender: ALPHA.peer("alice"),
        recipient: BRAVO.peer("bob").into(),
        to: BRAVO.peer("bob").into(),
        message_id: MessageId(Uuid::from_bytes([0x11; 16])),
        sent_at: time(1_790_000_000_000),
        expires_at: time(1_790_000_000_000 + 7 * 24 * 3_600_000),
        priority: Priority::Normal,
        level: AnonymityLevel::NONE,
        lane_seq: Some(LaneSeq(1)),
        after: None,
        content: Content::text("Good morning, Bob"),
    }
}

/// A message that has every field.
pub(crate) fn everything() -> Envelope {
    Envelope {
        to: ALPHA.group("hikers"),
        priority: Priority::High,
        level: AnonymityLevel::HIGHEST,
        lane_seq: Some(LaneSeq(70_000)),
        after: Some(LaneSeq(69_998)),
        content: Content {
            content_type: Some("application/octet-stream".into()),
            message_type: Some("track".into()),
            metadata: Some(r#"{"ascent_m": 870, "tags": ["été"]}"#.into()),
            file_ids: vec!["file-1".into(), "file-2".into()],
            labels: [("nonce", "00ff"), ("z", "1"), ("algorithm", "aes")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..Content::binary((0..=255).collect::<Vec<u8>>())
        },
        ..greeting()
    }
}

/// Alice of alpha writes to a group whose home is bravo.
pub(crate) fn to_group_elsewhere() -> Envelope {
    Envelope { recipient: BRAVO.group("hikers"), to: BRAVO.group("hikers"), ..greeting() }
}

/// Bravo passes that on to Carol of charlie.
pub(crate) fn forward() -> Forward {
    Forward {
        recipient: CHARLIE.peer("carol"),
        lane_seq: Some(LaneSeq(24)),
        after: Some(LaneSeq(23)),
        original: to_group_elsewhere().sign(&ALPHA.key()).unwrap(),
    }
}

/// Bravo says what became of [`greeting`].
pub(crate) fn receipt(kind: ReceiptKind, reason: Option<&str>) -> Receipt {
    Receipt {
        answers: signed(&greeting()).digest(),
        kind,
        at: time(1_790_000_001_234),
        reason: reason.map(str::to_owned),
        signer: BRAVO.id(),
    }
}

/// The envelope, signed by alpha.
pub(crate) fn signed(envelope: &Envelope) -> SignedEnvelope {
    envelope.sign(&ALPHA.key()).unwrap()
}

pub(crate) fn time(millis: u64) -> Timestamp {
    Timestamp::try_from(millis).unwrap()
}

/// Randomness that is always the same byte.
pub(crate) struct Constant(pub(crate) u8);

impl TryRng for Constant {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_ne_bytes([self.0; 4]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_ne_bytes([self.0; 8]))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill(self.0);
        Ok(())
    }
}

impl TryCryptoRng for Constant {}
