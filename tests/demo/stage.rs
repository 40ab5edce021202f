//! Where the story takes place: relays, an air, and three gateways, each a process of the program.

use std::{
    fs,
    io::{BufRead, BufReader},
    iter,
    path::Path,
    process::{Child, Stdio},
};

use futures_util::future::join_all;
use harness::{Client, Gateway, Options, Postgres, TemporaryFolder, lab};
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{LOOK, PATIENCE, internet::Internet};

/// Long, so that no epoch ends in the middle of the story in most of its tellings.
pub(crate) const EPOCH: &str = "10m";
/// After how long a silent transport is given up for another one.
pub(crate) const FAILOVER_TIMEOUT: &str = "3s";
/// How far a radio reaches, and where the three are: A and B are out of each other's reach.
pub(crate) const SCENARIO: &str = r#"{"seed": 9, "range_m": 30, "stations": {
    "a": {"path": [{"x": 0, "y": 0}]},
    "c": {"path": [{"x": 20, "y": 0}]},
    "b": {"path": [{"x": 40, "y": 0}]}
}}"#;
const RELAYS: usize = 3;

/// Everybody. Dropping it ends all of them.
pub(crate) struct Stage {
    pub(crate) internet: Internet,
    pub(crate) relays: Vec<(Gateway, Client)>,
    pub(crate) a: Gateway,
    pub(crate) b: Gateway,
    pub(crate) c: Gateway,
    _air: Air,
    _postgres: Postgres,
    _folder: TemporaryFolder,
}

impl Stage {
    /// Starts everybody; they do not know each other yet.
    pub(crate) async fn set() -> Self {
        let postgres = Postgres::start().await;
        let folder = TemporaryFolder::new("demo");
        let air = Air::open(&folder);
        let directory = folder.path().join("net");
        let made = lab::fieldpost()
            .args(["directory", "init", "--epoch", EPOCH])
            .arg(&directory)
            .output()
            .expect("the program runs");
        assert!(made.status.success(), "{made:?}");

        let internet = Internet::new();
        let on_mixnet = async |name: &str, options: Options| {
            let port = lab::free_port();
            let way = internet.way_to(port).await.expect("a port is free");
            // The keys of an epoch outlive a crash only in a folder.
            let secrets = folder.path().join(format!("{name}.secrets"));
            options
                .argument("--lab")
                .argument(format!("--directory={}", directory.display()))
                .argument(format!("--secrets-dir={}", secrets.display()))
                .argument(format!("--relay-listen=127.0.0.1:{port}"))
                .argument(format!("--relay-advertise=127.0.0.1:{way}"))
        };
        let station = |name: &str| format!("--ble-radio=air:{}#{name}", air.address);
        let relay = async |number: usize| {
            let name = format!("relay_{number}");
            // What it caches lies beside a database of its own, and here there is none.
            let cache = folder.path().join(&name);
            let relay = Options::on(postgres.create_database(&name))
                .transports("htx")
                .argument("--relay")
                .argument("--drain=1s")
                .argument(format!("--data-dir={}", cache.display()));
            on_mixnet(&name, relay).await
        };
        let mut all = Vec::new();
        for name in ["a", "b"] {
            let gateway = on_mixnet(name, gateway("ble,htx")).await;
            all.push(gateway.argument(station(name)));
        }
        all.push(gateway("ble").argument(station("c")));
        for number in 2..=RELAYS {
            all.push(relay(number).await);
        }
        let mut started = join_all(all.into_iter().map(Options::start)).await.into_iter();
        let mut next = || started.next().expect("all have started");
        let (a, b, c) = (next(), next(), next());
        // The one that signs comes when the others are there, so that its first document has them.
        described(&directory, 2 + RELAYS - 1).await;
        let key = directory.join("signer-1.key");
        let signer = relay(1).await.argument(format!("--directory-key={}", key.display()));
        let mut relays = Vec::new();
        for relay in iter::once(signer.start().await).chain(started) {
            let viewer = relay.register("viewer").await;
            relays.push((relay, viewer));
        }
        let (_air, _postgres, _folder) = (air, postgres, folder);
        Self { internet, relays, a, b, c, _air, _postgres, _folder }
    }

