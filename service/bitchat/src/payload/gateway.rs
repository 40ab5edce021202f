//! What Fieldpost gateways say to each other inside a session: plaintext type `0x7E`, which the
//! apps ignore.
//!
//! Content travels in segments, so that a lost fragment costs two kilobytes and not all of it.
//! The receiver answers some of them at a time with the set of those it has; the sender repeats the
//! others.
//!
//! ```text
//! segment   00  u32 transfer  u16 index  u16 count  u32 length of all  bytes
//! receipt   01  u32 transfer  u16 count  one bit for each segment, from the highest
//! refusal   02  u32 transfer
//! ```

use super::{PayloadError, Result, bounded, invalid};
use crate::read::Reader;

/// The largest content: 64 KiB and what the envelope around it takes.
pub const MAX_CONTENT: usize = 64 * 1024 + 4096;
/// How much one segment carries: what five full fragments take, or seventeen small ones.
pub const SEGMENT: usize = 2272;
const MAX_SEGMENTS: usize = MAX_CONTENT.div_ceil(SEGMENT);

/// One record between gateways.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record {
    /// A part of some content.
    Segment {
        /// The sender's number for the content.
        transfer: u32,
        /// From 0.
        index: u16,
        /// How many there are.
        count: u16,
        /// The length of the whole.
        length: u32,
        /// All but the last have [`SEGMENT`] bytes.
        bytes: Vec<u8>,
    },
    /// Which parts have arrived.
    Receipt {
        /// What it answers.
        transfer: u32,
        /// One for each segment.
        has: Vec<bool>,
    },
    /// There is no room for this content now.
    Refusal {
        /// What it answers.
        transfer: u32,
    },
}

impl Record {
    /// Reads the body of plaintext type `0x7E`.
    ///
    /// # Errors
    ///
    /// Numbers that do not fit together, or content over [`MAX_CONTENT`].
    pub fn decode(body: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(body);
        let kind = reader.u8()?;
        let transfer = reader.u32()?;
        match kind {
            0x00 => {
                let (index, count) = (reader.u16()?, reader.u16()?);
                let length = reader.u32()?;
                let bytes = reader.rest();
                let all = length as usize;
                let start = usize::from(index) * SEGMENT;
                let fits = all <= MAX_CONTENT
                    && usize::from(count) == segments(all)
                    && index < count
                    && bytes.len() == SEGMENT.min(all.saturating_sub(start));
                if !fits {
                    return Err(invalid("segment", bytes));
                }
                Ok(Self::Segment { transfer, index, count, length, bytes: bytes.to_vec() })
            }
            0x01 => {
                let count = usize::from(reader.u16()?);
                let bits = reader.rest();
                bounded("receipt", bits, count.div_ceil(8)..=count.div_ceil(8))?;
                if count > MAX_SEGMENTS {
                    return Err(invalid("receipt", bits));
                }
                let has = (0..count).map(|i| bits[i / 8] & (0x80 >> (i % 8)) != 0).collect();
                Ok(Self::Receipt { transfer, has })
            }
            0x02 => Ok(Self::Refusal { transfer }),
            other => Err(PayloadError::Unknown(other)),
        }
    }

    /// Writes the body.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Segment { transfer, index, count, length, bytes } => {
                let mut out = Vec::with_capacity(13 + bytes.len());
                out.push(0x00);
                out.extend_from_slice(&transfer.to_be_bytes());
                out.extend_from_slice(&index.to_be_bytes());
                out.extend_from_slice(&count.to_be_bytes());
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(bytes);
                out
            }
            Self::Receipt { transfer, has } => {
                let mut out = vec![0x01];
                out.extend_from_slice(&transfer.to_be_bytes());
                out.extend_from_slice(&(has.len() as u16).to_be_bytes());
                for eight in has.chunks(8) {
                    let bits = eight.iter().enumerate();
                    out.push(bits.fold(0, |byte, (i, has)| byte | (u8::from(*has) << (7 - i))));
                }
                out
            }
            Self::Refusal { transfer } => {
                let mut out = vec![0x02];
                out.extend_from_slice(&transfer.to_be_bytes());
                out
            }
        }
    }
}

/// How many segments some content makes; at least one, so that empty content arrives too.
pub fn segments(length: usize) -> usize {
    length.div_ceil(SEGMENT).max(1)
}
