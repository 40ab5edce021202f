//! Names of messages, and long texts in parts.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::id::MeshId;

/// The namespace of [`public_id`]: UUIDv5 of `fieldpost:bitchat:public` in the namespace of URLs.
const PUBLIC: Uuid = Uuid::from_u128(0xc249_3a09_f50a_573d_a75a_20d0_8fff_9c87);

/// The id of a phone's public message: two gateways that hear it give it the same (design,
/// section 7). UUIDv5 over sender, u64 timestamp, text.
pub fn public_id(sender: MeshId, timestamp_ms: u64, text: &str) -> Uuid {
    let name = [&sender.0[..], &timestamp_ms.to_be_bytes(), text.as_bytes()].concat();
    Uuid::new_v5(&PUBLIC, &name)
}

/// The id of one part of a long message: UUIDv5 of the message's id over the u32 index.
pub fn part_id(message: Uuid, index: u32) -> Uuid {
    Uuid::new_v5(&message, &index.to_be_bytes())
}

/// The id that iOS gives a public message (BitChat protocol reference, section 3.1).
pub fn apple_id(sender: MeshId, timestamp_ms: u64, text: &str) -> String {
    let name = format!("{sender}|{timestamp_ms}|{}", text.trim());
    HEXLOWER.encode(&Sha256::digest(name.as_bytes())[..16])
}

/// Splits a text into parts of at most `most` bytes, after white space where there is some in the
/// second half of a part. Joined, the parts are the text. `most` must be at least 4.
pub fn split(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > most {
        let end = rest.floor_char_boundary(most);
        let space = rest[..end]
            .rfind(char::is_whitespace)
            .map(|at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
        let end = space.filter(|at| *at > most / 2).unwrap_or(end);
        let (part, left) = rest.split_at(end);
        parts.push(part);
        rest = left;
    }
    parts.push(rest);
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_namespace_is_what_it_says() {
        assert_eq!(PUBLIC, Uuid::new_v5(&Uuid::NAMESPACE_URL, b"fieldpost:bitchat:public"));
    }

    proptest! {
        #[test]
        fn parts_join_to_the_text(text in "\\PC{0,400}|[ a-zé]{0,900}", most in 4..300_usize) {
            let parts = split(&text, most);
            prop_assert!(parts.iter().all(|part| part.len() <= most));
            prop_assert!(parts.len() == 1 || parts.iter().all(|part| !part.is_empty()));
            prop_assert_eq!(parts.concat(), text);
        }
    }
}
