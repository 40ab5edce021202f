//! The bytes on a link.
//!
//! The side that dialled opens the **control stream**; both write frames on it, each behind its
//! length as four bytes, big-endian. A frame is a CBOR array whose first item is its kind:
//!
//! ```text
//! hello    [0, least version, greatest version, signed certificate, bytes that may be in flight]
//! ping     [1, number]              pong    [2, number]
//! answer   [3, batch, taken]        the first so many envelopes of the batch were taken, the rest
//!                                   may come again later
//! wanted   [4, number]              the newest of your rosters that I have; 0 for none
//! renewed  [5, signed certificate]  mine from now on
//! ```
//!
//! Every other one-way stream begins with a head of five bytes, its kind (1 batch, 2 rosters) and the
//! length of the body as four bytes. A batch's body is its number, eight bytes, and envelopes; the
//! other kind's is rosters; each behind its length as four bytes. A file is asked for on a two-way
//! stream; [`FileRequest`] and [`FileAnswer`] cross it as frames, and the bytes of the file follow the
//! answer until the stream ends.
//!
//! A hello may be longer than this version's, so that a later one can be told which versions we
//! speak. Everything else is exact.

use bytes::Bytes;
use fieldpost_envelope::limits as envelope_limits;
use minicbor::{Decoder, Encoder, decode};
use thiserror::Error;

/// The version that this crate speaks.
pub const VERSION: u64 = 1;

/// The largest frame on a control stream, or before a file.
pub const MAX_FRAME: usize = 2048;
/// The most envelopes in one batch.
pub const MAX_BATCH_COUNT: usize = 256;
/// The largest body of a batch: one envelope of any size, or several small ones.
pub const MAX_BATCH: usize = envelope_limits::SIGNED + 8 + 4;
/// The largest body of a stream of rosters: one of any size, or several small ones.
pub const MAX_ROSTERS: usize = envelope_limits::ROSTER + 4;
/// The most rosters on one stream.
pub const MAX_ROSTER_COUNT: usize = 64;
/// The length of a stream's head.
pub const HEAD_LEN: usize = 5;
/// The longest id of a file, in bytes.
pub const MAX_FILE_ID: usize = envelope_limits::FILE_ID;
/// The longest name of a file, in bytes.
pub const MAX_FILENAME: usize = 1024;
/// The longest media type of a file, in bytes.
pub const MAX_MIME_TYPE: usize = envelope_limits::CONTENT_TYPE;
/// The longest reason why a file does not come, in bytes.
pub const MAX_REASON: usize = 256;

/// A frame on the control stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Frame {
    /// The first frame of each side.
    Hello(Hello),
    /// Asks for a pong.
    Ping(u64),
    /// Answers the ping of this number.
    Pong(u64),
    /// Says what became of a batch.
    Answer {
        /// The batch's number.
        batch: u64,
        /// How many of its envelopes were taken, from the first on.
        taken: u64,
    },
    /// Asks for rosters newer than this number.
    Wanted(u64),
    /// The sender's new certificate.
    Renewed(Vec<u8>),
}

/// What each side says first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// The least version that it speaks.
    pub least: u64,
    /// The greatest version that it speaks.
    pub greatest: u64,
    /// Its gateway's word for the node key of the link.
    pub certificate: Vec<u8>,
    /// How many bytes of envelopes it lets be under way to it.
    pub in_flight: u64,
}

impl Frame {
    /// The frame behind its length.
    pub fn encode(&self) -> Bytes {
        framed(|encoder| match self {
            Self::Hello(Hello { least, greatest, certificate, in_flight }) => encoder
                .array(5)?
                .u64(0)?
                .u64(*least)?
                .u64(*greatest)?
                .bytes(certificate)?
                .u64(*in_flight)?
                .ok(),
            Self::Ping(number) => encoder.array(2)?.u64(1)?.u64(*number)?.ok(),
            Self::Pong(number) => encoder.array(2)?.u64(2)?.u64(*number)?.ok(),
            Self::Answer { batch, taken } => {
                encoder.array(3)?.u64(3)?.u64(*batch)?.u64(*taken)?.ok()
            }
            Self::Wanted(number) => encoder.array(2)?.u64(4)?.u64(*number)?.ok(),
            Self::Renewed(certificate) => encoder.array(2)?.u64(5)?.bytes(certificate)?.ok(),
        })
    }

    /// Reads a frame, without its length.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it; a hello of versions that we do not speak is
    /// [`WireError::Version`], whatever follows.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut decoder = Decoder::new(bytes);
        let items = array(&mut decoder)?;
        let kind = decoder.u64()?;
        let expected = match kind {
            0 => {
                let (least, greatest) = (decoder.u64()?, decoder.u64()?);
                if least > VERSION || greatest < VERSION {
                    return Err(WireError::Version { least, greatest });
                }
                let certificate = decoder.bytes()?.to_vec();
                let in_flight = decoder.u64()?;
                return Ok(Self::Hello(Hello { least, greatest, certificate, in_flight }));
            }
            1 | 2 | 4 | 5 => 2,
            3 => 3,
            _ => return Err(WireError::UnknownKind(kind)),
        };
        if items != expected {
            return Err(WireError::Items { items, expected });
        }
        let frame = match kind {
            1 => Self::Ping(decoder.u64()?),
            2 => Self::Pong(decoder.u64()?),
            3 => Self::Answer { batch: decoder.u64()?, taken: decoder.u64()? },
            4 => Self::Wanted(decoder.u64()?),
            _ => Self::Renewed(decoder.bytes()?.to_vec()),
        };
        finish(&decoder)?;
        Ok(frame)
    }
}

