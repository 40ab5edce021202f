use proptest::prelude::*;

use super::*;

#[test]
fn online_and_plain_goes_by_the_configured_priority() {
    assert_eq!(order(&plan(&question(), &world())), ["htx", "ble", "mesh"]);
}

#[test]
fn a_local_recipient_wins_over_any_link() {
    let question = Question { recipient: RecipientKind::Local, min_anonymity: L3, ..question() };
    let plan = plan(&question, &world());
    assert_eq!(order(&plan), [LOCAL]);
    assert!(plan.ruled_out.iter().all(|out| out.why == Why::RecipientIsLocal));
}

#[test]
fn a_required_link_is_used_even_to_a_local_recipient() {
    let question =
        Question { recipient: RecipientKind::Local, required: Some("htx"), ..question() };
    assert_eq!(order(&plan(&question, &world())), ["htx"]);
}

#[test]
fn local_required_for_somebody_elsewhere_never_goes() {
    let question = Question { required: Some(LOCAL), ..question() };
    let Verdict::Never { reason } = plan(&question, &world()).verdict else {
        panic!("it cannot go")
    };
    assert_eq!(reason, "local: the recipient is not on this gateway");
}

#[test]
fn without_internet_only_transports_that_need_none() {
    let question = Question { internet: false, ..question() };
    assert_eq!(order(&plan(&question, &world())), ["ble", "mesh"]);
    let mut far = world();
    far[2].reach = Reach::Yes { over_internet: true };
    assert_eq!(order(&plan(&question, &far)), ["ble"]);
}

#[test]
fn privacy_waits_for_the_mixnet_rather_than_going_over_anything_less() {
    let question = Question { min_anonymity: L3, ..question() };
    assert_eq!(order(&plan(&question, &world())), ["htx"]);
    let weak = Capabilities { anonymity_level: AnonymityLevel::LOW, ..HTX };
    let mut few_relays = world();
    few_relays[1].capabilities = &weak;
    let Verdict::Waits { reason, until } = plan(&question, &few_relays).verdict else {
        panic!("it waits")
    };
    assert_eq!(reason, "htx: offers anonymity level 1 now, the message needs 3");
    assert_eq!(until, None);
}

#[test]
fn what_nothing_can_ever_carry_is_refused_with_every_reason() {
    let mut without_htx = world();
    without_htx.remove(1);
    let question = Question { min_anonymity: L3, size_bytes: 70_000, ..question() };
    let plan = plan(&question, &without_htx);
    assert_eq!(
        plan.verdict,
        Verdict::Never {
            reason: "ble: carries at most 65536 bytes, the content has 70000; \
                     mesh: offers anonymity level 0 at best, the message needs 3"
                .into()
        }
    );
    assert_eq!(plan.places, []);
}

#[test]
fn a_preference_goes_first_and_a_requirement_alone() {
    let preferred = Question { preference: Some("mesh"), ..question() };
    assert_eq!(order(&plan(&preferred, &world())), ["mesh", "htx", "ble"]);
    let required = Question { required: Some("mesh"), ..question() };
    assert_eq!(order(&plan(&required, &world())), ["mesh"]);
    let unknown = Question { required: Some("pigeon"), ..question() };
    let Verdict::Never { reason } = plan(&unknown, &world()).verdict else {
        panic!("it cannot go")
    };
    assert_eq!(reason, "pigeon: this gateway has no such transport");
}

#[test]
fn a_preference_that_does_not_fit_is_no_requirement() {
    let question = Question { preference: Some("ble"), size_bytes: 100_000, ..question() };
    assert_eq!(order(&plan(&question, &world())), ["htx", "mesh"]);
}

#[test]
fn broadcasts_go_over_ble_and_then_the_mesh() {
    let question = Question { recipient: RecipientKind::Broadcast, ..question() };
    let mut measured = world();
    for _ in 0..5 {
        measured[0].measured.add(NOW, Outcome::Failed);
    }
    assert_eq!(order(&plan(&question, &measured)), ["ble", "mesh"]);
}

#[test]
fn only_ble_reaches_phones() {
    let question = Question { recipient: RecipientKind::Phone, ..question() };
    assert_eq!(order(&plan(&question, &world())), ["ble"]);
}

#[test]
fn critical_and_parallel_go_everywhere_at_once() {
    for (parallel, critical) in [(true, false), (false, true)] {
        let plan = plan(&Question { parallel, critical, ..question() }, &world());
        assert!(plan.at_once);
        assert_eq!(plan.places.len(), 3);
    }
    assert!(!plan(&question(), &world()).at_once);
}

