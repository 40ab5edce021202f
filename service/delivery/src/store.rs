//! What the decisions need remembered: the store that the gateway keeps in Postgres and the
//! simulations keep in memory.
//!
//! Every method is one transaction: it happens whole or not at all, and what it returned survives
//! a crash. Time is an argument. Methods may be called by any number of replicas at once.
//!
//! A message for a recipient of this gateway goes straight into the recipient's inbox; one for a
//! recipient elsewhere goes into the outbox. A delivery that has ended leaves both and becomes a
//! line of history.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use fieldpost_envelope::{
    AddressError, AnonymityLevel, GatewayId, GroupId, LaneSeq, MessageId, MessageStatus,
    PeerAddress, PeerId, Priority, ReceiptKind, Recipient, limits,
};

/// The instants of stores, to the microsecond.
pub type Time = DateTime<Utc>;

/// A position in one recipient's inbox, counted from 1 without gaps (design, section 5).
pub type Seq = i64;

/// What a sender wrote, with all that has to stay together.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The client's name for it, or ours. Unique for each sender.
    pub id: MessageId,
    /// Who wrote it; with a gateway when it came from elsewhere.
    pub sender: PeerAddress,
    /// Whom it was addressed to, as written.
    pub to: Recipient,
    /// The body.
    pub content: Content,
    /// When it ceases to be worth delivering.
    pub expires_at: Time,
    /// How urgent it is; `critical` has no lane.
    pub priority: Priority,
    /// The lowest anonymity level that may carry it or its receipts.
    pub min_anonymity: AnonymityLevel,
    /// How it wants to travel.
    pub wishes: Wishes,
}

/// The body of a message as it was sent.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Content {
    /// The bytes; UTF-8 when `is_text`.
    pub bytes: Vec<u8>,
    /// Whether the sender gave text rather than bytes.
    pub is_text: bool,
    /// Media type, if the sender gave one.
    pub content_type: Option<String>,
    /// What the sender calls this kind of message, if anything.
    pub message_type: Option<String>,
    /// A JSON object of the sender's, as text.
    pub metadata: Option<String>,
    /// Files that go with it.
    pub file_ids: Vec<String>,
    /// What the mirrored surfaces echo and nobody interprets: algorithm label, nonce, time to live.
    pub labels: BTreeMap<String, String>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Content is never logged.
        f.debug_struct("Content").field("size_bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// How a message wants to travel.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wishes {
    /// The transport to try first.
    pub preference: Option<String>,
    /// The only transport allowed.
    pub required: Option<String>,
    /// All suitable transports at once.
    pub parallel: bool,
}

/// One message to be accepted, with its recipients already resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// What was written.
    pub message: Message,
    /// SHA-256 over all that makes two requests under one id the same.
    pub fingerprint: [u8; 32],
    /// One entry for each delivery it gives rise to; with the failures at most [`MAX_RECIPIENTS`].
    pub deliveries: Vec<Target>,
    /// Deliveries that cannot begin, such as those to recipients whose storage is full: they have
    /// failed when the message is accepted, and keep nobody from cancelling it.
    pub failures: Vec<Failure>,
}

/// A delivery that cannot begin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Where it would have gone.
    pub target: Target,
    /// Why it cannot.
    pub reason: String,
}

/// The most deliveries that one message may give rise to.
pub const MAX_RECIPIENTS: usize = 10_000;

/// Where one delivery goes.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Target {
    /// The inbox of a peer of this gateway.
    Local(PeerId),
    /// A peer behind another gateway, or a phone.
    Remote(PeerAddress),
    /// A group of another gateway, its home, which fans out: `delivered` means that it has.
    Group {
        /// The group's name at its home.
        id: GroupId,
        /// Where it is at home.
        home: GatewayId,
    },
    /// A broadcast over one transport; ends as `sent` and is never repeated.
    Broadcast(String),
}

impl Target {
    /// How the sender sees it: a peer, `peer@gateway`, a phone, `group:<id>@<home>`, or
    /// `transport:<name>`.
    pub fn recipient(&self) -> String {
        match self {
            Self::Local(peer) => peer.to_string(),
            Self::Remote(address) => address.to_string(),
            Self::Group { id, home } => {
                Recipient::Group { id: id.clone(), home: Some(*home) }.to_string()
            }
            Self::Broadcast(transport) => format!("{TRANSPORT_PREFIX}{transport}"),
        }
    }

