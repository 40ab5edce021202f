//! Between two gateways, durable on both sides, beside plain inserts of the same sizes into the same two
//! servers. To a recipient who is away: from a POST at one until the other has committed it. And the
//! whole way to one who listens: until the first has recorded that the recipient's client confirmed.
//!
//! Both gateways and the load share this process, since the `memory` transport does not leave it;
//! the load has a thread of its own, so that its processor time can be told from theirs.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    process::Child,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use fieldpost_transport::{MemoryNetwork, MemoryOptions};
use harness::{Client, Postgres, federation::Node};
use sqlx::Connection as _;
use tokio::{
    runtime::Runtime,
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use crate::{
    floor,
    load::{self, request},
    measure::{Measured, cpu_of, milliseconds},
    server::Socket,
    table::{Table, Target},
};

const DURATION: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(1);
/// How long a message may take before the run counts as broken.
const PATIENCE: Duration = Duration::from_secs(20);
const PAIRS: usize = 32;
/// Between looks at what has arrived for those who are away.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Clients of each server for the plain inserts.
const INSERTERS: u32 = 64;
/// As many bytes of content as may be under way are bounded by what a gateway takes at once.
const SIZES: [(usize, usize); 3] = [(256, 16), (4 << 10, 16), (1 << 20, 1)];

/// Two gateways that reach each other, and the servers below them.
pub(crate) struct Pair {
    pub(crate) from: End,
    pub(crate) to: End,
    /// The gateways' processes, unless they are of this one.
    pub(crate) processes: Vec<u32>,
}

impl Pair {
    /// The processor time that both gateways have used, and that of both servers.
    fn used(&self) -> (Duration, Duration) {
        let all = cpu_of(std::process::id());
        if self.processes.is_empty() {
            return (all.own.saturating_sub(own_cpu()), all.descendants);
        }
        let gateways = self.processes.iter().map(|process| cpu_of(*process).own).sum();
        (gateways, all.descendants.saturating_sub(gateways))
    }
}

/// One of them.
pub(crate) struct End {
    pub(crate) postgres: Postgres,
    /// The gateway's database there.
    pub(crate) database: String,
    pub(crate) address: SocketAddr,
    /// As others write it after the `@`.
    pub(crate) gateway: String,
}

/// Measures two gateways joined by the `memory` transport.
pub(crate) async fn run(table: &mut Table) {
    let runtime = Runtime::new().expect("a runtime");
    let network = MemoryNetwork::new(1);
    let mut ends = Vec::new();
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let postgres = Postgres::start().await;
        let database = postgres.create_database("gateway");
        let (url, network) = (database.clone(), network.clone());
        let options = MemoryOptions { queue: 16 * 1024, ..MemoryOptions::default() };
        let started = runtime.spawn(async move {
            let options = [(&network, options)];
            let unlimited = [
                "--rate-limit=1000000",
                "--registration-rate-limit=1000000",
                "--sender-share=100%",
            ];
            Node::start(url, &options, &unlimited).await
        });
        let node = started.await.expect("the gateway starts");
        let address = node.address("x");
        let (_, gateway) = address.split_once('@').expect("an address of a peer");
        ends.push(End {
            postgres,
            database,
            address: node.listens_on(),
            gateway: gateway.to_owned(),
        });
        nodes.push(node);
    }
    let to = ends.pop().expect("two");
    let from = ends.pop().expect("two");
    let pair = Pair { from, to, processes: Vec::new() };
    measure(table, "memory", &pair, None).await;
    runtime
        .spawn(async move {
            for node in &mut nodes {
                node.stop().await;
            }
        })
        .await
        .expect("the gateways stop");
    runtime.shutdown_background();
}

/// Measures a pair joined by `transport`; `links` is what that carries by itself, for each size.
pub(crate) async fn measure(
    table: &mut Table,
    transport: &str,
    pair: &Pair,
    links: Option<[f64; 3]>,
) {
    let (away, listening) =
        (Peers::register(pair, "away").await, Peers::register(pair, "listening").await);
    for (number, (size, slots)) in SIZES.into_iter().enumerate() {
        let plain = plain_inserts(pair, size);
        let batched = batched_inserts(pair, size);
        table.figure(
            format!("plain inserts into two servers, {}", words(size)),
            format!("{plain:.0} /s"),
            format!("pgbench, {INSERTERS} clients each; batched {batched:.0} rows/s"),
        );
        let (floor, beside) = match links {
            Some(links) if links[number] < plain => (links[number], "raw streams"),
            _ => (plain, "plain inserts"),
        };
        for (peers, until) in [(&away, Until::Stored), (&listening, Until::Confirmed)] {
            let mut run = one(pair, peers, size, slots, until).await;
            let label = format!("{transport}, {}, {}", words(size), until.words());
            table.figure(
                format!("gateway to gateway, {label}"),
                format!("{:.0} /s", run.rate()),
                format!(
                    "p50 {}, p99 {} with {} under way; {}",
                    milliseconds(run.latency.quantile(0.5)),
                    milliseconds(run.latency.quantile(0.99)),
                    PAIRS * slots,
                    run.cost(),
                ),
            );
            table.ratio(
                format!("gateway to gateway, {label}"),
                format!("{:.0} /s", run.rate()),
                run.rate() / floor,
                Target::AtLeast(0.5),
                beside,
            );
        }
    }
}

