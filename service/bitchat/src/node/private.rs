//! Private messages both ways: parts, receipts, repeats, duplicates (BitChat protocol reference,
//! sections 3.3 and 9.1).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rand::Rng;
use uuid::Uuid;

use super::Node;
use crate::{
    dedup::Seen,
    event::{FailReason, Now, ReceiptKind, Report},
    id::MeshId,
    limits::Limits,
    message,
    noise::Pair,
    payload::noise::{MAX_TEXT, PlaintextType, PrivateMessage},
};

/// Before the first repeat; each further one waits longer by as much.
const FIRST_REPEAT: Duration = Duration::from_secs(5);
/// A text of more parts would keep a phone busy for minutes.
const MAX_PARTS: usize = 64;
/// How long a receipt may still come for a message that was given up or is delivered.
const MEMORY: Duration = Duration::from_secs(24 * 3600);

type Name = (MeshId, MeshId, Uuid);

/// Messages on their way out, and ids of those that came.
pub(super) struct Private {
    outgoing: BTreeMap<Name, Outgoing>,
    /// Parts by recipient and id.
    parts: BTreeMap<(MeshId, String), (Name, usize)>,
    /// Done, the oldest first: they wait for late receipts.
    done: VecDeque<(Duration, Name)>,
    /// Ids that came; whether we have acknowledged them stands in `acknowledged`.
    received: Seen<(Pair, String)>,
    acknowledged: Seen<(Pair, String)>,
    capacity: usize,
    active: usize,
}

struct Outgoing {
    parts: Vec<Part>,
    repeat_at: Duration,
    wait: Duration,
    give_up_at: Duration,
    is_active: bool,
}

struct Part {
    id: String,
    text: String,
    said: Option<ReceiptKind>,
}

impl Private {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            outgoing: BTreeMap::new(),
            parts: BTreeMap::new(),
            done: VecDeque::new(),
            received: Seen::with_life(limits.received_ids, MEMORY),
            acknowledged: Seen::with_life(limits.received_ids, MEMORY),
            capacity: limits.unconfirmed,
            active: 0,
        }
    }

    /// How many messages wait for a receipt.
    pub(super) fn len(&self) -> usize {
        self.active
    }

    pub(super) fn forget(&mut self, local: MeshId) {
        let names: Vec<Name> =
            self.outgoing.keys().filter(|(from, ..)| *from == local).copied().collect();
        names.into_iter().for_each(|name| self.remove(name));
    }

    fn finish(&mut self, now: Duration, name: Name) {
        if let Some(outgoing) = self.outgoing.get_mut(&name)
            && std::mem::replace(&mut outgoing.is_active, false)
        {
            self.active -= 1;
            self.done.push_back((now, name));
        }
        let is_over = |(at, _): &(Duration, Name)| now.saturating_sub(*at) >= MEMORY;
        while self.done.len() > self.capacity || self.done.front().is_some_and(is_over) {
            if let Some((_, name)) = self.done.pop_front() {
                self.remove(name);
            }
        }
    }

    fn remove(&mut self, name: Name) {
        if let Some(outgoing) = self.outgoing.remove(&name) {
            self.active -= usize::from(outgoing.is_active);
            self.done.retain(|(_, other)| *other != name);
            for part in outgoing.parts {
                self.parts.remove(&(name.1, part.id));
            }
        }
    }
}

impl<R: Rng> Node<R> {
    pub(super) fn send_private(
        &mut self,
        now: Now,
        from: MeshId,
        to: MeshId,
        id: Uuid,
        text: &str,
    ) {
        let texts = message::split(text, MAX_TEXT);
        let name = (from, to, id);
        let is_repeat = self.private.outgoing.get(&name).is_some_and(|one| one.is_active);
        let problem = if !self.locals.contains_key(&from) {
            Some(FailReason::UnknownLocal)
        } else if self.peers.find(to).is_none() {
            Some(FailReason::UnknownPeer)
        } else if self.links.is_empty() {
            Some(FailReason::NoLink)
        } else if texts.len() > MAX_PARTS {
            Some(FailReason::TooLarge { limit: MAX_PARTS * MAX_TEXT / 2 })
        } else if self.private.active >= self.private.capacity && !is_repeat {
            Some(FailReason::Busy)
        } else {
            None
        };
        if let Some(reason) = problem {
            self.fail(id, Some(to), reason);
            return;
        }
        self.private.remove(name);
        let is_whole = texts.len() == 1;
        let part = |(index, text): (u32, &str)| Part {
            id: part_id(id, index, is_whole),
            text: text.to_owned(),
            said: None,
        };
        let parts: Vec<Part> = (0..).zip(texts).map(part).collect();
        for (index, part) in parts.iter().enumerate() {
            self.private.parts.insert((to, part.id.clone()), (name, index));
        }
        let outgoing = Outgoing {
            parts,
            repeat_at: now.at + FIRST_REPEAT,
            wait: FIRST_REPEAT,
            give_up_at: now.at + self.limits.private_patience,
            is_active: true,
        };
        self.private.outgoing.insert(name, outgoing);
        self.private.active += 1;
        self.say_parts(now, name, false);
    }

