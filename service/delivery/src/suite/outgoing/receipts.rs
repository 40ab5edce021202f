//! Receipts come for what has left: late, twice, forged and out of order.

use fieldpost_envelope::{GatewayId, MessageStatus, ReceiptKind};
use rand::RngExt;

use crate::{
    ReceiptIn, Store, Target,
    suite::{CONTRACT, LOST, Run, Violation, ensure, gateways},
};

impl<S: Store> Run<'_, S> {
    pub(in crate::suite) async fn settle(&mut self) -> Result<(), Violation> {
        let left: Vec<_> =
            (0..self.owed.len()).filter(|&index| !self.owed[index].envelopes.is_empty()).collect();
        let kind = ReceiptKind::ALL[self.rng.random_range(0..ReceiptKind::ALL.len())];
        if left.is_empty() || self.chance(5) {
            let unknown = self.rng.random();
            let receipt = self.a_receipt(unknown, gateways()[0], kind);
            let settled = self.store.settle(self.now, &receipt).await.map_err(self.broken())?;
            ensure!(self, settled.is_none(), CONTRACT, "settled an unknown envelope: {settled:?}");
            return Ok(());
        }
        let oldest = left.len().saturating_sub(20);
        let index = left[self.rng.random_range(oldest..left.len())];
        let envelopes = &self.owed[index].envelopes;
        let envelope = envelopes[self.rng.random_range(0..envelopes.len())];
        let gateway = self.owed[index].gateway();
        let signer = match gateway {
            Some(gateway) if self.chance(75) => gateway,
            _ => GatewayId::from_bytes([9; 32]),
        };
        let receipt = self.a_receipt(envelope, signer, kind);
        self.settle_this(index, &receipt).await
    }

    pub(in crate::suite) fn a_receipt(
        &self,
        envelope: [u8; 32],
        signer: GatewayId,
        kind: ReceiptKind,
    ) -> ReceiptIn {
        let reason = (kind == ReceiptKind::Refused).then(|| "inbox full".into());
        ReceiptIn { envelope, signer: signer.into(), kind, at: self.now, reason }
    }

    pub(in crate::suite) async fn settle_this(
        &mut self,
        index: usize,
        receipt: &ReceiptIn,
    ) -> Result<(), Violation> {
        use MessageStatus::{Delivered, Expired, Failed, Pending, Read, Sent};

        let kind = receipt.kind;
        let is_forged = self.owed[index].gateway().map(Into::into) != Some(receipt.signer);
        let id = self.owed[index].id;
        self.note("receipt", || format!("{kind} for {id}, forged: {is_forged}"));
        let settled = self.store.settle(self.now, receipt).await.map_err(self.broken())?;
        if is_forged {
            self.summary.count("forged");
            let detail = "believed a forged receipt";
            ensure!(self, settled.is_none(), "nobody speaks for another", "{detail}: {settled:?}");
            return Ok(());
        }
        let owed = &mut self.owed[index];
        let is_owed = matches!(owed.status, Pending | Sent) && !owed.ended;
        let is_open = is_owed && !owed.stored;
        // A group's home may refuse what it has kept.
        let may_be_refused = is_open || is_owed && matches!(owed.target, Target::Group { .. });
        let reached = match (kind, owed.status) {
            (ReceiptKind::Delivered, Pending | Sent | Expired | Failed) => Some(Delivered),
            (ReceiptKind::Read, Pending | Sent | Expired | Failed | Delivered) => Some(Read),
            (ReceiptKind::Refused, _) if may_be_refused => Some(Failed),
            _ => None,
        };
        if let Some(status) = reached {
            owed.end(status);
            owed.stored |= status != Failed;
        } else if kind == ReceiptKind::Stored && is_open {
            owed.stored = true;
            (owed.status, owed.or_status) = (Sent, None);
            (owed.due, owed.may_be_due) = (None, None);
        }
        let fits = match (reached, &settled) {
            (Some(status), Some(one)) => one.status == status && one.id == id,
            (Some(_), None) => false,
            (None, Some(one)) => kind == ReceiptKind::Stored && one.status == Sent && is_open,
            (None, None) => true,
        };
        ensure!(self, fits, LOST, "after a receipt {id} is to be {reached:?}: {settled:?}");
        let again = self.store.settle(self.now, receipt).await.map_err(self.broken())?;
        ensure!(self, again.is_none(), CONTRACT, "a repeated receipt changed {again:?}");
        Ok(())
    }
}
