//! Taking messages in: many requests, few commits.
//!
//! A request waits for its commit. While one batch commits, the next collects, so under load a
//! commit carries hundreds of messages and a lone message waits for nobody. Writers are sharded by
//! sender, which keeps each sender's messages in order.
//!
//! Each writer has a thread, a runtime and a connection of its own. Among the tasks of requests it
//! would find out that its commit is done when they had had their turns, with the database idle until
//! then.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    num::NonZero,
    sync::Arc,
    thread,
    time::Duration,
};

use fieldpost_delivery::{
    Accepted, AcceptedBatch, AtOnce, InboxEntry, Store as _, Submission, Target,
};
use fieldpost_envelope::PeerId;
use thiserror::Error;
use tokio::{
    runtime::Builder,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};
use tracing::Instrument as _;

use crate::{
    clock::Clock,
    outbox::Openings,
    store::{Quotas, Store},
    subscribers::Subscribers,
};

/// The most writers; more of them only make the batches smaller.
const MOST_WRITERS: usize = 4;
/// Requests that may wait for one writer; beyond, callers are told to come back.
const WAITING: usize = 4096;
/// The most content in one commit, in bytes; a single message may be larger.
const BATCH_BYTES: usize = 8 << 20;
/// The most content that waits for all writers, in KiB; beyond, callers are told to come back.
const WAITING_KIB: u32 = 64 << 10;
/// For whom more waits than this looks into the store, as its inbox is searched for what was not shown.
const MOST_UNCONFIRMED: u64 = 1024;
/// For how long a commit may still come of which nothing was heard: twice the time of a statement.
const IN_DOUBT: Duration = Duration::from_secs(30);
/// How long a request waits for its commit.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a message was not accepted. Nothing of it has been kept, except perhaps after
/// [`TimedOut`](Self::TimedOut) and [`InDoubt`](Self::InDoubt): then only sending it again under the
/// same id tells.
#[derive(Clone, Debug, Error)]
pub enum AcceptError {
    /// As many requests wait as may.
    #[error("{WAITING} requests or {WAITING_KIB} KiB of content wait already")]
    Busy,
    /// The commit did not come in time.
    #[error("not committed within {} s", DEADLINE.as_secs())]
    TimedOut,
    /// The database is away.
    #[error("the database cannot be reached")]
    Away,
    /// The database went away during the commit.
    #[error("the database went away, and whether the message was accepted is not known")]
    InDoubt,
    /// The database refused this message.
    #[error("the database refused the message: {0}")]
    Refused(String),
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}

/// Hands messages to the writers.
#[derive(Clone)]
pub struct Acceptor {
    shards: Vec<mpsc::Sender<Request>>,
    room: Arc<Semaphore>,
}

struct Request {
    submission: Submission,
    answer: oneshot::Sender<Result<Accepted, AcceptError>>,
    span: tracing::Span,
    /// Held until the request is answered.
    _room: OwnedSemaphorePermit,
}

/// The writers' ends of the queues; see [`run`].
pub struct Writers(Vec<mpsc::Receiver<Request>>);

/// How many writers there are.
///
/// One for two processor cores: on fewer, a batch costs what a second writer would gain.
pub fn writers() -> usize {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    (cores / 2).clamp(1, MOST_WRITERS)
}

/// The queues between requests and writers.
pub fn queues() -> (Acceptor, Writers) {
    let (senders, receivers) = (0..writers()).map(|_| mpsc::channel(WAITING)).unzip();
    (
        Acceptor { shards: senders, room: Arc::new(Semaphore::new(WAITING_KIB as usize)) },
        Writers(receivers),
    )
}

