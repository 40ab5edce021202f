//! What a signer does, again and again: hear descriptors, draft the next document, sign it.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context;
use ed25519_dalek::SigningKey;
use fieldpost_envelope::Timestamp;
use fieldpost_transport::htx::directory::{
    Admission, Drafter, HearError, RelayId, SignedDescriptor, SignedDocument,
};

use super::folder::Folder;

/// An unattended signer begins a network when so many relays are there …
pub const FIRST_RELAYS: usize = 3;
/// … and no further one has come for so long.
const QUIET: Duration = Duration::from_secs(2);
/// How many strangers are told of.
const TOLD: usize = 64;

/// The signers whose keys are at hand, at work on one directory.
pub struct Round {
    folder: Folder,
    keys: Vec<SigningKey>,
    drafter: Drafter,
    /// Who was told to be in need of a word of the operator.
    told: BTreeSet<RelayId>,
    /// How many descriptors are there, and since when, before there is a document.
    first: Option<(usize, Timestamp)>,
}

/// What a round came to.
#[derive(Debug)]
pub enum Outcome {
    /// A document that is whole.
    Signed(Box<SignedDocument>),
    /// One that lacks signatures.
    Proposed(Box<SignedDocument>),
    /// No descriptor is good for the document that is due.
    NoDescriptors,
}

impl Round {
    /// A round on a folder, with these keys.
    pub fn new(folder: Folder, keys: Vec<SigningKey>, admission: Admission) -> Self {
        let drafter = Drafter::new(folder.authority().clone(), admission);
        Self { folder, keys, drafter, told: BTreeSet::new(), first: None }
    }

    /// Hears what lies in the folder and what came otherwise, and returns how many nodes relay.
    pub fn hear(
        &mut self,
        now: Timestamp,
        newest: Option<&SignedDocument>,
        heard: &[SignedDescriptor],
    ) -> usize {
        let newest = newest.map(SignedDocument::document);
        for descriptor in self.folder.descriptors() {
            match descriptor {
                Ok(descriptor) => {
                    // Whoever may write here speaks for the directory's operator.
                    self.drafter.name(descriptor.id());
                    if let Err(error) = self.drafter.hear(now, newest, &descriptor) {
                        tracing::debug!(%error, "a descriptor in the folder is of no use");
                    }
                }
                Err(error) => tracing::debug!("{error:#}"),
            }
        }
        for descriptor in heard {
            match self.drafter.hear(now, newest, descriptor) {
                Err(HearError::NotAdmitted { relay }) if self.told.len() < TOLD => {
                    if self.told.insert(relay) {
                        tracing::warn!(
                            relay = %relay,
                            "a node asks to be in the directory: put its descriptor into relays/ of \
                             the directory's folder, or name it by --directory-admit"
                        );
                    }
                }
                Err(error) => tracing::debug!(%error, "a descriptor that was heard is of no use"),
                Ok(_) => {}
            }
        }
        let epoch = self.folder.authority().clock().epoch_at(now);
        let believed = self.drafter.candidates(epoch).filter_map(|one| one.verify().ok());
        believed.filter(|one| one.relays).count()
    }

    /// How many nodes could be in a document of this epoch.
    pub fn heard(&self, now: Timestamp) -> usize {
        self.drafter.candidates(self.folder.authority().clock().epoch_at(now)).count()
    }

    /// The newest document and when the next one is due, if that lies ahead.
    pub fn ahead<'a>(
        &self,
        now: Timestamp,
        newest: Option<&'a SignedDocument>,
    ) -> Option<(&'a SignedDocument, Timestamp)> {
        let newest = newest?;
        let due = self.drafter.due(now, newest.document());
        (due > now).then_some((newest, due))
    }

    /// Admits a relay by the word of the directory's operator.
    pub fn name(&mut self, relay: RelayId) {
        self.drafter.name(relay);
    }

    /// Does what is due: nothing, or as many documents as are missing.
    ///
    /// # Errors
    ///
    /// The folder cannot be used, or a document would not be accepted.
    pub fn step(
        &mut self,
        now: Timestamp,
        chain: &[SignedDocument],
        heard: &[SignedDescriptor],
    ) -> anyhow::Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        loop {
            let newest = self.newest(chain, &outcomes);
            let relays = self.hear(now, newest.as_ref(), heard);
            let is_due = match &newest {
                Some(newest) => self.drafter.due(now, newest.document()) <= now,
                None => self.may_begin(now, relays),
            };
            if !is_due {
                return Ok(outcomes);
            }
            let outcome = self.sign_next(now, newest.as_ref())?;
            let goes_on = matches!(outcome, Outcome::Signed(_));
            outcomes.push(outcome);
            if !goes_on {
                return Ok(outcomes);
            }
        }
    }

    /// Signs the document after `newest`: the one that another signer proposed, or one of our own.
    ///
    /// # Errors
    ///
    /// The folder cannot be used, or the document would not be accepted.
    pub fn sign_next(
        &mut self,
        now: Timestamp,
        newest: Option<&SignedDocument>,
    ) -> anyhow::Result<Outcome> {
        let authority = self.folder.authority();
        let number = newest.map_or(0, |newest| newest.document().number + 1);
        let mut document = match self.folder.proposal(number)? {
            Some(proposal) => proposal,
            None => match self.drafter.draft(now, newest)? {
                Some(document) => document.unsigned(),
                None => return Ok(Outcome::NoDescriptors),
            },
        };
        // A proposal of another is signed only if it will be believed.
        document
            .verify_unfinished(newest, authority)
            .with_context(|| format!("document {number} is not signed"))?;
        self.keys.iter().for_each(|key| document.sign(key));
        if document.signatures(authority).len() < authority.threshold() {
            self.folder.put_proposal(&document)?;
            return Ok(Outcome::Proposed(Box::new(document)));
        }
        self.folder.documents().keep(&document)?;
        self.folder.drop_proposal(number);
        Ok(Outcome::Signed(Box::new(document)))
    }

    /// The newest document that is believed.
    pub fn newest(&self, chain: &[SignedDocument], outcomes: &[Outcome]) -> Option<SignedDocument> {
        let authority = self.folder.authority();
        let signed = outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Signed(document) => Some(document.as_ref()),
            _ => None,
        });
        let kept = self.folder.documents().load();
        let mut all: Vec<_> = kept.iter().chain(chain).chain(signed).collect();
        all.sort_by_key(|document| document.document().number);
        // Verifying is the dear part: the newest comes first.
        all.into_iter().rev().find(|document| document.verify(authority).is_ok()).cloned()
    }

    /// Whether the network begins now: nobody is to be left out who comes a moment later.
    fn may_begin(&mut self, now: Timestamp, relays: usize) -> bool {
        let epoch = self.folder.authority().clock().epoch_at(now);
        let there = self.drafter.candidates(epoch).count();
        let since = match self.first {
            Some((count, since)) if count == there => since,
            _ => {
                self.first = Some((there, now));
                now
            }
        };
        let quiet_for = now.as_millis().saturating_sub(since.as_millis());
        relays >= FIRST_RELAYS && quiet_for >= QUIET.as_millis() as u64
    }
}
