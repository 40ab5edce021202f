//! The BitChat mesh between gateways and with phones, over streams and a simulated air: gateways as
//! processes, phones written on the core.

use fieldpost_bitchat::{Command, ReceiptKind, Report, message::public_id, payload::file::File};
use fieldpost_transport::{AirServer, Scenario, StreamAddress};
use harness::{
    Client, Gateway, Options,
    client::{Draft, PATIENCE},
    federation::{attempts, record_when, record_with_status, take},
    phone::{Phone, socket},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_is_listed_and_what_is_sent_to_it_is_delivered_and_read() {
    let (gateway, address) = with_phones().await;
    let alice = on_air(&gateway, "alice").await;
    let mut phone = Phone::start(1, "Rosa", &address).await;
    let listed = peer_when(&alice, &phone.name(), |peer| peer["online"] == true).await;
    assert_eq!((&listed["display_name"], &listed["hops"]), (&json!("Rosa"), &json!(1)));
    assert_eq!(listed["transports"], json!(["ble"]));
    assert!(listed["last_seen"].is_string());
    let mirrored: Value =
        alice.call(alice.request(Method::GET, "/api/bitchat/peers")).await.unwrap();
    let of_phone = |peer: &&Value| peer["peer_id"] == json!(phone.name());
    let mirrored = mirrored.as_array().unwrap().iter().find(of_phone).expect("a phone is a peer");
    assert_eq!((&mirrored["is_online"], &mirrored["hops"]), (&json!(true), &json!(1)));

    let me = phone.meets("alice").await;
    let mut at_alice = alice.socket().await.unwrap();
    let sent = alice.send(&Draft::text(&phone.name(), "Is the pass open?")).await.unwrap();
    let (from, id, text) = phone.private().await;
    assert_eq!((from, text.as_str()), (me, "Is the pass open?"));
    assert_eq!(id.parse::<Uuid>().unwrap(), sent.message_id);
    assert_eq!(id, id.to_uppercase(), "iOS writes its ids so");
    record_with_status(&alice, sent.message_id, "sent").await;
    phone.acknowledges(me, &id, ReceiptKind::Delivered).await;
    let record = record_with_status(&alice, sent.message_id, "delivered").await;
    assert_eq!(record.recipients[0].recipient, phone.name());
    assert_eq!(attempts(&record.recipients[0]), ["ble sent"]);
    assert!(matches!(at_alice.expect().await, harness::Frame::Receipt { .. }));
    phone.acknowledges(me, &id, ReceiptKind::Read).await;
    record_with_status(&alice, sent.message_id, "read").await;
    peer_when(&alice, &phone.name(), |peer| peer["verified"] == true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_gets_one_message_of_a_lane_at_a_time_and_long_ones_in_parts() {
    let (gateway, address) = with_phones().await;
    let alice = on_air(&gateway, "alice").await;
    let mut phone = Phone::start(2, "Rosa", &address).await;
    peer_when(&alice, &phone.name(), |peer| peer["online"] == true).await;
    let me = phone.meets("alice").await;
    let first = alice.send(&Draft::text(&phone.name(), "first")).await.unwrap();
    let second = alice.send(&Draft::text(&phone.name(), "second")).await.unwrap();
    let (_, id, text) = phone.private().await;
    assert_eq!(text, "first");
    record_with_status(&alice, first.message_id, "sent").await;
    let waiting = alice.record(second.message_id).await.unwrap();
    assert_eq!(waiting.status, "pending");
    assert!(!phone.has_private(), "the second waits for the first");
    phone.acknowledges(me, &id, ReceiptKind::Delivered).await;
    let (_, id, text) = phone.private().await;
    assert_eq!(text, "second");
    phone.acknowledges(me, &id, ReceiptKind::Delivered).await;
    record_with_status(&alice, second.message_id, "delivered").await;

    let long = "Ünder the bridge. ".repeat(60);
    let sent = alice.send(&Draft::text(&phone.name(), long.clone())).await.unwrap();
    let mut whole = String::new();
    while whole.len() < long.len() {
        let (_, id, text) = phone.private().await;
        assert!(text.len() <= 255, "{} bytes are too much for a phone", text.len());
        whole.push_str(&text);
        phone.acknowledges(me, &id, ReceiptKind::Delivered).await;
    }
    assert_eq!(whole, long);
    record_with_status(&alice, sent.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_phone_says_reaches_its_recipient_alone_and_is_acknowledged_when_confirmed() {
    let (gateway, address) = with_phones().await;
    let alice = on_air(&gateway, "alice").await;
    let bob = gateway.register("bob").await;
    let mut phone = Phone::start(3, "Rosa", &address).await;
    let me = phone.meets("alice").await;
    let id = Uuid::new_v4();
    phone.says_to(me, id, "Two hikers are missing.").await;
    let shown = shown(&alice).await;
    assert_eq!(shown.from, phone.name());
    assert_eq!((shown.to.as_str(), shown.message_id), ("alice", id));
    assert_eq!(shown.content.as_deref(), Some("Two hikers are missing."));
    alice.confirm_up_to(shown.seq).await.unwrap();
    let receipt = |kind| Report::Receipt { from: phone.id, to: me, message_id: id, kind };
    let (delivered, read) = (receipt(ReceiptKind::Delivered), receipt(ReceiptKind::Read));
    phone.until(|report| *report == delivered).await;
    let body = json!({ "message_ids": [id], "read": true });
    let request = alice.request(Method::POST, "/v1/inbox/ack").json(&body);
    alice.call::<()>(request).await.unwrap();
    phone.until(|report| *report == read).await;

    phone.says("Good morning, valley!").await;
    for listener in [&alice, &bob] {
        let heard = take(listener, 1).await.remove(0);
        assert_eq!((heard.from, heard.to.as_str()), (phone.name(), "broadcast"));
        assert_eq!(heard.content.as_deref(), Some("Good morning, valley!"));
        assert_eq!(heard.message_id.get_version_num(), 5);
    }
    // What comes next shows that bob was not shown what was for alice.
    let answer = alice.send(&Draft::text(&phone.name(), "We look for them.")).await.unwrap();
    let (_, id, text) = phone.private().await;
    assert_eq!(text, "We look for them.");
    phone.acknowledges(me, &id, ReceiptKind::Delivered).await;
    record_with_status(&alice, answer.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_is_said_in_public_by_the_peer_and_ends_as_sent() {
    let (gateway, address) = with_phones().await;
    let alice = on_air(&gateway, "alice").await;
    let bob = gateway.register("bob").await;
    let mut phone = Phone::start(4, "Rosa", &address).await;
    let me = phone.meets("alice").await;
    peer_when(&alice, &phone.name(), |peer| peer["online"] == true).await;
    let sent = alice.send(&Draft::text("broadcast", "Shelter is open.")).await.unwrap();
    let heard = phone.until(|report| matches!(report, Report::Public { .. })).await;
    let Report::Public { from, message_id, timestamp_ms, text } = heard else { unreachable!() };
    assert_eq!((from, text.as_str()), (me, "Shelter is open."));
    assert_eq!(message_id, public_id(me, timestamp_ms, &text));
    let record = record_when(&alice, sent.message_id, |record| {
        record.recipients.iter().any(|one| one.recipient == "transport:ble" && one.status == "sent")
    })
    .await;
    assert!(record.recipients.iter().any(|one| one.recipient == "bob"));
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("Shelter is open."));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_on_the_air_cannot_write_to_phones_and_is_told_why() {
    let (gateway, address) = with_phones().await;
    let carol = gateway.register("carol").await;
    let phone = Phone::start(5, "Rosa", &address).await;
    peer_when(&carol, &phone.name(), |peer| peer["online"] == true).await;
    let sent = carol.send(&Draft::text(&phone.name(), "hello")).await.unwrap();
    let record =
        record_when(&carol, sent.message_id, |record| !record.recipients[0].attempts.is_empty())
            .await;
    let attempt = &record.recipients[0].attempts[0];
    assert_eq!((attempt.transport.as_str(), attempt.result.as_str()), ("ble", "failed"));
    assert!(attempt.reason.as_deref().unwrap_or_default().contains("on the air"), "{attempt:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_a_phone_that_was_never_heard_waits_and_says_so() {
    let (gateway, address) = with_phones().await;
    let alice = on_air(&gateway, "alice").await;
    let phone = Phone::start(11, "Rosa", &address).await;
    peer_when(&alice, &phone.name(), |peer| peer["online"] == true).await;
    let nobody = "0123456789abcdef";
    let sent = alice.send(&Draft::text(nobody, "Is anybody there?")).await.unwrap();
    let record = record_when(&alice, sent.message_id, |record| {
        record.recipients[0].reason.as_deref().is_some_and(|reason| reason.contains("ever heard"))
    })
    .await;
    assert_eq!(record.status, "pending");
    assert_eq!(attempts(&record.recipients[0]), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_a_phone_arrives_as_bytes() {
    let (gateway, address) = with_phones().await;
    let alice = on_air(&gateway, "alice").await;
    let mut phone = Phone::start(6, "Rosa", &address).await;
    let me = phone.meets("alice").await;
    let content: Vec<u8> = (0..20_000_u32).map(|n| ((n * n) >> 4) as u8).collect();
    let file = File {
        name: Some("map.png".to_owned()),
        stated_size: None,
        mime_type: Some("image/png".to_owned()),
        content: content.clone(),
    };
    let (from, to, file_id) = (phone.id, Some(me), Uuid::new_v4());
    phone.command(Command::SendFile { from, to, file_id, file }).await;
    let shown = shown(&alice).await;
    assert_eq!(shown.from, phone.name());
    let bytes = shown.content_base64.expect("a picture is no text");
    use base64::Engine;
    assert!(base64::engine::general_purpose::STANDARD.decode(bytes).unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn phones_know_a_peer_again_after_a_restart_and_what_waited_is_delivered() {
    let (mut gateway, address) = with_phones().await;
    let alice = on_air(&gateway, "alice").await;
    let mut phone = Phone::start(7, "Rosa", &address).await;
    let before = phone.meets("alice").await;
    peer_when(&alice, &phone.name(), |peer| peer["online"] == true).await;
    assert!(gateway.terminate().await.success());
    let left = |report: &Report| *report == Report::PeerGone { id: before, left: true };
    phone.until(left).await;
    gateway.resume().await;
    let sent = alice.send(&Draft::text(&phone.name(), "We are back.")).await.unwrap();
    assert_eq!(phone.meets("alice").await, before, "her keys are kept");
    let (from, id, text) = phone.private().await;
    assert_eq!((from, text.as_str()), (before, "We are back."));
    phone.acknowledges(before, &id, ReceiptKind::Delivered).await;
    record_with_status(&alice, sent.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_a_phone_repeats_after_a_restart_is_shown_once_and_acknowledged_again() {
    let (mut gateway, address) = with_phones().await;
    let alice = on_air(&gateway, "alice").await;
    let mut phone = Phone::start(8, "Rosa", &address).await;
    let me = phone.meets("alice").await;
    let id = Uuid::new_v4();
    phone.says_to(me, id, "Only once.").await;
    let got = take(&alice, 1).await.remove(0);
    let delivered =
        Report::Receipt { from: phone.id, to: me, message_id: id, kind: ReceiptKind::Delivered };
    phone.until(|report| *report == delivered).await;
    assert!(gateway.terminate().await.success());
    gateway.resume().await;
    // The gateway's node knows nothing of it any more; its database does.
    phone.meets("alice").await;
    drop(phone);
    let mut phone = Phone::start(8, "Rosa", &address).await;
    phone.meets("alice").await;
    phone.says_to(me, id, "Only once.").await;
    phone.until(|report| *report == delivered).await;
    phone.says_to(me, Uuid::new_v4(), "And another.").await;
    let next = take(&alice, 1).await.remove(0);
    assert_eq!(next.content.as_deref(), Some("And another."));
    assert_eq!(next.seq, got.seq + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_carry_messages_receipts_and_64_kib_over_the_mesh() {
    let meeting = socket("pair");
    let a = ble().argument(format!("--ble-stream-listen={meeting}")).start().await;
    let b = ble().argument(format!("--ble-stream-link={meeting}")).start().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let (at_a, at_b) = (gateway_id(&alice).await, gateway_id(&bob).await);
    let to_bob = format!("bob@{at_b}");
    for content in ["short".to_owned(), "x".repeat(64 * 1024)] {
        let sent = alice.send(&Draft::text(&to_bob, content.clone())).await.unwrap();
        let got = take(&bob, 1).await.remove(0);
        assert_eq!((got.message_id, got.from), (sent.message_id, format!("alice@{at_a}")));
        assert!(got.content == Some(content));
        let record = record_with_status(&alice, sent.message_id, "delivered").await;
        let tried = attempts(&record.recipients[0]);
        assert!(tried.contains(&"ble stored".to_owned()), "{tried:?}");
    }
    // The other gateway's list of peers came the same way.
    peer_when(&alice, &to_bob, |peer| peer["transports"] == json!(["ble"])).await;
    let sent = alice.send(&Draft::text("broadcast", "Flood!")).await.unwrap();
    let heard = take(&bob, 1).await.remove(0);
    assert_eq!((heard.message_id, heard.to.as_str()), (sent.message_id, "broadcast"));
    let refused = alice.send(&Draft::text(&to_bob, "x".repeat(64 * 1024 + 1))).await;
    assert_eq!(refused.unwrap_err().status(), Some(422), "no transport carries more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_in_between_relays_and_what_waits_for_it_leaves_when_it_is_back() {
    let (left, right) = (socket("left"), socket("right"));
    let relay = ble()
        .argument(format!("--ble-stream-listen={left}"))
        .argument(format!("--ble-stream-listen={right}"));
    let mut c = relay.start().await;
    let a = ble().argument(format!("--ble-stream-link={left}")).start().await;
    let b = ble().argument(format!("--ble-stream-link={right}")).start().await;
    let (alice, bob) = (on_air(&a, "alice").await, b.register("bob").await);
    let to_bob = format!("bob@{}", gateway_id(&bob).await);
    let sent = alice.send(&Draft::text(&to_bob, "over two links")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("over two links"));
    record_with_status(&alice, sent.message_id, "delivered").await;

    // What the one in between passed on is among its figures, which are shown now and then.
    let deadline = Instant::now() + PATIENCE;
    while metric(&c, "fieldpost_ble_relayed_total ").await == 0.0 {
        assert!(Instant::now() < deadline, "nothing was relayed");
        sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(metric(&c, "fieldpost_ble_links ").await, 2.0);
    for reason in ["unsigned", "over_rate", "link"] {
        let refused = format!("fieldpost_ble_refused_total{{reason=\"{reason}\"}} ");
        assert_eq!(metric(&c, &refused).await, 0.0, "{reason}");
    }

    c.kill();
    let waiting = alice.send(&Draft::text(&to_bob, "once you are back")).await.unwrap();
    c.resume().await;
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("once you are back"));
    record_with_status(&alice, waiting.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_meet_on_an_air_that_is_chosen_by_name() {
    let scenario = r#"{"range_m": 10, "stations": {
        "a": {"path": [{"x": 0, "y": 0}]}, "b": {"path": [{"x": 8, "y": 0}], "mtu": 185}
    }}"#;
    let air = AirServer::open(&socket("air"), Scenario::parse(scenario).unwrap()).await.unwrap();
    let at = |station: &str| format!("--ble-radio=air:{}#{station}", air.address());
    let a = ble_with(&at("a")).start().await;
    let b = ble_with(&at("b")).start().await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let to_bob = format!("bob@{}", gateway_id(&bob).await);
    alice.send(&Draft::text(&to_bob, "through the air")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("through the air"));
    air.shutdown().await;
    transport_when(&alice, |ble| {
        let trouble = ble["trouble"].as_str().unwrap_or_default();
        ble["is_available"] == false && trouble.contains("air")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_radio_the_gateway_runs_on_and_says_why_it_reaches_nobody() {
    let gateway = ble().start().await;
    let alice = gateway.register("alice").await;
    let ble = transport_when(&alice, |ble| ble["trouble"].is_string()).await;
    assert_eq!((&ble["is_available"], &ble["is_connected"]), (&json!(false), &json!(false)));
    assert_eq!((&ble["anonymity_level"], &ble["max_hops"]), (&json!(1), &json!(7)));
    assert_eq!(ble["max_message_size"], json!(65536));
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_make_no_sense_are_refused_with_what_would_be_right() {
    let gateway = Options::shared().start().await;
    for (option, word) in [
        ("--ble-radio=bluetooth", "auto, none"),
        ("--ble-radio=hci", "hci0"),
        ("--ble-radio=air:unix:/tmp/air", "station"),
        ("--ble-stream-listen=tcp:192.0.2.1:7000", "127.0.0.1"),
        ("--ble-stream-link=udp:127.0.0.1:7000", "unix:PATH"),
        ("--hop-limit=8", "1..=7"),
        ("--max-peers=1000", "0..=200"),
    ] {
        let output = gateway.run(&["serve", option]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{option}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_air_is_played_by_a_command_that_says_where_it_is() {
    let gateway = Options::shared().start().await;
    let file = gateway.folder().join("scenario.json");
    std::fs::write(&file, r#"{"range_m": 10, "stations": {"a": {"path": [{"x": 0, "y": 0}]}}}"#)
        .unwrap();
    let (scenario, listen) = (format!("--scenario={}", file.display()), socket("air"));
    let listen = format!("--listen={listen}");
    let mut command = gateway.command_for(&["air", &scenario, &listen]);
    let mut air = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(air.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert!(listen.ends_with(line.trim()), "{line}");
    air.kill().unwrap();
    air.wait().unwrap();
    std::fs::write(&file, r#"{"range_m": -1, "stations": {}}"#).unwrap();
    let output = gateway.run(&["air", &scenario, &listen]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("range_m must be positive"), "{said}");
}

fn ble() -> Options {
    ble_with("--ble-radio=none")
}

fn ble_with(radio: &str) -> Options {
    Options::shared().transports("ble").argument(radio)
}

/// A gateway, and where phones come.
async fn with_phones() -> (Gateway, StreamAddress) {
    let address = socket("phones");
    let gateway = ble().argument(format!("--ble-stream-listen={address}")).start().await;
    (gateway, address)
}

async fn on_air(gateway: &Gateway, peer: &str) -> Client {
    let client = gateway.register(peer).await;
    let request = client.request(Method::PATCH, &format!("/v1/peers/{peer}"));
    let changed: Value = client.call(request.json(&json!({ "on_air": true }))).await.unwrap();
    assert_eq!(changed["on_air"], true);
    client
}

/// The value of one of a gateway's metrics, named with its labels and a space.
async fn metric(gateway: &Gateway, name: &str) -> f64 {
    let admin = Client::new(&gateway.admin_url(), false);
    let answer = admin.request(Method::GET, "/metrics").send().await.unwrap();
    let text = answer.text().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap_or_else(|| panic!("there is no {name}in {text}")).parse().unwrap()
}

async fn gateway_id(client: &Client) -> String {
    let status: Value = client.call(client.request(Method::GET, "/v1/status")).await.unwrap();
    status["gateway_id"].as_str().unwrap().to_owned()
}

async fn peer_when(client: &Client, peer: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/v1/peers/{peer}");
    when(client, &path, |found| is_so(found).then(|| found.clone())).await
}

async fn transport_when(client: &Client, is_so: impl Fn(&Value) -> bool) -> Value {
    when(client, "/v1/transports", |found| {
        let all = found["transports"].as_array()?;
        all.iter().find(|one| one["name"] == "ble").filter(|one| is_so(one)).cloned()
    })
    .await
}

async fn when(client: &Client, path: &str, find: impl Fn(&Value) -> Option<Value>) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = client.call::<Value>(client.request(Method::GET, path)).await;
        if let Some(value) = found.as_ref().ok().and_then(&find) {
            return value;
        }
        assert!(Instant::now() < deadline, "{path} never comes to that: {found:?}");
        sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// The first message that waits, not confirmed.
async fn shown(client: &Client) -> harness::client::InboxMessage {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = client.poll(None, 5).await.unwrap();
        if let Some(first) = page.messages.into_iter().next() {
            return first;
        }
        assert!(Instant::now() < deadline, "nothing came");
    }
}
