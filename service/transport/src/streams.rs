//! Neighbours over a stream: `u32 BE length || packet`, as Android frames its Wi-Fi links (BitChat
//! protocol reference, section 1.7; design, section 3). One link a connection, at most 512 bytes a
//! packet; longer ones come in fragments, as on Bluetooth.
//!
//! Streams carry what is meant for a radio in the room, unencrypted as there. So they lead to this
//! machine alone: a Unix socket that only its owner may open, or a port on loopback.

mod address;
mod connection;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use fieldpost_bitchat::{LinkId, MAX_FRAME, Role};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::sleep,
};

use crate::{LinkIds, Radio, RadioEvent, TransmitError};

pub use address::{ParseAddressError, StreamAddress};

pub(crate) use address::Listener;
pub(crate) use connection::{Connection, read, write};

/// Frames that wait for one link; further ones are refused. The core is told what has left, and hands
/// over no more.
const OUTGOING: usize = 64;
/// Events that wait for the core; when they are so many, connections are no longer read, and their
/// neighbours feel it.
const EVENTS: usize = 256;
/// Connections that came, at once; further ones wait in the operating system's queue.
const ACCEPTED: usize = 16;
/// What was taken for a link that is being closed may still leave for so long.
const LINGER: Duration = Duration::from_millis(500);
/// Before the first new try to reach a neighbour; each further one waits twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// A connection that held so long was a good one: the next retry is quick again.
const GOOD: Duration = Duration::from_secs(10);

/// A radio made of streams.
pub struct StreamRadio {
    shared: Shared,
    events: mpsc::Receiver<RadioEvent>,
    tasks: JoinSet<()>,
}

/// What all connections share.
#[derive(Clone)]
struct Shared {
    ids: LinkIds,
    links: Arc<Mutex<BTreeMap<LinkId, Queue>>>,
    events: mpsc::Sender<RadioEvent>,
}

/// What leads to one connection. Dropping it ends the connection.
struct Queue {
    frames: mpsc::Sender<Vec<u8>>,
    _open: oneshot::Sender<()>,
}

impl StreamRadio {
    /// Listens at some addresses and keeps links to others. `seed` is for the jitter of retries.
    ///
    /// # Errors
    ///
    /// An address is in use or may not be bound.
    pub async fn open(
        listen: &[StreamAddress],
        neighbours: &[StreamAddress],
        ids: LinkIds,
        seed: u64,
    ) -> io::Result<Self> {
        let (sender, events) = mpsc::channel(EVENTS);
        let shared = Shared { ids, links: Arc::default(), events: sender };
        let mut tasks = JoinSet::new();
        let room = Arc::new(Semaphore::new(ACCEPTED));
        for address in listen {
            let listener = address.listen().await?;
            tasks.spawn(accept(listener, shared.clone(), room.clone()));
        }
        for (address, number) in neighbours.iter().zip(0..) {
            let rng = StdRng::seed_from_u64(seed ^ number);
            tasks.spawn(keep(address.clone(), shared.clone(), rng));
        }
        Ok(Self { shared, events, tasks })
    }
}

#[async_trait]
impl Radio for StreamRadio {
    async fn next(&mut self) -> Option<RadioEvent> {
        self.events.recv().await
    }

    fn transmit(&self, link: LinkId, frame: Vec<u8>) -> Result<(), TransmitError> {
        if frame.is_empty() || frame.len() > MAX_FRAME {
            return Err(TransmitError::TooLarge { size: frame.len(), limit: MAX_FRAME });
        }
        let links = self.shared.links();
        let queue = links.get(&link).ok_or(TransmitError::NoLink)?;
        queue.frames.try_send(frame).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => TransmitError::Busy { limit: OUTGOING },
            mpsc::error::TrySendError::Closed(_) => TransmitError::NoLink,
        })
    }

    fn disconnect(&self, link: LinkId) {
        // Without its queue, a connection ends.
        self.shared.links().remove(&link);
    }

    async fn shutdown(&mut self) {
        self.shared.links().clear();
        self.events.close();
        self.tasks.shutdown().await;
    }
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, BTreeMap<LinkId, Queue>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one connection as a link, until either side ends it.
    async fn run(&self, connection: Connection, role: Role) {
        let link = self.ids.next();
        let (frames, queue) = mpsc::channel(OUTGOING);
        let (open, closed) = oneshot::channel();
        self.links().insert(link, Queue { frames, _open: open });
        let up = RadioEvent::Up { link, role, max_frame: MAX_FRAME, phone: false };
        let room = RadioEvent::Room { link, frames: OUTGOING };
        if self.events.send(up).await.is_ok() && self.events.send(room).await.is_ok() {
            let closed = async {
                // Dropped, never sent.
                let _ = closed.await;
                sleep(LINGER).await;
            };
            tokio::select! {
                () = connection.run(link, queue, &self.events) => {}
                () = closed => {}
            }
            // Nobody to tell is no loss.
            let _ = self.events.send(RadioEvent::Down { link }).await;
        }
        self.links().remove(&link);
    }
}

/// Takes connections as long as there is room for them.
async fn accept(listener: Listener, shared: Shared, room: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok(connection) => {
                connections.spawn(accepted(connection, shared.clone(), permit));
            }
            // Out of descriptors, or the neighbour is gone already.
            Err(_) => sleep(FIRST_RETRY).await,
        }
    }
}

async fn accepted(connection: Connection, shared: Shared, _permit: OwnedSemaphorePermit) {
    shared.run(connection, Role::Peripheral).await;
}

/// Keeps a link to a neighbour.
async fn keep(address: StreamAddress, shared: Shared, mut rng: StdRng) {
    let mut wait = FIRST_RETRY;
    loop {
        if let Ok(connection) = address.connect().await {
            let since = tokio::time::Instant::now();
            shared.run(connection, Role::Central).await;
            if since.elapsed() >= GOOD {
                wait = FIRST_RETRY;
            }
        }
        sleep(jitter(wait, &mut rng)).await;
        wait = (wait * 2).min(LAST_RETRY);
    }
}

/// Between half of a wait and all of it, so that many do not come back at once.
fn jitter(wait: Duration, rng: &mut impl Rng) -> Duration {
    wait.mul_f64(rng.random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests;
