//! The bytes of a file as a response: whole or one range, chunk by chunk (RFC 9110, section 14).

use std::{future, ops::RangeInclusive};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::HEXLOWER;
use futures_util::{Stream, TryStreamExt};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    Gateway,
    http::error::ApiError,
    store::files::{FileRecord, FileState},
};

/// What may stand unencoded in an extended parameter value (RFC 8187, section 3.2.1).
const ATTRIBUTE_CHARACTERS: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// What a request wants of a file.
#[derive(Debug, Eq, PartialEq)]
enum Part {
    /// All of it.
    Whole,
    /// The bytes from the first to the last.
    Range(RangeInclusive<u64>),
    /// Nothing that there is.
    Outside,
}

/// Answers with the file or the part that the headers ask for. One chunk is in memory at a time.
pub(super) fn respond(
    gateway: &Gateway,
    file: &FileRecord,
    request: &HeaderMap,
) -> Result<Response, ApiError> {
    let (FileState::Completed, Some(sha256)) = (file.state(), &file.sha256) else {
        return Err(ApiError::conflict(match file.state() {
            FileState::Mismatched => {
                "the file is not the one that was declared: delete it and upload it again"
                    .to_owned()
            }
            _ if i64::from(file.total_chunks) == file.uploaded_chunks => {
                "all is here, and its hash is being taken: ask again, or put any chunk again"
                    .to_owned()
            }
            _ => format!(
                "the file is not complete: {} of {} chunks are here",
                file.uploaded_chunks, file.total_chunks
            ),
        }));
    };
    let etag = format!("\"{}\"", HEXLOWER.encode(sha256));
    if names_etag(request, header::IF_NONE_MATCH, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let size = u64::try_from(file.size_bytes).unwrap_or_default();
    let part = match request.get(header::RANGE) {
        Some(range) if may_be_partial(request, &etag) => wanted(range, size),
        _ => Part::Whole,
    };
    let (status, range) = match part {
        Part::Whole => (StatusCode::OK, 0..=size - 1),
        Part::Range(range) => (StatusCode::PARTIAL_CONTENT, range),
        Part::Outside => return Ok(outside(size)),
    };
    let mut response = (status, body(gateway, file, &range)).into_response();
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: String| {
        // All are ASCII by construction.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    if status == StatusCode::PARTIAL_CONTENT {
        set(header::CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start(), range.end()));
    }
    set(header::CONTENT_LENGTH, (range.end() - range.start() + 1).to_string());
    set(header::CONTENT_TYPE, "application/octet-stream".to_owned());
    set(header::CONTENT_DISPOSITION, disposition(&file.filename));
    set(header::ETAG, etag);
    set(header::ACCEPT_RANGES, "bytes".to_owned());
    set(header::CACHE_CONTROL, "private".to_owned());
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned());
    set(HeaderName::from_static("repr-digest"), format!("sha-256=:{}:", STANDARD.encode(sha256)));
    Ok(response)
}

/// 416, with the length that there is.
fn outside(size: u64) -> Response {
    let detail = format!("the range lies outside of the file, which has {size} bytes");
    let mut response = ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, detail).into_response();
    if let Ok(length) = HeaderValue::try_from(format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, length);
    }
    response
}

fn body(gateway: &Gateway, file: &FileRecord, range: &RangeInclusive<u64>) -> Body {
    let chunk_size = u64::try_from(file.chunk_size).unwrap_or(1).max(1);
    let chunk = |byte: u64| i32::try_from(byte / chunk_size).unwrap_or(i32::MAX);
    let chunks = gateway.store.read_chunks(file, chunk(*range.start())..=chunk(*range.end()));
    let id = file.id.clone();
    let skip = range.start() % chunk_size;
    let length = range.end() - range.start() + 1;
    Body::from_stream(cut(chunks, skip, length).inspect_err(move |error| {
        // The status is sent already; the cut connection is all that the caller will see.
        tracing::warn!(file.id = id, %error, "a download broke off");
    }))
}

/// Leaves out the first `skip` bytes and whatever comes after `length` more.
fn cut<E>(
    chunks: impl Stream<Item = Result<Bytes, E>>,
    mut skip: u64,
    mut length: u64,
) -> impl Stream<Item = Result<Bytes, E>> {
    chunks
        .map_ok(move |mut chunk| {
            let dropped = skip.min(chunk.len() as u64);
            chunk = chunk.slice(dropped as usize..);
            skip -= dropped;
            chunk.truncate(length.min(chunk.len() as u64) as usize);
            length -= chunk.len() as u64;
            chunk
        })
        .try_filter(|chunk| future::ready(!chunk.is_empty()))
}

/// What a `Range` header wants. One that is malformed, of another unit, or of several ranges is
/// as good as none, which the standard allows; one that lies outside is not.
fn wanted(range: &HeaderValue, size: u64) -> Part {
    let Some(ranges) =
        range.to_str().ok().and_then(|text| http_range_header::parse_range_header(text).ok())
    else {
        return Part::Whole;
    };
    if ranges.len() != 1 {
        return Part::Whole;
    }
    match ranges.validate(size).ok().and_then(|ranges| ranges.into_iter().next()) {
        Some(range) => Part::Range(range),
        None => Part::Outside,
    }
}

/// Whether `If-Range` is absent or names the file as it is; a date names none.
fn may_be_partial(request: &HeaderMap, etag: &str) -> bool {
    request.get(header::IF_RANGE).is_none_or(|condition| condition.as_bytes() == etag.as_bytes())
}

