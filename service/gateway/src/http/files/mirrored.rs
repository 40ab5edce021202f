//! Files on `/api/bitchat`: paths, fields and codes of the original system.
//!
//! Its routes name no caller but the uploader. In open mode they act for one who may; with tokens
//! the uploader uploads, and those who got a message with the file read. Repaired: uploads work,
//! chunk lengths are checked, an unfinished file is 409 and an unknown one 404.

use axum::{
    extract::{Multipart, State, multipart::MultipartRejection},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{FileContent, as_uploader, content, known_file, new_file, reader};
use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Detail},
        extract::{LenientJson, Path, body_error},
        fields::{self, mirrored_time},
    },
    store::files::{ChunkRecord, FileReader, FileRecord, FileRefusal, FileState},
};

/// The routes of `/api/bitchat/files`.
pub(super) fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(upload))
        .routes(routes!(upload_chunk))
        .routes(routes!(chunks))
        .routes(routes!(download))
        .routes(routes!(show))
}

/// Begin an upload.
#[utoipa::path(
    post,
    path = "/api/bitchat/files/upload",
    operation_id = "bitchatStartUpload",
    tag = "bitchat",
    request_body = BitchatUpload,
    responses(
        (status = 201, description = "Chunks of 1 MiB may come", body = BitchatTransfer, example = json!({
            "id": "c2a5f0de-7d1b-4c3a-9f55-0a6e4b8d1c22", "file_id": "9c1d5e70b3a24f6c8e0d7a92f1b4c653",
            "filename": "map.pdf", "file_size": 2500000, "mime_type": "application/pdf",
            "chunk_size": 1048576, "total_chunks": 3, "uploaded_chunks": 0, "uploaded_by": "alice",
            "status": "pending", "progress": 0.0, "created_at": "2026-11-23T09:00:00.000000+00:00",
            "completed_at": null, "download_sources": []
        })),
        (status = "4XX", description = "The upload cannot begin; 413 if the caller's files leave no room for it", body = Detail),
        (status = "5XX", description = "The gateway failed, or (507) the storage for all files is full", body = Detail),
    ),
)]
pub(super) async fn upload(
    State(gateway): State<Gateway>,
    caller: Caller,
    LenientJson(request): LenientJson<BitchatUpload>,
) -> Result<(StatusCode, axum::Json<BitchatTransfer>), ApiError> {
    let uploader = caller.acting_as(&fields::peer("uploaded_by", &request.uploaded_by)?)?;
    let file =
        new_file(uploader, "file_size", request.filename, request.file_size, request.mime_type)?;
    let file = gateway.store.create_file(&file).await??;
    Ok((StatusCode::CREATED, axum::Json(file.into())))
}

