//! What the memory store keeps, and what each method does to it under the lock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{SubsecRound, TimeDelta};
use fieldpost_envelope::{
    GatewayId, Lane, LaneSeq, MessageId, MessageStatus, PeerAddress, PeerId, ReceiptKind, Recipient,
};

use super::REMEMBERED;
use crate::{
    Accepted, Attempt, AttemptResult, Cancelled, Claim, Confirm, Correspondent, DeliveryRecord,
    Effect, Held, Inbound, InboxEntry, Message, Next, Progress, ReceiptIn, ReceiptOut, Received,
    Record, Seq, Settled, Standing, Submission, Target, Time, effect, has_lane, known_after,
    may_follow, message_status, pass_over, pass_over_ended, predecessor, release, retry::later,
    signer_of,
};

#[derive(Debug, Default)]
pub(super) struct Book {
    messages: BTreeMap<Name, Kept>,
    deliveries: BTreeMap<Key, Delivery>,
    last_accepted: HashMap<PeerAddress, Time>,
    inboxes: HashMap<PeerId, Inbox>,
    /// Which deliveries of that id a peer has been shown.
    shown: HashMap<(PeerId, MessageId), BTreeSet<Key>>,
    lanes_out: HashMap<Lane, LaneOut>,
    lanes_in: HashMap<InLane, LaneIn>,
    envelopes: HashMap<[u8; 32], Key>,
    receipts: BTreeMap<([u8; 32], &'static str), ReceiptOwed>,

    // What is due when. A delivery is in each of these while it has that kind of future.
    attempts_due: BTreeSet<(Time, Key)>,
    waiting: BTreeSet<Key>,
    expiries: BTreeSet<(Time, Key)>,
    releases: BTreeSet<(Time, Key)>,
    ages: BTreeSet<(Time, Key)>,
}

/// A lane, and the gateway that counts it for another.
type InLane = (Lane, Option<GatewayId>);

type Name = (PeerAddress, MessageId);

/// The identity of promise 2: sender address, message id, recipient.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Key {
    sender: PeerAddress,
    id: MessageId,
    target: Target,
}

#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    accepted_at: Time,
    fingerprint: [u8; 32],
    deliveries: BTreeSet<Key>,
}

#[derive(Debug)]
struct Delivery {
    message: Arc<Message>,
    accepted_at: Time,
    sent_at: Time,
    status: MessageStatus,
    at: Time,
    reason: Option<String>,
    /// Nothing more is owed; a broadcast over a transport ends as `sent`.
    ended: bool,
    attempts: Vec<Attempt>,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Here(Here),
    Away(Away),
}

/// A delivery to a peer of this gateway.
#[derive(Debug, Default)]
struct Here {
    place: Place,
    gap: bool,
    late: bool,
    arrival: Option<Arrival>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Place {
    /// For a predecessor, until this time.
    Held(Time),
    /// For a client, in this order.
    Waits(u64),
    Shown(Seq),
    /// It ended before it was shown.
    #[default]
    Gone,
}

/// How a message came from elsewhere.
#[derive(Debug)]
struct Arrival {
    gateway: Option<Correspondent>,
    envelope: [u8; 32],
    lane: Option<(InLane, LaneSeq)>,
}

/// A delivery to elsewhere.
#[derive(Debug, Default)]
struct Away {
    lane: Option<(Lane, LaneSeq)>,
    /// The recipient's gateway has it.
    stored: bool,
    /// How often it was claimed.
    claims: u32,
    due: Option<Time>,
    /// Claims of which nobody has said yet what came of them: something may have left.
    open_claims: BTreeSet<u32>,
    envelopes: Vec<[u8; 32]>,
}

#[derive(Debug, Default)]
struct Inbox {
    last_seq: Seq,
    last_order: u64,
    waits: BTreeMap<u64, Key>,
    /// Shown and owed.
    shown: BTreeMap<Seq, Key>,
    /// Shown and then expired; a late confirmation still counts.
    lapsed: BTreeMap<Seq, Key>,
    /// Delivered and not yet read.
    unread: BTreeMap<Seq, Key>,
    held: usize,
}

#[derive(Debug, Default)]
struct LaneOut {
    last: u64,
    live: BTreeSet<LaneSeq>,
}

#[derive(Debug, Default)]
struct LaneIn {
    progress: Progress,
    held: Vec<Held>,
}

#[derive(Debug)]
struct ReceiptOwed {
    receipt: ReceiptOut,
    /// The digest under which it left last.
    own_digest: Option<[u8; 32]>,
    due: Time,
    forget_at: Time,
}

impl Book {
    pub(super) fn accept(&mut self, now: Time, submission: &Submission) -> Accepted {
        let message = &submission.message;
        let name = (message.sender.clone(), message.id);
        if let Some(kept) = self.messages.get(&name) {
            if later(kept.accepted_at, REMEMBERED) > now {
                return self.accepted_before(kept, submission);
            }
            self.forget(&name);
        }
        let accepted_at = self.next_accepted_at(now, &message.sender);
        let message = Arc::new(message.clone());
        let mut deliveries = BTreeSet::new();
        for target in &submission.deliveries {
            let (sender, id) = name.clone();
            let key = Key { sender, id, target: target.clone() };
            if deliveries.insert(key.clone()) {
                self.owe_delivery(accepted_at, &message, key);
            }
        }
        for failure in &submission.failures {
            let (sender, id) = name.clone();
            let key = Key { sender, id, target: failure.target.clone() };
            if deliveries.insert(key.clone()) {
                self.fail_at_once(accepted_at, &message, key, &failure.reason);
            }
        }
        let fingerprint = submission.fingerprint;
        self.messages.insert(name, Kept { message, accepted_at, fingerprint, deliveries });
        Accepted::New { accepted_at }
    }

