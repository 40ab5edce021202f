//! Drives what is owed elsewhere: claims what is due and in reach, lets the core decide, sends,
//! and records what came of it.
//!
//! ```text
//! store.claim_due ─► carry ─► delivery::Dispatch ─► Transport::send ─► the other gateway
//!                      ▲  └──► store.record                                   │
//!                      └────── Heard ◄── inbox ◄── Transport::receive ◄───────┘
//! ```
//!
//! It wakes when something is accepted, when a transport's reach or the machine's own connections
//! change, and at the next due time, and looks every `SWEEP` even so. What is under way is bounded in number, in bytes and for
//! each target, so that one gateway that is silent holds up nobody else.
//!
//! All that matters is in the store: a process that dies here costs a repetition, which recipients
//! recognise, and the time until its claims end.

mod awaited;
mod carry;
mod errands;
mod openings;
mod receipts;
mod routes;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::TimeDelta;
use fieldpost_delivery::{Backoff, Claim, Next, Rules, Store as _, Time, Warm};
use fieldpost_envelope::{AnonymityLevel, GatewayId};
use futures_util::{
    FutureExt as _,
    future::{join_all, select_all},
};
use rand::{
    RngExt, SeedableRng,
    rngs::{StdRng, SysRng},
};
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use self::{
    awaited::{Awaited, Heard},
    errands::{Errand, Errands},
    openings::{Openings, Reserved},
    receipts::settle,
    routes::{Learned, Preview, preview},
};
use crate::{
    Gateway,
    config::{Config, Switch},
    connectivity::Connectivity,
    store::{CLAIM_BYTES, Waking},
    telemetry::metrics as names,
};

/// How often the outbox looks though nothing woke it.
const SWEEP: Duration = Duration::from_secs(5);
/// The shortest pause between two looks at something that cannot be helped now.
const LEAST_PAUSE: Duration = Duration::from_millis(20);
/// The same while a target has as much under way as it may.
const CROWDED_PAUSE: Duration = Duration::from_millis(250);
/// The longest rest after a look that found something, whatever has come meanwhile.
const LONGEST_REST: Duration = Duration::from_millis(10);
/// The pause after the database failed.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// Deliveries under way at once.
const MAX_UNDER_WAY: usize = 2048;
/// The content of these together; nothing more is claimed beyond.
const MAX_BYTES_UNDER_WAY: usize = 64 << 20;
/// Deliveries under way to one target before no more are claimed for it.
const MAX_FOR_TARGET: usize = 512;
/// The content of these together, likewise.
const MAX_BYTES_FOR_TARGET: usize = 16 << 20;
/// Deliveries claimed at once.
const MAX_CLAIMED: usize = 256;
/// Receipts under way at once.
const MAX_RECEIPTS: usize = 1024;
/// How often receipts that are owed are looked for at most, once some were found.
const RECEIPTS_EVERY: TimeDelta = TimeDelta::milliseconds(20);
/// The same otherwise: mostly they leave without.
const NO_RECEIPTS_EVERY: TimeDelta = TimeDelta::milliseconds(100);
/// How long after something was handed over a look comes at the latest.
const LATEST_LOOK: Duration = Duration::from_millis(250);
/// How often it is asked whether commits that nobody heard the end of made claims.
const ASK_DOUBTED_EVERY: Duration = Duration::from_secs(1);
/// How often what is out of reach is laid aside at most.
const STRAND_EVERY: TimeDelta = TimeDelta::milliseconds(250);
/// How long this replica's word on what it reaches holds.
const REACH_LEASE: TimeDelta = TimeDelta::seconds(60);
/// How often it is renewed: two renewals may fail.
const REACH_RENEWAL: Duration = Duration::from_secs(20);
/// How often what waits for more than reach is looked at again.
const RECONSIDER: Duration = Duration::from_secs(60);
/// How much of it at a time.
const RECONSIDERED: i64 = 1000;
/// How often it is looked at to whom links are kept warm.
const WARM_EVERY: TimeDelta = TimeDelta::seconds(5);
/// Returns into reach that deliveries under way may have missed; who missed any takes it for one.
const RETURNS: usize = 64;
/// How long what is under way may take to be recorded when the gateway stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Runs until `stop`; then claims no more and gives what is under way a moment to be recorded.
pub async fn run(gateway: Gateway, awaited: Awaited, stop: CancellationToken) {
    let driver = Driver::new(Outbox::new(gateway, awaited));
    let outbox = driver.outbox.clone();
    // Errands do not wait for a look, which asks the database several times.
    tokio::join!(drive(driver, stop.clone()), errands::run(outbox, stop));
}

