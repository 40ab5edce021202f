//! The mixnet as its users run it: three or four relays and two gateways, each a process on a real Postgres of its
//! own, joined by covert links and by nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
    sync::LazyLock,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, MessageId, PeerAddress, Priority, Timestamp,
};
use fieldpost_transport::htx::{
    client::{Way, build_packets},
    directory::{EpochClock, SignedDocument},
};
use harness::{
    Client, Postgres,
    client::Draft,
    lab::Lab,
    load::{Load, Shape},
    seed, setting,
    waiting::{becomes, confirm, next},
};
use rand::{SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};
use uuid::Uuid;

/// Five or six processes at a time are enough for one machine.
static ONE_LAB: LazyLock<Mutex<()>> = LazyLock::new(Mutex::default);

const EPOCH: &str = "30s";
const PATIENCE: Duration = Duration::from_secs(120);
/// What goes over the mixnet alone.
const LEVEL: u8 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_every_size_travel_both_ways_and_receipts_come_back() {
    let _one = ONE_LAB.lock().await;
    let lab = Lab::start(3, EPOCH, &[]).await;
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
    let _one = ONE_LAB.lock().await;
    let seed = seed();
    eprintln!("seed {seed}, {messages} messages");
    let mut lab = Lab::start(4, EPOCH, &[]).await;
    let homes: Vec<Client> = lab.gateways.iter().map(|gateway| gateway.client()).collect();
    let shape =
        Shape { peers: 6, pause: Duration::from_millis(60), level: LEVEL, ..Shape::default() };
    let clients = Load::register_across(&homes, shape).await;
    let mut addresses = BTreeMap::new();
    for client in &clients {
        addresses.insert(client.peer().to_owned(), Lab::address(client).await);
    }
    let load = Load::start_among(clients, addresses, shape, seed);
    load.wait_for_accepted(messages / 2, PATIENCE).await;
    // Not the one that signs documents: that would end the network an epoch later, by design.
    let killed = Instant::now();
    lab.relays[2].kill();
    load.wait_for_accepted(messages - messages / 2, PATIENCE).await;
    let shown = load.shown();
    eprintln!("{shown} shown {:?} after the kill", killed.elapsed());
    let mut history = load.finish().await;
    // What a lab declares.
    history.levels.insert("htx".to_owned(), LEVEL);
    eprintln!("{} events, all settled {:?} after the kill", history.events.len(), killed.elapsed());
    history.assert_clean(seed);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_see_a_web_site_and_clients_the_betanet_surface() {
    let _one = ONE_LAB.lock().await;
    let lab = Lab::start(3, EPOCH, &[]).await;
    probe(lab.fronts[1]);
    surface(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_epochs_packets_were_for_is_nowhere_two_epochs_later() {
    let _one = ONE_LAB.lock().await;
    let lab = Lab::start(3, EPOCH, &["--secrets-dir=LAB/secrets"]).await;
    let alice = lab.gateways[0].register("alice").await;
    let bob = lab.gateways[1].register("bob").await;
    let directory: Value = get(&alice, "/api/betanet/directory").await;
    let epoch = directory["current_epoch"].as_u64().expect("a number");
    let draft = Draft {
        min_anonymity: Some(LEVEL),
        ..Draft::text(&Lab::address(&bob).await, "recorded by somebody")
    };
    alice.send(&draft).await.expect("the mixnet may carry it");
    confirm(&bob, &next(&bob).await, false).await;

    // Whoever has these opens what was recorded: what relays and gateways were sent in this epoch.
    let keys = epoch_keys(&lab.folder().join("secrets"), epoch);
    assert_eq!(keys.len(), 2 * 5, "two keys of each node");
    assert!(!in_files(&lab.folder().join("secrets"), &keys).is_empty(), "the search finds files");
    let found = in_memory(lab.relays[0].pid(), &keys);
    assert!(!found.is_empty(), "the search finds what is in memory");

    let deadline = Instant::now() + PATIENCE;
    loop {
        let directory: Value = get(&alice, "/api/betanet/directory").await;
        if directory["current_epoch"].as_u64() >= Some(epoch + 2) {
            break;
        }
        assert!(Instant::now() < deadline, "time stands still: {directory}");
        sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(in_files(lab.folder(), &keys), BTreeSet::new(), "on disk");
    let database = Postgres::shared_folder().await;
    assert_eq!(in_files(&database, &keys), BTreeSet::new(), "in the database or its log");
    for node in lab.relays.iter().chain(&lab.gateways) {
        assert_eq!(in_memory(node.pid(), &keys), BTreeSet::new(), "in memory");
    }
}

/// The secrets of an epoch that nodes keep in `folder`.
fn epoch_keys(folder: &Path, epoch: u64) -> Vec<[u8; 32]> {
    let nodes = fs::read_dir(folder).expect("it is there").flatten();
    nodes
        .flat_map(|node| {
            let bytes = fs::read(node.path().join(format!("{epoch}.secret"))).expect("kept");
            // After the head, the Sphinx and the sealing key.
            [25, 57].map(|at| bytes[at..at + 32].try_into().expect("32 bytes"))
        })
        .collect()
}

/// Which of the keys are in the files below a folder.
fn in_files(folder: &Path, keys: &[[u8; 32]]) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    // Files come and go; those that are gone hold nothing.
                    let bytes = fs::read(entry.path()).unwrap_or_default();
                    found.extend(search(&bytes, keys));
                }
                _ => {}
            }
        }
    }
    found
}

