//! Who waits on this replica: sockets and polls that want to hear of messages, receipts and
//! presence.
//!
//! A wake-up is a hint and carries nothing: whoever is woken looks into the store. So a wake-up
//! that is lost costs latency, never a message, and a slow reader holds nobody up.
//!
//! A socket that has seen all there was says so, and is then handed what is accepted for its peer
//! with its position, instead of having to look. Whatever does not follow on what it has is a
//! wake-up.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use fieldpost_delivery::{InboxEntry, Seq, Settled};
use fieldpost_envelope::{MessageStatus, PeerId};
use tokio::sync::Notify;

use crate::Gateway;

/// How many receipts and presence changes wait for one slow socket; beyond, they are left out, and it
/// is told how many were.
const EVENTS_WAITING: usize = 1024;
/// How many messages are handed to one socket before it has taken the first of them; beyond, it looks
/// into the store.
const HANDED_MESSAGES: usize = 64;
/// The most content of these, in bytes.
const HANDED_BYTES: usize = 256 << 10;

/// What a socket hears.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The inbox may have grown.
    Grown,
    /// It has grown by these, which follow on what the socket has.
    Messages(Vec<Arc<InboxEntry>>),
    /// Something besides messages.
    Event(Event),
}

/// What a socket is told besides its messages.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// A delivery of something that the peer sent has moved on.
    Receipt(Settled),
    /// Another peer came or went.
    Presence {
        /// Which.
        peer: PeerId,
        /// Whether it is online now.
        online: bool,
    },
    /// So many came faster than the socket took them, and are not told.
    Missed {
        /// Of receipts.
        receipts: u64,
        /// Of changes of presence.
        presence: u64,
    },
}

impl Event {
    /// What is left out when this is.
    fn missed(&self) -> (u64, u64) {
        match *self {
            Self::Receipt(_) => (1, 0),
            Self::Presence { .. } => (0, 1),
            Self::Missed { receipts, presence } => (receipts, presence),
        }
    }
}

/// All subscriptions of this replica.
#[derive(Clone, Default)]
pub struct Subscribers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    peers: RwLock<HashMap<PeerId, Vec<Arc<Slot>>>>,
    /// Who may have been shown what nobody handed over, and until when that may come to light.
    in_doubt: Mutex<HashMap<PeerId, Instant>>,
    sockets: AtomicUsize,
    next: AtomicU64,
    /// Told when confirmations of a socket have been taken, or are given up.
    taken: Notify,
}

struct Slot {
    number: u64,
    is_socket: bool,
    /// Told when there is something to look at.
    news: Notify,
    has_grown: AtomicBool,
    handed: Mutex<Handed>,
    /// The client has confirmed something, and that has not been taken yet.
    confirms: AtomicBool,
    // Not a channel, which takes a KiB of each socket before it holds anything.
    events: Mutex<VecDeque<Queued>>,
}

/// What a socket is handed.
#[derive(Default)]
struct Handed {
    /// The socket has or was handed all up to here; `None` while it has to look.
    up_to: Option<Seq>,
    entries: Vec<Arc<InboxEntry>>,
    bytes: usize,
}

impl Handed {
    fn has_room(&self, messages: usize, bytes: usize) -> bool {
        self.entries.len() + messages <= HANDED_MESSAGES && self.bytes + bytes <= HANDED_BYTES
    }
}

/// What waits for one socket.
enum Queued {
    Event(Arc<Event>),
    /// Here some were left out.
    Missed {
        receipts: u64,
        presence: u64,
    },
}

impl Slot {
    fn wake(&self) {
        self.has_grown.store(true, Ordering::Release);
        self.handed().up_to = None;
        self.news.notify_one();
    }

    /// Hands over what was shown, or wakes where that does not follow on what the socket has.
    fn hand(&self, entries: &[Arc<InboxEntry>]) {
        let bytes = entries.iter().map(|entry| entry.message.content.bytes.len()).sum();
        {
            let mut handed = self.handed();
            let follows = entries.first().is_some_and(|first| handed.up_to == Some(first.seq - 1));
            if follows && handed.has_room(entries.len(), bytes) {
                handed.up_to = entries.last().map(|last| last.seq);
                handed.bytes += bytes;
                handed.entries.extend_from_slice(entries);
                drop(handed);
                self.news.notify_one();
                return;
            }
        }
        self.wake();
    }

