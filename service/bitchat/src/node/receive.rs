//! What is done with a frame: rates, freshness, duplicates, signatures, content, relay.

use std::time::Duration;

use rand::Rng;

use super::Node;
use crate::{
    dedup::Key,
    event::{Now, Report},
    fragment,
    id::MeshId,
    link::LinkId,
    message,
    packet::{MAX_HOPS, Packet, PacketType},
    payload::{
        announce::Announce, board::Board, carrier::Carrier, courier::Courier, file::File,
        fragment::Fragment, group::Sealed, prekeys::Prekeys, rotation::AnnounceV2, voice::Voice,
    },
    peers::Change,
    relay::{Held, hops_after},
};

/// What iOS allows between a packet's time and its own (BitChat protocol reference, section 2.6).
const FRESHNESS_MS: u64 = 120_000;
/// A public message that comes as history may be so old.
const HISTORY_MS: u64 = 6 * 3600 * 1000;
/// A link changes its peer no more often.
const REBIND: Duration = Duration::from_secs(60);
/// What is under way without an answer for so long is said again to whoever announces itself: it may
/// have been away.
const STALLED: Duration = Duration::from_secs(3);
/// The longest public text, in characters.
const MAX_PUBLIC: usize = 60_000;

/// Whether a packet may be passed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Relay,
    Drop,
}

impl<R: Rng> Node<R> {
    pub(super) fn receive_frame(&mut self, now: Now, via: LinkId, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(&via) else { return };
        self.counters.frames_received += 1;
        if !link.frames.take(now.at) {
            self.counters.over_rate += 1;
            return;
        }
        match Packet::decode(bytes) {
            Ok(packet) => self.receive(now, via, packet),
            Err(_) => self.counters.undecodable += 1,
        }
    }

    fn receive(&mut self, now: Now, via: LinkId, packet: Packet) {
        if self.locals.contains_key(&packet.sender) {
            self.counters.echoes += 1;
            return;
        }
        if !self.is_fresh(now, via, &packet) {
            self.counters.stale += 1;
            return;
        }
        let key = Key::of(&packet);
        if self.seen.contains(&key) {
            self.counters.duplicates += 1;
            if self.relay.cancel(key, self.links.len()) {
                self.counters.relay_cancelled += 1;
            }
            self.bind_again(now, via, &packet, key);
            return;
        }
        let verdict = self.take_in(now, via, &packet, key);
        self.seen.insert(now.at, key);
        if verdict == Verdict::Relay {
            self.relay(now, via, packet, key);
        }
    }

    /// Holds a packet for its neighbours, if it may go on.
    fn relay(&mut self, now: Now, via: LinkId, mut packet: Packet, key: Key) {
        let is_ours = packet.recipient.is_some_and(|id| self.locals.contains_key(&id));
        let degree = self.links.len();
        let Some(hops) = hops_after(&packet, degree).filter(|_| !is_ours && degree > 1) else {
            return;
        };
        let repeats = (1..packet.route.len()).any(|i| packet.route[..i].contains(&packet.route[i]));
        let may = self.links.get_mut(&via).is_some_and(|link| link.relays.take(now.at));
        packet.hops_left = hops;
        let last_hop = packet.recipient.is_some_and(|id| !self.links_of(id).is_empty());
        let held = Held { key, packet, from: via };
        if repeats || !may || !self.relay.hold(now.at, &mut self.rng, degree, last_hop, held) {
            self.counters.relay_refused += 1;
        }
    }

    /// Within two minutes of our clock, or history that we asked this link for.
    fn is_fresh(&self, now: Now, via: LinkId, packet: &Packet) -> bool {
        let asked = self.links.get(&via).is_some_and(|link| now.at < link.asked_until);
        if packet.solicited && asked {
            return now.unix_ms.saturating_sub(packet.timestamp_ms) <= HISTORY_MS
                && packet.timestamp_ms <= now.unix_ms + FRESHNESS_MS;
        }
        !packet.solicited && packet.timestamp_ms.abs_diff(now.unix_ms) <= FRESHNESS_MS
    }

