//! The story of design section 9, over the transports that it is about: three gateways and three
//! relays as processes of the program, HTX between A and B, and a simulated air in which C stands
//! between them. Exit code 1 if a promise broke.

mod internet;
mod lane;
mod stage;
mod timeline;

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use harness::{Client, History, check, lab::Lab};
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    lane::{Lane, Listening, is_stored},
    stage::{EPOCH, FAILOVER_TIMEOUT, Stage, get, route_when, transports},
    timeline::Timeline,
};

/// The longest that the whole story may take.
const LONGEST: Duration = Duration::from_secs(600);
/// The longest that one step of it may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at something that is to change.
const LOOK: Duration = Duration::from_millis(50);
const HTX: &str = "htx";
const BLE: &str = "ble";
const TEXTS: [&str; 3] =
    ["The bridge at the mill is open.", "The net is down. Can you still hear me?", "Sleep well."];
const SECRET: &str = "Nobody may know that I write to you.";
const PRIVATE: u8 = 3;

#[tokio::main]
async fn main() -> ExitCode {
    let timeline = Arc::new(Timeline::begin());
    let telling = tokio::spawn({
        let timeline = timeline.clone();
        async move { tell(&timeline).await }
    });
    let aborted = telling.abort_handle();
    let violations = match timeout(LONGEST, telling).await {
        Ok(Ok(history)) => check(&history),
        // What it was stands above, by the panic's own words.
        Ok(Err(_)) => {
            timeline.broken("the story stopped in the middle");
            Vec::new()
        }
        Err(_) => {
            aborted.abort();
            timeline.broken(&format!("the story did not end within {LONGEST:?}"));
            Vec::new()
        }
    };
    timeline.verdict(&violations)
}

/// Plays the story and returns what clients saw.
async fn tell(timeline: &Timeline) -> History {
    timeline.say(
        "",
        "Three relays and the gateways A, B and C start, each with a database of its own.",
    );
    timeline.add(&format!(
        "A lab: the relay directory's epochs are {EPOCH} long, and relays do not delay packets, so that"
    ));
    timeline
        .add("level 3 is declared for the story alone. The radios are an air that is simulated.");
    let mut stage = Stage::set().await;
    let (alice, bob) = (stage.a.register("alice").await, stage.b.register("bob").await);
    let carol = stage.c.register("carol").await;
    let (sender, recipient) = (Lab::address(&alice).await, Lab::address(&bob).await);
    for client in [&alice, &bob, &carol] {
        let address = Lab::address(client).await;
        let (peer, gateway) = address.split_once('@').expect("it has a gateway");
        let name = stage_name(peer);
        timeline.say(name, &format!("runs, with {peer}: gateway {}….", &gateway[..12]));
    }
    meet(timeline, &alice, &recipient).await;
    meet(timeline, &bob, &sender).await;
    let levels = levels(&alice).await;
    let mut at_alice = alice.socket().await.expect("alice can listen");
    let lane = Lane { timeline, alice, sender, recipient, sent: Mutex::default() };

    let mut at_bob = Listening::begin(timeline, &bob, &lane.recipient).await;
    let first = over_the_mixnet(&stage, &lane, &mut at_bob).await;
    stage.internet.cut();
    timeline
        .say("", "The internet is cut: nothing gets to or from the mixnet, and nobody is told.");
    timeline.add(&format!("A transport that is silent is given up after {FAILOVER_TIMEOUT}."));
    let second = past_a_hop(&lane, &mut at_bob).await;
    let relayed = stage.relayed_by_c().await;
    timeline.say("C", &format!("stands between them, and has passed on {relayed} packets so far."));
    let secret = fails_closed(&lane).await;
    stage.b.kill();
    timeline.say("B", "goes dark: killed by SIGKILL. Bob had confirmed nothing yet.");
    let third = lane.send(TEXTS[2], 0).await;
    waits(&lane, third).await;

    stage.b.resume().await;
    timeline.say("B", "is back, on the same database. The internet is still cut.");
    let sent = [first, second, third];
    let mut at_bob = all_three(&lane, &bob, &mut at_alice, sent).await;

    stage.internet.restore();
    timeline.say("", "The internet is back.");
    arrives_in_private(&lane, &mut at_bob, &mut at_alice, secret).await;
    for message in [first, second, third, secret] {
        lane.report(message).await;
    }
    let nothing = carol.poll(None, 0).await.expect("carol may look");
    timeline.promise(nothing.messages.is_empty(), || "carol was shown what was not for her".into());
    let mut history = timeline.recorder.finish(true);
    history.levels = levels;
    timeline.say("", "A, B and C stop.");
    stage.end().await;
    history
}

fn stage_name(peer: &str) -> &'static str {
    match peer {
        "alice" => "A",
        "bob" => "B",
        _ => "C",
    }
}

/// Waits until a message could go over both transports, and says in which order and why.
async fn meet(timeline: &Timeline, client: &Client, to: &str) {
    let both = |route: &Value| transports(&route["places"]).len() == 2;
    let route = route_when(client, to, 0, both).await;
    let (from, to) = (client.peer(), to.split('@').next().unwrap_or_default());
    timeline.say(stage_name(from), &format!("reaches {to}'s gateway in two ways:"));
    for (transport, reason) in transports(&route["places"]) {
        timeline.add(&format!("{transport} ({reason})"));
    }
}

