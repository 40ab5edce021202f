//! Groups with a shared key (BitChat protocol reference, section 3.7); iOS only.

use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};

use super::{PayloadError, Result, array, bounded, text, verifies};
use crate::read::{Reader, put_tlv16};

const STATE_CONTEXT: &[u8] = b"bitchat-group-v1";
const MESSAGE_CONTEXT: &[u8] = b"bitchat-group-msg-v1";
const MAX_MEMBERS: usize = 16;
const MAX_NICKNAME: usize = 64;

/// One member of a group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// SHA-256 of its Noise key.
    pub fingerprint: [u8; 32],
    /// Ed25519.
    pub signing_key: [u8; 32],
    /// At most 64 bytes.
    pub nickname: String,
}

/// A group as its creator signed it: the body of plaintext types `0x06` and `0x07`.
#[derive(Clone, Eq, PartialEq)]
pub struct State {
    /// Random.
    pub group_id: [u8; 16],
    /// What people call it.
    pub name: String,
    /// Opens the group's messages.
    pub key: [u8; 32],
    /// Counts the keys.
    pub epoch: u32,
    /// At most 16.
    pub members: Vec<Member>,
    /// Fingerprint of the creator.
    pub creator: [u8; 32],
    /// By the creator.
    pub signature: [u8; 64],
}

impl State {
    /// Signs a state as the creator.
    pub fn signed_by(mut self, key: &SigningKey) -> Self {
        self.signature = key.sign(&self.signed()).to_bytes();
        self
    }

    /// Whether the holder of `key` signed it.
    pub fn is_by(&self, key: &[u8; 32]) -> bool {
        verifies(key, &self.signed(), &self.signature)
    }

    /// The bytes that are signed.
    pub fn signed(&self) -> Vec<u8> {
        let mut out = STATE_CONTEXT.to_vec();
        out.extend_from_slice(&self.group_id);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&Sha256::digest(self.key));
        out.extend_from_slice(&Sha256::digest(self.roster()));
        out.extend_from_slice(&Sha256::digest(self.name.as_bytes()));
        out
    }

    /// The members as they are written.
    pub fn roster(&self) -> Vec<u8> {
        let members = &self.members[..self.members.len().min(MAX_MEMBERS)];
        let mut out = vec![members.len() as u8];
        for member in members {
            out.extend_from_slice(&member.fingerprint);
            out.extend_from_slice(&member.signing_key);
            out.push(member.nickname.len().min(255) as u8);
            out.extend_from_slice(&member.nickname.as_bytes()[..member.nickname.len().min(255)]);
        }
        out
    }

    /// Reads one; its signature is not looked at.
    ///
    /// # Errors
    ///
    /// A field missing, malformed or out of its limits.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let (mut group_id, mut name, mut key, mut epoch) = (None, None, None, None);
        let (mut members, mut creator, mut signature) = (None, None, None);
        let mut reader = Reader::new(body);
        while !reader.is_empty() {
            match reader.tlv16()? {
                (0x01, value) => group_id = Some(array("group id", value)?),
                (0x02, value) => name = Some(text("name", value)?),
                (0x03, value) => key = Some(array("key", value)?),
                (0x04, value) => epoch = Some(u32::from_be_bytes(array("epoch", value)?)),
                (0x05, value) => members = Some(roster(value)?),
                (0x06, value) => creator = Some(array("creator", value)?),
                (0x07, value) => signature = Some(array("signature", value)?),
                _ => {}
            }
        }
        Ok(Self {
            group_id: group_id.ok_or(PayloadError::Missing("group id"))?,
            name: name.ok_or(PayloadError::Missing("name"))?,
            key: key.ok_or(PayloadError::Missing("key"))?,
            epoch: epoch.ok_or(PayloadError::Missing("epoch"))?,
            members: members.ok_or(PayloadError::Missing("roster"))?,
            creator: creator.ok_or(PayloadError::Missing("creator"))?,
            signature: signature.ok_or(PayloadError::Missing("signature"))?,
        })
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        put_tlv16(&mut out, 0x01, &self.group_id);
        put_tlv16(&mut out, 0x02, self.name.as_bytes());
        put_tlv16(&mut out, 0x03, &self.key);
        put_tlv16(&mut out, 0x04, &self.epoch.to_be_bytes());
        put_tlv16(&mut out, 0x05, &self.roster());
        put_tlv16(&mut out, 0x06, &self.creator);
        put_tlv16(&mut out, 0x07, &self.signature);
        out
    }
}

/// A sealed message to a group: the payload of packet type `0x25`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sealed {
    /// Which group.
    pub group_id: [u8; 16],
    /// Which of its keys.
    pub epoch: u32,
    /// Random.
    pub nonce: [u8; 12],
    /// With its tag.
    pub ciphertext: Vec<u8>,
}

