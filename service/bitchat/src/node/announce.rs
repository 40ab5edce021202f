//! Those who speak through this node, and how the mesh hears of them (BitChat protocol reference,
//! sections 1.4, 3.2 and 12).

use std::time::Duration;

use rand::{Rng, RngExt};

use super::{Node, links::Link};
use crate::{
    event::{FailReason, Now},
    id::MeshId,
    identity::Identity,
    link::{LinkId, Role},
    packet::{COMPRESSION_THRESHOLD, Header, MAX_HOPS, Packet, PacketType},
    payload::announce::{Announce, Capabilities, Order},
};

/// Whoever announces with seven hops is taken for the neighbour itself; a hosted peer is not.
const HOSTED_HOPS: u8 = MAX_HOPS - 1;
/// How long after a link stands it hears of us: iOS waits as long.
const GREET_AS_CENTRAL: Duration = Duration::from_millis(50);
const GREET_AS_PERIPHERAL: Duration = Duration::from_millis(400);
/// Between the announces of two hosted peers.
const GREET_STEP: Duration = Duration::from_millis(20);
/// An announce this fresh is repeated as it is, so that the mesh does not relay it again.
const FRESH: Duration = Duration::from_secs(5);
/// A public message follows its sender's first announce no sooner: both apps drop what comes from
/// somebody they have not heard of, and relays shuffle.
const AFTER_FIRST: Duration = Duration::from_millis(500);

/// One who speaks through this node.
pub(super) struct Local {
    pub(super) identity: Identity,
    nickname: String,
    is_node: bool,
    /// Whether it announces that it is of Fieldpost.
    is_marked: bool,
    next_announce: Duration,
    last: Option<(Duration, Packet)>,
    pub(super) first_announced: Option<Duration>,
}

impl Local {
    pub(super) fn new(identity: Identity, nickname: String, is_node: bool) -> Self {
        Self {
            identity,
            nickname,
            is_node,
            is_marked: true,
            next_announce: Duration::ZERO,
            last: None,
            first_announced: None,
        }
    }

    pub(super) fn hops(&self) -> u8 {
        if self.is_node { MAX_HOPS } else { HOSTED_HOPS }
    }

    pub(super) fn unmark(&mut self) {
        self.is_marked = false;
    }

    /// When its public messages may follow its first announce.
    pub(super) fn may_speak_at(&self, now: Duration) -> Duration {
        self.first_announced.unwrap_or(now) + AFTER_FIRST
    }
}

impl<R: Rng> Node<R> {
    pub(super) fn host(&mut self, now: Now, identity: Identity, nickname: String) {
        let id = identity.id();
        if self.locals.contains_key(&id) || self.locals.len() >= self.limits.hosted {
            self.fail(uuid::Uuid::nil(), Some(id), FailReason::Busy);
            return;
        }
        let mut local = Local::new(identity, nickname, false);
        if self.is_phone {
            local.unmark();
        }
        self.locals.insert(id, local);
        self.announce(now, id);
    }

    pub(super) fn unhost(&mut self, now: Now, id: MeshId) {
        if !self.locals.contains_key(&id) {
            return;
        }
        let header = self.header(now, PacketType::LEAVE, id, None);
        self.originate_signed(now, Packet::new(header, Vec::new()));
        if id == self.own {
            return;
        }
        self.sessions.forget(id);
        self.private.forget(id);
        self.locals.remove(&id);
    }

    pub(super) fn rename(&mut self, now: Now, id: MeshId, nickname: String) {
        let Some(local) = self.locals.get_mut(&id) else { return };
        local.nickname = nickname;
        local.last = None;
        self.announce(now, id);
    }

    /// What a new link is to hear, the node first: the link is taken for the one who announces
    /// with seven hops.
    pub(super) fn greet(&self, now: Now, link: &mut Link) {
        link.greet.push_back(self.own);
        link.greet.extend(self.locals.keys().filter(|id| **id != self.own));
        link.greet_at = now.at
            + match link.role {
                Role::Central => GREET_AS_CENTRAL,
                Role::Peripheral => GREET_AS_PERIPHERAL,
            };
    }

    pub(super) fn greet_due(&mut self, now: Now) {
        let due: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, link)| !link.greet.is_empty() && link.greet_at <= now.at)
            .map(|(id, _)| *id)
            .collect();
        for link_id in due {
            let Some(link) = self.links.get_mut(&link_id) else { continue };
            link.greet_at = now.at + GREET_STEP;
            let Some(id) = link.greet.pop_front() else { continue };
            let fresh = self.locals.get(&id).and_then(|local| local.last.as_ref());
            let fresh = fresh.filter(|(at, _)| now.at.saturating_sub(*at) < FRESH);
            let packet = fresh.map(|(_, packet)| packet.clone());
            if let Some(packet) = packet.or_else(|| self.announce_packet(now, id)) {
                self.transmit(&packet, &[link_id], false);
            }
        }
    }

    /// Announces those whose time has come.
    pub(super) fn announce_due(&mut self, now: Now) {
        if self.links.is_empty() {
            return;
        }
        let due = |local: &Local| local.next_announce <= now.at;
        let due: Vec<MeshId> =
            self.locals.iter().filter(|(_, local)| due(local)).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.announce(now, id));
    }

    /// A newcomer should not have to wait for our next round.
    pub(super) fn announce_to_newcomer(&mut self, now: Now) {
        let rng = &mut self.rng;
        for local in self.locals.values_mut() {
            let rested = local.last.as_ref().map_or(now.at, |(at, _)| *at + FRESH);
            let soon = now.at + Duration::from_millis(rng.random_range(300..=600));
            local.next_announce = local.next_announce.min(soon.max(rested));
        }
    }

    fn announce(&mut self, now: Now, id: MeshId) {
        if self.links.is_empty() {
            return;
        }
        if let Some(packet) = self.announce_packet(now, id) {
            self.originate(now, packet);
        }
    }

    fn announce_packet(&mut self, now: Now, id: MeshId) -> Option<Packet> {
        let header = self.header(now, PacketType::ANNOUNCE, id, None);
        let jitter = self.rng.random_range(0..8_000);
        let local = self.locals.get_mut(&id)?;
        let mut packet = local.announce(header)?;
        packet.sign(local.identity.signing_key());
        let base = if local.is_node { 11_000 } else { 21_000 };
        local.next_announce = now.at + Duration::from_millis(base + jitter);
        local.first_announced.get_or_insert(now.at);
        local.last = Some((now.at, packet.clone()));
        Some(packet)
    }
}

impl Local {
    /// An announce whose bytes no encoder would compress, so that its signature holds on iOS
    /// whatever Apple's encoder gives: the nickname is cut until it is so.
    fn announce(&self, header: Header) -> Option<Packet> {
        let mut nickname = self.nickname.as_str();
        loop {
            let announce = Announce {
                nickname: nickname.to_owned(),
                noise_key: *self.identity.noise_public(),
                signing_key: self.identity.signing_public(),
                neighbours: Vec::new(),
                capabilities: Some(Capabilities::PRIVATE_MEDIA),
                geohash: None,
                is_gateway: self.is_node && self.is_marked,
                is_hosted: !self.is_node && self.is_marked,
            };
            let payload = announce.encode(Order::Apple).ok();
            let is_short =
                |payload: &Vec<u8>| payload.len() < COMPRESSION_THRESHOLD || nickname.is_empty();
            if let Some(payload) = payload.filter(is_short) {
                return Some(Packet::new(header, payload));
            }
            nickname = &nickname[..nickname.floor_char_boundary(nickname.len().checked_sub(1)?)];
        }
    }
}
