//! All sessions of this node: who may start one, which handshake wins, when one is replaced
//! (BitChat protocol reference, sections 5.2 and 5.5).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rand::Rng;

use super::{
    Handshake, NoiseError, Session,
    handshake::{FIRST, SECOND, THIRD},
};
use crate::{id::MeshId, identity::Identity, limits::Limits, packet::PacketType};

/// Two ends of a session: one of ours, one of somebody else.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Pair {
    pub(crate) local: MeshId,
    pub(crate) remote: MeshId,
}

/// What comes of feeding the sessions.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Put this payload into a packet to the peer.
    Send { pair: Pair, kind: PacketType, payload: Vec<u8> },
    /// The peer said this.
    Opened { pair: Pair, plaintext: Vec<u8> },
    /// A session stands; its peer holds this static key. `is_anew` where it takes the place of one:
    /// the peer may have started anew.
    Established { pair: Pair, noise_key: [u8; 32], is_anew: bool },
    /// A message was refused.
    Refused { error: NoiseError },
    /// There was no room, or too many handshakes.
    Limited,
}

/// A handshake that gets no answer is begun anew after this long.
const INITIATOR_TIMEOUT: Duration = Duration::from_secs(6);
/// How often one is begun before those who wait for it are given up.
const INITIATOR_TRIES: u8 = 3;
const RESPONDER_TIMEOUT: Duration = Duration::from_secs(20);
/// An old session still opens frames that were under way when it was replaced.
const OLD_SESSION: Duration = Duration::from_secs(20);
/// Android fails frames that overtake the third message, so the initiator waits for a word.
const AFTER_THIRD: Duration = Duration::from_millis(600);
/// Frames that do not open so long after a first message say that the third was lost.
const THIRD_LOST: Duration = Duration::from_secs(2);
/// A first message that crossed ours may come late.
const LATE_CROSSING: Duration = Duration::from_secs(1);
/// A session unused for so long gives way when the table is full.
const LONG_IDLE: Duration = Duration::from_secs(600);
/// iOS refuses older sessions.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
const RENEW_AGE: Duration = Duration::from_secs(24 * 3600 / 10 * 9);
const MAX_FRAMES: u32 = 1_000_000_000;
const RENEW_FRAMES: u32 = 900_000_000;
/// After so many frames in a row that do not open, the keys are taken to differ.
const FAILURES: u8 = 3;
const EARLY_PER_PAIR: usize = 4;
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Entry {
    live: Option<Live>,
    old: Option<(Session, Duration)>,
    attempt: Option<Attempt>,
    /// Plaintexts that wait for a session.
    waiting: VecDeque<Vec<u8>>,
    /// Frames that came before the third message.
    early: VecDeque<Vec<u8>>,
    failures: u8,
    used_at: Duration,
    /// Handshakes begun by either side in the minute that began at the time.
    begun: (Duration, u32),
}

struct Live {
    session: Session,
    since: Duration,
    as_initiator: bool,
    /// Until the peer has said a word, or this time has come, nothing is sent.
    quiet_until: Option<Duration>,
    /// Whether the peer has shown that it has the keys too.
    is_confirmed: bool,
}

enum Attempt {
    Initiator { handshake: Handshake, since: Duration, tries: u8 },
    Responder { handshake: Handshake, since: Duration },
}

pub(crate) struct Sessions {
    entries: BTreeMap<Pair, Entry>,
    capacity: usize,
    waiting_per_pair: usize,
    early_in_all: usize,
    handshakes_per_peer: u32,
    handshakes_in_all: u32,
    begun: (Duration, u32),
}

