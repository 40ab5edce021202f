//! The bytes on a link: what is written is read, and whatever comes is answered without a panic.

use bytes::Bytes;
use fieldpost_peering::wire::{
    FileAnswer, FileRequest, Frame, HEAD_LEN, Hello, MAX_BATCH, MAX_FRAME, StreamKind, WireError,
    decode_batch, decode_head, decode_rosters, encode_batch, encode_head, encode_rosters,
    frame_length,
};
use proptest::{collection::vec, option, prelude::*};

proptest! {
    #[test]
    fn frames_arrive_as_they_were_written(frame in frame()) {
        let bytes = frame.encode();
        prop_assert_eq!(frame_length(bytes[..4].try_into().unwrap()), Ok(bytes.len() - 4));
        prop_assert_eq!(Frame::decode(&bytes[4..]), Ok(frame));
    }

    #[test]
    fn batches_arrive_as_they_were_written(
        number in any::<u64>(),
        envelopes in vec(vec(any::<u8>(), 0..300).prop_map(Bytes::from), 1..50),
    ) {
        let body: Bytes = encode_batch(number, &envelopes).concat().into();
        prop_assert_eq!(decode_batch(body), Ok((number, envelopes.clone())));
        let body: Bytes = encode_rosters(&envelopes).concat().into();
        prop_assert_eq!(decode_rosters(body), Ok(envelopes));
    }

    #[test]
    fn file_requests_and_answers_arrive_as_they_were_written(
        request in ("[a-z0-9-]{0,128}", any::<u64>()),
        answer in answer(),
    ) {
        let request = FileRequest { file: request.0, from: request.1 };
        prop_assert_eq!(FileRequest::decode(&request.encode()[4..]), Ok(request));
        prop_assert_eq!(FileAnswer::decode(&answer.encode()[4..]), Ok(answer));
    }

    #[test]
    fn any_bytes_are_answered_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Frame::decode(&bytes);
        let _ = FileRequest::decode(&bytes);
        let _ = FileAnswer::decode(&bytes);
        let _ = decode_batch(bytes.clone().into());
        let _ = decode_rosters(bytes.into());
    }

    #[test]
    fn a_piece_of_a_frame_is_none(frame in frame(), cut in 1_usize..8) {
        let bytes = frame.encode().slice(4..);
        let end = bytes.len().saturating_sub(cut);
        prop_assert!(Frame::decode(&bytes[..end]).is_err());
    }
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_anything_is_read() {
    let head = |kind: u8, length: u32| {
        let [a, b, c, d] = length.to_be_bytes();
        decode_head([kind, a, b, c, d])
    };
    assert_eq!(head(1, 100), Ok((StreamKind::Batch, 100)));
    assert!(matches!(head(1, u32::MAX), Err(WireError::Oversize { .. })));
    assert!(matches!(head(2, u32::MAX), Err(WireError::Oversize { .. })));
    assert_eq!(head(9, 1), Err(WireError::UnknownKind(9)));
    assert!(frame_length((MAX_FRAME as u32 + 1).to_be_bytes()).is_err());
    let head: [u8; HEAD_LEN] = encode_head(StreamKind::Rosters, MAX_BATCH);
    assert_eq!(decode_head(head), Ok((StreamKind::Rosters, MAX_BATCH)));
}

#[test]
fn a_batch_of_too_many_is_refused() {
    let envelopes = vec![Bytes::from_static(b"x"); 257];
    let body: Bytes = encode_batch(1, &envelopes).concat().into();
    assert!(matches!(decode_batch(body), Err(WireError::Oversize { .. })));
}

#[test]
fn a_later_version_is_told_from_nonsense_by_its_first_items() {
    let mut frame =
        Frame::Hello(Hello { least: 99, greatest: 99, certificate: vec![], in_flight: 0 })
            .encode()
            .slice(4..)
            .to_vec();
    assert_eq!(Frame::decode(&frame), Err(WireError::Version { least: 99, greatest: 99 }));
    frame.truncate(6);
    assert_eq!(Frame::decode(&frame), Err(WireError::Version { least: 99, greatest: 99 }));
}

fn frame() -> impl Strategy<Value = Frame> {
    let hello = (0..=1_u64, 1_u64.., vec(any::<u8>(), 0..256), any::<u64>());
    prop_oneof![
        hello.prop_map(|(least, greatest, certificate, in_flight)| Frame::Hello(Hello {
            least,
            greatest,
            certificate,
            in_flight,
        })),
        any::<u64>().prop_map(Frame::Ping),
        any::<u64>().prop_map(Frame::Pong),
        any::<(u64, u64)>().prop_map(|(batch, taken)| Frame::Answer { batch, taken }),
        any::<u64>().prop_map(Frame::Wanted),
        vec(any::<u8>(), 0..256).prop_map(Frame::Renewed),
    ]
}

fn answer() -> impl Strategy<Value = FileAnswer> {
    let found = (".{0,64}", option::of("[a-z/]{0,32}"), any::<u64>(), any::<[u8; 32]>());
    prop_oneof![
        found.prop_map(|(filename, mime_type, size_bytes, sha256)| FileAnswer::Found {
            filename,
            mime_type,
            size_bytes,
            sha256,
        }),
        Just(FileAnswer::Unknown),
        Just(FileAnswer::NotAllowed),
        ".{0,32}".prop_map(FileAnswer::Failed),
    ]
}
