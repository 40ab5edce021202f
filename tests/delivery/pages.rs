//! What clients take from an inbox while others write to it, and what they say of it.

use harness::{Options, client::Draft, federation::record_with_status};
use reqwest::Method;
use serde_json::Value;
use tokio::task::JoinSet;

const SENDERS: u32 = 4;
const MESSAGES: u32 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_page_holds_no_more_than_was_asked_for_while_positions_are_given() {
    let gateway = Options::embedded().start().await;
    let bob = gateway.register("bob").await;
    // It has all there is, so messages get their positions as they are accepted.
    let mut socket = bob.socket().await.unwrap();
    let mut senders = JoinSet::new();
    for number in 0..SENDERS {
        let sender = gateway.register(&format!("sender-{number}")).await;
        senders.spawn(async move {
            for number in 0..MESSAGES {
                sender.send(&Draft::text("bob", format!("{number}"))).await.unwrap();
            }
        });
    }
    let reading = async {
        for _ in 0..SENDERS * MESSAGES {
            socket.expect_message().await;
        }
    };
    let polling = async {
        let mut pages = 0;
        while !senders.is_empty() {
            for limit in [2, 10, 40] {
                let page = bob.request(Method::GET, &format!("/v1/inbox?limit={limit}"));
                let page: Value = bob.call(page).await.unwrap();
                assert!(page["messages"].as_array().unwrap().len() <= limit, "{page}");
                pages += 1;
            }
            while let Some(sent) = senders.try_join_next() {
                sent.unwrap();
            }
        }
        pages
    };
    let ((), pages) = tokio::join!(reading, polling);
    assert!(pages > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_expired_unseen_is_not_delivered_by_a_word_on_what_came_after_it() {
    let gateway = Options::embedded().start().await;
    let (alice, bob) = (gateway.register("alice").await, gateway.register("bob").await);
    // Bob's first socket gets a message that runs out; then he comes back by polling.
    let mut socket = bob.socket().await.unwrap();
    let brief = || Draft { ttl: Some(1), ..Draft::text("bob", "brief") };
    let unseen = alice.send(&brief()).await.unwrap();
    socket.expect_message().await;
    drop(socket);
    record_with_status(&alice, unseen.message_id, "expired").await;
    let second = alice.send(&Draft::text("bob", "second")).await.unwrap();
    let page = bob.poll(None, 5).await.unwrap();
    assert_eq!(page.messages.len(), 1);
    bob.confirm_up_to(page.messages[0].seq).await.unwrap();
    record_with_status(&alice, second.message_id, "delivered").await;
    assert_eq!(alice.record(unseen.message_id).await.unwrap().status, "expired");

    // The same where the answer to a poll got lost.
    let lost = alice.send(&brief()).await.unwrap();
    assert_eq!(bob.poll(None, 5).await.unwrap().messages.len(), 1);
    record_with_status(&alice, lost.message_id, "expired").await;
    let next = alice.send(&Draft::text("bob", "next")).await.unwrap();
    let page = bob.poll(None, 5).await.unwrap();
    bob.confirm_up_to(page.messages[0].seq).await.unwrap();
    record_with_status(&alice, next.message_id, "delivered").await;
    assert_eq!(alice.record(lost.message_id).await.unwrap().status, "expired");

    // Over one socket it was given both, so its word holds for both.
    let mut socket = bob.socket().await.unwrap();
    let seen = alice.send(&brief()).await.unwrap();
    socket.expect_message().await;
    record_with_status(&alice, seen.message_id, "expired").await;
    alice.send(&Draft::text("bob", "fourth")).await.unwrap();
    let last = socket.expect_message().await;
    socket.confirm_up_to(last.seq).await.unwrap();
    record_with_status(&alice, seen.message_id, "delivered").await;
}
