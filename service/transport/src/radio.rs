//! What is under the `ble` transport: links to neighbours, whatever makes them.
//!
//! A [`Radio`] brings links up and down, carries whole frames over them in both directions, and
//! decides nothing else. The core paces what is sent; a radio only says how much a link takes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use fieldpost_bitchat::{LinkId, Role};
use thiserror::Error;

/// Links to neighbours.
#[async_trait]
pub trait Radio: Send {
    /// Waits for what happens next; `None` once the radio has shut. If the future is dropped,
    /// nothing is lost.
    async fn next(&mut self) -> Option<RadioEvent>;

    /// Hands one frame to a link, in the order of the calls.
    ///
    /// # Errors
    ///
    /// There is no such link, it takes no frames of this size, or its queue is full.
    fn transmit(&self, link: LinkId, frame: Vec<u8>) -> Result<(), TransmitError>;

    /// Closes a link; [`RadioEvent::Down`] follows if it stood.
    fn disconnect(&self, link: LinkId);

    /// Whether links can come about now.
    fn is_open(&self) -> bool {
        true
    }

    /// What is in the way of it now, in words for an operator; `None` when nothing is.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Closes all links, ends all tasks and waits for them.
    async fn shutdown(&mut self);
}

/// What happens on a radio.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RadioEvent {
    /// A link stands.
    Up {
        /// Its name.
        link: LinkId,
        /// Which side we are.
        role: Role,
        /// The largest frame it takes, in bytes.
        max_frame: usize,
        /// Whether a phone may be at the other end.
        phone: bool,
    },
    /// A link is gone.
    Down {
        /// Which.
        link: LinkId,
    },
    /// A link takes so many frames more than it has been given. One of which this is never told takes
    /// what comes, or loses it.
    Room {
        /// Which.
        link: LinkId,
        /// How many.
        frames: usize,
    },
    /// A frame came.
    Frame {
        /// Over which link.
        link: LinkId,
        /// One whole frame.
        bytes: Vec<u8>,
    },
}

/// Why a link did not take a frame.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum TransmitError {
    /// It is gone.
    #[error("there is no such link")]
    NoLink,
    /// Too many frames wait for it already.
    #[error("the link is busy: {limit} frames wait already")]
    Busy {
        /// How many may wait.
        limit: usize,
    },
    /// The frame is larger than the link takes.
    #[error("{size} bytes are too much for one frame: at most {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The most that would do.
        limit: usize,
    },
}

/// Gives out the names of links, so that no two radios of a transport use the same.
#[derive(Clone, Debug, Default)]
pub struct LinkIds(Arc<AtomicU64>);

impl LinkIds {
    /// A name that was never given before.
    pub fn next(&self) -> LinkId {
        LinkId(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// What happens next at a radio, but for room; for tests.
#[cfg(test)]
pub(crate) async fn next(radio: &mut impl Radio) -> RadioEvent {
    let patience = std::time::Duration::from_secs(20);
    loop {
        let event = tokio::time::timeout(patience, radio.next()).await.expect("something happens");
        match event.expect("the radio has not shut") {
            RadioEvent::Room { .. } => {}
            event => return event,
        }
    }
}
