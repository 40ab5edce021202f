//! Who is where: tells other gateways who is here, takes in what they tell, and lets messages leave
//! that waited for a name (design, section 4).
//!
//! ```text
//! registration ─► tell ─► store.renew_own_roster ─► Transport::publish ─► other gateways
//! Transport::receive_roster ─► listen ─► store.take_roster ─► lead_on ─► outbox
//! ```
//!
//! Nothing of a roster is believed before its signature is verified. It speaks for its signer's own
//! peers; whether a bare name leads to one of them is a matter of trust, and decided when the name is
//! used.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use ed25519_dalek::SigningKey;
use fieldpost_delivery::Time;
use fieldpost_envelope::{GatewayId, Listing, Roster, SignedRoster};
use fieldpost_transport::{HeardRoster, Transport};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::instrument;

use crate::{
    Gateway,
    allowances::Allowances,
    config::Trust,
    store::{
        names::Appeared,
        rosters::{OwnRoster, Taken},
    },
    telemetry::metrics as names,
};

/// The shortest pause between two rosters of ours.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// How much longer it is for each peer listed: a long roster is costly to make and to take.
const PAUSE_EACH: Duration = Duration::from_micros(200);
/// How often this replica looks whether another one has made a new roster.
const FOLLOW: Duration = Duration::from_secs(2);
/// How often the list is compared though nobody said that it changed: who should have may be dead.
const COMPARE: TimeDelta = TimeDelta::seconds(30);
/// Rosters a second that one gateway may send us.
const ROSTERS_A_SECOND: u32 = 20;
/// Attempts to store what came before it is left to the next roster.
const STORE_ATTEMPTS: u32 = 5;
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How long after a roster was not taken the transport asks for it again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Gateways whose rosters are asked for again; others' are taken when they next tell one whole.
const MOST_MISSED: usize = 1024;
/// How often names that are waited for are looked up though no roster came.
const LOOK_UP: Duration = Duration::from_secs(5);
/// How long a gateway that is silent and out of reach is remembered; pins stay.
const SILENT: TimeDelta = TimeDelta::days(30);
/// Names led on at a time, and messages of one of them in one transaction.
const NAMES: i64 = 100;
const MESSAGES: i64 = 200;

/// What the parts of the gateway know of rosters without asking the database.
pub struct Rosters {
    trust: Trust,
    /// Gateways that were found on the local network.
    nearby: RwLock<HashSet<GatewayId>>,
    /// Told when the list of our own peers may have changed.
    list_changed: Notify,
    /// Told when a name that somebody waits for may lead somewhere.
    names_appeared: Notify,
    allowances: Allowances,
}

impl Rosters {
    /// Nothing is known yet.
    pub fn new(trust: Trust) -> Self {
        Self {
            trust,
            nearby: RwLock::default(),
            list_changed: Notify::new(),
            names_appeared: Notify::new(),
            allowances: Allowances::new(ROSTERS_A_SECOND),
        }
    }

    /// Whose rosters resolve names.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether `gateway` is one of these, as far as this replica knows.
    pub fn is_trusted(&self, gateway: GatewayId) -> bool {
        self.trust.gateways.contains(&gateway)
            || self.trust.lan
                && self.nearby.read().unwrap_or_else(PoisonError::into_inner).contains(&gateway)
    }

    /// Our own peers, or what they show of themselves, may have changed.
    pub fn list_changed(&self) {
        self.list_changed.notify_one();
    }

    /// A message has begun to wait for a name, or the name may have appeared.
    pub fn look_for_names(&self) {
        self.names_appeared.notify_one();
    }

    async fn learn_nearby(&self, gateway: &Gateway) -> sqlx::Result<()> {
        let known = gateway.store.remote_gateways().await?;
        let nearby = known.iter().filter(|one| one.is_nearby).map(|one| one.gateway).collect();
        *self.nearby.write().unwrap_or_else(PoisonError::into_inner) = nearby;
        Ok(())
    }
}

/// Tells all transports who is here, whenever that changes. Runs until it is dropped.
pub async fn tell(gateway: Gateway) {
    if gateway.transports.is_empty() {
        return std::future::pending().await;
    }
    let mut teller = Teller { told: None, compare_at: Time::UNIX_EPOCH, pause: LEAST_PAUSE };
    let mut is_changed = true;
    loop {
        gateway.readiness.until_ready().await;
        match teller.look(&gateway, is_changed).await {
            Ok(()) => is_changed = false,
            Err(error) => tracing::debug!(%error, "our roster was not renewed; trying again"),
        }
        sleep(teller.pause).await;
        if timeout(FOLLOW, gateway.rosters.list_changed.notified()).await.is_ok() {
            is_changed = true;
        }
    }
}

