//! A timer wheel with slots of a millisecond, for packets that are held (HTX reference, section
//! 4.1).
//!
//! The places for packets are allotted once; holding and releasing allocates nothing.

use std::time::{Duration, Instant};

use crate::{
    delay::LONGEST_DELAY,
    sphinx::{Packet, RelayId},
};

/// A packet that waits.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) to: RelayId,
    pub(super) packet: Packet,
}

pub(super) struct Wheel {
    start: Instant,
    /// Every millisecond before this one has been released.
    cursor: u64,
    /// The first place of each slot's list.
    slots: Box<[u32]>,
    /// Which slots have any.
    occupied: Box<[u64]>,
    places: Vec<Place>,
    /// The first of the places that are free.
    free: u32,
    held: usize,
    bytes: usize,
}

impl Wheel {
    pub(super) fn new(start: Instant, capacity: usize) -> Self {
        let count = u32::try_from(capacity).unwrap_or(NONE - 1);
        let next = |at: u32| if at + 1 == count { NONE } else { at + 1 };
        Self {
            start,
            cursor: 0,
            slots: vec![NONE; SLOTS].into_boxed_slice(),
            occupied: vec![0; SLOTS / 64].into_boxed_slice(),
            places: (0..count).map(|at| Place { held: None, next: next(at) }).collect(),
            free: if count == 0 { NONE } else { 0 },
            held: 0,
            bytes: 0,
        }
    }

    /// Holds a packet until `due`. The caller has checked that there is a place.
    pub(super) fn hold(&mut self, due: Instant, held: Held) {
        let Some(place) = self.places.get_mut(self.free as usize) else { return };
        // Never early: a part of a millisecond counts as a whole one.
        let elapsed = due.saturating_duration_since(self.start);
        let tick = elapsed.as_nanos().div_ceil(1_000_000) as u64;
        let tick = tick.clamp(self.cursor, self.cursor + SLOTS as u64 - 1);
        let slot = tick as usize % SLOTS;
        self.bytes += held.packet.as_bytes().len();
        self.held += 1;
        let at = self.free;
        self.free = place.next;
        *place = Place { held: Some(held), next: self.slots[slot] };
        self.slots[slot] = at;
        self.occupied[slot / 64] |= 1 << (slot % 64);
    }

    /// Takes out one packet that is due by `now`.
    pub(super) fn release(&mut self, now: Instant) -> Option<Held> {
        let tick = self.tick_at(now);
        let next = self.next_tick().unwrap_or(tick + 1);
        if next > tick {
            self.cursor = self.cursor.max(tick);
            return None;
        }
        self.cursor = next;
        let slot = next as usize % SLOTS;
        let at = self.slots[slot];
        let place = &mut self.places[at as usize];
        let held = place.held.take()?;
        self.slots[slot] = std::mem::replace(&mut place.next, self.free);
        self.free = at;
        if self.slots[slot] == NONE {
            self.occupied[slot / 64] &= !(1 << (slot % 64));
        }
        self.held -= 1;
        self.bytes -= held.packet.as_bytes().len();
        Some(held)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.next_tick().map(|tick| self.start + Duration::from_millis(tick))
    }

    pub(super) fn len(&self) -> usize {
        self.held
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn tick_at(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }

    /// The first millisecond from the cursor on that has a packet.
    fn next_tick(&self) -> Option<u64> {
        if self.held == 0 {
            return None;
        }
        let begin = self.cursor as usize % SLOTS;
        let words = SLOTS / 64;
        // The first word is looked at twice: from the cursor on, and at the end before it.
        (0..=words).find_map(|step| {
            let word = (begin / 64 + step) % words;
            let mask = match step {
                0 => u64::MAX << (begin % 64),
                _ if step == words => !(u64::MAX << (begin % 64)),
                _ => u64::MAX,
            };
            let bits = self.occupied[word] & mask;
            (bits != 0).then(|| {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                self.cursor + ((slot + SLOTS - begin) % SLOTS) as u64
            })
        })
    }
}

struct Place {
    held: Option<Held>,
    next: u32,
}

const NONE: u32 = u32::MAX;
const SLOTS: usize = 16_384;
const _: () = assert!(SLOTS.is_power_of_two() && SLOTS as u128 > LONGEST_DELAY.as_millis() + 1);

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::sphinx::Class;

    #[test]
    fn packets_come_out_when_they_are_due_and_not_before() {
        let start = start();
        let mut wheel = Wheel::new(start, 1000);
        let mut rng = StdRng::seed_from_u64(1);
        let mut expected: Vec<u64> = Vec::new();
        let mut now = 0;
        for step in 0..20_000_u64 {
            now += rng.random_range(0..30);
            let at = start + Duration::from_micros(now * 1000 + step % 1000);
            expected.sort_unstable();
            assert_eq!(
                wheel.next_deadline(),
                expected.first().map(|due| start + Duration::from_millis(*due))
            );
            while let Some(held) = wheel.release(at) {
                let due = expected.remove(0);
                assert!(due <= now, "released {} ms early", due - now);
                assert_eq!(held.to.0[..8], due.to_be_bytes());
            }
            assert!(expected.first().is_none_or(|due| *due > now));
            if wheel.len() < 1000 {
                let due = now + 1 + rng.random_range(0..9000);
                let mut to = RelayId([0; 32]);
                to.0[..8].copy_from_slice(&due.to_be_bytes());
                wheel.hold(start + Duration::from_millis(due), Held { to, packet: packet() });
                expected.push(due);
            }
            assert_eq!(wheel.len(), expected.len());
            assert_eq!(wheel.bytes(), expected.len() * Class::Small.packet_len());
        }
    }

    #[test]
    fn a_long_sleep_releases_everything_in_order() {
        let start = start();
        let mut wheel = Wheel::new(start, 100);
        for due in [9000, 10, 10_000, 500] {
            let to = RelayId([due as u8; 32]);
            wheel.hold(start + Duration::from_millis(due), Held { to, packet: packet() });
        }
        let much_later = start + Duration::from_secs(3600);
        let order: Vec<u8> =
            std::iter::from_fn(|| wheel.release(much_later)).map(|held| held.to.0[0]).collect();
        assert_eq!(order, [10, 500_u64 as u8, 9000_u64 as u8, 10_000_u64 as u8]);
        wheel.hold(
            much_later + Duration::from_millis(3),
            Held { to: RelayId([1; 32]), packet: packet() },
        );
        assert_eq!(wheel.next_deadline(), Some(much_later + Duration::from_millis(3)));
    }

    fn packet() -> Packet {
        Packet::from_bytes(vec![0; Class::Small.packet_len()]).unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "virtual time needs a start")]
    fn start() -> Instant {
        Instant::now()
    }
}
