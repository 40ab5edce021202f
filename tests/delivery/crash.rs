//! Promises outlive SIGKILL: gateway and Postgres are killed at random under load, and the history
//! checker judges what clients saw.
//!
//! The short form runs with every `cargo test`. `./dev prove crash`, or `FIELDPOST_PROVE=1`, kills
//! 50 times; `FIELDPOST_PROVE_SEED` and `FIELDPOST_PROVE_KILLS` repeat a run.

use std::{collections::BTreeSet, env, time::Duration};

use harness::{
    Gateway, Options, Postgres, check,
    history::Kind,
    load::{Load, Shape},
    seed, setting,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// How long the load may take to get going again after a kill.
const PATIENCE: Duration = Duration::from_secs(90);
const SHORT: u64 = 3;
const LONG: u64 = 50;
/// The most messages between two kills.
const MESSAGES: u64 = 250;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Victim {
    Gateway,
    Postgres,
    Both,
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_gateway_and_its_postgres_are_killed() {
    let kills = if env::var_os("FIELDPOST_PROVE").is_some() { LONG } else { SHORT };
    kill_under_load(setting("KILLS", kills)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: ./dev prove crash"]
async fn nothing_is_lost_or_doubled_in_fifty_kills() {
    kill_under_load(setting("KILLS", LONG)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_external_postgres_may_be_killed_as_well() {
    let seed = seed();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut postgres = Postgres::start().await;
    let url = postgres.create_database("crash");
    let mut gateway = Options::on(url).start().await;
    let load = Load::start(&gateway.client(), Shape::default(), seed).await;
    for _ in 0..2 {
        load.wait_for_accepted(rng.random_range(1..=MESSAGES), PATIENCE).await;
        postgres.kill().await;
        if rng.random_bool(0.5) {
            gateway.kill();
            // An external database may come later than the gateway.
            gateway.begin();
        }
        postgres.resume().await;
        gateway.wait_ready().await;
    }
    load.wait_for_accepted(MESSAGES, PATIENCE).await;
    load.finish().await.assert_clean(seed);
}

/// The proof has teeth: a database that loses what it had committed is found out.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_forgets_is_found_out() {
    let seed = seed();
    eprintln!("seed {seed}");
    let mut postgres = Postgres::start().await;
    let mut gateway = Options::on(postgres.create_database("forgetful")).start().await;
    let load = Load::start(&gateway.client(), Shape::default(), seed).await;
    load.wait_for_accepted(50, PATIENCE).await;
    postgres.stop().await;
    postgres.back_up();
    postgres.resume().await;
    load.wait_for_accepted(100, PATIENCE).await;
    postgres.kill().await;
    postgres.forget();
    postgres.resume().await;
    gateway.wait_ready().await;
    load.wait_for_accepted(50, PATIENCE).await;
    let violations = check(&load.finish().await);
    let found: BTreeSet<Kind> = violations.iter().map(|violation| violation.kind).collect();
    assert!(found.contains(&Kind::Lost), "seed {seed}: {violations:?}");
}

async fn kill_under_load(kills: u64) {
    let seed = seed();
    eprintln!("seed {seed}, {kills} kills");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut gateway = Options::embedded().start().await;
    let load = Load::start(&gateway.client(), Shape::default(), seed).await;
    for number in 0..kills {
        load.wait_for_accepted(rng.random_range(1..=MESSAGES), PATIENCE).await;
        // Each victim has its turn, so that the short form has all three.
        let victim = [Victim::Both, Victim::Gateway, Victim::Postgres]
            [usize::try_from(number % 3).expect("it is below three")];
        strike(&mut gateway, victim).await;
        eprintln!("kill {}: {victim:?} at {} messages", number + 1, load.accepted());
    }
    load.wait_for_accepted(MESSAGES, PATIENCE).await;
    let shown = load.shown();
    assert!(shown > 0, "nothing was shown");
    let history = load.finish().await;
    eprintln!("{} events", history.events.len());
    history.assert_clean(seed);
}

async fn strike(gateway: &mut Gateway, victim: Victim) {
    if victim != Victim::Gateway {
        gateway.kill_database();
    }
    if victim != Victim::Postgres {
        gateway.kill();
        gateway.begin();
    }
    gateway.wait_ready().await;
}
