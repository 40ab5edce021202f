//! The database goes away under load and comes back: senders are told at once, nothing accepted
//! is lost, and the gateway recovers without a restart.
//!
//! It is away for 5 s, with `FIELDPOST_PROVE=1` for 30 s.

use std::{env, time::Duration};

use harness::{
    Gateway, Options, Postgres,
    client::Draft,
    load::{Load, Shape},
    seed,
};
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);
const PEERS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn senders_are_told_and_nothing_is_lost_while_postgres_is_stopped() {
    let seed = seed();
    eprintln!("seed {seed}");
    let mut postgres = Postgres::start().await;
    let mut gateway = Options::on(postgres.create_database("away")).start().await;
    let shape = Shape { peers: PEERS, ..Shape::default() };
    let load = Load::start(&gateway.client(), shape, seed).await;
    load.wait_for_accepted(200, PATIENCE).await;
    let pid = gateway.pid();

    postgres.stop().await;
    let away_until = Instant::now() + outage();
    // Every sender is refused several times over.
    let (told_before, _) = load.unavailable();
    wait_until("senders are answered 503", || {
        load.unavailable().0 >= told_before + 4 * PEERS as u64
    })
    .await;
    assert_health_tells(&gateway).await;
    // The length of the outage is what this is about.
    tokio::time::sleep_until(away_until).await;
    let (told, with_retry_after) = load.unavailable();
    assert_eq!(told, with_retry_after, "some 503 did not say when to come back");

    postgres.resume().await;
    load.wait_for_accepted(300, PATIENCE).await;
    gateway.wait_ready().await;
    assert_eq!(gateway.pid(), pid);
    assert!(gateway.exited().is_none());
    // Whoever was connected got an answer within its deadline, at every moment.
    assert_eq!(load.unanswered(), 0, "some sends got no answer");
    let history = load.finish().await;
    history.assert_clean(seed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_without_its_database_and_says_why() {
    let mut postgres = Postgres::start().await;
    let url = postgres.create_database("late");
    postgres.stop().await;
    let mut gateway = Options::on(url).start_without_waiting().await;
    let reason = gateway.wait_not_ready().await;
    assert!(reason.contains("database"), "{reason}");
    postgres.resume().await;
    gateway.wait_ready().await;
    let alice = gateway.register("alice").await;
    let sent = alice.send(&Draft::text("alice", "to myself")).await.expect("it is taken");
    let page = alice.poll(None, 0).await.expect("the inbox is shown");
    assert_eq!(page.messages[0].message_id, sent.message_id);
}

fn outage() -> Duration {
    let seconds = if env::var_os("FIELDPOST_PROVE").is_some() { 30 } else { 5 };
    Duration::from_secs(seconds)
}

/// Probes go on: the process lives, it is not ready, and it says why.
async fn assert_health_tells(gateway: &Gateway) {
    let reason = gateway.wait_not_ready().await;
    assert!(reason.contains("database"), "{reason}");
    let client = gateway.client();
    let health: serde_json::Value =
        client.call(client.request(reqwest::Method::GET, "/health")).await.expect("it answers");
    assert_eq!(health["status"], "degraded");
}

async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "it never happens that {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
