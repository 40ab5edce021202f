use std::collections::BTreeSet;

use chrono::TimeDelta;
use fieldpost_envelope::{AnonymityLevel, LaneSeq, MessageId, PeerAddress, Priority};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use uuid::Uuid;

use super::*;
use crate::{Content, Message, Wishes};

#[test]
fn the_first_place_is_asked_and_its_charge_recorded_with_time_to_look_elsewhere() {
    let mut dispatch = dispatch(one_after_the_other(&["htx", "ble"]));
    assert_eq!(run(&mut dispatch, 0, Event::Begin), ["send htx"]);
    assert_eq!(dispatch.next_deadline(), Some(at(10)));
    assert_eq!(run(&mut dispatch, 1, charge("htx")), ["record htx:sent then sent until 45"]);
    assert_eq!(dispatch.next_deadline(), Some(at(11)));
}

#[test]
fn a_hard_failure_moves_on_at_once() {
    let mut dispatch = dispatch(one_after_the_other(&["htx", "ble"]));
    run(&mut dispatch, 0, Event::Begin);
    assert_eq!(run(&mut dispatch, 0, failure("htx")), ["learn htx failed", "send ble"]);
    assert_eq!(
        run(&mut dispatch, 1, charge("ble")),
        ["record htx:failed ble:sent then sent until 45"]
    );
}

#[test]
fn silence_moves_on_after_the_failover_timeout_and_not_before() {
    let mut dispatch = dispatch(one_after_the_other(&["htx", "ble"]));
    run(&mut dispatch, 0, Event::Begin);
    run(&mut dispatch, 1, charge("htx"));
    assert_eq!(run(&mut dispatch, 10, Event::Wake), [""; 0]);
    assert_eq!(run(&mut dispatch, 11, Event::Wake), ["learn htx silent(11s)", "send ble"]);
    assert_eq!(
        run(&mut dispatch, 12, charge("ble")),
        ["record htx:silent ble:sent then sent until 45"]
    );
}

#[test]
fn a_transport_that_does_not_even_answer_is_silent_too_and_may_still_take_charge_later() {
    let mut dispatch = dispatch(one_after_the_other(&["htx", "ble"]));
    run(&mut dispatch, 0, Event::Begin);
    assert_eq!(run(&mut dispatch, 10, Event::Wake), ["learn htx silent(10s)", "send ble"]);
    assert_eq!(
        run(&mut dispatch, 11, charge("htx")),
        ["record htx:silent htx:sent then sent until 45"]
    );
    assert_eq!(dispatch.next_deadline(), Some(at(20)));
}

#[test]
fn when_nothing_is_left_it_backs_off_and_says_what_was_tried() {
    let mut dispatch = dispatch(one_after_the_other(&["htx", "ble"]));
    run(&mut dispatch, 0, Event::Begin);
    run(&mut dispatch, 0, failure("htx"));
    let actions: Vec<_> = dispatch.handle(at(2), failure("ble")).collect();
    let [_, Action::Record { attempts, next: Next::Retry { at: retry_at } }] = &actions[..] else {
        panic!("unexpected {actions:?}")
    };
    assert_eq!(attempts.len(), 2);
    assert_eq!(attempts[1].reason.as_deref(), Some("ble is down"));
    assert!(*retry_at >= at(2) + TimeDelta::milliseconds(500) && *retry_at <= at(3), "{retry_at}");
    assert!(dispatch.has_ended());
    assert_eq!(dispatch.next_deadline(), None);
}

#[test]
fn silence_of_the_last_place_makes_it_pending_again() {
    let mut dispatch = dispatch(one_after_the_other(&["htx"]));
    run(&mut dispatch, 0, Event::Begin);
    run(&mut dispatch, 1, charge("htx"));
    let said = run(&mut dispatch, 11, Event::Wake);
    assert_eq!(said[0], "learn htx silent(11s)");
    assert!(said[1].starts_with("record htx:silent then retry"), "{said:?}");
}

#[test]
fn a_receipt_ends_it_and_tells_how_the_transport_did() {
    let mut dispatch = dispatch(one_after_the_other(&["htx", "ble"]));
    run(&mut dispatch, 0, Event::Begin);
    run(&mut dispatch, 1, charge("htx"));
    let said = run(&mut dispatch, 3, Event::Receipt(ReceiptKind::Stored));
    assert_eq!(said, ["learn htx arrived after 3s"]);
    assert_eq!(run(&mut dispatch, 11, Event::Wake), [""; 0]);
}

