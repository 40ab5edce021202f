//! The document of the API and the pages that show it, without internet.

use axum::{
    Router,
    http::{HeaderValue, header},
};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::{
    Modify, OpenApi as _,
    openapi::{
        OpenApi, SecurityRequirement, Server,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_swagger_ui::SwaggerUi;

use crate::Gateway;

/// What the viewer may load: itself. Its style sheet is partly inline.
const CONTENT_POLICY: &str = "default-src 'self'; img-src 'self' data:; \
    style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// The document before the resources add theirs.
pub(super) fn frame() -> OpenApi {
    Frame::openapi()
}

/// `/openapi.json` and `/docs`.
pub(super) fn routes(document: OpenApi) -> Router<Gateway> {
    let viewer = SwaggerUi::new("/docs")
        .url("/openapi.json", document)
        .config(utoipa_swagger_ui::Config::new(["/openapi.json"]).validator_url("none"));
    Router::from(viewer).layer(SetResponseHeaderLayer::overriding(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(CONTENT_POLICY),
    ))
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Fieldpost",
        description = "\
A message gateway. A program sends and receives messages over HTTP and WebSocket; the gateway \
carries them over whatever link is up and keeps every accepted message until its recipient has it.\n\n\
**Who calls.** Registering a peer returns its token, shown once; send it as \
`Authorization: Bearer <token>`. With `--auth open`, for one machine, no token is needed: the \
query parameter `peer` or the header `Fieldpost-Peer` names the caller.\n\n\
**Errors** are `application/problem+json` (RFC 9457) on `/v1` and `{\"detail\": …}` on `/api`. \
429, 503 and 507 carry `Retry-After`.\n\n\
**Sockets** are described in `openapi/sockets.yaml` (AsyncAPI 3).",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "messages", description = "Send, follow and cancel messages"),
        (name = "inbox", description = "Receive and confirm messages"),
        (name = "peers", description = "Identities that send and receive, and their tokens"),
        (name = "groups", description = "Groups and their members"),
        (name = "files", description = "Files in chunks, resumable"),
        (name = "gateway", description = "The gateway itself: transports, routes, status"),
        (name = "bitchat", description = "The original BitChat surface"),
        (name = "betanet", description = "The original BetaNet surface"),
        (name = "p2p", description = "The original P2P surface"),
    ),
    security(("bearer" = []), ()),
    modifiers(&Finish),
)]
struct Frame;

struct Finish;

impl Modify for Finish {
    fn modify(&self, document: &mut OpenApi) {
        document.servers = Some(vec![Server::new("/")]);
        document.components.get_or_insert_default().add_security_scheme(
            "bearer",
            SecurityScheme::Http(
                HttpBuilder::new()
                    .scheme(HttpAuthScheme::Bearer)
                    .description(Some("A peer's token from its registration, or an operator's"))
                    .build(),
            ),
        );
        // Either is enough: with `--auth open` no token is needed.
        document.security =
            Some(vec![SecurityRequirement::new("bearer", [""; 0]), SecurityRequirement::default()]);
    }
}
