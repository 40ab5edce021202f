//! What leaves: envelopes and words for other nodes, and what becomes messages for phones.

use std::collections::{BTreeSet, VecDeque};

use fieldpost_bitchat::{Command, FailReason, MeshId, payload::exchange::Exchange};
use fieldpost_envelope::{Envelope, GatewayId, PeerId};
use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;
use uuid::Uuid;

use super::{Answer, Driver, Request};
use crate::{
    SendError,
    ble::{
        BROADCAST,
        gateways::{Content, Outgoing},
        phones::{ForPhone, text_of},
    },
};

/// What goes to one node.
#[derive(Default)]
pub(super) struct Way {
    under_way: usize,
    waiting: VecDeque<Load>,
    /// What fails at once makes place for the next without a call inside the call.
    is_advancing: bool,
}

/// Something on its way to a node.
pub(super) enum Load {
    Own(Content),
    Envelope {
        bytes: Vec<u8>,
        digest: [u8; 32],
        answer: Option<Answer>,
        _room: Option<OwnedSemaphorePermit>,
    },
}

impl Driver {
    pub(super) fn on_request(&mut self, request: Request) {
        match request {
            Request::ToGateway { gateway, envelope, digest, answer, room } => {
                let target = || gateway.to_string();
                match self.node_of(gateway) {
                    Some(id) => self.send_envelope(id, envelope, digest, Some(answer), Some(room)),
                    None => give(answer, Err(SendError::Unreachable { target: target() })),
                }
            }
            Request::ToPhone { phone, envelope, digest, answer } => {
                let sent = self.send_to_phone(phone, &envelope, digest);
                give(answer, sent);
            }
            Request::Broadcast { envelope, bytes, digest, answer } => {
                let sent = self.broadcast(&envelope, &bytes, digest);
                give(answer, sent);
            }
            Request::Acknowledge { phone, peer, message_id, kind, answer } => {
                let sent = self.hosted.mesh_id(&peer).ok_or_else(|| off_air(&peer)).map(|from| {
                    let to = phone;
                    self.command(Command::SendReceipt { from, to, message_id, kind });
                });
                give(answer, sent);
            }
            Request::Forget { phone, peer, message_id } => {
                if let Some(to) = self.hosted.mesh_id(&peer) {
                    self.command(Command::Forget { to, from: phone, message_id });
                }
            }
        }
    }

    /// The node of a gateway that is reached over the fewest links, of several the one heard last.
    fn node_of(&self, gateway: GatewayId) -> Option<MeshId> {
        let nodes: BTreeSet<MeshId> = self.gateways.nodes_of(self.wall(), gateway).collect();
        let peers = self.node.peers().filter(|peer| nodes.contains(&peer.id));
        peers.min_by_key(|peer| (peer.hops, std::cmp::Reverse(peer.heard_at))).map(|peer| peer.id)
    }

    fn send_envelope(
        &mut self,
        id: MeshId,
        bytes: Vec<u8>,
        digest: [u8; 32],
        answer: Option<Answer>,
        room: Option<OwnedSemaphorePermit>,
    ) {
        let is_same =
            |load: &Load| matches!(load, Load::Envelope { digest: other, .. } if *other == digest);
        let is_waiting = self.ways.get(&id).is_some_and(|way| way.waiting.iter().any(is_same));
        let is_under_way = self.under_way.values().any(|(to, load)| *to == id && is_same(load));
        let has_room = room.is_some()
            || self.ways.get(&id).is_none_or(|way| way.waiting.len() < BROADCASTS_WAITING);
        if !has_room {
            return debug!("a broadcast is left out: too many wait for a node already");
        }
        if is_waiting || is_under_way {
            // It is asked for again since nobody has answered yet; a second copy would be slower.
            if let Some(answer) = answer {
                give(answer, Ok(()));
            }
            return;
        }
        self.enqueue(id, Load::Envelope { bytes, digest, answer, _room: room });
    }

