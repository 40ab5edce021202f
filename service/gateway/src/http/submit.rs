//! The one way a message enters the gateway, whatever the surface.

mod carriage;

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use fieldpost_delivery::{
    Accepted, Content, Failure, MAX_RECIPIENTS, Message, Settled, Submission, Target, Wishes,
};
use fieldpost_envelope::{
    AnonymityLevel, GroupId, MessageId, MessageStatus, PeerAddress, PeerId, Priority, Recipient,
};
use futures_util::FutureExt;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    Gateway,
    accept::AcceptError,
    http::{
        addressing::{self, Found},
        error::ApiError,
        submit::carriage::Place,
    },
    store::{
        FanOut, GroupTraffic,
        names::MAX_AWAITED,
        quota::Full,
        remote_groups::{Membership, RemoteGroup},
    },
    subscribers::Event,
};

/// The longest time to live, in seconds: 30 days.
pub const LONGEST_TTL: i64 = 30 * 86_400;
/// The longest time to live of a broadcast, in seconds.
pub const LONGEST_BROADCAST_TTL: i64 = 3600;
/// The most files that one message may carry.
pub const MAX_FILES: usize = 16;

/// What a caller wants sent, checked field by field.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The client's name for it.
    pub id: Option<MessageId>,
    /// Whom it is for.
    pub to: Recipient,
    /// The body.
    pub content: Content,
    /// Seconds until it is no longer worth delivering; within the bounds for `to`.
    pub ttl: i64,
    /// How urgent it is.
    pub priority: Priority,
    /// The lowest anonymity level that may carry it.
    pub min_anonymity: AnonymityLevel,
    /// How it wants to travel.
    pub wishes: Wishes,
    /// Whether a recipient that nobody knows is waited for.
    pub allow_unknown: bool,
    /// Whether a group that nobody has made is made by this.
    pub make_group: bool,
}

/// How a draft was taken.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// Its name.
    pub id: MessageId,
    /// Whom it is for; a peer that was found at another gateway with that gateway.
    pub to: Recipient,
    /// Where it stands.
    pub status: MessageStatus,
    /// When it was accepted.
    pub accepted_at: DateTime<Utc>,
    /// When it ceases to be worth delivering.
    pub expires_at: DateTime<Utc>,
    /// Whether the same had been accepted before.
    pub repeated: bool,
}

/// Checks a time to live against the bounds for its recipient.
///
/// # Errors
///
/// 422 outside of them.
pub fn check_ttl(ttl: i64, to: &Recipient) -> Result<i64, ApiError> {
    let longest = match to {
        Recipient::Broadcast => LONGEST_BROADCAST_TTL,
        Recipient::Peer(_) | Recipient::Group { .. } => LONGEST_TTL,
    };
    if (1..=longest).contains(&ttl) {
        Ok(ttl)
    } else {
        Err(ApiError::invalid("body.ttl", format!("ttl: {ttl} is not in 1 to {longest} seconds")))
    }
}

/// Accepts a message of `sender` and returns once it is durable.
///
/// What is seldom done on the way is boxed: a future is moved with room for all that it may do.
///
/// # Errors
///
/// 404 and 403 for recipients that are not there or not the sender's, 409 for an id that names
/// another message and for a name that several gateways have, 422 for what can never be carried, 429 and 507 over quota, 503 when the gateway
/// cannot take it now.
pub async fn submit(
    gateway: &Gateway,
    sender: &PeerId,
    draft: Draft,
) -> Result<Submitted, ApiError> {
    if !gateway.store.peer_exists(sender).await? {
        return Err(ApiError::not_found(format!("{sender} is not a peer of this gateway")));
    }
    let to = without_own_gateway(gateway, draft.to.clone())?;
    let (id, fingerprint) = (draft.id, fingerprint(&draft, &to));
    // A name may lead elsewhere by now, and what is only said again must not pin it.
    if let (Some(id), Some(name)) = (id, bare_name(&to))
        && !gateway.store.peer_exists(name).await?
        && let Some(earlier) =
            accepted_before(gateway, sender, id, &to, &fingerprint).boxed().await?
    {
        return Ok(earlier);
    }
    match accept(gateway, sender, draft, to.clone(), fingerprint).await {
        // What was accepted stays accepted, whatever quotas and groups have come to since.
        Err(refusal) if let Some(id) = id => {
            match accepted_before(gateway, sender, id, &to, &fingerprint).boxed().await {
                Ok(Some(earlier)) => Ok(earlier),
                // A look that fails tells nothing, and the refusal says what is in doubt.
                Ok(None) | Err(_) => Err(refusal),
            }
        }
        outcome => outcome,
    }
}

