//! What is said about a message beside its addresses: identity, level, priority, status, lane.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::address::{PeerAddress, Recipient};

/// The name of a message, unique for its sender.
///
/// Alone it identifies nothing: identity is sender, message id and recipient (design, promise 2).
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct MessageId(pub Uuid);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for MessageId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// How well a transport hides who writes to whom, from 0 (not at all) to 3 (a mixnet).
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(try_from = "u8", into = "u8")]
pub struct AnonymityLevel(u8);

impl AnonymityLevel {
    /// Level 0: no anonymity is asked for or given.
    pub const NONE: Self = Self(0);
    /// Level 1: the address on the link is not the peer's.
    pub const LOW: Self = Self(1);
    /// Level 2.
    pub const MEDIUM: Self = Self(2);
    /// Level 3, what `requires_privacy` means.
    pub const HIGHEST: Self = Self(3);

    /// The level as a number from 0 to 3.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for AnonymityLevel {
    type Error = RangeError;

    fn try_from(level: u8) -> Result<Self, RangeError> {
        if level > Self::HIGHEST.0 {
            return Err(RangeError::Level(level));
        }
        Ok(Self(level))
    }
}

impl From<AnonymityLevel> for u8 {
    fn from(level: AnonymityLevel) -> Self {
        level.0
    }
}

impl fmt::Display for AnonymityLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point in time: milliseconds since 1970 in UTC, up to the end of the year 9999.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Timestamp(u64);

impl Timestamp {
    /// The last millisecond of the year 9999.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// The time in milliseconds since 1970 in UTC.
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for Timestamp {
    type Error = RangeError;

    fn try_from(millis: u64) -> Result<Self, RangeError> {
        if millis > Self::MAX.0 {
            return Err(RangeError::Time(millis));
        }
        Ok(Self(millis))
    }
}

impl From<Timestamp> for u64 {
    fn from(time: Timestamp) -> Self {
        time.0
    }
}

/// Cuts off what is finer than a millisecond; times outside the range become its nearest end.
impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        let millis = u64::try_from(time.timestamp_millis()).unwrap_or(0);
        Self(millis.min(Self::MAX.0))
    }
}

impl From<Timestamp> for DateTime<Utc> {
    fn from(time: Timestamp) -> Self {
        i64::try_from(time.0)
            .ok()
            .and_then(DateTime::from_timestamp_millis)
            .expect("chrono holds every time up to the year 9999")
    }
}

/// A number that lies outside its range.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RangeError {
    /// There are four levels.
    #[error("anonymity level {0} is out of range: expected 0 to 3")]
    Level(u8),
    /// Times have five-digit years at most in none of our formats.
    #[error(
        "time {0} is out of range: expected milliseconds since 1970, at most {max}",
        max = Timestamp::MAX.0
    )]
    Time(u64),
}

/// A word that is none of those a type knows.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("unknown {what}: expected {expected}")]
pub struct WordError {
    /// What the word should have been, such as `priority`.
    pub what: &'static str,
    /// The words there are.
    pub expected: &'static str,
}

/// Declares an enum whose variants are lower-case words in JSON, in SQL and in text.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident ($what:literal) {
            $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word in lower case.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = WordError;

            fn from_str(text: &str) -> Result<Self, WordError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(WordError { what: $what, expected: words!(@list $($word)+) }),
                }
            }
        }
    };
    (@list $first:literal $($rest:literal)*) => {
        concat!($first $(, ", ", $rest)*)
    };
}

words! {
    /// How urgent a message is; later ones are more urgent.
    #[derive(Default, Ord, PartialOrd)]
    pub enum Priority ("priority") {
        /// When nothing else is to do.
        Low = "low",
        /// The usual.
        #[default]
        Normal = "normal",
        /// Before the usual.
        High = "high",
        /// First, on all suitable transports at once, and outside every lane.
        Critical = "critical",
    }
}

words! {
    /// What the recipient's side says of a message that arrived (design, section 5).
    pub enum ReceiptKind ("receipt kind") {
        /// Its gateway has committed the message: ends retries and failover.
        Stored = "stored",
        /// Its client has confirmed the message.
        Delivered = "delivered",
        /// Somebody has read it.
        Read = "read",
        /// Its gateway will not take the message, and says why.
        Refused = "refused",
    }
}

words! {
    /// How far a message, or one delivery of it, has come (design, section 5).
    pub enum MessageStatus ("message status") {
        /// Accepted; nothing has left.
        Pending = "pending",
        /// A transport took charge.
        Sent = "sent",
        /// The recipient's client has confirmed it.
        Delivered = "delivered",
        /// Somebody has read it.
        Read = "read",
        /// Its time was over before it arrived.
        Expired = "expired",
        /// Nothing can ever carry it, or the recipient refused it.
        Failed = "failed",
        /// The sender withdrew it before anything left.
        Cancelled = "cancelled",
    }
}

