//! What radios and the field say to each other: records with their length in front, as on streams.
//!
//! ```text
//! to the field   01 name          02 u64 link, frame               03 u64 link (close)
//! to a radio     81 u64 link, u8 role, u16 largest frame (up)      82 u64 link (down)
//!                83 u64 link, frame             84 (it has joined)   85 reason (it may not join)
//! ```

use fieldpost_bitchat::{MAX_FRAME, Role};

/// The longest record.
pub(super) const MAX_RECORD: usize = 9 + MAX_FRAME;

/// What a radio says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum ToField {
    Join { name: String },
    Frame { link: u64, bytes: Vec<u8> },
    Close { link: u64 },
}

/// What the field says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum ToRadio {
    Up { link: u64, role: Role, max_frame: usize },
    Down { link: u64 },
    Frame { link: u64, bytes: Vec<u8> },
    Joined,
    Refused { reason: String },
}

impl ToField {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Join { name } => [&[0x01], name.as_bytes()].concat(),
            Self::Frame { link, bytes } => record(0x02, *link, bytes),
            Self::Close { link } => record(0x03, *link, &[]),
        }
    }

    pub(super) fn decode(record: &[u8]) -> Option<Self> {
        let (kind, rest) = record.split_first()?;
        if *kind == 0x01 {
            return str::from_utf8(rest).ok().map(|name| Self::Join { name: name.to_owned() });
        }
        let (link, rest) = rest.split_first_chunk()?;
        let link = u64::from_be_bytes(*link);
        match kind {
            0x02 => Some(Self::Frame { link, bytes: rest.to_vec() }),
            0x03 if rest.is_empty() => Some(Self::Close { link }),
            _ => None,
        }
    }
}

impl ToRadio {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Up { link, role, max_frame } => {
                let [high, low] = (*max_frame as u16).to_be_bytes();
                record(0x81, *link, &[u8::from(*role == Role::Peripheral), high, low])
            }
            Self::Down { link } => record(0x82, *link, &[]),
            Self::Frame { link, bytes } => record(0x83, *link, bytes),
            Self::Joined => vec![0x84],
            Self::Refused { reason } => [&[0x85], reason.as_bytes()].concat(),
        }
    }

    pub(super) fn decode(record: &[u8]) -> Option<Self> {
        let (kind, rest) = record.split_first()?;
        match (kind, rest) {
            (0x84, []) => return Some(Self::Joined),
            (0x85, reason) => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                return Some(Self::Refused { reason });
            }
            _ => {}
        }
        let (link, rest) = rest.split_first_chunk()?;
        let link = u64::from_be_bytes(*link);
        match (kind, rest) {
            (0x81, [role, high, low]) => {
                let role = if *role == 0 { Role::Central } else { Role::Peripheral };
                let max_frame = u16::from_be_bytes([*high, *low]).into();
                Some(Self::Up { link, role, max_frame })
            }
            (0x82, []) => Some(Self::Down { link }),
            (0x83, bytes) => Some(Self::Frame { link, bytes: bytes.to_vec() }),
            _ => None,
        }
    }
}

fn record(kind: u8, link: u64, rest: &[u8]) -> Vec<u8> {
    [&[kind][..], &link.to_be_bytes(), rest].concat()
}
