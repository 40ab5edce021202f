//! Bytes between gateways, in segments that are repeated until they have arrived.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rand::Rng;
use uuid::Uuid;

use super::Node;
use crate::{
    event::{FailReason, Now, Report},
    id::MeshId,
    noise::Pair,
    payload::{
        gateway::{MAX_CONTENT, Record, SEGMENT, segments},
        noise::PlaintextType,
    },
};

/// Segments that may be under way unconfirmed; half as many in small fragments, which take longer than
/// the sender waits at the pace of phones.
const WINDOW: usize = 16;
/// Segments that one receipt answers, where none is missing. Fewer are answered at the next sweep, so
/// that a loss holds nothing up.
const ANSWERED: usize = 8;
/// How long a receipt for a segment may take before it is said again.
const REPEAT: Duration = Duration::from_secs(6);
/// Finished transfers remembered, so that late segments are answered.
const FINISHED: usize = 256;

/// Transfers under way.
#[derive(Default)]
pub(super) struct Transfers {
    outgoing: BTreeMap<(MeshId, u32), Outgoing>,
    incoming: BTreeMap<(MeshId, u32), Incoming>,
    finished: VecDeque<((MeshId, u32), usize)>,
}

struct Outgoing {
    id: Uuid,
    bytes: Vec<u8>,
    segments: Vec<Segment>,
    progress_at: Duration,
    repeats: u32,
    /// Go over all links, in small fragments. Changes whenever something is late: on a lossy way
    /// few large fragments do better, on one with a narrow link small ones alone.
    is_cautious: bool,
}

#[derive(Clone, Copy, Default)]
struct Segment {
    has: bool,
    said_at: Option<Duration>,
}

struct Incoming {
    length: usize,
    segments: Vec<Option<Vec<u8>>>,
    heard_at: Duration,
    /// Segments that came since the last receipt.
    unanswered: usize,
}

impl Incoming {
    fn receipt(&mut self, transfer: u32) -> Record {
        self.unanswered = 0;
        Record::Receipt { transfer, has: self.segments.iter().map(Option::is_some).collect() }
    }
}

impl Transfers {
    pub(super) fn len(&self) -> usize {
        self.outgoing.len() + self.incoming.len()
    }
}

impl<R: Rng> Node<R> {
    pub(super) fn send_gateway(&mut self, now: Now, to: MeshId, id: Uuid, bytes: Vec<u8>) {
        let is_gateway = self.peers.find(to).is_some_and(|known| known.is_gateway);
        let problem = if !is_gateway {
            Some(FailReason::UnknownPeer)
        } else if self.links.is_empty() {
            Some(FailReason::NoLink)
        } else if bytes.len() > MAX_CONTENT {
            Some(FailReason::TooLarge { limit: MAX_CONTENT })
        } else if self.transfers.outgoing.len() >= self.limits.outgoing_transfers {
            Some(FailReason::Busy)
        } else {
            None
        };
        if let Some(reason) = problem {
            self.fail(id, Some(to), reason);
            return;
        }
        let mut number = [0; 4];
        self.rng.fill_bytes(&mut number);
        let key = (to, u32::from_be_bytes(number));
        let segments = vec![Segment::default(); segments(bytes.len())];
        let outgoing =
            Outgoing { id, bytes, segments, progress_at: now.at, repeats: 0, is_cautious: false };
        self.transfers.outgoing.insert(key, outgoing);
        self.say_segments(now, key);
    }

    /// Takes a record from another gateway; false if it is none.
    pub(super) fn take_gateway_record(&mut self, now: Now, pair: Pair, body: &[u8]) -> bool {
        match Record::decode(body) {
            Ok(Record::Segment { transfer, index, count, length, bytes }) => {
                let key = (pair.remote, transfer);
                self.take_segment(now, key, (index, count, length as usize), bytes);
            }
            Ok(Record::Receipt { transfer, has }) => {
                self.take_transfer_receipt(now, (pair.remote, transfer), &has);
            }
            Ok(Record::Refusal { transfer }) => {
                let refused = self.transfers.outgoing.remove(&(pair.remote, transfer));
                if let Some(refused) = refused {
                    self.fail(refused.id, Some(pair.remote), FailReason::Refused);
                }
            }
            Err(_) => return false,
        }
        true
    }

    pub(super) fn tick_transfers(&mut self, now: Now) {
        let patience = self.limits.transfer_patience;
        self.transfers
            .incoming
            .retain(|_, incoming| now.at.saturating_sub(incoming.heard_at) < patience);
        let unanswered = |incoming: &&mut Incoming| incoming.unanswered > 0;
        let receipts: Vec<_> = self
            .transfers
            .incoming
            .iter_mut()
            .filter(|(_, incoming)| unanswered(incoming))
            .map(|(key, incoming)| (key.0, incoming.receipt(key.1)))
            .collect();
        for (to, receipt) in receipts {
            self.answer(now, to, &receipt);
        }
        let keys: Vec<_> = self.transfers.outgoing.keys().copied().collect();
        for key in keys {
            let Some(outgoing) = self.transfers.outgoing.get_mut(&key) else { continue };
            if now.at.saturating_sub(outgoing.progress_at) >= patience {
                let id = outgoing.id;
                self.transfers.outgoing.remove(&key);
                let has_session = self.has_session(self.own, key.0);
                let reason =
                    if has_session { FailReason::Unconfirmed } else { FailReason::NoSession };
                self.fail(id, Some(key.0), reason);
                continue;
            }
            let wait = REPEAT * (1 << outgoing.repeats.min(3));
            let mut is_late = false;
            for segment in outgoing.segments.iter_mut().filter(|segment| !segment.has) {
                if segment.said_at.is_some_and(|at| now.at.saturating_sub(at) >= wait) {
                    segment.said_at = None;
                    is_late = true;
                }
            }
            if is_late {
                outgoing.repeats += 1;
                outgoing.is_cautious = !outgoing.is_cautious;
            }
            let pair = Pair { local: self.own, remote: key.0 };
            if is_late && !self.sessions.is_confirmed(pair) {
                self.begin_session(now, self.own, key.0);
                if self.sessions.waits(pair) {
                    continue;
                }
            }
            self.say_segments(now, key);
        }
    }

