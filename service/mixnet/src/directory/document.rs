//! What the directory says of an epoch: which relays there are, with which weights (HTX reference,
//! sections 3.2 and 5).
//!
//! ```text
//! signed document = [payload, [[signer, signature], …]]       signers ascending, each once
//! signature       = Ed25519(signer, "fieldpost-htx-document-v1" || payload)
//! digest          = SHA-256(payload)
//! beacon          = SHA-256("fieldpost-htx-beacon-v1" || u64 epoch || u32 count
//!                           || for each source: u32 length || name || u32 length || value
//!                           || digest of the predecessor, or 32 zero bytes)
//! ```
//!
//! | Key of the payload | Holds |
//! |---|---|
//! | 0 | version, 1 |
//! | 1 | network, 32 bytes: the id of the authority |
//! | 2 | number, from 0 on |
//! | 3 | epoch |
//! | 4 | sources of the beacon, array of `[name, value]`, unless empty |
//! | 5 | beacon, 32 bytes |
//! | 6 | when descriptors and weights were frozen, milliseconds since 1970 |
//! | 7 | digest of the predecessor; document 0 has none |
//! | 8 | relays, array of `[signed descriptor, weight]`, ascending by relay id |
//!
//! Sources are hashed with their lengths, so that whoever moves last can retry but not choose. A
//! document without sources rests on its predecessor alone and calls its beacon weak.

use std::{collections::BTreeSet, fmt};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use fieldpost_envelope::Timestamp;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{
    cbor::{DecodeError, Reader, Writer},
    descriptor::{
        self, Descriptor, DescriptorError, MAX_EPOCH, RelayId, SignedDescriptor, decode_time,
        filled,
    },
    epoch::{Epoch, EpochClock},
};

/// What a document may hold at most.
pub mod limits {
    /// A signed document, in bytes.
    pub const SIGNED: usize = 2 << 20;
    /// Relays.
    pub const RELAYS: usize = 1_024;
    /// Signers of an authority.
    pub const SIGNERS: usize = 16;
    /// Sources of a beacon.
    pub const SOURCES: usize = 8;
    /// A source's name, in bytes.
    pub const SOURCE_NAME: usize = 64;
    /// A source's value, in bytes.
    pub const SOURCE_VALUE: usize = 128;
    /// A weight, in millionths.
    pub const WEIGHT: u32 = 1_000_000;
}

/// Whose word a network takes: k of n signers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authority {
    threshold: usize,
    signers: Vec<VerifyingKey>,
    clock: EpochClock,
}

impl Authority {
    /// The authority of these signers, of which `threshold` are needed.
    ///
    /// # Errors
    ///
    /// There are no or too many signers, one comes twice, or more are needed than there are.
    pub fn new(
        threshold: usize,
        signers: impl IntoIterator<Item = VerifyingKey>,
        clock: EpochClock,
    ) -> Result<Self, AuthorityError> {
        let mut signers: Vec<_> = signers.into_iter().take(limits::SIGNERS + 1).collect();
        signers.sort_by_key(VerifyingKey::to_bytes);
        let distinct = signers.windows(2).all(|pair| pair[0] != pair[1]);
        let count = signers.len();
        if !distinct || count > limits::SIGNERS || !(1..=count).contains(&threshold) {
            return Err(AuthorityError { threshold, count });
        }
        Ok(Self { threshold, signers, clock })
    }

    /// The network's name: a hash of signers, threshold and length of epochs.
    pub fn id(&self) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(b"fieldpost-htx-authority-v1");
        hash.update((self.threshold as u64).to_be_bytes());
        hash.update(self.clock.length().as_secs().to_be_bytes());
        self.signers.iter().for_each(|signer| hash.update(signer.as_bytes()));
        hash.finalize().into()
    }

    /// Who may sign, ascending by key.
    pub fn signers(&self) -> &[VerifyingKey] {
        &self.signers
    }

    /// How many signatures a document needs.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// The network's epochs.
    pub fn clock(&self) -> EpochClock {
        self.clock
    }
}

/// Signers that make no authority.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{threshold} of {count} signers: expected 1 to {most} distinct ones and no more than there are", most = limits::SIGNERS)]
pub struct AuthorityError {
    /// How many were to be needed.
    pub threshold: usize,
    /// How many there are.
    pub count: usize,
}

