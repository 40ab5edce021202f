//! Whether bootstraps answer, asked by somebody who is nobody: for `fieldpost doctor`.

use std::time::Duration;

use iroh::{EndpointId, SecretKey, endpoint::VarInt};
use rand::Rng;
use tokio::{task::JoinSet, time::timeout};

use super::{ALPN, MeshError, MeshOptions, addresses::AddressBook, bind};

impl MeshOptions {
    /// Dials each entry of `bootstrap` once, under a key made for it and from a port of its own, and
    /// says what came of it, in their order. Ends within 6 s.
    ///
    /// An answer proves that the node there holds the key of the entry. Nothing is said to it.
    ///
    /// # Errors
    ///
    /// An entry is not understood, or there is no port at all.
    pub async fn probe(&self) -> Result<Vec<(String, Result<(), String>)>, MeshError> {
        let (relays, bootstrap) = self.parse()?;
        let mut key = [0; 32];
        rand::rng().fill_bytes(&mut key);
        let endpoint = bind(None, SecretKey::from_bytes(&key), relays).await?;
        let mut dials = JoinSet::new();
        for (place, (entry, text)) in bootstrap.into_iter().zip(&self.bootstrap).enumerate() {
            let (endpoint, text, node) = (endpoint.clone(), text.clone(), entry.node);
            let mut book = AddressBook::default();
            book.add_bootstrap(entry);
            let dial = async move {
                let id = EndpointId::from_bytes(&node.0)
                    .map_err(|_| "nobody can hold that node key".to_owned())?;
                let address = book.places(node).resolve(id).await?;
                let connection = endpoint.connect(address, ALPN).await;
                let connection = connection.map_err(|error| error.to_string())?;
                connection.close(VarInt::from_u32(0), b"");
                Ok(())
            };
            dials.spawn(async move {
                let silence = || Err(format!("no answer within {} s", PATIENCE.as_secs()));
                (place, text, timeout(PATIENCE, dial).await.unwrap_or_else(|_| silence()))
            });
        }
        let mut answers = dials.join_all().await;
        answers.sort_by_key(|(place, ..)| *place);
        let _ = timeout(CLOSING, endpoint.close()).await;
        Ok(answers.into_iter().map(|(_, text, answer)| (text, answer)).collect())
    }
}

const PATIENCE: Duration = Duration::from_secs(5);
const CLOSING: Duration = Duration::from_secs(1);
