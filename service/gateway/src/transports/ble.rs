//! The `ble` transport of a replica: its node's keys, its radios, the peers that it speaks for, and
//! the phones that it hears.

use std::{fmt::Display, future::ready, sync::Arc, time::Duration};

use fieldpost_envelope::NodePurpose;
use fieldpost_transport::{
    BleIdentity, BleOptions, BleTransport, HostedPeer, LinkIds, OpenAir, OpenBluetooth, OpenRadio,
    OpenStreams, PhonePin,
};
use hkdf::Hkdf;
use sha2::Sha256;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{
    BLE, CERTIFICATE_LIFETIME, LONGEST_PAUSE, LateTransport, certify, hold_key, let_go, renew,
    until_started,
};
use crate::{
    Gateway, config::BleRadio, phones, store::phones::AIR_LEASE, telemetry::metrics as names,
};

/// How often it is looked who is on the air though nobody said that this has changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between two looks at the node's counters.
const COUNTED_EVERY: Duration = Duration::from_secs(2);
/// Phones whose pinned keys are taken along: as many as the node remembers, less some for newcomers.
const PINS: i64 = 1536;

/// Starts it as soon as that can be done, and keeps its keys and certificate, until `stop`.
///
/// `alone` says that no other replica can run on the database.
pub(super) async fn keep(
    gateway: Gateway,
    late: Arc<LateTransport>,
    alone: bool,
    stop: CancellationToken,
) {
    let start = until_started(&gateway, BLE, LONGEST_PAUSE, || start(&gateway, alone));
    let ble = stop.run_until_cancelled(start).await;
    let Some(ble) = ble else { return };
    tokio::select! {
        () = stop.cancelled() => {}
        () = late.run(ble.clone()) => {}
        () = renew(&gateway, BLE, CERTIFICATE_LIFETIME, |now| {
            let certified = certify(&gateway, NodePurpose::BitChat, ble.noise_key(), now);
            ready(certified.map(|certificate| ble.renew(certificate)))
        }) => {}
        () = host(&gateway, &ble, alone) => {}
        () = phones::listen(&gateway, &ble, BLE) => {}
        () = phones::note(&gateway, &ble) => {}
        () = count(&ble) => {}
    }
    stop.cancelled().await;
    let_go(&gateway, BLE).await;
    if let Err(error) = gateway.store.release_air_identities(gateway.replica).await {
        tracing::debug!(%error, "the peers' keys are held until their lease ends");
    }
}

async fn start(gateway: &Gateway, alone: bool) -> Result<Arc<BleTransport>, String> {
    let says = |error: &dyn Display| format!("the transport ble does not start: {error}");
    let store = &gateway.store;
    let key = hold_key(gateway, BLE, alone).await.map_err(|error| says(&error))?;
    let now = gateway.clock.now();
    let identity = identity(&key.to_bytes());
    let certificate = certify(gateway, NodePurpose::BitChat, *identity.noise_public(), now)
        .map_err(|error| says(&error))?;
    let pins = store.pinned_phones(PINS).await.map_err(|error| says(&error))?;
    let own = store.identity().map_err(|error| says(&error))?.gateway_id.to_string();
    let config = &gateway.config;
    let options = BleOptions {
        identity,
        nickname: format!("fieldpost-{}", &own[..6]),
        certificate,
        hop_limit: config.hop_limit,
        max_peers: usize::from(config.max_peers),
        pins: pins
            .iter()
            .map(|phone| PhonePin {
                noise_key: phone.noise_key,
                signing_key: phone.signing_key,
                // A person has verified none of them; what a session proved, the next one proves.
                is_verified: false,
            })
            .collect(),
    };
    let clock = gateway.clock.clone();
    let now = Arc::new(move || clock.now().into());
    BleTransport::start(options, radios(gateway), now).map_err(|error| says(&error))
}

