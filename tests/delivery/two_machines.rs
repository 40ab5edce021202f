//! Two gateways on two machines, joined by a cable and by nothing else: no configuration, no
//! internet, real QUIC. The machines are network namespaces.
//!
//! `CUTS`, `DOWN` (seconds) and `PAUSE` (milliseconds, the longest between two messages of one of the
//! twelve senders) make up the long form: `./dev prove chaos CUTS=20 PAUSE=100`.

use std::{sync::Arc, time::Duration};

use harness::{
    Client, Gateway, Options,
    client::Draft,
    load::{Load, Shape},
    namespace::{Cable, Namespace, available},
    seed, setting,
    waiting::{becomes, confirm, next},
};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

/// How long the gateways may take to list each other's peers.
const FOUND_WITHIN: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(120);
const SHORT_CUTS: u64 = 2;
const LONG_CUTS: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn gateways_that_share_a_cable_find_each_other_and_carry_everything() {
    if !available() {
        return;
    }
    let two = Two::start().await;
    let alice = two.one.register("alice").await;
    let bob = two.other.register("bob").await;
    let found = [lists(&alice, "bob").await, lists(&bob, "alice").await];
    eprintln!("listed after {found:?}");

    // By bare names, both ways, with receipts.
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        let sent = from.send(&Draft::text(to.peer(), "hello")).await.expect("it is accepted");
        let shown = next(to).await;
        assert_eq!(shown["content"], "hello");
        let sender = shown["from"].as_str().expect("a name");
        assert!(sender.starts_with(&format!("{}@", from.peer())), "{sender}");
        confirm(to, &shown, false).await;
        becomes(from, sent.message_id, "delivered").await;
        confirm(to, &shown, true).await;
        becomes(from, sent.message_id, "read").await;
        let record = from.record(sent.message_id).await.expect("it is the sender's");
        assert_eq!(record.recipients[0].attempts[0].transport, "mesh");
    }

    let large = "x".repeat(1 << 20);
    let sent = alice.send(&Draft::text("bob", large.clone())).await.expect("1 MiB is allowed");
    let shown = next(&bob).await;
    assert!(shown["content"].as_str() == Some(large.as_str()), "1 MiB arrives whole");
    confirm(&bob, &shown, false).await;
    becomes(&alice, sent.message_id, "delivered").await;

    let content: Vec<u8> =
        (0..50_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = upload(&alice, &content).await;
    let body = json!({ "to": "bob", "content": "a film", "file_ids": [file] });
    let accepted: Value = alice
        .call(alice.request(Method::POST, "/v1/messages").json(&body))
        .await
        .expect("a file may go with it");
    let shown = next(&bob).await;
    let there = shown["file_ids"][0].as_str().expect("the file is named").to_owned();
    let arrived = download(&bob, &there).await;
    assert!(Sha256::digest(&arrived) == Sha256::digest(&content), "50 MiB arrive whole");
    confirm(&bob, &shown, false).await;
    let id = accepted["message_id"].as_str().expect("a name").parse().expect("a UUID");
    becomes(&alice, id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cable_that_is_pulled_out_and_plugged_in_again_loses_nothing() {
    if available() {
        cut_and_return(setting("CUTS", SHORT_CUTS), setting("DOWN", 5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a quarter of an hour: ./dev prove chaos"]
async fn twenty_cuts_of_thirty_seconds_lose_nothing() {
    assert!(available(), "the proof needs network namespaces");
    cut_and_return(setting("CUTS", LONG_CUTS), setting("DOWN", 30)).await;
}

async fn cut_and_return(cuts: u64, down: u64) {
    let seed = seed();
    eprintln!("seed {seed}, {cuts} cuts of {down} s");
    let two = Two::start().await;
    let homes = [two.one.client(), two.other.client()];
    let pause = Duration::from_millis(setting("PAUSE", 20));
    let shape = Shape { pause, ..Shape::default() };
    let clients = Load::register_across(&homes, shape).await;
    let names: Vec<String> = clients.iter().map(|client| client.peer().to_owned()).collect();
    for (client, name) in clients.iter().zip(names.iter().cycle().skip(1)) {
        lists(client, name).await;
    }
    let probes = [two.one.register("probe-a").await, two.other.register("probe-b").await];
    lists(&probes[0], "probe-b").await;
    let load = Load::start_across(clients, shape, seed);
    let mut resumed = Vec::new();
    for _ in 0..cuts {
        load.wait_for_accepted(200, PATIENCE).await;
        two.cable.pull_out();
        sleep(Duration::from_secs(down)).await;
        let draft = Draft::text("probe-b", "are you there?");
        let sent = probes[0].send(&draft).await.expect("it is kept");
        two.cable.plug_in();
        let returned = Instant::now();
        let shown = next(&probes[1]).await;
        resumed.push(returned.elapsed());
        confirm(&probes[1], &shown, false).await;
        becomes(&probes[0], sent.message_id, "delivered").await;
    }
    resumed.sort();
    eprintln!(
        "deliveries resumed after the return: median {:?}, longest {:?} of {} (to reach: 2 s)",
        resumed[resumed.len() / 2],
        resumed[resumed.len() - 1],
        resumed.len()
    );
    load.wait_for_accepted(200, PATIENCE).await;
    let history = load.finish().await;
    eprintln!("{} events", history.events.len());
    history.assert_clean(seed);
}

/// Two gateways and the cable between them.
struct Two {
    // Dropped in this order: gateways before the machines that they run on.
    one: Gateway,
    other: Gateway,
    cable: Cable,
}

impl Two {
    async fn start() -> Self {
        let machines = [Arc::new(Namespace::new()), Arc::new(Namespace::new())];
        let cable = Cable::new(&machines[0], &machines[1], 1);
        let [one, other] = machines
            .map(|machine| Options::embedded().transports("mesh").on_machine(machine).start());
        let (one, other) = tokio::join!(one, other);
        Self { one, other, cable }
    }
}

/// Waits until a client is shown a peer of another gateway; returns how long that took.
async fn lists(client: &Client, peer: &str) -> Duration {
    let began = Instant::now();
    loop {
        let request = client.request(Method::GET, "/v1/peers?limit=1000");
        let page: Value = client.call(request).await.expect("peers are listed");
        let is_listed = page["peers"].as_array().expect("a list").iter().any(|listed| {
            let name = listed["peer_id"].as_str().expect("a name");
            name == peer || name.starts_with(&format!("{peer}@"))
        });
        // A bare name leads there once the gateway is known to be near.
        if is_listed && is_trusted(client).await {
            return began.elapsed();
        }
        assert!(began.elapsed() < FOUND_WITHIN, "{peer} is not listed: {page:#}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn is_trusted(client: &Client) -> bool {
    let request = client.request(Method::GET, "/v1/gateways");
    let page: Value = client.call(request).await.expect("gateways are listed");
    page["gateways"].as_array().expect("a list").iter().any(|one| one["trusted"] == true)
}

async fn upload(client: &Client, content: &[u8]) -> String {
    let body = json!({ "filename": "film.bin", "size_bytes": content.len() });
    let file: Value = client
        .call(client.request(Method::POST, "/v1/files").json(&body))
        .await
        .expect("a file is begun");
    let id = file["id"].as_str().expect("an id").to_owned();
    let length = file["chunk_size"].as_u64().expect("a number");
    let length = usize::try_from(length).expect("it fits");
    for (number, chunk) in content.chunks(length).enumerate() {
        let path = format!("/v1/files/{id}/chunks/{number}");
        let request = client.request(Method::PUT, &path).body(chunk.to_vec());
        // The last one is answered when the whole has been hashed.
        let request = request.timeout(PATIENCE);
        client.call::<Value>(request).await.expect("a chunk is taken");
    }
    id
}

async fn download(client: &Client, id: &str) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let path = format!("/v1/files/{id}/content");
        let request = client.request(Method::GET, &path).timeout(Duration::from_secs(60));
        let answer = request.send().await.expect("it answers");
        if answer.status().is_success() {
            return answer.bytes().await.expect("it is whole").to_vec();
        }
        assert_eq!(answer.status().as_u16(), 409, "until it has arrived");
        assert!(Instant::now() < deadline, "{id} never arrives");
        sleep(Duration::from_millis(100)).await;
    }
}
