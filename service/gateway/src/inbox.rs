//! Takes in what transports receive: believes nothing before its signature is verified, stores
//! messages, settles receipts, and wakes whoever waits.
//!
//! Everything here comes from somebody else. What cannot be understood is counted and dropped:
//! an answer would only tell a stranger that somebody is here. What is understood but not taken is
//! answered with `refused` and the reason, under the level of the message.

mod files;
pub mod groups;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::TimeDelta;
use fieldpost_delivery::{
    Content, Inbound, Message, ReceiptIn, ReceiptOut, Received, Time, Wishes,
};
use fieldpost_envelope::{
    Envelope, GatewayId, PeerId, Receipt, ReceiptKind, Recipient, Said, SignedEnvelope, Verified,
};
use fieldpost_transport::Transport;
use futures_util::FutureExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::instrument;

use crate::{
    Gateway,
    outbox::{self, Awaited, Errand, Heard},
    store::{Origin, OwedReceipt},
    telemetry::metrics as names,
};

/// Envelopes of one transport that are worked on at once; the others wait in the transport.
const AT_ONCE: usize = 512;
/// These together, in KiB.
const AT_ONCE_KIB: usize = 32 << 10;
/// Envelopes that are verified together, of those that are there at once.
const BURST: usize = 64;
/// Beyond so many bytes in them nothing more is taken up.
const BURST_BYTES: usize = 512 << 10;
/// Attempts to store what came before it is left to the sender to send it again.
const STORE_ATTEMPTS: u32 = 3;
const STORE_PAUSE: Duration = Duration::from_millis(200);
/// How long a refusal is repeated: whoever misses it sends the message again and is told again.
const REFUSAL_LIFETIME: TimeDelta = TimeDelta::hours(1);
/// The most listeners that one broadcast from elsewhere is stored for.
const MAX_LISTENERS: usize = 10_000;
/// How long what is being stored may take when the gateway stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Receives over one transport until it shuts or `stop`.
pub async fn run(
    gateway: Gateway,
    transport: Arc<dyn Transport>,
    awaited: Awaited,
    stop: CancellationToken,
) {
    let room =
        Room { envelopes: Semaphore::new(AT_ONCE).into(), kib: Semaphore::new(AT_ONCE_KIB).into() };
    let mut tasks = JoinSet::new();
    let mut next = None;
    loop {
        // Nothing is taken that could not be stored; the transport bounds what waits in it.
        let received = stop.run_until_cancelled(async {
            gateway.readiness.until_ready().await;
            let place = room.envelopes.clone().acquire_owned().await.ok()?;
            let bytes = match next.take() {
                Some(bytes) => bytes,
                None => transport.receive().await?,
            };
            let memory = room.kib.clone().acquire_many_owned(kib(&bytes)).await.ok()?;
            Some(Came { bytes: bytes.into(), _place: place, _memory: memory })
        });
        let Some(Some(first)) = received.await else { break };
        let mut burst = vec![first];
        next = take_more(&room, transport.as_ref(), &mut burst);
        while tasks.try_join_next().is_some() {}
        let verified = verify_each(&burst);
        for (came, verified) in burst.into_iter().zip(verified) {
            let (gateway, awaited, transport) =
                (gateway.clone(), awaited.clone(), transport.clone());
            tasks.spawn(async move {
                let name = transport.name();
                let outcome = match verified {
                    Ok(verified) => take(&gateway, &awaited, name, verified, &came.bytes).await,
                    Err(outcome) => outcome,
                };
                if outcome.is_final() {
                    transport.taken(&came.bytes);
                }
                metrics::counter!(
                    names::ENVELOPES_RECEIVED_TOTAL,
                    "transport" => name,
                    "outcome" => outcome.word(),
                )
                .increment(1);
            });
        }
    }
    let _ = timeout(STOP_GRACE, async { while tasks.join_next().await.is_some() {} }).await;
    // A transport that shuts by itself leaves the gateway with the others.
    stop.cancelled().await;
}

/// For how much there is room at once.
struct Room {
    envelopes: Arc<Semaphore>,
    kib: Arc<Semaphore>,
}

/// Something that came, and the room that it takes up.
struct Came {
    bytes: Bytes,
    _place: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
}

/// Takes what has come besides, as far as there is room; gives back what was one too many.
fn take_more(room: &Room, transport: &dyn Transport, burst: &mut Vec<Came>) -> Option<Vec<u8>> {
    let mut bytes_taken: usize = burst.iter().map(|came| came.bytes.len()).sum();
    while burst.len() < BURST
        && bytes_taken < BURST_BYTES
        && let Ok(place) = room.envelopes.clone().try_acquire_owned()
        && let Some(bytes) = transport.receive().now_or_never().flatten()
    {
        bytes_taken += bytes.len();
        match room.kib.clone().try_acquire_many_owned(kib(&bytes)) {
            Ok(memory) => {
                burst.push(Came { bytes: bytes.into(), _place: place, _memory: memory });
            }
            Err(_) => return Some(bytes),
        }
    }
    None
}