/// Upload one chunk. One that is there already stays as it is; other bytes for it are 409.
#[utoipa::path(
    post,
    path = "/api/bitchat/files/{file_id}/chunks/{chunk_index}",
    operation_id = "bitchatUploadChunk",
    tag = "bitchat",
    params(
        ("file_id" = String, Path, description = "The file", min_length = 32, max_length = 32, pattern = "^[0-9a-f]{32}$", example = "9c1d5e70b3a24f6c8e0d7a92f1b4c653"),
        ("chunk_index" = i32, Path, description = "The chunk's place, from 0", minimum = 0, maximum = 1023, example = 0),
    ),
    request_body(content = BitchatChunkUpload, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The chunk is kept", body = BitchatChunk, example = json!({
            "id": "7e1f2a90-3b44-4d0c-9a3d-5c6b7e8f9a01", "file_id": "9c1d5e70b3a24f6c8e0d7a92f1b4c653",
            "chunk_index": 0, "chunk_hash": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            "chunk_size": 1048576, "uploaded": true, "uploaded_at": "2026-11-23T09:00:01.000000+00:00",
            "available_from": ["alice"]
        })),
        (status = "4XX", description = "The chunk does not fit, or there is no such file", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn upload_chunk(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path((file_id, index)): Path<(String, i64)>,
    parts: Result<Multipart, MultipartRejection>,
) -> Result<axum::Json<BitchatChunk>, ApiError> {
    // Read before anything is refused: a client in the middle of its body would see the
    // connection break instead of the answer.
    let content = chunk_data(parts).await;
    let uploader = as_uploader(whoever_may_read(&caller)?);
    let file = gateway.store.file(known_file(&file_id)?, uploader).await??;
    let (chunk, _) = gateway.store.store_chunk(&file, index, &content?).await??;
    Ok(axum::Json(BitchatChunk::of(&file, &chunk)))
}

/// List the chunks of a file, those that are not here too; an unknown file has none.
#[utoipa::path(
    get,
    path = "/api/bitchat/files/{file_id}/chunks",
    operation_id = "bitchatListChunks",
    tag = "bitchat",
    params(("file_id" = String, Path, description = "The file", min_length = 32, max_length = 32, pattern = "^[0-9a-f]{32}$", example = "9c1d5e70b3a24f6c8e0d7a92f1b4c653")),
    responses(
        (status = 200, description = "All chunks, in order", body = [BitchatChunkStatus], example = json!([{
            "chunk_index": 0, "chunk_hash": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            "chunk_size": 1048576, "uploaded": true, "available_from": ["alice"]
        }])),
        (status = "4XX", description = "The file is not for the caller", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn chunks(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(file_id): Path<String>,
) -> Result<axum::Json<Vec<BitchatChunkStatus>>, ApiError> {
    let reader = whoever_may_read(&caller)?;
    let Ok(file_id) = known_file(&file_id) else {
        return Ok(axum::Json(Vec::new()));
    };
    let file = match gateway.store.file(file_id, reader).await? {
        Err(FileRefusal::Unknown) => return Ok(axum::Json(Vec::new())),
        file => file?,
    };
    let chunks = gateway.store.file_chunks(&file.id).await?;
    Ok(axum::Json(BitchatChunkStatus::of_all(&file, &chunks)))
}

/// Download a file.
#[utoipa::path(
    get,
    path = "/api/bitchat/files/{file_id}/download",
    operation_id = "bitchatDownload",
    tag = "bitchat",
    params(
        ("file_id" = String, Path, description = "The file", min_length = 32, max_length = 32, pattern = "^[0-9a-f]{32}$", example = "9c1d5e70b3a24f6c8e0d7a92f1b4c653"),
        ("range" = Option<String>, Header, nullable = false, description = "The part that is wanted", example = "bytes=1048576-"),
    ),
    responses(
        (status = 200, description = "The file", body = FileContent, content_type = "application/octet-stream", headers(
            ("content-disposition" = String, description = "`attachment` with the file's name"),
        )),
        (status = 206, description = "The part that was asked for", body = FileContent, content_type = "application/octet-stream"),
        (status = 304, description = "The caller has this file"),
        (status = "4XX", description = "There is no such file, or it is unfinished (409)", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn download(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(file_id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let reader = whoever_may_read(&caller)?;
    let file = gateway.store.file(known_file(&file_id)?, reader).await??;
    content::respond(&gateway, &file, &headers)
}

/// Show how far an upload has come.
#[utoipa::path(
    get,
    path = "/api/bitchat/files/{file_id}",
    operation_id = "bitchatGetTransfer",
    tag = "bitchat",
    params(("file_id" = String, Path, description = "The file", min_length = 32, max_length = 32, pattern = "^[0-9a-f]{32}$", example = "9c1d5e70b3a24f6c8e0d7a92f1b4c653")),
    responses(
        (status = 200, description = "The file", body = BitchatTransfer, example = json!({
            "id": "c2a5f0de-7d1b-4c3a-9f55-0a6e4b8d1c22", "file_id": "9c1d5e70b3a24f6c8e0d7a92f1b4c653",
            "filename": "map.pdf", "file_size": 2500000, "mime_type": "application/pdf",
            "chunk_size": 1048576, "total_chunks": 3, "uploaded_chunks": 3, "uploaded_by": "alice",
            "status": "completed", "progress": 100.0, "created_at": "2026-11-23T09:00:00.000000+00:00",
            "completed_at": "2026-11-23T09:00:02.000000+00:00", "download_sources": ["alice"]
        })),
        (status = "4XX", description = "There is no such file, or it is not for the caller", body = Detail),
        (status = "5XX", description = "The gateway failed", body = Detail),
    ),
)]
pub(super) async fn show(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(file_id): Path<String>,
) -> Result<axum::Json<BitchatTransfer>, ApiError> {
    let reader = whoever_may_read(&caller)?;
    let file = gateway.store.file(known_file(&file_id)?, reader).await??;
    Ok(axum::Json(file.into()))
}

/// What an upload begins with.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct BitchatUpload {
    /// What the file is called; any text, never used as a path.
    #[schema(min_length = 1, max_length = 255, pattern = r"^[^\u0000]+$", example = "map.pdf")]
    filename: String,
    /// Its length in bytes.
    #[schema(minimum = 1, maximum = 1_073_741_824, example = 2_500_000)]
    file_size: i64,
    /// What it is.
    #[schema(
        min_length = 1,
        max_length = 255,
        pattern = r"^[^\u0000]+$",
        example = "application/pdf"
    )]
    mime_type: Option<String>,
    /// Who uploads it.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = "^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$",
        example = "alice"
    )]
    uploaded_by: String,
}

