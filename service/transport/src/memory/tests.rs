use ed25519_dalek::SigningKey;
use fieldpost_envelope::{Listing, Receipt, ReceiptKind, Roster, Timestamp};

use super::*;

#[tokio::test(start_paused = true)]
async fn what_is_sent_arrives_once_and_only_where_it_was_sent() {
    let network = MemoryNetwork::new(1);
    let [a, b, c] = [1, 2, 3].map(|seed| network.join(id(seed), MemoryOptions::default()));
    a.send(&id(2).to_string(), envelope(1, 7)).await.unwrap();
    assert_eq!(b.receive().await, Some(envelope(1, 7).into_bytes()));
    assert_eq!((b.status().envelopes_received, a.status().envelopes_sent), (1, 1));
    nothing_comes(&b).await;
    nothing_comes(&c).await;
}

#[tokio::test(start_paused = true)]
async fn everybody_learns_who_comes_and_goes() {
    let network = MemoryNetwork::new(1);
    let a = network.join(id(1), MemoryOptions::default());
    let mut reach = a.reachable();
    assert!(reach.borrow_and_update().is_empty());
    let b = network.join(id(2), MemoryOptions::default());
    assert!(reach.has_changed().unwrap());
    assert_eq!(names(&mut reach), [id(2).to_string()]);
    b.set_up(false);
    assert_eq!(names(&mut reach), <[String; 0]>::default());
    b.set_up(true);
    assert_eq!(names(&mut reach), [id(2).to_string()]);
    b.shutdown().await;
    assert_eq!(names(&mut reach), <[String; 0]>::default());
    assert_eq!(b.send(&id(1).to_string(), envelope(2, 1)).await, Err(SendError::Shut));
    assert_eq!(b.receive().await, None);
}

#[tokio::test(start_paused = true)]
async fn everybody_in_reach_is_told_the_newest_roster_once() {
    let network = MemoryNetwork::new(1);
    let a = network.join(id(1), MemoryOptions::default().nearby());
    let b = network.join(id(2), MemoryOptions::default());
    a.publish(&roster(1, 1, None), None);
    a.publish(&roster(1, 2, None), Some(&roster(1, 2, Some(1))));
    let told =
        |roster: &SignedRoster| HeardRoster { bytes: roster.as_bytes().to_vec(), is_nearby: true };
    assert_eq!(b.receive_roster().await, Some(told(&roster(1, 2, None))));
    let delta = roster(1, 3, Some(2));
    a.publish(&roster(1, 3, None), Some(&delta));
    assert_eq!(b.receive_roster().await, Some(told(&delta)));
    no_roster_comes(&b).await;
    b.roster_missed(id(1));
    assert_eq!(b.receive_roster().await, Some(told(&roster(1, 3, None))));
    // Whoever comes later is told the whole, and so is who missed one.
    let c = network.join(id(3), MemoryOptions::default());
    assert_eq!(c.receive_roster().await, Some(told(&roster(1, 3, None))));
    network.set_faults(id(1), id(3), Faults::SILENCE);
    a.publish(&roster(1, 4, None), Some(&roster(1, 4, Some(3))));
    a.publish(&roster(1, 5, None), Some(&roster(1, 5, Some(4))));
    no_roster_comes(&c).await;
    network.heal();
    assert_eq!(c.receive_roster().await, Some(told(&roster(1, 5, None))));
}

