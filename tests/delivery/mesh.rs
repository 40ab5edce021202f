//! What an operator is told of the direct mesh: gateways as processes, joined over loopback.

use std::{fs, net::UdpSocket, path::Path, time::Duration};

use harness::{Gateway, Options};
use serde_json::Value;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(60);
const PASSPHRASE: &str = "a long enough passphrase";

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_is_told_of_when_it_leads_nowhere_and_when_it_answers() {
    let mut there = meshed().start().await;
    let address = address(&there).await;
    // Signals are heeded from then on.
    logged(&there, r#""listening""#).await;
    assert!(there.terminate().await.success());
    let here = meshed().argument(format!("--bootstrap={address}")).start().await;
    let said = logged(&here, "a bootstrap leads nowhere").await;
    let place = address.split_once('@').expect("it names a place").1;
    assert!(said.contains(place), "{said}");
    // Same key, other port: that is what a fixed port is for, and a restart of the other side too.
    there.resume().await;
    let back = self::address(&there).await;
    assert_eq!(back.split_once('@').expect("a place").1, place, "the port is fixed");
    logged(&here, "a bootstrap that led nowhere answers").await;
    logged(&here, "a gateway is linked").await;
    there.kill();
    logged(&here, "the last link to a gateway has ended").await;
    let log = fs::read_to_string(here.log_file()).expect("there is one");
    assert_eq!(log.matches("a bootstrap leads nowhere").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_live_copies_of_a_gateway_are_noticed() {
    let one = meshed().start().await;
    let file = one.folder().join("identity.json");
    with_passphrase(&one, "export", &file);
    let bootstrap = format!("--bootstrap={}", address(&one).await);
    let mut other = meshed().argument(bootstrap).start().await;
    other.kill();
    with_passphrase(&other, "import", &file);
    other.resume().await;
    let deadline = Instant::now() + PATIENCE;
    let is_told = |gateway: &Gateway| {
        let log = fs::read_to_string(gateway.log_file()).expect("there is one");
        log.matches("a second copy of this gateway runs").count()
    };
    // Whoever hears the other first ends the link, so at least one of them knows.
    while is_told(&one) + is_told(&other) == 0 {
        assert!(Instant::now() < deadline, "nobody notices: {}", one.log_tail());
        sleep(Duration::from_millis(50)).await;
    }
    let refused = |metrics: String| {
        let line =
            metrics.lines().find(|line| line.contains(r#"links_refused_total{reason="ours"}"#));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).unwrap_or_default()
    };
    while refused(metrics(&one).await) + refused(metrics(&other).await) == 0 {
        assert!(Instant::now() < deadline, "the refusal is not among the metrics");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(is_told(&one) <= 1 && is_told(&other) <= 1, "told more than once");
}

const OFF_THE_NETWORK: &str = "--mesh-discovery=off";

/// At a fixed port, and out of sight of the gateways of other tests.
fn meshed() -> Options {
    let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let port = port.expect("a port is free").port();
    Options::shared()
        .transports("mesh")
        .argument(OFF_THE_NETWORK)
        .argument(format!("--mesh-listen=127.0.0.1:{port}"))
}

/// What a gateway says that it is reached by; of its last start.
async fn address(gateway: &Gateway) -> String {
    let line = logged(gateway, "other gateways reach this one by --bootstrap").await;
    let line: Value = serde_json::from_str(&line).expect("the log is JSON");
    line["mesh.address"].as_str().expect("an address").to_owned()
}

/// The last line of the log that holds `text`, as soon as there is one.
async fn logged(gateway: &Gateway, text: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = fs::read_to_string(gateway.log_file()).unwrap_or_default();
        if let Some(line) = log.lines().rfind(|line| line.contains(text)) {
            return line.to_owned();
        }
        assert!(Instant::now() < deadline, "{text:?} is not logged: {}", gateway.log_tail());
        sleep(Duration::from_millis(50)).await;
    }
}

async fn metrics(gateway: &Gateway) -> String {
    let answer = reqwest::get(format!("{}/metrics", gateway.admin_url())).await;
    answer.expect("it answers").text().await.expect("it is text")
}

fn with_passphrase(gateway: &Gateway, word: &str, file: &Path) {
    let mut command = gateway.command_for(&["identity", word]);
    command.arg(file).env("FIELDPOST_PASSPHRASE", PASSPHRASE);
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{output:?}");
}
