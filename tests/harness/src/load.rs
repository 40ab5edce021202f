//! Clients that talk to each other through a gateway, whatever happens to it, and write down what
//! they saw.
//!
//! Half of them listen on sockets and half poll; they send over HTTP and over sockets, confirm
//! singly and in bulk, forget to confirm, and come back after every break. A send that may have
//! been lost is repeated under its id until it is answered. Some messages go to a group of all.
//! Where callers need tokens, one of them tries all the while to act as the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use crate::{
    client::{Client, Draft, Failure, Frame, InboxMessage, Socket},
    history::{
        Confirm, Confirmed, DeliveryReport, Event, History, Outcome, Recorder, Report, Send, Shown,
        Trespass,
    },
};

/// How the load is made up.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many peers talk; every one sends and listens.
    pub peers: usize,
    /// The longest pause between two messages of one sender.
    pub pause: Duration,
    /// The longest content, in bytes.
    pub content: usize,
    /// The least level of every message.
    pub level: u8,
}

impl Default for Shape {
    fn default() -> Self {
        Self { peers: 12, pause: Duration::from_millis(20), content: 400, level: 0 }
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    recorder: Recorder,
    clients: Vec<Client>,
    /// The address of the group of all, where there is one.
    group: Option<String>,
    /// By which gateway each peer is called, where bare names do not lead there.
    addresses: Arc<BTreeMap<String, String>>,
    senders: JoinSet<()>,
    listeners: JoinSet<()>,
    stop_sending: watch::Sender<bool>,
    stop_listening: watch::Sender<bool>,
    tally: Arc<Tally>,
}

/// What the clients have seen so far.
#[derive(Debug, Default)]
struct Tally {
    accepted: AtomicU64,
    shown: AtomicU64,
    /// Answers of 503, and those of them that said when to come back.
    unavailable: AtomicU64,
    with_retry_after: AtomicU64,
    /// Calls that ended without an answer although a connection stood.
    unanswered: AtomicU64,
}

/// What may have been lost is repeated after so long, at most.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long a long poll waits, in seconds.
const POLL_WAIT: u64 = 2;
/// The longest pause between two trespasses.
const TRESPASS_PAUSE: Duration = Duration::from_millis(100);
const DRAIN_DEADLINE: Duration = Duration::from_secs(120);
/// Questions about messages under way at once when a run ends.
const ASKED_AT_ONCE: usize = 16;
const TTL: u64 = 3600;

impl Load {
    /// Registers the peers at the gateway of `client` and sets them to work.
    pub async fn start(client: &Client, shape: Shape, seed: u64) -> Self {
        let clients = register(std::slice::from_ref(client), shape).await;
        let group = create_group(&clients).await;
        Self::set_up(clients, Some(group), BTreeMap::new(), shape, seed)
    }

    /// Registers the peers at the gateways of `homes` in turn. Everybody calls the others by their
    /// bare names.
    pub async fn register_across(homes: &[Client], shape: Shape) -> Vec<Client> {
        register(homes, shape).await
    }

    /// Sets peers of several gateways to work, once each gateway knows the names of the others.
    pub fn start_across(clients: Vec<Client>, shape: Shape, seed: u64) -> Self {
        Self::set_up(clients, None, BTreeMap::new(), shape, seed)
    }

    /// Sets peers of several gateways to work that tell each other no names: everybody is called by
    /// `addresses`.
    pub fn start_among(
        clients: Vec<Client>,
        addresses: BTreeMap<String, String>,
        shape: Shape,
        seed: u64,
    ) -> Self {
        Self::set_up(clients, None, addresses, shape, seed)
    }

    fn set_up(
        clients: Vec<Client>,
        group: Option<String>,
        addresses: BTreeMap<String, String>,
        shape: Shape,
        seed: u64,
    ) -> Self {
        let mut load = Self {
            recorder: Recorder::default(),
            clients,
            group,
            addresses: Arc::new(addresses),
            senders: JoinSet::new(),
            listeners: JoinSet::new(),
            stop_sending: watch::Sender::new(false),
            stop_listening: watch::Sender::new(false),
            tally: Arc::default(),
        };
        for number in 0..shape.peers {
            load.set_to_work(number, shape, seed);
        }
        if load.clients[0].token().is_some() {
            // A name that is free elsewhere is nobody's there.
            let first = &load.clients[0];
            let neighbours = load.clients.iter().filter(|client| client.home() == first.home());
            let victims = neighbours.map(|client| client.peer().to_owned()).collect();
            load.listeners.spawn(load.worker(0, 3, seed, &load.stop_sending).trespass(victims));
        }
        load
    }

