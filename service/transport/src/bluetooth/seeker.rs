//! Whom to connect to, when, and when to listen: what iOS does (BitChat protocol reference,
//! section 1.3), with back-off for those that do not answer.
//!
//! Nothing here performs I/O or reads a clock. `now` is the time since any fixed moment and must
//! not go backwards from one call to the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{Rng, RngExt};

/// Links that we made, at once.
pub(super) const LINKS: usize = 6;
/// Neighbours remembered; beyond it the weakest makes room.
const CANDIDATES: usize = 100;
/// A neighbour not heard for so long is forgotten.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Between two attempts, whoever is meant.
const SPACING: Duration = Duration::from_millis(500);
/// Two that find each other at the same moment would collide at each attempt without it.
const JITTER: Duration = Duration::from_millis(400);
/// After a link went down, before the same neighbour is tried again.
const AFTER_DROP: Duration = Duration::from_secs(3);
/// After an attempt failed; twice as long after each further one.
const AFTER_FAILURE: Duration = Duration::from_secs(15);
const AFTER_WEAK_FAILURE: Duration = Duration::from_secs(30);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(240);
/// A first failure is often two that tried each other at once; it costs little to try again. A system
/// that connects is mostly not to be found meanwhile, so two that keep step would never meet.
const AFTER_COLLISION: Duration = Duration::from_secs(2);
const COLLISION_JITTER: Duration = Duration::from_secs(4);
/// For a connection to come about (BitChat protocol reference, section 1.3), for the same reason not
/// always as long.
const PATIENCE: std::ops::RangeInclusive<f64> = 4.0..=8.0;

/// Signal strengths in dBm below which nobody is tried.
const FLOOR: i16 = -90;
const FLOOR_WHEN_FULL: i16 = -85;
const FLOOR_WHEN_ALONE: i16 = -95;
const FLOOR_WHEN_LONG_ALONE: i16 = -100;
const LONG_ALONE: Duration = Duration::from_secs(30);

/// With so few links, or after traffic, the radio listens all the time.
const FEW_LINKS: usize = 2;
const TRAFFIC: Duration = Duration::from_secs(10);
const MANY_LINKS: usize = 6;
const DUTY: Duty = Duty { on: Duration::from_secs(5), off: Duration::from_secs(10) };
const DUTY_WHEN_MANY: Duty = Duty { on: Duration::from_secs(3), off: Duration::from_secs(15) };

struct Duty {
    on: Duration,
    off: Duration,
}

/// Neighbours heard, and what came of trying them.
pub(super) struct Seeker<P, R> {
    rng: R,
    candidates: BTreeMap<P, Candidate>,
    connected: BTreeSet<P>,
    trying: Option<P>,
    next_attempt: Duration,
    /// Links of both roles.
    links: usize,
    /// Since when there has been none.
    alone_since: Duration,
    traffic_at: Option<Duration>,
    listening_since: Duration,
}

#[derive(Clone, Copy)]
struct Candidate {
    /// In dBm, where the radio tells it.
    strength: Option<i16>,
    heard_at: Duration,
    not_before: Duration,
    failures: u32,
}

impl<P: Clone + Ord, R: Rng> Seeker<P, R> {
    pub(super) fn new(rng: R) -> Self {
        Self {
            rng,
            candidates: BTreeMap::new(),
            connected: BTreeSet::new(),
            trying: None,
            next_attempt: Duration::ZERO,
            links: 0,
            alone_since: Duration::ZERO,
            traffic_at: None,
            listening_since: Duration::ZERO,
        }
    }

    /// A neighbour was heard.
    pub(super) fn heard(&mut self, now: Duration, peer: P, strength: Option<i16>) {
        if let Some(known) = self.candidates.get_mut(&peer) {
            known.heard_at = now;
            known.strength = strength.or(known.strength);
            return;
        }
        if self.candidates.len() >= CANDIDATES && !self.make_room(strength) {
            return;
        }
        let not_before = now + self.jitter();
        let candidate = Candidate { strength, heard_at: now, not_before, failures: 0 };
        self.candidates.insert(peer, candidate);
    }