impl Sessions {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            entries: BTreeMap::new(),
            capacity: limits.sessions,
            waiting_per_pair: limits.waiting_per_session,
            early_in_all: limits.early_frames,
            handshakes_per_peer: limits.handshakes_per_peer_a_minute,
            handshakes_in_all: limits.handshakes_a_minute,
            begun: (Duration::ZERO, 0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_established(&self, pair: Pair) -> bool {
        self.entries.get(&pair).is_some_and(|entry| entry.live.is_some())
    }

    /// Whether the peer has shown that it has the keys of the session too. Where it has not, our
    /// last word of the handshake may be lost.
    pub(crate) fn is_confirmed(&self, pair: Pair) -> bool {
        let live = self.entries.get(&pair).and_then(|entry| entry.live.as_ref());
        live.is_some_and(|live| live.is_confirmed)
    }

    /// Whether plaintexts still wait for a session; to say them again would double them.
    pub(crate) fn waits(&self, pair: Pair) -> bool {
        self.entries.get(&pair).is_some_and(|entry| !entry.waiting.is_empty())
    }

    /// Whether anybody here has a session with the peer, so that it is worth remembering.
    pub(crate) fn knows(&self, remote: MeshId) -> bool {
        self.entries.iter().any(|(pair, entry)| pair.remote == remote && entry.live.is_some())
    }

    /// Seals a plaintext, or keeps it until a handshake is done. False if there is no room.
    pub(crate) fn send(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        identity: &Identity,
        remote: MeshId,
        plaintext: Vec<u8>,
        out: &mut Vec<Outcome>,
    ) -> bool {
        let pair = Pair { local: identity.id(), remote };
        let limit = self.waiting_per_pair;
        let Some(entry) = self.entry(now, pair, out) else { return false };
        entry.used_at = now;
        if entry.waiting.len() >= limit {
            out.push(Outcome::Limited);
            return false;
        }
        entry.waiting.push_back(plaintext);
        entry.flush(now, pair, out);
        let needs_session = entry.live.is_none() && entry.attempt.is_none();
        if needs_session {
            self.initiate(now, rng, identity, remote, 1, out);
        }
        true
    }

    /// Begins a handshake unless one is under way.
    pub(crate) fn begin(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        identity: &Identity,
        remote: MeshId,
        out: &mut Vec<Outcome>,
    ) {
        let pair = Pair { local: identity.id(), remote };
        if self.entry(now, pair, out).is_some_and(|entry| entry.attempt.is_none()) {
            self.initiate(now, rng, identity, remote, 1, out);
        }
    }

    /// Takes in one message of a handshake.
    pub(crate) fn handshake(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        identity: &Identity,
        remote: MeshId,
        message: &[u8],
        out: &mut Vec<Outcome>,
    ) {
        let pair = Pair { local: identity.id(), remote };
        match message.len() {
            FIRST => self.first(now, rng, identity, pair, message, out),
            SECOND => self.second(now, pair, message, out),
            THIRD => self.third(now, pair, message, out),
            length => out.push(Outcome::Refused { error: NoiseError::OutOfTurn { length } }),
        }
    }

    /// Takes in one transport frame.
    pub(crate) fn frame(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        identity: &Identity,
        remote: MeshId,
        frame: &[u8],
        out: &mut Vec<Outcome>,
    ) {
        let pair = Pair { local: identity.id(), remote };
        let early: usize = self.entries.values().map(|entry| entry.early.len()).sum();
        let may_keep = early < self.early_in_all;
        let Some(entry) = self.entry(now, pair, out) else { return };
        match entry.open(frame) {
            Ok(plaintext) => {
                entry.failures = 0;
                entry.used_at = now;
                if let Some(live) = &mut entry.live {
                    live.quiet_until = None;
                    live.is_confirmed = true;
                }
                out.push(Outcome::Opened { pair, plaintext });
                entry.flush(now, pair, out);
                return;
            }
            Err(error @ NoiseError::Replayed { .. }) => {
                out.push(Outcome::Refused { error });
                return;
            }
            Err(error) => out.push(Outcome::Refused { error }),
        }
        if let Some(Attempt::Responder { since, .. }) = entry.attempt
            && now.saturating_sub(since) < THIRD_LOST
        {
            // It may belong to the session whose third message is still under way.
            if may_keep && entry.early.len() < EARLY_PER_PAIR {
                entry.early.push_back(frame.to_vec());
            }
            return;
        }
        entry.failures = entry.failures.saturating_add(1);
        if entry.live.is_none() || entry.failures >= FAILURES {
            entry.failures = 0;
            // Beside the session that stands: forged frames must not end it.
            if !matches!(entry.attempt, Some(Attempt::Initiator { .. })) {
                self.initiate(now, rng, identity, remote, 1, out);
            }
        }
    }

    /// Renews, retries and forgets what is due. Call it every second or so.
    pub(crate) fn tick<'a>(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        identity: impl Fn(MeshId) -> Option<&'a Identity>,
        out: &mut Vec<Outcome>,
    ) {
        let mut again = Vec::new();
        self.entries.retain(|pair, entry| {
            if entry.old.as_ref().is_some_and(|(_, until)| now >= *until) {
                entry.old = None;
            }
            if entry.live.as_ref().is_some_and(|live| {
                now.saturating_sub(live.since) >= MAX_AGE || live.session.sealed() >= MAX_FRAMES
            }) {
                entry.live = None;
            }
            match &entry.attempt {
                Some(Attempt::Initiator { since, tries, .. })
                    if now.saturating_sub(*since) >= INITIATOR_TIMEOUT =>
                {
                    if *tries < INITIATOR_TRIES {
                        again.push((*pair, tries + 1));
                    } else {
                        entry.waiting.clear();
                    }
                    entry.attempt = None;
                }
                Some(Attempt::Responder { since, .. })
                    if now.saturating_sub(*since) >= RESPONDER_TIMEOUT =>
                {
                    entry.attempt = None;
                    entry.early.clear();
                }
                None if entry.needs_renewal(now) => again.push((*pair, 1)),
                _ => {}
            }
            entry.flush(now, *pair, out);
            let is_idle = entry.live.is_none()
                && entry.attempt.is_none()
                && entry.waiting.is_empty()
                && now.saturating_sub(entry.begun.0) >= MINUTE;
            !is_idle || again.iter().any(|(other, _)| other == pair)
        });
        for (pair, tries) in again {
            if let Some(identity) = identity(pair.local) {
                self.initiate(now, rng, identity, pair.remote, tries, out);
            }
        }
    }

