//! Checks and forms of single fields that the resources share.

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use chrono::{DateTime, Utc};
use fieldpost_envelope::{AddressError, PeerAddress, PeerId};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::error::ApiError;

/// What a page holds when the caller does not say.
const DEFAULT_LIMIT: i64 = 100;
/// The most that a page holds.
const HIGHEST_LIMIT: i64 = 1000;
/// The farthest that an offset may reach.
const HIGHEST_OFFSET: i64 = 1_000_000;

/// A cursor holds a name, at most a peer's with its gateway: 181 bytes.
const MAX_CURSOR: usize = 244;

/// Which part of a list is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// `next` of the page before; the first page without.
    #[param(
        min_length = 2,
        max_length = 244,
        pattern = "^(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2,3})?$",
        example = "MGY1YjQ"
    )]
    cursor: Option<String>,
    /// How many at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<i64>,
}

impl PageQuery {
    /// How many are wanted.
    pub fn limit(&self) -> Result<i64, ApiError> {
        limit(self.limit.unwrap_or(DEFAULT_LIMIT))
    }

    /// The name after which the page begins; empty for the first page.
    ///
    /// Any text of the documented form is a place: names are compared, not looked up.
    pub fn after(&self) -> Result<String, ApiError> {
        let Some(cursor) = &self.cursor else {
            return Ok(String::new());
        };
        CURSOR
            .decode(cursor)
            .ok()
            .filter(|name| !name.is_empty() && cursor.len() <= MAX_CURSOR)
            .map(|name| String::from_utf8_lossy(&name).replace('\0', ""))
            .ok_or_else(|| {
                ApiError::invalid("cursor", "cursor: expected the `next` of an earlier page")
            })
    }
}

/// The cursor of the page after `page`, whose items are named by `name`; `None` at the end.
pub fn next_cursor<T>(page: &[T], limit: i64, name: impl Fn(&T) -> &str) -> Option<String> {
    let is_full = i64::try_from(page.len()).is_ok_and(|length| length >= limit);
    page.last().filter(|_| is_full).map(|last| CURSOR.encode(name(last)))
}

/// A cursor is a place rather than a secret, so the bits that belong to no byte do not matter.
const CURSOR: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// Checks a page length.
pub fn limit(limit: i64) -> Result<i64, ApiError> {
    if (1..=HIGHEST_LIMIT).contains(&limit) {
        Ok(limit)
    } else {
        Err(ApiError::invalid(
            "query.limit",
            format!("limit: {limit} is not in 1 to {HIGHEST_LIMIT}"),
        ))
    }
}

/// Checks how many items are to be left out.
pub fn offset(offset: i64) -> Result<i64, ApiError> {
    if (0..=HIGHEST_OFFSET).contains(&offset) {
        Ok(offset)
    } else {
        Err(ApiError::invalid(
            "query.offset",
            format!("offset: {offset} is not in 0 to {HIGHEST_OFFSET}"),
        ))
    }
}

/// Checks a text that Postgres is to keep: its length in characters, and that it has no NUL.
pub fn text(field: &str, text: String, least: usize, most: usize) -> Result<String, ApiError> {
    let length = text.chars().count();
    if !(least..=most).contains(&length) {
        let detail = format!("{field}: {length} characters: expected {least} to {most}");
        return Err(ApiError::invalid(&body(field), detail));
    }
    if text.contains('\0') {
        let detail = format!("{field}: the character U+0000 cannot be kept");
        return Err(ApiError::invalid(&body(field), detail));
    }
    Ok(text)
}

/// Reads a peer's name from a body.
pub fn peer(field: &str, text: &str) -> Result<PeerId, ApiError> {
    text.parse().map_err(|error| ApiError::invalid(&body(field), own_peer(field, text, &error)))
}

/// What is wrong with the name of a peer of this gateway.
pub fn own_peer(field: &str, text: &str, error: &AddressError) -> String {
    match text.parse::<PeerAddress>() {
        Ok(PeerAddress { gateway: Some(_), .. }) => format!(
            "{field}: {text} is a peer of another gateway; here only peers of this gateway, named \
             without one, are taken"
        ),
        _ if text.contains('@') => format!(
            "{field}: {text:?} is no peer of this gateway: expected 1 to 128 of A-Z a-z 0-9 . _ : -, the \
             first a letter or digit"
        ),
        _ => format!("{field}: {error}"),
    }
}

/// Reads the name of a peer here or elsewhere from a body.
pub fn address(field: &str, text: &str) -> Result<PeerAddress, ApiError> {
    text.parse().map_err(|error| ApiError::invalid(&body(field), format!("{field}: {error}")))
}

/// A time as the mirrored surfaces write it: always six digits of a second and `+00:00`.
pub fn mirrored_time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
}

fn body(field: &str) -> String {
    format!("body.{field}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_page_names_where_the_next_one_begins() {
        let page = ["alice", "bob"];
        let cursor = next_cursor(&page, 2, |name| name);
        assert!(cursor.is_some());
        assert_eq!(PageQuery { cursor, limit: None }.after().unwrap(), "bob");
        assert_eq!(next_cursor(&page, 3, |name| name), None);
        assert_eq!(PageQuery { cursor: None, limit: None }.after().unwrap(), "");
    }

    #[test]
    fn cursors_of_the_documented_form_are_places_and_others_are_refused() {
        let after =
            |cursor: &str| PageQuery { cursor: Some(cursor.to_owned()), limit: None }.after();
        for place in ["AA", "__", "A_-", "AAAA", "zzzz99"] {
            assert!(!after(place).unwrap().contains('\0'), "{place}");
        }
        for other in ["", "A", "AAAAA", "AA==", "a b", "é", &"A".repeat(248)] {
            assert!(after(other).is_err(), "{other}");
        }
    }

    #[test]
    fn lengths_count_characters_and_nul_is_refused() {
        assert_eq!(text("name", "é".repeat(255), 1, 255).unwrap().chars().count(), 255);
        assert!(text("name", String::new(), 1, 255).is_err());
        assert!(text("name", "é".repeat(256), 1, 255).is_err());
        assert!(text("name", "a\0b".to_owned(), 1, 255).is_err());
    }

    #[test]
    fn pages_are_bounded() {
        assert!(limit(1).is_ok() && limit(1000).is_ok());
        assert!(limit(0).is_err() && limit(1001).is_err() && limit(-1).is_err());
        assert!(offset(0).is_ok() && offset(1_000_000).is_ok());
        assert!(offset(-1).is_err() && offset(1_000_001).is_err());
    }

    #[test]
    fn mirrored_times_have_six_digits_and_a_numeric_zone() {
        assert_eq!(mirrored_time(DateTime::UNIX_EPOCH), "1970-01-01T00:00:00.000000+00:00");
    }
}