    /// Says again what is under way to a peer, where nothing has been heard of it for so long.
    pub(super) fn say_again(&mut self, now: Now, to: MeshId, silence: Duration) {
        let of_peer = self.transfers.outgoing.range_mut((to, 0)..=(to, u32::MAX));
        let mut keys = Vec::new();
        for (key, outgoing) in of_peer {
            if now.at.saturating_sub(outgoing.progress_at) < silence {
                continue;
            }
            outgoing.repeats = 0;
            for segment in outgoing.segments.iter_mut().filter(|segment| !segment.has) {
                segment.said_at = None;
            }
            keys.push(*key);
        }
        keys.into_iter().for_each(|key| self.say_segments(now, key));
    }

    /// Says as many segments as the window lets under way.
    fn say_segments(&mut self, now: Now, key: (MeshId, u32)) {
        let Some(outgoing) = self.transfers.outgoing.get_mut(&key) else { return };
        let under_way =
            outgoing.segments.iter().filter(|segment| !segment.has && segment.said_at.is_some());
        let window = if outgoing.is_cautious { WINDOW / 2 } else { WINDOW };
        let may = window.saturating_sub(under_way.count());
        let count = outgoing.segments.len() as u16;
        let length = outgoing.bytes.len();
        let everywhere = outgoing.is_cautious;
        let mut records = Vec::new();
        for (index, segment) in outgoing.segments.iter_mut().enumerate() {
            if records.len() < may && !segment.has && segment.said_at.is_none() {
                segment.said_at = Some(now.at);
                let start = index * SEGMENT;
                let bytes = outgoing.bytes[start..length.min(start + SEGMENT)].to_vec();
                let (index, length) = (index as u16, length as u32);
                records.push(Record::Segment { transfer: key.1, index, count, length, bytes });
            }
        }
        for record in records {
            self.say(now, self.own, key.0, PlaintextType::GATEWAY, &record.encode(), everywhere);
        }
    }

    fn take_segment(
        &mut self,
        now: Now,
        key: (MeshId, u32),
        (index, count, length): (u16, u16, usize),
        bytes: Vec<u8>,
    ) {
        let finished = self.transfers.finished.iter().find(|(other, _)| *other == key);
        if let Some((_, count)) = finished {
            let has = vec![true; *count];
            return self.answer(now, key.0, &Record::Receipt { transfer: key.1, has });
        }
        let of_peer = self.transfers.incoming.keys().filter(|(from, _)| *from == key.0).count();
        let is_new = !self.transfers.incoming.contains_key(&key);
        let is_full = self.transfers.incoming.len() >= self.limits.incoming_transfers
            || of_peer >= self.limits.incoming_transfers_per_peer;
        if is_new && is_full {
            self.counters.transfers_refused += 1;
            return self.answer(now, key.0, &Record::Refusal { transfer: key.1 });
        }
        let incoming = self.transfers.incoming.entry(key).or_insert_with(|| Incoming {
            length,
            segments: vec![None; count.into()],
            heard_at: now.at,
            unanswered: 0,
        });
        if incoming.length != length {
            self.counters.malformed += 1;
            return;
        }
        incoming.heard_at = now.at;
        let is_repeat = incoming.segments[usize::from(index)].replace(bytes).is_some();
        let is_whole = incoming.segments.iter().all(Option::is_some);
        incoming.unanswered += 1;
        if is_whole || is_repeat || incoming.unanswered >= ANSWERED {
            let receipt = incoming.receipt(key.1);
            self.answer(now, key.0, &receipt);
        }
        if is_whole && let Some(incoming) = self.transfers.incoming.remove(&key) {
            if self.transfers.finished.len() >= FINISHED {
                self.transfers.finished.pop_front();
            }
            self.transfers.finished.push_back((key, incoming.segments.len()));
            let bytes = incoming.segments.into_iter().flatten().flatten().collect();
            self.report(Report::Gateway { from: key.0, bytes });
        }
    }

    fn take_transfer_receipt(&mut self, now: Now, key: (MeshId, u32), has: &[bool]) {
        let Some(outgoing) = self.transfers.outgoing.get_mut(&key) else { return };
        if has.len() != outgoing.segments.len() {
            self.counters.malformed += 1;
            return;
        }
        for (segment, has) in outgoing.segments.iter_mut().zip(has) {
            if *has && !segment.has {
                segment.has = true;
                outgoing.progress_at = now.at;
                outgoing.repeats = 0;
            }
        }
        if outgoing.segments.iter().all(|segment| segment.has) {
            let id = outgoing.id;
            self.transfers.outgoing.remove(&key);
            self.report(Report::Sent { id, may_fail_on_apple: false });
        } else {
            self.say_segments(now, key);
        }
    }

    fn answer(&mut self, now: Now, to: MeshId, record: &Record) {
        self.say(now, self.own, to, PlaintextType::GATEWAY, &record.encode(), false);
    }
}
