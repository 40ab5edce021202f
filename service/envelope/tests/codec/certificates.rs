//! Certificates of node keys, and their vectors: `tests/vectors/certificate.json`.

use std::{env, fs};

use data_encoding::HEXLOWER;
use ed25519_dalek::Signer;
use fieldpost_envelope::{
    Certificate, CertificateError, DecodeError, FieldName, NodePurpose, SignError,
    SignedCertificate, VerifyError, Violation, limits,
};
use proptest::{prelude::*, sample};
use serde_json::{Value, json};

use crate::{
    fixtures::{ALPHA, BRAVO, time},
    vectors::{hex, read_vectors, seeds, vectors_path},
};

const DAY: u64 = 24 * 3_600_000;
const BEGIN: u64 = 1_790_000_000_000;

#[test]
fn a_certificate_holds_for_its_day_and_five_minutes_of_other_clocks() {
    let signed = mesh().sign(&ALPHA.key()).unwrap();
    for (now, expected) in [
        (BEGIN - 300_001, Err(CertificateError::NotYet { in_ms: 300_001 })),
        (BEGIN - 300_000, Ok(mesh())),
        (BEGIN + DAY / 2, Ok(mesh())),
        (BEGIN + DAY + 300_000, Ok(mesh())),
        (BEGIN + DAY + 300_001, Err(CertificateError::Expired { since_ms: 300_001 })),
    ] {
        assert_eq!(signed.verify(time(now)), expected);
    }
}

#[test]
fn nobody_certifies_for_another_or_for_longer_than_a_day() {
    assert_eq!(mesh().sign(&BRAVO.key()), Err(SignError::SignerOfAnother { signer: BRAVO.id() }));
    let (span_ms, most_ms) = (limits::CERTIFICATE_MS + 1, limits::CERTIFICATE_MS);
    let long = Certificate { not_after: time(BEGIN + span_ms), ..mesh() };
    let violation = Violation::CertificateSpan { span_ms, most_ms };
    assert_eq!(long.sign(&ALPHA.key()), Err(violation.into()));
    let backward = Certificate { not_after: time(BEGIN - 1), ..mesh() };
    assert_eq!(backward.sign(&ALPHA.key()), Err(Violation::CertificateEndsBeforeItBegins.into()));
}

#[test]
fn a_certificate_of_another_key_or_context_is_not_believed() {
    let signed = mesh().sign(&ALPHA.key()).unwrap();
    let (payload, _) = signed.as_bytes().split_last_chunk::<64>().unwrap();
    for signature in [
        BRAVO.key().sign(&[b"fieldpost-certificate-v1", payload].concat()),
        ALPHA.key().sign(&[b"fieldpost-envelope-v1", payload].concat()),
    ] {
        let forged = [payload, &signature.to_bytes()].concat();
        let error = SignedCertificate::decode(&forged).unwrap().verify(time(BEGIN)).unwrap_err();
        let expected = VerifyError::Signature { signer: ALPHA.id() };
        assert_eq!(error, CertificateError::Signature(expected));
    }
}

#[test]
fn what_is_no_certificate_is_refused_for_the_reason() {
    let decode = |bytes: &[u8]| SignedCertificate::decode(bytes).unwrap_err();
    let good = mesh().sign(&ALPHA.key()).unwrap().as_bytes().to_vec();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        decode(&bytes)
    };
    assert_eq!(decode(&[0; 257]), DecodeError::Oversize { length: 257, most: 256 });
    assert_eq!(decode(&good[..63]), DecodeError::Truncated);
    assert_eq!(changed(2, 9), DecodeError::UnsupportedVersion(9));
    let field = FieldName::NodePurpose;
    assert_eq!(changed(4, 4), DecodeError::OutOfRange { field, value: 4 });
    assert_eq!(changed(0, 0xa5), DecodeError::Missing { field: FieldName::NotAfter });
    assert_eq!(changed(0, 0x86), DecodeError::NotAMap);
}

#[test]
fn the_vectors_are_what_the_cases_give() {
    let cases = NodePurpose::ALL.iter().map(|purpose| {
        let signed = Certificate { purpose: *purpose, ..mesh() }.sign(&ALPHA.key()).unwrap();
        json!({
            "purpose": *purpose as u8,
            "gateway": ALPHA.id(),
            "node": HEXLOWER.encode(&mesh().node),
            "not_before": BEGIN,
            "not_after": BEGIN + DAY,
            "signed": HEXLOWER.encode(signed.as_bytes()),
        })
    });
    let vectors = json!({
        "about": "Fieldpost's certificates of node keys, version 1. The gateway's secret key is 01 32 times.",
        "accepted": cases.collect::<Vec<_>>(),
    });
    let path = vectors_path("certificate.json");
    if env::var_os("FIELDPOST_WRITE_VECTORS").is_some() {
        fs::write(&path, serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
        seeds("certificate_decode", vectors["accepted"].as_array().unwrap());
    }
    let published: Value = read_vectors("certificate.json");
    assert!(published == vectors, "certificate.json is stale");
    for case in published["accepted"].as_array().unwrap() {
        let signed = SignedCertificate::decode(&hex(&case["signed"])).unwrap();
        let certificate = signed.verify(time(BEGIN)).unwrap();
        assert_eq!(HEXLOWER.encode(&certificate.node), case["node"]);
        assert_eq!(certificate.purpose as u8, case["purpose"]);
    }
}

proptest! {
    #[test]
    fn a_certificate_arrives_as_it_was_signed(certificate in certificate()) {
        let signed = certificate.sign(&ALPHA.key()).unwrap();
        let decoded = SignedCertificate::decode(signed.as_bytes()).unwrap();
        prop_assert_eq!(&decoded, &signed);
        prop_assert_eq!(decoded.verify(certificate.not_before), Ok(certificate));
    }

    #[test]
    fn an_altered_certificate_is_never_believed(
        certificate in certificate(),
        at in any::<sample::Index>(),
        flip in 1_u8..,
    ) {
        let mut bytes = certificate.sign(&ALPHA.key()).unwrap().as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let believed = SignedCertificate::decode(&bytes)
            .is_ok_and(|decoded| decoded.verify(certificate.not_before).is_ok());
        prop_assert!(!believed);
    }

    #[test]
    fn any_bytes_are_no_certificate_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(decoded) = SignedCertificate::decode(&bytes) {
            prop_assert!(decoded.verify(time(BEGIN)).is_err());
        }
    }
}

fn certificate() -> impl Strategy<Value = Certificate> {
    let fields = (
        sample::select(NodePurpose::ALL),
        any::<[u8; 32]>(),
        0..=250_000_000_000_000_u64,
        0..=limits::CERTIFICATE_MS,
    );
    fields.prop_map(|(purpose, node, begin, span)| Certificate {
        gateway: ALPHA.id(),
        purpose,
        node,
        not_before: time(begin),
        not_after: time(begin + span),
    })
}

fn mesh() -> Certificate {
    Certificate {
        gateway: ALPHA.id(),
        purpose: NodePurpose::Mesh,
        node: *BRAVO.id().as_bytes(),
        not_before: time(BEGIN),
        not_after: time(BEGIN + DAY),
    }
}
