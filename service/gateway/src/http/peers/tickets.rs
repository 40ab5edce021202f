//! Tickets, with which browsers open sockets.

use axum::{extract::State, http::StatusCode};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::no_such_peer;
use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Problem},
    },
    store::MAX_TICKETS,
};

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(create_ticket))
}

/// Get a ticket to open a socket with.
///
/// For browsers, which cannot send `Authorization` with a WebSocket: open `/v1/ws?ticket=<ticket>`
/// within 30 s. A ticket opens one socket.
#[utoipa::path(
    post,
    path = "/v1/ws-ticket",
    operation_id = "createSocketTicket",
    tag = "peers",
    responses(
        (status = 201, description = "The ticket", body = SocketTicket, example = json!({
            "ticket": "fpt_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA",
            "expires_at": "2026-11-23T09:00:30Z"
        })),
        (status = "4XX", description = "The caller gets no ticket", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_ticket(
    State(gateway): State<Gateway>,
    caller: Caller,
) -> Result<(StatusCode, axum::Json<SocketTicket>), ApiError> {
    let peer = caller.require()?;
    if !gateway.store.peer_exists(&peer).await? {
        return Err(no_such_peer(&peer));
    }
    let created = gateway.store.create_ticket(&peer).await?;
    let (ticket, expires_at) = created.ok_or_else(|| {
        ApiError::too_fast(format!("{MAX_TICKETS} tickets are open: use one, or wait 30 s"), 30)
    })?;
    Ok((StatusCode::CREATED, axum::Json(SocketTicket { ticket, expires_at })))
}

/// What opens one socket.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SocketTicket {
    /// For `/v1/ws?ticket=`.
    ticket: String,
    /// When it ends.
    expires_at: DateTime<Utc>,
}
