//! Envelopes and rosters, both ways.

use bytes::Bytes;
use fieldpost_envelope::{GatewayId, SignedRoster};
use rand::Rng;

use super::{
    ASK_INTERVAL, Action, Moment, Outgoing, Peering, Pending, TELL_INTERVAL, Target, Waiting,
    limits,
};
use crate::{
    counters::Refusal,
    flow::{Item, SendFailure},
    link::LinkId,
    wire::{Frame, decode_batch, decode_rosters},
};

impl<R: Rng> Peering<R> {
    pub(super) fn send(&mut self, now: Moment, all: Vec<Outgoing>) {
        let mut touched = Vec::new();
        for Outgoing { token, target, envelope } in all {
            let links: Vec<LinkId> = match target {
                Target::Gateway(gateway) => self.link_to(gateway).into_iter().collect(),
                Target::Everybody => {
                    self.open.keys().filter_map(|gateway| self.link_to(*gateway)).collect()
                }
            };
            if links.is_empty() {
                let result = Err(SendFailure::Unreachable);
                self.actions.push(Action::Settle { token, result });
                continue;
            }
            let pending = Pending { left: links.len(), is_taken: false, failure: None };
            self.pending.insert(token, pending);
            for link in links {
                self.queue(link, Item { token, envelope: envelope.clone() });
                if !touched.contains(&link) {
                    touched.push(link);
                }
            }
        }
        touched.into_iter().for_each(|link| self.flush(now, link));
    }

    pub(super) fn flush(&mut self, now: Moment, id: LinkId) {
        let open = self.links.get_mut(&id).and_then(|link| link.open.as_mut());
        let Some(open) = open else { return };
        while let Some(batch) = open.flow.next_batch(now.at) {
            open.used = now.at;
            self.counters.batches_sent += 1;
            self.actions.push(Action::Batch {
                link: id,
                number: batch.number,
                envelopes: batch.envelopes,
                is_large: batch.is_large,
            });
        }
    }

    pub(super) fn hear_answer(
        &mut self,
        now: Moment,
        id: LinkId,
        batch: u64,
        taken: u64,
    ) -> Result<(), Refusal> {
        let open = self.links.get_mut(&id).and_then(|link| link.open.as_mut());
        let answered = open.and_then(|open| open.flow.answer(batch, taken));
        let answered = answered.ok_or(Refusal::Nonsense)?;
        self.counters.envelopes_sent += answered.taken.len() as u64;
        for item in answered.taken {
            self.settle_one(item.token, Ok(()));
        }
        for item in answered.put_off {
            self.settle_one(item.token, Err(SendFailure::Busy));
        }
        self.flush(now, id);
        Ok(())
    }

    pub(super) fn receive_batch(&mut self, now: Moment, id: LinkId, body: Bytes) {
        let Some(gateway) = self.hear_on_open(now, id) else { return };
        let (number, envelopes) = match decode_batch(body) {
            Ok(batch) => batch,
            Err(_) => return self.close(now, id, Refusal::Nonsense),
        };
        let (count, mut taken) = (envelopes.len() as u64, 0);
        for envelope in envelopes {
            if !self.has_room(gateway, envelope.len()) {
                break;
            }
            let waiting = self.inbox.entry(gateway).or_default();
            waiting.envelopes += 1;
            waiting.bytes += envelope.len();
            taken += 1;
            self.actions.push(Action::Deliver { gateway, envelope });
        }
        self.counters.envelopes_received += taken;
        self.counters.envelopes_put_off += count - taken;
        self.write(id, &Frame::Answer { batch: number, taken });
    }

    pub(super) fn drain_inbox(&mut self, gateway: GatewayId, envelopes: usize, bytes: usize) {
        if let Some(waiting) = self.inbox.get_mut(&gateway) {
            waiting.envelopes = waiting.envelopes.saturating_sub(envelopes);
            waiting.bytes = waiting.bytes.saturating_sub(bytes);
            if waiting.envelopes == 0 {
                self.inbox.remove(&gateway);
            }
        }
    }

    fn has_room(&self, gateway: GatewayId, length: usize) -> bool {
        let own = self.inbox.get(&gateway).copied().unwrap_or_default();
        let all = self.inbox.values().fold(Waiting::default(), |all, waiting| Waiting {
            envelopes: all.envelopes + waiting.envelopes,
            bytes: all.bytes + waiting.bytes,
        });
        let fits = |waiting: Waiting, part: usize| {
            waiting.envelopes < limits::INBOX_ENVELOPES / part
                && waiting.bytes + length <= limits::INBOX_BYTES / part
        };
        fits(own, limits::INBOX_SHARE) && fits(all, 1)
    }

