//! The links of a node: which there are, which are wanted, what waits for those that are not up yet.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fieldpost_mixnet::{
    directory::RelayId,
    htx::{Redial, RedialEvent},
    sphinx::Packet,
    wire::packet_len,
};
use rand::SeedableRng;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::{
    drive,
    link::{self, LinkEvent, LinkNumber, LinkQueue, QUEUED_BYTES, Waiting},
};
use crate::htx::{DialError, Dialer, ForgetfulRng, LinkEnd, Target};

/// All links of a node, by number and by who is at the other end.
///
/// | What is kept | At most | At the limit |
/// |---|---|---|
/// | links | 512 | further ones are closed |
/// | packets that wait for one link | 4096, 8 MiB | the newest is dropped |
/// | packets that wait for all links | 128 MiB | the newest is dropped |
/// | packets for a relay that is being dialled | 256, 4 MiB, 10 s | the newest is dropped |
/// | relays that were dialled | 1024 | further ones are not dialled |
pub(super) struct Links {
    dialer: Dialer,
    rng: ForgetfulRng,
    events: mpsc::Sender<LinkEvent>,
    inbound: mpsc::Sender<Packet>,
    links: BTreeMap<LinkNumber, Known>,
    /// Links that are up, the oldest first.
    by_peer: BTreeMap<RelayId, Vec<LinkNumber>>,
    next: LinkNumber,
    wanted: BTreeSet<RelayId>,
    dials: BTreeMap<RelayId, Dialled>,
    /// Relays that were just found out of reach.
    suspects: BTreeMap<RelayId, Instant>,
    tasks: JoinSet<()>,
}

struct Known {
    queue: LinkQueue,
    peer: Option<RelayId>,
    /// Whom we dialled; nobody else may be there.
    dialled: Option<RelayId>,
    is_up: bool,
    used_at: Instant,
    round_trip: Option<Duration>,
    task: AbortHandle,
}

struct Dialled {
    redial: Redial<ForgetfulRng>,
    /// The attempt that is under way.
    attempt: Option<LinkNumber>,
    waiting: VecDeque<(Instant, Packet)>,
    bytes: usize,
}

