//! X25519 as a group for Sphinx.
//!
//! aws-lc multiplies; it is twice as fast as anything else that is kept (HTX reference, section 7).
//! Scalars are multiplied by each other with curve25519-dalek.

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey};
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use subtle::{Choice, ConditionallySelectable};
use zeroize::Zeroizing;

use super::suite::Group;

/// X25519 (RFC 7748), with clamped scalars.
#[derive(Debug)]
pub struct X25519;

impl Group for X25519 {
    type Secret = PrivateKey;

    fn secret(bytes: &[u8; 32]) -> Option<PrivateKey> {
        PrivateKey::from_private_key(&agreement::X25519, bytes).ok()
    }

    fn public(secret: &PrivateKey) -> Option<[u8; 32]> {
        secret.compute_public_key().ok()?.as_ref().try_into().ok()
    }

    fn multiply(secret: &PrivateKey, element: &[u8; 32]) -> Option<[u8; 32]> {
        let element = UnparsedPublicKey::new(&agreement::X25519, element);
        // The library refuses a product of all zeros, as RFC 7748 section 6.1 asks.
        agreement::agree(secret, element, (), |shared| shared.try_into().map_err(|_| ())).ok()
    }

    /// Scalars are clamped, hence multiples of 8 with bit 254 set, and the product has to be one
    /// too: a hop multiplies twice, so the sender's one multiplication must kill a part of small
    /// order as well. Modulo 8 times the group's order, either the product or its negative has
    /// that form, and X25519 looks at u-coordinates alone, which both share.
    fn product(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
        let left = Zeroizing::new(clamp_integer(*left));
        let right = Zeroizing::new(clamp_integer(*right));
        let eighth = Zeroizing::new(shifted_down(&right));
        let product = Scalar::from_bytes_mod_order(*left) * Scalar::from_bytes_mod_order(*eighth);
        // Bit 254 of the result is bit 251 of its eighth.
        let high = Choice::from((product.as_bytes()[31] >> 3) & 1);
        let product = Scalar::conditional_select(&-product, &product, high);
        shifted_up(product.as_bytes())
    }
}

fn shifted_down(bytes: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|at| {
        let above = bytes.get(at + 1).copied().unwrap_or(0);
        (bytes[at] >> 3) | (above << 5)
    })
}

fn shifted_up(bytes: &[u8; 32]) -> [u8; 32] {
    std::array::from_fn(|at| {
        let below = if at == 0 { 0 } else { bytes[at - 1] };
        (bytes[at] << 3) | (below >> 5)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn multiplying_by_a_product_is_multiplying_twice(
            left: [u8; 32], right: [u8; 32], point: [u8; 32]
        ) {
            let element = times(&point, &BASE).unwrap();
            let twice = times(&right, &times(&left, &element).unwrap()).unwrap();
            let product = X25519::product(&left, &right);
            prop_assert_eq!(product, clamp_integer(product));
            prop_assert_eq!(times(&product, &element), Some(twice));
        }

        #[test]
        fn the_product_kills_what_is_of_small_order(left: [u8; 32], right: [u8; 32]) {
            let product = X25519::product(&left, &right);
            for element in small_order() {
                prop_assert_eq!(times(&product, &element), None);
                prop_assert_eq!(times(&left, &element), None);
            }
        }
    }

    #[test]
    fn an_element_on_the_twist_is_multiplied_like_any_other() {
        // u = 2 lies on the twist. No sender makes such an element; a relay that gets one finds out
        // by the MAC, not earlier.
        let mut element = [0; 32];
        element[0] = 2;
        assert!(times(&[7; 32], &element).is_some());
    }

    fn times(scalar: &[u8; 32], element: &[u8; 32]) -> Option<[u8; 32]> {
        X25519::multiply(&X25519::secret(scalar).unwrap(), element)
    }

    fn small_order() -> [[u8; 32]; 3] {
        let mut one = [0; 32];
        one[0] = 1;
        let mut minus_one = [0xff; 32];
        (minus_one[0], minus_one[31]) = (0xec, 0x7f);
        [[0; 32], one, minus_one]
    }

    const BASE: [u8; 32] = {
        let mut base = [0; 32];
        base[0] = 9;
        base
    };
}
