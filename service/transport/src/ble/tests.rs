//! Nodes in one process, neighbours over streams.

use std::{path::PathBuf, sync::LazyLock};

use ed25519_dalek::SigningKey;
use fieldpost_bitchat::payload::exchange::{Exchange, Hello};
use fieldpost_envelope::{
    AnonymityLevel, Certificate, Content, Envelope, Listing, MessageId, NodePurpose, PeerAddress,
    Priority, Roster,
};
use uuid::Uuid;

use super::{gateways::Gateways, *};
use crate::{LinkIds, StreamAddress};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_show_certificates_and_carry_envelopes_and_rosters_both_ways() {
    let meeting = socket();
    let alpha = Station::start(1, &[&meeting], &[]).await;
    let bravo = Station::start(2, &[], &[&meeting]).await;
    alpha.reaches(&bravo.name()).await;
    bravo.reaches(&alpha.name()).await;
    assert_eq!(alpha.node.hops(&bravo.name()), Some(1));
    for size in [1, 2000, 64 * 1024] {
        alpha.node.send(&bravo.name(), alpha.envelope(&bravo, size)).await.unwrap();
        let there = within(bravo.node.receive()).await.unwrap();
        assert!(there == alpha.envelope(&bravo, size).into_bytes(), "{size} bytes");
    }
    let roster = alpha.roster(1, &["alice"]);
    alpha.node.publish(&roster, None);
    let heard = within(bravo.node.receive_roster()).await.unwrap();
    assert_eq!((heard.bytes.as_slice(), heard.is_nearby), (roster.as_bytes(), false));
    bravo.node.roster_missed(alpha.gateway);
    assert_eq!(within(bravo.node.receive_roster()).await.unwrap(), heard, "it is told again");
    alpha.node.shutdown().await;
    bravo.reaches_no_more(&alpha.name()).await;
    bravo.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_crashed_and_is_back_before_anybody_missed_it_is_said_to_have_returned() {
    let (left, right) = (socket(), socket());
    let relay = Station::start(4, &[&left, &right], &[]).await;
    let alpha = Station::start(5, &[], &[&left]).await;
    let bravo = Station::start(6, &[], &[&right]).await;
    alpha.reaches(&bravo.name()).await;
    bravo.reaches(&alpha.name()).await;
    assert_eq!(alpha.node.take_returned(), BTreeSet::new(), "it has only come");
    let mut changes = alpha.node.reachable();
    drop(bravo);
    let bravo = Station::start(6, &[], &[&right]).await;
    let returned = async {
        loop {
            let returned = alpha.node.take_returned();
            if !returned.is_empty() {
                return returned;
            }
            changes.changed().await.unwrap();
        }
    };
    assert_eq!(within(returned).await, BTreeSet::from([bravo.name()]));
    assert!(alpha.node.reachable().borrow().contains(&bravo.name()), "it was never out of reach");
    alpha.node.send(&bravo.name(), alpha.envelope(&bravo, 100)).await.unwrap();
    let there = within(bravo.node.receive()).await.unwrap();
    assert!(there == alpha.envelope(&bravo, 100).into_bytes());
    drop(relay);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_or_leads_nowhere_is_refused_at_once() {
    let alpha = Station::start(3, &[], &[]).await;
    let stranger = GatewayId::from(SigningKey::from_bytes(&[9; 32]).verifying_key());
    let envelope = alpha.envelope(&alpha, 10);
    let target = stranger.to_string();
    let unreachable = Err(SendError::Unreachable { target: target.clone() });
    assert_eq!(alpha.node.send(&target, envelope).await, unreachable);
    let large = alpha.node.send(&target, alpha.envelope(&alpha, 80 * 1024)).await;
    assert!(matches!(large, Err(SendError::TooLarge { .. })), "{large:?}");
    let phone = alpha.node.send("a1b2c3d4e5f60718", alpha.envelope(&alpha, 10)).await;
    let reason = phone.unwrap_err().to_string();
    assert!(reason.contains("not on the air"), "{reason}");
    assert!(alpha.node.trouble().is_some_and(|why| why.contains("no radio")));
}

#[test]
fn a_certificate_of_another_key_purpose_gateway_or_time_is_not_believed() {
    let (own, other) = (key(1), key(2));
    let noise = [7; 32];
    let now = clock();
    let mut gateways = Gateways::new(gateway(&own), certificate(&own, noise, NodePurpose::BitChat));
    let id = MeshId::of_noise_key(&noise);
    let mut hello = |certificate: SignedCertificate, wall: Timestamp| {
        let certificate = certificate.as_bytes().to_vec();
        let hello = Hello { certificate, knows_you: false, roster: 0 };
        let answer = gateways.hello(Duration::ZERO, wall, (id, noise), &hello);
        (answer.map(|answer| answer.is_some()), gateways.gateway_of(wall, id))
    };
    let good = certificate(&other, noise, NodePurpose::BitChat);
    for wrong in [
        certificate(&other, [8; 32], NodePurpose::BitChat),
        certificate(&other, noise, NodePurpose::Mesh),
        certificate(&own, noise, NodePurpose::BitChat),
    ] {
        let (answer, of) = hello(wrong, now);
        assert!(answer.is_err() && of.is_none());
    }
    let in_two_days = Timestamp::try_from(now.as_millis() + 2 * 24 * 3_600_000).unwrap();
    assert!(hello(good.clone(), in_two_days).0.is_err());
    assert_eq!(hello(good.clone(), now), (Ok(true), Some(gateway(&other))));
    assert_eq!(hello(good, now).0, Ok(false), "who asks again and again is not answered each time");
}

#[test]
fn a_roster_goes_to_those_who_have_an_older_one_and_a_step_where_that_is_enough() {
    let (own, other) = (key(1), key(2));
    let noise = [7; 32];
    let (now, wall) = (Duration::ZERO, clock());
    let mut gateways = Gateways::new(gateway(&own), certificate(&own, noise, NodePurpose::BitChat));
    let id = MeshId::of_noise_key(&noise);
    let certificate = certificate(&other, noise, NodePurpose::BitChat).as_bytes().to_vec();
    let hello = Hello { certificate, knows_you: true, roster: 0 };
    gateways.hello(now, wall, (id, noise), &hello).unwrap();
    let whole = |number, peers: &[&str]| roster(&own, number, peers);
    gateways.publish(&whole(5, &["alice"]).sign(&own).unwrap(), None);
    let told = gateways.due(now);
    assert_eq!(told.len(), 1);
    let rosters = |told: &[(MeshId, gateways::Content)]| -> Vec<Option<u64>> {
        let decode = |bytes: &[u8]| match Exchange::decode(bytes) {
            Ok(Exchange::Roster(bytes)) => SignedRoster::decode(&bytes).unwrap().base(),
            other => panic!("a roster: {other:?}"),
        };
        told.iter().map(|(_, content)| decode(content.bytes())).collect()
    };
    assert_eq!(rosters(&told), [None]);
    assert_eq!(gateways.due(now), [], "it is on its way");
    gateways.settled(id, &told[0].1, true);
    let delta = whole(6, &["alice", "bob"]).delta_from(&whole(5, &["alice"]));
    let next = whole(6, &["alice", "bob"]).sign(&own).unwrap();
    gateways.publish(&next, Some(&delta.sign(&own).unwrap()));
    assert_eq!(rosters(&gateways.due(now)), [Some(5)]);
    gateways.wanted(id, 0);
    assert_eq!(rosters(&gateways.due(now)), [None], "who has lost it is told the whole");
}

/// A gateway's node.
struct Station {
    node: Arc<BleTransport>,
    gateway: GatewayId,
    key: SigningKey,
}

impl Station {
    async fn start(seed: u8, listen: &[&StreamAddress], link: &[&StreamAddress]) -> Self {
        let key = key(seed);
        let identity = Identity::from_keys(&[seed; 32], &[seed; 32]);
        let certificate = certificate(&key, *identity.noise_public(), NodePurpose::BitChat);
        let options = BleOptions {
            identity,
            nickname: format!("gateway {seed}"),
            certificate,
            hop_limit: 7,
            max_peers: 50,
            pins: Vec::new(),
        };
        let all = |addresses: &[&StreamAddress]| addresses.iter().map(|a| (*a).clone()).collect();
        let streams = OpenStreams {
            listen: all(listen),
            neighbours: all(link),
            ids: LinkIds::default(),
            seed: 1,
        };
        let radios: Vec<Arc<dyn OpenRadio>> = match listen.len() + link.len() {
            0 => Vec::new(),
            _ => vec![Arc::new(streams)],
        };
        let node = BleTransport::start(options, radios, Arc::new(clock)).unwrap();
        let station = Self { node, gateway: gateway(&key), key };
        if !listen.is_empty() {
            // Whoever comes finds it listening.
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while !station.node.status().is_available {
                assert!(tokio::time::Instant::now() < deadline, "the socket is never there");
                tokio::task::yield_now().await;
            }
        }
        station
    }

    fn name(&self) -> String {
        self.gateway.to_string()
    }

    async fn reaches(&self, target: &str) {
        let mut reachable = self.node.reachable();
        within(reachable.wait_for(|reached| reached.contains(target))).await.unwrap();
    }

    async fn reaches_no_more(&self, target: &str) {
        let mut reachable = self.node.reachable();
        within(reachable.wait_for(|reached| !reached.contains(target))).await.unwrap();
    }

    fn envelope(&self, to: &Self, size: usize) -> SignedEnvelope {
        let recipient = PeerAddress::remote("bob".parse().unwrap(), to.gateway).into();
        let sent_at = Timestamp::try_from(1_790_000_000_000).unwrap();
        let envelope = Envelope {
            sender: PeerAddress::remote("alice".parse().unwrap(), self.gateway),
            recipient,
            to: PeerAddress::remote("bob".parse().unwrap(), to.gateway).into(),
            message_id: MessageId(Uuid::from_u128(size as u128)),
            sent_at,
            expires_at: Timestamp::try_from(1_790_000_600_000).unwrap(),
            priority: Priority::Normal,
            level: AnonymityLevel::NONE,
            lane_seq: None,
            after: None,
            content: Content { bytes: vec![b'x'; size], is_text: true, ..Content::default() },
        };
        envelope.sign(&self.key).unwrap()
    }

    fn roster(&self, number: u64, peers: &[&str]) -> SignedRoster {
        roster(&self.key, number, peers).sign(&self.key).unwrap()
    }
}

fn roster(key: &SigningKey, number: u64, peers: &[&str]) -> Roster {
    let listing = |peer: &&str| Listing { peer: peer.parse().unwrap(), display_name: None };
    Roster {
        gateway: gateway(key),
        number,
        base: None,
        peers: peers.iter().map(listing).collect(),
        removed: Vec::new(),
    }
}

pub(super) fn certificate(
    key: &SigningKey,
    node: [u8; 32],
    purpose: NodePurpose,
) -> SignedCertificate {
    let now = clock();
    let certificate = Certificate {
        gateway: gateway(key),
        purpose,
        node,
        not_before: now,
        not_after: Timestamp::try_from(now.as_millis() + 3_600_000).unwrap(),
    };
    certificate.sign(key).unwrap()
}

pub(super) fn gateway(key: &SigningKey) -> GatewayId {
    key.verifying_key().into()
}

pub(super) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// The same time for all, which goes on.
pub(super) fn clock() -> Timestamp {
    static START: LazyLock<tokio::time::Instant> = LazyLock::new(tokio::time::Instant::now);
    let elapsed = u64::try_from(START.elapsed().as_millis()).unwrap();
    Timestamp::try_from(1_790_000_000_000 + elapsed).unwrap()
}

fn socket() -> StreamAddress {
    let unique = format!("fieldpost-ble-{}", Uuid::new_v4().simple());
    StreamAddress::Unix(PathBuf::from("/tmp").join(unique))
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it comes in time")
}

const PATIENCE: Duration = Duration::from_secs(30);
