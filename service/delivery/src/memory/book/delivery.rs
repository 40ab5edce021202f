//! One message owed to one recipient, here or elsewhere, and what happened to it.

use std::{collections::BTreeSet, sync::Arc};

use fieldpost_envelope::{Lane, LaneSeq, MessageId, MessageStatus, PeerAddress};

use super::InLane;
use crate::{
    Attempt, AttemptResult, Correspondent, DeliveryRecord, InboxEntry, Message, Seq, Settled,
    Target, Time,
};

/// The identity of promise 2: sender address, message id, recipient.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Key {
    pub(super) sender: PeerAddress,
    pub(super) id: MessageId,
    pub(super) target: Target,
}

#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) message: Arc<Message>,
    pub(super) accepted_at: Time,
    pub(super) sent_at: Time,
    pub(super) status: MessageStatus,
    pub(super) at: Time,
    pub(super) reason: Option<String>,
    /// Nothing more is owed; a broadcast over a transport ends as `sent`.
    pub(super) ended: bool,
    pub(super) attempts: Vec<Attempt>,
    pub(super) part: Part,
}

#[derive(Debug)]
pub(super) enum Part {
    Here(Here),
    Away(Away),
}

/// A delivery to a peer of this gateway.
#[derive(Debug, Default)]
pub(super) struct Here {
    pub(super) place: Place,
    pub(super) gap: bool,
    pub(super) late: bool,
    pub(super) arrival: Option<Arrival>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Place {
    /// For a predecessor, until this time.
    Held(Time),
    /// For a client, in this order.
    Waits(u64),
    Shown(Seq),
    /// It ended before it was shown.
    #[default]
    Gone,
}

/// How a message came from elsewhere.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) gateway: Option<Correspondent>,
    pub(super) envelope: [u8; 32],
    pub(super) lane: Option<(InLane, LaneSeq)>,
}

/// A delivery to elsewhere.
#[derive(Debug, Default)]
pub(super) struct Away {
    pub(super) lane: Option<(Lane, LaneSeq)>,
    /// The recipient's gateway has it.
    pub(super) stored: bool,
    /// How often it was claimed.
    pub(super) claims: u32,
    pub(super) due: Option<Time>,
    /// Claims of which nobody has said yet what came of them: something may have left.
    pub(super) open_claims: BTreeSet<u32>,
    pub(super) envelopes: Vec<[u8; 32]>,
}

impl Delivery {
    pub(super) fn new(message: &Arc<Message>, accepted_at: Time, part: Part) -> Self {
        Self {
            message: Arc::clone(message),
            accepted_at,
            sent_at: accepted_at,
            status: MessageStatus::Pending,
            at: accepted_at,
            reason: None,
            ended: false,
            attempts: Vec::new(),
            part,
        }
    }

    pub(super) fn show(&mut self, now: Time, seq: Seq) {
        (self.status, self.at) = (MessageStatus::Sent, now);
        if let Part::Here(here) = &mut self.part {
            here.place = Place::Shown(seq);
        }
    }

    pub(super) fn entry(&self, seq: Seq) -> InboxEntry {
        let (gap, late) = match &self.part {
            Part::Here(here) => (here.gap, here.late),
            Part::Away(_) => (false, false),
        };
        let message = Message::clone(&self.message);
        let (accepted_at, sent_at) = (self.accepted_at, self.sent_at);
        InboxEntry { seq, accepted_at, sent_at, message, gap, late }
    }

    pub(super) fn may_have_left(&self) -> bool {
        match &self.part {
            Part::Here(here) => matches!(here.place, Place::Shown(_)),
            Part::Away(away) => {
                self.status == MessageStatus::Sent
                    || !away.envelopes.is_empty()
                    || !away.open_claims.is_empty()
            }
        }
    }

    /// Notes attempts; one that is known by its transport and start gets its newer result.
    pub(super) fn note(&mut self, attempts: &[Attempt]) {
        for attempt in attempts {
            let known = self.attempts.iter_mut().find(|known| {
                (&known.transport, known.started_at) == (&attempt.transport, attempt.started_at)
            });
            match known {
                // A receipt has the last word.
                Some(known)
                    if matches!(known.result, AttemptResult::Stored | AttemptResult::Refused) => {}
                Some(known) => known.clone_from(attempt),
                None => self.attempts.push(attempt.clone()),
            }
        }
        self.attempts.sort_by_key(|attempt| attempt.started_at);
    }

    /// The receipt does not say which copy arrived, so the last that was still on its way gets it.
    pub(super) fn mark_last_attempt(&mut self, result: AttemptResult) {
        let open = |attempt: &&mut Attempt| attempt.result == AttemptResult::Sent;
        if let Some(attempt) = self.attempts.iter_mut().rev().find(open) {
            attempt.result = result;
        }
    }

    pub(super) fn settled(&self, key: &Key) -> Settled {
        Settled {
            id: key.id,
            sender: key.sender.clone(),
            recipient: key.target.recipient(),
            status: self.status,
            at: self.at,
            reason: self.reason.clone(),
        }
    }

    pub(super) fn record(&self, key: &Key, for_sender: bool) -> DeliveryRecord {
        let attempts = match &self.part {
            _ if !for_sender => Vec::new(),
            Part::Here(_) if self.status == MessageStatus::Failed => Vec::new(),
            Part::Here(_) => vec![Attempt {
                transport: crate::LOCAL.into(),
                started_at: self.accepted_at,
                result: AttemptResult::Stored,
                reason: None,
                hops: None,
            }],
            Part::Away(_) => self.attempts.clone(),
        };
        DeliveryRecord {
            recipient: key.target.recipient(),
            status: self.status,
            at: Some(self.at),
            reason: self.reason.clone(),
            attempts,
        }
    }
}
