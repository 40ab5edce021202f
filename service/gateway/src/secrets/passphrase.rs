//! Secrets that leave the gateway, sealed by a passphrase: the exported identity.
//!
//! The key is Argon2id over the passphrase (RFC 9106, with its second recommended setting: 64 MiB,
//! 3 passes, 4 lanes), sealing is that of the rest of this module. The file is JSON, so that it can
//! be printed and typed, and names its parameters, so that they can grow.

use argon2::{Algorithm, Argon2, Params, Version};
use data_encoding::{BASE64, HEXLOWER};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{KEY_LENGTH, KeyBytes, OpenError, SealError, cipher, fill_random, open, seal};

const FORMAT: &str = "fieldpost-identity-v1";
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
const SALT_LENGTH: usize = 16;
/// What a file may ask of us to open it.
const MOST_MEMORY_KIB: u32 = 1024 * 1024;
const MOST_PASSES: u32 = 64;
/// Fewer characters are guessed.
pub const SHORTEST_PASSPHRASE: usize = 12;

/// An identity as it is kept in a file.
#[derive(Debug, Deserialize, Serialize)]
pub struct SealedIdentity {
    format: String,
    /// Whose it is, for people; the key inside is what counts.
    pub gateway_id: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    sealed: String,
}

/// Why an identity was not sealed or opened.
#[derive(Debug, Error)]
pub enum PassphraseError {
    /// Too easy to guess.
    #[error("the passphrase has {length} characters: at least {SHORTEST_PASSPHRASE} are needed")]
    TooShort {
        /// How many it has.
        length: usize,
    },
    /// Not a file of ours.
    #[error("this is not an exported identity: expected JSON with \"format\": \"{FORMAT}\"")]
    NotOurs,
    /// A file of ours that was changed.
    #[error("the exported identity is damaged: {0}")]
    Damaged(&'static str),
    /// The passphrase is wrong, or the file was altered.
    #[error("the passphrase does not open this file, or the file was altered")]
    Wrong,
    /// The system gave no randomness or memory.
    #[error("cannot derive a key from the passphrase: {0}")]
    Derivation(String),
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl SealedIdentity {
    /// Seals the seed of a gateway's key.
    ///
    /// # Errors
    ///
    /// If the passphrase is too short or the system gives no randomness.
    pub fn seal(
        gateway_id: &str,
        seed: &[u8; KEY_LENGTH],
        passphrase: &SecretString,
    ) -> Result<Self, PassphraseError> {
        let length = passphrase.expose_secret().chars().count();
        if length < SHORTEST_PASSPHRASE {
            return Err(PassphraseError::TooShort { length });
        }
        let mut salt = [0; SALT_LENGTH];
        fill_random(&mut salt)?;
        let params = params(MEMORY_KIB, PASSES, LANES)?;
        let key = derive(passphrase, &salt, params)?;
        Ok(Self {
            format: FORMAT.to_owned(),
            gateway_id: gateway_id.to_owned(),
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            lanes: LANES,
            salt: HEXLOWER.encode(&salt),
            sealed: BASE64.encode(&seal(&cipher(&key), gateway_id.as_bytes(), seed)?),
        })
    }

    /// Reads what [`to_text`](Self::to_text) wrote.
    ///
    /// # Errors
    ///
    /// [`PassphraseError::NotOurs`].
    pub fn parse(text: &str) -> Result<Self, PassphraseError> {
        let parsed: Self = serde_json::from_str(text).map_err(|_| PassphraseError::NotOurs)?;
        if parsed.format != FORMAT {
            return Err(PassphraseError::NotOurs);
        }
        Ok(parsed)
    }

    /// The file.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers are JSON") + "\n"
    }

    /// Opens the seed.
    ///
    /// # Errors
    ///
    /// If the passphrase is not the one, or the file was altered.
    pub fn open(
        &self,
        passphrase: &SecretString,
    ) -> Result<Zeroizing<[u8; KEY_LENGTH]>, PassphraseError> {
        if self.memory_kib > MOST_MEMORY_KIB || self.passes > MOST_PASSES {
            return Err(PassphraseError::Damaged("it asks for more work than any export does"));
        }
        let salt = HEXLOWER
            .decode(self.salt.as_bytes())
            .map_err(|_| PassphraseError::Damaged("its salt is not hex"))?;
        let sealed = BASE64
            .decode(self.sealed.as_bytes())
            .map_err(|_| PassphraseError::Damaged("its sealed part is not base64"))?;
        let key = derive(passphrase, &salt, params(self.memory_kib, self.passes, self.lanes)?)?;
        let opened = open(&cipher(&key), self.gateway_id.as_bytes(), &sealed)
            .map(Zeroizing::new)
            .map_err(|error| match error {
            OpenError::Rejected => PassphraseError::Wrong,
            _ => PassphraseError::Damaged("its sealed part is cut off"),
        })?;
        let mut seed = Zeroizing::new([0; KEY_LENGTH]);
        if opened.len() != KEY_LENGTH {
            return Err(PassphraseError::Damaged("it holds no key"));
        }
        seed.copy_from_slice(&opened);
        Ok(seed)
    }
}

fn params(memory_kib: u32, passes: u32, lanes: u32) -> Result<Params, PassphraseError> {
    Params::new(memory_kib, passes, lanes, Some(KEY_LENGTH))
        .map_err(|_| PassphraseError::Damaged("its parameters are none of Argon2"))
}

fn derive(
    passphrase: &SecretString,
    salt: &[u8],
    params: Params,
) -> Result<KeyBytes, PassphraseError> {
    let mut key = KeyBytes::default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.expose_secret().as_bytes(), salt, key.as_mut_slice())
        .map_err(|error| PassphraseError::Derivation(error.to_string()))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exported_identity_opens_with_its_passphrase_alone() {
        let passphrase = SecretString::from("correct horse battery");
        let sealed = SealedIdentity::seal("gateway", &[7; 32], &passphrase).unwrap();
        let read = SealedIdentity::parse(&sealed.to_text()).unwrap();
        assert_eq!(*read.open(&passphrase).unwrap(), [7; 32]);
        let wrong = read.open(&SecretString::from("correct horse staples"));
        assert!(matches!(wrong, Err(PassphraseError::Wrong)));
        // The id in the file cannot be exchanged either.
        let renamed = SealedIdentity { gateway_id: "another".to_owned(), ..read };
        assert!(matches!(renamed.open(&passphrase), Err(PassphraseError::Wrong)));
    }

    #[test]
    fn a_file_that_asks_for_too_much_work_or_is_no_export_is_refused() {
        let passphrase = SecretString::from("correct horse battery");
        let sealed = SealedIdentity::seal("gateway", &[7; 32], &passphrase).unwrap();
        let greedy = SealedIdentity { memory_kib: u32::MAX, ..sealed };
        assert!(matches!(greedy.open(&passphrase), Err(PassphraseError::Damaged(_))));
        assert!(matches!(SealedIdentity::parse("{}"), Err(PassphraseError::NotOurs)));
        let short = SealedIdentity::seal("gateway", &[7; 32], &SecretString::from("too short"));
        assert!(matches!(short, Err(PassphraseError::TooShort { length: 9 })));
    }
}
