//! The thread that owns the server: forks it, watches it, starts it again.

use std::{
    process::ExitStatus,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::{error, info, warn};

use super::{
    EmbeddedError, Status,
    folder::Lock,
    server::{Running, Server},
};

const READY_POLL: Duration = Duration::from_millis(20);
const WATCH_POLL: Duration = Duration::from_millis(100);
const LOG_CHECK: Duration = Duration::from_secs(60);
/// Recovery after a crash replays at most the write-ahead log of one checkpoint, some 2 GB.
const READY_DEADLINE: Duration = Duration::from_secs(300);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// A server that ran for so long is taken for sound, and its next end for the first.
const SOUND_AFTER: Duration = Duration::from_secs(60);

/// Asks the supervisor to stop the server and end.
#[derive(Debug)]
pub(super) struct Stop;

/// Runs the server until asked to stop, or until its first start fails.
///
/// `ready` gets one answer: that the first start succeeded, or why not. `lock` is held until the
/// server has ended.
pub(super) fn run(
    server: &Server,
    _lock: &Lock,
    status: &watch::Sender<Status>,
    stop: &Receiver<Stop>,
    ready: &SyncSender<Result<(), EmbeddedError>>,
) {
    let first = start(server, stop);
    let mut running = match first {
        Ok(running) => running,
        Err(error) => {
            server.folder().tidy();
            status.send_replace(Status::Stopped);
            let _ = ready.send(Err(error));
            return;
        }
    };
    status.send_replace(Status::Running { pid: running.pid() });
    let _ = ready.send(Ok(()));

    let mut backoff = FIRST_BACKOFF;
    loop {
        let since = Instant::now();
        let Some(exit) = watch(&mut running, stop) else {
            running.stop();
            break;
        };
        error!(exit.status = %exit, "the database server ended by itself; it is started again");
        if since.elapsed() >= SOUND_AFTER {
            backoff = FIRST_BACKOFF;
        }
        match restart(server, status, stop, exit, &mut backoff) {
            Some(again) => running = again,
            None => break,
        }
        info!(process.id = running.pid(), "the database server runs again");
        status.send_replace(Status::Running { pid: running.pid() });
    }
    server.folder().tidy();
    status.send_replace(Status::Stopped);
}

/// Tries until the server runs; `None` if asked to stop meanwhile.
fn restart(
    server: &Server,
    status: &watch::Sender<Status>,
    stop: &Receiver<Stop>,
    exit: ExitStatus,
    backoff: &mut Duration,
) -> Option<Running> {
    let mut exit = Some(exit);
    let mut reason = format!("the database server ended ({})", exit?);
    let mut failures = 0;
    loop {
        status.send_replace(Status::Restarting { exit, failures, reason });
        if stop_within(stop, *backoff) {
            return None;
        }
        *backoff = (*backoff * 2).min(LONGEST_BACKOFF);
        match start(server, stop) {
            Ok(running) => return Some(running),
            Err(EmbeddedError::Interrupted) => return None,
            Err(error) => {
                failures += 1;
                exit = match error {
                    EmbeddedError::Ended { status, .. } => Some(status),
                    _ => None,
                };
                warn!(%error, failures, retry_seconds = backoff.as_secs_f32(), "the database server does not start");
                reason = error.to_string();
            }
        }
    }
}

/// Starts the server once and waits until it is ready.
fn start(server: &Server, stop: &Receiver<Stop>) -> Result<Running, EmbeddedError> {
    let mut running = server.spawn()?;
    let deadline = Instant::now() + READY_DEADLINE;
    while !running.is_ready() {
        if let Some(exit) = running.exited() {
            return Err(running.ended(exit));
        }
        if Instant::now() >= deadline {
            let error = running.not_ready(READY_DEADLINE);
            running.stop();
            return Err(error);
        }
        if stop_within(stop, READY_POLL) {
            running.stop();
            return Err(EmbeddedError::Interrupted);
        }
    }
    Ok(running)
}

/// Waits until the server ends by itself; `None` if asked to stop.
fn watch(running: &mut Running, stop: &Receiver<Stop>) -> Option<ExitStatus> {
    let mut log_check = Instant::now() + LOG_CHECK;
    loop {
        if stop_within(stop, WATCH_POLL) {
            return None;
        }
        if let Some(exit) = running.exited() {
            return Some(exit);
        }
        if Instant::now() >= log_check {
            log_check = Instant::now() + LOG_CHECK;
            running.trim_log();
        }
    }
}

/// Sleeps; ends early and says `true` if asked to stop, also by the handle being gone.
fn stop_within(stop: &Receiver<Stop>, time: Duration) -> bool {
    !matches!(stop.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}
