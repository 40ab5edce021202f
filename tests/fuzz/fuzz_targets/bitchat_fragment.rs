//! Fragments off the air: sets, parts and bytes stay within their limits, and all expire.
#![no_main]

use std::time::Duration;

use fieldpost_bitchat::{
    Limits, LinkId, Packet,
    fragment::{Reassembly, repaired},
    payload::fragment::Fragment,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { sets: 4, sets_per_sender: 2, set_bytes: 4096, ..Limits::default() };
    let mut sets = Reassembly::new(&limits);
    let mut rest = bytes;
    let mut now = Duration::ZERO;
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
        now += Duration::from_millis(100);
        let Ok(packet) = Packet::decode(frame) else { continue };
        let Ok(fragment) = Fragment::decode(packet.payload()) else { continue };
        let via = LinkId(u64::from(packet.hops_left % 3));
        if let Ok(Some(whole)) = sets.insert(now, via, packet.sender, fragment) {
            assert!(!whole.is_empty());
            if let Some(packet) = repaired(&whole) {
                assert!(Packet::decode(&whole).is_err() && packet.signature.is_some());
            }
        }
        assert!(sets.len() <= limits.sets && sets.bytes() <= limits.set_bytes);
    }
    sets.expire(now + limits.set_life);
    assert!(sets.is_empty() && sets.bytes() == 0);
});
