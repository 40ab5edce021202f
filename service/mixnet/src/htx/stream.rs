//! The streams of a link and their flow control (HTX reference, section 1.2).

use std::collections::{BTreeMap, VecDeque};

use thiserror::Error;

use super::{frame::StreamId, handshake::Parameters};

/// All open streams of a link. Each side opens at most as many as the other keeps.
pub(super) struct Streams {
    is_client: bool,
    ours: Parameters,
    theirs: Parameters,
    send_queue: usize,
    open: BTreeMap<StreamId, Stream>,
    opened: [u64; 2],
    counts: [u16; 2],
    /// The stream that sent last; the next one has its turn.
    turn: Option<StreamId>,
}

struct Stream {
    queue: VecDeque<u8>,
    /// How much the other takes at the moment.
    send_window: u32,
    finishing: bool,
    sent_end: bool,
    /// Whether the queue was more than half full, or full, since the driver was last told.
    is_high: bool,
    /// How much the other may still send.
    receive_window: u32,
    /// Given to the driver and not consumed yet.
    unconsumed: u32,
    /// Consumed and not granted again yet.
    consumed: u32,
    received_end: bool,
}

/// What a frame of a stream brought.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Received {
    Data,
    End,
}

/// The next frame that a stream has to send.
pub(super) struct Chunk {
    pub(super) stream: StreamId,
    pub(super) data: Vec<u8>,
    /// Whether the queue was high and is no more.
    pub(super) writable: bool,
}

impl Streams {
    pub(super) fn new(
        is_client: bool,
        ours: Parameters,
        theirs: Parameters,
        send_queue: usize,
    ) -> Self {
        let (open, opened, counts) = (BTreeMap::new(), [0; 2], [0; 2]);
        Self { is_client, ours, theirs, send_queue, open, opened, counts, turn: None }
    }

    /// Opens the next stream of ours; the other learns of it with the first data.
    pub(super) fn open(&mut self) -> Option<StreamId> {
        if self.counts[LOCAL] == self.theirs.streams {
            return None;
        }
        let number = 2 * self.opened[LOCAL] + if self.is_client { 1 } else { 2 };
        let id = StreamId::new(number)?;
        self.insert(LOCAL, id);
        Some(id)
    }

    /// Takes in a `STREAM` frame.
    pub(super) fn receive(&mut self, id: StreamId, length: usize) -> Result<Received, StreamError> {
        if !self.open.contains_key(&id) {
            self.open_remote(id)?;
        }
        let stream = self.open.get_mut(&id).ok_or(StreamError::Ended(id))?;
        if stream.received_end {
            return Err(StreamError::Ended(id));
        }
        if length == 0 {
            stream.received_end = true;
            self.remove_if_over(id);
            return Ok(Received::End);
        }
        let window = stream.receive_window;
        let left = u32::try_from(length).ok().and_then(|length| window.checked_sub(length));
        stream.receive_window = left.ok_or(StreamError::Window { stream: id, length, window })?;
        stream.unconsumed += length as u32;
        Ok(Received::Data)
    }

    /// Takes in a `WINDOW_UPDATE` frame. One for a stream that is over crossed with its end.
    pub(super) fn credit(&mut self, id: StreamId, bytes: u32) -> Result<(), StreamError> {
        let Some(stream) = self.open.get_mut(&id) else {
            let known = (id.get() - 1) / 2 < self.opened[self.side(id)];
            return if known { Ok(()) } else { Err(StreamError::Unknown(id)) };
        };
        let window = stream.send_window.checked_add(bytes).filter(|sum| *sum <= self.theirs.window);
        match window {
            Some(window) if bytes > 0 => {
                stream.send_window = window;
                Ok(())
            }
            _ => Err(StreamError::Credit { stream: id, bytes, window: stream.send_window }),
        }
    }

    /// The driver is done with received bytes. What it never got is not counted.
    pub(super) fn consume(&mut self, id: StreamId, bytes: usize) {
        let Some(stream) = self.open.get_mut(&id) else { return };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(stream.unconsumed);
        stream.unconsumed -= bytes;
        stream.consumed += bytes;
    }

    /// The next stream whose other end is to be told that there is room again: once half of the
    /// window is consumed.
    pub(super) fn next_update(&mut self) -> Option<(StreamId, u32)> {
        let least = self.ours.window / 2;
        let (id, stream) = self
            .open
            .iter_mut()
            .find(|(_, stream)| stream.consumed >= least && !stream.received_end)?;
        let bytes = std::mem::take(&mut stream.consumed);
        stream.receive_window += bytes;
        Some((*id, bytes))
    }

