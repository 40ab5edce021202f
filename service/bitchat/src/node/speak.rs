//! Packets of ours on their way out, and public text.

use std::time::Duration;

use rand::Rng;
use uuid::Uuid;

use super::{
    Node,
    links::{Reach, Waiting},
};
use crate::{
    dedup::Key,
    event::{FailReason, Now, Report},
    fragment,
    id::MeshId,
    link::{LinkId, Role},
    message,
    packet::{COMPRESSION_THRESHOLD, Header, MAX_HOPS, Packet, PacketType},
    relay::fan_out,
};

/// The longest public text: iOS takes no more characters.
const MAX_PUBLIC: usize = 60_000;
/// The longest part whose signature no encoder touches.
const PUBLIC_PART: usize = COMPRESSION_THRESHOLD - 1;
/// What an iPhone takes at the least (ATT MTU 185), and so a good guess for links further on.
const CAUTIOUS_FRAME: usize = 182;
/// Within this an announce comes over all links of a pair that work.
const TOGETHER: Duration = Duration::from_secs(5);
/// Packets that wait for their sender's first announce to get round; further ones are refused.
const DEFERRED: usize = 256;

impl<R: Rng> Node<R> {
    /// Signed public text stays under 100 bytes a packet, where no encoder is asked: longer text
    /// goes in parts. Beyond `public_parts` it goes in one packet, compressed as zlib does it,
    /// which iOS verifies only if Apple's encoder gives the same bytes; the report says so.
    pub(super) fn send_public(&mut self, now: Now, from: MeshId, id: Uuid, text: &str) {
        let Some(local) = self.locals.get(&from) else {
            self.fail(id, None, FailReason::UnknownLocal);
            return;
        };
        let ready = local.may_speak_at(now.at);
        let parts = message::split(text, PUBLIC_PART);
        let parts = if parts.len() > self.limits.public_parts { vec![text] } else { parts };
        let problem = if text.is_empty() {
            Some(FailReason::Empty)
        } else if text.len() > MAX_PUBLIC {
            Some(FailReason::TooLarge { limit: MAX_PUBLIC })
        } else if self.links.is_empty() {
            Some(FailReason::NoLink)
        } else {
            None
        };
        if let Some(reason) = problem {
            self.fail(id, None, reason);
            return;
        }
        let mut may_fail_on_apple = false;
        for part in parts {
            let header = self.header(now, PacketType::MESSAGE, from, None);
            let packet = Packet::new(header, part.as_bytes().to_vec());
            may_fail_on_apple |= packet.is_compressed();
            if ready > now.at && !self.defer(ready, packet.clone()) {
                self.fail(id, None, FailReason::Busy);
                return;
            } else if ready <= now.at {
                self.originate_signed(now, packet);
            }
        }
        self.report(Report::Sent { id, may_fail_on_apple });
    }

    /// Keeps a packet of ours until a time; false if there is no room.
    fn defer(&mut self, at: Duration, packet: Packet) -> bool {
        let may = self.deferred.len() < DEFERRED;
        if may {
            self.deferred.insert((at, packet.timestamp_ms), packet);
        }
        may
    }

    /// A header of ours, dated now.
    pub(super) fn header(
        &mut self,
        now: Now,
        kind: PacketType,
        sender: MeshId,
        recipient: Option<MeshId>,
    ) -> Header {
        let hops = self.locals.get(&sender).map_or(0, super::Local::hops);
        let spared = MAX_HOPS.saturating_sub(self.limits.hops.max(1));
        let hops_left = match kind {
            PacketType::ANNOUNCE => hops,
            _ => hops.saturating_sub(spared).max(1),
        };
        Header { kind, hops_left, timestamp_ms: self.stamp(now), sender, recipient }
    }

    /// Signs a packet of one of ours and sends it.
    pub(super) fn originate_signed(&mut self, now: Now, mut packet: Packet) {
        if let Some(local) = self.locals.get(&packet.sender) {
            packet.sign(local.identity.signing_key());
            self.originate(now, packet);
        }
    }

    /// Sends a packet of one of ours on the links that lead to its recipient.
    pub(super) fn originate(&mut self, now: Now, packet: Packet) {
        self.seen.insert(now.at, Key::of(&packet));
        let links = self.ways(&packet, None);
        self.transmit(&packet, &links, false);
    }

    /// Sends a packet of one of ours on all links: the direct one did not answer, and may not
    /// lead to whom it says. If it needs fragments, they are small: a link further on may be
    /// narrower than ours, and nobody can split a fragment.
    pub(super) fn originate_everywhere(&mut self, now: Now, packet: Packet) {
        self.seen.insert(now.at, Key::of(&packet));
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        self.transmit_in(&packet, &links, false, CAUTIOUS_FRAME);
    }

    /// Passes a packet of somebody else on.
    pub(super) fn pass_on(&mut self, packet: &Packet, from: LinkId) {
        let links = match self.next_hop(packet) {
            Some(links) => links,
            None => self.ways(packet, Some(from)),
        };
        let links: Vec<LinkId> = links.into_iter().filter(|link| *link != from).collect();
        if !links.is_empty() {
            self.counters.relayed += 1;
            self.transmit(packet, &links, true);
        }
    }

    /// Queues a packet on links, in fragments where it does not fit.
    pub(super) fn transmit(&mut self, packet: &Packet, links: &[LinkId], is_relayed: bool) {
        self.transmit_in(packet, links, is_relayed, usize::MAX);
    }

