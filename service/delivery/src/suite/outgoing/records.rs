//! What the sender, the recipients and strangers are told of a message.

use std::collections::BTreeSet;

use fieldpost_envelope::{MessageId, PeerId};
use rand::RngExt;

use super::Sent;
use crate::{
    Attempt, AttemptResult, Record, Store, Target,
    suite::{CONTRACT, LOST, Run, Violation, ensure, peers},
};

impl<S: Store> Run<'_, S> {
    pub(in crate::suite) async fn look_at_one(&mut self) -> Result<(), Violation> {
        if self.sent.is_empty() {
            return Ok(());
        }
        let index = self.rng.random_range(0..self.sent.len());
        self.look_at_records(index).await
    }

    /// What the sender, the recipients and strangers see of a message.
    pub(in crate::suite) async fn look_at_records(
        &mut self,
        index: usize,
    ) -> Result<(), Violation> {
        let id = self.sent[index].submission.message.id;
        self.note("records", || id.to_string());
        for caller in peers() {
            let records = self.store.records(self.now, &caller, id).await.map_err(self.broken())?;
            let own = self.sent.iter().find(|sent| {
                let message = &sent.submission.message;
                message.id == id && message.sender == caller.clone().into()
            });
            match own {
                Some(sent) => {
                    let [record] = &records[..] else {
                        let detail = format!("{caller} has {} records of {id}", records.len());
                        return Err(self.violation(LOST, detail));
                    };
                    self.look_at_senders_record(sent, record)?;
                }
                None => self.look_at_recipients_records(&caller, id, &records)?,
            }
        }
        Ok(())
    }

    fn look_at_senders_record(&self, sent: &Sent, record: &Record) -> Result<(), Violation> {
        let id = sent.submission.message.id;
        let is_as_sent =
            record.message == sent.submission.message && record.accepted_at == sent.accepted_at;
        ensure!(self, is_as_sent, CONTRACT, "the record of {id} is not as it was sent");
        let sorted = record.deliveries.is_sorted_by_key(|delivery| &delivery.recipient);
        ensure!(self, sorted, CONTRACT, "the deliveries of {id} are not sorted by recipient");
        let (found, owed) = (record.deliveries.len(), sent.deliveries.len());
        ensure!(self, found == owed, LOST, "{id} has {found} of {owed} deliveries");
        for owed in sent.deliveries.iter().map(|index| &self.owed[*index]) {
            let recipient = owed.target.recipient();
            let Some(delivery) =
                record.deliveries.iter().find(|delivery| delivery.recipient == recipient)
            else {
                return Err(self.violation(LOST, format!("{id} has no delivery to {recipient}")));
            };
            let (says, is) = (delivery.status, owed.status);
            let fits = owed.may_say(says, self.now);
            ensure!(self, fits, LOST, "{id} for {recipient} is said to be {says}, it is {is}");
            // What a receipt told may stand beside the attempts, with the time of the receipt.
            let is_attempt = |attempt: &&Attempt| {
                let by_receipt =
                    matches!(attempt.result, AttemptResult::Stored | AttemptResult::Refused);
                let name = (attempt.started_at, attempt.transport.clone());
                owed.attempts.contains_key(&name) || owed.envelopes.is_empty() || !by_receipt
            };
            let tried: BTreeSet<_> = delivery
                .attempts
                .iter()
                .filter(is_attempt)
                .map(|attempt| (attempt.started_at, attempt.transport.clone()))
                .collect();
            let expected: BTreeSet<_> = match owed.target {
                Target::Local(_) if !owed.failed_at_once => {
                    BTreeSet::from([(sent.accepted_at, crate::LOCAL.into())])
                }
                _ => owed.attempts.keys().cloned().collect(),
            };
            ensure!(self, tried == expected, LOST, "{id} for {recipient} was tried {tried:?}");
        }
        Ok(())
    }

    fn look_at_recipients_records(
        &self,
        caller: &PeerId,
        id: MessageId,
        records: &[Record],
    ) -> Result<(), Violation> {
        for record in records {
            let entitled = self.inboxes[caller].iter().any(|item| {
                let (shown, sender) = self.name_of(*item);
                shown == id && sender == record.message.sender
            }) || self.owed.iter().any(|owed| {
                owed.id == id
                    && owed.target == Target::Local(caller.clone())
                    && record.message.sender == owed.sender.clone().into()
            });
            ensure!(self, entitled, "nobody reads for another", "{caller} sees {id}");
            let is_discreet = record.deliveries.iter().all(|delivery| {
                delivery.attempts.is_empty() && delivery.recipient == caller.as_str()
            });
            ensure!(self, is_discreet, CONTRACT, "{caller} sees more of {id} than its own");
        }
        for item in &self.inboxes[caller] {
            let (shown, sender) = self.name_of(*item);
            let is_there = records.iter().any(|record| record.message.sender == sender);
            ensure!(self, shown != id || is_there, LOST, "{caller} has no record of {id}");
        }
        Ok(())
    }
}
