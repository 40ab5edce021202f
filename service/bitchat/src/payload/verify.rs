//! Proof that a session's peer holds its signing key (BitChat protocol reference, section 3.4).

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use ed25519_dalek::{Signer, SigningKey};

use super::{PayloadError, Result, array, invalid, verifies};
use crate::read::{Reader, put_tlv8};

const RESPONSE_CONTEXT: &[u8] = b"bitchat-verify-resp-v1";
const LINK_CONTEXT: &str = "bitchat-verify-v1";

/// Asks a peer to prove its signing key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Challenge {
    /// The Noise key of the peer that is asked, as 64 hex digits.
    pub noise_key_hex: String,
    /// 1 to 255 random bytes.
    pub nonce: Vec<u8>,
}

impl Challenge {
    /// A challenge to the holder of a Noise key.
    pub fn new(noise_key: &[u8; 32], nonce: [u8; 16]) -> Self {
        Self { noise_key_hex: HEXLOWER.encode(noise_key), nonce: nonce.to_vec() }
    }

    /// Reads the body of plaintext type `0x10`.
    ///
    /// # Errors
    ///
    /// The fields are not the key and the nonce, in this order.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(body);
        read(&mut reader)
    }

    /// Writes the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + 64 + self.nonce.len());
        put_tlv8(&mut out, 0x01, self.noise_key_hex.as_bytes());
        put_tlv8(&mut out, 0x02, &self.nonce);
        out
    }

    /// The answer of the peer that signs with `key`.
    pub fn answer(self, key: &SigningKey) -> Response {
        let signature = key.sign(&self.signed()).to_bytes();
        Response { challenge: self, signature }
    }

    fn signed(&self) -> Vec<u8> {
        let mut signed = RESPONSE_CONTEXT.to_vec();
        signed.push(self.noise_key_hex.len() as u8);
        signed.extend_from_slice(self.noise_key_hex.as_bytes());
        signed.extend_from_slice(&self.nonce);
        signed
    }
}

/// The answer to a challenge.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    /// What it answers.
    pub challenge: Challenge,
    /// Ed25519 over the challenge.
    pub signature: [u8; 64],
}

impl Response {
    /// Reads the body of plaintext type `0x11`.
    ///
    /// # Errors
    ///
    /// The fields are not key, nonce and signature, in this order.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(body);
        let challenge = read(&mut reader)?;
        match reader.tlv8()? {
            (0x03, value) => Ok(Self { challenge, signature: array("signature", value)? }),
            (other, _) => Err(PayloadError::Unknown(other)),
        }
    }

    /// Writes the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.challenge.encode();
        put_tlv8(&mut out, 0x03, &self.signature);
        out
    }

    /// Whether the holder of the signing key gave it.
    pub fn is_by(&self, signing_key: &[u8; 32]) -> bool {
        verifies(signing_key, &self.challenge.signed(), &self.signature)
    }
}

fn read(reader: &mut Reader<'_>) -> Result<Challenge> {
    let (kind, key) = reader.tlv8()?;
    let (second, nonce) = reader.tlv8()?;
    if (kind, second) != (0x01, 0x02) {
        return Err(PayloadError::Unknown(if kind == 0x01 { second } else { kind }));
    }
    if key.len() != 64 || !key.iter().all(u8::is_ascii_hexdigit) {
        return Err(invalid("Noise key", key));
    }
    if nonce.is_empty() {
        return Err(invalid("nonce", nonce));
    }
    Ok(Challenge { noise_key_hex: super::text("Noise key", key)?, nonce: nonce.to_vec() })
}

/// What a `bitchat://verify` link says of a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// X25519.
    pub noise_key: [u8; 32],
    /// Ed25519.
    pub signing_key: [u8; 32],
    /// The peer's Nostr name, or empty.
    pub npub: String,
    /// At most 255 bytes.
    pub nickname: String,
    /// When it was made, in seconds since 1970; it is good for five minutes.
    pub made_at: u64,
    /// 16 random bytes.
    pub nonce: Vec<u8>,
}

impl Link {
    /// The bytes that the peer signs.
    pub fn signed(&self) -> Vec<u8> {
        let fields = [
            LINK_CONTEXT.to_owned(),
            "1".to_owned(),
            HEXLOWER.encode(&self.noise_key),
            HEXLOWER.encode(&self.signing_key),
            self.npub.clone(),
            self.nickname.clone(),
            self.made_at.to_string(),
            BASE64URL_NOPAD.encode(&self.nonce),
        ];
        let mut out = Vec::with_capacity(256);
        for field in fields {
            let length = field.len().min(255);
            out.push(length as u8);
            out.extend_from_slice(&field.as_bytes()[..length]);
        }
        out
    }

    /// Whether the peer that it names made it.
    pub fn is_signed(&self, signature: &[u8; 64]) -> bool {
        verifies(&self.signing_key, &self.signed(), signature)
    }
}