/// What each transport declares, for the judge.
async fn levels(client: &Client) -> BTreeMap<String, u8> {
    let known = get(client, "/v1/transports").await;
    let all = known["transports"].as_array().into_iter().flatten();
    let level = |one: &Value| u8::try_from(one["anonymity_level"].as_u64()?).ok();
    all.filter_map(|one| Some((one["name"].as_str()?.to_owned(), level(one)?))).collect()
}

async fn over_the_mixnet(stage: &Stage, lane: &Lane<'_>, at_bob: &mut Listening<'_>) -> Uuid {
    let timeline = lane.timeline;
    let before = stage.packets().await;
    let first = lane.send(TEXTS[0], 0).await;
    at_bob.take(1).await;
    lane.carried_by(first, HTX).await;
    let passed = stage.packets_after(&before).await;
    timeline.say("", &format!("The three relays have passed on {passed:?} packets meanwhile."));
    first
}

async fn past_a_hop(lane: &Lane<'_>, at_bob: &mut Listening<'_>) -> Uuid {
    let second = lane.send(TEXTS[1], 0).await;
    at_bob.take(1).await;
    let delivery = lane.carried_by(second, BLE).await;
    let mut over_ble = delivery.attempts.iter().filter(|it| it.transport == BLE);
    lane.timeline.promise(over_ble.any(|it| it.hops == Some(2)), || {
        "A and B are out of each other's reach, so it should have been two hops".into()
    });
    second
}

/// What asks for more privacy than the air has waits, and says why.
async fn fails_closed(lane: &Lane<'_>) -> Uuid {
    let timeline = lane.timeline;
    let secret = lane.send(SECRET, PRIVATE).await;
    let tried = lane.delivery_when(secret, |one| {
        one.reason.is_some() || one.attempts.iter().any(|it| it.result != "sent")
    });
    let delivery = tried.await;
    let why = delivery.reason.as_deref().unwrap_or("no receipt comes");
    timeline.say("A", &format!("keeps it ({why}), though B is in range of the radio:"));
    timeline.attempts(&delivery);
    let route = route_when(&lane.alice, &lane.recipient, PRIVATE, |_| true).await;
    let ruled_out = transports(&route["ruled_out"]);
    for (transport, reason) in &ruled_out {
        timeline.add(&format!("ruled out: {transport} {reason}"));
    }
    timeline.promise(ruled_out.iter().any(|(transport, _)| transport == BLE), || {
        "ble should be ruled out for a message of level 3".into()
    });
    secret
}

/// B is gone without a word, so A tries, hears nothing, and keeps the message.
async fn waits(lane: &Lane<'_>, message: Uuid) {
    let kept = lane.delivery_when(message, |one| {
        one.status == "pending"
            && (one.reason.is_some() || one.attempts.iter().any(|it| it.result == "silent"))
    });
    let delivery = kept.await;
    let why = delivery.reason.as_deref().unwrap_or("nothing is heard of B");
    lane.timeline.say("A", &format!("keeps it: {} ({why}).", delivery.status));
    lane.timeline.attempts(&delivery);
}

/// Bob has all three, in order, once each; alice is told.
async fn all_three<'a>(
    lane: &Lane<'a>,
    bob: &Client,
    at_alice: &mut harness::Socket,
    sent: [Uuid; 3],
) -> Listening<'a> {
    let timeline = lane.timeline;
    let mut at_bob = Listening::begin(timeline, bob, &lane.recipient).await;
    at_bob.take(sent.len()).await;
    at_bob.take_the_rest().await;
    timeline.promise(at_bob.ids() == sent, || {
        format!("bob should have all three in order, once each, but has {:?}", at_bob.ids())
    });
    lane.carried_by(sent[2], BLE).await;
    at_bob.confirm(false).await;
    lane.receipts(at_alice, &sent, "delivered").await;
    at_bob.confirm(true).await;
    lane.receipts(at_alice, &sent, "read").await;
    at_bob
}

/// The private message goes over the mixnet alone, and so do its receipts.
async fn arrives_in_private(
    lane: &Lane<'_>,
    at_bob: &mut Listening<'_>,
    at_alice: &mut harness::Socket,
    secret: Uuid,
) {
    let timeline = lane.timeline;
    let before = at_bob.shown.len();
    at_bob.take(1).await;
    at_bob.take_the_rest().await;
    timeline.promise(at_bob.ids()[before..] == [secret], || {
        format!("bob should have the private message, once, but has {:?}", at_bob.ids())
    });
    at_bob.confirm(true).await;
    lane.receipts(at_alice, &[secret], "read").await;
    // Its receipt may be here before the attempt that earned it is recorded.
    let delivery = lane.delivery_when(secret, is_stored).await;
    timeline.say("A", &format!("sees how the private message travelled ({}):", delivery.status));
    timeline.attempts(&delivery);
    timeline.promise(delivery.attempts.iter().all(|it| it.transport == HTX), || {
        "a message of level 3 should travel over htx alone".into()
    });
}
