//! Keys at rest: the master key, what it seals, and the data keys of partitions.
//!
//! The master key never enters the database. It seals small secrets (identity keys, data keys)
//! under a subkey for each purpose; a [`DataKey`] seals message content and file chunks, so that
//! retention destroys a partition's content by destroying its key. Design, section 12.
//!
//! Sealing is XChaCha20-Poly1305 under random 24-byte nonces of the operating system, subkeys are
//! HKDF-SHA256. What [`MasterKey::seal`] and [`DataKey::seal`] return is
//! `version (1) || nonce (24) || ciphertext || tag (16)`: [`SEALED_OVERHEAD`] bytes more than the
//! plaintext.
//!
//! # Where the master key lives
//!
//! In the file of `--master-key-file` or in `FIELDPOST_MASTER_KEY`. With the embedded database and
//! neither, it is made at the first start, one for each data folder, and kept apart from it, so
//! that a copy of the data folder alone opens nothing: in `/etc/fieldpost` for root, else in
//! `$XDG_CONFIG_HOME/fieldpost` (by default `~/.config/fieldpost`), as `master-HASH.key` where
//! HASH stands for the data folder's path. Back this file up with the data, and rename it with a
//! data folder that moves, or give it by `--master-key-file`.

mod passphrase;
mod successor;

use std::{
    env,
    fmt::{self, Debug, Display, Formatter},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{AeadInOut, Tag},
};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use hkdf::Hkdf;
use nix::unistd::geteuid;
use rand::{TryRng, rngs::SysRng};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::embedded::{self, EmbeddedError};

pub use self::passphrase::{PassphraseError, SHORTEST_PASSPHRASE, SealedIdentity};

/// How many bytes sealing adds: version, nonce and tag.
pub const SEALED_OVERHEAD: usize = 1 + NONCE_LENGTH + TAG_LENGTH;

const KEY_LENGTH: usize = 32;
const NONCE_LENGTH: usize = 24;
const TAG_LENGTH: usize = 16;
const VERSION: u8 = 1;
/// A key file is two short lines; whatever is longer is some other file.
const KEY_FILE_LIMIT: u64 = 4096;

type KeyBytes = Box<Zeroizing<[u8; KEY_LENGTH]>>;

/// The key that seals all other keys.
pub struct MasterKey {
    bytes: KeyBytes,
    origin: Origin,
}

/// Where the master key is to be taken from.
#[derive(Debug)]
pub enum MasterKeySource {
    /// A file with 64 hex digits or base64 of 32 bytes, closed to everybody but its owner.
    File(PathBuf),
    /// The value of `FIELDPOST_MASTER_KEY`, in the same form.
    Environment(SecretString),
    /// Made at the first start: one for each data folder, kept outside of it.
    Managed {
        /// The data folder that the key belongs to.
        data_dir: PathBuf,
        /// The folder that holds the keys; [`default_config_dir`] unless a test says otherwise.
        config_dir: PathBuf,
    },
}

impl MasterKeySource {
    /// Chooses by what the operator gave: a file, a value, or the embedded database's data folder.
    ///
    /// # Errors
    ///
    /// [`MasterKeyError::GivenTwice`], and [`MasterKeyError::Missing`] when there is neither a key
    /// nor an embedded database.
    pub fn choose(
        file: Option<PathBuf>,
        environment: Option<SecretString>,
        embedded_data_dir: Option<&Path>,
    ) -> Result<Self, MasterKeyError> {
        match (file, environment, embedded_data_dir) {
            (Some(_), Some(_), _) => Err(MasterKeyError::GivenTwice),
            (Some(file), None, _) => Ok(Self::File(file)),
            (None, Some(value), _) => Ok(Self::Environment(value)),
            (None, None, Some(data_dir)) => Ok(Self::Managed {
                data_dir: data_dir.to_owned(),
                config_dir: default_config_dir()?,
            }),
            (None, None, None) => Err(MasterKeyError::Missing),
        }
    }
}

/// Where managed master keys live: `/etc/fieldpost` for root, else the XDG configuration folder.
///
/// # Errors
///
/// [`MasterKeyError::NoHome`] if this user has no home folder.
pub fn default_config_dir() -> Result<PathBuf, MasterKeyError> {
    if geteuid().is_root() {
        return Ok(PathBuf::from("/etc/fieldpost"));
    }
    let given = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    given
        .or_else(|| embedded::home().map(|home| home.join(".config")))
        .map(|base| base.join("fieldpost"))
        .ok_or(MasterKeyError::NoHome)
}

