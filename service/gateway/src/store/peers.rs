//! Peers: registration, settings, who is shown what of them, and their counters.
//!
//! A peer is never deleted: whoever took over its name would get the trust and the late messages
//! of the one before.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use chrono::{DateTime, Utc};
use fieldpost_envelope::PeerId;
use futures_util::FutureExt;
use tokio::sync::{RwLock, RwLockReadGuard};
use uuid::Uuid;

use super::{
    Store,
    access::{self, Kind, peer_id},
    presence::LEASE,
};

/// Who sees a peer's presence and when it was last seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ShownTo {
    /// Whoever may ask.
    Everyone,
    /// Those the peer has written to, and the members of its groups.
    Contacts,
    /// Nobody but itself.
    Nobody,
}

impl ShownTo {
    /// The word of API and database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Everyone => "everyone",
            Self::Contacts => "contacts",
            Self::Nobody => "nobody",
        }
    }

    fn from_column(text: &str) -> sqlx::Result<Self> {
        match text {
            "everyone" => Ok(Self::Everyone),
            "contacts" => Ok(Self::Contacts),
            "nobody" => Ok(Self::Nobody),
            other => Err(sqlx::Error::Decode(format!("no such audience: {other:?}").into())),
        }
    }
}

/// A peer as one viewer may see it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub id: PeerId,
    /// The id that the mirrored surfaces show beside the name.
    pub row_id: Uuid,
    /// As registered, in whatever form.
    pub public_key: String,
    /// For people.
    pub display_name: Option<String>,
    /// Whether it has a BitChat identity.
    pub on_air: bool,
    /// Whether it gets broadcasts.
    pub subscribe_broadcast: bool,
    /// Who sees its presence.
    pub shown_to: ShownTo,
    /// Whether strangers find it in lists.
    pub listed: bool,
    /// Messages accepted from it.
    pub messages_sent: i64,
    /// Messages accepted for it.
    pub messages_received: i64,
    /// When it first registered.
    pub created_at: DateTime<Utc>,
    /// Whether it is online, if the viewer may know.
    pub online: Option<bool>,
    /// When it last registered, sent, had a socket or stated its presence, if the viewer may know.
    pub last_seen_at: Option<DateTime<Utc>>,
}

/// What a peer decides about itself; `None` leaves things as they are.
#[derive(Clone, Debug, Default)]
pub struct PeerSettings {
    /// For people; the empty text takes the name away.
    pub display_name: Option<String>,
    /// Whether to get broadcasts.
    pub subscribe_broadcast: Option<bool>,
    /// Whether to have a BitChat identity.
    pub on_air: Option<bool>,
    /// Who sees its presence.
    pub shown_to: Option<ShownTo>,
    /// Whether strangers find it in lists.
    pub listed: Option<bool>,
}

/// A peer that wants to register, or to replace its key.
#[derive(Clone, Debug)]
pub struct NewPeer {
    /// Its name.
    pub id: PeerId,
    /// In whatever form.
    pub public_key: String,
    /// What it says of itself.
    pub settings: PeerSettings,
    /// What holds where it says nothing.
    pub defaults: PeerDefaults,
    /// Registering counts as being online until then, unless a socket or a request says otherwise.
    pub online_until: Option<DateTime<Utc>>,
}

/// What holds where a new peer says nothing.
#[derive(Clone, Copy, Debug)]
pub struct PeerDefaults {
    /// See [`PeerSettings::on_air`].
    pub on_air: bool,
    /// See [`PeerSettings::shown_to`].
    pub shown_to: ShownTo,
    /// How many peers can be on the air; further ones register off the air.
    pub max_on_air: i64,
}

/// Whether a newcomer may register.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admission<'a> {
    /// Yes.
    Granted,
    /// If this invite has a use left.
    Invite(&'a str),
    /// No; those who are registered may still replace their key.
    Refused,
}

/// How a registration went.
#[derive(Clone, Debug)]
pub enum Registered {
    /// A new peer with its token, which is shown this once.
    New(Box<Peer>, String),
    /// The peer proved to be itself; its token stays.
    Again(Box<Peer>),
    /// Somebody has this name, and the caller did not prove to be them.
    Taken,
    /// The invite is unknown, used up or too old.
    InviteInvalid,
    /// Newcomers are not admitted.
    Refused,
}