fn kib(bytes: &[u8]) -> u32 {
    (bytes.len() >> 10).clamp(1, AT_ONCE_KIB) as u32
}

/// Decodes what came and verifies it, all signatures together.
fn verify_each(burst: &[Came]) -> Vec<Result<Verified, Outcome>> {
    let mut envelopes = Vec::with_capacity(burst.len());
    let mut are_envelopes = Vec::with_capacity(burst.len());
    for came in burst {
        let decoded = SignedEnvelope::decode_shared(came.bytes.clone());
        are_envelopes.push(decoded.is_ok());
        match decoded {
            Ok(envelope) => envelopes.push(envelope),
            Err(error) => tracing::debug!(%error, "bytes that are no envelope came"),
        }
    }
    let mut verified = SignedEnvelope::verify_each(envelopes).into_iter();
    let outcome_of = |is_envelope: bool| {
        let verified = is_envelope.then(|| verified.next()).flatten().ok_or(Outcome::Malformed)?;
        verified.map_err(|error| {
            tracing::debug!(%error, "an envelope came that was not signed by whom it names");
            Outcome::Forged
        })
    };
    are_envelopes.into_iter().map(outcome_of).collect()
}

/// What became of something that came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// A message was stored.
    Stored,
    /// A message was there already.
    Duplicate,
    /// A message was refused, and its sender is told.
    Refused,
    /// A receipt was taken.
    Receipt,
    /// The bytes are no envelope.
    Malformed,
    /// The signature is wrong.
    Forged,
    /// It was for somebody else, or our own.
    Misdirected,
    /// Its time was over.
    Expired,
    /// Its gateway is too fast; it comes again.
    OverQuota,
    /// The database did not take it; it comes again.
    Failed,
}

impl Outcome {
    /// Whether the same bytes would meet the same fate: they need not come again.
    fn is_final(self) -> bool {
        !matches!(self, Self::OverQuota | Self::Failed)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Refused => "refused",
            Self::Receipt => "receipt",
            Self::Malformed => "malformed",
            Self::Forged => "forged",
            Self::Misdirected => "misdirected",
            Self::Expired => "expired",
            Self::OverQuota => "over_quota",
            Self::Failed => "failed",
        }
    }
}

/// Takes in what came over a transport.
#[instrument(name = "inbox.take", skip_all, fields(
    transport.name = transport,
    envelope.size_bytes = bytes.len(),
))]
async fn take(
    gateway: &Gateway,
    awaited: &Awaited,
    transport: &'static str,
    Verified { signer, digest, said }: Verified,
    bytes: &[u8],
) -> Outcome {
    let Ok(own) = gateway.store.identity().map(|identity| identity.gateway_id) else {
        return Outcome::Failed;
    };
    if signer == own {
        return Outcome::Misdirected;
    }
    let is_trusted = gateway.rosters.is_trusted(signer);
    if !gateway.allowances.admit(gateway.clock.instant(), signer, is_trusted) {
        return Outcome::OverQuota;
    }
    if gateway.learned.heard(gateway.clock.now(), transport, signer) {
        gateway.wake_outbox.notify_one();
    }
    let outcome = match said {
        Said::Receipt(receipt) => take_receipt(gateway, awaited, digest, receipt).await,
        Said::Message(envelope) => {
            let arrival = Arrival { own, signer, digest, transport };
            take_message(gateway, arrival, *envelope, bytes).await
        }
    };
    outcome.unwrap_or_else(|error| {
        tracing::warn!(%error, "what came from another gateway could not be stored");
        Outcome::Failed
    })
}

async fn take_receipt(
    gateway: &Gateway,
    awaited: &Awaited,
    digest: [u8; 32],
    receipt: Receipt,
) -> sqlx::Result<Outcome> {
    let receipt = ReceiptIn {
        envelope: receipt.answers,
        signer: receipt.signer.into(),
        kind: receipt.kind,
        at: receipt.at.into(),
        reason: receipt.reason,
    };
    if let Err(heard) = awaited.hand(Heard { receipt, digest }) {
        outbox::settle(gateway, &heard).await?;
    }
    Ok(Outcome::Receipt)
}

/// How a message came.
#[derive(Clone, Copy)]
struct Arrival {
    own: GatewayId,
    /// Whose word it is, and where receipts go.
    signer: GatewayId,
    digest: [u8; 32],
    transport: &'static str,
}

