//! Members of groups elsewhere who were removed and asked again: what they said meanwhile is dismissed, and
//! nothing they say afterwards waits for it.

use fieldpost_envelope::{
    Content, Envelope, LaneSeq, Receipt, ReceiptKind, Recipient, SignedEnvelope,
};
use fieldpost_transport::{Faults, MemoryNetwork, Transport};
use harness::{
    client::Draft,
    federation::{record_with_status, take},
};

use crate::{
    federation::{QUICK, node},
    remote_groups::{Mallory, World, add, answer, draft_of, membership, remove, until},
};

/// `--order-wait` is longer than any test waits for anything.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_removed_and_asked_again_writes_at_once_whatever_was_dismissed_meanwhile() {
    let world = World::new(&[QUICK]).await;
    let World { network, home, there, alice, bob, group, .. } = &world;
    world.join(bob, there).await;
    bob.send(&Draft::text(&world.address(), "before")).await.unwrap();
    assert_eq!(take(alice, 1).await[0].content.as_deref(), Some("before"));
    // The home's words are lost, so bob does not know that he is out, and hears no refusal.
    network.set_faults_towards(home.id(), there.id(), Faults::SILENCE);
    remove(alice, group, &there.address("bob")).await;
    let refused = home.transport(0).status().envelopes_received;
    let mut meanwhile = Vec::new();
    for number in 0..3 {
        let sent = bob.send(&Draft::text(&world.address(), format!("{number}"))).await.unwrap();
        meanwhile.push(sent.message_id);
    }
    until(|| async { home.transport(0).status().envelopes_received >= refused + 3 }).await;
    add(alice, group, &there.address("bob")).await;
    network.heal();
    let told = take(bob, 2).await;
    assert!(told[0].content.as_deref().unwrap().contains("removed"));
    assert!(told[1].content.as_deref().unwrap().contains("invites"));
    answer(bob, &world.key(), "accept").await.unwrap();
    bob.send(&Draft::text(&world.address(), "back")).await.unwrap();
    let shown = take(alice, 1).await.remove(0);
    assert_eq!((shown.content.as_deref(), shown.gap, shown.late), (Some("back"), false, false));
    for id in meanwhile {
        record_with_status(bob, id, "failed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dismissed_out_of_turn_is_no_predecessor_either() {
    let (world, said) = removed().await;
    let World { home, alice, group, .. } = &world;
    // 4 comes before 3, and what names it before both, by a member again.
    assert_eq!(said.to(home, 2, Some(1), "gone").await.kind, ReceiptKind::Refused);
    assert_eq!(said.to(home, 4, Some(3), "gone").await.kind, ReceiptKind::Refused);
    add(alice, group, &said.address()).await;
    let accept = said.sign(5, Some(4), ACCEPT);
    let digest = accept.digest();
    said.mallory.send(home, accept).await;
    assert_eq!(said.mallory.receipt(digest, None).await.kind, ReceiptKind::Stored);
    assert_eq!(said.to(home, 3, Some(2), ACCEPT).await.kind, ReceiptKind::Delivered);
    let accepted = said.mallory.receipt(digest, Some(ReceiptKind::Stored)).await;
    assert_eq!(accepted.kind, ReceiptKind::Delivered);
    assert_eq!(said.to(home, 6, Some(5), "back").await.kind, ReceiptKind::Delivered);
    let shown = take(alice, 1).await.remove(0);
    assert_eq!((shown.content.as_deref(), shown.gap, shown.late), (Some("back"), false, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_behind_something_dismissed_is_dismissed_with_it() {
    let world = World::new(&[]).await;
    let World { home, alice, group, .. } = &world;
    let said = Said::of(&world);
    add(alice, group, &said.address()).await;
    // It may be meant for after the acceptance, until its predecessor turns out to be no such thing.
    let early = said.sign(2, Some(1), "early");
    let digest = early.digest();
    said.mallory.send(home, early).await;
    assert_eq!(said.mallory.receipt(digest, None).await.kind, ReceiptKind::Stored);
    assert_eq!(said.to(home, 1, None, "earlier").await.kind, ReceiptKind::Refused);
    let refused = said.mallory.receipt(digest, Some(ReceiptKind::Stored)).await;
    assert_eq!(refused.kind, ReceiptKind::Refused);
    assert_eq!(said.to(home, 3, Some(2), ACCEPT).await.kind, ReceiptKind::Delivered);
    assert_eq!(said.to(home, 4, Some(3), "in").await.kind, ReceiptKind::Delivered);
    assert_eq!(take(alice, 1).await[0].content.as_deref(), Some("in"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dismissed_is_judged_anew_when_it_comes_again() {
    let (world, said) = removed().await;
    let World { home, alice, group, .. } = &world;
    let word = said.sign(3, Some(2), "once more");
    for _ in 0..2 {
        assert!(said.mallory.refusal(home, word.clone()).await.contains("not a member"));
    }
    add(alice, group, &said.address()).await;
    assert_eq!(said.to(home, 2, Some(1), ACCEPT).await.kind, ReceiptKind::Delivered);
    let digest = word.digest();
    said.mallory.send(home, word).await;
    let taken = said.mallory.receipt(digest, Some(ReceiptKind::Refused)).await;
    assert_eq!(taken.kind, ReceiptKind::Delivered);
    assert_eq!(take(alice, 1).await[0].content.as_deref(), Some("once more"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_removal_that_comes_late_does_not_end_what_was_accepted_since() {
    let network = MemoryNetwork::new(1);
    let there = node(&network, &[]).await;
    let bob = there.register("bob").await;
    let home = Mallory::join(&network);
    let key = format!("club@{}", home.id);
    let group: Recipient = format!("group:{key}").parse().unwrap();
    let to: Recipient = there.address("bob").parse().unwrap();
    let word = |message_type: &str, about: &Recipient| {
        let metadata = serde_json::json!({ "group": group.to_string(), "name": "Club" });
        let content = Content {
            message_type: Some(message_type.into()),
            metadata: Some(metadata.to_string()),
            ..Content::text(message_type)
        };
        home.message(to.clone(), about.clone(), content)
    };
    let join = async || {
        home.send(&there, word("group_invite", &to)).await;
        take(&bob, 1).await;
        until(|| async { membership(&bob).await.as_deref() == Some("invited") }).await;
        answer(&bob, &key, "accept").await.unwrap();
        assert_eq!(membership(&bob).await.as_deref(), Some("joining"));
    };
    join().await;
    let removal = word("group_removed", &group);
    home.send(&there, removal.clone()).await;
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("group_removed"));
    until(|| async { membership(&bob).await.is_none() }).await;
    join().await;
    home.send(&there, removal).await;
    // What comes after the copy is still taken for a member.
    let said = home.message(to.clone(), group.clone(), Content::text("still in"));
    home.send(&there, said).await;
    assert_eq!(take(&bob, 1).await[0].content.as_deref(), Some("still in"));
    assert_eq!(membership(&bob).await.as_deref(), Some("joining"));
}

const ACCEPT: &str = "group_accept";

/// A world, and somebody who was a member of its group and was removed.
async fn removed() -> (World, Said) {
    let world = World::new(&[]).await;
    let said = Said::of(&world);
    add(&world.alice, &world.group, &said.address()).await;
    assert_eq!(said.to(&world.home, 1, None, ACCEPT).await.kind, ReceiptKind::Delivered);
    remove(&world.alice, &world.group, &said.address()).await;
    (world, said)
}

/// Says things to the group of a world, each at its place.
struct Said {
    mallory: Mallory,
    group: Recipient,
}

impl Said {
    fn of(world: &World) -> Self {
        let mallory = Mallory::join(&world.network);
        Self { mallory, group: world.address().parse().unwrap() }
    }

    fn address(&self) -> String {
        format!("mal@{}", self.mallory.id)
    }

    fn sign(&self, lane_seq: u64, after: Option<u64>, text: &str) -> SignedEnvelope {
        let content = match text {
            ACCEPT => Content { message_type: Some(ACCEPT.into()), ..Content::text("") },
            text => Content::text(text),
        };
        let key = &self.mallory.key;
        let draft = draft_of(key, self.group.clone(), self.group.clone(), content);
        let (lane_seq, after) = (Some(LaneSeq(lane_seq)), after.map(LaneSeq));
        Envelope { lane_seq, after, ..draft }.sign(key).unwrap()
    }

    /// Says something, and returns how it was taken.
    async fn to(
        &self,
        home: &harness::federation::Node,
        lane_seq: u64,
        after: Option<u64>,
        text: &str,
    ) -> Receipt {
        let envelope = self.sign(lane_seq, after, text);
        let digest = envelope.digest();
        self.mallory.send(home, envelope).await;
        self.mallory.receipt(digest, None).await
    }
}