impl Acceptor {
    /// Stores one message and returns once it is durable.
    ///
    /// If the future is dropped, the message may or may not be accepted.
    ///
    /// # Errors
    ///
    /// See [`AcceptError`].
    pub async fn accept(&self, submission: Submission) -> Result<Accepted, AcceptError> {
        let mut hasher = DefaultHasher::new();
        submission.message.sender.hash(&mut hasher);
        let shard = &self.shards[hasher.finish() as usize % self.shards.len()];
        let (answer, answered) = oneshot::channel();
        let size = submission.message.content.bytes.len() >> 10;
        let size = u32::try_from(size).unwrap_or(WAITING_KIB).clamp(1, WAITING_KIB);
        let room = self.room.clone().try_acquire_many_owned(size).map_err(|_| AcceptError::Busy)?;
        let span = tracing::Span::current();
        let request = Request { submission, answer, span, _room: room };
        shard.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AcceptError::Busy,
            mpsc::error::TrySendError::Closed(_) => AcceptError::Stopping,
        })?;
        match timeout(DEADLINE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(AcceptError::Stopping),
            Err(_) => Err(AcceptError::TimedOut),
        }
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.shards.iter().map(|shard| shard.max_capacity() - shard.capacity()).sum()
    }
}

/// Drives the writers until every [`Acceptor`] is gone and the queues are empty.
pub async fn run(writers: Writers, writer: Writer) {
    let mut tasks = JoinSet::new();
    for (number, queue) in writers.0.into_iter().enumerate() {
        match start(number, writer.clone(), queue) {
            Ok(ended) => drop(tasks.spawn(async move { drop(ended.await) })),
            Err(error) => {
                tracing::error!(%error, "a writer cannot start");
                return;
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Starts the thread of a writer. What is returned is answered or closed when it ends.
fn start(
    number: usize,
    writer: Writer,
    queue: mpsc::Receiver<Request>,
) -> io::Result<oneshot::Receiver<()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (ends, ended) = oneshot::channel();
    thread::Builder::new().name(format!("writer-{number}")).spawn(move || {
        runtime.block_on(writer.run_apart(queue));
        let _ = ends.send(());
    })?;
    Ok(ended)
}

/// What a writer works with.
#[derive(Clone)]
pub struct Writer {
    /// Where messages are kept.
    pub store: Store,
    /// The database's time.
    pub clock: Clock,
    /// Told of what has become visible.
    pub subscribers: Subscribers,
    /// Knows for whom much waits.
    pub quotas: Quotas,
    /// Takes what was claimed as it was accepted.
    pub openings: Openings,
    /// Told of what else is owed elsewhere.
    pub wake_outbox: Arc<Notify>,
    /// The most messages in one commit.
    pub batch_messages: usize,
}

impl Writer {
    /// As [`run`](Self::run), on a runtime of its own.
    async fn run_apart(self, queue: mpsc::Receiver<Request>) {
        let store = self.store.apart();
        Self { store: store.clone(), ..self }.run(queue).await;
        store.part().await;
    }

    async fn run(self, mut queue: mpsc::Receiver<Request>) {
        let mut waiting = Vec::with_capacity(self.batch_messages);
        while !waiting.is_empty() || queue.recv_many(&mut waiting, self.batch_messages).await > 0 {
            // Whoever gave up waiting was told so; what it sent must not be accepted later.
            waiting.retain(|request: &Request| !request.answer.is_closed());
            let mut bytes = 0;
            let taken = waiting
                .iter()
                .take_while(|request| {
                    let fits = bytes == 0 || bytes + request.size() <= BATCH_BYTES;
                    bytes += request.size();
                    fits
                })
                .count();
            let batch: Vec<Request> = waiting.drain(..taken).collect();
            if !batch.is_empty() {
                self.write(batch).await;
            }
        }
    }

    async fn write(&self, batch: Vec<Request>) {
        metrics::histogram!("fieldpost_accept_batch_messages").record(batch.len() as f64);
        let span = tracing::debug_span!("accept.commit", batch.messages = batch.len());
        for request in &batch {
            span.follows_from(&request.span);
        }
        let (submissions, answers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|request| (request.submission, request.answer)).unzip();
        match self.commit(&submissions).instrument(span.clone()).await {
            Ok(accepted) => {
                for (answer, accepted) in answers.into_iter().zip(accepted) {
                    let _ = answer.send(Ok(accepted));
                }
            }
            Err(error) if submissions.len() > 1 && is_refusal(&error) => {
                // One bad row fails all: each gets its own try, so that only the bad one is refused.
                for (submission, answer) in submissions.into_iter().zip(answers) {
                    let _ = answer.send(match self.commit(&[submission]).await {
                        Ok(accepted) => accepted.into_iter().next().ok_or(AcceptError::Away),
                        Err(error) => Err(failure(&error)),
                    });
                }
            }
            Err(error) => {
                tracing::warn!(%error, batch.messages = submissions.len(), "batch not committed");
                let failure = failure(&error);
                for answer in answers {
                    let _ = answer.send(Err(failure.clone()));
                }
            }
        }
    }

    /// Accepts, and tells whoever waits for what has just become visible.
    async fn commit(&self, submissions: &[Submission]) -> sqlx::Result<Vec<Accepted>> {
        let present = self.present(submissions);
        let reserved = self.openings.reserve(submissions);
        let reachable = reserved.targets();
        let lease = self.openings.lease();
        let at_once = AtOnce { present: &present, reachable: &reachable, lease };
        let now = self.clock.now();
        let accepted = self.store.accept_and_begin(now, submissions, at_once).await;
        let AcceptedBatch { answers, shown, claimed } = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let until = self.clock.instant() + IN_DOUBT;
                self.subscribers.doubt(&present, until);
                match failure(&error) {
                    AcceptError::InDoubt => {
                        let claimed_until = at_once.claimed_until(now);
                        self.openings.doubt(reserved, submissions, claimed_until, until);
                        self.wake_outbox.notify_one();
                    }
                    _ => self.openings.free(reserved),
                }
                return Err(error);
            }
        };
        let begun = claimed.len();
        self.openings.hand(reserved, claimed);
        let mut handed: HashMap<PeerId, Vec<Arc<InboxEntry>>> = HashMap::new();
        for (peer, entry) in shown {
            handed.entry(peer).or_default().push(Arc::new(entry));
        }
        handed.iter().for_each(|(peer, entries)| self.subscribers.hand(peer, entries));
        let fresh = || {
            submissions
                .iter()
                .zip(&answers)
                .filter(|(_, answer)| matches!(answer, Accepted::New { .. }))
                .flat_map(|(submission, _)| &submission.deliveries)
        };
        let others = fresh().filter_map(local).filter(|peer| !handed.contains_key(*peer));
        self.subscribers.wake(others);
        if fresh().filter(|target| !matches!(target, Target::Local(_))).count() > begun {
            self.wake_outbox.notify_one();
        }
        Ok(answers)
    }

    /// The recipients whose sockets wait for what comes next.
    fn present(&self, submissions: &[Submission]) -> Vec<PeerId> {
        let recipients = submissions.iter().flat_map(|submission| &submission.deliveries);
        let is_present = |peer: &&PeerId| {
            self.subscribers.is_present(peer)
                && self.quotas.waiting(peer.as_str()) <= MOST_UNCONFIRMED
        };
        let mut present: Vec<_> =
            recipients.filter_map(local).filter(is_present).cloned().collect();
        present.sort_unstable();
        present.dedup();
        present
    }
}

fn local(target: &Target) -> Option<&PeerId> {
    match target {
        Target::Local(peer) => Some(peer),
        Target::Remote(_) | Target::Group { .. } | Target::Broadcast(_) => None,
    }
}

impl Request {
    fn size(&self) -> usize {
        self.submission.message.content.bytes.len()
    }
}

/// Whether the database answered that a row cannot be: trying the rows apart tells which.
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

fn failure(error: &sqlx::Error) -> AcceptError {
    match error.as_database_error() {
        Some(database) if is_refusal(error) => AcceptError::Refused(database.message().to_owned()),
        // An answer, so it was undone; except that of a server that is told to stop.
        Some(database) if !database.code().is_some_and(|code| code.starts_with("57P")) => {
            AcceptError::Away
        }
        None if matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => {
            AcceptError::Away
        }
        _ => AcceptError::InDoubt,
    }
}
