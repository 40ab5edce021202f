//! Gateways inside this process, each on a database of its own, joined by `memory` networks.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fieldpost_envelope::GatewayId;
use fieldpost_gateway::{
    config::Config,
    run::{self, Connect, Running},
};
use fieldpost_transport::{MemoryNetwork, MemoryOptions, MemoryTransport, Transport};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::client::{Client, DeliveryRecord, InboxMessage, PATIENCE, Record};

/// Between two looks at something that is to change.
const LOOK: Duration = Duration::from_millis(20);

/// A gateway that can be stopped and started again on the same data.
pub struct Node {
    id: GatewayId,
    running: Option<Running>,
    database_url: String,
    master_key: String,
    options: Vec<String>,
    networks: Vec<(MemoryNetwork, MemoryOptions)>,
    transports: Vec<Arc<MemoryTransport>>,
}

impl Node {
    /// Starts a gateway on a fresh database, with one transport for each network.
    ///
    /// `options` are those of `fieldpost serve`.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn start(
        database_url: String,
        networks: &[(&MemoryNetwork, MemoryOptions)],
        options: &[&str],
    ) -> Self {
        let halves = [Uuid::new_v4(), Uuid::new_v4()].map(|half| half.simple().to_string());
        let defaults = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--drain=1s"];
        let mut all: Vec<String> = defaults.map(str::to_owned).to_vec();
        all.extend(options.iter().map(|option| (*option).to_owned()));
        let mut node = Self {
            id: GatewayId::from_bytes([0; 32]),
            running: None,
            database_url,
            master_key: halves.concat(),
            options: all,
            networks: networks
                .iter()
                .map(|(network, options)| ((*network).clone(), options.clone()))
                .collect(),
            transports: Vec::new(),
        };
        node.resume().await;
        node
    }

    /// Starts another replica of it, on networks of its own: one network takes a gateway once.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn replica(&self, networks: &[(&MemoryNetwork, MemoryOptions)]) -> Self {
        let mut replica = Self {
            id: self.id,
            running: None,
            database_url: self.database_url.clone(),
            master_key: self.master_key.clone(),
            options: self.options.clone(),
            networks: networks
                .iter()
                .map(|(network, options)| ((*network).clone(), options.clone()))
                .collect(),
            transports: Vec::new(),
        };
        replica.resume().await;
        replica
    }

    /// Starts it again on the same data, at another port.
    ///
    /// # Panics
    ///
    /// If it runs, or does not start.
    pub async fn resume(&mut self) {
        assert!(self.running.is_none(), "the gateway runs");
        // Another test of this process may have chosen already; it chose the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = Config::from_options(&self.options).expect("the options are right");
        config.database.database_url = Some(self.database_url.clone().into());
        config.database.master_key = Some(self.master_key.clone().into());
        let joined = Arc::new(Mutex::new((self.id, Vec::new())));
        let connect: Connect = {
            let (joined, networks) = (joined.clone(), self.networks.clone());
            Box::new(move |id| {
                let ends: Vec<_> = networks
                    .into_iter()
                    .map(|(network, options)| network.join(id, options))
                    .collect();
                *joined.lock().unwrap_or_else(PoisonError::into_inner) = (id, ends.clone());
                ends.into_iter().map(|end| end as Arc<dyn Transport>).collect()
            })
        };
        let running = run::start(config, Some(connect)).await.expect("the gateway starts");
        self.running = Some(running);
        let mut joined = joined.lock().unwrap_or_else(PoisonError::into_inner);
        self.id = joined.0;
        self.transports = std::mem::take(&mut joined.1);
    }

    /// Stops it; to the others it goes dark.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub async fn stop(&mut self) {
        self.transports.clear();
        self.running.take().expect("the gateway runs").stop().await;
    }

    /// Cuts it off in the middle of whatever it does, as far as that goes within one process: its
    /// work is dropped where it stands, and nothing is put in order. Its port stays taken.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn crash(&mut self) {
        self.transports.clear();
        drop(self.running.take().expect("the gateway runs"));
    }

    /// Its name among gateways.
    pub fn id(&self) -> GatewayId {
        self.id
    }

    /// A peer of it, as others write it.
    pub fn address(&self, peer: &str) -> String {
        format!("{peer}@{}", self.id)
    }

    /// Its end of a network, in the order in which they were given.
    pub fn transport(&self, number: usize) -> &MemoryTransport {
        &self.transports[number]
    }

    /// Where its API is.
    ///
    /// # Panics
    ///
    /// If the gateway does not run.
    pub fn listens_on(&self) -> SocketAddr {
        self.running.as_ref().expect("the gateway runs").addresses().0
    }

    /// A client without a name.
    ///
    /// # Panics
    ///
    /// If the gateway does not run.
    pub fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.listens_on()), false)
    }

    /// Its database, for tests that change what the gateway itself never would.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// One of its metrics, summed over all labels that hold `labels`; of all gateways in this
    /// process, so tell them apart by the names of their transports.
    ///
    /// # Panics
    ///
    /// If the gateway does not run.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let running = self.running.as_ref().expect("the gateway runs");
        let admin = Client::new(&format!("http://{}", running.addresses().1), false);
        let answer = admin.request(reqwest::Method::GET, "/metrics").send().await;
        let text = answer.expect("the admin listener answers").text().await.expect("with text");
        text.lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("} "))
            .filter(|(found, _)| labels.split(',').all(|label| found.contains(label)))
            .map(|(_, value)| value.parse::<f64>().expect("a value is a number"))
            .sum()
    }

    /// Registers a peer and returns its client.
    ///
    /// # Panics
    ///
    /// If the gateway refuses.
    pub async fn register(&self, peer: &str) -> Client {
        self.client().register(peer).await.expect("the peer can be registered")
    }

    /// The same peer's client after a restart, which moved the port.
    pub fn client_of(&self, before: &Client) -> Client {
        self.client().calling_as(before.peer(), before.token().map(str::to_owned))
    }
}

