//! Who may have a file: its uploader, and those who got a message that carries it.

use fieldpost_envelope::PeerId;
use sqlx::PgExecutor;

use super::{FileRecord, FileRefusal, Outcome};
use crate::store::Store;

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

impl Store {
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
}