async fn take_message(
    gateway: &Gateway,
    arrival: Arrival,
    mut envelope: Envelope,
    original: &[u8],
) -> sqlx::Result<Outcome> {
    let is_over = Time::from(envelope.expires_at) <= gateway.clock.now();
    match &envelope.recipient {
        Recipient::Peer(address) if is_over && address.gateway == Some(arrival.own) => {
            let recipient = address.peer.clone();
            pass_expired(gateway, arrival, &envelope, recipient).await?;
            Ok(Outcome::Expired)
        }
        Recipient::Broadcast | Recipient::Peer(_) if is_over => Ok(Outcome::Expired),
        Recipient::Broadcast => take_broadcast(gateway, arrival, envelope).await,
        Recipient::Peer(address) if address.gateway == Some(arrival.own) => {
            let recipient = address.peer.clone();
            let bytes = std::mem::take(&mut envelope.content.bytes);
            if let Recipient::Group { id, .. } = &envelope.to {
                return groups::take_for_member(gateway, arrival, &envelope, bytes, recipient, id)
                    .await;
            }
            let outcome = take_for(gateway, arrival, &envelope, bytes, recipient.clone()).await?;
            let asks = envelope.content.message_type.as_deref() == Some(groups::GROUP_INVITE);
            if asks && outcome == Outcome::Stored {
                groups::remember_invitation(gateway, arrival, &envelope, &recipient).await?;
            }
            Ok(outcome)
        }
        Recipient::Group { id, home } if *home == Some(arrival.own) => {
            groups::take_for_group(gateway, arrival, &envelope, id, original).await
        }
        Recipient::Peer(_) | Recipient::Group { .. } => Ok(Outcome::Misdirected),
    }
}

/// Stores a broadcast for everybody here who wants broadcasts. It is never passed on.
async fn take_broadcast(
    gateway: &Gateway,
    arrival: Arrival,
    envelope: Envelope,
) -> sqlx::Result<Outcome> {
    let listeners = gateway.store.broadcast_listeners(&envelope.sender.peer, MAX_LISTENERS).await?;
    let mut outcome = Outcome::Duplicate;
    for listener in listeners {
        // A full inbox misses a broadcast; nobody is told, as nobody could repeat it.
        let bytes = envelope.content.bytes.clone();
        if store(gateway, arrival, &envelope, bytes, listener, false).await?.0 == Taken::New {
            outcome = Outcome::Stored;
        }
    }
    Ok(outcome)
}

/// Takes a message whose content was taken out of the envelope, so that it is never copied.
async fn take_for(
    gateway: &Gateway,
    arrival: Arrival,
    envelope: &Envelope,
    bytes: Vec<u8>,
    recipient: PeerId,
) -> sqlx::Result<Outcome> {
    let errand = gateway.errands.room();
    let (taken, at) =
        store(gateway, arrival, envelope, bytes, recipient.clone(), errand.is_some()).await?;
    let outcome = match taken {
        Taken::New => Outcome::Stored,
        Taken::Known => Outcome::Duplicate,
        Taken::Refused(reason) => return refuse(gateway, arrival, envelope, &reason).await,
    };
    match errand {
        Some(room) => {
            let receipt = ReceiptOut {
                envelope: arrival.digest,
                gateway: arrival.signer.into(),
                kind: ReceiptKind::Stored,
                at,
                reason: None,
                level: envelope.level,
                attempt: 1,
            };
            // Whoever listens mostly confirms at once, and that says more.
            let may_wait = gateway.subscribers.is_connected(&recipient);
            drop(room.send(Errand { receipt, is_kept: false, may_wait }));
        }
        None => gateway.wake_outbox.notify_one(),
    }
    Ok(outcome)
}

/// Lets nothing wait for a message that ran out on its way; nothing is kept of it.
async fn pass_expired(
    gateway: &Gateway,
    arrival: Arrival,
    envelope: &Envelope,
    recipient: PeerId,
) -> sqlx::Result<()> {
    if envelope.lane_seq.is_none() || !gateway.store.peer_exists(&recipient).await? {
        return Ok(());
    }
    let inbound = inbound(arrival, envelope, Vec::new(), recipient, Vec::new());
    let origin = origin(gateway, arrival);
    gateway.store.pass_over_inbound(gateway.clock.now(), &inbound, origin).await?;
    gateway.subscribers.wake([&inbound.recipient]);
    Ok(())
}

fn origin(gateway: &Gateway, arrival: Arrival) -> Origin {
    match gateway.rosters.is_trusted(arrival.signer) {
        true => Origin::Known,
        false => Origin::Stranger,
    }
}

/// How a message was taken.
#[derive(Debug, Eq, PartialEq)]
enum Taken {
    New,
    Known,
    Refused(String),
}

