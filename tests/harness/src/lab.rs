//! A mixnet on this machine: some relays and two gateways as processes, and the relay directory that
//! one of the relays signs.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::{Instant, sleep};

pub use crate::process::free_port;
use crate::{
    Client, Gateway, Options,
    process::binary,
    spawn::{TemporaryFolder, command},
};

/// A command of the program, to be given its arguments.
pub fn fieldpost() -> Command {
    let mut command = command(binary());
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("FIELDPOST_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// How long the network may take to come up: its first document, links, and listed gateways.
const UP_WITHIN: Duration = Duration::from_secs(90);
const GATEWAYS: usize = 2;

/// Relays, gateways and their directory. Dropping it ends all of them.
#[derive(Debug)]
pub struct Lab {
    /// The relays; the first signs the documents.
    pub relays: Vec<Gateway>,
    /// Where each relay listens for links.
    pub fronts: Vec<u16>,
    /// The gateways, which relay for nobody.
    pub gateways: Vec<Gateway>,
    folder: TemporaryFolder,
}

impl Lab {
    /// Starts some relays and two gateways with epochs of this length, and waits until both gateways
    /// can be reached over the mixnet. In `more` arguments, `LAB` is the lab's folder.
    ///
    /// # Panics
    ///
    /// If they do not come up in time.
    pub async fn start(relays: usize, epoch: &str, more: &[&str]) -> Self {
        let folder = TemporaryFolder::new("lab");
        let network = folder.path().join("net");
        let made = fieldpost()
            .args(["directory", "init", "--epoch", epoch])
            .arg(&network)
            .output()
            .expect("the program runs");
        assert!(made.status.success(), "{made:?}");
        let options = |number: usize| {
            let cache = folder.path().join(format!("node-{number}"));
            let options = Options::shared()
                .transports("htx")
                .argument("--lab")
                .argument(format!("--directory={}", network.display()))
                .argument(format!("--data-dir={}", cache.display()));
            // What nodes write lies together.
            let here = folder.path().display().to_string();
            more.iter().fold(options, |all, one| all.argument(one.replace("LAB", &here)))
        };
        let fronts: Vec<u16> = (0..relays).map(|_| free_port()).collect();
        let relay = |number: usize| {
            let front = fronts[number];
            let options = options(number)
                .argument("--relay")
                .argument(format!("--relay-listen=127.0.0.1:{front}"));
            let key = network.join("signer-1.key");
            match number {
                0 => options.argument(format!("--directory-key={}", key.display())),
                _ => options,
            }
        };
        let all = (0..relays).map(relay).chain((relays..relays + GATEWAYS).map(&options));
        let mut relays_started = join_all(all.map(Options::start)).await;
        let gateways = relays_started.split_off(relays);
        let lab = Self { relays: relays_started, fronts, gateways, folder };
        for gateway in &lab.gateways {
            lab.wait_healthy(gateway).await;
        }
        lab
    }

    /// Where everything lies that nodes write beside their databases.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the relay directory.
    pub fn directory(&self) -> PathBuf {
        self.folder.path().join("net")
    }

    /// A peer's address as peers of other gateways write it.
    pub async fn address(client: &Client) -> String {
        let status: Value = client
            .call(client.request(reqwest::Method::GET, "/v1/status"))
            .await
            .expect("the status is shown");
        format!("{}@{}", client.peer(), status["gateway_id"].as_str().expect("an id"))
    }

    /// What a gateway says of the mixnet.
    pub async fn health(gateway: &Gateway) -> Value {
        let client = gateway.client();
        // Anybody who is registered may look.
        let viewer = client.register(&format!("viewer-{}", uuid::Uuid::new_v4())).await;
        let viewer = viewer.expect("a peer can be registered");
        let request = viewer.request(reqwest::Method::GET, "/api/betanet/health");
        viewer.call(request).await.expect("the health is shown")
    }

    async fn wait_healthy(&self, gateway: &Gateway) {
        let deadline = Instant::now() + UP_WITHIN;
        loop {
            let health = Self::health(gateway).await;
            if health["status"] == "healthy" {
                return;
            }
            assert!(Instant::now() < deadline, "{health}\n{}", gateway.log_tail());
            sleep(Duration::from_millis(200)).await;
        }
    }
}
