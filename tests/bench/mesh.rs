//! Between two gateways over loopback, beside what the links themselves carry and what the two
//! databases take in.
//!
//! The floor is iroh alone: a stream for each message, written, read whole and answered with one byte,
//! as many at a time as the other side lets be open.

use std::{fs, time::Duration};

use harness::{Gateway, Options, Postgres};
use iroh::{
    Endpoint, EndpointAddr, RelayMode,
    endpoint::{Connection, PortmapperConfig, QuicTransportConfig, VarInt, presets},
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use crate::{
    federation::{self, End, Pair},
    measure::{Measured, median, milliseconds},
    table::Table,
};

/// What is measured: bytes in a message, messages in a run, messages under way at a time.
pub(crate) const SIZES: [(usize, usize, usize); 3] =
    [(256, 20_000, 64), (4 * 1024, 10_000, 64), (1024 * 1024, 100, 8)];
const RUNS: usize = 3;
const ALPN: &[u8] = b"fieldpost/bench/1";

/// Two gateways as processes, each on a server of its own, joined by `--bootstrap`.
pub(crate) async fn gateways(table: &mut Table) {
    let streams = raw(table).await;
    let first = Postgres::start().await;
    let database = first.create_database("gateway");
    let one = gateway(database.clone(), &[]).await;
    let address = own_address(&one).await;
    let second = Postgres::start().await;
    let bootstrap = format!("--bootstrap={address}");
    let elsewhere = second.create_database("gateway");
    let other = gateway(elsewhere.clone(), &[&bootstrap]).await;
    let processes = vec![one.pid(), other.pid()];
    let pair =
        Pair { from: end(first, database, &one), to: end(second, elsewhere, &other), processes };
    federation::measure(table, "mesh", &pair, Some(streams)).await;
}

async fn gateway(url: String, more: &[&str]) -> Gateway {
    let options = [
        "--rate-limit=1000000",
        "--registration-rate-limit=1000000",
        "--gateway-rate-limit=1000000",
        "--sender-share=100%",
        "--trust=none",
        "--mesh-discovery=off",
        "--mesh-listen=127.0.0.1:0",
    ];
    let options = options
        .iter()
        .chain(more)
        .fold(Options::on(url).transports("mesh"), |all, one| all.argument(*one));
    options.start().await
}

fn end(postgres: Postgres, database: String, gateway: &Gateway) -> End {
    let shown = gateway.run(&["identity", "show"]);
    let id = String::from_utf8(shown.stdout).expect("an id is text");
    let address = gateway.url().trim_start_matches("http://").parse().expect("an address");
    End { postgres, database, address, gateway: id.trim().to_owned() }
}

/// What the gateway said at its start that others give to `--bootstrap`.
async fn own_address(gateway: &Gateway) -> String {
    loop {
        let log = fs::read_to_string(gateway.log_file()).expect("it has a log");
        if let Some((_, rest)) = log.split_once("\"mesh.address\":\"") {
            let (address, _) = rest.split_once('"').expect("it is a string");
            return address.to_owned();
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Messages a second that raw streams carry, one on each: the median of `runs`.
pub(crate) async fn alone(size: usize, count: usize, at_once: usize, runs: usize) -> f64 {
    let streams = Streams::open().await;
    let mut rates = Vec::new();
    for _ in 0..runs {
        let begin = Instant::now();
        run(&streams.connection, size, count, at_once, &mut Measured::default()).await;
        rates.push(count as f64 / begin.elapsed().as_secs_f64());
    }
    streams.close().await;
    median(rates)
}

/// A connection between two endpoints of this process.
struct Streams {
    server: Endpoint,
    client: Endpoint,
    connection: Connection,
    serving: JoinHandle<()>,
}

impl Streams {
    async fn open() -> Self {
        let (server, client) = (endpoint().await, endpoint().await);
        let address = EndpointAddr::from_parts(
            server.id(),
            server.bound_sockets().into_iter().map(iroh::TransportAddr::Ip),
        );
        let serving = tokio::spawn(serve(server.clone()));
        let connection = client.connect(address, ALPN).await.expect("loopback connects");
        Self { server, client, connection, serving }
    }

    async fn close(self) {
        self.connection.close(VarInt::from_u32(0), b"done");
        self.client.close().await;
        self.server.close().await;
        self.serving.abort();
    }
}

/// Messages a second that raw streams carry, for each of [`SIZES`].
async fn raw(table: &mut Table) -> [f64; 3] {
    let streams = Streams::open().await;
    let mut rates = [0.0; 3];
    for (slot, (size, count, at_once)) in rates.iter_mut().zip(SIZES) {
        let mut runs = Vec::new();
        let mut latencies = Measured::default();
        for _ in 0..RUNS {
            let begin = Instant::now();
            run(&streams.connection, size, count, at_once, &mut latencies).await;
            runs.push(count as f64 / begin.elapsed().as_secs_f64());
        }
        *slot = median(runs);
        table.figure(
            format!("raw iroh streams, {}", bytes(size)),
            format!("{slot:.0} /s"),
            format!(
                "{at_once} at a time, p50 {}, p99 {}",
                milliseconds(latencies.quantile(0.5)),
                milliseconds(latencies.quantile(0.99))
            ),
        );
    }
    streams.close().await;
    rates
}

/// A size as people write it.
pub(crate) fn bytes(size: usize) -> String {
    match size {
        0..1024 => format!("{size} B"),
        1024..1_048_576 => format!("{} KiB", size / 1024),
        _ => format!("{} MiB", size / 1_048_576),
    }
}

async fn run(
    connection: &Connection,
    size: usize,
    count: usize,
    at_once: usize,
    latencies: &mut Measured,
) {
    let mut workers = JoinSet::new();
    for worker in 0..at_once {
        let connection = connection.clone();
        let share = count / at_once + usize::from(worker < count % at_once);
        workers.spawn(async move {
            let message = vec![7; size];
            let mut took = Vec::with_capacity(share);
            for _ in 0..share {
                let begin = Instant::now();
                carry(&connection, &message).await;
                took.push(begin.elapsed());
            }
            took
        });
    }
    while let Some(took) = workers.join_next().await {
        took.expect("workers end").into_iter().for_each(|took| latencies.add(took));
    }
}

async fn carry(connection: &Connection, message: &[u8]) {
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream opens");
    send.write_all(message).await.expect("the stream takes it");
    send.finish().expect("the stream is open");
    let answer = receive.read_to_end(1).await.expect("an answer comes");
    assert_eq!(answer, [1]);
}

async fn serve(server: Endpoint) {
    while let Some(incoming) = server.accept().await {
        let Ok(connection) = incoming.await else { continue };
        tokio::spawn(async move {
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                tokio::spawn(async move {
                    if receive.read_to_end(2 * 1024 * 1024).await.is_ok() {
                        let _ = send.write_all(&[1]).await;
                        let _ = send.finish();
                    }
                });
            }
        });
    }
}

async fn endpoint() -> Endpoint {
    let transport = QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(VarInt::from_u32(256))
        .max_idle_timeout(Some(Duration::from_secs(60).try_into().expect("a minute fits")))
        .build();
    Endpoint::builder(presets::Minimal)
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(RelayMode::Disabled)
        .clear_address_lookup()
        .portmapper_config(PortmapperConfig::Disabled)
        .transport_config(transport)
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")
        .expect("an address")
        .bind()
        .await
        .expect("loopback can be bound")
}
