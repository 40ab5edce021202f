use std::collections::BTreeMap;

use bytes::Bytes;
use uuid::Uuid;

use super::{
    Body, DecodeError, FORWARD, Forward, MESSAGE, RECEIPT, SIGNATURE_LENGTH, SignedEnvelope,
    VERSION, label_rank,
    reader::{Item, Map},
};
use crate::{
    address::{GatewayId, GroupId, PeerAddress, PeerId, Recipient},
    envelope::{Content, Envelope, FieldName, Receipt, Violation, limits},
    message::{AnonymityLevel, LaneSeq, MessageId, Priority, ReceiptKind, Timestamp},
};

/// Reads a payload and its signature; `inside` a forward, only messages.
pub(super) fn decode_signed(bytes: Bytes, inside: bool) -> Result<SignedEnvelope, DecodeError> {
    let (payload, _) =
        bytes.split_last_chunk::<SIGNATURE_LENGTH>().ok_or(DecodeError::Truncated)?;
    let mut map = Map::begin(payload)?;
    let version = map.required(0, FieldName::Version)?.uint()?;
    if version != VERSION {
        return Err(DecodeError::UnsupportedVersion(version));
    }
    let kind = map.required(1, FieldName::Kind)?.uint()?;
    let signer = read_gateway(map.required(2, FieldName::Signer)?)?;
    let body = match kind {
        MESSAGE => decode_message(&mut map, signer).map(Body::Message)?,
        RECEIPT | FORWARD if inside => return Err(DecodeError::ForwardOfNoMessage),
        RECEIPT => decode_receipt(&mut map, signer).map(Body::Receipt)?,
        FORWARD => decode_forward(&mut map, signer)?,
        _ => return Err(DecodeError::UnknownKind(kind)),
    };
    map.finish()?;
    debug_assert!(body.encode() == payload, "one envelope has one encoding");
    Ok(SignedEnvelope { bytes, body: body.into() })
}

fn decode_message(map: &mut Map<'_>, signer: GatewayId) -> Result<Envelope, DecodeError> {
    let sender = read_peer(map.required(3, FieldName::Sender)?)?;
    let recipient = read_recipient(map.required(4, FieldName::Recipient)?)?;
    let to = match map.optional(5, FieldName::Group)? {
        Some(item) if recipient.as_peer().is_some() => {
            Recipient::Group { id: read_group(item)?, home: Some(signer) }
        }
        Some(_) => return Err(Violation::ToOfAnother.into()),
        None => recipient.clone(),
    };
    let message_id = map.required(6, FieldName::MessageId)?.array()?;
    let envelope = Envelope {
        sender: PeerAddress::remote(sender, signer),
        to,
        recipient,
        message_id: MessageId(Uuid::from_bytes(message_id)),
        sent_at: read_time(map.required(7, FieldName::SentAt)?)?,
        expires_at: read_time(map.required(8, FieldName::ExpiresAt)?)?,
        priority: read_one_of(Priority::ALL, map.required(9, FieldName::Priority)?)?,
        level: read_level(map.required(10, FieldName::Level)?)?,
        lane_seq: read_place(map.optional(11, FieldName::LaneSeq)?)?,
        after: read_place(map.optional(12, FieldName::After)?)?,
        content: decode_content(map)?,
    };
    envelope.check()?;
    Ok(envelope)
}

fn decode_content(map: &mut Map<'_>) -> Result<Content, DecodeError> {
    let mut item = map.required(13, FieldName::Content)?;
    let (bytes, is_text) = item.text_or_bytes(limits::CONTENT)?;
    let bytes = bytes.to_vec();
    let mut text = |key, field, most| match map.optional(key, field)? {
        Some(mut item) => Ok::<_, DecodeError>(Some(item.text(most)?.to_owned())),
        None => Ok(None),
    };
    Ok(Content {
        bytes,
        is_text,
        content_type: text(14, FieldName::ContentType, limits::CONTENT_TYPE)?,
        message_type: text(15, FieldName::MessageType, limits::MESSAGE_TYPE)?,
        metadata: text(16, FieldName::Metadata, limits::METADATA)?,
        file_ids: match map.optional(17, FieldName::FileIds)? {
            Some(item) => read_file_ids(item)?,
            None => Vec::new(),
        },
        labels: match map.optional(18, FieldName::Labels)? {
            Some(item) => read_labels(item)?,
            None => BTreeMap::new(),
        },
    })
}

fn decode_receipt(map: &mut Map<'_>, signer: GatewayId) -> Result<Receipt, DecodeError> {
    let receipt = Receipt {
        answers: map.required(3, FieldName::Answers)?.array()?,
        kind: read_one_of(ReceiptKind::ALL, map.required(4, FieldName::ReceiptKind)?)?,
        at: read_time(map.required(5, FieldName::At)?)?,
        reason: match map.optional(6, FieldName::Reason)? {
            Some(mut item) => Some(item.text(limits::REASON)?.to_owned()),
            None => None,
        },
        signer,
    };
    receipt.check()?;
    Ok(receipt)
}

