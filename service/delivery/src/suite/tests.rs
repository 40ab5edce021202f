use std::{
    convert::Infallible,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use fieldpost_envelope::{AnonymityLevel, MessageId};
use uuid::Uuid;

use super::*;
use crate::{
    Accepted, AcceptedBatch, AtOnce, Attempt, Cancelled, Inbound, MemoryStore, Next, ReceiptIn,
    ReceiptOut, Received, Record, Settled, Submission,
};

#[test]
fn the_memory_store_keeps_its_word() {
    let mut total = Summary::default();
    let mut violations = Vec::new();
    for seed in 0..25 {
        match ready(run(&MemoryStore::new(), seed, 400, start())) {
            Ok(summary) => {
                for (what, count) in summary.counts {
                    *total.counts.entry(what).or_default() += count;
                }
            }
            Err(violation) => violations.push(violation),
        }
    }
    let shortest = violations.iter().min_by_key(|violation| violation.step);
    assert!(violations.is_empty(), "{} of 25: {}", violations.len(), shortest.unwrap());
    // A suite that hardly does anything would be green for anything.
    for what in [
        "same",
        "conflict",
        "shown",
        "shown at once",
        "confirmed",
        "cancelled",
        "expired",
        "claimed",
        "claimed at once",
        "forged",
        "duplicate",
        "came visible",
        "came held",
        "gap",
        "late",
        "receipt sent",
        "failed at once",
        "owed to a group elsewhere",
        "lane of a group",
    ] {
        let count = total.counts.get(what).copied().unwrap_or_default();
        assert!(count >= 20, "{what}: {count} of {total:?}");
    }
}

#[test]
fn what_comes_back_into_reach_of_the_memory_store_leaves_in_turns() {
    ready(leaves_in_turns(&MemoryStore::new(), start(), 40)).unwrap();
}

#[test]
fn the_memory_store_tells_a_gap_that_nobody_saw() {
    ready(tells_gaps_nobody_saw(&MemoryStore::new(), start())).unwrap();
}

#[test]
fn the_same_seed_does_the_same() {
    let summary = || ready(run(&MemoryStore::new(), 7, 300, start())).unwrap();
    assert_eq!(summary(), summary());
}

#[test]
fn every_planted_fault_is_caught_for_what_it_is() {
    for &(fault, rules) in FAULTS {
        let found = (0..20).find_map(|seed| {
            let store = Faulty::new(fault);
            ready(run(&store, seed, 400, start())).err()
        });
        let Some(found) = found else { panic!("{fault:?} was not caught in 20 runs") };
        assert!(rules.contains(&found.rule), "{fault:?} was taken for: {found}");
    }
}

#[test]
fn a_violation_names_its_seed_and_tells_the_steps() {
    let found = ready(run(&Faulty::new(Fault::ShowsExpired), 3, 400, start())).unwrap_err();
    let told = found.to_string();
    assert!(told.starts_with("seed 3, step "), "{told}");
    assert!(told.lines().count() > 10, "{told}");
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    LosesDeliveries,
    ShowsConfirmed,
    SwapsNeighbours,
    HoldsNothing,
    ReleasesNothing,
    HidesGaps,
    HidesLate,
    TakesRepeatsAsNew,
    OverlooksConflicts,
    BelievesAnybody,
    DropsReceipts,
    ClaimsTwice,
    ForgetsRetries,
    CancelsWhatLeft,
    ShowsExpired,
    LowersLevels,
    OwesNoReceipts,
    DoublesInbound,
    TellsEverybody,
    NamesNoPredecessor,
    ExpiresNothing,
    SkipsPositions,
    WakesTooLate,
    OwesWhatFailed,
    MixesUpRecipients,
    ShowsAtOnceOutOfTurn,
    ForgetsPredecessorsAtOnce,
    BelievesInTheUnseen,
}

const FAULTS: &[(Fault, &[&str])] = &[
    (Fault::LosesDeliveries, &[LOST, CONTRACT]),
    (Fault::BelievesInTheUnseen, &[CONTRACT]),
    (Fault::OwesWhatFailed, &[LOST, CONTRACT]),
    (Fault::ShowsConfirmed, &[ONCE, CONTRACT]),
    (Fault::SwapsNeighbours, &[ORDER, ONCE]),
    (Fault::HoldsNothing, &[ORDER]),
    (Fault::ReleasesNothing, &[LOST, CONTRACT]),
    (Fault::HidesGaps, &[ORDER]),
    (Fault::HidesLate, &[ORDER]),
    (Fault::TakesRepeatsAsNew, &[ONCE, CONTRACT]),
    (Fault::OverlooksConflicts, &[CONTRACT]),
    (Fault::BelievesAnybody, &["nobody speaks for another"]),
    (Fault::DropsReceipts, &[LOST]),
    (Fault::ClaimsTwice, &[CONTRACT]),
    (Fault::ForgetsRetries, &[LOST]),
    (Fault::CancelsWhatLeft, &[CONTRACT]),
    (Fault::ShowsExpired, &[CONTRACT]),
    (Fault::LowersLevels, &["privacy fails closed"]),
    (Fault::OwesNoReceipts, &[LOST]),
    (Fault::DoublesInbound, &[ONCE]),
    (Fault::TellsEverybody, &["nobody reads for another", CONTRACT]),
    (Fault::NamesNoPredecessor, &[ORDER]),
    (Fault::ExpiresNothing, &[LOST]),
    (Fault::SkipsPositions, &[CONTRACT]),
    (Fault::WakesTooLate, &[CONTRACT]),
    (Fault::MixesUpRecipients, &[CONTRACT]),
    (Fault::ShowsAtOnceOutOfTurn, &[CONTRACT]),
    (Fault::ForgetsPredecessorsAtOnce, &[ORDER]),
];

/// A store that does one thing wrong.
struct Faulty {
    store: MemoryStore,
    fault: Fault,
    calls: AtomicUsize,
    shown: Mutex<Vec<(PeerId, InboxEntry)>>,
    claimed: Mutex<Vec<Claim>>,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        Self {
            store: MemoryStore::new(),
            fault,
            calls: AtomicUsize::new(0),
            shown: Mutex::default(),
            claimed: Mutex::default(),
        }
    }

    /// True now and then, where the fault is this one.
    fn fails(&self, fault: Fault) -> bool {
        self.fault == fault && self.calls.fetch_add(1, Ordering::Relaxed) % 5 == 4
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }
}

