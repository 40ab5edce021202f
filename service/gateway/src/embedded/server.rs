//! Runs the server: makes the cluster, starts, sees whether it is ready, stops.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{
        fs::{MetadataExt, OpenOptionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{libc::O_NOFOLLOW, sys::signal::Signal};
use tracing::{error, info, warn};

use super::{
    EmbeddedError, PORT, USER,
    binaries::Binaries,
    folder::{Account, DatabaseFolder},
    processes::{
        end_with_us, exists, output_within, read_short, signal, wait_for_previous, wait_within,
    },
};

const INIT_DEADLINE: Duration = Duration::from_secs(120);
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
const FAST_SHUTDOWN: Duration = Duration::from_secs(60);
const IMMEDIATE_SHUTDOWN: Duration = Duration::from_secs(10);
/// What the log may grow to before it becomes the old log.
const LOG_LIMIT: u64 = 10 << 20;
const TAIL_LENGTH: u64 = 4 << 10;

/// Durability first; then what suits a queue: few connections, many small commits, rows that die
/// young. Statements and row details stay out of the log, as they hold addresses and content.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "max_connections=60",
    "shared_buffers=192MB",
    "wal_buffers=16MB",
    "min_wal_size=256MB",
    "max_wal_size=2GB",
    "checkpoint_timeout=15min",
    "checkpoint_completion_target=0.9",
    "autovacuum_naptime=10s",
    // Statements are planned for an index whatever the statistics say, and history only grows: taking
    // samples and visiting new pages every few seconds would cost as much as a tenth of accepting.
    "autovacuum_analyze_threshold=20000",
    "autovacuum_analyze_scale_factor=1",
    "autovacuum_vacuum_insert_threshold=100000",
    // Workers would share memory in /dev/shm, which is tiny in containers, and no query needs them.
    "max_parallel_workers_per_gather=0",
    "idle_in_transaction_session_timeout=60s",
    "logging_collector=off",
    "log_destination=stderr",
    "log_line_prefix=%m [%p] ",
    "log_min_error_statement=panic",
    "log_error_verbosity=terse",
    "log_statement=none",
    "log_checkpoints=off",
    "timezone=UTC",
    "log_timezone=UTC",
];

/// A server that can be started.
#[derive(Debug)]
pub(super) struct Server {
    binaries: Binaries,
    account: Option<Account>,
    folder: DatabaseFolder,
}

impl Server {
    pub(super) fn new(
        binaries: Binaries,
        account: Option<Account>,
        folder: DatabaseFolder,
    ) -> Self {
        Self { binaries, account, folder }
    }

    pub(super) fn folder(&self) -> &DatabaseFolder {
        &self.folder
    }

    /// Starts the server, after making the cluster if there is none.
    pub(super) fn spawn(&self) -> Result<Running, EmbeddedError> {
        wait_for_previous(&self.folder)?;
        let log = Log::open(self.folder.log())?;
        if !self.folder.cluster().exists() {
            self.initialize(&log)?;
        }

        let program = self.binaries.program("postgres");
        let mut command = self.command(&program);
        command.arg("-D").arg(self.folder.cluster());
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.arg("-c").arg(format!("port={PORT}"));
        command.arg("-c").arg(self.socket_setting());
        command.arg("-c").arg(format!("wal_compression={}", self.wal_compression()));
        let child = log
            .attach(&mut command)?
            .spawn()
            .map_err(|source| EmbeddedError::CannotRun { program, source })?;
        info!(
            process.id = child.id(),
            postgres.major = self.binaries.major,
            postgres.user = self.account.as_ref().map(|account| account.name.as_str()),
            folder = %self.folder.root().display(),
            "the database server starts",
        );
        Ok(Running { child, log, pid_file: self.folder.cluster().join("postmaster.pid") })
    }

    /// Makes the cluster under another name first: a crash leaves all of it or none.
    fn initialize(&self, log: &Log) -> Result<(), EmbeddedError> {
        let temporary = self.folder.initializing();
        let not_writable = |source| EmbeddedError::NotWritable { path: temporary.clone(), source };
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(not_writable)?;
        }

        let program = self.binaries.program("initdb");
        let mut command = self.command(&program);
        command.arg("-D").arg(&temporary).args([
            "-U",
            USER,
            "-E",
            "UTF8",
            "--locale=C",
            "--auth-local=trust",
            "--auth-host=reject",
            "--no-instructions",
        ]);
        let mut child = log
            .attach(&mut command)?
            .spawn()
            .map_err(|source| EmbeddedError::CannotRun { program: program.clone(), source })?;
        match wait_within(&mut child, INIT_DEADLINE) {
            Ok(Some(status)) if status.success() => {}
            Ok(Some(status)) => {
                return Err(EmbeddedError::InitFailed { status, output: log.tail() });
            }
            Ok(None) => {
                signal(child.id(), Signal::SIGKILL);
                let _ = child.wait();
                return Err(EmbeddedError::Hung { program, seconds: INIT_DEADLINE.as_secs() });
            }
            Err(source) => return Err(EmbeddedError::CannotRun { program, source }),
        }
        fs::rename(&temporary, self.folder.cluster())
            .and_then(|()| File::open(self.folder.root())?.sync_all())
            .map_err(not_writable)
    }

    /// A command in the database folder that sees none of our environment, in which variables such
    /// as `PGPORT` or `PGDATA` would change what it does.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", &self.binaries.folder)
            .current_dir(self.folder.root())
            .process_group(0);
        if let Some(account) = &self.account {
            account.apply(&mut command);
        }
        end_with_us(&mut command);
        command
    }

    /// The setting is a list, in which a quoted name may hold anything.
    fn socket_setting(&self) -> OsString {
        let folder = self.folder.socket_dir().display().to_string();
        format!("unix_socket_directories=\"{}\"", folder.replace('"', "\"\"")).into()
    }

    fn wal_compression(&self) -> &'static str {
        let mut command = self.command(&self.binaries.program("postgres"));
        command.arg("-D").arg(self.folder.cluster());
        command.args(["-c", "wal_compression=lz4", "-C", "wal_compression"]);
        // Not every build has it, and a setting that is not known would stop the server.
        match output_within(&mut command, ASK_TIMEOUT) {
            Ok(answer) if answer.trim() == "lz4" => "lz4",
            _ => "on",
        }
    }
}

