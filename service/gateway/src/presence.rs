//! Tells who came and who went, and keeps the numbers about peers fresh in the database.

use std::time::Duration;

use fieldpost_envelope::PeerId;
use tokio::time::{MissedTickBehavior, interval};

use crate::{Gateway, store::Presence, subscribers::Event};

/// How many contacts are told that a peer came or went.
const MAX_AUDIENCE: i64 = 1000;
/// How many peers are found to have gone offline by silence at a time.
const MAX_EXPIRED: i64 = 1000;

/// A socket of `peer` has opened here; it is online.
pub async fn opened(gateway: &Gateway, peer: &PeerId) -> sqlx::Result<()> {
    let presence = gateway.store.presence_opened(peer, gateway.replica).await?;
    announce(gateway, peer, presence).await
}

/// A socket of `peer` has closed here; it is offline unless it has another one.
///
/// Call it once for each [`opened`], whether that succeeded or not.
pub async fn closed(gateway: &Gateway, peer: &PeerId) -> sqlx::Result<()> {
    let presence = gateway.store.presence_closed(peer, gateway.replica).await?;
    announce(gateway, peer, presence).await
}

/// `peer` says that it is online or not; `None` if there is no such peer.
pub async fn stated(gateway: &Gateway, peer: &PeerId, online: bool) -> sqlx::Result<Option<()>> {
    match gateway.store.state_presence(peer, online).await? {
        Some(presence) => announce(gateway, peer, presence).await.map(Some),
        None => Ok(None),
    }
}

/// Tells the contacts of `peer` that are connected here, if they may know and it is news.
async fn announce(gateway: &Gateway, peer: &PeerId, presence: Presence) -> sqlx::Result<()> {
    if !presence.changed || gateway.subscribers.connected_peers() == 0 {
        return Ok(());
    }
    let audience = gateway.store.presence_audience(peer, MAX_AUDIENCE).await?;
    let event = Event::Presence { peer: peer.clone(), online: presence.online };
    for contact in &audience {
        gateway.subscribers.tell(contact, &event);
    }
    Ok(())
}

/// Works until it is dropped: writes counters and ends what has run out every 5 s, renews the leases
/// of connected peers and sweeps every 20 s.
///
/// A failure is logged once, when it begins; the work is done at the next turn.
pub async fn keep(gateway: Gateway) {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    for turn in 0_u64.. {
        beat.tick().await;
        match work(&gateway, turn).await {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                tracing::warn!(%error, "peers' presence and counters cannot be written");
                failing = true;
            }
            Err(_) => {}
        }
    }
}

const BEAT: Duration = Duration::from_secs(1);
const BEATS_TO_EXPIRY: u64 = 5;
/// Under load a peer is written once for hundreds of its messages.
const BEATS_TO_COUNTERS: u64 = 5;
/// A third of a lease: two renewals may fail.
const BEATS_TO_RENEWAL: u64 = 20;

async fn work(gateway: &Gateway, turn: u64) -> sqlx::Result<()> {
    if turn.is_multiple_of(BEATS_TO_RENEWAL) {
        gateway.store.refresh_presence(gateway.replica).await?;
        gateway.store.sweep_access().await?;
    }
    if turn.is_multiple_of(BEATS_TO_EXPIRY) {
        gateway.limits.forget_quiet();
        let gone = Presence { online: false, changed: true };
        for peer in gateway.store.expire_presence(MAX_EXPIRED).await? {
            announce(gateway, &peer, gone).await?;
        }
    }
    if turn.is_multiple_of(BEATS_TO_COUNTERS) {
        gateway.store.flush_counters().await?;
    }
    Ok(())
}

/// Writes what is left when the gateway stops: counters, and that nobody is connected here.
pub async fn finish(gateway: &Gateway) {
    let written = gateway.store.flush_counters().await;
    if let Err(error) = written.and(gateway.store.end_presence(gateway.replica).await) {
        tracing::warn!(%error, "peers' presence and counters were not written at the end");
    }
}
