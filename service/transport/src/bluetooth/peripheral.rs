//! The peripheral role on Linux: advertising and the GATT server, by bluer over BlueZ.
//!
//! BlueZ asks for a socket for each central that subscribes and for each that writes (`Io` mode):
//! so a value reaches one central alone, in order, and a full socket makes the sender wait.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use bluer::{
    Adapter, Address,
    adv::{Advertisement, AdvertisementHandle},
    gatt::{
        CharacteristicReader, CharacteristicWriter,
        local::{
            Application, Characteristic, CharacteristicControlEvent, CharacteristicNotify,
            CharacteristicNotifyMethod, CharacteristicRead, CharacteristicWrite,
            CharacteristicWriteMethod, Service, characteristic_control,
        },
    },
};
use fieldpost_bitchat::Role;
use futures_util::{StreamExt, stream::unfold};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

use super::{
    CHARACTERISTIC, SERVICE,
    links::{Ended, Links, Outlet},
};

/// Links that others made, at once; further centrals are disconnected.
const LINKS: usize = 16;
/// Centrals that wrote and have not subscribed; beyond it, and after a while, they are dropped.
const EARLY: usize = 16;
const EARLY_LIFE: Duration = Duration::from_secs(30);
/// BlueZ stops advertising when a central connects, and several often come and go at once.
const SETTLE: Duration = Duration::from_millis(250);
/// In case nobody told us that it had stopped.
const RENEWED: Duration = Duration::from_secs(120);
/// The last advertisement may still be on its way out.
const ADVERTISE_TRIES: u32 = 5;
const ADVERTISE_PAUSE: Duration = Duration::from_millis(200);
/// Between advertisements, as phones do it; BlueZ's own 1.28 s keep whoever connects waiting.
const INTERVAL: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(250)];
const SYSTEM_PATIENCE: Duration = Duration::from_secs(5);
/// A connection that is being closed is gone after so long: BlueZ takes two seconds for it.
const CLOSED: Duration = Duration::from_millis(2500);

/// Lets neighbours find us and serves them, until BlueZ will not; then why.
pub(super) async fn run(adapter: &Adapter, links: &Links, turned: &Notify) -> String {
    let (control, control_handle) = characteristic_control();
    let mut control = pin!(control);
    let application = Application {
        services: vec![Service {
            uuid: SERVICE,
            primary: true,
            characteristics: vec![Characteristic {
                uuid: CHARACTERISTIC,
                read: Some(CharacteristicRead {
                    read: true,
                    fun: Box::new(|_| Box::pin(async { Ok(Vec::new()) })),
                    ..CharacteristicRead::default()
                }),
                write: Some(CharacteristicWrite {
                    write: true,
                    write_without_response: true,
                    method: CharacteristicWriteMethod::Io,
                    ..CharacteristicWrite::default()
                }),
                notify: Some(CharacteristicNotify {
                    notify: true,
                    method: CharacteristicNotifyMethod::Io,
                    ..CharacteristicNotify::default()
                }),
                control_handle,
                ..Characteristic::default()
            }],
            ..Service::default()
        }],
        ..Application::default()
    };
    let _application = match adapter.serve_gatt_application(application).await {
        Ok(application) => application,
        Err(error) => return format!("cannot serve GATT: {error}"),
    };
    let mut advertisement = match advertise(adapter).await {
        Ok(advertisement) => Some(advertisement),
        Err(error) => return format!("cannot advertise: {error}"),
    };
    links.status().send_modify(|status| {
        (status.is_peripheral, status.peripheral_problem) = (true, None);
    });

    let mut server = Server {
        adapter: adapter.clone(),
        links: links.clone(),
        taken: BTreeMap::new(),
        early: BTreeMap::new(),
        heard: BTreeMap::new(),
        tasks: JoinSet::new(),
        hearing: JoinSet::new(),
    };
    let mut renew_at = Instant::now() + RENEWED;
    loop {
        tokio::select! {
            event = control.next() => match event {
                Some(CharacteristicControlEvent::Write(request)) => match request.accept() {
                    Ok(reader) => server.take_reader(Arc::new(reader)),
                    Err(error) => debug!(%error, "cannot take a central's writes"),
                },
                Some(CharacteristicControlEvent::Notify(writer)) => server.take_writer(writer),
                None => return "BlueZ dropped the GATT server".to_owned(),
            },
            Some(gone) = server.tasks.join_next() => {
                if let Ok((address, number, is_mute)) = gone {
                    server.forget(address, number, is_mute);
                }
            }
            Some(gone) = server.hearing.join_next() => {
                if let Ok(address) = gone {
                    server.stop_hearing(address);
                }
            }
            () = links.next_made() => server.hear_early(),
            () = turned.notified() => renew_at = renew_at.min(Instant::now() + SETTLE),
            () = sleep_until(renew_at) => {
                server.drop_early();
                // Unregistered when dropped; only a new one is on the air again.
                drop(advertisement.take());
                match advertise(adapter).await {
                    Ok(renewed) => advertisement = Some(renewed),
                    Err(error) => return format!("cannot advertise again: {error}"),
                }
                renew_at = Instant::now() + RENEWED;
            }
        }
    }
}