    fn handed(&self) -> std::sync::MutexGuard<'_, Handed> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: &Arc<Event>) {
        {
            if !self.is_socket {
                return;
            }
            let mut events = self.events();
            if events.len() < EVENTS_WAITING {
                events.push_back(Queued::Event(event.clone()));
            } else {
                let (more_receipts, more_presence) = event.missed();
                match events.back_mut() {
                    Some(Queued::Missed { receipts, presence }) => {
                        *receipts += more_receipts;
                        *presence += more_presence;
                    }
                    _ => events.push_back(Queued::Missed {
                        receipts: more_receipts,
                        presence: more_presence,
                    }),
                }
            }
        }
        self.news.notify_one();
    }

    fn events(&self) -> std::sync::MutexGuard<'_, VecDeque<Queued>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscribers {
    /// Subscribes a socket of `peer` to its inbox and its events.
    pub fn socket(&self, peer: PeerId) -> Subscription {
        self.subscribe(peer, true)
    }

    /// Subscribes a poll of `peer` to its inbox.
    pub fn poll(&self, peer: PeerId) -> Subscription {
        self.subscribe(peer, false)
    }

    fn subscribe(&self, peer: PeerId, is_socket: bool) -> Subscription {
        let slot = Arc::new(Slot {
            number: self.0.next.fetch_add(1, Ordering::Relaxed),
            is_socket,
            news: Notify::new(),
            has_grown: AtomicBool::new(false),
            handed: Mutex::default(),
            confirms: AtomicBool::new(false),
            events: Mutex::default(),
        });
        if is_socket {
            self.0.sockets.fetch_add(1, Ordering::Relaxed);
        }
        self.write().entry(peer.clone()).or_default().push(slot.clone());
        Subscription { subscribers: self.clone(), peer, slot }
    }

    /// Lets everybody who waits for one of `peers` look into its inbox.
    pub fn wake<'a>(&self, peers: impl IntoIterator<Item = &'a PeerId>) {
        let map = self.read();
        for peer in peers {
            map.get(peer).into_iter().flatten().for_each(|slot| slot.wake());
        }
    }

    /// Whether a socket of `peer` has all that there was, and room to be handed more.
    pub fn is_present(&self, peer: &PeerId) -> bool {
        self.read().get(peer).is_some_and(|slots| {
            slots.iter().any(|slot| {
                let handed = slot.handed();
                handed.up_to.is_some() && handed.has_room(1, 0)
            })
        })
    }

    /// Hands `peer`'s sockets what was shown to it; whoever cannot take that up has to look.
    pub fn hand(&self, peer: &PeerId, entries: &[Arc<InboxEntry>]) {
        self.read().get(peer).into_iter().flatten().for_each(|slot| slot.hand(entries));
    }

    /// Lets `peers` look, now and while [`doubted`](Self::doubted) is asked: they may have been shown
    /// something by a commit of which nobody heard, if it is still to come, until `until`.
    pub fn doubt(&self, peers: &[PeerId], until: Instant) {
        self.in_doubt().extend(peers.iter().map(|peer| (peer.clone(), until)));
        self.wake(peers);
    }

    /// Who has to look again.
    pub fn doubted(&self, now: Instant) -> Vec<PeerId> {
        let mut in_doubt = self.in_doubt();
        in_doubt.retain(|_, until| *until > now);
        in_doubt.keys().cloned().collect()
    }

    /// Waits until no socket of `peer` has confirmations under way: whoever looks before is shown what
    /// the client has confirmed over another.
    pub async fn have_confirmed(&self, peer: &PeerId) {
        loop {
            let mut taken = pin!(self.0.taken.notified());
            taken.as_mut().enable();
            let confirms = |slot: &Arc<Slot>| slot.confirms.load(Ordering::Acquire);
            if !self.read().get(peer).is_some_and(|slots| slots.iter().any(confirms)) {
                return;
            }
            taken.await;
        }
    }

    /// Lets everybody look: something may have been missed.
    pub fn wake_all(&self) {
        self.read().values().flatten().for_each(|slot| slot.wake());
    }

    /// Tells all sockets of `peer`.
    pub fn tell(&self, peer: &PeerId, event: &Event) {
        let map = self.read();
        let Some(slots) = map.get(peer) else { return };
        let event = Arc::new(event.clone());
        slots.iter().for_each(|slot| slot.tell(&event));
    }

    /// Ends all sockets, streams and polls of `peer`: each finds itself gone from the map.
    pub fn revoke(&self, peer: &PeerId) {
        self.write().remove(peer).into_iter().flatten().for_each(|slot| slot.wake());
    }

    /// Whether `peer` has an open socket here.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.read().get(peer).is_some_and(|slots| slots.iter().any(|slot| slot.is_socket))
    }

    /// The peers that have an open socket here.
    pub fn connected(&self) -> Vec<PeerId> {
        let map = self.read();
        map.iter()
            .filter(|(_, slots)| slots.iter().any(|slot| slot.is_socket))
            .map(|(peer, _)| peer.clone())
            .collect()
    }

    /// The peers for whom something waits here: a socket, a stream or a poll.
    pub fn peers(&self) -> Vec<PeerId> {
        self.read().keys().cloned().collect()
    }

    /// How many peers have an open socket here.
    pub fn connected_peers(&self) -> usize {
        self.read().values().filter(|slots| slots.iter().any(|slot| slot.is_socket)).count()
    }

    /// How many sockets are open here.
    pub fn sockets(&self) -> usize {
        self.0.sockets.load(Ordering::Relaxed)
    }

    fn in_doubt(&self) -> std::sync::MutexGuard<'_, HashMap<PeerId, Instant>> {
        self.0.in_doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<PeerId, Vec<Arc<Slot>>>> {
        self.0.peers.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<PeerId, Vec<Arc<Slot>>>> {
        self.0.peers.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Tells the senders that are connected here how their messages fare, and gives back the room.
pub fn tell_senders(gateway: &Gateway, settled: &[Settled]) {
    for settled in settled {
        // What is read later has left the queue before; what is read at once is noticed when the
        // ledger is counted again, which happens before anything is refused.
        if settled.status != MessageStatus::Read {
            gateway.quotas.release(&settled.recipient, &settled.sender.to_string(), 1, 0);
        }
        if settled.sender.gateway.is_none() {
            let event = Event::Receipt(settled.clone());
            gateway.subscribers.tell(&settled.sender.peer, &event);
        }
    }
}

/// One socket or poll that waits; ends when dropped.
pub struct Subscription {
    subscribers: Subscribers,
    peer: PeerId,
    slot: Arc<Slot>,
}

impl Subscription {
    /// Waits until the inbox may have grown since the last look. Wake-ups that came meanwhile are
    /// one. Cancel safe.
    pub async fn inbox_grew(&self) {
        while !self.slot.has_grown.swap(false, Ordering::AcqRel) {
            self.slot.news.notified().await;
        }
    }

    /// Whether the client has confirmed something that has not been taken yet.
    pub fn confirms(&self, is_under_way: bool) {
        let was = self.slot.confirms.swap(is_under_way, Ordering::AcqRel);
        if was && !is_under_way {
            self.subscribers.0.taken.notify_waiters();
        }
    }

    /// The client has all that there was up to `seq`: what follows may be handed over, unless the
    /// inbox has grown meanwhile.
    pub fn has_all_up_to(&self, seq: Seq) {
        let mut handed = self.slot.handed();
        let has_grown = self.slot.has_grown.load(Ordering::Acquire);
        if handed.up_to.is_none() && handed.entries.is_empty() && !has_grown {
            handed.up_to = Some(seq);
        }
    }

    /// Waits for messages, for the inbox to have grown, or for an event. Cancel safe.
    pub async fn next(&self) -> News {
        loop {
            // Before a look, which begins after them.
            let entries = {
                let mut handed = self.slot.handed();
                handed.bytes = 0;
                std::mem::take(&mut handed.entries)
            };
            if !entries.is_empty() {
                return News::Messages(entries);
            }
            if self.slot.has_grown.swap(false, Ordering::AcqRel) {
                return News::Grown;
            }
            let queued = self.slot.events().pop_front();
            match queued {
                Some(Queued::Event(event)) => return News::Event(Arc::unwrap_or_clone(event)),
                Some(Queued::Missed { receipts, presence }) => {
                    return News::Event(Event::Missed { receipts, presence });
                }
                None => {}
            }
            self.slot.news.notified().await;
        }
    }

    /// Whether the peer's token was renewed since this socket was opened.
    pub fn is_revoked(&self) -> bool {
        let map = self.subscribers.read();
        !map.get(&self.peer)
            .is_some_and(|slots| slots.iter().any(|slot| slot.number == self.slot.number))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.slot.is_socket {
            self.subscribers.0.sockets.fetch_sub(1, Ordering::Relaxed);
        }
        let mut map = self.subscribers.write();
        if let Some(slots) = map.get_mut(&self.peer) {
            slots.retain(|slot| slot.number != self.slot.number);
            if slots.is_empty() {
                map.remove(&self.peer);
            }
        }
        drop(map);
        self.confirms(false);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fieldpost_delivery::{Content, Message, Wishes};
    use fieldpost_envelope::{AnonymityLevel, MessageId, PeerAddress, Priority};
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_wake_up_before_the_wait_is_not_lost_and_others_are_not_woken() {
        let subscribers = Subscribers::default();
        let (alice, bob) = (name("alice"), name("bob"));
        let first = subscribers.socket(alice.clone());
        let second = subscribers.poll(bob.clone());
        subscribers.wake([&alice]);
        assert_eq!(first.next().await, News::Grown);
        let woken = second.inbox_grew().now_or_never();
        assert_eq!(woken, None);
    }

    #[tokio::test]
    async fn a_socket_hears_of_its_inbox_and_of_as_many_events_as_may_wait_and_how_many_did_not() {
        let subscribers = Subscribers::default();
        let alice = name("alice");
        let (socket, poll) = (subscribers.socket(alice.clone()), subscribers.poll(alice.clone()));
        let event = Event::Presence { peer: name("bob"), online: true };
        for _ in 0..2 * EVENTS_WAITING {
            subscribers.tell(&alice, &event);
        }
        let poll_hears = poll.inbox_grew().now_or_never();
        assert_eq!(poll_hears, None, "events are for sockets");
        subscribers.wake([&alice]);
        poll.inbox_grew().await;
        assert_eq!(socket.next().await, News::Grown);
        for _ in 0..EVENTS_WAITING {
            assert_eq!(socket.next().await, News::Event(event.clone()));
        }
        let missed = Event::Missed { receipts: 0, presence: EVENTS_WAITING as u64 };
        assert_eq!(socket.next().await, News::Event(missed));
        assert_eq!(socket.next().now_or_never(), None);
        // Once there is room, all goes on.
        subscribers.tell(&alice, &event);
        assert_eq!(socket.next().await, News::Event(event));
    }

    #[tokio::test]
    async fn an_older_socket_that_closes_leaves_the_newer_one_connected() {
        let subscribers = Subscribers::default();
        let alice = name("alice");
        let older = subscribers.socket(alice.clone());
        let newer = subscribers.socket(alice.clone());
        drop(older);
        assert!(subscribers.is_connected(&alice));
        assert_eq!(subscribers.sockets(), 1);
        subscribers.wake([&alice]);
        assert_eq!(newer.next().await, News::Grown);
        drop(newer);
        assert!(!subscribers.is_connected(&alice));
    }

    #[tokio::test]
    async fn renewal_ends_sockets_even_when_their_queue_is_full() {
        let subscribers = Subscribers::default();
        let alice = name("alice");
        let socket = subscribers.socket(alice.clone());
        let event = Event::Presence { peer: name("bob"), online: true };
        for _ in 0..2 * EVENTS_WAITING {
            subscribers.tell(&alice, &event);
        }
        subscribers.revoke(&alice);
        assert!(socket.is_revoked());
        assert!(!subscribers.is_connected(&alice));
        while let News::Event(seen) = socket.next().await {
            assert!(seen == event || matches!(seen, Event::Missed { .. }), "{seen:?}");
        }
    }

    #[tokio::test]
    async fn who_has_all_is_handed_what_follows_and_looks_at_anything_else() {
        let subscribers = Subscribers::default();
        let alice = name("alice");
        let (first, second) =
            (subscribers.socket(alice.clone()), subscribers.socket(alice.clone()));
        assert!(!subscribers.is_present(&alice));
        first.has_all_up_to(4);
        second.has_all_up_to(5);
        assert!(subscribers.is_present(&alice));
        subscribers.hand(&alice, &[entry(5, 1)]);
        subscribers.hand(&alice, &[entry(6, 1)]);
        assert_eq!(first.next().await, News::Messages(vec![entry(5, 1), entry(6, 1)]));
        assert_eq!(second.next().await, News::Grown, "5 does not follow on 5");
        second.has_all_up_to(6);
        subscribers.wake([&alice]);
        assert!(!subscribers.is_present(&alice), "somebody else's message may come first");
        subscribers.hand(&alice, &[entry(7, 1)]);
        assert_eq!(first.next().await, News::Grown);
        assert_eq!(second.next().await, News::Grown);
    }

    #[tokio::test]
    async fn a_new_socket_waits_for_what_was_confirmed_over_another() {
        let (subscribers, alice) = (Subscribers::default(), name("alice"));
        let is_over = |subscribers: &Subscribers| {
            subscribers.have_confirmed(&name("alice")).now_or_never().is_some()
        };
        assert!(is_over(&subscribers));
        let old = subscribers.socket(alice.clone());
        old.confirms(true);
        let _new = subscribers.socket(alice.clone());
        assert!(!is_over(&subscribers));
        old.confirms(false);
        assert!(is_over(&subscribers));
        old.confirms(true);
        let waiting = tokio::spawn({
            let (subscribers, alice) = (subscribers.clone(), alice.clone());
            async move { subscribers.have_confirmed(&alice).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(old);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn who_may_have_been_shown_something_looks_until_that_is_settled() {
        let (subscribers, alice) = (Subscribers::default(), name("alice"));
        let socket = subscribers.socket(alice.clone());
        let now = tokio::time::Instant::now().into_std();
        socket.has_all_up_to(0);
        subscribers.doubt(std::slice::from_ref(&alice), now + Duration::from_secs(30));
        assert_eq!(socket.next().await, News::Grown);
        assert_eq!(subscribers.doubted(now + Duration::from_secs(29)), [alice]);
        assert!(subscribers.doubted(now + Duration::from_secs(30)).is_empty());
    }

    #[tokio::test]
    async fn who_does_not_take_what_it_is_handed_has_to_look_and_nothing_is_kept_for_it() {
        let subscribers = Subscribers::default();
        let alice = name("alice");
        for bytes in [1, HANDED_BYTES / 8] {
            let socket = subscribers.socket(alice.clone());
            socket.has_all_up_to(0);
            let last = 2 * HANDED_MESSAGES as Seq;
            (1..=last).for_each(|seq| subscribers.hand(&alice, &[entry(seq, bytes)]));
            assert!(!subscribers.is_present(&alice));
            let News::Messages(handed) = socket.next().await else { panic!("nothing was handed") };
            assert_eq!(handed.len(), HANDED_MESSAGES.min(HANDED_BYTES / bytes));
            assert_eq!(socket.next().await, News::Grown);
        }
    }

    fn entry(seq: Seq, bytes: usize) -> Arc<InboxEntry> {
        let at = fieldpost_delivery::Time::UNIX_EPOCH;
        let content = Content { bytes: vec![0; bytes], ..Content::default() };
        let message = Message {
            id: MessageId(uuid::Uuid::nil()),
            sender: PeerAddress::local(name("bob")),
            to: name("alice").into(),
            content,
            expires_at: at,
            priority: Priority::Normal,
            min_anonymity: AnonymityLevel::NONE,
            wishes: Wishes::default(),
        };
        Arc::new(InboxEntry { seq, accepted_at: at, sent_at: at, message, gap: false, late: false })
    }

    fn name(text: &str) -> PeerId {
        text.parse().expect("a valid name")
    }
}
