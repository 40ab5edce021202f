//! One connection: packets with their length in front.

use std::io;

use fieldpost_bitchat::{LinkId, MAX_FRAME};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    sync::mpsc,
};

use crate::RadioEvent;

/// A stream of whichever kind.
pub(crate) struct Connection {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Connection {
    pub(crate) fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (reader, writer) = split(stream);
        Self { reader: Box::new(reader), writer: Box::new(writer) }
    }

    pub(crate) fn split(
        self,
    ) -> (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>) {
        (self.reader, self.writer)
    }

    /// Carries frames both ways until the stream ends, says something that is no frame, or the
    /// queue is gone.
    pub(crate) async fn run(
        mut self,
        link: LinkId,
        mut queue: mpsc::Receiver<Vec<u8>>,
        events: &mpsc::Sender<RadioEvent>,
    ) {
        let read = async {
            while let Ok(bytes) = read(&mut self.reader, MAX_FRAME).await {
                // Waits while the core is behind: the neighbour's own queue then fills.
                if events.send(RadioEvent::Frame { link, bytes }).await.is_err() {
                    return;
                }
            }
        };
        let write = async {
            while let Some(frame) = queue.recv().await {
                if write(&mut self.writer, &frame).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = read => {}
            () = write => {}
        }
    }
}

/// Reads one record. Not safe to cancel.
///
/// # Errors
///
/// The stream has ended, or the record is empty or longer than `most`.
pub(crate) async fn read(
    reader: &mut (impl AsyncRead + Unpin + ?Sized),
    most: usize,
) -> io::Result<Vec<u8>> {
    let length = reader.read_u32().await? as usize;
    if length == 0 || length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Writes one record. Not safe to cancel.
///
/// # Errors
///
/// The stream has ended.
pub(crate) async fn write(
    writer: &mut (impl AsyncWrite + Unpin + ?Sized),
    bytes: &[u8],
) -> io::Result<()> {
    let mut record = Vec::with_capacity(4 + bytes.len());
    record.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    record.extend_from_slice(bytes);
    writer.write_all(&record).await?;
    writer.flush().await
}
