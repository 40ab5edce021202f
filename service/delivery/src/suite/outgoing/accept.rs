//! Messages of any kind are accepted, repeated and contradicted.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::TimeDelta;
use fieldpost_envelope::{
    AnonymityLevel, GatewayId, GroupId, MessageId, MessageStatus, PeerAddress, PeerId, Priority,
    Recipient,
};
use rand::{Rng, RngExt};

use super::{Owed, Sent, claim::is_phone, is_claim_of, phone, reachable_names};
use crate::{
    Accepted, AcceptedBatch, AtOnce, Claim, Content, Failure, Message, Seq, Store, Submission,
    Target, Time, Wishes, has_lane, message_status,
    suite::{CONTRACT, LOST, ONCE, ORDER, Run, Violation, ensure, gateways, peer, peers},
};

impl<S: Store> Run<'_, S> {
    pub(in crate::suite) async fn accept(&mut self) -> Result<(), Violation> {
        let batch: Vec<_> =
            (0..self.rng.random_range(1..4)).map(|_| self.any_submission()).collect();
        self.note("accept", || {
            let ids: Vec<_> = batch.iter().map(describe).collect();
            ids.join("; ")
        });
        let present: Vec<_> = peers().into_iter().filter(|_| self.chance(50)).collect();
        let reachable: Vec<_> = reachable_names().into_iter().filter(|_| self.chance(50)).collect();
        let lease = Duration::from_millis(self.rng.random_range(1_000..30_000));
        let at_once = AtOnce { present: &present, reachable: &reachable, lease };
        let accepted = self.store.accept_and_begin(self.now, &batch, at_once).await;
        let AcceptedBatch { answers, shown, claimed } = accepted.map_err(self.broken())?;
        ensure!(self, answers.len() == batch.len(), CONTRACT, "{} answers", answers.len());
        for (submission, answer) in batch.iter().zip(&answers) {
            self.was_answered(submission, answer)?;
        }
        let mut told = BTreeSet::new();
        for (peer, entry) in &shown {
            let id = entry.message.id;
            let is_first = told.insert((peer, &entry.message.sender, id));
            ensure!(self, is_first, CONTRACT, "{peer} was shown {id} twice by one answer");
            ensure!(self, present.contains(peer), CONTRACT, "{peer} is not there to be shown any");
            let is_theirs = self
                .owed
                .iter()
                .any(|owed| (owed.id, &owed.target) == (id, &Target::Local(peer.clone())));
            ensure!(self, is_theirs, CONTRACT, "{peer} was shown somebody else's");
            let given = self.inboxes[peer].len() as Seq;
            ensure!(self, entry.seq > given, ONCE, "{peer} was shown seq {} again", entry.seq);
            self.look_at_entry(peer, entry)?;
            self.summary.count("shown at once");
        }
        self.began_at_once(claimed, at_once)?;
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

    fn began_at_once(&mut self, claims: Vec<Claim>, at_once: AtOnce<'_>) -> Result<(), Violation> {
        for claim in claims {
            let id = claim.message.id;
            let index = self.owed.iter().position(|owed| is_claim_of(&claim, owed));
            let Some(index) = index.filter(|index| self.owed[*index].claims == 0) else {
                return Err(self.violation(CONTRACT, format!("claimed what is not new: {claim:?}")));
            };
            let name = claim.target.reached_through();
            let is_offered = name.is_some_and(|name| at_once.reachable.contains(&name));
            ensure!(self, is_offered, CONTRACT, "{id} was claimed at once, out of reach");
            ensure!(self, !is_phone(&self.owed[index]), ORDER, "a phone got {id} at once");
            let is_over = self.owed[index].is_over(self.now);
            ensure!(self, !is_over, CONTRACT, "{id} was claimed at once, and has run out");
            self.look_at_claim(&claim, index, at_once.lease)?;
            self.was_claimed(claim, index);
            self.summary.count("claimed at once");
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
        let millis = match self.rng.random_range(0..20) {
            // It ran out before it was written.
            0 => self.rng.random_range(-1_000..0),
            1..4 => self.rng.random_range(1_000..20_000),
            4..16 => self.rng.random_range(20_000..2_000_000),
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

    pub(in crate::suite) fn fresh_id(&mut self) -> MessageId {
        MessageId(uuid::Builder::from_random_bytes(self.rng.random()).into_uuid())
    }

    pub(in crate::suite) fn any_content(&mut self) -> Content {
        let mut bytes = vec![0; self.rng.random_range(0..40)];
        self.rng.fill_bytes(&mut bytes);
        Content { bytes, ..Content::default() }
    }

    /// Few levels, so that lanes have several messages.
    pub(in crate::suite) fn any_level(&mut self) -> AnonymityLevel {
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
}

fn describe(submission: &Submission) -> String {
    let Message { id, sender, to, .. } = &submission.message;
    format!("{id} from {sender} to {to}, {} deliveries", submission.deliveries.len())
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

const GROUP: &str = "group:hikers";
