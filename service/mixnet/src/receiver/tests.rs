use std::sync::OnceLock;

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    fragment::{Shards, split},
    relay::{self, Relay},
    replay::ReplayCache,
    sphinx::{Class, Group, Route, RouteStop, SurbId, X25519},
};

#[test]
fn a_message_is_stored_and_answered_only_once_it_is_committed() {
    let mut story = Story::new();
    let (layout, shards) = story.sealed(5000);
    for index in 0..layout.count() {
        let actions = story.fragment(index, layout, &shards, index == 0, false, false);
        match &actions[..] {
            [] if index + 1 < layout.count() => {}
            [Action::Store { transfer, message }] if index + 1 == layout.count() => {
                assert_eq!((*transfer, message.len()), (TRANSFER, 5000));
            }
            other => panic!("fragment {index}: {other:?}"),
        }
    }
    let answers = story.tell(Event::Committed(TRANSFER));
    assert_eq!(story.read(&answers), [(State::Committed, vec![true; 4])]);
    assert!(story.tell(Event::Committed(TRANSFER)).is_empty(), "one answer for one SURB");
}

#[test]
fn a_repeated_fragment_of_what_is_committed_is_answered_anew_and_a_late_one_is_not() {
    let mut story = Story::new();
    let (layout, shards) = story.sealed(20);
    story.fragment(0, layout, &shards, true, false, false);
    assert_eq!(story.tell(Event::Committed(TRANSFER)).len(), 1);
    assert!(story.fragment(0, layout, &shards, true, false, false).is_empty());
    let answers = story.fragment(0, layout, &shards, true, true, false);
    assert_eq!(story.read(&answers), [(State::Committed, vec![true])]);
}

#[test]
fn a_surb_that_comes_after_repair_made_the_message_whole_is_used() {
    let mut story = Story::new();
    let (layout, shards) = story.sealed(20_000);
    for index in 1..=layout.data {
        story.fragment(index, layout, &shards, false, false, false);
    }
    assert!(story.tell(Event::Committed(TRANSFER)).is_empty(), "no SURB has come yet");
    let answers = story.fragment(0, layout, &shards, true, false, false);
    assert_eq!(story.read(&answers), [(State::Committed, vec![true; layout.count()])]);
}

#[test]
fn who_asks_is_told_at_once_and_who_does_not_after_a_stall() {
    let mut story = Story::new();
    let (layout, shards) = story.sealed(5000);
    story.fragment(1, layout, &shards, true, false, false);
    let stall = story.receiver.next_deadline().unwrap();
    assert_eq!(stall, story.now + Config::default().stall);
    story.now = stall;
    let answers = story.tell(Event::Wake);
    assert_eq!(story.read(&answers), [(State::Partial, vec![false, true, false, false])]);
    assert!(story.tell(Event::Wake).is_empty());
    let answers = story.fragment(3, layout, &shards, true, true, true);
    assert_eq!(story.read(&answers), [(State::Partial, vec![false, true, false, true])]);
}

#[test]
fn what_the_store_refuses_is_answered_so() {
    let mut story = Story::new();
    let (layout, shards) = story.sealed(20);
    story.fragment(0, layout, &shards, true, false, false);
    let answers = story.tell(Event::Refused(TRANSFER));
    assert_eq!(story.read(&answers), [(State::Refused, vec![true])]);
}

#[test]
fn without_the_key_of_the_epoch_nothing_opens() {
    let mut story = Story::new();
    story.receiver.close_epoch(EPOCH);
    let (layout, shards) = story.sealed(20);
    assert!(story.fragment(0, layout, &shards, true, false, false).is_empty());
    assert_eq!(story.receiver.counts().unopened, 1);
}

#[test]
fn when_too_much_is_unsettled_the_newest_is_dropped_and_may_come_again() {
    let mut story = Story::new();
    story.receiver.config.unsettled_bytes = 150;
    let (layout, shards) = story.sealed(20);
    assert_eq!(story.fragment(0, layout, &shards, false, false, false).len(), 1);
    let other = TransferId([8; 16]);
    let (layout, shards) = story.sealed_as(other, 20);
    assert!(story.fragment_of(other, 0, layout, &shards, None).is_empty());
    assert_eq!(story.receiver.counts().overflowed, 1);
    story.tell(Event::Committed(TRANSFER));
    assert_eq!(story.fragment_of(other, 0, layout, &shards, None).len(), 1);
}

#[test]
fn what_was_settled_is_forgotten_in_time_and_beyond_a_number() {
    let mut story = Story::new();
    story.receiver.config.remembered = 2;
    for number in 0..3 {
        let transfer = TransferId([number; 16]);
        let (layout, shards) = story.sealed_as(transfer, 20);
        story.fragment_of(transfer, 0, layout, &shards, None);
        story.tell(Event::Committed(transfer));
    }
    assert_eq!((story.receiver.settled.len(), story.receiver.settled_order.len()), (2, 2));
    story.now += Config::default().remember;
    story.tell(Event::Wake);
    assert_eq!((story.receiver.settled.len(), story.receiver.settled_order.len()), (0, 0));
    assert_eq!(story.receiver.next_deadline(), None);
}