    /// What has to be in reach to act on it: a gateway id, a phone, or `transport:<name>`; `None`
    /// for a recipient of this gateway.
    pub fn reached_through(&self) -> Option<String> {
        match self {
            Self::Local(_) => None,
            Self::Remote(address) => Some(
                address.gateway.map_or_else(|| address.peer.to_string(), |home| home.to_string()),
            ),
            Self::Group { home, .. } => Some(home.to_string()),
            Self::Broadcast(_) => Some(self.recipient()),
        }
    }

    /// The other end of the delivery's lane, for one that leaves this gateway and has a lane.
    pub fn lane_end(&self) -> Option<Recipient> {
        match self {
            Self::Local(_) | Self::Broadcast(_) => None,
            Self::Remote(address) => Some(address.clone().into()),
            Self::Group { id, home } => {
                Some(Recipient::Group { id: id.clone(), home: Some(*home) })
            }
        }
    }
}

const TRANSPORT_PREFIX: &str = "transport:";

/// How the store answered a [`Submission`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Accepted {
    /// It is stored; delivery has begun.
    New {
        /// When, strictly increasing within one sender.
        accepted_at: Time,
    },
    /// The same request was accepted before.
    Same {
        /// When that was.
        accepted_at: Time,
        /// Its end of life as accepted then.
        expires_at: Time,
        /// Its state now.
        status: MessageStatus,
    },
    /// Another message of this sender has the id.
    Conflict,
}

/// What became of a batch of submissions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AcceptedBatch {
    /// The answers, in the order of the batch.
    pub answers: Vec<Accepted>,
    /// What was shown at once, and to whom; each recipient's in order.
    pub shown: Vec<(PeerId, InboxEntry)>,
    /// What was claimed at once.
    pub claimed: Vec<Claim>,
}

/// What accepting may do besides, in the same transaction.
#[derive(Clone, Copy, Debug, Default)]
pub struct AtOnce<'a> {
    /// To these what is new is shown, as [`Store::show`] would next. To a peer for whom something else
    /// waits unshown nothing is, as it has to come first.
    pub present: &'a [PeerId],
    /// What is new and leads through one of these is claimed, as [`Store::claim_due`] would; but
    /// nothing for phones, which get one of a lane at a time.
    pub reachable: &'a [String],
    /// For how long.
    pub lease: Duration,
}

impl AtOnce<'_> {
    /// Until when what is accepted `now` is claimed.
    pub fn claimed_until(&self, now: Time) -> Time {
        crate::later(now, self.lease)
    }
}

/// One message in a recipient's inbox.
#[derive(Clone, Debug, PartialEq)]
pub struct InboxEntry {
    /// Its position.
    pub seq: Seq,
    /// When it was accepted here.
    pub accepted_at: Time,
    /// When it was sent: [`Inbound::shown_sent_at`] of what came from elsewhere.
    pub sent_at: Time,
    /// The message.
    pub message: Message,
    /// Something of its lane that should come before has not come in time (promise 5).
    pub gap: bool,
    /// It comes after what should have followed it.
    pub late: bool,
}

/// What a recipient's client confirms.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Confirm {
    /// Everything shown up to a position. What has expired since it was shown is among it from
    /// `seen_from` on: whether the client ever had what came before, nobody knows.
    UpTo {
        /// The last position.
        seq: Seq,
        /// The first of those that the client is known to have been given one after the other.
        seen_from: Seq,
    },
    /// These messages; by sender where two senders gave the same id.
    Messages(Vec<(MessageId, Option<PeerAddress>)>),
}

impl Confirm {
    /// Confirms up to `seq` for a client that was given all of it.
    pub fn all_up_to(seq: Seq) -> Self {
        Self::UpTo { seq, seen_from: 0 }
    }
}

/// A delivery that came to an end or moved on, so that its sender can be told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settled {
    /// The message.
    pub id: MessageId,
    /// Its sender.
    pub sender: PeerAddress,
    /// The recipient, in the form the sender sees it.
    pub recipient: String,
    /// The state reached.
    pub status: MessageStatus,
    /// When.
    pub at: Time,
    /// Why, where it failed.
    pub reason: Option<String>,
}

