//! `./dev bench [NAME…]`: how fast the gateway is, beside what this machine can do at all, measured
//! in the same run. Each figure stands with its target of the design, section 10.
//!
//! The gateway is the real program in a process of its own, so that its processor time can be told
//! from the load's. The mixnet's, `htx`, are `cargo bench` of its own crates: they need none.

mod accept;
mod drain;
mod failover;
mod federation;
mod floor;
mod latency;
mod links;
mod load;
mod measure;
mod mesh;
mod server;
mod sockets;
mod table;

use std::process::ExitCode;

use crate::table::Table;

const BENCHES: [&str; 8] =
    ["accept", "latency", "sockets", "drain", "failover", "federation", "links", "mesh"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let unknown = arguments.iter().find(|name| !BENCHES.contains(&name.as_str()));
    if let Some(name) = unknown {
        eprintln!("no benchmark {name}: there are {}, htx", BENCHES.join(", "));
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|other| other == name);
    runtime.block_on(async {
        let mut table = Table::default();
        let floor = floor::measure(&mut table).await;
        if wanted("federation") {
            federation::run(&mut table).await;
        }
        if wanted("accept") {
            accept::run(&mut table, &floor).await;
        }
        if wanted("latency") {
            latency::run(&mut table, &floor).await;
        }
        if wanted("sockets") {
            sockets::run(&mut table).await;
        }
        if wanted("drain") {
            drain::run(&mut table).await;
        }
        if wanted("failover") {
            failover::run(&mut table).await;
        }
        if wanted("links") {
            links::run(&mut table).await;
        }
        if wanted("mesh") {
            mesh::gateways(&mut table).await;
        }
        table.print();
    });
    ExitCode::SUCCESS
}
