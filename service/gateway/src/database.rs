//! The database under a running gateway: started if it is ours, watched in either case.
//!
//! The gateway does not fall with its database. It starts while an external one is away, says why
//! on `/readyz`, and works as soon as it comes. Design, section 3.

use std::{path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context, anyhow};
use secrecy::ExposeSecret;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    clock::Clock,
    config::DatabaseConfig,
    embedded::{self, EmbeddedError, EmbeddedPostgres},
    readiness::Readiness,
    secrets::{MasterKey, MasterKeySource},
    store::{
        Store,
        identity::IdentityError,
        schema::{self, ReachError, Schema, Watch},
    },
};

/// How often the database is asked whether it is there.
const BEAT_INTERVAL: Duration = Duration::from_secs(2);
/// How many beats pass between two adjustments of the clock: 30 s.
const BEATS_PER_ADJUSTMENT: u32 = 15;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A database to work on, and the key to what is sealed in it.
#[derive(Debug)]
pub struct Database {
    /// How to connect.
    pub options: PgConnectOptions,
    /// The server, if it is ours.
    pub embedded: Option<EmbeddedPostgres>,
    /// Opens the secrets in it.
    pub master_key: MasterKey,
}

impl Database {
    /// Starts the embedded database, or reads where the external one is; it is not connected to.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the options, the key or the embedded server.
    pub async fn open(config: &DatabaseConfig) -> anyhow::Result<Self> {
        Self::open_or_join(config, false).await
    }

    /// As [`open`](Self::open); an embedded database that a gateway holds is used through its
    /// server.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub async fn open_beside_a_gateway(config: &DatabaseConfig) -> anyhow::Result<Self> {
        Self::open_or_join(config, true).await
    }

    /// As [`open_beside_a_gateway`](Self::open_beside_a_gateway), but makes no new database.
    ///
    /// # Errors
    ///
    /// As there, and if there is none in the data folder yet.
    pub async fn open_existing(config: &DatabaseConfig) -> anyhow::Result<Self> {
        check_existing(config)?;
        Self::open_or_join(config, true).await
    }

    /// As [`open_existing`](Self::open_existing), but not beside a running gateway.
    ///
    /// # Errors
    ///
    /// As there, and if a gateway holds the data folder.
    pub async fn open_existing_alone(config: &DatabaseConfig) -> anyhow::Result<Self> {
        check_existing(config)?;
        Self::open_or_join(config, false).await
    }

    async fn open_or_join(config: &DatabaseConfig, join: bool) -> anyhow::Result<Self> {
        let data_dir = embedded_folder(config)?;
        let source = MasterKeySource::choose(
            config.master_key_file.clone(),
            config.master_key.clone(),
            data_dir.as_deref(),
        )?;
        let master_key = MasterKey::load(source)?;
        let Some(folder) = data_dir else {
            let url = config.database_url.as_ref().map_or("", |url| url.expose_secret());
            return Ok(Self { options: external(url)?, embedded: None, master_key });
        };
        let start = tokio::task::spawn_blocking(move || match EmbeddedPostgres::start(&folder) {
            Ok(server) => Ok((server.connect_options(), Some(server))),
            Err(EmbeddedError::LockTaken { .. }) if join => Ok((embedded::join(&folder)?, None)),
            Err(error) => Err(error),
        });
        let (options, embedded) = start.await.context("the embedded database did not start")??;
        let master_key = match &embedded {
            Some(_) => settle_rotation(&options, master_key).await?,
            // The gateway that holds the folder has done it.
            None => master_key,
        };
        Ok(Self { options, embedded, master_key })
    }

    /// Stops the server, if it is ours. Pools have to be closed before.
    pub async fn close(embedded: Option<EmbeddedPostgres>) {
        if let Some(embedded) = embedded {
            let stopped = tokio::task::spawn_blocking(move || embedded.stop()).await;
            if let Err(error) = stopped {
                tracing::error!(%error, "the embedded database did not stop");
            }
        }
    }
}

/// Finds out which of two master keys the database is sealed by, if a rotation was cut off.
async fn settle_rotation(
    options: &PgConnectOptions,
    master_key: MasterKey,
) -> anyhow::Result<MasterKey> {
    let Some(successor) = master_key.successor()? else { return Ok(master_key) };
    let stored = Watch::open(options).await?.master_key_check().await?;
    let is_in_force = stored.is_some_and(|stored| successor.verify_check_value(&stored).is_ok());
    if is_in_force {
        tracing::info!("an earlier rotation of the keys is completed");
        return Ok(successor.succeed()?);
    }
    successor.discard()?;
    Ok(master_key)
}

fn check_existing(config: &DatabaseConfig) -> anyhow::Result<()> {
    match embedded_folder(config)? {
        Some(folder) if !embedded::holds_database(&folder) => Err(anyhow!(
            "there is no gateway's database in {}: name its --data-dir, or start `fieldpost serve` \
             there once",
            folder.display()
        )),
        _ => Ok(()),
    }
}