impl Store for Faulty {
    type Error = Infallible;

    async fn accept_and_begin(
        &self,
        now: Time,
        batch: &[Submission],
        at_once: AtOnce<'_>,
    ) -> Result<AcceptedBatch, Infallible> {
        let mut batch = batch.to_vec();
        if self.fails(Fault::LosesDeliveries) {
            batch[0].deliveries.clear();
        }
        if self.is(Fault::OwesWhatFailed) {
            for submission in &mut batch {
                let failures = submission.failures.drain(..).map(|failure| failure.target);
                submission.deliveries.extend(failures);
            }
        }
        let AcceptedBatch { mut answers, mut shown, mut claimed } =
            self.store.accept_and_begin(now, &batch, at_once).await?;
        for (submission, answer) in batch.iter_mut().zip(&mut answers) {
            let is_same = matches!(answer, Accepted::Same { .. });
            if is_same && self.fails(Fault::TakesRepeatsAsNew) {
                submission.message.id =
                    MessageId(Uuid::from_u128(self.calls.load(Ordering::Relaxed) as u128));
                *answer = self.store.accept(now, std::slice::from_ref(submission)).await?.remove(0);
            }
            if *answer == Accepted::Conflict && self.is(Fault::OverlooksConflicts) {
                *answer = Accepted::New { accepted_at: now };
            }
        }
        if self.is(Fault::MixesUpRecipients)
            && let Some((to, _)) = shown.first_mut()
        {
            *to = at_once.present.iter().find(|peer| *peer != to).unwrap_or(to).clone();
        }
        if self.is(Fault::ShowsAtOnceOutOfTurn) {
            shown.reverse();
        }
        if self.is(Fault::ForgetsPredecessorsAtOnce) {
            claimed.iter_mut().for_each(|claim| claim.after = None);
        }
        Ok(AcceptedBatch { answers, shown, claimed })
    }

    async fn show(
        &self,
        now: Time,
        peer: &PeerId,
        after: Seq,
        limit: usize,
    ) -> Result<Vec<InboxEntry>, Infallible> {
        let at = match self.is(Fault::ShowsExpired) {
            true => now - TimeDelta::minutes(5),
            false => now,
        };
        let mut entries = self.store.show(at, peer, after, limit).await?;
        let mut shown = self.shown.lock().unwrap();
        if self.is(Fault::ShowsConfirmed) && entries.is_empty() && limit > 0 {
            let known = shown.iter().rev().find(|(of, entry)| of == peer && entry.seq > after);
            entries.extend(known.map(|(_, entry)| entry.clone()));
        }
        shown.extend(entries.iter().map(|entry| (peer.clone(), entry.clone())));
        for index in 1..entries.len() {
            let (a, b) = (entries[index - 1].clone(), entries[index].clone());
            let is_one_lane = (&a.message.sender, a.message.min_anonymity, a.message.priority)
                == (&b.message.sender, b.message.min_anonymity, b.message.priority);
            if is_one_lane && self.fails(Fault::SwapsNeighbours) {
                entries[index - 1] = InboxEntry { seq: a.seq, ..b };
                entries[index] = InboxEntry { seq: b.seq, ..a };
            }
        }
        for entry in &mut entries {
            entry.gap &= !self.is(Fault::HidesGaps);
            entry.late &= !self.is(Fault::HidesLate);
            if self.is(Fault::SkipsPositions) && entry.seq > 5 {
                entry.seq += 1;
            }
        }
        Ok(entries)
    }