#[test]
fn a_transport_that_fails_for_this_recipient_loses_its_place() {
    let mut failing = world();
    for _ in 0..4 {
        failing[1].measured.add(NOW, Outcome::Silent(std::time::Duration::from_secs(10)));
    }
    let plan = plan(&question(), &failing);
    assert_eq!(order(&plan), ["ble", "mesh", "htx"]);
    assert_eq!(plan.places[2].reason, "priority 1, 0 % of attempts arrived lately");
}

#[test]
fn a_rested_transport_is_left_out_and_tried_out_later() {
    let until = NOW + chrono::TimeDelta::seconds(5);
    let mut rested = world();
    rested[1].breaker = BreakerState::Rested { until };
    assert_eq!(order(&plan(&question(), &rested)), ["ble", "mesh"]);
    rested[1].breaker = BreakerState::OnProbation;
    let plan = plan(&question(), &rested);
    assert_eq!(order(&plan), ["htx", "ble", "mesh"]);
    assert_eq!(plan.places[0].reason, "priority 1, tried out after a rest");
    let trials: Vec<_> = plan.places.iter().map(|place| place.is_trial).collect();
    assert_eq!(trials, [true, false, false]);
}

#[test]
fn when_only_rested_ones_are_left_the_plan_says_when_the_first_may_be_tried() {
    let until = NOW + chrono::TimeDelta::seconds(5);
    let mut world = world();
    for candidate in &mut world {
        candidate.reach = Reach::No;
    }
    world[1].reach = Reach::Yes { over_internet: true };
    world[1].breaker = BreakerState::Rested { until };
    let Verdict::Waits { reason, until: found } = plan(&question(), &world).verdict else {
        panic!("it waits")
    };
    assert_eq!(found, Some(until));
    assert_eq!(
        reason,
        "ble: does not reach the recipient now; \
         htx: failed repeatedly and rests until 00:00:05 UTC; \
         mesh: does not reach the recipient now"
    );
}

#[test]
fn where_nothing_but_reach_is_missing_the_reason_begins_with_it() {
    let mut world = world();
    for candidate in &mut world {
        candidate.reach = Reach::No;
    }
    let Verdict::Waits { reason, until: None } = plan(&question(), &world).verdict else {
        panic!("it waits for reach")
    };
    assert_eq!(
        reason,
        "out of reach: ble: does not reach the recipient now; \
         htx: does not reach the recipient now; \
         mesh: does not reach the recipient now"
    );
}

