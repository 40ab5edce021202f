//! Cutting a sealed message into packets' bodies, with repair (HTX reference, sections 2.5 and 6).
//!
//! ```text
//! fragment = transfer (16) || index, u16 || count, u16 || flags (1) || sealed length, u32
//!            || SURB (416) if flagged || shard || random
//! ```
//!
//! All shards of a transfer have the same length, whether a SURB stands before them or not, so that
//! a fragment that is sent again can carry one. The length of the sealed message and the class of
//! the packet decide how many shards there are and how long; `count` repeats it, so that a
//! contradiction shows.

mod reassembly;

use rand::CryptoRng;
use reed_solomon_simd::Error as RepairError;
use thiserror::Error;

use crate::{
    seal::SEAL_OVERHEAD,
    sphinx::{Class, SURB_LEN, Surb},
};

pub use reassembly::{Gathered, Limits, Reassembly, RefuseError};

/// The longest message, in bytes: 1 MiB of content (design, section 7) and an envelope around it.
pub const MAX_MESSAGE_LEN: usize = 1024 * 1024 + 128 * 1024;

/// The longest sealed message, in bytes.
pub const MAX_SEALED_LEN: usize = MAX_MESSAGE_LEN + SEAL_OVERHEAD;

/// Bytes before the SURB or the shard.
pub const FRAGMENT_HEADER_LEN: usize = 25;

/// Messages of at most this many shards have no repair shards.
pub const UNREPAIRED_SHARDS: usize = 8;

/// One message on its way, from sender to receiver and over all its retransmissions. Random, and
/// not the `MessageId` of what is inside.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TransferId(pub [u8; 16]);

impl TransferId {
    /// A new one.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

/// How a sealed message of some length is cut.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Layout {
    /// The class of all its packets.
    pub class: Class,
    /// Bytes of the sealed message.
    pub sealed_len: usize,
    /// Shards of the message itself.
    pub data: usize,
    /// Shards that replace lost ones: one for each eight, if there are more than eight.
    pub repair: usize,
}

impl Layout {
    /// How `sealed_len` bytes are cut for packets of `class`; `None` where that is no length of a
    /// sealed message.
    pub fn new(class: Class, sealed_len: usize) -> Option<Self> {
        if !(SEAL_OVERHEAD..=MAX_SEALED_LEN).contains(&sealed_len) {
            return None;
        }
        let data = sealed_len.div_ceil(shard_len(class));
        let repair = if data > UNREPAIRED_SHARDS { data.div_ceil(8) } else { 0 };
        Some(Self { class, sealed_len, data, repair })
    }

    /// The class that carries `sealed_len` bytes best: small packets as long as few of them do.
    pub fn class_for(sealed_len: usize) -> Class {
        let fits = sealed_len <= UNREPAIRED_SHARDS * shard_len(Class::Small);
        if fits { Class::Small } else { Class::Large }
    }

    /// Shards in all.
    pub fn count(&self) -> usize {
        self.data + self.repair
    }

    /// Bytes of each shard.
    pub fn shard_len(&self) -> usize {
        shard_len(self.class)
    }
}

/// The shards of a message, and those that replace lost ones.
pub type Shards = Vec<Box<[u8]>>;

/// Bytes of a shard in a packet of `class`. Even, as the code asks.
pub const fn shard_len(class: Class) -> usize {
    (class.body_len() - FRAGMENT_HEADER_LEN - SURB_LEN) / 2 * 2
}