    fn accepted_before(&self, kept: &Kept, submission: &Submission) -> Accepted {
        if kept.fingerprint != submission.fingerprint {
            return Accepted::Conflict;
        }
        let name = (kept.message.sender.clone(), kept.message.id);
        Accepted::Same {
            accepted_at: kept.accepted_at,
            expires_at: kept.message.expires_at,
            status: message_status(self.deliveries_of(&name).map(|(_, owed)| owed.status)),
        }
    }

    fn next_accepted_at(&mut self, now: Time, sender: &PeerAddress) -> Time {
        let now = now.trunc_subsecs(6);
        let at = match self.last_accepted.get(sender) {
            Some(last) => now.max(*last + TimeDelta::microseconds(1)),
            None => now,
        };
        self.last_accepted.insert(sender.clone(), at);
        at
    }

    fn owe_delivery(&mut self, accepted_at: Time, message: &Arc<Message>, key: Key) {
        let part = match &key.target {
            Target::Local(peer) => {
                let inbox = self.inboxes.entry(peer.clone()).or_default();
                Part::Here(Here { place: inbox.enqueue(key.clone()), ..Here::default() })
            }
            Target::Remote(_) | Target::Group { .. } => {
                let end = key.target.lane_end();
                let end = end.filter(|_| has_lane(message.priority, &message.to));
                let lane = end.map(|end| {
                    let lane = lane_of(message, end);
                    let out = self.lanes_out.entry(lane.clone()).or_default();
                    (lane, out.join())
                });
                Part::Away(Away { lane, due: Some(accepted_at), ..Away::default() })
            }
            Target::Broadcast(_) => Part::Away(Away { due: Some(accepted_at), ..Away::default() }),
        };
        if let Part::Away(_) = part {
            self.attempts_due.insert((accepted_at, key.clone()));
        }
        self.insert(key, Delivery::new(message, accepted_at, part));
    }

    fn fail_at_once(&mut self, accepted_at: Time, message: &Arc<Message>, key: Key, reason: &str) {
        let part = match &key.target {
            Target::Local(_) => Part::Here(Here::default()),
            Target::Remote(_) | Target::Group { .. } | Target::Broadcast(_) => {
                Part::Away(Away::default())
            }
        };
        let mut delivery = Delivery::new(message, accepted_at, part);
        (delivery.status, delivery.ended) = (MessageStatus::Failed, true);
        delivery.reason = Some(reason.to_owned());
        self.ages.insert((accepted_at, key.clone()));
        self.deliveries.insert(key, delivery);
    }

    fn insert(&mut self, key: Key, delivery: Delivery) {
        self.expiries.insert((delivery.message.expires_at, key.clone()));
        self.ages.insert((delivery.accepted_at, key.clone()));
        self.deliveries.insert(key, delivery);
    }

    pub(super) fn show(
        &mut self,
        now: Time,
        peer: &PeerId,
        after: Seq,
        limit: usize,
    ) -> Vec<InboxEntry> {
        self.hand_gaps_on(now, peer);
        let Some(inbox) = self.inboxes.get_mut(peer) else { return Vec::new() };
        let deliveries = &mut self.deliveries;
        let mut entries = Vec::new();
        for (seq, key) in inbox.shown.range(after.max(0).saturating_add(1)..) {
            let Some(delivery) = deliveries.get(key) else { continue };
            if entries.len() < limit && delivery.message.expires_at > now {
                entries.push(delivery.entry(*seq));
            }
        }
        let mut given = Vec::new();
        for (order, key) in &inbox.waits {
            // A cursor from before a restore is ahead of us: nothing can stand above it yet.
            if entries.len() >= limit || inbox.last_seq < after {
                break;
            }
            let Some(delivery) = deliveries.get_mut(key) else { continue };
            if delivery.message.expires_at <= now {
                continue;
            }
            inbox.last_seq += 1;
            delivery.show(now, inbox.last_seq);
            entries.push(delivery.entry(inbox.last_seq));
            given.push((*order, inbox.last_seq));
        }
        for (order, seq) in given {
            if let Some(key) = inbox.waits.remove(&order) {
                self.shown.entry((peer.clone(), key.id)).or_default().insert(key.clone());
                inbox.shown.insert(seq, key);
            }
        }
        entries
    }

