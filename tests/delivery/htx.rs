//! The mixnet as its users run it: three or four relays and two gateways, each a process on a real Postgres of its
//! own, joined by covert links and by nothing else.

#[path = "htx/probing.rs"]
mod probing;
#[path = "htx/secrecy.rs"]
mod secrecy;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    ops::{Deref, DerefMut},
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, MessageId, PeerAddress, Priority, Timestamp,
};
use fieldpost_transport::htx::{
    client::{Finished, Way, build_packets},
    directory::{EpochClock, SignedDocument},
};
use harness::{
    Client, Gateway, Postgres,
    client::Draft,
    history::{Event, History},
    lab::Lab,
    load::{Load, Shape},
    seed, setting,
    waiting::{becomes, confirm, next},
};
use rand::{SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, MutexGuard},
    task::block_in_place,
    time::{Instant, sleep},
};
use uuid::Uuid;

use probing::Front;
use secrecy::{Hunt, Kind, Recording, forms};

/// A lab that all tests use but those that break it, each alone. The kernel ends it with this process.
static LAB: Mutex<Option<Lab>> = Mutex::const_new(None);

const EPOCH: &str = "15s";
const SECRETS: &str = "--secrets-dir=LAB/secrets";
const PATIENCE: Duration = Duration::from_secs(120);
/// How long ten thousand messages may take to be accepted.
const LONG_PATIENCE: Duration = Duration::from_secs(900);
/// The longest pause between two messages of a sender.
const PAUSE: Duration = Duration::from_millis(60);
/// What goes over the mixnet alone.
const LEVEL: u8 = 3;

/// The lab, to be used alone. A test that fails takes it down and shows what its nodes wrote.
struct Shared(MutexGuard<'static, Option<Lab>>);

impl Shared {
    async fn lab() -> Self {
        let mut lab = LAB.lock().await;
        if lab.is_none() {
            *lab = Some(Lab::start(3, EPOCH, &[SECRETS]).await);
        }
        Self(lab)
    }
}

impl Deref for Shared {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        self.0.as_ref().expect("it was started")
    }
}