/// Cuts a sealed message into shards, and adds those that replace lost ones.
///
/// # Errors
///
/// There is no layout for that length.
pub fn split(class: Class, sealed: &[u8]) -> Result<(Layout, Shards), SplitError> {
    let layout = Layout::new(class, sealed.len())
        .ok_or(SplitError::Length { length: sealed.len(), most: MAX_SEALED_LEN })?;
    let mut shards: Shards = sealed
        .chunks(layout.shard_len())
        .map(|chunk| {
            let mut shard = vec![0; layout.shard_len()];
            shard[..chunk.len()].copy_from_slice(chunk);
            shard.into_boxed_slice()
        })
        .collect();
    if layout.repair > 0 {
        let repair = reed_solomon_simd::encode(layout.data, layout.repair, &shards)?;
        shards.extend(repair.into_iter().map(Vec::into_boxed_slice));
    }
    Ok((layout, shards))
}

/// Why a message is not cut.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum SplitError {
    /// Too long, or shorter than any sealed message.
    #[error("{length} bytes are not a sealed message: expected {SEAL_OVERHEAD} to {most}")]
    Length {
        /// How many there are.
        length: usize,
        /// How many there may be.
        most: usize,
    },
    /// The code refuses.
    #[error("no repair shards")]
    Repair(#[from] RepairError),
}

/// One fragment, borrowed from the body of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fragment<'b> {
    /// To which transfer it belongs.
    pub transfer: TransferId,
    /// Which shard it is; those of the message come first.
    pub index: usize,
    /// How the message was cut.
    pub layout: Layout,
    /// Whether it was sent before: its receiver then answers anew if it has answered already.
    pub again: bool,
    /// Whether the sender wants to know at once what has come.
    pub asks: bool,
    /// With what the receiver may answer.
    pub surb: Option<&'b [u8; SURB_LEN]>,
    /// The shard.
    pub shard: &'b [u8],
}

impl<'b> Fragment<'b> {
    /// Reads the fragment in the body of a packet of `class`.
    ///
    /// # Errors
    ///
    /// The sender wrote something else.
    pub fn decode(class: Class, body: &'b [u8]) -> Result<Self, FragmentError> {
        let short = FragmentError::Length { length: body.len(), expected: class.body_len() };
        if body.len() != class.body_len() {
            return Err(short);
        }
        let (header, rest) = body.split_first_chunk::<FRAGMENT_HEADER_LEN>().ok_or(short)?;
        let number = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let (index, count, flags) = (number(16), number(18), header[20]);
        let sealed_len = u32::from_be_bytes([header[21], header[22], header[23], header[24]]);
        if flags & !(SURB | AGAIN | ASKS) != 0 {
            return Err(FragmentError::Flags(flags));
        }
        let layout = usize::try_from(sealed_len)
            .ok()
            .and_then(|length| Layout::new(class, length))
            .ok_or(FragmentError::SealedLength(sealed_len))?;
        if count != layout.count() || index >= count {
            return Err(FragmentError::Index { index, count, expected: layout.count() });
        }
        let (surb, rest) = if flags & SURB == 0 {
            (None, rest)
        } else {
            let (surb, rest) = rest.split_first_chunk::<SURB_LEN>().ok_or(short)?;
            (Some(surb), rest)
        };
        Ok(Self {
            transfer: TransferId(std::array::from_fn(|at| header[at])),
            index,
            layout,
            again: flags & AGAIN != 0,
            asks: flags & ASKS != 0,
            surb,
            shard: &rest[..layout.shard_len()],
        })
    }

    /// The bytes of the fragment, shorter than the body that they stand in.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.layout.class.body_len());
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags =
            flag(self.surb.is_some(), SURB) | flag(self.again, AGAIN) | flag(self.asks, ASKS);
        bytes.extend(self.transfer.0);
        bytes.extend((self.index as u16).to_be_bytes());
        bytes.extend((self.layout.count() as u16).to_be_bytes());
        bytes.push(flags);
        bytes.extend((self.layout.sealed_len as u32).to_be_bytes());
        bytes.extend(self.surb.into_iter().flatten());
        bytes.extend(self.shard);
        bytes
    }

    /// The SURB, to keep.
    pub fn to_surb(&self) -> Option<Surb> {
        self.surb.map(|bytes| Surb::from_bytes(*bytes))
    }
}

