//! How the shared words are written in columns.

use std::str::FromStr;

use fieldpost_delivery::AttemptResult;
use fieldpost_envelope::{AnonymityLevel, MessageStatus, Priority, ReceiptKind};

/// Parses what we wrote ourselves; anything else means that the row was tampered with.
pub(super) fn parse<T>(text: &str) -> sqlx::Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

pub(super) fn status(text: &str) -> sqlx::Result<MessageStatus> {
    parse(text)
}

pub(super) fn receipt_kind(text: &str) -> sqlx::Result<ReceiptKind> {
    parse(text)
}

pub(super) fn priority_number(priority: Priority) -> i16 {
    match priority {
        Priority::Low => 0,
        Priority::Normal => 1,
        Priority::High => 2,
        Priority::Critical => 3,
    }
}

pub(super) fn priority(number: i16) -> sqlx::Result<Priority> {
    match number {
        0 => Ok(Priority::Low),
        1 => Ok(Priority::Normal),
        2 => Ok(Priority::High),
        3 => Ok(Priority::Critical),
        _ => Err(unknown("priority", &number.to_string())),
    }
}

pub(super) fn level_number(level: AnonymityLevel) -> i16 {
    i16::from(u8::from(level))
}

pub(super) fn level(number: i16) -> sqlx::Result<AnonymityLevel> {
    u8::try_from(number)
        .ok()
        .and_then(|number| AnonymityLevel::try_from(number).ok())
        .ok_or_else(|| unknown("anonymity level", &number.to_string()))
}

pub(super) fn attempt_word(result: AttemptResult) -> &'static str {
    match result {
        AttemptResult::Sent => "sent",
        AttemptResult::Failed => "failed",
        AttemptResult::Silent => "silent",
        AttemptResult::Stored => "stored",
        AttemptResult::Refused => "refused",
    }
}

pub(super) fn attempt_result(text: &str) -> sqlx::Result<AttemptResult> {
    Ok(match text {
        "sent" => AttemptResult::Sent,
        "failed" => AttemptResult::Failed,
        "silent" => AttemptResult::Silent,
        "stored" => AttemptResult::Stored,
        "refused" => AttemptResult::Refused,
        _ => return Err(unknown("attempt result", text)),
    })
}

fn unknown(what: &str, value: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("{value:?} is no {what}").into())
}
