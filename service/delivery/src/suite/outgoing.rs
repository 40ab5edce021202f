//! What our own peers sent, and what the store may do with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::TimeDelta;
use fieldpost_envelope::{
    AnonymityLevel, GatewayId, GroupId, LaneSeq, MessageId, MessageStatus, PeerAddress, PeerId,
    Priority, ReceiptKind, Recipient,
};
use rand::{Rng, RngExt};

use super::{CONTRACT, LOST, NO_LIMIT, ONCE, ORDER, Run, Violation, ensure, gateways, peer, peers};
use crate::{
    Accepted, Attempt, AttemptResult, Cancelled, Claim, Content, Failure, InboxEntry, Message,
    Next, ReceiptIn, Record, Settled, Store, Submission, Target, Time, Wishes, has_lane,
    may_follow, message_status,
};

/// An accepted message.
pub(super) struct Sent {
    pub(super) submission: Submission,
    accepted_at: Time,
    /// Its deliveries, as indices.
    pub(super) deliveries: Vec<usize>,
}

/// One of its deliveries.
pub(super) struct Owed {
    pub(super) message: usize,
    pub(super) sender: PeerId,
    pub(super) id: MessageId,
    pub(super) target: Target,
    level: AnonymityLevel,
    priority: Priority,
    has_lane: bool,
    pub(super) expires_at: Time,
    pub(super) status: MessageStatus,
    /// The store may also still, or already, say this.
    or_status: Option<MessageStatus>,
    pub(super) ended: bool,
    was_shown: bool,
    /// The recipient's gateway has it.
    pub(super) stored: bool,
    claims: u32,
    /// Claims of which nothing was recorded, or that something left.
    open_claims: BTreeSet<u32>,
    /// It was claimed anew while a claim was open, which may have sent it.
    was_overtaken: bool,
    /// From when it must be offered, and from when it may be.
    due: Option<Time>,
    may_be_due: Option<Time>,
    pub(super) envelopes: Vec<[u8; 32]>,
    attempts: BTreeMap<(Time, String), Attempt>,
    lane_seq: Option<LaneSeq>,
    /// It could not begin.
    failed_at_once: bool,
}

impl Owed {
    fn is_over(&self, now: Time) -> bool {
        self.expires_at <= now
    }

    fn end(&mut self, status: MessageStatus) {
        (self.status, self.or_status, self.ended) = (status, None, true);
        (self.due, self.may_be_due) = (None, None);
    }

    fn may_say(&self, status: MessageStatus, now: Time) -> bool {
        let expired = status == MessageStatus::Expired && !self.ended && self.is_over(now);
        self.status == status || self.or_status == Some(status) || expired
    }

    fn has_surely_left(&self) -> bool {
        self.was_shown
            || !self.envelopes.is_empty()
            || self.open_claims.contains(&self.claims)
            || (self.ended && self.status == MessageStatus::Sent)
    }

    /// Whose word counts for it.
    pub(super) fn gateway(&self) -> Option<GatewayId> {
        match &self.target {
            Target::Remote(address) => address.gateway,
            Target::Group { home, .. } => Some(*home),
            _ => None,
        }
    }
}

