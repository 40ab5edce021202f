//! Access tickets: how a client shows a front that it knows what the front is (HTX reference,
//! section 1.2).
//!
//! ```text
//! ticket = 0x01 || client's public key 32 || key id 8 || nonce 32 || proof 32 || padding 24..64
//! proof  = HKDF-SHA256(X25519(client, front),
//!                      salt = SHA-256("betanet-ticket-v1" || key id || u64 hour), info = nonce, 32)
//! ```
//!
//! 129 to 169 bytes, in base64url without padding 172 to 226 characters. The hour is the client's,
//! in hours since 1970. Betanet 1.1 leaves the nonce out of the proof, so that it could be exchanged
//! on the way; here it is the HKDF's info.

use data_encoding::BASE64URL_NOPAD;
use hkdf::Hkdf;
use rand::{CryptoRng, RngExt};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::curve::{PublicKey, SecretKey};

/// What a front's ticket key is called by.
pub type TicketId = [u8; 8];

/// What a client needs to know about a front in order to be let in, from the front's descriptor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TicketKey {
    /// The name of the key.
    pub id: TicketId,
    /// The key: X25519.
    pub public: PublicKey,
}

impl TicketKey {
    /// Makes a ticket, under a fresh key of the client's.
    ///
    /// `padding` is drawn within the front's policy, `unix_seconds` is the client's clock.
    ///
    /// # Errors
    ///
    /// The front's key is of small order: it is not a front's.
    pub fn make_ticket(
        &self,
        rng: &mut impl CryptoRng,
        padding: (u8, u8),
        unix_seconds: u64,
    ) -> Result<String, TicketError> {
        let client = SecretKey::generate(rng);
        let nonce: [u8; 32] = rng.random();
        let shared = client.agree(&self.public).ok_or(TicketError::FrontKey)?;
        let proof = proof(&shared, &self.id, hour(unix_seconds), &nonce);
        let mut bytes = vec![VERSION];
        bytes.extend(client.public());
        bytes.extend(self.id);
        bytes.extend(nonce);
        bytes.extend(*proof);
        let (least, most) = padding;
        let length = usize::from(rng.random_range(least..=most.max(least)));
        let at = bytes.len();
        bytes.resize(at + length.clamp(LEAST_PADDING, MOST_PADDING), 0);
        rng.fill_bytes(&mut bytes[at..]);
        Ok(BASE64URL_NOPAD.encode(&bytes))
    }
}

/// A ticket as it was read, not yet believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TicketParts {
    /// The client's fresh key.
    pub client: PublicKey,
    /// The front's key that it was made for.
    pub key_id: TicketId,
    /// What makes two tickets differ.
    pub nonce: [u8; 32],
    /// What only the client and the front can compute.
    pub proof: [u8; 32],
}

impl TicketParts {
    /// The lengths of the text, in characters.
    pub const TEXT_LEN: std::ops::RangeInclusive<usize> = 172..=226;

    /// Reads the text of a ticket. What the padding holds does not matter.
    ///
    /// # Errors
    ///
    /// It has the wrong length, version or alphabet.
    pub fn decode(text: &str) -> Result<Self, TicketError> {
        if !Self::TEXT_LEN.contains(&text.len()) {
            return Err(TicketError::TextLength { length: text.len() });
        }
        let bytes =
            BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| TicketError::NotBase64Url)?;
        let padding = bytes.len().saturating_sub(FIXED_LEN);
        if !(LEAST_PADDING..=MOST_PADDING).contains(&padding) {
            return Err(TicketError::Padding { length: padding });
        }
        let mut rest = &bytes[..];
        let [version] = take(&mut rest);
        if version != VERSION {
            return Err(TicketError::Version(version));
        }
        Ok(Self {
            client: take(&mut rest),
            key_id: take(&mut rest),
            nonce: take(&mut rest),
            proof: take(&mut rest),
        })
    }
}

/// Why a text is not a ticket, or none can be made.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum TicketError {
    /// Tickets are 172 to 226 characters long.
    #[error("{length} characters: expected 172 to 226")]
    TextLength {
        /// How many there are.
        length: usize,
    },
    /// Tickets are base64url without padding and without stray bits.
    #[error("not base64url without padding")]
    NotBase64Url,
    /// The padding is 24 to 64 bytes long.
    #[error("{length} bytes of padding: expected {LEAST_PADDING} to {MOST_PADDING}")]
    Padding {
        /// How long it is.
        length: usize,
    },
    /// We speak version 1.
    #[error("unsupported ticket version {0}: expected {VERSION}")]
    Version(u8),
    /// Nothing can be agreed on with this key.
    #[error("the front's ticket key is of small order")]
    FrontKey,
}

/// The hour of a time, counted from 1970.
pub(super) fn hour(unix_seconds: u64) -> u64 {
    unix_seconds / 3600
}

/// What a ticket of this hour must hold.
pub(super) fn proof(
    shared: &[u8; 32],
    key_id: &TicketId,
    hour: u64,
    nonce: &[u8; 32],
) -> Zeroizing<[u8; 32]> {
    let salt = Sha256::new()
        .chain_update(b"betanet-ticket-v1")
        .chain_update(key_id)
        .chain_update(hour.to_be_bytes())
        .finalize();
    let mut proof = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(&salt), shared)
        .expand(nonce, proof.as_mut())
        .expect("32 bytes are not too many");
    proof
}

/// The shortest padding.
pub(super) const LEAST_PADDING: usize = 24;
/// The longest padding.
pub(super) const MOST_PADDING: usize = 64;

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (front, back) = rest.split_first_chunk().expect("the length was checked");
    *rest = back;
    *front
}

const VERSION: u8 = 1;
const FIXED_LEN: usize = 1 + 32 + 8 + 32 + 32;