struct Teller {
    /// The number that the transports of this replica were told last.
    told: Option<u64>,
    compare_at: Time,
    pause: Duration,
}

impl Teller {
    async fn look(&mut self, gateway: &Gateway, is_changed: bool) -> sqlx::Result<()> {
        let now = gateway.clock.now();
        if is_changed || self.compare_at <= now {
            let (own, key) = {
                let identity = gateway.store.identity()?;
                (identity.gateway_id, identity.signing_key.clone())
            };
            let renewed = gateway
                .store
                .renew_own_roster(move |last, published, peers| {
                    next_roster(own, &key, now, last, published.as_deref(), peers)
                })
                .await?;
            self.compare_at = now + COMPARE;
            if let Some(renewed) = renewed {
                self.publish(gateway, renewed);
                return Ok(());
            }
        }
        if self.told != Some(gateway.store.own_roster_number().await?)
            && let Some(roster) = gateway.store.own_roster().await?
        {
            self.publish(gateway, roster);
        }
        Ok(())
    }

    fn publish(&mut self, gateway: &Gateway, roster: OwnRoster) {
        let Ok(whole) = SignedRoster::decode(&roster.whole) else {
            return tracing::error!(roster.number, "our own roster in the database is damaged");
        };
        // Another replica may have told others in between.
        let delta = roster
            .delta
            .and_then(|delta| SignedRoster::decode(&delta).ok())
            .filter(|delta| self.told.is_some() && delta.base() == self.told);
        for transport in &gateway.transports {
            transport.publish(&whole, delta.as_ref());
        }
        let peers = whole.clone().verify().map_or(0, |roster| roster.peers.len());
        self.pause = LEAST_PAUSE + PAUSE_EACH * u32::try_from(peers).unwrap_or(u32::MAX);
        self.told = Some(roster.number);
        metrics::gauge!(names::ROSTER_PEERS).set(peers as f64);
        tracing::debug!(roster.number, roster.peers = peers, "told who is here");
    }
}

/// The roster that follows the one told last, if anything has changed.
///
/// Numbers are unix milliseconds, so that they go on rising when the database is restored from a
/// backup, and the next ones where the clock was set back.
fn next_roster(
    own: GatewayId,
    key: &SigningKey,
    now: Time,
    last: u64,
    published: Option<&[u8]>,
    peers: Vec<Listing>,
) -> Option<OwnRoster> {
    let before = published
        .and_then(|bytes| SignedRoster::decode(bytes).ok()?.verify().ok())
        .filter(|before| before.gateway == own && before.number == last);
    if before.as_ref().is_some_and(|before| before.peers == peers) {
        return None;
    }
    let number = u64::try_from(now.timestamp_millis()).unwrap_or_default().max(last + 1);
    let whole = Roster { gateway: own, number, base: None, peers, removed: Vec::new() };
    // Without one, others are told the whole.
    let delta = before.and_then(|before| whole.delta_from(&before).sign(key).ok());
    match whole.sign(key) {
        Ok(whole) => Some(OwnRoster {
            number,
            whole: whole.into_bytes(),
            delta: delta.map(SignedRoster::into_bytes),
        }),
        Err(error) => {
            tracing::error!(%error, "our roster cannot be signed; others keep the last one");
            None
        }
    }
}

/// Takes in what other gateways tell over one transport, until it shuts or `stop`.
pub async fn listen(gateway: Gateway, transport: Arc<dyn Transport>, stop: CancellationToken) {
    let mut missed = Missed::default();
    loop {
        // One at a time: the transport bounds what waits in it.
        let received = async {
            gateway.readiness.until_ready().await;
            transport.receive_roster().await
        };
        let heard = tokio::select! {
            () = stop.cancelled() => return,
            gateways = missed.due(&gateway) => {
                gateways.into_iter().for_each(|gateway| transport.roster_missed(gateway));
                continue;
            }
            heard = received => heard,
        };
        let Some(heard) = heard else { break };
        let name = transport.name();
        let taken = stop.run_until_cancelled(take(&gateway, name, heard)).await;
        let Some((signer, outcome)) = taken else { return };
        metrics::counter!(
            names::ROSTERS_RECEIVED_TOTAL, "transport" => name, "outcome" => outcome.word(),
        )
        .increment(1);
        if let (Some(signer), Outcome::OtherBase | Outcome::OverQuota | Outcome::Failed) =
            (signer, outcome)
        {
            missed.note(gateway.clock.instant(), signer);
        }
    }
    // A transport that shuts by itself leaves the gateway with the others.
    stop.cancelled().await;
}

