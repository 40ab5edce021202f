//! What goes into a node and what comes out.

use std::time::Duration;

use thiserror::Error;
use uuid::Uuid;

use crate::{
    id::MeshId,
    identity::Identity,
    link::{LinkId, Role},
    payload::{announce::Capabilities, file::File},
};

/// The time, twice: the node waits by the one and dates packets by the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Now {
    /// Since any fixed moment, for example the driver's start. Must not go backwards.
    pub at: Duration,
    /// Milliseconds since 1970, as the wall clock says. Phones drop what is two minutes off.
    pub unix_ms: u64,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A link to a neighbour stands.
    LinkUp {
        /// Its name; never used again.
        link: LinkId,
        /// Which side we are.
        role: Role,
        /// The largest frame it takes, in bytes: ATT MTU less 3.
        max_frame: usize,
        /// Whether a phone may be at the other end, so that it needs a phone's pace.
        phone: bool,
    },
    /// A link is gone.
    LinkDown {
        /// Which.
        link: LinkId,
    },
    /// A link takes so many frames more than it has been given. Once this was said of a link, it is
    /// given no frame for which there is no room; before, it takes what comes.
    Room {
        /// Which.
        link: LinkId,
        /// How many.
        frames: usize,
    },
    /// A frame came.
    Frame {
        /// Over which link.
        link: LinkId,
        /// One whole frame.
        bytes: Vec<u8>,
    },
    /// [`Node::next_deadline`](crate::Node::next_deadline) has come.
    Wake,
    /// The gateway wants something.
    Command(Command),
}

/// What the gateway wants.
///
/// `from` is always the node itself or a peer that it hosts; anything else fails with
/// [`FailReason::UnknownLocal`].
#[derive(Clone, Debug)]
pub enum Command {
    /// Speak for a peer from now on.
    Host {
        /// Its keys.
        identity: Box<Identity>,
        /// What phones show; cut where it would not fit an announce.
        nickname: String,
    },
    /// Say its farewell and forget its keys; the node itself says farewell alone.
    Unhost {
        /// Which.
        peer: MeshId,
    },
    /// Announce another nickname.
    Rename {
        /// Of whom.
        peer: MeshId,
        /// What phones show.
        nickname: String,
    },
    /// Pin keys known from an earlier run.
    Pin {
        /// X25519.
        noise_key: [u8; 32],
        /// Ed25519.
        signing_key: [u8; 32],
        /// Whether a person has verified them.
        verified: bool,
    },
    /// Send text to one peer; long text goes in parts.
    SendPrivate {
        /// Who says it.
        from: MeshId,
        /// To whom.
        to: MeshId,
        /// Ours; a message of one part carries it, in upper case.
        message_id: Uuid,
        /// What is said.
        text: String,
    },
    /// Send text to everybody.
    SendPublic {
        /// Who says it.
        from: MeshId,
        /// For reports alone; public messages carry no id.
        message_id: Uuid,
        /// What is said.
        text: String,
    },
    /// Send a file, to one peer or to everybody.
    SendFile {
        /// Who sends it.
        from: MeshId,
        /// To whom, or to everybody.
        to: Option<MeshId>,
        /// For reports.
        file_id: Uuid,
        /// What is sent.
        file: File,
    },
    /// Acknowledge a private message.
    SendReceipt {
        /// Who has it.
        from: MeshId,
        /// Who wrote it.
        to: MeshId,
        /// Its id as it came.
        message_id: String,
        /// What is said of it.
        kind: ReceiptKind,
    },
    /// A private message that came could not be kept: take it for new when it comes again.
    Forget {
        /// For whom it was.
        to: MeshId,
        /// Who wrote it.
        from: MeshId,
        /// Its id as it came.
        message_id: String,
    },
    /// Send bytes to another gateway.
    SendGateway {
        /// Its node.
        to: MeshId,
        /// For reports.
        transfer_id: Uuid,
        /// At most 64 KiB and a little.
        bytes: Vec<u8>,
    },
    /// Ask a peer for proof of its signing key.
    Verify {
        /// Who asks.
        from: MeshId,
        /// Who is asked.
        to: MeshId,
    },
    /// Ask whether a peer is there.
    Ping {
        /// Who asks.
        from: MeshId,
        /// Who is asked.
        to: MeshId,
    },
    /// Ask the neighbour on a link for what it has.
    RequestSync {
        /// Which link.
        link: LinkId,
    },
    /// Close a link.
    Disconnect {
        /// Which.
        link: LinkId,
    },
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put one frame on a link, now. Pacing is done.
    Transmit {
        /// Which link.
        link: LinkId,
        /// One whole frame.
        frame: Vec<u8>,
    },
    /// Close a link; no `LinkDown` is needed for it.
    Disconnect {
        /// Which.
        link: LinkId,
    },
    /// Tell the gateway.
    Report(Report),
}

