//! What phones in range say: their messages into inboxes, their receipts to the deliveries that wait
//! for them (design, sections 5 and 7).
//!
//! That a phone holds the name it speaks under is proven by its session or its signature. It signs
//! nothing that could be shown to others, so what it says is believed here alone and never passed on.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use fieldpost_delivery::{
    Content, Correspondent, Inbound, Message, ReceiptIn, Received, Time, Wishes,
};
use fieldpost_envelope::{
    AnonymityLevel, MessageId, PeerAddress, PeerId, Priority, ReceiptKind, Recipient,
};
use fieldpost_transport::{BleTransport, FromPhone, Phone, PhoneFile};
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tracing::instrument;
use uuid::Uuid;

use crate::{
    Gateway,
    outbox::{self, Heard},
    store::{
        Origin,
        phones::{HeardPhone, PhoneMessage},
    },
};

/// How long a message from a phone is kept for a client that does not fetch it.
const PRIVATE_LIFETIME: TimeDelta = TimeDelta::days(7);
const PUBLIC_LIFETIME: TimeDelta = TimeDelta::hours(1);
/// Public messages and files of one phone that are taken in a minute; further ones are not stored.
const PUBLIC_A_MINUTE: u32 = 30;
/// Phones of which that is counted; when there are more, all are forgiven.
const COUNTED: usize = 1024;
/// The most listeners that one public message is stored for.
const MAX_LISTENERS: usize = 10_000;
const STORE_ATTEMPTS: u32 = 3;
const STORE_PAUSE: Duration = Duration::from_millis(200);
/// How often it is noted who was heard.
const NOTE_EVERY: Duration = Duration::from_secs(2);
/// Ids of what carries no UUID of its own.
const NAMESPACE: Uuid = Uuid::from_u128(0x5f0c_8f0e_6f62_5d0f_9a53_b1c0_3c5d_7e21);

/// Takes in what phones say, until the transport shuts.
pub async fn listen(gateway: &Gateway, ble: &BleTransport, name: &'static str) {
    let mut rates = Rates::default();
    loop {
        gateway.readiness.until_ready().await;
        let Some(said) = ble.receive_from_phone().await else { return };
        if let Err(error) = take(gateway, ble, name, &mut rates, said).await {
            tracing::warn!(%error, "what came from a phone could not be stored");
        }
    }
}

/// Notes which phones are there, so that they are listed and their keys stay pinned. Runs until it is
/// dropped.
pub async fn note(gateway: &Gateway, ble: &BleTransport) {
    let mut present = ble.phones();
    let mut noted: HashMap<PeerId, Phone> = HashMap::new();
    loop {
        gateway.readiness.until_ready().await;
        let now = present.borrow_and_update().clone();
        let fresh: Vec<HeardPhone> = now
            .iter()
            .filter(|(id, phone)| noted.get(*id) != Some(*phone))
            .map(|(id, phone)| heard(id, phone))
            .collect();
        match gateway.store.note_phones(&fresh).await {
            Ok(()) => noted = now.iter().map(|(id, phone)| (id.clone(), phone.clone())).collect(),
            Err(error) => tracing::debug!(%error, "who was heard was not noted"),
        }
        sleep(NOTE_EVERY).await;
        if present.changed().await.is_err() {
            return;
        }
    }
}

fn heard(id: &PeerId, phone: &Phone) -> HeardPhone {
    HeardPhone {
        id: id.clone(),
        nickname: phone.nickname.clone(),
        hops: phone.hops,
        verified: phone.is_verified,
        noise_key: phone.noise_key,
        signing_key: phone.signing_key,
        heard_at: phone.heard_at.into(),
    }
}