#[tokio::test(start_paused = true)]
async fn what_is_injected_comes_as_it_is_and_a_shut_transport_tells_nothing() {
    let network = MemoryNetwork::new(1);
    let a = network.join(id(1), MemoryOptions::default());
    let b = network.join(id(2), MemoryOptions::default());
    let heard = HeardRoster { bytes: vec![1, 2, 3], is_nearby: false };
    a.inject_roster(&id(2).to_string(), heard.clone()).unwrap();
    assert_eq!(b.receive_roster().await, Some(heard));
    let waiting = tokio::spawn({
        let b = b.clone();
        async move { b.receive_roster().await }
    });
    b.shutdown().await;
    assert_eq!(waiting.await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_gateway_takes_the_place_of_the_old_one() {
    let network = MemoryNetwork::new(1);
    let a = network.join(id(1), MemoryOptions::default());
    let old = network.join(id(2), MemoryOptions::default());
    let new = network.join(id(2), MemoryOptions::default());
    drop(old);
    a.send(&id(2).to_string(), envelope(1, 1)).await.unwrap();
    assert!(new.receive().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_noticed_and_takes_what_is_under_way_with_it() {
    let network = MemoryNetwork::new(1);
    let [a, b] = [1, 2].map(|seed| network.join(id(seed), MemoryOptions::default()));
    let slow = Duration::from_millis(50);
    network.set_faults(id(1), id(2), Faults { delay: (slow, slow), ..Faults::NONE });
    a.send(&id(2).to_string(), envelope(1, 1)).await.unwrap();
    network.set_faults(id(1), id(2), Faults::CUT);
    assert!(a.reachable().borrow().is_empty());
    let target = id(2).to_string();
    let refused = a.send(&target, envelope(1, 2)).await;
    assert_eq!(refused, Err(SendError::Unreachable { target }));
    nothing_comes(&b).await;
    assert_eq!(network.lost(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_loss_looks_like_success_to_the_sender() {
    let network = MemoryNetwork::new(1);
    let [a, b] = [1, 2].map(|seed| network.join(id(seed), MemoryOptions::default()));
    network.set_faults_towards(id(1), id(2), Faults::SILENCE);
    assert_eq!(a.send(&id(2).to_string(), envelope(1, 1)).await, Ok(()));
    nothing_comes(&b).await;
    b.send(&id(1).to_string(), envelope(2, 1)).await.unwrap();
    assert!(a.receive().await.is_some(), "the other direction works");
    network.heal();
    a.send(&id(2).to_string(), envelope(1, 1)).await.unwrap();
    assert!(b.receive().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_loses_doubles_and_delays_the_same() {
    let first = arrivals(5).await;
    assert_eq!(first, arrivals(5).await);
    assert_ne!(first, arrivals(6).await);
    let doubled =
        first.iter().filter(|at| first.iter().filter(|other| other.0 == at.0).count() > 1);
    assert!(doubled.count() > 0, "{first:?}");
    let came: BTreeSet<_> = first.iter().map(|(number, _)| *number).collect();
    assert!((60..90).contains(&came.len()), "of 100 with 25 % loss came {}", came.len());
    assert!(!first.is_sorted(), "a spread delay reorders");
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_those_who_hear_broadcasts() {
    let network = MemoryNetwork::new(1);
    let hearing = || MemoryOptions::default().with_broadcasts();
    let a = network.join(id(1), hearing());
    assert!(a.reachable().borrow().is_empty(), "nobody would hear it");
    let [b, c] = [2, 3].map(|seed| network.join(id(seed), hearing()));
    let deaf = network.join(id(4), MemoryOptions::default());
    assert!(a.reachable().borrow().contains("transport:memory"));
    a.send("transport:memory", envelope(1, 1)).await.unwrap();
    assert!(b.receive().await.is_some() && c.receive().await.is_some());
    nothing_comes(&deaf).await;
    nothing_comes(&a).await;
}

#[tokio::test(start_paused = true)]
async fn queues_are_bounded_and_say_so() {
    let network = MemoryNetwork::new(1);
    let options = MemoryOptions { queue: 3, ..MemoryOptions::default() };
    let [a, b] = [1, 2].map(|seed| network.join(id(seed), options.clone()));
    let slow = Duration::from_secs(1);
    network.set_faults(id(1), id(2), Faults { delay: (slow, slow), ..Faults::NONE });
    let target = id(2).to_string();
    for number in 0..3 {
        a.send(&target, envelope(1, number)).await.unwrap();
    }
    assert_eq!(a.send(&target, envelope(1, 3)).await, Err(SendError::Busy { limit: 3 }));
    sleep(2 * slow).await;
    network.heal();
    a.send(&target, envelope(1, 4)).await.unwrap();
    assert_eq!(network.lost(), 1, "the receiver's queue held three already");
    for _ in 0..3 {
        assert!(b.receive().await.is_some());
    }
    nothing_comes(&b).await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_lets_what_is_under_way_arrive() {
    let network = MemoryNetwork::new(1);
    let [a, b] = [1, 2].map(|seed| network.join(id(seed), MemoryOptions::default()));
    let slow = Duration::from_secs(1);
    network.set_faults(id(1), id(2), Faults { delay: (slow, slow), ..Faults::NONE });
    a.send(&id(2).to_string(), envelope(1, 1)).await.unwrap();
    a.shutdown().await;
    assert!(b.receive().await.is_some());
}

/// Which of 100 numbered envelopes arrive, in their order of arrival, and when in milliseconds.
async fn arrivals(seed: u64) -> Vec<(u64, u128)> {
    let network = MemoryNetwork::new(seed);
    let [a, b] = [1, 2].map(|seed| network.join(id(seed), MemoryOptions::default()));
    let faults = Faults {
        loss: 0.25,
        duplication: 0.25,
        delay: (Duration::from_millis(1), Duration::from_millis(100)),
        ..Faults::NONE
    };
    network.set_faults(id(1), id(2), faults);
    let began = tokio::time::Instant::now();
    for number in 0..100 {
        a.send(&id(2).to_string(), envelope(1, number)).await.unwrap();
    }
    let mut arrived = Vec::new();
    while let Ok(bytes) = timeout(Duration::from_secs(1), b.receive()).await {
        let said = SignedEnvelope::decode(&bytes.unwrap()).unwrap().verify().unwrap().said;
        let fieldpost_envelope::Said::Receipt(receipt) = said else { panic!("a receipt was sent") };
        arrived.push((receipt.at.as_millis(), began.elapsed().as_millis()));
    }
    arrived
}

async fn nothing_comes(transport: &MemoryTransport) {
    let waited = timeout(Duration::from_secs(60), transport.receive()).await;
    assert!(waited.is_err(), "something came");
}

async fn no_roster_comes(transport: &MemoryTransport) {
    let waited = timeout(Duration::from_secs(60), transport.receive_roster()).await;
    assert!(waited.is_err(), "a roster came");
}

fn names(reach: &mut watch::Receiver<Arc<BTreeSet<String>>>) -> Vec<String> {
    reach.borrow_and_update().iter().cloned().collect()
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn id(seed: u8) -> GatewayId {
    key(seed).verifying_key().into()
}

fn envelope(signer: u8, number: u64) -> SignedEnvelope {
    let at = Timestamp::try_from(number).unwrap();
    let kind = ReceiptKind::Stored;
    Receipt { answers: [9; 32], kind, at, reason: None, signer: id(signer) }
        .sign(&key(signer))
        .unwrap()
}

fn roster(signer: u8, number: u64, base: Option<u64>) -> SignedRoster {
    let peers = vec![Listing { peer: "alice".parse().unwrap(), display_name: None }];
    Roster { gateway: id(signer), number, base, peers, removed: Vec::new() }
        .sign(&key(signer))
        .unwrap()
}
