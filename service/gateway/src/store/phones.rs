//! Phones, and the keys under which they know peers of this gateway (design, sections 4 and 5).

use std::time::Duration;

use chrono::TimeDelta;
use fieldpost_delivery::Time;
use fieldpost_envelope::PeerId;
use rand::{TryRng, rngs::SysRng};
use sqlx::PgConnection;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    secrets::{MasterKey, SealError},
    store::{Store, access::peer_id, identity::IdentityError, node_keys, rotation::RotationError},
};

/// How long a replica's word that it speaks for a peer holds.
pub const AIR_LEASE: Duration = Duration::from_secs(60);
/// Phones remembered; strangers beyond are not listed, and their keys are pinned in memory alone.
const MAX_PHONES: i64 = 10_000;
/// How long a phone that is not heard is remembered.
const PHONE_KEPT: TimeDelta = TimeDelta::days(30);
/// How long a phone that is not heard is listed.
const LISTED: TimeDelta = TimeDelta::hours(24);
const KEY_PURPOSE: &str = "air identity";

/// A peer that this replica speaks for.
pub struct AirIdentity {
    /// Its name here.
    pub peer: PeerId,
    /// Its name for people.
    pub display_name: Option<String>,
    /// What its keys are made of.
    pub seed: Zeroizing<[u8; 32]>,
}

/// A phone as it was heard.
#[derive(Clone, Debug, PartialEq)]
pub struct HeardPhone {
    /// Its name.
    pub id: PeerId,
    /// As it calls itself.
    pub nickname: String,
    /// How many links its announces cross.
    pub hops: u8,
    /// Whether it has proven its keys.
    pub verified: bool,
    /// X25519.
    pub noise_key: [u8; 32],
    /// Ed25519.
    pub signing_key: [u8; 32],
    /// When it was last heard.
    pub heard_at: Time,
}

/// A phone as it is listed.
#[derive(Clone, Debug)]
pub struct ListedPhone {
    /// What is known of it.
    pub phone: HeardPhone,
    /// When it was heard first.
    pub first_heard_at: Time,
    /// Which transports reach it now, from any replica.
    pub transports: Vec<String>,
}

impl ListedPhone {
    /// Whether some replica reaches it now.
    pub fn is_in_reach(&self) -> bool {
        !self.transports.is_empty()
    }
}

/// Which message of a phone an inbound one is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PhoneMessage {
    /// Of which phone.
    pub phone: String,
    /// To whom.
    pub peer: PeerId,
    /// As the phone calls it.
    pub message_id: String,
}

struct Row {
    id: String,
    noise_key: Vec<u8>,
    signing_key: Vec<u8>,
    nickname: String,
    hops: i16,
    verified: bool,
    first_heard_at: Time,
    heard_at: Time,
}

impl Store {
    /// Takes or renews the leases of this replica on up to `most` peers that are on the air, those
    /// who came first before others. Whoever has no keys gets some.
    ///
    /// `alone` says that there can be no other replica.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked, or a key in it does not open.
    pub async fn hold_air_identities(
        &self,
        now: Time,
        replica: Uuid,
        alone: bool,
        most: i64,
    ) -> Result<Vec<AirIdentity>, IdentityError> {
        let mut transaction = self.pool.begin().await?;
        node_keys::check_master_key(&mut transaction, &self.master_key).await?;
        let without = sqlx::query_scalar!(
            r#"
            select id from peer
            where on_air and not exists (select from air_identity a where a.peer = peer.id)
            order by created_at, id
            limit $1
            "#,
            most,
        )
        .fetch_all(&mut *transaction)
        .await?;
        for peer in without {
            let sealed = new_seed(&self.master_key, &peer)?;
            sqlx::query!(
                r#"
                insert into air_identity (peer, sealed_seed, created_at) values ($1, $2, $3)
                on conflict do nothing
                "#,
                peer,
                sealed,
                now,
            )
            .execute(&mut *transaction)
            .await?;
        }
        let rows = sqlx::query!(
            r#"
            with wanted as (
                select a.peer, p.display_name
                from peer p join air_identity a on a.peer = p.id
                where p.on_air and (a.held_by = $1 or a.held_until is null or a.held_until <= $2 or $3)
                order by p.created_at, p.id
                limit $4
                for update of a
            )
            update air_identity a set held_by = $1, held_until = $5
            from wanted w
            where a.peer = w.peer
            returning a.peer, w.display_name, a.sealed_seed
            "#,
            replica,
            now,
            alone,
            most,
            now + AIR_LEASE,
        )
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        rows.into_iter()
            .map(|row| {
                let seed = open_seed(&self.master_key, &row.peer, &row.sealed_seed)?;
                let peer = peer_id(row.peer)?;
                Ok(AirIdentity { peer, display_name: row.display_name, seed })
            })
            .collect()
    }

