//! Bluetooth LE: neighbours through a real adapter, both roles at once (BitChat protocol reference,
//! section 1).
//!
//! The central role listens and connects; it is btleplug's and the same on all systems. The
//! peripheral role advertises and serves GATT; it is bluer's and exists on Linux alone. A pair of
//! nodes often has two links over one connection, one for each role, as the apps do; who is at the
//! other end is known to the core alone.
//!
//! Whatever goes away (the adapter, bluetoothd, D-Bus), the radio says why, closes its links and
//! looks again. It never fails.

#[cfg(target_os = "linux")]
mod bluez;
mod central;
#[cfg(not(target_os = "linux"))]
mod elsewhere;
mod links;
mod opening;
#[cfg(target_os = "linux")]
mod peripheral;
mod seeker;
mod status;
mod survey;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use btleplug::platform::Manager;
use fieldpost_bitchat::LinkId;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};
use uuid::{Uuid, uuid};

#[cfg(target_os = "linux")]
use self::bluez as system;
#[cfg(not(target_os = "linux"))]
use self::elsewhere as system;
use self::links::Links;
use crate::{LinkIds, Radio, RadioEvent, TransmitError};

pub use self::{
    opening::OpenBluetooth,
    status::BluetoothStatus,
    survey::{BluetoothAdapter, bluetooth_adapters},
};

/// What outlives a radio.
#[derive(Default)]
struct Memory {
    /// Each new one would cost a connection to the bus for good.
    manager: Option<Manager>,
    /// The problem that was logged last, since it was on the air.
    told: Option<String>,
}

type Kept = Arc<Mutex<Memory>>;

/// The service that nodes advertise (BitChat protocol reference, section 1.1).
const SERVICE: Uuid = uuid!("F47B5E2D-4A9E-4C5A-9B3F-8E1D2C3A4B5C");
/// Its only characteristic.
const CHARACTERISTIC: Uuid = uuid!("A1B2C3D4-E5F6-4A5B-8C9D-0E1F2A3B4C5D");

/// Events that wait for the core; when they are so many, links are no longer read.
const EVENTS: usize = 256;
/// Before the radio looks again for what it misses; each time twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(15);
/// After so long on the air, the next retry is quick again.
const GOOD: Duration = Duration::from_secs(10);

/// A Bluetooth adapter as a radio.
pub struct BluetoothRadio {
    links: Links,
    status: watch::Receiver<BluetoothStatus>,
    events: mpsc::Receiver<RadioEvent>,
    task: Option<JoinHandle<()>>,
}

impl BluetoothRadio {
    /// Starts looking for the adapter of that name (`hci0`), or for any that is on. Whether there is
    /// one is told by [`status`](Self::status). `seed` is for the jitter of attempts and retries.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn open(adapter: Option<String>, ids: LinkIds, seed: u64) -> Self {
        Self::keeping(adapter, ids, seed, Kept::default())
    }

    fn keeping(adapter: Option<String>, ids: LinkIds, seed: u64, kept: Kept) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        let (told, status) = watch::channel(BluetoothStatus::default());
        let links = Links::new(ids, sender, told);
        let task = tokio::spawn(keep(adapter, links.clone(), seed, kept));
        Self { links, status, events, task: Some(task) }
    }

    /// How it stands, and a way to wait for changes.
    pub fn status(&self) -> watch::Receiver<BluetoothStatus> {
        self.status.clone()
    }
}

#[async_trait]
impl Radio for BluetoothRadio {
    async fn next(&mut self) -> Option<RadioEvent> {
        // The links hold a sender, so that the queue does not end by itself.
        self.task.as_ref()?;
        self.events.recv().await
    }

    fn transmit(&self, link: LinkId, frame: Vec<u8>) -> Result<(), TransmitError> {
        self.links.transmit(link, frame)
    }

    fn disconnect(&self, link: LinkId) {
        self.links.disconnect(link);
    }

    async fn shutdown(&mut self) {
        self.events.close();
        if let Some(task) = self.task.take() {
            task.abort();
            // Aborted; whatever else it had to say is of no use now.
            let _ = task.await;
        }
        self.links.close_all().await;
    }
}

impl Drop for BluetoothRadio {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Goes on the air, and again whenever something ended it.
async fn keep(adapter: Option<String>, links: Links, seed: u64, kept: Kept) {
    let mut kept = kept.lock().await;
    let Memory { manager, told } = &mut *kept;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut wait = FIRST_RETRY;
    loop {
        let began = Instant::now();
        let problem = system::run(adapter.as_deref(), manager, &links, rng.random()).await;
        links.close_all().await;
        let was_on_air = links.status().borrow().adapter.is_some();
        // Before it was ever on the air, whoever opens it says why not.
        let is_ours = was_on_air || told.is_some();
        if was_on_air || told.as_ref().is_some_and(|told| *told != problem) {
            tracing::warn!(problem, "the Bluetooth radio is off the air; it goes on looking");
        } else {
            tracing::debug!(problem, "the Bluetooth radio is still off the air");
        }
        links.status().send_replace(BluetoothStatus::unavailable(problem.clone()));
        *told = is_ours.then_some(problem);
        if began.elapsed() >= GOOD {
            wait = FIRST_RETRY;
        }
        sleep(jitter(wait, &mut rng)).await;
        wait = (wait * 2).min(LAST_RETRY);
    }
}

/// Between half of a wait and all of it.
fn jitter(wait: Duration, rng: &mut impl Rng) -> Duration {
    wait.mul_f64(rng.random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests;
