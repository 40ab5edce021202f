//! Postgres: the only place with SQL. One function for each thing the gateway does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
};

use chrono::{DateTime, NaiveDate, Utc};
use fieldpost_delivery::{Received, Settled};
use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio::sync::RwLock;

use crate::{
    Identity,
    clock::Clock,
    secrets::{DataKey, MasterKey},
    store::{batches::Batches, contacts::Contacts, warm::WarmConnections},
};

mod access;
mod batches;
pub mod betanet;
mod bus;
mod confirm;
mod contacts;
mod content;
mod delivery;
mod federation;
pub mod files;
pub mod group_inbound;
pub mod groups;
pub mod identity;
mod inbox;
mod messages;
mod mirrored;
pub mod mixnet;
pub mod names;
mod node_keys;
mod outbox;
mod partitions;
mod peers;
pub mod phones;
mod presence;
pub mod quota;
mod receive;
mod record;
mod remote;
pub mod remote_files;
pub mod remote_groups;
pub mod rosters;
mod rotation;
pub mod schema;
mod settle;
mod show;
mod warm;
mod words;

pub use access::{MAX_INVITES, MAX_TICKETS, NONCE_LIFETIME, Renewed, TICKET_LIFETIME, TokenHolder};
pub use bus::{Wake, Wakes};
pub use federation::{OwedReceipt, QueueDepths};
pub use groups::traffic::{FanOut, GroupTraffic};
pub use messages::{Page, conversation, may_be_known, status_of};
pub use mirrored::Traffic;
pub use node_keys::NODE_KEY_LEASE;
pub use outbox::{CLAIM_BYTES, Doubted, Waking};
pub use peers::{
    Admission, MAX_LISTED, NewPeer, Peer, PeerDefaults, PeerSettings, PeerStats, Registered,
    ShownTo,
};
pub use presence::{LEASE, Presence};
pub use quota::{Full, Origin, Quotas};
pub use remote::RemotePeer;
pub use rotation::{Rotated, RotationError};
pub use settle::Settlement;
pub use show::{LARGE_PAGE, SMALL_PAGE, SMALL_PAGE_BYTES};

/// What the gateway keeps, in Postgres.
///
/// Cheap to clone. It can exist before the database can be reached: every method then fails with
/// an error that the API answers with 503.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    warm: WarmConnections,
    clock: Clock,
    master_key: Arc<MasterKey>,
    identity: Arc<OnceLock<Identity>>,
    /// Data keys in use, by day.
    open_keys: Arc<RwLock<BTreeMap<NaiveDate, Arc<DataKey>>>>,
    /// The latest time given to a message here; the next is later.
    last_accepted: Arc<Mutex<DateTime<Utc>>>,
    contacts: Arc<Contacts>,
    /// Whether commits are announced to other replicas.
    announces: bool,
    tokens: Arc<access::Tokens>,
    known_peers: Arc<peers::KnownPeers>,
    counters: Arc<peers::Counters>,
    counted: Arc<mirrored::Counted>,
    open_sockets: Arc<presence::OpenSockets>,
    looks: Arc<Batches<show::Look, show::Seen>>,
    /// The latest time at which anybody looked into an inbox here.
    latest_look: Arc<Mutex<DateTime<Utc>>>,
    confirmations: Arc<Batches<confirm::UpTo, confirm::Taken>>,
    arrivals: Arc<Batches<receive::Arriving, Received>>,
    leaving: Arc<Batches<record::Leaving, ()>>,
    steps: Arc<Batches<record::Step, Option<Settled>>>,
    arrived: Arc<Batches<record::Arrived, ()>>,
    delivered: Arc<Batches<record::Delivered, Option<Settled>>>,
    receipts: Arc<Batches<settle::Came, settle::Settlement>>,
    receipts_sent: Arc<Batches<federation::Sent, ()>>,
}

impl Store {
    /// The same store, announcing its commits to other replicas or not.
    pub fn announcing(self, announces: bool) -> Self {
        Self { announces, ..self }
    }

    /// The same store for somebody who accepts on a runtime of his own, with connections for that:
    /// they are driven by the runtime that opened them. [`part`](Self::part) closes them.
    ///
    /// To be called on that runtime.
    pub fn apart(&self) -> Self {
        let options = self.pool.connect_options();
        let options = PgConnectOptions::clone(&options);
        // One from the start, before others have taken all that the database allows.
        let pool = schema::pool_of(1, schema::WRITER_POOL_SIZE, options);
        Self { warm: WarmConnections::new(pool), ..self.clone() }
    }

    /// Closes the connections of a store [`apart`](Self::apart).
    pub async fn part(&self) {
        self.warm.close().await;
    }

    /// What seals the secrets in it.
    pub fn master_key(&self) -> &MasterKey {
        &self.master_key
    }

    /// A store over `pool`; nothing is read yet.
    pub fn new(pool: PgPool, clock: Clock, master_key: MasterKey) -> Self {
        Self {
            warm: WarmConnections::new(pool.clone()),
            pool,
            clock,
            master_key: Arc::new(master_key),
            identity: Arc::default(),
            open_keys: Arc::default(),
            last_accepted: Arc::default(),
            contacts: Arc::default(),
            announces: false,
            tokens: Arc::default(),
            known_peers: Arc::default(),
            counters: Arc::default(),
            counted: Arc::default(),
            open_sockets: Arc::default(),
            looks: Arc::default(),
            latest_look: Arc::default(),
            confirmations: Arc::default(),
            arrivals: Arc::default(),
            leaving: Arc::default(),
            steps: Arc::default(),
            arrived: Arc::default(),
            delivered: Arc::default(),
            receipts: Arc::default(),
            receipts_sent: Arc::default(),
        }
    }
}
