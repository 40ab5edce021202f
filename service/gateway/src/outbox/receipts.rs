//! Receipts, both ways: sending those that are owed, and settling those that came.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::TimeDelta;
use fieldpost_delivery::{Backoff, Correspondent, ReceiptOut, Store as _};
use fieldpost_envelope::{AnonymityLevel, GatewayId, Receipt, ReceiptKind, SignedEnvelope, limits};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tracing::instrument;

use crate::{
    Gateway,
    outbox::{Errand, Heard, Outbox},
    store::{OwedReceipt, Settlement, phones::PhoneMessage},
    subscribers,
    telemetry::metrics as names,
};

/// Sends one receipt over the first transport that takes it, and records what follows.
#[instrument(name = "outbox.receipt", skip_all, fields(
    receipt.kind = %errand.receipt.kind,
    receipt.attempt = errand.receipt.attempt,
))]
pub(super) async fn send(outbox: &Outbox, errand: Errand) {
    let Correspondent::Gateway(gateway) = errand.receipt.gateway else {
        if let Err(error) = tell_phone(outbox, &errand.receipt).await {
            tracing::warn!(%error, "a phone could not be told, or that was not recorded");
        }
        return;
    };
    let outcome = match sign(outbox, &errand.receipt) {
        Ok(Some(envelope)) => deliver(outbox, &errand, gateway, envelope).await,
        Ok(None) => {
            // We wrote it ourselves within the limits.
            tracing::error!("a receipt could not be put into an envelope and is dropped");
            match errand.is_kept {
                true => outbox.gateway.store.receipt_done(&errand.receipt, None).await,
                false => Ok(()),
            }
        }
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        // Its claim ends by itself.
        tracing::warn!(%error, "a receipt could not be sent or recorded");
    }
}

/// Tells a phone what became of its message. It answers nothing: if it misses this, it sends the
/// message again.
async fn tell_phone(outbox: &Outbox, receipt: &ReceiptOut) -> sqlx::Result<()> {
    let store = &outbox.gateway.store;
    let told = match store.phone_message(&receipt.envelope).await? {
        Some(message) => acknowledge(outbox, receipt, &message).await,
        // A file, for which phones want no receipt.
        None => true,
    };
    let retry_at = (!told).then(|| {
        let wait = Backoff::RECEIPT.wait(receipt.attempt, &mut *outbox.rng());
        outbox.gateway.clock.now() + TimeDelta::from_std(wait).unwrap_or(TimeDelta::hours(1))
    });
    store.receipt_done(receipt, retry_at).await
}

async fn acknowledge(outbox: &Outbox, receipt: &ReceiptOut, message: &PhoneMessage) -> bool {
    let PhoneMessage { phone, peer, message_id } = message;
    let mut transports = outbox.gateway.transports.iter();
    let Some(transport) = transports.find(|one| one.capabilities().reaches_phones) else {
        return false;
    };
    match transport.acknowledge(phone, peer, message_id, receipt.kind).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "a phone was not told that its message is there");
            false
        }
    }
}

async fn deliver(
    outbox: &Outbox,
    errand: &Errand,
    to: GatewayId,
    envelope: SignedEnvelope,
) -> sqlx::Result<()> {
    let gateway = &outbox.gateway;
    let Errand { receipt, is_kept, .. } = errand;
    let mut answers = outbox.awaited.wait_for(envelope.digest());
    let turn = outbox.turnstiles.pass(to).await;
    let left = leave(outbox, receipt, to, &envelope).await;
    drop(turn);
    let later = |backoff: Backoff| {
        let wait = backoff.wait(receipt.attempt, &mut *outbox.rng());
        gateway.clock.now() + TimeDelta::from_std(wait).unwrap_or(TimeDelta::hours(1))
    };
    match (left, receipt.kind) {
        (true, ReceiptKind::Stored) if !is_kept => Ok(()),
        // Whoever misses it sends the message again.
        (true, ReceiptKind::Stored) => gateway.store.receipt_done(receipt, None).await,
        (false, _) if !is_kept => {
            let owed = OwedReceipt {
                answers: receipt.envelope,
                kind: receipt.kind,
                gateway: to,
                reason: receipt.reason.as_deref(),
                level: receipt.level,
                expires_at: gateway.clock.now() + ANSWER_LIFETIME,
            };
            gateway.store.owe_receipt(later(Backoff::RECEIPT), &owed).await
        }
        (false, _) => gateway.store.receipt_done(receipt, Some(later(Backoff::RECEIPT))).await,
        (true, ReceiptKind::Delivered | ReceiptKind::Read | ReceiptKind::Refused) => {
            let first = outbox.rules.failover_timeout;
            let in_time = timeout(ANSWER_WAIT.min(first), answers.next()).await.ok().flatten();
            let is_answer = |heard: &Heard| {
                heard.receipt.kind == ReceiptKind::Stored && heard.receipt.signer == receipt.gateway
            };
            if in_time.iter().chain(&answers.close()).any(is_answer) {
                return gateway.store.receipt_done(receipt, None).await;
            }
            let backoff = Backoff { first, most: first.max(LONGEST_SILENCE) };
            gateway.store.receipt_left(receipt, &envelope.digest(), later(backoff)).await
        }
    }
}

