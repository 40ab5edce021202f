//! How fast a message moves on to the next transport, between two gateways on two `memory` networks,
//! durable on both sides.

use std::time::Duration;

use fieldpost_transport::Faults;
use harness::failover::TwoWays;

use crate::{
    measure::{Measured, milliseconds},
    table::{Table, Target},
};

const HARD: usize = 1000;
const SILENT: usize = 100;
const TIME_OUT: Duration = Duration::from_secs(1);
/// What the design allows beyond the failure, or beyond the time-out.
const ALLOWED: Duration = Duration::from_millis(300);

/// Measures both ways of failing.
pub(crate) async fn run(table: &mut Table) {
    let ways = TwoWays::start(&["--failover-timeout=1s"]).await;
    for (what, count, faults, time_out) in [
        ("a hard failure", HARD, Faults::BROKEN, Duration::ZERO),
        ("silence, beyond the time-out", SILENT, Faults::SILENCE, TIME_OUT),
    ] {
        let mut beyond = Measured::default();
        for one in ways.fail(count, faults).await {
            beyond.add(one.gap.saturating_sub(time_out));
        }
        let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| beyond.quantile(share));
        table.ratio(
            format!("failover after {what}, p99 of {count}"),
            format!(
                "{} (p50 {}, max {})",
                milliseconds(p99),
                milliseconds(p50),
                milliseconds(most),
            ),
            p99.as_secs_f64() / ALLOWED.as_secs_f64(),
            Target::AtMost(1.0),
            "300 ms",
        );
    }
}
