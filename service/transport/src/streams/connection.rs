//! One connection: packets with their length in front.

use std::{io, time::Duration};

use fieldpost_bitchat::{LinkId, MAX_FRAME};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    sync::mpsc,
    time::timeout,
};

use crate::RadioEvent;

/// For the rest of a record whose beginning has come, and for a record to leave. Whoever is slower
/// holds a place that others wait for.
const PATIENCE: Duration = Duration::from_secs(10);

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
                let room = RadioEvent::Room { link, frames: 1 };
                if events.send(room).await.is_err() {
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
/// The stream has ended, the record is empty or longer than `most`, or it stopped halfway for 10 s.
pub(crate) async fn read(
    reader: &mut (impl AsyncRead + Unpin + ?Sized),
    most: usize,
) -> io::Result<Vec<u8>> {
    // As long as nothing of it has come, there is nothing to wait for.
    let first = reader.read_u8().await?;
    timeout(PATIENCE, read_rest(reader, first, most)).await?
}

async fn read_rest(
    reader: &mut (impl AsyncRead + Unpin + ?Sized),
    first: u8,
    most: usize,
) -> io::Result<Vec<u8>> {
    let mut length = [first, 0, 0, 0];
    reader.read_exact(&mut length[1..]).await?;
    let length = u32::from_be_bytes(length) as usize;
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
/// The stream has ended, or its other end took nothing for 10 s.
pub(crate) async fn write(
    writer: &mut (impl AsyncWrite + Unpin + ?Sized),
    bytes: &[u8],
) -> io::Result<()> {
    let mut record = Vec::with_capacity(4 + bytes.len());
    record.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    record.extend_from_slice(bytes);
    timeout(PATIENCE, async {
        writer.write_all(&record).await?;
        writer.flush().await
    })
    .await?
}
