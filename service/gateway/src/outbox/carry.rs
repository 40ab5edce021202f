//! One claimed delivery, from the plan to the receipt: does what the core's
//! [`Dispatch`](fieldpost_delivery::Dispatch) says.

use std::{borrow::Cow, collections::VecDeque, future::Future, pin::Pin, time::Duration};

use chrono::TimeDelta;
use fieldpost_delivery::{
    Action, Attempt, Claim, Correspondent, Dispatch, Effect, Event, Next, Place, ReceiptIn,
    Standing, Store as _, Target, Time, effect, signer_of,
};
use fieldpost_envelope::{
    Content, Envelope, Forward, MessageStatus, Recipient, SignError, SignedEnvelope,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{sleep, timeout},
};
use tracing::{Instrument as _, info_span};

use crate::{
    Gateway,
    outbox::{Heard, Outbox, Return, receipts},
    subscribers,
    telemetry::metrics as names,
};

/// Between attempts to record what came of an attempt.
const RECORD_PAUSE: Duration = Duration::from_millis(500);
/// How long it stays unrecorded that a transport took charge: mostly the recipient's gateway, or even
/// the recipient, has the message before, and one record says both.
const RECORD_TOGETHER: TimeDelta = TimeDelta::milliseconds(300);

/// What attempts in a lab say.
const LAB: &str = "lab: level 3 is for tests";

/// A send under way, and what it comes to.
type Sending<'a> = Pin<Box<dyn Future<Output = Event> + Send + 'a>>;

/// Carries one delivery as far as its claim allows; returns when it is to be tried again.
pub(super) async fn carry(outbox: &Outbox, claim: Claim) -> Option<Time> {
    let message = &claim.message;
    let span = info_span!(
        "outbox.deliver",
        message.id = %message.id,
        message.size_bytes = message.content.bytes.len(),
        delivery.attempt = claim.attempt,
    );
    outbox.gateway.traces.join(&span, &message.sender.peer, message.id);
    deliver(outbox, claim).instrument(span).await
}

async fn deliver(outbox: &Outbox, mut claim: Claim) -> Option<Time> {
    let plan = outbox.plan_delivery(&claim);
    let envelope = match sign(outbox, &mut claim).await {
        Ok(Ok(envelope)) => envelope,
        Ok(Err(error)) => {
            let reason = Some(format!("it cannot be put into an envelope: {error}"));
            record(outbox, &claim, &[], &Next::End { status: MessageStatus::Failed, reason }).await;
            return None;
        }
        Err(error) => return not_begun(&claim, &error),
    };
    let mut returns = outbox.returns.subscribe();
    let digest = envelope.digest();
    let mut waiting = outbox.awaited.wait_for(digest);
    if let Some(first) = plan.places.first() {
        let store = &outbox.gateway.store;
        let noted = patiently(&outbox.gateway, &claim, || {
            store.envelope_leaves(&claim, &digest, &first.transport)
        });
        if noted.await.is_none() {
            return Some(claim.claimed_until);
        }
    }
    if let Target::Remote(address) = &claim.target
        && let Some(home) = address.gateway
    {
        outbox.warm().wrote(outbox.gateway.clock.now(), home, claim.message.min_anonymity);
    }
    let dispatch = Dispatch::new(&claim, plan, &outbox.rules, &mut *outbox.rng());
    let mut journey = Journey {
        outbox,
        claim: &claim,
        target: claim.target.reached_through().unwrap_or_default(),
        envelope,
        digest,
        dispatch,
        has_left: false,
        unrecorded: None,
        early: Vec::new(),
        retry_at: None,
    };
    let mut sends = FuturesUnordered::new();
    journey.happen(Event::Begin, &mut sends).await;
    while !(journey.dispatch.has_ended() && sends.is_empty()) {
        let record_by = journey.unrecorded.as_ref().map(|unrecorded| unrecorded.record_by);
        let deadlines = journey.dispatch.next_deadline().into_iter().chain(record_by);
        let deadline = until(outbox, deadlines.min());
        let event = tokio::select! {
            Some(event) = sends.next() => event,
            Some(heard) = waiting.next() => {
                journey.hear(heard, &mut sends).await;
                continue;
            }
            returned = returns.recv(), if !journey.dispatch.has_ended() => {
                match journey.returned(returned) {
                    Some(event) => event,
                    None => continue,
                }
            }
            () = sleep(deadline) => Event::Wake,
        };
        journey.happen(event, &mut sends).await;
    }
    journey.record_left().await;
    for heard in journey.early.into_iter().chain(waiting.close()) {
        receipts::settle_or_log(&outbox.gateway, &heard).await;
    }
    journey.retry_at
}

