//! The eight bytes by which the mesh names a peer.

use std::fmt;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// A peer's name on the mesh: the first 8 bytes of the SHA-256 of its Noise key (BitChat protocol
/// reference, section 4.1). The order is that of the lower-case hex strings.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MeshId(pub [u8; 8]);

impl MeshId {
    /// What Android writes as the recipient of a broadcast; iOS writes no recipient.
    pub const BROADCAST: Self = Self([0xff; 8]);

    /// The name that belongs to a Noise static public key.
    pub fn of_noise_key(key: &[u8; 32]) -> Self {
        let digest = Sha256::digest(key);
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        Self(id)
    }

    /// Reads 16 hex digits, in either case.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = HEXLOWER.decode(text.to_ascii_lowercase().as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// 16 lower-case hex digits.
    pub fn to_hex(self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

impl fmt::Display for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// The SHA-256 of a peer's Noise key: what people compare.
pub fn fingerprint(noise_key: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(noise_key).into()
}
