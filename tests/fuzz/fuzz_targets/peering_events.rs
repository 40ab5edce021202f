//! An endpoint of the mesh under whatever a neighbour may send: never a panic, bounded, and nothing is
//! delivered from a neighbour whose hello was not believed.
#![no_main]

use std::time::{Duration, Instant};

use fieldpost_envelope::{Certificate, NodePurpose, Timestamp};
use fieldpost_peering::{Action, Event, Identity, LinkId, Moment, NodeId, Peering, limits};
use libfuzzer_sys::fuzz_target;
use rand::{SeedableRng, rngs::StdRng};

fuzz_target!(|bytes: &[u8]| {
    let time = |millis| Timestamp::try_from(millis).expect("a time of this century");
    let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
    let node = NodeId([9; 32]);
    let certificate = Certificate {
        gateway: key.verifying_key().into(),
        purpose: NodePurpose::Mesh,
        node: node.0,
        not_before: time(NOW),
        not_after: time(NOW + 3_600_000),
    };
    let certificate = certificate.sign(&key).expect("it breaks no rule");
    let identity = Identity { node, gateway: key.verifying_key().into(), certificate };
    let mut peering = Peering::new(identity, StdRng::seed_from_u64(1));
    let (mut at, mut rest) = (Instant::now(), bytes);
    while let [kind, link, length, tail @ ..] = rest {
        let link = LinkId(u64::from(link % 80));
        let (body, after) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = after;
        let body = body.to_vec().into();
        let event = match kind % 8 {
            0 => Event::Connected {
                link,
                node: NodeId([link.0 as u8; 32]),
                is_dialled: kind & 8 > 0,
            },
            1 | 2 => Event::Frame { link, bytes: body },
            3 => Event::Batch { link, body },
            4 => Event::Rosters { link, body },
            5 => Event::Closed { link, reason: None },
            6 => Event::Heard { link },
            _ => {
                at += Duration::from_millis(u64::from(*length) * 10);
                Event::Wake
            }
        };
        let now = Moment { at, wall: time(NOW) };
        for action in peering.handle(now, event) {
            // None of these neighbours can sign a certificate for its key.
            assert!(!matches!(
                action,
                Action::Deliver { .. } | Action::Hear { .. } | Action::Open { .. }
            ));
        }
        assert!(peering.links() <= limits::LINKS + limits::HALF_OPEN + 80);
    }
});

const NOW: u64 = 1_790_000_000_000;