impl Links {
    pub(super) fn new(
        dialer: Dialer,
        rng: ForgetfulRng,
        events: mpsc::Sender<LinkEvent>,
        inbound: mpsc::Sender<Packet>,
    ) -> Self {
        Self {
            dialer,
            rng,
            events,
            inbound,
            links: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            next: 0,
            wanted: BTreeSet::new(),
            dials: BTreeMap::new(),
            suspects: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Takes a link that somebody made to us.
    pub(super) fn accept(&mut self, now: Instant, end: LinkEnd) {
        if self.links.len() >= LINKS {
            return;
        }
        let (events, inbound) = (self.events.clone(), self.inbound.clone());
        self.add(now, None, |link, waiting| link::run(link, end, waiting, events, inbound));
    }

    /// Sends a packet over a link to `relay`, which is dialled if there is none. Says whether the
    /// packet was taken.
    pub(super) fn send(&mut self, now: Instant, relay: RelayId, packet: Packet) -> bool {
        if let Some(link) = self.link_to(&relay) {
            if self.waiting_bytes() > ALL_QUEUED_BYTES {
                return false;
            }
            let Some(known) = self.links.get_mut(&link) else { return false };
            known.used_at = now;
            return known.queue.push(packet);
        }
        if self.is_suspect(&relay) {
            return false;
        }
        self.want(now, relay);
        let Some(dialled) = self.dials.get_mut(&relay) else { return false };
        let length = packet_len(&packet);
        if dialled.waiting.len() >= DIALLED_PACKETS || dialled.bytes + length > DIALLED_BYTES {
            return false;
        }
        dialled.bytes += length;
        dialled.waiting.push_back((now, packet));
        true
    }

    /// Tells one neighbour something.
    pub(super) fn tell(&self, link: LinkNumber, message: Bytes) {
        if let Some(known) = self.links.get(&link)
            && !known.queue.tell(message)
        {
            tracing::debug!(link, "a neighbour does not keep up with what it is told");
        }
    }

    /// Tells all neighbours but one.
    pub(super) fn tell_all(&self, but: Option<LinkNumber>, message: &Bytes) {
        let up: Vec<_> = self.links.iter().filter(|(_, known)| known.is_up).collect();
        for (link, _) in up.into_iter().filter(|(link, _)| Some(**link) != but) {
            self.tell(*link, message.clone());
        }
    }

    /// A link is up; the other end is `peer`, if that is known.
    pub(super) fn up(&mut self, now: Instant, link: LinkNumber, peer: Option<RelayId>) {
        let Some(known) = self.links.get_mut(&link) else { return };
        known.is_up = true;
        if let Some(peer) = peer.or(known.dialled) {
            self.identify(now, link, peer);
        }
    }

    /// It has become clear who is at the other end of a link.
    pub(super) fn identify(&mut self, now: Instant, link: LinkNumber, peer: RelayId) {
        let Some(known) = self.links.get_mut(&link).filter(|known| known.peer != Some(peer)) else {
            return;
        };
        known.peer = Some(peer);
        self.by_peer.entry(peer).or_default().push(link);
        self.suspects.remove(&peer);
        if let Some(dialled) = self.dials.get_mut(&peer) {
            dialled.redial.handle(now, RedialEvent::Established);
            dialled.bytes = 0;
            for (_, packet) in std::mem::take(&mut dialled.waiting) {
                known.queue.push(packet);
            }
        }
    }

    /// A ping on a link was answered after that long.
    pub(super) fn measured(&mut self, link: LinkNumber, round_trip: Duration) {
        if let Some(known) = self.links.get_mut(&link) {
            known.round_trip = Some(round_trip);
        }
    }

    /// A link is over. Returns who is out of reach since, if they were not before. Who `is_relay` and
    /// said no goodbye is dialled again, and out of reach until that has shown that it is back.
    pub(super) fn down(
        &mut self,
        now: Instant,
        link: LinkNumber,
        is_lost: bool,
        is_relay: impl Fn(&RelayId) -> bool,
    ) -> Option<RelayId> {
        let known = self.links.remove(&link)?;
        let peer = known.peer.or(known.dialled)?;
        if let Some(links) = self.by_peer.get_mut(&peer) {
            links.retain(|other| *other != link);
            if links.is_empty() {
                self.by_peer.remove(&peer);
            }
        }
        let was_up = known.is_up;
        if self.by_peer.contains_key(&peer) {
            if let Some(dialled) = self.dials.get_mut(&peer) {
                dialled.attempt.take_if(|attempt| *attempt == link);
            }
            return None;
        }
        // Who says goodbye may be back at once; who is lost, or was not there, may not.
        let is_gone = is_lost || !was_up;
        let is_sought = is_gone && is_relay(&peer);
        if is_sought {
            self.want(now, peer);
        }
        let mut until = now + if is_gone { SUSPECT } else { PARTED };
        if let Some(dialled) = self.dials.get_mut(&peer) {
            dialled.attempt.take_if(|attempt| *attempt == link);
            // A link that was let go of is made again only where it is wanted.
            let is_over = !is_gone && !self.wanted.contains(&peer);
            let event = if is_over { RedialEvent::Unwanted } else { RedialEvent::Lost };
            dialled.redial.handle(now, event);
            (dialled.waiting, dialled.bytes) = (VecDeque::new(), 0);
            if is_sought && let Some(next) = dialled.redial.next_deadline() {
                until = until.max(next + ATTEMPT);
            }
        }
        let was_suspect = self.suspects.insert(peer, until).is_some();
        (!was_suspect).then_some(peer)
    }

    /// Which relays are to be kept a link to; others are let go when they have been idle.
    pub(super) fn keep(&mut self, now: Instant, wanted: BTreeSet<RelayId>) {
        self.wanted = wanted;
        for relay in self.wanted.clone() {
            if self.link_to(&relay).is_none() {
                self.want(now, relay);
            }
        }
        self.dials.retain(|relay, dialled| {
            self.wanted.contains(relay)
                || self.by_peer.contains_key(relay)
                || dialled.attempt.is_some()
                || !dialled.waiting.is_empty()
                || self.suspects.contains_key(relay)
        });
        // The link to a relay that nobody needs any more is let go by who dialled it.
        let idle = |known: &Known| {
            let is_kept = known.peer.is_some_and(|peer| self.wanted.contains(&peer));
            known.dialled.is_some() && !is_kept && now - known.used_at > IDLE
        };
        for known in self.links.values_mut().filter(|known| known.is_up && idle(known)) {
            // The task ends when its queue does, and says so.
            known.queue = link::queue().0;
        }
    }

    /// Dials what is due, with what the directory knows of it.
    pub(super) fn wake(
        &mut self,
        now: Instant,
        target: impl Fn(&RelayId, &mut ForgetfulRng) -> Option<Target>,
    ) {
        while self.tasks.try_join_next().is_some() {}
        self.suspects.retain(|_, until| *until > now);
        let mut due = Vec::new();
        for (relay, dialled) in &mut self.dials {
            while dialled.waiting.front().is_some_and(|(since, _)| now - *since > PATIENCE) {
                if let Some((_, packet)) = dialled.waiting.pop_front() {
                    dialled.bytes -= packet_len(&packet);
                }
            }
            if dialled.redial.handle(now, RedialEvent::Wake) && dialled.attempt.is_none() {
                due.push(*relay);
            }
        }
        for relay in due {
            let target = target(&relay, &mut self.rng).filter(|_| self.links.len() < LINKS);
            let link = self.dial(now, relay, target);
            if let Some(dialled) = self.dials.get_mut(&relay) {
                dialled.attempt = Some(link);
            }
        }
    }

    /// When something is due to be dialled.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.dials.values().filter_map(|dialled| dialled.redial.next_deadline()).min()
    }

    /// Relays that were just found out of reach.
    pub(super) fn suspects(&self) -> BTreeSet<RelayId> {
        self.suspects.keys().copied().collect()
    }

    /// How long a ping to each neighbour and back took, where one was answered.
    pub(super) fn round_trips(&self) -> BTreeMap<RelayId, Duration> {
        let links = self.by_peer.iter().filter_map(|(peer, links)| Some((peer, links.first()?)));
        links.filter_map(|(peer, link)| Some((*peer, self.links.get(link)?.round_trip?))).collect()
    }

    /// Links that are up.
    pub(super) fn len(&self) -> usize {
        self.links.values().filter(|known| known.is_up).count()
    }

    /// Who is at the other end of a link.
    pub(super) fn peer(&self, link: LinkNumber) -> Option<RelayId> {
        self.links.get(&link)?.peer
    }

    /// Bytes of packets that wait for links.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.links.values().map(|known| known.queue.waiting_bytes()).sum()
    }

