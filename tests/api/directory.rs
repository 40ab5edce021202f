//! `fieldpost directory`, as those run it who sign for a network: keys, documents, proposals, and what is said
//! where something is wrong. The relays here are descriptors without a process.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    time::Duration,
};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::Timestamp;
use fieldpost_transport::htx::{
    core::{Capabilities, CarrierPolicy, TicketKey},
    directory::{Descriptor, EpochClock, EpochKeys, SignedDescriptor},
};
use harness::lab::fieldpost;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_network_of_two_of_three_signers_goes_from_hand_to_hand() {
    let folder = Folder::new();
    let net = folder.path("net");
    let made = said(&run(&["directory", "init", &net, "--signers", "3", "--epoch", "1h"]));
    assert!(
        made.contains("2 of 3 signers") && made.contains("no descriptor is there yet"),
        "{made}"
    );
    for number in 1..=3 {
        let key = format!("{net}/signer-{number}.key");
        let mode = fs::metadata(&key).expect("it was made").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let shown = said(&run(&["directory", "show", &net]));
    assert!(shown.contains("document    none yet"), "{shown}");
    let early = complaint(&run(&["directory", "sign", &net]));
    assert!(early.contains("no descriptor"), "{early}");

    // Each signer has a copy of the folder and its own key.
    let hour = EpochClock::HOUR;
    let descriptors = folder.path("descriptors");
    fs::create_dir(&descriptors).expect("it can be made");
    for number in 1..=3 {
        let file = format!("{descriptors}/{number}.descriptor");
        fs::write(file, descriptor(number, hour).as_bytes()).expect("it can be written");
    }
    let key = |number: u8| format!("{net}/signer-{number}.key");
    let one =
        said(&run(&["directory", "sign", &net, "--key", &key(1), "--descriptors", &descriptors]));
    assert!(one.contains("1 of 2 signatures"), "{one}");
    let proposal = format!("{net}/documents/000000000000.proposal");
    let unfinished = said(&run(&["directory", "show", &proposal]));
    assert!(
        unfinished.contains("believed    no: 1 signatures: expected at least 2"),
        "{unfinished}"
    );
    let other = folder.path("other");
    fs::create_dir_all(format!("{other}/documents")).expect("it can be made");
    fs::copy(format!("{net}/authority.json"), format!("{other}/authority.json")).expect("copied");
    let two = said(&run(&["directory", "sign", &other, "--key", &key(2), "--merge", &proposal]));
    assert!(two.contains("signed document 0") && two.contains("3 nodes of which 3 relay"), "{two}");

    let shown: Value =
        serde_json::from_str(&said(&run(&["directory", "show", &other, "--json"]))).expect("JSON");
    let document = &shown["document"];
    assert_eq!((&document["is_believed"], &document["state"]), (&true.into(), &"active".into()));
    assert_eq!(document["hides_senders"], true);
    let signatures = document["signatures"].as_array().expect("a list");
    assert!(signatures.len() == 2 && signatures.iter().all(|one| one["verifies"] == true));
    assert!(document["relays"].as_array().expect("a list").iter().all(|it| it["verifies"] == true));

    // Altered, it is believed by nobody, and its command says why.
    let file = format!("{other}/documents/000000000000.document");
    let mut bytes = fs::read(&file).expect("it is there");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).expect("it can be written");
    let shown = said(&run(&["directory", "show", &other]));
    assert!(shown.contains("does not verify") && shown.contains("believed    no"), "{shown}");
}

