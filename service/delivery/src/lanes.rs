//! In what order messages of one lane are shown (design, promise 5).
//!
//! The sender's gateway counts the messages of a lane and names with each the last predecessor that
//! has not ended (`after`). The recipient's gateway stores what arrives at once and shows it when
//! that predecessor has been shown; after `--order-wait` it shows what it has, and says that
//! something is missing. A message that comes after its turn is shown at once, and says so.
//!
//! `critical` messages and broadcasts have no lane and never come here. What is decided here is
//! decided inside the stores' transactions, so it is pure and needs only what those have at hand.
//!
//! A recipient of this gateway gets messages in the order of their acceptance without any of this.
//! A sender that moves one recipient between `local` and a forced transport in the middle of a lane
//! (`transport_required`) gets each of the two in order, but not one after the other: the two ways
//! are two lanes.

use std::mem;

use fieldpost_envelope::{LaneSeq, MessageId, Priority, Recipient};

/// Whether a message keeps its place behind others of the same sender, recipient and level.
pub fn has_lane(priority: Priority, to: &Recipient) -> bool {
    priority != Priority::Critical && *to != Recipient::Broadcast
}

/// The predecessor that a message of the sender's lane names: the last that has not ended.
///
/// `live` are the places of the lane's deliveries that have neither arrived at the recipient's
/// client nor ended otherwise. Those that the recipient's gateway has merely stored count: they may
/// be held back there themselves.
pub fn predecessor(live: impl IntoIterator<Item = LaneSeq>, lane_seq: LaneSeq) -> Option<LaneSeq> {
    live.into_iter().filter(|other| *other < lane_seq).max()
}

/// What to do with a message that has arrived.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admit {
    /// It may be shown now.
    Show {
        /// Something that follows it has been shown already.
        late: bool,
    },
    /// It waits for its predecessor, at most for the order wait.
    Hold,
}

/// Whether a message may be shown, where `last_shown` is the furthest place of its lane that was.
pub fn admit(last_shown: Option<LaneSeq>, lane_seq: LaneSeq, after: Option<LaneSeq>) -> Admit {
    // `None` is less than any place, which is what an empty lane and a missing predecessor mean.
    if last_shown >= Some(lane_seq) {
        Admit::Show { late: true }
    } else if last_shown >= after {
        Admit::Show { late: false }
    } else {
        Admit::Hold
    }
}

/// A message that is held back.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Held {
    /// Its place.
    pub lane_seq: LaneSeq,
    /// Which it is; two messages can claim one place when a sender's gateway was restored from a
    /// backup.
    pub id: MessageId,
    /// What it waits for.
    pub after: Option<LaneSeq>,
}

/// How far the messages of a lane have been shown.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// The furthest place that was.
    pub last_shown: Option<LaneSeq>,
    /// The message that was to say that something is missing ended before anybody saw it: the next
    /// one says so, and until then whatever comes late.
    pub owes_gap: bool,
}

/// A message that may now be shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Released {
    /// Its place.
    pub lane_seq: LaneSeq,
    /// Which it is.
    pub id: MessageId,
    /// Something before it has not come in time, or before one that nobody has seen.
    pub gap: bool,
    /// Something that follows it has been shown already.
    pub late: bool,
}

/// Takes from `held`, in order, what may be shown, and moves `progress` along.
///
/// `due` is the furthest place of a message that has waited long enough: everything held up to
/// there is shown, so that what waits behind it does not come out before it.
pub fn release(
    progress: &mut Progress,
    held: &mut Vec<Held>,
    due: Option<LaneSeq>,
) -> Vec<Released> {
    let Progress { last_shown, owes_gap } = progress;
    held.sort_unstable();
    let mut released = Vec::new();
    held.retain(|message| {
        let Held { lane_seq, id, after } = *message;
        let (gap, late) = match admit(*last_shown, lane_seq, after) {
            // Whoever sees it may not have seen what made it late; the next in order says so again.
            Admit::Show { late: true } => (*owes_gap, true),
            Admit::Show { late: false } => (mem::take(owes_gap), false),
            Admit::Hold if due >= Some(lane_seq) => {
                *owes_gap = false;
                (true, false)
            }
            Admit::Hold => return true,
        };
        *last_shown = (*last_shown).max(Some(lane_seq));
        released.push(Released { lane_seq, id, gap, late });
        false
    });
    released
}

