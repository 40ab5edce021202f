//! From publisher to online subscriber at 1000 messages a second, every commit flushed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    floor::Floor,
    load::request,
    measure::{Measured, milliseconds},
    server::Server,
    table::{Table, Target},
};

const PAIRS: usize = 20;
const RATE: u32 = 1000;
const DURATION: Duration = Duration::from_secs(10);

/// Measures with batches as large as they come, then with one INSERT for each request.
pub(crate) async fn run(table: &mut Table, floor: &Floor) {
    let mut grouped = one(&[]).await;
    let mut single = one(&["--accept-batch=1"]).await;
    let quantiles = |measured: &mut Measured| (measured.quantile(0.5), measured.quantile(0.99));
    let (p50, p99) = quantiles(&mut grouped);
    let (single_p50, single_p99) = quantiles(&mut single);
    table.figure(
        "send to socket, one INSERT a request",
        format!("p50 {}", milliseconds(single_p50)),
        format!("p99 {}, {} messages", milliseconds(single_p99), single.len()),
    );
    table.figure(
        "send to socket, group commit",
        format!("p50 {}", milliseconds(p50)),
        format!("p99 {}, {} messages", milliseconds(p99), grouped.len()),
    );
    let ratio = p50.as_secs_f64() / single_p50.as_secs_f64();
    table.ratio(
        "latency p50",
        milliseconds(p50),
        ratio,
        Target::AtMost(1.0),
        "one INSERT a request",
    );
    let ratio = p99.as_secs_f64() / floor.flush_p99.as_secs_f64();
    table.ratio(
        "latency p99",
        milliseconds(p99),
        ratio,
        Target::AtMost(4.0),
        "the disk's flush p99",
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