    async fn confirm(
        &self,
        now: Time,
        peer: &PeerId,
        what: &Confirm,
        read: bool,
    ) -> Result<Vec<Settled>, Infallible> {
        match what {
            Confirm::UpTo { seq, .. } if self.is(Fault::BelievesInTheUnseen) => {
                self.store.confirm(now, peer, &Confirm::all_up_to(*seq), read).await
            }
            _ => self.store.confirm(now, peer, what, read).await,
        }
    }

    async fn cancel(
        &self,
        now: Time,
        sender: &PeerId,
        id: MessageId,
    ) -> Result<Cancelled, Infallible> {
        let answer = self.store.cancel(now, sender, id).await?;
        Ok(match answer {
            Cancelled::TooLate if self.is(Fault::CancelsWhatLeft) => Cancelled::Done,
            answer => answer,
        })
    }

    async fn expire_due(&self, now: Time, limit: usize) -> Result<Vec<Settled>, Infallible> {
        match self.is(Fault::ExpiresNothing) {
            true => Ok(Vec::new()),
            false => self.store.expire_due(now, limit).await,
        }
    }

    async fn claim_due(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> Result<Vec<Claim>, Infallible> {
        let mut claims = self.store.claim_due(now, lease, reachable, limit).await?;
        let mut claimed = self.claimed.lock().unwrap();
        if claims.is_empty() && self.is(Fault::ClaimsTwice) {
            claims.extend(claimed.pop());
        }
        claimed.clone_from(&claims);
        if self.is(Fault::NamesNoPredecessor) {
            for claim in &mut claims {
                claim.after = None;
            }
        }
        Ok(claims)
    }

    async fn record(
        &self,
        now: Time,
        claim: &Claim,
        attempts: &[Attempt],
        next: &Next,
    ) -> Result<Option<Settled>, Infallible> {
        let wait = Next::Wait { reason: String::new(), until: None };
        let next = match next {
            Next::Retry { .. } if self.is(Fault::ForgetsRetries) => &wait,
            next => next,
        };
        self.store.record(now, claim, attempts, next).await
    }

    async fn reached(&self, now: Time, targets: &[String]) -> Result<u64, Infallible> {
        self.store.reached(now, targets).await
    }

    async fn receive(
        &self,
        now: Time,
        inbound: &Inbound,
        order_wait: Duration,
    ) -> Result<Received, Infallible> {
        let mut inbound = inbound.clone();
        if self.is(Fault::HoldsNothing) {
            inbound.after = None;
        }
        let received = self.store.receive(now, &inbound, order_wait).await?;
        if received == Received::Duplicate && self.is(Fault::DoublesInbound) {
            inbound.message.id =
                MessageId(Uuid::from_u128(self.calls.fetch_add(1, Ordering::Relaxed) as u128));
            return self.store.receive(now, &inbound, order_wait).await;
        }
        Ok(received)
    }

    async fn release_held(&self, now: Time, limit: usize) -> Result<Vec<PeerId>, Infallible> {
        match self.is(Fault::ReleasesNothing) {
            true => Ok(Vec::new()),
            false => self.store.release_held(now, limit).await,
        }
    }

    async fn settle(&self, now: Time, receipt: &ReceiptIn) -> Result<Option<Settled>, Infallible> {
        if self.fails(Fault::DropsReceipts) {
            return Ok(None);
        }
        if self.is(Fault::BelievesAnybody) {
            for signer in gateways() {
                let forged = ReceiptIn { signer: signer.into(), ..receipt.clone() };
                if let Some(settled) = self.store.settle(now, &forged).await? {
                    return Ok(Some(settled));
                }
            }
            return Ok(None);
        }
        self.store.settle(now, receipt).await
    }

    async fn claim_receipts(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> Result<Vec<ReceiptOut>, Infallible> {
        let mut receipts = self.store.claim_receipts(now, lease, reachable, limit).await?;
        if self.is(Fault::LowersLevels) {
            for receipt in &mut receipts {
                receipt.level = AnonymityLevel::NONE;
            }
        }
        if self.is(Fault::OwesNoReceipts) {
            receipts.retain(|receipt| receipt.envelope[0] % 5 != 0);
        }
        Ok(receipts)
    }

    async fn receipt_done(
        &self,
        receipt: &ReceiptOut,
        retry_at: Option<Time>,
    ) -> Result<(), Infallible> {
        self.store.receipt_done(receipt, retry_at).await
    }

    async fn records(
        &self,
        now: Time,
        caller: &PeerId,
        id: MessageId,
    ) -> Result<Vec<Record>, Infallible> {
        let records = self.store.records(now, caller, id).await?;
        if records.is_empty() && self.is(Fault::TellsEverybody) {
            for other in peers() {
                let theirs = self.store.records(now, &other, id).await?;
                if !theirs.is_empty() {
                    return Ok(theirs);
                }
            }
        }
        Ok(records)
    }

    async fn next_due(&self) -> Result<Option<Time>, Infallible> {
        let due = self.store.next_due().await?;
        Ok(match self.is(Fault::WakesTooLate) {
            true => due.map(|due| due + TimeDelta::seconds(1)),
            false => due,
        })
    }
}

fn start() -> Time {
    Time::UNIX_EPOCH + TimeDelta::days(20_000)
}