/// Stores a message for one peer, if there is room for it; and when. With `sends_receipt` the receipt
/// is left to the caller.
async fn store(
    gateway: &Gateway,
    arrival: Arrival,
    envelope: &Envelope,
    bytes: Vec<u8>,
    recipient: PeerId,
    sends_receipt: bool,
) -> sqlx::Result<(Taken, Time)> {
    let refused = |reason: String| Ok((Taken::Refused(reason), gateway.clock.now()));
    let files = match files::taken_up(gateway, arrival, envelope).await? {
        Ok(files) => files,
        Err(reason) => return refused(reason),
    };
    let inbound = Arc::new(inbound(arrival, envelope, bytes, recipient, files.ids()));
    let recipient = &inbound.recipient;
    let (name, sender) = (recipient.to_string(), inbound.message.sender.to_string());
    let size = inbound.message.content.bytes.len() as u64;
    if !gateway.store.peer_exists(recipient).await? {
        return refused(format!("there is no peer {recipient} at this gateway"));
    }
    let origin = origin(gateway, arrival);
    let room = gateway.quotas.check_and_reserve(&name, &sender, size, origin).await?;
    if let Err(full) = &room
        && gateway.store.pass_over_inbound(gateway.clock.now(), &inbound, origin).await?
    {
        tracing::debug!(%full, "a message from elsewhere found no room");
        gateway.subscribers.wake([recipient]);
        return refused("the recipient's storage is full".to_owned());
    }
    // Else it is there already, and needs none.
    files.grant(gateway, envelope, recipient).await?;
    let received = receive(gateway, &inbound, sends_receipt).await;
    if matches!(received, Ok((Received::Refused(_), _))) {
        gateway.store.forget_reader(&files.remote, recipient).await?;
    }
    if room.is_ok() && !matches!(received, Ok((Received::Stored { .. }, _))) {
        gateway.quotas.release(&name, &sender, 1, size);
    }
    let (received, at) = received?;
    // Even a copy can bring out what waited behind it.
    gateway.subscribers.wake([recipient]);
    let taken = match received {
        Received::Stored { .. } => {
            gateway.store.count_received(recipient);
            Taken::New
        }
        Received::Duplicate => Taken::Known,
        Received::Refused(reason) => Taken::Refused(reason),
    };
    Ok((taken, at))
}

/// Two replicas that take the same lane at once may have to begin again.
async fn receive(
    gateway: &Gateway,
    inbound: &Arc<Inbound>,
    sends_receipt: bool,
) -> sqlx::Result<(Received, Time)> {
    let mut attempt = 1;
    loop {
        let now = gateway.clock.now();
        let order_wait = gateway.config.order_wait;
        match gateway.store.take_in(now, inbound.clone(), order_wait, !sends_receipt).await {
            Err(error) if attempt < STORE_ATTEMPTS => {
                tracing::debug!(%error, "a message from elsewhere was not stored; trying again");
            }
            outcome => return outcome.map(|received| (received, now)),
        }
        sleep(STORE_PAUSE * attempt).await;
        attempt += 1;
    }
}

fn inbound(
    arrival: Arrival,
    envelope: &Envelope,
    bytes: Vec<u8>,
    recipient: PeerId,
    file_ids: Vec<String>,
) -> Inbound {
    let content = &envelope.content;
    let to = match &envelope.to {
        Recipient::Peer(address) => Recipient::Peer(address.clone().seen_from(arrival.own)),
        other => other.clone(),
    };
    Inbound {
        message: Message {
            id: envelope.message_id,
            sender: envelope.sender.clone(),
            to,
            content: Content {
                bytes,
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
        },
        via: (envelope.sender.gateway != Some(arrival.signer)).then_some(arrival.signer),
        recipient,
        sent_at: envelope.sent_at.into(),
        lane_seq: envelope.lane_seq,
        after: envelope.after,
        envelope: arrival.digest,
        transport: arrival.transport.to_owned(),
    }
}

/// Owes the sender's gateway the reason why its message is not taken.
async fn refuse(
    gateway: &Gateway,
    arrival: Arrival,
    envelope: &Envelope,
    reason: &str,
) -> sqlx::Result<Outcome> {
    let now = gateway.clock.now();
    let refusal = OwedReceipt {
        answers: arrival.digest,
        kind: ReceiptKind::Refused,
        gateway: arrival.signer,
        reason: Some(reason),
        level: envelope.level,
        expires_at: (now + REFUSAL_LIFETIME).min(envelope.expires_at.into()),
    };
    gateway.store.owe_receipt(now, &refusal).await?;
    gateway.wake_outbox.notify_one();
    Ok(Outcome::Refused)
}