    pub(super) fn publish(&mut self, roster: &SignedRoster, delta: Option<&SignedRoster>) {
        if !self.own.publish(roster, delta) {
            return;
        }
        for (id, link) in &mut self.links {
            let Some(open) = &mut link.open else { continue };
            let Some(told) = open.told.replace(self.own.number()) else {
                open.told = None;
                continue;
            };
            let rosters = self.own.since(told);
            if !rosters.is_empty() {
                self.actions.push(Action::Rosters { link: *id, rosters });
            }
        }
    }

    /// Answers one who has our roster `have`, but not too often.
    pub(super) fn tell_rosters(&mut self, now: Moment, id: LinkId, have: u64) {
        let open = self.links.get_mut(&id).and_then(|link| link.open.as_mut());
        let Some(open) = open else { return };
        if open.told_at.is_some_and(|at| now.at < at + TELL_INTERVAL) {
            open.asks = Some(have);
            return;
        }
        open.asks = None;
        open.told_at = Some(now.at);
        open.told = Some(self.own.number());
        let rosters = self.own.since(have);
        if !rosters.is_empty() {
            self.actions.push(Action::Rosters { link: id, rosters });
        }
    }

    pub(super) fn receive_rosters(&mut self, now: Moment, id: LinkId, body: Bytes) {
        let Some(gateway) = self.hear_on_open(now, id) else { return };
        let Some(node) = self.links.get(&id).map(|link| link.node) else { return };
        let rosters = match decode_rosters(body) {
            Ok(rosters) => rosters,
            Err(_) => return self.close(now, id, Refusal::Nonsense),
        };
        for bytes in rosters {
            let Ok(roster) = SignedRoster::decode(&bytes) else {
                return self.close(now, id, Refusal::Nonsense);
            };
            if roster.gateway() != gateway {
                return self.close(now, id, Refusal::ForeignRoster);
            }
            let (number, base, known) =
                (roster.number(), roster.base(), self.others.number(gateway));
            if number <= known {
                continue;
            }
            if base.is_some_and(|base| base != known) {
                // One between was lost, or overtaken.
                if let Some(open) = self.links.get_mut(&id).and_then(|link| link.open.as_mut()) {
                    open.misses = true;
                }
                continue;
            }
            if roster.verify().is_err() {
                return self.close(now, id, Refusal::ForeignRoster);
            }
            let Self { others, open, .. } = self;
            others.set(gateway, number, |gateway| open.contains_key(gateway));
            self.counters.rosters_heard += 1;
            let is_nearby = self.table.is_nearby(node);
            self.actions.push(Action::Hear { gateway, roster: bytes, is_nearby });
        }
        self.catch_up_rosters(now);
    }

    /// Forgets how much of a gateway's roster was passed up, and asks for all of it soon.
    pub(super) fn miss_roster(&mut self, gateway: GatewayId) {
        self.others.forget(gateway);
        if let Some(id) = self.link_to(gateway)
            && let Some(open) = self.links.get_mut(&id).and_then(|link| link.open.as_mut())
        {
            open.misses = true;
        }
    }

    /// Asks for what is newer than that which was passed up.
    pub(super) fn ask_rosters(&mut self, now: Moment, gateway: GatewayId) {
        let Some(id) = self.link_to(gateway) else { return };
        if let Some(open) = self.links.get_mut(&id).and_then(|link| link.open.as_mut()) {
            open.misses = false;
            open.asked_at = now.at;
        }
        let number = self.others.number(gateway);
        self.write(id, &Frame::Wanted(number));
    }

    /// Tells those who asked too soon, and asks those from whom something was missed.
    pub(super) fn catch_up_rosters(&mut self, now: Moment) {
        let mut asks = Vec::new();
        let mut tells = Vec::new();
        for (id, link) in &mut self.links {
            let Some(open) = &mut link.open else { continue };
            if open.misses && now.at >= open.asked_at + ASK_INTERVAL {
                open.misses = false;
                open.asked_at = now.at;
                asks.push((*id, open.gateway));
            }
            if let Some(have) = open.asks {
                tells.push((*id, have));
            }
        }
        for (id, gateway) in asks {
            let number = self.others.number(gateway);
            self.write(id, &Frame::Wanted(number));
        }
        tells.into_iter().for_each(|(id, have)| self.tell_rosters(now, id, have));
    }

    /// The gateway at the other end of an open link from which something came.
    fn hear_on_open(&mut self, now: Moment, id: LinkId) -> Option<GatewayId> {
        let link = self.links.get_mut(&id)?;
        link.hear(now.at);
        let open = link.open.as_mut()?;
        open.used = now.at;
        Some(open.gateway)
    }
}