async fn drive(mut driver: Driver, stop: CancellationToken) {
    let mut failing = false;
    while !stop.is_cancelled() {
        let began = Instant::now();
        let pause = match driver.look().await {
            Ok(pause) => {
                failing = false;
                pause
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "what is owed elsewhere cannot be read; trying again");
                }
                failing = true;
                driver.openings().close();
                FAILED_PAUSE
            }
        };
        if driver.has_claimed {
            // As long as the look took, so that the next one finds more.
            let rest = began.elapsed().min(LONGEST_REST);
            stop.run_until_cancelled(sleep(rest)).await;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = driver.wait(pause, failing) => {}
        }
    }
    driver.finish().await;
}

/// What the work on single deliveries and receipts shares.
struct Outbox {
    gateway: Gateway,
    awaited: Awaited,
    rules: Rules,
    rng: Mutex<StdRng>,
    /// Told to the deliveries under way.
    returns: broadcast::Sender<Return>,
    warm: Mutex<Warm>,
    turnstiles: receipts::Turnstiles,
}

/// By what rules deliveries are tried.
pub fn rules(config: &Config) -> Rules {
    Rules {
        failover: config.failover == Switch::On,
        failover_timeout: config.failover_timeout.max(Duration::from_millis(1)),
        backoff: Backoff::DELIVERY,
    }
}

/// Targets that have come into reach over a transport.
#[derive(Clone)]
struct Return {
    transport: &'static str,
    targets: Arc<BTreeSet<String>>,
}

impl Outbox {
    fn new(gateway: Gateway, awaited: Awaited) -> Self {
        let rules = rules(&gateway.config);
        // Jitter needs no secret; the replica's name makes it differ between replicas.
        let rng = StdRng::try_from_rng(&mut SysRng)
            .unwrap_or_else(|_| StdRng::seed_from_u64(gateway.replica.as_u64_pair().0));
        let (returns, _) = broadcast::channel(RETURNS);
        Self {
            gateway,
            awaited,
            rules,
            rng: Mutex::new(rng),
            returns,
            warm: Mutex::default(),
            turnstiles: receipts::Turnstiles::default(),
        }
    }