    fn send_to_phone(
        &mut self,
        phone: MeshId,
        envelope: &Envelope,
        digest: [u8; 32],
    ) -> Result<(), SendError> {
        let sender = &envelope.sender.peer;
        let from = self.hosted.mesh_id(sender).ok_or_else(|| off_air(sender))?;
        let id = envelope.message_id.0;
        if !self.hosted.leaves((from, phone, id), digest) {
            return Ok(());
        }
        let command = match ForPhone::of(id, &envelope.content) {
            ForPhone::Text(text) => Command::SendPrivate { from, to: phone, message_id: id, text },
            ForPhone::File(file) => Command::SendFile { from, to: Some(phone), file_id: id, file },
        };
        self.judge(command, id, Some(phone)).map_err(|reason| {
            self.hosted.ended(id, phone);
            send_error(&phone.to_string(), reason)
        })
    }

    /// Phones hear a broadcast in the name of the hosted peer, gateways get the envelope, so that it
    /// stays one message whatever brings it.
    fn broadcast(
        &mut self,
        envelope: &Envelope,
        bytes: &[u8],
        digest: [u8; 32],
    ) -> Result<(), SendError> {
        let wall = self.wall();
        let others: BTreeSet<GatewayId> =
            self.gateways.present(wall).map(|(_, gateway)| gateway).collect();
        let nodes: Vec<MeshId> =
            others.iter().filter_map(|gateway| self.node_of(*gateway)).take(MOST_HEARERS).collect();
        let has_nodes = !nodes.is_empty();
        for id in nodes {
            self.send_envelope(id, bytes.to_vec(), digest, None, None);
        }
        let sender = &envelope.sender.peer;
        let said = match (self.hosted.mesh_id(sender), text_of(&envelope.content)) {
            (None, _) => Err(off_air(sender)),
            (_, None) => Err(SendError::Failed("phones hear broadcasts of text alone".to_owned())),
            (Some(from), Some(text)) => {
                let message_id = envelope.message_id.0;
                let command = Command::SendPublic { from, message_id, text };
                self.judge(command, message_id, None)
                    .map_err(|reason| send_error(BROADCAST, reason))
            }
        };
        if has_nodes { Ok(()) } else { said }
    }

    fn enqueue(&mut self, id: MeshId, load: Load) {
        let way = self.ways.entry(id).or_default();
        way.waiting.push_back(load);
        self.advance(id);
    }

    /// Lets go to a node what may.
    fn advance(&mut self, id: MeshId) {
        let Some(way) = self.ways.get_mut(&id).filter(|way| !way.is_advancing) else { return };
        way.is_advancing = true;
        loop {
            let Some(way) = self.ways.get_mut(&id) else { return };
            let may = way.under_way < AT_ONCE;
            let Some(load) = may.then(|| way.waiting.pop_front()).flatten() else {
                way.is_advancing = false;
                if way.under_way == 0 && way.waiting.is_empty() {
                    self.ways.remove(&id);
                }
                return;
            };
            way.under_way += 1;
            self.last_transfer += 1;
            let transfer_id = Uuid::from_u128(self.last_transfer);
            let bytes = match &load {
                Load::Own(content) => content.bytes().to_vec(),
                Load::Envelope { bytes, .. } => Exchange::Envelope(bytes.clone()).encode(),
            };
            self.under_way.insert(transfer_id, (id, load));
            self.command(Command::SendGateway { to: id, transfer_id, bytes });
        }
    }

    /// A transfer has come to its end.
    pub(super) fn arrived(&mut self, transfer: Uuid, result: Result<(), FailReason>) {
        let Some((id, load)) = self.under_way.remove(&transfer) else { return };
        if let Some(way) = self.ways.get_mut(&id) {
            way.under_way -= 1;
        }
        match load {
            Load::Own(content) => self.gateways.settled(id, &content, result.is_ok()),
            Load::Envelope { answer: Some(answer), .. } => {
                give(answer, result.map_err(|reason| send_error(&id.to_string(), reason)));
            }
            Load::Envelope { .. } => {}
        }
        self.advance(id);
    }

