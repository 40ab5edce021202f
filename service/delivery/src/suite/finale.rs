//! The end of a run: everything that can still arrive does, the rest runs out, and each delivery
//! has to be accounted for.

use std::time::Duration;

use chrono::TimeDelta;
use fieldpost_envelope::{MessageStatus, ReceiptKind};
use rand::RngExt;

use super::{LOST, NO_LIMIT, Run, Violation, ensure, gateways, outgoing::reachable_names, peers};
use crate::{Attempt, AttemptResult, Confirm, Next, Store, Target};

impl<S: Store> Run<'_, S> {
    pub(super) async fn finale(&mut self) -> Result<(), Violation> {
        for _ in 0..ROUNDS {
            self.now += TimeDelta::seconds(31);
            self.deliver_all().await?;
        }
        // Longer than any order wait of the suite.
        self.now += TimeDelta::seconds(121);
        self.release_up_to(NO_LIMIT).await?;
        for peer in peers() {
            self.show_to(&peer, 0, NO_LIMIT).await?;
            let last = self.inboxes[&peer].len() as i64;
            self.confirm_these(&peer, Confirm::all_up_to(last), false).await?;
            self.show_to(&peer, 0, NO_LIMIT).await?;
        }
        self.hand_out_receipts().await?;
        for index in 0..self.sent.len() {
            self.look_at_records(index).await?;
        }
        self.now += TimeDelta::days(3);
        self.expire_up_to(NO_LIMIT).await?;
        for index in 0..self.sent.len() {
            self.look_at_records(index).await?;
        }
        let open = self.owed.iter().find(|owed| !owed.ended);
        if let Some(owed) = open {
            let detail = format!("{} for {:?} is still {}", owed.id, owed.target, owed.status);
            return Err(self.violation(LOST, detail));
        }
        Ok(())
    }

    /// Carries everything that is owed elsewhere, and lets most of it be confirmed there.
    async fn deliver_all(&mut self) -> Result<(), Violation> {
        let names = reachable_names();
        self.reached_now(&names).await?;
        let first = self.claims.len();
        self.claim_from(&names, NO_LIMIT, Duration::from_secs(20)).await?;
        for claim in self.claims.split_off(first) {
            let transport = "memory".to_owned();
            let attempt = Attempt {
                transport,
                started_at: self.now,
                result: AttemptResult::Sent,
                reason: None,
                hops: None,
            };
            let next = match claim.target {
                Target::Broadcast(_) => Next::End { status: MessageStatus::Sent, reason: None },
                _ => Next::Sent {
                    envelope: self.rng.random(),
                    retry_at: self.now + TimeDelta::seconds(10),
                },
            };
            self.record_this(&claim, &[attempt], &next).await?;
        }
        for index in 0..self.owed.len() {
            let owed = &self.owed[index];
            let Some(envelope) = owed.envelopes.last() else { continue };
            if let (Some(gateway), false, true) =
                (owed.gateway(), owed.ended, self.rng.random_range(0..100) < 70)
            {
                let receipt = self.a_receipt(*envelope, gateway, ReceiptKind::Delivered);
                self.settle_this(index, &receipt).await?;
            }
        }
        Ok(())
    }

    async fn hand_out_receipts(&mut self) -> Result<(), Violation> {
        self.now += TimeDelta::seconds(31);
        let names: Vec<_> = gateways().iter().map(ToString::to_string).collect();
        let lease = Duration::from_secs(20);
        let receipts = self.claim_receipts_from(&names, NO_LIMIT, lease).await?;
        let unmet = self.unmet_needs();
        ensure!(self, unmet.is_none(), LOST, "receipts {unmet:?}");
        for receipt in receipts {
            self.store.receipt_done(&receipt, None).await.map_err(self.broken())?;
        }
        self.now += TimeDelta::seconds(31);
        let again = self
            .store
            .claim_receipts(self.now, lease, &names, NO_LIMIT)
            .await
            .map_err(self.broken())?;
        ensure!(self, again.is_empty(), super::CONTRACT, "receipts come back: {again:?}");
        Ok(())
    }
}

/// Enough for a phone's lane, which moves one message a round, to show that it moves.
const ROUNDS: usize = 3;
