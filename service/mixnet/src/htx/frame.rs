//! What one write puts on a link (HTX reference, section 1.2).
//!
//! ```text
//! frame  = u24 length of the ciphertext || u8 kind || stream id (STREAM, WINDOW_UPDATE)
//!          || ciphertext || tag (16 bytes)
//! 0 STREAM         data of a stream; without data, the stream's end in this direction
//! 1 PING           0 || token (8 bytes): a question; 1 || token: its answer; 2 || anything: cover
//! 2 CLOSE          u16 reason
//! 3 KEY_UPDATE     nothing
//! 4 WINDOW_UPDATE  u32, more bytes that the receiver takes on this stream
//! ```
//!
//! The header is the associated data of the ciphertext. The length is judged by the header alone,
//! before room is made for the rest. Betanet 1.1 says neither how a stream ends nor what dummy data
//! is made of; the empty frame and the third kind of ping are ours.

use std::{fmt, num::NonZeroU64};

use thiserror::Error;

use super::{
    keys::TAG_LEN,
    varint::{self, VarintError},
};

/// The longest content of a frame, in bytes.
pub const MAX_FRAME_PAYLOAD: usize = 1 << 16;

/// The longest cover in a ping, without the byte that says so.
pub(super) const MAX_COVER: usize = 3 << 10;

/// A stream of a link. The client's are odd, the server's even.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StreamId(NonZeroU64);

impl StreamId {
    /// The stream with this number: 1 to 2^62 − 1.
    pub fn new(number: u64) -> Option<Self> {
        if number > varint::MAX { None } else { NonZeroU64::new(number).map(Self) }
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// Whether the client opened it.
    pub fn is_clients(self) -> bool {
        self.get() % 2 == 1
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({})", self.0)
    }
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FrameKind {
    /// Data of a stream, or its end.
    Stream,
    /// A question for a sign of life, its answer, or cover.
    Ping,
    /// The end of the link.
    Close,
    /// The last frame under a key.
    KeyUpdate,
    /// Room for more data of a stream.
    WindowUpdate,
}

impl FrameKind {
    fn has_stream(self) -> bool {
        matches!(self, Self::Stream | Self::WindowUpdate)
    }

    /// The shortest and the longest content.
    fn lengths(self) -> (usize, usize) {
        match self {
            Self::Stream => (0, MAX_FRAME_PAYLOAD),
            Self::Ping => (1, 1 + MAX_COVER),
            Self::Close => (2, 2),
            Self::KeyUpdate => (0, 0),
            Self::WindowUpdate => (4, 4),
        }
    }
}

impl TryFrom<u8> for FrameKind {
    type Error = FrameError;

    fn try_from(byte: u8) -> Result<Self, FrameError> {
        Ok(match byte {
            0 => Self::Stream,
            1 => Self::Ping,
            2 => Self::Close,
            3 => Self::KeyUpdate,
            4 => Self::WindowUpdate,
            _ => return Err(FrameError::UnknownKind(byte)),
        })
    }
}

impl From<FrameKind> for u8 {
    fn from(kind: FrameKind) -> Self {
        match kind {
            FrameKind::Stream => 0,
            FrameKind::Ping => 1,
            FrameKind::Close => 2,
            FrameKind::KeyUpdate => 3,
            FrameKind::WindowUpdate => 4,
        }
    }
}

/// The part of a frame that is not encrypted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrameHeader {
    /// What the frame is for.
    pub kind: FrameKind,
    /// The stream; there for [`FrameKind::Stream`] and [`FrameKind::WindowUpdate`] alone.
    pub stream: Option<StreamId>,
    /// The length of the content, in bytes.
    pub length: usize,
}

impl FrameHeader {
    /// The longest header, in bytes.
    pub const MAX_LEN: usize = 12;

    /// Reads a header from the front: itself and its length, or nothing if more bytes are needed.
    ///
    /// # Errors
    ///
    /// Says what no sender of ours writes. Kind and length are judged as soon as they are there.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(([high, middle, low, kind], rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        let kind = FrameKind::try_from(*kind)?;
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        let (least, most) = kind.lengths();
        if !(least..=most).contains(&length) {
            return Err(FrameError::Length { kind, length, least, most });
        }
        if !kind.has_stream() {
            return Ok(Some((Self { kind, stream: None, length }, 4)));
        }
        let Some((number, width)) = varint::read(rest)? else { return Ok(None) };
        let stream = StreamId::new(number).ok_or(FrameError::StreamZero)?;
        Ok(Some((Self { kind, stream: Some(stream), length }, 4 + width)))
    }