    /// Gives up the leases of this replica, so that another can speak for those peers at once.
    pub async fn release_air_identities(&self, replica: Uuid) -> sqlx::Result<()> {
        sqlx::query!("update air_identity set held_until = null where held_by = $1", replica)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// Notes phones that were heard. The keys of a known name are never changed.
    pub async fn note_phones(&self, phones: &[HeardPhone]) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            insert into phone as p (
                id, noise_key, signing_key, nickname, hops, verified, first_heard_at, heard_at
            )
            select id, noise_key, signing_key, nickname, hops, verified, heard_at, heard_at
            from unnest(
                $1::text[], $2::bytea[], $3::bytea[], $4::text[], $5::smallint[], $6::boolean[],
                $7::timestamptz[]
            ) as heard (id, noise_key, signing_key, nickname, hops, verified, heard_at)
            where (select count(*) from phone) < $8
               or exists (select from phone known where known.id = heard.id)
            order by id
            on conflict (id) do update
            set nickname = excluded.nickname, hops = excluded.hops,
                verified = p.verified or excluded.verified,
                heard_at = greatest(p.heard_at, excluded.heard_at)
            where (p.noise_key, p.signing_key) = (excluded.noise_key, excluded.signing_key)
            "#,
            &phones.iter().map(|phone| phone.id.to_string()).collect::<Vec<_>>(),
            &phones.iter().map(|phone| phone.noise_key.to_vec()).collect::<Vec<_>>(),
            &phones.iter().map(|phone| phone.signing_key.to_vec()).collect::<Vec<_>>(),
            &phones.iter().map(|phone| phone.nickname.replace('\0', "")).collect::<Vec<_>>(),
            &phones.iter().map(|phone| i16::from(phone.hops)).collect::<Vec<_>>(),
            &phones.iter().map(|phone| phone.verified).collect::<Vec<_>>(),
            &phones.iter().map(|phone| phone.heard_at).collect::<Vec<_>>(),
            MAX_PHONES,
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// The phones whose keys are pinned, those heard last first.
    pub async fn pinned_phones(&self, limit: i64) -> sqlx::Result<Vec<HeardPhone>> {
        let rows = sqlx::query_as!(
            Row,
            r#"
            select id, noise_key, signing_key, nickname, hops, verified, first_heard_at, heard_at
            from phone order by heard_at desc limit $1
            "#,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(|row| row.phone()).collect()
    }

    /// Up to `limit` phones heard lately, by name, from the one after `after`.
    pub async fn list_phones(
        &self,
        now: Time,
        after: &str,
        limit: i64,
    ) -> sqlx::Result<Vec<ListedPhone>> {
        let rows = sqlx::query_as!(
            Row,
            r#"
            select id, noise_key, signing_key, nickname, hops, verified, first_heard_at, heard_at
            from phone where heard_at > $1 and id > $2 order by id limit $3
            "#,
            now - LISTED,
            after,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        self.with_reach(rows).await
    }

    /// One phone, if it was ever heard.
    pub async fn phone(&self, id: &PeerId) -> sqlx::Result<Option<ListedPhone>> {
        let rows = sqlx::query_as!(
            Row,
            r#"
            select id, noise_key, signing_key, nickname, hops, verified, first_heard_at, heard_at
            from phone where id = $1
            "#,
            id.as_str(),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(self.with_reach(rows).await?.pop())
    }

    async fn with_reach(&self, rows: Vec<Row>) -> sqlx::Result<Vec<ListedPhone>> {
        let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
        let transports = match ids.is_empty() {
            true => Default::default(),
            false => self.transports_to(Some(&ids)).await?,
        };
        rows.into_iter()
            .map(|row| {
                let transports = transports.get(&row.id).cloned().unwrap_or_default();
                let first_heard_at = row.first_heard_at;
                Ok(ListedPhone { phone: row.phone()?, first_heard_at, transports })
            })
            .collect()
    }

    /// Remembers what a phone calls a message that is about to be stored.
    pub async fn note_phone_message(
        &self,
        now: Time,
        digest: &[u8; 32],
        message: &PhoneMessage,
    ) -> sqlx::Result<()> {
        sqlx::query!(
            r#"
            insert into phone_message (digest, phone, peer, phone_message_id, came_at)
            values ($1, $2, $3, $4, $5)
            on conflict do nothing
            "#,
            digest.as_slice(),
            message.phone,
            message.peer.as_str(),
            message.message_id,
            now,
        )
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// What a phone calls a message.
    pub async fn phone_message(&self, digest: &[u8; 32]) -> sqlx::Result<Option<PhoneMessage>> {
        let row = sqlx::query!(
            "select phone, peer, phone_message_id from phone_message where digest = $1",
            digest.as_slice(),
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            let peer = peer_id(row.peer)?;
            Ok(PhoneMessage { phone: row.phone, peer, message_id: row.phone_message_id })
        })
        .transpose()
    }

    /// Forgets phones that were not heard for long, and names of messages that came before
    /// `before`.
    pub async fn forget_phones(&self, now: Time, before: Time) -> sqlx::Result<()> {
        sqlx::query!("delete from phone where heard_at < $1", now - PHONE_KEPT)
            .execute(&self.pool)
            .await?;
        sqlx::query!("delete from phone_message where came_at < $1", before)
            .execute(&self.pool)
            .await
            .map(drop)
    }
}

impl Row {
    fn phone(self) -> sqlx::Result<HeardPhone> {
        let key = |bytes: Vec<u8>| {
            bytes.try_into().map_err(|_| sqlx::Error::Decode("a phone's key has 32 bytes".into()))
        };
        Ok(HeardPhone {
            id: PeerId::parse_phone(&self.id)
                .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            nickname: self.nickname,
            hops: self.hops.try_into().unwrap_or(u8::MAX),
            verified: self.verified,
            noise_key: key(self.noise_key)?,
            signing_key: key(self.signing_key)?,
            heard_at: self.heard_at,
        })
    }
}

/// Seals by `successor` what `master_key` had sealed.
pub(super) async fn rotate(
    connection: &mut PgConnection,
    master_key: &MasterKey,
    successor: &MasterKey,
) -> Result<(), RotationError> {
    let rows = sqlx::query!("select peer, sealed_seed from air_identity for update")
        .fetch_all(&mut *connection)
        .await?;
    for row in rows {
        let seed = open_seed(master_key, &row.peer, &row.sealed_seed)?;
        let sealed = successor.seal(KEY_PURPOSE, row.peer.as_bytes(), seed.as_slice())?;
        sqlx::query!("update air_identity set sealed_seed = $2 where peer = $1", row.peer, sealed)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

fn new_seed(master_key: &MasterKey, peer: &str) -> Result<Vec<u8>, SealError> {
    let mut seed = Zeroizing::new([0; 32]);
    SysRng
        .try_fill_bytes(seed.as_mut_slice())
        .map_err(|error| SealError::Random(error.to_string()))?;
    master_key.seal(KEY_PURPOSE, peer.as_bytes(), seed.as_slice())
}

fn open_seed(
    master_key: &MasterKey,
    peer: &str,
    sealed: &[u8],
) -> Result<Zeroizing<[u8; 32]>, IdentityError> {
    let opened = master_key.open(KEY_PURPOSE, peer.as_bytes(), sealed)?;
    let seed = opened.as_slice().try_into();
    let damaged = || IdentityError::DamagedNodeKey(format!("the air identity of {peer}"));
    seed.map(Zeroizing::new).map_err(|_| damaged())
}