    fn take_in(&mut self, now: Now, via: LinkId, packet: &Packet, key: Key) -> Verdict {
        let is_for_us = packet.recipient.is_some_and(|id| self.locals.contains_key(&id));
        match packet.kind {
            PacketType::ANNOUNCE => self.take_announce(now, via, packet, key),
            PacketType::MESSAGE => self.take_public(packet),
            PacketType::LEAVE => self.take_leave(packet),
            PacketType::NOISE_HANDSHAKE | PacketType::NOISE_ENCRYPTED if is_for_us => {
                self.take_noise(now, via, packet);
                Verdict::Drop
            }
            PacketType::FRAGMENT if is_for_us || packet.is_broadcast() => {
                self.take_fragment(now, via, packet)
            }
            PacketType::REQUEST_SYNC => {
                self.take_sync(now, via, packet);
                Verdict::Drop
            }
            PacketType::FILE => self.take_public_file(packet, is_for_us),
            PacketType::PING if is_for_us => {
                self.take_ping(now, via, packet);
                Verdict::Drop
            }
            PacketType::PONG if is_for_us => {
                self.take_pong(now, packet);
                Verdict::Drop
            }
            PacketType::VOICE => match self.authentic(packet) {
                Verdict::Relay => self.well_formed(Voice::decode(packet.payload()).is_ok()),
                Verdict::Drop => Verdict::Drop,
            },
            PacketType::BOARD => {
                let board = Board::decode(packet.payload());
                self.well_formed(board.is_ok_and(|board| board.is_signed()))
            }
            PacketType::PREKEYS => {
                let owner = Prekeys::decode(packet.payload())
                    .is_ok_and(|prekeys| MeshId::of_noise_key(&prekeys.noise_key) == packet.sender);
                self.well_formed(owner)
            }
            PacketType::COURIER => self.well_formed(Courier::decode(packet.payload()).is_ok()),
            PacketType::GROUP => self.well_formed(Sealed::decode(packet.payload()).is_ok()),
            PacketType::CARRIER => self.well_formed(Carrier::decode(packet.payload()).is_ok()),
            PacketType::ANNOUNCE_V2 => {
                self.well_formed(AnnounceV2::decode(packet.payload()).is_ok())
            }
            // What we do not know, others may.
            _ => Verdict::Relay,
        }
    }

    /// Whether a packet is of its sender, whose keys must be known (section 2.3).
    fn authentic(&mut self, packet: &Packet) -> Verdict {
        match self.peers.find(packet.sender) {
            None => {
                self.counters.unknown_sender += 1;
                Verdict::Drop
            }
            Some(known) if packet.is_signed_by(&known.signing_key) => Verdict::Relay,
            Some(_) => {
                self.counters.unsigned += 1;
                Verdict::Drop
            }
        }
    }

    fn well_formed(&mut self, is: bool) -> Verdict {
        if is {
            return Verdict::Relay;
        }
        self.counters.malformed += 1;
        Verdict::Drop
    }

    fn take_announce(&mut self, now: Now, via: LinkId, packet: &Packet, key: Key) -> Verdict {
        let Ok(announce) = Announce::decode(packet.payload()) else {
            return self.well_formed(false);
        };
        if MeshId::of_noise_key(&announce.noise_key) != packet.sender {
            self.counters.spoofed += 1;
            return Verdict::Drop;
        }
        // Before the costly check: an announce that could not be taken need not be verified.
        let is_new = self.peers.find(packet.sender).is_none();
        if !packet.is_signed_by(&announce.signing_key) {
            self.counters.unsigned += 1;
            return Verdict::Drop;
        }
        let may_learn =
            !is_new || self.links.get_mut(&via).is_some_and(|link| link.new_peers.take(now.at));
        if !may_learn {
            self.counters.peers_refused += 1;
            return Verdict::Drop;
        }
        let is_direct = packet.hops_left == MAX_HOPS;
        let hops = MAX_HOPS.saturating_sub(packet.hops_left) + 1;
        let (sessions, links) = (&self.sessions, &self.links);
        let keep = |id| sessions.knows(id) || links.values().any(|link| link.bound == Some(id));
        let heard = (packet.timestamp_ms, hops, key);
        let change = self.peers.announce(now.at, packet.sender, announce, heard, keep);
        if let Some(id) = self.peers.take_displaced() {
            self.report(Report::PeerGone { id, left: false });
        }
        match change {
            Change::Conflict => {
                self.conflict(now, packet.sender);
                return Verdict::Drop;
            }
            Change::Full => {
                self.counters.peers_refused += 1;
                return Verdict::Drop;
            }
            Change::Old => return Verdict::Drop,
            Change::New => {
                self.report_peer(packet.sender);
                self.announce_to_newcomer(now);
            }
            Change::Updated => self.report_peer(packet.sender),
            Change::Heard => {}
        }
        if is_direct {
            self.bind(now, via, packet.sender);
        }
        self.say_again(now, packet.sender, STALLED);
        Verdict::Relay
    }

    /// A neighbour's announce that came over another of its links first, and is verified.
    fn bind_again(&mut self, now: Now, via: LinkId, packet: &Packet, key: Key) {
        let is_latest = packet.kind == PacketType::ANNOUNCE
            && packet.hops_left == MAX_HOPS
            && self.peers.find(packet.sender).is_some_and(|known| known.announce == Some(key));
        if is_latest {
            self.bind(now, via, packet.sender);
        }
    }

