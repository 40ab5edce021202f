//! Raw DEFLATE under the rules of the apps (BitChat protocol reference, section 2.2).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Shorter payloads are never compressed, so their signatures do not depend on an encoder.
pub const THRESHOLD: usize = 100;
/// Past this ratio a claim of original size is a lie.
const MAX_RATIO: usize = 50_000;
/// The level whose lazy matching follows classic zlib's default most closely; Android's encoder is
/// that one. Apple's is unknown (section 13).
const LEVEL: u32 = 9;

/// The compressed form, where the apps' encoders would use one.
pub(super) fn compress(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.len() < THRESHOLD || looks_random(payload) {
        return None;
    }
    let mut encoder = Compress::new(Compression::new(LEVEL), false);
    // Only something strictly shorter is of use, so there is no need for more room.
    let mut out = vec![0; payload.len() - 1];
    let status = encoder.compress(payload, &mut out, FlushCompress::Finish).ok()?;
    let length = usize::try_from(encoder.total_out()).ok()?;
    if status != Status::StreamEnd || length == 0 {
        return None;
    }
    out.truncate(length);
    Some(out)
}

/// Inflates to exactly `size` bytes; `None` for anything else: too little, too much, bytes left
/// over, a ratio beyond belief.
///
/// Allocates `size` bytes, which the caller has bounded.
pub(super) fn inflate(data: &[u8], size: usize) -> Option<Vec<u8>> {
    if data.is_empty() || size == 0 || size / data.len() > MAX_RATIO {
        return None;
    }
    let mut decoder = Decompress::new(false);
    let mut out = vec![0; size];
    let mut status = decoder.decompress(data, &mut out, FlushDecompress::Finish).ok()?;
    if status != Status::StreamEnd && decoder.total_out() == size as u64 {
        // The end of the stream may need one more step when the room is used up exactly.
        let consumed = usize::try_from(decoder.total_in()).ok()?;
        let mut beyond = [0; 1];
        status =
            decoder.decompress(data.get(consumed..)?, &mut beyond, FlushDecompress::Finish).ok()?;
    }
    let whole = status == Status::StreamEnd
        && decoder.total_out() == size as u64
        && decoder.total_in() == data.len() as u64;
    whole.then_some(out)
}

fn looks_random(payload: &[u8]) -> bool {
    let mut seen = [false; 256];
    payload.iter().for_each(|byte| seen[usize::from(*byte)] = true);
    let distinct = seen.iter().filter(|seen| **seen).count();
    // distinct / min(len, 256) >= 0.9, without fractions.
    distinct * 10 >= payload.len().min(256) * 9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_from_its_compressed_form() {
        let text = "once more unto the breach, ".repeat(12);
        let data = compress(text.as_bytes()).unwrap();
        assert!(data.len() < text.len());
        assert_eq!(inflate(&data, text.len()).unwrap(), text.as_bytes());
    }

    #[test]
    fn a_wrong_size_or_bytes_left_over_are_refused() {
        let text = "once more unto the breach, ".repeat(12);
        let mut data = compress(text.as_bytes()).unwrap();
        assert_eq!(inflate(&data, text.len() - 1), None);
        assert_eq!(inflate(&data, text.len() + 1), None);
        data.push(0);
        assert_eq!(inflate(&data, text.len()), None);
    }

    #[test]
    fn a_bomb_is_refused_for_its_ratio_or_its_size() {
        assert_eq!(inflate(&[3, 0], 1_000_000), None);
        let zeros = compress(&vec![0; 1_000_000]).unwrap();
        assert!(zeros.len() < 2_000);
        assert_eq!(inflate(&zeros, 999_999), None);
    }
}
