//! The embedded database, with the installed Postgres: as root, as another user when we are root,
//! and through crashes of everything that can crash.

#![expect(clippy::unwrap_used, reason = "fixtures may panic as tests do")]

use std::{
    env,
    fs::{self, Permissions},
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, chown, geteuid},
};
use sqlx::{ConnectOptions, PgConnection, postgres::PgConnectOptions};

use fieldpost_gateway::embedded::{
    BinarySearch, EmbeddedError, EmbeddedPostgres, OLDEST_MAJOR, Status, default_data_dir,
    installed, join, prepare_data_dir, running,
};

const DEADLINE: Duration = Duration::from_secs(60);
const DATA_DIR_VARIABLE: &str = "FIELDPOST_TEST_DATA_DIR";

#[test]
fn is_durable_and_private() {
    let folder = TempFolder::new();
    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    let setting = |name| ask(&server.connect_options(), &format!("show {name}"));
    assert_eq!(setting("fsync"), "on");
    assert_eq!(setting("synchronous_commit"), "on");
    assert_eq!(setting("full_page_writes"), "on");
    assert_eq!(setting("listen_addresses"), "");
    assert_eq!(setting("max_connections"), "60");
    assert_eq!(setting("server_encoding"), "UTF8");

    let database = folder.data_dir().join("database");
    assert_eq!(fs::metadata(&database).unwrap().mode() & 0o7777, 0o700);
    let owner = fs::metadata(format!("/proc/{}", server.pid().unwrap())).unwrap().uid();
    assert_ne!(owner, 0);
    assert_eq!(fs::metadata(&database).unwrap().uid(), owner);
    server.stop();
}

#[test]
fn stops_when_told_and_keeps_what_it_has() {
    let folder = TempFolder::new();
    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    note(&server.connect_options(), "kept");
    let status = server.watch();
    let pid = server.pid().unwrap();
    server.stop();
    assert_eq!(*status.borrow(), Status::Stopped);
    assert!(!is_alive(pid));

    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    assert_eq!(notes(&server.connect_options()), "kept");
}

#[test]
fn killing_the_gateway_leaves_no_orphan() {
    let folder = TempFolder::new();
    let mut gateway = GatewayProcess::start(&folder, None);
    note(&gateway.connect_options(), "survives");
    gateway.kill();
    until("the server has ended", || !is_alive(gateway.server_pid));

    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    assert_eq!(notes(&server.connect_options()), "survives");
}

#[test]
fn starts_while_the_server_of_a_killed_gateway_is_still_there() {
    let folder = TempFolder::new();
    let mut gateway = GatewayProcess::start(&folder, None);
    note(&gateway.connect_options(), "survives");
    gateway.kill();

    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    assert!(!is_alive(gateway.server_pid));
    assert_eq!(notes(&server.connect_options()), "survives");
}

#[test]
fn recovers_when_gateway_and_server_are_killed_at_once() {
    let folder = TempFolder::new();
    let mut gateway = GatewayProcess::start(&folder, None);
    note(&gateway.connect_options(), "survives");
    // Stopped, the gateway cannot notice that its server is gone.
    send(gateway.process.id(), Signal::SIGSTOP);
    send(gateway.server_pid, Signal::SIGKILL);
    gateway.kill();

    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    assert_eq!(notes(&server.connect_options()), "survives");
}

#[test]
fn a_gateway_killed_during_the_first_start_leaves_nothing_in_the_way() {
    let folder = TempFolder::new();
    let mut gateway = GatewayProcess::spawn(&folder, None);
    let initializing = folder.data_dir().join("database/initializing");
    until("initdb has begun", || initializing.join("PG_VERSION").exists());
    send(gateway.id(), Signal::SIGKILL);
    gateway.wait().unwrap();

    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    assert_eq!(ask(&server.connect_options(), "select 'ready'"), "ready");
    assert!(!initializing.exists());
}

