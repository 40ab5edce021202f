//! What the mixnet costs through the whole stack: nodes on this machine, over TLS and HTTP/2.
//!
//! ```sh
//! cargo bench -p fieldpost-transport --bench htx              # all of it
//! cargo bench -p fieldpost-transport --bench htx -- set-up    # the set-up of links alone
//! ```
//!
//! Without delays and pacing. Each message is measured between two X25519 of aws-lc, so that both see
//! the same machine. What a relay does, and what making a link takes, is measured in processor time of a
//! thread of its own. The table shows medians beside what is asked for; nothing is asserted.

#[path = "htx/setup.rs"]
mod setup;

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, GatewayId, MessageId, PeerAddress, Priority, SignedEnvelope,
    Timestamp,
};
use fieldpost_mixnet::{
    client::{Finished, Way, build_packets},
    delay::Pace,
    directory::{Authority, Certificate, Document, EpochClock, SignedDocument, WeightedRelay},
    htx::SecretKey,
    sphinx::{Class, Packet, Route, RouteStop},
};
use fieldpost_transport::{
    Transport,
    htx::{Decoy, HtxOptions, HtxTransport},
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{runtime::Builder, sync::oneshot, time::sleep};

// As in the gateway.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    // cargo test runs benches, too; there it only has to work.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (rounds, packets, warm_up) = if is_bench { (1_000, 30_000, 20) } else { (3, 50, 1) };
    let mut table = Table::default();
    if std::env::args().any(|argument| argument == "set-up") {
        table.setup(if is_bench { 200 } else { 1 });
        return table.print();
    }
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let net = Net::start(2, None).await;
        let small = net.messages(100, rounds, warm_up).await;
        table.row("100 B over three hops, median", small.median, (small.ratio, Some(AtMost(60.0))));
        table.row(
            "the same, 99th percentile",
            small.worst,
            (small.worst_ratio, Some(AtMost(200.0))),
        );
        net.close().await;
        let net = Net::start(3, None).await;
        for (what, size, rounds) in [
            ("100 B through three relays", 100, rounds),
            ("64 KiB through three relays", 64 << 10, rounds / 10 + 1),
            ("1 MiB through three relays", 1 << 20, rounds / 30 + 1),
        ] {
            let took = net.messages(size, rounds, warm_up).await;
            table.row(what, took.median, (took.ratio, None));
        }
        net.close().await;
        let net = Net::start(4, None).await;
        let large = net.packets(1 << 20, rounds / 30 + 1, warm_up).await;
        let target = Some(AtMost(6_000.0));
        table.row("1 MiB over five hops, built and opened", large.median, (large.ratio, target));
        net.close().await;
    });
    for (class, what, target) in [
        (Class::Small, "a relay and its links, 2 KiB", Some(8_000.0)),
        (Class::Large, "a relay and its links, 32 KiB", None),
    ] {
        let count = if class == Class::Small { packets } else { packets / 10 };
        let (rate, each) = relay_throughput(class, count);
        let ratio = each.as_secs_f64() / floor().as_secs_f64();
        table.row(what, each, (ratio, None));
        table.rate(&format!("{what}, packets/s a core"), rate, target);
    }
    table.setup(if is_bench { 20 } else { 1 });
    table.print();
}

/// What the mixnet's issue asks for, in floors.
#[derive(Clone, Copy)]
struct AtMost(f64);

/// The rows, and whether they reach what is asked.
#[derive(Default)]
struct Table(Vec<String>);

impl Table {
    fn row(&mut self, what: &str, took: Duration, (floors, target): (f64, Option<AtMost>)) {
        let (goal, reached) = match target {
            Some(AtMost(most)) => (format!("≤ {most}"), yes(floors <= most)),
            None => Default::default(),
        };
        self.0.push(format!("| {what} | {took:.1?} | {floors:.1} | {goal} | {reached} |"));
    }

    fn setup(&mut self, runs: usize) {
        let [(up, up_ratio), (closed, closed_ratio)] = setup::processor_time(runs);
        let what = "set-up of a link, both sides' processor time";
        self.row(what, up, (up_ratio, Some(AtMost(35.0))));
        self.row("the same, with closing it again", closed, (closed_ratio, None));
    }

    fn rate(&mut self, what: &str, rate: f64, target: Option<f64>) {
        let goal = target.map(|least| format!("≥ {least}")).unwrap_or_default();
        let reached = target.map(|least| yes(rate >= least)).unwrap_or_default();
        self.0.push(format!("| {what} | {rate:.0} | | {goal} | {reached} |"));
    }

    #[expect(clippy::print_stdout, reason = "a bench reports on standard output")]
    fn print(&self) {
        println!("| what | measured | floors | target | reached |\n|---|---|---|---|---|");
        println!("| one X25519 of aws-lc | {:.1?} | 1 | | |", floor());
        self.0.iter().for_each(|row| println!("{row}"));
    }
}

fn yes(reached: bool) -> &'static str {
    if reached { "yes" } else { "NO" }
}

/// Median and 99th percentile of times, and of their ratios to the floor.
struct Took {
    median: Duration,
    worst: Duration,
    ratio: f64,
    worst_ratio: f64,
}

