//! What a sending gateway does with messages: seal, cut, send, wait for the answer, send again.
//!
//! A transfer is sent in rounds. The first one sends all fragments, each over a route of its own.
//! When the answer is overdue, the second asks what has come and later ones send what is not known
//! to have come, as fresh packets over fresh routes (HTX reference, section 6). The sender knows the
//! delays that it chose, so an answer is overdue when these, both ways, and the time that the
//! network has lately taken are over.

mod timing;
mod transfer;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use fieldpost_envelope::SealingKey;
use rand::CryptoRng;

use crate::{
    acknowledge::{Acknowledgement, State},
    fragment::{self, Fragment, Layout, MAX_MESSAGE_LEN, TransferId},
    seal::{self, SEAL_OVERHEAD},
    sphinx::{Packet, RelayId, Route, Surb, SurbId, SurbKeys},
};

use timing::NetworkTime;
use transfer::Transfer;

/// Bounds and patience of a sender.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The mean delay at each relay.
    pub delay: Duration,
    /// The longest delay that a relay is asked for: short epochs have short graces.
    pub longest_delay: Duration,
    /// The most messages on their way.
    pub transfers: usize,
    /// The most bytes of messages on their way, repair counted in.
    pub bytes: usize,
    /// How many rounds a transfer has.
    pub rounds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            delay: crate::delay::Pace::INTERACTIVE.delay,
            longest_delay: crate::delay::LONGEST_DELAY,
            transfers: 256,
            bytes: 64 * 1024 * 1024,
            rounds: 8,
        }
    }
}

/// Chooses routes. Each packet asks for one of its own.
pub trait Routes {
    /// A route that ends at `gateway`, its delays not yet chosen. `None` if there is none now.
    fn to(&mut self, gateway: RelayId) -> Option<Route>;

    /// A route over which an answer comes back to us.
    fn back(&mut self) -> Option<Route>;
}

/// What the driver calls a message that it sends.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SendId(pub u64);

/// To whom a message goes, and until when it makes sense to try.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// What the driver calls it.
    pub send: SendId,
    /// To whom.
    pub gateway: RelayId,
    /// The epoch of `key`.
    pub epoch: u64,
    /// The gateway's key of that epoch.
    pub key: SealingKey,
    /// When the gateway erases that key; the transfer fails then.
    pub until: Instant,
    /// The bytes to send.
    pub message: Vec<u8>,
}

/// The sending end of a gateway.
pub struct Sender<R> {
    config: Config,
    rng: R,
    transfers: BTreeMap<TransferId, Transfer>,
    /// Transfers with fragments to send; each gets a slot in turn.
    turns: VecDeque<TransferId>,
    surbs: BTreeMap<SurbId, Awaited>,
    bytes: usize,
    network: NetworkTime,
    counts: Counts,
    actions: Vec<Action>,
}

/// What a sender is told.
#[derive(Debug)]
pub enum Event {
    /// A message is to be sent.
    Send(Outgoing),
    /// A packet may leave now. When nothing waits, there is no action, and the driver's cover
    /// traffic takes the slot.
    Slot,
    /// An answer came, as [`relay::Action::Reply`](crate::relay::Action::Reply) says.
    Reply {
        /// The SURB that it answers.
        surb: SurbId,
        /// The packet.
        packet: Packet,
    },
    /// The message need not be sent any more.
    Cancel(SendId),
    /// [`Sender::next_deadline`] has come.
    Wake,
}

/// What a sender wants done.
#[derive(Debug)]
pub enum Action {
    /// Send the packet.
    Transmit {
        /// To whom.
        to: RelayId,
        /// The packet.
        packet: Packet,
    },
    /// The slot stayed empty: no route to some gateway or back. Another slot makes sense when there
    /// may be one.
    NoRoute(RelayId),
    /// The receiving gateway's store has the message.
    Committed(SendId),
    /// The message will not be tried further. It may have arrived nevertheless.
    Failed {
        /// Which.
        send: SendId,
        /// Why.
        reason: Failure,
    },
}

/// Why a transfer ended without an answer that it arrived.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Failure {
    /// Too many messages or bytes are on their way already.
    #[error("too much is on its way already")]
    Busy,
    /// Longer than any message may be.
    #[error("{length} bytes are too many for a message: expected at most {MAX_MESSAGE_LEN}")]
    Oversize {
        /// How many bytes it has.
        length: usize,
    },
    /// Nobody can open what is sealed to the gateway's key.
    #[error("the gateway's key is not valid")]
    Key,
    /// All rounds were tried.
    #[error("no answer after {rounds} rounds")]
    Unanswered {
        /// How many.
        rounds: u32,
    },
    /// The key of the gateway's epoch is erased.
    #[error("the epoch of the gateway's key is over")]
    EpochOver,
    /// The receiving gateway does not want the message.
    #[error("the receiving gateway refused the message")]
    Refused,
}

