//! The command-line client and `doctor`, run as people and scripts run them.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Output, Stdio},
};

use harness::{Gateway, Options};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_register_and_talk() {
    let gateway = Options::shared().start().await;
    let token = said(&gateway.run(&["peer", "register", "alice"]));
    assert!(token.starts_with("alice  fp_"), "{token}");
    said(&gateway.run(&["peer", "register", "bob", "--display-name", "Bob"]));
    let sent = said(&gateway.run(&["send", "--from", "alice", "bob", "hello", "world"]));
    let heard = said(&gateway.run(&["listen", "--as", "bob", "--count", "1"]));
    assert!(heard.trim_end().ends_with("alice: hello world"), "{heard}");

    let id = sent.split_whitespace().next().expect("the id comes first");
    let status = said(&gateway.run(&["status", "--as", "alice", id]));
    assert!(status.contains("delivered") && status.contains("local"), "{status}");
    let peers = said(&gateway.run(&["peers", "--as", "alice"]));
    assert!(peers.contains("alice") && peers.contains("Bob"), "{peers}");
    assert!(said(&gateway.run(&["status"])).contains("transports"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_kept_for_their_owner_alone() {
    let gateway = Options::shared().start().await;
    said(&gateway.run(&["peer", "register", "alice"]));
    let file = gateway.folder().join("credentials.json");
    let mode = fs::metadata(&file).expect("it was made").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Whoever lost the file is a stranger.
    fs::remove_file(&file).expect("it is there");
    let again = gateway.run(&["peer", "register", "alice"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    let complaint = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(complaint.contains("token"), "{complaint}");
    let nameless = gateway.run(&["listen", "--as", "alice", "--count", "1"]);
    assert_eq!(nameless.status.code(), Some(1), "{nameless:?}");
    let complaint = String::from_utf8_lossy(&nameless.stderr).into_owned();
    assert!(complaint.contains("no token of alice"), "{complaint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_message_is_printed_once_and_a_peeked_one_again() {
    let gateway = with_alice_and_bob(Options::shared()).await;
    for text in ["one", "two"] {
        said(&gateway.run(&["send", "--from", "alice", "bob", text]));
    }
    let listen = |more: &[&str]| {
        let arguments = [&["listen", "--as", "bob", "--count", "1", "--json"], more].concat();
        let line: Value = serde_json::from_str(&said(&gateway.run(&arguments))).expect("JSON");
        line["content"].as_str().expect("it is text").to_owned()
    };
    assert_eq!(listen(&["--peek"]), "one");
    assert_eq!(listen(&["--read"]), "one");
    assert_eq!(listen(&[]), "two");
    said(&gateway.run(&["send", "--from", "alice", "bob", "three"]));
    assert_eq!(listen(&[]), "three");
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_outlives_a_restart_of_the_gateway() {
    let mut gateway = with_alice_and_bob(Options::embedded()).await;
    let mut listener = Listener::start(&gateway, "bob");
    said(&gateway.run(&["send", "--from", "alice", "bob", "before"]));
    assert_eq!(listener.next(), "before");
    assert!(gateway.terminate().await.success());
    gateway.resume().await;
    // What is not yet confirmed when the gateway is killed would be shown again.
    said(&gateway.run(&["send", "--from", "alice", "bob", "between", "--wait", "delivered"]));
    assert_eq!(listener.next(), "between");
    gateway.kill();
    gateway.resume().await;
    said(&gateway.run(&["send", "--from", "alice", "bob", "after"]));
    assert_eq!(listener.next(), "after");
    listener.interrupt();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_arrives_as_it_was() {
    let gateway = with_alice_and_bob(Options::shared()).await;
    let path = gateway.folder().join("map.bin");
    let bytes: Vec<u8> =
        (0..2_500_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&path, &bytes).expect("the folder takes it");
    let path = path.to_str().expect("the path is plain");
    said(&gateway.run(&["send", "--from", "alice", "bob", "--file", path]));
    let heard = said(&gateway.run(&["listen", "--as", "bob", "--count", "1", "--json"]));
    let message: Value = serde_json::from_str(&heard).expect("JSON");
    assert_eq!(message["content"], "map.bin");

    let id = message["file_ids"][0].as_str().expect("it carries a file");
    let kept = fs::read_to_string(gateway.folder().join("credentials.json")).expect("it is there");
    let kept: Value = serde_json::from_str(&kept).expect("JSON");
    let token = kept[gateway.url()]["bob"].as_str().map(str::to_owned);
    let bob = gateway.client().calling_as("bob", token);
    let answer = bob.request(reqwest::Method::GET, &format!("/v1/files/{id}/content")).send().await;
    let content = answer.expect("it answers").bytes().await.expect("it is whole");
    assert!(content == bytes, "the file was changed on the way");

    // An upload that is begun with another file cannot be resumed.
    let other = gateway.folder().join("other.bin");
    fs::write(&other, b"short").expect("the folder takes it");
    let other = other.to_str().expect("the path is plain");
    let refused = gateway.run(&["send", "--from", "alice", "bob", "--file", other, "--resume", id]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_what_went_wrong() {
    let gateway = with_alice_and_bob(Options::shared()).await;
    let code = |arguments: &[&str]| {
        let output = gateway.run(arguments);
        assert!(!output.stderr.is_empty(), "{arguments:?} failed without a word");
        output.status.code()
    };
    assert_eq!(code(&["send", "--from", "alice", "nobody", "hi"]), Some(1));
    assert_eq!(code(&["send", "bob", "hi"]), Some(2), "two peers are kept, none was named");
    assert_eq!(code(&["send", "--from", "alice", "bob"]), Some(2), "nothing to send");
    let waiting =
        ["send", "--from", "alice", "bob", "hi", "--wait", "delivered", "--timeout", "1s"];
    assert_eq!(code(&waiting), Some(4));
    let expiring = ["send", "--from", "alice", "bob", "hi", "--ttl", "1s", "--wait", "delivered"];
    assert_eq!(code(&expiring), Some(3));
    let nowhere =
        ["send", "--url", "http://127.0.0.1:1", "--as", "alice", "bob", "x", "--timeout=1s"];
    assert_eq!(code(&nowhere), Some(5));
    assert_eq!(code(&["listen", "--as", "alice", "--token", "fp_wrong"]), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_under_one_id_is_one_message() {
    let gateway = with_alice_and_bob(Options::shared()).await;
    let id = "6f2d4c1e-8a3b-4d5f-9c7e-0b1a2c3d4e5f";
    let send =
        |text: &str| gateway.run(&["send", "--from", "alice", "bob", text, "--message-id", id]);
    assert!(said(&send("hello")).starts_with(id));
    assert!(said(&send("hello")).starts_with(id));
    assert_eq!(send("something else").status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn in_open_mode_a_name_is_enough() {
    let gateway = Options::shared().open().start().await;
    for peer in ["alice", "bob"] {
        said(&gateway.run(&["peer", "register", peer]));
    }
    // As a client that has never registered from here.
    fs::remove_file(gateway.folder().join("credentials.json")).ok();
    said(&gateway.run(&["send", "--as", "alice", "bob", "hello"]));
    let heard = said(&gateway.run(&["listen", "--as", "bob", "--count", "1"]));
    assert!(heard.contains("alice: hello"), "{heard}");
    assert!(said(&gateway.run(&["peers"])).contains("alice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_nothing_wrong_with_a_running_gateway() {
    let gateway = Options::embedded().start().await;
    let output = gateway.run(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(verdict(&report, "database"), "ok");
    assert_eq!(verdict(&report, "schema"), "ok");
    assert_eq!(verdict(&report, "durability"), "ok");
    assert_eq!(verdict(&report, "master key"), "ok");
    assert_eq!(verdict(&report, "listen"), "ok");
    assert!(report.to_string().contains("served by a running gateway"));
    assert_ne!(verdict(&report, "Bluetooth"), "failure");
    assert_eq!(verdict(&report, "mesh port"), "ok");
    assert_eq!(verdict(&report, "mesh relays"), "info");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_what_to_do_about_each_failure() {
    let mut gateway = Options::shared().start().await;
    gateway.kill();
    fs::write(gateway.folder().join("master.key"), "00".repeat(32)).expect("it is ours");
    let output = gateway.run(&["doctor", "--json", "--auth=open", "--listen=192.0.2.1:8000"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for name in ["options", "listen", "master key"] {
        assert_eq!(verdict(&report, name), "failure", "{name}: {report:#}");
    }
    assert_eq!(verdict(&report, "admin listen"), "ok");
    let findings = report["findings"].as_array().expect("a list");
    let unexplained = findings.iter().find(|finding| {
        finding["verdict"] == "failure" && finding["advice"].as_str().is_none_or(str::is_empty)
    });
    assert_eq!(unexplained, None);
    // An unreplicated database of one's own bounds the first promise.
    assert_eq!(verdict(&report, "replication"), "warning");
}

fn verdict<'a>(report: &'a Value, name: &str) -> &'a str {
    let findings = report["findings"].as_array().expect("a list");
    let finding = findings.iter().find(|finding| finding["name"] == name);
    finding.unwrap_or_else(|| panic!("nothing on {name}"))["verdict"].as_str().expect("a word")
}

async fn with_alice_and_bob(options: Options) -> Gateway {
    let gateway = options.start().await;
    for peer in ["alice", "bob"] {
        said(&gateway.run(&["peer", "register", peer]));
    }
    gateway
}

/// What a command printed, if it succeeded.
fn said(output: &Output) -> String {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaint}", output.status);
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// `fieldpost listen` in the background.
struct Listener {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Listener {
    fn start(gateway: &Gateway, peer: &str) -> Self {
        let mut command: Command = gateway.command_for(&["listen", "--as", peer, "--json"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program runs");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { child, lines }
    }

    /// The content of the next message; a test that waits for ever is ended by its runner.
    fn next(&mut self) -> String {
        let line = self.lines.next().expect("it goes on").expect("it can be read");
        let message: Value = serde_json::from_str(&line).expect("JSON");
        message["content"].as_str().expect("it is text").to_owned()
    }

    /// Ctrl-C ends it well.
    fn interrupt(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
        assert!(self.child.wait().expect("it is ours").success());
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
