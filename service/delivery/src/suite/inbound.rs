//! What other gateways sent to our peers, in whatever order it came, and the receipts for it.

use std::time::Duration;

use chrono::TimeDelta;
use fieldpost_envelope::{
    AnonymityLevel, GatewayId, LaneSeq, MessageId, MessageStatus, PeerAddress, PeerId, Priority,
    ReceiptKind,
};
use rand::RngExt;

use super::{CONTRACT, Item, LOST, NO_LIMIT, ONCE, ORDER, Run, Violation, ensure, gateways, peer};
use crate::{
    Correspondent, Inbound, InboxEntry, Message, ReceiptOut, Received, Store, Time, Wishes,
    may_follow, shown_sent_at,
};

/// A lane as its sender's gateway keeps it.
pub(super) struct RemoteLane {
    sender: PeerAddress,
    /// The home of a group that passes them on.
    via: Option<GatewayId>,
    recipient: PeerId,
    level: AnonymityLevel,
    written: Vec<Written>,
}

struct Written {
    message: Message,
    /// Has ended for the sender's gateway: it is passed over.
    ended: bool,
    has_come: bool,
}

/// A message that came.
pub(super) struct Came {
    pub(super) message: Message,
    /// What the first copy said.
    sent_at: Time,
    /// Where receipts go.
    signer: Option<Correspondent>,
    recipient: PeerId,
    /// Its lane, as an index, and its place there.
    lane: Option<(usize, LaneSeq)>,
    /// What its envelopes named as its predecessor, oldest first.
    after: Vec<Option<LaneSeq>>,
    /// By when it must be shown, predecessor or not.
    release_at: Time,
    released: bool,
    /// It must be shown by now.
    is_visible: bool,
    shown: bool,
    status: MessageStatus,
    /// All envelopes it came in.
    envelopes: Vec<[u8; 32]>,
    /// Receipts that are owed and were not claimed since.
    needs: Vec<ReceiptKind>,
}

impl Came {
    pub(super) fn is_confirmed(&self) -> bool {
        matches!(self.status, MessageStatus::Delivered | MessageStatus::Read)
    }

    pub(super) fn is_over(&self, now: Time) -> bool {
        self.message.expires_at <= now
    }

    fn least_after(&self) -> Option<LaneSeq> {
        self.after.iter().copied().min().flatten()
    }

    fn need(&mut self, kind: ReceiptKind) {
        if !self.needs.contains(&kind) {
            self.needs.push(kind);
        }
    }
}

