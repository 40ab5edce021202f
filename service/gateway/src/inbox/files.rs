//! The files of a message from elsewhere, under the ids that they have here.

use fieldpost_envelope::{Envelope, PeerId, Recipient};

use super::Arrival;
use crate::{
    Gateway,
    http::submit::MAX_FILES,
    store::remote_files::{RemoteFile, WAITING_IN_ALL, WAITING_PER_GATEWAY, remote_file_id},
};

/// The files of one message.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Those that have to be fetched.
    pub(super) remote: Vec<RemoteFile>,
    /// Those of a peer of this gateway, whose message comes back from a group elsewhere.
    own: Vec<String>,
}

impl Files {
    /// As the message names them here.
    pub(super) fn ids(&self) -> Vec<String> {
        let remote = self.remote.iter().map(|file| file.id.clone());
        remote.chain(self.own.iter().cloned()).collect()
    }

    /// Lets a recipient read them once they are here; before it is shown the message.
    pub(super) async fn grant(
        &self,
        gateway: &Gateway,
        envelope: &Envelope,
        recipient: &PeerId,
    ) -> sqlx::Result<()> {
        let readers = std::slice::from_ref(recipient);
        if !self.own.is_empty() {
            gateway.store.grant_own_files(&self.own, &envelope.sender.peer, readers).await?;
        }
        if !self.remote.is_empty() {
            gateway.store.await_files(&self.remote, readers).await?;
            gateway.wake_files.notify_one();
        }
        Ok(())
    }
}

/// What the files of an envelope are called here, or why there are too many.
///
/// A group's home hands on files under its own names for them, as the sender's gateway knows nothing
/// of the members.
pub(super) async fn taken_up(
    gateway: &Gateway,
    arrival: Arrival,
    envelope: &Envelope,
) -> sqlx::Result<Result<Files, String>> {
    let ids = &envelope.content.file_ids;
    if ids.is_empty() || envelope.recipient == Recipient::Broadcast {
        return Ok(Ok(Files::default()));
    }
    if ids.len() > MAX_FILES {
        return Ok(Err(format!("{} files are too many: at most {MAX_FILES}", ids.len())));
    }
    let origin = envelope.sender.gateway.unwrap_or(arrival.signer);
    if origin == arrival.own {
        return Ok(Ok(Files { remote: Vec::new(), own: ids.clone() }));
    }
    let (of_one, of_all) = gateway.store.waiting_files(arrival.signer).await?;
    let count = ids.len() as i64;
    if of_one + count > WAITING_PER_GATEWAY || of_all + count > WAITING_IN_ALL {
        return Ok(Err("too many files wait to be fetched already".to_owned()));
    }
    let sender = envelope.sender.to_string();
    let remote = ids
        .iter()
        .map(|id| {
            let there = match origin == arrival.signer {
                true => id.clone(),
                false => remote_file_id(origin, id),
            };
            RemoteFile::new(arrival.signer, &there, sender.clone(), envelope.level)
        })
        .collect();
    Ok(Ok(Files { remote, own: Vec::new() }))
}
