//! Variable-length integers as in QUIC (RFC 9000, section 16), in their shortest form alone.

use thiserror::Error;

/// The greatest number that fits.
pub(super) const MAX: u64 = (1 << 62) - 1;

/// Appends a number, which must be at most [`MAX`].
pub(super) fn write(value: u64, out: &mut Vec<u8>) {
    debug_assert!(value <= MAX, "a variable-length integer has 62 bits");
    match value {
        0..0x40 => out.push(value as u8),
        0x40..0x4000 => out.extend((value as u16 | 0x4000).to_be_bytes()),
        0x4000..0x4000_0000 => out.extend((value as u32 | 0x8000_0000).to_be_bytes()),
        _ => out.extend((value | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

/// Reads a number from the front: itself and its length, or nothing if more bytes are needed.
pub(super) fn read(bytes: &[u8]) -> Result<Option<(u64, usize)>, VarintError> {
    let Some(first) = bytes.first() else { return Ok(None) };
    let length = 1 << (first >> 6);
    let Some(encoded) = bytes.get(..length) else { return Ok(None) };
    let value = encoded.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
    let value = value & (u64::MAX >> (64 - 8 * length + 2));
    let shortest = match value {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    };
    if length != shortest {
        return Err(VarintError { value, length, shortest });
    }
    Ok(Some((value, length)))
}

/// A number that could have been written shorter (HTX reference, section 1.1).
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{value} takes {length} bytes: expected {shortest}")]
pub struct VarintError {
    /// The number.
    pub value: u64,
    /// The bytes that it took.
    pub length: usize,
    /// The bytes that it needs.
    pub shortest: usize,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_examples_of_rfc_9000() {
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
        ] {
            assert_eq!(read(bytes), Ok(Some((value, bytes.len()))));
        }
    }

    #[test]
    fn refuses_a_number_that_is_longer_than_it_needs_to_be() {
        let error = VarintError { value: 37, length: 2, shortest: 1 };
        assert_eq!(read(&[0x40, 0x25]), Err(error));
        assert_eq!(error.to_string(), "37 takes 2 bytes: expected 1");
    }

    proptest! {
        #[test]
        fn a_number_is_read_as_it_was_written(value in 0..=MAX, narrow in 0..62_u32) {
            let value = value >> narrow;
            let mut bytes = Vec::new();
            write(value, &mut bytes);
            prop_assert_eq!(read(&bytes), Ok(Some((value, bytes.len()))));
            for end in 0..bytes.len() {
                prop_assert_eq!(read(&bytes[..end]), Ok(None));
            }
        }
    }
}
