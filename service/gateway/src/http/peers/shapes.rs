//! What is sent to `/v1/peers` and what comes back.

use chrono::{DateTime, Utc};
use data_encoding::HEXLOWER;
use fieldpost_envelope::PeerId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{MAX_DISPLAY_NAME, MAX_ON_AIR, MAX_PUBLIC_KEY, default_audience};
use crate::{
    Gateway,
    config::Auth,
    http::{error::ApiError, fields},
    store::{NewPeer, Peer, PeerDefaults, PeerSettings, RemotePeer, ShownTo, phones::ListedPhone},
};

/// A peer that wants to register.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct RegisterPeer {
    /// The name. Reserved are `broadcast`, 16 or 32 hex digits, and what begins with `group:`.
    #[schema(max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$", example = "alice")]
    peer_id: String,
    /// A key of any kind, for others to see. Where it is an Ed25519 key, 32 bytes in hex or
    /// base64, it can renew a lost token.
    #[schema(
        max_length = 4096,
        pattern = r"^[^\u0000]*$",
        example = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )]
    public_key: String,
    /// A name for people.
    #[schema(max_length = 100, pattern = r"^[^\u0000]*$", example = "Alice")]
    display_name: Option<String>,
    /// Whether to get broadcasts; true unless given.
    subscribe_broadcast: Option<bool>,
    /// Whether to be a BitChat peer for phones in range; false unless given. At most as many peers
    /// are as `--max-peers` says, 50 unless set; further ones register off the air.
    on_air: Option<bool>,
    /// Who sees whether the peer is online and when it was last seen. Contacts are those it has
    /// written to and the members of its groups. `contacts` unless given, with `--auth open`
    /// `everyone`.
    presence: Option<Audience>,
    /// Whether strangers find it in the list of peers; true unless given.
    listed: Option<bool>,
    /// Where the gateway admits newcomers by invite: the invite.
    #[schema(
        max_length = 200,
        pattern = r"^[^\u0000]*$",
        example = "fpi_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA"
    )]
    invite: Option<String>,
}

impl RegisterPeer {
    pub(super) fn checked(self, auth: Auth) -> Result<(NewPeer, Option<String>), ApiError> {
        let id = PeerId::parse(&self.peer_id)
            .map_err(|error| ApiError::invalid("body.peer_id", format!("peer_id: {error}")))?;
        let settings = UpdatePeer {
            display_name: self.display_name,
            subscribe_broadcast: self.subscribe_broadcast,
            on_air: self.on_air,
            presence: self.presence,
            listed: self.listed,
        };
        let invite =
            self.invite.map(|invite| fields::text("invite", invite, 0, MAX_INVITE)).transpose()?;
        let newcomer = NewPeer {
            id,
            public_key: fields::text("public_key", self.public_key, 0, MAX_PUBLIC_KEY)?,
            settings: settings.into_settings()?,
            defaults: PeerDefaults {
                on_air: false,
                shown_to: default_audience(auth),
                max_on_air: MAX_ON_AIR,
            },
            online_until: None,
        };
        Ok((newcomer, invite))
    }
}

/// Settings to change; what is not given stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct UpdatePeer {
    /// A name for people; the empty text takes it away.
    #[schema(max_length = 100, pattern = r"^[^\u0000]*$", example = "Alice")]
    display_name: Option<String>,
    /// Whether to get broadcasts.
    subscribe_broadcast: Option<bool>,
    /// Whether to be a BitChat peer for phones in range; at most as many peers are as `--max-peers`
    /// says, 50 unless set, and one more stays off the air.
    on_air: Option<bool>,
    /// Who sees whether the peer is online and when it was last seen.
    presence: Option<Audience>,
    /// Whether strangers find it in the list of peers.
    listed: Option<bool>,
}

impl UpdatePeer {
    pub(super) fn into_settings(self) -> Result<PeerSettings, ApiError> {
        let display_name = self
            .display_name
            .map(|name| fields::text("display_name", name, 0, MAX_DISPLAY_NAME))
            .transpose()?;
        Ok(PeerSettings {
            display_name,
            subscribe_broadcast: self.subscribe_broadcast,
            on_air: self.on_air,
            shown_to: self.presence.map(ShownTo::from),
            listed: self.listed,
        })
    }
}

/// Who sees a peer's presence.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum Audience {
    /// Whoever may ask.
    Everyone,
    /// Those the peer has written to, and the members of its groups.
    Contacts,
    /// Nobody.
    Nobody,
}

impl From<Audience> for ShownTo {
    fn from(audience: Audience) -> Self {
        match audience {
            Audience::Everyone => Self::Everyone,
            Audience::Contacts => Self::Contacts,
            Audience::Nobody => Self::Nobody,
        }
    }
}

impl From<ShownTo> for Audience {
    fn from(shown_to: ShownTo) -> Self {
        match shown_to {
            ShownTo::Everyone => Self::Everyone,
            ShownTo::Contacts => Self::Contacts,
            ShownTo::Nobody => Self::Nobody,
        }
    }
}

