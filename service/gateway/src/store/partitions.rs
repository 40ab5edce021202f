//! History by days: partitions made ahead, a data key for each, and their end.

use std::sync::Arc;

use chrono::{DateTime, Days, NaiveDate, Utc};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    secrets::DataKey,
    store::{Store, node_keys::check_master_key},
};

/// The tables that are cut by days.
const PARTITIONED: [&str; 3] = ["message", "delivery", "attempt"];
/// How many days ahead of now partitions are made.
const DAYS_AHEAD: u64 = 2;
/// Serializes replicas that create or drop partitions.
const PARTITION_LOCK: i64 = 0x6670_7061_7274;
/// Days whose data keys stay open in memory; a longest `ttl` and a few more.
const OPEN_KEYS: usize = 64;

impl Store {
    /// The key that seals content accepted on `day`, made together with the day's partitions if
    /// it is new.
    pub(super) async fn data_key(&self, day: NaiveDate) -> sqlx::Result<Arc<DataKey>> {
        if let Some(key) = self.open_keys.read().await.get(&day) {
            return Ok(key.clone());
        }
        let sealed = match self.sealed_key(day).await? {
            Some(sealed) => sealed,
            None => self.create_day(day).await?,
        };
        let key = DataKey::unwrap(&self.master_key, &label(day), &sealed)
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let key = Arc::new(key);
        let mut open = self.open_keys.write().await;
        if open.len() >= OPEN_KEYS {
            open.pop_first();
        }
        open.insert(day, key.clone());
        Ok(key)
    }

    /// Makes today's and the next days' partitions, so that no send has to wait for one.
    pub async fn prepare_days(&self, now: DateTime<Utc>) -> sqlx::Result<()> {
        for ahead in 0..=DAYS_AHEAD {
            self.data_key(now.date_naive() + Days::new(ahead)).await?;
        }
        Ok(())
    }

    async fn sealed_key(&self, day: NaiveDate) -> sqlx::Result<Option<Vec<u8>>> {
        sqlx::query_scalar!("select sealed_key from partition_key where day = $1", day)
            .fetch_optional(&self.pool)
            .await
    }

    async fn create_day(&self, day: NaiveDate) -> sqlx::Result<Vec<u8>> {
        let mut transaction = self.pool.begin().await?;
        lock(&mut transaction).await?;
        check_master_key(&mut transaction, &self.master_key)
            .await
            .map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        let sealed = DataKey::generate()
            .and_then(|key| key.wrap(&self.master_key, &label(day)))
            .map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        let sealed = sqlx::query_scalar!(
            r#"
            insert into partition_key (day, sealed_key) values ($1, $2)
            on conflict (day) do update set day = excluded.day
            returning sealed_key
            "#,
            day,
            sealed,
        )
        .fetch_one(&mut *transaction)
        .await?;
        for table in PARTITIONED {
            let name = partition(table, day);
            let next = day + Days::new(1);
            // Names and dates are ours; data definition takes no parameters.
            let statement = format!(
                "create table if not exists {name} partition of {table} \
                 for values from ('{day} 00:00:00+00') to ('{next} 00:00:00+00')"
            );
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(sealed)
    }

    /// Drops whole days accepted before `before`, with their data keys; a day in which something
    /// is still owed stays. Returns how many days went.
    pub async fn drop_days(&self, before: DateTime<Utc>) -> sqlx::Result<usize> {
        let days = sqlx::query_scalar!(
            r#"
            select day from partition_key
            where day < $1
              and not exists (
                  select from inbox
                  where inbox.accepted_at >= day::timestamp at time zone 'utc'
                    and inbox.accepted_at < (day + 1)::timestamp at time zone 'utc'
              )
              and not exists (
                  select from outbox
                  where outbox.accepted_at >= day::timestamp at time zone 'utc'
                    and outbox.accepted_at < (day + 1)::timestamp at time zone 'utc'
              )
              and not exists (
                  select from inbound
                  where release_at is not null
                    and inbound.accepted_at >= day::timestamp at time zone 'utc'
                    and inbound.accepted_at < (day + 1)::timestamp at time zone 'utc'
              )
              and not exists (
                  select from file
                  where file.created_at >= day::timestamp at time zone 'utc'
                    and file.created_at < (day + 1)::timestamp at time zone 'utc'
              )
            order by day
            "#,
            before.date_naive(),
        )
        .fetch_all(&self.pool)
        .await?;
        for day in &days {
            let mut transaction = self.pool.begin().await?;
            lock(&mut transaction).await?;
            for table in PARTITIONED {
                let statement = format!("drop table if exists {}", partition(table, *day));
                sqlx::query(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
            }
            sqlx::query!("delete from partition_key where day = $1", day)
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
            self.open_keys.write().await.remove(day);
        }
        Ok(days.len())
    }

    /// Forgets the names of messages accepted before `before`, up to `limit` of each kind; until
    /// then the same message is known when it comes again.
    pub async fn forget_keys(&self, before: DateTime<Utc>, limit: i64) -> sqlx::Result<u64> {
        let keys = sqlx::query!(
            r#"
            delete from message_key where ctid = any(array(
                select ctid from message_key where accepted_at < $1 limit $2
            ))
            "#,
            before,
            limit,
        )
        .execute(&self.pool)
        .await?;
        let inbound = sqlx::query!(
            r#"
            delete from inbound where ctid = any(array(
                select ctid from inbound
                where accepted_at < $1 and release_at is null limit $2
            ))
            "#,
            before,
            limit,
        )
        .execute(&self.pool)
        .await?;
        let envelopes = sqlx::query!(
            r#"
            delete from envelope where ctid = any(array(
                select ctid from envelope where accepted_at < $1 limit $2
            ))
            "#,
            before,
            limit,
        )
        .execute(&self.pool)
        .await?;
        Ok(keys.rows_affected() + inbound.rows_affected() + envelopes.rows_affected())
    }
}

pub(super) async fn lock(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("select pg_advisory_xact_lock($1)", PARTITION_LOCK)
        .execute(connection)
        .await
        .map(drop)
}

fn partition(table: &str, day: NaiveDate) -> String {
    format!("{table}_{}", day.format("%Y%m%d"))
}

pub(super) fn label(day: NaiveDate) -> String {
    format!("partition {day}")
}
