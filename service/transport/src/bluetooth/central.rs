//! The central role, on every system: listening for neighbours and connecting to them, by btleplug.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use btleplug::{
    api::{
        Central as _, CentralEvent, CentralState, Characteristic, Peripheral as _, ScanFilter,
        WriteType,
    },
    platform::{Adapter, Peripheral, PeripheralId},
};
use fieldpost_bitchat::Role;
use futures_util::{Stream, StreamExt};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

use super::{
    CHARACTERISTIC, SERVICE,
    links::{Ended, Links, Outlet},
    seeker::Seeker,
};

/// For a connection's services, and as long again for a subscription.
const CONNECT_PATIENCE: Duration = Duration::from_secs(8);
/// For all that a link takes until it stands, whatever the system does meanwhile.
const LINK_PATIENCE: Duration = Duration::from_secs(30);
/// For closing links that a process before this one left.
const LEFTOVERS_PATIENCE: Duration = Duration::from_secs(30);
/// For what the system answers by itself.
const SYSTEM_PATIENCE: Duration = Duration::from_secs(5);
/// An adapter tells once of a neighbour that goes on sounding the same; a new scan tells it again.
const SCAN_RENEWED: Duration = Duration::from_secs(30);
/// Before a scan that could not be started is tried again.
const SCAN_RETRY: Duration = Duration::from_secs(2);
/// After so long without a frame a link is subscribed to anew: every node announces itself more often.
/// BlueZ may have lost the subscription at the other end, which neither side is told.
const HUSH: Duration = Duration::from_secs(45);
/// Devices of which we remember whether they are ours; when there are more, all are asked again.
const KNOWN: usize = 512;
/// ATT: what goes beside a value.
const VALUE_OVERHEAD: u16 = 3;

/// The central role on one adapter.
pub(super) struct Central {
    adapter: Adapter,
    links: Links,
    shared: Arc<Shared>,
    /// Told whenever a device has come or gone, since that ends advertising.
    turned: Arc<Notify>,
    began: Instant,
    tasks: JoinSet<()>,
}

struct Shared {
    seeker: Mutex<Seeker<PeripheralId, StdRng>>,
    /// Dropped when the system says that the device is gone.
    standing: Mutex<BTreeMap<PeripheralId, oneshot::Sender<()>>>,
    changed: Notify,
}

