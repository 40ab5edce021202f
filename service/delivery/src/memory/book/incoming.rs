//! What comes from elsewhere for peers of this gateway, and waits for its turn in its lane.

use std::{sync::Arc, time::Duration};

use chrono::SubsecRound;
use fieldpost_envelope::{Lane, LaneSeq, MessageId, MessageStatus, PeerId, ReceiptKind};

use super::{
    Book, InLane,
    delivery::{Arrival, Delivery, Here, Key, Part, Place},
    lane_of,
};
use crate::{
    Held, Inbound, Progress, Received, Target, Time, known_after, pass_over, pass_over_ended,
    release, retry::later,
};

#[derive(Debug, Default)]
pub(super) struct LaneIn {
    pub(super) progress: Progress,
    held: Vec<Held>,
}

impl Book {
    pub(in crate::memory) fn receive(
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

    pub(in crate::memory) fn release_held(&mut self, now: Time, limit: usize) -> Vec<PeerId> {
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

    /// What waited for a message that ended while it was held itself waits for what that one
    /// waited for.
    pub(super) fn pass_over_ended(&mut self, lane: &InLane, id: MessageId) {
        let Some(known) = self.lanes_in.get_mut(lane) else { return };
        let Some(index) = known.held.iter().position(|held| held.id == id) else { return };
        let ended = known.held.swap_remove(index);
        pass_over_ended(&mut known.held, ended.lane_seq, ended.after);
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

    pub(super) fn unhold(&mut self, key: &Key) {
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

    pub(super) fn is_held(&self, key: &Key) -> bool {
        matches!(
            self.deliveries.get(key),
            Some(Delivery { part: Part::Here(Here { place: Place::Held(_), .. }), .. })
        )
    }

    pub(super) fn lane_in(&self, key: &Key) -> Option<(InLane, LaneSeq)> {
        let Part::Here(here) = &self.deliveries.get(key)?.part else { return None };
        here.arrival.as_ref()?.lane.clone()
    }
}

fn inbound_key(lane: &Lane, id: MessageId) -> Option<Key> {
    let recipient = lane.recipient.as_peer()?.peer.clone();
    Some(Key { sender: lane.sender.clone(), id, target: Target::Local(recipient) })
}
