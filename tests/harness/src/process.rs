//! The gateway as a process: started, watched, killed, restarted on the same data.

use std::{
    env, fs,
    fs::File,
    io::Write,
    net::TcpListener,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio, id},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::{
    Postgres,
    client::Client,
    namespace::Namespace,
    spawn::{TemporaryFolder, command, command_behind, send_signal, spawn, wait_within},
};

const READY_DEADLINE: Duration = Duration::from_secs(90);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// How a gateway is to be started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    open: bool,
    database_url: Option<String>,
    shares_postgres: bool,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// What its command is put behind, and how its ports are reached from here.
    machine: Option<Arc<Namespace>>,
    transports: Option<String>,
}

impl Options {
    /// A gateway that asks for tokens, with its own embedded database.
    pub fn embedded() -> Self {
        Self::default()
    }

    /// A gateway that asks for tokens, with a fresh database on the server that all tests share:
    /// faster, for tests that do not touch the database.
    pub fn shared() -> Self {
        Self { shares_postgres: true, ..Self::default() }
    }

    /// A gateway that asks for tokens, on the database at `url`.
    pub fn on(url: impl Into<String>) -> Self {
        Self { database_url: Some(url.into()), ..Self::default() }
    }

    /// The same with `--auth open`.
    pub fn open(self) -> Self {
        Self { open: true, ..self }
    }

    /// The same with one more argument, such as `--registration=invite`.
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// The same with transports; without this word it has none, so that the gateways of tests that
    /// run at once do not find each other.
    pub fn transports(self, names: &str) -> Self {
        Self { transports: Some(names.to_owned()), ..self }
    }

    /// The same on a machine of its own.
    pub fn on_machine(self, machine: Arc<Namespace>) -> Self {
        Self { machine: Some(machine), ..self }
    }

    /// The same with one more environment variable.
    pub fn environment(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Gateway {
        Gateway::start(self).await
    }

    /// Starts it and does not wait.
    pub async fn start_without_waiting(self) -> Gateway {
        let mut gateway = Gateway::new(self).await;
        gateway.begin();
        gateway
    }
}

/// A gateway in a process of its own, with its data in a temporary folder.
///
/// Dropping it kills the process and removes the data; if the test fails, the end of its log is
/// printed before.
#[derive(Debug)]
pub struct Gateway {
    child: Option<Child>,
    // Dropped after the child was killed.
    folder: TemporaryFolder,
    options: Options,
    port: u16,
    admin_port: u16,
    /// The same two as this process reaches them.
    reached: (u16, u16),
}

impl Gateway {
    /// Starts a gateway and waits until it is ready.
    pub async fn start(options: Options) -> Self {
        let mut gateway = Self::new(options).await;
        gateway.resume().await;
        gateway
    }

    async fn new(mut options: Options) -> Self {
        if options.shares_postgres {
            options.database_url = Some(Postgres::fresh_database().await);
        }
        let folder = TemporaryFolder::new("gw");
        write_master_key(folder.path());
        let (port, admin_port) = (free_port(), free_port());
        let reached = match &options.machine {
            Some(machine) => (machine.forward(port), machine.forward(admin_port)),
            None => (port, admin_port),
        };
        Self { child: None, folder, options, port, admin_port, reached }
    }

    /// Starts the gateway again on the same data and ports, and waits until it is ready.
    pub async fn resume(&mut self) {
        self.begin();
        self.wait_ready().await;
    }

    /// Starts the gateway again without waiting.
    pub fn begin(&mut self) {
        assert!(self.child.is_none(), "the gateway runs");
        let command = self.command();
        self.child = Some(spawn(command).expect("the gateway can be started"));
    }