impl Central {
    pub(super) fn new(adapter: Adapter, links: Links, turned: Arc<Notify>, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            seeker: Mutex::new(Seeker::new(StdRng::seed_from_u64(seed))),
            standing: Mutex::default(),
            changed: Notify::new(),
        });
        Self { adapter, links, shared, turned, began: Instant::now(), tasks: JoinSet::new() }
    }

    /// Looks for neighbours and keeps links to them, until the adapter cannot; then why.
    pub(super) async fn run(mut self) -> String {
        let events = match timeout(SYSTEM_PATIENCE, self.adapter.events()).await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => return format!("cannot hear of devices: {error}"),
            Err(_) => return "the system does not answer".to_owned(),
        };
        // Links of a process that died would stand for good, and nobody would serve them.
        let _ = timeout(LEFTOVERS_PATIENCE, self.cut_leftovers()).await;
        let watching = Watching {
            adapter: self.adapter.clone(),
            shared: self.shared.clone(),
            turned: self.turned.clone(),
            began: self.began,
            known: BTreeMap::new(),
        };
        let mut watching = Box::pin(watching.run(events));
        tokio::select! {
            reason = &mut watching => reason,
            reason = self.seek() => reason,
        }
    }

    async fn cut_leftovers(&self) {
        let Ok(Ok(devices)) = timeout(SYSTEM_PATIENCE, self.adapter.peripherals()).await else {
            return;
        };
        for device in devices {
            let is_ours = matches!(
                device.properties().await,
                Ok(Some(properties)) if properties.services.contains(&SERVICE)
            );
            if is_ours && device.is_connected().await.unwrap_or(false) {
                debug!(device = %device.id(), "closing a link that somebody left");
                disconnect(&device).await;
            }
        }
    }

    async fn seek(&mut self) -> String {
        let (mut scanning_since, mut frames) = (None, self.links.frames());
        loop {
            let now = self.began.elapsed();
            let (attempt, wants_scan, deadline) = {
                let mut seeker = self.shared.seeker();
                seeker.set_links(now, self.links.len());
                if self.links.frames() != frames {
                    frames = self.links.frames();
                    seeker.note_traffic(now);
                }
                let attempt = seeker.next_attempt(now, |peer| self.has_come(peer));
                (attempt, seeker.is_listening(now), seeker.next_deadline(now))
            };
            let is_stale = scanning_since.is_some_and(|since| since + SCAN_RENEWED <= now);
            if scanning_since.is_some() && (!wants_scan || is_stale) {
                // An adapter that is gone is noticed elsewhere.
                let _ = timeout(SYSTEM_PATIENCE, self.adapter.stop_scan()).await;
                scanning_since = None;
            }
            if let Some(peer) = attempt {
                let made = self.connect(&peer).await;
                let now = self.began.elapsed();
                match made {
                    Ok(()) => self.shared.seeker().connected(now, &peer),
                    Err(reason) => {
                        debug!(device = %peer, reason, "no link came about");
                        self.shared.seeker().failed(now, &peer);
                    }
                }
                continue;
            }
            let mut wake = self.began + deadline;
            if wants_scan && scanning_since.is_none() {
                match self.scan().await {
                    Ok(()) => scanning_since = Some(now),
                    Err(error) => {
                        debug!(error, "cannot listen for neighbours");
                        wake = wake.min(Instant::now() + SCAN_RETRY);
                    }
                }
            }
            let is_central = scanning_since.is_some() || !wants_scan;
            self.links.status().send_if_modified(|status| {
                std::mem::replace(&mut status.is_central, is_central) != is_central
            });
            tokio::select! {
                () = self.shared.changed.notified() => {}
                () = sleep_until(wake) => {}
                mute = self.links.next_mute() => self.attend(&mute).await,
                Some(_) = self.tasks.join_next() => {}
            }
        }
    }

    /// Whether that device has connected to us.
    fn has_come(&self, peer: &PeripheralId) -> bool {
        address_of(peer).is_some_and(|address| self.links.is_taken(&address))
    }

    /// Devices whose connection stands hear us no longer: a link of ours over it reaches them.
    async fn attend(&self, mute: &BTreeSet<String>) {
        let Ok(Ok(devices)) = timeout(SYSTEM_PATIENCE, self.adapter.peripherals()).await else {
            return;
        };
        let now = self.began.elapsed();
        for id in devices.iter().map(|device| device.id()) {
            if address_of(&id).is_some_and(|address| mute.contains(&address)) {
                debug!(device = %id, "a device that is connected does not hear us");
                self.shared.seeker().urged(now, id);
            }
        }
    }

    async fn scan(&self) -> Result<(), String> {
        let filter = ScanFilter { services: vec![SERVICE] };
        match timeout(SYSTEM_PATIENCE, self.adapter.start_scan(filter)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the system does not answer".to_owned()),
        }
    }

    /// Connects, subscribes and starts the link's task.
    async fn connect(&mut self, peer: &PeripheralId) -> Result<(), String> {
        let device = timeout(SYSTEM_PATIENCE, self.adapter.peripheral(peer))
            .await
            .map_err(|_| "the system does not answer")?
            .map_err(|error| error.to_string())?;
        let (standing, gone) = oneshot::channel();
        self.shared.standing().insert(peer.clone(), standing);
        let patience = self.shared.seeker().patience();
        let mut prepared = prepare(&device, patience).await;
        if let Err(reason) = &prepared
            && is_connected(&device).await
        {
            // Mostly both sides tried at once, and the other's connection came about.
            debug!(device = %peer, reason, "trying again over the connection that stands");
            prepared = prepare(&device, patience).await;
        }
        let (characteristic, notifications, max_frame) = match prepared {
            Ok(prepared) => prepared,
            Err(reason) => {
                self.shared.standing().remove(peer);
                // Without it, BlueZ goes on trying, and refuses each further attempt meanwhile. But it
                // would also end what the device began.
                if !self.has_come(peer) {
                    disconnect(&device).await;
                }
                return Err(reason);
            }
        };
        let link = self.links.open(Role::Central, max_frame).await;
        debug!(device = %peer, link = link.id.0, max_frame, "connected");
        if let Some(address) = address_of(peer) {
            self.links.set_made(address, link.id);
        }
        let (shared, peer, began) = (self.shared.clone(), peer.clone(), self.began);
        let links = self.links.clone();
        self.tasks.spawn(async move {
            let heard = Notify::new();
            let gone = async {
                tokio::select! {
                    // Dropped, never sent.
                    _ = gone => {}
                    () = renew(&device, &characteristic, &heard) => {}
                }
            };
            let incoming = notifications.filter_map(|notification| {
                // An empty value is no frame.
                let is_frame =
                    notification.uuid == CHARACTERISTIC && !notification.value.is_empty();
                if is_frame {
                    heard.notify_one();
                }
                std::future::ready(is_frame.then_some(notification.value))
            });
            let outlet = Writing { device: device.clone(), characteristic: characteristic.clone() };
            let ended = link.run(incoming, outlet, gone).await;
            debug!(device = %peer, ?ended, "a link that we made is gone");
            shared.standing().remove(&peer);
            // When a subscriber goes without a word, BlueZ 5.82 forgets the first subscriber it has,
            // whoever that is.
            unsubscribe(&device, &characteristic).await;
            // Whatever ended it, the system may still hold the connection. One over which the device
            // has a link of its own is left to that.
            let is_used = address_of(&peer).is_some_and(|address| links.is_taken(&address));
            if !(ended == Ended::Silent && is_used) {
                disconnect(&device).await;
            }
            shared.seeker().dropped(began.elapsed(), &peer);
            shared.changed.notify_one();
        });
        Ok(())
    }
}