    /// Appends the header.
    ///
    /// # Panics
    ///
    /// The header is none that [`decode`](Self::decode) would read.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (least, most) = self.kind.lengths();
        assert!((least..=most).contains(&self.length), "the length is one of the kind's");
        assert_eq!(self.stream.is_some(), self.kind.has_stream(), "some kinds have a stream");
        out.extend_from_slice(&(self.length as u32).to_be_bytes()[1..]);
        out.push(self.kind.into());
        if let Some(stream) = self.stream {
            varint::write(stream.get(), out);
        }
    }

    /// The bytes that follow the header: ciphertext and tag.
    pub fn rest(&self) -> usize {
        self.length + TAG_LEN
    }
}

/// What a ping says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ping {
    /// The other is to answer with the token.
    Question([u8; 8]),
    /// The answer.
    Answer([u8; 8]),
    /// Nothing; it looks like data to whoever watches.
    Cover,
}

impl Ping {
    /// Reads the content of a ping.
    ///
    /// # Errors
    ///
    /// It is none of the three.
    pub fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let token = |token: &[u8]| {
            token.try_into().map_err(|_| FrameError::PingLength { length: token.len() })
        };
        match payload {
            [0, rest @ ..] => token(rest).map(Self::Question),
            [1, rest @ ..] => token(rest).map(Self::Answer),
            [2, ..] => Ok(Self::Cover),
            [kind, ..] => Err(FrameError::UnknownPing(*kind)),
            [] => Err(FrameError::PingLength { length: 0 }),
        }
    }

    pub(super) fn encode(self) -> Vec<u8> {
        match self {
            Self::Question(token) => [&[0][..], &token].concat(),
            Self::Answer(token) => [&[1][..], &token].concat(),
            Self::Cover => vec![2],
        }
    }
}

/// Why received bytes are not a frame.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum FrameError {
    /// There are five kinds.
    #[error("unknown frame kind {0}: expected 0 to 4")]
    UnknownKind(u8),
    /// No frame of the kind is that long or that short.
    #[error("a frame of {length} bytes: expected {least} to {most} for {kind:?}")]
    Length {
        /// The kind.
        kind: FrameKind,
        /// What the header says.
        length: usize,
        /// The shortest.
        least: usize,
        /// The longest.
        most: usize,
    },
    /// The stream id is longer than it needs to be.
    #[error("the stream id is not in its shortest form")]
    StreamId(#[from] VarintError),
    /// Streams are counted from 1.
    #[error("there is no stream 0")]
    StreamZero,
    /// There are three kinds of ping.
    #[error("unknown kind of ping {0}: expected 0 to 2")]
    UnknownPing(u8),
    /// Questions and answers have a token of 8 bytes.
    #[error("a ping's token has {length} bytes: expected 8")]
    PingLength {
        /// How many there are.
        length: usize,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_length_is_refused_before_anything_follows_it() {
        let error = FrameError::Length {
            kind: FrameKind::Stream,
            length: 0x01_0001,
            least: 0,
            most: MAX_FRAME_PAYLOAD,
        };
        assert_eq!(FrameHeader::decode(&[1, 0, 1, 0]), Err(error));
        let error = FrameError::Length { kind: FrameKind::Close, length: 3, least: 2, most: 2 };
        assert_eq!(FrameHeader::decode(&[0, 0, 3, 2]), Err(error));
        assert_eq!(FrameHeader::decode(&[0, 0, 0, 5]), Err(FrameError::UnknownKind(5)));
    }

    #[test]
    fn a_stream_id_has_one_form_and_is_not_zero() {
        assert_eq!(FrameHeader::decode(&[0, 0, 0, 0, 0]), Err(FrameError::StreamZero));
        let long = FrameHeader::decode(&[0, 0, 0, 0, 0x40, 1]);
        assert!(matches!(long, Err(FrameError::StreamId(_))));
    }

    proptest! {
        #[test]
        fn a_header_is_read_as_it_was_written(
            kind in 0..5_u8,
            number in 1..=varint::MAX,
            length in any::<prop::sample::Index>(),
        ) {
            let kind = FrameKind::try_from(kind).unwrap();
            let (least, most) = kind.lengths();
            let length = least + length.index(most - least + 1);
            let stream = kind.has_stream().then(|| StreamId::new(number).unwrap());
            let header = FrameHeader { kind, stream, length };
            let mut bytes = Vec::new();
            header.encode(&mut bytes);
            prop_assert!(bytes.len() <= FrameHeader::MAX_LEN);
            prop_assert_eq!(FrameHeader::decode(&bytes), Ok(Some((header, bytes.len()))));
            for end in 0..bytes.len() {
                prop_assert_eq!(FrameHeader::decode(&bytes[..end]), Ok(None));
            }
        }
    }
}
