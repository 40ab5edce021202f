//! What is only a hint may be lost, and what a client says before it goes or is sent away counts.

use harness::{Options, Postgres, client::Draft};

const WAITING: u64 = 40;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_wake_up_costs_time_and_no_message() {
    let postgres = Postgres::start().await;
    let url = postgres.create_database("two");
    // Replicas that do not wake each other.
    let first = Options::on(url.clone()).argument("--bus=local").start().await;
    let second = Options::on(url)
        .argument("--bus=local")
        .argument(format!("--master-key-file={}", first.folder().join("master.key").display()))
        .start()
        .await;
    let alice = first.register("alice").await;
    let bob = first.register("bob").await;
    let there = second.client().calling_as("bob", bob.token().map(str::to_owned));
    let mut socket = there.socket().await.unwrap();
    let sent = alice.send(&Draft::text("bob", "nobody told you")).await.unwrap();
    assert_eq!(socket.expect_message().await.message_id, sent.message_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_confirms_while_the_gateway_drains_is_not_shown_again() {
    let mut gateway = Options::embedded().argument("--drain=1s").start().await;
    let alice = gateway.register("alice").await;
    let bob = gateway.register("bob").await;
    for number in 0..WAITING {
        alice.send(&Draft::text("bob", format!("{number}"))).await.unwrap();
    }
    let mut socket = bob.socket().await.unwrap();
    for _ in 0..WAITING {
        socket.expect_message().await;
    }
    // The client is behind: it confirms one after the other, and the close frame waits unread.
    let confirming = async {
        for seq in 1..=WAITING {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            if socket.confirm_up_to(seq).await.is_err() {
                return seq - 1;
            }
        }
        WAITING
    };
    let (confirmed, ended) = tokio::join!(confirming, gateway.terminate());
    assert!(ended.success());
    gateway.resume().await;
    let bob = gateway.client().calling_as("bob", bob.token().map(str::to_owned));
    let left = bob.poll(None, 0).await.unwrap();
    let first_left = left.messages.first().map_or(WAITING + 1, |message| message.seq);
    // Written is not read: the last one may have met a closed socket.
    assert!(first_left + 1 >= confirmed, "{confirmed} were confirmed, {first_left} came again");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_confirms_vanishes_and_comes_back_at_once_is_not_shown_the_same_again() {
    let url = Postgres::fresh_database().await;
    let gateway = Options::on(url.clone()).start().await;
    let (alice, bob) = (gateway.register("alice").await, gateway.register("bob").await);
    Postgres::execute(&url, SLOW_CONFIRMATIONS);
    for life in 0..5 {
        let mut socket = bob.socket().await.unwrap();
        let sent = alice.send(&Draft::text("bob", format!("life {life}"))).await.unwrap();
        let shown = socket.expect_message().await;
        assert_eq!((shown.message_id, shown.seq), (sent.message_id, life + 1));
        socket.confirm_messages(&[shown.message_id]).await.unwrap();
        // Without a close frame: nobody hears whether the confirmation was taken.
        drop(socket);
    }
}

/// Longer than a client takes to come back.
const SLOW_CONFIRMATIONS: &str = "
    create function wait() returns trigger language plpgsql as
        $$ begin perform pg_sleep(0.3); return old; end $$;
    create trigger wait before delete on inbox for each row execute function wait();
";