/// One chunk as a form.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes a form, which is read part by part")]
pub(super) struct BitchatChunkUpload {
    /// The chunk's bytes.
    #[schema(value_type = String, format = Binary)]
    chunk_data: Vec<u8>,
}

/// A file and how far its upload has come.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatTransfer {
    /// Its row.
    id: Uuid,
    /// Its public id.
    file_id: String,
    /// What it is called.
    filename: String,
    /// Its length in bytes.
    file_size: i64,
    /// What the uploader says it is.
    #[schema(required)]
    mime_type: Option<String>,
    /// The length of every chunk but the last.
    chunk_size: i32,
    /// How many chunks make the file.
    total_chunks: i32,
    /// How many of them are here.
    uploaded_chunks: i64,
    /// Who uploads it.
    uploaded_by: String,
    /// `pending`, `uploading`, `completed`, or `failed` when the whole is not what was declared.
    #[schema(pattern = "^(?:pending|uploading|completed|failed)$")]
    status: String,
    /// How much of it is here, in percent.
    #[schema(minimum = 0, maximum = 100)]
    progress: f64,
    /// When the upload began.
    #[schema(format = DateTime)]
    created_at: String,
    /// When the file became readable.
    #[schema(required, format = DateTime)]
    completed_at: Option<String>,
    /// Where the finished file may be had.
    download_sources: Vec<String>,
}

impl From<FileRecord> for BitchatTransfer {
    fn from(file: FileRecord) -> Self {
        let status = match file.state() {
            FileState::Pending => "pending",
            FileState::Uploading => "uploading",
            FileState::Completed => "completed",
            FileState::Mismatched => "failed",
        };
        let is_complete = file.state() == FileState::Completed;
        Self {
            id: file.row_id,
            file_id: file.id,
            filename: file.filename,
            file_size: file.size_bytes,
            mime_type: file.mime_type,
            chunk_size: file.chunk_size,
            total_chunks: file.total_chunks,
            uploaded_chunks: file.uploaded_chunks,
            status: status.to_owned(),
            progress: file.uploaded_chunks as f64 * 100.0 / f64::from(file.total_chunks),
            created_at: mirrored_time(file.created_at),
            completed_at: file.completed_at.map(mirrored_time),
            download_sources: if is_complete { vec![file.uploaded_by.clone()] } else { Vec::new() },
            uploaded_by: file.uploaded_by,
        }
    }
}

/// A chunk that is here.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatChunk {
    /// Its row.
    id: Uuid,
    /// Its file.
    file_id: String,
    /// Its place, from 0.
    chunk_index: i32,
    /// The SHA-256 of its bytes.
    chunk_hash: String,
    /// Its length.
    chunk_size: i32,
    /// Always true.
    uploaded: bool,
    /// When it came.
    #[schema(format = DateTime)]
    uploaded_at: String,
    /// Where it may be had.
    available_from: Vec<String>,
}

