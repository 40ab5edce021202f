//! Who has been heard, and the keys pinned to their names (BitChat protocol reference,
//! sections 4.2 and 4.3).

use std::{collections::BTreeMap, time::Duration};

use crate::{
    dedup::Key,
    event::Peer,
    id::{MeshId, fingerprint},
    payload::{
        announce::{Announce, Capabilities},
        peer_state::PeerState,
    },
};

/// How often a conflict over one name is reported.
const CONFLICT_NEWS: Duration = Duration::from_secs(60);

/// What is kept of a peer.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) nickname: String,
    pub(crate) noise_key: [u8; 32],
    pub(crate) signing_key: [u8; 32],
    /// Proven inside a session: nothing else may change the signing key then.
    pub(crate) is_proven: bool,
    pub(crate) is_verified: bool,
    pub(crate) capabilities: Capabilities,
    /// What it has proven inside a session that it can do.
    pub(crate) proven: Option<Capabilities>,
    pub(crate) is_gateway: bool,
    pub(crate) is_hosted: bool,
    pub(crate) hops: u8,
    pub(crate) heard_at: Duration,
    pub(crate) announced_ms: u64,
    /// Its latest announce, which may come again over another link.
    pub(crate) announce: Option<Key>,
    pub(crate) is_present: bool,
    conflict_at: Option<Duration>,
}

/// What an announce changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Change {
    /// A peer that was not there before.
    New,
    /// It says something else of itself, or is nearer or farther.
    Updated,
    /// Nothing but the time.
    Heard,
    /// An older announce than the last.
    Old,
    /// Keys other than those pinned.
    Conflict,
    /// There is no room for strangers.
    Full,
}

#[derive(Default)]
pub(crate) struct Peers {
    known: BTreeMap<MeshId, Known>,
    capacity: usize,
    /// Who was there and had to make room, until somebody is told.
    displaced: Option<MeshId>,
}