/// The service alone: with a name, or the peer's id as Android adds it, it would not fit one
/// advertisement of the old kind (BitChat protocol reference, section 1.2).
async fn advertise(adapter: &Adapter) -> bluer::Result<AdvertisementHandle> {
    let mut tries = 1;
    loop {
        let advertisement = Advertisement {
            service_uuids: [SERVICE].into(),
            // BlueZ shows its programs no device that is not.
            discoverable: Some(true),
            min_interval: Some(INTERVAL[0]),
            max_interval: Some(INTERVAL[1]),
            ..Advertisement::default()
        };
        match adapter.advertise(advertisement).await {
            Err(_) if tries < ADVERTISE_TRIES => {
                tries += 1;
                sleep(ADVERTISE_PAUSE).await;
            }
            result => return result,
        }
    }
}

struct Server {
    adapter: Adapter,
    links: Links,
    /// Centrals that subscribed.
    taken: BTreeMap<Address, Taken>,
    /// Centrals that wrote first. Nothing of theirs is read until they subscribe, or we have a link to
    /// them.
    early: BTreeMap<Address, (Arc<CharacteristicReader>, Instant)>,
    /// Centrals that write and hear us over a link of ours alone: what they write is of that link.
    heard: BTreeMap<Address, (Arc<CharacteristicReader>, AbortHandle)>,
    /// Each gives its central and whether that stays connected and does not hear us.
    tasks: JoinSet<(Address, u64, bool)>,
    hearing: JoinSet<Address>,
}

struct Taken {
    number: u64,
    readers: mpsc::Sender<Arc<CharacteristicReader>>,
    /// Dropped when the same central has subscribed anew.
    _current: oneshot::Sender<()>,
}

impl Server {
    fn take_reader(&mut self, reader: Arc<CharacteristicReader>) {
        let address = reader.device_address();
        if let Some(taken) = self.taken.get(&address) {
            // One that is there already is as good; BlueZ asks again for what it drops.
            let _ = taken.readers.try_send(reader);
            return;
        }
        self.drop_early();
        if self.early.len() < EARLY {
            self.early.insert(address, (reader, Instant::now()));
        }
        self.hear_early();
    }

    /// Reads what centrals write that have not subscribed, where a link of ours leads to them.
    fn hear_early(&mut self) {
        let links = &self.links;
        let made_to = |address: &Address| links.made_to(&address.to_string());
        let reached: Vec<_> =
            self.early.keys().filter_map(|address| Some((*address, made_to(address)?))).collect();
        for (address, link) in reached {
            let Some((reader, _)) = self.early.remove(&address) else { continue };
            debug!(device = %address, link = link.0, "a central is heard on a link of ours");
            let (links, source) = (self.links.clone(), reader.clone());
            let task = self.hearing.spawn(async move {
                while let Ok(bytes) = source.recv().await {
                    if bytes.is_empty() || !links.heard(link, bytes).await {
                        break;
                    }
                }
                address
            });
            self.heard.insert(address, (reader, task));
        }
    }

    fn stop_hearing(&mut self, address: Address) {
        if self.heard.get(&address).is_some_and(|(_, task)| task.is_finished()) {
            self.heard.remove(&address);
        }
    }