/// How the same was answered when it was accepted; `None` if it was not, or the id has another.
async fn accepted_before(
    gateway: &Gateway,
    sender: &PeerId,
    id: MessageId,
    to: &Recipient,
    fingerprint: &[u8; 32],
) -> Result<Option<Submitted>, ApiError> {
    let earlier = gateway.store.accepted_as(gateway.clock.now(), id, sender, fingerprint).await?;
    Ok(match earlier {
        Some(Accepted::Same { accepted_at, expires_at, status }) => {
            let to = to.clone();
            Some(Submitted { id, to, status, accepted_at, expires_at, repeated: true })
        }
        _ => None,
    })
}

/// The name of a peer that no gateway goes with, unless it is a phone's.
fn bare_name(to: &Recipient) -> Option<&PeerId> {
    match to {
        Recipient::Peer(PeerAddress { peer, gateway: None }) if !peer.is_phone() => Some(peer),
        _ => None,
    }
}

/// Accepts what the gateway itself has a peer say, to recipients that it has chosen.
///
/// # Errors
///
/// As for any message, but for who may write to whom.
pub async fn submit_to(
    gateway: &Gateway,
    sender: &PeerId,
    draft: Draft,
    deliveries: Vec<Target>,
) -> Result<Submitted, ApiError> {
    let to = draft.to.clone();
    let fingerprint = fingerprint(&draft, &to);
    let submission = submission(gateway, sender, draft, to, fingerprint, deliveries);
    take(gateway, sender, submission).await
}

async fn accept(
    gateway: &Gateway,
    sender: &PeerId,
    mut draft: Draft,
    to: Recipient,
    fingerprint: [u8; 32],
) -> Result<Submitted, ApiError> {
    check_wishes(gateway, &draft.wishes)?;
    if !draft.content.file_ids.is_empty()
        && let Some(file) =
            gateway.store.first_not_attachable(&draft.content.file_ids, sender).boxed().await?
    {
        return Err(ApiError::invalid(
            "body.file_ids",
            format!("file_ids: {file} is no finished file that {sender} uploaded or was sent"),
        ));
    }
    draft.id.get_or_insert_with(|| MessageId(Uuid::now_v7()));
    let deliveries = match bare_name(&to) {
        Some(peer) if draft.wishes.required.is_none() && gateway.store.knows_peer(peer) => {
            vec![Target::Local(peer.clone())]
        }
        _ => resolve(gateway, sender, &draft, &to).boxed().await?,
    };
    let to = match deliveries.as_slice() {
        // Where a name was found is where the message belongs, in history too.
        [Target::Remote(address)] if to.as_peer().is_some() => Recipient::Peer(address.clone()),
        _ => to,
    };
    let submission = submission(gateway, sender, draft, to, fingerprint, deliveries);
    take(gateway, sender, submission).await
}

