//! Resident memory for each idle WebSocket, at 5000.

use tokio::time::{Duration, sleep};

use crate::{
    measure::{median, resident_bytes},
    server::Server,
    table::{Table, Target},
};

const SOCKETS: usize = 5000;

/// Opens them, one peer each, and looks at the gateway's memory before and after.
pub(crate) async fn run(table: &mut Table) {
    let server = Server::start(&[]).await;
    let mut tokens = Vec::with_capacity(SOCKETS);
    for peer in 0..SOCKETS {
        tokens.push(server.register(&format!("peer-{peer}")).await);
    }
    // Some sockets first, so that pools and caches have their size.
    let mut sockets = Vec::with_capacity(SOCKETS + 64);
    for token in tokens.iter().take(64) {
        sockets.push(server.socket(token).await);
    }
    let before = resident_bytes(server.pid);
    for token in tokens.iter().skip(64) {
        sockets.push(server.socket(token).await);
    }
    let mut readings = Vec::new();
    for _ in 0..3 {
        sleep(Duration::from_secs(1)).await;
        readings.push(resident_bytes(server.pid) as f64);
    }
    let each = (median(readings) - before as f64) / (SOCKETS - 64) as f64 / 1024.0;
    let figure = format!("{each:.1} KiB");
    table.ratio(
        "idle WebSocket",
        figure,
        each / 10.0,
        Target::AtMost(1.0),
        "10 KiB of resident memory, 5000 open",
    );
    drop(sockets);
}