#[test]
fn a_receipt_among_several_copies_credits_none_of_them() {
    let mut dispatch = dispatch(all_at_once(&["htx", "ble"]));
    assert_eq!(run(&mut dispatch, 0, Event::Begin), ["send htx", "send ble"]);
    run(&mut dispatch, 1, charge("htx"));
    run(&mut dispatch, 1, charge("ble"));
    assert_eq!(run(&mut dispatch, 2, Event::Receipt(ReceiptKind::Delivered)), [""; 0]);
}

#[test]
fn a_failure_after_the_receipt_is_still_recorded() {
    let mut dispatch = dispatch(all_at_once(&["htx", "ble"]));
    run(&mut dispatch, 0, Event::Begin);
    run(&mut dispatch, 1, charge("htx"));
    run(&mut dispatch, 2, Event::Receipt(ReceiptKind::Stored));
    assert_eq!(
        run(&mut dispatch, 3, failure("ble")),
        ["learn ble failed", "record ble:failed then sent until 45"]
    );
}

#[test]
fn all_at_once_waits_for_the_last_of_them() {
    let mut dispatch = dispatch(all_at_once(&["htx", "ble", "mesh"]));
    run(&mut dispatch, 0, Event::Begin);
    assert_eq!(run(&mut dispatch, 0, failure("htx")), ["learn htx failed"]);
    assert_eq!(
        run(&mut dispatch, 1, charge("ble")),
        ["record htx:failed ble:sent then sent until 45"]
    );
    assert_eq!(run(&mut dispatch, 1, failure("mesh")), ["learn mesh failed"]);
    let said = run(&mut dispatch, 11, Event::Wake);
    assert!(said[1].starts_with("record mesh:failed ble:silent then retry"), "{said:?}");
}

#[test]
fn without_failover_only_the_first_place_is_tried() {
    let rules = Rules { failover: false, ..Rules::default() };
    let mut dispatch = with(claim(), one_after_the_other(&["htx", "ble"]), &rules);
    run(&mut dispatch, 0, Event::Begin);
    let said = run(&mut dispatch, 0, failure("htx"));
    assert!(said[1].starts_with("record htx:failed then retry"), "{said:?}");
}

#[test]
fn a_broadcast_ends_as_sent_when_a_transport_took_charge_and_when_nobody_knows() {
    let mut sure = with(broadcast(), one_after_the_other(&["ble"]), &Rules::default());
    run(&mut sure, 0, Event::Begin);
    assert_eq!(run(&mut sure, 1, charge("ble")), ["record ble:sent then end sent"]);

    let mut unsure = with(broadcast(), one_after_the_other(&["ble"]), &Rules::default());
    run(&mut unsure, 0, Event::Begin);
    let said = run(&mut unsure, 10, Event::Wake);
    assert_eq!(said, ["learn ble silent(10s)", "record ble:silent then end sent"]);
}

#[test]
fn a_broadcast_that_has_surely_not_left_is_tried_again() {
    let mut dispatch = with(broadcast(), one_after_the_other(&["ble"]), &Rules::default());
    run(&mut dispatch, 0, Event::Begin);
    let said = run(&mut dispatch, 0, failure("ble"));
    assert!(said[1].starts_with("record ble:failed then retry"), "{said:?}");
}

#[test]
fn without_a_way_it_waits_for_reach_or_for_a_rested_transport_or_fails() {
    let reason = || "ble: does not reach the recipient now".to_owned();
    let mut waits = dispatch(nowhere(Verdict::Waits { reason: reason(), until: None }));
    assert_eq!(run(&mut waits, 0, Event::Begin), [format!("record then wait: {}", reason())]);

    let mut rested = dispatch(nowhere(Verdict::Waits { reason: reason(), until: Some(at(7)) }));
    assert_eq!(
        run(&mut rested, 0, Event::Begin),
        [format!("record then wait until 7: {}", reason())]
    );

    let mut never = dispatch(nowhere(Verdict::Never { reason: reason() }));
    assert_eq!(run(&mut never, 0, Event::Begin), ["record then end failed"]);
}