#[test]
fn bodies_that_are_no_fragments_are_counted_and_dropped() {
    let mut story = Story::new();
    let packet = story.deliver(&[0xff; 100]);
    assert!(story.tell(Event::Packet(packet)).is_empty());
    assert_eq!(story.receiver.counts().malformed, 1);
}

/// A receiver behind a relay of its own, and the sender's memory of its SURBs.
struct Story {
    rng: StdRng,
    now: Instant,
    relay: Relay,
    receiver: Receiver<StdRng>,
    surbs: Vec<(SurbId, crate::sphinx::SurbKeys)>,
}

impl Story {
    fn new() -> Self {
        let mut relay = Relay::new(relay::Config::default(), start());
        let cache = ReplayCache::new(EPOCH, [1; 32], 1000);
        relay.open_epoch(&[1; 32], cache, start() + Duration::from_secs(86_400)).unwrap();
        let mut receiver = Receiver::new(US, Config::default(), StdRng::seed_from_u64(2));
        receiver.open_epoch(EPOCH, opening_key());
        let rng = StdRng::seed_from_u64(1);
        Self { rng, now: start(), relay, receiver, surbs: Vec::new() }
    }

    fn sealed(&mut self, length: usize) -> (Layout, Shards) {
        self.sealed_as(TRANSFER, length)
    }

    fn sealed_as(&mut self, transfer: TransferId, length: usize) -> (Layout, Shards) {
        let key = opening_key().sealing_key();
        let message = vec![7; length];
        let sealed = seal::seal(&mut self.rng, US, EPOCH, &key, transfer, &message).unwrap();
        split(Class::Small, &sealed).unwrap()
    }

    fn fragment(
        &mut self,
        index: usize,
        layout: Layout,
        shards: &Shards,
        with_surb: bool,
        again: bool,
        asks: bool,
    ) -> Vec<Action> {
        let id = SurbId([self.surbs.len() as u8; 16]);
        let (surb, keys) = Surb::build(&mut self.rng, &route(), id).unwrap();
        self.surbs.push((id, keys));
        let fragment = Fragment {
            transfer: TRANSFER,
            index,
            layout,
            again,
            asks,
            surb: with_surb.then_some(surb.as_bytes()),
            shard: &shards[index],
        };
        let packet = self.deliver(&fragment.encode());
        self.tell(Event::Packet(packet))
    }

    fn fragment_of(
        &mut self,
        transfer: TransferId,
        index: usize,
        layout: Layout,
        shards: &Shards,
        surb: Option<&[u8; crate::sphinx::SURB_LEN]>,
    ) -> Vec<Action> {
        let shard = &shards[index];
        let fragment = Fragment { transfer, index, layout, again: false, asks: false, surb, shard };
        let packet = self.deliver(&fragment.encode());
        self.tell(Event::Packet(packet))
    }

    /// A packet with this body, as the relay hands it over.
    fn deliver(&mut self, body: &[u8]) -> Packet {
        let packet = Packet::build(&mut self.rng, &route(), Class::Small, body).unwrap();
        let actions: Vec<_> = self.relay.handle(self.now, relay::Event::Packet(packet)).collect();
        match actions.into_iter().nth(1) {
            Some(relay::Action::Deliver(packet)) => packet,
            other => panic!("{other:?}"),
        }
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.receiver.handle(self.now, event).collect()
    }

    /// What the sender of the transfer reads in these answers.
    fn read(&mut self, actions: &[Action]) -> Vec<(State, Vec<bool>)> {
        let mut read = Vec::new();
        for action in actions {
            let Action::Transmit { packet, .. } = action else { panic!("{action:?}") };
            let event = relay::Event::Packet(packet.clone());
            for action in self.relay.handle(self.now, event) {
                let relay::Action::Reply { surb, mut packet } = action else { continue };
                let (_, keys) = self.surbs.iter().find(|(id, _)| *id == surb).unwrap();
                let answer =
                    Acknowledgement::decode(keys.open(packet.payload_mut()).unwrap()).unwrap();
                assert_eq!(answer.transfer, TRANSFER);
                read.push((answer.state, answer.shards));
            }
        }
        read
    }
}

fn route() -> Route {
    let key = X25519::public(&X25519::secret(&[1; 32]).unwrap()).unwrap();
    Route::new(EPOCH, vec![RouteStop { id: US, key, delay: Duration::ZERO }]).unwrap()
}

fn opening_key() -> OpeningKey {
    OpeningKey::from_bytes([5; 32])
}

#[expect(clippy::disallowed_methods, reason = "virtual time needs a start; it is never read again")]
fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

const US: RelayId = RelayId([1; 32]);
const EPOCH: u64 = 500_000;
const TRANSFER: TransferId = TransferId([9; 16]);
