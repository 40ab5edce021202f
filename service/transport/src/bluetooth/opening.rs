//! A Bluetooth adapter for a transport, which opens it anew whenever it was lost.

use std::time::Duration;

use async_trait::async_trait;
use fieldpost_bitchat::LinkId;
use tokio::{sync::watch, time::timeout};

use super::{BluetoothRadio, BluetoothStatus, Kept};
use crate::{LinkIds, OpenRadio, Radio, RadioEvent, TransmitError};

/// For the system to say whether there is an adapter.
const PATIENCE: Duration = Duration::from_secs(15);

/// A Bluetooth adapter (`--ble-radio auto|hciN`).
pub struct OpenBluetooth {
    adapter: Option<String>,
    ids: LinkIds,
    seed: u64,
    kept: Kept,
}

impl OpenBluetooth {
    /// The adapter of that name, or any that is on. `seed` is for the jitter of attempts.
    pub fn new(adapter: Option<String>, ids: LinkIds, seed: u64) -> Self {
        Self { adapter, ids, seed, kept: Kept::default() }
    }
}

#[async_trait]
impl OpenRadio for OpenBluetooth {
    fn name(&self) -> String {
        self.adapter.clone().unwrap_or_else(|| "auto".to_owned())
    }

    async fn open(&self) -> Result<Box<dyn Radio>, String> {
        let (adapter, ids) = (self.adapter.clone(), self.ids.clone());
        let mut radio = BluetoothRadio::keeping(adapter, ids, self.seed, self.kept.clone());
        let mut status = radio.status();
        let known = status.wait_for(|status| status.is_available() || status.problem.is_some());
        let problem = match timeout(PATIENCE, known).await {
            Ok(Ok(status)) => status.problem.clone(),
            Ok(Err(_)) => Some("the radio ended".to_owned()),
            Err(_) => Some("Bluetooth does not answer".to_owned()),
        };
        match problem {
            None => Ok(Box::new(UntilLost { radio, status })),
            Some(problem) => {
                radio.shutdown().await;
                Err(problem)
            }
        }
    }
}

/// A radio that ends when its adapter is lost, so that whoever opened it knows.
struct UntilLost {
    radio: BluetoothRadio,
    status: watch::Receiver<BluetoothStatus>,
}

#[async_trait]
impl Radio for UntilLost {
    async fn next(&mut self) -> Option<RadioEvent> {
        tokio::select! {
            // The links' ends come first.
            biased;
            event = self.radio.next() => event,
            _ = self.status.wait_for(|status| status.problem.is_some()) => None,
        }
    }

    fn transmit(&self, link: LinkId, frame: Vec<u8>) -> Result<(), TransmitError> {
        self.radio.transmit(link, frame)
    }

    fn disconnect(&self, link: LinkId) {
        self.radio.disconnect(link);
    }

    async fn shutdown(&mut self) {
        self.radio.shutdown().await;
    }
}
