//! Who sends and who receives: peers, groups, gateways and how they are written (design, section 4).
//!
//! | Written | Means |
//! |---|---|
//! | `alice` | a peer of this gateway, or one that the gateway resolves |
//! | `a1b2c3d4e5f60718` | a BitChat phone in range |
//! | `alice@<gateway>` | a peer of that gateway |
//! | `group:hikers`, `group:hikers@<gateway>` | a group here, a group of that gateway |
//! | `broadcast` | everybody in reach |

mod gateway;
mod group;
mod peer;

use std::{fmt, str::FromStr};

use thiserror::Error;

pub use self::{gateway::GatewayId, group::GroupId, peer::PeerId};
use crate::text::text_type;

/// Whom a message is for.
///
/// Written as `peer`, `peer@gateway`, `group:<id>`, `group:<id>@<home>` or `broadcast`; the last is
/// read in any case and written in lower case.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Recipient {
    /// One peer.
    Peer(PeerAddress),
    /// All members of a group but the sender.
    Group {
        /// The group's name at its home.
        id: GroupId,
        /// The gateway that knows the members; `None` is the gateway that reads this.
        home: Option<GatewayId>,
    },
    /// Every peer in reach that listens to broadcasts.
    Broadcast,
}

impl Recipient {
    /// The longest text of a recipient, in bytes: a remote group.
    pub const MAX_LEN: usize = GROUP_PREFIX.len() + GroupId::MAX_LEN + 1 + GatewayId::TEXT_LEN;

    /// The gateway named in the text, if any.
    pub fn gateway(&self) -> Option<GatewayId> {
        match self {
            Self::Peer(address) => address.gateway,
            Self::Group { home, .. } => *home,
            Self::Broadcast => None,
        }
    }

    /// The peer, if the recipient is one.
    pub fn as_peer(&self) -> Option<&PeerAddress> {
        match self {
            Self::Peer(address) => Some(address),
            Self::Group { .. } | Self::Broadcast => None,
        }
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(address) => address.fmt(f),
            Self::Group { id, home: None } => write!(f, "{GROUP_PREFIX}{id}"),
            Self::Group { id, home: Some(home) } => write!(f, "{GROUP_PREFIX}{id}@{home}"),
            Self::Broadcast => f.write_str(BROADCAST),
        }
    }
}

impl FromStr for Recipient {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.eq_ignore_ascii_case(BROADCAST) {
            return Ok(Self::Broadcast);
        }
        match text.strip_prefix(GROUP_PREFIX) {
            Some(group) => {
                let (id, home) = split_gateway(group)?;
                Ok(Self::Group { id: id.parse()?, home })
            }
            None => text.parse().map(Self::Peer),
        }
    }
}

impl From<PeerAddress> for Recipient {
    fn from(address: PeerAddress) -> Self {
        Self::Peer(address)
    }
}

impl From<PeerId> for Recipient {
    fn from(peer: PeerId) -> Self {
        Self::Peer(peer.into())
    }
}

text_type!(Recipient, "a peer, `peer@gateway`, `group:<id>`, `group:<id>@<home>` or `broadcast`");

/// A peer, here or at another gateway: `peer` or `peer@gateway`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerAddress {
    /// The peer's name at its gateway.
    pub peer: PeerId,
    /// Where the peer is at home; `None` is the gateway that reads this.
    pub gateway: Option<GatewayId>,
}

impl PeerAddress {
    /// The longest text of an address, in bytes.
    pub const MAX_LEN: usize = PeerId::MAX_LEN + 1 + GatewayId::TEXT_LEN;

    /// A peer of another gateway.
    pub fn remote(peer: PeerId, gateway: GatewayId) -> Self {
        Self { peer, gateway: Some(gateway) }
    }

    /// A peer of the gateway that reads this.
    pub fn local(peer: PeerId) -> Self {
        Self { peer, gateway: None }
    }

