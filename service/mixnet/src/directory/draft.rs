use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fieldpost_envelope::Timestamp;
use thiserror::Error;

use super::{
    descriptor::{Descriptor, DescriptorError, RelayId, SignedDescriptor},
    document::{Authority, Document, DocumentError, SignedDocument, WeightedRelay, limits},
    epoch::Epoch,
};

/// Who comes into documents that were in none before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admission {
    /// Those whom the operator of the directory named.
    Named,
    /// Whoever asks, for networks of one machine.
    Anybody,
}

/// What a signer of the directory does: gathers descriptors, and drafts the next document when it is
/// time (HTX reference, sections 3.2 and 5).
///
/// At the freeze of each epoch, two thirds into it, the document for the epoch after the next is drafted
/// from the newest descriptors, which have keys for it: so it is frozen before the next epoch begins,
/// as every document from the fourth on must be. Until the network has three documents, the ones that
/// are missing are drafted together.
///
/// It holds at most one descriptor of each of 1024 relays; further ones are refused. All have the same
/// weight: the reputation of the reference's section 3.3 is not kept here.
#[derive(Debug)]
pub struct Drafter {
    authority: Authority,
    admission: Admission,
    named: BTreeSet<RelayId>,
    candidates: BTreeMap<RelayId, SignedDescriptor>,
}

impl Drafter {
    /// A drafter without descriptors.
    pub fn new(authority: Authority, admission: Admission) -> Self {
        Self { authority, admission, named: BTreeSet::new(), candidates: BTreeMap::new() }
    }

    /// Admits a relay by the word of the directory's operator.
    pub fn name(&mut self, relay: RelayId) {
        if self.named.len() < limits::RELAYS {
            self.named.insert(relay);
        }
    }

    /// Takes in a descriptor; false if it says nothing new.
    ///
    /// `newest` is the newest document: who is in it is admitted.
    ///
    /// # Errors
    ///
    /// It is not believed, is of another time, or its relay is not admitted.
    pub fn hear(
        &mut self,
        now: Timestamp,
        newest: Option<&Document>,
        descriptor: &SignedDescriptor,
    ) -> Result<bool, HearError> {
        let id = descriptor.id();
        if self.candidates.get(&id) == Some(descriptor) {
            return Ok(false);
        }
        let said = descriptor.verify()?;
        let current = self.authority.clock().epoch_at(now);
        let lives = said.keys.last().is_some_and(|keys| keys.epoch >= current);
        // Clocks may differ by one epoch.
        if !lives || said.epoch > current + 1 {
            return Err(HearError::Epoch { relay: id, epoch: said.epoch, now: current });
        }
        let known = newest.is_some_and(|document| document.relay(&id).is_some());
        let admitted = match self.admission {
            Admission::Anybody => true,
            Admission::Named => known || self.named.contains(&id),
        };
        if !admitted {
            return Err(HearError::NotAdmitted { relay: id });
        }
        // A certificate that is renewed, or a restart without secrets, changes it within an epoch.
        let age = |it: &Descriptor| (it.epoch, it.certificate.map(|word| word.not_after));
        let kept = self.candidates.get(&id);
        let newer = kept.is_none_or(|kept| age(kept.verified()) <= age(said));
        if !newer {
            return Ok(false);
        }
        self.forget_dead(current);
        if self.candidates.len() >= limits::RELAYS && !self.candidates.contains_key(&id) {
            return Err(HearError::Full);
        }
        self.candidates.insert(id, descriptor.clone());
        Ok(true)
    }

    /// The descriptors that a document of this epoch could hold.
    pub fn candidates(&self, epoch: Epoch) -> impl Iterator<Item = &SignedDescriptor> {
        self.candidates.values().filter(move |one| one.verified().keys_of(epoch).is_some())
    }

    /// When the document after `newest` is to be drafted.
    pub fn due(&self, now: Timestamp, newest: &Document) -> Timestamp {
        let clock = self.authority.clock();
        let current = clock.epoch_at(now);
        if newest.epoch < current {
            // Nothing is active: each moment counts.
            return now;
        }
        // What lies two epochs ahead is drafted at the freeze of the current one.
        let epoch = if newest.epoch >= current + 2 { newest.epoch - 1 } else { current };
        later(clock.start(epoch), clock.length() * 2 / 3)
    }

    /// Drafts the document after `newest`, or the first one; `None` if no descriptor is good for it.
    ///
    /// # Errors
    ///
    /// It would not be accepted.
    pub fn draft(
        &self,
        now: Timestamp,
        newest: Option<&SignedDocument>,
    ) -> Result<Option<Document>, DocumentError> {
        let epoch = match newest {
            None => self.authority.clock().epoch_at(now),
            Some(newest) => self.next_epoch(now, newest.document()),
        };
        let relays: Vec<_> = self
            .candidates(epoch)
            .map(|descriptor| WeightedRelay::new(descriptor.clone(), limits::WEIGHT))
            .collect();
        if relays.is_empty() {
            return Ok(None);
        }
        match newest {
            None => Document::genesis(&self.authority, now, relays),
            Some(newest) => {
                let sources = Vec::new();
                Document::successor(&self.authority, newest, epoch, now, sources, relays)
            }
        }
        .map(Some)
    }

    /// The epoch of the document after `newest`, when it is drafted now.
    fn next_epoch(&self, now: Timestamp, newest: &Document) -> Epoch {
        let current = self.authority.clock().epoch_at(now);
        // The first three may be frozen in the epoch that they are for, or before.
        let earliest = if newest.number < 2 { current } else { current + 2 };
        earliest.max(newest.epoch + 1)
    }

    fn forget_dead(&mut self, current: Epoch) {
        let lives = |one: &SignedDescriptor| {
            one.verified().keys.last().is_some_and(|keys| keys.epoch >= current)
        };
        self.candidates.retain(|_, descriptor| lives(descriptor));
    }
}

/// Why a descriptor is not taken for a document.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum HearError {
    /// It is not believed.
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    /// Its keys are of another time.
    #[error(
        "the descriptor of {relay} is of epoch {epoch}, and it is {now} now: one made in this epoch is needed"
    )]
    Epoch {
        /// The relay.
        relay: RelayId,
        /// The epoch in which it was made.
        epoch: Epoch,
        /// The current one.
        now: Epoch,
    },
    /// The operator of the directory did not name the relay.
    #[error("{relay} is in no document, and the directory did not name it")]
    NotAdmitted {
        /// The relay.
        relay: RelayId,
    },
    /// A document has no room for more.
    #[error("there are {most} relays already", most = limits::RELAYS)]
    Full,
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    let millis = time.as_millis().saturating_add(by.as_millis() as u64);
    Timestamp::try_from(millis).unwrap_or(Timestamp::MAX)
}
