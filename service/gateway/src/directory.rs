//! The relay directory: `fieldpost directory`, and what a node has of it.
//!
//! An authority of some signers says, for each epoch, which relays there are, by a document that k of
//! them sign (HTX reference, sections 3.3 and 5). `init` makes keys and the first document, `sign` those
//! that follow, once or for as long as it runs. A node with a signer's key does the same by itself: it
//! hears descriptors over links, too.

mod folder;
mod round;
mod show;

use std::{
    io::{Write, stdout},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use data_encoding::HEXLOWER_PERMISSIVE;
use ed25519_dalek::SigningKey;
use fieldpost_envelope::Timestamp;
use fieldpost_transport::htx::directory::{
    Admission, Authority, EpochClock, RelayId, SignedDocument, document_limits,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

pub use self::{
    folder::{Documents, Folder, read_key},
    round::{FIRST_RELAYS, Outcome, Round},
};
use crate::{clock::Clock, config::duration};
use show::Shown;

/// How often a folder is looked at.
pub const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What can be done about a relay directory.
#[derive(Clone, Debug, Subcommand)]
pub enum DirectoryCommand {
    /// Begin a network: make the signers' keys and sign the first document.
    ///
    /// The first document is active at once. It holds the nodes whose descriptors are there: nodes that
    /// run with `--directory FOLDER` put them into its `relays` folder, and `--wait-for` waits for so
    /// many. Where none are there, only keys and authority are made, and `directory sign` makes the
    /// first document later.
    Init(InitArgs),
    /// Sign the next document, or one that others proposed.
    ///
    /// Signs with all signers' keys at hand. Where these are too few, the document is left as a
    /// `.proposal` beside the others: the next signer takes it by `--merge`, or finds it in the same
    /// folder. With `--every-epoch` it goes on for as long as it runs.
    Sign(SignArgs),
    /// Print a document: its relays, their keys, and whether the signatures verify.
    Show(ShowArgs),
}

/// The network to begin.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// A new folder for the directory.
    folder: PathBuf,

    /// How many signers there are; each gets a key.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=document_limits::SIGNERS as i64))]
    signers: u8,

    /// How many of them sign a document. Default: more than half.
    #[arg(long)]
    threshold: Option<u8>,

    /// How long an epoch is: 1 s to 1 h. A relay's keys are erased soon after their epoch.
    #[arg(long, default_value = "1h", value_parser = duration)]
    epoch: Duration,

    /// Descriptors for the first document: files, or folders that hold them.
    #[arg(long, value_name = "PATH")]
    descriptors: Vec<PathBuf>,

    /// Wait until so many nodes, started with `--directory`, have put their descriptors here.
    #[arg(long, value_name = "NODES")]
    wait_for: Option<usize>,

    /// How long to wait for them.
    #[arg(long, value_parser = duration, default_value = "5m")]
    patience: Duration,
}

/// What to sign.
#[derive(Args, Clone, Debug)]
pub struct SignArgs {
    /// The folder of the directory.
    folder: PathBuf,

    /// Keys to sign with. Default: all in the folder.
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,

    /// A copy of the next document with other signatures, to be taken over.
    #[arg(long, value_name = "FILE")]
    merge: Vec<PathBuf>,

    /// Descriptors to admit: files, or folders that hold them.
    #[arg(long, value_name = "PATH")]
    descriptors: Vec<PathBuf>,

    /// Go on: sign the document of each epoch when it is time.
    #[arg(long, conflicts_with = "merge")]
    every_epoch: bool,
}

/// What to print.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// The folder of a directory, for its newest document, or a file with a document.
    path: PathBuf,

    /// The folder, or the `authority.json`, that a document in a file is judged by. Default: the one
    /// that the file lies in.
    #[arg(long, value_name = "PATH")]
    authority: Option<PathBuf>,

    /// Show the document of this number, not the newest.
    #[arg(long)]
    number: Option<u64>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs one command.
///
/// # Errors
///
/// Says why it could not be done, and what would help.
pub async fn run(command: DirectoryCommand) -> anyhow::Result<()> {
    let clock = Clock::default();
    match command {
        DirectoryCommand::Init(args) => init(args, &clock).await,
        DirectoryCommand::Sign(args) => sign(args, &clock).await,
        DirectoryCommand::Show(args) => show(&args, &clock),
    }
}

async fn init(args: InitArgs, clock: &Clock) -> anyhow::Result<()> {
    let signers = usize::from(args.signers);
    let threshold = args.threshold.map_or(signers / 2 + 1, usize::from);
    let keys: Vec<_> =
        (0..signers).map(|_| folder::generate_key()).collect::<anyhow::Result<_>>()?;
    let epochs = EpochClock::new(args.epoch).map_err(|error| anyhow!("--epoch: {error}"))?;
    let authority = Authority::new(threshold, keys.iter().map(SigningKey::verifying_key), epochs)
        .map_err(|error| anyhow!("--threshold: {error}"))?;
    if args.folder.join("authority.json").exists() {
        bail!("{} holds a directory already: choose a new folder", args.folder.display());
    }
    for (number, key) in keys.iter().enumerate() {
        Folder::write_key(&args.folder, number + 1, key)?;
    }
    let folder = Folder::create(&args.folder, authority)?;
    let shown = args.folder.display();
    print(&format!("a directory of {threshold} of {signers} signers is in {shown}"))?;
    copy_descriptors(&folder, &args.descriptors)?;
    let mut round = Round::new(folder.clone(), keys, Admission::Anybody);
    if let Some(nodes) = args.wait_for {
        print(&format!(
            "waiting for {nodes} nodes: start them with fieldpost serve --directory {shown}"
        ))?;
        wait_for(nodes, args.patience, &folder, &mut round, clock).await?;
    }
    round.hear(now(clock), None, &[]);
    match round.sign_next(now(clock), None)? {
        Outcome::NoDescriptors => print(&format!(
            "no descriptor is there yet: start nodes with fieldpost serve --directory {shown}; one \
             that has --directory-key too signs by itself, else sign the first document by fieldpost \
             directory sign {shown}"
        ))?,
        outcome => tell(&outcome, &folder)?,
    }
    if signers > 1 {
        print("give each signer its key, and keep none of the others here")?;
    }
    Ok(())
}

/// Waits for descriptors in the folder.
async fn wait_for(
    nodes: usize,
    patience: Duration,
    folder: &Folder,
    round: &mut Round,
    clock: &Clock,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        round.hear(now(clock), None, &[]);
        let count = round.heard(now(clock));
        if count >= nodes {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "{count} of {nodes} nodes came in time: see why the others do not start, then sign the \
                 first document by fieldpost directory sign {}",
                folder.path().display()
            );
        }
        sleep(LOOK_AGAIN).await;
    }
}