    /// How many more bytes the stream queues.
    pub(super) fn send_room(&self, id: StreamId) -> usize {
        self.open
            .get(&id)
            .filter(|stream| !stream.finishing)
            .map_or(0, |stream| self.send_queue.saturating_sub(stream.queue.len()))
    }

    /// Queues data, all or nothing.
    pub(super) fn send(&mut self, id: StreamId, data: &[u8]) -> Result<(), SendError> {
        let room = self.send_room(id);
        let stream = self.open.get_mut(&id).ok_or(SendError::NotOpen)?;
        if stream.finishing {
            return Err(SendError::Finished);
        }
        if data.len() > room {
            stream.is_high = true;
            return Err(SendError::Full { length: data.len(), room });
        }
        stream.queue.extend(data);
        stream.is_high |= stream.queue.len() > self.send_queue / 2;
        Ok(())
    }

    /// Queues the end of our direction.
    pub(super) fn finish(&mut self, id: StreamId) -> Result<(), SendError> {
        let stream = self.open.get_mut(&id).ok_or(SendError::NotOpen)?;
        stream.finishing = true;
        Ok(())
    }

    /// The next data to send, at most `most` bytes, from each stream in turn.
    pub(super) fn next_chunk(&mut self, most: usize) -> Option<Chunk> {
        let ready = |(_, stream): &(&StreamId, &mut Stream)| stream.ready();
        let after = self.turn.map_or(0, StreamId::get);
        let next = self.open.iter_mut().filter(|(id, _)| id.get() > after).find(ready);
        let (id, stream) = match next {
            Some(next) => next,
            None => self.open.iter_mut().find(ready)?,
        };
        let id = *id;
        let length = most.min(stream.queue.len()).min(stream.send_window as usize);
        let data = take_front(&mut stream.queue, length);
        stream.send_window -= length as u32;
        stream.sent_end = data.is_empty();
        let writable = stream.is_high && stream.queue.len() <= self.send_queue / 2;
        if writable {
            stream.is_high = false;
        }
        self.turn = Some(id);
        self.remove_if_over(id);
        Some(Chunk { stream: id, data, writable })
    }

    fn open_remote(&mut self, id: StreamId) -> Result<(), StreamError> {
        let index = (id.get() - 1) / 2;
        if self.side(id) == LOCAL {
            let known = index < self.opened[LOCAL];
            return Err(if known { StreamError::Ended(id) } else { StreamError::Unknown(id) });
        }
        // As in QUIC, a stream opens those in front of it too: their data may come later.
        let new = index.checked_sub(self.opened[REMOTE]).ok_or(StreamError::Ended(id))? + 1;
        let most = self.ours.streams;
        if new > u64::from(most - self.counts[REMOTE]) {
            return Err(StreamError::TooMany { most });
        }
        for number in (0..new).rev().map(|back| id.get() - 2 * back) {
            self.insert(REMOTE, StreamId::new(number).ok_or(StreamError::Unknown(id))?);
        }
        Ok(())
    }

    fn insert(&mut self, side: usize, id: StreamId) {
        self.opened[side] += 1;
        self.counts[side] += 1;
        self.open.insert(id, Stream::new(self.ours.window, self.theirs.window));
    }

    fn remove_if_over(&mut self, id: StreamId) {
        let side = self.side(id);
        if self.open.get(&id).is_some_and(|stream| stream.sent_end && stream.received_end) {
            self.open.remove(&id);
            self.counts[side] -= 1;
        }
    }

    fn side(&self, id: StreamId) -> usize {
        if id.is_clients() == self.is_client { LOCAL } else { REMOTE }
    }
}

impl Stream {
    fn new(receive_window: u32, send_window: u32) -> Self {
        Self {
            queue: VecDeque::new(),
            send_window,
            finishing: false,
            sent_end: false,
            is_high: false,
            receive_window,
            unconsumed: 0,
            consumed: 0,
            received_end: false,
        }
    }

    fn ready(&self) -> bool {
        if self.queue.is_empty() { self.finishing && !self.sent_end } else { self.send_window > 0 }
    }
}