    fn warm(&self) -> MutexGuard<'_, Warm> {
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rng(&self) -> MutexGuard<'_, StdRng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names one delivery.
type Key = (String, String, String);

/// The loop's memory.
struct Driver {
    outbox: Arc<Outbox>,
    reach: Vec<Reach>,
    connectivity: watch::Receiver<Connectivity>,
    deliveries: JoinSet<Load>,
    receipts: JoinSet<()>,
    under_way: HashSet<Key>,
    /// Claims of what is under way already, until that ends.
    second_claims: HashMap<Key, Claim>,
    /// What has come into reach and is being made due.
    waking: Waking,
    strand_at: Time,
    receipts_at: Time,
    renew_at: Time,
    reconsider_at: Time,
    warm_at: Time,
    /// To whom each transport was told to keep its links warm, and the level that it then declared.
    kept_warm: Vec<(u8, BTreeSet<GatewayId>)>,
    /// The highest level that any transport declared at the last look.
    best_level: u8,
    /// The last look found something due.
    has_claimed: bool,
    /// More was due than could be claimed.
    has_backlog: bool,
    /// For some targets nothing was claimed, since as much as may be is under way to them.
    is_crowded: bool,
}

/// What one transport reaches, as far as the store was told.
struct Reach {
    name: &'static str,
    now: watch::Receiver<Arc<BTreeSet<String>>>,
    told: BTreeSet<String>,
    /// What has come back without having gone, until the store knows.
    returned: BTreeSet<String>,
}

/// What a delivery under way takes up.
struct Load {
    key: Key,
    target: String,
    bytes: usize,
    /// When it is to be tried again.
    retry_at: Option<Time>,
}

impl Driver {
    fn new(outbox: Outbox) -> Self {
        let reach = outbox
            .gateway
            .transports
            .iter()
            .map(|transport| Reach {
                name: transport.name(),
                now: transport.reachable(),
                told: BTreeSet::new(),
                returned: BTreeSet::new(),
            })
            .collect();
        Self {
            connectivity: outbox.gateway.connectivity.clone(),
            kept_warm: vec![(0, BTreeSet::new()); outbox.gateway.transports.len()],
            warm_at: Time::UNIX_EPOCH,
            outbox: Arc::new(outbox),
            reach,
            deliveries: JoinSet::new(),
            receipts: JoinSet::new(),
            under_way: HashSet::new(),
            second_claims: HashMap::new(),
            waking: Waking::default(),
            strand_at: Time::UNIX_EPOCH,
            receipts_at: Time::UNIX_EPOCH,
            renew_at: Time::UNIX_EPOCH,
            reconsider_at: Time::UNIX_EPOCH,
            best_level: 0,
            has_claimed: false,
            has_backlog: false,
            is_crowded: false,
        }
    }

    /// Starts all that can be started now; returns for how long there is nothing more to do.
    async fn look(&mut self) -> sqlx::Result<Duration> {
        self.has_claimed = false;
        self.begin_handed();
        while let Some(Ok(load)) = self.deliveries.try_join_next() {
            self.ended(load);
        }
        while self.receipts.try_join_next().is_some() {}
        if !self.outbox.gateway.readiness.is_ready() {
            self.openings().close();
            return Ok(FAILED_PAUSE);
        }
        self.follow_reach().await?;
        let now = self.outbox.gateway.clock.now();
        self.keep_warm(now);
        let returned: Vec<String> =
            self.outbox.gateway.learned.take_returned().into_iter().collect();
        if !returned.is_empty() {
            self.waking.add(now, &returned);
        }
        let reachable = self.reachable();
        self.waking.retain(&reachable);
        if !self.waking.is_over() {
            self.outbox.gateway.store.wake_some(&mut self.waking).await?;
        }
        let strands = now >= self.strand_at;
        if strands {
            self.outbox.gateway.store.strand(now).await?;
            self.strand_at = now + STRAND_EVERY;
        }
        self.reconsider(now).await?;
        self.settle_doubts(now).await?;
        self.has_claimed = self.claim_deliveries(now, &reachable).await?;
        if now >= self.receipts_at {
            let has_found = self.claim_receipts(now, &reachable).await?;
            self.receipts_at = now + if has_found { RECEIPTS_EVERY } else { NO_RECEIPTS_EVERY };
        }
        if self.has_backlog {
            return Ok(SWEEP);
        }
        if self.has_claimed || !self.waking.is_over() {
            // More has mostly come meanwhile; when next is due can be asked when nothing has.
            return Ok(LEAST_PAUSE);
        }
        let due = self.outbox.gateway.store.next_due_elsewhere(&reachable).await?;
        let least = if self.is_crowded { CROWDED_PAUSE } else { LEAST_PAUSE };
        let until = |at: Time| (at - self.outbox.gateway.clock.now()).to_std().unwrap_or_default();
        let most = if self.openings().has_doubts() {
            ASK_DOUBTED_EVERY
        } else if strands {
            SWEEP
        } else {
            until(self.strand_at).clamp(least, SWEEP)
        };
        Ok(due.map_or(most, |due| until(due).clamp(least, most)))
    }