#[test]
fn an_ordinary_user_needs_no_other() {
    let Some(nobody) = another_user() else {
        // Not root: then all other tests are of an ordinary user.
        return;
    };
    let folder = TempFolder::new();
    chown(&folder.0, Some(nobody.uid), Some(nobody.gid)).unwrap();
    let mut gateway = GatewayProcess::start(&folder, Some(&nobody));
    note(&gateway.connect_options(), "survives");
    let owner = fs::metadata(format!("/proc/{}", gateway.server_pid)).unwrap().uid();
    assert_eq!(owner, nobody.uid.as_raw());
    gateway.kill();

    let mut gateway = GatewayProcess::start(&folder, Some(&nobody));
    assert_eq!(notes(&gateway.connect_options()), "survives");
    gateway.stop();
    assert!(!is_alive(gateway.server_pid));

    // Root takes over as the user whom the database belongs to.
    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    assert_eq!(notes(&server.connect_options()), "survives");
    let owner = fs::metadata(format!("/proc/{}", server.pid().unwrap())).unwrap().uid();
    assert_eq!(owner, nobody.uid.as_raw());
}

#[test]
fn an_ordinary_user_is_told_whom_the_database_belongs_to() {
    let Some(nobody) = another_user() else { return };
    let folder = TempFolder::new();
    fs::create_dir(folder.data_dir()).unwrap();
    chown(&folder.data_dir(), Some(nobody.uid), Some(nobody.gid)).unwrap();
    fs::create_dir(folder.data_dir().join("database")).unwrap();

    let mut gateway = GatewayProcess::spawn(&folder, Some(&nobody));
    let mut answer = String::new();
    gateway.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
    gateway.wait().unwrap();
    assert!(answer.contains("belongs to user id 0"), "{answer}");
}

#[test]
fn a_server_that_dies_is_started_again() {
    let folder = TempFolder::new();
    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    note(&server.connect_options(), "survives");
    let mut status = server.watch();
    for _ in 0..2 {
        let died = server.pid().unwrap();
        send(died, Signal::SIGKILL);
        block_on(async {
            status.wait_for(|status| matches!(status, Status::Restarting { .. })).await.unwrap();
            status.wait_for(|status| matches!(status, Status::Running { .. })).await.unwrap();
        });
        assert_ne!(server.pid(), Some(died));
        assert_eq!(notes(&server.connect_options()), "survives");
    }
    server.stop();
}

#[test]
fn stops_while_the_server_cannot_be_restarted() {
    let folder = TempFolder::new();
    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    let mut status = server.watch();
    let (cluster, away) =
        (folder.data_dir().join("database/data"), folder.data_dir().join("database/away"));
    fs::rename(&cluster, away).unwrap();
    // A file instead of the folder: neither a cluster nor room for a new one.
    fs::write(&cluster, "").unwrap();
    send(server.pid().unwrap(), Signal::SIGKILL);
    block_on(async {
        let failed = |status: &Status| matches!(status, Status::Restarting { failures: 1.., .. });
        status.wait_for(failed).await.unwrap();
    });
    assert_eq!(server.pid(), None);
    server.stop();
    assert_eq!(*status.borrow(), Status::Stopped);
}

#[test]
fn two_gateways_cannot_share_a_data_folder() {
    let folder = TempFolder::new();
    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    let error = EmbeddedPostgres::start(&folder.data_dir()).unwrap_err();
    assert!(
        matches!(error, EmbeddedError::LockTaken { pid: Some(pid), .. } if pid == process::id()),
        "{error}"
    );
    assert!(error.to_string().contains("--data-dir"), "{error}");
    assert_eq!(ask(&server.connect_options(), "select 'unharmed'"), "unharmed");
}

#[test]
fn another_process_may_join_the_server_of_a_gateway() {
    let folder = TempFolder::new();
    assert!(running(&folder.data_dir()).is_none());
    let mut gateway = GatewayProcess::spawn(&folder, None);
    until("the folder is held", || folder.data_dir().join("database").exists());
    // It may still be at initdb.
    let options = join(&folder.data_dir()).unwrap();
    assert_eq!(ask(&options, "show synchronous_commit"), "on");
    assert!(running(&folder.data_dir()).is_some());
    drop(gateway.stdin.take());
    io::copy(gateway.stdout.as_mut().unwrap(), &mut io::sink()).unwrap();
    gateway.wait().unwrap();
    assert!(running(&folder.data_dir()).is_none());
}