impl<S: Store> Run<'_, S> {
    pub(super) async fn accept(&mut self) -> Result<(), Violation> {
        let batch: Vec<_> =
            (0..self.rng.random_range(1..4)).map(|_| self.any_submission()).collect();
        self.note("accept", || {
            let ids: Vec<_> = batch.iter().map(describe).collect();
            ids.join("; ")
        });
        let answers = self.store.accept(self.now, &batch).await.map_err(self.broken())?;
        ensure!(self, answers.len() == batch.len(), CONTRACT, "{} answers", answers.len());
        for (submission, answer) in batch.iter().zip(&answers) {
            self.was_answered(submission, answer)?;
        }
        if self.chance(10) {
            let again = self.store.accept(self.now, &batch).await.map_err(self.broken())?;
            for (submission, answer) in batch.iter().zip(&again) {
                let is_known = !matches!(answer, Accepted::New { .. });
                ensure!(self, is_known, ONCE, "a repeated request was taken as new");
                self.was_answered(submission, answer)?;
            }
        }
        Ok(())
    }

    fn was_answered(
        &mut self,
        submission: &Submission,
        answer: &Accepted,
    ) -> Result<(), Violation> {
        let message = &submission.message;
        let id = message.id;
        let known = self.sent.iter().find(|sent| {
            let other = &sent.submission.message;
            (other.id, &other.sender) == (id, &message.sender)
        });
        let Some(known) = known else {
            let Accepted::New { accepted_at } = *answer else {
                return Err(self.violation(LOST, format!("{id} is new, the answer is {answer:?}")));
            };
            return self.was_accepted(submission, accepted_at);
        };
        if known.submission.fingerprint != submission.fingerprint {
            self.summary.count("conflict");
            ensure!(self, *answer == Accepted::Conflict, CONTRACT, "{id} conflicts: {answer:?}");
            return Ok(());
        }
        self.summary.count("same");
        let Accepted::Same { accepted_at, expires_at, status } = *answer else {
            return Err(self.violation(CONTRACT, format!("{id} is the same: {answer:?}")));
        };
        let as_before =
            accepted_at == known.accepted_at && expires_at == known.submission.message.expires_at;
        ensure!(self, as_before, CONTRACT, "{id} was accepted otherwise before: {answer:?}");
        let deliveries = || known.deliveries.iter().map(|index| &self.owed[*index]);
        let is_certain = deliveries()
            .all(|owed| owed.or_status.is_none() && (owed.ended || !owed.is_over(self.now)));
        let expected = message_status(deliveries().map(|owed| owed.status));
        let fits = !is_certain || status == expected;
        ensure!(self, fits, CONTRACT, "{id} is said to be {status}, it is {expected}");
        Ok(())
    }

    fn was_accepted(
        &mut self,
        submission: &Submission,
        accepted_at: Time,
    ) -> Result<(), Violation> {
        let message = &submission.message;
        let before =
            self.sent.iter().filter(|sent| sent.submission.message.sender == message.sender);
        if let Some(last) = before.map(|sent| sent.accepted_at).max() {
            let rises = accepted_at > last;
            ensure!(self, rises, CONTRACT, "accepted at {accepted_at}, the last at {last}");
        }
        let first = self.owed.len();
        let failures: Vec<_> = submission.failures.iter().map(|failure| &failure.target).collect();
        for target in submission.deliveries.iter().chain(failures.iter().copied()) {
            let is_remote = matches!(target, Target::Remote(_) | Target::Group { .. });
            let mut owed = Owed {
                message: self.sent.len(),
                sender: message.sender.peer.clone(),
                id: message.id,
                target: target.clone(),
                level: message.min_anonymity,
                priority: message.priority,
                has_lane: has_lane(message.priority, &message.to)
                    && !matches!(target, Target::Broadcast(_)),
                expires_at: message.expires_at,
                status: MessageStatus::Pending,
                or_status: None,
                ended: false,
                was_shown: false,
                stored: false,
                claims: 0,
                open_claims: BTreeSet::new(),
                was_overtaken: false,
                due: (!matches!(target, Target::Local(_))).then_some(accepted_at),
                may_be_due: (!matches!(target, Target::Local(_))).then_some(self.now),
                envelopes: Vec::new(),
                attempts: BTreeMap::new(),
                lane_seq: None,
                failed_at_once: false,
            };
            if failures.contains(&target) {
                owed.end(MessageStatus::Failed);
                owed.failed_at_once = true;
                self.summary.count("failed at once");
            } else {
                self.summary.count(if is_remote { "owed elsewhere" } else { "owed here" });
            }
            self.owed.push(owed);
        }
        let deliveries = (first..self.owed.len()).collect();
        self.sent.push(Sent { submission: submission.clone(), accepted_at, deliveries });
        Ok(())
    }

    fn any_submission(&mut self) -> Submission {
        if !self.sent.is_empty() && self.chance(12) {
            let known = &self.sent[self.rng.random_range(0..self.sent.len())];
            let mut submission = known.submission.clone();
            if self.chance(30) {
                submission.fingerprint = self.rng.random();
                submission.message.content.bytes.push(1);
            }
            return submission;
        }
        let sender = self.any_peer();
        let (to, deliveries) = self.any_recipient(&sender);
        let millis = match self.rng.random_range(0..10) {
            0..2 => self.rng.random_range(1_000..20_000),
            2..8 => self.rng.random_range(20_000..2_000_000),
            _ => 48 * 3_600_000,
        };
        let priority = match self.rng.random_range(0..10) {
            0 => Priority::Low,
            1 => Priority::High,
            2 => Priority::Critical,
            _ => Priority::Normal,
        };
        let message = Message {
            id: self.any_id(&sender),
            sender: sender.into(),
            to,
            content: self.any_content(),
            expires_at: self.now + TimeDelta::milliseconds(millis),
            priority,
            min_anonymity: self.any_level(),
            wishes: Wishes::default(),
        };
        let (failures, deliveries) = self.with_failures(deliveries);
        Submission { message, fingerprint: self.rng.random(), deliveries, failures }
    }

    /// Now and then, some of many recipients cannot be served, but never all.
    fn with_failures(&mut self, mut targets: Vec<Target>) -> (Vec<Failure>, Vec<Target>) {
        if targets.len() < 2 || !self.chance(20) {
            return (Vec::new(), targets);
        }
        let failing = self.rng.random_range(1..targets.len());
        let reason = "storage is full".to_owned();
        let failed = |target| Failure { target, reason: reason.clone() };
        (targets.drain(..failing).map(failed).collect(), targets)
    }

    /// Now and then the id of somebody else's message: it is unique for each sender alone.
    fn any_id(&mut self, sender: &PeerId) -> MessageId {
        if !self.owed.is_empty() && self.chance(5) {
            let other = &self.owed[self.rng.random_range(0..self.owed.len())];
            let is_taken =
                self.owed.iter().any(|owed| owed.sender == *sender && owed.id == other.id);
            if other.sender != *sender && !is_taken {
                return other.id;
            }
        }
        self.fresh_id()
    }

    pub(super) fn fresh_id(&mut self) -> MessageId {
        MessageId(uuid::Builder::from_random_bytes(self.rng.random()).into_uuid())
    }

    pub(super) fn any_content(&mut self) -> Content {
        let mut bytes = vec![0; self.rng.random_range(0..40)];
        self.rng.fill_bytes(&mut bytes);
        Content { bytes, ..Content::default() }
    }

    /// Few levels, so that lanes have several messages.
    pub(super) fn any_level(&mut self) -> AnonymityLevel {
        if self.chance(80) { AnonymityLevel::NONE } else { AnonymityLevel::HIGHEST }
    }

    fn any_recipient(&mut self, sender: &PeerId) -> (Recipient, Vec<Target>) {
        let locals = peers();
        let remotes = remote_peers();
        match self.rng.random_range(0..100) {
            0..45 => {
                let to = self.any_peer();
                (to.clone().into(), vec![Target::Local(to)])
            }
            45..53 => {
                let (id, home) = any_group(&mut self.rng);
                self.summary.count("owed to a group elsewhere");
                (
                    Recipient::Group { id: id.clone(), home: Some(home) },
                    vec![Target::Group { id, home }],
                )
            }
            53..75 => {
                let to = remotes[self.rng.random_range(0..remotes.len())].clone();
                (to.clone().into(), vec![Target::Remote(to)])
            }
            75..83 => {
                let to = PeerAddress::local(phone());
                (to.clone().into(), vec![Target::Remote(to)])
            }
            83..93 => {
                let members = locals.into_iter().filter(|peer| peer != sender).map(Target::Local);
                let others = remotes.into_iter().map(Target::Remote);
                let targets: Vec<_> = members.chain(others).filter(|_| self.chance(50)).collect();
                (GROUP.parse().expect("the suite's own group"), targets)
            }
            _ => {
                let members = locals.into_iter().filter(|peer| peer != sender).map(Target::Local);
                let air = ["ble", "mesh"].map(|name| Target::Broadcast(name.into()));
                (Recipient::Broadcast, members.chain(air).collect())
            }
        }
    }

    /// A message of ours is shown for the first time.
    pub(super) fn owed_is_shown(
        &mut self,
        peer: &PeerId,
        entry: &InboxEntry,
        name: &str,
    ) -> Result<usize, Violation> {
        let found = self.owed.iter().position(|owed| {
            owed.id == entry.message.id
                && owed.sender == entry.message.sender.peer
                && owed.target == Target::Local(peer.clone())
        });
        let Some(index) = found else {
            return Err(self.violation(CONTRACT, format!("{name}, who is no recipient")));
        };
        let sent = &self.sent[self.owed[index].message];
        let is_as_sent = entry.message == sent.submission.message
            && entry.accepted_at == sent.accepted_at
            && !entry.gap
            && !entry.late;
        ensure!(self, is_as_sent, CONTRACT, "{name} otherwise than it was sent");
        let owed = &self.owed[index];
        ensure!(self, !owed.was_shown, ONCE, "{name} at two positions");
        ensure!(self, !owed.ended, CONTRACT, "{name}, which is {}", owed.status);
        let skipped = self.owed[..index].iter().find(|other| {
            let waits = !other.was_shown && !other.ended && !other.is_over(self.now);
            waits && other.has_lane && owed.has_lane && is_same_lane(other, owed)
        });
        if let Some(skipped) = skipped {
            return Err(self.violation(ORDER, format!("{name} before {}", skipped.id)));
        }
        let owed = &mut self.owed[index];
        owed.was_shown = true;
        owed.status = MessageStatus::Sent;
        Ok(index)
    }

    /// Everything that can be shown has been: nothing may be left out.
    pub(super) fn look_for_unshown(&self, peer: &PeerId) -> Result<(), Violation> {
        let here = Target::Local(peer.clone());
        let left_out = self.owed.iter().find(|owed| {
            owed.target == here && !owed.was_shown && !owed.ended && !owed.is_over(self.now)
        });
        if let Some(owed) = left_out {
            let detail = format!("{peer} was not shown {} from {}", owed.id, owed.sender);
            return Err(self.violation(LOST, detail));
        }
        self.look_for_unshown_inbound(peer)
    }

    pub(super) fn owed_is_confirmed(
        &mut self,
        peer: &PeerId,
        index: usize,
        read: bool,
        is_told: bool,
    ) -> Result<(), Violation> {
        let to = if read { MessageStatus::Read } else { MessageStatus::Delivered };
        let now = self.now;
        let owed = &mut self.owed[index];
        let (from, is_over) = (owed.status, owed.is_over(now));
        let can = may_follow(from, to);
        // A late confirmation may correct what has expired, where the store still knows.
        let must = can && !is_over;
        if is_told && can {
            owed.end(to);
            self.summary.count("confirmed");
            return Ok(());
        }
        let id = owed.id;
        ensure!(self, !is_told, CONTRACT, "{id} for {peer} went from {from} to {to}");
        ensure!(self, !must, LOST, "{peer} confirmed {id}, its sender is not told");
        Ok(())
    }

    pub(super) async fn cancel(&mut self) -> Result<(), Violation> {
        if self.sent.is_empty() || self.chance(5) {
            let (sender, id) = (self.any_peer(), self.fresh_id());
            let answer = self.store.cancel(self.now, &sender, id).await.map_err(self.broken())?;
            ensure!(self, answer == Cancelled::Unknown, CONTRACT, "unknown {id}: {answer:?}");
            return Ok(());
        }
        let recent = self.sent.len().saturating_sub(8);
        let sent = &self.sent[self.rng.random_range(recent..self.sent.len())];
        let (sender, id) =
            (sent.submission.message.sender.peer.clone(), sent.submission.message.id);
        let deliveries = sent.deliveries.clone();
        self.note("cancel", || format!("{id} of {sender}"));
        if let Some(other) = peers().into_iter().find(|peer| {
            !self.owed.iter().any(|owed| owed.id == id && owed.sender == *peer) && *peer != sender
        }) {
            let answer = self.store.cancel(self.now, &other, id).await.map_err(self.broken())?;
            ensure!(self, answer == Cancelled::Unknown, CONTRACT, "{other} cancelled {id}");
        }
        let answer = self.store.cancel(self.now, &sender, id).await.map_err(self.broken())?;
        let owed = || deliveries.iter().map(|index| &self.owed[*index]);
        // What was for nobody has ended as it was accepted.
        let has_left = deliveries.is_empty() || owed().any(Owed::has_surely_left);
        let live = || owed().filter(|owed| !owed.failed_at_once);
        let is_unclear = live().any(|owed| owed.ended || owed.is_over(self.now))
            || owed().any(|owed| owed.was_overtaken || !owed.open_claims.is_empty());
        let fits = match answer {
            Cancelled::Done => !has_left,
            Cancelled::TooLate => has_left || is_unclear,
            Cancelled::Unknown => false,
        };
        ensure!(self, fits, CONTRACT, "cancelling {id}: {answer:?}, something left: {has_left}");
        if answer == Cancelled::Done {
            self.summary.count("cancelled");
            for index in deliveries {
                if self.owed[index].status == MessageStatus::Pending {
                    self.owed[index].end(MessageStatus::Cancelled);
                }
            }
        }
        Ok(())
    }

    pub(super) async fn expire(&mut self) -> Result<(), Violation> {
        let limit = self.any_limit();
        self.expire_up_to(limit).await
    }

    pub(super) async fn expire_up_to(&mut self, limit: usize) -> Result<(), Violation> {
        self.note("expire", || format!("at most {limit}"));
        let settled = self.store.expire_due(self.now, limit).await.map_err(self.broken())?;
        for one in settled.iter().filter(|one| one.sender.gateway.is_none()) {
            let Some(index) = self.find(one) else {
                return Err(self.violation(CONTRACT, format!("expired what nobody sent: {one:?}")));
            };
            let owed = &self.owed[index];
            let is_right =
                one.status == MessageStatus::Expired && !owed.ended && owed.is_over(self.now);
            ensure!(self, is_right, LOST, "{one:?} expired, it is {}", owed.status);
            self.owed[index].end(MessageStatus::Expired);
            self.summary.count("expired");
        }
        if limit == NO_LIMIT {
            let kept = self.owed.iter().find(|owed| !owed.ended && owed.is_over(self.now));
            if let Some(owed) = kept {
                let detail = format!("{} for {:?} did not expire", owed.id, owed.target);
                return Err(self.violation(LOST, detail));
            }
        }
        Ok(())
    }

    fn find(&self, settled: &Settled) -> Option<usize> {
        self.owed.iter().position(|owed| {
            owed.id == settled.id
                && settled.sender == owed.sender.clone().into()
                && owed.target.recipient() == settled.recipient
        })
    }

    pub(super) async fn claim(&mut self) -> Result<(), Violation> {
        let reachable: Vec<_> =
            reachable_names().into_iter().filter(|_| self.rng.random_range(0..100) < 70).collect();
        let limit = self.any_limit();
        let lease = Duration::from_millis(self.rng.random_range(1_000..30_000));
        self.claim_from(&reachable, limit, lease).await
    }

    pub(super) async fn claim_from(
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
            let owed = &mut self.owed[index];
            owed.claims = claim.attempt;
            owed.was_overtaken |= !owed.open_claims.is_empty();
            owed.open_claims.insert(claim.attempt);
            (owed.due, owed.may_be_due) = (Some(claim.claimed_until), Some(claim.claimed_until));
            if owed.status == MessageStatus::Sent {
                owed.or_status = Some(MessageStatus::Pending);
            }
            self.claims.push(claim);
            self.summary.count("claimed");
        }
        Ok(())
    }

    fn look_at_claim(
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

    pub(super) async fn record(&mut self) -> Result<(), Violation> {
        if self.claims.is_empty() {
            return Ok(());
        }
        let oldest = self.claims.len().saturating_sub(12);
        let claim = self.claims[self.rng.random_range(oldest..self.claims.len())].clone();
        let is_broadcast = matches!(claim.target, Target::Broadcast(_));
        let next = match self.rng.random_range(0..100) {
            0..55 if is_broadcast => Next::End { status: MessageStatus::Sent, reason: None },
            0..55 => Next::Sent { envelope: self.rng.random(), retry_at: self.soon() },
            55..75 => Next::Retry { at: self.soon() },
            75..85 => Next::Wait { reason: "not in reach".into(), until: None },
            85..95 => Next::Wait { reason: "it rests".into(), until: Some(self.soon()) },
            _ => {
                let reason = Some("nothing can ever carry it".into());
                Next::End { status: MessageStatus::Failed, reason }
            }
        };
        let attempts = match &next {
            Next::Sent { .. } => vec![self.an_attempt(AttemptResult::Sent)],
            Next::Wait { .. } => Vec::new(),
            _ => (0..self.rng.random_range(0..3))
                .map(|_| self.an_attempt(AttemptResult::Failed))
                .collect(),
        };
        self.record_this(&claim, &attempts, &next).await
    }

    fn soon(&mut self) -> Time {
        self.now + TimeDelta::milliseconds(self.rng.random_range(100..20_000))
    }

    fn an_attempt(&mut self, result: AttemptResult) -> Attempt {
        let transport = ["htx", "ble", "mesh"][self.rng.random_range(0..3)].into();
        let earlier = self.rng.random_range(0..1_000_000);
        let started_at = self.now - TimeDelta::microseconds(earlier);
        let reason = (result == AttemptResult::Failed).then(|| "link lost".into());
        Attempt { transport, started_at, result, reason, hops: self.chance(20).then_some(3) }
    }

    pub(super) async fn record_this(
        &mut self,
        claim: &Claim,
        attempts: &[Attempt],
        next: &Next,
    ) -> Result<(), Violation> {
        self.note("record", || format!("{} {:?} {next:?}", claim.message.id, claim.target));
        let settled =
            self.store.record(self.now, claim, attempts, next).await.map_err(self.broken())?;
        let Some(index) = self.owed.iter().position(|owed| is_claim_of(claim, owed)) else {
            return Err(self.violation(CONTRACT, "a claim of the suite's own is unknown".into()));
        };
        let (now, id) = (self.now, claim.message.id);
        let owed = &mut self.owed[index];
        for attempt in attempts {
            let name = (attempt.started_at, attempt.transport.clone());
            owed.attempts.insert(name, attempt.clone());
        }
        match next {
            Next::Sent { envelope, .. } => owed.envelopes.push(*envelope),
            Next::Retry { .. } | Next::Wait { .. } => {
                owed.open_claims.remove(&claim.attempt);
            }
            Next::End { .. } => {}
        }
        let mut ends = None;
        if !owed.ended && !owed.stored {
            let is_newest = claim.attempt == owed.claims;
            match next {
                Next::Sent { retry_at, .. } => {
                    owed.or_status = None;
                    owed.status = MessageStatus::Sent;
                    owed.reschedule(is_newest, *retry_at);
                }
                Next::Retry { at } | Next::Wait { until: Some(at), .. } => {
                    owed.is_pending_again(is_newest);
                    owed.reschedule(is_newest, *at);
                }
                Next::Wait { until: None, .. } => {
                    owed.is_pending_again(is_newest);
                    owed.due = None;
                    if is_newest {
                        owed.may_be_due = None;
                    }
                }
                Next::End { status, .. } => {
                    ends = Some(*status);
                    owed.end(*status);
                }
            }
        }
        let status = owed.status;
        let fits = match (&settled, ends) {
            (Some(one), Some(ends)) => one.status == ends && one.id == id,
            (None, Some(_)) => false,
            (Some(one), None) => one.id == id && self.owed[index].may_say(one.status, now),
            (None, None) => true,
        };
        ensure!(self, fits, CONTRACT, "recorded for {id} ({status}): {settled:?}");
        if self.chance(10) {
            let again =
                self.store.record(self.now, claim, attempts, next).await.map_err(self.broken())?;
            let is_quiet = again.is_none_or(|one| self.owed[index].may_say(one.status, now));
            ensure!(self, is_quiet, CONTRACT, "recording again changed {id}");
        }
        Ok(())
    }

    pub(super) async fn settle(&mut self) -> Result<(), Violation> {
        let left: Vec<_> =
            (0..self.owed.len()).filter(|&index| !self.owed[index].envelopes.is_empty()).collect();
        let kind = ReceiptKind::ALL[self.rng.random_range(0..ReceiptKind::ALL.len())];
        if left.is_empty() || self.chance(5) {
            let unknown = self.rng.random();
            let receipt = self.a_receipt(unknown, gateways()[0], kind);
            let settled = self.store.settle(self.now, &receipt).await.map_err(self.broken())?;
            ensure!(self, settled.is_none(), CONTRACT, "settled an unknown envelope: {settled:?}");
            return Ok(());
        }
        let oldest = left.len().saturating_sub(20);
        let index = left[self.rng.random_range(oldest..left.len())];
        let envelopes = &self.owed[index].envelopes;
        let envelope = envelopes[self.rng.random_range(0..envelopes.len())];
        let gateway = self.owed[index].gateway();
        let signer = match gateway {
            Some(gateway) if self.chance(75) => gateway,
            _ => GatewayId::from_bytes([9; 32]),
        };
        let receipt = self.a_receipt(envelope, signer, kind);
        self.settle_this(index, &receipt).await
    }

    pub(super) fn a_receipt(
        &self,
        envelope: [u8; 32],
        signer: GatewayId,
        kind: ReceiptKind,
    ) -> ReceiptIn {
        let reason = (kind == ReceiptKind::Refused).then(|| "inbox full".into());
        ReceiptIn { envelope, signer: signer.into(), kind, at: self.now, reason }
    }

    pub(super) async fn settle_this(
        &mut self,
        index: usize,
        receipt: &ReceiptIn,
    ) -> Result<(), Violation> {
        use MessageStatus::{Delivered, Expired, Failed, Pending, Read, Sent};

        let kind = receipt.kind;
        let is_forged = self.owed[index].gateway().map(Into::into) != Some(receipt.signer);
        let id = self.owed[index].id;
        self.note("receipt", || format!("{kind} for {id}, forged: {is_forged}"));
        let settled = self.store.settle(self.now, receipt).await.map_err(self.broken())?;
        if is_forged {
            self.summary.count("forged");
            let detail = "believed a forged receipt";
            ensure!(self, settled.is_none(), "nobody speaks for another", "{detail}: {settled:?}");
            return Ok(());
        }
        let owed = &mut self.owed[index];
        let is_owed = matches!(owed.status, Pending | Sent) && !owed.ended;
        let is_open = is_owed && !owed.stored;
        // A group's home may refuse what it has kept.
        let may_be_refused = is_open || is_owed && matches!(owed.target, Target::Group { .. });
        let reached = match (kind, owed.status) {
            (ReceiptKind::Delivered, Pending | Sent | Expired | Failed) => Some(Delivered),
            (ReceiptKind::Read, Pending | Sent | Expired | Failed | Delivered) => Some(Read),
            (ReceiptKind::Refused, _) if may_be_refused => Some(Failed),
            _ => None,
        };
        if let Some(status) = reached {
            owed.end(status);
            owed.stored |= status != Failed;
        } else if kind == ReceiptKind::Stored && is_open {
            owed.stored = true;
            (owed.status, owed.or_status) = (Sent, None);
            (owed.due, owed.may_be_due) = (None, None);
        }
        let fits = match (reached, &settled) {
            (Some(status), Some(one)) => one.status == status && one.id == id,
            (Some(_), None) => false,
            (None, Some(one)) => kind == ReceiptKind::Stored && one.status == Sent && is_open,
            (None, None) => true,
        };
        ensure!(self, fits, LOST, "after a receipt {id} is to be {reached:?}: {settled:?}");
        let again = self.store.settle(self.now, receipt).await.map_err(self.broken())?;
        ensure!(self, again.is_none(), CONTRACT, "a repeated receipt changed {again:?}");
        Ok(())
    }

    pub(super) async fn reached(&mut self) -> Result<(), Violation> {
        let names: Vec<_> = reachable_names().into_iter().filter(|_| self.chance(40)).collect();
        self.reached_now(&names).await
    }

    pub(super) async fn reached_now(&mut self, names: &[String]) -> Result<(), Violation> {
        self.note("reached", || format!("{} names", names.len()));
        let woken = self.store.reached(self.now, names).await.map_err(self.broken())?;
        let (mut least, mut most) = (0, 0);
        for owed in self.owed.iter_mut().filter(|owed| !owed.ended && !owed.stored) {
            let in_reach = owed.target.reached_through().is_some_and(|name| names.contains(&name));
            if !in_reach {
                continue;
            }
            most += 1;
            // What an overtaken claim gave up may be waiting, or due when the newer claim ends.
            if owed.due.is_none() && owed.may_be_due.is_none() {
                least += 1;
                owed.due = Some(self.now);
            }
            // Those that back off may be tried sooner.
            if !owed.open_claims.contains(&owed.claims)
                || owed.due.is_none_or(|due| due <= self.now)
            {
                owed.may_be_due = Some(owed.may_be_due.map_or(self.now, |due| due.min(self.now)));
            }
        }
        let fits = (least..=most).contains(&woken);
        ensure!(self, fits, LOST, "{woken} became due, at least {least} were waiting");
        Ok(())
    }

    pub(super) async fn look_at_one(&mut self) -> Result<(), Violation> {
        if self.sent.is_empty() {
            return Ok(());
        }
        let index = self.rng.random_range(0..self.sent.len());
        self.look_at_records(index).await
    }

    /// What the sender, the recipients and strangers see of a message.
    pub(super) async fn look_at_records(&mut self, index: usize) -> Result<(), Violation> {
        let id = self.sent[index].submission.message.id;
        self.note("records", || id.to_string());
        for caller in peers() {
            let records = self.store.records(self.now, &caller, id).await.map_err(self.broken())?;
            let own = self.sent.iter().find(|sent| {
                let message = &sent.submission.message;
                message.id == id && message.sender == caller.clone().into()
            });
            match own {
                Some(sent) => {
                    let [record] = &records[..] else {
                        let detail = format!("{caller} has {} records of {id}", records.len());
                        return Err(self.violation(LOST, detail));
                    };
                    self.look_at_senders_record(sent, record)?;
                }
                None => self.look_at_recipients_records(&caller, id, &records)?,
            }
        }
        Ok(())
    }

    fn look_at_senders_record(&self, sent: &Sent, record: &Record) -> Result<(), Violation> {
        let id = sent.submission.message.id;
        let is_as_sent =
            record.message == sent.submission.message && record.accepted_at == sent.accepted_at;
        ensure!(self, is_as_sent, CONTRACT, "the record of {id} is not as it was sent");
        let sorted = record.deliveries.is_sorted_by_key(|delivery| &delivery.recipient);
        ensure!(self, sorted, CONTRACT, "the deliveries of {id} are not sorted by recipient");
        let (found, owed) = (record.deliveries.len(), sent.deliveries.len());
        ensure!(self, found == owed, LOST, "{id} has {found} of {owed} deliveries");
        for owed in sent.deliveries.iter().map(|index| &self.owed[*index]) {
            let recipient = owed.target.recipient();
            let Some(delivery) =
                record.deliveries.iter().find(|delivery| delivery.recipient == recipient)
            else {
                return Err(self.violation(LOST, format!("{id} has no delivery to {recipient}")));
            };
            let (says, is) = (delivery.status, owed.status);
            let fits = owed.may_say(says, self.now);
            ensure!(self, fits, LOST, "{id} for {recipient} is said to be {says}, it is {is}");
            // What a receipt told may stand beside the attempts, with the time of the receipt.
            let is_attempt = |attempt: &&Attempt| {
                let by_receipt =
                    matches!(attempt.result, AttemptResult::Stored | AttemptResult::Refused);
                let name = (attempt.started_at, attempt.transport.clone());
                owed.attempts.contains_key(&name) || owed.envelopes.is_empty() || !by_receipt
            };
            let tried: BTreeSet<_> = delivery
                .attempts
                .iter()
                .filter(is_attempt)
                .map(|attempt| (attempt.started_at, attempt.transport.clone()))
                .collect();
            let expected: BTreeSet<_> = match owed.target {
                Target::Local(_) if !owed.failed_at_once => {
                    BTreeSet::from([(sent.accepted_at, crate::LOCAL.into())])
                }
                _ => owed.attempts.keys().cloned().collect(),
            };
            ensure!(self, tried == expected, LOST, "{id} for {recipient} was tried {tried:?}");
        }
        Ok(())
    }

    fn look_at_recipients_records(
        &self,
        caller: &PeerId,
        id: MessageId,
        records: &[Record],
    ) -> Result<(), Violation> {
        for record in records {
            let entitled = self.inboxes[caller].iter().any(|item| {
                let (shown, sender) = self.name_of(*item);
                shown == id && sender == record.message.sender
            }) || self.owed.iter().any(|owed| {
                owed.id == id
                    && owed.target == Target::Local(caller.clone())
                    && record.message.sender == owed.sender.clone().into()
            });
            ensure!(self, entitled, "nobody reads for another", "{caller} sees {id}");
            let is_discreet = record.deliveries.iter().all(|delivery| {
                delivery.attempts.is_empty() && delivery.recipient == caller.as_str()
            });
            ensure!(self, is_discreet, CONTRACT, "{caller} sees more of {id} than its own");
        }
        for item in &self.inboxes[caller] {
            let (shown, sender) = self.name_of(*item);
            let is_there = records.iter().any(|record| record.message.sender == sender);
            ensure!(self, shown != id || is_there, LOST, "{caller} has no record of {id}");
        }
        Ok(())
    }

    pub(super) fn owed_due(&self) -> Vec<Time> {
        let open = self.owed.iter().filter(|owed| !owed.ended);
        open.flat_map(|owed| [Some(owed.expires_at), owed.due]).flatten().collect()
    }
}

