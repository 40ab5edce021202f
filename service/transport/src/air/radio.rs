//! A radio in the field.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use fieldpost_bitchat::LinkId;
use thiserror::Error;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use super::protocol::{MAX_RECORD, ToField, ToRadio};
use crate::{
    LinkIds, Radio, RadioEvent, TransmitError,
    streams::{StreamAddress, read, write},
};

/// Records that wait for the field; further ones are refused.
const OUTGOING: usize = 1024;
/// Frames of one link among them. The core is told what has left, and hands over no more.
const OF_LINK: usize = 16;
/// Events that wait for the core; the field is not read while they are so many.
const EVENTS: usize = 256;

/// How long the field may take to let a radio in.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// Why a radio has not joined a field.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The connection cannot be made, or broke.
    #[error("nobody plays one there: {0}; start it with `fieldpost air`")]
    Unreachable(#[from] io::Error),
    /// The field does not want it.
    #[error("{0}")]
    Refused(String),
    /// Something else listens there, or the field is stuck.
    #[error("what listens there does not answer as `fieldpost air` does within 5 s")]
    Silent,
}

/// A radio of an [`AirServer`](super::AirServer)'s field.
pub struct AirRadio {
    links: Links,
    outgoing: mpsc::Sender<(LinkId, ToField)>,
    events: mpsc::Receiver<RadioEvent>,
    tasks: JoinSet<()>,
}

/// Our names of links, with the field's names and the largest frames.
type Links = Arc<Mutex<BTreeMap<LinkId, (u64, usize)>>>;

impl AirRadio {
    /// Joins a field under a name of its scenario.
    ///
    /// # Errors
    ///
    /// Nobody listens there, nothing that knows an air does, or the field refuses the name.
    pub async fn join(
        address: &StreamAddress,
        name: &str,
        ids: LinkIds,
    ) -> Result<Self, JoinError> {
        let (mut reader, mut writer) = address.connect().await?.split();
        write(&mut writer, &ToField::Join { name: name.to_owned() }.encode()).await?;
        let answer = timeout(ANSWERED_WITHIN, read(&mut reader, MAX_RECORD)).await;
        match answer.map_err(|_| JoinError::Silent)?.map(|record| ToRadio::decode(&record))? {
            Some(ToRadio::Joined) => {}
            Some(ToRadio::Refused { reason }) => return Err(JoinError::Refused(reason)),
            _ => return Err(JoinError::Silent),
        }
        let (outgoing, mut waiting) = mpsc::channel::<(LinkId, ToField)>(OUTGOING);
        let (sender, events) = mpsc::channel(EVENTS);
        let links = Links::default();
        let mut tasks = JoinSet::new();
        // The radio has shut when nothing is read any more.
        let told = sender.downgrade();
        tasks.spawn(async move {
            while let Some((link, record)) = waiting.recv().await {
                if write(&mut writer, &record.encode()).await.is_err() {
                    return;
                }
                let Some(told) = told.upgrade() else { return };
                let room = RadioEvent::Room { link, frames: 1 };
                if matches!(record, ToField::Frame { .. }) && told.send(room).await.is_err() {
                    return;
                }
            }
        });
        let shared = links.clone();
        tasks.spawn(async move {
            let mut names = BTreeMap::new();
            while let Ok(record) = read(&mut reader, MAX_RECORD).await {
                let Some(record) = ToRadio::decode(&record) else { break };
                let Some(event) = event(record, &shared, &mut names, &ids) else { continue };
                let up = match &event {
                    RadioEvent::Up { link, .. } => Some(*link),
                    _ => None,
                };
                if sender.send(event).await.is_err() {
                    return;
                }
                if let Some(link) = up
                    && sender.send(RadioEvent::Room { link, frames: OF_LINK }).await.is_err()
                {
                    return;
                }
            }
            let down = std::mem::take(&mut *lock(&shared));
            for link in down.into_keys() {
                if sender.send(RadioEvent::Down { link }).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { links, outgoing, events, tasks })
    }
}

#[async_trait]
impl Radio for AirRadio {
    async fn next(&mut self) -> Option<RadioEvent> {
        self.events.recv().await
    }

    fn transmit(&self, link: LinkId, frame: Vec<u8>) -> Result<(), TransmitError> {
        let (field, limit) = *lock(&self.links).get(&link).ok_or(TransmitError::NoLink)?;
        if frame.len() > limit {
            return Err(TransmitError::TooLarge { size: frame.len(), limit });
        }
        let record = ToField::Frame { link: field, bytes: frame };
        self.outgoing.try_send((link, record)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => TransmitError::Busy { limit: OUTGOING },
            mpsc::error::TrySendError::Closed(_) => TransmitError::NoLink,
        })
    }

    fn disconnect(&self, link: LinkId) {
        let field = lock(&self.links).get(&link).map(|(field, _)| *field);
        if let Some(field) = field {
            // A full queue means that the field is behind; the core asks again if it matters.
            let _ = self.outgoing.try_send((link, ToField::Close { link: field }));
        }
    }

    async fn shutdown(&mut self) {
        self.events.close();
        self.tasks.shutdown().await;
    }
}

fn event(
    record: ToRadio,
    links: &Links,
    names: &mut BTreeMap<u64, LinkId>,
    ids: &LinkIds,
) -> Option<RadioEvent> {
    match record {
        ToRadio::Up { link: field, role, max_frame } => {
            let link = ids.next();
            names.insert(field, link);
            lock(links).insert(link, (field, max_frame));
            Some(RadioEvent::Up { link, role, max_frame, phone: true })
        }
        ToRadio::Down { link } => {
            let link = names.remove(&link)?;
            lock(links).remove(&link);
            Some(RadioEvent::Down { link })
        }
        ToRadio::Frame { link, bytes } => {
            names.get(&link).map(|link| RadioEvent::Frame { link: *link, bytes })
        }
        // Said once, before anything else.
        ToRadio::Joined | ToRadio::Refused { .. } => None,
    }
}

fn lock(links: &Links) -> MutexGuard<'_, BTreeMap<LinkId, (u64, usize)>> {
    links.lock().unwrap_or_else(PoisonError::into_inner)
}
