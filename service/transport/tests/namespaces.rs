//! Two endpoints in two network namespaces that only a cable joins: no routes beyond it, no
//! configuration, no internet.
//!
//! It needs root and `ip`, and says so where they are missing.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]
#![expect(
    clippy::print_stderr,
    reason = "why a test is skipped, and what it measured, is for its reader"
)]

use std::{collections::BTreeSet, fs::File, process::Command, sync::Arc, thread, time::Duration};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Certificate, Content, Envelope, GatewayId, MessageId, NodePurpose, PeerAddress,
    Priority, Roster, SignedCertificate, SignedEnvelope, Timestamp,
};
use fieldpost_transport::{MeshOptions, MeshTransport, Transport};
use nix::sched::{CloneFlags, setns};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

#[test]
fn gateways_on_one_cable_find_each_other_and_again_when_it_returns() {
    let Some(cable) = Cable::lay() else { return };
    // `RUST_LOG=iroh=debug,fieldpost_transport=debug` tells what happens in between.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let (alpha, bravo) =
        (Machine::start(&cable.namespaces[0], 1), Machine::start(&cable.namespaces[1], 2));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let begin = Instant::now();
        let nodes = [alpha.transport().await, bravo.transport().await];
        let (one, other) = (id(1).to_string(), id(2).to_string());
        reaches(&nodes[0], &other, Duration::from_secs(5)).await;
        reaches(&nodes[1], &one, Duration::from_secs(5)).await;
        eprintln!("found each other after {:?}", begin.elapsed());
        for (seed, node) in [(1, &nodes[0]), (2, &nodes[1])] {
            node.publish(&roster(seed), None);
        }
        for node in &nodes {
            let mut heard =
                timeout(Duration::from_secs(5), node.receive_roster()).await.unwrap().unwrap();
            while !heard.is_nearby {
                heard =
                    timeout(Duration::from_secs(5), node.receive_roster()).await.unwrap().unwrap();
            }
        }
        eprintln!("heard each other's rosters after {:?}", begin.elapsed());
        carry(&nodes, 1024 * 1024).await;
        let rounds = std::env::var("FIELDPOST_CABLE_ROUNDS")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(2);
        let away = std::env::var("FIELDPOST_CABLE_AWAY")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(6);
        for round in 0..rounds {
            cable.pull();
            let begin = Instant::now();
            loses(&nodes[0], &other).await;
            loses(&nodes[1], &one).await;
            let noticed = begin.elapsed();
            sleep(Duration::from_secs(away).saturating_sub(noticed)).await;
            cable.plug();
            let begin = Instant::now();
            reaches(&nodes[0], &other, Duration::from_secs(10)).await;
            reaches(&nodes[1], &one, Duration::from_secs(10)).await;
            let linked = begin.elapsed();
            carry(&nodes, 64).await;
            let took = begin.elapsed();
            carry(&nodes, 1024 * 1024).await;
            eprintln!(
                "round {round}: noticed after {noticed:?}, linked after {linked:?}, envelopes after \
                 {took:?}, 1 MiB both ways after {:?}",
                begin.elapsed()
            );
            assert!(noticed < Duration::from_millis(3500), "noticed after {noticed:?}");
            assert!(took < Duration::from_secs(2), "envelopes again after {took:?}");
        }
        for node in nodes {
            node.shutdown().await;
        }
    });
}

/// An endpoint on a thread of its own, in a namespace.
struct Machine {
    transport: watch::Receiver<Option<Arc<MeshTransport>>>,
}

impl Machine {
    fn start(namespace: &str, seed: u8) -> Self {
        let (put, transport) = watch::channel(None);
        let namespace = format!("/run/netns/{namespace}");
        thread::spawn(move || {
            setns(File::open(namespace).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            // One thread, since only this one is in the namespace.
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let options = MeshOptions { discovers: true, ..MeshOptions::default() };
                let clock = Arc::new(|| Timestamp::try_from(NOW).unwrap());
                let node =
                    MeshTransport::start(options, [seed | 0x80; 32], certificate(seed), clock);
                put.send_replace(Some(node.await.unwrap()));
                put.closed().await;
            });
        });
        Self { transport }
    }

    async fn transport(&self) -> Arc<MeshTransport> {
        let mut transport = self.transport.clone();
        let started = transport.wait_for(Option::is_some).await.unwrap();
        started.clone().unwrap()
    }
}

