//! Files that are fetched from other gateways, and files that other gateways may fetch here
//! (design, section 6).
//!
//! A file from elsewhere gets an id of this gateway, made of the gateway that it is fetched from and
//! its id there, so that it can be read, attached and handed on like any other.

use chrono::{DateTime, TimeDelta, Utc};
use data_encoding::HEXLOWER;
use fieldpost_envelope::{AnonymityLevel, GatewayId, PeerId};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use crate::store::{
    Store,
    files::{BYTES_IN_ALL, BYTES_PER_UPLOADER, CHUNK_SIZE, FileRecord, SMALLEST_CHARGE},
    words,
};

/// Files of one other gateway that may wait to be fetched.
pub const WAITING_PER_GATEWAY: i64 = 1000;
/// Files of all other gateways that may wait to be fetched.
pub const WAITING_IN_ALL: i64 = 10_000;

/// A file that came with a message from another gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteFile {
    /// Its id here.
    pub id: String,
    /// The gateway that it is fetched from: the sender's, or the home of the group.
    pub gateway: GatewayId,
    /// Its id there.
    pub file: String,
    /// Who sent it.
    pub sender: String,
    /// The level of the message that carried it.
    pub level: AnonymityLevel,
}

impl RemoteFile {
    /// A file that is known to `gateway` as `file`.
    pub fn new(gateway: GatewayId, file: &str, sender: String, level: AnonymityLevel) -> Self {
        let id = remote_file_id(gateway, file);
        Self { id, gateway, file: file.to_owned(), sender, level }
    }
}

/// The id by which this gateway, like any other, knows what `gateway` calls `file`.
pub fn remote_file_id(gateway: GatewayId, file: &str) -> String {
    let digest = Sha256::new()
        .chain_update(b"fieldpost-remote-file-v1")
        .chain_update(gateway.as_bytes())
        .chain_update(file.as_bytes())
        .finalize();
    HEXLOWER.encode(&digest[..16])
}

/// How the fetching of a file goes.
#[derive(Clone, Debug)]
pub struct RemoteFileRecord {
    /// Its id here.
    pub id: String,
    /// The gateway that it is fetched from.
    pub gateway: String,
    /// Its id there.
    pub file: String,
    /// Who sent it.
    pub sender: String,
    /// `waiting`, `complete` or `failed`.
    pub state: String,
    /// Why it failed, or did not come at the last attempt.
    pub reason: Option<String>,
    /// How often it has been tried since something came of it.
    pub attempts: i32,
    /// When it came to be known.
    pub created_at: DateTime<Utc>,
}

/// The right to fetch one file until a time.
#[derive(Clone, Debug)]
pub struct FileClaim {
    /// Its id here.
    pub id: String,
    /// The gateway that has it.
    pub gateway: GatewayId,
    /// Its id there.
    pub file: String,
    /// Who sent it.
    pub sender: String,
    /// What nothing that fetches it may be below.
    pub level: AnonymityLevel,
    /// How often it has been tried since something came of it, this time included.
    pub attempt: u32,
}

/// What another gateway says of a file that it is about to give.
#[derive(Clone, Debug)]
pub struct Described<'a> {
    /// What it is called.
    pub filename: &'a str,
    /// What it is said to be.
    pub mime_type: Option<&'a str>,
    /// Its length.
    pub size_bytes: i64,
    /// What its bytes have to hash to.
    pub sha256: [u8; 32],
}

/// Whether a file from elsewhere can be kept.
#[derive(Clone, Debug)]
pub enum Begun {
    /// Its chunks may come.
    Ready(Box<FileRecord>),
    /// There is no room now.
    Full,
    /// It is not the file that was begun.
    Changed,
    /// Nobody wants it any more.
    Unwanted,
}

/// What another gateway may have of a file.
#[derive(Clone, Debug)]
pub enum Grant {
    /// All of it, over nothing less than this level.
    Granted(Box<FileRecord>, AnonymityLevel),
    /// It has still to come here itself.
    NotYet,
    /// It was there, and is not any more.
    Gone,
    /// No message to one of that gateway's peers carried it.
    NotGranted,
}

