//! Deterministic CBOR (RFC 8949, section 4.2.1), and nothing but that.

use minicbor::{Decoder, Encoder};
use thiserror::Error;

/// A CBOR encoder into memory, where writing cannot fail.
pub(super) struct Writer(Encoder<Vec<u8>>);

impl Writer {
    pub(super) fn new() -> Self {
        Self(Encoder::new(Vec::new()))
    }

    /// Begins a map of so many entries; their keys must ascend.
    pub(super) fn map(&mut self, entries: usize) {
        self.0.map(entries as u64).expect(INFALLIBLE);
    }

    pub(super) fn key(&mut self, key: u64) -> &mut Self {
        self.uint(key);
        self
    }

    pub(super) fn list(&mut self, length: usize) {
        self.0.array(length as u64).expect(INFALLIBLE);
    }

    pub(super) fn uint(&mut self, value: u64) {
        self.0.u64(value).expect(INFALLIBLE);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.bytes(bytes).expect(INFALLIBLE);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.0.str(text).expect(INFALLIBLE);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0.into_writer()
    }
}

/// Reads one item after another, each with the name of the field that it is.
pub(super) struct Reader<'b> {
    decoder: Decoder<'b>,
}

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { decoder: Decoder::new(bytes) }
    }

    /// Begins a map with integer keys.
    pub(super) fn map(&mut self, field: &'static str) -> Result<Map, DecodeError> {
        let left = self.head(MAP, field)?;
        Ok(Map { left, next: None, last: None })
    }

    /// Begins a list and returns its length.
    pub(super) fn list(&mut self, field: &'static str, most: usize) -> Result<usize, DecodeError> {
        let length = self.head(ARRAY, field)?;
        within(field, length, most)
    }

    /// Begins a list of that length.
    pub(super) fn tuple(&mut self, field: &'static str, length: usize) -> Result<(), DecodeError> {
        exactly(field, self.list(field, usize::MAX)?, length)
    }

    pub(super) fn uint(&mut self, field: &'static str, most: u64) -> Result<u64, DecodeError> {
        let value = self.head(UNSIGNED, field)?;
        if value > most { Err(DecodeError::OutOfRange { field, value }) } else { Ok(value) }
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let bytes = self.bytes(field, usize::MAX)?;
        exactly(field, bytes.len(), N)?;
        bytes.try_into().map_err(|_| DecodeError::Truncated)
    }

    pub(super) fn bytes(
        &mut self,
        field: &'static str,
        most: usize,
    ) -> Result<&'b [u8], DecodeError> {
        self.measure(BYTES, field, most)?;
        self.decoder.bytes().map_err(|_| DecodeError::Truncated)
    }

    pub(super) fn text(
        &mut self,
        field: &'static str,
        most: usize,
    ) -> Result<&'b str, DecodeError> {
        self.measure(TEXT, field, most)?;
        self.decoder.str().map_err(|error| {
            if error.is_end_of_input() {
                DecodeError::Truncated
            } else {
                DecodeError::NotUtf8 { field }
            }
        })
    }

    /// What has been read so far, in bytes.
    pub(super) fn position(&self) -> usize {
        self.decoder.position()
    }

    /// Makes sure that nothing follows.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        match self.rest().len() {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing { extra }),
        }
    }

    /// Looks at the length of what follows without consuming it.
    fn measure(&mut self, major: u8, field: &'static str, most: usize) -> Result<(), DecodeError> {
        let start = self.decoder.position();
        let length = self.head(major, field)?;
        within(field, length, most)?;
        self.decoder.set_position(start);
        Ok(())
    }

    /// Consumes the head of an item and returns its argument.
    fn head(&mut self, major: u8, field: &'static str) -> Result<u64, DecodeError> {
        let at = self.decoder.position();
        let (first, rest) = self.rest().split_first().ok_or(DecodeError::Truncated)?;
        let (width, least) = match first & INFO {
            0..=23 => (0, 0),
            24 => (1, 24),
            25 => (2, 1 << 8),
            26 => (4, 1 << 16),
            27 => (8, 1 << 32),
            31 if matches!(first >> 5, BYTES..=MAP) => return Err(DecodeError::Indefinite { at }),
            _ => return Err(DecodeError::Malformed { at }),
        };
        if first >> 5 != major {
            return Err(DecodeError::WrongType { field });
        }
        let argument = rest.get(..width).ok_or(DecodeError::Truncated)?;
        self.decoder.set_position(at + 1 + width);
        if width == 0 {
            return Ok(u64::from(first & INFO));
        }
        let argument = argument.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        if argument < least { Err(DecodeError::NotShortest { at }) } else { Ok(argument) }
    }

    fn rest(&self) -> &'b [u8] {
        self.decoder.input().get(self.decoder.position()..).unwrap_or_default()
    }
}

