//! The checker is itself checked: planted violations of each kind are caught, ambiguous histories
//! are not, and neither are random histories of a gateway that keeps its promises.

use std::collections::BTreeMap;

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::*;

#[test]
fn an_ordinary_talk_is_clean() {
    assert_eq!(check(&talk()), []);
}

#[test]
fn a_message_that_was_accepted_and_never_shown_is_lost() {
    let mut history = talk();
    history.events.retain(|event| !matches!(event, Event::Shown(shown) if shown.seq == 2));
    history.events.retain(|event| !matches!(event, Event::Confirm(_) | Event::Report(_)));
    assert_eq!(kinds(&history), [Kind::Lost]);
    history.settled = false;
    assert_eq!(kinds(&history), []);
}

#[test]
fn a_message_that_ended_for_a_reason_is_not_lost() {
    for status in ["expired", "failed"] {
        let mut history = history();
        history.events.push(sent(1, 0, Outcome::Done));
        history.events.push(report(1, status, HOUR + 1, &[]));
        assert_eq!(kinds(&history), [], "{status}");
    }
}

#[test]
fn a_message_that_its_sender_cannot_find_any_more_is_lost() {
    let mut history = history();
    history.events.push(sent(1, 0, Outcome::Done));
    history.events.push(Event::Report(Report {
        sender: "alice".to_owned(),
        message: id(1),
        deliveries: Vec::new(),
        invoked: 50,
        completed: 60,
        unknown: true,
    }));
    assert_eq!(kinds(&history), [Kind::Lost]);
}

#[test]
fn a_confirmation_that_is_forgotten_is_a_loss() {
    let mut history = history();
    history.events.push(sent(1, 0, Outcome::Done));
    history.events.push(shown(1, 1, 0, 20));
    history.events.push(confirmed(Confirmed::UpTo(1), 30, Outcome::Done));
    history.events.push(report(1, "sent", 50, &[]));
    assert_eq!(kinds(&history), [Kind::Lost]);
}

#[test]
fn reports_that_are_not_true_are_flagged() {
    for status in ["delivered", "read", "cancelled", "expired"] {
        let mut history = history();
        history.events.push(sent(1, 0, Outcome::Done));
        history.events.push(shown(1, 1, 0, 20));
        history.events.push(report(1, status, 50, &[]));
        assert_eq!(kinds(&history), [Kind::Misreported], "{status}");
    }
}

#[test]
fn a_confirmation_that_may_have_arrived_explains_a_report() {
    let mut history = history();
    history.events.push(sent(1, 0, Outcome::Done));
    history.events.push(shown(1, 1, 0, 20));
    history.events.push(confirmed(Confirmed::Messages(vec![id(1)]), 30, Outcome::Unknown));
    history.events.push(report(1, "delivered", 50, &[]));
    assert_eq!(kinds(&history), []);
}

#[test]
fn what_was_confirmed_is_not_shown_again() {
    let mut history = talk();
    history.events.push(shown_on(1, 1, 9, 100, 110));
    assert_eq!(kinds(&history), [Kind::Doubled]);
}

#[test]
fn what_was_reported_as_delivered_is_not_shown_again() {
    let mut history = history();
    history.events.push(sent(1, 0, Outcome::Done));
    history.events.push(shown(1, 1, 0, 20));
    history.events.push(confirmed(Confirmed::UpTo(1), 30, Outcome::Unknown));
    history.events.push(report(1, "delivered", 50, &[]));
    history.events.push(shown_on(1, 1, 9, 60, 61));
    assert_eq!(kinds(&history), [Kind::Doubled]);
}

#[test]
fn showing_again_is_fine_while_the_confirmation_is_not_certain() {
    let mut history = history();
    history.events.push(sent(1, 0, Outcome::Done));
    history.events.push(shown(1, 1, 0, 20));
    // Lost on the way, for all anybody knows.
    history.events.push(confirmed(Confirmed::UpTo(1), 30, Outcome::Unknown));
    history.events.push(shown_on(1, 1, 1, 40, 50));
    history.events.push(confirmed(Confirmed::UpTo(1), 60, Outcome::Done));
    // On a connection that was open before: it may have been under way.
    history.events.push(shown_on(1, 1, 2, 45, 70));
    assert_eq!(kinds(&history), []);
}