impl DerefMut for Shared {
    fn deref_mut(&mut self) -> &mut Lab {
        self.0.as_mut().expect("it was started")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.take();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_every_size_travel_both_ways_and_receipts_come_back() {
    let lab = Shared::lab().await;
    let alice = lab.gateways[0].register("alice").await;
    let bob = lab.gateways[1].register("bob").await;
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        let (address, sender) = (Lab::address(to).await, Lab::address(from).await);
        for length in [1, 4 << 10, 64 << 10, 1 << 20] {
            let content = "x".repeat(length);
            let draft = Draft { min_anonymity: Some(LEVEL), ..Draft::text(&address, &content) };
            let began = Instant::now();
            let sent = from.send(&draft).await.expect("the mixnet may carry it");
            let shown = next(to).await;
            assert_eq!(shown["from"], sender.as_str());
            assert!(shown["content"] == content.as_str(), "{length} bytes arrive whole");
            let arrived = began.elapsed();
            confirm(to, &shown, false).await;
            becomes(from, sent.message_id, "delivered").await;
            eprintln!("{length} bytes: shown after {arrived:?}, receipt {:?}", began.elapsed());
            confirm(to, &shown, true).await;
            becomes(from, sent.message_id, "read").await;
            let record: Value = get(from, &format!("/v1/messages/{}", sent.message_id)).await;
            let attempts = record["recipients"][0]["attempts"].as_array().expect("a list");
            assert!(attempts.iter().all(|one| one["transport"] == "htx"), "{record}");
            let reason = attempts[0]["reason"].as_str().unwrap_or_default();
            assert!(reason.contains("lab"), "{record}");
        }
    }
    let mut forwarded = Vec::new();
    for relay in &lab.relays {
        let viewer = relay.register("viewer").await;
        let status: Value = get(&viewer, "/api/betanet/status").await;
        forwarded.push(status["network"]["packetsProcessed"].as_u64().expect("a number"));
    }
    eprintln!("packets at each relay: {forwarded:?}");
    assert!(forwarded.iter().all(|packets| *packets > 0), "{forwarded:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_killed_under_traffic_costs_no_message() {
    kill_a_relay(setting("MESSAGES", 300)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: ./dev prove htx"]
async fn a_relay_killed_among_ten_thousand_messages_costs_none() {
    kill_a_relay(setting("MESSAGES", 10_000)).await;
}

async fn kill_a_relay(messages: u64) {
    let seed = seed();
    eprintln!("seed {seed}, {messages} messages");
    let mut lab = Lab::start(4, EPOCH, &[]).await;
    let homes: Vec<Client> = lab.gateways.iter().map(|gateway| gateway.client()).collect();
    let shape = Shape { peers: 6, pause: PAUSE, level: LEVEL, ..Shape::default() };
    let clients = Load::register_across(&homes, shape).await;
    let mut addresses = BTreeMap::new();
    for client in &clients {
        addresses.insert(client.peer().to_owned(), Lab::address(client).await);
    }
    let load = Load::start_among(clients, addresses, shape, seed);
    let began = Instant::now();
    load.wait_for_accepted(messages / 2, LONG_PATIENCE).await;
    let (killed, killed_at) = (Instant::now(), load.now());
    // Not the one that signs documents: that would end the network a few epochs later, by design.
    lab.relays[2].kill();
    eprintln!("killed a relay after {} messages and {:?}", load.accepted(), began.elapsed());
    load.wait_for_accepted(messages - messages / 2, LONG_PATIENCE).await;
    eprintln!(
        "{} shown of {}, {:?} after the kill",
        load.shown(),
        load.accepted(),
        killed.elapsed()
    );
    let finished_at = load.now();
    let mut history = load.finish().await;
    // What a lab declares.
    history.levels.insert("htx".to_owned(), LEVEL);
    eprintln!("{} events, all settled {:?} after the kill", history.events.len(), killed.elapsed());
    tell_of_the_kill(&history, killed_at, finished_at);
    for node in [0, 1, 3].map(|relay| &lab.relays[relay]).into_iter().chain(&lab.gateways) {
        eprintln!("packets: {}", fates(node).await);
    }
    for gateway in &lab.gateways {
        let switched = switches(&gateway.log());
        eprintln!("from the end of a link to routes around it: {switched:?}");
        assert!(!switched.is_empty(), "each gateway has noticed");
    }
    history.assert_clean(seed);
}

/// How long messages took, of those that were sent before the kill and in each second after it, as long
/// as clients listened all the time.
fn tell_of_the_kill(history: &History, killed_at: u64, finished_at: u64) {
    let (mut sent, mut first_shown) = (BTreeMap::new(), BTreeMap::new());
    for event in &history.events {
        match event {
            Event::Send(send) => drop(sent.entry(send.message).or_insert(send.invoked)),
            Event::Shown(shown) if shown.at < finished_at => {
                first_shown.entry(shown.message).or_insert(shown.at);
            }
            _ => {}
        }
    }
    let mut took: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
    for (message, shown) in &first_shown {
        let Some(invoked) = sent.get(message) else { continue };
        // Whole seconds after the kill; all before is one, and so is all after a minute.
        let second = (*invoked as i64 - killed_at as i64).div_euclid(1_000_000).clamp(-1, 60);
        took.entry(second).or_default().push(shown.saturating_sub(*invoked) / 1_000);
    }
    for (second, mut milliseconds) in took {
        milliseconds.sort_unstable();
        let [p50, p99, longest] =
            [50, 99, 100].map(|share| milliseconds[(milliseconds.len() - 1) * share / 100]);
        eprintln!(
            "sent {second} s after the kill: {} messages, shown after {p50} ms (p50), {p99} (p99), \
             {longest} (longest)",
            milliseconds.len(),
        );
    }
    let mut shown: Vec<u64> = first_shown.into_values().collect();
    shown.sort_unstable();
    let longest = |from: u64, to: u64| {
        let gaps = shown.windows(2).filter(|pair| pair[0] < to && pair[1] > from);
        gaps.map(|pair| (pair[1] - pair[0]) / 1_000).max().unwrap_or_default()
    };
    eprintln!(
        "the longest time in which nothing was shown: {} ms before the kill, {} ms after it",
        longest(0, killed_at),
        longest(killed_at, u64::MAX),
    );
}

/// What became of a node's packets.
async fn fates(node: &Gateway) -> String {
    let metrics = reqwest::get(format!("{}/metrics", node.admin_url())).await.expect("it serves");
    let metrics = metrics.text().await.expect("it is text");
    let of_packets =
        metrics.lines().filter_map(|line| line.split_once("mixnet_packets_total{fate="));
    of_packets.map(|(_, fate)| fate.replace(['"', '}'], "")).collect::<Vec<_>>().join(", ")
}

/// How long it took gateways to find routes around who was out of reach, as their logs tell.
fn switches(log: &str) -> Vec<Duration> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter_map(|line| {
            line.get("switch.duration_us").or(line["fields"].get("switch.duration_us"))?.as_u64()
        })
        .map(Duration::from_micros)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_see_a_web_site_whatever_they_try() {
    let lab = Shared::lab().await;
    let viewer = lab.gateways[0].register("viewer").await;
    let document = document(&viewer).await;
    let front = lab.fronts[1];
    let relays = document.document().relays();
    let descriptor = relays.iter().map(|relay| relay.descriptor());
    let descriptor = descriptor
        .filter(|descriptor| descriptor.relays)
        .find(|descriptor| descriptor.addresses.iter().any(|address| address.port() == front))
        .expect("the relay is in the document");
    block_in_place(|| Front::new(front, descriptor).probe());
    // And it relays as before.
    let forwarded = |relay: Value| relay["network"]["packetsProcessed"].as_u64().expect("a number");
    let [carl, dora] =
        [lab.gateways[0].register("carl").await, lab.gateways[1].register("dora").await];
    let observer = lab.relays[1].register("observer").await;
    let before = forwarded(get(&observer, "/api/betanet/status").await);
    send_and_confirm(&carl, &dora, "still there?").await;
    let deadline = Instant::now() + PATIENCE;
    while forwarded(get(&observer, "/api/betanet/status").await) == before {
        assert!(Instant::now() < deadline, "the relay passes nothing on any more");
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_betanet_see_the_mixnet() {
    let lab = Shared::lab().await;
    surface(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epochs_traffic_cannot_be_opened_two_epochs_later() {
    rob_the_lab(Thoroughness::Short).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes long: ./dev prove htx"]
async fn an_epochs_traffic_cannot_be_opened_two_epochs_later_whatever_is_taken_for_a_key() {
    rob_the_lab(Thoroughness::Long).await;
}

/// Where anything that looks random is taken for a secret key. The keys that are known, what hops
/// computed from them, are looked for everywhere in any case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Thoroughness {
    /// All files of the nodes; of the memory of a relay and the receiver, each eighth byte: keys are
    /// kept beside addresses.
    Short,
    /// Every byte of everything.
    Long,
}

/// Records packets, and tries to open them with what machines keep: at once, which succeeds, and two
/// epochs later.
///
/// What crosses links is sealed once more, under keys that both sides make for each connection and
/// write nowhere (TLS 1.3, Noise XK and ML-KEM-768): this thief has it in clear, as a relay would.
async fn rob_the_lab(thoroughness: Thoroughness) {
    let (each, each_eighth) = (NonZeroUsize::new(1), NonZeroUsize::new(8));
    let lab = Shared::lab().await;
    let viewer = lab.gateways[0].register(&format!("thief-{thoroughness:?}")).await;
    let victim = lab.gateways[1].register(&format!("victim-{thoroughness:?}")).await;
    let secrets = lab.folder().join("secrets");
    let text = "recorded by somebody ".repeat(100);

    let deadline = Instant::now() + PATIENCE;
    let (document, recording, keys) = loop {
        let (document, recording) = record(&viewer, &victim, &text).await;
        let message = next(&victim).await;
        assert_eq!(message["content"], text.as_str(), "the packets are real");
        confirm(&victim, &message, false).await;
        // With the keys of the epoch all is open: the attack works.
        let mut hunt = Hunt::new([document.document()]);
        block_in_place(|| {
            hunt.files(&secrets, each);
            hunt.memory(lab.relays[0].pid(), each_eighth);
        });
        let in_memory = hunt.places.iter().any(|(lock, place)| {
            (lock.epoch, lock.kind) == (recording.epoch, Kind::Sphinx) && place.contains("memory")
        });
        match recording.open(&hunt.loot) {
            Some(opened) if in_memory => {
                assert!(opened.windows(text.len()).any(|part| part == text.as_bytes()));
                break (document, recording, hunt.loot);
            }
            // The epoch may have ended, and its keys with it, while we were at work.
            _ => assert!(Instant::now() < deadline, "the keys of an epoch are not found in it"),
        }
    };
    let mut exact = recording.traces(&keys);
    for (lock, key) in keys.iter().filter(|(lock, _)| lock.epoch == recording.epoch) {
        exact.extend(forms(key).map(|form| (format!("{lock:?}"), form)));
    }
    drop(lab);

    // Others use the lab meanwhile, as others would.
    let deadline = Instant::now() + PATIENCE;
    let later = loop {
        let now = document_now(&viewer).await;
        if now.1 >= recording.epoch + 2 {
            break now.0;
        }
        assert!(Instant::now() < deadline, "time stands still in {}", now.1);
        sleep(Duration::from_millis(500)).await;
    };
    let lab = Shared::lab().await;
    let database = Postgres::shared_folder().await;
    let hunt = || Hunt::new([document.document(), later.document()]).for_bytes(&exact);
    let (mut on_disk, mut in_memory) = (hunt(), hunt());
    let nodes: Vec<_> = lab.relays.iter().chain(&lab.gateways).map(|node| node.pid()).collect();
    let tried = [lab.relays[0].pid(), lab.gateways[1].pid()];
    block_in_place(|| {
        thread::scope(|scope| {
            scope.spawn(|| {
                on_disk.files(lab.folder(), each);
                on_disk.files(&database, each.filter(|_| thoroughness == Thoroughness::Long));
            });
            for pid in nodes {
                let short = each_eighth.filter(|_| tried.contains(&pid));
                in_memory
                    .memory(pid, if thoroughness == Thoroughness::Long { each } else { short });
            }
        });
    });
    for (what, hunt) in [("disk and database", &on_disk), ("memory", &in_memory)] {
        eprintln!(
            "{what}: {} MB, {} windows tried; recorded in {}, keys of {:?}",
            hunt.bytes >> 20,
            hunt.tried,
            recording.epoch,
            hunt.loot.keys().map(|lock| lock.epoch).collect::<BTreeSet<_>>(),
        );
        assert!(hunt.found.is_empty(), "what opens a layer is in {:?}", hunt.found);
        let old = hunt.places.iter().find(|(lock, _)| lock.epoch <= recording.epoch);
        assert_eq!(old, None, "a key of the epoch");
        let open = hunt.loot.keys().any(|lock| lock.epoch > recording.epoch);
        assert!(open, "the search still finds keys that are in use: {:?}", hunt.loot);
        assert_eq!(recording.open(&hunt.loot), None);
    }
}

/// Sends a message in packets of a client's own making, and keeps a copy of each, as it comes to the
/// first relay.
async fn record(viewer: &Client, victim: &Client, text: &str) -> (SignedDocument, Recording) {
    let address = Lab::address(victim).await;
    let (document, epoch) = document_now(viewer).await;
    let packets = finished(viewer, &document, &address, text).await;
    for packet in &packets {
        forward(viewer, packet).await;
    }
    (document, Recording { epoch, packets })
}

/// The mirrored surface, with the mixnet behind it.
async fn surface(lab: &Lab) {
    let alice = lab.gateways[0].register("anna").await;
    let bob = lab.gateways[1].register("bert").await;
    let address = Lab::address(&bob).await;

    let relays: Vec<Value> = get(&alice, "/api/betanet/relays").await;
    assert_eq!(relays.len(), 3, "{relays:?}");
    let status: Value = get(&alice, "/api/betanet/status").await;
    assert_eq!((&status["status"], &status["nodes"]["active"]), (&json!("healthy"), &json!(3)));
    let nodes: Vec<Value> = get(&alice, "/api/betanet/nodes").await;
    assert_eq!(nodes.iter().filter(|node| node["node_type"] == "mixnode").count(), 3);
    let relay = lab.relays[0].register("carol").await;
    let deployed = post(&relay, "/api/betanet/deploy", &json!({})).await;
    assert!(relays.iter().any(|it| it["node_id"] == deployed["nodeId"]), "{deployed}");
    let transports: Value = get(&alice, "/v1/transports").await;
    let htx = &transports["transports"][0];
    assert_eq!((&htx["name"], &htx["is_available"]), (&json!("htx"), &json!(true)));
    assert_eq!(htx["anonymity_level"], 3, "in a lab");

    // The clients' object, to a peer elsewhere.
    let object = json!({
        "from_node": "anna", "route": ["r1", "r2", "r3", address], "priority": 4,
        "sphinx_packet": { "version": 1, "destination": address, "payload": "00ff", "num_hops": 4 },
    });
    let accepted = post(&alice, "/api/betanet/send", &object).await;
    assert_eq!((&accepted["transport"], &accepted["anonymity_level"]), (&json!("htx"), &json!(3)));
    let message = received(&bob).await;
    assert_eq!(message["sphinx_packet"]["payload"], "00ff");
    assert_eq!(
        (&message["priority"], &message["from_node"]),
        (&json!(4), &json!(Lab::address(&alice).await))
    );

    // Finished packets, whose maker signs for itself.
    let document = document(&alice).await;
    let packets = finished(&alice, &document, &address, &"hidden ".repeat(1_000)).await;
    assert!(packets.len() > 1, "it takes several");
    for packet in &packets {
        forward(&alice, packet).await;
    }
    let shown = received(&bob).await;
    assert!(shown["from_node"].as_str().expect("a name").starts_with("nobody@"), "{shown}");
    let kept: Value = get(&alice, &format!("/v1/messages?with={address}")).await;
    assert_eq!(kept["messages"].as_array().expect("a list").len(), 1, "packets are not stored");

    let stray = json!({
        "from_node": "anna", "sphinx_packet": STANDARD.encode([7; 2_400]), "route": ["00".repeat(32)],
    });
    let refused =
        alice.call::<Value>(alice.request(Method::POST, "/api/betanet/send").json(&stray));
    assert_eq!(refused.await.expect_err("no such relay").status(), Some(422));
}

/// The active document of the relay directory.
async fn document(viewer: &Client) -> SignedDocument {
    document_now(viewer).await.0
}

/// The same, and the epoch that it is.
async fn document_now(viewer: &Client) -> (SignedDocument, u64) {
    let directory: Value = get(viewer, "/api/betanet/directory").await;
    let document = STANDARD.decode(directory["document"].as_str().expect("text")).expect("base64");
    let document = SignedDocument::decode(&document).expect("a document");
    (document, directory["current_epoch"].as_u64().expect("a number"))
}

/// Packets of a client's own making, whose maker signs for itself.
async fn finished(
    viewer: &Client,
    document: &SignedDocument,
    to: &str,
    text: &str,
) -> Vec<Finished> {
    let directory: Value = get(viewer, "/api/betanet/directory").await;
    let seconds = directory["epoch_seconds"].as_u64().expect("a number");
    let clock = EpochClock::new(Duration::from_secs(seconds)).expect("an epoch");
    let to: PeerAddress = to.parse().expect("an address");
    build_packets(
        &mut StdRng::seed_from_u64(seed()),
        now(),
        (document.document(), clock),
        to.gateway.expect("it has one"),
        &envelope(&to, text),
        Way { delay: Duration::ZERO, ..Way::default() },
    )
    .expect("packets can be built")
}

/// Hands a finished packet to the gateway, which passes it on.
async fn forward(sender: &Client, finished: &Finished) {
    let body = json!({
        "from_node": sender.peer(),
        "sphinx_packet": STANDARD.encode(finished.packet.as_bytes()),
        "route": [finished.first.to_string()],
    });
    let forwarded = post(sender, "/api/betanet/send", &body).await;
    assert_eq!(forwarded["status"], "forwarded");
}

/// One message, shown and confirmed.
async fn send_and_confirm(from: &Client, to: &Client, content: &str) {
    let draft =
        Draft { min_anonymity: Some(LEVEL), ..Draft::text(&Lab::address(to).await, content) };
    let sent = from.send(&draft).await.expect("the mixnet may carry it");
    let shown = next(to).await;
    assert_eq!(shown["content"], content);
    confirm(to, &shown, false).await;
    becomes(from, sent.message_id, "delivered").await;
}

fn envelope(to: &PeerAddress, text: &str) -> Vec<u8> {
    let key = SigningKey::from_bytes(&[0x33; 32]);
    let sent_at = now();
    Envelope {
        sender: PeerAddress::remote("nobody".parse().expect("a name"), key.verifying_key().into()),
        recipient: to.clone().into(),
        to: to.clone().into(),
        message_id: MessageId(Uuid::new_v4()),
        sent_at,
        expires_at: Timestamp::try_from(sent_at.as_millis() + 600_000).expect("a time"),
        priority: Priority::Critical,
        level: AnonymityLevel::HIGHEST,
        lane_seq: None,
        after: None,
        content: Content { bytes: text.as_bytes().to_vec(), is_text: true, ..Content::default() },
    }
    .sign(&key)
    .expect("it can be signed")
    .into_bytes()
}

#[expect(clippy::disallowed_methods, reason = "a test has no other clock")]
fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let millis = since.expect("it is after 1970").as_millis();
    Timestamp::try_from(u64::try_from(millis).expect("it fits")).expect("a time")
}

async fn get<T: for<'a> serde::Deserialize<'a>>(client: &Client, path: &str) -> T {
    client.call(client.request(Method::GET, path)).await.expect("it is shown")
}

async fn post(client: &Client, path: &str, body: &Value) -> Value {
    client.call(client.request(Method::POST, path).json(body)).await.expect("it is taken")
}

/// The next message of a BetaNet client.
async fn received(client: &Client) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let path = format!("/api/betanet/receive/{}", client.peer());
        let answer: Value = get(client, &path).await;
        if !answer["message"].is_null() {
            return answer["message"].clone();
        }
        assert!(Instant::now() < deadline, "nothing came for {}", client.peer());
        sleep(Duration::from_millis(100)).await;
    }
}