fn decode_forward(map: &mut Map<'_>, signer: GatewayId) -> Result<Body, DecodeError> {
    let field = FieldName::Recipient;
    let Recipient::Peer(recipient) = read_recipient(map.required(3, field)?)? else {
        return Err(DecodeError::WrongType { field });
    };
    let lane_seq = read_place(map.optional(4, FieldName::LaneSeq)?)?;
    let after = read_place(map.optional(5, FieldName::After)?)?;
    let original = map.required(6, FieldName::Original)?.bytes(limits::SIGNED_MESSAGE)?;
    let original = decode_signed(Bytes::copy_from_slice(original), true)?;
    let forward = Forward { recipient, lane_seq, after, original };
    let message = forward.forwarded(signer)?;
    Ok(Body::Forward { message, original: Box::new(forward.original) })
}

fn read_recipient(mut item: Item<'_, '_>) -> Result<Recipient, DecodeError> {
    let field = FieldName::Recipient;
    let length = item.array_length(3)?;
    let kind = item.uint()?;
    let expected = match kind {
        0 | 1 => 3,
        2 => 1,
        value => return Err(DecodeError::OutOfRange { field, value }),
    };
    if length != expected {
        return Err(DecodeError::Length { field, length, expected });
    }
    if kind == 2 {
        return Ok(Recipient::Broadcast);
    }
    let gateway = GatewayId::from_bytes(item.array()?);
    if kind == 0 {
        return Ok(PeerAddress::remote(read_peer(item)?, gateway).into());
    }
    Ok(Recipient::Group { id: read_group(item)?, home: Some(gateway) })
}

pub(crate) fn read_peer(mut item: Item<'_, '_>) -> Result<PeerId, DecodeError> {
    let field = item.field();
    let text = item.text(PeerId::MAX_LEN)?;
    let peer: PeerId = text.parse().map_err(|source| DecodeError::Address { field, source })?;
    if peer.as_str() != text {
        return Err(DecodeError::NotCanonicalName { field });
    }
    Ok(peer)
}

fn read_group(mut item: Item<'_, '_>) -> Result<GroupId, DecodeError> {
    let field = item.field();
    item.text(GroupId::MAX_LEN)?.parse().map_err(|source| DecodeError::Address { field, source })
}

pub(crate) fn read_gateway(mut item: Item<'_, '_>) -> Result<GatewayId, DecodeError> {
    item.array().map(GatewayId::from_bytes)
}

pub(crate) fn read_time(mut item: Item<'_, '_>) -> Result<Timestamp, DecodeError> {
    let (field, value) = (item.field(), item.uint()?);
    Timestamp::try_from(value).map_err(|_| DecodeError::OutOfRange { field, value })
}

fn read_level(mut item: Item<'_, '_>) -> Result<AnonymityLevel, DecodeError> {
    let (field, value) = (item.field(), item.uint()?);
    u8::try_from(value)
        .ok()
        .and_then(|level| AnonymityLevel::try_from(level).ok())
        .ok_or(DecodeError::OutOfRange { field, value })
}

fn read_one_of<T: Copy>(all: &[T], mut item: Item<'_, '_>) -> Result<T, DecodeError> {
    let (field, value) = (item.field(), item.uint()?);
    usize::try_from(value)
        .ok()
        .and_then(|index| all.get(index).copied())
        .ok_or(DecodeError::OutOfRange { field, value })
}

fn read_place(item: Option<Item<'_, '_>>) -> Result<Option<LaneSeq>, DecodeError> {
    item.map(|mut item| item.uint().map(LaneSeq)).transpose()
}

fn read_file_ids(mut item: Item<'_, '_>) -> Result<Vec<String>, DecodeError> {
    let count = item.array_length(limits::FILE_IDS)?;
    if count == 0 {
        return Err(DecodeError::Empty { field: FieldName::FileIds });
    }
    let mut item = item.part(FieldName::FileId);
    (0..count).map(|_| item.text(limits::FILE_ID).map(str::to_owned)).collect()
}

fn read_labels(mut item: Item<'_, '_>) -> Result<BTreeMap<String, String>, DecodeError> {
    let count = item.map_length(limits::LABELS)?;
    if count == 0 {
        return Err(DecodeError::Empty { field: FieldName::Labels });
    }
    let mut labels = BTreeMap::new();
    let mut last: Option<&str> = None;
    for _ in 0..count {
        let name = item.part(FieldName::LabelName).text(limits::LABEL_NAME)?;
        let value = item.part(FieldName::LabelValue).text(limits::LABEL_VALUE)?;
        if last.is_some_and(|last| label_rank(last) >= label_rank(name)) {
            return Err(DecodeError::LabelOrder);
        }
        last = Some(name);
        labels.insert(name.to_owned(), value.to_owned());
    }
    Ok(labels)
}