fn not_begun(claim: &Claim, error: &sqlx::Error) -> Option<Time> {
    tracing::warn!(%error, "a claimed delivery could not set out");
    Some(claim.claimed_until)
}

/// A delivery on its way.
struct Journey<'a> {
    outbox: &'a Outbox,
    claim: &'a Claim,
    target: String,
    envelope: SignedEnvelope,
    digest: [u8; 32],
    dispatch: Dispatch,
    /// The store knows that the envelope has left, so receipts for it can be settled.
    has_left: bool,
    /// That it has left is yet to be recorded.
    unrecorded: Option<Unrecorded>,
    /// Receipts that came before that.
    early: Vec<Heard>,
    /// When it is to be tried again, once it has ended without success.
    retry_at: Option<Time>,
}

/// Attempts of which the last took charge, and what follows.
struct Unrecorded {
    attempts: Vec<Attempt>,
    next: Next,
    record_by: Time,
}

impl<'a> Journey<'a> {
    /// Lets something happen, and does what follows from it.
    async fn happen(&mut self, event: Event, sends: &mut FuturesUnordered<Sending<'a>>) {
        let now = self.outbox.gateway.clock.now();
        if self.unrecorded.as_ref().is_some_and(|unrecorded| unrecorded.record_by <= now) {
            self.record_left().await;
        }
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.outbox.gateway.clock.now();
            let actions: Vec<Action> = self.dispatch.handle(now, event).collect();
            for action in actions {
                match action {
                    Action::Send(place) => sends.push(self.send(place)),
                    Action::Record { mut attempts, next } => {
                        attempts.iter_mut().for_each(|attempt| self.note_hops(attempt));
                        self.record_left().await;
                        if self.may_wait(&next) {
                            let record_by = now + RECORD_TOGETHER;
                            self.unrecorded = Some(Unrecorded { attempts, next, record_by });
                            continue;
                        }
                        let recorded = record(self.outbox, self.claim, &attempts, &next).await;
                        self.has_left |= recorded && matches!(next, Next::Sent { .. });
                        if let Next::Retry { at } | Next::Wait { until: Some(at), .. } = next {
                            self.retry_at = Some(at);
                        }
                    }
                    Action::Learn { transport, outcome } => {
                        let gateway = &self.outbox.gateway;
                        if gateway.learned.learn(now, &transport, &self.target, outcome) {
                            gateway.wake_outbox.notify_one();
                        }
                    }
                }
            }
            if self.has_left {
                for heard in std::mem::take(&mut self.early) {
                    events.extend(self.settle(&heard).await);
                }
            }
        }
    }

    /// Whether a record can wait for the receipt: until that comes, nothing but a repetition after a
    /// crash depends on it.
    fn may_wait(&self, next: &Next) -> bool {
        let is_answered = matches!(signer_of(&self.claim.target), Some(Correspondent::Gateway(_)));
        matches!(next, Next::Sent { .. })
            && is_answered
            && self.early.is_empty()
            && !self.dispatch.has_ended()
    }

    /// Records that it has left, if that has waited.
    async fn record_left(&mut self) {
        if let Some(Unrecorded { attempts, next, .. }) = self.unrecorded.take() {
            self.has_left |= record(self.outbox, self.claim, &attempts, &next).await;
        }
    }

    fn note_hops(&self, attempt: &mut Attempt) {
        let mut transports = self.outbox.gateway.transports.iter();
        let transport = transports.find(|one| one.name() == attempt.transport);
        attempt.hops = transport.and_then(|transport| transport.hops(&self.target));
    }

    /// What it means for this delivery that something has come into reach.
    fn returned(&self, returned: Result<Return, RecvError>) -> Option<Event> {
        match returned {
            Ok(Return { transport, targets }) if targets.contains(&self.target) => {
                Some(Event::Returned { transport: transport.to_owned() })
            }
            Ok(_) => None,
            // Planning anew once too often costs a repetition.
            Err(RecvError::Lagged(_)) => Some(Event::Returned { transport: String::new() }),
            Err(RecvError::Closed) => None,
        }
    }

    /// Takes a receipt; one that is faster than the record of its envelope waits for that.
    async fn hear(&mut self, heard: Heard, sends: &mut FuturesUnordered<Sending<'a>>) {
        let kind = heard.receipt.kind;
        // That is how it stands while nothing but its leaving is to be recorded.
        let standing = Standing { status: MessageStatus::Sent, stored: false };
        let effect = effect(standing, &self.claim.target, &heard.receipt);
        if effect == Some(Effect::Stored)
            && let Some(Unrecorded { attempts, .. }) = self.unrecorded.take()
        {
            // Should this fail the receipt is not settled, and all is done again.
            if record_arrival(self.outbox, self.claim, &attempts).await {
                self.has_left = true;
                self.happen(Event::Receipt(kind), sends).await;
            }
            return;
        }
        if let Some(Effect::Ends {
            status: status @ (MessageStatus::Delivered | MessageStatus::Read),
            ..
        }) = effect
            && let Some(Unrecorded { attempts, .. }) = &self.unrecorded
            && record_delivered(self.outbox, self.claim, attempts, status, &heard).await
        {
            (self.unrecorded, self.has_left) = (None, true);
            self.happen(Event::Receipt(kind), sends).await;
            return;
        }
        self.record_left().await;
        if !self.has_left {
            self.early.push(heard);
        } else if let Some(event) = self.settle(&heard).await {
            self.happen(event, sends).await;
        }
    }

    async fn settle(&self, heard: &Heard) -> Option<Event> {
        let ReceiptIn { signer, kind, .. } = heard.receipt;
        let is_settled = receipts::settle_or_log(&self.outbox.gateway, heard).await;
        let is_theirs = signer_of(&self.claim.target) == Some(signer);
        (is_settled && is_theirs).then_some(Event::Receipt(kind))
    }

    fn send(&self, place: Place) -> Sending<'a> {
        let (outbox, name) = (self.outbox, place.transport);
        let transport = outbox.gateway.transports.iter().find(|one| one.name() == name).cloned();
        let (target, envelope) = (self.target.clone(), self.envelope.clone());
        let digest = self.digest;
        outbox.gateway.learned.using(outbox.gateway.clock.now(), &name, &target);
        // Silence is the core's to judge; this only bounds how long a hung transport is held on to.
        let limit = 2 * outbox.rules.failover_timeout;
        Box::pin(async move {
            let Some(transport) = transport else {
                let reason = "this gateway has no such transport".to_owned();
                return Event::HardFailure { transport: name, reason };
            };
            let outcome = timeout(limit, transport.send(&target, envelope)).await;
            let (result, event) = match outcome {
                Ok(Ok(())) => ("sent", Event::TookCharge { transport: name, envelope: digest }),
                Ok(Err(error)) => {
                    let reason = error.to_string();
                    ("failed", Event::HardFailure { transport: name, reason })
                }
                Err(_) => {
                    let reason = format!("no answer within {} s", limit.as_secs_f64());
                    ("failed", Event::HardFailure { transport: name, reason })
                }
            };
            metrics::counter!(
                names::ATTEMPTS_TOTAL, "transport" => transport.name(), "result" => result,
            )
            .increment(1);
            event
        })
    }
}