#[test]
fn a_gateway_without_transports_says_so() {
    let expected = Verdict::Never { reason: "this gateway has no transport".into() };
    assert_eq!(plan(&question(), &[]).verdict, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn rule_1_what_cannot_carry_it_is_never_asked(world in any_world()) {
        let question = world.0.question();
        for candidate in asked_of(&world) {
            let can = candidate.capabilities;
            prop_assert!(candidate.enabled);
            prop_assert!(can.max_message_size >= question.size_bytes);
            match question.recipient {
                RecipientKind::Broadcast => prop_assert!(can.supports_broadcast),
                RecipientKind::Phone => prop_assert!(can.reaches_phones && can.supports_unicast),
                _ => prop_assert!(can.supports_unicast),
            }
        }
    }

    #[test]
    fn rule_1_nothing_below_the_level_asked_for_is_ever_asked(world in any_world()) {
        for candidate in asked_of(&world) {
            prop_assert!(candidate.capabilities.anonymity_level >= world.0.min_anonymity);
        }
    }

    #[test]
    fn rule_2_a_preference_that_can_carry_it_goes_first(world in any_world()) {
        let plan = planned(&world);
        let preferred = world.0.preference;
        if let Some(place) = plan.places.iter().position(|one| Some(&*one.transport) == preferred) {
            prop_assert_eq!(place, 0);
        }
    }

    #[test]
    fn rule_2_a_required_transport_is_the_only_one(world in any_world()) {
        if let Some(required) = world.0.required {
            prop_assert!(planned(&world).places.iter().all(|place| place.transport == required));
        }
    }

    #[test]
    fn rule_3_a_local_recipient_wins_over_any_link(world in any_world()) {
        let plan = planned(&world);
        let is_here = world.0.recipient == RecipientKind::Local;
        let forced = world.0.required.is_some_and(|name| name != LOCAL);
        prop_assert_eq!(order(&plan).contains(&LOCAL), is_here && !forced);
        if is_here && !forced {
            prop_assert_eq!(order(&plan), [LOCAL]);
        }
    }

    #[test]
    fn rule_4_without_internet_only_what_needs_none_is_asked(world in any_world()) {
        if world.0.internet {
            return Ok(());
        }
        for candidate in asked_of(&world) {
            let can = candidate.capabilities;
            prop_assert!(can.is_offline_capable && !can.requires_internet);
            prop_assert_eq!(candidate.reach, Reach::Yes { over_internet: false });
        }
    }

    #[test]
    fn rule_4_broadcasts_go_over_ble_then_the_mesh_then_the_rest(world in any_world()) {
        let plan = planned(&world);
        if world.0.recipient != RecipientKind::Broadcast || world.0.preference.is_some() {
            return Ok(());
        }
        let ranks: Vec<_> = order(&plan)
            .into_iter()
            .map(|name| match name {
                "ble" => 0,
                "mesh" => 1,
                _ => 2,
            })
            .collect();
        prop_assert!(ranks.is_sorted(), "{:?}", ranks);
    }

    #[test]
    fn rule_5_the_order_is_the_priority_weighted_by_what_was_measured(world in any_world()) {
        let question = world.0.question();
        if question.recipient == RecipientKind::Broadcast {
            return Ok(());
        }
        let places = asked_of(&world);
        let rest = places.iter().skip_while(|one| question.preference == Some(one.name));
        let scores: Vec<_> = rest.map(|candidate| score(NOW, candidate)).collect();
        prop_assert!(scores.is_sorted_by(|a, b| a >= b), "{:?}", scores);
    }

    #[test]
    fn rule_6_all_at_once_exactly_when_it_is_critical_or_asked_for(world in any_world()) {
        let plan = planned(&world);
        if order(&plan) != [LOCAL] {
            prop_assert_eq!(plan.at_once, world.0.parallel || world.0.critical);
        }
    }

    #[test]
    fn what_is_out_of_reach_or_rested_is_never_asked_and_what_comes_from_a_rest_is_a_trial(
        world in any_world(),
    ) {
        let plan = planned(&world);
        for candidate in asked_of(&world) {
            prop_assert!(candidate.reach != Reach::No);
            let place = plan.places.iter().find(|one| one.transport == candidate.name).unwrap();
            match candidate.breaker {
                BreakerState::Closed => prop_assert!(!place.is_trial),
                BreakerState::OnProbation => prop_assert!(place.is_trial),
                other => prop_assert!(false, "{:?} is asked", other),
            }
        }
        prop_assert!(plan.places.iter().all(|place| !place.reason.is_empty()));
    }

    #[test]
    fn every_transport_is_either_in_the_plan_or_ruled_out_with_a_reason(world in any_world()) {
        let (asked, owned) = world;
        let candidates: Vec<_> = owned.iter().map(Owned::candidate).collect();
        let plan = plan(&asked.question(), &candidates);
        let named: Vec<_> = order(&plan)
            .into_iter()
            .chain(plan.ruled_out.iter().map(|out| out.transport.as_str()))
            .collect();
        for candidate in &candidates {
            let times = named.iter().filter(|name| **name == candidate.name).count();
            prop_assert_eq!(times, 1, "{}", candidate.name);
        }
        prop_assert!(plan.ruled_out.iter().all(|out| !out.why.to_string().is_empty()));
        match &plan.verdict {
            Verdict::Go => prop_assert!(!plan.places.is_empty()),
            Verdict::Waits { reason, until } => {
                prop_assert!(plan.places.is_empty() && !reason.is_empty());
                prop_assert!(plan.ruled_out.iter().any(|out| !out.why.is_for_good()));
                prop_assert!(until.is_none_or(|until| until > NOW));
            }
            Verdict::Never { reason } => {
                prop_assert!(plan.places.is_empty() && !reason.is_empty());
                prop_assert!(plan.ruled_out.iter().all(|out| out.why.is_for_good()));
            }
        }
    }

    #[test]
    fn the_answer_does_not_depend_on_the_order_of_asking(world in any_world()) {
        let (asked, owned) = world;
        let mut candidates: Vec<_> = owned.iter().map(Owned::candidate).collect();
        let forward = plan(&asked.question(), &candidates);
        prop_assert_eq!(&plan(&asked.question(), &candidates), &forward);
        candidates.reverse();
        prop_assert_eq!(&plan(&asked.question(), &candidates), &forward);
    }

    #[test]
    fn never_means_never(world in any_world()) {
        let (asked, mut owned) = world;
        let candidates: Vec<_> = owned.iter().map(Owned::candidate).collect();
        let before = plan(&asked.question(), &candidates);
        // The world at its best: everything up, in reach, at its best level.
        for candidate in &mut owned {
            candidate.reach = Reach::Yes { over_internet: false };
            candidate.breaker = BreakerState::Closed;
            let best = candidate.capabilities.best_anonymity_level;
            candidate.capabilities.anonymity_level = candidate.capabilities.anonymity_level.max(best);
        }
        let candidates: Vec<_> = owned.iter().map(Owned::candidate).collect();
        let at_best = plan(&Question { internet: true, ..asked.question() }, &candidates);
        let never = matches!(before.verdict, Verdict::Never { .. });
        prop_assert_eq!(at_best.places.is_empty(), never);
    }

    #[test]
    fn unmeasured_transports_keep_the_configured_order(
        priorities in Just([0usize, 1, 2]).prop_shuffle(),
    ) {
        let mut world = world();
        for (candidate, priority) in world.iter_mut().zip(priorities) {
            candidate.priority = Some(priority);
        }
        let mut expected = world.clone();
        expected.sort_by_key(|candidate| candidate.priority);
        let expected: Vec<_> = expected.iter().map(|candidate| candidate.name).collect();
        let plan = plan(&question(), &world);
        prop_assert_eq!(order(&plan), expected);
    }
}

fn planned(world: &(Asked, Vec<Owned>)) -> Plan {
    let candidates: Vec<_> = world.1.iter().map(Owned::candidate).collect();
    plan(&world.0.question(), &candidates)
}

/// The transports that the plan asks, in its order; `local` is none.
fn asked_of(world: &(Asked, Vec<Owned>)) -> Vec<Candidate<'_>> {
    let plan = planned(world);
    let find = |name: &str| world.1.iter().map(Owned::candidate).find(|one| one.name == name);
    order(&plan).into_iter().filter_map(find).collect()
}

