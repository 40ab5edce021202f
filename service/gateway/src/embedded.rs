//! The embedded database: a real Postgres, started as a child of the gateway.
//!
//! It listens on a Unix socket alone, in a folder of mode 0700, so it needs neither a port nor a
//! password. `fsync` and `synchronous_commit` are on: what is committed survives the machine.
//! Design, section 3.
//!
//! A thread of its own, the supervisor, forks the server, watches it and restarts it with back-off
//! when it ends by itself. The kernel interrupts the server when the thread that forked it ends,
//! so `kill -9` of the gateway leaves no orphan, and [`EmbeddedPostgres::start`] may be called
//! from any thread. (Where the kernel cannot do so, on macOS, the next start ends the orphan.)
//!
//! ```text
//! DATA-DIR/database.lock          held by the gateway that uses the folder, with its pid
//! DATA-DIR/database/              0700, of the user that runs the server
//!     data/                       the cluster; `initializing/` until initdb is through
//!     postgres.log                at most 10 MiB, and as much in postgres.log.old
//!     .s.PGSQL.5432               the socket, or in a folder of the system's temporary folder
//!                                 when this path is too long for one
//! ```
//!
//! Postgres refuses to run as root. Then the server runs as the owner of an existing database
//! folder, else as `postgres`, else as `nobody`.
//!
//! The server is in a process group of its own, so that Ctrl-C in a terminal reaches the gateway
//! alone, which drains first. A service manager should likewise signal the gateway alone
//! (systemd: `KillMode=mixed`).

mod binaries;
mod folder;
mod processes;
mod server;
mod supervisor;

use std::{
    env, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::unistd::{User, geteuid};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use thiserror::Error;
use tokio::{sync::watch, time::Instant};

pub use self::binaries::BinarySearch;
use self::{
    binaries::Binaries,
    folder::{Account, DatabaseFolder},
    server::Server,
    supervisor::Stop,
};

/// The oldest major version of Postgres that the schema runs on.
pub const OLDEST_MAJOR: u32 = 15;

const DATABASE: &str = "postgres";
const USER: &str = "gateway";
/// Names the socket; nothing listens on TCP.
const PORT: u16 = 5432;

const JOIN_DEADLINE: Duration = Duration::from_secs(60);
const JOIN_POLL: Duration = Duration::from_millis(50);

/// A running Postgres of our own.
///
/// Dropping it stops the server and waits for that, as [`stop`](Self::stop) does.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    folder: DatabaseFolder,
    status: watch::Receiver<Status>,
    stop: SyncSender<Stop>,
    supervisor: Option<JoinHandle<()>>,
}

/// How the server is doing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Status {
    /// It is not yet ready for the first time.
    Starting,
    /// It accepts connections.
    Running {
        /// The process id of the server.
        pid: u32,
    },
    /// It ended by itself and is being started again.
    Restarting {
        /// How it last ended; `None` if it could not be started at all.
        exit: Option<ExitStatus>,
        /// Starts that failed since it last ran.
        failures: u32,
        /// Why, for the operator.
        reason: String,
    },
    /// It was stopped.
    Stopped,
}

