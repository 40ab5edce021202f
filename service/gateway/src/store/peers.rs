//! Peers: registration and settings.
//!
//! A peer is never deleted: whoever took over its name would get the trust and the late messages
//! of the one before.

mod counters;
mod known;
mod views;

use chrono::{DateTime, Utc};
use fieldpost_envelope::PeerId;
use uuid::Uuid;

pub use self::views::MAX_LISTED;
pub(super) use self::{counters::Counters, known::KnownPeers};
use super::{
    Store,
    access::{self, Kind},
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

    async fn own_peer(&self, peer: &PeerId) -> sqlx::Result<Peer> {
        self.peer(peer, Some(peer)).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// The key that `peer` registered.
    pub async fn public_key(&self, peer: &PeerId) -> sqlx::Result<Option<String>> {
        sqlx::query_scalar!("select public_key from peer where id = $1", peer.as_str())
            .fetch_optional(&self.pool)
            .await
    }
}
