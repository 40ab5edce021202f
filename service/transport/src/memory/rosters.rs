//! Rosters on a memory network: each gateway is told the newest of everybody whom it hears.
//!
//! Nothing is queued but what a test injects. Whoever takes rosters looks at what the others have
//! published last; so a roster is told when a way opens, and one that nobody took is replaced by the
//! next. Faults apply as to a link that notices loss: a cut or silent way tells nothing until it
//! heals, any other tells everything.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, PoisonError},
};

use fieldpost_envelope::{GatewayId, SignedRoster};
use tokio::sync::Notify;

use super::{Medium, MemoryTransport};
use crate::{HeardRoster, SendError};

/// Injected rosters that wait for one gateway; one more pushes out the first.
const INJECTED: usize = 64;

/// What an end has published, and how it is woken.
#[derive(Debug, Default)]
pub(super) struct Rosters {
    newest: Option<Published>,
    /// Whether others hear it as nearby.
    is_nearby: bool,
    injected: VecDeque<HeardRoster>,
    pub(super) changed: Arc<Notify>,
}

#[derive(Debug)]
struct Published {
    number: u64,
    whole: Vec<u8>,
    delta: Option<(u64, Vec<u8>)>,
}

impl Rosters {
    pub(super) fn new(is_nearby: bool) -> Self {
        Self { is_nearby, ..Self::default() }
    }
}

/// What one end was told: by gateway, which joining of it and which roster.
pub(super) type Told = BTreeMap<GatewayId, (u64, u64)>;

impl Medium {
    pub(super) fn wake_for_rosters(&self) {
        self.ends.values().for_each(|end| end.rosters.changed.notify_one());
    }

    /// The next roster that `to` has not been told.
    fn next_roster(&mut self, to: GatewayId, told: &mut Told) -> Option<HeardRoster> {
        if let Some(own) = self.ends.get_mut(&to)
            && let Some(injected) = own.rosters.injected.pop_front()
        {
            return Some(injected);
        }
        for (from, end) in &self.ends {
            let is_silent = self.faults(*from, to).loss >= 1.0;
            let Some(newest) = &end.rosters.newest else { continue };
            let known = told.get(from).filter(|(joined, _)| *joined == end.number);
            if known.is_some_and(|(_, number)| *number >= newest.number)
                || is_silent
                || !self.reaches(*from, to)
            {
                continue;
            }
            let delta = newest
                .delta
                .as_ref()
                .filter(|(base, _)| known.is_some_and(|(_, number)| number == base));
            let bytes = delta.map_or(&newest.whole, |(_, delta)| delta).clone();
            told.insert(*from, (end.number, newest.number));
            return Some(HeardRoster { bytes, is_nearby: end.rosters.is_nearby });
        }
        None
    }
}

impl MemoryTransport {
    /// Tells `target` bytes that need not be a roster, as a neighbour might that means ill.
    ///
    /// # Errors
    ///
    /// Nothing leads there, or this end was replaced.
    pub fn inject_roster(&self, target: &str, heard: HeardRoster) -> Result<(), SendError> {
        let mut medium = self.network.lock();
        for to in self.recipients(&medium, target)? {
            if let Some(end) = medium.ends.get_mut(&to) {
                if end.rosters.injected.len() >= INJECTED {
                    end.rosters.injected.pop_front();
                }
                end.rosters.injected.push_back(heard.clone());
                end.rosters.changed.notify_one();
            }
        }
        Ok(())
    }

    pub(super) fn publish_roster(&self, roster: &SignedRoster, delta: Option<&SignedRoster>) {
        let mut medium = self.network.lock();
        let Some(end) = medium.ends.get_mut(&self.gateway) else { return };
        if end.number != self.number {
            return;
        }
        let delta = delta.and_then(|delta| Some((delta.base()?, delta.as_bytes().to_vec())));
        end.rosters.newest =
            Some(Published { number: roster.number(), whole: roster.as_bytes().to_vec(), delta });
        medium.wake_for_rosters();
    }

    pub(super) fn tell_again(&self, gateway: GatewayId) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(&gateway);
        self.network.lock().wake_for_rosters();
    }

    pub(super) async fn next_roster(&self) -> Option<HeardRoster> {
        loop {
            let changed = {
                let mut medium = self.network.lock();
                let end = medium.ends.get(&self.gateway).filter(|end| end.number == self.number)?;
                let changed = end.rosters.changed.clone();
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(heard) = medium.next_roster(self.gateway, &mut told) {
                    return Some(heard);
                }
                changed
            };
            changed.notified().await;
        }
    }
}
