//! The sealed chunks of a file, and how the last of them completes it.
//!
//! A chunk is written once and never changed, so whoever has seen all of them may hash the file
//! without holding anything: requests that store the last chunks at the same moment come to the
//! same hash, and the first to write it down wins. A crash in between leaves all chunks and no
//! hash; repeating any chunk then completes the file.

use std::ops::RangeInclusive;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use data_encoding::HEXLOWER;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{FileRecord, FileRefusal, Outcome, mismatch};
use crate::store::Store;

/// A chunk that is here.
#[derive(Clone, Debug)]
pub struct ChunkRecord {
    /// Its row, for the mirrored surface.
    pub row_id: Uuid,
    /// Its place, from 0.
    pub chunk_index: i32,
    /// Its length.
    pub size_bytes: i32,
    /// Of its bytes.
    pub sha256: Vec<u8>,
    /// When it came.
    pub uploaded_at: DateTime<Utc>,
}

impl Store {
    /// The chunks of a file that are here, in order; at most 1024.
    pub async fn file_chunks(&self, id: &str) -> sqlx::Result<Vec<ChunkRecord>> {
        sqlx::query_as!(
            ChunkRecord,
            r#"
            select row_id, chunk_index, size_bytes, sha256, uploaded_at
            from file_chunk
            where file_id = $1
            order by chunk_index
            "#,
            id,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Keeps one chunk and completes the file if it was the last; `true` if the chunk is new.
    ///
    /// The same bytes again change nothing and are answered with what is here.
    pub async fn store_chunk(
        &self,
        file: &FileRecord,
        index: i64,
        content: &[u8],
    ) -> Outcome<(ChunkRecord, bool)> {
        let Some(expected) = file.chunk_length(index) else {
            return Ok(Err(FileRefusal::NoSuchChunk { index, total: file.total_chunks }));
        };
        if content.len() as i64 != expected {
            return Ok(Err(FileRefusal::ChunkLength { index, found: content.len(), expected }));
        }
        let index = index as i32;
        let sha256 = Sha256::digest(content);
        let (chunk, is_new) = match self.find_chunk(&file.id, index).await? {
            Some(chunk) => (chunk, false),
            None => match self.insert_chunk(file, index, content, &sha256).await? {
                Some(outcome) => outcome,
                None => return Ok(Err(FileRefusal::Unknown)),
            },
        };
        if chunk.sha256 != sha256.as_slice() {
            return Ok(Err(FileRefusal::ChunkConflict {
                index: i64::from(index),
                stored: HEXLOWER.encode(&chunk.sha256),
            }));
        }
        Ok(self.complete_file(&file.id).await?.map(|()| (chunk, is_new)))
    }

    /// The bytes of some chunks of a file, opened one at a time as they are asked for.
    ///
    /// It ends with an error if there is no such chunk, as when the file is deleted meanwhile.
    pub fn read_chunks(
        &self,
        file: &FileRecord,
        chunks: RangeInclusive<i32>,
    ) -> impl Stream<Item = sqlx::Result<Bytes>> + Send + 'static {
        let (store, file) = (self.clone(), file.clone());
        stream::iter(chunks).then(move |index| {
            let (store, id, day) = (store.clone(), file.id.clone(), file.created_at.date_naive());
            async move {
                let sealed = sqlx::query_scalar!(
                    "select sealed from file_chunk where file_id = $1 and chunk_index = $2",
                    id,
                    index,
                )
                .fetch_one(&store.pool)
                .await?;
                let key = store.data_key(day).await?;
                key.open(&chunk_label(&id, index), &sealed)
                    .map(Bytes::from)
                    .map_err(|error| sqlx::Error::Decode(Box::new(error)))
            }
        })
    }

    /// Hashes the file if all chunks are there and nobody has done so yet.
    pub(crate) async fn complete_file(&self, id: &str) -> Outcome<()> {
        let Some(file) = self.find_file(id).await? else {
            return Ok(Err(FileRefusal::Unknown));
        };
        if file.sha256.is_some() {
            return Ok(mismatch(&file));
        }
        if file.uploaded_chunks < i64::from(file.total_chunks) {
            return Ok(Ok(()));
        }
        let hasher = self
            .read_chunks(&file, 0..=file.total_chunks - 1)
            .try_fold(Sha256::new(), |hasher, chunk| async move { Ok(hasher.chain_update(chunk)) })
            .await?;
        let sha256 = hasher.finalize().to_vec();
        sqlx::query!(
            r#"
            update file
            set sha256 = $2,
                completed_at = case when coalesce(declared_sha256, $2) = $2 then $3::timestamptz end
            where id = $1 and sha256 is null
            "#,
            id,
            sha256,
            self.clock.now(),
        )
        .execute(&self.pool)
        .await?;
        Ok(mismatch(&FileRecord { sha256: Some(sha256), ..file }))
    }

    async fn find_chunk(&self, id: &str, index: i32) -> sqlx::Result<Option<ChunkRecord>> {
        sqlx::query_as!(
            ChunkRecord,
            r#"
            select row_id, chunk_index, size_bytes, sha256, uploaded_at
            from file_chunk
            where file_id = $1 and chunk_index = $2
            "#,
            id,
            index,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// Writes a chunk unless another request was faster; `None` if the file is gone.
    async fn insert_chunk(
        &self,
        file: &FileRecord,
        index: i32,
        content: &[u8],
        sha256: &[u8],
    ) -> sqlx::Result<Option<(ChunkRecord, bool)>> {
        let key = self.data_key(file.created_at.date_naive()).await?;
        let sealed = key
            .seal(&chunk_label(&file.id, index), content)
            .map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        let inserted = sqlx::query_as!(
            ChunkRecord,
            r#"
            insert into file_chunk (file_id, chunk_index, size_bytes, sha256, uploaded_at, sealed)
            select id, $2, $3, $4, $5, $6 from file where id = $1 for key share
            on conflict (file_id, chunk_index) do nothing
            returning row_id, chunk_index, size_bytes, sha256, uploaded_at
            "#,
            file.id,
            index,
            content.len() as i32,
            sha256,
            self.clock.now(),
            sealed,
        )
        .fetch_optional(&self.pool)
        .await?;
        match inserted {
            Some(chunk) => Ok(Some((chunk, true))),
            None => Ok(self.find_chunk(&file.id, index).await?.map(|chunk| (chunk, false))),
        }
    }
}

/// What a chunk is sealed to, so that it opens in its own place alone.
fn chunk_label(id: &str, index: i32) -> Vec<u8> {
    format!("file {id} chunk {index}").into_bytes()
}
