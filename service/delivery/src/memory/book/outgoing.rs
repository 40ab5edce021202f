//! What is owed to elsewhere: claimed, tried, and due again when it has come into reach.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::TimeDelta;
use fieldpost_envelope::{LaneSeq, MessageStatus};

use super::{
    Book,
    delivery::{Away, Delivery, Key, Part},
};
use crate::{
    AtOnce, Attempt, Claim, Message, Next, Settled, Submission, Target, Time, predecessor,
    retry::later,
};

#[derive(Debug, Default)]
pub(super) struct LaneOut {
    last: u64,
    pub(super) live: BTreeSet<LaneSeq>,
}

impl Book {
    pub(in crate::memory) fn claim_due(
        &mut self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> Vec<Claim> {
        let reachable: BTreeSet<&str> = reachable.iter().map(String::as_str).collect();
        let mut due: Vec<_> = self
            .attempts_due
            .iter()
            .take_while(|(at, _)| *at <= now)
            .filter(|(_, key)| self.may_be_claimed(now, key, &reachable))
            .map(|(at, key)| (std::cmp::Reverse(self.deliveries[key].message.priority), *at, key))
            .collect();
        due.sort_by_key(|(priority, at, key)| (*priority, *at, self.deliveries[*key].accepted_at));
        let keys: Vec<_> = due.into_iter().take(limit).map(|(_, _, key)| key.clone()).collect();
        keys.into_iter().filter_map(|key| self.claim(now, lease, key)).collect()
    }

    /// Claims what has just been accepted of this submission, as far as it may leave at once.
    pub(in crate::memory) fn claim_at_once(
        &mut self,
        now: Time,
        submission: &Submission,
        at_once: AtOnce<'_>,
    ) -> Vec<Claim> {
        let reachable: BTreeSet<&str> = at_once.reachable.iter().map(String::as_str).collect();
        let Message { sender, id, .. } = &submission.message;
        let key = |target: &Target| Key { sender: sender.clone(), id: *id, target: target.clone() };
        let targets = submission.deliveries.iter().filter(|target| !is_phone(target));
        let keys: BTreeSet<_> = targets.map(key).collect();
        let keys = keys.into_iter().filter(|key| self.may_be_claimed(now, key, &reachable));
        let keys: Vec<_> = keys.collect();
        keys.into_iter().filter_map(|key| self.claim(now, at_once.lease, key)).collect()
    }

    fn may_be_claimed(&self, now: Time, key: &Key, reachable: &BTreeSet<&str>) -> bool {
        let Some(delivery) = self.deliveries.get(key) else { return false };
        let in_reach =
            key.target.reached_through().is_some_and(|name| reachable.contains(name.as_str()));
        // A phone cannot put messages in order, so it gets the next one when it has the last.
        let in_turn = !is_phone(&key.target) || self.after(delivery).is_none();
        in_reach && in_turn && delivery.message.expires_at > now
    }

    fn claim(&mut self, now: Time, lease: Duration, key: Key) -> Option<Claim> {
        let after = self.after(self.deliveries.get(&key)?);
        let delivery = self.deliveries.get_mut(&key)?;
        let Part::Away(away) = &mut delivery.part else { return None };
        away.claims += 1;
        away.open_claims.insert(away.claims);
        let claim = Claim {
            message: Message::clone(&delivery.message),
            accepted_at: delivery.accepted_at,
            target: key.target.clone(),
            attempt: away.claims,
            lane_seq: away.lane.as_ref().map(|(_, lane_seq)| *lane_seq),
            after,
            claimed_until: later(now, lease),
        };
        self.set_due(&key, Some(claim.claimed_until));
        Some(claim)
    }

    fn after(&self, delivery: &Delivery) -> Option<LaneSeq> {
        let Part::Away(Away { lane: Some((lane, lane_seq)), .. }) = &delivery.part else {
            return None;
        };
        predecessor(self.lanes_out.get(lane)?.live.iter().copied(), *lane_seq)
    }

    pub(in crate::memory) fn record(
        &mut self,
        now: Time,
        claim: &Claim,
        attempts: &[Attempt],
        next: &Next,
    ) -> Option<Settled> {
        let sender = claim.message.sender.clone();
        let key = Key { sender, id: claim.message.id, target: claim.target.clone() };
        let delivery = self.deliveries.get_mut(&key)?;
        delivery.note(attempts);
        let Part::Away(away) = &mut delivery.part else { return None };
        match next {
            Next::Sent { envelope, .. } => {
                if !away.envelopes.contains(envelope) {
                    away.envelopes.push(*envelope);
                }
                self.envelopes.insert(*envelope, key.clone());
            }
            Next::Retry { .. } | Next::Wait { .. } => {
                away.open_claims.remove(&claim.attempt);
            }
            Next::End { .. } => {}
        }
        if delivery.ended || away.stored {
            return None;
        }
        // Whoever has claimed it since says when it is due again.
        let is_newest = away.claims == claim.attempt;
        match next {
            Next::Sent { retry_at, .. } => {
                if is_newest {
                    self.set_due(&key, Some(*retry_at));
                }
                self.move_to(now, &key, MessageStatus::Sent, None)
            }
            Next::Retry { .. } | Next::Wait { .. } if !is_newest => None,
            Next::Retry { at } => {
                let reason = attempts.last().and_then(|attempt| attempt.reason.clone());
                self.set_due(&key, Some(*at));
                self.move_to(now, &key, MessageStatus::Pending, reason)
            }
            Next::Wait { reason, until } => {
                self.set_due(&key, *until);
                self.move_to(now, &key, MessageStatus::Pending, Some(reason.clone()))
            }
            Next::End { status, reason } => self.end(now, &key, *status, reason.clone()),
        }
    }

    pub(in crate::memory) fn reached(&mut self, now: Time, targets: &[String]) -> u64 {
        let is_reached =
            |key: &&Key| key.target.reached_through().is_some_and(|name| targets.contains(&name));
        let is_pending = |key: &&Key| {
            self.deliveries.get(key).is_some_and(|delivery| match &delivery.part {
                Part::Away(away) => {
                    delivery.status == MessageStatus::Pending
                        && !away.open_claims.contains(&away.claims)
                }
                Part::Here(_) => false,
            })
        };
        let pending = self.attempts_due.iter().map(|(_, key)| key).filter(is_pending);
        let mut keys: Vec<_> =
            self.waiting.iter().chain(pending).filter(is_reached).cloned().collect();
        keys.sort_by_key(|key| self.deliveries[key].accepted_at);
        let mut turns: BTreeMap<_, i64> = BTreeMap::new();
        for key in &keys {
            let level = self.deliveries[key].message.min_anonymity;
            let turn = turns.entry((&key.sender, &key.target, level)).or_default();
            *turn = (*turn + 1).min(1_000_000);
            // A moment of the past, so that all is due now; what has been due for longer stays ahead.
            let at = now - TimeDelta::seconds(1) + TimeDelta::microseconds(*turn);
            let due = self.due(key).map_or(at, |due| due.min(at));
            self.set_due(key, Some(due));
        }
        keys.len() as u64
    }

    pub(in crate::memory) fn envelope_leaves(&mut self, claim: &Claim, envelope: &[u8; 32]) {
        let sender = claim.message.sender.clone();
        let key = Key { sender, id: claim.message.id, target: claim.target.clone() };
        let Some(Delivery { part: Part::Away(away), .. }) = self.deliveries.get_mut(&key) else {
            return;
        };
        if !away.envelopes.contains(envelope) {
            away.envelopes.push(*envelope);
        }
        self.envelopes.insert(*envelope, key);
    }

    pub(in crate::memory) fn hasten(&mut self, now: Time, targets: &[String]) {
        let is_unanswered = |key: &&Key| {
            self.deliveries.get(key).is_some_and(|delivery| match &delivery.part {
                Part::Away(away) => {
                    delivery.status == MessageStatus::Sent
                        && !away.stored
                        && away.due > Some(now)
                        && !away.open_claims.contains(&away.claims)
                }
                Part::Here(_) => false,
            })
        };
        let is_reached =
            |key: &&Key| key.target.reached_through().is_some_and(|name| targets.contains(&name));
        let due = self.attempts_due.iter().map(|(_, key)| key);
        let keys: Vec<_> = due.filter(is_unanswered).filter(is_reached).cloned().collect();
        for key in keys {
            self.set_due(&key, Some(now));
        }
        for owed in self.receipts.values_mut() {
            if owed.due > now && targets.contains(&owed.receipt.gateway.to_string()) {
                owed.due = now;
            }
        }
    }

    pub(super) fn set_due(&mut self, key: &Key, due: Option<Time>) {
        let Some(Delivery { part: Part::Away(away), .. }) = self.deliveries.get_mut(key) else {
            return;
        };
        if let Some(before) = away.due.take() {
            self.attempts_due.remove(&(before, key.clone()));
        }
        away.due = due;
        match due {
            Some(at) => {
                self.waiting.remove(key);
                self.attempts_due.insert((at, key.clone()));
            }
            None => {
                self.waiting.insert(key.clone());
            }
        }
    }

    fn due(&self, key: &Key) -> Option<Time> {
        match &self.deliveries.get(key)?.part {
            Part::Away(away) => away.due,
            Part::Here(_) => None,
        }
    }
}

impl LaneOut {
    pub(super) fn join(&mut self) -> LaneSeq {
        self.last += 1;
        self.live.insert(LaneSeq(self.last));
        LaneSeq(self.last)
    }
}

fn is_phone(target: &Target) -> bool {
    matches!(target, Target::Remote(address) if address.gateway.is_none() && address.peer.is_phone())
}