#[test]
fn a_connection_shows_a_number_once_and_in_order() {
    let mut history = talk();
    history.events.push(shown_on(1, 1, 7, 5, 21));
    history.events.push(shown_on(1, 1, 7, 5, 22));
    assert_eq!(kinds(&history), [Kind::Doubled]);
    let mut history = talk();
    history.events.push(shown_on(2, 2, 7, 5, 21));
    history.events.push(shown_on(1, 1, 7, 5, 22));
    assert_eq!(kinds(&history), [Kind::Reordered]);
}

#[test]
fn a_place_belongs_to_one_message_and_a_message_has_one_place() {
    let mut history = talk();
    history.events.push(shown_on(2, 9, 8, 5, 25));
    assert_eq!(kinds(&history), [Kind::Renumbered]);
    let mut history = talk();
    history.events.push(sent(3, 3, Outcome::Unknown));
    history.events.push(shown_on(3, 2, 8, 5, 25));
    assert!(kinds(&history).contains(&Kind::Renumbered));
}

#[test]
fn a_lane_keeps_the_order_of_acceptance() {
    let mut history = history();
    history.events.push(sent(1, 0, Outcome::Done));
    history.events.push(sent(2, 20, Outcome::Done));
    history.events.push(shown(2, 1, 40, 41));
    history.events.push(shown(1, 2, 40, 42));
    assert_eq!(kinds(&history), [Kind::Reordered]);

    // Said to be late, it may come later.
    for event in &mut history.events {
        if let Event::Shown(shown) = event {
            shown.late = shown.message == id(1);
        }
    }
    assert_eq!(kinds(&history), []);
}

#[test]
fn sends_that_overlapped_and_other_lanes_have_no_order() {
    let mut history = history();
    history.events.push(sent(1, 0, Outcome::Done));
    // Begun before the first was answered.
    history.events.push(sent(2, 5, Outcome::Done));
    history.events.push(shown(2, 1, 40, 41));
    history.events.push(shown(1, 2, 40, 42));
    assert_eq!(kinds(&history), []);

    let mut history = self::history();
    history.events.push(sent(1, 0, Outcome::Done));
    history.events.push(sent(2, 20, Outcome::Done));
    history.events.push(shown(2, 1, 40, 41));
    history.events.push(shown(1, 2, 40, 42));
    for event in &mut history.events {
        if let Event::Send(send) = event {
            send.min_anonymity = u8::from(send.message == id(2));
        }
    }
    assert_eq!(kinds(&history), []);
}

#[test]
fn a_send_that_was_repeated_may_have_been_accepted_any_time_until_its_answer() {
    let mut history = history();
    history.events.push(sent(1, 0, Outcome::Unknown));
    history.events.push(sent(2, 20, Outcome::Done));
    history.events.push(sent(1, 40, Outcome::Done));
    history.events.push(shown(2, 1, 60, 61));
    history.events.push(shown(1, 2, 60, 62));
    assert_eq!(kinds(&history), []);
}

#[test]
fn a_transport_of_a_lower_level_is_a_downgrade() {
    let mut history = talk();
    history.levels = BTreeMap::from([("htx".to_owned(), 3), ("ble".to_owned(), 1)]);
    for event in &mut history.events {
        if let Event::Send(send) = event {
            send.min_anonymity = 2;
        }
    }
    history.events.push(report(1, "sent", 30, &["local", "htx"]));
    assert_eq!(kinds(&history), []);
    history.events.push(report(1, "sent", 30, &["htx", "ble"]));
    assert_eq!(kinds(&history), [Kind::Downgraded]);
    history.events.pop();
    history.events.push(report(1, "sent", 30, &["carrier pigeon"]));
    assert_eq!(kinds(&history), [Kind::Downgraded]);
}

