//! The field itself, without I/O or clock: who is in range of whom, and what becomes of frames.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fieldpost_bitchat::Role;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{AirCounters, Scenario, protocol::ToRadio};

/// How often positions are looked at.
const STEP: Duration = Duration::from_millis(100);
/// A pair whose link was closed by one of them is left alone so long.
const REST: Duration = Duration::from_secs(3);
/// A link that stands holds so much farther than one is made.
const HOLD: f64 = 1.1;
/// Frames under way on one link in one direction; further ones are lost and counted.
const UNDER_WAY: usize = 256;

/// Stations that a refusal names.
const NAMED: usize = 16;

/// A message for one radio, by its name.
pub(super) type Out = (String, ToRadio);

pub(super) struct Medium {
    scenario: Scenario,
    rng: StdRng,
    present: BTreeSet<String>,
    links: BTreeMap<u64, Link>,
    resting: BTreeMap<(String, String), Duration>,
    air: BTreeMap<(Duration, u64), (u64, usize, Vec<u8>)>,
    count: u64,
    next_step: Duration,
    counters: AirCounters,
    out: Vec<Out>,
}

struct Link {
    /// The first is central.
    ends: [String; 2],
    max_frame: usize,
    arrives: [Duration; 2],
    under_way: [usize; 2],
}

impl Medium {
    pub(super) fn new(scenario: Scenario) -> Self {
        Self {
            rng: StdRng::seed_from_u64(scenario.seed),
            scenario,
            present: BTreeSet::new(),
            links: BTreeMap::new(),
            resting: BTreeMap::new(),
            air: BTreeMap::new(),
            count: 0,
            next_step: Duration::ZERO,
            counters: AirCounters::default(),
            out: Vec::new(),
        }
    }

    /// A radio joins.
    ///
    /// # Errors
    ///
    /// Why it may not: the scenario has none of that name, or it is there already.
    pub(super) fn join(&mut self, name: &str) -> Result<(), String> {
        if !self.scenario.stations.contains_key(name) {
            let mut known: Vec<&str> =
                self.scenario.stations.keys().take(NAMED).map(String::as_str).collect();
            if self.scenario.stations.len() > NAMED {
                known.push("…");
            }
            let known = known.join(", ");
            return Err(format!("its scenario has no station {name:?}: there are {known}"));
        }
        if !self.present.insert(name.to_owned()) {
            return Err(format!("another radio is its station {name:?}: take another one"));
        }
        Ok(())
    }

    pub(super) fn leave(&mut self, name: &str) {
        self.present.remove(name);
        self.cut(|link| link.ends.iter().any(|end| end == name));
    }

    /// A radio puts a frame on a link.
    pub(super) fn frame(&mut self, now: Duration, from: &str, id: u64, bytes: Vec<u8>) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(end) = link.ends.iter().position(|end| end == from) else { return };
        let to = 1 - end;
        let full = link.under_way[to] >= UNDER_WAY;
        if full || bytes.len() > link.max_frame || self.rng.random_bool(self.scenario.loss) {
            self.counters.lost += 1;
            return;
        }
        let [least, most] = self.scenario.delay_ms;
        let delay = Duration::from_millis(self.rng.random_range(least..=most));
        // A link keeps its order.
        let at = (now + delay).max(link.arrives[to]);
        link.arrives[to] = at;
        link.under_way[to] += 1;
        self.air.insert((at, self.count), (id, to, bytes));
        self.count += 1;
    }

    /// A radio closes a link.
    pub(super) fn disconnect(&mut self, now: Duration, from: &str, id: u64) {
        let ends = self.links.get(&id).map(|link| link.ends.clone());
        if let Some([a, b]) = ends.filter(|ends| ends.iter().any(|end| end == from)) {
            self.resting.insert((a, b), now + REST);
            self.cut_links(&[id]);
        }
    }

    /// Lets time pass; gives what the radios are to be told.
    pub(super) fn advance(&mut self, now: Duration) -> impl Iterator<Item = Out> {
        while let Some(entry) = self.air.first_entry().filter(|entry| entry.key().0 <= now) {
            let (id, to, bytes) = entry.remove();
            if let Some(link) = self.links.get_mut(&id) {
                link.under_way[to] -= 1;
                self.counters.carried += 1;
                self.out.push((link.ends[to].clone(), ToRadio::Frame { link: id, bytes }));
            }
        }
        if self.next_step <= now {
            self.next_step = now + STEP;
            self.move_stations(now);
        }
        self.out.drain(..)
    }

    pub(super) fn next_deadline(&self) -> Duration {
        let frame = self.air.first_key_value().map(|((at, _), _)| *at);
        frame.map_or(self.next_step, |at| at.min(self.next_step))
    }

    pub(super) fn counters(&self) -> AirCounters {
        AirCounters { links: self.links.len(), ..self.counters }
    }

    fn move_stations(&mut self, now: Duration) {
        self.resting.retain(|_, until| *until > now);
        let places: BTreeMap<String, (f64, f64)> = self
            .present
            .iter()
            .filter_map(|name| Some((name.clone(), self.scenario.stations[name].place(now)?)))
            .collect();
        let range = self.scenario.range_m;
        let within = |a: &str, b: &str, range: f64| match (places.get(a), places.get(b)) {
            (Some(a), Some(b)) => (a.0 - b.0).hypot(a.1 - b.1) <= range,
            _ => false,
        };
        self.cut(|link| !within(&link.ends[0], &link.ends[1], range * HOLD));
        for (a, b) in pairs(&places) {
            let taken = |name: &str| {
                self.links.values().filter(|link| link.ends.iter().any(|end| end == name)).count()
            };
            let room = |name: &str| taken(name) < self.scenario.stations[name].max_links;
            let joined = self.links.values().any(|link| link.ends == [a.clone(), b.clone()]);
            let rests = self.resting.contains_key(&(a.clone(), b.clone()));
            if !joined && !rests && room(&a) && room(&b) && within(&a, &b, range) {
                self.connect(now, a, b);
            }
        }
    }

    fn connect(&mut self, now: Duration, a: String, b: String) {
        let frame = |name: &str| self.scenario.stations[name].max_frame();
        let max_frame = frame(&a).min(frame(&b));
        let link = self.count;
        self.count += 1;
        for (name, role) in [(&a, Role::Central), (&b, Role::Peripheral)] {
            self.out.push((name.clone(), ToRadio::Up { link, role, max_frame }));
        }
        let ends = [a, b];
        self.links.insert(link, Link { ends, max_frame, arrives: [now; 2], under_way: [0; 2] });
    }

    fn cut(&mut self, is_cut: impl Fn(&Link) -> bool) {
        let cut: Vec<u64> =
            self.links.iter().filter(|(_, link)| is_cut(link)).map(|(id, _)| *id).collect();
        self.cut_links(&cut);
    }

    /// What was under way on these links is lost.
    fn cut_links(&mut self, cut: &[u64]) {
        for id in cut {
            if let Some(link) = self.links.remove(id) {
                let down = |name| (name, ToRadio::Down { link: *id });
                self.out.extend(link.ends.into_iter().map(down));
            }
        }
        let before = self.air.len();
        self.air.retain(|_, (id, ..)| !cut.contains(id));
        self.counters.lost += (before - self.air.len()) as u64;
    }
}

fn pairs(places: &BTreeMap<String, (f64, f64)>) -> Vec<(String, String)> {
    let names: Vec<&String> = places.keys().collect();
    let rest = |i: usize| names[i + 1..].iter().map(move |b| (i, (*b).clone()));
    (0..names.len()).flat_map(rest).map(|(i, b)| (names[i].clone(), b)).collect()
}
