//! BitChat payloads and plaintexts: never a panic, and what is written again reads the same. The
//! first byte says which.
#![no_main]

use std::fmt::Debug;

use fieldpost_bitchat::payload::{
    PayloadError,
    announce::{Announce, Order},
    board::Board,
    carrier::Carrier,
    courier::Courier,
    exchange::Exchange,
    file::File,
    fragment::Fragment,
    gateway::Record,
    group::{Sealed, State},
    legacy::Legacy,
    noise::{self, PlaintextType, PrivateMessage},
    nostr,
    peer_state::PeerState,
    ping::Ping,
    prekeys::Prekeys,
    rotation::AnnounceV2,
    sync::RequestSync,
    verify::{Challenge, Response},
    voice::Voice,
    vouch,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((which, bytes)) = input.split_first() else { return };
    match which {
        255 => check(bytes, Exchange::decode, Exchange::encode),
        0 => check(bytes, Announce::decode, |read| read.encode(Order::Apple).unwrap()),
        1 => {
            check(bytes, Board::decode, Board::encode);
            Board::decode(bytes).iter().for_each(|read| _ = read.is_signed());
        }
        2 => check(bytes, Carrier::decode, Carrier::encode),
        3 => {
            check(bytes, Courier::decode, Courier::encode);
            Courier::decode(bytes).iter().for_each(|read| assert!(read.open(&[7; 32]).is_err()));
        }
        4 => check_file(bytes),
        5 => check(bytes, Fragment::decode, Fragment::encode),
        6 => {
            check(bytes, Sealed::decode, Sealed::encode);
            Sealed::decode(bytes).iter().for_each(|read| assert!(read.open(&[7; 32]).is_none()));
        }
        7 => check(bytes, Record::decode, Record::encode),
        8 => check(bytes, Legacy::decode, |read| read.encode().unwrap()),
        9 => check(bytes, PeerState::decode, PeerState::encode),
        10 => check(bytes, Ping::decode, |read| read.encode()),
        11 => check(bytes, Prekeys::decode, Prekeys::encode),
        12 => _ = AnnounceV2::decode(bytes),
        13 => check_sync(bytes),
        14 => check(bytes, Challenge::decode, Challenge::encode),
        15 => check(bytes, Voice::decode, Voice::encode),
        16 => check(bytes, Response::decode, Response::encode),
        17 => {
            let text = String::from_utf8_lossy(bytes);
            if let Some(packet) = nostr::extract(&text) {
                assert_eq!(nostr::extract(&nostr::embed(&packet)), Some(packet));
            }
        }
        _ => check_plaintext(bytes),
    }
});

fn check_plaintext(bytes: &[u8]) {
    let Ok((kind, body)) = noise::split(bytes) else { return };
    match kind {
        PlaintextType::MESSAGE => {
            check(body, PrivateMessage::decode, |read| read.encode().unwrap());
        }
        PlaintextType::FILE => check_file(body),
        PlaintextType::VOUCH => check(body, vouch::decode, |read| vouch::encode(read)),
        PlaintextType::GROUP_INVITE | PlaintextType::GROUP_KEY => {
            if let Ok(state) = State::decode(body) {
                assert!(State::decode(&state.encode()).is_ok_and(|again| again == state));
            }
        }
        _ => _ = noise::receipt_id(body),
    }
}

/// Sizes are written as they are, not as they were stated.
fn check_file(bytes: &[u8]) {
    if let Ok(file) = File::decode(bytes) {
        let again = File::decode(&file.encode().unwrap()).unwrap();
        assert_eq!((again.name, again.content), (file.name, file.content));
    }
}

fn check_sync(bytes: &[u8]) {
    check(bytes, RequestSync::decode, RequestSync::encode);
    if let Ok(request) = RequestSync::decode(bytes) {
        let values = request.filter.values();
        assert!(values.len() <= request.filter.data.len() * 8);
        assert!(values.is_sorted() && values.iter().all(|value| *value < request.filter.m));
    }
}

fn check<T: Debug + PartialEq>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, PayloadError>,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    match decode(bytes) {
        Ok(read) => assert_eq!(decode(&encode(&read)), Ok(read)),
        Err(error) => assert!(error.to_string().len() < 256),
    }
}
