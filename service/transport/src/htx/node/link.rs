//! The task of one link: puts packets and messages on streams, and takes them off.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use fieldpost_mixnet::{
    htx::{Action, Closed, PublicKey, StreamId},
    sphinx::Packet,
    wire::{Item, Message, Sort, StreamReader, append_packet, packet_len},
};
use tokio::sync::mpsc;

use super::drive::now;
use crate::htx::drive::{LinkEnd, LinkGone};

/// What a node calls a link.
pub(super) type LinkNumber = u64;

/// What becomes of a link.
pub(super) enum LinkEvent {
    /// It is up. The other side holds this Noise key.
    Up { link: LinkNumber, peer: PublicKey },
    /// The other side says something about the directory.
    Message { link: LinkNumber, message: Message },
    /// A ping was answered after that long.
    RoundTrip { link: LinkNumber, round_trip: Duration },
    /// It is over, or was never made. `is_lost` unless one side meant it; `at` is when that was seen.
    Down { link: LinkNumber, is_lost: bool, at: Instant },
}

/// The near end of what waits for a link. Dropping it closes the link.
pub(super) struct LinkQueue {
    packets: mpsc::Sender<Packet>,
    messages: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
}

/// The far end.
pub(super) struct Waiting {
    packets: mpsc::Receiver<Packet>,
    messages: mpsc::Receiver<Bytes>,
    bytes: Arc<AtomicUsize>,
}

/// A queue for a new link.
pub(super) fn queue() -> (LinkQueue, Waiting) {
    let (packets, packets_out) = mpsc::channel(QUEUED_PACKETS);
    let (messages, messages_out) = mpsc::channel(QUEUED_MESSAGES);
    let bytes = Arc::new(AtomicUsize::new(0));
    let waiting = Waiting { packets: packets_out, messages: messages_out, bytes: bytes.clone() };
    (LinkQueue { packets, messages, waiting: bytes }, waiting)
}