impl BitchatChunk {
    fn of(file: &FileRecord, chunk: &ChunkRecord) -> Self {
        Self {
            id: chunk.row_id,
            file_id: file.id.clone(),
            chunk_index: chunk.chunk_index,
            chunk_hash: HEXLOWER.encode(&chunk.sha256),
            chunk_size: chunk.size_bytes,
            uploaded: true,
            uploaded_at: mirrored_time(chunk.uploaded_at),
            available_from: vec![file.uploaded_by.clone()],
        }
    }
}

/// A chunk, here or still to come.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BitchatChunkStatus {
    /// Its place, from 0.
    chunk_index: i32,
    /// The SHA-256 of its bytes; empty until it is here.
    chunk_hash: String,
    /// Its length.
    chunk_size: i64,
    /// Whether it is here.
    uploaded: bool,
    /// Where it may be had.
    available_from: Vec<String>,
}

impl BitchatChunkStatus {
    /// `chunks` are in order.
    fn of_all(file: &FileRecord, chunks: &[ChunkRecord]) -> Vec<Self> {
        let mut chunks = chunks.iter().peekable();
        let status = |index| {
            let chunk = chunks.next_if(|chunk| chunk.chunk_index == index);
            Self {
                chunk_index: index,
                chunk_hash: chunk.map(|chunk| HEXLOWER.encode(&chunk.sha256)).unwrap_or_default(),
                chunk_size: file.chunk_length(i64::from(index)).unwrap_or_default(),
                uploaded: chunk.is_some(),
                available_from: chunk.map(|_| file.uploaded_by.clone()).into_iter().collect(),
            }
        };
        (0..file.total_chunks).map(status).collect()
    }
}

/// For whom a file is read or filled: the caller, or in open mode, when the request names nobody,
/// one who may (design, section 6).
fn whoever_may_read(caller: &Caller) -> Result<FileReader<'_>, ApiError> {
    if caller.is_open() && caller.peer().is_none() {
        return Ok(FileReader::WhoeverMay);
    }
    reader(caller)
}

/// The part of the form that holds the chunk. The body's limit bounds what is read.
async fn chunk_data(
    parts: Result<Multipart, MultipartRejection>,
) -> Result<axum::body::Bytes, ApiError> {
    let missing = || {
        ApiError::invalid(
            "body.chunk_data",
            "chunk_data: expected multipart/form-data with the chunk in a part of this name",
        )
    };
    let mut parts = parts.map_err(|_| missing())?;
    let refused = |error: axum::extract::multipart::MultipartError| {
        body_error(error.status(), &error.body_text())
    };
    while let Some(part) = parts.next_field().await.map_err(refused)? {
        if part.name() == Some("chunk_data") {
            return part.bytes().await.map_err(refused);
        }
    }
    Err(missing())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn chunks_to_come_are_listed_beside_those_that_are_here() {
        let file = FileRecord {
            id: "0f".repeat(16),
            row_id: Uuid::nil(),
            filename: "map.pdf".to_owned(),
            size_bytes: (2 << 20) + 3,
            mime_type: None,
            chunk_size: 1 << 20,
            total_chunks: 3,
            uploaded_chunks: 1,
            uploaded_by: "alice".to_owned(),
            created_at: DateTime::UNIX_EPOCH,
            completed_at: None,
            sha256: None,
            declared_sha256: None,
        };
        let here = ChunkRecord {
            row_id: Uuid::nil(),
            chunk_index: 1,
            size_bytes: 1 << 20,
            sha256: vec![0xab; 32],
            uploaded_at: DateTime::UNIX_EPOCH,
        };
        let status = BitchatChunkStatus::of_all(&file, &[here]);
        let seen: Vec<_> = status
            .iter()
            .map(|chunk| {
                (chunk.chunk_index, chunk.uploaded, chunk.chunk_size, chunk.chunk_hash.len())
            })
            .collect();
        assert_eq!(seen, [(0, false, 1 << 20, 0), (1, true, 1 << 20, 64), (2, false, 3, 0)]);
        let transfer = BitchatTransfer::from(file);
        assert_eq!((transfer.status.as_str(), transfer.progress.round()), ("uploading", 33.0));
    }
}
