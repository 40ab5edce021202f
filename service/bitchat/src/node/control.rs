//! Pings, proofs of signing keys, and requests for sync.

use std::{collections::BTreeMap, time::Duration};

use rand::Rng;

use super::Node;
use crate::{
    event::{Now, Report},
    id::MeshId,
    link::LinkId,
    noise::Pair,
    packet::{Packet, PacketType},
    payload::{
        noise::PlaintextType,
        ping::Ping,
        sync::{Filter, RequestSync},
        verify::{Challenge, Response},
    },
};

/// How long a pong or a proof may take.
const PATIENCE: Duration = Duration::from_secs(10);
const PROOF_PATIENCE: Duration = Duration::from_secs(60);
/// For how long we take history from a link that we asked (BitChat protocol reference,
/// section 2.6).
const ASKED: Duration = Duration::from_secs(30);
/// Proofs that we wait for; the oldest makes room.
const CHALLENGES: usize = 64;

/// Pings that wait for a pong, by nonce.
#[derive(Default)]
pub(super) struct Pings(BTreeMap<[u8; 8], (MeshId, MeshId, Duration)>);

/// Challenges that wait for a response.
#[derive(Default)]
pub(super) struct Challenges(BTreeMap<Pair, (Challenge, Duration)>);

impl Pings {
    pub(super) fn expire(&mut self, now: Duration) {
        self.0.retain(|_, (.., at)| now.saturating_sub(*at) < PATIENCE);
    }
}

impl Challenges {
    pub(super) fn expire(&mut self, now: Duration) {
        self.0.retain(|_, (_, at)| now.saturating_sub(*at) < PROOF_PATIENCE);
    }
}

impl<R: Rng> Node<R> {
    pub(super) fn ping(&mut self, now: Now, from: MeshId, to: MeshId) {
        if !self.locals.contains_key(&from) || self.pings.0.len() >= self.limits.pings {
            return;
        }
        let mut nonce = [0; 8];
        self.rng.fill_bytes(&mut nonce);
        self.pings.0.insert(nonce, (from, to, now.at));
        self.send_ping(now, PacketType::PING, from, to, nonce);
    }

    pub(super) fn take_ping(&mut self, now: Now, via: LinkId, packet: &Packet) {
        let (Ok(ping), Some(local)) = (Ping::decode(packet.payload()), packet.recipient) else {
            self.counters.malformed += 1;
            return;
        };
        if self.links.get_mut(&via).is_some_and(|link| link.pings.take(now.at)) {
            self.send_ping(now, PacketType::PONG, local, packet.sender, ping.nonce);
        } else {
            self.counters.pings_refused += 1;
        }
    }

    pub(super) fn take_pong(&mut self, now: Now, packet: &Packet) {
        let Ok(pong) = Ping::decode(packet.payload()) else {
            self.counters.malformed += 1;
            return;
        };
        let asked = self.pings.0.get(&pong.nonce).copied();
        let ours = |(from, to, _): &(MeshId, MeshId, Duration)| {
            *to == packet.sender && packet.recipient == Some(*from)
        };
        if let Some((_, from, at)) = asked.filter(ours) {
            self.pings.0.remove(&pong.nonce);
            let hops = pong.hops(packet.hops_left);
            let round_trip = now.at.saturating_sub(at);
            self.report(Report::Pong { from, hops, round_trip });
        }
    }

    /// Asks for a proof inside a session.
    pub(super) fn challenge(&mut self, now: Now, from: MeshId, to: MeshId) {
        let Some(noise_key) = self.peers.find(to).map(|known| known.noise_key) else { return };
        let mut nonce = [0; 16];
        self.rng.fill_bytes(&mut nonce);
        let challenge = Challenge::new(&noise_key, nonce);
        let body = challenge.encode();
        if self.challenges.0.len() >= CHALLENGES {
            let oldest = self.challenges.0.iter().min_by_key(|(_, (_, at))| *at);
            if let Some(pair) = oldest.map(|(pair, _)| *pair) {
                self.challenges.0.remove(&pair);
            }
        }
        self.challenges.0.insert(Pair { local: from, remote: to }, (challenge, now.at));
        self.say(now, from, to, PlaintextType::VERIFY_CHALLENGE, &body, false);
    }

    /// Proves our signing key to whoever holds the session; only for our own Noise key.
    pub(super) fn answer_challenge(&mut self, now: Now, pair: Pair, challenge: Challenge) {
        let Some(local) = self.locals.get(&pair.local) else { return };
        let ours = data_encoding::HEXLOWER.encode(local.identity.noise_public());
        if !challenge.noise_key_hex.eq_ignore_ascii_case(&ours) {
            return;
        }
        let body = challenge.answer(local.identity.signing_key()).encode();
        self.say(now, pair.local, pair.remote, PlaintextType::VERIFY_RESPONSE, &body, false);
    }

    pub(super) fn take_response(&mut self, pair: Pair, response: &Response) {
        let asked = self.challenges.0.get(&pair).map(|(challenge, _)| challenge);
        let Some(known) = self.peers.find(pair.remote) else { return };
        if asked == Some(&response.challenge) && response.is_by(&known.signing_key) {
            self.challenges.0.remove(&pair);
            self.peers.verify(pair.remote);
            self.report(Report::Verified { id: pair.remote });
        }
    }

    /// Asks the neighbour on a link for all that it has (BitChat protocol reference, section 8.1).
    pub(super) fn request_sync(&mut self, now: Now, link_id: LinkId) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        link.asked_until = now.at + ASKED;
        let recipient = link.bound;
        let filter = Filter::of(&[], 0);
        let request = RequestSync { filter, types: None, since_ms: None, fragment_ids: Vec::new() };
        let mut header = self.header(now, PacketType::REQUEST_SYNC, self.own, recipient);
        header.hops_left = 0;
        let mut packet = Packet::new(header, request.encode());
        if let Some(local) = self.locals.get(&self.own) {
            packet.sign(local.identity.signing_key());
            self.transmit(&packet, &[link_id], false);
        }
    }

    /// A neighbour asks what we have. This core keeps no history, and an empty answer is no packet
    /// at all; the request is read, and counted where it is not what it should be.
    pub(super) fn take_sync(&mut self, now: Now, via: LinkId, packet: &Packet) {
        let is_signed = self
            .peers
            .find(packet.sender)
            .is_some_and(|known| packet.is_signed_by(&known.signing_key));
        let within_rate = self.links.get_mut(&via).is_some_and(|link| link.syncs.take(now.at));
        let bound = self.links.get(&via).and_then(|link| link.bound);
        let is_neighbour = bound.is_none_or(|bound| bound == packet.sender);
        if RequestSync::decode(packet.payload()).is_err() {
            self.counters.malformed += 1;
        } else if !is_signed || !is_neighbour || packet.hops_left != 0 {
            self.counters.unsigned += 1;
        } else if !within_rate {
            self.counters.over_rate += 1;
        }
    }

    fn send_ping(&mut self, now: Now, kind: PacketType, from: MeshId, to: MeshId, nonce: [u8; 8]) {
        let header = self.header(now, kind, from, Some(to));
        let ping = Ping { nonce, origin_hops: header.hops_left };
        self.originate(now, Packet::new(header, ping.encode()));
    }
}
