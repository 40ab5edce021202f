//! Controlled flooding: which packets are passed on, when, and over which links (BitChat protocol
//! reference, section 7).
//!
//! A packet heard for the first time is held for a short random delay. If a neighbour repeats it
//! meanwhile and there are neighbours enough, our copy would be redundant and is dropped.
//!
//! The hop limits are those of the plain rule: one less on each link, seven in all. iOS cuts more
//! away where many peers are near; we do so for voice and fragments only, so that text still goes
//! seven hops.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use rand::{Rng, RngExt};
use sha2::{Digest, Sha256};

use crate::{
    dedup::Key,
    id::MeshId,
    limits::Limits,
    link::{LinkId, Role},
    packet::{MAX_HOPS, Packet, PacketType},
};

/// From this many neighbours on, voice and fragments go fewer hops.
const DENSE: usize = 6;
/// A duplicate calls off our own copy only where others are near.
const SPARSE: usize = 2;
/// How long a Noise frame waits on its last hop for one before it.
const GAP: Duration = Duration::from_millis(250);
/// A gap wider than this is no gap but a new session or a loss.
const WIDEST_GAP: u32 = 64;
/// How far behind a frame may be before it is taken for the start of a new session.
const WIDEST_LAG: u32 = 1024;
const STEP: Duration = Duration::from_millis(1);

/// A packet that waits for its delay.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) key: Key,
    pub(crate) packet: Packet,
    pub(crate) from: LinkId,
}

#[derive(Default)]
struct Flow {
    /// The number that should come next on the last hop.
    next: Option<u32>,
    released: Duration,
}

pub(crate) struct Relay {
    held: BTreeMap<(Duration, u64), Held>,
    flows: BTreeMap<(MeshId, MeshId), Flow>,
    count: u64,
    capacity: usize,
    flow_capacity: usize,
}

impl Relay {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            held: BTreeMap::new(),
            flows: BTreeMap::new(),
            count: 0,
            capacity: limits.held,
            flow_capacity: limits.flows,
        }
    }

    /// Keeps a packet until its delay is over; its hops are already those it will leave with.
    /// False if there is no room. `last_hop`: its recipient is at the other end of a link.
    pub(crate) fn hold(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        degree: usize,
        last_hop: bool,
        held: Held,
    ) -> bool {
        if self.held.len() >= self.capacity {
            return false;
        }
        let delay = Duration::from_millis(rng.random_range(delay_ms(&held.packet, degree)));
        let mut at = now + delay;
        if let Some((flow, number)) = flow(&held.packet) {
            at = self.in_order(now, at, flow, number, last_hop);
        }
        // Both apps drop what comes before its sender's announce.
        if let Some(announced) = self.announced_at(&held.packet) {
            at = at.max(announced + STEP);
        }
        self.put(at, held);
        true
    }

    /// Calls off our copy of a packet that a neighbour has just repeated; true if there was one.
    pub(crate) fn cancel(&mut self, key: Key, degree: usize) -> bool {
        if degree <= SPARSE {
            return false;
        }
        let before = self.held.len();
        // Announces bind links and directed packets have one way alone: those are kept.
        self.held.retain(|_, held| held.key != key || held.packet.recipient.is_some());
        self.held.len() < before
    }

    /// The packets whose delay is over.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<Held> {
        let mut due = Vec::new();
        while let Some(entry) = self.held.first_entry().filter(|entry| entry.key().0 <= now) {
            let held = entry.remove();
            match flow(&held.packet) {
                Some((flow, number)) => self.release(now, flow, number, held, &mut due),
                None => due.push(held),
            }
        }
        due
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.held.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// When the last announce of the packet's sender that still waits will go.
    fn announced_at(&self, packet: &Packet) -> Option<Duration> {
        let is_theirs = |held: &Held| {
            held.packet.kind == PacketType::ANNOUNCE && held.packet.sender == packet.sender
        };
        let mut latest = self.held.iter().rev().filter(|(_, held)| is_theirs(held));
        latest.next().map(|((at, _), _)| *at)
    }

    /// When a frame of a session may go, so that it does not overtake those before it: phones
    /// drop what comes more than eight places late (section 5.4).
    fn in_order(
        &mut self,
        now: Duration,
        at: Duration,
        key: (MeshId, MeshId),
        number: u32,
        last_hop: bool,
    ) -> Duration {
        if self.flows.len() >= self.flow_capacity && !self.flows.contains_key(&key) {
            let oldest = self.flows.iter().min_by_key(|(_, flow)| flow.released);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.flows.remove(&oldest);
            }
        }
        let flow = self.flows.entry(key).or_default();
        let after = at.max(flow.released + STEP);
        if !last_hop {
            flow.released = after;
            return after;
        }
        match flow.next {
            Some(next) if number > next && number - next <= WIDEST_GAP => {
                return after.max(now + GAP);
            }
            Some(next) if number < next && next - number <= WIDEST_LAG && number > 0 => return at,
            _ => {}
        }
        flow.next = number.checked_add(1);
        flow.released = after;
        self.pull(key);
        after
    }

    /// Lets the frames go that waited for the one just placed.
    fn pull(&mut self, key: (MeshId, MeshId)) {
        while let Some(next) = self.flows.get(&key).and_then(|flow| flow.next) {
            let waiting =
                self.held.iter().find(|(_, held)| flow(&held.packet) == Some((key, next)));
            let Some(place) = waiting.map(|(place, _)| *place) else { return };
            let Some(held) = self.held.remove(&place) else { return };
            let Some(flow) = self.flows.get_mut(&key) else { return };
            flow.next = next.checked_add(1);
            flow.released += STEP;
            let at = flow.released;
            self.put(at, held);
        }
    }

    /// Releases a frame, and before it any with lower numbers that still wait.
    fn release(
        &mut self,
        now: Duration,
        key: (MeshId, MeshId),
        number: u32,
        held: Held,
        due: &mut Vec<Held>,
    ) {
        let earlier: Vec<_> = self
            .held
            .iter()
            .filter_map(|(place, held)| match flow(&held.packet) {
                Some((other, earlier)) if other == key && earlier < number => {
                    Some((earlier, *place))
                }
                _ => None,
            })
            .collect();
        let mut earlier: Vec<_> = earlier.into_iter().collect();
        earlier.sort_unstable();
        // A restarted session counts from 0: those frames are not earlier but later.
        earlier.retain(|(earlier, _)| number - earlier <= WIDEST_GAP);
        due.extend(earlier.into_iter().filter_map(|(_, place)| self.held.remove(&place)));
        due.push(held);
        if let Some(flow) = self.flows.get_mut(&key)
            && let Some(next) = flow.next
            && number >= next
        {
            flow.next = number.checked_add(1);
            flow.released = now;
            self.pull(key);
        }
    }

    fn put(&mut self, at: Duration, held: Held) {
        self.held.insert((at, self.count), held);
        self.count += 1;
    }
}

