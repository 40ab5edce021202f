//! Lets a client finish its request when the answer came before the whole request was read.
//!
//! A refusal that overtakes the body would close the connection under a client that is still
//! sending, and many of them then report a broken connection instead of the refusal.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::header,
};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::timeout;

/// How much of an unread body is read; whoever sends more loses the connection.
const MOST_BYTES: usize = 8 << 20;
/// How long the rest of a body may take.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Keeps hold of a request's body, so that what its handler leaves of it can be read.
pub(super) fn keep_hold(request: Request) -> (Request, Rest) {
    // A client that asked first has sent nothing yet and will not, once it is refused.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return (request, Rest(None));
    }
    let (head, body) = request.into_parts();
    let body = SharedBody(Arc::new(Mutex::new(body)));
    (Request::from_parts(head, Body::new(body.clone())), Rest(Some(body)))
}

/// What a handler may have left of a request's body.
pub(super) struct Rest(Option<SharedBody>);

impl Rest {
    /// Reads it before the answer goes out, and throws it away.
    pub(super) async fn read_to_the_end(self) {
        let Some(mut body) = self.0.filter(|body| !body.is_end_stream()) else { return };
        // The answer goes out either way.
        let _ = timeout(LONGEST_WAIT, async move {
            let mut left = MOST_BYTES;
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(length) {
                    Some(rest) => left = rest,
                    None => break,
                }
            }
        })
        .await;
    }
}

/// A body that the handler reads and that can be read on when the handler is done.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Body>>);

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use axum::{
        Router,
        http::StatusCode,
        middleware::{self, Next},
        response::Response,
        routing::post,
    };
    use futures_util::{StreamExt, stream};
    use tower::ServiceExt;

    use super::*;

    const PIECE: usize = 1 << 16;

    #[tokio::test]
    async fn what_a_refusal_left_unread_is_read_before_it_is_sent() {
        let read = Arc::new(AtomicUsize::new(0));
        let status = ask(pieces(20, &read), false).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert_eq!(read.load(Ordering::Relaxed), 20);
    }

    #[tokio::test]
    async fn a_body_without_end_is_given_up() {
        let read = Arc::new(AtomicUsize::new(0));
        let status = ask(pieces(usize::MAX, &read), false).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert_eq!(read.load(Ordering::Relaxed), MOST_BYTES / PIECE + 1);
    }

    #[tokio::test]
    async fn a_client_that_asks_first_is_answered_at_once() {
        let read = Arc::new(AtomicUsize::new(0));
        let status = ask(pieces(20, &read), true).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert_eq!(read.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_handler_gets_its_whole_body() {
        let app = Router::new()
            .route("/", post(|body: Bytes| async move { body }))
            .layer(middleware::from_fn(hold_and_read));
        let request = Request::post("/").body(Body::from("hello")).unwrap();
        let body = app.oneshot(request).await.unwrap().into_body();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
    }

    async fn hold_and_read(request: Request, next: Next) -> Response {
        let (request, rest) = keep_hold(request);
        let response = next.run(request).await;
        rest.read_to_the_end().await;
        response
    }

    async fn ask(body: Body, first: bool) -> StatusCode {
        let app = Router::new()
            .route("/", post(|| async { StatusCode::FORBIDDEN }))
            .layer(middleware::from_fn(hold_and_read));
        let mut request = Request::post("/").body(body).unwrap();
        if first {
            request.headers_mut().insert(header::EXPECT, "100-continue".parse().unwrap());
        }
        app.oneshot(request).await.unwrap().status()
    }

    fn pieces(count: usize, read: &Arc<AtomicUsize>) -> Body {
        let read = read.clone();
        let pieces =
            stream::repeat(Bytes::from_static(&[0; PIECE])).take(count).map(move |piece| {
                read.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>(piece)
            });
        Body::from_stream(pieces)
    }
}
