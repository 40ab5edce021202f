//! A place for a radio: opens it, and opens another when it has shut.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use fieldpost_bitchat::LinkId;
use tokio::time::{Instant, sleep_until};

use crate::{AirRadio, LinkIds, Radio, RadioEvent, StreamAddress, StreamRadio, TransmitError};

/// Opens a radio, as often as it takes.
#[async_trait]
pub trait OpenRadio: Send + Sync {
    /// What it opens, for logs and for people.
    fn name(&self) -> String;

    /// Opens it anew.
    ///
    /// # Errors
    ///
    /// Why it cannot be opened now, and what would help; it is tried again later.
    async fn open(&self) -> Result<Box<dyn Radio>, String>;
}

/// A radio of an air (`--ble-radio air:ADDRESS`).
pub struct OpenAir {
    /// Where the air is.
    pub address: StreamAddress,
    /// The station's name in its scenario.
    pub name: String,
    /// Gives out the names of links.
    pub ids: LinkIds,
}

#[async_trait]
impl OpenRadio for OpenAir {
    fn name(&self) -> String {
        format!("air:{}/{}", self.address, self.name)
    }

    async fn open(&self) -> Result<Box<dyn Radio>, String> {
        let joined = AirRadio::join(&self.address, &self.name, self.ids.clone()).await;
        let radio = joined.map_err(|error| format!("the air at {}: {error}", self.address))?;
        Ok(Box::new(radio))
    }
}

/// Neighbours over streams (`--ble-stream-listen`, `--ble-stream-link`).
pub struct OpenStreams {
    /// Where neighbours come.
    pub listen: Vec<StreamAddress>,
    /// Neighbours to keep a link to.
    pub neighbours: Vec<StreamAddress>,
    /// Gives out the names of links.
    pub ids: LinkIds,
    /// For the jitter of retries.
    pub seed: u64,
}

#[async_trait]
impl OpenRadio for OpenStreams {
    fn name(&self) -> String {
        "streams".to_owned()
    }

    async fn open(&self) -> Result<Box<dyn Radio>, String> {
        let (listen, neighbours) = (&self.listen, &self.neighbours);
        let opened = StreamRadio::open(listen, neighbours, self.ids.clone(), self.seed).await;
        let radio = opened.map_err(|error| {
            let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
            format!("cannot listen on {}: {error}; choose another address", listen.join(", "))
        })?;
        Ok(Box::new(radio))
    }
}

/// What happens at a port.
pub(super) enum PortEvent {
    /// The radio is open.
    Opened,
    /// It is not, or not any more, and why.
    Closed(String),
    /// Something happened on it.
    Radio(RadioEvent),
}

type Opening = Pin<Box<dyn Future<Output = Result<Box<dyn Radio>, String>> + Send>>;

pub(super) struct Port {
    opener: Arc<dyn OpenRadio>,
    radio: Option<Box<dyn Radio>>,
    opening: Option<Opening>,
    open_at: Instant,
    opened_at: Instant,
    pause: Duration,
    /// Why it is not open.
    trouble: Option<String>,
    /// The trouble that was logged last.
    told: Option<String>,
}

impl Port {
    pub(super) fn new(opener: Arc<dyn OpenRadio>) -> Self {
        let now = Instant::now();
        let trouble = Some("it is being opened".to_owned());
        let pause = FIRST_PAUSE;
        Self {
            opener,
            radio: None,
            opening: None,
            open_at: now,
            opened_at: now,
            pause,
            trouble,
            told: None,
        }
    }

    pub(super) fn name(&self) -> String {
        self.opener.name()
    }

    /// Whether links can come about.
    pub(super) fn is_open(&self) -> bool {
        self.radio.as_ref().is_some_and(|radio| radio.is_open())
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.clone().or_else(|| self.radio.as_ref()?.trouble())
    }

    /// Whether this trouble was the last to be told; from now on it is.
    pub(super) fn is_told(&mut self, reason: &str) -> bool {
        let is_told = self.told.as_deref() == Some(reason);
        self.told = Some(reason.to_owned());
        is_told
    }

    /// Waits for what happens next. If the future is dropped, nothing is lost.
    pub(super) async fn next(&mut self) -> PortEvent {
        if let Some(radio) = &mut self.radio {
            return match radio.next().await {
                Some(event) => PortEvent::Radio(event),
                None => {
                    self.radio = None;
                    if self.opened_at.elapsed() >= GOOD {
                        self.pause = FIRST_PAUSE;
                    }
                    self.fail("the radio has shut".to_owned())
                }
            };
        }
        sleep_until(self.open_at).await;
        let opener = &self.opener;
        let opening = self.opening.get_or_insert_with(|| {
            let opener = opener.clone();
            Box::pin(async move { opener.open().await })
        });
        let opened = opening.await;
        self.opening = None;
        match opened {
            Ok(radio) => {
                self.radio = Some(radio);
                self.opened_at = Instant::now();
                self.trouble = None;
                self.told = None;
                PortEvent::Opened
            }
            Err(reason) => self.fail(reason),
        }
    }

    fn fail(&mut self, reason: String) -> PortEvent {
        self.open_at = Instant::now() + self.pause;
        self.pause = (2 * self.pause).min(LAST_PAUSE);
        self.trouble = Some(reason.clone());
        PortEvent::Closed(reason)
    }

    pub(super) fn transmit(&self, link: LinkId, frame: Vec<u8>) -> Result<(), TransmitError> {
        self.radio.as_ref().map_or(Err(TransmitError::NoLink), |radio| radio.transmit(link, frame))
    }

    pub(super) fn disconnect(&self, link: LinkId) {
        if let Some(radio) = &self.radio {
            radio.disconnect(link);
        }
    }

    pub(super) async fn shutdown(&mut self) {
        if let Some(radio) = &mut self.radio {
            radio.shutdown().await;
        }
    }
}

/// Before a radio that shut is opened again; each further time twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// A radio that worked for so long was a good one: it is opened again at once.
const GOOD: Duration = Duration::from_secs(10);
