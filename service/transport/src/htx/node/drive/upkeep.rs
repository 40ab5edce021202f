//! What is done in the course of time: keys and epochs, descriptors, documents, links, figures.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::{
    directory::{
        ChainAction, ChainEvent, Descriptor, DescriptorError, Document, EpochClock, KeyChange,
        Neighbour, RelayId, SignedDescriptor,
    },
    htx::{Capabilities, PublicKey},
    wire::Message,
};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::Node;
use crate::htx::node::{HtxError, HtxFigures, link::LinkNumber};

impl Node {
    /// Erases keys that are over, makes those that are missing, and opens epochs.
    pub(super) fn advance(&mut self, now: Instant, time: Timestamp) -> Result<(), HtxError> {
        // Whatever the relay has to erase is erased before the place of the epoch is taken.
        self.relay_wakes(now);
        for change in self.ring.advance(time) {
            match change {
                KeyChange::Erased(epoch) => {
                    self.relay.close_epoch(epoch);
                    self.receiver.close_epoch(epoch);
                    self.restored.remove(&epoch);
                    self.opened.remove(&epoch);
                    self.secrets.erase(epoch);
                }
                KeyChange::Made(epoch) => {
                    let secret = self.ring.secrets().find(|(other, _)| *other == epoch);
                    if let Some((_, secret)) = secret {
                        self.secrets.keep(epoch, secret, &mut self.rng)?;
                    }
                }
            }
        }
        self.open_epochs(now, time);
        let current = self.epochs.epoch_at(time);
        if self.described_epoch != Some(current) {
            self.pool.forget_old(time);
            self.describe(time)?;
            self.described_epoch = Some(current);
        }
        Ok(())
    }

    /// Opens the current epoch, the one before within its grace, and the next one as soon as it has
    /// a place: the clocks of others may be ahead.
    fn open_epochs(&mut self, now: Instant, time: Timestamp) {
        let current = self.epochs.epoch_at(time);
        let most = most_tags(self.description.capacity, self.epochs);
        for (epoch, secret) in self.ring.secrets() {
            let in_the_way = epoch.checked_sub(2).is_some_and(|other| self.relay.is_open(other));
            if epoch > current + 1 || in_the_way || self.opened.contains(&epoch) {
                continue;
            }
            let cache = match self.restored.remove(&epoch) {
                Some(cache) => Some(cache),
                None => self.secrets.new_cache(epoch, most),
            };
            let Some(cache) = cache else { continue };
            let left = self.epochs.erased_at(epoch).as_millis().saturating_sub(time.as_millis());
            let closes_at = now + Duration::from_millis(left);
            let opened = self.relay.open_epoch(secret.sphinx.as_bytes(), cache, closes_at);
            if let Err(error) = opened {
                tracing::error!(epoch, %error, "an epoch is not opened");
            }
            self.opened.insert(epoch);
        }
        // Content is sealed to the keys of an epoch before it begins.
        let held: Vec<_> = self.ring.secrets().map(|(epoch, _)| epoch).collect();
        for (epoch, secret) in self.ring.secrets() {
            if !self.sealing.contains(&epoch) {
                self.receiver.open_epoch(epoch, secret.sealing.clone());
            }
        }
        self.sealing = held.into_iter().collect();
    }

    /// Signs a descriptor of this time and tells it to all neighbours.
    fn describe(&mut self, time: Timestamp) -> Result<(), DescriptorError> {
        let keys = self.ring.published(time);
        // Keys that were withdrawn leave a gap: what is described is what comes after it.
        let Some(first) = keys.first() else { return Ok(()) };
        let description = &self.description;
        let is_reachable = !description.addresses.is_empty();
        let descriptor = Descriptor {
            identity: self.keys.identity().verifying_key(),
            epoch: first.epoch,
            operator: description.operator.clone(),
            autonomous_system: description.autonomous_system,
            country: description.country,
            addresses: description.addresses.clone(),
            server_name: if is_reachable { description.server_name.clone() } else { String::new() },
            through: self.through(time),
            keys,
            noise: *self.keys.noise().public(),
            ticket: self.keys.ticket_key(),
            carriers: self.keys.carriers().clone(),
            vrf: self.keys.vrf(),
            capacity: description.capacity,
            relays: description.relays,
            capabilities: Capabilities::default(),
            certificate: self.certificate,
        };
        let signed = descriptor.sign(self.keys.identity())?;
        let message = Bytes::from(Message::Descriptor(signed.as_bytes().to_vec()).encode());
        self.links.tell_all(None, &message);
        if let Err(error) = self.pool.offer(time, None, signed.as_bytes(), |_| true) {
            tracing::error!(%error, "the node's own descriptor is not taken up");
        }
        match &self.descriptor {
            Some(descriptor) => drop(descriptor.send_replace(signed)),
            None => self.descriptor = Some(watch::Sender::new(signed)),
        }
        self.publish_descriptors();
        Ok(())
    }