/// A pair of virtual interfaces between two namespaces.
struct Cable {
    namespaces: [String; 2],
}

impl Cable {
    fn lay() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: network namespaces need root");
            return None;
        }
        let number = std::process::id();
        let namespaces = ["a", "b"].map(|end| format!("fieldpost-{number}-{end}"));
        let cable = Self { namespaces };
        let [a, b] = &cable.namespaces;
        if !ip(&["netns", "add", a]) || !ip(&["netns", "add", b]) {
            eprintln!("skipped: `ip netns add` does not work here");
            return None;
        }
        let laid = ip(&[
            "-n", a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b,
        ]) && ip(&["-n", a, "addr", "add", "10.77.0.1/24", "dev", "cable"])
            && ip(&["-n", b, "addr", "add", "10.77.0.2/24", "dev", "cable"]);
        if !laid {
            eprintln!("skipped: virtual interfaces cannot be made here");
            return None;
        }
        for namespace in [a, b] {
            assert!(ip(&["-n", namespace, "link", "set", "lo", "up"]));
            assert!(ip(&["-n", namespace, "link", "set", "cable", "up"]));
        }
        Some(cable)
    }

    fn pull(&self) {
        assert!(ip(&["-n", &self.namespaces[0], "link", "set", "cable", "down"]));
    }

    fn plug(&self) {
        assert!(ip(&["-n", &self.namespaces[0], "link", "set", "cable", "up"]));
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            ip(&["netns", "del", namespace]);
        }
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).output().is_ok_and(|output| output.status.success())
}

/// An envelope both ways.
async fn carry(nodes: &[Arc<MeshTransport>; 2], size: usize) {
    for (from, to) in [(1, 2), (2, 1)] {
        let (sender, receiver) = (&nodes[from as usize - 1], &nodes[to as usize - 1]);
        let envelope = envelope(from, to, size);
        sender.send(&id(to).to_string(), envelope.clone()).await.unwrap();
        let came = timeout(Duration::from_secs(5), receiver.receive()).await.unwrap();
        assert_eq!(came.unwrap(), envelope.into_bytes());
    }
}

async fn reaches(node: &MeshTransport, target: &str, most: Duration) {
    wait(node, most, |names| names.contains(target)).await;
}

async fn loses(node: &MeshTransport, target: &str) {
    wait(node, Duration::from_secs(10), |names| !names.contains(target)).await;
}

async fn wait(node: &MeshTransport, most: Duration, holds: impl Fn(&BTreeSet<String>) -> bool) {
    let mut reachable = node.reachable();
    let done = timeout(most, reachable.wait_for(|names| holds(names))).await;
    assert!(done.is_ok(), "not within {most:?}: {:?}", node.counters());
}

fn envelope(from: u8, to: u8, size: usize) -> SignedEnvelope {
    let recipient = PeerAddress::remote("bob".parse().unwrap(), id(to));
    let envelope = Envelope {
        sender: PeerAddress::remote("alice".parse().unwrap(), id(from)),
        recipient: recipient.clone().into(),
        to: recipient.into(),
        message_id: MessageId(uuid::Uuid::from_bytes([from; 16])),
        sent_at: Timestamp::try_from(NOW).unwrap(),
        expires_at: Timestamp::try_from(NOW + HOUR).unwrap(),
        priority: Priority::Normal,
        level: AnonymityLevel::NONE,
        lane_seq: None,
        after: None,
        content: Content::binary(vec![from; size]),
    };
    envelope.sign(&key(from)).unwrap()
}

fn roster(seed: u8) -> fieldpost_envelope::SignedRoster {
    Roster { gateway: id(seed), number: 1, base: None, peers: vec![], removed: vec![] }
        .sign(&key(seed))
        .unwrap()
}

fn certificate(seed: u8) -> SignedCertificate {
    let certificate = Certificate {
        gateway: id(seed),
        purpose: NodePurpose::Mesh,
        node: SigningKey::from_bytes(&[seed | 0x80; 32]).verifying_key().to_bytes(),
        not_before: Timestamp::try_from(NOW).unwrap(),
        not_after: Timestamp::try_from(NOW + 24 * HOUR).unwrap(),
    };
    certificate.sign(&key(seed)).unwrap()
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn id(seed: u8) -> GatewayId {
    key(seed).verifying_key().into()
}

const NOW: u64 = 1_790_000_000_000;
const HOUR: u64 = 3_600_000;