/// Why there is no usable master key.
#[derive(Debug, Error)]
pub enum MasterKeyError {
    /// An external database was named, but no key.
    #[error(
        "no master key was given, and with --database-url none is made; make one with \
         `umask 077; openssl rand -hex 32 > master.key` and give it to every replica by \
         --master-key-file master.key or in FIELDPOST_MASTER_KEY"
    )]
    Missing,
    /// Two keys were given.
    #[error("a master key was given both as a file and in FIELDPOST_MASTER_KEY; give only one")]
    GivenTwice,
    /// The file is not there, or not for us to read.
    #[error("cannot read the master key file {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Other users may read or write the key.
    #[error(
        "the master key file {path} is open to others (mode {mode:04o}); run `chmod 600 '{path}'`",
        path = path.display()
    )]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another user could read or replace the key.
    #[error(
        "the master key file {path} belongs to user id {owner}; run `chown {us} '{path}'`",
        path = path.display()
    )]
    ForeignOwner {
        /// The file.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who should.
        us: u32,
    },
    /// There is something else than a key.
    #[error(
        "the master key from {0} must be 64 hex digits or base64 of 32 bytes, \
         such as `openssl rand -hex 32` prints"
    )]
    Malformed(Origin),
    /// The folder of managed keys could be changed by other users.
    #[error(
        "the folder {folder} of master keys can be changed by others (mode {mode:04o}); \
         run `chmod 700 '{folder}'`",
        folder = folder.display()
    )]
    FolderOpenToOthers {
        /// The folder.
        folder: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A new key could not be stored.
    #[error(
        "cannot keep a new master key in {}; make that folder writable, or give a key by \
         --master-key-file or in FIELDPOST_MASTER_KEY",
        folder.display()
    )]
    CannotKeep {
        /// The folder of managed keys.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is a database, but not the key that goes with its folder.
    #[error(
        "there is a database in {}, but not its master key {}: restore that file; if the folder was \
         moved, name the key's old file by --master-key-file (the first line of each file in {} \
         says whose it is)",
        data_dir.display(),
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    Lost {
        /// The data folder.
        data_dir: PathBuf,
        /// Where its key was looked for.
        path: PathBuf,
    },
    /// A key that the operator keeps is the operator's to replace.
    #[error(
        "this master key is not kept by the gateway, so it makes no successor; make one with \
         `umask 077; openssl rand -hex 32 > new.key` and give it by --new-master-key-file new.key"
    )]
    NotManaged,
    /// No place for managed keys.
    #[error(
        "this user has no home folder for the master key; set XDG_CONFIG_HOME or give --master-key-file"
    )]
    NoHome,
    /// The data folder that the key would belong to cannot be used.
    #[error(transparent)]
    DataDir(#[from] EmbeddedError),
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] SealError),
    /// The database was sealed with another key.
    #[error(
        "the master key from {0} is not the one that this database was sealed with; \
         restore that one, without it stored messages and identities cannot be read"
    )]
    Wrong(Origin),
}

/// Where a master key came from, for messages to the operator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// `--master-key-file`.
    File(PathBuf),
    /// `FIELDPOST_MASTER_KEY`.
    Environment,
    /// A managed file that an earlier start had made.
    Kept(PathBuf),
    /// A managed file that this start has made.
    Made(PathBuf),
}

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::Kept(path) => write!(f, "{}", path.display()),
            Self::Environment => f.write_str("FIELDPOST_MASTER_KEY"),
            Self::Made(path) => {
                write!(f, "{} (made just now, as there was none)", path.display())
            }
        }
    }
}

/// Why something could not be sealed.
#[derive(Debug, Error)]
pub enum SealError {
    /// Without randomness nothing may be sealed.
    #[error("the operating system gives no random bytes: {0}")]
    Random(String),
    /// The cipher's limit is 256 GiB.
    #[error("too long to be sealed: {0} bytes")]
    TooLong(usize),
}