impl Store {
    /// How many files of `gateway`, and of all others, wait to be fetched.
    pub async fn waiting_files(&self, gateway: GatewayId) -> sqlx::Result<(i64, i64)> {
        let counts = sqlx::query!(
            r#"
            select count(*) filter (where gateway = $1) as "of_one!", count(*) as "of_all!"
            from remote_file where state = 'waiting'
            "#,
            gateway.to_string(),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((counts.of_one, counts.of_all))
    }

    /// Takes up files that come with a message to `readers`.
    pub async fn await_files(&self, files: &[RemoteFile], readers: &[PeerId]) -> sqlx::Result<()> {
        let mut transaction = self.pool.begin().await?;
        for file in files {
            Self::await_file(&mut transaction, file, readers, self.clock.now()).await?;
        }
        transaction.commit().await
    }

    /// The message that carried files was not taken: `reader` has nothing to do with them.
    pub async fn forget_reader(&self, files: &[RemoteFile], reader: &PeerId) -> sqlx::Result<()> {
        let ids: Vec<String> = files.iter().map(|file| file.id.clone()).collect();
        sqlx::query!(
            r#"
            with forgotten as (
                delete from remote_file_reader where file_id = any($1) and peer = $2
            ), no_longer as (
                delete from file_reader where file_id = any($1) and peer = $2
            )
            delete from remote_file f
            where id = any($1) and state = 'waiting' and not exists (
                select from remote_file_reader r where r.file_id = f.id and r.peer <> $2
            )
            "#,
            &ids,
            reader.as_str(),
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    pub(super) async fn await_file(
        connection: &mut PgConnection,
        file: &RemoteFile,
        readers: &[PeerId],
        now: DateTime<Utc>,
    ) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            insert into remote_file (id, gateway, file, sender, level, next_attempt_at, created_at)
            values ($1, $2, $3, $4, $5, $6, $6)
            on conflict (id) do update
            set level = least(remote_file.level, excluded.level),
                state = case when remote_file.state = 'failed' then 'waiting' else remote_file.state end,
                attempts = case when remote_file.state = 'failed' then 0 else remote_file.attempts end,
                next_attempt_at = case when remote_file.state = 'failed' then $6
                                       else remote_file.next_attempt_at end,
                created_at = case when remote_file.state = 'complete' then remote_file.created_at
                                  else $6 end
            "#,
            file.id,
            file.gateway.to_string(),
            file.file,
            file.sender,
            words::level_number(file.level),
            now,
        )
        .execute(&mut *connection)
        .await?;
        let readers: Vec<String> = readers.iter().map(ToString::to_string).collect();
        let files = std::slice::from_ref(&file.id);
        Self::hand_on_files(connection, now, files, 0, &readers, &[]).await
    }

    /// Lets peers of this gateway read files, and other gateways fetch them.
    pub(super) async fn hand_on_files(
        connection: &mut PgConnection,
        now: DateTime<Utc>,
        file_ids: &[String],
        level: i16,
        readers: &[String],
        gateways: &[String],
    ) -> sqlx::Result<()> {
        if file_ids.is_empty() {
            return Ok(());
        }
        // Whoever makes the row of `file` holds this one, and looks for readers after.
        sqlx::query!(
            r#"
            with held as materialized (
                select id from remote_file where id = any($1) order by id for update
            ), awaited as (
                insert into remote_file_reader (file_id, peer)
                select held.id, reader.peer from held cross join unnest($2::text[]) as reader (peer)
                on conflict do nothing
            )
            insert into file_reader (file_id, peer)
            select file.id, reader.peer
            from held join file on file.id = held.id
            cross join unnest($2::text[]) as reader (peer)
            on conflict do nothing
            "#,
            file_ids,
            readers,
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query!(
            r#"
            insert into file_gateway (file_id, gateway, level, granted_at)
            select distinct file_id, gateway, $3::smallint, $4::timestamptz
            from unnest($1::text[]) as file (file_id)
            cross join unnest($2::text[]) as other (gateway)
            order by file_id, gateway
            on conflict (file_id, gateway) do update
            set level = least(file_gateway.level, excluded.level), granted_at = excluded.granted_at
            "#,
            file_ids,
            gateways,
            level,
            now,
        )
        .execute(connection)
        .await
        .map(drop)
    }

    /// Claims up to `limit` files that are due; `reach` says up to which level each gateway can be
    /// reached now.
    pub async fn claim_files(
        &self,
        now: DateTime<Utc>,
        lease: TimeDelta,
        reach: &[(String, AnonymityLevel)],
        limit: i64,
    ) -> sqlx::Result<Vec<FileClaim>> {
        let (gateways, levels): (Vec<String>, Vec<i16>) =
            reach.iter().map(|(name, level)| (name.clone(), words::level_number(*level))).unzip();
        let rows = sqlx::query!(
            r#"
            with due as (
                select f.id from remote_file f
                join unnest($3::text[], $4::smallint[]) as reach (gateway, level)
                    on reach.gateway = f.gateway and f.level <= reach.level
                where f.state = 'waiting' and f.next_attempt_at <= $1
                order by f.next_attempt_at
                limit $5
                for update of f skip locked
            )
            update remote_file f
            set next_attempt_at = $2, attempts = f.attempts + 1
            from due where f.id = due.id
            returning f.id, f.gateway, f.file, f.sender, f.level, f.attempts
            "#,
            now,
            now + lease,
            &gateways,
            &levels,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                Ok(FileClaim {
                    id: row.id,
                    gateway: words::parse(&row.gateway)?,
                    file: row.file,
                    sender: row.sender,
                    level: words::level(row.level)?,
                    attempt: row.attempts.unsigned_abs(),
                })
            })
            .collect()
    }

    /// When the next file is due, wherever it is.
    pub async fn next_file_due(&self) -> sqlx::Result<Option<DateTime<Utc>>> {
        sqlx::query_scalar!("select min(next_attempt_at) from remote_file where state = 'waiting'")
            .fetch_one(&self.pool)
            .await
    }

    /// Keeps a claim until then, or gives it up until then. With `progress` the attempts before
    /// count no longer.
    pub async fn hold_file(
        &self,
        id: &str,
        until: DateTime<Utc>,
        progress: bool,
        reason: Option<&str>,
    ) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            update remote_file
            set next_attempt_at = $2, reason = $4, attempts = case when $3 then 0 else attempts end
            where id = $1 and state = 'waiting'
            "#,
            id,
            until,
            progress,
            reason,
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// The file is here.
    pub async fn file_came(&self, id: &str) -> sqlx::Result<()> {
        sqlx::query!("update remote_file set state = 'complete', reason = null where id = $1", id,)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// The file will not come; what is here of it goes.
    pub async fn give_file_up(&self, id: &str, reason: &str) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            with gone as (
                delete from file where id = $1
            )
            update remote_file set state = 'failed', reason = $2 where id = $1
            "#,
            id,
            reason,
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// Makes room for a file that another gateway is about to give, or goes on with it.
    pub async fn begin_remote_file(
        &self,
        claim: &FileClaim,
        described: &Described<'_>,
    ) -> sqlx::Result<Begun> {
        let mut transaction = self.pool.begin().await?;
        self.hold_file_quota(&mut transaction).await?;
        let wanted = sqlx::query_scalar!(
            "select id from remote_file where id = $1 and state = 'waiting' for update",
            claim.id,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        if wanted.is_none() {
            return Ok(Begun::Unwanted);
        }
        if let Some(file) = self.find_file(&claim.id).await? {
            let is_same = file.size_bytes == described.size_bytes
                && file.declared_sha256.as_deref() == Some(&described.sha256);
            return Ok(if is_same { Begun::Ready(Box::new(file)) } else { Begun::Changed });
        }
        let usage = sqlx::query!(
            r#"
            select
                (
                    select coalesce(sum(greatest(size_bytes, $2)), 0)::bigint
                    from file where uploaded_by = $1
                ) as "by_sender!",
                (select coalesce(sum(greatest(size_bytes, $2)), 0)::bigint from file) as "in_all!"
            "#,
            claim.sender,
            SMALLEST_CHARGE,
        )
        .fetch_one(&mut *transaction)
        .await?;
        let size = described.size_bytes.max(SMALLEST_CHARGE);
        if usage.by_sender + size > BYTES_PER_UPLOADER || usage.in_all + size > BYTES_IN_ALL {
            return Ok(Begun::Full);
        }
        sqlx::query!(
            r#"
            insert into file (
                id, filename, size_bytes, mime_type, chunk_size, total_chunks, uploaded_by,
                created_at, declared_sha256
            )
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            "#,
            claim.id,
            described.filename,
            described.size_bytes,
            described.mime_type,
            CHUNK_SIZE as i32,
            super::files::chunks_of(described.size_bytes),
            claim.sender,
            self.clock.now(),
            described.sha256.as_slice(),
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            r#"
            insert into file_reader (file_id, peer)
            select file_id, peer from remote_file_reader where file_id = $1
            on conflict do nothing
            "#,
            claim.id,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(self
            .find_file(&claim.id)
            .await?
            .map_or(Begun::Unwanted, |file| Begun::Ready(Box::new(file))))
    }

    /// How the fetching of a file goes, if it is one from elsewhere.
    pub async fn remote_file(&self, id: &str) -> sqlx::Result<Option<RemoteFileRecord>> {
        sqlx::query_as!(
            RemoteFileRecord,
            r#"
            select id, gateway, file, sender, state, reason, attempts, created_at
            from remote_file where id = $1
            "#,
            id,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// Whether a message that carries a file from elsewhere was for `peer`.
    pub async fn awaits_file(&self, id: &str, peer: &PeerId) -> sqlx::Result<bool> {
        sqlx::query_scalar!(
            r#"
            select exists (
                select from remote_file_reader where file_id = $1 and peer = $2
            ) as "may!"
            "#,
            id,
            peer.as_str(),
        )
        .fetch_one(&self.pool)
        .await
    }

    /// What `gateway` may have of a file.
    pub async fn file_grant(&self, id: &str, gateway: GatewayId) -> sqlx::Result<Grant> {
        let granted = sqlx::query_scalar!(
            "select level from file_gateway where file_id = $1 and gateway = $2",
            id,
            gateway.to_string(),
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(level) = granted else { return Ok(Grant::NotGranted) };
        Ok(match self.find_file(id).await? {
            Some(file) if file.completed_at.is_some() => {
                Grant::Granted(Box::new(file), words::level(level)?)
            }
            Some(_) => Grant::NotYet,
            None => match self.remote_file(id).await? {
                Some(awaited) if awaited.state == "waiting" => Grant::NotYet,
                _ => Grant::Gone,
            },
        })
    }

    /// Forgets files that were sent before `before`, and who may fetch what; returns how many.
    pub async fn forget_remote_files(&self, before: DateTime<Utc>) -> sqlx::Result<u64> {
        let grants = sqlx::query!("delete from file_gateway where granted_at < $1", before)
            .execute(&self.pool)
            .await?;
        let files = sqlx::query!("delete from remote_file where created_at < $1", before)
            .execute(&self.pool)
            .await?;
        Ok(grants.rows_affected() + files.rows_affected())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_another_id_for_each_gateway_that_names_it() {
        let gateway = |byte| GatewayId::from_bytes([byte; 32]);
        let id = remote_file_id(gateway(1), "0f");
        assert_eq!(id.len(), 32);
        assert_eq!(id, remote_file_id(gateway(1), "0f"));
        assert_ne!(id, remote_file_id(gateway(2), "0f"));
        assert_ne!(id, remote_file_id(gateway(1), "0e"));
    }
}