/// The length of a frame that follows these four bytes.
///
/// # Errors
///
/// It is longer than [`MAX_FRAME`].
pub fn frame_length(head: [u8; 4]) -> Result<usize, WireError> {
    within(u32::from_be_bytes(head), MAX_FRAME)
}

/// What a one-way stream carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamKind {
    /// Envelopes.
    Batch,
    /// Rosters.
    Rosters,
}

/// Writes the head of a one-way stream.
pub fn encode_head(kind: StreamKind, length: usize) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    head[0] = match kind {
        StreamKind::Batch => 1,
        StreamKind::Rosters => 2,
    };
    head[1..].copy_from_slice(&length_of(length));
    head
}

/// Reads the head of a one-way stream: its kind, and how long its body is.
///
/// # Errors
///
/// The kind is unknown, or the body longer than its kind may be.
pub fn decode_head(head: [u8; HEAD_LEN]) -> Result<(StreamKind, usize), WireError> {
    let [kind, length @ ..] = head;
    let (kind, most) = match kind {
        1 => (StreamKind::Batch, MAX_BATCH),
        2 => (StreamKind::Rosters, MAX_ROSTERS),
        _ => return Err(WireError::UnknownKind(kind.into())),
    };
    Ok((kind, within(u32::from_be_bytes(length), most)?))
}

/// Writes a batch's body in pieces that need not be copied together.
pub fn encode_batch(number: u64, envelopes: &[Bytes]) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(1 + 2 * envelopes.len());
    pieces.push(Bytes::copy_from_slice(&number.to_be_bytes()));
    push_parts(&mut pieces, envelopes);
    pieces
}

/// Reads a batch's body: its number and its envelopes, which share the body's memory.
///
/// # Errors
///
/// The lengths do not add up, or there are more than [`MAX_BATCH_COUNT`].
pub fn decode_batch(mut body: Bytes) -> Result<(u64, Vec<Bytes>), WireError> {
    if body.len() < 8 {
        return Err(WireError::Truncated);
    }
    let number = body.split_to(8);
    let number = number.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    Ok((number, parts(body, MAX_BATCH_COUNT, envelope_limits::SIGNED)?))
}

/// Writes the body of a stream of rosters.
pub fn encode_rosters(rosters: &[Bytes]) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(2 * rosters.len());
    push_parts(&mut pieces, rosters);
    pieces
}

/// Reads the body of a stream of rosters.
///
/// # Errors
///
/// The lengths do not add up, or there are more than [`MAX_ROSTER_COUNT`].
pub fn decode_rosters(body: Bytes) -> Result<Vec<Bytes>, WireError> {
    parts(body, MAX_ROSTER_COUNT, envelope_limits::ROSTER)
}

/// Asks for a file, or for the rest of one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileRequest {
    /// Its id at the gateway that keeps it.
    pub file: String,
    /// The first byte that is wanted.
    pub from: u64,
}

impl FileRequest {
    /// The request behind its length.
    pub fn encode(&self) -> Bytes {
        framed(|encoder| encoder.array(2)?.str(&self.file)?.u64(self.from)?.ok())
    }

    /// Reads a request, without its length.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut decoder = Decoder::new(bytes);
        exactly(&mut decoder, 2)?;
        let file = text(&mut decoder, MAX_FILE_ID)?;
        let from = decoder.u64()?;
        finish(&decoder)?;
        Ok(Self { file, from })
    }
}

/// Answers the request for a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FileAnswer {
    /// Its bytes follow.
    Found {
        /// Its name for people.
        filename: String,
        /// Its media type.
        mime_type: Option<String>,
        /// Its whole size.
        size_bytes: u64,
        /// SHA-256 of the whole.
        sha256: [u8; 32],
    },
    /// There is no such file.
    Unknown,
    /// It is not for the gateway that asks.
    NotAllowed,
    /// It cannot be given now, and why.
    Failed(String),
}

impl FileAnswer {
    /// The answer behind its length.
    pub fn encode(&self) -> Bytes {
        framed(|encoder| match self {
            Self::Found { filename, mime_type, size_bytes, sha256 } => {
                encoder.array(5)?.u64(0)?.str(filename)?;
                match mime_type {
                    Some(mime_type) => encoder.str(mime_type)?,
                    None => encoder.null()?,
                };
                encoder.u64(*size_bytes)?.bytes(sha256)?.ok()
            }
            Self::Unknown => encoder.array(1)?.u64(1)?.ok(),
            Self::NotAllowed => encoder.array(1)?.u64(2)?.ok(),
            Self::Failed(reason) => encoder.array(2)?.u64(3)?.str(reason)?.ok(),
        })
    }

