//! How many messages each peer sent and received: counted in memory, written every few seconds.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use fieldpost_envelope::PeerId;
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::store::Store;

impl Store {
    /// Counts a message accepted from `peer`.
    ///
    /// Counts reach the database within about 5 s, by [`flush_counters`](Self::flush_counters); a
    /// crash loses those that have not.
    pub fn count_sent(&self, peer: &PeerId) {
        self.counters.add(peer, Count { sent: 1, received: 0 });
    }

    /// Counts a message accepted for `peer`; as [`count_sent`](Self::count_sent).
    pub fn count_received(&self, peer: &PeerId) {
        self.counters.add(peer, Count { sent: 0, received: 1 });
    }

    /// Writes the counts made since the last time.
    pub async fn flush_counters(&self) -> sqlx::Result<()> {
        if self.counters.is_empty() {
            return Ok(());
        }
        let _flushing = self.counters.flushing.write().await;
        let counts = self.counters.snapshot();
        let peers: Vec<_> = counts.iter().map(|(peer, _)| peer.as_str().to_owned()).collect();
        let sent: Vec<_> = counts.iter().map(|(_, count)| count.sent).collect();
        let received: Vec<_> = counts.iter().map(|(_, count)| count.received).collect();
        let mut transaction = self.pool.begin().await?;
        sqlx::query!("set local synchronous_commit = off").execute(&mut *transaction).await?;
        sqlx::query!(
            r#"
            update peer set
                messages_sent = messages_sent + counted.sent,
                messages_received = messages_received + counted.received,
                last_seen_at = case
                    when counted.sent > 0 then greatest(last_seen_at, $4) else last_seen_at
                end
            from (
                -- In one order, so that replicas that count the same peers cannot lock each other.
                select counts.*
                from unnest($1::text[], $2::bigint[], $3::bigint[]) as counts (id, sent, received)
                join peer using (id)
                order by id
                for update of peer
            ) as counted
            where peer.id = counted.id
            "#,
            &peers,
            &sent,
            &received,
            self.clock.now(),
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.counters.subtract(&counts);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Count {
    pub(super) sent: i64,
    pub(super) received: i64,
}

/// Messages counted and not yet written; one entry for each peer active since the last flush.
#[derive(Debug, Default)]
pub(in crate::store) struct Counters {
    pending: Mutex<HashMap<PeerId, Count>>,
    /// Held for reading while a number from the database is added to one from here.
    pub(super) flushing: RwLock<()>,
}

impl Counters {
    fn add(&self, peer: &PeerId, count: Count) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if !pending.contains_key(peer) {
            pending.insert(peer.clone(), Count::default());
        }
        if let Some(entry) = pending.get_mut(peer) {
            entry.sent += count.sent;
            entry.received += count.received;
        }
    }

    pub(super) fn pending(&self, peer: &PeerId) -> Count {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.get(peer).copied().unwrap_or_default()
    }

    /// All that is counted and not yet written, as sent and received. It moves into the database
    /// no earlier than the guard is dropped.
    pub(in crate::store) async fn steady_total(&self) -> (RwLockReadGuard<'_, ()>, i64, i64) {
        let steady = self.flushing.read().await;
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = pending.values().map(|count| count.sent).sum();
        let received = pending.values().map(|count| count.received).sum();
        drop(pending);
        (steady, sent, received)
    }

    fn is_empty(&self) -> bool {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn snapshot(&self) -> Vec<(PeerId, Count)> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.iter().map(|(peer, count)| (peer.clone(), *count)).collect()
    }

    fn subtract(&self, written: &[(PeerId, Count)]) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for (peer, count) in written {
            if let Some(entry) = pending.get_mut(peer) {
                entry.sent -= count.sent;
                entry.received -= count.received;
                if *entry == Count::default() {
                    pending.remove(peer);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_made_while_a_flush_runs_stay_for_the_next() {
        let counters = Counters::default();
        let peer: PeerId = "alice".parse().unwrap();
        counters.add(&peer, Count { sent: 2, received: 1 });
        let written = counters.snapshot();
        counters.add(&peer, Count { sent: 0, received: 5 });
        counters.subtract(&written);
        assert_eq!(counters.pending(&peer), Count { sent: 0, received: 5 });
        counters.subtract(&counters.snapshot());
        assert!(counters.is_empty());
    }
}