#[instrument(name = "phones.take", skip_all, fields(transport.name = name))]
async fn take(
    gateway: &Gateway,
    ble: &BleTransport,
    name: &'static str,
    rates: &mut Rates,
    said: FromPhone,
) -> sqlx::Result<()> {
    let now = gateway.clock.now();
    match said {
        FromPhone::Private { to, from, message_id, text } => {
            let message = PhoneMessage { phone: from.to_string(), peer: to, message_id };
            let taken = private(gateway, name, &from, &message, text).await;
            if !matches!(taken, Ok(true)) {
                // Not acknowledged, it comes again, and is then taken for new.
                ble.forget(&from, &message.peer, &message.message_id).await;
            }
            taken.map(drop)
        }
        FromPhone::Public { from, id, sent_at, text } => {
            if !rates.admit(gateway.clock.instant(), &from) {
                tracing::debug!(phone.id = %from, "a phone says too much in public");
                return Ok(());
            }
            let content = text_content(text);
            let arrival = Arrival {
                name,
                from,
                id,
                named: None,
                digest: digest(&[b"public", id.as_bytes()]),
                sent_at: Time::from(sent_at).min(now),
                content,
            };
            for listener in listeners(gateway, &arrival.from).await? {
                arrival.store(gateway, listener, true).await?;
            }
            Ok(())
        }
        FromPhone::File { to, from, file } => {
            if !rates.admit(gateway.clock.instant(), &from) {
                return Ok(());
            }
            let recipient = to.as_ref().map(PeerId::as_str).unwrap_or_default();
            let digest = digest(&[
                b"file",
                from.as_str().as_bytes(),
                recipient.as_bytes(),
                file.name.as_deref().unwrap_or_default().as_bytes(),
                &file.content,
            ]);
            let id = Uuid::new_v5(&NAMESPACE, &digest);
            let content = file_content(file);
            let arrival = Arrival { name, from, id, digest, named: None, sent_at: now, content };
            match to {
                Some(to) => arrival.store(gateway, to, false).await.map(drop),
                None => {
                    for listener in listeners(gateway, &arrival.from).await? {
                        arrival.store(gateway, listener, true).await?;
                    }
                    Ok(())
                }
            }
        }
        FromPhone::Receipt { phone, envelope, kind } => {
            receipt(gateway, &phone, envelope, kind).await
        }
    }
}

/// Whether a private message is there, or was.
async fn private(
    gateway: &Gateway,
    name: &'static str,
    from: &PeerId,
    message: &PhoneMessage,
    text: String,
) -> sqlx::Result<bool> {
    let now = gateway.clock.now();
    let digest = digest(&[
        b"private",
        from.as_str().as_bytes(),
        message.peer.as_str().as_bytes(),
        message.message_id.as_bytes(),
    ]);
    let id =
        message.message_id.parse::<Uuid>().unwrap_or_else(|_| Uuid::new_v5(&NAMESPACE, &digest));
    let content = text_content(text);
    let named = Some(message);
    let arrival = Arrival { name, from: from.clone(), id, digest, named, sent_at: now, content };
    let taken = arrival.store(gateway, message.peer.clone(), false).await?;
    // What was confirmed before is said again.
    gateway.wake_outbox.notify_one();
    Ok(taken)
}

async fn receipt(
    gateway: &Gateway,
    phone: &PeerId,
    envelope: [u8; 32],
    kind: ReceiptKind,
) -> sqlx::Result<()> {
    let Some(signer) = Correspondent::phone(phone) else { return Ok(()) };
    let at = gateway.clock.now();
    let receipt = ReceiptIn { envelope, signer, kind, at, reason: None };
    // Nobody answers it, so its own digest is never named.
    if let Err(heard) = gateway.awaited.hand(Heard { receipt, digest: [0; 32] }) {
        outbox::settle(gateway, &heard).await?;
    }
    // The next of the lane may go.
    gateway.wake_outbox.notify_one();
    Ok(())
}

async fn listeners(gateway: &Gateway, from: &PeerId) -> sqlx::Result<Vec<PeerId>> {
    gateway.store.broadcast_listeners(from, MAX_LISTENERS).await
}

/// Something of a phone's that has come.
struct Arrival<'m> {
    name: &'static str,
    from: PeerId,
    id: Uuid,
    digest: [u8; 32],
    /// What the phone calls it, if it is to be acknowledged.
    named: Option<&'m PhoneMessage>,
    sent_at: Time,
    content: Content,
}

