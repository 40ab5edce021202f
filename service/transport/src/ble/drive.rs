//! The loop that owns the node: feeds it what radios and the gateway bring, and does what it says.

mod incoming;
mod outgoing;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fieldpost_bitchat::{Action, Command, Event, FailReason, LinkId, MeshId, Node, Now};
use fieldpost_envelope::{Envelope, GatewayId, PeerId, Timestamp};
use futures_util::future::select_all;
use rand::rngs::StdRng;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};
use uuid::Uuid;

use self::outgoing::{Load, Way};
use super::{
    BROADCAST, FromPhone, Phone, PhonePin, Shared,
    gateways::Gateways,
    lock,
    phones::Hosted,
    port::{OpenRadio, Port, PortEvent},
};
use crate::{HeardRoster, RadioEvent, SendError};

pub(super) type Answer = oneshot::Sender<Result<(), SendError>>;

/// What the gateway asks for.
pub(super) enum Request {
    ToGateway {
        gateway: GatewayId,
        envelope: Vec<u8>,
        digest: [u8; 32],
        answer: Answer,
        room: OwnedSemaphorePermit,
    },
    ToPhone {
        phone: MeshId,
        envelope: Box<Envelope>,
        digest: [u8; 32],
        answer: Answer,
    },
    Broadcast {
        envelope: Box<Envelope>,
        bytes: Vec<u8>,
        digest: [u8; 32],
        answer: Answer,
    },
    Acknowledge {
        phone: MeshId,
        peer: PeerId,
        message_id: String,
        kind: fieldpost_bitchat::ReceiptKind,
        answer: Answer,
    },
    Forget {
        phone: MeshId,
        peer: PeerId,
        message_id: String,
    },
}

/// Where what comes in goes.
pub(super) struct Outlets {
    pub(super) inbox: mpsc::Sender<Vec<u8>>,
    pub(super) rosters: mpsc::Sender<HeardRoster>,
    pub(super) spoken: mpsc::Sender<FromPhone>,
    pub(super) reach: watch::Sender<Arc<BTreeSet<String>>>,
    pub(super) present: watch::Sender<Arc<BTreeMap<PeerId, Phone>>>,
}

pub(super) struct Driver {
    node: Node<StdRng>,
    gateways: Gateways,
    hosted: Hosted,
    shared: Arc<Shared>,
    outlets: Outlets,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    start: Instant,
    ports: Vec<Port>,
    /// Which port a link is of.
    links: BTreeMap<LinkId, usize>,
    /// What is under way to other nodes, and what waits for its turn there.
    ways: BTreeMap<MeshId, Way>,
    under_way: BTreeMap<Uuid, (MeshId, Load)>,
    last_transfer: u128,
    /// The command that was just given, and why it failed.
    judged: Option<(Uuid, Option<MeshId>, Option<FailReason>)>,
    /// What phones have said and nobody has taken yet.
    spoken: VecDeque<FromPhone>,
    look_at: Duration,
    has_news: bool,
}