/// Why there is no embedded database, and what to do about it.
#[derive(Debug, Error)]
pub enum EmbeddedError {
    /// Postgres is not installed.
    #[error(
        "no Postgres server found in {looked}; install one (Debian and Ubuntu: \
         `apt-get install postgresql`, macOS: `brew install postgresql@17`) \
         or name an external database with --database-url"
    )]
    NoServer {
        /// Where it was looked for.
        looked: String,
    },
    /// Only versions that our schema does not run on.
    #[error(
        "the installed Postgres {found} is too old, {OLDEST_MAJOR} or later is needed; \
         install a newer one or name an external database with --database-url"
    )]
    TooOld {
        /// The newest major version found.
        found: u32,
    },
    /// The cluster needs server binaries that are not here.
    #[error(
        "the database in {folder} was made by Postgres {needed}, but installed is {installed}; \
         install Postgres {needed} (Debian and Ubuntu: `apt-get install postgresql-{needed}`), \
         or upgrade the folder with pg_upgrade",
        folder = folder.display()
    )]
    OtherVersion {
        /// The cluster.
        folder: PathBuf,
        /// The major version that made it.
        needed: u32,
        /// The major versions found.
        installed: String,
    },
    /// Something else is where the cluster should be.
    #[error(
        "{folder} is no Postgres database (its PG_VERSION is missing or unreadable); \
         move it away or choose another --data-dir",
        folder = folder.display()
    )]
    NotACluster {
        /// The folder.
        folder: PathBuf,
    },
    /// Another gateway is using the folder.
    #[error(
        "{holder} already uses the data folder {data_dir}; stop it or choose another --data-dir",
        holder = pid.map_or("another gateway".to_owned(), |pid| format!("the gateway with pid {pid}")),
        data_dir = data_dir.display()
    )]
    LockTaken {
        /// The folder.
        data_dir: PathBuf,
        /// Who holds it, if it has said so.
        pid: Option<u32>,
    },
    /// The file system said no.
    #[error(
        "cannot write {}; make it writable, free some space or choose another --data-dir",
        path.display()
    )]
    NotWritable {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server's user cannot get to the database folder.
    #[error(
        "the database server must run as user {user}, who cannot enter {folder}; \
         run `chmod o+x '{folder}'` or choose another --data-dir",
        folder = folder.display()
    )]
    NotTraversable {
        /// The folder that stops it.
        folder: PathBuf,
        /// The user.
        user: String,
    },
    /// The folder belongs to another user.
    #[error(
        "{folder} belongs to user id {owner}; run the gateway as that user or root, \
         or choose another --data-dir",
        folder = folder.display()
    )]
    ForeignOwner {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Somebody else has taken the name of our socket's folder.
    #[error(
        "the socket folder {folder} is not ours alone; remove it, set TMPDIR to another folder, \
         or choose a shorter --data-dir",
        folder = folder.display()
    )]
    ForeignSocketFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// We are root and there is nobody to run the server as.
    #[error(
        "Postgres does not run as root, and there is neither a user `postgres` nor `nobody`; \
         make one or run the gateway as an ordinary user"
    )]
    NoUser,
    /// A data folder was not named and there is no default for this user.
    #[error("this user has no home folder; give --data-dir")]
    NoHome,
    /// A server of an earlier gateway does not end.
    #[error(
        "a Postgres of an earlier start, pid {pid}, still uses {folder} and does not end; \
         end it with `kill -INT {pid}` and start again",
        folder = folder.display()
    )]
    StillRunning {
        /// The process.
        pid: u32,
        /// The cluster.
        folder: PathBuf,
    },
    /// A program did not start.
    #[error("cannot run {}", program.display())]
    CannotRun {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program did not end in time.
    #[error("{} did not end within {seconds} s", program.display())]
    Hung {
        /// The program.
        program: PathBuf,
        /// How long it was given.
        seconds: u64,
    },
    /// initdb failed.
    #[error("initdb failed ({status}); it said:\n{output}")]
    InitFailed {
        /// How it ended.
        status: ExitStatus,
        /// The end of its output.
        output: String,
    },
    /// The server ended instead of becoming ready.
    #[error("the database server ended ({status}); the end of {log}:\n{tail}", log = log.display())]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The server runs but does not become ready.
    #[error(
        "the database server was not ready within {seconds} s; the end of {log}:\n{tail}",
        log = log.display()
    )]
    NotReady {
        /// How long it was given.
        seconds: u64,
        /// Its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A gateway holds the data folder, but there is no server to join.
    #[error(
        "a gateway uses the data folder {data_dir}, but its database does not become ready; \
         look at {data_dir}/database/postgres.log",
        data_dir = data_dir.display()
    )]
    NotJoined {
        /// The folder.
        data_dir: PathBuf,
    },
    /// [`EmbeddedPostgres::stop`] came before the server was ready.
    #[error("the database server was stopped before it was ready")]
    Interrupted,
    /// The supervisor could not be started, or is gone.
    #[error("the thread that watches the database server is gone")]
    NoSupervisor,
}

/// Where the gateway keeps its data by default: `/var/lib/fieldpost` for root, else
/// `$XDG_DATA_HOME/fieldpost`, which is `~/.local/share/fieldpost` if unset.
///
/// # Errors
///
/// [`EmbeddedError::NoHome`].
pub fn default_data_dir() -> Result<PathBuf, EmbeddedError> {
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/fieldpost"));
    }
    let given = env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    given
        .or_else(|| home().map(|home| home.join(".local/share")))
        .map(|base| base.join("fieldpost"))
        .ok_or(EmbeddedError::NoHome)
}

/// Makes the data folder if it is not there, and returns its canonical path.
///
/// A folder made for root can be entered, but not listed, by the user who runs the database.
///
/// # Errors
///
/// [`EmbeddedError::NotWritable`].
pub fn prepare_data_dir(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    folder::prepare_data_dir(data_dir)
}

/// Whether a database was begun in `data_dir`.
pub fn holds_database(data_dir: &Path) -> bool {
    data_dir.join("database/data/PG_VERSION").exists()
}

/// Whether the user who would run the server may enter the folders above `data_dir`, as far as they
/// are there. Changes nothing.
///
/// # Errors
///
/// As a start would fail: [`EmbeddedError::NotTraversable`], or that there is no such user.
pub fn check_way(data_dir: &Path) -> Result<(), EmbeddedError> {
    folder::check_way(data_dir)
}

/// How to connect to the server that another process of this machine runs on `data_dir`, if one
/// runs there and we may see it. Changes nothing.
pub fn running(data_dir: &Path) -> Option<PgConnectOptions> {
    let note = processes::read_short(&data_dir.join("database/data/postmaster.pid"))?;
    server::ready_socket(&note).map(connect_options)
}