/// A server that was started.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    log: Log,
    pid_file: PathBuf,
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it accepts connections.
    pub(super) fn is_ready(&self) -> bool {
        read_short(&self.pid_file).is_some_and(|note| {
            let pid = note.lines().next().and_then(|pid| pid.trim().parse().ok());
            pid == Some(self.pid()) && ready_socket(&note).is_some()
        })
    }

    /// How it ended, if it has.
    pub(super) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(super) fn ended(&self, status: ExitStatus) -> EmbeddedError {
        EmbeddedError::Ended { status, log: self.log.path.clone(), tail: self.log.tail() }
    }

    pub(super) fn not_ready(&self, limit: Duration) -> EmbeddedError {
        EmbeddedError::NotReady {
            seconds: limit.as_secs(),
            log: self.log.path.clone(),
            tail: self.log.tail(),
        }
    }

    /// Keeps the log within its limit.
    pub(super) fn trim_log(&mut self) {
        if let Err(error) = self.log.trim() {
            warn!(%error, log = %self.log.path.display(), "cannot trim the database server's log");
        }
    }

    /// Shuts it down, ever more firmly, and returns when it has ended.
    pub(super) fn stop(mut self) {
        for (with, limit) in
            [(Signal::SIGINT, FAST_SHUTDOWN), (Signal::SIGQUIT, IMMEDIATE_SHUTDOWN)]
        {
            signal(self.pid(), with);
            match wait_within(&mut self.child, limit) {
                Ok(Some(_)) => return,
                Ok(None) => warn!(signal = %with, "the database server does not stop"),
                Err(error) => error!(%error, "cannot wait for the database server"),
            }
        }
        signal(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// The folder of the socket, if the note that a server keeps says that it accepts connections and
/// the process is there. The lines of `postmaster.pid` are: pid, cluster, start time, port, socket
/// folder, address, shared memory, state.
pub(super) fn ready_socket(note: &str) -> Option<PathBuf> {
    let lines: Vec<_> = note.lines().collect();
    let pid = lines.first()?.trim().parse().ok()?;
    let is_ready = lines.get(7)?.trim() == "ready" && exists(pid);
    is_ready.then(|| PathBuf::from(lines[4]))
}

/// The log of the server and of initdb.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    /// Where this start begins in it.
    start: u64,
}

impl Log {
    /// Appends to the log. Its folder may belong to a less trusted user, so no link is followed.
    fn open(path: PathBuf) -> Result<Self, EmbeddedError> {
        let open = || {
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(O_NOFOLLOW)
                .open(&path)?;
            let mut log = Self { path: path.clone(), file, start: 0 };
            log.trim()?;
            log.start = log.file.metadata()?.size();
            Ok(log)
        };
        open().map_err(|source| EmbeddedError::NotWritable { path: path.clone(), source })
    }

    fn attach<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command, EmbeddedError> {
        let clone = || {
            self.file
                .try_clone()
                .map_err(|source| EmbeddedError::NotWritable { path: self.path.clone(), source })
        };
        Ok(command.stdin(Stdio::null()).stdout(clone()?).stderr(clone()?))
    }

    /// Moves what is there to the old log once it is too long. The server appends to the open
    /// file, so it goes on at the new end; lines written meanwhile are lost.
    fn trim(&mut self) -> io::Result<()> {
        let size = self.file.metadata()?.size();
        if size <= LOG_LIMIT {
            return Ok(());
        }
        let mut old = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(self.path.with_extension("log.old"))?;
        self.file.seek(SeekFrom::Start(size - LOG_LIMIT))?;
        io::copy(&mut (&self.file).take(LOG_LIMIT), &mut old)?;
        old.flush()?;
        self.file.set_len(0)?;
        self.start = 0;
        Ok(())
    }

    /// The last lines of this start.
    fn tail(&self) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let size = file.metadata()?.size();
            file.seek(SeekFrom::Start(size.saturating_sub(TAIL_LENGTH).max(self.start)))?;
            let mut tail = Vec::new();
            file.take(TAIL_LENGTH).read_to_end(&mut tail)?;
            Ok(tail)
        };
        let tail = read().unwrap_or_default();
        let tail = String::from_utf8_lossy(&tail);
        let lines: Vec<_> = tail.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}
