//! The mirrored surfaces: first what the original's own tests of its API assert, restated, then its
//! clients' calls and the repaired traps (design, section 6).
//!
//! `tests/upstream/clients.py` runs whole clients; here are single answers.

use harness::{Client, Gateway, Options};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

/// The original's tests of peers: seven.
#[tokio::test(flavor = "multi_thread")]
async fn peers_are_as_the_originals_tests_want_them() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let peer = api.register("registers").await;
    assert_eq!(peer["public_key"], KEY);
    assert_eq!(peer["display_name"], "Test Peer");
    assert_eq!(peer["is_online"], true);
    assert_eq!(peer["trust_score"], 0.5);
    assert_eq!((&peer["messages_sent"], &peer["messages_received"]), (&json!(0), &json!(0)));
    let id = peer["peer_id"].as_str().unwrap();

    let again = json!({ "peer_id": id, "public_key": KEY, "display_name": "Updated Name" });
    let updated = api.post("/bitchat/peers/register", &again).await.with(201);
    assert_eq!(updated["display_name"], "Updated Name");
    assert_eq!(updated["id"], peer["id"]);

    let all = api.get("/bitchat/peers").await.with(200);
    assert!(all.as_array().unwrap().iter().any(|other| other["peer_id"] == id));

    let online = api.get("/bitchat/peers?online_only=true").await.with(200);
    assert!(!online.as_array().unwrap().is_empty());
    assert!(online.as_array().unwrap().iter().all(|other| other["is_online"] == true));

    assert_eq!(api.get(&format!("/bitchat/peers/{id}")).await.with(200)["peer_id"], id);

    api.get("/bitchat/peers/nonexistent-peer").await.with(404);

    api.put(&format!("/bitchat/peers/{id}/status?is_online=false"), None).await.with(200);
    assert_eq!(api.get(&format!("/bitchat/peers/{id}")).await.with(200)["is_online"], false);
}

/// The original's tests of messages: six.
#[tokio::test(flavor = "multi_thread")]
async fn messages_are_as_the_originals_tests_want_them() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let [alice, bob] = [api.new_peer("alice").await, api.new_peer("bob").await];
    let sent = json!({
        "from_peer_id": alice, "to_peer_id": bob, "content": "encrypted-message-content-here",
        "encryption_algorithm": "AES-256-GCM", "nonce": "random-nonce-123", "ttl": 3600,
    });
    let message = api.post("/bitchat/messages/send", &sent).await.with(201);
    for field in sent.as_object().unwrap().keys() {
        assert_eq!(message[field], sent[field], "{field}");
    }
    assert_eq!((&message["status"], &message["hop_count"]), (&json!("sent"), &json!(0)));

    let to_group = json!({
        "from_peer_id": alice, "group_id": "test-group-123", "content": "encrypted-group-message",
        "encryption_algorithm": "AES-256-GCM",
    });
    let message = api.post("/bitchat/messages/send", &to_group).await.with(201);
    assert_eq!(message["group_id"], "test-group-123");
    assert_eq!(message["to_peer_id"], Value::Null);

    let [carol, dave] = [api.new_peer("carol").await, api.new_peer("dave").await];
    for number in 0..10 {
        api.send(&carol, &dave, &format!("message-{number}")).await;
    }
    let talk = format!("/bitchat/messages/conversation/{carol}/{dave}");
    let expected: Vec<_> = (0..10).map(|number| json!(format!("message-{number}"))).collect();
    assert_eq!(contents(&api.get(&talk).await.with(200)), expected);

    let newest = contents(&api.get(&format!("{talk}?limit=5&offset=0")).await.with(200));
    let older = contents(&api.get(&format!("{talk}?limit=5&offset=5")).await.with(200));
    assert_eq!([older, newest].concat(), expected);

    let message = api.send(&carol, &dave, "test-message").await;
    let path = format!("/bitchat/messages/{}/delivered", message["message_id"].as_str().unwrap());
    api.put(&path, None).await.with(200);

    let [erin, frank] = [api.register("erin").await, api.register("frank").await];
    api.send(erin["peer_id"].as_str().unwrap(), frank["peer_id"].as_str().unwrap(), "one").await;
    for (before, counter) in [(erin, "messages_sent"), (frank, "messages_received")] {
        let path = format!("/bitchat/peers/{}", before["peer_id"].as_str().unwrap());
        let after = api.get(&path).await.with(200);
        assert_eq!(after[counter].as_i64(), before[counter].as_i64().map(|count| count + 1));
    }
}