type Notifications = std::pin::Pin<Box<dyn Stream<Item = btleplug::api::ValueNotification> + Send>>;

/// What section 1.4 of the BitChat protocol reference asks of a central. Systems negotiate the MTU
/// by themselves.
async fn prepare(
    device: &Peripheral,
    patience: Duration,
) -> Result<(Characteristic, Notifications, usize), String> {
    timeout(LINK_PATIENCE, connect(device, patience))
        .await
        .unwrap_or_else(|_| Err("the system does not answer".to_owned()))
}

async fn connect(
    device: &Peripheral,
    patience: Duration,
) -> Result<(Characteristic, Notifications, usize), String> {
    let told = |error: btleplug::Error| error.to_string();
    device.connect_with_timeout(patience).await.map_err(told)?;
    device.discover_services_with_timeout(CONNECT_PATIENCE).await.map_err(told)?;
    let characteristic = device
        .characteristics()
        .into_iter()
        .find(|found| found.service_uuid == SERVICE && found.uuid == CHARACTERISTIC)
        .ok_or("it does not offer the service")?;
    let notifications = device.notifications().await.map_err(told)?;
    timeout(CONNECT_PATIENCE, device.subscribe(&characteristic))
        .await
        .map_err(|_| "it does not answer a subscription")?
        .map_err(told)?;
    let max_frame = device.mtu().saturating_sub(VALUE_OVERHEAD);
    Ok((characteristic, notifications, usize::from(max_frame)))
}

/// Subscribes anew whenever nothing came for a while; returns if that fails.
async fn renew(device: &Peripheral, characteristic: &Characteristic, heard: &Notify) {
    loop {
        tokio::select! {
            () = heard.notified() => continue,
            () = sleep(HUSH) => {}
        }
        debug!(device = %device.id(), "nothing comes; subscribing anew");
        unsubscribe(device, characteristic).await;
        if !matches!(timeout(CONNECT_PATIENCE, device.subscribe(characteristic)).await, Ok(Ok(())))
        {
            return;
        }
    }
}

/// A neighbour's characteristic, written without response, as the apps do.
struct Writing {
    device: Peripheral,
    characteristic: Characteristic,
}

impl Outlet for Writing {
    async fn send(&mut self, frame: Vec<u8>) -> bool {
        match self.device.write(&self.characteristic, &frame, WriteType::WithoutResponse).await {
            Ok(()) => true,
            Err(error) => {
                debug!(device = %self.device.id(), %error, "cannot write");
                false
            }
        }
    }
}

