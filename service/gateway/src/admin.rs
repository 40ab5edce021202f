//! Administration on the database: `migrate`, `invite create`, `operator token`, `identity`, `keys`.
//!
//! They work beside a running gateway, on the embedded database too, but for `identity import` and
//! `keys rotate`, which change what a running gateway holds in memory.

mod files;

use std::{
    io::{Write, stdout},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, bail};
use chrono::TimeDelta;
use clap::{Args, Subcommand};
use ed25519_dalek::SigningKey;
use fieldpost_envelope::GatewayId;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::{DatabaseConfig, duration},
    database::{Database, Keeper, data_dir},
    readiness::Readiness,
    secrets::{MasterKey, MasterKeyError, MasterKeySource, SealedIdentity},
    store::{Store, schema},
};

use self::files::PassphraseArgs;

/// How long the database may take to be there.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Commands that work on the database.
#[derive(Clone, Debug, Subcommand)]
pub enum AdminCommand {
    /// Bring the database's schema up to date.
    Migrate(DatabaseConfig),
    /// Invites to register a peer.
    #[command(subcommand)]
    Invite(InviteCommand),
    /// Operators' access.
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Who this deployment is.
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// The keys that seal and certify.
    #[command(subcommand)]
    Keys(KeysCommand),
}

/// What can be done about invites.
#[derive(Clone, Debug, Subcommand)]
pub enum InviteCommand {
    /// Make an invite and print it, once.
    Create(InviteArgs),
}

/// The invite to make.
#[derive(Args, Clone, Debug)]
pub struct InviteArgs {
    /// How many peers may register with it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    uses: i32,

    /// How long it holds.
    #[arg(long, default_value = "7d", value_parser = duration)]
    valid_for: Duration,

    /// What it is for, for the operator's own memory.
    #[arg(long)]
    note: Option<String>,

    #[command(flatten)]
    database: DatabaseConfig,
}

/// What can be done about operators' access.
#[derive(Clone, Debug, Subcommand)]
pub enum OperatorCommand {
    /// Make an operator's token and print it, once.
    Token(OperatorArgs),
}

/// The token to make.
#[derive(Args, Clone, Debug)]
pub struct OperatorArgs {
    /// Whose it is, for the operator's own memory.
    #[arg(long)]
    note: Option<String>,

    #[command(flatten)]
    database: DatabaseConfig,
}

/// What can be done about the identity.
#[derive(Clone, Debug, Subcommand)]
pub enum IdentityCommand {
    /// Print the gateway id, by which other gateways know this one.
    Show(DatabaseConfig),
    /// Write the gateway's key to a new file, sealed by a passphrase.
    ///
    /// Whoever has the file and the passphrase is this gateway. The passphrase is asked for, or taken
    /// from --passphrase-file or FIELDPOST_PASSPHRASE.
    Export(IdentityFileArgs),
    /// Make a new database that of the gateway whose key was exported.
    ///
    /// The database must have no peers yet, and no gateway may run on it.
    Import(IdentityFileArgs),
}

/// The file of an exported identity.
#[derive(Args, Clone, Debug)]
pub struct IdentityFileArgs {
    /// The file with the sealed identity: export makes it and overwrites none, import reads it.
    file: PathBuf,

    #[command(flatten)]
    passphrase: PassphraseArgs,

    #[command(flatten)]
    database: DatabaseConfig,
}

/// What can be done about keys.
#[derive(Clone, Debug, Subcommand)]
pub enum KeysCommand {
    /// Replace the master key, seal everything by the new one, and forget the node keys.
    ///
    /// The gateway id stays. Stop the gateway first; with several replicas, all of them. A master key
    /// that the gateway keeps by itself is replaced in its file; for one of your own give the next
    /// one by --new-master-key-file, and start the replicas with that.
    Rotate(RotateArgs),
}

/// How to rotate.
#[derive(Args, Clone, Debug)]
pub struct RotateArgs {
    /// A file with the next master key, 64 hex digits, accessible to its owner alone.
    #[arg(long)]
    new_master_key_file: Option<PathBuf>,

    #[command(flatten)]
    database: DatabaseConfig,
}

impl AdminCommand {
    /// Gives the command the master key of the environment, which is not an option.
    pub fn database_mut(&mut self) -> &mut DatabaseConfig {
        match self {
            Self::Migrate(database) | Self::Identity(IdentityCommand::Show(database)) => database,
            Self::Identity(IdentityCommand::Export(args) | IdentityCommand::Import(args)) => {
                &mut args.database
            }
            Self::Keys(KeysCommand::Rotate(args)) => &mut args.database,
            Self::Invite(InviteCommand::Create(args)) => &mut args.database,
            Self::Operator(OperatorCommand::Token(args)) => &mut args.database,
        }
    }
}

