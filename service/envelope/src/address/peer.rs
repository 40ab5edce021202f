use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use super::{AddressError, AddressPart, BROADCAST, GROUP_PREFIX, check_name};
use crate::text::text_type;

/// The name of a peer at its gateway: `[A-Za-z0-9][A-Za-z0-9._:-]{0,127}`.
///
/// Either a name that somebody registered, or a phone's 16 hexadecimal digits. `broadcast` in any
/// case, 32 hexadecimal digits and what starts with `group:` are no peer ids. [`parse`](Self::parse)
/// admits only what may be registered; `FromStr` and serde admit phones too, because one may write
/// to them. Cloning is cheap.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerId(Arc<str>);

impl PeerId {
    /// The longest peer id, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Reads a name that a peer may register.
    ///
    /// # Errors
    ///
    /// Says what the name should look like, or for what it is reserved.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        check_name(AddressPart::Peer, text, Self::MAX_LEN)?;
        if let Some(found) = text.chars().next().filter(|c| !c.is_ascii_alphanumeric()) {
            return Err(AddressError::Character { part: AddressPart::Peer, found, at: 0 });
        }
        if text.eq_ignore_ascii_case(BROADCAST) {
            return Err(AddressError::ReservedBroadcast);
        }
        if text.starts_with(GROUP_PREFIX) {
            return Err(AddressError::ReservedGroup);
        }
        let digits = text.len();
        if matches!(digits, PHONE_DIGITS | GROUP_DIGITS) && is_hex(text) {
            return Err(AddressError::ReservedHex { digits });
        }
        Ok(Self(text.into()))
    }

    /// Reads the name of a BitChat phone: 16 hexadecimal digits, kept in lower case.
    ///
    /// # Errors
    ///
    /// Says what else the text is.
    pub fn parse_phone(text: &str) -> Result<Self, AddressError> {
        let part = AddressPart::Phone;
        let misfit = text.char_indices().find(|(_, c)| !c.is_ascii_hexdigit());
        if let Some((at, found)) = misfit {
            return Err(AddressError::Character { part, found, at });
        }
        if text.len() != PHONE_DIGITS {
            return Err(AddressError::Length { part, length: text.len() });
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The name of the phone that identifies itself by these bytes on the air.
    pub fn phone(id: [u8; 8]) -> Self {
        Self(format!("{:016x}", u64::from_be_bytes(id)).into())
    }

    /// Whether this names a phone rather than a registered peer.
    pub fn is_phone(&self) -> bool {
        self.0.len() == PHONE_DIGITS && is_hex(&self.0)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeerId {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse_phone(text).or_else(|_| Self::parse(text))
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for PeerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for PeerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

text_type!(PeerId, "a peer id: 1 to 128 of A-Z a-z 0-9 . _ : -, the first a letter or digit");

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

const PHONE_DIGITS: usize = 16;
const GROUP_DIGITS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_may_be_registered() {
        let longest = "x".repeat(128);
        for name in ["a", "0", "Alice", "node-1.example:8000_b", "deadbeef", "groups:x", &longest] {
            assert_eq!(PeerId::parse(name).unwrap().as_str(), name);
            assert!(!PeerId::parse(name).unwrap().is_phone());
        }
    }

    #[test]
    fn reserved_names_may_not_be_registered() {
        for (name, error) in [
            ("broadcast", AddressError::ReservedBroadcast),
            ("BROADcast", AddressError::ReservedBroadcast),
            ("group:", AddressError::ReservedGroup),
            ("group:x", AddressError::ReservedGroup),
            ("0123456789abcdef", AddressError::ReservedHex { digits: 16 }),
            ("0123456789ABCDEF", AddressError::ReservedHex { digits: 16 }),
            ("0123456789abcdef0123456789abcdef", AddressError::ReservedHex { digits: 32 }),
        ] {
            assert_eq!(PeerId::parse(name), Err(error), "{name}");
        }
    }

    #[test]
    fn names_of_the_wrong_shape_are_refused() {
        let part = AddressPart::Peer;
        let long = "x".repeat(129);
        for (name, error) in [
            ("", AddressError::Empty { part }),
            (long.as_str(), AddressError::Length { part, length: 129 }),
            (".x", AddressError::Character { part, found: '.', at: 0 }),
            ("x y", AddressError::Character { part, found: ' ', at: 1 }),
            ("x\0", AddressError::Character { part, found: '\0', at: 1 }),
            ("zoë", AddressError::Character { part, found: 'ë', at: 2 }),
            ("a@b", AddressError::Character { part, found: '@', at: 1 }),
            ("a/b", AddressError::Character { part, found: '/', at: 1 }),
        ] {
            assert_eq!(PeerId::parse(name), Err(error), "{name}");
        }
    }

    #[test]
    fn a_phone_is_one_peer_in_whatever_case_it_is_written() {
        let phone = PeerId::phone([0, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd]);
        assert_eq!(phone.as_str(), "000123456789abcd");
        assert!(phone.is_phone());
        assert_eq!("000123456789ABCD".parse(), Ok(phone));
        assert_eq!(
            PeerId::parse_phone("0123"),
            Err(AddressError::Length { part: AddressPart::Phone, length: 4 })
        );
        assert_eq!(
            PeerId::parse_phone("0123x"),
            Err(AddressError::Character { part: AddressPart::Phone, found: 'x', at: 4 })
        );
    }
}
