//! Who is at a gateway, in that gateway's word (design, section 4).
//!
//! ```text
//! signed roster = payload || signature (64 bytes)
//! signature     = Ed25519(gateway's key, "fieldpost-roster-v1" || payload)
//! payload       = { 0: 1, 1: gateway (32 bytes), 2: number, 3: base, if any,
//!                   4: peers, 5: removed, unless empty }
//! ```
//!
//! The payload is deterministic CBOR like an envelope's. `peers` is an array of `[peer id]` or
//! `[peer id, display name]`, `removed` one of peer ids; both ascend by the bytes of the peer id, and
//! no peer is in both. A roster without base is whole; one with a base is a delta that makes this
//! roster of that one: its peers are added or take the place of their namesakes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ed25519_dalek::SigningKey;

use crate::{
    address::{GatewayId, PeerId},
    codec::{
        DecodeError, SignError, VerifyError,
        decode::{read_gateway, read_peer},
        reader::{Item, Map},
        signature::{self, SIGNATURE_LENGTH},
        writer::MapWriter,
    },
    envelope::{FieldName, Violation, check_text, limits, within},
};

/// The peers of a gateway, or how they changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Roster {
    /// The gateway whose peers these are.
    pub gateway: GatewayId,
    /// Which roster of the gateway this is; later ones have greater numbers: the greater of the last
    /// and one, and the time in milliseconds.
    pub number: u64,
    /// The roster that this one changes; none if this one is whole.
    pub base: Option<u64>,
    /// Who is here, or has come or changed since the base. In ascending order once signed.
    pub peers: Vec<Listing>,
    /// Who has gone since the base. In ascending order once signed.
    pub removed: Vec<PeerId>,
}

/// One peer in a roster.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Listing {
    /// Its name at the gateway.
    pub peer: PeerId,
    /// Its name for people.
    pub display_name: Option<String>,
}

impl Roster {
    /// Encodes and signs the roster as the gateway that it names.
    ///
    /// The same peers give the same bytes, in whatever order they are given.
    ///
    /// # Errors
    ///
    /// It names another gateway, breaks a rule, or holds more than [`limits`] allow.
    pub fn sign(&self, key: &SigningKey) -> Result<SignedRoster, SignError> {
        let signer = GatewayId::from(key.verifying_key());
        if self.gateway != signer {
            return Err(SignError::SignerOfAnother { signer });
        }
        let mut roster = self.clone();
        roster.peers.sort_unstable();
        roster.removed.sort_unstable();
        roster.check()?;
        let bytes = signature::sign(SIGNATURE_CONTEXT, roster.encode(), key);
        within(FieldName::Listings, bytes.len(), limits::ROSTER)?;
        Ok(SignedRoster { bytes, roster })
    }

    /// The delta that leads from `earlier` to this roster, where both are whole.
    pub fn delta_from(&self, earlier: &Self) -> Self {
        let before: BTreeMap<_, _> =
            earlier.peers.iter().map(|listing| (&listing.peer, listing)).collect();
        let here: BTreeSet<_> = self.peers.iter().map(|listing| &listing.peer).collect();
        let is_news = |listing: &&Listing| before.get(&listing.peer) != Some(listing);
        Self {
            base: Some(earlier.number),
            peers: self.peers.iter().filter(is_news).cloned().collect(),
            removed: before
                .keys()
                .filter(|peer| !here.contains(**peer))
                .map(|peer| (*peer).clone())
                .collect(),
            ..*self
        }
    }

    fn check(&self) -> Result<(), Violation> {
        let (number, most) = (self.number, limits::ROSTER_NUMBER);
        if number == 0 || number > most {
            return Err(Violation::RosterNumber { number, most });
        }
        match self.base {
            Some(base) if base >= number => return Err(Violation::BaseNotEarlier { number, base }),
            None if !self.removed.is_empty() => return Err(Violation::RemovedWithoutBase),
            _ => {}
        }
        let count = self.peers.len() + self.removed.len();
        within(FieldName::Listings, count, limits::ROSTER_PEERS)?;
        let listed = self.peers.iter().map(|listing| &listing.peer);
        let named: BTreeSet<_> = listed.chain(&self.removed).collect();
        if named.len() != count {
            return Err(Violation::ListedTwice);
        }
        self.peers
            .iter()
            .filter_map(|listing| listing.display_name.as_deref())
            .try_for_each(|name| check_text(FieldName::DisplayName, name, limits::DISPLAY_NAME))
    }