/// Which of the keys are in the memory of a process.
fn in_memory(pid: u32, keys: &[[u8; 32]]) -> BTreeSet<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("it is ours to read");
    let mut found = BTreeSet::new();
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().expect("a range"), words.next().expect("rights"));
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').expect("two ends");
        let [from, to] = [from, to].map(|end| u64::from_str_radix(end, 16).expect("hex"));
        // Larger pieces than this are reserved and empty, and read as such.
        let mut at = from;
        while at < to {
            let length = (to - at).min(4 << 20);
            let mut bytes = vec![0; usize::try_from(length).expect("it fits")];
            if memory.read_exact_at(&mut bytes, at).is_ok() {
                found.extend(search(&bytes, keys));
            }
            // A key that lies across two pieces is in the next one whole.
            at += if at + length < to { length - 32 } else { length };
        }
    }
    found
}

/// Which of the keys are in these bytes.
fn search(bytes: &[u8], keys: &[[u8; 32]]) -> BTreeSet<usize> {
    let mut starts = [false; 256];
    keys.iter().for_each(|key| starts[usize::from(key[0])] = true);
    let mut found = BTreeSet::new();
    for (at, byte) in bytes.iter().enumerate() {
        if starts[usize::from(*byte)] {
            let rest = &bytes[at..];
            found.extend((0..keys.len()).filter(|key| rest.starts_with(&keys[*key])));
        }
    }
    found
}

/// Real clients look at a relay's listener: what they say never changes what they see.
fn probe(front: u16) {
    let url = |path: &str| format!("https://127.0.0.1:{front}{path}");
    let curl = |more: &[&str], path: &str| {
        let output = Command::new("curl")
            .args(["-sk", "--max-time", "20", "-w", "\n%{http_code} %{http_version}"])
            .args(more)
            .arg(url(path))
            .output()
            .expect("curl runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let home = curl(&["--http2"], "/");
    assert!(home.contains("<html") && home.ends_with("200 2"), "{home}");
    let ticket = "A".repeat(200);
    for pretence in [
        vec!["--http2", "-H", &*format!("Cookie: __Host-session={ticket}")],
        vec!["--http2", "-H", "Cookie: a=b; c=d"],
        vec!["--http2", "-A", "probe"],
    ] {
        assert_eq!(curl(&pretence, "/"), home, "{pretence:?}");
    }
    assert_eq!(curl(&["--http2"], &format!("/?bn1={ticket}")), home);
    let old = curl(&["--http1.1"], "/");
    assert!(old.contains("<html") && old.ends_with("200 1.1"), "{old}");
    let [post, posted] = [
        curl(&["--http2", "-d", "x=y"], "/"),
        curl(&["--http2", "-d", &format!("token={ticket}")], "/"),
    ];
    assert_eq!(post, posted);
    assert!(curl(&["--http2"], "/nothing-here").ends_with("404 2"));

    let openssl = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{front}"), "-alpn", "h2,http/1.1"])
        .stdin(Stdio::null())
        .output()
        .expect("openssl runs");
    let said = String::from_utf8_lossy(&openssl.stdout).into_owned();
    assert!(said.contains("TLSv1.3") && said.contains("ALPN protocol: h2"), "{said}");

    // Bytes that are no handshake are answered as by any web server: with an alert or an end.
    let mut garbage = std::net::TcpStream::connect(("127.0.0.1", front)).expect("it listens");
    garbage.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out can be set");
    garbage.write_all(&[0x55; 512]).expect("it takes bytes");
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut garbage, &mut answer).ok();
    assert!(answer.len() <= 7, "an alert at most: {answer:?}");
}

/// The mirrored surface, with the mixnet behind it.
async fn surface(lab: &Lab) {
    let alice = lab.gateways[0].register("alice").await;
    let bob = lab.gateways[1].register("bob").await;
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
        "from_node": "alice", "route": ["r1", "r2", "r3", address], "priority": 4,
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
    let directory: Value = get(&alice, "/api/betanet/directory").await;
    let document = STANDARD.decode(directory["document"].as_str().expect("text")).expect("base64");
    let document = SignedDocument::decode(&document).expect("a document");
    let seconds = directory["epoch_seconds"].as_u64().expect("a number");
    let clock = EpochClock::new(Duration::from_secs(seconds)).expect("an epoch");
    let bob_at: PeerAddress = address.parse().expect("an address");
    let envelope = envelope(&bob_at, &"hidden ".repeat(1_000));
    let packets = build_packets(
        &mut StdRng::seed_from_u64(seed()),
        now(),
        (document.document(), clock),
        bob_at.gateway.expect("it has one"),
        &envelope,
        Way { delay: Duration::ZERO, ..Way::default() },
    )
    .expect("packets can be built");
    assert!(packets.len() > 1, "it takes several");
    for finished in packets {
        let body = json!({
            "from_node": "alice",
            "sphinx_packet": STANDARD.encode(finished.packet.as_bytes()),
            "route": [finished.first.to_string()],
        });
        let forwarded = post(&alice, "/api/betanet/send", &body).await;
        assert_eq!(forwarded["status"], "forwarded");
    }
    let shown = received(&bob).await;
    assert!(shown["from_node"].as_str().expect("a name").starts_with("nobody@"), "{shown}");
    let kept: Value = get(&alice, &format!("/v1/messages?with={address}")).await;
    assert_eq!(kept["messages"].as_array().expect("a list").len(), 1, "packets are not stored");

    let stray = json!({
        "from_node": "alice", "sphinx_packet": STANDARD.encode([7; 2_400]), "route": ["00".repeat(32)],
    });
    let refused =
        alice.call::<Value>(alice.request(Method::POST, "/api/betanet/send").json(&stray));
    assert_eq!(refused.await.expect_err("no such relay").status(), Some(422));
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
