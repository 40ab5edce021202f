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
    task::JoinSet,
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
const SYSTEM_PATIENCE: Duration = Duration::from_secs(5);

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
        tasks: JoinSet::new(),
    };
    let mut renew_at = Instant::now() + RENEWED;
    loop {
        tokio::select! {
            event = control.next() => match event {
                Some(CharacteristicControlEvent::Write(request)) => match request.accept() {
                    Ok(reader) => server.take_reader(reader),
                    Err(error) => debug!(%error, "cannot take a central's writes"),
                },
                Some(CharacteristicControlEvent::Notify(writer)) => server.take_writer(writer),
                None => return "BlueZ dropped the GATT server".to_owned(),
            },
            Some(gone) = server.tasks.join_next() => {
                if let Ok((address, number)) = gone {
                    server.forget(address, number);
                }
            }
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
    /// Centrals that wrote first. Nothing of theirs is read until they subscribe.
    early: BTreeMap<Address, (CharacteristicReader, Instant)>,
    tasks: JoinSet<(Address, u64)>,
}

struct Taken {
    number: u64,
    readers: mpsc::Sender<CharacteristicReader>,
    /// Dropped when the same central has subscribed anew.
    _current: oneshot::Sender<()>,
}

impl Server {
    fn take_reader(&mut self, reader: CharacteristicReader) {
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
    }

    fn take_writer(&mut self, writer: CharacteristicWriter) {
        let address = writer.device_address();
        if self.taken.len() >= LINKS && !self.taken.contains_key(&address) {
            debug!(device = %address, limit = LINKS, "a central too many");
            tokio::spawn(disconnect(self.adapter.clone(), address));
            return;
        }
        let (readers, incoming) = mpsc::channel(1);
        if let Some((reader, _)) = self.early.remove(&address) {
            let _ = readers.try_send(reader);
        }
        let (current, replaced) = oneshot::channel();
        let number = self.taken.get(&address).map_or(0, |taken| taken.number + 1);
        self.links.set_taken(address.to_string(), true);
        self.taken.insert(address, Taken { number, readers, _current: current });
        let (adapter, links) = (self.adapter.clone(), self.links.clone());
        self.tasks.spawn(async move {
            serve(&adapter, &links, Arc::new(writer), incoming, replaced).await;
            (address, number)
        });
    }

    fn forget(&mut self, address: Address, number: u64) {
        if self.taken.get(&address).is_some_and(|taken| taken.number == number) {
            self.taken.remove(&address);
            self.links.set_taken(address.to_string(), false);
        }
    }

    fn drop_early(&mut self) {
        self.early.retain(|_, (_, came_at)| came_at.elapsed() < EARLY_LIFE);
    }
}

/// Runs one central's link.
async fn serve(
    adapter: &Adapter,
    links: &Links,
    writer: Arc<CharacteristicWriter>,
    readers: mpsc::Receiver<CharacteristicReader>,
    replaced: oneshot::Receiver<()>,
) {
    let address = writer.device_address();
    // bluer has taken ATT's overhead off already.
    let link = links.open(Role::Peripheral, writer.mtu()).await;
    debug!(device = %address, link = link.id.0, max_frame = writer.mtu(), "a central subscribed");
    let incoming = unfold((readers, None), |(mut readers, mut reader)| async move {
        let source: CharacteristicReader = match reader.take() {
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
    }
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