#[test]
fn tells_what_is_installed_without_starting_it() {
    let folder = TempFolder::new();
    let (binaries, major) = installed(&folder.data_dir(), &BinarySearch::system()).unwrap();
    assert!(binaries.join("initdb").exists());
    assert!(major >= OLDEST_MAJOR, "{major}");
    assert!(!folder.data_dir().exists());
}

#[test]
fn names_the_package_when_no_server_is_installed() {
    let folder = TempFolder::new();
    for _ in 0..2 {
        // The second time shows that the first has let go of the lock.
        let error =
            EmbeddedPostgres::start_with(&folder.data_dir(), &BinarySearch::default()).unwrap_err();
        assert!(matches!(error, EmbeddedError::NoServer { .. }), "{error}");
        assert!(error.to_string().contains("apt-get install postgresql"), "{error}");
    }
}

#[test]
fn finds_the_server_without_a_path() {
    let search = BinarySearch { path: "".into(), ..BinarySearch::system() };
    let folder = TempFolder::new();
    match EmbeddedPostgres::start_with(&folder.data_dir(), &search) {
        Ok(server) => assert_eq!(ask(&server.connect_options(), "select 'ready'"), "ready"),
        // Where Postgres is installed in none of the usual folders, it must say where it looked.
        Err(error) => assert!(error.to_string().contains("/usr/lib/postgresql"), "{error}"),
    }
}

#[test]
fn says_which_version_a_database_needs() {
    let folder = TempFolder::new();
    let cluster = folder.data_dir().join("database/data");
    fs::create_dir_all(&cluster).unwrap();
    fs::write(cluster.join("PG_VERSION"), "11\n").unwrap();
    let error = EmbeddedPostgres::start(&folder.data_dir()).unwrap_err();
    assert!(matches!(error, EmbeddedError::OtherVersion { needed: 11, .. }), "{error}");
    assert!(error.to_string().contains("postgresql-11"), "{error}");
}

#[test]
fn refuses_a_folder_that_is_no_database() {
    let folder = TempFolder::new();
    fs::create_dir_all(folder.data_dir().join("database/data/photos")).unwrap();
    let error = EmbeddedPostgres::start(&folder.data_dir()).unwrap_err();
    assert!(matches!(error, EmbeddedError::NotACluster { .. }), "{error}");
    assert!(folder.data_dir().join("database/data/photos").exists());
}

#[test]
fn says_which_folder_the_server_cannot_enter() {
    if !geteuid().is_root() {
        return;
    }
    let folder = TempFolder::new();
    let closed = folder.0.join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let error = EmbeddedPostgres::start(&closed.join("data")).unwrap_err();
    assert!(matches!(error, EmbeddedError::NotTraversable { .. }), "{error}");
    assert!(error.to_string().contains(&format!("chmod o+x '{}'", closed.display())), "{error}");

    fs::set_permissions(&closed, Permissions::from_mode(0o711)).unwrap();
    EmbeddedPostgres::start(&closed.join("data")).unwrap().stop();
}

#[test]
fn says_that_a_data_folder_is_a_file() {
    let folder = TempFolder::new();
    fs::write(folder.data_dir(), "").unwrap();
    let error = EmbeddedPostgres::start(&folder.data_dir()).unwrap_err();
    assert!(matches!(error, EmbeddedError::NotWritable { .. }), "{error}");
}

