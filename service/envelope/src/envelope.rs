//! What one gateway says to another: a message for one recipient, or a receipt for one.

use std::{collections::BTreeMap, fmt};

use thiserror::Error;

use crate::{
    address::{GatewayId, PeerAddress, Recipient},
    message::{AnonymityLevel, LaneSeq, MessageId, Priority, ReceiptKind, Timestamp},
};

/// One message for one recipient, between two gateways.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Envelope {
    /// Who wrote it. In an envelope that is sent, the gateway is the signer's.
    pub sender: PeerAddress,
    /// Whom this envelope is for: `peer@gateway`, `group:<id>@<home>` or `broadcast`.
    pub recipient: Recipient,
    /// Whom the sender addressed: the recipient, or the group of which the recipient is a member.
    pub to: Recipient,
    /// The sender's name for the message.
    pub message_id: MessageId,
    /// When the sender's gateway accepted it.
    pub sent_at: Timestamp,
    /// When it ceases to be worth delivering.
    pub expires_at: Timestamp,
    /// How urgent it is.
    pub priority: Priority,
    /// The lowest anonymity level that may carry it or its receipts.
    pub level: AnonymityLevel,
    /// Its place in its lane; critical messages and broadcasts have none.
    pub lane_seq: Option<LaneSeq>,
    /// The last predecessor of its lane that has not ended.
    pub after: Option<LaneSeq>,
    /// The body.
    pub content: Content,
}

/// The body of a message as it was sent.
///
/// `Debug` shows sizes alone: content is never logged.
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
    /// Any JSON value of the sender's, as text.
    pub metadata: Option<String>,
    /// Files that go with it.
    pub file_ids: Vec<String>,
    /// What surfaces echo and nobody interprets, such as the name of an algorithm.
    pub labels: BTreeMap<String, String>,
}

impl Content {
    /// A body of text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { bytes: text.into().into_bytes(), is_text: true, ..Self::default() }
    }

    /// A body of bytes.
    pub fn binary(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), ..Self::default() }
    }

    /// Checks the body against [`limits`].
    ///
    /// # Errors
    ///
    /// Names the first rule that it breaks.
    pub fn check(&self) -> Result<(), Violation> {
        within(FieldName::Content, self.bytes.len(), limits::CONTENT)?;
        if self.is_text && str::from_utf8(&self.bytes).is_err() {
            return Err(Violation::NotUtf8 { field: FieldName::Content });
        }
        let content_type = self.content_type.as_deref().unwrap_or_default();
        check_text(FieldName::ContentType, content_type, limits::CONTENT_TYPE)?;
        let message_type = self.message_type.as_deref().unwrap_or_default();
        check_text(FieldName::MessageType, message_type, limits::MESSAGE_TYPE)?;
        if let Some(metadata) = &self.metadata {
            within(FieldName::Metadata, metadata.len(), limits::METADATA)?;
            serde_json::from_str::<serde_json::Value>(metadata)
                .map_err(|_| Violation::MetadataNotJson)?;
        }
        within(FieldName::FileIds, self.file_ids.len(), limits::FILE_IDS)?;
        for id in &self.file_ids {
            check_text(FieldName::FileId, id, limits::FILE_ID)?;
        }
        within(FieldName::Labels, self.labels.len(), limits::LABELS)?;
        for (name, value) in &self.labels {
            check_text(FieldName::LabelName, name, limits::LABEL_NAME)?;
            check_text(FieldName::LabelValue, value, limits::LABEL_VALUE)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("size_bytes", &self.bytes.len())
            .field("is_text", &self.is_text)
            .field("file_ids", &self.file_ids.len())
            .finish_non_exhaustive()
    }
}

impl Envelope {
    /// Checks everything that does not depend on who signs.
    ///
    /// # Errors
    ///
    /// Names the first rule that the envelope breaks.
    pub(crate) fn check(&self) -> Result<(), Violation> {
        check_recipient(&self.recipient)?;
        self.check_lifetime()?;
        let unordered =
            self.priority == Priority::Critical || self.recipient == Recipient::Broadcast;
        if unordered && self.lane_seq.is_some() {
            return Err(Violation::LaneOfUnordered);
        }
        check_lane(self.lane_seq, self.after)?;
        self.content.check()
    }

    /// Checks that `to` is the recipient, or a group of `home` that the recipient belongs to.
    pub(crate) fn check_to(&self, home: GatewayId) -> Result<(), Violation> {
        let of_home = matches!(self.to, Recipient::Group { home: Some(at), .. } if at == home)
            && matches!(self.recipient, Recipient::Peer(_));
        if self.to == self.recipient || of_home { Ok(()) } else { Err(Violation::ToOfAnother) }
    }