/// Why a body is not a fragment.
///
/// It was sealed to us, so its sender is at fault: count and drop it.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum FragmentError {
    /// Not the length of a body.
    #[error("a body of {length} bytes: expected {expected}")]
    Length {
        /// How many bytes there are.
        length: usize,
        /// How many a body of the class has.
        expected: usize,
    },
    /// Flags that we do not know.
    #[error("unknown flags {0:#04x} of a fragment")]
    Flags(u8),
    /// No message has that length.
    #[error("a sealed message of {0} bytes: expected {SEAL_OVERHEAD} to {MAX_SEALED_LEN}")]
    SealedLength(u32),
    /// The numbers contradict the length of the message.
    #[error("fragment {index} of {count}: expected {expected} in all")]
    Index {
        /// Which shard.
        index: usize,
        /// Of how many.
        count: usize,
        /// How many the length asks for.
        expected: usize,
    },
}

const SURB: u8 = 1;
const AGAIN: u8 = 2;
const ASKS: u8 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mebibyte_takes_33_large_shards_and_five_to_repair_them() {
        let layout = Layout::new(Class::Large, 1024 * 1024 + SEAL_OVERHEAD).unwrap();
        assert_eq!((layout.data, layout.repair), (33, 5));
        let longest = Layout::new(Class::Small, MAX_SEALED_LEN).unwrap();
        assert!(longest.count() < 1024, "{}", longest.count());
    }

    #[test]
    fn every_shard_fits_its_body_beside_a_surb() {
        for class in Class::ALL {
            let most = FRAGMENT_HEADER_LEN + SURB_LEN + shard_len(class);
            assert!(most <= class.body_len() && most + 2 > class.body_len());
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let (layout, shards) = split(Class::Small, &[7; 5000]).unwrap();
        let fragment = Fragment {
            transfer: TransferId([1; 16]),
            index: 2,
            layout,
            again: true,
            asks: false,
            surb: Some(&[9; SURB_LEN]),
            shard: &shards[2],
        };
        let mut body = fragment.encode();
        body.resize(Class::Small.body_len(), 0xee);
        assert_eq!(Fragment::decode(Class::Small, &body), Ok(fragment));
        let altered = |at: usize, value: u8| {
            let mut body = body.clone();
            body[at] = value;
            Fragment::decode(Class::Small, &body).unwrap_err()
        };
        assert!(matches!(altered(17, 4), FragmentError::Index { index: 4, .. }));
        assert!(matches!(altered(19, 5), FragmentError::Index { count: 5, expected: 4, .. }));
        assert_eq!(altered(20, 8), FragmentError::Flags(8));
        assert!(matches!(altered(21, 0xff), FragmentError::SealedLength(_)));
        let short = Fragment::decode(Class::Small, &body[1..]);
        assert!(matches!(short, Err(FragmentError::Length { .. })));
        let large = Fragment::decode(Class::Large, &body);
        assert!(matches!(large, Err(FragmentError::Length { .. })));
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(
            length in SEAL_OVERHEAD..60_000_usize, again: bool, asks: bool, with_surb: bool,
            large: bool, at: prop::sample::Index
        ) {
            let class = if large { Class::Large } else { Class::Small };
            let (layout, shards) = split(class, &vec![5; length]).unwrap();
            prop_assert_eq!(shards.len(), layout.count());
            let index = at.index(layout.count());
            let surb = [3; SURB_LEN];
            let surb = with_surb.then_some(&surb);
            let transfer = TransferId([4; 16]);
            let fragment =
                Fragment { transfer, index, layout, again, asks, surb, shard: &shards[index] };
            let mut body = fragment.encode();
            prop_assert!(body.len() <= class.body_len());
            body.resize(class.body_len(), 0);
            prop_assert_eq!(Fragment::decode(class, &body), Ok(fragment));
        }
    }
}