    /// Waits until the gateway says that it can do its work.
    pub async fn wait_ready(&mut self) {
        let url = format!("{}/readyz", self.admin_url());
        let http = reqwest_client(Duration::from_secs(2));
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            let answer = http.get(&url).send().await;
            if answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            if let Some(status) = self.exited() {
                panic!("the gateway ended instead of becoming ready: {status}");
            }
            assert!(Instant::now() < deadline, "the gateway is not ready in time: {answer:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// What `/readyz` gives as the reason for not being ready; waits until it is not.
    ///
    /// # Panics
    ///
    /// If it does not become so in time.
    pub async fn wait_not_ready(&self) -> String {
        let url = format!("{}/readyz", self.admin_url());
        let http = reqwest_client(Duration::from_secs(2));
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            if let Ok(answer) = http.get(&url).send().await
                && answer.status() == reqwest::StatusCode::SERVICE_UNAVAILABLE
            {
                return answer.text().await.expect("the reason is text");
            }
            assert!(Instant::now() < deadline, "/readyz never says that the gateway is not ready");
            tokio::time::sleep(POLL).await;
        }
    }

    /// How the gateway ended by itself, if it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("the child is ours")
    }

    /// The address of the API, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.reached.0)
    }

    /// The address of the admin listener, without a slash at its end.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.reached.1)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the gateway runs").id()
    }

    /// The folder with the gateway's data, its log and its key.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A client without a name, with the gateway's way of telling callers apart.
    pub fn client(&self) -> Client {
        Client::new(&self.url(), self.options.open)
    }

    /// Registers a peer and returns its client.
    pub async fn register(&self, peer: &str) -> Client {
        self.client().register(peer).await.expect("the peer can be registered")
    }

    /// Kills the gateway without warning, and waits until it is gone.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the gateway runs");
        send_signal(child.id(), Signal::SIGKILL);
        child.wait().expect("the child is ours");
    }

    /// Asks the gateway to stop, waits until it has, and returns how it ended.
    pub async fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the gateway runs");
        send_signal(child.id(), Signal::SIGTERM);
        let waiting = tokio::task::spawn_blocking(move || {
            let status = wait_within(&mut child, STOP_DEADLINE);
            if let Ok(None) = status {
                let _ = child.kill();
                let _ = child.wait();
            }
            status
        });
        let status = waiting.await.expect("waiting does not panic").expect("the child is ours");
        status.expect("the gateway stops within its deadline")
    }

    /// The process id of the embedded database, if it runs.
    pub fn database_pid(&self) -> Option<u32> {
        let note = self.data_dir().join("database/data/postmaster.pid");
        let pid = fs::read_to_string(note).ok()?.lines().next()?.trim().parse().ok()?;
        // The note of a killed server stays.
        Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
    }

    /// Kills the embedded database without warning.
    pub fn kill_database(&self) {
        if let Some(pid) = self.database_pid() {
            send_signal(pid, Signal::SIGKILL);
        }
    }

    /// Runs another command of the same program, such as `["doctor", "--json"]`, on the same data.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command_for(arguments).output().expect("the program runs")
    }

    /// Another command of the same program, to be started.
    pub fn command_for(&self, arguments: &[&str]) -> Command {
        let mut command = command(binary());
        command.args(arguments).stdin(Stdio::null());
        self.tell_database(&mut command);
        command
            .env("FIELDPOST_URL", self.url())
            .env("FIELDPOST_CREDENTIALS", self.folder().join("credentials.json"));
        if arguments.first() == Some(&"doctor") {
            command
                .env("FIELDPOST_LISTEN", format!("127.0.0.1:{}", self.port))
                .env("FIELDPOST_ADMIN_LISTEN", format!("127.0.0.1:{}", self.admin_port));
        }
        command
    }

    /// The log so far, all starts in one.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// The gateway's log, all starts in one.
    pub fn log_file(&self) -> PathBuf {
        self.folder().join("gateway.log")
    }

    fn data_dir(&self) -> PathBuf {
        self.folder().join("data")
    }

    fn command(&self) -> Command {
        let mut command = match &self.options.machine {
            Some(machine) => command_behind(&machine.prefix(), binary()),
            None => command(binary()),
        };
        command
            .arg("serve")
            .arg(format!("--listen=127.0.0.1:{}", self.port))
            .arg(format!("--admin-listen=127.0.0.1:{}", self.admin_port))
            .arg(format!("--auth={}", if self.options.open { "open" } else { "token" }))
            .arg(format!("--transports={}", self.options.transports.as_deref().unwrap_or("none")))
            .args(&self.options.arguments);
        self.tell_database(&mut command);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("the log can be written");
        command
            .envs(self.options.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be had twice"))
            .stderr(log);
        command
    }

    /// By environment, as every command understands that.
    fn tell_database(&self, command: &mut Command) {
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("FIELDPOST_") {
                command.env_remove(name);
            }
        }
        command.env("FIELDPOST_MASTER_KEY_FILE", self.folder().join("master.key"));
        match &self.options.database_url {
            Some(url) => command.env("FIELDPOST_DATABASE_URL", url),
            None => command.env("FIELDPOST_DATA_DIR", self.data_dir()),
        };
    }
}

