//! The API: router, layers, and one module for each resource.
//!
//! To add a resource: a module with `routes()`, and a line in `resources`.

use axum::{
    Router,
    body::HttpBody as _,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tower_http::cors::CorsLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::{Gateway, http::error::ApiError, readiness};

pub mod addressing;
pub mod betanet;
pub mod bitchat;
pub mod caller;
pub mod docs;
pub mod error;
pub mod extract;
pub mod fields;
pub mod files;
pub mod gateways;
pub mod given;
pub mod groups;
pub mod guard;
pub mod health;
pub mod inbox;
pub mod limits;
pub mod messages;
mod observe;
pub mod p2p;
pub mod peers;
pub mod socket;
pub mod status;
pub mod submit;
mod unread;
mod wording;

/// The most bytes of a body or frame: 1 MiB of content in the wordiest encoding, and its fields.
pub const MAX_BODY_BYTES: usize = 2_621_440;

/// The same from callers of whom nothing is known, who have nothing to say but a registration.
pub const MAX_STRANGERS_BODY_BYTES: usize = 65_536;

/// Every resource of every surface, documented.
fn resources() -> OpenApiRouter<Gateway> {
    OpenApiRouter::with_openapi(docs::frame())
        .merge(addressing::routes())
        .merge(betanet::routes())
        .merge(bitchat::routes())
        .merge(files::routes())
        .merge(gateways::routes())
        .merge(groups::routes())
        .merge(inbox::routes())
        .merge(messages::routes())
        .merge(p2p::routes())
        .merge(peers::routes())
        .merge(socket::routes())
        .merge(status::routes())
}

/// The document of the API.
pub fn openapi() -> OpenApi {
    documented().1
}

fn documented() -> (Router<Gateway>, OpenApi) {
    resources().merge(health::routes()).split_for_parts()
}

/// Everything on the main listener.
///
/// Few layers that do much: the router copies all of them for each request.
pub fn router(gateway: &Gateway) -> Router {
    let (resources, _) = resources().split_for_parts();
    let (health, _) = health::routes().split_for_parts();
    let everything = resources
        .layer(middleware::from_fn_with_state(gateway.clone(), admit))
        .merge(health)
        .merge(docs::routes(openapi()))
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method);
    let everything = match gateway.config.cors_origins.is_empty() {
        true => everything,
        false => everything.layer(cors(gateway)),
    };
    everything
        .layer(middleware::from_fn_with_state(gateway.clone(), surround))
        .with_state(gateway.clone())
}

/// What happens to every request: it is read whole, bounded, measured and guarded, and its answer
/// gets the look of its surface.
async fn surround(
    State(gateway): State<Gateway>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let (look, method) = (error::Look::of(request.uri().path()), request.method().clone());
    let announced = request.body().size_hint().lower();
    let (mut request, rest) = unread::keep_hold(request);
    DefaultBodyLimit::max(MAX_BODY_BYTES).apply(&mut request);
    let answer = async {
        match guard::check_open_mode(&gateway, &request) {
            // Nobody need send what is not going to be read.
            Ok(()) if announced > MAX_BODY_BYTES as u64 => {
                extract::body_error(StatusCode::PAYLOAD_TOO_LARGE, "").into_response()
            }
            Ok(()) => next.run(request).await,
            Err(refusal) => refusal.into_response(),
        }
    };
    let head = observe::Head { method: &method, route: path.as_ref().map(MatchedPath::as_str) };
    let response = observe::observe(&gateway, head, answer).await;
    let mut response = error::give_look(look, response).await;
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    rest.read_to_the_end().await;
    response
}

/// Lets a request come to its resource when the gateway can work and its caller is not too fast.
///
/// Until the database has been reached once, nothing can be answered.
async fn admit(State(gateway): State<Gateway>, mut request: Request, next: Next) -> Response {
    if let readiness::State::Waiting { .. } = gateway.readiness.state() {
        return ApiError::unavailable(
            "the gateway waits for its database; nothing was changed, try again",
        )
        .into_response();
    }
    match limits::check_caller(&gateway, &mut request).await {
        Ok(limits::Known::Yes) => next.run(request).await,
        Ok(limits::Known::No) => {
            DefaultBodyLimit::max(MAX_STRANGERS_BODY_BYTES).apply(&mut request);
            next.run(request).await
        }
        Err(too_fast) => too_fast.into_response(),
    }
}

/// Everything on the admin listener: probes and metrics.
pub fn admin_router(gateway: &Gateway, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route(
            "/metrics",
            get(move |State(gateway): State<Gateway>| async move {
                health::metrics(&gateway, &metrics)
            }),
        )
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        .layer(middleware::map_response(|response| {
            error::give_look(error::Look::Problem, response)
        }))
        .with_state(gateway.clone())
}

async fn nothing_here(request: Request) -> ApiError {
    ApiError::not_found(format!(
        "there is nothing at {}; /docs lists what there is",
        request.uri().path()
    ))
}

async fn other_method(request: Request) -> ApiError {
    ApiError::new(
        axum::http::StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not work here; the Allow header lists what does", request.method()),
    )
}

/// Pages of the operator's choice may call.
fn cors(gateway: &Gateway) -> CorsLayer {
    let origins: Vec<HeaderValue> =
        gateway.config.cors_origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::RANGE,
            HeaderName::from_static(caller::PEER_HEADER),
            HeaderName::from_static("last-event-id"),
        ])
        .expose_headers([
            header::ACCEPT_RANGES,
            header::CONTENT_RANGE,
            header::ETAG,
            header::RETRY_AFTER,
            observe::REQUEST_ID,
        ])
        .max_age(std::time::Duration::from_secs(3600))
}
