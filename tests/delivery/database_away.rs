//! The database goes away under load and comes back: senders are told at once, nothing accepted
//! is lost, and the gateway recovers without a restart.
//!
//! It is away for 5 s, with `FIELDPOST_PROVE=1` for 30 s.

use std::{collections::HashSet, env, time::Duration};

use fieldpost_transport::{MemoryNetwork, MemoryOptions};
use harness::{
    Client, Gateway, Options, Postgres,
    client::Draft,
    federation::Node,
    load::{Load, Shape},
    seed,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use uuid::Uuid;

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

#[tokio::test(flavor = "multi_thread")]
async fn what_was_on_its_way_as_the_database_died_goes_on_once_it_is_back() {
    let network = MemoryNetwork::new(1);
    let joined = [(&network, MemoryOptions::default())];
    let mut postgres = Postgres::start().await;
    // What only the end of a claim would make due again would never arrive here.
    let options = ["--failover-timeout=10m"];
    let near = Node::start(postgres.create_database("near"), &joined, &options).await;
    let far = Node::start(Postgres::fresh_database().await, &joined, &options).await;
    let bob = far.register("bob").await;
    let ((enough, is_enough), mut senders) = (watch::channel(false), JoinSet::new());
    for number in 0..PEERS {
        let alice = near.register(&format!("alice-{number}")).await;
        let (to, is_enough) = (far.address("bob"), is_enough.clone());
        senders.spawn(async move { send_until(&alice, &to, &is_enough).await });
    }
    for _ in 0..3 {
        sleep(Duration::from_millis(400)).await;
        postgres.kill().await;
        sleep(Duration::from_millis(300)).await;
        postgres.resume().await;
    }
    sleep(Duration::from_millis(400)).await;
    enough.send(true).expect("they listen");
    let sent: HashSet<Uuid> = senders.join_all().await.into_iter().flatten().collect();
    let (mut arrived, mut after) = (HashSet::new(), None);
    let deadline = Instant::now() + PATIENCE;
    while !sent.is_subset(&arrived) {
        let missing = sent.difference(&arrived).count();
        assert!(Instant::now() < deadline, "{missing} of {} never arrive", sent.len());
        let page = bob.poll(after.as_deref(), 1).await.expect("the inbox is shown");
        arrived.extend(page.messages.iter().map(|message| message.message_id));
        after = Some(page.next);
    }
}

/// Sends one message after the other, each until it is accepted.
async fn send_until(client: &Client, to: &str, is_enough: &watch::Receiver<bool>) -> Vec<Uuid> {
    let mut accepted = Vec::new();
    while !*is_enough.borrow() {
        let draft = Draft::text(to, "still there?");
        let deadline = Instant::now() + PATIENCE;
        while client.send(&draft).await.is_err() {
            assert!(Instant::now() < deadline, "a message is never accepted");
            sleep(Duration::from_millis(50)).await;
        }
        accepted.push(draft.message_id.expect("a draft has an id"));
    }
    accepted
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
