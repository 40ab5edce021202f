use super::{
    Body, FORWARD, MESSAGE, RECEIPT, SignedEnvelope, VERSION, label_rank,
    writer::{MapWriter, Writer},
};
use crate::{
    address::{PeerAddress, Recipient},
    envelope::{Envelope, Receipt},
    message::{LaneSeq, Priority, ReceiptKind},
};

impl Body {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Message(message) => {
                encode_message(message, self.header(MESSAGE, message.content.bytes.len()))
            }
            Self::Receipt(receipt) => encode_receipt(receipt, self.header(RECEIPT, 0)),
            Self::Forward { message, original } => {
                encode_forward(message, original, self.header(FORWARD, original.bytes.len()))
            }
        }
    }

    fn header(&self, kind: u64, most_of_it: usize) -> MapWriter {
        let mut map = MapWriter::with_capacity(most_of_it + ROOM_FOR_THE_REST);
        map.key(0).uint(VERSION);
        map.key(1).uint(kind);
        map.key(2).bytes(self.signer().as_bytes());
        map
    }
}

fn encode_message(envelope: &Envelope, mut map: MapWriter) -> Vec<u8> {
    let content = &envelope.content;
    map.key(3).text(envelope.sender.peer.as_str());
    write_recipient(map.key(4), &envelope.recipient);
    if let Recipient::Group { id, .. } = &envelope.to
        && envelope.to != envelope.recipient
    {
        map.key(5).text(id.as_str());
    }
    map.key(6).bytes(envelope.message_id.0.as_bytes());
    map.key(7).uint(envelope.sent_at.as_millis());
    map.key(8).uint(envelope.expires_at.as_millis());
    map.key(9).uint(index_in(Priority::ALL, envelope.priority));
    map.key(10).uint(envelope.level.get().into());
    write_lane(&mut map, 11, envelope.lane_seq, envelope.after);
    match str::from_utf8(&content.bytes) {
        Ok(text) if content.is_text => map.key(13).text(text),
        _ => map.key(13).bytes(&content.bytes),
    }
    for (key, text) in
        [(14, &content.content_type), (15, &content.message_type), (16, &content.metadata)]
    {
        if let Some(text) = text {
            map.key(key).text(text);
        }
    }
    if !content.file_ids.is_empty() {
        let writer = map.key(17);
        writer.array(content.file_ids.len());
        content.file_ids.iter().for_each(|id| writer.text(id));
    }
    if !content.labels.is_empty() {
        let mut labels: Vec<_> = content.labels.iter().collect();
        labels.sort_by_key(|(name, _)| label_rank(name));
        let writer = map.key(18);
        writer.map(labels.len());
        for (name, value) in labels {
            writer.text(name);
            writer.text(value);
        }
    }
    map.finish()
}

fn encode_receipt(receipt: &Receipt, mut map: MapWriter) -> Vec<u8> {
    map.key(3).bytes(&receipt.answers);
    map.key(4).uint(index_in(ReceiptKind::ALL, receipt.kind));
    map.key(5).uint(receipt.at.as_millis());
    if let Some(reason) = &receipt.reason {
        map.key(6).text(reason);
    }
    map.finish()
}

fn encode_forward(message: &Envelope, original: &SignedEnvelope, mut map: MapWriter) -> Vec<u8> {
    write_recipient(map.key(3), &message.recipient);
    write_lane(&mut map, 4, message.lane_seq, message.after);
    map.key(6).bytes(original.as_bytes());
    map.finish()
}

fn write_recipient(writer: &mut Writer, recipient: &Recipient) {
    let (kind, gateway, name) = match recipient {
        Recipient::Peer(PeerAddress { peer, gateway }) => (0, gateway, peer.as_str()),
        Recipient::Group { id, home } => (1, home, id.as_str()),
        Recipient::Broadcast => {
            writer.array(1);
            return writer.uint(2);
        }
    };
    let gateway = gateway.expect("checked before encoding");
    writer.array(3);
    writer.uint(kind);
    writer.bytes(gateway.as_bytes());
    writer.text(name);
}

fn write_lane(
    map: &mut MapWriter,
    first_key: u64,
    lane_seq: Option<LaneSeq>,
    after: Option<LaneSeq>,
) {
    for (key, place) in [(first_key, lane_seq), (first_key + 1, after)] {
        if let Some(LaneSeq(place)) = place {
            map.key(key).uint(place);
        }
    }
}

fn index_in<T: PartialEq>(all: &[T], value: T) -> u64 {
    all.iter().position(|other| *other == value).map_or(0, |index| index as u64)
}

const ROOM_FOR_THE_REST: usize = 512;