    /// The same peer as `gateway` itself writes it: without its own name.
    pub fn seen_from(self, gateway: GatewayId) -> Self {
        Self { gateway: self.gateway.filter(|home| *home != gateway), ..self }
    }

    /// The same peer as another gateway writes it, where a bare name is one of `gateway`.
    pub fn qualified(self, gateway: GatewayId) -> Self {
        Self { gateway: Some(self.gateway.unwrap_or(gateway)), ..self }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gateway {
            Some(gateway) => write!(f, "{}@{gateway}", self.peer),
            None => self.peer.fmt(f),
        }
    }
}

impl FromStr for PeerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (peer, gateway) = split_gateway(text)?;
        Ok(Self { peer: peer.parse()?, gateway })
    }
}

impl From<PeerId> for PeerAddress {
    fn from(peer: PeerId) -> Self {
        Self::local(peer)
    }
}

text_type!(PeerAddress, "a peer or `peer@gateway`");

/// Why a text is not an address.
///
/// The messages are meant for whoever wrote the address. They never repeat more of it than one
/// character.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum AddressError {
    /// There is no name where one is needed.
    #[error("{part} is empty: expected {}", part.expected())]
    Empty {
        /// What is empty.
        part: AddressPart,
    },
    /// The name is longer than any can be.
    #[error("{part} has {length} bytes: expected {}", part.expected())]
    Length {
        /// What is too long or too short.
        part: AddressPart,
        /// How long it is, in bytes.
        length: usize,
    },
    /// A character that the name may not hold, or not in that place.
    #[error("{part} has {found:?} at byte {at}: expected {}", part.expected())]
    Character {
        /// What holds the character.
        part: AddressPart,
        /// The first character that is out of place.
        found: char,
        /// Where it is, in bytes from the start of that part.
        at: usize,
    },
    /// `broadcast` addresses everybody, so no peer can have that name in any case.
    #[error("`broadcast` is reserved for messages to everybody: choose another peer id")]
    ReservedBroadcast,
    /// 16 hexadecimal digits name a phone, 32 a group.
    #[error(
        "peer ids of exactly {digits} hexadecimal digits are reserved for {}: choose another peer id",
        if *.digits == 16 { "phones" } else { "groups" }
    )]
    ReservedHex {
        /// How many digits the name has.
        digits: usize,
    },
    /// `group:` starts the address of a group.
    #[error("`group:` is reserved for groups: choose a peer id that does not start with it")]
    ReservedGroup,
    /// The last character of a gateway id holds bits that belong to no byte.
    #[error("gateway id has bits set past its 256: expected `a` or `q` as its last character")]
    TrailingBits,
}

/// A part of an address, for [`AddressError`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AddressPart {
    /// A [`PeerId`].
    Peer,
    /// The name of a BitChat phone.
    Phone,
    /// A [`GroupId`].
    Group,
    /// A [`GatewayId`].
    Gateway,
}

impl AddressPart {
    fn expected(self) -> &'static str {
        match self {
            Self::Peer => {
                "1 to 128 of A-Z a-z 0-9 . _ : -, the first a letter or digit, \
                 then perhaps `@` and a gateway id"
            }
            Self::Phone => "16 hexadecimal digits",
            Self::Group => "1 to 128 of A-Z a-z 0-9 . _ : -",
            Self::Gateway => "52 of a-z 2-7",
        }
    }
}

impl fmt::Display for AddressPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "peer id",
            Self::Phone => "phone id",
            Self::Group => "group id",
            Self::Gateway => "gateway id",
        })
    }
}

fn split_gateway(text: &str) -> Result<(&str, Option<GatewayId>), AddressError> {
    match text.split_once('@') {
        Some((name, gateway)) => Ok((name, Some(gateway.parse()?))),
        None => Ok((text, None)),
    }
}

