//! What holds for every envelope and for any bytes.

use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, GroupId, LaneSeq, MessageId, PeerAddress, PeerId, Priority,
    Receipt, ReceiptKind, Recipient, Said, SignedEnvelope, Timestamp, limits,
};
use proptest::{collection, option, prelude::*, sample};
use uuid::Uuid;

use crate::fixtures::{ALPHA, BRAVO, time};

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn an_envelope_arrives_as_it_was_signed(envelope in envelope()) {
        let signed = envelope.sign(&ALPHA.key()).unwrap();
        let decoded = SignedEnvelope::decode(signed.as_bytes()).unwrap();
        prop_assert_eq!(decoded.digest(), signed.digest());
        let verified = decoded.verify().unwrap();
        prop_assert_eq!(verified.signer, ALPHA.id());
        prop_assert_eq!(verified.said, Said::Message(envelope.into()));
    }

    #[test]
    fn a_receipt_arrives_as_it_was_signed(receipt in receipt()) {
        let signed = receipt.sign(&BRAVO.key()).unwrap();
        let verified = SignedEnvelope::decode(signed.as_bytes()).unwrap().verify().unwrap();
        prop_assert_eq!(verified.said, Said::Receipt(receipt));
    }

    #[test]
    fn what_decodes_has_only_one_encoding(envelope in envelope()) {
        let signed = envelope.sign(&ALPHA.key()).unwrap();
        let verified = SignedEnvelope::decode(signed.as_bytes()).unwrap().verify().unwrap();
        let Said::Message(message) = verified.said else { panic!("a message was signed") };
        prop_assert_eq!(message.sign(&ALPHA.key()).unwrap().into_bytes(), signed.into_bytes());
    }

    #[test]
    fn an_altered_envelope_is_never_believed(
        envelope in envelope(),
        at in any::<sample::Index>(),
        flip in 1_u8..,
    ) {
        let mut bytes = envelope.sign(&ALPHA.key()).unwrap().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let believed = SignedEnvelope::decode(&bytes).is_ok_and(|decoded| decoded.verify().is_ok());
        prop_assert!(!believed);
    }

    #[test]
    fn a_piece_of_an_envelope_is_none(envelope in envelope(), end in any::<sample::Index>()) {
        let bytes = envelope.sign(&ALPHA.key()).unwrap().into_bytes();
        let end = end.index(bytes.len());
        prop_assert!(SignedEnvelope::decode(&bytes[..end]).is_err());
    }

    #[test]
    fn any_bytes_are_answered_without_a_panic(bytes in collection::vec(any::<u8>(), 0..512)) {
        if let Ok(decoded) = SignedEnvelope::decode(&bytes) {
            prop_assert!(decoded.verify().is_err());
        }
    }

    #[test]
    fn any_text_that_is_an_address_is_written_as_it_was_read(text in "[a-zA-Z0-9:@._ -]{0,140}") {
        if let Ok(recipient) = text.parse::<Recipient>() {
            let written = recipient.to_string();
            prop_assert!(written.eq_ignore_ascii_case(&text));
            prop_assert_eq!(written.parse::<Recipient>().unwrap(), recipient);
        }
    }

    #[test]
    fn every_address_reads_back(recipient in recipient()) {
        prop_assert!(recipient.to_string().len() <= Recipient::MAX_LEN);
        prop_assert_eq!(recipient.to_string().parse::<Recipient>().unwrap(), recipient);
    }
}

fn envelope() -> impl Strategy<Value = Envelope> {
    let fields = (
        (peer(), recipient(), option::of(group())),
        any::<[u8; 16]>(),
        (timestamp(), 0..limits::BROADCAST_LIFETIME_MS),
        sample::select(Priority::ALL),
        (0_u8..=3).prop_map(|level| AnonymityLevel::try_from(level).unwrap()),
        option::of((1..=LaneSeq::MAX.0, option::of(any::<sample::Index>()))),
        content(),
    );
    fields.prop_map(|((sender, recipient, group), id, times, priority, level, lane, content)| {
        let (sent_at, lifetime) = times;
        let expires_at = sent_at.as_millis() + lifetime;
        let unordered = priority == Priority::Critical || recipient == Recipient::Broadcast;
        let lane = lane.filter(|_| !unordered);
        let to = match (group, &recipient) {
            (Some(id), Recipient::Peer(_)) => Recipient::Group { id, home: Some(ALPHA.id()) },
            _ => recipient.clone(),
        };
        Envelope {
            sender: PeerAddress::remote(sender, ALPHA.id()),
            recipient,
            to,
            message_id: MessageId(Uuid::from_bytes(id)),
            sent_at,
            expires_at: time(expires_at.min(Timestamp::MAX.as_millis())),
            priority,
            level,
            lane_seq: lane.map(|(place, _)| LaneSeq(place)),
            after: lane.and_then(|(place, after)| {
                let most = usize::try_from(place).unwrap();
                after.map(|after| LaneSeq(after.index(most) as u64))
            }),
            content,
        }
    })
}

fn receipt() -> impl Strategy<Value = Receipt> {
    let kind = sample::select(ReceiptKind::ALL);
    let fields = (any::<[u8; 32]>(), kind, timestamp(), option::of("[^\0]{0,64}"));
    fields.prop_map(|(answers, kind, at, reason)| Receipt {
        answers,
        kind,
        at,
        reason,
        signer: BRAVO.id(),
    })
}

fn content() -> impl Strategy<Value = Content> {
    let body = prop_oneof![
        any::<String>().prop_map(Content::text),
        collection::vec(any::<u8>(), 0..2048).prop_map(Content::binary),
    ];
    let metadata = collection::btree_map(any::<String>(), any::<i32>(), 0..4)
        .prop_map(|map| serde_json::to_string(&map).unwrap());
    let fields = (
        body,
        option::of("[^\0]{0,64}"),
        option::of("[^\0]{0,64}"),
        option::of(metadata),
        collection::vec("[^\0]{0,32}", 0..5),
        collection::btree_map("[^\0]{0,16}", "[^\0]{0,64}", 0..limits::LABELS),
    );
    fields.prop_map(|(body, content_type, message_type, metadata, file_ids, labels)| Content {
        content_type,
        message_type,
        metadata,
        file_ids,
        labels,
        ..body
    })
}

fn recipient() -> impl Strategy<Value = Recipient> {
    prop_oneof![
        4 => peer().prop_map(|peer| PeerAddress::remote(peer, BRAVO.id()).into()),
        2 => group().prop_map(|id| Recipient::Group { id, home: Some(BRAVO.id()) }),
        1 => Just(Recipient::Broadcast),
    ]
}

fn peer() -> impl Strategy<Value = PeerId> {
    let registered = "[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"
        .prop_filter_map("reserved", |name| PeerId::parse(&name).ok());
    prop_oneof![9 => registered, 1 => any::<[u8; 8]>().prop_map(PeerId::phone)]
}

fn group() -> impl Strategy<Value = GroupId> {
    "[A-Za-z0-9._:-]{1,128}".prop_map(|name| name.parse().unwrap())
}

fn timestamp() -> impl Strategy<Value = Timestamp> {
    (0..=Timestamp::MAX.as_millis()).prop_map(time)
}