/// What the gateway learns.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// A peer is there, or what it says of itself has changed, or it is there again.
    Peer(Peer),
    /// A peer has said farewell, was not heard for long, or had to make room for a newcomer.
    PeerGone {
        /// Who.
        id: MeshId,
        /// Whether it said so.
        left: bool,
    },
    /// Somebody announced a peer's name with other keys than those pinned. Said once a minute.
    KeyConflict {
        /// Whose.
        id: MeshId,
    },
    /// Text for everybody, signed by a peer whose keys are pinned.
    Public {
        /// Who wrote it.
        from: MeshId,
        /// The same at every gateway that hears it.
        message_id: Uuid,
        /// When, by its own clock.
        timestamp_ms: u64,
        /// What it says.
        text: String,
    },
    /// Text for one of ours. It is not acknowledged until the gateway says so.
    Private {
        /// For whom.
        to: MeshId,
        /// Who wrote it; its Noise key is proven.
        from: MeshId,
        /// Opaque; a receipt must repeat it.
        message_id: String,
        /// What it says.
        text: String,
    },
    /// A peer has marked one of ours as a favourite, or no longer does.
    Favourite {
        /// Whom.
        to: MeshId,
        /// Who.
        from: MeshId,
        /// Whether it does now.
        marked: bool,
    },
    /// The recipient has a message of ours, or has read it: all parts of it.
    Receipt {
        /// Whose message.
        from: MeshId,
        /// Who has it.
        to: MeshId,
        /// Which.
        message_id: Uuid,
        /// What it says of it.
        kind: ReceiptKind,
    },
    /// A file came, whole.
    File {
        /// For whom, or for everybody.
        to: Option<MeshId>,
        /// Who sent it.
        from: MeshId,
        /// What was sent.
        file: File,
    },
    /// Bytes from another gateway. Its node's Noise key is proven; what they say is not.
    Gateway {
        /// Its node.
        from: MeshId,
        /// As they were sent.
        bytes: Vec<u8>,
    },
    /// All frames of a public message, a file or the last part of a transfer are in the queues, or,
    /// for a transfer, the other gateway has it all.
    Sent {
        /// Of the message, file or transfer.
        id: Uuid,
        /// A public message or file travels compressed: iOS verifies it only if Apple's encoder
        /// gives the same bytes as ours (BitChat protocol reference, section 2.3).
        may_fail_on_apple: bool,
    },
    /// What was to be sent was not, or nobody confirmed it.
    Failed {
        /// Of the message, file or transfer.
        id: Uuid,
        /// To whom.
        to: Option<MeshId>,
        /// Why.
        reason: FailReason,
    },
    /// A peer has proven inside a session that it holds its signing key.
    Verified {
        /// Who.
        id: MeshId,
    },
    /// A peer has answered a ping.
    Pong {
        /// Who.
        from: MeshId,
        /// How many links the answer crossed.
        hops: u8,
        /// How long both ways took.
        round_trip: Duration,
    },
}

/// What a receipt says.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ReceiptKind {
    /// The recipient has the message.
    Delivered,
    /// The recipient has read it.
    Read,
}

/// A peer as it announced itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// Its name on the mesh.
    pub id: MeshId,
    /// As it calls itself; anybody may call themselves anything.
    pub nickname: String,
    /// X25519; proven only by a session.
    pub noise_key: [u8; 32],
    /// Ed25519.
    pub signing_key: [u8; 32],
    /// SHA-256 of the Noise key.
    pub fingerprint: [u8; 32],
    /// What it can do.
    pub capabilities: Capabilities,
    /// Whether it is a Fieldpost node, which takes [`Command::SendGateway`].
    pub is_gateway: bool,
    /// Whether it speaks through a Fieldpost gateway.
    pub is_hosted: bool,
    /// How many links its announce crossed.
    pub hops: u8,
    /// When it was last heard.
    pub heard_at: Duration,
    /// Whether its signing key has been proven inside a session or by a person.
    pub is_verified: bool,
}

/// Why something was not sent.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum FailReason {
    /// The sender is not hosted here.
    #[error("no such peer is hosted here")]
    UnknownLocal,
    /// Nobody of that name has been heard.
    #[error("the recipient has not been heard")]
    UnknownPeer,
    /// There is no link at all.
    #[error("there is no link")]
    NoLink,
    /// No handshake came to an end.
    #[error("no session came about")]
    NoSession,
    /// It was sent as often as it may be, and nobody confirmed it.
    #[error("nobody confirmed it")]
    Unconfirmed,
    /// It is larger than it may be.
    #[error("it is too large: at most {limit} bytes")]
    TooLarge {
        /// The most that would do.
        limit: usize,
    },
    /// Too much is under way already.
    #[error("too much is under way")]
    Busy,
    /// The recipient has not proven that it takes private files.
    #[error("the recipient takes no private files")]
    NoPrivateMedia,
    /// The other gateway had no room.
    #[error("the other gateway is busy")]
    Refused,
    /// There is nothing in it that could be sent.
    #[error("there is nothing to send")]
    Empty,
}