/// How many packets a sender has sent and seen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Packets sent.
    pub sent: u64,
    /// Of these, such as repeat a fragment.
    pub repeated: u64,
    /// Answers read.
    pub answers: u64,
    /// Answers to no SURB of ours, altered or malformed.
    pub strays: u64,
    /// Slots that stayed empty as there was no route.
    pub routeless: u64,
}

impl<R: CryptoRng> Sender<R> {
    /// A sender with nothing to do.
    pub fn new(config: Config, rng: R) -> Self {
        Self {
            config,
            rng,
            transfers: BTreeMap::new(),
            turns: VecDeque::new(),
            surbs: BTreeMap::new(),
            bytes: 0,
            network: NetworkTime::default(),
            counts: Counts::default(),
            actions: Vec::new(),
        }
    }

    /// Takes in one event and returns what to do about it.
    ///
    /// `now` must not go backwards from one call to the next.
    pub fn handle(
        &mut self,
        now: Instant,
        event: Event,
        routes: &mut dyn Routes,
    ) -> impl Iterator<Item = Action> {
        match event {
            Event::Send(outgoing) => self.begin(&outgoing),
            Event::Slot => self.transmit_one(now, routes),
            Event::Reply { surb, packet } => self.answered(now, surb, packet),
            Event::Cancel(send) => {
                let found = self.transfers.iter().find(|(_, transfer)| transfer.send == send);
                if let Some(transfer) = found.map(|(id, _)| *id) {
                    self.remove(transfer);
                }
            }
            Event::Wake => {}
        }
        self.expire(now);
        self.actions.drain(..)
    }