    /// Waits until another look is worth it. After a failure only time is.
    async fn wait(&mut self, pause: Duration, failing: bool) {
        let outbox = self.outbox.clone();
        let clock = outbox.gateway.clock.clone();
        let mut pause = pin!(sleep(pause));
        if failing {
            return pause.await;
        }
        loop {
            tokio::select! {
                () = &mut pause => return,
                () = outbox.gateway.wake_outbox.notified() => return,
                () = outbox.gateway.openings.handed() => {
                    self.begin_handed();
                    // What other replicas accepted is found by looks, which nothing else may ask for.
                    let latest = Instant::now() + LATEST_LOOK;
                    if latest < pause.deadline() {
                        pause.as_mut().reset(latest);
                    }
                }
                () = reach_changed(&mut self.reach) => return,
                Ok(()) = self.connectivity.changed() => {
                    self.reconsider_at = Time::UNIX_EPOCH;
                    return;
                }
                Some(Ok(load)) = self.deliveries.join_next() => {
                    let (retry_at, has_room_again) = self.ended(load);
                    if let Some(retry_at) = retry_at {
                        let left = (retry_at - clock.now()).to_std().unwrap_or_default();
                        let due = Instant::now() + left.max(LEAST_PAUSE);
                        if due < pause.deadline() {
                            pause.as_mut().reset(due);
                        }
                    }
                    // Half the room at a time, so that a backlog is not claimed one by one.
                    if self.has_backlog && self.deliveries.len() <= MAX_UNDER_WAY / 2
                        || self.is_crowded && has_room_again
                    {
                        return;
                    }
                }
                Some(_) = self.receipts.join_next() => {
                    if self.has_backlog && self.receipts.len() <= MAX_RECEIPTS / 2 {
                        return;
                    }
                }
            }
        }
    }

    /// Tells the store what has come into reach and what has gone, and renews the leases.
    async fn follow_reach(&mut self) -> sqlx::Result<()> {
        let gateway = &self.outbox.gateway;
        let now = gateway.clock.now();
        let renews = self.renew_at <= now;
        for (reach, transport) in self.reach.iter_mut().zip(&gateway.transports) {
            let current = reach.now.borrow_and_update().clone();
            reach.returned.extend(transport.take_returned());
            if *current == reach.told && !renews && reach.returned.is_empty() {
                continue;
            }
            let targets: Vec<String> = current.iter().cloned().collect();
            let until = now + REACH_LEASE;
            gateway.store.hold_reach(gateway.replica, reach.name, &targets, until).await?;
            let is_fresh =
                |name: &&String| !reach.told.contains(*name) || reach.returned.contains(*name);
            let fresh: Vec<String> = current.iter().filter(is_fresh).cloned().collect();
            if !fresh.is_empty() {
                gateway.learned.reached(now, reach.name, &fresh);
                self.waking.add(now, &fresh);
                gateway.store.hasten(now, &fresh).await?;
                let targets = Arc::new(fresh.into_iter().collect());
                // Nobody listens when nothing is under way.
                let _ = self.outbox.returns.send(Return { transport: reach.name, targets });
            }
            reach.told = current.iter().cloned().collect();
            reach.returned.clear();
        }
        if renews {
            self.renew_at = now + REACH_RENEWAL;
        }
        Ok(())
    }

    /// Takes up again what waits for more than reach, now and then and when a level has risen.
    async fn reconsider(&mut self, now: Time) -> sqlx::Result<()> {
        let gateway = &self.outbox.gateway;
        let levels = gateway.transports.iter().map(|one| one.capabilities().anonymity_level);
        let best_level = levels.max().unwrap_or(0);
        let has_risen = best_level > self.best_level;
        self.best_level = best_level;
        if now < self.reconsider_at && !has_risen {
            return Ok(());
        }
        let jitter = self.outbox.rng().random_range(0.75..=1.25);
        self.reconsider_at = now + RECONSIDER.mul_f64(jitter);
        gateway.store.reconsider(now, &self.reachable(), RECONSIDERED).await.map(drop)
    }

