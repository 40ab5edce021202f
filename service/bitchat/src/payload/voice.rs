//! Live voice (BitChat protocol reference, section 3.6).

use super::{PayloadError, Result, invalid};
use crate::read::Reader;

const MAX_FRAMES: usize = 8;
/// AAC-LC, 16 kHz, mono: the only codec there is.
const AAC: u8 = 1;

/// A part of one burst of speech.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Voice {
    /// Random.
    pub burst_id: [u8; 8],
    /// Counts from 0 in each burst.
    pub sequence: u16,
    /// What it holds.
    pub body: Body,
}

/// What a part of a burst holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body {
    /// A burst begins.
    Start,
    /// 1 to 8 frames of AAC.
    Data(Vec<Vec<u8>>),
    /// A burst is over.
    End {
        /// How many parts held data.
        parts: u16,
        /// How long it lasted.
        duration_ms: u32,
    },
    /// Forget the burst.
    Cancel,
}

impl Voice {
    /// Reads one part.
    ///
    /// # Errors
    ///
    /// Unknown flags or codec, no frames or too many, bytes left over.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let burst_id = reader.array()?;
        let sequence = reader.u16()?;
        let flags = reader.u8()?;
        let body = match flags {
            0x00 => Body::Data(frames(&mut reader)?),
            0x01 => match reader.u8()? {
                AAC => Body::Start,
                other => return Err(PayloadError::Unknown(other)),
            },
            0x02 => Body::End { parts: reader.u16()?, duration_ms: reader.u32()? },
            0x04 => Body::Cancel,
            other => return Err(PayloadError::Unknown(other)),
        };
        if !reader.is_empty() {
            return Err(invalid("end of voice", reader.rest()));
        }
        Ok(Self { burst_id, sequence, body })
    }

    /// Writes it; frames beyond the eighth are left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.burst_id.to_vec();
        out.extend_from_slice(&self.sequence.to_be_bytes());
        match &self.body {
            Body::Start => out.extend_from_slice(&[0x01, AAC]),
            Body::Data(frames) => {
                out.push(0x00);
                for frame in frames.iter().take(MAX_FRAMES) {
                    out.extend_from_slice(&(frame.len() as u16).to_be_bytes());
                    out.extend_from_slice(frame);
                }
            }
            Body::End { parts, duration_ms } => {
                out.push(0x02);
                out.extend_from_slice(&parts.to_be_bytes());
                out.extend_from_slice(&duration_ms.to_be_bytes());
            }
            Body::Cancel => out.push(0x04),
        }
        out
    }
}

fn frames(reader: &mut Reader<'_>) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    while !reader.is_empty() {
        let length = reader.u16()?;
        let frame = reader.take(length.into())?;
        if frame.is_empty() || frames.len() == MAX_FRAMES {
            return Err(invalid("voice frame", frame));
        }
        frames.push(frame.to_vec());
    }
    if frames.is_empty() { Err(PayloadError::Missing("voice frame")) } else { Ok(frames) }
}