/// Applies what an envelope tells of the places before it: between `after` and `lane_seq`
/// everything has ended, so nothing held needs to wait for a place in between.
///
/// True when that changed anything.
pub fn pass_over(held: &mut [Held], lane_seq: LaneSeq, after: Option<LaneSeq>) -> bool {
    let mut changed = false;
    for message in held {
        if message.lane_seq <= lane_seq && message.after > after && message.after < Some(lane_seq) {
            message.after = after;
            changed = true;
        }
    }
    changed
}

/// What is held behind a place that nothing will be shown at waits for what that place waited for.
pub fn pass_over_ended(held: &mut [Held], lane_seq: LaneSeq, after: Option<LaneSeq>) {
    for message in held {
        if message.after == Some(lane_seq) {
            message.after = after;
        }
    }
}

/// The predecessor that a new arrival has to wait for, given what the envelopes of those held
/// behind it have told.
pub fn known_after(held: &[Held], lane_seq: LaneSeq, after: Option<LaneSeq>) -> Option<LaneSeq> {
    held.iter()
        .filter(|other| other.lane_seq > lane_seq && other.after < after)
        .filter(|other| Some(other.lane_seq) > after)
        .map(|other| other.after)
        .fold(after, Option::min)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_first_message_of_a_lane_is_shown_at_once() {
        assert_eq!(admit(None, LaneSeq(1), None), Admit::Show { late: false });
        assert_eq!(admit(None, LaneSeq(70), None), Admit::Show { late: false });
    }

    #[test]
    fn a_message_waits_for_the_predecessor_it_names_and_for_no_other() {
        assert_eq!(admit(None, LaneSeq(2), Some(LaneSeq(1))), Admit::Hold);
        assert_eq!(admit(Some(LaneSeq(1)), LaneSeq(5), Some(LaneSeq(1))), SHOW);
        assert_eq!(admit(Some(LaneSeq(1)), LaneSeq(5), Some(LaneSeq(3))), Admit::Hold);
        assert_eq!(admit(Some(LaneSeq(4)), LaneSeq(5), Some(LaneSeq(3))), SHOW);
    }

    #[test]
    fn what_comes_after_its_turn_is_shown_as_late() {
        assert_eq!(admit(Some(LaneSeq(5)), LaneSeq(3), None), Admit::Show { late: true });
        assert_eq!(
            admit(Some(LaneSeq(5)), LaneSeq(3), Some(LaneSeq(2))),
            Admit::Show { late: true }
        );
    }

    #[test]
    fn the_missing_one_brings_out_all_that_waited_for_it_in_order() {
        let mut progress = Progress { last_shown: Some(LaneSeq(1)), owes_gap: false };
        let mut waiting = vec![held(4, 3), held(2, 1), held(3, 2), held(9, 8)];
        let out = release(&mut progress, &mut waiting, None);
        assert_eq!(places(&out), [(2, false, false), (3, false, false), (4, false, false)]);
        assert_eq!(waiting, [held(9, 8)]);
        assert_eq!(progress.last_shown, Some(LaneSeq(4)));
    }

    #[test]
    fn after_the_wait_what_follows_comes_with_a_gap_and_only_the_first_of_it() {
        let mut progress = Progress::default();
        let mut waiting = vec![held(3, 2), held(2, 1), held(7, 6)];
        let out = release(&mut progress, &mut waiting, Some(LaneSeq(3)));
        assert_eq!(places(&out), [(2, true, false), (3, false, false)]);
        assert_eq!(waiting, [held(7, 6)]);
    }

    #[test]
    fn a_gap_that_nobody_has_seen_is_told_by_what_comes_late_and_by_the_next_that_is_not() {
        let mut progress = Progress { last_shown: Some(LaneSeq(6)), owes_gap: true };
        let out = release(&mut progress, &mut vec![held(5, 4), held(7, 5), held(8, 7)], None);
        assert_eq!(places(&out), [(5, true, true), (7, true, false), (8, false, false)]);
        assert!(!progress.owes_gap);
    }

    #[test]
    fn a_predecessor_that_ended_is_passed_over_whichever_envelope_says_so() {
        let mut waiting = vec![held(2, 1)];
        assert!(pass_over(&mut waiting, LaneSeq(3), None));
        assert_eq!(waiting, [Held { after: None, ..held(2, 1) }]);
        assert_eq!(known_after(&[held(5, 1)], LaneSeq(4), Some(LaneSeq(3))), Some(LaneSeq(1)));
        assert_eq!(known_after(&[held(5, 4)], LaneSeq(4), Some(LaneSeq(3))), Some(LaneSeq(3)));
    }

    #[test]
    fn what_waits_for_a_place_where_nothing_will_be_waits_for_what_is_before_it() {
        let mut waiting = vec![held(3, 2), held(5, 4)];
        pass_over_ended(&mut waiting, LaneSeq(2), Some(LaneSeq(1)));
        assert_eq!(waiting, [held(3, 1), held(5, 4)]);
        pass_over_ended(&mut waiting, LaneSeq(4), None);
        assert_eq!(waiting, [held(3, 1), held(5, 0)]);
    }

    #[test]
    fn the_sender_names_the_last_predecessor_that_has_not_ended() {
        assert_eq!(predecessor([], LaneSeq(4)), None);
        let live = [LaneSeq(1), LaneSeq(3), LaneSeq(4), LaneSeq(6)];
        assert_eq!(predecessor(live, LaneSeq(4)), Some(LaneSeq(3)));
    }

    #[test]
    fn only_critical_messages_and_broadcasts_have_no_lane() {
        let alice: Recipient = "alice".parse().unwrap();
        assert!(has_lane(Priority::High, &alice));
        assert!(!has_lane(Priority::Critical, &alice));
        assert!(!has_lane(Priority::Normal, &Recipient::Broadcast));
    }

    proptest! {
        #[test]
        fn in_any_order_of_arrival_everything_is_shown_once_and_what_is_out_of_order_says_so(
            arrivals in Just((1u64..=8).collect::<Vec<_>>()).prop_shuffle(),
            gives_up in prop::collection::vec(prop::bool::weighted(0.2), 8),
        ) {
            let mut progress = Progress::default();
            let mut waiting = Vec::new();
            let mut shown = Vec::new();
            for (place, gives_up) in arrivals.into_iter().zip(gives_up) {
                waiting.push(held(place, place - 1));
                shown.extend(release(&mut progress, &mut waiting, None));
                if gives_up {
                    shown.extend(release(&mut progress, &mut waiting, Some(LaneSeq(8))));
                }
            }
            prop_assert!(waiting.is_empty());
            let mut furthest = 0;
            for out in &shown {
                prop_assert_eq!(out.late, out.lane_seq.0 < furthest);
                prop_assert_eq!(out.gap, out.lane_seq.0 > furthest + 1);
                furthest = furthest.max(out.lane_seq.0);
            }
            let mut all: Vec<_> = shown.iter().map(|out| out.lane_seq.0).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (1..=8).collect::<Vec<_>>());
        }
    }

    const SHOW: Admit = Admit::Show { late: false };

    fn held(lane_seq: u64, after: u64) -> Held {
        let after = (after > 0).then_some(LaneSeq(after));
        Held { lane_seq: LaneSeq(lane_seq), id: MessageId(Uuid::from_u128(lane_seq.into())), after }
    }

    fn places(released: &[Released]) -> Vec<(u64, bool, bool)> {
        released.iter().map(|out| (out.lane_seq.0, out.gap, out.late)).collect()
    }
}