/// Something that nobody could know before, such as a round of a public beacon.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BeaconSource {
    /// What it is, such as `drand quicknet 1234`.
    pub name: String,
    /// What it said.
    pub value: Vec<u8>,
}

/// A relay in a document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WeightedRelay {
    descriptor: SignedDescriptor,
    weight: u32,
}

impl WeightedRelay {
    /// A relay with a weight, in millionths: 1 to 1 000 000.
    pub fn new(descriptor: SignedDescriptor, weight: u32) -> Self {
        Self { descriptor, weight }
    }

    /// What it says of itself. The document's verification verified this, too.
    pub fn descriptor(&self) -> &Descriptor {
        self.descriptor.verified()
    }

    /// The descriptor as it was signed.
    pub fn signed(&self) -> &SignedDescriptor {
        &self.descriptor
    }

    /// Its weight, in millionths.
    pub fn weight(&self) -> u32 {
        self.weight
    }
}

/// What the directory says of an epoch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Document {
    /// The id of the authority.
    pub network: [u8; 32],
    /// The place in the chain, from 0 on.
    pub number: u64,
    /// The epoch that it is for.
    pub epoch: Epoch,
    /// What the beacon was made of.
    pub beacon_sources: Vec<BeaconSource>,
    /// The beacon.
    pub beacon: [u8; 32],
    /// When descriptors and weights were frozen.
    pub frozen_at: Timestamp,
    /// The digest of the document before it.
    pub predecessor: Option<[u8; 32]>,
    relays: Vec<WeightedRelay>,
}

impl Document {
    /// The first document of a network, active at once: for the epoch in which it is made.
    ///
    /// # Errors
    ///
    /// A relay's descriptor is not good for this epoch, or there are too many.
    pub fn genesis(
        authority: &Authority,
        now: Timestamp,
        relays: Vec<WeightedRelay>,
    ) -> Result<Self, DocumentError> {
        let epoch = authority.clock.epoch_at(now);
        Self::assemble(authority, (0, epoch, None), now, Vec::new(), relays)
    }

    /// The document after this one.
    ///
    /// # Errors
    ///
    /// It would not be accepted: the epoch does not follow, the freeze was too late, a relay's
    /// descriptor is not good for the epoch, or there are too many.
    pub fn successor(
        authority: &Authority,
        predecessor: &SignedDocument,
        epoch: Epoch,
        frozen_at: Timestamp,
        beacon_sources: Vec<BeaconSource>,
        relays: Vec<WeightedRelay>,
    ) -> Result<Self, DocumentError> {
        let place = (predecessor.document.number + 1, epoch, Some(predecessor.digest()));
        let next = Self::assemble(authority, place, frozen_at, beacon_sources, relays)?;
        next.check_follows(predecessor)?;
        Ok(next)
    }

    /// The relays, ascending by id.
    pub fn relays(&self) -> &[WeightedRelay] {
        &self.relays
    }

    /// The descriptor of a relay.
    pub fn relay(&self, id: &RelayId) -> Option<&Descriptor> {
        let index = self.relays.binary_search_by_key(id, |relay| relay.descriptor.id()).ok()?;
        Some(self.relays[index].descriptor())
    }

    /// Whether the beacon rests on the predecessor alone.
    pub fn has_weak_beacon(&self) -> bool {
        self.beacon_sources.is_empty()
    }

    /// Whether routes through these relays can hide who writes to whom (design, section 7): at least
    /// three relays of two operators.
    pub fn hides_senders(&self) -> bool {
        let relaying = || self.relays.iter().map(WeightedRelay::descriptor).filter(|it| it.relays);
        let operators: BTreeSet<_> = relaying().map(|relay| &relay.operator).collect();
        relaying().count() >= 3 && operators.len() >= 2
    }

    /// Begins to sign: the payload, without any signature yet.
    pub fn unsigned(self) -> SignedDocument {
        let payload = self.encode();
        SignedDocument { payload, document: self, signatures: Vec::new() }
    }

