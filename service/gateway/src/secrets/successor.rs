//! The master key that comes next: written down before the database is sealed by it, put in the
//! place of the old one after.
//!
//! ```text
//! write master-HASH.key.next ─► commit ─► rename it to master-HASH.key
//! ```
//!
//! A crash before the commit leaves a file that nothing is sealed by, one after it a file that is
//! needed. The next start asks the database which of the two it is.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{MasterKey, MasterKeyError, Origin, make_key_file, read_key_file};

impl MasterKey {
    /// Writes down a new key beside this one, if this is a managed key.
    ///
    /// # Errors
    ///
    /// If this key is not ours to replace, or there is no room for another.
    pub fn prepare_successor(&self, data_dir: &Path) -> Result<Self, MasterKeyError> {
        let path = self.managed_file().ok_or(MasterKeyError::NotManaged)?;
        let next = next_to(path);
        remove(&next)?;
        make_key_file(&next, data_dir)?;
        self.successor()?.ok_or_else(|| MasterKeyError::Unreadable {
            path: next,
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// The key that was to come next when a rotation was cut off, if there is one.
    ///
    /// # Errors
    ///
    /// If it is there but cannot be read.
    pub fn successor(&self) -> Result<Option<Self>, MasterKeyError> {
        let Some(path) = self.managed_file() else { return Ok(None) };
        let next = next_to(path);
        if !next.exists() {
            return Ok(None);
        }
        let origin = Origin::Kept(next.clone());
        let bytes = read_key_file(&next, origin.clone())?;
        Ok(Some(Self { bytes, origin }))
    }

    /// Puts a successor in the place of the key that it succeeds.
    ///
    /// # Errors
    ///
    /// If the file cannot be moved; both stay where they are then.
    pub fn succeed(self) -> Result<Self, MasterKeyError> {
        let Some(next) = self.managed_file() else { return Ok(self) };
        let path = next.with_extension("");
        let cannot_keep = |source| MasterKeyError::CannotKeep {
            folder: next.parent().unwrap_or(next).to_owned(),
            source,
        };
        fs::rename(next, &path).map_err(cannot_keep)?;
        sync_folder(&path).map_err(cannot_keep)?;
        Ok(Self { bytes: self.bytes, origin: Origin::Kept(path) })
    }

    /// Removes a successor that nothing was sealed by.
    ///
    /// # Errors
    ///
    /// If the file cannot be removed.
    pub fn discard(self) -> Result<(), MasterKeyError> {
        self.managed_file().map_or(Ok(()), remove)
    }

    /// Whether the gateway keeps this key by itself, and so can replace it.
    pub fn is_managed(&self) -> bool {
        self.managed_file().is_some()
    }

    fn managed_file(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Kept(path) | Origin::Made(path) => Some(path),
            Origin::File(_) | Origin::Environment => None,
        }
    }
}

fn next_to(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

fn remove(path: &Path) -> Result<(), MasterKeyError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(MasterKeyError::CannotKeep {
            folder: path.parent().unwrap_or(path).to_owned(),
            source,
        }),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(path))?.sync_all()
}
