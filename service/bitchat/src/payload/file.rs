//! A file, public or private (BitChat protocol reference, section 3.5).

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::{PayloadError, Result, bounded, text};
use crate::{
    id::MeshId,
    read::{Reader, put_tlv16},
};

/// The largest content, in bytes.
pub const MAX_CONTENT: usize = 1_048_576;

/// A name, a type and bytes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct File {
    /// Android does not take a file without.
    pub name: Option<String>,
    /// The size that the sender states.
    pub stated_size: Option<u64>,
    /// For example `image/jpeg`; iOS takes only some, whose first bytes match.
    pub mime_type: Option<String>,
    /// At most [`MAX_CONTENT`].
    pub content: Vec<u8>,
}

impl File {
    /// Reads a file; unknown fields are skipped, several contents are joined.
    ///
    /// # Errors
    ///
    /// A length past the end, no content, too much of it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut file = Self::default();
        let mut has_content = false;
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            if bytes[bytes.len() - reader.left()] == 0x04 {
                let content = content(&mut reader)?;
                has_content = true;
                if file.content.len() + content.len() > MAX_CONTENT {
                    let length = file.content.len() + content.len();
                    return Err(PayloadError::Invalid { field: "content", length });
                }
                file.content.extend_from_slice(content);
                continue;
            }
            match reader.tlv16()? {
                (0x01, value) => file.name = Some(text("file name", value)?),
                (0x02, value) => {
                    file.stated_size = Some(match *value {
                        [a, b, c, d] => u32::from_be_bytes([a, b, c, d]).into(),
                        _ => u64::from_be_bytes(super::array("file size", value)?),
                    });
                }
                (0x03, value) => file.mime_type = Some(text("file type", value)?),
                _ => {}
            }
        }
        if has_content { Ok(file) } else { Err(PayloadError::Missing("content")) }
    }

    /// Writes a file with its size.
    ///
    /// # Errors
    ///
    /// A name or type over 65,535 bytes, or content over [`MAX_CONTENT`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let name = self.name.as_deref().unwrap_or_default().as_bytes();
        let mime_type = self.mime_type.as_deref().unwrap_or_default().as_bytes();
        bounded("file name", name, 0..=65_535)?;
        bounded("file type", mime_type, 0..=65_535)?;
        bounded("content", &self.content, 0..=MAX_CONTENT)?;
        let size = self.content.len() as u32;
        let mut out = Vec::with_capacity(self.content.len() + name.len() + mime_type.len() + 18);
        if self.name.is_some() {
            put_tlv16(&mut out, 0x01, name);
        }
        put_tlv16(&mut out, 0x02, &size.to_be_bytes());
        if self.mime_type.is_some() {
            put_tlv16(&mut out, 0x03, mime_type);
        }
        out.push(0x04);
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&self.content);
        Ok(out)
    }
}

/// The id under which iOS acknowledges a private image or voice note, for the names that it gives
/// to such files.
pub fn media_id(sender: MeshId, recipient: MeshId, name: &str) -> Option<String> {
    let stem = match name.rsplit_once('.')? {
        (stem, "jpg" | "jpeg") if stem.starts_with("img_") => stem,
        (stem, "m4a") if stem.starts_with("voice_") => stem,
        _ => return None,
    };
    if !ends_in_uuid(stem) && !ends_in_burst_id(stem) {
        return None;
    }
    let mut hash = Sha256::new().chain_update(b"bitchat-private-media-message-v1");
    for field in [sender.to_hex().as_str(), recipient.to_hex().as_str(), name] {
        hash.update((field.len() as u32).to_be_bytes());
        hash.update(field.as_bytes());
    }
    Some(format!("media-{}", HEXLOWER.encode(&hash.finalize()[..16])))
}

/// A four-byte length, or, where that does not fit, a two-byte one, as iOS once wrote it.
fn content<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8]> {
    let mut long = *reader;
    let attempt = (|| {
        long.u8()?;
        let length = long.u32()?;
        long.take(length as usize)
    })();
    match attempt {
        Ok(content) => {
            *reader = long;
            Ok(content)
        }
        Err(_) => Ok(reader.tlv16()?.1),
    }
}

fn ends_in_uuid(stem: &str) -> bool {
    let start = stem.len().checked_sub(36);
    start.and_then(|start| stem.get(start..)).is_some_and(|end| uuid::Uuid::parse_str(end).is_ok())
}

fn ends_in_burst_id(stem: &str) -> bool {
    let start = stem.len().checked_sub(16);
    start
        .and_then(|start| stem.get(start..))
        .is_some_and(|end| end.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
