//! The links that stand, in whichever role.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fieldpost_bitchat::{LinkId, MAX_FRAME, Role};
use futures_util::{Stream, StreamExt};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::status::BluetoothStatus;
use crate::{LinkIds, RadioEvent, TransmitError};

/// Frames that wait for one link; further ones are refused. The core is told what has left, and hands
/// over no more.
const OUTGOING: usize = 16;
/// Devices that are to be connected to over a connection of theirs; further ones are left out.
const MUTE: usize = 16;
/// One frame may take so long before its link counts as dead.
const PATIENCE: Duration = Duration::from_secs(10);
/// A link on which nothing came for so long is dead, whatever the system says: every node announces
/// itself more often, and after as long the core has lost the peer anyway.
const SILENCE: Duration = Duration::from_secs(180);

/// The links of a radio. Clones share them.
#[derive(Clone)]
pub(super) struct Links(Arc<Inner>);

struct Inner {
    ids: LinkIds,
    entries: Mutex<BTreeMap<LinkId, Entry>>,
    events: mpsc::Sender<RadioEvent>,
    status: watch::Sender<BluetoothStatus>,
    frames: AtomicU64,
    /// Devices that connected to us, as the system writes their addresses.
    taken: Mutex<BTreeSet<String>>,
    /// Links that we made, by the device at the other end.
    made: Mutex<BTreeMap<String, LinkId>>,
    is_made: Notify,
    /// Devices that are connected to us and no longer hear us.
    mute: Mutex<BTreeSet<String>>,
    is_mute: Notify,
}

struct Entry {
    role: Role,
    max_frame: usize,
    /// Gone once the link is being closed.
    ways: Option<(mpsc::Sender<Vec<u8>>, oneshot::Sender<()>)>,
}

/// One link's ends, for the task that runs it.
pub(super) struct OpenLink {
    pub(super) id: LinkId,
    links: Links,
    queue: mpsc::Receiver<Vec<u8>>,
    closed: oneshot::Receiver<()>,
}

/// Why a link is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// We closed it.
    Closed,
    /// The system says so, or took no more frames.
    Lost,
    /// Nothing came for too long.
    Silent,
}

impl Links {
    pub(super) fn new(
        ids: LinkIds,
        events: mpsc::Sender<RadioEvent>,
        status: watch::Sender<BluetoothStatus>,
    ) -> Self {
        let (entries, frames, taken) = (Mutex::default(), AtomicU64::new(0), Mutex::default());
        let (made, is_made) = (Mutex::default(), Notify::new());
        let (mute, is_mute) = (Mutex::default(), Notify::new());
        let inner =
            Inner { ids, entries, events, status, frames, taken, made, is_made, mute, is_mute };
        Self(Arc::new(inner))
    }

    pub(super) fn status(&self) -> &watch::Sender<BluetoothStatus> {
        &self.0.status
    }

    /// How many links stand.
    pub(super) fn len(&self) -> usize {
        self.entries().len()
    }

    /// Frames that crossed any link, either way, so far.
    pub(super) fn frames(&self) -> u64 {
        self.0.frames.load(Ordering::Relaxed)
    }

    /// Notes whether a device has connected to us. Over its connection both sides can speak, so that
    /// connecting to it as well would only say everything twice.
    pub(super) fn set_taken(&self, address: String, is_taken: bool) {
        let mut taken = self.taken();
        if is_taken {
            taken.insert(address)
        } else {
            taken.remove(&address)
        };
    }

    /// Whether a device of that address has connected to us.
    pub(super) fn is_taken(&self, address: &str) -> bool {
        self.taken().contains(address)
    }

    /// Notes the link that we made to a device.
    pub(super) fn set_made(&self, address: String, link: LinkId) {
        self.made().insert(address, link);
        self.0.is_made.notify_one();
    }

    /// The link that we made to the device of that address, while it stands.
    pub(super) fn made_to(&self, address: &str) -> Option<LinkId> {
        self.made().get(address).copied()
    }

    /// Waits for a link that we made.
    pub(super) async fn next_made(&self) {
        self.0.is_made.notified().await;
    }

    /// A frame came that belongs to a link, though not by its own way; false once the link is gone.
    pub(super) async fn heard(&self, link: LinkId, bytes: Vec<u8>) -> bool {
        if !self.entries().contains_key(&link) {
            return false;
        }
        self.0.frames.fetch_add(1, Ordering::Relaxed);
        self.0.events.send(RadioEvent::Frame { link, bytes }).await.is_ok()
    }

    /// Notes that a device is connected to us and hears us no longer, so that the central role
    /// connects to it.
    pub(super) fn note_mute(&self, address: String) {
        let mut mute = self.mute();
        if mute.len() < MUTE {
            mute.insert(address);
            self.0.is_mute.notify_one();
        }
    }

    /// Waits for devices that hear us no longer, and gives their addresses once.
    pub(super) async fn next_mute(&self) -> BTreeSet<String> {
        loop {
            let mute = std::mem::take(&mut *self.mute());
            if !mute.is_empty() {
                return mute;
            }
            self.0.is_mute.notified().await;
        }
    }