/// Why sealed bytes did not open.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum OpenError {
    /// Sealed bytes are never so short.
    #[error("sealed bytes are cut off at {0} bytes")]
    Truncated(usize),
    /// Written by a newer gateway, or not sealed at all.
    #[error("sealed bytes are of the unknown version {0}")]
    UnknownVersion(u8),
    /// The tag does not fit.
    #[error("sealed bytes were altered, belong elsewhere or were sealed with another key")]
    Rejected,
    /// It opened, but holds no data key.
    #[error("a data key must be 32 bytes long, not {0}")]
    NotADataKey(usize),
}

impl MasterKey {
    /// Takes the key from its source; a managed one is made if there is none yet.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the key or its file and how to mend it.
    pub fn load(source: MasterKeySource) -> Result<Self, MasterKeyError> {
        match source {
            MasterKeySource::File(path) => {
                let bytes = read_key_file(&path, Origin::File(path.clone()))?;
                Ok(Self { bytes, origin: Origin::File(path) })
            }
            MasterKeySource::Environment(value) => {
                let origin = Origin::Environment;
                let bytes = parse_key(value.expose_secret())
                    .ok_or_else(|| MasterKeyError::Malformed(origin.clone()))?;
                Ok(Self { bytes, origin })
            }
            MasterKeySource::Managed { data_dir, config_dir } => {
                let data_dir = embedded::prepare_data_dir(&data_dir)?;
                load_or_make(&data_dir, &config_dir)
            }
        }
    }

    /// Takes the key from its source, but makes none: `None` where a start would make one.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn find(source: MasterKeySource) -> Result<Option<Self>, MasterKeyError> {
        let MasterKeySource::Managed { data_dir, config_dir } = source else {
            return Self::load(source).map(Some);
        };
        // Keys go by the canonical path, which a folder that is not there does not have.
        let Ok(data_dir) = data_dir.canonicalize() else { return Ok(None) };
        let path = config_dir.join(managed_name(&data_dir));
        if path.exists() {
            let origin = Origin::Kept(path.clone());
            let bytes = read_key_file(&path, origin.clone())?;
            return Ok(Some(Self { bytes, origin }));
        }
        match embedded::holds_database(&data_dir) {
            true => Err(MasterKeyError::Lost { data_dir, path }),
            false => Ok(None),
        }
    }

    /// A key for tests and experiments, kept nowhere.
    ///
    /// # Errors
    ///
    /// If the operating system gives no random bytes.
    pub fn ephemeral() -> Result<Self, SealError> {
        Ok(Self { bytes: random_key()?, origin: Origin::Environment })
    }

    /// Where the key came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// A value that tells this key from others and gives nothing of it away; the store keeps it.
    pub fn check_value(&self) -> [u8; 32] {
        **self.derive("fieldpost-check-v1", "")
    }

    /// Compares with the value that the store has kept.
    ///
    /// # Errors
    ///
    /// [`MasterKeyError::Wrong`], which names where this key came from.
    pub fn verify_check_value(&self, stored: &[u8]) -> Result<(), MasterKeyError> {
        if bool::from(self.check_value().ct_eq(stored)) {
            Ok(())
        } else {
            Err(MasterKeyError::Wrong(self.origin.clone()))
        }
    }

    /// Seals a small secret for one purpose.
    ///
    /// `aad` is not stored but must be the same to open: name the row that the secret belongs to,
    /// so that sealed bytes moved to another row do not open.
    ///
    /// # Errors
    ///
    /// If the operating system gives no random bytes.
    pub fn seal(&self, purpose: &str, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        seal(&self.cipher(purpose), aad, plaintext)
    }

    /// Opens what [`seal`](Self::seal) made under the same purpose and `aad`.
    ///
    /// # Errors
    ///
    /// If the bytes were altered, moved, or sealed with another key or purpose.
    pub fn open(
        &self,
        purpose: &str,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        open(&self.cipher(purpose), aad, sealed).map(Zeroizing::new)
    }

    fn cipher(&self, purpose: &str) -> XChaCha20Poly1305 {
        cipher(&self.derive("fieldpost-seal-v1", purpose))
    }

    fn derive(&self, context: &str, purpose: &str) -> KeyBytes {
        let mut derived = KeyBytes::default();
        Hkdf::<Sha256>::new(Some(b"fieldpost-master-v1"), self.bytes.as_slice())
            .expand_multi_info(
                &[context.as_bytes(), b"\0", purpose.as_bytes()],
                derived.as_mut_slice(),
            )
            .expect("HKDF-SHA256 gives up to 8160 bytes");
        derived
    }
}

