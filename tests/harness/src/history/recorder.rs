//! Writes a history while clients act.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use super::{Event, History, Time};

/// Collects events from many tasks; cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    began: Instant,
    streams: AtomicU64,
    history: Mutex<History>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self(Arc::new(Shared {
            began: Instant::now(),
            streams: AtomicU64::new(0),
            history: Mutex::default(),
        }))
    }
}

impl Recorder {
    /// Now, on the clock of the history.
    pub fn now(&self) -> Time {
        u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(Time::MAX)
    }

    /// A number for a connection or a poll.
    pub fn new_stream(&self) -> u64 {
        self.0.streams.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds an event.
    pub fn add(&self, event: Event) {
        self.history().events.push(event);
    }

    /// Takes what was recorded; `settled` as of [`History::settled`].
    pub fn finish(&self, settled: bool) -> History {
        History { settled, ..mem::take(&mut *self.history()) }
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        // Every event is whole, so a panic elsewhere leaves nothing half done.
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