fn check_name(part: AddressPart, text: &str, most: usize) -> Result<(), AddressError> {
    if text.is_empty() {
        return Err(AddressError::Empty { part });
    }
    if text.len() > most {
        return Err(AddressError::Length { part, length: text.len() });
    }
    let misfit = text.char_indices().find(|(_, c)| !is_name_character(*c));
    match misfit {
        Some((at, found)) => Err(AddressError::Character { part, found, at }),
        None => Ok(()),
    }
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-')
}

const BROADCAST: &str = "broadcast";
const GROUP_PREFIX: &str = "group:";

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa";

    #[test]
    fn every_form_of_a_recipient_reads_back_as_it_was_written() {
        let longest = format!("group:{}@{GATEWAY}", "g".repeat(128));
        assert_eq!(longest.len(), Recipient::MAX_LEN);
        for text in [
            "alice",
            "a1b2c3d4e5f60718",
            &format!("alice@{GATEWAY}"),
            "group:hikers",
            "group:0123456789abcdef0123456789abcdef",
            &format!("group:hikers@{GATEWAY}"),
            "broadcast",
            &longest,
        ] {
            assert_eq!(text.parse::<Recipient>().unwrap().to_string(), text);
        }
        assert_eq!("BroadCast".parse(), Ok(Recipient::Broadcast));
    }

    #[test]
    fn a_full_address_has_at_most_181_characters() {
        assert_eq!(PeerAddress::MAX_LEN, 181);
        let longest = format!("{}@{GATEWAY}", "p".repeat(128));
        assert_eq!(longest.parse::<PeerAddress>().unwrap().to_string(), longest);
        let longer = format!("{}@{GATEWAY}", "p".repeat(129));
        assert_eq!(
            longer.parse::<PeerAddress>(),
            Err(AddressError::Length { part: AddressPart::Peer, length: 129 })
        );
    }

    #[test]
    fn reserved_names_are_no_addresses_either() {
        for (text, error) in [
            (format!("broadcast@{GATEWAY}"), AddressError::ReservedBroadcast),
            (format!("group:a@{GATEWAY}"), AddressError::ReservedGroup),
            ("0".repeat(32), AddressError::ReservedHex { digits: 32 }),
            (String::new(), AddressError::Empty { part: AddressPart::Peer }),
            ("alice@".into(), AddressError::Length { part: AddressPart::Gateway, length: 0 }),
        ] {
            assert_eq!(text.parse::<PeerAddress>(), Err(error), "{text}");
        }
    }

    #[test]
    fn messages_say_what_would_be_right_without_repeating_the_input() {
        let hostile = format!("x{}", "\u{1b}[31m".repeat(10_000));
        let message = hostile.parse::<Recipient>().unwrap_err().to_string();
        assert!(message.contains("expected 1 to 128 of"), "{message}");
        assert!(message.len() < 200 && !message.contains('\u{1b}'), "{message}");

        let message = "a b".parse::<Recipient>().unwrap_err().to_string();
        assert!(message.starts_with("peer id has ' ' at byte 1: expected"), "{message}");
    }

    #[test]
    fn a_gateway_drops_its_own_name_and_adds_it_for_others() {
        let here: GatewayId = GATEWAY.parse().unwrap();
        let alice = PeerAddress::local("alice".parse().unwrap());
        let full = alice.clone().qualified(here);
        assert_eq!(full.to_string(), format!("alice@{GATEWAY}"));
        assert_eq!(full.clone().seen_from(here), alice);
        let elsewhere = GatewayId::from_bytes([9; 32]);
        assert_eq!(full.clone().seen_from(elsewhere), full);
    }

    #[test]
    fn addresses_are_strings_in_json() {
        let recipient: Recipient = serde_json::from_str(r#""group:hikers""#).unwrap();
        assert_eq!(serde_json::to_string(&recipient).unwrap(), r#""group:hikers""#);
        let error = serde_json::from_str::<PeerAddress>(r#""-x""#).unwrap_err().to_string();
        assert!(error.starts_with("peer id has '-' at byte 0"), "{error}");
    }
}