const LOG_LINES: usize = 80;

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the end of the gateway's log\n{}\n---", self.log_tail());
        }
        if let Some(mut child) = self.child.take() {
            // Its database goes with it and needs its folder until then.
            let database = self.database_pid();
            send_signal(child.id(), Signal::SIGKILL);
            let _ = child.wait();
            if let Some(pid) = database {
                send_signal(pid, Signal::SIGKILL);
                wait_gone(pid);
            }
        }
    }
}

/// For a process that is no child of ours, there is nothing to wait on.
fn wait_gone(pid: u32) {
    let deadline = Instant::now() + STOP_DEADLINE;
    while Path::new(&format!("/proc/{pid}")).exists() && Instant::now() < deadline {
        thread::sleep(POLL);
    }
}

/// Each test its own key, so that none is left in the user's configuration.
fn write_master_key(folder: &Path) {
    let mut file = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(folder.join("master.key"))
        .expect("the key can be written");
    let halves = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|half| half.simple().to_string());
    writeln!(file, "{}", halves.concat()).expect("the key can be written");
}

/// A port that nobody listens on. It lies below those that the system gives to outgoing
/// connections, so that none of these takes it while a gateway is down.
///
/// # Panics
///
/// If there is none.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const LOWEST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    let start = u16::try_from(id() * 37 % u32::from(COUNT)).expect("it is below the count");
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = LOWEST + (start.wrapping_add(step)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

pub(crate) fn reqwest_client(timeout: Duration) -> reqwest::Client {
    // Another test of this process may have chosen already; it chose the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(timeout)
        // The gateway lets go of a connection after 30 s, which a request must not meet halfway.
        .pool_idle_timeout(Duration::from_secs(20))
        .build()
        .expect("the client can be built")
}

/// The program: `FIELDPOST_BIN` if it is set, else built from these sources, beside this test.
pub(crate) fn binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| match env::var_os("FIELDPOST_BIN") {
        Some(path) => path.into(),
        None => build(),
    });
    &BINARY
}

/// Cargo builds no program for the tests of another package, so we ask it to, once for each
/// process, unless the program is newer than its sources. Other processes wait for its lock.
fn build() -> PathBuf {
    let own = env::current_exe().expect("a process knows its program");
    // Tests are built in target/<profile>/deps, other programs in target/<profile>.
    let folder = own
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps"))
        .expect("a program lies in a folder");
    let program = folder.join("fieldpost");
    if is_fresh(&program) {
        return program;
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "-p", "fieldpost-gateway", "--bin", "fieldpost"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.env("CARGO_TARGET_DIR", folder.parent().expect("a profile lies in the target folder"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the gateway does not build: {status}");
    program
}

/// Cargo notes beside a program which files it was made from.
fn is_fresh(program: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    let note = fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let (Some(built), Some((_, sources))) = (changed(program), note.split_once(": ")) else {
        return false;
    };
    let mut sources = sources.split_whitespace();
    sources.all(|source| changed(Path::new(source)).is_some_and(|changed| changed <= built))
}