#[test]
fn shows_the_log_of_a_server_that_does_not_start() {
    let folder = TempFolder::new();
    EmbeddedPostgres::start(&folder.data_dir()).unwrap().stop();
    let settings = folder.data_dir().join("database/data/postgresql.conf");
    fs::write(&settings, "no_such_setting = on\n").unwrap();
    let error = EmbeddedPostgres::start(&folder.data_dir()).unwrap_err();
    assert!(matches!(error, EmbeddedError::Ended { .. }), "{error}");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[test]
fn any_path_will_do_also_one_too_long_for_a_socket() {
    let folder = TempFolder::new();
    for name in ["with \"quotes\", commas & 100 % Zeichen wie ü".to_owned(), "long/".repeat(40)] {
        let data_dir = folder.0.join(name);
        let server = EmbeddedPostgres::start(&data_dir).unwrap();
        let by_url = PgConnectOptions::from_str(&server.url()).unwrap();
        assert_eq!(ask(&by_url, "select current_user::text"), "gateway");
        let socket_dir = ask(&by_url, "show unix_socket_directories");
        server.stop();
        let inside = data_dir.join("database").exists() && socket_dir.contains("database");
        assert!(inside || !Path::new(&socket_dir).exists(), "{socket_dir} is left behind");
    }
}

#[test]
fn a_stale_note_of_a_server_does_not_stop_it() {
    let folder = TempFolder::new();
    EmbeddedPostgres::start(&folder.data_dir()).unwrap().stop();
    let cluster = folder.data_dir().join("database/data");
    let owner = fs::metadata(&cluster).unwrap();
    // Somebody else of the same user has got the pid since; Postgres itself would give up.
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    if geteuid().is_root() {
        command.gid(owner.gid()).uid(owner.uid());
    }
    let mut stranger = command.spawn().unwrap();
    let notes = [cluster.join("postmaster.pid"), cluster.with_file_name(".s.PGSQL.5432.lock")];
    for path in notes {
        fs::write(&path, format!("{}\n{}\n1\n5432\n", stranger.id(), cluster.display())).unwrap();
        chown(&path, Some(owner.uid().into()), Some(owner.gid().into())).unwrap();
    }

    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    assert_eq!(ask(&server.connect_options(), "select 'ready'"), "ready");
    assert_eq!(stranger.try_wait().unwrap(), None);
    drop(stranger.stdin.take());
    stranger.wait().unwrap();
}

#[test]
fn the_log_stays_within_its_limit() {
    const LIMIT: u64 = 10 << 20;
    let folder = TempFolder::new();
    EmbeddedPostgres::start(&folder.data_dir()).unwrap().stop();
    let log = folder.data_dir().join("database/postgres.log");
    fs::write(&log, "x".repeat(LIMIT as usize + 100)).unwrap();
    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    assert_eq!(server.log(), log);
    assert!(fs::metadata(&log).unwrap().len() < 100_000);
    assert_eq!(fs::metadata(log.with_extension("log.old")).unwrap().len(), LIMIT);
}

#[test]
fn the_log_holds_no_statement() {
    let folder = TempFolder::new();
    let server = EmbeddedPostgres::start(&folder.data_dir()).unwrap();
    block_on(async {
        let mut connection = server.connect_options().connect().await.unwrap();
        for statement in ["select 'whisper'::int", "this is a whisper"] {
            sqlx::query(statement).execute(&mut connection).await.unwrap_err();
        }
        sqlx::raw_sql(
            "create table secret (value text not null check (value = ''));
             insert into secret values ('');",
        )
        .execute(&mut connection)
        .await
        .unwrap();
        sqlx::query("insert into secret values ($1)")
            .bind("whisper")
            .execute(&mut connection)
            .await
            .unwrap_err();
    });
    let log = server.log();
    server.stop();
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("violates check constraint"), "{log}");
    assert!(!log.contains("Failing row") && !log.contains("insert into"), "{log}");
}

#[test]
fn default_folders_are_where_the_system_keeps_data() {
    let folder = default_data_dir().unwrap();
    if geteuid().is_root() {
        assert_eq!(folder, Path::new("/var/lib/fieldpost"));
    } else {
        assert!(folder.is_absolute() && folder.ends_with("fieldpost"), "{}", folder.display());
    }
}

#[test]
fn a_data_folder_has_one_name() {
    let folder = TempFolder::new();
    let path = prepare_data_dir(&folder.0.join("a/b")).unwrap();
    assert_eq!(prepare_data_dir(&folder.0.join("a/../a/b/.")).unwrap(), path);
    let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
}

