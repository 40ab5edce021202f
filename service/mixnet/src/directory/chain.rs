use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use fieldpost_envelope::Timestamp;
use rand::{CryptoRng, RngExt, seq::IteratorRandom};

use super::{
    document::{Authority, Document, DocumentError, SignedDocument},
    epoch::Epoch,
    gossip::GossipMessage,
};

/// A link to another gateway or relay, as the driver numbers them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Neighbour(pub u64);

/// The documents that this node believes, and how it hands them on (HTX reference, section 5).
///
/// A document is taken up only with k signatures, with the number that comes next and with the hash
/// of the one that we have. The first one that a node ever sees has nothing to follow and rests on
/// its signatures; give it the genesis document, or one from a source that you trust.
///
/// | What is kept | At most | At the limit |
/// |---|---|---|
/// | documents | 8, and the newest | the oldest is forgotten |
/// | neighbours | 64 | further ones are ignored |
/// | requests of ours under way | 1, for 10 s | another neighbour is asked |
/// | answers to one neighbour | 1 a second, after 8 at once | the request is ignored |
pub struct Chain<R> {
    rng: R,
    authority: Authority,
    documents: VecDeque<SignedDocument>,
    neighbours: BTreeMap<Neighbour, Known>,
    request: Option<Request>,
    refresh_at: Option<Timestamp>,
    actions: Vec<ChainAction>,
}

/// What we know about a neighbour.
struct Known {
    /// The newest document that it says it has.
    head: Option<u64>,
    /// When it has all of its answers again, in milliseconds since 1970.
    rested_at_ms: u64,
}

struct Request {
    of: Neighbour,
    until: Timestamp,
}

/// What happens to a chain.
#[derive(Clone, Debug)]
pub enum ChainEvent<'a> {
    /// There is a link to another node.
    Joined(Neighbour),
    /// It is gone.
    Left(Neighbour),
    /// A neighbour says something.
    Received {
        /// Who.
        from: Neighbour,
        /// What, not decoded yet.
        bytes: &'a [u8],
    },
    /// A signed document came from elsewhere: this gateway's database, or its operator.
    Offered(&'a [u8]),
    /// [`Chain::next_deadline`] has passed.
    Wake,
}

/// What a driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ChainAction {
    /// Tell a neighbour something.
    Send {
        /// Whom.
        to: Neighbour,
        /// What.
        message: GossipMessage,
    },
    /// A document was taken up; keep it.
    Adopted {
        /// Its number.
        number: u64,
        /// Its epoch.
        epoch: Epoch,
        /// Its digest.
        digest: [u8; 32],
    },
    /// A document was refused.
    Refused {
        /// From whom it came, if from a neighbour.
        from: Option<Neighbour>,
        /// Why.
        error: DocumentError,
    },
    /// A neighbour has another document under a number of ours. If it shows it, k signers signed
    /// both: an operator should know.
    Forked {
        /// Who.
        with: Neighbour,
        /// The number.
        number: u64,
    },
    /// The others are so far ahead that nobody may have what comes next here. An operator can begin
    /// anew from a document that they trust.
    Behind {
        /// The number that comes next here.
        next: u64,
        /// The newest that a neighbour has.
        newest: u64,
    },
}

impl<R: CryptoRng> Chain<R> {
    /// How many documents are kept, for those who missed some.
    pub const KEPT: usize = 8;
    /// The most neighbours.
    pub const NEIGHBOURS: usize = 64;

    /// A chain without documents.
    pub fn new(rng: R, authority: Authority) -> Self {
        Self {
            rng,
            authority,
            documents: VecDeque::new(),
            neighbours: BTreeMap::new(),
            request: None,
            refresh_at: None,
            actions: Vec::new(),
        }
    }

    /// Takes in one event and returns what to do about it.
    pub fn handle(
        &mut self,
        now: Timestamp,
        event: ChainEvent<'_>,
    ) -> impl Iterator<Item = ChainAction> {
        match event {
            ChainEvent::Joined(neighbour) => self.join(neighbour),
            ChainEvent::Left(neighbour) => self.leave(neighbour),
            ChainEvent::Received { from, bytes } => self.receive(now, from, bytes),
            ChainEvent::Offered(bytes) => self.offer(now, None, bytes),
            ChainEvent::Wake => {}
        }
        if self.request.as_ref().is_some_and(|request| request.until <= now) {
            self.give_up_request();
        }
        self.refresh(now);
        self.ask(now);
        self.actions.drain(..)
    }

