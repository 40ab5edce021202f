//! What the gateway knows of the mixnet, and a way to hand it a finished packet: where HTTP and the
//! transport `htx` meet.

use std::sync::Arc;

use fieldpost_transport::{
    HtxFigures, HtxTransport,
    htx::{
        ForwardError,
        directory::{EpochClock, RelayId, SignedDescriptor, SignedDocument},
    },
};
use tokio::sync::watch;

use crate::config::Config;

/// A handle on this gateway's node of the mixnet; cheap to clone.
#[derive(Clone)]
pub struct Mixnet(Arc<watch::Sender<State>>);

#[derive(Clone)]
enum State {
    /// It will not run, and why.
    Off(String),
    /// It does not run yet, and why.
    Starting(String),
    Running {
        node: Arc<HtxTransport>,
        epochs: EpochClock,
    },
}

impl Mixnet {
    /// The mixnet before its node has started. A program that `brings` transports of its own may call
    /// one of them htx.
    pub fn new(config: &Config, brings: bool) -> Self {
        let state = if brings {
            State::Starting("the transports are this program's own".to_owned())
        } else if !config.transports().any(|name| name == "htx") {
            State::Off("--transports leaves out htx: no packet is relayed or sent".to_owned())
        } else if config.htx.directory.is_none() {
            State::Off(
                "no relay directory is given: start with --directory FOLDER, which `fieldpost directory \
                 init` makes"
                    .to_owned(),
            )
        } else {
            State::Starting("the node has not started yet".to_owned())
        };
        Self(Arc::new(watch::Sender::new(state)))
    }

    /// Whether it runs or will.
    pub fn is_on(&self) -> bool {
        !matches!(&*self.0.borrow(), State::Off(_))
    }

    /// Whether the operator gave what the transport of this name cannot do without.
    pub fn allows(&self, transport: &str) -> bool {
        transport != "htx" || self.is_on()
    }

    /// Why it does not run; `None` if it does.
    pub fn reason(&self) -> Option<String> {
        match &*self.0.borrow() {
            State::Off(reason) | State::Starting(reason) => Some(reason.clone()),
            State::Running { .. } => None,
        }
    }

    /// Says why it does not run yet.
    pub(crate) fn is_delayed(&self, reason: String) {
        self.0.send_replace(State::Starting(reason));
    }

    /// From now on it is this node.
    pub(crate) fn runs(&self, node: Arc<HtxTransport>, epochs: EpochClock) {
        self.0.send_replace(State::Running { node, epochs });
    }

    /// The node's figures; `None` while it does not run.
    pub fn figures(&self) -> Option<HtxFigures> {
        self.node().map(|(node, _)| node.figures())
    }

    /// The node's id; `None` while it does not run.
    pub fn id(&self) -> Option<RelayId> {
        self.node().map(|(node, _)| node.id())
    }

    /// What the node says of itself.
    pub fn descriptor(&self) -> Option<SignedDescriptor> {
        self.node().map(|(node, _)| node.descriptor().borrow().clone())
    }

    /// The document that routes are drawn from: the newest whose epoch has begun.
    pub fn active(&self) -> Option<SignedDocument> {
        let (node, _) = self.node()?;
        let current = node.figures().epoch;
        let documents = node.documents().borrow().clone();
        documents.iter().rev().find(|document| document.document().epoch <= current).cloned()
    }

    /// How long an epoch is.
    pub fn epochs(&self) -> Option<EpochClock> {
        self.node().map(|(_, epochs)| epochs)
    }

    /// Passes a finished packet on to the first relay of its route.
    ///
    /// # Errors
    ///
    /// The outer one says why no node runs, the inner one why it does not take the packet.
    pub async fn forward(
        &self,
        first: RelayId,
        packet: Vec<u8>,
    ) -> Result<Result<(), ForwardError>, String> {
        match self.node() {
            Some((node, _)) => Ok(node.forward(first, packet).await),
            None => Err(self.reason().unwrap_or_default()),
        }
    }

    fn node(&self) -> Option<(Arc<HtxTransport>, EpochClock)> {
        match &*self.0.borrow() {
            State::Running { node, epochs } => Some((node.clone(), *epochs)),
            State::Off(_) | State::Starting(_) => None,
        }
    }
}
