//! Files over the `memory` transport: read where they are kept, piece by piece, as long as the way
//! is not cut.

use std::sync::Arc;

use fieldpost_envelope::GatewayId;
use tokio::sync::mpsc;

use super::{MemoryNetwork, MemoryTransport};
use crate::{FileError, FileFetch, FileSource};

/// What is read at a time.
const PIECE: usize = 256 * 1024;
/// Pieces on their way at once.
const ON_THE_WAY: usize = 4;

impl MemoryTransport {
    pub(super) fn serve(&self, source: Arc<dyn FileSource>) {
        let mut medium = self.network.lock();
        if let Some(end) = medium.ends.get_mut(&self.gateway)
            && end.number == self.number
        {
            end.files = Some(source);
        }
    }

    pub(super) async fn fetch(
        &self,
        from_gateway: GatewayId,
        file: &str,
        from: u64,
    ) -> Result<FileFetch, FileError> {
        let way = Way { network: self.network.clone(), reader: self.gateway, keeper: from_gateway };
        let source = way.source()?;
        let info = source.describe(self.gateway, file).await?;
        let (sender, chunks) = mpsc::channel(ON_THE_WAY);
        let file = file.to_owned();
        // It ends when the reader has gone, or at the end of the file.
        tokio::spawn(async move {
            if let Err(error) = way.carry(source, &file, from, &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(FileFetch { info, chunks })
    }
}

/// From where a file is kept to who reads it.
struct Way {
    network: MemoryNetwork,
    reader: GatewayId,
    keeper: GatewayId,
}

impl Way {
    fn source(&self) -> Result<Arc<dyn FileSource>, FileError> {
        let medium = self.network.lock();
        if !medium.reaches(self.keeper, self.reader) {
            return Err(FileError::Unreachable { gateway: self.keeper });
        }
        let end = medium.ends.get(&self.keeper);
        end.and_then(|end| end.files.clone()).ok_or(FileError::Unsupported)
    }

    async fn carry(
        &self,
        source: Arc<dyn FileSource>,
        file: &str,
        from: u64,
        sender: &mpsc::Sender<Result<Vec<u8>, FileError>>,
    ) -> Result<(), FileError> {
        let mut at = from;
        loop {
            self.source()?;
            let limit = self.network.lock().faults(self.keeper, self.reader).files_break_after;
            if limit.is_some_and(|limit| at - from >= limit) {
                return Err(FileError::Failed("the transfer broke off".to_owned()));
            }
            let piece = source.read(self.reader, file, at, PIECE).await?;
            if piece.is_empty() {
                return Ok(());
            }
            at += piece.len() as u64;
            if sender.send(Ok(piece)).await.is_err() {
                return Ok(());
            }
        }
    }
}