async fn sign(args: SignArgs, clock: &Clock) -> anyhow::Result<()> {
    let folder = Folder::open(&args.folder)?;
    let key_files = if args.keys.is_empty() { folder.key_files() } else { args.keys };
    let keys = keys(&folder, &key_files)?;
    copy_descriptors(&folder, &args.descriptors)?;
    for file in &args.merge {
        merge(&folder, file)?;
    }
    let mut round = Round::new(folder.clone(), keys, Admission::Named);
    if args.every_epoch {
        return sign_every_epoch(round, &folder, clock).await;
    }
    let newest = round.newest(&[], &[]);
    round.hear(now(clock), newest.as_ref(), &[]);
    match round.sign_next(now(clock), newest.as_ref())? {
        Outcome::NoDescriptors
            if let Some((newest, due)) = round.ahead(now(clock), newest.as_ref()) =>
        {
            bail!(
                "document {} for epoch {} is signed already: the next one is due at {}, once nodes have put \
             keys for its epoch into their descriptors",
                newest.document().number,
                newest.document().epoch,
                show::time(due),
            )
        }
        Outcome::NoDescriptors => bail!(
            "no descriptor in {} is good for the next document: nodes that run with --directory {} put \
             them there, with keys of this epoch and the two that follow",
            folder.path().join("relays").display(),
            args.folder.display(),
        ),
        outcome => tell(&outcome, &folder),
    }
}

async fn sign_every_epoch(mut round: Round, folder: &Folder, clock: &Clock) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    print(&format!("signing the documents of {} until told to stop", folder.path().display()))?;
    let mut waits = false;
    loop {
        match round.step(now(clock), &[], &[]) {
            Ok(outcomes) => {
                let is_new = |outcome: &Outcome| !matches!(outcome, Outcome::NoDescriptors);
                for outcome in outcomes.iter().filter(|outcome| is_new(outcome)) {
                    tell(outcome, folder)?;
                }
                let waited = waits;
                waits = matches!(outcomes.last(), Some(Outcome::NoDescriptors));
                if waits && !waited {
                    print("a document is due, and no descriptor is good for it: waiting")?;
                }
            }
            Err(error) => print(&format!("not signed: {error:#}"))?,
        }
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = sleep(LOOK_AGAIN) => {}
        }
    }
}

