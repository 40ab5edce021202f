//! Moving on: from a transport that fails at once, from one that is silent after the time-out, and
//! back to one that comes into reach again. Times are shown and not judged; `./dev bench failover`
//! puts them beside their target.

use std::time::Duration;

use fieldpost_transport::Faults;
use harness::{
    client::PATIENCE,
    failover::{Failover, TwoWays, quantile},
    federation::{attempts, record_when, record_with_status, take},
};
use tokio::time::Instant;

use crate::federation::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_hard_failures_move_on_at_once() {
    let ways = TwoWays::start(&[]).await;
    let failovers = ways.fail(1000, Faults::BROKEN).await;
    assert_eq!(failovers.len(), 1000);
    for Failover { attempts, message, .. } in &failovers {
        let tried: [&str; 3] = ["htx failed", "mesh sent", "mesh stored"];
        // The last is left out where `delivered` was faster.
        let count = attempts.len().clamp(2, 3);
        assert_eq!(attempts, &tried[..count], "{message}");
    }
    show("hard failure", &failovers, Duration::ZERO);
    assert!(failovers.iter().all(|one| one.gap < STUCK), "a failure did not move on by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_moves_on_after_the_time_out() {
    let ways = TwoWays::start(&["--failover-timeout=400ms"]).await;
    let failovers = ways.fail(120, Faults::SILENCE).await;
    assert_eq!(failovers.len(), 120);
    for Failover { attempts, gap, message } in &failovers {
        let tried: [&str; 3] = ["htx sent", "htx silent", "mesh sent"];
        assert_eq!(attempts[..3], tried, "{message}: {attempts:?}");
        assert!(*gap >= TIME_OUT, "{message} moved on after {gap:?}");
    }
    show("silence", &failovers, TIME_OUT);
    assert!(failovers.iter().all(|one| one.gap < TIME_OUT + STUCK), "silence did not move on");
}

#[tokio::test(flavor = "multi_thread")]
async fn late_success_of_the_first_way_and_success_of_the_second_are_one_message() {
    let ways = TwoWays::start(&["--failover-timeout=400ms"]).await;
    let late = Faults { delay: (2 * TIME_OUT, 3 * TIME_OUT), ..Faults::NONE };
    let failovers = ways.fail(20, late).await;
    let [a, b] = [ways.nodes[0].id(), ways.nodes[1].id()];
    assert!(ways.first.carried(a, b) >= 20 && ways.second.carried(a, b) >= 20);
    assert_eq!(ways.first.lost(), 0, "the first copies came as well");
    // What comes after the last of them shows that none came twice.
    tokio::time::sleep(3 * TIME_OUT).await;
    let last = ways.send("last").await;
    assert_eq!(take(&ways.bob, 1).await[0].message_id, last);
    for one in failovers {
        record_with_status(&ways.alice, one.message, "delivered").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_left_over_a_link_that_was_lost_leaves_again_when_it_is_back() {
    // By the time-out alone it would take ten minutes.
    let ways = TwoWays::start(&["--failover-timeout=600s"]).await;
    let [a, b] = [ways.nodes[0].id(), ways.nodes[1].id()];
    ways.second.set_faults(a, b, Faults::CUT);
    ways.first.set_faults(a, b, Faults::SILENCE);
    let sent = ways.send("into the void").await;
    until(|| ways.first.lost() > 0).await;
    record_when(&ways.alice, sent, |record| {
        attempts(&record.recipients[0]).contains(&"htx sent".to_owned())
    })
    .await;
    ways.first.set_faults(a, b, Faults::CUT);
    until(|| !reaches(&ways, 0)).await;
    // The outbox has to see that it was gone.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let back = Instant::now();
    ways.first.heal();
    take(&ways.bob, 1).await;
    eprintln!("resumed {:?} after the link's return", back.elapsed());
    let record = record_with_status(&ways.alice, sent, "delivered").await;
    let tried = attempts(&record.recipients[0]);
    assert!(tried.contains(&"htx silent".to_owned()), "{tried:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unanswered_takes_a_way_that_opens() {
    let ways = TwoWays::start(&["--failover-timeout=600s"]).await;
    let [a, b] = [ways.nodes[0].id(), ways.nodes[1].id()];
    ways.second.set_faults(a, b, Faults::CUT);
    ways.first.set_faults(a, b, Faults::SILENCE);
    let sent = ways.send("by any means").await;
    until(|| ways.first.lost() > 0).await;
    record_when(&ways.alice, sent, |record| {
        attempts(&record.recipients[0]).contains(&"htx sent".to_owned())
    })
    .await;
    ways.second.heal();
    // The first way is still the preferred one and still silent, so it is the next opening that
    // helps: nothing is tried for ten minutes otherwise.
    ways.first.set_faults(a, b, Faults::CUT);
    ways.second.set_faults(a, b, Faults::CUT);
    tokio::time::sleep(Duration::from_millis(200)).await;
    ways.second.heal();
    take(&ways.bob, 1).await;
    record_with_status(&ways.alice, sent, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_backs_off_because_every_way_failed_leaves_when_one_returns() {
    let ways = TwoWays::start(&[]).await;
    let [a, b] = [ways.nodes[0].id(), ways.nodes[1].id()];
    ways.second.set_faults(a, b, Faults::CUT);
    ways.first.set_faults(a, b, Faults::BROKEN);
    let sent = ways.send("patiently").await;
    // Five failures, after which the transport rests as well.
    record_when(&ways.alice, sent, |record| {
        let tried = attempts(&record.recipients[0]);
        tried.iter().filter(|one| *one == "htx failed").count() >= 5
    })
    .await;
    let second = ways.send("while it rests").await;
    record_when(&ways.alice, second, |record| {
        let reason = record.recipients[0].reason.as_deref();
        reason.is_some_and(|reason| reason.contains("htx: failed repeatedly and rests until"))
    })
    .await;
    ways.first.set_faults(a, b, Faults::CUT);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let back = Instant::now();
    ways.first.heal();
    take(&ways.bob, 2).await;
    eprintln!("resumed {:?} after the way's return", back.elapsed());
    record_with_status(&ways.alice, sent, "delivered").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transport_that_was_rested_is_tried_out_and_nobody_waits_for_it() {
    let ways = TwoWays::start(&[]).await;
    let [a, b] = [ways.nodes[0].id(), ways.nodes[1].id()];
    ways.first.set_faults_towards(a, b, Faults::BROKEN);
    for _ in 0..5 {
        ways.send("over the second").await;
        take(&ways.bob, 1).await;
    }
    let rested = ways.send("past the first").await;
    take(&ways.bob, 1).await;
    let record = record_with_status(&ways.alice, rested, "delivered").await;
    assert_eq!(attempts(&record.recipients[0]), ["mesh sent", "mesh stored"]);
    ways.first.set_faults_towards(a, b, Faults::NONE);
    let carried = ways.first.carried(a, b);
    let deadline = Instant::now() + PATIENCE;
    while ways.first.carried(a, b) == carried {
        assert!(Instant::now() < deadline, "the first is never tried again");
        ways.send("is it back?").await;
        take(&ways.bob, 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let straight = ways.send("as before").await;
    take(&ways.bob, 1).await;
    let record = record_with_status(&ways.alice, straight, "delivered").await;
    assert_eq!(attempts(&record.recipients[0])[0], "htx sent");
}

/// What one of the tests that are silent waits for.
const TIME_OUT: Duration = Duration::from_millis(400);
/// No machine is so slow that it takes this long without being stuck.
const STUCK: Duration = Duration::from_secs(20);

fn reaches(ways: &TwoWays, transport: usize) -> bool {
    let status = fieldpost_transport::Transport::status(ways.nodes[0].transport(transport));
    status.is_connected
}

fn show(what: &str, failovers: &[Failover], time_out: Duration) {
    let mut beyond: Vec<Duration> =
        failovers.iter().map(|one| one.gap.saturating_sub(time_out)).collect();
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| quantile(&mut beyond, share));
    eprintln!("| after | times | p50 | p99 | max | (beyond {time_out:?}, target 300 ms) |");
    eprintln!("| {what} | {} | {p50:?} | {p99:?} | {most:?} |", beyond.len());
}
