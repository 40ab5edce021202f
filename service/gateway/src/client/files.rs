//! Uploads: in chunks, each repeated until the gateway has it, checked by SHA-256.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{Duration, Instant};

use super::{ClientError, api::Api, output::Output};

/// What became of an upload.
pub(super) struct Uploaded {
    pub(super) file_id: String,
    pub(super) filename: String,
}

/// The gateway's view of an upload.
#[derive(Debug, Deserialize)]
struct Transfer {
    #[serde(rename = "id")]
    file_id: String,
    status: String,
    size_bytes: u64,
    chunk_size: u64,
    /// These are sent; whatever else is there was sent before.
    missing_chunks: Vec<u64>,
    /// Known once all chunks are there.
    sha256: Option<String>,
}

/// Uploads the file at `path`, or the rest of it under the id of an upload that was cut off.
///
/// `patience` is how long each chunk may take, with all its repetitions.
pub(super) async fn upload(
    api: &Api,
    path: &Path,
    resume: Option<&str>,
    patience: Duration,
    output: Output,
) -> Result<Uploaded, ClientError> {
    let failed = |source| ClientError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let size = metadata.len();
    let digest = sha256(&mut file, size).map_err(failed)?;
    let filename = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();

    let transfer: Transfer = match resume {
        Some(id) => status(api, id, patience).await?,
        None => {
            let body = json!({ "filename": filename, "size_bytes": size, "sha256": digest });
            // Not repeated by itself: each time would make another upload.
            api.call(api.post(&["v1", "files"]).json(&body)).await?
        }
    };
    check(&transfer, size, &digest)?;
    let id = transfer.file_id.clone();
    let sent = send_chunks(api, &mut file, &transfer, path, patience, output).await;
    let finished = match sent {
        Ok(()) => status(api, &id, patience).await,
        Err(error) => Err(error),
    };
    match finished {
        Ok(transfer) if transfer.is_complete_as(&digest) => Ok(Uploaded { file_id: id, filename }),
        Ok(_) => Err(changed(path)),
        Err(error) => {
            output.note(&format!("the upload can go on with --resume {id}"));
            Err(error)
        }
    }
}

async fn status(api: &Api, id: &str, patience: Duration) -> Result<Transfer, ClientError> {
    api.persist(Instant::now() + patience, || api.get(&["v1", "files", id])).await
}

/// An upload is resumed only with the very file that it was begun with.
fn check(transfer: &Transfer, size: u64, digest: &str) -> Result<(), ClientError> {
    let same_content = transfer.sha256.as_deref().is_none_or(|theirs| theirs == digest);
    if transfer.size_bytes != size || !same_content {
        return Err(ClientError::Usage(format!(
            "upload {} was begun with another file ({} bytes, this one has {size}): give that \
             one, or leave --resume out",
            transfer.file_id, transfer.size_bytes
        )));
    }
    if transfer.chunk_size == 0 {
        return Err(ClientError::Unexpected {
            url: transfer.file_id.clone(),
            cause: "an upload in chunks of no bytes".to_owned(),
        });
    }
    Ok(())
}

async fn send_chunks(
    api: &Api,
    file: &mut File,
    transfer: &Transfer,
    path: &Path,
    patience: Duration,
    output: Output,
) -> Result<(), ClientError> {
    let failed = |source| ClientError::File { path: path.to_owned(), source };
    let missing: u64 = transfer.missing_chunks.iter().map(|index| transfer.chunk_len(*index)).sum();
    let bar = progress(output, transfer.size_bytes, transfer.size_bytes - missing);
    for &index in &transfer.missing_chunks {
        let length = transfer.chunk_len(index);
        let mut chunk = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        file.seek(SeekFrom::Start(index * transfer.chunk_size)).map_err(failed)?;
        file.read_exact(&mut chunk).map_err(failed)?;
        let hash = format!("sha-256=:{}:", BASE64.encode(&Sha256::digest(&chunk)));
        let chunk = Bytes::from(chunk);
        let deadline = Instant::now() + patience;
        let index = index.to_string();
        let segments = ["v1", "files", &transfer.file_id, "chunks", &index];
        let _: Value = api
            .persist(deadline, || {
                api.put(&segments)
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .header("content-digest", &hash)
                    .body(chunk.clone())
            })
            .await?;
        bar.inc(length);
    }
    bar.finish_and_clear();
    Ok(())
}

impl Transfer {
    fn is_complete_as(&self, digest: &str) -> bool {
        self.status == "completed" && self.sha256.as_deref() == Some(digest)
    }

    fn chunk_len(&self, index: u64) -> u64 {
        self.size_bytes.saturating_sub(index.saturating_mul(self.chunk_size)).min(self.chunk_size)
    }
}

fn changed(path: &Path) -> ClientError {
    ClientError::File {
        path: path.to_owned(),
        source: io::Error::other("the file changed while it was sent: send it again"),
    }
}

fn sha256(file: &mut File, size: u64) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let length = file.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        digest.update(&buffer[..length]);
        left -= length as u64;
    }
    Ok(HEXLOWER.encode(&digest.finalize()))
}

fn progress(output: Output, size: u64, done: u64) -> ProgressBar {
    if !output.shows_progress() {
        return ProgressBar::hidden();
    }
    let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let bar = ProgressBar::new(size).with_position(done);
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_chunk_is_what_is_left() {
        let transfer = transfer(2500, None);
        let lengths: Vec<_> = (0..4).map(|index| transfer.chunk_len(index)).collect();
        assert_eq!(lengths, [1000, 1000, 500, 0]);
    }

    #[test]
    fn an_upload_is_complete_when_the_gateway_has_the_same_bytes() {
        let mut transfer = transfer(2500, Some("aa"));
        assert!(!transfer.is_complete_as("aa"));
        transfer.status = "completed".to_owned();
        assert!(transfer.is_complete_as("aa"));
        assert!(!transfer.is_complete_as("bb"));
    }

    #[test]
    fn an_upload_is_resumed_only_with_the_file_it_was_begun_with() {
        assert!(check(&transfer(2500, None), 2500, "aa").is_ok());
        assert!(check(&transfer(2500, Some("aa")), 2500, "aa").is_ok());
        assert!(check(&transfer(2500, Some("bb")), 2500, "aa").is_err());
        assert!(check(&transfer(2501, Some("aa")), 2500, "aa").is_err());
    }

    fn transfer(size_bytes: u64, sha256: Option<&str>) -> Transfer {
        Transfer {
            file_id: "f".to_owned(),
            status: "pending".to_owned(),
            size_bytes,
            chunk_size: 1000,
            missing_chunks: Vec::new(),
            sha256: sha256.map(str::to_owned),
        }
    }
}
