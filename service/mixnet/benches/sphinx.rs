//! What a hop and a packet cost, beside one X25519 of aws-lc and beside `sphinx-packet`.
//!
//! All operations take turns in one process, each between two measurements of the floor. A ratio is
//! the median over rounds of the operation to the floor around it; rounds where the two floors
//! differ by more than 6 % are left out, as another program was in the way. Prints a table and
//! whether the targets of the design, section 10, are met.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    hint::black_box,
    process::ExitCode,
    time::{Duration, Instant},
};

use fieldpost_mixnet::{
    delay,
    replay::ReplayCache,
    sphinx::{
        Class, Command, Group, Packet, Production, RelayId, Route, RouteStop, Surb, SurbId, X25519,
        open,
    },
};
use rand::{SeedableRng, rngs::StdRng};
use sphinx_packet::{
    SphinxPacket, SphinxPacketBuilder,
    header::delays::Delay,
    route::{Destination, DestinationAddressBytes, Node, NodeAddressBytes},
};
use x25519_dalek::{PublicKey, StaticSecret};

fn main() -> ExitCode {
    // `cargo test --benches` runs this too; a round is enough to see that it works.
    let rounds = if std::env::args().any(|argument| argument == "--bench") { 600 } else { 2 };
    let mut bench = Bench::new();
    let mut operations: Vec<Operation> = vec![
        Operation::new("hop, 2 KiB", bench.hop(Class::Small)),
        Operation::new("hop, 32 KiB", bench.hop(Class::Large)),
        Operation::new("last hop, 2 KiB", bench.last_hop(Class::Small)),
        Operation::new("build 3 hops, 2 KiB", bench.build(3)),
        Operation::new("build 5 hops, 2 KiB", bench.build(5)),
        Operation::new("SURB, 5 hops", bench.surb()),
        Operation::new("sphinx-packet: hop, 2 KiB", bench.their_hop(Class::Small)),
        Operation::new("sphinx-packet: hop, 32 KiB", bench.their_hop(Class::Large)),
        Operation::new("sphinx-packet: build 5 hops, 2 KiB", bench.their_build()),
        Operation::new("replay cache, one tag of a million", bench.replay()),
    ];
    let mut floors = Vec::new();
    for _ in 0..rounds {
        for operation in &mut operations {
            let before = bench.floor();
            let took = (operation.run)();
            let after = bench.floor();
            floors.push(before);
            let quiet = before.max(after) / before.min(after) <= 1.06;
            if quiet || rounds == 2 {
                operation.times.push(took);
                operation.ratios.push(took / ((before + after) / 2.0));
            }
        }
    }
    println!("{:38} {:>9} {:>7} {:>7}", "operation", "µs", "ratio", "rounds");
    println!(
        "{:38} {:>9.2} {:>7.2} {:>7}",
        "X25519, aws-lc (floor)",
        median(&floors),
        1.0,
        floors.len()
    );
    for operation in &operations {
        println!(
            "{:38} {:>9.2} {:>7.2} {:>7}",
            operation.name,
            median(&operation.times),
            median(&operation.ratios),
            operation.ratios.len()
        );
    }
    let ratio = |name: &str| {
        let operation = operations.iter().find(|operation| operation.name == name);
        median(&operation.expect("an operation of that name").ratios)
    };
    let (small, large, build) =
        (ratio("hop, 2 KiB"), ratio("hop, 32 KiB"), ratio("build 5 hops, 2 KiB"));
    let targets = [
        ("hop 2 KiB, floors", small, Bound::AtMost(2.8)),
        ("hop 32 KiB, floors", large, Bound::AtMost(4.5)),
        (
            "hop 2 KiB, times as fast as sphinx-packet",
            ratio("sphinx-packet: hop, 2 KiB") / small,
            Bound::AtLeast(1.7),
        ),
        (
            "hop 32 KiB, times as fast as sphinx-packet",
            ratio("sphinx-packet: hop, 32 KiB") / large,
            Bound::AtLeast(1.7),
        ),
        (
            "build 5 hops, times as fast as sphinx-packet",
            ratio("sphinx-packet: build 5 hops, 2 KiB") / build,
            Bound::AtLeast(4.0),
        ),
    ];
    println!("\n{:46} {:>7} {:>10}", "target", "is", "reach");
    let mut missed = 0;
    for (name, figure, bound) in targets {
        let (met, text) = bound.judge(figure);
        missed += usize::from(!met);
        println!("{name:46} {figure:>7.2} {text:>10}  {}", if met { "met" } else { "MISSED" });
    }
    if missed > 0 && rounds > 2 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn judge(&self, figure: f64) -> (bool, String) {
        match self {
            Self::AtMost(most) => (figure <= *most, format!("<= {most}")),
            Self::AtLeast(least) => (figure >= *least, format!(">= {least}")),
        }
    }
}

/// One operation with its measurements, in microseconds and in floors.
struct Operation {
    name: &'static str,
    run: Box<dyn FnMut() -> f64>,
    times: Vec<f64>,
    ratios: Vec<f64>,
}

impl Operation {
    fn new(name: &'static str, run: Box<dyn FnMut() -> f64>) -> Self {
        Self { name, run, times: Vec::new(), ratios: Vec::new() }
    }
}

struct Bench {
    rng: StdRng,
    floor_secret: <X25519 as Group>::Secret,
    floor_element: [u8; 32],
}

const EPOCH: u64 = 500_000;
const EACH: usize = 4;

impl Bench {
    fn new() -> Self {
        Self {
            rng: StdRng::seed_from_u64(1),
            floor_secret: secret(200),
            floor_element: public(201),
        }
    }

