//! Sealed mail that others carry (BitChat protocol reference, section 9.3); iOS only.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{PayloadError, Result, array, bounded};
use crate::{
    noise::{self, NoiseError},
    read::{Reader, put_tlv16},
};

const TAG_CONTEXT: &[u8] = b"bitchat-courier-tag-v1";
const STATIC_PROLOGUE: &[u8] = b"bitchat-courier-v1";
const PREKEY_PROLOGUE: &[u8] = b"bitchat-prekey-v1";
const DAY_MS: u64 = 24 * 3600 * 1000;
const MAX_CIPHERTEXT: usize = 16_384;
const MAX_COPIES: u8 = 8;

/// Mail for a peer that only its tag names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Courier {
    /// [`recipient_tag`] of the recipient and the day.
    pub tag: [u8; 16],
    /// Milliseconds since 1970.
    pub expires_ms: u64,
    /// One Noise X message.
    pub ciphertext: Vec<u8>,
    /// How many copies the holder may still hand out, 1 to 8.
    pub copies: u8,
    /// The one-time key it is sealed to, if not the static one.
    pub prekey_id: Option<u32>,
}

impl Courier {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// A field missing, malformed or out of its limits.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (mut tag, mut expires_ms, mut ciphertext) = (None, None, None);
        let (mut copies, mut prekey_id) = (1, None);
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.tlv16()? {
                (0x01, value) => tag = Some(array("recipient tag", value)?),
                (0x02, value) => expires_ms = Some(u64::from_be_bytes(array("expiry", value)?)),
                (0x03, value) => {
                    bounded("ciphertext", value, 1..=MAX_CIPHERTEXT)?;
                    ciphertext = Some(value.to_vec());
                }
                (0x04, value) => {
                    copies = u8::from_be_bytes(array("copies", value)?).clamp(1, MAX_COPIES);
                }
                (0x05, value) => prekey_id = Some(u32::from_be_bytes(array("prekey id", value)?)),
                _ => {}
            }
        }
        Ok(Self {
            tag: tag.ok_or(PayloadError::Missing("recipient tag"))?,
            expires_ms: expires_ms.ok_or(PayloadError::Missing("expiry"))?,
            ciphertext: ciphertext.ok_or(PayloadError::Missing("ciphertext"))?,
            copies,
            prekey_id,
        })
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.ciphertext.len());
        put_tlv16(&mut out, 0x01, &self.tag);
        put_tlv16(&mut out, 0x02, &self.expires_ms.to_be_bytes());
        put_tlv16(&mut out, 0x03, &self.ciphertext);
        if self.copies != 1 {
            put_tlv16(&mut out, 0x04, &[self.copies]);
        }
        if let Some(id) = self.prekey_id {
            put_tlv16(&mut out, 0x05, &id.to_be_bytes());
        }
        out
    }

    /// Opens mail to the holder of `private_key`, static or one-time: what it says and the Noise
    /// key of who wrote it.
    ///
    /// # Errors
    ///
    /// It is not for this key.
    pub fn open(
        &self,
        private_key: &[u8; 32],
    ) -> std::result::Result<(Vec<u8>, [u8; 32]), NoiseError> {
        noise::open_one_way(private_key, &prologue(self.prekey_id), &self.ciphertext)
    }
}

/// Seals a plaintext to a static or one-time key; `ephemeral_key` must be random.
///
/// # Errors
///
/// The recipient's key is no key.
pub fn seal(
    private_key: &[u8; 32],
    recipient: &[u8; 32],
    prekey_id: Option<u32>,
    ephemeral_key: [u8; 32],
    plaintext: &[u8],
) -> std::result::Result<Vec<u8>, NoiseError> {
    noise::seal_one_way(private_key, recipient, &prologue(prekey_id), ephemeral_key, plaintext)
}

/// What names a recipient on one day, counted from 1970.
pub fn recipient_tag(noise_key: &[u8; 32], day: u32) -> [u8; 16] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(noise_key).expect("HMAC takes any key");
    mac.update(TAG_CONTEXT);
    mac.update(&day.to_be_bytes());
    let mut tag = [0; 16];
    tag.copy_from_slice(&mac.finalize().into_bytes()[..16]);
    tag
}

/// The days whose tags a recipient looks for: yesterday, today, tomorrow.
pub fn candidate_days(now_ms: u64) -> [u32; 3] {
    let today = u32::try_from(now_ms / DAY_MS).unwrap_or(u32::MAX);
    [today.saturating_sub(1), today, today.saturating_add(1)]
}

fn prologue(prekey_id: Option<u32>) -> Vec<u8> {
    match prekey_id {
        None => STATIC_PROLOGUE.to_vec(),
        Some(id) => [PREKEY_PROLOGUE, &id.to_be_bytes()].concat(),
    }
}
