//! Durable accepts a second over HTTP, beside a no-op POST on the same middleware stack: a
//! confirmation of no message, which is authenticated, limited, parsed and answered like any other
//! and leaves the database alone.

use std::time::Duration;

use crate::{
    floor::Floor,
    load::{Outcome, post, request},
    measure::median,
    server::Server,
    table::{Table, Target},
};

const RUNS: usize = 3;
const DURATION: Duration = Duration::from_secs(4);
/// As many as there are connections at most, so that no sender waits for itself.
const SENDERS: usize = 64;
/// Messages go to many, so that no inbox, and no sender's share of one, fills up.
const RECIPIENTS: usize = 2048;

/// Measures 1, 16 and 64 connections, 256 B and 4 KiB.
pub(crate) async fn run(table: &mut Table, floor: &Floor) {
    let server = Server::start(&[]).await;
    let mut tokens = Vec::new();
    for sender in 0..SENDERS {
        tokens.push(server.register(&format!("sender-{sender}")).await);
    }
    for recipient in 0..RECIPIENTS {
        server.register(&format!("recipient-{recipient}")).await;
    }
    for size in [256, 4096] {
        for connections in [1, 16, 64] {
            compare(table, floor, &server, &tokens, connections, size).await;
        }
    }
}

/// Confirms no messages, which does nothing.
const NO_OP: &str = "/v1/inbox/ack";

async fn compare(
    table: &mut Table,
    floor: &Floor,
    server: &Server,
    tokens: &[String],
    connections: usize,
    size: usize,
) {
    let content = "x".repeat(size);
    let make = |path: &'static str| {
        let (content, tokens) = (&content, tokens);
        move |connection: usize| {
            let recipients = (0..RECIPIENTS).skip(connection % SENDERS).step_by(SENDERS);
            let one = |recipient| {
                let body =
                    format!("{{\"to\":\"recipient-{recipient}\",\"content\":\"{content}\"}}");
                // No request takes the fields of another, so what does nothing is as long by spaces.
                let body = match path {
                    NO_OP => format!("{{\"message_ids\":[]{:1$}}}", "", body.len() - 18),
                    _ => body,
                };
                request(path, &tokens[connection % SENDERS], &body)
            };
            recipients.map(one).collect()
        }
    };
    let has_all_targets = connections == 64 && size == 256;
    let (mut nothing, mut accepts, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        // In turn with the runs, since what a machine can do changes in a minute.
        if has_all_targets {
            commits.push(floor.single_row_commits(64, DURATION.as_secs() as u32));
        }
        let no_op = make(NO_OP);
        nothing.push(post(server.address, server.pid, connections, DURATION, no_op).await);
        let accept = make("/v1/messages");
        accepts.push(post(server.address, server.pid, connections, DURATION, accept).await);
    }
    let rate = |runs: &[Outcome]| median(runs.iter().map(Outcome::rate).collect());
    let cpu = |runs: &[Outcome]| median(runs.iter().map(Outcome::cpu_micros).collect());
    let refused: u64 = accepts.iter().chain(&nothing).map(|run| run.refused).sum();
    let label = format!("{connections} connections, {size} B");
    table.figure(
        format!("no-op POST, {label}"),
        format!("{:.0} /s", rate(&nothing)),
        format!("{:.0} us CPU each; {}", cpu(&nothing), nothing[RUNS / 2].bottleneck()),
    );
    table.figure(
        format!("durable accepts, {label}"),
        format!("{:.0} /s", rate(&accepts)),
        format!(
            "{:.0} us CPU each (gateway and database); {}; refused {refused}; p99 {:.2} ms",
            cpu(&accepts),
            accepts[RUNS / 2].bottleneck(),
            accepts[RUNS / 2].latency.quantile(0.99).as_secs_f64() * 1e3,
        ),
    );
    if connections < 64 {
        return;
    }
    let ratio = rate(&accepts) / rate(&nothing);
    let target = Target::AtLeast(if size == 256 { 0.35 } else { 0.2 });
    let figure = format!("{:.0} /s", rate(&accepts));
    table.ratio(format!("accepts to no-op, {label}"), &figure, ratio, target, "no-op POST");
    if has_all_targets {
        let commits = median(commits);
        let ratio = rate(&accepts) / commits;
        let target = Target::AtLeast(1.3);
        let beside = format!("pgbench, 64 clients: {commits:.0} /s between the runs");
        table.ratio("accepts to single-row commits", &figure, ratio, target, beside);
        let ratio = cpu(&accepts) / cpu(&nothing);
        let figure = format!("{:.0} us", cpu(&accepts));
        table.ratio("CPU a message", figure, ratio, Target::AtMost(3.5), "CPU a no-op");
    }
}