    /// Ends all sessions of one of ours.
    pub(crate) fn forget(&mut self, local: MeshId) {
        self.entries.retain(|pair, _| pair.local != local);
    }

    fn first(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        identity: &Identity,
        pair: Pair,
        message: &[u8],
        out: &mut Vec<Outcome>,
    ) {
        let Some(entry) = self.entry(now, pair, out) else { return };
        let we_lead = pair.local < pair.remote;
        if we_lead && matches!(entry.attempt, Some(Attempt::Initiator { .. })) {
            return;
        }
        let just_completed = entry.live.as_ref().is_some_and(|live| {
            live.as_initiator && now.saturating_sub(live.since) < LATE_CROSSING
        });
        if we_lead && just_completed {
            return;
        }
        if !self.may_begin(now, pair) {
            out.push(Outcome::Limited);
            return;
        }
        match Handshake::respond(identity.noise_private(), random(rng), message) {
            Ok((handshake, second)) => {
                if let Some(entry) = self.entries.get_mut(&pair) {
                    entry.attempt = Some(Attempt::Responder { handshake, since: now });
                    entry.early.clear();
                }
                let kind = PacketType::NOISE_HANDSHAKE;
                out.push(Outcome::Send { pair, kind, payload: second });
            }
            Err(error) => out.push(Outcome::Refused { error }),
        }
    }

    fn second(&mut self, now: Duration, pair: Pair, message: &[u8], out: &mut Vec<Outcome>) {
        let length = message.len();
        let Some(entry) = self.entries.get_mut(&pair) else {
            out.push(Outcome::Refused { error: NoiseError::OutOfTurn { length } });
            return;
        };
        match entry.attempt.take() {
            Some(Attempt::Initiator { handshake, .. }) => match handshake.complete(message) {
                Ok((session, third)) if belongs(&session, pair) => {
                    let kind = PacketType::NOISE_HANDSHAKE;
                    out.push(Outcome::Send { pair, kind, payload: third });
                    entry.establish(now, pair, session, true, out);
                }
                Ok(_) => out.push(Outcome::Refused { error: NoiseError::WrongPeer }),
                Err(error) => out.push(Outcome::Refused { error }),
            },
            other => {
                entry.attempt = other;
                out.push(Outcome::Refused { error: NoiseError::OutOfTurn { length } });
            }
        }
    }

    fn third(&mut self, now: Duration, pair: Pair, message: &[u8], out: &mut Vec<Outcome>) {
        let length = message.len();
        let Some(entry) = self.entries.get_mut(&pair) else {
            out.push(Outcome::Refused { error: NoiseError::OutOfTurn { length } });
            return;
        };
        match entry.attempt.take() {
            Some(Attempt::Responder { handshake, .. }) => match handshake.accept(message) {
                Ok(session) if belongs(&session, pair) => {
                    entry.establish(now, pair, session, false, out);
                    for frame in std::mem::take(&mut entry.early) {
                        if let Ok(plaintext) = entry.open(&frame) {
                            out.push(Outcome::Opened { pair, plaintext });
                        }
                    }
                    entry.flush(now, pair, out);
                }
                Ok(_) => out.push(Outcome::Refused { error: NoiseError::WrongPeer }),
                Err(error) => out.push(Outcome::Refused { error }),
            },
            other => {
                entry.attempt = other;
                out.push(Outcome::Refused { error: NoiseError::OutOfTurn { length } });
            }
        }
    }

    fn initiate(
        &mut self,
        now: Duration,
        rng: &mut impl Rng,
        identity: &Identity,
        remote: MeshId,
        tries: u8,
        out: &mut Vec<Outcome>,
    ) {
        let pair = Pair { local: identity.id(), remote };
        if !self.may_begin(now, pair) {
            out.push(Outcome::Limited);
            return;
        }
        match Handshake::initiate(identity.noise_private(), random(rng)) {
            Ok((handshake, first)) => {
                if let Some(entry) = self.entries.get_mut(&pair) {
                    entry.attempt = Some(Attempt::Initiator { handshake, since: now, tries });
                }
                let kind = PacketType::NOISE_HANDSHAKE;
                out.push(Outcome::Send { pair, kind, payload: first });
            }
            Err(error) => out.push(Outcome::Refused { error }),
        }
    }