    fn check_lifetime(&self) -> Result<(), Violation> {
        let most = match self.recipient {
            Recipient::Broadcast => limits::BROADCAST_LIFETIME_MS,
            Recipient::Peer(_) | Recipient::Group { .. } => limits::LIFETIME_MS,
        };
        let lifetime = self
            .expires_at
            .as_millis()
            .checked_sub(self.sent_at.as_millis())
            .ok_or(Violation::ExpiresBeforeSent)?;
        if lifetime > most {
            return Err(Violation::Lifetime { lifetime_ms: lifetime, most_ms: most });
        }
        Ok(())
    }
}

/// The word of a recipient's gateway about one envelope.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Receipt {
    /// SHA-256 of the envelope that it answers, see [`SignedEnvelope::digest`].
    ///
    /// [`SignedEnvelope::digest`]: crate::SignedEnvelope::digest
    pub answers: [u8; 32],
    /// What it says.
    pub kind: ReceiptKind,
    /// When that happened.
    pub at: Timestamp,
    /// Why, at most [`limits::REASON`] bytes.
    pub reason: Option<String>,
    /// The gateway that signs it.
    pub signer: GatewayId,
}

impl Receipt {
    /// Checks that this receipt speaks of the envelope with this digest, which went to `recipient`.
    ///
    /// # Errors
    ///
    /// The receipt is for another envelope, or somebody else than the recipient's gateway signed it.
    pub fn check_answers(
        &self,
        digest: &[u8; 32],
        recipient: GatewayId,
    ) -> Result<(), ReceiptError> {
        if self.answers != *digest {
            return Err(ReceiptError::OtherEnvelope);
        }
        if self.signer != recipient {
            return Err(ReceiptError::NotTheRecipient { signer: self.signer, recipient });
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), Violation> {
        check_text(FieldName::Reason, self.reason.as_deref().unwrap_or_default(), limits::REASON)
    }
}

/// Why a receipt does not settle a delivery.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ReceiptError {
    /// It answers something else.
    #[error("the receipt answers another envelope")]
    OtherEnvelope,
    /// Only the gateway that the envelope went to may speak for the recipient.
    #[error("the receipt is signed by {signer}: only {recipient}, the recipient's gateway, may")]
    NotTheRecipient {
        /// Who signed.
        signer: GatewayId,
        /// Who may.
        recipient: GatewayId,
    },
}

/// The bounds of an envelope's fields, in bytes unless said otherwise.
pub mod limits {
    /// Content; what the widest surface accepts (design, section 6).
    pub const CONTENT: usize = 2 * 1024 * 1024;
    /// Media type.
    pub const CONTENT_TYPE: usize = 256;
    /// The sender's word for the kind of message.
    pub const MESSAGE_TYPE: usize = 256;
    /// Metadata, as JSON text.
    pub const METADATA: usize = 64 * 1024;
    /// The number of file ids.
    pub const FILE_IDS: usize = 256;
    /// One file id.
    pub const FILE_ID: usize = 128;
    /// The number of labels.
    pub const LABELS: usize = 16;
    /// The name of one label.
    pub const LABEL_NAME: usize = 64;
    /// The value of one label.
    pub const LABEL_VALUE: usize = 1024;
    /// The reason of a receipt.
    pub const REASON: usize = 256;
    /// From acceptance to expiry, in milliseconds: 30 days, and five minutes because the two may
    /// come from two clocks of one gateway.
    pub const LIFETIME_MS: u64 = (30 * 24 * 60 + 5) * 60 * 1000;
    /// The same for a broadcast: one hour and five minutes.
    pub const BROADCAST_LIFETIME_MS: u64 = (60 + 5) * 60 * 1000;
    /// A signed message that is not forwarded: all of the above and 8 KiB for the rest.
    pub const SIGNED_MESSAGE: usize = CONTENT
        + CONTENT_TYPE
        + MESSAGE_TYPE
        + METADATA
        + FILE_IDS * (FILE_ID + 3)
        + LABELS * (LABEL_NAME + LABEL_VALUE + 6)
        + 8 * 1024;
    /// Any signed envelope: a forward holds a message and 4 KiB of its own.
    pub const SIGNED: usize = SIGNED_MESSAGE + 4 * 1024;
    /// A signed certificate.
    pub const CERTIFICATE: usize = 256;
    /// How long a certificate holds, in milliseconds: 24 hours, and one for clocks that differ.
    pub const CERTIFICATE_MS: u64 = 25 * 60 * 60 * 1000;
    /// A signed roster.
    pub const ROSTER: usize = 4 * 1024 * 1024;
    /// The peers that one roster lists and removes.
    pub const ROSTER_PEERS: usize = 10_000;
    /// The greatest number of a roster; what a signed 64-bit column holds.
    pub const ROSTER_NUMBER: u64 = i64::MAX as u64;
    /// The name of a listed peer as people see it: 100 characters.
    pub const DISPLAY_NAME: usize = 400;
}

