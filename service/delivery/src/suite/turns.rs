//! Whether what comes back into reach leaves in turns.

use std::{fmt::Debug, time::Duration};

use chrono::TimeDelta;
use fieldpost_envelope::{AnonymityLevel, MessageId, PeerAddress, Priority};
use uuid::Uuid;

use super::{gateways, peer};
use crate::{Content, Message, Next, Store, Submission, Target, Time, Wishes};

/// Puts a fresh store with [`peers`](super::peers) through one story: alice has sent `many` messages to
/// a gateway that is out of reach, bob one, and then it is reached.
///
/// # Errors
///
/// Says what left instead of bob's message, or what of the store failed.
pub async fn leaves_in_turns<S: Store>(store: &S, now: Time, many: usize) -> Result<(), String> {
    let alices: Vec<_> = (0..many).map(|number| message("alice", number, now)).collect();
    let bobs = message("bob", many, now);
    for batch in alices.chunks(BATCH).chain([std::slice::from_ref(&bobs)]) {
        store.accept(now, batch).await.map_err(failed)?;
    }
    let (gateway, lease) = ([gateways()[0].to_string()], Duration::from_secs(30));
    let now = now + TimeDelta::milliseconds(100);
    // Half of it is tried meanwhile; the rest is due all the while.
    for claim in store.claim_due(now, lease, &gateway, many / 2).await.map_err(failed)? {
        let next = Next::Wait { reason: "out of reach".into(), until: None };
        store.record(now, &claim, &[], &next).await.map_err(failed)?;
    }
    let now = now + TimeDelta::milliseconds(100);
    store.reached(now, &gateway).await.map_err(failed)?;
    let claims = store.claim_due(now, lease, &gateway, 3).await.map_err(failed)?;
    let mut left: Vec<_> = claims.iter().map(|claim| claim.message.id).collect();
    let mut expected = [alices[0].message.id, alices[1].message.id, bobs.message.id];
    // In which order they are told is nobody's business.
    left.sort();
    expected.sort();
    if left != expected {
        return Err(format!("{left:?} left, not {expected:?}"));
    }
    // The others leave in order, and all of them.
    let mut next = 2;
    while next < many {
        let claims = store.claim_due(now, lease, &gateway, 100).await.map_err(failed)?;
        let mut left: Vec<_> = claims.iter().map(|claim| claim.message.id).collect();
        left.sort();
        let mut expected: Vec<_> =
            alices[next..].iter().take(100).map(|one| one.message.id).collect();
        expected.sort();
        if left != expected {
            return Err(format!(
                "{} left after {next}, not the next {}",
                left.len(),
                expected.len()
            ));
        }
        next += left.len();
    }
    Ok(())
}

fn message(sender: &str, number: usize, now: Time) -> Submission {
    let to = PeerAddress { peer: peer("zoe"), gateway: Some(gateways()[0]) };
    let id = MessageId(Uuid::from_u128(number as u128 + 1));
    let message = Message {
        id,
        sender: peer(sender).into(),
        to: to.clone().into(),
        content: Content::default(),
        expires_at: now + TimeDelta::hours(1),
        priority: Priority::Normal,
        min_anonymity: AnonymityLevel::NONE,
        wishes: Wishes::default(),
    };
    let fingerprint = [number as u8; 32];
    Submission { message, fingerprint, deliveries: vec![Target::Remote(to)], failures: Vec::new() }
}

fn failed(error: impl Debug) -> String {
    format!("the store failed: {error:?}")
}

/// Messages that are accepted together.
const BATCH: usize = 256;
