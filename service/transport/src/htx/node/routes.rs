//! Where packets of this node go: what the active document offers, less what is out of reach.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use fieldpost_envelope::{GatewayId, Timestamp};
use fieldpost_mixnet::{
    directory::{Document, EpochClock, EpochKeys, RelayId, RouteChooser, RoutePolicy},
    sender::Routes,
    sphinx::{Route, RouteStop},
};
use rand::seq::IteratorRandom;

use crate::htx::ForgetfulRng;

/// The routes that can be drawn now.
pub(super) struct RouteBook {
    own: RelayId,
    clock: EpochClock,
    policy: RoutePolicy,
    chooser: RouteChooser<ForgetfulRng>,
    active: Option<Arc<Document>>,
    /// The keys that we hold for the current epoch.
    held: Option<EpochKeys>,
    /// The time of what is asked next.
    pub(super) now: Timestamp,
}

impl RouteBook {
    pub(super) fn new(
        own: RelayId,
        clock: EpochClock,
        policy: RoutePolicy,
        rng: ForgetfulRng,
        now: Timestamp,
    ) -> Self {
        let chooser = RouteChooser::new(rng, clock, Some(own));
        Self { own, clock, policy, chooser, active: None, held: None, now }
    }

    /// Takes up what has changed.
    pub(super) fn refresh(
        &mut self,
        active: Option<Arc<Document>>,
        held: Option<EpochKeys>,
        suspects: BTreeSet<RelayId>,
    ) {
        (self.active, self.held) = (active, held);
        self.chooser.avoid(suspects);
    }

    /// The document that routes are drawn from.
    pub(super) fn active(&self) -> Option<&Arc<Document>> {
        self.active.as_ref()
    }

    /// Whether the document has the keys that we hold: else no answer finds back.
    pub(super) fn is_listed(&self) -> bool {
        let epoch = self.clock.epoch_at(self.now);
        let ours = self.active.as_ref().and_then(|active| active.relay(&self.own)?.keys_of(epoch));
        ours.is_some() && ours == self.held.as_ref()
    }

    /// The gateways that a message would get to now, and find an answer back.
    pub(super) fn reachable(&self, own: Option<GatewayId>) -> BTreeSet<GatewayId> {
        if !self.is_listed() || !self.leads_to(&self.own) {
            return BTreeSet::new();
        }
        let nodes = self.active.iter().flat_map(|active| active.relays());
        nodes
            .filter_map(|node| Some((node.signed().id(), node.descriptor().gateway(self.now)?)))
            .filter(|(node, gateway)| Some(*gateway) != own && self.leads_to(node))
            .map(|(_, gateway)| gateway)
            .collect()
    }

    /// A node of the gateway that a message would get to now.
    pub(super) fn node_of(&self, gateway: GatewayId, rng: &mut ForgetfulRng) -> Option<RelayId> {
        if !self.is_listed() {
            return None;
        }
        let nodes = self.active.as_ref()?.relays().iter();
        nodes
            .filter(|node| node.descriptor().gateway(self.now) == Some(gateway))
            .map(|node| node.signed().id())
            .filter(|node| self.leads_to(node))
            .choose(rng)
    }

    /// The keys to seal to: those of the epoch, or near its end those of the next, so that a message
    /// does not become unreadable on its way.
    pub(super) fn sealing_keys(&self, node: &RelayId) -> Option<EpochKeys> {
        let epoch = self.clock.epoch_at(self.now);
        let descriptor = self.active.as_ref()?.relay(node)?;
        let left = self.clock.start(epoch + 1).as_millis() - self.now.as_millis();
        let is_late = Duration::from_millis(left) < self.clock.length() / 4;
        let next = descriptor.keys_of(epoch + 1).filter(|_| is_late);
        next.or_else(|| descriptor.keys_of(epoch)).copied()
    }

    fn leads_to(&self, node: &RelayId) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| self.chooser.check(self.now, active, node, self.policy).is_ok())
    }

    fn draw(&mut self, node: RelayId) -> Option<Route> {
        let active = self.active.as_ref()?;
        let route = self.chooser.choose(self.now, active, &node, self.policy).ok()?;
        let stop = |id: RelayId| {
            let key = active.relay(&id)?.keys_of(route.epoch)?.sphinx;
            Some(RouteStop { id, key, delay: Duration::ZERO })
        };
        let stops = route.relays.iter().chain([&route.receiver]).map(|id| stop(*id));
        Route::new(route.epoch, stops.collect::<Option<_>>()?).ok()
    }
}

impl Routes for RouteBook {
    fn to(&mut self, gateway: RelayId) -> Option<Route> {
        self.draw(gateway)
    }

    fn back(&mut self) -> Option<Route> {
        if self.is_listed() { self.draw(self.own) } else { None }
    }
}