/// Gateways whose roster was not taken, and when the transport is to ask for it again.
#[derive(Debug, Default)]
struct Missed(HashMap<GatewayId, Instant>);

impl Missed {
    fn note(&mut self, now: Instant, gateway: GatewayId) {
        if self.0.len() < MOST_MISSED {
            self.0.entry(gateway).or_insert(now + ASK_AGAIN);
        }
    }

    /// Waits until there are some to ask for, and takes them out.
    async fn due(&mut self, gateway: &Gateway) -> Vec<GatewayId> {
        let Some(first) = self.0.values().min().copied() else {
            return std::future::pending().await;
        };
        sleep(first.saturating_duration_since(gateway.clock.instant())).await;
        let now = gateway.clock.instant().max(first);
        self.0.extract_if(|_, at| *at <= now).map(|(gateway, _)| gateway).collect()
    }
}

/// What became of a roster that came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// It holds.
    Taken,
    /// One as new or newer held already.
    Old,
    /// It leads on from one that we do not have; the transport sends the whole again.
    OtherBase,
    /// The bytes are no roster.
    Malformed,
    /// The signature is wrong.
    Forged,
    /// It was our own.
    Misdirected,
    /// Its gateway is too fast.
    OverQuota,
    /// As many are known as may be.
    NoRoom,
    /// The database did not take it.
    Failed,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Old => "old",
            Self::OtherBase => "other_base",
            Self::Malformed => "malformed",
            Self::Forged => "forged",
            Self::Misdirected => "misdirected",
            Self::OverQuota => "over_quota",
            Self::NoRoom => "no_room",
            Self::Failed => "failed",
        }
    }
}

#[instrument(name = "rosters.take", skip_all, fields(
    transport.name = transport,
    roster.size_bytes = heard.bytes.len(),
))]
async fn take(
    gateway: &Gateway,
    transport: &'static str,
    heard: HeardRoster,
) -> (Option<GatewayId>, Outcome) {
    let signed = match SignedRoster::decode(&heard.bytes) {
        Ok(signed) => signed,
        Err(error) => {
            tracing::debug!(%error, "bytes that are no roster came");
            return (None, Outcome::Malformed);
        }
    };
    let roster = match signed.verify() {
        Ok(roster) => roster,
        Err(error) => {
            tracing::debug!(%error, "a roster came that was not signed by whom it names");
            return (None, Outcome::Forged);
        }
    };
    (Some(roster.gateway), take_verified(gateway, roster, heard.is_nearby).await)
}

async fn take_verified(gateway: &Gateway, roster: Roster, is_nearby: bool) -> Outcome {
    match gateway.store.identity() {
        Ok(own) if own.gateway_id == roster.gateway => return Outcome::Misdirected,
        Ok(_) => {}
        Err(_) => return Outcome::Failed,
    }
    let rosters = &gateway.rosters;
    let is_trusted = rosters.is_trusted(roster.gateway);
    if !rosters.allowances.admit(gateway.clock.instant(), roster.gateway, is_trusted) {
        return Outcome::OverQuota;
    }
    match store(gateway, &roster, is_nearby).await {
        Ok(Taken::Yes) => {
            tracing::debug!(
                gateway.id = %roster.gateway, roster.number, roster.is_nearby = is_nearby,
                "took in who is at another gateway"
            );
            Outcome::Taken
        }
        Ok(Taken::Old) => Outcome::Old,
        Ok(Taken::OtherBase) => Outcome::OtherBase,
        Ok(Taken::NoRoom) => {
            tracing::debug!(gateway.id = %roster.gateway, "there is no room for a roster");
            Outcome::NoRoom
        }
        Err(error) => {
            tracing::warn!(%error, gateway.id = %roster.gateway, "a roster could not be stored");
            Outcome::Failed
        }
    }
}

async fn store(gateway: &Gateway, roster: &Roster, is_nearby: bool) -> sqlx::Result<Taken> {
    let rosters = &gateway.rosters;
    let mut attempt = 1;
    loop {
        let now = gateway.clock.now();
        match gateway.store.take_roster(now, roster, is_nearby, &rosters.trust).await {
            Ok(taken) => {
                if taken == Taken::Yes || taken == Taken::Old && is_nearby {
                    rosters.learn_nearby(gateway).await?;
                    rosters.look_for_names();
                }
                return Ok(taken);
            }
            Err(error) if attempt < STORE_ATTEMPTS => {
                tracing::debug!(%error, "a roster was not stored; trying again");
            }
            Err(error) => return Err(error),
        }
        sleep(STORE_PAUSE * attempt).await;
        gateway.readiness.until_ready().await;
        attempt += 1;
    }
}