#[test]
fn what_is_wrong_is_said_with_what_would_be_right() {
    let folder = Folder::new();
    let net = folder.path("net");
    let nothing = complaint(&run(&["directory", "show", &net]));
    assert!(nothing.contains("fieldpost directory init"), "{nothing}");
    said(&run(&["directory", "init", &net, "--epoch", "10s"]));
    let again = complaint(&run(&["directory", "init", &net]));
    assert!(again.contains("choose a new folder"), "{again}");
    let other = folder.path("other");
    said(&run(&["directory", "init", &other]));
    let foreign = format!("{other}/signer-1.key");
    let foreign = complaint(&run(&["directory", "sign", &net, "--key", &foreign]));
    assert!(foreign.contains("not the key of a signer of the network"), "{foreign}");
    let key = format!("{net}/signer-1.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("its owner may");
    let open = complaint(&run(&["directory", "sign", &net]));
    assert!(open.contains("chmod 600"), "{open}");
    let third = folder.path("third");
    for (arguments, right) in
        [(["--epoch", "2h"], "1 s to 1 h"), (["--threshold", "2"], "no more than there are")]
    {
        let said = complaint(&run(&[&["directory", "init", &third], &arguments[..]].concat()));
        assert!(said.contains(right), "{said}");
    }
    let late =
        complaint(&run(&["directory", "init", &third, "--wait-for", "3", "--patience", "1s"]));
    assert!(late.contains("0 of 3 nodes came in time"), "{late}");
}

#[tokio::test]
async fn an_unattended_signer_goes_on_from_epoch_to_epoch() {
    let folder = Folder::new();
    let net = folder.path("net");
    let clock = EpochClock::new(Duration::from_secs(3)).expect("a good length");
    said(&run(&["directory", "init", &net, "--epoch", "3s"]));
    let _signer = Running(
        fieldpost()
            .args(["directory", "sign", &net, "--every-epoch"])
            .stdout(Stdio::null())
            .spawn()
            .expect("the program runs"),
    );
    let deadline = Instant::now() + PATIENCE;
    let mut told = 0;
    loop {
        // Relays renew what they say of themselves with each epoch.
        let epoch = clock.epoch_at(now());
        if told != epoch {
            for number in 1..=3 {
                let descriptor = descriptor(number, clock);
                let file = format!("{net}/relays/{}.descriptor", descriptor.id());
                let draft = format!("{file}.new");
                fs::write(&draft, descriptor.as_bytes()).expect("it can be written");
                fs::rename(&draft, file).expect("it can be moved");
            }
            told = epoch;
        }
        let shown = said(&run(&["directory", "show", &net, "--json"]));
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        let document = &shown["document"];
        if document["number"].as_u64() >= Some(4) {
            assert_eq!(document["is_believed"], true, "{document}");
            assert_eq!(document["has_weak_beacon"], true);
            return;
        }
        assert!(Instant::now() < deadline, "the chain stands still: {shown:#}");
        sleep(Duration::from_millis(100)).await;
    }
}

fn run(arguments: &[&str]) -> Output {
    fieldpost().args(arguments).output().expect("the program runs")
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a relay says of itself now.
fn descriptor(number: u8, clock: EpochClock) -> SignedDescriptor {
    let key = SigningKey::from_bytes(&[number; 32]);
    let epoch = clock.epoch_at(now());
    let keys = |epoch: u64| EpochKeys { epoch, sphinx: [number; 32], sealing: [number; 32] };
    Descriptor {
        identity: key.verifying_key(),
        epoch,
        operator: format!("operator {number}"),
        autonomous_system: None,
        country: None,
        addresses: vec![([192, 0, 2, number], 443).into()],
        server_name: format!("relay{number}.example"),
        through: Vec::new(),
        keys: (epoch..epoch + 3).map(keys).collect(),
        noise: [number; 32],
        ticket: TicketKey { id: [number; 8], public: [number; 32] },
        carriers: CarrierPolicy::new(["__Host-sid", "v", "token"], [200, 20, 35], (24, 64))
            .expect("a good policy"),
        vrf: [number; 32],
        capacity: 1_000,
        relays: true,
        capabilities: Capabilities::default(),
        certificate: None,
    }
    .sign(&key)
    .expect("it can be signed")
}

#[expect(clippy::disallowed_methods, reason = "a test has no other clock")]
fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let millis = since.expect("it is after 1970").as_millis();
    Timestamp::try_from(u64::try_from(millis).expect("it fits")).expect("a time")
}

/// Removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("fp-directory-{}", Uuid::new_v4().simple()));
        fs::create_dir(&path).expect("it can be made");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        Path::join(&self.0, name).to_str().expect("a plain name").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
