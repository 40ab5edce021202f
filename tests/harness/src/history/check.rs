//! The judgement.

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use super::{
    Cancel, Confirm, Confirmed, DeliveryReport, Event, History, Kind, Outcome, Report, Send, Shown,
    Time, Violation,
};

/// Judges a history. Nothing in the answer means that no promise was seen to be broken.
pub fn check(history: &History) -> Vec<Violation> {
    let judge = Judge::new(history);
    let mut violations = Vec::new();
    judge.authorship(&mut violations);
    judge.numbering(&mut violations);
    judge.order(&mut violations);
    judge.repetition(&mut violations);
    judge.reports(&mut violations);
    judge.levels(&mut violations);
    judge.losses(&mut violations);
    judge.trespasses(&mut violations);
    violations.sort();
    violations.dedup();
    violations
}

/// A message is known by its sender and its id.
type Key<'a> = (&'a str, Uuid);
/// A delivery of it, by the recipient too.
type Delivery<'a> = (&'a str, Uuid, &'a str);

struct Judge<'a> {
    history: &'a History,
    messages: BTreeMap<Key<'a>, Message<'a>>,
    shown: Vec<&'a Shown>,
    shown_by_delivery: HashMap<Delivery<'a>, Vec<&'a Shown>>,
    confirms: HashMap<&'a str, Vec<&'a Confirm>>,
    reports: HashMap<Key<'a>, Vec<&'a Report>>,
    cancels: HashMap<Key<'a>, Vec<&'a Cancel>>,
}

/// All that is known of a message from those who sent it.
struct Message<'a> {
    sends: Vec<&'a Send>,
    /// Before this nobody had asked for it.
    first_invoked: Time,
    /// By then it had been accepted, if it is known to have been.
    accepted_by: Option<Time>,
    /// Whether every attempt was refused.
    refused: bool,
}

impl<'a> Judge<'a> {
    fn new(history: &'a History) -> Self {
        let mut judge = Self {
            history,
            messages: BTreeMap::new(),
            shown: Vec::new(),
            shown_by_delivery: HashMap::new(),
            confirms: HashMap::new(),
            reports: HashMap::new(),
            cancels: HashMap::new(),
        };
        for event in &history.events {
            match event {
                Event::Send(send) => judge
                    .messages
                    .entry((&send.sender, send.message))
                    .or_insert_with(Message::new)
                    .add(send),
                Event::Shown(shown) => {
                    judge.shown.push(shown);
                    let delivery = (shown.sender.as_str(), shown.message, shown.peer.as_str());
                    judge.shown_by_delivery.entry(delivery).or_default().push(shown);
                }
                Event::Confirm(confirm) => {
                    judge.confirms.entry(&confirm.peer).or_default().push(confirm);
                }
                Event::Report(report) => {
                    judge.reports.entry((&report.sender, report.message)).or_default().push(report);
                }
                Event::Cancel(cancel) => {
                    judge.cancels.entry((&cancel.sender, cancel.message)).or_default().push(cancel);
                }
                Event::Trespass(_) => {}
            }
        }
        judge
    }

    /// Whoever is shown a message, it is for them, from whom it says, and what was sent.
    fn authorship(&self, violations: &mut Vec<Violation>) {
        for shown in &self.shown {
            let name = name(&shown.sender, shown.message);
            let mut report = |kind, story: String| violations.push(Violation { kind, story });
            let Some(message) = self.messages.get(&(shown.sender.as_str(), shown.message)) else {
                report(
                    Kind::Impersonated,
                    format!("{} was shown {name}, which its sender never sent", shown.peer),
                );
                continue;
            };
            if message.refused || message.first_invoked > shown.at {
                report(
                    Kind::Impersonated,
                    format!("{} was shown {name}, which was refused or not yet sent", shown.peer),
                );
            }
            let send = message.sends[0];
            if !send.recipients.is_empty() && !send.recipients.contains(&shown.peer) {
                report(Kind::Misdelivered, format!("{} was shown {name}", shown.peer));
            }
            // A repetition with other content is refused, so any that was not is as good.
            let is_as_sent = message
                .sends
                .iter()
                .any(|send| send.outcome != Outcome::Refused && send.content == shown.content);
            if !message.refused && !is_as_sent {
                report(
                    Kind::Corrupted,
                    format!("{} was shown {name} with other content", shown.peer),
                );
            }
        }
    }