impl MessageStatus {
    /// How far towards the recipient this is, smaller being less.
    ///
    /// `pending`, `sent`, `failed`, `expired`, `cancelled`, `delivered`, `read`: what is still owed
    /// comes first, then what never arrived, then what did. A message has the status of its delivery
    /// with the smallest rank, so one with a member still waiting is not yet called failed, and one
    /// that missed a member is not called delivered.
    pub const fn rank(self) -> u8 {
        match self {
            Self::Pending => 0,
            Self::Sent => 1,
            Self::Failed => 2,
            Self::Expired => 3,
            Self::Cancelled => 4,
            Self::Delivered => 5,
            Self::Read => 6,
        }
    }

    /// The status of a message with these deliveries; `None` when there are none.
    pub fn least_advanced(deliveries: impl IntoIterator<Item = Self>) -> Option<Self> {
        deliveries.into_iter().min_by_key(|status| status.rank())
    }

    /// Whether the gateway owes nothing more: neither `pending` nor `sent`.
    ///
    /// A receipt can still turn `delivered` into `read`, and correct `expired` and `failed`.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Sent)
    }
}

/// What keeps its order: messages of one sender to one recipient at one level (design, promise 5).
///
/// `critical` messages and broadcasts belong to no lane.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Lane {
    /// Who sends.
    pub sender: PeerAddress,
    /// Who receives.
    pub recipient: Recipient,
    /// The least level that the messages may travel at.
    pub level: AnonymityLevel,
}

/// A message's place in its lane, counted by the sender's gateway.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct LaneSeq(pub u64);

impl LaneSeq {
    /// The largest that travels: what a signed 64-bit column holds.
    pub const MAX: Self = Self(i64::MAX as u64);
}

impl fmt::Display for LaneSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_same_in_text_and_in_json() {
        for status in MessageStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(*status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
        for kind in ReceiptKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        for priority in Priority::ALL {
            assert_eq!(serde_json::to_value(priority).unwrap(), priority.as_str());
        }
        assert_eq!(
            "urgent".parse::<Priority>().unwrap_err().to_string(),
            "unknown priority: expected low, normal, high, critical"
        );
    }

    #[test]
    fn critical_is_the_highest_priority() {
        assert!(Priority::ALL.is_sorted());
        assert_eq!(Priority::ALL.last(), Some(&Priority::Critical));
        assert_eq!(Priority::default(), Priority::Normal);
    }

    #[test]
    fn a_message_is_no_further_than_its_least_advanced_delivery() {
        use MessageStatus::*;

        assert_eq!(MessageStatus::least_advanced([Read, Pending, Failed]), Some(Pending));
        assert_eq!(MessageStatus::least_advanced([Read, Failed, Delivered]), Some(Failed));
        assert_eq!(MessageStatus::least_advanced([Read, Delivered]), Some(Delivered));
        assert_eq!(MessageStatus::least_advanced([]), None);
    }

    #[test]
    fn what_is_owed_ranks_below_all_that_has_ended() {
        for owed in MessageStatus::ALL.iter().filter(|status| !status.is_final()) {
            for ended in MessageStatus::ALL.iter().filter(|status| status.is_final()) {
                assert!(owed.rank() < ended.rank(), "{owed} {ended}");
            }
        }
    }

    #[test]
    fn levels_run_from_0_to_3_and_are_numbers_in_json() {
        let level: AnonymityLevel = serde_json::from_str("3").unwrap();
        assert_eq!(level, AnonymityLevel::HIGHEST);
        assert_eq!(serde_json::to_string(&level).unwrap(), "3");
        let error = serde_json::from_str::<AnonymityLevel>("4").unwrap_err();
        assert!(error.to_string().contains("expected 0 to 3"), "{error}");
    }

    #[test]
    fn times_survive_the_way_through_chrono_and_keep_to_their_range() {
        let time = Timestamp::try_from(1_767_225_600_123).unwrap();
        assert_eq!(Timestamp::from(DateTime::<Utc>::from(time)), time);
        assert_eq!(Timestamp::from(DateTime::<Utc>::MAX_UTC), Timestamp::MAX);
        assert_eq!(Timestamp::from(DateTime::<Utc>::MIN_UTC).as_millis(), 0);
        assert!(Timestamp::try_from(Timestamp::MAX.as_millis() + 1).is_err());
    }
}
