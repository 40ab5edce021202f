//! What every part of the running gateway shares.

use std::{ops::Deref, sync::Arc, time::Instant};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::GatewayId;
use fieldpost_transport::Transport;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    accept::Acceptor,
    allowances::Allowances,
    clock::Clock,
    config::Config,
    connectivity::Connectivity,
    http::{given::Pages, limits::Limits},
    mixnet::Mixnet,
    outbox::{Awaited, Errands, Learned, Openings},
    readiness::Readiness,
    rosters::Rosters,
    store::{Quotas, Store},
    subscribers::Subscribers,
    telemetry::traces::Traces,
};

/// A handle on the running gateway; cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Shared>);

/// What the handle leads to.
pub struct Shared {
    /// The operator's settings.
    pub config: Config,
    /// The database's time.
    pub clock: Clock,
    /// Everything that lasts.
    pub store: Store,
    /// Takes messages in, many to a commit.
    pub acceptor: Acceptor,
    /// Who waits for messages, receipts and presence on this replica.
    pub subscribers: Subscribers,
    /// What was given to clients that ask for their inbox.
    pub pages: Pages,
    /// How much callers may ask.
    pub limits: Limits,
    /// How much may wait for one recipient.
    pub quotas: Quotas,
    /// Told when something new is owed elsewhere.
    pub wake_outbox: Arc<Notify>,
    /// Told when a file is to be fetched from another gateway.
    pub wake_files: Arc<Notify>,
    /// Told when somebody may have come on the air, or gone off it.
    pub wake_air: Arc<Notify>,
    /// Who waits for receipts.
    pub awaited: Awaited,
    /// Receipts that the outbox sends at once.
    pub errands: Errands,
    /// For which targets what is accepted may leave at once.
    pub openings: Openings,
    /// The ways to other gateways.
    pub transports: Vec<Arc<dyn Transport>>,
    /// This gateway's node of the mixnet.
    pub mixnet: Mixnet,
    /// How these did lately.
    pub learned: Learned,
    /// Whether a way to the internet is there.
    pub connectivity: watch::Receiver<Connectivity>,
    /// Who is at other gateways, and which of these are trusted.
    pub rosters: Rosters,
    /// How much each of these may send.
    pub allowances: Allowances,
    /// Which trace a message belongs to.
    pub traces: Traces,
    /// This process among the replicas of the deployment.
    pub replica: Uuid,
    /// The machine and the address of the API: where no two processes run at once.
    pub place: String,
    /// When this process began its work.
    pub started_at: Instant,
    /// Whether the gateway can do its work now.
    pub readiness: Readiness,
    /// Cancelled when the gateway begins to drain.
    pub draining: CancellationToken,
    /// Cancelled when what is still open after the drain is given up.
    pub cut_off: CancellationToken,
}

/// Who the deployment is: its id and the key that proves it.
#[derive(Clone)]
pub struct Identity {
    /// The public half.
    pub gateway_id: GatewayId,
    /// Signs envelopes and receipts.
    pub signing_key: SigningKey,
    /// Part of every inbox cursor.
    pub epoch: Uuid,
}

impl Gateway {
    /// Puts the parts together.
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl Deref for Gateway {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}
