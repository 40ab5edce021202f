//! `fieldpost doctor`: whether `fieldpost serve` with the same options would work well, and what
//! to do where it would not (design, section 3).
//!
//! Nothing is changed and nothing is started: a check that needs a running part says so.

mod bluetooth;
mod database;
mod machine;
mod mesh;
mod mixnet;
mod network;

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::config::{Config, Trust};

/// Options of `fieldpost doctor`: those of `serve`, to be judged.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// What `serve` would be started with.
    #[command(flatten)]
    pub config: Config,

    /// Write one JSON object instead of lines for people.
    #[arg(long)]
    pub json: bool,
}

/// What one check found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// What was looked at, such as `disk space`.
    pub name: &'static str,
    /// Whether it is well.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Neither good nor bad: this build or these options do not use it.
    Info,
    /// The gateway works, but not as well as it could.
    Warning,
    /// The gateway does not work, or breaks a promise.
    Failure,
}

/// Checks everything and writes the report to standard output. Returns whether nothing failed:
/// the command exits with 1 otherwise.
///
/// # Errors
///
/// Standard output cannot be written.
pub async fn run(args: DoctorArgs) -> io::Result<bool> {
    let findings = examine(&args.config).await;
    let healthy = findings.iter().all(|finding| finding.verdict != Verdict::Failure);
    let mut stdout = io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", json!({ "healthy": healthy, "findings": findings }))?;
    } else {
        stdout.write_all(report(&findings, healthy).as_bytes())?;
    }
    stdout.flush()?;
    Ok(healthy)
}

/// Makes all the checks, each within its own deadline.
pub async fn examine(config: &Config) -> Vec<Finding> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut findings = vec![options(config)];
    findings.extend(machine::examine(config).await);
    findings.extend(bluetooth::examine(config).await);
    findings.extend(database::examine(&config.database).await);
    findings.extend(network::examine(config).await);
    findings.extend(mesh::examine(config).await);
    findings.push(trust(config));
    findings.extend(mixnet::examine(config));
    findings
}

fn options(config: &Config) -> Finding {
    match config.validate().and_then(|()| config.validate_transports()) {
        Ok(()) => Finding::ok("options", "can be used together"),
        Err(problem) => Finding::failure("options", problem, "change the option"),
    }
}

fn trust(config: &Config) -> Finding {
    if config.transports().next().is_none() {
        return Finding::info("trust", "nobody: without transports there are no other gateways");
    }
    let Trust { lan, gateways } = config.trust();
    let named = match gateways.len() {
        0 => String::new(),
        1 => "1 gateway by its id".to_owned(),
        several => format!("{several} gateways by their ids"),
    };
    let detail = match (lan, gateways.is_empty()) {
        (false, true) => {
            "no gateway: peers of others are reached as peer@gateway alone (--trust)".to_owned()
        }
        (true, true) => {
            "gateways found on the local network; a bare name may lead there".to_owned()
        }
        (true, false) => format!("gateways found on the local network and {named}"),
        (false, false) => named,
    };
    let is_open = lan && !config.listen.ip().is_loopback();
    match is_open {
        false => Finding::info("trust", detail),
        true => Finding::warning(
            "trust",
            detail,
            "whoever joins that network may claim a name that nobody here has used yet; where it is \
             not yours, give --trust the ids of gateways, or none",
        ),
    }
}

fn report(findings: &[Finding], healthy: bool) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut lines = String::new();
    for Finding { name, verdict, detail, advice } in findings {
        let mark = match verdict {
            Verdict::Ok => "ok  ",
            Verdict::Info => "–   ",
            Verdict::Warning => "WARN",
            Verdict::Failure => "FAIL",
        };
        lines.push_str(&format!("{mark}  {name:width$}  {detail}\n"));
        if let Some(advice) = advice {
            lines.push_str(&format!("      {:width$}  → {advice}\n", ""));
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    lines.push_str(&if healthy {
        format!("\nnothing failed, {} to look at\n", count(Verdict::Warning))
    } else {
        format!("\n{} failed, {} to look at\n", count(Verdict::Failure), count(Verdict::Warning))
    });
    lines
}

impl Finding {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, detail: detail.into(), advice: None }
    }

    fn info(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Info, detail: detail.into(), advice: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { name, verdict: Verdict::Warning, detail: detail.into(), advice }
    }

    fn failure(name: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { name, verdict: Verdict::Failure, detail: detail.into(), advice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_comes_with_what_to_do_about_it() {
        let findings = [
            Finding::ok("clock", "fine"),
            Finding::failure("disk space", "2 MiB left", "make room"),
        ];
        assert_eq!(
            report(&findings, false),
            "ok    clock       fine\nFAIL  disk space  2 MiB left\n                  → make room\n\
             \n1 failed, 0 to look at\n"
        );
    }

    #[test]
    fn words_in_json_are_in_lower_case() {
        let finding = Finding::warning("clock", "2 s behind", "use NTP");
        assert_eq!(
            serde_json::to_value(&finding).unwrap(),
            json!({ "name": "clock", "verdict": "warning", "detail": "2 s behind", "advice": "use NTP" })
        );
    }
}
