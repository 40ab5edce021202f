//! What parsers say of a request, in words for whoever wrote it: the field, what was expected, and what
//! was found.

/// The most characters passed on: parsers can quote what they were given, and a caller needs no echo of
/// two megabytes.
const LIMIT: usize = 300;

/// What is wrong with a JSON value, as serde or an extractor of axum tells it.
pub(super) fn json(text: &str) -> String {
    let text = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
    let (text, place) = split_place(text);
    match reworded(text) {
        Some(reworded) => clip(&reworded),
        // What is no JSON at all is found by its place alone.
        None => clip(&format!("{text}{place}")),
    }
}

/// What is wrong with parameters of a query or path.
pub(super) fn parameters(text: &str) -> String {
    let text = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
    let text = text
        .replace("invalid digit found in string", "expected a whole number")
        .replace("number too large to fit in target type", "the number is too large")
        .replace("number too small to fit in target type", "the number is too small")
        .replace("cannot parse integer from empty string", "expected a whole number, found nothing")
        .replace("provided string was not `true` or `false`", "expected true or false");
    clip(&text)
}

/// Cuts a text to what is worth passing on.
pub(super) fn clip(text: &str) -> String {
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

const PREFIXES: [&str; 4] = [
    "Failed to deserialize the JSON body into the target type: ",
    "Failed to parse the request body as JSON: ",
    "Failed to deserialize query string: ",
    "Invalid URL: ",
];

/// Takes the place in the text off its end.
fn split_place(text: &str) -> (&str, &str) {
    match text.rfind(" at line ") {
        Some(at) if text[at..].contains(" column ") => text.split_at(at),
        _ => (text, ""),
    }
}

/// A complaint about a value in our words; `None` if it is about something else.
fn reworded(text: &str) -> Option<String> {
    let kinds = ["invalid type: ", "invalid value: "];
    let about_value = kinds.iter().find_map(|kind| text.split_once(kind));
    if let Some((field, complaint)) = about_value {
        let (found, expected) = complaint.rsplit_once(", expected ")?;
        return Some(format!("{field}expected {}, found {}", kind_of(expected), value_of(found)));
    }
    if let Some((field, complaint)) = text.split_once("invalid length ") {
        let (length, expected) = complaint.split_once(", expected ")?;
        return Some(format!("{field}expected {}, found a list of {length}", kind_of(expected)));
    }
    if let Some((field, complaint)) = text.split_once("unknown field ") {
        let (name, expected) = complaint.split_once(", ").unwrap_or((complaint, ""));
        let known = match expected {
            "there are no fields" | "" => "expected none",
            names => names,
        };
        return Some(format!("{}unknown field {name}: {known}", within(field, name)));
    }
    if let Some((field, complaint)) = text.split_once("unknown variant ") {
        let (found, expected) = complaint.split_once(", expected ")?;
        let expected = expected.trim_start_matches("one of ");
        return Some(format!("{field}expected {expected}, found the text {found}"));
    }
    let kinds = [("missing field ", "is missing"), ("duplicate field ", "is given twice")];
    kinds.iter().find_map(|(kind, what)| {
        let (field, name) = text.split_once(kind)?;
        Some(format!("{}the field {name} {what}", within(field, name)))
    })
}

/// Where a field of that name is, of a path that may end in the field itself.
fn within(path: &str, name: &str) -> String {
    let (path, name) = (path.trim_end_matches(": "), name.trim_matches('`'));
    match path.strip_suffix(name) {
        Some("") => String::new(),
        Some(within) if within.ends_with('.') => format!("{}: ", within.trim_end_matches('.')),
        _ if path.is_empty() => String::new(),
        _ => format!("{path}: "),
    }
}

/// What a type of ours is called outside.
fn kind_of(expected: &str) -> &str {
    match expected {
        "i8" | "i16" | "i32" | "i64" => "a whole number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "a borrowed string" | "string" | "string or map" | "variant identifier" => {
            "a text"
        }
        "a sequence" => "a list",
        "a map" => "an object",
        "a formatted UUID string" | "a UUID string" => "a UUID",
        other if other.starts_with("struct ") => "an object",
        other if other.starts_with("enum ") => "a text",
        other => other,
    }
}