    fn assemble(
        authority: &Authority,
        (number, epoch, predecessor): (u64, Epoch, Option<[u8; 32]>),
        frozen_at: Timestamp,
        beacon_sources: Vec<BeaconSource>,
        mut relays: Vec<WeightedRelay>,
    ) -> Result<Self, DocumentError> {
        relays.sort_by_key(|relay| relay.descriptor.id());
        let beacon = beacon(epoch, &beacon_sources, predecessor);
        let network = authority.id();
        let document =
            Self { network, number, epoch, beacon_sources, beacon, frozen_at, predecessor, relays };
        document.check_form()?;
        document.check_content(authority)?;
        Ok(document)
    }

    /// What can be said from the document alone, before any signature is looked at.
    fn check_form(&self) -> Result<(), DocumentError> {
        let sources = &self.beacon_sources;
        let fits = |source: &BeaconSource| {
            (1..=limits::SOURCE_NAME).contains(&source.name.len())
                && source.value.len() <= limits::SOURCE_VALUE
        };
        if sources.len() > limits::SOURCES || !sources.iter().all(fits) {
            return Err(DocumentError::Sources { count: sources.len() });
        }
        if self.relays.len() > limits::RELAYS {
            return Err(DocumentError::TooManyRelays { count: self.relays.len() });
        }
        let ids = || self.relays.iter().map(|relay| relay.descriptor.id());
        if !ids().is_sorted_by(|one, next| one < next) {
            return Err(DecodeError::Order { field: "relays" }.into());
        }
        for relay in &self.relays {
            if !(1..=limits::WEIGHT).contains(&relay.weight) {
                let (id, weight) = (relay.descriptor.id(), relay.weight);
                return Err(DocumentError::Weight { relay: id, weight });
            }
        }
        if (self.number == 0) != self.predecessor.is_none() {
            return Err(DocumentError::Genesis { number: self.number });
        }
        Ok(())
    }

    /// What needs the authority: beacon, freeze, descriptors.
    fn check_content(&self, authority: &Authority) -> Result<(), DocumentError> {
        if self.network != authority.id() {
            return Err(DocumentError::Network);
        }
        if self.beacon != beacon(self.epoch, &self.beacon_sources, self.predecessor) {
            return Err(DocumentError::Beacon);
        }
        // Frozen before the beacon could be known: at the end of the epoch before the last one. The
        // first documents of a network have no such past.
        let first_epochs = self.number <= 2;
        let epoch = if first_epochs { self.epoch + 1 } else { self.epoch.saturating_sub(1) };
        let latest = authority.clock.start(epoch);
        if self.frozen_at > latest {
            return Err(DocumentError::Frozen { frozen_at: self.frozen_at, latest });
        }
        for relay in &self.relays {
            let id = relay.descriptor.id();
            let descriptor = relay
                .descriptor
                .verify()
                .map_err(|source| DocumentError::Descriptor { relay: id, source })?;
            if descriptor.keys_of(self.epoch).is_none() {
                return Err(DocumentError::NoKeys { relay: id, epoch: self.epoch });
            }
        }
        Ok(())
    }

