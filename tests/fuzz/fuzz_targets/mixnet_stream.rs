//! What comes on the streams of a link: however it is cut, the same is read.
#![no_main]

use fieldpost_mixnet::wire::{Item, StreamReader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let read = |cut: usize| {
        let (mut reader, mut items) = (StreamReader::default(), Vec::new());
        for mut piece in bytes.chunks(cut) {
            loop {
                match reader.read(&mut piece) {
                    Ok(Some(item)) => items.push(item),
                    Ok(None) => break,
                    Err(error) => return (items, Some(error)),
                }
            }
        }
        (items, None)
    };
    let (items, error) = read(usize::from(cut).max(1));
    let whole = read(bytes.len().max(1));
    assert_eq!((&items, error), (&whole.0, whole.1), "however it is cut");
    for item in items {
        if let Item::Message(message) = item {
            assert!(message.encode().len() > 4);
        }
    }
});
