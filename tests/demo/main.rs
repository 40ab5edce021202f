//! The story of design section 9, told by gateways that really run: three in this process, each on
//! a database of its own. Until BLE and HTX are built, `memory` networks stand in for both, and the
//! timeline says so. Exit code 1 if a promise broke.

use std::{
    collections::BTreeMap,
    io::{Write, stdout},
    process::ExitCode,
    time::Duration,
};

use fieldpost_transport::{Faults, MemoryNetwork, MemoryOptions};
use harness::{
    Client, Postgres, Recorder, Socket, check,
    client::{Draft, InboxMessage},
    federation::{Node, record_when, record_with_status},
    history::{
        Confirm, Confirmed, DeliveryReport, Event, History, Outcome, Report, Send, Shown, Violation,
    },
};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// The longest that the whole story may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// What stands in for HTX, and for BLE; both as the gateways name them.
const HTX: &str = "htx-stand-in";
const BLE: &str = "ble-stand-in";
const TEXTS: [&str; 3] =
    ["The bridge at the mill is open.", "The net is down. Can you still hear me?", "Sleep well."];

#[tokio::main]
async fn main() -> ExitCode {
    let story = Story { began: Instant::now(), recorder: Recorder::default() };
    let (broken, violations) = match timeout(PATIENCE, tell(&story)).await {
        Ok((history, broken)) => (broken, check(&history)),
        Err(_) => (vec![format!("the story did not end within {PATIENCE:?}")], Vec::new()),
    };
    story.verdict(&broken, &violations)
}

/// Plays the story and returns what clients saw, and what was not as promised.
async fn tell(story: &Story) -> (History, Vec<String>) {
    story.say("", "Three gateways start, each on a Postgres database of its own.");
    story.say(
        "",
        "This story does not use BLE and HTX yet. Two `memory` networks stand in for them:",
    );
    story.say("", &format!("{HTX} for HTX over the internet, {BLE} for the Bluetooth mesh."));
    story.say("", "A memory network has a single hop, so C hears nothing of what A sends to B.");
    let postgres = Postgres::start().await;
    story.say("", "The databases are up.");
    let (internet, air) = (MemoryNetwork::new(1), MemoryNetwork::new(2));
    let a = start(&postgres, "a", &internet, &air).await;
    let mut b = start(&postgres, "b", &internet, &air).await;
    let c = start(&postgres, "c", &internet, &air).await;
    for (name, node) in [("A", &a), ("B", &b), ("C", &c)] {
        story.say(name, &format!("is gateway {}…", &node.id().to_string()[..12]));
    }
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = c.register("carol").await;
    let lane =
        Lane { story, sender: a.address("alice"), recipient: b.address("bob"), client: &alice };

    let mut at_bob = bob.socket().await.expect("bob can listen");
    let first = lane.send(TEXTS[0]).await;
    story.shown("B", &at_bob.expect_message().await);
    let mut broken = Vec::new();
    broken.extend(lane.carried_by(first, HTX).await);

    internet.set_faults(a.id(), b.id(), Faults::CUT);
    story.say("", "The internet between A and B is cut.");
    let second = lane.send(TEXTS[1]).await;
    story.shown("B", &at_bob.expect_message().await);
    broken.extend(lane.carried_by(second, BLE).await);

    at_bob.close().await;
    b.stop().await;
    story.say("B", "goes dark.");
    let third = lane.send(TEXTS[2]).await;
    let waits = record_when(&alice, third, |record| record.recipients[0].reason.is_some()).await;
    let reason = waits.recipients[0].reason.clone().unwrap_or_default();
    story.say("A", &format!("keeps it: {} ({reason}).", waits.status));

    b.resume().await;
    story.say("B", "returns; the internet is still cut.");
    let bob = b.client_of(&bob);
    let shown = receive_all(story, &lane, &bob).await;
    if shown != [first, second, third] {
        broken.push(format!("bob should have all three in order, once each, but has {shown:?}"));
    }
    for message in [first, second, third] {
        lane.report(message).await;
    }
    story.say("A", "sees all three delivered.");
    let nothing = carol.poll(None, 0).await.expect("carol may look");
    if !nothing.messages.is_empty() {
        broken.push("carol was shown what was not for her".to_owned());
    }
    let mut history = story.recorder.finish(true);
    history.levels = BTreeMap::from([(HTX.to_owned(), 3), (BLE.to_owned(), 1)]);
    (history, broken)
}

async fn start(
    postgres: &Postgres,
    name: &str,
    internet: &MemoryNetwork,
    air: &MemoryNetwork,
) -> Node {
    let networks = [
        (internet, MemoryOptions::named(HTX).with_level(3)),
        (air, MemoryOptions::named(BLE).with_level(1)),
    ];
    let priority = format!("--transport-priority={HTX},{BLE}");
    Node::start(postgres.create_database(name), &networks, &[&priority]).await
}