    pub(super) fn transmit(&self, link: LinkId, frame: Vec<u8>) -> Result<(), TransmitError> {
        let entries = self.entries();
        let entry = entries.get(&link).ok_or(TransmitError::NoLink)?;
        let (frames, _) = entry.ways.as_ref().ok_or(TransmitError::NoLink)?;
        if frame.is_empty() || frame.len() > entry.max_frame {
            return Err(TransmitError::TooLarge { size: frame.len(), limit: entry.max_frame });
        }
        frames.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => TransmitError::Busy { limit: OUTGOING },
            mpsc::error::TrySendError::Closed(_) => TransmitError::NoLink,
        })
    }

    /// Tells the link's task to end it.
    pub(super) fn disconnect(&self, link: LinkId) {
        if let Some(entry) = self.entries().get_mut(&link) {
            entry.ways = None;
        }
    }

    /// A new link, which carries values of at most `max_frame` bytes.
    pub(super) async fn open(&self, role: Role, max_frame: usize) -> OpenLink {
        let id = self.0.ids.next();
        let max_frame = max_frame.min(MAX_FRAME);
        let (frames, queue) = mpsc::channel(OUTGOING);
        let (open, closed) = oneshot::channel();
        self.entries().insert(id, Entry { role, max_frame, ways: Some((frames, open)) });
        self.count();
        // Whoever is at the other end, a phone may be.
        let up = RadioEvent::Up { link: id, role, max_frame, phone: true };
        // Nobody to tell means that the radio is shutting down, here and below.
        let _ = self.0.events.send(up).await;
        let room = RadioEvent::Room { link: id, frames: OUTGOING };
        let _ = self.0.events.send(room).await;
        OpenLink { id, links: self.clone(), queue, closed }
    }

    /// The link is gone.
    pub(super) async fn close(&self, link: LinkId) {
        if self.entries().remove(&link).is_some() {
            self.made().retain(|_, made| *made != link);
            self.count();
            let _ = self.0.events.send(RadioEvent::Down { link }).await;
        }
    }

    /// All links are gone.
    pub(super) async fn close_all(&self) {
        let links: Vec<_> = self.entries().keys().copied().collect();
        for link in links {
            self.close(link).await;
        }
        self.taken().clear();
        self.mute().clear();
    }

    fn count(&self) {
        let entries = self.entries();
        let made = entries.values().filter(|entry| entry.role == Role::Central).count();
        let taken = entries.len() - made;
        drop(entries);
        self.0.status.send_modify(|status| {
            (status.central_links, status.peripheral_links) = (made, taken);
        });
    }

    fn taken(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<String, LinkId>> {
        self.0.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mute(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.mute.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<LinkId, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a link's frames go.
pub(super) trait Outlet {
    /// Sends one frame; false if the other end takes no more, ever.
    fn send(&mut self, frame: Vec<u8>) -> impl Future<Output = bool> + Send;
}

impl OpenLink {
    /// Carries frames both ways until the link ends: when `incoming` does, when `outlet` takes no
    /// more, or when the system says that it is `gone`.
    pub(super) async fn run(
        self,
        incoming: impl Stream<Item = Vec<u8>> + Send,
        mut outlet: impl Outlet + Send,
        gone: impl Future<Output = ()> + Send,
    ) -> Ended {
        let Self { id, links, mut queue, closed } = self;
        let inner = &*links.0;
        let reading = async {
            let mut incoming = pin!(incoming);
            let mut heard_at = Instant::now();
            loop {
                let frame = tokio::select! {
                    frame = incoming.next() => frame,
                    () = sleep_until(heard_at + SILENCE) => return Ended::Silent,
                };
                let Some(bytes) = frame else { return Ended::Lost };
                heard_at = Instant::now();
                inner.frames.fetch_add(1, Ordering::Relaxed);
                if inner.events.send(RadioEvent::Frame { link: id, bytes }).await.is_err() {
                    return Ended::Closed;
                }
            }
        };
        let writing = async {
            let mut left = 0;
            while let Some(frame) = queue.recv().await {
                if !timeout(PATIENCE, outlet.send(frame)).await.unwrap_or(false) {
                    return Ended::Lost;
                }
                inner.frames.fetch_add(1, Ordering::Relaxed);
                left += 1;
                if left >= OUTGOING / 2 || queue.is_empty() {
                    let room = RadioEvent::Room { link: id, frames: std::mem::take(&mut left) };
                    if inner.events.send(room).await.is_err() {
                        return Ended::Closed;
                    }
                }
            }
            // What had been taken before the link was closed has left.
            Ended::Closed
        };
        let closing = async {
            // Dropped, never sent.
            let _ = closed.await;
            sleep(PATIENCE).await;
        };
        let ended = tokio::select! {
            ended = reading => ended,
            ended = writing => ended,
            () = closing => Ended::Closed,
            () = gone => Ended::Lost,
        };
        links.close(id).await;
        ended
    }
}
