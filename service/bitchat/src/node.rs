//! A node: itself and the peers it hosts, on the mesh.
//!
//! Frames come in, are received, and what they cause goes out through the queues
//! of the links. Everything waits in tables with a limit; [`Limits`] has them all.

mod announce;
mod control;
mod files;
mod links;
mod private;
mod receive;
mod sessions;
mod speak;
mod transfer;

use std::{collections::BTreeMap, time::Duration};

use rand::Rng;

use crate::{
    counters::Counters,
    dedup::Seen,
    event::{Action, Command, Event, FailReason, Now, Peer, Report},
    fragment::Reassembly,
    id::MeshId,
    identity::Identity,
    limits::Limits,
    link::{LinkId, MIN_FRAME, Role},
    noise::{Pair, Sessions},
    packet::Packet,
    peers::Peers,
    relay::Relay,
};

use self::{announce::Local, links::Link};

/// How often tables are swept while anything is in them.
const SWEEP: Duration = Duration::from_millis(500);

/// The protocol of one node, without I/O, clock or randomness of its own: the same seed and the
/// same events give the same actions.
pub struct Node<R> {
    rng: R,
    limits: Limits,
    counters: Counters,
    own: MeshId,
    is_phone: bool,
    locals: BTreeMap<MeshId, Local>,
    links: BTreeMap<LinkId, Link>,
    peers: Peers,
    seen: Seen,
    relay: Relay,
    sets: Reassembly,
    sessions: Sessions,
    private: private::Private,
    transfers: transfer::Transfers,
    files: files::Files,
    pings: control::Pings,
    challenges: control::Challenges,
    deferred: BTreeMap<(Duration, u64), Packet>,
    last_stamp_ms: u64,
    next_sweep: Duration,
    actions: Vec<Action>,
}

impl<R: Rng> Node<R> {
    /// A node that speaks for itself alone, without links.
    pub fn new(rng: R, limits: Limits, identity: Identity, nickname: String) -> Self {
        let own = identity.id();
        let local = Local::new(identity, nickname, true);
        Self {
            rng,
            counters: Counters::default(),
            own,
            is_phone: false,
            locals: BTreeMap::from([(own, local)]),
            links: BTreeMap::new(),
            peers: Peers::new(limits.peers),
            seen: Seen::new(limits.seen),
            relay: Relay::new(&limits),
            sets: Reassembly::new(&limits),
            sessions: Sessions::new(&limits),
            private: private::Private::new(&limits),
            transfers: transfer::Transfers::default(),
            files: files::Files::default(),
            pings: control::Pings::default(),
            challenges: control::Challenges::default(),
            deferred: BTreeMap::new(),
            last_stamp_ms: 0,
            next_sweep: Duration::ZERO,
            actions: Vec::new(),
            limits,
        }
    }

    /// The same node without the marks by which Fieldpost gateways know each other: to others it is
    /// a phone. For tests that play one.
    #[must_use]
    pub fn as_phone(mut self) -> Self {
        self.is_phone = true;
        self.locals.values_mut().for_each(Local::unmark);
        self
    }

