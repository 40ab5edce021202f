//! Peers of other gateways, as their rosters list them.

use chrono::{DateTime, Utc};
use fieldpost_envelope::{GatewayId, PeerAddress, PeerId};

use crate::store::{Store, rosters::RemoteGateway, words};

/// A peer of another gateway.
#[derive(Clone, Debug)]
pub struct RemotePeer {
    /// Its name there.
    pub peer: PeerId,
    /// For people.
    pub display_name: Option<String>,
    /// When it was first listed.
    pub listed_at: DateTime<Utc>,
    /// Its gateway.
    pub home: RemoteGateway,
    /// Which transports reach that gateway now, from any replica.
    pub transports: Vec<String>,
}

impl RemotePeer {
    /// How it is written here.
    pub fn address(&self) -> PeerAddress {
        PeerAddress::remote(self.peer.clone(), self.home.gateway)
    }
}

struct Row {
    peer: String,
    gateway: String,
    display_name: Option<String>,
    listed_at: DateTime<Utc>,
    peers: i32,
    heard_at: DateTime<Utc>,
    is_nearby: bool,
}

impl Store {
    /// Up to `limit` peers of other gateways by name and gateway, from the one after `after`.
    pub async fn list_remote_peers(
        &self,
        (after_peer, after_gateway): (&str, &str),
        limit: i64,
    ) -> sqlx::Result<Vec<RemotePeer>> {
        let rows = sqlx::query_as!(
            Row,
            r#"
            select r.peer, r.gateway, r.display_name, r.listed_at, g.peers, g.heard_at, g.is_nearby
            from remote_peer r join remote_gateway g using (gateway)
            where (r.peer, r.gateway) > ($1, $2)
            order by r.peer, r.gateway
            limit $3
            "#,
            after_peer,
            after_gateway,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        self.with_transports(rows).await
    }

    /// Up to `limit` peers of other gateways, those of the gateway heard last first.
    pub async fn list_remote_peers_last_heard_first(
        &self,
        limit: i64,
    ) -> sqlx::Result<Vec<RemotePeer>> {
        let rows = sqlx::query_as!(
            Row,
            r#"
            select r.peer, r.gateway, r.display_name, r.listed_at, g.peers, g.heard_at, g.is_nearby
            from remote_peer r join remote_gateway g using (gateway)
            order by g.heard_at desc, r.gateway, r.peer
            limit $1
            "#,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        self.with_transports(rows).await
    }

    /// One peer of another gateway, if that lists it.
    pub async fn remote_peer(
        &self,
        peer: &PeerId,
        gateway: GatewayId,
    ) -> sqlx::Result<Option<RemotePeer>> {
        let rows = sqlx::query_as!(
            Row,
            r#"
            select r.peer, r.gateway, r.display_name, r.listed_at, g.peers, g.heard_at, g.is_nearby
            from remote_peer r join remote_gateway g using (gateway)
            where r.gateway = $1 and r.peer = $2
            "#,
            gateway.to_string(),
            peer.as_str(),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(self.with_transports(rows).await?.pop())
    }

    async fn with_transports(&self, rows: Vec<Row>) -> sqlx::Result<Vec<RemotePeer>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut gateways: Vec<String> = rows.iter().map(|row| row.gateway.clone()).collect();
        gateways.sort_unstable();
        gateways.dedup();
        let transports = self.transports_to(Some(&gateways)).await?;
        rows.into_iter()
            .map(|row| {
                Ok(RemotePeer {
                    peer: words::parse(&row.peer)?,
                    display_name: row.display_name,
                    listed_at: row.listed_at,
                    home: RemoteGateway {
                        gateway: words::parse(&row.gateway)?,
                        peers: row.peers.unsigned_abs() as usize,
                        heard_at: row.heard_at,
                        is_nearby: row.is_nearby,
                    },
                    transports: transports.get(&row.gateway).cloned().unwrap_or_default(),
                })
            })
            .collect()
    }
}
