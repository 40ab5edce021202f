//! What our own peers sent, and what the store may do with it.

mod accept;
mod attempts;
mod claim;
mod receipts;
mod records;

use std::collections::{BTreeMap, BTreeSet};

use fieldpost_envelope::{
    AnonymityLevel, GatewayId, LaneSeq, MessageId, MessageStatus, PeerId, Priority,
};
use rand::RngExt;

use super::{CONTRACT, LOST, NO_LIMIT, ONCE, ORDER, Run, Violation, ensure, gateways, peers};
use crate::{
    Attempt, Cancelled, Claim, InboxEntry, Settled, Store, Submission, Target, Time, may_follow,
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
    pub(super) fn is_over(&self, now: Time) -> bool {
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
            !self.sent.iter().any(|sent| {
                let message = &sent.submission.message;
                message.id == id && message.sender.peer == *peer
            })
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

    pub(super) fn owed_due(&self) -> Vec<Time> {
        let open = self.owed.iter().filter(|owed| !owed.ended);
        open.flat_map(|owed| [Some(owed.expires_at), owed.due]).flatten().collect()
    }
}

fn is_same_lane(a: &Owed, b: &Owed) -> bool {
    (&a.sender, &a.target, a.level) == (&b.sender, &b.target, b.level)
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

fn phone() -> PeerId {
    PeerId::phone([0xa1; 8])
}
