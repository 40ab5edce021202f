//! What this machine can do at all: flushes, commits and inserts.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use harness::Postgres;
use tokio::time::Instant;

use crate::{
    measure::{Measured, milliseconds},
    table::Table,
};

/// The limits that other figures are put beside.
pub(crate) struct Floor {
    /// The server must outlive its address.
    _postgres: Postgres,
    url: String,
}

const SINGLE: &str =
    "insert into single (sender, body) values ('alice', decode(repeat('ab', 256), 'hex'));\n";

impl Floor {
    /// Single-row commits a second with `clients`, by pgbench.
    pub(crate) fn single_row_commits(&self, clients: u32, seconds: u32) -> f64 {
        pgbench(&self.url, SINGLE, clients, seconds)
    }

    /// How long each of them takes at so many a second, from the moment at which it was to begin.
    pub(crate) fn paced_commits(&self, clients: u32, rate: u32, seconds: u32) -> Measured {
        let log = std::env::temp_dir().join(format!("fieldpost-pgbench-{}", std::process::id()));
        let rate = format!("--rate={rate}");
        let prefix = format!("--log-prefix={}", log.display());
        rate_of(start(&self.url, SINGLE, clients, seconds, &[&rate, "--log", &prefix]));
        let mut took = Measured::default();
        for path in logs(&log) {
            // Client, transaction, microseconds, and more.
            let text = fs::read_to_string(&path).expect("pgbench's log can be read");
            let micros = text.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
            micros.for_each(|micros| took.add(Duration::from_micros(micros)));
            fs::remove_file(path).expect("removing");
        }
        took
    }
}

/// What pgbench wrote beside `prefix`: a file for each of its threads.
fn logs(prefix: &Path) -> Vec<PathBuf> {
    let folder = fs::read_dir(std::env::temp_dir()).expect("the temporary folder can be listed");
    let paths = folder.flatten().map(|entry| entry.path());
    let begins = prefix.display().to_string() + ".";
    paths.filter(|path| path.display().to_string().starts_with(&begins)).collect()
}

/// Measures them.
pub(crate) async fn measure(table: &mut Table) -> Floor {
    let mut flushes = flushes(Duration::from_secs(2));
    let (p50, p99) = (flushes.quantile(0.5), flushes.quantile(0.99));
    table.figure(
        "flush of 8 KiB",
        format!("{:.0} /s", flushes.len() as f64 / 2.0),
        format!("p50 {}, p99 {}", milliseconds(p50), milliseconds(p99)),
    );
    let postgres = Postgres::start().await;
    let url = postgres.create_database("floor");
    psql(
        &url,
        "create table single (sender text, body bytea, at timestamptz default now(), id bigserial primary key)",
    );
    let floor = Floor { _postgres: postgres, url };
    for clients in [1, 64] {
        table.figure(
            format!("single-row commits, {clients} clients"),
            format!("{:.0} /s", floor.single_row_commits(clients, 5)),
            "pgbench on an own server, 256 B",
        );
    }
    let batched = "insert into single (sender, body) select 'alice', decode(repeat('ab', 256), 'hex') from generate_series(1, 256);\n";
    let rate = pgbench(&floor.url, batched, 2, 5) * 256.0;
    table.figure(
        "batched inserts",
        format!("{rate:.0} rows/s"),
        "pgbench, 256 rows a commit, 2 clients",
    );
    // Nothing of it is to be written while others are measured.
    psql(&floor.url, "truncate single");
    psql(&floor.url, "checkpoint");
    floor
}

/// Flushes 8 KiB over and over for `duration`; how long each took.
pub(crate) fn flushes(duration: Duration) -> Measured {
    let path = std::env::temp_dir().join(format!("fieldpost-flush-{}", std::process::id()));
    let mut file = File::create(&path).expect("a temporary file");
    let (mut measured, end, page) = (Measured::default(), Instant::now() + duration, [7; 8192]);
    while Instant::now() < end {
        file.seek(SeekFrom::Start(0)).expect("seeking");
        file.write_all(&page).expect("writing");
        let begin = Instant::now();
        file.sync_data().expect("flushing");
        measured.add(begin.elapsed());
    }
    fs::remove_file(path).expect("removing");
    measured
}

fn psql(url: &str, statement: &str) {
    let done = Command::new("psql").args(["-q", "-d", url, "-c", statement]).status();
    assert!(
        done.is_ok_and(|status| status.success()),
        "psql failed: is postgresql-client installed?"
    );
}

/// Transactions a second of `script`.
fn pgbench(url: &str, script: &str, clients: u32, seconds: u32) -> f64 {
    rate_of(start_pgbench(url, script, clients, seconds))
}

/// Starts `script` over and over with `clients`; see [`rate_of`].
pub(crate) fn start_pgbench(url: &str, script: &str, clients: u32, seconds: u32) -> Child {
    start(url, script, clients, seconds, &[])
}

fn start(url: &str, script: &str, clients: u32, seconds: u32, more: &[&str]) -> Child {
    let mut child = Command::new("pgbench")
        .args(["-n", "-M", "prepared", "-f", "/dev/stdin"])
        .args(["-c", &clients.to_string(), "-j", &clients.min(2).to_string()])
        .args(["-T", &seconds.to_string()])
        .args(more)
        .arg(url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("pgbench starts: it is part of the postgresql package");
    let mut input = child.stdin.take().expect("it reads the script");
    input.write_all(script.as_bytes()).expect("it reads the script");
    child
}

/// Waits for it; the transactions a second.
pub(crate) fn rate_of(child: Child) -> f64 {
    let output = child.wait_with_output().expect("pgbench ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .find_map(|line| line.strip_prefix("tps = "))
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| {
            panic!("pgbench printed no rate: {text}{}", String::from_utf8_lossy(&output.stderr))
        })
}
