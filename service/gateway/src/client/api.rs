//! One gateway's HTTP API: addresses, credentials, deadlines, and what its refusals say.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fieldpost_envelope::PeerId;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, rngs::SysRng};
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode, Url,
    header::{self, HeaderMap},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{ClientError, Output};
use crate::http::caller::PEER_HEADER;

/// A gateway as one caller sees it.
#[derive(Clone, Debug)]
pub(super) struct Api {
    client: Client,
    base: Url,
    peer: Option<PeerId>,
    token: Option<SecretString>,
    output: Output,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A request that is not a long poll; an upload sends its chunk within it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// No answer that the client asks for comes near this.
const ANSWER_LIMIT: usize = 16 << 20;

impl Api {
    pub(super) fn new(url: &str, output: Output) -> Result<Self, ClientError> {
        let base = parse_base(url).map_err(|problem| {
            ClientError::Usage(format!(
                "--url {url}: {problem}; write for example http://127.0.0.1:8000"
            ))
        })?;
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("fieldpost/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| ClientError::Unreachable {
                url: base.to_string(),
                cause: innermost(&error),
            })?;
        Ok(Self { client, base, peer: None, token: None, output })
    }

    pub(super) fn calling_as(self, peer: Option<PeerId>, token: Option<SecretString>) -> Self {
        Self { peer, token, ..self }
    }

    /// The gateway's address without a slash at its end: the key of the credentials file.
    pub(super) fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    pub(super) fn has_caller(&self) -> bool {
        self.peer.is_some() || self.token.is_some()
    }

    pub(super) fn peer(&self) -> Option<&PeerId> {
        self.peer.as_ref()
    }

    pub(super) fn token(&self) -> Option<&SecretString> {
        self.token.as_ref()
    }

    /// The address of a route. `segments` are data: a slash in one of them stays inside it.
    pub(super) fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    pub(super) fn get(&self, segments: &[&str]) -> RequestBuilder {
        self.request(Method::GET, segments)
    }

    pub(super) fn post(&self, segments: &[&str]) -> RequestBuilder {
        self.request(Method::POST, segments)
    }

    pub(super) fn put(&self, segments: &[&str]) -> RequestBuilder {
        self.request(Method::PUT, segments)
    }

    fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut request = self.client.request(method, self.url(segments));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose_secret());
        }
        if let Some(peer) = &self.peer {
            request = request.header(PEER_HEADER, peer.as_str());
        }
        request
    }

    /// Sends a request and reads its answer, or the gateway's reason for refusing.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, ClientError> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = self.body(response).await?;
        if !status.is_success() {
            return Err(self.refused(status, &headers, &body));
        }
        // No body is an answer too, to those who expect none.
        let body = if body.is_empty() { b"null".as_slice() } else { &body };
        serde_json::from_slice(body).map_err(|error| ClientError::Unexpected {
            url: self.base().to_owned(),
            cause: format!("an answer that cannot be read: {error}"),
        })
    }

    /// Whether it says who is calling.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// What a refusal says to whoever calls by this.
    pub(super) fn refused(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
    ) -> ClientError {
        match (&self.peer, &self.token) {
            (Some(peer), None) if status == StatusCode::UNAUTHORIZED => {
                ClientError::NoToken { peer: peer.to_string(), url: self.base().to_owned() }
            }
            _ => refusal(status, headers, body),
        }
    }

    /// As [`call`](Self::call), again and again while the failure may pass and `deadline` allows.
    ///
    /// Only for requests that are safe to repeat. Says on standard error what it waits for, once.
    pub(super) async fn persist<T: DeserializeOwned>(
        &self,
        deadline: Instant,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<T, ClientError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut has_told = false;
        loop {
            let error = match self.call(request()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let pause = error.retry_after().unwrap_or_default() + backoff.next();
            if !error.is_passing() || Instant::now() + pause > deadline {
                return Err(error);
            }
            if !has_told {
                has_told = true;
                let left = deadline.duration_since(Instant::now()).as_secs_f64();
                self.output.note(&format!("{error}; trying again for {left:.0} s"));
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + chunk.len() > ANSWER_LIMIT {
                return Err(ClientError::Unexpected {
                    url: self.base().to_owned(),
                    cause: format!("an answer of more than {ANSWER_LIMIT} bytes"),
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        ClientError::Unreachable { url: self.base().to_owned(), cause: innermost(error) }
    }
}

/// Pauses that double up to a limit, each drawn from nothing to its full length, so that many
/// clients that lost one gateway do not come back at once.
#[derive(Debug)]
pub(super) struct Backoff<R = StdRng> {
    first: Duration,
    most: Duration,
    next: Duration,
    rng: R,
}

impl Backoff {
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        let rng = StdRng::try_from_rng(&mut SysRng).unwrap_or_else(|_| {
            // Without entropy, the process id still tells clients of one machine apart.
            StdRng::seed_from_u64(u64::from(std::process::id()))
        });
        Self::with_rng(first, most, rng)
    }
}

impl<R: Rng> Backoff<R> {
    fn with_rng(first: Duration, most: Duration, rng: R) -> Self {
        Self { first, most, next: first, rng }
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next.mul_f64(self.rng.random_range(0.0..=1.0));
        self.next = (self.next * 2).min(self.most);
        pause
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// What the gateway says of its refusal: the `detail` of a problem, or of a mirrored surface.
fn refusal(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ClientError {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    let detail = serde_json::from_slice::<Problem>(body).map(|problem| problem.detail);
    ClientError::Refused {
        status,
        detail: detail.unwrap_or_else(|_| {
            let title = status.canonical_reason().unwrap_or("an unknown status");
            format!("the answer was {title} without a reason")
        }),
        retry_after: headers
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok())
            .map(|seconds: u32| Duration::from_secs(u64::from(seconds))),
    }
}

/// The innermost cause: the outer ones repeat the address or say "error sending request".
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn parse_base(url: &str) -> Result<Url, String> {
    let url = Url::parse(url).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("the scheme {} is neither http nor https", url.scheme()));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err("expected scheme, host, port and path alone".to_owned());
    }
    Ok(url)
}

/// A time of the gateway, for people.
pub(super) fn age(time: chrono::DateTime<chrono::Utc>) -> String {
    #[expect(clippy::disallowed_methods, reason = "a person compares with the clock on the wall")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX) - time.timestamp();
    match seconds {
        ..60 => "just now".to_owned(),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_in_a_path_stays_one_segment_below_the_gateways_own_path() {
        let api = api("https://host/base/");
        assert_eq!(api.base(), "https://host/base");
        let url = api.url(&["v1", "messages", "../a b/é"]);
        assert_eq!(url.as_str(), "https://host/base/v1/messages/..%2Fa%20b%2F%C3%A9");
    }

    #[test]
    fn a_wrong_address_is_told_what_would_be_right() {
        for bad in ["localhost:8000", "ftp://host", "http://", "http://host/?a=b", "http://me@host"]
        {
            let error = Api::new(bad, Output::new(true)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}");
            assert!(error.to_string().contains("http://127.0.0.1:8000"), "{error}");
        }
    }

    #[test]
    fn a_refusal_speaks_in_the_gateways_words() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, "2".parse().unwrap());
        let body = br#"{"type": "about:blank", "detail": "the database cannot be reached"}"#;
        let error = refusal(StatusCode::SERVICE_UNAVAILABLE, &headers, body);
        assert_eq!(error.to_string(), "the database cannot be reached (HTTP 503)");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
        assert!(error.is_passing());
        assert_eq!(error.exit_code(), 5);

        let error = refusal(StatusCode::FORBIDDEN, &HeaderMap::new(), b"<html>");
        assert_eq!(error.to_string(), "the answer was Forbidden without a reason (HTTP 403)");
        assert!(!error.is_passing());
    }

    #[test]
    fn pauses_grow_to_their_limit_and_start_over() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::with_rng(first, most, StdRng::seed_from_u64(7));
        let mut limit = first;
        for _ in 0..10 {
            assert!(backoff.next() <= limit);
            limit = (limit * 2).min(most);
        }
        assert_eq!(backoff.next, most);
        backoff.reset();
        assert!(backoff.next() <= first);
    }

    fn api(url: &str) -> Api {
        drop(rustls::crypto::ring::default_provider().install_default());
        Api::new(url, Output::new(true)).unwrap()
    }
}
