//! How replicas wake each other (design, section 11).
//!
//! A wake-up is a hint: the truth is in the tables, and whoever may have missed one looks. So the
//! bus carries names alone, one notification for each commit, and a broken connection means that
//! everybody looks once.

use std::time::Duration;

use tokio::time::sleep;

use crate::{Gateway, store::Wake};

/// Between attempts to listen again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Wakes the subscribers of this replica at what other replicas have committed. Runs until it is
/// dropped.
pub async fn listen(gateway: Gateway) {
    loop {
        match gateway.store.listen().await {
            Ok(mut wakes) => {
                gateway.subscribers.wake_all();
                loop {
                    match wakes.next().await {
                        Ok(Wake::Peers(peers)) => gateway.subscribers.wake(&peers),
                        Ok(Wake::Everybody) => gateway.subscribers.wake_all(),
                        Err(error) => {
                            tracing::warn!(%error, "the bus is broken; trying again");
                            break;
                        }
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "the bus cannot be reached; trying again"),
        }
        sleep(RETRY_PAUSE).await;
    }
}
