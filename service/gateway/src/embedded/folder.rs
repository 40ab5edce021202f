//! The database folder: who holds it, whom it belongs to, where the socket goes.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
        process::CommandExt,
    },
    path::{Path, PathBuf, absolute},
    process::{self, Command},
};

use data_encoding::HEXLOWER;
use nix::{
    libc::{O_DIRECTORY, O_NOFOLLOW},
    unistd::{Uid, User, geteuid},
};
use sha2::{Digest, Sha256};

use super::{EmbeddedError, PORT};

/// The address of a Unix socket holds 107 bytes and a NUL on Linux, 103 elsewhere.
const SOCKET_PATH_LIMIT: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The user that the server runs as when we are root.
#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// `None` when we are not root: then the server runs as ourselves.
    pub(super) fn choose(database: &Path) -> Result<Option<Self>, EmbeddedError> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        if let Ok(metadata) = fs::metadata(database)
            && metadata.uid() != 0
        {
            return Ok(Some(Self::of_owner(metadata.uid(), metadata.gid())));
        }
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .filter(|user| !user.uid.is_root())
            .map(|user| Some(Self::of(user)))
            .ok_or(EmbeddedError::NoUser)
    }

    /// Makes `command` run as this user, without any further groups.
    pub(super) fn apply(&self, command: &mut Command) {
        command.gid(self.gid).uid(self.uid);
    }

    fn of(user: User) -> Self {
        Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }
    }

    fn of_owner(uid: u32, gid: u32) -> Self {
        match User::from_uid(Uid::from_raw(uid)).ok().flatten() {
            Some(user) => Self::of(user),
            None => Self { name: format!("with id {uid}"), uid, gid },
        }
    }

    fn may_enter(&self, folder: &Path) -> bool {
        let Ok(metadata) = fs::metadata(folder) else { return true };
        let mode = metadata.mode();
        if metadata.uid() == self.uid {
            mode & 0o100 != 0
        } else if metadata.gid() == self.gid {
            mode & 0o010 != 0
        } else {
            mode & 0o001 != 0
        }
    }
}

/// See [`super::check_way`].
pub(super) fn check_way(data_dir: &Path) -> Result<(), EmbeddedError> {
    let Some(account) = Account::choose(&data_dir.join("database"))? else { return Ok(()) };
    let path = absolute(data_dir)
        .map_err(|source| EmbeddedError::NotWritable { path: data_dir.to_owned(), source })?;
    match path.ancestors().find(|folder| folder.exists() && !account.may_enter(folder)) {
        Some(folder) => Err(EmbeddedError::NotTraversable {
            folder: folder.to_owned(),
            user: account.name.clone(),
        }),
        None => Ok(()),
    }
}

/// Makes the data folder and returns its canonical path.
pub(super) fn prepare_data_dir(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    let not_writable =
        |path: &Path, source| EmbeddedError::NotWritable { path: path.into(), source };
    let data_dir = absolute(data_dir).map_err(|source| not_writable(data_dir, source))?;
    // The server's user, if it is another one, must get through to its own folder.
    let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
    let mut missing: Vec<_> = data_dir.ancestors().take_while(|path| !path.exists()).collect();
    while let Some(path) = missing.pop() {
        match DirBuilder::new().mode(mode).create(path) {
            // The umask may have taken away what is meant to be allowed.
            Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|source| not_writable(path, source))?;
    }
    let canonical = data_dir.canonicalize().map_err(|source| not_writable(&data_dir, source))?;
    if !canonical.is_dir() {
        let source = io::Error::from(io::ErrorKind::NotADirectory);
        return Err(not_writable(&canonical, source));
    }
    Ok(canonical)
}

/// What keeps others out of a data folder, until it is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would not do: a child that is just being started may still have the file.
        let _ = self.0.unlock();
    }
}