    /// Takes in one event and gives what is to be done about it.
    ///
    /// `now` must not go backwards from one call to the next.
    pub fn handle(&mut self, now: Now, event: Event) -> impl Iterator<Item = Action> {
        match event {
            Event::LinkUp { link, role, max_frame, phone } => {
                self.link_up(now, link, role, max_frame, phone);
            }
            Event::LinkDown { link } => {
                self.links.remove(&link);
            }
            Event::Room { link, frames } => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.make_room(frames);
                }
            }
            Event::Frame { link, bytes } => self.receive_frame(now, link, &bytes),
            Event::Wake => {}
            Event::Command(command) => self.command(now, command),
        }
        self.run_due(now);
        self.actions.drain(..)
    }

    /// When the next [`Event::Wake`] is due, if anything waits for one.
    pub fn next_deadline(&self) -> Option<Duration> {
        let links = self.links.values().filter_map(Link::next_deadline);
        let relay = self.relay.next_deadline();
        let sweep = self.needs_sweeping().then_some(self.next_sweep);
        let deferred = self.deferred.first_key_value().map(|((at, _), _)| *at);
        links.chain(relay).chain(sweep).chain(deferred).min()
    }

    /// The node's own name.
    pub fn id(&self) -> MeshId {
        self.own
    }

    /// The names it speaks for, its own included.
    pub fn hosted(&self) -> impl Iterator<Item = MeshId> {
        self.locals.keys().copied()
    }

    /// The peers that are there now.
    pub fn peers(&self) -> impl Iterator<Item = Peer> {
        self.peers.present()
    }

    /// Whether one of ours has a session with a peer.
    pub fn has_session(&self, local: MeshId, remote: MeshId) -> bool {
        self.sessions.is_established(Pair { local, remote })
    }

    /// Which peer is at the other end of a link, as far as its announces tell.
    pub fn bound(&self, link: LinkId) -> Option<MeshId> {
        self.links.get(&link).and_then(|link| link.bound)
    }

    /// The link that packets for a neighbour take; `None` where none leads to it.
    pub fn way_to(&self, neighbour: MeshId) -> Option<LinkId> {
        self.best_link(neighbour)
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        Counters { sets_given_up: self.sets.given_up(), ..self.counters }
    }

    /// How full its tables are.
    pub fn load(&self) -> Load {
        Load {
            links: self.links.len(),
            peers: self.peers.len(),
            seen: self.seen.len(),
            held: self.relay.len(),
            sets: self.sets.len(),
            set_bytes: self.sets.bytes(),
            sessions: self.sessions.len(),
            waiting_frames: self.links.values().map(Link::waiting).sum(),
            unconfirmed: self.private.len(),
            transfers: self.transfers.len(),
        }
    }

    fn link_up(&mut self, now: Now, id: LinkId, role: Role, max_frame: usize, phone: bool) {
        let is_full = self.links.len() >= self.limits.links && !self.links.contains_key(&id);
        if is_full || max_frame < MIN_FRAME {
            self.counters.links_refused += 1;
            self.actions.push(Action::Disconnect { link: id });
            return;
        }
        let mut link = Link::new(now.at, role, max_frame, phone, &self.limits);
        self.greet(now, &mut link);
        self.links.insert(id, link);
    }

    fn command(&mut self, now: Now, command: Command) {
        match command {
            Command::Host { identity, nickname } => self.host(now, *identity, nickname),
            Command::Unhost { peer } => self.unhost(now, peer),
            Command::Rename { peer, nickname } => self.rename(now, peer, nickname),
            Command::Pin { noise_key, signing_key, verified } => {
                self.peers.pin(noise_key, signing_key, verified);
            }
            Command::SendPrivate { from, to, message_id, text } => {
                self.send_private(now, from, to, message_id, &text);
            }
            Command::SendPublic { from, message_id, text } => {
                self.send_public(now, from, message_id, &text);
            }
            Command::SendFile { from, to, file_id, file } => {
                self.send_file(now, from, to, file_id, &file);
            }
            Command::SendReceipt { from, to, message_id, kind } => {
                self.send_receipt(now, from, to, &message_id, kind);
            }
            Command::Forget { to, from, message_id } => self.forget_private(to, from, message_id),
            Command::SendGateway { to, transfer_id, bytes } => {
                self.send_gateway(now, to, transfer_id, bytes);
            }
            Command::Verify { from, to } => self.challenge(now, from, to),
            Command::Ping { from, to } => self.ping(now, from, to),
            Command::RequestSync { link } => self.request_sync(now, link),
            Command::Disconnect { link } => {
                if self.links.remove(&link).is_some() {
                    self.actions.push(Action::Disconnect { link });
                }
            }
        }
    }

    /// Does all whose time has come.
    fn run_due(&mut self, now: Now) {
        for held in self.relay.due(now.at) {
            self.pass_on(&held.packet, held.from);
        }
        self.greet_due(now);
        while let Some(entry) = self.deferred.first_entry().filter(|entry| entry.key().0 <= now.at)
        {
            let packet = entry.remove();
            self.originate_signed(now, packet);
        }
        if self.next_sweep <= now.at {
            self.next_sweep = now.at + SWEEP;
            self.sweep(now);
        }
        for (id, link) in &mut self.links {
            while let Some(waiting) = link.pop(now.at) {
                self.counters.frames_sent += 1;
                self.counters.bytes_sent += waiting.frame.len() as u64;
                self.actions.push(Action::Transmit { link: *id, frame: waiting.frame });
            }
        }
    }

    fn sweep(&mut self, now: Now) {
        self.sets.expire(now.at);
        for id in self.peers.expire(now.at, self.limits.presence) {
            self.report(Report::PeerGone { id, left: false });
        }
        self.announce_due(now);
        self.tick_sessions(now);
        self.tick_private(now);
        self.tick_transfers(now);
        self.tick_files(now);
        self.pings.expire(now.at);
        self.challenges.expire(now.at);
    }

    fn needs_sweeping(&self) -> bool {
        !self.links.is_empty()
            || self.peers.present().next().is_some()
            || self.private.len() > 0
            || self.transfers.len() > 0
            || !self.sets.is_empty()
    }

    fn report(&mut self, report: Report) {
        self.actions.push(Action::Report(report));
    }

    fn fail(&mut self, id: uuid::Uuid, to: Option<MeshId>, reason: FailReason) {
        self.report(Report::Failed { id, to, reason });
    }

    /// Milliseconds since 1970, never the same twice: equal packets of one moment would be taken
    /// for duplicates.
    fn stamp(&mut self, now: Now) -> u64 {
        self.last_stamp_ms = now.unix_ms.max(self.last_stamp_ms.saturating_add(1));
        // A wall clock that was set back is followed at once.
        if self.last_stamp_ms > now.unix_ms + 10_000 {
            self.last_stamp_ms = now.unix_ms;
        }
        self.last_stamp_ms
    }
}

/// How full a node's tables are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Links that stand.
    pub links: usize,
    /// Peers remembered.
    pub peers: usize,
    /// Packets remembered as seen.
    pub seen: usize,
    /// Packets that wait for their relay delay.
    pub held: usize,
    /// Sets of fragments under way.
    pub sets: usize,
    /// What they cost, in bytes.
    pub set_bytes: usize,
    /// Sessions and handshakes.
    pub sessions: usize,
    /// Frames that wait for links.
    pub waiting_frames: usize,
    /// Private messages that wait for a receipt.
    pub unconfirmed: usize,
    /// Transfers between gateways under way, both ways.
    pub transfers: usize,
}
