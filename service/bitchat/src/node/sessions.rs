//! Noise packets for one of ours, and what is inside.

use std::time::Duration;

use rand::Rng;

use super::Node;
use crate::{
    event::{Now, Report},
    id::MeshId,
    link::LinkId,
    noise::{NoiseError, Outcome, Pair},
    packet::{Packet, PacketType},
    payload::{
        announce::Capabilities,
        file::File,
        group,
        noise::{self, PlaintextType, PrivateMessage},
        peer_state::PeerState,
        verify::{Challenge, Response},
        voice::Voice,
        vouch,
    },
};

impl<R: Rng> Node<R> {
    pub(super) fn take_noise(&mut self, now: Now, via: LinkId, packet: &Packet) {
        let Some(local) = packet.recipient.and_then(|id| self.locals.get(&id)) else { return };
        let (rng, sessions, identity) = (&mut self.rng, &mut self.sessions, &local.identity);
        let (remote, message) = (packet.sender, packet.payload());
        let mut outcomes = Vec::new();
        if packet.kind == PacketType::NOISE_ENCRYPTED {
            sessions.frame(now.at, rng, identity, remote, message, &mut outcomes);
        } else if self.links.get_mut(&via).is_some_and(|link| link.handshakes.take(now.at)) {
            sessions.handshake(now.at, rng, identity, remote, message, &mut outcomes);
        } else {
            outcomes.push(Outcome::Limited);
        }
        self.carry_out(now, outcomes, false);
    }

    /// Seals a plaintext for a peer, after a handshake if need be. False if there is no room.
    pub(super) fn say(
        &mut self,
        now: Now,
        from: MeshId,
        to: MeshId,
        kind: PlaintextType,
        body: &[u8],
        everywhere: bool,
    ) -> bool {
        let Some(local) = self.locals.get(&from) else { return false };
        let plaintext = noise::join(kind, body);
        let mut outcomes = Vec::new();
        let (rng, sessions) = (&mut self.rng, &mut self.sessions);
        let taken = sessions.send(now.at, rng, &local.identity, to, plaintext, &mut outcomes);
        self.carry_out(now, outcomes, everywhere);
        taken
    }

    /// Begins a handshake, so that the peer can prove what it can do.
    pub(super) fn begin_session(&mut self, now: Now, from: MeshId, to: MeshId) {
        let Some(local) = self.locals.get(&from) else { return };
        let mut outcomes = Vec::new();
        let (rng, sessions) = (&mut self.rng, &mut self.sessions);
        sessions.begin(now.at, rng, &local.identity, to, &mut outcomes);
        self.carry_out(now, outcomes, false);
    }

    pub(super) fn tick_sessions(&mut self, now: Now) {
        let mut outcomes = Vec::new();
        let (rng, sessions, locals) = (&mut self.rng, &mut self.sessions, &self.locals);
        let identity = |id| locals.get(&id).map(|local| &local.identity);
        sessions.tick(now.at, rng, identity, &mut outcomes);
        // What is due here has waited for an answer in vain: it goes out on every link.
        self.carry_out(now, outcomes, true);
    }

    fn carry_out(&mut self, now: Now, outcomes: Vec<Outcome>, everywhere: bool) {
        for outcome in outcomes {
            match outcome {
                Outcome::Send { pair, kind, payload } => {
                    let header = self.header(now, kind, pair.local, Some(pair.remote));
                    let packet = Packet::new(header, payload);
                    if everywhere {
                        self.originate_everywhere(now, packet);
                    } else {
                        self.originate(now, packet);
                    }
                }
                Outcome::Opened { pair, plaintext } => self.take_plaintext(now, pair, &plaintext),
                Outcome::Established { pair, noise_key, is_anew } => {
                    self.established(now, pair, noise_key);
                    if is_anew {
                        self.started_anew(now, pair);
                    }
                }
                Outcome::Refused { error: NoiseError::Replayed { .. } } => {
                    self.counters.noise_replayed += 1;
                }
                Outcome::Refused { .. } => self.counters.noise_refused += 1,
                Outcome::Limited => self.counters.noise_limited += 1,
            }
        }
    }

    /// Both sides say at once what they can do and how they sign (BitChat protocol reference,
    /// section 4.4).
    fn established(&mut self, now: Now, pair: Pair, noise_key: [u8; 32]) {
        self.counters.sessions += 1;
        // The session has proven another key of the same name: one of 2^64, or a lie before.
        if self.peers.find(pair.remote).is_some_and(|known| known.noise_key != noise_key) {
            self.conflict(now, pair.remote);
        }
        let Some(local) = self.locals.get(&pair.local) else { return };
        let state = PeerState {
            capabilities: Capabilities::PRIVATE_MEDIA,
            signing_key: local.identity.signing_public(),
        };
        let body = state.encode();
        self.say(now, pair.local, pair.remote, PlaintextType::PEER_STATE, &body, false);
    }

    /// A peer that lost its session has lost more: it may not know us any more, and has not opened what
    /// was under way.
    fn started_anew(&mut self, now: Now, pair: Pair) {
        self.announce_to_newcomer(now);
        if pair.local == self.own {
            self.say_again(now, pair.remote, Duration::ZERO);
        }
    }

    fn take_plaintext(&mut self, now: Now, pair: Pair, plaintext: &[u8]) {
        let Ok((kind, body)) = noise::split(plaintext) else {
            self.counters.malformed += 1;
            return;
        };
        let is_well_formed = match kind {
            PlaintextType::MESSAGE => PrivateMessage::decode(body)
                .map(|message| self.take_private(now, pair, message))
                .is_ok(),
            PlaintextType::READ | PlaintextType::DELIVERED => noise::receipt_id(body)
                .map(|id| self.take_receipt(pair, &id, kind == PlaintextType::READ))
                .is_ok(),
            PlaintextType::FILE => File::decode(body)
                .map(|file| {
                    let to = Some(pair.local);
                    self.report(Report::File { to, from: pair.remote, file });
                })
                .is_ok(),
            PlaintextType::PEER_STATE => {
                PeerState::decode(body).map(|state| self.take_state(now, pair, state)).is_ok()
            }
            PlaintextType::VERIFY_CHALLENGE => Challenge::decode(body)
                .map(|challenge| self.answer_challenge(now, pair, challenge))
                .is_ok(),
            PlaintextType::VERIFY_RESPONSE => {
                Response::decode(body).map(|response| self.take_response(pair, &response)).is_ok()
            }
            PlaintextType::GATEWAY if pair.local == self.own => {
                self.take_gateway_record(now, pair, body)
            }
            // Read and ignored: this node has no groups, plays no voice and counts no vouches.
            PlaintextType::GROUP_INVITE | PlaintextType::GROUP_KEY => {
                group::State::decode(body).is_ok()
            }
            PlaintextType::VOICE => Voice::decode(body).is_ok(),
            PlaintextType::VOUCH => vouch::decode(body).is_ok(),
            _ => true,
        };
        self.counters.malformed += u64::from(!is_well_formed);
    }

    fn take_state(&mut self, now: Now, pair: Pair, state: PeerState) {
        let was = self.peers.find(pair.remote).map(|known| known.signing_key);
        if was.is_some_and(|key| key != state.signing_key) {
            // Whoever announced that name first was not the holder of its Noise key.
            self.conflict(now, pair.remote);
        }
        self.peers.prove(pair.remote, state);
        self.files_unlocked(now, pair);
    }
}
