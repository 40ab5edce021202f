//! Frames of the mesh's control stream, and those before a file: what decodes encodes to what decodes
//! to the same.
#![no_main]

use fieldpost_peering::wire::{FileAnswer, FileRequest, Frame, MAX_FRAME};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if bytes.len() > MAX_FRAME {
        return;
    }
    match Frame::decode(bytes) {
        Ok(frame) => assert_eq!(Frame::decode(&frame.encode()[4..]), Ok(frame)),
        Err(error) => assert!(error.to_string().len() < 256),
    }
    if let Ok(request) = FileRequest::decode(bytes) {
        assert_eq!(FileRequest::decode(&request.encode()[4..]), Ok(request));
    }
    if let Ok(answer) = FileAnswer::decode(bytes) {
        assert_eq!(FileAnswer::decode(&answer.encode()[4..]), Ok(answer));
    }
});
