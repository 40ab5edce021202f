//! Invites, with which operators admit newcomers.

use axum::{extract::State, http::StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Problem},
        extract::Json,
        fields,
    },
    store::MAX_INVITES,
};

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(create_invite))
}

/// Make an invite.
///
/// Needs an operator's token (`fieldpost operator token`). Where the gateway admits newcomers by
/// invite, a registration with `invite` uses it up once.
#[utoipa::path(
    post,
    path = "/v1/invites",
    operation_id = "createInvite",
    tag = "peers",
    security(("bearer" = [])),
    request_body = CreateInvite,
    responses(
        (status = 201, description = "The invite, shown this once", body = Invite, example = json!({
            "invite": "fpi_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA",
            "uses": 1, "expires_at": "2026-11-30T09:00:00Z"
        })),
        (status = "4XX", description = "The invite cannot be made", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create_invite(
    State(gateway): State<Gateway>,
    caller: Caller,
    Json(request): Json<CreateInvite>,
) -> Result<(StatusCode, axum::Json<Invite>), ApiError> {
    require_operator(&caller)?;
    let (note, uses, lifetime) = request.checked()?;
    let expires_at = gateway.clock.now() + lifetime;
    let created = gateway.store.create_invite(note.as_deref(), uses, expires_at).await?;
    let invite = created.ok_or_else(|| {
        ApiError::conflict(format!("{MAX_INVITES} invites are open: let some be used or expire"))
    })?;
    Ok((StatusCode::CREATED, axum::Json(Invite { invite, uses, expires_at })))
}

fn require_operator(caller: &Caller) -> Result<(), ApiError> {
    if caller.is_operator() {
        return Ok(());
    }
    let needed = "an operator's token is needed: make one with fieldpost operator token";
    Err(match caller.peer() {
        Some(_) => ApiError::forbidden(needed),
        None => ApiError::unauthorized(needed),
    })
}

/// An invite to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateInvite {
    /// What it is for; shown to nobody.
    #[schema(max_length = 200, pattern = r"^[^\u0000]*$", example = "the Sunday hikers")]
    note: Option<String>,
    /// How many peers may register with it.
    #[schema(minimum = 1, maximum = 10000, default = 1)]
    uses: Option<i32>,
    /// How long it holds, in seconds: a minute to a year; a week unless given.
    #[schema(minimum = 60, maximum = 31536000, default = 604800)]
    ttl: Option<i64>,
}

impl CreateInvite {
    fn checked(self) -> Result<(Option<String>, i32, TimeDelta), ApiError> {
        let note = self.note.map(|note| fields::text("note", note, 0, 200)).transpose()?;
        let uses = self.uses.unwrap_or(1);
        if !(1..=10_000).contains(&uses) {
            return Err(ApiError::invalid(
                "body.uses",
                format!("uses: {uses} is not in 1 to 10000"),
            ));
        }
        let ttl = self.ttl.unwrap_or(604_800);
        if !(60..=31_536_000).contains(&ttl) {
            let detail = format!("ttl: {ttl} is not in 60 to 31536000 seconds");
            return Err(ApiError::invalid("body.ttl", detail));
        }
        Ok((note, uses, TimeDelta::seconds(ttl)))
    }
}

/// An invite to register.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Invite {
    /// What newcomers send.
    invite: String,
    /// How many peers may register with it.
    #[schema(minimum = 1, maximum = 10000)]
    uses: i32,
    /// When it ends.
    expires_at: DateTime<Utc>,
}
