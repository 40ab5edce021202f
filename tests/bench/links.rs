//! What two habits of the direct mesh gain: envelopes that wait at the same time travel together, and
//! links to gateways that are written to often are kept. Each beside the same without it, in one run.
//!
//! Without the first, every envelope has a stream of its own and is answered by itself, as raw streams
//! are. Without the second, the first envelope after a pause finds no link: it is dialled, both sides
//! say hello, and then the envelope leaves.

use std::{sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Certificate, Content, Envelope, GatewayId, MessageId, NodePurpose, PeerAddress,
    Priority, SignedEnvelope, Timestamp,
};
use fieldpost_transport::{MeshOptions, MeshTransport, SendError, Transport};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::{
    measure::{Measured, median, milliseconds},
    mesh,
    table::Table,
};

const ENVELOPES: usize = 20_000;
const AT_ONCE: usize = 256;
const RUNS: usize = 3;
/// First envelopes that are timed.
const FIRSTS: u8 = 30;
/// Bytes of content.
const SIZE: usize = 256;
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures both.
pub(crate) async fn run(table: &mut Table) {
    let listener = Node::start(1, vec![]).await;
    let draining = tokio::spawn({
        let transport = listener.transport.clone();
        async move { while transport.receive().await.is_some() {} }
    });
    let sender = Node::start(2, listener.transport.own_addresses()).await;
    sender.reaches(&listener).await;
    let envelope = sender.letter(&listener);
    let alone = mesh::alone(envelope.as_bytes().len(), ENVELOPES, AT_ONCE, RUNS).await;
    let mut together = Vec::new();
    for _ in 0..RUNS {
        together.push(sender.crowd(&listener, &envelope).await);
    }
    let together = median(together);
    table.figure(
        "small envelopes that travel together",
        format!("{together:.0} /s"),
        format!(
            "{:.1} times the {alone:.0} /s of a stream for each; {AT_ONCE} at a time",
            together / alone
        ),
    );
    let (mut warm, mut cold) = (Measured::default(), Measured::default());
    for number in 0..FIRSTS {
        let begin = Instant::now();
        sender.send(&listener, envelope.clone()).await;
        warm.add(begin.elapsed());
        let other = Node::start(3 + number, listener.transport.own_addresses()).await;
        let letter = other.letter(&listener);
        let begin = Instant::now();
        other.reaches(&listener).await;
        other.send(&listener, letter).await;
        cold.add(begin.elapsed());
        other.transport.shutdown().await;
    }
    table.figure(
        "first envelope over a link that was kept",
        milliseconds(warm.quantile(0.5)),
        format!(
            "p50; over one that has to be made first {}, p99 {} and {}",
            milliseconds(cold.quantile(0.5)),
            milliseconds(warm.quantile(0.99)),
            milliseconds(cold.quantile(0.99))
        ),
    );
    sender.transport.shutdown().await;
    listener.transport.shutdown().await;
    draining.abort();
}

/// A gateway's endpoint, without the gateway.
struct Node {
    key: SigningKey,
    transport: Arc<MeshTransport>,
}

impl Node {
    async fn start(seed: u8, bootstrap: Vec<String>) -> Self {
        let (key, node_key) = (SigningKey::from_bytes(&[seed; 32]), [seed ^ 0x80; 32]);
        let certificate = Certificate {
            gateway: key.verifying_key().into(),
            purpose: NodePurpose::Mesh,
            node: SigningKey::from_bytes(&node_key).verifying_key().to_bytes(),
            not_before: time(0),
            not_after: time(24 * HOUR),
        };
        let certificate = certificate.sign(&key).expect("a certificate within the limits");
        let listen = Some(([127, 0, 0, 1], 0).into());
        let options = MeshOptions { listen, bootstrap, ..MeshOptions::default() };
        let transport = MeshTransport::start(options, node_key, certificate, Arc::new(|| time(1)));
        Self { key, transport: transport.await.expect("loopback can be listened on") }
    }

    fn id(&self) -> GatewayId {
        self.key.verifying_key().into()
    }

    async fn reaches(&self, other: &Self) {
        let mut reachable = self.transport.reachable();
        let there = reachable.wait_for(|names| names.contains(&other.id().to_string()));
        timeout(PATIENCE, there).await.expect("loopback is fast").expect("the endpoint runs");
    }

    fn letter(&self, to: &Self) -> SignedEnvelope {
        let bob = PeerAddress::remote("bob".parse().expect("a name"), to.id());
        let envelope = Envelope {
            sender: PeerAddress::remote("alice".parse().expect("a name"), self.id()),
            recipient: bob.clone().into(),
            to: bob.into(),
            message_id: MessageId(Uuid::from_u128(1)),
            sent_at: time(1),
            expires_at: time(HOUR),
            priority: Priority::Normal,
            level: AnonymityLevel::NONE,
            lane_seq: None,
            after: None,
            content: Content::text("x".repeat(SIZE)),
        };
        envelope.sign(&self.key).expect("an envelope within the limits")
    }

    async fn send(&self, to: &Self, envelope: SignedEnvelope) {
        self.transport.send(&to.id().to_string(), envelope).await.expect("it is in reach");
    }

    /// Envelopes a second that are taken, with so many on their way at a time.
    async fn crowd(&self, to: &Self, envelope: &SignedEnvelope) -> f64 {
        let target = to.id().to_string();
        let begin = Instant::now();
        let mut senders = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (transport, target, envelope) =
                (self.transport.clone(), target.clone(), envelope.clone());
            senders.spawn(async move {
                for _ in 0..ENVELOPES / AT_ONCE {
                    loop {
                        match transport.send(&target, envelope.clone()).await {
                            Ok(()) => break,
                            // The other side has not taken up what came before.
                            Err(SendError::Busy { .. }) => yield_now().await,
                            Err(error) => panic!("it is in reach: {error}"),
                        }
                    }
                }
            });
        }
        senders.join_all().await;
        (ENVELOPES / AT_ONCE * AT_ONCE) as f64 / begin.elapsed().as_secs_f64()
    }
}

/// Milliseconds after a moment that certificates hold at.
fn time(after_ms: u64) -> Timestamp {
    Timestamp::try_from(1_790_000_000_000 + after_ms).expect("it is within the years of timestamps")
}

const HOUR: u64 = 3_600_000;
