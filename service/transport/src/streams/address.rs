//! Where a stream leads: `unix:PATH` or `tcp:127.0.0.1:PORT`.

use std::{
    fmt, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::PathBuf,
    str::FromStr,
};

use thiserror::Error;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::connection::Connection;

/// One end of a stream on this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StreamAddress {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A port on loopback.
    Tcp(SocketAddr),
}

/// Why a text is no address of a stream.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ParseAddressError {
    /// It is neither of the two kinds.
    #[error("'{0}' is neither unix:PATH nor tcp:127.0.0.1:PORT")]
    Kind(String),
    /// Streams are not encrypted, so they must not leave the machine.
    #[error("{0} is not on loopback")]
    NotLoopback(SocketAddr),
}

impl FromStr for StreamAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseAddressError::Kind(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            Some(("tcp", address)) => {
                let address: SocketAddr = address.parse().map_err(|_| unknown())?;
                if address.ip().is_loopback() {
                    Ok(Self::Tcp(address))
                } else {
                    Err(ParseAddressError::NotLoopback(address))
                }
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for StreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl StreamAddress {
    /// Listens here. A socket that somebody left behind is replaced, one in use is not, and
    /// anything else at the path is left alone.
    pub(crate) async fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Unix(path) => {
                let is_socket = path.symlink_metadata().is_ok_and(|m| m.file_type().is_socket());
                if is_socket {
                    if UnixStream::connect(path).await.is_ok() {
                        return Err(io::ErrorKind::AddrInUse.into());
                    }
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                Ok(Listener::Unix(listener, path.clone()))
            }
            Self::Tcp(address) => Ok(Listener::Tcp(TcpListener::bind(address).await?)),
        }
    }

    pub(crate) async fn connect(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(path) => Ok(Connection::new(UnixStream::connect(path).await?)),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Connection::new(stream))
            }
        }
    }
}

/// Where connections come.
pub(crate) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    pub(crate) async fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(listener, _) => Ok(Connection::new(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Connection::new(stream))
            }
        }
    }

    /// Where it listens, with the port that the system chose.
    pub(crate) fn address(&self) -> io::Result<StreamAddress> {
        match self {
            Self::Unix(_, path) => Ok(StreamAddress::Unix(path.clone())),
            Self::Tcp(listener) => listener.local_addr().map(StreamAddress::Tcp),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Whoever comes next replaces it if this fails.
            let _ = std::fs::remove_file(path);
        }
    }
}