/// A peer as the caller may see it.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PeerInfo {
    /// The name; `peer@gateway` for a peer of another gateway.
    #[schema(max_length = 181, example = "alice")]
    pub(super) peer_id: String,
    /// The key that the peer registered, or a phone's Noise key in hex; null for a peer of another
    /// gateway.
    #[schema(max_length = 4096, required)]
    public_key: Option<String>,
    /// A name for people.
    #[schema(max_length = 400, required)]
    display_name: Option<String>,
    /// Whether it is online; null where that is not shown to the caller.
    #[schema(required)]
    online: Option<bool>,
    /// When it last registered, sent or was connected; null where that is not shown to the caller.
    #[schema(required)]
    last_seen: Option<DateTime<Utc>>,
    /// When it first registered; for a peer of another gateway, when that first listed it.
    created_at: DateTime<Utc>,
    /// Whether it is a BitChat peer for phones in range of this gateway.
    on_air: bool,
    /// Its gateway, if that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 52, max_length = 52)]
    gateway: Option<String>,
    /// The transports that reach that gateway, or the phone, now; of no peer of this gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    transports: Option<Vec<String>>,
    /// When that gateway was last heard or in reach, or the phone last heard; of no peer of this
    /// gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    heard_at: Option<DateTime<Utc>>,
    /// Whether that gateway is trusted, so that the bare name may lead there; of another gateway's
    /// peer alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted: Option<bool>,
    /// How many links a phone's announces cross; of a phone alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    hops: Option<u8>,
    /// Whether a phone has proven its keys in a session; of a phone alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<bool>,
    /// What the peer decided about itself; shown to itself alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    settings: Option<PeerChoices>,
}

impl PeerInfo {
    pub(super) fn own(peer: Peer) -> Self {
        let settings = PeerChoices {
            subscribe_broadcast: peer.subscribe_broadcast,
            presence: peer.shown_to.into(),
            listed: peer.listed,
        };
        Self { settings: Some(settings), ..Self::of(peer) }
    }

    pub(super) fn seen_by(viewer: Option<&PeerId>, peer: Peer) -> Self {
        if viewer == Some(&peer.id) { Self::own(peer) } else { Self::of(peer) }
    }

    fn of(peer: Peer) -> Self {
        Self {
            peer_id: peer.id.to_string(),
            public_key: Some(peer.public_key),
            display_name: peer.display_name,
            online: peer.online,
            last_seen: peer.last_seen_at,
            created_at: peer.created_at,
            on_air: peer.on_air,
            gateway: None,
            transports: None,
            heard_at: None,
            trusted: None,
            hops: None,
            verified: None,
            settings: None,
        }
    }

    pub(super) fn phone(listed: ListedPhone) -> Self {
        let online = listed.is_in_reach();
        let phone = listed.phone;
        Self {
            peer_id: phone.id.to_string(),
            public_key: Some(HEXLOWER.encode(&phone.noise_key)),
            display_name: Some(phone.nickname),
            online: Some(online),
            last_seen: Some(phone.heard_at),
            created_at: listed.first_heard_at,
            on_air: true,
            gateway: None,
            transports: Some(listed.transports),
            heard_at: Some(phone.heard_at),
            trusted: None,
            hops: Some(phone.hops),
            verified: Some(phone.verified),
            settings: None,
        }
    }

    pub(super) fn elsewhere(gateway: &Gateway, peer: RemotePeer) -> Self {
        Self {
            peer_id: peer.address().to_string(),
            public_key: None,
            display_name: peer.display_name,
            online: None,
            last_seen: None,
            created_at: peer.listed_at,
            on_air: false,
            gateway: Some(peer.home.gateway.to_string()),
            transports: Some(peer.transports),
            heard_at: Some(peer.home.heard_at),
            trusted: Some(peer.home.is_trusted(gateway.rosters.trust())),
            hops: None,
            verified: None,
            settings: None,
        }
    }
}

/// What a peer decided about itself.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PeerChoices {
    /// Whether it gets broadcasts.
    subscribe_broadcast: bool,
    /// Who sees its presence.
    presence: Audience,
    /// Whether strangers find it in the list of peers.
    listed: bool,
}

/// A peer that was just registered.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RegisteredPeer {
    #[serde(flatten)]
    pub(super) peer: PeerInfo,
    /// Proves to be this peer; shown this once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "fp_4Jx0kYxwT3mTfW0Yv0m7rZVh3d7v7lX2eC9oQ1bN5sA")]
    pub(super) token: Option<String>,
}

/// One page of peers.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PeerList {
    /// Those of this gateway by name, then those of others by name and gateway.
    #[schema(max_items = 1000)]
    pub(super) peers: Vec<PeerInfo>,
    /// `cursor` of the next page; null at the end.
    #[schema(required)]
    pub(super) next: Option<String>,
}

/// Which peers are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct PeerFilter {
    /// Only those of whom the caller may see that they are online.
    #[param(default = false)]
    pub(super) online: Option<bool>,
}

/// Characters of an invite; more than any has.
const MAX_INVITE: usize = 200;