/// How long an answer is waited for before the receipt is noted as one without.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// How long an answer that could not be sent is owed: by then the other side has asked again.
const ANSWER_LIFETIME: TimeDelta = TimeDelta::days(1);
/// The longest wait before a receipt without an answer is sent again.
const LONGEST_SILENCE: Duration = Duration::from_secs(3600);

/// Lets few receipts at a time into the ways to one gateway, so that messages do not wait there
/// behind all that are owed.
#[derive(Debug, Default)]
pub(super) struct Turnstiles(Mutex<HashMap<GatewayId, Arc<Semaphore>>>);

impl Turnstiles {
    /// Waits for a turn, which ends when the permit is dropped; `None` never happens while this
    /// lives.
    async fn pass(&self, to: GatewayId) -> Option<OwnedSemaphorePermit> {
        let turnstile = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() >= TURNSTILES {
                // Whoever passes or waits holds one.
                all.retain(|_, turnstile| Arc::strong_count(turnstile) > 1);
            }
            all.entry(to).or_insert_with(|| Arc::new(Semaphore::new(LEAVING))).clone()
        };
        turnstile.acquire_owned().await.ok()
    }
}

/// Receipts that are on their way into a transport for one gateway at once.
const LEAVING: usize = 256;
/// From so many on, those that nobody uses are forgotten.
const TURNSTILES: usize = 1024;

/// Whether a transport took charge.
async fn leave(
    outbox: &Outbox,
    receipt: &ReceiptOut,
    to: GatewayId,
    envelope: &SignedEnvelope,
) -> bool {
    let gateway = &outbox.gateway;
    let target = to.to_string();
    let mut places = outbox.plan_receipt(to, receipt.level).places;
    if outbox.rules.failover && !places.is_empty() {
        // No answer came to the attempts before, so each begins with another transport.
        let first = receipt.attempt.saturating_sub(1) as usize % places.len();
        places.rotate_left(first);
    }
    for place in places {
        let Some(transport) = gateway.transports.iter().find(|one| one.name() == place.transport)
        else {
            continue;
        };
        let limit = outbox.rules.failover_timeout;
        let sent = timeout(limit, transport.send(&target, envelope.clone())).await;
        let result = if matches!(sent, Ok(Ok(()))) { "sent" } else { "failed" };
        metrics::counter!(
            names::RECEIPTS_SENT_TOTAL, "transport" => transport.name(), "result" => result,
        )
        .increment(1);
        match sent {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::debug!(%error, "a receipt was not taken"),
            Err(_) => tracing::debug!("a receipt was not taken in time"),
        }
        if !outbox.rules.failover {
            break;
        }
    }
    false
}

/// `None` if it breaks a rule of envelopes.
fn sign(outbox: &Outbox, owed: &ReceiptOut) -> sqlx::Result<Option<SignedEnvelope>> {
    let identity = outbox.gateway.store.identity()?;
    let receipt = Receipt {
        answers: owed.envelope,
        kind: owed.kind,
        at: owed.at.into(),
        reason: owed.reason.as_deref().map(within_limit),
        signer: identity.gateway_id,
    };
    Ok(receipt.sign(&identity.signing_key).ok())
}

fn within_limit(reason: &str) -> String {
    let end = (0..=reason.len().min(limits::REASON))
        .rev()
        .find(|end| reason.is_char_boundary(*end))
        .unwrap_or(0);
    reason[..end].replace('\0', "")
}

/// Applies a receipt that came, tells the sender what it changed, and answers it. Doing it again is
/// harmless.
///
/// The answer is not kept: whoever misses it says the same again.
///
/// # Errors
///
/// The store's; the other gateway says it again.
pub async fn settle(gateway: &Gateway, heard: &Heard) -> sqlx::Result<()> {
    let now = gateway.clock.now();
    let Settlement { level, settled } = gateway.store.take_receipt(now, &heard.receipt).await?;
    subscribers::tell_senders(gateway, settled.as_slice());
    if let Some(level) = level {
        answer(gateway, heard, level);
    }
    Ok(())
}

/// Answers a receipt that was applied, if that is for one like it, on ways of `level`.
pub(super) fn answer(gateway: &Gateway, heard: &Heard, level: AnonymityLevel) {
    let Heard { receipt, digest } = heard;
    let is_gateways = matches!(receipt.signer, Correspondent::Gateway(_));
    if receipt.kind != ReceiptKind::Stored
        && is_gateways
        && let Some(room) = gateway.errands.room()
    {
        let answer = ReceiptOut {
            envelope: *digest,
            gateway: receipt.signer,
            kind: ReceiptKind::Stored,
            at: gateway.clock.now(),
            reason: None,
            level,
            attempt: 1,
        };
        room.send(Errand { receipt: answer, is_kept: false, may_wait: false });
    }
}

/// Whether the receipt was applied, or had been before.
pub(super) async fn settle_or_log(gateway: &Gateway, heard: &Heard) -> bool {
    match settle(gateway, heard).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "a receipt could not be settled; it comes again");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_cut_between_characters_and_lose_what_databases_refuse() {
        assert_eq!(within_limit("inbox full"), "inbox full");
        assert_eq!(within_limit("a\0b"), "ab");
        let long = "ü".repeat(limits::REASON);
        let cut = within_limit(&long);
        assert!(cut.len() <= limits::REASON && long.starts_with(&cut));
        assert_eq!(cut.len(), limits::REASON - limits::REASON % 2);
    }
}
