use proptest::prelude::*;

use super::*;
use crate::{
    fragment::{SEAL_OVERHEAD, split},
    sphinx::Class,
};

#[test]
fn any_shards_that_are_enough_in_number_give_the_message_back() {
    let sealed = message(20_000);
    let (layout, shards) = split(Class::Small, &sealed).unwrap();
    assert_eq!((layout.data, layout.repair), (13, 2));
    let mut reassembly = Reassembly::new(Limits::default());
    let now = start();
    for index in (2..layout.count()).rev() {
        let gathered = reassembly.insert(now, &fragment(1, layout, index, &shards)).unwrap();
        let last = index == 2;
        assert_eq!(gathered == Gathered::Whole(sealed.clone()), last, "shard {index}");
    }
    assert!(reassembly.is_empty());
    assert_eq!(reassembly.bytes(), 0);
}

#[test]
fn duplicates_change_nothing() {
    let (layout, shards) = split(Class::Small, &message(4000)).unwrap();
    let mut reassembly = Reassembly::new(Limits::default());
    let now = start();
    assert_eq!(reassembly.insert(now, &fragment(1, layout, 0, &shards)), Ok(Gathered::Stored));
    let bytes = reassembly.bytes();
    let again = reassembly.insert(now, &fragment(1, layout, 0, &shards));
    assert_eq!(again, Ok(Gathered::Duplicate));
    assert_eq!(reassembly.bytes(), bytes);
}

#[test]
fn a_fragment_that_speaks_of_another_length_is_refused() {
    let (layout, shards) = split(Class::Small, &message(4000)).unwrap();
    let (other, other_shards) = split(Class::Small, &message(4001)).unwrap();
    let mut reassembly = Reassembly::new(Limits::default());
    reassembly.insert(start(), &fragment(1, layout, 0, &shards)).unwrap();
    let refused = reassembly.insert(start(), &fragment(1, other, 1, &other_shards));
    assert_eq!(refused, Err(RefuseError::Contradiction));
}

#[test]
fn the_transfer_that_has_waited_longest_gives_way() {
    let limits = Limits { transfers: 2, ..Limits::default() };
    let (layout, shards) = split(Class::Small, &message(4000)).unwrap();
    let mut reassembly = Reassembly::new(limits);
    let now = start();
    let second = Duration::from_secs(1);
    reassembly.insert(now, &fragment(1, layout, 0, &shards)).unwrap();
    reassembly.insert(now + second, &fragment(2, layout, 0, &shards)).unwrap();
    reassembly.insert(now + 2 * second, &fragment(1, layout, 1, &shards)).unwrap();
    reassembly.insert(now + 3 * second, &fragment(3, layout, 0, &shards)).unwrap();
    assert!(reassembly.contains(TransferId([1; 16])));
    assert!(!reassembly.contains(TransferId([2; 16])));
    assert_eq!(reassembly.evicted(), 1);
}

#[test]
fn a_transfer_that_fits_no_bound_is_refused_and_forgotten() {
    let limits = Limits { bytes: 3000, ..Limits::default() };
    let (layout, shards) = split(Class::Small, &message(6000)).unwrap();
    let mut reassembly = Reassembly::new(limits);
    reassembly.insert(start(), &fragment(1, layout, 0, &shards)).unwrap();
    let refused = reassembly.insert(start(), &fragment(1, layout, 1, &shards));
    assert_eq!(refused, Err(RefuseError::Full { most: 3000 }));
    assert_eq!((reassembly.len(), reassembly.bytes()), (0, 0));
}

#[test]
fn what_waits_too_long_is_forgotten() {
    let (layout, shards) = split(Class::Small, &message(4000)).unwrap();
    let mut reassembly = Reassembly::new(Limits::default());
    let now = start();
    reassembly.insert(now, &fragment(1, layout, 0, &shards)).unwrap();
    let deadline = reassembly.next_deadline().unwrap();
    assert_eq!(deadline, now + Limits::default().idle);
    assert_eq!(reassembly.expire(deadline - Duration::from_millis(1)), []);
    assert_eq!(reassembly.expire(deadline), [TransferId([1; 16])]);
    assert_eq!((reassembly.bytes(), reassembly.next_deadline()), (0, None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn messages_survive_any_order_and_any_loss_that_repair_covers(
        length in SEAL_OVERHEAD..60_000_usize, order in any::<prop::sample::Index>(), large: bool
    ) {
        let class = if large { Class::Large } else { Class::Small };
        let sealed = message(length);
        let (layout, shards) = split(class, &sealed).unwrap();
        let mut reassembly = Reassembly::new(Limits::default());
        let first = order.index(layout.count());
        let mut whole = None;
        for step in 0..layout.data {
            let index = (first + step) % layout.count();
            if let Gathered::Whole(sealed) =
                reassembly.insert(start(), &fragment(1, layout, index, &shards)).unwrap()
            {
                whole = Some(sealed);
            }
        }
        prop_assert_eq!(whole, Some(sealed));
    }
}

fn message(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 % 251) as u8).collect()
}

fn fragment(transfer: u8, layout: Layout, index: usize, shards: &[Box<[u8]>]) -> Fragment<'_> {
    let transfer = TransferId([transfer; 16]);
    let shard = &shards[index];
    Fragment { transfer, index, layout, again: false, asks: false, surb: None, shard }
}

#[expect(clippy::disallowed_methods, reason = "virtual time needs a start; it is never read again")]
fn start() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(Instant::now)
}
