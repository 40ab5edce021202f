//! What waits for the client of a peer of this gateway, is shown to it and confirmed by it.

use std::collections::BTreeMap;

use fieldpost_envelope::{MessageStatus, PeerId, ReceiptKind};

use super::{
    Book,
    delivery::{Delivery, Here, Key, Part, Place},
};
use crate::{Confirm, InboxEntry, Seq, Settled, Submission, Target, Time};

#[derive(Debug, Default)]
pub(super) struct Inbox {
    last_seq: Seq,
    last_order: u64,
    pub(super) waits: BTreeMap<u64, Key>,
    /// Shown and owed.
    pub(super) shown: BTreeMap<Seq, Key>,
    /// Shown and then expired; a late confirmation still counts.
    pub(super) lapsed: BTreeMap<Seq, Key>,
    /// Delivered and not yet read.
    pub(super) unread: BTreeMap<Seq, Key>,
    pub(super) held: usize,
}

impl Book {
    pub(in crate::memory) fn show(
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

    /// Shows what was just accepted to those who are present and for whom nothing else waits.
    pub(in crate::memory) fn show_at_once(
        &mut self,
        now: Time,
        submission: &Submission,
        present: &[PeerId],
    ) -> Vec<(PeerId, InboxEntry)> {
        let mut shown = Vec::new();
        for target in &submission.deliveries {
            let Target::Local(peer) = target else { continue };
            let inbox = self.inboxes.get(peer).filter(|inbox| inbox.waits.len() == 1);
            if let Some(last_seq) = inbox.map(|inbox| inbox.last_seq)
                && present.contains(peer)
            {
                let entries = self.show(now, peer, last_seq, 1);
                shown.extend(entries.into_iter().map(|entry| (peer.clone(), entry)));
            }
        }
        shown
    }

    pub(in crate::memory) fn confirm(
        &mut self,
        now: Time,
        peer: &PeerId,
        what: &Confirm,
        read: bool,
    ) -> Vec<Settled> {
        let keys: Vec<Key> = match what {
            Confirm::UpTo { seq, seen_from } => {
                let Some(inbox) = self.inboxes.get(peer) else { return Vec::new() };
                let is_over = |key: &Key| {
                    let delivery = self.deliveries.get(key);
                    delivery.is_none_or(|delivery| delivery.message.expires_at <= now)
                };
                let mut places = inbox.up_to(*seq, read);
                places.retain(|place, key| {
                    place >= seen_from || inbox.unread.contains_key(place) || !is_over(key)
                });
                places.into_values().collect()
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

    /// A recipient may confirm what it was shown in time even when the time has run out since.
    pub(super) fn keep_lapsed(&mut self, key: &Key) {
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

    /// Hands on the gaps of messages whose time is over, before anything behind them is shown.
    fn hand_gaps_on(&mut self, now: Time, peer: &PeerId) {
        while let Some((order, key)) = self.unseen_gap(now, peer) {
            let Some(Delivery { part: Part::Here(here), .. }) = self.deliveries.get_mut(&key)
            else {
                return;
            };
            here.gap = false;
            let is_late = here.late;
            if !is_late {
                self.hand_gap_on(&key, order);
            }
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

    /// Lets the next message of a lane say that something is missing, and what is late before it,
    /// instead of one that nobody has seen and nobody will.
    pub(super) fn hand_gap_on(&mut self, key: &Key, order: u64) {
        let Some((lane, _)) = self.lane_in(key) else { return };
        let Target::Local(peer) = &key.target else { return };
        let waits = self.inboxes.get(peer).map(|inbox| &inbox.waits);
        for other in
            waits.into_iter().flat_map(|waits| waits.range(order + 1..)).map(|(_, key)| key)
        {
            let Some(Delivery { part: Part::Here(here), .. }) = self.deliveries.get_mut(other)
            else {
                continue;
            };
            let of = here.arrival.as_ref().and_then(|arrival| arrival.lane.as_ref());
            if of.is_some_and(|(of, _)| *of == lane) {
                here.gap = true;
                if !here.late {
                    return;
                }
            }
        }
        self.lanes_in.entry(lane).or_default().progress.owes_gap = true;
    }
}

impl Inbox {
    pub(super) fn enqueue(&mut self, key: Key) -> Place {
        self.last_order += 1;
        self.waits.insert(self.last_order, key);
        Place::Waits(self.last_order)
    }

    pub(super) fn len(&self) -> usize {
        self.waits.len() + self.shown.len() + self.held
    }

    fn up_to(&self, seq: Seq, read: bool) -> BTreeMap<Seq, Key> {
        let mut keys: BTreeMap<Seq, Key> = BTreeMap::new();
        for shown in [Some(&self.shown), Some(&self.lapsed), read.then_some(&self.unread)] {
            let shown = shown.into_iter().flat_map(|shown| shown.range(..=seq));
            keys.extend(shown.map(|(seq, key)| (*seq, key.clone())));
        }
        keys
    }
}
