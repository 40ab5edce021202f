//! Fetches the files that came with messages from other gateways, and serves those that went out.
//!
//! ```text
//! store.claim_files ─► Transport::fetch_file ─► chunks ─► store.store_chunk ─► SHA-256 ─► readable
//! ```
//!
//! A file goes on from its last whole chunk, whoever was interrupted and for how long. Nothing below
//! the level of the message fetches it. What the other gateway says of it is taken for no more than
//! it is: the length it declares is kept to, and the bytes have to hash to what it declared.

mod serving;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::TimeDelta;
use fieldpost_delivery::Backoff;
use fieldpost_envelope::{AnonymityLevel, GatewayId};
use fieldpost_transport::{FileError, FileFetch, FileInfo, Transport};
use futures_util::future::select_all;
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::instrument;

pub use self::serving::ServedFiles;
use crate::{
    Gateway,
    store::{
        files::{CHUNK_SIZE, FileRecord, LARGEST_FILE},
        remote_files::{Begun, Described, FileClaim},
    },
};

/// Files that are fetched at once.
const AT_ONCE: usize = 8;
/// Of these, files of one gateway.
const AT_ONCE_OF_ONE: usize = 2;
/// How long a claim holds; it is renewed as long as bytes come.
const LEASE: TimeDelta = TimeDelta::seconds(30);
/// How often it is renewed, and looked whether anything came.
const RENEWAL: Duration = Duration::from_secs(10);
/// How long another gateway may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// How long one attempt may take; the next goes on where it ended.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(15 * 60);
/// The most bytes that one piece may have.
const LARGEST_PIECE: usize = 4 << 20;
/// How often one looks though nothing was said.
const SWEEP: Duration = Duration::from_secs(5);
/// Between attempts.
const BACKOFF: Backoff =
    Backoff { first: Duration::from_secs(1), most: Duration::from_secs(10 * 60) };

/// Fetches until `stop`. What is under way then goes on at the next start.
pub async fn run(gateway: Gateway, stop: CancellationToken) {
    let mut fetching = Fetching::new(gateway.clone());
    let mut failing = false;
    while !stop.is_cancelled() {
        let pause = match fetching.look().await {
            Ok(pause) => {
                failing = false;
                pause
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "files to be fetched cannot be read; trying again");
                }
                failing = true;
                SWEEP
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = fetching.wait(pause) => {}
        }
    }
    fetching.give_back().await;
}

/// What is fetched now.
struct Fetching {
    gateway: Gateway,
    tasks: JoinSet<String>,
    /// By the id of the file.
    under_way: HashMap<String, GatewayId>,
    reach: Vec<watch::Receiver<Arc<BTreeSet<String>>>>,
}

impl Fetching {
    fn new(gateway: Gateway) -> Self {
        let reach = gateway.transports.iter().map(|transport| transport.reachable()).collect();
        Self { gateway, tasks: JoinSet::new(), under_way: HashMap::new(), reach }
    }

    /// Begins all that can be begun; returns for how long there is nothing more to do.
    async fn look(&mut self) -> sqlx::Result<Duration> {
        if !self.gateway.readiness.is_ready() {
            return Ok(SWEEP);
        }
        // What changes from here on is noticed.
        self.reach.iter_mut().for_each(|reach| drop(reach.borrow_and_update()));
        let now = self.gateway.clock.now();
        let mut reach = reach(&self.gateway);
        while self.tasks.len() < AT_ONCE && !reach.is_empty() {
            reach.retain(|name, _| self.of(name) < AT_ONCE_OF_ONE);
            let known: Vec<(String, AnonymityLevel)> =
                reach.iter().map(|(gateway, level)| (gateway.to_string(), *level)).collect();
            // One at a time, so that no gateway gets more than its part.
            let claims = self.gateway.store.claim_files(now, LEASE, &known, 1).await?;
            let Some(claim) = claims.into_iter().next() else { break };
            self.under_way.insert(claim.id.clone(), claim.gateway);
            let gateway = self.gateway.clone();
            self.tasks.spawn(async move {
                let id = claim.id.clone();
                fetch(&gateway, claim).await;
                id
            });
        }
        let due = self.gateway.store.next_file_due().await?;
        let until = |due: chrono::DateTime<chrono::Utc>| {
            (due - self.gateway.clock.now()).to_std().unwrap_or_default()
        };
        Ok(due.map_or(SWEEP, until).clamp(Duration::from_millis(250), SWEEP))
    }

