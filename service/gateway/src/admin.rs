//! Administration on the database: `migrate`, `invite create`, `operator token`, `identity show`.
//!
//! They work beside a running gateway, on the embedded database too.

use std::{
    io::{Write, stdout},
    time::Duration,
};

use anyhow::{Context, bail};
use chrono::TimeDelta;
use clap::{Args, Subcommand};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::{DatabaseConfig, duration},
    database::{Database, Keeper},
    readiness::Readiness,
    store::{Store, schema},
};

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
}

impl AdminCommand {
    /// Gives the command the master key of the environment, which is not an option.
    pub fn database_mut(&mut self) -> &mut DatabaseConfig {
        match self {
            Self::Migrate(database) | Self::Identity(IdentityCommand::Show(database)) => database,
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
    let Database { options, embedded, master_key } =
        Database::open_existing(command.database_mut()).await?;
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
    })
}

fn print(line: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot write to standard output")
}
