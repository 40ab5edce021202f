//! Packets: through the relay core, to the receiver, from the sender.

use std::{
    hash::BuildHasher,
    time::{Duration, Instant},
};

use fieldpost_envelope::{GatewayId, SealingKey};
use fieldpost_mixnet::{
    delay,
    directory::RelayId,
    receiver, relay,
    sender::{self, Failure, Outgoing, SendId},
    sphinx::Packet,
};

use super::{Node, now};
use crate::SendError;

impl Node {
    /// Takes in packets that came over links.
    pub(super) fn take_in(&mut self, packets: impl Iterator<Item = Packet>) {
        let now = now();
        let mut actions = Vec::new();
        for packet in packets {
            for action in self.relay.handle(now, relay::Event::Packet(packet)) {
                match action {
                    relay::Action::Log { epoch, record } => {
                        self.records.entry(epoch).or_default().push(record);
                    }
                    action => actions.push(action),
                }
            }
        }
        self.release(now, actions);
    }

    /// Lets go of packets whose delay is over.
    pub(super) fn relay_wakes(&mut self, now: Instant) {
        let actions: Vec<_> = self.relay.handle(now, relay::Event::Wake).collect();
        self.release(now, actions);
    }

    /// Writes the log of what came, then does what the relay wants done.
    fn release(&mut self, now: Instant, actions: Vec<relay::Action>) {
        let mut is_logged = true;
        for (epoch, records) in &mut self.records {
            if records.is_empty() {
                continue;
            }
            if let Err(error) = self.secrets.append(*epoch, records) {
                tracing::error!(
                    epoch, %error,
                    "the replay log cannot be written: the keys of its epoch are given up"
                );
                self.relay.close_epoch(*epoch);
                self.ring.withdraw(*epoch);
                self.receiver.close_epoch(*epoch);
                self.secrets.erase(*epoch);
                is_logged = false;
            }
            records.clear();
        }
        if !is_logged {
            // Some of them are not in the log; the senders of all will send again.
            self.figures.packets_dropped += actions.len() as u64;
            return;
        }
        for action in actions {
            match action {
                relay::Action::Log { .. } => {}
                relay::Action::Forward { to, packet } => {
                    self.pass(now, to, packet);
                }
                relay::Action::Deliver(packet) => {
                    self.receive_actions(now, receiver::Event::Packet(packet));
                }
                relay::Action::Reply { surb, packet } => {
                    self.send_actions(now, sender::Event::Reply { surb, packet });
                }
            }
        }
    }

    pub(super) fn receive_actions(&mut self, now: Instant, event: receiver::Event) {
        let actions: Vec<_> = self.receiver.handle(now, event).collect();
        for action in actions {
            match action {
                receiver::Action::Store { transfer, message } => {
                    self.handed.hand(transfer, &message);
                    match self.outlets.arrived.try_send(message) {
                        Ok(()) => self.figures.messages_received += 1,
                        // It is never settled, and its sender sends it again.
                        Err(_) => tracing::debug!("the gateway does not keep up with what came"),
                    }
                }
                receiver::Action::Transmit { to, packet } => {
                    self.pass(now, to, packet);
                }
            }
        }
    }

    pub(super) fn send_actions(&mut self, now: Instant, event: sender::Event) -> Vec<Failed> {
        let actions: Vec<_> = self.sender.handle(now, event, &mut self.routes).collect();
        let mut failed = Vec::new();
        for action in actions {
            match action {
                sender::Action::Transmit { to, packet } => {
                    self.pass(now, to, packet);
                }
                sender::Action::NoRoute(_) => self.slot_at = now + ROUTELESS_PAUSE,
                sender::Action::Committed(send) => {
                    self.under_way.remove(&send);
                    self.figures.messages_committed += 1;
                }
                sender::Action::Failed { send, reason } => {
                    self.under_way.remove(&send);
                    self.figures.messages_failed += 1;
                    tracing::debug!(send = send.0, %reason, "a message is given up");
                    failed.push(Failed { send, reason });
                }
            }
        }
        failed
    }

