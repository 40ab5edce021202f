//! Files that go with messages to other gateways: fetched, gone on with, checked, kept to whom they
//! are for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use fieldpost_envelope::{Content, GatewayId, Recipient};
use fieldpost_transport::{
    Faults, FileError, FileInfo, FileSource, MemoryNetwork, MemoryOptions, Transport,
};
use harness::{
    Client,
    federation::{Node, record_with_status, take},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use crate::{
    federation::{database, node, pair_on},
    remote_groups::{Mallory, World, until},
};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_after_its_message_and_is_for_its_recipient_alone() {
    let network = MemoryNetwork::new(1);
    let ([a, b], alice, bob) = pair_on(&network, &[]).await;
    let carol = b.register("carol").await;
    let bytes = content(3 * MIB + 17);
    let file = upload(&alice, "map.pdf", &bytes).await;
    let sent = send_with(&alice, &b.address("bob"), &[&file], 0).await;
    let id = take_with_files(&bob).await.remove(0);
    assert_ne!(id, file, "it has a name of this gateway");
    let info = completed(&bob, &id).await;
    assert_eq!(info["origin"], json!(format!("{file}@{}", a.id())));
    assert_eq!((&info["filename"], &info["size_bytes"]), (&json!("map.pdf"), &json!(bytes.len())));
    assert_eq!(info["uploaded_by"], json!(a.address("alice")));
    assert_eq!(info["sha256"], json!(hex(&Sha256::digest(&bytes))));
    assert!(read(&bob, &id, None).await.1 == bytes);
    let (status, part) = read(&bob, &id, Some("bytes=1048570-1048589")).await;
    assert_eq!((status, part.as_slice()), (206, &bytes[1_048_570..=1_048_589]));
    assert_eq!(read(&carol, &id, None).await.0, 403);
    record_with_status(&alice, sent, "delivered").await;
    // It can be handed on like any other.
    send_with(&bob, "carol", &[&id], 0).await;
    let again = take_with_files(&carol).await.remove(0);
    assert_eq!(again, id);
    assert!(read(&carol, &id, None).await.1 == bytes);
    // Also back to where it came from: there it is another file.
    send_with(&bob, &a.address("alice"), &[&id], 0).await;
    let back = take_with_files(&alice).await.remove(0);
    completed(&alice, &back).await;
    assert!(read(&alice, &back, None).await.1 == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_from_its_last_whole_chunk_however_often_it_breaks() {
    let network = MemoryNetwork::new(1);
    let ([a, b], alice, bob) = pair_on(&network, &[]).await;
    let breaks = Faults { files_break_after: Some(MIB as u64 + 300_000), ..Faults::NONE };
    network.set_faults(a.id(), b.id(), breaks);
    let bytes = content(4 * MIB + 5);
    let file = upload(&alice, "long.bin", &bytes).await;
    send_with(&alice, &b.address("bob"), &[&file], 0).await;
    let id = take_with_files(&bob).await.remove(0);
    // Each attempt brings one chunk and a part, which is thrown away.
    until(|| async { chunks(&bob, &id).await >= 1 }).await;
    let unfinished = read(&bob, &id, None).await;
    if chunks(&bob, &id).await < 5 {
        assert_eq!(unfinished.0, 409, "{}", String::from_utf8_lossy(&unfinished.1));
    }
    completed(&bob, &id).await;
    assert!(read(&bob, &id, None).await.1 == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_either_side_loses_nothing_of_what_has_come() {
    let network = MemoryNetwork::new(1);
    let ([mut a, mut b], alice, bob) = pair_on(&network, &[]).await;
    let breaks = Faults { files_break_after: Some(2 * MIB as u64), ..Faults::NONE };
    network.set_faults(a.id(), b.id(), breaks);
    let bytes = content(5 * MIB);
    let file = upload(&alice, "long.bin", &bytes).await;
    send_with(&alice, &b.address("bob"), &[&file], 0).await;
    let id = take_with_files(&bob).await.remove(0);
    until(|| async { chunks(&bob, &id).await >= 2 }).await;
    a.stop().await;
    b.stop().await;
    b.resume().await;
    let bob = b.client_of(&bob);
    let before = chunks(&bob, &id).await;
    assert!(before >= 2, "{before} chunks are left");
    a.resume().await;
    completed(&bob, &id).await;
    assert!(read(&bob, &id, None).await.1 == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_below_the_level_of_the_message_fetches_its_file() {
    let (open, hidden) = (MemoryNetwork::new(1), MemoryNetwork::new(2));
    let named = |name, level| MemoryOptions::named(name).with_level(level);
    let start = async || {
        let networks = [(&open, named("mesh", 0)), (&hidden, named("htx", 3))];
        Node::start(database().await, &networks, &[]).await
    };
    let (a, b) = (start().await, start().await);
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let bytes = content(MIB / 2);
    let file = upload(&alice, "secret.txt", &bytes).await;
    send_with(&alice, &b.address("bob"), &[&file], 3).await;
    hidden.set_faults(a.id(), b.id(), Faults { files_break_after: Some(0), ..Faults::NONE });
    let id = take_with_files(&bob).await.remove(0);
    // Over htx it breaks at once, and mesh is in reach all the time.
    until(|| async { get(&bob, &id).await["reason"].is_string() }).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(chunks(&bob, &id).await, 0);
    // The keeper would not give it over mesh either.
    let direct = b.transport(0).fetch_file(a.id(), &file, 0).await;
    assert!(matches!(direct, Err(FileError::Failed(_))), "{direct:?}");
    hidden.heal();
    completed(&bob, &id).await;
    assert!(read(&bob, &id, None).await.1 == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_gateway_to_whose_peers_a_file_was_sent_gets_it() {
    let network = MemoryNetwork::new(1);
    let ([a, b], alice, bob) = pair_on(&network, &[]).await;
    let mallory = Mallory::join(&network);
    let file = upload(&alice, "private.txt", &content(1000)).await;
    send_with(&alice, &b.address("bob"), &[&file], 0).await;
    let id = take_with_files(&bob).await.remove(0);
    completed(&bob, &id).await;
    for name in [file.as_str(), "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f", "", "../etc/passwd"] {
        let refused = mallory.end.fetch_file(a.id(), name, 0).await.unwrap_err();
        assert_eq!(refused, FileError::NotAllowed { file: name.to_owned() });
    }
    // Nor does it get it by naming it in a message of its own: that is a file of mallory's.
    let to: Recipient = b.address("bob").parse().unwrap();
    let named = Content { file_ids: vec![file.clone()], ..Content::text("look") };
    mallory.send(&b, mallory.message(to.clone(), to, named)).await;
    let other = take_with_files(&bob).await.remove(0);
    assert_ne!(other, id);
    assert_eq!(get(&bob, &other).await["origin"], json!(format!("{file}@{}", mallory.id)));
    assert!(read(&bob, &other, None).await.0 == 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_it_was_said_to_be_is_given_up_and_thrown_away() {
    let network = MemoryNetwork::new(1);
    let b = node(&network, &[]).await;
    let bob = b.register("bob").await;
    let mallory = Mallory::join(&network);
    let source = Arc::new(Liar::default());
    mallory.end.serve_files(source.clone());
    let to: Recipient = b.address("bob").parse().unwrap();
    for (file, word) in [
        ("mismatch", "declared"),
        ("endless", "more came"),
        ("huge", "at most 1073741824"),
        ("empty", "at most 1073741824"),
        ("gone", "no such file"),
        ("pieces", "too large a piece"),
    ] {
        let named = Content { file_ids: vec![file.to_owned()], ..Content::text("look") };
        mallory.send(&b, mallory.message(to.clone(), to.clone(), named)).await;
        let id = take_with_files(&bob).await.remove(0);
        until(|| async { get(&bob, &id).await["status"] == "failed" }).await;
        let info = get(&bob, &id).await;
        assert!(info["reason"].as_str().unwrap().contains(word), "{file}: {info}");
        let (status, body) = read(&bob, &id, None).await;
        assert_eq!(status, 409, "{}", String::from_utf8_lossy(&body));
        assert_eq!(info["uploaded_chunks"], 0);
    }
    let served = source.served.load(Ordering::Relaxed);
    assert!(served < 32 * MIB as u64, "an endless file stops early: {served} bytes were read");
    // More files than a message may carry.
    let many = Content {
        file_ids: (0..17).map(|number| number.to_string()).collect(),
        ..Content::text("look")
    };
    mallory.send(&b, mallory.message(to.clone(), to.clone(), many)).await;
    let few = Content { file_ids: vec!["silent".to_owned()], ..Content::text("few") };
    mallory.send(&b, mallory.message(to.clone(), to, few)).await;
    // One that never says a word holds nobody else up.
    take_with_files(&bob).await;
    let c = node(&network, &[]).await;
    let carol = c.register("carol").await;
    let file = upload(&carol, "fine.txt", &content(10)).await;
    send_with(&carol, &b.address("bob"), &[&file], 0).await;
    let id = take_with_files(&bob).await.remove(0);
    completed(&bob, &id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_reach_the_members_of_a_group_through_its_home() {
    let world = World::new(&[]).await;
    let World { network, home, there, alice, bob, .. } = &world;
    world.join(bob, there).await;
    let third = node(network, &[]).await;
    let dave = third.register("dave").await;
    world.join(&dave, &third).await;
    let bytes = content(2 * MIB + 1);
    let file = upload(bob, "walk.gpx", &bytes).await;
    send_with(bob, &world.address(), &[&file], 0).await;
    for member in [alice, &dave] {
        let id = take_with_files(member).await.remove(0);
        completed(member, &id).await;
        assert!(read(member, &id, None).await.1 == bytes);
    }
    // The home hands it on; the sender's gateway knows nothing of dave's.
    let direct = third.transport(0).fetch_file(there.id(), &file, 0).await.unwrap_err();
    assert_eq!(direct, FileError::NotAllowed { file });
    // And from a member at home.
    let own = upload(alice, "hut.jpg", &bytes[..5000]).await;
    send_with(alice, &format!("group:{}", world.group), &[&own], 0).await;
    for member in [bob, &dave] {
        let id = take_with_files(member).await.remove(0);
        let info = completed(member, &id).await;
        assert_eq!(info["origin"], json!(format!("{own}@{}", home.id())));
    }
}

/// Serves what it should not.
#[derive(Default)]
struct Liar {
    served: AtomicU64,
}

#[async_trait]
impl FileSource for Liar {
    async fn describe(&self, _: GatewayId, file: &str) -> Result<FileInfo, FileError> {
        let size_bytes = match file {
            "huge" => 1 << 40,
            "empty" => 0,
            "gone" => return Err(FileError::Unknown { file: file.to_owned() }),
            _ => 1_500_000,
        };
        let mime_type = None;
        Ok(FileInfo { filename: "x".to_owned(), mime_type, size_bytes, sha256: [7; 32] })
    }

    async fn read(
        &self,
        _: GatewayId,
        file: &str,
        from: u64,
        most: usize,
    ) -> Result<Vec<u8>, FileError> {
        let length = match file {
            "endless" => most,
            "pieces" => 5 * MIB,
            "silent" => {
                sleep(Duration::from_secs(3600)).await;
                0
            }
            _ => most.min(1_500_000_usize.saturating_sub(from as usize)),
        };
        self.served.fetch_add(length as u64, Ordering::Relaxed);
        Ok(vec![1; length])
    }
}

async fn upload(client: &Client, filename: &str, bytes: &[u8]) -> String {
    let new = json!({ "filename": filename, "size_bytes": bytes.len() });
    let file: Value =
        client.call(client.request(Method::POST, "/v1/files").json(&new)).await.unwrap();
    let id = file["id"].as_str().unwrap().to_owned();
    for (index, chunk) in bytes.chunks(MIB).enumerate() {
        let path = format!("/v1/files/{id}/chunks/{index}");
        let put = client.request(Method::PUT, &path).body(chunk.to_vec());
        client.call::<Value>(put).await.unwrap();
    }
    id
}

async fn send_with(client: &Client, to: &str, files: &[&str], level: u8) -> uuid::Uuid {
    let draft =
        json!({ "to": to, "content": "see file", "file_ids": files, "min_anonymity": level });
    let sent: Value =
        client.call(client.request(Method::POST, "/v1/messages").json(&draft)).await.unwrap();
    sent["message_id"].as_str().unwrap().parse().unwrap()
}

/// Takes the next message, and returns which files came with it.
async fn take_with_files(client: &Client) -> Vec<String> {
    let shown = take(client, 1).await.remove(0);
    let path = format!("/v1/messages/{}?from={}", shown.message_id, shown.from);
    let message: Value = client.call(client.request(Method::GET, &path)).await.unwrap();
    let files = message["file_ids"].as_array().expect("files come with it");
    files.iter().map(|file| file.as_str().unwrap().to_owned()).collect()
}

async fn get(client: &Client, file: &str) -> Value {
    client.call(client.request(Method::GET, &format!("/v1/files/{file}"))).await.unwrap()
}

async fn chunks(client: &Client, file: &str) -> u64 {
    get(client, file).await["uploaded_chunks"].as_u64().unwrap()
}

async fn completed(client: &Client, file: &str) -> Value {
    until(|| async { get(client, file).await["status"] == "completed" }).await;
    get(client, file).await
}

async fn read(client: &Client, file: &str, range: Option<&str>) -> (u16, Vec<u8>) {
    let mut request = client.request(Method::GET, &format!("/v1/files/{file}/content"));
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let response = timeout(harness::client::PATIENCE, request.send()).await.unwrap().unwrap();
    let status: StatusCode = response.status();
    (status.as_u16(), response.bytes().await.unwrap().to_vec())
}

/// Bytes that no two chunks share.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at >> 8) ^ at ^ (at >> 16)) as u8).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