/// A rule that an envelope or a receipt breaks, whoever made it.
///
/// None of the messages repeats a field's content.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Violation {
    /// The field holds more than [`limits`] allow.
    #[error("{field} has a length of {length}: expected at most {most}")]
    TooLong {
        /// The field.
        field: FieldName,
        /// Its length in bytes, or the number of its entries.
        length: usize,
        /// What is allowed.
        most: usize,
    },
    /// Text that is not UTF-8.
    #[error("{field} is not valid UTF-8")]
    NotUtf8 {
        /// The field.
        field: FieldName,
    },
    /// Databases refuse NUL in text.
    #[error("{field} holds a NUL byte")]
    Nul {
        /// The field.
        field: FieldName,
    },
    /// Metadata is JSON, nested at most 127 deep.
    #[error("metadata is not valid JSON")]
    MetadataNotJson,
    /// Between gateways a bare name means nothing.
    #[error("the recipient names no gateway: expected `peer@gateway` or `group:<id>@<home>`")]
    BareRecipient,
    /// Only the home of a group sends to its members in its name.
    #[error("`to` is neither the recipient nor a group of the gateway that signs")]
    ToOfAnother,
    /// The message is dead before it is born.
    #[error("the message expires before it was sent")]
    ExpiresBeforeSent,
    /// It lives longer than anybody remembers its identity.
    #[error("the message lives for {lifetime_ms} ms: expected at most {most_ms}")]
    Lifetime {
        /// From `sent_at` to `expires_at`.
        lifetime_ms: u64,
        /// What is allowed for this recipient.
        most_ms: u64,
    },
    /// Critical messages and broadcasts have no lane (design, promise 5).
    #[error("a critical message or a broadcast has a place in a lane")]
    LaneOfUnordered,
    /// A predecessor without a lane.
    #[error("the message follows {after} but has no place in a lane")]
    AfterWithoutLane {
        /// The predecessor.
        after: LaneSeq,
    },
    /// A predecessor that comes later.
    #[error("the message at {lane_seq} of its lane follows {after}: expected an earlier one")]
    AfterNotEarlier {
        /// Its own place.
        lane_seq: LaneSeq,
        /// The predecessor.
        after: LaneSeq,
    },
    /// A place that no store can hold.
    #[error("place {0} in a lane is out of range: expected at most {max}", max = LaneSeq::MAX)]
    LaneSeq(LaneSeq),
    /// A group message is forwarded by the group's home alone, and only someone else's.
    #[error("the forwarded message is not one to a group of the gateway that forwards it")]
    ForwardOfAnother,
    /// A certificate that never holds.
    #[error("the certificate ends before it begins")]
    CertificateEndsBeforeItBegins,
    /// A certificate outlives the day it is meant for.
    #[error("the certificate holds for {span_ms} ms: expected at most {most_ms}")]
    CertificateSpan {
        /// From its first to its last moment.
        span_ms: u64,
        /// What is allowed.
        most_ms: u64,
    },
    /// A roster's number that no store can hold.
    #[error("roster number {number} is out of range: expected 1 to {most}")]
    RosterNumber {
        /// The number.
        number: u64,
        /// The greatest there is.
        most: u64,
    },
    /// A delta leads forward.
    #[error("roster {number} is based on {base}: expected an earlier one")]
    BaseNotEarlier {
        /// Its own number.
        number: u64,
        /// The one that it changes.
        base: u64,
    },
    /// A whole roster has nothing to remove.
    #[error("the roster removes peers but is based on no other")]
    RemovedWithoutBase,
    /// A peer that is here is not gone.
    #[error("a peer is listed twice, or both listed and removed")]
    ListedTwice,
}

/// A field of an envelope or a receipt, for the errors.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are those of the fields")]
pub enum FieldName {
    Version,
    Kind,
    Signer,
    Sender,
    Recipient,
    Group,
    MessageId,
    SentAt,
    ExpiresAt,
    Priority,
    Level,
    LaneSeq,
    After,
    Content,
    ContentType,
    MessageType,
    Metadata,
    FileIds,
    FileId,
    Labels,
    LabelName,
    LabelValue,
    Answers,
    ReceiptKind,
    At,
    Reason,
    Original,
    Gateway,
    NodePurpose,
    NodeKey,
    NotBefore,
    NotAfter,
    RosterNumber,
    Base,
    Listings,
    Listing,
    DisplayName,
    Removed,
}