async fn is_connected(device: &Peripheral) -> bool {
    matches!(timeout(SYSTEM_PATIENCE, device.is_connected()).await, Ok(Ok(true)))
}

async fn unsubscribe(device: &Peripheral, characteristic: &Characteristic) {
    // A device that is gone has no subscription either.
    let _ = timeout(SYSTEM_PATIENCE, device.unsubscribe(characteristic)).await;
}

/// The address of a device, where the system names devices so.
fn address_of(peer: &PeripheralId) -> Option<String> {
    let name = peer.to_string();
    name.rsplit_once("dev_").map(|(_, address)| address.replace('_', ":"))
}

async fn disconnect(device: &Peripheral) {
    // Often it is gone already, and then there is nothing to do.
    let _ = timeout(SYSTEM_PATIENCE, device.disconnect()).await;
}

/// What the system tells of devices. Its queue has no bound, so it is emptied whatever happens.
struct Watching {
    adapter: Adapter,
    shared: Arc<Shared>,
    turned: Arc<Notify>,
    began: Instant,
    /// Whether a device offers our service.
    known: BTreeMap<PeripheralId, bool>,
}

impl Watching {
    async fn run(mut self, mut events: impl Stream<Item = CentralEvent> + Unpin) -> String {
        while let Some(event) = events.next().await {
            match event {
                CentralEvent::DeviceConnected(_) => self.turned.notify_one(),
                CentralEvent::DeviceDisconnected(id) => {
                    self.turned.notify_one();
                    self.shared.standing().remove(&id);
                    self.shared.changed.notify_one();
                }
                CentralEvent::DeviceDiscovered(id) | CentralEvent::DeviceUpdated(id) => {
                    self.heard(id, None).await;
                }
                CentralEvent::RssiUpdate { id, rssi } => self.heard(id, known_strength(rssi)).await,
                CentralEvent::ManufacturerDataAdvertisement { id, .. }
                | CentralEvent::ServiceDataAdvertisement { id, .. } => self.heard(id, None).await,
                CentralEvent::ServicesAdvertisement { id, services } => {
                    let is_ours = services.contains(&SERVICE);
                    self.remember(&id, is_ours);
                    if is_ours {
                        self.heard(id, None).await;
                    } else {
                        // Its process died, and only its system still holds the connection.
                        self.shared.standing().remove(&id);
                    }
                }
                CentralEvent::StateUpdate(CentralState::PoweredOff) => {
                    return "the adapter is switched off".to_owned();
                }
                CentralEvent::StateUpdate(_) | CentralEvent::DeviceServicesModified(_) => {}
            }
        }
        "the system tells no more of devices".to_owned()
    }

    async fn heard(&mut self, id: PeripheralId, mut strength: Option<i16>) {
        // A scan's filter is merged with those of all other programs.
        let is_ours = match self.known.get(&id) {
            Some(is_ours) => *is_ours,
            None => {
                let properties = async { self.adapter.peripheral(&id).await?.properties().await };
                let Ok(Ok(Some(properties))) = timeout(SYSTEM_PATIENCE, properties).await else {
                    return;
                };
                strength = strength.or(properties.rssi.and_then(known_strength));
                let is_ours = properties.services.contains(&SERVICE);
                self.remember(&id, is_ours);
                is_ours
            }
        };
        if is_ours {
            self.shared.seeker().heard(self.began.elapsed(), id, strength);
            self.shared.changed.notify_one();
        }
    }

    fn remember(&mut self, id: &PeripheralId, is_ours: bool) {
        if self.known.len() >= KNOWN {
            self.known.clear();
        }
        self.known.insert(id.clone(), is_ours);
    }
}

/// 127 is how controllers say that they do not know.
fn known_strength(rssi: i16) -> Option<i16> {
    (rssi < 20).then_some(rssi)
}

impl Shared {
    fn seeker(&self) -> MutexGuard<'_, Seeker<PeripheralId, StdRng>> {
        self.seeker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> MutexGuard<'_, BTreeMap<PeripheralId, oneshot::Sender<()>>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