/// A value that was found.
fn value_of(found: &str) -> String {
    let quoted = |kind: &str| found.strip_prefix(kind).map(|value| value.trim_matches('`'));
    if let Some(text) = found.strip_prefix("string ") {
        return format!("the text {text}");
    }
    if let Some(number) = quoted("integer ").or_else(|| quoted("floating point ")) {
        return format!("the number {number}");
    }
    if let Some(word) = quoted("boolean ") {
        return word.to_owned();
    }
    match found {
        "sequence" => "a list".to_owned(),
        "map" => "an object".to_owned(),
        "unit value" | "Option value" => "null".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::{Deserialize, de::DeserializeOwned};
    use uuid::Uuid;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only ever refused")]
    struct Request {
        to: String,
        #[serde(default)]
        ttl: i64,
        #[serde(default)]
        read: bool,
        #[serde(default)]
        ids: Vec<Uuid>,
        #[serde(default)]
        kind: Option<Kind>,
        #[serde(default)]
        size: u32,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Low,
        High,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only ever refused")]
    struct Page {
        limit: i64,
    }

    #[test]
    fn a_refused_body_names_the_field_what_was_expected_and_what_was_found() {
        for (body, expected) in [
            (r#"{"to": 5}"#, "to: expected a text, found the number 5"),
            (r#"{"to": null}"#, "to: expected a text, found null"),
            (r#"{"to": "bob", "ttl": "x"}"#, "ttl: expected a whole number, found the text \"x\""),
            (r#"{"to": "bob", "ttl": {}}"#, "ttl: expected a whole number, found an object"),
            (
                r#"{"to": "bob", "size": -1}"#,
                "size: expected a whole number from 0, found the number -1",
            ),
            (r#"{"to": "bob", "read": 1.5}"#, "read: expected true or false, found the number 1.5"),
            (r#"{"to": "bob", "ids": true}"#, "ids: expected a list, found true"),
            (
                r#"{"to": "bob", "kind": "mid"}"#,
                "kind: expected `low` or `high`, found the text `mid`",
            ),
            (r#"{}"#, "the field `to` is missing"),
            (r#"{"to": "a", "to": "b"}"#, "the field `to` is given twice"),
            (
                r#"{"to": "bob", "tttl": 3}"#,
                "unknown field `tttl`: expected one of `to`, `ttl`, `read`, `ids`, `kind`, `size`",
            ),
            ("5", "expected an object, found the number 5"),
        ] {
            assert_eq!(json(&refusal::<Request>(body)), expected, "{body}");
        }
        let bad_id = json(&refusal::<Request>(r#"{"to": "bob", "ids": ["x"]}"#));
        assert!(bad_id.starts_with("ids[0]: UUID parsing failed"), "{bad_id}");
        let no_json = json(&refusal::<Request>(r#"{"to": "#));
        assert!(no_json.contains("line 1 column 7"), "{no_json}");
    }

    #[test]
    fn a_refused_parameter_names_what_was_expected() {
        let query = |text: &str| {
            let uri = format!("/?{text}").parse().unwrap();
            axum::extract::Query::<Page>::try_from_uri(&uri).unwrap_err().body_text()
        };
        assert_eq!(parameters(&query("limit=abc")), "limit: expected a whole number");
        assert_eq!(parameters(&query("limit=")), "limit: expected a whole number, found nothing");
    }

    #[test]
    fn no_more_than_so_much_is_quoted() {
        let long = format!(r#"{{"to": "bob", "ttl": "{}"}}"#, "x".repeat(1 << 20));
        assert_eq!(json(&refusal::<Request>(&long)).chars().count(), LIMIT + 1);
    }

    fn refusal<T: DeserializeOwned + Debug>(body: &str) -> String {
        axum::Json::<T>::from_bytes(body.as_bytes()).unwrap_err().body_text()
    }
}
