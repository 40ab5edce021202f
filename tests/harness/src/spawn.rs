//! Child processes that never outlive the tests, and folders that go with them.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, id},
    sync::{LazyLock, Once, mpsc},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use uuid::Uuid;

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// The kernel ends a child with the thread that forked it, and a test's thread may end before its
/// child should. So one thread, which ends with the process, forks them all.
static SPAWNER: LazyLock<mpsc::SyncSender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = mpsc::sync_channel::<Order>(16);
    thread::Builder::new()
        .name("spawner".to_owned())
        .spawn(move || {
            for (mut command, answer) in inbox {
                // Whoever asked may be gone: then the child goes as well, by its owner's drop.
                let _ = answer.send(command.spawn());
            }
        })
        .expect("a thread can be started");
    orders
});

/// Starts a process that the kernel kills when this one ends, however that happens.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    let (answer, child) = mpsc::sync_channel(1);
    SPAWNER.send((command, answer)).expect("the spawner runs as long as the process");
    child.recv().expect("the spawner answers")
}

/// A command that is killed with us; `setpriv` sets that up between fork and exec.
pub(crate) fn command(program: &Path) -> Command {
    if cfg!(target_os = "linux") {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        return command;
    }
    Command::new(program)
}

/// The same behind other words, such as those that enter a namespace.
pub(crate) fn command_behind(prefix: &[String], program: &Path) -> Command {
    let inner = command(program);
    let mut command = Command::new(&prefix[0]);
    command.args(&prefix[1..]).arg(inner.get_program()).args(inner.get_args());
    command
}

pub(crate) fn send_signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid fits"));
    // It may have ended by itself, which the caller will notice.
    let _ = kill(pid, signal);
}

/// Waits for a child with a deadline; `None` if it is still running then.
pub(crate) fn wait_within(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A folder that is removed when it is dropped.
#[derive(Debug)]
pub struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    /// Short, as it will hold sockets, and open for passing through, as root's children run as
    /// other users.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn new(name: &str) -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let unique = Uuid::new_v4().simple().to_string();
        let path = env::temp_dir().join(format!("{PREFIX}{}-{name}-{}", id(), &unique[..8]));
        fs::create_dir(&path).expect("the temporary folder takes a folder");
        let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

const PREFIX: &str = "fieldpost-test-";

/// Removes what tests left that were killed, or that kept a folder to their end.
fn sweep() {
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if owner.is_some_and(|pid: u32| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another test may be faster.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} stays behind: {error}", self.0.display());
        }
    }
}
