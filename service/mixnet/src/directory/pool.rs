use std::collections::BTreeMap;

use fieldpost_envelope::Timestamp;
use thiserror::Error;

use super::{
    chain::Neighbour,
    descriptor::{DescriptorError, RelayId, SignedDescriptor},
    epoch::{Epoch, EpochClock},
};

/// The newest descriptor of each node, for signers to choose from (HTX reference, section 5).
///
/// Nodes hand on what is new to them, so that a descriptor comes to every node and thus to the
/// directory's signers. Of two descriptors of a node, the one of the later epoch is newer; within an
/// epoch, the one whose certificate holds longer.
///
/// | What is kept | At most | At the limit |
/// |---|---|---|
/// | descriptors of nodes in the active document | one each, 1024 | such are never refused |
/// | descriptors of others | 256 | further ones are refused |
/// | offers of one neighbour | 512 a minute | further ones are not looked at |
/// | neighbours whose offers are counted | 1024 | they are counted anew |
pub struct Pool {
    clock: EpochClock,
    descriptors: BTreeMap<RelayId, SignedDescriptor>,
    offers: BTreeMap<Neighbour, (u64, u32)>,
}

impl Pool {
    /// The most descriptors of nodes that are not in the active document.
    pub const STRANGERS: usize = 256;

    /// A pool without descriptors.
    pub fn new(clock: EpochClock) -> Self {
        Self { clock, descriptors: BTreeMap::new(), offers: BTreeMap::new() }
    }

    /// Takes up a descriptor, from a neighbour or from elsewhere. `None` if it is not new.
    /// `is_listed` tells which nodes are in the active document.
    ///
    /// # Errors
    ///
    /// It is not believed, of another time, or there is no room.
    pub fn offer(
        &mut self,
        now: Timestamp,
        from: Option<Neighbour>,
        bytes: &[u8],
        is_listed: impl Fn(&RelayId) -> bool,
    ) -> Result<Option<&SignedDescriptor>, PoolError> {
        if let Some(from) = from {
            self.count(now, from)?;
        }
        let descriptor = SignedDescriptor::decode(bytes)?;
        let (id, said) = (descriptor.id(), descriptor.verified());
        if self.descriptors.get(&id).is_some_and(|known| rank(known) >= rank(&descriptor)) {
            return Ok(None);
        }
        let current = self.clock.epoch_at(now);
        if !(current.saturating_sub(1)..=current + 1).contains(&said.epoch) {
            return Err(PoolError::Epoch { epoch: said.epoch, now: current });
        }
        if !is_listed(&id) && !self.descriptors.contains_key(&id) {
            let strangers = self.descriptors.keys().filter(|id| !is_listed(id)).count();
            if strangers >= Self::STRANGERS {
                return Err(PoolError::Full { most: Self::STRANGERS });
            }
        }
        descriptor.verify()?;
        self.descriptors.insert(id, descriptor);
        Ok(self.descriptors.get(&id))
    }

    /// Forgets what has no key for this epoch or a later one.
    pub fn forget_old(&mut self, now: Timestamp) {
        let current = self.clock.epoch_at(now);
        self.descriptors.retain(|_, descriptor| {
            descriptor.verified().keys.last().is_some_and(|keys| keys.epoch >= current)
        });
    }

    /// The newest descriptor of a node.
    pub fn descriptor(&self, id: &RelayId) -> Option<&SignedDescriptor> {
        self.descriptors.get(id)
    }

    /// All of them, ascending by id; all have been verified.
    pub fn descriptors(&self) -> impl Iterator<Item = &SignedDescriptor> {
        self.descriptors.values()
    }

    fn count(&mut self, now: Timestamp, from: Neighbour) -> Result<(), PoolError> {
        let minute = now.as_millis() / 60_000;
        if self.offers.len() >= NEIGHBOURS && !self.offers.contains_key(&from) {
            self.offers.clear();
        }
        let (since, count) = self.offers.entry(from).or_default();
        if *since != minute {
            (*since, *count) = (minute, 0);
        }
        *count += 1;
        if *count > OFFERS { Err(PoolError::TooMany { most: OFFERS }) } else { Ok(()) }
    }
}

/// Why a descriptor is not taken up.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum PoolError {
    /// It is not believed.
    #[error("not a descriptor of its node")]
    Descriptor(#[from] DescriptorError),
    /// It is of another time.
    #[error("a descriptor made in epoch {epoch}, now it is {now}: expected one epoch off at most")]
    Epoch {
        /// When it was made.
        epoch: Epoch,
        /// The epoch of our clock.
        now: Epoch,
    },
    /// No room for nodes that no document knows.
    #[error("{most} nodes that no document knows are remembered already")]
    Full {
        /// How many there may be.
        most: usize,
    },
    /// The neighbour offers too much.
    #[error("more than {most} descriptors a minute from one neighbour")]
    TooMany {
        /// How many it may offer.
        most: u32,
    },
}

fn rank(descriptor: &SignedDescriptor) -> (Epoch, Option<Timestamp>) {
    let said = descriptor.verified();
    (said.epoch, said.certificate.map(|certificate| certificate.not_after))
}

const OFFERS: u32 = 512;
const NEIGHBOURS: usize = 1_024;
