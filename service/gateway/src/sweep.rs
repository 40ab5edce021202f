//! Background upkeep: ends what is over, shows what has waited long enough, makes and drops days.
//!
//! Each chore is a loop of its own, so that a slow one delays no other. All are safe to repeat and
//! to do on several replicas at once. A failure is logged once, when it begins.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use fieldpost_delivery::Store as _;
use futures_util::future::join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{sleep, timeout};

use crate::{Gateway, inbox, subscribers, telemetry::metrics as names};

/// How long one turn of a chore may take; what is left is done at the next.
const DEADLINE: Duration = Duration::from_secs(120);
/// Deliveries or lanes in one statement.
const BATCH: usize = 1000;
/// Subscribers in one statement.
const PEERS: usize = 5000;
/// Names of messages in one statement.
const NAMES: i64 = 10_000;
/// How long a message is known when it comes again: the longest time to live and a day.
const REMEMBERED: TimeDelta = TimeDelta::days(31);
/// How long files are kept after their upload began.
const FILES_KEPT: TimeDelta = TimeDelta::days(30);

/// Works until it is dropped.
pub async fn run(gateway: Gateway) {
    join_all(Chore::ALL.map(|chore| repeat(&gateway, chore))).await;
}

async fn repeat(gateway: &Gateway, chore: Chore) {
    let mut rng = StdRng::seed_from_u64(gateway.replica.as_u64_pair().0 ^ chore as u64);
    let mut failing = false;
    loop {
        // Replicas that started together do not go on together.
        sleep(chore.every().mul_f64(rng.random_range(0.8..1.2))).await;
        gateway.readiness.until_ready().await;
        match timeout(DEADLINE, chore.perform(gateway)).await {
            Ok(Ok(())) => failing = false,
            Ok(Err(error)) if !failing => {
                tracing::warn!(%error, "cannot {}; trying again", chore.name());
                failing = true;
            }
            Err(_) if !failing => {
                tracing::warn!("it takes more than {DEADLINE:?} to {}; going on", chore.name());
                failing = true;
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// What is done again and again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Chore {
    Expire,
    Release,
    Wake,
    Measure,
    ForgetReach,
    MakeDays,
    DropDays,
    ForgetNames,
    DropFiles,
}

impl Chore {
    const ALL: [Self; 9] = [
        Self::Expire,
        Self::Release,
        Self::Wake,
        Self::Measure,
        Self::ForgetReach,
        Self::MakeDays,
        Self::DropDays,
        Self::ForgetNames,
        Self::DropFiles,
    ];

    fn every(self) -> Duration {
        Duration::from_secs(match self {
            Self::Expire | Self::Release => 1,
            Self::Wake => 5,
            Self::Measure => 15,
            Self::ForgetReach => 60,
            Self::MakeDays => 3600,
            Self::DropDays | Self::ForgetNames | Self::DropFiles => 900,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Expire => "end what is over",
            Self::Release => "show what has waited for a predecessor",
            Self::Wake => "look for what subscribers missed",
            Self::Measure => "measure the queues",
            Self::ForgetReach => "forget what dead replicas reached",
            Self::MakeDays => "make the next days' partitions",
            Self::DropDays => "drop days past retention",
            Self::ForgetNames => "forget old names of messages",
            Self::DropFiles => "drop old files",
        }
    }

    async fn perform(self, gateway: &Gateway) -> sqlx::Result<()> {
        let now = gateway.clock.now();
        match self {
            Self::Expire => expire(gateway).await,
            Self::Release => release(gateway).await,
            Self::Wake => wake(gateway, now).await,
            Self::Measure => measure(gateway).await,
            Self::ForgetReach => gateway.store.sweep_reach(now).await.map(drop),
            Self::MakeDays => gateway.store.prepare_days(now).await,
            Self::DropDays => drop_days(gateway, now).await,
            Self::ForgetNames => forget_names(gateway, now).await,
            Self::DropFiles => {
                gateway.store.expire_files(now - FILES_KEPT).await?;
                gateway.store.forget_remote_files(now - FILES_KEPT).await?;
                gateway.store.sweep_abandoned_files(now).await.map(drop)
            }
        }
    }
}

async fn expire(gateway: &Gateway) -> sqlx::Result<()> {
    loop {
        let ended = gateway.store.expire_due(gateway.clock.now(), BATCH).await?;
        metrics::counter!(names::DELIVERIES_EXPIRED_TOTAL).increment(ended.len() as u64);
        subscribers::tell_senders(gateway, &ended);
        if ended.is_empty() {
            break;
        }
    }
    gateway.store.expire_receipts(gateway.clock.now()).await.map(drop)
}

async fn release(gateway: &Gateway) -> sqlx::Result<()> {
    loop {
        let now = gateway.clock.now();
        let grown = gateway.store.release_held(now, BATCH).await?;
        gateway.subscribers.wake(&grown);
        let for_groups = gateway.store.release_for_groups(now, BATCH as i64).await?;
        if let Some(received) = &for_groups {
            inbox::groups::announce(gateway, received);
            // A refusal is owed elsewhere, too.
            gateway.wake_outbox.notify_one();
        }
        if grown.is_empty() && for_groups.is_none() {
            return Ok(());
        }
    }
}

/// A wake-up can be lost, with the database or the bus; what it was for must not wait.
async fn wake(gateway: &Gateway, now: DateTime<Utc>) -> sqlx::Result<()> {
    gateway.subscribers.wake(&gateway.subscribers.doubted(gateway.clock.instant()));
    for peers in gateway.subscribers.peers().chunks(PEERS) {
        let owed = gateway.store.unshown_among(now, peers).await?;
        gateway.subscribers.wake(&owed);
    }
    Ok(())
}

async fn measure(gateway: &Gateway) -> sqlx::Result<()> {
    let depths = gateway.store.queue_depths().await?;
    for (queue, depth) in [
        ("inbox", depths.inbox),
        ("outbox", depths.outbox),
        ("outbox_waiting", depths.outbox_waiting),
        ("receipts", depths.receipts),
        ("held", depths.held),
    ] {
        metrics::gauge!(names::QUEUE_ROWS, "queue" => queue).set(depth as f64);
    }
    Ok(())
}

async fn drop_days(gateway: &Gateway, now: DateTime<Utc>) -> sqlx::Result<()> {
    let kept = TimeDelta::from_std(gateway.config.retention).unwrap_or(REMEMBERED);
    let days = gateway.store.drop_days(now - kept).await?;
    if days > 0 {
        tracing::info!(days, "dropped days past retention, with their keys");
    }
    Ok(())
}

async fn forget_names(gateway: &Gateway, now: DateTime<Utc>) -> sqlx::Result<()> {
    while gateway.store.forget_keys(now - REMEMBERED, NAMES).await? > 0 {}
    while gateway.store.forget_group_words(now, now - REMEMBERED, NAMES).await? > 0 {}
    gateway.store.forget_phones(now, now - REMEMBERED).await?;
    gateway.store.settle_remote_groups(now).await.map(drop)
}
