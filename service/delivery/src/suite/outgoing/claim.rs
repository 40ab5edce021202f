//! What is due is claimed, and nothing else, in the order of its lane.

use std::time::Duration;

use chrono::TimeDelta;
use fieldpost_envelope::{LaneSeq, MessageStatus, PeerAddress};
use rand::RngExt;

use super::{Owed, is_claim_of, is_same_lane, phone, reachable_names};
use crate::{
    Claim, Store, Target, Time,
    suite::{CONTRACT, LOST, ORDER, Run, Violation, ensure},
};

impl<S: Store> Run<'_, S> {
    pub(in crate::suite) async fn claim(&mut self) -> Result<(), Violation> {
        let reachable: Vec<_> =
            reachable_names().into_iter().filter(|_| self.rng.random_range(0..100) < 70).collect();
        let limit = self.any_limit();
        let lease = Duration::from_millis(self.rng.random_range(1_000..30_000));
        self.claim_from(&reachable, limit, lease).await
    }

    pub(in crate::suite) async fn claim_from(
        &mut self,
        reachable: &[String],
        limit: usize,
        lease: Duration,
    ) -> Result<(), Violation> {
        self.note("claim", || format!("{} names, at most {limit}", reachable.len()));
        let claims =
            self.store.claim_due(self.now, lease, reachable, limit).await.map_err(self.broken())?;
        ensure!(self, claims.len() <= limit, CONTRACT, "{} claims of {limit}", claims.len());
        let by_urgency = claims.is_sorted_by_key(|claim| std::cmp::Reverse(claim.message.priority));
        ensure!(self, by_urgency, CONTRACT, "claims are not ordered by urgency");
        let is_offered = |owed: &Owed, from: Option<Time>| {
            let in_reach =
                owed.target.reached_through().is_some_and(|name| reachable.contains(&name));
            in_reach && from.is_some_and(|from| from <= self.now) && !owed.is_over(self.now)
        };
        let must: Vec<_> = (0..self.owed.len())
            .filter(|&index| is_offered(&self.owed[index], self.owed[index].due))
            .filter(|&index| !is_phone(&self.owed[index]) || self.predecessors(index).is_empty())
            .collect();
        let mut claimed = Vec::new();
        for claim in &claims {
            let Some(index) = self.owed.iter().position(|owed| is_claim_of(claim, owed)) else {
                return Err(
                    self.violation(CONTRACT, format!("claimed what is not owed: {claim:?}"))
                );
            };
            let owed = &self.owed[index];
            let may = is_offered(owed, owed.may_be_due);
            ensure!(self, may, CONTRACT, "{} was claimed while it is not due", owed.id);
            ensure!(self, !claimed.contains(&index), CONTRACT, "{} was claimed twice", owed.id);
            claimed.push(index);
        }
        let least = claims.last().map(|claim| claim.message.priority);
        for index in must {
            let owed = &self.owed[index];
            let is_behind = claims.len() == limit && Some(owed.priority) <= least;
            let is_there = is_behind || claimed.contains(&index);
            ensure!(
                self,
                is_there,
                LOST,
                "{} for {:?} is due and not offered",
                owed.id,
                owed.target
            );
        }
        for (claim, &index) in claims.iter().zip(&claimed) {
            self.look_at_claim(claim, index, lease)?;
        }
        for (claim, index) in claims.into_iter().zip(claimed) {
            self.was_claimed(claim, index);
            self.summary.count("claimed");
        }
        Ok(())
    }

    pub(super) fn was_claimed(&mut self, claim: Claim, index: usize) {
        let owed = &mut self.owed[index];
        owed.claims = claim.attempt;
        owed.was_overtaken |= !owed.open_claims.is_empty();
        owed.open_claims.insert(claim.attempt);
        (owed.due, owed.may_be_due) = (Some(claim.claimed_until), Some(claim.claimed_until));
        if owed.status == MessageStatus::Sent {
            owed.or_status = Some(MessageStatus::Pending);
        }
        self.claims.push(claim);
    }

    pub(super) fn look_at_claim(
        &mut self,
        claim: &Claim,
        index: usize,
        lease: Duration,
    ) -> Result<(), Violation> {
        let owed = &self.owed[index];
        let sent = &self.sent[owed.message];
        let id = owed.id;
        let is_as_sent = claim.message == sent.submission.message
            && claim.accepted_at == sent.accepted_at
            && claim.claimed_until == self.now + TimeDelta::from_std(lease).unwrap_or_default();
        ensure!(self, is_as_sent, CONTRACT, "{id} was claimed otherwise than sent: {claim:?}");
        let counts = claim.attempt == owed.claims + 1;
        ensure!(self, counts, CONTRACT, "attempt {} of {id} after {}", claim.attempt, owed.claims);
        let has_lane = claim.lane_seq.is_some() == owed.has_lane;
        ensure!(self, has_lane, ORDER, "{id} has lane_seq {:?}", claim.lane_seq);
        let Some(lane_seq) = claim.lane_seq else {
            ensure!(self, claim.after.is_none(), ORDER, "{id} has no lane but a predecessor");
            return Ok(());
        };
        self.learn_lane_seq(index, lane_seq)?;
        let predecessors = self.predecessors(index);
        if is_phone(&self.owed[index]) {
            let alone = predecessors.iter().all(|&other| self.owed[other].is_over(self.now));
            ensure!(self, alone, ORDER, "a phone gets {id} while it owes it an earlier one");
        }
        // What is over but has not been ended yet may be passed over or not.
        let mut fits = false;
        let mut named = None;
        for other in predecessors {
            let is_over = self.owed[other].is_over(self.now);
            match (self.owed[other].lane_seq, claim.after) {
                (known, Some(after)) if known.is_none_or(|known| known == after) => {
                    // One that is over may have been passed over for an earlier one.
                    (fits, named) = (true, (!is_over).then_some((other, after)));
                }
                _ => {}
            }
            if fits || !is_over {
                break;
            }
        }
        let none_left =
            self.predecessors(index).into_iter().all(|other| self.owed[other].is_over(self.now));
        fits |= claim.after.is_none() && none_left;
        ensure!(self, fits, ORDER, "{id} at {lane_seq} follows {:?}", claim.after);
        match named {
            Some((other, after)) => self.learn_lane_seq(other, after),
            None => Ok(()),
        }
    }

    fn learn_lane_seq(&mut self, index: usize, lane_seq: LaneSeq) -> Result<(), Violation> {
        let owed = &self.owed[index];
        let id = owed.id;
        let same = owed.lane_seq.is_none_or(|known| known == lane_seq);
        ensure!(self, same, ORDER, "{id} moved from {:?} to {lane_seq}", owed.lane_seq);
        for (other, seen) in
            self.owed.iter().enumerate().filter(|(_, seen)| is_same_lane(seen, owed))
        {
            if let Some(known) = seen.lane_seq.filter(|_| other != index) {
                let rises = (other < index) == (known < lane_seq) && known != lane_seq;
                ensure!(self, rises, ORDER, "{id} at {lane_seq}, {} at {known}", seen.id);
            }
        }
        self.owed[index].lane_seq = Some(lane_seq);
        Ok(())
    }

    /// The deliveries before this one in its lane that have not ended, the last first.
    fn predecessors(&self, index: usize) -> Vec<usize> {
        let owed = &self.owed[index];
        let before = (0..index).rev();
        before
            .filter(|&other| {
                let other = &self.owed[other];
                owed.has_lane && other.has_lane && !other.ended && is_same_lane(other, owed)
            })
            .collect()
    }
}

pub(super) fn is_phone(owed: &Owed) -> bool {
    owed.target == Target::Remote(PeerAddress::local(phone()))
}
