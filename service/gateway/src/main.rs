//! The `fieldpost` command.

use std::{
    env,
    io::{Write, stdout},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use fieldpost_gateway::{
    admin::{self, AdminCommand},
    air::{self, AirArgs},
    client::{self, ClientCommand},
    config::Config,
    directory::{self, DirectoryCommand},
    doctor::{self, DoctorArgs},
    http, run,
};
use secrecy::SecretString;

/// Most of a request's own cost is allocation, and this one is half the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A message gateway: HTTP and WebSocket in front, whatever link is up behind.
#[derive(Parser)]
#[command(name = "fieldpost", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Serve(Box<Config>),
    /// Print the API's OpenAPI document.
    Openapi,
    /// Check what the gateway needs, and say what to do about each failure.
    ///
    /// Takes the options of `serve` and judges them. Exit codes: 0 nothing failed, 1 something
    /// failed.
    Doctor(Box<DoctorArgs>),
    /// The relay directory of an HTX network.
    #[command(subcommand)]
    Directory(DirectoryCommand),
    /// Play a simulated air: radios for `--ble-radio air:ADDRESS#STATION` without Bluetooth.
    Air(AirArgs),
    #[command(flatten)]
    Admin(AdminCommand),
    #[command(flatten)]
    Client(ClientCommand),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let master_key = master_key();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(perform(command, master_key)),
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the runtime")),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fieldpost: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

async fn perform(command: Command, master_key: Option<SecretString>) -> anyhow::Result<ExitCode> {
    // Fails only if there is one already, which is then as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match command {
        Command::Serve(mut config) => {
            config.database.master_key = master_key;
            run::serve(*config).await?;
        }
        Command::Openapi => {
            let document = http::openapi().to_pretty_json()?;
            writeln!(stdout().lock(), "{document}").context("cannot write to standard output")?;
        }
        Command::Doctor(mut doctor) => {
            doctor.config.database.master_key = master_key;
            let healthy = doctor::run(*doctor).await.context("cannot write to standard output")?;
            return Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Directory(command) => directory::run(command).await?,
        Command::Air(args) => air::run(args).await?,
        Command::Admin(mut command) => {
            command.database_mut().master_key = master_key;
            admin::run(command).await?;
        }
        Command::Client(command) => {
            if let Err(error) = client::run(command).await {
                eprintln!("fieldpost: {error}");
                return Ok(ExitCode::from(error.exit_code()));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// From the environment alone, so that it shows in no process list; an empty one is none.
fn master_key() -> Option<SecretString> {
    env::var("FIELDPOST_MASTER_KEY").ok().filter(|key| !key.is_empty()).map(SecretString::from)
}

/// The error and its causes, without those that the text before already holds.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