/// Runs one command and prints what it made.
///
/// # Errors
///
/// Says why it could not be done.
pub async fn run(mut command: AdminCommand) -> anyhow::Result<()> {
    if let AdminCommand::Migrate(config) = &command {
        let database = Database::open_beside_a_gateway(config).await?;
        schema::migrate(&database.options).await?;
        Database::close(database.embedded).await;
        return print("the schema is up to date");
    }
    let Database { options, embedded, master_key } = open(&mut command).await?;
    let clock = Clock::default();
    let store = Store::new(schema::pool(options.clone()), clock.clone(), master_key);
    let keeper = Keeper::new(options, store.clone(), clock.clone(), Readiness::starting());
    let stop = CancellationToken::new();
    let (first, attempted) = oneshot::channel();
    let keeping = tokio::spawn(keeper.run(first, stop.clone()));
    tokio::time::timeout(DATABASE_TIMEOUT, attempted)
        .await
        .context("the database did not answer in time")?
        .context("the database could not be prepared")??;
    let made = perform(&command, &store, &clock).await;
    stop.cancel();
    let _ = keeping.await;
    store.close().await;
    Database::close(embedded).await;
    print(&made?)
}

/// Opens the database as far as the command may change it.
async fn open(command: &mut AdminCommand) -> anyhow::Result<Database> {
    let alone = match command {
        AdminCommand::Identity(IdentityCommand::Import(_)) => "an identity is imported",
        AdminCommand::Keys(_) => "keys are rotated",
        _ => return Database::open_existing(command.database_mut()).await,
    };
    let is_new = matches!(command, AdminCommand::Identity(_));
    let database = command.database_mut();
    let opened = match is_new {
        true => Database::open(database).await,
        false => Database::open_existing_alone(database).await,
    };
    opened.with_context(|| format!("{alone} only while no gateway runs on the database"))
}

async fn perform(command: &AdminCommand, store: &Store, clock: &Clock) -> anyhow::Result<String> {
    Ok(match command {
        AdminCommand::Migrate(_) => unreachable!("it needs no store"),
        AdminCommand::Invite(InviteCommand::Create(args)) => {
            let expires_at = clock.now() + TimeDelta::from_std(args.valid_for)?;
            match store.create_invite(args.note.as_deref(), args.uses, expires_at).await? {
                Some(invite) => invite,
                None => bail!("too many invites are open; let some of them expire first"),
            }
        }
        AdminCommand::Operator(OperatorCommand::Token(args)) => {
            store.create_operator_token(args.note.as_deref()).await?
        }
        AdminCommand::Identity(IdentityCommand::Show(_)) => {
            store.identity()?.gateway_id.to_string()
        }
        AdminCommand::Identity(IdentityCommand::Export(args)) => export(args, store)?,
        AdminCommand::Identity(IdentityCommand::Import(args)) => import(args, store).await?,
        AdminCommand::Keys(KeysCommand::Rotate(args)) => rotate(args, store).await?,
    })
}

fn export(args: &IdentityFileArgs, store: &Store) -> anyhow::Result<String> {
    let identity = store.identity()?;
    let gateway_id = identity.gateway_id.to_string();
    let passphrase = args.passphrase.chosen()?;
    let sealed = SealedIdentity::seal(&gateway_id, identity.signing_key.as_bytes(), &passphrase)?;
    files::write_private(&args.file, &sealed.to_text())?;
    Ok(format!("{gateway_id} is in {}", args.file.display()))
}

async fn import(args: &IdentityFileArgs, store: &Store) -> anyhow::Result<String> {
    let sealed = SealedIdentity::parse(&files::read(&args.file)?)?;
    let passphrase = args.passphrase.known()?;
    let seed = sealed.open(&passphrase)?;
    let key = SigningKey::from_bytes(&seed);
    let gateway_id = GatewayId::from(key.verifying_key());
    Ok(match store.import_identity(&key).await? {
        true => format!("the database is now that of {gateway_id}"),
        false => format!("the database was that of {gateway_id} already"),
    })
}

async fn rotate(args: &RotateArgs, store: &Store) -> anyhow::Result<String> {
    let successor = match &args.new_master_key_file {
        Some(file) => MasterKey::load(MasterKeySource::File(file.clone()))?,
        None if store.master_key().is_managed() => {
            store.master_key().prepare_successor(&data_dir(&args.database)?)?
        }
        None => return Err(MasterKeyError::NotManaged.into()),
    };
    if store.master_key().verify_check_value(&successor.check_value()).is_ok() {
        bail!("--new-master-key-file holds the key that is in force already");
    }
    let rotated = store.rotate_keys(&successor).await?;
    let identity = store.identity()?.gateway_id;
    let next = match args.new_master_key_file {
        Some(_) => format!("start it with --master-key-file {}", successor.origin()),
        None => format!("back up {} again", successor.succeed()?.origin()),
    };
    let days = match rotated.days {
        1 => "1 day".to_owned(),
        count => format!("{count} days"),
    };
    Ok(format!("keys of {identity} rotated, {days} sealed anew; {next}"))
}

fn print(line: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot write to standard output")
}
