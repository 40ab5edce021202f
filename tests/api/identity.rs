//! Who a gateway is: `identity show`, `export`, `import` and `keys rotate`, as operators use them.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Output};

use harness::{Gateway, Options, Postgres, client::Draft};

const PASSPHRASE: &str = "a long enough passphrase";

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_identity_makes_a_new_database_the_same_gateway() {
    let gateway = Options::shared().start().await;
    let id = said(&gateway.run(&["identity", "show"]));
    let file = exported(&gateway);
    let mode = fs::metadata(&file).expect("it was written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = fs::read_to_string(&file).expect("it is text");
    assert!(text.contains(id.trim()) && text.contains("sealed"), "{text}");
    let again = with_passphrase(&gateway, &["identity", "export"], &file);
    assert!(complaint(&again).contains("is there already"), "{again:?}");

    // Another database and another master key; one start has made it another gateway already.
    let mut other = Options::shared().start().await;
    let stranger = said(&other.run(&["identity", "show"]));
    assert_ne!(stranger, id);
    other.kill();
    let imported = with_passphrase(&other, &["identity", "import"], &file);
    assert!(said(&imported).contains(id.trim()), "{imported:?}");
    assert!(said(&with_passphrase(&other, &["identity", "import"], &file)).contains("already"));
    other.resume().await;
    assert_eq!(said(&other.run(&["identity", "show"])), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_is_not_imported_over_another_with_peers_or_with_a_wrong_passphrase() {
    let gateway = Options::shared().start().await;
    let file = exported(&gateway);
    let other = Options::shared().start().await;
    let id = said(&other.run(&["identity", "show"]));
    let mut wrong = other.command_for(&["identity", "import"]);
    wrong.arg(&file).env("FIELDPOST_PASSPHRASE", "another long passphrase");
    let refused = wrong.output().expect("it runs");
    assert!(complaint(&refused).contains("passphrase does not open"), "{refused:?}");

    other.register("alice").await;
    let refused = with_passphrase(&other, &["identity", "import"], &file);
    assert!(complaint(&refused).contains("has peers"), "{refused:?}");
    fs::write(&file, "{}").expect("it is ours");
    let refused = with_passphrase(&other, &["identity", "import"], &file);
    assert!(complaint(&refused).contains("not an exported identity"), "{refused:?}");
    assert_eq!(said(&other.run(&["identity", "show"])), id);
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_keys_open_what_was_stored_and_the_old_master_key_opens_nothing() {
    let url = Postgres::fresh_database().await;
    let mut gateway = Options::on(url).start().await;
    let id = said(&gateway.run(&["identity", "show"]));
    let (alice, bob) = (gateway.register("alice").await, gateway.register("bob").await);
    alice.send(&Draft::text("bob", "kept")).await.expect("it is accepted");
    assert!(gateway.terminate().await.success());

    let next = gateway.folder().join("next.key");
    write_key(&next, '5');
    let rotate =
        ["keys", "rotate", "--new-master-key-file", next.to_str().expect("the path is plain")];
    let done = said(&gateway.run(&rotate));
    assert!(done.contains(id.trim()) && done.contains("next.key"), "{done}");
    let again = gateway.run(&rotate);
    assert!(complaint(&again).contains("not the one"), "the old key is refused: {again:?}");

    let refused = gateway.run(&["identity", "show"]);
    assert!(complaint(&refused).contains("not the one that this database was sealed with"));
    fs::rename(&next, gateway.folder().join("master.key")).expect("they are ours");
    gateway.resume().await;
    assert_eq!(said(&gateway.run(&["identity", "show"])), id);
    let inbox = bob.poll(None, 0).await.expect("it opens");
    assert_eq!(inbox.messages[0].content.as_deref(), Some("kept"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_not_rotated_under_a_running_gateway_or_without_a_next_key() {
    let gateway = Options::embedded().start().await;
    let refused = gateway.run(&["keys", "rotate"]);
    assert!(complaint(&refused).contains("only while no gateway runs"), "{refused:?}");
    let shared = Options::shared().start().await;
    let refused = shared.run(&["keys", "rotate"]);
    assert!(complaint(&refused).contains("--new-master-key-file"), "{refused:?}");
    let same = shared.folder().join("master.key");
    let rotate = ["keys", "rotate", "--new-master-key-file", same.to_str().expect("plain")];
    let refused = shared.run(&rotate);
    assert!(complaint(&refused).contains("in force already"), "{refused:?}");
}

fn exported(gateway: &Gateway) -> PathBuf {
    let file = gateway.folder().join("identity.json");
    said(&with_passphrase(gateway, &["identity", "export"], &file));
    file
}

fn with_passphrase(gateway: &Gateway, command: &[&str], file: &PathBuf) -> Output {
    let mut command = gateway.command_for(command);
    command.arg(file).env("FIELDPOST_PASSPHRASE", PASSPHRASE);
    command.output().expect("the program runs")
}

fn write_key(path: &PathBuf, digit: char) {
    fs::write(path, digit.to_string().repeat(64)).expect("the folder is ours");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("so is the file");
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn said(output: &Output) -> String {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaint}", output.status);
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}
