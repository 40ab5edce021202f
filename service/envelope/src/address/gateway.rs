use std::{fmt, str::FromStr, sync::LazyLock};

use data_encoding::{DecodeKind, Encoding, Specification};
use ed25519_dalek::{SignatureError, VerifyingKey};

use super::{AddressError, AddressPart};
use crate::text::text_type;

/// A gateway: the bytes of its Ed25519 verifying key.
///
/// Written as RFC 4648 base32 in lower case without padding, 52 characters. One key has one text:
/// other cases, padding and stray bits in the last character are refused. Whether the bytes are a
/// point on the curve shows when a signature is verified.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GatewayId([u8; 32]);

impl GatewayId {
    /// The length of the text, in bytes.
    pub const TEXT_LEN: usize = 52;

    /// The gateway with this key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that the gateway's signatures are verified with.
    ///
    /// # Errors
    ///
    /// The bytes are no point on the curve, so nobody can sign as this gateway.
    pub fn verifying_key(&self) -> Result<VerifyingKey, SignatureError> {
        VerifyingKey::from_bytes(&self.0)
    }
}

impl From<VerifyingKey> for GatewayId {
    fn from(key: VerifyingKey) -> Self {
        Self(key.to_bytes())
    }
}

impl FromStr for GatewayId {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let part = AddressPart::Gateway;
        let misfit = text.char_indices().find(|(_, c)| !matches!(c, 'a'..='z' | '2'..='7'));
        if text.len() != Self::TEXT_LEN {
            return Err(AddressError::Length { part, length: text.len() });
        }
        if let Some((at, found)) = misfit {
            return Err(AddressError::Character { part, found, at });
        }
        let mut bytes = [0; 32];
        match BASE32.decode_mut(text.as_bytes(), &mut bytes) {
            Ok(_) => Ok(Self(bytes)),
            Err(partial) => {
                debug_assert_eq!(partial.error.kind, DecodeKind::Trailing);
                Err(AddressError::TrailingBits)
            }
        }
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; Self::TEXT_LEN];
        BASE32.encode_mut(&self.0, &mut text);
        f.pad(str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GatewayId({self})")
    }
}

text_type!(GatewayId, "a gateway id: 52 of a-z 2-7");

static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 distinct symbols make a base32 encoding")
});

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa";

    #[test]
    fn the_text_is_lower_case_base32_without_padding() {
        let bytes: Vec<u8> = (1..=32).collect();
        let id = GatewayId::from_bytes(bytes.try_into().unwrap());
        assert_eq!(id.to_string(), TEXT);
        assert_eq!(TEXT.parse(), Ok(id));
        assert_eq!(format!("{id:?}"), format!("GatewayId({TEXT})"));
    }

    #[test]
    fn a_key_has_only_one_text() {
        let part = AddressPart::Gateway;
        let last = |c: char| format!("{}{c}", &TEXT[..51]);
        for (text, error) in [
            (last('b'), AddressError::TrailingBits),
            (last('p'), AddressError::TrailingBits),
            (TEXT.to_uppercase(), AddressError::Character { part, found: 'A', at: 0 }),
            (format!("{TEXT}===="), AddressError::Length { part, length: 56 }),
            (TEXT[..51].into(), AddressError::Length { part, length: 51 }),
            (last('1'), AddressError::Character { part, found: '1', at: 51 }),
        ] {
            assert_eq!(text.parse::<GatewayId>(), Err(error), "{text}");
        }
        assert!(last('q').parse::<GatewayId>().is_ok());
    }
}
