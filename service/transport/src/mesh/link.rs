//! The tasks of one link: they read and write its streams and decide nothing.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use fieldpost_envelope::GatewayId;
use fieldpost_peering::{
    Event, LinkId, NodeId, Refusal, limits,
    wire::{
        HEAD_LEN, StreamKind, WireError, decode_head, encode_batch, encode_head, encode_rosters,
        frame_length,
    },
};
use iroh::endpoint::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Shared, drive::Input, files};

/// A link as the driver holds it. Dropping it ends the tasks.
pub(super) struct LinkEnd {
    pub(super) connection: Connection,
    frames: mpsc::Sender<Bytes>,
    open: Option<oneshot::Sender<GatewayId>>,
    tasks: JoinSet<()>,
}

impl LinkEnd {
    pub(super) fn start(
        id: LinkId,
        connection: Connection,
        is_dialled: bool,
        inputs: mpsc::Sender<Input>,
        shared: Arc<Shared>,
        room: Arc<Semaphore>,
    ) -> Self {
        let (frames, to_write) = mpsc::channel(FRAMES);
        let (open, opened) = oneshot::channel();
        let reader = Reader { id, connection: connection.clone(), inputs, shared, room };
        let mut tasks = JoinSet::new();
        tasks.spawn(reader.run(is_dialled, to_write, opened));
        Self { connection, frames, open: Some(open), tasks }
    }

    /// Whose key the other end has proved to hold.
    pub(super) fn node(&self) -> NodeId {
        NodeId(*self.connection.remote_id().as_bytes())
    }

    /// Whether its hello was believed.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_none()
    }

    /// Lets the streams be read from now on.
    pub(super) fn open(&mut self, gateway: GatewayId) {
        if let Some(open) = self.open.take() {
            let _ = open.send(gateway);
        }
    }

    /// Writes a frame on the control stream; `false` if the other side has not read for long.
    pub(super) fn write(&self, frame: Bytes) -> bool {
        // Where nobody takes frames any more, the link has ended, and the driver hears of it.
        !matches!(self.frames.try_send(frame), Err(TrySendError::Full(_)))
    }

    pub(super) fn put_batch(&mut self, number: u64, envelopes: &[Bytes], is_large: bool) {
        let pieces = encode_batch(number, envelopes);
        self.put(StreamKind::Batch, pieces, if is_large { LARGE } else { SMALL });
    }

    pub(super) fn put_rosters(&mut self, rosters: &[Bytes]) {
        self.put(StreamKind::Rosters, encode_rosters(rosters), ROSTERS);
    }

    pub(super) fn close(self, refusal: Refusal) {
        let text = refusal.to_string();
        self.connection.close(VarInt::from_u32(refusal.code()), text.as_bytes());
    }

    fn put(&mut self, kind: StreamKind, mut pieces: Vec<Bytes>, priority: i32) {
        let length = pieces.iter().map(Bytes::len).sum();
        pieces.insert(0, Bytes::copy_from_slice(&encode_head(kind, length)));
        let connection = self.connection.clone();
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(async move {
            // If this fails the link is over, and the driver hears of that by itself.
            let Ok(mut send) = connection.open_uni().await else { return };
            let _ = send.set_priority(priority);
            if send.write_all_chunks(&mut pieces).await.is_ok() {
                let _ = send.finish();
            }
        });
    }
}

#[derive(Clone)]
struct Reader {
    id: LinkId,
    connection: Connection,
    inputs: mpsc::Sender<Input>,
    shared: Arc<Shared>,
    /// The bytes that may be in memory for streams that have not ended, of all links.
    room: Arc<Semaphore>,
}

impl Reader {
    async fn run(
        self,
        is_dialled: bool,
        to_write: mpsc::Receiver<Bytes>,
        opened: oneshot::Receiver<GatewayId>,
    ) {
        let streams = async {
            let control = match is_dialled {
                true => self.connection.open_bi().await,
                false => self.connection.accept_bi().await,
            };
            let Ok((send, receive)) = control else { return };
            let _ = send.set_priority(CONTROL);
            tokio::join!(
                write_frames(send, to_write),
                self.read_frames(receive),
                self.read_streams(opened)
            );
        };
        let reason = tokio::select! {
            reason = self.connection.closed() => reason,
            () = streams => self.connection.closed().await,
        };
        let reason = match reason {
            ConnectionError::ApplicationClosed(close) => {
                Refusal::from_code(close.error_code.into_inner())
            }
            _ => None,
        };
        self.tell(Event::Closed { link: self.id, reason }).await;
    }