    pub(super) fn confirm(
        &mut self,
        now: Time,
        peer: &PeerId,
        what: &Confirm,
        read: bool,
    ) -> Vec<Settled> {
        let keys = match what {
            Confirm::UpTo(seq) => {
                self.inboxes.get(peer).map(|inbox| inbox.up_to(*seq, read)).unwrap_or_default()
            }
            Confirm::Messages(names) => names
                .iter()
                .flat_map(|(id, sender)| {
                    let shown = self.shown.get(&(peer.clone(), *id)).into_iter().flatten();
                    shown.filter(move |key| sender.as_ref().is_none_or(|name| *name == key.sender))
                })
                .cloned()
                .collect(),
        };
        keys.into_iter().filter_map(|key| self.confirm_one(now, peer, key, read)).collect()
    }

    fn confirm_one(&mut self, now: Time, peer: &PeerId, key: Key, read: bool) -> Option<Settled> {
        let (status, kind) = match read {
            true => (MessageStatus::Read, ReceiptKind::Read),
            false => (MessageStatus::Delivered, ReceiptKind::Delivered),
        };
        let settled = self.end(now, &key, status, None)?;
        self.owe_receipt(now, &key, kind, None);
        let delivery = self.deliveries.get(&key)?;
        if let (Part::Here(Here { place: Place::Shown(seq), .. }), Some(inbox)) =
            (&delivery.part, self.inboxes.get_mut(peer))
        {
            inbox.lapsed.remove(seq);
            if read {
                inbox.unread.remove(seq);
            } else {
                inbox.unread.insert(*seq, key);
            }
        }
        Some(settled)
    }

    pub(super) fn cancel(&mut self, now: Time, sender: &PeerId, id: MessageId) -> Cancelled {
        let name = (PeerAddress::local(sender.clone()), id);
        if !self.messages.contains_key(&name) {
            return Cancelled::Unknown;
        }
        let keys: Vec<_> = self.deliveries_of(&name).map(|(key, _)| key.clone()).collect();
        // What was for nobody has ended as it was accepted.
        if self.deliveries_of(&name).all(|(_, delivery)| delivery.ended)
            || self.deliveries_of(&name).any(|(_, delivery)| delivery.may_have_left())
        {
            return Cancelled::TooLate;
        }
        for key in keys {
            self.end(now, &key, MessageStatus::Cancelled, None);
        }
        Cancelled::Done
    }

    pub(super) fn expire_due(&mut self, now: Time, limit: usize) -> Vec<Settled> {
        let over = self.expiries.iter().take_while(|(at, _)| *at <= now).take(limit);
        let keys: Vec<_> = over.map(|(_, key)| key.clone()).collect();
        keys.iter()
            .filter_map(|key| {
                let settled = self.end(now, key, MessageStatus::Expired, None)?;
                self.keep_lapsed(key);
                Some(settled)
            })
            .collect()
    }

    /// A recipient may confirm what it was shown in time even when the time has run out since.
    fn keep_lapsed(&mut self, key: &Key) {
        let Target::Local(peer) = &key.target else { return };
        let Some(Delivery { part: Part::Here(Here { place: Place::Shown(seq), .. }), .. }) =
            self.deliveries.get(key)
        else {
            return;
        };
        if let Some(inbox) = self.inboxes.get_mut(peer) {
            inbox.lapsed.insert(*seq, key.clone());
        }
    }

