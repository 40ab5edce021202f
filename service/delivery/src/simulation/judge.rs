//! What was promised, against what clients and senders saw (design, section 1).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fieldpost_envelope::{AnonymityLevel, MessageId, MessageStatus, PeerId};

use super::World;
use crate::{InboxEntry, Seq, Settled, Store, Target, Time, suite::ready};

/// A peer, by the number of its gateway and its name.
pub(super) type End = (usize, PeerId);

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// In the order of acceptance.
    pub(super) sent: Vec<Sent>,
    by_name: HashMap<(End, MessageId), usize>,
    /// By recipient, in the order in which it was shown.
    shown: BTreeMap<End, Vec<Shown>>,
    /// What each place of an inbox holds.
    places: HashMap<End, BTreeMap<Seq, usize>>,
    /// Messages that a recipient has been shown.
    seen: BTreeSet<(usize, End)>,
    /// Messages that a recipient has confirmed.
    confirmed: BTreeSet<(usize, End)>,
    /// When a delivery ended before it was confirmed.
    ended: HashMap<(usize, End), Time>,
    /// What went wrong where it could be seen at once.
    violations: BTreeSet<String>,
}

/// A message as it was written.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) from: End,
    pub(super) recipients: Vec<End>,
    pub(super) id: MessageId,
    pub(super) level: AnonymityLevel,
    pub(super) is_critical: bool,
    /// It may expire before it arrives.
    pub(super) is_brief: bool,
    /// On the sender's gateway's clock.
    pub(super) expires_at: Time,
}

#[derive(Debug)]
struct Shown {
    message: usize,
    gap: bool,
    late: bool,
    at: Time,
    /// The same on the recipient's gateway's clock.
    local_at: Time,
}

impl Log {
    pub(super) fn sent(&mut self, sent: Sent) {
        self.by_name.insert((sent.from.clone(), sent.id), self.sent.len());
        self.sent.push(sent);
    }

    pub(super) fn index(&self, from: &End, id: MessageId) -> Option<usize> {
        self.by_name.get(&(from.clone(), id)).copied()
    }

    /// Whether it is the first time.
    pub(super) fn shown(
        &mut self,
        from: &End,
        entry: &InboxEntry,
        to: &End,
        at: Time,
        local_at: Time,
    ) -> bool {
        let id = entry.message.id;
        let Some(message) = self.index(from, id) else {
            // A second copy under a name of its own is seen as one.
            self.violations.insert(format!("doubled: {id} was shown under another name"));
            return false;
        };
        if self.confirmed.contains(&(message, to.clone())) {
            self.violations.insert(format!("doubled: {id} was shown after it was confirmed"));
        }
        let places = self.places.entry(to.clone()).or_default();
        let place = *places.entry(entry.seq).or_insert(message);
        if place != message {
            self.violations.insert(format!("doubled: two messages have seq {}", entry.seq));
        }
        let is_new = self.seen.insert((message, to.clone()));
        if is_new {
            let (gap, late) = (entry.gap, entry.late);
            self.shown.entry(to.clone()).or_default().push(Shown {
                message,
                gap,
                late,
                at,
                local_at,
            });
        }
        is_new
    }

    /// A client has confirmed all that it was shown, up to a place.
    pub(super) fn confirmed_up_to(&mut self, to: &End, seq: Seq) {
        let places = self.places.get(to).into_iter().flat_map(|places| places.range(..=seq));
        self.confirmed.extend(places.map(|(_, message)| (*message, to.clone())));
    }

    /// A client has confirmed messages by their names.
    pub(super) fn confirmed(&mut self, to: &End, entries: &[InboxEntry]) {
        let Some(places) = self.places.get(to) else { return };
        let named = entries.iter().filter_map(|entry| places.get(&entry.seq));
        self.confirmed.extend(named.map(|message| (*message, to.clone())));
    }

    pub(super) fn ended(&mut self, message: usize, to: &End, at: Time) {
        self.ended.entry((message, to.clone())).or_insert(at);
    }

    pub(super) fn carried(&mut self, offered: AnonymityLevel, needed: AnonymityLevel, what: &str) {
        if offered < needed {
            self.violations.insert(format!(
                "downgraded: {what} that needs level {needed} went over one of level {offered}"
            ));
        }
    }
}

impl World {
    /// What went against promises 1, 2, 3 and 5, each said once and beginning with the kind.
    pub fn judge(&self) -> Vec<String> {
        let mut violations: Vec<String> = self.log.violations.iter().cloned().collect();
        for index in 0..self.log.sent.len() {
            self.judge_end(index, &mut violations);
        }
        self.judge_order(&mut violations);
        violations
    }

    /// A store has said that deliveries have moved on.
    pub(super) fn note_settled(&mut self, node: usize, settled: &[Settled]) {
        for one in settled {
            // Where the recipient is elsewhere, this is its sender's gateway, else its own.
            let home = one.sender.gateway.map_or(Some(node), |home| self.node_of(home));
            let from = (home.unwrap_or(usize::MAX), one.sender.peer.clone());
            let Some(index) = self.log.index(&from, one.id) else { continue };
            let sent = &self.log.sent[index];
            let to = sent.recipients.iter().find(|end| self.is_named(node, end, &one.recipient));
            let Some(to) = to.cloned() else { continue };
            match one.status {
                MessageStatus::Delivered | MessageStatus::Read => {
                    let is_told = to.0 != node;
                    if is_told && !self.log.confirmed.contains(&(index, to)) {
                        let id = one.id;
                        self.log.violations.insert(format!(
                            "misreported: {id} is told to be {} and was not confirmed",
                            one.status
                        ));
                    }
                }
                status if status.is_final() => {
                    self.log.ended(index, &to, self.now);
                    self.tally.ended_otherwise += 1;
                }
                _ => {}
            }
        }
    }

