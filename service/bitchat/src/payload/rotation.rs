//! The draft of names that change each hour (BitChat protocol reference, section 4.5). Nothing
//! sends it; the node parses packet type `0x2C` and ignores it.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{PayloadError, Result, announce::Capabilities, array};
use crate::{id::MeshId, read::Reader};

const EPOCH_SECONDS: u64 = 3600;
const ROTATION_CONTEXT: &[u8] = b"bitchat-peer-rotation-v1";
const RECOGNITION_CONTEXT: &[u8] = b"bitchat-recognition-v1";
const ID_CONTEXT: &[u8] = b"bitchat-peer-id-v2";

/// An announce without keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AnnounceV2 {
    /// [`epoch`] of its making.
    pub epoch: u32,
    /// Eight recognition tags, some of them noise.
    pub tags: [u8; 64],
    /// What the peer can do.
    pub capabilities: Option<Capabilities>,
}

impl AnnounceV2 {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// A field missing or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (mut epoch, mut tags, mut capabilities) = (None, None, None);
        let mut reader = Reader::new(bytes);
        while reader.left() >= 2 {
            match reader.tlv8()? {
                (0x01, value) => epoch = Some(u32::from_be_bytes(array("epoch", value)?)),
                (0x02, value) => tags = Some(array("tags", value)?),
                (0x03, value) => capabilities = Some(Capabilities::decode(value)),
                _ => {}
            }
        }
        Ok(Self {
            epoch: epoch.ok_or(PayloadError::Missing("epoch"))?,
            tags: tags.ok_or(PayloadError::Missing("tags"))?,
            capabilities,
        })
    }
}

/// The epoch of a time in seconds since 1970.
pub fn epoch(unix_seconds: u64) -> u32 {
    u32::try_from(unix_seconds / EPOCH_SECONDS).unwrap_or(u32::MAX)
}

/// What a peer derives its names from.
pub fn secret(noise_private_key: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    derive(noise_private_key, ROTATION_CONTEXT)
}

/// The name of an epoch.
pub fn id(secret: &[u8; 32], epoch: u32) -> MeshId {
    MeshId(authenticate(secret, &[ID_CONTEXT, &epoch.to_be_bytes()]))
}

/// The tag by which `recipient` recognises `sender` under its name of an epoch, from the secret
/// that their two Noise keys share.
pub fn recognition_tag(
    shared_secret: &[u8; 32],
    epoch: u32,
    sender: &[u8; 32],
    recipient: &[u8; 32],
    id: MeshId,
) -> [u8; 8] {
    let key = derive(shared_secret, RECOGNITION_CONTEXT);
    authenticate(&key, &[&epoch.to_be_bytes(), sender, recipient, &id.0])
}

fn derive(secret: &[u8; 32], context: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, secret)
        .expand(context, &mut *out)
        .expect("32 bytes are within HKDF's limit");
    out
}

fn authenticate(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 8] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes any key");
    parts.iter().for_each(|part| mac.update(part));
    let mut out = [0; 8];
    out.copy_from_slice(&mac.finalize().into_bytes()[..8]);
    out
}