    pub(super) fn claim_due(
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

    pub(super) fn record(
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

    pub(super) fn reached(&mut self, now: Time, targets: &[String]) -> u64 {
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

    pub(super) fn receive(
        &mut self,
        now: Time,
        inbound: &Inbound,
        order_wait: Duration,
        inbox_limit: usize,
    ) -> Received {
        let message = &inbound.message;
        let target = Target::Local(inbound.recipient.clone());
        let key = Key { sender: message.sender.clone(), id: message.id, target };
        if self.deliveries.contains_key(&key) {
            self.receive_again(now, &key, inbound);
            return Received::Duplicate;
        }
        let inbox = self.inboxes.entry(inbound.recipient.clone()).or_default();
        if inbox.len() >= inbox_limit {
            let reason = format!("the recipient's inbox is full: it holds {inbox_limit} messages");
            self.owe_refusal(now, inbound, reason.clone());
            return Received::Refused(reason);
        }
        let lane = inbound.lane_seq.map(|lane_seq| {
            ((lane_of(message, inbound.recipient.clone().into()), inbound.via), lane_seq)
        });
        let place = match &lane {
            None => inbox.enqueue(key.clone()),
            Some(_) => {
                inbox.held += 1;
                Place::Held(later(now, order_wait))
            }
        };
        let arrival =
            Arrival { gateway: inbound.signer(), envelope: inbound.envelope, lane: lane.clone() };
        let here = Here { place, arrival: Some(arrival), ..Here::default() };
        let accepted_at = now.trunc_subsecs(6);
        let delivery = Delivery::new(&Arc::new(message.clone()), accepted_at, Part::Here(here));
        let sent_at = inbound.shown_sent_at(accepted_at);
        self.insert(key.clone(), Delivery { sent_at, ..delivery });
        self.owe_receipt(now, &key, ReceiptKind::Stored, None);
        if let Some((lane, lane_seq)) = lane {
            self.releases.insert((later(now, order_wait), key.clone()));
            self.arrive(&lane, lane_seq, inbound.after, key.id);
        }
        Received::Stored { visible: !self.is_held(&key) }
    }

    /// The sender has heard no receipt yet, or says more of the predecessors than before.
    fn receive_again(&mut self, now: Time, key: &Key, inbound: &Inbound) {
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        let status = delivery.status;
        let Part::Here(Here { arrival: Some(arrival), .. }) = &mut delivery.part else { return };
        // The sender may never have recorded an earlier envelope; this one it is waiting for.
        arrival.envelope = inbound.envelope;
        let lane = arrival.lane.clone();
        self.owe_receipt(now, key, ReceiptKind::Stored, None);
        match status {
            MessageStatus::Delivered => self.owe_receipt(now, key, ReceiptKind::Delivered, None),
            MessageStatus::Read => self.owe_receipt(now, key, ReceiptKind::Read, None),
            _ => {}
        }
        if let Some((lane, lane_seq)) = lane {
            let known = self.lanes_in.entry(lane.clone()).or_default();
            pass_over(&mut known.held, lane_seq, inbound.after);
            self.release(&lane, None);
        }
    }

    fn arrive(&mut self, lane: &InLane, lane_seq: LaneSeq, after: Option<LaneSeq>, id: MessageId) {
        let known = self.lanes_in.entry(lane.clone()).or_default();
        pass_over(&mut known.held, lane_seq, after);
        let after = known_after(&known.held, lane_seq, after);
        known.held.push(Held { lane_seq, id, after });
        self.release(lane, None);
    }

    /// Shows what may be shown; true when there was anything.
    fn release(&mut self, lane: &InLane, due: Option<LaneSeq>) -> bool {
        let Some(known) = self.lanes_in.get_mut(lane) else { return false };
        let released = release(&mut known.progress, &mut known.held, due);
        for out in &released {
            let Some(key) = inbound_key(&lane.0, out.id) else { continue };
            self.unhold(&key);
            let Target::Local(peer) = &key.target else { continue };
            let inbox = self.inboxes.entry(peer.clone()).or_default();
            if let Some(delivery) = self.deliveries.get_mut(&key)
                && let Part::Here(here) = &mut delivery.part
            {
                here.place = inbox.enqueue(key.clone());
                (here.gap, here.late) = (out.gap, out.late);
            }
        }
        !released.is_empty()
    }

    fn unhold(&mut self, key: &Key) {
        if let Some(Delivery { part: Part::Here(here), .. }) = self.deliveries.get_mut(key)
            && let Place::Held(until) = here.place
            && let Target::Local(peer) = &key.target
        {
            here.place = Place::Gone;
            self.releases.remove(&(until, key.clone()));
            if let Some(inbox) = self.inboxes.get_mut(peer) {
                inbox.held -= 1;
            }
        }
    }

    fn is_held(&self, key: &Key) -> bool {
        matches!(
            self.deliveries.get(key),
            Some(Delivery { part: Part::Here(Here { place: Place::Held(_), .. }), .. })
        )
    }

    pub(super) fn release_held(&mut self, now: Time, limit: usize) -> Vec<PeerId> {
        let over = self.releases.iter().take_while(|(at, _)| *at <= now).take(limit);
        let keys: Vec<_> = over.map(|(_, key)| key.clone()).collect();
        let mut peers = Vec::new();
        for key in keys {
            let Some((lane, lane_seq)) = self.lane_in(&key) else { continue };
            if self.release(&lane, Some(lane_seq))
                && let Target::Local(peer) = key.target
                && !peers.contains(&peer)
            {
                peers.push(peer);
            }
        }
        peers
    }

    fn lane_in(&self, key: &Key) -> Option<(InLane, LaneSeq)> {
        let Part::Here(here) = &self.deliveries.get(key)?.part else { return None };
        here.arrival.as_ref()?.lane.clone()
    }

    pub(super) fn settle(&mut self, now: Time, receipt: &ReceiptIn) -> Option<Settled> {
        let key = self.envelopes.get(&receipt.envelope)?.clone();
        let delivery = self.deliveries.get_mut(&key)?;
        let Part::Away(away) = &mut delivery.part else { return None };
        let standing = Standing { status: delivery.status, stored: away.stored };
        match effect(standing, &key.target, receipt)? {
            Effect::Stored => {
                away.stored = true;
                delivery.mark_last_attempt(AttemptResult::Stored);
                self.set_due(&key, None);
                self.waiting.remove(&key);
                self.move_to(now, &key, MessageStatus::Sent, None)
            }
            Effect::Ends { status, reason } => {
                away.stored = status != MessageStatus::Failed;
                delivery.mark_last_attempt(match status {
                    MessageStatus::Failed => AttemptResult::Refused,
                    _ => AttemptResult::Stored,
                });
                self.end(receipt.at, &key, status, reason)
            }
        }
    }

    pub(super) fn claim_receipts(
        &mut self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> Vec<ReceiptOut> {
        let mut due: Vec<_> = self
            .receipts
            .values_mut()
            .filter(|owed| owed.due <= now && reachable.contains(&owed.receipt.gateway.to_string()))
            .collect();
        due.sort_by_key(|owed| owed.due);
        due.truncate(limit);
        due.into_iter()
            .map(|owed| {
                owed.due = later(now, lease);
                owed.receipt.attempt += 1;
                owed.receipt.clone()
            })
            .collect()
    }

    pub(super) fn receipt_done(&mut self, receipt: &ReceiptOut, retry_at: Option<Time>) {
        let name = (receipt.envelope, receipt.kind.as_str());
        match (retry_at, self.receipts.get_mut(&name)) {
            (Some(retry_at), Some(owed)) => owed.due = retry_at,
            (None, _) => drop(self.receipts.remove(&name)),
            (Some(_), None) => {}
        }
    }

    pub(super) fn envelope_leaves(&mut self, claim: &Claim, envelope: &[u8; 32]) {
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

    pub(super) fn hasten(&mut self, now: Time, targets: &[String]) {
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

    pub(super) fn receipt_left(&mut self, receipt: &ReceiptOut, own: &[u8; 32], retry_at: Time) {
        let name = (receipt.envelope, receipt.kind.as_str());
        if let Some(owed) = self.receipts.get_mut(&name) {
            owed.own_digest = Some(*own);
            owed.due = retry_at;
        }
    }

    pub(super) fn receipt_answered(&mut self, own: &[u8; 32], signer: Correspondent) {
        self.receipts
            .retain(|_, owed| owed.own_digest != Some(*own) || owed.receipt.gateway != signer);
    }

    pub(super) fn answer_receipt(
        &mut self,
        now: Time,
        receipt: &ReceiptIn,
        digest: &[u8; 32],
    ) -> bool {
        let Some(key) = self.envelopes.get(&receipt.envelope) else { return false };
        let is_theirs = signer_of(&key.target) == Some(receipt.signer);
        let Some(delivery) = self.deliveries.get(key).filter(|_| is_theirs) else { return false };
        let answer = ReceiptOut {
            envelope: *digest,
            gateway: receipt.signer,
            kind: ReceiptKind::Stored,
            at: now,
            reason: None,
            level: delivery.message.min_anonymity,
            attempt: 0,
        };
        self.owe(now, answer);
        true
    }

    pub(super) fn next_receipt(&self) -> Option<Time> {
        self.receipts.values().map(|owed| owed.due).min()
    }

    pub(super) fn owes_anything(&self) -> bool {
        !self.receipts.is_empty() || !self.attempts_due.is_empty() || !self.waiting.is_empty()
    }

    pub(super) fn records(&self, caller: &PeerId, id: MessageId) -> Vec<Record> {
        let name = (PeerAddress::local(caller.clone()), id);
        if let Some(kept) = self.messages.get(&name) {
            let mut deliveries: Vec<_> =
                self.deliveries_of(&name).map(|(key, owed)| owed.record(key, true)).collect();
            deliveries.sort_by(|a, b| a.recipient.cmp(&b.recipient));
            let message = Message::clone(&kept.message);
            let accepted_at = kept.accepted_at;
            return vec![Record { message, accepted_at, sent_at: accepted_at, deliveries }];
        }
        let shown = self.shown.get(&(caller.clone(), id)).into_iter().flatten();
        shown
            .filter_map(|key| {
                let delivery = self.deliveries.get(key)?;
                Some(Record {
                    message: Message::clone(&delivery.message),
                    accepted_at: delivery.accepted_at,
                    sent_at: delivery.sent_at,
                    deliveries: vec![delivery.record(key, false)],
                })
            })
            .collect()
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        let queues = [&self.attempts_due, &self.expiries, &self.releases];
        queues.into_iter().filter_map(|queue| Some(queue.first()?.0)).min()
    }

    /// Forgets up to `limit` deliveries that have ended and are older than identity is remembered.
    pub(super) fn forget_old(&mut self, now: Time, limit: usize) {
        let is_old = |at: Time| later(at, REMEMBERED) <= now;
        let old = self.ages.iter().take_while(|(at, _)| is_old(*at)).take(limit);
        let keys: Vec<_> = old.map(|(_, key)| key.clone()).collect();
        for key in keys {
            if self.deliveries.get(&key).is_some_and(|delivery| delivery.ended) {
                self.forget_delivery(&key);
                let name = (key.sender.clone(), key.id);
                if let Some(kept) = self.messages.get_mut(&name) {
                    kept.deliveries.remove(&key);
                    if kept.deliveries.is_empty() {
                        self.messages.remove(&name);
                    }
                }
            }
        }
        self.receipts.retain(|_, owed| owed.forget_at > now);
    }

    fn forget(&mut self, name: &Name) {
        let keys: Vec<_> = self.deliveries_of(name).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.forget_delivery(&key);
        }
        self.messages.remove(name);
    }

    fn forget_delivery(&mut self, key: &Key) {
        self.leave_queues(key);
        let Some(delivery) = self.deliveries.remove(key) else { return };
        self.ages.remove(&(delivery.accepted_at, key.clone()));
        match delivery.part {
            Part::Away(away) => {
                for envelope in away.envelopes {
                    self.envelopes.remove(&envelope);
                }
            }
            Part::Here(here) => {
                let Target::Local(peer) = &key.target else { return };
                let name = (peer.clone(), key.id);
                if let Some(keys) = self.shown.get_mut(&name) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.shown.remove(&name);
                    }
                }
                if let (Place::Shown(seq), Some(inbox)) = (here.place, self.inboxes.get_mut(peer)) {
                    inbox.lapsed.remove(&seq);
                    inbox.unread.remove(&seq);
                }
            }
        }
    }

    fn deliveries_of(&self, name: &Name) -> impl Iterator<Item = (&Key, &Delivery)> {
        let keys = self.messages.get(name).into_iter().flat_map(|kept| &kept.deliveries);
        keys.filter_map(|key| Some((key, self.deliveries.get(key)?)))
    }

    /// Ends a delivery, if `status` may follow; `None` when nothing changed.
    fn end(
        &mut self,
        at: Time,
        key: &Key,
        status: MessageStatus,
        reason: Option<String>,
    ) -> Option<Settled> {
        let delivery = self.deliveries.get_mut(key)?;
        let is_broadcast = matches!(key.target, Target::Broadcast(_));
        let ends_as_sent = is_broadcast && status == MessageStatus::Sent && !delivery.ended;
        if !ends_as_sent && !may_follow(delivery.status, status) {
            return None;
        }
        delivery.ended = true;
        (delivery.status, delivery.at, delivery.reason) = (status, at, reason);
        let settled = delivery.settled(key);
        self.leave_queues(key);
        Some(settled)
    }

    /// Moves a delivery between `pending` and `sent`.
    fn move_to(
        &mut self,
        at: Time,
        key: &Key,
        status: MessageStatus,
        reason: Option<String>,
    ) -> Option<Settled> {
        let delivery = self.deliveries.get_mut(key)?;
        delivery.reason = reason;
        if !may_follow(delivery.status, status) {
            return None;
        }
        (delivery.status, delivery.at) = (status, at);
        Some(delivery.settled(key))
    }

    fn set_due(&mut self, key: &Key, due: Option<Time>) {
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

    fn leave_queues(&mut self, key: &Key) {
        let lane_in = self.is_held(key).then(|| self.lane_in(key)).flatten();
        self.unhold(key);
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        self.expiries.remove(&(delivery.message.expires_at, key.clone()));
        self.waiting.remove(key);
        match &mut delivery.part {
            Part::Away(away) => {
                if let Some(due) = away.due.take() {
                    self.attempts_due.remove(&(due, key.clone()));
                }
                if let Some((lane, lane_seq)) = &away.lane
                    && let Some(out) = self.lanes_out.get_mut(lane)
                {
                    out.live.remove(lane_seq);
                }
            }
            Part::Here(here) => {
                let Target::Local(peer) = &key.target else { return };
                let Some(inbox) = self.inboxes.get_mut(peer) else { return };
                match here.place {
                    Place::Waits(order) => {
                        inbox.waits.remove(&order);
                        here.place = Place::Gone;
                        if here.gap {
                            self.hand_gap_on(key, order);
                        }
                    }
                    Place::Shown(seq) => {
                        inbox.shown.remove(&seq);
                    }
                    Place::Held(_) | Place::Gone => {}
                }
            }
        }
        if let Some((lane, _)) = lane_in {
            self.pass_over_ended(&lane, key.id);
        }
    }

    /// Lets the next message of a lane say that something is missing, instead of one that nobody has
    /// seen and nobody will.
    fn hand_gap_on(&mut self, key: &Key, order: u64) {
        let Some((lane, _)) = self.lane_in(key) else { return };
        let Target::Local(peer) = &key.target else { return };
        let waits = self.inboxes.get(peer).map(|inbox| &inbox.waits);
        let mut behind = waits.into_iter().flat_map(|waits| waits.range(order + 1..));
        let is_next = |(_, other): &(&u64, &Key)| {
            let Some(Part::Here(here)) = self.deliveries.get(other).map(|one| &one.part) else {
                return false;
            };
            let other = here.arrival.as_ref().and_then(|arrival| arrival.lane.as_ref());
            !here.late && other.is_some_and(|(of, _)| *of == lane)
        };
        let next = behind.find(is_next).map(|(_, next)| next.clone());
        match next.and_then(|next| self.deliveries.get_mut(&next)) {
            Some(Delivery { part: Part::Here(here), .. }) => here.gap = true,
            _ => self.lanes_in.entry(lane).or_default().progress.owes_gap = true,
        }
    }

    /// Hands on the gaps of messages whose time is over, before anything behind them is shown.
    fn hand_gaps_on(&mut self, now: Time, peer: &PeerId) {
        while let Some((order, key)) = self.unseen_gap(now, peer) {
            if let Some(Delivery { part: Part::Here(here), .. }) = self.deliveries.get_mut(&key) {
                here.gap = false;
            }
            self.hand_gap_on(&key, order);
        }
    }

    fn unseen_gap(&self, now: Time, peer: &PeerId) -> Option<(u64, Key)> {
        let mut waits = self.inboxes.get(peer)?.waits.iter();
        let (order, key) = waits.find(|(_, key)| {
            self.deliveries.get(key).is_some_and(|delivery| {
                let has_gap = matches!(&delivery.part, Part::Here(here) if here.gap);
                has_gap && delivery.message.expires_at <= now
            })
        })?;
        Some((*order, key.clone()))
    }

    /// What waited for a message that ended while it was held itself waits for what that one
    /// waited for.
    fn pass_over_ended(&mut self, lane: &InLane, id: MessageId) {
        let Some(known) = self.lanes_in.get_mut(lane) else { return };
        let Some(index) = known.held.iter().position(|held| held.id == id) else { return };
        let ended = known.held.swap_remove(index);
        pass_over_ended(&mut known.held, ended.lane_seq, ended.after);
        self.release(lane, None);
    }

    fn owe_receipt(&mut self, now: Time, key: &Key, kind: ReceiptKind, reason: Option<String>) {
        let Some(delivery) = self.deliveries.get(key) else { return };
        let Part::Here(Here { arrival: Some(arrival), .. }) = &delivery.part else { return };
        let Some(gateway) = arrival.gateway else { return };
        if matches!(gateway, Correspondent::Phone(_)) && kind == ReceiptKind::Stored {
            // Phones have no word for it.
            return;
        }
        let level = delivery.message.min_anonymity;
        let envelope = arrival.envelope;
        self.receipts.remove(&(envelope, ReceiptKind::Refused.as_str()));
        let receipt = ReceiptOut { envelope, gateway, kind, at: now, reason, level, attempt: 0 };
        self.owe(now, receipt);
    }

    fn owe_refusal(&mut self, now: Time, inbound: &Inbound, reason: String) {
        let Some(gateway) = inbound.signer() else { return };
        self.owe(
            now,
            ReceiptOut {
                envelope: inbound.envelope,
                gateway,
                kind: ReceiptKind::Refused,
                at: now,
                reason: Some(reason),
                level: inbound.message.min_anonymity,
                attempt: 0,
            },
        );
    }

    fn owe(&mut self, now: Time, receipt: ReceiptOut) {
        let name = (receipt.envelope, receipt.kind.as_str());
        let forget_at = later(now, REMEMBERED);
        let owed = ReceiptOwed { receipt, own_digest: None, due: now, forget_at };
        self.receipts.insert(name, owed);
    }
}

impl Delivery {
    fn new(message: &Arc<Message>, accepted_at: Time, part: Part) -> Self {
        Self {
            message: Arc::clone(message),
            accepted_at,
            sent_at: accepted_at,
            status: MessageStatus::Pending,
            at: accepted_at,
            reason: None,
            ended: false,
            attempts: Vec::new(),
            part,
        }
    }

    fn show(&mut self, now: Time, seq: Seq) {
        (self.status, self.at) = (MessageStatus::Sent, now);
        if let Part::Here(here) = &mut self.part {
            here.place = Place::Shown(seq);
        }
    }

    fn entry(&self, seq: Seq) -> InboxEntry {
        let (gap, late) = match &self.part {
            Part::Here(here) => (here.gap, here.late),
            Part::Away(_) => (false, false),
        };
        let message = Message::clone(&self.message);
        let (accepted_at, sent_at) = (self.accepted_at, self.sent_at);
        InboxEntry { seq, accepted_at, sent_at, message, gap, late }
    }

    fn may_have_left(&self) -> bool {
        match &self.part {
            Part::Here(here) => matches!(here.place, Place::Shown(_)),
            Part::Away(away) => {
                self.status == MessageStatus::Sent
                    || !away.envelopes.is_empty()
                    || !away.open_claims.is_empty()
            }
        }
    }

    /// Notes attempts; one that is known by its transport and start gets its newer result.
    fn note(&mut self, attempts: &[Attempt]) {
        for attempt in attempts {
            let known = self.attempts.iter_mut().find(|known| {
                (&known.transport, known.started_at) == (&attempt.transport, attempt.started_at)
            });
            match known {
                // A receipt has the last word.
                Some(known)
                    if matches!(known.result, AttemptResult::Stored | AttemptResult::Refused) => {}
                Some(known) => known.clone_from(attempt),
                None => self.attempts.push(attempt.clone()),
            }
        }
        self.attempts.sort_by_key(|attempt| attempt.started_at);
    }

    /// The receipt does not say which copy arrived, so the last that was still on its way gets it.
    fn mark_last_attempt(&mut self, result: AttemptResult) {
        let open = |attempt: &&mut Attempt| attempt.result == AttemptResult::Sent;
        if let Some(attempt) = self.attempts.iter_mut().rev().find(open) {
            attempt.result = result;
        }
    }

    fn settled(&self, key: &Key) -> Settled {
        Settled {
            id: key.id,
            sender: key.sender.clone(),
            recipient: key.target.recipient(),
            status: self.status,
            at: self.at,
            reason: self.reason.clone(),
        }
    }

    fn record(&self, key: &Key, for_sender: bool) -> DeliveryRecord {
        let attempts = match &self.part {
            _ if !for_sender => Vec::new(),
            Part::Here(_) if self.status == MessageStatus::Failed => Vec::new(),
            Part::Here(_) => vec![Attempt {
                transport: crate::LOCAL.into(),
                started_at: self.accepted_at,
                result: AttemptResult::Stored,
                reason: None,
                hops: None,
            }],
            Part::Away(_) => self.attempts.clone(),
        };
        DeliveryRecord {
            recipient: key.target.recipient(),
            status: self.status,
            at: Some(self.at),
            reason: self.reason.clone(),
            attempts,
        }
    }
}

impl Inbox {
    fn enqueue(&mut self, key: Key) -> Place {
        self.last_order += 1;
        self.waits.insert(self.last_order, key);
        Place::Waits(self.last_order)
    }

    fn len(&self) -> usize {
        self.waits.len() + self.shown.len() + self.held
    }

    fn up_to(&self, seq: Seq, read: bool) -> Vec<Key> {
        let mut keys: BTreeMap<Seq, Key> = BTreeMap::new();
        for shown in [Some(&self.shown), Some(&self.lapsed), read.then_some(&self.unread)] {
            let shown = shown.into_iter().flat_map(|shown| shown.range(..=seq));
            keys.extend(shown.map(|(seq, key)| (*seq, key.clone())));
        }
        keys.into_values().collect()
    }
}

impl LaneOut {
    fn join(&mut self) -> LaneSeq {
        self.last += 1;
        self.live.insert(LaneSeq(self.last));
        LaneSeq(self.last)
    }
}

fn lane_of(message: &Message, recipient: Recipient) -> Lane {
    Lane { sender: message.sender.clone(), recipient, level: message.min_anonymity }
}

fn inbound_key(lane: &Lane, id: MessageId) -> Option<Key> {
    let recipient = lane.recipient.as_peer()?.peer.clone();
    Some(Key { sender: lane.sender.clone(), id, target: Target::Local(recipient) })
}

fn is_phone(target: &Target) -> bool {
    matches!(target, Target::Remote(address) if address.gateway.is_none() && address.peer.is_phone())
}