    fn of(&self, gateway: &GatewayId) -> usize {
        self.under_way.values().filter(|other| *other == gateway).count()
    }

    /// Waits until another look may be worth it.
    async fn wait(&mut self, pause: Duration) {
        let wake = self.gateway.wake_files.clone();
        let reach = &mut self.reach;
        let reach_changed = async {
            if reach.is_empty() {
                return std::future::pending().await;
            }
            let changes = reach.iter_mut().map(|reach| Box::pin(reach.changed()));
            if select_all(changes).await.0.is_err() {
                // That transport has shut for good.
                sleep(SWEEP).await;
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = wake.notified() => {}
            () = reach_changed => {}
            Some(ended) = self.tasks.join_next() => match ended {
                Ok(id) => drop(self.under_way.remove(&id)),
                // Its claim ends by itself.
                Err(error) => {
                    tracing::error!(%error, "fetching a file failed");
                    self.under_way.clear();
                }
            },
        }
    }

    /// Ends what is under way, for whoever comes next.
    async fn give_back(mut self) {
        self.tasks.shutdown().await;
        let now = self.gateway.clock.now();
        for id in self.under_way.into_keys() {
            if let Err(error) = self.gateway.store.hold_file(&id, now, true, None).await {
                tracing::debug!(%error, "a claim on a file was not given up; it ends by itself");
            }
        }
    }
}

/// The gateways in reach, each with the highest level of a transport that leads there now.
fn reach(gateway: &Gateway) -> HashMap<GatewayId, AnonymityLevel> {
    let mut reach: HashMap<GatewayId, AnonymityLevel> = HashMap::new();
    for transport in &gateway.transports {
        let level = level_of(transport.as_ref());
        for name in transport.reachable().borrow().iter() {
            if let Ok(other) = name.parse() {
                let best = reach.entry(other).or_default();
                *best = (*best).max(level);
            }
        }
    }
    reach
}

fn level_of(transport: &dyn Transport) -> AnonymityLevel {
    AnonymityLevel::try_from(transport.capabilities().anonymity_level).unwrap_or_default()
}

/// What an attempt came to.
#[derive(Debug)]
enum Ended {
    /// The whole file is here, and is what it should be.
    Complete,
    /// It will never come, for this reason.
    GivenUp(String),
    /// Something went wrong that may go right another time.
    Interrupted(String),
}

/// Makes one attempt at a file, and records what came of it.
#[instrument(name = "file.fetch", skip_all, fields(file.id = claim.id, file.attempt = claim.attempt))]
async fn fetch(gateway: &Gateway, claim: FileClaim) {
    let mut progress = false;
    let ended = match attempt(gateway, &claim, &mut progress).await {
        Ok(ended) => ended,
        Err(error) => Ended::Interrupted(format!("it could not be kept: {error}")),
    };
    let store = &gateway.store;
    let recorded = match ended {
        Ended::Complete => store.file_came(&claim.id).await,
        Ended::GivenUp(reason) => {
            tracing::warn!(gateway.id = %claim.gateway, reason, "a file will not come");
            store.give_file_up(&claim.id, &reason).await
        }
        Ended::Interrupted(reason) => {
            tracing::debug!(reason, "a file did not come whole; going on later");
            let attempt = if progress { 1 } else { claim.attempt };
            let seed = u64::from_be_bytes(std::array::from_fn(|at| claim.id.as_bytes()[at]));
            let mut rng = StdRng::seed_from_u64(seed ^ u64::from(claim.attempt));
            let wait = TimeDelta::from_std(BACKOFF.wait(attempt, &mut rng)).unwrap_or(LEASE);
            store.hold_file(&claim.id, gateway.clock.now() + wait, progress, Some(&reason)).await
        }
    };
    if let Err(error) = recorded {
        tracing::warn!(%error, "what came of fetching a file was not recorded; it is tried again");
    }
}

async fn attempt(gateway: &Gateway, claim: &FileClaim, progress: &mut bool) -> sqlx::Result<Ended> {
    let whole = whole_chunks(gateway, claim).await?;
    let from = whole as u64 * CHUNK_SIZE as u64;
    let mut reason = "no transport that may fetch it leads there now".to_owned();
    for transport in ways(gateway, claim) {
        let asked = transport.fetch_file(claim.gateway, &claim.file, from);
        let fetched = match timeout(SILENCE, asked).await {
            Ok(Ok(fetched)) => fetched,
            Ok(Err(error)) => match final_word(&error) {
                Some(reason) => return Ok(Ended::GivenUp(reason)),
                None => {
                    reason = error.to_string();
                    continue;
                }
            },
            Err(_) => {
                reason = format!("no answer within {} s", SILENCE.as_secs());
                continue;
            }
        };
        return receive(gateway, claim, whole, fetched, progress).await;
    }
    Ok(Ended::Interrupted(reason))
}

/// The transports that may fetch a file, in the configured order.
fn ways(gateway: &Gateway, claim: &FileClaim) -> Vec<Arc<dyn Transport>> {
    let name = claim.gateway.to_string();
    let mut ways: Vec<_> = gateway
        .transports
        .iter()
        .filter(|transport| {
            level_of(transport.as_ref()) >= claim.level
                && transport.reachable().borrow().contains(&name)
        })
        .cloned()
        .collect();
    let priority = &gateway.config.transport_priority;
    ways.sort_by_key(|way| {
        priority.iter().position(|name| name == way.name()).unwrap_or(usize::MAX)
    });
    ways
}

/// How many chunks are here without a gap from the first on.
async fn whole_chunks(gateway: &Gateway, claim: &FileClaim) -> sqlx::Result<usize> {
    let chunks = gateway.store.file_chunks(&claim.id).await?;
    Ok(chunks.iter().zip(0..).take_while(|(chunk, index)| chunk.chunk_index == *index).count())
}

async fn receive(
    gateway: &Gateway,
    claim: &FileClaim,
    whole: usize,
    fetched: FileFetch,
    progress: &mut bool,
) -> sqlx::Result<Ended> {
    let FileFetch { info, chunks } = fetched;
    let described = match described(&info) {
        Ok(described) => described,
        Err(reason) => return Ok(Ended::GivenUp(reason)),
    };
    let file = match gateway.store.begin_remote_file(claim, &described).await? {
        Begun::Ready(file) => file,
        Begun::Full => return Ok(Ended::Interrupted("there is no room for it now".to_owned())),
        Begun::Changed => {
            let reason = "it is not the file any more that it was at first".to_owned();
            return Ok(Ended::GivenUp(reason));
        }
        Begun::Unwanted => return Ok(Ended::Interrupted("nobody waits for it".to_owned())),
    };
    let mut incoming =
        Incoming { gateway, claim, file: *file, index: whole as i64, buffer: Vec::new() };
    match incoming.take_all(chunks, progress).await? {
        Some(ended) => Ok(ended),
        None => incoming.finish().await,
    }
}

/// What another gateway says of a file, if it is within bounds.
fn described(info: &FileInfo) -> Result<Described<'_>, String> {
    let size_bytes = i64::try_from(info.size_bytes).unwrap_or(i64::MAX);
    if !(1..=LARGEST_FILE).contains(&size_bytes) {
        return Err(format!(
            "it is said to have {} bytes: at most {LARGEST_FILE}",
            info.size_bytes
        ));
    }
    let is_name = |text: &str| (1..=255).contains(&text.chars().count()) && !text.contains('\0');
    Ok(Described {
        filename: if is_name(&info.filename) { &info.filename } else { "file" },
        mime_type: info.mime_type.as_deref().filter(|mime_type| is_name(mime_type)),
        size_bytes,
        sha256: info.sha256,
    })
}