    /// The same with fragments of at most so many bytes.
    fn transmit_in(
        &mut self,
        packet: &Packet,
        links: &[LinkId],
        is_relayed: bool,
        max_fragment: usize,
    ) {
        let whole = packet.encode_for_wire();
        let flow = (packet.kind == PacketType::NOISE_ENCRYPTED)
            .then(|| packet.recipient.map(|recipient| (packet.sender, recipient)))
            .flatten();
        let frames: Vec<(LinkId, usize)> = links
            .iter()
            .filter_map(|id| self.links.get(id).map(|link| (*id, link.max_frame)))
            .collect();
        // The same parts on all links, so that whoever hears two of them can join them.
        let narrow = frames.iter().map(|(_, most)| *most).filter(|most| whole.len() > *most).min();
        let parts = narrow.map(|most| self.fragments(packet, most.min(max_fragment), is_relayed));
        for (id, most) in frames {
            let Some(link) = self.links.get_mut(&id) else { continue };
            let is_fragment = packet.kind == PacketType::FRAGMENT;
            if whole.len() <= most {
                let fragment = is_fragment.then_some(reach(packet));
                let waiting = Waiting { frame: whole.clone(), flow, fragment, is_relayed };
                if !link.push(waiting) {
                    self.counters.queue_full += 1;
                }
                continue;
            }
            let Some(Some(parts)) = &parts else {
                self.counters.unfit += 1;
                continue;
            };
            if link.room() < parts.len() {
                self.counters.queue_full += parts.len() as u64;
                continue;
            }
            for part in parts {
                let fragment = Some(reach(packet));
                let waiting = Waiting { frame: part.encode(), flow, fragment, is_relayed };
                if !link.push(waiting) {
                    self.counters.queue_full += 1;
                }
            }
        }
    }

    fn fragments(&mut self, packet: &Packet, most: usize, is_relayed: bool) -> Option<Vec<Packet>> {
        if packet.kind == PacketType::FRAGMENT {
            return None;
        }
        // An own packet that has more parts was refused before it came here.
        let limit = if is_relayed { self.limits.fragments_sent } else { u16::MAX };
        let mut id = [0; 8];
        self.rng.fill_bytes(&mut id);
        let parts = fragment::split(packet, id, fragment::chunk(packet, most), limit).ok()?;
        // A long route may leave no room for data on a narrow link.
        parts.iter().all(|part| part.encode().len() <= most).then_some(parts)
    }

    /// The links that lead to a packet's recipient.
    fn ways(&self, packet: &Packet, from: Option<LinkId>) -> Vec<LinkId> {
        let source = from.and_then(|from| self.links.get(&from)).and_then(|link| link.bound);
        let others: Vec<_> = self
            .links
            .iter()
            .filter(|(id, link)| {
                let is_spare = link.bound.is_some_and(|peer| self.best_link(peer) != Some(**id));
                Some(**id) != from
                    && (source.is_none() || link.bound != source)
                    && link.bound != Some(packet.sender)
                    // An announce is also what binds a link.
                    && (!is_spare || packet.kind == PacketType::ANNOUNCE)
            })
            .map(|(id, link)| (*id, link.role))
            .collect();
        let direct = packet.recipient.and_then(|id| self.best_link(id));
        let direct: Vec<LinkId> = direct.into_iter().collect();
        fan_out(packet, &direct, &others)
    }

    /// Where a routed packet goes next, if that peer is at the other end of a link (BitChat
    /// protocol reference, section 7.4).
    fn next_hop(&self, packet: &Packet) -> Option<Vec<LinkId>> {
        let ours = packet.route.iter().position(|hop| self.locals.contains_key(hop));
        let next = match ours {
            Some(at) => packet.route.get(at + 1).copied().or(packet.recipient)?,
            None => *packet.route.first()?,
        };
        self.best_link(next).map(|link| vec![link])
    }

    /// The link of a peer that packets take: a pair may have two, and one copy is enough. The one
    /// on which we are central, as iOS prefers; of several, the one that was bound first. One that
    /// missed an announce which came over another may be dead on the other side.
    pub(super) fn best_link(&self, id: MeshId) -> Option<LinkId> {
        let of_peer = || self.links.iter().filter(|(_, link)| link.bound == Some(id));
        let announced_at = of_peer().map(|(_, link)| link.announced_at).max()?;
        let best = of_peer().min_by_key(|(_, link)| {
            let missed_one = announced_at.saturating_sub(link.announced_at) > TOGETHER;
            (missed_one, link.role != Role::Central, link.bound_at)
        });
        best.map(|(id, _)| *id)
    }

    pub(super) fn links_of(&self, id: MeshId) -> Vec<LinkId> {
        let of_peer = self.links.iter().filter(|(_, link)| link.bound == Some(id));
        of_peer.map(|(id, _)| *id).collect()
    }

    /// The smallest frame among the links that a packet to this recipient would take.
    pub(super) fn narrowest(&self, recipient: Option<MeshId>) -> Option<usize> {
        let direct = recipient.map(|id| self.links_of(id)).unwrap_or_default();
        let counts = |id: &LinkId| direct.is_empty() || direct.contains(id);
        let links = self.links.iter().filter(|(id, _)| counts(id));
        links.map(|(_, link)| link.max_frame).min()
    }
}

fn reach(packet: &Packet) -> Reach {
    if packet.is_broadcast() { Reach::Broadcast } else { Reach::Directed }
}
