//! Files and passphrases of administrative commands.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Read, Write, stdin},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

const PASSPHRASE_VARIABLE: &str = "FIELDPOST_PASSPHRASE";
/// No file that a command reads is longer.
const FILE_LIMIT: u64 = 64 * 1024;

/// Where a passphrase comes from.
#[derive(Args, Clone, Debug)]
pub(super) struct PassphraseArgs {
    /// A file whose first line is the passphrase. Default: FIELDPOST_PASSPHRASE, else it is asked for.
    #[arg(long)]
    passphrase_file: Option<PathBuf>,
}

impl PassphraseArgs {
    /// A new passphrase; asked for twice, since nobody sees what is typed.
    pub(super) fn chosen(&self) -> anyhow::Result<SecretString> {
        let passphrase = self.read("passphrase for the file: ")?;
        if self.is_asked_for() {
            let again = ask("the same again: ")?;
            if again.expose_secret() != passphrase.expose_secret() {
                bail!("the two passphrases differ; nothing was written");
            }
        }
        Ok(passphrase)
    }

    /// The passphrase of a file that is there.
    pub(super) fn known(&self) -> anyhow::Result<SecretString> {
        self.read("passphrase of the file: ")
    }

    fn read(&self, prompt: &str) -> anyhow::Result<SecretString> {
        if let Some(path) = &self.passphrase_file {
            let text = Zeroizing::new(read(path)?);
            return Ok(text.lines().next().unwrap_or_default().into());
        }
        match given() {
            Some(passphrase) => Ok(passphrase),
            None => ask(prompt),
        }
    }

    fn is_asked_for(&self) -> bool {
        self.passphrase_file.is_none() && given().is_none()
    }
}

fn given() -> Option<SecretString> {
    env::var(PASSPHRASE_VARIABLE).ok().filter(|text| !text.is_empty()).map(SecretString::from)
}

fn ask(prompt: &str) -> anyhow::Result<SecretString> {
    if !stdin().is_terminal() {
        bail!(
            "there is no terminal to ask for a passphrase: give --passphrase-file or {PASSPHRASE_VARIABLE}"
        );
    }
    rpassword::prompt_password(prompt).map(SecretString::from).context("no passphrase was given")
}

/// Writes a new file for its owner alone, whole or not at all.
pub(super) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            anyhow::anyhow!("{} is there already and is not overwritten", path.display())
        }
        _ => anyhow::Error::new(error).context(format!("cannot write {}", path.display())),
    })?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half an export is worse than none.
        let _ = fs::remove_file(path);
        return Err(error).with_context(|| format!("cannot write {}", path.display()));
    }
    Ok(())
}

/// Reads a small text file.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let mut text = String::new();
    let file = File::open(path).with_context(cannot)?;
    file.take(FILE_LIMIT).read_to_string(&mut text).with_context(cannot)?;
    Ok(text)
}