/// The other process of the tests above: a gateway as far as the database goes.
#[test]
#[ignore = "run by other tests in a process of its own"]
fn gateway_process() {
    let data_dir = env::var_os(DATA_DIR_VARIABLE).expect("started by another test");
    let mut stdout = io::stdout();
    match EmbeddedPostgres::start(Path::new(&data_dir)) {
        Ok(server) => {
            writeln!(stdout, "\nready {} {}", server.pid().unwrap(), server.url()).unwrap();
            io::stdin().read_to_end(&mut Vec::new()).unwrap();
            server.stop();
        }
        Err(error) => writeln!(stdout, "\nfailed {error}").unwrap(),
    }
}

struct GatewayProcess {
    process: Child,
    server_pid: u32,
    url: String,
}

impl GatewayProcess {
    fn spawn(folder: &TempFolder, user: Option<&User>) -> Child {
        // Another user may not get at the folder that we were built in.
        let program = folder.0.join("gateway");
        if !program.exists() {
            fs::copy(env::current_exe().unwrap(), &program).unwrap();
        }
        let mut command = Command::new(&program);
        command
            .args(["--exact", "gateway_process", "--ignored", "--nocapture"])
            .env(DATA_DIR_VARIABLE, folder.data_dir())
            .current_dir(&folder.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(user) = user {
            command.gid(user.gid.as_raw()).uid(user.uid.as_raw());
        }
        // Until it has become another program, what some other test has started keeps our copy
        // open for writing.
        loop {
            match command.spawn() {
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => thread::yield_now(),
                spawned => return spawned.unwrap(),
            }
        }
    }

    fn start(folder: &TempFolder, user: Option<&User>) -> Self {
        let mut process = Self::spawn(folder, user);
        let answer = BufReader::new(process.stdout.as_mut().unwrap())
            .lines()
            .map(Result::unwrap)
            .inspect(|line| assert!(!line.starts_with("failed"), "{line}"))
            .find(|line| line.starts_with("ready "))
            .expect("the process says how it went");
        let mut words = answer.split(' ').skip(1);
        let server_pid = words.next().unwrap().parse().unwrap();
        let url = words.next().unwrap().to_owned();
        Self { process, server_pid, url }
    }

    fn connect_options(&self) -> PgConnectOptions {
        PgConnectOptions::from_str(&self.url).unwrap()
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn stop(&mut self) {
        drop(self.process.stdin.take());
        // Reads on, lest the process block on a full pipe.
        io::copy(self.process.stdout.as_mut().unwrap(), &mut io::sink()).unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for GatewayProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A folder that other users may pass through.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("fieldpost-embedded-{}-{number}", process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o711)).unwrap();
        Self(path.canonicalize().unwrap())
    }

    fn data_dir(&self) -> PathBuf {
        self.0.join("data")
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn another_user() -> Option<User> {
    geteuid().is_root().then(|| User::from_name("nobody").unwrap().unwrap())
}

fn note(server: &PgConnectOptions, text: &str) {
    block_on(async {
        let mut connection = server.connect().await.unwrap();
        sqlx::query("create table if not exists note (text text not null)")
            .execute(&mut connection)
            .await
            .unwrap();
        sqlx::query("insert into note values ($1)")
            .bind(text)
            .execute(&mut connection)
            .await
            .unwrap();
    });
}

fn notes(server: &PgConnectOptions) -> String {
    ask(server, "select string_agg(text, ' ') from note")
}

fn ask(server: &PgConnectOptions, question: &str) -> String {
    block_on(async {
        let mut connection: PgConnection = server.connect().await.unwrap();
        sqlx::query_scalar(sqlx::AssertSqlSafe(question)).fetch_one(&mut connection).await.unwrap()
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(DEADLINE, future).await.expect("in time") })
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let poll = async {
        let mut poll = tokio::time::interval(Duration::from_millis(5));
        while !is_so() {
            poll.tick().await;
        }
    };
    block_on(async { tokio::time::timeout(DEADLINE / 2, poll).await.expect(what) });
}

/// Whether the process runs; a zombie that nobody has waited for has no executable any more.
fn is_alive(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}
