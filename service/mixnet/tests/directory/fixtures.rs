//! Relays, signers and documents with keys that are printed here.

use std::{net::SocketAddr, time::Duration};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::{
    directory::{
        Authority, Certificate, Descriptor, Document, EpochClock, EpochKeys, RelayId,
        SignedDescriptor, SignedDocument, WeightedRelay,
    },
    htx::{Capabilities, Capability, CarrierPolicy, TicketKey},
};

/// Epochs of ten seconds; tests begin at the start of this one.
pub(crate) const EPOCH: u64 = 180_000_000;

pub(crate) fn clock() -> EpochClock {
    EpochClock::new(Duration::from_secs(10)).unwrap()
}

/// So many seconds after the start of [`EPOCH`].
pub(crate) fn time(seconds: u64) -> Timestamp {
    Timestamp::try_from(clock().start(EPOCH).as_millis() + seconds * 1_000).unwrap()
}

pub(crate) fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

pub(crate) fn id(number: u8) -> RelayId {
    RelayId::of(&key(number).verifying_key())
}

/// Three signers, of which two are needed.
pub(crate) fn authority() -> Authority {
    Authority::new(2, signers().iter().map(SigningKey::verifying_key), clock()).unwrap()
}

pub(crate) fn signers() -> [SigningKey; 3] {
    [0xd1, 0xd2, 0xd3].map(key)
}

/// A relay that has nothing in common with those of other numbers.
pub(crate) fn descriptor(number: u8, epoch: u64) -> Descriptor {
    let identity = key(number).verifying_key();
    let keys = (epoch..epoch + 3)
        .map(|epoch| EpochKeys {
            epoch,
            sphinx: [number ^ epoch as u8; 32],
            sealing: [number.wrapping_add(epoch as u8); 32],
        })
        .collect();
    Descriptor {
        identity,
        epoch,
        operator: format!("operator {number}"),
        autonomous_system: Some(64_512 + u32::from(number)),
        country: Some([b'A' + number / 26, b'A' + number % 26]),
        addresses: vec![SocketAddr::from(([10, number, 0, 1], 443))],
        server_name: format!("relay{number}.example"),
        through: Vec::new(),
        keys,
        noise: [number; 32],
        ticket: TicketKey { id: [number; 8], public: [number.wrapping_add(1); 32] },
        carriers: CarrierPolicy::new(["__Host-sid", "v", "token"], [200, 20, 35], (24, 64))
            .unwrap(),
        vrf: [number.wrapping_add(2); 32],
        capacity: 1_000,
        relays: true,
        capabilities: Capabilities::default(),
        certificate: None,
    }
}

/// A descriptor with every field.
pub(crate) fn everything() -> Descriptor {
    let node = key(9).verifying_key();
    Descriptor {
        addresses: vec![
            SocketAddr::from(([192, 0, 2, 7], 443)),
            SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7], 8_443)),
        ],
        through: vec![id(3), id(4)],
        capabilities: Capabilities::new([Capability(1), Capability(300)]).unwrap(),
        certificate: Some(Certificate::issue(&key(0xaa), &node, time(86_000))),
        ..descriptor(9, EPOCH)
    }
}

/// A gateway behind NAT that relays for nobody.
pub(crate) fn hidden(number: u8, through: &[u8]) -> Descriptor {
    Descriptor {
        addresses: Vec::new(),
        server_name: String::new(),
        through: through.iter().map(|number| id(*number)).collect(),
        relays: false,
        capacity: 0,
        ..descriptor(number, EPOCH)
    }
}

pub(crate) fn signed(descriptor: &Descriptor) -> SignedDescriptor {
    let number = (0..=255).find(|number| key(*number).verifying_key() == descriptor.identity);
    descriptor.sign(&key(number.unwrap())).unwrap()
}

pub(crate) fn weighted(descriptors: &[Descriptor]) -> Vec<WeightedRelay> {
    descriptors.iter().map(|it| WeightedRelay::new(signed(it), 10_000)).collect()
}

pub(crate) fn relays(numbers: std::ops::RangeInclusive<u8>, epoch: u64) -> Vec<WeightedRelay> {
    weighted(&numbers.map(|number| descriptor(number, epoch)).collect::<Vec<_>>())
}

pub(crate) fn signed_document(document: Document) -> SignedDocument {
    let mut signed = document.unsigned();
    signers()[..2].iter().for_each(|signer| signed.sign(signer));
    signed
}

pub(crate) fn genesis(relays: Vec<WeightedRelay>) -> SignedDocument {
    signed_document(Document::genesis(&authority(), time(0), relays).unwrap())
}

/// The document of the epoch after that of `last`.
pub(crate) fn next(last: &SignedDocument) -> SignedDocument {
    let epoch = last.document().epoch + 1;
    let frozen_at = clock().start(epoch - 1);
    let relays = relays(1..=3, epoch - 1);
    let document =
        Document::successor(&authority(), last, epoch, frozen_at, Vec::new(), relays).unwrap();
    signed_document(document)
}