#[derive(Clone, Debug)]
struct Asked {
    recipient: RecipientKind,
    size_bytes: usize,
    min_anonymity: AnonymityLevel,
    preference: Option<&'static str>,
    required: Option<&'static str>,
    parallel: bool,
    critical: bool,
    internet: bool,
}

impl Asked {
    fn question(&self) -> Question<'_> {
        Question {
            now: NOW,
            recipient: self.recipient,
            size_bytes: self.size_bytes,
            min_anonymity: self.min_anonymity,
            preference: self.preference,
            required: self.required,
            parallel: self.parallel,
            critical: self.critical,
            internet: self.internet,
        }
    }
}

#[derive(Clone, Debug)]
struct Owned {
    name: &'static str,
    enabled: bool,
    capabilities: Capabilities,
    reach: Reach,
    measured: Measured,
    breaker: BreakerState,
    priority: Option<usize>,
}

impl Owned {
    fn candidate(&self) -> Candidate<'_> {
        Candidate {
            name: self.name,
            enabled: self.enabled,
            capabilities: &self.capabilities,
            reach: self.reach,
            measured: self.measured,
            breaker: self.breaker,
            priority: self.priority,
        }
    }
}

const NAMES: [&str; 5] = ["ble", "htx", "mesh", "memory", "pigeon"];

fn any_world() -> impl Strategy<Value = (Asked, Vec<Owned>)> {
    let candidates = prop::sample::subsequence(&NAMES[..4], 0..=4)
        .prop_flat_map(|names| names.into_iter().map(any_candidate).collect::<Vec<_>>());
    (any_question(), candidates)
}

fn any_question() -> impl Strategy<Value = Asked> {
    let recipient = prop::sample::select(vec![
        RecipientKind::Local,
        RecipientKind::Peer,
        RecipientKind::Peer,
        RecipientKind::Phone,
        RecipientKind::Group,
        RecipientKind::Broadcast,
    ]);
    let named = || prop::option::weighted(0.2, prop::sample::select(&NAMES[..]));
    let size = prop_oneof![0usize..1000, 0usize..2_000_000];
    (recipient, size, any_level(), named(), named(), any::<[bool; 3]>()).prop_map(
        |(recipient, size_bytes, min_anonymity, preference, required, flags)| Asked {
            recipient,
            size_bytes,
            min_anonymity,
            preference,
            required,
            parallel: flags[0] && flags[1],
            critical: flags[1] && !flags[0],
            internet: flags[2],
        },
    )
}