    /// Closes all links and waits for their tasks.
    pub(super) async fn close(mut self) {
        self.links.clear();
        let Self { events, inbound, mut tasks, .. } = self;
        drop((events, inbound));
        while tasks.join_next().await.is_some() {}
    }

    fn want(&mut self, now: Instant, relay: RelayId) {
        if self.dials.len() >= DIALS && !self.dials.contains_key(&relay) {
            return;
        }
        let rng = &mut self.rng;
        let dialled = self.dials.entry(relay).or_insert_with(|| Dialled {
            redial: Redial::new(ForgetfulRng::from_rng(rng)),
            attempt: None,
            waiting: VecDeque::new(),
            bytes: 0,
        });
        if dialled.attempt.is_none() {
            dialled.redial.handle(now, RedialEvent::Wanted);
        }
    }

    fn dial(&mut self, now: Instant, relay: RelayId, target: Option<Target>) -> LinkNumber {
        let (dialer, rng) = (self.dialer.clone(), ForgetfulRng::from_rng(&mut self.rng));
        let (events, inbound) = (self.events.clone(), self.inbound.clone());
        self.add(now, Some(relay), |link, waiting| async move {
            let dialled = match target {
                Some(target) => dialer.dial(&target, rng).await.map_err(Some),
                None => Err(None::<DialError>),
            };
            match dialled {
                Ok(end) => link::run(link, end, waiting, events, inbound).await,
                Err(error) => {
                    let reason = error.map_or_else(
                        || "it has no address".to_owned(),
                        |error| {
                            std::error::Error::source(&error).map_or_else(
                                || error.to_string(),
                                |source| format!("{error}: {source}"),
                            )
                        },
                    );
                    tracing::debug!(relay = %relay, reason, "no link");
                    let down = LinkEvent::Down { link, is_lost: true, at: drive::now() };
                    drop(events.send(down).await);
                }
            }
        })
    }

    fn add<F>(
        &mut self,
        now: Instant,
        dialled: Option<RelayId>,
        task: impl FnOnce(LinkNumber, Waiting) -> F,
    ) -> LinkNumber
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let link = self.next;
        self.next += 1;
        let (queue, waiting) = link::queue();
        let task = self.tasks.spawn(task(link, waiting));
        let (peer, round_trip) = (None, None);
        let known = Known { queue, peer, dialled, is_up: false, used_at: now, round_trip, task };
        self.links.insert(link, known);
        link
    }

    fn link_to(&self, relay: &RelayId) -> Option<LinkNumber> {
        self.by_peer.get(relay)?.first().copied()
    }

    fn is_suspect(&self, relay: &RelayId) -> bool {
        self.suspects.contains_key(relay)
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        if !self.is_up {
            // Nobody waits for a link that is only being made.
            self.task.abort();
        }
    }
}

