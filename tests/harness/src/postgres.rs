//! A private Postgres that tests can stop, kill and start again.

use std::{
    env, fs,
    fs::File,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::Signal,
    unistd::{User, geteuid},
};
use tokio::{sync::OnceCell, time::Instant};

use crate::spawn::{TemporaryFolder, command, send_signal, spawn, wait_within};

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A Postgres server on a socket of its own, with its data in a temporary folder.
///
/// `fsync` is on, as a gateway expects of its database. Dropping it kills the server and removes
/// the data.
#[derive(Debug)]
pub struct Postgres {
    child: Option<Child>,
    folder: TemporaryFolder,
    binaries: PathBuf,
    /// Postgres does not run as root.
    user: Option<User>,
}

/// One for all tests of this process that need only a database each.
static SHARED: OnceCell<Postgres> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

impl Postgres {
    /// Makes a cluster and starts its server.
    pub async fn start() -> Self {
        let binaries = find_binaries();
        let user = geteuid().is_root().then(|| {
            let find = |name| User::from_name(name).ok().flatten();
            find("postgres").or_else(|| find("nobody")).expect("a user to run Postgres as")
        });
        let folder = TemporaryFolder::new("pg");
        let mut postgres = Self { child: None, folder, binaries, user };
        postgres.initialize();
        postgres.resume().await;
        postgres
    }

    /// The URL of a fresh database on a server that all tests of this process share. It goes when
    /// the process ends.
    pub async fn fresh_database() -> String {
        // Nobody drops what is static: the kernel ends the server with us, and the next run of any
        // test removes its folder.
        let shared = SHARED.get_or_init(Self::start).await;
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        shared.create_database(&format!("test_{number}"))
    }

    /// Where the server that all tests share keeps everything, its write-ahead log among it.
    pub async fn shared_folder() -> PathBuf {
        SHARED.get_or_init(Self::start).await.folder.path().to_owned()
    }

    /// Makes a database and returns its URL.
    pub fn create_database(&self, name: &str) -> String {
        let status = self
            .program("createdb")
            .args(["-h", self.socket_dir(), "-U", "gateway", "--template", "template0", name])
            .status()
            .expect("createdb runs");
        assert!(status.success(), "createdb failed: {status}");
        self.url(name)
    }

    /// Runs SQL on the database at `url`, for what no client of a gateway can bring about.
    pub fn execute(url: &str, sql: &str) {
        let mut psql = Command::new(find_binaries().join("psql"));
        psql.args(["--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--dbname", url]);
        let status = psql.args(["--command", sql]).status().expect("psql runs");
        assert!(status.success(), "psql failed: {status}");
    }

    /// The URL of a database on this server.
    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?host={}&user=gateway", self.socket_dir())
    }

    /// Starts the server again on the same data, and waits until it takes connections.
    pub async fn resume(&mut self) {
        assert!(self.child.is_none(), "the server runs");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("postgres.log"))
            .expect("the log can be written");
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let mut child = spawn(self.server(&log)).expect("the server can be started");
            // The workers of a killed server end a moment after it, and keep the next one out.
            if self.is_ready_before(&mut child, deadline).await {
                self.child = Some(child);
                return;
            }
            assert!(Instant::now() < deadline, "Postgres does not start:\n{}", self.log());
            tokio::time::sleep(POLL).await;
        }
    }

    async fn is_ready_before(&self, child: &mut Child, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            if child.try_wait().expect("the child is ours").is_some() {
                return false;
            }
            if self.says_ready(child.id()) {
                return true;
            }
            tokio::time::sleep(POLL).await;
        }
        send_signal(child.id(), Signal::SIGKILL);
        let _ = child.wait();
        false
    }

    /// The server notes its pid and, in the eighth line, how far it is.
    fn says_ready(&self, pid: u32) -> bool {
        let note = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = note.lines().map(str::trim).collect();
        lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
    }

    /// Shuts the server down as an operator would, cutting all connections.
    pub async fn stop(&mut self) {
        self.end(Signal::SIGINT).await;
    }

    /// Puts the data aside, as a backup; the server must be stopped.
    ///
    /// # Panics
    ///
    /// If it runs.
    pub fn back_up(&self) {
        assert!(self.child.is_none(), "the server runs");
        Self::copy(&self.data(), &self.folder.path().join("backup"));
    }

    /// Puts the backup in place of the data, as if everything since had never been committed.
    ///
    /// # Panics
    ///
    /// If the server runs.
    pub fn forget(&self) {
        assert!(self.child.is_none(), "the server runs");
        fs::remove_dir_all(self.data()).expect("the data is ours");
        Self::copy(&self.folder.path().join("backup"), &self.data());
    }

    fn copy(from: &Path, to: &Path) {
        let status = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
        assert!(status.success(), "cp failed: {status}");
    }

    /// Kills the server without warning.
    pub async fn kill(&mut self) {
        self.end(Signal::SIGKILL).await;
    }

    async fn end(&mut self, signal: Signal) {
        let mut child = self.child.take().expect("the server runs");
        send_signal(child.id(), signal);
        let ended = tokio::task::spawn_blocking(move || wait_within(&mut child, STOP_DEADLINE));
        let status = ended.await.expect("waiting does not panic").expect("the child is ours");
        assert!(status.is_some(), "Postgres does not stop:\n{}", self.log());
    }

    fn socket_dir(&self) -> &str {
        self.folder.path().to_str().expect("the temporary folder has a plain name")
    }

    fn initialize(&self) {
        if let Some(user) = &self.user {
            let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
            chown(self.folder.path(), Some(uid), Some(gid)).expect("root gives folders away");
        }
        let output = self
            .program("initdb")
            .arg("-D")
            .arg(self.data())
            .args(["-U", "gateway", "-E", "UTF8", "--locale=C", "--auth-local=trust"])
            .args(["--auth-host=reject", "--no-instructions", "--no-sync"])
            .output()
            .expect("initdb runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn server(&self, log: &File) -> Command {
        let mut command = self.program("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .args(["-k", self.socket_dir(), "-c", "listen_addresses="])
            .args(["-c", "fsync=on", "-c", "max_connections=300"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be had twice"))
            .stderr(log.try_clone().expect("a file can be had twice"));
        command
    }

    /// One of Postgres's programs, as the user that may run it.
    fn program(&self, name: &str) -> Command {
        let program = self.binaries.join(name);
        let mut command = match &self.user {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command
                    .arg(format!("--reuid={}", user.uid))
                    .arg(format!("--regid={}", user.gid))
                    .args(["--clear-groups", "--pdeathsig", "KILL", "--"])
                    .arg(program);
                command
            }
            None => command(&program),
        };
        command.current_dir(self.folder.path()).env("LC_ALL", "C");
        command
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("postgres.log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            send_signal(child.id(), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

/// Where `postgres` and `initdb` are: `PATH`, else the newest that Debian has.
fn find_binaries() -> PathBuf {
    let on_path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&on_path).collect();
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    versions.sort_by_key(|path| version(path));
    folders.extend(versions.into_iter().rev().map(|version| version.join("bin")));
    // A link to `postgres` alone leads to the folder where it has its other programs.
    let servers =
        folders.into_iter().filter_map(|folder| folder.join("postgres").canonicalize().ok());
    servers
        .filter_map(|server| server.parent().map(Path::to_owned))
        .find(|folder| ["initdb", "createdb"].iter().all(|name| folder.join(name).is_file()))
        .expect("Postgres is installed (apt-get install postgresql)")
}

fn version(path: &Path) -> u32 {
    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).unwrap_or(0)
}