    /// As [`describe`](Self::describe), for a change in the middle of an epoch.
    pub(super) fn describe_anew(&mut self, time: Timestamp) {
        if let Err(error) = self.describe(time) {
            tracing::error!(%error, "the node cannot describe itself");
        }
    }

    /// The relays that we keep links to if nobody can dial us.
    fn through(&self, time: Timestamp) -> Vec<RelayId> {
        if !self.description.addresses.is_empty() || !self.description.through.is_empty() {
            return self.description.through.clone();
        }
        let Some(active) = self.chain.active(time) else { return Vec::new() };
        let own = self.keys.id();
        let relays = active.relays().iter().map(|relay| relay.descriptor());
        let mut relays: Vec<_> = relays.filter(|relay| relay.relays).map(Descriptor::id).collect();
        relays.retain(|relay| *relay != own);
        in_own_order(own, &mut relays);
        relays.truncate(THROUGH);
        relays
    }

    /// Tells a new neighbour who we are and of whom we have heard.
    pub(super) fn greet(&mut self, link: LinkNumber) {
        let own = self.descriptor.as_ref().map(|descriptor| descriptor.borrow().clone());
        let (id, peer) = (self.keys.id(), self.links.peer(link));
        let others =
            self.pool.descriptors().filter(|other| other.id() != id && Some(other.id()) != peer);
        let bytes: Vec<_> =
            own.iter().chain(others).map(|signed| signed.as_bytes().to_vec()).collect();
        for bytes in bytes {
            self.links.tell(link, Message::Descriptor(bytes).encode().into());
        }
    }

    /// Takes up a descriptor that is new, and tells it on.
    pub(super) fn meet(&mut self, time: Timestamp, from: Option<LinkNumber>, bytes: &[u8]) {
        let active = self.routes.active().cloned();
        let is_listed =
            |id: &RelayId| active.as_ref().is_some_and(|active| active.relay(id).is_some());
        match self.pool.offer(time, from.map(Neighbour), bytes, is_listed) {
            Ok(None) => {}
            Ok(Some(descriptor)) => {
                let message = Message::Descriptor(descriptor.as_bytes().to_vec()).encode().into();
                self.links.tell_all(from, &message);
                self.publish_descriptors();
            }
            Err(error) => tracing::debug!(link = from, %error, "a descriptor is not taken up"),
        }
    }

    /// Whose descriptor this is, if it is good and for this Noise key.
    pub(super) fn named(&self, bytes: &[u8], noise: &PublicKey) -> Option<RelayId> {
        let signed = SignedDescriptor::decode(bytes).ok()?;
        let descriptor = signed.verify().ok()?;
        (descriptor.noise == *noise).then(|| descriptor.id())
    }

    /// Hands the chain an event and does what it says.
    pub(super) fn learn(&mut self, time: Timestamp, event: ChainEvent<'_>) {
        let actions: Vec<_> = self.chain.handle(time, event).collect();
        let mut has_news = false;
        for action in actions {
            match action {
                ChainAction::Send { to: Neighbour(link), message } => {
                    self.links.tell(link, Message::Gossip(message.encode()).encode().into());
                }
                ChainAction::Adopted { number, epoch, .. } => {
                    tracing::info!(number, epoch, "a document of the directory is taken up");
                    has_news = true;
                }
                ChainAction::Refused { from, error } => {
                    let link = from.map(|Neighbour(link)| link);
                    tracing::debug!(link, %error, "a document is refused");
                }
                ChainAction::Forked { with: Neighbour(link), number } => tracing::warn!(
                    link,
                    number,
                    "a neighbour has another document under this number: ask the signers"
                ),
                ChainAction::Behind { next, newest } => tracing::warn!(
                    next,
                    newest,
                    "documents were missed that nobody keeps any more: begin from one you trust"
                ),
            }
        }
        if has_news {
            self.publish_documents();
            let now = super::now();
            self.refresh(now, time);
            // Who has no address of its own learns whom to be reached through.
            if self.description.addresses.is_empty() && self.description.through.is_empty() {
                self.describe_anew(time);
            }
        }
    }

