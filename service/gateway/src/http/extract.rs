//! Extractors whose refusals are [`ApiError`]s that name the field at fault.

use axum::{
    body::Bytes,
    extract::{
        FromRequest, FromRequestParts, Request,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::http::{
    error::ApiError,
    wording::{self, clip},
};

/// A JSON body. Syntax errors are 400, wrong types and missing fields 422, other media types 415,
/// too large 413.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be JSON with Content-Type: application/json",
            ));
        }
        if let Some(encoding) = encoding(request.headers()) {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("the body must be sent as it is, without Content-Encoding: {encoding}"),
            ));
        }
        let bytes = body(request, state).await?;
        parse(&bytes).map(Self).map_err(|unreadable| match unreadable {
            Unreadable::Value(text) => ApiError::invalid("body", text),
            Unreadable::Syntax(text) => ApiError::bad_request(text),
        })
    }
}

/// How the body is encoded, if it is.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut words = encodings.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    words.find(|word| !word.trim().eq_ignore_ascii_case("identity")).map(|word| clip(&word))
}

fn is_json(headers: &HeaderMap) -> bool {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_ascii_lowercase())
        .unwrap_or_default();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, state)
        .await
        .map_err(|rejection| body_error(rejection.status(), &rejection.body_text()))
}

/// Why a body is not what was asked for, in words for whoever wrote it.
#[derive(Debug)]
enum Unreadable {
    /// It is no JSON.
    Syntax(String),
    /// It is JSON, and not this.
    Value(String),
}

/// Reads JSON. To JSON `12.0` is the whole number 12 (RFC 8259), which the parser alone does not
/// admit where it expects one.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    let rejection = match axum::Json::<T>::from_bytes(bytes) {
        Ok(axum::Json(value)) => return Ok(value),
        Err(rejection) => rejection,
    };
    let text = wording::json(&rejection.body_text());
    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else {
        return Err(Unreadable::Syntax(match bytes {
            [] => "the body is empty: send JSON".to_owned(),
            _ => format!("the body is no JSON: {text}"),
        }));
    };
    // A field that is given twice is once in the value.
    if make_whole(&mut value)
        && let Ok(read) = T::deserialize(&value)
    {
        return Ok(read);
    }
    Err(Unreadable::Value(match rejection {
        JsonRejection::JsonDataError(_) => text,
        // To the parser, a number where a word is expected is no JSON.
        _ => typed::<T>(value).err().unwrap_or(text),
    }))
}

/// Reads a value that was parsed already; what is wrong with it is said by field, expected, found.
pub(super) fn typed<T: DeserializeOwned>(mut value: Value) -> Result<T, String> {
    make_whole(&mut value);
    serde_path_to_error::deserialize(value).map_err(|error| wording::json(&error.to_string()))
}

/// Rewrites numbers such as `12.0` as whole ones; tells whether there was any.
fn make_whole(value: &mut Value) -> bool {
    /// Beyond, a double no longer names a single whole number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() <= EXACT);
            if let Some(whole) = whole {
                *value = Value::from(whole as i64);
            }
            whole.is_some()
        }
        Value::Array(items) => {
            items.iter_mut().fold(false, |changed, item| make_whole(item) | changed)
        }
        Value::Object(members) => {
            members.values_mut().fold(false, |changed, member| make_whole(member) | changed)
        }
        _ => false,
    }
}

/// A failure to read a body: too large is 413, cut off is 400.
pub fn body_error(status: StatusCode, text: &str) -> ApiError {
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        ApiError::new(
            status,
            "the body is too large: at most 2.5 MiB (2621440 bytes), and 64 KiB without a token",
        )
    } else {
        ApiError::bad_request(clip(text))
    }
}

/// A JSON body that also tolerates a missing `Content-Type`, as the clients of the mirrored
/// surfaces do, and answers bad syntax with 422 as the original did.
#[derive(Debug)]
pub struct LenientJson<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for LenientJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = body(request, state).await?;
        parse(&bytes).map(Self).map_err(|unreadable| match unreadable {
            Unreadable::Syntax(text) | Unreadable::Value(text) => ApiError::invalid("body", text),
        })
    }
}

/// Path parameters; those that do not parse are 422.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => {
                Err(ApiError::invalid("path", wording::parameters(&error.body_text())))
            }
            Err(error) => Err(ApiError::bad_request(clip(&error.body_text()))),
        }
    }
}

/// Query parameters; those that do not parse are 422.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                Err(ApiError::invalid("query", wording::parameters(&error.body_text())))
            }
            Err(error) => Err(ApiError::bad_request(clip(&error.body_text()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Page {
        limit: i64,
        ratio: f64,
    }

    #[test]
    fn a_whole_number_may_be_written_with_a_point_and_others_are_refused() {
        let page = parse::<Page>(br#"{"limit": 12.0, "ratio": 2.0}"#).unwrap();
        assert_eq!(page, Page { limit: 12, ratio: 2.0 });
        for bad in ["12.5", "1e300", "\"12\"", "null"] {
            let body = format!(r#"{{"limit": {bad}, "ratio": 1}}"#);
            let refusal = parse::<Page>(body.as_bytes()).unwrap_err();
            assert!(matches!(refusal, Unreadable::Value(_)), "{bad}: {refusal:?}");
        }
    }

    #[test]
    fn a_number_for_a_word_is_a_wrong_value_and_named_by_its_field() {
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Color {
            Red,
        }
        #[derive(Debug, Deserialize)]
        struct Paint {
            color: Color,
        }
        let Err(Unreadable::Value(text)) = parse::<Paint>(br#"{"color": 5}"#) else {
            panic!("5 is JSON and no color");
        };
        assert_eq!(text, "color: expected a text, found the number 5");
        assert!(matches!(parse::<Paint>(b"{"), Err(Unreadable::Syntax(_))));
        assert!(matches!(parse(br#"{"color": "red"}"#), Ok(Paint { color: Color::Red })));
    }

    #[test]
    fn only_json_is_taken_for_json() {
        let is_json = |kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            is_json(&headers)
        };
        assert!(is_json("application/json"));
        assert!(is_json("Application/JSON; charset=utf-8"));
        assert!(is_json("application/vnd.x+json"));
        assert!(!is_json("text/json"));
        assert!(!is_json("application/jsonp"));
        assert!(!super::is_json(&HeaderMap::new()));
    }
}
