//! Files on streams of their own.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fieldpost_envelope::GatewayId;
use fieldpost_peering::wire::{FileAnswer, FileRequest, MAX_FILE_ID, frame_length};
use iroh::endpoint::{Connection, RecvStream, SendStream, VarInt};
use tokio::{sync::mpsc, time::timeout};

use crate::{FileError, FileFetch, FileInfo, FileSource};

/// Answers one request for a file.
pub(super) async fn serve(
    source: Option<Arc<dyn FileSource>>,
    reader: GatewayId,
    mut send: SendStream,
    mut receive: RecvStream,
) {
    let asked = timeout(PATIENCE, read_frame(&mut receive)).await.ok().flatten();
    let Some(request) = asked.and_then(|frame| FileRequest::decode(&frame).ok()) else {
        let _ = send.reset(VarInt::from_u32(BROKEN));
        return;
    };
    let _ = send.set_priority(PRIORITY);
    let Some(source) = source else {
        let _ = send.write_all(&FileAnswer::Unknown.encode()).await;
        return;
    };
    let answer = match source.describe(reader, &request.file).await {
        Ok(info) => FileAnswer::Found {
            filename: info.filename,
            mime_type: info.mime_type,
            size_bytes: info.size_bytes,
            sha256: info.sha256,
        },
        Err(error) => refusal(&error),
    };
    let is_found = matches!(answer, FileAnswer::Found { .. });
    if send.write_all(&answer.encode()).await.is_err() || !is_found {
        return;
    }
    let mut from = request.from;
    loop {
        match source.read(reader, &request.file, from, CHUNK).await {
            Ok(chunk) if chunk.is_empty() => break,
            Ok(chunk) => {
                from += chunk.len() as u64;
                // A reader that takes nothing for so long is gone.
                let written = timeout(PATIENCE, send.write_chunk(chunk.into())).await;
                if !matches!(written, Ok(Ok(()))) {
                    let _ = send.reset(VarInt::from_u32(BROKEN));
                    return;
                }
            }
            Err(_) => {
                let _ = send.reset(VarInt::from_u32(BROKEN));
                return;
            }
        }
    }
    let _ = send.finish();
}

/// Asks for a file over a link.
pub(super) async fn fetch(
    connection: &Connection,
    file: &str,
    from: u64,
) -> Result<FileFetch, FileError> {
    if file.len() > MAX_FILE_ID {
        return Err(FileError::Unknown { file: file.to_owned() });
    }
    let failed = |what: &str| FileError::Failed(what.to_owned());
    let ask = async {
        let (mut send, mut receive) =
            connection.open_bi().await.map_err(|error| failed(&error.to_string()))?;
        let request = FileRequest { file: file.to_owned(), from };
        send.write_all(&request.encode()).await.map_err(|error| failed(&error.to_string()))?;
        let _ = send.finish();
        let frame = read_frame(&mut receive).await.ok_or_else(|| failed("no answer came"))?;
        let answer = FileAnswer::decode(&frame).map_err(|error| failed(&error.to_string()))?;
        Ok((answer, receive))
    };
    let (answer, receive) =
        timeout(PATIENCE, ask).await.map_err(|_| failed("no answer came in 30 s"))??;
    let info = match answer {
        FileAnswer::Found { filename, mime_type, size_bytes, sha256 } => {
            FileInfo { filename, mime_type, size_bytes, sha256 }
        }
        FileAnswer::Unknown => return Err(FileError::Unknown { file: file.to_owned() }),
        FileAnswer::NotAllowed => return Err(FileError::NotAllowed { file: file.to_owned() }),
        FileAnswer::Failed(reason) => return Err(FileError::Failed(reason)),
    };
    let (sink, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let rest = info.size_bytes.saturating_sub(from);
    tokio::spawn(pump(receive, sink, rest));
    Ok(FileFetch { info, chunks })
}

/// Passes the bytes on until `rest` of them came, the stream ends, or nobody wants them.
async fn pump(
    mut receive: RecvStream,
    sink: mpsc::Sender<Result<Vec<u8>, FileError>>,
    mut rest: u64,
) {
    let failed = |what: String| Err(FileError::Failed(what));
    loop {
        let chunk = tokio::select! {
            () = sink.closed() => {
                let _ = receive.stop(VarInt::from_u32(UNWANTED));
                return;
            }
            chunk = timeout(PATIENCE, receive.read_chunk(CHUNK)) => chunk,
        };
        let item = match chunk {
            Err(_) => failed("nothing came for 30 s".into()),
            Ok(Err(error)) => failed(error.to_string()),
            Ok(Ok(None)) if rest > 0 => failed(format!("{rest} bytes are missing at the end")),
            Ok(Ok(None)) => return,
            Ok(Ok(Some(chunk))) => match rest.checked_sub(chunk.len() as u64) {
                Some(left) => {
                    rest = left;
                    Ok(Vec::from(chunk))
                }
                None => failed("more came than the file has".into()),
            },
        };
        let is_over = item.is_err();
        if sink.send(item).await.is_err() || is_over {
            let _ = receive.stop(VarInt::from_u32(UNWANTED));
            return;
        }
    }
}

async fn read_frame(receive: &mut RecvStream) -> Option<Bytes> {
    let mut head = [0; 4];
    receive.read_exact(&mut head).await.ok()?;
    let mut frame = vec![0; frame_length(head).ok()?];
    receive.read_exact(&mut frame).await.ok()?;
    Some(frame.into())
}

fn refusal(error: &FileError) -> FileAnswer {
    match error {
        FileError::Unknown { .. } => FileAnswer::Unknown,
        FileError::NotAllowed { .. } => FileAnswer::NotAllowed,
        FileError::Unsupported | FileError::Unreachable { .. } | FileError::Failed(_) => {
            FileAnswer::Failed("the file cannot be read now".into())
        }
    }
}

/// How many files one neighbour may be given at the same time; more wait.
pub(super) const SERVED_AT_ONCE: u32 = 8;
const CHUNK: usize = 64 * 1024;
const CHUNKS_AHEAD: usize = 8;
/// Files let envelopes pass.
const PRIORITY: i32 = -2;
const PATIENCE: Duration = Duration::from_secs(30);
const BROKEN: u32 = 1;
const UNWANTED: u32 = 2;
