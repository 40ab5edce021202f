//! Machines of their own, as far as the network goes: network namespaces joined by cables that can
//! be pulled.
//!
//! Needs root and the command `ip`; [`available`] says whether they are there. Tests that need
//! namespaces print why they do nothing where they are not.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::geteuid,
};
use tokio::{io::copy_bidirectional, net::TcpStream, runtime};
use uuid::Uuid;

/// A network of its own; removed when it is dropped.
#[derive(Debug)]
pub struct Namespace(String);

/// Whether namespaces can be made here; says why not.
pub fn available() -> bool {
    let reason = if !geteuid().is_root() {
        "not root"
    } else if !run(&["-V"]) {
        "no command ip (package iproute2)"
    } else {
        let probe = name("probe");
        let works = run(&["netns", "add", &probe]) && run(&["netns", "del", &probe]);
        if works {
            return true;
        }
        "the kernel or the sandbox allows no namespaces"
    };
    eprintln!("skipped: {reason}");
    false
}

impl Namespace {
    /// A new network in which nothing is but loopback.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn new() -> Self {
        let namespace = Self(name("ns"));
        must(&["netns", "add", &namespace.0]);
        must(&["-n", &namespace.0, "link", "set", "lo", "up"]);
        namespace
    }

    /// What a command is put behind to run in it.
    pub fn prefix(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net={}", self.path())]
    }

    /// Lets this process reach a port of its loopback, at the port that is returned.
    ///
    /// # Panics
    ///
    /// If there is no port, or no thread.
    pub fn forward(&self, port: u16) -> u16 {
        let outside = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        outside.set_nonblocking(true).expect("it is ours");
        let reached = outside.local_addr().expect("it is bound").port();
        let (path, inside) = (self.path(), SocketAddr::from(([127, 0, 0, 1], port)));
        let (entered, has_entered) = mpsc::sync_channel(1);
        // A socket belongs to the network in which it was made; a thread can change its own.
        thread::spawn(move || {
            enter(&path);
            entered.send(()).expect("somebody waits");
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(relay(outside, inside));
        });
        has_entered.recv().expect("the thread enters");
        reached
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run(&["netns", "del", &self.0]);
    }
}

/// A cable between two namespaces.
#[derive(Debug)]
pub struct Cable {
    ends: [(String, String); 2],
}

impl Cable {
    /// Plugs a cable in; the ends get the first two addresses of `10.99.<net>.0/24`.
    ///
    /// # Panics
    ///
    /// If it does not fit.
    pub fn new(one: &Namespace, other: &Namespace, net: u8) -> Self {
        let unique = &Uuid::new_v4().simple().to_string()[..8];
        let devices = [format!("fa{unique}"), format!("fb{unique}")];
        must(&[
            "link",
            "add",
            &devices[0],
            "netns",
            &one.0,
            "type",
            "veth",
            "peer",
            "name",
            &devices[1],
            "netns",
            &other.0,
        ]);
        let [first, second] = devices;
        let cable = Self { ends: [(one.0.clone(), first), (other.0.clone(), second)] };
        for (number, (namespace, device)) in cable.ends.iter().enumerate() {
            let address = format!("10.99.{net}.{}/24", number + 1);
            must(&["-n", namespace, "addr", "add", &address, "dev", device]);
        }
        cable.plug_in();
        cable
    }

    /// Pulls it out: both ends lose their carrier.
    pub fn pull_out(&self) {
        let (namespace, device) = &self.ends[0];
        must(&["-n", namespace, "link", "set", device, "down"]);
    }

    /// Plugs it in again.
    pub fn plug_in(&self) {
        for (namespace, device) in &self.ends {
            must(&["-n", namespace, "link", "set", device, "up"]);
        }
    }
}

async fn relay(outside: TcpListener, inside: SocketAddr) {
    let outside = tokio::net::TcpListener::from_std(outside).expect("it does not block");
    while let Ok((mut client, _)) = outside.accept().await {
        tokio::spawn(async move {
            // Whoever cannot be reached closes, as a gateway that is not there would.
            if let Ok(mut server) = TcpStream::connect(inside).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

fn enter(path: &str) {
    let namespace = File::open(Path::new(path)).expect("the namespace is there");
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter it");
}

fn name(kind: &str) -> String {
    format!("fieldpost-{kind}-{}", &Uuid::new_v4().simple().to_string()[..8])
}

fn must(arguments: &[&str]) {
    assert!(run(arguments), "ip {} failed", arguments.join(" "));
}

fn run(arguments: &[&str]) -> bool {
    let output = Command::new("ip").args(arguments).output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(_) => false,
    }
}