/// Why a file will never come, if that is what the error says.
fn final_word(error: &FileError) -> Option<String> {
    match error {
        FileError::Unknown { .. } => Some("the other gateway has no such file any more".to_owned()),
        FileError::NotAllowed { .. } => Some("the other gateway does not give it".to_owned()),
        FileError::Unsupported | FileError::Unreachable { .. } | FileError::Failed(_) => None,
    }
}

/// A file on its way in.
struct Incoming<'a> {
    gateway: &'a Gateway,
    claim: &'a FileClaim,
    file: FileRecord,
    /// The chunk that comes now.
    index: i64,
    /// What is here of it.
    buffer: Vec<u8>,
}

impl Incoming<'_> {
    /// Keeps chunk after chunk; `None` when there are no more.
    async fn take_all(
        &mut self,
        mut chunks: tokio::sync::mpsc::Receiver<Result<Vec<u8>, FileError>>,
        progress: &mut bool,
    ) -> sqlx::Result<Option<Ended>> {
        let began = Instant::now();
        let (mut heard, mut renewed) = (began, began);
        loop {
            if began.elapsed() > LONGEST_ATTEMPT {
                return Ok(Some(Ended::Interrupted("it takes long".to_owned())));
            }
            if renewed.elapsed() >= RENEWAL {
                self.renew().await?;
                renewed = Instant::now();
            }
            let piece = match timeout(RENEWAL, chunks.recv()).await {
                Ok(Some(Ok(piece))) => piece,
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Ok(Some(match final_word(&error) {
                        Some(reason) => Ended::GivenUp(reason),
                        None => Ended::Interrupted(error.to_string()),
                    }));
                }
                Err(_) if heard.elapsed() < SILENCE => continue,
                Err(_) => {
                    let reason = format!("nothing came for {} s", SILENCE.as_secs());
                    return Ok(Some(Ended::Interrupted(reason)));
                }
            };
            heard = Instant::now();
            if let Some(ended) = self.take(&piece, progress).await? {
                return Ok(Some(ended));
            }
        }
    }

    async fn take(&mut self, piece: &[u8], progress: &mut bool) -> sqlx::Result<Option<Ended>> {
        if piece.len() > LARGEST_PIECE {
            return Ok(Some(Ended::GivenUp("it came in too large a piece".to_owned())));
        }
        self.buffer.extend_from_slice(piece);
        while !self.buffer.is_empty() {
            let Some(length) = self.file.chunk_length(self.index) else {
                let size = self.file.size_bytes;
                let reason = format!("more came than the {size} bytes that it was said to have");
                return Ok(Some(Ended::GivenUp(reason)));
            };
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if self.buffer.len() < length {
                break;
            }
            let rest = self.buffer.split_off(length);
            let chunk = std::mem::replace(&mut self.buffer, rest);
            if self.index + 1 == i64::from(self.file.total_chunks) && !self.buffer.is_empty() {
                let size = self.file.size_bytes;
                let reason = format!("more came than the {size} bytes that it was said to have");
                return Ok(Some(Ended::GivenUp(reason)));
            }
            match self.gateway.store.store_chunk(&self.file, self.index, &chunk).await? {
                Ok(_) => {}
                Err(refusal) => return Ok(Some(refused(&refusal))),
            }
            *progress = true;
            self.index += 1;
            self.renew().await?;
        }
        Ok(None)
    }

    /// All that came is kept; is it the file?
    async fn finish(self) -> sqlx::Result<Ended> {
        if self.index < i64::from(self.file.total_chunks) {
            return Ok(Ended::Interrupted("it ended before it was whole".to_owned()));
        }
        Ok(match self.gateway.store.complete_file(&self.file.id).await? {
            Ok(()) => Ended::Complete,
            Err(refusal) => refused(&refusal),
        })
    }

    async fn renew(&self) -> sqlx::Result<()> {
        let until = self.gateway.clock.now() + LEASE;
        self.gateway.store.hold_file(&self.claim.id, until, false, None).await
    }
}

