//! What the memory store keeps, and what each method does to it under the lock.

mod delivery;
mod inbox;
mod incoming;
mod outgoing;
mod receipts;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use chrono::{SubsecRound, TimeDelta};
use fieldpost_envelope::{
    GatewayId, Lane, MessageId, MessageStatus, PeerAddress, PeerId, Recipient,
};

use self::{
    delivery::{Away, Delivery, Here, Key, Part, Place},
    inbox::Inbox,
    incoming::LaneIn,
    outgoing::LaneOut,
    receipts::ReceiptOwed,
};
use super::REMEMBERED;
use crate::{
    Accepted, Cancelled, Message, Record, Settled, Submission, Target, Time, has_lane, may_follow,
    message_status, retry::later,
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

#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    accepted_at: Time,
    fingerprint: [u8; 32],
    deliveries: BTreeSet<Key>,
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

    pub(super) fn owes_anything(&self) -> bool {
        !self.receipts.is_empty() || !self.attempts_due.is_empty() || !self.waiting.is_empty()
    }

    fn insert(&mut self, key: Key, delivery: Delivery) {
        self.expiries.insert((delivery.message.expires_at, key.clone()));
        self.ages.insert((delivery.accepted_at, key.clone()));
        self.deliveries.insert(key, delivery);
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
                        if here.gap && !here.late {
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
}

fn lane_of(message: &Message, recipient: Recipient) -> Lane {
    Lane { sender: message.sender.clone(), recipient, level: message.min_anonymity }
}