    fn set_to_work(&mut self, number: usize, shape: Shape, seed: u64) {
        let peers = self.peers();
        let sender = self.worker(number, 1, seed, &self.stop_sending);
        // One in three sends over a socket, one in two listens on one.
        if number.is_multiple_of(3) {
            self.senders.spawn(sender.send_by_socket(peers, shape));
        } else {
            self.senders.spawn(sender.send_by_http(peers, shape));
        }
        let listener = self.worker(number, 2, seed, &self.stop_listening);
        if number.is_multiple_of(2) {
            self.listeners.spawn(listener.listen());
        } else {
            self.listeners.spawn(listener.poll());
        }
    }

    fn worker(&self, number: usize, task: u64, seed: u64, stop: &watch::Sender<bool>) -> Worker {
        Worker {
            client: self.clients[number].clone(),
            group: self.group.clone(),
            addresses: self.addresses.clone(),
            recorder: self.recorder.clone(),
            tally: self.tally.clone(),
            rng: StdRng::seed_from_u64(seed ^ (task << 32) ^ number as u64),
            stop: stop.subscribe(),
        }
    }

    fn peers(&self) -> Vec<String> {
        self.clients.iter().map(|client| client.peer().to_owned()).collect()
    }

    /// How many messages were accepted so far.
    pub fn accepted(&self) -> u64 {
        self.tally.accepted.load(Ordering::Relaxed)
    }

    /// The time, as events of the history tell it.
    pub fn now(&self) -> u64 {
        self.recorder.now()
    }

    /// How many messages were shown so far, repetitions counted.
    pub fn shown(&self) -> u64 {
        self.tally.shown.load(Ordering::Relaxed)
    }

