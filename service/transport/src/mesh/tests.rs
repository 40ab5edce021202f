//! Endpoints in one process over loopback.

use std::time::Duration;

use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Certificate, Content, Envelope, Listing, MessageId, NodePurpose, PeerAddress,
    Priority, Roster, SignedRoster,
};
use fieldpost_peering::Refusal;
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use super::*;
use crate::FileInfo;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_endpoints_carry_envelopes_both_ways() {
    let (alpha, bravo) = linked(1, 2).await;
    for round in 0..20 {
        alpha.transport.send(&bravo.target(), alpha.envelope(&bravo, round, 100)).await.unwrap();
        bravo.transport.send(&alpha.target(), bravo.envelope(&alpha, round, 100)).await.unwrap();
        let there = within(bravo.transport.receive()).await.unwrap();
        assert_eq!(there, alpha.envelope(&bravo, round, 100).into_bytes());
        let back = within(alpha.transport.receive()).await.unwrap();
        assert_eq!(back, bravo.envelope(&alpha, round, 100).into_bytes());
    }
    assert_eq!(alpha.transport.status().envelopes_sent, 20);
    alpha.transport.shutdown().await;
    bravo.transport.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_envelopes_pass_large_ones() {
    let (alpha, bravo) = linked(3, 4).await;
    let (count, size) = (12, 1024 * 1024);
    let large: Vec<_> = (0..count).map(|id| alpha.envelope(&bravo, id, size)).collect();
    let sends = large.into_iter().map(|envelope| {
        let (transport, target) = (alpha.transport.clone(), bravo.target());
        tokio::spawn(async move { transport.send(&target, envelope).await })
    });
    let sends: Vec<_> = sends.collect();
    tokio::task::yield_now().await;
    let small: Vec<_> = (100..140).map(|id| alpha.envelope(&bravo, id, 64)).collect();
    let smalls = small.into_iter().map(|envelope| {
        let (transport, target) = (alpha.transport.clone(), bravo.target());
        tokio::spawn(async move { transport.send(&target, envelope).await })
    });
    let smalls: Vec<_> = smalls.collect();
    let mut order = Vec::new();
    while order.len() < usize::from(count) + 40 {
        order.push(within(bravo.transport.receive()).await.unwrap().len() > size);
    }
    let last_small = order.iter().rposition(|is_large| !is_large).unwrap();
    let large_before = order[..last_small].iter().filter(|is_large| **is_large).count();
    assert!(
        large_before <= usize::from(count) / 2,
        "{large_before} large ones came before the last small one"
    );
    for send in sends.into_iter().chain(smalls) {
        send.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_reaches_each_gateway_once() {
    let hub = Node::start(5, vec![]).await;
    let spokes = [Node::start(6, hub.addresses()).await, Node::start(7, hub.addresses()).await];
    for spoke in &spokes {
        hub.reaches(&spoke.target()).await;
    }
    hub.reaches(BROADCAST).await;
    hub.transport.send(BROADCAST, hub.envelope(&spokes[0], 1, 10)).await.unwrap();
    for spoke in &spokes {
        within(spoke.transport.receive()).await.unwrap();
        let more = timeout(Duration::from_millis(200), spoke.transport.receive()).await;
        assert!(more.is_err(), "a broadcast came twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_goes_is_out_of_reach_and_comes_back() {
    let (alpha, bravo) = linked(8, 9).await;
    let (port, target) = (bravo.port(), bravo.target());
    bravo.transport.shutdown().await;
    alpha.loses(&target).await;
    let refused = alpha.transport.send(&target, alpha.envelope(&bravo, 1, 10)).await;
    assert_eq!(refused, Err(SendError::Unreachable { target: target.clone() }));
    assert_eq!(bravo.transport.receive().await, None);
    let sent = bravo.transport.send(&alpha.target(), bravo.envelope(&alpha, 1, 10)).await;
    assert_eq!(sent, Err(SendError::Shut));
    drop(bravo);
    let bravo = Node::start_at(9, vec![], Some(port)).await;
    alpha.reaches(&target).await;
    alpha.transport.send(&target, alpha.envelope(&bravo, 2, 10)).await.unwrap();
    within(bravo.transport.receive()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_outlive_a_renewed_certificate() {
    let (alpha, bravo) = linked(10, 11).await;
    // Counters follow what is in reach.
    eventually(|| bravo.transport.counters().links_opened > 0).await;
    let opened = bravo.transport.counters().links_opened;
    alpha.transport.renew(certificate(10, node_key(10), 0));
    alpha.transport.send(&bravo.target(), alpha.envelope(&bravo, 1, 10)).await.unwrap();
    let later = Node::start(12, alpha.addresses()).await;
    later.reaches(&alpha.target()).await;
    assert_eq!(bravo.transport.counters().links_opened, opened);
    assert_eq!(bravo.transport.counters().refused(Refusal::CertificateForged), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_certificate_is_refused() {
    let alpha = Node::start(13, vec![]).await;
    // A certificate that holds, for a key that is not that of the link.
    let stolen = certificate(14, node_key(14), 0);
    let options =
        MeshOptions { bootstrap: alpha.addresses(), listen: loopback(), ..Default::default() };
    let refused = MeshTransport::start(options.clone(), [0x77; 32], stolen, clock()).await;
    assert!(matches!(refused, Err(MeshError::Certificate(_))));
    // One for the key of the link that does not hold any more; its holder's clock stands still.
    let (expired, now) = (certificate(15, node_key(15), 30 * HOUR), NOW - 30 * HOUR);
    let past: Clock = Arc::new(move || Timestamp::try_from(now).unwrap());
    let stranger = MeshTransport::start(options, node_key(15), expired, past).await.unwrap();
    let refused = || alpha.transport.counters().refused(Refusal::CertificateExpired) > 0;
    eventually(refused).await;
    assert!(alpha.transport.reachable().borrow().is_empty());
    assert!(stranger.reachable().borrow().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_the_same_gateway_is_told_and_not_linked() {
    let alpha = Node::start(25, vec![]).await;
    let key = node_key(26);
    let certificate = certificate(25, key, 0);
    let options =
        MeshOptions { bootstrap: alpha.addresses(), listen: loopback(), ..Default::default() };
    let copy = MeshTransport::start(options, key, certificate, clock()).await.unwrap();
    let (mut known, mut known_there) = (alpha.transport.kin(), copy.kin());
    // Whoever hears the other first ends it, so it is enough that one of them knows.
    tokio::select! {
        kin = within(known.wait_for(|kin| !kin.is_empty())) => {
            assert!(kin.unwrap().contains(&copy.node()));
        }
        kin = within(known_there.wait_for(|kin| !kin.is_empty())) => {
            assert!(kin.unwrap().contains(&alpha.transport.node()));
        }
    }
    assert!(alpha.transport.reachable().borrow().is_empty());
    assert!(copy.reachable().borrow().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_tells_bootstraps_that_answer_from_those_that_do_not() {
    let alpha = Node::start(27, vec![]).await;
    let there = alpha.addresses().remove(0);
    let place = there.split_once('@').unwrap().1.to_owned();
    let stranger = SecretKey::from_bytes(&node_key(28)).public();
    let bootstrap =
        vec![there.clone(), format!("{stranger}@{place}"), format!("{stranger}@a.invalid:1")];
    let options = MeshOptions { bootstrap: bootstrap.clone(), ..Default::default() };
    let answers = within(options.probe()).await.unwrap();
    assert!(answers.iter().map(|(entry, _)| entry).eq(&bootstrap));
    assert_eq!(answers[0].1, Ok(()), "{answers:?}");
    assert!(answers[1].1.is_err(), "another key than that of the entry: {answers:?}");
    assert!(answers[2].1.as_ref().is_err_and(|said| said.contains("a.invalid:1")), "{answers:?}");
    let malformed = MeshOptions { bootstrap: vec![place], ..Default::default() };
    assert!(matches!(malformed.probe().await, Err(MeshError::Bootstrap { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rosters_are_told_whole_at_first_and_then_by_deltas() {
    let (alpha, bravo) = (Node::start(16, vec![]).await, 17);
    let names: Vec<String> = (0..50).map(|number| format!("peer-{number}")).collect();
    let first = roster(16, 1, &names);
    alpha.transport.publish(&first.sign(&gateway_key(16)).unwrap(), None);
    let bravo = Node::start(bravo, alpha.addresses()).await;
    let heard = within(bravo.transport.receive_roster()).await.unwrap();
    assert!(!heard.is_nearby);
    assert_eq!(SignedRoster::decode(&heard.bytes).unwrap().verify().unwrap(), first);
    let mut names = names;
    names.push("zoe".into());
    let second = roster(16, 2, &names);
    let delta = second.delta_from(&first).sign(&gateway_key(16)).unwrap();
    alpha.transport.publish(&second.sign(&gateway_key(16)).unwrap(), Some(&delta));
    let heard = within(bravo.transport.receive_roster()).await.unwrap();
    assert_eq!(heard.bytes, delta.as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_goes_on_where_it_was_interrupted() {
    let (alpha, bravo) = linked(18, 19).await;
    let keeper = Arc::new(OneFile { bytes: noise(50 * 1024 * 1024), reader: bravo.gateway() });
    let sha256 = keeper.sha256();
    alpha.transport.serve_files(keeper);
    let fetch = async |from| bravo.transport.fetch_file(alpha.gateway(), "track", from).await;
    let mut got: Vec<u8> = Vec::new();
    for stops_at in [9_000_000, 31_000_000, usize::MAX] {
        let mut file = fetch(got.len() as u64).await.unwrap();
        assert_eq!(file.info.size_bytes, 50 * 1024 * 1024);
        while got.len() < stops_at
            && let Some(chunk) = within(file.chunks.recv()).await
        {
            got.extend(chunk.unwrap());
        }
    }
    assert_eq!(<[u8; 32]>::from(Sha256::digest(&got)), sha256);
    let unknown = bravo.transport.fetch_file(alpha.gateway(), "other", 0).await.unwrap_err();
    assert_eq!(unknown, FileError::Unknown { file: "other".into() });
    let stranger = Node::start(20, alpha.addresses()).await;
    stranger.reaches(&alpha.target()).await;
    let refused = stranger.transport.fetch_file(alpha.gateway(), "track", 0).await.unwrap_err();
    assert_eq!(refused, FileError::NotAllowed { file: "track".into() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_breaks_off_says_so() {
    let (alpha, bravo) = linked(21, 22).await;
    alpha
        .transport
        .serve_files(Arc::new(OneFile { bytes: noise(20 * 1024 * 1024), reader: bravo.gateway() }));
    let mut file = bravo.transport.fetch_file(alpha.gateway(), "track", 0).await.unwrap();
    within(file.chunks.recv()).await.unwrap().unwrap();
    alpha.transport.shutdown().await;
    let mut last = Ok(Vec::new());
    while let Some(chunk) = within(file.chunks.recv()).await {
        last = chunk;
    }
    assert!(
        matches!(last, Err(FileError::Failed(_))),
        "the end of the channel is the end of the file"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutting_down_takes_less_than_two_seconds() {
    let (alpha, bravo) = linked(23, 24).await;
    let begin = tokio::time::Instant::now();
    alpha.transport.shutdown().await;
    bravo.transport.shutdown().await;
    assert!(begin.elapsed() < Duration::from_secs(4));
    assert_eq!(alpha.transport.receive().await, None);
    assert!(alpha.transport.receive_roster().await.is_none());
}

/// An endpoint with the gateway that it is of.
struct Node {
    seed: u8,
    transport: Arc<MeshTransport>,
}

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl Node {
    async fn start(seed: u8, bootstrap: Vec<String>) -> Self {
        Self::start_at(seed, bootstrap, None).await
    }

    async fn start_at(seed: u8, bootstrap: Vec<String>, port: Option<u16>) -> Self {
        let listen = Some(([127, 0, 0, 1], port.unwrap_or(0)).into());
        let options = MeshOptions { listen, bootstrap, ..MeshOptions::default() };
        let key = node_key(seed);
        let start = async {
            loop {
                let certificate = certificate(seed, key, 0);
                match MeshTransport::start(options.clone(), key, certificate, clock()).await {
                    Ok(transport) => return transport,
                    // Whoever was there before may still be letting go of it.
                    Err(MeshError::Listen { .. }) if port.is_some() => {
                        sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        Self { seed, transport: within(start).await }
    }

    fn gateway(&self) -> GatewayId {
        gateway_key(self.seed).verifying_key().into()
    }

    fn target(&self) -> String {
        self.gateway().to_string()
    }

    fn addresses(&self) -> Vec<String> {
        self.transport.own_addresses()
    }

    fn port(&self) -> u16 {
        self.addresses()[0].rsplit_once(':').unwrap().1.parse().unwrap()
    }

    async fn reaches(&self, target: &str) {
        let mut reachable = self.transport.reachable();
        within(reachable.wait_for(|names| names.contains(target))).await.unwrap();
    }

    async fn loses(&self, target: &str) {
        let mut reachable = self.transport.reachable();
        within(reachable.wait_for(|names| !names.contains(target))).await.unwrap();
    }

    fn envelope(&self, to: &Self, id: u8, size: usize) -> SignedEnvelope {
        let recipient = PeerAddress::remote("bob".parse().unwrap(), to.gateway());
        let envelope = Envelope {
            sender: PeerAddress::remote("alice".parse().unwrap(), self.gateway()),
            recipient: recipient.clone().into(),
            to: recipient.into(),
            message_id: MessageId(uuid::Uuid::from_bytes([id; 16])),
            sent_at: Timestamp::try_from(NOW).unwrap(),
            expires_at: Timestamp::try_from(NOW + HOUR).unwrap(),
            priority: Priority::Normal,
            level: AnonymityLevel::NONE,
            lane_seq: None,
            after: None,
            content: Content::binary(vec![id; size]),
        };
        envelope.sign(&gateway_key(self.seed)).unwrap()
    }
}

/// Two endpoints with a link between them, which the second dialled.
async fn linked(one: u8, other: u8) -> (Node, Node) {
    let alpha = Node::start(one, vec![]).await;
    let bravo = Node::start(other, alpha.addresses()).await;
    bravo.reaches(&alpha.target()).await;
    alpha.reaches(&bravo.target()).await;
    // A gateway that was dialled learns where the other is only from its bootstrap.
    let entry = Bootstrap::parse(&bravo.addresses()[0], &[]).unwrap();
    alpha.transport.inputs.send(Input::Bootstrap(entry)).await.ok().unwrap();
    (alpha, bravo)
}

fn roster(seed: u8, number: u64, names: &[String]) -> Roster {
    let listing = |name: &String| Listing { peer: name.parse().unwrap(), display_name: None };
    let mut peers: Vec<_> = names.iter().map(listing).collect();
    peers.sort();
    let gateway = gateway_key(seed).verifying_key().into();
    Roster { gateway, number, base: None, peers, removed: vec![] }
}

fn certificate(seed: u8, node_key: [u8; 32], age_ms: u64) -> SignedCertificate {
    let key = gateway_key(seed);
    let begin = NOW - age_ms;
    let certificate = Certificate {
        gateway: key.verifying_key().into(),
        purpose: NodePurpose::Mesh,
        node: *SecretKey::from_bytes(&node_key).public().as_bytes(),
        not_before: Timestamp::try_from(begin).unwrap(),
        not_after: Timestamp::try_from(begin + 24 * HOUR).unwrap(),
    };
    certificate.sign(&key).unwrap()
}

struct OneFile {
    bytes: Vec<u8>,
    reader: GatewayId,
}

impl OneFile {
    fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.bytes).into()
    }

    fn check(&self, reader: GatewayId, file: &str) -> Result<(), FileError> {
        let file = file.to_owned();
        match file.as_str() {
            "track" if reader == self.reader => Ok(()),
            "track" => Err(FileError::NotAllowed { file }),
            _ => Err(FileError::Unknown { file }),
        }
    }
}

#[async_trait]
impl FileSource for OneFile {
    async fn describe(&self, reader: GatewayId, file: &str) -> Result<FileInfo, FileError> {
        self.check(reader, file)?;
        let (size_bytes, sha256) = (self.bytes.len() as u64, self.sha256());
        Ok(FileInfo { filename: "track.gpx".into(), mime_type: None, size_bytes, sha256 })
    }

    async fn read(
        &self,
        reader: GatewayId,
        file: &str,
        from: u64,
        most: usize,
    ) -> Result<Vec<u8>, FileError> {
        self.check(reader, file)?;
        let rest = self.bytes.get(from as usize..).unwrap_or_default();
        Ok(rest[..rest.len().min(most)].to_vec())
    }
}

fn noise(length: usize) -> Vec<u8> {
    use rand::Rng;
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(7).fill_bytes(&mut bytes);
    bytes
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("it comes in 20 s")
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    within(async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn clock() -> Clock {
    Arc::new(|| Timestamp::try_from(NOW).unwrap())
}

fn loopback() -> Option<SocketAddr> {
    Some(([127, 0, 0, 1], 0).into())
}

fn gateway_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn node_key(seed: u8) -> [u8; 32] {
    [seed ^ 0x80; 32]
}

const NOW: u64 = 1_790_000_000_000;
const HOUR: u64 = 3_600_000;
