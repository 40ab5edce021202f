//! Nobody speaks for another (design, promise 4): everything that a peer may do is tried by another
//! peer, by somebody with a token that nobody has and by somebody without one. Then the peer itself
//! does it, so that each refusal is of the caller and not of the request.
//!
//! Where a refusal would tell that something exists, strangers get the 404 of what does not.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use harness::{
    Client, Failure, Frame, Gateway, Options, Postgres,
    client::{Draft, InboxMessage},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{self, Message, client::IntoClientRequest, http::HeaderValue},
};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn sending_on_v1_as_another_is_refused() {
    let stage = Stage::set().await;
    let body = json!({ "from": "alice", "to": "bob", "content": "as alice" });
    stage.alice_may(403, Method::POST, "/v1/messages", Some(body)).await;
    assert_eq!(stage.inbox_of_bob().await, ["to bob alone", "as alice"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_and_a_named_caller_have_to_agree() {
    let stage = Stage::set().await;
    for path in ["/v1/inbox?peer=alice", "/v1/peers?peer=alice", "/v1/transports?peer=alice"] {
        let refused = stage.mallory.call::<Value>(stage.mallory.request(Method::GET, path)).await;
        assert_eq!(refused.unwrap_err().status(), Some(403), "{path}");
        let agreed = stage.alice.call::<Value>(stage.alice.request(Method::GET, path)).await;
        agreed.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_wish_is_refused_and_the_message_not_sent_without_it() {
    let stage = Stage::set().await;
    let body = json!({ "to": "bob", "content": "secret", "min_anonimity": 3 });
    let request = stage.alice.request(Method::POST, "/v1/messages").json(&body);
    let refused = stage.alice.call::<Value>(request).await.unwrap_err();
    assert_eq!(refused.status(), Some(422));
    assert!(format!("{refused:?}").contains("min_anonimity"), "{refused:?}");
    let mut socket = stage.alice.socket().await.unwrap();
    let frame = json!({ "type": "send", "ref": 7, "to": "bob", "content": "x", "ttll": 5 });
    socket.write(&frame).await.unwrap();
    match socket.expect().await {
        Frame::Error { status, r#ref, .. } => assert_eq!((status, r#ref), (422, Some(json!(7)))),
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(stage.inbox_of_bob().await, ["to bob alone"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_of_v1_takes_a_field_that_it_does_not_know() {
    let stage = Stage::set().await;
    let group = stage.group().await;
    let members = format!("/v1/groups/{group}/members");
    let bob = format!("{members}/bob");
    let key = "none";
    for (method, path, body) in [
        (Method::POST, "/v1/messages", json!({ "to": "bob", "content": "x" })),
        (Method::POST, "/v1/inbox/ack", json!({ "up_to": 0 })),
        (Method::POST, "/v1/groups", json!({ "name": "walkers" })),
        (Method::POST, &members, json!({ "peer": "mallory" })),
        (Method::PUT, &bob, json!({ "role": "moderator" })),
        (Method::POST, "/v1/files", json!({ "filename": "a", "size_bytes": 1 })),
        (Method::POST, "/v1/peers", json!({ "peer_id": "newcomer", "public_key": key })),
        (Method::PATCH, "/v1/peers/alice", json!({ "listed": true })),
        (Method::POST, "/v1/peers/alice/renew", json!({ "nonce": "n", "signature": "s" })),
        (Method::POST, "/v1/invites", json!({ "uses": 1 })),
    ] {
        let mut misspelt = body.clone();
        misspelt["lissted"] = json!(false);
        let request = stage.alice.request(method.clone(), path).json(&misspelt);
        let refused = stage.alice.call::<Value>(request).await.unwrap_err();
        assert_eq!(refused.status(), Some(422), "{method} {path}");
        let told = format!("{refused:?}");
        assert!(told.contains("unknown field `lissted`: expected "), "{method} {path}: {told}");
        // Without it nothing is wrong with the fields, so that the refusal was of it alone.
        let request = stage.alice.request(method.clone(), path).json(&body);
        let answered = stage.alice.call::<Value>(request).await;
        let is_known = !format!("{answered:?}").contains("unknown field");
        assert!(is_known, "{method} {path}: {answered:?}");
    }
    // Nothing had been done: the group, the peer and the settings came by the second request.
    let mut socket = stage.alice.socket().await.unwrap();
    for kind in ["ack", "read"] {
        socket.write(&json!({ "type": kind, "ref": kind, "up_to": 1, "upto": 2 })).await.unwrap();
        match socket.expect().await {
            Frame::Error { status, r#ref, .. } => {
                assert_eq!((status, r#ref), (422, Some(json!(kind))));
            }
            other => panic!("not refused: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_body_says_what_was_expected_and_what_was_found() {
    let stage = Stage::set().await;
    for (body, expected) in [
        (
            json!({ "to": "bob", "content": "x", "ttl": "1h" }),
            "ttl: expected a whole number, found the text",
        ),
        (json!({ "to": ["bob"], "content": "x" }), "to: expected a text, found a list"),
        (json!({ "content": "x" }), "the field `to` is missing"),
        (
            json!({ "to": "bob", "content": "x", "priority": "urgent" }),
            "priority: expected `low`, `normal`, `high`, `critical`",
        ),
        (
            json!({ "to": "bob", "content": "x", "message_id": "7" }),
            "message_id: UUID parsing failed",
        ),
        (json!([]), "expected an object, found a list"),
    ] {
        let request = stage.alice.request(Method::POST, "/v1/messages").json(&body);
        let refused = stage.alice.call::<Value>(request).await.unwrap_err();
        assert_eq!(refused.status(), Some(422), "{body}");
        assert!(format!("{refused:?}").contains(expected), "{body}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_is_a_position_as_documented() {
    let stage = Stage::set().await;
    let look = async |after: &str| {
        let request = stage.alice.request(Method::GET, &format!("/v1/inbox?after={after}"));
        stage.alice.call::<Value>(request).await.map(drop).map_err(|refused| refused.status())
    };
    assert_eq!(look("0").await, Ok(()));
    for wrong in ["0000000000000000000", "%2B1", "-1", "."] {
        assert_eq!(look(wrong).await, Err(Some(422)), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_a_gateway_is_told_where_it_does_not_fit() {
    let stage = Stage::set().await;
    let elsewhere = format!("bob@{}a", "a".repeat(51));
    let body = json!({ "name": "Hikers", "members": [elsewhere] });
    let request = stage.alice.request(Method::POST, "/v1/groups").json(&body);
    let refused = stage.alice.call::<Value>(request).await.unwrap_err();
    assert_eq!(refused.status(), Some(422));
    assert!(format!("{refused:?}").contains("peer of another gateway"), "{refused:?}");
    let path = format!("/v1/peers/{elsewhere}");
    let request = stage.alice.request(Method::PATCH, &path).json(&json!({}));
    let refused = stage.alice.call::<Value>(request).await.unwrap_err();
    assert_eq!(refused.status(), Some(422));
    assert!(format!("{refused:?}").contains("peer of another gateway"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sending_on_a_socket_as_another_is_refused() {
    let stage = Stage::set().await;
    let frame =
        json!({ "type": "send", "ref": 1, "from": "alice", "to": "bob", "content": "as alice" });
    let mut socket = stage.mallory.socket().await.unwrap();
    socket.write(&frame).await.unwrap();
    match socket.expect().await {
        Frame::Error { status, r#ref, .. } => assert_eq!((status, r#ref), (403, Some(json!(1)))),
        other => panic!("not refused: {other:?}"),
    }
    let mut socket = stage.alice.socket().await.unwrap();
    socket.write(&frame).await.unwrap();
    assert!(matches!(socket.expect().await, Frame::Accepted { .. }));
    assert_eq!(stage.inbox_of_bob().await, ["to bob alone", "as alice"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sending_on_bitchat_as_another_is_refused() {
    let stage = Stage::set().await;
    let body = json!({ "from_peer_id": "alice", "to_peer_id": "bob", "content": "as alice" });
    stage.alice_may(403, Method::POST, "/api/bitchat/messages/send", Some(body)).await;
    assert_eq!(stage.inbox_of_bob().await, ["to bob alone", "as alice"]);

    // Neither to a group, in which mallory is not.
    let group = stage.group().await;
    let body = json!({ "from_peer_id": "alice", "content": "as alice" });
    let path = format!("/api/bitchat/groups/{group}/messages");
    stage.alice_may(403, Method::POST, &path, Some(body)).await;
    let own = json!({ "from_peer_id": "mallory", "content": "let me in" });
    assert_eq!(stage.mallory.status(Method::POST, &path, Some(&own)).await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn sending_on_betanet_as_another_is_refused() {
    let stage = Stage::set().await;
    let body = json!({
        "from_node": "alice", "route": ["bob"], "priority": 3,
        "sphinx_packet": { "version": 1, "destination": "bob", "payload": "61", "encrypted": false },
    });
    stage.alice_may(403, Method::POST, "/api/betanet/send", Some(body)).await;
    assert_eq!(stage.inbox_of_bob().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_a_message_of_others_is_refused() {
    let stage = Stage::set().await;
    let path = format!("/v1/messages/{}", stage.message);
    stage.alice_may(404, Method::GET, &path, None).await;
    let unknown = format!("/v1/messages/{}", Uuid::new_v4());
    let [foreign, missing] = [
        stage.mallory.answer(Method::GET, &path, None).await,
        stage.mallory.answer(Method::GET, &unknown, None).await,
    ];
    // It must not be told from a message that does not exist.
    let blur = |answer: &Value| answer["detail"].as_str().unwrap().split(' ').count();
    assert_eq!(blur(&foreign), blur(&missing));
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_a_message_of_others_is_refused() {
    let stage = Stage::set().await;
    // Nobody confirms yet, so bob's stays; one that waits is cancelled by its sender alone.
    let waiting = json!({ "to": "nobody-yet", "content": "x", "allow_unknown": true });
    let answer = stage.alice.answer(Method::POST, "/v1/messages", Some(&waiting)).await;
    let path = format!("/v1/messages/{}", answer["message_id"].as_str().unwrap());
    stage.alice_may(404, Method::DELETE, &path, None).await;
    // Nor by whom it is for.
    let path = format!("/v1/messages/{}", stage.message);
    assert_eq!(stage.bob.status(Method::DELETE, &path, None).await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_the_callers_own_messages_alone() {
    let stage = Stage::set().await;
    for path in ["/v1/messages", "/v1/messages?with=alice", "/v1/messages?with=bob"] {
        assert_eq!(stage.mallory.answer(Method::GET, path, None).await["messages"], json!([]));
        stage.strangers_may_not(Method::GET, path, None).await;
    }
    let of_alice = stage.alice.answer(Method::GET, "/v1/messages?with=bob", None).await;
    assert_eq!(of_alice["messages"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_the_inbox_of_another_is_refused() {
    let stage = Stage::set().await;
    stage.strangers_may_not(Method::GET, "/v1/inbox?peer=bob", None).await;
    let named = stage.mallory.request(Method::GET, "/v1/inbox").header("fieldpost-peer", "bob");
    let refused = stage.mallory.call::<Value>(named).await.unwrap_err();
    assert_eq!(refused.status().unwrap(), 403);
    assert_eq!(stage.inbox_of_bob().await, ["to bob alone"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn receiving_on_betanet_as_another_is_refused() {
    let stage = Stage::set().await;
    let [receive, unregister] =
        ["/api/betanet/receive/alice", "/api/betanet/unregister/alice"].map(str::to_owned);
    let body = json!({ "node_id": "alice" });
    stage.alice_may(403, Method::POST, "/api/betanet/register", Some(body)).await;
    stage.alice_may(403, Method::GET, &receive, None).await;
    stage.alice_may(403, Method::DELETE, &unregister, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_a_conversation_of_others_is_refused() {
    let stage = Stage::set().await;
    for path in ["alice/bob", "bob/alice"] {
        let path = format!("/api/bitchat/messages/conversation/{path}");
        stage.alice_may(403, Method::GET, &path, None).await;
    }
    let body = json!({ "peer_id": "alice", "other_peer_id": "bob" });
    let path = "/api/bitchat/messages/conversation";
    stage.alice_may(403, Method::POST, path, Some(body)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_for_its_members() {
    let stage = Stage::set().await;
    let group = stage.group().await;
    for path in ["", "/members"] {
        stage.alice_may(403, Method::GET, &format!("/v1/groups/{group}{path}"), None).await;
    }
    for path in ["", "/members", "/messages"] {
        let path = format!("/api/bitchat/groups/{group}{path}");
        stage.alice_may(403, Method::GET, &path, None).await;
    }
    let body = json!({ "group_id": group });
    stage.alice_may(403, Method::POST, "/api/bitchat/messages/group", Some(body)).await;
    assert_eq!(stage.mallory.answer(Method::GET, "/v1/groups", None).await["groups"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_changed_by_its_admins() {
    let stage = Stage::set().await;
    let group = stage.group().await;
    let members = format!("/v1/groups/{group}/members");
    let join = json!({ "peer": "mallory" });
    assert_eq!(stage.bob.status(Method::POST, &members, Some(&join)).await, 403);
    let rise = json!({ "role": "admin" });
    let path = format!("{members}/bob");
    assert_eq!(stage.bob.status(Method::PUT, &path, Some(&rise)).await, 403);
    stage.alice_may(403, Method::PUT, &path, Some(rise)).await;
    stage.alice_may(403, Method::DELETE, &path, None).await;
    let add = json!({ "peer_id": "bob", "role": "member" });
    let path = format!("/api/bitchat/groups/{group}/members");
    stage.alice_may(403, Method::POST, &path, Some(add)).await;
    stage.alice_may(403, Method::DELETE, &format!("{path}/bob"), None).await;
    assert_eq!(stage.mallory.status(Method::POST, &members, Some(&join)).await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn making_a_group_or_a_file_as_another_is_refused() {
    let stage = Stage::set().await;
    let group = json!({ "name": "hers", "created_by": "alice" });
    stage.alice_may(403, Method::POST, "/api/bitchat/groups", Some(group)).await;
    let file = json!({ "filename": "hers.txt", "file_size": 3, "uploaded_by": "alice" });
    stage.alice_may(403, Method::POST, "/api/bitchat/files/upload", Some(file)).await;
    stage.alice_may(403, Method::GET, "/api/bitchat/groups?peer_id=alice", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn confirming_for_another_is_refused() {
    let stage = Stage::set().await;
    let path = format!("/api/bitchat/messages/{}/delivered", stage.message);
    for (client, status) in stage.others(403) {
        assert_eq!(client.status(Method::PUT, &path, None).await, status, "{}", client.peer());
    }
    // Nor may the sender say that it arrived.
    assert_eq!(stage.alice.status(Method::PUT, &path, None).await, 403);

    // On `/v1` a confirmation is about the caller's own inbox, whatever it names.
    let body = json!({ "message_ids": [stage.message] });
    stage.strangers_may_not(Method::POST, "/v1/inbox/ack", Some(&body)).await;
    stage.mallory.confirm_messages(&[stage.message]).await.unwrap();
    let mut socket = stage.mallory.socket().await.unwrap();
    socket.confirm_messages(&[stage.message]).await.unwrap();
    socket.write(&json!({ "type": "ack", "up_to": 1 })).await.unwrap();
    socket.close().await;
    let record = stage.alice.record(stage.message).await.unwrap();
    assert!(matches!(record.status.as_str(), "pending" | "sent"), "{}", record.status);
    assert_eq!(stage.inbox_of_bob().await, ["to bob alone"]);

    assert_eq!(stage.bob.status(Method::PUT, &path, None).await, 200);
    assert_eq!(stage.alice.record(stage.message).await.unwrap().status, "delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn confirming_for_another_on_the_bitchat_socket_does_nothing() {
    let stage = Stage::set().await;
    let mut socket = stage.mallory.socket_at("/api/bitchat/ws/mallory").await.unwrap();
    let ack = json!({ "type": "ack", "message_id": stage.message });
    socket.write(&ack).await.unwrap();
    socket.close().await;
    let record = stage.alice.record(stage.message).await.unwrap();
    assert!(matches!(record.status.as_str(), "pending" | "sent"), "{}", record.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn stating_the_presence_of_another_is_refused() {
    let stage = Stage::set().await;
    let path = "/api/bitchat/peers/alice/status?is_online=false";
    stage.alice_may(403, Method::PUT, path, None).await;
    let settings = json!({ "presence": "nobody" });
    stage.alice_may(403, Method::PATCH, "/v1/peers/alice", Some(settings)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_the_name_of_another_again_is_refused() {
    let stage = Stage::set().await;
    let body = json!({ "peer_id": "alice", "public_key": "another key" });
    for path in ["/v1/peers", "/api/bitchat/peers/register"] {
        stage.alice_may(403, Method::POST, path, Some(body.clone())).await;
    }
    let body = json!({ "node_id": "alice" });
    stage.alice_may(403, Method::POST, "/api/betanet/register", Some(body)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewing_the_token_of_another_is_refused() {
    let stage = Stage::set().await;
    let nonce = stage.mallory.answer(Method::POST, "/v1/peers/alice/renew-nonce", None).await;
    let body = json!({ "nonce": nonce["nonce"], "signature": "00".repeat(64) });
    for client in [&stage.mallory, &stage.nobody] {
        let status = client.status(Method::POST, "/v1/peers/alice/renew", Some(&body)).await;
        assert!(matches!(status, 401 | 403), "{status}");
    }
    assert!(stage.alice.poll(None, 0).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_another_is_refused() {
    let stage = Stage::set().await;
    let path = "/api/bitchat/ws/bob";
    assert_eq!(refusal(stage.mallory.socket_at(path).await), 403);
    for client in [&stage.nobody, &stage.forger] {
        assert_eq!(refusal(client.socket_at(path).await), 401);
        assert_eq!(refusal(client.socket().await), 401);
        assert_eq!(refusal(client.socket_at("/v1/ws?peer=bob").await), 401);
    }
    assert!(stage.bob.socket_at(path).await.is_ok());

    assert_eq!(refusal(stage.mallory.socket_at("/v1/ws?peer=bob").await), 403);
    let mut socket = stage.mallory.socket_at("/v1/ws").await.unwrap();
    stage.alice.send(&Draft::text("mallory", "to mallory")).await.unwrap();
    assert_eq!(socket.expect_message().await.content.as_deref(), Some("to mallory"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_one_socket_of_its_own_peer() {
    let stage = Stage::set().await;
    stage.strangers_may_not(Method::POST, "/v1/ws-ticket", None).await;

    let ticket = stage.ticket_of_bob().await;
    let path = format!("/v1/ws?ticket={ticket}");
    let mut socket = stage.nobody.socket_at(&path).await.unwrap();
    assert_eq!(socket.expect_message().await.content.as_deref(), Some("to bob alone"));
    assert_eq!(refusal(stage.nobody.socket_at(&path).await), 401);
    // Nor does the token of another make up for it.
    assert_eq!(refusal(stage.mallory.socket_at(&path).await), 401);

    let path = format!("/api/bitchat/ws/alice?ticket={}", stage.ticket_of_bob().await);
    assert_eq!(refusal(stage.nobody.socket_at(&path).await), 403);
    let path = format!("/api/bitchat/ws/bob?ticket={}", stage.ticket_of_bob().await);
    assert!(stage.nobody.socket_at(&path).await.is_ok());
    assert_eq!(refusal(stage.nobody.socket_at("/v1/ws?ticket=fpt_made-up").await), 401);
    assert_eq!(refusal(stage.nobody.socket_at("/v1/ws?ticket=").await), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_has_expired_opens_nothing() {
    let stage = Stage::set().await;
    let path = format!("/v1/ws?ticket={}", stage.ticket_of_bob().await);
    // Rather than to wait for half a minute.
    let aged = "update ticket set expires_at = now() - interval '1 second'";
    Postgres::execute(&stage.database_url, aged);
    assert_eq!(refusal(stage.nobody.socket_at(&path).await), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_for_its_owner() {
    let stage = Stage::set().await;
    let file = json!({ "filename": "map.txt", "size_bytes": 3 });
    let file = stage.alice.answer(Method::POST, "/v1/files", Some(&file)).await;
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    let mirrored = format!("/api/bitchat/files/{}", file["id"].as_str().unwrap());

    let chunk = |client: &Client| {
        client.request(Method::PUT, &format!("{path}/chunks/0")).body(b"map".to_vec())
    };
    let mirrored_chunk = |client: &Client| {
        let form = "--x\r\nContent-Disposition: form-data; name=\"chunk_data\"; filename=\"c\"\r\n\r\n\
            map\r\n--x--\r\n";
        client
            .request(Method::POST, &format!("{mirrored}/chunks/0"))
            .header("content-type", "multipart/form-data; boundary=x")
            .body(form)
    };
    for (client, status) in stage.others(403) {
        assert_eq!(chunk(client).send().await.unwrap().status(), status, "{}", client.peer());
        let answer = mirrored_chunk(client).send().await.unwrap();
        assert_eq!(answer.status(), status, "{}", client.peer());
    }
    assert!(chunk(&stage.alice).send().await.unwrap().status().is_success());

    stage.alice_may(403, Method::GET, &path, None).await;
    for path in [&mirrored, &format!("{mirrored}/chunks")] {
        stage.alice_may(403, Method::GET, path, None).await;
    }
    for path in [format!("{path}/content"), format!("{mirrored}/download")] {
        for (client, status) in stage.others(403) {
            assert_eq!(client.status(Method::GET, &path, None).await, status, "{path}");
        }
        let content = stage.alice.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(content.bytes().await.unwrap(), b"map".as_slice());
    }
    // Nor may it be sent on by whom it was never given.
    let sending = json!({ "to": "bob", "content": "look", "file_ids": [file["id"]] });
    let status = stage.mallory.status(Method::POST, "/v1/messages", Some(&sending)).await;
    assert!(matches!(status, 403 | 404 | 422), "{status}");
    stage.alice_may(403, Method::DELETE, &path, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invites_are_made_by_operators() {
    let stage = Stage::set().await;
    let body = json!({ "uses": 1 });
    for (client, status) in stage.others(403).into_iter().chain([(&stage.alice, 403)]) {
        assert_eq!(client.status(Method::POST, "/v1/invites", Some(&body)).await, status);
    }
    let token = stage.gateway.run(&["operator", "token"]);
    let token = String::from_utf8(token.stdout).unwrap().trim().to_owned();
    let operator = stage.nobody.calling_as("an operator", Some(token));
    assert_eq!(operator.status(Method::POST, "/v1/invites", Some(&body)).await, 201);
    // Who looks after the gateway is nobody on it.
    assert_eq!(operator.status(Method::GET, "/v1/inbox", None).await, 401);
    let sending = json!({ "from": "alice", "to": "bob", "content": "as alice" });
    let status = operator.status(Method::POST, "/v1/messages", Some(&sending)).await;
    assert!(matches!(status, 401 | 403), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_mode_refuses_foreign_pages_and_names() {
    let gateway = Options::shared().open().start().await;
    let alice = gateway.register("alice").await;
    let port = gateway.url().rsplit_once(':').unwrap().1.to_owned();
    let own = format!("http://localhost:{port}");
    let foreign = [
        ("origin", "https://evil.example"),
        ("origin", "http://localhost:1"),
        ("origin", "null"),
        ("host", "evil.example"),
        ("host", "localhost.evil.example"),
    ];
    for (name, value) in foreign {
        for path in ["/v1/inbox", "/api/bitchat/peers", "/health", "/docs/", "/openapi.json"] {
            let request = alice.request(Method::GET, path).header(name, value);
            assert_eq!(request.send().await.unwrap().status(), 403, "{path} {name}: {value}");
        }
        let sending = json!({ "to": "alice", "content": "from a page" });
        let request = alice.request(Method::POST, "/v1/messages").header(name, value);
        assert_eq!(request.json(&sending).send().await.unwrap().status(), 403);
        for path in ["/v1/ws?peer=alice", "/api/bitchat/ws/alice"] {
            let status = upgrade(&gateway, path, &[(name, value)]).await;
            assert_eq!(status, 403, "{path} {name}: {value}");
        }
    }
    let ours = format!("127.0.0.1:{port}");
    for (name, value) in [("origin", own.as_str()), ("host", &ours)] {
        let request = alice.request(Method::GET, "/v1/inbox").header(name, value);
        assert_eq!(request.send().await.unwrap().status(), 200, "{name}: {value}");
        for path in ["/v1/ws?peer=alice", "/api/bitchat/ws/alice"] {
            assert_eq!(upgrade(&gateway, path, &[(name, value)]).await, 101, "{name}: {value}");
        }
    }
    assert!(alice.poll(None, 0).await.unwrap().messages.is_empty());
}

/// Alice has written to bob. Mallory is a peer like them; the others are none.
struct Stage {
    gateway: Gateway,
    database_url: String,
    alice: Client,
    bob: Client,
    mallory: Client,
    nobody: Client,
    forger: Client,
    message: Uuid,
}

impl Stage {
    async fn set() -> Self {
        let database_url = Postgres::fresh_database().await;
        let gateway = Options::on(&database_url).start().await;
        let alice = gateway.register("alice").await;
        let bob = gateway.register("bob").await;
        let mallory = gateway.register("mallory").await;
        let nobody = gateway.client().calling_as("nobody", None);
        // Of the right form, so that only its being unknown can matter.
        let forged = alice.token().unwrap().chars().rev().collect::<String>();
        let forged = format!("fp_{}", forged.trim_end_matches("_pf"));
        let forger = gateway.client().calling_as("a forger", Some(forged));
        let message = alice.send(&Draft::text("bob", "to bob alone")).await.unwrap().message_id;
        Self { gateway, database_url, alice, bob, mallory, nobody, forger, message }
    }

    /// Those who are not alice, with what each is to be told: `stranger` is for another peer.
    fn others(&self, stranger: u16) -> [(&Client, u16); 3] {
        [(&self.mallory, stranger), (&self.nobody, 401), (&self.forger, 401)]
    }

    /// Alice may do this, nobody else.
    async fn alice_may(&self, stranger: u16, method: Method, path: &str, body: Option<Value>) {
        for (client, expected) in self.others(stranger) {
            let status = client.status(method.clone(), path, body.as_ref()).await;
            assert_eq!(status, expected, "{} {method} {path}", client.peer());
        }
        let status = self.alice.status(method.clone(), path, body.as_ref()).await;
        assert!((200..300).contains(&status), "alice {method} {path}: {status}");
    }

    async fn strangers_may_not(&self, method: Method, path: &str, body: Option<&Value>) {
        for client in [&self.nobody, &self.forger] {
            let status = client.status(method.clone(), path, body).await;
            assert_eq!(status, 401, "{} {method} {path}", client.peer());
        }
    }

    /// A group of alice and bob; alice is its admin.
    async fn group(&self) -> String {
        let body = json!({ "name": "bridge", "members": ["bob"] });
        let group = self.alice.answer(Method::POST, "/v1/groups", Some(&body)).await;
        group["id"].as_str().unwrap().to_owned()
    }

    async fn ticket_of_bob(&self) -> String {
        let answer = self.bob.answer(Method::POST, "/v1/ws-ticket", None).await;
        answer["ticket"].as_str().unwrap().to_owned()
    }

    async fn inbox_of_bob(&self) -> Vec<String> {
        let page = self.bob.poll(None, 0).await.unwrap();
        let text = |message: InboxMessage| message.content.unwrap_or_default();
        page.messages.into_iter().map(text).collect()
    }
}

/// Calls of which the status or the body is all that matters.
trait Ask {
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> reqwest::Response;

    async fn status(&self, method: Method, path: &str, body: Option<&Value>) -> u16 {
        self.ask(method, path, body).await.status().as_u16()
    }

    async fn answer(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        self.ask(method, path, body).await.json().await.expect("answers are JSON")
    }
}

impl Ask for Client {
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> reqwest::Response {
        let request = self.request(method, path);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        request.send().await.expect("the gateway answers")
    }
}

fn refusal<T>(opened: Result<T, Failure>) -> u16 {
    match opened {
        Ok(_) => panic!("the socket was opened"),
        Err(failure) => failure.status().expect("a refusal is an answer"),
    }
}

/// The status of the answer to an upgrade with these headers.
async fn upgrade(gateway: &Gateway, path: &str, headers: &[(&'static str, &str)]) -> u16 {
    let url = format!("{}{path}", gateway.url().replacen("http", "ws", 1));
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    match connect_async(request).await {
        Ok((mut socket, answer)) => {
            // That it was opened in earnest shows only in use.
            socket.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
            let pong = timeout(Duration::from_secs(30), socket.next()).await.unwrap();
            assert!(pong.unwrap().unwrap().to_text().unwrap().contains("pong"));
            answer.status().as_u16()
        }
        Err(tungstenite::Error::Http(answer)) => answer.status().as_u16(),
        Err(error) => panic!("no answer to the upgrade: {error}"),
    }
}