    /// When the next [`ChainEvent::Wake`] is due.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let request = self.request.as_ref().map(|request| request.until);
        request.into_iter().chain(self.refresh_at).min()
    }

    /// The newest document.
    pub fn newest(&self) -> Option<&SignedDocument> {
        self.documents.back()
    }

    /// The document that routes of this time are drawn from: the newest one whose epoch has begun.
    ///
    /// A node goes on with what it has while nothing newer comes. Whether the relays in it still
    /// have keys for the current epoch is the route's concern.
    pub fn active(&self, now: Timestamp) -> Option<&Document> {
        let current = self.authority.clock().epoch_at(now);
        let documents = self.documents.iter().rev().map(SignedDocument::document);
        documents.into_iter().find(|document| document.epoch <= current)
    }

    /// Every document that is kept, oldest first.
    pub fn documents(&self) -> impl Iterator<Item = &SignedDocument> {
        self.documents.iter()
    }

    /// Forgets all documents: the next good one begins the chain anew.
    pub fn forget(&mut self) {
        self.documents.clear();
    }

    fn join(&mut self, neighbour: Neighbour) {
        if self.neighbours.len() < Self::NEIGHBOURS {
            self.neighbours.insert(neighbour, Known { head: None, rested_at_ms: 0 });
            self.tell_head(neighbour);
        }
    }

    fn leave(&mut self, neighbour: Neighbour) {
        self.neighbours.remove(&neighbour);
        self.request.take_if(|request| request.of == neighbour);
    }

    fn receive(&mut self, now: Timestamp, from: Neighbour, bytes: &[u8]) {
        if !self.neighbours.contains_key(&from) {
            return;
        }
        match GossipMessage::decode(bytes) {
            Ok(GossipMessage::Head { number, digest }) => self.hear_head(from, number, digest),
            Ok(GossipMessage::Request { number }) => self.answer(now, from, number),
            Ok(GossipMessage::Document(bytes)) => {
                // What nobody asked for costs a signature check or more, so it is not looked at.
                if self.request.take_if(|request| request.of == from).is_some() {
                    self.offer(now, Some(from), &bytes);
                }
            }
            Err(error) => self.refuse(Some(from), error.into()),
        }
    }

    fn hear_head(&mut self, from: Neighbour, number: u64, digest: [u8; 32]) {
        if let Some(known) = self.neighbours.get_mut(&from) {
            known.head = Some(number);
        }
        let Some(newest) = self.newest() else { return };
        let (ours, next) = (newest.document().number, newest.document().number + 1);
        if number < ours {
            self.tell_head(from);
        } else if number >= next + Self::KEPT as u64 {
            self.actions.push(ChainAction::Behind { next, newest: number });
        }
        let same = self.kept(number).is_none_or(|document| document.digest() == digest);
        if !same {
            self.actions.push(ChainAction::Forked { with: from, number });
        }
    }

    fn answer(&mut self, now: Timestamp, from: Neighbour, number: u64) {
        let Some(document) = self.kept(number).map(SignedDocument::to_bytes) else { return };
        let Some(known) = self.neighbours.get_mut(&from) else { return };
        let now_ms = now.as_millis();
        let rested_at = known.rested_at_ms.clamp(now_ms, now_ms + ANSWER_MS * ANSWERS);
        known.rested_at_ms = rested_at;
        if rested_at + ANSWER_MS <= now_ms + ANSWER_MS * ANSWERS {
            known.rested_at_ms += ANSWER_MS;
            self.send(from, GossipMessage::Document(document));
        }
    }

    fn offer(&mut self, now: Timestamp, from: Option<Neighbour>, bytes: &[u8]) {
        match self.adopt(now, bytes) {
            Ok(false) => {}
            Ok(true) => {
                let others: Vec<_> = self.neighbours.keys().copied().collect();
                others.into_iter().filter(|to| Some(*to) != from).for_each(|to| self.tell_head(to));
            }
            Err(error) => self.refuse(from, error),
        }
    }

    /// Takes up a document; tells whether it is new.
    fn adopt(&mut self, now: Timestamp, bytes: &[u8]) -> Result<bool, DocumentError> {
        let document = SignedDocument::decode(bytes)?;
        let digest = document.digest();
        if self.documents.iter().any(|kept| kept.digest() == digest) {
            return Ok(false);
        }
        let (number, epoch) = (document.document().number, document.document().epoch);
        let current = self.authority.clock().epoch_at(now);
        // The next epoch's document comes early; clocks may differ by one more.
        if epoch > current + 2 {
            return Err(DocumentError::TooEarly { epoch, now: current });
        }
        match self.newest() {
            Some(newest) => document.verify_after(newest, &self.authority)?,
            None => document.verify(&self.authority)?,
        };
        if self.documents.len() == Self::KEPT {
            self.documents.pop_front();
        }
        self.documents.push_back(document);
        self.refresh_at = None;
        self.actions.push(ChainAction::Adopted { number, epoch, digest });
        Ok(true)
    }

    fn refuse(&mut self, from: Option<Neighbour>, error: DocumentError) {
        if let Some(from) = from {
            // It is not asked again before it says something new.
            if let Some(known) = self.neighbours.get_mut(&from) {
                known.head = None;
            }
        }
        self.actions.push(ChainAction::Refused { from, error });
    }

    fn give_up_request(&mut self) {
        if let Some(request) = self.request.take()
            && let Some(known) = self.neighbours.get_mut(&request.of)
        {
            known.head = None;
        }
    }

    /// Asks a neighbour that has what comes next, one at a time.
    fn ask(&mut self, now: Timestamp) {
        if self.request.is_some() {
            return;
        }
        let next = self.newest().map(|newest| newest.document().number + 1);
        let has_it =
            |known: &Known| known.head.is_some_and(|head| next.is_none_or(|it| head >= it));
        let ahead = self.neighbours.iter().filter(|(_, known)| has_it(known));
        let Some((of, known)) = ahead.choose(&mut self.rng) else { return };
        let (of, Some(head)) = (*of, known.head) else { return };
        self.request = Some(Request { of, until: later(now, REQUEST_MS) });
        self.send(of, GossipMessage::Request { number: next.unwrap_or(head) });
    }

    /// Looks around for the next document, at a random moment in the last quarter of an epoch and,
    /// while nothing comes, in each quarter that follows (HTX reference, section 5, "Client
    /// refresh").
    fn refresh(&mut self, now: Timestamp) {
        let clock = self.authority.clock();
        let quarter = clock.length().as_millis() as u64 / 4;
        match self.refresh_at {
            None => {
                let Some(newest) = self.newest() else { return };
                let end = clock.start(newest.document().epoch + 1).as_millis();
                let begin = end.saturating_sub(quarter).max(now.as_millis());
                let jitter = self.rng.random_range(0..quarter);
                self.refresh_at = Some(later(at(begin), jitter));
            }
            Some(due) if due <= now => {
                let jitter = self.rng.random_range(0..quarter);
                self.refresh_at = Some(later(now, quarter / 2 + jitter));
                let someone = self.neighbours.keys().copied().choose(&mut self.rng);
                someone.into_iter().for_each(|to| self.tell_head(to));
            }
            Some(_) => {}
        }
    }

    fn kept(&self, number: u64) -> Option<&SignedDocument> {
        self.documents.iter().find(|document| document.document().number == number)
    }

    fn tell_head(&mut self, to: Neighbour) {
        if let Some(newest) = self.newest() {
            let (number, digest) = (newest.document().number, newest.digest());
            self.send(to, GossipMessage::Head { number, digest });
        }
    }

    fn send(&mut self, to: Neighbour, message: GossipMessage) {
        self.actions.push(ChainAction::Send { to, message });
    }
}

impl<R> fmt::Debug for Chain<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("documents", &self.documents)
            .field("neighbours", &self.neighbours.len())
            .finish_non_exhaustive()
    }
}

fn later(now: Timestamp, millis: u64) -> Timestamp {
    at(now.as_millis().saturating_add(millis))
}

fn at(millis: u64) -> Timestamp {
    Timestamp::try_from(millis).unwrap_or(Timestamp::MAX)
}

const REQUEST_MS: u64 = 10_000;
const ANSWER_MS: u64 = 1_000;
const ANSWERS: u64 = 8;
