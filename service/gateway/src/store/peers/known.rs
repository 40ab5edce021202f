//! Who is registered here, asked of the database once for each peer.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use fieldpost_envelope::PeerId;
use futures_util::FutureExt;

use crate::store::{Store, access::peer_id};

impl Store {
    /// Which of `peers` are registered here.
    pub async fn existing_peers(&self, peers: &[PeerId]) -> sqlx::Result<HashSet<PeerId>> {
        let (mut existing, unsure) = self.known_peers.sort(peers);
        if unsure.is_empty() {
            return Ok(existing);
        }
        let found = sqlx::query_scalar!("select id from peer where id = any($1)", &unsure)
            .fetch_all(&self.pool)
            .await?;
        for id in found {
            let id = peer_id(id)?;
            self.known_peers.insert(&id);
            existing.insert(id);
        }
        Ok(existing)
    }

    /// Whether `peer` is registered here.
    pub async fn peer_exists(&self, peer: &PeerId) -> sqlx::Result<bool> {
        if self.knows_peer(peer) {
            return Ok(true);
        }
        Ok(!self.existing_peers(std::slice::from_ref(peer)).boxed().await?.is_empty())
    }

    /// Whether `peer` is remembered to be registered here, without asking the database.
    pub fn knows_peer(&self, peer: &PeerId) -> bool {
        self.known_peers.contains(peer)
    }

    /// Remembers that `peer` is registered here.
    pub(in crate::store) fn remember_peer(&self, peer: &PeerId) {
        self.known_peers.insert(peer);
    }
}

/// Peers known to be registered; they never cease to be. Starts over when it has
/// [`KnownPeers::CAPACITY`].
#[derive(Debug, Default)]
pub(in crate::store) struct KnownPeers(Mutex<HashSet<PeerId>>);

impl KnownPeers {
    const CAPACITY: usize = 131_072;

    pub(super) fn insert(&self, peer: &PeerId) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::CAPACITY {
            known.clear();
        }
        known.insert(peer.clone());
    }

    fn contains(&self, peer: &PeerId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(peer)
    }

    /// Those of `peers` that are known, and the names of the others.
    fn sort(&self, peers: &[PeerId]) -> (HashSet<PeerId>, Vec<String>) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (existing, unsure): (Vec<_>, Vec<_>) =
            peers.iter().partition(|peer| known.contains(*peer));
        (
            existing.into_iter().cloned().collect(),
            unsure.into_iter().map(|peer| peer.as_str().to_owned()).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_peers_are_sorted_from_those_to_be_looked_up() {
        let known = KnownPeers::default();
        let [alice, bob]: [PeerId; 2] = ["alice", "bob"].map(|name| name.parse().unwrap());
        known.insert(&alice);
        let (existing, unsure) = known.sort(&[alice.clone(), bob]);
        assert_eq!(existing, HashSet::from([alice]));
        assert_eq!(unsure, ["bob"]);
    }
}
