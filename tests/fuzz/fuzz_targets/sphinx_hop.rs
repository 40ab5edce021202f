//! Packets off a link: never a panic, nothing that is altered is taken, commands read as written.
#![no_main]

use std::sync::LazyLock;

use fieldpost_mixnet::sphinx::{Class, Command, Group, Packet, Production, Suite, X25519, open};
use libfuzzer_sys::fuzz_target;

/// The relay and the epoch that the seeds are for.
static SECRET: LazyLock<<X25519 as Group>::Secret> = LazyLock::new(|| {
    X25519::secret(&std::array::from_fn(|at| 31 + at as u8)).expect("any bytes are a secret")
});
const EPOCH: u64 = 500_000;

fuzz_target!(|bytes: &[u8]| {
    let mut copy = bytes.to_vec();
    match open::<Production>(&SECRET, &EPOCH, &mut copy) {
        Ok(opened) => {
            let _ = opened.process();
        }
        Err(error) => {
            assert!(error.to_string().len() < 128);
            assert_eq!(copy, bytes, "what is refused is left as it was");
        }
    }
    if let Some(packet) = Packet::from_bytes(bytes) {
        assert_eq!(packet.class().packet_len(), bytes.len());
        assert!(Class::of_packet_len(bytes.len()).is_some());
    }
    if let Some((block, _)) = bytes.split_at_checked(Production::BLOCK)
        && let Ok(step) = Production::read(block)
    {
        let mut written = block.to_vec();
        let next_mac = step.next_mac.as_ref().map(|mac| &mac[..Production::MAC]);
        Production::write(&step.command, next_mac, &mut written);
        assert_eq!(written, block);
        assert_eq!(step.next_mac.is_some(), matches!(step.command, Command::Forward { .. }));
    }
});
