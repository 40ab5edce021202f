//! Groups with members at several gateways: consent, fan-out at the home, order, refusals.

use std::{sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, Forward, GatewayId, LaneSeq, MessageId, PeerAddress,
    Priority, Receipt, ReceiptKind, Recipient, Said, SignedEnvelope, Timestamp,
};
use fieldpost_transport::{Faults, MemoryNetwork, MemoryOptions, MemoryTransport, Transport};
use harness::{
    Client,
    client::Draft,
    federation::{Node, attempts, record_when, record_with_status, take},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::federation::{QUICK, node};

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_elsewhere_is_asked_accepts_and_then_gets_and_writes_what_the_group_does() {
    let world = World::new(&[]).await;
    let World { home, there, alice, bob, group, .. } = &world;
    let carol = home.register("carol").await;
    add(alice, group, "carol").await;

    let asked = add(alice, group, &there.address("bob")).await;
    assert_eq!((&asked["status"], &asked["role"]), (&json!("invited"), &json!("member")));
    let again = add(alice, group, &there.address("bob")).await;
    assert_eq!(again["status"], "invited");
    assert_eq!(
        members(alice, group).await,
        [
            ("alice".to_owned(), "member".to_owned()),
            (there.address("bob"), "invited".to_owned()),
            ("carol".to_owned(), "member".to_owned()),
        ]
    );
    // Not a member yet, so nothing goes to bob but the question.
    alice.send(&Draft::text(&format!("group:{group}"), "before")).await.unwrap();
    let shown = take(bob, 1).await.remove(0);
    assert_eq!(shown.from, home.address("alice"));
    assert!(shown.content.unwrap().contains("Hikers"));
    let listed = groups(bob).await;
    assert_eq!(listed.len(), 1, "asked twice, told once: {listed:?}");
    assert_eq!(
        (&listed[0]["membership"], &listed[0]["name"]),
        (&json!("invited"), &json!("Hikers"))
    );
    assert_eq!(listed[0]["address"], json!(world.address()));

    let accepted = answer(bob, &world.key(), "accept").await.unwrap();
    assert_eq!(accepted["membership"], "joining");
    world.until_member(bob).await;
    assert_eq!(members(alice, group).await[1], (there.address("bob"), "member".to_owned()));

    take(&carol, 1).await;
    let sent = alice.send(&Draft::text(&format!("group:{group}"), "Up the hill!")).await.unwrap();
    let at_bob = take(bob, 1).await.remove(0);
    assert_eq!((at_bob.from, at_bob.to), (home.address("alice"), world.address()));
    assert_eq!(at_bob.content.as_deref(), Some("Up the hill!"));
    take(&carol, 1).await;
    record_with_status(alice, sent.message_id, "delivered").await;

    let sent = bob.send(&Draft::text(&world.address(), "Coming.")).await.unwrap();
    for member in [alice, &carol] {
        let shown = take(member, 1).await.remove(0);
        assert_eq!((shown.from, shown.to), (there.address("bob"), format!("group:{group}")));
        assert_eq!(
            (shown.message_id, shown.content.as_deref()),
            (sent.message_id, Some("Coming."))
        );
    }
    // The home's word is that it has fanned out; who read it is nobody else's business.
    let record = record_with_status(bob, sent.message_id, "delivered").await;
    assert_eq!(record.recipients.len(), 1);
    assert_eq!(record.recipients[0].recipient, world.address());
    let talk = bob.request(Method::GET, &format!("/v1/messages?with={}", world.address()));
    let talk: Value = bob.call(talk).await.unwrap();
    assert_eq!(talk["messages"].as_array().unwrap().len(), 2);
    let counts: Value = get(alice, &format!("/v1/groups/{group}")).await;
    assert_eq!((&counts["member_count"], &counts["message_count"]), (&json!(3), &json!(3)));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_at_three_gateways_see_each_others_messages_as_their_gateways_signed_them() {
    let world = World::new(&[]).await;
    let World { network, there, alice, bob, .. } = &world;
    let third = node(network, &[]).await;
    let (dave, erin) = (third.register("dave").await, third.register("erin").await);
    world.join(bob, there).await;
    world.join(&dave, &third).await;
    world.join(&erin, &third).await;

    let first = bob.send(&Draft::text(&world.address(), "from bob")).await.unwrap();
    for member in [&dave, &erin] {
        let shown = take(member, 1).await.remove(0);
        assert_eq!((shown.from, shown.to), (there.address("bob"), world.address()));
        assert_eq!(shown.message_id, first.message_id);
    }
    assert_eq!(take(alice, 1).await[0].content.as_deref(), Some("from bob"));
    // Two members of one gateway: only the home knows, so it goes there and back.
    dave.send(&Draft::text(&world.address(), "from dave")).await.unwrap();
    let at_erin = take(&erin, 1).await.remove(0);
    assert_eq!((at_erin.from.as_str(), at_erin.to), ("dave", world.address()));
    assert_eq!(take(bob, 1).await[0].from, third.address("dave"));
    // What one sends itself does not come back: the next that comes is somebody else's.
    alice.send(&Draft::text(&format!("group:{}", world.group), "from alice")).await.unwrap();
    for member in [&dave, &erin, bob] {
        assert_eq!(take(member, 1).await[0].content.as_deref(), Some("from alice"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn order_holds_through_the_home_whatever_gets_lost() {
    let world = World::new(&[QUICK]).await;
    let World { network, home, there, alice, bob, .. } = &world;
    let third = node(network, &[QUICK]).await;
    let dave = third.register("dave").await;
    world.join(&dave, &third).await;
    add(alice, &world.group, &there.address("bob")).await;
    take(bob, 1).await;
    let bad = Faults { loss: 0.3, duplication: 0.3, ..Faults::NONE };
    for (one, other) in [(there.id(), home.id()), (home.id(), third.id())] {
        network.set_faults(one, other, bad.clone());
    }
    // Accepted and written to at once: the home knows what comes first.
    answer(bob, &world.key(), "accept").await.unwrap();
    let mut ids = Vec::new();
    for number in 0..12 {
        let sent = bob.send(&Draft::text(&world.address(), format!("{number}"))).await.unwrap();
        ids.push(sent.message_id);
    }
    let expected: Vec<String> = (0..12).map(|number| number.to_string()).collect();
    for member in [alice, &dave] {
        let texts: Vec<_> =
            take(member, 12).await.into_iter().filter_map(|shown| shown.content).collect();
        assert_eq!(texts, expected);
    }
    network.heal();
    for id in ids {
        record_with_status(bob, id, "delivered").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_member_is_refused_with_the_reason() {
    let world = World::new(&[QUICK]).await;
    let World { network, home, there, alice, bob, group, .. } = &world;
    // Not even sent without consent.
    let refused = bob.send(&Draft::text(&world.address(), "let me in")).await.unwrap_err();
    assert_eq!(refused.status(), Some(403));
    // Consent alone makes nobody a member; until the home has said so, a message may be on its way.
    network.set_faults(home.id(), there.id(), Faults { loss: 1.0, ..Faults::NONE });
    answer(bob, &world.key(), "accept").await.unwrap();
    let sent = bob.send(&Draft::text(&world.address(), "let me in")).await.unwrap();
    network.heal();
    until(|| async { membership(bob).await.as_deref() == Some("refused") }).await;
    // Once it has, the next is refused at once.
    let refused = bob.send(&Draft::text(&world.address(), "let me in")).await.unwrap_err();
    assert_eq!(refused.status(), Some(403));
    assert!(format!("{refused:?}").contains("did not take bob"), "{refused:?}");
    let record = record_with_status(bob, sent.message_id, "failed").await;
    let reason = record.recipients[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("not a member"), "{reason}");
    // An invitation is good for whom it names.
    let carol = there.register("carol").await;
    add(alice, group, &there.address("bob")).await;
    answer(&carol, &world.key(), "accept").await.unwrap();
    until(|| async { membership(&carol).await.as_deref() == Some("refused") }).await;
    assert_eq!(members(alice, group).await.len(), 2);
    // A group that is not there.
    let nothing = format!("nothing@{}", home.id());
    answer(bob, &nothing, "accept").await.unwrap();
    until(|| async {
        let found: Value = get(bob, &format!("/v1/groups/{nothing}")).await;
        found["membership"] == "refused"
    })
    .await;
    // A withdrawn invitation.
    remove(alice, group, &there.address("bob")).await;
    answer(bob, &world.key(), "accept").await.unwrap();
    until(|| async { membership(bob).await.as_deref() == Some("refused") }).await;
    assert_eq!(members(alice, group).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_elsewhere_is_named_with_its_home_and_its_members_only_there() {
    let world = World::new(&[]).await;
    let World { there, alice, bob, group, .. } = &world;
    add(alice, group, &there.address("bob")).await;
    take(bob, 1).await;
    // It is listed a moment after it is shown.
    until(|| async { membership(bob).await.as_deref() == Some("invited") }).await;
    // Asked and not answered.
    let refused = bob.send(&Draft::text(&world.address(), "hello?")).await.unwrap_err();
    assert_eq!(refused.status(), Some(403));
    assert!(format!("{refused:?}").contains("has not accepted"), "{refused:?}");
    // The id alone is of this gateway, and says where the other is.
    let refused = answer(bob, group, "accept").await.unwrap_err();
    assert_eq!(refused.status(), Some(404));
    assert!(format!("{refused:?}").contains(&world.key()), "{refused:?}");
    answer(bob, &world.key(), "accept").await.unwrap();
    world.until_member(bob).await;
    let path = format!("/v1/groups/{}/members", world.key());
    let refused = bob.call::<Value>(bob.request(Method::GET, &path)).await.unwrap_err();
    assert_eq!(refused.status(), Some(404));
    assert!(format!("{refused:?}").contains("only its home"), "{refused:?}");
    // Named with its own home, a group is the same.
    let own = get(alice, &format!("/v1/groups/{}/members", world.key())).await;
    assert_eq!(own["members"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_leaving_declining_and_closing_end_it_on_both_sides() {
    let world = World::new(&[]).await;
    let World { home, there, alice, bob, group, .. } = &world;
    // Declined.
    add(alice, group, &there.address("bob")).await;
    take(bob, 1).await;
    answer(bob, &world.key(), "decline").await.unwrap();
    until(|| async { members(alice, group).await.len() == 1 }).await;
    assert_eq!(membership(bob).await, None);
    // Joined, and left.
    world.join(bob, there).await;
    answer(bob, &world.key(), "leave").await.unwrap();
    assert_eq!(membership(bob).await, None);
    until(|| async { members(alice, group).await.len() == 1 }).await;
    // Joined, and declined after all.
    world.join(bob, there).await;
    answer(bob, &world.key(), "decline").await.unwrap();
    assert_eq!(membership(bob).await, None);
    until(|| async { members(alice, group).await.len() == 1 }).await;
    // Joined again, and removed.
    world.join(bob, there).await;
    remove(alice, group, &there.address("bob")).await;
    let told = take(bob, 1).await.remove(0);
    assert_eq!((told.from, told.to), (home.address("alice"), world.address()));
    assert!(told.content.unwrap().contains("removed"));
    assert_eq!(membership(bob).await, None);
    let refused = bob.send(&Draft::text(&world.address(), "hello?")).await.unwrap_err();
    assert_eq!(refused.status(), Some(403));
    // Joined again; the last member at home leaves, which closes the group.
    world.join(bob, there).await;
    answer(alice, group, "leave").await.unwrap();
    assert!(take(bob, 1).await[0].content.as_deref().unwrap().contains("closed"));
    assert_eq!(membership(bob).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_accepts_and_declines_at_once_is_a_member_on_both_sides_or_on_none() {
    let world = World::new(&[]).await;
    let World { home, there, alice, bob, group, .. } = &world;
    home.register("carol").await;
    add(alice, group, "carol").await;
    let (bob_there, key) = (&there.address("bob"), &world.key());
    let agree = || async {
        let here = membership(bob).await.as_deref() == Some("member");
        here == members(alice, group).await.contains(&(bob_there.clone(), "member".to_owned()))
    };
    for _ in 0..20 {
        add(alice, group, bob_there).await;
        // The word that it was refused before may come after the invitation.
        until(|| async { membership(bob).await.is_some_and(|standing| standing != "joining") })
            .await;
        let (accepted, declined) =
            tokio::join!(answer(bob, key, "accept"), answer(bob, key, "decline"));
        declined.unwrap();
        // It may be over again by the time that it is answered.
        assert!(accepted.is_ok() || accepted.is_err_and(|error| error.status() == Some(403)));
        until(agree).await;
        // By the time that this has ended, the home has heard both.
        let sent = alice.send(&Draft::text(&format!("group:{group}"), "Who is in?")).await.unwrap();
        record_when(alice, sent.message_id, |record| {
            let mut elsewhere = record.recipients.iter().filter(|one| one.recipient == *bob_there);
            elsewhere.all(|one| one.status != "pending")
        })
        .await;
        until(agree).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_elsewhere_is_a_plain_member_and_the_words_of_gateways_are_no_peers() {
    let world = World::new(&[]).await;
    let World { there, alice, bob, group, .. } = &world;
    world.join(bob, there).await;
    let path = format!("/v1/groups/{group}/members/{}", there.address("bob"));
    let role = alice.request(Method::PUT, &path).json(&json!({ "role": "moderator" }));
    assert_eq!(alice.call::<Value>(role).await.unwrap_err().status(), Some(422));
    let invited = json!({ "peer": there.address("erin"), "role": "admin" });
    let request =
        alice.request(Method::POST, &format!("/v1/groups/{group}/members")).json(&invited);
    assert_eq!(alice.call::<Value>(request).await.unwrap_err().status(), Some(422));
    for reserved in ["group_invite", "group_removed", "group_closed", "group_accept"] {
        let forged = json!({
            "to": there.address("bob"), "content": "you are out", "message_type": reserved,
            "metadata": { "group": world.address(), "name": "Hikers" },
        });
        let request = alice.request(Method::POST, "/v1/messages").json(&forged);
        assert_eq!(alice.call::<Value>(request).await.unwrap_err().status(), Some(422));
    }
    assert_eq!(membership(bob).await.as_deref(), Some("member"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_privacy_waits_at_the_home_too() {
    let world = World::new(&[]).await;
    let World { home, there, alice, bob, .. } = &world;
    world.join(bob, there).await;
    home.transport(0).set_level(3);
    there.transport(0).set_level(3);
    let third = node(&world.network, &[]).await;
    let dave = third.register("dave").await;
    world.join(&dave, &third).await;
    home.transport(0).set_level(0);
    let private = Draft { min_anonymity: Some(3), ..Draft::text(&world.address(), "whisper") };
    let sent = bob.send(&private).await.unwrap();
    assert_eq!(take(alice, 1).await[0].content.as_deref(), Some("whisper"));
    bob.send(&Draft::text(&world.address(), "aloud")).await.unwrap();
    assert_eq!(take(&dave, 1).await[0].content.as_deref(), Some("aloud"));
    // The home's receipt obeys the level as well, so bob does not know yet.
    record_with_status(bob, sent.message_id, "sent").await;
    home.transport(0).set_level(3);
    let shown = take(&dave, 1).await.remove(0);
    assert_eq!((shown.content.as_deref(), shown.from), (Some("whisper"), there.address("bob")));
    record_with_status(bob, sent.message_id, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_survives_the_restart_of_every_gateway() {
    let mut world = World::new(&[]).await;
    world.join(&world.bob, &world.there).await;
    world.home.stop().await;
    let sent = world.bob.send(&Draft::text(&world.address(), "anybody?")).await.unwrap();
    world.there.stop().await;
    world.home.resume().await;
    world.there.resume().await;
    let alice = world.home.client_of(&world.alice);
    let bob = world.there.client_of(&world.bob);
    assert_eq!(take(&alice, 1).await[0].content.as_deref(), Some("anybody?"));
    let record = record_with_status(&bob, sent.message_id, "delivered").await;
    assert!(attempts(&record.recipients[0]).contains(&"memory sent".to_owned()));
    assert_eq!(membership(&bob).await.as_deref(), Some("member"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_in_the_name_of_a_group_but_from_its_home_to_who_has_joined() {
    let world = World::new(&[]).await;
    let World { network, home, there, alice, bob, .. } = &world;
    world.join(bob, there).await;
    let mallory = Mallory::join(network);
    let carol = there.register("carol").await;
    // A group of mallory's that nobody has joined.
    let own = Recipient::Group { id: "trap".parse().unwrap(), home: Some(mallory.id) };
    for victim in ["bob", "carol"] {
        let to: PeerAddress = there.address(victim).parse().unwrap();
        let forged = mallory.message(to.clone().into(), own.clone(), Content::text("come in"));
        assert!(mallory.refusal(there, forged).await.contains("has not joined"));
        // What another gateway's peer said to that group.
        let other = SigningKey::from_bytes(&[67; 32]);
        let inner = message_of(&other, own.clone(), own.clone(), Content::text("hello"));
        let forward = Forward { recipient: to, lane_seq: None, after: None, original: inner };
        let forward = forward.sign(&mallory.key).unwrap();
        assert!(mallory.refusal(there, forward).await.contains("has not joined"));
    }
    // Bob's group through somebody who is not its home: it cannot even be signed.
    let hikers: Recipient = world.address().parse().unwrap();
    let inner = message_of(
        &SigningKey::from_bytes(&[67; 32]),
        hikers.clone(),
        hikers.clone(),
        Content::text("hello"),
    );
    let forward = Forward {
        recipient: there.address("bob").parse().unwrap(),
        lane_seq: None,
        after: None,
        original: inner,
    };
    assert!(forward.sign(&mallory.key).is_err());
    // A stranger writes to the group, accepts without being asked, and asks into somebody's group.
    let stranger = mallory.message(hikers.clone(), hikers.clone(), Content::text("spam"));
    assert!(mallory.refusal(home, stranger).await.contains("not a member"));
    let accept = Content { message_type: Some("group_accept".into()), ..Content::text("") };
    let accept = mallory.message(hikers.clone(), hikers, accept);
    assert!(mallory.refusal(home, accept).await.contains("no invitation"));
    let metadata = json!({ "group": world.address(), "name": "Hikers" }).to_string();
    let invite = Content {
        message_type: Some("group_invite".into()),
        metadata: Some(metadata),
        ..Content::text("join us")
    };
    let to: Recipient = there.address("carol").parse().unwrap();
    mallory.send(there, mallory.message(to.clone(), to, invite)).await;
    assert_eq!(take(&carol, 1).await[0].content.as_deref(), Some("join us"));
    assert_eq!(groups(&carol).await, [] as [Value; 0]);
    // All others are as they were.
    bob.send(&Draft::text(&world.address(), "still here")).await.unwrap();
    assert_eq!(take(alice, 1).await[0].content.as_deref(), Some("still here"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_invited_peer_writes_waits_for_its_consent_beyond_the_wait_for_predecessors() {
    let world = World::new(&["--order-wait=1s"]).await;
    let World { network, home, alice, group, .. } = &world;
    let mallory = Mallory::join(network);
    let invited = format!("mal@{}", mallory.id);
    let hikers: Recipient = world.address().parse().unwrap();
    let said = |lane_seq, after, content| {
        let draft = draft_of(&mallory.key, hikers.clone(), hikers.clone(), content);
        Envelope { lane_seq: Some(lane_seq), after, ..draft }.sign(&mallory.key).unwrap()
    };
    add(alice, group, &invited).await;
    let early = said(LaneSeq(2), Some(LaneSeq(1)), Content::text("early"));
    let digest = early.digest();
    mallory.send(home, early).await;
    assert_eq!(mallory.receipt(digest, None).await.kind, ReceiptKind::Stored);
    // Its predecessor is waited for no longer, and still it is neither shown nor refused.
    sleep(Duration::from_secs(3)).await;
    let accept = Content { message_type: Some("group_accept".into()), ..Content::text("") };
    mallory.send(home, said(LaneSeq(1), None, accept)).await;
    assert_eq!(take(alice, 1).await[0].content.as_deref(), Some("early"));
    assert_eq!(
        mallory.receipt(digest, Some(ReceiptKind::Stored)).await.kind,
        ReceiptKind::Delivered
    );
    // Without consent it is refused after all.
    remove(alice, group, &invited).await;
    add(alice, group, &invited).await;
    let never = said(LaneSeq(4), Some(LaneSeq(3)), Content::text("never"));
    let digest = never.digest();
    mallory.send(home, never).await;
    assert_eq!(mallory.receipt(digest, None).await.kind, ReceiptKind::Stored);
    remove(alice, group, &invited).await;
    let refused = mallory.receipt(digest, Some(ReceiptKind::Stored)).await;
    assert_eq!(refused.kind, ReceiptKind::Refused);
    assert!(refused.reason.unwrap_or_default().contains("not a member"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_invitations_keeps_nobody_from_joining() {
    const LISTED: usize = 100;
    let world = World::new(&[]).await;
    let World { home, there, alice, bob, .. } = &world;
    let mut last = String::new();
    for number in 0..=LISTED {
        let request = alice.request(Method::POST, "/v1/groups");
        let made: Value =
            alice.call(request.json(&json!({ "name": format!("group {number}") }))).await.unwrap();
        last = made["id"].as_str().unwrap().to_owned();
        add(alice, &last, &there.address("bob")).await;
    }
    // Each is told as a message, and as many are listed as one gateway may have open.
    take(bob, LISTED + 1).await;
    assert_eq!(groups(bob).await.len(), LISTED);
    let key = format!("{last}@{}", home.id());
    let accepted = answer(bob, &key, "accept").await.unwrap();
    assert_eq!(accepted["membership"], "joining");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_crosses_one_hop_once_and_is_passed_on_by_nobody() {
    let (near, far) = (MemoryNetwork::new(1), MemoryNetwork::new(2));
    let hearing = |name| MemoryOptions::named(name).with_broadcasts();
    let start = async |networks: &[(&MemoryNetwork, MemoryOptions)]| {
        Node::start(crate::federation::database().await, networks, &[QUICK]).await
    };
    let a = start(&[(&near, hearing("ble"))]).await;
    let b = start(&[(&near, hearing("ble")), (&far, hearing("mesh"))]).await;
    let c = start(&[(&far, hearing("mesh"))]).await;
    let alice = a.register("alice").await;
    let (bob, carol) = (b.register("bob").await, c.register("carol").await);
    let before = b.transport(1).status().envelopes_sent;
    let sent = alice.send(&Draft::text("broadcast", "Flood!")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("Flood!"));
    let record = record_with_status(&alice, sent.message_id, "sent").await;
    assert_eq!(record.recipients[0].recipient, "transport:ble");
    assert_eq!(record.recipients.len(), 1);
    // Over each transport that can, once; b has two.
    let sent = bob.send(&Draft::text("broadcast", "Heard.")).await.unwrap();
    for listener in [&alice, &carol] {
        assert_eq!(take(listener, 1).await[0].content.as_deref(), Some("Heard."), "and not Flood!");
    }
    let record = record_when(&bob, sent.message_id, |record| {
        record.recipients.iter().all(|one| one.status == "sent")
    })
    .await;
    let over: Vec<_> = record.recipients.iter().map(|one| one.recipient.as_str()).collect();
    assert_eq!(over, ["transport:ble", "transport:mesh"]);
    assert_eq!(b.transport(1).status().envelopes_sent, before + 1);
    // Lost without a trace is lost: nobody answers a broadcast, and nobody repeats it.
    near.set_faults(a.id(), b.id(), Faults::SILENCE);
    let lost = near.lost();
    let sent = alice.send(&Draft::text("broadcast", "lost")).await.unwrap();
    record_with_status(&alice, sent.message_id, "sent").await;
    near.heal();
    alice.send(&Draft::text(&b.address("bob"), "after")).await.unwrap();
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("after"));
    assert_eq!(near.lost(), lost + 1);
    let record = alice.record(sent.message_id).await.unwrap();
    assert_eq!(attempts(&record.recipients[0]), ["ble sent"]);
    let long = Draft { ttl: Some(3601), ..Draft::text("broadcast", "too long") };
    assert_eq!(alice.send(&long).await.unwrap_err().status(), Some(422));
}

/// A group of alice's at home, and bob at another gateway.
pub(crate) struct World {
    pub(crate) network: MemoryNetwork,
    pub(crate) home: Node,
    pub(crate) there: Node,
    pub(crate) alice: Client,
    pub(crate) bob: Client,
    pub(crate) group: String,
}

impl World {
    pub(crate) async fn new(options: &[&str]) -> Self {
        let network = MemoryNetwork::new(1);
        let (home, there) = (node(&network, options).await, node(&network, options).await);
        let (alice, bob) = (home.register("alice").await, there.register("bob").await);
        let made = alice.request(Method::POST, "/v1/groups").json(&json!({ "name": "Hikers" }));
        let made: Value = alice.call(made).await.unwrap();
        let group = made["id"].as_str().unwrap().to_owned();
        Self { network, home, there, alice, bob, group }
    }

    /// The group as other gateways name it in paths.
    pub(crate) fn key(&self) -> String {
        format!("{}@{}", self.group, self.home.id())
    }

    pub(crate) fn address(&self) -> String {
        format!("group:{}", self.key())
    }

    /// Asks a peer of another gateway, lets it accept, and waits until it is a member.
    pub(crate) async fn join(&self, peer: &Client, of: &Node) {
        add(&self.alice, &self.group, &of.address(peer.peer())).await;
        take(peer, 1).await;
        answer(peer, &self.key(), "accept").await.unwrap();
        self.until_member(peer).await;
    }

    pub(crate) async fn until_member(&self, peer: &Client) {
        until(|| async { membership(peer).await.as_deref() == Some("member") }).await;
    }
}

pub(crate) async fn add(client: &Client, group: &str, peer: &str) -> Value {
    let path = format!("/v1/groups/{group}/members");
    client.call(client.request(Method::POST, &path).json(&json!({ "peer": peer }))).await.unwrap()
}

pub(crate) async fn remove(client: &Client, group: &str, peer: &str) {
    let path = format!("/v1/groups/{group}/members/{peer}");
    client.call::<()>(client.request(Method::DELETE, &path)).await.unwrap();
}

pub(crate) async fn answer(
    client: &Client,
    group: &str,
    word: &str,
) -> Result<Value, harness::client::Failure> {
    let request = client.request(Method::POST, &format!("/v1/groups/{group}/{word}"));
    if word == "accept" {
        return client.call(request).await;
    }
    client.call::<()>(request).await.map(|()| Value::Null)
}

async fn get(client: &Client, path: &str) -> Value {
    client.call(client.request(Method::GET, path)).await.unwrap()
}

async fn groups(client: &Client) -> Vec<Value> {
    get(client, "/v1/groups?limit=1000").await["groups"].as_array().unwrap().clone()
}

/// How a peer stands to the first of its groups.
pub(crate) async fn membership(client: &Client) -> Option<String> {
    let groups = groups(client).await;
    groups.first().map(|group| group["membership"].as_str().unwrap().to_owned())
}

async fn members(client: &Client, group: &str) -> Vec<(String, String)> {
    let found = get(client, &format!("/v1/groups/{group}/members")).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let members = found["members"].as_array().unwrap();
    members.iter().map(|member| (text(&member["peer"]), text(&member["status"]))).collect()
}

/// Waits for something that is sure to come.
pub(crate) async fn until<F: Future<Output = bool>>(mut is_there: impl FnMut() -> F) {
    let deadline = Instant::now() + harness::client::PATIENCE;
    while !is_there().await {
        assert!(Instant::now() < deadline, "it never came to that");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A gateway that means ill.
pub(crate) struct Mallory {
    pub(crate) key: SigningKey,
    pub(crate) id: GatewayId,
    pub(crate) end: Arc<MemoryTransport>,
}

impl Mallory {
    pub(crate) fn join(network: &MemoryNetwork) -> Self {
        let key = SigningKey::from_bytes(&[66; 32]);
        let id = GatewayId::from(key.verifying_key());
        Self { key, id, end: network.join(id, MemoryOptions::default()) }
    }

    pub(crate) async fn send(&self, to: &Node, envelope: SignedEnvelope) {
        self.end.send(&to.id().to_string(), envelope).await.unwrap();
    }

    /// Sends something that will be refused, and returns why.
    pub(crate) async fn refusal(&self, to: &Node, envelope: SignedEnvelope) -> String {
        let digest = envelope.digest();
        self.send(to, envelope).await;
        let receipt = self.receipt(digest, None).await;
        assert_eq!(receipt.kind, ReceiptKind::Refused, "{:?}", receipt.reason);
        receipt.reason.unwrap_or_default()
    }

    /// The next receipt for an envelope that is not of the kind it was answered with before; those that
    /// nobody answers come again.
    pub(crate) async fn receipt(&self, digest: [u8; 32], before: Option<ReceiptKind>) -> Receipt {
        loop {
            let bytes = timeout(harness::client::PATIENCE, self.end.receive()).await;
            let bytes = bytes.expect("an answer comes").expect("the network is up");
            let verified = SignedEnvelope::decode(&bytes).unwrap().verify().unwrap();
            let Said::Receipt(receipt) = verified.said else { continue };
            if receipt.answers == digest && Some(receipt.kind) != before {
                return receipt;
            }
        }
    }

    pub(crate) fn message(
        &self,
        recipient: Recipient,
        to: Recipient,
        content: Content,
    ) -> SignedEnvelope {
        message_of(&self.key, recipient, to, content)
    }
}

fn message_of(
    key: &SigningKey,
    recipient: Recipient,
    to: Recipient,
    content: Content,
) -> SignedEnvelope {
    draft_of(key, recipient, to, content).sign(key).unwrap()
}

pub(crate) fn draft_of(
    key: &SigningKey,
    recipient: Recipient,
    to: Recipient,
    content: Content,
) -> Envelope {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let now = Timestamp::try_from(u64::try_from(now.as_millis()).unwrap()).unwrap();
    Envelope {
        sender: PeerAddress::remote("mal".parse().unwrap(), GatewayId::from(key.verifying_key())),
        recipient,
        to,
        message_id: MessageId(Uuid::new_v4()),
        sent_at: now,
        expires_at: Timestamp::try_from(now.as_millis() + 3_600_000).unwrap(),
        priority: Priority::Normal,
        level: AnonymityLevel::NONE,
        lane_seq: None,
        after: None,
        content,
    }
}
