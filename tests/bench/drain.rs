//! How long a backlog of 100 000 for one peer takes to be gone through one WebSocket.

use std::{process::Command, time::Duration};

use tokio::time::Instant;

use crate::{
    load::{Client, request},
    measure::median,
    server::Server,
    table::{Table, Target},
};

const BACKLOG: usize = 100_000;
const SENDERS: usize = 16;
const CONFIRM_EVERY: i64 = 256;
const RUNS: usize = 3;

/// Fills, opens the socket, confirms as it goes, and waits until the queue table is empty.
pub(crate) async fn run(table: &mut Table) {
    let mut rates = Vec::new();
    for _ in 0..RUNS {
        rates.push(one().await);
    }
    let rate = median(rates);
    let figure = format!("{rate:.0} /s, {:.1} s", BACKLOG as f64 / rate);
    table.ratio(
        "backlog of 100 000 through one socket",
        figure,
        rate / 30_000.0,
        Target::AtLeast(1.0),
        "30 000 a second until the queue table is empty",
    );
}

async fn one() -> f64 {
    let server = Server::start(&["--sender-share=100%"]).await;
    let recipient = server.register("recipient").await;
    let mut fill = tokio::task::JoinSet::new();
    for sender in 0..SENDERS {
        let token = server.register(&format!("sender-{sender}")).await;
        let address = server.address;
        fill.spawn(async move {
            let mut client = Client::connect(address).await;
            let body = format!("{{\"to\":\"recipient\",\"content\":\"{}\"}}", "x".repeat(256));
            let request = request("/v1/messages", &token, &body);
            for _ in 0..BACKLOG / SENDERS {
                client.post(&request).await;
            }
        });
    }
    fill.join_all().await;
    let begin = Instant::now();
    let mut socket = server.socket(&recipient).await;
    let mut last = 0;
    while last < BACKLOG as i64 {
        let message = socket.next_message().await.expect("the socket stays open");
        last = message.seq;
        if last % CONFIRM_EVERY == 0 || last == BACKLOG as i64 {
            socket.confirm(last).await;
        }
    }
    while waiting(&server) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    BACKLOG as f64 / begin.elapsed().as_secs_f64()
}

/// How many rows the queue table holds.
fn waiting(server: &Server) -> usize {
    let output = Command::new("psql")
        .args(["-tAc", "select count(*) from inbox", &server.database_url()])
        .output()
        .expect("psql starts: it is part of the postgresql package");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim().parse().unwrap_or_else(|_| panic!("psql printed {text:?}"))
}