/// With how many hops left a packet is passed on, if it is at all.
pub(crate) fn hops_after(packet: &Packet, degree: usize) -> Option<u8> {
    let hops = packet.hops_left.min(MAX_HOPS);
    if packet.kind == PacketType::REQUEST_SYNC || hops <= 1 {
        return None;
    }
    let is_heavy = matches!(packet.kind, PacketType::FRAGMENT | PacketType::VOICE);
    let hops =
        if is_heavy && packet.is_broadcast() && degree >= DENSE { hops.min(5) } else { hops };
    Some(hops - 1)
}

/// Which links a packet goes out on. `direct`: links whose other end is the recipient.
pub(crate) fn fan_out(
    packet: &Packet,
    direct: &[LinkId],
    others: &[(LinkId, Role)],
) -> Vec<LinkId> {
    if !direct.is_empty() {
        return direct.to_vec();
    }
    let goes_to_all = packet.recipient.is_some()
        || matches!(
            packet.kind,
            PacketType::ANNOUNCE | PacketType::FRAGMENT | PacketType::REQUEST_SYNC
        );
    if goes_to_all {
        return others.iter().map(|(link, _)| *link).collect();
    }
    let mut chosen = subset(packet, others, Role::Central);
    chosen.extend(subset(packet, others, Role::Peripheral));
    chosen
}

/// All of two, and of more a few that the packet's hash picks.
fn subset(packet: &Packet, links: &[(LinkId, Role)], role: Role) -> Vec<LinkId> {
    let links = links.iter().filter(|(_, other)| *other == role);
    let mut links: Vec<LinkId> = links.map(|(link, _)| *link).collect();
    let count = links.len();
    if count > 2 {
        let key = packet.apple_key();
        links.sort_by_cached_key(|link| Sha256::digest(format!("{key}::{}", link.0)));
        let logarithm = count.next_power_of_two().trailing_zeros() as usize;
        links.truncate((logarithm + 1).min(count));
    }
    links
}

