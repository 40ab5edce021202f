//! Holds the core to `tests/vectors/bitchat.json` (BitChat protocol reference, section 14): all of
//! it but the Nostr envelopes, in both directions where a vector has two.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod file;
mod packets;
mod payloads;
mod sessions;

use std::collections::BTreeMap;

use file::{Vector, vectors};

#[test]
fn every_vector_but_the_nostr_envelopes_holds() {
    let mut checked = BTreeMap::new();
    for vector in vectors() {
        let Some(check) = check(&vector.kind) else {
            assert_eq!(vector.kind, "nostr_envelope", "{}: nobody checks this kind", vector.id);
            continue;
        };
        check(&vector);
        *checked.entry(vector.kind.clone()).or_insert(0) += 1;
    }
    assert_eq!(checked.values().sum::<i32>(), 81, "{checked:?}");
    assert_eq!(checked["packet"], 25);
}

fn check(kind: &str) -> Option<fn(&Vector)> {
    Some(match kind {
        "packet" => packets::packet,
        "decode_negative" => packets::refused,
        "decode_positive" => packets::tolerated,
        "compression" => packets::compression,
        "padding" => packets::padding,
        "packet_id" => packets::packet_id,
        "dedup_key" => packets::dedup_key,
        "fragment_set" => packets::fragment_set,
        "fragment_hazard" => packets::fragment_hazard,
        "nostr_embed" => packets::nostr_embed,
        "announce_payload" => payloads::announce,
        "board" => payloads::board,
        "capabilities" => payloads::capabilities,
        "file_packet" => payloads::file,
        "fragment_payload" => payloads::fragment,
        "gcs" => payloads::filter,
        "group" => payloads::group,
        "legacy_message" => payloads::legacy,
        "noise_payload" => payloads::plaintext,
        "nostr_carrier" => payloads::carrier,
        "peer_id" => payloads::peer_id,
        "peer_state" => payloads::peer_state,
        "prekey_bundle" => payloads::prekeys,
        "request_sync" => payloads::request_sync,
        "rotation" => payloads::rotation,
        "stable_id" => payloads::stable_id,
        "sync_flags" => payloads::sync_types,
        "verify" => payloads::verify,
        "verify_qr" => payloads::verify_link,
        "voice_burst" => payloads::voice,
        "vouch" => payloads::vouch,
        "courier_envelope" => sessions::courier,
        "noise_vector" => sessions::noise_vector,
        "noise_xx" => sessions::noise_xx,
        "replay_window" => sessions::replay_window,
        _ => return None,
    })
}