impl Peers {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { known: BTreeMap::new(), capacity, displaced: None }
    }

    pub(crate) fn find(&self, id: MeshId) -> Option<&Known> {
        self.known.get(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// How many of them are there now.
    pub(crate) fn present(&self) -> impl Iterator<Item = Peer> {
        self.known.iter().filter(|(_, known)| known.is_present).map(|(id, known)| known.peer(*id))
    }

    /// Takes in an announce whose signature holds under its own key and whose name is that of its
    /// Noise key. `keep` says whom no stranger may displace.
    pub(crate) fn announce(
        &mut self,
        now: Duration,
        id: MeshId,
        announce: Announce,
        (timestamp_ms, hops, key): (u64, u8, Key),
        keep: impl Fn(MeshId) -> bool,
    ) -> Change {
        let capabilities = announce.capabilities.unwrap_or_default();
        let Some(known) = self.known.get_mut(&id) else {
            if !self.make_room(keep) {
                return Change::Full;
            }
            let known = Known {
                nickname: announce.nickname,
                noise_key: announce.noise_key,
                signing_key: announce.signing_key,
                is_proven: false,
                is_verified: false,
                capabilities,
                proven: None,
                is_gateway: announce.is_gateway,
                is_hosted: announce.is_hosted,
                hops,
                heard_at: now,
                announced_ms: timestamp_ms,
                announce: Some(key),
                is_present: true,
                conflict_at: None,
            };
            self.known.insert(id, known);
            return Change::New;
        };
        if (known.noise_key, known.signing_key) != (announce.noise_key, announce.signing_key) {
            return Change::Conflict;
        }
        if timestamp_ms <= known.announced_ms {
            return Change::Old;
        }
        let was = (known.nickname.clone(), known.capabilities, known.is_gateway, known.hops);
        known.nickname = announce.nickname;
        known.capabilities = capabilities;
        known.is_gateway = announce.is_gateway;
        known.is_hosted = announce.is_hosted;
        known.hops = hops;
        known.heard_at = now;
        known.announced_ms = timestamp_ms;
        known.announce = Some(key);
        let is = (known.nickname.clone(), known.capabilities, known.is_gateway, known.hops);
        match std::mem::replace(&mut known.is_present, true) {
            false => Change::New,
            true if was != is => Change::Updated,
            true => Change::Heard,
        }
    }

    /// Pins keys from an earlier run.
    pub(crate) fn pin(&mut self, noise_key: [u8; 32], signing_key: [u8; 32], verified: bool) {
        let id = MeshId::of_noise_key(&noise_key);
        if self.known.contains_key(&id) || !self.make_room(|_| false) {
            return;
        }
        let known = Known {
            nickname: String::new(),
            noise_key,
            signing_key,
            is_proven: false,
            is_verified: verified,
            capabilities: Capabilities::default(),
            proven: None,
            is_gateway: false,
            is_hosted: false,
            hops: 0,
            heard_at: Duration::ZERO,
            announced_ms: 0,
            announce: None,
            is_present: false,
            conflict_at: None,
        };
        self.known.insert(id, known);
    }

    /// What a session has proven beats what was announced (section 4.2).
    pub(crate) fn prove(&mut self, id: MeshId, state: PeerState) {
        if let Some(known) = self.known.get_mut(&id) {
            known.is_verified &= known.signing_key == state.signing_key;
            known.signing_key = state.signing_key;
            known.is_proven = true;
            known.proven = Some(state.capabilities);
        }
    }

    /// A person or a challenge has confirmed its keys.
    pub(crate) fn verify(&mut self, id: MeshId) {
        if let Some(known) = self.known.get_mut(&id) {
            known.is_verified = true;
        }
    }

    /// It said farewell; false if it was not there.
    pub(crate) fn leave(&mut self, id: MeshId) -> bool {
        self.known.get_mut(&id).is_some_and(|known| std::mem::replace(&mut known.is_present, false))
    }

    /// Those that were there and have not been heard for `presence`.
    pub(crate) fn expire(&mut self, now: Duration, presence: Duration) -> Vec<MeshId> {
        let is_late =
            |known: &Known| known.is_present && now.saturating_sub(known.heard_at) >= presence;
        let late = self.known.iter_mut().filter(|(_, known)| is_late(known));
        late.map(|(id, known)| {
            known.is_present = false;
            *id
        })
        .collect()
    }

    /// Who was there and has made room for the last newcomer.
    pub(crate) fn take_displaced(&mut self) -> Option<MeshId> {
        self.displaced.take()
    }

    /// Whether a conflict over this name is news: once a minute is enough.
    pub(crate) fn note_conflict(&mut self, now: Duration, id: MeshId) -> bool {
        let Some(known) = self.known.get_mut(&id) else { return false };
        let is_news = known.conflict_at.is_none_or(|at| now.saturating_sub(at) >= CONFLICT_NEWS);
        if is_news {
            known.conflict_at = Some(now);
        }
        is_news
    }

    /// The stranger heard least recently makes room, those that are gone first; then those who have
    /// proven a key. Whom a person has verified stays.
    fn make_room(&mut self, keep: impl Fn(MeshId) -> bool) -> bool {
        if self.known.len() < self.capacity {
            return true;
        }
        let others = self.known.iter().filter(|(id, known)| !known.is_verified && !keep(**id));
        let oldest =
            others.min_by_key(|(_, known)| (known.is_proven, known.is_present, known.heard_at));
        let Some(id) = oldest.map(|(id, _)| *id) else { return false };
        let removed = self.known.remove(&id);
        self.displaced = removed.filter(|known| known.is_present).map(|_| id);
        true
    }
}

impl Known {
    pub(crate) fn peer(&self, id: MeshId) -> Peer {
        Peer {
            id,
            nickname: self.nickname.clone(),
            noise_key: self.noise_key,
            signing_key: self.signing_key,
            fingerprint: fingerprint(&self.noise_key),
            capabilities: self.capabilities,
            is_gateway: self.is_gateway,
            is_hosted: self.is_hosted,
            hops: self.hops,
            heard_at: self.heard_at,
            is_verified: self.is_verified || self.is_proven,
        }
    }
}
