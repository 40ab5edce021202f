//! Reaching the database: the pool, the schema's version, durability, and the database's time.

mod inspection;

use std::{future::Future, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{
    Connection, PgConnection, PgPool,
    migrate::{Migrate, MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use thiserror::Error;
use tokio::time::timeout;
use uuid::Uuid;

pub use self::inspection::Server;
use crate::store::Store;

/// The most connections that one replica opens, besides one to watch the database with and the
/// writers'.
pub const POOL_SIZE: u32 = 16;
/// The most connections of one writer. It uses one; others may be stuck in a network that has died.
pub const WRITER_POOL_SIZE: u32 = 4;
/// How long a request may wait for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long opening one connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the database may take to tell the time.
const BEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long migrations may take, and may wait for another replica's.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);
/// A connection that has idled so long is tried before it is used.
pub(super) const IDLE_BEFORE_TEST: Duration = Duration::from_secs(1);
const MIGRATIONS_TABLE: &str = "_sqlx_migrations";

static MIGRATOR: Migrator = sqlx::migrate!("../../migrations");

/// Why the database cannot be used now.
#[derive(Debug, Error)]
pub enum ReachError {
    /// It could not be connected to, or broke off.
    #[error("{}", why(.0))]
    Database(#[from] sqlx::Error),
    /// It did not answer.
    #[error("the database did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// A migration failed.
    #[error("the schema cannot be brought up to date: {0}")]
    Migration(MigrateError),
    /// An applied migration is not the one that this program has.
    #[error(
        "the database's schema is not this program's: migration {0} was applied in another form; \
         use the program that made it, or another database"
    )]
    OtherSchema(i64),
}

/// How the schema of a database relates to this program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Schema {
    /// It is what this program expects.
    Current,
    /// A newer program has migrated it further. Migrations expand before they contract, so this
    /// program still works on it.
    Newer,
}

/// What the database promises about a commit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Durability {
    /// Whether commits wait for the disk.
    pub fsync: bool,
    /// The level that our own sessions commit at.
    pub synchronous_commit: String,
    /// Whether a torn page survives a power cut.
    pub full_page_writes: bool,
}

impl Durability {
    /// What is missing for "accepted means delivered or reported", if anything.
    pub fn shortcoming(&self) -> Option<String> {
        let mut missing = Vec::new();
        if !self.fsync {
            missing.push("fsync = off".to_owned());
        }
        if self.synchronous_commit == "off" {
            missing.push("synchronous_commit = off".to_owned());
        }
        if !self.full_page_writes {
            missing.push("full_page_writes = off".to_owned());
        }
        (!missing.is_empty()).then(|| missing.join(", "))
    }
}

/// A pool that connects when it is first used.
///
/// Every statement has a deadline, commits wait for the disk, and a connection that the database
/// has dropped while it idled is replaced without a request noticing.
pub fn pool(options: PgConnectOptions) -> PgPool {
    pool_of(0, POOL_SIZE, options)
}

/// The same with up to `most` connections, of which it keeps `least` open.
pub(super) fn pool_of(least: u32, most: u32, options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .min_connections(least)
        .max_connections(most)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(Duration::from_secs(300))
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for < IDLE_BEFORE_TEST {
                    return Ok(true);
                }
                Ok(timeout(Duration::from_secs(1), connection.ping())
                    .await
                    .is_ok_and(|ping| ping.is_ok()))
            })
        })
        .after_connect(|connection, _| Box::pin(configure(connection)))
        .connect_lazy_with(options.application_name("fieldpost"))
}

