//! The loop that feeds the core and does what it says.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use fieldpost_envelope::{GatewayId, Timestamp};
use fieldpost_peering::{
    Action, Event, LinkId, Moment, NodeId, Outgoing, Peering, Refusal, SendFailure, Source, Target,
    Token, limits,
};
use iroh::{
    Endpoint, EndpointId, Watcher,
    endpoint::{Connection, Incoming},
};
use netwatch::netmon::Monitor;
use rand::rngs::StdRng;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, warn};

use super::{
    ALPN, BROADCAST, Shared,
    addresses::{AddressBook, Bootstrap},
    discovery::Discovery,
    link::LinkEnd,
    lock,
    notices::{Notice, Notices},
};
use crate::{HeardRoster, SendError};

/// What reaches the loop.
pub(super) enum Input {
    Core(Event),
    Connected { connection: Connection, is_dialled: bool },
    DialFailed { node: NodeId, reason: String },
    Found { node: NodeId, addresses: BTreeSet<SocketAddr> },
    Bootstrap(Bootstrap),
    Send { target: Target, envelope: Bytes, answer: Answer },
    LinkTo { gateway: GatewayId, answer: oneshot::Sender<Option<Connection>> },
}

type Answer = oneshot::Sender<Result<(), SendFailure>>;

/// Where what comes in goes.
pub(super) struct Outlets {
    pub(super) inbox: mpsc::Sender<(GatewayId, Bytes)>,
    pub(super) rosters: mpsc::Sender<HeardRoster>,
    pub(super) reach: watch::Sender<Arc<BTreeSet<String>>>,
}

pub(super) struct Driver {
    peering: Peering<StdRng>,
    endpoint: Endpoint,
    inputs: mpsc::Sender<Input>,
    shared: Arc<Shared>,
    outlets: Outlets,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    addresses: AddressBook,
    links: HashMap<LinkId, LinkEnd>,
    last_link: u64,
    dials: HashMap<NodeId, AbortHandle>,
    answers: HashMap<Token, Answer>,
    last_token: u64,
    room: Arc<Semaphore>,
    tasks: JoinSet<()>,
    warned_at: Option<Instant>,
    notices: Notices,
}

