//! What comes for groups: at a group's home what is said to it, elsewhere what its home passes on.

use fieldpost_delivery::{Content, Message, Wishes};
use fieldpost_envelope::{Envelope, GroupId, PeerAddress, PeerId, Recipient};

use super::{Arrival, Outcome, files, refuse, take_for};
use crate::{
    Gateway,
    store::{
        FanOut,
        group_inbound::{GroupInbound, GroupReceived, GroupTaken, GroupWord},
        remote_groups::{Asked, RemoteGroup},
    },
};

/// The type of the message that asks a peer of another gateway into a group.
pub const GROUP_INVITE: &str = "group_invite";
/// The type of the message that tells a member elsewhere that it was removed.
pub const GROUP_REMOVED: &str = "group_removed";
/// The type of the message that tells the members elsewhere that a group is closed.
pub const GROUP_CLOSED: &str = "group_closed";
/// Message types that gateways use among themselves, so that no peer may.
pub const RESERVED: [&str; 6] =
    [GROUP_INVITE, GROUP_REMOVED, GROUP_CLOSED, "group_accept", "group_decline", "group_leave"];

/// Takes what a peer of another gateway says to a group of this one, and fans it out.
pub(super) async fn take_for_group(
    gateway: &Gateway,
    arrival: Arrival,
    envelope: &Envelope,
    group: &GroupId,
    original: &[u8],
) -> sqlx::Result<Outcome> {
    let kind = GroupWord::of_type(envelope.content.message_type.as_deref());
    let files = match files::taken_up(gateway, arrival, envelope).await? {
        Ok(files) => files,
        Err(reason) => return refuse(gateway, arrival, envelope, &reason).await,
    };
    let message = message_for_group(envelope, group, files.ids());
    let size = message.content.bytes.len() as u64;
    let sender = message.sender.to_string();
    // Members alone are told whose storage is full; whoever else comes is judged by the store.
    let names = match gateway.store.group_fan_out(group, &message.sender).await? {
        FanOut::Members(members) if kind == GroupWord::Message => {
            members.iter().map(PeerAddress::to_string).collect()
        }
        _ => Vec::new(),
    };
    let full: Vec<String> = gateway
        .quotas
        .reserve(&names, &sender, size)
        .await?
        .iter()
        .map(|full| full.recipient().to_owned())
        .collect();
    if !full.is_empty() {
        tracing::debug!(members = full.len(), "a message to a group found no room at some");
    }
    let reserved = || names.iter().filter(|name| !full.contains(name));
    let inbound = GroupInbound {
        message: &message,
        group,
        kind,
        lane_seq: envelope.lane_seq,
        after: envelope.after,
        sent_at: envelope.sent_at.into(),
        gateway: arrival.signer,
        digest: arrival.digest,
        transport: arrival.transport,
        original,
        files: &files.remote,
        full_for: &full,
        has_room: names.is_empty() || full.len() < names.len(),
    };
    let now = gateway.clock.now();
    let received = gateway.store.receive_for_group(now, &inbound, gateway.config.order_wait).await;
    if !matches!(&received, Ok(GroupReceived { taken: GroupTaken::Done, .. })) {
        reserved().for_each(|name| gateway.quotas.release(name, &sender, 1, size));
    }
    let received = received?;
    announce(gateway, &received);
    if !files.remote.is_empty() {
        gateway.wake_files.notify_one();
    }
    gateway.wake_outbox.notify_one();
    Ok(match received.taken {
        GroupTaken::Done | GroupTaken::Held => Outcome::Stored,
        GroupTaken::Duplicate => Outcome::Duplicate,
        GroupTaken::Refused => Outcome::Refused,
    })
}

/// Wakes whoever waits for what a group was told.
pub fn announce(gateway: &Gateway, received: &GroupReceived) {
    gateway.subscribers.wake(&received.grown);
    received.grown.iter().for_each(|peer| gateway.store.count_received(peer));
    if received.owes_elsewhere {
        gateway.wake_outbox.notify_one();
    }
}

/// Takes what the home of a group sends to a peer that has joined it.
pub(super) async fn take_for_member(
    gateway: &Gateway,
    arrival: Arrival,
    envelope: &Envelope,
    bytes: Vec<u8>,
    recipient: PeerId,
    id: &GroupId,
) -> sqlx::Result<Outcome> {
    let group = RemoteGroup { id: id.clone(), home: arrival.signer };
    let is_homes_own = envelope.sender.gateway == Some(arrival.signer);
    let ends = is_homes_own
        && matches!(envelope.content.message_type.as_deref(), Some(GROUP_REMOVED | GROUP_CLOSED));
    let is_wanted = match ends {
        true => gateway.store.knows_group(&recipient, &group).await?,
        false => gateway.store.has_joined(&recipient, &group).await?,
    };
    let is_own = envelope.sender == PeerAddress::remote(recipient.clone(), arrival.own);
    if !is_wanted || is_own {
        let reason = format!("{recipient} has not joined group {id} of that gateway");
        return refuse(gateway, arrival, envelope, &reason).await;
    }
    let outcome = take_for(gateway, arrival, envelope, bytes, recipient.clone()).await?;
    // A copy of it may come when the peer has been asked and has accepted again.
    if ends && outcome == Outcome::Stored {
        gateway.store.end_consent(&recipient, &group, None).await?;
    }
    Ok(outcome)
}

/// Remembers an invitation that has been stored as a message; it is only good for a group of the
/// gateway that signed it.
pub(super) async fn remember_invitation(
    gateway: &Gateway,
    arrival: Arrival,
    envelope: &Envelope,
    peer: &PeerId,
) -> sqlx::Result<()> {
    let metadata = envelope.content.metadata.as_deref().unwrap_or_default();
    let Ok(metadata) = serde_json::from_str::<Invited>(metadata) else { return Ok(()) };
    let Recipient::Group { id, home } = metadata.group else { return Ok(()) };
    if home != Some(arrival.signer) {
        return Ok(());
    }
    let group = RemoteGroup { id, home: arrival.signer };
    let name: String = metadata.name.chars().filter(|c| *c != '\0').take(255).collect();
    let asked = Asked {
        peer,
        group: &group,
        name: &name,
        by: &envelope.sender.to_string(),
        level: envelope.level,
    };
    gateway.store.remember_invitation(&asked).await
}

/// The metadata of an invitation.
#[derive(serde::Deserialize)]
struct Invited {
    group: Recipient,
    #[serde(default)]
    name: String,
}

fn message_for_group(envelope: &Envelope, group: &GroupId, file_ids: Vec<String>) -> Message {
    let content = &envelope.content;
    Message {
        id: envelope.message_id,
        sender: envelope.sender.clone(),
        to: Recipient::Group { id: group.clone(), home: None },
        content: Content {
            bytes: content.bytes.clone(),
            is_text: content.is_text,
            content_type: content.content_type.clone(),
            message_type: content.message_type.clone(),
            metadata: content.metadata.clone(),
            file_ids,
            labels: content.labels.clone(),
        },
        expires_at: envelope.expires_at.into(),
        priority: envelope.priority,
        min_anonymity: envelope.level,
        wishes: Wishes::default(),
    }
}
