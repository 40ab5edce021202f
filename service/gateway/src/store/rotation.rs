//! `fieldpost keys rotate`: all that the master key seals, sealed anew by its successor.

use chrono::NaiveDate;
use thiserror::Error;

use crate::{
    secrets::{DataKey, MasterKey, OpenError, SealError},
    store::{
        Store,
        identity::{IdentityError, KEY_PURPOSE},
        node_keys, partitions, phones,
    },
};

/// What a rotation did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rotated {
    /// Days whose data keys were sealed anew; their content stays as it is.
    pub days: usize,
}

/// Why nothing was rotated.
#[derive(Debug, Error)]
pub enum RotationError {
    /// The identity could not be read, or the master key is not the one in force.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The key of a day does not open; it would be lost with the old master key.
    #[error("the data key of {day} is damaged: {source}; restore it from a backup before rotating")]
    Damaged {
        /// The day.
        day: NaiveDate,
        /// Why it does not open.
        source: OpenError,
    },
    /// Something could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// There is no identity yet.
    #[error("there is no identity to rotate the keys of; start the gateway once")]
    NoIdentity,
    /// The database did not do it.
    #[error("the keys were not rotated: {0}")]
    Database(#[from] sqlx::Error),
}

impl Store {
    /// Seals by `successor` what this store's master key had sealed, and forgets the node keys, all
    /// in one transaction. The gateway id stays.
    ///
    /// A replica that still runs with the old key reads on, but can seal nothing new.
    ///
    /// # Errors
    ///
    /// Says why; then nothing has changed.
    pub async fn rotate_keys(&self, successor: &MasterKey) -> Result<Rotated, RotationError> {
        let mut transaction = self.pool.begin().await?;
        // No day may be made meanwhile: its key would be lost.
        partitions::lock(&mut transaction).await?;
        let stored = sqlx::query!(
            "select gateway_id, sealed_key, check_value from gateway_identity for update"
        )
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or(RotationError::NoIdentity)?;
        self.master_key.verify_check_value(&stored.check_value).map_err(IdentityError::from)?;
        let label = stored.gateway_id.as_bytes();
        let seed = self
            .master_key
            .open(KEY_PURPOSE, label, &stored.sealed_key)
            .map_err(IdentityError::from)?;
        let sealed = successor.seal(KEY_PURPOSE, label, &seed)?;
        sqlx::query!(
            "update gateway_identity set sealed_key = $1, check_value = $2",
            sealed,
            &successor.check_value(),
        )
        .execute(&mut *transaction)
        .await?;

        let days = sqlx::query!("select day, sealed_key from partition_key for update")
            .fetch_all(&mut *transaction)
            .await?;
        let count = days.len();
        for row in days {
            let label = partitions::label(row.day);
            let sealed = DataKey::unwrap(&self.master_key, &label, &row.sealed_key)
                .map_err(|source| RotationError::Damaged { day: row.day, source })?
                .wrap(successor, &label)?;
            sqlx::query!(
                "update partition_key set sealed_key = $2 where day = $1",
                row.day,
                sealed
            )
            .execute(&mut *transaction)
            .await?;
        }
        phones::rotate(&mut transaction, &self.master_key, successor).await?;
        node_keys::forget_all(&mut transaction).await?;
        transaction.commit().await?;
        Ok(Rotated { days: count })
    }
}
