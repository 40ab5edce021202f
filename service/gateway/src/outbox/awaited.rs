//! Who waits for receipts here: deliveries under way, by the digest of their envelope.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fieldpost_delivery::ReceiptIn;
use tokio::sync::mpsc;

/// Receipts that may wait for one delivery; beyond, they are dropped and the other side says it
/// again.
const WAITING: usize = 8;

/// A receipt that came, and the digest of the envelope that held it.
#[derive(Clone, Debug)]
pub struct Heard {
    /// What it says.
    pub receipt: ReceiptIn,
    /// By which it is answered.
    pub digest: [u8; 32],
}

/// Leads receipts to the deliveries under way on this replica; cheap to clone.
///
/// A receipt can overtake the record of the envelope that it answers. Whoever is sending knows when
/// that record is made, so the receipt goes to it first.
#[derive(Clone, Debug, Default)]
pub struct Awaited(Arc<Mutex<HashMap<[u8; 32], mpsc::Sender<Heard>>>>);

impl Awaited {
    /// Waits for receipts that answer `envelope` until the result is dropped.
    pub(super) fn wait_for(&self, envelope: [u8; 32]) -> Waiting {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.lock().insert(envelope, sender);
        Waiting { awaited: self.clone(), envelope, receiver }
    }

    /// Hands over a receipt if somebody waits for it; gives it back if not.
    ///
    /// # Errors
    ///
    /// Nobody waits for it.
    #[expect(clippy::result_large_err, reason = "it is the argument that comes back")]
    pub fn hand(&self, heard: Heard) -> Result<(), Heard> {
        let waiting = self.lock().get(&heard.receipt.envelope).cloned();
        match waiting {
            None => Err(heard),
            Some(sender) => match sender.try_send(heard) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
                Err(mpsc::error::TrySendError::Closed(heard)) => Err(heard),
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], mpsc::Sender<Heard>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A delivery's wait for receipts.
#[derive(Debug)]
pub(super) struct Waiting {
    awaited: Awaited,
    envelope: [u8; 32],
    receiver: mpsc::Receiver<Heard>,
}

impl Waiting {
    /// The next receipt. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        self.receiver.recv().await
    }

    /// Takes no more; returns what came and was not taken.
    pub(super) fn close(mut self) -> Vec<Heard> {
        self.awaited.lock().remove(&self.envelope);
        self.receiver.close();
        std::iter::from_fn(|| self.receiver.try_recv().ok()).collect()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.awaited.lock().remove(&self.envelope);
    }
}