impl<S: Store> Run<'_, S> {
    pub(super) async fn receive(&mut self) -> Result<(), Violation> {
        let (message, recipient, lane, after) =
            if self.chance(15) { self.without_lane() } else { self.any_of_a_lane() };
        let order_wait = Duration::from_secs(self.rng.random_range(5..120));
        let inbound = Inbound {
            message: message.clone(),
            via: lane.and_then(|(lane, _)| self.lanes[lane].via),
            recipient: recipient.clone(),
            sent_at: self.now + lie(message.id),
            lane_seq: lane.map(|(_, lane_seq)| lane_seq),
            after,
            envelope: self.rng.random(),
            transport: "memory".into(),
        };
        self.note("receive", || {
            let place = lane.map(|(lane, lane_seq)| format!("lane {lane} at {lane_seq}"));
            format!("{} for {recipient}, {place:?} after {after:?}", message.id)
        });
        let received =
            self.store.receive(self.now, &inbound, order_wait).await.map_err(self.broken())?;
        let known = self
            .came
            .iter()
            .position(|came| came.recipient == recipient && is_identical(&came.message, &message));
        match (known, received) {
            (Some(index), Received::Duplicate) => {
                let came = &mut self.came[index];
                came.after.push(after);
                came.envelopes.push(inbound.envelope);
                came.need(ReceiptKind::Stored);
                self.summary.count("duplicate");
                Ok(())
            }
            (None, Received::Stored { visible }) => {
                self.came.push(Came {
                    message,
                    sent_at: inbound.sent_at,
                    signer: inbound.signer(),
                    recipient,
                    lane,
                    after: vec![after],
                    release_at: self.now + TimeDelta::from_std(order_wait).unwrap_or_default(),
                    released: false,
                    is_visible: false,
                    shown: false,
                    status: MessageStatus::Pending,
                    envelopes: vec![inbound.envelope],
                    needs: vec![ReceiptKind::Stored],
                });
                self.has_come(visible)
            }
            (known, received) => {
                let id = inbound.message.id;
                let detail = format!("{id} came, known: {}: {received:?}", known.is_some());
                Err(self.violation(ONCE, detail))
            }
        }
    }

    fn has_come(&mut self, visible: bool) -> Result<(), Violation> {
        self.let_follow();
        let index = self.came.len() - 1;
        let may = self.may_be_visible(index);
        let came = &self.came[index];
        let id = came.message.id;
        let in_time = visible || !came.is_visible;
        ensure!(self, in_time, ORDER, "{id} is held back, its predecessor is there");
        ensure!(self, may || !visible, ORDER, "{id} is visible before its predecessor");
        self.summary.count(if visible { "came visible" } else { "came held" });
        if visible {
            self.came[index].is_visible = true;
            self.let_follow();
        }
        Ok(())
    }

    fn without_lane(&mut self) -> (Message, PeerId, Option<(usize, LaneSeq)>, Option<LaneSeq>) {
        let known: Vec<_> = self
            .came
            .iter()
            .filter(|came| came.lane.is_none())
            .map(|came| (came.message.clone(), came.recipient.clone()))
            .collect();
        if !known.is_empty() && self.chance(30) {
            let (message, recipient) = known[self.rng.random_range(0..known.len())].clone();
            return (message, recipient, None, None);
        }
        let recipient = self.any_peer();
        let sender = PeerAddress::remote(peer("grace"), gateways()[0]);
        let level = self.any_level();
        let message = self.a_message_from(sender, &recipient, level, Priority::Critical);
        (message, recipient, None, None)
    }

    /// New, again, or one that was written before and comes only now.
    fn any_of_a_lane(&mut self) -> (Message, PeerId, Option<(usize, LaneSeq)>, Option<LaneSeq>) {
        let lane = self.any_lane();
        for _ in 0..self.rng.random_range(0..3) {
            let RemoteLane { sender, recipient, level, .. } = &self.lanes[lane];
            let (sender, recipient, level) = (sender.clone(), recipient.clone(), *level);
            let message = self.a_message_from(sender, &recipient, level, Priority::Normal);
            let written = Written { message, ended: false, has_come: false };
            self.lanes[lane].written.push(written);
        }
        self.let_some_end(lane);
        let count = self.lanes[lane].written.len();
        let recent = count.saturating_sub(5);
        let missing =
            (recent..count).filter(|&at| !self.lanes[lane].written[at].has_come).collect();
        let of: Vec<usize> = if self.chance(80) { missing } else { (recent..count).collect() };
        if of.is_empty() {
            return self.without_lane();
        }
        let place = of[self.rng.random_range(0..of.len())];
        let now = self.now;
        let lane_of = &mut self.lanes[lane];
        lane_of.written[place].has_come = true;
        let after = lane_of.written[..place]
            .iter()
            .rposition(|written| !written.ended && written.message.expires_at > now)
            .map(place_to_seq);
        let message = lane_of.written[place].message.clone();
        (message, lane_of.recipient.clone(), Some((lane, place_to_seq(place))), after)
    }

    fn any_lane(&mut self) -> usize {
        if self.lanes.len() < LANES {
            let recipient = self.any_peer();
            let gateway = gateways()[self.rng.random_range(0..2)];
            let name = ["erin", "frank"][self.rng.random_range(0..2)];
            let sender = PeerAddress::remote(peer(name), gateway);
            let level = self.any_level();
            let homes = gateways();
            let via = homes.into_iter().find(|home| *home != gateway && self.chance(30));
            let is_new = !self.lanes.iter().any(|lane| {
                (&lane.sender, &lane.recipient, lane.level, lane.via)
                    == (&sender, &recipient, level, via)
            });
            if is_new {
                let written = Vec::new();
                if via.is_some() {
                    self.summary.count("lane of a group");
                }
                self.lanes.push(RemoteLane { sender, via, recipient, level, written });
                return self.lanes.len() - 1;
            }
        }
        self.rng.random_range(0..self.lanes.len())
    }

    /// The sender's gateway learns that something was confirmed, or gives it up.
    fn let_some_end(&mut self, lane: usize) {
        for place in 0..self.lanes[lane].written.len() {
            let written = &self.lanes[lane].written[place];
            let is_confirmed = self
                .came
                .iter()
                .any(|came| is_identical(&came.message, &written.message) && came.is_confirmed());
            let ends = if is_confirmed { self.chance(60) } else { self.chance(2) };
            self.lanes[lane].written[place].ended |= ends;
        }
    }

    fn a_message_from(
        &mut self,
        sender: PeerAddress,
        recipient: &PeerId,
        level: AnonymityLevel,
        priority: Priority,
    ) -> Message {
        let millis = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(1_000..30_000),
            1..4 => self.rng.random_range(30_000..300_000),
            _ => 24 * 3_600_000,
        };
        Message {
            id: self.fresh_id(),
            sender,
            to: recipient.clone().into(),
            content: self.any_content(),
            expires_at: self.now + TimeDelta::milliseconds(millis),
            priority,
            min_anonymity: level,
            wishes: Wishes::default(),
        }
    }

    /// Marks as visible all that must be: what waits for nothing that has not been shown.
    fn let_follow(&mut self) {
        for index in 0..self.came.len() {
            self.came[index].is_visible |= self.came[index].lane.is_none();
        }
        loop {
            let next = (0..self.came.len()).find(|&index| {
                let came = &self.came[index];
                let Some((lane, lane_seq)) = came.lane else { return false };
                let last = self.furthest(lane, |other| other.is_visible);
                let waits = !came.is_visible && !came.is_over(self.now);
                // The first envelope is the one that the store has certainly heeded.
                waits && (last >= Some(lane_seq) || last >= came.after[0])
            });
            match next {
                Some(index) => self.came[index].is_visible = true,
                None => return,
            }
        }
    }

    fn furthest(&self, lane: usize, counts: impl Fn(&Came) -> bool) -> Option<LaneSeq> {
        let of_lane = self.came.iter().filter(|came| counts(came));
        of_lane.filter_map(|came| came.lane.filter(|(of, _)| *of == lane).map(|(_, seq)| seq)).max()
    }

    /// Whether a store that knows all it can know may show this one.
    fn may_be_visible(&self, index: usize) -> bool {
        let Some((lane, _)) = self.came[index].lane else { return true };
        let place = |index: usize| self.came[index].lane.map(|(_, lane_seq)| lane_seq);
        let mut hidden: Vec<_> = (0..self.came.len())
            .filter(|&other| self.came[other].lane.is_some_and(|(of, _)| of == lane))
            .collect();
        // Whoever has waited long enough takes along what is held before it.
        let is_due = |other: &Came| other.released || other.release_at <= self.now;
        let due = self.furthest(lane, is_due);
        let mut furthest = None;
        loop {
            let next = hidden.iter().position(|&other| {
                let came = &self.came[other];
                came.is_visible
                    || came.shown
                    || due >= place(other)
                    || furthest >= place(other)
                    || furthest >= self.known_after(other)
            });
            let Some(next) = next else { return false };
            let next = hidden.swap_remove(next);
            if next == index {
                return true;
            }
            furthest = furthest.max(place(next));
        }
    }

    /// What this one waits for, given all that any envelope of its lane has told.
    fn known_after(&self, index: usize) -> Option<LaneSeq> {
        let (lane, _) = self.came[index].lane?;
        let mut after = self.came[index].least_after();
        loop {
            let of_lane = self.came.iter().filter_map(|other| {
                other.lane.filter(|(of, _)| *of == lane).map(|(_, seq)| (other, seq))
            });
            let less = of_lane
                .filter(|(other, seq)| {
                    let told = other.least_after();
                    // It says that everything in between has ended, or has itself run out.
                    told < after
                        && (Some(*seq) > after || (Some(*seq) == after && other.is_over(self.now)))
                })
                .map(|(other, _)| other.least_after())
                .min();
            match less {
                Some(less) => after = less,
                None => return after,
            }
        }
    }

    /// A message from elsewhere is shown for the first time.
    pub(super) fn came_is_shown(
        &mut self,
        peer: &PeerId,
        entry: &InboxEntry,
        name: &str,
    ) -> Result<usize, Violation> {
        let found = self.came.iter().position(|came| {
            came.recipient == *peer && is_identical(&came.message, &entry.message)
        });
        let Some(index) = found else {
            return Err(self.violation(CONTRACT, format!("{name}, which never came for it")));
        };
        let came = &self.came[index];
        ensure!(self, entry.message == came.message, CONTRACT, "{name} otherwise than it came");
        let expires_at = came.message.expires_at;
        let sent_at = shown_sent_at(came.sent_at, expires_at, entry.accepted_at);
        let says = entry.sent_at;
        ensure!(self, says == sent_at, CONTRACT, "{name} as sent at {says}, it was {sent_at}");
        ensure!(self, !came.shown, ONCE, "{name} at two positions");
        let may = self.may_be_visible(index);
        ensure!(self, may, ORDER, "{name} before its predecessor and before its time");
        self.look_at_flags(peer, index, entry, name)?;
        let came = &mut self.came[index];
        (came.shown, came.is_visible) = (true, true);
        came.status = MessageStatus::Sent;
        self.let_follow();
        Ok(index)
    }

    fn look_at_flags(
        &mut self,
        peer: &PeerId,
        index: usize,
        entry: &InboxEntry,
        name: &str,
    ) -> Result<(), Violation> {
        let InboxEntry { gap, late, .. } = *entry;
        let Some((lane, lane_seq)) = self.came[index].lane else {
            ensure!(self, !gap && !late, ORDER, "{name} without a lane, gap {gap}, late {late}");
            return Ok(());
        };
        let shown_before = self.inboxes[peer].iter().filter_map(|item| match item {
            Item::Came(other) => self.came[*other].lane.filter(|(of, _)| *of == lane),
            Item::Owed(_) => None,
        });
        let furthest_shown = shown_before.map(|(_, seq)| seq).max();
        let furthest_come = self.furthest(lane, |_| true);
        let says = format!("{name} at {lane_seq}, gap {gap}, late {late}");
        let is_late = furthest_shown > Some(lane_seq);
        ensure!(self, late || !is_late, ORDER, "{says}, after {furthest_shown:?}");
        ensure!(
            self,
            !late || furthest_come > Some(lane_seq),
            ORDER,
            "{says}, nothing came before"
        );
        let after = self.known_after(index);
        let came = &self.came[index];
        let first_after = came.after[0];
        let follows = furthest_shown >= first_after;
        // One that ran out unshown may have been the one to say so.
        let ran_out_at = |other: &Came| {
            let place = other.lane.filter(|(of, _)| *of == lane).map(|(_, seq)| seq);
            place.filter(|_| !other.shown && other.is_over(self.now))
        };
        let ran_out = |other: &Came| ran_out_at(other).is_some_and(|seq| seq < lane_seq);
        let is_said_for_another = match late {
            true => self.came.iter().any(|other| ran_out_at(other) > Some(lane_seq)),
            false => self.came.iter().any(ran_out),
        };
        let is_said_for_itself = !late && !follows;
        ensure!(
            self,
            !gap || is_said_for_itself || is_said_for_another,
            ORDER,
            "{says}, its predecessor was shown"
        );
        // Neither the predecessor nor anything after it can have been shown.
        let before = (0..self.came.len()).filter(|&other| {
            let (place, is_of_lane) = match self.came[other].lane {
                Some((of, seq)) => (seq, of == lane),
                None => return false,
            };
            let is_there = !ran_out(&self.came[other]) && self.may_be_visible(other);
            is_of_lane && place < lane_seq && is_there
        });
        let furthest = before.filter_map(|other| self.came[other].lane.map(|(_, seq)| seq)).max();
        // Where what made it late was never shown, it is late for nobody, and the first to tell.
        let misses = furthest_shown < Some(lane_seq) && furthest < after;
        ensure!(self, gap || !misses, ORDER, "{says}, {after:?} is missing");
        if gap {
            self.summary.count("gap");
        }
        if late {
            self.summary.count("late");
        }
        Ok(())
    }

    pub(super) fn look_for_unshown_inbound(&self, peer: &PeerId) -> Result<(), Violation> {
        let left_out = self.came.iter().find(|came| {
            came.recipient == *peer && came.is_visible && !came.shown && !came.is_over(self.now)
        });
        match left_out {
            Some(came) => {
                let detail = format!("{peer} was not shown {}, which came", came.message.id);
                Err(self.violation(LOST, detail))
            }
            None => Ok(()),
        }
    }

    pub(super) fn came_is_confirmed(&mut self, index: usize, read: bool, is_told: bool) {
        let (to, kind) = match read {
            true => (MessageStatus::Read, ReceiptKind::Read),
            false => (MessageStatus::Delivered, ReceiptKind::Delivered),
        };
        let now = self.now;
        let came = &mut self.came[index];
        // After the end of life the store may have forgotten that it was shown.
        if may_follow(came.status, to) && (is_told || !came.is_over(now)) {
            came.status = to;
            came.needs.retain(|need| *need != ReceiptKind::Delivered);
            came.need(kind);
        }
    }

    pub(super) async fn release(&mut self) -> Result<(), Violation> {
        let limit = self.any_limit();
        self.release_up_to(limit).await
    }

    pub(super) async fn release_up_to(&mut self, limit: usize) -> Result<(), Violation> {
        self.note("release", || format!("at most {limit}"));
        // A call with a limit may have released what was due then.
        let last_release = std::mem::replace(&mut self.last_release, self.now);
        let is_new = |came: &Came, now| {
            let is_due = last_release < came.release_at && came.release_at <= now;
            is_due && !came.is_visible && !came.released && !came.is_over(now)
        };
        let expected: Vec<_> = (0..self.came.len())
            .filter(|&index| is_new(&self.came[index], self.now) && self.waits_for_sure(index))
            .map(|index| self.came[index].recipient.clone())
            .collect();
        let grown = self.store.release_held(self.now, limit).await.map_err(self.broken())?;
        if limit < NO_LIMIT {
            return Ok(());
        }
        for peer in expected {
            ensure!(
                self,
                grown.contains(&peer),
                CONTRACT,
                "{peer} is not told of what is released"
            );
        }
        let due: Vec<_> = (0..self.came.len())
            .filter(|&index| {
                let came = &self.came[index];
                !came.is_over(self.now) && self.is_released_with(came)
            })
            .collect();
        for index in due {
            let came = &mut self.came[index];
            (came.released, came.is_visible) = (true, true);
        }
        self.let_follow();
        Ok(())
    }

    /// It has waited long enough, or something behind it has.
    fn is_released_with(&self, came: &Came) -> bool {
        let Some((lane, lane_seq)) = came.lane else { return false };
        self.came.iter().any(|other| {
            other.release_at <= self.now
                && !other.is_over(self.now)
                && !other.is_visible
                && other.lane.is_some_and(|(of, seq)| of == lane && seq >= lane_seq)
        })
    }

    /// No reading of the envelopes so far lets it be shown before its time.
    fn waits_for_sure(&self, index: usize) -> bool {
        let Some((lane, _)) = self.came[index].lane else { return false };
        let furthest_due =
            self.furthest(lane, |other| other.is_visible || other.shown || other.released);
        let first_due = self.known_after(index);
        let taken_along = self.came.iter().any(|other| {
            other.release_at < self.came[index].release_at
                && other.lane.is_some_and(|(of, seq)| of == lane && Some(seq) >= first_due)
        });
        furthest_due < first_due && !taken_along
    }

    pub(super) async fn receipts(&mut self) -> Result<(), Violation> {
        let reachable: Vec<_> =
            gateways().iter().map(ToString::to_string).filter(|_| self.chance(80)).collect();
        let limit = self.any_limit();
        let lease = Duration::from_millis(self.rng.random_range(1_000..20_000));
        let all = self.claim_receipts_from(&reachable, limit, lease).await?;
        for receipt in all {
            let retry_at = match self.rng.random_range(0..10) {
                0..7 => None,
                7..9 => Some(self.now + TimeDelta::seconds(5)),
                _ => continue,
            };
            self.store.receipt_done(&receipt, retry_at).await.map_err(self.broken())?;
            let name = (receipt.envelope, receipt.kind.as_str());
            match retry_at {
                None => drop(self.receipts_claimed.remove(&name)),
                Some(at) => drop(self.receipts_claimed.insert(name, at)),
            }
        }
        Ok(())
    }

    pub(super) async fn claim_receipts_from(
        &mut self,
        reachable: &[String],
        limit: usize,
        lease: Duration,
    ) -> Result<Vec<ReceiptOut>, Violation> {
        self.note("receipts", || format!("{} gateways, at most {limit}", reachable.len()));
        let receipts = self
            .store
            .claim_receipts(self.now, lease, reachable, limit)
            .await
            .map_err(self.broken())?;
        ensure!(self, receipts.len() <= limit, CONTRACT, "{} receipts", receipts.len());
        for receipt in &receipts {
            self.look_at_receipt(receipt, reachable)?;
            let until = self.now + TimeDelta::from_std(lease).unwrap_or_default();
            self.receipts_claimed.insert((receipt.envelope, receipt.kind.as_str()), until);
            self.summary.count("receipt sent");
        }
        Ok(receipts)
    }

    fn look_at_receipt(
        &mut self,
        receipt: &ReceiptOut,
        reachable: &[String],
    ) -> Result<(), Violation> {
        let kind = receipt.kind;
        let found = self.came.iter().position(|came| came.envelopes.contains(&receipt.envelope));
        let Some(index) = found else {
            return Err(self.violation(CONTRACT, format!("a receipt for nothing: {receipt:?}")));
        };
        let came = &self.came[index];
        let id = came.message.id;
        let is_true = match kind {
            ReceiptKind::Stored => true,
            ReceiptKind::Delivered => came.is_confirmed(),
            ReceiptKind::Read => came.status == MessageStatus::Read,
            ReceiptKind::Refused => false,
        };
        ensure!(self, is_true, CONTRACT, "{kind} is owed for {id}, which is {}", came.status);
        let to_sender = Some(receipt.gateway) == came.signer
            && reachable.contains(&receipt.gateway.to_string());
        ensure!(self, to_sender, CONTRACT, "a receipt for {id} goes to {}", receipt.gateway);
        let level = came.message.min_anonymity;
        let keeps_level = receipt.level == level;
        ensure!(self, keeps_level, "privacy fails closed", "{id} has {level}: {receipt:?}");
        let name = (receipt.envelope, kind.as_str());
        let is_needed = came.needs.contains(&kind);
        let is_free =
            is_needed || self.receipts_claimed.get(&name).is_none_or(|at| *at <= self.now);
        ensure!(self, is_free, CONTRACT, "{kind} for {id} was claimed twice");
        self.came[index].needs.retain(|need| *need != kind);
        Ok(())
    }

    /// What was owed and never offered; that a message is stored interests nobody once it is over.
    pub(super) fn unmet_needs(&self) -> Option<String> {
        let is_owed = |came: &&Came| {
            let lapses =
                |need: &ReceiptKind| *need == ReceiptKind::Stored && came.is_over(self.now);
            came.needs.iter().any(|need| !lapses(need))
        };
        let came = self.came.iter().find(is_owed)?;
        Some(format!("{:?} for {} were never offered", came.needs, came.message.id))
    }

    pub(super) fn came_due(&self) -> Vec<Time> {
        let owed = (0..self.came.len()).filter(|&index| {
            let came = &self.came[index];
            !came.is_confirmed() && !came.is_over(self.now)
        });
        owed.flat_map(|index| {
            // What is already due to be released may have been, by a call with a limit.
            let is_held = !self.may_be_visible(index);
            let came = &self.came[index];
            [Some(came.message.expires_at), is_held.then_some(came.release_at)]
        })
        .flatten()
        .collect()
    }
}

/// Identity is sender address and message id; see promise 2.
fn is_identical(a: &Message, b: &Message) -> bool {
    (a.id, &a.sender) == (b.id, &b.sender)
}

fn place_to_seq(place: usize) -> LaneSeq {
    LaneSeq(place as u64 + 1)
}

const LANES: usize = 6;

/// How wrong the clock of the message's gateway is: by up to 46 days, or a day ahead.
fn lie(id: MessageId) -> TimeDelta {
    let seconds = (id.0.as_u128() % 4_100_000) as i64;
    TimeDelta::seconds(100_000 - seconds)
}