    /// Works out anew what can be reached and which links are wanted.
    pub(super) fn refresh(&mut self, now: Instant, time: Timestamp) {
        let current = self.epochs.epoch_at(time);
        let is_same = |active: &Document| {
            self.routes
                .active()
                .is_some_and(|known| (known.number, known.beacon) == (active.number, active.beacon))
        };
        let active = match self.chain.active(time) {
            Some(active) if is_same(active) => self.routes.active().cloned(),
            active => active.cloned().map(Arc::new),
        };
        let held = self.ring.published(time).into_iter().find(|keys| keys.epoch == current);
        self.routes.now = time;
        self.routes.refresh(active, held, self.links.suspects());
        let own = self.certificate.map(|certificate| certificate.gateway);
        let reachable = self.routes.reachable(own);
        let reachable: BTreeSet<_> = reachable.iter().map(ToString::to_string).collect();
        self.outlets.reachable.send_if_modified(|known| {
            let is_new = **known != reachable;
            if is_new {
                *known = Arc::new(reachable);
            }
            is_new
        });
        let wanted = self.wanted_links(time);
        self.links.keep(now, wanted);
    }

    /// Links to a few relays carry the gossip; more are made as packets need them.
    fn wanted_links(&self, time: Timestamp) -> BTreeSet<RelayId> {
        let own = self.keys.id();
        let mut wanted: BTreeSet<_> = match self.description.addresses.is_empty() {
            true => self.through(time).into_iter().collect(),
            false => BTreeSet::new(),
        };
        if let Some(active) = self.routes.active() {
            let is_relay = |relay: &Descriptor| relay.relays && !relay.addresses.is_empty();
            let relays = active.relays().iter().filter(|relay| is_relay(relay.descriptor()));
            let mut relays: Vec<_> =
                relays.map(|relay| relay.signed().id()).filter(|relay| *relay != own).collect();
            in_own_order(own, &mut relays);
            wanted.extend(relays.into_iter().take(GOSSIPED));
        }
        wanted
    }

    /// Publishes the figures.
    pub(super) fn show(&mut self, time: Timestamp) {
        let relay = self.relay.counts();
        let active = self.routes.active();
        let nodes = || active.iter().flat_map(|active| active.relays()).map(|it| it.descriptor());
        let gateways: BTreeSet<_> = nodes().filter_map(|node| node.gateway(time)).collect();
        let figures = HtxFigures {
            epoch: self.epochs.epoch_at(time),
            document: self.chain.newest().map(|newest| newest.document().number),
            relays: nodes().filter(|node| node.relays).count(),
            gateways: gateways.len(),
            is_listed: self.routes.is_listed(),
            hides_senders: active.is_some_and(|active| active.hides_senders()),
            links: self.links.len(),
            packets_forwarded: relay.forwarded,
            packets_delivered: relay.delivered,
            packets_sent: self.sender.counts().sent,
            packets_refused: relay.no_epoch + relay.refused + relay.replayed + relay.unserved,
            packets_replayed: relay.replayed,
            packets_dropped: self.figures.packets_dropped + relay.cache_full + relay.overflowed,
            packets_held: self.relay.held(),
            round_trips: Arc::new(self.links.round_trips()),
            ..self.figures.clone()
        };
        self.outlets.figures.send_replace(figures);
    }

    pub(super) fn publish_documents(&self) {
        let documents = self.chain.documents().cloned().collect();
        self.outlets.documents.send_replace(Arc::new(documents));
    }

    fn publish_descriptors(&self) {
        let descriptors = self.pool.descriptors().cloned().collect();
        self.outlets.descriptors.send_replace(Arc::new(descriptors));
    }
}

/// Sorts relays into an order that differs from node to node and stays.
fn in_own_order(own: RelayId, relays: &mut [RelayId]) {
    relays.sort_by_cached_key(|relay| -> [u8; 32] {
        Sha256::new().chain_update(own.as_bytes()).chain_update(relay.as_bytes()).finalize().into()
    });
}

/// How many packets of an epoch a relay remembers: twice what it wants to relay.
pub(super) fn most_tags(capacity: u32, epochs: EpochClock) -> usize {
    let packets = u64::from(capacity) * epochs.length().as_secs() * 2;
    usize::try_from(packets).unwrap_or(MOST_TAGS).clamp(LEAST_TAGS, MOST_TAGS)
}

const LEAST_TAGS: usize = 1 << 16;
/// At most 17 bytes each: 272 MB.
const MOST_TAGS: usize = 16 << 20;
const THROUGH: usize = 3;
const GOSSIPED: usize = 3;