/// Like [`running`], for when a gateway holds the folder and so its server must be there soon.
/// Blocks for up to 60 s.
///
/// # Errors
///
/// If the folder is another user's, or the server does not become ready.
pub fn join(data_dir: &Path) -> Result<PgConnectOptions, EmbeddedError> {
    let database = data_dir.join("database");
    if let Ok(metadata) = database.metadata()
        && !geteuid().is_root()
        && metadata.uid() != geteuid().as_raw()
    {
        return Err(EmbeddedError::ForeignOwner { folder: database, owner: metadata.uid() });
    }
    let deadline = Instant::now() + JOIN_DEADLINE;
    loop {
        if let Some(options) = running(data_dir) {
            return Ok(options);
        }
        if Instant::now() >= deadline {
            return Err(EmbeddedError::NotJoined { data_dir: data_dir.to_owned() });
        }
        thread::sleep(JOIN_POLL);
    }
}

/// Which server binaries a start on `data_dir` would use: their folder and major version. Changes
/// nothing; blocks for as long as the programs take to name their version.
///
/// # Errors
///
/// As a start would fail for want of a suitable server.
pub fn installed(data_dir: &Path, search: &BinarySearch) -> Result<(PathBuf, u32), EmbeddedError> {
    let binaries = Binaries::find(search, &data_dir.join("database/data"))?;
    Ok((binaries.folder, binaries.major))
}

fn connect_options(socket_dir: impl AsRef<Path>) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(socket_dir)
        .port(PORT)
        .username(USER)
        .database(DATABASE)
        .ssl_mode(PgSslMode::Disable)
        // Comes after what PGOPTIONS may say.
        .options([("synchronous_commit", "on")])
}

pub(crate) fn home() -> Option<PathBuf> {
    env::home_dir()
        .filter(|home| home.is_absolute())
        .or_else(|| User::from_uid(geteuid()).ok().flatten().map(|user| user.dir))
}

impl EmbeddedPostgres {
    /// Starts the server on `data_dir`, making the database if there is none, and waits until it
    /// accepts connections: about 1.5 s the first time, less than 0.5 s later, longer after a
    /// crash. Blocks; from async code call it on a blocking thread.
    ///
    /// # Errors
    ///
    /// Each says what to do about it; nothing is left running.
    pub fn start(data_dir: &Path) -> Result<Self, EmbeddedError> {
        Self::start_with(data_dir, &BinarySearch::system())
    }

    /// Like [`start`](Self::start), with the server binaries looked for in given places.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub fn start_with(data_dir: &Path, search: &BinarySearch) -> Result<Self, EmbeddedError> {
        let data_dir = folder::prepare_data_dir(data_dir)?;
        let lock = folder::lock(&data_dir)?;
        let binaries = Binaries::find(search, &data_dir.join("database/data"))?;
        let account = Account::choose(&data_dir.join("database"))?;
        let folder = DatabaseFolder::prepare(&data_dir, account.as_ref())?;

        let server = Server::new(binaries, account, folder.clone());
        let (status_sender, status) = watch::channel(Status::Starting);
        let (stop, stop_requests) = sync_channel(1);
        let (ready, started) = sync_channel(1);
        let supervisor = thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || supervisor::run(&server, &lock, &status_sender, &stop_requests, &ready))
            .map_err(|source| EmbeddedError::CannotRun { program: "a thread".into(), source })?;

        match started.recv() {
            Ok(Ok(())) => Ok(Self { folder, status, stop, supervisor: Some(supervisor) }),
            Ok(Err(error)) => {
                // Whoever tries again at once must not find the lock still held.
                let _ = supervisor.join();
                Err(error)
            }
            Err(_) => Err(EmbeddedError::NoSupervisor),
        }
    }

    /// The database as a URL, for programs such as `psql`.
    pub fn url(&self) -> String {
        let host = self.folder.socket_dir();
        format!("postgres:///{DATABASE}?host={}&user={USER}", percent_encode(host))
    }

    /// How to connect. At most 57 connections are accepted at once.
    pub fn connect_options(&self) -> PgConnectOptions {
        connect_options(self.folder.socket_dir())
    }

    /// How the server is doing now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Follows how the server is doing.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// The process id of the server while it runs.
    pub fn pid(&self) -> Option<u32> {
        match *self.status.borrow() {
            Status::Running { pid } => Some(pid),
            _ => None,
        }
    }

    /// How the server ended, while it is down without having been asked to stop.
    pub fn exited(&self) -> Option<ExitStatus> {
        match *self.status.borrow() {
            Status::Restarting { exit, .. } => exit,
            _ => None,
        }
    }

    /// The server's log.
    pub fn log(&self) -> PathBuf {
        self.folder.log()
    }

    /// Stops the server and waits until it has ended: a fast shutdown, after 60 s an immediate one,
    /// 10 s later a kill. Blocks. Open connections are cut, so close pools before.
    pub fn stop(mut self) {
        self.stop_and_wait();
    }

    fn stop_and_wait(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            // Full means that it was already asked, closed that it is gone.
            let _ = self.stop.try_send(Stop);
            let _ = supervisor.join();
        }
    }
}

impl Drop for EmbeddedPostgres {
    fn drop(&mut self) {
        self.stop_and_wait();
    }
}

fn percent_encode(path: &Path) -> String {
    use std::{fmt::Write, os::unix::ffi::OsStrExt};

    let mut encoded = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
