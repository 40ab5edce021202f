//! The structured chat payload of 2025, kept for old clients and archives. Neither app writes it
//! today; the vectors pin it.

use super::{Result, bounded, text};
use crate::read::Reader;

const IS_RELAY: u8 = 0x01;
const IS_PRIVATE: u8 = 0x02;
const HAS_ORIGINAL_SENDER: u8 = 0x04;
const HAS_RECIPIENT: u8 = 0x08;
const HAS_SENDER_ID: u8 = 0x10;
const HAS_MENTIONS: u8 = 0x20;
const HAS_CHANNEL: u8 = 0x40;

/// A chat message of an old client.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Legacy {
    /// Opaque.
    pub id: String,
    /// Nickname of the sender.
    pub sender: String,
    /// What it says.
    pub content: String,
    /// Milliseconds since 1970.
    pub timestamp_ms: u64,
    /// Whether it was passed on.
    pub is_relay: bool,
    /// Whether it is for one peer.
    pub is_private: bool,
    /// Who wrote it first.
    pub original_sender: Option<String>,
    /// For whom it is.
    pub recipient_nickname: Option<String>,
    /// The sender's mesh name.
    pub sender_peer_id: Option<String>,
    /// Whom it names.
    pub mentions: Vec<String>,
    /// Where it belongs.
    pub channel: Option<String>,
}

impl Legacy {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// A length past the end, or text that is not UTF-8.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let flags = reader.u8()?;
        let has = |flag: u8| flags & flag != 0;
        let mut legacy = Self {
            timestamp_ms: reader.u64()?,
            id: short(&mut reader)?,
            sender: short(&mut reader)?,
            is_relay: has(IS_RELAY),
            is_private: has(IS_PRIVATE),
            ..Self::default()
        };
        let length = reader.u16()?;
        legacy.content = text("content", reader.take(length.into())?)?;
        let mut optional = |flag| if has(flag) { short(&mut reader).map(Some) } else { Ok(None) };
        legacy.original_sender = optional(HAS_ORIGINAL_SENDER)?;
        legacy.recipient_nickname = optional(HAS_RECIPIENT)?;
        legacy.sender_peer_id = optional(HAS_SENDER_ID)?;
        if has(HAS_MENTIONS) {
            let count = reader.u8()?;
            legacy.mentions = (0..count).map(|_| short(&mut reader)).collect::<Result<_>>()?;
        }
        if has(HAS_CHANNEL) {
            legacy.channel = Some(short(&mut reader)?);
        }
        Ok(legacy)
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// Content over 65,535 bytes, another text over 255, more than 255 mentions.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let optional = [
            (HAS_ORIGINAL_SENDER, &self.original_sender),
            (HAS_RECIPIENT, &self.recipient_nickname),
            (HAS_SENDER_ID, &self.sender_peer_id),
        ];
        let mut flags = 0;
        let mut set = |flag: u8, is: bool| flags |= if is { flag } else { 0 };
        set(IS_RELAY, self.is_relay);
        set(IS_PRIVATE, self.is_private);
        optional.iter().for_each(|(flag, value)| set(*flag, value.is_some()));
        set(HAS_MENTIONS, !self.mentions.is_empty());
        set(HAS_CHANNEL, self.channel.is_some());
        bounded("content", self.content.as_bytes(), 0..=65_535)?;
        let mut out = vec![flags];
        out.extend_from_slice(&self.timestamp_ms.to_be_bytes());
        put_short(&mut out, &self.id)?;
        put_short(&mut out, &self.sender)?;
        out.extend_from_slice(&(self.content.len() as u16).to_be_bytes());
        out.extend_from_slice(self.content.as_bytes());
        for value in optional.iter().filter_map(|(_, value)| value.as_ref()) {
            put_short(&mut out, value)?;
        }
        if !self.mentions.is_empty() {
            bounded("mentions", &vec![0; self.mentions.len()], 1..=255)?;
            out.push(self.mentions.len() as u8);
            self.mentions.iter().try_for_each(|mention| put_short(&mut out, mention))?;
        }
        self.channel.iter().try_for_each(|channel| put_short(&mut out, channel))?;
        Ok(out)
    }
}

fn short(reader: &mut Reader<'_>) -> Result<String> {
    let length = reader.u8()?;
    text("text", reader.take(length.into())?)
}

fn put_short(out: &mut Vec<u8>, value: &str) -> Result<()> {
    bounded("text", value.as_bytes(), 0..=255)?;
    out.push(value.len() as u8);
    out.extend_from_slice(value.as_bytes());
    Ok(())
}