/// The radios that the options name.
fn radios(gateway: &Gateway) -> Vec<Arc<dyn OpenRadio>> {
    let config = &gateway.config;
    let ids = LinkIds::default();
    let mut radios: Vec<Arc<dyn OpenRadio>> = Vec::new();
    match &config.ble_radio {
        BleRadio::None => {}
        BleRadio::Air { address, station } => radios.push(Arc::new(OpenAir {
            address: address.clone(),
            name: station.clone(),
            ids: ids.clone(),
        })),
        radio @ (BleRadio::Auto | BleRadio::Adapter(_)) => {
            let adapter = match radio {
                BleRadio::Adapter(name) => Some(name.clone()),
                _ => None,
            };
            let seed = gateway.replica.as_u64_pair().1;
            radios.push(Arc::new(OpenBluetooth::new(adapter, ids.clone(), seed)));
        }
    }
    if !config.ble_stream_listen.is_empty() || !config.ble_stream_link.is_empty() {
        radios.push(Arc::new(OpenStreams {
            listen: config.ble_stream_listen.clone(),
            neighbours: config.ble_stream_link.clone(),
            ids,
            // Jitter needs no secret; the replica's name makes it differ between replicas.
            seed: gateway.replica.as_u64_pair().0,
        }));
    }
    radios
}

/// The keys of a name on the mesh, made of one secret: each is independent of the other to whoever
/// does not know that.
fn identity(seed: &[u8; 32]) -> BleIdentity {
    let (mut noise, mut signing) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
    let made = Hkdf::<Sha256>::new(Some(b"fieldpost-bitchat-v1"), seed);
    for (purpose, key) in [(&b"noise"[..], &mut noise), (b"signing", &mut signing)] {
        made.expand(purpose, key.as_mut_slice()).expect("HKDF-SHA256 gives up to 8160 bytes");
    }
    BleIdentity::from_keys(&noise, &signing)
}

/// Shows what the node has counted among the metrics, for ever.
async fn count(ble: &BleTransport) {
    loop {
        let counters = ble.counters();
        for (direction, frames) in
            [("received", counters.frames_received), ("sent", counters.frames_sent)]
        {
            metrics::counter!(names::BLE_FRAMES_TOTAL, "direction" => direction).absolute(frames);
        }
        metrics::counter!(names::BLE_SENT_BYTES_TOTAL).absolute(counters.bytes_sent);
        for (reason, count) in counters.refused() {
            metrics::counter!(names::BLE_REFUSED_TOTAL, "reason" => reason).absolute(count);
        }
        metrics::counter!(names::BLE_DUPLICATES_TOTAL).absolute(counters.duplicates);
        metrics::counter!(names::BLE_RELAYED_TOTAL).absolute(counters.relayed);
        metrics::counter!(names::BLE_RELAYS_CANCELLED_TOTAL).absolute(counters.relay_cancelled);
        for (reason, sets) in
            [("given_up", counters.sets_given_up), ("broken", counters.sets_broken)]
        {
            metrics::counter!(names::BLE_SETS_LOST_TOTAL, "reason" => reason).absolute(sets);
        }
        metrics::counter!(names::BLE_SESSIONS_TOTAL).absolute(counters.sessions);
        metrics::gauge!(names::BLE_LINKS).set(ble.links() as f64);
        sleep(COUNTED_EVERY).await;
    }
}

/// Speaks for the peers that are on the air and that no other replica speaks for, for ever.
async fn host(gateway: &Gateway, ble: &BleTransport, alone: bool) {
    let most = i64::from(gateway.config.max_peers);
    let mut held_at = gateway.clock.instant();
    loop {
        gateway.readiness.until_ready().await;
        let now = gateway.clock.now();
        match gateway.store.hold_air_identities(now, gateway.replica, alone, most).await {
            Ok(held) => {
                held_at = gateway.clock.instant();
                ble.host(held.into_iter().map(hosted).collect());
            }
            Err(error) => {
                tracing::debug!(%error, "who is on the air cannot be read");
                if held_at.elapsed() >= AIR_LEASE {
                    // Another replica may speak for them by now.
                    ble.host(Vec::new());
                }
            }
        }
        // Nobody to wake it costs a moment.
        let _ = timeout(LOOK_EVERY, gateway.wake_air.notified()).await;
    }
}

fn hosted(held: crate::store::phones::AirIdentity) -> HostedPeer {
    let nickname = held
        .display_name
        .filter(|name| !name.trim().is_empty())
        .unwrap_or_else(|| held.peer.to_string());
    HostedPeer { identity: identity(&held.seed), peer: held.peer, nickname }
}