    fn check_follows(&self, predecessor: &SignedDocument) -> Result<(), DocumentError> {
        let last = &predecessor.document;
        if self.number != last.number + 1 {
            return Err(DocumentError::Number { number: self.number, expected: last.number + 1 });
        }
        if self.predecessor != Some(predecessor.digest()) {
            return Err(DocumentError::Predecessor { number: self.number });
        }
        if self.epoch <= last.epoch {
            return Err(DocumentError::Epoch { epoch: self.epoch, last: last.epoch });
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let (sources, predecessor) = (&self.beacon_sources, self.predecessor);
        let optional = usize::from(!sources.is_empty()) + usize::from(predecessor.is_some());
        let mut writer = Writer::new();
        writer.map(7 + optional);
        writer.key(0).uint(VERSION);
        writer.key(1).bytes(&self.network);
        writer.key(2).uint(self.number);
        writer.key(3).uint(self.epoch);
        if !sources.is_empty() {
            writer.key(4).list(sources.len());
            for source in sources {
                writer.list(2);
                writer.text(&source.name);
                writer.bytes(&source.value);
            }
        }
        writer.key(5).bytes(&self.beacon);
        writer.key(6).uint(self.frozen_at.as_millis());
        if let Some(predecessor) = &predecessor {
            writer.key(7).bytes(predecessor);
        }
        writer.key(8).list(self.relays.len());
        for relay in &self.relays {
            writer.list(2);
            writer.bytes(relay.descriptor.as_bytes());
            writer.uint(relay.weight.into());
        }
        writer.finish()
    }

    fn decode(payload: &[u8]) -> Result<Self, DocumentError> {
        let reader = &mut Reader::new(payload);
        let mut map = reader.map("document")?;
        match map.required(reader, 0, "version")?.uint("version", u64::MAX)? {
            VERSION => {}
            version => return Err(DecodeError::Version(version).into()),
        }
        let network = map.required(reader, 1, "network")?.array("network")?;
        let number = map.required(reader, 2, "number")?.uint("number", MAX_EPOCH)?;
        let epoch = map.required(reader, 3, "epoch")?.uint("epoch", MAX_EPOCH)?;
        let mut beacon_sources = Vec::new();
        if map.optional(reader, 4)? {
            for _ in 0..filled("sources", reader.list("sources", limits::SOURCES)?)? {
                reader.tuple("source", 2)?;
                beacon_sources.push(BeaconSource {
                    name: reader.text("source name", limits::SOURCE_NAME)?.to_owned(),
                    value: reader.bytes("source value", limits::SOURCE_VALUE)?.to_vec(),
                });
            }
        }
        let beacon = map.required(reader, 5, "beacon")?.array("beacon")?;
        let frozen_at = decode_time(map.required(reader, 6, "frozen at")?, "frozen at")?;
        let predecessor =
            if map.optional(reader, 7)? { Some(reader.array("predecessor")?) } else { None };
        let count = map.required(reader, 8, "relays")?.list("relays", limits::RELAYS)?;
        let mut relays = Vec::new();
        for _ in 0..count {
            reader.tuple("relay", 2)?;
            let descriptor = reader.bytes("descriptor", descriptor::limits::SIGNED)?;
            let descriptor = SignedDescriptor::decode(descriptor)
                .map_err(|source| DocumentError::Undecodable { index: relays.len(), source })?;
            let weight = reader.uint("weight", limits::WEIGHT.into())? as u32;
            relays.push(WeightedRelay { descriptor, weight });
        }
        map.finish(reader)?;
        let (position, length) = (reader.position(), payload.len());
        if position < length {
            return Err(DecodeError::Trailing { extra: length - position }.into());
        }
        let document =
            Self { network, number, epoch, beacon_sources, beacon, frozen_at, predecessor, relays };
        document.check_form()?;
        Ok(document)
    }
}

/// A document with the signatures that it has so far.
///
/// What it says is believed after [`verify`](Self::verify) alone.
#[derive(Clone, Eq, PartialEq)]
pub struct SignedDocument {
    payload: Vec<u8>,
    document: Document,
    signatures: Vec<(VerifyingKey, [u8; 64])>,
}

impl SignedDocument {
    /// Reads bytes that came from somebody. No signature is looked at yet.
    ///
    /// What decodes encodes to the same bytes again.
    ///
    /// # Errors
    ///
    /// Says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() > limits::SIGNED {
            let (length, most) = (bytes.len(), limits::SIGNED);
            return Err(DecodeError::Oversize { length, most }.into());
        }
        let mut reader = Reader::new(bytes);
        reader.tuple("signed document", 2)?;
        let payload = reader.bytes("document", limits::SIGNED)?;
        let mut signatures = Vec::new();
        for _ in 0..reader.list("signatures", limits::SIGNERS)? {
            reader.tuple("signature", 2)?;
            let signer = VerifyingKey::from_bytes(&reader.array("signer")?)
                .map_err(|_| DecodeError::Invalid { field: "signer" })?;
            signatures.push((signer, reader.array("signature")?));
        }
        reader.finish()?;
        let bytes_of = |(signer, _): &(VerifyingKey, [u8; 64])| signer.to_bytes();
        if !signatures.is_sorted_by(|one, next| bytes_of(one) < bytes_of(next)) {
            return Err(DecodeError::Order { field: "signatures" }.into());
        }
        let document = Document::decode(payload)?;
        debug_assert_eq!(document.encode(), payload, "a document has one encoding");
        Ok(Self { payload: payload.to_vec(), document, signatures })
    }

    /// The bytes to send.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.list(2);
        writer.bytes(&self.payload);
        writer.list(self.signatures.len());
        for (signer, signature) in &self.signatures {
            writer.list(2);
            writer.bytes(signer.as_bytes());
            writer.bytes(signature);
        }
        writer.finish()
    }

    /// What the document is called by. The signatures are left out: two copies may have different
    /// ones.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.payload).into()
    }

    /// What it says, believed or not.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Who signed, and whether it is so: a signature of a signer of `authority` over these bytes.
    pub fn signatures(&self, authority: &Authority) -> Vec<(VerifyingKey, bool)> {
        let text = signed_text(&self.payload);
        let is_good = |(signer, signature): &(VerifyingKey, [u8; 64])| {
            authority.signers.contains(signer)
                && signer.verify_strict(&text, &Signature::from_bytes(signature)).is_ok()
        };
        self.signatures.iter().map(|one| (one.0, is_good(one))).collect()
    }

    /// Adds the signature of one signer, in place of an earlier one.
    pub fn sign(&mut self, signer: &SigningKey) {
        let signature = signer.sign(&signed_text(&self.payload)).to_bytes();
        self.add((signer.verifying_key(), signature));
    }

    /// Adds the signatures of another copy of the same document.
    ///
    /// # Errors
    ///
    /// It is another document.
    pub fn merge(&mut self, copy: &Self) -> Result<(), DocumentError> {
        if self.payload != copy.payload {
            return Err(DocumentError::Another { number: copy.document.number });
        }
        copy.signatures.iter().for_each(|signature| self.add(*signature));
        Ok(())
    }

    /// Verifies everything that does not depend on other documents: k signatures, the beacon, the
    /// time of the freeze, and each descriptor.
    ///
    /// # Errors
    ///
    /// Says which rule is broken.
    pub fn verify(&self, authority: &Authority) -> Result<&Document, DocumentError> {
        self.check_signatures(authority)?;
        let (count, needed) = (self.signatures.len(), authority.threshold);
        if count < needed {
            return Err(DocumentError::TooFewSignatures { count, needed });
        }
        self.document.check_content(authority)?;
        Ok(&self.document)
    }

    /// Verifies all but the number of signatures: whether a signer may add its own. Document 0 follows
    /// none.
    ///
    /// # Errors
    ///
    /// Says which rule is broken.
    pub fn verify_unfinished(
        &self,
        predecessor: Option<&Self>,
        authority: &Authority,
    ) -> Result<&Document, DocumentError> {
        self.check_signatures(authority)?;
        match predecessor {
            Some(predecessor) => self.document.check_follows(predecessor)?,
            None if self.document.number > 0 => {
                let number = self.document.number;
                return Err(DocumentError::Number { number, expected: 0 });
            }
            None => {}
        }
        self.document.check_content(authority)?;
        Ok(&self.document)
    }

    /// Verifies all of it as the one that comes after `predecessor`.
    ///
    /// # Errors
    ///
    /// Says which rule is broken.
    pub fn verify_after(
        &self,
        predecessor: &Self,
        authority: &Authority,
    ) -> Result<&Document, DocumentError> {
        self.document.check_follows(predecessor)?;
        self.verify(authority)
    }

    /// Each signature is one of a signer.
    fn check_signatures(&self, authority: &Authority) -> Result<(), DocumentError> {
        for (signer, is_good) in self.signatures(authority) {
            let signer_key = signer.to_bytes();
            if !authority.signers.contains(&signer) {
                return Err(DocumentError::UnknownSigner { signer: signer_key });
            }
            if !is_good {
                return Err(DocumentError::Signature { signer: signer_key });
            }
        }
        Ok(())
    }

    fn add(&mut self, (signer, signature): (VerifyingKey, [u8; 64])) {
        let place =
            self.signatures.binary_search_by_key(&signer.to_bytes(), |(other, _)| other.to_bytes());
        match place {
            Ok(index) => self.signatures[index] = (signer, signature),
            Err(index) => self.signatures.insert(index, (signer, signature)),
        }
    }
}

