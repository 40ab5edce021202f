//! One covert link: handshake, frames, streams, keys, signs of life, cover.
//!
//! ```text
//! driver ── Receive, Transmitted, Send, … ──► handle(now, event) ──► Transmit, Data, … ──► driver
//! ```
//!
//! The driver brings a channel that is already encrypted and looks like somebody else's: a TLS
//! connection, an HTTP/2 stream on it, a ticket that was accepted. It moves bytes and obeys; all
//! decisions are made here.
//!
//! | What is kept | At most | At the limit |
//! |---|---|---|
//! | received bytes that are no whole frame yet | one frame, 64 KiB and 28 bytes | cannot be exceeded |
//! | bytes handed to the driver and not transmitted | `carrier_room` and one frame | nothing more is sealed |
//! | queued bytes of a stream | `send_queue` | the send is rejected whole; `Writable` follows |
//! | received bytes that the driver has not consumed | window × streams of the other side | the link ends |
//! | answers to pings | 1 | the newest question is answered |

use std::{fmt, mem, time::Duration, time::Instant};

use rand::{CryptoRng, RngExt};
use thiserror::Error;

use super::{
    curve::{PublicKey, SecretKey},
    frame::{FrameError, FrameHeader, FrameKind, Ping, StreamId},
    handshake::{
        Agreed, Capabilities, ClientHandshake, Context, HandshakeError, Parameters, Progress,
        ServerHandshake, next_message,
    },
    keys::{KEY_LIFETIME, OpenError, OpeningHalf, SealingHalf},
    schedule,
    stream::{Received, SendError, StreamError, Streams},
};

/// What a side brings to every link.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What we take of the other side.
    pub parameters: Parameters,
    /// What we can do beyond the first version.
    pub capabilities: Capabilities,
    /// Whether to send cover while there is no data: 200 to 1200 ms after the last, 0 to 3 KiB.
    pub cover: bool,
    /// The most bytes that a stream queues.
    pub send_queue: usize,
    /// The most bytes that are handed over for transmission before earlier ones have left.
    pub carrier_room: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            parameters: Parameters::default(),
            capabilities: Capabilities::default(),
            cover: true,
            send_queue: 256 << 10,
            carrier_room: 128 << 10,
        }
    }
}

/// What a client knows before it speaks.
#[derive(Debug)]
pub struct Dial {
    /// The TLS exporter's answer to [`EXPORTER_LABEL`](super::EXPORTER_LABEL).
    pub exporter: [u8; 32],
    /// The key that the accepted ticket was made for.
    pub ticket_key_id: [u8; 8],
    /// The server's Noise key, from its descriptor.
    pub server: PublicKey,
    /// The server's capabilities, from its descriptor.
    pub server_capabilities: Capabilities,
    /// The key of a relay that says who it is; others stay strangers under a fresh key.
    pub identity: Option<SecretKey>,
}

/// What a server knows before it is spoken to.
#[derive(Debug)]
pub struct Identity {
    /// The TLS exporter's answer to [`EXPORTER_LABEL`](super::EXPORTER_LABEL).
    pub exporter: [u8; 32],
    /// The key that the accepted ticket was made for.
    pub ticket_key_id: [u8; 8],
    /// Our Noise key.
    pub key: SecretKey,
}

/// What happens to a link.
#[derive(Debug)]
pub enum Event<'a> {
    /// Bytes came from the carrier, cut anywhere.
    Receive(&'a [u8]),
    /// The carrier has taken that many of the bytes handed to it.
    Transmitted(usize),
    /// Data for a stream.
    Send {
        /// The stream.
        stream: StreamId,
        /// The data.
        data: &'a [u8],
    },
    /// Nothing more will be sent on this stream.
    Finish(StreamId),
    /// That many received bytes of a stream have found their place.
    Consumed {
        /// The stream.
        stream: StreamId,
        /// How many.
        bytes: usize,
    },
    /// The link is not needed any more. What is queued is dropped.
    Close,
    /// The carrier has ended.
    Lost,
    /// [`Link::next_deadline`] has passed.
    Wake,
}