/// How far a message has to come.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Until {
    /// The recipient's gateway has committed it.
    Stored,
    /// The sender was told that the recipient's client confirmed it.
    Confirmed,
}

impl Until {
    fn words(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Confirmed => "confirmed",
        }
    }
}

/// The peers of a pair; each sender writes to one recipient.
struct Peers {
    /// The recipients' names.
    names: Vec<String>,
    /// Everybody's tokens.
    senders: Vec<String>,
    recipients: Vec<String>,
}

impl Peers {
    async fn register(pair: &Pair, kind: &str) -> Self {
        let mut peers = Self { names: Vec::new(), senders: Vec::new(), recipients: Vec::new() };
        for number in 0..PAIRS {
            let name = format!("{kind}-{number}");
            peers.senders.push(register(pair.from.address, &format!("to-{name}")).await);
            peers.recipients.push(register(pair.to.address, &name).await);
            peers.names.push(name);
        }
        peers
    }
}

async fn register(address: SocketAddr, peer: &str) -> String {
    let client = Client::new(&format!("http://{address}"), false);
    let client = client.register(peer).await.expect("the peer can be registered");
    client.token().expect("registration gives a token").to_owned()
}

struct Outcome {
    arrived: usize,
    elapsed: Duration,
    latency: Measured,
    gateways: Duration,
    servers: Duration,
    load: Duration,
}

impl Outcome {
    fn rate(&self) -> f64 {
        self.arrived as f64 / self.elapsed.as_secs_f64()
    }

    fn cost(&self) -> String {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / self.arrived.max(1) as f64;
        format!(
            "CPU a message: both gateways {:.0} us, both servers {:.0} us, load {:.0} us",
            each(self.gateways),
            each(self.servers),
            each(self.load),
        )
    }
}

/// Who waits to hear of a message, by its id.
type Waiting = Arc<Mutex<HashMap<Uuid, oneshot::Sender<()>>>>;

async fn one(pair: &Pair, peers: &Peers, size: usize, slots: usize, until: Until) -> Outcome {
    let mut sockets = JoinSet::new();
    let mut tasks = JoinSet::new();
    let mut open = Vec::new();
    for number in 0..PAIRS {
        let waiting = Waiting::default();
        if until == Until::Confirmed {
            // Open before anything is sent: nobody is told later what was delivered before.
            let told = Socket::open(pair.from.address, &peers.senders[number]).await;
            sockets.spawn(listen(told, waiting.clone()));
            sockets.spawn(confirm(Socket::open(pair.to.address, &peers.recipients[number]).await));
        }
        open.push(waiting);
    }
    if until == Until::Stored {
        sockets.spawn(watch(pair.to.database.clone(), peers.names.clone(), open.clone()));
    }
    let begin = Instant::now() + WARM_UP;
    let end = begin + DURATION;
    for (number, waiting) in open.into_iter().enumerate() {
        for _ in 0..slots {
            let to = format!("{}@{}", peers.names[number], pair.to.gateway);
            let (token, waiting) = (peers.senders[number].clone(), waiting.clone());
            tasks.spawn(send(pair.from.address, token, to, size, waiting, (begin, end)));
        }
    }
    tokio::time::sleep_until(begin).await;
    let (before, load) = (pair.used(), own_cpu());
    tokio::time::sleep_until(end).await;
    let after = pair.used();
    let gateways = after.0.saturating_sub(before.0);
    let servers = after.1.saturating_sub(before.1);
    let load = own_cpu().saturating_sub(load);
    let mut latency = Measured::default();
    for measured in tasks.join_all().await.into_iter().flatten() {
        latency.add(measured);
    }
    sockets.shutdown().await;
    Outcome { arrived: latency.len(), elapsed: DURATION, latency, gateways, servers, load }
}