#[test]
fn a_message_from_somebody_who_did_not_send_it_is_an_impersonation() {
    let mut history = talk();
    for event in &mut history.events {
        if let Event::Shown(shown) = event {
            shown.sender = "mallory".to_owned();
        }
    }
    assert!(kinds(&history).contains(&Kind::Impersonated));

    // What was refused has not happened.
    let mut history = self::history();
    history.events.push(sent(1, 0, Outcome::Refused));
    history.events.push(shown(1, 1, 20, 21));
    assert_eq!(kinds(&history), [Kind::Impersonated]);
    // Unless it was sent again.
    history.events.push(sent(1, 15, Outcome::Unknown));
    assert_eq!(kinds(&history), []);
}

#[test]
fn acting_as_another_is_an_impersonation() {
    for (caller, claimed, outcome, expected) in [
        ("mallory", "alice", Outcome::Done, [Kind::Impersonated].as_slice()),
        ("", "alice", Outcome::Done, &[Kind::Impersonated]),
        ("mallory", "alice", Outcome::Refused, &[]),
        ("alice", "alice", Outcome::Done, &[]),
    ] {
        let mut history = talk();
        history.events.push(Event::Trespass(Trespass {
            caller: caller.to_owned(),
            claimed: claimed.to_owned(),
            action: "send".to_owned(),
            outcome,
        }));
        assert_eq!(kinds(&history), expected, "{caller} as {claimed}");
    }
}

#[test]
fn a_message_shown_to_a_stranger_or_with_other_content_is_flagged() {
    let mut history = talk();
    history.events.push(shown_on(1, 1, 4, 5, 22));
    let Some(Event::Shown(stranger)) = history.events.last_mut() else { unreachable!() };
    stranger.peer = "eve".to_owned();
    assert_eq!(kinds(&history), [Kind::Misdelivered]);

    let mut history = talk();
    for event in &mut history.events {
        if let Event::Shown(shown) = event
            && shown.seq == 1
        {
            shown.content.push('!');
        }
    }
    assert_eq!(kinds(&history), [Kind::Corrupted]);
}