/// Records what came of attempts, and what follows. Whether it was recorded.
async fn record(outbox: &Outbox, claim: &Claim, attempts: &[Attempt], next: &Next) -> bool {
    let gateway = &outbox.gateway;
    let attempts = with_lab(gateway, attempts);
    let recorded = patiently(gateway, claim, || {
        gateway.store.record(gateway.clock.now(), claim, &attempts, next)
    });
    let recorded = recorded.await;
    let is_recorded = recorded.is_some();
    subscribers::tell_senders(gateway, recorded.flatten().as_slice());
    is_recorded
}

/// Records that the recipient's gateway has what left by the last of `attempts`. Whether it was
/// recorded.
async fn record_arrival(outbox: &Outbox, claim: &Claim, attempts: &[Attempt]) -> bool {
    let gateway = &outbox.gateway;
    let attempts = with_lab(gateway, attempts);
    let recorded = patiently(gateway, claim, || {
        gateway.store.record_arrival(gateway.clock.now(), claim, &attempts)
    });
    recorded.await.is_some()
}

/// Records that the recipient has what left by the last of `attempts`, tells its sender and answers
/// the receipt that says so. Whether that was possible in one: if not, nothing has been recorded.
async fn record_delivered(
    outbox: &Outbox,
    claim: &Claim,
    attempts: &[Attempt],
    status: MessageStatus,
    heard: &Heard,
) -> bool {
    let gateway = &outbox.gateway;
    let attempts = with_lab(gateway, attempts);
    let now = gateway.clock.now();
    let at = heard.receipt.at.min(now);
    let recorded = gateway.store.record_delivered(now, claim, &attempts, status, at).await;
    let Ok(Some(settled)) = recorded else { return false };
    subscribers::tell_senders(gateway, &[settled]);
    receipts::answer(gateway, heard, claim.message.min_anonymity);
    true
}