    /// When the next [`Event::Wake`] is due, if anything is waiting for one.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.transfers.values().map(Transfer::deadline).min()
    }

    /// Whether a slot would be used.
    pub fn has_waiting(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Messages on their way.
    pub fn in_flight(&self) -> usize {
        self.transfers.len()
    }

    /// How many packets were sent and seen so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn begin(&mut self, outgoing: &Outgoing) {
        match self.prepare(outgoing) {
            Ok((id, transfer)) => {
                self.bytes += transfer.bytes();
                self.transfers.insert(id, transfer);
                self.turns.push_back(id);
            }
            Err(reason) => self.actions.push(Action::Failed { send: outgoing.send, reason }),
        }
    }

    fn prepare(&mut self, outgoing: &Outgoing) -> Result<(TransferId, Transfer), Failure> {
        let length = outgoing.message.len();
        if length > MAX_MESSAGE_LEN {
            return Err(Failure::Oversize { length });
        }
        let class = Layout::class_for(length + SEAL_OVERHEAD);
        let bytes = Layout::new(class, length + SEAL_OVERHEAD)
            .map_or(0, |layout| layout.count() * layout.shard_len());
        if self.transfers.len() >= self.config.transfers || self.bytes + bytes > self.config.bytes {
            return Err(Failure::Busy);
        }
        let id = TransferId::generate(&mut self.rng);
        let Outgoing { gateway, epoch, key, message, .. } = outgoing;
        let sealed = seal::seal(&mut self.rng, *gateway, *epoch, key, id, message)
            .map_err(|_| Failure::Key)?;
        let (layout, shards) =
            fragment::split(class, &sealed).map_err(|_| Failure::Oversize { length })?;
        Ok((id, Transfer::new(outgoing.send, *gateway, outgoing.until, layout, shards)))
    }

    /// Builds and sends the next fragment of the transfer whose turn it is.
    fn transmit_one(&mut self, now: Instant, routes: &mut dyn Routes) {
        let Some(id) = self.turns.front().copied() else { return };
        let Some(transfer) = self.transfers.get_mut(&id) else {
            self.turns.pop_front();
            return;
        };
        let Some(waiting) = transfer.next_waiting() else {
            self.turns.pop_front();
            return;
        };
        let route = routes.to(transfer.gateway);
        let back = if waiting.with_surb { routes.back() } else { None };
        let (Some(route), true) = (route, back.is_some() || !waiting.with_surb) else {
            self.counts.routeless += 1;
            self.actions.push(Action::NoRoute(transfer.gateway));
            self.turns.rotate_left(1);
            return;
        };
        let route = route.with_delays(&mut self.rng, self.config.delay, self.config.longest_delay);
        let surb = back.and_then(|back| {
            let back =
                back.with_delays(&mut self.rng, self.config.delay, self.config.longest_delay);
            let mut bytes = [0; 16];
            self.rng.fill_bytes(&mut bytes);
            let (surb, keys) = Surb::build(&mut self.rng, &back, SurbId(bytes)).ok()?;
            Some((surb, SurbId(bytes), keys, back.delay()))
        });
        let fragment = Fragment {
            transfer: id,
            index: waiting.index,
            layout: transfer.layout,
            again: waiting.again,
            asks: waiting.asks,
            surb: surb.as_ref().map(|(surb, ..)| surb.as_bytes()),
            shard: &transfer.shards[waiting.index],
        };
        let class = transfer.layout.class;
        let packet = Packet::build(&mut self.rng, &route, class, &fragment.encode());
        let mut answer_delay = Duration::ZERO;
        if let Some((_, surb, keys, delay)) = surb {
            let round = transfer.round;
            self.surbs.insert(surb, Awaited { transfer: id, keys, delay, round });
            transfer.surbs.push(surb);
            answer_delay = delay;
        }
        transfer.sent(now + route.delay(), answer_delay);
        self.counts.sent += 1;
        self.counts.repeated += u64::from(waiting.again);
        // A key of small order on a route is a packet lost; the next round has another route.
        if let Ok(packet) = packet {
            self.actions.push(Action::Transmit { to: route.first(), packet });
        }
        self.turns.pop_front();
        if transfer.has_waiting() {
            self.turns.push_back(id);
        } else {
            transfer.await_answer(&self.network);
        }
    }

    fn answered(&mut self, now: Instant, surb: SurbId, mut packet: Packet) {
        let Some(awaited) = self.surbs.get(&surb) else {
            self.counts.strays += 1;
            return;
        };
        let answer = awaited
            .keys
            .open(packet.payload_mut())
            .ok()
            .and_then(|reply| Acknowledgement::decode(reply).ok())
            .filter(|answer| answer.transfer == awaited.transfer);
        let (Some(answer), Some(transfer)) = (answer, self.transfers.get_mut(&awaited.transfer))
        else {
            self.counts.strays += 1;
            return;
        };
        self.counts.answers += 1;
        let (id, send) = (awaited.transfer, transfer.send);
        match answer.state {
            State::Committed => {
                // A message that was repaired is whole before its last fragment arrives.
                if awaited.round == transfer.round
                    && transfer.layout.repair == 0
                    && let Some(arrived) = transfer.arrives_by()
                {
                    self.network.measure(now.saturating_duration_since(arrived + awaited.delay));
                }
                self.remove(id);
                self.actions.push(Action::Committed(send));
            }
            State::Refused => {
                self.remove(id);
                self.actions.push(Action::Failed { send, reason: Failure::Refused });
            }
            State::Partial => {
                self.surbs.remove(&surb);
                if transfer.round < self.config.rounds && transfer.learn(&answer.shards) {
                    self.turns.push_back(id);
                }
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        let over = |transfer: &Transfer| transfer.deadline() <= now;
        while let Some((id, transfer)) =
            self.transfers.iter_mut().find(|(_, transfer)| over(transfer))
        {
            let (id, send) = (*id, transfer.send);
            let failure = if transfer.until <= now {
                Some(Failure::EpochOver)
            } else if transfer.round >= self.config.rounds {
                Some(Failure::Unanswered { rounds: transfer.round })
            } else {
                None
            };
            match failure {
                Some(reason) => {
                    self.remove(id);
                    self.actions.push(Action::Failed { send, reason });
                }
                None => {
                    transfer.next_round();
                    self.turns.push_back(id);
                }
            }
        }
    }

    fn remove(&mut self, id: TransferId) {
        if let Some(transfer) = self.transfers.remove(&id) {
            self.bytes -= transfer.bytes();
            for surb in transfer.surbs {
                self.surbs.remove(&surb);
            }
        }
        self.turns.retain(|other| *other != id);
    }
}

/// A SURB that was given away.
struct Awaited {
    transfer: TransferId,
    keys: SurbKeys,
    /// What relays hold the answer, all together.
    delay: Duration,
    /// In which round it was given away.
    round: u32,
}

#[cfg(test)]
mod tests;
