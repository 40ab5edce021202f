//! Files in sealed chunks, who may read them, and their end (design, sections 6 and 12).
//!
//! A chunk is written once and never changed, so whoever has seen all of them may hash the file
//! without holding anything: requests that store the last chunks at the same moment come to the
//! same hash, and the first to write it down wins. A crash in between leaves all chunks and no
//! hash; repeating any chunk then completes the file.

use std::ops::RangeInclusive;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use data_encoding::HEXLOWER;
use fieldpost_envelope::PeerId;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use rand::{TryRng, rngs::SysRng};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgExecutor};
use thiserror::Error;
use uuid::Uuid;

use crate::store::Store;

/// The largest file.
pub const LARGEST_FILE: i64 = 1 << 30;
/// The length of every chunk but the last.
pub const CHUNK_SIZE: i64 = 1 << 20;
/// What one uploader's files may take, unfinished ones counted whole.
pub const BYTES_PER_UPLOADER: i64 = 4 << 30;
/// What all files of the deployment may take.
pub const BYTES_IN_ALL: i64 = 64 << 30;
/// What the smallest file counts as, so that the limits also bound how many there are.
pub const SMALLEST_CHARGE: i64 = 64 << 10;
/// How long an upload may rest before it is given up.
pub const ABANDONED_AFTER: TimeDelta = TimeDelta::hours(24);

/// Serializes replicas that judge the limits.
const QUOTA_LOCK: i64 = 0x6670_6669_6c65;
/// How many files one statement deletes; with their chunks that may be as many GiB.
const DELETED_AT_ONCE: i64 = 16;

/// A file as it is stored.
#[derive(Clone, Debug)]
pub struct FileRecord {
    /// Its public name: 32 hexadecimal digits.
    pub id: String,
    /// Its row, for the mirrored surface.
    pub row_id: Uuid,
    /// As the uploader called it; never part of a path.
    pub filename: String,
    /// Its declared length, which the chunks have to add up to.
    pub size_bytes: i64,
    /// What the uploader says it is.
    pub mime_type: Option<String>,
    /// The length of every chunk but the last.
    pub chunk_size: i32,
    /// How many chunks make the file.
    pub total_chunks: i32,
    /// How many of them are here.
    pub uploaded_chunks: i64,
    /// Who uploads it.
    pub uploaded_by: String,
    /// When the upload began.
    pub created_at: DateTime<Utc>,
    /// When it became readable.
    pub completed_at: Option<DateTime<Utc>>,
    /// Of the whole file, once all chunks are there.
    pub sha256: Option<Vec<u8>>,
    /// What the uploader had declared.
    pub declared_sha256: Option<Vec<u8>>,
}

/// How far an upload has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileState {
    /// No chunk yet.
    Pending,
    /// Some chunks.
    Uploading,
    /// All of it, readable.
    Completed,
    /// All chunks, but not the file that was declared.
    Mismatched,
}

impl FileRecord {
    /// How far the upload has come.
    pub fn state(&self) -> FileState {
        match (self.completed_at, &self.sha256) {
            (Some(_), _) => FileState::Completed,
            (None, Some(_)) => FileState::Mismatched,
            (None, None) if self.uploaded_chunks == 0 => FileState::Pending,
            (None, None) => FileState::Uploading,
        }
    }

    /// How long chunk `index` has to be; `None` if there is no such chunk.
    pub fn chunk_length(&self, index: i64) -> Option<i64> {
        let start = index.checked_mul(i64::from(self.chunk_size))?;
        (index >= 0 && start < self.size_bytes)
            .then(|| i64::from(self.chunk_size).min(self.size_bytes - start))
    }
}

/// What an upload begins with.
#[derive(Clone, Debug)]
pub struct NewFile {
    /// As the uploader calls it.
    pub filename: String,
    /// Its length, from 1 to [`LARGEST_FILE`].
    pub size_bytes: i64,
    /// What the uploader says it is.
    pub mime_type: Option<String>,
    /// What the whole file has to hash to, if the uploader knows.
    pub declared_sha256: Option<[u8; 32]>,
    /// Who uploads.
    pub uploaded_by: PeerId,
}

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