    pub(super) fn tell(&mut self, (id, content): Outgoing) {
        let is_same = |load: &Load| {
            matches!((load, &content), (Load::Own(Content::Hello(_)), Content::Hello(_)))
        };
        let is_waiting = self.ways.get(&id).is_some_and(|way| way.waiting.iter().any(is_same));
        if !is_waiting && !self.under_way.values().any(|(to, load)| *to == id && is_same(load)) {
            self.enqueue(id, Load::Own(content));
        }
    }
}

fn give(answer: Answer, result: Result<(), SendError>) {
    // Whoever asked may have lost patience.
    let _ = answer.send(result);
}

fn off_air(peer: &PeerId) -> SendError {
    SendError::Failed(format!(
        "{peer} is not on the air, so phones do not know it: set on_air, and see --max-peers"
    ))
}

fn send_error(target: &str, reason: FailReason) -> SendError {
    match reason {
        FailReason::UnknownPeer | FailReason::NoLink => {
            SendError::Unreachable { target: target.to_owned() }
        }
        FailReason::TooLarge { limit } => SendError::Failed(format!("at most {limit} bytes fit")),
        other => SendError::Failed(other.to_string()),
    }
}

/// Contents under way to one node at once: the core takes eight of one gateway.
const AT_ONCE: usize = 6;
/// Gateways that one broadcast is told to.
const MOST_HEARERS: usize = 32;
/// Broadcasts that wait for one node. They are never repeated, so a slow node misses further ones.
const BROADCASTS_WAITING: usize = 32;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fieldpost_bitchat::{Identity, Limits, Node};
    use fieldpost_envelope::NodePurpose;
    use rand::{SeedableRng, rngs::StdRng};
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::ble::{
        drive::Outlets,
        gateways::Gateways,
        tests::{certificate, clock, gateway, key},
    };

    #[tokio::test]
    async fn a_crowd_that_waits_for_a_node_that_is_gone_ends_without_calls_inside_calls() {
        let mut driver = driver();
        let gone = MeshId([7; 8]);
        let envelope = |answer| Load::Envelope {
            bytes: vec![1],
            digest: [0; 32],
            answer: Some(answer),
            _room: None,
        };
        let mut answers = Vec::new();
        for _ in 0..20_000 {
            let (answer, answered) = tokio::sync::oneshot::channel();
            driver.ways.entry(gone).or_default().waiting.push_back(envelope(answer));
            answers.push(answered);
        }
        driver.advance(gone);
        for answered in answers {
            assert!(matches!(answered.await, Ok(Err(SendError::Unreachable { .. }))));
        }
        assert!(driver.ways.is_empty() && driver.under_way.is_empty());
    }

    #[tokio::test]
    async fn broadcasts_that_a_node_is_too_slow_for_are_left_out() {
        let mut driver = driver();
        let slow = MeshId([7; 8]);
        driver.ways.entry(slow).or_default().under_way = AT_ONCE;
        for number in 0..100 {
            driver.send_envelope(slow, vec![1; 1000], [number; 32], None, None);
        }
        assert_eq!(driver.ways[&slow].waiting.len(), BROADCASTS_WAITING);
    }

    fn driver() -> Driver {
        let identity = Identity::from_keys(&[1; 32], &[1; 32]);
        let certificate = certificate(&key(1), *identity.noise_public(), NodePurpose::BitChat);
        let rng = StdRng::seed_from_u64(1);
        let node = Node::new(rng, Limits::default(), identity, "one".to_owned());
        let gateways = Gateways::new(gateway(&key(1)), certificate);
        let outlets = Outlets {
            inbox: mpsc::channel(1).0,
            rosters: mpsc::channel(1).0,
            spoken: mpsc::channel(1).0,
            reach: watch::channel(Arc::default()).0,
            present: watch::channel(Arc::default()).0,
        };
        Driver::new(node, gateways, Arc::default(), outlets, Arc::new(clock))
    }
}