/// Set by statement rather than at connect, which poolers such as PgBouncer refuse.
async fn configure(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        select
            set_config('statement_timeout', '15s', false) as statement_timeout,
            set_config('lock_timeout', '10s', false) as lock_timeout,
            set_config('idle_in_transaction_session_timeout', '30s', false) as idle_timeout,
            set_config('timezone', 'UTC', false) as timezone,
            -- Every statement is made for an index. A plan made while a table was empty must serve
            -- when a backlog fills it, and planning anew each time would cost more than the work.
            set_config('enable_seqscan', 'off', false) as enable_seqscan,
            set_config('random_page_cost', '1.1', false) as random_page_cost,
            set_config('plan_cache_mode', 'force_generic_plan', false) as plan_cache_mode,
            set_config('jit', 'off', false) as jit,
            -- Stronger levels are the operator's to choose.
            case current_setting('synchronous_commit') when 'off' then
                set_config('synchronous_commit', 'on', false)
            end as synchronous_commit
        "#,
    )
    .fetch_one(connection)
    .await
    .map(drop)
}

/// Brings the schema up to date.
///
/// Replicas that start together take turns. A schema that is up to date needs no right to change
/// it.
///
/// # Errors
///
/// Says why the database cannot be used; nothing is half applied.
pub async fn migrate(options: &PgConnectOptions) -> Result<Schema, ReachError> {
    let mut connection = connect(options).await?;
    let schema = match bounded(CONNECT_TIMEOUT, applied(&mut connection)).await? {
        Some(schema) => schema,
        None => {
            bounded(CONNECT_TIMEOUT, patient(&mut connection)).await?;
            let mut migrator = Migrator::with_migrations(MIGRATOR.iter().cloned().collect());
            migrator.set_ignore_missing(true);
            match timeout(MIGRATION_TIMEOUT, migrator.run_direct(None, &mut connection, false))
                .await
            {
                Ok(Ok(())) => Schema::Current,
                Ok(Err(MigrateError::VersionMismatch(version))) => {
                    return Err(ReachError::OtherSchema(version));
                }
                Ok(Err(MigrateError::Execute(error))) => return Err(error.into()),
                Ok(Err(error)) => return Err(ReachError::Migration(error)),
                Err(_) => return Err(ReachError::Silent(MIGRATION_TIMEOUT)),
            }
        }
    };
    // The answer is known; whether the goodbye arrives is of no consequence.
    let _ = timeout(Duration::from_secs(1), connection.close()).await;
    Ok(schema)
}

/// How the schema relates to ours; `None` if a migration of ours is missing.
async fn applied(connection: &mut PgConnection) -> Result<Option<Schema>, ReachError> {
    let applied = match connection.list_applied_migrations(MIGRATIONS_TABLE).await {
        Ok(applied) => applied,
        Err(MigrateError::Execute(error)) if is_undefined_table(&error) => return Ok(None),
        Err(MigrateError::Execute(error)) => return Err(error.into()),
        Err(error) => return Err(ReachError::Migration(error)),
    };
    for ours in MIGRATOR.iter() {
        match applied.iter().find(|theirs| theirs.version == ours.version) {
            None => return Ok(None),
            Some(theirs) if theirs.checksum != ours.checksum => {
                return Err(ReachError::OtherSchema(ours.version));
            }
            Some(_) => {}
        }
    }
    let newer =
        applied.iter().any(|theirs| MIGRATOR.iter().all(|ours| ours.version != theirs.version));
    Ok(Some(if newer { Schema::Newer } else { Schema::Current }))
}

fn is_undefined_table(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42P01")
}