#[test]
fn it_stops_when_the_message_expires() {
    let mut short = claim();
    short.message.expires_at = at(4);
    let mut dispatch = with(short, one_after_the_other(&["htx", "ble"]), &Rules::default());
    run(&mut dispatch, 0, Event::Begin);
    assert_eq!(dispatch.next_deadline(), Some(at(4)));
    assert_eq!(run(&mut dispatch, 4, Event::Wake), ["record then retry at 4"]);
    assert!(dispatch.has_ended());
}

#[test]
fn a_claim_that_runs_out_starts_nothing_that_another_would_repeat() {
    let mut short = claim();
    short.claimed_until = at(12);
    let mut dispatch = with(short, one_after_the_other(&["htx", "ble"]), &Rules::default());
    assert_eq!(run(&mut dispatch, 0, Event::Begin), ["send htx"]);
    let said = run(&mut dispatch, 3, failure("htx"));
    assert!(said[1].starts_with("record htx:failed then retry"), "{said:?}");
}

#[test]
fn a_transport_that_comes_from_a_rest_is_tried_out_beside_the_first_of_the_others() {
    let mut dispatch = dispatch(with_trial(&["htx", "ble", "mesh"], "htx"));
    assert_eq!(run(&mut dispatch, 0, Event::Begin), ["send ble", "send htx"]);
    // Its failure holds up nothing and hastens nothing.
    assert_eq!(run(&mut dispatch, 0, failure("htx")), ["learn htx failed"]);
    assert_eq!(run(&mut dispatch, 1, failure("ble")), ["learn ble failed", "send mesh"]);
}

#[test]
fn a_trial_that_is_silent_holds_up_no_failover() {
    let mut dispatch = dispatch(with_trial(&["htx", "ble", "mesh"], "htx"));
    run(&mut dispatch, 0, Event::Begin);
    run(&mut dispatch, 1, charge("htx"));
    assert_eq!(run(&mut dispatch, 2, failure("ble")), ["learn ble failed", "send mesh"]);
    run(&mut dispatch, 2, failure("mesh"));
    assert!(!dispatch.has_ended(), "the trial may still arrive");
    let said = run(&mut dispatch, 11, Event::Wake);
    assert_eq!(said[0], "learn htx silent(11s)");
    assert!(said[1].starts_with("record ble:failed mesh:failed htx:silent then retry"), "{said:?}");
}

#[test]
fn the_only_way_is_tried_out_by_itself_and_without_failover_no_second_one_is() {
    let mut only = dispatch(with_trial(&["htx"], "htx"));
    assert_eq!(run(&mut only, 0, Event::Begin), ["send htx"]);
    let rules = Rules { failover: false, ..Rules::default() };
    let mut first = with(claim(), with_trial(&["htx", "ble"], "htx"), &rules);
    assert_eq!(run(&mut first, 0, Event::Begin), ["send htx"]);
}

#[test]
fn taking_charge_is_remembered() {
    let mut dispatch = dispatch(one_after_the_other(&["htx"]));
    run(&mut dispatch, 0, Event::Begin);
    let actions: Vec<_> = dispatch.handle(at(1), charge("htx")).collect();
    let learn = Action::Learn { transport: "htx".into(), outcome: Outcome::TookCharge };
    assert_eq!(actions[0], learn);
}

#[test]
fn what_left_over_a_link_that_was_lost_leaves_again_when_the_target_returns() {
    let mut dispatch = dispatch(one_after_the_other(&["htx", "ble"]));
    run(&mut dispatch, 0, Event::Begin);
    assert_eq!(run(&mut dispatch, 0, returned("htx")), [""; 0], "it is at it this moment");
    run(&mut dispatch, 1, charge("htx"));
    assert_eq!(run(&mut dispatch, 2, returned("ble")), [""; 0], "that one has its turn");
    assert_eq!(run(&mut dispatch, 3, returned("htx")), ["record htx:silent then retry at 3"]);
    assert!(dispatch.has_ended());
}