    /// Reads an answer, without its length.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut decoder = Decoder::new(bytes);
        let items = array(&mut decoder)?;
        let kind = decoder.u64()?;
        let expected = match kind {
            0 => 5,
            1 | 2 => 1,
            3 => 2,
            _ => return Err(WireError::UnknownKind(kind)),
        };
        if items != expected {
            return Err(WireError::Items { items, expected });
        }
        let answer = match kind {
            0 => Self::Found {
                filename: text(&mut decoder, MAX_FILENAME)?,
                mime_type: if decoder.datatype()? == minicbor::data::Type::Null {
                    decoder.null()?;
                    None
                } else {
                    Some(text(&mut decoder, MAX_MIME_TYPE)?)
                },
                size_bytes: decoder.u64()?,
                sha256: decoder.bytes()?.try_into().map_err(|_| WireError::Malformed)?,
            },
            1 => Self::Unknown,
            2 => Self::NotAllowed,
            _ => Self::Failed(text(&mut decoder, MAX_REASON)?),
        };
        finish(&decoder)?;
        Ok(answer)
    }
}

/// Why bytes that came over a link are refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum WireError {
    /// They end before they should.
    #[error("the bytes end early")]
    Truncated,
    /// They are not what the format says.
    #[error("the bytes are not well formed")]
    Malformed,
    /// Something follows.
    #[error("{0} bytes follow the end")]
    Trailing(usize),
    /// An array of another length.
    #[error("{items} items: expected {expected}")]
    Items {
        /// How many there are.
        items: u64,
        /// How many there should be.
        expected: u64,
    },
    /// We know no such frame or stream.
    #[error("unknown kind {0}")]
    UnknownKind(u64),
    /// Both sides speak no version in common.
    #[error("no version from {least} to {greatest} is spoken here: expected {VERSION}")]
    Version {
        /// The least that the other side speaks.
        least: u64,
        /// The greatest.
        greatest: u64,
    },
    /// Longer than its kind may be.
    #[error("{length} bytes or entries are too many: expected at most {most}")]
    Oversize {
        /// What it claims.
        length: usize,
        /// What is allowed.
        most: usize,
    },
}

impl From<decode::Error> for WireError {
    fn from(error: decode::Error) -> Self {
        if error.is_end_of_input() { Self::Truncated } else { Self::Malformed }
    }
}

type Written = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

fn framed(write: impl FnOnce(&mut Encoder<Vec<u8>>) -> Written) -> Bytes {
    let mut encoder = Encoder::new(vec![0; 4]);
    write(&mut encoder).expect("writing to memory cannot fail");
    let mut bytes = encoder.into_writer();
    let length = length_of(bytes.len() - 4);
    bytes[..4].copy_from_slice(&length);
    bytes.into()
}

fn length_of(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("what we write is far below 4 GiB").to_be_bytes()
}

fn push_parts(pieces: &mut Vec<Bytes>, parts: &[Bytes]) {
    for part in parts {
        pieces.push(Bytes::copy_from_slice(&length_of(part.len())));
        pieces.push(part.clone());
    }
}

fn parts(mut body: Bytes, most: usize, most_bytes: usize) -> Result<Vec<Bytes>, WireError> {
    let mut parts = Vec::new();
    while !body.is_empty() {
        let (length, _) = body.split_first_chunk::<4>().ok_or(WireError::Truncated)?;
        let length = within(u32::from_be_bytes(*length), most_bytes)?;
        let part = body.get(4..4 + length).ok_or(WireError::Truncated)?;
        if parts.len() == most {
            return Err(WireError::Oversize { length: most + 1, most });
        }
        parts.push(body.slice_ref(part));
        let _ = body.split_to(4 + length);
    }
    if parts.is_empty() { Err(WireError::Truncated) } else { Ok(parts) }
}

fn within(length: u32, most: usize) -> Result<usize, WireError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > most { Err(WireError::Oversize { length, most }) } else { Ok(length) }
}

fn array(decoder: &mut Decoder<'_>) -> Result<u64, WireError> {
    decoder.array()?.ok_or(WireError::Malformed)
}

fn exactly(decoder: &mut Decoder<'_>, expected: u64) -> Result<(), WireError> {
    let items = array(decoder)?;
    if items == expected { Ok(()) } else { Err(WireError::Items { items, expected }) }
}

fn text(decoder: &mut Decoder<'_>, most: usize) -> Result<String, WireError> {
    let text = decoder.str()?;
    let length = text.len();
    if length > most { Err(WireError::Oversize { length, most }) } else { Ok(text.to_owned()) }
}

fn finish(decoder: &Decoder<'_>) -> Result<(), WireError> {
    match decoder.input().len() - decoder.position() {
        0 => Ok(()),
        extra => Err(WireError::Trailing(extra)),
    }
}