impl Sealed {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// A field missing or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (mut group_id, mut epoch, mut nonce, mut ciphertext) = (None, None, None, None);
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.tlv16()? {
                (0x01, value) => group_id = Some(array("group id", value)?),
                (0x02, value) => epoch = Some(u32::from_be_bytes(array("epoch", value)?)),
                (0x03, value) => nonce = Some(array("nonce", value)?),
                (0x04, value) => {
                    bounded("ciphertext", value, 16..=65_535)?;
                    ciphertext = Some(value.to_vec());
                }
                _ => {}
            }
        }
        Ok(Self {
            group_id: group_id.ok_or(PayloadError::Missing("group id"))?,
            epoch: epoch.ok_or(PayloadError::Missing("epoch"))?,
            nonce: nonce.ok_or(PayloadError::Missing("nonce"))?,
            ciphertext: ciphertext.ok_or(PayloadError::Missing("ciphertext"))?,
        })
    }

    /// Writes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.ciphertext.len());
        put_tlv16(&mut out, 0x01, &self.group_id);
        put_tlv16(&mut out, 0x02, &self.epoch.to_be_bytes());
        put_tlv16(&mut out, 0x03, &self.nonce);
        put_tlv16(&mut out, 0x04, &self.ciphertext);
        out
    }

    /// Opens it with the group's key of its epoch, without looking at who signed.
    pub fn open(&self, key: &[u8; 32]) -> Option<Message> {
        let aad = associated(&self.group_id, self.epoch);
        let payload = Payload { msg: &self.ciphertext, aad: &aad };
        let cipher = ChaCha20Poly1305::new(key.into());
        let inner = cipher.decrypt(&Nonce::from(self.nonce), payload).ok()?;
        Message::decode(&inner).ok()
    }
}

/// What is inside a sealed message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Message {
    /// Opaque.
    pub message_id: String,
    /// Ed25519 key of the sender.
    pub sender: [u8; 32],
    /// The sender's.
    pub nickname: String,
    /// Milliseconds since 1970.
    pub timestamp_ms: u64,
    /// What it says.
    pub text: String,
    /// By the sender.
    pub signature: [u8; 64],
}

impl Message {
    /// Signs it for a group and seals it. The nonce must never come twice under one key.
    pub fn seal(
        mut self,
        group_id: [u8; 16],
        epoch: u32,
        key: &[u8; 32],
        nonce: [u8; 12],
        by: &SigningKey,
    ) -> Option<Sealed> {
        self.sender = by.verifying_key().to_bytes();
        self.signature = by.sign(&self.signed(&group_id, epoch)).to_bytes();
        let aad = associated(&group_id, epoch);
        let inner = self.encode();
        let payload = Payload { msg: &inner, aad: &aad };
        let cipher = ChaCha20Poly1305::new(key.into());
        let ciphertext = cipher.encrypt(&Nonce::from(nonce), payload).ok()?;
        Some(Sealed { group_id, epoch, nonce, ciphertext })
    }

    /// Whether the sender that it names signed it for this group.
    pub fn is_signed(&self, group_id: &[u8; 16], epoch: u32) -> bool {
        verifies(&self.sender, &self.signed(group_id, epoch), &self.signature)
    }

    /// The bytes that are signed.
    pub fn signed(&self, group_id: &[u8; 16], epoch: u32) -> Vec<u8> {
        let mut out = MESSAGE_CONTEXT.to_vec();
        out.extend_from_slice(&associated(group_id, epoch));
        out.extend_from_slice(self.message_id.as_bytes());
        out.extend_from_slice(&self.timestamp_ms.to_be_bytes());
        out.extend_from_slice(self.text.as_bytes());
        out
    }

    /// Writes what is sealed.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(160 + self.text.len());
        put_tlv16(&mut out, 0x01, self.message_id.as_bytes());
        put_tlv16(&mut out, 0x02, &self.sender);
        put_tlv16(&mut out, 0x03, self.nickname.as_bytes());
        put_tlv16(&mut out, 0x04, &self.timestamp_ms.to_be_bytes());
        put_tlv16(&mut out, 0x05, self.text.as_bytes());
        put_tlv16(&mut out, 0x06, &self.signature);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let (mut message_id, mut sender, mut nickname) = (None, None, None);
        let (mut timestamp_ms, mut content, mut signature) = (None, None, None);
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.tlv16()? {
                (0x01, value) => message_id = Some(text("message id", value)?),
                (0x02, value) => sender = Some(array("sender", value)?),
                (0x03, value) => nickname = Some(text("nickname", value)?),
                (0x04, value) => timestamp_ms = Some(u64::from_be_bytes(array("time", value)?)),
                (0x05, value) => content = Some(text("text", value)?),
                (0x06, value) => signature = Some(array("signature", value)?),
                _ => {}
            }
        }
        Ok(Self {
            message_id: message_id.ok_or(PayloadError::Missing("message id"))?,
            sender: sender.ok_or(PayloadError::Missing("sender"))?,
            nickname: nickname.ok_or(PayloadError::Missing("nickname"))?,
            timestamp_ms: timestamp_ms.ok_or(PayloadError::Missing("time"))?,
            text: content.ok_or(PayloadError::Missing("text"))?,
            signature: signature.ok_or(PayloadError::Missing("signature"))?,
        })
    }
}

fn roster(value: &[u8]) -> Result<Vec<Member>> {
    let mut reader = Reader::new(value);
    let count = usize::from(reader.u8()?);
    if count > MAX_MEMBERS {
        return Err(PayloadError::Invalid { field: "count of members", length: count });
    }
    (0..count)
        .map(|_| {
            let fingerprint = reader.array()?;
            let signing_key = reader.array()?;
            let length = reader.u8()?;
            let nickname = reader.take(length.into())?;
            bounded("nickname", nickname, 0..=MAX_NICKNAME)?;
            Ok(Member { fingerprint, signing_key, nickname: text("nickname", nickname)? })
        })
        .collect()
}

fn associated(group_id: &[u8; 16], epoch: u32) -> Vec<u8> {
    [&group_id[..], &epoch.to_be_bytes()].concat()
}
