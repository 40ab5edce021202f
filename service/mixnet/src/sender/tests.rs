use std::sync::OnceLock;

use fieldpost_envelope::OpeningKey;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::sphinx::{Class, Command, Group, Production, RouteStop, X25519, open};

#[test]
fn an_answer_is_overdue_after_the_delays_that_were_chosen_and_the_networks_time() {
    for seed in 0..20 {
        let mut story = Story::new(seed);
        story.send(1, 20);
        assert_eq!(story.sender.next_deadline(), Some(story.until()), "nothing is sent yet");
        let packet = story.slot().remove(0);
        let (there, body) = along(packet);
        let body = body.unwrap();
        let fragment = Fragment::decode(Class::Small, &body).unwrap();
        let (_, reply) = fragment.to_surb().unwrap().reply(&mut story.rng, b"").unwrap();
        let (back, _) = along(reply);
        assert!(there > Duration::ZERO || back > Duration::ZERO || seed > 0);
        let patience = NetworkTime::default().patience(1);
        assert_eq!(story.sender.next_deadline(), Some(story.now + there + back + patience));
    }
}

#[test]
fn a_retransmission_shares_no_byte_with_what_was_sent_before() {
    let mut story = Story::new(1);
    story.send(1, 20);
    let first = story.slot().remove(0);
    story.now = story.sender.next_deadline().unwrap();
    assert!(story.tell(Event::Wake).is_empty());
    let second = story.slot().remove(0);
    let same = first.as_bytes().iter().zip(second.as_bytes()).skip(4).filter(|(a, b)| a == b);
    assert!(same.count() < 40);
    let (_, first) = along(first);
    let (_, second) = along(second);
    let (first, second) = (first.unwrap(), second.unwrap());
    let first = Fragment::decode(Class::Small, &first).unwrap();
    let second = Fragment::decode(Class::Small, &second).unwrap();
    assert_eq!((first.transfer, first.shard), (second.transfer, second.shard));
    assert!(!first.again && second.again && first.surb != second.surb);
    assert_eq!(story.sender.counts().repeated, 1);
}

#[test]
fn the_first_of_sixteen_fragments_carries_a_surb_and_the_second_round_of_many_asks() {
    let mut story = Story::new(2);
    story.send(1, 900_000);
    let mut surbs = Vec::new();
    while story.sender.has_waiting() {
        let (_, body) = along(story.slot().remove(0));
        let body = body.unwrap();
        let fragment = Fragment::decode(Class::Large, &body).unwrap();
        if fragment.surb.is_some() {
            surbs.push(fragment.index);
        }
    }
    assert_eq!(surbs, [0, 16]);
    story.now = story.sender.next_deadline().unwrap();
    story.tell(Event::Wake);
    let mut asking = 0;
    while story.sender.has_waiting() {
        let (_, body) = along(story.slot().remove(0));
        let body = body.unwrap();
        let fragment = Fragment::decode(Class::Large, &body).unwrap();
        assert!(fragment.asks && fragment.again && fragment.surb.is_some());
        asking += 1;
    }
    assert_eq!(asking, 2);
}

#[test]
fn without_a_route_a_packet_keeps_its_place() {
    let mut story = Story::new(3);
    story.send(1, 20);
    story.routes.none = true;
    let actions = story.tell(Event::Slot);
    assert!(matches!(actions[..], [Action::NoRoute(GATEWAY)]), "{actions:?}");
    assert!(story.sender.has_waiting());
    story.routes.none = false;
    assert_eq!(story.slot().len(), 1);
    assert!(!story.sender.has_waiting());
    assert!(story.tell(Event::Slot).is_empty(), "an empty slot is left to cover traffic");
}

#[test]
fn what_is_cancelled_is_not_sent_and_not_reported() {
    let mut story = Story::new(4);
    story.send(1, 20);
    story.send(2, 20);
    story.tell(Event::Cancel(SendId(1)));
    assert_eq!(story.sender.in_flight(), 1);
    assert_eq!(story.slot().len(), 1);
    assert!(story.tell(Event::Slot).is_empty());
}

