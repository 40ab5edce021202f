//! How far a delivery may come, and from where (design, section 5).
//!
//! ```text
//! pending ⇄ sent ──► delivered ──► read
//!    │        │          ▲           ▲
//!    │        ├──► expired, failed ──┘   a late receipt corrects these two
//!    ├────────┘
//!    └──► cancelled                      nothing had left, so no receipt can come
//! ```

use std::collections::BTreeMap;

use fieldpost_envelope::MessageStatus;

use MessageStatus::{Cancelled, Delivered, Expired, Failed, Pending, Read, Sent};

/// Whether a delivery that is `from` may become `to`.
///
/// Staying the same is no step. Two steps may be taken as one: a recipient who confirms a message
/// as read makes it `read` without a separate `delivered`.
pub const fn may_follow(from: MessageStatus, to: MessageStatus) -> bool {
    match (from, to) {
        (Pending, Sent | Delivered | Read | Expired | Failed | Cancelled) => true,
        (Sent, Pending | Delivered | Read | Expired | Failed) => true,
        (Delivered, Read) => true,
        (Expired | Failed, Delivered | Read) => true,
        (Pending, Pending) | (Sent, Sent | Cancelled) => false,
        (Delivered | Read | Expired | Failed | Cancelled, _) => false,
    }
}

/// The status of a message whose deliveries stand like this: that of the least advanced one.
///
/// A message that nobody is owed, such as one to a group of one or a broadcast that nobody was there
/// for, has ended as `sent`: there is nobody who could confirm it.
pub fn message_status(deliveries: impl IntoIterator<Item = MessageStatus>) -> MessageStatus {
    MessageStatus::least_advanced(deliveries).unwrap_or(Sent)
}

/// How many deliveries stand where; what does not occur is left out.
pub fn counts(
    deliveries: impl IntoIterator<Item = MessageStatus>,
) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for status in deliveries {
        *counts.entry(status.as_str()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_steps_of_the_table_are_allowed() {
        let allowed = [
            (Pending, Sent),
            (Pending, Delivered),
            (Pending, Read),
            (Pending, Expired),
            (Pending, Failed),
            (Pending, Cancelled),
            (Sent, Pending),
            (Sent, Delivered),
            (Sent, Read),
            (Sent, Expired),
            (Sent, Failed),
            (Delivered, Read),
            (Expired, Delivered),
            (Expired, Read),
            (Failed, Delivered),
            (Failed, Read),
        ];
        for &from in MessageStatus::ALL {
            for &to in MessageStatus::ALL {
                assert_eq!(may_follow(from, to), allowed.contains(&(from, to)), "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_cancelled_delivery_stays_cancelled() {
        assert!(MessageStatus::ALL.iter().all(|&to| !may_follow(Cancelled, to)));
    }

    #[test]
    fn nothing_arrives_and_then_is_owed_again() {
        for &arrived in &[Delivered, Read] {
            for &to in MessageStatus::ALL {
                assert!(!may_follow(arrived, to) || to == Read, "{arrived} to {to}");
            }
        }
    }

    #[test]
    fn no_walk_through_the_table_is_endless_but_the_one_between_pending_and_sent() {
        let mut reached = vec![Pending];
        let mut seen = Vec::new();
        while let Some(from) = reached.pop() {
            for &to in MessageStatus::ALL {
                let retries = matches!((from, to), (Sent, Pending));
                if may_follow(from, to) && !retries {
                    assert!(!seen.iter().any(|&(a, b)| (a, b) == (to, from)), "{from} and {to}");
                    if !seen.contains(&(from, to)) {
                        seen.push((from, to));
                        reached.push(to);
                    }
                }
            }
        }
        assert_eq!(seen.len(), 15);
    }

    #[test]
    fn a_message_is_no_further_than_its_slowest_recipient_and_the_counts_stand_beside_it() {
        assert_eq!(message_status([Read, Sent, Failed]), Sent);
        assert_eq!(message_status([]), Sent);
        let counts = counts([Read, Sent, Read]);
        assert_eq!(counts, BTreeMap::from([("read", 2), ("sent", 1)]));
    }
}