impl Took {
    fn of(mut times: Vec<Duration>, mut ratios: Vec<f64>) -> Self {
        times.sort();
        ratios.sort_by(f64::total_cmp);
        let at = |share: f64| ((times.len() - 1) as f64 * share) as usize;
        let (middle, last) = (at(0.5), at(0.99));
        Self {
            median: times[middle],
            worst: times[last],
            ratio: ratios[middle],
            worst_ratio: ratios[last],
        }
    }
}

/// Sends finished packets through one relay; how many a second it passes on for each second of its
/// thread, links among them, and how long one takes.
fn relay_throughput(class: Class, count: usize) -> (f64, Duration) {
    let relay = RelayThread::start();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let result = runtime.expect("a runtime").block_on(async {
        let net = Net::start(0, Some(Arc::clone(&relay.node))).await;
        let (alpha, bravo) = (&net.nodes[1], &net.nodes[2]);
        let route = net.route(&[&relay.node, bravo]);
        let mut rng = StdRng::seed_from_u64(1);
        let built: Vec<_> = (0..count)
            .map(|_| Packet::build(&mut rng, &route, class, b"x").expect("good keys").into_bytes())
            .collect();
        // The first is for the links to be made.
        let (first, rest) = built.split_first().expect("there are some");
        let passed = || relay.node.figures().packets_forwarded;
        while passed() == 0 {
            alpha.forward(relay.node.id(), first.to_vec()).await.expect("there is room");
            sleep(Duration::from_millis(600)).await;
        }
        let began = relay.time();
        for packet in rest {
            while alpha.forward(relay.node.id(), packet.to_vec()).await.is_err() {
                sleep(Duration::from_millis(1)).await;
            }
        }
        while passed() < count as u64 {
            sleep(Duration::from_millis(20)).await;
        }
        let spent = relay.time() - began;
        net.close().await;
        (rest.len() as f64 / spent.as_secs_f64(), spent / rest.len() as u32)
    });
    relay.stop();
    result
}

/// A relay with a thread of its own, where all of its tasks are.
struct RelayThread {
    node: Arc<HtxTransport>,
    /// Where the system says how long the thread has worked.
    statistics: String,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl RelayThread {
    fn start() -> Self {
        let (started, start) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let own = std::fs::read_link("/proc/thread-self").expect("Linux");
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let statistics = format!("/proc/{}/schedstat", own.display());
                started.send((node(1, true).await, statistics)).expect("somebody waits");
                stopped.await.expect("it is stopped");
            });
        });
        let (node, statistics) = start.recv().expect("a relay");
        Self { node, statistics, stop, thread }
    }

    /// Processor time of the thread so far.
    fn time(&self) -> Duration {
        processor_time(&self.statistics)
    }

    fn stop(self) {
        self.stop.send(()).expect("it runs");
        self.thread.join().expect("it ends well");
    }
}

/// Relays and two gateways, the relays first.
struct Net {
    nodes: Vec<Arc<HtxTransport>>,
    authority: Authority,
    document: SignedDocument,
}

impl Net {
    async fn start(relays: u8, other: Option<Arc<HtxTransport>>) -> Self {
        let signer = SigningKey::from_bytes(&[200; 32]);
        let authority = authority();
        let mut nodes: Vec<_> = other.into_iter().collect();
        for seed in 0..relays {
            nodes.push(node(10 + seed, true).await);
        }
        for seed in GATEWAYS {
            nodes.push(node(seed, false).await);
        }
        let weighted =
            nodes.iter().map(|node| WeightedRelay::new(node.descriptor().borrow().clone(), 1_000));
        let genesis = Document::genesis(&authority, time(), weighted.collect());
        let mut document = genesis.expect("good descriptors").unsigned();
        document.sign(&signer);
        for node in &nodes {
            node.learn(document.to_bytes()).await.expect("it runs");
        }
        for node in &nodes[nodes.len() - 2..] {
            let mut reachable = node.reachable();
            reachable.wait_for(|known| known.len() == 1).await.expect("it runs");
        }
        Self { nodes, authority, document }
    }

    /// Messages of the transport, from send to receive, over the longest route that it takes.
    async fn messages(&self, size: usize, rounds: usize, warm_up: usize) -> Took {
        let [alpha, bravo] = &self.nodes[self.nodes.len() - 2..] else { unreachable!() };
        let (mut times, mut ratios) = (Vec::new(), Vec::new());
        let target = gateway_id(GATEWAYS[1]).to_string();
        // The first are for links to be made and times to be learnt.
        for round in 0..rounds + warm_up {
            let envelope = envelope(size);
            let before = floor();
            let begin = now();
            alpha.send(&target, envelope).await.expect("there is room");
            let came = bravo.receive().await.expect("it runs");
            let took = begin.elapsed();
            bravo.taken(&came);
            if round >= warm_up {
                times.push(took);
                ratios.push(took.as_secs_f64() / ((before + floor()) / 2).as_secs_f64());
            }
        }
        Took::of(times, ratios)
    }

