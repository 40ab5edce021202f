//! Files on their way out (BitChat protocol reference, section 3.5).

use std::{collections::VecDeque, time::Duration};

use rand::Rng;
use uuid::Uuid;

use super::Node;
use crate::{
    event::{FailReason, Now, Report},
    fragment,
    id::MeshId,
    link::MAX_FRAME,
    noise::{FRAME_OVERHEAD, Pair},
    packet::{Packet, PacketType},
    payload::{announce::Capabilities, file::File, noise::PlaintextType},
};

/// How long a file waits for a session and the peer's word that it takes files.
const PATIENCE: Duration = Duration::from_secs(20);
/// Files that wait; further ones are refused.
const WAITING: usize = 8;

/// Private files that wait for a session.
#[derive(Default)]
pub(super) struct Files {
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    from: MeshId,
    to: MeshId,
    id: Uuid,
    body: Vec<u8>,
    until: Duration,
}

impl<R: Rng> Node<R> {
    pub(super) fn send_file(
        &mut self,
        now: Now,
        from: MeshId,
        to: Option<MeshId>,
        id: Uuid,
        file: &File,
    ) {
        let body = match self.check_file(from, to, file) {
            Ok(body) => body,
            Err(reason) => return self.fail(id, to, reason),
        };
        let Some(to) = to else {
            let header = self.header(now, PacketType::FILE, from, None);
            let packet = Packet::new(header, body);
            let may_fail_on_apple = packet.is_compressed();
            self.originate_signed(now, packet);
            self.report(Report::Sent { id, may_fail_on_apple });
            return;
        };
        if self.files.waiting.len() >= WAITING {
            return self.fail(id, Some(to), FailReason::Busy);
        }
        let until = now.at + PATIENCE;
        self.files.waiting.push_back(Waiting { from, to, id, body, until });
        let pair = Pair { local: from, remote: to };
        if self.has_session(from, to) {
            self.files_unlocked(now, pair);
        } else {
            self.begin_session(now, from, to);
        }
    }

    /// A session stands and the peer has said what it can do: files that waited for it may go.
    pub(super) fn files_unlocked(&mut self, now: Now, pair: Pair) {
        let proven = self.peers.find(pair.remote).and_then(|known| known.proven);
        let Some(proven) = proven else { return };
        let is_theirs = |file: &Waiting| (file.from, file.to) == (pair.local, pair.remote);
        let (theirs, others) = self.files.waiting.drain(..).partition(is_theirs);
        self.files.waiting = others;
        let theirs: VecDeque<Waiting> = theirs;
        for Waiting { from, to, id, body, .. } in theirs {
            if !proven.has(Capabilities::PRIVATE_MEDIA) {
                self.fail(id, Some(to), FailReason::NoPrivateMedia);
            } else if self.say(now, from, to, PlaintextType::FILE, &body, false) {
                self.report(Report::Sent { id, may_fail_on_apple: false });
            } else {
                self.fail(id, Some(to), FailReason::Busy);
            }
        }
    }

    pub(super) fn tick_files(&mut self, now: Now) {
        let is_late = |file: &Waiting| file.until <= now.at;
        let (late, others) = self.files.waiting.drain(..).partition(is_late);
        self.files.waiting = others;
        let late: VecDeque<Waiting> = late;
        for Waiting { from, to, id, .. } in late {
            let has_session = self.has_session(from, to);
            let reason =
                if has_session { FailReason::NoPrivateMedia } else { FailReason::NoSession };
            self.fail(id, Some(to), reason);
        }
    }

    /// The file's bytes, if they make no more fragments than Android takes.
    fn check_file(
        &self,
        from: MeshId,
        to: Option<MeshId>,
        file: &File,
    ) -> Result<Vec<u8>, FailReason> {
        if !self.locals.contains_key(&from) {
            return Err(FailReason::UnknownLocal);
        }
        if to.is_some_and(|to| self.peers.find(to).is_none()) {
            return Err(FailReason::UnknownPeer);
        }
        let narrowest = self.narrowest(to).ok_or(FailReason::NoLink)?.min(MAX_FRAME);
        let limit = self.most_in_fragments(narrowest);
        let body = file.encode().map_err(|_| FailReason::TooLarge { limit })?;
        if body.len() > limit {
            return Err(FailReason::TooLarge { limit });
        }
        let needed = body.len().div_ceil(limit / usize::from(self.limits.fragments_sent)) + 1;
        let has_room = self.links.values().all(|link| link.room() >= needed);
        if has_room { Ok(body) } else { Err(FailReason::Busy) }
    }

    /// How large a payload may be on a link, so that Android still takes its fragments.
    pub(super) fn most_in_fragments(&self, max_frame: usize) -> usize {
        let header = crate::packet::Header {
            kind: PacketType::FILE,
            hops_left: 0,
            timestamp_ms: 0,
            sender: self.own,
            recipient: Some(self.own),
        };
        let chunk = fragment::chunk(&Packet::new(header, Vec::new()), max_frame);
        let whole = chunk * usize::from(self.limits.fragments_sent);
        whole - 16 - 8 - 8 - 64 - FRAME_OVERHEAD - 1
    }
}