    /// A neighbour's connection stands and needs a link of ours: it is tried at once.
    pub(super) fn urged(&mut self, now: Duration, peer: P) {
        self.heard(now, peer.clone(), None);
        if let Some(candidate) = self.candidates.get_mut(&peer) {
            (candidate.not_before, candidate.failures) = (now, 0);
        }
    }

    /// Whom to connect to now, if anybody; not to those that have connected to us (`is_taken`). One
    /// attempt at a time: it must be answered with [`connected`](Self::connected) or
    /// [`failed`](Self::failed).
    pub(super) fn next_attempt(
        &mut self,
        now: Duration,
        is_taken: impl Fn(&P) -> bool,
    ) -> Option<P> {
        self.candidates.retain(|peer, candidate| {
            candidate.heard_at + REMEMBERED > now || self.connected.contains(peer)
        });
        if self.trying.is_some() || self.connected.len() >= LINKS || self.next_attempt > now {
            return None;
        }
        let floor = self.floor(now);
        let (peer, _) = self
            .candidates
            .iter()
            .filter(|(peer, _)| !self.connected.contains(*peer) && !is_taken(peer))
            .filter(|(_, candidate)| candidate.not_before <= now)
            // An unknown strength is no reason to leave somebody out.
            .filter(|(_, candidate)| candidate.strength.is_none_or(|strength| strength >= floor))
            .max_by_key(|(_, candidate)| {
                (std::cmp::Reverse(candidate.failures), candidate.strength)
            })?;
        let peer = peer.clone();
        self.trying = Some(peer.clone());
        Some(peer)
    }

    /// The attempt came to a link.
    pub(super) fn connected(&mut self, now: Duration, peer: &P) {
        self.trying = None;
        self.next_attempt = now + SPACING;
        if let Some(candidate) = self.candidates.get_mut(peer) {
            candidate.failures = 0;
            candidate.heard_at = now;
        }
        self.connected.insert(peer.clone());
    }

    /// The attempt came to nothing.
    pub(super) fn failed(&mut self, now: Duration, peer: &P) {
        self.trying = None;
        self.next_attempt = now + SPACING;
        let jitter = self.jitter();
        let collision =
            AFTER_COLLISION + COLLISION_JITTER.mul_f64(self.rng.random_range(0.0..=1.0));
        if let Some(candidate) = self.candidates.get_mut(peer) {
            let is_weak = candidate.strength.is_some_and(|strength| strength <= FLOOR);
            let first = if is_weak { AFTER_WEAK_FAILURE } else { AFTER_FAILURE };
            let wait = match candidate.failures {
                0 if !is_weak => collision,
                failures => {
                    (first * (1 << failures.saturating_sub(1).min(8))).min(LONGEST_BACK_OFF)
                }
            };
            candidate.failures += 1;
            candidate.not_before = now + wait + jitter;
        }
    }

    /// How long to wait for the next connection.
    pub(super) fn patience(&mut self) -> Duration {
        Duration::from_secs_f64(self.rng.random_range(PATIENCE))
    }

    /// A link that we had made is gone.
    pub(super) fn dropped(&mut self, now: Duration, peer: &P) {
        self.connected.remove(peer);
        let jitter = self.jitter();
        if let Some(candidate) = self.candidates.get_mut(peer) {
            // It was there a moment ago, and an adapter may never tell of it again.
            candidate.heard_at = now;
            candidate.not_before = now + AFTER_DROP + jitter;
        }
    }

    /// How many links of either role stand.
    pub(super) fn set_links(&mut self, now: Duration, links: usize) {
        if links == 0 && self.links > 0 {
            self.alone_since = now;
        }
        if (links > FEW_LINKS) != (self.links > FEW_LINKS) {
            self.listening_since = now;
        }
        self.links = links;
    }

    /// Frames crossed some link.
    pub(super) fn note_traffic(&mut self, now: Duration) {
        self.traffic_at = Some(now);
    }

    /// Whether the radio should listen for neighbours now. Not while it connects: many adapters
    /// cannot do both.
    pub(super) fn is_listening(&self, now: Duration) -> bool {
        if self.trying.is_some() {
            return false;
        }
        let is_busy = self.traffic_at.is_some_and(|at| at + TRAFFIC > now);
        let is_full = self.connected.len() >= LINKS;
        if !is_full && (self.links <= FEW_LINKS || is_busy) {
            return true;
        }
        self.place_in_cycle(now) < self.duty().on
    }

