//! The folder in which a relay directory lives.
//!
//! ```text
//! authority.json                  whose word the network takes; the same for everybody, never changed
//! signer-1.key …                  keys of signers, each for its holder alone
//! relays/<relay id>.descriptor    what nodes say of themselves; who is in here is admitted
//! documents/<number>.document     the newest documents, at most eight
//! documents/<number>.proposal     the next document, while it lacks signatures
//! ```
//!
//! Nodes on one machine share it. A node elsewhere has a copy of `authority.json` and `documents`.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use ed25519_dalek::{SigningKey, VerifyingKey};
use fieldpost_transport::htx::directory::{
    Authority, EpochClock, SignedDescriptor, SignedDocument, descriptor_limits, document_limits,
};
use rand::{TryRng, rngs::SysRng};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// How many documents are kept.
const KEPT: usize = 8;
/// No authority and no key is longer.
const SMALL_FILE: u64 = 64 * 1024;
const AUTHORITY: &str = "authority.json";
const DOCUMENT: &str = "document";
const PROPOSAL: &str = "proposal";
const DESCRIPTOR: &str = "descriptor";

/// A relay directory on disk.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    authority: Authority,
}

impl Folder {
    /// Makes the folder of a new directory.
    ///
    /// # Errors
    ///
    /// There is one already, or it cannot be written.
    pub fn create(path: &Path, authority: Authority) -> anyhow::Result<Self> {
        let file = path.join(AUTHORITY);
        if file.exists() {
            bail!("{} is there already: choose a new folder for a new directory", file.display());
        }
        for inner in ["relays", "documents"] {
            let inner = path.join(inner);
            fs::create_dir_all(&inner)
                .with_context(|| format!("cannot make {}", inner.display()))?;
        }
        let text = serde_json::to_string_pretty(&AuthorityFile::from(&authority))?;
        write(&file, 0o644, format!("{text}\n").as_bytes())?;
        Ok(Self { path: path.to_owned(), authority })
    }

    /// Opens a directory: its folder, or the `authority.json` in it.
    ///
    /// # Errors
    ///
    /// It is none, and what to do about it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let folder = if path.is_file() { path.parent().unwrap_or(path) } else { path };
        let file = if path.is_file() { path.to_owned() } else { path.join(AUTHORITY) };
        let bytes = match read(&file, SMALL_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "{} is not there: make a relay directory by `fieldpost directory init {}`, or copy \
                 authority.json and documents/ from whoever runs the network",
                file.display(),
                path.display(),
            ),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        let file: AuthorityFile = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is not the authority of a network", file.display()))?;
        let authority = file.into_authority()?;
        // A relative path holds wherever the process goes.
        let path = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        Ok(Self { path, authority })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose word the network takes.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The documents in it.
    pub fn documents(&self) -> Documents {
        Documents { path: self.path.join("documents") }
    }

    /// Makes the key of a signer and writes it, for its holder alone.
    ///
    /// # Errors
    ///
    /// There is one already, or it cannot be written.
    pub fn write_key(path: &Path, number: usize, key: &SigningKey) -> anyhow::Result<()> {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        let file = path.join(format!("signer-{number}.key"));
        let text = Zeroizing::new(format!("{}\n", HEXLOWER.encode(key.as_bytes())));
        let open = File::options().write(true).create_new(true).mode(0o600).open(&file);
        open.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .with_context(|| format!("cannot write {}", file.display()))
    }

    /// The signers' keys that lie in the folder.
    pub fn key_files(&self) -> Vec<PathBuf> {
        files(&self.path, "key")
    }

    /// What nodes put here to say of themselves, as far as it can be read, and why it cannot.
    pub fn descriptors(&self) -> Vec<anyhow::Result<SignedDescriptor>> {
        files(&self.path.join("relays"), DESCRIPTOR)
            .into_iter()
            .take(2 * document_limits::RELAYS)
            .map(|file| read_descriptor(&file))
            .collect()
    }

