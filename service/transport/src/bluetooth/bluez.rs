//! One spell on the air on Linux: an adapter of BlueZ, in both roles, until something ends it.

use std::{pin::pin, sync::Arc, time::Duration};

use bluer::{Adapter, Session, SessionEvent};
use btleplug::{
    api::{Central as _, Manager as _},
    platform::Manager,
};
use futures_util::{Stream, StreamExt};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{central::Central, links::Links, peripheral};

/// How often BlueZ is asked whether the adapter still works.
const ASKED: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);
/// Before the peripheral role is tried again; twice as long each time.
const PERIPHERAL_RETRY: Duration = Duration::from_secs(2);
const PERIPHERAL_LAST_RETRY: Duration = Duration::from_secs(60);

/// Runs both roles on the adapter of that name, or the first that is on, and says what ended it.
///
/// `manager` is kept from one spell to the next: each new one costs a connection to the bus for good.
pub(super) async fn run(
    name: Option<&str>,
    manager: &mut Option<Manager>,
    links: &Links,
    seed: u64,
) -> String {
    match prepare(name, manager).await {
        Ok(found) => found.run(links, seed).await,
        Err(problem) => problem,
    }
}

struct Found {
    session: Session,
    adapter: Adapter,
    address: Option<String>,
    central: btleplug::platform::Adapter,
}

async fn prepare(name: Option<&str>, manager: &mut Option<Manager>) -> Result<Found, String> {
    let session = timeout(PATIENCE, Session::new())
        .await
        .map_err(|_| "D-Bus does not answer".to_owned())?
        .map_err(|error| format!("no D-Bus: {error}; install and start dbus and bluez"));
    let session = match session {
        Ok(session) => session,
        Err(problem) => {
            *manager = None;
            return Err(problem);
        }
    };
    let adapter = timeout(PATIENCE, choose(&session, name))
        .await
        .map_err(|_| "BlueZ does not answer".to_owned())??;
    let address = timeout(PATIENCE, adapter.address()).await.ok().and_then(Result::ok);
    let address = address.map(|address| address.to_string());
    let central = timeout(PATIENCE, find_central(adapter.name(), manager)).await;
    let central = match central.unwrap_or_else(|_| Err("BlueZ does not answer".to_owned())) {
        Ok(central) => central,
        Err(problem) => {
            *manager = None;
            return Err(problem);
        }
    };
    Ok(Found { session, adapter, address, central })
}

async fn choose(session: &Session, name: Option<&str>) -> Result<Adapter, String> {
    let mut names = session.adapter_names().await.map_err(|error| {
        format!("BlueZ does not answer: {error}; install bluez and start bluetooth.service")
    })?;
    names.sort();
    let wanted: Vec<_> =
        names.iter().filter(|each| name.is_none_or(|name| name == *each)).collect();
    if wanted.is_empty() {
        return Err(match name {
            Some(name) if names.is_empty() => format!("there is no adapter, so not {name} either"),
            Some(name) => format!("there is no adapter {name}; there is {}", names.join(", ")),
            None => "there is no Bluetooth adapter".to_owned(),
        });
    }
    for each in &wanted {
        let adapter = session.adapter(each).map_err(|error| error.to_string())?;
        if adapter.is_powered().await.unwrap_or(false) {
            return Ok(adapter);
        }
    }
    let off: Vec<_> = wanted.iter().map(|name| name.as_str()).collect();
    Err(format!("{} is switched off; switch it on: bluetoothctl power on", off.join(", ")))
}

async fn find_central(
    name: &str,
    manager: &mut Option<Manager>,
) -> Result<btleplug::platform::Adapter, String> {
    let told = |error: btleplug::Error| format!("BlueZ does not answer: {error}");
    let manager = match manager {
        Some(manager) => manager,
        none => none.insert(Manager::new().await.map_err(told)?),
    };
    for adapter in manager.adapters().await.map_err(told)? {
        let info = adapter.adapter_info().await.map_err(told)?;
        if info.split(' ').next() == Some(name) {
            return Ok(adapter);
        }
    }
    Err(format!("{name} went away"))
}

impl Found {
    async fn run(self, links: &Links, seed: u64) -> String {
        let Self { session, adapter, address, central } = self;
        let events = match session.events().await {
            Ok(events) => events,
            Err(error) => return format!("BlueZ does not answer: {error}"),
        };
        links.status().send_modify(|status| {
            status.adapter = Some(adapter.name().to_owned());
            (status.address, status.problem) = (address, None);
        });
        tracing::info!(adapter = adapter.name(), "the Bluetooth radio is on the air");
        let turned = Arc::new(Notify::new());
        tokio::select! {
            reason = watch(&adapter, events) => reason,
            reason = Central::new(central, links.clone(), turned.clone(), seed).run() => reason,
            () = keep_peripheral(&adapter, links, &turned) => "the peripheral role ended".to_owned(),
        }
    }
}

/// Without the peripheral role a node still connects to those that have it.
async fn keep_peripheral(adapter: &Adapter, links: &Links, turned: &Notify) {
    let mut wait = PERIPHERAL_RETRY;
    loop {
        let problem = peripheral::run(adapter, links, turned).await;
        tracing::warn!(problem, "neighbours cannot find this node for now");
        links.status().send_modify(|status| {
            (status.is_peripheral, status.peripheral_problem) = (false, Some(problem));
        });
        sleep(wait).await;
        wait = (wait * 2).min(PERIPHERAL_LAST_RETRY);
    }
}

/// Waits until the adapter is lost, switched off, or served by another bluetoothd than before.
async fn watch(adapter: &Adapter, events: impl Stream<Item = SessionEvent>) -> String {
    let mut events = pin!(events);
    let name = adapter.name();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(SessionEvent::AdapterRemoved(gone)) if gone == name => {
                    return format!("{name} went away");
                }
                // It was there: so another bluetoothd has started, which knows nothing of us.
                Some(SessionEvent::AdapterAdded(new)) if new == name => {
                    return "bluetoothd was started again".to_owned();
                }
                Some(_) => {}
                None => return "D-Bus went away".to_owned(),
            },
            () = sleep(ASKED) => match timeout(PATIENCE, adapter.is_powered()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return format!("{name} was switched off"),
                Ok(Err(error)) => return format!("BlueZ went away: {error}"),
                Err(_) => return "BlueZ does not answer".to_owned(),
            },
        }
    }
}