    /// How many sends were answered with 503, and how many of these with `Retry-After`.
    pub fn unavailable(&self) -> (u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.tally.unavailable), read(&self.tally.with_retry_after))
    }

    /// How many sends got no answer although the gateway was connected to.
    pub fn unanswered(&self) -> u64 {
        self.tally.unanswered.load(Ordering::Relaxed)
    }

    /// Waits until so many more messages were accepted.
    ///
    /// # Panics
    ///
    /// If that does not happen in `limit`.
    pub async fn wait_for_accepted(&self, more: u64, limit: Duration) {
        let goal = self.accepted() + more;
        let deadline = Instant::now() + limit;
        while self.accepted() < goal {
            assert!(
                Instant::now() < deadline,
                "only {} of {goal} messages were accepted within {limit:?}",
                self.accepted()
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets the senders finish, waits until every inbox is empty and asks after every message.
    ///
    /// # Panics
    ///
    /// If the gateway does not come to rest in time.
    pub async fn finish(mut self) -> History {
        let deadline = Instant::now() + DRAIN_DEADLINE;
        self.stop_sending.send_replace(true);
        join_all(&mut self.senders, deadline).await;
        self.stop_listening.send_replace(true);
        join_all(&mut self.listeners, deadline).await;
        // What was shown and not confirmed comes again, and is confirmed this time.
        for client in &self.clients {
            empty(client, &self.recorder, deadline).await;
        }
        let talk = self.recorder.finish(false);
        if self.group.is_none() {
            self.settle(&talk, deadline).await;
        }
        let reports = self.sent(&talk).into_iter().map(|(client, message)| {
            let deadline = Instant::now() + DRAIN_DEADLINE;
            report(client, &self.recorder, message, deadline)
        });
        stream::iter(reports).buffer_unordered(ASKED_AT_ONCE).collect::<()>().await;
        let mut history = self.recorder.finish(true);
        history.events.splice(..0, talk.events);
        history
    }

    /// Waits until nothing is on its way between gateways any more, taking what arrives.
    async fn settle(&self, talk: &History, mut deadline: Instant) {
        let mut waiting = self.sent(talk);
        while !waiting.is_empty() {
            let still: Vec<(&Client, Uuid)> = stream::iter(waiting.iter().copied())
                .map(async |(client, message)| {
                    let is_on_its_way = match client.record(message).await {
                        Ok(record) => matches!(record.status.as_str(), "pending" | "sent"),
                        Err(failure) => failure.status() != Some(404),
                    };
                    is_on_its_way.then_some((client, message))
                })
                .buffer_unordered(ASKED_AT_ONCE)
                .filter_map(async |waits| waits)
                .collect()
                .await;
            if still.len() < waiting.len() {
                deadline = Instant::now() + DRAIN_DEADLINE;
            }
            waiting = still;
            if let Some((client, message)) = waiting.first()
                && Instant::now() >= deadline
            {
                let record = client.record(*message).await;
                panic!("{} messages never arrive, one is {record:?}", waiting.len());
            }
            for client in &self.clients {
                empty(client, &self.recorder, deadline).await;
            }
        }
    }

    /// Who sent which message.
    fn sent(&self, talk: &History) -> Vec<(&Client, Uuid)> {
        let mut sent = Vec::new();
        for (sender, messages) in messages_by_sender(talk) {
            let client = self.clients.iter().find(|client| client.peer() == sender);
            let client = client.expect("every sender has its client");
            sent.extend(messages.into_iter().map(|message| (client, message)));
        }
        sent
    }
}

async fn register(homes: &[Client], shape: Shape) -> Vec<Client> {
    let mut clients = Vec::new();
    for (number, home) in (0..shape.peers).zip(homes.iter().cycle()) {
        let name = format!("peer-{number}");
        clients.push(home.register(&name).await.expect("a peer can be registered"));
    }
    clients
}

/// A peer's name without its gateway: here no two have the same.
fn bare(name: String) -> String {
    match name.split_once('@') {
        Some((peer, _)) => peer.to_owned(),
        None => name,
    }
}

async fn create_group(clients: &[Client]) -> String {
    let members: Vec<&str> = clients[1..].iter().map(Client::peer).collect();
    let request = clients[0].request(Method::POST, "/v1/groups");
    let group: Value = clients[0]
        .call(request.json(&json!({ "name": "everybody", "members": members })))
        .await
        .expect("a group can be made");
    group["address"].as_str().expect("a group has an address").to_owned()
}

async fn join_all(tasks: &mut JoinSet<()>, deadline: Instant) {
    let joined = tokio::time::timeout_at(deadline, async {
        while let Some(task) = tasks.join_next().await {
            task.expect("clients do not panic");
        }
    });
    joined.await.expect("the clients finish in time");
}

fn messages_by_sender(history: &History) -> BTreeMap<String, BTreeSet<Uuid>> {
    let mut messages: BTreeMap<String, BTreeSet<Uuid>> = BTreeMap::new();
    for event in &history.events {
        if let Event::Send(send) = event {
            messages.entry(send.sender.clone()).or_default().insert(send.message);
        }
    }
    messages
}

/// Takes and confirms until nothing is left.
async fn empty(client: &Client, recorder: &Recorder, deadline: Instant) {
    loop {
        let (stream, opened) = (recorder.new_stream(), recorder.now());
        match client.poll(None, 0).await {
            Ok(page) => {
                let Some(last) = page.messages.last().map(|message| message.seq) else { return };
                for message in page.messages {
                    recorder.add(shown(client.peer(), message, stream, opened, recorder.now()));
                }
                let invoked = recorder.now();
                let outcome = outcome(&client.confirm_up_to(last).await);
                recorder.add(confirmation(
                    client.peer(),
                    Confirmed::UpTo(last),
                    invoked,
                    recorder,
                    outcome,
                ));
            }
            Err(failure) => {
                assert!(Instant::now() < deadline, "the inbox cannot be emptied: {failure}");
                sleep(RETRY_PAUSE).await;
            }
        }
        assert!(Instant::now() < deadline, "{}'s inbox never becomes empty", client.peer());
    }
}

async fn report(client: &Client, recorder: &Recorder, message: Uuid, deadline: Instant) {
    loop {
        let invoked = recorder.now();
        let (deliveries, unknown) = match client.record(message).await {
            Ok(record) => {
                let deliveries = record.recipients.into_iter().map(|delivery| DeliveryReport {
                    recipient: bare(delivery.recipient),
                    status: delivery.status,
                    transports: delivery
                        .attempts
                        .into_iter()
                        .map(|attempt| attempt.transport)
                        .collect(),
                });
                (deliveries.collect(), false)
            }
            Err(failure) if failure.status() == Some(404) => (Vec::new(), true),
            Err(failure) => {
                assert!(Instant::now() < deadline, "a message cannot be asked after: {failure}");
                sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        let sender = client.peer().to_owned();
        let completed = recorder.now();
        recorder.add(Event::Report(Report {
            sender,
            message,
            deliveries,
            invoked,
            completed,
            unknown,
        }));
        return;
    }
}

/// One task of one peer.
struct Worker {
    client: Client,
    group: Option<String>,
    addresses: Arc<BTreeMap<String, String>>,
    recorder: Recorder,
    tally: Arc<Tally>,
    rng: StdRng,
    stop: watch::Receiver<bool>,
}

impl Worker {
    async fn send_by_http(mut self, peers: Vec<String>, shape: Shape) {
        while !*self.stop.borrow() {
            let draft = self.draft(&peers, shape);
            loop {
                let invoked = self.recorder.now();
                let answer = self.client.send(&self.addressed(&draft)).await;
                self.record_send(&draft, &peers, invoked, answer.as_ref().map(drop));
                if answer.is_ok() || self.gives_up(&answer.map(drop)) {
                    break;
                }
                self.pause(RETRY_PAUSE).await;
            }
            self.rest(shape.pause).await;
        }
    }

    async fn send_by_socket(mut self, peers: Vec<String>, shape: Shape) {
        let mut socket: Option<Socket> = None;
        while !*self.stop.borrow() {
            let draft = self.draft(&peers, shape);
            loop {
                let invoked = self.recorder.now();
                let addressed = self.addressed(&draft);
                let answer = self.send_once(&mut socket, &addressed).await;
                if answer.is_err() {
                    socket = None;
                }
                self.record_send(&draft, &peers, invoked, answer.as_ref().map(drop));
                if answer.is_ok() || self.gives_up(&answer) {
                    break;
                }
                self.pause(RETRY_PAUSE).await;
            }
            self.rest(shape.pause).await;
        }
    }

    /// Sends over the socket, opening one if there is none. What is shown on it meanwhile is
    /// neither recorded nor confirmed: the peer's listener gets it as well.
    async fn send_once(
        &mut self,
        socket: &mut Option<Socket>,
        draft: &Draft,
    ) -> Result<(), Failure> {
        if socket.is_none() {
            *socket = Some(self.client.socket().await?);
        }
        let socket = socket.as_mut().expect("it was just opened");
        let mark = socket.send(draft).await?;
        let answer = async {
            loop {
                match socket.next().await {
                    Frame::Accepted { r#ref: Some(theirs), .. } if theirs == mark => return Ok(()),
                    Frame::Error { r#ref: Some(theirs), status, detail, retry_after }
                        if theirs == mark =>
                    {
                        return Err(Failure::Refused { status, detail, retry_after });
                    }
                    Frame::Closed(code) => {
                        return Err(Failure::Closed(code));
                    }
                    _ => {}
                }
            }
        };
        timeout(crate::client::CALL_DEADLINE, answer)
            .await
            .unwrap_or_else(|_| Err(Failure::Unanswered("no answer in time".to_owned())))
    }

    fn draft(&mut self, peers: &[String], shape: Shape) -> Draft {
        let to = match &self.group {
            Some(group) if self.rng.random_bool(0.05) => group,
            _ => &peers[self.rng.random_range(0..peers.len())],
        };
        let message_id = Uuid::from_u64_pair(self.rng.random(), self.rng.random());
        let length = self.rng.random_range(0..=shape.content);
        let content = format!("{message_id} {}", "é".repeat(length / 2));
        let priority = self.rng.random_bool(0.1).then(|| "critical".to_owned());
        Draft {
            to: to.clone(),
            content,
            message_id: Some(message_id),
            priority,
            min_anonymity: (shape.level > 0).then_some(shape.level),
            ttl: Some(TTL),
            ..Draft::default()
        }
    }

    /// The draft as it is sent: to the address that its recipient is called by.
    fn addressed(&self, draft: &Draft) -> Draft {
        let to = self.addresses.get(&draft.to).unwrap_or(&draft.to).clone();
        Draft { to, ..draft.clone() }
    }

    fn record_send(
        &self,
        draft: &Draft,
        peers: &[String],
        invoked: u64,
        answer: Result<(), &Failure>,
    ) {
        match answer {
            Ok(()) => {
                self.tally.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Err(Failure::Refused { status: 503, retry_after, .. }) => {
                self.tally.unavailable.fetch_add(1, Ordering::Relaxed);
                let said = u64::from(retry_after.is_some());
                self.tally.with_retry_after.fetch_add(said, Ordering::Relaxed);
            }
            Err(Failure::Unanswered(_)) => {
                self.tally.unanswered.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {}
        }
        self.recorder.add(Event::Send(Send {
            sender: self.client.peer().to_owned(),
            message: draft.message_id.expect("every draft of ours is named"),
            recipients: match self.group.as_ref() == Some(&draft.to) {
                true => peers.iter().filter(|peer| *peer != self.client.peer()).cloned().collect(),
                false => vec![draft.to.clone()],
            },
            content: draft.content.clone(),
            min_anonymity: draft.min_anonymity.unwrap_or(0),
            ordered: draft.priority.as_deref() != Some("critical"),
            ttl: TTL * 1_000_000,
            invoked,
            completed: self.recorder.now(),
            outcome: outcome(&answer.map_err(Clone::clone)),
        }));
    }

    /// A request that is at fault will never be answered otherwise; being too fast passes.
    fn gives_up(&self, answer: &Result<(), Failure>) -> bool {
        match answer {
            Err(Failure::Refused { status, detail, .. }) if *status < 500 && *status != 429 => {
                panic!("a good request was refused with {status}: {detail}")
            }
            _ => false,
        }
    }

    /// Listens on sockets until told to stop.
    async fn listen(mut self) {
        while !*self.stop.borrow() {
            // Before the gateway can look into the inbox for it.
            let opened = self.recorder.now();
            match self.client.socket().await {
                Ok(socket) => self.serve(socket, opened).await,
                Err(_) => self.pause(RETRY_PAUSE).await,
            }
        }
    }

    async fn serve(&mut self, mut socket: Socket, opened: u64) {
        let stream = self.recorder.new_stream();
        // Now and then a client goes away by itself, with or without a word.
        let mut left = self.rng.random_range(20..400);
        let mut unconfirmed = Vec::new();
        while left > 0 {
            let frame = tokio::select! {
                frame = socket.next() => frame,
                _ = self.stop.wait_for(|stop| *stop) => break,
            };
            match frame {
                Frame::Message(message) => {
                    unconfirmed.push((message.seq, message.message_id));
                    self.record_shown(message, stream, opened);
                    if self.confirm_on(&mut socket, &mut unconfirmed).await.is_err() {
                        return;
                    }
                    left -= 1;
                }
                Frame::Closed(_) => return,
                _ => {}
            }
        }
        if self.rng.random_bool(0.5) {
            socket.close().await;
        }
    }

    /// Confirms what was shown: now or later, all or single messages, or not at all.
    async fn confirm_on(
        &mut self,
        socket: &mut Socket,
        unconfirmed: &mut Vec<(u64, Uuid)>,
    ) -> Result<(), Failure> {
        let invoked = self.recorder.now();
        let (what, written) = match self.rng.random_range(0..10) {
            0..5 => {
                let last = unconfirmed.last().expect("one was just shown").0;
                unconfirmed.clear();
                (Confirmed::UpTo(last), socket.confirm_up_to(last).await)
            }
            5..8 => {
                let ids: Vec<Uuid> = unconfirmed.drain(..).map(|(_, id)| id).collect();
                let written = socket.confirm_messages(&ids).await;
                (Confirmed::Messages(ids), written)
            }
            _ => return Ok(()),
        };
        // Nothing answers a confirmation on a socket.
        let peer = self.client.peer();
        self.recorder.add(confirmation(peer, what, invoked, &self.recorder, Outcome::Unknown));
        written
    }

    /// Polls until told to stop.
    async fn poll(mut self) {
        let mut after: Option<String> = None;
        while !*self.stop.borrow() {
            let (stream, opened) = (self.recorder.new_stream(), self.recorder.now());
            let page = self.client.poll(after.as_deref(), POLL_WAIT).await;
            let Ok(page) = page else {
                // Whoever was cut off asks for all that is unconfirmed.
                after = None;
                self.pause(RETRY_PAUSE).await;
                continue;
            };
            let last = page.messages.last().map(|message| message.seq);
            let ids: Vec<Uuid> = page.messages.iter().map(|message| message.message_id).collect();
            for message in page.messages {
                self.record_shown(message, stream, opened);
            }
            after = Some(page.next).filter(|_| self.rng.random_bool(0.9));
            if let Some(last) = last {
                self.confirm_by_http(last, ids).await;
            }
        }
    }

    async fn confirm_by_http(&mut self, last: u64, ids: Vec<Uuid>) {
        let invoked = self.recorder.now();
        let (what, answer) = match self.rng.random_range(0..10) {
            0..5 => (Confirmed::UpTo(last), self.client.confirm_up_to(last).await),
            5..8 => {
                let answer = self.client.confirm_messages(&ids).await;
                (Confirmed::Messages(ids), answer)
            }
            _ => return,
        };
        let (peer, outcome) = (self.client.peer(), outcome(&answer));
        self.recorder.add(confirmation(peer, what, invoked, &self.recorder, outcome));
    }

    /// Tries to act as others, with a token of its own and without any, until told to stop.
    async fn trespass(mut self, peers: Vec<String>) {
        while !*self.stop.borrow() {
            let victim = &peers[self.rng.random_range(1..peers.len())];
            let stranger = self.client.calling_as(victim, None);
            let deed = self.rng.random_range(0..5);
            // The inbox is whose the token is, so only a stranger can ask for another's.
            let is_known = deed < 3 && self.rng.random_bool(0.5);
            let caller = if is_known { &self.client } else { &stranger };
            let (action, request) = match deed {
                0 => {
                    let body = json!({ "from": victim, "to": victim, "content": "forged" });
                    ("send", caller.request(Method::POST, "/v1/messages").json(&body))
                }
                1 => {
                    let path = format!("/api/bitchat/peers/{victim}/status?is_online=false");
                    ("change presence", caller.request(Method::PUT, &path))
                }
                2 => {
                    let body = json!({ "peer_id": victim, "public_key": "stolen" });
                    ("register again", caller.request(Method::POST, "/v1/peers").json(&body))
                }
                3 => ("read", caller.request(Method::GET, "/v1/inbox")),
                _ => {
                    let body = json!({ "up_to": 1_000_000 });
                    ("confirm", caller.request(Method::POST, "/v1/inbox/ack").json(&body))
                }
            };
            let answer = caller.call::<Value>(request).await;
            self.recorder.add(Event::Trespass(Trespass {
                caller: caller.token().map(|_| caller.peer().to_owned()).unwrap_or_default(),
                claimed: victim.clone(),
                action: action.to_owned(),
                outcome: outcome(&answer),
            }));
            self.rest(TRESPASS_PAUSE).await;
        }
    }

    fn record_shown(&self, message: InboxMessage, stream: u64, opened: u64) {
        self.tally.shown.fetch_add(1, Ordering::Relaxed);
        self.recorder.add(shown(self.client.peer(), message, stream, opened, self.recorder.now()));
    }

    async fn pause(&mut self, most: Duration) {
        sleep(most.mul_f64(self.rng.random_range(0.1..1.0))).await;
    }

    /// As [`pause`](Self::pause), cut short when there is nothing more to do.
    async fn rest(&mut self, most: Duration) {
        let pause = most.mul_f64(self.rng.random_range(0.0..1.0));
        let _ = timeout(pause, self.stop.wait_for(|stop| *stop)).await;
    }
}

fn shown(peer: &str, message: InboxMessage, stream: u64, opened: u64, at: u64) -> Event {
    Event::Shown(Shown {
        peer: peer.to_owned(),
        seq: message.seq,
        message: message.message_id,
        sender: bare(message.from),
        content: message.content.unwrap_or_default(),
        gap: message.gap,
        late: message.late,
        stream,
        opened,
        at,
    })
}

fn confirmation(
    peer: &str,
    what: Confirmed,
    invoked: u64,
    recorder: &Recorder,
    outcome: Outcome,
) -> Event {
    let completed = recorder.now();
    Event::Confirm(Confirm { peer: peer.to_owned(), what, invoked, completed, outcome })
}

fn outcome<T>(answer: &Result<T, Failure>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Done,
        Err(failure) if failure.is_certain() => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    }
}