fn show(args: &ShowArgs, clock: &Clock) -> anyhow::Result<()> {
    let is_document = args.path.is_file() && !args.path.ends_with("authority.json");
    let (folder, document) = if is_document {
        let document = folder::read_document(&args.path)?;
        // A document lies in `documents` of its directory.
        let beside = args.path.parent().and_then(Path::parent).map(Path::to_owned);
        let path = args.authority.clone().or(beside).unwrap_or_default();
        let folder = Folder::open(&path)
            .context("by whose word is the document to be judged? give --authority")?;
        (folder, Some(document))
    } else {
        let folder = Folder::open(args.authority.as_ref().unwrap_or(&args.path))?;
        let mut documents = folder.documents().load();
        let document = match args.number {
            None => documents.pop(),
            Some(number) => {
                let found = documents.into_iter().find(|it| it.document().number == number);
                Some(found.ok_or_else(|| {
                    anyhow!("document {number} is not in {}", folder.path().display())
                })?)
            }
        };
        (folder, document)
    };
    let shown = Shown::new(folder.authority(), document.as_ref(), now(clock));
    match args.json {
        true => print(&serde_json::to_string_pretty(&shown)?),
        false => print(&shown.to_string()),
    }
}

/// The signers' keys in these files.
///
/// # Errors
///
/// One is none of this network, or there are none.
pub fn keys(folder: &Folder, files: &[PathBuf]) -> anyhow::Result<Vec<SigningKey>> {
    if files.is_empty() {
        bail!("no signer's key is in {}: name one by --key FILE", folder.path().display());
    }
    let key = |file: &PathBuf| {
        let key = read_key(file)?;
        match folder.authority().signers().contains(&key.verifying_key()) {
            true => Ok(key),
            false => Err(anyhow!(
                "{} is not the key of a signer of the network in {}",
                file.display(),
                folder.path().display()
            )),
        }
    };
    files.iter().map(key).collect()
}

/// Reads the id of a relay.
///
/// # Errors
///
/// It is none.
pub fn relay_id(text: &str) -> Result<RelayId, String> {
    let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes.map(RelayId::from_bytes).ok_or_else(|| {
        format!("{text:?} is not the id of a relay: expected 64 hex digits, as `directory show` prints them")
    })
}

/// Takes descriptors in files and folders over into the directory's own folder.
fn copy_descriptors(folder: &Folder, paths: &[PathBuf]) -> anyhow::Result<()> {
    for path in paths {
        let files = match path.is_dir() {
            true => path
                .read_dir()
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| format!("cannot read {}", path.display()))?
                .into_iter()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|it| it == "descriptor"))
                .collect(),
            false => vec![path.clone()],
        };
        for file in files {
            let descriptor = folder::read_descriptor(&file)?;
            descriptor.verify().with_context(|| format!("{} is not believed", file.display()))?;
            folder.put_descriptor(&descriptor)?;
        }
    }
    Ok(())
}

/// Takes the signatures of a copy over.
fn merge(folder: &Folder, file: &Path) -> anyhow::Result<()> {
    let copy = folder::read_document(file)?;
    let number = copy.document().number;
    let merged = match folder.proposal(number)? {
        Some(mut proposal) => {
            proposal.merge(&copy).with_context(|| {
                format!("{} is not a copy of the proposal that is here", file.display())
            })?;
            proposal
        }
        None => copy,
    };
    folder.put_proposal(&merged).map(drop)
}

/// Says what was signed.
fn tell(outcome: &Outcome, folder: &Folder) -> anyhow::Result<()> {
    let authority = folder.authority();
    let describe = |document: &SignedDocument| {
        let it = document.document();
        let relaying = it.relays().iter().filter(|relay| relay.descriptor().relays).count();
        let nodes = it.relays().len();
        format!(
            "document {} for epoch {}, {nodes} nodes of which {relaying} relay",
            it.number, it.epoch
        )
    };
    match outcome {
        Outcome::Signed(document) => print(&format!("signed {}", describe(document))),
        Outcome::Proposed(document) => print(&format!(
            "{}: {} of {} signatures; the next signer runs fieldpost directory sign on this folder, or \
             with --merge on a copy of documents/{:012}.proposal",
            describe(document),
            document.signatures(authority).len(),
            authority.threshold(),
            document.document().number,
        )),
        Outcome::NoDescriptors => Ok(()),
    }
}

fn now(clock: &Clock) -> Timestamp {
    clock.now().into()
}

fn print(line: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot write to standard output")
}