impl fmt::Debug for SignedDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedDocument")
            .field("number", &self.document.number)
            .field("epoch", &self.document.epoch)
            .field("relays", &self.document.relays.len())
            .field("signatures", &self.signatures.len())
            .finish_non_exhaustive()
    }
}

/// Why something is not a document, or not believed.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum DocumentError {
    /// The bytes are not what they should be.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A descriptor in it does not decode.
    #[error("descriptor {index} does not decode")]
    Undecodable {
        /// Which, counted from 0.
        index: usize,
        /// What is wrong with it.
        source: DescriptorError,
    },
    /// The sources of the beacon.
    #[error("{count} sources of the beacon, or one of them, are out of bounds")]
    Sources {
        /// How many there are.
        count: usize,
    },
    /// Too many relays.
    #[error("{count} relays: expected at most {most}", most = limits::RELAYS)]
    TooManyRelays {
        /// How many there are.
        count: usize,
    },
    /// A weight out of its range.
    #[error("weight {weight} of {relay}: expected 1 to {most}", most = limits::WEIGHT)]
    Weight {
        /// The relay.
        relay: RelayId,
        /// Its weight.
        weight: u32,
    },
    /// Document 0 alone has no predecessor.
    #[error("document {number} has a predecessor if and only if it is not the first")]
    Genesis {
        /// Its number.
        number: u64,
    },
    /// It is of another network.
    #[error("the document is of another network")]
    Network,
    /// Somebody signed who is not asked.
    #[error("{} is not a signer of this network", data_encoding::HEXLOWER.encode(signer))]
    UnknownSigner {
        /// Who.
        signer: [u8; 32],
    },
    /// A signature is not the signer's.
    #[error("the signature is not one of {} for these bytes", data_encoding::HEXLOWER.encode(signer))]
    Signature {
        /// Who.
        signer: [u8; 32],
    },
    /// Not enough signatures.
    #[error("{count} signatures: expected at least {needed}")]
    TooFewSignatures {
        /// How many there are.
        count: usize,
        /// How many there must be.
        needed: usize,
    },
    /// The beacon is not the hash of its sources.
    #[error("the beacon does not come from its sources")]
    Beacon,
    /// Descriptors and weights were frozen when the beacon could be known.
    #[error("frozen at {}: expected {} at the latest", frozen_at.as_millis(), latest.as_millis())]
    Frozen {
        /// When they were frozen.
        frozen_at: Timestamp,
        /// When they had to be.
        latest: Timestamp,
    },
    /// A descriptor is not believed.
    #[error("the descriptor of {relay} is not believed")]
    Descriptor {
        /// The relay.
        relay: RelayId,
        /// Why not.
        source: DescriptorError,
    },
    /// A relay without keys for the document's epoch.
    #[error("{relay} has no keys for epoch {epoch}")]
    NoKeys {
        /// The relay.
        relay: RelayId,
        /// The epoch.
        epoch: Epoch,
    },
    /// It is not the next one.
    #[error("document {number}: expected {expected}")]
    Number {
        /// Its number.
        number: u64,
        /// The number that comes next.
        expected: u64,
    },
    /// It follows another document than the one we have.
    #[error("document {number} follows another predecessor")]
    Predecessor {
        /// Its number.
        number: u64,
    },
    /// Its epoch does not come after its predecessor's.
    #[error("epoch {epoch} does not come after {last}")]
    Epoch {
        /// Its epoch.
        epoch: Epoch,
        /// Its predecessor's.
        last: Epoch,
    },
    /// It is for an epoch that is too far away.
    #[error("epoch {epoch} is too early: it is {now} now")]
    TooEarly {
        /// Its epoch.
        epoch: Epoch,
        /// The current one.
        now: Epoch,
    },
    /// A copy that is none.
    #[error("document {number} is another one")]
    Another {
        /// Its number.
        number: u64,
    },
}

fn beacon(epoch: Epoch, sources: &[BeaconSource], predecessor: Option<[u8; 32]>) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(BEACON_CONTEXT);
    hash.update(epoch.to_be_bytes());
    hash.update((sources.len() as u32).to_be_bytes());
    for source in sources {
        for part in [source.name.as_bytes(), &source.value] {
            hash.update((part.len() as u32).to_be_bytes());
            hash.update(part);
        }
    }
    hash.update(predecessor.unwrap_or_default());
    hash.finalize().into()
}

fn signed_text(payload: &[u8]) -> Vec<u8> {
    [DOCUMENT_CONTEXT, payload].concat()
}

const VERSION: u64 = 1;
const DOCUMENT_CONTEXT: &[u8] = b"fieldpost-htx-document-v1";
const BEACON_CONTEXT: &[u8] = b"fieldpost-htx-beacon-v1";
