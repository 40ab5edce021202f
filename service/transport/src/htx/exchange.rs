use std::fmt;

use fieldpost_mixnet::htx::SecretKey;
use rand::{TryRng, rngs::SysRng};
use rustls::{
    Error, NamedGroup, PeerMisbehaved,
    crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup},
};
use zeroize::Zeroizing;

/// X25519 for TLS, from the implementation that the links use inside: it takes two thirds of the
/// time of ring's (HTX reference, section 7).
pub(super) static X25519: &dyn SupportedKxGroup = &Group;

struct Group;

impl SupportedKxGroup for Group {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        SysRng.try_fill_bytes(bytes.as_mut()).map_err(|_| Error::FailedToGetRandomBytes)?;
        Ok(Box::new(Exchange(SecretKey::from_bytes(&bytes))))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

struct Exchange(SecretKey);

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer_pub_key: &[u8]) -> Result<SharedSecret, Error> {
        let peer = peer_pub_key.try_into().map_err(|_| PeerMisbehaved::InvalidKeyShare)?;
        // A key of small order agrees on nothing (RFC 8446, section 7.4.2).
        let shared = self.0.agree(peer).ok_or(PeerMisbehaved::InvalidKeyShare)?;
        Ok(SharedSecret::from(&shared[..]))
    }

    fn pub_key(&self) -> &[u8] {
        self.0.public()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::ring::kx_group;

    use super::*;

    #[test]
    fn both_sides_agree_with_ring_and_refuse_what_is_no_key() {
        for (one, other) in [(X25519, kx_group::X25519), (kx_group::X25519, X25519)] {
            let begun = one.start().unwrap();
            let answer = other.start_and_complete(begun.pub_key()).unwrap();
            let shared = begun.complete(&answer.pub_key).unwrap();
            assert_eq!(shared.secret_bytes(), answer.secret.secret_bytes());
        }
        for bad in [&[0; 32][..], &[9; 31], &[9; 33], &[]] {
            assert!(X25519.start_and_complete(bad).is_err());
        }
    }
}
