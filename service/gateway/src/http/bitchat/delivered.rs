//! Confirming a message on `/api/bitchat`.

use axum::extract::State;
use fieldpost_delivery::Confirm;
use fieldpost_envelope::{MessageId, MessageStatus, PeerId};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Detail},
        extract::Path,
        inbox::take_confirmation,
    },
};

/// For how many recipients one request confirms where it names none; as many as a group has.
const MAX_RECIPIENTS: usize = 1000;

pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new().routes(routes!(confirm))
}

/// Confirm that a message has arrived.
///
/// Done by its recipient; with `--auth open`, where the request names none of them, for those of
/// this gateway. Confirming again changes nothing.
#[utoipa::path(
    put,
    path = "/api/bitchat/messages/{message_id}/delivered",
    operation_id = "bitchatConfirmMessage",
    tag = "bitchat",
    params(("message_id" = uuid::Uuid, Path, description = "The message", example = "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12")),
    responses(
        (status = 200, description = "Confirmed, durably", body = BitchatConfirmed, example = json!({
            "message": "0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12 is delivered"
        })),
        (status = "4XX", description = "The message cannot be confirmed", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn confirm(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(message_id): Path<String>,
) -> Result<axum::Json<BitchatConfirmed>, ApiError> {
    caller.viewer()?;
    let id = message_id.parse().map(MessageId).map_err(|_| no_such_message(&message_id))?;
    let recipients = gateway.store.local_recipients(id).await?;
    if recipients.is_empty() {
        return Err(match gateway.store.message_exists(id).await? {
            true => ApiError::forbidden("only the gateway of its recipient can confirm it"),
            false => no_such_message(&message_id),
        });
    }
    let mut outcome = Err(no_such_message(&message_id));
    for peer in confirming(&caller, recipients)? {
        let confirmed = confirm_for(&gateway, &peer, id).await;
        if outcome.is_err() {
            outcome = confirmed;
        }
    }
    outcome?;
    Ok(axum::Json(BitchatConfirmed { message: format!("{id} is delivered") }))
}

/// For whom the request confirms.
fn confirming(caller: &Caller, mut recipients: Vec<PeerId>) -> Result<Vec<PeerId>, ApiError> {
    match caller.peer() {
        Some(peer) if recipients.contains(peer) => Ok(vec![peer.clone()]),
        _ if caller.is_open() => {
            recipients.truncate(MAX_RECIPIENTS);
            Ok(recipients)
        }
        _ => Err(ApiError::forbidden("only a recipient of the message can confirm it")),
    }
}

async fn confirm_for(gateway: &Gateway, peer: &PeerId, id: MessageId) -> Result<(), ApiError> {
    let what = Confirm::Messages(vec![(id, None)]);
    if !take_confirmation(gateway, peer, &what, false).await?.is_empty() {
        return Ok(());
    }
    match gateway.store.ended_as(id, peer).await? {
        Some(MessageStatus::Delivered | MessageStatus::Read) => return Ok(()),
        Some(MessageStatus::Cancelled | MessageStatus::Failed) => {
            return Err(no_such_message(&id.to_string()));
        }
        Some(ended) => {
            return Err(ApiError::conflict(format!("too late: the message is {ended}")));
        }
        // Whoever confirms it knows it, so it counts as shown.
        None => gateway.store.show_all(gateway.clock.now(), peer).await?,
    }
    match take_confirmation(gateway, peer, &what, false).await?.is_empty() {
        false => Ok(()),
        // It is held back for its predecessor, or somebody else was faster.
        true => match gateway.store.ended_as(id, peer).await? {
            Some(MessageStatus::Delivered | MessageStatus::Read) => Ok(()),
            _ => Err(ApiError::conflict("the message has not been shown to its recipient")),
        },
    }
}

fn no_such_message(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no message {id:?}"))
}

/// That a message was confirmed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatConfirmed {
    /// In words.
    message: String,
}
