//! What crosses the streams of a link: packets on one, words about the directory on another.
//!
//! ```text
//! stream  = 0 || packet …                 packet  = class (1) || its bytes
//!         | 1 || message …                message = kind (1) || u24 length || body
//! kind    = 0, a gossip message about documents | 1, a signed descriptor
//! ```
//!
//! Each side opens one stream of each sort and sends on these alone. The first message is its own
//! descriptor, if it has one: it tells who is at the other end of a link whose Noise key no document
//! knows yet.

use thiserror::Error;

use crate::{
    directory::{GossipMessage, descriptor_limits},
    sphinx::{Class, Packet},
};

/// The sort of a stream, its first byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sort {
    /// Packets.
    Packets = 0,
    /// Messages about the directory.
    Messages = 1,
}

/// One thing that came on a stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Item {
    /// A packet.
    Packet(Packet),
    /// A message about the directory.
    Message(Message),
}

/// A message about the directory. What is in it has not been looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// A [`GossipMessage`], encoded.
    Gossip(Vec<u8>),
    /// A signed descriptor.
    Descriptor(Vec<u8>),
}

impl Message {
    /// The bytes of the message on a stream.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Gossip(body) => (GOSSIP, body),
            Self::Descriptor(body) => (DESCRIPTOR, body),
        };
        let length = (body.len() as u32).to_be_bytes();
        [&[kind], &length[1..], body].concat()
    }
}

/// Appends a packet as it stands on a stream.
pub fn append_packet(packet: &Packet, bytes: &mut Vec<u8>) {
    bytes.push(packet.class() as u8);
    bytes.extend_from_slice(packet.as_bytes());
}

/// How many bytes a packet takes on a stream.
pub fn packet_len(packet: &Packet) -> usize {
    1 + packet.as_bytes().len()
}

/// Reads one stream as its bytes come. It keeps at most one packet or message, and no more of it
/// than has come.
#[derive(Debug, Default)]
pub struct StreamReader {
    sort: Option<Sort>,
    /// What is being read, once its head has come.
    body: Option<Body>,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Body {
    kind: u8,
    length: usize,
}

impl StreamReader {
    /// Takes bytes off the front of `bytes` until something is whole; `None` once they are used up.
    ///
    /// # Errors
    ///
    /// The other side broke the rules; the stream is of no more use.
    pub fn read(&mut self, bytes: &mut &[u8]) -> Result<Option<Item>, WireError> {
        let sort = match self.sort {
            Some(sort) => sort,
            None => {
                let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
                *bytes = rest;
                let sort = match first {
                    0 => Sort::Packets,
                    1 => Sort::Messages,
                    unknown => return Err(WireError::Sort(*unknown)),
                };
                *self.sort.insert(sort)
            }
        };
        let body = match self.body {
            Some(body) => body,
            None => {
                let head = if sort == Sort::Packets { 1 } else { 4 };
                if !self.fill(bytes, head) {
                    return Ok(None);
                }
                let body = Body::of(sort, &self.bytes)?;
                self.bytes.clear();
                *self.body.insert(body)
            }
        };
        if !self.fill(bytes, body.length) {
            return Ok(None);
        }
        self.body = None;
        let whole = std::mem::take(&mut self.bytes);
        let item = match (sort, body.kind) {
            (Sort::Packets, class) => {
                Item::Packet(Packet::from_bytes(whole).ok_or(WireError::Class(class))?)
            }
            (Sort::Messages, DESCRIPTOR) => Item::Message(Message::Descriptor(whole)),
            (Sort::Messages, _) => Item::Message(Message::Gossip(whole)),
        };
        Ok(Some(item))
    }

    /// The sort of the stream, once its first byte has come.
    pub fn sort(&self) -> Option<Sort> {
        self.sort
    }

    fn fill(&mut self, bytes: &mut &[u8], length: usize) -> bool {
        let missing = length - self.bytes.len();
        let (come, rest) = bytes.split_at(missing.min(bytes.len()));
        if self.bytes.is_empty() && length <= LARGEST_PACKET {
            self.bytes.reserve_exact(length);
        }
        self.bytes.extend_from_slice(come);
        *bytes = rest;
        self.bytes.len() == length
    }
}

impl Body {
    fn of(sort: Sort, head: &[u8]) -> Result<Self, WireError> {
        let kind = head[0];
        if sort == Sort::Packets {
            let class = Class::ALL.into_iter().find(|class| *class as u8 == kind);
            let length = class.ok_or(WireError::Class(kind))?.packet_len();
            return Ok(Self { kind, length });
        }
        let length = head[1..].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let most = match kind {
            GOSSIP => GossipMessage::MAX_LEN,
            DESCRIPTOR => descriptor_limits::SIGNED,
            unknown => return Err(WireError::Kind(unknown)),
        };
        if !(1..=most).contains(&length) {
            return Err(WireError::Length { length, most });
        }
        Ok(Self { kind, length })
    }
}

/// Why a stream is given up.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum WireError {
    /// Neither packets nor messages.
    #[error("a stream of sort {0}: expected 0, packets, or 1, messages")]
    Sort(u8),
    /// No class of packets.
    #[error("a packet of class {0}: expected 0 or 1")]
    Class(u8),
    /// No kind of message.
    #[error("a message of kind {0}: expected 0, gossip, or 1, a descriptor")]
    Kind(u8),
    /// Longer than any such message, or empty.
    #[error("a message of {length} bytes: expected 1 to {most}")]
    Length {
        /// How long it says it is.
        length: usize,
        /// The most.
        most: usize,
    },
}

const GOSSIP: u8 = 0;
const DESCRIPTOR: u8 = 1;
const LARGEST_PACKET: usize = Class::Large.packet_len();

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read_however_it_is_cut(cuts in prop::collection::vec(1..5000_usize, 1..40)) {
            let packets = Class::ALL.map(|class| Packet::from_bytes(vec![7; class.packet_len()]).unwrap());
            let messages = [Message::Gossip(vec![1; 9000]), Message::Descriptor(vec![2; 700])];
            let (mut one, mut other) = (vec![0], vec![1]);
            packets.iter().for_each(|packet| append_packet(packet, &mut one));
            messages.iter().for_each(|message| other.extend(message.encode()));
            prop_assert_eq!(read(&one, &cuts), Ok(packets.map(Item::Packet).to_vec()));
            prop_assert_eq!(read(&other, &cuts), Ok(messages.map(Item::Message).to_vec()));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            drop(read(&bytes, &[100]));
        }
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        for (bytes, error) in [
            (vec![2], WireError::Sort(2)),
            (vec![0, 2], WireError::Class(2)),
            (vec![1, 2, 0, 0, 1], WireError::Kind(2)),
            (vec![1, 1, 0, 0x10, 1], WireError::Length { length: 4097, most: 4096 }),
            (vec![1, 0, 0, 0, 0], WireError::Length { length: 0, most: GossipMessage::MAX_LEN }),
        ] {
            assert_eq!(read(&bytes, &[100]), Err(error));
        }
    }

    fn read(mut bytes: &[u8], cuts: &[usize]) -> Result<Vec<Item>, WireError> {
        let (mut reader, mut items) = (StreamReader::default(), Vec::new());
        for cut in cuts.iter().cycle() {
            if bytes.is_empty() {
                break;
            }
            let (mut piece, rest) = bytes.split_at((*cut).min(bytes.len()));
            bytes = rest;
            while let Some(item) = reader.read(&mut piece)? {
                items.push(item);
            }
        }
        Ok(items)
    }
}