/// Reserves room, accepts, and counts. Who of many has no room misses the message alone.
async fn take(
    gateway: &Gateway,
    sender: &PeerId,
    mut submission: Submission,
) -> Result<Submitted, ApiError> {
    let (id, expires_at) = (submission.message.id, submission.message.expires_at);
    let to = submission.message.to.clone();
    let group = match &submission.message.to {
        Recipient::Group { id, home: None } => Some(id.clone()),
        _ => None,
    };
    let asked: Vec<String> = submission.deliveries.iter().map(Target::recipient).collect();
    let size = submission.message.content.bytes.len() as u64;
    let name = sender.as_str();
    let full = gateway.quotas.reserve(&asked, name, size).await?;
    if let Some(first) = full.first().filter(|_| full.len() == asked.len()) {
        // Room would not help whoever gives an id twice.
        let (now, fingerprint) = (gateway.clock.now(), &submission.fingerprint);
        return Err(
            match gateway.store.accepted_as(now, id, sender, fingerprint).boxed().await? {
                Some(Accepted::Conflict) => used_id(id, sender),
                _ => ApiError::storage_full(first.to_string()),
            },
        );
    }
    fail_full(&mut submission, &full);
    let failures = submission.failures.clone();
    let locals: Vec<PeerId> = submission.deliveries.iter().filter_map(local).cloned().collect();
    let names: Vec<String> = submission.deliveries.iter().map(Target::recipient).collect();
    let give_back = || {
        names.iter().for_each(|recipient| gateway.quotas.release(recipient, name, 1, size));
    };
    // Before it is accepted, as it may be shown before we hear of that.
    gateway.traces.begin(sender, id);
    match gateway.acceptor.accept(submission).await {
        Ok(Accepted::New { accepted_at }) => {
            gateway.store.count_sent(sender);
            locals.iter().for_each(|peer| gateway.store.count_received(peer));
            if let Some(group) = group {
                count_group_message(gateway, group, sender, accepted_at).boxed().await;
            }
            for Failure { target, reason } in failures {
                let settled = Settled {
                    id,
                    sender: PeerAddress::local(sender.clone()),
                    recipient: target.recipient(),
                    status: MessageStatus::Failed,
                    at: accepted_at,
                    reason: Some(reason),
                };
                gateway.subscribers.tell(sender, &Event::Receipt(settled));
            }
            let status = match names.is_empty() {
                // A broadcast that nobody was there for has ended.
                true => MessageStatus::Sent,
                false => MessageStatus::Pending,
            };
            Ok(Submitted { id, to, status, accepted_at, expires_at, repeated: false })
        }
        Ok(Accepted::Same { accepted_at, expires_at, status }) => {
            give_back();
            Ok(Submitted { id, to, status, accepted_at, expires_at, repeated: true })
        }
        Ok(Accepted::Conflict) => {
            give_back();
            Err(used_id(id, sender))
        }
        Err(error) => {
            give_back();
            Err(refusal(&error))
        }
    }
}

fn used_id(id: MessageId, sender: &PeerId) -> ApiError {
    ApiError::conflict(format!(
        "message_id {id} names another message of {sender}: choose a new id"
    ))
}

/// Turns the deliveries to those whose storage is full into failures.
fn fail_full(submission: &mut Submission, full: &[Full]) {
    if full.is_empty() {
        return;
    }
    let full: HashMap<&str, &Full> = full.iter().map(|full| (full.recipient(), full)).collect();
    submission.deliveries.retain(|target| {
        let Some(full) = full.get(target.recipient().as_str()) else { return true };
        let reason = full.to_string();
        submission.failures.push(Failure { target: target.clone(), reason });
        false
    });
}

fn local(target: &Target) -> Option<&PeerId> {
    match target {
        Target::Local(peer) => Some(peer),
        Target::Remote(_) | Target::Group { .. } | Target::Broadcast(_) => None,
    }
}

/// A counter that lags is better than a message that is refused for it.
async fn count_group_message(
    gateway: &Gateway,
    group: GroupId,
    sender: &PeerId,
    last_at: DateTime<Utc>,
) {
    let sender = PeerAddress::local(sender.clone());
    let traffic = GroupTraffic { group, sender, messages: 1, last_at };
    if let Err(error) = gateway.store.record_group_messages(&[traffic]).await {
        tracing::warn!(%error, "group's counters not moved");
    }
}

fn refusal(error: &AcceptError) -> ApiError {
    match error {
        AcceptError::Busy => {
            ApiError::unavailable(format!("{error}; nothing was accepted, try again"))
                .retry_after(1)
        }
        AcceptError::TimedOut | AcceptError::InDoubt => ApiError::unavailable(format!(
            "{error}; send it again under the same message_id to be sure that it is accepted once"
        )),
        AcceptError::Away | AcceptError::Stopping => {
            ApiError::unavailable(format!("{error}; nothing was accepted, try again"))
        }
        AcceptError::Refused(reason) => {
            tracing::error!(%reason, "the database refused a message that had passed all checks");
            ApiError::new(
                axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                "the gateway failed; its log says why",
            )
        }
    }
}

/// A transport that this gateway does not run can never carry anything.
fn check_wishes(gateway: &Gateway, wishes: &Wishes) -> Result<(), ApiError> {
    let running = || gateway.transports.iter().map(|transport| transport.name());
    if let Some(required) = &wishes.required
        && required != "local"
        && !running().any(|name| name == required)
    {
        let names: Vec<&str> = std::iter::once("local").chain(running()).collect();
        return Err(ApiError::invalid(
            "body.transport_required",
            format!("transport_required: this gateway runs {}", names.join(", ")),
        ));
    }
    Ok(())
}