/// How a cancellation went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cancelled {
    /// Nothing had left; nothing will.
    Done,
    /// At least one delivery has left, or there never was one.
    TooLate,
    /// The caller sent no such message.
    Unknown,
}

/// The right to attempt one delivery until a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The message, content included.
    pub message: Message,
    /// When it was accepted.
    pub accepted_at: Time,
    /// Where this delivery goes.
    pub target: Target,
    /// How often it has been attempted, this time included.
    pub attempt: u32,
    /// Its place in its lane; `None` for critical messages and broadcasts.
    pub lane_seq: Option<LaneSeq>,
    /// The last predecessor of its lane that has not ended.
    pub after: Option<LaneSeq>,
    /// Until when nobody else is offered it.
    pub claimed_until: Time,
}

/// What became of one attempt over one transport.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attempt {
    /// The transport's name.
    pub transport: String,
    /// When it began.
    pub started_at: Time,
    /// What came of it.
    pub result: AttemptResult,
    /// Why it was chosen, or why it failed.
    pub reason: Option<String>,
    /// Over how many links the recipient was, or its gateway, where the transport knew.
    pub hops: Option<u8>,
}

impl Attempt {
    /// What the record of a delivery inside this gateway says: no link was used.
    pub fn local(accepted_at: Time) -> Self {
        Self {
            transport: "local".to_owned(),
            started_at: accepted_at,
            result: AttemptResult::Stored,
            reason: None,
            hops: None,
        }
    }
}

/// The result of an attempt as the sender sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AttemptResult {
    /// The transport took charge.
    Sent,
    /// The transport refused or broke.
    Failed,
    /// No receipt came in time.
    Silent,
    /// The recipient's gateway has committed it.
    Stored,
    /// The recipient's gateway will not take it.
    Refused,
}

/// What happens to a delivery after an attempt; decided by the core, recorded by the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// A transport took charge; try again at this time unless a receipt comes.
    Sent {
        /// SHA-256 of the envelope, by which a receipt names it.
        envelope: [u8; 32],
        /// When silence is taken for loss.
        retry_at: Time,
    },
    /// Nothing took charge; try again at this time.
    Retry {
        /// When.
        at: Time,
    },
    /// Nobody can act on it now.
    Wait {
        /// Why, for the sender.
        reason: String,
        /// When to try again though nothing came into reach, such as when a transport has rested;
        /// `None` if only a reach event helps.
        until: Option<Time>,
    },
    /// It has ended.
    End {
        /// `failed`, or `sent` for a broadcast.
        status: MessageStatus,
        /// Why.
        reason: Option<String>,
    },
}

/// A message that came from another gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Inbound {
    /// What was sent; `sender.gateway` signed it.
    pub message: Message,
    /// The home of the group that passed it on, whose lanes these are and where receipts go; `None`
    /// if the sender's own gateway sent it.
    pub via: Option<GatewayId>,
    /// Our peer that it is for.
    pub recipient: PeerId,
    /// When the sender's gateway accepted it, by its own clock.
    pub sent_at: Time,
    /// Its place in its lane, if it has one.
    pub lane_seq: Option<LaneSeq>,
    /// The last predecessor that had not ended when it left.
    pub after: Option<LaneSeq>,
    /// SHA-256 of the envelope, for the receipts.
    pub envelope: [u8; 32],
    /// What carried it.
    pub transport: String,
}

impl Inbound {
    /// When it was sent, as recipients are shown it.
    pub fn shown_sent_at(&self, arrived_at: Time) -> Time {
        shown_sent_at(self.sent_at, self.message.expires_at, arrived_at)
    }

    /// Who sent this copy, and where receipts go.
    pub fn signer(&self) -> Option<Correspondent> {
        let sender = &self.message.sender;
        let gateway = self.via.or(sender.gateway).map(Correspondent::Gateway);
        gateway.or_else(|| Correspondent::phone(&sender.peer))
    }
}

/// When a message from elsewhere was sent, as recipients are shown it: what the sender's gateway says,
/// but not after it arrived, and not longer before its end of life than any message lives. Nothing
/// else asks for it, so a clock that lies changes neither order nor expiry.
pub fn shown_sent_at(said: Time, expires_at: Time, arrived_at: Time) -> Time {
    let longest = Duration::from_millis(limits::LIFETIME_MS);
    let earliest =
        TimeDelta::from_std(longest).ok().and_then(|life| expires_at.checked_sub_signed(life));
    earliest.map_or(said, |earliest| said.max(earliest)).min(arrived_at)
}

