//! Receipts that come for our envelopes, and those that are owed to others.

use std::time::Duration;

use fieldpost_envelope::{MessageStatus, ReceiptKind};

use super::{
    Book,
    delivery::{Here, Key, Part},
};
use crate::{
    AttemptResult, Correspondent, Effect, Inbound, ReceiptIn, ReceiptOut, Settled, Standing, Time,
    effect, memory::REMEMBERED, retry::later, signer_of,
};

#[derive(Debug)]
pub(super) struct ReceiptOwed {
    pub(super) receipt: ReceiptOut,
    /// The digest under which it left last.
    own_digest: Option<[u8; 32]>,
    pub(super) due: Time,
    pub(super) forget_at: Time,
}

impl Book {
    pub(in crate::memory) fn settle(&mut self, now: Time, receipt: &ReceiptIn) -> Option<Settled> {
        let key = self.envelopes.get(&receipt.envelope)?.clone();
        let delivery = self.deliveries.get_mut(&key)?;
        let Part::Away(away) = &mut delivery.part else { return None };
        let standing = Standing { status: delivery.status, stored: away.stored };
        match effect(standing, &key.target, receipt)? {
            Effect::Stored => {
                away.stored = true;
                delivery.mark_last_attempt(AttemptResult::Stored);
                self.set_due(&key, None);
                self.waiting.remove(&key);
                self.move_to(now, &key, MessageStatus::Sent, None)
            }
            Effect::Ends { status, reason } => {
                away.stored = status != MessageStatus::Failed;
                delivery.mark_last_attempt(match status {
                    MessageStatus::Failed => AttemptResult::Refused,
                    _ => AttemptResult::Stored,
                });
                self.end(receipt.at, &key, status, reason)
            }
        }
    }

    pub(in crate::memory) fn claim_receipts(
        &mut self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> Vec<ReceiptOut> {
        let mut due: Vec<_> = self
            .receipts
            .values_mut()
            .filter(|owed| owed.due <= now && reachable.contains(&owed.receipt.gateway.to_string()))
            .collect();
        due.sort_by_key(|owed| owed.due);
        due.truncate(limit);
        due.into_iter()
            .map(|owed| {
                owed.due = later(now, lease);
                owed.receipt.attempt += 1;
                owed.receipt.clone()
            })
            .collect()
    }

    pub(in crate::memory) fn receipt_done(&mut self, receipt: &ReceiptOut, retry_at: Option<Time>) {
        let name = (receipt.envelope, receipt.kind.as_str());
        match (retry_at, self.receipts.get_mut(&name)) {
            (Some(retry_at), Some(owed)) => owed.due = retry_at,
            (None, _) => drop(self.receipts.remove(&name)),
            (Some(_), None) => {}
        }
    }

    pub(in crate::memory) fn receipt_left(
        &mut self,
        receipt: &ReceiptOut,
        own: &[u8; 32],
        retry_at: Time,
    ) {
        let name = (receipt.envelope, receipt.kind.as_str());
        if let Some(owed) = self.receipts.get_mut(&name) {
            owed.own_digest = Some(*own);
            owed.due = retry_at;
        }
    }

    pub(in crate::memory) fn receipt_answered(&mut self, own: &[u8; 32], signer: Correspondent) {
        self.receipts
            .retain(|_, owed| owed.own_digest != Some(*own) || owed.receipt.gateway != signer);
    }

    pub(in crate::memory) fn answer_receipt(
        &mut self,
        now: Time,
        receipt: &ReceiptIn,
        digest: &[u8; 32],
    ) -> bool {
        let Some(key) = self.envelopes.get(&receipt.envelope) else { return false };
        let is_theirs = signer_of(&key.target) == Some(receipt.signer);
        let Some(delivery) = self.deliveries.get(key).filter(|_| is_theirs) else { return false };
        let answer = ReceiptOut {
            envelope: *digest,
            gateway: receipt.signer,
            kind: ReceiptKind::Stored,
            at: now,
            reason: None,
            level: delivery.message.min_anonymity,
            attempt: 0,
        };
        self.owe(now, answer);
        true
    }

    pub(in crate::memory) fn next_receipt(&self) -> Option<Time> {
        self.receipts.values().map(|owed| owed.due).min()
    }

    pub(super) fn owe_receipt(
        &mut self,
        now: Time,
        key: &Key,
        kind: ReceiptKind,
        reason: Option<String>,
    ) {
        let Some(delivery) = self.deliveries.get(key) else { return };
        let Part::Here(Here { arrival: Some(arrival), .. }) = &delivery.part else { return };
        let Some(gateway) = arrival.gateway else { return };
        if matches!(gateway, Correspondent::Phone(_)) && kind == ReceiptKind::Stored {
            // Phones have no word for it.
            return;
        }
        let level = delivery.message.min_anonymity;
        let envelope = arrival.envelope;
        self.receipts.remove(&(envelope, ReceiptKind::Refused.as_str()));
        let receipt = ReceiptOut { envelope, gateway, kind, at: now, reason, level, attempt: 0 };
        self.owe(now, receipt);
    }

    pub(super) fn owe_refusal(&mut self, now: Time, inbound: &Inbound, reason: String) {
        let Some(gateway) = inbound.signer() else { return };
        self.owe(
            now,
            ReceiptOut {
                envelope: inbound.envelope,
                gateway,
                kind: ReceiptKind::Refused,
                at: now,
                reason: Some(reason),
                level: inbound.message.min_anonymity,
                attempt: 0,
            },
        );
    }

    fn owe(&mut self, now: Time, receipt: ReceiptOut) {
        let name = (receipt.envelope, receipt.kind.as_str());
        let forget_at = later(now, REMEMBERED);
        let owed = ReceiptOwed { receipt, own_digest: None, due: now, forget_at };
        self.receipts.insert(name, owed);
    }
}
