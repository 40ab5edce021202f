//! What an operator is told of the direct mesh: gateways as processes, joined over loopback.

use std::{fs, net::UdpSocket, path::Path, time::Duration};

use harness::{
    Gateway, Options, Postgres,
    client::Draft,
    waiting::{becomes, confirm, next},
};
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);
const PASSPHRASE: &str = "a long enough passphrase";

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_is_told_of_when_it_leads_nowhere_and_when_it_answers() {
    let mut there = meshed().start().await;
    let address = address(&there).await;
    // Signals are heeded from then on.
    logged(&there, r#""listening""#).await;
    assert!(there.terminate().await.success());
    let here = meshed().argument(format!("--bootstrap={address}")).start().await;
    let said = logged(&here, "a bootstrap leads nowhere").await;
    let place = address.split_once('@').expect("it names a place").1;
    assert!(said.contains(place), "{said}");
    // Same key, other port: that is what a fixed port is for, and a restart of the other side too.
    there.resume().await;
    let back = self::address(&there).await;
    assert_eq!(back.split_once('@').expect("a place").1, place, "the port is fixed");
    logged(&here, "a bootstrap that led nowhere answers").await;
    logged(&here, "a gateway is linked").await;
    there.kill();
    logged(&here, "the last link to a gateway has ended").await;
    let log = fs::read_to_string(here.log_file()).expect("there is one");
    assert_eq!(log.matches("a bootstrap leads nowhere").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_live_copies_of_a_gateway_are_noticed() {
    let one = meshed().start().await;
    let file = one.folder().join("identity.json");
    with_passphrase(&one, "export", &file);
    let bootstrap = format!("--bootstrap={}", address(&one).await);
    let mut other = meshed().argument(bootstrap).start().await;
    other.kill();
    with_passphrase(&other, "import", &file);
    other.resume().await;
    let deadline = Instant::now() + PATIENCE;
    let is_told = |gateway: &Gateway| {
        let log = fs::read_to_string(gateway.log_file()).expect("there is one");
        log.matches("a second copy of this gateway runs").count()
    };
    // Whoever hears the other first ends the link, so at least one of them knows.
    while is_told(&one) + is_told(&other) == 0 {
        assert!(Instant::now() < deadline, "nobody notices: {}", one.log_tail());
        sleep(Duration::from_millis(50)).await;
    }
    let refused = |metrics: String| {
        let line =
            metrics.lines().find(|line| line.contains(r#"links_refused_total{reason="ours"}"#));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).unwrap_or_default()
    };
    while refused(metrics(&one).await) + refused(metrics(&other).await) == 0 {
        assert!(Instant::now() < deadline, "the refusal is not among the metrics");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(is_told(&one) <= 1 && is_told(&other) <= 1, "told more than once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_is_found_under_its_node_key_again_and_no_other_takes_that() {
    let database = Postgres::fresh_database().await;
    let mut first = meshed_on(Options::on(&database)).start().await;
    let key = node_key(&first, 1).await;
    let here = meshed().argument(format!("--bootstrap={}", address(&first).await)).start().await;
    let (alice, bob) = (here.register("alice").await, first.register("bob").await);
    let status: Value =
        bob.call(bob.request(Method::GET, "/v1/status")).await.expect("it is answered");
    let to_bob = format!("bob@{}", status["gateway_id"].as_str().expect("an id"));
    let sent = alice.send(&Draft::text(&to_bob, "before")).await.expect("it is accepted");
    confirm(&bob, &next(&bob).await, false).await;
    becomes(&alice, sent.message_id, "delivered").await;

    let replica = || {
        let master_key = first.folder().join("master.key");
        let options = meshed_on(Options::on(&database));
        options.environment("FIELDPOST_MASTER_KEY_FILE", master_key.to_string_lossy())
    };
    let mut second = replica().start().await;
    let another = node_key(&second, 1).await;
    assert_ne!(another, key, "the first lives");
    let third = replica();
    first.kill();
    let third = third.start().await;
    assert!(![&key, &another].contains(&&node_key(&third, 1).await), "it runs elsewhere");
    first.resume().await;
    assert_eq!(node_key(&first, 2).await, key);
    let sent = alice.send(&Draft::text(&to_bob, "after")).await.expect("it is accepted");
    let shown = next(&bob).await;
    assert_eq!(shown["content"], "after");
    confirm(&bob, &shown, false).await;
    becomes(&alice, sent.message_id, "delivered").await;

    // As if all three were machines of one name and one address: what tells the living from the dead
    // then are sessions at the database, which here are not those that they began with.
    second.kill();
    Postgres::execute(
        &database,
        "do $$ begin perform pg_terminate_backend(pid, 10000) from pg_stat_activity \
         where datname = current_database() and pid <> pg_backend_pid(); end $$",
    );
    let locks = "do $$ begin for tries in 1..600 loop exit when (select count(*) from pg_locks l \
                 join pg_database d on d.oid = l.database where d.datname = current_database() \
                 and l.locktype = 'advisory' and l.mode = 'ShareLock') = 2; \
                 perform pg_sleep(0.1); if tries = 600 then raise 'no lock'; end if; \
                 end loop; end $$";
    Postgres::execute(&database, locks);
    let place = "select place from node_key order by created_at offset 1 limit 1";
    Postgres::execute(&database, &format!("update node_key set place = ({place})"));
    second.resume().await;
    let kept = node_key(&second, 2).await;
    assert_eq!(kept, another, "its own is free, those of the living are not");
    drop(third);
}

const OFF_THE_NETWORK: &str = "--mesh-discovery=off";

/// At a fixed port, and out of sight of the gateways of other tests.
fn meshed() -> Options {
    meshed_on(Options::shared())
}

fn meshed_on(options: Options) -> Options {
    let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let port = port.expect("a port is free").port();
    options
        .transports("mesh")
        .argument(OFF_THE_NETWORK)
        .argument(format!("--mesh-listen=127.0.0.1:{port}"))
}

/// The node key that a gateway has shown since its start of this number.
async fn node_key(gateway: &Gateway, start: usize) -> String {
    let deadline = Instant::now() + PATIENCE;
    let said = "other gateways reach this one by --bootstrap";
    while gateway.log().matches(said).count() < start {
        assert!(Instant::now() < deadline, "it has no address: {}", gateway.log_tail());
        sleep(Duration::from_millis(50)).await;
    }
    let address = address(gateway).await;
    address.split_once('@').expect("it names a place").0.to_owned()
}

/// What a gateway says that it is reached by; of its last start.
async fn address(gateway: &Gateway) -> String {
    let line = logged(gateway, "other gateways reach this one by --bootstrap").await;
    let line: Value = serde_json::from_str(&line).expect("the log is JSON");
    line["mesh.address"].as_str().expect("an address").to_owned()
}

/// The last line of the log that holds `text`, as soon as there is one.
async fn logged(gateway: &Gateway, text: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = fs::read_to_string(gateway.log_file()).unwrap_or_default();
        if let Some(line) = log.lines().rfind(|line| line.contains(text)) {
            return line.to_owned();
        }
        assert!(Instant::now() < deadline, "{text:?} is not logged: {}", gateway.log_tail());
        sleep(Duration::from_millis(50)).await;
    }
}

async fn metrics(gateway: &Gateway) -> String {
    let answer = reqwest::get(format!("{}/metrics", gateway.admin_url())).await;
    answer.expect("it answers").text().await.expect("it is text")
}

fn with_passphrase(gateway: &Gateway, word: &str, file: &Path) {
    let mut command = gateway.command_for(&["identity", word]);
    command.arg(file).env("FIELDPOST_PASSPHRASE", PASSPHRASE);
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{output:?}");
}