/// Takes the data folder for this process.
pub(super) fn lock(data_dir: &Path) -> Result<Lock, EmbeddedError> {
    let path = data_dir.join("database.lock");
    let not_writable = |source| EmbeddedError::NotWritable { path: path.clone(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(&path)
        .map_err(not_writable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.take(32).read_to_string(&mut holder);
            let pid = holder.trim().parse().ok();
            return Err(EmbeddedError::LockTaken { data_dir: data_dir.into(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(not_writable(source)),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", process::id())).map_err(not_writable)?;
    Ok(Lock(file))
}

/// The folders of one embedded database.
#[derive(Clone, Debug)]
pub(super) struct DatabaseFolder {
    root: PathBuf,
    socket_dir: PathBuf,
}

impl DatabaseFolder {
    /// Makes the folders and sees that the server can use them, and nobody else.
    pub(super) fn prepare(
        data_dir: &Path,
        account: Option<&Account>,
    ) -> Result<Self, EmbeddedError> {
        let path = data_dir.join("database");
        let not_writable = |source| EmbeddedError::NotWritable { path: path.clone(), source };
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(not_writable(error));
            }
            _ => {}
        }
        let root = path.canonicalize().map_err(not_writable)?;
        let owner = root.metadata().map_err(not_writable)?.uid();
        if account.is_none() && owner != geteuid().as_raw() {
            return Err(EmbeddedError::ForeignOwner { folder: root, owner });
        }
        File::open(&root)
            .and_then(|folder| make_private(&folder, account))
            .map_err(not_writable)?;
        if let Some(account) = account
            && let Some(folder) = root.ancestors().skip(1).find(|path| !account.may_enter(path))
        {
            let user = account.name.clone();
            return Err(EmbeddedError::NotTraversable { folder: folder.to_owned(), user });
        }
        let socket_dir =
            if fits_socket(&root) { root.clone() } else { temporary_socket_dir(&root, account)? };
        Ok(Self { root, socket_dir })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    pub(super) fn cluster(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(super) fn initializing(&self) -> PathBuf {
        self.root.join("initializing")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.root.join("postgres.log")
    }

    pub(super) fn socket_lock(&self) -> PathBuf {
        self.socket_dir.join(format!(".s.PGSQL.{PORT}.lock"))
    }

    /// Removes what lies outside the database folder.
    pub(super) fn tidy(&self) {
        if self.socket_dir != self.root {
            let _ = fs::remove_dir(&self.socket_dir);
        }
    }
}

fn make_private(folder: &File, account: Option<&Account>) -> io::Result<()> {
    if let Some(account) = account {
        fchown(folder, Some(account.uid), Some(account.gid))?;
    }
    folder.set_permissions(Permissions::from_mode(0o700))
}

/// Whether the server can put its socket here: short enough, and plain enough for a URL.
fn fits_socket(folder: &Path) -> bool {
    let socket = folder.join(format!(".s.PGSQL.{PORT}"));
    socket.as_os_str().len() <= SOCKET_PATH_LIMIT && folder.to_str().is_some()
}

/// A folder for the socket alone, named after the database that it belongs to.
///
/// Anybody may have made this name before us in a shared temporary folder. So it is opened without
/// following links, and used only if it belongs to the server's user or to us.
fn temporary_socket_dir(root: &Path, account: Option<&Account>) -> Result<PathBuf, EmbeddedError> {
    let name =
        format!("fieldpost-{}", HEXLOWER.encode(&Sha256::digest(root.as_os_str().as_bytes())[..8]));
    let parent = [env::temp_dir(), PathBuf::from("/tmp")]
        .into_iter()
        .find(|parent| parent.is_absolute() && fits_socket(&parent.join(&name)))
        .unwrap_or_else(|| PathBuf::from("/tmp"));
    let path = parent.join(name);
    let not_writable = |source| EmbeddedError::NotWritable { path: path.clone(), source };
    let foreign = || EmbeddedError::ForeignSocketFolder { folder: path.clone() };

    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(not_writable(error));
        }
        _ => {}
    }
    let folder = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_DIRECTORY)
        .open(&path)
        .map_err(|_| foreign())?;
    let owner = folder.metadata().map_err(not_writable)?.uid();
    let expected = account.map(|account| account.uid);
    if owner != geteuid().as_raw() && Some(owner) != expected {
        return Err(foreign());
    }
    make_private(&folder, account).map_err(not_writable)?;
    if let Some(account) = account
        && let Some(folder) = path.ancestors().skip(1).find(|path| !account.may_enter(path))
    {
        let user = account.name.clone();
        return Err(EmbeddedError::NotTraversable { folder: folder.to_owned(), user });
    }
    Ok(path)
}