    /// In an inbox each message has one place and each place one message.
    fn numbering(&self, violations: &mut Vec<Violation>) {
        let mut places: HashMap<(&str, u64), Key<'_>> = HashMap::new();
        for shown in &self.shown {
            let key = (shown.sender.as_str(), shown.message);
            let other = *places.entry((&shown.peer, shown.seq)).or_insert(key);
            if other != key {
                violations.push(Violation {
                    kind: Kind::Renumbered,
                    story: format!(
                        "{} was shown {} and {} as number {}",
                        shown.peer,
                        name(other.0, other.1),
                        name(key.0, key.1),
                        shown.seq
                    ),
                });
            }
        }
        for ((sender, message, peer), shown) in &self.shown_by_delivery {
            let numbers: HashSet<u64> = shown.iter().map(|shown| shown.seq).collect();
            if numbers.len() > 1 {
                let mut numbers: Vec<_> = numbers.into_iter().collect();
                numbers.sort_unstable();
                violations.push(Violation {
                    kind: Kind::Renumbered,
                    story: format!("{peer} was shown {} as {numbers:?}", name(sender, *message)),
                });
            }
        }
    }

    /// Within one connection numbers rise; within a lane they follow the order of acceptance.
    fn order(&self, violations: &mut Vec<Violation>) {
        let mut last: HashMap<u64, &Shown> = HashMap::new();
        for shown in &self.shown {
            if let Some(before) = last.insert(shown.stream, shown)
                && before.seq >= shown.seq
            {
                violations.push(Violation {
                    kind: if before.seq == shown.seq { Kind::Doubled } else { Kind::Reordered },
                    story: format!(
                        "{} was shown number {} after number {} on one connection",
                        shown.peer, shown.seq, before.seq
                    ),
                });
            }
        }
        for lane in self.lanes().into_values() {
            self.lane_order(lane, violations);
        }
    }

