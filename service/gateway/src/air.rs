//! `fieldpost air`: a simulated medium for the radios of gateways on one machine.

use std::{
    io::{Write, stdout},
    path::PathBuf,
};

use anyhow::Context;
use clap::Args;
use fieldpost_transport::{AirServer, Scenario, StreamAddress};
use tokio::signal::unix::{SignalKind, signal};

/// Which air, and where.
#[derive(Args, Clone, Debug)]
pub struct AirArgs {
    /// A JSON file that says who is where, and what the air loses and delays.
    #[arg(long, env = "FIELDPOST_AIR_SCENARIO")]
    scenario: PathBuf,

    /// Where radios join: `unix:PATH` or `tcp:127.0.0.1:PORT`; gateways then use
    /// `--ble-radio air:ADDRESS#STATION`.
    #[arg(long, env = "FIELDPOST_AIR_LISTEN")]
    listen: StreamAddress,
}

/// Plays an air until it is told to stop.
///
/// # Errors
///
/// Says what is wrong with the scenario or the address.
pub async fn run(args: AirArgs) -> anyhow::Result<()> {
    let file = args.scenario.display();
    let text = std::fs::read_to_string(&args.scenario)
        .with_context(|| format!("cannot read the scenario {file}"))?;
    let scenario =
        Scenario::parse(&text).with_context(|| format!("{file} is no scenario of an air"))?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let air = AirServer::open(&args.listen, scenario).await.with_context(|| {
        format!("cannot listen on {}; choose another address or end who uses it", args.listen)
    })?;
    writeln!(stdout(), "{}", air.address()).context("cannot write to standard output")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    air.shutdown().await;
    Ok(())
}
