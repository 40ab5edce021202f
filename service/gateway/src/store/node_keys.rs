//! Keys of replicas: each holds its own under a lease, and finds it again after a restart (design,
//! section 4).

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use ed25519_dalek::SigningKey;
use rand::{TryRng, rngs::SysRng};
use sqlx::PgConnection;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    secrets::{MasterKey, SealError},
    store::{Store, identity::IdentityError},
};

/// How long a replica's word that it holds a key is good; longer than an ordinary outage of the
/// database, so that nobody takes the key of a replica that still runs.
pub const NODE_KEY_LEASE: Duration = Duration::from_secs(600);
/// A key that nobody has held for so long is forgotten.
const FORGOTTEN_AFTER: TimeDelta = TimeDelta::days(7);
const KEY_PURPOSE: &str = "node key";

impl Store {
    /// The node key of this replica for `purpose`: the one that it holds, one that nobody holds, or a new
    /// one. What was held at the same place goes before others.
    ///
    /// A key whose lease still runs is taken over if its holder is certainly dead: it was at this
    /// replica's own `place`, where no two run at once, and the lock by which it showed that it lives
    /// is free (`Watch::show_life_of`). `alone` says that there can be no other replica at all.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked, or a key in it does not open.
    pub async fn hold_node_key(
        &self,
        now: DateTime<Utc>,
        purpose: &str,
        replica: Uuid,
        place: &str,
        alone: bool,
    ) -> Result<SigningKey, IdentityError> {
        let mut transaction = self.pool.begin().await?;
        check_master_key(&mut transaction, &self.master_key).await?;
        sqlx::query!("delete from node_key where held_until < $1", now - FORGOTTEN_AFTER)
            .execute(&mut *transaction)
            .await?;
        let free = sqlx::query!(
            r#"
            select node, sealed_seed from node_key
            where purpose = $1 and (
                held_by = $4 or held_until <= $2 or $3
                or case when place = $5 and placed_by = held_by then
                    pg_try_advisory_xact_lock(hashtextextended('fieldpost replica ' || held_by, 0))
                end
            )
            order by held_by = $4 desc, place = $5 desc nulls last, created_at
            limit 1
            for update skip locked
            "#,
            purpose,
            now,
            alone,
            replica,
            place,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let until = now + NODE_KEY_LEASE;
        let key = match free {
            Some(row) => {
                let key = self.open_node_key(purpose, &row.node, &row.sealed_seed)?;
                sqlx::query!(
                    r#"
                    update node_key
                    set held_by = $3, held_until = $4, place = $5, placed_by = $3
                    where purpose = $1 and node = $2
                    "#,
                    purpose,
                    row.node,
                    replica,
                    until,
                    place,
                )
                .execute(&mut *transaction)
                .await?;
                key
            }
            None => {
                let (key, sealed) = self.make_node_key(purpose)?;
                let node = key.verifying_key().to_bytes();
                sqlx::query!(
                    r#"
                    insert into node_key (
                        purpose, node, sealed_seed, created_at, held_by, held_until, place, placed_by
                    )
                    values ($1, $2, $3, $4, $5, $6, $7, $5)
                    "#,
                    purpose,
                    node.as_slice(),
                    sealed,
                    now,
                    replica,
                    until,
                    place,
                )
                .execute(&mut *transaction)
                .await?;
                key
            }
        };
        transaction.commit().await?;
        Ok(key)
    }

    /// Whether a replica seems to live at `place` other than `replica`, and holds a key for `purpose`.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked.
    pub async fn is_place_taken(
        &self,
        now: DateTime<Utc>,
        purpose: &str,
        replica: Uuid,
        place: &str,
    ) -> sqlx::Result<bool> {
        sqlx::query_scalar!(
            r#"
            select exists (
                select from node_key
                where purpose = $1 and held_until > $2 and case
                    when place = $4 and placed_by = held_by and held_by <> $3 then
                        not pg_try_advisory_xact_lock(
                            hashtextextended('fieldpost replica ' || held_by, 0)
                        )
                end
            ) as "is_taken!"
            "#,
            purpose,
            now,
            replica,
            place,
        )
        .fetch_one(&self.pool)
        .await
    }

    /// Renews the lease of this replica's key for `purpose`; false if that is no longer its own.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked.
    pub async fn renew_node_key(
        &self,
        now: DateTime<Utc>,
        purpose: &str,
        replica: Uuid,
    ) -> sqlx::Result<bool> {
        self.move_lease(purpose, replica, now + NODE_KEY_LEASE).await
    }

    /// Whether a node key is one of a replica on this database, of now or of the last days.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked.
    pub async fn is_own_node(&self, purpose: &str, node: [u8; 32]) -> sqlx::Result<bool> {
        sqlx::query_scalar!(
            r#"select exists (select from node_key where purpose = $1 and node = $2) as "is_own!""#,
            purpose,
            node.as_slice(),
        )
        .fetch_one(&self.pool)
        .await
    }

    /// Gives up this replica's key for `purpose`, so that the next to start takes it over.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked; the lease then ends by itself.
    pub async fn release_node_key(
        &self,
        now: DateTime<Utc>,
        purpose: &str,
        replica: Uuid,
    ) -> sqlx::Result<()> {
        self.move_lease(purpose, replica, now).await.map(drop)
    }

    async fn move_lease(
        &self,
        purpose: &str,
        replica: Uuid,
        until: DateTime<Utc>,
    ) -> sqlx::Result<bool> {
        sqlx::query!(
            "update node_key set held_until = $3 where purpose = $1 and held_by = $2",
            purpose,
            replica,
            until
        )
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected() > 0)
    }

    fn open_node_key(
        &self,
        purpose: &str,
        node: &[u8],
        sealed: &[u8],
    ) -> Result<SigningKey, IdentityError> {
        let opened = self.master_key.open(KEY_PURPOSE, &label(purpose, node), sealed)?;
        let damaged = || IdentityError::DamagedNodeKey(purpose.to_owned());
        let seed = opened.as_slice().try_into().map_err(|_| damaged())?;
        let key = SigningKey::from_bytes(seed);
        if key.verifying_key().as_bytes() != node {
            return Err(damaged());
        }
        Ok(key)
    }

    fn make_node_key(&self, purpose: &str) -> Result<(SigningKey, Vec<u8>), SealError> {
        let mut seed = Zeroizing::new([0; 32]);
        SysRng
            .try_fill_bytes(seed.as_mut_slice())
            .map_err(|error| SealError::Random(error.to_string()))?;
        let key = SigningKey::from_bytes(&seed);
        let node = key.verifying_key().to_bytes();
        let sealed = self.master_key.seal(KEY_PURPOSE, &label(purpose, &node), seed.as_slice())?;
        Ok((key, sealed))
    }
}

/// Forgets all node keys, so that every replica makes new ones at its next start.
pub(super) async fn forget_all(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("delete from node_key").execute(connection).await.map(drop)
}

/// Refuses to seal anything under a master key that was rotated away while this process ran.
///
/// Holds off a rotation until the transaction ends.
pub(super) async fn check_master_key(
    connection: &mut PgConnection,
    master_key: &MasterKey,
) -> Result<(), IdentityError> {
    let stored = sqlx::query_scalar!("select check_value from gateway_identity for share")
        .fetch_optional(connection)
        .await?;
    match stored {
        Some(stored) => master_key.verify_check_value(&stored).map_err(IdentityError::from),
        None => Ok(()),
    }
}

fn label(purpose: &str, node: &[u8]) -> Vec<u8> {
    [purpose.as_bytes(), b"\0", node].concat()
}