/// Bob opens a new socket: what he has not confirmed comes again, with what is new, in order.
async fn receive_all(story: &Story, lane: &Lane<'_>, bob: &Client) -> Vec<Uuid> {
    let (stream, opened) = (story.recorder.new_stream(), story.recorder.now());
    let mut socket = bob.socket().await.expect("bob can listen");
    let mut shown = Vec::new();
    let mut last = 0;
    while shown.len() < TEXTS.len() {
        let message = socket.expect_message().await;
        story.shown("B", &message);
        last = message.seq;
        shown.push(message.message_id);
        story.recorder.add(Event::Shown(Shown {
            peer: lane.recipient.clone(),
            seq: message.seq,
            message: message.message_id,
            sender: message.from,
            content: message.content.unwrap_or_default(),
            gap: message.gap,
            late: message.late,
            stream,
            opened,
            at: story.recorder.now(),
        }));
    }
    confirm(story, lane, bob, last).await;
    expect_no_more(&mut socket, &mut shown).await;
    shown
}

async fn confirm(story: &Story, lane: &Lane<'_>, bob: &Client, last: u64) {
    let invoked = story.recorder.now();
    bob.confirm_up_to(last).await.expect("bob can confirm");
    story.say("B", &format!("bob confirms all up to {last}."));
    story.recorder.add(Event::Confirm(Confirm {
        peer: lane.recipient.clone(),
        what: Confirmed::UpTo(last),
        invoked,
        completed: story.recorder.now(),
        outcome: Outcome::Done,
    }));
}

/// A pong comes after whatever the socket was to show before it.
async fn expect_no_more(socket: &mut Socket, shown: &mut Vec<Uuid>) {
    socket.write(&serde_json::json!({ "type": "ping" })).await.expect("the socket is open");
    loop {
        match socket.expect().await {
            harness::Frame::Message(message) => shown.push(message.message_id),
            harness::Frame::Pong { .. } | harness::Frame::Closed(_) => return,
            _ => {}
        }
    }
}

/// What alice sends to bob.
struct Lane<'a> {
    story: &'a Story,
    sender: String,
    recipient: String,
    client: &'a Client,
}

impl Lane<'_> {
    async fn send(&self, text: &str) -> Uuid {
        let recorder = &self.story.recorder;
        let invoked = recorder.now();
        let draft = Draft::text(&self.recipient, text);
        let accepted = self.client.send(&draft).await.expect("A accepts the message");
        recorder.add(Event::Send(Send {
            sender: self.sender.clone(),
            message: accepted.message_id,
            recipients: vec![self.recipient.clone()],
            content: text.to_owned(),
            min_anonymity: 0,
            ordered: true,
            ttl: 7 * 86_400 * 1_000_000,
            invoked,
            completed: recorder.now(),
            outcome: Outcome::Done,
        }));
        self.story.say("A", &format!("alice writes to bob: “{text}”"));
        accepted.message_id
    }

    /// Waits until A knows that B holds the message, and says how it went. Returns what is wrong if
    /// that was not over `transport`.
    async fn carried_by(&self, message: Uuid, transport: &str) -> Option<String> {
        let record = record_when(self.client, message, |record| {
            record.recipients[0].attempts.iter().any(|attempt| attempt.result == "stored")
        })
        .await;
        let tried: Vec<_> = record.recipients[0]
            .attempts
            .iter()
            .map(|attempt| format!("{} {}", attempt.transport, attempt.result))
            .collect();
        self.story.say("A", &format!("has B's receipt: {}.", tried.join(", ")));
        let is_as_told = tried.contains(&format!("{transport} stored"));
        (!is_as_told).then(|| format!("{message} should have gone over {transport}"))
    }

    async fn report(&self, message: Uuid) {
        let recorder = &self.story.recorder;
        record_with_status(self.client, message, "delivered").await;
        let invoked = recorder.now();
        let record = self.client.record(message).await.expect("alice may ask");
        let deliveries = record
            .recipients
            .into_iter()
            .map(|one| DeliveryReport {
                recipient: one.recipient,
                status: one.status,
                transports: one.attempts.into_iter().map(|tried| tried.transport).collect(),
            })
            .collect();
        recorder.add(Event::Report(Report {
            sender: self.sender.clone(),
            message,
            deliveries,
            invoked,
            completed: recorder.now(),
            unknown: false,
        }));
    }
}

/// The timeline, and the history for the judge.
struct Story {
    began: Instant,
    recorder: Recorder,
}

impl Story {
    fn say(&self, who: &str, what: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        // Whoever closed our output still gets the exit code.
        let _ = writeln!(stdout().lock(), "{seconds:8.3} s  {who:1}  {what}");
    }

    fn shown(&self, who: &str, message: &InboxMessage) {
        let text = message.content.as_deref().unwrap_or_default();
        self.say(who, &format!("bob is shown number {}: “{text}”", message.seq));
    }

    fn verdict(&self, broken: &[String], violations: &[Violation]) -> ExitCode {
        for problem in broken.iter().cloned().chain(violations.iter().map(ToString::to_string)) {
            self.say("", &format!("BROKEN: {problem}"));
        }
        if broken.is_empty() && violations.is_empty() {
            self.say("", "The history checker finds no promise broken.");
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
