//! What the BetaNet surface keeps: its clients, what it handed out to them, and an inventory of
//! relays to come.

use chrono::{DateTime, Utc};
use fieldpost_delivery::Seq;
use fieldpost_envelope::{MessageId, PeerAddress, PeerId};
use uuid::Uuid;

use crate::store::{Store, words};

/// The most relays in the inventory.
pub const MAX_NODES: i64 = 1000;

/// What an operator says of a relay.
#[derive(Clone, Debug)]
pub struct NodeRecord {
    /// Its id.
    pub id: Uuid,
    /// `mixnode`, `gateway` or `client`.
    pub node_type: String,
    /// Where it is to stand.
    pub region: Option<String>,
    /// What people call it.
    pub name: Option<String>,
    /// `active`, `inactive` or `maintenance`, as the operator set it.
    pub status: String,
    /// When it was entered.
    pub created_at: DateTime<Utc>,
}

/// A relay to be entered in the inventory.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// See [`NodeRecord`].
    pub node_type: String,
    /// See [`NodeRecord`].
    pub region: Option<String>,
    /// See [`NodeRecord`].
    pub name: Option<String>,
}

/// What is to change about a relay; `None` leaves things as they are.
#[derive(Clone, Debug, Default)]
pub struct NodeChange {
    /// See [`NodeRecord`].
    pub region: Option<String>,
    /// See [`NodeRecord`].
    pub name: Option<String>,
    /// See [`NodeRecord`].
    pub status: Option<String>,
}

/// What a client was handed out last and has not yet confirmed by its next call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Handout {
    /// The message.
    pub message_id: MessageId,
    /// Its sender.
    pub sender: PeerAddress,
    /// Its position in the peer's inbox.
    pub seq: Seq,
    /// How often it was offered.
    pub offers: i32,
    /// When it was offered last.
    pub offered_at: DateTime<Utc>,
}

impl Store {
    /// Enters a client that registered, or registers again; whether it is new.
    pub async fn enter_betanet_client(
        &self,
        peer: &PeerId,
        device_name: Option<&str>,
        can_relay: bool,
    ) -> sqlx::Result<bool> {
        sqlx::query_scalar!(
            r#"
            insert into betanet_client (peer, device_name, can_relay, created_at)
            values ($1, $2, $3, $4)
            on conflict (peer) do update
                set device_name = excluded.device_name, can_relay = excluded.can_relay
            returning created_at = $4 as "new!"
            "#,
            peer.as_str(),
            device_name,
            can_relay,
            self.clock.now(),
        )
        .fetch_one(&self.pool)
        .await
    }

    /// Forgets a client; false if there was none. The peer stays registered.
    pub async fn remove_betanet_client(&self, peer: &PeerId) -> sqlx::Result<bool> {
        let removed = sqlx::query!("delete from betanet_client where peer = $1", peer.as_str())
            .execute(&self.pool)
            .await?;
        Ok(removed.rows_affected() == 1)
    }

    /// What `peer` was handed out last.
    pub async fn handout(&self, peer: &PeerId) -> sqlx::Result<Option<Handout>> {
        sqlx::query!(
            r#"
            select message_id, sender, seq, offers, offered_at from betanet_handout
            where peer = $1
            "#,
            peer.as_str(),
        )
        .fetch_optional(&self.pool)
        .await?
        .map(|row| {
            Ok(Handout {
                message_id: MessageId(row.message_id),
                sender: words::parse(&row.sender)?,
                seq: row.seq,
                offers: row.offers,
                offered_at: row.offered_at,
            })
        })
        .transpose()
    }

    /// Puts `new` in the place of `old`; false if another call was faster.
    pub async fn replace_handout(
        &self,
        peer: &PeerId,
        old: Option<&Handout>,
        new: Option<&Handout>,
    ) -> sqlx::Result<bool> {
        let changed =
            match (old, new) {
                (None, None) => return Ok(true),
                (None, Some(new)) => {
                    sqlx::query!(
                        r#"
                    insert into betanet_handout (peer, message_id, sender, seq, offers, offered_at)
                    values ($1, $2, $3, $4, $5, $6)
                    on conflict do nothing
                    "#,
                        peer.as_str(),
                        new.message_id.0,
                        new.sender.to_string(),
                        new.seq,
                        new.offers,
                        new.offered_at,
                    )
                    .execute(&self.pool)
                    .await?
                }
                (Some(old), Some(new)) => {
                    sqlx::query!(
                        r#"
                    update betanet_handout
                    set message_id = $4, sender = $5, seq = $6, offers = $7, offered_at = $8
                    where peer = $1 and seq = $2 and offered_at = $3
                    "#,
                        peer.as_str(),
                        old.seq,
                        old.offered_at,
                        new.message_id.0,
                        new.sender.to_string(),
                        new.seq,
                        new.offers,
                        new.offered_at,
                    )
                    .execute(&self.pool)
                    .await?
                }
                (Some(old), None) => sqlx::query!(
                    "delete from betanet_handout where peer = $1 and seq = $2 and offered_at = $3",
                    peer.as_str(),
                    old.seq,
                    old.offered_at,
                )
                .execute(&self.pool)
                .await?,
            };
        Ok(changed.rows_affected() == 1)
    }

    /// Enters a relay in the inventory; `None` if that has [`MAX_NODES`].
    pub async fn create_node(&self, node: &NewNode) -> sqlx::Result<Option<NodeRecord>> {
        sqlx::query_as!(
            NodeRecord,
            r#"
            insert into betanet_node (id, node_type, region, name, status, created_at)
            select $1, $2, $3, $4, 'inactive', $5
            where (select count(*) from betanet_node) < $6
            returning id, node_type, region, name, status, created_at
            "#,
            Uuid::new_v4(),
            node.node_type,
            node.region,
            node.name,
            self.clock.now(),
            MAX_NODES,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// The inventory, the oldest entry first.
    pub async fn nodes(&self) -> sqlx::Result<Vec<NodeRecord>> {
        sqlx::query_as!(
            NodeRecord,
            r#"
            select id, node_type, region, name, status, created_at from betanet_node
            order by created_at, id
            limit $1
            "#,
            MAX_NODES,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// How many relays are in the inventory.
    pub async fn node_count(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar!(r#"select count(*) as "count!" from betanet_node"#)
            .fetch_one(&self.pool)
            .await
    }

    /// One relay of the inventory.
    pub async fn node(&self, id: Uuid) -> sqlx::Result<Option<NodeRecord>> {
        sqlx::query_as!(
            NodeRecord,
            r#"
            select id, node_type, region, name, status, created_at from betanet_node where id = $1
            "#,
            id,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// Changes what is said of a relay; `None` if it is not in the inventory.
    pub async fn update_node(
        &self,
        id: Uuid,
        change: &NodeChange,
    ) -> sqlx::Result<Option<NodeRecord>> {
        sqlx::query_as!(
            NodeRecord,
            r#"
            update betanet_node
            set region = coalesce($2, region), name = coalesce($3, name),
                status = coalesce($4, status)
            where id = $1
            returning id, node_type, region, name, status, created_at
            "#,
            id,
            change.region,
            change.name,
            change.status,
        )
        .fetch_optional(&self.pool)
        .await
    }

    /// Takes a relay out of the inventory; false if it was not there.
    pub async fn delete_node(&self, id: Uuid) -> sqlx::Result<bool> {
        let deleted =
            sqlx::query!("delete from betanet_node where id = $1", id).execute(&self.pool).await?;
        Ok(deleted.rows_affected() == 1)
    }
}
