//! The Postgres store under the suite that judges every store (`fieldpost_delivery::suite`).
//!
//! The suite does random things in virtual time beside a model of what promises 1, 2, 3 and 5
//! allow; the store in memory passes the same one in the unit tests of `fieldpost-delivery`.

use fieldpost_delivery::suite;
use fieldpost_gateway::{
    clock::Clock,
    secrets::MasterKey,
    store::{Admission, NewPeer, PeerDefaults, PeerSettings, ShownTo, Store, schema},
};
use harness::Postgres;

#[tokio::test(flavor = "multi_thread")]
async fn the_postgres_store_keeps_its_word() {
    let first = harness::setting("STORE_SEED", 0);
    let runs = harness::setting("STORE_RUNS", 6);
    let steps = harness::setting("STORE_STEPS", 300).try_into().expect("steps fit in memory");
    let clock = Clock::default();
    let mut violations = Vec::new();
    for seed in first..first + runs {
        let store = fresh_store(&clock).await;
        match suite::run(&store, seed, steps, clock.now()).await {
            Ok(summary) => {
                for what in ["shown", "shown at once", "claimed", "claimed at once"] {
                    let count = summary.counts.get(what).copied().unwrap_or_default();
                    assert!(count > 0, "seed {seed}: nothing was {what}");
                }
            }
            Err(violation) => violations.push(violation),
        }
    }
    let shortest = violations.iter().min_by_key(|violation| violation.step);
    assert!(
        violations.is_empty(),
        "{} of {runs} runs broke a rule; the shortest: {}",
        violations.len(),
        shortest.expect("there is one"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_into_reach_of_the_postgres_store_leaves_in_turns() {
    let clock = Clock::default();
    // The second takes several slices.
    for many in [40, 5000] {
        let store = fresh_store(&clock).await;
        suite::leaves_in_turns(&store, clock.now(), many).await.expect("turns are kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_postgres_store_tells_a_gap_that_nobody_saw() {
    let clock = Clock::default();
    let store = fresh_store(&clock).await;
    suite::tells_gaps_nobody_saw(&store, clock.now()).await.expect("gaps are told");
}

async fn fresh_store(clock: &Clock) -> Store {
    let url = Postgres::fresh_database().await;
    let options = url.parse().expect("the harness gives good addresses");
    schema::migrate(&options).await.expect("a fresh database can be migrated");
    let key = MasterKey::ephemeral().expect("there is randomness");
    let store = Store::new(schema::pool(options), clock.clone(), key);
    store.load_identity().await.expect("a fresh database gets an identity");
    store.prepare_days(clock.now()).await.expect("days can be prepared");
    for id in suite::peers() {
        let new = NewPeer {
            id,
            public_key: "none".into(),
            settings: PeerSettings::default(),
            defaults: PeerDefaults { on_air: false, shown_to: ShownTo::Everyone, max_on_air: 0 },
            online_until: None,
        };
        store.register_peer(&new, false, Admission::Granted).await.expect("a peer can register");
    }
    store
}