    /// Puts a descriptor here, in place of its node's earlier one.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn put_descriptor(&self, descriptor: &SignedDescriptor) -> anyhow::Result<()> {
        let folder = self.path.join("relays");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let file = folder.join(format!("{}.{DESCRIPTOR}", descriptor.id()));
        if read(&file, descriptor_limits::SIGNED as u64).is_ok_and(|it| it == descriptor.as_bytes())
        {
            return Ok(());
        }
        write(&file, 0o644, descriptor.as_bytes())
    }

    /// The document of this number that lacks signatures.
    pub fn proposal(&self, number: u64) -> anyhow::Result<Option<SignedDocument>> {
        let file = self.documents().file(number, PROPOSAL);
        if file.exists() { read_document(&file).map(Some) } else { Ok(None) }
    }

    /// Keeps a document that lacks signatures, and returns where.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn put_proposal(&self, document: &SignedDocument) -> anyhow::Result<PathBuf> {
        let file = self.documents().file(document.document().number, PROPOSAL);
        write(&file, 0o644, &document.to_bytes())?;
        Ok(file)
    }

    /// Forgets a document that lacked signatures and has them now.
    pub fn drop_proposal(&self, number: u64) {
        // One that stays does no harm: its document is there.
        let _ = fs::remove_file(self.documents().file(number, PROPOSAL));
    }
}

/// Documents on disk, the newest eight.
#[derive(Clone, Debug)]
pub struct Documents {
    path: PathBuf,
}

impl Documents {
    /// Those of one network in a folder of its own.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// All that can be read, oldest first. None is believed by that.
    pub fn load(&self) -> Vec<SignedDocument> {
        let mut documents: Vec<_> = files(&self.path, DOCUMENT)
            .iter()
            .rev()
            .take(2 * KEPT)
            .filter_map(|file| {
                let document = read_document(file);
                if let Err(error) = &document {
                    tracing::warn!(error = format!("{error:#}"), "a document is left out");
                }
                document.ok()
            })
            .collect();
        documents.sort_by_key(|document| document.document().number);
        documents
    }

    /// Those that come after this number, oldest first; all, if there is none.
    pub fn after(&self, number: Option<u64>) -> Vec<SignedDocument> {
        let is_new = |file: &PathBuf| {
            let name = file.file_stem().and_then(|name| name.to_str());
            let it = name.and_then(|name| name.parse::<u64>().ok());
            it.is_some_and(|it| number.is_none_or(|number| it > number))
        };
        let new = files(&self.path, DOCUMENT).into_iter().filter(is_new);
        new.take(2 * KEPT).filter_map(|file| read_document(&file).ok()).collect()
    }

    /// Keeps a document, and the newest eight of all.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn keep(&self, document: &SignedDocument) -> anyhow::Result<PathBuf> {
        fs::create_dir_all(&self.path)
            .with_context(|| format!("cannot make {}", self.path.display()))?;
        let file = self.file(document.document().number, DOCUMENT);
        let bytes = document.to_bytes();
        if !read(&file, document_limits::SIGNED as u64).is_ok_and(|kept| kept == bytes) {
            write(&file, 0o644, &bytes)?;
        }
        let all = files(&self.path, DOCUMENT);
        for old in all.iter().rev().skip(KEPT) {
            // It is tried again with the next document.
            let _ = fs::remove_file(old);
        }
        Ok(file)
    }

    fn file(&self, number: u64, kind: &str) -> PathBuf {
        self.path.join(format!("{number:012}.{kind}"))
    }
}

/// Reads a signed document; nothing in it is believed yet.
///
/// # Errors
///
/// There is none in the file.
pub(super) fn read_document(file: &Path) -> anyhow::Result<SignedDocument> {
    let bytes = read(file, document_limits::SIGNED as u64)
        .with_context(|| format!("cannot read {}", file.display()))?;
    SignedDocument::decode(&bytes)
        .with_context(|| format!("{} is not a document of a relay directory", file.display()))
}

/// Reads a signed descriptor; nothing in it is believed yet.
///
/// # Errors
///
/// There is none in the file.
pub(super) fn read_descriptor(file: &Path) -> anyhow::Result<SignedDescriptor> {
    let bytes = read(file, descriptor_limits::SIGNED as u64)
        .with_context(|| format!("cannot read {}", file.display()))?;
    SignedDescriptor::decode(&bytes)
        .with_context(|| format!("{} is not a descriptor of a relay", file.display()))
}

/// Makes the key of a signer.
pub(super) fn generate_key() -> anyhow::Result<SigningKey> {
    let mut seed = Zeroizing::new([0; 32]);
    SysRng.try_fill_bytes(seed.as_mut_slice()).context("the system gives no randomness")?;
    Ok(SigningKey::from_bytes(&seed))
}