impl Debug for MasterKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// The key that seals the content of one partition.
///
/// Sealing one message costs one pass of the cipher and 24 bytes from the operating system: the
/// cipher is set up once. Share it behind an `Arc`.
pub struct DataKey {
    bytes: KeyBytes,
    cipher: XChaCha20Poly1305,
}

const DATA_KEY_PURPOSE: &str = "data key";

impl DataKey {
    /// A new random key.
    ///
    /// # Errors
    ///
    /// If the operating system gives no random bytes.
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self::new(random_key()?))
    }

    /// Seals the key itself, to be kept beside the partition that `label` names.
    ///
    /// # Errors
    ///
    /// If the operating system gives no random bytes.
    pub fn wrap(&self, master: &MasterKey, label: &str) -> Result<Vec<u8>, SealError> {
        master.seal(DATA_KEY_PURPOSE, label.as_bytes(), self.bytes.as_slice())
    }

    /// Opens a wrapped key; `label` must be that of [`wrap`](Self::wrap).
    ///
    /// # Errors
    ///
    /// If the bytes were altered, belong to another partition or to another master key.
    pub fn unwrap(master: &MasterKey, label: &str, wrapped: &[u8]) -> Result<Self, OpenError> {
        let opened = master.open(DATA_KEY_PURPOSE, label.as_bytes(), wrapped)?;
        let bytes: [u8; KEY_LENGTH] =
            opened.as_slice().try_into().map_err(|_| OpenError::NotADataKey(opened.len()))?;
        Ok(Self::new(Box::new(Zeroizing::new(bytes))))
    }

    /// Seals content; `aad` names the message or chunk that it belongs to.
    ///
    /// # Errors
    ///
    /// If the operating system gives no random bytes.
    pub fn seal(&self, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
        seal(&self.cipher, aad, plaintext)
    }

    /// Opens what [`seal`](Self::seal) made with the same `aad`.
    ///
    /// # Errors
    ///
    /// If the bytes were altered, moved, or sealed with another key.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        open(&self.cipher, aad, sealed)
    }

    fn new(bytes: KeyBytes) -> Self {
        Self { cipher: cipher(&bytes), bytes }
    }
}

impl Debug for DataKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey").finish_non_exhaustive()
    }
}

fn cipher(key: &[u8; KEY_LENGTH]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.into())
}

fn seal(cipher: &XChaCha20Poly1305, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE_LENGTH];
    fill_random(&mut nonce)?;
    let mut sealed = Vec::with_capacity(plaintext.len() + SEALED_OVERHEAD);
    sealed.push(VERSION);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plaintext);
    let body = &mut sealed[1 + NONCE_LENGTH..];
    let tag = cipher
        .encrypt_inout_detached(&XNonce::from(nonce), aad, body.into())
        .map_err(|_| SealError::TooLong(plaintext.len()))?;
    sealed.extend_from_slice(&tag);
    Ok(sealed)
}

fn open(cipher: &XChaCha20Poly1305, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
    let truncated = OpenError::Truncated(sealed.len());
    let (version, rest) = sealed.split_first().ok_or(truncated)?;
    if *version != VERSION {
        return Err(OpenError::UnknownVersion(*version));
    }
    let (nonce, rest) = rest.split_first_chunk::<NONCE_LENGTH>().ok_or(truncated)?;
    let (body, tag) = rest.split_last_chunk::<TAG_LENGTH>().ok_or(truncated)?;
    let mut opened = body.to_vec();
    let verdict = cipher.decrypt_inout_detached(
        &XNonce::from(*nonce),
        aad,
        opened.as_mut_slice().into(),
        &Tag::<XChaCha20Poly1305>::from(*tag),
    );
    match verdict {
        Ok(()) => Ok(opened),
        Err(_) => {
            opened.zeroize();
            Err(OpenError::Rejected)
        }
    }
}

fn random_key() -> Result<KeyBytes, SealError> {
    let mut key = KeyBytes::default();
    fill_random(key.as_mut_slice())?;
    Ok(key)
}

fn fill_random(bytes: &mut [u8]) -> Result<(), SealError> {
    SysRng.try_fill_bytes(bytes).map_err(|error| SealError::Random(error.to_string()))
}

