//! What a viewer is shown of peers: one of them, lists, and how many there are.

use fieldpost_envelope::PeerId;

use super::{Peer, PeerStats, ShownTo};
use crate::store::{Store, access::peer_id, presence::LEASE};

/// The most peers in a list without pages.
pub const MAX_LISTED: i64 = 10_000;

impl Store {
    /// One peer as `viewer` may see it.
    pub async fn peer(&self, peer: &PeerId, viewer: Option<&PeerId>) -> sqlx::Result<Option<Peer>> {
        Ok(self.peers_by_id(&[peer.as_str().to_owned()], viewer).await?.pop())
    }

    /// Up to `limit` peers that `viewer` may find, by name, from the one after `after`.
    ///
    /// Found are those who are listed, the viewer itself, and whoever has the viewer as a contact;
    /// with `online_only` those of them whom the viewer may see to be online.
    pub async fn list_peers(
        &self,
        viewer: Option<&PeerId>,
        online_only: bool,
        after: &str,
        limit: i64,
    ) -> sqlx::Result<Vec<Peer>> {
        let ids = sqlx::query_scalar!(
            r#"
            select id
            from peer
            cross join lateral (
                select
                    exists (select from contact where contact.peer = id and other = $1)
                    or exists (
                        select from group_member theirs join group_member own using (group_id)
                        where theirs.peer = peer.id and own.peer = $1
                            and theirs.left_at is null and own.left_at is null
                    ) as is_contact
            ) as viewer
            where id > $2
                and (listed or id = $1 or is_contact)
                and (
                    not $3
                    or (
                        presence_shown_to = 'everyone' or id = $1
                        or presence_shown_to = 'contacts' and is_contact
                    )
                    and case
                        when stated_online is not null
                            and (stated_until is null or stated_until > $4)
                        then stated_online
                        else exists (
                            select from presence
                            where presence.peer = peer.id and expires_at > $4
                        )
                    end
                )
            order by id
            limit $5
            "#,
            viewer.map(PeerId::as_str),
            after,
            online_only,
            self.clock.now(),
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut peers = self.peers_by_id(&ids, viewer).await?;
        peers.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(peers)
    }

    /// The peers that `viewer` may find, the last seen first, at most [`MAX_LISTED`].
    ///
    /// Whose presence is hidden from the viewer takes the place of its registration, and is not
    /// among those `online_only`.
    pub async fn list_peers_last_seen_first(
        &self,
        viewer: Option<&PeerId>,
        online_only: bool,
    ) -> sqlx::Result<Vec<Peer>> {
        let ids = sqlx::query_scalar!(
            r#"
            select id from peer
            where (
                    listed or id = $1
                    or exists (select from contact where contact.peer = id and other = $1)
                    or exists (
                        select from group_member theirs join group_member own using (group_id)
                        where theirs.peer = peer.id and own.peer = $1
                            and theirs.left_at is null and own.left_at is null
                    )
                )
                and (
                    not $2 or stated_online
                    or id in (select presence.peer from presence where expires_at > $3)
                )
            order by last_seen_at desc, id
            limit $4
            "#,
            viewer.map(PeerId::as_str),
            online_only,
            self.clock.now(),
            MAX_LISTED,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut peers = self.peers_by_id(&ids, viewer).await?;
        peers.retain(|peer| !online_only || peer.online == Some(true));
        peers.sort_by(|a, b| {
            let seen = |peer: &Peer| peer.last_seen_at.unwrap_or(peer.created_at);
            seen(b).cmp(&seen(a)).then_with(|| a.id.cmp(&b.id))
        });
        Ok(peers)
    }

    /// These peers as `viewer` may see them, in no order; unknown ones are left out.
    async fn peers_by_id(
        &self,
        ids: &[String],
        viewer: Option<&PeerId>,
    ) -> sqlx::Result<Vec<Peer>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        // No counter moves from memory into the database between the query and the sum.
        let _steady = self.counters.flushing.read().await;
        let rows = sqlx::query!(
            r#"
            select
                peer.id, row_id, public_key, display_name, on_air, subscribe_broadcast,
                presence_shown_to, listed, messages_sent, messages_received, created_at,
                last_seen_at, lease.expires_at as "lease_expires_at?",
                case
                    when stated_online is not null and (stated_until is null or stated_until > $3)
                    then stated_online
                    else lease.expires_at is not null
                end as "online!",
                coalesce(
                    presence_shown_to = 'everyone'
                    or peer.id = $2
                    or presence_shown_to = 'contacts' and (
                        exists (select from contact where contact.peer = peer.id and other = $2)
                        or exists (
                            select from group_member theirs join group_member own using (group_id)
                            where theirs.peer = peer.id and own.peer = $2
                                and theirs.left_at is null and own.left_at is null
                        )
                    ),
                    false
                ) as "shown!"
            from peer
            left join lateral (
                select max(expires_at) as expires_at from presence
                where presence.peer = peer.id and expires_at > $3
            ) as lease on true
            where peer.id = any($1)
            "#,
            ids,
            viewer.map(PeerId::as_str),
            self.clock.now(),
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter()
            .map(|row| {
                let id = peer_id(row.id)?;
                let pending = self.counters.pending(&id);
                // A lease begins when the peer was last known to be there.
                let leased_at = row.lease_expires_at.map(|expires_at| expires_at - LEASE);
                let last_seen_at =
                    leased_at.map_or(row.last_seen_at, |at| at.max(row.last_seen_at));
                Ok(Peer {
                    id,
                    row_id: row.row_id,
                    public_key: row.public_key,
                    display_name: row.display_name,
                    on_air: row.on_air,
                    subscribe_broadcast: row.subscribe_broadcast,
                    shown_to: ShownTo::from_column(&row.presence_shown_to)?,
                    listed: row.listed,
                    messages_sent: row.messages_sent + pending.sent,
                    messages_received: row.messages_received + pending.received,
                    created_at: row.created_at,
                    online: row.shown.then_some(row.online),
                    last_seen_at: row.shown.then_some(last_seen_at),
                })
            })
            .collect()
    }

    /// How many peers there are, and how many of them are online.
    pub async fn peer_stats(&self) -> sqlx::Result<PeerStats> {
        let now = self.clock.now();
        sqlx::query_as!(
            PeerStats,
            r#"
            select
                (select count(*) from peer) as "total!",
                (
                    select count(*) from (
                        select id from peer
                        where stated_online and (stated_until is null or stated_until > $1)
                        union
                        select peer from presence
                        where expires_at > $1 and not exists (
                            select from peer as silent
                            where silent.id = presence.peer and stated_online is not null
                                and not stated_online
                                and (stated_until is null or stated_until > $1)
                        )
                    ) as online
                ) as "online!"
            "#,
            now,
        )
        .fetch_one(&self.pool)
        .await
    }
}
