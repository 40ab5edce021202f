//! The gateway's one source of time.
//!
//! Replicas have to agree about leases and expiry, so time is the database's: the system clock
//! plus the difference measured against it. Until the database has been asked, it is the system's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

/// Tells the time of the database.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Database time minus system time.
    offset_micros: Arc<AtomicI64>,
}

impl Clock {
    /// Now, to the microsecond, as Postgres keeps it.
    pub fn now(&self) -> DateTime<Utc> {
        let now =
            system_now() + TimeDelta::microseconds(self.offset_micros.load(Ordering::Relaxed));
        now.duration_trunc(TimeDelta::microseconds(1)).unwrap_or(now)
    }

    /// A monotonic instant, for measuring durations.
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everybody else asks")]
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    /// Takes over the database's time. `asked_at` is when the question left; half the round trip
    /// is taken as the answer's age.
    pub fn adjust(&self, database_now: DateTime<Utc>, round_trip: Duration) {
        let age = TimeDelta::from_std(round_trip / 2).unwrap_or_default();
        let offset = (database_now + age) - system_now();
        self.offset_micros.store(offset.num_microseconds().unwrap_or(0), Ordering::Relaxed);
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the clock that everybody else asks")]
fn system_now() -> DateTime<Utc> {
    Utc::now()
}
