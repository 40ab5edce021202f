//! Why links end, and how often.

use std::fmt;

/// Why this side ends a link, or refuses one.
///
/// The other side is told [`code`](Self::code) and the text.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Refusal {
    /// This side shuts down.
    Shutdown,
    /// There is another link to the same node.
    Duplicate,
    /// Nothing crossed it for long, and there are many.
    Idle,
    /// Nothing was heard from the other side for too long.
    Silent,
    /// The hello did not come in time.
    HelloTooLate,
    /// Too many links have not said hello yet.
    HalfOpen,
    /// There are as many links as there may be.
    TooManyLinks,
    /// There are as many links to the gateway as there may be.
    TooManyLinksOfGateway,
    /// No version is spoken by both.
    Version,
    /// What came is not well formed, or not what may come now.
    Nonsense,
    /// A frame or a stream is longer than its kind may be.
    Oversized,
    /// The certificate is not signed by the gateway that it names.
    CertificateForged,
    /// The certificate does not hold now.
    CertificateExpired,
    /// The certificate is for another node key or another purpose.
    CertificateOfAnother,
    /// The other side is a replica of this gateway.
    Ours,
    /// The roster is not one of the gateway at the other end, or not signed by it.
    ForeignRoster,
    /// A batch was not answered in time, or a stream did not end in time.
    Stalled,
}

impl Refusal {
    /// All there are.
    pub const ALL: [Self; 17] = [
        Self::Shutdown,
        Self::Duplicate,
        Self::Idle,
        Self::Silent,
        Self::HelloTooLate,
        Self::HalfOpen,
        Self::TooManyLinks,
        Self::TooManyLinksOfGateway,
        Self::Version,
        Self::Nonsense,
        Self::Oversized,
        Self::CertificateForged,
        Self::CertificateExpired,
        Self::CertificateOfAnother,
        Self::Ours,
        Self::ForeignRoster,
        Self::Stalled,
    ];

    /// A word for it, as counters are labelled.
    pub fn word(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Duplicate => "duplicate",
            Self::Idle => "idle",
            Self::Silent => "silent",
            Self::HelloTooLate => "hello_too_late",
            Self::HalfOpen => "half_open",
            Self::TooManyLinks => "too_many_links",
            Self::TooManyLinksOfGateway => "too_many_links_of_gateway",
            Self::Version => "version",
            Self::Nonsense => "nonsense",
            Self::Oversized => "oversized",
            Self::CertificateForged => "certificate_forged",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateOfAnother => "certificate_of_another",
            Self::Ours => "ours",
            Self::ForeignRoster => "foreign_roster",
            Self::Stalled => "stalled",
        }
    }

    /// The number by which the other side is told.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// What the other side means by a number.
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }

    /// Whether the other side did wrong, rather than that there is no room or use for the link.
    pub fn is_fault(self) -> bool {
        self >= Self::Version && self != Self::Ours
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Shutdown => "this gateway shuts down",
            Self::Duplicate => "there is another link to the same node",
            Self::Idle => "the link was idle",
            Self::Silent => "nothing was heard for too long",
            Self::HelloTooLate => "the hello came too late",
            Self::HalfOpen => "too many links have not said hello",
            Self::TooManyLinks => "too many links",
            Self::TooManyLinksOfGateway => "too many links to one gateway",
            Self::Version => "no version is spoken by both: expected 1",
            Self::Nonsense => "what came is not well formed",
            Self::Oversized => "what came is too long",
            Self::CertificateForged => "the certificate is not signed by the gateway it names",
            Self::CertificateExpired => "the certificate does not hold now",
            Self::CertificateOfAnother => "the certificate is for another key",
            Self::Ours => "both are replicas of one gateway",
            Self::ForeignRoster => "the roster is not of the gateway at this end",
            Self::Stalled => "a stream or an answer took too long",
        })
    }
}

/// What the core has counted since it began.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Envelopes that neighbours have taken.
    pub envelopes_sent: u64,
    /// Envelopes taken from neighbours.
    pub envelopes_received: u64,
    /// Envelopes that neighbours were told to bring later, since the inbox was full.
    pub envelopes_put_off: u64,
    /// Batches put on streams.
    pub batches_sent: u64,
    /// Rosters passed up.
    pub rosters_heard: u64,
    /// Links that said hello and were believed.
    pub links_opened: u64,
    /// Attempts to dial.
    pub dials: u64,
    refused: [u64; Refusal::ALL.len()],
}

impl Counters {
    /// How often this side ended a link for this reason.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refused[refusal as usize]
    }

    pub(crate) fn count(&mut self, refusal: Refusal) {
        self.refused[refusal as usize] += 1;
    }
}
