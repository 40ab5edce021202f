//! Three gateways on memory stores in virtual time; fifty are in `tests/simulation`.
//!
//! Every run is made by its seed, which a failing test prints.

use fieldpost_delivery::simulation::{Fault, Shape, World};

#[test]
fn everything_arrives_once_in_order_and_over_nothing_less_than_it_asked_for() {
    for seed in 0..12 {
        let mut world = World::new(seed, Shape::SMALL, Fault::None);
        world.run();
        let violations = world.judge();
        assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
        let tally = world.tally();
        assert!(tally.accepted > 60 && tally.failovers > 5, "seed {seed}: {tally:?}");
        assert!(tally.lost > 20 && tally.doubled > 5 && tally.crashes > 2, "{tally:?}");
    }
}

#[test]
fn a_run_is_made_by_its_seed() {
    let run = |seed| {
        let mut world = World::new(seed, Shape::SMALL, Fault::None);
        world.run();
        world.tally()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn planted_faults_are_seen() {
    for (fault, word) in Fault::ALL {
        let seen = (0..20).any(|seed| {
            let mut world = World::new(seed, Shape::SMALL, fault);
            world.run();
            world.judge().iter().any(|violation| violation.starts_with(word))
        });
        assert!(seen, "{fault:?} was not seen");
    }
}