/// Sends one message after the other, each when the last has arrived.
async fn send(
    address: SocketAddr,
    token: String,
    to: String,
    size: usize,
    waiting: Waiting,
    (begin, end): (Instant, Instant),
) -> Vec<Duration> {
    let mut client = load::Client::connect(address).await;
    let content = "x".repeat(size);
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let id = Uuid::new_v4();
        let (arrived, has_arrived) = oneshot::channel();
        waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, arrived);
        let body = format!("{{\"to\":\"{to}\",\"content\":\"{content}\",\"message_id\":\"{id}\"}}");
        let sent = Instant::now();
        client.post(&request("/v1/messages", &token, &body)).await;
        let heard = timeout(PATIENCE, has_arrived).await;
        assert!(matches!(heard, Ok(Ok(()))), "a message did not arrive within {PATIENCE:?}");
        if (begin..end).contains(&Instant::now()) {
            latencies.push(sent.elapsed());
        }
    }
    latencies
}

/// Hears at the sender's which messages were delivered.
async fn listen(mut socket: Socket, waiting: Waiting) {
    while let Some(text) = socket.next_text().await {
        let is_receipt = text.contains("\"type\":\"receipt\"") && text.contains("\"delivered\"");
        let id = text.split("\"message_id\":\"").nth(1).and_then(|rest| rest.get(..36));
        if let (true, Some(id)) = (is_receipt, id.and_then(|id| id.parse().ok())) {
            let heard = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            heard.map(|heard| heard.send(()));
        }
    }
}

/// Sees in the recipients' database what has been committed for `names`.
async fn watch(database: String, names: Vec<String>, waiting: Vec<Waiting>) {
    let mut connection =
        sqlx::PgConnection::connect(&database).await.expect("the database can be asked");
    let mut seen = vec![DateTime::<Utc>::UNIX_EPOCH; names.len()];
    loop {
        let arrived: Vec<(i64, DateTime<Utc>, Uuid)> = sqlx::query_as(
            "select number, i.position, i.message_id
             from unnest($1::text[], $2::timestamptz[]) with ordinality as asked (name, seen, number)
             cross join lateral (
                 select position, message_id from inbox
                 where recipient = asked.name and position > asked.seen order by position
             ) as i",
        )
        .bind(&names)
        .bind(&seen)
        .fetch_all(&mut connection)
        .await
        .expect("the inboxes can be read");
        for (number, position, id) in arrived {
            let number = number as usize - 1;
            seen[number] = position;
            let heard = waiting[number].lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            heard.map(|heard| heard.send(()));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Confirms at the recipient's whatever comes.
async fn confirm(mut socket: Socket) {
    while let Some(message) = socket.next_message().await {
        socket.confirm(message.seq).await;
    }
}

/// Single-row inserts a second into both servers at once; the slower one's.
fn plain_inserts(pair: &Pair, size: usize) -> f64 {
    let script = "insert into plain (sender, body) select 'alice', body from template;\n";
    both(pair, size, script, if size > 64 << 10 { 16 } else { INSERTERS })
}

/// The same, 256 rows to a commit.
fn batched_inserts(pair: &Pair, size: usize) -> f64 {
    let rows = if size > 64 << 10 { 8 } else { 256 };
    let script = format!(
        "insert into plain (sender, body) select 'alice', body from template, generate_series(1, {rows});\n"
    );
    f64::from(rows) * both(pair, size, &script, 2)
}

fn both(pair: &Pair, size: usize, script: &str, clients: u32) -> f64 {
    let running: Vec<Child> = [&pair.from, &pair.to]
        .iter()
        .map(|end| {
            let name = format!("floor_{}", Uuid::new_v4().simple());
            let url = end.postgres.create_database(&name);
            // Sealed bytes do not compress, so neither may these.
            let setup = format!(
                "create table plain (sender text, body bytea, at timestamptz default now(), id bigserial primary key);
                 create table template (body bytea);
                 alter table plain alter column body set storage external;
                 alter table template alter column body set storage external;
                 insert into template select string_agg(sha256(n::text::bytea), '') from generate_series(1, {}) as n",
                size / 32
            );
            Postgres::execute(&url, &setup);
            floor::start_pgbench(&url, script, clients, 3)
        })
        .collect();
    running.into_iter().map(floor::rate_of).fold(f64::INFINITY, f64::min)
}

/// The processor time of the load's thread, which is the one that asks.
fn own_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks: u64 =
        fields.split(' ').skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
    Duration::from_millis(ticks * 10)
}

fn words(bytes: usize) -> String {
    match bytes {
        ..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}