/// What the other side may not do with streams. Each ends the link.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum StreamError {
    /// It wrote to a stream of ours that we never opened, or gave room to one that nobody opened.
    #[error("{0:?} was never opened")]
    Unknown(StreamId),
    /// It wrote to a stream after its end.
    #[error("{0:?} has ended")]
    Ended(StreamId),
    /// It opened more streams than we keep.
    #[error("more than {most} streams are open")]
    TooMany {
        /// How many we keep.
        most: u16,
    },
    /// It sent more than we take.
    #[error("{length} bytes on {stream:?}: its window is {window}")]
    Window {
        /// The stream.
        stream: StreamId,
        /// What came.
        length: usize,
        /// What we take.
        window: u32,
    },
    /// It gave room for nothing, or for more than its window.
    #[error("room for {bytes} bytes on {stream:?}, whose window is at {window}")]
    Credit {
        /// The stream.
        stream: StreamId,
        /// What it gave.
        bytes: u32,
        /// What we had.
        window: u32,
    },
}

/// Why data of ours is not sent.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum SendError {
    /// The link is not up, or it has no such stream.
    #[error("the stream is not open")]
    NotOpen,
    /// The stream's end was queued before.
    #[error("the stream is finished")]
    Finished,
    /// The stream's queue is full; [`Action::Writable`](super::Action::Writable) follows.
    #[error("{length} bytes are too many: the queue has room for {room}")]
    Full {
        /// How many there are.
        length: usize,
        /// How many there may be.
        room: usize,
    },
}

/// As `drain` into a `Vec` would, but by slices instead of by bytes.
fn take_front(queue: &mut VecDeque<u8>, length: usize) -> Vec<u8> {
    let (front, back) = queue.as_slices();
    let split = length.min(front.len());
    let taken = [&front[..split], &back[..length - split]].concat();
    queue.drain(..length);
    taken
}

const LOCAL: usize = 0;
const REMOTE: usize = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: Parameters = Parameters { window: 65_535, streams: 2 };

    #[test]
    fn nobody_sends_more_than_the_window_takes() {
        let mut server = server();
        assert_eq!(server.receive(id(1), 65_535), Ok(Received::Data));
        let error = StreamError::Window { stream: id(1), length: 1, window: 0 };
        assert_eq!(server.receive(id(1), 1), Err(error));
        server.consume(id(1), 40_000);
        assert_eq!(server.next_update(), Some((id(1), 40_000)));
        assert_eq!(server.next_update(), None);
        assert_eq!(server.receive(id(1), 40_000), Ok(Received::Data));
    }

    #[test]
    fn nobody_opens_more_streams_than_are_kept() {
        let mut server = server();
        assert_eq!(server.receive(id(3), 1), Ok(Received::Data));
        assert_eq!(server.receive(id(1), 1), Ok(Received::Data), "it was opened by the third");
        assert_eq!(server.receive(id(5), 1), Err(StreamError::TooMany { most: 2 }));
        let far = id((1 << 62) - 1);
        assert_eq!(server.receive(far, 1), Err(StreamError::TooMany { most: 2 }));
    }

    #[test]
    fn nobody_writes_where_nothing_is_open() {
        let mut server = server();
        assert_eq!(server.receive(id(2), 1), Err(StreamError::Unknown(id(2))));
        assert_eq!(server.credit(id(2), 1), Err(StreamError::Unknown(id(2))));
        assert_eq!(server.receive(id(1), 0), Ok(Received::End));
        assert_eq!(server.receive(id(1), 1), Err(StreamError::Ended(id(1))));
        server.finish(id(1)).unwrap();
        assert!(server.next_chunk(10).is_some_and(|chunk| chunk.data.is_empty()));
        assert_eq!(server.receive(id(1), 1), Err(StreamError::Ended(id(1))));
        assert_eq!(server.credit(id(1), 1), Ok(()), "it crossed with the end");
        assert_eq!(server.receive(id(5), 1), Ok(Received::Data), "the first made room");
    }

    #[test]
    fn nobody_gives_more_room_than_the_window() {
        let mut server = server();
        let stream = server.open().unwrap();
        let error = StreamError::Credit { stream, bytes: 1, window: 65_535 };
        assert_eq!(server.credit(stream, 1), Err(error));
        server.send(stream, &[0; 10]).unwrap();
        assert_eq!(server.next_chunk(100).map(|chunk| chunk.data.len()), Some(10));
        let error = StreamError::Credit { stream, bytes: 0, window: 65_525 };
        assert_eq!(server.credit(stream, 0), Err(error));
        assert_eq!(server.credit(stream, 10), Ok(()));
        let error = StreamError::Credit { stream, bytes: u32::MAX, window: 65_535 };
        assert_eq!(server.credit(stream, u32::MAX), Err(error));
    }

    fn server() -> Streams {
        Streams::new(false, PARAMETERS, PARAMETERS, 1 << 20)
    }

    fn id(number: u64) -> StreamId {
        StreamId::new(number).unwrap()
    }
}