    pub(super) fn send_receipt(
        &mut self,
        now: Now,
        from: MeshId,
        to: MeshId,
        id: &str,
        kind: ReceiptKind,
    ) {
        let plaintext = match kind {
            ReceiptKind::Delivered => PlaintextType::DELIVERED,
            ReceiptKind::Read => PlaintextType::READ,
        };
        self.private.acknowledged.insert(now.at, (Pair { local: from, remote: to }, id.to_owned()));
        self.say(now, from, to, plaintext, id.as_bytes(), false);
    }

    pub(super) fn take_private(&mut self, now: Now, pair: Pair, message: PrivateMessage) {
        let key = (pair, message.message_id.clone());
        if !self.private.received.insert(now.at, key.clone()) {
            // The sender may have lost our word that we have it; if the gateway has not said so
            // yet, it will.
            self.counters.messages_repeated += 1;
            if self.private.acknowledged.contains(&key) {
                let kind = ReceiptKind::Delivered;
                self.send_receipt(now, pair.local, pair.remote, &message.message_id, kind);
            }
            return;
        }
        let (to, from) = (pair.local, pair.remote);
        if let Some(marked) = message.favourite_notice() {
            let kind = ReceiptKind::Delivered;
            self.send_receipt(now, to, from, &message.message_id, kind);
            self.report(Report::Favourite { to, from, marked });
            return;
        }
        let PrivateMessage { message_id, text } = message;
        self.report(Report::Private { to, from, message_id, text });
    }

    pub(super) fn forget_private(&mut self, to: MeshId, from: MeshId, message_id: String) {
        self.private.received.remove(&(Pair { local: to, remote: from }, message_id));
    }

    pub(super) fn take_receipt(&mut self, pair: Pair, id: &str, is_read: bool) {
        let found = self.private.parts.get(&(pair.remote, id.to_owned())).copied();
        let Some((name, index)) = found.filter(|((from, ..), _)| *from == pair.local) else {
            return;
        };
        let kind = if is_read { ReceiptKind::Read } else { ReceiptKind::Delivered };
        let Some(outgoing) = self.private.outgoing.get_mut(&name) else { return };
        let before = outgoing.said();
        let part = &mut outgoing.parts[index];
        part.said = part.said.max(Some(kind));
        let after = outgoing.said();
        if after > before
            && let Some(kind) = after
        {
            let (from, to, message_id) = name;
            self.report(Report::Receipt { from, to, message_id, kind });
            let at = self.next_sweep;
            self.private.finish(at, name);
        }
    }

    /// Repeats what nobody has confirmed, on every link, and gives up what took too long.
    pub(super) fn tick_private(&mut self, now: Now) {
        let due = |outgoing: &Outgoing| {
            outgoing.is_active && (outgoing.repeat_at <= now.at || outgoing.give_up_at <= now.at)
        };
        let due: Vec<Name> = self
            .private
            .outgoing
            .iter()
            .filter(|(_, outgoing)| due(outgoing))
            .map(|(name, _)| *name)
            .collect();
        for name in due {
            let Some(outgoing) = self.private.outgoing.get_mut(&name) else { continue };
            if outgoing.give_up_at <= now.at {
                let (from, to, id) = name;
                let has_session = self.has_session(from, to);
                let reason =
                    if has_session { FailReason::Unconfirmed } else { FailReason::NoSession };
                self.private.finish(now.at, name);
                self.fail(id, Some(to), reason);
                continue;
            }
            outgoing.wait += FIRST_REPEAT;
            outgoing.repeat_at = now.at + outgoing.wait;
            self.say_parts(now, name, true);
        }
    }

    fn say_parts(&mut self, now: Now, name: Name, is_repeat: bool) {
        let (from, to, _) = name;
        let pair = Pair { local: from, remote: to };
        if is_repeat && !self.sessions.is_confirmed(pair) {
            self.begin_session(now, from, to);
            if self.sessions.waits(pair) {
                return;
            }
        }
        let Some(outgoing) = self.private.outgoing.get(&name) else { return };
        let open = outgoing.parts.iter().filter(|part| part.said.is_none());
        let bodies: Vec<_> = open
            .filter_map(|part| {
                let (message_id, text) = (part.id.clone(), part.text.clone());
                PrivateMessage { message_id, text }.encode().ok()
            })
            .collect();
        for body in bodies {
            if !self.say(now, from, to, PlaintextType::MESSAGE, &body, is_repeat) {
                return;
            }
        }
    }
}

impl Outgoing {
    /// What the recipient has said of all parts.
    fn said(&self) -> Option<ReceiptKind> {
        self.parts.iter().map(|part| part.said).min().flatten()
    }
}

fn part_id(id: Uuid, index: u32, is_whole: bool) -> String {
    let id = if is_whole { id } else { message::part_id(id, index) };
    id.hyphenated().encode_upper(&mut Uuid::encode_buffer()).to_owned()
}
