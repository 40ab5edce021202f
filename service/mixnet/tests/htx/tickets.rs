use std::net::{IpAddr, Ipv4Addr};

use data_encoding::BASE64URL_NOPAD;
use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::htx::{
    Admission, BucketLimits, Gate, Refusal, SecretKey, TicketError, TicketKey, TicketParts,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const NOON: u64 = 1_800_000_000;
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

#[test]
fn a_good_ticket_lets_in_once() {
    let mut front = Front::new();
    let ticket = front.ticket(NOON);
    assert_eq!(front.check(NOON, &ticket), Ok(Admission { key_id: *b"frontkey" }));
    assert_eq!(front.check(NOON, &ticket), Err(Refusal::Replayed));
    assert_eq!(front.check(NOON + 3_599, &ticket), Err(Refusal::Replayed));
    let next = front.ticket(NOON);
    assert!(front.check(NOON, &next).is_ok());
}

#[test]
fn clocks_may_be_an_hour_apart_and_no_more() {
    let hour = 3_600;
    let base = NOON - NOON % hour;
    for (ours, theirs, fits) in [
        (base, base, true),
        (base, base - 1, true),
        (base, base - hour, true),
        (base, base - hour - 1, false),
        (base, base + 2 * hour - 1, true),
        (base, base + 2 * hour, false),
        (base + hour - 1, base - hour, true),
        (0, 0, true),
        (0, hour, true),
    ] {
        let mut front = Front::new();
        let ticket = front.ticket(theirs);
        let answer = front.check(ours, &ticket);
        let expected = if fits { Ok(*b"frontkey") } else { Err(Refusal::Forged) };
        assert_eq!(answer.map(|admission| admission.key_id), expected, "{ours} {theirs}");
    }
}

#[test]
fn a_used_ticket_stays_used_when_the_clock_is_set_back() {
    let mut front = Front::new();
    let old = front.ticket(NOON);
    assert!(front.check(NOON, &old).is_ok());
    let later = front.ticket(NOON + 5 * 3_600);
    assert!(front.check(NOON + 5 * 3_600, &later).is_ok());
    assert_eq!(front.check(NOON, &old), Err(Refusal::Replayed));
}

#[test]
fn a_ticket_is_for_one_key_and_old_keys_serve_until_they_are_removed() {
    let mut front = Front::new();
    let ticket = front.ticket(NOON);
    front.gate.remove_key(b"frontkey");
    assert_eq!(front.check(NOON, &ticket), Err(Refusal::UnknownKey));
    front.gate.add_key(*b"frontkey", SecretKey::from_bytes(&[8; 32]));
    assert_eq!(front.check(NOON, &ticket), Err(Refusal::Forged));
    for (number, id) in (0_u8..).zip([*b"frontkey", *b"second..", *b"third...", *b"fourth.."]) {
        front.gate.add_key(id, SecretKey::from_bytes(&[7 + number; 32]));
    }
    assert!(front.check(NOON, &ticket).is_ok());
    let ticket = front.ticket(NOON);
    front.gate.add_key(*b"fifth...", SecretKey::from_bytes(&[20; 32]));
    assert_eq!(front.check(NOON, &ticket), Err(Refusal::UnknownKey), "the oldest is forgotten");
}

#[test]
fn a_corner_of_the_network_that_shows_too_many_is_refused_even_with_good_ones() {
    let mut front = Front::new();
    front.gate = gate(BucketLimits { burst: 2, refill_ms: 10_000, corners: 8 });
    for _ in 0..2 {
        assert_eq!(front.check(NOON, "bad").unwrap_err(), BAD);
    }
    let ticket = front.ticket(NOON);
    assert_eq!(front.check(NOON, &ticket), Err(Refusal::TooMany));
    let elsewhere = IpAddr::from([192, 0, 3, 1]);
    assert!(front.gate.check(time(NOON), elsewhere, Some(&ticket)).is_ok());
    for _ in 0..20 {
        assert_eq!(front.gate.check(time(NOON), ANYWHERE, None), Err(Refusal::NoTicket));
    }
    let ticket = front.ticket(NOON);
    assert!(front.check(NOON + 10, &ticket).is_ok(), "visitors of the decoy cost nothing");
}

#[test]
fn ten_thousand_altered_tickets_are_all_refused() {
    let mut front = Front::new();
    let mut rng = StdRng::seed_from_u64(10_000);
    let ticket = front.ticket(NOON);
    for case in 0..10_000 {
        let altered = alter(&mut rng, &ticket);
        assert!(front.check(NOON, &altered).is_err(), "case {case}: {altered}");
    }
    assert!(front.check(NOON, &ticket).is_ok(), "nothing of that used it up");
}

#[test]
fn a_key_of_small_order_is_no_way_in() {
    let mut front = Front::new();
    let mut bytes = BASE64URL_NOPAD.decode(front.ticket(NOON).as_bytes()).unwrap();
    bytes[1..33].fill(0);
    assert_eq!(front.check(NOON, &BASE64URL_NOPAD.encode(&bytes)), Err(Refusal::Forged));
    let front_key = TicketKey { id: [0; 8], public: [0; 32] };
    let made = front_key.make_ticket(&mut front.rng, (24, 64), NOON);
    assert_eq!(made, Err(TicketError::FrontKey));
}

#[test]
fn padding_is_ignored_but_counted() {
    let mut front = Front::new();
    let bytes = BASE64URL_NOPAD.decode(front.ticket(NOON).as_bytes()).unwrap();
    let padded = |length: usize| {
        let mut bytes = bytes[..105].to_vec();
        bytes.resize(105 + length, 0x55);
        BASE64URL_NOPAD.encode(&bytes)
    };
    for (length, fits) in [(23, false), (24, true), (64, true), (65, false)] {
        assert_eq!(TicketParts::decode(&padded(length)).is_ok(), fits, "{length}");
    }
    assert!(front.check(NOON, &padded(33)).is_ok());
    assert_eq!(front.check(NOON, &padded(34)), Err(Refusal::Replayed));
}

#[test]
fn a_text_that_is_no_ticket_says_why() {
    let front = Front::new();
    let good = front.key.make_ticket(&mut StdRng::seed_from_u64(1), (32, 32), NOON).unwrap();
    let version_2 = {
        let mut bytes = BASE64URL_NOPAD.decode(good.as_bytes()).unwrap();
        bytes[0] = 2;
        BASE64URL_NOPAD.encode(&bytes)
    };
    for (text, error) in [
        (String::new(), TicketError::TextLength { length: 0 }),
        ("A".repeat(171), TicketError::TextLength { length: 171 }),
        ("A".repeat(227), TicketError::TextLength { length: 227 }),
        ("=".repeat(180), TicketError::NotBase64Url),
        (good.replace(&good[20..21], "+"), TicketError::NotBase64Url),
        (version_2, TicketError::Version(2)),
    ] {
        assert_eq!(TicketParts::decode(&text), Err(error), "{text}");
    }
}

proptest! {
    #[test]
    fn a_ticket_is_read_as_it_was_made(seed: u64, least in 24..=64_u8, more in 0..=40_u8) {
        let front = Front::new();
        let mut rng = StdRng::seed_from_u64(seed);
        let most = (least + more).min(64);
        let text = front.key.make_ticket(&mut rng, (least, most), NOON).unwrap();
        prop_assert!(TicketParts::TEXT_LEN.contains(&text.len()));
        let length = BASE64URL_NOPAD.decode(text.as_bytes()).unwrap().len() - 105;
        prop_assert!((usize::from(least)..=usize::from(most)).contains(&length));
        let parts = TicketParts::decode(&text).unwrap();
        prop_assert_eq!(parts.key_id, front.key.id);
        let client = SecretKey::generate(&mut StdRng::seed_from_u64(seed));
        prop_assert_eq!(&parts.client, client.public());
    }

    #[test]
    fn any_text_is_judged_without_a_panic(text: String) {
        let answer = Front::new().check(NOON, &text);
        prop_assert!(matches!(answer, Err(Refusal::Malformed(_))));
    }
}

struct Front {
    gate: Gate,
    key: TicketKey,
    rng: StdRng,
}

impl Front {
    fn new() -> Self {
        let secret = SecretKey::from_bytes(&[7; 32]);
        let key = TicketKey { id: *b"frontkey", public: *secret.public() };
        let plenty = BucketLimits { burst: 100_000, ..BucketLimits::default() };
        Self { gate: gate(plenty), key, rng: StdRng::seed_from_u64(1) }
    }

    fn ticket(&mut self, unix_seconds: u64) -> String {
        self.key.make_ticket(&mut self.rng, (24, 64), unix_seconds).unwrap()
    }

    fn check(&mut self, unix_seconds: u64, text: &str) -> Result<Admission, Refusal> {
        self.gate.check(time(unix_seconds), ANYWHERE, Some(text))
    }
}

fn gate(limits: BucketLimits) -> Gate {
    let mut gate = Gate::new(&mut StdRng::seed_from_u64(2), limits);
    gate.add_key(*b"frontkey", SecretKey::from_bytes(&[7; 32]));
    gate
}

fn time(unix_seconds: u64) -> Timestamp {
    Timestamp::try_from(unix_seconds * 1_000).unwrap()
}

/// Alters the part of a ticket that is not padding, or its length beyond what padding may be.
fn alter(rng: &mut StdRng, ticket: &str) -> String {
    let mut text = ticket.as_bytes().to_vec();
    let at = rng.random_range(0..140);
    match rng.random_range(0..6) {
        0 => drop(text.remove(at)),
        1 => text.insert(at, b'A' + rng.random_range(0..26)),
        2 => text.truncate(rng.random_range(0..172)),
        3 => text.resize(text.len() + 100, b'A'),
        _ => {
            let other = rng.random_range(0x20..0x7f_u8);
            text[at] = if other == text[at] { b'!' } else { other };
        }
    }
    if text[..140.min(text.len())] == ticket.as_bytes()[..140] && (172..=226).contains(&text.len())
    {
        text[at] = b'!';
    }
    String::from_utf8(text).unwrap()
}

const BAD: Refusal = Refusal::Malformed(TicketError::TextLength { length: 3 });