impl Driver {
    pub(super) fn new(
        node: Node<StdRng>,
        gateways: Gateways,
        shared: Arc<Shared>,
        outlets: Outlets,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Self {
        Self {
            node,
            gateways,
            hosted: Hosted::default(),
            shared,
            outlets,
            clock,
            start: Instant::now(),
            ports: Vec::new(),
            links: BTreeMap::new(),
            ways: BTreeMap::new(),
            under_way: BTreeMap::new(),
            last_transfer: 0,
            judged: None,
            spoken: VecDeque::new(),
            look_at: Duration::ZERO,
            has_news: true,
        }
    }

    pub(super) fn pin(&mut self, pins: &[PhonePin]) {
        for PhonePin { noise_key, signing_key, is_verified } in pins.iter().copied() {
            self.command(Command::Pin { noise_key, signing_key, verified: is_verified });
        }
    }

    pub(super) async fn run(
        mut self,
        radios: Vec<Arc<dyn OpenRadio>>,
        mut asked: mpsc::Receiver<Request>,
    ) {
        self.ports = radios.into_iter().map(Port::new).collect();
        let spoken = self.outlets.spoken.clone();
        while !self.shared.is_stopping.load(Ordering::Relaxed) {
            let wakes_at = self.start + self.next_deadline();
            tokio::select! {
                (index, event) = next_event(&mut self.ports) => self.on_port(index, event),
                request = asked.recv() => match request {
                    Some(request) => self.on_request(request),
                    None => break,
                },
                () = self.shared.is_posted.notified() => {}
                room = spoken.reserve(), if !self.spoken.is_empty() => {
                    if let (Ok(room), Some(said)) = (room, self.spoken.pop_front()) {
                        room.send(said);
                    }
                }
                () = sleep_until(wakes_at) => self.feed(Event::Wake),
            }
            self.take_posted();
            self.tell_nodes();
            self.show();
        }
        self.say_farewell().await;
        for port in &mut self.ports {
            port.shutdown().await;
        }
        self.outlets.reach.send_replace(Arc::default());
    }

    /// Lets the neighbours know, if that can be done at once.
    async fn say_farewell(&mut self) {
        let hosted: Vec<MeshId> = self.node.hosted().collect();
        hosted.into_iter().for_each(|peer| self.command(Command::Unhost { peer }));
        let end = Instant::now() + FAREWELL;
        while self.node.load().waiting_frames > 0 && Instant::now() < end {
            let wake = self.start + self.node.next_deadline().unwrap_or_default();
            sleep_until(wake.min(end)).await;
            self.feed(Event::Wake);
        }
        // The radios have the last frames; they are not asked when these have left.
        sleep_until(Instant::now() + LAST_FRAMES).await;
    }

    fn next_deadline(&self) -> Duration {
        let core = self.node.next_deadline();
        let hello = self.gateways.next_deadline();
        core.into_iter().chain(hello).fold(self.look_at, Duration::min)
    }

    fn on_port(&mut self, index: usize, event: PortEvent) {
        let is_traffic =
            matches!(event, PortEvent::Radio(RadioEvent::Frame { .. } | RadioEvent::Room { .. }));
        // What frames bring is told by reports.
        self.has_news |= !is_traffic;
        match event {
            PortEvent::Opened => info!(radio = self.ports[index].name(), "a radio is open"),
            PortEvent::Closed(reason) => {
                let name = self.ports[index].name();
                match self.ports[index].is_told(&reason) {
                    false => warn!(radio = name, "no radio: {reason}; trying again"),
                    true => debug!(radio = name, "no radio: {reason}; trying again"),
                }
                let of_port = |(_, port): &(&LinkId, &usize)| **port == index;
                let lost: Vec<LinkId> =
                    self.links.iter().filter(of_port).map(|(l, _)| *l).collect();
                lost.into_iter().for_each(|link| self.link_down(link));
            }
            PortEvent::Radio(RadioEvent::Up { link, role, max_frame, phone }) => {
                self.links.insert(link, index);
                self.feed(Event::LinkUp { link, role, max_frame, phone });
            }
            PortEvent::Radio(RadioEvent::Down { link }) => self.link_down(link),
            PortEvent::Radio(RadioEvent::Room { link, frames }) => {
                self.feed(Event::Room { link, frames });
            }
            PortEvent::Radio(RadioEvent::Frame { link, bytes }) => {
                self.feed(Event::Frame { link, bytes });
            }
        }
    }

    fn link_down(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.feed(Event::LinkDown { link });
    }

    fn tell_nodes(&mut self) {
        let now = self.now().at;
        for outgoing in self.gateways.due(now) {
            self.tell(outgoing);
        }
    }

    fn take_posted(&mut self) {
        let posted = std::mem::take(&mut *lock(&self.shared.posted));
        let (now, wall) = (self.now().at, self.wall());
        if let Some(certificate) = posted.certificate {
            self.gateways.renew(now, certificate);
        }
        if let Some(peers) = posted.hosted {
            let changes = self.hosted.set(peers);
            for peer in changes.unhost {
                self.command(Command::Unhost { peer });
            }
            for one in changes.host {
                let (identity, nickname) = (Box::new(one.identity), one.nickname);
                self.command(Command::Host { identity, nickname });
            }
            for (peer, nickname) in changes.rename {
                self.command(Command::Rename { peer, nickname });
            }
        }
        for (roster, delta) in posted.rosters {
            self.gateways.publish(&roster, delta.as_ref());
        }
        for gateway in posted.missed {
            if let Some(outgoing) = self.gateways.missed(wall, gateway) {
                self.tell(outgoing);
            }
        }
    }

    /// Gives a command that is judged at once.
    fn judge(&mut self, command: Command, id: Uuid, to: Option<MeshId>) -> Result<(), FailReason> {
        self.judged = Some((id, to, None));
        self.command(command);
        self.judged.take().and_then(|(.., reason)| reason).map_or(Ok(()), Err)
    }

    fn command(&mut self, command: Command) {
        self.feed(Event::Command(command));
    }

    fn feed(&mut self, event: Event) {
        let now = self.now();
        let actions: Vec<Action> = self.node.handle(now, event).collect();
        for action in actions {
            match action {
                Action::Transmit { link, frame } => {
                    let port = self.links.get(&link).and_then(|port| self.ports.get(*port));
                    // What is lost here is repeated like what is lost on the air.
                    if let Some(Err(error)) = port.map(|port| port.transmit(link, frame)) {
                        debug!(%error, "a frame was not taken");
                    }
                }
                Action::Disconnect { link } => {
                    if let Some(port) = self.links.get(&link).and_then(|port| self.ports.get(*port))
                    {
                        port.disconnect(link);
                    }
                }
                Action::Report(report) => self.on_report(report),
            }
        }
    }

    /// Shows who is there, when that may have changed and now and then.
    fn show(&mut self) {
        let now = self.now();
        if !self.has_news && now.at < self.look_at {
            return;
        }
        self.has_news = false;
        self.look_at = now.at + LOOK;
        let wall = self.wall();
        let mut names: BTreeSet<String> =
            self.gateways.present(wall).map(|(_, gateway)| gateway.to_string()).collect();
        let mut phones = BTreeMap::new();
        let mut hops = BTreeMap::new();
        for peer in self.node.peers() {
            let gateway = self.gateways.gateway_of(wall, peer.id);
            let name = gateway.map_or_else(|| peer.id.to_hex(), |gateway| gateway.to_string());
            let known = hops.entry(name).or_insert(peer.hops);
            *known = peer.hops.min(*known);
        }
        *lock(&self.shared.hops) = hops;
        for peer in self.node.peers().filter(|peer| !peer.is_gateway && !peer.is_hosted) {
            let id = PeerId::phone(peer.id.0);
            let silent = now.at.saturating_sub(peer.heard_at).as_millis() as u64;
            let heard_at = Timestamp::try_from(now.unix_ms.saturating_sub(silent));
            names.insert(id.to_string());
            phones.insert(
                id,
                Phone {
                    nickname: peer.nickname,
                    hops: peer.hops,
                    heard_at: heard_at.unwrap_or(wall),
                    is_verified: peer.is_verified,
                    noise_key: peer.noise_key,
                    signing_key: peer.signing_key,
                },
            );
        }
        if self.links.is_empty() {
            // Whoever was heard lately is remembered, but nothing leads there.
            names.clear();
        } else {
            names.insert(BROADCAST.to_owned());
        }
        set(&self.outlets.reach, names);
        set(&self.outlets.present, phones);
        let open = self.ports.iter().any(Port::is_open);
        self.shared.is_available.store(open, Ordering::Relaxed);
        let troubles: Vec<String> = self
            .ports
            .iter()
            .filter_map(|port| Some(format!("{}: {}", port.name(), port.trouble()?)))
            .collect();
        *lock(&self.shared.trouble) = match (troubles.is_empty(), self.ports.is_empty()) {
            (true, false) => None,
            (true, true) => Some("there is no radio: --ble-radio is none".to_owned()),
            (false, _) => Some(troubles.join("; ")),
        };
        *lock(&self.shared.counters) = self.node.counters();
        self.shared.links.store(self.links.len(), Ordering::Relaxed);
    }

    fn now(&self) -> Now {
        Now { at: self.start.elapsed(), unix_ms: self.wall().as_millis() }
    }

    fn wall(&self) -> Timestamp {
        (self.clock)()
    }
}

fn set<T: PartialEq>(place: &watch::Sender<Arc<T>>, value: T) {
    place.send_if_modified(|known| {
        let is_news = **known != value;
        if is_news {
            *known = Arc::new(value);
        }
        is_news
    });
}

/// Waits for what happens first on any port; for ever if there is none.
async fn next_event(ports: &mut [Port]) -> (usize, PortEvent) {
    if ports.is_empty() {
        return std::future::pending().await;
    }
    let all = ports.iter_mut().enumerate();
    let next = all.map(|(index, port)| Box::pin(async move { (index, port.next().await) }));
    select_all(next).await.0
}

/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_millis(300);
const LAST_FRAMES: Duration = Duration::from_millis(50);
/// How often it is looked who is there though nothing says that it has changed.
const LOOK: Duration = Duration::from_secs(1);
