//! Which positions a client was given one after the other.
//!
//! What has expired since it was shown counts as delivered when its client says that it has all up to
//! some position, but only where it was given it: a position may have been given out to a connection
//! that broke, and a client that came back later has never seen what expired in between.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use fieldpost_delivery::{Confirm, Seq};
use fieldpost_envelope::PeerId;

/// Peers whose polls are remembered; beyond, all are forgotten, and what expired stays so.
const REMEMBERED: usize = 65_536;

/// Positions without a hole between them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given {
    first: Seq,
    last: Seq,
}

impl Given {
    pub(super) fn add(&mut self, seq: Seq) {
        if self.first == 0 || seq != self.last + 1 {
            self.first = seq;
        }
        self.last = seq;
    }

    /// What a client confirms that says that it has all up to a position.
    pub(super) fn up_to(self, seq: Seq) -> Confirm {
        let was_given = (self.first..=self.last).contains(&seq);
        // Whoever names a position knows that one, whoever gave it.
        Confirm::UpTo { seq, seen_from: if was_given { self.first } else { seq } }
    }
}

/// What polls and event streams have given, to each peer.
#[derive(Debug, Default)]
pub struct Pages(Mutex<HashMap<PeerId, Given>>);

impl Pages {
    /// A client that asks for what comes `after` the last page has had that; any other may have never
    /// had it, and begins anew.
    pub(super) fn add(&self, peer: &PeerId, after: Seq, seqs: impl Iterator<Item = Seq>) {
        let mut peers = self.lock();
        if peers.len() >= REMEMBERED && !peers.contains_key(peer) {
            peers.clear();
        }
        let given = peers.entry(peer.clone()).or_default();
        if given.last != after {
            *given = Given::default();
        }
        seqs.for_each(|seq| given.add(seq));
    }

    pub(super) fn of(&self, peer: &PeerId) -> Given {
        self.lock().get(peer).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Given>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_all_up_to_a_position_speaks_of_what_came_without_a_hole_before_it() {
        let mut given = Given::default();
        let seen_from = |given: Given, seq| match given.up_to(seq) {
            Confirm::UpTo { seen_from, .. } => seen_from,
            Confirm::Messages(_) => panic!("it names no messages"),
        };
        assert_eq!(seen_from(given, 3), 3);
        (2..=4).for_each(|seq| given.add(seq));
        assert_eq!([2, 4, 5, 1].map(|seq| seen_from(given, seq)), [2, 2, 5, 1]);
        given.add(6);
        assert_eq!([6, 4].map(|seq| seen_from(given, seq)), [6, 4]);
    }

    #[test]
    fn pages_of_one_peer_continue_each_other_where_it_asks_for_what_comes_after() {
        let (pages, bob) = (Pages::default(), "bob".parse().unwrap());
        let seen = |seq, seen_from| Confirm::UpTo { seq, seen_from };
        pages.add(&bob, 0, 1..=2);
        pages.add(&bob, 2, 3..=3);
        assert_eq!(pages.of(&bob).up_to(3), seen(3, 1));
        // The answer with 4 may have been lost.
        pages.add(&bob, 3, 4..=4);
        pages.add(&bob, 3, 5..=5);
        assert_eq!(pages.of(&bob).up_to(5), seen(5, 5));
        pages.add(&bob, 0, 4..=5);
        assert_eq!(pages.of(&bob).up_to(5), seen(5, 4));
    }
}
