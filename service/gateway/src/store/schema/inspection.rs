//! What `fieldpost doctor` asks of a database, without changing it.

use super::{BEAT_TIMEOUT, ReachError, Schema, Watch, applied, bounded, is_undefined_table};

/// A Postgres server as it describes itself.
#[derive(Clone, Debug)]
pub struct Server {
    /// Such as `17.2 (Debian 17.2-1)`.
    pub version: String,
    /// Such as 170002.
    pub version_number: i32,
    /// A standby, which takes no writes.
    pub in_recovery: bool,
    /// How many connections it accepts.
    pub max_connections: i32,
    /// Whom commits wait for, in Postgres's notation; empty if for nobody.
    pub synchronous_standbys: String,
    /// How many standbys are connected, if we may know.
    pub standbys: i64,
}

impl Watch {
    /// What the server says of itself.
    ///
    /// # Errors
    ///
    /// Says why the database cannot be reached any more.
    pub async fn server(&mut self) -> Result<Server, ReachError> {
        bounded(BEAT_TIMEOUT, async {
            let server = sqlx::query_as!(
                Server,
                r#"
                select
                    current_setting('server_version') as "version!",
                    current_setting('server_version_num')::int as "version_number!",
                    pg_is_in_recovery() as "in_recovery!",
                    current_setting('max_connections')::int as "max_connections!",
                    current_setting('synchronous_standby_names') as "synchronous_standbys!",
                    (select count(*) from pg_stat_replication) as "standbys!"
                "#
            )
            .fetch_one(&mut self.connection)
            .await?;
            Ok(server)
        })
        .await
    }

    /// How the schema relates to this program; `None` if the next start will migrate it.
    ///
    /// # Errors
    ///
    /// [`ReachError::OtherSchema`] if it is not ours, or why the database cannot be reached.
    pub async fn schema(&mut self) -> Result<Option<Schema>, ReachError> {
        bounded(BEAT_TIMEOUT, applied(&mut self.connection)).await
    }

    /// What a master key is checked against; `None` before the first start on this database.
    ///
    /// # Errors
    ///
    /// Says why the database cannot be reached any more.
    pub async fn master_key_check(&mut self) -> Result<Option<Vec<u8>>, ReachError> {
        bounded(BEAT_TIMEOUT, async {
            let stored = sqlx::query_scalar!("select check_value from gateway_identity")
                .fetch_optional(&mut self.connection)
                .await;
            match stored {
                Err(error) if is_undefined_table(&error) => Ok(None),
                other => Ok(other?),
            }
        })
        .await
    }
}