fn any_candidate(name: &'static str) -> impl Strategy<Value = Owned> {
    let capabilities = (any::<[bool; 5]>(), any_level(), any_level(), 0usize..2_000_000).prop_map(
        |([unicast, broadcast, offline, requires_internet, reaches_phones], level, best, max)| {
            Capabilities {
                supports_unicast: unicast || broadcast,
                supports_broadcast: broadcast,
                is_offline_capable: offline,
                requires_internet,
                reaches_phones,
                anonymity_level: level,
                best_anonymity_level: best,
                max_message_size: max,
                ..MESH
            }
        },
    );
    let reach = prop_oneof![
        1 => Just(Reach::No),
        3 => any::<bool>().prop_map(|over_internet| Reach::Yes { over_internet }),
    ];
    let until = NOW + chrono::TimeDelta::seconds(3);
    let breaker = prop_oneof![
        4 => Just(BreakerState::Closed),
        1 => Just(BreakerState::OnProbation),
        1 => Just(BreakerState::Rested { until }),
        1 => Just(BreakerState::OnTrial { until }),
    ];
    let measured = prop::collection::vec(any::<bool>(), 0..6).prop_map(|outcomes| {
        let mut measured = Measured::default();
        for arrived in outcomes {
            let outcome = match arrived {
                true => Outcome::Arrived(std::time::Duration::from_millis(70)),
                false => Outcome::Failed,
            };
            measured.add(NOW, outcome);
        }
        measured
    });
    let enabled = prop::bool::weighted(0.9);
    let priority = prop::option::weighted(0.8, 0usize..3);
    (enabled, capabilities, reach, measured, breaker, priority).prop_map(
        move |(enabled, capabilities, reach, measured, breaker, priority)| Owned {
            name,
            enabled,
            capabilities,
            reach,
            measured,
            breaker,
            priority,
        },
    )
}

fn any_level() -> impl Strategy<Value = AnonymityLevel> {
    prop::sample::select(vec![
        AnonymityLevel::NONE,
        AnonymityLevel::NONE,
        AnonymityLevel::LOW,
        AnonymityLevel::MEDIUM,
        L3,
    ])
}

fn order(plan: &Plan) -> Vec<&str> {
    plan.places.iter().map(|place| place.transport.as_str()).collect()
}

const NOW: Time = Time::UNIX_EPOCH;
const L3: AnonymityLevel = AnonymityLevel::HIGHEST;

fn question() -> Question<'static> {
    Question {
        now: NOW,
        recipient: RecipientKind::Peer,
        size_bytes: 100,
        min_anonymity: AnonymityLevel::NONE,
        preference: None,
        required: None,
        parallel: false,
        critical: false,
        internet: true,
    }
}

/// The three transports of the design, with its default priorities.
fn world() -> Vec<Candidate<'static>> {
    let with = |name, capabilities, over_internet, priority| Candidate {
        name,
        enabled: true,
        capabilities,
        reach: Reach::Yes { over_internet },
        measured: Measured::default(),
        breaker: BreakerState::Closed,
        priority: Some(priority),
    };
    vec![with("ble", &BLE, false, 1), with("htx", &HTX, true, 0), with("mesh", &MESH, false, 2)]
}

const BLE: Capabilities = Capabilities {
    max_message_size: 65_536,
    typical_latency_ms: 2000,
    bandwidth_mbps: 0.1,
    works_on_cellular: false,
    anonymity_level: AnonymityLevel::LOW,
    best_anonymity_level: AnonymityLevel::LOW,
    reaches_phones: true,
    battery_impact: Impact::Medium,
    supports_store_and_forward: true,
    supports_multi_hop: true,
    max_hops: 7,
    ..MESH
};

const HTX: Capabilities = Capabilities {
    supports_broadcast: false,
    supports_multicast: false,
    typical_latency_ms: 500,
    bandwidth_mbps: 5.0,
    is_offline_capable: false,
    requires_internet: true,
    anonymity_level: L3,
    best_anonymity_level: L3,
    data_cost_impact: Impact::Medium,
    supports_multi_hop: true,
    max_hops: 5,
    ..MESH
};

const MESH: Capabilities = Capabilities {
    supports_unicast: true,
    supports_broadcast: true,
    supports_multicast: true,
    max_message_size: 1_048_576,
    typical_latency_ms: 100,
    bandwidth_mbps: 100.0,
    is_offline_capable: true,
    requires_internet: false,
    works_on_cellular: true,
    works_on_wifi: true,
    provides_encryption: true,
    supports_forward_secrecy: true,
    anonymity_level: AnonymityLevel::NONE,
    best_anonymity_level: AnonymityLevel::NONE,
    reaches_phones: false,
    battery_impact: Impact::Low,
    data_cost_impact: Impact::Low,
    supports_store_and_forward: false,
    supports_multi_hop: false,
    max_hops: 1,
};