/// Lets messages leave that wait for names, once these lead to another gateway. Runs until it is
/// dropped.
pub async fn lead_on(gateway: Gateway) {
    let mut failing = false;
    loop {
        gateway.readiness.until_ready().await;
        match look_up(&gateway).await {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "names that are waited for cannot be looked up");
                }
                failing = true;
                sleep(LOOK_UP).await;
            }
        }
        let _ = timeout(LOOK_UP, gateway.rosters.names_appeared.notified()).await;
    }
}

async fn look_up(gateway: &Gateway) -> sqlx::Result<()> {
    let rosters = &gateway.rosters;
    // Other replicas take rosters in, too.
    rosters.learn_nearby(gateway).await?;
    let now = gateway.clock.now();
    gateway.store.follow_gateways(now, now - SILENT).await?;
    gateway.store.sweep_awaited(now).await?;
    for appeared in gateway.store.appeared_names(&rosters.trust, NAMES).await? {
        let Some(home) = appeared.address.gateway else { continue };
        let pinned = gateway.store.pin_name(&appeared.sender, &appeared.address.peer, home).await?;
        // Another replica may have been faster with another gateway: the next look follows it.
        if pinned == Some(home) {
            lead(gateway, &appeared).await?;
        }
    }
    Ok(())
}

/// Lets all messages of one sender that wait for a name leave for where it is; the sender has it
/// pinned there.
///
/// # Errors
///
/// The database's; some may have left.
pub async fn lead(gateway: &Gateway, appeared: &Appeared) -> sqlx::Result<()> {
    let address = &appeared.address;
    loop {
        let moved = gateway.store.move_awaited(appeared, MESSAGES).await?;
        if moved > 0 {
            gateway.quotas.recount(&[address.peer.to_string(), address.to_string()]);
            gateway.wake_outbox.notify_one();
            tracing::info!(messages = moved, "a name that was waited for has appeared");
        }
        if moved < MESSAGES.unsigned_abs() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use fieldpost_envelope::PeerId;

    use super::*;

    #[test]
    fn numbers_rise_with_the_clock_and_without_it() {
        let key = key();
        let first = next(&key, at(1000), None, &["alice"]).unwrap();
        assert_eq!((first.number, first.delta.is_some()), (1_000_000, false));
        assert_eq!(next(&key, at(2000), Some(&first), &["alice"]), None);
        let second = next(&key, at(2000), Some(&first), &["alice", "bob"]).unwrap();
        assert_eq!(second.number, 2_000_000);
        // The clock was set back.
        let third = next(&key, at(500), Some(&second), &["bob"]).unwrap();
        assert_eq!(third.number, 2_000_001);
    }

    #[test]
    fn a_delta_leads_from_the_one_before_to_the_next() {
        let key = key();
        let first = next(&key, at(1), None, &["alice", "bob"]).unwrap();
        let second = next(&key, at(2), Some(&first), &["bob", "carol"]).unwrap();
        let delta = SignedRoster::decode(&second.delta.unwrap()).unwrap().verify().unwrap();
        assert_eq!((delta.base, delta.number), (Some(first.number), second.number));
        assert_eq!(delta.peers, listings(&["carol"]));
        assert_eq!(delta.removed, [peer("alice")]);
        let whole = SignedRoster::decode(&second.whole).unwrap().verify().unwrap();
        assert_eq!(whole.peers, listings(&["bob", "carol"]));
    }

    #[test]
    fn another_display_name_is_a_change() {
        let key = key();
        let own = GatewayId::from(key.verifying_key());
        let first = next(&key, at(1), None, &["alice"]).unwrap();
        let named = vec![Listing { peer: peer("alice"), display_name: Some("Alice".to_owned()) }];
        let (number, whole) = (first.number, first.whole.as_slice());
        let second = next_roster(own, &key, at(2), number, Some(whole), named.clone()).unwrap();
        let delta = SignedRoster::decode(&second.delta.unwrap()).unwrap().verify().unwrap();
        assert_eq!((delta.peers, delta.removed), (named, vec![]));
    }

    fn next(
        key: &SigningKey,
        now: Time,
        last: Option<&OwnRoster>,
        peers: &[&str],
    ) -> Option<OwnRoster> {
        let own = GatewayId::from(key.verifying_key());
        let number = last.map_or(0, |last| last.number);
        let published = last.map(|last| last.whole.as_slice());
        next_roster(own, key, now, number, published, listings(peers))
    }

    fn listings(peers: &[&str]) -> Vec<Listing> {
        peers.iter().map(|name| Listing { peer: peer(name), display_name: None }).collect()
    }

    fn peer(name: &str) -> PeerId {
        name.parse().unwrap()
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn at(seconds: i64) -> Time {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }
}
