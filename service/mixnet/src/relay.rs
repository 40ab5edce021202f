//! What a relay does with packets: open, refuse what was here before, hold, pass on.
//!
//! A packet is opened as far as its MAC, its tag is tested and logged, it is unwrapped in place and
//! held for the delay that its sender chose (HTX reference, sections 2.2, 4.1 and 5). Whoever is
//! the last hop gets fragments and replies out of the same core.

mod wheel;

use std::time::Instant;

use thiserror::Error;

use crate::{
    delay::LONGEST_DELAY,
    replay::{self, InsertError, RECORD_LEN, ReplayCache},
    sphinx::{Command, Group, Packet, Production, RelayId, SurbId, X25519, open},
};

use wheel::{Held, Wheel};

/// Bounds and duties of a relay.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Whether packets of others are passed on. A gateway that does not relay only takes what ends
    /// at it.
    pub forwards: bool,
    /// The most packets held.
    pub held_packets: usize,
    /// The most bytes held.
    pub held_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { forwards: true, held_packets: 16_384, held_bytes: 128 * 1024 * 1024 }
    }
}

/// A relay, or the receiving end of a gateway.
pub struct Relay {
    config: Config,
    /// By the parity of the epoch, which packets carry in clear.
    epochs: [Option<Epoch>; 2],
    wheel: Wheel,
    counts: Counts,
    actions: Vec<Action>,
}

/// What a relay is told.
#[derive(Debug)]
pub enum Event {
    /// A packet came over a link.
    Packet(Packet),
    /// [`Relay::next_deadline`] has come.
    Wake,
}

/// What a relay wants done, in this order.
#[derive(Debug)]
pub enum Action {
    /// Append `record` to the replay log of `epoch`, before any later action is carried out, in
    /// this call or another. Without a log, a relay that was killed must withdraw the epoch's key.
    Log {
        /// Whose log.
        epoch: u64,
        /// What to append.
        record: [u8; RECORD_LEN],
    },
    /// Pass the packet on.
    Forward {
        /// To whom.
        to: RelayId,
        /// The packet.
        packet: Packet,
    },
    /// The packet's body is a fragment for this gateway's receiver.
    Deliver(Packet),
    /// The packet's payload answers a SURB of this gateway's sender.
    Reply {
        /// Which.
        surb: SurbId,
        /// The packet.
        packet: Packet,
    },
}

/// How many packets met which fate.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Passed on.
    pub forwarded: u64,
    /// Ended here.
    pub delivered: u64,
    /// No key for their epoch.
    pub no_epoch: u64,
    /// Malformed, altered or for another relay.
    pub refused: u64,
    /// Seen before.
    pub replayed: u64,
    /// Dropped as the replay cache was full.
    pub cache_full: u64,
    /// Dropped as too many packets were held.
    pub overflowed: u64,
    /// Dropped for a delay that is too long, or as this gateway does not relay.
    pub unserved: u64,
}

impl Relay {
    /// A relay without a key. `now` is the start of its time.
    pub fn new(config: Config, now: Instant) -> Self {
        Self {
            config,
            epochs: [None, None],
            wheel: Wheel::new(now, config.held_packets),
            counts: Counts::default(),
            actions: Vec::new(),
        }
    }

    /// Accepts packets of the epoch of `cache` until `closes_at`, then erases `secret` and cache.
    ///
    /// # Errors
    ///
    /// The epoch with the same parity is still open, or the library refuses the secret.
    pub fn open_epoch(
        &mut self,
        secret: &[u8; 32],
        cache: ReplayCache,
        closes_at: Instant,
    ) -> Result<(), EpochError> {
        let epoch = cache.epoch();
        let place = &mut self.epochs[(epoch & 1) as usize];
        if let Some(open) = place {
            return Err(EpochError::Parity { epoch, open: open.cache.epoch() });
        }
        let secret = X25519::secret(secret).ok_or(EpochError::Secret)?;
        *place = Some(Epoch { secret, cache, closes_at });
        Ok(())
    }

