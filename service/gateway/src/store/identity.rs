//! Who the deployment is: made at the first start, sealed by the master key, the same for all
//! replicas.

use ed25519_dalek::SigningKey;
use fieldpost_envelope::GatewayId;
use rand::{TryRng, rngs::SysRng};
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    Identity,
    secrets::{MasterKeyError, OpenError, SealError},
    store::{Store, node_keys},
};

/// Why the deployment's identity is not known.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The database could not be asked.
    #[error("the identity cannot be read: {0}")]
    Database(#[from] sqlx::Error),
    /// The identity is sealed with another master key.
    #[error(transparent)]
    WrongMasterKey(#[from] MasterKeyError),
    /// A new identity cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The check value fits, but the key does not open.
    #[error("the gateway's signing key in the database is damaged: {0}; restore it from a backup")]
    Damaged(#[from] OpenError),
    /// The opened key is not the one of the gateway id beside it.
    #[error(
        "the gateway's signing key in the database is not that of {0}; restore it from a backup"
    )]
    Mismatch(String),
    /// A replica's key does not open, or is not the one that it is filed as.
    #[error("a {0} node key in the database is damaged; `fieldpost keys rotate` makes new ones")]
    DamagedNodeKey(String),
    /// The database belongs to another gateway already, which has peers.
    #[error(
        "this database is gateway {0}'s and has peers: an identity is imported into a new one \
         (choose another --data-dir or --database-url)"
    )]
    Taken(String),
    /// The database was exchanged while the gateway ran.
    #[error("the database was restored or exchanged while the gateway ran; restart the gateway")]
    Exchanged,
}

pub(super) const KEY_PURPOSE: &str = "gateway signing key";

impl Store {
    /// Who the deployment is.
    ///
    /// # Errors
    ///
    /// As if the database were away, until [`load_identity`](Self::load_identity) has succeeded.
    pub fn identity(&self) -> sqlx::Result<&Identity> {
        self.identity.get().ok_or(sqlx::Error::PoolTimedOut)
    }

    /// Reads the identity, and makes it if there is none. May be repeated.
    ///
    /// Replicas that start together agree on one: the first row stays.
    ///
    /// # Errors
    ///
    /// [`IdentityError::WrongMasterKey`] if the database was sealed with another key.
    pub async fn load_identity(&self) -> Result<&Identity, IdentityError> {
        let stored = match self.stored_identity().await? {
            Some(stored) => stored,
            None => {
                self.create_identity().await?;
                self.stored_identity().await?.ok_or(sqlx::Error::RowNotFound)?
            }
        };
        self.master_key.verify_check_value(&stored.check_value)?;
        let identity = self.open_identity(&stored)?;
        let known = self.identity.get_or_init(|| identity.clone());
        if known.gateway_id != identity.gateway_id || known.epoch != identity.epoch {
            return Err(IdentityError::Exchanged);
        }
        Ok(known)
    }

    async fn stored_identity(&self) -> sqlx::Result<Option<StoredIdentity>> {
        sqlx::query_as!(
            StoredIdentity,
            "select gateway_id, sealed_key, check_value, epoch from gateway_identity"
        )
        .fetch_optional(&self.pool)
        .await
    }

    async fn create_identity(&self) -> Result<(), IdentityError> {
        let mut seed = Zeroizing::new([0; 32]);
        SysRng
            .try_fill_bytes(seed.as_mut_slice())
            .map_err(|error| SealError::Random(error.to_string()))?;
        let key = SigningKey::from_bytes(&seed);
        let gateway_id = GatewayId::from(key.verifying_key()).to_string();
        let sealed_key =
            self.master_key.seal(KEY_PURPOSE, gateway_id.as_bytes(), seed.as_slice())?;
        sqlx::query!(
            r#"
            insert into gateway_identity (gateway_id, sealed_key, check_value, created_at)
            values ($1, $2, $3, $4)
            on conflict do nothing
            "#,
            gateway_id,
            sealed_key,
            &self.master_key.check_value(),
            self.clock.now(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Makes this database that of the gateway whose key is given, unless it is another's already.
    /// Tells whether anything changed.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Taken`] if the database has peers of another gateway.
    pub async fn import_identity(&self, key: &SigningKey) -> Result<bool, IdentityError> {
        let gateway_id = GatewayId::from(key.verifying_key()).to_string();
        let mut transaction = self.pool.begin().await?;
        let stored = sqlx::query!(
            r#"
            select gateway_id, exists (select from peer) as "has_peers!"
            from gateway_identity for update
            "#
        )
        .fetch_optional(&mut *transaction)
        .await?;
        match stored {
            Some(row) if row.gateway_id == gateway_id => return Ok(false),
            Some(row) if row.has_peers => return Err(IdentityError::Taken(row.gateway_id)),
            _ => {}
        }
        let sealed_key =
            self.master_key.seal(KEY_PURPOSE, gateway_id.as_bytes(), key.as_bytes().as_slice())?;
        sqlx::query!(
            r#"
            insert into gateway_identity (gateway_id, sealed_key, check_value, created_at)
            values ($1, $2, $3, $4)
            on conflict (only_row) do update set
                gateway_id = excluded.gateway_id,
                sealed_key = excluded.sealed_key,
                epoch = excluded.epoch
            "#,
            gateway_id,
            sealed_key,
            &self.master_key.check_value(),
            self.clock.now(),
        )
        .execute(&mut *transaction)
        .await?;
        node_keys::forget_all(&mut transaction).await?;
        transaction.commit().await?;
        Ok(true)
    }

    fn open_identity(&self, stored: &StoredIdentity) -> Result<Identity, IdentityError> {
        let opened =
            self.master_key.open(KEY_PURPOSE, stored.gateway_id.as_bytes(), &stored.sealed_key)?;
        let mismatch = || IdentityError::Mismatch(stored.gateway_id.clone());
        let seed = opened.as_slice().try_into().map_err(|_| mismatch())?;
        let signing_key = SigningKey::from_bytes(seed);
        let gateway_id = GatewayId::from(signing_key.verifying_key());
        if gateway_id.to_string() != stored.gateway_id {
            return Err(mismatch());
        }
        Ok(Identity { gateway_id, signing_key, epoch: stored.epoch })
    }
}

struct StoredIdentity {
    gateway_id: String,
    sealed_key: Vec<u8>,
    check_value: Vec<u8>,
    epoch: Uuid,
}