/// For whom a file is wanted.
#[derive(Clone, Copy, Debug)]
pub enum FileReader<'a> {
    /// This peer: it has uploaded the file or got a message that carries it.
    Peer(&'a PeerId),
    /// This peer, as the one who uploads.
    Uploader(&'a PeerId),
    /// One who may: an operator, or open mode where the request names nobody.
    WhoeverMay,
}

/// Why a file was not shown, begun or changed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum FileRefusal {
    /// Never begun, deleted or expired.
    #[error("there is no such file")]
    Unknown,
    /// Neither the uploader nor a recipient, or a recipient where only the uploader may.
    #[error("the file is not {0}'s to {1}")]
    NotAllowed(PeerId, &'static str),
    /// The uploader is not registered here.
    #[error("there is no peer {0} at this gateway")]
    UnknownPeer(PeerId),
    /// The uploader's files take what they may.
    #[error(
        "your files take {used} of {BYTES_PER_UPLOADER} bytes (each counts at least \
         {SMALLEST_CHARGE}), so {wanted} more do not fit: delete some first"
    )]
    UploaderFull {
        /// What is taken.
        used: i64,
        /// What was asked for.
        wanted: i64,
    },
    /// The gateway's files take what they may.
    #[error("this gateway's storage for files is full: try again when older ones have expired")]
    GatewayFull,
    /// The file has no chunk of that number.
    #[error("the file has chunks 0 to {}, so there is no chunk {index}", .total - 1)]
    NoSuchChunk {
        /// The number.
        index: i64,
        /// How many chunks there are.
        total: i32,
    },
    /// The chunk is too long or too short.
    #[error("chunk {index} has {found} bytes: expected {expected}")]
    ChunkLength {
        /// Its number.
        index: i64,
        /// How long it is.
        found: usize,
        /// How long it should be.
        expected: i64,
    },
    /// The chunk was uploaded before with other bytes.
    #[error("chunk {index} is already here with other bytes (SHA-256 {stored}): it cannot change")]
    ChunkConflict {
        /// Its number.
        index: i64,
        /// What is stored, in hexadecimal digits.
        stored: String,
    },
    /// All chunks are there but they are not the declared file.
    #[error(
        "the chunks have the SHA-256 {found}, but {declared} was declared: delete the file and \
         upload it again"
    )]
    Mismatched {
        /// Of the chunks, in hexadecimal digits.
        found: String,
        /// What the uploader had declared.
        declared: String,
    },
}

/// What a store function did, or why it did nothing.
type Outcome<T> = sqlx::Result<Result<T, FileRefusal>>;

