//! Who relays: descriptors, documents signed by the directory, epochs and their keys, routes.
//!
//! A relay signs a [`Descriptor`] of itself. The directory's signers put descriptors and weights
//! into a [`Document`] for each epoch, which a [`Drafter`] drafts; k of n sign it. Every gateway keeps the [`Chain`] of
//! documents, passes it on, and draws routes from it with a [`RouteChooser`]. A [`KeyRing`] holds
//! the secrets of a relay for the current epoch and the two that follow, and erases the old ones.
//!
//! The rules are those of the HTX reference, sections 1.5, 3.3 and 5. The weighted lottery of
//! section 3 is not here: routes are drawn uniformly.

mod cbor;
mod chain;
mod descriptor;
mod document;
mod draft;
mod epoch;
mod gossip;
mod keys;
mod node;
mod pool;
mod route;

pub use self::{
    cbor::DecodeError,
    chain::{Chain, ChainAction, ChainEvent, Neighbour},
    descriptor::{
        Certificate, Descriptor, DescriptorError, EpochKeys, RelayId, SignedDescriptor,
        limits as descriptor_limits,
    },
    document::{
        Authority, AuthorityError, BeaconSource, Document, DocumentError, SignedDocument,
        WeightedRelay, limits as document_limits,
    },
    draft::{Admission, Drafter, HearError},
    epoch::{Epoch, EpochClock, EpochError},
    gossip::GossipMessage,
    keys::{EpochSecret, KeyChange, KeyRing},
    node::NodeKeys,
    pool::{Pool, PoolError},
    route::{Route, RouteChooser, RouteError, RoutePolicy, Rule},
};
