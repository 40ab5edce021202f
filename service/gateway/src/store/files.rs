//! Files: what they are, how an upload begins, and the limits (design, sections 6 and 12).

mod chunks;
mod expiry;
mod readers;

use chrono::{DateTime, TimeDelta, Utc};
use data_encoding::HEXLOWER;
use fieldpost_envelope::PeerId;
use rand::{TryRng, rngs::SysRng};
use sqlx::PgConnection;
use thiserror::Error;
use uuid::Uuid;

pub use self::{chunks::ChunkRecord, readers::FileReader};
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

    /// Deletes a file, its chunks and its readers.
    pub async fn delete_file(&self, id: &str) -> sqlx::Result<bool> {
        let deleted =
            sqlx::query!("delete from file where id = $1", id).execute(&self.pool).await?;
        Ok(deleted.rows_affected() == 1)
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