/// The original's tests of statistics: two.
#[tokio::test(flavor = "multi_thread")]
async fn statistics_are_as_the_originals_tests_want_them() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let before = api.get("/bitchat/stats").await.with(200);
    for field in
        ["total_peers", "online_peers", "active_connections", "total_messages", "messages_24h"]
    {
        assert!(before[field].is_u64(), "{field}");
    }
    assert_eq!(before["status"], "operational");

    api.new_peer("counted").await;
    let after = api.get("/bitchat/stats").await.with(200);
    for field in ["total_peers", "online_peers"] {
        assert_eq!(after[field].as_i64(), before[field].as_i64().map(|count| count + 1), "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_has_one_target_that_exists_and_bounds() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let [alice, bob] = [api.new_peer("alice").await, api.new_peer("bob").await];
    let send = |fields: Value| {
        let mut message = json!({ "from_peer_id": alice, "content": "x" });
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let api = &api;
        async move { api.post("/bitchat/messages/send", &message).await }
    };
    send(json!({})).await.with(422);
    send(json!({ "to_peer_id": bob, "group_id": "g" })).await.with(422);
    send(json!({ "to_peer_id": "nobody-here" })).await.with(404);
    send(json!({ "to_peer_id": bob, "from_peer_id": "nobody-here" })).await.with(404);
    for ttl in [0, -1, 2_592_001, i64::MAX] {
        send(json!({ "to_peer_id": bob, "ttl": ttl })).await.with(422);
    }
    for wrong in [json!({ "content": 7 }), json!({ "content": null }), json!({ "ttl": "long" })] {
        let mut wrong = wrong;
        wrong["to_peer_id"] = json!(bob);
        send(wrong).await.with(422);
    }
    send(json!({ "to_peer_id": "broadcast", "ttl": 3601 })).await.with(422);
    assert_eq!(
        send(json!({ "to_peer_id": "broadcast" })).await.with(201)["to_peer_id"],
        "broadcast"
    );
    for content in ["", "a\0b", "Grüße 🌉", &"é".repeat(1 << 20)] {
        let message = send(json!({ "to_peer_id": bob, "content": content })).await.with(201);
        assert_eq!(message["content"], content);
    }
    let too_long = "x".repeat((2 << 20) + 1);
    send(json!({ "to_peer_id": bob, "content": too_long })).await.with(413);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_bounds_and_show_both_directions() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let [alice, bob] = [api.new_peer("alice").await, api.new_peer("bob").await];
    api.send(&alice, &bob, "to bob").await;
    api.send(&bob, &alice, "to alice").await;
    for talk in [(&alice, &bob), (&bob, &alice)] {
        let path = format!("/bitchat/messages/conversation/{}/{}", talk.0, talk.1);
        assert_eq!(contents(&api.get(&path).await.with(200)), ["to bob", "to alice"]);
        let body = json!({ "peer_id": talk.0, "other_peer_id": talk.1, "limit": 1, "offset": 1 });
        let page = api.post("/bitchat/messages/conversation", &body).await.with(200);
        assert_eq!(contents(&page), ["to bob"]);
    }
    for query in ["limit=0", "limit=-1", "limit=1001", "offset=-1", "limit=x", "offset=1000001"] {
        let path = format!("/bitchat/messages/conversation/{alice}/{bob}?{query}");
        api.get(&path).await.with(422);
    }
    let body = json!({ "group_id": "g", "limit": -1 });
    api.post("/bitchat/messages/group", &body).await.with(422);
}

#[tokio::test(flavor = "multi_thread")]
async fn confirming_again_is_harmless_and_does_not_move_the_time() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let [alice, bob] = [api.new_peer("alice").await, api.new_peer("bob").await];
    let message = api.send(&alice, &bob, "once").await;
    let path = format!("/bitchat/messages/{}/delivered", message["message_id"].as_str().unwrap());
    let talk = format!("/bitchat/messages/conversation/{alice}/{bob}");
    api.put(&path, None).await.with(200);
    let first = api.get(&talk).await.with(200)[0].clone();
    assert_eq!(first["status"], "delivered");
    assert!(first["delivered_at"].as_str().unwrap().ends_with("+00:00"));
    assert_eq!(first["id"], message["id"]);
    api.put(&path, None).await.with(200);
    assert_eq!(api.get(&talk).await.with(200)[0], first);
    api.put(&format!("/bitchat/messages/{}/delivered", Uuid::new_v4()), None).await.with(404);
    api.put("/bitchat/messages/not-an-id/delivered", None).await.with(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_stated_in_every_spelling_and_in_a_body() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let peer = api.new_peer("alice").await;
    let path = format!("/bitchat/peers/{peer}/status");
    for (word, online) in
        [("False", false), ("yes", true), ("0", false), ("ON", true), ("n", false)]
    {
        let stated = api.put(&format!("{path}?is_online={word}"), None).await.with(200);
        assert_eq!(stated["is_online"], online, "{word}");
        let shown = api.get(&format!("/bitchat/peers/{peer}")).await.with(200);
        assert_eq!(shown["is_online"], online, "{word}");
    }
    let stated = api.put(&path, Some(&json!({ "is_online": true }))).await.with(200);
    assert_eq!(stated["is_online"], true);
    api.put(&path, None).await.with(422);
    api.put(&format!("{path}?is_online=maybe"), None).await.with(422);
    api.put("/bitchat/peers/nobody-here/status?is_online=1", None).await.with(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tokens_nobody_speaks_for_another() {
    let gateway = Options::shared().start().await;
    let strangers = Api::of(&gateway);
    let register = |name: &'static str| {
        let strangers = &strangers;
        let gateway = &gateway;
        async move {
            let peer = strangers.register(name).await;
            let id = peer["peer_id"].as_str().unwrap().to_owned();
            let token = peer["token"].as_str().unwrap().to_owned();
            (Api(gateway.client().calling_as(&id, Some(token))), id)
        }
    };
    let (alice, a) = register("alice").await;
    let (bob, b) = register("bob").await;
    let (mallory, _) = register("mallory").await;
    let message = alice.send(&a, &b, "for bob").await;
    let delivered =
        format!("/bitchat/messages/{}/delivered", message["message_id"].as_str().unwrap());
    let to_group = json!({ "from_peer_id": a, "group_id": "no-such-group", "content": "x" });
    alice.post("/bitchat/messages/send", &to_group).await.with(404);
    let group = json!({ "name": "Two", "created_by": a, "initial_members": [b] });
    let group = alice.post("/bitchat/groups", &group).await.with(201);
    let group = group["group_id"].as_str().unwrap();
    let send = json!({ "from_peer_id": a, "to_peer_id": b, "content": "forged" });
    let again = json!({ "peer_id": a, "public_key": "another" });
    let packet = json!({
        "from_node": a, "route": [b], "sphinx_packet": { "payload": "00", "destination": b }
    });
    let forged = [
        (Method::POST, "/bitchat/messages/send".to_owned(), Some(send)),
        (Method::POST, "/bitchat/peers/register".to_owned(), Some(again.clone())),
        (Method::PUT, format!("/bitchat/peers/{a}/status?is_online=false"), None),
        (Method::PUT, delivered.clone(), None),
        (Method::GET, format!("/bitchat/messages/conversation/{a}/{b}"), None),
        (Method::GET, format!("/bitchat/groups/{group}/messages"), None),
        (Method::POST, "/bitchat/messages/group".to_owned(), Some(json!({ "group_id": group }))),
        (Method::POST, "/betanet/send".to_owned(), Some(packet)),
        (Method::POST, "/betanet/register".to_owned(), Some(json!({ "node_id": a }))),
        (Method::GET, format!("/betanet/receive/{b}"), None),
        (Method::DELETE, format!("/betanet/unregister/{b}"), None),
    ];
    for (method, path, body) in forged {
        mallory.call(method.clone(), &path, body.as_ref()).await.with(403);
        strangers.call(method, &path, body.as_ref()).await.with(401);
    }
    for path in [
        "/bitchat/peers",
        "/bitchat/stats",
        "/p2p/stats",
        "/p2p/status",
        "/betanet/relays",
        "/betanet/health",
        "/betanet/status",
        "/betanet/nodes",
    ] {
        strangers.get(path).await.with(401);
        mallory.get(path).await.with(200);
    }
    alice.put(&delivered, None).await.with(403);
    bob.put(&delivered, None).await.with(200);
    let talk = format!("/bitchat/messages/conversation/{a}/{b}");
    for party in [&alice, &bob] {
        assert_eq!(contents(&party.get(&talk).await.with(200)), ["for bob"]);
    }
    let kept = alice.post("/bitchat/peers/register", &again).await.with(201);
    assert_eq!((&kept["public_key"], &kept["token"]), (&json!("another"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_recipient_has_read_cannot_be_withdrawn() {
    let gateway = Options::shared().start().await;
    let alice = gateway.register("alice").await;
    let bob = gateway.register("bob").await;
    let message = alice.send(&harness::client::Draft::text("bob", "read me")).await.unwrap();
    assert_eq!(alice.record(message.message_id).await.unwrap().status, "pending");
    let talk = "/bitchat/messages/conversation/alice/bob";
    // Its sender reads its own words; that shows the recipient nothing.
    assert_eq!(contents(&Api(alice.clone()).get(talk).await.with(200)), ["read me"]);
    assert_eq!(alice.record(message.message_id).await.unwrap().status, "pending");
    assert_eq!(contents(&Api(bob).get(talk).await.with(200)), ["read me"]);
    assert_eq!(alice.record(message.message_id).await.unwrap().status, "sent");
    let path = format!("/v1/messages/{}", message.message_id);
    let refused = alice.call::<Value>(alice.request(Method::DELETE, &path)).await.unwrap_err();
    assert_eq!(refused.status(), Some(409));
}

#[tokio::test(flavor = "multi_thread")]
async fn group_messages_reach_the_other_members_and_nobody_else_reads_them() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let [alice, bob, mallory] =
        [api.new_peer("alice").await, api.new_peer("bob").await, api.new_peer("mallory").await];
    let group = json!({ "name": "Two", "created_by": alice, "initial_members": [bob] });
    let group = api.post("/bitchat/groups", &group).await.with(201);
    let path = format!("/bitchat/groups/{}/messages", group["group_id"].as_str().unwrap());
    let message = json!({ "from_peer_id": alice, "content": "to the group" });
    let message = api.post(&path, &message).await.with(201);
    assert_eq!((&message["group_id"], &message["to_peer_id"]), (&group["group_id"], &Value::Null));
    let forged = json!({ "from_peer_id": mallory, "content": "let me in" });
    api.post(&path, &forged).await.with(403);
    for reader in [None, Some(&alice), Some(&bob)] {
        let client =
            reader.map_or(gateway.client(), |peer| gateway.client().calling_as(peer, None));
        let read = Api(client).get(&path).await.with(200);
        assert_eq!(contents(&read), ["to the group"], "{reader:?}");
    }
    Api(gateway.client().calling_as(&mallory, None)).get(&path).await.with(403);
    assert_eq!(api.get("/bitchat/groups/no-such-group/messages").await.with(200), json!([]));
    let waiting = gateway.client().calling_as(&bob, None).poll(None, 0).await.unwrap();
    assert_eq!(waiting.messages[0].content.as_deref(), Some("to the group"));
}

#[tokio::test(flavor = "multi_thread")]
async fn betanet_hands_out_each_message_once_even_over_a_restart() {
    let mut gateway = open_gateway().await;
    let api = Api::of(&gateway);
    for node in ["alice", "bob"] {
        let node = json!({
            "node_id": node, "device_name": "Device",
            "capabilities": { "can_relay": true, "privacy_mode": true },
        });
        api.post("/betanet/register", &node).await.with(201);
        let again = api.post("/betanet/register", &node).await.with(200);
        assert_eq!(again["mixnode_id"], node["node_id"]);
    }
    assert_eq!(api.get("/betanet/relays").await.with(200), json!([]));
    for (number, priority) in [0, 1, 3, 4, 5].into_iter().enumerate() {
        let packet = json!({
            "version": 1, "route": ["bob"], "destination": "bob",
            "payload": format!("ff{number:02}"), "encrypted": true, "num_hops": 1,
        });
        let sent = json!({
            "from_node": "alice", "sphinx_packet": packet, "route": ["bob"], "priority": priority,
        });
        let accepted = api.post("/betanet/send", &sent).await.with(200);
        assert_eq!(accepted["transport"], "local");
        let record = gateway.client().calling_as("alice", None);
        let id = accepted["message_id"].as_str().unwrap().parse().unwrap();
        let record = record.record(id).await.unwrap();
        assert_eq!(record.recipients[0].attempts[0].transport, "local");
    }
    let mut received = Vec::new();
    for number in 0..5 {
        let message = api.get("/betanet/receive/bob").await.with(200)["message"].clone();
        assert_eq!(message["from_node"], "alice");
        received.push((
            message["sphinx_packet"]["payload"].as_str().unwrap().to_owned(),
            message["priority"].as_i64().unwrap(),
        ));
        if number == 2 {
            gateway.kill();
            gateway.resume().await;
        }
    }
    let expected = [("ff00", 0), ("ff01", 1), ("ff02", 3), ("ff03", 4), ("ff04", 5)];
    assert_eq!(received, expected.map(|(payload, priority)| (payload.to_owned(), priority)));
    assert_eq!(api.get("/betanet/receive/bob").await.with(200)["message"], Value::Null);
    let gone = api.call(Method::DELETE, "/betanet/unregister/bob", None).await.with(200);
    assert_eq!(gone["mixnode_id"], "bob");
    api.get("/betanet/receive/nobody-here").await.with(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn betanet_carries_text_and_bytes_and_refuses_what_it_cannot() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let [alice, bob] = [api.new_peer("alice").await, api.new_peer("bob").await];
    let send = |packet: Value, route: Value, priority: i64| {
        let sent = json!({
            "from_node": alice, "sphinx_packet": packet, "route": route, "priority": priority,
        });
        let api = &api;
        async move { api.post("/betanet/send", &sent).await }
    };
    let to_bob = |payload: &str| json!({ "destination": bob, "payload": payload });
    send(to_bob("words"), json!([bob]), 3).await.with(200);
    send(json!({ "payload": "00FF" }), json!(["r1", "r2", "r3", "r4", "r5", bob]), 3)
        .await
        .with(200);
    api.send(&alice, &bob, "Grüße").await;
    for payload in ["776f726473", "00ff", "4772c3bcc39f65"] {
        let message = api.get(&format!("/betanet/receive/{bob}")).await.with(200);
        assert_eq!(message["message"]["sphinx_packet"]["payload"], payload);
    }
    for priority in [-1, 2, 6] {
        send(to_bob("00"), json!([bob]), priority).await.with(422);
    }
    send(to_bob("00"), json!([]), 3).await.with(422);
    send(to_bob("00"), json!(vec!["r"; 7]), 3).await.with(422);
    send(json!("AAAA"), json!([bob]), 3).await.with(422);
    send(json!("no base64!"), json!([bob]), 3).await.with(422);
    send(json!({ "destination": bob }), json!([bob]), 3).await.with(422);
    send(json!({ "destination": "broadcast", "payload": "00" }), json!([bob]), 3).await.with(422);
    send(json!({ "destination": "nobody-here", "payload": "00" }), json!([bob]), 3).await.with(404);
    send(to_bob(&"00".repeat((1 << 20) + 1)), json!([bob]), 3).await.with(413);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_pretends_that_relays_run() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let health = api.get("/betanet/health").await.with(200);
    assert_eq!(
        (&health["status"], &health["server_reachable"]),
        (&json!("unavailable"), &json!(false))
    );
    api.post("/betanet/deploy", &json!({})).await.with(409);
    api.post("/betanet/nodes", &json!({ "node_type": "satellite" })).await.with(400);
    let node = json!({ "node_type": "mixnode", "region": "us-east" });
    let node = api.post("/betanet/nodes", &node).await.with(201);
    assert_eq!((&node["status"], &node["last_heartbeat"]), (&json!("inactive"), &Value::Null));
    let path = format!("/betanet/nodes/{}", node["id"].as_str().unwrap());
    assert_eq!(api.get(&path).await.with(200), node);
    api.put(&path, Some(&json!({}))).await.with(400);
    api.put(&path, Some(&json!({ "status": "flying" }))).await.with(422);
    let renamed = api.put(&path, Some(&json!({ "name": "Attic" }))).await.with(200);
    assert_eq!((&renamed["name"], &renamed["region"]), (&json!("Attic"), &json!("us-east")));
    let status = api.get("/betanet/status").await.with(200);
    assert_eq!(status["nodes"], json!({ "total": 1, "active": 0, "inactive": 1 }));
    assert_eq!(status["mixnodes"], json!([]));
    api.call(Method::DELETE, &path, None).await.with(204);
    for method in [Method::GET, Method::DELETE] {
        api.call(method, &path, None).await.with(404);
    }
    api.get("/betanet/nodes/not-an-id").await.with(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_p2p_figures_are_those_of_the_gateway() {
    let gateway = open_gateway().await;
    let api = Api::of(&gateway);
    let [alice, bob] = [api.new_peer("alice").await, api.new_peer("bob").await];
    api.send(&alice, &bob, "counted").await;
    let _socket = gateway.client().calling_as(&alice, None).socket().await.unwrap();
    let stats = api.get("/p2p/stats").await.with(200);
    assert_eq!((&stats["messagesSent"], &stats["messagesReceived"]), (&json!(1), &json!(1)));
    assert_eq!(stats["protocols"], json!({ "ble": 0, "htx": 0, "mesh": 0 }));
    assert_eq!((&stats["connectedPeers"], &stats["networkHealth"]), (&json!(1), &json!(1.0)));
    assert_eq!(stats["unified"]["totalPeers"], 2);
    assert_eq!(stats["unified"]["messageQueue"], 1);
    let status = api.get("/p2p/status").await.with(200);
    assert_eq!((&status["running"], &status["peer_count"]), (&json!(true), &json!(2)));
    assert_eq!((&status["offline_store_size"], &status["pending_acks"]), (&json!(1), &json!(0)));
    assert_eq!(status["metrics"]["messages_sent"], 1);
    assert!(status["uptime_seconds"].as_f64().unwrap() > 0.0);
}

/// As in the original's tests: no key at all.
const KEY: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA...";

async fn open_gateway() -> Gateway {
    Options::shared().open().start().await
}

/// Calls below `/api`.
struct Api(Client);

impl Api {
    /// As nobody: neither a token nor a name.
    fn of(gateway: &Gateway) -> Self {
        Self(gateway.client())
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let mut request = self.0.request(method.clone(), &format!("/api{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.expect("the gateway answers");
        let status = response.status().as_u16();
        let text = response.text().await.expect("the answer is whole");
        let body = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"))
        };
        Answer { call: format!("{method} {path}"), status, body }
    }

    async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    async fn put(&self, path: &str, body: Option<&Value>) -> Answer {
        self.call(Method::PUT, path, body).await
    }

    async fn register(&self, role: &str) -> Value {
        let id = format!("{role}-{}", Uuid::new_v4());
        let peer = json!({ "peer_id": id, "public_key": KEY, "display_name": "Test Peer" });
        let registered = self.post("/bitchat/peers/register", &peer).await.with(201);
        assert_eq!(registered["peer_id"], id);
        registered
    }

    async fn new_peer(&self, role: &str) -> String {
        self.register(role).await["peer_id"].as_str().unwrap().to_owned()
    }

    async fn send(&self, from: &str, to: &str, content: &str) -> Value {
        let message = json!({ "from_peer_id": from, "to_peer_id": to, "content": content });
        self.post("/bitchat/messages/send", &message).await.with(201)
    }
}

struct Answer {
    call: String,
    status: u16,
    body: Value,
}

impl Answer {
    /// The body of an answer that must have this status; errors must say something.
    #[track_caller]
    fn with(self, status: u16) -> Value {
        let Self { call, body, .. } = &self;
        assert_eq!(self.status, status, "{call}: {body}");
        if status >= 400 {
            let says = match &body["detail"] {
                Value::String(text) => !text.is_empty(),
                Value::Array(errors) => errors.iter().all(|error| error["msg"].is_string()),
                _ => false,
            };
            assert!(says, "{call}: {body}");
        }
        self.body
    }
}

fn contents(messages: &Value) -> Vec<Value> {
    messages.as_array().unwrap().iter().map(|message| message["content"].clone()).collect()
}
