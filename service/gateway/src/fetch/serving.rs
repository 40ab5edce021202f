//! Files for other gateways: whole ones alone, and only to those to whose peers they were sent.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use fieldpost_envelope::GatewayId;
use fieldpost_transport::{FileError, FileInfo, FileSource, Transport};
use futures_util::TryStreamExt;

use super::level_of;
use crate::store::{Store, files::FileRecord, remote_files::Grant};

/// Opened chunks that are kept, as readers take less than one at a time.
const KEPT_CHUNKS: usize = 8;

/// What one transport serves from.
pub struct ServedFiles {
    store: Store,
    transport: Weak<dyn Transport>,
    /// The last used at the end.
    opened: Mutex<Vec<(String, i32, Bytes)>>,
}

impl ServedFiles {
    /// Serves over `transport`: what it may carry depends on its level.
    pub fn new(store: Store, transport: &Arc<dyn Transport>) -> Self {
        Self { store, transport: Arc::downgrade(transport), opened: Mutex::default() }
    }

    async fn granted(&self, reader: GatewayId, file: &str) -> Result<FileRecord, FileError> {
        let grant = self.store.file_grant(file, reader).await.map_err(failed)?;
        match grant {
            Grant::Granted(record, level) => {
                let carries =
                    self.transport.upgrade().map(|transport| level_of(transport.as_ref()));
                match carries {
                    Some(carries) if carries >= level => Ok(*record),
                    _ => Err(FileError::Failed("this transport may not carry it".to_owned())),
                }
            }
            Grant::NotYet => Err(FileError::Failed("it is not here yet".to_owned())),
            Grant::Gone => Err(FileError::Unknown { file: file.to_owned() }),
            Grant::NotGranted => Err(FileError::NotAllowed { file: file.to_owned() }),
        }
    }

    async fn chunk(&self, file: &FileRecord, index: i32) -> Result<Bytes, FileError> {
        if let Some(chunk) = self.opened_before(&file.id, index) {
            return Ok(chunk);
        }
        let chunks: Vec<Bytes> =
            self.store.read_chunks(file, index..=index).try_collect().await.map_err(failed)?;
        let chunk = chunks.into_iter().next().unwrap_or_default();
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.len() >= KEPT_CHUNKS {
            opened.remove(0);
        }
        opened.push((file.id.clone(), index, chunk.clone()));
        Ok(chunk)
    }

    fn opened_before(&self, id: &str, index: i32) -> Option<Bytes> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let place = opened.iter().position(|(file, at, _)| file == id && *at == index)?;
        let kept = opened.remove(place);
        let chunk = kept.2.clone();
        opened.push(kept);
        Some(chunk)
    }
}

#[async_trait]
impl FileSource for ServedFiles {
    async fn describe(&self, reader: GatewayId, file: &str) -> Result<FileInfo, FileError> {
        let record = self.granted(reader, file).await?;
        let sha256 = record.sha256.as_deref().and_then(|digest| digest.try_into().ok());
        Ok(FileInfo {
            filename: record.filename,
            mime_type: record.mime_type,
            size_bytes: record.size_bytes.unsigned_abs(),
            sha256: sha256.ok_or_else(|| FileError::Failed("it has no hash yet".to_owned()))?,
        })
    }

    async fn read(
        &self,
        reader: GatewayId,
        file: &str,
        from: u64,
        most: usize,
    ) -> Result<Vec<u8>, FileError> {
        let record = self.granted(reader, file).await?;
        if from >= record.size_bytes.unsigned_abs() {
            return Ok(Vec::new());
        }
        let chunk_size = u64::from(record.chunk_size.unsigned_abs()).max(1);
        let index = i32::try_from(from / chunk_size).unwrap_or(i32::MAX);
        let chunk = self.chunk(&record, index).await?;
        let start = usize::try_from(from % chunk_size).unwrap_or(usize::MAX).min(chunk.len());
        let end = start.saturating_add(most).min(chunk.len());
        Ok(chunk[start..end].to_vec())
    }
}

/// What went wrong here is nobody else's to know.
fn failed(error: sqlx::Error) -> FileError {
    tracing::warn!(%error, "a file could not be read for another gateway");
    FileError::Failed("the other gateway cannot read it now".to_owned())
}
