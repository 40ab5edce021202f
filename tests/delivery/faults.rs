//! What the network does wrong, seeded, and what the promises make of it.

use std::time::Duration;

use fieldpost_transport::{Faults, MemoryNetwork, MemoryOptions};
use harness::{
    Client, Recorder,
    client::Draft,
    federation::{Node, attempts, record_when, record_with_status, take},
    history::{Confirm, Confirmed, DeliveryReport, Event, Outcome, Report, Send, Shown},
    seed,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;
use uuid::Uuid;

use crate::federation::{QUICK, database, pair_on, until};

#[tokio::test(flavor = "multi_thread")]
async fn loss_delay_and_copies_break_no_promise() {
    let seed = seed();
    eprintln!("seed {seed}");
    let network = MemoryNetwork::new(seed);
    let ([a, b], alice, bob) = pair_on(&network, &[QUICK]).await;
    let faults = Faults {
        loss: 0.1,
        duplication: 0.3,
        delay: (Duration::from_millis(1), Duration::from_millis(60)),
        ..Faults::NONE
    };
    network.set_faults(a.id(), b.id(), faults);
    let recorder = Recorder::default();
    let talk = |from: &Node, to: &Node, client: &Client, other: &str| Talk {
        recorder: recorder.clone(),
        sender: from.address(client.peer()),
        recipient: to.address(other),
        client: client.clone(),
    };
    let (fro, back) = (talk(&a, &b, &alice, "bob"), talk(&b, &a, &bob, "alice"));
    let (sent, answered, _, _) = tokio::join!(
        fro.send(COUNT),
        back.send(COUNT),
        listen(&recorder, &b, &bob, COUNT),
        listen(&recorder, &a, &alice, COUNT),
    );
    for (talk, ids) in [(&fro, sent), (&back, answered)] {
        for id in ids {
            talk.report_when_confirmed(id).await;
        }
    }
    assert!(network.lost() > 0, "the network lost nothing");
    recorder.finish(true).assert_clean(seed);
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_on_both_sides_lose_and_double_nothing() {
    let seed = seed();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let network = MemoryNetwork::new(seed);
    let ([mut a, mut b], alice, bob) = pair_on(&network, &[QUICK]).await;
    let faults = Faults { duplication: 0.2, delay: (Duration::ZERO, MOMENT), ..Faults::NONE };
    network.set_faults(a.id(), b.id(), faults);
    let recorder = Recorder::default();
    let mut talk = Talk {
        recorder: recorder.clone(),
        sender: a.address("alice"),
        recipient: b.address("bob"),
        client: alice,
    };
    let mut sent = Vec::new();
    for round in 0..4 {
        sent.extend(talk.send(COUNT / 2).await);
        // Somewhere between the first send and the last receipt.
        tokio::time::sleep(rng.random_range(Duration::ZERO..4 * MOMENT)).await;
        let crashed = if round % 2 == 0 { &mut a } else { &mut b };
        crashed.crash();
        crashed.resume().await;
        talk.client = a.client_of(&talk.client);
    }
    listen(&recorder, &b, &b.client_of(&bob), sent.len()).await;
    for id in sent {
        talk.report_when_confirmed(id).await;
    }
    recorder.finish(true).assert_clean(seed);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_partition_everything_arrives_once_and_in_order() {
    let network = MemoryNetwork::new(1);
    let ([a, b], alice, bob) = pair_on(&network, &[QUICK]).await;
    let mut sent = Vec::new();
    for round in 0..4 {
        // One that both notice, then one that nobody notices.
        let faults = if round % 2 == 0 { Faults::CUT } else { Faults::SILENCE };
        network.set_faults(a.id(), b.id(), faults);
        for number in 0..5 {
            let draft = Draft::text(&b.address("bob"), format!("{round}.{number}"));
            sent.push(alice.send(&draft).await.unwrap().message_id);
        }
        network.heal();
    }
    let texts: Vec<_> = take(&bob, 20).await.into_iter().filter_map(|one| one.content).collect();
    let expected: Vec<_> = (0..20).map(|number| format!("{}.{}", number / 5, number % 5)).collect();
    assert_eq!(texts, expected);
    for id in sent {
        record_with_status(&alice, id, "delivered").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_moves_on_to_the_next_transport_after_the_time_out() {
    let (first, second, [a, b], alice, bob) =
        two_ways_with(&["--transport-priority=first,second", QUICK]).await;
    first.set_faults(a.id(), b.id(), Faults::SILENCE);
    let sent = alice.send(&Draft::text(&b.address("bob"), "anyway")).await.unwrap().message_id;
    take(&bob, 1).await;
    let record = record_with_status(&alice, sent, "delivered").await;
    let tried = attempts(&record.recipients[0]);
    assert_eq!(tried[..2], ["first sent", "first silent"], "{tried:?}");
    assert!(tried.contains(&"second stored".to_owned()), "{tried:?}");
    assert_eq!(second.lost(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_that_is_known_to_be_cut_costs_no_attempt() {
    let (first, _, [a, b], alice, bob) = two_ways().await;
    first.set_faults(a.id(), b.id(), Faults::CUT);
    let sent = alice.send(&Draft::text(&b.address("bob"), "round")).await.unwrap().message_id;
    take(&bob, 1).await;
    let record = record_with_status(&alice, sent, "delivered").await;
    assert_eq!(attempts(&record.recipients[0]), ["second sent", "second stored"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_failover_only_the_first_transport_is_tried() {
    let options = ["--failover=off", "--transport-priority=first,second", QUICK];
    let (first, second, [a, b], alice, bob) = two_ways_with(&options).await;
    first.set_faults(a.id(), b.id(), Faults::SILENCE);
    let sent = alice.send(&Draft::text(&b.address("bob"), "patience")).await.unwrap().message_id;
    record_when(&alice, sent, |record| {
        attempts(&record.recipients[0]).iter().filter(|tried| *tried == "first silent").count() > 0
    })
    .await;
    first.heal();
    take(&bob, 1).await;
    record_with_status(&alice, sent, "delivered").await;
    assert_eq!(second.lost(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn critical_messages_take_all_ways_at_once_and_are_shown_once() {
    let (first, second, [_a, b], alice, bob) = two_ways().await;
    let draft = Draft {
        priority: Some("critical".to_owned()),
        ..Draft::text(&b.address("bob"), "everything at once")
    };
    let sent = alice.send(&draft).await.unwrap().message_id;
    let after = alice.send(&Draft::text(&b.address("bob"), "after")).await.unwrap().message_id;
    let shown: Vec<_> = take(&bob, 2).await.into_iter().map(|one| one.message_id).collect();
    assert!(shown.contains(&sent) && shown.contains(&after), "{shown:?}");
    let record = record_with_status(&alice, sent, "delivered").await;
    let tried = attempts(&record.recipients[0]);
    assert!(tried.contains(&"first sent".to_owned()), "{tried:?}");
    assert!(tried.contains(&"second sent".to_owned()), "{tried:?}");
    assert_eq!((first.lost(), second.lost()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_predecessor_is_waited_for_and_then_passed_with_a_mark() {
    let network = MemoryNetwork::new(1);
    let ([a, b], alice, bob) = pair_on(&network, &["--order-wait=1s", QUICK]).await;
    network.set_faults_towards(a.id(), b.id(), Faults::SILENCE);
    let missing = alice.send(&Draft::text(&b.address("bob"), "first")).await.unwrap().message_id;
    until(|| network.lost() > 0).await;
    // The retry of the first stays away for as long as its transport is in doubt.
    let second = alice.send(&Draft::text(&b.address("bob"), "second")).await.unwrap().message_id;
    network.heal();
    let shown = take(&bob, 2).await;
    let first = shown.iter().find(|one| one.message_id == missing).expect("it comes");
    let other = shown.iter().find(|one| one.message_id == second).expect("it comes");
    // Either the first came in time, or both carry their marks.
    assert_eq!(other.gap, first.late, "{shown:?}");
    assert_eq!(first.seq < other.seq, !first.late, "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_silent_holds_up_no_other() {
    let network = MemoryNetwork::new(1);
    let ([a, b], alice, bob) = pair_on(&network, &["--failover-timeout=30s"]).await;
    let c = crate::federation::node(&network, &[]).await;
    c.register("carol").await;
    network.set_faults(a.id(), c.id(), Faults::SILENCE);
    for number in 0..100 {
        alice.send(&Draft::text(&c.address("carol"), number.to_string())).await.unwrap();
    }
    until(|| network.lost() >= 32).await;
    for number in 0..20 {
        alice.send(&Draft::text(&b.address("bob"), number.to_string())).await.unwrap();
    }
    assert_eq!(take(&bob, 20).await.len(), 20);
}

/// Messages in each direction.
const COUNT: usize = 20;
/// About as long as a hop with a delay takes.
const MOMENT: Duration = Duration::from_millis(60);

/// One lane, and what its sender writes down.
struct Talk {
    recorder: Recorder,
    sender: String,
    recipient: String,
    client: Client,
}

impl Talk {
    async fn send(&self, count: usize) -> Vec<Uuid> {
        let mut sent = Vec::new();
        for number in 0..count {
            let draft = Draft::text(&self.recipient, format!("{} {number}", self.sender));
            let invoked = self.recorder.now();
            let accepted = self.client.send(&draft).await.expect("a message is accepted");
            self.recorder.add(Event::Send(Send {
                sender: self.sender.clone(),
                message: accepted.message_id,
                recipients: vec![self.recipient.clone()],
                content: draft.content,
                min_anonymity: 0,
                ordered: true,
                ttl: 7 * 86_400 * 1_000_000,
                invoked,
                completed: self.recorder.now(),
                outcome: Outcome::Done,
            }));
            sent.push(accepted.message_id);
        }
        sent
    }

    async fn report_when_confirmed(&self, message: Uuid) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let invoked = self.recorder.now();
            let record = self.client.record(message).await.expect("a sender may ask");
            let is_confirmed = record.status == "delivered";
            assert!(is_confirmed || Instant::now() < deadline, "no receipt came: {record:?}");
            if !is_confirmed {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            let deliveries = record
                .recipients
                .into_iter()
                .map(|one| DeliveryReport {
                    recipient: one.recipient,
                    status: one.status,
                    transports: one.attempts.into_iter().map(|tried| tried.transport).collect(),
                })
                .collect();
            self.recorder.add(Event::Report(Report {
                sender: self.sender.clone(),
                message,
                deliveries,
                invoked,
                completed: self.recorder.now(),
                unknown: false,
            }));
            return;
        }
    }
}

/// With a tenth lost, a message or its receipt may need several rounds of back-off.
const PATIENCE: Duration = Duration::from_secs(180);

/// Takes so many messages, confirming each page, and a moment more in case something comes twice.
async fn listen(recorder: &Recorder, node: &Node, client: &Client, count: usize) {
    let peer = node.address(client.peer());
    let deadline = Instant::now() + PATIENCE;
    let mut seen = 0;
    loop {
        let (stream, opened) = (recorder.new_stream(), recorder.now());
        let page = client.poll(None, 1).await.expect("the inbox can be read");
        if page.messages.is_empty() && seen >= count {
            return;
        }
        seen += page.messages.len();
        for shown in &page.messages {
            recorder.add(Event::Shown(Shown {
                peer: peer.clone(),
                seq: shown.seq,
                message: shown.message_id,
                sender: shown.from.clone(),
                content: shown.content.clone().unwrap_or_default(),
                gap: shown.gap,
                late: shown.late,
                stream,
                opened,
                at: recorder.now(),
            }));
        }
        if let Some(last) = page.messages.last() {
            let invoked = recorder.now();
            client.confirm_up_to(last.seq).await.expect("what was shown can be confirmed");
            recorder.add(Event::Confirm(Confirm {
                peer: peer.clone(),
                what: Confirmed::UpTo(last.seq),
                invoked,
                completed: recorder.now(),
                outcome: Outcome::Done,
            }));
        }
        assert!(Instant::now() < deadline, "{seen} of {count} messages came");
    }
}

/// Two gateways on two networks, the first preferred.
async fn two_ways() -> (MemoryNetwork, MemoryNetwork, [Node; 2], Client, Client) {
    two_ways_with(&["--transport-priority=first,second"]).await
}

async fn two_ways_with(
    options: &[&str],
) -> (MemoryNetwork, MemoryNetwork, [Node; 2], Client, Client) {
    let (first, second) = (MemoryNetwork::new(1), MemoryNetwork::new(2));
    let both = [(&first, MemoryOptions::named("first")), (&second, MemoryOptions::named("second"))];
    let a = Node::start(database().await, &both, options).await;
    let b = Node::start(database().await, &both, options).await;
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    (first, second, [a, b], alice, bob)
}
