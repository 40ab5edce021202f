//! What the field looks like: a JSON file.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use thiserror::Error;

/// The smallest ATT MTU, and the largest that is of use.
const MTU: std::ops::RangeInclusive<u16> = 23..=517;
const MAX_STATIONS: usize = 1000;

/// A field and those in it.
///
/// ```json
/// {
///   "seed": 7, "range_m": 30, "loss": 0.02, "delay_ms": [10, 60],
///   "stations": {
///     "a": {"path": [{"x": 0, "y": 0}]},
///     "b": {"path": [{"x": 20, "y": 0}, {"at_s": 60, "x": 200, "y": 0}], "mtu": 185},
///     "c": {"path": [{"x": 40, "y": 0}], "dark_s": [[30, 45]], "max_links": 2}
///   }
/// }
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// For what the air loses and delays.
    #[serde(default)]
    pub seed: u64,
    /// How far a radio reaches, in metres. A link that stands holds a tenth farther.
    pub range_m: f64,
    /// The share of frames that are lost.
    #[serde(default)]
    pub loss: f64,
    /// How long a frame takes, at least and at most.
    #[serde(default = "quick")]
    pub delay_ms: [u64; 2],
    /// Who may join, by name.
    pub stations: BTreeMap<String, Station>,
}

/// One radio.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Station {
    /// Where it is and when; between two places it moves in a straight line.
    pub path: Vec<Position>,
    /// The ATT MTU it agrees to, 23 to 517. A frame is 3 bytes less, and at most 512.
    #[serde(default = "largest")]
    pub mtu: u16,
    /// How many links it keeps.
    #[serde(default = "eight")]
    pub max_links: usize,
    /// When it hears and says nothing, from and to, in seconds.
    #[serde(default)]
    pub dark_s: Vec<[f64; 2]>,
}

/// A place at a time.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Seconds since the field was opened.
    #[serde(default)]
    pub at_s: f64,
    /// Metres.
    pub x: f64,
    /// Metres.
    pub y: f64,
}

/// Why a scenario cannot be played.
#[derive(Debug, Error)]
pub enum ScenarioError {
    /// It is not JSON, or not of this shape.
    #[error("the scenario cannot be read")]
    Json(#[from] serde_json::Error),
    /// A value that makes no sense.
    #[error("{0}")]
    Value(String),
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    ///
    /// It is not JSON of this shape, or a value makes no sense.
    pub fn parse(json: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = serde_json::from_str(json)?;
        let check = |is_good: bool, what: &str| match is_good {
            true => Ok(()),
            false => Err(ScenarioError::Value(what.to_owned())),
        };
        check(scenario.range_m > 0.0 && scenario.range_m.is_finite(), "range_m must be positive")?;
        check((0.0..=1.0).contains(&scenario.loss), "loss must be from 0 to 1")?;
        let [least, most] = scenario.delay_ms;
        check(least <= most && most <= 60_000, "delay_ms must be [least, most], at most 60000")?;
        check(scenario.stations.len() <= MAX_STATIONS, "there are more than 1000 stations")?;
        for (name, station) in &scenario.stations {
            let is_good = (1..=64).contains(&name.len())
                && !station.path.is_empty()
                && MTU.contains(&station.mtu)
                && station.path.iter().all(|p| [p.at_s, p.x, p.y].iter().all(|v| v.is_finite()))
                && station.path.is_sorted_by(|a, b| a.at_s <= b.at_s);
            check(is_good, &format!("station {name}: path in order of time, mtu from 23 to 517"))?;
        }
        Ok(scenario)
    }
}

impl Station {
    /// Where it is; `None` while it is dark.
    pub(super) fn place(&self, at: Duration) -> Option<(f64, f64)> {
        let at = at.as_secs_f64();
        if self.dark_s.iter().any(|[from, to]| (*from..*to).contains(&at)) {
            return None;
        }
        let next = self.path.partition_point(|position| position.at_s <= at);
        let Some(before) = next.checked_sub(1).map(|i| self.path[i]) else {
            return self.path.first().map(|first| (first.x, first.y));
        };
        let Some(after) = self.path.get(next) else { return Some((before.x, before.y)) };
        let share = (at - before.at_s) / (after.at_s - before.at_s);
        let between = |a: f64, b: f64| a + (b - a) * share;
        Some((between(before.x, after.x), between(before.y, after.y)))
    }

    pub(super) fn max_frame(&self) -> usize {
        usize::from(self.mtu - 3).min(fieldpost_bitchat::MAX_FRAME)
    }
}

fn quick() -> [u64; 2] {
    [5, 15]
}

fn largest() -> u16 {
    517
}

fn eight() -> usize {
    8
}
