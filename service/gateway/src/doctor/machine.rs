//! The machine: limits, disk, folders, server binaries.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    sys::{
        resource::{Resource, getrlimit},
        statvfs::statvfs,
    },
    unistd::{AccessFlags, access, geteuid},
};

use super::Finding;
use crate::{
    config::Config,
    embedded::{self, BinarySearch, EmbeddedError},
};

const MIB: u64 = 1 << 20;
/// Postgres stops when its disk is full, and keeps some of its log ahead.
const DISK_NEEDED: u64 = 256 * MIB;
const DISK_WANTED: u64 = 2048 * MIB;
/// A socket each, beside the database's connections, listeners and files.
const FILES_NEEDED: u64 = 256;
const FILES_WANTED: u64 = 8192;

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![file_limit()];
    if config.database.database_url.is_none() {
        match config.database.data_dir.clone().map_or_else(embedded::default_data_dir, Ok) {
            Ok(folder) => {
                findings.push(disk_space(&folder));
                findings.push(data_dir(&folder));
                findings.push(server_binaries(folder).await);
            }
            Err(error) => findings.push(Finding::failure(
                "data folder",
                error.to_string(),
                "name a folder with --data-dir, or a database with --database-url",
            )),
        }
    }
    findings
}

fn file_limit() -> Finding {
    const NAME: &str = "file descriptors";
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            return Finding::warning(
                NAME,
                format!("cannot ask for the limit: {error}"),
                "run ulimit -n",
            );
        }
    };
    judge_file_limit(soft, hard)
}

fn judge_file_limit(soft: u64, hard: u64) -> Finding {
    const NAME: &str = "file descriptors";
    let detail = format!("{soft} can be open at once, {hard} if raised; each socket takes one");
    let advice = format!(
        "raise it for the gateway: ulimit -n {0}, or LimitNOFILE={0} in its systemd unit",
        65_536.min(hard.max(FILES_WANTED))
    );
    match soft {
        ..FILES_NEEDED => Finding::failure(NAME, detail, advice),
        FILES_NEEDED..FILES_WANTED => Finding::warning(NAME, detail, advice),
        _ => Finding::ok(NAME, detail),
    }
}

/// The folder itself, or what it will be made in.
fn existing(folder: &Path) -> PathBuf {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let found = absolute.ancestors().find(|path| path.exists()).map(Path::to_owned);
    found.unwrap_or_else(|| PathBuf::from("/"))
}

fn disk_space(folder: &Path) -> Finding {
    const NAME: &str = "disk space";
    let folder = existing(folder);
    match statvfs(&folder) {
        Ok(disk) => {
            #[expect(clippy::useless_conversion, reason = "these widths differ between systems")]
            let free = u64::from(disk.blocks_available()) * u64::from(disk.fragment_size());
            #[expect(clippy::useless_conversion, reason = "these widths differ between systems")]
            let (nodes, spare) = (u64::from(disk.files()), u64::from(disk.files_available()));
            judge_disk(&folder, free, (nodes > 0).then_some(spare))
        }
        Err(error) => Finding::warning(
            NAME,
            format!("cannot ask for the space at {}: {error}", folder.display()),
            "look with df",
        ),
    }
}

/// `inodes` is `None` on file systems that do not count them.
fn judge_disk(folder: &Path, free: u64, inodes: Option<u64>) -> Finding {
    const NAME: &str = "disk space";
    let detail = format!("{} MiB free at {}", free / MIB, folder.display());
    let advice = "make room, or move the data with --data-dir; a full disk stops the database";
    if inodes.is_some_and(|inodes| inodes < 1000) {
        return Finding::failure(NAME, format!("{detail}, but no inodes"), advice);
    }
    match free {
        ..DISK_NEEDED => Finding::failure(NAME, detail, advice),
        DISK_NEEDED..DISK_WANTED => Finding::warning(NAME, detail, advice),
        _ => Finding::ok(NAME, detail),
    }
}

fn data_dir(folder: &Path) -> Finding {
    const NAME: &str = "data folder";
    let found = existing(folder);
    if !found.is_dir() {
        return Finding::failure(
            NAME,
            format!("{} is not a folder", found.display()),
            "choose another --data-dir",
        );
    }
    if let Err(error) = access(&found, AccessFlags::W_OK | AccessFlags::X_OK) {
        return Finding::failure(
            NAME,
            format!("cannot write in {}: {error}", found.display()),
            "change its owner or mode, or choose another --data-dir",
        );
    }
    if let Err(error) = embedded::check_way(folder) {
        return Finding::failure(NAME, error.to_string(), "let that user in, or choose another");
    }
    if !folder.exists() {
        return Finding::ok(
            NAME,
            format!("{} will be made in {}", folder.display(), found.display()),
        );
    }
    let database = folder.join("database");
    match fs::metadata(&database) {
        Err(_) => {
            Finding::ok(NAME, format!("{} is there, without a database yet", folder.display()))
        }
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => Finding::warning(
            NAME,
            format!(
                "others can get into {} (mode {:03o})",
                database.display(),
                metadata.permissions().mode() & 0o777
            ),
            format!("run chmod 700 '{}'; the next start does so too", database.display()),
        ),
        Ok(metadata) if !geteuid().is_root() && metadata.uid() != geteuid().as_raw() => {
            Finding::failure(
                NAME,
                format!("{} belongs to user id {}", database.display(), metadata.uid()),
                "run the gateway as that user, or choose another --data-dir",
            )
        }
        Ok(_) => Finding::ok(NAME, format!("{} is ours alone", database.display())),
    }
}

async fn server_binaries(folder: PathBuf) -> Finding {
    const NAME: &str = "Postgres server";
    let find = move || embedded::installed(&folder, &BinarySearch::system());
    match tokio::task::spawn_blocking(find).await {
        Ok(Ok((folder, major))) => {
            Finding::ok(NAME, format!("Postgres {major} in {}", folder.display()))
        }
        Ok(Err(error)) => {
            let advice = match error {
                EmbeddedError::OtherVersion { needed, .. } => format!("install Postgres {needed}"),
                EmbeddedError::NotACluster { .. } => "choose another --data-dir".to_owned(),
                _ => "install Postgres 15 or later, or use --database-url".to_owned(),
            };
            Finding::failure(NAME, error.to_string(), advice)
        }
        Err(error) => Finding::failure(NAME, error.to_string(), "report this"),
    }
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::{super::Verdict, *};

    #[test]
    fn limits_are_judged_by_what_a_gateway_needs() {
        for (soft, verdict) in
            [(64, Verdict::Failure), (1024, Verdict::Warning), (65_536, Verdict::Ok)]
        {
            assert_eq!(judge_file_limit(soft, 1 << 20).verdict, verdict);
        }
        let here = Path::new("/");
        for (free, inodes, verdict) in [
            (10 * MIB, None, Verdict::Failure),
            (1024 * MIB, Some(5000), Verdict::Warning),
            (1 << 40, Some(5000), Verdict::Ok),
            (1 << 40, Some(10), Verdict::Failure),
        ] {
            assert_eq!(judge_disk(here, free, inodes).verdict, verdict);
        }
    }

    #[test]
    fn a_folder_that_is_a_file_is_told() {
        let file = env::temp_dir().join(format!("fieldpost-{}", uuid::Uuid::new_v4()));
        fs::write(&file, "").unwrap();
        assert_eq!(data_dir(&file.join("data")).verdict, Verdict::Failure);
        fs::remove_file(&file).unwrap();
        assert_eq!(data_dir(&file).verdict, Verdict::Ok);
    }
}
