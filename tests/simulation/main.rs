//! Fifty gateways in virtual time, on links that fail, hang, lose, double, delay and part, with
//! clocks that differ, crashing between any two steps: promises 1, 2, 3 and 5 hold for every seed
//! (`fieldpost_delivery::simulation`).
//!
//! The short form runs a hundred seeds with every `cargo test`; `./dev prove simulation` runs ten
//! thousand. `FIELDPOST_PROVE_SEED` is the first seed and `FIELDPOST_PROVE_RUNS` how many there are:
//! `SEED=7 RUNS=1` repeats one, and a long proof that was interrupted goes on at the seed it printed.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use fieldpost_delivery::simulation::{Fault, Shape, Tally, World};
use harness::setting;
use tokio::time::Instant;

const SHORT: u64 = 100;
const LONG: u64 = 10_000;
/// Between two lines of progress.
const SAY_EVERY: Duration = Duration::from_secs(30);
/// Failing seeds that are shown before the rest is left alone.
const SHOWN: usize = 3;

#[test]
fn fifty_gateways_keep_the_promises() {
    prove(setting("RUNS", SHORT));
}

#[test]
#[ignore = "takes long: ./dev prove simulation"]
fn fifty_gateways_keep_the_promises_in_ten_thousand_runs() {
    prove(setting("RUNS", LONG));
}

/// The judge has teeth: whatever is done wrong on purpose is seen in a few runs.
#[test]
fn faults_planted_among_fifty_gateways_are_seen() {
    for (fault, word) in Fault::ALL {
        let is_seen = (0..10).any(|seed| {
            let mut world = World::new(seed, Shape::FIFTY, fault);
            world.run();
            world.judge().iter().any(|violation| violation.starts_with(word))
        });
        assert!(is_seen, "{fault:?} was not seen");
    }
}

/// Runs so many seeds, on all processors.
fn prove(runs: u64) {
    let first = setting("SEED", 0);
    let next = AtomicU64::new(first);
    let failed = AtomicUsize::new(0);
    let began = Instant::now();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let total = thread::scope(|scope| {
        let work = || {
            let mut total = Tally::default();
            let mut said = Instant::now();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + runs || failed.load(Ordering::Relaxed) >= SHOWN {
                    return total;
                }
                let tally = run(seed, &failed);
                total = total + tally;
                if said.elapsed() >= SAY_EVERY {
                    said = Instant::now();
                    let seconds = began.elapsed().as_secs();
                    let done = seed - first;
                    eprintln!("{done} of {runs} runs in {seconds} s; go on with SEED={seed}");
                }
            }
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let totals = workers.into_iter().map(|worker| worker.join().expect("it does not panic"));
        totals.fold(Tally::default(), |total, tally| total + tally)
    });
    eprintln!(
        "seeds {first} to {} in {} s: {total:?}",
        first + runs - 1,
        began.elapsed().as_secs()
    );
    assert_eq!(failed.into_inner(), 0, "promises were broken; the seeds stand above");
    // Weather that does nothing would prove nothing.
    assert!(total.lost > 0 && total.doubled > 0 && total.crashes > 0 && total.failovers > 0);
    assert!(total.trials > 0 && total.ended_otherwise > 0 && total.shown > total.marked);
}

fn run(seed: u64, failed: &AtomicUsize) -> Tally {
    let mut world = World::new(seed, Shape::FIFTY, Fault::None);
    world.run();
    let violations = world.judge();
    if !violations.is_empty() {
        failed.fetch_add(1, Ordering::Relaxed);
        let shown: Vec<&str> = violations.iter().take(10).map(String::as_str).collect();
        eprintln!(
            "{} promises were broken; FIELDPOST_PROVE_SEED={seed} FIELDPOST_PROVE_RUNS=1 repeats it\n{}",
            violations.len(),
            shown.join("\n"),
        );
    }
    world.tally()
}
