//! From publisher to online subscriber at 1000 messages a second, every commit flushed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    floor::{self, Floor},
    load::request,
    measure::{Measured, median, milliseconds},
    server::Server,
    table::{Table, Target},
};

const RUNS: usize = 3;
const PAIRS: usize = 20;
const RATE: u32 = 1000;
const DURATION: Duration = Duration::from_secs(6);

/// Measures with batches as large as they come and with one INSERT for each request, in turn, and
/// before each pair of runs the disk, which others may share, and what a database alone makes of such
/// a rate.
pub(crate) async fn run(table: &mut Table, floor: &Floor) {
    let (mut flushes, mut alone) = (Vec::new(), Vec::new());
    let (mut grouped, mut single) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        flushes.push(floor::flushes(Duration::from_secs(1)));
        alone.push(floor.paced_commits(PAIRS as u32, RATE, 5));
        grouped.push(one(&[]).await);
        single.push(one(&["--accept-batch=1"]).await);
    }
    let quantile = |runs: &mut [Measured], share| {
        let seconds = runs.iter_mut().map(|run| run.quantile(share).as_secs_f64()).collect();
        Duration::from_secs_f64(median(seconds))
    };
    let mut figure = |what: &str, runs: &mut [Measured]| {
        let (p50, p99) = (quantile(runs, 0.5), quantile(runs, 0.99));
        let messages: usize = runs.iter().map(Measured::len).sum();
        let note = format!("p99 {}; {messages} in {RUNS} runs", milliseconds(p99));
        table.figure(what, format!("p50 {}", milliseconds(p50)), note);
        (p50, p99)
    };
    let (_, flush_p99) = figure("flush of 8 KiB, between the runs", &mut flushes);
    let (_, alone_p99) = figure("single-row commits at 1000/s, pgbench alone", &mut alone);
    let (single_p50, _) = figure("send to socket, one INSERT a request", &mut single);
    let (p50, p99) = figure("send to socket, group commit", &mut grouped);
    let ratio = p50.as_secs_f64() / single_p50.as_secs_f64();
    table.ratio(
        "latency p50",
        milliseconds(p50),
        ratio,
        Target::AtMost(1.0),
        "one INSERT a request",
    );
    let in_flushes = |duration: Duration| duration.as_secs_f64() / flush_p99.as_secs_f64();
    table.ratio(
        "latency p99",
        milliseconds(p99),
        in_flushes(p99),
        Target::AtMost(4.0),
        format!("the disk's flush p99; pgbench alone at this rate: {:.1}", in_flushes(alone_p99)),
    );
}

async fn one(arguments: &[&str]) -> Measured {
    let server = Server::start(arguments).await;
    let (seen, mut latencies) = mpsc::channel(10_000);
    let mut tasks = JoinSet::new();
    for pair in 0..PAIRS {
        let sender = server.register(&format!("sender-{pair}")).await;
        let recipient = server.register(&format!("recipient-{pair}")).await;
        let mut socket = server.socket(&recipient).await;
        let seen = seen.clone();
        tasks.spawn(async move {
            while let Some(message) = socket.next_message().await {
                let latency = now().saturating_sub(sent_at(&message.content));
                socket.confirm(message.seq).await;
                if seen.send(latency).await.is_err() {
                    return;
                }
            }
        });
        let address = server.address;
        tasks.spawn(async move {
            let mut client = crate::load::Client::connect(address).await;
            let mut beat = interval(Duration::from_secs(1) * PAIRS as u32 / RATE);
            beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let end = Instant::now() + DURATION;
            while beat.tick().await < end {
                let content = format!("{:020}{}", now().as_nanos(), "x".repeat(236));
                let body = format!("{{\"to\":\"recipient-{pair}\",\"content\":\"{content}\"}}");
                client.post(&request("/v1/messages", &sender, &body)).await;
            }
        });
    }
    drop(seen);
    let mut measured = Measured::default();
    while let Ok(Some(latency)) = timeout(Duration::from_secs(3), latencies.recv()).await {
        measured.add(latency);
    }
    tasks.shutdown().await;
    measured
}

fn now() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "both ends of the measurement are this process")]
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn sent_at(content: &str) -> Duration {
    content
        .get(..20)
        .and_then(|digits| digits.parse().ok())
        .map_or(Duration::ZERO, Duration::from_nanos)
}
