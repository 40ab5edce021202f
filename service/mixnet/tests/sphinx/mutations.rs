//! Ten thousand packets that were altered on the way, none of which arrives.

use fieldpost_mixnet::sphinx::{Class, HEADER_LEN, HopError, Packet, Production, open};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use crate::fixtures::{EPOCH, hop, route, secret};

#[test]
fn ten_thousand_altered_packets_are_all_refused() {
    let mut rng = StdRng::seed_from_u64(2026);
    let originals: Vec<(u8, Packet)> = (0..40)
        .map(|number| {
            let (hops, class) = (number % 5 + 1, Class::ALL[usize::from(number % 8 == 0)]);
            (hops, Packet::build(&mut rng, &route(hops), class, b"hello").unwrap())
        })
        .collect();
    for (hops, original) in &originals {
        assert_eq!(travel(*hops, original.as_bytes().to_vec(), 0, &mut |_| {}), Ok(()));
    }
    let mut refused_for = [0_u32; 3];
    for number in 0..10_000 {
        let (hops, original) = &originals[rng.random_range(0..originals.len())];
        let (_, other) = &originals[rng.random_range(0..originals.len())];
        // Altered on its way to any of the hops.
        let altered_at = rng.random_range(1..=*hops);
        let mut altered_bytes = |bytes: &mut Vec<u8>| alter(&mut rng, bytes, other.as_bytes());
        let error = travel(*hops, original.as_bytes().to_vec(), altered_at, &mut altered_bytes)
            .expect_err(&format!("mutation {number} was not noticed"));
        refused_for[match error {
            HopError::Mac => 0,
            HopError::Payload => 1,
            _ => 2,
        }] += 1;
    }
    assert!(refused_for.iter().all(|count| *count > 300), "every way was tried: {refused_for:?}");
}

/// Takes a packet along relays 1 to `hops`, altering it before hop `altered_at`.
fn travel(
    hops: u8,
    bytes: Vec<u8>,
    altered_at: u8,
    alter: &mut dyn FnMut(&mut Vec<u8>),
) -> Result<(), HopError> {
    let mut bytes = bytes;
    for relay in 1..=hops {
        if relay == altered_at {
            let before = bytes.clone();
            while bytes == before {
                alter(&mut bytes);
            }
        }
        let done = open::<Production>(&secret(relay), &EPOCH, &mut bytes)?.process()?;
        assert_eq!(done.last, relay == hops);
    }
    Ok(())
}

fn alter(rng: &mut StdRng, bytes: &mut Vec<u8>, other: &[u8]) {
    match rng.random_range(0..8) {
        0 => flip(rng, &mut bytes[..HEADER_LEN]),
        1 => flip(rng, &mut bytes[HEADER_LEN..]),
        2 => flip(rng, bytes),
        3 => {
            let length = rng.random_range(0..bytes.len());
            bytes.truncate(length);
        }
        4 => bytes.extend(vec![0; rng.random_range(1..100)]),
        5 => {
            let at = rng.random_range(0..bytes.len());
            let length = rng.random_range(1..=(bytes.len() - at).min(64));
            rng.fill_bytes(&mut bytes[at..at + length]);
        }
        6 => {
            // A part of another genuine packet.
            let most = bytes.len().min(other.len());
            let at = rng.random_range(4..most);
            let length = rng.random_range(1..=(most - at).min(400));
            bytes[at..at + length].copy_from_slice(&other[at..at + length]);
        }
        _ => {
            let (one, two) = (rng.random_range(4..bytes.len()), rng.random_range(4..bytes.len()));
            bytes.swap(one, two);
        }
    }
}

fn flip(rng: &mut StdRng, bytes: &mut [u8]) {
    let at = rng.random_range(0..bytes.len());
    bytes[at] ^= 1 << rng.random_range(0..8);
}

#[test]
fn every_single_bit_of_the_header_counts() {
    let mut rng = StdRng::seed_from_u64(7);
    let packet = Packet::build(&mut rng, &route(2), Class::Small, b"hello").unwrap();
    for bit in 0..HEADER_LEN * 8 {
        let mut altered = packet.clone();
        altered.as_bytes_mut()[bit / 8] ^= 1 << (bit % 8);
        assert!(hop(1, &mut altered).is_err(), "bit {bit}");
    }
}
