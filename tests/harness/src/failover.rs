//! How fast the outbox moves on: two gateways on two networks, of which the preferred one fails.

use std::{collections::BTreeSet, time::Duration};

use fieldpost_transport::{Faults, MemoryNetwork, MemoryOptions};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    Client, Postgres,
    client::{DeliveryRecord, Draft, PATIENCE},
    federation::{Node, attempts, record_when, take},
};

/// Messages sent while the first network fails, before one is sent while it works: fewer than a
/// circuit breaker counts, or the first would not be tried any more.
const AT_ONCE: usize = 4;

/// What the first network is called. A message can prefer only a transport of the design.
pub const FIRST: &str = "htx";
/// What the second is called.
pub const SECOND: &str = "mesh";

/// Alice at one gateway and Bob at another, joined by two networks.
pub struct TwoWays {
    /// The preferred network.
    pub first: MemoryNetwork,
    /// The other.
    pub second: MemoryNetwork,
    /// Alice's gateway and Bob's.
    pub nodes: [Node; 2],
    /// Who sends.
    pub alice: Client,
    /// Who receives.
    pub bob: Client,
}

/// One message that went over the second network after the first had failed.
#[derive(Clone, Debug)]
pub struct Failover {
    /// The message.
    pub message: Uuid,
    /// What was tried, in order, as `transport result`.
    pub attempts: Vec<String>,
    /// From the beginning of the first attempt to that of the second.
    pub gap: Duration,
}

impl TwoWays {
    /// Starts both gateways with these options of `fieldpost serve`.
    pub async fn start(options: &[&str]) -> Self {
        let (first, second) = (MemoryNetwork::new(1), MemoryNetwork::new(2));
        let mut all = vec!["--transport-priority=htx,mesh"];
        all.extend(options);
        let both = [(&first, MemoryOptions::named(FIRST)), (&second, MemoryOptions::named(SECOND))];
        let a = Node::start(Postgres::fresh_database().await, &both, &all).await;
        let b = Node::start(Postgres::fresh_database().await, &both, &all).await;
        let (alice, bob) = (a.register("alice").await, b.register("bob").await);
        Self { first, second, nodes: [a, b], alice, bob }
    }

    /// A message to Bob that prefers the first network.
    ///
    /// # Panics
    ///
    /// If the gateway refuses it.
    pub async fn send(&self, content: &str) -> Uuid {
        let draft = Draft {
            transport_preference: Some(FIRST.to_owned()),
            ..Draft::text(&self.nodes[1].address("bob"), content)
        };
        self.alice.send(&draft).await.expect("the message is accepted").message_id
    }

    /// Lets so many messages meet `faults` on the first network and returns what became of them.
    /// Each is shown once.
    ///
    /// # Panics
    ///
    /// If one is lost or doubled, or did not go over the second network after the first.
    pub async fn fail(&self, count: usize, faults: Faults) -> Vec<Failover> {
        let [a, b] = [self.nodes[0].id(), self.nodes[1].id()];
        let mut failovers = Vec::with_capacity(count);
        while failovers.len() < count {
            let now = AT_ONCE.min(count - failovers.len());
            self.first.set_faults_towards(a, b, faults.clone());
            let mut sent = BTreeSet::new();
            for _ in 0..now {
                sent.insert(self.send("somehow").await);
            }
            let shown = take(&self.bob, now).await;
            let shown: BTreeSet<Uuid> = shown.into_iter().map(|one| one.message_id).collect();
            assert_eq!(shown, sent, "each is shown once, and nothing else");
            for message in sent {
                failovers.push(self.failover(message).await);
            }
            self.first.set_faults_towards(a, b, Faults::NONE);
            self.make_whole().await;
        }
        failovers
    }

    /// Sends over the first network until a receipt shows that it works, so that its breaker counts
    /// anew. A machine that is too busy takes an answer for silence.
    async fn make_whole(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let well = self.send("straight").await;
            assert_eq!(take(&self.bob, 1).await[0].message_id, well, "nothing came twice");
            let tried = attempts(&self.arrived(well).await);
            let straight = [format!("{FIRST} sent"), format!("{FIRST} stored")];
            if tried.iter().all(|one| straight.contains(one)) {
                return;
            }
            assert!(Instant::now() < deadline, "the first network is not used again: {tried:?}");
        }
    }

    async fn failover(&self, message: Uuid) -> Failover {
        let delivery = self.arrived(message).await;
        let began = |name: &str| {
            let found = delivery.attempts.iter().find(|attempt| attempt.transport == name);
            found
                .unwrap_or_else(|| panic!("nothing was tried over {name}: {delivery:?}"))
                .started_at
        };
        let gap = (began(SECOND) - began(FIRST)).to_std();
        let gap = gap.unwrap_or_else(|_| panic!("the second came first: {delivery:?}"));
        Failover { message, attempts: attempts(&delivery), gap }
    }

    async fn arrived(&self, message: Uuid) -> DeliveryRecord {
        // `delivered` may overtake `stored`, which then changes nothing any more.
        let record = record_when(&self.alice, message, |record| record.status == "delivered");
        record.await.recipients.remove(0)
    }
}

/// The value below which `share` of all lie.
pub fn quantile(durations: &mut [Duration], share: f64) -> Duration {
    durations.sort_unstable();
    let last = durations.len().saturating_sub(1);
    durations.get((share * last as f64).round() as usize).copied().unwrap_or_default()
}
