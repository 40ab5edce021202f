//! Whether a gap is told although the message that was to tell it was never seen.

use std::{fmt::Debug, time::Duration};

use chrono::TimeDelta;
use fieldpost_envelope::{AnonymityLevel, LaneSeq, MessageId, PeerAddress, PeerId, Priority};
use uuid::Uuid;

use super::{gateways, peer};
use crate::{Confirm, Content, Inbound, Message, Store, Time, Wishes};

/// Puts a fresh store with [`peers`](super::peers) through one story, told to two peers: of a lane the
/// second message was seen, the fifth was to be shown with a gap and ran out unseen, the fourth comes
/// late, the third never. To one peer the fourth comes before the fifth runs out, to the other after.
///
/// # Errors
///
/// Says which marks were seen instead, or what of the store failed.
pub async fn tells_gaps_nobody_saw<S: Store>(store: &S, now: Time) -> Result<(), String> {
    for (recipient, comes_before) in [(peer("alice"), true), (peer("bob"), false)] {
        let receive = async |now, place: u64, after| {
            let inbound = inbound(&recipient, now, place, after);
            store.receive(now, &inbound, ORDER_WAIT).await.map_err(failed)
        };
        receive(now, 2, None).await?;
        see(store, now, &recipient, &[(false, false)]).await?;
        receive(now, BRIEF, Some(4)).await?;
        let over = now + TimeDelta::from_std(ORDER_WAIT).map_err(failed)?;
        store.release_held(over, 100).await.map_err(failed)?;
        if comes_before {
            receive(over, 4, Some(3)).await?;
        }
        let over = over + TimeDelta::seconds(10);
        store.expire_due(over, 100).await.map_err(failed)?;
        if !comes_before {
            receive(over, 4, Some(3)).await?;
        }
        see(store, over, &recipient, &[(true, true)]).await?;
        // Whoever comes next in order does not know that this was told.
        receive(over, 6, Some(4)).await?;
        receive(over, 7, Some(6)).await?;
        see(store, over, &recipient, &[(true, false), (false, false)]).await?;
    }
    Ok(())
}

/// Looks for messages with these marks, gap and late, and confirms them.
async fn see<S: Store>(
    store: &S,
    now: Time,
    recipient: &PeerId,
    marks: &[(bool, bool)],
) -> Result<(), String> {
    let entries = store.show(now, recipient, 0, 100).await.map_err(failed)?;
    let seen: Vec<_> = entries.iter().map(|entry| (entry.gap, entry.late)).collect();
    if seen != marks {
        return Err(format!("{recipient} saw {seen:?} (gap, late), not {marks:?}"));
    }
    let last = entries.last().map_or(0, |entry| entry.seq);
    let confirmed = store.confirm(now, recipient, &Confirm::all_up_to(last), false).await;
    confirmed.map(drop).map_err(failed)
}

fn inbound(recipient: &PeerId, now: Time, place: u64, after: Option<u64>) -> Inbound {
    let lives = match place {
        BRIEF => ORDER_WAIT + Duration::from_secs(5),
        _ => Duration::from_secs(3600),
    };
    let id = MessageId(Uuid::from_u128(u128::from(place)));
    let sender = PeerAddress { peer: peer("zoe"), gateway: Some(gateways()[0]) };
    let message = Message {
        id,
        sender,
        to: recipient.clone().into(),
        content: Content::default(),
        expires_at: now + lives,
        priority: Priority::Normal,
        min_anonymity: AnonymityLevel::NONE,
        wishes: Wishes::default(),
    };
    Inbound {
        message,
        via: None,
        recipient: recipient.clone(),
        sent_at: now,
        lane_seq: Some(LaneSeq(place)),
        after: after.map(LaneSeq),
        envelope: [place as u8 + if recipient.as_str() == "bob" { 100 } else { 0 }; 32],
        transport: "memory".into(),
    }
}

fn failed(error: impl Debug) -> String {
    format!("the store failed: {error:?}")
}

const ORDER_WAIT: Duration = Duration::from_secs(10);
/// The place of the message that runs out.
const BRIEF: u64 = 5;
