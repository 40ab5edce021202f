use std::collections::{BTreeMap, VecDeque};

use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::directory::{
    Chain, ChainAction, ChainEvent, DocumentError, GossipMessage, Neighbour, SignedDocument,
};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use crate::fixtures::{EPOCH, authority, genesis, next, relays, time};

#[test]
fn a_document_spreads_along_a_line_of_gateways() {
    let mut line = Line::new(6);
    let first = genesis(relays(1..=3, EPOCH));
    line.offer(0, time(0), &first);
    assert!(line.all_have(&first));
    let second = next(&first);
    line.offer(3, time(9), &second);
    assert!(line.all_have(&second));
    let active = line.chains[0].active(time(9)).unwrap();
    assert_eq!(active.number, 0, "the next epoch has not begun");
    assert_eq!(line.chains[0].active(time(10)).unwrap().number, 1);
    assert_eq!(line.chains[0].active(time(500)).unwrap().number, 1, "there is no newer one");
}

#[test]
fn one_that_missed_some_catches_up_in_order() {
    let mut line = Line::new(2);
    let mut last = genesis(relays(1..=3, EPOCH));
    line.offer(0, time(0), &last);
    line.cut = true;
    for epoch in 1..7 {
        last = next(&last);
        line.offer(0, time(epoch * 10), &last);
    }
    assert!(!line.all_have(&last));
    line.cut = false;
    line.say(1, time(61), ChainEvent::Left(Neighbour(0)));
    line.say(1, time(61), ChainEvent::Joined(Neighbour(0)));
    line.deliver(time(61));
    assert!(line.all_have(&last));
    assert_eq!(line.chains[1].documents().count(), 7);
}

#[test]
fn one_that_missed_too_many_says_so_and_can_begin_anew() {
    let mut line = Line::new(2);
    let mut last = genesis(relays(1..=3, EPOCH));
    line.offer(0, time(0), &last);
    line.cut = true;
    for epoch in 1..12 {
        last = next(&last);
        line.offer(0, time(epoch * 10), &last);
    }
    line.cut = false;
    line.log.clear();
    line.say(0, time(111), ChainEvent::Joined(Neighbour(1)));
    line.deliver(time(111));
    assert!(line.log.contains(&ChainAction::Behind { next: 1, newest: 11 }));
    line.chains[1].forget();
    line.offer(1, time(111), &last);
    assert!(line.all_have(&last));
}

#[test]
fn a_lost_announcement_is_made_good_within_the_next_epoch() {
    let mut line = Line::new(2);
    let first = genesis(relays(1..=3, EPOCH));
    line.offer(0, time(0), &first);
    line.cut = true;
    let second = next(&first);
    line.offer(0, time(8), &second);
    line.cut = false;
    let mut now = time(8);
    while now < time(20) {
        now = Timestamp::try_from(now.as_millis() + 100).unwrap();
        for index in 0..2 {
            line.say(index, now, ChainEvent::Wake);
        }
        line.deliver(now);
    }
    assert!(line.all_have(&second));
}

#[test]
fn a_silent_neighbour_is_not_waited_for_longer_than_ten_seconds() {
    let first = genesis(relays(1..=3, EPOCH));
    let second = next(&first);
    let mut chain = chain(1);
    chain.handle(time(0), ChainEvent::Offered(&first.to_bytes())).for_each(drop);
    let head = GossipMessage::Head { number: 1, digest: second.digest() }.encode();
    for neighbour in [Neighbour(1), Neighbour(2)] {
        chain.handle(time(0), ChainEvent::Joined(neighbour)).for_each(drop);
    }
    let asked = |actions: Vec<ChainAction>| {
        actions.into_iter().find_map(|action| match action {
            ChainAction::Send { to, message: GossipMessage::Request { number: 1 } } => Some(to),
            _ => None,
        })
    };
    let heard = |from| ChainEvent::Received { from, bytes: &head };
    assert_eq!(asked(chain.handle(time(0), heard(Neighbour(1))).collect()), Some(Neighbour(1)));
    assert_eq!(asked(chain.handle(time(1), heard(Neighbour(2))).collect()), None);
    assert_eq!(asked(chain.handle(time(9), ChainEvent::Wake).collect()), None);
    assert_eq!(asked(chain.handle(time(10), ChainEvent::Wake).collect()), Some(Neighbour(2)));
}

#[test]
fn what_nobody_asked_for_or_nobody_signed_is_not_taken_up() {
    let first = genesis(relays(1..=3, EPOCH));
    let mut chain = chain(1);
    chain.handle(time(0), ChainEvent::Joined(Neighbour(1))).for_each(drop);
    let unasked = GossipMessage::Document(first.to_bytes()).encode();
    let from = Neighbour(1);
    let event = ChainEvent::Received { from, bytes: &unasked };
    assert_eq!(chain.handle(time(0), event).count(), 0);
    assert!(chain.newest().is_none());

    let unsigned = first.document().clone().unsigned();
    let error = DocumentError::TooFewSignatures { count: 0, needed: 2 };
    let refused = ChainAction::Refused { from: None, error };
    let actions: Vec<_> =
        chain.handle(time(0), ChainEvent::Offered(&unsigned.to_bytes())).collect();
    assert_eq!(actions, [refused]);

    let early = Timestamp::try_from(time(0).as_millis() - 30_000).unwrap();
    let error = DocumentError::TooEarly { epoch: EPOCH, now: EPOCH - 3 };
    let actions: Vec<_> = chain.handle(early, ChainEvent::Offered(&first.to_bytes())).collect();
    assert_eq!(actions, [ChainAction::Refused { from: None, error }]);
}

