//! The one error of the API, and its two looks: `application/problem+json` (RFC 9457) on `/v1`,
//! `{"detail": …}` on the mirrored surfaces.

use axum::{
    Json,
    body::to_bytes,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// Why a request cannot be answered as asked. The text tells the caller what would be right.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    detail: String,
    /// The field at fault, for 422.
    location: Option<String>,
    retry_after: Option<u32>,
    /// Members beside the standard ones, such as `candidates`.
    extra: Option<serde_json::Map<String, serde_json::Value>>,
}

impl ApiError {
    /// Any status with a text.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), location: None, retry_after: None, extra: None }
    }

    /// 400: the request contradicts itself or is not what its headers say.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 401: who is calling is not known.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// 403: the caller may not do that.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 409: it contradicts what is there.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// 422: `field` has a value that cannot be accepted.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        Self {
            location: Some(field.to_owned()),
            ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
        }
    }

    /// 429: the caller is too fast.
    pub fn too_fast(detail: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(retry_after_seconds)
    }

    /// 507: the recipient's storage is full.
    pub fn storage_full(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, detail).retry_after(30)
    }

    /// 503: the gateway cannot work just now; nothing has happened.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(2)
    }

    /// Tells the caller when to try again.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Adds a member to the body on `/v1`.
    pub fn with(mut self, name: &str, value: serde_json::Value) -> Self {
        self.extra.get_or_insert_default().insert(name.to_owned(), value);
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The text.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// When to try again, in seconds.
    pub fn retry_after_seconds(&self) -> Option<u32> {
        self.retry_after
    }
}

/// The database's failures are told without its words: those may hold SQL or content.
impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::RowNotFound => Self::not_found("no such thing"),
            sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Encode(_) => {
                tracing::error!(%error, "what is stored cannot be read");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the gateway failed; its log says why")
            }
            // A value that Postgres cannot hold came from the caller, whoever should have noticed.
            sqlx::Error::Database(database)
                if database.code().is_some_and(|code| code.starts_with("22")) =>
            {
                tracing::warn!(error = %database.message(), error.code = database.code().as_deref(), "a value was refused by the database alone");
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "a value is out of range")
            }
            sqlx::Error::Database(database) if !is_outage(database.code().as_deref()) => {
                tracing::error!(error = %database.message(), error.code = database.code().as_deref(), "query failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the gateway failed; its log says why")
            }
            _ => {
                tracing::warn!(%error, "database is away");
                Self::unavailable(
                    "the database cannot be reached; a change that was asked for may or may not have \
                     been made, try again",
                )
            }
        }
    }
}

/// Whether a Postgres error code speaks of the server's state rather than of the query: lost
/// connections (08), resources (53), operator intervention (57), a failed or read-only system (58,
/// 25006), and serialization failures (40).
fn is_outage(code: Option<&str>) -> bool {
    code.is_some_and(|code| {
        ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
            || code == "25006"
    })
}

/// Carries the error to the layer of the surface, which knows how errors look there.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// The body of an error on `/v1` (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    pub kind: String,
    /// The status in words.
    #[schema(example = "Unprocessable Entity")]
    pub title: String,
    /// The status.
    #[schema(example = 422, minimum = 400, maximum = 599)]
    pub status: u16,
    /// What was wrong and what would be right.
    #[schema(example = "ttl: 0 is too short: 1 s to 30 days")]
    pub detail: String,
    /// The field at fault, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// More, where the problem has it, such as `candidates`.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// The body of an error on the mirrored surfaces.
#[derive(Debug, Serialize, ToSchema)]
pub struct Detail {
    /// What was wrong.
    pub detail: Refusal,
}

/// What was wrong: a text or, for a field that is not as it should be, a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(example = "no peer bob is known")]
pub enum Refusal {
    /// In one sentence.
    Text(String),
    /// By field.
    Fields(Vec<FieldRefusal>),
}

/// One field that is not as it should be.
#[derive(Debug, Serialize, ToSchema)]
pub struct FieldRefusal {
    /// Always `value_error`.
    #[serde(rename = "type")]
    #[schema(example = "value_error")]
    pub kind: &'static str,
    /// Where it stands: `body`, `query` or `path`, then its name.
    #[schema(example = json!(["body", "ttl"]))]
    pub loc: Vec<String>,
    /// What would be right.
    #[schema(example = "ttl: 0 is too short: 1 s to 30 days")]
    pub msg: String,
}

/// The longest text of a library's refusal that is passed on.
const REFUSAL_LIMIT: usize = 1024;

/// How errors look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    /// As a [`Problem`].
    Problem,
    /// As a [`Detail`].
    Detail,
}

impl Look {
    /// The look of the surface that `path` belongs to.
    pub fn of(path: &str) -> Self {
        if path.starts_with("/api/") { Self::Detail } else { Self::Problem }
    }
}

/// Gives an error the body that its surface has, those of axum included; leaves other responses.
pub async fn give_look(look: Look, response: Response) -> Response {
    if !(response.status().is_client_error() || response.status().is_server_error()) {
        return response;
    }
    let response = named(response).await;
    match look {
        Look::Problem => render(response, as_problem),
        Look::Detail => render(response, as_detail),
    }
}

fn as_problem(error: ApiError) -> Response {
    let mut response = Json(Problem {
        kind: "about:blank".to_owned(),
        title: error.status.canonical_reason().unwrap_or("Error").to_owned(),
        status: error.status.as_u16(),
        detail: error.detail,
        field: error.location,
        extra: error.extra.unwrap_or_default(),
    })
    .into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

fn as_detail(error: ApiError) -> Response {
    let detail = match error.location {
        Some(location) => Refusal::Fields(vec![FieldRefusal {
            kind: "value_error",
            loc: location.split('.').map(str::to_owned).collect(),
            msg: error.detail,
        }]),
        None => Refusal::Text(error.detail),
    };
    Json(Detail { detail }).into_response()
}

/// Refusals of axum itself come as plain text, or as nothing but a status.
async fn named(response: Response) -> Response {
    let status = response.status();
    let plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !plain || response.extensions().get::<ApiError>().is_some() {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, REFUSAL_LIMIT).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let detail = if text.is_empty() {
        status.canonical_reason().unwrap_or("the request was refused").to_lowercase()
    } else {
        text.into_owned()
    };
    let mut refusal = ApiError::new(status, detail).into_response();
    for (name, value) in &parts.headers {
        if [header::ALLOW, header::CONTENT_RANGE, header::VARY].contains(name) {
            refusal.headers_mut().insert(name, value.clone());
        }
    }
    refusal
}

fn render(mut response: Response, body: impl FnOnce(ApiError) -> Response) -> Response {
    let Some(error) = response.extensions_mut().remove::<ApiError>() else {
        return response;
    };
    let (status, retry_after) = (error.status, error.retry_after);
    let mut rendered = body(error);
    *rendered.status_mut() = status;
    let headers = rendered.headers_mut();
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    // What other layers have said already, such as CORS, holds for the new body, too.
    for (name, value) in response.headers() {
        if !headers.contains_key(name) && name != header::CONTENT_LENGTH {
            headers.append(name, value.clone());
        }
    }
    rendered
}
