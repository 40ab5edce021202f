//! A private message as it travels inside a Nostr envelope (BitChat protocol reference,
//! section 10). The envelope itself is not spoken.

use data_encoding::BASE64URL_NOPAD;

use crate::packet::{self, Packet, PacketType};

const PREFIX: &str = "bitchat1:";
/// A packet with the largest private message, padded, in base64.
const MAX_TEXT: usize = 4096;

/// The text that stands for a packet. The packet must be of type [`PacketType::NOISE_ENCRYPTED`],
/// with the typed plaintext as its payload: the envelope is what protects it.
pub fn embed(packet: &Packet) -> String {
    let mut bytes = packet.encode();
    packet::pad(&mut bytes);
    format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
}

/// The packet for which a text stands.
pub fn extract(text: &str) -> Option<Packet> {
    let encoded = text.strip_prefix(PREFIX).filter(|encoded| encoded.len() <= MAX_TEXT)?;
    let bytes = BASE64URL_NOPAD.decode(encoded.trim_end_matches('=').as_bytes()).ok()?;
    let packet = Packet::decode(&bytes).ok()?;
    (packet.kind == PacketType::NOISE_ENCRYPTED).then_some(packet)
}