/// Numbers over all peers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerStats {
    /// Registered peers.
    pub total: i64,
    /// Those of them that are online.
    pub online: i64,
}

/// The most peers in a list without pages.
pub const MAX_LISTED: i64 = 10_000;

impl Store {
    /// Registers a peer, or replaces the key and settings of one that `proven`ly calls.
    ///
    /// An invite loses a use only when a new peer came of it.
    pub async fn register_peer(
        &self,
        new: &NewPeer,
        proven: bool,
        admission: Admission<'_>,
    ) -> sqlx::Result<Registered> {
        if proven && self.register_again(new).await? {
            return self.own_peer(&new.id).await.map(|peer| Registered::Again(Box::new(peer)));
        }
        if admission == Admission::Refused {
            let is_taken = self.peer_exists(&new.id).await?;
            return Ok(if is_taken { Registered::Taken } else { Registered::Refused });
        }
        let (token, hash) = access::new_secret(Kind::Peer)?;
        let mut transaction = self.pool.begin().await?;
        let now = self.clock.now();
        if let Admission::Invite(invite) = admission {
            let Some(invite) = access::secret_hash(invite, &[Kind::Invite]) else {
                return Ok(Registered::InviteInvalid);
            };
            let used = sqlx::query!(
                r#"
                update invite set uses_left = uses_left - 1
                where hash = $1 and uses_left > 0 and expires_at > $2
                "#,
                &invite,
                now,
            )
            .execute(&mut *transaction)
            .await?;
            if used.rows_affected() == 0 {
                return Ok(Registered::InviteInvalid);
            }
        }
        let settings = &new.settings;
        let inserted = sqlx::query!(
            r#"
            insert into peer (
                id, public_key, display_name, token_hash, on_air, subscribe_broadcast,
                presence_shown_to, listed, created_at, last_seen_at, stated_online, stated_until
            )
            values (
                $1, $2, nullif($3, ''), $4,
                $5 and (select count(*) from peer where on_air) < $6,
                $7, $8, $9, $10, $10, case when $11::timestamptz is null then null else true end, $11
            )
            on conflict do nothing
            "#,
            new.id.as_str(),
            new.public_key,
            settings.display_name,
            &hash,
            settings.on_air.unwrap_or(new.defaults.on_air),
            new.defaults.max_on_air,
            settings.subscribe_broadcast.unwrap_or(true),
            settings.shown_to.unwrap_or(new.defaults.shown_to).as_str(),
            settings.listed.unwrap_or(true),
            now,
            new.online_until,
        )
        .execute(&mut *transaction)
        .await?;
        if inserted.rows_affected() == 0 {
            return Ok(Registered::Taken);
        }
        transaction.commit().await?;
        self.known_peers.insert(&new.id);
        self.own_peer(&new.id).await.map(|peer| Registered::New(Box::new(peer), token))
    }

    async fn register_again(&self, new: &NewPeer) -> sqlx::Result<bool> {
        // As in the original, an empty display name leaves the old one.
        let display_name = new.settings.display_name.as_deref().filter(|name| !name.is_empty());
        let updated = sqlx::query!(
            r#"
            update peer set
                public_key = $2,
                display_name = coalesce($3, display_name),
                on_air = case
                    when not on_air and $4
                    then (select count(*) from peer as other where other.on_air) < $5
                    else coalesce($4, on_air)
                end,
                subscribe_broadcast = coalesce($6, subscribe_broadcast),
                presence_shown_to = coalesce($7, presence_shown_to),
                listed = coalesce($8, listed),
                last_seen_at = $9,
                stated_online = case when $10::timestamptz is null then null else true end,
                stated_until = $10
            where id = $1
            "#,
            new.id.as_str(),
            new.public_key,
            display_name,
            new.settings.on_air,
            new.defaults.max_on_air,
            new.settings.subscribe_broadcast,
            new.settings.shown_to.map(ShownTo::as_str),
            new.settings.listed,
            self.clock.now(),
            new.online_until,
        )
        .execute(&self.pool)
        .await?;
        Ok(updated.rows_affected() == 1)
    }

