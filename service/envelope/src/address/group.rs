use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use super::{AddressError, AddressPart, check_name};
use crate::text::text_type;

/// The name of a group at its home gateway: 1 to 128 of `A-Z a-z 0-9 . _ : -`.
///
/// Groups that the gateway names have 32 hexadecimal digits. Cloning is cheap.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GroupId(Arc<str>);

impl GroupId {
    /// The longest group id, in bytes.
    pub const MAX_LEN: usize = 128;

    /// The name that a gateway gives from 16 random bytes.
    pub fn generated(random: [u8; 16]) -> Self {
        Self(format!("{:032x}", u128::from_be_bytes(random)).into())
    }

    /// The name as text, without `group:`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupId {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        check_name(AddressPart::Group, text, Self::MAX_LEN)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for GroupId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for GroupId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

text_type!(GroupId, "a group id: 1 to 128 of A-Z a-z 0-9 . _ : -");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_are_32_hexadecimal_digits() {
        let id = GroupId::generated([0xab; 16]);
        assert_eq!(id.as_str(), "ab".repeat(16));
        assert_eq!(id.as_str().parse(), Ok(id));
    }

    #[test]
    fn ids_of_the_wrong_shape_are_refused() {
        let part = AddressPart::Group;
        assert_eq!("".parse::<GroupId>(), Err(AddressError::Empty { part }));
        assert_eq!(
            "a b".parse::<GroupId>(),
            Err(AddressError::Character { part, found: ' ', at: 1 })
        );
        assert_eq!(
            "g".repeat(129).parse::<GroupId>(),
            Err(AddressError::Length { part, length: 129 })
        );
    }
}