/// Migrations may take longer than statements of requests, yet not for ever.
async fn patient(connection: &mut PgConnection) -> Result<(), ReachError> {
    sqlx::query!(
        r#"
        select
            set_config('statement_timeout', '600s', false) as statement_timeout,
            set_config('lock_timeout', '300s', false) as lock_timeout
        "#
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// A connection of its own, on which the gateway asks the database how it is.
#[derive(Debug)]
pub struct Watch {
    connection: PgConnection,
}

impl Watch {
    /// Connects, with the settings that requests have.
    ///
    /// # Errors
    ///
    /// Says why the database cannot be reached.
    pub async fn open(options: &PgConnectOptions) -> Result<Self, ReachError> {
        let mut connection = connect(options).await?;
        bounded(CONNECT_TIMEOUT, async { Ok(configure(&mut connection).await?) }).await?;
        Ok(Self { connection })
    }

    /// Shows other replicas that this one lives: by a lock that lasts as long as the connection.
    ///
    /// It is a shared one, as the session of an earlier connection may not have ended yet. Postgres
    /// finds out within half a minute that a machine is gone.
    ///
    /// # Errors
    ///
    /// Says why the database cannot be reached any more.
    pub async fn show_life_of(&mut self, replica: Uuid) -> Result<(), ReachError> {
        bounded(BEAT_TIMEOUT, async {
            sqlx::query!(
                r#"
                select
                    set_config('tcp_keepalives_idle', '10', false) as idle,
                    set_config('tcp_keepalives_interval', '5', false) as interval,
                    set_config('tcp_keepalives_count', '3', false) as count,
                    pg_advisory_lock_shared(hashtextextended('fieldpost replica ' || $1::uuid, 0)) is null
                        as locked
                "#,
                replica,
            )
            .fetch_one(&mut self.connection)
            .await?;
            Ok(())
        })
        .await
    }

    /// The database's time.
    ///
    /// # Errors
    ///
    /// Says why the database cannot be reached any more.
    pub async fn beat(&mut self) -> Result<DateTime<Utc>, ReachError> {
        bounded(BEAT_TIMEOUT, async {
            let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#)
                .fetch_one(&mut self.connection)
                .await?;
            Ok(now)
        })
        .await
    }

    /// What the database promises about a commit.
    ///
    /// # Errors
    ///
    /// Says why the database cannot be reached any more.
    pub async fn durability(&mut self) -> Result<Durability, ReachError> {
        bounded(BEAT_TIMEOUT, async {
            let settings = sqlx::query!(
                r#"
                select
                    current_setting('fsync') = 'on' as "fsync!",
                    current_setting('full_page_writes') = 'on' as "full_page_writes!",
                    current_setting('synchronous_commit') as "synchronous_commit!"
                "#
            )
            .fetch_one(&mut self.connection)
            .await?;
            Ok(Durability {
                fsync: settings.fsync,
                synchronous_commit: settings.synchronous_commit,
                full_page_writes: settings.full_page_writes,
            })
        })
        .await
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, ReachError> {
    let options = options.clone().application_name("fieldpost");
    bounded(CONNECT_TIMEOUT, async { Ok(PgConnection::connect_with(&options).await?) }).await
}

async fn bounded<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, ReachError>>,
) -> Result<T, ReachError> {
    timeout(limit, work).await.unwrap_or(Err(ReachError::Silent(limit)))
}

/// What a failure to reach the database means to an operator.
fn why(error: &sqlx::Error) -> String {
    let sqlx::Error::Database(database) = error else {
        return match error {
            sqlx::Error::PoolTimedOut => "the database gave no connection in time".to_owned(),
            _ => format!("cannot connect to the database: {error}"),
        };
    };
    let message = database.message();
    match database.code().as_deref() {
        Some("28P01") => format!("the database refuses the password: {message}"),
        Some("28000") => format!("the database refuses the user: {message}"),
        Some("3D000") => format!("{message}; create it with createdb"),
        Some("53300") => format!("the database has no connection left: {message}"),
        Some("57P03") => format!("the database is not ready: {message}"),
        Some("42501") => format!("the database user lacks a right: {message}"),
        _ => format!("the database says: {message}"),
    }
}

impl Store {
    /// How many connections are open, and how many of them idle.
    pub fn connections(&self) -> (u32, u32) {
        let open = self.pool.size();
        (open, u32::try_from(self.pool.num_idle()).unwrap_or(open).min(open))
    }

    /// Lets go of all connections; what is asked from now on fails.
    pub async fn close(&self) {
        // Connections that are stuck in a dead network are not worth waiting for.
        self.warm.clear();
        let _ = timeout(Duration::from_secs(3), self.pool.close()).await;
    }
}