    fn encode(&self) -> Vec<u8> {
        let mut map = MapWriter::with_capacity(64 + 32 * self.peers.len());
        map.key(0).uint(VERSION);
        map.key(1).bytes(self.gateway.as_bytes());
        map.key(2).uint(self.number);
        if let Some(base) = self.base {
            map.key(3).uint(base);
        }
        let writer = map.key(4);
        writer.array(self.peers.len());
        for Listing { peer, display_name } in &self.peers {
            writer.array(1 + usize::from(display_name.is_some()));
            writer.text(peer.as_str());
            if let Some(name) = display_name {
                writer.text(name);
            }
        }
        if !self.removed.is_empty() {
            let writer = map.key(5);
            writer.array(self.removed.len());
            self.removed.iter().for_each(|peer| writer.text(peer.as_str()));
        }
        map.finish()
    }
}

/// A roster with its signature, ready to travel or just arrived.
///
/// Who is in it comes out of [`verify`](Self::verify) alone.
#[derive(Clone)]
pub struct SignedRoster {
    bytes: Vec<u8>,
    roster: Roster,
}

impl SignedRoster {
    /// Reads bytes that came from somebody. The signature is not looked at yet.
    ///
    /// What decodes encodes to the same bytes again.
    ///
    /// # Errors
    ///
    /// Says what is wrong with them; none of the errors is a bug on our side.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (length, most) = (bytes.len(), limits::ROSTER);
        if length > most {
            return Err(DecodeError::Oversize { length, most });
        }
        let (payload, _) =
            bytes.split_last_chunk::<SIGNATURE_LENGTH>().ok_or(DecodeError::Truncated)?;
        let mut map = Map::begin(payload)?;
        let version = map.required(0, FieldName::Version)?.uint()?;
        if version != VERSION {
            return Err(DecodeError::UnsupportedVersion(version));
        }
        let roster = Roster {
            gateway: read_gateway(map.required(1, FieldName::Gateway)?)?,
            number: map.required(2, FieldName::RosterNumber)?.uint()?,
            base: match map.optional(3, FieldName::Base)? {
                Some(mut item) => Some(item.uint()?),
                None => None,
            },
            peers: read_listings(map.required(4, FieldName::Listings)?)?,
            removed: match map.optional(5, FieldName::Removed)? {
                Some(item) => read_removed(item)?,
                None => Vec::new(),
            },
        };
        map.finish()?;
        roster.check()?;
        debug_assert!(roster.encode() == payload, "one roster has one encoding");
        Ok(Self { bytes: bytes.to_vec(), roster })
    }

    /// The bytes to send, at most [`limits::ROSTER`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes to send.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The gateway whose roster this claims to be; true once [`verify`](Self::verify) succeeded.
    pub fn gateway(&self) -> GatewayId {
        self.roster.gateway
    }

    /// Which roster of the gateway this claims to be.
    pub fn number(&self) -> u64 {
        self.roster.number
    }

    /// The roster that this claims to change; none if it is whole.
    pub fn base(&self) -> Option<u64> {
        self.roster.base
    }

    /// Verifies the signature and gives out what was said.
    ///
    /// # Errors
    ///
    /// The gateway that it names did not sign it.
    pub fn verify(self) -> Result<Roster, VerifyError> {
        signature::verify(SIGNATURE_CONTEXT, &self.bytes, self.roster.gateway)?;
        Ok(self.roster)
    }
}

impl Eq for SignedRoster {}

impl PartialEq for SignedRoster {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl fmt::Debug for SignedRoster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedRoster")
            .field("gateway", &self.gateway())
            .field("number", &self.number())
            .field("base", &self.base())
            .field("size_bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

fn read_listings(mut item: Item<'_, '_>) -> Result<Vec<Listing>, DecodeError> {
    let count = item.array_length(limits::ROSTER_PEERS)?;
    let mut peers: Vec<Listing> = Vec::new();
    for _ in 0..count {
        let field = FieldName::Listing;
        let length = item.part(field).array_length(2)?;
        if length == 0 {
            return Err(DecodeError::Length { field, length, expected: 1 });
        }
        let peer = read_peer(item.part(field))?;
        let display_name = match length {
            2 => Some(item.part(FieldName::DisplayName).text(limits::DISPLAY_NAME)?.to_owned()),
            _ => None,
        };
        if peers.last().is_some_and(|last| last.peer >= peer) {
            return Err(DecodeError::NameOrder { field: FieldName::Listings });
        }
        peers.push(Listing { peer, display_name });
    }
    Ok(peers)
}

fn read_removed(mut item: Item<'_, '_>) -> Result<Vec<PeerId>, DecodeError> {
    let field = FieldName::Removed;
    let count = item.array_length(limits::ROSTER_PEERS)?;
    if count == 0 {
        return Err(DecodeError::Empty { field });
    }
    let mut removed: Vec<PeerId> = Vec::new();
    for _ in 0..count {
        let peer = read_peer(item.part(field))?;
        if removed.last().is_some_and(|last| *last >= peer) {
            return Err(DecodeError::NameOrder { field });
        }
        removed.push(peer);
    }
    Ok(removed)
}

const SIGNATURE_CONTEXT: &[u8] = b"fieldpost-roster-v1";
const VERSION: u64 = 1;