    fn floor(&self) -> f64 {
        mean(EACH, || {
            black_box(X25519::multiply(&self.floor_secret, &self.floor_element));
        })
    }

    fn hop(&mut self, class: Class) -> Box<dyn FnMut() -> f64> {
        let packet = Packet::build(&mut self.rng, &route(3), class, b"hello").expect("a route");
        let relay = secret(1);
        Box::new(move || {
            // Neither making the copies nor freeing them is the hop's work.
            let mut copies = vec![packet.clone(); EACH];
            let mut copies = copies.iter_mut();
            mean(EACH, || {
                let packet = copies.next().expect("a copy for each");
                let opened = open::<Production>(&relay, &EPOCH, packet.as_bytes_mut());
                let done = opened.and_then(|opened| opened.process()).expect("a good packet");
                assert!(matches!(done.command, Command::Forward { .. }));
            })
        })
    }

    fn last_hop(&mut self, class: Class) -> Box<dyn FnMut() -> f64> {
        let packet = Packet::build(&mut self.rng, &route(1), class, b"hello").expect("a route");
        let relay = secret(1);
        Box::new(move || {
            // Neither making the copies nor freeing them is the hop's work.
            let mut copies = vec![packet.clone(); EACH];
            let mut copies = copies.iter_mut();
            mean(EACH, || {
                let packet = copies.next().expect("a copy for each");
                let opened = open::<Production>(&relay, &EPOCH, packet.as_bytes_mut());
                let done = opened.and_then(|opened| opened.process()).expect("a good packet");
                assert!(done.last);
            })
        })
    }

    fn build(&mut self, hops: u8) -> Box<dyn FnMut() -> f64> {
        let (route, mut rng) = (route(hops), StdRng::seed_from_u64(2));
        Box::new(move || {
            mean(1, || {
                black_box(Packet::build(&mut rng, &route, Class::Small, b"hello"))
                    .expect("a route");
            })
        })
    }

    fn surb(&mut self) -> Box<dyn FnMut() -> f64> {
        let (route, mut rng) = (route(5), StdRng::seed_from_u64(3));
        Box::new(move || {
            mean(1, || {
                black_box(Surb::build(&mut rng, &route, SurbId([7; 16]))).expect("a route");
            })
        })
    }

    fn their_hop(&mut self, class: Class) -> Box<dyn FnMut() -> f64> {
        let bytes = their_packet(3, class).to_bytes();
        let relay = their_secret(1);
        Box::new(move || {
            let copies: Vec<_> = (0..EACH)
                .map(|_| SphinxPacket::from_bytes(&bytes).expect("a packet of theirs"))
                .collect();
            let mut copies = copies.into_iter();
            let mut done = Vec::with_capacity(EACH);
            mean(EACH, || {
                let packet = copies.next().expect("a copy for each");
                done.push(packet.process(&relay).expect("a good packet"));
            })
        })
    }

    fn their_build(&mut self) -> Box<dyn FnMut() -> f64> {
        Box::new(|| {
            mean(1, || {
                black_box(their_packet(5, Class::Small));
            })
        })
    }

    fn replay(&mut self) -> Box<dyn FnMut() -> f64> {
        let mut cache = ReplayCache::new(EPOCH, [9; 32], 4_000_000);
        let mut next = 0_u64;
        let mut tag = move || {
            next += 1;
            let hash = blake3::hash(&next.to_be_bytes());
            fieldpost_mixnet::sphinx::ReplayTag(std::array::from_fn(|at| hash.as_bytes()[at]))
        };
        for _ in 0..1_000_000 {
            cache.insert(tag()).expect("room");
        }
        Box::new(move || {
            let tags: Vec<_> = (0..64).map(|_| tag()).collect();
            let mut tags = tags.into_iter();
            mean(64, || {
                cache.insert(tags.next().expect("a tag for each")).expect("room");
            })
        })
    }
}

fn route(hops: u8) -> Route {
    let mut rng = StdRng::seed_from_u64(4);
    let stops = (1..=hops)
        .map(|relay| RouteStop {
            id: RelayId([relay; 32]),
            key: public(relay),
            delay: delay::sample(&mut rng, Duration::from_millis(20)),
        })
        .collect();
    Route::new(EPOCH, stops).expect("1 to 5 hops")
}

fn their_packet(hops: u8, class: Class) -> SphinxPacket {
    let route: Vec<Node> = (1..=hops)
        .map(|relay| {
            let key = PublicKey::from(&their_secret(relay));
            Node::new(NodeAddressBytes::from_bytes([relay; 32]), key)
        })
        .collect();
    let destination = Destination::new(DestinationAddressBytes::from_bytes([3; 32]), [4; 16]);
    let delays = vec![Delay::new_from_millis(20); route.len()];
    SphinxPacketBuilder::new()
        .with_payload_size(class.payload_len())
        .build_packet(b"hello", &route, &destination, &delays)
        .expect("a route of theirs")
}

fn their_secret(relay: u8) -> StaticSecret {
    StaticSecret::from([relay; 32])
}

fn secret(relay: u8) -> <X25519 as Group>::Secret {
    X25519::secret(&[relay; 32]).expect("any bytes are a secret")
}

fn public(relay: u8) -> [u8; 32] {
    X25519::public(&secret(relay)).expect("every secret has a public key")
}

/// Microseconds for each of `count` runs.
fn mean(count: usize, mut operation: impl FnMut()) -> f64 {
    let begin = Instant::now();
    for _ in 0..count {
        operation();
    }
    begin.elapsed().as_secs_f64() * 1e6 / count as f64
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