/// What a driver is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Give these bytes to the carrier, in order, and tell when they have left.
    Transmit(Vec<u8>),
    /// The link is up. A client that opened it without identity has a fresh key.
    Established {
        /// The other's Noise key.
        peer: PublicKey,
        /// What both can do.
        capabilities: Capabilities,
    },
    /// Data came; it must be [`Consumed`](Event::Consumed) before much more can come.
    Data {
        /// The stream, perhaps one that the other has just opened.
        stream: StreamId,
        /// The data, never empty.
        data: Vec<u8>,
    },
    /// The other will send no more on this stream.
    Ended(StreamId),
    /// A stream whose queue was more than half full, or had no room, has half of it free again.
    Writable(StreamId),
    /// Data was not queued, nothing of it.
    Rejected {
        /// The stream.
        stream: StreamId,
        /// Why not.
        reason: SendError,
    },
    /// A ping was answered after that long.
    RoundTrip(Duration),
    /// The link is over; the driver ends the carrier. This is the last action.
    Closed(Closed),
}

/// How a link ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closed {
    /// We closed it.
    ByUs,
    /// The other closed it, for the reason of this code: 0 none, 1 fault, 2 silence.
    ByPeer(u16),
    /// The carrier ended.
    Lost,
    /// Something was wrong.
    Failed(LinkError),
}