    /// Tells the receiver what the gateway has dealt with.
    pub(super) fn settle(&mut self) {
        let now = now();
        for transfer in self.handed.take() {
            self.receive_actions(now, receiver::Event::Committed(transfer));
        }
    }

    /// Takes charge of a message of our own.
    pub(super) fn send(&mut self, target: &str, message: Vec<u8>) -> Result<(), SendError> {
        let unreachable = || SendError::Unreachable { target: target.to_owned() };
        let (now, time) = (now(), (self.clock)());
        self.routes.now = time;
        let gateway: GatewayId = target.parse().map_err(|_| unreachable())?;
        let node = self.routes.node_of(gateway, &mut self.rng).ok_or_else(unreachable)?;
        let keys = self.routes.sealing_keys(&node).ok_or_else(unreachable)?;
        let erased_at = self.epochs.erased_at(keys.epoch).as_millis();
        let left = Duration::from_millis(erased_at.saturating_sub(time.as_millis()));
        let hash = self.hasher.hash_one((target, &message));
        if self.under_way.values().any(|other| *other == hash) {
            // It goes on by itself until it is answered or given up; a copy would only be in its way.
            return Ok(());
        }
        let send = SendId(self.next_send);
        self.next_send += 1;
        let outgoing = Outgoing {
            send,
            gateway: node,
            epoch: keys.epoch,
            key: SealingKey::from_bytes(keys.sealing),
            until: now + left,
            message,
        };
        let failed = self.send_actions(now, sender::Event::Send(outgoing));
        if let Some(failed) = failed.into_iter().find(|failed| failed.send == send) {
            return Err(match failed.reason {
                Failure::Busy => SendError::Busy { limit: sender::Config::default().transfers },
                reason => SendError::Failed(reason.to_string()),
            });
        }
        self.under_way.insert(send, hash);
        self.figures.messages_sent += 1;
        Ok(())
    }

    /// Sends packets of our own, as many as may leave now.
    pub(super) fn use_slots(&mut self, now: Instant) {
        if self.slot_at > now {
            return;
        }
        if !self.pace.payload.is_zero() {
            // The slot comes whether it is used or not.
            self.slot_at = now + delay::sample(&mut self.rng, self.pace.payload);
            if self.sender.has_waiting() {
                self.send_actions(now, sender::Event::Slot);
            }
            return;
        }
        for _ in 0..SLOTS_AT_ONCE {
            if !self.sender.has_waiting() || self.slot_at > now {
                return;
            }
            if self.links.waiting_bytes() > FULL_LINKS {
                self.slot_at = now + FULL_PAUSE;
                return;
            }
            self.send_actions(now, sender::Event::Slot);
        }
    }

    /// Sends a packet on, or drops it and says so.
    pub(super) fn pass(&mut self, now: Instant, to: RelayId, packet: Packet) -> bool {
        let is_passed = if to != self.keys.id() {
            self.links.send(now, to, packet)
        } else if self.own_packets.len() < OWN_PACKETS {
            self.own_packets.push_back(packet);
            true
        } else {
            false
        };
        if !is_passed {
            self.figures.packets_dropped += 1;
        }
        is_passed
    }
}

/// A message that will not be tried further.
pub(super) struct Failed {
    send: SendId,
    reason: Failure,
}

/// Until a route is looked for again.
const ROUTELESS_PAUSE: Duration = Duration::from_millis(50);
/// Without pacing: packets that are built before what comes has its turn.
const SLOTS_AT_ONCE: usize = 16;
/// Without pacing: nothing is built while so much waits for links.
const FULL_LINKS: usize = 4 << 20;
const FULL_PAUSE: Duration = Duration::from_millis(1);
const OWN_PACKETS: usize = 256;
