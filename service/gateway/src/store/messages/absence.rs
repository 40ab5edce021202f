//! Why a delivery waits, for those whose gateway is away.

use chrono::TimeDelta;
use fieldpost_delivery::{OUT_OF_REACH, Time};

/// What is known of the gateway that a delivery waits for.
pub(super) struct Absence<'a> {
    pub(super) heard_at: Option<Time>,
    /// The recipient, if its bare name was pinned to that gateway.
    pub(super) pinned: Option<&'a str>,
}

/// A gateway that is out of reach and has been silent for so long is likely to be away for good.
const LONG_SILENCE: TimeDelta = TimeDelta::minutes(10);

impl Absence<'_> {
    /// Adds to the reason why a delivery waits for how long its gateway has been silent, and what its
    /// sender can do if the name lives elsewhere by now.
    pub(super) fn add(&self, reason: String, now: Time) -> String {
        if !reason.starts_with(OUT_OF_REACH) {
            return reason;
        }
        let silence = match self.heard_at {
            Some(heard_at) if now - heard_at < LONG_SILENCE => return reason,
            Some(heard_at) => {
                format!("its gateway was last heard at {}", heard_at.format("%Y-%m-%d %H:%M UTC"))
            }
            None if self.pinned.is_none() => return reason,
            None => "its gateway is not remembered any more".to_owned(),
        };
        let pin = match self.pinned {
            Some(recipient) => {
                let name = recipient.split('@').next().unwrap_or(recipient);
                format!(
                    "; the name {name} has led there since you first used it: if it lives elsewhere \
                     now, DELETE /v1/pins/{name}, and write again"
                )
            }
            None => String::new(),
        };
        format!("{reason}; {silence}{pin}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_a_gateway_that_is_long_silent_is_told_since_when_and_of_the_pin() {
        let now = Time::UNIX_EPOCH + TimeDelta::days(20_000);
        let say = |heard_at, pinned, reason: &str| {
            Absence { heard_at, pinned }.add(format!("{reason}: no way"), now)
        };
        let long_ago = Some(now - TimeDelta::days(3));
        let told = say(long_ago, Some("bob@gw"), OUT_OF_REACH);
        assert!(told.starts_with("out of reach: no way; its gateway was last heard at 2024-10-01"));
        assert!(told.contains("DELETE /v1/pins/bob, and write again"), "{told}");
        assert!(!say(long_ago, None, OUT_OF_REACH).contains("pins"));
        assert!(say(None, Some("bob@gw"), OUT_OF_REACH).contains("not remembered any more"));
        // What was heard just now, and what waits for something else, is told as it is.
        let just_now = Some(now - TimeDelta::seconds(5));
        assert_eq!(say(just_now, Some("bob@gw"), OUT_OF_REACH), "out of reach: no way");
        assert_eq!(say(long_ago, Some("bob@gw"), "level"), "level: no way");
    }
}