    /// Tells each transport to whom its links should be kept warm, if that has changed.
    fn keep_warm(&mut self, now: Time) {
        let is_due = self.warm_at <= now;
        if is_due {
            self.warm_at = now + WARM_EVERY;
        }
        let warm = self.outbox.warm();
        for (transport, told) in self.outbox.gateway.transports.iter().zip(&mut self.kept_warm) {
            let level = transport.capabilities().anonymity_level;
            // What a transport does not hide any more it must not show for a moment.
            if !is_due && told.0 == level {
                continue;
            }
            let offered = AnonymityLevel::try_from(level).unwrap_or(AnonymityLevel::NONE);
            let wanted = warm.gateways(now, offered);
            if wanted != told.1 {
                transport.keep_warm(&wanted);
            }
            *told = (level, wanted);
        }
    }

    fn reachable(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.reach.iter().flat_map(|reach| &reach.told).collect();
        all.into_iter().cloned().collect()
    }

    fn openings(&self) -> &Openings {
        &self.outbox.gateway.openings
    }

    /// Begins what is due; whether there was anything. Once nothing more is, what is accepted need not
    /// be looked for.
    async fn claim_deliveries(&mut self, now: Time, reachable: &[String]) -> sqlx::Result<bool> {
        (self.has_backlog, self.is_crowded) = (false, false);
        let mut has_claimed = false;
        self.openings().look();
        loop {
            let targets: Vec<String> =
                reachable.iter().filter(|name| !self.openings().is_full(name)).cloned().collect();
            self.is_crowded = targets.len() < reachable.len();
            let room = MAX_UNDER_WAY.saturating_sub(self.openings().under_way()).min(MAX_CLAIMED);
            if targets.is_empty() {
                self.openings().close();
                return Ok(has_claimed);
            }
            if room == 0 || !self.openings().has_room() {
                self.openings().close();
                self.has_backlog = true;
                return Ok(has_claimed);
            }
            let lease = self.outbox.rules.lease();
            let claims = self.outbox.gateway.store.claim_due(now, lease, &targets, room).await?;
            let bytes: usize = claims.iter().map(|claim| claim.message.content.bytes.len()).sum();
            let is_last = claims.len() < room && bytes < CLAIM_BYTES;
            has_claimed |= !claims.is_empty();
            for claim in claims {
                let load = Load::of(&claim);
                self.openings().begin(&load.target, load.bytes);
                self.begin(claim, load);
            }
            if is_last {
                let all_due = targets.into_iter().filter(|target| !self.waking.has(target));
                self.openings().open(all_due);
                return Ok(has_claimed);
            }
        }
    }

    /// Begins what was claimed as it was accepted.
    fn begin_handed(&mut self) {
        for claim in self.openings().take_handed() {
            let load = Load::of(&claim);
            self.begin(claim, load);
        }
    }

    /// Makes due what was perhaps claimed as it was accepted: the database went away in between.
    async fn settle_doubts(&mut self, now: Time) -> sqlx::Result<()> {
        let begun = self.outbox.gateway.clock.instant();
        let doubted = self.openings().doubted();
        if !doubted.is_empty() {
            self.outbox.gateway.store.give_up_doubted(now, &doubted).await?;
            self.openings().settle(begun);
        }
        Ok(())
    }

    /// Begins one that is counted.
    fn begin(&mut self, claim: Claim, load: Load) {
        let outbox = self.outbox.clone();
        if !self.under_way.insert(load.key.clone()) {
            // Mostly the first claim has just been given up and its task is about to end.
            self.openings().end(&load.target, load.bytes);
            self.second_claims.insert(load.key, claim);
            return;
        }
        metrics::gauge!(names::DELIVERIES_UNDER_WAY).increment(1);
        self.deliveries.spawn(async move {
            let carried = AssertUnwindSafe(carry::carry(&outbox, claim)).catch_unwind().await;
            let retry_at = carried.unwrap_or_else(|_| {
                tracing::error!("a delivery broke; it is tried again when its claim ends");
                None
            });
            Load { retry_at, ..load }
        });
    }

