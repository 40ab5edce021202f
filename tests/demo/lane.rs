//! What alice writes to bob, what she is told of it, and what bob is shown.

use std::{collections::BTreeSet, sync::Mutex};

use harness::{
    Client, Frame, Socket,
    client::{DeliveryRecord, Draft, InboxMessage},
    history::{Confirm, Confirmed, DeliveryReport, Event, Outcome, Report, Send, Shown, Time},
};
use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use crate::{LOOK, PATIENCE, timeline::Timeline};

/// Alice at one end.
pub(crate) struct Lane<'a> {
    pub(crate) timeline: &'a Timeline,
    pub(crate) alice: Client,
    /// Both with their gateways.
    pub(crate) sender: String,
    pub(crate) recipient: String,
    /// What has been sent, in order; its places are what messages are called by.
    pub(crate) sent: Mutex<Vec<Uuid>>,
}

/// Whether the recipient's gateway has said over which attempt it came.
pub(crate) fn is_stored(one: &DeliveryRecord) -> bool {
    one.attempts.iter().any(|attempt| attempt.result == "stored")
}

impl Lane<'_> {
    pub(crate) async fn send(&self, text: &str, level: u8) -> Uuid {
        let recorder = &self.timeline.recorder;
        let invoked = recorder.now();
        let requires_privacy = (level == 3).then_some(true);
        let draft = Draft { requires_privacy, ..Draft::text(&self.recipient, text) };
        let accepted = self.alice.send(&draft).await.expect("A accepts the message");
        recorder.add(Event::Send(Send {
            sender: self.sender.clone(),
            message: accepted.message_id,
            recipients: vec![self.recipient.clone()],
            content: text.to_owned(),
            min_anonymity: level,
            ordered: true,
            ttl: 7 * 86_400 * 1_000_000,
            invoked,
            completed: recorder.now(),
            outcome: Outcome::Done,
        }));
        let how = if level == 3 { " and asks for privacy, level 3" } else { "" };
        let number = {
            let mut sent = self.sent.lock().expect("nobody panics with it");
            sent.push(accepted.message_id);
            sent.len()
        };
        self.timeline.say("A", &format!("alice writes message {number} to bob{how}: “{text}”"));
        accepted.message_id
    }

    /// What A says of a message once `is_so`.
    pub(crate) async fn delivery_when(
        &self,
        message: Uuid,
        is_so: impl Fn(&DeliveryRecord) -> bool,
    ) -> DeliveryRecord {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let record = self.alice.record(message).await.expect("alice may ask");
            let delivery = record.recipients.into_iter().next().expect("it has one recipient");
            if is_so(&delivery) {
                return delivery;
            }
            assert!(Instant::now() < deadline, "it never comes to that: {delivery:?}");
            sleep(LOOK).await;
        }
    }

    /// Waits until B has told A that it holds the message, and shows how it came there: over `transport`
    /// alone at last.
    pub(crate) async fn carried_by(&self, message: Uuid, transport: &str) -> DeliveryRecord {
        let delivery = self.delivery_when(message, is_stored).await;
        self.timeline.say("A", &format!("has B's receipt: {transport} carried it."));
        self.timeline.attempts(&delivery);
        let arrived = delivery.attempts.iter().filter(|it| it.result == "stored");
        self.timeline.promise(arrived.clone().all(|it| it.transport == transport), || {
            format!("it should have been carried by {transport}")
        });
        delivery
    }

    /// Waits until alice has been told on her socket that these have come to `status`.
    pub(crate) async fn receipts(&self, socket: &mut Socket, messages: &[Uuid], status: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut missing: BTreeSet<Uuid> = messages.iter().copied().collect();
        while !missing.is_empty() {
            match timeout_at(deadline, socket.next()).await {
                Ok(Frame::Receipt { message_id, status: told, .. }) if told == status => {
                    if missing.remove(&message_id) {
                        let told = format!(
                            "alice is told: message {} is {status}, {} of {}.",
                            self.number_of(message_id),
                            messages.len() - missing.len(),
                            messages.len(),
                        );
                        self.timeline.say("A", &told);
                    }
                }
                Ok(Frame::Closed(code)) => panic!("alice's socket was closed ({code:?})"),
                Ok(_) => {}
                Err(_) => panic!("alice is never told that {missing:?} are {status}"),
            }
        }
    }

    fn number_of(&self, message: Uuid) -> usize {
        let sent = self.sent.lock().expect("nobody panics with it");
        sent.iter().position(|it| *it == message).map_or(0, |place| place + 1)
    }

    /// Writes down what A says of a message in the end.
    pub(crate) async fn report(&self, message: Uuid) -> DeliveryRecord {
        let recorder = &self.timeline.recorder;
        let invoked = recorder.now();
        let record = self.alice.record(message).await.expect("alice may ask");
        let delivery = record.recipients.into_iter().next().expect("it has one recipient");
        let told = DeliveryReport {
            recipient: delivery.recipient.clone(),
            status: delivery.status.clone(),
            transports: delivery.attempts.iter().map(|it| it.transport.clone()).collect(),
        };
        recorder.add(Event::Report(Report {
            sender: self.sender.clone(),
            message,
            deliveries: vec![told],
            invoked,
            completed: recorder.now(),
            unknown: false,
        }));
        delivery
    }
}

