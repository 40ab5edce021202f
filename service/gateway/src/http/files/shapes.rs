//! What is sent to `/v1/files` and what comes back.

use chrono::{DateTime, Utc};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::store::{
    files::{CHUNK_SIZE, ChunkRecord, FileRecord, FileState},
    remote_files::RemoteFileRecord,
};

/// What an upload begins with.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct CreateFile {
    /// What the file is called; any text, never used as a path.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$", example = "map.pdf")]
    pub(super) filename: String,
    /// Its length.
    #[schema(minimum = 1, maximum = 1_073_741_824, example = 2_500_000)]
    pub(super) size_bytes: i64,
    /// What it is.
    #[schema(
        min_length = 1,
        max_length = 255,
        pattern = r"^[^\u0000]+$",
        example = "application/pdf"
    )]
    pub(super) mime_type: Option<String>,
    /// What the whole file has to hash to.
    #[schema(
        min_length = 64,
        max_length = 64,
        pattern = "^[0-9A-Fa-f]{64}$",
        example = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    )]
    pub(super) sha256: Option<String>,
}

/// A file and how far its upload has come.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct File {
    /// Its id.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub(super) id: String,
    /// What it is called. Null, as the length, until the gateway that it comes from has said so.
    #[schema(required, min_length = 1, max_length = 255)]
    pub(super) filename: Option<String>,
    /// Its length.
    #[schema(required, minimum = 1, maximum = 1_073_741_824)]
    pub(super) size_bytes: Option<i64>,
    /// What the uploader says it is.
    #[schema(required, max_length = 255)]
    pub(super) mime_type: Option<String>,
    /// The length of every chunk but the last.
    #[schema(example = 1_048_576)]
    pub(super) chunk_size: i32,
    /// How many chunks make the file.
    #[schema(required, minimum = 1, maximum = 1024)]
    pub(super) total_chunks: Option<i32>,
    /// How many of them are here.
    #[schema(minimum = 0, maximum = 1024)]
    pub(super) uploaded_chunks: i64,
    /// Which of them are not; left out in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, max_items = 1024)]
    pub(super) missing_chunks: Option<Vec<i32>>,
    /// Who uploads it; `peer@gateway` for a file from another gateway.
    #[schema(max_length = 181)]
    pub(super) uploaded_by: String,
    /// How far the upload has come.
    pub(super) status: FileStatus,
    /// When the upload began.
    pub(super) created_at: DateTime<Utc>,
    /// When the file became readable.
    #[schema(required)]
    pub(super) completed_at: Option<DateTime<Utc>>,
    /// Of the whole file, once all chunks are there.
    #[schema(required, pattern = "^[0-9a-f]{64}$")]
    pub(super) sha256: Option<String>,
    /// Where a file from another gateway is fetched: `<id>@<gateway>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, max_length = 181)]
    pub(super) origin: Option<String>,
    /// Why it is not here, if it is fetched from another gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) reason: Option<String>,
}

/// How far an upload has come. `mismatched`: all chunks are there but do not hash to what was
/// declared, so the file cannot be read. `failed`: another gateway does not give it.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum FileStatus {
    /// No chunk yet.
    Pending,
    /// Some chunks.
    Uploading,
    /// Readable.
    Completed,
    /// Not what was declared.
    Mismatched,
    /// It will not come.
    Failed,
}

/// One page of files.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct FileList {
    /// The files, in the order of their ids.
    #[schema(max_items = 1000)]
    pub(super) files: Vec<File>,
    /// The `cursor` of the next page; null at the end.
    #[schema(required)]
    pub(super) next: Option<String>,
}

/// A chunk that is here.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct FileChunk {
    /// Its place, from 0.
    #[schema(minimum = 0, maximum = 1023)]
    index: i32,
    /// Its length.
    #[schema(minimum = 1, maximum = 1_048_576)]
    size_bytes: i32,
    /// Of its bytes.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    sha256: String,
    /// When it came.
    uploaded_at: DateTime<Utc>,
}

/// The bytes of a file or of a part of it.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it describes bytes, which are sent and received as they are")]
pub(in crate::http) struct FileContent(Vec<u8>);

impl File {
    pub(super) fn of(file: &FileRecord, chunks: Option<&[ChunkRecord]>) -> Self {
        Self {
            id: file.id.clone(),
            filename: Some(file.filename.clone()),
            size_bytes: Some(file.size_bytes),
            mime_type: file.mime_type.clone(),
            chunk_size: file.chunk_size,
            total_chunks: Some(file.total_chunks),
            uploaded_chunks: file.uploaded_chunks,
            missing_chunks: chunks.map(|chunks| {
                missing_chunks(file.total_chunks, chunks.iter().map(|chunk| chunk.chunk_index))
            }),
            uploaded_by: file.uploaded_by.clone(),
            status: file.state().into(),
            created_at: file.created_at,
            completed_at: file.completed_at,
            sha256: file.sha256.as_deref().map(|sha256| HEXLOWER.encode(sha256)),
            origin: None,
            reason: None,
        }
    }

    /// A file from elsewhere of which nothing is known yet, or any more.
    pub(super) fn awaited(file: RemoteFileRecord) -> Self {
        Self {
            origin: Some(origin(&file)),
            id: file.id,
            filename: None,
            size_bytes: None,
            mime_type: None,
            chunk_size: CHUNK_SIZE as i32,
            total_chunks: None,
            uploaded_chunks: 0,
            missing_chunks: None,
            uploaded_by: file.sender,
            status: match file.state.as_str() {
                "waiting" => FileStatus::Pending,
                _ => FileStatus::Failed,
            },
            created_at: file.created_at,
            completed_at: None,
            sha256: None,
            reason: file.reason,
        }
    }
}

impl From<FileState> for FileStatus {
    fn from(state: FileState) -> Self {
        match state {
            FileState::Pending => Self::Pending,
            FileState::Uploading => Self::Uploading,
            FileState::Completed => Self::Completed,
            FileState::Mismatched => Self::Mismatched,
        }
    }
}

impl From<&ChunkRecord> for FileChunk {
    fn from(chunk: &ChunkRecord) -> Self {
        Self {
            index: chunk.chunk_index,
            size_bytes: chunk.size_bytes,
            sha256: HEXLOWER.encode(&chunk.sha256),
            uploaded_at: chunk.uploaded_at,
        }
    }
}

pub(super) fn origin(file: &RemoteFileRecord) -> String {
    format!("{}@{}", file.file, file.gateway)
}

/// Which of `total` chunks are not among `present`, which is in order.
fn missing_chunks(total: i32, present: impl Iterator<Item = i32>) -> Vec<i32> {
    let mut present = present.peekable();
    (0..total).filter(|index| present.next_if_eq(index).is_none()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_missing_is_what_is_not_present() {
        assert_eq!(missing_chunks(3, [].into_iter()), [0, 1, 2]);
        assert_eq!(missing_chunks(5, [0, 3].into_iter()), [1, 2, 4]);
        assert_eq!(missing_chunks(2, [0, 1].into_iter()), [0; 0]);
    }

    proptest! {
        #[test]
        fn present_and_missing_chunks_together_are_all(
            present in proptest::collection::btree_set(0..1024, 0..1024),
        ) {
            let mut all = missing_chunks(1024, present.iter().copied());
            prop_assert!(all.iter().all(|index| !present.contains(index)));
            all.extend(present);
            all.sort_unstable();
            prop_assert_eq!(all, (0..1024).collect::<Vec<_>>());
        }
    }
}