/// Names of this gateway's own peers and groups lose their `@gateway`.
fn without_own_gateway(gateway: &Gateway, to: Recipient) -> Result<Recipient, ApiError> {
    let own = gateway.store.identity()?.gateway_id;
    Ok(match to {
        Recipient::Peer(address) => Recipient::Peer(address.seen_from(own)),
        Recipient::Group { id, home } => {
            Recipient::Group { id, home: home.filter(|home| *home != own) }
        }
        Recipient::Broadcast => Recipient::Broadcast,
    })
}

async fn resolve(
    gateway: &Gateway,
    sender: &PeerId,
    draft: &Draft,
    to: &Recipient,
) -> Result<Vec<Target>, ApiError> {
    match to {
        Recipient::Peer(address) => Ok(vec![resolve_peer(gateway, sender, draft, address).await?]),
        Recipient::Group { id, home: Some(home) } => {
            resolve_remote_group(
                gateway,
                sender,
                draft,
                RemoteGroup { id: id.clone(), home: *home },
            )
            .await
        }
        Recipient::Group { id, home: None } => resolve_group(gateway, sender, draft, id).await,
        Recipient::Broadcast => {
            gateway.limits.check_broadcast(sender)?;
            let limit = MAX_RECIPIENTS - gateway.transports.len();
            let listeners = gateway.store.broadcast_listeners(sender, limit).await?;
            let heard = gateway
                .transports
                .iter()
                .filter(|transport| {
                    let can = transport.capabilities();
                    can.supports_broadcast
                        && can.anonymity_level >= draft.min_anonymity.get()
                        && can.max_message_size >= draft.content.bytes.len()
                })
                .map(|transport| Target::Broadcast(transport.name().to_owned()));
            Ok(listeners.into_iter().map(Target::Local).chain(heard).collect())
        }
    }
}

async fn resolve_peer(
    gateway: &Gateway,
    sender: &PeerId,
    draft: &Draft,
    address: &PeerAddress,
) -> Result<Target, ApiError> {
    let name = &address.peer;
    let required = draft.wishes.required.as_deref().filter(|required| *required != "local");
    let address = if address.gateway.is_some() || name.is_phone() {
        address.clone()
    } else {
        match addressing::resolve(gateway, sender, name).await? {
            Found::At(home) => PeerAddress::remote(name.clone(), home),
            Found::Here if required.is_none() => return Ok(Target::Local(name.clone())),
            Found::Here => {
                return Err(ApiError::invalid(
                    "body.transport_required",
                    format!("transport_required: {name} is a peer of this gateway: use local"),
                ));
            }
            Found::Nowhere { .. } if draft.allow_unknown && required.is_none() => {
                wait_for_name(gateway, sender, draft, name).await?;
                return Ok(Target::Local(name.clone()));
            }
            Found::Nowhere { .. } if draft.allow_unknown => {
                return Err(ApiError::invalid(
                    "body.transport_required",
                    format!(
                        "transport_required: nobody knows yet which transport leads to {name}: leave \
                         it out to wait"
                    ),
                ));
            }
            Found::Nowhere { is_claimed } => return Err(addressing::unknown(name, is_claimed)),
        }
    };
    carriage::check(gateway, draft, address.gateway.map_or(Place::Phone, Place::Gateway))?;
    Ok(Target::Remote(address))
}

/// Lets a message wait in the inbox of a name that nobody has: until a peer of this gateway takes
/// the name or, where the message may leave, a trusted gateway lists it.
async fn wait_for_name(
    gateway: &Gateway,
    sender: &PeerId,
    draft: &Draft,
    name: &PeerId,
) -> Result<(), ApiError> {
    let (Some(id), None) = (draft.id, &draft.wishes.required) else { return Ok(()) };
    let expires_at = gateway.clock.now() + TimeDelta::seconds(draft.ttl);
    if !gateway.store.await_name(sender, id, name, expires_at).await? {
        return Err(ApiError::storage_full(format!(
            "{MAX_AWAITED} of your messages wait for names that nobody has: wait until some have \
             ended"
        )));
    }
    // The name may have appeared before the message is there to be led on.
    gateway.rosters.look_for_names();
    Ok(())
}

