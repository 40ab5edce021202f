//! What surrounds every request: a span, a metric, a deadline, and a net for panics.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    http::{HeaderName, HeaderValue, Method, StatusCode},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tokio::time::timeout;
use tracing::{Instrument, Span, field::Empty, info_span};
use uuid::Uuid;

use crate::{Gateway, http::error::ApiError, telemetry::metrics as names};

/// Names a request in the response and in the log.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Ordinary requests: a wait for a connection and a few statements.
const DEADLINE: Duration = Duration::from_secs(30);
/// A long poll may wait 60 s.
const LONG_POLL_DEADLINE: Duration = Duration::from_secs(70);
/// A chunk of a file over a slow link.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(300);

/// What a request is called in traces and metrics.
pub(super) struct Head<'a> {
    pub(super) method: &'a Method,
    /// The pattern of its path; `None` where nothing is.
    pub(super) route: Option<&'a str>,
}

/// Traces, measures and bounds the work on a request.
///
/// Trace context is not taken from requests: a stranger could join our traces to others
/// (design, section 12).
pub(super) async fn observe(
    gateway: &Gateway,
    head: Head<'_>,
    answer: impl Future<Output = Response>,
) -> Response {
    let route = head.route.unwrap_or("unmatched");
    let method = known(head.method);
    let request_id = request_id();
    let span = info_span!(
        "http.request",
        otel.name = format_args!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        request.id = request_id,
    );
    let began = gateway.clock.instant();
    let mut response = guarded(route, answer).instrument(span.clone()).await;
    let seconds = gateway.clock.instant().saturating_duration_since(began).as_secs_f64();
    record(&span, response.status(), seconds);
    metrics::histogram!(
        names::HTTP_REQUEST_SECONDS,
        "method" => method,
        "route" => route.to_owned(),
        "status" => response.status().as_u16().to_string(),
    )
    .record(seconds);
    if let Ok(value) = HeaderValue::try_from(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Does the work; its panics and delays become errors of the API.
async fn guarded(route: &str, answer: impl Future<Output = Response>) -> Response {
    let work = AssertUnwindSafe(answer).catch_unwind();
    match timeout(deadline(route), work).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            metrics::counter!(names::PANICS_TOTAL).increment(1);
            tracing::error!("a handler panicked");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the gateway failed; its log says why")
                .into_response()
        }
        Err(_) => ApiError::unavailable(
            "the request took too long, and whether it took effect is not known; repeat it, a \
             send under the same message_id",
        )
        .into_response(),
    }
}

fn deadline(route: &str) -> Duration {
    if route == "/v1/inbox" {
        LONG_POLL_DEADLINE
    } else if route.contains("/files") {
        TRANSFER_DEADLINE
    } else {
        DEADLINE
    }
}

fn record(span: &Span, status: StatusCode, seconds: f64) {
    span.record("http.response.status_code", status.as_u16());
    let _entered = span.enter();
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    // Outages are told once, by whoever notices them, rather than by every request.
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::warn!(http.duration_seconds = seconds, "request failed");
    } else {
        tracing::debug!(http.duration_seconds = seconds, "request answered");
    }
}

/// Methods are labels of metrics, and a client can invent any number of them.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}

/// Unique for each request; a counter behind a random number for each process.
fn request_id() -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| Uuid::new_v4().as_u64_pair().0);
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{:016x}-{:x}", *PROCESS, NEXT.fetch_add(1, Ordering::Relaxed))
}
