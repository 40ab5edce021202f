//! A transport that starts later than the gateway: once it is known who the gateway is, and again
//! and again where something is in the way.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use fieldpost_envelope::{GatewayId, PeerId, ReceiptKind, SignedEnvelope, SignedRoster};
use fieldpost_transport::{
    Capabilities, FileError, FileFetch, FileSource, HeardRoster, SendError, Status, Transport,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Reachable = Arc<BTreeSet<String>>;

/// Stands for a transport from the start on; until that one runs, nobody is in reach.
pub struct LateTransport {
    name: &'static str,
    capabilities: Capabilities,
    started: watch::Sender<Option<Arc<dyn Transport>>>,
    reachable: watch::Sender<Reachable>,
    /// What the transport is to be told once it runs.
    wishes: Mutex<Wishes>,
    shut: CancellationToken,
}

#[derive(Default)]
struct Wishes {
    roster: Option<SignedRoster>,
    files: Option<Arc<dyn FileSource>>,
    warm: BTreeSet<GatewayId>,
}

impl LateTransport {
    /// A transport that has not started.
    pub fn new(name: &'static str, capabilities: Capabilities) -> Arc<Self> {
        Arc::new(Self {
            name,
            capabilities,
            started: watch::Sender::new(None),
            reachable: watch::Sender::new(Reachable::default()),
            wishes: Mutex::default(),
            shut: CancellationToken::new(),
        })
    }

    /// From now on it is `transport`, until either shuts.
    pub async fn run(&self, transport: Arc<dyn Transport>) {
        {
            let wishes = self.wishes();
            if let Some(roster) = &wishes.roster {
                transport.publish(roster, None);
            }
            if let Some(files) = &wishes.files {
                transport.serve_files(files.clone());
            }
            transport.keep_warm(&wishes.warm);
            self.started.send_replace(Some(transport.clone()));
        }
        let mut reachable = transport.reachable();
        self.shut
            .run_until_cancelled(async {
                loop {
                    let now = reachable.borrow_and_update().clone();
                    self.reachable.send_replace(now);
                    if reachable.changed().await.is_err() {
                        return;
                    }
                }
            })
            .await;
        self.reachable.send_replace(Reachable::default());
    }

    fn current(&self) -> Option<Arc<dyn Transport>> {
        self.started.borrow().clone()
    }

    /// The transport, as soon as it runs; `None` once this one is shut.
    async fn running(&self) -> Option<Arc<dyn Transport>> {
        let mut started = self.started.subscribe();
        let running = async {
            match started.wait_for(Option::is_some).await {
                Ok(transport) => transport.clone(),
                Err(_) => None,
            }
        };
        self.shut.run_until_cancelled(running).await.flatten()
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Transport for LateTransport {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        match self.current() {
            Some(transport) => transport.capabilities(),
            None => self.capabilities.clone(),
        }
    }

    fn reachable(&self) -> watch::Receiver<Reachable> {
        self.reachable.subscribe()
    }

    async fn send(&self, target: &str, envelope: SignedEnvelope) -> Result<(), SendError> {
        match self.current() {
            Some(transport) => transport.send(target, envelope).await,
            None => Err(SendError::Unreachable { target: target.to_owned() }),
        }
    }

    async fn receive(&self) -> Option<Vec<u8>> {
        self.running().await?.receive().await
    }

    async fn acknowledge(
        &self,
        phone: &str,
        peer: &PeerId,
        message_id: &str,
        kind: ReceiptKind,
    ) -> Result<(), SendError> {
        match self.current() {
            Some(transport) => transport.acknowledge(phone, peer, message_id, kind).await,
            None => Err(SendError::Unreachable { target: phone.to_owned() }),
        }
    }

    fn hops(&self, target: &str) -> Option<u8> {
        self.current()?.hops(target)
    }

    fn take_returned(&self) -> BTreeSet<String> {
        self.current().map(|transport| transport.take_returned()).unwrap_or_default()
    }

    fn evidence(&self) -> Option<&'static str> {
        self.current()?.evidence()
    }

    fn trouble(&self) -> Option<String> {
        self.current()?.trouble()
    }

    fn taken(&self, envelope: &[u8]) {
        if let Some(transport) = self.current() {
            transport.taken(envelope);
        }
    }

    fn publish(&self, roster: &SignedRoster, delta: Option<&SignedRoster>) {
        let mut wishes = self.wishes();
        wishes.roster = Some(roster.clone());
        if let Some(transport) = self.current() {
            transport.publish(roster, delta);
        }
    }

    async fn receive_roster(&self) -> Option<HeardRoster> {
        self.running().await?.receive_roster().await
    }

    fn roster_missed(&self, gateway: GatewayId) {
        if let Some(transport) = self.current() {
            transport.roster_missed(gateway);
        }
    }

    fn serve_files(&self, source: Arc<dyn FileSource>) {
        let mut wishes = self.wishes();
        if let Some(transport) = self.current() {
            transport.serve_files(source.clone());
        }
        wishes.files = Some(source);
    }

    async fn fetch_file(
        &self,
        gateway: GatewayId,
        file: &str,
        from: u64,
    ) -> Result<FileFetch, FileError> {
        match self.current() {
            Some(transport) => transport.fetch_file(gateway, file, from).await,
            None => Err(FileError::Unreachable { gateway }),
        }
    }

    fn keep_warm(&self, gateways: &BTreeSet<GatewayId>) {
        let mut wishes = self.wishes();
        wishes.warm.clone_from(gateways);
        if let Some(transport) = self.current() {
            transport.keep_warm(gateways);
        }
    }

    fn status(&self) -> Status {
        self.current().map(|transport| transport.status()).unwrap_or_default()
    }

    async fn shutdown(&self) {
        self.shut.cancel();
        if let Some(transport) = self.current() {
            transport.shutdown().await;
        }
    }
}
