//! Reads deterministic CBOR and refuses every other way to write the same.

use minicbor::Decoder;

use super::{DecodeError, FieldName, Violation};

/// A map with integer keys, read in the order in which its keys must come.
pub(crate) struct Map<'b> {
    reader: Reader<'b>,
    /// Entries whose key has not been read yet.
    left: u64,
    /// The key that has been read but not asked for yet.
    next: Option<u64>,
    last: Option<u64>,
}

impl<'b> Map<'b> {
    pub(crate) fn begin(payload: &'b [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { decoder: Decoder::new(payload) };
        let left = reader.head(MAP)?.ok_or(DecodeError::NotAMap)?;
        let mut map = Self { reader, left, next: None, last: None };
        map.advance()?;
        Ok(map)
    }

    /// The value of `key`, which every such map has.
    pub(crate) fn required(
        &mut self,
        key: u64,
        field: FieldName,
    ) -> Result<Item<'_, 'b>, DecodeError> {
        self.optional(key, field)?.ok_or(DecodeError::Missing { field })
    }

    /// The value of `key`, if it comes next. Keys must be asked for in ascending order.
    pub(crate) fn optional(
        &mut self,
        key: u64,
        field: FieldName,
    ) -> Result<Option<Item<'_, 'b>>, DecodeError> {
        if self.next.is_none() {
            self.advance()?;
        }
        match self.next {
            Some(next) if next < key => Err(DecodeError::UnknownKey { key: next }),
            Some(next) if next == key => {
                self.next = None;
                Ok(Some(Item { reader: &mut self.reader, field }))
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Makes sure that nothing is left, in the map or behind it.
    pub(crate) fn finish(mut self) -> Result<(), DecodeError> {
        if self.next.is_none() {
            self.advance()?;
        }
        if let Some(key) = self.next {
            return Err(DecodeError::UnknownKey { key });
        }
        match self.reader.rest().len() {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing { extra }),
        }
    }

    fn advance(&mut self) -> Result<(), DecodeError> {
        if self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        let at = self.reader.decoder.position();
        let key = self.reader.head(UNSIGNED)?.ok_or(DecodeError::KeyType { at })?;
        match self.last {
            Some(last) if last == key => return Err(DecodeError::DuplicateKey { key }),
            Some(last) if last > key => return Err(DecodeError::KeyOrder { key }),
            _ => {}
        }
        (self.next, self.last) = (Some(key), Some(key));
        Ok(())
    }
}

/// The next value, read as what its field demands.
pub(crate) struct Item<'r, 'b> {
    reader: &'r mut Reader<'b>,
    field: FieldName,
}

impl<'b> Item<'_, 'b> {
    pub(crate) fn field(&self) -> FieldName {
        self.field
    }

    /// The following values, under another name.
    pub(crate) fn part(&mut self, field: FieldName) -> Item<'_, 'b> {
        Item { reader: self.reader, field }
    }

    pub(crate) fn uint(&mut self) -> Result<u64, DecodeError> {
        self.head(UNSIGNED)
    }

    /// Bytes of a fixed length.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let length = self.measure(BYTES, usize::MAX)?;
        if length != N {
            return Err(DecodeError::Length { field: self.field, length, expected: N });
        }
        self.bytes(N)?.try_into().map_err(|_| DecodeError::Truncated)
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Result<&'b [u8], DecodeError> {
        self.measure(BYTES, most)?;
        self.reader.decoder.bytes().map_err(|_| DecodeError::Truncated)
    }

    pub(crate) fn text(&mut self, most: usize) -> Result<&'b str, DecodeError> {
        self.measure(TEXT, most)?;
        let field = self.field;
        self.reader.decoder.str().map_err(|error| {
            if error.is_end_of_input() {
                DecodeError::Truncated
            } else {
                Violation::NotUtf8 { field }.into()
            }
        })
    }

    /// The bytes, and whether they came as text.
    pub(crate) fn text_or_bytes(&mut self, most: usize) -> Result<(&'b [u8], bool), DecodeError> {
        if self.reader.major()? == TEXT {
            self.text(most).map(|text| (text.as_bytes(), true))
        } else {
            self.bytes(most).map(|bytes| (bytes, false))
        }
    }

    pub(crate) fn array_length(&mut self, most: usize) -> Result<usize, DecodeError> {
        let length = self.head(ARRAY)?;
        self.within(length, most)
    }

    pub(crate) fn map_length(&mut self, most: usize) -> Result<usize, DecodeError> {
        let length = self.head(MAP)?;
        self.within(length, most)
    }

    /// Looks at the length of what follows without consuming it.
    fn measure(&mut self, major: u8, most: usize) -> Result<usize, DecodeError> {
        let start = self.reader.decoder.position();
        let length = self.head(major)?;
        let length = self.within(length, most)?;
        self.reader.decoder.set_position(start);
        Ok(length)
    }

    fn head(&mut self, major: u8) -> Result<u64, DecodeError> {
        let field = self.field;
        self.reader.head(major)?.ok_or(DecodeError::WrongType { field })
    }

    fn within(&self, length: u64, most: usize) -> Result<usize, DecodeError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > most {
            return Err(Violation::TooLong { field: self.field, length, most }.into());
        }
        Ok(length)
    }
}

/// A decoder that looks at the head of each item before minicbor does.
pub(crate) struct Reader<'b> {
    decoder: Decoder<'b>,
}

impl<'b> Reader<'b> {
    /// Consumes the head of an item and returns its argument; `None` if the item is of another type.
    fn head(&mut self, major: u8) -> Result<Option<u64>, DecodeError> {
        let at = self.decoder.position();
        let rest = self.rest();
        let (first, rest) = rest.split_first().ok_or(DecodeError::Truncated)?;
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
            return Ok(None);
        }
        let argument = rest.get(..width).ok_or(DecodeError::Truncated)?;
        self.decoder.set_position(at + 1 + width);
        if width == 0 {
            return Ok(Some(u64::from(first & INFO)));
        }
        let argument = argument.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        if argument < least {
            return Err(DecodeError::NotShortest { at });
        }
        Ok(Some(argument))
    }

    fn major(&self) -> Result<u8, DecodeError> {
        self.rest().first().map(|first| first >> 5).ok_or(DecodeError::Truncated)
    }

    fn rest(&self) -> &'b [u8] {
        self.decoder.input().get(self.decoder.position()..).unwrap_or_default()
    }
}

/// The low five bits of an item's first byte.
const INFO: u8 = 0x1f;

// Major types, RFC 8949, section 3.1.
const UNSIGNED: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
