//! Who is where, and whom a bare name means: rosters, pins, trust, and gateways that lie about it.

use std::{sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, GatewayId, Listing, MessageId, PeerAddress, Priority,
    Roster, SignedEnvelope, SignedRoster, Timestamp,
};
use fieldpost_transport::{
    Faults, HeardRoster, MemoryNetwork, MemoryOptions, MemoryTransport, Transport,
};
use harness::{
    Client, Postgres,
    client::{Draft, Failure, PATIENCE},
    federation::{Node, record_with_status, take},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::federation::{database, until};

const LAN: &str = "--trust=lan";

#[tokio::test(flavor = "multi_thread")]
async fn each_gateway_lists_the_others_peers_and_bare_names_lead_both_ways() {
    let network = MemoryNetwork::new(1);
    let (a, b) = (nearby(&network, &[LAN]).await, nearby(&network, &[LAN]).await);
    let began = Instant::now();
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    listed(&alice, &b.address("bob"), true).await;
    listed(&bob, &a.address("alice"), true).await;
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());

    let sent = alice.send(&Draft::text("bob", "over there?")).await.unwrap();
    let shown = take(&bob, 1).await.remove(0);
    assert_eq!((shown.from, shown.to), (a.address("alice"), "bob".to_owned()));
    let record = record_with_status(&alice, sent.message_id, "delivered").await;
    assert_eq!(record.recipients[0].recipient, b.address("bob"));
    let answer = bob.send(&Draft::text("alice", "over here")).await.unwrap();
    assert_eq!(take(&alice, 1).await[0].content.as_deref(), Some("over here"));
    record_with_status(&bob, answer.message_id, "delivered").await;
    // Both are one talk, under the address where the name was found.
    let talk: Value = get(&alice, &format!("/v1/messages?with={}", b.address("bob"))).await;
    assert_eq!(talk["messages"].as_array().unwrap().len(), 2, "{talk}");

    let path = format!("/v1/peers/{}", b.address("bob"));
    let peer: Value = get(&alice, &path).await;
    assert_eq!(peer["gateway"], b.id().to_string());
    assert_eq!((&peer["transports"], &peer["trusted"]), (&json!(["memory"]), &json!(true)));
    assert_eq!((&peer["online"], &peer["public_key"]), (&Value::Null, &Value::Null));
    assert!(peer["heard_at"].is_string(), "{peer}");
    let mirrored: Vec<Value> = get(&alice, "/api/bitchat/peers").await;
    let mirrored = mirrored.iter().find(|peer| peer["peer_id"] == b.address("bob")).unwrap();
    assert_eq!((&mirrored["is_online"], &mirrored["public_key"]), (&json!(false), &json!("")));
    assert_eq!(mirrored["transports"], json!(["memory"]));
    let same: Value = get(&alice, &format!("/api/bitchat/peers/{}", b.address("bob"))).await;
    assert_eq!(&same, mirrored);
    let gateways: Value = get(&alice, "/v1/gateways").await;
    let other = &gateways["gateways"][0];
    assert_eq!(other["gateway_id"], b.id().to_string());
    assert_eq!((&other["nearby"], &other["peers"]), (&json!(true), &json!(1)));
    let talk: Vec<Value> = get(&alice, "/api/bitchat/messages/conversation/alice/bob").await;
    assert_eq!(talk.len(), 2, "the bare name leads there, too");
    let talk: Value = get(&bob, "/v1/messages?with=alice").await;
    assert_eq!(talk["messages"].as_array().unwrap().len(), 2, "{talk}");
    // Out of reach it is still listed, with no transport.
    network.set_faults(a.id(), b.id(), Faults::CUT);
    eventually(async || get::<Value>(&alice, &path).await["transports"] == json!([])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_over_this_gateway_and_the_others() {
    let network = MemoryNetwork::new(1);
    let (a, b) = (nearby(&network, &[]).await, nearby(&network, &[]).await);
    let alice = a.register("alice").await;
    a.register("zoe").await;
    for name in ["bob", "carol", "dave"] {
        b.register(name).await;
    }
    listed(&alice, &b.address("dave"), true).await;
    let mut names = Vec::new();
    let mut cursor = String::new();
    loop {
        let page: Value = get(&alice, &format!("/v1/peers?limit=2{cursor}")).await;
        let peers = page["peers"].as_array().unwrap();
        names.extend(peers.iter().map(|peer| peer["peer_id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let there = ["bob", "carol", "dave"].map(|name| b.address(name));
    let all: Vec<String> = ["alice", "zoe"].map(str::to_owned).into_iter().chain(there).collect();
    assert_eq!(names, all);
    let online: Value = get(&alice, "/v1/peers?online=true").await;
    assert_eq!(online["peers"], json!([]), "nobody tells us who is online elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_holds_when_another_gateway_claims_the_name_and_others_are_asked_which_they_mean() {
    let network = MemoryNetwork::new(1);
    let (a, b) = (nearby(&network, &[LAN]).await, nearby(&network, &[LAN]).await);
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    listed(&alice, &b.address("bob"), true).await;
    alice.send(&Draft::text("bob", "first")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("first"));

    let c = nearby(&network, &[LAN]).await;
    let other_bob = c.register("bob").await;
    listed(&alice, &c.address("bob"), true).await;
    alice.send(&Draft::text("bob", "second")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("second"));

    let pins: Value = get(&alice, "/v1/pins").await;
    assert_eq!(pins["pins"][0]["peer_id"], b.address("bob"));
    let unpin =
        async || alice.call::<()>(alice.request(Method::DELETE, "/v1/pins/bob")).await.map(drop);
    unpin().await.unwrap();
    assert_eq!(status(unpin().await), 404);
    assert_eq!(status(alice.send(&Draft::text("bob", "?")).await), 409);

    let carol = a.register("carol").await;
    let mut candidates = [b.address("bob"), c.address("bob")];
    candidates.sort();
    let request = carol.request(Method::POST, "/v1/messages");
    let refused = request.json(&Draft::text("bob", "?")).send().await.unwrap();
    assert_eq!(refused.status(), 409);
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["candidates"], json!(candidates));
    let body = json!({"from_peer_id": "carol", "to_peer_id": "bob", "content": "?"});
    let request = carol.request(Method::POST, "/api/bitchat/messages/send").json(&body);
    let refused = request.send().await.unwrap();
    assert_eq!(refused.status(), 409);
    let detail: Value = refused.json().await.unwrap();
    assert_eq!(detail.as_object().unwrap().len(), 1);
    assert!(candidates.iter().all(|one| detail["detail"].as_str().unwrap().contains(one)));

    carol.send(&Draft::text(&c.address("bob"), "you")).await.unwrap();
    assert_eq!(take(&other_bob, 1).await[0].from, a.address("carol"));
    // A peer of one's own gateway stands above all pins.
    let own_bob = a.register("bob").await;
    alice.send(&Draft::text("bob", "third")).await.unwrap();
    assert_eq!(take(&own_bob, 1).await[0].content.as_deref(), Some("third"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_survives_restarts_and_the_loss_of_the_listing() {
    let network = MemoryNetwork::new(1);
    let (mut a, b) = (nearby(&network, &[LAN]).await, nearby(&network, &[LAN]).await);
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    listed(&alice, &b.address("bob"), true).await;
    alice.send(&Draft::text("bob", "first")).await.unwrap();
    take(&bob, 1).await;
    let settings = json!({ "listed": false });
    let request = bob.request(Method::PATCH, "/v1/peers/bob").json(&settings);
    bob.call::<Value>(request).await.unwrap();
    // The delta takes him off the list; who has not found him yet, does not any more.
    listed(&alice, &b.address("bob"), false).await;
    let carol = a.register("carol").await;
    assert_eq!(status(carol.send(&Draft::text("bob", "?")).await), 404);
    a.stop().await;
    a.resume().await;
    let alice = a.client_of(&alice);
    alice.send(&Draft::text("bob", "second")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_not_trusted_resolves_nothing_and_can_still_be_named() {
    let network = MemoryNetwork::new(1);
    let far = |options: Vec<String>| {
        let network = network.clone();
        async move {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            node(&network, MemoryOptions::default(), &options).await
        }
    };
    let b = far(vec![]).await;
    let bob = b.register("bob").await;
    // It is not on the local network, so that trust in the local network means nothing.
    let a = far(vec![LAN.to_owned()]).await;
    let alice = a.register("alice").await;
    listed(&alice, &b.address("bob"), true).await;
    let peer: Value = get(&alice, &format!("/v1/peers/{}", b.address("bob"))).await;
    assert_eq!(peer["trusted"], json!(false));
    let Err(Failure::Refused { status: 404, detail, .. }) =
        alice.send(&Draft::text("bob", "?")).await
    else {
        panic!("a stranger's word resolves no name");
    };
    assert!(detail.contains("not trusted"), "{detail}");
    let sent = alice.send(&Draft::text(&b.address("bob"), "by name")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("by name"));
    record_with_status(&alice, sent.message_id, "delivered").await;

    // By its id it is trusted, wherever it is; a stranger with the same name changes nothing.
    let stranger = far(vec![]).await;
    let captor = stranger.register("bob").await;
    let trusting = far(vec![format!("--trust={}", b.id())]).await;
    let dora = trusting.register("dora").await;
    listed(&dora, &b.address("bob"), true).await;
    listed(&dora, &stranger.address("bob"), true).await;
    dora.send(&Draft::text("bob", "for the one I trust")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].from, trusting.address("dora"));
    assert!(captor.poll(None, 0).await.unwrap().messages.is_empty());
    let plan: Value = get(&dora, "/v1/routes?to=bob").await;
    assert_eq!(plan["places"][0]["transport"], "memory", "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_waits_for_an_unknown_name_until_a_peer_here_takes_it() {
    let network = MemoryNetwork::new(1);
    let a = nearby(&network, &[LAN]).await;
    let alice = a.register("alice").await;
    assert_eq!(status(alice.send(&Draft::text("bob", "?")).await), 404);
    let draft = Draft { allow_unknown: true, ..Draft::text("bob", "when you come") };
    let sent = alice.send(&draft).await.unwrap();
    assert_eq!(sent.status, "pending");
    let record = alice.record(sent.message_id).await.unwrap();
    assert_eq!(record.recipients[0].recipient, "bob");
    assert!(record.recipients[0].reason.as_deref().unwrap().contains("waits for a peer"));
    let bob = a.register("bob").await;
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("when you come"));
    record_with_status(&alice, sent.message_id, "delivered").await;
    // Whoever lists the name afterwards gets nothing of it.
    let b = nearby(&network, &[]).await;
    b.register("bob").await;
    listed(&alice, &b.address("bob"), true).await;
    assert_eq!(alice.send(&draft).await.unwrap().message_id, sent.message_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_wait_for_an_unknown_name_until_a_trusted_gateway_lists_it() {
    let network = MemoryNetwork::new(1);
    let a = nearby(&network, &[LAN]).await;
    let alice = a.register("alice").await;
    let mut sent = Vec::new();
    for number in 0..3 {
        let draft = Draft { allow_unknown: true, ..Draft::text("bob", number.to_string()) };
        sent.push((alice.send(&draft).await.unwrap().message_id, draft));
    }
    let withdrawn = Draft { allow_unknown: true, ..Draft::text("bob", "no, wait") };
    let withdrawn = alice.send(&withdrawn).await.unwrap().message_id;
    let path = format!("/v1/messages/{withdrawn}");
    alice.call::<()>(alice.request(Method::DELETE, &path)).await.unwrap();
    // A stranger who claims the name captures nothing.
    let far = node(&network, MemoryOptions::default(), &[]).await;
    let captor = far.register("bob").await;
    listed(&alice, &far.address("bob"), true).await;

    let b = nearby(&network, &[]).await;
    let bob = b.register("bob").await;
    listed(&alice, &b.address("bob"), true).await;
    // What is sent now goes behind what waited.
    let last = alice.send(&Draft::text("bob", "3")).await.unwrap();
    sent.push((last.message_id, Draft::default()));
    let shown = take(&bob, 4).await;
    let texts: Vec<_> = shown.iter().filter_map(|one| one.content.as_deref()).collect();
    assert_eq!(texts, ["0", "1", "2", "3"]);
    assert!(shown.iter().all(|one| !one.gap && !one.late && one.from == a.address("alice")));
    for (id, _) in &sent {
        let record = record_with_status(&alice, *id, "delivered").await;
        assert_eq!(record.recipients.len(), 1);
        assert_eq!(record.recipients[0].recipient, b.address("bob"));
    }
    // Said again it is the same, though the name leads elsewhere now.
    let (id, draft) = &sent[0];
    assert_eq!(alice.send(draft).await.unwrap().message_id, *id);
    assert_eq!(alice.record(withdrawn).await.unwrap().status, "cancelled");
    assert!(captor.poll(None, 0).await.unwrap().messages.is_empty());
    assert!(bob.poll(None, 0).await.unwrap().messages.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_that_nobody_takes_expires() {
    let network = MemoryNetwork::new(1);
    let a = nearby(&network, &[LAN]).await;
    let alice = a.register("alice").await;
    let draft = Draft { allow_unknown: true, ttl: Some(1), ..Draft::text("bob", "now or never") };
    let sent = alice.send(&draft).await.unwrap();
    record_with_status(&alice, sent.message_id, "expired").await;
    let b = nearby(&network, &[]).await;
    let bob = b.register("bob").await;
    listed(&alice, &b.address("bob"), true).await;
    alice.send(&Draft::text("bob", "in time")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("in time"));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_tell_and_follow_one_roster_and_carry_for_each_other() {
    let (here, there) = (MemoryNetwork::new(1), MemoryNetwork::new(2));
    let near = || MemoryOptions::default().nearby();
    let first = node(&here, near(), &[LAN]).await;
    let second = first.replica(&[(&there, near())]).await;
    let b = nearby(&there, &[LAN]).await;
    // The first replica reaches nobody: what it knows and sends goes through the second.
    let (alice, bob) = (first.register("alice").await, b.register("bob").await);
    listed(&bob, &first.address("alice"), true).await;
    listed(&alice, &b.address("bob"), true).await;
    alice.send(&Draft::text("bob", "through the other one")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].from, first.address("alice"));
    let mallory = Mallory::join(&there, near());
    let count = mallory.hear_both(&first, &b).await;
    second.register("carol").await;
    let next = loop {
        let roster = mallory.hear().await;
        if roster.gateway == first.id() {
            break roster;
        }
    };
    assert_eq!((next.base, next.peers.len()), (Some(count), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_roster_is_taken_and_one_peer_more_is_not() {
    let network = MemoryNetwork::new(1);
    let a = node(&network, MemoryOptions::named("full"), &[]).await;
    let alice = a.register("alice").await;
    let mallory = Mallory::join(&network, MemoryOptions::named("full"));
    let names: Vec<String> = (0..10_000).map(|number| format!("peer-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    mallory.publish(1, &names);
    let began = Instant::now();
    let labels = |outcome: &str| format!("transport=\"full\",outcome=\"{outcome}\"");
    let count =
        async |outcome: &str| a.metric("fieldpost_rosters_received_total", &labels(outcome)).await;
    eventually(async || count("taken").await >= 1.0).await;
    eprintln!("10 000 peers were taken in {:?}", began.elapsed());
    listed(&alice, &mallory.address("peer-0"), true).await;
    let more = mallory.roster(2, Some(1), &["one-more"]).into_bytes();
    let heard = HeardRoster { bytes: more, is_nearby: false };
    mallory.end.inject_roster(&a.id().to_string(), heard).unwrap();
    eventually(async || count("no_room").await >= 1.0).await;
    let path = format!("/v1/peers/{}", mallory.address("one-more"));
    let answer = alice.call::<Value>(alice.request(Method::GET, &path)).await;
    assert_eq!(status(answer), 404);
    let mirrored: Vec<Value> = get(&alice, "/api/bitchat/peers").await;
    assert_eq!(mirrored.len(), 10_000);
    assert!(mirrored.iter().any(|peer| peer["peer_id"] == "alice"), "one's own come first");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_replayed_and_misleading_rosters_change_nothing_and_are_counted() {
    let network = MemoryNetwork::new(1);
    let named = || MemoryOptions::named("liar").nearby();
    let a = node(&network, named(), &[LAN]).await;
    let b = node(&network, named(), &[]).await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    listed(&alice, &b.address("bob"), true).await;
    let mallory = Mallory::join(&network, named());
    mallory.publish(100, &["mallory", "extra"]);
    listed(&alice, &mallory.address("mallory"), true).await;

    let tell = |bytes: Vec<u8>| {
        let heard = HeardRoster { bytes, is_nearby: true };
        mallory.end.inject_roster(&a.id().to_string(), heard).unwrap();
    };
    // In the name of an honest gateway: b's own key is not at hand.
    let mut forged = mallory.roster(u64::MAX >> 2, None, &["bob"]).into_bytes();
    let place = forged.windows(32).position(|part| part == mallory.id.as_bytes()).unwrap();
    forged[place..place + 32].copy_from_slice(b.id().as_bytes());
    tell(forged);
    let mut bent = mallory.roster(101, None, &["eve"]).into_bytes();
    *bent.last_mut().unwrap() ^= 1;
    tell(bent);
    tell(b"no roster at all".to_vec());
    tell(vec![0; 5 << 20]);
    tell(mallory.roster(99, None, &["old"]).into_bytes());
    tell(mallory.roster(100, None, &["replayed"]).into_bytes());
    tell(mallory.roster(102, Some(98), &["unfounded"]).into_bytes());
    let counted = async |outcome: &str, least: f64| {
        let labels = format!("transport=\"liar\",outcome=\"{outcome}\"");
        let count = async || a.metric("fieldpost_rosters_received_total", &labels).await;
        eventually(async || count().await >= least).await;
    };
    counted("forged", 2.0).await;
    counted("malformed", 2.0).await;
    counted("old", 2.0).await;
    counted("other_base", 1.0).await;
    let mut names = names(&alice).await;
    names.sort();
    let mut expected = vec!["alice".to_owned(), b.address("bob")];
    expected.extend(["mallory", "extra"].map(|name| mallory.address(name)));
    expected.sort();
    assert_eq!(names, expected);
    // A delta with the right base is taken.
    tell(mallory.roster(103, Some(100), &["good"]).into_bytes());
    listed(&alice, &mallory.address("good"), true).await;
    // Honest gateways are not affected.
    alice.send(&Draft::text("bob", "as ever")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("as ever"));
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_rise_over_restarts_and_when_the_clock_was_set_back() {
    let network = MemoryNetwork::new(1);
    let mut a = nearby(&network, &[]).await;
    let mallory = Mallory::join(&network, MemoryOptions::default());
    let first = mallory.hear().await;
    assert_eq!(first.base, None, "who hears it for the first time is told the whole");
    a.register("alice").await;
    let second = mallory.hear().await;
    assert_eq!(second.base, Some(first.number), "who has the last is told what changed");
    assert!(second.number > first.number);
    a.stop().await;
    a.resume().await;
    let same = mallory.hear().await;
    assert_eq!((same.number, same.base), (second.number, None), "nothing has changed");
    assert_eq!(same.peers, second.peers);
    // As if the last had been told by a clock that ran a year ahead, and was set back since.
    let ahead = second.number + 366 * 86_400_000;
    a.stop().await;
    Postgres::execute(a.database_url(), &format!("update own_roster set number = {ahead}"));
    a.resume().await;
    let third = mallory.hear().await;
    assert_eq!((third.number, third.base), (ahead + 1, None));
    a.register("bob").await;
    let fourth = mallory.hear().await;
    assert_eq!((fourth.number, fourth.base), (ahead + 2, Some(ahead + 1)));
    assert_eq!(fourth.peers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_too_fast_is_slowed_down_and_others_are_not() {
    let network = MemoryNetwork::new(1);
    let named = || MemoryOptions::named("flood");
    let b = node(&network, named(), &["--gateway-rate-limit=20", "--failover-timeout=500ms"]).await;
    let a = node(&network, named(), &[]).await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let mallory = Mallory::join(&network, named());
    for number in 0..500 {
        mallory.send(&b, &mallory.message(&b.address("bob"), &number.to_string())).await;
    }
    let labels = "transport=\"flood\",outcome=\"over_quota\"";
    let dropped = async || b.metric("fieldpost_envelopes_received_total", labels).await;
    until(|| b.transport(0).status().envelopes_received >= 500).await;
    eventually(async || dropped().await >= 100.0).await;
    let sent = alice.send(&Draft::text(&b.address("bob"), "in between")).await.unwrap();
    let mut from_mallory = 0;
    loop {
        let shown = take(&bob, 1).await;
        if shown.iter().any(|one| one.message_id == sent.message_id) {
            break;
        }
        from_mallory += shown.len();
    }
    assert!(from_mallory <= 400, "{from_mallory}");
    record_with_status(&alice, sent.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_gateway_says_of_senders_that_are_not_its_own_is_refused() {
    let network = MemoryNetwork::new(1);
    let (a, b) = (nearby(&network, &[LAN]).await, nearby(&network, &[LAN]).await);
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let mallory = Mallory::join(&network, MemoryOptions::default().nearby());
    mallory.publish(1, &["alice"]);
    listed(&bob, &mallory.address("alice"), true).await;
    listed(&bob, &a.address("alice"), true).await;
    listed(&alice, &b.address("bob"), true).await;
    // A sender of another gateway cannot even be signed for; under its own name it is shown as such.
    let foreign = mallory.envelope(&a.address("alice"), &b.address("bob"), "I am alice");
    assert!(foreign.sign(&mallory.key).is_err());
    mallory.send(&b, &mallory.message(&b.address("bob"), "I am alice")).await;
    assert_eq!(take(&bob, 1).await[0].from, mallory.address("alice"));
    // Two trusted gateways have an alice now: nobody is guessed.
    assert_eq!(status(bob.send(&Draft::text("alice", "who?")).await), 409);
    alice.send(&Draft::text("bob", "the real one")).await.unwrap();
    let shown = take(&bob, 1).await.remove(0);
    assert_eq!(shown.from, a.address("alice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_wait_for_a_name_and_leave_in_order_while_more_are_sent() {
    let network = MemoryNetwork::new(1);
    let a = nearby(&network, &[LAN]).await;
    let alice = a.register("alice").await;
    for number in 0..220 {
        let draft = Draft { allow_unknown: true, ..Draft::text("bob", number.to_string()) };
        alice.send(&draft).await.unwrap();
    }
    let b = nearby(&network, &[]).await;
    let bob = b.register("bob").await;
    for number in 220..250 {
        let draft = Draft { allow_unknown: true, ..Draft::text("bob", number.to_string()) };
        alice.send(&draft).await.unwrap();
    }
    let texts: Vec<_> = take(&bob, 250).await.into_iter().filter_map(|one| one.content).collect();
    let expected: Vec<_> = (0..250).map(|number: u32| number.to_string()).collect();
    assert_eq!(texts, expected);
}

/// A gateway that others find on the local network.
async fn nearby(network: &MemoryNetwork, options: &[&str]) -> Node {
    node(network, MemoryOptions::default().nearby(), options).await
}

async fn node(network: &MemoryNetwork, end: MemoryOptions, options: &[&str]) -> Node {
    Node::start(database().await, &[(network, end)], options).await
}

async fn get<T: for<'a> serde::Deserialize<'a>>(client: &Client, path: &str) -> T {
    client.call(client.request(Method::GET, path)).await.unwrap()
}

async fn names(client: &Client) -> Vec<String> {
    let page: Value = get(client, "/v1/peers?limit=1000").await;
    let peers = page["peers"].as_array().unwrap();
    peers.iter().map(|peer| peer["peer_id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until a peer is listed, or is not.
async fn listed(client: &Client, address: &str, is_listed: bool) {
    let is_there = async || names(client).await.iter().any(|name| name == address);
    eventually(async || is_there().await == is_listed).await;
}

async fn eventually(is_there: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_there().await {
        assert!(Instant::now() < deadline, "it never came to that");
        sleep(Duration::from_millis(20)).await;
    }
}

fn status<T: std::fmt::Debug>(answer: Result<T, Failure>) -> u16 {
    answer.unwrap_err().status().unwrap()
}

/// A gateway of its own kind: a key and an end of the network.
struct Mallory {
    key: SigningKey,
    id: GatewayId,
    end: Arc<MemoryTransport>,
}

impl Mallory {
    fn join(network: &MemoryNetwork, options: MemoryOptions) -> Self {
        let key = SigningKey::from_bytes(&[66; 32]);
        let id = GatewayId::from(key.verifying_key());
        let end = network.join(id, options);
        Self { key, id, end }
    }

    fn address(&self, peer: &str) -> String {
        format!("{peer}@{}", self.id)
    }

    fn roster(&self, number: u64, base: Option<u64>, peers: &[&str]) -> SignedRoster {
        let listing = |name: &&str| Listing { peer: name.parse().unwrap(), display_name: None };
        let peers = peers.iter().map(listing).collect();
        Roster { gateway: self.id, number, base, peers, removed: Vec::new() }
            .sign(&self.key)
            .unwrap()
    }

    fn publish(&self, number: u64, peers: &[&str]) {
        self.end.publish(&self.roster(number, None, peers), None);
    }

    async fn hear(&self) -> Roster {
        let heard = timeout(PATIENCE, self.end.receive_roster()).await;
        let heard = heard.expect("a roster comes").expect("the network is up");
        SignedRoster::decode(&heard.bytes).unwrap().verify().unwrap()
    }

    /// Hears the rosters of two gateways; the number of the first one's.
    async fn hear_both(&self, first: &Node, other: &Node) -> u64 {
        let (one, two) = (self.hear().await, self.hear().await);
        let (one, two) = if one.gateway == first.id() { (one, two) } else { (two, one) };
        assert_eq!((one.gateway, two.gateway), (first.id(), other.id()));
        one.number
    }

    fn message(&self, to: &str, text: &str) -> SignedEnvelope {
        self.envelope(&self.address("alice"), to, text).sign(&self.key).unwrap()
    }

    fn envelope(&self, from: &str, to: &str, text: &str) -> Envelope {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        let now = u64::try_from(now.as_millis()).unwrap();
        let recipient = to.parse::<PeerAddress>().unwrap();
        Envelope {
            sender: from.parse().unwrap(),
            recipient: recipient.clone().into(),
            to: recipient.into(),
            message_id: MessageId(Uuid::new_v4()),
            sent_at: Timestamp::try_from(now).unwrap(),
            expires_at: Timestamp::try_from(now + 3_600_000).unwrap(),
            priority: Priority::Normal,
            level: AnonymityLevel::NONE,
            lane_seq: None,
            after: None,
            content: Content::text(text),
        }
    }

    async fn send(&self, to: &Node, envelope: &SignedEnvelope) {
        self.end.send(&to.id().to_string(), envelope.clone()).await.unwrap();
    }
}