    /// Changes what `peer` decides about itself; `None` if there is no such peer.
    pub async fn update_peer(
        &self,
        peer: &PeerId,
        settings: &PeerSettings,
        max_on_air: i64,
    ) -> sqlx::Result<Option<Peer>> {
        let updated = sqlx::query!(
            r#"
            update peer set
                display_name = nullif(coalesce($2, display_name), ''),
                on_air = case
                    when not on_air and $3
                    then (select count(*) from peer as other where other.on_air) < $4
                    else coalesce($3, on_air)
                end,
                subscribe_broadcast = coalesce($5, subscribe_broadcast),
                presence_shown_to = coalesce($6, presence_shown_to),
                listed = coalesce($7, listed)
            where id = $1
            "#,
            peer.as_str(),
            settings.display_name,
            settings.on_air,
            max_on_air,
            settings.subscribe_broadcast,
            settings.shown_to.map(ShownTo::as_str),
            settings.listed,
        )
        .execute(&self.pool)
        .await?;
        match updated.rows_affected() {
            0 => Ok(None),
            _ => self.own_peer(peer).await.map(Some),
        }
    }

    /// One peer as `viewer` may see it.
    pub async fn peer(&self, peer: &PeerId, viewer: Option<&PeerId>) -> sqlx::Result<Option<Peer>> {
        Ok(self.peers_by_id(&[peer.as_str().to_owned()], viewer).await?.pop())
    }

    async fn own_peer(&self, peer: &PeerId) -> sqlx::Result<Peer> {
        self.peer(peer, Some(peer)).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// The key that `peer` registered.
    pub async fn public_key(&self, peer: &PeerId) -> sqlx::Result<Option<String>> {
        sqlx::query_scalar!("select public_key from peer where id = $1", peer.as_str())
            .fetch_optional(&self.pool)
            .await
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

    /// Which of `peers` are registered here.
    pub async fn existing_peers(&self, peers: &[PeerId]) -> sqlx::Result<HashSet<PeerId>> {
        let (mut existing, unsure) = self.known_peers.sort(peers);
        if unsure.is_empty() {
            return Ok(existing);
        }
        let found = sqlx::query_scalar!("select id from peer where id = any($1)", &unsure)
            .fetch_all(&self.pool)
            .await?;
        for id in found {
            let id = peer_id(id)?;
            self.known_peers.insert(&id);
            existing.insert(id);
        }
        Ok(existing)
    }

    /// Whether `peer` is registered here.
    pub async fn peer_exists(&self, peer: &PeerId) -> sqlx::Result<bool> {
        if self.knows_peer(peer) {
            return Ok(true);
        }
        Ok(!self.existing_peers(std::slice::from_ref(peer)).boxed().await?.is_empty())
    }

    /// Whether `peer` is remembered to be registered here, without asking the database.
    pub fn knows_peer(&self, peer: &PeerId) -> bool {
        self.known_peers.contains(peer)
    }

    /// Remembers that `peer` is registered here.
    pub(super) fn remember_peer(&self, peer: &PeerId) {
        self.known_peers.insert(peer);
    }

    /// Counts a message accepted from `peer`.
    ///
    /// Counts reach the database within about 5 s, by [`flush_counters`](Self::flush_counters); a
    /// crash loses those that have not.
    pub fn count_sent(&self, peer: &PeerId) {
        self.counters.add(peer, Count { sent: 1, received: 0 });
    }

    /// Counts a message accepted for `peer`; as [`count_sent`](Self::count_sent).
    pub fn count_received(&self, peer: &PeerId) {
        self.counters.add(peer, Count { sent: 0, received: 1 });
    }

    /// Writes the counts made since the last time.
    pub async fn flush_counters(&self) -> sqlx::Result<()> {
        if self.counters.is_empty() {
            return Ok(());
        }
        let _flushing = self.counters.flushing.write().await;
        let counts = self.counters.snapshot();
        let peers: Vec<_> = counts.iter().map(|(peer, _)| peer.as_str().to_owned()).collect();
        let sent: Vec<_> = counts.iter().map(|(_, count)| count.sent).collect();
        let received: Vec<_> = counts.iter().map(|(_, count)| count.received).collect();
        let mut transaction = self.pool.begin().await?;
        sqlx::query!("set local synchronous_commit = off").execute(&mut *transaction).await?;
        sqlx::query!(
            r#"
            update peer set
                messages_sent = messages_sent + counted.sent,
                messages_received = messages_received + counted.received,
                last_seen_at = case
                    when counted.sent > 0 then greatest(last_seen_at, $4) else last_seen_at
                end
            from (
                -- In one order, so that replicas that count the same peers cannot lock each other.
                select counts.*
                from unnest($1::text[], $2::bigint[], $3::bigint[]) as counts (id, sent, received)
                join peer using (id)
                order by id
                for update of peer
            ) as counted
            where peer.id = counted.id
            "#,
            &peers,
            &sent,
            &received,
            self.clock.now(),
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.counters.subtract(&counts);
        Ok(())
    }
}

/// Peers known to be registered; they never cease to be. Starts over when it has
/// [`KnownPeers::CAPACITY`].
#[derive(Debug, Default)]
pub(super) struct KnownPeers(Mutex<HashSet<PeerId>>);

impl KnownPeers {
    const CAPACITY: usize = 131_072;

    fn insert(&self, peer: &PeerId) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::CAPACITY {
            known.clear();
        }
        known.insert(peer.clone());
    }

    fn contains(&self, peer: &PeerId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(peer)
    }

    /// Those of `peers` that are known, and the names of the others.
    fn sort(&self, peers: &[PeerId]) -> (HashSet<PeerId>, Vec<String>) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (existing, unsure): (Vec<_>, Vec<_>) =
            peers.iter().partition(|peer| known.contains(*peer));
        (
            existing.into_iter().cloned().collect(),
            unsure.into_iter().map(|peer| peer.as_str().to_owned()).collect(),
        )
    }
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Count {
    sent: i64,
    received: i64,
}

/// Messages counted and not yet written; one entry for each peer active since the last flush.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pending: Mutex<HashMap<PeerId, Count>>,
    /// Held for reading while a number from the database is added to one from here.
    flushing: RwLock<()>,
}

impl Counters {
    fn add(&self, peer: &PeerId, count: Count) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if !pending.contains_key(peer) {
            pending.insert(peer.clone(), Count::default());
        }
        if let Some(entry) = pending.get_mut(peer) {
            entry.sent += count.sent;
            entry.received += count.received;
        }
    }

