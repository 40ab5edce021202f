//! Connections that busy work hands on from one statement to the next. The pool tests whatever it
//! gets back, which costs a round trip for each statement.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};
use tokio::time::{Instant, timeout};

use crate::store::schema::IDLE_BEFORE_TEST;

/// The most connections that are held back from the pool.
const MOST_SPARE: usize = 4;
/// How long connections may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The connections that are in nobody's hands.
#[derive(Clone)]
pub(super) struct WarmConnections {
    pool: PgPool,
    spare: Arc<Mutex<Vec<Spare>>>,
}

struct Spare {
    since: Instant,
    connection: PoolConnection<Postgres>,
}

impl WarmConnections {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, spare: Arc::default() }
    }

    /// A connection; the one that was given back last, unless it has idled too long to be trusted.
    pub(super) async fn take(&self) -> sqlx::Result<WarmConnection> {
        let spare = self.lock().pop();
        // One that is not taken goes back before another is asked for.
        let connection = match spare.filter(|spare| spare.since.elapsed() < IDLE_BEFORE_TEST) {
            Some(spare) => spare.connection,
            None => self.pool.acquire().await?,
        };
        Ok(WarmConnection { connection, home: self.clone() })
    }

    /// Lets go of all of them and closes the pool that they are from.
    pub(super) async fn close(&self) {
        self.clear();
        // A connection that is stuck in a dead network is not worth waiting for.
        let _ = timeout(CLOSE_TIMEOUT, self.pool.close()).await;
    }

    /// Lets go of all of them.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that goes back to the pool when it is dropped.
pub(super) struct WarmConnection {
    connection: PoolConnection<Postgres>,
    home: WarmConnections,
}

impl WarmConnection {
    /// Gives it back for the next statement. Only after the last one succeeded, outside of a
    /// transaction.
    pub(super) fn keep(self) {
        let mut spare = self.home.lock();
        if spare.len() < MOST_SPARE && !self.home.pool.is_closed() {
            spare.push(Spare { since: Instant::now(), connection: self.connection });
        }
    }
}

impl Deref for WarmConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for WarmConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}