    /// Erases secret and cache of `epoch` before their time, such as when its log cannot be written.
    pub fn close_epoch(&mut self, epoch: u64) {
        let place = &mut self.epochs[(epoch & 1) as usize];
        drop(place.take_if(|open| open.cache.epoch() == epoch));
    }

    /// Whether packets of `epoch` are accepted.
    pub fn is_open(&self, epoch: u64) -> bool {
        self.epochs.iter().flatten().any(|open| open.cache.epoch() == epoch)
    }

    /// Takes in one event and returns what to do about it.
    ///
    /// `now` must not go backwards from one call to the next.
    pub fn handle(&mut self, now: Instant, event: Event) -> impl Iterator<Item = Action> {
        for place in &mut self.epochs {
            if place.as_ref().is_some_and(|epoch| epoch.closes_at <= now) {
                *place = None;
            }
        }
        // First, so that the wheel has turned to `now` before it takes another packet.
        self.release(now);
        if let Event::Packet(packet) = event {
            self.receive(now, packet);
            self.release(now);
        }
        self.actions.drain(..)
    }

    /// When the next [`Event::Wake`] is due, if anything is waiting for one.
    pub fn next_deadline(&self) -> Option<Instant> {
        let epochs = self.epochs.iter().flatten().map(|epoch| epoch.closes_at);
        epochs.chain(self.wheel.next_deadline()).min()
    }

    /// How many packets met which fate so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Packets that are held.
    pub fn held(&self) -> usize {
        self.wheel.len()
    }

    fn release(&mut self, now: Instant) {
        while let Some(held) = self.wheel.release(now) {
            self.counts.forwarded += 1;
            self.actions.push(Action::Forward { to: held.to, packet: held.packet });
        }
    }

    fn receive(&mut self, now: Instant, mut packet: Packet) {
        let Some(epoch) = &mut self.epochs[usize::from(packet.parity())] else {
            self.counts.no_epoch += 1;
            return;
        };
        let number = epoch.cache.epoch();
        let Ok(opened) = open::<Production>(&epoch.secret, &number, packet.as_bytes_mut()) else {
            self.counts.refused += 1;
            return;
        };
        let tag = opened.tag();
        match epoch.cache.insert(tag) {
            Ok(()) => {}
            Err(InsertError::Replay) => {
                self.counts.replayed += 1;
                return;
            }
            Err(InsertError::Full { .. }) => {
                self.counts.cache_full += 1;
                return;
            }
        }
        self.actions.push(Action::Log { epoch: number, record: replay::record(number, tag) });
        let Ok(done) = opened.process() else {
            self.counts.refused += 1;
            return;
        };
        match done.command {
            Command::Deliver => {
                self.counts.delivered += 1;
                self.actions.push(Action::Deliver(packet));
            }
            Command::Reply { surb } => {
                self.counts.delivered += 1;
                self.actions.push(Action::Reply { surb, packet });
            }
            Command::Forward { delay, .. } if !self.config.forwards || delay > LONGEST_DELAY => {
                self.counts.unserved += 1;
            }
            Command::Forward { next, delay } if delay.is_zero() => {
                self.counts.forwarded += 1;
                self.actions.push(Action::Forward { to: next, packet });
            }
            Command::Forward { next, delay } => {
                let bytes = packet.as_bytes().len();
                if self.wheel.len() >= self.config.held_packets
                    || self.wheel.bytes() + bytes > self.config.held_bytes
                {
                    // The newest is dropped: whoever was here first has paid for its delay.
                    self.counts.overflowed += 1;
                } else {
                    self.wheel.hold(now + delay, Held { to: next, packet });
                }
            }
        }
    }
}

/// Why an epoch is not opened.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum EpochError {
    /// Packets of the two could not be told apart.
    #[error("epoch {epoch} has the parity of epoch {open}, which is still open")]
    Parity {
        /// The epoch to open.
        epoch: u64,
        /// The epoch in its way.
        open: u64,
    },
    /// The library refuses the secret.
    #[error("the secret of the epoch is not usable")]
    Secret,
}

struct Epoch {
    secret: <X25519 as Group>::Secret,
    cache: ReplayCache,
    closes_at: Instant,
}

#[cfg(test)]
mod tests;