#[test]
fn answers_that_are_strange_change_nothing() {
    let mut story = Story::new(5);
    story.send(1, 20);
    let (_, body) = along(story.slot().remove(0));
    let body = body.unwrap();
    let surb = Fragment::decode(Class::Small, &body).unwrap().to_surb().unwrap();
    let mut rng = StdRng::seed_from_u64(9);
    let strange = Acknowledgement {
        transfer: TransferId([0; 16]),
        state: State::Committed,
        shards: vec![true],
    };
    // About another transfer, no answer at all, altered on the way.
    let mut replies: Vec<(SurbId, Packet)> = [strange.encode(), vec![0xff; 40], strange.encode()]
        .iter()
        .map(|reply| ended(surb.clone().reply(&mut rng, reply).unwrap().1))
        .collect();
    replies[2].1.payload_mut()[100] ^= 1;
    let (id, packet) = replies[0].clone();
    replies.push((SurbId([0; 16]), packet));
    for (number, (surb, packet)) in (1..).zip(replies) {
        assert!(story.tell(Event::Reply { surb, packet }).is_empty());
        assert_eq!(story.sender.counts().strays, number);
    }
    assert_eq!(story.sender.in_flight(), 1);
    assert!(story.sender.surbs.contains_key(&id), "the SURB still counts");
}

#[test]
fn nothing_is_kept_of_what_has_ended() {
    let mut story = Story::new(6);
    for send in 0..5 {
        story.send(send, 50_000);
    }
    while story.sender.has_waiting() {
        story.slot();
    }
    assert!(story.sender.bytes > 0 && !story.sender.surbs.is_empty());
    story.now = story.until();
    assert_eq!(story.tell(Event::Wake).len(), 5);
    assert_eq!((story.sender.bytes, story.sender.surbs.len()), (0, 0));
    assert_eq!(story.sender.next_deadline(), None);
}

struct Story {
    rng: StdRng,
    now: Instant,
    sender: Sender<StdRng>,
    routes: Fixed,
}

impl Story {
    fn new(seed: u64) -> Self {
        let sender = Sender::new(Config::default(), StdRng::seed_from_u64(seed));
        let rng = StdRng::seed_from_u64(seed + 100);
        Self { rng, now: start(), sender, routes: Fixed { none: false } }
    }

    fn until(&self) -> Instant {
        start() + Duration::from_secs(3600)
    }

    fn send(&mut self, send: u64, length: usize) {
        let key = OpeningKey::from_bytes([5; 32]).sealing_key();
        let outgoing = Outgoing {
            send: SendId(send),
            gateway: GATEWAY,
            epoch: EPOCH,
            key,
            until: self.until(),
            message: vec![7; length],
        };
        assert!(self.tell(Event::Send(outgoing)).is_empty());
    }

    fn slot(&mut self) -> Vec<Packet> {
        let packets = |action| match action {
            Action::Transmit { to, packet } => {
                assert_eq!(to, RelayId([1; 32]));
                packet
            }
            other => panic!("{other:?}"),
        };
        self.tell(Event::Slot).into_iter().map(packets).collect()
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.sender.handle(self.now, event, &mut self.routes).collect()
    }
}

/// Always the same three hops, there and back.
struct Fixed {
    none: bool,
}

impl Fixed {
    fn route(&self) -> Option<Route> {
        let stops = (1..=3)
            .map(|relay| RouteStop {
                id: RelayId([relay; 32]),
                key: X25519::public(&secret(relay)).unwrap(),
                delay: Duration::ZERO,
            })
            .collect();
        if self.none { None } else { Route::new(EPOCH, stops).ok() }
    }
}

impl Routes for Fixed {
    fn to(&mut self, _: RelayId) -> Option<Route> {
        self.route()
    }

    fn back(&mut self) -> Option<Route> {
        self.route()
    }
}

/// Takes a packet to its end: the delays on its way, and the body if it is a message's.
fn along(mut packet: Packet) -> (Duration, Option<Vec<u8>>) {
    let mut delays = Duration::ZERO;
    for relay in 1..=3 {
        match hop(relay, &mut packet) {
            Command::Forward { delay, .. } => delays += delay,
            Command::Deliver => return (delays, Some(packet.body().to_vec())),
            Command::Reply { .. } => return (delays, None),
        }
    }
    panic!("the route has three hops");
}

fn ended(mut packet: Packet) -> (SurbId, Packet) {
    for relay in 1..=3 {
        if let Command::Reply { surb } = hop(relay, &mut packet) {
            return (surb, packet);
        }
    }
    panic!("the packet is a reply");
}

fn hop(relay: u8, packet: &mut Packet) -> Command {
    let opened = open::<Production>(&secret(relay), &EPOCH, packet.as_bytes_mut()).unwrap();
    opened.process().unwrap().command
}

fn secret(relay: u8) -> <X25519 as Group>::Secret {
    X25519::secret(&[relay; 32]).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "virtual time needs a start; it is never read again")]
fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

const GATEWAY: RelayId = RelayId([3; 32]);
const EPOCH: u64 = 500_000;
