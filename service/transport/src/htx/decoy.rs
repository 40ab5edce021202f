use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use hyper::{
    Method, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use thiserror::Error;

use super::body::Outgoing;

/// The site that everybody sees who is not let in.
///
/// Its answers depend on method and path alone: never on cookies, queries or bodies, where tickets
/// stand. It is read into memory once, at most 256 files of 1 MiB and 16 MiB in all; one more is an
/// error at the start.
#[derive(Debug)]
pub struct Decoy {
    pages: BTreeMap<String, Page>,
}

#[derive(Debug)]
struct Page {
    content_type: &'static str,
    bytes: Bytes,
}

impl Decoy {
    /// A small site of our own. It is the same everywhere and thus known: a folder hides better.
    pub fn built_in(title: &str) -> Self {
        let title: String = title.chars().filter(|letter| !"<>&\"".contains(*letter)).collect();
        let home = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
             <link rel=\"stylesheet\" href=\"/style.css\"></head>\n<body><h1>{title}</h1>\
             <p>This page is being rebuilt. Please come back soon.</p></body></html>\n"
        );
        let style = "body { font: 18px/1.6 sans-serif; margin: 15vh auto; max-width: 40rem; }\n";
        let pages = [
            ("/", Page { content_type: HTML, bytes: home.into() }),
            ("/style.css", Page { content_type: "text/css", bytes: style.into() }),
            (
                "/robots.txt",
                Page { content_type: "text/plain", bytes: "User-agent: *\nDisallow:\n".into() },
            ),
        ];
        Self { pages: pages.into_iter().map(|(path, page)| (path.to_owned(), page)).collect() }
    }

    /// The files of a folder; `index.html` also answers for its folder. Hidden files, and links to
    /// elsewhere, are left out.
    ///
    /// # Errors
    ///
    /// The folder cannot be read, is too large, or has no `index.html`.
    pub fn folder(root: &Path) -> Result<Self, DecoyError> {
        let mut decoy = Self { pages: BTreeMap::new() };
        let mut folders = vec![(root.to_path_buf(), String::from("/"), 0)];
        let mut left = MOST_BYTES;
        while let Some((folder, prefix, depth)) = folders.pop() {
            let failed = |source| DecoyError::Unreadable { path: folder.clone(), source };
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
                if name.starts_with('.') || kind.is_symlink() {
                    continue;
                }
                if kind.is_dir() && depth < MOST_DEPTH {
                    folders.push((path, format!("{prefix}{name}/"), depth + 1));
                } else if kind.is_file() {
                    decoy.add(&path, &prefix, &name, &mut left)?;
                }
            }
        }
        if !decoy.pages.contains_key("/") {
            return Err(DecoyError::NoIndex { path: root.to_path_buf() });
        }
        Ok(decoy)
    }

    pub(super) fn answer(&self, method: &Method, path: &str) -> Response<Outgoing> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = page(StatusCode::METHOD_NOT_ALLOWED, HTML, METHOD_PAGE.into());
            response.headers_mut().insert(ALLOW, "GET, HEAD".parse().expect("it is plain text"));
            return response;
        }
        match self.pages.get(path) {
            Some(found) => page(StatusCode::OK, found.content_type, found.bytes.clone()),
            None => page(StatusCode::NOT_FOUND, HTML, MISSING_PAGE.into()),
        }
    }

    fn add(
        &mut self,
        path: &Path,
        prefix: &str,
        name: &str,
        left: &mut usize,
    ) -> Result<(), DecoyError> {
        let failed = |source| DecoyError::Unreadable { path: path.to_path_buf(), source };
        let length = fs::metadata(path).map_err(failed)?.len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MOST_FILE.min(*left) || self.pages.len() >= MOST_FILES {
            return Err(DecoyError::TooLarge { path: path.to_path_buf() });
        }
        let bytes = Bytes::from(fs::read(path).map_err(failed)?);
        *left = left.saturating_sub(bytes.len());
        let content_type = content_type(name);
        if name == "index.html" {
            self.pages.insert(prefix.to_owned(), Page { content_type, bytes: bytes.clone() });
        }
        self.pages.insert(format!("{prefix}{name}"), Page { content_type, bytes });
        Ok(())
    }
}

/// Why there is no decoy site.
#[derive(Debug, Error)]
pub enum DecoyError {
    /// Something in the folder cannot be read.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder holds too much.
    #[error("{} is too much: expected at most 256 files of 1 MiB and 16 MiB in all", path.display())]
    TooLarge {
        /// The file that did not fit.
        path: PathBuf,
    },
    /// The folder has no page to begin with.
    #[error("{} has no index.html", path.display())]
    NoIndex {
        /// The folder.
        path: PathBuf,
    },
}

fn page(status: StatusCode, content_type: &'static str, bytes: Bytes) -> Response<Outgoing> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "max-age=600")
        .body(Outgoing::page(bytes))
        .expect("the parts are plain text")
}

fn content_type(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    match ending.to_ascii_lowercase().as_str() {
        "html" | "htm" => HTML,
        "css" => "text/css",
        "js" => "text/javascript",
        "json" => "application/json",
        "txt" => "text/plain",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        _ => "application/octet-stream",
    }
}

const HTML: &str = "text/html; charset=utf-8";
const MISSING_PAGE: &str = "<!doctype html>\n<title>Not found</title>\n<h1>Not found</h1>\n";
const METHOD_PAGE: &str =
    "<!doctype html>\n<title>Method not allowed</title>\n<h1>Method not allowed</h1>\n";
const MOST_FILE: usize = 1 << 20;
const MOST_BYTES: usize = 16 << 20;
const MOST_FILES: usize = 256;
const MOST_DEPTH: usize = 8;