fn refused(refusal: &crate::store::files::FileRefusal) -> Ended {
    use crate::store::files::FileRefusal;
    match refusal {
        FileRefusal::Mismatched { .. } => {
            Ended::GivenUp("its bytes are not what the other gateway had declared".to_owned())
        }
        FileRefusal::ChunkConflict { .. } => {
            Ended::GivenUp("its bytes are not those that came before".to_owned())
        }
        other => Ended::Interrupted(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_file_is_kept_within_bounds() {
        let info = |filename: &str, size_bytes| FileInfo {
            filename: filename.to_owned(),
            mime_type: Some("a\0b".to_owned()),
            size_bytes,
            sha256: [7; 32],
        };
        assert!(described(&info("map.pdf", 0)).is_err());
        assert!(described(&info("map.pdf", LARGEST_FILE as u64 + 1)).is_err());
        assert!(described(&info("map.pdf", u64::MAX)).is_err());
        let fits = info("map.pdf", 5);
        let fits = described(&fits).unwrap();
        assert_eq!((fits.filename, fits.mime_type, fits.size_bytes), ("map.pdf", None, 5));
        for name in ["", "a\0b", &"x".repeat(256)] {
            assert_eq!(described(&info(name, 5)).unwrap().filename, "file", "{name:?}");
        }
    }

    #[test]
    fn only_a_clear_word_ends_the_attempts() {
        let file = || "0f".to_owned();
        assert!(final_word(&FileError::Unknown { file: file() }).is_some());
        assert!(final_word(&FileError::NotAllowed { file: file() }).is_some());
        assert!(final_word(&FileError::Failed("link lost".to_owned())).is_none());
        assert!(final_word(&FileError::Unsupported).is_none());
    }
}
