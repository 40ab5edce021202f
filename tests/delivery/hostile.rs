//! A gateway that means ill, or speaks nonsense, on the same network.

use std::{sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, GatewayId, MessageId, PeerAddress, Priority, Receipt,
    ReceiptKind, SignedEnvelope, Timestamp,
};
use fieldpost_transport::{MemoryNetwork, MemoryOptions, MemoryTransport, Transport};
use harness::{
    client::Draft,
    federation::{record_with_status, take},
    seed,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use crate::federation::{QUICK, pair_on, until};

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_and_forgeries_change_nothing() {
    let seed = seed();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let network = MemoryNetwork::new(seed);
    let ([a, b], alice, bob) = pair_on(&network, &[]).await;
    let mallory = Mallory::join(&network);
    let real = mallory.message(&b.address("bob"), "from mallory").into_bytes();
    let before = b.transport(0).status().envelopes_received;
    let target = b.id().to_string();
    for _ in 0..400 {
        let mut bytes = real.clone();
        match rng.random_range(0..4) {
            0 => bytes.truncate(rng.random_range(0..bytes.len())),
            1 => bytes = (0..rng.random_range(0..300)).map(|_| rng.random()).collect(),
            2 => {
                // The signer's key in the payload becomes that of an honest gateway.
                let place = bytes.windows(32).position(|part| part == mallory.id.as_bytes());
                let place = place.expect("an envelope names its signer");
                bytes[place..place + 32].copy_from_slice(a.id().as_bytes());
            }
            _ => {
                let place = rng.random_range(0..bytes.len());
                bytes[place] ^= 1 << rng.random_range(0..8);
            }
        }
        mallory.end.inject(&target, bytes).unwrap();
    }
    until(|| b.transport(0).status().envelopes_received >= before + 400).await;
    let sent = alice.send(&Draft::text(&b.address("bob"), "still here")).await.unwrap();
    let shown = take(&bob, 1).await;
    assert_eq!(shown[0].from, a.address("alice"));
    assert_eq!(shown[0].content.as_deref(), Some("still here"));
    record_with_status(&alice, sent.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_speaks_under_its_own_name_only() {
    let network = MemoryNetwork::new(1);
    let ([a, b], alice, bob) = pair_on(&network, &[QUICK]).await;
    let mallory = Mallory::join(&network);
    // It may write, as anybody may, and is shown as what it is, even under a borrowed peer id.
    mallory.send(&b.id(), mallory.message(&b.address("bob"), "I am alice")).await;
    let shown = take(&bob, 1).await.remove(0);
    assert_eq!(shown.from, format!("alice@{}", mallory.id));

    // Its word about somebody else's envelope counts for nothing.
    network.set_faults(a.id(), b.id(), fieldpost_transport::Faults::SILENCE);
    let sent = alice.send(&Draft::text(&b.address("bob"), "for bob alone")).await.unwrap();
    until(|| network.lost() > 0).await;
    for kind in [ReceiptKind::Delivered, ReceiptKind::Read, ReceiptKind::Refused] {
        mallory.send(&a.id(), mallory.receipt([7; 32], kind)).await;
    }
    // Misdirected: a message for a peer of another gateway.
    mallory.send(&a.id(), mallory.message(&b.address("bob"), "lost")).await;
    network.heal();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("for bob alone"));
    record_with_status(&alice, sent.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_answered_with_the_reason_and_what_is_dead_is_not() {
    let network = MemoryNetwork::new(1);
    let ([_a, b], _alice, _bob) = pair_on(&network, &[]).await;
    let mallory = Mallory::join(&network);
    let refused = mallory.message(&b.address("nobody"), "?");
    let digest = refused.digest();
    mallory.send(&b.id(), refused).await;
    let bytes = tokio::time::timeout(Duration::from_secs(30), mallory.end.receive());
    let bytes = bytes.await.expect("an answer comes").expect("the network is up");
    let verified = SignedEnvelope::decode(&bytes).unwrap().verify().unwrap();
    let fieldpost_envelope::Said::Receipt(receipt) = verified.said else {
        panic!("a receipt comes");
    };
    assert_eq!((receipt.answers, receipt.kind), (digest, ReceiptKind::Refused));
    assert_eq!(receipt.signer, b.id());
    assert!(receipt.reason.unwrap_or_default().contains("no peer nobody"));
}

/// A gateway of its own kind: a key and an end of the network.
struct Mallory {
    key: SigningKey,
    id: GatewayId,
    end: Arc<MemoryTransport>,
}

impl Mallory {
    fn join(network: &MemoryNetwork) -> Self {
        let key = SigningKey::from_bytes(&[66; 32]);
        let id = GatewayId::from(key.verifying_key());
        let end = network.join(id, MemoryOptions::default());
        Self { key, id, end }
    }

    async fn send(&self, to: &GatewayId, envelope: SignedEnvelope) {
        self.end.send(&to.to_string(), envelope).await.unwrap();
    }

    fn message(&self, to: &str, text: &str) -> SignedEnvelope {
        let now = now();
        let hour = Timestamp::try_from(now.as_millis() + 3_600_000).unwrap();
        let recipient = to.parse::<PeerAddress>().unwrap();
        Envelope {
            sender: PeerAddress::remote("alice".parse().unwrap(), self.id),
            recipient: recipient.clone().into(),
            to: recipient.into(),
            message_id: MessageId(Uuid::new_v4()),
            sent_at: now,
            expires_at: hour,
            priority: Priority::Normal,
            level: AnonymityLevel::NONE,
            lane_seq: None,
            after: None,
            content: Content::text(text),
        }
        .sign(&self.key)
        .unwrap()
    }

    fn receipt(&self, answers: [u8; 32], kind: ReceiptKind) -> SignedEnvelope {
        Receipt { answers, kind, at: now(), reason: None, signer: self.id }.sign(&self.key).unwrap()
    }
}

fn now() -> Timestamp {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    Timestamp::try_from(u64::try_from(now.as_millis()).unwrap()).unwrap()
}