impl Arrival<'_> {
    /// Stores it for one peer, if there is room; whether it is there.
    async fn store(&self, gateway: &Gateway, to: PeerId, is_public: bool) -> sqlx::Result<bool> {
        let now = gateway.clock.now();
        let recipient = match is_public {
            true => Recipient::Broadcast,
            false => Recipient::from(to.clone()),
        };
        let lifetime = if is_public { PUBLIC_LIFETIME } else { PRIVATE_LIFETIME };
        let inbound = Arc::new(Inbound {
            message: Message {
                id: MessageId(self.id),
                sender: PeerAddress::local(self.from.clone()),
                to: recipient,
                content: self.content.clone(),
                expires_at: now + lifetime,
                priority: Priority::Normal,
                min_anonymity: AnonymityLevel::NONE,
                wishes: Wishes::default(),
            },
            via: None,
            recipient: to.clone(),
            sent_at: self.sent_at,
            lane_seq: None,
            after: None,
            envelope: self.digest,
            transport: self.name.to_owned(),
        });
        let (name, sender) = (to.to_string(), self.from.to_string());
        let size = self.content.bytes.len() as u64;
        let reserved = gateway.quotas.check_and_reserve(&name, &sender, size, Origin::Stranger);
        if let Err(full) = reserved.await? {
            tracing::debug!(%full, "a phone's message found no room");
            return Ok(false);
        }
        let received = self.name_and_take_in(gateway, &inbound).await;
        if !matches!(received, Ok(Received::Stored { .. })) {
            gateway.quotas.release(&name, &sender, 1, size);
        }
        match received? {
            Received::Stored { .. } => {
                gateway.subscribers.wake([&to]);
                gateway.store.count_received(&to);
                Ok(true)
            }
            Received::Duplicate => Ok(true),
            Received::Refused(reason) => {
                tracing::debug!(reason, "a phone's message was not taken");
                Ok(false)
            }
        }
    }

    /// Only what has room is named, so that a phone that floods fills no table. The name is there first:
    /// without it the message would never be acknowledged.
    async fn name_and_take_in(
        &self,
        gateway: &Gateway,
        inbound: &Arc<Inbound>,
    ) -> sqlx::Result<Received> {
        if let Some(message) = self.named {
            let now = gateway.clock.now();
            gateway.store.note_phone_message(now, &self.digest, message).await?;
        }
        take_in(gateway, inbound).await
    }
}

async fn take_in(gateway: &Gateway, inbound: &Arc<Inbound>) -> sqlx::Result<Received> {
    let mut attempt = 1;
    loop {
        let order_wait = gateway.config.order_wait;
        let now = gateway.clock.now();
        match gateway.store.take_in(now, inbound.clone(), order_wait, true).await {
            Err(error) if attempt < STORE_ATTEMPTS => {
                tracing::debug!(%error, "a phone's message was not stored; trying again");
            }
            outcome => return outcome,
        }
        sleep(STORE_PAUSE * attempt).await;
        gateway.readiness.until_ready().await;
        attempt += 1;
    }
}

fn text_content(text: String) -> Content {
    Content { bytes: text.replace('\0', "").into_bytes(), is_text: true, ..Content::default() }
}

fn file_content(file: PhoneFile) -> Content {
    let clean = |text: String| text.chars().filter(|c| *c != '\0').take(200).collect::<String>();
    let metadata = file.name.map(|name| serde_json::json!({ "filename": clean(name) }).to_string());
    Content {
        bytes: file.content,
        is_text: false,
        content_type: file.mime_type.map(clean).filter(|kind| kind.is_ascii()),
        metadata,
        ..Content::default()
    }
}

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(b"fieldpost-phone-v1");
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// How much each phone has said in public in this minute.
#[derive(Default)]
struct Rates {
    since: Option<Instant>,
    said: HashMap<PeerId, u32>,
}

impl Rates {
    fn admit(&mut self, now: Instant, phone: &PeerId) -> bool {
        let is_over = self.since.is_none_or(|since| now - since >= Duration::from_secs(60));
        if is_over || self.said.len() >= COUNTED && !self.said.contains_key(phone) {
            self.said.clear();
            self.since = Some(now);
        }
        let said = self.said.entry(phone.clone()).or_default();
        *said += 1;
        *said <= PUBLIC_A_MINUTE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_phone_that_floods_is_not_listened_to_until_the_next_minute() {
        let (mut rates, start) = (Rates::default(), Clock::default().instant());
        let (loud, quiet) = (PeerId::phone([1; 8]), PeerId::phone([2; 8]));
        let admitted = (0..100).filter(|_| rates.admit(start, &loud)).count();
        assert_eq!(admitted, PUBLIC_A_MINUTE as usize);
        assert!(rates.admit(start, &quiet));
        assert!(rates.admit(start + Duration::from_secs(60), &loud));
    }

    #[test]
    fn parts_of_a_name_cannot_be_shifted_into_each_other() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
    }
}