    /// Whether nothing more is to happen to anything.
    pub(super) fn owes_nothing(&self) -> bool {
        let log = &self.log;
        (0..log.sent.len()).all(|index| {
            let sent = &log.sent[index];
            let statuses = self.statuses(index);
            sent.recipients.iter().enumerate().all(|(place, to)| {
                let is_confirmed = log.confirmed.contains(&(index, to.clone()));
                let is_seen = log.seen.contains(&(index, to.clone()));
                match statuses.get(place).copied().flatten() {
                    // What was forgotten is not waited for.
                    None => true,
                    Some(MessageStatus::Delivered | MessageStatus::Read) => true,
                    Some(status) => status.is_final() && !is_confirmed && !is_seen,
                }
            })
        })
    }

    fn judge_end(&self, index: usize, violations: &mut Vec<String>) {
        let sent = &self.log.sent[index];
        let statuses = self.statuses(index);
        for (to, status) in sent.recipients.iter().zip(statuses) {
            let key = (index, to.clone());
            let is_confirmed = self.log.confirmed.contains(&key);
            let is_seen = self.log.seen.contains(&key);
            let arrived = matches!(status, Some(MessageStatus::Delivered | MessageStatus::Read));
            let word = status.map_or("unknown".to_owned(), |status| status.to_string());
            let told = format!(
                "{} from {:?} to {to:?} is {word}, shown: {is_seen}, confirmed: {is_confirmed}",
                sent.id, sent.from
            );
            let kind = match status {
                None => "lost",
                Some(status) if !status.is_final() => "lost",
                Some(_) if arrived != is_confirmed => "misreported",
                Some(MessageStatus::Cancelled) if is_seen => "misreported",
                Some(MessageStatus::Failed) => "lost",
                Some(MessageStatus::Expired) if !sent.is_brief => "lost",
                Some(_) => continue,
            };
            violations.push(format!("{kind}: {told}"));
        }
    }

    fn statuses(&self, index: usize) -> Vec<Option<MessageStatus>> {
        let sent = &self.log.sent[index];
        let (node, sender) = &sent.from;
        let now = self.nodes[*node].local(self.now);
        let Ok(records) = ready(self.nodes[*node].store.records(now, sender, sent.id));
        // Where nothing of the sender's own is known, this is what came to it under that name.
        let is_own = |record: &&crate::Record| record.message.sender.gateway.is_none();
        let own = records.iter().filter(is_own).find(|one| one.message.sender.peer == *sender);
        let named = |to: &End| {
            let delivery = own?
                .deliveries
                .iter()
                .find(|delivery| self.is_named(*node, to, &delivery.recipient))?;
            Some(delivery.status)
        };
        sent.recipients.iter().map(named).collect()
    }

    fn judge_order(&self, violations: &mut Vec<String>) {
        let mut lanes: BTreeMap<(&End, &End, AnonymityLevel), Vec<usize>> = BTreeMap::new();
        for (index, sent) in self.log.sent.iter().enumerate() {
            for to in sent.recipients.iter().filter(|_| !sent.is_critical) {
                lanes.entry((&sent.from, to, sent.level)).or_default().push(index);
            }
        }
        let nothing = Vec::new();
        for ((_, to, _), written) in lanes {
            let mut furthest = 0;
            let mut seen = BTreeSet::new();
            for shown in self.log.shown.get(to).unwrap_or(&nothing) {
                let Ok(place) = written.binary_search(&shown.message) else { continue };
                let id = self.log.sent[shown.message].id;
                if place < furthest && !shown.late {
                    violations.push(format!("reordered: {id} is late and does not say so"));
                }
                let skipped = written.iter().take(place).skip(furthest);
                let is_missed = |index: &&usize| {
                    !seen.contains(*index) && !self.has_ended_for(**index, to, shown)
                };
                if let Some(missed) = skipped.clone().find(is_missed).filter(|_| !shown.gap) {
                    let missed = self.log.sent[*missed].id;
                    violations.push(format!("reordered: {id} came before {missed} in silence"));
                }
                furthest = furthest.max(place + 1);
                seen.insert(shown.message);
            }
        }
    }

    /// Whether a message need not be waited for any more when another was shown.
    fn has_ended_for(&self, index: usize, to: &End, other: &Shown) -> bool {
        let is_over = self.log.sent[index].expires_at <= other.local_at;
        let ended = self.log.ended.get(&(index, to.clone()));
        is_over || ended.is_some_and(|at| *at <= other.at)
    }

    /// Whether the gateway `node` calls a peer so.
    fn is_named(&self, node: usize, end: &End, name: &str) -> bool {
        let target = match end.0 == node {
            true => Target::Local(end.1.clone()),
            false => Target::Remote(fieldpost_envelope::PeerAddress::remote(
                end.1.clone(),
                self.nodes[end.0].id,
            )),
        };
        target.recipient() == name
    }
}