impl Store {
    /// Begins an upload; its whole declared length is charged at once.
    pub async fn create_file(&self, file: &NewFile) -> Outcome<FileRecord> {
        let uploader = file.uploaded_by.as_str();
        let mut transaction = self.pool.begin().await?;
        self.hold_file_quota(&mut transaction).await?;
        let usage = sqlx::query!(
            r#"
            select
                exists (select from peer where id = $1) as "is_known!",
                (
                    select coalesce(sum(greatest(size_bytes, $2)), 0)::bigint
                    from file where uploaded_by = $1
                ) as "by_uploader!",
                (select coalesce(sum(greatest(size_bytes, $2)), 0)::bigint from file) as "in_all!"
            "#,
            uploader,
            SMALLEST_CHARGE,
        )
        .fetch_one(&mut *transaction)
        .await?;
        let wanted = file.size_bytes.max(SMALLEST_CHARGE);
        if !usage.is_known {
            return Ok(Err(FileRefusal::UnknownPeer(file.uploaded_by.clone())));
        }
        if usage.by_uploader + wanted > BYTES_PER_UPLOADER {
            return Ok(Err(FileRefusal::UploaderFull { used: usage.by_uploader, wanted }));
        }
        if usage.in_all + wanted > BYTES_IN_ALL {
            return Ok(Err(FileRefusal::GatewayFull));
        }
        let record = sqlx::query_as!(
            FileRecord,
            r#"
            insert into file (
                id, filename, size_bytes, mime_type, chunk_size, total_chunks, uploaded_by,
                created_at, declared_sha256
            )
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            returning
                id, row_id, filename, size_bytes, mime_type, chunk_size, total_chunks,
                0::bigint as "uploaded_chunks!", uploaded_by, created_at, completed_at, sha256,
                declared_sha256
            "#,
            new_file_id()?,
            file.filename,
            file.size_bytes,
            file.mime_type,
            CHUNK_SIZE as i32,
            chunks_of(file.size_bytes),
            uploader,
            self.clock.now(),
            file.declared_sha256.as_ref().map(<[u8; 32]>::as_slice),
        )
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Ok(record))
    }

    /// Lets one replica at a time judge the limits, until its transaction ends.
    pub(super) async fn hold_file_quota(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query!("select pg_advisory_xact_lock($1)", QUOTA_LOCK)
            .execute(connection)
            .await
            .map(drop)
    }

    /// A file, if `reader` may have it.
    pub async fn file(&self, id: &str, reader: FileReader<'_>) -> Outcome<FileRecord> {
        let Some(file) = self.find_file(id).await? else {
            return Ok(Err(FileRefusal::Unknown));
        };
        match reader {
            FileReader::WhoeverMay => Ok(Ok(file)),
            FileReader::Peer(peer) | FileReader::Uploader(peer)
                if peer.as_str() == file.uploaded_by =>
            {
                Ok(Ok(file))
            }
            FileReader::Uploader(peer) => Ok(Err(FileRefusal::NotAllowed(peer.clone(), "change"))),
            FileReader::Peer(peer) if self.is_file_reader(id, peer).await? => Ok(Ok(file)),
            // A file that goes takes its readers along.
            FileReader::Peer(_) if self.find_file(id).await?.is_none() => {
                Ok(Err(FileRefusal::Unknown))
            }
            FileReader::Peer(peer) => Ok(Err(FileRefusal::NotAllowed(peer.clone(), "read"))),
        }
    }

    /// Up to `limit` files that `uploader` (or anybody) has uploaded, in the order of their ids,
    /// from the first after `after`.
    pub async fn files_page(
        &self,
        uploader: Option<&PeerId>,
        after: &str,
        limit: i64,
    ) -> sqlx::Result<Vec<FileRecord>> {
        sqlx::query_as!(
            FileRecord,
            r#"
            select
                id, row_id, filename, size_bytes, mime_type, chunk_size, total_chunks,
                (select count(*) from file_chunk where file_id = file.id) as "uploaded_chunks!",
                uploaded_by, created_at, completed_at, sha256, declared_sha256
            from file
            where id > $2 and ($1::text is null or uploaded_by = $1)
            order by id
            limit $3
            "#,
            uploader.map(PeerId::as_str),
            after,
            limit,
        )
        .fetch_all(&self.pool)
        .await
    }

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

    /// Deletes a file, its chunks and its readers.
    pub async fn delete_file(&self, id: &str) -> sqlx::Result<bool> {
        let deleted =
            sqlx::query!("delete from file where id = $1", id).execute(&self.pool).await?;
        Ok(deleted.rows_affected() == 1)
    }

    /// The first of `file_ids` that `sender` may not attach to a message: unknown, unfinished, or
    /// neither uploaded by nor sent to it.
    pub async fn first_not_attachable(
        &self,
        file_ids: &[String],
        sender: &PeerId,
    ) -> sqlx::Result<Option<String>> {
        sqlx::query_scalar!(
            r#"
            select given.id as "id!"
            from unnest($1::text[]) with ordinality as given (id, place)
            where not exists (
                select from file
                where file.id = given.id and completed_at is not null and (
                    uploaded_by = $2
                    or exists (select from file_reader where file_id = file.id and peer = $2)
                )
            )
            order by given.place
            limit 1
            "#,
            file_ids,
            sender.as_str(),
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// Lets `recipients` read those of `file_ids` that `sender` itself may read. Give it the
    /// transaction that accepts the message, so that one never stands without the other.
    pub async fn grant_files(
        executor: impl PgExecutor<'_>,
        file_ids: &[String],
        sender: &PeerId,
        recipients: &[PeerId],
    ) -> sqlx::Result<()> {
        let recipients: Vec<String> = recipients.iter().map(PeerId::to_string).collect();
        sqlx::query!(
            r#"
            insert into file_reader (file_id, peer)
            select distinct file.id, recipient
            from file cross join unnest($3::text[]) as given (recipient)
            where file.id = any($1) and recipient <> uploaded_by and (
                uploaded_by = $2
                or exists (select from file_reader where file_id = file.id and peer = $2)
            )
            order by file.id, recipient
            on conflict do nothing
            "#,
            file_ids,
            sender.as_str(),
            &recipients,
        )
        .execute(executor)
        .await
        .map(drop)
    }

    /// Lets `readers` read those files of `sender`, a peer of this gateway, that it may hand on.
    pub async fn grant_own_files(
        &self,
        file_ids: &[String],
        sender: &PeerId,
        readers: &[PeerId],
    ) -> sqlx::Result<()> {
        Self::grant_files(&self.pool, file_ids, sender, readers).await
    }

    /// Deletes the files whose upload began before `before`; returns how many.
    pub async fn expire_files(&self, before: DateTime<Utc>) -> sqlx::Result<u64> {
        let mut total = 0;
        loop {
            let deleted = sqlx::query!(
                r#"
                delete from file where id = any(array(
                    select id from file where created_at < $1 limit $2 for update skip locked
                ))
                "#,
                before,
                DELETED_AT_ONCE,
            )
            .execute(&self.pool)
            .await?
            .rows_affected();
            total += deleted;
            if deleted < DELETED_AT_ONCE as u64 {
                return Ok(total);
            }
        }
    }

    /// Deletes the uploads that are unfinished and got no chunk for [`ABANDONED_AFTER`]; returns
    /// how many.
    pub async fn sweep_abandoned_files(&self, now: DateTime<Utc>) -> sqlx::Result<u64> {
        let before = now - ABANDONED_AFTER;
        let mut total = 0;
        loop {
            let deleted = sqlx::query!(
                r#"
                delete from file where id = any(array(
                    select id from file
                    where created_at < $1 and completed_at is null and not exists (
                        select from file_chunk where file_id = file.id and uploaded_at >= $1
                    ) and not exists (
                        select from remote_file where remote_file.id = file.id
                    )
                    limit $2
                    for update skip locked
                ))
                "#,
                before,
                DELETED_AT_ONCE,
            )
            .execute(&self.pool)
            .await?
            .rows_affected();
            total += deleted;
            if deleted < DELETED_AT_ONCE as u64 {
                return Ok(total);
            }
        }
    }

    pub(super) async fn find_file(&self, id: &str) -> sqlx::Result<Option<FileRecord>> {
        sqlx::query_as!(
            FileRecord,
            r#"
            select
                id, row_id, filename, size_bytes, mime_type, chunk_size, total_chunks,
                (select count(*) from file_chunk where file_id = file.id) as "uploaded_chunks!",
                uploaded_by, created_at, completed_at, sha256, declared_sha256
            from file
            where id = $1
            "#,
            id,
        )
        .fetch_optional(&self.pool)
        .await
    }

    async fn is_file_reader(&self, id: &str, peer: &PeerId) -> sqlx::Result<bool> {
        sqlx::query_scalar!(
            r#"
            select exists (select from file_reader where file_id = $1 and peer = $2) as "may!"
            "#,
            id,
            peer.as_str(),
        )
        .fetch_one(&self.pool)
        .await
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
}

fn mismatch(file: &FileRecord) -> Result<(), FileRefusal> {
    match (&file.sha256, &file.declared_sha256) {
        (Some(found), Some(declared)) if found != declared => Err(FileRefusal::Mismatched {
            found: HEXLOWER.encode(found),
            declared: HEXLOWER.encode(declared),
        }),
        _ => Ok(()),
    }
}

/// How many chunks a file of `size_bytes` has, the last perhaps short.
pub(super) fn chunks_of(size_bytes: i64) -> i32 {
    ((size_bytes + CHUNK_SIZE - 1) / CHUNK_SIZE) as i32
}

/// What a chunk is sealed to, so that it opens in its own place alone.
fn chunk_label(id: &str, index: i32) -> Vec<u8> {
    format!("file {id} chunk {index}").into_bytes()
}

fn new_file_id() -> sqlx::Result<String> {
    let mut random = [0; 16];
    SysRng.try_fill_bytes(&mut random).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    Ok(HEXLOWER.encode(&random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_but_the_last_has_the_full_length() {
        let file = file_of(2 * CHUNK_SIZE + 5);
        assert_eq!(file.total_chunks, 3);
        assert_eq!(file.chunk_length(0), Some(CHUNK_SIZE));
        assert_eq!(file.chunk_length(1), Some(CHUNK_SIZE));
        assert_eq!(file.chunk_length(2), Some(5));
        for outside in [3, -1, i64::MAX, i64::MIN] {
            assert_eq!(file.chunk_length(outside), None, "{outside}");
        }
    }

    #[test]
    fn a_file_of_whole_chunks_ends_with_a_full_one() {
        let file = file_of(LARGEST_FILE);
        assert_eq!(file.total_chunks, 1024);
        assert_eq!(file.chunk_length(1023), Some(CHUNK_SIZE));
        assert_eq!(file.chunk_length(1024), None);
    }

    #[test]
    fn a_file_is_complete_only_when_it_is_the_declared_one() {
        let mut file = file_of(1);
        assert_eq!(file.state(), FileState::Pending);
        file.uploaded_chunks = 1;
        assert_eq!(file.state(), FileState::Uploading);
        file.declared_sha256 = Some(vec![1; 32]);
        file.sha256 = Some(vec![2; 32]);
        assert_eq!(file.state(), FileState::Mismatched);
        let refusal = mismatch(&file).unwrap_err().to_string();
        assert!(refusal.contains("0202") && refusal.contains("0101"), "{refusal}");
        file.declared_sha256 = Some(vec![2; 32]);
        file.completed_at = Some(file.created_at);
        assert_eq!(file.state(), FileState::Completed);
        assert_eq!(mismatch(&file), Ok(()));
    }

    fn file_of(size_bytes: i64) -> FileRecord {
        FileRecord {
            id: "0".repeat(32),
            row_id: Uuid::nil(),
            filename: "notes.txt".to_owned(),
            size_bytes,
            mime_type: None,
            chunk_size: CHUNK_SIZE as i32,
            total_chunks: chunks_of(size_bytes),
            uploaded_chunks: 0,
            uploaded_by: "alice".to_owned(),
            created_at: DateTime::UNIX_EPOCH,
            completed_at: None,
            sha256: None,
            declared_sha256: None,
        }
    }
}