/// Who gives and gets receipts: a gateway, by its signature, or a phone, by the word of the transport
/// that holds a session with it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Correspondent {
    /// A gateway.
    Gateway(GatewayId),
    /// A phone, by the bytes of its name.
    Phone([u8; 8]),
}

impl Correspondent {
    /// The phone of a name that is one.
    pub fn phone(peer: &PeerId) -> Option<Self> {
        let digits = peer.is_phone().then(|| u64::from_str_radix(peer.as_str(), 16).ok())?;
        digits.map(|digits| Self::Phone(digits.to_be_bytes()))
    }
}

impl From<GatewayId> for Correspondent {
    fn from(gateway: GatewayId) -> Self {
        Self::Gateway(gateway)
    }
}

impl fmt::Display for Correspondent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(gateway) => gateway.fmt(f),
            Self::Phone(id) => PeerId::phone(*id).fmt(f),
        }
    }
}

impl FromStr for Correspondent {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.parse().ok().and_then(|peer| Self::phone(&peer)) {
            Some(phone) => Ok(phone),
            None => text.parse().map(Self::Gateway),
        }
    }
}

/// How an [`Inbound`] message was taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Received {
    /// Committed; `stored` is owed. Whether it can be shown at once.
    Stored {
        /// False while it waits for a predecessor.
        visible: bool,
    },
    /// We have it, or had it; `stored` is owed again.
    Duplicate,
    /// It is not taken; `refused` is owed, with this reason.
    Refused(String),
}

/// A receipt that arrived for something we sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReceiptIn {
    /// SHA-256 of the envelope it answers.
    pub envelope: [u8; 32],
    /// Whose word it is; must be the one the envelope went to.
    pub signer: Correspondent,
    /// What it says.
    pub kind: ReceiptKind,
    /// When that happened there.
    pub at: Time,
    /// Why, for `refused`.
    pub reason: Option<String>,
}

/// A receipt that we owe another gateway, or a phone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReceiptOut {
    /// SHA-256 of the envelope it answers.
    pub envelope: [u8; 32],
    /// Where it goes.
    pub gateway: Correspondent,
    /// What it says.
    pub kind: ReceiptKind,
    /// When that happened.
    pub at: Time,
    /// Why, for `refused`.
    pub reason: Option<String>,
    /// The level that it must not go below.
    pub level: AnonymityLevel,
    /// How often it has been attempted, this time included.
    pub attempt: u32,
}

/// What the sender, or a recipient, may know of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The message.
    pub message: Message,
    /// When it was accepted.
    pub accepted_at: Time,
    /// When it was sent: [`Inbound::shown_sent_at`] of what came from elsewhere.
    pub sent_at: Time,
    /// One for each recipient, sorted by recipient.
    pub deliveries: Vec<DeliveryRecord>,
}

/// The state of one delivery.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeliveryRecord {
    /// Whom it goes to, or `transport:<name>` for a broadcast over one.
    pub recipient: String,
    /// Where it stands.
    pub status: MessageStatus,
    /// Since when, where known.
    pub at: Option<Time>,
    /// Why it waits or failed.
    pub reason: Option<String>,
    /// What was tried, oldest first.
    pub attempts: Vec<Attempt>,
}

/// Where messages are kept.
///
/// # Errors
///
/// Every method fails only when the store cannot be reached or refuses to work; nothing has
/// happened then, or, after a lost connection, what happened is found by doing it again: all
/// methods are safe to repeat.
#[expect(async_fn_in_trait, reason = "the callers are generic and need no particular auto traits")]
pub trait Store {
    /// Why the store could not do it.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Accepts a batch, each entry by itself, in order. The answers stand in the order of `batch`.
    async fn accept(&self, now: Time, batch: &[Submission]) -> Result<Vec<Accepted>, Self::Error> {
        Ok(self.accept_and_begin(now, batch, AtOnce::default()).await?.answers)
    }

    /// As [`accept`](Self::accept), and does what can be done at once. The store may leave any of that
    /// to be done later.
    async fn accept_and_begin(
        &self,
        now: Time,
        batch: &[Submission],
        at_once: AtOnce<'_>,
    ) -> Result<AcceptedBatch, Self::Error>;