impl Driver {
    pub(super) fn new(
        peering: Peering<StdRng>,
        endpoint: Endpoint,
        inputs: mpsc::Sender<Input>,
        shared: Arc<Shared>,
        outlets: Outlets,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Self {
        Self {
            peering,
            endpoint,
            inputs,
            shared,
            outlets,
            clock,
            addresses: AddressBook::default(),
            links: HashMap::new(),
            last_link: 0,
            dials: HashMap::new(),
            answers: HashMap::new(),
            last_token: 0,
            room: Arc::new(Semaphore::new(READING)),
            tasks: JoinSet::new(),
            warned_at: None,
            notices: Notices::default(),
        }
    }

    pub(super) async fn run(
        mut self,
        mut taken: mpsc::Receiver<Input>,
        bootstrap: Vec<Bootstrap>,
        discovery: Option<Discovery>,
    ) {
        self.tasks.spawn(accept(self.endpoint.clone(), self.inputs.clone()));
        self.tasks.spawn(watch_interfaces(self.inputs.clone()));
        if let Some(discovery) = discovery {
            self.tasks.spawn(discover(discovery, self.inputs.clone()));
        }
        let mut burst: Vec<_> = bootstrap.into_iter().map(Input::Bootstrap).collect();
        self.take_in(&mut burst);
        let mut ends_at: Option<Instant> = None;
        loop {
            let deadline = self.peering.next_deadline().map(Instant::from_std);
            let wakes_at = [deadline, ends_at].into_iter().flatten().min();
            tokio::select! {
                count = taken.recv_many(&mut burst, BURST) => if count == 0 { break },
                () = self.shared.is_posted.notified() => {}
                () = wait_until(wakes_at) => self.feed(Event::Wake),
            }
            self.take_posted();
            self.take_in(&mut burst);
            while self.tasks.try_join_next().is_some() {}
            *lock(&self.shared.counters) = self.peering.counters().clone();
            if self.shared.is_stopping.load(Ordering::Relaxed) {
                // What is under way may still be answered.
                let end = *ends_at.get_or_insert_with(|| Instant::now() + LAST_ANSWERS);
                if self.peering.unsettled() == 0 || Instant::now() >= end {
                    break;
                }
            }
        }
        self.feed(Event::Shutdown);
        self.tasks.abort_all();
        let _ = timeout(CLOSING, self.endpoint.close()).await;
    }

    fn take_posted(&mut self) {
        let drained = std::mem::take(&mut *lock(&self.shared.drained));
        for (gateway, (envelopes, bytes)) in drained {
            self.feed(Event::Drained { gateway, envelopes, bytes });
        }
        let posted = std::mem::take(&mut *lock(&self.shared.posted));
        if let Some(certificate) = posted.certificate {
            self.feed(Event::Renew(certificate));
        }
        if let Some(gateways) = posted.warm {
            self.feed(Event::KeepWarm(gateways));
        }
        for gateway in posted.missed {
            self.feed(Event::RosterLost { gateway });
        }
        for (roster, delta) in posted.rosters {
            self.feed(Event::Publish { roster, delta });
        }
    }

    fn take_in(&mut self, burst: &mut Vec<Input>) {
        let mut outgoing = Vec::new();
        for input in burst.drain(..) {
            match input {
                Input::Core(event) => self.feed(event),
                Input::Connected { connection, is_dialled } => self.connect(connection, is_dialled),
                Input::DialFailed { node, reason } => {
                    self.dials.remove(&node);
                    self.fail(node, &reason);
                    self.feed(Event::DialFailed { node });
                }
                Input::Found { node, addresses } => {
                    self.addresses.set_nearby(node, addresses);
                    self.feed(Event::Found { node, source: Source::Nearby });
                }
                Input::Bootstrap(entry) => {
                    let node = entry.node;
                    self.notices.watch(node, entry.to_string());
                    self.addresses.add_bootstrap(entry);
                    self.feed(Event::Found { node, source: Source::Bootstrap });
                }
                Input::Send { target, envelope, answer } => {
                    self.last_token += 1;
                    let token = Token(self.last_token);
                    self.answers.insert(token, answer);
                    outgoing.push(Outgoing { token, target, envelope });
                }
                Input::LinkTo { gateway, answer } => {
                    let link = self.peering.link_to(gateway).and_then(|id| self.links.get(&id));
                    let _ = answer.send(link.map(|link| link.connection.clone()));
                }
            }
        }
        if !outgoing.is_empty() {
            self.feed(Event::Send(outgoing));
        }
    }

    fn connect(&mut self, connection: Connection, is_dialled: bool) {
        self.last_link += 1;
        let (link, node) = (LinkId(self.last_link), NodeId(*connection.remote_id().as_bytes()));
        if is_dialled {
            self.dials.remove(&node);
        }
        let (inputs, shared) = (self.inputs.clone(), self.shared.clone());
        let room = self.room.clone();
        let end = LinkEnd::start(link, connection, is_dialled, inputs, shared, room);
        self.links.insert(link, end);
        self.feed(Event::Connected { link, node, is_dialled });
    }

    fn feed(&mut self, event: Event) {
        let now = Moment { at: Instant::now().into_std(), wall: (self.clock)() };
        if let Event::Closed { link, reason } = &event
            && let Some(end) = self.links.remove(link)
            && !end.is_open()
        {
            match reason {
                Some(reason) => self.refused(end.node(), *reason),
                None => self.fail(end.node(), "it ended the link without a word"),
            }
        }
        let actions: Vec<Action> = self.peering.handle(now, event).collect();
        actions.into_iter().for_each(|action| self.act(action));
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Dial { node, patience } => self.dial(node, patience),
            Action::Forget { node } => self.addresses.forget(node),
            Action::Open { link, gateway } => {
                if let Some(end) = self.links.get_mut(&link) {
                    end.open(gateway);
                    let node = end.node();
                    tell(self.notices.answer(node));
                }
            }
            Action::Write { link, frame } => {
                if self.links.get(&link).is_some_and(|end| !end.write(frame)) {
                    self.feed(Event::Misbehaved { link, refusal: Refusal::Stalled });
                }
            }
            Action::Batch { link, number, envelopes, is_large } => {
                if let Some(end) = self.links.get_mut(&link) {
                    end.put_batch(number, &envelopes, is_large);
                }
            }
            Action::Rosters { link, rosters } => {
                if let Some(end) = self.links.get_mut(&link) {
                    end.put_rosters(&rosters);
                }
            }
            Action::Close { link, refusal } => {
                // A stranger decides how often this happens; the counters have all of them.
                let is_due = self.warned_at.is_none_or(|at| at.elapsed() >= WARNINGS_APART);
                if refusal.is_fault() && is_due {
                    self.warned_at = Some(Instant::now());
                    warn!(link.reason = %refusal, "a link is refused");
                } else {
                    debug!(link.reason = %refusal, "a link is ended");
                }
                if let Some(end) = self.links.remove(&link) {
                    if !end.is_open() {
                        self.refused(end.node(), refusal);
                    }
                    if refusal == Refusal::Ours {
                        self.shared.note_kin(end.node());
                    }
                    end.close(refusal);
                }
            }
            Action::Deliver { gateway, envelope } => {
                // The core lets no more wait than there is room for.
                let _ = self.outlets.inbox.try_send((gateway, envelope));
            }
            Action::Hear { gateway, roster, is_nearby } => {
                let heard = HeardRoster { bytes: roster.into(), is_nearby };
                if self.outlets.rosters.try_send(heard).is_err() {
                    self.feed(Event::RosterLost { gateway });
                }
            }
            Action::Settle { token, result } => {
                if let Some(answer) = self.answers.remove(&token) {
                    let _ = answer.send(result);
                }
            }
            Action::ReachChanged => self.tell_reach(),
        }
    }

