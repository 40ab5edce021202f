//! Files between gateways: what a gateway serves, and what one that asks gets.

use async_trait::async_trait;
use fieldpost_envelope::GatewayId;
use thiserror::Error;
use tokio::sync::mpsc;

/// The files of this gateway, as gateways that ask may read them.
///
/// Who asks is known: the transport has checked the reader's certificate. Whether it may read the
/// file is for the source to say.
#[async_trait]
pub trait FileSource: Send + Sync {
    /// What is known of a file.
    ///
    /// # Errors
    ///
    /// There is no such file, or `reader` may not have it.
    async fn describe(&self, reader: GatewayId, file: &str) -> Result<FileInfo, FileError>;

    /// The bytes of a file from `from` on, at most `most`; none at its end.
    ///
    /// # Errors
    ///
    /// As for [`describe`](Self::describe), or it cannot be read now.
    async fn read(
        &self,
        reader: GatewayId,
        file: &str,
        from: u64,
        most: usize,
    ) -> Result<Vec<u8>, FileError>;
}

/// What is known of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileInfo {
    /// Its name for people.
    pub filename: String,
    /// Its media type, if the sender said so.
    pub mime_type: Option<String>,
    /// Its whole size, whatever part of it is fetched.
    pub size_bytes: u64,
    /// SHA-256 of the whole. Whoever has put the parts together compares it.
    pub sha256: [u8; 32],
}

/// A file on its way.
///
/// Dropping it ends the transfer; another one can go on where this one stopped.
#[derive(Debug)]
pub struct FileFetch {
    /// What the gateway that keeps the file says about it.
    pub info: FileInfo,
    /// Its bytes from where it was asked for, in order. The channel is bounded, so who is slow to
    /// take them slows the other gateway down. After an error nothing follows; without one, the end
    /// of the channel is the end of the file.
    pub chunks: mpsc::Receiver<Result<Vec<u8>, FileError>>,
}

/// Why a file, or the rest of it, does not come.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum FileError {
    /// The transport carries no files.
    #[error("this transport carries no files")]
    Unsupported,
    /// Nothing leads there now.
    #[error("{gateway} is out of reach")]
    Unreachable {
        /// The gateway that keeps the file.
        gateway: GatewayId,
    },
    /// The gateway knows no such file.
    #[error("there is no file {file}")]
    Unknown {
        /// Its id.
        file: String,
    },
    /// The file is not for the gateway that asks.
    #[error("the file {file} is not for this gateway")]
    NotAllowed {
        /// Its id.
        file: String,
    },
    /// It broke; asking again for the rest may help.
    #[error("the transfer failed: {0}")]
    Failed(String),
}