    /// Shows up to `limit` unconfirmed messages of `peer` with a position above `after`, in order,
    /// giving positions to those that have none. Expired ones are not shown. A message of this
    /// gateway becomes `sent` when it is first shown.
    async fn show(
        &self,
        now: Time,
        peer: &PeerId,
        after: Seq,
        limit: usize,
    ) -> Result<Vec<InboxEntry>, Self::Error>;

    /// Confirms messages of `peer` as delivered, or as read; confirming again changes nothing but
    /// can still turn `delivered` into `read`. What was not shown is not confirmed. Returned is what
    /// changed. `delivered` or `read` is owed to the gateway that a message came from.
    async fn confirm(
        &self,
        now: Time,
        peer: &PeerId,
        what: &Confirm,
        read: bool,
    ) -> Result<Vec<Settled>, Self::Error>;

    /// Cancels a message of `sender` if no delivery of it has left (design, section 5).
    ///
    /// One under claim may be leaving, so it counts as having left until its attempt is recorded as
    /// [`Next::Retry`] or [`Next::Wait`].
    async fn cancel(
        &self,
        now: Time,
        sender: &PeerId,
        id: MessageId,
    ) -> Result<Cancelled, Self::Error>;

    /// Ends up to `limit` deliveries whose time is over.
    async fn expire_due(&self, now: Time, limit: usize) -> Result<Vec<Settled>, Self::Error>;

    /// Claims up to `limit` due deliveries to `reachable` gateways, phones or transports, the most
    /// urgent and longest overdue first. Nobody else is offered them until `lease` has passed. A
    /// phone is offered nothing while it owes us an earlier message of the same lane.
    async fn claim_due(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> Result<Vec<Claim>, Self::Error>;

    /// Records what an attempt came to and what follows from it. Ignored when the delivery has
    /// ended meanwhile, or the recipient's gateway has it, but for the attempt itself and the
    /// envelope. An attempt is known by transport and start; recorded again, it gets its new result.
    /// A claim that was overtaken by a newer one does not give that one up.
    async fn record(
        &self,
        now: Time,
        claim: &Claim,
        attempts: &[Attempt],
        next: &Next,
    ) -> Result<Option<Settled>, Self::Error>;

    /// Makes what waits for `targets` due now, and what backs off from them. With what was due
    /// already it leaves in turns: the first of every lane, then the second, so that nobody waits
    /// behind all that another has sent. Returns how many.
    async fn reached(&self, now: Time, targets: &[String]) -> Result<u64, Self::Error>;

    /// Stores a message from another gateway, or knows it already. `order_wait` is how long it may
    /// be held back for a predecessor. A duplicate's envelope is the one that later receipts name.
    async fn receive(
        &self,
        now: Time,
        inbound: &Inbound,
        order_wait: Duration,
    ) -> Result<Received, Self::Error>;

    /// Releases messages that have waited long enough for a predecessor; returns whose inboxes grew.
    async fn release_held(&self, now: Time, limit: usize) -> Result<Vec<PeerId>, Self::Error>;

    /// Applies a receipt; late and repeated ones are harmless. `None` when it changes nothing.
    async fn settle(&self, now: Time, receipt: &ReceiptIn) -> Result<Option<Settled>, Self::Error>;

    /// Claims up to `limit` receipts that are due to `reachable` gateways.
    async fn claim_receipts(
        &self,
        now: Time,
        lease: Duration,
        reachable: &[String],
        limit: usize,
    ) -> Result<Vec<ReceiptOut>, Self::Error>;

    /// Forgets a receipt that a transport took charge of, or puts it off to `retry_at`.
    async fn receipt_done(
        &self,
        receipt: &ReceiptOut,
        retry_at: Option<Time>,
    ) -> Result<(), Self::Error>;

    /// What `caller` may know: its own message of that id, else all of that id in its inbox or
    /// its history. Attempts are filled in for the sender alone.
    async fn records(
        &self,
        now: Time,
        caller: &PeerId,
        id: MessageId,
    ) -> Result<Vec<Record>, Self::Error>;

    /// The earliest time at which [`expire_due`](Self::expire_due),
    /// [`claim_due`](Self::claim_due) or [`release_held`](Self::release_held) has work; a time in
    /// the past when that has work now, for recipients out of reach too.
    async fn next_due(&self) -> Result<Option<Time>, Self::Error>;
}
