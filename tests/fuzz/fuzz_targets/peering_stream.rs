//! Bodies of the mesh's streams: what decodes encodes to the same bytes.
#![no_main]

use fieldpost_peering::wire::{
    HEAD_LEN, decode_batch, decode_head, decode_rosters, encode_batch, encode_head, encode_rosters,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((head, _)) = bytes.split_first_chunk::<HEAD_LEN>()
        && let Ok((kind, length)) = decode_head(*head)
    {
        assert_eq!(encode_head(kind, length), *head);
    }
    if let Ok((number, envelopes)) = decode_batch(bytes.to_vec().into()) {
        assert_eq!(encode_batch(number, &envelopes).concat(), bytes);
    }
    if let Ok(rosters) = decode_rosters(bytes.to_vec().into()) {
        assert_eq!(encode_rosters(&rosters).concat(), bytes);
    }
});