    /// A link to a node ended before it was one.
    fn refused(&mut self, node: NodeId, refusal: Refusal) {
        match refusal {
            // It is there; that there is no link is as it should be.
            Refusal::Ours | Refusal::Duplicate => tell(self.notices.answer(node)),
            _ => self.fail(node, &refusal.to_string()),
        }
    }

    fn fail(&mut self, node: NodeId, reason: &str) {
        let is_linked = self.links.values().any(|end| end.node() == node && end.is_open());
        if !is_linked {
            tell(self.notices.fail(node, reason));
        }
    }

    fn tell_reach(&mut self) {
        let linked: BTreeSet<GatewayId> = self.peering.gateways().collect();
        let mut names: BTreeSet<String> =
            linked.iter().map(|gateway| gateway.to_string()).collect();
        tell(self.notices.reach(Instant::now(), linked));
        if !names.is_empty() {
            names.insert(BROADCAST.to_owned());
        }
        self.outlets.reach.send_if_modified(|known| {
            let is_news = **known != names;
            if is_news {
                *known = Arc::new(names);
            }
            is_news
        });
    }

    fn dial(&mut self, node: NodeId, patience: Duration) {
        let Ok(id) = EndpointId::from_bytes(&node.0) else {
            // Nobody can hold this key.
            self.fail(node, "nobody can hold that node key");
            return self.feed(Event::DialFailed { node });
        };
        let (endpoint, inputs) = (self.endpoint.clone(), self.inputs.clone());
        let places = self.addresses.places(node);
        let task = self.tasks.spawn(async move {
            let connecting = async {
                let address = places.resolve(id).await?;
                endpoint.connect(address, ALPN).await.map_err(|error| error.to_string())
            };
            let connected = timeout(patience, connecting).await;
            let input = match connected {
                Ok(Ok(connection)) => Input::Connected { connection, is_dialled: true },
                Ok(Err(error)) => {
                    debug!(node.id = %id, %error, "no connection came of a dial");
                    Input::DialFailed { node, reason: error }
                }
                Err(_) => {
                    let reason = format!("no answer within {} ms", patience.as_millis());
                    Input::DialFailed { node, reason }
                }
            };
            let _ = inputs.send(input).await;
        });
        if let Some(earlier) = self.dials.insert(node, task) {
            earlier.abort();
        }
    }
}

fn tell(notices: impl IntoIterator<Item = Notice>) {
    notices.into_iter().for_each(|notice| notice.tell());
}

/// Why an envelope was not taken, as the transport says it.
pub(super) fn send_error(target: &str, failure: SendFailure) -> SendError {
    match failure {
        SendFailure::Unreachable => SendError::Unreachable { target: target.to_owned() },
        SendFailure::Busy => SendError::Busy { limit: limits::LINK_ENVELOPES },
        SendFailure::LinkLost => SendError::Failed(failure.to_string()),
        SendFailure::Shut => SendError::Shut,
    }
}

/// Takes connections that others make, a few at a time.
async fn accept(endpoint: Endpoint, inputs: mpsc::Sender<Input>) {
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                if handshakes.len() >= HANDSHAKES {
                    incoming.refuse();
                } else if handshakes.len() >= UNVALIDATED && !incoming.remote_addr_validated() {
                    // Under load, whoever dials must show first that it is where it says.
                    let _ = incoming.retry();
                } else {
                    handshakes.spawn(shake_hands(incoming, inputs.clone()));
                }
            }
            Some(_) = handshakes.join_next() => {}
        }
    }
}

async fn shake_hands(incoming: Incoming, inputs: mpsc::Sender<Input>) {
    let Ok(accepting) = incoming.accept() else { return };
    if let Ok(Ok(connection)) = timeout(HANDSHAKE, accepting).await {
        let _ = inputs.send(Input::Connected { connection, is_dialled: false }).await;
    }
}

async fn discover(discovery: Discovery, inputs: mpsc::Sender<Input>) {
    while let Some(found) = discovery.next().await {
        let input = Input::Found { node: found.node, addresses: found.addresses };
        if inputs.send(input).await.is_err() {
            return;
        }
    }
}

async fn watch_interfaces(inputs: mpsc::Sender<Input>) {
    let monitor = match Monitor::new().await {
        Ok(monitor) => monitor,
        Err(error) => {
            warn!(%error, "interfaces are not watched; a link that comes back is found a little later");
            return;
        }
    };
    let mut state = monitor.interface_state();
    while state.updated().await.is_ok() {
        if inputs.send(Input::Core(Event::NetworkChanged)).await.is_err() {
            return;
        }
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

const BURST: usize = 256;
/// Bytes in memory for streams that have not ended, of all links.
const READING: usize = 128 * 1024 * 1024;
const HANDSHAKES: usize = 64;
const UNVALIDATED: usize = 8;
const HANDSHAKE: Duration = Duration::from_secs(5);
const WARNINGS_APART: Duration = Duration::from_secs(10);
const LAST_ANSWERS: Duration = Duration::from_millis(500);
const CLOSING: Duration = Duration::from_secs(1);