/// What ends a link from within.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum LinkError {
    /// The handshake failed.
    #[error("the handshake failed")]
    Handshake(#[from] HandshakeError),
    /// The handshake took too long.
    #[error("no link after {} s", schedule::HANDSHAKE.as_secs())]
    HandshakeTimeout,
    /// The bytes are no frame.
    #[error("the bytes are no frame")]
    Frame(#[from] FrameError),
    /// The frame does not open.
    #[error("the frame does not open")]
    Open(#[from] OpenError),
    /// The other broke the rules of streams.
    #[error("the rules of streams were broken")]
    Stream(#[from] StreamError),
    /// Nothing was heard after a ping.
    #[error("nothing heard for {} s after a ping", schedule::SILENCE.as_secs())]
    Silence,
}

/// Why no stream is opened.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum OpenStreamError {
    /// The handshake is not over, or the link is.
    #[error("the link is not up")]
    NotUp,
    /// The other keeps no more streams at once.
    #[error("all streams that the other side keeps are open")]
    NoneLeft,
}

/// One side of a covert link.
///
/// The same generator and the same events give the same actions, byte for byte.
pub struct Link<R> {
    rng: R,
    settings: Settings,
    state: State,
    buffer: Vec<u8>,
    untransmitted: usize,
    deadlines: Deadlines,
    actions: Vec<Action>,
}

enum State {
    Dialing(Box<ClientHandshake>),
    Accepting(Box<ServerHandshake>),
    Up(Box<Up>),
    Over,
}

struct Up {
    sealing: SealingHalf,
    opening: OpeningHalf,
    streams: Streams,
    answer: Option<[u8; 8]>,
    question: Option<([u8; 8], Instant)>,
}

#[derive(Default)]
struct Deadlines {
    begin: Option<Instant>,
    handshake: Option<Instant>,
    ping: Option<Instant>,
    silence: Option<Instant>,
    cover: Option<Instant>,
    key: Option<Instant>,
}

impl<R: CryptoRng> Link<R> {
    /// Begins a link as the client; its first message is due at once.
    ///
    /// # Errors
    ///
    /// The server's key is none, or our own parameters are out of range.
    pub fn dial(
        now: Instant,
        mut rng: R,
        settings: Settings,
        dial: Dial,
    ) -> Result<Self, HandshakeError> {
        let parameters = settings.parameters.check()?;
        let Dial { exporter, ticket_key_id, server, server_capabilities, identity } = dial;
        let identity = identity.unwrap_or_else(|| SecretKey::generate(&mut rng));
        let (handshake, message) = ClientHandshake::begin(
            &mut rng,
            &Context { exporter, ticket_key_id },
            &identity,
            &server,
            (&settings.capabilities, &server_capabilities),
            parameters,
        )?;
        let mut link = Self::new(now, rng, settings, State::Dialing(handshake.into()));
        link.deadlines.begin = Some(now);
        link.transmit(message);
        Ok(link)
    }

    /// Begins a link as the server, for a client whose ticket was accepted.
    ///
    /// # Errors
    ///
    /// Our own parameters are out of range.
    pub fn accept(
        now: Instant,
        rng: R,
        settings: Settings,
        identity: Identity,
    ) -> Result<Self, HandshakeError> {
        let parameters = settings.parameters.check()?;
        let Identity { exporter, ticket_key_id, key } = identity;
        let context = Context { exporter, ticket_key_id };
        let capabilities = settings.capabilities.clone();
        let handshake = ServerHandshake::new(context, key, capabilities, parameters);
        Ok(Self::new(now, rng, settings, State::Accepting(handshake.into())))
    }

    fn new(now: Instant, rng: R, settings: Settings, state: State) -> Self {
        let handshake = Some(now + schedule::HANDSHAKE);
        Self {
            rng,
            settings,
            state,
            buffer: Vec::new(),
            untransmitted: 0,
            deadlines: Deadlines { handshake, ..Deadlines::default() },
            actions: Vec::new(),
        }
    }

    /// Takes in one event and returns what to do about it.
    ///
    /// `now` must not go backwards from one call to the next.
    pub fn handle(&mut self, now: Instant, event: Event<'_>) -> impl Iterator<Item = Action> {
        if !matches!(self.state, State::Over) {
            self.deadlines.begin = None;
            if let Err(error) = self.take_in(now, event) {
                self.fail(error);
            }
            self.flush(now);
        }
        self.actions.drain(..)
    }

    /// When the next [`Event::Wake`] is due; `None` once the link is over.
    pub fn next_deadline(&self) -> Option<Instant> {
        let Deadlines { begin, handshake, ping, silence, cover, key } = self.deadlines;
        [begin, handshake, ping, silence, cover, key].into_iter().flatten().min()
    }

    /// Opens a stream of ours; the other side learns of it with the first data.
    ///
    /// # Errors
    ///
    /// The link is not up, or as many streams are open as the other side keeps.
    pub fn open(&mut self) -> Result<StreamId, OpenStreamError> {
        let State::Up(up) = &mut self.state else { return Err(OpenStreamError::NotUp) };
        up.streams.open().ok_or(OpenStreamError::NoneLeft)
    }

    /// How many bytes may be sent on this stream at the moment.
    pub fn send_room(&self, stream: StreamId) -> usize {
        let State::Up(up) = &self.state else { return 0 };
        up.streams.send_room(stream)
    }

    /// How often the sending and the receiving keys were changed.
    pub fn key_generations(&self) -> Option<(u64, u64)> {
        let State::Up(up) = &self.state else { return None };
        Some((up.sealing.generation(), up.opening.generation()))
    }

    fn take_in(&mut self, now: Instant, event: Event<'_>) -> Result<(), LinkError> {
        match event {
            Event::Receive(bytes) => self.receive(now, bytes)?,
            Event::Transmitted(bytes) => {
                self.untransmitted = self.untransmitted.saturating_sub(bytes);
            }
            Event::Send { stream, data } => {
                self.try_send(stream, |streams| streams.send(stream, data));
            }
            Event::Finish(stream) => self.try_send(stream, |streams| streams.finish(stream)),
            Event::Consumed { stream, bytes } => {
                if let State::Up(up) = &mut self.state {
                    up.streams.consume(stream, bytes);
                }
            }
            Event::Close => self.end(Some(NO_REASON), Closed::ByUs),
            Event::Lost => self.end(None, Closed::Lost),
            Event::Wake => {}
        }
        self.keep_time(now)
    }

    fn try_send(
        &mut self,
        stream: StreamId,
        send: impl FnOnce(&mut Streams) -> Result<(), SendError>,
    ) {
        let result = match &mut self.state {
            State::Up(up) => send(&mut up.streams),
            _ => Err(SendError::NotOpen),
        };
        if let Err(reason) = result {
            self.actions.push(Action::Rejected { stream, reason });
        }
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), LinkError> {
        let mut buffer = mem::take(&mut self.buffer);
        buffer.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let used = match &self.state {
                State::Dialing(_) | State::Accepting(_) => self.shake(now, &buffer[at..])?,
                State::Up(_) => self.read_frame(now, &mut buffer[at..])?,
                State::Over => return Ok(()),
            };
            if used == 0 {
                break;
            }
            at += used;
        }
        buffer.drain(..at);
        buffer.shrink_to(KEPT_BUFFER);
        self.buffer = buffer;
        Ok(())
    }

    /// Takes the next message of the handshake, if all of it is there; returns its length.
    fn shake(&mut self, now: Instant, bytes: &[u8]) -> Result<usize, LinkError> {
        let Some((body, used)) = next_message(bytes)? else { return Ok(0) };
        let (progress, is_client) = match mem::replace(&mut self.state, State::Over) {
            State::Dialing(handshake) => (handshake.finish(body)?, true),
            State::Accepting(mut handshake) => {
                let progress = handshake.handle(&mut self.rng, body)?;
                self.state = State::Accepting(handshake);
                (progress, false)
            }
            state => {
                self.state = state;
                return Ok(0);
            }
        };
        let Progress { message, agreed } = progress;
        if let Some(message) = message {
            self.transmit(message);
        }
        if let Some(agreed) = agreed {
            self.establish(now, agreed, is_client);
        }
        Ok(used)
    }

    fn establish(&mut self, now: Instant, agreed: Agreed, is_client: bool) {
        let Agreed { keys, peer, parameters, capabilities } = agreed;
        let (ours, theirs) =
            if is_client { (keys.client, keys.server) } else { (keys.server, keys.client) };
        let settings = &self.settings;
        self.state = State::Up(Box::new(Up {
            sealing: SealingHalf::new(ours),
            opening: OpeningHalf::new(theirs),
            streams: Streams::new(is_client, settings.parameters, parameters, settings.send_queue),
            answer: None,
            question: None,
        }));
        self.deadlines.handshake = None;
        self.deadlines.ping = Some(now + schedule::until_ping(&mut self.rng));
        self.deadlines.key = Some(now + KEY_LIFETIME);
        self.put_off_cover(now);
        self.actions.push(Action::Established { peer, capabilities });
    }

    /// Takes the next frame, if all of it is there; returns its length.
    fn read_frame(&mut self, now: Instant, bytes: &mut [u8]) -> Result<usize, LinkError> {
        let State::Up(up) = &mut self.state else { return Ok(0) };
        let Some((header, header_len)) = FrameHeader::decode(bytes)? else { return Ok(0) };
        let used = header_len + header.rest();
        let Some(frame) = bytes.get_mut(..used) else { return Ok(0) };
        let payload = &*up.opening.open(header.kind, frame, header_len)?;
        if self.deadlines.silence.is_some() {
            self.deadlines.silence = Some(now + schedule::SILENCE);
        }
        match (header.kind, header.stream) {
            (FrameKind::Stream, Some(stream)) => {
                let action = match up.streams.receive(stream, payload.len())? {
                    Received::Data => Action::Data { stream, data: payload.to_vec() },
                    Received::End => Action::Ended(stream),
                };
                self.actions.push(action);
            }
            (FrameKind::WindowUpdate, Some(stream)) => {
                let bytes = payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
                up.streams.credit(stream, bytes)?;
            }
            (FrameKind::Ping, _) => match Ping::decode(payload)? {
                Ping::Question(token) => up.answer = Some(token),
                Ping::Answer(token) => {
                    if let Some((_, asked)) = up.question.take_if(|(asked, _)| *asked == token) {
                        self.deadlines.silence = None;
                        self.actions.push(Action::RoundTrip(now - asked));
                    }
                }
                Ping::Cover => {}
            },
            (FrameKind::Close, _) => {
                let code = payload.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
                self.end(None, Closed::ByPeer(code));
            }
            (FrameKind::KeyUpdate | FrameKind::Stream | FrameKind::WindowUpdate, _) => {}
        }
        Ok(used)
    }

    /// Does what is due by now.
    fn keep_time(&mut self, now: Instant) -> Result<(), LinkError> {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if due(self.deadlines.handshake) {
            return Err(LinkError::HandshakeTimeout);
        }
        if due(self.deadlines.silence) {
            return Err(LinkError::Silence);
        }
        if due(self.deadlines.key) {
            self.deadlines.key = Some(now + KEY_LIFETIME);
            self.seal(FrameKind::KeyUpdate, None, &[]);
        }
        if due(self.deadlines.ping) {
            self.deadlines.ping = Some(now + schedule::until_ping(&mut self.rng));
            self.ask(now);
        }
        if due(self.deadlines.cover) {
            self.put_off_cover(now);
            // A link that is busy needs no cover.
            if self.untransmitted < self.settings.carrier_room {
                let mut cover = Ping::Cover.encode();
                cover.resize(1 + schedule::cover_length(&mut self.rng), 0);
                self.seal(FrameKind::Ping, None, &cover);
            }
        }
        Ok(())
    }

    fn ask(&mut self, now: Instant) {
        let token = self.rng.random();
        let State::Up(up) = &mut self.state else { return };
        if up.question.is_none() {
            up.question = Some((token, now));
            self.deadlines.silence = Some(now + schedule::SILENCE);
            self.seal(FrameKind::Ping, None, &Ping::Question(token).encode());
        }
    }

    fn put_off_cover(&mut self, now: Instant) {
        if self.settings.cover && matches!(self.state, State::Up(_)) {
            self.deadlines.cover = Some(now + schedule::until_cover(&mut self.rng));
        }
    }

    /// Seals what waits, as long as the carrier keeps up.
    fn flush(&mut self, now: Instant) {
        let mut sent_data = false;
        while self.untransmitted < self.settings.carrier_room {
            let State::Up(up) = &mut self.state else { return };
            if let Some(token) = up.answer.take() {
                self.seal(FrameKind::Ping, None, &Ping::Answer(token).encode());
            } else if let Some((stream, bytes)) = up.streams.next_update() {
                self.seal(FrameKind::WindowUpdate, Some(stream), &bytes.to_be_bytes());
            } else if let Some(chunk) = up.streams.next_chunk(CHUNK) {
                self.seal(FrameKind::Stream, Some(chunk.stream), &chunk.data);
                if chunk.writable {
                    self.actions.push(Action::Writable(chunk.stream));
                }
                sent_data = true;
            } else {
                break;
            }
        }
        if sent_data {
            self.put_off_cover(now);
        }
    }

    fn seal(&mut self, kind: FrameKind, stream: Option<StreamId>, payload: &[u8]) {
        let State::Up(up) = &mut self.state else { return };
        let mut frame = Vec::new();
        if up.sealing.frames_left() == 1 && !matches!(kind, FrameKind::KeyUpdate | FrameKind::Close)
        {
            up.sealing.seal(FrameKind::KeyUpdate, None, &[], &mut frame);
        }
        up.sealing.seal(kind, stream, payload, &mut frame);
        self.transmit(frame);
    }

    fn transmit(&mut self, bytes: Vec<u8>) {
        self.untransmitted += bytes.len();
        self.actions.push(Action::Transmit(bytes));
    }

    fn fail(&mut self, error: LinkError) {
        let code = match error {
            LinkError::Silence | LinkError::HandshakeTimeout => SILENT,
            _ => FAULT,
        };
        self.end(Some(code), Closed::Failed(error));
    }

    fn end(&mut self, code: Option<u16>, closed: Closed) {
        if let Some(code) = code {
            self.seal(FrameKind::Close, None, &code.to_be_bytes());
        }
        self.state = State::Over;
        self.buffer = Vec::new();
        self.deadlines = Deadlines::default();
        self.actions.push(Action::Closed(closed));
    }
}

impl<R> fmt::Debug for Link<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Dialing(_) => "dialing",
            State::Accepting(_) => "accepting",
            State::Up(_) => "up",
            State::Over => "over",
        };
        f.debug_struct("Link")
            .field("state", &state)
            .field("untransmitted_bytes", &self.untransmitted)
            .finish_non_exhaustive()
    }
}

/// What fits, with its header, tag and HTTP/2 frame header, into one TLS record of 16 KiB.
const CHUNK: usize = (16 << 10) - 64;
/// A receive buffer that a burst made larger is given back.
const KEPT_BUFFER: usize = 128 << 10;
const NO_REASON: u16 = 0;
const FAULT: u16 = 1;
const SILENT: u16 = 2;