/// How long messages may take, over ways that lose a third of what they are given.
const TAKEN_WITHIN: Duration = Duration::from_secs(120);

/// Takes and confirms messages until so many have come.
///
/// # Panics
///
/// If they do not come in time.
pub async fn take(client: &Client, count: usize) -> Vec<InboxMessage> {
    let deadline = Instant::now() + TAKEN_WITHIN;
    let mut taken = Vec::new();
    while taken.len() < count {
        let page = client.poll(None, 1).await.expect("the inbox can be read");
        if let Some(last) = page.messages.last() {
            client.confirm_up_to(last.seq).await.expect("what was shown can be confirmed");
        }
        taken.extend(page.messages);
        assert!(Instant::now() < deadline, "{} of {count} messages came in time", taken.len());
    }
    taken
}

/// Waits until the gateway's word on a message satisfies `is_there`, and returns it.
///
/// # Panics
///
/// If it never does.
pub async fn record_when(
    client: &Client,
    message: Uuid,
    is_there: impl Fn(&Record) -> bool,
) -> Record {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let record = client.record(message).await.expect("a sender may ask");
        if is_there(&record) {
            return record;
        }
        assert!(Instant::now() < deadline, "it never came to that: {record:?}");
        sleep(LOOK).await;
    }
}

/// As [`record_when`], for a message's status.
///
/// # Panics
///
/// As there.
pub async fn record_with_status(client: &Client, message: Uuid, status: &str) -> Record {
    record_when(client, message, |record| record.status == status).await
}

/// What was tried, as `transport result`.
pub fn attempts(delivery: &DeliveryRecord) -> Vec<String> {
    delivery
        .attempts
        .iter()
        .map(|attempt| format!("{} {}", attempt.transport, attempt.result))
        .collect()
}