fn delay_ms(packet: &Packet, degree: usize) -> RangeInclusive<u64> {
    let directed = packet.recipient.is_some();
    match packet.kind {
        PacketType::NOISE_HANDSHAKE => 10..=35,
        PacketType::FRAGMENT
        | PacketType::NOISE_ENCRYPTED
        | PacketType::COURIER
        | PacketType::PING
        | PacketType::PONG
        | PacketType::CARRIER
            if directed =>
        {
            20..=60
        }
        PacketType::FRAGMENT | PacketType::VOICE => 8..=25,
        _ => match degree {
            0..=2 => 10..=40,
            3..=5 => 60..=150,
            6..=9 => 80..=180,
            _ => 100..=220,
        },
    }
}

/// The session that a frame belongs to and its number there.
fn flow(packet: &Packet) -> Option<((MeshId, MeshId), u32)> {
    if packet.kind != PacketType::NOISE_ENCRYPTED {
        return None;
    }
    let number = packet.payload().first_chunk()?;
    Some(((packet.sender, packet.recipient?), u32::from_be_bytes(*number)))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::packet::Header;

    #[test]
    fn frames_of_a_session_leave_in_order_on_their_last_hop() {
        let mut rng = StdRng::seed_from_u64(1);
        for arrival in [[0, 1, 2, 3, 4], [0, 4, 3, 2, 1], [0, 2, 1, 4, 3], [0, 3, 1, 2, 4]] {
            let mut relay = Relay::new(&Limits::default());
            arrival.iter().for_each(|n| assert!(hold(&mut relay, &mut rng, *n)));
            assert_eq!(drain(&mut relay), [0, 1, 2, 3, 4], "{arrival:?}");
        }
    }

    #[test]
    fn a_lost_frame_delays_those_behind_it_only_so_long() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut relay = Relay::new(&Limits::default());
        [0, 1, 3, 5, 4].iter().for_each(|n| assert!(hold(&mut relay, &mut rng, *n)));
        assert_eq!(drain(&mut relay), [0, 1, 3, 4, 5]);
    }

    #[test]
    fn a_new_session_counts_from_zero_without_waiting() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut relay = Relay::new(&Limits::default());
        [70, 71].iter().for_each(|n| assert!(hold(&mut relay, &mut rng, *n)));
        assert_eq!(drain(&mut relay), [70, 71]);
        [0, 1].iter().for_each(|n| assert!(hold(&mut relay, &mut rng, *n)));
        assert_eq!(drain(&mut relay), [0, 1]);
    }

    #[test]
    fn seven_hops_and_no_more_whatever_a_packet_claims() {
        let mut packet = frame(0);
        for (before, after) in [(0, None), (1, None), (2, Some(1)), (7, Some(6)), (255, Some(6))] {
            packet.hops_left = before;
            assert_eq!(hops_after(&packet, 2), after);
        }
    }

    #[test]
    fn text_for_all_goes_to_some_of_many_links_and_directed_text_to_all() {
        let links: Vec<_> = (0..9).map(|n| (LinkId(n), Role::Central)).collect();
        let mut packet = frame(0);
        packet.kind = PacketType::MESSAGE;
        assert_eq!(fan_out(&packet, &[], &links).len(), 9);
        assert_eq!(fan_out(&packet, &[LinkId(3)], &links), [LinkId(3)]);
        packet.recipient = None;
        assert_eq!(fan_out(&packet, &[], &links).len(), 5);
    }

    fn hold(relay: &mut Relay, rng: &mut StdRng, number: u32) -> bool {
        let packet = frame(number);
        let held = Held { key: Key::of(&packet), packet, from: LinkId(1) };
        relay.hold(Duration::ZERO, rng, 2, true, held)
    }

    fn drain(relay: &mut Relay) -> Vec<u32> {
        let mut numbers = Vec::new();
        while let Some(at) = relay.next_deadline() {
            for held in relay.due(at) {
                numbers.push(u32::from_be_bytes(*held.packet.payload().first_chunk().unwrap()));
            }
        }
        numbers
    }

    fn frame(number: u32) -> Packet {
        let header = Header {
            kind: PacketType::NOISE_ENCRYPTED,
            hops_left: 7,
            timestamp_ms: 5,
            sender: MeshId([1; 8]),
            recipient: Some(MeshId([2; 8])),
        };
        Packet::new(header, [&number.to_be_bytes()[..], &[0; 20]].concat())
    }
}
