//! The loop that owns the node: feeds it what radios and the gateway bring, and does what it says.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fieldpost_bitchat::{
    Action, Command, Event, FailReason, LinkId, MeshId, Node, Now, Report,
    payload::exchange::Exchange,
};
use fieldpost_envelope::{Envelope, GatewayId, PeerId, ReceiptKind, SignedRoster, Timestamp};
use futures_util::future::select_all;
use rand::rngs::StdRng;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{
    BROADCAST, FromPhone, Phone, PhoneFile, PhonePin, Shared,
    gateways::{Content, Gateways, Outgoing},
    lock,
    phones::{ForPhone, Hosted, text_of},
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

/// What goes to one node.
#[derive(Default)]
struct Way {
    under_way: usize,
    waiting: VecDeque<Load>,
}

/// Something on its way to a node.
enum Load {
    Own(Content),
    Envelope {
        bytes: Vec<u8>,
        digest: [u8; 32],
        answer: Option<Answer>,
        _room: Option<OwnedSemaphorePermit>,
    },
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
        self.has_news = true;
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
            PortEvent::Radio(RadioEvent::Frame { link, bytes }) => {
                self.feed(Event::Frame { link, bytes });
            }
        }
    }

    fn link_down(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.feed(Event::LinkDown { link });
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::ToGateway { gateway, envelope, digest, answer, room } => {
                let target = || gateway.to_string();
                match self.node_of(gateway) {
                    Some(id) => self.send_envelope(id, envelope, digest, Some(answer), Some(room)),
                    None => give(answer, Err(SendError::Unreachable { target: target() })),
                }
            }
            Request::ToPhone { phone, envelope, digest, answer } => {
                let sent = self.send_to_phone(phone, &envelope, digest);
                give(answer, sent);
            }
            Request::Broadcast { envelope, bytes, digest, answer } => {
                let sent = self.broadcast(&envelope, &bytes, digest);
                give(answer, sent);
            }
            Request::Acknowledge { phone, peer, message_id, kind, answer } => {
                let sent = self.hosted.mesh_id(&peer).ok_or_else(|| off_air(&peer)).map(|from| {
                    let to = phone;
                    self.command(Command::SendReceipt { from, to, message_id, kind });
                });
                give(answer, sent);
            }
            Request::Forget { phone, peer, message_id } => {
                if let Some(to) = self.hosted.mesh_id(&peer) {
                    self.command(Command::Forget { to, from: phone, message_id });
                }
            }
        }
    }

    /// The node of a gateway that is reached over the fewest links, of several the one heard last.
    fn node_of(&self, gateway: GatewayId) -> Option<MeshId> {
        let nodes: BTreeSet<MeshId> = self.gateways.nodes_of(self.wall(), gateway).collect();
        let peers = self.node.peers().filter(|peer| nodes.contains(&peer.id));
        peers.min_by_key(|peer| (peer.hops, std::cmp::Reverse(peer.heard_at))).map(|peer| peer.id)
    }

    fn send_envelope(
        &mut self,
        id: MeshId,
        bytes: Vec<u8>,
        digest: [u8; 32],
        answer: Option<Answer>,
        room: Option<OwnedSemaphorePermit>,
    ) {
        let is_same =
            |load: &Load| matches!(load, Load::Envelope { digest: other, .. } if *other == digest);
        let is_waiting = self.ways.get(&id).is_some_and(|way| way.waiting.iter().any(is_same));
        let is_under_way = self.under_way.values().any(|(to, load)| *to == id && is_same(load));
        if is_waiting || is_under_way {
            // It is asked for again since nobody has answered yet; a second copy would be slower.
            if let Some(answer) = answer {
                give(answer, Ok(()));
            }
            return;
        }
        self.enqueue(id, Load::Envelope { bytes, digest, answer, _room: room });
    }

    fn send_to_phone(
        &mut self,
        phone: MeshId,
        envelope: &Envelope,
        digest: [u8; 32],
    ) -> Result<(), SendError> {
        let sender = &envelope.sender.peer;
        let from = self.hosted.mesh_id(sender).ok_or_else(|| off_air(sender))?;
        let id = envelope.message_id.0;
        if !self.hosted.leaves((from, phone, id), digest) {
            return Ok(());
        }
        let command = match ForPhone::of(id, &envelope.content) {
            ForPhone::Text(text) => Command::SendPrivate { from, to: phone, message_id: id, text },
            ForPhone::File(file) => Command::SendFile { from, to: Some(phone), file_id: id, file },
        };
        self.judge(command, id, Some(phone)).map_err(|reason| {
            self.hosted.ended(id, phone);
            send_error(&phone.to_string(), reason)
        })
    }

    /// Phones hear a broadcast in the name of the hosted peer, gateways get the envelope, so that it
    /// stays one message whatever brings it.
    fn broadcast(
        &mut self,
        envelope: &Envelope,
        bytes: &[u8],
        digest: [u8; 32],
    ) -> Result<(), SendError> {
        let wall = self.wall();
        let others: BTreeSet<GatewayId> =
            self.gateways.present(wall).map(|(_, gateway)| gateway).collect();
        let nodes: Vec<MeshId> =
            others.iter().filter_map(|gateway| self.node_of(*gateway)).take(MOST_HEARERS).collect();
        let has_nodes = !nodes.is_empty();
        for id in nodes {
            self.send_envelope(id, bytes.to_vec(), digest, None, None);
        }
        let sender = &envelope.sender.peer;
        let said = match (self.hosted.mesh_id(sender), text_of(&envelope.content)) {
            (None, _) => Err(off_air(sender)),
            (_, None) => Err(SendError::Failed("phones hear broadcasts of text alone".to_owned())),
            (Some(from), Some(text)) => {
                let message_id = envelope.message_id.0;
                let command = Command::SendPublic { from, message_id, text };
                self.judge(command, message_id, None)
                    .map_err(|reason| send_error(BROADCAST, reason))
            }
        };
        if has_nodes { Ok(()) } else { said }
    }

    fn enqueue(&mut self, id: MeshId, load: Load) {
        let way = self.ways.entry(id).or_default();
        way.waiting.push_back(load);
        self.advance(id);
    }

    /// Lets go to a node what may.
    fn advance(&mut self, id: MeshId) {
        loop {
            let Some(way) = self.ways.get_mut(&id) else { return };
            let may = way.under_way < AT_ONCE;
            let Some(load) = may.then(|| way.waiting.pop_front()).flatten() else {
                if way.under_way == 0 && way.waiting.is_empty() {
                    self.ways.remove(&id);
                }
                return;
            };
            way.under_way += 1;
            self.last_transfer += 1;
            let transfer_id = Uuid::from_u128(self.last_transfer);
            let bytes = match &load {
                Load::Own(content) => content.bytes().to_vec(),
                Load::Envelope { bytes, .. } => Exchange::Envelope(bytes.clone()).encode(),
            };
            self.under_way.insert(transfer_id, (id, load));
            self.command(Command::SendGateway { to: id, transfer_id, bytes });
        }
    }

    /// A transfer has come to its end.
    fn arrived(&mut self, transfer: Uuid, result: Result<(), FailReason>) {
        let Some((id, load)) = self.under_way.remove(&transfer) else { return };
        if let Some(way) = self.ways.get_mut(&id) {
            way.under_way -= 1;
        }
        match load {
            Load::Own(content) => self.gateways.settled(id, &content, result.is_ok()),
            Load::Envelope { answer: Some(answer), .. } => {
                give(answer, result.map_err(|reason| send_error(&id.to_string(), reason)));
            }
            Load::Envelope { .. } => {}
        }
        self.advance(id);
    }

    fn tell(&mut self, (id, content): Outgoing) {
        let is_same = |load: &Load| {
            matches!((load, &content), (Load::Own(Content::Hello(_)), Content::Hello(_)))
        };
        if !self.under_way.values().any(|(to, load)| *to == id && is_same(load)) {
            self.enqueue(id, Load::Own(content));
        }
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

    fn on_report(&mut self, report: Report) {
        let now = self.now().at;
        match report {
            Report::Peer(peer) => {
                self.has_news = true;
                if peer.is_gateway {
                    self.gateways.appeared(now, peer.id);
                }
            }
            Report::PeerGone { id, .. } => {
                self.has_news = true;
                self.gateways.vanished(id);
            }
            Report::KeyConflict { id } => {
                warn!(phone = %id, "somebody uses a phone's name with other keys; it is not believed");
            }
            Report::Verified { .. } => self.has_news = true,
            Report::Public { from, message_id, timestamp_ms, text } => {
                // What another gateway's peers say comes as an envelope, too.
                let Some(phone) = self.phone(from) else { return };
                let Ok(sent_at) = Timestamp::try_from(timestamp_ms) else { return };
                self.say(FromPhone::Public { from: phone, id: message_id, sent_at, text });
            }
            Report::Private { to, from, message_id, text } => {
                if let Some(peer) = self.hosted.peer(to).cloned() {
                    let from = PeerId::phone(from.0);
                    self.say(FromPhone::Private { to: peer, from, message_id, text });
                }
            }
            Report::File { to, from, file } => {
                let peer = to.and_then(|to| self.hosted.peer(to).cloned());
                let Some(phone) = self.phone(from).filter(|_| to.is_none() || peer.is_some())
                else {
                    return;
                };
                let file =
                    PhoneFile { name: file.name, mime_type: file.mime_type, content: file.content };
                self.say(FromPhone::File { to: peer, from: phone, file });
            }
            Report::Receipt { from, to, message_id, kind } => {
                let envelope = self.hosted.envelope(&(from, to, message_id));
                self.hosted.ended(message_id, to);
                let kind = match kind {
                    fieldpost_bitchat::ReceiptKind::Delivered => ReceiptKind::Delivered,
                    fieldpost_bitchat::ReceiptKind::Read => ReceiptKind::Read,
                };
                if let Some(envelope) = envelope {
                    let phone = PeerId::phone(to.0);
                    self.say(FromPhone::Receipt { phone, envelope, kind });
                }
            }
            Report::Gateway { from, bytes } => self.on_exchange(from, &bytes),
            Report::Sent { id, may_fail_on_apple } => {
                if may_fail_on_apple {
                    debug!(message.id = %id, "a public text is so long that iPhones may not show it");
                }
                self.handed_over(id);
                self.arrived(id, Ok(()));
            }
            Report::Failed { id, to, reason } => {
                if let Some((judged, of, verdict)) = &mut self.judged
                    && (*judged, *of) == (id, to)
                {
                    *verdict = Some(reason);
                }
                if let Some(to) = to {
                    self.hosted.ended(id, to);
                }
                self.arrived(id, Err(reason));
            }
            Report::Favourite { .. } | Report::Pong { .. } => {}
        }
    }

    /// A file is on its way to a phone, which will not say that it has it.
    fn handed_over(&mut self, id: Uuid) {
        let phones: Vec<MeshId> = self.hosted.recipients(id).collect();
        for phone in phones {
            if let Some(envelope) = self.hosted.envelope_to(id, phone) {
                self.hosted.ended(id, phone);
                let phone = PeerId::phone(phone.0);
                self.say(FromPhone::Receipt { phone, envelope, kind: ReceiptKind::Stored });
            }
        }
    }

    fn on_exchange(&mut self, from: MeshId, bytes: &[u8]) {
        let (now, wall) = (self.now().at, self.wall());
        let exchange = match Exchange::decode(bytes) {
            Ok(exchange) => exchange,
            Err(error) => return debug!(%error, "a node said something that is not understood"),
        };
        if let Exchange::Hello(hello) = exchange {
            let key = self.node.peers().find(|peer| peer.id == from).map(|peer| peer.noise_key);
            // A session may stand before the announce has come; the hello is said again.
            let Some(noise_key) = key else { return };
            match self.gateways.hello(now, wall, (from, noise_key), &hello) {
                Ok(answer) => {
                    self.has_news = true;
                    if let Some(gateway) = self.gateways.gateway_of(wall, from) {
                        debug!(gateway.id = %gateway, "a gateway is on the mesh");
                    }
                    answer.into_iter().for_each(|answer| self.tell(answer));
                }
                Err(refusal) => debug!(?refusal, "a node's hello is not believed"),
            }
            return;
        }
        let Some(gateway) = self.gateways.gateway_of(wall, from) else {
            return debug!("a node that has shown no certificate was not listened to");
        };
        match exchange {
            Exchange::Envelope(bytes) => {
                // Who hears no answer sends it again.
                if self.outlets.inbox.try_send(bytes).is_err() {
                    debug!("an envelope found no room");
                }
            }
            Exchange::Roster(bytes) => {
                let number = SignedRoster::decode(&bytes).map(|roster| roster.number());
                // Radio range is no local network: names lead here only where the gateway is
                // trusted by its id.
                let heard = HeardRoster { bytes, is_nearby: false };
                if let (Ok(number), Ok(())) = (number, self.outlets.rosters.try_send(heard)) {
                    self.gateways.passed_up(gateway, number);
                }
            }
            Exchange::Wanted(number) => self.gateways.wanted(from, number),
            Exchange::Hello(_) => {}
        }
    }

    /// The phone of a name; `None` for nodes and for peers of other gateways.
    fn phone(&self, id: MeshId) -> Option<PeerId> {
        let peer = self.node.peers().find(|peer| peer.id == id)?;
        (!peer.is_gateway && !peer.is_hosted).then(|| PeerId::phone(id.0))
    }

    fn say(&mut self, said: FromPhone) {
        if self.spoken.len() < SPOKEN {
            self.spoken.push_back(said);
            return;
        }
        warn!("phones say more than is taken; something is left out");
        if let FromPhone::Private { to, from, message_id, .. } = said
            && let (Some(to), Some(from)) = (self.hosted.mesh_id(&to), MeshId::parse(from.as_str()))
        {
            // It is taken when it comes again.
            self.command(Command::Forget { to, from, message_id });
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

fn give(answer: Answer, result: Result<(), SendError>) {
    // Whoever asked may have lost patience.
    let _ = answer.send(result);
}

fn off_air(peer: &PeerId) -> SendError {
    SendError::Failed(format!(
        "{peer} is not on the air, so phones do not know it: set on_air, and see --max-peers"
    ))
}

fn send_error(target: &str, reason: FailReason) -> SendError {
    match reason {
        FailReason::UnknownPeer | FailReason::NoLink => {
            SendError::Unreachable { target: target.to_owned() }
        }
        FailReason::TooLarge { limit } => SendError::Failed(format!("at most {limit} bytes fit")),
        other => SendError::Failed(other.to_string()),
    }
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

/// Contents under way to one node at once: the core takes eight of one gateway.
const AT_ONCE: usize = 6;
/// Gateways that one broadcast is told to.
const MOST_HEARERS: usize = 32;
/// What phones have said that waits besides the channel.
const SPOKEN: usize = 1024;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_millis(300);
const LAST_FRAMES: Duration = Duration::from_millis(50);
/// How often it is looked who is there though nothing says that it has changed.
const LOOK: Duration = Duration::from_secs(1);
