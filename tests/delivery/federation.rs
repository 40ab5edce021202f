//! Between gateways that are well: messages, receipts, refusals, expiry, broadcasts, restarts.

use std::time::Duration;

use fieldpost_transport::{Faults, MemoryNetwork, MemoryOptions, Transport as _};
use futures_util::{StreamExt, stream};
use harness::{
    Client, Frame, Postgres,
    client::{Draft, Record},
    federation::{Node, attempts, record_when, record_with_status, take},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_a_peer_of_another_gateway_and_its_receipts_come_back() {
    let ([a, b], alice, bob) = pair().await;
    let mut at_alice = alice.socket().await.unwrap();
    let mut at_bob = bob.socket().await.unwrap();
    let sent = alice.send(&Draft::text(&b.address("bob"), "The bridge is open.")).await.unwrap();
    assert_eq!(sent.status, "pending");

    let shown = at_bob.expect_message().await;
    assert_eq!(shown.message_id, sent.message_id);
    assert_eq!((shown.from, shown.to), (a.address("alice"), "bob".to_owned()));
    assert_eq!(shown.content.as_deref(), Some("The bridge is open."));
    assert!(!shown.gap && !shown.late);
    let record = record_with_status(&alice, sent.message_id, "sent").await;
    assert_eq!(record.recipients[0].recipient, b.address("bob"));

    at_bob.confirm_up_to(shown.seq).await.unwrap();
    let Frame::Receipt { message_id, recipient, status, .. } = at_alice.expect().await else {
        panic!("a receipt comes first");
    };
    assert_eq!((message_id, status.as_str()), (sent.message_id, "delivered"));
    assert_eq!(recipient, b.address("bob"));
    let record = record_with_status(&alice, sent.message_id, "delivered").await;
    assert_eq!(attempts(&record.recipients[0]), ["memory sent", "memory stored"]);

    let read = serde_json::json!({ "message_ids": [sent.message_id], "read": true });
    let request = bob.request(reqwest::Method::POST, "/v1/inbox/ack").json(&read);
    bob.call::<()>(request).await.unwrap();
    record_with_status(&alice, sent.message_id, "read").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_receipt_is_told_or_counted_as_missed() {
    const MESSAGES: u64 = 3000;
    let home = node(&MemoryNetwork::new(1), &[]).await;
    let (alice, bob) = (home.register("alice").await, home.register("bob").await);
    let mut at_alice = alice.socket().await.unwrap();
    let sends = (0..MESSAGES).map(|number| {
        let alice = alice.clone();
        async move { alice.send(&Draft::text("bob", format!("{number}"))).await.unwrap() }
    });
    stream::iter(sends).buffer_unordered(64).collect::<Vec<_>>().await;
    let mut last = 0;
    while last < MESSAGES {
        let page = bob.poll(Some(&last.to_string()), 1).await.unwrap();
        last = page.messages.last().map_or(last, |message| message.seq);
    }
    // Confirmed at once, they come faster than any socket is written.
    bob.confirm_up_to(last).await.unwrap();
    let (mut told, mut missed) = (0, 0);
    while told + missed < MESSAGES {
        match at_alice.expect().await {
            Frame::Receipt { status, .. } => {
                assert_eq!(status, "delivered");
                told += 1;
            }
            Frame::Missed { receipts, presence: 0 } => missed += receipts,
            other => panic!("{other:?} after {told} and {missed}"),
        }
    }
    assert_eq!(told + missed, MESSAGES);
    assert!(told >= 1024, "as many as may wait are told: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_go_the_same_way_and_both_lanes_keep_their_order() {
    let ([a, b], alice, bob) = pair().await;
    for number in 0..10 {
        alice.send(&Draft::text(&b.address("bob"), format!("to {number}"))).await.unwrap();
        bob.send(&Draft::text(&a.address("alice"), format!("fro {number}"))).await.unwrap();
    }
    for (client, word) in [(&bob, "to"), (&alice, "fro")] {
        let texts: Vec<_> =
            take(client, 10).await.into_iter().filter_map(|shown| shown.content).collect();
        let expected: Vec<_> = (0..10).map(|number| format!("{word} {number}")).collect();
        assert_eq!(texts, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabyte_and_an_empty_message_arrive_as_they_were() {
    let ([_a, b], alice, bob) = pair().await;
    let large = "x".repeat(1024 * 1024);
    for content in [large.as_str(), ""] {
        alice.send(&Draft::text(&b.address("bob"), content)).await.unwrap();
        let shown = take(&bob, 1).await.remove(0);
        assert!(shown.content.as_deref() == Some(content), "{} bytes", content.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_fails_the_message_with_the_reason() {
    let ([_a, b], alice, _bob) = pair().await;
    let sent = alice.send(&Draft::text(&b.address("nobody"), "?")).await.unwrap();
    let record = record_with_status(&alice, sent.message_id, "failed").await;
    let reason = record.recipients[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("no peer nobody"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_inbox_refuses_and_takes_again_once_there_is_room() {
    let network = MemoryNetwork::new(1);
    let a = node(&network, &[]).await;
    let b = node(&network, &["--sender-share=0.00001"]).await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let to_bob = b.address("bob");
    let first = alice.send(&Draft::text(&to_bob, "fits")).await.unwrap();
    record_when(&alice, first.message_id, |record| {
        attempts(&record.recipients[0]).contains(&"memory stored".to_owned())
    })
    .await;
    let second = alice.send(&Draft::text(&to_bob, "does not")).await.unwrap();
    let record = record_with_status(&alice, second.message_id, "failed").await;
    assert!(record.recipients[0].reason.as_deref().unwrap_or_default().contains("full"));
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("fits"));
    alice.send(&Draft::text(&to_bob, "fits again")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("fits again"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_needs_no_room_when_it_comes_again() {
    let network = MemoryNetwork::new(1);
    let a = node(&network, &[QUICK]).await;
    let b = node(&network, &["--sender-share=0.00001"]).await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    // Nothing comes back from there, so it is sent again to an inbox that it has filled.
    network.set_faults_towards(b.id(), a.id(), Faults { loss: 1.0, ..Faults::NONE });
    let sent = alice.send(&Draft::text(&b.address("bob"), "fits")).await.unwrap();
    record_when(&alice, sent.message_id, |record| record.recipients[0].attempts.len() > 1).await;
    network.heal();
    record_when(&alice, sent.message_id, |record| {
        attempts(&record.recipients[0]).contains(&"memory stored".to_owned())
    })
    .await;
    assert_eq!(take(&bob, 1).await[0].message_id, sent.message_id);
    record_with_status(&alice, sent.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_waits_for_what_ran_out_on_its_way() {
    let network = MemoryNetwork::new(1);
    let (a, b) = (node(&network, &[]).await, node(&network, &[]).await);
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let to_bob = b.address("bob");
    alice.send(&Draft::text(&to_bob, "first")).await.unwrap();
    take(&bob, 1).await;
    let slow = Duration::from_millis(1500);
    network.set_faults_towards(a.id(), b.id(), Faults { delay: (slow, slow), ..Faults::NONE });
    let brief = Draft { ttl: Some(1), ..Draft::text(&to_bob, "brief") };
    let brief = alice.send(&brief).await.unwrap();
    let last = alice.send(&Draft::text(&to_bob, "last")).await.unwrap();
    // Long before `--order-wait` is over.
    let shown = take(&bob, 1).await.remove(0);
    assert_eq!(shown.message_id, last.message_id);
    record_with_status(&alice, brief.message_id, "expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_has_room_waits_for_what_had_none() {
    let network = MemoryNetwork::new(1);
    let a = node(&network, &[]).await;
    // Room for 10 messages of 26 843 bytes in all.
    let b = node(&network, &["--sender-share=0.0001"]).await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let to_bob = b.address("bob");
    let first = alice.send(&Draft::text(&to_bob, "x".repeat(26_000))).await.unwrap();
    record_when(&alice, first.message_id, |record| {
        attempts(&record.recipients[0]).contains(&"memory stored".to_owned())
    })
    .await;
    // That it is refused is not heard, so what follows names it as its predecessor.
    network.set_faults_towards(b.id(), a.id(), Faults::SILENCE);
    let came = b.transport(0).status().envelopes_received;
    let second = alice.send(&Draft::text(&to_bob, "y".repeat(2000))).await.unwrap();
    until(|| b.transport(0).status().envelopes_received > came).await;
    alice.send(&Draft::text(&to_bob, "short")).await.unwrap();
    let shown = take(&bob, 2).await;
    assert_eq!(shown[1].content.as_deref(), Some("short"));
    assert!(!shown[1].gap && !shown[1].late);
    network.heal();
    // There is room by now, so it may come after all; out of turn.
    record_when(&alice, second.message_id, |record| record.status != "pending").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_nobody_can_carry_in_time_expires_and_is_not_shown_later() {
    let network = MemoryNetwork::new(1);
    let ([a, b], alice, bob) = pair_on(&network, &[]).await;
    network.set_faults(a.id(), b.id(), Faults::CUT);
    let draft = Draft { ttl: Some(1), ..Draft::text(&b.address("bob"), "now or never") };
    let late = alice.send(&draft).await.unwrap();
    record_with_status(&alice, late.message_id, "expired").await;
    network.heal();
    alice.send(&Draft::text(&b.address("bob"), "in time")).await.unwrap();
    let shown = take(&bob, 1).await;
    assert_eq!(shown[0].content.as_deref(), Some("in time"));
    assert!(!shown[0].gap, "what expired is passed over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_is_heard_once_by_whoever_listens_and_ends_as_sent() {
    let network = MemoryNetwork::new(1);
    let hearing = || MemoryOptions::default().with_broadcasts();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Node::start(database().await, &[(&network, hearing())], &[]).await);
    }
    let alice = nodes[0].register("alice").await;
    let neighbour = nodes[0].register("neighbour").await;
    let (bob, carol) = (nodes[1].register("bob").await, nodes[2].register("carol").await);
    let draft = Draft { ttl: Some(60), ..Draft::text("broadcast", "Flood!") };
    let sent = alice.send(&draft).await.unwrap();
    for listener in [&neighbour, &bob, &carol] {
        let shown = take(listener, 1).await.remove(0);
        assert_eq!((shown.message_id, shown.to.as_str()), (sent.message_id, "broadcast"));
        assert_eq!(shown.content.as_deref(), Some("Flood!"));
    }
    let record = record_when(&alice, sent.message_id, |record| {
        let of = |name: &str| record.recipients.iter().find(|one| one.recipient == name);
        of("transport:memory").is_some_and(|one| one.status == "sent")
            && of("neighbour").is_some_and(|one| one.status == "delivered")
    })
    .await;
    assert_eq!(record.recipients.len(), 2, "{record:?}");
    // What comes after it shows that nothing came twice.
    alice.send(&Draft::text(&nodes[1].address("bob"), "after")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_gateway_that_is_dark_arrives_when_it_returns() {
    let ([_a, mut b], alice, bob) = pair().await;
    b.stop().await;
    let mut sent = Vec::new();
    for number in 0..3 {
        let draft = Draft::text(&b.address("bob"), number.to_string());
        sent.push(alice.send(&draft).await.unwrap().message_id);
    }
    let record = record_when(&alice, sent[0], is_out_of_reach).await;
    assert_eq!(record.status, "pending");
    b.resume().await;
    let bob = b.client_of(&bob);
    let shown = take(&bob, 3).await;
    let texts: Vec<_> = shown.iter().filter_map(|one| one.content.as_deref()).collect();
    assert_eq!(texts, ["0", "1", "2"]);
    for (id, shown) in sent.into_iter().zip(shown) {
        let record = record_with_status(&alice, id, "delivered").await;
        let left_at = record.recipients[0].attempts[0].started_at;
        assert!(
            shown.sent_at < left_at,
            "shown as sent at {}, it left at {left_at}",
            shown.sent_at
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_waits_for_a_sender_that_is_dark() {
    let ([mut a, b], alice, bob) = pair().await;
    let sent = alice.send(&Draft::text(&b.address("bob"), "read me")).await.unwrap();
    let mut at_bob = bob.socket().await.unwrap();
    let shown = at_bob.expect_message().await;
    a.stop().await;
    at_bob.confirm_up_to(shown.seq).await.unwrap();
    drop(at_bob);
    a.resume().await;
    let alice = a.client_of(&alice);
    record_with_status(&alice, sent.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_is_lost_without_a_trace_is_said_again() {
    let network = MemoryNetwork::new(1);
    let ([a, b], alice, bob) = pair_on(&network, &[QUICK]).await;
    let sent = alice.send(&Draft::text(&b.address("bob"), "heard?")).await.unwrap();
    record_when(&alice, sent.message_id, |record| {
        attempts(&record.recipients[0]).contains(&"memory stored".to_owned())
    })
    .await;
    network.set_faults_towards(b.id(), a.id(), Faults::SILENCE);
    let lost = network.lost();
    take(&bob, 1).await;
    until(|| network.lost() > lost).await;
    network.heal();
    record_with_status(&alice, sent.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_can_withdraw_what_has_not_left() {
    let network = MemoryNetwork::new(1);
    let ([a, b], alice, bob) = pair_on(&network, &[]).await;
    network.set_faults(a.id(), b.id(), Faults::CUT);
    let sent = alice.send(&Draft::text(&b.address("bob"), "no, wait")).await.unwrap();
    // The first may still be on its way to a link that is just found cut; then it is too late.
    record_when(&alice, sent.message_id, is_out_of_reach).await;
    let path = format!("/v1/messages/{}", sent.message_id);
    alice.call::<()>(alice.request(reqwest::Method::DELETE, &path)).await.unwrap();
    network.heal();
    alice.send(&Draft::text(&b.address("bob"), "this one")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("this one"));
    record_with_status(&alice, sent.message_id, "cancelled").await;
}

fn is_out_of_reach(record: &Record) -> bool {
    record.recipients[0].reason.as_deref().is_some_and(|reason| reason.contains("out of reach"))
}

pub(crate) async fn database() -> String {
    Postgres::fresh_database().await
}

pub(crate) async fn node(network: &MemoryNetwork, options: &[&str]) -> Node {
    Node::start(database().await, &[(network, MemoryOptions::default())], options).await
}

/// Alice at one gateway and Bob at another, on a network without faults.
async fn pair() -> ([Node; 2], Client, Client) {
    pair_on(&MemoryNetwork::new(1), &[]).await
}

pub(crate) async fn pair_on(
    network: &MemoryNetwork,
    options: &[&str],
) -> ([Node; 2], Client, Client) {
    let (a, b) = (node(network, options).await, node(network, options).await);
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    ([a, b], alice, bob)
}

/// For tests in which something is silent. The others keep the default, which no slow machine
/// takes for silence.
pub(crate) const QUICK: &str = "--failover-timeout=500ms";

/// Waits for something that is sure to come.
pub(crate) async fn until(mut is_there: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + harness::client::PATIENCE;
    while !is_there() {
        assert!(tokio::time::Instant::now() < deadline, "it never came to that");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