    fn pending(&self, peer: &PeerId) -> Count {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.get(peer).copied().unwrap_or_default()
    }

    /// All that is counted and not yet written, as sent and received. It moves into the database
    /// no earlier than the guard is dropped.
    pub(super) async fn steady_total(&self) -> (RwLockReadGuard<'_, ()>, i64, i64) {
        let steady = self.flushing.read().await;
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = pending.values().map(|count| count.sent).sum();
        let received = pending.values().map(|count| count.received).sum();
        drop(pending);
        (steady, sent, received)
    }

    fn is_empty(&self) -> bool {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn snapshot(&self) -> Vec<(PeerId, Count)> {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.iter().map(|(peer, count)| (peer.clone(), *count)).collect()
    }

    fn subtract(&self, written: &[(PeerId, Count)]) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for (peer, count) in written {
            if let Some(entry) = pending.get_mut(peer) {
                entry.sent -= count.sent;
                entry.received -= count.received;
                if *entry == Count::default() {
                    pending.remove(peer);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_made_while_a_flush_runs_stay_for_the_next() {
        let counters = Counters::default();
        let peer: PeerId = "alice".parse().unwrap();
        counters.add(&peer, Count { sent: 2, received: 1 });
        let written = counters.snapshot();
        counters.add(&peer, Count { sent: 0, received: 5 });
        counters.subtract(&written);
        assert_eq!(counters.pending(&peer), Count { sent: 0, received: 5 });
        counters.subtract(&counters.snapshot());
        assert!(counters.is_empty());
    }

    #[test]
    fn known_peers_are_sorted_from_those_to_be_looked_up() {
        let known = KnownPeers::default();
        let [alice, bob]: [PeerId; 2] = ["alice", "bob"].map(|name| name.parse().unwrap());
        known.insert(&alice);
        let (existing, unsure) = known.sort(&[alice.clone(), bob]);
        assert_eq!(existing, HashSet::from([alice]));
        assert_eq!(unsure, ["bob"]);
    }
}