/// The data folder of an embedded database, in its canonical form.
///
/// # Errors
///
/// If the database is an external one, or there is no such folder.
pub fn data_dir(config: &DatabaseConfig) -> anyhow::Result<PathBuf> {
    let folder = embedded_folder(config)?.context("an external database has no data folder")?;
    Ok(embedded::prepare_data_dir(&folder)?)
}

/// The data folder, unless the database is an external one.
fn embedded_folder(config: &DatabaseConfig) -> anyhow::Result<Option<PathBuf>> {
    Ok(match (&config.database_url, &config.data_dir) {
        (Some(_), _) => None,
        (None, Some(folder)) => Some(folder.clone()),
        (None, None) => Some(embedded::default_data_dir()?),
    })
}

/// Parses the URL without repeating it in an error, as it may hold a password.
fn external(url: &str) -> anyhow::Result<PgConnectOptions> {
    if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
        return Err(anyhow!(
            "--database-url must read like postgres://user:password@host/database"
        ));
    }
    PgConnectOptions::from_str(url).map_err(|error| match error {
        sqlx::Error::Configuration(cause) => {
            anyhow!("--database-url cannot be understood ({cause}): write it like postgres://user:password@host/database")
        }
        _ => anyhow!("--database-url cannot be understood: write it like postgres://user:password@host/database"),
    })
}

/// Keeps what the gateway knows of its database true.
pub struct Keeper {
    options: PgConnectOptions,
    store: Store,
    clock: Clock,
    readiness: Readiness,
    replica: Option<Uuid>,
}

fn tell(first: &mut Option<oneshot::Sender<Result<(), Unusable>>>, outcome: Result<(), Unusable>) {
    if let Some(first) = first.take() {
        // Nobody waits any more once the start has gone on.
        let _ = first.send(outcome);
    }
}

/// Why the gateway cannot work on the database now.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be reached, or its schema is not ours.
    #[error(transparent)]
    Reach(#[from] ReachError),
    /// The deployment's identity cannot be had.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Keeper {
    /// A keeper that has done nothing yet.
    pub fn new(
        options: PgConnectOptions,
        store: Store,
        clock: Clock,
        readiness: Readiness,
    ) -> Self {
        Self { options, store, clock, readiness, replica: None }
    }

    /// The same for a replica: while it watches the database, other replicas see that this one lives.
    pub fn showing_life_of(self, replica: Uuid) -> Self {
        Self { replica: Some(replica), ..self }
    }

    /// Tries once to make the database usable: schema, identity, clock. `/readyz` tells what
    /// stands in the way.
    async fn prepare(&self, first: bool) -> Result<Watch, Unusable> {
        match self.try_prepare().await {
            Ok(watch) => {
                if self.readiness.ready() {
                    tracing::info!("the database is ready");
                }
                Ok(watch)
            }
            Err(error) => {
                // Whoever waits for the first attempt decides what its failure means.
                if self.readiness.wait_for(&error.to_string()) && !first {
                    tracing::warn!(%error, "cannot work on the database; trying again");
                }
                Err(error)
            }
        }
    }

    async fn try_prepare(&self) -> Result<Watch, Unusable> {
        if schema::migrate(&self.options).await? == Schema::Newer {
            tracing::warn!("the database was migrated by a newer gateway: update this one soon");
        }
        let mut watch = Watch::open(&self.options).await?;
        if let Some(replica) = self.replica {
            watch.show_life_of(replica).await?;
        }
        self.adjust_clock(&mut watch).await?;
        self.store.load_identity().await?;
        if let Some(shortcoming) = watch.durability().await?.shortcoming() {
            tracing::warn!(
                "{shortcoming}: the database may lose what was accepted when its machine fails; \
                 turn it on in postgresql.conf"
            );
        }
        Ok(watch)
    }

    /// Watches the database until `stop`, making it usable again whenever it comes back. Tells
    /// `first` how the first attempt went.
    pub async fn run(self, first: oneshot::Sender<Result<(), Unusable>>, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep(first)).await;
    }

    async fn keep(self, first: oneshot::Sender<Result<(), Unusable>>) {
        let mut first = Some(first);
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = match self.prepare(first.is_some()).await {
                Ok(watch) => {
                    tell(&mut first, Ok(()));
                    pause = FIRST_PAUSE;
                    let error = self.follow(watch).await;
                    tracing::debug!(%error, "the watching connection broke");
                    continue;
                }
                Err(error) => error,
            };
            tell(&mut first, Err(attempt));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks for the time again and again; returns when the database does not answer.
    async fn follow(&self, mut watch: Watch) -> ReachError {
        let mut interval = tokio::time::interval(BEAT_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut beats = 0_u32;
        loop {
            interval.tick().await;
            beats = beats.wrapping_add(1);
            let beat = if beats.is_multiple_of(BEATS_PER_ADJUSTMENT) {
                self.adjust_clock(&mut watch).await
            } else {
                watch.beat().await.map(drop)
            };
            if let Err(error) = beat {
                return error;
            }
        }
    }

    async fn adjust_clock(&self, watch: &mut Watch) -> Result<(), ReachError> {
        let asked = self.clock.instant();
        let now = watch.beat().await?;
        self.clock.adjust(now, self.clock.instant().saturating_duration_since(asked));
        Ok(())
    }
}