    /// Messages of a client, which builds its packets itself, for four relays and the gateway: from
    /// building to receiving.
    async fn packets(&self, size: usize, rounds: usize, warm_up: usize) -> Took {
        let [alpha, bravo] = &self.nodes[self.nodes.len() - 2..] else { unreachable!() };
        let (mut times, mut ratios) = (Vec::new(), Vec::new());
        let mut rng = StdRng::seed_from_u64(2);
        let clock = self.authority.clock();
        let way = Way { relays: 4, delay: Duration::ZERO };
        for round in 0..rounds + warm_up {
            let envelope = envelope(size);
            let before = floor();
            let begin = now();
            let document = (self.document.document(), clock);
            let (to, bytes) = (gateway_id(GATEWAYS[1]), envelope.as_bytes());
            let built = build_packets(&mut rng, time(), document, to, bytes, way);
            for Finished { first, packet } in built.expect("four relays") {
                let bytes = packet.into_bytes().into_vec();
                while alpha.forward(first, bytes.clone()).await.is_err() {
                    sleep(Duration::from_millis(1)).await;
                }
            }
            let came = bravo.receive().await.expect("it runs");
            let took = begin.elapsed();
            bravo.taken(&came);
            if round >= warm_up {
                times.push(took);
                ratios.push(took.as_secs_f64() / ((before + floor()) / 2).as_secs_f64());
            }
        }
        Took::of(times, ratios)
    }

    fn route(&self, nodes: &[&Arc<HtxTransport>]) -> Route {
        let epoch = self.authority.clock().epoch_at(time());
        let stops = nodes.iter().map(|node| {
            let descriptor = node.descriptor().borrow().clone();
            let said = descriptor.verify().expect("its own");
            let key = said.keys_of(epoch).expect("keys of the epoch").sphinx;
            RouteStop { id: said.id(), key, delay: Duration::ZERO }
        });
        Route::new(epoch, stops.collect()).expect("few hops")
    }

    async fn close(self) {
        for node in self.nodes {
            node.shutdown().await;
        }
    }
}

fn processor_time(statistics: &str) -> Duration {
    let text = std::fs::read_to_string(statistics).expect("the thread runs");
    let first = text.split(' ').next().and_then(|text| text.parse().ok());
    Duration::from_nanos(first.expect("nanoseconds"))
}

async fn node(seed: u8, relays: bool) -> Arc<HtxTransport> {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let not_after = Timestamp::try_from(time().as_millis() + 82_800_000).expect("a time");
    let certificate = Certificate::issue(&gateway_key(seed), &key.verifying_key(), not_after);
    let none = Duration::ZERO;
    let options = HtxOptions {
        listen: Some("127.0.0.1:0".parse().expect("an address")),
        advertise: vec![],
        server_name: "site.example".into(),
        tls: None,
        decoy: Decoy::built_in("Site"),
        relays,
        operator: format!("operator {}", seed % 2),
        autonomous_system: None,
        country: None,
        through: vec![],
        capacity: 10_000,
        max_hops: 5,
        pace: Pace { delay: none, payload: none, sender_loop: none, relay_loop: none },
        lab: true,
        secrets_dir: None,
        authority: authority(),
        documents: vec![],
    };
    let certificate = (!relays).then_some(certificate);
    HtxTransport::start(options, key, certificate, Arc::new(time)).await.expect("a node")
}

/// Each another: one that is still on its way is not sent a second time.
fn envelope(size: usize) -> SignedEnvelope {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = u128::from(NUMBER.fetch_add(1, Ordering::Relaxed));
    let recipient = PeerAddress::remote("bob".parse().expect("a name"), gateway_id(GATEWAYS[1]));
    let envelope = Envelope {
        sender: PeerAddress::remote("alice".parse().expect("a name"), gateway_id(GATEWAYS[0])),
        recipient: recipient.clone().into(),
        to: recipient.into(),
        message_id: MessageId(uuid::Uuid::from_u128(number)),
        sent_at: time(),
        expires_at: Timestamp::try_from(time().as_millis() + 3_600_000).expect("a time"),
        priority: Priority::Normal,
        level: AnonymityLevel::NONE,
        lane_seq: None,
        after: None,
        content: Content::binary(vec![7; size]),
    };
    envelope.sign(&gateway_key(GATEWAYS[0])).expect("a good envelope")
}

fn authority() -> Authority {
    let signer = SigningKey::from_bytes(&[200; 32]).verifying_key();
    Authority::new(1, [signer], EpochClock::HOUR).expect("one signer")
}

fn gateway_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed + 100; 32])
}

fn gateway_id(seed: u8) -> GatewayId {
    gateway_key(seed).verifying_key().into()
}

#[expect(clippy::disallowed_methods, reason = "a bench lives in real time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a bench lives in real time")]
fn time() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Timestamp::try_from(since.as_millis() as u64).expect("a time")
}

fn floor() -> Duration {
    let (own, other) = (SecretKey::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]));
    let begin = now();
    for _ in 0..8 {
        black_box(own.agree(black_box(other.public())));
    }
    begin.elapsed() / 8
}

const GATEWAYS: [u8; 2] = [20, 21];