#[test]
fn two_documents_under_one_number_are_reported() {
    let mut line = Line::new(2);
    line.cut = true;
    line.offer(0, time(0), &genesis(relays(1..=3, EPOCH)));
    line.offer(1, time(0), &genesis(relays(1..=2, EPOCH)));
    line.cut = false;
    line.log.clear();
    line.say(0, time(0), ChainEvent::Joined(Neighbour(1)));
    line.deliver(time(0));
    assert_eq!(line.log, [ChainAction::Forked { with: Neighbour(0), number: 0 }]);
}

#[test]
fn a_greedy_neighbour_gets_eight_answers_and_then_one_a_second() {
    let first = genesis(relays(1..=3, EPOCH));
    let mut chain = chain(1);
    chain.handle(time(0), ChainEvent::Offered(&first.to_bytes())).for_each(drop);
    chain.handle(time(0), ChainEvent::Joined(Neighbour(1))).for_each(drop);
    let request = GossipMessage::Request { number: 0 }.encode();
    let mut answers = |now| {
        let event = || ChainEvent::Received { from: Neighbour(1), bytes: &request };
        (0..20).map(|_| chain.handle(now, event()).count()).sum::<usize>()
    };
    assert_eq!(answers(time(1)), 8);
    assert_eq!(answers(time(1)), 0);
    assert_eq!(answers(time(3)), 2);
}

#[test]
fn no_more_neighbours_are_kept_than_there_may_be() {
    let mut chain = chain(1);
    let first = genesis(relays(1..=3, EPOCH));
    chain.handle(time(0), ChainEvent::Offered(&first.to_bytes())).for_each(drop);
    let greeted = (0..100)
        .filter(|number| chain.handle(time(0), ChainEvent::Joined(Neighbour(*number))).count() == 1)
        .count();
    assert_eq!(greeted, 64);
}

proptest! {
    #[test]
    fn a_message_is_read_as_it_was_written(
        kind in 0..3,
        number in 0..1_u64 << 48,
        digest: [u8; 32],
        document: Vec<u8>,
    ) {
        let message = match kind {
            0 => GossipMessage::Head { number, digest },
            1 => GossipMessage::Request { number },
            _ => GossipMessage::Document(document),
        };
        prop_assert_eq!(GossipMessage::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn any_bytes_are_judged_without_a_panic(bytes: Vec<u8>) {
        let mut chain = chain(1);
        chain.handle(time(0), ChainEvent::Joined(Neighbour(1))).for_each(drop);
        let event = ChainEvent::Received { from: Neighbour(1), bytes: &bytes };
        chain.handle(time(0), event).for_each(drop);
        prop_assert!(chain.newest().is_none());
    }
}

/// Gateways in a row, each linked to the ones beside it and named by its index.
struct Line {
    chains: Vec<Chain<StdRng>>,
    wires: BTreeMap<(usize, usize), VecDeque<GossipMessage>>,
    cut: bool,
    /// All that was done, sending left out.
    log: Vec<ChainAction>,
}

impl Line {
    fn new(count: usize) -> Self {
        let chains = (0..count as u64).map(chain).collect();
        let mut line = Self { chains, wires: BTreeMap::new(), cut: false, log: Vec::new() };
        for left in 0..count - 1 {
            line.say(left, time(0), ChainEvent::Joined(Neighbour(left as u64 + 1)));
            line.say(left + 1, time(0), ChainEvent::Joined(Neighbour(left as u64)));
        }
        line
    }

    fn offer(&mut self, index: usize, now: Timestamp, document: &SignedDocument) {
        self.say(index, now, ChainEvent::Offered(&document.to_bytes()));
        self.deliver(now);
    }

    fn say(&mut self, index: usize, now: Timestamp, event: ChainEvent<'_>) {
        let actions: Vec<_> = self.chains[index].handle(now, event).collect();
        for action in actions {
            match action {
                ChainAction::Send { to, message } if !self.cut => {
                    self.wires.entry((index, to.0 as usize)).or_default().push_back(message);
                }
                ChainAction::Send { .. } => {}
                action => self.log.push(action),
            }
        }
    }

    fn deliver(&mut self, now: Timestamp) {
        while let Some((&(from, to), wire)) =
            self.wires.iter_mut().find(|(_, wire)| !wire.is_empty())
        {
            let bytes = wire.pop_front().unwrap().encode();
            let event = ChainEvent::Received { from: Neighbour(from as u64), bytes: &bytes };
            self.say(to, now, event);
        }
    }

    fn all_have(&self, document: &SignedDocument) -> bool {
        self.chains
            .iter()
            .all(|chain| chain.newest().is_some_and(|newest| newest.digest() == document.digest()))
    }
}

fn chain(seed: u64) -> Chain<StdRng> {
    Chain::new(StdRng::seed_from_u64(seed), authority())
}