/// Writes down with as much patience as the claim has: what is not is done again.
async fn patiently<T, F>(gateway: &Gateway, claim: &Claim, record: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = sqlx::Result<T>>,
{
    loop {
        let error = match record().await {
            Ok(recorded) => return Some(recorded),
            Err(error) => error,
        };
        let left = claim.claimed_until - gateway.clock.now();
        if left < TimeDelta::from_std(RECORD_PAUSE).unwrap_or_default() {
            tracing::warn!(%error, "a delivery could not be written down while its claim held; it is tried again");
            return None;
        }
        sleep(RECORD_PAUSE).await;
    }
}

/// In a lab, attempts over the mixnet say that it did not have to hide anybody.
fn with_lab<'a>(gateway: &Gateway, attempts: &'a [Attempt]) -> Cow<'a, [Attempt]> {
    if !gateway.config.htx.lab || !attempts.iter().any(|one| one.transport == "htx") {
        return attempts.into();
    }
    let mut marked = attempts.to_vec();
    for attempt in marked.iter_mut().filter(|one| one.transport == "htx") {
        attempt.reason = Some(match attempt.reason.take() {
            Some(reason) => format!("{reason}; {LAB}"),
            None => LAB.to_owned(),
        });
    }
    marked.into()
}

/// The envelope of a claimed delivery, which loses its content to it. The outer error is the store's.
async fn sign(
    outbox: &Outbox,
    claim: &mut Claim,
) -> sqlx::Result<Result<SignedEnvelope, SignError>> {
    let identity = outbox.gateway.store.identity()?;
    let message = &claim.message;
    // What a peer of another gateway said to a group here is passed on as its gateway signed it.
    if let (Some(_), Target::Remote(recipient)) = (message.sender.gateway, &claim.target) {
        let forward = Forward {
            recipient: recipient.clone(),
            lane_seq: claim.lane_seq,
            after: claim.after,
            original: outbox.gateway.store.group_original(message).await?,
        };
        return Ok(forward.sign(&identity.signing_key));
    }
    let bytes = std::mem::take(&mut claim.message.content.bytes);
    let message = &claim.message;
    let sender = message.sender.clone().qualified(identity.gateway_id);
    let recipient = match &claim.target {
        Target::Local(peer) => Recipient::from(peer.clone()),
        // A phone has no gateway; what it gets is made of the envelope by our own transport.
        Target::Remote(address) => Recipient::from(address.clone().qualified(identity.gateway_id)),
        Target::Group { id, home } => Recipient::Group { id: id.clone(), home: Some(*home) },
        Target::Broadcast(_) => Recipient::Broadcast,
    };
    let to = match &message.to {
        Recipient::Group { id, home: None } => {
            Recipient::Group { id: id.clone(), home: Some(identity.gateway_id) }
        }
        Recipient::Peer(_) | Recipient::Group { .. } | Recipient::Broadcast => recipient.clone(),
    };
    let content = &message.content;
    let envelope = Envelope {
        sender,
        recipient,
        to,
        message_id: message.id,
        sent_at: claim.accepted_at.into(),
        expires_at: message.expires_at.into(),
        priority: message.priority,
        level: message.min_anonymity,
        lane_seq: claim.lane_seq,
        after: claim.after,
        content: Content {
            bytes,
            is_text: content.is_text,
            content_type: content.content_type.clone(),
            message_type: content.message_type.clone(),
            metadata: content.metadata.clone(),
            file_ids: content.file_ids.clone(),
            labels: content.labels.clone(),
        },
    };
    Ok(envelope.into_signed(&identity.signing_key))
}

/// From now to a deadline; a moment when there is none, as then only sends are waited for.
fn until(outbox: &Outbox, deadline: Option<Time>) -> Duration {
    deadline.map_or(Duration::from_secs(60), |deadline| {
        (deadline - outbox.gateway.clock.now()).to_std().unwrap_or_default()
    })
}
