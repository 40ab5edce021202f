//! What comes: what the node reports of phones, of other gateways, and of what was sent.

use fieldpost_bitchat::{Command, MeshId, Report, payload::exchange::Exchange};
use fieldpost_envelope::{PeerId, ReceiptKind, SignedRoster, Timestamp};
use tracing::{debug, warn};
use uuid::Uuid;

use super::Driver;
use crate::{
    HeardRoster,
    ble::{FromPhone, PhoneFile, lock},
};

impl Driver {
    pub(super) fn on_report(&mut self, report: Report) {
        let now = self.now().at;
        match report {
            Report::Peer(peer) => {
                self.has_news = true;
                if peer.is_gateway {
                    self.gateways.appeared(now, peer.id);
                }
            }
            Report::PeerGone { id, .. } => {
                self.has_news = true;
                self.gateways.vanished(id);
            }
            Report::KeyConflict { id } => {
                warn!(phone = %id, "somebody uses a phone's name with other keys; it is not believed");
            }
            Report::Verified { .. } => self.has_news = true,
            Report::Public { from, message_id, timestamp_ms, text } => {
                // What another gateway's peers say comes as an envelope, too.
                let Some(phone) = self.phone(from) else { return };
                let Ok(sent_at) = Timestamp::try_from(timestamp_ms) else { return };
                self.say(FromPhone::Public { from: phone, id: message_id, sent_at, text });
            }
            Report::Private { to, from, message_id, text } => {
                if let Some(peer) = self.hosted.peer(to).cloned() {
                    let from = PeerId::phone(from.0);
                    self.say(FromPhone::Private { to: peer, from, message_id, text });
                }
            }
            Report::File { to, from, file } => {
                let peer = to.and_then(|to| self.hosted.peer(to).cloned());
                let Some(phone) = self.phone(from).filter(|_| to.is_none() || peer.is_some())
                else {
                    return;
                };
                let file =
                    PhoneFile { name: file.name, mime_type: file.mime_type, content: file.content };
                self.say(FromPhone::File { to: peer, from: phone, file });
            }
            Report::Receipt { from, to, message_id, kind } => {
                let envelope = self.hosted.envelope(&(from, to, message_id));
                self.hosted.ended(message_id, to);
                let kind = match kind {
                    fieldpost_bitchat::ReceiptKind::Delivered => ReceiptKind::Delivered,
                    fieldpost_bitchat::ReceiptKind::Read => ReceiptKind::Read,
                };
                if let Some(envelope) = envelope {
                    let phone = PeerId::phone(to.0);
                    self.say(FromPhone::Receipt { phone, envelope, kind });
                }
            }
            Report::Gateway { from, bytes } => self.on_exchange(from, &bytes),
            Report::Sent { id, may_fail_on_apple } => {
                if may_fail_on_apple {
                    debug!(message.id = %id, "a public text is so long that iPhones may not show it");
                }
                self.handed_over(id);
                self.arrived(id, Ok(()));
            }
            Report::Failed { id, to, reason } => {
                if let Some((judged, of, verdict)) = &mut self.judged
                    && (*judged, *of) == (id, to)
                {
                    *verdict = Some(reason);
                }
                if let Some(to) = to {
                    self.hosted.ended(id, to);
                }
                self.arrived(id, Err(reason));
            }
            Report::Favourite { .. } | Report::Pong { .. } => {}
        }
    }

    /// A file is on its way to a phone, which will not say that it has it.
    fn handed_over(&mut self, id: Uuid) {
        let phones: Vec<MeshId> = self.hosted.recipients(id).collect();
        for phone in phones {
            if let Some(envelope) = self.hosted.envelope_to(id, phone) {
                self.hosted.ended(id, phone);
                let phone = PeerId::phone(phone.0);
                self.say(FromPhone::Receipt { phone, envelope, kind: ReceiptKind::Stored });
            }
        }
    }

    fn on_exchange(&mut self, from: MeshId, bytes: &[u8]) {
        let (now, wall) = (self.now().at, self.wall());
        let exchange = match Exchange::decode(bytes) {
            Ok(exchange) => exchange,
            Err(error) => return debug!(%error, "a node said something that is not understood"),
        };
        if let Exchange::Hello(hello) = exchange {
            let key = self.node.peers().find(|peer| peer.id == from).map(|peer| peer.noise_key);
            // A session may stand before the announce has come; the hello is said again.
            let Some(noise_key) = key else { return };
            match self.gateways.hello(now, wall, (from, noise_key), &hello) {
                Ok(answer) => {
                    self.has_news = true;
                    if let Some(gateway) = self.gateways.gateway_of(wall, from) {
                        debug!(gateway.id = %gateway, "a gateway is on the mesh");
                    }
                    answer.into_iter().for_each(|answer| self.tell(answer));
                    let returned = self.gateways.take_returned();
                    if !returned.is_empty() {
                        let names = returned.iter().map(ToString::to_string);
                        lock(&self.shared.returned).extend(names);
                        // Whoever waits for changes looks, though the same are in reach.
                        self.outlets.reach.send_modify(|_| {});
                    }
                }
                Err(refusal) => debug!(?refusal, "a node's hello is not believed"),
            }
            return;
        }
        let Some(gateway) = self.gateways.gateway_of(wall, from) else {
            return debug!("a node that has shown no certificate was not listened to");
        };
        match exchange {
            Exchange::Envelope(bytes) => {
                // Who hears no answer sends it again.
                if self.outlets.inbox.try_send(bytes).is_err() {
                    debug!("an envelope found no room");
                }
            }
            Exchange::Roster(bytes) => {
                let number = SignedRoster::decode(&bytes).map(|roster| roster.number());
                // Radio range is no local network: names lead here only where the gateway is
                // trusted by its id.
                let heard = HeardRoster { bytes, is_nearby: false };
                if let (Ok(number), Ok(())) = (number, self.outlets.rosters.try_send(heard)) {
                    self.gateways.passed_up(gateway, number);
                }
            }
            Exchange::Wanted(number) => self.gateways.wanted(from, number),
            Exchange::Hello(_) => {}
        }
    }

    /// The phone of a name; `None` for nodes and for peers of other gateways.
    fn phone(&self, id: MeshId) -> Option<PeerId> {
        let peer = self.node.peers().find(|peer| peer.id == id)?;
        (!peer.is_gateway && !peer.is_hosted).then(|| PeerId::phone(id.0))
    }

    fn say(&mut self, said: FromPhone) {
        if self.spoken.len() < SPOKEN {
            self.spoken.push_back(said);
            return;
        }
        warn!("phones say more than is taken; something is left out");
        if let FromPhone::Private { to, from, message_id, .. } = said
            && let (Some(to), Some(from)) = (self.hosted.mesh_id(&to), MeshId::parse(from.as_str()))
        {
            // It is taken when it comes again.
            self.command(Command::Forget { to, from, message_id });
        }
    }
}

/// What phones have said that waits besides the channel.
const SPOKEN: usize = 1024;