#[test]
fn what_is_unanswered_is_planned_again_when_a_way_opens_that_was_closed() {
    let mut dispatch = dispatch(one_after_the_other(&["htx"]));
    run(&mut dispatch, 0, Event::Begin);
    run(&mut dispatch, 1, charge("htx"));
    assert_eq!(run(&mut dispatch, 2, returned("mesh")), ["record then retry at 2"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_happens_it_ends_in_time_and_every_attempt_is_recorded(
        names in prop::sample::subsequence(vec!["htx", "ble", "mesh", "memory"], 1..=4),
        at_once in any::<bool>(), failover in any::<bool>(), is_broadcast in any::<bool>(),
        trials in any::<[bool; 4]>(),
        expires in 1i64..100, lease in 1i64..100, seed in any::<u64>(),
        steps in prop::collection::vec((0i64..8, 0usize..4, 0u8..9), 0..40),
    ) {
        let mut claim = if is_broadcast { broadcast() } else { claim() };
        claim.message.expires_at = at(expires);
        claim.claimed_until = at(lease);
        let mut plan = if at_once { all_at_once(&names) } else { one_after_the_other(&names) };
        for (place, is_trial) in plan.places.iter_mut().zip(trials) {
            place.is_trial = is_trial;
        }
        let rules = Rules { failover, ..Rules::default() };
        let mut dispatch = Dispatch::new(&claim, plan, &rules, &mut StdRng::seed_from_u64(seed));
        let mut seen = Seen::default();
        let (mut now, mut has_receipt) = (0, false);
        seen.take(now, &claim, dispatch.handle(at(now), Event::Begin).collect())?;
        for (pause, which, what) in steps {
            now += pause;
            let name = names[which % names.len()];
            let event = match what {
                _ if !seen.sent.contains(name) => Event::Wake,
                0..=2 => charge(name),
                3..=4 => failure(name),
                5 => Event::Receipt(ReceiptKind::Stored),
                6 => returned(name),
                _ => Event::Wake,
            };
            has_receipt |= matches!(event, Event::Receipt(_));
            let had_ended = dispatch.has_ended();
            let actions: Vec<_> = dispatch.handle(at(now), event).collect();
            let sends = actions.iter().any(|action| matches!(action, Action::Send(_)));
            prop_assert!(!(had_ended && sends), "it sends after its end");
            seen.take(now, &claim, actions)?;
        }
        for _ in 0..10 {
            let Some(deadline) = dispatch.next_deadline() else { break };
            now = now.max((deadline - at(0)).num_seconds());
            prop_assert!(deadline <= at(expires), "it waits past the end of life");
            seen.take(now, &claim, dispatch.handle(at(now), Event::Wake).collect())?;
        }
        prop_assert!(dispatch.has_ended());
        prop_assert!(seen.ends == 1 || has_receipt, "it ends without a word");
    }
}

#[derive(Default)]
struct Seen {
    sent: BTreeSet<String>,
    recorded: BTreeSet<String>,
    ends: usize,
}

impl Seen {
    fn take(&mut self, now: i64, claim: &Claim, actions: Vec<Action>) -> Result<(), TestCaseError> {
        let expires_at = claim.message.expires_at;
        for action in actions {
            match action {
                Action::Send(place) => {
                    prop_assert!(at(now) < expires_at, "it sends what has expired");
                    prop_assert!(self.sent.insert(place.transport), "it sends twice over one");
                }
                Action::Record { attempts, next } => {
                    for attempt in attempts {
                        prop_assert!(self.sent.contains(&attempt.transport));
                        self.recorded.insert(attempt.transport);
                    }
                    match next {
                        Next::Sent { retry_at, .. } => {
                            prop_assert!(retry_at > at(now) || at(now) >= expires_at);
                        }
                        Next::Retry { at } => {
                            prop_assert!(at <= expires_at, "it retries what has expired");
                            self.ends += 1;
                        }
                        Next::Wait { until, .. } => {
                            prop_assert!(until.is_none_or(|until| until <= expires_at));
                            self.ends += 1;
                        }
                        Next::End { status, .. } => {
                            prop_assert_eq!(status, MessageStatus::Sent);
                            prop_assert!(matches!(claim.target, Target::Broadcast(_)));
                            self.ends += 1;
                        }
                    }
                    prop_assert!(self.ends <= 1, "it ends twice");
                }
                Action::Learn { transport, .. } => prop_assert!(self.sent.contains(&transport)),
            }
        }
        Ok(())
    }
}

/// What it does, without the notes that a transport took charge.
fn run(dispatch: &mut Dispatch, now: i64, event: Event) -> Vec<String> {
    let took_charge =
        |action: &Action| matches!(action, Action::Learn { outcome: Outcome::TookCharge, .. });
    let actions = dispatch.handle(at(now), event).filter(|action| !took_charge(action));
    actions.map(|action| say(&action)).collect()
}

fn say(action: &Action) -> String {
    match action {
        Action::Send(place) => format!("send {}", place.transport),
        Action::Learn { transport, outcome: Outcome::Arrived(after) } => {
            format!("learn {transport} arrived after {after:?}")
        }
        Action::Learn { transport, outcome } => {
            format!("learn {transport} {}", format!("{outcome:?}").to_lowercase())
        }
        Action::Record { attempts, next } => {
            let mut said = "record".to_owned();
            for Attempt { transport, result, .. } in attempts {
                said += &format!(" {transport}:{}", format!("{result:?}").to_lowercase());
            }
            said + " then " + &say_next(next)
        }
    }
}

fn say_next(next: &Next) -> String {
    let seconds = |time: &Time| (*time - at(0)).as_seconds_f64();
    match next {
        Next::Sent { retry_at, .. } => format!("sent until {}", seconds(retry_at)),
        Next::Retry { at } => format!("retry at {}", seconds(at)),
        Next::Wait { reason, until: None } => format!("wait: {reason}"),
        Next::Wait { reason, until: Some(until) } => {
            format!("wait until {}: {reason}", seconds(until))
        }
        Next::End { status, .. } => format!("end {status}"),
    }
}

fn charge(transport: &str) -> Event {
    Event::TookCharge { transport: transport.into(), envelope: [transport.len() as u8; 32] }
}

fn failure(transport: &str) -> Event {
    Event::HardFailure { transport: transport.into(), reason: format!("{transport} is down") }
}

fn returned(transport: &str) -> Event {
    Event::Returned { transport: transport.into() }
}

fn dispatch(plan: Plan) -> Dispatch {
    with(claim(), plan, &Rules::default())
}

fn with(claim: Claim, plan: Plan, rules: &Rules) -> Dispatch {
    Dispatch::new(&claim, plan, rules, &mut StdRng::seed_from_u64(1))
}

fn one_after_the_other(names: &[&str]) -> Plan {
    let place = |name: &&str| Place {
        transport: (*name).into(),
        reason: "priority".into(),
        is_trial: false,
    };
    Plan {
        places: names.iter().map(place).collect(),
        ruled_out: Vec::new(),
        at_once: false,
        verdict: Verdict::Go,
    }
}

fn with_trial(names: &[&str], trial: &str) -> Plan {
    let mut plan = one_after_the_other(names);
    for place in &mut plan.places {
        place.is_trial = place.transport == trial;
    }
    plan
}

fn all_at_once(names: &[&str]) -> Plan {
    Plan { at_once: true, ..one_after_the_other(names) }
}

fn nowhere(verdict: Verdict) -> Plan {
    Plan { verdict, ..one_after_the_other(&[]) }
}

fn broadcast() -> Claim {
    Claim { target: Target::Broadcast("ble".into()), lane_seq: None, ..claim() }
}

fn claim() -> Claim {
    let bob = PeerAddress::remote(
        "bob".parse().unwrap(),
        fieldpost_envelope::GatewayId::from_bytes([7; 32]),
    );
    let message = Message {
        id: MessageId(Uuid::from_u128(1)),
        sender: "alice".parse().unwrap(),
        to: bob.clone().into(),
        content: Content::default(),
        expires_at: at(3600),
        priority: Priority::Normal,
        min_anonymity: AnonymityLevel::NONE,
        wishes: Wishes::default(),
    };
    Claim {
        message,
        accepted_at: at(0),
        target: Target::Remote(bob),
        attempt: 1,
        lane_seq: Some(LaneSeq(1)),
        after: None,
        claimed_until: at(0) + TimeDelta::from_std(Rules::default().lease()).unwrap(),
    }
}

fn at(seconds: i64) -> Time {
    Time::UNIX_EPOCH + TimeDelta::seconds(seconds)
}
