//! Epoch secrets and replay logs: in memory, and in a folder if the operator names one.
//!
//! ```text
//! <folder>/<node>/<epoch>.secret = "fieldpost-epoch-1" || epoch, u64 || Sphinx || sealing || replay key
//! <folder>/<node>/<epoch>.replay = the log of fieldpost_mixnet::replay
//! ```
//!
//! The log of an epoch is made before its secret is written and goes after it is erased, so a secret
//! without a log is one whose replays nobody can tell: it is not used again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use fieldpost_envelope::OpeningKey;
use fieldpost_mixnet::{
    directory::{Epoch, EpochSecret, RelayId},
    htx::SecretKey,
    replay::{RECORD_LEN, ReplayCache, log_start},
};
use rand::{CryptoRng, RngExt};
use zeroize::Zeroizing;

/// Where a node keeps what must outlive its process, and nothing else.
pub(super) struct Secrets {
    folder: Option<PathBuf>,
    /// Held as long as the node runs: two of one identity would take each other's replays.
    _lock: Option<File>,
    epochs: BTreeMap<Epoch, Kept>,
}

struct Kept {
    replay_key: Zeroizing<[u8; 32]>,
    log: Option<File>,
}

impl Secrets {
    /// Opens the folder of this node, and makes it if it is not there.
    pub(super) fn open(folder: Option<&Path>, node: RelayId) -> io::Result<Self> {
        let (mut own, mut lock) = (None, None);
        if let Some(folder) = folder {
            let path = folder.join(&node.to_string()[..16]);
            DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            if fs::metadata(&path)?.permissions().mode() & 0o077 != 0 {
                return Err(io::Error::other("others may look into it: expected mode 0700"));
            }
            let file = private().create(true).truncate(false).open(path.join("lock"))?;
            file.try_lock().map_err(|_| io::Error::other("another process uses it"))?;
            (own, lock) = (Some(path), Some(file));
        }
        Ok(Self { folder: own, _lock: lock, epochs: BTreeMap::new() })
    }

    /// The secrets that were kept, with the replay cache of each. What cannot be trusted is erased.
    pub(super) fn restore(&mut self, most: usize) -> Vec<(Epoch, EpochSecret, ReplayCache)> {
        let Some(folder) = self.folder.clone() else { return Vec::new() };
        let names = fs::read_dir(&folder).into_iter().flatten().flatten();
        let epochs: BTreeSet<Epoch> =
            names.filter_map(|entry| entry.path().file_stem()?.to_str()?.parse().ok()).collect();
        let mut restored = Vec::new();
        for epoch in epochs {
            if !secret_path(&folder, epoch).exists() {
                // Whoever wrote them was killed before the secret was whole, or while it was erased.
                self.erase(epoch);
                continue;
            }
            match self.restore_one(&folder, epoch, most) {
                Ok((secret, cache)) => restored.push((epoch, secret, cache)),
                Err(error) => {
                    tracing::warn!(epoch, %error, "an epoch's secret is given up");
                    self.erase(epoch);
                }
            }
        }
        restored
    }

    fn restore_one(
        &mut self,
        folder: &Path,
        epoch: Epoch,
        most: usize,
    ) -> io::Result<(EpochSecret, ReplayCache)> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_LEN));
        File::open(secret_path(folder, epoch))?.read_to_end(&mut bytes)?;
        let part = |at: usize| -> Zeroizing<[u8; 32]> {
            Zeroizing::new(std::array::from_fn(|byte| bytes[at + byte]))
        };
        if bytes.len() != SECRET_LEN || bytes[..25] != head(epoch) {
            return Err(io::Error::other("the secret is damaged"));
        }
        let secret = EpochSecret {
            sphinx: SecretKey::from_bytes(&part(25)),
            sealing: OpeningKey::from_bytes(*part(57)),
        };
        let replay_key = part(89);
        let log = fs::read(log_path(folder, epoch))?;
        let recovered =
            ReplayCache::recover(epoch, *replay_key, most, &log).map_err(io::Error::other)?;
        let file = private().append(true).open(log_path(folder, epoch))?;
        file.set_len(recovered.log_len as u64)?;
        self.epochs.insert(epoch, Kept { replay_key, log: Some(file) });
        Ok((secret, recovered.cache))
    }

    /// Keeps a new secret.
    pub(super) fn keep(
        &mut self,
        epoch: Epoch,
        secret: &EpochSecret,
        rng: &mut impl CryptoRng,
    ) -> io::Result<()> {
        let replay_key = Zeroizing::new(rng.random::<[u8; 32]>());
        let mut log = None;
        if let Some(folder) = &self.folder {
            let path = log_path(folder, epoch);
            let mut file = private().create(true).truncate(true).open(&path)?;
            file.write_all(&log_start(epoch))?;
            log = Some(private().append(true).open(&path)?);
            let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_LEN));
            bytes.extend_from_slice(&head(epoch));
            bytes.extend_from_slice(secret.sphinx.as_bytes());
            bytes.extend_from_slice(secret.sealing.as_bytes());
            bytes.extend_from_slice(replay_key.as_ref());
            let unfinished = unfinished_path(folder, epoch);
            let mut file = private().create(true).truncate(true).open(&unfinished)?;
            file.write_all(&bytes)?;
            fs::rename(unfinished, secret_path(folder, epoch))?;
        }
        self.epochs.insert(epoch, Kept { replay_key, log });
        Ok(())
    }

    /// An empty replay cache for an epoch whose secret was kept in this process.
    pub(super) fn new_cache(&self, epoch: Epoch, most: usize) -> Option<ReplayCache> {
        let kept = self.epochs.get(&epoch)?;
        Some(ReplayCache::new(epoch, *kept.replay_key, most))
    }

    /// Appends records to the log of an epoch, in one write.
    pub(super) fn append(&mut self, epoch: Epoch, records: &[[u8; RECORD_LEN]]) -> io::Result<()> {
        let Some(Kept { log: Some(log), .. }) = self.epochs.get_mut(&epoch) else { return Ok(()) };
        log.write_all(records.as_flattened())
    }

    /// Erases an epoch's secret, then its log.
    pub(super) fn erase(&mut self, epoch: Epoch) {
        self.epochs.remove(&epoch);
        let Some(folder) = &self.folder else { return };
        let secrets = [unfinished_path(folder, epoch), secret_path(folder, epoch)];
        for path in &secrets {
            // On a tmpfs this is all there is to it; on a disk, an older copy may remain.
            if let Ok(mut file) = private().open(path) {
                let wiped = file.write_all(&[0; SECRET_LEN]).and_then(|()| file.sync_data());
                wiped.unwrap_or_default();
            }
        }
        for path in secrets.into_iter().chain([log_path(folder, epoch)]) {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(epoch, %error, "what was kept of an epoch cannot be erased");
            }
        }
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