fn names_etag(request: &HeaderMap, name: HeaderName, etag: &str) -> bool {
    request
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim())
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// Tells to save the file under its name: the last part of a path, in ASCII for old clients and
/// whole for all others (RFC 6266, appendix D).
fn disposition(filename: &str) -> String {
    let name = filename.rsplit(['/', '\\']).next().unwrap_or_default();
    let name = if name.chars().all(|c| c == '.' || c.is_whitespace()) { "file" } else { name };
    let plain: String = name
        .chars()
        .map(|c| match c {
            '"' | '%' => '_',
            ' '..='~' => c,
            _ => '_',
        })
        .collect();
    let whole = utf8_percent_encode(name, ATTRIBUTE_CHARACTERS);
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{whole}")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{FutureExt, stream};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_range_is_honoured_and_cut_to_the_file() {
        for (header, range) in [
            ("bytes=0-0", 0..=0),
            ("bytes=0-9", 0..=9),
            ("bytes=5-", 5..=9),
            ("bytes=-3", 7..=9),
            ("bytes=2-400", 2..=9),
            ("bytes=-400", 0..=9),
            ("BYTES=1-2", 1..=2),
        ] {
            assert_eq!(wanted(&header.parse().unwrap(), 10), Part::Range(range), "{header}");
        }
    }

    #[test]
    fn a_range_outside_is_refused_and_nonsense_is_ignored() {
        for header in ["bytes=10-", "bytes=10-20", "bytes=99999999999999999999-", "bytes=-0"] {
            assert_eq!(wanted(&header.parse().unwrap(), 10), Part::Outside, "{header}");
        }
        for header in ["bytes=", "bytes=5-2", "bytes=a-b", "rows=1-2", "bytes=0-1,3-4", "0-5"] {
            assert_eq!(wanted(&header.parse().unwrap(), 10), Part::Whole, "{header}");
        }
    }

    #[test]
    fn only_the_same_file_is_continued_and_only_a_known_one_left_out() {
        let with = |name: HeaderName, value: &str| {
            HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
        };
        assert!(may_be_partial(&HeaderMap::new(), "\"a\""));
        assert!(may_be_partial(&with(header::IF_RANGE, "\"a\""), "\"a\""));
        assert!(!may_be_partial(&with(header::IF_RANGE, "\"b\""), "\"a\""));
        assert!(!may_be_partial(&with(header::IF_RANGE, "W/\"a\""), "\"a\""));
        let names =
            |value| names_etag(&with(header::IF_NONE_MATCH, value), header::IF_NONE_MATCH, "\"a\"");
        assert!(names("\"b\", W/\"a\"") && names("*"));
        assert!(!names("\"b\"") && !names("a"));
    }

    #[test]
    fn names_are_encoded_and_never_paths() {
        for (name, expected) in [
            ("map.pdf", "filename=\"map.pdf\"; filename*=UTF-8''map.pdf"),
            ("../../etc/passwd", "filename=\"passwd\"; filename*=UTF-8''passwd"),
            ("C:\\boot.ini", "filename=\"boot.ini\"; filename*=UTF-8''boot.ini"),
            ("..", "filename=\"file\"; filename*=UTF-8''file"),
            ("a/", "filename=\"file\"; filename*=UTF-8''file"),
            (
                "naïve plan.txt",
                "filename=\"na_ve plan.txt\"; filename*=UTF-8''na%C3%AFve%20plan.txt",
            ),
            ("a\"; x=\"b", "filename=\"a_; x=_b\"; filename*=UTF-8''a%22%3B%20x%3D%22b"),
            (
                "a\r\nSet-Cookie: b",
                "filename=\"a__Set-Cookie: b\"; filename*=UTF-8''a%0D%0ASet-Cookie%3A%20b",
            ),
            ("100%25", "filename=\"100_25\"; filename*=UTF-8''100%2525"),
        ] {
            assert_eq!(disposition(name), format!("attachment; {expected}"), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn any_name_makes_a_header_value(name in ".{1,255}") {
            let value = disposition(&name);
            prop_assert!(HeaderValue::try_from(&value).is_ok(), "{value:?}");
            prop_assert!(value.is_ascii() && value.matches('"').count() == 2);
        }

        #[test]
        fn a_cut_stream_is_that_part_of_the_whole(
            content in proptest::collection::vec(any::<u8>(), 1..60),
            start in 0_usize..60,
            length in 1_usize..60,
        ) {
            const CHUNK: usize = 7;
            let start = start % content.len();
            let end = (start + length).min(content.len());
            let chunks = content.chunks(CHUNK).skip(start / CHUNK);
            let chunks = stream::iter(chunks.map(|chunk| Ok::<_, Infallible>(Bytes::copy_from_slice(chunk))));
            let part = cut(chunks, (start % CHUNK) as u64, (end - start) as u64)
                .try_concat_bytes()
                .now_or_never()
                .unwrap();
            prop_assert_eq!(&part, &content[start..end]);
        }
    }

    trait ConcatBytes {
        fn try_concat_bytes(self) -> impl Future<Output = Vec<u8>>;
    }

    impl<S: Stream<Item = Result<Bytes, Infallible>>> ConcatBytes for S {
        async fn try_concat_bytes(self) -> Vec<u8> {
            let chunks: Vec<Bytes> = self.try_collect().await.unwrap();
            chunks.concat()
        }
    }
}
