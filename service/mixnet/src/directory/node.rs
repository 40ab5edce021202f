use std::fmt;

use ed25519_dalek::{SigningKey, VerifyingKey};
use hkdf::Hkdf;
use rand::{SeedableRng, rngs::StdRng};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::descriptor::RelayId;
use crate::htx::{CarrierPolicy, SecretKey, TicketKey};

/// The lasting keys of a node, all drawn from its Ed25519 key by HKDF-SHA256, so that one secret is
/// to be kept.
///
/// None of them opens what others sealed or sent: links agree on fresh keys, and packets and
/// contents are for the keys of an epoch (HTX reference, sections 1.3 and 5).
pub struct NodeKeys {
    identity: SigningKey,
    noise: SecretKey,
    ticket: SecretKey,
    vrf: VerifyingKey,
    carriers: CarrierPolicy,
}

impl NodeKeys {
    /// The keys of the node with this identity.
    pub fn derive(identity: SigningKey) -> Self {
        let part = |name: &str| {
            let hkdf = Hkdf::<Sha256>::new(Some(b"fieldpost-htx-node-v1"), identity.as_bytes());
            let mut part = Zeroizing::new([0; 32]);
            hkdf.expand(name.as_bytes(), part.as_mut()).expect("32 bytes are not too many");
            part
        };
        Self {
            noise: SecretKey::from_bytes(&part("noise")),
            ticket: SecretKey::from_bytes(&part("ticket")),
            vrf: SigningKey::from_bytes(&part("vrf")).verifying_key(),
            carriers: CarrierPolicy::draw(&mut StdRng::from_seed(*part("carriers"))),
            identity,
        }
    }

    /// The node's id.
    pub fn id(&self) -> RelayId {
        RelayId::of(&self.identity.verifying_key())
    }

    /// What it signs descriptors with.
    pub fn identity(&self) -> &SigningKey {
        &self.identity
    }

    /// The static key of links to and from it.
    pub fn noise(&self) -> &SecretKey {
        &self.noise
    }

    /// What tickets for it are judged with.
    pub fn ticket(&self) -> &SecretKey {
        &self.ticket
    }

    /// What tickets for it are made for. The key's name is the start of the key.
    pub fn ticket_key(&self) -> TicketKey {
        let public = *self.ticket.public();
        TicketKey { id: std::array::from_fn(|at| public[at]), public }
    }

    /// The public half of the key of its draws in the relay lottery.
    pub fn vrf(&self) -> [u8; 32] {
        self.vrf.to_bytes()
    }

    /// How it wants to be shown tickets.
    pub fn carriers(&self) -> &CarrierPolicy {
        &self.carriers
    }
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKeys").field("id", &self.id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_identity_has_one_set_of_keys_and_they_differ() {
        let keys = |seed| NodeKeys::derive(SigningKey::from_bytes(&[seed; 32]));
        let (one, same, other) = (keys(1), keys(1), keys(2));
        assert_eq!(one.noise().public(), same.noise().public());
        assert_eq!((one.vrf(), one.carriers()), (same.vrf(), same.carriers()));
        assert_ne!(one.noise().public(), other.noise().public());
        assert_ne!(one.noise().public(), one.ticket().public());
        assert_ne!(one.vrf(), one.identity().verifying_key().to_bytes());
    }
}