/// Takes the managed key of a data folder, or makes it.
///
/// A new key is written under a name of its own and then linked to the final one. Linking fails if
/// the name is taken, so starts that race agree on one key, and a crash leaves a whole key or none.
fn load_or_make(data_dir: &Path, config_dir: &Path) -> Result<MasterKey, MasterKeyError> {
    let cannot_keep = |source| MasterKeyError::CannotKeep { folder: config_dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(config_dir).map_err(cannot_keep)?;
    let mode = fs::metadata(config_dir).map_err(cannot_keep)?.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(MasterKeyError::FolderOpenToOthers { folder: config_dir.to_owned(), mode });
    }

    let path = config_dir.join(managed_name(data_dir));
    let mut origin = Origin::Kept(path.clone());
    if !path.try_exists().map_err(cannot_keep)? {
        // Keys are made before databases, so this one was begun with another key.
        if embedded::holds_database(data_dir) {
            return Err(MasterKeyError::Lost { data_dir: data_dir.to_owned(), path });
        }
        if make_key_file(&path, data_dir)? {
            origin = Origin::Made(path.clone());
        }
    }
    let bytes = read_key_file(&path, origin.clone())?;
    Ok(MasterKey { bytes, origin })
}

fn managed_name(data_dir: &Path) -> String {
    let hash = Sha256::digest(data_dir.as_os_str().as_bytes());
    format!("master-{}.key", HEXLOWER.encode(&hash[..16]))
}

/// Makes a key file unless it exists; tells whether it was us.
fn make_key_file(path: &Path, data_dir: &Path) -> Result<bool, MasterKeyError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let cannot_keep = |source| MasterKeyError::CannotKeep { folder: folder.to_owned(), source };

    let mut suffix = [0; 8];
    fill_random(&mut suffix)?;
    let temporary = folder.join(format!(".master-{}.new", HEXLOWER.encode(&suffix)));
    let key = random_key()?;
    let text = Zeroizing::new(format!(
        "# Fieldpost master key of {}. Without it, what is stored there cannot be read.\n{}\n",
        data_dir.display().to_string().escape_debug(),
        *Zeroizing::new(HEXLOWER.encode(key.as_slice())),
    ));

    let write = || -> io::Result<bool> {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    };
    let written = write();
    // A leftover holds a key that nobody uses, unless the link succeeded; then it is the same file.
    let _ = fs::remove_file(&temporary);
    let made = written.map_err(cannot_keep)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(cannot_keep)?;
    Ok(made)
}

fn read_key_file(path: &Path, origin: Origin) -> Result<KeyBytes, MasterKeyError> {
    let unreadable = |source| MasterKeyError::Unreadable { path: path.to_owned(), source };
    // A named pipe would otherwise block the start until somebody writes to it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(MasterKeyError::Malformed(origin));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(MasterKeyError::OpenToOthers { path: path.to_owned(), mode });
    }
    let us = geteuid().as_raw();
    if metadata.uid() != us && metadata.uid() != 0 {
        return Err(MasterKeyError::ForeignOwner {
            path: path.to_owned(),
            owner: metadata.uid(),
            us,
        });
    }
    let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_LIMIT as usize));
    file.take(KEY_FILE_LIMIT).read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => MasterKeyError::Malformed(origin.clone()),
        _ => unreadable(error),
    })?;
    parse_key(&text).ok_or(MasterKeyError::Malformed(origin))
}

/// Reads a key as hex or base64; lines that begin with `#` and white space around are passed over.
fn parse_key(text: &str) -> Option<KeyBytes> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.by_ref().find(|line| !line.starts_with('#'))?;
    if lines.any(|line| !line.starts_with('#')) {
        return None;
    }
    let mut decoded = if line.len() == 2 * KEY_LENGTH {
        HEXLOWER_PERMISSIVE.decode(line.as_bytes()).ok()?
    } else {
        let settings =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let alphabet = if line.contains(['-', '_']) {
            &base64::alphabet::URL_SAFE
        } else {
            &base64::alphabet::STANDARD
        };
        GeneralPurpose::new(alphabet, settings).decode(line).ok()?
    };
    let mut key = KeyBytes::default();
    let fits = decoded.len() == KEY_LENGTH;
    if fits {
        key.copy_from_slice(&decoded);
    }
    decoded.zeroize();
    fits.then_some(key)
}

#[cfg(test)]
mod tests;