    /// The first showing of each message of each lane, by its number.
    fn lanes(&self) -> BTreeMap<(&'a str, &'a str, u8), Vec<&'a Shown>> {
        let mut lanes: BTreeMap<_, Vec<&Shown>> = BTreeMap::new();
        for ((sender, message, peer), shown) in &self.shown_by_delivery {
            let Some(sent) = self.messages.get(&(*sender, *message)) else { continue };
            let send = sent.sends[0];
            let Some(first) = shown.iter().min_by_key(|shown| shown.at) else { continue };
            if send.ordered {
                lanes.entry((*sender, *peer, send.min_anonymity)).or_default().push(*first);
            }
        }
        for lane in lanes.values_mut() {
            lane.sort_by_key(|shown| shown.seq);
        }
        lanes
    }

    fn lane_order(&self, lane: Vec<&Shown>, violations: &mut Vec<Violation>) {
        // Of those shown so far, the one that was begun last.
        let mut latest: Option<(&Shown, Time)> = None;
        for shown in lane {
            let message = &self.messages[&(shown.sender.as_str(), shown.message)];
            // Whatever was shown had been accepted.
            let accepted_by = message.accepted_by.map_or(shown.at, |time| time.min(shown.at));
            if let Some((before, began)) = latest
                && accepted_by < began
                && !shown.late
            {
                violations.push(Violation {
                    kind: Kind::Reordered,
                    story: format!(
                        "{} was shown {} (number {}) before {} (number {}), which had been \
                         accepted before the other was sent",
                        shown.peer,
                        name(&before.sender, before.message),
                        before.seq,
                        name(&shown.sender, shown.message),
                        shown.seq
                    ),
                });
            }
            if latest.is_none_or(|(_, began)| began < message.first_invoked) {
                latest = Some((shown, message.first_invoked));
            }
        }
    }

    /// After a confirmation nothing that is asked for shows the message again.
    fn repetition(&self, violations: &mut Vec<Violation>) {
        for ((sender, message, peer), shown) in &self.shown_by_delivery {
            let Some(confirmed) = self.confirmed_by(sender, *message, peer, shown[0].seq) else {
                continue;
            };
            if let Some(again) = shown.iter().find(|shown| shown.opened > confirmed) {
                violations.push(Violation {
                    kind: Kind::Doubled,
                    story: format!(
                        "{peer} was shown {} on a connection begun at {} us, confirmed by {} us",
                        name(sender, *message),
                        again.opened,
                        confirmed
                    ),
                });
            }
        }
    }

    /// By when a delivery is known to have been confirmed.
    fn confirmed_by(&self, sender: &str, message: Uuid, peer: &str, seq: u64) -> Option<Time> {
        let answered = self
            .confirms_of(peer, message, seq)
            .filter_map(|confirm| (confirm.outcome == Outcome::Done).then_some(confirm.completed));
        let reports = self.reports_of(sender, message, peer);
        let told = reports.into_iter().filter_map(|(report, delivery)| {
            is_confirmed(&delivery.status).then_some(report.completed)
        });
        answered.chain(told).min()
    }

    fn confirms_of(
        &self,
        peer: &str,
        message: Uuid,
        seq: u64,
    ) -> impl Iterator<Item = &&'a Confirm> {
        self.confirms.get(peer).into_iter().flatten().filter(move |confirm| match &confirm.what {
            Confirmed::UpTo(last) => seq <= *last,
            Confirmed::Messages(ids) => ids.contains(&message),
        })
    }

    fn reports_of(
        &self,
        sender: &str,
        message: Uuid,
        peer: &str,
    ) -> Vec<(&Report, &DeliveryReport)> {
        let reports = self.reports.get(&(sender, message)).into_iter().flatten();
        reports
            .flat_map(|report| report.deliveries.iter().map(move |delivery| (*report, delivery)))
            .filter(|(_, delivery)| delivery.recipient == peer)
            .collect()
    }

    /// What a sender is told is true.
    fn reports(&self, violations: &mut Vec<Violation>) {
        for (key, reports) in &self.reports {
            let Some(message) = self.messages.get(key) else { continue };
            for report in reports {
                for delivery in &report.deliveries {
                    if let Some(problem) = self.misreport(*key, message, report, delivery) {
                        violations.push(Violation {
                            kind: Kind::Misreported,
                            story: format!(
                                "{} was told that {} to {} is {}, {problem}",
                                report.sender,
                                name(key.0, key.1),
                                delivery.recipient,
                                delivery.status
                            ),
                        });
                    }
                }
            }
        }
    }

    fn misreport(
        &self,
        (sender, id): Key<'a>,
        message: &Message<'_>,
        report: &Report,
        delivery: &DeliveryReport,
    ) -> Option<&'static str> {
        let peer = delivery.recipient.as_str();
        let shown = self.shown_by_delivery.get(&(sender, id, peer));
        match delivery.status.as_str() {
            "delivered" | "read" => {
                // A client that this history does not follow may have confirmed.
                let follows = self.confirms.contains_key(peer) || shown.is_some();
                let seq = shown.map_or(0, |shown| shown[0].seq);
                let confirmed = self
                    .confirms_of(peer, id, seq)
                    .any(|confirm| confirm.invoked < report.completed);
                (follows && !(confirmed && shown.is_some()))
                    .then_some("but its client had not confirmed it")
            }
            "expired" => {
                let ttl = message.sends.iter().map(|send| send.ttl).min().unwrap_or(0);
                // The gateway's clock may run a little apart from ours.
                let soonest = message.first_invoked.saturating_add(ttl - ttl / 10);
                (report.completed < soonest).then_some("before its time was over")
            }
            "cancelled" => {
                let cancels = self.cancels.get(&(sender, id)).into_iter().flatten();
                let mut asked = cancels.filter(|cancel| cancel.outcome != Outcome::Refused);
                asked.next().is_none().then_some("but nobody had asked for that")
            }
            _ => None,
        }
    }

    /// No transport had what it was too open for.
    fn levels(&self, violations: &mut Vec<Violation>) {
        for (key, reports) in &self.reports {
            let Some(message) = self.messages.get(key) else { continue };
            let asked = message.sends.iter().map(|send| send.min_anonymity).max().unwrap_or(0);
            let transports = reports
                .iter()
                .flat_map(|report| &report.deliveries)
                .flat_map(|delivery| &delivery.transports)
                .filter(|transport| *transport != "local");
            for transport in transports {
                let level = self.history.levels.get(transport).copied().unwrap_or(0);
                if level < asked {
                    violations.push(Violation {
                        kind: Kind::Downgraded,
                        story: format!(
                            "{} asks for level {asked} and was given to {transport}, level {level}",
                            name(key.0, key.1)
                        ),
                    });
                }
            }
        }
    }

    /// By the end every accepted message was seen by each recipient, or its sender knows why not.
    fn losses(&self, violations: &mut Vec<Violation>) {
        if !self.history.settled {
            return;
        }
        for (&(sender, id), message) in &self.messages {
            if message.accepted_by.is_none() {
                continue;
            }
            for peer in &message.sends[0].recipients {
                if let Some(problem) = self.loss(sender, id, peer) {
                    violations.push(Violation {
                        kind: Kind::Lost,
                        story: format!(
                            "{} to {peer} was accepted, but {problem}",
                            name(sender, id)
                        ),
                    });
                }
            }
        }
    }

    fn loss(&self, sender: &str, id: Uuid, peer: &str) -> Option<String> {
        let last = self
            .reports
            .get(&(sender, id))
            .into_iter()
            .flatten()
            .max_by_key(|report| report.completed);
        if last.is_some_and(|report| report.unknown) {
            return Some("its sender was told in the end that there is no such message".to_owned());
        }
        let status = last.and_then(|report| {
            let mut deliveries = report.deliveries.iter();
            Some((deliveries.find(|delivery| delivery.recipient == peer)?.status.as_str(), report))
        });
        let ended =
            status.is_some_and(|(status, _)| matches!(status, "expired" | "failed" | "cancelled"));
        let Some(shown) = self.shown_by_delivery.get(&(sender, id, peer)) else {
            return (!ended).then(|| {
                let word = status.map_or("unknown", |(status, _)| status);
                format!("it was never shown, and its last report is {word}")
            });
        };
        // What was confirmed is told to the sender as such, once the question comes after it.
        let confirmed = self
            .confirms_of(peer, id, shown[0].seq)
            .filter(|confirm| confirm.outcome == Outcome::Done)
            .map(|confirm| confirm.completed)
            .min()?;
        let (status, report) = status?;
        (report.invoked > confirmed && !is_confirmed(status))
            .then(|| format!("its sender was told {status} after it had been confirmed"))
    }

    /// Whoever tried to act as another peer was refused.
    fn trespasses(&self, violations: &mut Vec<Violation>) {
        for event in &self.history.events {
            if let Event::Trespass(trespass) = event
                && trespass.outcome == Outcome::Done
                && trespass.caller != trespass.claimed
            {
                let caller = match trespass.caller.as_str() {
                    "" => "somebody without a token",
                    caller => caller,
                };
                violations.push(Violation {
                    kind: Kind::Impersonated,
                    story: format!("{caller} could {} as {}", trespass.action, trespass.claimed),
                });
            }
        }
    }
}

impl<'a> Message<'a> {
    fn new() -> Self {
        Self { sends: Vec::new(), first_invoked: Time::MAX, accepted_by: None, refused: true }
    }

    fn add(&mut self, send: &'a Send) {
        self.sends.push(send);
        if send.outcome == Outcome::Refused {
            // Nothing has happened, so nothing began either, unless all were refused.
            self.first_invoked =
                self.first_invoked.min(if self.refused { send.invoked } else { Time::MAX });
            return;
        }
        if self.refused {
            self.refused = false;
            self.first_invoked = Time::MAX;
            // The send that counts describes the message.
            let last = self.sends.len() - 1;
            self.sends.swap(0, last);
        }
        self.first_invoked = self.first_invoked.min(send.invoked);
        if send.outcome == Outcome::Done {
            let by = self.accepted_by.map_or(send.completed, |by| by.min(send.completed));
            self.accepted_by = Some(by);
        }
    }
}

fn is_confirmed(status: &str) -> bool {
    matches!(status, "delivered" | "read")
}

fn name(sender: &str, message: Uuid) -> String {
    format!("{sender}'s {message}")
}
