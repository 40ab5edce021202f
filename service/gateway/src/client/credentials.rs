//! The tokens that this user holds, by gateway and peer, in a file that nobody else can read.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use super::ClientError;
use crate::embedded::home;

/// The credentials file. It need not exist until a token is kept.
#[derive(Debug)]
pub(super) struct Credentials {
    path: PathBuf,
}

/// Gateway, then peer, then token.
type Book = BTreeMap<String, BTreeMap<String, String>>;

/// Far more than the tokens of a few thousand peers.
const SIZE_LIMIT: u64 = 4 << 20;

impl Credentials {
    /// The file at `path`, or the user's own.
    pub(super) fn at(path: Option<PathBuf>) -> Result<Self, ClientError> {
        let path = match path {
            Some(path) => path,
            None => default_folder().ok_or(ClientError::NoHome)?.join("credentials.json"),
        };
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens for one gateway, by peer.
    pub(super) fn of(&self, gateway: &str) -> Result<BTreeMap<String, SecretString>, ClientError> {
        let book = self.read()?;
        let peers = book.into_iter().find(|(url, _)| url == gateway).map(|(_, peers)| peers);
        Ok(peers
            .unwrap_or_default()
            .into_iter()
            .map(|(peer, token)| (peer, token.into()))
            .collect())
    }

    /// Keeps a token, in place of an older one of the same peer.
    pub(super) fn keep(
        &self,
        gateway: &str,
        peer: &str,
        token: &SecretString,
    ) -> Result<(), ClientError> {
        let folder = self.path.parent().filter(|path| !path.as_os_str().is_empty());
        if let Some(folder) = folder {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|source| self.failed(source))?;
        }
        let _guard = self.lock()?;
        let mut book = self.read()?;
        book.entry(gateway.to_owned())
            .or_default()
            .insert(peer.to_owned(), token.expose_secret().to_owned());
        self.replace(&book).map_err(|source| self.failed(source))
    }

    fn read(&self) -> Result<Book, ClientError> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Book::new()),
            Err(source) => return Err(self.failed(source)),
        };
        let metadata = file.metadata().map_err(|source| self.failed(source))?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(self.odd(format!(
                "others can read these tokens (mode {mode:03o}): run chmod 600 on it, and \
                 register anew if somebody may have"
            )));
        }
        if metadata.len() > SIZE_LIMIT {
            return Err(self.odd(format!("has {} bytes: expected tokens", metadata.len())));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|source| self.failed(source))?;
        serde_json::from_str(&text).map_err(|error| {
            // The parser's own message could quote a token.
            self.odd(format!(
                "is not a credentials file (line {}): expected JSON, {{gateway: {{peer: token}}}}",
                error.line()
            ))
        })
    }

    /// Two commands at once must not lose each other's token.
    fn lock(&self) -> Result<Flock<File>, ClientError> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.with_extension("lock"))
            .map_err(|source| self.failed(source))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| self.failed(io::Error::from(errno)))
    }

    /// Readers see the old file or the new one, never a part.
    fn replace(&self, book: &Book) -> io::Result<()> {
        let fresh = self.path.with_extension(format!("{}.new", Uuid::new_v4().simple()));
        let written = (|| {
            let mut file =
                OpenOptions::new().create_new(true).write(true).mode(0o600).open(&fresh)?;
            serde_json::to_writer_pretty(&mut file, book)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&fresh, &self.path)
        })();
        if written.is_err() {
            drop(fs::remove_file(&fresh));
        }
        written
    }

    fn failed(&self, source: io::Error) -> ClientError {
        ClientError::File { path: self.path.clone(), source }
    }

    fn odd(&self, problem: String) -> ClientError {
        ClientError::Credentials { path: self.path.clone(), problem }
    }
}

/// The XDG configuration folder, for root too: these are a user's, not the system's.
fn default_folder() -> Option<PathBuf> {
    env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| home().map(|home| home.join(".config")))
        .map(|base| base.join("fieldpost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_kept_for_its_owner_alone_and_found_again() {
        let folder = Folder::new();
        let credentials = folder.credentials();
        credentials.keep("http://a", "alice", &"one".to_owned().into()).unwrap();
        credentials.keep("http://a", "alice", &"two".to_owned().into()).unwrap();
        credentials.keep("http://b", "bob", &"three".to_owned().into()).unwrap();

        let kept = credentials.of("http://a").unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept["alice"].expose_secret(), "two");
        assert!(credentials.of("http://c").unwrap().is_empty());
        let mode = fs::metadata(credentials.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn tokens_that_others_can_read_are_refused() {
        let folder = Folder::new();
        let credentials = folder.credentials();
        credentials.keep("http://a", "alice", &"one".to_owned().into()).unwrap();
        fs::set_permissions(credentials.path(), fs::Permissions::from_mode(0o640)).unwrap();
        let error = credentials.of("http://a").unwrap_err().to_string();
        assert!(error.contains("mode 640") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_told_without_its_content() {
        let folder = Folder::new();
        let credentials = folder.credentials();
        credentials.keep("http://a", "alice", &"one".to_owned().into()).unwrap();
        fs::write(credentials.path(), r#"{"http://a": {"alice": ["s3cret"]}}"#).unwrap();
        let error = credentials.of("http://a").unwrap_err().to_string();
        assert!(error.contains("not a credentials file") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn commands_at_once_lose_no_token() {
        let folder = Folder::new();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let credentials = folder.credentials();
                scope.spawn(move || {
                    let peer = format!("peer-{number}");
                    credentials.keep("http://a", &peer, &"token".to_owned().into()).unwrap();
                });
            }
        });
        assert_eq!(folder.credentials().of("http://a").unwrap().len(), 8);
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            Self(env::temp_dir().join(format!("fieldpost-{}", Uuid::new_v4())))
        }

        fn credentials(&self) -> Credentials {
            Credentials::at(Some(self.0.join("nested/credentials.json"))).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }
}