const LINKS: usize = 512;
const DIALS: usize = 1_024;
const DIALLED_PACKETS: usize = 256;
const DIALLED_BYTES: usize = QUEUED_BYTES / 2;
const ALL_QUEUED_BYTES: usize = 128 << 20;
/// How long a packet waits for a link.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long routes leave out a relay that was lost or did not answer, at least, unless it is back.
const SUSPECT: Duration = Duration::from_secs(30);
/// The same for one that said goodbye.
const PARTED: Duration = Duration::from_secs(2);
/// How long an attempt to make a link may take: its steps have 10 s each.
const ATTEMPT: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fieldpost_envelope::Timestamp;
    use fieldpost_mixnet::{htx::Settings, sphinx::Class};
    use rustls::RootCertStore;

    use super::*;
    use crate::htx::{Template, client_tls};

    #[tokio::test]
    async fn a_relay_that_does_not_answer_is_left_out_until_it_is_back() {
        let (mut links, mut events) = links();
        let start = drive::now();
        let mut now = start;
        assert!(links.send(now, RELAY, packet()), "it waits for the link");
        let mut failures = 0;
        while now < start + Duration::from_secs(1_200) {
            now = links.next_deadline().unwrap();
            links.wake(now, |_, _| None);
            let Some(LinkEvent::Down { link, is_lost, .. }) = events.recv().await else { panic!() };
            let news = links.down(now, link, is_lost, |_| true);
            assert_eq!(news, (failures == 0).then_some(RELAY), "it is told once");
            failures += 1;
            // Whatever the pause until the next attempt, and while that is made.
            let next = links.next_deadline().unwrap();
            for at in [now, now + (next - now) / 2, next + Duration::from_secs(5)] {
                links.suspects.retain(|_, until| *until > at);
                assert!(links.is_suspect(&RELAY), "{:?} after the start", at - start);
            }
            assert!(!links.send(now, RELAY, packet()), "nothing waits for it");
            links.keep(now, BTreeSet::new());
        }
        assert!(failures > 15, "{failures} attempts");
        links.add(now, Some(RELAY), |_, _| std::future::pending());
        links.up(now, links.next - 1, None);
        assert_eq!(links.suspects(), BTreeSet::new(), "it is back");
    }

    #[tokio::test]
    async fn a_link_that_was_let_go_of_is_made_again_only_when_it_is_needed() {
        let (mut links, _events) = links();
        let now = drive::now();
        assert!(links.send(now, RELAY, packet()));
        let due = links.next_deadline().unwrap();
        links.wake(due, |_, _| None);
        let link = links.next - 1;
        links.up(due, link, None);
        links.down(due, link, false, |_| true);
        assert_eq!(links.next_deadline(), None);
        links.suspects.retain(|_, until| *until > due + PARTED);
        assert!(links.send(due + PARTED, RELAY, packet()), "it waits for a new link");
        assert!(links.next_deadline().is_some());
    }

    #[tokio::test]
    async fn who_is_no_relay_any_more_is_soon_forgotten() {
        let (mut links, mut events) = links();
        let now = drive::now();
        assert!(links.send(now, RELAY, packet()));
        let due = links.next_deadline().unwrap();
        links.wake(due, |_, _| None);
        let Some(LinkEvent::Down { link, .. }) = events.recv().await else { panic!() };
        links.down(due, link, true, |_| false);
        links.suspects.retain(|_, until| *until > due + SUSPECT);
        links.keep(due + SUSPECT, BTreeSet::new());
        assert!(links.suspects().is_empty() && links.dials.is_empty());
    }

    const RELAY: RelayId = RelayId([7; 32]);

    fn packet() -> Packet {
        Packet::from_bytes(vec![1; Class::Small.packet_len()]).unwrap()
    }

    fn links() -> (Links, mpsc::Receiver<LinkEvent>) {
        let dialer = Dialer {
            tls: client_tls(RootCertStore::empty()).unwrap(),
            template: Template::default(),
            settings: Settings::default(),
            identity: None,
            clock: Arc::new(|| Timestamp::try_from(1_800_000_000_000).unwrap()),
        };
        let (events, happened) = mpsc::channel(16);
        let (inbound, _) = mpsc::channel(16);
        (Links::new(dialer, ForgetfulRng::seed_from_u64(1), events, inbound), happened)
    }
}