    /// When to ask again at the latest.
    pub(super) fn next_deadline(&self, now: Duration) -> Duration {
        let duty = self.duty();
        let place = self.place_in_cycle(now);
        let turn = now + if place < duty.on { duty.on - place } else { duty.on + duty.off - place };
        let ready = self
            .candidates
            .iter()
            .filter(|(peer, _)| !self.connected.contains(*peer))
            .map(|(_, candidate)| candidate.not_before.max(self.next_attempt))
            .filter(|at| *at > now)
            .min();
        ready.map_or(turn, |ready| ready.min(turn))
    }

    fn duty(&self) -> &'static Duty {
        if self.links >= MANY_LINKS || self.connected.len() >= LINKS {
            &DUTY_WHEN_MANY
        } else {
            &DUTY
        }
    }

    fn place_in_cycle(&self, now: Duration) -> Duration {
        let Duty { on, off } = self.duty();
        let length = (*on + *off).as_nanos();
        let place = now.saturating_sub(self.listening_since).as_nanos() % length;
        Duration::from_nanos(u64::try_from(place).unwrap_or(0))
    }

    fn floor(&self, now: Duration) -> i16 {
        let is_full = self.candidates.len() >= CANDIDATES || self.connected.len() + 1 >= LINKS;
        match self.links {
            0 if now >= self.alone_since + LONG_ALONE => FLOOR_WHEN_LONG_ALONE,
            0 => FLOOR_WHEN_ALONE,
            _ if is_full => FLOOR_WHEN_FULL,
            _ => FLOOR,
        }
    }

    /// Forgets the weakest neighbour that is weaker than a new one.
    fn make_room(&mut self, strength: Option<i16>) -> bool {
        let weakest = self
            .candidates
            .iter()
            .filter(|(peer, _)| !self.connected.contains(*peer))
            .min_by_key(|(_, candidate)| candidate.strength)
            .filter(|(_, candidate)| candidate.strength < strength)
            .map(|(peer, _)| peer.clone());
        weakest.is_some_and(|peer| self.candidates.remove(&peer).is_some())
    }

    fn jitter(&mut self) -> Duration {
        JITTER.mul_f64(self.rng.random_range(0.0..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn a_neighbour_that_is_heard_is_tried_within_half_a_second() {
        let mut seeker = seeker();
        seeker.heard(at(1000), 7, Some(-60));
        assert_eq!(seeker.next_attempt(at(1400), nobody), Some(7));
        assert!(!seeker.is_listening(at(1400)), "it cannot listen while it connects");
        assert_eq!(seeker.next_attempt(at(1500), nobody), None, "one attempt at a time");
        seeker.connected(at(2000), &7);
        assert_eq!(seeker.next_attempt(at(9000), nobody), None, "the link stands");
    }

    #[test]
    fn who_is_connected_and_hears_nothing_is_tried_at_once() {
        let mut seeker = seeker();
        seeker.heard(at(0), 7, Some(-60));
        assert_eq!(seeker.next_attempt(at(400), nobody), Some(7));
        seeker.failed(at(500), &7);
        seeker.urged(at(1000), 7);
        assert_eq!(seeker.next_attempt(at(1000), nobody), Some(7));
    }

    #[test]
    fn who_has_connected_to_us_is_left_alone() {
        let mut seeker = seeker();
        seeker.heard(at(0), 1, Some(-40));
        seeker.heard(at(0), 2, Some(-80));
        assert_eq!(seeker.next_attempt(at(500), |peer| *peer == 1), Some(2));
    }

    #[test]
    fn attempts_are_half_a_second_apart_and_the_strongest_comes_first() {
        let mut seeker = seeker();
        for (peer, strength) in [(1, -80), (2, -40), (3, -60)] {
            seeker.heard(at(0), peer, Some(strength));
        }
        assert_eq!(seeker.next_attempt(at(500), nobody), Some(2));
        seeker.connected(at(600), &2);
        assert_eq!(seeker.next_attempt(at(1000), nobody), None);
        assert_eq!(seeker.next_attempt(at(1100), nobody), Some(3));
    }

    #[test]
    fn six_links_are_enough() {
        let mut seeker = seeker();
        let mut now = at(0);
        for peer in 0..8 {
            seeker.heard(now, peer, Some(-50));
        }
        let mut made = 0;
        while let Some(peer) = {
            now += Duration::from_secs(1);
            seeker.next_attempt(now, nobody)
        } {
            seeker.connected(now, &peer);
            made += 1;
        }
        assert_eq!(made, LINKS);
        assert!(!seeker.is_listening(now) || seeker.next_deadline(now) < now + DUTY_WHEN_MANY.on);
    }

    #[test]
    fn who_does_not_answer_is_tried_less_and_less_often() {
        let mut seeker = seeker();
        let (mut now, mut waits) = (at(0), Vec::new());
        let mut last = now;
        while waits.len() < 8 {
            seeker.heard(now, 1, Some(-70));
            if let Some(peer) = seeker.next_attempt(now, nobody) {
                seeker.failed(now, &peer);
                waits.push((now - last).as_secs());
                last = now;
            }
            now += Duration::from_millis(100);
        }
        assert!((2..=6).contains(&waits[1]), "{waits:?}");
        assert_eq!(&waits[2..6], [15, 30, 60, 120], "{waits:?}");
        assert!(waits[7] <= 241, "{waits:?}");
    }

    #[test]
    fn after_a_drop_there_is_a_pause_and_then_another_try() {
        let mut seeker = seeker();
        seeker.heard(at(0), 1, None);
        assert_eq!(seeker.next_attempt(at(500), nobody), Some(1));
        seeker.connected(at(500), &1);
        seeker.dropped(at(100_000), &1);
        assert_eq!(seeker.next_attempt(at(102_900), nobody), None);
        assert_eq!(seeker.next_attempt(at(103_500), nobody), Some(1));
    }

    #[test]
    fn who_is_not_heard_for_a_minute_is_forgotten() {
        let mut seeker = seeker();
        seeker.heard(at(0), 1, Some(-70));
        assert_eq!(seeker.next_attempt(at(60_000), nobody), None);
    }

    #[test]
    fn weak_neighbours_are_tried_by_those_that_are_alone() {
        for (links, now, strength, is_tried) in [
            (0, 1_000, -95, true),
            (0, 1_000, -96, false),
            (0, 31_000, -100, true),
            (1, 1_000, -90, true),
            (1, 31_000, -91, false),
        ] {
            let mut seeker = seeker();
            seeker.set_links(at(0), links);
            seeker.heard(at(now - 500), 1, Some(strength));
            assert_eq!(
                seeker.next_attempt(at(now), nobody).is_some(),
                is_tried,
                "{links} {now} {strength}"
            );
        }
    }

    #[test]
    fn with_many_links_and_no_traffic_the_radio_rests_most_of_the_time() {
        let mut seeker = seeker();
        let share = |seeker: &Seeker<u8, StdRng>| {
            (0..180).filter(|second| seeker.is_listening(at(second * 1000))).count()
        };
        assert_eq!(share(&seeker), 180);
        seeker.set_links(at(0), 3);
        assert_eq!(share(&seeker), 60);
        seeker.set_links(at(0), 6);
        assert_eq!(share(&seeker), 30);
        seeker.note_traffic(at(0));
        assert!(seeker.is_listening(at(9_000)));
    }

    #[test]
    fn a_crowd_is_bounded_and_keeps_the_strongest() {
        let mut seeker = Seeker::new(StdRng::seed_from_u64(1));
        for peer in 0..500u32 {
            seeker.heard(at(0), peer, Some(-99));
        }
        assert_eq!(seeker.candidates.len(), CANDIDATES);
        seeker.heard(at(0), 1000, Some(-50));
        assert_eq!(seeker.candidates.len(), CANDIDATES);
        assert_eq!(seeker.next_attempt(at(500), nobody), Some(1000));
    }

    fn seeker() -> Seeker<u8, StdRng> {
        Seeker::new(StdRng::seed_from_u64(7))
    }

    fn nobody<P>(_: &P) -> bool {
        false
    }

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }
}