#[test]
fn histories_survive_a_file() {
    let path = std::env::temp_dir().join(format!("fp-history-{}.json", Uuid::new_v4()));
    let mut history = talk();
    history.events.retain(|event| !matches!(event, Event::Shown(shown) if shown.seq == 2));
    history.save(&path).unwrap();
    let loaded = History::load(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(check(&loaded), check(&history));
    assert_eq!(loaded.events.len(), history.events.len());
}

/// Random clients at a gateway that keeps its promises, and then every kind of mutation of what
/// they saw: the first are never flagged, the second always, and as what they are.
#[test]
fn random_histories_are_clean_and_their_mutations_are_not() {
    let mut planted: BTreeMap<Kind, usize> = BTreeMap::new();
    for seed in 0..400 {
        let mut rng = StdRng::seed_from_u64(seed);
        let history = model::random(&mut rng);
        assert_eq!(check(&history), [], "seed {seed}");
        for kind in model::KINDS {
            let mut mutated = history.clone();
            if model::plant(*kind, &mut mutated, &mut rng) {
                let found = kinds(&mutated);
                assert!(found.contains(kind), "seed {seed}: planted {kind:?}, found {found:?}");
                *planted.entry(*kind).or_default() += 1;
            }
        }
    }
    for kind in model::KINDS {
        let count = planted.get(kind).copied().unwrap_or(0);
        assert!(count > 50, "{kind:?} was planted only {count} times");
    }
}

/// A gateway small enough to be seen to keep its promises, with clients that lose answers.
mod model {
    use super::*;

    pub(super) const KINDS: &[Kind] = &[
        Kind::Lost,
        Kind::Misreported,
        Kind::Doubled,
        Kind::Renumbered,
        Kind::Downgraded,
        Kind::Impersonated,
        Kind::Misdelivered,
        Kind::Corrupted,
        Kind::Reordered,
    ];
    const PEERS: [&str; 3] = ["alice", "bob", "carol"];

    #[derive(Default)]
    struct Inbox {
        /// In the order of acceptance: sender, id, content.
        waiting: Vec<(String, Uuid, String)>,
        /// What has a number, and whether it was confirmed.
        numbered: Vec<(String, Uuid, String, bool)>,
    }

    struct World<'r> {
        rng: &'r mut StdRng,
        now: Time,
        streams: u64,
        inboxes: BTreeMap<&'static str, Inbox>,
        history: History,
        /// Sender, id, recipient, whether it was certainly accepted.
        messages: Vec<(&'static str, Uuid, &'static str)>,
    }

    pub(super) fn random(rng: &mut StdRng) -> History {
        let inboxes = PEERS.map(|peer| (peer, Inbox::default())).into();
        let mut world =
            World { rng, now: 0, streams: 0, inboxes, history: history(), messages: Vec::new() };
        for _ in 0..world.rng.random_range(20..80) {
            match world.rng.random_range(0..10) {
                0..4 => world.send(),
                4..7 => world.take(None),
                7 => world.report(),
                _ => world.confirm_some(),
            }
        }
        for peer in PEERS {
            world.take(Some(peer));
        }
        world.report();
        world.history
    }

    impl World<'_> {
        fn tick(&mut self) -> Time {
            self.now += self.rng.random_range(1..20);
            self.now
        }

        fn peer(&mut self) -> &'static str {
            PEERS[self.rng.random_range(0..PEERS.len())]
        }

        /// A send, perhaps lost before or after the gateway had it, then repeated or not.
        fn send(&mut self) {
            let (sender, recipient) = (self.peer(), self.peer());
            let message = Uuid::from_u64_pair(self.rng.random(), self.rng.random());
            let content = format!("from {sender} {message}");
            let mut accepted = false;
            loop {
                let invoked = self.tick();
                let arrives = self.rng.random_bool(0.8);
                if arrives && !accepted {
                    accepted = true;
                    let inbox = self.inboxes.get_mut(recipient).unwrap();
                    inbox.waiting.push((sender.to_owned(), message, content.clone()));
                }
                let answered = arrives && self.rng.random_bool(0.8);
                let completed = self.tick();
                self.history.events.push(Event::Send(Send {
                    sender: sender.to_owned(),
                    message,
                    recipients: vec![recipient.to_owned()],
                    content: content.clone(),
                    min_anonymity: 1,
                    ordered: true,
                    ttl: HOUR,
                    invoked,
                    completed,
                    outcome: if answered { Outcome::Done } else { Outcome::Unknown },
                }));
                if answered || self.rng.random_bool(0.3) {
                    break;
                }
            }
            if accepted {
                self.messages.push((sender, message, recipient));
            }
        }

        /// All that is unconfirmed, shown on a fresh connection and perhaps confirmed.
        fn take(&mut self, everything_of: Option<&'static str>) {
            let peer = everything_of.unwrap_or(PEERS[self.rng.random_range(0..PEERS.len())]);
            let opened = self.tick();
            self.streams += 1;
            let inbox = self.inboxes.get_mut(peer).unwrap();
            let waiting = std::mem::take(&mut inbox.waiting);
            inbox.numbered.extend(
                waiting.into_iter().map(|(sender, id, content)| (sender, id, content, false)),
            );
            let numbered = inbox.numbered.clone();
            for (index, (sender, message, content, confirmed)) in numbered.into_iter().enumerate() {
                if confirmed {
                    continue;
                }
                let (seq, at) = (index as u64 + 1, self.tick());
                self.history.events.push(Event::Shown(Shown {
                    peer: peer.to_owned(),
                    seq,
                    message,
                    sender,
                    content,
                    gap: false,
                    late: false,
                    stream: self.streams,
                    opened,
                    at,
                }));
                let last = everything_of.is_some();
                if last || self.rng.random_bool(0.5) {
                    self.confirm(peer, seq, !last);
                }
                // The connection breaks.
                if !last && self.rng.random_bool(0.1) {
                    break;
                }
            }
        }

        fn confirm_some(&mut self) {
            let peer = self.peer();
            let shown = self.history.events.iter().filter_map(|event| match event {
                Event::Shown(shown) if shown.peer == peer => Some(shown.seq),
                _ => None,
            });
            if let Some(last) = shown.max() {
                self.confirm(peer, last, true);
            }
        }

        fn confirm(&mut self, peer: &'static str, seq: u64, may_fail: bool) {
            let invoked = self.tick();
            let arrives = !may_fail || self.rng.random_bool(0.8);
            let inbox = self.inboxes.get_mut(peer).unwrap();
            if arrives {
                let count = usize::try_from(seq).unwrap();
                inbox.numbered.iter_mut().take(count).for_each(|entry| entry.3 = true);
            }
            let answered = arrives && (!may_fail || self.rng.random_bool(0.8));
            let completed = self.tick();
            self.history.events.push(Event::Confirm(Confirm {
                peer: peer.to_owned(),
                what: Confirmed::UpTo(seq),
                invoked,
                completed,
                outcome: if answered { Outcome::Done } else { Outcome::Unknown },
            }));
        }

        fn report(&mut self) {
            for (sender, message, recipient) in self.messages.clone() {
                let inbox = &self.inboxes[recipient];
                let entry = inbox
                    .numbered
                    .iter()
                    .find(|entry| (entry.0.as_str(), entry.1) == (sender, message));
                let status = match entry {
                    None => "pending",
                    Some((.., false)) => "sent",
                    Some((.., true)) => "delivered",
                };
                let (invoked, completed) = (self.tick(), self.tick());
                self.history.events.push(Event::Report(Report {
                    sender: sender.to_owned(),
                    message,
                    deliveries: vec![DeliveryReport {
                        recipient: recipient.to_owned(),
                        status: status.to_owned(),
                        transports: vec!["local".to_owned()],
                    }],
                    invoked,
                    completed,
                    unknown: false,
                }));
            }
        }
    }

    /// Breaks one promise in what was seen. `false` if this history offers no place for it.
    pub(super) fn plant(kind: Kind, history: &mut History, rng: &mut StdRng) -> bool {
        let accepted: Vec<Send> = sends(history, |send| send.outcome == Outcome::Done);
        let shown: Vec<Shown> = history
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Shown(shown) => Some(shown.clone()),
                _ => None,
            })
            .collect();
        let (Some(send), Some(view)) = (pick(&accepted, rng), pick(&shown, rng)) else {
            return false;
        };
        let end = 1 << 40;
        match kind {
            Kind::Lost => {
                history.events.retain(
                    |event| !matches!(event, Event::Shown(shown) if shown.message == send.message),
                );
            }
            Kind::Misreported => history.events.push(Event::Report(Report {
                sender: send.sender.clone(),
                message: send.message,
                deliveries: vec![DeliveryReport {
                    recipient: send.recipients[0].clone(),
                    status: "expired".to_owned(),
                    transports: Vec::new(),
                }],
                invoked: send.completed,
                completed: send.completed + 1,
                unknown: false,
            })),
            Kind::Doubled => {
                history.events.push(Event::Confirm(Confirm {
                    peer: view.peer.clone(),
                    what: Confirmed::Messages(vec![view.message]),
                    invoked: end,
                    completed: end + 1,
                    outcome: Outcome::Done,
                }));
                history.events.push(Event::Shown(Shown {
                    stream: u64::MAX,
                    opened: end + 2,
                    at: end + 3,
                    ..view
                }));
            }
            Kind::Renumbered => {
                history.events.push(Event::Shown(Shown { stream: u64::MAX, seq: end, ..view }));
            }
            Kind::Downgraded => history.events.push(Event::Report(Report {
                sender: send.sender.clone(),
                message: send.message,
                deliveries: vec![DeliveryReport {
                    recipient: send.recipients[0].clone(),
                    status: "sent".to_owned(),
                    transports: vec!["mesh".to_owned()],
                }],
                invoked: send.completed,
                completed: send.completed + 1,
                unknown: false,
            })),
            Kind::Impersonated => {
                each_view(history, view.message, |shown| shown.sender = "mallory".to_owned());
            }
            Kind::Misdelivered => {
                let other = PEERS.into_iter().find(|peer| *peer != view.peer).unwrap();
                let (peer, stream) = (other.to_owned(), u64::MAX);
                history.events.push(Event::Shown(Shown { peer, stream, seq: end, ..view }));
            }
            Kind::Corrupted => {
                each_view(history, view.message, |shown| shown.content.push('?'));
            }
            Kind::Reordered => return swap_two_of_a_lane(history, &accepted, &shown),
        }
        true
    }

    /// Exchanges the places of two messages of which one was accepted before the other was sent.
    fn swap_two_of_a_lane(history: &mut History, accepted: &[Send], shown: &[Shown]) -> bool {
        let place = |send: &Send| {
            shown
                .iter()
                .find(|shown| shown.message == send.message && shown.sender == send.sender)
                .map(|shown| shown.seq)
        };
        let begun = |send: &Send| {
            let all = sends(history, |other| other.message == send.message);
            all.iter().map(|send| send.invoked).min().unwrap_or(0)
        };
        let pair = accepted.iter().find_map(|first| {
            let second = accepted.iter().find(|second| {
                (&first.sender, &first.recipients) == (&second.sender, &second.recipients)
                    && first.completed < begun(second)
                    && place(second).is_some()
            })?;
            Some((first.message, place(first)?, second.message, place(second)?))
        });
        let Some((first, first_seq, second, second_seq)) = pair else { return false };
        each_view(history, first, |shown| shown.seq = second_seq);
        each_view(history, second, |shown| shown.seq = first_seq);
        true
    }

    fn each_view(history: &mut History, message: Uuid, change: impl Fn(&mut Shown)) {
        for event in &mut history.events {
            if let Event::Shown(shown) = event
                && shown.message == message
            {
                change(shown);
            }
        }
    }

    fn sends(history: &History, wanted: impl Fn(&Send) -> bool) -> Vec<Send> {
        let all = history.events.iter().filter_map(|event| match event {
            Event::Send(send) => Some(send),
            _ => None,
        });
        all.filter(|send| wanted(send)).cloned().collect()
    }

    fn pick<T: Clone>(items: &[T], rng: &mut impl Rng) -> Option<T> {
        (!items.is_empty()).then(|| items[rng.random_range(0..items.len())].clone())
    }
}