/// The keys of a map, in the order in which they must come.
pub(super) struct Map {
    left: u64,
    /// The key that has been read but not asked for yet.
    next: Option<u64>,
    last: Option<u64>,
}

impl Map {
    /// Moves to the value of `key`, which every such map has.
    pub(super) fn required<'r, 'b>(
        &mut self,
        reader: &'r mut Reader<'b>,
        key: u64,
        field: &'static str,
    ) -> Result<&'r mut Reader<'b>, DecodeError> {
        if self.optional(reader, key)? { Ok(reader) } else { Err(DecodeError::Missing { field }) }
    }

    /// Moves to the value of `key`, if it comes next. Keys must be asked for in ascending order.
    pub(super) fn optional(
        &mut self,
        reader: &mut Reader<'_>,
        key: u64,
    ) -> Result<bool, DecodeError> {
        self.advance(reader)?;
        match self.next {
            Some(next) if next < key => Err(DecodeError::UnknownKey { key: next }),
            Some(next) if next == key => {
                self.next = None;
                Ok(true)
            }
            Some(_) | None => Ok(false),
        }
    }

    /// Makes sure that no key is left.
    pub(super) fn finish(mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        self.advance(reader)?;
        self.next.map_or(Ok(()), |key| Err(DecodeError::UnknownKey { key }))
    }

    fn advance(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        if self.next.is_some() || self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        let key = reader.head(UNSIGNED, "key")?;
        if self.last.is_some_and(|last| last >= key) {
            return Err(DecodeError::KeyOrder { key });
        }
        (self.next, self.last) = (Some(key), Some(key));
        Ok(())
    }
}

/// Why received bytes are not what they should be.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum DecodeError {
    /// More bytes than any has.
    #[error("{length} bytes are too many: expected at most {most}")]
    Oversize {
        /// How many there are.
        length: usize,
        /// How many there may be.
        most: usize,
    },
    /// The bytes end too early.
    #[error("the bytes end too early")]
    Truncated,
    /// Something follows the end.
    #[error("{extra} bytes follow the end")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// Not CBOR at all.
    #[error("byte {at} begins no CBOR item")]
    Malformed {
        /// Where, counted from the start.
        at: usize,
    },
    /// Deterministic CBOR has no indefinite lengths.
    #[error("the item at byte {at} has an indefinite length")]
    Indefinite {
        /// Where, counted from the start.
        at: usize,
    },
    /// Deterministic CBOR writes numbers and lengths as short as can be.
    #[error("the number at byte {at} is not written in its shortest form")]
    NotShortest {
        /// Where, counted from the start.
        at: usize,
    },
    /// Deterministic CBOR sorts map keys, and has each once.
    #[error("key {key} comes after one that is not smaller")]
    KeyOrder {
        /// The key out of order.
        key: u64,
    },
    /// This version knows no such key.
    #[error("key {key} is unknown")]
    UnknownKey {
        /// The key.
        key: u64,
    },
    /// A field that must be there.
    #[error("{field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field of the wrong CBOR type.
    #[error("{field} has the wrong type")]
    WrongType {
        /// The field.
        field: &'static str,
    },
    /// A field of fixed length that has another.
    #[error("{field} has length {length}: expected {expected}")]
    Length {
        /// The field.
        field: &'static str,
        /// How long it is.
        length: usize,
        /// How long it must be.
        expected: usize,
    },
    /// A field that is too long.
    #[error("{field} has length {length}: expected at most {most}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// How long it is.
        length: usize,
        /// How long it may be.
        most: usize,
    },
    /// A text that is none.
    #[error("{field} is not UTF-8")]
    NotUtf8 {
        /// The field.
        field: &'static str,
    },
    /// A number that is none of the field's.
    #[error("{field} {value} is out of range")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// The number.
        value: u64,
    },
    /// Entries that must be sorted and distinct.
    #[error("{field} are not in ascending order")]
    Order {
        /// The field.
        field: &'static str,
    },
    /// A value that breaks a rule of its own.
    #[error("{field} is not one")]
    Invalid {
        /// The field.
        field: &'static str,
    },
    /// Version 1 is the only one.
    #[error("unsupported version {0}: expected 1")]
    Version(u64),
}

fn within(field: &'static str, length: u64, most: usize) -> Result<usize, DecodeError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > most { Err(DecodeError::TooLong { field, length, most }) } else { Ok(length) }
}

fn exactly(field: &'static str, length: usize, expected: usize) -> Result<(), DecodeError> {
    if length == expected { Ok(()) } else { Err(DecodeError::Length { field, length, expected }) }
}

const INFALLIBLE: &str = "writing to memory cannot fail";

/// The low five bits of an item's first byte.
const INFO: u8 = 0x1f;

// Major types, RFC 8949, section 3.1.
const UNSIGNED: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