async fn resolve_group(
    gateway: &Gateway,
    sender: &PeerId,
    draft: &Draft,
    id: &GroupId,
) -> Result<Vec<Target>, ApiError> {
    let address = PeerAddress::local(sender.clone());
    let mut fan_out = gateway.store.group_fan_out(id, &address).await?;
    if fan_out == FanOut::Unknown && draft.make_group {
        gateway
            .store
            .create_group_for(id, sender)
            .await?
            .map_err(|refusal| ApiError::conflict(refusal.to_string()))?;
        fan_out = gateway.store.group_fan_out(id, &address).await?;
    }
    match fan_out {
        FanOut::Unknown => Err(ApiError::not_found(format!("there is no group {id}"))),
        FanOut::NotMember => {
            Err(ApiError::forbidden(format!("{sender} is not a member of group {id}")))
        }
        FanOut::Members(members) => Ok(members
            .into_iter()
            .map(|member| match member.gateway {
                None => Target::Local(member.peer),
                Some(_) => Target::Remote(member),
            })
            .collect()),
    }
}

/// A group of another gateway, whose home checks that the sender is a member and fans out.
async fn resolve_remote_group(
    gateway: &Gateway,
    sender: &PeerId,
    draft: &Draft,
    group: RemoteGroup,
) -> Result<Vec<Target>, ApiError> {
    let standing = gateway.store.remote_groups_page(sender, "", 1, Some(&group)).await?;
    let key = group.key();
    match standing.into_iter().next() {
        None => {
            return Err(ApiError::forbidden(format!("{sender} has not joined group:{key}")));
        }
        Some(standing) => match standing.membership {
            // Whether the home takes one that has just consented, it says later.
            Membership::Joining | Membership::Member => {}
            Membership::Invited => {
                return Err(ApiError::forbidden(format!(
                    "{sender} was asked into group:{key} and has not accepted: POST \
                     /v1/groups/{key}/accept"
                )));
            }
            Membership::Refused => {
                let reason = standing.refusal.unwrap_or_else(|| "it did not answer".to_owned());
                return Err(ApiError::forbidden(format!(
                    "the home of group:{key} did not take {sender}: {reason}; to join, accept again \
                     once you have been asked anew"
                )));
            }
        },
    }
    // The way to a group is the way to any peer of its home.
    carriage::check(gateway, draft, Place::Gateway(group.home))?;
    Ok(vec![Target::Group { id: group.id, home: group.home }])
}

fn submission(
    gateway: &Gateway,
    sender: &PeerId,
    draft: Draft,
    to: Recipient,
    fingerprint: [u8; 32],
    deliveries: Vec<Target>,
) -> Submission {
    let expires_at = gateway.clock.now() + TimeDelta::seconds(draft.ttl);
    Submission {
        message: Message {
            id: draft.id.unwrap_or_else(|| MessageId(Uuid::now_v7())),
            sender: PeerAddress::local(sender.clone()),
            to,
            content: draft.content,
            expires_at,
            priority: draft.priority,
            min_anonymity: draft.min_anonymity,
            wishes: draft.wishes,
        },
        fingerprint,
        deliveries,
        failures: Vec::new(),
    }
}

/// What two requests under one id must share to be the same.
fn fingerprint(draft: &Draft, to: &Recipient) -> [u8; 32] {
    let Draft { content, ttl, priority, min_anonymity, wishes, .. } = draft;
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(to.to_string().as_bytes());
    part(&content.bytes);
    part(&[u8::from(content.is_text), min_anonymity.get(), u8::from(wishes.parallel)]);
    part(&ttl.to_be_bytes());
    part(priority.as_str().as_bytes());
    let options = [
        &content.content_type,
        &content.message_type,
        &content.metadata,
        &wishes.preference,
        &wishes.required,
    ];
    for option in options {
        part(&[u8::from(option.is_some())]);
        part(option.as_deref().unwrap_or_default().as_bytes());
    }
    for file in &content.file_ids {
        part(file.as_bytes());
    }
    for (name, value) in &content.labels {
        part(name.as_bytes());
        part(value.as_bytes());
    }
    hash.finalize().into()
}