/// Bob's end: a socket, and what it showed.
pub(crate) struct Listening<'a> {
    timeline: &'a Timeline,
    bob: Client,
    address: String,
    socket: Socket,
    stream: u64,
    opened: Time,
    /// What was shown on it.
    pub(crate) shown: Vec<InboxMessage>,
}

impl<'a> Listening<'a> {
    pub(crate) async fn begin(timeline: &'a Timeline, bob: &Client, address: &str) -> Self {
        let (stream, opened) = (timeline.recorder.new_stream(), timeline.recorder.now());
        let socket = bob.socket().await.expect("bob can listen");
        let (bob, address) = (bob.clone(), address.to_owned());
        Self { timeline, bob, address, socket, stream, opened, shown: Vec::new() }
    }

    /// Waits for so many more messages.
    pub(crate) async fn take(&mut self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        for _ in 0..count {
            loop {
                match timeout_at(deadline, self.socket.next()).await.expect("bob is shown more") {
                    Frame::Message(message) => break self.note(message),
                    Frame::Closed(code) => panic!("bob's socket was closed ({code:?})"),
                    _ => {}
                }
            }
        }
    }

    /// Asks for a pong, which comes after whatever else there was to show, and takes that.
    pub(crate) async fn take_the_rest(&mut self) {
        self.socket.write(&json!({ "type": "ping" })).await.expect("the socket is open");
        loop {
            match self.socket.expect().await {
                Frame::Message(message) => self.note(message),
                Frame::Pong { .. } | Frame::Closed(_) => return,
                _ => {}
            }
        }
    }

    /// Confirms all that was shown.
    pub(crate) async fn confirm(&self, as_read: bool) {
        let recorder = &self.timeline.recorder;
        let invoked = recorder.now();
        let last = self.shown.last().map_or(0, |message| message.seq);
        let body = json!({ "up_to": last, "read": as_read });
        let request = self.bob.request(Method::POST, "/v1/inbox/ack").json(&body);
        self.bob.call::<()>(request).await.expect("bob can confirm");
        let how = if as_read { "has read" } else { "confirms" };
        self.timeline.say("B", &format!("bob {how} all up to {last}."));
        recorder.add(Event::Confirm(Confirm {
            peer: self.address.clone(),
            what: Confirmed::UpTo(last),
            invoked,
            completed: recorder.now(),
            outcome: Outcome::Done,
        }));
    }

    pub(crate) fn ids(&self) -> Vec<Uuid> {
        self.shown.iter().map(|message| message.message_id).collect()
    }

    fn note(&mut self, message: InboxMessage) {
        self.timeline.shown(&message);
        let recorder = &self.timeline.recorder;
        recorder.add(Event::Shown(Shown {
            peer: self.address.clone(),
            seq: message.seq,
            message: message.message_id,
            sender: message.from.clone(),
            content: message.content.clone().unwrap_or_default(),
            gap: message.gap,
            late: message.late,
            stream: self.stream,
            opened: self.opened,
            at: recorder.now(),
        }));
        self.shown.push(message);
    }
}
