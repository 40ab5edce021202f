//! Children of ours and servers of earlier starts.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{EmbeddedError, folder::DatabaseFolder};

const POLL: Duration = Duration::from_millis(20);
/// A server whose gateway was killed is already shutting down; one that is not gets told.
const PREVIOUS_PATIENCE: Duration = Duration::from_secs(10);
const PREVIOUS_DEADLINE: Duration = Duration::from_secs(90);

/// Runs a program that prints little and returns what it printed; an error if it fails.
pub(super) fn output_within(command: &mut Command, limit: Duration) -> io::Result<String> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let Some(status) = wait_within(&mut child, limit)? else {
        let _ = child.kill();
        let _ = child.wait();
        return Err(io::ErrorKind::TimedOut.into());
    };
    if !status.success() {
        return Err(io::Error::other(format!("it ended with {status}")));
    }
    let mut output = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(64 << 10).read_to_string(&mut output)?;
    }
    Ok(output)
}

/// Waits until the child has ended; `None` if it has not within `limit`.
pub(super) fn wait_within(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// Sends a signal; that the process is already gone is no error.
pub(super) fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Whether a process has this pid, also one that we may not signal.
pub(super) fn exists(pid: i32) -> bool {
    !matches!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH))
}

/// Ties the child's life to the calling thread: when that ends, the kernel interrupts the child.
///
/// The hook runs after the change of user, which would clear the tie. A parent that died before
/// the tie was made is found by looking who the parent is afterwards.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "only a hook between fork and exec can tie a child's life to ours")]
pub(super) fn end_with_us(command: &mut Command) {
    use std::os::unix::process::CommandExt;

    use nix::{sys::prctl::set_pdeathsig, unistd::getppid};

    let us = Pid::this();
    let tie = move || {
        set_pdeathsig(Signal::SIGINT)?;
        if getppid() == us { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The hook makes two
    // system calls and allocates nothing, in the error case neither.
    unsafe { command.pre_exec(tie) };
}

#[cfg(not(target_os = "linux"))]
pub(super) fn end_with_us(_: &mut Command) {}

/// Waits until no process of an earlier start uses the database, and clears what such leave behind.
///
/// We hold the lock of the data folder, so no living gateway owns them. A server that is not
/// shutting down by itself is told to after 10 s; after 90 s we give up.
pub(super) fn wait_for_previous(folder: &DatabaseFolder) -> Result<(), EmbeddedError> {
    let start = Instant::now();
    let note = folder.cluster().join("postmaster.pid");
    let mut told = false;
    let mut interval = POLL;
    while let Some(pid) = process_in(folder) {
        let waited = start.elapsed();
        if waited >= PREVIOUS_DEADLINE {
            return Err(EmbeddedError::StillRunning { pid, folder: folder.root().to_owned() });
        }
        if waited >= PREVIOUS_PATIENCE && !told {
            told = true;
            warn!(process.id = pid, "a server of an earlier start is still there; shut it down");
            // What was found may be a worker; workers end with the server, whose pid is noted.
            signal(noted_pid(&note).unwrap_or(pid), Signal::SIGINT);
        }
        thread::sleep(interval);
        interval = (interval * 2).min(Duration::from_millis(500));
    }

    // Postgres takes any living process with the noted pid for itself, also one that got the pid
    // since, as happens after a restart of a container.
    if cfg!(target_os = "linux") {
        for file in [note, folder.socket_lock()] {
            if noted_pid(&file).is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
                info!(file = %file.display(), "remove a stale note of a server that is gone");
                let _ = fs::remove_file(&file);
            }
        }
    }
    Ok(())
}

/// A process of Postgres that uses the database: initdb has the database folder as its working
/// folder, a server and its workers the cluster.
#[cfg(target_os = "linux")]
fn process_in(folder: &DatabaseFolder) -> Option<u32> {
    let folders = [folder.root().to_owned(), folder.initializing(), folder.cluster()];
    fs::read_dir("/proc").ok()?.find_map(|entry| {
        let entry = entry.ok()?;
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
        if !folders.contains(&cwd) {
            return None;
        }
        // A person may have a shell in this folder. The kernel marks the programs of a package
        // that was upgraded since.
        let program = fs::read_link(entry.path().join("exe")).ok()?;
        let name = program.file_name()?.to_str()?.trim_end_matches(" (deleted)");
        ["postgres", "initdb"].contains(&name).then_some(pid)
    })
}

#[cfg(not(target_os = "linux"))]
fn process_in(folder: &DatabaseFolder) -> Option<u32> {
    let pid = noted_pid(&folder.cluster().join("postmaster.pid"))?;
    kill(Pid::from_raw(i32::try_from(pid).ok()?), None).is_ok().then_some(pid)
}

/// The pid in the first line of one of Postgres's lock files.
pub(super) fn noted_pid(file: &Path) -> Option<u32> {
    read_short(file)?.lines().next()?.trim().parse().ok()
}

/// Reads a small file whole; lock files have a few lines.
pub(super) fn read_short(file: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(file).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}