impl LinkQueue {
    /// Takes a packet, unless there is too much already or the link is over.
    pub(super) fn push(&self, packet: Packet) -> bool {
        let length = packet_len(&packet);
        if self.waiting.fetch_add(length, Ordering::Relaxed) + length > QUEUED_BYTES
            || self.packets.try_send(packet).is_err()
        {
            self.waiting.fetch_sub(length, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Takes a message, unless there is too much already or the link is over.
    pub(super) fn tell(&self, message: Bytes) -> bool {
        self.messages.try_send(message).is_ok()
    }

    /// Bytes of packets that wait.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Moves what waits over the link and hands on what comes, until one side is done with it.
pub(super) async fn run(
    link: LinkNumber,
    mut end: LinkEnd,
    waiting: Waiting,
    events: mpsc::Sender<LinkEvent>,
    inbound: mpsc::Sender<Packet>,
) {
    let closed = match established(&mut end).await {
        Ok(peer) => {
            // If the node has ended, so does the link: its queue is gone.
            drop(events.send(LinkEvent::Up { link, peer }).await);
            let task =
                Task { link, end: &mut end, events: &events, inbound, readers: BTreeMap::new() };
            task.run(waiting).await.unwrap_or(Closed::Lost)
        }
        Err(closed) => closed,
    };
    let is_lost = !matches!(closed, Closed::ByUs | Closed::ByPeer(0));
    drop(events.send(LinkEvent::Down { link, is_lost, at: now() }).await);
    end.close().await;
}

async fn established(end: &mut LinkEnd) -> Result<PublicKey, Closed> {
    loop {
        match end.next().await {
            Some(Action::Established { peer, .. }) => return Ok(peer),
            Some(Action::Closed(closed)) => return Err(closed),
            None => return Err(Closed::Lost),
            Some(_) => {}
        }
    }
}

struct Task<'t> {
    link: LinkNumber,
    end: &'t mut LinkEnd,
    events: &'t mpsc::Sender<LinkEvent>,
    inbound: mpsc::Sender<Packet>,
    /// At most as many as we let the other side open.
    readers: BTreeMap<StreamId, StreamReader>,
}

impl Task<'_> {
    async fn run(mut self, waiting: Waiting) -> Result<Closed, LinkGone> {
        let Waiting { mut packets, mut messages, bytes } = waiting;
        let mut outward = Outward {
            packets: Lane::open(self.end, Sort::Packets).await?,
            messages: Lane::open(self.end, Sort::Messages).await?,
            next_packet: None,
            rest_of_message: Bytes::new(),
            bytes,
        };
        loop {
            let wants_packet = outward.next_packet.is_none();
            let wants_message = outward.rest_of_message.is_empty();
            tokio::select! {
                action = self.end.next() => match action {
                    Some(Action::Data { stream, data }) => {
                        if !self.take(stream, &data).await? {
                            return Ok(Closed::Lost);
                        }
                    }
                    Some(Action::Ended(stream)) => drop(self.readers.remove(&stream)),
                    Some(Action::Writable(stream)) => {
                        outward.writable(stream);
                        outward.send_packets(self.end, &mut packets).await?;
                        outward.send_message(self.end).await?;
                    }
                    Some(Action::RoundTrip(round_trip)) => {
                        let event = LinkEvent::RoundTrip { link: self.link, round_trip };
                        self.events.send(event).await.map_err(|_| LinkGone)?;
                    }
                    Some(Action::Rejected { .. }) | None => return Ok(Closed::Lost),
                    Some(Action::Closed(closed)) => return Ok(closed),
                    Some(_) => {}
                },
                packet = packets.recv(), if wants_packet => {
                    let Some(packet) = packet else { return Ok(Closed::ByUs) };
                    outward.next_packet = Some(packet);
                    outward.send_packets(self.end, &mut packets).await?;
                }
                message = messages.recv(), if wants_message => {
                    let Some(message) = message else { return Ok(Closed::ByUs) };
                    outward.rest_of_message = message;
                    outward.send_message(self.end).await?;
                }
            }
        }
    }

    /// Hands on what has come, then makes room for more: a node that does not keep up holds up the
    /// other side. Says whether the other side keeps to the rules.
    async fn take(&mut self, stream: StreamId, data: &[u8]) -> Result<bool, LinkGone> {
        let reader = self.readers.entry(stream).or_default();
        let mut rest = data;
        loop {
            match reader.read(&mut rest) {
                Ok(None) => break,
                Ok(Some(Item::Packet(packet))) => {
                    self.inbound.send(packet).await.map_err(|_| LinkGone)?;
                }
                Ok(Some(Item::Message(message))) => {
                    let event = LinkEvent::Message { link: self.link, message };
                    self.events.send(event).await.map_err(|_| LinkGone)?;
                }
                Err(error) => {
                    tracing::debug!(link = self.link, %error, "a link is given up");
                    return Ok(false);
                }
            }
        }
        self.end.consumed(stream, data.len()).await?;
        Ok(true)
    }
}

/// What we send.
struct Outward {
    packets: Lane,
    messages: Lane,
    next_packet: Option<Packet>,
    rest_of_message: Bytes,
    bytes: Arc<AtomicUsize>,
}

/// One of our two streams.
struct Lane {
    stream: StreamId,
    /// At least so many bytes have room.
    room: usize,
    /// There was not enough, and nothing was heard since.
    is_full: bool,
}

impl Lane {
    async fn open(end: &LinkEnd, sort: Sort) -> Result<Self, LinkGone> {
        let stream = end.open().await.map_err(|_| LinkGone)?;
        end.send(stream, vec![sort as u8]).await?;
        Ok(Self { stream, room: 0, is_full: false })
    }

    /// Whether `length` bytes have room.
    async fn has_room(&mut self, end: &LinkEnd, length: usize) -> Result<bool, LinkGone> {
        if self.room < length && !self.is_full {
            self.room = end.room(self.stream).await?;
            self.is_full = self.room < length;
        }
        Ok(self.room >= length)
    }

    async fn send(&mut self, end: &LinkEnd, bytes: impl Into<Bytes>) -> Result<(), LinkGone> {
        let bytes = bytes.into();
        self.room -= bytes.len();
        end.send(self.stream, bytes).await
    }
}

impl Outward {
    fn writable(&mut self, stream: StreamId) {
        for lane in [&mut self.packets, &mut self.messages] {
            lane.is_full &= lane.stream != stream;
        }
    }

    /// Sends as many packets as wait and have room, several in one piece.
    async fn send_packets(
        &mut self,
        end: &LinkEnd,
        queue: &mut mpsc::Receiver<Packet>,
    ) -> Result<(), LinkGone> {
        while let Some(packet) = self.next_packet.take() {
            if !self.packets.has_room(end, packet_len(&packet)).await? {
                self.next_packet = Some(packet);
                break;
            }
            let mut piece = Vec::with_capacity(packet_len(&packet));
            append_packet(&packet, &mut piece);
            while piece.len() < LARGEST_PIECE
                && let Ok(packet) = queue.try_recv()
            {
                if piece.len() + packet_len(&packet) > self.packets.room {
                    self.next_packet = Some(packet);
                    break;
                }
                append_packet(&packet, &mut piece);
            }
            self.bytes.fetch_sub(piece.len(), Ordering::Relaxed);
            self.packets.send(end, piece).await?;
        }
        Ok(())
    }

    async fn send_message(&mut self, end: &LinkEnd) -> Result<(), LinkGone> {
        while !self.rest_of_message.is_empty() && self.messages.has_room(end, 1).await? {
            let length = self.rest_of_message.len().min(self.messages.room).min(LARGEST_PIECE);
            let piece = self.rest_of_message.split_to(length);
            self.messages.send(end, piece).await?;
        }
        Ok(())
    }
}

const QUEUED_PACKETS: usize = 4_096;
const QUEUED_MESSAGES: usize = 1_536;
/// Of packets that wait for one link.
pub(super) const QUEUED_BYTES: usize = 8 << 20;
const LARGEST_PIECE: usize = 64 << 10;