    /// Ends the three gateways in order, while the relays still run.
    pub(crate) async fn end(mut self) {
        join_all([&mut self.a, &mut self.b, &mut self.c].map(Gateway::terminate)).await;
    }

    /// How many packets of the mixnet each relay has passed on.
    pub(crate) async fn packets(&self) -> Vec<u64> {
        let mut packets = Vec::new();
        for (_, viewer) in &self.relays {
            let status = get(viewer, "/api/betanet/status").await;
            packets.push(status["network"]["packetsProcessed"].as_u64().unwrap_or(0));
        }
        packets
    }

    /// How many packets of the mesh C has passed on, once it has: it counts now and then.
    pub(crate) async fn relayed_by_c(&self) -> u64 {
        let admin = Client::new(&self.c.admin_url(), false);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = admin.request(Method::GET, "/metrics").send().await;
            let text = answer.expect("C shows its metrics").text().await.expect("they are text");
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix("fieldpost_ble_relayed_total "));
            let count = value.and_then(|count| count.parse().ok()).unwrap_or(0);
            if count > 0 {
                return count;
            }
            assert!(Instant::now() < deadline, "C has passed on nothing");
            sleep(LOOK).await;
        }
    }

    /// How many since `before`, once each has passed on some: a route leads over all of them. They
    /// count now and then.
    pub(crate) async fn packets_after(&self, before: &[u64]) -> Vec<u64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let after = self.packets().await;
            let passed: Vec<u64> = after.iter().zip(before).map(|(now, then)| now - then).collect();
            if passed.iter().all(|packets| *packets > 0) {
                return passed;
            }
            assert!(Instant::now() < deadline, "a relay has passed on nothing: {passed:?}");
            sleep(LOOK).await;
        }
    }
}

/// Waits until so many nodes of the mixnet have said what they are.
async fn described(directory: &Path, nodes: usize) {
    let deadline = Instant::now() + PATIENCE;
    let count = || fs::read_dir(directory.join("relays")).into_iter().flatten().count();
    while count() < nodes {
        assert!(Instant::now() < deadline, "{} of {nodes} nodes of the mixnet run", count());
        sleep(LOOK).await;
    }
}

/// A gateway with a database of its own, as it starts by itself.
fn gateway(transports: &str) -> Options {
    Options::embedded()
        .transports(transports)
        .argument(format!("--failover-timeout={FAILOVER_TIMEOUT}"))
        .argument("--drain=1s")
}

/// How a message would travel now, once `is_so`.
pub(crate) async fn route_when(
    client: &Client,
    to: &str,
    level: u8,
    is_so: impl Fn(&Value) -> bool,
) -> Value {
    let path = format!("/v1/routes?to={to}&min_anonymity={level}");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let route = get(client, &path).await;
        if is_so(&route) {
            return route;
        }
        assert!(Instant::now() < deadline, "the way to {to} never comes to that: {route}");
        sleep(LOOK).await;
    }
}

/// The transports of a plan, in order, each with the reason for its place.
pub(crate) fn transports(of: &Value) -> Vec<(String, String)> {
    let word = |place: &Value, name: &str| place[name].as_str().unwrap_or_default().to_owned();
    let places = of.as_array().into_iter().flatten();
    places.map(|place| (word(place, "transport"), word(place, "reason"))).collect()
}

pub(crate) async fn get(client: &Client, path: &str) -> Value {
    client.call(client.request(Method::GET, path)).await.expect("it is shown")
}

/// `fieldpost air`, until it is dropped.
struct Air {
    process: Child,
    address: String,
}

impl Air {
    fn open(folder: &TemporaryFolder) -> Self {
        let scenario = folder.path().join("scenario.json");
        fs::write(&scenario, SCENARIO).expect("the scenario can be written");
        let mut process = lab::fieldpost()
            .arg("air")
            .arg(format!("--scenario={}", scenario.display()))
            .arg(format!("--listen=unix:{}", folder.path().join("air").display()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the air can be started");
        let mut said = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut address = String::new();
        said.read_line(&mut address).expect("the air says where it is");
        Self { process, address: address.trim().to_owned() }
    }
}

impl Drop for Air {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