    /// Counts a handshake against the limits of a minute.
    fn may_begin(&mut self, now: Duration, pair: Pair) -> bool {
        let Some(entry) = self.entries.get_mut(&pair) else { return false };
        let in_all = count(now, &mut self.begun) < self.handshakes_in_all;
        let of_peer = count(now, &mut entry.begun) < self.handshakes_per_peer;
        if in_all && of_peer {
            self.begun.1 += 1;
            entry.begun.1 += 1;
        }
        in_all && of_peer
    }

    /// The entry of a pair, made if there is room or somebody idle makes some.
    fn entry(&mut self, now: Duration, pair: Pair, out: &mut Vec<Outcome>) -> Option<&mut Entry> {
        if !self.entries.contains_key(&pair) && self.entries.len() >= self.capacity {
            let is_idle = |entry: &Entry| {
                entry.live.is_none() || now.saturating_sub(entry.used_at) >= LONG_IDLE
            };
            let idle = self
                .entries
                .iter()
                .filter(|(_, entry)| is_idle(entry) && entry.waiting.is_empty())
                .min_by_key(|(_, entry)| (entry.live.is_some(), entry.used_at))
                .map(|(pair, _)| *pair);
            let Some(idle) = idle else {
                out.push(Outcome::Limited);
                return None;
            };
            self.entries.remove(&idle);
        }
        Some(self.entries.entry(pair).or_insert_with(|| Entry { used_at: now, ..Entry::default() }))
    }
}

impl Entry {
    fn establish(
        &mut self,
        now: Duration,
        pair: Pair,
        session: Session,
        as_initiator: bool,
        out: &mut Vec<Outcome>,
    ) {
        let noise_key = *session.remote();
        let quiet_until = as_initiator.then_some(now + AFTER_THIRD);
        let is_confirmed = !as_initiator;
        let live = Live { session, since: now, as_initiator, quiet_until, is_confirmed };
        let old = self.live.replace(live);
        let is_anew = old.is_some();
        self.old = old.map(|old| (old.session, now + OLD_SESSION));
        self.failures = 0;
        self.used_at = now;
        out.push(Outcome::Established { pair, noise_key, is_anew });
    }

    fn open(&mut self, frame: &[u8]) -> Result<Vec<u8>, NoiseError> {
        let mut result = Err(NoiseError::Unauthentic { length: frame.len() });
        if let Some(live) = &mut self.live {
            result = live.session.open(frame);
        }
        // A number seen in this session may be new in the one before.
        match (&result, &mut self.old) {
            (Err(_), Some((old, _))) => old.open(frame).or(result),
            _ => result,
        }
    }

    /// Sends what waits, in order, if the session stands and may speak.
    fn flush(&mut self, now: Duration, pair: Pair, out: &mut Vec<Outcome>) {
        let Some(live) = &mut self.live else { return };
        if live.quiet_until.is_some_and(|until| now < until) {
            return;
        }
        live.quiet_until = None;
        while let Some(plaintext) = self.waiting.pop_front() {
            match live.session.seal(&plaintext) {
                Ok(payload) => {
                    let kind = PacketType::NOISE_ENCRYPTED;
                    out.push(Outcome::Send { pair, kind, payload });
                }
                Err(error) => out.push(Outcome::Refused { error }),
            }
        }
    }

    /// Renewed only while it is in use; an idle one is left to expire.
    fn needs_renewal(&self, now: Duration) -> bool {
        self.live.as_ref().is_some_and(|live| {
            let in_use = now.saturating_sub(self.used_at) < RENEW_AGE / 9;
            let is_old = now.saturating_sub(live.since) >= RENEW_AGE;
            (in_use && is_old) || live.session.sealed() >= RENEW_FRAMES
        })
    }
}

/// The key must be that of the peer whose name the packets carry (section 4.3).
fn belongs(session: &Session, pair: Pair) -> bool {
    MeshId::of_noise_key(session.remote()) == pair.remote
}

fn count(now: Duration, begun: &mut (Duration, u32)) -> u32 {
    if now.saturating_sub(begun.0) >= MINUTE {
        *begun = (now, 0);
    }
    begun.1
}

fn random(rng: &mut impl Rng) -> [u8; 32] {
    let mut key = [0; 32];
    rng.fill_bytes(&mut key);
    key
}
