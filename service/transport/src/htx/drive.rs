use std::collections::VecDeque;

use bytes::Bytes;
use fieldpost_mixnet::htx::{Action, Event, Link, OpenStreamError, StreamId};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Duration, Instant, sleep_until, timeout},
};

use super::ForgetfulRng;

/// Our end of a link that is being made or is up.
///
/// Dropping it closes the link.
#[derive(Debug)]
pub struct LinkEnd {
    commands: mpsc::Sender<Command>,
    actions: mpsc::Receiver<Action>,
    driver: JoinHandle<()>,
}

/// The link is over.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("the link is over")]
pub struct LinkGone;

impl LinkEnd {
    /// What the link says next: everything but [`Action::Transmit`]. `None` after
    /// [`Action::Closed`].
    ///
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Action> {
        self.actions.recv().await
    }

    /// Opens a stream.
    ///
    /// # Errors
    ///
    /// The link is not up, or the other side keeps no more streams.
    pub async fn open(&self) -> Result<StreamId, OpenStreamError> {
        let (answer, opened) = oneshot::channel();
        self.command(Command::Open(answer)).await.map_err(|LinkGone| OpenStreamError::NotUp)?;
        opened.await.unwrap_or(Err(OpenStreamError::NotUp))
    }

    /// How many bytes can be sent on a stream now. Where there are too few, [`Action::Writable`]
    /// says when to ask again.
    ///
    /// # Errors
    ///
    /// The link is over.
    pub async fn room(&self, stream: StreamId) -> Result<usize, LinkGone> {
        let (answer, room) = oneshot::channel();
        self.command(Command::Room(stream, answer)).await?;
        room.await.map_err(|_| LinkGone)
    }

    /// Sends data, or is told [`Action::Rejected`] if it is more than there is [`room`](Self::room)
    /// for.
    ///
    /// # Errors
    ///
    /// The link is over.
    pub async fn send(&self, stream: StreamId, data: impl Into<Bytes>) -> Result<(), LinkGone> {
        self.command(Command::Send(stream, data.into())).await
    }

    /// Ends our direction of a stream.
    ///
    /// # Errors
    ///
    /// The link is over.
    pub async fn finish(&self, stream: StreamId) -> Result<(), LinkGone> {
        self.command(Command::Finish(stream)).await
    }

    /// Makes room for as many bytes as have found their place.
    ///
    /// # Errors
    ///
    /// The link is over.
    pub async fn consumed(&self, stream: StreamId, bytes: usize) -> Result<(), LinkGone> {
        self.command(Command::Consumed(stream, bytes)).await
    }

    /// Closes the link and waits for its task.
    pub async fn close(self) {
        let Self { commands, actions, driver } = self;
        drop((commands, actions));
        // A driver that panicked has nothing left to close.
        driver.await.unwrap_or_default();
    }

    async fn command(&self, command: Command) -> Result<(), LinkGone> {
        self.commands.send(command).await.map_err(|_| LinkGone)
    }
}

/// Gives the carrier what a client says first, before the carrier is there.
pub(super) fn begin(link: &mut Link<ForgetfulRng>, outgoing: &mpsc::Sender<Bytes>) {
    let now = Instant::now().into_std();
    let said: Vec<_> = link.handle(now, Event::Wake).collect();
    for action in said {
        let Action::Transmit(message) = action else { continue };
        let length = message.len();
        outgoing.try_send(message.into()).expect("the carrier has room for one message");
        link.handle(now, Event::Transmitted(length)).for_each(drop);
    }
}

/// Starts the task that feeds a link and does what it says.
pub(super) fn start(
    link: Link<ForgetfulRng>,
    incoming: Incoming,
    outgoing: mpsc::Sender<Bytes>,
) -> LinkEnd {
    let (commands, commanded) = mpsc::channel(QUEUE);
    let (told, actions) = mpsc::channel(QUEUE);
    let driver = tokio::spawn(Driver { link, incoming, outgoing, commanded, told }.run());
    LinkEnd { commands, actions, driver }
}

enum Command {
    Open(oneshot::Sender<Result<StreamId, OpenStreamError>>),
    Room(StreamId, oneshot::Sender<usize>),
    Send(StreamId, Bytes),
    Finish(StreamId),
    Consumed(StreamId, usize),
}