/// An hour, in the history's microseconds.
const HOUR: Time = 3_600_000_000;

/// Alice sends twice, Bob sees both in order and confirms them.
fn talk() -> History {
    let mut history = history();
    history.events.push(sent(1, 0, Outcome::Done));
    history.events.push(sent(2, 20, Outcome::Done));
    history.events.push(shown(1, 1, 40, 41));
    history.events.push(shown(2, 2, 40, 42));
    history.events.push(confirmed(Confirmed::UpTo(2), 50, Outcome::Done));
    history.events.push(report(1, "delivered", 70, &["local"]));
    history.events.push(report(2, "delivered", 70, &["local"]));
    history
}

fn history() -> History {
    History { settled: true, ..History::default() }
}

fn sent(number: u128, invoked: Time, outcome: Outcome) -> Event {
    Event::Send(Send {
        sender: "alice".to_owned(),
        message: id(number),
        recipients: vec!["bob".to_owned()],
        content: content(number),
        min_anonymity: 0,
        ordered: true,
        ttl: HOUR,
        invoked,
        completed: invoked + 10,
        outcome,
    })
}

fn shown(number: u128, seq: u64, opened: Time, at: Time) -> Event {
    shown_on(number, seq, 0, opened, at)
}

fn shown_on(number: u128, seq: u64, stream: u64, opened: Time, at: Time) -> Event {
    Event::Shown(Shown {
        peer: "bob".to_owned(),
        seq,
        message: id(number),
        sender: "alice".to_owned(),
        content: content(number),
        gap: false,
        late: false,
        stream,
        opened,
        at,
    })
}

fn confirmed(what: Confirmed, invoked: Time, outcome: Outcome) -> Event {
    let completed = invoked + 5;
    Event::Confirm(Confirm { peer: "bob".to_owned(), what, invoked, completed, outcome })
}

fn report(number: u128, status: &str, invoked: Time, transports: &[&str]) -> Event {
    Event::Report(Report {
        sender: "alice".to_owned(),
        message: id(number),
        deliveries: vec![DeliveryReport {
            recipient: "bob".to_owned(),
            status: status.to_owned(),
            transports: transports.iter().map(|name| (*name).to_owned()).collect(),
        }],
        invoked,
        completed: invoked + 5,
        unknown: false,
    })
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn content(number: u128) -> String {
    format!("message {number}")
}

fn kinds(history: &History) -> Vec<Kind> {
    let mut kinds: Vec<_> = check(history).into_iter().map(|violation| violation.kind).collect();
    kinds.dedup();
    kinds
}
