//! Nodes on this machine, over real links.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, GatewayId, MessageId, PeerAddress, Priority, SignedEnvelope,
    Timestamp,
};
use fieldpost_mixnet::{
    delay::Pace,
    directory::{
        Authority, Certificate, Document, EpochClock, RelayId, SignedDescriptor, SignedDocument,
        WeightedRelay,
    },
    sphinx::{Class, Packet, Route, RouteStop},
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout};

use super::{ForwardError, HtxError, HtxOptions, HtxTransport};
use crate::{SendError, Transport, htx::Decoy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_all_sizes_pass_both_ways_over_three_relays() {
    let net = Net::start(3, 2, HOUR).await;
    let (alpha, bravo) = (net.gateway(0), net.gateway(1));
    for (id, size) in [1, 4 << 10, 64 << 10, 1 << 20].into_iter().enumerate() {
        for (from, to) in [(alpha, bravo), (bravo, alpha)] {
            let sent = from.envelope(to, id as u8, size);
            from.transport.send(&to.name(), sent.clone()).await.unwrap();
            assert_eq!(to.receive().await, sent.into_bytes());
        }
    }
    for gateway in [alpha, bravo] {
        gateway.until("all are answered", |figures| figures.messages_committed == 4).await;
        assert_eq!(gateway.transport.figures().messages_failed, 0);
    }
    let forwarded = net.relays().map(|relay| relay.transport.figures().packets_forwarded);
    assert!(forwarded.min() > Some(0), "each relay had its part");
    net.close().await;
}

#[test]
fn a_lab_needs_no_way_out_of_its_machine_and_the_mixnet_proper_does() {
    let needs = |lab| {
        let can = HtxTransport::declared(lab);
        (can.is_offline_capable, can.requires_internet)
    };
    assert_eq!((needs(true), needs(false)), ((true, false), (false, true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_answered_before_the_gateway_has_dealt_with_it() {
    let net = Net::start(3, 2, HOUR).await;
    let (alpha, bravo) = (net.gateway(0), net.gateway(1));
    let sent = alpha.envelope(bravo, 1, 100);
    alpha.transport.send(&bravo.name(), sent).await.unwrap();
    let came = within(bravo.transport.receive()).await.unwrap();
    // Whoever is not answered asks again: once it has, an answer could have been here.
    alpha.until("asked again", |figures| figures.packets_sent >= 2).await;
    assert_eq!(alpha.transport.figures().messages_committed, 0);
    bravo.transport.taken(&came);
    alpha.until("answered", |figures| figures.messages_committed == 1).await;
    assert_eq!(bravo.transport.figures().messages_received, 1, "shown once");
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_dies_in_mid_traffic_costs_no_message() {
    let mut net = Net::start(4, 2, HOUR).await;
    let dead = net.nodes.remove(0);
    {
        let (alpha, bravo) = (net.gateway(0), net.gateway(1));
        let mut dead = Some(dead);
        let sends = async {
            for id in 0..COUNT {
                let envelope = alpha.envelope(bravo, id, 3_000);
                while let Err(error) = alpha.transport.send(&bravo.name(), envelope.clone()).await {
                    assert!(matches!(error, SendError::Busy { .. }), "{error}");
                    sleep(Duration::from_millis(5)).await;
                }
                if id == COUNT / 2 {
                    // As if killed: no goodbye.
                    drop(dead.take());
                }
            }
        };
        let receives = async {
            let mut came = std::collections::BTreeSet::new();
            while came.len() < usize::from(COUNT) {
                came.insert(bravo.receive().await);
            }
        };
        tokio::join!(sends, receives);
        alpha
            .until("all are answered", |figures| figures.messages_committed == u64::from(COUNT))
            .await;
        assert_eq!(alpha.transport.figures().messages_failed, 0);
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_takes_no_packet_twice_even_after_a_restart() {
    let mut net = Net::start(3, 1, HOUR).await;
    let packet = {
        let route = net.route(&[0, 1, 3]);
        Packet::build(&mut StdRng::seed_from_u64(9), &route, Class::Small, b"hello").unwrap()
    };
    let first = net.nodes[0].transport.id();
    let replays = |net: &Net| net.nodes[0].transport.figures().packets_replayed;
    let client = |net: &Net| Arc::clone(&net.gateway(0).transport);
    for _ in 0..2 {
        client(&net).forward(first, packet.as_bytes().to_vec()).await.unwrap();
    }
    net.nodes[0].until("the second is a replay", |figures| figures.packets_replayed == 1).await;
    assert_eq!(replays(&net), 1);
    let short = client(&net).forward(first, vec![0; 7]).await;
    assert_eq!(short, Err(ForwardError::Length { length: 7 }));
    let nobody = RelayId([9; 32]);
    let unknown = client(&net).forward(nobody, packet.as_bytes().to_vec()).await;
    assert_eq!(unknown, Err(ForwardError::UnknownRelay(nobody)));

    // Killed and started again, under the same key and at the same address.
    let node = net.nodes.remove(0);
    let again = node.restart(&net).await;
    net.nodes.insert(0, again);
    let deadline = Instant::now() + PATIENCE;
    while replays(&net) == 0 {
        assert!(Instant::now() < deadline, "{:?}", net.nodes[0].transport.figures());
        // Until there is a link to it again.
        client(&net).forward(first, packet.as_bytes().to_vec()).await.unwrap_or_default();
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(net.nodes[0].transport.figures().packets_forwarded, 0);
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_pass_while_epochs_go_by_and_old_keys_go() {
    let net = Net::start(3, 2, Duration::from_secs(4)).await;
    let (alpha, bravo) = (net.gateway(0), net.gateway(1));
    let begun = net.epoch();
    let (mut signed, mut id) = (begun, 0_u8);
    while net.epoch() < begun + 5 {
        let epoch = net.epoch();
        if signed < epoch + 2 {
            net.sign_next(epoch + 2).await;
            signed = epoch + 2;
        }
        let envelope = alpha.envelope(bravo, id, 20_000);
        id += 1;
        match alpha.transport.send(&bravo.name(), envelope.clone()).await {
            Ok(()) => while bravo.receive().await != *envelope.as_bytes() {},
            // A new document is a moment on its way.
            Err(SendError::Unreachable { .. }) => sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error}"),
        }
        sleep(Duration::from_millis(200)).await;
    }
    let figures = alpha.transport.figures();
    assert!(figures.messages_sent > 15, "{figures:?}");
    // All have come. An answer that is late at the turn of an epoch finds no key any more: its sender
    // is told so and does not wait for ever.
    assert!(figures.messages_failed * 10 <= figures.messages_sent, "{figures:?}");
    alpha
        .until("none is forgotten", |figures| {
            figures.messages_committed + figures.messages_failed == figures.messages_sent
        })
        .await;
    assert!(figures.document >= Some(3), "{figures:?}");
    // On disk: the current epoch, the two that follow, perhaps the one before.
    for node in &net.nodes {
        let kept = node.kept_epochs();
        let oldest = *kept.first().unwrap();
        assert!(oldest + 1 >= net.epoch() - 1 && kept.len() <= 4, "{kept:?}, {}", net.epoch());
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_an_epoch_that_is_over_are_neither_on_disk_nor_in_memory() {
    let net = Net::start(2, 2, Duration::from_secs(4)).await;
    let (alpha, bravo) = (net.gateway(0), net.gateway(1));
    // Keys are made two epochs ahead, so they are there for a while yet, however slow this machine is.
    let epoch = net.epoch() + 2;
    let masked: Vec<[u8; 32]> = net.nodes.iter().flat_map(|node| node.masked_keys(epoch)).collect();
    assert!(masked.iter().any(|key| in_memory(key) > 0), "until then, they are there");
    // Some traffic, one packet of which is recorded.
    let sent = alpha.envelope(bravo, 1, 5_000);
    alpha.transport.send(&bravo.name(), sent.clone()).await.unwrap();
    assert_eq!(bravo.receive().await, sent.into_bytes());
    let route = net.route(&[0, 1, 3]);
    let recorded =
        Packet::build(&mut StdRng::seed_from_u64(9), &route, Class::Small, b"hello").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while net.epoch() < epoch + 2 || net.nodes.iter().any(|node| node.kept_epochs()[0] <= epoch) {
        assert!(Instant::now() < deadline, "they are kept too long");
        sleep(Duration::from_millis(50)).await;
    }
    for (number, key) in masked.iter().enumerate() {
        assert_eq!(in_memory(key), 0, "key {number}");
    }
    let first = &net.nodes[0].transport;
    alpha.transport.forward(first.id(), recorded.into_bytes().into_vec()).await.unwrap();
    net.nodes[0].until("the packet opens no more", |figures| figures.packets_refused > 0).await;
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_an_address_is_reached_through_its_relays() {
    let net = Net::start_with(3, 2, HOUR, true).await;
    let (alpha, hidden) = (net.gateway(0), net.gateway(1));
    let descriptor = hidden.descriptor();
    let said = descriptor.verify().unwrap();
    assert!(said.addresses.is_empty() && !said.through.is_empty());
    for (from, to) in [(alpha, hidden), (hidden, alpha)] {
        let sent = from.envelope(to, 1, 10_000);
        from.transport.send(&to.name(), sent.clone()).await.unwrap();
        assert_eq!(to.receive().await, sent.into_bytes());
        from.until("answered", |figures| figures.messages_committed == 1).await;
    }
    net.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_forged_is_not_believed() {
    let net = Net::start(3, 1, HOUR).await;
    let gateway = &net.gateway(0).transport;
    let before = gateway.documents().borrow().clone();
    let next = net.next_document(net.epoch() + 1);
    // Signed by somebody who may not, by nobody, and altered.
    let mut by_another = next.clone().unsigned();
    by_another.sign(&SigningKey::from_bytes(&[99; 32]));
    let mut good = next.clone().unsigned();
    good.sign(&net.signer);
    let mut altered = good.to_bytes();
    altered[100] ^= 1;
    for forged in [by_another.to_bytes(), next.unsigned().to_bytes(), altered] {
        gateway.learn(forged).await.unwrap();
    }
    let mut descriptor = net.nodes[0].descriptor().as_bytes().to_vec();
    let last = descriptor.len() - 1;
    descriptor[last] ^= 1;
    gateway.introduce(descriptor).await.unwrap();
    // What is good is taken up after them, and comes to all.
    gateway.learn(good.to_bytes()).await.unwrap();
    for node in &net.nodes {
        node.until("the good one", |figures| figures.document == Some(1)).await;
    }
    assert_eq!(before.len(), 1);
    assert_eq!(gateway.documents().borrow().len(), 2);
    for known in gateway.descriptors().borrow().iter() {
        known.verify().unwrap();
    }
    net.close().await;
}

#[tokio::test]
async fn a_node_says_what_is_wrong_with_its_options() {
    let authority = authority(&SigningKey::from_bytes(&[200; 32]), HOUR);
    let start = |change: fn(&mut HtxOptions)| {
        let mut options = options(authority.clone(), true);
        change(&mut options);
        HtxTransport::start(options, SigningKey::from_bytes(&[1; 32]), None, clock())
    };
    let refused = start(|options| options.max_hops = 6).await.err().unwrap();
    assert!(matches!(refused, HtxError::Hops { max_hops: 6 }));
    let refused = start(|options| options.listen = None).await.err().unwrap();
    assert!(matches!(refused, HtxError::Descriptor(_)), "{refused}");
    let refused = start(|options| options.operator = String::new()).await.err().unwrap();
    assert!(refused.to_string().contains("operator"), "{refused}");
}

/// Relays and gateways of one network, the relays first.
struct Net {
    nodes: Vec<Node>,
    relays: usize,
    authority: Authority,
    signer: SigningKey,
    folder: PathBuf,
}

struct Node {
    seed: u8,
    transport: Arc<HtxTransport>,
    folder: PathBuf,
}

impl Net {
    async fn start(relays: u8, gateways: u8, epoch: Duration) -> Self {
        Self::start_with(relays, gateways, epoch, false).await
    }

    /// With `hides`, the last gateway has no address.
    async fn start_with(relays: u8, gateways: u8, epoch: Duration, hides: bool) -> Self {
        let signer = SigningKey::from_bytes(&[200; 32]);
        let authority = authority(&signer, epoch);
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("fieldpost-htx-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        let mut nodes: Vec<Node> = Vec::new();
        for seed in 1..=relays + gateways {
            let mut options = options(authority.clone(), seed <= relays);
            options.secrets_dir = Some(folder.clone());
            options.operator = format!("operator {}", seed % 2);
            if hides && seed == relays + gateways {
                options.listen = None;
                options.through = nodes[..2].iter().map(|node| node.transport.id()).collect();
            }
            nodes.push(Node::start(seed, options, folder.clone()).await);
        }
        let mut net = Self { nodes, relays: relays.into(), authority, signer, folder };
        let document = Document::genesis(&net.authority, now(), net.weighted()).unwrap();
        net.teach(document).await;
        for node in &net.nodes {
            node.until("the first document", |figures| figures.is_listed).await;
        }
        let reached = usize::from(gateways) - 1;
        for node in net.nodes.iter().skip(net.relays) {
            node.reaches(reached).await;
        }
        net.relays = relays.into();
        net
    }

    fn gateway(&self, index: usize) -> &Node {
        let gateways = self.nodes.iter().filter(|node| usize::from(node.seed) > self.relays);
        gateways.into_iter().nth(index).unwrap()
    }

    fn relays(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| usize::from(node.seed) <= self.relays)
    }

    fn epoch(&self) -> u64 {
        self.authority.clock().epoch_at(now())
    }

    fn weighted(&self) -> Vec<WeightedRelay> {
        self.nodes.iter().map(|node| WeightedRelay::new(node.descriptor(), 1_000)).collect()
    }

    fn newest(&self) -> SignedDocument {
        self.gateway(0).transport.documents().borrow().last().unwrap().clone()
    }

    fn next_document(&self, epoch: u64) -> Document {
        let relays = self.weighted();
        let frozen_at = self.authority.clock().start(self.epoch());
        Document::successor(&self.authority, &self.newest(), epoch, frozen_at, vec![], relays)
            .unwrap()
    }

    /// Signs what follows and shows it to one node alone: the others have it from there.
    async fn sign_next(&self, epoch: u64) {
        // Each node describes itself anew with each epoch.
        let described = |node: &Node| node.descriptor().verify().unwrap().keys_of(epoch).is_some();
        let deadline = Instant::now() + PATIENCE;
        while !self.nodes.iter().all(described) {
            assert!(Instant::now() < deadline, "no keys for epoch {epoch}");
            sleep(Duration::from_millis(20)).await;
        }
        let mut document = self.next_document(epoch).unsigned();
        document.sign(&self.signer);
        self.nodes[0].transport.learn(document.to_bytes()).await.unwrap();
    }

    async fn teach(&self, document: Document) {
        let mut document = document.unsigned();
        document.sign(&self.signer);
        for node in &self.nodes {
            node.transport.learn(document.to_bytes()).await.unwrap();
        }
    }

    /// A route over these nodes.
    fn route(&self, nodes: &[usize]) -> Route {
        let epoch = self.epoch();
        let stops = nodes.iter().map(|node| {
            let descriptor = self.nodes[*node].descriptor();
            let said = descriptor.verify().unwrap();
            let key = said.keys_of(epoch).unwrap().sphinx;
            RouteStop { id: said.id(), key, delay: Duration::ZERO }
        });
        Route::new(epoch, stops.collect()).unwrap()
    }

    async fn close(self) {
        for node in &self.nodes {
            node.transport.shutdown().await;
            assert_eq!(node.transport.receive().await, None);
        }
        drop(self.nodes);
        std::fs::remove_dir_all(self.folder).unwrap();
    }
}

impl Node {
    async fn start(seed: u8, options: HtxOptions, folder: PathBuf) -> Self {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let not_after = Timestamp::try_from(now().as_millis() + 3_600_000 * 23).unwrap();
        let certificate = Certificate::issue(&gateway_key(seed), &key.verifying_key(), not_after);
        let certificate = (!options.relays).then_some(certificate);
        let transport = HtxTransport::start(options, key, certificate, clock()).await.unwrap();
        Self { seed, transport, folder }
    }

    /// Ends without a goodbye and starts again with what is on disk.
    async fn restart(self, net: &Net) -> Self {
        let descriptor = self.descriptor();
        let documents = self.transport.documents().borrow().clone();
        let mut options = options(net.authority.clone(), true);
        options.listen = descriptor.verify().unwrap().addresses.first().copied();
        options.secrets_dir = Some(self.folder.clone());
        options.documents = documents.iter().map(SignedDocument::to_bytes).collect();
        options.operator = format!("operator {}", self.seed % 2);
        let (seed, folder) = (self.seed, self.folder.clone());
        drop(self);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let key = SigningKey::from_bytes(&[seed; 32]);
            let mut again = super::tests::options(net.authority.clone(), true);
            again.listen = options.listen;
            again.secrets_dir = options.secrets_dir.clone();
            again.documents = options.documents.clone();
            again.operator = options.operator.clone();
            // Its tasks end when they are next polled; until then it holds its port and its lock.
            match HtxTransport::start(again, key, None, clock()).await {
                Ok(transport) => {
                    assert_eq!(*transport.descriptor().borrow(), descriptor, "the same keys");
                    return Self { seed, transport, folder };
                }
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn descriptor(&self) -> SignedDescriptor {
        self.transport.descriptor().borrow().clone()
    }

    fn id(&self) -> GatewayId {
        gateway_key(self.seed).verifying_key().into()
    }

    fn name(&self) -> String {
        self.id().to_string()
    }

    async fn receive(&self) -> Vec<u8> {
        let came = within(self.transport.receive()).await.unwrap();
        self.transport.taken(&came);
        came
    }

    async fn until(&self, what: &str, holds: impl Fn(&super::HtxFigures) -> bool) {
        let mut figures = self.transport.figures.clone();
        let waited = timeout(PATIENCE, figures.wait_for(holds)).await.map(|it| it.is_ok());
        assert_eq!(waited, Ok(true), "{what}: {:?}", self.transport.figures());
    }

    async fn reaches(&self, count: usize) {
        let mut reachable = self.transport.reachable();
        let waited = timeout(PATIENCE, reachable.wait_for(|known| known.len() == count)).await;
        assert!(waited.is_ok(), "{:?}", self.transport.figures());
    }

    fn envelope(&self, to: &Self, id: u8, size: usize) -> SignedEnvelope {
        let recipient = PeerAddress::remote("bob".parse().unwrap(), to.id());
        let envelope = Envelope {
            sender: PeerAddress::remote("alice".parse().unwrap(), self.id()),
            recipient: recipient.clone().into(),
            to: recipient.into(),
            message_id: MessageId(uuid::Uuid::from_bytes([id; 16])),
            sent_at: now(),
            expires_at: Timestamp::try_from(now().as_millis() + 3_600_000).unwrap(),
            priority: Priority::Normal,
            level: AnonymityLevel::NONE,
            lane_seq: None,
            after: None,
            content: Content::binary(vec![id; size]),
        };
        envelope.sign(&gateway_key(self.seed)).unwrap()
    }

    /// The Sphinx and the sealing key of an epoch, from disk, masked: these copies are not to be found.
    fn masked_keys(&self, epoch: u64) -> [[u8; 32]; 2] {
        let own = self.folder.join(&self.transport.id().to_string()[..16]);
        let mut bytes = std::fs::read(own.join(format!("{epoch}.secret"))).unwrap();
        let keys = [25, 57].map(|at| std::array::from_fn(|byte| bytes[at + byte] ^ MASK));
        zeroize::Zeroize::zeroize(&mut bytes);
        keys
    }

    /// Epochs of which a secret is on disk.
    fn kept_epochs(&self) -> Vec<u64> {
        let own = self.folder.join(&self.transport.id().to_string()[..16]);
        let names = std::fs::read_dir(own).unwrap().map(|entry| entry.unwrap().path());
        let secrets = names.filter(|path| path.extension().is_some_and(|it| it == "secret"));
        let mut epochs: Vec<_> = secrets
            .map(|path| path.file_stem().unwrap().to_str().unwrap().parse().unwrap())
            .collect();
        epochs.sort_unstable();
        epochs
    }
}

/// How often a masked key stands in this process' memory.
fn in_memory(masked: &[u8; 32]) -> usize {
    use std::io::{Read, Seek, SeekFrom};
    let mut memory = std::fs::File::open("/proc/self/mem").unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let (mut piece, mut found) = (vec![0_u8; 1 << 20], 0);
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [mut at, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        while at + 32 <= end {
            let length = piece.len().min((end - at) as usize);
            let read = memory
                .seek(SeekFrom::Start(at))
                .and_then(|_| memory.read_exact(&mut piece[..length]));
            if read.is_err() {
                break;
            }
            let first = masked[0] ^ MASK;
            let mut from = 0;
            while let Some(next) = piece[from..length].iter().position(|byte| *byte == first) {
                from += next;
                let is_key = piece[from..length.min(from + 32)]
                    .iter()
                    .zip(masked)
                    .filter(|(byte, masked)| **byte ^ MASK == **masked)
                    .count()
                    == 32;
                found += usize::from(is_key);
                from += 1;
            }
            // Pieces overlap, so that no key is cut in two.
            at += if length < piece.len() { end - at } else { (length - 31) as u64 };
        }
    }
    // Whoever looks next does not find what this look has copied.
    zeroize::Zeroize::zeroize(&mut piece);
    found
}

fn options(authority: Authority, relays: bool) -> HtxOptions {
    HtxOptions {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        advertise: vec![],
        server_name: "site.example".into(),
        tls: None,
        decoy: Decoy::built_in("Site"),
        relays,
        operator: "operator".into(),
        autonomous_system: None,
        country: None,
        through: vec![],
        capacity: 1_000,
        max_hops: 5,
        pace: Pace {
            delay: Duration::ZERO,
            payload: Duration::ZERO,
            sender_loop: Duration::ZERO,
            relay_loop: Duration::ZERO,
        },
        lab: true,
        secrets_dir: None,
        authority,
        documents: vec![],
    }
}

fn authority(signer: &SigningKey, epoch: Duration) -> Authority {
    Authority::new(1, [signer.verifying_key()], EpochClock::new(epoch).unwrap()).unwrap()
}

fn gateway_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed + 100; 32])
}

fn clock() -> crate::htx::Clock {
    Arc::new(now)
}

#[expect(clippy::disallowed_methods, reason = "nodes of these tests live in real time")]
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::try_from(since.as_millis() as u64).unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const COUNT: u8 = 200;
const MASK: u8 = 0x5a;