    async fn read_frames(&self, mut receive: RecvStream) {
        let mut head = [0; 4];
        while receive.read_exact(&mut head).await.is_ok() {
            let length = match frame_length(head) {
                Ok(length) => length,
                Err(_) => return self.blame(Refusal::Oversized).await,
            };
            let mut frame = vec![0; length];
            if receive.read_exact(&mut frame).await.is_err() {
                return;
            }
            self.tell(Event::Frame { link: self.id, bytes: frame.into() }).await;
        }
    }

    async fn read_streams(&self, opened: oneshot::Receiver<GatewayId>) {
        let Ok(gateway) = opened.await else { return };
        let room = Arc::new(Semaphore::new(limits::NEIGHBOUR_BYTES));
        let mut bodies = JoinSet::new();
        let mut served = JoinSet::new();
        loop {
            tokio::select! {
                stream = self.connection.accept_uni() => {
                    let Ok(stream) = stream else { return };
                    bodies.spawn(self.clone().read_stream(stream, room.clone()));
                }
                stream = self.connection.accept_bi() => {
                    let Ok((send, receive)) = stream else { return };
                    let files = &self.shared.files;
                    let source = files.read().unwrap_or_else(PoisonError::into_inner).clone();
                    served.spawn(files::serve(source, gateway, send, receive));
                }
                Some(_) = bodies.join_next() => {}
                Some(_) = served.join_next() => {}
            }
        }
    }

    async fn read_stream(self, stream: RecvStream, room: Arc<Semaphore>) {
        match timeout(PATIENCE, self.read_body(stream, room)).await {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => self.blame(refusal).await,
            Err(_) => self.blame(Refusal::Stalled).await,
        }
    }

    async fn read_body(&self, mut stream: RecvStream, room: Arc<Semaphore>) -> Result<(), Refusal> {
        let mut head = [0; HEAD_LEN];
        // One that breaks off is no fault; the sender's batch is not answered then.
        if stream.read_exact(&mut head).await.is_err() {
            return Ok(());
        }
        let (kind, length) = decode_head(head).map_err(|error| match error {
            WireError::Oversize { .. } => Refusal::Oversized,
            _ => Refusal::Nonsense,
        })?;
        let _own = hold(room, length).await;
        let _all = hold(self.room.clone(), length).await;
        let (mut body, mut filled) = (vec![0; length], 0);
        let mut told = Instant::now();
        while filled < length {
            let end = length.min(filled + READ_AT_ONCE);
            let Ok(Some(read)) = stream.read(&mut body[filled..end]).await else { return Ok(()) };
            filled += read;
            if told.elapsed() >= PROGRESS_TOLD {
                told = Instant::now();
                self.tell(Event::Heard { link: self.id }).await;
            }
        }
        let (link, body) = (self.id, Bytes::from(body));
        self.tell(match kind {
            StreamKind::Batch => Event::Batch { link, body },
            StreamKind::Rosters => Event::Rosters { link, body },
        })
        .await;
        Ok(())
    }

    async fn blame(&self, refusal: Refusal) {
        self.tell(Event::Misbehaved { link: self.id, refusal }).await;
    }

    async fn tell(&self, event: Event) {
        // Without a driver there is nobody to tell.
        let _ = self.inputs.send(Input::Core(event)).await;
    }
}

async fn write_frames(mut send: SendStream, mut frames: mpsc::Receiver<Bytes>) {
    let mut burst = Vec::new();
    while frames.recv_many(&mut burst, FRAMES).await > 0 {
        if send.write_all_chunks(&mut burst).await.is_err() {
            return;
        }
        burst.clear();
    }
}

async fn hold(room: Arc<Semaphore>, length: usize) -> Option<OwnedSemaphorePermit> {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    room.acquire_many_owned(length).await.ok()
}

const FRAMES: usize = 1024;
const CONTROL: i32 = 10;
const SMALL: i32 = 1;
const LARGE: i32 = 0;
const ROSTERS: i32 = -1;
const READ_AT_ONCE: usize = 64 * 1024;
const PROGRESS_TOLD: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);