struct Driver {
    link: Link<ForgetfulRng>,
    incoming: Incoming,
    outgoing: mpsc::Sender<Bytes>,
    commanded: mpsc::Receiver<Command>,
    told: mpsc::Sender<Action>,
}

enum Happening {
    Received(Bytes),
    Transmitted(usize),
    Told,
    Commanded(Command),
    Abandoned,
    Lost,
    Due,
}

impl Driver {
    async fn run(mut self) {
        // Both are bounded by the core: by its carrier's room and by the windows of its streams.
        let (mut bytes, mut actions) = (VecDeque::new(), VecDeque::new());
        let mut is_over = false;
        while !is_over {
            let happening = self.wait(&mut bytes, &mut actions).await;
            let event = match &happening {
                Happening::Received(bytes) => Event::Receive(bytes),
                Happening::Transmitted(length) => Event::Transmitted(*length),
                Happening::Told => continue,
                Happening::Commanded(Command::Send(stream, data)) => {
                    Event::Send { stream: *stream, data }
                }
                Happening::Commanded(Command::Finish(stream)) => Event::Finish(*stream),
                Happening::Commanded(Command::Consumed(stream, bytes)) => {
                    Event::Consumed { stream: *stream, bytes: *bytes }
                }
                Happening::Commanded(Command::Open(_) | Command::Room(..)) | Happening::Due => {
                    Event::Wake
                }
                Happening::Abandoned => Event::Close,
                Happening::Lost => Event::Lost,
            };
            for action in self.link.handle(Instant::now().into_std(), event) {
                is_over |= matches!(action, Action::Closed(_));
                match action {
                    Action::Transmit(frame) => bytes.push_back(Bytes::from(frame)),
                    action => actions.push_back(action),
                }
            }
            // Whoever asked may have gone.
            match happening {
                Happening::Commanded(Command::Open(answer)) => {
                    answer.send(self.link.open()).unwrap_or_default();
                }
                Happening::Commanded(Command::Room(stream, answer)) => {
                    answer.send(self.link.send_room(stream)).unwrap_or_default();
                }
                _ => {}
            }
        }
        self.say_goodbye(bytes, actions).await;
    }

    async fn wait(
        &mut self,
        bytes: &mut VecDeque<Bytes>,
        actions: &mut VecDeque<Action>,
    ) -> Happening {
        let deadline = self.link.next_deadline().map(Instant::from_std);
        let due = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            permit = self.outgoing.reserve(), if !bytes.is_empty() => {
                match (permit, bytes.pop_front()) {
                    (Ok(permit), Some(frame)) => {
                        let length = frame.len();
                        permit.send(frame);
                        Happening::Transmitted(length)
                    }
                    _ => Happening::Lost,
                }
            }
            permit = self.told.reserve(), if !actions.is_empty() => {
                match (permit, actions.pop_front()) {
                    (Ok(permit), Some(action)) => {
                        permit.send(action);
                        Happening::Told
                    }
                    _ => Happening::Abandoned,
                }
            }
            command = self.commanded.recv() => {
                command.map_or(Happening::Abandoned, Happening::Commanded)
            }
            // A slow reader holds up the other side, not our memory.
            frame = self.incoming.frame(), if actions.len() < QUEUE => match frame {
                Some(Ok(frame)) => {
                    frame.into_data().map_or(Happening::Due, Happening::Received)
                }
                Some(Err(_)) | None => Happening::Lost,
            },
            () = due => Happening::Due,
        }
    }

    /// Gives the last frames and actions a moment to be taken.
    async fn say_goodbye(self, bytes: VecDeque<Bytes>, actions: VecDeque<Action>) {
        let Self { outgoing, told, mut incoming, .. } = self;
        let transmit = async {
            for frame in bytes {
                if outgoing.send(frame).await.is_err() {
                    break;
                }
            }
            drop(outgoing);
            // Letting go of what comes in would reset the stream, with our last frame on it.
            while let Some(Ok(_)) = incoming.frame().await {}
        };
        let tell = async {
            for action in actions {
                if told.send(action).await.is_err() {
                    break;
                }
            }
        };
        // Nobody waits for either for long: the link is over.
        drop(timeout(GOODBYE, async { tokio::join!(transmit, tell) }).await);
    }
}

const QUEUE: usize = 64;
const GOODBYE: Duration = Duration::from_secs(2);