impl Owed {
    fn is_pending_again(&mut self, is_newest: bool) {
        if is_newest {
            (self.status, self.or_status) = (MessageStatus::Pending, None);
        } else if self.status == MessageStatus::Sent {
            self.or_status = Some(MessageStatus::Pending);
        }
    }

    /// Of an overtaken claim the store may take the time or not, as long as it is tried.
    fn reschedule(&mut self, is_newest: bool, at: Time) {
        if is_newest {
            (self.due, self.may_be_due) = (Some(at), Some(at));
        } else {
            self.due = self.due.map(|due| due.max(at));
            self.may_be_due = Some(self.may_be_due.map_or(at, |due| due.min(at)));
        }
    }
}

fn describe(submission: &Submission) -> String {
    let Message { id, sender, to, .. } = &submission.message;
    format!("{id} from {sender} to {to}, {} deliveries", submission.deliveries.len())
}

fn is_same_lane(a: &Owed, b: &Owed) -> bool {
    (&a.sender, &a.target, a.level) == (&b.sender, &b.target, b.level)
}

fn is_phone(owed: &Owed) -> bool {
    owed.target == Target::Remote(PeerAddress::local(phone()))
}

fn is_claim_of(claim: &Claim, owed: &Owed) -> bool {
    claim.message.id == owed.id
        && claim.message.sender == owed.sender.clone().into()
        && claim.target == owed.target
}

pub(super) fn reachable_names() -> Vec<String> {
    let phone = phone().to_string();
    let air = ["transport:ble".to_owned(), "transport:mesh".to_owned()];
    gateways().iter().map(ToString::to_string).chain([phone]).chain(air).collect()
}

fn remote_peers() -> Vec<PeerAddress> {
    let names = ["erin", "frank"];
    let pairs = gateways().into_iter().flat_map(|home| names.map(|name| (name, home)));
    pairs.map(|(name, home)| PeerAddress::remote(peer(name), home)).collect()
}

/// One of few groups, so that their lanes have several messages.
fn any_group(rng: &mut impl Rng) -> (GroupId, GatewayId) {
    let id = ["hikers", "climbers"][rng.random_range(0..2)];
    let home = gateways()[rng.random_range(0..2)];
    (id.parse().expect("the suite's own group"), home)
}

fn phone() -> PeerId {
    PeerId::phone([0xa1; 8])
}

const GROUP: &str = "group:hikers";
