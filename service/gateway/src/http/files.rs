//! Files on `/v1`: chunked and resumable in, with ranges and hash out (design, section 6).
//!
//! An upload is begun with its length, which is charged at once, and filled with chunks in any
//! order. A file is readable when all chunks are there and hash to what was declared. Its name is
//! shown and never used as a path.

mod content;
mod mirrored;
mod shapes;

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use sha2::{Digest, Sha256};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::shapes::{CreateFile, File, FileChunk, FileContent, FileList, FileStatus, origin};
use crate::{
    Gateway,
    http::{
        caller::Caller,
        error::{ApiError, Problem},
        extract::{Json, Path, Query, body_error},
        fields::{self, PageQuery},
    },
    store::files::{FileReader, FileRefusal, LARGEST_FILE, NewFile},
};

/// The routes of `/v1/files` and `/api/bitchat/files`.
pub fn routes() -> OpenApiRouter<Gateway> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(show, delete))
        .routes(routes!(put_chunk))
        .routes(routes!(read))
        .merge(mirrored::routes())
}

/// Begin an upload.
///
/// Then put each chunk of 1 MiB (the last one shorter). An upload that gets no chunk for 24 hours
/// is given up. One uploader's files may take 4 GiB, all files of the gateway 64 GiB; each counts
/// at least 64 KiB. A file is deleted 30 days after its upload
/// began.
#[utoipa::path(
    post,
    path = "/v1/files",
    operation_id = "createFile",
    tag = "files",
    request_body = CreateFile,
    responses(
        (status = 201, description = "Chunks may come", body = File, example = json!({
            "id": "9c1d5e70b3a24f6c8e0d7a92f1b4c653", "filename": "map.pdf", "size_bytes": 2500000,
            "mime_type": "application/pdf", "chunk_size": 1048576, "total_chunks": 3,
            "uploaded_chunks": 0, "missing_chunks": [0, 1, 2], "uploaded_by": "alice",
            "status": "pending", "created_at": "2026-11-23T09:00:00.000000Z", "completed_at": null,
            "sha256": null
        })),
        (status = "4XX", description = "The upload cannot begin; 413 if the caller's files leave no room for it", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed, or (507) the storage for all files is full", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create(
    State(gateway): State<Gateway>,
    caller: Caller,
    Json(request): Json<CreateFile>,
) -> Result<(StatusCode, axum::Json<File>), ApiError> {
    let uploaded_by = caller.require()?;
    let declared_sha256 = request.sha256.as_deref().map(parse_sha256).transpose()?;
    let file = NewFile {
        declared_sha256,
        ..new_file(
            uploaded_by,
            "size_bytes",
            request.filename,
            request.size_bytes,
            request.mime_type,
        )?
    };
    let file = gateway.store.create_file(&file).await??;
    Ok((StatusCode::CREATED, axum::Json(File::of(&file, Some(&[])))))
}

/// List the files that the caller has uploaded.
///
/// In open mode, a request that names no caller gets all files.
#[utoipa::path(
    get,
    path = "/v1/files",
    operation_id = "listFiles",
    tag = "files",
    params(PageQuery),
    responses(
        (status = 200, description = "One page, in the order of the ids", body = FileList, example = json!({
            "files": [{
                "id": "9c1d5e70b3a24f6c8e0d7a92f1b4c653", "filename": "map.pdf", "size_bytes": 2500000,
                "mime_type": "application/pdf", "chunk_size": 1048576, "total_chunks": 3,
                "uploaded_chunks": 2, "uploaded_by": "alice", "status": "uploading",
                "created_at": "2026-11-23T09:00:00.000000Z", "completed_at": null, "sha256": null
            }],
            "next": null
        })),
        (status = "4XX", description = "The list cannot be given", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<axum::Json<FileList>, ApiError> {
    let uploader = caller.viewer()?;
    let limit = page.limit()?;
    let files = gateway.store.files_page(uploader.as_ref(), &page.after()?, limit).await?;
    let next = fields::next_cursor(&files, limit, |file| &file.id);
    let files = files.iter().map(|file| File::of(file, None)).collect();
    Ok(axum::Json(FileList { files, next }))
}

/// Show how far an upload has come.
///
/// `missing_chunks` tells what to put to finish it. The uploader, those who got a message with the
/// file, and operators may see it.
///
/// A file that came with a message from another gateway is fetched from there, on from the last whole
/// chunk after each interruption. Until that gateway has said what it is, `filename`, `size_bytes` and
/// `total_chunks` are null; `reason` says why it did not come at the last attempt, or why it never
/// will (`failed`).
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}",
    operation_id = "getFile",
    tag = "files",
    params(("file_id" = String, Path, description = "The file", min_length = 32, max_length = 32, pattern = "^[0-9a-f]{32}$", example = "9c1d5e70b3a24f6c8e0d7a92f1b4c653")),
    responses(
        (status = 200, description = "The file", body = File, example = json!({
            "id": "9c1d5e70b3a24f6c8e0d7a92f1b4c653", "filename": "map.pdf", "size_bytes": 2500000,
            "mime_type": "application/pdf", "chunk_size": 1048576, "total_chunks": 3,
            "uploaded_chunks": 2, "missing_chunks": [1], "uploaded_by": "alice",
            "status": "uploading", "created_at": "2026-11-23T09:00:00.000000Z",
            "completed_at": null, "sha256": null
        })),
        (status = "4XX", description = "There is no such file, or it is not for the caller", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(file_id): Path<String>,
) -> Result<axum::Json<File>, ApiError> {
    let (id, reader) = (known_file(&file_id)?, reader(&caller)?);
    let file = match gateway.store.file(id, reader).await? {
        Err(FileRefusal::Unknown) => return awaited(&gateway, id, reader).await.map(axum::Json),
        file => file?,
    };
    let chunks = gateway.store.file_chunks(&file.id).await?;
    let mut shown = File::of(&file, Some(&chunks));
    if let Some(remote) = gateway.store.remote_file(id).await? {
        shown.origin = Some(origin(&remote));
        shown.reason = remote.reason;
    }
    Ok(axum::Json(shown))
}

/// Delete a file.
///
/// Its uploader and operators may. Messages that carry it stay.
#[utoipa::path(
    delete,
    path = "/v1/files/{file_id}",
    operation_id = "deleteFile",
    tag = "files",
    params(("file_id" = String, Path, description = "The file", min_length = 32, max_length = 32, pattern = "^[0-9a-f]{32}$", example = "9c1d5e70b3a24f6c8e0d7a92f1b4c653")),
    responses(
        (status = 204, description = "The file is gone"),
        (status = "4XX", description = "There is no such file, or it is not the caller's", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(file_id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let uploader = as_uploader(reader(&caller)?);
    let file = gateway.store.file(known_file(&file_id)?, uploader).await??;
    gateway.store.delete_file(&file.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Put one chunk.
///
/// The body is the chunk's bytes: 1 MiB, the last chunk what is left. Putting the same bytes again
/// is harmless; other bytes are 409. With `Content-Digest` the bytes are checked on the way. The
/// last chunk to come completes the file, or is answered with 409 if the whole does not have the
/// declared SHA-256.
#[utoipa::path(
    put,
    path = "/v1/files/{file_id}/chunks/{index}",
    operation_id = "putFileChunk",
    tag = "files",
    params(
        ("file_id" = String, Path, description = "The file", min_length = 32, max_length = 32, pattern = "^[0-9a-f]{32}$", example = "9c1d5e70b3a24f6c8e0d7a92f1b4c653"),
        ("index" = i32, Path, description = "The chunk's place, from 0", minimum = 0, maximum = 1023, example = 0),
        ("content-digest" = Option<String>, Header, nullable = false, description = "The body's SHA-256 (RFC 9530), checked if given", pattern = "^sha-256=:[A-Za-z0-9+/]{43}=:$", example = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"),
    ),
    request_body(content = FileContent, content_type = "application/octet-stream", description = "The chunk's bytes"),
    responses(
        (status = 200, description = "The chunk was there already", body = FileChunk, example = json!({
            "index": 0, "size_bytes": 1048576, "uploaded_at": "2026-11-23T09:00:01.000000Z",
            "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        })),
        (status = 201, description = "The chunk is kept", body = FileChunk, example = json!({
            "index": 0, "size_bytes": 1048576, "uploaded_at": "2026-11-23T09:00:01.000000Z",
            "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        })),
        (status = "4XX", description = "The chunk does not fit, or the file is not the caller's", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put_chunk(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path((file_id, index)): Path<(String, i64)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, axum::Json<FileChunk>), ApiError> {
    let uploader = caller.require()?;
    let body = body.map_err(|error| body_error(error.status(), &error.body_text()))?;
    let reader = FileReader::Uploader(&uploader);
    let file = gateway.store.file(known_file(&file_id)?, reader).await??;
    check_digest(&headers, &body)?;
    let (chunk, is_new) = gateway.store.store_chunk(&file, index, &body).await??;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, axum::Json(FileChunk::from(&chunk))))
}

/// Read a file.
///
/// One `Range` is honoured, several are answered with the whole. The `ETag` is the file's SHA-256,
/// so `If-None-Match` and `If-Range` make a download resumable. The type is always
/// `application/octet-stream`: what the uploader called it stands in the file's record.
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}/content",
    operation_id = "readFile",
    tag = "files",
    params(
        ("file_id" = String, Path, description = "The file", min_length = 32, max_length = 32, pattern = "^[0-9a-f]{32}$", example = "9c1d5e70b3a24f6c8e0d7a92f1b4c653"),
        ("range" = Option<String>, Header, nullable = false, description = "The part that is wanted", example = "bytes=1048576-"),
        ("if-range" = Option<String>, Header, nullable = false, description = "An `ETag`: if the file has another, the whole is sent"),
        ("if-none-match" = Option<String>, Header, nullable = false, description = "An `ETag`: if the file has it, nothing is sent"),
    ),
    responses(
        (status = 200, description = "The whole file", body = FileContent, content_type = "application/octet-stream", headers(
            ("etag" = String, description = "The file's SHA-256 in hexadecimal digits, quoted"),
            ("accept-ranges" = String, description = "`bytes`"),
            ("content-disposition" = String, description = "`attachment` with the file's name"),
            ("repr-digest" = String, description = "The whole file's SHA-256 (RFC 9530)"),
        )),
        (status = 206, description = "The part that was asked for", body = FileContent, content_type = "application/octet-stream", headers(
            ("content-range" = String, description = "Which bytes, of how many"),
            ("etag" = String, description = "The file's SHA-256 in hexadecimal digits, quoted"),
        )),
        (status = 304, description = "The caller has this file"),
        (status = "4XX", description = "There is no such file, it is unfinished (409), not for the caller (403), or the range is outside (416)", body = Problem, content_type = "application/problem+json"),
        (status = "5XX", description = "The gateway failed", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn read(
    State(gateway): State<Gateway>,
    caller: Caller,
    Path(file_id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (id, reader) = (known_file(&file_id)?, reader(&caller)?);
    let file = match gateway.store.file(id, reader).await? {
        Err(FileRefusal::Unknown) => {
            let awaited = awaited(&gateway, id, reader).await?;
            let detail = match (awaited.status, awaited.reason) {
                (FileStatus::Failed, Some(reason)) => format!("the file will not come: {reason}"),
                _ => "the file is not complete: none of it is here yet".to_owned(),
            };
            return Err(ApiError::conflict(detail));
        }
        file => file?,
    };
    content::respond(&gateway, &file, &headers)
}

impl From<FileRefusal> for ApiError {
    fn from(refusal: FileRefusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            FileRefusal::Unknown
            | FileRefusal::UnknownPeer(_)
            | FileRefusal::NoSuchChunk { .. } => Self::not_found(detail),
            FileRefusal::NotAllowed(..) => Self::forbidden(detail),
            // The uploader's own affair, so no failure of the gateway.
            FileRefusal::UploaderFull { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, detail),
            FileRefusal::GatewayFull => Self::storage_full(detail),
            FileRefusal::ChunkLength { .. } => Self::invalid("body", detail),
            FileRefusal::ChunkConflict { .. } | FileRefusal::Mismatched { .. } => {
                Self::conflict(detail)
            }
        }
    }
}

/// A file from elsewhere that has no row of its own.
async fn awaited(gateway: &Gateway, id: &str, reader: FileReader<'_>) -> Result<File, ApiError> {
    let file = gateway.store.remote_file(id).await?.ok_or(FileRefusal::Unknown)?;
    if let FileReader::Peer(peer) = reader
        && !gateway.store.awaits_file(id, peer).await?
    {
        return Err(FileRefusal::NotAllowed(peer.clone(), "read").into());
    }
    Ok(File::awaited(file))
}

/// For whom a file is read: the caller, or an operator.
fn reader(caller: &Caller) -> Result<FileReader<'_>, ApiError> {
    if let Some(peer) = caller.peer() {
        return Ok(FileReader::Peer(peer));
    }
    if !caller.is_operator() {
        caller.require()?;
    }
    Ok(FileReader::WhoeverMay)
}

/// For whom a file is changed: of all peers only its uploader.
fn as_uploader(reader: FileReader<'_>) -> FileReader<'_> {
    match reader {
        FileReader::Peer(peer) => FileReader::Uploader(peer),
        other => other,
    }
}

fn new_file(
    uploaded_by: fieldpost_envelope::PeerId,
    size_field: &str,
    filename: String,
    size_bytes: i64,
    mime_type: Option<String>,
) -> Result<NewFile, ApiError> {
    if !(1..=LARGEST_FILE).contains(&size_bytes) {
        return Err(ApiError::invalid(
            &format!("body.{size_field}"),
            format!("{size_field}: {size_bytes} is not in 1 to {LARGEST_FILE} (1 GiB)"),
        ));
    }
    let filename = fields::text("filename", filename, 1, 255)?;
    let mime_type = mime_type.map(|kind| fields::text("mime_type", kind, 1, 255)).transpose()?;
    Ok(NewFile { filename, size_bytes, mime_type, declared_sha256: None, uploaded_by })
}

/// A name that no file can have names no file.
fn known_file(text: &str) -> Result<&str, ApiError> {
    if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text)
    } else {
        Err(FileRefusal::Unknown.into())
    }
}

fn parse_sha256(text: &str) -> Result<[u8; 32], ApiError> {
    HEXLOWER_PERMISSIVE
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| ApiError::invalid("body.sha256", "sha256: expected 64 hexadecimal digits"))
}

/// Compares the body with `Content-Digest` (RFC 9530), if that names a SHA-256.
fn check_digest(headers: &HeaderMap, body: &[u8]) -> Result<(), ApiError> {
    for header in headers.get_all("content-digest") {
        let members = header.to_str().unwrap_or_default().split(',');
        for encoded in members.filter_map(|member| member.trim().strip_prefix("sha-256=")) {
            let invalid = |detail: String| Err(ApiError::invalid("header.content-digest", detail));
            let declared = encoded
                .strip_prefix(':')
                .and_then(|encoded| encoded.strip_suffix(':'))
                .and_then(|encoded| STANDARD.decode(encoded).ok())
                .filter(|digest| digest.len() == 32);
            let Some(declared) = declared else {
                return invalid(
                    "Content-Digest: expected sha-256=:<base64 of 32 bytes>:".to_owned(),
                );
            };
            let found = Sha256::digest(body);
            if found.as_slice() != declared {
                return invalid(format!(
                    "Content-Digest: the body has the SHA-256 {}, not {}: send it again",
                    HEXLOWER.encode(&found),
                    HEXLOWER.encode(&declared)
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_digest_is_checked_if_there_is_one() {
        let check = |digest: &'static str| {
            let digest = HeaderValue::from_static(digest);
            check_digest(
                &HeaderMap::from_iter([("content-digest".parse().unwrap(), digest)]),
                b"hello",
            )
        };
        let right = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:";
        assert!(check(right).is_ok());
        assert!(
            check("sha-512=:AAAA:, sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:").is_ok()
        );
        assert!(check("md5=:AAAA:").is_ok());
        assert!(check_digest(&HeaderMap::new(), b"hello").is_ok());
        for wrong in [
            "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:",
            "sha-256=LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
            "sha-256=:AAAA:",
            "sha-256=",
        ] {
            assert_eq!(
                check(wrong).unwrap_err().status(),
                StatusCode::UNPROCESSABLE_ENTITY,
                "{wrong}"
            );
        }
    }

    #[test]
    fn only_what_looks_like_a_file_id_reaches_the_store() {
        assert!(known_file(&"0f".repeat(16)).is_ok());
        for other in
            ["", "0f", "../../../../../../../../etc/passwd", &"g".repeat(32), &"é".repeat(16)]
        {
            assert!(known_file(other).is_err(), "{other}");
        }
    }
}