    fn take_writer(&mut self, writer: CharacteristicWriter) {
        let address = writer.device_address();
        if self.taken.len() >= LINKS && !self.taken.contains_key(&address) {
            debug!(device = %address, limit = LINKS, "a central too many");
            tokio::spawn(disconnect(self.adapter.clone(), address));
            return;
        }
        let (readers, incoming) = mpsc::channel(1);
        let reader = match self.heard.remove(&address) {
            Some((reader, task)) => {
                task.abort();
                Some(reader)
            }
            None => self.early.remove(&address).map(|(reader, _)| reader),
        };
        if let Some(reader) = reader {
            let _ = readers.try_send(reader);
        }
        let (current, replaced) = oneshot::channel();
        let number = self.taken.get(&address).map_or(0, |taken| taken.number + 1);
        self.links.set_taken(address.to_string(), true);
        self.taken.insert(address, Taken { number, readers, _current: current });
        let (adapter, links) = (self.adapter.clone(), self.links.clone());
        self.tasks.spawn(async move {
            let is_mute = serve(&adapter, &links, Arc::new(writer), incoming, replaced).await;
            (address, number, is_mute)
        });
    }

    fn forget(&mut self, address: Address, number: u64, is_mute: bool) {
        if self.taken.get(&address).is_some_and(|taken| taken.number == number) {
            self.taken.remove(&address);
            self.links.set_taken(address.to_string(), false);
            if is_mute {
                self.links.note_mute(address.to_string());
            }
        }
    }

    fn drop_early(&mut self) {
        self.early.retain(|_, (_, came_at)| came_at.elapsed() < EARLY_LIFE);
    }
}

/// Runs one central's link. True if the central is still connected in the end and hears us no more:
/// when another one goes without a word, BlueZ 5.82 forgets the first subscriber it has, and tells
/// neither side.
async fn serve(
    adapter: &Adapter,
    links: &Links,
    writer: Arc<CharacteristicWriter>,
    readers: mpsc::Receiver<Arc<CharacteristicReader>>,
    replaced: oneshot::Receiver<()>,
) -> bool {
    let address = writer.device_address();
    // bluer has taken ATT's overhead off already.
    let link = links.open(Role::Peripheral, writer.mtu()).await;
    debug!(device = %address, link = link.id.0, max_frame = writer.mtu(), "a central subscribed");
    let incoming = unfold((readers, None), |(mut readers, mut reader)| async move {
        let source: Arc<CharacteristicReader> = match reader.take() {
            Some(reader) => reader,
            None => readers.recv().await?,
        };
        // An empty value is how the socket says that the central is gone.
        let bytes = source.recv().await.ok().filter(|bytes| !bytes.is_empty())?;
        Some((bytes, (readers, Some(source))))
    });
    let is_replaced = async {
        // Dropped, never sent.
        let _ = replaced.await;
    };
    let mut was_replaced = false;
    let gone = async {
        tokio::select! {
            _ = writer.closed() => {}
            () = is_replaced => was_replaced = true,
        }
    };
    let ended = link.run(incoming, Notifying(writer.clone()), gone).await;
    debug!(device = %address, ?ended, was_replaced, "a link that a central made is gone");
    if ended != Ended::Lost {
        disconnect(adapter.clone(), address).await;
        return false;
    }
    if was_replaced {
        return false;
    }
    sleep(CLOSED).await;
    let Ok(device) = adapter.device(address) else { return false };
    matches!(timeout(SYSTEM_PATIENCE, device.is_connected()).await, Ok(Ok(true)))
}

/// A central that subscribed.
struct Notifying(Arc<CharacteristicWriter>);

impl Outlet for Notifying {
    async fn send(&mut self, frame: Vec<u8>) -> bool {
        match self.0.send(&frame).await {
            Ok(()) => true,
            Err(error) => {
                debug!(device = %self.0.device_address(), %error, "cannot notify");
                false
            }
        }
    }
}

async fn disconnect(adapter: Adapter, address: Address) {
    if let Ok(device) = adapter.device(address) {
        // Often it is gone already, and then there is nothing to do.
        let _ = timeout(SYSTEM_PATIENCE, device.disconnect()).await;
    }
}
