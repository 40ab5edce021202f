//! Finds the server binaries. Nothing is ever downloaded.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{EmbeddedError, OLDEST_MAJOR, processes::output_within};

const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to look for server binaries, in order.
#[derive(Clone, Debug, Default)]
pub struct BinarySearch {
    /// Searched first for `postgres`, then for a `pg_config` that knows the folder; in the form of
    /// the `PATH` variable.
    pub path: OsString,
    /// Folders with one folder for each version, the newest first, and `bin` below that:
    /// `/usr/lib/postgresql/17/bin`, `/opt/homebrew/opt/postgresql@17/bin`.
    pub versioned: Vec<PathBuf>,
}

impl BinarySearch {
    /// `PATH`, `pg_config --bindir`, then where Debian and Homebrew put the server.
    pub fn system() -> Self {
        Self {
            path: env::var_os("PATH").unwrap_or_default(),
            versioned: [
                "/usr/lib/postgresql",
                "/opt/homebrew/opt",
                "/usr/local/opt",
                "/home/linuxbrew/.linuxbrew/opt",
            ]
            .map(PathBuf::from)
            .to_vec(),
        }
    }

    /// Every folder that holds both `postgres` and `initdb`, the preferred first.
    fn folders(&self) -> Vec<PathBuf> {
        let on_path = || env::split_paths(&self.path).filter(|folder| folder.is_absolute());
        let from_path = on_path();
        let from_config = on_path().map(|folder| folder.join("pg_config")).filter_map(|program| {
            let answer = output_within(Command::new(&program).arg("--bindir"), ASK_TIMEOUT).ok()?;
            Some(PathBuf::from(answer.trim()))
        });
        let from_versions = self.versioned.iter().flat_map(|parent| versions_in(parent));

        let mut folders = Vec::new();
        for folder in from_path.chain(from_config).chain(from_versions) {
            // A link to `postgres` alone leads to the folder where it has its other files.
            let Ok(server) = fs::canonicalize(folder.join("postgres")) else { continue };
            let Some(folder) = server.parent().map(Path::to_owned) else { continue };
            if folder.join("initdb").is_file() && !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        folders
    }

    fn describe(&self) -> String {
        let mut places = vec!["PATH".to_owned(), "pg_config --bindir".to_owned()];
        places.extend(self.versioned.iter().map(|folder| folder.display().to_string()));
        places.join(", ")
    }
}

/// The programs of one Postgres version.
#[derive(Clone, Debug)]
pub(super) struct Binaries {
    pub(super) folder: PathBuf,
    pub(super) major: u32,
}

impl Binaries {
    /// Chooses the binaries for the cluster in `cluster`: of its version if there is one, else the
    /// first that are new enough.
    pub(super) fn find(search: &BinarySearch, cluster: &Path) -> Result<Self, EmbeddedError> {
        let needed = cluster_major(cluster)?;
        let found: Vec<_> = search
            .folders()
            .into_iter()
            .filter_map(|folder| Some(Self { major: server_major(&folder)?, folder }))
            .collect();
        let Some(newest) = found.iter().map(|binaries| binaries.major).max() else {
            return Err(EmbeddedError::NoServer { looked: search.describe() });
        };
        let suitable = found.iter().find(|binaries| match needed {
            Some(needed) => binaries.major == needed,
            None => binaries.major >= OLDEST_MAJOR,
        });
        match (suitable, needed) {
            (Some(binaries), _) => Ok(binaries.clone()),
            (None, None) => Err(EmbeddedError::TooOld { found: newest }),
            (None, Some(needed)) => {
                let installed: Vec<_> =
                    found.iter().map(|binaries| binaries.major.to_string()).collect();
                Err(EmbeddedError::OtherVersion {
                    folder: cluster.to_owned(),
                    needed,
                    installed: installed.join(", "),
                })
            }
        }
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The major version that made the cluster; `None` if there is no cluster yet.
fn cluster_major(cluster: &Path) -> Result<Option<u32>, EmbeddedError> {
    // Below a folder that we may not enter, this says `false`; its owner is checked later.
    if !cluster.exists() {
        return Ok(None);
    }
    fs::read_to_string(cluster.join("PG_VERSION"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .map(Some)
        .ok_or_else(|| EmbeddedError::NotACluster { folder: cluster.to_owned() })
}

/// Reads `postgres (PostgreSQL) 15.20 (Debian …)`.
fn server_major(folder: &Path) -> Option<u32> {
    let mut command = Command::new(folder.join("postgres"));
    let answer = output_within(command.arg("--version"), ASK_TIMEOUT).ok()?;
    let version = answer.split_whitespace().nth(2)?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

fn versions_in(parent: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix("postgresql@").unwrap_or(&name).parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by_key(|version| std::cmp::Reverse(version.0));
    versions.into_iter().map(|(_, folder)| folder).collect()
}
