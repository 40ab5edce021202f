//! Presence: which peers are online, and who hears when that changes (design, section 6).
//!
//! Open sockets speak as leases of their replica, so a replica that dies takes nobody online with
//! it for longer than [`LEASE`]. A word said by request stands above the sockets until the next
//! socket, registration or word.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fieldpost_envelope::PeerId;
use uuid::Uuid;

use super::{Store, access::peer_id};

/// How long a peer counts as online after its replica last said so.
pub const LEASE: Duration = Duration::from_secs(60);

/// What an event did to a peer's presence.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Presence {
    /// Whether the peer is online now.
    pub online: bool,
    /// Whether it was not so before.
    pub changed: bool,
}

impl Store {
    /// Counts one more open socket of `peer` at `replica`, and lets the sockets speak again.
    ///
    /// If the database fails, the socket is counted all the same and the next
    /// [`refresh_presence`](Self::refresh_presence) makes its lease.
    pub async fn presence_opened(&self, peer: &PeerId, replica: Uuid) -> sqlx::Result<Presence> {
        // The order of an opening and a closing in the database must be that of the counts.
        let _turn = self.open_sockets.turn(peer).lock().await;
        self.open_sockets.opened(peer);
        let now = self.clock.now();
        let before = sqlx::query!(
            r#"
            with before as (
                select
                    case
                        when stated_online is not null
                            and (stated_until is null or stated_until > $3)
                        then stated_online
                        else exists (
                            select from presence
                            where presence.peer = peer.id and expires_at > $3
                        )
                    end as online
                from peer
                where id = $1
                for update
            ),
            lease as (
                insert into presence (peer, replica, expires_at)
                select $1, $2, $4 from before
                on conflict (peer, replica) do update set expires_at = excluded.expires_at
            ),
            seen as (
                update peer set last_seen_at = $3, stated_online = null, stated_until = null
                where id = $1
            )
            -- Not worth a wait for the disk: leases are renewed anyway.
            select online as "online!", set_config('synchronous_commit', 'off', true) as relaxed
            from before
            "#,
            peer.as_str(),
            replica,
            now,
            now + LEASE,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(Presence { online: true, changed: before.is_some_and(|before| !before.online) })
    }

    /// Counts one open socket of `peer` less; the last one to close takes the lease with it.
    pub async fn presence_closed(&self, peer: &PeerId, replica: Uuid) -> sqlx::Result<Presence> {
        let _turn = self.open_sockets.turn(peer).lock().await;
        if self.open_sockets.closed(peer) > 0 {
            return Ok(Presence { online: true, changed: false });
        }
        let now = self.clock.now();
        // A registration's word ends with the sockets that came of it; one said by itself stays.
        let state = sqlx::query!(
            r#"
            with before as (
                select
                    stated_until is null and stated_online is not null as stated,
                    stated_online
                from peer
                where id = $1
                for update
            ),
            lease as (
                delete from presence where peer = $1 and replica = $2
            ),
            seen as (
                update peer
                set last_seen_at = $3,
                    stated_online = case when stated_until is null then stated_online end,
                    stated_until = null
                where id = $1
            )
            select
                stated as "stated!",
                coalesce(stated_online, false) as "stated_online!",
                exists (
                    select from presence
                    where peer = $1 and replica <> $2 and expires_at > $3
                ) as "elsewhere!",
                set_config('synchronous_commit', 'off', true) as relaxed
            from before
            "#,
            peer.as_str(),
            replica,
            now,
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(state) = state else {
            return Ok(Presence { online: false, changed: false });
        };
        Ok(if state.stated {
            Presence { online: state.stated_online, changed: false }
        } else {
            Presence { online: state.elsewhere, changed: !state.elsewhere }
        })
    }

    /// States that `peer` is online or not, whatever its sockets say, until the next socket,
    /// registration or statement; `None` if there is no such peer.
    pub async fn state_presence(
        &self,
        peer: &PeerId,
        online: bool,
    ) -> sqlx::Result<Option<Presence>> {
        let was_online = sqlx::query_scalar!(
            r#"
            with before as (
                select
                    case
                        when stated_online is not null
                            and (stated_until is null or stated_until > $3)
                        then stated_online
                        else exists (
                            select from presence
                            where presence.peer = peer.id and expires_at > $3
                        )
                    end as online
                from peer
                where id = $1
                for update
            ),
            said as (
                update peer set last_seen_at = $3, stated_online = $2, stated_until = null
                where id = $1
            )
            select online as "online!" from before
            "#,
            peer.as_str(),
            online,
            self.clock.now(),
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(was_online.map(|was_online| Presence { online, changed: was_online != online }))
    }

    /// Renews the leases of all peers with open sockets at `replica`, in one statement.
    pub async fn refresh_presence(&self, replica: Uuid) -> sqlx::Result<()> {
        let peers = self.open_sockets.peers();
        if peers.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            r#"
            insert into presence (peer, replica, expires_at)
            select peer, $2, $3 from unnest($1::text[]) as open (peer)
            where exists (select from peer where id = open.peer)
            order by peer
            on conflict (peer, replica) do update set expires_at = excluded.expires_at
            "#,
            &peers,
            replica,
            self.clock.now() + LEASE,
        )
        .execute(&self.pool)
        .await?;
        self.drop_closed_meanwhile(&peers, replica).await
    }

    /// A socket that closed while the leases were renewed may have got its lease back.
    async fn drop_closed_meanwhile(&self, renewed: &[String], replica: Uuid) -> sqlx::Result<()> {
        let closed = self.open_sockets.not_open(renewed);
        for peer in closed {
            let peer = peer_id(peer)?;
            let _turn = self.open_sockets.turn(&peer).lock().await;
            if !self.open_sockets.is_open(&peer) {
                sqlx::query!(
                    "delete from presence where peer = $1 and replica = $2",
                    peer.as_str(),
                    replica,
                )
                .execute(&self.pool)
                .await?;
            }
        }
        Ok(())
    }

    /// Ends the leases of `replica`, which is about to stop.
    pub async fn end_presence(&self, replica: Uuid) -> sqlx::Result<()> {
        sqlx::query!("delete from presence where replica = $1", replica)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Ends leases and words whose time is over and returns who went offline by that, at most
    /// `limit`; those beyond it are found the next time.
    pub async fn expire_presence(&self, limit: i64) -> sqlx::Result<Vec<PeerId>> {
        sqlx::query_scalar!(
            r#"
            with leases as (
                delete from presence
                where (peer, replica) in (
                    select peer, replica from presence
                    where expires_at <= $1
                    order by expires_at
                    limit $2
                    for update skip locked
                )
                returning peer
            ),
            words as (
                update peer set stated_online = null, stated_until = null
                where id in (
                    select id from peer
                    where stated_online is not null and stated_until <= $1
                    order by stated_until
                    limit $2
                    for update skip locked
                )
                returning id
            )
            select ended.peer as "peer!"
            from (select peer from leases union select id from words) as ended
            join peer on id = ended.peer
            where (stated_online is null or stated_until <= $1)
                and not exists (
                    select from presence
                    where presence.peer = ended.peer and expires_at > $1
                )
            "#,
            self.clock.now(),
            limit,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(peer_id)
        .collect()
    }

    /// Who is told when the presence of `peer` changes, at most `limit`.
    ///
    /// Its contacts: whom it has written to and the members of its groups. If it shows itself to
    /// everyone, also those who have written to it; if to nobody, nobody.
    pub async fn presence_audience(&self, peer: &PeerId, limit: i64) -> sqlx::Result<Vec<PeerId>> {
        sqlx::query_scalar!(
            r#"
            select audience.peer as "peer!"
            from peer
            cross join lateral (
                (select other as peer from contact where contact.peer = peer.id limit $2)
                union
                (
                    select contact.peer from contact
                    where contact.other = peer.id and presence_shown_to = 'everyone'
                    limit $2
                )
                union
                (
                    select theirs.peer
                    from group_member own join group_member theirs using (group_id)
                    where own.peer = peer.id and own.left_at is null and theirs.left_at is null
                    limit $2
                )
            ) as audience
            where id = $1 and presence_shown_to <> 'nobody' and audience.peer <> id
            limit $2
            "#,
            peer.as_str(),
            limit,
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        // Contacts elsewhere have other names, and other ways to hear of it.
        .filter_map(|text| text.parse().ok())
        .map(Ok)
        .collect()
    }
}

/// How many sockets each peer has open at this replica.
#[derive(Debug)]
pub(super) struct OpenSockets {
    counts: Mutex<HashMap<PeerId, usize>>,
    turns: Box<[tokio::sync::Mutex<()>]>,
}

impl Default for OpenSockets {
    fn default() -> Self {
        Self {
            counts: Mutex::default(),
            turns: (0..Self::TURNS).map(|_| tokio::sync::Mutex::default()).collect(),
        }
    }
}

impl OpenSockets {
    /// Peers share turns; with this many, few of them wait for a stranger.
    const TURNS: usize = 256;

    fn turn(&self, peer: &PeerId) -> &tokio::sync::Mutex<()> {
        let mut hasher = DefaultHasher::new();
        peer.hash(&mut hasher);
        &self.turns[(hasher.finish() % Self::TURNS as u64) as usize]
    }

    fn opened(&self, peer: &PeerId) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(peer.clone()).or_default() += 1;
    }

    /// Returns how many are left.
    fn closed(&self, peer: &PeerId) -> usize {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = counts.get_mut(peer) else {
            return 0;
        };
        *count -= 1;
        let left = *count;
        if left == 0 {
            counts.remove(peer);
        }
        left
    }

    fn is_open(&self, peer: &PeerId) -> bool {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).contains_key(peer)
    }

    fn not_open(&self, peers: &[String]) -> Vec<String> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        peers.iter().filter(|peer| !counts.contains_key(peer.as_str())).cloned().collect()
    }

    fn peers(&self) -> Vec<String> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.keys().map(|peer| peer.as_str().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_socket_that_closes_leaves_the_newer_one() {
        let open = OpenSockets::default();
        let peer: PeerId = "alice".parse().unwrap();
        open.opened(&peer);
        open.opened(&peer);
        assert_eq!(open.closed(&peer), 1);
        assert!(open.is_open(&peer));
        assert_eq!(open.closed(&peer), 0);
        assert_eq!(open.peers(), Vec::<String>::new());
        // One close too many is no debt for the next opening.
        assert_eq!(open.closed(&peer), 0);
        open.opened(&peer);
        assert!(open.is_open(&peer));
    }
}
