//! Recipients whose storage is full: they alone miss a message to many, and its sender is told.

use fieldpost_transport::{MemoryNetwork, MemoryOptions};
use harness::{
    Client, Frame,
    client::{Accepted, DeliveryRecord, Draft, PATIENCE, Record},
    federation::{Node, record_when, record_with_status, take},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use crate::{
    federation::{database, node},
    remote_groups::{World, add, until},
};

/// Room for one message of each sender.
const NARROW: &str = "--sender-share=0.00001";

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_storage_is_full_misses_a_message_to_the_group_alone() {
    let home = node(&MemoryNetwork::new(1), &[NARROW]).await;
    let alice = home.register("alice").await;
    let (bob, carol) = (home.register("bob").await, home.register("carol").await);
    let made = alice.request(Method::POST, "/v1/groups").json(&json!({ "name": "Hikers" }));
    let made: Value = alice.call(made).await.unwrap();
    let group = made["id"].as_str().unwrap();
    add(&alice, group, "bob").await;
    add(&alice, group, "carol").await;
    let to = format!("group:{group}");
    alice.send(&Draft::text("bob", "fills it")).await.unwrap();

    let mut at_alice = alice.socket().await.unwrap();
    let sent = alice.send(&Draft::text(&to, "up the hill")).await.unwrap();
    assert_eq!(sent.status, "pending");
    let Frame::Receipt { message_id, recipient, status, reason, .. } = at_alice.expect().await
    else {
        panic!("the sender is told who misses it");
    };
    assert_eq!((message_id, recipient.as_str()), (sent.message_id, "bob"));
    assert_eq!(status, "failed");
    assert!(reason.unwrap_or_default().contains("share of the storage for bob"));
    let record = alice.record(sent.message_id).await.unwrap();
    assert_eq!((record.status.as_str(), states(&record).as_slice()), ("pending", &FAILED[..]));
    let failed = of(&record, "bob");
    assert!(failed.reason.as_deref().unwrap_or_default().contains("share of the storage for bob"));
    assert!(failed.attempts.is_empty(), "nothing was tried: {failed:?}");

    // Now it is full for both, so nobody would have it.
    let refused = alice.send(&Draft::text(&to, "nobody")).await.unwrap_err();
    assert_eq!(refused.status(), Some(507));
    assert_eq!(take(&carol, 1).await[0].message_id, sent.message_id);
    let has_it = |record: &Record| of(record, "carol").status == "delivered";
    let record = record_when(&alice, sent.message_id, has_it).await;
    assert_eq!((of(&record, "bob").status.as_str(), record.status.as_str()), ("failed", "failed"));
    // Bob has what had room, and what came after; what he missed is not in his history either.
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("fills it"));
    assert_eq!(bob.record(sent.message_id).await.unwrap_err().status(), Some(404));
    let talk = bob.request(Method::GET, &format!("/v1/messages?with={to}"));
    let talk: Value = bob.call(talk).await.unwrap();
    assert_eq!(talk["messages"], json!([]));
    alice.send(&Draft::text(&to, "down again")).await.unwrap();
    for member in [&bob, &carol] {
        assert_eq!(take(member, 1).await[0].content.as_deref(), Some("down again"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_missed_can_be_sent_again_and_withdrawn() {
    let home = node(&MemoryNetwork::new(1), &[NARROW]).await;
    let alice = home.register("alice").await;
    let (bob, carol) = (home.register("bob").await, home.register("carol").await);
    alice.send(&Draft::text("bob", "fills it")).await.unwrap();
    let draft = Draft::text("broadcast", "hear");
    let sent = alice.send(&draft).await.unwrap();
    let record = alice.record(sent.message_id).await.unwrap();
    assert_eq!((record.status.as_str(), states(&record).as_slice()), ("pending", &FAILED[..]));
    // The same again is the same, and reserves nothing: carol's room is given back once.
    let again = alice.send(&draft).await.unwrap();
    assert_eq!(again.message_id, sent.message_id);
    let path = format!("/v1/messages/{}", sent.message_id);
    alice.call::<()>(alice.request(Method::DELETE, &path)).await.unwrap();
    let record = record_when(&alice, sent.message_id, |record| record.status != "pending").await;
    let expected = [("bob", "failed"), ("carol", "cancelled")];
    assert_eq!(states(&record), expected);
    // A message to one peer is refused as a whole.
    let refused = alice.send(&Draft::text("bob", "too much")).await.unwrap_err();
    assert_eq!(refused.status(), Some(507));
    // Room would not help whoever uses an id twice.
    let other = Draft { message_id: draft.message_id, ..Draft::text("bob", "too much") };
    assert_eq!(alice.send(&other).await.unwrap_err().status(), Some(409));
    // Room that was given back is found by counting again, every two seconds at most.
    until(|| async { alice.send(&Draft::text("carol", "hello")).await.is_ok() }).await;
    assert_eq!(take(&carol, 1).await[0].content.as_deref(), Some("hello"));
    assert_eq!(take(&bob, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_hears_its_members_elsewhere_though_one_of_it_is_full() {
    let world = World::new(&[NARROW]).await;
    let World { home, there, alice, bob, group, .. } = &world;
    let carol = home.register("carol").await;
    add(alice, group, "carol").await;
    world.join(bob, there).await;
    let fill = bob.send(&Draft::text(&home.address("carol"), "fills it")).await.unwrap();
    record_with_status(bob, fill.message_id, "sent").await;
    until_shown(&carol).await;
    let sent = bob.send(&Draft::text(&world.address(), "for those with room")).await.unwrap();
    assert_eq!(take(alice, 1).await[0].content.as_deref(), Some("for those with room"));
    record_with_status(bob, sent.message_id, "delivered").await;
    assert_eq!(take(&carol, 1).await[0].content.as_deref(), Some("fills it"));
    assert_eq!(carol.record(sent.message_id).await.unwrap_err().status(), Some(404));
    // With nobody left who has room it is refused, and keeps nothing that follows waiting.
    let held = send(bob, &home.address("carol"), "fills it again").await;
    record_with_status(bob, held.message_id, "sent").await;
    until_shown(&carol).await;
    let held = send(bob, &home.address("alice"), "and here").await;
    record_with_status(bob, held.message_id, "sent").await;
    until_shown(alice).await;
    let sent = send(bob, &world.address(), "nobody").await;
    let record = record_with_status(bob, sent.message_id, "failed").await;
    let reason = record.recipients[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("all members is full"), "{reason}");
    take(&carol, 1).await;
    take(alice, 1).await;
    send(bob, &world.address(), "all of you").await;
    for member in [alice, &carol] {
        let shown = take(member, 1).await.remove(0);
        assert_eq!((shown.content.as_deref(), shown.gap), (Some("all of you"), false));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_goes_over_the_air_though_everybody_here_is_full() {
    let network = MemoryNetwork::new(1);
    let hearing = || MemoryOptions::default().with_broadcasts();
    let home = Node::start(database().await, &[(&network, hearing())], &[NARROW]).await;
    let there = Node::start(database().await, &[(&network, hearing())], &[]).await;
    let carol = there.register("carol").await;
    let (alice, _bob) = (home.register("alice").await, home.register("bob").await);
    alice.send(&Draft::text("bob", "fills it")).await.unwrap();
    let sent = alice.send(&Draft::text("broadcast", "hear")).await.unwrap();
    let record = record_when(&alice, sent.message_id, |record| record.status == "sent").await;
    assert_eq!(of(&record, "bob").status, "failed");
    assert_eq!(take(&carol, 1).await[0].content.as_deref(), Some("hear"));
}

const FAILED: [(&str, &str); 2] = [("bob", "failed"), ("carol", "pending")];

fn states(record: &Record) -> Vec<(&str, &str)> {
    record.recipients.iter().map(|one| (one.recipient.as_str(), one.status.as_str())).collect()
}

fn of<'a>(record: &'a Record, name: &str) -> &'a DeliveryRecord {
    record.recipients.iter().find(|one| one.recipient == name).unwrap()
}

/// Sends something once what was sent before has made room at the sender's own gateway, which hears
/// of it a moment later.
async fn send(client: &Client, to: &str, text: &str) -> Accepted {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.send(&Draft::text(to, text)).await {
            Ok(accepted) => return accepted,
            Err(full) if full.status() == Some(507) && Instant::now() < deadline => {
                sleep(Duration::from_millis(50)).await;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Waits until something lies in an inbox, and leaves it there.
async fn until_shown(client: &Client) {
    until(|| async { !client.poll(None, 1).await.unwrap().messages.is_empty() }).await;
}