fn secret_path(folder: &Path, epoch: Epoch) -> PathBuf {
    folder.join(format!("{epoch}.secret"))
}

/// Where a secret is written before it is whole.
fn unfinished_path(folder: &Path, epoch: Epoch) -> PathBuf {
    folder.join(format!("{epoch}.new"))
}

fn log_path(folder: &Path, epoch: Epoch) -> PathBuf {
    folder.join(format!("{epoch}.replay"))
}

fn head(epoch: Epoch) -> [u8; 25] {
    let mut head = *b"fieldpost-epoch-1\0\0\0\0\0\0\0\0";
    head[17..].copy_from_slice(&epoch.to_be_bytes());
    head
}

const SECRET_LEN: usize = 25 + 3 * 32;

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn what_was_kept_is_there_after_a_restart_with_all_that_was_seen() {
        let folder = Folder::new("kept");
        let mut rng = StdRng::seed_from_u64(1);
        let secret = EpochSecret::generate(&mut rng);
        let tag = fieldpost_mixnet::sphinx::ReplayTag([7; 16]);
        {
            let mut secrets = Secrets::open(Some(&folder.0), NODE).unwrap();
            assert!(Secrets::open(Some(&folder.0), NODE).is_err(), "one process at a time");
            secrets.keep(5, &secret, &mut rng).unwrap();
            let records = [fieldpost_mixnet::replay::record(5, tag)];
            secrets.append(5, &records).unwrap();
        }
        let mut secrets = Secrets::open(Some(&folder.0), NODE).unwrap();
        let mut restored = secrets.restore(1000);
        let (epoch, again, cache) = restored.first_mut().unwrap();
        assert_eq!((*epoch, again.public(5)), (5, secret.public(5)));
        assert!(cache.insert(tag).is_err(), "a replay");
        secrets.erase(5);
        assert!(Secrets::restore(&mut secrets, 1000).is_empty());
    }

    #[test]
    fn a_secret_whose_log_is_lost_or_damaged_is_given_up() {
        for damage in [(|path: &Path| fs::remove_file(path).unwrap()) as fn(&Path), |path| {
            fs::write(path, b"something else").unwrap();
        }] {
            let folder = Folder::new("damaged");
            let mut rng = StdRng::seed_from_u64(2);
            let mut secrets = Secrets::open(Some(&folder.0), NODE).unwrap();
            secrets.keep(5, &EpochSecret::generate(&mut rng), &mut rng).unwrap();
            let own = secrets.folder.clone().unwrap();
            drop(secrets);
            damage(&log_path(&own, 5));
            let mut secrets = Secrets::open(Some(&folder.0), NODE).unwrap();
            assert!(secrets.restore(1000).is_empty());
            assert!(!secret_path(&own, 5).exists());
        }
    }

    #[test]
    fn what_a_killed_process_left_half_written_or_half_erased_is_gone_after_the_next_start() {
        let folder = Folder::new("left");
        let mut rng = StdRng::seed_from_u64(3);
        let mut secrets = Secrets::open(Some(&folder.0), NODE).unwrap();
        secrets.keep(5, &EpochSecret::generate(&mut rng), &mut rng).unwrap();
        let own = secrets.folder.clone().unwrap();
        fs::rename(secret_path(&own, 5), unfinished_path(&own, 5)).unwrap();
        fs::write(log_path(&own, 6), b"a log").unwrap();
        assert!(secrets.restore(1000).is_empty());
        let left: Vec<_> = fs::read_dir(&own).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
    }

    const NODE: RelayId = RelayId([3; 32]);

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("fieldpost-secrets-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            drop(fs::remove_dir_all(&path));
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }
}
