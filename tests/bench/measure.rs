//! Processor time, memory and distributions.

use std::{collections::HashMap, fs, time::Duration};

/// Processor time of a process and of all that it started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    pub(crate) own: Duration,
    pub(crate) descendants: Duration,
}

impl Cpu {
    pub(crate) fn all(self) -> Duration {
        self.own + self.descendants
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            own: self.own.saturating_sub(earlier.own),
            descendants: self.descendants.saturating_sub(earlier.descendants),
        }
    }
}

/// The processor time that process `pid` and its descendants have used. Those that have ended are
/// counted with whoever waited for them.
pub(crate) fn cpu_of(pid: u32) -> Cpu {
    let mut times = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { continue };
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<u64> =
            fields.split(' ').skip(1).map(|field| field.parse().unwrap_or(0)).collect();
        // After the state: parent, then 9 others, then user and system ticks, and those of
        // children that were waited for.
        times.insert(process, (fields[0] as u32, fields[10..14].iter().sum::<u64>()));
    }
    let ticks = |ticks: u64| Duration::from_millis(ticks * 10);
    let is_below = |mut process: u32| {
        while let Some((parent, _)) = times.get(&process) {
            if *parent == pid {
                return true;
            }
            process = *parent;
        }
        false
    };
    let own = times.get(&pid).map_or(Duration::ZERO, |(_, own)| ticks(*own));
    let descendants = times
        .iter()
        .filter(|(process, _)| is_below(**process))
        .map(|(_, (_, own))| ticks(*own))
        .sum();
    Cpu { own, descendants }
}

/// Resident memory of one process, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Durations, to be asked for their quantiles.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured(Vec<Duration>);

impl Measured {
    pub(crate) fn add(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value below which `share` of all lie.
    pub(crate) fn quantile(&mut self, share: f64) -> Duration {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        self.0.get((share * last as f64).round() as usize).copied().unwrap_or_default()
    }
}

/// The middle one of several runs.
pub(crate) fn median(mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs.get(runs.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}