    /// A link belongs to whoever announces over it with all hops left (section 1.6).
    ///
    /// BlueZ may hand over the first frame of one central as that of another that connects at the same
    /// moment. So a link also changes to a peer without another link that announces twice in a row.
    fn bind(&mut self, now: Now, via: LinkId, id: MeshId) {
        let has_another =
            self.links.iter().any(|(other, link)| *other != via && link.bound == Some(id));
        let Some(known) = self.peers.find(id) else { return };
        let rival = known.announce.map(|key| (id, key));
        let Some(link) = self.links.get_mut(&via) else { return };
        let is_again = matches!((link.rival, rival), (Some(before), Some(rival))
            if before.0 == id && before.1 != rival.1);
        let may = match link.bound {
            None => true,
            Some(bound) if bound == id => false,
            Some(_) => {
                let is_old = now.at.saturating_sub(link.bound_at) >= REBIND;
                !has_another && (is_old || is_again)
            }
        };
        link.rival = rival;
        if may {
            link.bound = Some(id);
            link.bound_at = now.at;
        }
        if link.bound == Some(id) {
            (link.is_gateway, link.announced_at) = (known.is_gateway, now.at);
            link.rival = None;
        }
    }

    fn take_public(&mut self, packet: &Packet) -> Verdict {
        if !packet.is_broadcast() {
            return Verdict::Relay;
        }
        let Ok(text) = str::from_utf8(packet.payload()) else { return self.well_formed(false) };
        if text.is_empty() || text.chars().count() > MAX_PUBLIC {
            return self.well_formed(false);
        }
        // A sender that we have not heard of may be known to others.
        if self.peers.find(packet.sender).is_none() {
            self.counters.unknown_sender += 1;
            return Verdict::Relay;
        }
        let verdict = self.authentic(packet);
        if verdict == Verdict::Relay {
            self.report(Report::Public {
                from: packet.sender,
                message_id: message::public_id(packet.sender, packet.timestamp_ms, text),
                timestamp_ms: packet.timestamp_ms,
                text: text.to_owned(),
            });
        }
        verdict
    }

    fn take_leave(&mut self, packet: &Packet) -> Verdict {
        let verdict = self.authentic(packet);
        if verdict == Verdict::Relay && self.peers.leave(packet.sender) {
            self.report(Report::PeerGone { id: packet.sender, left: true });
        }
        verdict
    }

    fn take_public_file(&mut self, packet: &Packet, is_for_us: bool) -> Verdict {
        let verdict = self.authentic(packet);
        if verdict == Verdict::Drop || !(is_for_us || packet.is_broadcast()) {
            return verdict;
        }
        let Ok(file) = File::decode(packet.payload()) else { return self.well_formed(false) };
        let to = packet.recipient.filter(|_| is_for_us);
        self.report(Report::File { to, from: packet.sender, file });
        verdict
    }

    fn take_fragment(&mut self, now: Now, via: LinkId, packet: &Packet) -> Verdict {
        let Ok(fragment) = Fragment::decode(packet.payload()) else {
            return self.well_formed(false);
        };
        let original = fragment.original;
        match self.sets.insert(now.at, via, packet.sender, fragment) {
            Ok(Some(whole)) => self.take_whole(now, via, packet, original, &whole),
            Ok(None) => {}
            Err(_) => self.counters.fragments_refused += 1,
        }
        Verdict::Relay
    }

    /// A packet that came in parts: never relayed, the parts were.
    fn take_whole(
        &mut self,
        now: Now,
        via: LinkId,
        part: &Packet,
        original: PacketType,
        whole: &[u8],
    ) {
        let packet = match Packet::decode(whole) {
            Ok(packet) => Some(packet),
            Err(_) => fragment::repaired(whole).filter(|packet| {
                let known = self.peers.find(packet.sender);
                let holds = known.is_some_and(|known| packet.is_signed_by(&known.signing_key));
                self.counters.sets_repaired += u64::from(holds);
                holds
            }),
        };
        let belongs = |packet: &Packet| {
            packet.sender == part.sender
                && packet.kind == original
                && packet.kind != PacketType::FRAGMENT
        };
        let Some(mut packet) = packet.filter(belongs) else {
            self.counters.sets_broken += 1;
            return;
        };
        packet.hops_left = 0;
        self.receive(now, via, packet);
    }

    /// Somebody uses a name with other keys than those pinned.
    pub(super) fn conflict(&mut self, now: Now, id: MeshId) {
        self.counters.spoofed += 1;
        if self.peers.note_conflict(now.at, id) {
            self.report(Report::KeyConflict { id });
        }
    }

    fn report_peer(&mut self, id: MeshId) {
        if let Some(known) = self.peers.find(id) {
            let peer = known.peer(id);
            self.report(Report::Peer(peer));
        }
    }
}
