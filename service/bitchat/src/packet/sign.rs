//! Signatures over packets (BitChat protocol reference, section 2.3).

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use super::{Packet, padding};

impl Packet {
    /// What is signed: this packet with `hops_left` 0, without signature and solicited mark, and
    /// with padding, compressed as it travels.
    pub fn signing_preimage(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        self.write(&mut bytes, 0, false, None);
        padding::pad(&mut bytes);
        bytes
    }

    /// Signs the packet as it stands. Changing anything but `hops_left` and `solicited` afterwards
    /// breaks the signature.
    pub fn sign(&mut self, key: &SigningKey) {
        self.signature = Some(key.sign(&self.signing_preimage()).to_bytes());
    }

    /// Whether the holder of `key` signed this packet.
    pub fn is_signed_by(&self, key: &[u8; 32]) -> bool {
        let (Some(signature), Ok(key)) = (&self.signature, VerifyingKey::from_bytes(key)) else {
            return false;
        };
        key.verify_strict(&self.signing_preimage(), &Signature::from_bytes(signature)).is_ok()
    }
}