impl fmt::Display for FieldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "version",
            Self::Kind => "kind",
            Self::Signer => "signer",
            Self::Sender => "sender",
            Self::Recipient => "recipient",
            Self::Group => "group",
            Self::MessageId => "message id",
            Self::SentAt => "time of sending",
            Self::ExpiresAt => "time of expiry",
            Self::Priority => "priority",
            Self::Level => "anonymity level",
            Self::LaneSeq => "place in the lane",
            Self::After => "predecessor",
            Self::Content => "content",
            Self::ContentType => "content type",
            Self::MessageType => "message type",
            Self::Metadata => "metadata",
            Self::FileIds => "list of file ids",
            Self::FileId => "file id",
            Self::Labels => "map of labels",
            Self::LabelName => "label name",
            Self::LabelValue => "label value",
            Self::Answers => "digest of the answered envelope",
            Self::ReceiptKind => "receipt kind",
            Self::At => "time of the receipt",
            Self::Reason => "reason",
            Self::Original => "forwarded message",
            Self::Gateway => "gateway",
            Self::NodePurpose => "purpose of the node key",
            Self::NodeKey => "node key",
            Self::NotBefore => "first moment",
            Self::NotAfter => "last moment",
            Self::RosterNumber => "number of the roster",
            Self::Base => "number of the roster before",
            Self::Listings => "list of peers",
            Self::Listing => "listing",
            Self::DisplayName => "display name",
            Self::Removed => "list of removed peers",
        })
    }
}

fn check_lane(lane_seq: Option<LaneSeq>, after: Option<LaneSeq>) -> Result<(), Violation> {
    if let Some(place) = lane_seq.max(after)
        && place > LaneSeq::MAX
    {
        return Err(Violation::LaneSeq(place));
    }
    match (lane_seq, after) {
        (None, Some(after)) => Err(Violation::AfterWithoutLane { after }),
        (Some(lane_seq), Some(after)) if after >= lane_seq => {
            Err(Violation::AfterNotEarlier { lane_seq, after })
        }
        _ => Ok(()),
    }
}

fn check_recipient(recipient: &Recipient) -> Result<(), Violation> {
    let complete = *recipient == Recipient::Broadcast || recipient.gateway().is_some();
    if complete { Ok(()) } else { Err(Violation::BareRecipient) }
}

pub(crate) fn check_text(field: FieldName, text: &str, most: usize) -> Result<(), Violation> {
    within(field, text.len(), most)?;
    if text.contains('\0') { Err(Violation::Nul { field }) } else { Ok(()) }
}

pub(crate) fn within(field: FieldName, length: usize, most: usize) -> Result<(), Violation> {
    if length > most { Err(Violation::TooLong { field, length, most }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_shows_no_content() {
        let content = Content {
            metadata: Some(r#"{"secret":1}"#.into()),
            labels: [("secret".into(), "secret".into())].into(),
            message_type: Some("secret".into()),
            ..Content::text("the secret is out")
        };
        let shown = format!("{content:?}");
        assert!(shown.contains("size_bytes: 17") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn content_beyond_its_limits_is_named() {
        let too_long = Content::binary(vec![0; limits::CONTENT + 1]).check();
        assert_eq!(
            too_long.unwrap_err().to_string(),
            "content has a length of 2097153: expected at most 2097152"
        );
        let not_text = Content { is_text: true, ..Content::binary([0xff]) };
        assert_eq!(not_text.check(), Err(Violation::NotUtf8 { field: FieldName::Content }));
        let metadata = Content { metadata: Some("{".into()), ..Content::default() };
        assert_eq!(metadata.check(), Err(Violation::MetadataNotJson));
        let nul = Content { content_type: Some("a\0b".into()), ..Content::default() };
        assert_eq!(nul.check(), Err(Violation::Nul { field: FieldName::ContentType }));
        assert_eq!(Content::text("a\0b").check(), Ok(()));
    }

    #[test]
    fn only_the_recipients_gateway_may_answer() {
        let (home, stranger) = (GatewayId::from_bytes([1; 32]), GatewayId::from_bytes([2; 32]));
        let receipt = Receipt {
            answers: [7; 32],
            kind: ReceiptKind::Stored,
            at: Timestamp::MAX,
            reason: None,
            signer: home,
        };
        assert_eq!(receipt.check_answers(&[7; 32], home), Ok(()));
        assert_eq!(receipt.check_answers(&[8; 32], home), Err(ReceiptError::OtherEnvelope));
        assert_eq!(
            receipt.check_answers(&[7; 32], stranger),
            Err(ReceiptError::NotTheRecipient { signer: home, recipient: stranger })
        );
    }
}
