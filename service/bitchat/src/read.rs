//! Reading bytes off the air: every step is checked, nothing is copied before it is known to be
//! there.

use thiserror::Error;

/// A field runs past the end.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{missing} bytes short")]
pub struct Short {
    /// How many bytes are not there.
    pub missing: usize,
}

/// What is left to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn left(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Short> {
        match self.0.split_at_checked(count) {
            Some((taken, rest)) => {
                self.0 = rest;
                Ok(taken)
            }
            None => Err(Short { missing: count - self.0.len() }),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Short> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_be_bytes)
    }

    /// One type-length-value with a one-byte length.
    pub(crate) fn tlv8(&mut self) -> Result<(u8, &'a [u8]), Short> {
        let kind = self.u8()?;
        let length = self.u8()?;
        Ok((kind, self.take(length.into())?))
    }

    /// One type-length-value with a two-byte length.
    pub(crate) fn tlv16(&mut self) -> Result<(u8, &'a [u8]), Short> {
        let kind = self.u8()?;
        let length = self.u16()?;
        Ok((kind, self.take(length.into())?))
    }
}

/// Appends a type-length-value with a one-byte length; `value` must fit it.
pub(crate) fn put_tlv8(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    debug_assert!(value.len() <= 255, "{} bytes in a short value", value.len());
    out.push(kind);
    out.push(value.len() as u8);
    out.extend_from_slice(value);
}

/// Appends a type-length-value with a two-byte length; `value` must fit it.
pub(crate) fn put_tlv16(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    debug_assert!(value.len() <= 65_535, "{} bytes in a long value", value.len());
    out.push(kind);
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}
