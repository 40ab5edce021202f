//! Rosters off the wire: never a panic, and only one encoding for each.
#![no_main]

use fieldpost_envelope::{SignedRoster, limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match SignedRoster::decode(bytes) {
        Ok(roster) => {
            assert_eq!(roster.as_bytes(), bytes);
            let (number, base) = (roster.number(), roster.base());
            assert!(number > 0 && base.is_none_or(|base| base < number));
            if let Ok(said) = roster.verify() {
                assert!(said.peers.len() + said.removed.len() <= limits::ROSTER_PEERS);
            }
        }
        Err(error) => assert!(error.to_string().len() < 256),
    }
});