    /// Frees what a delivery took up; returns when it is to be tried again, if that is known, and
    /// whether its target has room for many again.
    fn ended(&mut self, load: Load) -> (Option<Time>, bool) {
        metrics::gauge!(names::DELIVERIES_UNDER_WAY).decrement(1);
        self.under_way.remove(&load.key);
        if let Some(claim) = self.second_claims.remove(&load.key) {
            let outbox = self.outbox.clone();
            self.receipts.spawn(async move { give_up(&outbox, &claim).await });
        }
        let has_room_again = self.openings().end(&load.target, load.bytes);
        (load.retry_at, has_room_again)
    }

    /// Begins to send receipts that are due; whether there were any, or may be.
    async fn claim_receipts(&mut self, now: Time, reachable: &[String]) -> sqlx::Result<bool> {
        let room = MAX_RECEIPTS.saturating_sub(self.receipts.len());
        if reachable.is_empty() || room == 0 {
            self.has_backlog |= room == 0;
            return Ok(room == 0);
        }
        let lease = 2 * self.outbox.rules.lease();
        let claimed = self.outbox.gateway.store.claim_receipts(now, lease, reachable, room).await?;
        self.has_backlog |= claimed.len() == room;
        let has_found = !claimed.is_empty();
        for receipt in claimed {
            let outbox = self.outbox.clone();
            let errand = Errand { receipt, is_kept: true, may_wait: false };
            self.receipts.spawn(async move { receipts::send(&outbox, errand).await });
        }
        Ok(has_found)
    }

    async fn finish(mut self) {
        // What is accepted from here on is another's to claim.
        self.openings().close();
        let outbox = self.outbox.clone();
        let give_up_handed = || {
            let handed = outbox.gateway.openings.take_handed();
            join_all(handed.into_iter().map(|claim| {
                let outbox = outbox.clone();
                async move { give_up(&outbox, &claim).await }
            }))
        };
        let ended = timeout(STOP_GRACE, async {
            give_up_handed().await;
            while self.deliveries.join_next().await.is_some() {}
            while self.receipts.join_next().await.is_some() {}
            give_up_handed().await;
        });
        if ended.await.is_err() {
            tracing::debug!("deliveries were under way; they are tried again at the next start");
        }
        let gateway = &self.outbox.gateway;
        for reach in &self.reach {
            let now = gateway.clock.now();
            // Without this the leases end by themselves.
            let _ = gateway.store.hold_reach(gateway.replica, reach.name, &[], now).await;
        }
        for transport in &gateway.transports {
            transport.shutdown().await;
        }
    }
}

impl Load {
    fn of(claim: &Claim) -> Self {
        let message = &claim.message;
        Self {
            key: (message.sender.to_string(), message.id.to_string(), claim.target.recipient()),
            target: claim.target.reached_through().unwrap_or_default(),
            bytes: message.content.bytes.len(),
            retry_at: None,
        }
    }
}

/// Gives up a second claim of a delivery, now that the first has ended: what is still owed comes due
/// at once.
async fn give_up(outbox: &Outbox, claim: &Claim) {
    let now = outbox.gateway.clock.now();
    match outbox.gateway.store.record(now, claim, &[], &Next::Retry { at: now }).await {
        Ok(_) => outbox.gateway.wake_outbox.notify_one(),
        Err(error) => tracing::debug!(%error, "a claim was not given up; it ends by itself"),
    }
}

/// Waits until what some transport reaches is not what it was; for ever if there is none.
async fn reach_changed(reach: &mut [Reach]) {
    if reach.is_empty() {
        return std::future::pending().await;
    }
    let changes = reach.iter_mut().map(|reach| Box::pin(reach.now.changed()));
    let (changed, _, others) = select_all(changes).await;
    if changed.is_err() {
        // That transport is gone for good and would be ready at every call.
        drop(others);
        sleep(SWEEP).await;
    }
}
