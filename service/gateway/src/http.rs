//! The API: router, layers, and one module for each resource.
//!
//! To add a resource: a module with `routes()`, and a line in `resources`.

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderName, HeaderValue, Method, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tower_http::{cors::CorsLayer, set_header::SetResponseHeaderLayer};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::{Gateway, http::error::ApiError, readiness};

pub mod betanet;
pub mod bitchat;
pub mod caller;
pub mod docs;
pub mod error;
pub mod extract;
pub mod fields;
pub mod files;
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

/// The most bytes of a body or frame: 1 MiB of content in the wordiest encoding, and its fields.
pub const MAX_BODY_BYTES: usize = 2_621_440;

/// Every resource of every surface, documented.
fn resources() -> OpenApiRouter<Gateway> {
    OpenApiRouter::with_openapi(docs::frame())
        .merge(betanet::routes())
        .merge(bitchat::routes())
        .merge(files::routes())
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
pub fn router(gateway: &Gateway) -> Router {
    let (resources, _) = resources().split_for_parts();
    let (health, _) = health::routes().split_for_parts();
    resources
        .layer(middleware::from_fn_with_state(gateway.clone(), limits::limit_requests))
        .layer(middleware::from_fn_with_state(gateway.clone(), when_ready))
        .merge(health)
        .merge(docs::routes(openapi()))
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(cors(gateway))
        .layer(middleware::from_fn_with_state(gateway.clone(), guard::guard_open_mode))
        .layer(middleware::from_fn_with_state(gateway.clone(), observe::observe))
        .layer(middleware::from_fn(error::in_the_look_of_the_surface))
        .layer(SetResponseHeaderLayer::if_not_present(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-store"),
        ))
        .layer(SetResponseHeaderLayer::if_not_present(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ))
        .layer(middleware::from_fn(unread::read_to_the_end))
        .with_state(gateway.clone())
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
        .layer(middleware::from_fn(error::as_problem))
        .with_state(gateway.clone())
}

/// Until the database has been reached once, nothing can be answered.
async fn when_ready(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    match gateway.readiness.state() {
        readiness::State::Ready => next.run(request).await,
        readiness::State::Waiting { .. } => ApiError::unavailable(
            "the gateway waits for its database; nothing was changed, try again",
        )
        .into_response(),
    }
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

/// Pages of the operator's choice may call; by default none but our own.
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
