//! Promise 3: no message and no receipt of it over a transport that hides less than was asked.

use fieldpost_transport::{MemoryNetwork, MemoryOptions};
use harness::{
    client::Draft,
    federation::{Node, attempts, record_when, record_with_status, take},
};

use crate::federation::{database, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_private_message_waits_for_its_level_and_says_why() {
    let network = MemoryNetwork::new(1);
    let a = Node::start(database().await, &[(&network, low_for_now())], &[]).await;
    let b = Node::start(database().await, &[(&network, high())], &[]).await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let draft = Draft { min_anonymity: Some(3), ..Draft::text(&b.address("bob"), "in secret") };
    let secret = alice.send(&draft).await.unwrap().message_id;
    let record = record_when(&alice, secret, |record| record.recipients[0].reason.is_some()).await;
    assert_eq!(record.status, "pending");
    let reason = record.recipients[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("level 0 now, the message needs 3"), "{reason}");
    assert_eq!(attempts(&record.recipients[0]), <[String; 0]>::default());

    // Another lane is not held up by it.
    alice.send(&Draft::text(&b.address("bob"), "in the open")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("in the open"));

    a.transport(0).set_level(3);
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("in secret"));
    record_with_status(&alice, secret, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_of_a_private_message_wait_for_its_level_too() {
    let network = MemoryNetwork::new(1);
    let a = Node::start(database().await, &[(&network, high())], &[]).await;
    let b = Node::start(database().await, &[(&network, low_for_now())], &[]).await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let draft = Draft { min_anonymity: Some(3), ..Draft::text(&b.address("bob"), "in secret") };
    let secret = alice.send(&draft).await.unwrap().message_id;
    take(&bob, 1).await;
    // An answer in the open shows that the way back works for what may use it.
    bob.send(&Draft::text(&a.address("alice"), "got it")).await.unwrap();
    take(&alice, 1).await;
    // What carried it may be written down after bob has it, but no receipt may have come.
    let record = record_with_status(&alice, secret, "sent").await;
    assert!(!attempts(&record.recipients[0]).contains(&"memory stored".to_owned()));

    b.transport(0).set_level(3);
    record_with_status(&alice, secret, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_transports_only_the_one_that_hides_enough_is_used() {
    let (open, hidden) = (MemoryNetwork::new(1), MemoryNetwork::new(2));
    let both = || {
        [
            (&open, MemoryOptions::named("open")),
            (&hidden, MemoryOptions::named("hidden").with_level(3)),
        ]
    };
    let a = Node::start(database().await, &both(), PREFER_OPEN).await;
    let b = Node::start(database().await, &both(), PREFER_OPEN).await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    for (level, transport) in [(0, "open"), (3, "hidden")] {
        let draft =
            Draft { min_anonymity: Some(level), ..Draft::text(&b.address("bob"), "either way") };
        let sent = alice.send(&draft).await.unwrap().message_id;
        take(&bob, 1).await;
        let record = record_with_status(&alice, sent, "delivered").await;
        let expected = [format!("{transport} sent"), format!("{transport} stored")];
        assert_eq!(attempts(&record.recipients[0]), expected);
    }
    // Receipts of the open message came over the open network, and none over it for the other.
    let status = |node: &Node| fieldpost_transport::Transport::status(node.transport(0));
    assert_eq!(status(&a).envelopes_sent, 2, "one message, one answer to `delivered`");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_about_a_private_message_crosses_an_open_network_while_it_waits() {
    let (open, hidden) = (MemoryNetwork::new(1), MemoryNetwork::new(2));
    let both = || {
        [
            (&open, MemoryOptions::named("open")),
            (&hidden, MemoryOptions::named("hidden").with_level(3)),
        ]
    };
    let a = Node::start(database().await, &both(), PREFER_OPEN).await;
    let b = Node::start(database().await, &both(), PREFER_OPEN).await;
    let c = Node::start(database().await, &both(), PREFER_OPEN).await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = c.register("carol").await;
    a.transport(1).set_up(false);

    let draft = Draft { requires_privacy: Some(true), ..Draft::text(&b.address("bob"), "psst") };
    let secret = alice.send(&draft).await.unwrap().message_id;
    let record = record_when(&alice, secret, |record| record.recipients[0].reason.is_some()).await;
    assert_eq!(record.status, "pending");
    let reason = record.recipients[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("hidden: does not reach the recipient now"), "{reason}");

    // Meanwhile the open network carries what may use it, and keeps that link warm.
    alice.send(&Draft::text(&c.address("carol"), "hello")).await.unwrap();
    take(&carol, 1).await;
    until(|| a.transport(0).kept_warm().contains(&c.id())).await;
    assert!(!a.transport(0).kept_warm().contains(&b.id()), "a warm link tells of the message");
    assert_eq!(alice.record(secret).await.unwrap().status, "pending");

    a.transport(1).set_up(true);
    assert_eq!(take(&bob, 1).await[0].message_id, secret);
    let record = record_with_status(&alice, secret, "delivered").await;
    assert_eq!(attempts(&record.recipients[0]), ["hidden sent", "hidden stored"]);
    until(|| a.transport(1).kept_warm().contains(&b.id())).await;
    let crossed = [open.carried(a.id(), b.id()), open.carried(b.id(), a.id())];
    assert_eq!(crossed, [0, 0], "message or receipt crossed the open network");
    assert!(!a.transport(0).kept_warm().contains(&b.id()));
    assert!(!b.transport(0).kept_warm().contains(&a.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_transport_can_ever_hide_enough_is_refused_at_once() {
    let network = MemoryNetwork::new(1);
    let a = Node::start(database().await, &[(&network, MemoryOptions::default())], &[]).await;
    let alice = a.register("alice").await;
    let draft = Draft { min_anonymity: Some(1), ..Draft::text(&a.address("x"), "?") };
    let elsewhere = Draft { to: format!("bob@{}", "a".repeat(52)), ..draft };
    assert_eq!(alice.send(&elsewhere).await.unwrap_err().status(), Some(422));
}

const PREFER_OPEN: &[&str] = &["--transport-priority=open,hidden"];

/// Declares level 0, and may come to declare 3.
fn low_for_now() -> MemoryOptions {
    let mut options = MemoryOptions::default();
    options.capabilities.best_anonymity_level = 3;
    options
}

fn high() -> MemoryOptions {
    MemoryOptions::default().with_level(3)
}
