//! The end of files: when they are too old, and when their upload was given up.

use std::future::Future;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgQueryResult;

use super::ABANDONED_AFTER;
use crate::store::Store;

/// How many files one statement deletes; with their chunks that may be as many GiB.
const DELETED_AT_ONCE: i64 = 16;

impl Store {
    /// Deletes the files whose upload began before `before`; returns how many.
    pub async fn expire_files(&self, before: DateTime<Utc>) -> sqlx::Result<u64> {
        until_none_is_left(|| {
            sqlx::query!(
                r#"
                delete from file where id = any(array(
                    select id from file where created_at < $1 limit $2 for update skip locked
                ))
                "#,
                before,
                DELETED_AT_ONCE,
            )
            .execute(&self.pool)
        })
        .await
    }

    /// Deletes the uploads that are unfinished and got no chunk for [`ABANDONED_AFTER`]; returns
    /// how many.
    pub async fn sweep_abandoned_files(&self, now: DateTime<Utc>) -> sqlx::Result<u64> {
        let before = now - ABANDONED_AFTER;
        until_none_is_left(|| {
            sqlx::query!(
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
        })
        .await
    }
}

/// Deletes [`DELETED_AT_ONCE`] at a time; returns how many went.
async fn until_none_is_left<F: Future<Output = sqlx::Result<PgQueryResult>>>(
    mut delete: impl FnMut() -> F,
) -> sqlx::Result<u64> {
    let mut total = 0;
    loop {
        let deleted = delete().await?.rows_affected();
        total += deleted;
        if deleted < DELETED_AT_ONCE as u64 {
            return Ok(total);
        }
    }
}