/// Reads the key of a signer.
///
/// # Errors
///
/// It is none, or others may read it.
pub fn read_key(file: &Path) -> anyhow::Result<SigningKey> {
    let cannot = || format!("cannot read {}", file.display());
    let mode = fs::metadata(file).with_context(cannot)?.mode();
    if mode & 0o077 != 0 {
        bail!("{} is accessible to others (mode {:o}): chmod 600 it", file.display(), mode & 0o777);
    }
    let text = Zeroizing::new(read(file, SMALL_FILE).with_context(cannot)?);
    let seed = HEXLOWER_PERMISSIVE.decode(text.trim_ascii()).map(Zeroizing::new).ok();
    let seed = seed.and_then(|seed| <[u8; 32]>::try_from(seed.as_slice()).ok().map(Zeroizing::new));
    let seed = seed.ok_or_else(|| {
        anyhow!("{} is not the key of a signer: expected 64 hex digits", file.display())
    })?;
    Ok(SigningKey::from_bytes(&seed))
}

/// `authority.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityFile {
    /// The id that the rest makes, for people to compare.
    network: String,
    threshold: usize,
    signers: Vec<String>,
    epoch_seconds: u64,
}

impl From<&Authority> for AuthorityFile {
    fn from(authority: &Authority) -> Self {
        Self {
            network: HEXLOWER.encode(&authority.id()),
            threshold: authority.threshold(),
            signers: authority
                .signers()
                .iter()
                .map(|key| HEXLOWER.encode(key.as_bytes()))
                .collect(),
            epoch_seconds: authority.clock().length().as_secs(),
        }
    }
}

impl AuthorityFile {
    fn into_authority(self) -> anyhow::Result<Authority> {
        let key = |text: &String| {
            let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
            bytes
                .and_then(|bytes| VerifyingKey::try_from(bytes.as_slice()).ok())
                .ok_or_else(|| anyhow!("{text:?} is not a signer's key: expected 64 hex digits"))
        };
        let signers: Vec<_> = self.signers.iter().map(key).collect::<Result<_, _>>()?;
        let clock = EpochClock::new(Duration::from_secs(self.epoch_seconds))?;
        let authority = Authority::new(self.threshold, signers, clock)?;
        let network = HEXLOWER.encode(&authority.id());
        if network != self.network {
            bail!(
                "authority.json names the network {}, and what it says makes {network}: it was altered",
                self.network
            );
        }
        Ok(authority)
    }
}

/// The files of a kind, ascending by name.
fn files(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == kind))
        .collect();
    files.sort();
    files
}

fn read(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let text = format!("the file is longer than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Writes a file whole or not at all: who reads it sees the old one or the new one.
fn write(file: &Path, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let draft = file.with_extension(format!("{}-{number}.new", process::id()));
    let written = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&draft)
        .and_then(|mut draft| {
            draft.write_all(bytes)?;
            draft.sync_all()
        })
        .and_then(|()| fs::rename(&draft, file));
    written
        .inspect_err(|_| drop(fs::remove_file(&draft)))
        .with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_authority_survives_its_file_and_an_altered_one_is_noticed() {
        let folder = tempdir("authority");
        let keys = [generate_key().unwrap(), generate_key().unwrap()];
        let clock = EpochClock::new(Duration::from_secs(10)).unwrap();
        let authority =
            Authority::new(2, keys.iter().map(SigningKey::verifying_key), clock).unwrap();
        Folder::create(&folder, authority.clone()).unwrap();
        let file = folder.join(AUTHORITY);
        for path in [&folder, &file] {
            assert_eq!(*Folder::open(path).unwrap().authority(), authority);
        }
        assert!(Folder::create(&folder, authority).is_err(), "it is never overwritten");
        let text =
            fs::read_to_string(&file).unwrap().replace("\"threshold\": 2", "\"threshold\": 1");
        fs::write(&file, text).unwrap();
        let said = Folder::open(&folder).unwrap_err().to_string();
        assert!(said.contains("it was altered"), "{said}");
        fs::remove_file(&file).unwrap();
        let said = Folder::open(&folder).unwrap_err().to_string();
        assert!(said.contains("fieldpost directory init"), "{said}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn keys_are_for_their_holders_alone() {
        let folder = tempdir("keys");
        let key = generate_key().unwrap();
        Folder::write_key(&folder, 1, &key).unwrap();
        assert!(Folder::write_key(&folder, 1, &key).is_err(), "it is never overwritten");
        let file = folder.join("signer-1.key");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_key(&file).unwrap(), key);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let said = read_key(&file).unwrap_err().to_string();
        assert!(said.contains("mode 640") && said.contains("chmod 600"), "{said}");
        fs::remove_dir_all(folder).unwrap();
    }

    fn tempdir(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("fieldpost-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }
}
